//! A real Redis server, which can be killed and comes back with what it had acknowledged.

use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::eventually;
use crate::stack::free_port;

/// A server on a port and in a folder of its own; dropped, it ends.
pub struct Redis {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Redis {
    /// Starts one that writes everything down before it answers.
    pub fn start() -> anyhow::Result<Self> {
        let (port, folder) = (free_port()?, tempfile::tempdir()?);
        let process = spawn(port, folder.path())?;
        let redis = Self { process, port, folder };
        redis.wait()?;
        Ok(redis)
    }

    /// As `TANDEM_REDIS_URL` wants it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it, without a word to anybody.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }

    /// Starts it again with what it had.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.process = spawn(self.port, self.folder.path())?;
        self.wait()
    }

    fn wait(&self) -> anyhow::Result<()> {
        eventually("Redis listens", Duration::from_secs(10), || {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok()
        })?;
        Ok(())
    }
}

fn spawn(port: u16, folder: &Path) -> anyhow::Result<Child> {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
        .arg(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("redis-server is missing: scripts/setup.sh test installs it")
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
