//! Twilio Media Streams from both ends, against the messages Twilio documents.

use std::borrow::Cow;
use std::collections::BTreeMap;

use proptest::prelude::*;
use tandem_stream::twilio::{
    BotWriter, BufferTooShort, FRAME_BYTES, FromBot, MessageError, PayloadError, StartInfo, StreamIds,
    StreamWriter, ToBot, decode_payload,
};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("what we write is JSON")
}

fn stream() -> StreamWriter {
    StreamWriter::new(StreamIds {
        stream_sid: "MZ0001".into(),
        call_sid: "CA0001".into(),
        account_sid: "AC0001".into(),
    })
}

fn media(stream: &mut StreamWriter, timestamp_ms: u64, mulaw: &[u8]) -> String {
    let mut out = vec![0; stream.media_len_max(mulaw.len())];
    let expected = stream.media_len(timestamp_ms, mulaw.len());
    let len = stream.media(timestamp_ms, mulaw, &mut out).expect("media_len_max is enough");
    assert_eq!(len, expected);
    String::from_utf8(out[..len].to_vec()).expect("JSON is text")
}

fn decoded(payload: &str) -> Vec<u8> {
    let mut octets = Vec::new();
    decode_payload(payload, &mut [0; 960], |piece| octets.extend_from_slice(piece))
        .expect("the payload is base64");
    octets
}

#[test]
fn a_stream_reads_as_twilio_writes_it() {
    let mut stream = stream();
    let custom = BTreeMap::from([("ctx".to_owned(), "ctx-1".to_owned())]);
    assert_eq!(
        json(&stream.connected()),
        json(r#"{"event":"connected","protocol":"Call","version":"1.0.0"}"#)
    );
    assert_eq!(
        json(&stream.start(&custom)),
        json(
            r#"{"event":"start","sequenceNumber":"1","streamSid":"MZ0001","start":{"streamSid":"MZ0001",
        "accountSid":"AC0001","callSid":"CA0001","tracks":["inbound"],"customParameters":{"ctx":"ctx-1"},
        "mediaFormat":{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}}}"#
        )
    );
    assert_eq!(
        json(&media(&mut stream, 0, b"abc")),
        json(
            r#"{"event":"media","sequenceNumber":"2","streamSid":"MZ0001",
        "media":{"track":"inbound","chunk":"1","timestamp":"0","payload":"YWJj"}}"#
        )
    );
    assert_eq!(
        json(&media(&mut stream, 20, b"abcd")),
        json(
            r#"{"event":"media","sequenceNumber":"3","streamSid":"MZ0001",
        "media":{"track":"inbound","chunk":"2","timestamp":"20","payload":"YWJjZA=="}}"#
        )
    );
    assert_eq!(
        json(&stream.dtmf('5')),
        json(
            r#"{"event":"dtmf","sequenceNumber":"4","streamSid":"MZ0001","dtmf":{"track":"inbound_track","digit":"5"}}"#
        )
    );
    assert_eq!(
        json(&stream.mark("u7-3")),
        json(r#"{"event":"mark","sequenceNumber":"5","streamSid":"MZ0001","mark":{"name":"u7-3"}}"#)
    );
    assert_eq!(
        json(&stream.stop()),
        json(
            r#"{"event":"stop","sequenceNumber":"6","streamSid":"MZ0001","stop":{"accountSid":"AC0001","callSid":"CA0001"}}"#
        )
    );
}

#[test]
fn a_short_buffer_moves_no_counter() {
    let mut stream = stream();
    let need = stream.media_len(0, FRAME_BYTES);
    assert_eq!(stream.media(0, &[0; FRAME_BYTES], &mut [0; 100]), Err(BufferTooShort { len: 100, need }));
    assert!(media(&mut stream, 0, b"abc").contains(r#""sequenceNumber":"1""#));
}

#[test]
fn ids_are_escaped() {
    let ids = StreamIds { stream_sid: "a\"b\\".into(), call_sid: "c".into(), account_sid: "d".into() };
    assert_eq!(json(&media(&mut StreamWriter::new(ids), 0, b""))["streamSid"], "a\"b\\");
    assert_eq!(json(&BotWriter::new("a\"b\\").clear())["streamSid"], "a\"b\\");
}

#[test]
fn a_bots_messages_are_read_and_its_media_borrowed() {
    let text = r#"{"event":"media","streamSid":"MZ0001","media":{"payload":"YWJj"}}"#;
    let Some(FromBot::Media { payload: Cow::Borrowed(payload) }) = FromBot::parse(text).unwrap() else {
        panic!("media without escapes must be borrowed");
    };
    assert_eq!(decoded(payload), b"abc");
    assert_eq!(
        FromBot::parse(r#"{"event":"mark","streamSid":"MZ","mark":{"name":"u7-3"}}"#),
        Ok(Some(FromBot::Mark { name: "u7-3".into() }))
    );
    assert_eq!(FromBot::parse(r#"{"event":"clear","streamSid":"MZ"}"#), Ok(Some(FromBot::Clear)));
    assert_eq!(FromBot::parse(r#"{"event":"confetti","media":{"payload":"x"}}"#), Ok(None));
}

#[test]
fn escaped_slashes_of_a_payload_are_undone() {
    let Some(FromBot::Media { payload }) =
        FromBot::parse(r#"{"event":"media","media":{"payload":"\/\/\/\/"}}"#).unwrap()
    else {
        panic!("this is media");
    };
    assert_eq!(decoded(&payload), [0xFF; 3]);
}

#[test]
fn broken_messages_say_what_is_wrong() {
    let missing = |event, field| Err(MessageError::Missing { event, field });
    assert_eq!(FromBot::parse(r#"{"event":"media"}"#), missing("media", "media.payload"));
    assert_eq!(FromBot::parse(r#"{"event":"media","media":{}}"#), missing("media", "media.payload"));
    assert_eq!(FromBot::parse(r#"{"event":"mark","mark":{}}"#), missing("mark", "mark.name"));
    let long = format!(r#"{{"event":"mark","mark":{{"name":"{}"}}}}"#, "x".repeat(257));
    assert_eq!(FromBot::parse(&long), Err(MessageError::MarkName(257)));
    assert!(matches!(
        FromBot::parse(r#"{"event":"media","media":{"payload":3}}"#),
        Err(MessageError::Json(_))
    ));
    assert!(matches!(FromBot::parse("{"), Err(MessageError::Json(_))));
    assert!(
        matches!(FromBot::parse(r#"{"streamSid":"x"}"#), Err(MessageError::Json(text)) if text.contains("event"))
    );
}

#[test]
fn a_broken_payload_yields_nothing() {
    let mut pieces = 0;
    let long = "A".repeat(2000);
    for broken in ["A", "YWJ", "YW=j", "Y WJ", "YWJj\n", &long[..1999], &format!("{long}!AAA")] {
        assert_eq!(decode_payload(broken, &mut [0; 30], |_| pieces += 1), Err(PayloadError(broken.len())));
    }
    assert_eq!(decode_payload("YWJj", &mut [0; 2], |_| pieces += 1), Err(PayloadError(4)));
    assert_eq!(pieces, 0);
}

#[test]
fn numbers_are_read_inside_strings_and_bare() {
    for (chunk, timestamp) in [(r#""2""#, r#""40""#), ("2", "40")] {
        let text = format!(
            r#"{{"event":"media","media":{{"track":"inbound","chunk":{chunk},"timestamp":{timestamp},"payload":""}}}}"#
        );
        let expected = ToBot::Media { chunk: 2, timestamp_ms: 40, payload: "".into() };
        assert_eq!(ToBot::parse(&text), Ok(Some(expected)));
    }
}

#[test]
fn a_bot_understands_every_message_of_a_stream() {
    let mut stream = stream();
    let custom = BTreeMap::from([("ctx".to_owned(), "ctx-1".to_owned())]);
    assert_eq!(ToBot::parse(&stream.connected()), Ok(Some(ToBot::Connected)));
    let start = StartInfo {
        stream_sid: "MZ0001".into(),
        call_sid: "CA0001".into(),
        account_sid: "AC0001".into(),
        encoding: "audio/x-mulaw".into(),
        sample_rate: 8_000,
        custom: custom.clone(),
    };
    assert_eq!(ToBot::parse(&stream.start(&custom)), Ok(Some(ToBot::Start(start))));
    assert_eq!(ToBot::parse(&stream.dtmf('#')), Ok(Some(ToBot::Dtmf { digit: "#".into() })));
    assert_eq!(ToBot::parse(&stream.mark("m")), Ok(Some(ToBot::Mark { name: "m".into() })));
    assert_eq!(ToBot::parse(&stream.stop()), Ok(Some(ToBot::Stop)));
    assert_eq!(ToBot::parse(r#"{"event":"confetti"}"#), Ok(None));
}

proptest! {
    #[test]
    fn audio_survives_the_way_to_the_bot(mulaw in proptest::collection::vec(any::<u8>(), 0..400), timestamp: u64) {
        let text = media(&mut stream(), timestamp, &mulaw);
        let Ok(Some(ToBot::Media { chunk, timestamp_ms, payload })) = ToBot::parse(&text) else {
            return Err(TestCaseError::fail(text));
        };
        prop_assert_eq!((chunk, timestamp_ms), (1, timestamp));
        prop_assert_eq!(decoded(&payload), mulaw);
    }

    #[test]
    fn audio_survives_the_way_from_the_bot_in_scratch_of_any_size(
        mulaw in proptest::collection::vec(any::<u8>(), 0..5000), scratch in 3usize..2000,
    ) {
        let bot = BotWriter::new("MZ1");
        let mut out = vec![0; bot.media_len(mulaw.len())];
        prop_assert_eq!(bot.media(&mulaw, &mut out), Ok(out.len()));
        let Ok(Some(FromBot::Media { payload })) = FromBot::parse(std::str::from_utf8(&out).unwrap()) else {
            return Err(TestCaseError::fail("not media"));
        };
        let mut octets = Vec::new();
        let len = decode_payload(&payload, &mut vec![0; scratch], |piece| octets.extend_from_slice(piece)).unwrap();
        prop_assert_eq!(len, mulaw.len());
        prop_assert_eq!(octets, mulaw);
    }

    #[test]
    fn marks_survive_both_ways(name in ".{0,64}") {
        let (to_us, to_bot) = (BotWriter::new("MZ1").mark(&name), stream().mark(&name));
        prop_assert_eq!(FromBot::parse(&to_us), Ok(Some(FromBot::Mark { name: name.clone() })));
        prop_assert_eq!(ToBot::parse(&to_bot), Ok(Some(ToBot::Mark { name })));
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,80}", value in "[0-9\"a-z{}\\[\\],:-]{0,12}") {
        for text in [text, format!(r#"{{"event":"media","media":{value}}}"#), format!(r#"{{"event":"start","start":{value}}}"#)] {
            let _ = FromBot::parse(&text);
            let _ = ToBot::parse(&text);
            let _ = decode_payload(&text, &mut [0; 9], |_| {});
        }
    }
}
