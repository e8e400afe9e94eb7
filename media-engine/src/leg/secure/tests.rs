//! A browser at the other end: it checks, nominates, shakes hands, and goes away.

use super::*;
use crate::control::identity::new_identity;
use tandem_rtp::ice::write_check;

const HERE: &str = "192.0.2.9:40000";
const STRANGER: &str = "203.0.113.66:4001";
const MS: Duration = Duration::from_millis(1);

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ours() -> Credentials {
    Credentials::from_random(&[5; 32])
}

fn theirs() -> IceText {
    IceText::parse("browser").unwrap()
}

struct Browser {
    dtls: DtlsSrtp,
    now: Instant,
}

fn parameters(setup: Setup, fingerprint: Fingerprint) -> SecureParameters {
    SecureParameters { setup, fingerprint, ice: ours(), remote_ufrag: theirs() }
}

/// A transport and its browser; `expected` is the fingerprint that was signalled, if it is not the browser's own.
fn pair(setup: Setup, expected: Option<Fingerprint>) -> (SecureTransport, Browser) {
    let now = Instant::now();
    let (engine, browser) = (new_identity().unwrap(), new_identity().unwrap());
    let other = if setup == Setup::Active { Setup::Passive } else { Setup::Active };
    let dtls = DtlsSrtp::new(&browser, other, engine.fingerprint(), now).unwrap();
    let signalled = expected.unwrap_or_else(|| browser.fingerprint());
    let mut transport = SecureTransport::new(parameters(setup, signalled), Some(Arc::new(engine)));
    transport.begin(now);
    (transport, Browser { dtls, now })
}

impl Browser {
    /// Checks from an address; true when the answer came back to it.
    fn checks(&mut self, transport: &mut SecureTransport, from: &str, is_nominating: bool) -> bool {
        let mut out = [0; 256];
        let len = write_check(&mut out, [1; 12], (&ours(), theirs()), is_nominating).unwrap();
        transport.handle_datagram(Kind::Stun, at(from), &out[..len], self.now);
        matches!(transport.poll_transmit(&mut [0; 1_472]), Some((to, _)) if to == at(from))
    }

    /// Shakes hands from this address for so long as anything is said.
    fn shakes(&mut self, transport: &mut SecureTransport, from: &str) {
        let mut out = [0; 1_472];
        for _ in 0..40 {
            while let Some(len) = self.dtls.poll_transmit(&mut out) {
                transport.handle_datagram(Kind::Dtls, at(from), &out[..len], self.now);
            }
            while transport.wants_handshake() {
                transport.handle_handshake(self.now);
            }
            while let Some((to, len)) = transport.poll_transmit(&mut out) {
                assert_eq!(Some(to), transport.pair());
                self.dtls.handle_datagram(&out[..len], self.now);
            }
            self.now += 50 * MS;
            self.dtls.handle_timeout(self.now);
            transport.handle_timeout(self.now);
        }
    }
}

#[test]
fn browser_that_checks_and_shakes_hands_has_the_same_keys_in_either_role() {
    for setup in [Setup::Passive, Setup::Active] {
        let (mut transport, mut browser) = pair(setup, None);
        assert!(browser.checks(&mut transport, HERE, true));
        browser.shakes(&mut transport, HERE);
        let (ours, theirs) = (transport.poll_keys().unwrap(), browser.dtls.poll_keys().unwrap());
        assert_eq!((ours.local, ours.remote), (theirs.remote, theirs.local));
        assert_eq!((transport.poll_keys(), transport.failure()), (None, None));
    }
}

#[test]
fn transport_that_has_its_keys_wants_no_time_but_for_consent() {
    let (mut transport, mut browser) = pair(Setup::Passive, None);
    browser.checks(&mut transport, HERE, true);
    browser.shakes(&mut transport, HERE);
    let mut wakes = 0;
    while let Some(at) = transport.poll_timeout()
        && transport.failure().is_none()
        && wakes < 1_000
    {
        transport.handle_timeout(at);
        while transport.poll_transmit(&mut [0; 1_472]).is_some() {}
        wakes += 1;
    }
    assert_eq!(transport.failure(), Some(TransportFailure::ConsentLost));
    assert!(wakes < 20, "{wakes} times in half a minute");
}

#[test]
fn handshake_of_anybody_but_the_nominated_is_not_answered() {
    let (mut transport, mut browser) = pair(Setup::Passive, None);
    browser.shakes(&mut transport, HERE);
    assert!(transport.poll_keys().is_none() && transport.dtls.is_none(), "there is no pair");
    assert!(browser.checks(&mut transport, HERE, true));
    browser.shakes(&mut transport, STRANGER);
    assert!(transport.poll_keys().is_none() && transport.dtls.is_none());
    assert!(transport.rejected() > 0);
}

#[test]
fn check_without_nomination_is_answered_and_makes_no_pair() {
    let (mut transport, mut browser) = pair(Setup::Passive, None);
    assert!(browser.checks(&mut transport, HERE, false));
    assert_eq!(transport.pair(), None);
}

#[test]
fn certificate_that_was_not_signalled_ends_it() {
    let (mut transport, mut browser) = pair(Setup::Passive, Some(Fingerprint::new([0; 32])));
    browser.checks(&mut transport, HERE, true);
    browser.shakes(&mut transport, HERE);
    let failure = transport.failure().unwrap();
    assert_eq!(failure, TransportFailure::Dtls(DtlsError::Fingerprint));
    assert_eq!(failure.to_string(), "DTLS: certificate does not have the fingerprint that was signalled");
    assert!(transport.poll_keys().is_none());
}

#[test]
fn failure_is_due_at_once_and_told_once() {
    let (mut transport, browser) = pair(Setup::Passive, None);
    let end = browser.now + CONSENT_MAX;
    assert_eq!(transport.poll_timeout(), Some(end));
    transport.handle_timeout(end);
    assert_eq!(transport.failure(), Some(TransportFailure::NoCheck));
    assert_eq!(transport.poll_timeout(), None);
}

#[test]
fn consent_lasts_as_long_as_checks_come() {
    let (mut transport, mut browser) = pair(Setup::Passive, None);
    browser.checks(&mut transport, HERE, true);
    browser.shakes(&mut transport, HERE);
    assert!(transport.poll_keys().is_some());
    for _ in 0..10 {
        browser.checks(&mut transport, HERE, true);
        browser.now += CONSENT_MAX - MS;
        transport.handle_timeout(browser.now);
        assert_eq!(transport.failure(), None);
    }
    transport.handle_timeout(browser.now + MS);
    assert_eq!(transport.failure(), Some(TransportFailure::ConsentLost));
}

#[test]
fn refresh_changes_nothing_and_another_certificate_begins_anew() {
    let (mut transport, mut browser) = pair(Setup::Passive, None);
    browser.checks(&mut transport, HERE, true);
    browser.shakes(&mut transport, HERE);
    assert!(transport.poll_keys().is_some());
    assert!(!transport.update(transport.parameters));
    let restarted = SecureParameters { ice: Credentials::from_random(&[6; 32]), ..transport.parameters };
    assert!(!transport.update(restarted), "a restart of ICE keeps the keys");
    assert_eq!(transport.pair(), Some(at(HERE)));
    assert!(!browser.checks(&mut transport, STRANGER, true) || transport.pair() == Some(at(HERE)));
    let another = SecureParameters { fingerprint: Fingerprint::new([1; 32]), ..restarted };
    assert!(transport.update(another));
    assert!(transport.dtls.is_none());
}

#[test]
fn flood_of_checks_fills_no_memory() {
    let (mut transport, browser) = pair(Setup::Passive, None);
    let mut out = [0; 256];
    let len = write_check(&mut out, [1; 12], (&ours(), theirs()), false).unwrap();
    for _ in 0..1_000 {
        transport.handle_datagram(Kind::Stun, at(HERE), &out[..len], browser.now);
    }
    assert_eq!(transport.answers.len(), ANSWERS_MAX);
    assert_eq!(transport.rejected(), 1_000 - ANSWERS_MAX as u64);
}

#[test]
fn another_certificate_makes_us_begin_again_with_the_pair_that_there_is() {
    let (mut transport, mut browser) = pair(Setup::Active, None);
    browser.checks(&mut transport, HERE, true);
    browser.shakes(&mut transport, HERE);
    assert!(transport.poll_keys().is_some());
    let (changed, now) = (new_identity().unwrap(), browser.now);
    let ours = transport.identity.as_ref().unwrap().fingerprint();
    let another = SecureParameters { fingerprint: changed.fingerprint(), ..transport.parameters };
    assert!(transport.update(another));
    browser.dtls = DtlsSrtp::new(&changed, Setup::Passive, ours, now).unwrap();
    assert!(browser.checks(&mut transport, HERE, false), "a check of its consent");
    browser.shakes(&mut transport, HERE);
    assert!(transport.poll_keys().is_some());
}

#[test]
fn peer_that_checks_and_never_shakes_hands_is_given_up() {
    let (mut transport, mut browser) = pair(Setup::Passive, None);
    let began = browser.now;
    while transport.failure().is_none() && browser.now < began + 2 * KEYS_MAX {
        browser.checks(&mut transport, HERE, true);
        browser.now += 500 * MS;
        transport.handle_timeout(browser.now);
    }
    assert_eq!(transport.failure(), Some(TransportFailure::Dtls(DtlsError::Handshake)));
    assert_eq!(browser.now - began, KEYS_MAX);
}

#[test]
fn checks_of_strangers_do_not_keep_the_peers_from_being_answered() {
    let (mut transport, browser) = pair(Setup::Passive, None);
    let forged = Credentials::from_random(&[66; 32]);
    let mut out = [0; 256];
    for n in 0..100 {
        let len = write_check(&mut out, [n; 12], (&forged, theirs()), true).unwrap();
        transport.handle_datagram(Kind::Stun, at(STRANGER), &out[..len], browser.now);
    }
    assert_eq!(transport.answers.len(), REFUSALS_MAX);
    let len = write_check(&mut out, [1; 12], (&ours(), theirs()), true).unwrap();
    assert!(transport.handle_datagram(Kind::Stun, at(HERE), &out[..len], browser.now));
    assert!(transport.answers.iter().any(|answer| answer.to == at(HERE)));
    assert_eq!(transport.rejected(), 100);
}

#[test]
fn handshake_waits_for_its_steps_and_holds_so_many_datagrams() {
    let (mut transport, mut browser) = pair(Setup::Passive, None);
    browser.checks(&mut transport, HERE, true);
    let mut out = [0; 1_472];
    let len = browser.dtls.poll_transmit(&mut out).unwrap();
    for _ in 0..HELD_MAX + 3 {
        transport.handle_datagram(Kind::Dtls, at(HERE), &out[..len], browser.now);
    }
    assert!(transport.dtls.is_none(), "nothing is computed before a step is granted");
    assert_eq!((transport.held.len(), transport.overflowed(), transport.rejected()), (HELD_MAX, 3, 3));
    transport.handle_handshake(browser.now);
    assert!(transport.dtls.is_some() && transport.poll_transmit(&mut out).is_some());
    assert_eq!(transport.held.len(), HELD_MAX - 1, "a step is one datagram");
    browser.shakes(&mut transport, HERE);
    assert!(transport.poll_keys().is_some(), "{:?}", transport.failure());
}

#[test]
fn our_part_to_begin_waits_for_a_step() {
    let (mut transport, mut browser) = pair(Setup::Active, None);
    browser.checks(&mut transport, HERE, true);
    assert!(transport.wants_handshake() && transport.dtls.is_none());
    transport.handle_handshake(browser.now);
    assert!(transport.poll_transmit(&mut [0; 1_472]).is_some());
    assert!(!transport.wants_handshake());
}
