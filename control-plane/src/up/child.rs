//! One running child: adopted from an earlier supervisor, or started by this one.

use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::UpError;
use super::folder::{Folder, Record};
use super::process::Process;
use super::spec::Spec;

/// An io_uring process's ports stay bound for up to a second after its death; a taken port is asked for this long.
const LISTENER_RETRY: Duration = Duration::from_secs(3);
const LISTENER_RETRY_STEP: Duration = Duration::from_millis(100);

/// A child that runs, or ran until a moment ago.
#[derive(Debug)]
pub struct Child {
    process: Process,
    /// Ours to reap; `None` for an adopted one, whose parent is now init.
    handle: Option<std::process::Child>,
}

/// How a start found things.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing ran: started.
    Nothing,
    /// The same binary with the same settings ran: kept.
    Same,
    /// Another build or other settings ran: ended, and started anew.
    Other {
        /// Who was ended.
        pid: u32,
    },
}

impl Child {
    /// Adopts the child that an earlier supervisor left, if it is just what would be started now; otherwise ends it
    /// and starts anew.
    pub async fn adopt_or_start(
        spec: &Spec,
        folder: &Folder,
        grace: Duration,
    ) -> Result<(Self, Found), UpError> {
        let fingerprint = fingerprint(spec)?;
        let mut found = Found::Nothing;
        if let Some(record) = folder.record(spec.name)
            && let Some(process) = Process::find(&record.identity)
        {
            let left = Self { process, handle: None };
            if record.fingerprint == fingerprint {
                return Ok((left, Found::Same));
            }
            found = Found::Other { pid: left.pid() };
            left.end(grace, std::future::pending()).await;
        }
        folder.forget(spec.name);
        wait_for_listeners(spec).await?;
        Ok((Self::start(spec, folder)?, found))
    }

    /// Starts it in a process group of its own, so that neither Ctrl-C in our terminal nor our death reaches it, with
    /// its output in its log.
    pub fn start(spec: &Spec, folder: &Folder) -> Result<Self, UpError> {
        let failed = |source| UpError::Start { name: spec.name, program: spec.program.clone(), source };
        let log = folder.log(spec.name).map_err(failed)?;
        let mut command = Command::new(&spec.program);
        // What it is told stands in the spec, all of it: a variable of our own environment must not slip past the
        // fingerprint.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TANDEM_") {
                command.env_remove(name);
            }
        }
        command
            .args(&spec.args)
            .envs(&spec.settings)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0);
        let handle = command.spawn().map_err(failed)?;
        // Until it is reaped the pid is its own, even if it has died already.
        let process = Process::open(handle.id()).map_err(failed)?;
        let record = Record { identity: process.identity().clone(), fingerprint: fingerprint(spec)? };
        folder.remember(spec.name, &record).map_err(failed)?;
        Ok(Self { process, handle: Some(handle) })
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.process.identity().pid
    }

    /// Waits for its end and tells how it went, in words.
    pub async fn ended(&mut self) -> String {
        self.process.ended().await;
        let Some(handle) = &mut self.handle else {
            return "adopted, so how it ended is not known".to_owned();
        };
        // Whatever it started in its group goes with it; not yet reaped, so the number is still its own.
        self.process.kill_group();
        handle.wait().map_or_else(|error| error.to_string(), describe)
    }

    /// Asks it to end, and ends it when it has not done so in time, or when patience is over earlier. True: it ended
    /// by itself.
    pub async fn end(mut self, grace: Duration, patience_over: impl Future<Output = ()>) -> bool {
        self.process.signal(Signal::TERM);
        let by_itself = tokio::select! {
            () = self.process.ended() => true,
            () = tokio::time::sleep(grace) => false,
            () = patience_over => false,
        };
        if !by_itself {
            self.process.kill_group();
        }
        let _ = self.ended().await;
        by_itself
    }
}

fn fingerprint(spec: &Spec) -> Result<String, UpError> {
    spec.fingerprint().map_err(|source| UpError::Program {
        name: spec.name,
        program: spec.program.clone(),
        source,
    })
}

/// Waits for the listeners' ports to be free; says which setting to change when they stay taken.
async fn wait_for_listeners(spec: &Spec) -> Result<(), UpError> {
    let give_up = tokio::time::Instant::now() + LISTENER_RETRY;
    loop {
        let Err((listener, source)) = spec.check_listeners() else { return Ok(()) };
        let taken = source.kind() == io::ErrorKind::AddrInUse;
        if !taken || tokio::time::Instant::now() >= give_up {
            return Err(UpError::Listener { name: spec.name, listener, source });
        }
        tokio::time::sleep(LISTENER_RETRY_STEP).await;
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => match Signal::from_named_raw(signal) {
            Some(named) => format!("signal {signal}, {}", signal_name(named)),
            None => format!("signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

/// As kill(1) lists it, e.g. SIGKILL.
fn signal_name(signal: Signal) -> String {
    format!("{signal:?}").trim_matches('"').replace("Signal::", "SIG")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(3 << 8)), "exit code 3");
        assert_eq!(describe(ExitStatus::from_raw(9)), "signal 9, SIGKILL");
    }
}
