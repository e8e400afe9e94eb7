//! `tandem up`: a small supervisor of three children on one machine.
//!
//! ```text
//!   tandem up ──starts, watches, restarts──┬─▶ tandem-engine   carries
//!        │                                 ├─▶ tandem talker   thinks (owns the local-voice process)
//!        │                                 └─▶ tandem serve    decides
//!        └─ --demo: places one call, prints a report
//! ```
//!
//! The children run in process groups of their own and write to log files, so they outlive a supervisor that is
//! killed; [`folder`] remembers who they are, and the next `tandem up` adopts those that are just what it would start
//! and ends the others. On SIGINT or SIGTERM the control plane ends first, while the engine still carries the calls
//! to which it sends BYE; then the talker, then the engine.
//!
//! Not done here: no health checks after the start (a child that hangs is not restarted), and no second machine.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::settings::Layers;

pub mod child;
pub mod demo;
pub mod error;
pub mod folder;
pub mod keeper;
pub mod plan;
pub mod process;
pub mod ready;
pub mod report;
pub mod spec;

pub use error::UpError;

use child::{Child, Found};
use folder::Folder;
use keeper::Keeper;
use plan::Plan;

/// Long enough for a BYE, its answer and the last rows in the database: more than the control plane takes at most.
const CONTROL_GRACE: Duration = Duration::from_secs(20);
const _: () = assert!(CONTROL_GRACE.as_secs() > crate::app::SHUTDOWN_MAX.as_secs());
/// The others have nothing left to do by then.
const OTHERS_GRACE: Duration = Duration::from_secs(5);

/// What was asked on the command line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// With `--demo`: exit after the demo call, 0 only if it worked.
    pub once: bool,
    /// With `--demo`: seed the demo data and place no call.
    pub no_call: bool,
    /// Leave the voice agent out: no talker, no demo call.
    pub no_voice: bool,
}

/// Starts everything, stays until a signal, ends everything in order.
pub async fn run(layers: &Layers, options: Options) -> Result<ExitCode, UpError> {
    let mut signals = Signals::new().map_err(UpError::Signals)?;
    let path = Path::new(layers.text("state_dir").unwrap_or("./.tandem"));
    let unusable = |source| UpError::Folder { path: path.to_owned(), source };
    let folder = Folder::open(path).map_err(unusable)?;
    let Some(_in_charge) = folder.lock().map_err(unusable)? else {
        return Err(UpError::InCharge { path: folder.path().to_owned() });
    };
    let plan = Plan::new(layers, &folder, !options.no_voice)?;

    let mut keepers = Vec::new();
    let outcome = tokio::select! {
        outcome = start_and_stay(&plan, &folder, options, &mut keepers) => outcome,
        () = signals.next() => Ok(ExitCode::SUCCESS),
    };
    let code = outcome.unwrap_or_else(|error| {
        // Said before the endings, so that the reason stands above what follows from it.
        say(&error.to_string());
        ExitCode::FAILURE
    });
    shut_down(keepers, &mut signals).await;
    Ok(code)
}

async fn start_and_stay(
    plan: &Plan,
    folder: &Folder,
    options: Options,
    keepers: &mut Vec<Keeper>,
) -> Result<ExitCode, UpError> {
    let specs: Vec<Arc<spec::Spec>> = plan.specs().into_iter().map(Arc::new).collect();
    // What an earlier supervisor left and cannot be kept is ended before anything new starts.
    for spec in &specs {
        let (child, found) = Child::adopt_or_start(spec, folder, CONTROL_GRACE).await?;
        say(&match found {
            Found::Nothing => format!("{} started (pid {})", spec.name, child.pid()),
            Found::Same => format!("{} adopted (pid {})", spec.name, child.pid()),
            Found::Other { pid } => format!(
                "{} started (pid {}); pid {pid}, of another build or other settings, was ended",
                spec.name,
                child.pid()
            ),
        });
        keepers.push(Keeper::new(Arc::clone(spec), folder.clone(), child));
    }
    for (spec, keeper) in specs.iter().zip(keepers.iter()) {
        let took = ready::wait(spec, keeper, folder).await?;
        say(&format!("{} ready after {:.1} s", spec.name, took.as_secs_f64()));
    }
    if plan.config.demo && plan.talker.is_some() && !options.no_call {
        let worked = demo_call(plan).await;
        if options.once {
            return Ok(if worked { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
    }
    tell_where(plan, folder);
    std::future::pending().await
}

/// Places the demo call, prints its report, and says whether it worked.
async fn demo_call(plan: &Plan) -> bool {
    let (report, expected) = match demo::call(plan.sip_udp(), plan.http(), plan.scripted).await {
        Ok(outcome) => outcome,
        Err(error) => {
            say(&format!("the demo call did not work: {error}"));
            return false;
        }
    };
    print(&format!("\n{report}\n\n"));
    match report.verdict(&expected) {
        Ok(()) => {
            say("the demo call worked");
            true
        }
        Err(failure) => {
            say(&format!("the demo call did not work: {failure}"));
            false
        }
    }
}

/// What a person can do now.
fn tell_where(plan: &Plan, folder: &Folder) {
    let (sip, http, logs) = (plan.sip_udp(), plan.http(), folder.path().join("log"));
    if plan.config.demo {
        let key = demo::DEMO_KEY;
        let agent = if plan.talker.is_some() { "the voice agent" } else { "the voice agent (left out now)" };
        print(&format!(
            "\nDial with any SIP phone, over UDP or TCP, without registration:\n\
             \x20 sip:demo:{key}@{sip}   {agent}\n\
             \x20 sip:echo:{key}@{sip}   what you say comes back\n\
             \x20 sip:tone:{key}@{sip}   a tone of 440 Hz\n\
             \x20 sip:ws:{key}@{sip}     your own agent at ws://127.0.0.1:8765/ (Twilio Media Streams)\n\
             \x20 sip:pcm:{key}@{sip}    your own agent at ws://127.0.0.1:8766/ (raw L16, 16 kHz)\n"
        ));
    }
    print(&format!(
        "API (REST and gRPC) at http://{http}/, where the console will be; metrics at http://{http}/metrics\n\
         Logs in {}\n\n",
        logs.display()
    ));
    say("everything runs; Ctrl-C ends it");
}

/// Ends the children in reverse order. A second signal ends the patience.
async fn shut_down(mut keepers: Vec<Keeper>, signals: &mut Signals) {
    if keepers.is_empty() {
        return;
    }
    say("ending: calls get a BYE; once more Ctrl-C kills");
    let impatience: Vec<_> = keepers.iter().map(Keeper::impatience).collect();
    let ending = async {
        while let Some(mut keeper) = keepers.pop() {
            let grace = if keeper.name == "control" { CONTROL_GRACE } else { OTHERS_GRACE };
            keeper.end(grace).await;
            say(&format!("{} ended", keeper.name));
        }
    };
    tokio::pin!(ending);
    tokio::select! {
        () = &mut ending => {}
        () = signals.next() => {
            impatience.iter().for_each(keeper::Impatience::now);
            ending.await;
        }
    }
}

/// The signals that end a supervisor.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// One line for the person at the terminal.
fn say(line: &str) {
    print(&format!("tandem: {line}\n"));
}

/// A terminal that has gone away is no reason to end.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}
