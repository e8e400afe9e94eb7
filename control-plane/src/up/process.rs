//! A process, known in a way that survives the reuse of its number.
//!
//! The kernel hands out a dead process's pid again, so a pid in a file proves nothing. Here a process is its pid, the
//! tick at which it started and the boot it started in (proc(5)); and it is waited for and signalled through a pidfd
//! (pidfd_open(2)), which can never mean another process than the one it was opened for.

use std::io;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// How often a process is looked at while we wait for its end. (tokio can wait for a descriptor of ours only through
/// an unsafe call; ten looks a second cost nothing that can be measured.)
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What tells a process from every other one that has had, or will have, its pid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its number.
    pub pid: u32,
    /// Clock ticks from boot to its start (field 22 of /proc/PID/stat).
    pub started_ticks: u64,
    /// Which boot those ticks count from.
    pub boot_id: String,
}

/// A living process, or one that has ended since it was opened.
#[derive(Debug)]
pub struct Process {
    identity: Identity,
    pidfd: OwnedFd,
}

impl Process {
    /// Opens the process that has this pid now. `NotFound` when there is none. A child of ours that has ended and has
    /// not been reaped is still a process: its end can be waited for.
    pub fn open(pid: u32) -> io::Result<Self> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let number =
            number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "pid 0 is no process"))?;
        // The order matters: the descriptor first, then the look at who it is. Were the pid reused in between, the
        // start time would be the new process's, and so would the descriptor fail to match a record of the old one.
        let pidfd = pidfd_open(number, PidfdFlags::empty()).map_err(|error| match error {
            rustix::io::Errno::SRCH => io::Error::from(io::ErrorKind::NotFound),
            other => other.into(),
        })?;
        let started_ticks = started_ticks(pid)?;
        let identity = Identity { pid, started_ticks, boot_id: boot_id()? };
        Ok(Self { identity, pidfd })
    }

    /// Finds the very process of a record; `None` when it has ended, even if its pid is in use again.
    pub fn find(identity: &Identity) -> Option<Self> {
        let same = Self::open(identity.pid).ok().filter(|process| process.identity == *identity);
        same.filter(|process| !process.has_ended())
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Sends a signal; nothing happens when the process has ended.
    pub fn signal(&self, signal: Signal) {
        // The only error left is ESRCH, which is what the caller wanted anyway.
        let _ = pidfd_send_signal(&self.pidfd, signal);
    }

    /// Kills it and whatever it started in its process group. The group is that of its pid, as `up` makes it.
    pub fn kill_group(&self) {
        // While the leader has not been reaped the group's number cannot belong to anybody else.
        if let Some(group) = i32::try_from(self.identity.pid).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        self.signal(Signal::KILL);
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        while !self.has_ended() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn has_ended(&self) -> bool {
        // A pidfd becomes readable when its process ends, and stays so.
        let mut wanted = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(poll(&mut wanted, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1..))
    }
}

/// When a process was started.
fn started_ticks(pid: u32) -> io::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_stat(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Field 22 of /proc/PID/stat. The second field is the program's name in parentheses and may hold anything,
/// spaces and parentheses too, so the fields are counted from its last parenthesis.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn start_time_is_read_past_a_name_with_spaces_and_parentheses() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 1000 100 1";
        assert_eq!(parse_stat(stat), Some(4711));
        assert_eq!(parse_stat("17 (a) S 1"), None);
    }

    #[tokio::test]
    async fn child_that_has_ended_and_is_not_reaped_can_be_opened_but_not_found() {
        let mut child = Command::new("true").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        process.ended().await;
        let again = Process::open(child.id()).unwrap();
        again.ended().await;
        assert!(Process::find(process.identity()).is_none());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn process_is_found_by_its_identity_and_no_more_after_its_end() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(Process::find(process.identity()).is_some());
        process.signal(Signal::KILL);
        process.ended().await;
        child.wait().unwrap();
        assert!(Process::find(process.identity()).is_none());
    }

    #[tokio::test]
    async fn same_pid_with_another_start_time_is_another_process() {
        let own = Process::open(std::process::id()).unwrap();
        let mut recycled = own.identity().clone();
        recycled.started_ticks += 1;
        assert!(Process::find(&recycled).is_none());
        let mut rebooted = own.identity().clone();
        rebooted.boot_id = "another boot".into();
        assert!(Process::find(&rebooted).is_none());
    }
}
