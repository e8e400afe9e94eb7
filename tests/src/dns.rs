//! A name server that knows only what a test tells it: dnsmasq.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// At work; ended when dropped.
pub struct NameServer {
    child: Child,
    /// Where it is asked.
    pub address: SocketAddr,
}

impl NameServer {
    /// Answers with these records, in the words of dnsmasq's options: `srv-host=_sip._udp.carrier.test,a.carrier.test,5060,1,1`,
    /// `naptr-record=carrier.test,10,10,s,SIP+D2U,,_sip._udp.carrier.test`, `host-record=a.carrier.test,127.0.0.1`.
    pub fn start(records: &[String]) -> anyhow::Result<Self> {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], crate::stack::free_port()?)), records)
    }

    /// The same, at this address and port.
    pub fn start_at(address: SocketAddr, records: &[String]) -> anyhow::Result<Self> {
        let mut child = Command::new(crate::stack::server_program("dnsmasq"))
            .args([
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-resolv",
                "--no-hosts",
                "--no-daemon",
            ])
            .args(["--bind-interfaces", "--local=/test/"])
            .arg(format!("--listen-address={}", address.ip()))
            .arg(format!("--port={}", address.port()))
            .args(records.iter().map(|record| format!("--{record}")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("dnsmasq is missing: scripts/setup.sh test installs it")?;
        let listens = crate::eventually("dnsmasq listens", Duration::from_secs(20), || {
            let ended = !matches!(child.try_wait(), Ok(None));
            (ended || UdpSocket::bind(address).is_err()).then_some(!ended)
        });
        if !matches!(listens, Ok(true)) {
            let _ = child.kill();
            let _ = child.wait();
            anyhow::bail!("dnsmasq does not run with {records:?}");
        }
        Ok(Self { child, address })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
