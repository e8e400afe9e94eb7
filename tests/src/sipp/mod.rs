//! sipp, calling and called: a SIP peer that shares no line with ours. What it does is written in tests/sipp.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

pub mod scenario;

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
    keys: Vec<(String, String)>,
    flags: Vec<String>,
    lasts: Duration,
    host: IpAddr,
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
    /// Everything it printed, its errors, and the last messages.
    pub output: String,
}

/// sipp at work. It is ended when this is dropped.
pub struct Running {
    child: Child,
    folder: tempfile::TempDir,
    /// Where it is reached.
    pub address: SocketAddr,
    limit: Duration,
    /// Takes what the SDP invites, so that no packet bounces, unless the test listens itself.
    _rtp: Option<UdpSocket>,
}

/// How long a scenario may wait for one message: longer than any timer that a scenario waits for (64*T1 and a bit).
const MESSAGE_WITHIN: Duration = Duration::from_secs(45);

impl Sipp {
    /// Calls of a scenario in tests/sipp, one after the other, hung up after 100 ms.
    pub fn scenario(name: &str) -> Self {
        let scenario = Path::new(env!("CARGO_MANIFEST_DIR")).join("sipp").join(name);
        Self {
            scenario,
            calls: 1,
            at_once: 1,
            per_second: 50,
            talk: Duration::from_millis(100),
            tcp: false,
            audio: None,
            keys: Vec::new(),
            flags: Vec::new(),
            lasts: Duration::from_secs(90),
            host: IpAddr::from([127, 0, 0, 1]),
        }
    }

    /// At this address instead of 127.0.0.1.
    pub fn at(mut self, host: IpAddr) -> Self {
        self.host = host;
        self
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

    /// What the scenario calls `[name]`: `to` (user part of the Request-URI, the echo assistant if not given),
    /// `rtp_port`, or one of its own.
    pub fn key(mut self, name: &str, value: impl ToString) -> Self {
        self.keys.push((name.to_owned(), value.to_string()));
        self
    }

    /// So many seconds may all of it take, beyond what is talked; 90 if not told.
    pub fn lasts(mut self, seconds: u64) -> Self {
        self.lasts = Duration::from_secs(seconds + 60);
        self
    }

    /// Another flag of sipp.
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Calls, and waits until all calls are over.
    pub fn run(&self, to: SocketAddr) -> anyhow::Result<Report> {
        self.start(Some(to), None)?.ends()
    }

    /// Calls, and wants every call to go as the scenario says.
    pub fn succeeds(&self, to: SocketAddr) -> anyhow::Result<()> {
        self.run(to)?.all_good(self.calls)
    }

    /// Calls in the background.
    pub fn calls_meanwhile(&self, to: SocketAddr) -> anyhow::Result<Running> {
        self.start(Some(to), None)
    }

    /// Waits for calls at a free port of loopback.
    pub fn listens(&self) -> anyhow::Result<Running> {
        self.start(None, None)
    }

    /// Waits for calls at this port.
    pub fn listens_at(&self, port: u16) -> anyhow::Result<Running> {
        self.start(None, Some(port))
    }

    fn start(&self, to: Option<SocketAddr>, port: Option<u16>) -> anyhow::Result<Running> {
        let folder = tempfile::Builder::new().prefix("tandem-sipp-").tempdir()?;
        if let Some(audio) = &self.audio {
            std::fs::write(folder.path().join("audio.ulaw"), audio)?;
        }
        let text = std::fs::read_to_string(&self.scenario)
            .with_context(|| format!("no scenario {}", self.scenario.display()))?;
        let xml = scenario::expand(&text)
            .map_err(|error| anyhow::anyhow!("{}: {error}", self.scenario.display()))?;
        std::fs::write(folder.path().join("scenario.xml"), xml)?;
        let local = match port {
            Some(port) => port,
            None => crate::stack::free_port()?,
        };
        let rtp = UdpSocket::bind((self.host, 0))?;
        let rtp_port = rtp.local_addr()?.port().to_string();
        let waves = self.calls.div_ceil(self.at_once);
        let limit = self.lasts + 2 * self.talk * waves;
        let out = std::fs::File::create(folder.path().join("out"))?;
        let mut sipp = Command::new("sipp");
        sipp.args(["-sf", "scenario.xml"])
            .args(["-i", &self.host.to_string(), "-mi", &self.host.to_string(), "-nostdin"])
            .args(["-trace_err", "-error_file", "errors"])
            .args(["-trace_logs", "-log_file", "log"])
            .args(["-p", &local.to_string()])
            .args(["-m", &self.calls.to_string()])
            .args(["-l", &self.at_once.to_string()])
            .args(["-r", &self.per_second.to_string()])
            .args(["-d", &self.talk.as_millis().to_string()])
            .args(["-t", if self.tcp { "t1" } else { "u1" }])
            .args(["-recv_timeout", &MESSAGE_WITHIN.as_millis().to_string()])
            .args(["-timeout", &limit.as_secs().to_string(), "-timeout_error"])
            .args(&self.flags);
        if self.calls <= MESSAGES_KEPT_CALLS {
            sipp.args(["-trace_msg", "-message_file", "messages"]);
        }
        let defaults = [("to", "echo:demo-key"), ("rtp_port", &rtp_port)];
        let unset = defaults.iter().filter(|(name, _)| !self.keys.iter().any(|(key, _)| key == name));
        for (name, value) in unset {
            sipp.args(["-key", name, value]);
        }
        for (name, value) in &self.keys {
            sipp.args(["-key", name, value]);
        }
        sipp.args(to.map(|to| to.to_string()))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out);
        let child = sipp.spawn().context("sipp is missing: scripts/setup.sh test installs it")?;
        let address = SocketAddr::from((self.host, local));
        let mut running = Running { child, folder, address, limit, _rtp: Some(rtp) };
        if to.is_none() {
            running.wait_until_it_listens(self.tcp)?;
        }
        Ok(running)
    }
}

/// Runs of so few calls keep every message, to show it when something goes wrong.
const MESSAGES_KEPT_CALLS: u32 = 20;
/// Octets of them that are shown.
const MESSAGES_SHOWN: usize = 12_000;

impl Running {
    fn wait_until_it_listens(&mut self, tcp: bool) -> anyhow::Result<()> {
        let address = self.address;
        let listens = crate::eventually("sipp listens", Duration::from_secs(20), || {
            let ended = !matches!(self.child.try_wait(), Ok(None));
            let taken =
                if tcp { TcpListener::bind(address).is_err() } else { UdpSocket::bind(address).is_err() };
            (ended || taken).then_some(!ended)
        })?;
        anyhow::ensure!(listens, "sipp ended:\n{}", self.said());
        Ok(())
    }

    /// Waits until all its calls are over.
    pub fn ends(mut self) -> anyhow::Result<Report> {
        let limit = self.limit + Duration::from_secs(10);
        let ended = crate::eventually("sipp ends", limit, || self.child.try_wait().ok().flatten());
        let output = self.said();
        ended.with_context(|| output.clone())?;
        Report::parse(output)
    }

    /// Waits until all its calls are over, and wants them to have gone as the scenario says.
    pub fn succeeds(self, calls: u32) -> anyhow::Result<()> {
        self.ends()?.all_good(calls)
    }

    /// What follows this word in the scenario's `<log message="word …"/>`, as soon as it is there.
    pub fn logs(&self, word: &str) -> anyhow::Result<String> {
        crate::eventually(&format!("sipp logs {word}"), MESSAGE_WITHIN, || {
            let log = self.read("log");
            // The line is whole once its end is there.
            let (lines, _) = log.rsplit_once('\n')?;
            lines.lines().find_map(|line| Some(line.split_once(word)?.1.trim().to_owned()))
        })
        .with_context(|| self.said())
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.folder.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn said(&self) -> String {
        let messages = self.read("messages");
        let tail = messages.char_indices().rev().nth(MESSAGES_SHOWN).map_or(0, |(at, _)| at);
        [self.read("out"), self.read("errors"), messages[tail..].to_owned()].concat()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Report {
    /// Fails with everything that was said, unless so many calls went well and none failed.
    pub fn all_good(&self, calls: u32) -> anyhow::Result<()> {
        let Self { successful, failed, output, .. } = self;
        anyhow::ensure!(
            (*successful, *failed) == (calls, 0),
            "{successful} of {calls} calls went well, {failed} failed\n{output}"
        );
        Ok(())
    }

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
