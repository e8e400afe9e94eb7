//! Which source of inbound RTP is believed, and where our own RTP goes (symmetric RTP, RFC 4961; hosted NAT, RFC 7362).
//!
//! A caller behind NAT puts a private address into its SDP; its packets come from another. Latching sends back to where
//! they come from. It must not become a way to steal a call, so:
//!
//! * before the call is up nobody but the address in the SDP is heard: whoever sprays ports finds none open,
//! * one source is latched at a time, and while it is alive nobody else is heard,
//! * a source that sent fewer than [`ESTABLISHED_PACKETS`] and fell silent has no claim: it was a stray packet,
//! * the address in the SDP is the one exception: a peer that sends from there owns the call and ends any other latch,
//! * a latched source that fell silent may move (a NAT binding that was renewed), but only with its own SSRC, which a
//!   stranger does not know,
//! * after an offer or answer that kept the address (a hold, a session refresh) it may also come back from another port
//!   of its own host with another SSRC (a peer that was restarted), but never from another host,
//! * everything else needs an offer or answer with another address: [`SourceLatch::rearm`].
//!
//! Call [`SourceLatch::handle_packet`] only with packets that parsed and carry a negotiated payload type.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::units::Ssrc;

/// A latched source is alive for so long after its last packet. Longer than any gap of a call that speaks, shorter
/// than a caller's patience when a NAT moved the binding.
pub const SOURCE_SILENCE: Duration = Duration::from_secs(1);

/// Packets after which a source that was not signalled is the caller for good. Fewer may be a stray one, of another call that had
/// the port before, or of somebody who guesses ports.
pub const ESTABLISHED_PACKETS: u8 = 10;

/// How the source of inbound RTP is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Latching {
    /// The first source of valid RTP becomes the remote address.
    #[default]
    Auto,
    /// Only the address and port in the SDP are heard and sent to.
    Strict,
    /// The IP address in the SDP is heard from any of its ports; we send to the SDP's port only.
    Off,
}

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatchVerdict {
    /// It comes from the source that we hear.
    Accepted,
    /// Accepted, and from now on we send there: the remote address is another than before.
    Latched,
    /// It comes from somebody else: drop and count it.
    Rejected,
}

impl LatchVerdict {
    /// True for both kinds of acceptance.
    pub const fn is_accepted(self) -> bool {
        matches!(self, Self::Accepted | Self::Latched)
    }
}

#[derive(Debug, Clone, Copy)]
struct Latched {
    source: SocketAddr,
    ssrc: Ssrc,
    last_heard: Instant,
    /// Packets that it has sent, up to [`ESTABLISHED_PACKETS`].
    packets: u8,
}

/// The latch of one RTP leg.
#[derive(Debug, Clone)]
pub struct SourceLatch {
    latching: Latching,
    signalled: Option<SocketAddr>,
    latched: Option<Latched>,
    /// The call is not up yet: nobody may latch.
    is_closed: bool,
    /// An offer or answer that changed nothing came since the latched source was last heard.
    renewed: bool,
    rejected: u64,
}

impl SourceLatch {
    /// A latch that nobody holds yet. `signalled` is the address in the peer's SDP, if it is known; an unspecified
    /// address (0.0.0.0, ::) or port 0 counts as unknown.
    pub fn new(latching: Latching, signalled: Option<SocketAddr>) -> Self {
        let signalled = usable(signalled);
        Self { latching, signalled, latched: None, is_closed: false, renewed: false, rejected: 0 }
    }

    /// The same for a call that is not up yet: [`SourceLatch::open`] follows.
    pub fn closed(latching: Latching, signalled: Option<SocketAddr>) -> Self {
        Self { is_closed: true, ..Self::new(latching, signalled) }
    }

    /// The call is up: a source that was not signalled may be latched from now on.
    pub const fn open(&mut self) {
        self.is_closed = false;
    }

    /// Where our packets go: the latched source, else the address in the SDP.
    pub fn remote(&self) -> Option<SocketAddr> {
        match self.latched {
            Some(latched) if self.latching == Latching::Auto => Some(latched.source),
            _ => self.signalled,
        }
    }

    /// The source that we hear now.
    pub fn source(&self) -> Option<SocketAddr> {
        self.latched.map(|latched| latched.source)
    }

    /// The source that we hear, if it is the one in the SDP and no other port of its host is heard beside it.
    pub fn exclusive_source(&self) -> Option<SocketAddr> {
        let source = self.latched?.source;
        (self.latching != Latching::Off && self.signalled == Some(source)).then_some(source)
    }

    /// Packets from anybody else.
    pub const fn rejected(&self) -> u64 {
        self.rejected
    }

    /// Judges the source of a valid packet.
    pub fn handle_packet(&mut self, source: SocketAddr, ssrc: Ssrc, now: Instant) -> LatchVerdict {
        let is_signalled = self.signalled == Some(source);
        let accepted = match (self.latching, &self.latched) {
            (Latching::Strict, _) => is_signalled,
            (Latching::Off, _) => self.signalled.is_some_and(|signalled| signalled.ip() == source.ip()),
            (Latching::Auto, None) => is_signalled || !self.is_closed,
            (Latching::Auto, Some(latched)) => {
                let silent = now.saturating_duration_since(latched.last_heard) >= SOURCE_SILENCE;
                let restarted = self.renewed && latched.source.ip() == source.ip();
                let is_stray = latched.packets < ESTABLISHED_PACKETS;
                let may_move = silent && (latched.ssrc == ssrc || restarted || is_stray);
                latched.source == source || is_signalled || may_move
            }
        };
        if !accepted {
            self.rejected += 1;
            return LatchVerdict::Rejected;
        }
        let before = self.remote();
        self.renewed = false;
        let packets = match self.latched {
            _ if is_signalled => ESTABLISHED_PACKETS,
            // Also of one that moved: it has proved that it is the same.
            Some(latched) if latched.source == source || latched.ssrc == ssrc => {
                latched.packets.saturating_add(1)
            }
            Some(_) | None => 1,
        };
        let packets = packets.min(ESTABLISHED_PACKETS);
        self.latched = Some(Latched { source, ssrc, last_heard: now, packets });
        if self.remote() == before { LatchVerdict::Accepted } else { LatchVerdict::Latched }
    }

    /// Whether RTCP from this source is believed: from the host that is heard, or while nobody is, from the one in the SDP.
    /// RTCP never latches anything, for it carries nothing that a stranger could not make up.
    pub fn is_believed(&self, source: SocketAddr) -> bool {
        let host = match (self.latching, self.latched) {
            (Latching::Auto, Some(latched)) => Some(latched.source.ip()),
            _ => self.signalled.map(|signalled| signalled.ip()),
        };
        host == Some(source.ip())
    }

    /// A new offer or answer was agreed. Another address opens the latch for the next source, and until then we send
    /// there. When the peer signals the address it had, or none (the zeros of an old-style hold), the latch holds: a hold
    /// or session refresh does not open the call to strangers, or send our sound to a private address.
    pub fn rearm(&mut self, latching: Latching, signalled: Option<SocketAddr>) {
        let signalled = usable(signalled).or(self.signalled);
        if (latching, signalled) != (self.latching, self.signalled) {
            self.latching = latching;
            self.signalled = signalled;
            self.latched = None;
        }
        self.renewed = true;
    }
}

fn usable(signalled: Option<SocketAddr>) -> Option<SocketAddr> {
    signalled.filter(|address| !address.ip().is_unspecified() && address.port() != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLER: Ssrc = Ssrc(1);
    const STRANGER: Ssrc = Ssrc(2);

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    impl SourceLatch {
        /// A source sends so much that it is no stray.
        fn establish(&mut self, source: SocketAddr, now: Instant) {
            for _ in 0..ESTABLISHED_PACKETS {
                assert!(self.handle_packet(source, CALLER, now).is_accepted());
            }
        }
    }

    #[test]
    fn stray_packet_keeps_the_caller_out_for_a_second_and_no_longer() {
        let now = start();
        let (stray, caller) = (address("198.51.100.1:5000"), address("203.0.113.9:61000"));
        let mut latch = SourceLatch::new(Latching::Auto, Some(address("10.0.0.5:4000")));
        for _ in 1..ESTABLISHED_PACKETS {
            assert!(latch.handle_packet(stray, STRANGER, now).is_accepted());
        }
        assert_eq!(latch.handle_packet(caller, CALLER, now + ms(999)), LatchVerdict::Rejected);
        assert_eq!(latch.handle_packet(caller, CALLER, now + SOURCE_SILENCE), LatchVerdict::Latched);
        latch.establish(caller, now + SOURCE_SILENCE);
        let later = now + 60 * SOURCE_SILENCE;
        assert_eq!(latch.handle_packet(stray, STRANGER, later), LatchVerdict::Rejected, "it is a caller now");
    }

    #[test]
    fn nobody_but_the_signalled_address_latches_before_the_call_is_up() {
        let (signalled, stranger) = (address("203.0.113.9:4000"), address("198.51.100.1:5000"));
        let mut latch = SourceLatch::closed(Latching::Auto, Some(signalled));
        assert_eq!(latch.handle_packet(stranger, STRANGER, start()), LatchVerdict::Rejected);
        assert_eq!(latch.handle_packet(signalled, CALLER, start()), LatchVerdict::Accepted);
        let mut latch = SourceLatch::closed(Latching::Auto, Some(address("10.0.0.5:4000")));
        assert_eq!(latch.handle_packet(stranger, STRANGER, start()), LatchVerdict::Rejected);
        latch.open();
        assert_eq!(
            latch.handle_packet(signalled, CALLER, start()),
            LatchVerdict::Latched,
            "its first packet"
        );
        assert_eq!(latch.remote(), Some(signalled));
    }

    #[test]
    fn private_address_in_sdp_is_replaced_by_the_first_source() {
        let mut latch = SourceLatch::new(Latching::Auto, Some(address("10.0.0.5:4000")));
        assert_eq!(latch.remote(), Some(address("10.0.0.5:4000")));
        assert_eq!(latch.handle_packet(address("203.0.113.9:61000"), CALLER, start()), LatchVerdict::Latched);
        assert_eq!(
            latch.handle_packet(address("203.0.113.9:61000"), CALLER, start()),
            LatchVerdict::Accepted
        );
        assert_eq!(latch.remote(), Some(address("203.0.113.9:61000")));
    }

    #[test]
    fn third_party_never_takes_over_a_living_source() {
        let now = start();
        let (caller, stranger) = (address("203.0.113.9:61000"), address("198.51.100.1:5000"));
        let mut latch = SourceLatch::new(Latching::Auto, Some(address("10.0.0.5:4000")));
        latch.handle_packet(caller, CALLER, now);
        for n in 0..1_000 {
            let now = now + ms(20 * n);
            latch.handle_packet(caller, CALLER, now);
            assert_eq!(latch.handle_packet(stranger, STRANGER, now + ms(1)), LatchVerdict::Rejected);
            assert_eq!(
                latch.handle_packet(stranger, CALLER, now + ms(2)),
                LatchVerdict::Rejected,
                "not even with its SSRC"
            );
        }
        assert_eq!(latch.remote(), Some(caller));
        assert_eq!(latch.rejected(), 2_000);
    }

    #[test]
    fn silent_caller_can_move_but_stranger_cannot_step_in() {
        let now = start();
        let mut latch = SourceLatch::new(Latching::Auto, None);
        latch.establish(address("203.0.113.9:61000"), now);
        let later = now + SOURCE_SILENCE;
        assert_eq!(
            latch.handle_packet(address("198.51.100.1:5000"), STRANGER, later),
            LatchVerdict::Rejected
        );
        assert_eq!(latch.handle_packet(address("203.0.113.9:61002"), CALLER, later), LatchVerdict::Latched);
        assert_eq!(latch.remote(), Some(address("203.0.113.9:61002")));
    }

    #[test]
    fn signalled_address_ends_the_latch_of_a_stranger_who_came_first() {
        let now = start();
        let signalled = address("203.0.113.9:4000");
        let mut latch = SourceLatch::new(Latching::Auto, Some(signalled));
        assert_eq!(latch.handle_packet(address("198.51.100.1:5000"), STRANGER, now), LatchVerdict::Latched);
        assert_eq!(latch.handle_packet(signalled, CALLER, now), LatchVerdict::Latched);
        assert_eq!(latch.handle_packet(address("198.51.100.1:5000"), STRANGER, now), LatchVerdict::Rejected);
        assert_eq!(latch.remote(), Some(signalled));
    }

    #[test]
    fn strict_hears_only_the_signalled_address_and_port() {
        let mut latch = SourceLatch::new(Latching::Strict, Some(address("203.0.113.9:4000")));
        assert_eq!(latch.handle_packet(address("203.0.113.9:4002"), CALLER, start()), LatchVerdict::Rejected);
        assert_eq!(latch.handle_packet(address("203.0.113.9:4000"), CALLER, start()), LatchVerdict::Accepted);
        let mut unknown = SourceLatch::new(Latching::Strict, None);
        assert_eq!(
            unknown.handle_packet(address("203.0.113.9:4000"), CALLER, start()),
            LatchVerdict::Rejected
        );
    }

    #[test]
    fn off_hears_any_port_of_the_signalled_host_and_never_redirects() {
        let signalled = address("203.0.113.9:4000");
        let mut latch = SourceLatch::new(Latching::Off, Some(signalled));
        assert_eq!(latch.handle_packet(address("203.0.113.9:9999"), CALLER, start()), LatchVerdict::Accepted);
        assert_eq!(
            latch.handle_packet(address("198.51.100.1:4000"), CALLER, start()),
            LatchVerdict::Rejected
        );
        assert_eq!(latch.remote(), Some(signalled));
    }

    #[test]
    fn reinvite_with_a_new_address_opens_the_latch_and_a_refresh_does_not() {
        let now = start();
        let (private, public) = (address("10.0.0.5:4000"), address("203.0.113.9:61000"));
        let mut latch = SourceLatch::new(Latching::Auto, Some(private));
        latch.handle_packet(public, CALLER, now);
        latch.rearm(Latching::Auto, Some(private));
        assert_eq!(latch.remote(), Some(public), "a session refresh changes nothing");
        let stranger = address("203.0.113.20:700");
        assert_eq!(latch.handle_packet(stranger, STRANGER, now), LatchVerdict::Rejected);
        latch.rearm(Latching::Auto, Some(address("10.0.0.7:5000")));
        assert_eq!(latch.remote(), Some(address("10.0.0.7:5000")));
        assert_eq!(latch.handle_packet(stranger, STRANGER, now), LatchVerdict::Latched);
    }

    #[test]
    fn refresh_lets_a_restarted_peer_back_in_once_its_old_source_is_silent() {
        let now = start();
        let (old, new) = (address("203.0.113.9:61000"), address("203.0.113.9:61002"));
        let mut latch = SourceLatch::new(Latching::Auto, None);
        latch.establish(old, now);
        latch.rearm(Latching::Auto, None);
        assert_eq!(latch.handle_packet(new, STRANGER, now + ms(999)), LatchVerdict::Rejected);
        assert_eq!(latch.handle_packet(new, STRANGER, now + SOURCE_SILENCE), LatchVerdict::Latched);
        for _ in 1..ESTABLISHED_PACKETS {
            latch.handle_packet(new, STRANGER, now + SOURCE_SILENCE);
        }
        let later = now + 2 * SOURCE_SILENCE;
        assert_eq!(latch.handle_packet(old, CALLER, later), LatchVerdict::Rejected, "one change a refresh");
    }

    #[test]
    fn hold_opens_the_call_to_nobody_else() {
        let now = start();
        let (private, public) = (address("10.0.0.5:4000"), address("203.0.113.9:61000"));
        let stranger = address("198.51.100.1:5000");
        for held in [Some(private), Some(address("0.0.0.0:4000")), Some(address("10.0.0.5:0")), None] {
            let mut latch = SourceLatch::new(Latching::Auto, Some(private));
            latch.establish(public, now);
            latch.rearm(Latching::Auto, held);
            for later in [ms(1), SOURCE_SILENCE, 600 * SOURCE_SILENCE] {
                let verdict = latch.handle_packet(stranger, STRANGER, now + later);
                assert_eq!(verdict, LatchVerdict::Rejected, "{held:?} after {later:?}");
            }
            latch.rearm(Latching::Auto, Some(private));
            let later = now + 601 * SOURCE_SILENCE;
            assert_eq!(latch.handle_packet(stranger, STRANGER, later), LatchVerdict::Rejected, "{held:?}");
            assert_eq!(latch.handle_packet(public, CALLER, later), LatchVerdict::Accepted, "{held:?}");
        }
    }

    #[test]
    fn caller_whose_nat_was_bound_anew_during_a_hold_is_heard() {
        let now = start();
        let private = address("10.0.0.5:4000");
        for moved in ["203.0.113.9:61002", "203.0.113.77:700"] {
            let mut latch = SourceLatch::new(Latching::Auto, Some(private));
            latch.handle_packet(address("203.0.113.9:61000"), CALLER, now);
            latch.rearm(Latching::Auto, Some(private));
            latch.rearm(Latching::Auto, Some(private));
            assert_eq!(
                latch.handle_packet(address(moved), CALLER, now + 30 * SOURCE_SILENCE),
                LatchVerdict::Latched
            );
            assert_eq!(latch.remote(), Some(address(moved)));
        }
    }

    #[test]
    fn private_address_in_sdp_gets_sound_both_ways_with_its_first_packet() {
        let (private, public) = (address("192.168.1.20:4000"), address("203.0.113.9:61000"));
        let mut latch = SourceLatch::new(Latching::Auto, Some(private));
        assert!(latch.handle_packet(public, CALLER, start()).is_accepted());
        assert_eq!(latch.remote(), Some(public));
    }

    #[test]
    fn reports_are_believed_from_the_host_that_is_heard_only() {
        let (private, public) = (address("10.0.0.5:4000"), address("203.0.113.9:61000"));
        let mut latch = SourceLatch::new(Latching::Auto, Some(private));
        assert!(latch.is_believed(address("10.0.0.5:4001")) && !latch.is_believed(public));
        latch.handle_packet(public, CALLER, start());
        assert!(latch.is_believed(address("203.0.113.9:61001")));
        assert!(
            !latch.is_believed(address("10.0.0.5:4001")) && !latch.is_believed(address("198.51.100.1:1"))
        );
        assert!(!SourceLatch::new(Latching::Auto, None).is_believed(public));
    }

    proptest::proptest! {
        /// Whatever strangers send, with whatever SSRC and in whatever moment of a call that lives: none of it is heard,
        /// and none of it moves where we send.
        #[test]
        fn no_stranger_is_heard_or_followed_once_somebody_is_latched(
            stranger_hosts in proptest::collection::vec((1_u8..=254, 1024_u16.., 0_u32..4, 0_u64..20), 1..200),
            refreshes in proptest::collection::vec(0_usize..200, 0..4),
            latching in 0_usize..3,
        ) {
            let latching = [Latching::Auto, Latching::Strict, Latching::Off][latching];
            let caller = address("203.0.113.9:61000");
            let signalled = if latching == Latching::Auto { address("10.0.0.5:4000") } else { caller };
            let mut latch = SourceLatch::new(latching, Some(signalled));
            let begin = start();
            latch.handle_packet(caller, CALLER, begin);
            let remote = latch.remote();
            for (n, (host, port, ssrc, offset_ms)) in stranger_hosts.into_iter().enumerate() {
                let now = begin + ms(20 * n as u64);
                proptest::prop_assert!(latch.handle_packet(caller, CALLER, now).is_accepted());
                if refreshes.contains(&n) {
                    latch.rearm(latching, Some(signalled));
                }
                let stranger = SocketAddr::from(([198, 51, 100, host], port));
                let verdict = latch.handle_packet(stranger, Ssrc(ssrc), now + ms(offset_ms));
                proptest::prop_assert_eq!(verdict, LatchVerdict::Rejected);
                proptest::prop_assert_eq!(latch.remote(), remote);
            }
        }
    }

    #[test]
    fn unspecified_address_of_an_old_style_hold_is_no_address() {
        assert_eq!(SourceLatch::new(Latching::Auto, Some(address("0.0.0.0:4000"))).remote(), None);
        assert_eq!(SourceLatch::new(Latching::Auto, Some(address("203.0.113.9:0"))).remote(), None);
    }
}
