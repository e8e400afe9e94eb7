//! Chromium with JsSIP in a page: WebRTC as it is in the wild. Its steps are those of tests/peers/browser/call.js.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// Its own limit is a minute and a half.
const ENDS_WITHIN: Duration = Duration::from_secs(100);

/// One run; ended when dropped, and Chromium with it.
pub struct Browser {
    child: Child,
    folder: tempfile::TempDir,
}

impl Browser {
    /// Connects to this WebSocket, prefers this codec (its name in SDP), and does these steps: `call`, `tone`, `bye`, …
    pub fn starts(
        url: &str,
        target: &str,
        codec: &str,
        steps: &[&str],
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/browser");
        anyhow::ensure!(
            package.join("node_modules").is_dir(),
            "JsSIP for the browser is missing: scripts/setup.sh test installs it"
        );
        let folder = tempfile::Builder::new().prefix("tandem-browser-").tempdir()?;
        let out = std::fs::File::create(folder.path().join("out"))?;
        let child = Command::new("node")
            .arg(package.join("call.js"))
            .args([url, target, codec])
            .args(steps)
            .envs(settings.iter().copied())
            .env("TMPDIR", folder.path())
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
        crate::eventually(&format!("the browser does {step}"), ENDS_WITHIN, || {
            (self.said().lines().filter(|line| *line == step).count() >= nth).then_some(())
        })
        .with_context(|| self.said())
    }

    /// Waits until all steps are done; gives what was said.
    pub fn succeeds(mut self) -> anyhow::Result<String> {
        let ended =
            crate::eventually("the browser ends", ENDS_WITHIN, || self.child.try_wait().ok().flatten());
        let said = self.said();
        let status = ended.with_context(|| said.clone())?;
        anyhow::ensure!(status.success() && said.ends_with("done\n"), "{status}\n{said}");
        Ok(said)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
