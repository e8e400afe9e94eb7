//! Which driver this host can run, and why: asked once at start, told in the log, by `Describe` and by `--explain`.

use std::fmt;
use std::io;
use std::str::FromStr;

use io_uring::{IoUring, Probe, opcode};

use super::buffers::Buffers;

/// A driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverKind {
    /// io_uring.
    IoUring,
    /// epoll.
    Epoll,
}

impl fmt::Display for DriverKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
        })
    }
}

/// What the operator asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// io_uring if the host can, epoll if not.
    #[default]
    Auto,
    /// This one or none.
    Only(DriverKind),
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(kind) => kind.fmt(f),
        }
    }
}

/// A driver name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("driver {0:?} is none of auto, io_uring, epoll")]
pub struct UnknownDriver(String);

impl FromStr for Choice {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::Only(DriverKind::IoUring)),
            "epoll" => Ok(Self::Only(DriverKind::Epoll)),
            _ => Err(UnknownDriver(text.into())),
        }
    }
}

/// What was decided and why.
#[derive(Debug, Clone)]
pub struct Decision {
    /// The driver to run; `None` when io_uring was demanded and cannot be had.
    pub driver: Option<DriverKind>,
    /// The reason, with the fix where there is one.
    pub reason: String,
}

/// A kernel feature, for `--explain`.
#[derive(Debug, Clone)]
pub struct Feature {
    /// Its name.
    pub name: &'static str,
    /// Whether the engine uses it here.
    pub used: bool,
    /// What for, or why not.
    pub note: String,
}

/// Why io_uring cannot be used: what was seen and what to do. Asked on a thread of its own: a ring that goes away
/// interrupts a later system call of the thread that made it (EINTR without a signal), which is not the caller's doing.
fn obstacle() -> Option<String> {
    let asked = std::thread::Builder::new().name("probe".into()).spawn(look_for_obstacle);
    match asked.map(std::thread::JoinHandle::join) {
        Ok(Ok(obstacle)) => obstacle,
        Ok(Err(_)) | Err(_) => Some("the host could not be asked: no thread could be made".into()),
    }
}

fn look_for_obstacle() -> Option<String> {
    let ring: io::Result<IoUring> =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().setup_submit_all().build(8);
    let ring = match ring {
        Ok(ring) => ring,
        Err(error) => return Some(explain_refusal(&error, sysctl().as_deref())),
    };
    let mut probe = Probe::new();
    if let Err(error) = ring.submitter().register_probe(&mut probe) {
        return Some(format!(
            "the kernel does not list its operations ({error}); Linux 6.1 or later is needed"
        ));
    }
    let wanted = [
        ("RECVMSG", opcode::RecvMsg::CODE),
        ("RECV", opcode::Recv::CODE),
        ("SEND", opcode::Send::CODE),
        ("CONNECT", opcode::Connect::CODE),
        ("POLL_ADD", opcode::PollAdd::CODE),
        ("ASYNC_CANCEL", opcode::AsyncCancel2::CODE),
    ];
    if let Some((name, _)) = wanted.iter().find(|(_, code)| !probe.is_supported(*code)) {
        return Some(format!("the kernel lacks the operation {name}; Linux 6.1 or later is needed"));
    }
    let Ok(buffers) = Buffers::for_kernel(8) else {
        return Some("no memory for a buffer ring".into());
    };
    let (entries, count) = buffers.entries()?;
    // SAFETY: the entries are page aligned and stay mapped until the group is unregistered two lines below.
    let registered = unsafe { ring.submitter().register_buf_ring_with_flags(entries, count, 0, 0) };
    match registered {
        Ok(()) => {
            let _ = ring.submitter().unregister_buf_ring(0);
            None
        }
        Err(error) => {
            Some(format!("the kernel refuses a provided-buffer ring ({error}); Linux 6.1 or later is needed"))
        }
    }
}

fn sysctl() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok().map(|text| text.trim().to_owned())
}

/// Turns the error of io_uring_setup(2) into a cause and a fix.
fn explain_refusal(error: &io::Error, sysctl: Option<&str>) -> String {
    match (error.raw_os_error(), sysctl) {
        (Some(libc::EPERM), Some("2")) => {
            "sysctl kernel.io_uring_disabled is 2; set it to 0 (or to 1 and give the engine CAP_SYS_ADMIN)".into()
        }
        (Some(libc::EPERM), Some("1")) => {
            "sysctl kernel.io_uring_disabled is 1; set it to 0, or put the engine's group into kernel.io_uring_group".into()
        }
        (Some(libc::EPERM), _) => {
            "io_uring_setup is not permitted (EPERM): a seccomp profile blocks it; run with deploy/seccomp.json".into()
        }
        (Some(libc::ENOSYS), _) => {
            "io_uring_setup does not exist here (ENOSYS): an old kernel, a sandbox or a seccomp profile; Linux 6.1 or later is needed".into()
        }
        (Some(libc::EINVAL), _) => {
            "the kernel does not know SINGLE_ISSUER and DEFER_TASKRUN (EINVAL); Linux 6.1 or later is needed".into()
        }
        (Some(libc::ENOMEM), _) => {
            "no locked memory for a ring (ENOMEM); raise LimitMEMLOCK (ulimit -l)".into()
        }
        (Some(libc::EMFILE | libc::ENFILE), _) => "no file descriptor left; raise LimitNOFILE (ulimit -n)".into(),
        _ => format!("io_uring_setup failed: {error}"),
    }
}

/// Chooses the driver.
pub fn decide(choice: Choice) -> Decision {
    let (driver, reason) = match choice {
        Choice::Only(DriverKind::Epoll) => {
            (Some(DriverKind::Epoll), "asked for by TANDEM_ENGINE_DRIVER".into())
        }
        Choice::Only(DriverKind::IoUring) => match obstacle() {
            None => (Some(DriverKind::IoUring), "asked for by TANDEM_ENGINE_DRIVER".into()),
            Some(why) => (None, why),
        },
        Choice::Auto => match obstacle() {
            None => (Some(DriverKind::IoUring), "the kernel has everything it needs".into()),
            Some(why) => (Some(DriverKind::Epoll), why),
        },
    };
    Decision { driver, reason }
}

/// Which kernel this is, as it calls itself.
pub fn kernel_release() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease");
    release.map_or_else(|error| format!("unknown ({error})"), |text| text.trim().to_owned())
}

/// What this process may have of what calls need: descriptors, locked memory. Soft and hard limits.
pub fn limits() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let wanted = [("Max open files", "open files"), ("Max locked memory", "locked memory")];
    let told = wanted.iter().map(|(row, name)| {
        let row = text.lines().find_map(|line| line.strip_prefix(row)).unwrap_or_default();
        let mut columns = row.split_whitespace();
        match (columns.next(), columns.next()) {
            (Some(soft), Some(hard)) => format!("{name} {soft} of {hard}"),
            _ => format!("{name} unknown"),
        }
    });
    told.collect()
}

/// The kernel features the engine could use, and whether it does under this driver.
pub fn explain(driver: Option<DriverKind>) -> Vec<Feature> {
    let feature = |name, used, note: &str| Feature { name, used, note: note.to_owned() };
    let mut features = Vec::new();
    if driver == Some(DriverKind::Epoll) {
        features.push(feature("epoll", true, "a system call a datagram each way, and one a turn"));
    }
    match obstacle() {
        None if driver == Some(DriverKind::Epoll) => {
            features.push(feature(
                "io_uring",
                false,
                "the kernel has it, but TANDEM_ENGINE_DRIVER asks for epoll",
            ));
        }
        Some(why) => features.push(feature("io_uring", false, &why)),
        None => {
            features.push(feature("io_uring", true, "one ring a worker, one enter a turn"));
            features.push(feature(
                "SINGLE_ISSUER, DEFER_TASKRUN",
                true,
                "completions are made inside our own enter",
            ));
            features.push(feature("SUBMIT_ALL", true, "one bad entry does not hold up the others"));
            features.push(feature(
                "multishot recvmsg and recv",
                true,
                "one submission a socket for its whole life",
            ));
            features.push(feature("provided-buffer ring", true, "the kernel picks the receive buffer"));
            features.push(feature(
                "SEND with address, MSG_DONTWAIT, CQE_SKIP_SUCCESS",
                true,
                "no completion a datagram",
            ));
            features.push(feature("registered ring descriptor", true, "saves a look-up at each enter"));
            let minimum =
                IoUring::builder().build(8).is_ok_and(|ring: IoUring| ring.params().is_feature_min_timeout());
            features.push(match minimum {
                true => feature(
                    "minimum wait",
                    true,
                    "packets of 1 ms are handled together when few calls are up",
                ),
                false => {
                    feature("minimum wait", false, "needs Linux 6.12; a turn a packet while few calls are up")
                }
            });
        }
    }
    for (name, note) in [
        ("SQPOLL", "a spinning kernel thread costs 2 to 12 times the CPU and gains nothing at p99.9"),
        ("SEND_ZC", "slower than a copy for packets of this size"),
        ("SEND bundle", "makes one datagram of many on UDP"),
        ("multishot timeout", "drifts; the deadline of each wait comes from an absolute schedule"),
        ("registered files, UDP_GRO", "no measurable effect with a port a call"),
    ] {
        features.push(feature(name, false, note));
    }
    features
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_its_cause_and_the_fix() {
        let eperm = io::Error::from_raw_os_error(libc::EPERM);
        assert!(explain_refusal(&eperm, Some("2")).contains("io_uring_disabled is 2"));
        assert!(explain_refusal(&eperm, Some("0")).contains("seccomp"));
        assert!(explain_refusal(&io::Error::from_raw_os_error(libc::ENOSYS), None).contains("ENOSYS"));
    }

    #[test]
    fn epoll_can_always_be_had() {
        let decision = decide(Choice::Only(DriverKind::Epoll));
        assert_eq!(decision.driver, Some(DriverKind::Epoll));
    }

    #[test]
    fn driver_names_are_read_back_as_written() {
        for choice in [Choice::Auto, Choice::Only(DriverKind::Epoll), Choice::Only(DriverKind::IoUring)] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!("kqueue".parse::<Choice>().is_err());
    }
}
