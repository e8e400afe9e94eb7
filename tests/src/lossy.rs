//! A bad line between a caller and us: a relay of UDP datagrams that loses some of them.
//!
//! ```text
//!   sipp ──▶ ┌───────────┐ ──▶ Tandem
//!        ◀── │ LossyLine │ ◀──         the seed and the message's own name decide, not the clock
//!            └───────────┘
//! ```
//!
//! Which copy of which message of which call is lost depends on nothing but the seed: the same calls lose the same
//! messages in every run, however busy the machine is. Real chance would lose a message seven times in a row now and
//! then, and then RFC 3261 itself gives up (§17.1.1.2, 64*T1).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

/// How often the relay looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(50);

/// A line that loses datagrams, for one caller.
pub struct LossyLine {
    address: SocketAddr,
    over: Arc<AtomicBool>,
    lost: Arc<AtomicU32>,
    carried: Arc<AtomicU32>,
}

impl LossyLine {
    /// A line to this address that loses so many of a hundred messages, both ways.
    pub fn to(peer: SocketAddr, percent: u64, seed: u64) -> anyhow::Result<Self> {
        let near = UdpSocket::bind("127.0.0.1:0")?;
        let far = UdpSocket::bind("127.0.0.1:0")?;
        far.connect(peer)?;
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(LOOK))?;
        }
        let line = Self {
            address: near.local_addr()?,
            over: Arc::default(),
            lost: Arc::default(),
            carried: Arc::default(),
        };
        let caller: Arc<std::sync::Mutex<Option<SocketAddr>>> = Arc::default();
        let (near_back, far_back, caller_back) = (near.try_clone()?, far.try_clone()?, Arc::clone(&caller));
        let mut there = Fate::new(percent, seed, &line);
        let mut back = Fate::new(percent, !seed, &line);
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while !there.over.load(Ordering::Relaxed) {
                let Ok((len, from)) = near.recv_from(&mut buffer) else { continue };
                if let Ok(mut caller) = caller.lock() {
                    *caller = Some(from);
                }
                if there.carries(&buffer[..len]) {
                    let _ = far.send(&with_rport(&buffer[..len]));
                }
            }
        });
        std::thread::spawn(move || {
            let mut buffer = [0; 65_536];
            while !back.over.load(Ordering::Relaxed) {
                let Ok(len) = far_back.recv(&mut buffer) else { continue };
                let caller = caller_back.lock().ok().and_then(|caller| *caller);
                if let Some(caller) = caller
                    && back.carries(&buffer[..len])
                {
                    let _ = near_back.send_to(&buffer[..len], caller);
                }
            }
        });
        Ok(line)
    }

    /// Where the caller finds it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Messages lost and messages carried so far.
    pub fn counts(&self) -> (u32, u32) {
        (self.lost.load(Ordering::Relaxed), self.carried.load(Ordering::Relaxed))
    }
}

impl Drop for LossyLine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

/// Decides over the messages of one direction.
struct Fate {
    percent: u64,
    seed: u64,
    copies: HashMap<String, u64>,
    over: Arc<AtomicBool>,
    lost: Arc<AtomicU32>,
    carried: Arc<AtomicU32>,
}

impl Fate {
    fn new(percent: u64, seed: u64, line: &LossyLine) -> Self {
        Self {
            percent,
            seed,
            copies: HashMap::new(),
            over: Arc::clone(&line.over),
            lost: Arc::clone(&line.lost),
            carried: Arc::clone(&line.carried),
        }
    }

    fn carries(&mut self, message: &[u8]) -> bool {
        let name = name_of(message);
        let copy = self.copies.entry(name.clone()).or_default();
        *copy += 1;
        let mut hasher = DefaultHasher::new();
        (self.seed, name, *copy).hash(&mut hasher);
        let carries = hasher.finish() % 100 >= self.percent;
        if carries { &self.carried } else { &self.lost }.fetch_add(1, Ordering::Relaxed);
        carries
    }
}

/// What a message is called in every run: the call's number in sipp's Call-ID (the process id follows it), what it is
/// (method or status), and to which request it belongs.
fn name_of(message: &[u8]) -> String {
    let text = String::from_utf8_lossy(message);
    let header =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim();
    let call = header("Call-ID:").split('-').next().unwrap_or_default();
    let mut words = text.split(' ');
    let kind = match words.next() {
        Some("SIP/2.0") => words.next().unwrap_or_default(),
        method => method.unwrap_or_default(),
    };
    format!("{call} {kind} {}", header("CSeq:"))
}

/// The request as a NAT-aware client would have sent it (RFC 3581), so that its answers come back through this line.
fn with_rport(message: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(message) {
        Ok(text) if !text.starts_with("SIP/2.0") => text.replacen(";branch=", ";rport;branch=", 1).into(),
        _ => message.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(call: u32, pid: u32, method: &str) -> Vec<u8> {
        format!(
            "{method} sip:x@y SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5;branch=z\r\nCall-ID: {call}-{pid}@h\r\n\
             CSeq: 1 {method}\r\n\r\n"
        )
        .into_bytes()
    }

    #[test]
    fn what_is_lost_depends_on_the_seed_alone() {
        let line = LossyLine::to(([127, 0, 0, 1], 9).into(), 30, 1).unwrap();
        let fates = |pid| {
            let mut fate = Fate::new(30, 7, &line);
            (0..200).map(|n| fate.carries(&ask(n % 20, pid, "INVITE"))).collect::<Vec<_>>()
        };
        assert_eq!(fates(1), fates(2));
        let lost = fates(1).iter().filter(|carried| !**carried).count();
        assert!((30..90).contains(&lost), "{lost} of 200");
    }

    #[test]
    fn answers_are_asked_back_through_the_line() {
        let request = String::from_utf8(with_rport(&ask(1, 2, "BYE"))).unwrap();
        assert!(request.contains("127.0.0.1:5;rport;branch=z"), "{request}");
    }
}
