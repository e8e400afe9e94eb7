//! Both planes as a user runs them: the real programs under the real supervisor, on free ports, in a folder of their
//! own.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};
use tandem_api::v1::call_service_client::CallServiceClient;
use tandem_api::v1::talk_service_client::TalkServiceClient;
use tandem_api::v1::{
    AssistantDefinition, Call, CreateBulkPhoneCallRequest, CreatePhoneCallRequest, GetCallRequest,
    HangUpCallRequest, HoldCallRequest, JoinCallRequest, JoinRole, ListCallsRequest, TransferCallRequest,
};

use crate::certificates::Identity;
use crate::eventually;

/// Debug builds on a busy machine of two cores.
const UP_WITHIN: Duration = Duration::from_secs(60);
/// Longer than the supervisor's own graces together.
const DOWN_WITHIN: Duration = Duration::from_secs(30);

/// Live tests of one process take turns (nextest gives each a process of its own and takes turns by itself).
static TURN: Mutex<()> = Mutex::new(());

/// A running Tandem.
pub struct Stack {
    folder: tempfile::TempDir,
    ports: Ports,
    flags: Vec<String>,
    variables: Vec<(String, String)>,
    up: Option<Child>,
    _turn: Option<MutexGuard<'static, ()>>,
}

/// Where it listens.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// REST and gRPC.
    pub http: u16,
    /// SIP, UDP and TCP.
    pub sip: u16,
    /// SIP over TLS, over WebSocket and over secure WebSocket, once the stack is [`Stack::secured`].
    pub sip_tls: u16,
    /// See [`Self::sip_tls`].
    pub sip_ws: u16,
    /// See [`Self::sip_tls`].
    pub sip_wss: u16,
    /// The engine's gRPC.
    pub engine_grpc: u16,
    /// The engine's metrics.
    pub engine_metrics: u16,
    /// Provider media WebSockets, when the engine has them.
    pub engine_ws: u16,
    /// AudioSocket, when the engine has it.
    pub engine_audiosocket: u16,
    /// The voice agent.
    pub talker: u16,
    /// First RTP port.
    pub rtp: u16,
}

/// RTP ports a stack may use: plenty for 100 calls, and few enough to find a free block for.
const RTP_PORTS: u16 = 800;

impl Ports {
    fn free() -> anyhow::Result<Self> {
        // Held until all are chosen, so that no number comes twice.
        let mut held = Vec::new();
        let mut next = || -> anyhow::Result<u16> {
            for _ in 0..100 {
                let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
                let port = tcp.local_addr()?.port();
                if let Ok(udp) = UdpSocket::bind((Ipv4Addr::LOCALHOST, port)) {
                    held.push((tcp, udp));
                    return Ok(port);
                }
            }
            anyhow::bail!("no port that is free for both TCP and UDP")
        };
        Ok(Self {
            http: next()?,
            sip: next()?,
            sip_tls: next()?,
            sip_ws: next()?,
            sip_wss: next()?,
            engine_grpc: next()?,
            engine_metrics: next()?,
            engine_ws: next()?,
            engine_audiosocket: next()?,
            talker: next()?,
            rtp: free_rtp_block()?,
        })
    }
}

/// A port of loopback that is free for both UDP and TCP.
pub fn free_port() -> anyhow::Result<u16> {
    for _ in 0..100 {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    anyhow::bail!("no port that is free for both TCP and UDP")
}

/// A block below the range from which the kernel hands out ports and beside the default RTP range.
fn free_rtp_block() -> anyhow::Result<u16> {
    let start = 10_000 + (std::process::id() % 12) as u16 * RTP_PORTS;
    let blocks = (0..12).map(|n| 10_000 + (start - 10_000 + n * RTP_PORTS) % (12 * RTP_PORTS));
    let free = |base: &u16| (0..RTP_PORTS).all(|n| UdpSocket::bind((Ipv4Addr::LOCALHOST, base + n)).is_ok());
    blocks.into_iter().find(free).context("no free block of RTP ports")
}

impl Stack {
    /// Control plane and engine with the demo assistants, without the voice agent.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&["--demo", "--no-call", "--no-voice"], &[])
    }

    /// `tandem up` with these flags and additional settings; returns when it says that everything runs.
    pub fn start_with(flags: &[&str], settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut stack = Self::prepare(flags, settings)?;
        stack.start_supervisor()?;
        Ok(stack)
    }

    /// Control plane and engine with the demo assistants, and a tandem.toml that holds these tables: trunks, phones, …
    pub fn start_configured(tables: &str, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut stack = Self::prepare_configured(tables, settings)?;
        stack.start_supervisor()?;
        Ok(stack)
    }

    /// The same, but not started yet.
    pub fn prepare_configured(tables: &str, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut stack = Self::prepare(&["--demo", "--no-call", "--no-voice"], settings)?;
        let path = stack.folder.path().join("tandem.toml");
        fs::write(&path, tables)?;
        stack.flags.extend(["--config".to_owned(), path.to_string_lossy().into_owned()]);
        Ok(stack)
    }

    /// Other tables for a stack that was prepared with some, now that its ports are known. Before the start.
    pub fn configure(&self, tables: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.folder.path().join("tandem.toml"), tables)?)
    }

    /// A file of these words in its folder.
    pub fn file(&self, name: &str, words: &str) -> anyhow::Result<PathBuf> {
        let path = self.folder.path().join(name);
        fs::write(&path, words)?;
        Ok(path)
    }

    /// Adds listeners for TLS and WebSocket that show this certificate. Before the start.
    pub fn secured(mut self, identity: &Identity) -> Self {
        let at = |scheme: &str, port: u16| format!("{scheme}:127.0.0.1:{port}");
        let Ports { sip, sip_tls, sip_ws, sip_wss, .. } = self.ports;
        let listeners = [("udp", sip), ("tcp", sip), ("tls", sip_tls), ("ws", sip_ws), ("wss", sip_wss)]
            .map(|(s, p)| at(s, p));
        for (name, value) in [
            ("TANDEM_SIP_LISTEN", listeners.join(",")),
            ("TANDEM_TLS_CERT", identity.certificate.to_string_lossy().into_owned()),
            ("TANDEM_TLS_KEY", identity.key.to_string_lossy().into_owned()),
        ] {
            self.variables.push((name.to_owned(), value));
        }
        self
    }

    /// The same, but not started yet.
    pub fn prepare(flags: &[&str], settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let turn = TURN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let ports = Ports::free()?;
        let folder = tempfile::Builder::new().prefix("tandem-live-").tempdir()?;
        let loopback = |port: u16| format!("127.0.0.1:{port}");
        let mut variables = vec![
            ("TANDEM_STATE_DIR", folder.path().join("state").to_string_lossy().into_owned()),
            ("TANDEM_HTTP_LISTEN", loopback(ports.http)),
            ("TANDEM_SIP_LISTEN", format!("udp:{0},tcp:{0}", loopback(ports.sip))),
            ("TANDEM_ENGINE_GRPC_LISTEN", loopback(ports.engine_grpc)),
            ("TANDEM_ENGINE_METRICS_LISTEN", loopback(ports.engine_metrics)),
            ("TANDEM_ENGINE_WS_LISTEN", loopback(ports.engine_ws)),
            ("TANDEM_ENGINE_AUDIOSOCKET_LISTEN", loopback(ports.engine_audiosocket)),
            ("TANDEM_TALKER_LISTEN", loopback(ports.talker)),
            ("TANDEM_ENGINE_RTP_PORTS", format!("{}-{}", ports.rtp, ports.rtp + RTP_PORTS - 1)),
        ];
        variables.extend(settings.iter().map(|(name, value)| (*name, (*value).to_owned())));
        Ok(Self {
            folder,
            ports,
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            variables: variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            up: None,
            _turn: Some(turn),
        })
    }

    /// Another supervisor with the ports and the folder of a running stack, but for these settings. Not started yet.
    pub fn sharing(other: &Self, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        let mut variables = other.variables.clone();
        variables.extend(settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Ok(Self {
            folder: tempfile::Builder::new().prefix("tandem-live-").tempdir()?,
            ports: other.ports,
            flags: other.flags.clone(),
            variables,
            up: None,
            _turn: None,
        })
    }

    /// Starts `tandem up`, and waits until it says that everything runs.
    pub fn start_supervisor(&mut self) -> anyhow::Result<()> {
        let before = self.output().len();
        self.spawn()?;
        eventually("tandem up says that everything runs", UP_WITHIN, || {
            let output = self.output();
            let ended = self.up.as_mut().is_none_or(|up| !matches!(up.try_wait(), Ok(None)));
            (ended || output[before.min(output.len())..].contains("everything runs")).then_some(ended)
        })
        .and_then(|ended| if ended { Err(anyhow::anyhow!("it ended")) } else { Ok(()) })
        .with_context(|| self.everything_said())
    }

    /// Runs `tandem up` to its end, for `--once`.
    pub fn run_to_end(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        self.spawn()?;
        let mut up = self.up.take().context("just started")?;
        let ended = eventually("tandem up ends", within, || up.try_wait().ok().flatten());
        if ended.is_err() {
            self.up = Some(up);
        }
        ended.with_context(|| self.everything_said())
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let program = program("tandem")?;
        program_beside(&program, "tandem-engine")?;
        let out = File::options().create(true).append(true).open(self.output_path())?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TANDEM_") {
                command.env_remove(name);
            }
        }
        // The repository's root is where `make run` starts it, and where the voice agent's .venv is.
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let up = command
            .arg("up")
            .args(&self.flags)
            .envs(self.variables.iter().cloned())
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()?;
        self.up = Some(up);
        Ok(())
    }

    fn output_path(&self) -> PathBuf {
        self.folder.path().join("up.out")
    }

    /// What the supervisor has written.
    pub fn output(&self) -> String {
        fs::read_to_string(self.output_path()).unwrap_or_default()
    }

    /// A child's log: `control`, `engine`, `talker`.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join(format!("state/log/{name}.log"))).unwrap_or_default()
    }

    /// Everything that helps to see why a test failed.
    pub fn everything_said(&self) -> String {
        let mut text = format!("tandem up:\n{}", self.output());
        for name in ["engine", "talker", "control"] {
            let log = self.log(name);
            let lines: Vec<&str> = log.lines().collect();
            text.push_str(&format!("\n{name}:\n{}", lines[lines.len().saturating_sub(15)..].join("\n")));
        }
        text
    }

    /// Where it listens.
    pub fn ports(&self) -> Ports {
        self.ports
    }

    /// Where SIP is heard.
    pub fn sip(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.sip))
    }

    /// Process number of a child.
    pub fn pid(&self, name: &str) -> anyhow::Result<u32> {
        let record = fs::read(self.folder.path().join(format!("state/run/{name}.json")))
            .with_context(|| format!("no record of {name}"))?;
        let record: serde_json::Value = serde_json::from_slice(&record)?;
        record["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("record without a pid")
    }

    /// kill -9 of a child.
    pub fn kill(&self, name: &str) -> anyhow::Result<u32> {
        let pid = self.pid(name)?;
        signal(pid, Signal::KILL)?;
        Ok(pid)
    }

    /// kill -9 of the supervisor; its children go on.
    pub fn kill_supervisor(&mut self) -> anyhow::Result<()> {
        let mut up = self.up.take().context("no supervisor runs")?;
        up.kill()?;
        up.wait()?;
        Ok(())
    }

    /// Waits until a child runs under another pid than this one.
    pub fn wait_for_restart(&self, name: &str, dead: u32, within: Duration) -> anyhow::Result<u32> {
        let found = eventually(&format!("{name} is started again"), within, || {
            self.pid(name).ok().filter(|pid| *pid != dead && alive(*pid))
        });
        found.with_context(|| self.everything_said())
    }

    /// Waits until the control plane would take a call.
    pub fn wait_until_ready(&self, within: Duration) -> anyhow::Result<()> {
        eventually("the control plane is ready", within, || self.http_status("/readyz").filter(|s| *s == 200))
            .map(drop)
            .with_context(|| self.everything_said())
    }

    /// The status that the control plane answers this path with.
    pub fn http_status(&self, path: &str) -> Option<u16> {
        let (status, _) = self.http_get(self.ports.http, path)?;
        Some(status)
    }

    /// One of the engine's counters.
    pub fn engine_metrics(&self) -> Option<String> {
        self.http_get(self.ports.engine_metrics, "/metrics").map(|(_, body)| body)
    }

    fn http_get(&self, port: u16, path: &str) -> Option<(u16, String)> {
        use std::io::{Read, Write};
        let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let host = format!("127.0.0.1:{port}");
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer))
    }

    /// Live and past calls, newest first, as the API tells them.
    pub async fn calls(&self) -> anyhow::Result<Vec<Call>> {
        let mut client = CallServiceClient::connect(self.api()).await?;
        let request = with_key(ListCallsRequest { page_size: 500, ..Default::default() })?;
        Ok(client.list_calls(request).await?.into_inner().calls)
    }

    /// Waits until no call is alive any more, and returns them all.
    pub async fn calls_when_over(&self) -> anyhow::Result<Vec<Call>> {
        let over = ["ended", "failed"];
        for _ in 0..400 {
            let calls = self.calls().await?;
            if calls.iter().all(|call| over.contains(&call.state.as_str())) {
                return Ok(calls);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let calls = self.calls().await?;
        let alive: Vec<_> = calls.iter().filter(|call| !over.contains(&call.state.as_str())).collect();
        anyhow::bail!("{} calls are still alive after 20 s, the first: {:?}", alive.len(), alive.first())
    }

    /// Places a call to this number over the only trunk, and returns its id.
    pub async fn places(&self, assistant: &str, to_number: &str) -> anyhow::Result<String> {
        let mut client = TalkServiceClient::connect(self.api()).await?;
        let request = CreatePhoneCallRequest {
            assistant: Some(AssistantDefinition { assistant_id: assistant.to_owned(), ..Default::default() }),
            to_number: to_number.to_owned(),
            ..Default::default()
        };
        let answer = client.create_phone_call(with_key(request)?).await?;
        Ok(answer.into_inner().call.context("an answer without a call")?.call_id)
    }

    /// Places a call to this number by a credential of a telephony provider, and returns its id.
    pub async fn places_by(
        &self,
        credential: &str,
        assistant: &str,
        to_number: &str,
    ) -> anyhow::Result<String> {
        let mut client = TalkServiceClient::connect(self.api()).await?;
        let request = CreatePhoneCallRequest {
            assistant: Some(AssistantDefinition { assistant_id: assistant.to_owned(), ..Default::default() }),
            to_number: to_number.to_owned(),
            credential: credential.to_owned(),
            ..Default::default()
        };
        let answer = client.create_phone_call(with_key(request)?).await?;
        Ok(answer.into_inner().call.context("an answer without a call")?.call_id)
    }

    /// Places many at once.
    pub async fn places_many(&self, assistant: &str, to_numbers: &[String]) -> anyhow::Result<String> {
        let mut client = TalkServiceClient::connect(self.api()).await?;
        let call = |number: &String| CreatePhoneCallRequest {
            assistant: Some(AssistantDefinition { assistant_id: assistant.to_owned(), ..Default::default() }),
            to_number: number.clone(),
            ..Default::default()
        };
        let request = CreateBulkPhoneCallRequest { phone_calls: to_numbers.iter().map(call).collect() };
        Ok(client.create_bulk_phone_call(with_key(request)?).await?.into_inner().bulk_id)
    }

    /// Waits until this call is over.
    pub async fn call_when_over(&self, call_id: &str) -> anyhow::Result<Call> {
        let mut client = CallServiceClient::connect(self.api()).await?;
        // Longer than an INVITE that nobody answers: 64*T1.
        for _ in 0..1_200 {
            let call = client
                .get_call(with_key(GetCallRequest { call_id: call_id.to_owned() })?)
                .await?
                .into_inner();
            if ["ended", "failed"].contains(&call.state.as_str()) {
                return Ok(call);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        anyhow::bail!("call {call_id} is not over after 60 s\n{}", self.everything_said())
    }

    /// Puts the other side on hold, or takes it off.
    pub async fn holds(&self, call_id: &str, resume: bool) -> anyhow::Result<()> {
        let mut client = CallServiceClient::connect(self.api()).await?;
        client.hold_call(with_key(HoldCallRequest { call_id: call_id.to_owned(), resume })?).await?;
        Ok(())
    }

    /// Hands the call on.
    pub async fn transfers(&self, call_id: &str, to: &str) -> Result<(), tonic::Status> {
        let mut client = CallServiceClient::connect(self.api())
            .await
            .map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let request =
            TransferCallRequest { call_id: call_id.to_owned(), to: to.to_owned(), ..Default::default() };
        let request = with_key(request).map_err(|error| tonic::Status::internal(error.to_string()))?;
        client.transfer_call(request).await.map(drop)
    }

    /// Calls somebody and adds them to a call; with `to` empty, gives who was added another role.
    pub async fn joins(&self, call_id: &str, to: &str, role: JoinRole) -> anyhow::Result<()> {
        let mut client = CallServiceClient::connect(self.api()).await?;
        let request = JoinCallRequest {
            call_id: call_id.to_owned(),
            role: role.into(),
            to: to.to_owned(),
            ..Default::default()
        };
        client.join_call(with_key(request)?).await?;
        Ok(())
    }

    /// Hangs up through the API.
    pub async fn hangs_up(&self, call_id: &str) -> anyhow::Result<()> {
        let mut client = CallServiceClient::connect(self.api()).await?;
        client.hang_up_call(with_key(HangUpCallRequest { call_id: call_id.to_owned() })?).await?;
        Ok(())
    }

    fn api(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.http)
    }

    /// Asks the supervisor to end, and waits for it.
    pub fn end(&mut self) -> anyhow::Result<ExitStatus> {
        let mut up = self.up.take().context("no supervisor runs")?;
        signal(up.id(), Signal::TERM)?;
        let ended = eventually("tandem up ends", DOWN_WITHIN, || up.try_wait().ok().flatten());
        if ended.is_err() {
            self.up = Some(up);
        }
        ended.with_context(|| self.everything_said())
    }

    /// Those of the children that are alive.
    pub fn children(&self) -> BTreeSet<u32> {
        let pids = ["engine", "talker", "control"].into_iter().filter_map(|name| self.pid(name).ok());
        pids.filter(|pid| alive(*pid)).collect()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let children = self.children();
        if self.up.is_some() && self.end().is_err() {
            let _ = self.kill_supervisor();
        }
        // A test that killed the supervisor, or that failed, must not leave its children to the next one.
        for pid in children.into_iter().filter(|pid| alive(*pid)) {
            let _ = signal(pid, Signal::KILL);
        }
    }
}

/// A request with the demo key.
fn with_key<T>(request: T) -> anyhow::Result<tonic::Request<T>> {
    let mut request = tonic::Request::new(request);
    request.metadata_mut().insert("x-api-key", "demo-key".parse()?);
    Ok(request)
}

/// Does this process run? A zombie does not.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}

/// Resident memory of a process.
pub fn resident_bytes(pid: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.context("no VmRSS")? * 1_024)
}

/// Sends a signal to a process of this test.
pub fn signal(pid: u32, signal: Signal) -> anyhow::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).context("no pid")?;
    Ok(kill_process(pid, signal)?)
}

/// A server of Debian's: in /usr/sbin, which is not on everybody's PATH.
pub fn server_program(name: &str) -> PathBuf {
    let path = PathBuf::from("/usr/sbin").join(name);
    if path.is_file() { path } else { PathBuf::from(name) }
}

/// A program of this workspace, built with the profile of this test.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    // target/debug/deps/live-… → target/debug/NAME
    let test = std::env::current_exe()?;
    let folder =
        test.parent().and_then(|deps| deps.parent()).context("the test lies in target/PROFILE/deps")?;
    program_beside(&folder.join("any"), name)
}

fn program_beside(other: &std::path::Path, name: &str) -> anyhow::Result<PathBuf> {
    let program = other.with_file_name(name);
    anyhow::ensure!(
        program.is_file(),
        "{} is not built; `make live` does it, or `cargo build --workspace --bins --tests`",
        program.display()
    );
    Ok(program)
}
