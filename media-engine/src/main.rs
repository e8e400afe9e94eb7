//! `tandem-engine`: one media engine node.

use std::io::IsTerminal;
use std::path::PathBuf;

use anyhow::Context;
use clap::{Arg, ArgAction, Command};
use media_engine::config::{Config, Layers, SETTINGS};
use media_engine::{Engine, ring};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const ABOUT: &str = "Carries the audio of telephone calls: one thread a core on io_uring (epoll where that is blocked), \
commanded over gRPC by a control plane (`tandem serve`).";

const LONG_HELP: &str = "Each setting is taken from its flag, else from its environment variable, else from tandem.toml \
(--config FILE, or ./tandem.toml), where it stands as engine_NAME = VALUE with _ for -.

SIGTERM or SIGINT: refuses new sessions, /readyz answers 503, waits drain-seconds for calls to end, ends the rest, exits.
A fault of its own (a thread that died): ends every call, exits with status 1, to be started anew.

Try:
  tandem-engine --explain                         which kernel features are used, and why others are not
  tandem-engine --rtp-addr 192.0.2.7 --cores 1-3
  curl http://127.0.0.1:9101/metrics";

fn command() -> Command {
    let mut command =
        Command::new("tandem-engine").version(env!("CARGO_PKG_VERSION")).about(ABOUT).after_help(LONG_HELP);
    for setting in SETTINGS {
        let default =
            if setting.default.is_empty() { String::new() } else { format!(", default {}", setting.default) };
        let help = format!("{} [{}{default}]", setting.help, setting.variable());
        command = command.arg(Arg::new(setting.name).long(setting.name).value_name("VALUE").help(help));
    }
    command
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help("Settings file [default: ./tandem.toml if it exists]"),
        )
        .arg(
            Arg::new("log")
                .long("log")
                .value_name("FILTER")
                .help("Log filter, as in info,media_engine=debug [TANDEM_LOG]"),
        )
        .arg(
            Arg::new("explain")
                .long("explain")
                .action(ArgAction::SetTrue)
                .help("Say which kernel features are used and why others are not, then exit"),
        )
}

fn main() -> anyhow::Result<()> {
    let given = command().get_matches();
    let text = |name: &str| given.get_one::<String>(name).cloned();
    let filter = text("log").or_else(|| std::env::var("TANDEM_LOG").ok()).unwrap_or_else(|| "info".into());
    start_logs(&filter);

    let flags = SETTINGS.iter().filter_map(|setting| Some((setting.name, text(setting.name)?)));
    let file = text("config").map(PathBuf::from);
    let layers = Layers::read(file.as_deref(), std::env::vars(), flags)?;
    let config = Config::from_layers(&layers)?;
    if given.get_flag("explain") {
        explain(&config);
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Watched before the start, so that a signal during it is not lost.
    let signal = runtime.block_on(async { watch_signals() }).context("signals cannot be watched")?;
    let engine = Engine::start(config)?;
    let name = runtime.block_on(async {
        tokio::select! {
            name = signal => Ok(name),
            why = engine.failed() => Err(why),
        }
    });
    let name = match name {
        Ok(name) => name,
        Err(why) => {
            // The calls of the other cores are told their end, so that their callers get a BYE and not silence.
            drop(engine);
            anyhow::bail!("{why}; ended so that it is started anew");
        }
    };
    tracing::info!(signal = name, sessions = engine.sessions(), "stopping");
    engine.shutdown();
    tracing::info!("stopped");
    Ok(())
}

fn watch_signals() -> std::io::Result<impl Future<Output = &'static str>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// A terminal gets text, a pipe gets JSON, a line an event, both on standard error.
fn start_logs(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    if std::io::stderr().is_terminal() {
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).init();
    } else {
        let json = tracing_subscriber::fmt::layer().json().flatten_event(true);
        registry.with(json.with_writer(std::io::stderr)).init();
    }
}

fn explain(config: &Config) {
    let decision = ring::decide(config.driver);
    match decision.driver {
        Some(driver) => println!("driver: {driver} ({})", decision.reason),
        None => println!("driver: none; io_uring was asked for, but {}", decision.reason),
    }
    println!("kernel: {}", ring::kernel_release());
    println!("limits: {}", ring::limits().join(", "));
    println!("cores:  {:?}, {} sessions each at most", config.cores, config.sessions_per_core());
    for feature in ring::explain(decision.driver) {
        println!("{} {}: {}", if feature.used { "  used  " } else { "  unused" }, feature.name, feature.note);
    }
}
