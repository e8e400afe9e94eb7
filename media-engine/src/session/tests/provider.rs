//! A caller who comes by a provider's connection, in virtual time.

use tandem_stream::audiosocket::Server;
use tandem_stream::provider::registry::provider;

use super::*;
use crate::leg::event::HowDropped;
use crate::leg::provider::{
    AUDIOSOCKET_FRAMES_MAX, Connection, Protocol, QUEUE_MS_MAX, RETAKE, SILENT_MAX, StreamParameters,
};

/// A provider and the session that it talks to.
struct Peer {
    session: Session,
    now: Instant,
    out: Vec<u8>,
    events: Vec<Event>,
    /// It answers pings, as RFC 6455 wants it.
    is_well: bool,
}

impl Peer {
    fn new(agent: AgentParameters, rate: Option<SampleRate>, call: &str) -> Self {
        let stream = Some(StreamParameters { rate, call_id: call.into() });
        let rtp = crate::contract::stream_rtp();
        let now = Instant::now();
        let session = Session::new(SessionParameters { rtp, stream, ..with(agent) }, now).unwrap();
        Self { session, now, out: Vec::new(), events: Vec::new(), is_well: true }
    }

    /// One that is started, echoes, and has its connection.
    fn echo(name: &str, rate: Option<SampleRate>) -> Self {
        let mut peer = Self::new(AgentParameters::Echo, rate, "");
        peer.attach(Protocol::WebSocket(provider(name).unwrap()));
        peer.session.start(peer.now + 20 * MS, peer.now);
        peer
    }

    fn attach(&mut self, protocol: Protocol) {
        self.session.attach(connection(protocol), self.now);
        self.drain();
    }

    /// Another connection of the same provider's.
    fn attach_twilio(&mut self) {
        assert!(self.session.wants_line());
        self.attach(Protocol::WebSocket(provider("twilio").unwrap()));
    }

    fn drain(&mut self) {
        self.session.pace(self.now);
        if self.session.poll_timeout().is_some_and(|at| at <= self.now) {
            self.session.handle_timeout(self.now);
        }
        self.read();
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
    }

    /// The provider reads all there is.
    fn read(&mut self) {
        let mut stage = [0; 4_096];
        while self.session.has_provider_output() {
            let len = self.session.poll_provider(&mut stage, self.now);
            if len == 0 {
                break;
            }
            self.out.extend_from_slice(&stage[..len]);
            if self.is_well && stage[..len].ends_with(&[0x89, 0]) {
                self.say(Opcode::Pong, &[]);
            }
        }
    }

    fn run(&mut self, ms: u32) {
        for _ in 0..ms {
            self.now += MS;
            self.drain();
        }
    }

    fn octets(&mut self, octets: &[u8]) {
        self.session.handle_provider_bytes(octets, self.now);
        self.events.extend(std::iter::from_fn(|| self.session.poll_event()));
    }

    fn say(&mut self, opcode: Opcode, payload: &[u8]) {
        let mut out = Vec::new();
        append_frame(&mut out, opcode, Some([1, 2, 3, 4]), payload).unwrap();
        self.octets(&out);
    }

    fn text(&mut self, text: &str) {
        self.say(Opcode::Text, text.as_bytes());
    }

    /// What was written since this was last asked: text, or the length of sound.
    fn told(&mut self) -> Vec<String> {
        let octets = std::mem::take(&mut self.out);
        let mut reader = FrameReader::new(Role::Client);
        let mut told = Vec::new();
        let mut rest = &octets[..];
        while !rest.is_empty() {
            let taken = reader.push(rest);
            rest = &rest[taken..];
            while let Some(message) = reader.poll_message().unwrap() {
                told.push(match message {
                    Message::Text(text) => text.to_owned(),
                    Message::Binary(sound) => format!("{} octets", sound.len()),
                    Message::Close { code, .. } => format!("close {}", code.unwrap_or_default()),
                    Message::Ping(_) => "ping".to_owned(),
                    Message::Pong(_) => "pong".to_owned(),
                });
            }
        }
        told
    }

    fn dropped(&self) -> Vec<HowDropped> {
        let how = |event: &Event| match event {
            Event::StreamDropped { how, .. } => Some(*how),
            _ => None,
        };
        self.events.iter().filter_map(how).collect()
    }

    fn end(&self) -> Option<EndReason> {
        self.events.iter().find_map(|event| match event {
            Event::Ended { reason, .. } => Some(*reason),
            _ => None,
        })
    }

    fn started(&self) -> Option<(&str, u32)> {
        self.events.iter().find_map(|event| match event {
            Event::StreamStarted(started) => Some((started.codec, started.rate_hz)),
            _ => None,
        })
    }
}

fn connection(protocol: Protocol) -> Connection {
    Connection {
        protocol,
        remote: at(PHONE),
        tls: None,
        early: Vec::new(),
        answer: Vec::new(),
        keys: Vec::new(),
        counted: None,
    }
}

fn twilio_start(call: &str) -> String {
    format!(
        r#"{{"event":"start","sequenceNumber":"1","streamSid":"MZ1","start":{{"streamSid":"MZ1","accountSid":"AC1","callSid":"{call}","tracks":["inbound"],"mediaFormat":{{"encoding":"audio/x-mulaw","sampleRate":8000,"channels":1}},"customParameters":{{}}}}}}"#
    )
}

const STOP: &str = r#"{"event":"stop","streamSid":"MZ1","stop":{"accountSid":"AC1","callSid":"CA1"}}"#;

/// 20 ms of mu-law that is not silence: groups of three octets, and one.
fn twilio_media() -> String {
    let base64 = format!("{}AA==", "AAAA".repeat(53));
    format!(r#"{{"event":"media","streamSid":"MZ1","media":{{"track":"inbound","payload":"{base64}"}}}}"#)
}

#[test]
fn vonage_gets_one_frame_a_message_at_the_rate_that_its_start_names() {
    for (hz, octets) in [(8_000, 320), (16_000, 640), (24_000, 960)] {
        // C18: another rate than it was asked for. C24: sound before the start is kept.
        let mut peer = Peer::echo("vonage", Some(SampleRate::Hz16000));
        peer.say(Opcode::Binary, &vec![0x11; octets]);
        peer.text(&format!(r#"{{"event":"websocket:connected","content-type":"audio/l16;rate={hz}"}}"#));
        assert_eq!(peer.started(), Some(("L16", hz)));
        peer.run(20);
        for _ in 0..3 {
            peer.say(Opcode::Binary, &vec![0x11; octets]);
            peer.run(20);
        }
        peer.run(100);
        let told = peer.told();
        let sound: Vec<_> = told.iter().filter(|told| told.ends_with("octets")).collect();
        // Four frames, and one for what the encoder keeps back.
        assert_eq!(sound.len(), 5, "{told:?}");
        assert!(sound.iter().all(|told| **told == format!("{octets} octets")), "{told:?}");
        assert_eq!(peer.session.stats(peer.now).rtp_received, 4);
    }
}

#[test]
fn linear_sound_comes_back_as_it_went() {
    let mut peer = Peer::echo("vonage", None);
    peer.text(r#"{"event":"websocket:connected","content-type":"audio/l16;rate=16000"}"#);
    let said: Vec<u8> = (0..320i16).flat_map(|sample| (sample * 50).to_le_bytes()).collect();
    peer.say(Opcode::Binary, &said);
    peer.run(40);
    assert!(peer.out.windows(said.len()).any(|window| window == said), "the same little-endian samples");
}

#[test]
fn vonages_orderly_close_ends_the_call_and_a_lost_connection_does_not() {
    let mut peer = Peer::echo("vonage", None);
    peer.text(r#"{"event":"websocket:connected","content-type":"audio/l16;rate=16000"}"#);
    peer.say(Opcode::Close, &1_000u16.to_be_bytes());
    assert_eq!((peer.dropped(), peer.end()), (vec![HowDropped::Stop], Some(EndReason::StreamStopped)));
    let mut peer = Peer::echo("vonage", None);
    peer.text(r#"{"event":"websocket:connected","content-type":"audio/l16;rate=16000"}"#);
    peer.session.handle_provider_ended(None, peer.now);
    peer.drain();
    assert_eq!((peer.dropped(), peer.end()), (vec![HowDropped::Lost], None));
}

#[test]
fn stream_that_its_provider_closes_in_order_is_over_though_the_leg_may_live() {
    for (code, how) in [(1_000, HowDropped::Stop), (1_001, HowDropped::Lost), (1_011, HowDropped::Lost)] {
        let mut peer = Peer::echo("twilio", None);
        peer.text(&twilio_start("CA1"));
        peer.say(Opcode::Close, &u16::to_be_bytes(code));
        assert_eq!(peer.dropped(), [how], "{code}");
        let is_told = |event: &Event| matches!(event, Event::StreamDropped { leg_may_live: true, .. });
        assert!(peer.events.iter().any(is_told), "it did not say that the call is over");
    }
}

#[test]
fn exotel_gets_messages_of_its_own_length_and_a_padded_tail() {
    let mut peer = Peer::echo("exotel", None);
    peer.text(
        r#"{"event":"start","stream_sid":"S1","start":{"stream_sid":"S1","call_sid":"C1","account_sid":"A","media_format":{"encoding":"audio/x-raw","sample_rate":"8000"}}}"#,
    );
    assert_eq!(peer.started(), Some(("L16", 8_000)));
    // 160 ms of sound at once.
    let sound = "AQEB".repeat(2_560 / 3) + "AQ==";
    peer.text(&format!(r#"{{"event":"media","stream_sid":"S1","media":{{"payload":"{sound}"}}}}"#));
    peer.run(300);
    let told = peer.told();
    let octets = told.iter().filter(|told| told.contains("\"media\"")).map(|told| {
        let payload = told.split("\"payload\":\"").nth(1).unwrap().split('"').next().unwrap();
        payload.trim_end_matches('=').len() * 3 / 4
    });
    let octets: Vec<_> = octets.collect();
    assert!(octets.iter().all(|octets| octets % 320 == 0), "{octets:?}");
    assert_eq!(octets.iter().sum::<usize>(), 2_880, "what was said, and a frame for the encoder: {octets:?}");
}

#[test]
fn keys_of_a_provider_are_told_once() {
    let mut peer = Peer::echo("twilio", None);
    peer.text(&twilio_start("CA1"));
    peer.text(r##"{"event":"dtmf","streamSid":"MZ1","dtmf":{"track":"inbound_track","digit":"#"}}"##);
    let keys = |peer: &Peer| {
        peer.events.iter().filter(|event| matches!(event, Event::Dtmf { digit: '#', .. })).count()
    };
    assert_eq!(keys(&peer), 1);
    // The control plane may have heard of it, too.
    peer.session.tell(&Notice::Dtmf { digit: '#', duration_ms: 100 }, peer.now);
    assert_eq!(keys(&peer), 1);
}

#[test]
fn media_before_the_start_and_after_the_stop_is_not_heard() {
    let mut peer = Peer::echo("twilio", None);
    peer.text(&twilio_media());
    peer.run(60);
    assert_eq!((peer.told().len(), peer.session.stats(peer.now).rtp_received), (0, 0));
    peer.text(&twilio_start("CA1"));
    peer.text(&twilio_media());
    assert_eq!(peer.session.stats(peer.now).rtp_received, 1);
    peer.text(STOP);
    peer.text(&twilio_media());
    peer.text(STOP);
    assert_eq!(peer.session.stats(peer.now).rtp_received, 1);
    assert_eq!((peer.dropped(), peer.end()), (vec![HowDropped::Stop], Some(EndReason::StreamStopped)));
    peer.read();
    assert_eq!(peer.told().last().map(String::as_str), Some("close 1000"));
    assert!(peer.session.is_line_over());
}

#[test]
fn a_connection_without_a_start_is_closed_and_its_session_given_up() {
    let mut peer = Peer::echo("twilio", None);
    peer.run(9_990);
    assert!(peer.told().is_empty() && peer.events.is_empty());
    peer.run(20);
    assert_eq!(peer.told(), ["close 1008"]);
    assert_eq!(peer.dropped(), [HowDropped::Lost]);
    peer.run(RETAKE.as_millis() as u32 - 100);
    assert_eq!(peer.end(), None);
    peer.run(200);
    assert_eq!(peer.end(), Some(EndReason::StreamLost));
}

#[test]
fn malformed_messages_are_counted_and_the_call_goes_on() {
    let mut peer = Peer::echo("twilio", None);
    peer.text(&twilio_start("CA1"));
    peer.text("{");
    peer.text(r#"{"event":"news","x":1}"#);
    peer.text(r#"{"event":"media","streamSid":"MZ1","media":{"track":"inbound","payload":"AAA"}}"#);
    assert_eq!(peer.session.poll_oddities().provider.malformed, 2);
    peer.text(&twilio_media());
    peer.run(40);
    assert!(peer.told().iter().any(|told| told.contains("\"media\"")));
}

#[test]
fn a_provider_that_does_not_read_loses_the_oldest_and_is_heard_all_the_same() {
    let mut peer = Peer::new(AgentParameters::Tone { frequency_hz: 440.0 }, None, "");
    peer.attach(Protocol::WebSocket(provider("twilio").unwrap()));
    peer.session.start(peer.now, peer.now);
    peer.text(&twilio_start("CA1"));
    peer.drain();
    peer.out.clear();
    for _ in 0..3_000 {
        peer.now += MS;
        peer.session.pace(peer.now);
        peer.text(r#"{"event":"mark","streamSid":"MZ1","mark":{"name":"x"}}"#);
    }
    let dropped = peer.session.poll_oddities().provider.dropped_ms;
    assert!((1_900..=2_100).contains(&dropped), "{dropped} ms");
    peer.read();
    let frames = peer.told().iter().filter(|told| told.contains("\"media\"")).count();
    assert!(frames <= QUEUE_MS_MAX / 20 + 1, "{frames}");
}

#[test]
fn what_a_provider_did_not_read_is_not_heard() {
    let mut peer = Peer::new(websocket(Dialect::Pcm), None, "");
    peer.attach_twilio();
    peer.session.start(peer.now, peer.now);
    peer.text(&twilio_start("CA1"));
    // Three seconds, of which one waits and the rest is dropped.
    peer.session.playout.push(&[1_000; 48_000]);
    for _ in 0..3_100 {
        peer.now += MS;
        peer.session.pace(peer.now);
        peer.text(r#"{"event":"mark","streamSid":"MZ1","mark":{"name":"x"}}"#);
    }
    assert!(peer.session.heard_ms() <= 40, "{}", peer.session.heard_ms());
    peer.read();
    let heard = peer.session.heard_ms();
    assert!((980..=1_040).contains(&heard), "{heard}");
}

#[test]
fn a_gap_in_the_timestamps_is_concealed_and_a_leap_is_bounded() {
    let mut peer = Peer::echo("twilio", None);
    peer.text(&twilio_start("CA1"));
    let media =
        |at: u64| twilio_media().replace("\"payload\"", &format!("\"timestamp\":\"{at}\",\"payload\""));
    peer.text(&media(0));
    peer.text(&media(80));
    let stats = peer.session.stats(peer.now);
    assert_eq!((stats.rtp_received, stats.rtp_lost), (2, 3));
    peer.text(&media(100_000_000));
    let lost = peer.session.stats(peer.now).rtp_lost;
    assert!(lost <= 53, "{lost}");
}

#[test]
fn while_the_connection_is_lost_the_agent_waits_and_the_same_call_goes_on() {
    let mut peer = Peer::new(websocket(Dialect::Twilio), None, "CA1");
    peer.attach(Protocol::WebSocket(provider("twilio").unwrap()));
    peer.session.start(peer.now, peer.now);
    peer.text(&twilio_start("CA1"));
    assert!(!peer.session.wants_line());
    peer.session.playout.push(&[1_000; 8_000]);
    peer.run(100);
    let heard = peer.session.playout().heard_ms();
    assert!((80..=120).contains(&heard), "{heard}");
    peer.session.handle_provider_ended(None, peer.now);
    peer.run(1_000);
    assert_eq!(peer.session.playout().heard_ms(), heard, "nobody hears it");
    assert_eq!(peer.dropped(), [HowDropped::Lost]);
    assert!(peer.session.wants_line());

    peer.attach(Protocol::WebSocket(provider("twilio").unwrap()));
    peer.run(100);
    assert_eq!(peer.session.playout().heard_ms(), heard, "it has not said whose it is");
    peer.text(&twilio_start("CA2"));
    peer.drain();
    assert!(peer.told().contains(&"close 1008".to_owned()));
    assert_eq!(peer.dropped(), [HowDropped::Lost; 2], "its claim is free again");
    peer.session.handle_provider_ended(None, peer.now);
    assert_eq!(peer.dropped().len(), 2, "told once");

    peer.attach(Protocol::WebSocket(provider("twilio").unwrap()));
    peer.text(&twilio_start("CA1"));
    peer.run(100);
    assert!(peer.session.playout().heard_ms() > heard, "it goes on where it was");
    peer.run(20_000);
    assert_eq!(peer.end(), None);
}

#[test]
fn an_audiosocket_never_falls_silent_and_follows_its_rate() {
    let now = Instant::now();
    let mut server = Box::new(Server::new(now));
    server.handle_bytes(&[&[0x01, 0, 16][..], &[7; 16]].concat(), now, |_| {});
    let mut peer = Peer::new(AgentParameters::Echo, None, "");
    peer.attach(Protocol::AudioSocket(server));
    let frames = |peer: &mut Peer| {
        let octets = std::mem::take(&mut peer.out);
        let (mut rest, mut frames) = (&octets[..], Vec::new());
        while let [kind, high, low, tail @ ..] = rest {
            let (payload, tail) = tail.split_at(usize::from(u16::from_be_bytes([*high, *low])));
            frames.push((*kind, payload.to_vec()));
            rest = tail;
        }
        frames
    };
    peer.run(1_000);
    let before = frames(&mut peer);
    assert!((49..=52).contains(&before.len()) && before.iter().all(|frame| *frame == (0x10, vec![0; 320])));
    peer.session.start(peer.now + 20 * MS, peer.now);
    peer.run(1_000);
    assert!((49..=52).contains(&frames(&mut peer).len()), "and neither when it is answered");

    let said = 0x0102u16.to_le_bytes().repeat(320);
    for _ in 0..5 {
        peer.octets(&[&[0x12, 0x02, 0x80][..], &said].concat());
        peer.run(20);
    }
    let wide = frames(&mut peer);
    assert!(wide.iter().skip(1).all(|(kind, payload)| (*kind, payload.len()) == (0x12, 640)), "{wide:?}");
    assert!(wide.iter().any(|(_, payload)| *payload == said));
    peer.octets(&[0x03, 0, 1, b'*']);
    assert!(peer.events.iter().any(|event| matches!(event, Event::Dtmf { digit: '*', .. })));
    peer.session.close("agent");
    peer.read();
    assert_eq!(frames(&mut peer).last(), Some(&(0x00, Vec::new())));
}

#[test]
fn mu_law_under_the_label_of_linear_sound_is_noticed_once() {
    let now = Instant::now();
    let mut server = Box::new(Server::new(now));
    server.handle_bytes(&[&[0x01, 0, 16][..], &[7; 16]].concat(), now, |_| {});
    let mut peer = Peer::new(AgentParameters::Echo, None, "");
    peer.attach(Protocol::AudioSocket(server));
    let mut noticed = 0;
    for _ in 0..60 {
        peer.octets(&[&[0x10, 0, 160][..], &[0x55; 160]].concat());
        peer.run(20);
        noticed += peer.session.poll_oddities().provider.mislabelled;
    }
    assert_eq!(noticed, 1);
}

/// A Twilio call that has lost its connection.
fn bereft() -> Peer {
    let mut peer = Peer::new(AgentParameters::Echo, None, "CA1");
    peer.attach_twilio();
    peer.session.start(peer.now, peer.now);
    peer.text(&twilio_start("CA1"));
    peer.session.handle_provider_ended(None, peer.now);
    peer.drain();
    assert_eq!(peer.dropped(), [HowDropped::Lost]);
    peer
}

#[test]
fn what_was_counted_of_a_lost_connection_stays_counted() {
    let mut peer = Peer::echo("twilio", None);
    peer.text(&twilio_start("CA1"));
    peer.text("{");
    assert_eq!(peer.session.poll_oddities().provider.malformed, 1);
    peer.session.handle_provider_ended(None, peer.now);
    assert_eq!(peer.session.poll_oddities().provider.malformed, 0);
    peer.attach_twilio();
    peer.text("{");
    assert_eq!(peer.session.poll_oddities().provider.malformed, 1);
}

#[test]
fn whoever_comes_in_a_lost_ones_place_and_fails_is_dropped_and_the_call_waits_on() {
    let bad_format = twilio_start("CA1").replace("audio/x-mulaw", "audio/x-l16");
    for words in [bad_format, STOP.to_owned(), twilio_start("CA2"), twilio_start("")] {
        let mut peer = bereft();
        peer.attach_twilio();
        peer.text(&words);
        peer.drain();
        assert_eq!((peer.dropped(), peer.end()), (vec![HowDropped::Lost; 2], None), "{words}");
        peer.attach_twilio();
        peer.text(&twilio_start("CA1"));
        assert!(!peer.session.wants_line(), "{words}");
    }
}

#[test]
fn a_start_that_does_not_name_the_call_that_is_expected_is_refused() {
    let mut peer = Peer::new(AgentParameters::Echo, None, "CA1");
    peer.attach_twilio();
    peer.text(&twilio_start(""));
    peer.drain();
    assert_eq!((peer.told(), peer.dropped()), (vec!["close 1008".to_owned()], vec![HowDropped::Lost]));
    // A socket that names no call has had its proof.
    let mut peer = Peer::new(AgentParameters::Echo, None, "U1");
    peer.attach(Protocol::WebSocket(provider("vonage").unwrap()));
    peer.text(r#"{"event":"websocket:connected","uuid":"U2","content-type":"audio/l16;rate=16000"}"#);
    assert!(peer.started().is_some() && peer.dropped().is_empty());
}

#[test]
fn a_newer_connection_takes_the_place_of_one_that_has_not_said_whose_it_is() {
    let mut peer = bereft();
    peer.attach_twilio();
    peer.attach_twilio();
    peer.text(&twilio_start("CA1"));
    assert!(!peer.session.wants_line(), "it is live");
    peer.text(&twilio_media());
    peer.run(40);
    assert!(peer.told().iter().any(|told| told.contains("\"media\"")));
}

#[test]
fn connections_that_say_nothing_buy_no_time() {
    let mut peer = bereft();
    peer.attach_twilio();
    peer.run(3_010);
    assert_eq!((peer.told(), peer.dropped()), (vec!["close 1008".to_owned()], vec![HowDropped::Lost; 2]));
    for _ in 0..6 {
        if peer.session.wants_line() {
            peer.attach_twilio();
            peer.run(1_900);
        }
    }
    peer.run(RETAKE.as_millis() as u32 - 3_010 - 6 * 1_900 + 100);
    assert_eq!(peer.end(), Some(EndReason::StreamLost), "15 s after the first");
}

#[test]
fn a_provider_that_falls_silent_is_asked_and_then_lost() {
    let mut peer = Peer::echo("twilio", None);
    peer.text(&twilio_start("CA1"));
    peer.run(20_000);
    assert!(peer.told().contains(&"ping".to_owned()) && peer.dropped().is_empty(), "it answers");
    peer.is_well = false;
    peer.run(SILENT_MAX.as_millis() as u32 + 2_100);
    assert_eq!((peer.dropped(), peer.end()), (vec![HowDropped::Lost], None));
    assert!(peer.told().contains(&"close 1001".to_owned()) && peer.session.wants_line());
    // Asterisk says nothing of a caller who holds.
    let mut peer = Peer::echo("asterisk", None);
    peer.is_well = false;
    peer.text(r#"{"event":"MEDIA_START","connection_id":"x","format":"ulaw","optimal_frame_size":160}"#);
    peer.run(20_000);
    assert!(peer.dropped().is_empty());
}

#[test]
fn sound_that_is_not_carried_is_our_fault() {
    let mut peer = Peer::echo("twilio", None);
    peer.text(&twilio_start("CA1").replace("audio/x-mulaw", "audio/x-l16"));
    assert_eq!((peer.dropped(), peer.end()), (vec![HowDropped::Fault], Some(EndReason::StreamFault)));
    let Some(Event::StreamDropped { reason, leg_may_live: true, provider: "twilio", .. }) =
        peer.events.iter().find(|event| matches!(event, Event::StreamDropped { .. }))
    else {
        panic!("{:?}", peer.events)
    };
    assert!(reason.contains("audio/x-l16"), "{reason}");
}

#[test]
fn a_stop_says_whether_the_phone_may_be_on_the_line_still() {
    for (name, start, stop, may_live) in [
        ("twilio", twilio_start("CA1"), STOP.to_owned(), false),
        (
            "exotel",
            r#"{"event":"start","stream_sid":"S","start":{"stream_sid":"S"}}"#.to_owned(),
            r#"{"event":"stop","stop":{"reason":"stopped"}}"#.to_owned(),
            true,
        ),
        (
            "telnyx",
            r#"{"event":"start","stream_id":"S","start":{"call_control_id":"C"}}"#.to_owned(),
            r#"{"event":"stop"}"#.to_owned(),
            true,
        ),
    ] {
        let mut peer = Peer::echo(name, None);
        peer.text(&start);
        peer.text(&stop);
        let told = peer.events.iter().find_map(|event| match event {
            Event::StreamDropped { how: HowDropped::Stop, leg_may_live, .. } => Some(*leg_may_live),
            _ => None,
        });
        assert_eq!(told, Some(may_live), "{name}");
    }
}

#[test]
fn telnyx_is_heard_in_the_callers_codec_and_spoken_to_in_pcmu() {
    // 60 ms of one sound each.
    for (encoding, rate, text) in [
        ("PCMA", 8_000, "VVVV".repeat(160)),
        ("L16", 16_000, "6APoA+gD".repeat(320)),
        ("G722", 8_000, "+vr6".repeat(160)),
    ] {
        let mut peer = Peer::echo("telnyx", None);
        peer.text(&format!(
            r#"{{"event":"start","stream_id":"S","start":{{"call_control_id":"C","media_format":{{"encoding":"{encoding}","sample_rate":{rate}}}}}}}"#
        ));
        peer.run(20);
        for chunk in 1..=5 {
            peer.text(&format!(r#"{{"event":"media","media":{{"chunk":"{chunk}","payload":"{text}"}}}}"#));
            peer.run(60);
        }
        peer.run(100);
        let told = peer.told();
        let payloads = told.iter().filter_map(|told| told.split("\"payload\":\"").nth(1)?.split('"').next());
        let sound: Vec<Vec<u8>> = payloads
            .map(|text| {
                let (mut scratch, mut octets) = ([0; 960], Vec::new());
                let decoded = tandem_stream::twilio::decode_payload(text, &mut scratch, |piece| {
                    octets.extend_from_slice(piece);
                });
                decoded.unwrap();
                octets
            })
            .collect();
        assert!(sound.len() >= 15 && sound.iter().all(|frame| frame.len() == 160), "{encoding}: {told:?}");
        let expected = match encoding {
            // The smallest step of A-law, which would be loud in mu-law; 1 000 of 32 768; next to nothing.
            "PCMA" => Some(tandem_audio::g711::linear_from_alaw(0x55)),
            "L16" => Some(1_000),
            _ => None,
        };
        let middle = i32::from(tandem_audio::g711::linear_from_ulaw(sound[7][80]));
        assert!((middle - i32::from(expected.unwrap_or(0))).abs() < 300, "{encoding}: {middle}");
        assert_eq!(peer.session.stats(peer.now).rtp_received, 15);
    }
}

#[test]
fn what_waits_to_become_a_message_is_not_heard() {
    let stream = Some(StreamParameters { rate: None, call_id: String::new() });
    let rtp = crate::contract::stream_rtp();
    let mut call = Call::new(SessionParameters { rtp, stream, ..with(websocket(Dialect::Pcm)) });
    let mut bot = Bot::meets(&mut call);
    call.session.attach(connection(Protocol::WebSocket(provider("exotel").unwrap())), call.now);
    call.session.start(call.now, call.now);
    let start = br#"{"event":"start","stream_sid":"S","start":{"stream_sid":"S","media_format":{"encoding":"raw/slin","sample_rate":"8000"}}}"#;
    let mut frame = Vec::new();
    append_frame(&mut frame, Opcode::Text, Some([1, 2, 3, 4]), start).unwrap();
    call.session.handle_provider_bytes(&frame, call.now);
    bot.texts(&mut call);

    let pass = |call: &mut Call, ms: u32| {
        let mut out = Vec::new();
        let mut stage = [0; 8_192];
        for _ in 0..ms {
            call.now += MS;
            call.session.pace(call.now);
            while call.session.has_provider_output() {
                let len = call.session.poll_provider(&mut stage, call.now);
                out.extend_from_slice(&stage[..len]);
                if len == 0 {
                    break;
                }
            }
        }
        String::from_utf8_lossy(&out).matches("\"event\":\"media\"").count()
    };
    bot.speaks(&mut call, 100);
    bot.asks(&mut call, r#"{"event":"mark","name":"m"}"#);
    let messages = pass(&mut call, 99);
    assert_eq!((messages, call.session.heard_ms()), (0, 0), "200 ms make a message");
    bot.asks(&mut call, r#"{"event":"clear"}"#);
    let texts = bot.texts(&mut call);
    assert_eq!(texts.last(), Some(&r#"{"event":"cleared","heardMs":0}"#), "{texts:?}");
    pass(&mut call, 100);
    // The next utterance counts from there.
    bot.speaks(&mut call, 200);
    assert_eq!(pass(&mut call, 260), 2, "a whole one, and what the encoder kept");
    assert_eq!(call.session.heard_ms(), 200);
}

#[test]
fn an_audiosocket_that_stood_still_catches_up_with_two_frames() {
    let now = Instant::now();
    let mut server = Box::new(Server::new(now));
    server.handle_bytes(&[&[0x01, 0, 16][..], &[7; 16]].concat(), now, |_| {});
    let mut peer = Peer::new(AgentParameters::Tone { frequency_hz: 440.0 }, None, "");
    peer.attach(Protocol::AudioSocket(server));
    peer.session.start(peer.now, peer.now);
    peer.run(100);
    peer.out.clear();
    for _ in 0..1_000 {
        peer.now += MS;
        peer.session.pace(peer.now);
    }
    let dropped = peer.session.poll_oddities().provider.dropped_ms;
    assert!((920..=980).contains(&dropped), "{dropped} ms");
    peer.read();
    assert_eq!(peer.out.len() / 323, AUDIOSOCKET_FRAMES_MAX);
}

#[test]
fn an_audiosocket_in_a_rate_that_is_not_carried_is_hung_up_whenever_that_is_known() {
    let foreign = [&[0x15, 0x06, 0xE4][..], &[1; 1_764]].concat();
    for is_parked in [true, false] {
        let now = Instant::now();
        let mut server = Box::new(Server::new(now));
        server.handle_bytes(&[&[0x01, 0, 16][..], &[7; 16]].concat(), now, |_| {});
        if is_parked {
            server.handle_bytes(&foreign, now, |_| {});
        }
        let mut peer = Peer::new(AgentParameters::Echo, None, "");
        peer.attach(Protocol::AudioSocket(server));
        if !is_parked {
            peer.octets(&foreign);
        }
        peer.read();
        assert_eq!((peer.dropped(), peer.end()), (vec![HowDropped::Fault], Some(EndReason::StreamFault)));
        assert!(peer.out.ends_with(&[0x00, 0, 0]), "hung up");
        assert_eq!(peer.started(), None);
    }
}

#[test]
fn an_audiosockets_start_is_told_when_its_rate_is_known_and_its_early_keys_are_not_lost() {
    let now = Instant::now();
    let server = || {
        let mut server = Box::new(Server::new(now));
        server.handle_bytes(&[&[0x01, 0, 16][..], &[7; 16]].concat(), now, |_| {});
        server
    };
    let mut peer = Peer::new(AgentParameters::Echo, None, "");
    let keys = b"4#".to_vec();
    let connection = Connection { keys, ..connection(Protocol::AudioSocket(server())) };
    peer.session.attach(connection, peer.now);
    peer.drain();
    let pressed = |peer: &Peer| {
        let digits = peer.events.iter().filter_map(|event| match event {
            Event::Dtmf { digit, .. } => Some(*digit),
            _ => None,
        });
        digits.collect::<String>()
    };
    assert_eq!((pressed(&peer).as_str(), peer.started()), ("4#", None));
    peer.octets(&[&[0x12, 0x02, 0x80][..], &[1; 640]].concat());
    assert_eq!(peer.started(), Some(("L16", 16_000)));
    // An old Asterisk's, whose label says nothing.
    let mut peer = Peer::new(AgentParameters::Echo, None, "");
    peer.attach(Protocol::AudioSocket(server()));
    for n in 0..11 {
        assert_eq!(peer.started(), None, "{n}");
        peer.octets(&[&[0x10, 0x02, 0x80][..], &[1; 640]].concat());
        peer.run(20);
    }
    assert_eq!(peer.started(), Some(("L16", 16_000)));
    // It was heard while it was parked.
    let mut heard = server();
    heard.handle_bytes(&[&[0x10, 0x01, 0x40][..], &[1; 320]].concat(), now, |_| {});
    let mut peer = Peer::new(AgentParameters::Echo, None, "");
    peer.attach(Protocol::AudioSocket(heard));
    assert_eq!(peer.started(), Some(("L16", 8_000)));
}

#[test]
fn nobody_is_idle_while_no_connection_is_live() {
    let stream = Some(StreamParameters { rate: None, call_id: "CA1".into() });
    let speech = SpeechParameters { idle: Some(1_000 * MS), ..SpeechParameters::default() };
    let mut peer = Peer::new(AgentParameters::Echo, None, "");
    let rtp = crate::contract::stream_rtp();
    let parameters = SessionParameters { rtp, stream, speech, ..with(AgentParameters::Echo) };
    peer.session = Session::new(parameters, peer.now).unwrap();
    peer.attach_twilio();
    peer.session.start(peer.now, peer.now);
    let idle = |peer: &Peer| peer.events.iter().filter(|event| matches!(event, Event::Idle { .. })).count();
    peer.run(2_000);
    assert_eq!(idle(&peer), 0, "nobody is there yet");
    peer.text(&twilio_start("CA1"));
    peer.run(900);
    assert_eq!(idle(&peer), 0);
    peer.session.handle_provider_ended(None, peer.now);
    peer.run(3_000);
    assert_eq!((idle(&peer), peer.session.stats(peer.now).idle_ms), (0, None));
    peer.attach_twilio();
    peer.text(&twilio_start("CA1"));
    peer.run(900);
    assert_eq!(idle(&peer), 0, "anew from here");
    peer.run(200);
    assert_eq!(idle(&peer), 1);
}

#[test]
fn a_phone_may_ring_behind_a_connection_for_longer_than_a_caller_may_be_silent() {
    let mut peer = Peer::echo("telnyx", None);
    peer.text(r#"{"event":"connected","version":"1.0.0"}"#);
    peer.run(100_000);
    assert!(peer.end().is_none() && peer.dropped().is_empty());
    peer.text(r#"{"event":"start","stream_id":"S","start":{"call_control_id":"C"}}"#);
    assert!(peer.started().is_some());
}

#[test]
fn how_a_connection_stands_is_listed() {
    let mut peer = Peer::new(AgentParameters::Echo, None, "CA1");
    let stands = |peer: &Peer| {
        let summary = peer.session.stream_summary().unwrap();
        (summary.state, summary.started.map(|started| (started.call_id, started.codec)))
    };
    peer.attach_twilio();
    assert_eq!(stands(&peer), ("waiting", None));
    peer.text(&twilio_start("CA1"));
    let started = Some(("CA1".to_owned(), "PCMU"));
    assert_eq!(stands(&peer), ("live", started.clone()));
    peer.session.handle_provider_ended(None, peer.now);
    assert_eq!(stands(&peer), ("dropped", started));
    assert!(Session::new(with(AgentParameters::Echo), peer.now).unwrap().stream_summary().is_none());
}
