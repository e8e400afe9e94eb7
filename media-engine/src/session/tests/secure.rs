//! A call of a browser: nothing before it has checked and shaken hands, and its end when it is gone.

use std::sync::Arc;

use tandem_rtp::dtls::{DATAGRAM_LEN_MAX, DtlsSrtp, Fingerprint, Kind, Setup};
use tandem_rtp::ice::{Credentials, IceText, write_check};
use tandem_rtp::srtp::{Inbound, Outbound, RTP_OVERHEAD_MAX};

use super::*;
use crate::control::identity::new_identity;
use crate::leg::secure::{CONSENT_MAX, SecureParameters, TransportFailure};
use crate::session::second::Role as LegRole;

const BROWSER: &str = "198.51.100.20:50000";
const ELSEWHERE: &str = "198.51.100.20:50002";

struct Browser {
    /// It is the second leg of the call, not the caller.
    is_second: bool,
    /// Sequence number and timestamp of its next packet, beside those of the caller.
    place: (u16, u32),
    dtls: DtlsSrtp,
    ice: Credentials,
    own_ufrag: IceText,
    inbound: Option<Inbound>,
    outbound: Option<Outbound>,
    heard: Vec<u8>,
}

fn call(forged: bool) -> (Call, Browser) {
    let (engine, browser) = (new_identity().unwrap(), new_identity().unwrap());
    let ice = Credentials::from_random(&[3; 32]);
    let own_ufrag = IceText::parse("them").unwrap();
    let fingerprint = if forged { Fingerprint::new([9; 32]) } else { browser.fingerprint() };
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp.remote = None;
    parameters.rtp.rtcp = Rtcp::Mux;
    parameters.rtp.secure =
        Some(SecureParameters { setup: Setup::Passive, fingerprint, ice, remote_ufrag: own_ufrag });
    let ours = engine.fingerprint();
    parameters.identity = Some(Arc::new(engine));
    let mut call = Call::started(parameters);
    call.sequence = 100;
    let dtls = DtlsSrtp::new(&browser, Setup::Active, ours, call.now).unwrap();
    (
        call,
        Browser {
            is_second: false,
            place: (100, 0),
            dtls,
            ice,
            own_ufrag,
            inbound: None,
            outbound: None,
            heard: Vec::new(),
        },
    )
}

/// A caller with a telephone, and a browser that is brought in as the control plane does it: a port first, then what the
/// browser has answered.
fn brought_in(role: LegRole) -> (Call, Browser) {
    let (engine, browser) = (new_identity().unwrap(), new_identity().unwrap());
    let ice = Credentials::from_random(&[3; 32]);
    let own_ufrag = IceText::parse("them").unwrap();
    let mut parameters = with(AgentParameters::Echo);
    let ours = engine.fingerprint();
    parameters.identity = Some(Arc::new(engine));
    let mut call = Call::started(parameters);
    let unknown = RtpParameters { remote: None, codec: None, ..rtp() };
    let ringing = LegRole::Consult { rings: true };
    assert!(call.session.add_second(unknown, ringing, [77, 100, 0], call.now + 3 * MS));
    call.pass(100);
    let fingerprint = browser.fingerprint();
    let secure = SecureParameters { setup: Setup::Passive, fingerprint, ice, remote_ufrag: own_ufrag };
    let answered = RtpParameters { remote: None, rtcp: Rtcp::Mux, secure: Some(secure), ..rtp() };
    assert!(call.session.update_second(Some(answered), Some(role), call.now));
    let dtls = DtlsSrtp::new(&browser, Setup::Active, ours, call.now).unwrap();
    (
        call,
        Browser {
            is_second: true,
            place: (100, 0),
            dtls,
            ice,
            own_ufrag,
            inbound: None,
            outbound: None,
            heard: Vec::new(),
        },
    )
}

impl Browser {
    fn sends(&self, call: &mut Call, from: &str, datagram: &[u8]) {
        match self.is_second {
            true => call.session.handle_second_datagram(at(from), datagram, call.now),
            false => call.session.handle_datagram(at(from), datagram, call.now),
        }
    }

    fn receives(&self, call: &mut Call, out: &mut [u8]) -> Option<Transmit> {
        match self.is_second {
            true => call.session.poll_second(call.now, out),
            false => call.session.poll_transmit(call.now, out),
        }
    }

    fn checks(&self, call: &mut Call, from: &str) {
        let mut out = [0; 256];
        let len = write_check(&mut out, [4; 12], (&self.ice, self.own_ufrag), true).unwrap();
        self.sends(call, from, &out[..len]);
    }

    /// Lets both do what is due for so long, in steps of a millisecond.
    fn pass(&mut self, call: &mut Call, ms: u32) {
        let mut out = [0; 1_472];
        for _ in 0..ms {
            while let Some(len) = self.dtls.poll_transmit(&mut out[..DATAGRAM_LEN_MAX]) {
                self.sends(call, BROWSER, &out[..len]);
            }
            while call.session.wants_handshake() {
                call.session.handle_handshake(call.now);
            }
            if let Some(keys) = self.dtls.poll_keys() {
                self.inbound = Some(Inbound::new(keys.remote).unwrap());
                self.outbound = Some(Outbound::new(keys.local).unwrap());
            }
            while let Some(transmit) = self.receives(call, &mut out) {
                assert_eq!(transmit.to, at(BROWSER));
                match Kind::of(&out[..transmit.len]) {
                    Kind::Dtls => self.dtls.handle_datagram(&out[..transmit.len], call.now),
                    Kind::Rtp if tandem_rtp::packet::is_rtcp(&out[..transmit.len]) => {}
                    Kind::Rtp => {
                        let inbound =
                            self.inbound.as_mut().expect("nothing is sent before the browser has keys");
                        let clear = inbound.unprotect_rtp(&out[..transmit.len]).unwrap();
                        self.heard.push(clear[12]);
                    }
                    Kind::Stun | Kind::Unknown => {}
                }
            }
            match self.is_second {
                true => call.pass(1),
                false => {
                    call.session.handle_timeout(call.now);
                    call.now += MS;
                }
            }
            self.dtls.handle_timeout(call.now);
        }
    }

    fn says(&mut self, call: &mut Call, from: &str, code: u8) {
        let callers = (call.sequence, call.timestamp);
        if self.is_second {
            (call.sequence, call.timestamp) = self.place;
        }
        let mut packet = call.packet(0, &[code; 160]);
        call.timestamp = call.timestamp.wrapping_add(160);
        if self.is_second {
            self.place = (call.sequence, call.timestamp);
            (call.sequence, call.timestamp) = callers;
        }
        packet.resize(172 + RTP_OVERHEAD_MAX, 0);
        let len = self.outbound.as_mut().unwrap().protect_rtp(&mut packet, 172).unwrap();
        self.sends(call, from, &packet[..len]);
    }
}

#[test]
fn browser_that_checks_and_shakes_hands_hears_its_echo() {
    let (mut call, mut browser) = call(false);
    browser.checks(&mut call, BROWSER);
    browser.pass(&mut call, 300);
    for code in 1..=20 {
        browser.says(&mut call, BROWSER, code);
        browser.pass(&mut call, 20);
    }
    assert!((1..=18).all(|code| browser.heard.contains(&code)), "{:?}", browser.heard);
    assert!(matches!(call.events()[0], Event::MediaStarted { remote, .. } if remote == at(BROWSER)));
    assert_eq!(call.session.exclusive_peer(call.now), None, "it may check from another address");
}

#[test]
fn rtp_in_the_clear_or_from_another_address_is_not_heard() {
    let (mut call, mut browser) = call(false);
    call.says_from(BROWSER, &[1; 160]);
    browser.checks(&mut call, BROWSER);
    browser.pass(&mut call, 300);
    call.says_from(BROWSER, &[2; 160]);
    browser.says(&mut call, ELSEWHERE, 3);
    browser.pass(&mut call, 60);
    assert!(call.events().is_empty(), "no media has started");
    assert!(call.session.stats(call.now).rtp_rejected >= 2);
}

#[test]
fn certificate_that_was_not_signalled_ends_the_session() {
    let (mut call, mut browser) = call(true);
    browser.checks(&mut call, BROWSER);
    browser.pass(&mut call, 300);
    let ended = call.events().into_iter().find(|event| matches!(event, Event::Ended { .. }));
    let Some(Event::Ended { reason: EndReason::Transport(failure), .. }) = ended else { panic!("{ended:?}") };
    assert!(failure.to_string().contains("fingerprint"), "{failure}");
}

#[test]
fn session_ends_when_no_check_came_or_none_comes_any_more() {
    for is_there in [false, true] {
        let (mut call, browser) = call(false);
        if is_there {
            browser.checks(&mut call, BROWSER);
        }
        call.now += CONSENT_MAX + MS;
        call.session.handle_timeout(call.now);
        let expected = if is_there { TransportFailure::ConsentLost } else { TransportFailure::NoCheck };
        let events = call.events();
        assert!(
            events
                .iter()
                .any(|event| matches!(event, Event::Ended { reason: EndReason::Transport(failure), .. }
                if *failure == expected)),
            "{events:?}"
        );
    }
}

#[test]
fn call_that_had_a_browser_is_never_carried_in_the_clear_by_an_update_of_other_keys() {
    let (mut call, mut browser) = call(false);
    browser.checks(&mut call, BROWSER);
    browser.pass(&mut call, 300);
    let mut changed = *call.session.rtp();
    changed.secure =
        changed.secure.map(|secure| SecureParameters { fingerprint: Fingerprint::new([1; 32]), ..secure });
    call.session.update(changed, call.now, call.now);
    browser.heard.clear();
    browser.pass(&mut call, 200);
    assert!(browser.heard.is_empty(), "another certificate: silence until its handshake is over");
}

/// Of G.711 of this code.
fn level(code: u8) -> i32 {
    i32::from(tandem_audio::g711::linear_from_ulaw(code))
}

#[test]
fn browser_that_is_brought_in_and_the_caller_hear_each_other() {
    const LOUD: u8 = 0x80;
    const HALF: u8 = 0x9F;
    let (mut call, mut browser) = brought_in(LegRole::Bridge);
    browser.checks(&mut call, BROWSER);
    browser.pass(&mut call, 300);
    assert!(browser.outbound.is_some(), "it has keys");
    for _ in 0..20 {
        call.says(LOUD);
        browser.says(&mut call, BROWSER, HALF);
        browser.pass(&mut call, 20);
    }
    let at_browser = level(*browser.heard.last().unwrap());
    assert!((at_browser - level(LOUD)).abs() < level(LOUD).abs() / 8, "{at_browser}");
    let at_caller = level(call.sent.last().unwrap().payload[80]);
    assert!((at_caller - level(HALF)).abs() < level(HALF).abs() / 8, "{at_caller}");
    assert!(!call.events().iter().any(|event| matches!(event, Event::SecondLost { .. })));
}

#[test]
fn browser_that_is_brought_in_and_then_gone_is_lost_and_the_call_goes_on() {
    for is_there in [false, true] {
        let (mut call, browser) = brought_in(LegRole::Bridge);
        if is_there {
            browser.checks(&mut call, BROWSER);
        }
        call.now += CONSENT_MAX + MS;
        call.says(0x80);
        call.session.handle_timeout(call.now);
        let expected = if is_there { TransportFailure::ConsentLost } else { TransportFailure::NoCheck };
        let events = call.events();
        let is_its = |event: &Event| matches!(event, Event::SecondLost { reason: EndReason::Transport(failure) } if *failure == expected);
        assert!(events.iter().any(is_its), "{events:?}");
        assert!(!call.session.is_ended());
    }
}
