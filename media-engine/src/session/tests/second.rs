//! A second RTP leg beside the caller, in each of its roles.

use super::*;
use crate::session::second::Role as LegRole;

const DESK: &str = "192.0.2.2:5000";

/// G.711 of full scale, of a quarter of it, and of silence.
const LOUD: u8 = 0x80;
const HALF: u8 = 0x9F;

/// The phone of the second leg.
struct Desk {
    sequence: u16,
    timestamp: u32,
    heard: Vec<Vec<u8>>,
}

impl Desk {
    fn joins(call: &mut Call, role: LegRole) -> Self {
        let parameters = RtpParameters { remote: Some(at(DESK)), ..rtp() };
        assert!(call.session.add_second(parameters, role, [77, 0, 0], call.now + 3 * MS));
        Self { sequence: 0, timestamp: 0, heard: Vec::new() }
    }

    fn says(&mut self, call: &mut Call, code: u8) {
        self.sends(call, PayloadType::PCMU, &[code; 160]);
    }

    fn presses(&mut self, call: &mut Call, key: u8) {
        for n in 1..=6u16 {
            let [high, low] = (160 * n).to_be_bytes();
            let end = if n > 3 { 0x80 } else { 0 };
            self.sends(call, PayloadType::new(101).unwrap(), &[key, end | 10, high, low]);
        }
        self.timestamp += 1_600;
    }

    fn sends(&mut self, call: &mut Call, payload_type: PayloadType, payload: &[u8]) {
        let header = Header {
            marker: false,
            payload_type,
            sequence: SequenceNumber(self.sequence),
            timestamp: Timestamp(self.timestamp),
            ssrc: Ssrc(1_000),
        };
        self.sequence += 1;
        if payload_type == PayloadType::PCMU {
            self.timestamp += 160;
        }
        let mut packet = header.to_octets().to_vec();
        packet.extend_from_slice(payload);
        call.session.handle_second_datagram(at(DESK), &packet, call.now);
    }
}

/// 20 ms in which who is given a code says it; gives what caller and desk hear at their end.
fn talk(call: &mut Call, desk: &mut Desk, caller: Option<u8>, second: Option<u8>, frames: usize) {
    for _ in 0..frames {
        caller.into_iter().for_each(|code| call.says(code));
        second.into_iter().for_each(|code| desk.says(call, code));
        for _ in 0..20 {
            call.pass(1);
            let mut out = [0; 1_472];
            while let Some(transmit) = call.session.poll_second(call.now, &mut out) {
                assert_eq!(transmit.to, at(DESK));
                let packet = Packet::parse(&out[..transmit.len]).unwrap();
                assert_eq!(packet.header.ssrc, Ssrc(77));
                desk.heard.push(packet.payload.to_vec());
            }
        }
    }
}

fn last(heard: &[Vec<u8>]) -> u8 {
    heard.last().unwrap()[80]
}

fn caller_hears(call: &Call) -> u8 {
    call.sent.last().unwrap().payload[80]
}

/// What the bot heard last, as G.711.
fn bot_hears(bot: &mut Bot, call: &mut Call) -> Option<u8> {
    let mut frames = bot.hears(call).into_iter().filter_map(|message| match message {
        Message::Binary(octets) => Some(octets),
        _ => None,
    });
    let last = frames.next_back()?;
    let middle = last.len() / 4 * 2;
    Some(tandem_audio::g711::ulaw_from_linear(i16::from_le_bytes([last[middle], last[middle + 1]])))
}

fn is_near(heard: u8, said: u8) -> bool {
    let level = |code| i32::from(tandem_audio::g711::linear_from_ulaw(code));
    (level(heard) - level(said)).abs() < level(said).abs() / 8 + 64
}

#[test]
fn bridged_caller_and_second_leg_hear_each_other_and_the_agent_waits() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.hears(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Bridge);
    bot.speaks(&mut call, 100);
    talk(&mut call, &mut desk, Some(LOUD), Some(HALF), 10);
    assert!(is_near(caller_hears(&call), HALF), "{:x}", caller_hears(&call));
    assert!(is_near(last(&desk.heard), LOUD), "{:x}", last(&desk.heard));
    assert_eq!(bot_hears(&mut bot, &mut call), None);
    assert_eq!(call.session.playout().waiting_ms(), 100, "what the agent said waits");
    let stats = call.session.remove_second().unwrap();
    assert_eq!((stats.rtp_received, stats.rtp_sent, stats.rtp_lost), (10, 10, 0));
    call.pass(40);
    assert!(is_near(caller_hears(&call), LOUD), "the agent goes on");
}

#[test]
fn in_a_conference_each_hears_the_two_others() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Conference);
    talk(&mut call, &mut desk, Some(HALF), Some(HALF), 10);
    let double = {
        let level = tandem_audio::g711::linear_from_ulaw(HALF);
        tandem_audio::g711::ulaw_from_linear(level * 2)
    };
    let heard = bot_hears(&mut bot, &mut call).unwrap();
    assert!(is_near(heard, double), "{heard:x} of {double:x}");
    assert!(is_near(caller_hears(&call), HALF));
    assert!(is_near(last(&desk.heard), HALF));
    bot.speaks(&mut call, 200);
    talk(&mut call, &mut desk, None, None, 5);
    assert!(is_near(caller_hears(&call), LOUD));
    assert!(is_near(last(&desk.heard), LOUD), "{:x}", last(&desk.heard));
}

#[test]
fn caller_hears_ringing_while_the_agent_consults() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Consult { rings: true });
    bot.speaks(&mut call, 400);
    talk(&mut call, &mut desk, Some(LOUD), Some(HALF), 10);
    assert!(is_near(bot_hears(&mut bot, &mut call).unwrap(), HALF));
    assert!(is_near(last(&desk.heard), LOUD));
    let rings = &call.sent.last().unwrap().payload;
    assert!(rings.iter().any(|code| *code != rings[0]), "a tone, not {:x}", rings[0]);
    assert_eq!(call.session.playout().heard_ms(), 200, "what the second leg heard counts as heard");
    assert!(call.session.update_second(None, Some(LegRole::Bridge), call.now));
    talk(&mut call, &mut desk, Some(LOUD), Some(HALF), 4);
    assert!(is_near(caller_hears(&call), HALF), "put through");
}

#[test]
fn agent_consults_while_the_caller_is_on_hold() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    let held = RtpParameters { direction: Direction::Inactive, ..rtp() };
    call.session.update(held, call.now, call.now);
    bot.hears(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Consult { rings: false });
    bot.speaks(&mut call, 400);
    talk(&mut call, &mut desk, None, Some(HALF), 10);
    assert!(call.sent.is_empty(), "nothing to a caller on hold");
    assert!(is_near(last(&desk.heard), LOUD));
    assert!(is_near(bot_hears(&mut bot, &mut call).unwrap(), HALF));
}

#[test]
fn whisper_reaches_the_agent_alone_and_the_supervisor_hears_both() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Whisper);
    talk(&mut call, &mut desk, Some(0xFF), Some(LOUD), 10);
    assert!(is_near(bot_hears(&mut bot, &mut call).unwrap(), LOUD));
    assert_eq!(caller_hears(&call), 0xFF, "the caller hears no whisper");
    talk(&mut call, &mut desk, Some(HALF), None, 5);
    assert!(is_near(last(&desk.heard), HALF));
    bot.speaks(&mut call, 200);
    talk(&mut call, &mut desk, None, None, 5);
    assert!(is_near(last(&desk.heard), LOUD) && is_near(caller_hears(&call), LOUD));
}

#[test]
fn supervisor_is_heard_also_while_the_caller_sends_nothing() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Whisper);
    talk(&mut call, &mut desk, None, Some(LOUD), 5);
    assert!(is_near(bot_hears(&mut bot, &mut call).unwrap(), LOUD));
}

#[test]
fn listener_is_heard_by_nobody() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Listen);
    talk(&mut call, &mut desk, Some(HALF), Some(LOUD), 10);
    assert!(is_near(bot_hears(&mut bot, &mut call).unwrap(), HALF));
    assert_eq!(caller_hears(&call), 0xFF);
    assert!(is_near(last(&desk.heard), HALF));
}

#[test]
fn there_is_one_second_leg_at_a_time() {
    let mut call = Call::started(with(AgentParameters::Echo));
    Desk::joins(&mut call, LegRole::Listen);
    assert!(!call.session.add_second(rtp(), LegRole::Bridge, [0; 3], call.now));
    assert!(call.session.remove_second().is_some());
    assert!(call.session.remove_second().is_none());
    Desk::joins(&mut call, LegRole::Bridge);
    call.session.close("caller");
    assert!(call.session.second().is_none());
}

#[test]
fn legs_of_different_codecs_and_ptimes_are_bridged_for_a_minute_without_a_hole() {
    let mut call = Call::started(with(AgentParameters::Echo));
    let mut desk = Desk::joins(&mut call, LegRole::Bridge);
    let other = RtpParameters {
        remote: Some(at(DESK)),
        codec: Some(Codec::Pcma),
        payload_type: PayloadType::PCMA,
        ptime: Ptime::MS_30,
        ..rtp()
    };
    assert!(call.session.update_second(Some(other), None, call.now + 3 * MS));
    talk(&mut call, &mut desk, Some(LOUD), None, 3_000);
    assert!((1_995..=2_005).contains(&desk.heard.len()), "{}", desk.heard.len());
    let silent = desk.heard.iter().skip(3).filter(|payload| payload.contains(&0xD5)).count();
    assert_eq!(silent, 0, "holes");
    assert!(desk.heard.iter().all(|payload| payload.len() == 240));
}

/// Milliseconds of sound that the bot got.
fn bot_hears_ms(bot: &mut Bot, call: &mut Call) -> usize {
    let octets = bot.hears(call).into_iter().map(|message| match message {
        Message::Binary(octets) => octets.len(),
        _ => 0,
    });
    octets.sum::<usize>() / 32
}

/// A caller who has said by comfort noise that he pauses.
fn pausing(agent: AgentParameters, role: LegRole) -> (Call, Bot, Desk) {
    let mut parameters = with(agent);
    parameters.rtp.sound.comfort_noise_payload_type = PayloadType::new(13);
    let mut call = Call::started(parameters);
    let bot = Bot::meets(&mut call);
    let mut desk = Desk::joins(&mut call, role);
    talk(&mut call, &mut desk, Some(LOUD), None, 5);
    let noise = call.packet(13, &[40]);
    call.session.handle_datagram(at(PHONE), &noise, call.now);
    talk(&mut call, &mut desk, None, None, 5);
    (call, bot, desk)
}

#[test]
fn noise_of_a_caller_who_pauses_is_for_those_who_hear_him() {
    let (mut call, mut bot, mut desk) = pausing(websocket(Dialect::Pcm), LegRole::Bridge);
    bot.hears(&mut call);
    desk.heard.clear();
    talk(&mut call, &mut desk, None, None, 10);
    assert_eq!(bot_hears_ms(&mut bot, &mut call), 0, "the agent does not hear the caller");
    let silent = desk.heard.iter().filter(|payload| payload.iter().all(|code| *code == 0xFF)).count();
    assert_eq!((silent, desk.heard.len()), (0, 10), "the guest does");
}

#[test]
fn guest_is_mixed_into_the_noise_of_a_caller_who_pauses() {
    let (mut call, mut bot, mut desk) = pausing(websocket(Dialect::Pcm), LegRole::Conference);
    bot.hears(&mut call);
    talk(&mut call, &mut desk, None, Some(HALF), 50);
    let heard = bot_hears_ms(&mut bot, &mut call);
    assert!((960..=1_040).contains(&heard), "{heard} ms in a second");
}

#[test]
fn guest_is_heard_by_the_agent_while_nothing_is_accepted_of_the_caller() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Conference);
    let deaf = RtpParameters { direction: Direction::SendOnly, ..rtp() };
    call.session.update(deaf, call.now, call.now);
    bot.hears(&mut call);
    talk(&mut call, &mut desk, Some(LOUD), Some(HALF), 50);
    let heard = bot_hears_ms(&mut bot, &mut call);
    assert!((960..=1_040).contains(&heard), "{heard} ms in a second");
}

#[test]
fn keys_of_the_second_leg_are_told_to_an_agent_that_hears_it_while_the_caller_speaks() {
    for (role, told) in [(LegRole::Conference, 1), (LegRole::Whisper, 1), (LegRole::Listen, 0)] {
        let mut call = Call::started(with(websocket(Dialect::Pcm)));
        let mut bot = Bot::meets(&mut call);
        let mut desk = Desk::joins(&mut call, role);
        talk(&mut call, &mut desk, Some(LOUD), Some(LOUD), 3);
        call.says(LOUD);
        desk.presses(&mut call, 5);
        let keys = bot.texts(&mut call).into_iter().filter(|text| text.contains("dtmf")).count();
        assert_eq!(keys, told, "{role:?}");
    }
}

#[test]
fn key_that_was_pressed_in_another_role_is_not_told() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    let mut desk = Desk::joins(&mut call, LegRole::Bridge);
    talk(&mut call, &mut desk, Some(LOUD), Some(LOUD), 3);
    desk.presses(&mut call, 5);
    assert!(call.session.update_second(None, Some(LegRole::Conference), call.now));
    talk(&mut call, &mut desk, Some(LOUD), Some(LOUD), 20);
    assert!(bot.texts(&mut call).iter().all(|text| !text.contains("dtmf")));
}

fn losses(call: &mut Call) -> usize {
    let lost = |event: &Event| matches!(event, Event::SecondLost { reason: EndReason::MediaTimeout });
    call.events().iter().filter(|event| lost(event)).count()
}

/// The caller speaks on, a packet in half a minute, so that only the second leg is silent.
fn caller_alone(call: &mut Call, seconds: u32) {
    for _ in 0..seconds / 30 {
        call.says(LOUD);
        call.pass(30_000);
    }
}

#[test]
fn second_leg_that_vanishes_is_told_of_after_the_media_timeout_and_again_until_it_is_removed() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut desk = Desk::joins(&mut call, LegRole::Bridge);
    talk(&mut call, &mut desk, Some(LOUD), Some(LOUD), 50);
    call.says(LOUD);
    call.pass(58_000);
    call.says(LOUD);
    assert_eq!(losses(&mut call), 0);
    call.pass(2_000);
    assert_eq!(losses(&mut call), 1);
    caller_alone(&mut call, 120);
    assert_eq!(losses(&mut call), 2);
    call.session.remove_second();
    caller_alone(&mut call, 120);
    assert_eq!(losses(&mut call), 0);
    assert!(!call.session.is_ended());
}

#[test]
fn second_leg_that_rings_or_is_on_hold_owes_no_sound() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let ringing = RtpParameters { remote: None, codec: None, ..rtp() };
    assert!(call.session.add_second(ringing, LegRole::Listen, [77, 0, 0], call.now));
    caller_alone(&mut call, 300);
    assert_eq!(losses(&mut call), 0, "it rings");
    let held = RtpParameters { remote: Some(at(DESK)), direction: Direction::Inactive, ..rtp() };
    assert!(call.session.update_second(Some(held), None, call.now));
    caller_alone(&mut call, 3_000);
    assert_eq!(losses(&mut call), 0, "it holds");
    let talking = RtpParameters { remote: Some(at(DESK)), ..rtp() };
    assert!(call.session.update_second(Some(talking), None, call.now));
    call.pass(29_000);
    call.says(LOUD);
    call.pass(30_999);
    assert_eq!(losses(&mut call), 0, "it has its whole media timeout");
    call.pass(1);
    assert_eq!(losses(&mut call), 1);
}
