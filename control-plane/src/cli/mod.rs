//! The verbs of the `tandem` program.
//!
//! ```text
//!   up             all planes on this machine, supervised
//!   serve          the control plane, until a signal       talker   the voice agent alone
//!   check          is this configuration right?
//!   call, conversation, trunk      gRPC clients of a running service
//! ```

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::app::StartError;
use crate::config::ConfigError;
use crate::settings::{Layers, SettingsError};
use crate::up;

mod check;
mod client;
mod print;
mod service;
mod trunk;

const EXAMPLES: &str = "\
Examples:
  tandem up --demo                        everything on this machine, with demo assistants to call
  tandem serve --config tandem.toml       the control plane as a service
  tandem check --config tandem.toml       is this configuration right, and if not, what to change
  tandem call list                        live calls, then past ones
  tandem call explain 01938a2e-…          why this call was refused or ended
  tandem conversation show 01938a2e-…     what was said in it
  tandem trunk check carrier              does a trunk do what calls need?

Every setting is a key in tandem.toml (http_listen), a variable (TANDEM_HTTP_LISTEN) or a flag
(--http-listen). A flag beats the environment, the environment beats the file.";

/// Telephony for AI voice agents.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, about, after_help = EXAMPLES)]
pub struct Cli {
    /// Settings file; without it ./tandem.toml is read when it exists
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Control plane, one media engine and the voice agent on this machine, until SIGINT or SIGTERM
    #[command(after_help = "\
Examples:
  tandem up --demo                        start, place a demo call, stay up
  tandem up --demo --once                 the same, and exit after the call: 0 only if it worked
  tandem up --demo --no-call --no-voice   demo assistants without the voice agent
  TANDEM_STATE_DIR=/tmp/t TANDEM_HTTP_LISTEN=127.0.0.1:9080 tandem up

Children that an earlier `tandem up` left behind are adopted, or ended when they differ.")]
    Up(UpArgs),
    /// Runs the control plane until SIGINT or SIGTERM
    #[command(after_help = "\
Examples:
  tandem serve
  tandem serve --sip-listen udp:192.0.2.1:5060,tcp:192.0.2.1:5060 --engines http://10.0.0.2:7070
  TANDEM_DATABASE_URL=sqlite:/var/lib/tandem/tandem.db tandem serve")]
    Serve(ServeArgs),
    /// Runs the voice agent alone until SIGINT or SIGTERM
    #[command(after_help = "\
Examples:
  tandem talker
  TANDEM_TALKER_LISTEN=127.0.0.1:9000 TANDEM_CONTROL_URL=http://10.0.0.1:8080 tandem talker
  TANDEM_LLM_URL=http://127.0.0.1:11434/v1 TANDEM_LLM_MODEL=llama3 tandem talker

Its settings are talker_…, control_url, llm_… and local_voice_… in tandem.toml or the environment.")]
    Talker,
    /// Says what is wrong with a configuration and what to do about it; starts nothing
    #[command(after_help = "\
Examples:
  tandem check --config tandem.toml
  TANDEM_SIP_LISTEN=tls:0.0.0.0:5061 tandem check

Exits with 0 when `tandem serve` would start with this configuration.")]
    Check(ServeArgs),
    /// Live and past calls of a running service
    Call(client::CallArgs),
    /// What was said in a call
    Conversation(client::ConversationArgs),
    /// Trunks: how they stand, and a check of what is agreed with them
    Trunk(trunk::TrunkArgs),
}

/// Flags of `tandem up`.
#[derive(Debug, Clone, Default, Args)]
pub struct UpArgs {
    /// Settings of the control plane; those of the other children stand in tandem.toml or the environment.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// With --demo: exit after the demo call, with 0 only if it worked
    #[arg(long, requires = "demo", conflicts_with_all = ["no_call", "no_voice"])]
    pub once: bool,
    /// With --demo: place no call
    #[arg(long)]
    pub no_call: bool,
    /// Leave the voice agent out; implies --no-call
    #[arg(long)]
    pub no_voice: bool,
}

/// Settings as flags, for the verbs that start the control plane.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeArgs {
    /// REST, gRPC and console on one port [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub http_listen: Option<String>,
    /// SIP listeners [default: udp:127.0.0.1:4573,tcp:127.0.0.1:4573]
    #[arg(long, value_name = "LIST")]
    pub sip_listen: Option<String>,
    /// Host that SIP peers are told when it is not the listener's
    #[arg(long, value_name = "HOST")]
    pub sip_public: Option<String>,
    /// sqlite:FILE [default: tandem.db in the state folder]
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// gRPC addresses of media engines [default: http://127.0.0.1:7070]
    #[arg(long, value_name = "LIST")]
    pub engines: Option<String>,
    /// Embedded database, recordings, keys [default: ./.tandem]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<String>,
    /// Where the built-in voice agent listens [default: link://127.0.0.1:8767]
    #[arg(long, value_name = "URL")]
    pub talker_url: Option<String>,
    /// Live calls; more are refused with 503 [default: 5000]
    #[arg(long, value_name = "N")]
    pub calls_max: Option<String>,
    /// A call that lasts longer is ended [default: 14400]
    #[arg(long, value_name = "S")]
    pub call_seconds_max: Option<String>,
    /// An agent that is not there after so long: the caller gets 480 [default: 10]
    #[arg(long, value_name = "S")]
    pub ring_seconds_max: Option<String>,
    /// Seed the demo key and assistants; only when every listener is on loopback
    #[arg(long)]
    pub demo: bool,
    /// Log filter, e.g. info,control_plane=debug [default: info]
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
}

impl ServeArgs {
    /// Lays these flags over the environment and the file.
    pub fn lay_over(&self, layers: &mut Layers) {
        layers.flag("http_listen", self.http_listen.as_deref());
        layers.flag("sip_listen", self.sip_listen.as_deref());
        layers.flag("sip_public", self.sip_public.as_deref());
        layers.flag("database_url", self.database_url.as_deref());
        layers.flag("engines", self.engines.as_deref());
        layers.flag("state_dir", self.state_dir.as_deref());
        layers.flag("talker_url", self.talker_url.as_deref());
        layers.flag("calls_max", self.calls_max.as_deref());
        layers.flag("call_seconds_max", self.call_seconds_max.as_deref());
        layers.flag("ring_seconds_max", self.ring_seconds_max.as_deref());
        layers.flag("demo", self.demo.then_some("true"));
        layers.flag("log", self.log.as_deref());
    }
}

/// Why a verb could not do what was asked. The text is for the person at the terminal.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The settings are wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The file or the environment could not be read.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The supervisor could not do its work.
    #[error(transparent)]
    Up(#[from] up::UpError),
    /// The service could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] client::ClientError),
    /// The control plane could not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The voice agent could not start.
    #[error("talker: {0}")]
    Talker(String),
    /// The runtime could not be built.
    #[error("cannot start the runtime: {0}")]
    Runtime(std::io::Error),
}

/// Does what the command line asks.
pub fn run(cli: Cli) -> Result<ExitCode, CliError> {
    let mut layers = Layers::read(cli.config.as_deref())?;
    match cli.command {
        Command::Up(args) => {
            args.serve.lay_over(&mut layers);
            let options = up::Options { once: args.once, no_call: args.no_call, no_voice: args.no_voice };
            Ok(block_on(up::run(&layers, options))??)
        }
        Command::Serve(args) => {
            args.lay_over(&mut layers);
            service::serve(&layers)
        }
        Command::Talker => service::talker(&layers),
        Command::Check(args) => {
            args.lay_over(&mut layers);
            Ok(check::run(&layers))
        }
        Command::Call(args) => {
            block_on(args.run(&layers))??;
            Ok(ExitCode::SUCCESS)
        }
        Command::Trunk(args) => {
            let is_good = block_on(args.run(&layers))??;
            Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Conversation(args) => {
            block_on(args.run(&layers))??;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// One thread is enough for a client verb.
fn block_on<F: Future>(future: F) -> Result<F::Output, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(CliError::Runtime)?.block_on(future))
}

/// Where client verbs find the service when nobody says: the HTTP listener of these settings, seen from here.
fn service_url(layers: &Layers) -> String {
    let listen = layers.text("http_listen").unwrap_or_default();
    match listen.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_unspecified() => format!("http://127.0.0.1:{}", address.port()),
        _ => format!("http://{listen}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn command_line_is_well_formed_and_teaches() {
        Cli::command().debug_assert();
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("Examples:") && help.contains("call explain"), "{help}");
    }

    #[test]
    fn every_flag_is_a_known_setting_and_beats_the_rest() {
        let cli = Cli::parse_from(["tandem", "serve", "--http-listen", "127.0.0.1:1", "--demo"]);
        let Command::Serve(args) = cli.command else { panic!("serve") };
        let mut layers = Layers::default();
        args.lay_over(&mut layers);
        assert_eq!(layers.text("http_listen"), Some("127.0.0.1:1"));
        assert_eq!(layers.text("demo"), Some("true"));
    }

    #[test]
    fn client_verbs_find_a_service_that_listens_everywhere() {
        let mut layers = Layers::default();
        layers.flag("http_listen", Some("0.0.0.0:9000"));
        assert_eq!(service_url(&layers), "http://127.0.0.1:9000");
    }
}
