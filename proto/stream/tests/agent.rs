//! The `pcm` dialect from both ends: what is written is what contract and peer expect.

use proptest::prelude::*;
use tandem_stream::agent::{
    EventError, FRAME_BYTES, FRAME_SAMPLES, FromAgent, HangupAfter, OddAudio, Start, ToAgent, TransferMode,
    read_audio, write_audio,
};

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).expect("what we write is JSON")
}

#[test]
fn start_frame_is_the_one_in_the_contract() {
    let mut start = Start::new("0193-uuid", "sip:alice@example", "demo", "inbound");
    start.custom.insert("ticket".into(), "a \"b\"".into());
    assert_eq!(
        json(&ToAgent::Start(start).to_json()),
        json(
            r#"{"event":"start","callId":"0193-uuid","from":"sip:alice@example","to":"demo","direction":"inbound",
                "sampleRate":16000,"channels":1,"frameMs":20,"custom":{"ticket":"a \"b\""}}"#
        )
    );
    assert_eq!(json(&ToAgent::Start(Start::new("", "", "", "")).to_json())["custom"], json("{}"));
}

#[test]
fn events_to_the_agent_are_those_in_the_contract() {
    let written = |event: ToAgent| json(&event.to_json());
    assert_eq!(
        written(ToAgent::Dtmf { digit: '#', duration_ms: 120 }),
        json(r##"{"event":"dtmf","digit":"#","durationMs":120}"##)
    );
    assert_eq!(
        written(ToAgent::Mark { name: "u1".into(), heard_ms: 40 }),
        json(r#"{"event":"mark","name":"u1","heardMs":40}"#)
    );
    assert_eq!(written(ToAgent::Cleared { heard_ms: 7 }), json(r#"{"event":"cleared","heardMs":7}"#));
    assert_eq!(written(ToAgent::Speech { active: true }), json(r#"{"event":"speech","active":true}"#));
    assert_eq!(written(ToAgent::Hold), json(r#"{"event":"hold"}"#));
    assert_eq!(written(ToAgent::Resume), json(r#"{"event":"resume"}"#));
    assert_eq!(written(ToAgent::Answered), json(r#"{"event":"answered"}"#));
    let failed = ToAgent::Transfer { status: "failed".into(), reason: "486 Busy Here".into() };
    assert_eq!(written(failed), json(r#"{"event":"transfer","status":"failed","reason":"486 Busy Here"}"#));
    assert_eq!(
        written(ToAgent::Stop { reason: "caller".into() }),
        json(r#"{"event":"stop","reason":"caller"}"#)
    );
}

#[test]
fn events_of_the_agent_are_read() {
    let read = |text: &str| FromAgent::parse(text).unwrap().unwrap();
    assert_eq!(read(r#"{"event":"clear"}"#), FromAgent::Clear);
    assert_eq!(read(r#" {"name":"u1","event":"mark","extra":[1]} "#), FromAgent::Mark { name: "u1".into() });
    assert_eq!(read(r##"{"event":"dtmf","digits":"12#"}"##), FromAgent::Dtmf { digits: "12#".into() });
    assert_eq!(read(r#"{"event":"hangup","after":"now"}"#), FromAgent::Hangup { after: HangupAfter::Now });
    assert_eq!(read(r#"{"event":"hangup"}"#), FromAgent::Hangup { after: HangupAfter::Drain });
    assert_eq!(
        read(r#"{"event":"transfer","to":"sip:desk@example"}"#),
        FromAgent::Transfer { to: "sip:desk@example".into(), mode: TransferMode::Refer }
    );
}

#[test]
fn unknown_events_are_not_errors() {
    assert_eq!(FromAgent::parse(r#"{"event":"confetti","colour":3}"#), Ok(None));
    assert_eq!(ToAgent::parse(r#"{"event":"confetti"}"#), Ok(None));
}

#[test]
fn wrong_fields_are_named() {
    let refusal = |text: &str| FromAgent::parse(text).unwrap_err().to_string();
    assert_eq!(refusal(r#"{"event":"mark"}"#), "mark: field name is missing");
    assert_eq!(refusal(r#"{"event":"mark","name":7}"#), "mark: field name must be a string");
    assert_eq!(
        refusal(&format!(r#"{{"event":"mark","name":"{}"}}"#, "x".repeat(257))),
        "mark: field name must be at most 256 octets"
    );
    assert_eq!(
        refusal(r#"{"event":"dtmf","digits":"1x"}"#),
        "dtmf: field digits must be 1 to 64 of 0-9 * # A-D"
    );
    assert_eq!(
        refusal(r#"{"event":"dtmf","digits":""}"#),
        "dtmf: field digits must be 1 to 64 of 0-9 * # A-D"
    );
    assert_eq!(
        refusal(r#"{"event":"hangup","after":"lunch"}"#),
        "hangup: field after must be \"drain\" or \"now\""
    );
    assert_eq!(
        refusal(r#"{"event":"transfer","to":""}"#),
        "transfer: field to must be a number or a SIP URI"
    );
    assert_eq!(
        refusal(r#"{"event":"transfer","to":"1","mode":"push"}"#),
        "transfer: field mode must be \"refer\", \"bridge\", \"consult\", \"complete\", \"conference\" or \"cancel\""
    );
    assert_eq!(refusal(r#"{"event":3}"#), "?: field event must be a string");
    assert_eq!(refusal("{}"), "?: field event is missing");
    assert_eq!(refusal("[]"), "not a JSON object");
    assert_eq!(refusal("{\"event\":\n oops"), "not JSON at line 2 column 2");
    assert_eq!(FromAgent::parse(&" ".repeat(20_000)), Err(EventError::TooLong(20_000)));
    let refusal = |text: &str| ToAgent::parse(text).unwrap_err().to_string();
    assert_eq!(
        refusal(r#"{"event":"cleared","heardMs":-1}"#),
        "cleared: field heardMs must be a whole number"
    );
    assert_eq!(refusal(r#"{"event":"speech","active":"yes"}"#), "speech: field active must be true or false");
    assert_eq!(refusal(r#"{"event":"dtmf","digit":"12"}"#), "dtmf: field digit must be one of 0-9 * # A-D");
    assert_eq!(
        refusal(r#"{"event":"start","callId":"c","custom":{"a":1}}"#),
        "start: field custom must be an object of strings"
    );
}

#[test]
fn audio_is_little_endian() {
    let mut out = [0xAA; 5];
    assert_eq!(write_audio(&[0x0102, -2, 3], &mut out), 4);
    assert_eq!(out, [0x02, 0x01, 0xFE, 0xFF, 0xAA]);
    assert_eq!(read_audio(&out[..4]).unwrap().collect::<Vec<_>>(), [0x0102, -2]);
    assert_eq!(read_audio(&out).err(), Some(OddAudio(5)));
}

fn any_to_agent() -> impl Strategy<Value = ToAgent> {
    let start = (".{0,20}", ".{0,20}", proptest::collection::btree_map(".{0,9}", ".{0,9}", 0..4)).prop_map(
        |(call_id, from, custom)| {
            ToAgent::Start(Start { custom, ..Start::new(&call_id, &from, "to", "outbound") })
        },
    );
    prop_oneof![
        start,
        ("[0-9*#A-D]", any::<u32>()).prop_map(|(digit, duration_ms)| ToAgent::Dtmf {
            digit: digit.as_bytes()[0].into(),
            duration_ms
        }),
        (".{0,60}", any::<u64>()).prop_map(|(name, heard_ms)| ToAgent::Mark { name, heard_ms }),
        any::<u64>().prop_map(|heard_ms| ToAgent::Cleared { heard_ms }),
        any::<u64>().prop_map(|heard_ms| ToAgent::Paused { heard_ms }),
        any::<bool>().prop_map(|active| ToAgent::Speech { active }),
        Just(ToAgent::Hold),
        Just(ToAgent::Resume),
        Just(ToAgent::Answered),
        (".*", ".*").prop_map(|(status, reason)| ToAgent::Transfer { status, reason }),
        ".{0,60}".prop_map(|reason| ToAgent::Stop { reason }),
    ]
}

fn any_from_agent() -> impl Strategy<Value = FromAgent> {
    prop_oneof![
        Just(FromAgent::Clear),
        Just(FromAgent::Pause),
        Just(FromAgent::Resume),
        ".{0,60}".prop_map(|name| FromAgent::Mark { name }),
        "[0-9*#A-D]{1,64}".prop_map(|digits| FromAgent::Dtmf { digits }),
        any::<bool>().prop_map(|now| FromAgent::Hangup {
            after: if now { HangupAfter::Now } else { HangupAfter::Drain }
        }),
        (".{1,60}", proptest::sample::select(TransferMode::ALL.to_vec())).prop_map(|(to, mode)| {
            FromAgent::Transfer { to: if mode.names_somebody() { to } else { String::new() }, mode }
        }),
    ]
}

proptest! {
    #[test]
    fn events_to_the_agent_survive_the_wire(event in any_to_agent()) {
        prop_assert_eq!(ToAgent::parse(&event.to_json()), Ok(Some(event)));
    }

    #[test]
    fn events_of_the_agent_survive_the_wire(event in any_from_agent()) {
        prop_assert_eq!(FromAgent::parse(&event.to_json()), Ok(Some(event)));
    }

    #[test]
    fn audio_survives_the_wire(samples in proptest::collection::vec(any::<i16>(), 0..FRAME_SAMPLES)) {
        let mut out = [0; FRAME_BYTES];
        let len = write_audio(&samples, &mut out);
        prop_assert_eq!(read_audio(&out[..len]).unwrap().collect::<Vec<_>>(), samples);
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,80}", field in "[a-zA-Z]{1,9}", value in "[0-9\"a-z{}\\[\\],:-]{0,12}") {
        let _ = FromAgent::parse(&text);
        for event in ["start", "dtmf", "mark", "cleared", "speech", "stop", "hangup", "transfer"] {
            let text = format!(r#"{{"event":"{event}","{field}":{value}}}"#);
            let _ = FromAgent::parse(&text);
            let _ = ToAgent::parse(&text);
        }
    }
}
