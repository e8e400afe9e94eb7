//! Offer and answer between two sides, and against awkward peers.

use proptest::prelude::*;
use tandem_audio::format::{ClockRate, Codec, Ptime, SampleRate};
use tandem_sdp::negotiate::OpusWishes;
use tandem_sdp::{
    Direction, LocalMedia, NegotiateError, Negotiated, SessionDescription, accept_answer, answer, offer,
};

fn local() -> LocalMedia {
    LocalMedia::g711([127, 0, 0, 1].into(), 20_000, 1)
}

/// An offer with these lines after `m=audio 4000 RTP/AVP {formats}`.
fn audio(formats: &str, lines: &str) -> SessionDescription {
    format!("v=0\no=- 1 1 IN IP4 192.0.2.1\ns=-\nc=IN IP4 192.0.2.1\nt=0 0\nm=audio 4000 RTP/AVP {formats}\n{lines}")
        .parse()
        .expect("the lines are a session description")
}

fn agree(formats: &str, lines: &str) -> Negotiated {
    answer(&audio(formats, lines), &local()).expect("the offer can be answered").1
}

fn direction(lines: &str) -> Direction {
    agree("0", lines).direction
}

#[test]
fn no_common_codec_names_what_was_offered() {
    let refusal = answer(&audio("18 97 3", "a=rtpmap:97 iLBC/8000\n"), &local()).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "no common codec, offered are payload type 18, iLBC/8000, payload type 3"
    );
}

#[test]
fn telephone_event_alone_is_not_a_codec() {
    let refusal = answer(&audio("101", "a=rtpmap:101 telephone-event/8000\n"), &local()).unwrap_err();
    assert_eq!(refusal, NegotiateError::NoCommonCodec { offered: vec!["telephone-event/8000".to_owned()] });
}

#[test]
fn offerers_order_decides() {
    assert_eq!(agree("8 0", "").codec, Codec::Pcma);
    assert_eq!(agree("0 8", "").codec, Codec::Pcmu);
}

fn wide() -> LocalMedia {
    LocalMedia { codecs: Codec::ALL.to_vec(), comfort_noise: true, ..local() }
}

#[test]
fn opus_comes_first_only_where_the_offerer_puts_it_first() {
    let lines = "a=rtpmap:107 opus/48000/2\n";
    for (formats, codec) in [("107 9 0", Codec::Opus), ("9 107 0", Codec::G722), ("0 9 107", Codec::Pcmu)] {
        assert_eq!(answer(&audio(formats, lines), &wide()).unwrap().1.codec, codec);
    }
}

#[test]
fn g722_is_static_and_ticks_at_8_khz() {
    let negotiated = answer(&audio("9 101", "a=rtpmap:101 telephone-event/8000\n"), &wide()).unwrap().1;
    assert_eq!((negotiated.codec, negotiated.payload_type), (Codec::G722, 9));
    assert_eq!((negotiated.clock, negotiated.telephone_event_payload_type), (ClockRate::HZ_8000, Some(101)));
}

#[test]
fn opus_is_answered_with_its_events_and_what_the_peer_asks_of_it() {
    let lines = "a=rtpmap:111 OPUS/48000/2\n\
        a=fmtp:111 minptime=10; useinbandfec=1;usedtx=1;maxplaybackrate=12000; maxaveragebitrate=24000\n\
        a=rtpmap:101 telephone-event/8000\na=rtpmap:110 telephone-event/48000\na=ptime:30\n";
    let (described, negotiated) = answer(&audio("111 101 110 13", lines), &wide()).unwrap();
    assert_eq!((negotiated.codec, negotiated.payload_type), (Codec::Opus, 111));
    assert_eq!(negotiated.telephone_event_payload_type, Some(110), "it must tick as the codec does");
    assert_eq!(negotiated.ptime, Ptime::MS_20, "Opus has no packet of 30 ms");
    assert_eq!(negotiated.comfort_noise_payload_type, None, "Opus has its own");
    let wishes = OpusWishes {
        fec: true,
        dtx: true,
        max_playback: Some(SampleRate::Hz16000),
        bitrate_max: Some(24_000),
    };
    assert_eq!(negotiated.opus, wishes);
    let text = described.to_string();
    for line in ["a=rtpmap:111 opus/48000/2", "a=fmtp:111 useinbandfec=1", "a=maxptime:60", "a=ptime:20"] {
        assert!(text.lines().any(|have| have == line), "{line} in {text}");
    }
}

#[test]
fn comfort_noise_is_taken_with_a_codec_that_ticks_as_it_does() {
    let noise = |formats: &str, lines: &str, local: &LocalMedia| {
        answer(&audio(formats, lines), local).unwrap().1.comfort_noise_payload_type
    };
    assert_eq!(noise("0 13", "", &wide()), Some(13));
    assert_eq!(noise("0 98", "a=rtpmap:98 CN/8000\n", &wide()), Some(98));
    assert_eq!(noise("9 13", "", &wide()), None, "G.722 samples at twice its clock");
    assert_eq!(noise("0 13", "", &LocalMedia { comfort_noise: false, ..wide() }), None);
    assert_eq!(noise("0", "", &wide()), None);
}

#[test]
fn a_static_number_with_another_rtpmap_means_what_the_rtpmap_says() {
    let negotiated = agree("0 8", "a=rtpmap:0 G726-32/8000\n");
    assert_eq!((negotiated.codec, negotiated.payload_type), (Codec::Pcma, 8));
}

#[test]
fn linear_pcm_is_taken_at_its_dynamic_number_and_clock() {
    let local = LocalMedia { codecs: vec![Codec::L16_16k, Codec::Pcmu], ..local() };
    let lines =
        "a=rtpmap:110 L16/16000/1\na=rtpmap:101 telephone-event/8000\na=rtpmap:102 telephone-event/16000\n";
    let (_, negotiated) = answer(&audio("110 0 101 102", lines), &local).unwrap();
    assert_eq!((negotiated.codec, negotiated.payload_type), (Codec::L16_16k, 110));
    assert_eq!((negotiated.clock, negotiated.telephone_event_payload_type), (ClockRate::HZ_16000, Some(102)));
}

#[test]
fn stereo_linear_pcm_is_not_ours() {
    let local = LocalMedia { codecs: vec![Codec::L16_16k, Codec::Pcmu], ..local() };
    let (_, negotiated) = answer(&audio("110 0", "a=rtpmap:110 L16/16000/2\n"), &local).unwrap();
    assert_eq!(negotiated.codec, Codec::Pcmu);
}

#[test]
fn ptime_is_never_more_than_a_packet_of_the_codec_holds() {
    let wide = LocalMedia { codecs: vec![Codec::L16_16k], ptime: Ptime::MS_60, ..local() };
    let wide_offer = |lines: &str| audio("97", &format!("a=rtpmap:97 L16/16000\n{lines}"));
    for (lines, ms) in [("a=ptime:60\n", 40), ("a=ptime:46\n", 40), ("a=ptime:30\n", 30), ("", 40)] {
        let (description, negotiated) = answer(&wide_offer(lines), &wide).expect("the offer can be answered");
        assert_eq!(negotiated.ptime.as_ms(), ms, "{lines}");
        assert_eq!(description.media[0].ptime_ms(), Some(ms), "{lines}");
        let accepted =
            accept_answer(&offer(&wide), &wide_offer(lines)).map(|negotiated| negotiated.ptime.as_ms());
        assert_eq!(accepted, Ok(ms), "{lines}");
    }
    assert_eq!(agree("0", "a=ptime:60\n").ptime, Ptime::MS_60);
}

#[test]
fn ptime_is_honoured_from_10_to_60_and_20_beyond() {
    let ptime = |line: &str| agree("0", line).ptime.as_ms();
    assert_eq!(ptime("a=ptime:10\n"), 10);
    assert_eq!(ptime("a=ptime:60\n"), 60);
    assert_eq!(ptime("a=ptime:5\n"), 20);
    assert_eq!(ptime("a=ptime:200\n"), 20);
    assert_eq!(ptime("a=ptime:x\n"), 20);
    assert_eq!(ptime("a=maxptime:10\n"), 10);
    assert_eq!(ptime("a=ptime:40\na=maxptime:30\n"), 30);
    assert_eq!(ptime("a=maxptime:140\n"), 20);
}

#[test]
fn answer_mirrors_the_direction() {
    assert_eq!(direction(""), Direction::SendRecv);
    assert_eq!(direction("a=sendonly\n"), Direction::RecvOnly);
    assert_eq!(direction("a=recvonly\n"), Direction::SendOnly);
    assert_eq!(direction("a=inactive\n"), Direction::Inactive);
}

#[test]
fn hold_is_seen_in_all_its_forms() {
    assert!(agree("0", "a=sendonly\n").is_held());
    assert!(agree("0", "a=inactive\n").is_held());
    let zeros = agree("0", "c=IN IP4 0.0.0.0\n");
    assert!(zeros.is_held());
    assert_eq!(zeros.direction, Direction::RecvOnly);
    let session: SessionDescription =
        "v=0\nc=IN IP4 192.0.2.1\na=sendonly\nm=audio 4000 RTP/AVP 0\n".parse().unwrap();
    assert!(answer(&session, &local()).unwrap().1.is_held());
    assert!(!agree("0", "").is_held());
}

#[test]
fn our_own_hold_limits_the_answer() {
    let held = LocalMedia { direction: Direction::SendOnly, ..local() };
    let (answer, negotiated) = answer(&audio("0", ""), &held).unwrap();
    assert_eq!(negotiated.direction, Direction::SendOnly);
    assert!(answer.to_string().contains("a=sendonly\r\n"));
}

#[test]
fn media_without_a_place_to_send_to_is_refused() {
    let nowhere: SessionDescription = "v=0\nm=audio 4000 RTP/AVP 0\n".parse().unwrap();
    assert_eq!(answer(&nowhere, &local()).unwrap_err(), NegotiateError::Address(String::new()));
    let name = audio("0", "c=IN IP4 sbc.example.net\n");
    assert_eq!(answer(&name, &local()).unwrap_err(), NegotiateError::Address("sbc.example.net".to_owned()));
    let group = audio("0", "c=IN IP4 224.2.36.42\n");
    assert!(matches!(answer(&group, &local()), Err(NegotiateError::Address(_))));
}

#[test]
fn a_session_without_audio_says_so() {
    let video: SessionDescription = "v=0\nc=IN IP4 192.0.2.1\nm=video 4000 RTP/AVP 31\n".parse().unwrap();
    assert_eq!(answer(&video, &local()).unwrap_err(), NegotiateError::NoAudio);
    let refused: SessionDescription = "v=0\nc=IN IP4 192.0.2.1\nm=audio 0 RTP/AVP 0\n".parse().unwrap();
    assert_eq!(answer(&refused, &local()).unwrap_err(), NegotiateError::AudioRefused);
}

#[test]
fn offer_lists_every_codec_with_its_events() {
    let local = wide();
    assert_eq!(
        offer(&local).to_string(),
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
         m=audio 20000 RTP/AVP 0 8 9 96 97 98 13 101 102 103\r\n\
         a=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:9 G722/8000\r\n\
         a=rtpmap:96 opus/48000/2\r\na=fmtp:96 useinbandfec=1\r\n\
         a=rtpmap:97 L16/16000\r\na=rtpmap:98 L16/8000\r\na=rtpmap:13 CN/8000\r\n\
         a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-15\r\n\
         a=rtpmap:102 telephone-event/16000\r\na=fmtp:102 0-15\r\n\
         a=rtpmap:103 telephone-event/48000\r\na=fmtp:103 0-15\r\na=ptime:20\r\na=maxptime:60\r\na=sendrecv\r\n\
         a=rtcp-mux\r\n"
    );
}

#[test]
fn both_sides_of_an_exchange_agree() {
    let caller = LocalMedia { codecs: vec![Codec::L16_16k, Codec::Pcma], ptime: Ptime::MS_40, ..local() };
    let callee =
        LocalMedia { address: [127, 0, 0, 2].into(), port: 30_000, codecs: Codec::ALL.to_vec(), ..local() };
    let offered = offer(&caller);
    let (answered, theirs) = answer(&offered.to_string().parse().unwrap(), &callee).unwrap();
    let ours = accept_answer(&offered, &answered.to_string().parse().unwrap()).unwrap();
    assert_eq!(ours.codec, Codec::L16_16k);
    assert_eq!(
        (ours.codec, ours.payload_type, ours.ptime),
        (theirs.codec, theirs.payload_type, theirs.ptime)
    );
    assert_eq!(ours.telephone_event_payload_type, theirs.telephone_event_payload_type);
    assert_eq!(
        (ours.remote.to_string().as_str(), theirs.remote.to_string().as_str()),
        ("127.0.0.2:30000", "127.0.0.1:20000")
    );
}

#[test]
fn answers_that_are_none_are_refused() {
    let offered = offer(&local());
    let refused: SessionDescription = "v=0\nc=IN IP4 192.0.2.1\nm=audio 0 RTP/AVP 0\n".parse().unwrap();
    assert_eq!(accept_answer(&offered, &refused), Err(NegotiateError::AudioRefused));
    let empty: SessionDescription = "v=0\n".parse().unwrap();
    assert_eq!(accept_answer(&offered, &empty), Err(NegotiateError::MediaCount { offered: 1, answered: 0 }));
    let foreign = audio("18", "");
    assert!(matches!(accept_answer(&offered, &foreign), Err(NegotiateError::NoCommonCodec { .. })));
}

#[test]
fn answer_that_holds_us_is_seen() {
    let negotiated = accept_answer(&offer(&local()), &audio("8", "a=sendonly\n")).unwrap();
    assert!(negotiated.is_held());
    assert!(negotiated.direction.receives());
}

#[test]
fn events_we_did_not_offer_are_not_used() {
    let silent = LocalMedia { telephone_event: false, ..local() };
    let answered = audio("0 101", "a=rtpmap:101 telephone-event/8000\n");
    assert_eq!(accept_answer(&offer(&silent), &answered).unwrap().telephone_event_payload_type, None);
}

prop_compose! {
    fn media()(
        codecs in proptest::sample::subsequence(Codec::ALL.to_vec(), 1..=4).prop_shuffle(),
        ptime in 10..=60u32, telephone_event: bool, sends: bool, receives: bool, port in 1..=u16::MAX,
    ) -> LocalMedia {
        LocalMedia {
            codecs, port, telephone_event,
            ptime: Ptime::from_ms(ptime).unwrap_or_default(),
            direction: Direction::from_parts(sends, receives),
            ..local()
        }
    }
}

proptest! {
    #[test]
    fn every_exchange_ends_in_the_same_agreement_on_both_sides(caller in media(), callee in media()) {
        let offered = offer(&caller);
        match answer(&offered.to_string().parse().unwrap(), &callee) {
            Ok((answered, theirs)) => {
                let ours = accept_answer(&offered, &answered.to_string().parse().unwrap()).unwrap();
                prop_assert_eq!(ours.codec, theirs.codec);
                prop_assert_eq!(ours.payload_type, theirs.payload_type);
                prop_assert_eq!(ours.ptime, theirs.ptime);
                prop_assert_eq!(ours.clock, theirs.clock);
                prop_assert_eq!(ours.telephone_event_payload_type, theirs.telephone_event_payload_type);
                prop_assert_eq!(ours.direction, theirs.direction.reversed());
            }
            Err(NegotiateError::NoCommonCodec { .. }) => {
                prop_assert!(!caller.codecs.iter().any(|codec| callee.codecs.contains(codec)));
            }
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn any_description_is_answered_or_refused(lines in proptest::collection::vec("[vosctma]=[ -~]{0,40}", 0..12)) {
        let body = format!("v=0\r\n{}\r\n", lines.join("\r\n"));
        if let Ok(offer) = body.parse() && let Ok((answer, _)) = answer(&offer, &local()) {
            prop_assert_eq!(answer.media.len(), offer.media.len());
        }
    }
}
