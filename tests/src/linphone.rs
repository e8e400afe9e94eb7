//! linphonec, calling and called: a SIP and media stack of a third family, told what to do on its console.

use std::io::Write as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// Longest wait for a word of its console.
const SAID_WITHIN: Duration = Duration::from_secs(20);

/// A phone without a sound card; ended when dropped.
pub struct Linphone {
    child: Child,
    console: ChildStdin,
    folder: tempfile::TempDir,
}

impl Linphone {
    /// Starts it at this port of loopback, UDP and TCP.
    pub fn start(sip_port: u16) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tandem-linphone-").tempdir()?;
        let path = folder.path();
        // Without these folders it cannot keep its databases, and ends.
        for home in [".config/linphone", ".local/share/linphone"] {
            std::fs::create_dir_all(path.join(home))?;
        }
        std::fs::write(path.join("linphonerc"), config(sip_port))?;
        let out = std::fs::File::create(path.join("out"))?;
        let mut child = Command::new("linphonec")
            .arg("-c")
            .arg(path.join("linphonerc"))
            .args(["-d", "6", "-l"])
            .arg(path.join("log"))
            .env("HOME", path)
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("XDG_DATA_HOME")
            .current_dir(path)
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("linphonec is missing: scripts/setup.sh test installs it")?;
        let console = child.stdin.take().context("its console is a pipe")?;
        let mut phone = Self { child, console, folder };
        phone.waits_for("linphonec>")?;
        // Media come from nowhere and go nowhere: there is no sound card.
        phone.command("soundcard use files")?;
        Ok(phone)
    }

    /// A line for its console: `register sip:user@host sip:host password`, `call sip:…`, `pause`, `resume`, `5` (a key, in a
    /// call), `transfer sip:…`, `terminate`.
    pub fn command(&mut self, line: &str) -> anyhow::Result<()> {
        writeln!(self.console, "{line}")?;
        self.console.flush()?;
        Ok(())
    }

    /// Waits until its console says this.
    pub fn waits_for(&self, text: &str) -> anyhow::Result<()> {
        crate::eventually(&format!("linphonec says {text:?}"), SAID_WITHIN, || {
            self.said().contains(text).then_some(())
        })
        .with_context(|| self.said())
    }

    /// Waits until a registrar has said 200: the console says nothing of it.
    pub fn is_registered(&self) -> anyhow::Result<()> {
        crate::eventually("linphonec is registered", SAID_WITHIN, || {
            self.messages().contains("SIP/2.0 200 OK").then_some(())
        })
        .with_context(|| self.said())
    }

    /// What its console has said.
    pub fn said(&self) -> String {
        self.read("out")
    }

    /// The first lines of its SIP messages, and their headers of authentication and transfer: for a failure's message.
    pub fn messages(&self) -> String {
        let log = self.log();
        let told =
            ["SIP/2.0", "Authorization:", "WWW-Authenticate:", "Refer-To:", "Replaces:", "m=audio", "c=IN"];
        let is_told = |line: &&str| told.iter().any(|part| line.contains(part));
        log.lines().filter(is_told).map(|line| format!("{line}\n")).collect()
    }

    /// What its log holds: each SIP message, both ways.
    pub fn log(&self) -> String {
        self.read("log")
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Linphone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything at loopback. Without the word that the migration is done it would turn IPv6 on again.
fn config(sip_port: u16) -> String {
    format!(
        "[sip]\nbind_address=127.0.0.1\nsip_port={sip_port}\nsip_tcp_port={sip_port}\nsip_tls_port=0\nguess_hostname=1\n\
         ipv6_migration_done=1\nuse_ipv6=0\nregister_only_when_network_is_up=0\nuse_rfc2833=1\n\
         [rtp]\naudio_rtp_port=-1\n\
         [sound]\nplayback_dev_id=null\ncapture_dev_id=null\nringer_dev_id=null\nremote_ring=\n\
         [video]\nenabled=0\ncapture=0\ndisplay=0\n"
    )
}
