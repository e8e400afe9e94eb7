//! What we ask of the operating system beside sockets: cores, process clocks, priorities, limits, counters.
//!
//! With `ring.rs` the only file that may be unsafe: every function is one system call, or one file of `/proc`, with its
//! result checked.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::clock::Wall;

/// Nanoseconds of a kernel clock. 0 if the clock does not exist, which cannot happen for the ids used here.
pub(crate) fn clock_ns(id: libc::clockid_t) -> u64 {
    let mut ts = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `ts` is a live, writable timespec for the duration of the call.
    if unsafe { libc::clock_gettime(id, &mut ts) } != 0 {
        return 0;
    }
    ts.tv_sec as u64 * 1_000_000_000 + ts.tv_nsec as u64
}

/// User and system time of the calling thread, nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Time that the calling thread was ready to run and its core was busy with others, nanoseconds; 0 where the kernel does
/// not say.
pub fn thread_waited_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// User and system time of this process, nanoseconds.
pub fn process_cpu_ns() -> u64 {
    clock_ns(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// User and system time of another process, nanoseconds, from its own process clock.
pub fn cpu_ns_of(pid: u32) -> io::Result<u64> {
    let mut id: libc::clockid_t = 0;
    // SAFETY: `id` is a live, writable clockid for the duration of the call.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &mut id) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    Ok(clock_ns(id))
}

/// The cores this process may run on, in order.
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: cpu_set_t is plain bits; all zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: `set` is live and its true size is given.
    let result = unsafe { libc::sched_getaffinity(0, mem::size_of::<libc::cpu_set_t>(), &mut set) };
    if result != 0 {
        return vec![0];
    }
    // SAFETY: CPU_ISSET reads one bit of `set`, and the index is below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
}

/// Pins the calling thread (and the threads it starts later) to one core.
pub fn pin_thread(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: cpu_set_t is plain bits; all zero is the empty set, and `core` is below CPU_SETSIZE.
    let set = unsafe {
        let mut set: libc::cpu_set_t = mem::zeroed();
        libc::CPU_SET(core, &mut set);
        set
    };
    // SAFETY: `set` is live and its true size is given; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of::<libc::cpu_set_t>(), &set) })
}

/// Asks the kernel not to delay the calling thread's timers to save wake-ups (the default is up to 50 µs).
pub fn sharpen_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes one number and touches no memory of ours. Failing only leaves the default.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64, 0, 0, 0) };
}

/// Above every normal thread, and above an engine that is itself run as a real-time process (1 to 49 as a rule).
const REALTIME_PRIORITY: libc::c_int = 50;

/// Puts the calling thread above all normal ones; needs CAP_SYS_NICE.
pub fn set_realtime() -> io::Result<()> {
    let param = libc::sched_param { sched_priority: REALTIME_PRIORITY };
    // SAFETY: `param` is live for the call; 0 is the calling thread.
    check(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &param) })
}

/// Sleeps until a monotonic instant, nanoseconds.
pub(crate) fn sleep_until(deadline_ns: u64) {
    let ts = libc::timespec {
        tv_sec: (deadline_ns / 1_000_000_000) as libc::time_t,
        tv_nsec: (deadline_ns % 1_000_000_000) as libc::c_long,
    };
    // SAFETY: `ts` is live for the call and no remainder is asked for. An interrupted sleep is a late deadline at worst.
    while unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &ts, std::ptr::null_mut())
    } == libc::EINTR
    {}
}

/// Raises the soft limit of open files to the hard one and returns it.
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is live and writable for the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return 0;
    }
    let soft = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is live for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 { soft } else { limit.rlim_max }
}

/// Sleeps until a descriptor can be read or the time is over. A signal ends it early.
pub(crate) fn wait_readable(fd: i32, wait: std::time::Duration) -> io::Result<()> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let ts = libc::timespec {
        tv_sec: wait.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(wait.subsec_nanos() as i32),
    };
    // SAFETY: one pollfd and one timespec, both live for the call; no signal mask.
    let ready = unsafe { libc::ppoll(&mut poll, 1, &ts, std::ptr::null()) };
    if ready >= 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
}

/// Turns on kernel arrival stamps (`SO_TIMESTAMPNS`) for a socket.
pub(crate) fn stamp_arrivals(fd: i32) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int; `on` is live and its size is given.
    check(unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    })
}

/// Reads what has come on a socket, with the kernel's arrival stamp of its last segment if there is one.
pub(crate) fn receive_stamped(fd: i32, octets: &mut [u8]) -> io::Result<(usize, Option<Wall>)> {
    let mut piece = libc::iovec { iov_base: octets.as_mut_ptr().cast(), iov_len: octets.len() };
    let mut control = [0_u64; 8];
    // SAFETY: msghdr is plain words and pointers; all zero means "nothing asked for".
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control);
    // SAFETY: `message` points to one live buffer and to live control words, with their true sizes.
    let len = unsafe { libc::recvmsg(fd, &mut message, 0) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: plain words may be read as octets; the length is what the kernel wrote, at most all of them.
    let control = unsafe {
        std::slice::from_raw_parts(
            control.as_ptr().cast::<u8>(),
            message.msg_controllen.min(mem::size_of_val(&control)),
        )
    };
    Ok((len as usize, stamp(control)))
}

/// Reads `SCM_TIMESTAMPNS` out of control data.
pub(crate) fn stamp(control: &[u8]) -> Option<Wall> {
    // cmsghdr: length (8), level (4), type (4); then a timespec of two 64-bit words.
    let word = |at: usize| control.get(at..at + 8).and_then(|b| b.try_into().ok()).map(i64::from_ne_bytes);
    let half = |at: usize| control.get(at..at + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    if half(8)? != libc::SOL_SOCKET || half(12)? != libc::SCM_TIMESTAMPNS {
        return None;
    }
    Some(Wall(word(16)? as u64 * 1_000_000_000 + word(24)? as u64))
}

/// Makes the calling process die with its parent, so that a killed bench leaves no echo behind.
pub(crate) fn die_with_parent() {
    // SAFETY: PR_SET_PDEATHSIG takes one number and touches no memory of ours.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong, 0, 0, 0) };
}

/// How often SIGINT or SIGTERM has come.
static INTERRUPTS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    // Only async-signal-safe things: an atomic and _exit.
    if INTERRUPTS.fetch_add(1, Ordering::Relaxed) >= 1 {
        // SAFETY: _exit is async-signal-safe. The second Ctrl-C means "now".
        unsafe { libc::_exit(130) };
    }
}

/// From now on the first Ctrl-C only sets [`interrupted`]; the second ends the process.
pub fn catch_interrupts() {
    let handler = on_interrupt as extern "C" fn(libc::c_int);
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler does only async-signal-safe work and lives as long as the program.
        unsafe { libc::signal(signal, handler as *const () as libc::sighandler_t) };
    }
}

/// True once the user has asked to stop.
pub fn interrupted() -> bool {
    INTERRUPTS.load(Ordering::Relaxed) > 0
}

/// True when this process may use io_uring.
pub fn io_uring_works() -> bool {
    io_uring::IoUring::new(2).is_ok()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The machine's processor time so far.
///
/// Work is summed over the run times of all threads (`/proc/*/task/*/schedstat`, nanoseconds). The shares in `/proc/stat`
/// are sampled on the kernel's tick, which a load that itself wakes by the millisecond slips through almost unseen; only
/// steal is taken from there, which no thread's own clock shows.
#[derive(Debug, Clone, Default)]
pub struct MachineTime {
    /// Run time of every thread, nanoseconds, by thread.
    run_ns: HashMap<u32, u64>,
    ticks: u64,
    steal_ticks: u64,
}

impl MachineTime {
    /// Reads both; zeros where there is no `/proc`.
    pub fn now() -> Self {
        let (ticks, steal_ticks) =
            std::fs::read_to_string("/proc/stat").map(|text| stat_ticks(&text)).unwrap_or_default();
        Self { run_ns: thread_run_times(), ticks, steal_ticks }
    }

    /// Share of time since `earlier` that the hypervisor gave to others, percent.
    pub fn steal_percent_since(&self, earlier: &Self) -> f64 {
        let ticks = self.ticks.saturating_sub(earlier.ticks);
        let steal = self.steal_ticks.saturating_sub(earlier.steal_ticks);
        if ticks == 0 { 0.0 } else { steal as f64 * 100.0 / ticks as f64 }
    }

    /// Work of all threads since `earlier`, nanoseconds. What a thread did that has ended meanwhile is not in it.
    pub fn work_ns_since(&self, earlier: &Self) -> u64 {
        let before = |thread| earlier.run_ns.get(thread).copied().unwrap_or(0);
        self.run_ns.iter().map(|(thread, now)| now.saturating_sub(before(thread))).sum()
    }
}

/// All ticks of all cores and the stolen ones among them.
fn stat_ticks(text: &str) -> (u64, u64) {
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).take(8).filter_map(|t| t.parse().ok()).collect();
    (ticks.iter().sum(), ticks.get(7).copied().unwrap_or(0))
}

fn thread_run_times() -> HashMap<u32, u64> {
    let numbered = |folder: &str| -> Vec<u32> {
        let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    };
    let mut times = HashMap::new();
    for process in numbered("/proc") {
        for thread in numbered(&format!("/proc/{process}/task")) {
            let text = std::fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat"))
                .unwrap_or_default();
            if let Some(run_ns) = text.split(' ').next().and_then(|ns| ns.parse().ok()) {
                times.insert(thread, run_ns);
            }
        }
    }
    times
}

/// Datagrams the kernel dropped because a receive buffer was full, by local UDP port, from `/proc/net/udp`.
pub fn udp_drops() -> HashMap<u16, u64> {
    std::fs::read_to_string("/proc/net/udp").map(|text| parse_udp_drops(&text)).unwrap_or_default()
}

fn parse_udp_drops(text: &str) -> HashMap<u16, u64> {
    let mut drops = HashMap::new();
    for line in text.lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(local), Some(dropped)) = (fields.get(1), fields.last()) else { continue };
        let Some(port) = local.rsplit(':').next().and_then(|p| u16::from_str_radix(p, 16).ok()) else {
            continue;
        };
        let Ok(dropped) = dropped.parse::<u64>() else { continue };
        *drops.entry(port).or_insert(0) += dropped;
    }
    drops
}

/// The machine in general words: `2 cores, Linux 6.18`.
pub fn machine() -> String {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version: Vec<&str> = release.trim().split(['.', '-']).take(2).collect();
    // SAFETY: sysconf takes a number and touches no memory of ours.
    let cores = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) };
    format!("{cores} cores, Linux {}", version.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_clock_stands_still_in_sleep() {
        let before = thread_cpu_ns();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(thread_cpu_ns() - before < 25_000_000, "sleeping was charged");
    }

    #[test]
    fn own_process_clock_is_the_one_read_by_id() {
        let by_id = cpu_ns_of(std::process::id()).unwrap();
        let own = process_cpu_ns();
        assert!(by_id > 0 && own >= by_id);
    }

    #[test]
    fn thread_pinned_to_a_core_is_allowed_only_there() {
        let core = *allowed_cores().last().unwrap();
        std::thread::spawn(move || {
            pin_thread(core).unwrap();
            assert_eq!(allowed_cores(), [core]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn steal_is_its_share_of_all_ticks() {
        let at = |line| {
            let (ticks, steal_ticks) = stat_ticks(line);
            MachineTime { ticks, steal_ticks, ..MachineTime::default() }
        };
        let before = at("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 1");
        assert_eq!(at("cpu  140 0 110 840 0 0 0 10 0 0\n").steal_percent_since(&before), 10.0);
        assert_eq!(before.steal_percent_since(&before), 0.0);
    }

    #[test]
    fn work_of_this_thread_is_in_the_machines_work() {
        let before = MachineTime::now();
        let (cpu_ns, mut sum) = (thread_cpu_ns(), 0_u64);
        while thread_cpu_ns() - cpu_ns < 50_000_000 {
            sum = std::hint::black_box(sum + 1);
        }
        // The kernel books a running thread's time at its tick, 4 to 10 ms.
        let work_ns = MachineTime::now().work_ns_since(&before);
        assert!(work_ns >= 40_000_000, "{work_ns} ns");
    }

    #[test]
    fn kernel_drops_are_read_by_local_port() {
        let text = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
             12: 0100007F:4E20 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1 2 0 17\n";
        assert_eq!(parse_udp_drops(text), HashMap::from([(20_000, 17)]));
    }
}
