//! An AudioSocket server as the agent.

use tandem_stream::audiosocket::{Message, Rate, Reader, append};

use super::*;

fn audiosocket(rate: Rate) -> AgentParameters {
    AgentParameters::AudioSocket(AudioSocketParameters {
        host: "agent.test".into(),
        port: 9_092,
        id: [7; 16],
        rate,
        connect_timeout: Duration::from_secs(5),
    })
}

fn connected(rate: Rate) -> Call {
    let mut call = Call::started(with(audiosocket(rate)));
    call.session.handle_connected(call.now);
    assert!(matches!(call.events()[..], [Event::AgentConnected { .. }]));
    assert_eq!(heard(&mut call)[0], format!("{:?}", Message::Id([7; 16])), "first of all");
    call
}

fn heard(call: &mut Call) -> Vec<String> {
    let mut out = [0; 4_096];
    let len = call.session.poll_stream(&mut out);
    let mut words = Vec::new();
    Reader::default()
        .handle_bytes(&out[..len], |message| {
            words.push(match message {
                Message::Audio { rate, samples } => format!("{rate:?} {}", samples.len()),
                message => format!("{message:?}"),
            });
        })
        .unwrap();
    words
}

fn says(call: &mut Call, message: &Message<'_>) {
    let mut wire = Vec::new();
    append(&mut wire, message);
    let (first, second) = wire.split_at(wire.len() / 2);
    call.session.handle_bytes(first, call.now);
    call.session.handle_bytes(second, call.now);
}

#[test]
fn the_caller_is_heard_in_frames_of_20_ms_at_the_rate_that_was_chosen() {
    for (rate, frame) in [(Rate::Hz8000, "Hz8000 320"), (Rate::Hz16000, "Hz16000 640")] {
        let mut call = connected(rate);
        call.says(0xFF);
        assert_eq!(heard(&mut call), [frame]);
    }
}

#[test]
fn the_agent_is_paced_however_unevenly_it_speaks() {
    let mut call = connected(Rate::Hz8000);
    let sound = i16::MAX.to_le_bytes().repeat(160);
    for _ in 0..5 {
        says(&mut call, &Message::Audio { rate: Rate::Hz8000, samples: &sound });
    }
    call.pass(200);
    let sounding: Vec<bool> = call.payloads().iter().map(|payload| is_sound(*payload)).collect();
    assert_eq!(sounding.iter().filter(|sounds| **sounds).count(), 5);
}

#[test]
fn a_key_is_told() {
    let mut call = connected(Rate::Hz8000);
    call.session.tell(&Notice::Dtmf { digit: '#', duration_ms: 100 }, call.now);
    assert_eq!(heard(&mut call), ["Dtmf(35)"]);
}

#[test]
fn a_hang_up_and_an_orderly_end_let_the_last_words_be_heard() {
    let sound = i16::MAX.to_le_bytes().repeat(160);
    let audio = Message::Audio { rate: Rate::Hz8000, samples: &sound };
    let ways: [fn(&mut Call); 2] =
        [|call| says(call, &Message::Hangup), |call| call.session.handle_ended(None, call.now)];
    for end in ways {
        let mut call = connected(Rate::Hz8000);
        says(&mut call, &audio);
        end(&mut call);
        assert!(call.events().is_empty(), "first its words");
        call.pass(40);
        assert!(matches!(call.events()[..], [Event::AgentHangup { after_drain: true }]));
    }
}

#[test]
fn an_error_and_a_broken_protocol_are_failures_with_a_reason() {
    let mut call = connected(Rate::Hz8000);
    says(&mut call, &Message::Error(Some(4)));
    assert!(
        matches!(&call.events()[..], [Event::AgentFailed { reason }] if reason == "agent reported error 4")
    );
    let mut call = connected(Rate::Hz8000);
    call.session.handle_bytes(&[0x10, 0xFF, 0xFF], call.now);
    assert!(matches!(&call.events()[..], [Event::AgentFailed { reason }] if reason.contains("65535 octets")));
    let mut call = Call::started(with(audiosocket(Rate::Hz8000)));
    call.pass(5_100);
    assert!(matches!(&call.events()[..], [Event::AgentFailed { reason }] if reason.contains("in time")));
}

#[test]
fn sound_of_another_rate_is_counted_and_not_played() {
    let mut call = connected(Rate::Hz8000);
    says(&mut call, &Message::Audio { rate: Rate::Hz16000, samples: &[1; 640] });
    assert_eq!(call.session.poll_oddities().malformed, 1);
    assert_eq!(call.session.playout().waiting_ms(), 0);
}

#[test]
fn a_call_that_ends_says_hang_up() {
    let mut call = connected(Rate::Hz8000);
    call.session.close("caller");
    assert_eq!(heard(&mut call), ["Hangup"]);
    assert!(call.session.is_stream_over());
}
