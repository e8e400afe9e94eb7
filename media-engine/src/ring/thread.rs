//! What a worker asks of the kernel about itself: a core, sharp timers, a way to be woken, its own CPU time.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;

/// Wakes a worker that waits in [`super::Ring::turn`]; an eventfd, so any thread may hold a clone.
#[derive(Debug, Clone)]
pub struct Waker(Arc<OwnedFd>);

impl Waker {
    /// A fresh eventfd. Non-blocking: a second report of one wake finds the counter at zero, and a worker must never
    /// wait there.
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Makes the worker's wait return. Many wakes before it does count as one.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: `one` lives through the call. It can only fail when the counter is full, and then the worker wakes anyway.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Hands it to the tokio runtime of the calling thread.
    pub fn watch(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: `as_raw_fd` gives the same open descriptor for as long as the waker lives: it owns it and never
        // replaces it.
        unsafe { AsyncFd::register(self) }.map_err(io::Error::from)
    }

    /// Takes the counter down, if it is up.
    pub fn drain(&self) {
        let mut count = [0u8; 8];
        // SAFETY: `count` has the 8 octets that an eventfd wants. EAGAIN says that it is down already.
        unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

impl AsRawFd for Waker {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Cores this process may run on, lowest first.
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: cpu_set_t is plain data.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` has the size that is passed.
    let outcome = unsafe { libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) };
    if outcome != 0 {
        return vec![0];
    }
    (0..libc::CPU_SETSIZE as usize)
        // SAFETY: `core` is below CPU_SETSIZE.
        .filter(|&core| unsafe { libc::CPU_ISSET(core, &set) })
        .collect()
}

/// Pins the calling thread to one core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    if core >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: cpu_set_t is plain data, and `core` is below CPU_SETSIZE.
    let outcome = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set)
    };
    match outcome {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for timers without the kernel's usual slack of 50 µs on the calling thread.
pub fn sharpen_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes a number and affects this thread only. A refusal leaves the default.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// Asks the cache for memory that will be needed in a moment, so that many sessions' memory is fetched at a time instead
/// of one after the other. Changes nothing but time.
pub fn prefetch<T>(items: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..size_of_val(items)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: `offset` is within `items`; a prefetch reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(items.as_ptr().cast::<i8>().add(offset)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = items;
}

/// CPU time of the whole process so far, user and system.
pub fn seconds_on_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives through the call.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Raises the soft limit of open files to at least `wanted` if the hard limit allows; gives the limit that holds now.
pub fn raise_open_files(wanted: u64) -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= wanted {
        return Ok(limit.rlim_cur);
    }
    let raised = libc::rlimit { rlim_cur: wanted.min(limit.rlim_max), rlim_max: limit.rlim_max };
    // SAFETY: `raised` lives through the call.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } {
        0 => Ok(raised.rlim_cur),
        _ => Ok(limit.rlim_cur),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_can_be_pinned_to_an_allowed_core() {
        let core = allowed_cores()[0];
        std::thread::spawn(move || {
            pin_to_core(core).unwrap();
            assert_eq!(allowed_cores(), [core]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_core_that_does_not_exist_is_refused() {
        assert!(pin_to_core(1_000_000).is_err());
    }

    #[test]
    fn process_time_grows_with_work() {
        let before = seconds_on_cpu();
        let sum: u64 = (0..2_000_000u64).map(std::hint::black_box).sum();
        assert!(sum > 0 && seconds_on_cpu() > before);
    }
}
