//! Kamailio between Tandem and its callers: a proxy and registrar that carriers use, with TLS and WebSocket. What it does
//! with a request is written in tests/peers/kamailio.cfg.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;

use crate::stack::{self, free_port};

const UP_WITHIN: Duration = Duration::from_secs(30);
const DOWN_WITHIN: Duration = Duration::from_secs(10);

/// How it is to be.
#[derive(Debug, Clone)]
pub struct Plan {
    tandem: SocketAddr,
    switches: Vec<&'static str>,
    by: String,
    tls: Option<String>,
    password: String,
    algorithm: String,
}

/// A Kamailio at work; ended when dropped.
pub struct Kamailio {
    child: Child,
    folder: tempfile::TempDir,
    /// UDP and TCP.
    pub sip: SocketAddr,
    /// TLS, when the plan has it.
    pub tls: SocketAddr,
    /// WebSocket, when the plan has it.
    pub ws: SocketAddr,
}

impl Plan {
    /// Passes calls on to a Tandem that listens there.
    pub fn to(tandem: SocketAddr) -> Self {
        Self {
            tandem,
            switches: Vec::new(),
            by: "udp".to_owned(),
            tls: None,
            password: "unused".to_owned(),
            algorithm: "MD5".to_owned(),
        }
    }

    /// Goes to Tandem by `tcp` or `tls` instead of UDP.
    pub fn by(mut self, transport: &str) -> Self {
        self.switches.push("WITH_BY");
        self.by = transport.to_owned();
        self
    }

    /// Takes and makes TLS connections, with this tls.cfg.
    pub fn tls(mut self, config: String) -> Self {
        self.tls = Some(config);
        self.switches.push("WITH_TLS");
        self
    }

    /// Takes SIP over WebSocket.
    pub fn websocket(mut self) -> Self {
        self.switches.push("WITH_WS");
        self
    }

    /// Wants everybody to prove this password who registers, by `MD5` or `SHA-256`. Its realm is peers.test.
    pub fn registration_password(mut self, password: &str, algorithm: &str) -> Self {
        self.switches.push("WITH_AUTH");
        self.password = password.to_owned();
        self.algorithm = algorithm.to_owned();
        self
    }

    /// The same for those who call somebody that has registered.
    pub fn call_password(mut self, password: &str, algorithm: &str) -> Self {
        self.switches.push("WITH_CALL_AUTH");
        self.password = password.to_owned();
        self.algorithm = algorithm.to_owned();
        self
    }

    /// Starts it, and waits until it listens.
    pub fn start(self) -> anyhow::Result<Kamailio> {
        let folder = tempfile::Builder::new().prefix("tandem-kamailio-").tempdir()?;
        let (sip, tls, ws) = (free_port()?, free_port()?, free_port()?);
        let template = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/kamailio.cfg");
        let mut text = std::fs::read_to_string(template)?;
        for (name, value) in [
            ("@SIP@", sip.to_string()),
            ("@TLS@", tls.to_string()),
            ("@WS@", ws.to_string()),
            ("@TANDEM@", self.tandem.to_string()),
            ("@BY@", self.by),
            ("@PASSWORD@", self.password),
            ("@ALGORITHM@", self.algorithm),
        ] {
            text = text.replace(name, &value);
        }
        std::fs::write(folder.path().join("kamailio.cfg"), text)?;
        if let Some(config) = self.tls {
            std::fs::write(folder.path().join("tls.cfg"), config)?;
        }
        let out = std::fs::File::create(folder.path().join("out"))?;
        let mut kamailio = Command::new("kamailio");
        kamailio.args(["-f", "kamailio.cfg", "-DD", "-E", "-m", "64", "-M", "8", "-w", ".", "-Y", "."]);
        for switch in &self.switches {
            kamailio.args(["-A", switch]);
        }
        let child = kamailio
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("kamailio is missing: scripts/setup.sh test installs it")?;
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut kamailio = Kamailio { child, folder, sip: at(sip), tls: at(tls), ws: at(ws) };
        kamailio.wait_until_it_answers()?;
        Ok(kamailio)
    }
}

impl Kamailio {
    fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let sip = self.sip;
        let up = crate::eventually("kamailio listens", UP_WITHIN, || {
            let ended = !matches!(self.child.try_wait(), Ok(None));
            (ended || TcpListener::bind(sip).is_err()).then_some(!ended)
        });
        anyhow::ensure!(matches!(up, Ok(true)), "kamailio does not run:\n{}", self.said());
        Ok(())
    }

    /// What it has written.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
    }
}

impl Drop for Kamailio {
    fn drop(&mut self) {
        // Its first process ends the others.
        let _ = stack::signal(self.child.id(), Signal::TERM);
        if crate::eventually("kamailio ends", DOWN_WITHIN, || self.child.try_wait().ok().flatten()).is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
