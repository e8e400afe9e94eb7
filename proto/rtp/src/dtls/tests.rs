//! Two ends over a link that loses, doubles and swaps.

use super::*;
use crate::rtcp::interval::splitmix;
use crate::srtp::{Inbound, Outbound};

fn identity() -> Identity {
    let made = rcgen::generate_simple_self_signed(["tandem.test".to_owned()]).unwrap();
    Identity::new(made.cert.der().to_vec(), made.signing_key.serialize_der())
}

#[allow(clippy::disallowed_methods)]
fn start() -> Instant {
    Instant::now()
}

/// Both ends, and a clock that runs while they wait for each other.
struct Pair {
    ends: [DtlsSrtp; 2],
    keys: [Option<DtlsKeys>; 2],
    now: Instant,
}

impl Pair {
    fn new(expected: impl Fn(&Identity) -> Fingerprint) -> Self {
        let (a, b, now) = (identity(), identity(), start());
        let ends = [
            DtlsSrtp::new(&a, Setup::Active, expected(&b), now).unwrap(),
            DtlsSrtp::new(&b, Setup::Passive, a.fingerprint(), now).unwrap(),
        ];
        Self { ends, keys: [None; 2], now }
    }

    /// Runs until both have keys, or nothing helps any more. Of a hundred datagrams so many are lost.
    fn run(&mut self, lost_percent: u64, seed: u64) {
        let mut random = seed;
        let mut out = [0; DATAGRAM_LEN_MAX];
        for _ in 0..2_000 {
            let mut flight: Vec<(usize, Vec<u8>)> = Vec::new();
            for from in 0..2 {
                while let Some(len) = self.ends[from].poll_transmit(&mut out) {
                    match splitmix(&mut random) % 100 {
                        fate if fate < lost_percent => {}
                        fate if fate > 95 => {
                            flight.extend([(1 - from, out[..len].to_vec()), (1 - from, out[..len].to_vec())])
                        }
                        fate if fate > 90 => flight.insert(0, (1 - from, out[..len].to_vec())),
                        _ => flight.push((1 - from, out[..len].to_vec())),
                    }
                }
                self.keys[from] = self.keys[from].or_else(|| self.ends[from].poll_keys());
            }
            if self.keys.iter().all(Option::is_some) {
                return;
            }
            self.now += Duration::from_millis(20);
            let is_quiet = flight.is_empty();
            for (to, datagram) in flight {
                self.ends[to].handle_datagram(&datagram, self.now);
            }
            for end in &mut self.ends {
                if is_quiet && let Some(next) = end.poll_timeout() {
                    self.now = self.now.max(next.min(self.now + Duration::from_millis(500)));
                }
                end.handle_timeout(self.now);
            }
        }
    }
}

#[test]
fn both_ends_get_each_others_keys_over_a_lossy_link() {
    for (seed, lost_percent) in [(1, 0), (2, 10), (3, 20)] {
        let mut pair = Pair::new(Identity::fingerprint);
        pair.run(lost_percent, seed);
        let [Some(a), Some(b)] = pair.keys else {
            panic!("no keys at {lost_percent} %: {:?}", pair.ends.map(|end| end.failure()));
        };
        assert_eq!((a.local, a.remote), (b.remote, b.local));
        assert_ne!(a.local, a.remote);
        let (mut out, mut inbound) = (Outbound::new(a.local).unwrap(), Inbound::new(b.remote).unwrap());
        let mut packet = [0; 64];
        packet[0] = 0x80;
        let len = out.protect_rtp(&mut packet, 32).unwrap();
        assert!(inbound.unprotect_rtp(&packet[..len]).is_ok());
    }
}

#[test]
fn certificate_that_was_not_signalled_gives_no_keys() {
    let mut pair = Pair::new(|_| Fingerprint::new([0; 32]));
    pair.run(0, 1);
    assert_eq!(pair.ends[0].failure(), Some(DtlsError::Fingerprint));
    assert_eq!(pair.keys[0], None);
}

#[test]
fn noise_does_not_end_a_handshake() {
    let mut pair = Pair::new(Identity::fingerprint);
    for noise in [&[22_u8][..], &[22, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 200], &[63; 100], &[20, 1]] {
        let now = pair.now;
        pair.ends[0].handle_datagram(noise, now);
        pair.ends[1].handle_datagram(noise, now);
    }
    pair.run(0, 5);
    assert!(pair.keys.iter().all(Option::is_some), "{:?}", pair.ends.map(|end| end.failure()));
}
