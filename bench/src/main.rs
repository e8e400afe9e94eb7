//! `tandem-bench`: the command line. Exit codes: 0 reported; 1 nothing to report; 2 wrong arguments; 3 the generator was
//! the bottleneck and nothing is reported; 130 interrupted.
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use tandem_bench::agent::{AgentKind, Says};
use tandem_bench::bridge::{self, BridgePlan, Joiner, Meter};
use tandem_bench::calls::{self, AgentPlan, CallsPlan};
use tandem_bench::idle::{self, IdlePlan};
use tandem_bench::marker::Law;
use tandem_bench::plan::{Cores, Interrupted, Plan};
use tandem_bench::processes::Processes;
use tandem_bench::protection::Protect;
use tandem_bench::provider::announce::{Announcer, BaseUrl, Place};
use tandem_bench::provider::run::{ProviderPlan, Source};
use tandem_bench::provider::{self, Transport};
use tandem_bench::report::Report;
use tandem_bench::scrape::MetricsUrl;
use tandem_bench::setup::{self, Media, SetupPlan};
use tandem_bench::{codec, compare, floor, host, table};

/// The demo assistant that echoes.
const DEMO_ECHO: &str = "sip:echo:demo-key@127.0.0.1:4573";

/// The demo assistant that answers without media.
const DEMO_NULL: &str = "sip:null:demo-key@127.0.0.1:4573";

/// Exit code when the generator was the bottleneck.
const LIMITED: u8 = 3;

/// Exit code after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 130;

/// Places load on Tandem and measures what comes of it.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// N real SIP calls with 20 ms RTP both ways.
    Calls(CallsArgs),
    /// N calls as Twilio brings them: a signed webhook, then Media Streams, 20 ms of µ-law both ways.
    Twilio(ProviderArgs),
    /// N calls as Vonage brings them: a signed webhook, then 20 ms frames of binary L16.
    Vonage(ProviderArgs),
    /// N calls as Exotel brings them: a webhook, then AgentStream, 100 ms of L16 a message.
    Exotel(ProviderArgs),
    /// N calls as Asterisk brings them: a UUID by HTTP, then AudioSocket, 20 ms of L16.
    #[command(name = "audiosocket")]
    AudioSocket(ProviderArgs),
    /// N bridges of two RTP legs, PCMU on one side and PCMA on the other, joined by the engine or by rtpengine.
    Bridge(BridgeArgs),
    /// The floor: a bare io_uring UDP echo under the same packets.
    Floor(FloorArgs),
    /// INVITE, 200, ACK, BYE, and what that costs.
    Setup(SetupArgs),
    /// Calls that are left alone, and the memory that one takes.
    Idle(IdleArgs),
    /// Nanoseconds for 20 ms of audio.
    Codec(CodecArgs),
    /// Two reports side by side.
    Compare {
        /// A report.
        a: PathBuf,
        /// Another one.
        b: PathBuf,
    },
    /// The floor's echo process (started by `floor`).
    #[command(name = floor::CHILD_COMMAND, hide = true)]
    FloorEcho {
        #[arg(long)]
        core: usize,
    },
}

#[derive(Args, Clone)]
struct Load {
    /// Calls at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    concurrent: u32,
    /// Measured seconds.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Seconds at full load before that.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    warm_up: f64,
    /// Codec of the calls.
    #[arg(long, value_enum, default_value_t = Law::Pcmu)]
    codec: Law,
    #[command(flatten)]
    common: Common,
}

#[derive(Args, Clone)]
struct Common {
    /// Core of the generator; the first one by default.
    #[arg(long)]
    core: Option<usize>,
    /// Core of the target, where the floor and the bare timer run; the last one by default.
    #[arg(long)]
    target_core: Option<usize>,
    /// Writes the report there as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Shows the figures even if the generator was the bottleneck (the exit code stays 3).
    #[arg(long)]
    report_anyway: bool,
    /// No progress.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Args)]
struct CallsArgs {
    /// Whom to call; the demo's echo, or with --agent the demo assistant of that agent, if not given.
    #[arg(long)]
    target: Option<String>,
    /// Is the agent of the calls as well, and says back what it hears: over the engine's link in place of the voice
    /// agent (which must not run), or over a WebSocket a call.
    #[arg(long, value_enum)]
    agent: Option<AgentKind>,
    /// Where that agent listens; where the demo looks for it, if not given.
    #[arg(long, requires = "agent")]
    agent_listen: Option<SocketAddr>,
    /// What that agent says back: all, for what calls cost; or the bursts only, each out of silence as an answer is, for
    /// the engine's delay to the agent and back.
    #[arg(long, value_enum, requires = "agent", default_value_t = Says::All)]
    agent_says: Says,
    /// New calls a second.
    #[arg(long, default_value_t = 50.0)]
    cps: f64,
    #[command(flatten)]
    load: Load,
    /// The engine's metrics, for its processor time and memory.
    #[arg(long)]
    engine_metrics: Option<MetricsUrl>,
    /// The control plane's metrics.
    #[arg(long)]
    control_metrics: Option<MetricsUrl>,
    /// Protects the calls with SRTP, with this suite. The target must take keys that come without TLS.
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "aes-cm")]
    srtp: Option<Protect>,
    /// Measures the floor in the same run, half before and half after, for the ratio.
    #[arg(long)]
    floor: bool,
}

#[derive(Args)]
#[command(after_help = "Examples:
  tandem up --demo                             # in another terminal; its demo credentials sign the webhooks
  tandem-bench twilio --concurrent 500 --duration 20 --engine-metrics http://127.0.0.1:9101/metrics --json twilio.json
  tandem-bench audiosocket --assistant tone --audiosocket 127.0.0.1:9093
  tandem-bench twilio --echo-peer ws://127.0.0.1:9001/ --target-pid 4711      # any WebSocket echo server, no control plane

Each call is announced at URL/v1/telephony/PROVIDER/call/ASSISTANT as the provider would, its media are dialled where the
answer says, and frames with marks are sent in real time. rtp.* counts frames of 20 ms, lost and repeated by the marks that
come back; setup_ms is from the webhook to the first sound; drops are sockets that the target closed before we did.
Exit code 3: the generator itself was the bottleneck, and nothing is reported.
bench/peers/websockets.sh compares the engine with two WebSocket echo servers by turns.")]
struct ProviderArgs {
    /// The control plane.
    #[arg(long, default_value = "http://127.0.0.1:8080", conflicts_with = "echo_peer")]
    url: BaseUrl,
    /// What the control plane takes for its own address (TANDEM_PUBLIC_URL), where that is another: Twilio's signature is over it.
    #[arg(long)]
    public_url: Option<String>,
    /// Whom to call.
    #[arg(long, default_value = "echo")]
    assistant: String,
    /// Where AudioSocket is dialled (of `audiosocket`).
    #[arg(long, default_value = "127.0.0.1:9093")]
    audiosocket: SocketAddr,
    /// Announces nothing and dials this instead, `ws://host:port/path` (`host:port` of `audiosocket`); `{id}` becomes a
    /// random UUID. May be given several times: calls take them in turn.
    #[arg(long)]
    echo_peer: Vec<String>,
    /// Calls at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    concurrent: u32,
    /// New calls a second.
    #[arg(long, default_value_t = 50.0)]
    cps: f64,
    /// Measured seconds.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Seconds at full load before that.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    warm_up: f64,
    /// The engine's metrics, for its processor time and memory.
    #[arg(long, conflicts_with = "target_pid")]
    engine_metrics: Option<MetricsUrl>,
    /// The same of any process (and its children) from the kernel.
    #[arg(long)]
    target_pid: Option<u32>,
    /// The control plane's metrics.
    #[arg(long)]
    control_metrics: Option<MetricsUrl>,
    #[command(flatten)]
    common: Common,
}

impl ProviderArgs {
    fn plan(self, transport: Transport) -> anyhow::Result<ProviderPlan> {
        let load = Load {
            concurrent: self.concurrent,
            duration: self.duration,
            warm_up: self.warm_up,
            codec: Law::Pcmu,
            common: self.common.clone(),
        };
        let peer = |text: &String| match transport {
            Transport::AudioSocket => {
                text.parse().map(Place::AudioSocket).with_context(|| format!("--echo-peer {text}"))
            }
            _ => Ok(Place::WebSocket(text.clone(), Vec::new())),
        };
        let source = if self.echo_peer.is_empty() {
            Source::Announced(Announcer {
                transport,
                public_url: self.public_url.unwrap_or_else(|| self.url.to_string()),
                url: self.url,
                assistant: self.assistant,
                audiosocket: self.audiosocket,
            })
        } else {
            Source::Peers(self.echo_peer.iter().map(peer).collect::<Result<_, _>>()?)
        };
        let processes = self.target_pid.map(processes_of).transpose()?;
        Ok(ProviderPlan {
            plan: load.plan()?,
            transport,
            source,
            cps: self.cps,
            meter: processes.map(Meter::Processes).or(self.engine_metrics.map(Meter::Metrics)),
            control_metrics: self.control_metrics,
        })
    }
}

#[derive(Args)]
#[command(after_help = "Examples:
  tandem-bench bridge --engine http://127.0.0.1:7070 --engine-metrics http://127.0.0.1:9101/metrics --concurrent 250
  rtpengine --table=-1 --interface=127.0.0.1 --listen-ng=127.0.0.1:2223 --foreground &
  tandem-bench bridge --rtpengine 127.0.0.1:2223 --target-pid $! --concurrent 250
bench/peers/bridge.sh does both by turns and prints the ratio.")]
struct BridgeArgs {
    /// The engine's gRPC.
    #[arg(long, default_value = "http://127.0.0.1:7070", conflicts_with = "rtpengine")]
    engine: String,
    /// rtpengine's ng protocol (UDP): it joins the legs in the engine's place.
    #[arg(long)]
    rtpengine: Option<SocketAddr>,
    /// Our own address, on which the target reaches us.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Bridges at once; each has two legs, and is one call in the report.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    concurrent: u32,
    /// New bridges a second.
    #[arg(long, default_value_t = 50.0)]
    cps: f64,
    /// Measured seconds.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// Seconds at full load before that.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    warm_up: f64,
    /// The engine's metrics, for its processor time and memory.
    #[arg(long, conflicts_with_all = ["target_pid", "rtpengine"])]
    engine_metrics: Option<MetricsUrl>,
    /// The same of any process (and its children) from the kernel.
    #[arg(long)]
    target_pid: Option<u32>,
    /// Measures the floor with as many legs in the same run, half before and half after, for the ratio.
    #[arg(long)]
    floor: bool,
    #[command(flatten)]
    common: Common,
}

impl BridgeArgs {
    fn plan(&self) -> anyhow::Result<BridgePlan> {
        let load = Load {
            concurrent: self.concurrent,
            duration: self.duration,
            warm_up: self.warm_up,
            codec: Law::Pcmu,
            common: self.common.clone(),
        };
        let processes = self.target_pid.map(processes_of).transpose()?;
        Ok(BridgePlan {
            plan: load.plan()?,
            joiner: self.rtpengine.map_or_else(|| Joiner::Engine(self.engine.clone()), Joiner::Rtpengine),
            address: self.address,
            cps: self.cps,
            meter: processes.map(Meter::Processes).or(self.engine_metrics.clone().map(Meter::Metrics)),
            floor: self.floor,
        })
    }
}

#[derive(Args)]
struct FloorArgs {
    #[command(flatten)]
    load: Load,
    /// Calls the target as well and gives the ratio of the engine to the floor (the same as `calls --floor`).
    #[arg(long)]
    engine_metrics: Option<MetricsUrl>,
    /// Whom to call for that.
    #[arg(long, default_value = DEMO_ECHO, requires = "engine_metrics")]
    target: String,
    /// New calls a second for that.
    #[arg(long, default_value_t = 50.0, requires = "engine_metrics")]
    cps: f64,
}

#[derive(Args)]
struct SetupArgs {
    /// Whom to call; the demo's echo, or its null with --no-media, if not given.
    #[arg(long)]
    target: Option<String>,
    /// INVITEs a second.
    #[arg(long, default_value_t = 100.0)]
    cps: f64,
    /// Seconds.
    #[arg(long, default_value_t = 10.0, value_parser = seconds, conflicts_with = "calls")]
    duration: f64,
    /// INVITEs in all, instead of a duration.
    #[arg(long)]
    calls: Option<u64>,
    /// Leaves the engine out: the target must answer with an inactive media line.
    #[arg(long)]
    no_media: bool,
    /// A process of the target, for processor time and memory as the kernel counts them, its children included.
    #[arg(long)]
    target_pid: Option<u32>,
    /// Codec that is offered.
    #[arg(long, value_enum, default_value_t = Law::Pcmu)]
    codec: Law,
    /// The engine's metrics.
    #[arg(long)]
    engine_metrics: Option<MetricsUrl>,
    /// The control plane's metrics.
    #[arg(long)]
    control_metrics: Option<MetricsUrl>,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct IdleArgs {
    /// Whom to call; the demo's echo, or its null with --no-media, if not given.
    #[arg(long)]
    target: Option<String>,
    /// Calls in the end.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(4..=20_000))]
    concurrent: u32,
    /// INVITEs a second.
    #[arg(long, default_value_t = 100.0)]
    cps: f64,
    /// Seconds without any message before each of the four readings; a transaction lives 32 s.
    #[arg(long, default_value_t = 35.0, value_parser = seconds)]
    settle: f64,
    /// Leaves the engine out: the target must answer with an inactive media line.
    #[arg(long)]
    no_media: bool,
    /// The process whose memory is read, its children included.
    #[arg(long)]
    target_pid: u32,
    #[command(flatten)]
    common: Common,
}

#[derive(Args)]
struct CodecArgs {
    /// Writes the figures there as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0 to 86400".into()),
    }
}

impl Load {
    fn plan(&self) -> anyhow::Result<Plan> {
        anyhow::ensure!(self.duration >= 1.0, "--duration must be at least one second");
        Ok(Plan {
            calls: self.concurrent as usize,
            law: self.codec,
            srtp: None,
            duration: Duration::from_secs_f64(self.duration),
            warm_up: Duration::from_secs_f64(self.warm_up),
            cores: self.common.cores()?,
            quiet: self.common.quiet,
        })
    }
}

impl Common {
    /// Chooses the cores and goes to ours with the whole process, so that no thread of ours disturbs the target.
    fn cores(&self) -> anyhow::Result<Cores> {
        let cores = Cores::choose(self.core, self.target_core);
        host::pin_thread(cores.generator)
            .with_context(|| format!("cannot run on core {}", cores.generator))?;
        if cores.generator == cores.target {
            eprintln!("warning: generator and target share core {}: figures say little", cores.generator);
        }
        Ok(cores)
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::FloorEcho { core } => floor::run_child(core).map(|()| ExitCode::SUCCESS),
        command => {
            host::catch_interrupts();
            host::raise_open_files();
            run(command)
        }
    };
    result.unwrap_or_else(|error| {
        if error.is::<Interrupted>() {
            eprintln!("interrupted: every call was ended, nothing is reported");
            return ExitCode::from(INTERRUPTED);
        }
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Calls(args) => {
            let agent = args.agent.map(|kind| AgentPlan {
                kind,
                listen: args.agent_listen.unwrap_or_else(|| kind.demo_address()),
                says: args.agent_says,
            });
            let demo = args.agent.map_or(DEMO_ECHO, AgentKind::demo_target);
            let report = calls::run(&CallsPlan {
                agent,
                plan: Plan { srtp: args.srtp, ..args.load.plan()? },
                target: args.target.unwrap_or_else(|| demo.to_owned()),
                cps: args.cps,
                engine_metrics: args.engine_metrics,
                control_metrics: args.control_metrics,
                floor: args.floor,
            })?;
            tell(report, &args.load.common)
        }
        Command::Twilio(args) => provider(args, Transport::Twilio),
        Command::Vonage(args) => provider(args, Transport::Vonage),
        Command::Exotel(args) => provider(args, Transport::Exotel),
        Command::AudioSocket(args) => provider(args, Transport::AudioSocket),
        Command::Bridge(args) => tell(bridge::run(&args.plan()?)?, &args.common),
        Command::Floor(args) => {
            let plan = args.load.plan()?;
            let report = match args.engine_metrics {
                None => floor::run(&plan)?,
                engine_metrics => calls::run(&CallsPlan {
                    plan,
                    target: args.target,
                    cps: args.cps,
                    engine_metrics,
                    control_metrics: None,
                    floor: true,
                    agent: None,
                })?,
            };
            tell(report, &args.load.common)
        }
        Command::Setup(args) => {
            let (target, media) = whom(args.target, args.no_media);
            let calls = args.calls.unwrap_or((args.cps * args.duration) as u64);
            let report = setup::run(&SetupPlan {
                target,
                cps: args.cps,
                calls,
                law: args.codec,
                media,
                processes: args.target_pid.map(processes_of).transpose()?,
                cores: args.common.cores()?,
                engine_metrics: args.engine_metrics,
                control_metrics: args.control_metrics,
                quiet: args.common.quiet,
            })?;
            tell(report, &args.common)
        }
        Command::Idle(args) => {
            let (target, media) = whom(args.target, args.no_media);
            let report = idle::run(&IdlePlan {
                target,
                calls: u64::from(args.concurrent),
                cps: args.cps,
                settle: Duration::from_secs_f64(args.settle),
                media,
                processes: processes_of(args.target_pid)?,
                cores: args.common.cores()?,
                quiet: args.common.quiet,
            })?;
            tell(report, &args.common)
        }
        Command::Codec(args) => {
            let costs = codec::run();
            print!("{}", codec::table(&costs));
            if let Some(path) = args.json {
                write_json(&path, &serde_json::json!({ "codec": costs }))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Compare { a, b } => {
            print!("{}", compare::run(&a, &b)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::FloorEcho { .. } => Ok(ExitCode::SUCCESS),
    }
}

fn provider(args: ProviderArgs, transport: Transport) -> anyhow::Result<ExitCode> {
    let common = args.common.clone();
    tell(provider::run::run(&args.plan(transport)?)?, &common)
}

/// Whom to call, and what its answer must hold.
fn whom(target: Option<String>, no_media: bool) -> (String, Media) {
    let (demo, media) = if no_media { (DEMO_NULL, Media::None) } else { (DEMO_ECHO, Media::Session) };
    (target.unwrap_or_else(|| demo.to_owned()), media)
}

fn processes_of(pid: u32) -> anyhow::Result<Processes> {
    Processes::of(pid).with_context(|| format!("--target-pid {pid}"))
}

/// Shows the report, or says why there is none.
fn tell(mut report: Report, common: &Common) -> anyhow::Result<ExitCode> {
    let limited = report.generator.limited;
    if limited && !common.report_anyway {
        report.withhold();
    }
    if let Some(path) = &common.json {
        write_json(path, &report)?;
    }
    if limited {
        eprintln!("{}", table::refusal(&report));
    }
    if !limited || common.report_anyway {
        print!("{report}");
    }
    Ok(if limited { ExitCode::from(LIMITED) } else { ExitCode::SUCCESS })
}

fn write_json(path: &std::path::Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}
