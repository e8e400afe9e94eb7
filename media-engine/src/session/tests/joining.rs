//! Two sessions that are alive become one, and both phones notice nothing but another voice.

use tandem_audio::transcode::{Decoder, Encoder};
use tandem_rtp::srtp::{Inbound, MasterKey, Outbound, RTP_OVERHEAD_MAX, Suite};

use super::*;
use crate::leg::rtp::SrtpKeys;
use crate::session::joining::JoinError;
use crate::session::second::Role as LegRole;

const DESK: &str = "192.0.2.3:6000";

/// G.711 of full scale, and of a quarter of it.
const LOUD: u8 = 0x80;
const HALF: u8 = 0x9F;

/// Two calls, of which the other one's phone is the desk.
struct Both {
    call: Call,
    other: Call,
    /// The desk is the second leg of the call.
    is_joined: bool,
    /// What the desk reads protected packets with.
    inbound: Option<Inbound>,
    outbound: Option<Outbound>,
}

impl Both {
    fn started(call: SessionParameters, mut other: SessionParameters) -> Self {
        other.rtp.remote = Some(at(DESK));
        other.seed = 12_345;
        let (mut call, mut other) = (Call::new(call), Call::new(other));
        // To make a coder takes its time.
        (call.now, call.began) = (other.now, other.began);
        call.session.start(call.now + 5 * MS, call.now);
        other.session.start(other.now + 8 * MS, other.now);
        Self { call, other, is_joined: false, inbound: None, outbound: None }
    }

    fn joins(&mut self, role: LegRole) {
        let leg = self.other.session.lift(self.other.now).unwrap();
        self.call.session.land(leg, role, self.call.now).unwrap();
        self.other.session.leave("a".into(), self.other.now);
        self.is_joined = true;
    }

    fn desk_sends(&mut self, payload_type: u8, payload: &[u8], ticks: u32) {
        let mut packet = self.other.packet(payload_type, payload);
        self.other.timestamp = self.other.timestamp.wrapping_add(ticks);
        if let Some(outbound) = &mut self.outbound {
            let len = packet.len();
            packet.resize(len + RTP_OVERHEAD_MAX, 0);
            let len = outbound.protect_rtp(&mut packet, len).unwrap();
            packet.truncate(len);
        }
        match self.is_joined {
            true => self.call.session.handle_second_datagram(at(DESK), &packet, self.call.now),
            false => self.other.session.handle_datagram(at(DESK), &packet, self.other.now),
        }
    }

    /// 20 ms, of which nothing is missed.
    fn pass(&mut self) {
        for _ in 0..20 {
            self.call.pass(1);
            self.other.now = self.call.now;
            let mut out = [0; 1_472];
            let now = self.call.now;
            while !self.is_joined && self.call.session.poll_second(now, &mut out).is_some() {}
            loop {
                let transmit = match self.is_joined {
                    true => self.call.session.poll_second(now, &mut out),
                    false => self.other.session.poll_transmit(now, &mut out),
                };
                let Some(transmit) = transmit else { break };
                assert_eq!(transmit.to, at(DESK));
                let mut datagram = out[..transmit.len].to_vec();
                if let Some(inbound) = &mut self.inbound {
                    datagram = inbound.unprotect_rtp(&datagram).unwrap().to_vec();
                }
                let packet = Packet::parse(&datagram).unwrap();
                self.other.sent.push(Sent {
                    at: now - self.call.began,
                    to: transmit.to,
                    header: packet.header,
                    payload: packet.payload.to_vec(),
                });
            }
            self.other.session.handle_timeout(self.other.now);
        }
    }

    fn talk(&mut self, caller: u8, desk: u8, frames: usize) {
        for _ in 0..frames {
            self.call.says(caller);
            self.desk_sends(0, &[desk; 160], 160);
            self.pass();
        }
    }

    /// What a phone has got is one stream, a packet each 20 ms.
    fn check_streams(&self, ticks: u32) {
        for sent in [&self.call.sent, &self.other.sent] {
            for (before, after) in sent.iter().zip(&sent[1..]) {
                assert_eq!(after.header.ssrc, before.header.ssrc);
                assert_eq!(after.header.sequence.0, before.header.sequence.0.wrapping_add(1));
                let apart = after.at - before.at;
                assert!((19 * MS..=21 * MS).contains(&apart), "{apart:?}");
            }
        }
        for (before, after) in self.other.sent.iter().zip(&self.other.sent[1..]) {
            assert_eq!(after.header.timestamp.0, before.header.timestamp.0.wrapping_add(ticks));
        }
    }
}

fn is_near(heard: u8, said: u8) -> bool {
    let level = |code| i32::from(tandem_audio::g711::linear_from_ulaw(code));
    (level(heard) - level(said)).abs() < level(said).abs() / 8 + 64
}

fn last(call: &Call) -> u8 {
    call.sent.last().unwrap().payload[80]
}

#[test]
fn joined_phones_hear_each_other_in_the_streams_that_they_had() {
    let mut both = Both::started(with(websocket(Dialect::Pcm)), with(AgentParameters::Echo));
    let mut bot = Bot::meets(&mut both.call);
    both.talk(LOUD, HALF, 10);
    assert_eq!(last(&both.other), HALF, "its agent is the echo");
    both.joins(LegRole::Bridge);
    bot.hears(&mut both.call);
    both.talk(LOUD, HALF, 50);
    both.check_streams(160);
    assert_eq!(both.other.sent.len(), 60);
    assert!(is_near(last(&both.call), HALF), "{:x}", last(&both.call));
    assert!(is_near(last(&both.other), LOUD), "{:x}", last(&both.other));
    assert!(bot.hears(&mut both.call).iter().all(|message| !matches!(message, Message::Binary(_))));
    let stats = both.call.session.remove_second().unwrap();
    assert_eq!((stats.rtp_sent, stats.rtp_received, stats.rtp_lost), (60, 60, 0), "its whole life");
}

#[test]
fn session_whose_leg_has_gone_says_where_to_and_lets_its_agent_go() {
    let mut both = Both::started(with(AgentParameters::Echo), with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut both.other);
    both.talk(LOUD, HALF, 10);
    both.other.events();
    both.joins(LegRole::Bridge);
    let events = both.other.events();
    let [Event::Joined { into, stats }] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((&**into, stats.rtp_received, stats.rtp_sent), ("a", 10, 10));
    let told = bot.texts(&mut both.other);
    assert!(told.iter().any(|text| text.contains("stop") && text.contains("joined")), "{told:?}");
    assert!(both.other.session.is_ended() && both.other.session.poll_timeout().is_none());
    let mut out = [0; 1_472];
    assert!(both.other.session.poll_goodbye(both.other.now, &mut out).is_none(), "the stream goes on");
}

/// Loudness of the last packet, in either codec.
fn loudness(call: &Call, codec: Codec) -> i32 {
    let mut decoder = Decoder::new(codec, SampleRate::Hz16000);
    let mut samples = [0; 960];
    let last = call.sent.iter().rev().take(5).rev();
    let len = last.fold(0, |_, sent| decoder.decode(&sent.payload, &mut samples));
    samples[..len].iter().map(|sample| i32::from(*sample).abs()).max().unwrap_or_default()
}

#[test]
fn codecs_of_the_two_may_differ_and_go_on_from_where_they_were() {
    for (codec, payload_type, ticks) in [(Codec::G722, 9, 160), (Codec::Opus, 111, 960)] {
        for agent in [AgentParameters::Echo, websocket(Dialect::Pcm)] {
            let mut other = with(agent);
            other.rtp.codec = Some(codec);
            other.rtp.payload_type = PayloadType::new(payload_type).unwrap();
            let mut both = Both::started(with(websocket(Dialect::Pcm)), other);
            let mut encoder = Encoder::new(SampleRate::Hz16000, codec);
            let tone: Vec<i16> = (0..320)
                .map(|n| (f64::from(n) * std::f64::consts::TAU * 500.0 / 16_000.0).sin() * 8_000.0)
                .map(|sample| sample as i16)
                .collect();
            for frame in 0..100 {
                if frame == 50 {
                    both.joins(LegRole::Bridge);
                }
                let mut payload = [0; 1_000];
                let len = encoder.encode(&tone, &mut payload);
                // 500 Hz, of which no coder makes silence.
                let low = |sample: usize| (sample / 8).is_multiple_of(2);
                let says: [u8; 160] = std::array::from_fn(|n| if low(n) { HALF } else { HALF & 0x7F });
                both.call.says_from(PHONE, if frame < 75 { &[0xFF; 160] } else { &says });
                both.desk_sends(payload_type, &payload[..len], ticks);
                both.pass();
                if frame >= 54 {
                    let heard = loudness(&both.call, Codec::Pcmu);
                    assert!((6_000..10_000).contains(&heard), "{codec:?} {frame}: {heard}");
                }
            }
            both.check_streams(ticks);
            assert!(loudness(&both.other, codec) > 1_000, "{codec:?}: {}", loudness(&both.other, codec));
        }
    }
}

#[test]
fn keys_counters_and_replay_protection_of_a_protected_leg_go_with_it() {
    let suite = Suite::AesCm128HmacSha1_80;
    let key = |seed| MasterKey::new(suite, &vec![seed; suite.master_len()]).unwrap();
    let mut other = with(AgentParameters::Echo);
    other.rtp.srtp = Some(SrtpKeys { local: key(1), remote: key(2) });
    let mut both = Both::started(with(AgentParameters::Echo), other);
    both.inbound = Some(Inbound::new(key(1)).unwrap());
    both.outbound = Some(Outbound::new(key(2)).unwrap());
    // Its numbers wrap soon after the join: whoever begins anew has the wrong rollover counter.
    both.other.sequence = 65_500;
    both.talk(LOUD, HALF, 20);
    both.joins(LegRole::Conference);
    both.talk(LOUD, HALF, 40);
    both.check_streams(160);
    let mut replayed = both.other.packet(0, &[LOUD; 160]);
    replayed.resize(172 + RTP_OVERHEAD_MAX, 0);
    let len = both.outbound.as_mut().unwrap().protect_rtp(&mut replayed, 172).unwrap();
    for _ in 0..2 {
        both.call.session.handle_second_datagram(at(DESK), &replayed[..len], both.call.now);
    }
    both.call.session.handle_second_datagram(at(DESK), &[0x80; 172], both.call.now);
    let stats = both.call.session.second().unwrap().stats();
    assert_eq!((stats.rtp_received, stats.rtp_lost), (61, 0));
    assert_eq!(stats.srtp_rejected, 2, "one that came twice, and one without a tag");
}

#[test]
fn leg_that_cannot_land_goes_on_where_it_was() {
    let mut both = Both::started(with(AgentParameters::Echo), with(AgentParameters::Echo));
    both.talk(LOUD, HALF, 10);
    both.call.session.add_second(rtp(), LegRole::Listen, [1, 2, 3], both.call.now);
    let leg = both.other.session.lift(both.other.now).unwrap();
    assert_eq!(both.other.session.lift(both.other.now).unwrap_err(), JoinError::Busy);
    assert_eq!(both.other.session.stats(both.other.now).rtp_received, 10, "it is known meanwhile");
    let (error, leg) = both.call.session.land(leg, LegRole::Bridge, both.call.now).unwrap_err();
    assert_eq!(error, JoinError::Taken);
    both.other.session.restore(*leg, both.other.now);
    both.talk(LOUD, HALF, 10);
    both.check_streams(160);
    assert_eq!(last(&both.other), HALF);
    let stats = both.other.session.stats(both.other.now);
    assert_eq!((stats.rtp_received, stats.rtp_lost, stats.rtp_sent), (20, 0, 20));
    assert!(both.other.events().iter().all(|event| !matches!(event, Event::Joined { .. })));
}

#[test]
fn only_answered_calls_without_a_second_leg_are_joined() {
    let refused = |call: &Call| call.session.check_join().unwrap_err();
    let mut call = Call::new(with(AgentParameters::Echo));
    assert_eq!(refused(&call), JoinError::NotStarted);
    call.session.listen(call.now, call.now);
    assert_eq!(refused(&call), JoinError::NotStarted, "it is heard, and not answered");
    assert_eq!(call.session.lift(call.now).unwrap_err(), JoinError::NotStarted);
    call.session.start(call.now, call.now);
    assert_eq!(call.session.check_join(), Ok(()));
    call.session.add_second(rtp(), LegRole::Bridge, [1, 2, 3], call.now);
    assert_eq!(refused(&call), JoinError::Taken);
    call.session.close("caller");
    assert_eq!(refused(&call), JoinError::NoSession);
}

#[test]
fn joined_leg_that_falls_silent_is_lost_after_the_media_timeout_of_its_new_session() {
    let mut other = with(AgentParameters::Echo);
    other.media_timeout = Duration::from_secs(600);
    let mut both = Both::started(with(AgentParameters::Echo), other);
    both.talk(LOUD, HALF, 10);
    both.joins(LegRole::Bridge);
    both.call.pass(40_000);
    both.call.says(LOUD);
    both.call.pass(30_000);
    let lost = |event: &Event| matches!(event, Event::SecondLost { reason: EndReason::MediaTimeout });
    assert_eq!(both.call.events().iter().filter(|event| lost(event)).count(), 1);
    assert!(!both.call.session.is_ended());
}
