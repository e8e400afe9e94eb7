//! Phones that call each other over loopback, with real SIP and real sound.

use std::time::{Duration, Instant};

use tandem_audio::format::{Codec, Ptime};
use tandem_phone::{
    AnswerOptions, Call, CallError, CallOptions, EndedBy, FailedBy, Incoming, Phone, PhoneConfig,
    SipTransport,
};

/// Patience where nothing should take long; the machine may be busy.
const SOON: Duration = Duration::from_secs(5);

async fn phone(transport: SipTransport) -> Phone {
    Phone::bind(PhoneConfig { transport, ..PhoneConfig::default() }).await.expect("loopback has free ports")
}

async fn phones() -> (Phone, Phone) {
    (phone(SipTransport::Udp).await, phone(SipTransport::Udp).await)
}

/// A call that is up, seen from both ends.
async fn connect(
    caller: &Phone,
    callee: &Phone,
    options: CallOptions,
    answer: AnswerOptions,
) -> (Call, Call) {
    let uri = callee.uri();
    let (call, answered) = tokio::join!(caller.call(&uri, options), callee.answer_next(answer));
    (call.expect("the call is answered"), answered.expect("the answer is acknowledged"))
}

async fn connected() -> (Call, Call) {
    let (caller, callee) = phones().await;
    connect(&caller, &callee, CallOptions::default(), AnswerOptions::default()).await
}

/// What becomes of a call that the callee treats like this.
async fn refused(options: CallOptions, treat: impl AsyncFnOnce(Incoming)) -> CallError {
    let (caller, callee) = phones().await;
    let uri = callee.uri();
    let take = async { treat(callee.next_call().await.expect("the line is open")).await };
    let (call, ()) = tokio::join!(caller.call(&uri, options), take);
    call.expect_err("the call is refused")
}

/// Speech to a machine: bursts whose pitch glides, so that it is like itself at one place only.
fn speech(ms: usize) -> Vec<i16> {
    let mut phase = 0.0_f64;
    let sample = |n: usize| {
        let seconds = n as f64 / 8_000.0;
        phase += std::f64::consts::TAU * (250.0 + 900.0 * (seconds * 0.7).fract()) / 8_000.0;
        let syllable = (std::f64::consts::TAU * 4.0 * seconds).sin().abs();
        (phase.sin() * syllable * 12_000.0) as i16
    };
    (0..ms * 8).map(sample).collect()
}

/// The likeness, 1 at most, of the source and the stretch of the recording where its first quarter of a second fits best.
fn likeness(source: &[i16], heard: &[i16]) -> f64 {
    let at = |source: &[i16], offset: usize| {
        let (mut product, mut ours, mut theirs) = (0_i64, 0_i64, 1_i64);
        for (a, b) in source.iter().zip(&heard[offset..]) {
            let (a, b) = (i64::from(*a), i64::from(*b));
            product += a * b;
            ours += a * a;
            theirs += b * b;
        }
        product as f64 / (ours as f64 * theirs as f64).sqrt()
    };
    let Some(last) = heard.len().checked_sub(source.len()) else { return 0.0 };
    let start = &source[..source.len().min(2_000)];
    let best = (0..=last).max_by(|a, b| at(start, *a).total_cmp(&at(start, *b)));
    best.map_or(0.0, |offset| at(source, offset))
}

#[tokio::test]
async fn both_hear_what_the_other_says() {
    let (caller, callee) = connected().await;
    let (from_caller, from_callee) = (speech(1_000), speech(800));
    tokio::join!(caller.play(&from_caller), callee.play(&from_callee));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(likeness(&from_caller, &callee.heard().samples) > 0.99);
    assert!(likeness(&from_callee, &caller.heard().samples) > 0.99);
}

#[tokio::test]
async fn every_codec_and_packet_time_carries_speech() {
    for (codec, ptime) in
        [(Codec::Pcma, Ptime::MS_30), (Codec::L16_8k, Ptime::MS_10), (Codec::L16_16k, Ptime::MS_20)]
    {
        let (caller, callee) = phones().await;
        let options = CallOptions { codecs: vec![codec], ptime, ..CallOptions::default() };
        let answer = AnswerOptions { codecs: Codec::ALL.to_vec(), ..AnswerOptions::default() };
        let (caller, callee) = connect(&caller, &callee, options, answer).await;
        assert_eq!((callee.negotiated().codec, callee.negotiated().ptime), (codec, ptime));
        let said = speech(500);
        callee.play(&said).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let likeness = likeness(&said, &caller.heard().samples);
        assert!(likeness > 0.98, "{codec} {ptime}: {likeness}");
    }
}

#[tokio::test]
async fn a_call_over_tcp_is_like_one_over_udp() {
    let (caller, callee) = (phone(SipTransport::Tcp).await, phone(SipTransport::Tcp).await);
    let (caller, callee) = connect(&caller, &callee, CallOptions::default(), AnswerOptions::default()).await;
    let said = speech(300);
    caller.play(&said).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(likeness(&said, &callee.heard().samples) > 0.99);
    assert_eq!(caller.hang_up().await.ended_by, Some(EndedBy::Us));
    assert_eq!(callee.ended().await.ended_by, Some(EndedBy::Peer));
}

#[tokio::test]
async fn an_offer_may_come_with_the_answer() {
    let (caller, callee) = phones().await;
    let options = CallOptions { delayed_offer: true, codecs: vec![Codec::Pcma], ..CallOptions::default() };
    let (caller, callee) = connect(&caller, &callee, options, AnswerOptions::default()).await;
    assert_eq!((caller.negotiated().codec, callee.negotiated().codec), (Codec::Pcma, Codec::Pcma));
    let said = speech(300);
    tokio::join!(caller.play(&said), callee.play(&said));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(likeness(&said, &callee.heard().samples) > 0.99);
    assert!(likeness(&said, &caller.heard().samples) > 0.99);
}

#[tokio::test]
async fn the_report_tells_how_the_call_came_up_and_ended() {
    let (caller, callee) = phones().await;
    let answer = AnswerOptions { ring_for: Duration::from_millis(200), ..AnswerOptions::default() };
    let (caller, callee) = connect(&caller, &callee, CallOptions::default(), answer).await;
    caller.play(&speech(500)).await;
    let report = caller.hang_up().await;
    assert!(report.setup_ms >= 200.0, "{report:?}");
    assert!(report.ringing_ms.is_some_and(|ms| ms < report.setup_ms), "{report:?}");
    assert_eq!(report.provisional, [180]);
    assert_eq!((report.ended_by, report.rtp.lost, report.rtp.duplicated), (Some(EndedBy::Us), 0, 0));
    assert!(report.duration >= Duration::from_millis(480));
    assert!(report.rtp.sent >= 25 && report.rtp.received >= 20, "{report:?}");
    assert_eq!(callee.ended().await.ended_by, Some(EndedBy::Peer));
}

#[tokio::test]
async fn the_first_invite_leaves_at_once() {
    let (caller, _callee) = connected().await;
    assert!(caller.report().setup_ms < 400.0, "T1 is 500 ms: {:?}", caller.report());
}

#[tokio::test]
async fn a_refusal_is_told_with_its_status() {
    let error = refused(CallOptions::default(), async |incoming| incoming.reject(486)).await;
    assert_eq!((error.status, error.ending), (Some(486), FailedBy::Refusal));
    assert_eq!(error.to_string(), "call failed: 486 Busy Here");
}

#[tokio::test]
async fn ringing_before_a_refusal_is_remembered() {
    let error = refused(CallOptions::default(), async |incoming| {
        incoming.ring();
        incoming.reject(603);
    })
    .await;
    assert_eq!((error.status, error.provisional), (Some(603), vec![180]));
}

#[tokio::test]
async fn a_call_nobody_wants_gets_480() {
    let error = refused(CallOptions::default(), async |incoming| drop(incoming)).await;
    assert_eq!(error.status, Some(480));
}

#[tokio::test]
async fn without_a_common_codec_the_call_gets_488() {
    let options = CallOptions { codecs: vec![Codec::L16_16k], ..CallOptions::default() };
    let error = refused(options, async |incoming| {
        let error = incoming.answer(AnswerOptions::default()).await.expect_err("nothing in common");
        assert_eq!((error.ending, error.status), (FailedBy::Media, Some(488)));
    })
    .await;
    assert_eq!((error.status, error.ending), (Some(488), FailedBy::Refusal));
}

#[tokio::test]
async fn a_caller_out_of_patience_gives_up_and_the_callee_knows() {
    let options = CallOptions { timeout: Duration::from_secs(1), ..CallOptions::default() };
    let error = refused(options, async |incoming| {
        let ringing = AnswerOptions { ring_for: SOON, ..AnswerOptions::default() };
        let error = incoming.answer(ringing).await.expect_err("the caller gives up");
        assert_eq!(error.ending, FailedBy::Cancelled);
    })
    .await;
    assert_eq!((error.ending, error.provisional), (FailedBy::Timeout, vec![180]));
}

#[tokio::test]
async fn a_number_that_is_no_number_is_not_even_tried() {
    let phone = phone(SipTransport::Udp).await;
    let error = phone.call("not a uri", CallOptions::default()).await.expect_err("this cannot be called");
    assert_eq!(error.ending, FailedBy::Local);
}

#[tokio::test]
async fn nobody_at_a_tcp_port_is_known_at_once() {
    let callee = phone(SipTransport::Tcp).await.uri();
    let caller = phone(SipTransport::Tcp).await;
    let start = Instant::now();
    let error = caller.call(&callee, CallOptions::default()).await.expect_err("that phone is gone");
    assert_eq!(error.ending, FailedBy::NoResponse);
    assert!(start.elapsed() < SOON);
}

#[tokio::test]
async fn keys_arrive_in_order() {
    let (caller, callee) = connected().await;
    caller.send_dtmf("42#").await.expect("both speak telephone-event");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(callee.heard().digits, "42#");
    assert!(caller.send_dtmf("x").await.is_err());
}

#[tokio::test]
async fn who_is_held_falls_silent_until_the_hold_ends() {
    let (caller, callee) = connected().await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    caller.hold().await.expect("the peer takes a hold");
    tokio::time::sleep(Duration::from_millis(100)).await;
    let held = caller.report().rtp.received;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(caller.report().rtp.received, held);
    caller.resume().await.expect("the peer takes the end of a hold");
    let said = speech(300);
    callee.play(&said).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(likeness(&said, &caller.heard().samples) > 0.99);
    assert_eq!(caller.report().rtp.lost, 0);
}

#[tokio::test]
async fn response_latency_is_what_the_caller_waited() {
    let (caller, callee) = connected().await;
    let answer = async {
        callee.wait_for_speech(SOON).await.expect("the question is heard");
        assert!(callee.wait_until_quiet(Duration::from_millis(500), SOON).await);
        callee.play(&speech(400)).await
    };
    let ask = async {
        let asked = caller.play(&speech(600)).await.expect("the call is up");
        (asked, caller.wait_for_speech(SOON).await.expect("the answer is heard"))
    };
    let (answered, (asked, heard)) = tokio::join!(answer, ask);
    let waited_ms = (heard - asked.ended).as_secs_f64() * 1_000.0;
    let report = caller.report();
    let [response_ms] = report.response_ms[..] else { panic!("one turn: {report:?}") };
    // The last frame of a syllable may be too soft to count, and the answer's first one, too.
    assert!((response_ms - waited_ms).abs() <= 45.0, "{response_ms} for {waited_ms}");
    assert!((500.0..1_500.0).contains(&response_ms), "{response_ms}");
    assert!(answered.is_some_and(|played| played.started <= heard));
}

#[tokio::test]
async fn waiting_ends_with_the_call() {
    let (caller, callee) = connected().await;
    let hang_up = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop(callee);
    };
    let long = Duration::from_secs(60);
    let (speech, ()) = tokio::join!(caller.wait_for_speech(long), hang_up);
    assert_eq!(speech, None);
    assert_eq!(caller.ended().await.ended_by, Some(EndedBy::Peer));
    assert_eq!(caller.play(&[0; 160]).await, None);
}

#[tokio::test]
async fn a_phone_takes_many_calls_at_once() {
    let (caller, callee) = phones().await;
    let mut calls = Vec::new();
    for _ in 0..5 {
        calls.push(connect(&caller, &callee, CallOptions::default(), AnswerOptions::default()).await);
    }
    for (call, _) in calls {
        assert_eq!(call.hang_up().await.ended_by, Some(EndedBy::Us));
    }
}
