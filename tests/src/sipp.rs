//! sipp as the caller: a SIP peer that shares no line with ours.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// One run of sipp.
#[derive(Debug, Clone)]
pub struct Sipp {
    scenario: PathBuf,
    calls: u32,
    at_once: u32,
    per_second: u32,
    talk: Duration,
    tcp: bool,
    audio: Option<Vec<u8>>,
}

/// What it counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Calls that went as the scenario says.
    pub successful: u32,
    /// All others.
    pub failed: u32,
    /// Most calls alive at one time.
    pub peak: u32,
    /// Everything it printed, and its errors.
    pub output: String,
}

impl Sipp {
    /// Calls of a scenario in tests/sipp, one after the other, hung up after 100 ms.
    pub fn scenario(name: &str) -> Self {
        let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("sipp").join(name);
        let talk = Duration::from_millis(100);
        Self { scenario, calls: 1, at_once: 1, per_second: 50, talk, tcp: false, audio: None }
    }

    /// How many calls in all, and how many of them at once.
    pub fn calls(mut self, calls: u32, at_once: u32) -> Self {
        (self.calls, self.at_once) = (calls, at_once);
        self
    }

    /// How long each call is talked.
    pub fn talk(mut self, talk: Duration) -> Self {
        self.talk = talk;
        self
    }

    /// New calls a second.
    pub fn per_second(mut self, per_second: u32) -> Self {
        self.per_second = per_second;
        self
    }

    /// Over one TCP connection instead of UDP.
    pub fn over_tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Streams this G.711 µ-law audio in each call.
    pub fn says(mut self, ulaw: Vec<u8>) -> Self {
        self.audio = Some(ulaw);
        self
    }

    /// Calls, and waits until all calls are over.
    pub fn run(&self, to: SocketAddr) -> anyhow::Result<Report> {
        let folder = tempfile::Builder::new().prefix("tandem-sipp-").tempdir()?;
        if let Some(audio) = &self.audio {
            std::fs::write(folder.path().join("audio.ulaw"), audio)?;
        }
        let local = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
        let waves = self.calls.div_ceil(self.at_once);
        let limit = Duration::from_secs(30) + 2 * self.talk * waves;
        let out = std::fs::File::create(folder.path().join("out"))?;
        let mut sipp = Command::new("sipp");
        sipp.arg("-sf")
            .arg(&self.scenario)
            .args(["-i", "127.0.0.1", "-mi", "127.0.0.1", "-nostdin", "-trace_err"])
            .args(["-error_file", "errors"])
            .args(["-p", &local.to_string()])
            .args(["-m", &self.calls.to_string()])
            .args(["-l", &self.at_once.to_string()])
            .args(["-r", &self.per_second.to_string()])
            .args(["-d", &self.talk.as_millis().to_string()])
            .args(["-t", if self.tcp { "t1" } else { "u1" }])
            .args(["-timeout", &limit.as_secs().to_string(), "-timeout_error"])
            .arg(to.to_string())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let mut child = sipp.spawn().context("sipp is missing: scripts/setup.sh test installs it")?;
        let ended = crate::eventually("sipp ends", limit + Duration::from_secs(10), || {
            child.try_wait().ok().flatten()
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let read = |name: &str| std::fs::read(folder.path().join(name)).unwrap_or_default();
        let mut output = String::from_utf8_lossy(&read("out")).into_owned();
        output.push_str(&String::from_utf8_lossy(&read("errors")));
        ended.with_context(|| output.clone())?;
        Report::parse(output)
    }
}

impl Report {
    fn parse(output: String) -> anyhow::Result<Self> {
        // `  Successful call        |        0                  |       10 `: the period's figure, then the total.
        let total = |label: &str| {
            let line = output.lines().rev().find(|line| line.trim_start().starts_with(label))?;
            line.rsplit('|').next()?.trim().parse().ok()
        };
        let peak = output
            .lines()
            .rev()
            .find_map(|line| line.split_once("Peak was ")?.1.split(' ').next()?.parse().ok())
            .unwrap_or(0);
        let (Some(successful), Some(failed)) = (total("Successful call"), total("Failed call")) else {
            anyhow::bail!("sipp gave no statistics:\n{output}");
        };
        Ok(Self { successful, failed, peak, output })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_read_from_the_last_screen() {
        let screen = "\
  0 calls (limit 10)                      Peak was 7 calls, after 1 s\n\
  Successful call        |        0                  |       10                 \n\
  Failed call            |        0                  |        2                 \n";
        let report = Report::parse(screen.to_owned()).unwrap();
        assert_eq!((report.successful, report.failed, report.peak), (10, 2, 7));
        assert!(Report::parse("sipp: no".to_owned()).is_err());
    }
}
