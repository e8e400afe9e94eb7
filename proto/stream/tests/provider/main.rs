//! The media dialects against scripted providers: the rows of the conformance catalogue that concern the media socket (C6 to C19,
//! C24 to C26), and properties that hold whatever comes.

#![allow(clippy::unwrap_used)]

mod peer;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tandem_audio::format::SampleRate;
use tandem_stream::provider::registry::{PROVIDERS, provider};
use tandem_stream::provider::{
    Encoding, Event, Malformed, MarkError, MediaFormat, MediaStream, Provider, RETAKE_START_WITHIN,
    START_WITHIN, Setup, StopReason,
};
use tandem_stream::websocket::{FrameReader, Message, Role};

use peer::{Peer, echo};

const MS: Duration = Duration::from_millis(1);

/// The one place that asks for the time: an instant to count from.
#[expect(clippy::disallowed_methods, reason = "a test is its own shell")]
fn t0() -> Instant {
    Instant::now()
}

/// What was handed out, in words.
#[derive(Default)]
struct Log {
    events: Vec<String>,
    sound: Vec<u8>,
    gaps: Vec<u64>,
    marks: Vec<(String, u64)>,
}

impl Log {
    fn take(&mut self, event: Event<'_>) {
        self.events.push(match event {
            Event::Connected => "connected".into(),
            Event::Start(start) => {
                format!("start {} {} {:?}", start.call_id, start.stream_id, start.custom.get("ctx"))
            }
            Event::Audio { sound, gap_ms, .. } => {
                self.sound.extend_from_slice(sound);
                self.gaps.push(gap_ms);
                format!("audio {}", sound.len())
            }
            Event::Dtmf { digit, duration_ms } => format!("dtmf {digit} {duration_ms:?}"),
            Event::Mark { name, heard_ms } => {
                self.marks.push((name.to_owned(), heard_ms));
                format!("mark {name} {heard_ms}")
            }
            Event::Cleared { outstanding } => format!("cleared {outstanding}"),
            Event::Xoff => "xoff".into(),
            Event::Xon => "xon".into(),
            Event::Complaint(text) => format!("complaint {text}"),
            Event::Stop(reason) => format!("stop {reason:?}"),
            Event::Ignored => "ignored".into(),
            Event::Malformed(error) => format!("malformed {error}"),
        });
    }

    fn last(&self) -> &str {
        self.events.last().map_or("", String::as_str)
    }
}

/// A call at a provider, and the provider.
struct Call {
    stream: MediaStream,
    peer: Peer,
    log: Log,
    now: Instant,
    out: Vec<u8>,
}

/// The format in which each is tried first.
fn usual(of: &Provider) -> MediaFormat {
    match of.name {
        "vonage" | "asterisk" => MediaFormat { encoding: Encoding::L16, rate: SampleRate::Hz16000 },
        "exotel" => MediaFormat { encoding: Encoding::L16, rate: SampleRate::Hz8000 },
        _ => MediaFormat::PCMU,
    }
}

impl Call {
    fn waiting(of: &'static Provider, format: MediaFormat) -> Self {
        let now = t0();
        let stream = MediaStream::new(of, Setup::new(format.rate), now);
        Call { stream, peer: Peer::new(of, format), log: Log::default(), now, out: Vec::new() }
    }

    fn started(of: &'static Provider, format: MediaFormat) -> Self {
        let mut call = Call::waiting(of, format);
        for text in call.peer.opening() {
            call.text(&text);
        }
        assert_eq!(call.stream.format(), Some(format), "{}", of.name);
        call
    }

    fn usual(of: &'static Provider) -> Self {
        Call::started(of, usual(of))
    }

    fn text(&mut self, text: &str) {
        let log = &mut self.log;
        self.stream.handle_text(text, self.now, &mut [0; 640], |event| log.take(event));
    }

    fn binary(&mut self, octets: &[u8]) {
        let log = &mut self.log;
        self.stream.handle_binary(octets, |event| log.take(event));
    }

    fn media(&mut self, chunk: u64, timestamp_ms: u64, sound: &[u8]) {
        match self.peer.media(chunk, timestamp_ms, sound) {
            Ok(text) => self.text(&text),
            Err(octets) => self.binary(&octets),
        }
    }

    fn deliver(&mut self) {
        self.peer.receive(&std::mem::take(&mut self.out));
    }

    fn say(&mut self, octets: &[u8]) {
        assert!(self.stream.audio(octets, self.now, &mut self.out));
        self.deliver();
    }

    fn say_ms(&mut self, ms: usize) {
        self.say(&vec![0x55; ms * usual(self.stream.provider()).octets_per_ms()]);
    }

    fn end(&mut self) {
        self.stream.end_utterance(self.now, &mut self.out);
        self.deliver();
    }

    fn mark(&mut self, name: &str) {
        self.stream.mark(name, self.now, &mut self.out).unwrap();
        self.deliver();
    }

    fn clear(&mut self) -> (u64, Vec<String>) {
        let mut flushed = Vec::new();
        let heard = self.stream.clear(self.now, &mut self.out, |name| flushed.push(name.to_owned()));
        self.deliver();
        (heard, flushed)
    }

    /// Time passes at both ends; echoes arrive at once.
    fn run(&mut self, ms: usize) {
        self.now += MS * ms as u32;
        for text in self.peer.play(ms) {
            self.text(&text);
        }
    }
}

#[test]
fn a_call_starts_with_its_names_and_parameters() {
    for of in PROVIDERS {
        let call = Call::usual(of);
        let (call_id, stream_id) = match of.name {
            "vonage" => ("", ""),
            // Its channel is its own, and no name of the caller's call.
            "asterisk" => ("", "MZ0001"),
            _ => ("CA0001", "MZ0001"),
        };
        assert_eq!(of.names_call, !call_id.is_empty(), "{}", of.name);
        assert_eq!(call.log.last(), format!("start {call_id} {stream_id} Some(\"ctx-1\")"), "{}", of.name);
        assert_eq!(call.stream.poll_timeout(), None);
    }
}

#[test]
fn sound_passes_both_ways_octet_for_octet_in_every_format() {
    let l16 = |rate| MediaFormat { encoding: Encoding::L16, rate };
    let formats = [
        MediaFormat::PCMU,
        MediaFormat { encoding: Encoding::Pcma, rate: SampleRate::Hz8000 },
        MediaFormat { encoding: Encoding::G722, rate: SampleRate::Hz16000 },
        l16(SampleRate::Hz8000),
        l16(SampleRate::Hz16000),
        l16(SampleRate::Hz24000),
    ];
    for of in PROVIDERS {
        let speaks = |format: &MediaFormat| match of.name {
            "twilio" => *format == MediaFormat::PCMU,
            "vonage" | "exotel" => format.encoding == Encoding::L16,
            "plivo" => matches!(format.encoding, Encoding::Pcmu | Encoding::L16),
            _ => true,
        };
        for format in formats.into_iter().filter(speaks) {
            let mut call = Call::started(of, format);
            let said: Vec<u8> = (0..format.octets_per_ms() * 500).map(|n| (n % 251) as u8).collect();
            for (n, frame) in said.chunks(format.frame_octets()).enumerate() {
                call.media(n as u64 + 1, n as u64 * 20, frame);
            }
            assert!(call.log.sound == said, "{} {format:?}", of.name);
            assert!(call.log.gaps.iter().all(|gap| *gap == 0));
            if of.outgoing.is_some_and(|outgoing| outgoing != format) {
                continue;
            }
            // In pieces of 30 ms and something, as a synthesiser may give them.
            for piece in said.chunks(format.octets_per_ms() * 30 + format.sample_octets()) {
                call.say(piece);
            }
            call.end();
            call.run(2_000);
            assert!(call.peer.heard[..said.len()] == said, "{} {format:?}", of.name);
            assert!(call.peer.heard[said.len()..].iter().all(|octet| *octet == format.silence()));
            assert_eq!(call.stream.heard_ms(call.now), 500);
        }
    }
}

#[test]
fn c6_media_without_a_start_is_ignored_and_the_stream_ends_after_ten_seconds() {
    for of in PROVIDERS {
        let mut call = Call::waiting(of, usual(of));
        call.media(1, 0, &[0; 320]);
        assert!(call.log.sound.is_empty());
        assert!(!call.stream.audio(&[0; 320], call.now, &mut call.out) && call.out.is_empty());
        assert_eq!(call.stream.mark("m", call.now, &mut call.out), Err(MarkError::NoStream));
        let until = call.stream.poll_timeout().unwrap();
        assert_eq!(until, call.now + START_WITHIN);
        let mut stops = Vec::new();
        call.stream.handle_timeout(until - MS, |event| panic!("{event:?} is early"));
        call.stream.handle_timeout(until, |event| stops.push(format!("{event:?}")));
        assert_eq!(stops, ["Stop(NoStart)"]);
        assert_eq!(call.stream.poll_timeout(), None);
    }
}

#[test]
fn c7_a_close_without_stop_ends_the_call_whose_leg_may_live() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        let log = &mut call.log;
        call.stream.handle_closed(|event| log.take(event));
        assert_eq!(call.log.last(), "stop RemoteClosed");
        assert!(StopReason::RemoteClosed.leg_may_live(of) && StopReason::NoStart.leg_may_live(of));
        call.stream.handle_closed(|event| panic!("{event:?} again"));
    }
}

#[test]
fn c7_after_a_stop_the_leg_may_live_where_a_stop_is_the_streams_alone() {
    let may_live =
        |name: &str, reason: &str| StopReason::Said(reason.to_owned()).leg_may_live(provider(name).unwrap());
    assert!(!may_live("twilio", "") && !may_live("exotel", "callended") && !may_live("exotel", ""));
    assert!(may_live("exotel", "stopped") && may_live("telnyx", "") && may_live("plivo", ""));
}

#[test]
fn a_phone_may_ring_for_as_long_as_phones_do_once_telnyx_has_greeted() {
    let of = provider("telnyx").unwrap();
    let mut call = Call::waiting(of, usual(of));
    let [greeting, start] = &call.peer.opening()[..] else { panic!("two words") };
    assert_eq!(call.stream.poll_timeout(), Some(call.now + START_WITHIN));
    call.text(greeting);
    assert_eq!(call.stream.poll_timeout(), Some(call.now + 120_000 * MS));
    call.text(greeting);
    call.now += 100_000 * MS;
    call.stream.handle_timeout(call.now, |event| panic!("{event:?} is early"));
    call.text(start);
    assert_eq!(call.stream.format(), Some(MediaFormat::PCMU));

    // A call that is up does not ring; and nobody else's phone does behind a greeting.
    let setup = Setup { is_retake: true, ..Setup::new(SampleRate::Hz8000) };
    let mut again = MediaStream::new(of, setup, call.now);
    again.handle_text(greeting, call.now, &mut [0; 640], |_| {});
    assert_eq!(again.poll_timeout(), Some(call.now + RETAKE_START_WITHIN));
    let of = provider("twilio").unwrap();
    let mut call = Call::waiting(of, usual(of));
    call.text(&call.peer.opening()[0].clone());
    assert_eq!(call.stream.poll_timeout(), Some(call.now + START_WITHIN));
}

#[test]
fn telnyx_gets_pcmu_whatever_the_callers_codec_is() {
    let of = provider("telnyx").unwrap();
    for (encoding, rate) in [
        (Encoding::Pcma, SampleRate::Hz8000),
        (Encoding::G722, SampleRate::Hz16000),
        (Encoding::L16, SampleRate::Hz16000),
    ] {
        let format = MediaFormat { encoding, rate };
        let mut call = Call::started(of, format);
        assert_eq!((call.stream.format(), call.stream.outgoing()), (Some(format), Some(MediaFormat::PCMU)));
        call.stream.audio(&[0x55; 100], call.now, &mut call.out);
        assert_eq!(call.stream.waiting_ms(), 12);
        call.stream.end_utterance(call.now, &mut call.out);
        assert_eq!(sounds(&call.out), [160], "20 ms of PCMU, the rest of it silence");
    }
}

#[test]
fn plivos_format_may_have_parameters_that_count() {
    for (said, hz, rate) in [
        ("audio/x-l16;rate=16000", 8_000, SampleRate::Hz16000),
        ("audio/x-l16; rate=8000", 16_000, SampleRate::Hz8000),
        ("audio/x-mulaw;rate=8000", 8_000, SampleRate::Hz8000),
    ] {
        let of = provider("plivo").unwrap();
        let mut call = Call::waiting(of, usual(of));
        call.text(&format!(
            r#"{{"event":"start","start":{{"streamId":"x","mediaFormat":{{"encoding":"{said}","sampleRate":{hz}}}}}}}"#
        ));
        assert_eq!(call.stream.format().map(|format| format.rate), Some(rate), "{said}");
    }
}

#[test]
fn c8_a_stop_after_our_close_is_ignored() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        call.stream.close();
        call.text(r#"{"event":"stop","stop":{"reason":"callended"}}"#);
        assert_eq!(call.log.last(), "ignored");
        call.stream.handle_closed(|event| panic!("{event:?} after our close"));
    }
}

#[test]
fn c9_media_after_stop_is_ignored() {
    for name in ["twilio", "exotel", "telnyx", "plivo"] {
        let mut call = Call::usual(provider(name).unwrap());
        call.text(r#"{"event":"stop","stop":{"reason":"callended"}}"#);
        let reason = if name == "exotel" { "callended" } else { "" };
        assert_eq!(call.log.last(), format!("stop Said({reason:?})"));
        call.media(1, 0, &[1; 320]);
        call.text(&call.peer.dtmf('5'));
        assert_eq!(call.log.events[call.log.events.len() - 2..], ["ignored", "ignored"]);
        assert!(call.log.sound.is_empty() && call.stream.format().is_none());
    }
}

#[test]
fn c10_late_marks_of_cleared_sound_are_not_counted_as_played() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        call.say_ms(800);
        call.mark("never heard");
        call.run(310);
        let (heard, flushed) = call.clear();
        assert!((200..=310).contains(&heard), "{}: {heard}", of.name);
        assert_eq!(flushed, ["never heard"]);
        // The provider echoes all that waited at once, as Twilio does.
        call.run(1_000);
        assert!(call.log.marks.is_empty(), "{}: {:?}", of.name, call.log.marks);
        assert_eq!(call.stream.heard_ms(call.now), heard);
        assert!(call.stream.counters().ignored > 0);
        // The next utterance counts on from there.
        call.say_ms(400);
        call.mark("heard");
        call.run(500);
        assert_eq!(call.log.marks, [("heard".to_owned(), heard + 400)], "{}", of.name);
    }
}

#[test]
fn c11_a_mark_in_flight_when_the_clear_is_sent_counts_once() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        call.say_ms(200);
        call.mark("m");
        let echoes = call.peer.play(200);
        assert!(!echoes.is_empty());
        call.now += 200 * MS;
        for text in &echoes {
            call.text(text);
        }
        let (heard, flushed) = call.clear();
        // The provider, which had not read the clear yet, echoes again.
        for text in &echoes {
            call.text(text);
        }
        assert_eq!((heard, flushed.len()), (200, 0), "{}", of.name);
        assert_eq!(call.log.marks, [("m".to_owned(), 200)], "{}", of.name);
    }
}

#[test]
fn c12_two_barge_ins_are_one_clear_and_no_old_sound_follows() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        // Half a frame more than whole messages: it must not lead the next utterance.
        let format = usual(of);
        call.say(&vec![0x11; format.octets_per_ms() * 610]);
        call.run(100);
        let (first, _) = call.clear();
        call.now += 30 * MS;
        let (second, _) = call.clear();
        assert_eq!((call.peer.clears, first), (1, second), "{}", of.name);
        let before = call.peer.heard.len();
        call.say(&vec![0x22; format.octets_per_ms() * 400]);
        call.run(500);
        assert_eq!(call.peer.heard[before..], vec![0x22; format.octets_per_ms() * 400]);
        call.clear();
        assert_eq!(call.peer.clears, 2);
    }
}

#[test]
fn c13_the_tail_of_an_utterance_is_padded_to_a_legal_message() {
    let cases = [
        ("twilio", 100, 100),
        ("vonage", 642, 1_280),
        ("exotel", 3_202, 3_520),
        ("asterisk", 642, 1_280),
        ("telnyx", 100, 160),
        ("plivo", 100, 100),
    ];
    for (name, said, sent) in cases {
        let mut call = Call::usual(provider(name).unwrap());
        call.say(&vec![0x55; said]);
        call.end();
        assert_eq!(call.peer.messages.iter().sum::<usize>(), sent, "{name}");
        call.run(1_000);
        let silence = usual(provider(name).unwrap()).silence();
        assert!(call.peer.heard[said..].iter().all(|octet| *octet == silence), "{name}");
        call.end();
        assert_eq!(call.peer.messages.iter().sum::<usize>(), sent, "{name}: nothing waits, nothing is sent");
    }
}

#[test]
fn c14_a_minute_of_speech_given_at_once_never_runs_further_ahead_than_allowed() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        let format = usual(of);
        let speech: Vec<u8> = (0..format.octets_per_ms() * 60_000).map(|n| (n % 249) as u8).collect();
        let mut left = &speech[..];
        let mut turns = 0;
        while !left.is_empty() {
            let room = call.stream.room_ms(call.now) as usize * format.octets_per_ms();
            let (now, rest) = left.split_at(room.min(left.len()));
            call.say(now);
            left = rest;
            call.run(20);
            turns += 1;
        }
        call.end();
        call.run(2_000);
        let cap = of.pacing.send_ahead_ms as usize;
        assert!(call.peer.waited_ms <= cap, "{}: {} ms", of.name, call.peer.waited_ms);
        assert!(call.peer.waited_ms > cap / 2 && turns <= 3_000, "{}: the line is kept busy", of.name);
        assert!(call.peer.heard[..speech.len()] == speech);
        assert_eq!(call.stream.heard_ms(call.now), 60_000);
    }
}

#[test]
fn c15_a_peer_that_stops_reading_gets_no_more_and_the_caller_is_still_heard() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        let format = usual(of);
        let mut sent = 0;
        for n in 0..250_u64 {
            // Nothing is played, nothing is echoed; the caller's sound goes on.
            let room = call.stream.room_ms(call.now) as usize;
            assert!(call.stream.audio(&vec![0; room * format.octets_per_ms()], call.now, &mut call.out));
            sent += room;
            call.media(n + 1, n * 20, &vec![1; format.frame_octets()]);
            call.now += 20 * MS;
        }
        let cap = of.pacing.send_ahead_ms as usize;
        assert!(sent <= cap + 1_500, "{}: {sent} ms", of.name);
        assert_eq!((call.stream.room_ms(call.now), call.log.sound.len()), (0, 250 * format.frame_octets()));
        // It reads on and plays: we go on, too.
        call.deliver();
        call.run(sent);
        assert!(call.stream.room_ms(call.now) > 0, "{}", of.name);
    }
}

#[test]
fn c16_unknown_events_and_fields_and_bare_numbers_are_tolerated() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        for text in
            [r#"{"event":"confetti","media":3}"#, r#"{"event":"websocket:hangup","x":[1,{"y":null}]}"#]
        {
            call.text(text);
            assert_eq!(call.log.last(), "ignored", "{}", of.name);
        }
        assert_eq!(call.stream.counters().malformed, 0);
    }
    for name in ["twilio", "exotel", "telnyx", "plivo"] {
        let mut call = Call::usual(provider(name).unwrap());
        for (n, numbers) in [
            r#""chunk":"1","timestamp":"0""#,
            r#""chunk":2,"timestamp":20"#,
            r#""chunk":3.0,"timestamp":40.0"#,
            r#""chunk":null,"timestamp":[]"#,
        ]
        .iter()
        .enumerate()
        {
            call.text(&format!(
                r#"{{"extra":{{}},"event":"media","media":{{"more":1,{numbers},"payload":"AAAA"}}}}"#
            ));
            assert_eq!(call.log.sound.len(), if name == "exotel" { 0 } else { 3 * (n + 1) }, "{name}");
        }
        call.text(r#"{"event":"dtmf","dtmf":{"digit":5}}"#);
        assert_eq!(&call.log.last()[..6], "dtmf 5");
        call.text(r#"{"event":"dtmf","dtmf":{"digit":"55"}}"#);
        assert_eq!(call.log.last(), "malformed dtmf: field digit is missing or wrong");
    }
    let mut call = Call::usual(provider("vonage").unwrap());
    for text in [
        r#"{"event":"websocket:dtmf","digit":"5","duration":260}"#,
        r#"{"event":"websocket:dtmf","dtmf":{"digit":"5","duration":"260"}}"#,
    ] {
        call.text(text);
        assert_eq!(call.log.last(), "dtmf 5 Some(260)");
    }
}

#[test]
fn c17_what_is_not_base64_is_dropped_and_counted_and_the_call_goes_on() {
    for name in ["twilio", "exotel", "telnyx", "plivo"] {
        let mut call = Call::usual(provider(name).unwrap());
        for payload in ["A", "AAA", "AA=A", "!!!!", "AAAA\\n"] {
            call.text(&format!(r#"{{"event":"media","media":{{"payload":"{payload}"}}}}"#));
            assert!(call.log.last().starts_with("malformed media payload of"), "{}", call.log.last());
        }
        for text in [
            "",
            "{",
            "[]",
            "7",
            r#"{"event":7.5}"#,
            r#"{"x":1}"#,
            r#"{"event":"media"}"#,
            r#"{"event":"media","media":{"payload":7}}"#,
        ] {
            call.text(text);
        }
        call.binary(&[1, 2]);
        assert_eq!(call.log.last(), format!("malformed {}", Malformed::Binary(2)));
        assert_eq!((call.stream.counters().malformed, call.stream.counters().audio_in), (13, 0));
        call.media(1, 0, &[9; 160]);
        assert_eq!(call.log.sound, [9; 160]);
    }
    // Half a sample is no sound.
    let mut call = Call::usual(provider("exotel").unwrap());
    call.media(1, 0, &[0; 3]);
    assert_eq!(call.log.last(), format!("malformed {}", Malformed::HalfSample(3)));
    let mut call = Call::usual(provider("vonage").unwrap());
    call.media(1, 0, &[0; 3]);
    assert_eq!(call.log.last(), format!("malformed {}", Malformed::HalfSample(3)));
}

/// Octets of sound in each message.
fn sounds(mut wire: &[u8]) -> Vec<usize> {
    let mut reader = FrameReader::new(Role::Client);
    let mut lens = Vec::new();
    while !wire.is_empty() {
        wire = &wire[reader.push(wire)..];
        while let Some(message) = reader.poll_message().unwrap() {
            match message {
                Message::Binary(sound) => lens.push(sound.len()),
                Message::Text(text) => {
                    let json: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
                    let payload = json["media"]["payload"].as_str();
                    lens.extend(payload.map(|text| base64_simd::STANDARD.decode_to_vec(text).unwrap().len()));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    lens
}

#[test]
fn c18_the_rate_of_the_start_is_followed_and_what_we_do_not_carry_ends_the_stream() {
    let at = |rate| MediaFormat { encoding: Encoding::L16, rate };
    for (name, text, format) in [
        (
            "vonage",
            r#"{"event":"websocket:connected","content-type":"audio/l16; rate=24000"}"#,
            at(SampleRate::Hz24000),
        ),
        ("vonage", r#"{"event":"websocket:connected","content-type":"audio/l16"}"#, at(SampleRate::Hz16000)),
        (
            "exotel",
            r#"{"event":"start","stream_sid":"x","start":{"media_format":{"encoding":"raw/slin","sample_rate":"8000"}}}"#,
            at(SampleRate::Hz8000),
        ),
        (
            "exotel",
            r#"{"event":"start","stream_sid":"x","start":{"stream_sid":"x"}}"#,
            at(SampleRate::Hz16000),
        ),
        (
            "asterisk",
            "MEDIA_START connection_id:x channel:y format:slin24 optimal_frame_size:960",
            at(SampleRate::Hz24000),
        ),
    ] {
        let mut call = Call::waiting(provider(name).unwrap(), at(SampleRate::Hz16000));
        call.text(text);
        assert_eq!(call.stream.format(), Some(format), "{name} {text}");
        let mut out = Vec::new();
        assert!(call.stream.audio(&vec![0; format.octets_per_ms() * 200], call.now, &mut out));
        let octets: usize = sounds(&out).iter().sum();
        assert_eq!(octets, format.octets_per_ms() * 200, "messages are cut for the rate that was named");
        assert!(name != "vonage" || sounds(&out).iter().all(|len| *len == format.frame_octets()));
    }
    for (name, text) in [
        (
            "twilio",
            r#"{"event":"start","start":{"streamSid":"x","mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":16000}}}"#,
        ),
        (
            "twilio",
            r#"{"event":"start","start":{"streamSid":"x","mediaFormat":{"encoding":"audio/x-l16","sampleRate":8000}}}"#,
        ),
        ("vonage", r#"{"event":"websocket:connected","content-type":"audio/l16;rate=11025"}"#),
        ("telnyx", r#"{"event":"start","start":{"media_format":{"encoding":"AMR-WB","sample_rate":16000}}}"#),
        ("plivo", r#"{"event":"start","start":{"streamId":"x","mediaFormat":{"encoding":"audio/x-alaw"}}}"#),
        ("asterisk", r#"{"event":"MEDIA_START","format":"opus","optimal_frame_size":160}"#),
        ("asterisk", r#"{"event":"MEDIA_START","format":"slin44","optimal_frame_size":1764}"#),
    ] {
        let mut call = Call::waiting(provider(name).unwrap(), at(SampleRate::Hz16000));
        call.text(text);
        assert!(call.log.last().starts_with("stop Format(FormatError"), "{name}: {}", call.log.last());
        call.text(text);
        assert_eq!(call.log.last(), "ignored");
    }
}

#[test]
fn c19_a_key_pressed_while_the_bot_speaks_is_delivered_once_and_in_order() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        let frame = vec![1; usual(of).frame_octets()];
        call.say_ms(400);
        call.media(1, 0, &frame);
        call.text(&call.peer.dtmf('#'));
        call.media(2, 20, &frame);
        let of_caller: Vec<_> = call
            .log
            .events
            .iter()
            .filter(|event| event.starts_with("audio") || event.starts_with("dtmf"))
            .collect();
        let kinds: Vec<_> = of_caller.iter().map(|event| &event[..5]).collect();
        assert_eq!(kinds, ["audio", "dtmf ", "audio"], "{}", of.name);
    }
}

#[test]
fn c24_binary_before_the_start_is_kept_and_heard_after_it() {
    for name in ["vonage", "asterisk"] {
        let of = provider(name).unwrap();
        let mut call = Call::waiting(of, usual(of));
        let early: Vec<u8> = (0..1_280).map(|n| (n % 256) as u8).collect();
        call.binary(&early[..640]);
        call.binary(&early[640..]);
        for text in call.peer.opening() {
            call.text(&text);
        }
        assert!(call.log.events[call.log.events.len() - 2].starts_with("start"), "{:?}", call.log.events);
        assert_eq!(call.log.sound, early);
        // It is bounded, the oldest go.
        let mut call = Call::waiting(of, usual(of));
        for n in 0..100 {
            call.binary(&[n; 640]);
        }
        for text in call.peer.opening() {
            call.text(&text);
        }
        assert_eq!(call.log.sound, (85..100).flat_map(|n| [n; 640]).collect::<Vec<u8>>());
        assert_eq!(call.stream.counters().dropped_octets, 85 * 640);
    }
}

#[test]
fn c26_exotel_is_understood_and_answered_in_either_spelling() {
    let inside = r#""call_sid":"abc1","account_sid":"acme1","custom_parameters":{"ctx":"1"},"media_format":{"encoding":"audio/x-raw","sample_rate":"8000"}"#;
    let camel = r#""callSid":"abc1","accountSid":"acme1","customParameters":{"ctx":"1"},"mediaFormat":{"encoding":"raw/slin","sampleRate":8000}"#;
    for (text, first) in [
        (
            format!(r#"{{"event":"start","stream_sid":"S","start":{{"stream_sid":"S",{inside}}}}}"#),
            "stream_sid",
        ),
        (format!(r#"{{"event":"start","stream_sid":"S","start":{{{inside}}}}}"#), "stream_sid"),
        (format!(r#"{{"event":"start","streamSid":"S","start":{{"streamSid":"S",{camel}}}}}"#), "streamSid"),
        (format!(r#"{{"Event":"start","streamSid":"S","start":{{{camel}}}}}"#), "streamSid"),
    ] {
        let of = provider("exotel").unwrap();
        let mut call = Call::waiting(of, usual(of));
        call.text(&text);
        assert_eq!(call.log.last(), "start abc1 S Some(\"1\")");
        assert_eq!(call.stream.start().unwrap().account_id, "acme1");
        call.text(r#"{"Event":"media","media":{"Payload":"AAAA","chunk":"1"}}"#);
        assert_eq!(call.log.last(), format!("malformed {}", Malformed::HalfSample(3)));
        call.text(r#"{"Event":"media","media":{"Payload":"AAAAAAAA","chunk":"1"}}"#);
        assert_eq!(call.log.last(), "audio 6");
        call.stream.audio(&[0; 3_200], call.now, &mut call.out);
        let json = String::from_utf8_lossy(&call.out).into_owned();
        let other = if first == "streamSid" { "stream_sid" } else { "streamSid" };
        assert!(
            json.contains(&format!(r#"{{"event":"media","{first}":"S","{other}":"S","media""#)),
            "{json}"
        );
        call.text(r#"{"event":"closed"}"#);
        assert_eq!(call.log.last(), "stop Said(\"\")");
    }
}

#[test]
fn a_gap_in_the_timestamps_is_marked() {
    for name in ["twilio", "exotel", "telnyx", "plivo"] {
        let of = provider(name).unwrap();
        let mut call = Call::usual(of);
        let frame = vec![0; usual(of).frame_octets()];
        for (n, at) in [0, 20, 80, 100, 119, 140, 100].into_iter().enumerate() {
            call.media(n as u64 + 1, at, &frame);
        }
        assert_eq!(call.log.gaps, [0, 0, 40, 0, 0, 0, 0], "{name}");
    }
}

#[test]
fn long_sound_comes_in_pieces_of_whole_samples() {
    let of = provider("exotel").unwrap();
    let mut call = Call::usual(of);
    let said: Vec<u8> = (0..6_400).map(|n| (n % 256) as u8).collect();
    let text = call.peer.media(1, 0, &said).unwrap();
    let (mut heard, mut places) = (Vec::new(), Vec::new());
    call.stream.handle_text(&text, call.now, &mut [0; 331], |event| {
        let Event::Audio { sound, position_ms, gap_ms } = event else { panic!("{event:?}") };
        assert!(sound.len() % 2 == 0 && gap_ms == 0);
        heard.extend_from_slice(sound);
        places.push(position_ms.unwrap());
    });
    assert_eq!((heard, places.first(), call.stream.counters().audio_in), (said, Some(&0), 1));
    assert!(places.is_sorted());
}

#[test]
fn the_outbound_track_is_not_the_callers_voice() {
    let mut call = Call::usual(provider("twilio").unwrap());
    call.text(r#"{"event":"media","media":{"track":"outbound","payload":"AAAA"}}"#);
    assert_eq!(call.log.last(), "ignored");
}

#[test]
fn telnyx_sound_is_put_in_order() {
    let mut call = Call::usual(provider("telnyx").unwrap());
    for chunk in [2_u8, 1, 4, 3, 3, 6] {
        call.media(u64::from(chunk), u64::from(chunk) * 20, &[chunk; 160]);
    }
    assert_eq!(call.log.sound, [[1; 160], [2; 160], [3; 160], [4; 160]].concat());
    call.text(r#"{"event":"stop"}"#);
    assert_eq!(call.log.sound[640..], [6; 160], "what was held is heard at the end");
    assert_eq!(call.log.gaps, [0, 0, 0, 0, 20]);
    call.text(r#"{"event":"error","payload":{"code":1}}"#);
    assert_eq!(call.log.last(), "ignored");
}

#[test]
fn a_late_cleared_does_not_empty_the_next_utterance() {
    for name in ["vonage", "plivo"] {
        let mut call = Call::usual(provider(name).unwrap());
        let cleared = call.peer.cleared().unwrap();
        call.text(&cleared);
        assert_eq!(call.log.last(), "ignored", "nobody has cleared");
        call.say_ms(100);
        call.clear();
        call.say_ms(100);
        call.clear();
        for expected in ["cleared 1", "cleared 0", "ignored"] {
            call.text(&cleared);
            assert_eq!(call.log.last(), expected);
        }
    }
}

#[test]
fn asterisk_says_stop_and_go_and_takes_answer_and_hangup() {
    let mut call = Call::usual(provider("asterisk").unwrap());
    call.text(r#"{"event":"MEDIA_XOFF"}"#);
    assert_eq!((call.log.last(), call.stream.room_ms(call.now)), ("xoff", 0));
    call.text(r#"{"event":"MEDIA_XON"}"#);
    assert_eq!((call.log.last(), call.stream.room_ms(call.now)), ("xon", 1_000));
    call.text(r#"{"event":"ERROR","error_text":"no"}"#);
    assert_eq!(call.log.last(), "complaint no");
    assert!(call.stream.answer(&mut call.out) && call.stream.hangup(&mut call.out));
    call.deliver();
    assert_eq!(call.peer.words, ["ANSWER", "HANGUP"]);
    let mut twilio = Call::usual(provider("twilio").unwrap());
    assert!(
        !twilio.stream.answer(&mut twilio.out)
            && !twilio.stream.hangup(&mut twilio.out)
            && twilio.out.is_empty()
    );
}

#[test]
fn asterisk_in_plain_words_is_answered_in_plain_words() {
    let of = provider("asterisk").unwrap();
    let mut call = Call::waiting(of, MediaFormat::PCMU);
    call.text("MEDIA_START connection_id:c1 channel:WebSocket/x format:ulaw optimal_frame_size:160");
    assert_eq!(call.log.last(), "start  c1 None");
    for (text, event) in [
        ("DTMF_END digit:5", "dtmf 5 None"),
        ("DTMF_END 6", "dtmf 6 None"),
        ("MEDIA_XOFF", "xoff"),
        ("QUEUE_DRAINED", "ignored"),
        ("noise", "malformed not a JSON object"),
    ] {
        call.text(text);
        assert_eq!(call.log.last(), event);
    }
    call.stream.audio(&[0; 160], call.now, &mut call.out);
    call.stream.mark("m", call.now, &mut call.out).unwrap();
    call.stream.clear(call.now, &mut call.out, |_| {});
    call.stream.hangup(&mut call.out);
    let text = String::from_utf8_lossy(&call.out).into_owned();
    for word in ["MARK_MEDIA t1", "FLUSH_MEDIA", "HANGUP"] {
        assert!(text.contains(word) && !text.contains('{'), "{word}");
    }
}

#[test]
fn marks_are_set_every_300_ms_and_at_the_end_without_being_asked_for() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        call.say_ms(1_000);
        call.end();
        for ms in (0..=1_000).step_by(20) {
            let heard = call.stream.heard_ms(call.now);
            assert!(heard <= ms, "{}: {heard} of {ms}", of.name);
            assert!(heard + 20 > ms, "{}: {heard} of {ms}", of.name);
            call.run(20);
        }
        assert!(call.log.marks.is_empty(), "nobody asked");
        // The last message was a mark, whose echo is the proof.
        assert_eq!(call.stream.counters().ignored, 0);
    }
}

#[test]
fn a_provider_that_plays_nothing_is_not_believed_to_have_played() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        call.say_ms(800);
        call.now += 5_000 * MS;
        let heard = call.stream.heard_ms(call.now);
        assert!((300..=400).contains(&heard), "{}: no further than the first mark, not {heard}", of.name);
    }
}

#[test]
fn a_mark_amid_a_message_comes_back_after_its_sound() {
    for of in PROVIDERS {
        let format = usual(of);
        let mut call = Call::usual(of);
        call.say_ms(205);
        call.mark("here");
        call.run(1_000);
        let waits = call.log.marks.is_empty();
        assert!(waits || call.peer.heard.len() >= format.octets_per_ms() * 205, "{}", of.name);
        call.say_ms(400);
        call.end();
        call.run(1_000);
        let (name, heard) = &call.log.marks[0];
        assert!(name == "here" && *heard >= 205, "{}: {heard}", of.name);
    }
}

#[test]
fn a_mark_of_somebody_elses_is_ignored() {
    for of in PROVIDERS {
        let mut call = Call::usual(of);
        for name in ["t1", "t", "u7-3", "t99999999999999999999999", ""] {
            call.text(&echo(of.name, name));
            assert_eq!(call.log.last(), "ignored", "{}", of.name);
        }
        assert_eq!(call.stream.mark(&"x".repeat(257), call.now, &mut call.out), Err(MarkError::Name(257)));
    }
}

#[test]
fn a_start_is_bounded() {
    let parameters: Vec<String> = (0..100).map(|n| format!(r#""p{n:03}":"{}""#, "x".repeat(100))).collect();
    let text = format!(
        r#"{{"event":"start","start":{{"streamSid":"{}","customParameters":{{{}}}}}}}"#,
        "M".repeat(1_000),
        parameters.join(",")
    );
    let of = provider("twilio").unwrap();
    let mut call = Call::waiting(of, usual(of));
    call.text(&text);
    let start = call.stream.start().unwrap();
    assert_eq!((start.stream_id.len(), start.custom.len()), (256, 16));
    let long = format!(r#"{{"event":"mark","x":"{}"}}"#, "x".repeat(20_000));
    call.text(&long);
    assert_eq!(call.log.last(), format!("malformed {}", Malformed::TooLong(long.len())));
}

fn of_any() -> impl Strategy<Value = &'static Provider> {
    (0..PROVIDERS.len()).prop_map(|n| PROVIDERS[n])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_message_is_read_or_refused(of in of_any(), text in ".{0,120}", value in "[0-9\"a-z{}\\[\\],:-]{0,16}", octets: Vec<u8>) {
        for mut call in [Call::waiting(of, usual(of)), Call::usual(of)] {
            call.text(&text);
            call.binary(&octets);
            for event in ["start", "media", "dtmf", "mark", "stop", "websocket:connected", "websocket:dtmf", "MEDIA_START", "playedStream"] {
                call.text(&format!(r#"{{"event":"{event}","start":{value},"media":{value},"dtmf":{value},"content-type":{value},"format":{value}}}"#));
            }
            call.text(&format!("MEDIA_START {text}"));
        }
    }

    #[test]
    fn any_split_of_speech_is_legal_and_whole(
        of in of_any(),
        pieces in proptest::collection::vec((1usize..900, 0u8..12), 1..30),
    ) {
        let format = usual(of);
        let mut call = Call::usual(of);
        let (mut said, mut next) = (Vec::new(), 0_u8);
        for (samples, end) in pieces {
            let piece: Vec<u8> = (0..samples * format.sample_octets()).map(|_| { next = next.wrapping_add(1) % 120; next }).collect();
            call.say(&piece);
            said.extend_from_slice(&piece);
            if end == 0 {
                call.end();
                // The peer has checked the padding's size; here it is taken out.
            }
        }
        call.end();
        call.run(60_000);
        // Padding is silence, which the speech does not hold but for L16's zero: so look at everything else.
        let silence = format.silence();
        let spoken = |octets: &[u8]| octets.iter().copied().filter(|octet| *octet != silence).collect::<Vec<u8>>();
        prop_assert_eq!(spoken(&call.peer.heard), spoken(&said));
        prop_assert_eq!(call.stream.heard_ms(call.now), (said.len() / format.octets_per_ms()) as u64);
    }
}
