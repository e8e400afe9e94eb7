//! Sessions in virtual time: a phone, a bot and a clock, all of them plain values.

use std::collections::BTreeMap;

use tandem_audio::format::Ptime;
use tandem_rtp::latch::Latching;
use tandem_rtp::packet::{Header, Packet};
use tandem_rtp::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};
use tandem_stream::websocket::{FrameReader, Message, Opcode, Role, UpgradeRequest, Url, append_frame};

use super::*;
use crate::leg::agent::{Recording, WebSocketParameters};
use crate::leg::rtp::Direction;

const MS: Duration = Duration::from_millis(1);
const PHONE: &str = "192.0.2.1:4000";
const NAT: &str = "198.51.100.9:61000";

fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

fn rtp() -> RtpParameters {
    RtpParameters {
        remote: Some(at(PHONE)),
        codec: Some(Codec::Pcmu),
        payload_type: PayloadType::PCMU,
        ptime: Ptime::MS_20,
        event_payload_type: PayloadType::new(101),
        direction: Direction::SendReceive,
        latching: Latching::Auto,
    }
}

fn with(agent: AgentParameters) -> SessionParameters {
    SessionParameters {
        call: CallInfo { call_id: "0190-ab".into(), tenant_id: "t-1".into(), ..CallInfo::default() },
        rtp: rtp(),
        agent,
        media_timeout: Duration::from_secs(60),
        max_session: None,
        seed: 7,
    }
}

fn websocket(dialect: Dialect) -> AgentParameters {
    AgentParameters::WebSocket(Box::new(WebSocketParameters {
        url: Url::parse("ws://bot.test/talk").unwrap(),
        dialect,
        headers: vec![("x-secret".into(), "s".into())],
        custom: BTreeMap::from([("k".to_owned(), "v".to_owned())]),
        connect_timeout: Duration::from_secs(5),
    }))
}

/// A packet that left.
#[derive(Debug, Clone)]
struct Sent {
    at: Duration,
    to: SocketAddr,
    header: Header,
    payload: Vec<u8>,
}

/// One session, its phone and the time.
struct Call {
    session: Session,
    began: Instant,
    now: Instant,
    sequence: u16,
    timestamp: u32,
    sent: Vec<Sent>,
}

impl Call {
    fn new(parameters: SessionParameters) -> Self {
        let now = Instant::now();
        let session = Session::new(parameters, now).unwrap();
        Self { session, began: now, now, sequence: 65_530, timestamp: 0, sent: Vec::new() }
    }

    fn started(parameters: SessionParameters) -> Self {
        let mut call = Self::new(parameters);
        call.session.start(call.now + 5 * MS, call.now);
        call
    }

    /// Lets time pass, waking the session when it asks for it, as the worker does.
    fn pass(&mut self, ms: u32) {
        let end = self.now + MS * ms;
        while let Some(next) = self.session.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.tick();
            if self.session.poll_timeout() == Some(next) {
                break;
            }
        }
        self.now = end;
        self.tick();
    }

    fn tick(&mut self) {
        let mut out = [0; 1_472];
        while let Some(transmit) = self.session.poll_transmit(self.now, &mut out) {
            let packet = Packet::parse(&out[..transmit.len]).unwrap();
            self.sent.push(Sent {
                at: self.now - self.began,
                to: transmit.to,
                header: packet.header,
                payload: packet.payload.to_vec(),
            });
        }
        self.session.handle_timeout(self.now);
    }

    fn packet(&mut self, payload_type: u8, payload: &[u8]) -> Vec<u8> {
        let header = Header {
            marker: false,
            payload_type: PayloadType::new(payload_type).unwrap(),
            sequence: SequenceNumber(self.sequence),
            timestamp: Timestamp(self.timestamp),
            ssrc: Ssrc(99),
        };
        self.sequence = self.sequence.wrapping_add(1);
        let mut packet = header.to_octets().to_vec();
        packet.extend_from_slice(payload);
        packet
    }

    fn says_from(&mut self, source: &str, payload: &[u8]) {
        let packet = self.packet(0, payload);
        self.timestamp = self.timestamp.wrapping_add(payload.len() as u32);
        self.session.handle_datagram(at(source), &packet, self.now);
    }

    fn says(&mut self, code: u8) {
        self.says_from(PHONE, &[code; 160]);
    }

    fn loses_a_packet(&mut self) {
        self.sequence = self.sequence.wrapping_add(1);
        self.timestamp = self.timestamp.wrapping_add(160);
    }

    fn presses(&mut self, key: u8) {
        for n in 1..=6u16 {
            let [high, low] = (160 * n).to_be_bytes();
            let end = if n > 3 { 0x80 } else { 0 };
            let packet = self.packet(101, &[key, end | 10, high, low]);
            self.session.handle_datagram(at(PHONE), &packet, self.now);
        }
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    fn payloads(&mut self) -> Vec<u8> {
        self.sent.drain(..).map(|sent| sent.payload[0]).collect()
    }
}

/// The bot's side of the stream.
struct Bot {
    reader: FrameReader,
}

impl Bot {
    /// Connects and upgrades.
    fn meets(call: &mut Call) -> Self {
        call.session.handle_connected();
        let mut out = [0; 4_096];
        let len = call.session.poll_stream(&mut out);
        let (request, _) = UpgradeRequest::parse(&out[..len]).unwrap().unwrap();
        assert_eq!(request.path, "/talk");
        assert_eq!(request.header("x-secret"), Some("s"));
        let mut answer = Vec::new();
        request.write_response(&mut answer);
        call.session.handle_bytes(&answer, call.now);
        Self { reader: FrameReader::new(Role::Server) }
    }

    fn hears(&mut self, call: &mut Call) -> Vec<Message<'static>> {
        let mut messages = Vec::new();
        let mut out = [0; 4_096];
        loop {
            let len = call.session.poll_stream(&mut out);
            if len == 0 {
                return messages;
            }
            let mut rest = &out[..len];
            while !rest.is_empty() {
                let taken = self.reader.push(rest);
                rest = &rest[taken..];
                while let Some(message) = self.reader.poll_message().unwrap() {
                    messages.push(match message {
                        Message::Text(text) => Message::Text(text.to_owned().leak()),
                        Message::Binary(octets) => Message::Binary(octets.to_vec().leak()),
                        Message::Ping(octets) => Message::Ping(octets.to_vec().leak()),
                        Message::Pong(octets) => Message::Pong(octets.to_vec().leak()),
                        Message::Close { code, .. } => Message::Close { code, reason: "" },
                    });
                }
            }
        }
    }

    fn texts(&mut self, call: &mut Call) -> Vec<&'static str> {
        let texts = self.hears(call).into_iter().filter_map(|message| match message {
            Message::Text(text) => Some(text),
            _ => None,
        });
        texts.collect()
    }

    fn says(&self, call: &mut Call, opcode: Opcode, payload: &[u8]) {
        let mut frame = Vec::new();
        append_frame(&mut frame, opcode, None, payload).unwrap();
        // Cut in two, as TCP may.
        let (first, second) = frame.split_at(frame.len() / 2);
        call.session.handle_bytes(first, call.now);
        call.session.handle_bytes(second, call.now);
    }

    fn asks(&self, call: &mut Call, text: &str) {
        self.says(call, Opcode::Text, text.as_bytes());
    }

    /// Sound that comes out as 0x80 or 0x00 in PCMU: full scale.
    fn speaks(&self, call: &mut Call, ms: usize) {
        let sound = i16::MAX.to_le_bytes().repeat(16 * ms);
        self.says(call, Opcode::Binary, &sound);
    }
}

fn is_sound(payload: u8) -> bool {
    payload == 0x80
}

#[test]
fn nothing_leaves_before_the_answer_and_then_silence_each_ptime() {
    let mut call = Call::new(with(AgentParameters::Echo));
    call.says(1);
    call.pass(100);
    assert!(call.sent.is_empty());
    call.session.start(call.now + 7 * MS, call.now);
    call.pass(107);
    let times: Vec<_> = call.sent.iter().map(|sent| sent.at.as_millis()).collect();
    assert_eq!(times, [107, 127, 147, 167, 187, 207]);
    assert!(call.sent[0].header.marker && !call.sent[1].header.marker);
    assert!(call.sent.iter().all(|sent| sent.payload == [0xFF; 160] && sent.to == at(PHONE)));
    let (first, last) = (call.sent[0].header, call.sent[5].header);
    assert_eq!(last.sequence.distance_from(first.sequence), 5);
    assert_eq!(last.timestamp.distance_from(first.timestamp), 800);
}

#[test]
fn silence_of_a_law_is_d5() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp.codec = Some(Codec::Pcma);
    parameters.rtp.payload_type = PayloadType::PCMA;
    let mut call = Call::started(parameters);
    call.pass(5);
    assert_eq!(call.sent[0].payload, [0xD5; 160]);
    assert_eq!(call.sent[0].header.payload_type, PayloadType::PCMA);
}

#[test]
fn the_echo_gives_back_what_it_heard_through_decode_and_encode() {
    let mut call = Call::started(with(AgentParameters::Echo));
    for number in 0..100u8 {
        call.says(number);
        call.pass(20);
    }
    assert_eq!(call.payloads(), (0..100).collect::<Vec<u8>>());
    let stats = call.session.stats(call.now);
    assert_eq!((stats.rtp_received, stats.rtp_sent, stats.rtp_lost), (100, 100, 0));
}

#[test]
fn audio_goes_back_to_where_it_came_from() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.pass(5);
    assert_eq!(call.sent[0].to, at(PHONE));
    call.says_from(NAT, &[1; 160]);
    assert!(matches!(call.events()[..], [Event::MediaStarted { remote, .. }] if remote == at(NAT)));
    call.pass(20);
    assert_eq!(call.sent[1].to, at(NAT));
    // A third party is neither heard nor followed.
    call.says_from("203.0.113.66:6666", &[2; 160]);
    call.pass(20);
    assert_eq!(call.sent[2].to, at(NAT));
    assert_eq!(call.session.stats(call.now).rtp_rejected, 1);
    assert!(call.events().is_empty());
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let mut call = Call::started(with(AgentParameters::Echo));
    for garbage in [&b""[..], b"x", &[0x80; 11], &[0x80, 33, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[0; 1_500]] {
        call.session.handle_datagram(at(NAT), garbage, call.now);
    }
    // RTCP is not garbage, but it is not counted either.
    call.session.handle_datagram(at(NAT), &[0x80, 200, 0, 1, 0, 0, 0, 0], call.now);
    call.pass(5);
    assert_eq!(call.sent[0].to, at(PHONE));
    assert_eq!(call.session.stats(call.now).rtp_rejected, 5);
}

#[test]
fn packets_out_of_order_are_put_in_order_and_lost_ones_become_silence() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.says(10);
    let early = call.packet(0, &[11; 160]);
    let late = call.packet(0, &[12; 160]);
    call.session.handle_datagram(at(PHONE), &late, call.now);
    call.session.handle_datagram(at(PHONE), &early, call.now);
    call.loses_a_packet();
    call.says(14);
    call.pass(200);
    let heard = call.payloads();
    assert_eq!(heard[..3], [10, 11, 12]);
    let after: Vec<u8> = heard[3..].iter().copied().filter(|code| *code != 0xFF).collect();
    assert_eq!(after, [14]);
    let stats = call.session.stats(call.now);
    assert_eq!((stats.rtp_lost, stats.rtp_reordered), (1, 1));
}

#[test]
fn a_burst_is_played_on_the_clock_and_what_is_too_much_is_dropped() {
    let mut call = Call::started(with(AgentParameters::Echo));
    for number in 0..20u8 {
        call.says(number);
    }
    assert_eq!(call.session.playout().waiting_ms(), 200);
    call.pass(205);
    assert_eq!(call.sent.len(), 11);
    assert_eq!(call.payloads()[..10], (10..20).collect::<Vec<u8>>());
    assert_eq!(call.session.stats(call.now).playout_dropped_ms, 200);
}

#[test]
fn keys_are_told_once_and_are_no_sound() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.says(1);
    call.presses(5);
    call.presses(5);
    call.timestamp += 8_000;
    call.presses(11);
    let keys: Vec<char> = call
        .events()
        .into_iter()
        .filter_map(|event| match event {
            Event::Dtmf { digit, .. } => Some(digit),
            _ => None,
        })
        .collect();
    assert_eq!(keys, ['5', '#']);
    assert_eq!(call.session.playout().waiting_ms(), 20);
}

#[test]
fn on_hold_nothing_leaves_and_media_time_goes_on() {
    let mut call = Call::started(with(AgentParameters::Tone { frequency_hz: 440.0 }));
    call.pass(45);
    assert_eq!(call.sent.len(), 3);
    let held = RtpParameters { direction: Direction::ReceiveOnly, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.pass(1_000);
    assert_eq!(call.sent.len(), 3);
    call.session.update(rtp(), call.now, call.now);
    call.pass(20);
    let [before, after] = [&call.sent[2], &call.sent[3]];
    assert!(after.header.marker);
    assert_eq!(after.header.sequence.distance_from(before.header.sequence), 1);
    let passed = after.at - before.at;
    let ticks = after.header.timestamp.distance_from(before.header.timestamp);
    assert_eq!(ticks as u128, passed.as_millis() * 8);
}

#[test]
fn a_held_call_does_not_end_for_want_of_media_and_a_silent_one_does() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.media_timeout = Duration::from_secs(2);
    let mut call = Call::started(parameters);
    let held = RtpParameters { direction: Direction::Inactive, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.pass(30_000);
    assert!(!call.session.is_ended());
    call.session.update(rtp(), call.now, call.now);
    call.pass(1_000);
    call.says(1);
    call.pass(1_900);
    assert!(!call.session.is_ended());
    call.pass(200);
    let events = call.events();
    let Some(Event::Ended { reason, stats }) = events.last() else { panic!("{events:?}") };
    assert_eq!(*reason, EndReason::MediaTimeout);
    assert_eq!(stats.rtp_received, 1);
    let sent = call.sent.len();
    call.pass(1_000);
    assert_eq!(call.sent.len(), sent, "nothing leaves after the end");
}

#[test]
fn a_session_ends_at_its_limit_even_if_it_was_never_answered() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.max_session = Some(Duration::from_secs(1));
    let mut call = Call::new(parameters);
    call.pass(1_001);
    assert!(matches!(call.events()[..], [Event::Ended { reason: EndReason::MaxSession, .. }]));
}

#[test]
fn a_delayed_offer_waits_for_its_answer() {
    let mut parameters = with(AgentParameters::Echo);
    parameters.rtp = RtpParameters { codec: None, remote: None, ..rtp() };
    let mut call = Call::started(parameters);
    call.pass(100);
    assert!(call.sent.is_empty());
    call.session.update(rtp(), call.now, call.now);
    call.pass(20);
    assert_eq!(call.sent.len(), 1);
    call.says(3);
    call.pass(20);
    assert_eq!(call.sent[1].payload, [3; 160]);
}

#[test]
fn a_new_codec_and_ptime_go_on_with_the_same_stream() {
    let mut call = Call::started(with(AgentParameters::Tone { frequency_hz: 1_000.0 }));
    call.pass(45);
    let changed = RtpParameters {
        codec: Some(Codec::L16_16k),
        payload_type: PayloadType::new(97).unwrap(),
        ptime: Ptime::MS_30,
        ..rtp()
    };
    call.session.update(changed, call.now + 3 * MS, call.now);
    call.pass(40);
    let [before, first, second] = &call.sent[2..5] else { panic!("{}", call.sent.len()) };
    assert_eq!(first.header.ssrc, before.header.ssrc);
    assert_eq!(first.header.sequence.distance_from(before.header.sequence), 1);
    assert_eq!((first.payload.len(), first.header.payload_type.get()), (960, 97));
    assert!(first.header.marker);
    assert_eq!(second.at - first.at, 30 * MS);
    assert_eq!(second.header.timestamp.distance_from(first.header.timestamp), 480);
}

#[test]
fn a_recording_is_played_to_its_end_and_again_if_it_repeats() {
    for (repeat, sounding) in [(false, 3), (true, 6)] {
        let samples = vec![i16::MAX; 16 * 50].into();
        let mut call = Call::started(with(AgentParameters::File(Recording { samples, repeat })));
        call.pass(105);
        let heard = call.sent.iter().filter(|sent| sent.payload.iter().any(|code| is_sound(*code)));
        assert_eq!(heard.count(), sounding, "repeat: {repeat}");
    }
}

#[test]
fn a_stalled_clock_catches_up_a_little_and_skips_the_rest() {
    let mut call = Call::started(with(AgentParameters::Echo));
    call.now += 5 * MS;
    call.tick();
    call.now += 60 * MS;
    call.tick();
    assert_eq!(call.sent.len(), 4, "three frames late are sent");
    call.now += 1_000 * MS;
    call.tick();
    assert_eq!(call.sent.len(), 5, "fifty are not");
    assert!(call.sent[4].header.marker);
    let ticks = call.sent[4].header.timestamp.distance_from(call.sent[3].header.timestamp);
    assert_eq!(ticks, 8_000);
}

#[test]
fn a_pcm_agent_is_told_who_calls_and_hears_the_caller_at_once() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    assert!(!call.session.is_agent_ready());
    call.now += 30 * MS;
    let mut bot = Bot::meets(&mut call);
    assert!(call.session.is_agent_ready());
    assert_eq!(call.events(), [Event::AgentConnected { took_ms: 30 }]);
    let start = bot.texts(&mut call)[0];
    assert!(start.contains(r#""event":"start""#) && start.contains(r#""callId":"0190-ab""#), "{start}");
    assert!(start.contains(r#""custom":{"k":"v"}"#), "{start}");
    for _ in 0..3 {
        call.says(0x80);
        let heard = bot.hears(&mut call);
        let frames: Vec<_> =
            heard.iter().filter(|m| matches!(m, Message::Binary(b) if b.len() == 640)).collect();
        assert_eq!(frames.len(), 1, "{heard:?}");
    }
    assert_eq!(call.session.stats(call.now).agent_frames_out, 3);
}

#[test]
fn what_an_agent_says_in_a_burst_leaves_on_the_clock() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    bot.speaks(&mut call, 100);
    call.pass(205);
    let heard: Vec<bool> =
        call.sent.iter().map(|sent| sent.payload[80..].iter().all(|c| is_sound(*c))).collect();
    assert_eq!(heard[..6], [true, true, true, true, true, false]);
    assert!(call.sent.windows(2).all(|pair| pair[1].at - pair[0].at == 20 * MS));
}

#[test]
fn clear_silences_the_next_packet_and_says_what_was_heard() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.speaks(&mut call, 1_000);
    bot.asks(&mut call, r#"{"event":"mark","name":"whole"}"#);
    call.pass(65);
    assert_eq!(call.sent.len(), 4);
    bot.asks(&mut call, r#"{"event":"clear"}"#);
    let texts = bot.texts(&mut call);
    assert_eq!(*texts.last().unwrap(), r#"{"event":"cleared","heardMs":80}"#);
    call.pass(20);
    assert_eq!(call.sent[4].payload, [0xFF; 160]);
    // The next utterance counts on from there, and the mark that was cleared never comes.
    bot.speaks(&mut call, 50);
    bot.asks(&mut call, r#"{"event":"mark","name":"next"}"#);
    call.pass(100);
    let texts = bot.texts(&mut call);
    assert_eq!(texts, [r#"{"event":"mark","heardMs":130,"name":"next"}"#]);
}

#[test]
fn hang_up_after_drain_waits_for_the_last_word_and_now_does_not() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    call.events();
    bot.speaks(&mut call, 100);
    bot.asks(&mut call, r#"{"event":"hangup","after":"drain"}"#);
    call.pass(80);
    assert!(call.events().is_empty());
    call.pass(20);
    assert_eq!(call.events(), [Event::AgentHangup { after_drain: true }]);
    bot.asks(&mut call, r#"{"event":"transfer","to":"sip:desk@example.com"}"#);
    bot.asks(&mut call, r#"{"event":"hangup","after":"now"}"#);
    let events = call.events();
    assert_eq!(events[0], Event::AgentTransfer { to: "sip:desk@example.com".into() });
    assert_eq!(events[1], Event::AgentHangup { after_drain: false });
}

#[test]
fn an_agent_presses_keys_towards_the_caller() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    bot.asks(&mut call, r#"{"event":"dtmf","digits":"7"}"#);
    call.pass(400);
    let keys: Vec<_> = call.sent.iter().filter(|sent| sent.header.payload_type.get() == 101).collect();
    assert!(keys.len() >= 5 && keys.iter().all(|sent| sent.payload[0] == 7), "{keys:?}");
    assert_eq!(call.sent.last().unwrap().header.payload_type, PayloadType::PCMU);
}

#[test]
fn an_agent_hears_of_keys_hold_and_speech_in_its_own_words() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    call.presses(3);
    let dtmf = bot.texts(&mut call);
    assert!(dtmf[0].contains(r#""digit":"3""#), "{dtmf:?}");
    let held = RtpParameters { direction: Direction::ReceiveOnly, ..rtp() };
    call.session.update(held, call.now, call.now);
    call.says(0x80);
    let while_held = bot.hears(&mut call);
    assert_eq!(while_held, [Message::Text(r#"{"event":"hold"}"#)], "music on hold is not for the agent");
    call.session.update(rtp(), call.now, call.now);
    assert_eq!(bot.texts(&mut call), [r#"{"event":"resume"}"#]);
    let mut texts = Vec::new();
    for n in 0..100u8 {
        let loud: Vec<u8> = (0..160u32).map(|i| if (i / 20) % 2 == 0 { 0x20 } else { 0xA0 }).collect();
        let quiet = [0xFF; 160];
        call.says_from(PHONE, if n < 50 { &loud } else { &quiet });
        call.pass(20);
        texts.extend(bot.texts(&mut call));
    }
    assert_eq!(texts, [r#"{"active":true,"event":"speech"}"#, r#"{"active":false,"event":"speech"}"#]);
}

#[test]
fn a_twilio_agent_is_spoken_to_as_by_twilio() {
    let mut call = Call::started(with(websocket(Dialect::Twilio)));
    let mut bot = Bot::meets(&mut call);
    let texts = bot.texts(&mut call);
    assert!(texts[0].contains(r#""event":"connected""#));
    assert!(texts[1].contains(r#""event":"start""#) && texts[1].contains(r#""customParameters":{"k":"v"}"#));
    assert!(texts[1].contains(r#""callSid":"CA0190ab""#), "{}", texts[1]);
    call.says(0x11);
    call.says(0x12);
    let media = bot.texts(&mut call);
    assert!(
        media[0].contains(r#""timestamp":"0""#) && media[0].contains(r#""payload":"ERER"#),
        "{}",
        media[0]
    );
    assert!(
        media[1].contains(r#""timestamp":"20""#) && media[1].contains(r#""payload":"EhIS"#),
        "{}",
        media[1]
    );
    // 48 octets of 0x10: six milliseconds.
    let payload = "EBAQ".repeat(16);
    bot.asks(&mut call, &format!(r#"{{"event":"media","media":{{"payload":"{payload}"}}}}"#));
    bot.asks(&mut call, r#"{"event":"mark","mark":{"name":"m"}}"#);
    call.pass(5);
    assert_eq!(call.sent[0].payload[..48], [0x10; 48]);
    assert_eq!(call.sent[0].payload[48..], [0xFF; 112]);
    let texts = bot.texts(&mut call);
    assert!(texts[0].contains(r#""event":"mark""#) && texts[0].contains(r#""name":"m""#), "{texts:?}");
    // Marks of what is cleared are echoed too.
    bot.asks(&mut call, &format!(r#"{{"event":"media","media":{{"payload":"{payload}"}}}}"#));
    bot.asks(&mut call, r#"{"event":"mark","mark":{"name":"cut"}}"#);
    bot.asks(&mut call, r#"{"event":"clear"}"#);
    assert!(bot.texts(&mut call)[0].contains(r#""name":"cut""#));
}

#[test]
fn an_agent_that_does_not_read_misses_the_oldest_sound_and_only_that() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    for _ in 0..75 {
        call.says(0x80);
    }
    assert_eq!(call.session.stats(call.now).agent_dropped_ms, 500);
    let frames = bot.hears(&mut call).into_iter().filter(|message| matches!(message, Message::Binary(_)));
    assert_eq!(frames.count(), 50);
}

#[test]
fn an_agent_that_floods_and_does_not_read_is_cut_off() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    for _ in 0..1_000 {
        bot.says(&mut call, Opcode::Ping, &[1; 125]);
    }
    let events = call.events();
    let Some(Event::AgentFailed { reason }) = events.last() else { panic!("{events:?}") };
    assert!(reason.contains("does not read"), "{reason}");
    assert!(call.session.is_stream_over());
    call.pass(25);
    assert_eq!(call.sent.len(), 2, "the call goes on in silence");
}

#[test]
fn a_ping_is_answered() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.says(&mut call, Opcode::Ping, b"hey");
    assert!(bot.hears(&mut call).contains(&Message::Pong(b"hey")));
}

#[test]
fn an_agent_that_is_not_there_in_time_has_failed() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    call.pass(4_990);
    assert!(call.events().is_empty());
    call.pass(20);
    let events = call.events();
    assert!(
        matches!(&events[..], [Event::AgentFailed { reason }] if reason.contains("in time")),
        "{events:?}"
    );
    assert!(call.session.is_stream_over());
}

#[test]
fn an_agent_that_refuses_or_breaks_the_upgrade_has_failed() {
    for answer in ["HTTP/1.1 403 No\r\n\r\n", "HTTP/1.1 101 Ok\r\nUpgrade: x\r\n\r\n", "220 mail\r\n"] {
        let mut call = Call::started(with(websocket(Dialect::Pcm)));
        call.session.handle_connected();
        call.session.handle_bytes(answer.as_bytes(), call.now);
        let events = call.events();
        assert!(
            matches!(&events[..], [Event::AgentFailed { reason }] if reason.contains("upgrade")),
            "{events:?}"
        );
    }
}

#[test]
fn frames_that_come_with_the_upgrade_are_not_lost() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    call.session.handle_connected();
    let mut out = [0; 4_096];
    let len = call.session.poll_stream(&mut out);
    let (request, _) = UpgradeRequest::parse(&out[..len]).unwrap().unwrap();
    let mut answer = Vec::new();
    request.write_response(&mut answer);
    append_frame(&mut answer, Opcode::Binary, None, &i16::MAX.to_le_bytes().repeat(320)).unwrap();
    for octet in answer {
        call.session.handle_bytes(&[octet], call.now);
    }
    assert_eq!(call.session.playout().waiting_ms(), 20);
}

#[test]
fn an_agent_that_leaves_is_reported_once_and_its_last_words_are_played() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let bot = Bot::meets(&mut call);
    call.events();
    bot.speaks(&mut call, 40);
    bot.says(&mut call, Opcode::Close, &[0x03, 0xE8]);
    call.session.handle_ended(None);
    let events = call.events();
    assert!(matches!(&events[..], [Event::AgentFailed { reason }] if reason.contains("1000")), "{events:?}");
    call.pass(45);
    let heard = call.sent.iter().filter(|sent| sent.payload.iter().any(|code| is_sound(*code)));
    assert_eq!(heard.count(), 2);
}

#[test]
fn closing_tells_the_agent_why_and_says_good_bye() {
    let mut call = Call::started(with(websocket(Dialect::Pcm)));
    let mut bot = Bot::meets(&mut call);
    bot.texts(&mut call);
    call.says(0x80);
    call.session.close("caller");
    assert!(!call.session.is_stream_over());
    let said = bot.hears(&mut call);
    assert_eq!(
        said,
        [
            Message::Text(r#"{"event":"stop","reason":"caller"}"#),
            Message::Close { code: Some(1_000), reason: "" }
        ]
    );
    assert!(call.session.is_stream_over());
    assert_eq!(call.session.poll_timeout(), None);
}

#[test]
fn a_stage_of_any_size_takes_the_stream_without_breaking_a_frame() {
    for room in [20, 333, 700, 1_400, 4_096] {
        let mut call = Call::started(with(websocket(Dialect::Twilio)));
        let mut bot = Bot::meets(&mut call);
        for number in 0..10 {
            call.says(number);
        }
        let mut octets = Vec::new();
        let mut stage = vec![0; room];
        loop {
            let len = call.session.poll_stream(&mut stage);
            if len == 0 {
                break;
            }
            octets.extend_from_slice(&stage[..len]);
        }
        let mut messages = 0;
        let mut rest = &octets[..];
        while !rest.is_empty() {
            rest = &rest[bot.reader.push(rest)..];
            while bot.reader.poll_message().unwrap().is_some() {
                messages += 1;
            }
        }
        // A stage that is too small for any frame of sound carries the texts only; the engine's has 4 096.
        assert_eq!(messages, if room < 400 { 2 } else { 12 }, "room {room}");
    }
}

#[test]
fn only_a_source_that_speaks_from_its_signalled_address_is_exclusive() {
    let mut call = Call::started(with(AgentParameters::Echo));
    assert_eq!(call.session.exclusive_peer(call.now), None, "nothing heard yet");
    call.says(1);
    assert_eq!(call.session.exclusive_peer(call.now), Some(at(PHONE)));
    call.pass(2_000);
    assert_eq!(call.session.exclusive_peer(call.now), None, "it fell silent: its address may move");
    call.says(1);
    assert_eq!(call.session.exclusive_peer(call.now), Some(at(PHONE)));
    let mut call = Call::started(with(AgentParameters::Echo));
    call.says_from(NAT, &[1; 160]);
    assert_eq!(call.session.exclusive_peer(call.now), None, "the signalled address may still take over");
}
