//! JsSIP, the SIP stack of web pages, outside of a browser: SIP over WebSocket (RFC 7118). Its steps are those of
//! tests/peers/jssip/call.js.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// Its own limit is a minute.
const ENDS_WITHIN: Duration = Duration::from_secs(75);

/// One run; ended when dropped.
pub struct JsSip {
    child: Child,
    folder: tempfile::TempDir,
}

impl JsSip {
    /// Connects to this WebSocket and does these steps: `call`, `hold`, `bye`, …
    pub fn starts(
        url: &str,
        target: &str,
        rtp_port: u16,
        steps: &[&str],
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/jssip");
        anyhow::ensure!(
            package.join("node_modules").is_dir(),
            "JsSIP is missing: scripts/setup.sh test installs it"
        );
        let folder = tempfile::Builder::new().prefix("tandem-jssip-").tempdir()?;
        let out = std::fs::File::create(folder.path().join("out"))?;
        let child = Command::new("node")
            .arg(package.join("call.js"))
            .args([url, target, &rtp_port.to_string()])
            .args(steps)
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("node is missing: scripts/setup.sh test installs it")?;
        Ok(Self { child, folder })
    }

    /// What it has printed.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("out")).unwrap_or_default()
    }

    /// Waits until a step is done for the nth time (from 1).
    pub fn has_done(&self, step: &str, nth: usize) -> anyhow::Result<()> {
        crate::eventually(&format!("JsSIP does {step}"), ENDS_WITHIN, || {
            (self.said().lines().filter(|line| *line == step).count() >= nth).then_some(())
        })
        .with_context(|| self.said())
    }

    /// Waits until all steps are done.
    pub fn succeeds(mut self) -> anyhow::Result<()> {
        let ended = crate::eventually("JsSIP ends", ENDS_WITHIN, || self.child.try_wait().ok().flatten());
        let said = self.said();
        let status = ended.with_context(|| said.clone())?;
        anyhow::ensure!(status.success() && said.ends_with("done\n"), "{status}\n{said}");
        Ok(())
    }
}

impl Drop for JsSip {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
