//! pipecat, the framework that most bots of telephony providers are built with, as a bot of the Twilio dialect: its
//! own serializer, transport and pipeline. What it does is in tests/peers/pipecat/bot.py.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::bot::TWILIO_PORT;

/// It imports half a Python world; on a busy machine more than the two seconds that this takes by itself.
const LISTENS_WITHIN: Duration = Duration::from_secs(60);
/// Between what the caller does and the line that tells of it.
const SAYS_WITHIN: Duration = Duration::from_secs(15);

/// A bot that says back what it hears; ended when dropped.
pub struct Pipecat {
    child: Child,
    folder: tempfile::TempDir,
}

impl Pipecat {
    /// Listens where the demo's assistant `ws` finds its bot.
    pub fn listens() -> anyhow::Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/pipecat");
        let python = package.join(".venv/bin/python");
        anyhow::ensure!(python.is_file(), "pipecat is missing: scripts/setup.sh test installs it");
        // Whoever had the port before may be about to end; the bot itself would not wait.
        crate::eventually("the port is free", SAYS_WITHIN, || {
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, TWILIO_PORT)).ok()
        })
        .with_context(|| format!("the demo bot's port {TWILIO_PORT} is taken; end the bot that uses it"))?;
        let folder = tempfile::Builder::new().prefix("tandem-pipecat-").tempdir()?;
        let out = std::fs::File::create(folder.path().join("out"))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, TWILIO_PORT));
        let child = Command::new(python)
            .arg(package.join("bot.py"))
            .arg(address.to_string())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        let mut bot = Self { child, folder };
        let listening = crate::eventually("pipecat listens", LISTENS_WITHIN, || {
            let ended = !matches!(bot.child.try_wait(), Ok(None));
            (ended || TcpStream::connect(address).is_ok()).then_some(!ended)
        });
        anyhow::ensure!(listening.with_context(|| bot.said())?, "pipecat has ended: {}", bot.said());
        Ok(bot)
    }

    /// What it has printed.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
    }

    /// Waits until it has printed a line that begins so, and returns what follows.
    pub fn says(&self, start: &str) -> anyhow::Result<String> {
        crate::eventually(&format!("pipecat says {start}"), SAYS_WITHIN, || {
            self.said().lines().find_map(|line| line.strip_prefix(start).map(str::to_owned))
        })
        .with_context(|| self.said())
    }

    /// Did it find nothing to warn of?
    pub fn is_content(&self) -> anyhow::Result<()> {
        let said = self.said();
        let trouble = ["WARNING", "ERROR", "CRITICAL", "Traceback"];
        anyhow::ensure!(!trouble.iter().any(|word| said.contains(word)), "pipecat complains:\n{said}");
        Ok(())
    }
}

impl Drop for Pipecat {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
