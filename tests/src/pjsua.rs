//! PJSIP as a phone: the stack that answers a SHA-256 challenge. Its steps are those of tests/peers/pjsua/call.py.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// Each of its four waits has twenty seconds.
const ENDS_WITHIN: Duration = Duration::from_secs(90);

/// Registers there as this user, calls this target, hangs up, goes away; fails with what it said when a step fails.
pub fn registers_and_calls(
    server: SocketAddr,
    user: &str,
    password: &str,
    target: &str,
) -> anyhow::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/pjsua");
    let python = folder.join(".venv/bin/python");
    anyhow::ensure!(python.is_file(), "PJSIP is missing: scripts/setup.sh test installs it");
    let scratch = tempfile::Builder::new().prefix("tandem-pjsua-").tempdir()?;
    let out = std::fs::File::create(scratch.path().join("out"))?;
    let mut child = Command::new(python)
        .arg(folder.join("call.py"))
        .args([&server.to_string(), user, password, target])
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()?;
    let ended = crate::eventually("PJSIP ends", ENDS_WITHIN, || child.try_wait().ok().flatten());
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let said = String::from_utf8_lossy(&std::fs::read(scratch.path().join("out"))?).into_owned();
    let status = ended.with_context(|| said.clone())?;
    anyhow::ensure!(status.success() && said.trim_end().ends_with("done"), "{status}\n{said}");
    Ok(())
}
