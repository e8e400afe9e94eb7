//! What is made of the caller's speech: barge-in, silence that is not sent, nobody who speaks, comfort noise.

use tandem_audio::g711;

use super::*;
use crate::session::second::Role as LegRole;
use crate::session::speech::{BargeIn, DECIDE_WITHIN, NOISE_LEVEL};

fn with_speech(speech: SpeechParameters) -> SessionParameters {
    SessionParameters { speech, ..with(websocket(Dialect::Pcm)) }
}

fn barging(barge_in: BargeIn) -> Call {
    Call::started(with_speech(SpeechParameters { barge_in, ..SpeechParameters::default() }))
}

/// A packet of noise of this peak: quiet, a line on which nobody speaks; loud, somebody who does, as far as a detector knows.
pub(super) fn noise(peak: i32, seed: &mut u32) -> [u8; 160] {
    let mut samples = [0; 160];
    for sample in &mut samples {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *sample = ((*seed >> 16) as i32 % (2 * peak + 1) - peak) as i16;
    }
    let mut codes = [0; 160];
    g711::encode_ulaw(&samples, &mut codes);
    codes
}

impl Call {
    /// The caller's line for so long, packet by packet; says when each packet came.
    fn line(&mut self, peak: i32, ms: u32) {
        let mut seed = 1 + self.sequence as u32;
        for _ in 0..ms / 20 {
            self.says_from(PHONE, &noise(peak, &mut seed));
            self.pass(20);
        }
    }

    fn is_quiet_since(&self) -> Duration {
        let loud = self.sent.iter().rposition(|sent| sent.payload[0] != 0xFF).expect("something was heard");
        self.sent[loud + 1].at
    }
}

const QUIET: i32 = 30;
const LOUD: i32 = 6_000;

#[test]
fn a_barge_in_that_clears_is_silence_at_the_wire_within_40_ms_of_the_onset() {
    let mut call = barging(BargeIn::Clear);
    let mut bot = Bot::meets(&mut call);
    call.line(QUIET, 400);
    bot.speaks(&mut call, 4_000);
    bot.asks(&mut call, r#"{"event":"mark","name":"end"}"#);
    call.line(QUIET, 400);
    bot.texts(&mut call);
    // The onset is the first sample of the next packet, which was complete 20 ms after it.
    let onset = call.now - call.began - 20 * MS;
    call.line(LOUD, 400);
    let took = call.is_quiet_since() - onset;
    assert!(took <= 40 * MS, "{took:?} after the first sound");
    let texts = bot.texts(&mut call);
    assert!(texts[0].contains("speech") && texts[1].contains("cleared"), "{texts:?}");
    assert!(texts.iter().all(|text| !text.contains("mark")), "`cleared` stands for it");
    assert_eq!(call.session.playout().waiting_ms(), 0);
}

#[test]
fn a_barge_in_that_pauses_goes_on_where_the_agent_resumes_it() {
    let mut call = barging(BargeIn::Pause);
    let mut bot = Bot::meets(&mut call);
    call.line(QUIET, 400);
    bot.speaks(&mut call, 2_000);
    call.line(QUIET, 200);
    call.line(LOUD, 300);
    let waiting = call.session.playout().waiting_ms();
    assert!(waiting > 1_500, "it is held, not dropped: {waiting}");
    let texts = bot.texts(&mut call);
    assert!(texts.iter().any(|text| text.contains("paused")), "{texts:?}");
    call.line(LOUD, 200);
    assert_eq!(call.session.playout().waiting_ms(), waiting);
    bot.asks(&mut call, r#"{"event":"resume"}"#);
    call.line(LOUD, 200);
    assert!(call.session.playout().waiting_ms() < waiting, "the caller may go on speaking");
    call.line(QUIET, 3_000);
    assert_eq!(call.session.playout().heard_ms(), 2_000);
}

#[test]
fn a_pause_that_the_agent_does_not_decide_on_ends_a_second_after_the_caller() {
    let mut call = barging(BargeIn::Pause);
    let bot = Bot::meets(&mut call);
    call.line(QUIET, 400);
    bot.speaks(&mut call, 2_000);
    call.line(QUIET, 200);
    call.line(LOUD, 300);
    let waiting = call.session.playout().waiting_ms();
    call.line(QUIET, 300 + DECIDE_WITHIN.as_millis() as u32 - 40);
    assert_eq!(call.session.playout().waiting_ms(), waiting);
    call.line(QUIET, 200);
    assert!(call.session.playout().waiting_ms() < waiting);
}

#[test]
fn nobody_barges_into_last_words_or_without_having_asked_for_it() {
    let mut call = barging(BargeIn::Clear);
    let bot = Bot::meets(&mut call);
    call.line(QUIET, 400);
    bot.speaks(&mut call, 1_000);
    bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    call.line(LOUD, 400);
    assert!(call.session.playout().waiting_ms() > 500);
    let mut call = barging(BargeIn::Off);
    let bot = Bot::meets(&mut call);
    call.line(QUIET, 400);
    bot.speaks(&mut call, 1_000);
    call.line(LOUD, 400);
    assert!(call.session.playout().waiting_ms() > 500);
}

#[test]
fn suppressed_silence_is_a_gap_and_the_word_after_it_is_whole() {
    let wanted = SpeechParameters { suppress_silence: true, ..SpeechParameters::default() };
    let mut call = Call::started(with_speech(wanted));
    let mut bot = Bot::meets(&mut call);
    bot.hears(&mut call);
    call.line(QUIET, 1_000);
    assert!(bot.hears(&mut call).is_empty());
    call.line(LOUD, 100);
    let messages = bot.hears(&mut call);
    let frames = messages.iter().filter(|message| matches!(message, Message::Binary(_))).count();
    assert!((13..=15).contains(&frames), "200 ms before the onset, and 100 of it: {frames}");
    let Message::Text(gap) = messages
        .iter()
        .find(|message| matches!(message, Message::Text(text) if text.contains("gap")))
        .unwrap()
    else {
        panic!("a text")
    };
    let ms: u64 = gap.split("\"ms\":").nth(1).unwrap().trim_end_matches('}').parse().unwrap();
    assert!((780..=840).contains(&ms), "{ms} of 1 000, but the last 200");
    call.line(QUIET, 280);
    assert!((13..=15).contains(&bot.hears(&mut call).len()), "the hangover");
    call.line(QUIET, 400);
    let messages = bot.hears(&mut call);
    assert!(messages.len() < 4, "silence again: {messages:?}");
}

#[test]
fn idle_counts_from_the_last_sound_that_was_heard_and_is_told_once() {
    let wanted = SpeechParameters { idle: Some(3_000 * MS), ..SpeechParameters::default() };
    let mut call = Call::started(with_speech(wanted));
    let bot = Bot::meets(&mut call);
    call.line(QUIET, 1_000);
    bot.speaks(&mut call, 2_000);
    call.line(QUIET, 4_900);
    call.events();
    assert!(call.session.stats(call.now).idle_ms.is_some_and(|ms| (2_850..=2_950).contains(&ms)));
    call.line(QUIET, 5_000);
    let idle: Vec<Event> =
        call.events().into_iter().filter(|event| matches!(event, Event::Idle { .. })).collect();
    assert!(matches!(idle[..], [Event::Idle { idle_ms: 3_000..=3_020 }]), "{idle:?}");
    call.line(LOUD, 400);
    assert_eq!(call.session.stats(call.now).idle_ms, Some(0));
    assert_eq!(call.session.stats(call.now).caller_speaks, Some(true));
    call.line(QUIET, 3_400);
    assert!(call.events().iter().any(|event| matches!(event, Event::Idle { .. })), "after the caller, anew");
}

#[test]
fn silence_that_an_agent_sends_and_a_hold_are_minded_rightly() {
    let wanted = SpeechParameters { idle: Some(1_000 * MS), ..SpeechParameters::default() };
    let mut call = Call::started(with_speech(wanted));
    let bot = Bot::meets(&mut call);
    bot.says(&mut call, Opcode::Binary, &[0; 32 * 3_000]);
    call.line(QUIET, 1_100);
    assert!(call.events().iter().any(|event| matches!(event, Event::Idle { .. })), "zeros are no sound");
    let held = RtpParameters { direction: Direction::ReceiveOnly, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.pass(3_000);
    assert!(!call.events().iter().any(|event| matches!(event, Event::Idle { .. })));
}

#[test]
fn comfort_noise_takes_the_place_of_silence_where_it_was_negotiated() {
    let wanted = SpeechParameters { comfort_noise: true, ..SpeechParameters::default() };
    let mut parameters = with_speech(wanted);
    parameters.rtp.sound.comfort_noise_payload_type = PayloadType::new(13);
    let mut call = Call::started(parameters);
    let bot = Bot::meets(&mut call);
    call.pass(1_400);
    let (noise, sound): (Vec<_>, Vec<_>) =
        call.sent.drain(..).partition(|sent| sent.header.payload_type.get() == 13);
    assert_eq!((noise.len(), sound.len()), (3, 10), "after a fifth of a second, and twice a second");
    assert!(noise.iter().all(|sent| sent.payload == [NOISE_LEVEL] && !sent.header.marker));
    bot.speaks(&mut call, 100);
    call.pass(100);
    assert!(call.sent[0].header.marker, "a talkspurt begins");
    let since = call.sent[0].header.timestamp.distance_from(noise[0].header.timestamp);
    assert_eq!(since as u128, (call.sent[0].at - noise[0].at).as_millis() * 8);
}

/// A second leg that says nothing.
fn joined(call: &mut Call, role: LegRole) {
    assert!(call.session.add_second(rtp(), role, [77, 0, 0], call.now + 3 * MS));
}

#[test]
fn nobody_barges_into_an_agent_that_does_not_hear_him() {
    for role in [LegRole::Bridge, LegRole::Consult { rings: true }] {
        let wanted = SpeechParameters {
            barge_in: BargeIn::Clear,
            suppress_silence: true,
            ..SpeechParameters::default()
        };
        let mut call = Call::started(with_speech(wanted));
        let mut bot = Bot::meets(&mut call);
        call.line(QUIET, 400);
        joined(&mut call, role);
        bot.hears(&mut call);
        bot.speaks(&mut call, 4_000);
        call.line(LOUD, 400);
        assert!(call.session.playout().waiting_ms() > 3_000, "{role:?}");
        assert_eq!(bot.hears(&mut call), [], "it neither hears him nor hears of him");
        call.session.remove_second();
        assert!(bot.texts(&mut call)[0].contains("speech"), "he speaks still");
        call.line(LOUD, 100);
        assert!(bot.hears(&mut call).len() >= 4, "his words are not kept back");
    }
}

#[test]
fn agent_that_hears_the_caller_no_more_is_told_that_he_is_silent() {
    let mut call = barging(BargeIn::Off);
    let mut bot = Bot::meets(&mut call);
    call.line(QUIET, 400);
    call.line(LOUD, 400);
    assert!(bot.texts(&mut call).iter().any(|text| text.contains("true")));
    joined(&mut call, LegRole::Bridge);
    assert!(bot.texts(&mut call).iter().any(|text| text.contains("speech") && text.contains("false")));
    call.line(QUIET, 1_000);
    assert!(bot.texts(&mut call).iter().all(|text| !text.contains("speech")), "once");
}

fn is_idle(call: &mut Call) -> bool {
    call.events().iter().any(|event| matches!(event, Event::Idle { .. }))
}

#[test]
fn silence_counts_neither_while_somebody_else_takes_part_nor_from_before() {
    for role in [LegRole::Bridge, LegRole::Conference, LegRole::Consult { rings: true }] {
        let wanted = SpeechParameters { idle: Some(1_000 * MS), ..SpeechParameters::default() };
        let mut call = Call::started(with_speech(wanted));
        Bot::meets(&mut call);
        call.line(QUIET, 400);
        joined(&mut call, role);
        call.line(QUIET, 3_000);
        assert!(!is_idle(&mut call), "{role:?}");
        assert_eq!(call.session.stats(call.now).idle_ms, None, "{role:?}");
        call.session.remove_second();
        call.line(QUIET, 900);
        assert!(!is_idle(&mut call), "{role:?}: anew from here");
        call.line(QUIET, 200);
        assert!(is_idle(&mut call), "{role:?}");
    }
    for role in [LegRole::Whisper, LegRole::Listen] {
        let wanted = SpeechParameters { idle: Some(1_000 * MS), ..SpeechParameters::default() };
        let mut call = Call::started(with_speech(wanted));
        Bot::meets(&mut call);
        joined(&mut call, role);
        call.line(QUIET, 1_100);
        assert!(is_idle(&mut call), "{role:?}: agent and caller are by themselves");
    }
}

#[test]
fn agent_that_hears_of_a_transfer_has_the_whole_time_to_speak() {
    let wanted = SpeechParameters { idle: Some(1_000 * MS), ..SpeechParameters::default() };
    let mut call = Call::started(with_speech(wanted));
    Bot::meets(&mut call);
    call.line(QUIET, 900);
    let failed = Notice::Transfer { status: "failed".into(), reason: "busy".into() };
    call.session.tell(&failed, call.now);
    call.line(QUIET, 900);
    assert!(!is_idle(&mut call));
    call.line(QUIET, 200);
    assert!(is_idle(&mut call));
}
