//! Exotel AgentStream (the Voicebot applet and Connect paths).
//!
//! Linear sound in JSON, about 100 ms a message. What is sent must be a multiple of 320 octets, some 100 to 200 ms a message, near
//! real time. Names come in two spellings, by the path of the call (`stream_sid`, `streamSid`); we write the start's and the other.

use super::wire::{Envelope, Part, append_text, open};
use super::{
    Frame, FrameRule, Incoming, Malformed, MediaFormat, PacedBy, Pacing, Provider, Receipts, START_WITHIN,
    Setup, Start, Wire,
};
use crate::twilio::quoted;

/// A message's octets are a multiple of this; anything else is heard as a click.
const UNIT_OCTETS: usize = 320;
/// Shortest message in mid-utterance, by the documentation: 200 ms at 8 kHz, 100 ms at 16 kHz.
const MESSAGE_OCTETS_MIN: usize = 3_200;
/// Longest message, by the documentation, in whole units.
const MESSAGE_OCTETS_MAX: usize = 100_000 / UNIT_OCTETS * UNIT_OCTETS;

/// Exotel. Blasting correlates with calls that drop after 4 s: two messages ahead.
pub(super) static EXOTEL: Provider = Provider {
    name: "exotel",
    pacing: Pacing { paced_by: PacedBy::Provider, send_ahead_ms: 400, provider_holds_ms: None },
    receipts: Receipts::Echoed,
    confirms_clear: false,
    ends_by_closing: false,
    names_call: true,
    is_continuous: true,
    start_within: START_WITHIN,
    outgoing: None,
    leg_may_outlive_stop: |reason| reason.eq_ignore_ascii_case("stopped"),
    subprotocol: None,
    wire: || Box::<Exotel>::default(),
};

#[derive(Debug, Default)]
struct Exotel {
    /// `"stream_sid":"…","streamSid":"…"`, the start's spelling first.
    ids: String,
    sequence: u64,
}

impl Wire for Exotel {
    fn read<'a>(&mut self, text: &'a str, setup: &Setup) -> Result<Incoming<'a>, Malformed> {
        let (event, object) = match open(text)? {
            Envelope::Audio(payload) => return Ok(Incoming::Audio(payload)),
            Envelope::Event(event, object) => (event.to_ascii_lowercase(), object),
        };
        Ok(match event.as_str() {
            "connected" => Incoming::Connected,
            "start" => {
                let start = object.object(&["start", "Start"]);
                let spelt = |name: &[&str]| {
                    Some(start.id(name)).filter(|id| !id.is_empty()).unwrap_or_else(|| object.id(name))
                };
                let (snake, camel) = (spelt(&["stream_sid"]), spelt(&["streamSid", "StreamSid"]));
                let (stream_id, order) = match (snake, camel) {
                    (id, _) if !id.is_empty() => (id, ["stream_sid", "streamSid"]),
                    (_, id) if !id.is_empty() => (id, ["streamSid", "stream_sid"]),
                    _ => return Err(Malformed::Field { event: "start", field: "start.stream_sid" }),
                };
                let id = quoted(&stream_id);
                self.ids = format!(r#""{}":{id},"{}":{id}"#, order[0], order[1]);
                let format = start.object(&["media_format", "mediaFormat"]);
                let name = format.text(&["encoding"]).unwrap_or_else(|| "raw/slin".to_owned());
                let hz = format.number(&["sample_rate", "sampleRate"]).unwrap_or(u64::from(setup.rate.hz()));
                match MediaFormat::named(&name, hz) {
                    Ok(format) => Incoming::Start(Start {
                        call_id: spelt(&["call_sid", "callSid"]),
                        stream_id,
                        account_id: spelt(&["account_sid", "accountSid"]),
                        from: start.id(&["from", "From"]),
                        to: start.id(&["to", "To"]),
                        custom: start.object(&["custom_parameters", "customParameters"]).custom(&[]),
                        format,
                    }),
                    Err(error) => Incoming::Refused(error),
                }
            }
            "dtmf" => {
                let dtmf = object.object(&["dtmf", "Dtmf"]);
                Incoming::Dtmf { digit: dtmf.digit()?, duration_ms: dtmf.number(&["duration"]) }
            }
            "mark" => Incoming::Mark(object.object(&["mark", "Mark"]).need("mark", &["name"])?),
            "stop" | "closed" => {
                Incoming::Stop(object.object(&["stop", "Stop"]).text(&["reason"]).unwrap_or_default())
            }
            _ => Incoming::Ignored,
        })
    }

    fn frame_rule(&self, format: MediaFormat, setup: &Setup) -> FrameRule {
        let message = match setup.message_ms {
            Some(ms) => format.octets_per_ms().saturating_mul(ms as usize),
            None => MESSAGE_OCTETS_MIN.max(format.octets_per_ms() * 100),
        };
        let message = message.clamp(UNIT_OCTETS, MESSAGE_OCTETS_MAX).next_multiple_of(UNIT_OCTETS);
        FrameRule { message, unit: UNIT_OCTETS, silence: format.silence() }
    }

    fn write_audio(&mut self, frame: Frame<'_>, at_ms: u64, out: &mut Vec<u8>) {
        self.sequence += 1;
        // Some Connect streams end early without chunk, timestamp and number.
        append_text(
            out,
            &[
                Part::Text(br#"{"event":"media","#),
                Part::Text(self.ids.as_bytes()),
                Part::Text(br#","media":{"chunk":""#),
                Part::Number(self.sequence),
                Part::Text(br#"","timestamp":""#),
                Part::Number(at_ms),
                Part::Text(br#"","sequenceNumber":""#),
                Part::Number(self.sequence),
                Part::Text(br#"","payload":""#),
                Part::Base64(frame.octets()),
                Part::Text(br#""}}"#),
            ],
        );
    }

    fn write_mark(&mut self, serial: u64, out: &mut Vec<u8>) {
        append_text(
            out,
            &[
                Part::Text(br#"{"event":"mark","#),
                Part::Text(self.ids.as_bytes()),
                Part::Text(br#","mark":{"name":"t"#),
                Part::Number(serial),
                Part::Text(br#""}}"#),
            ],
        );
    }

    fn write_clear(&mut self, out: &mut Vec<u8>) {
        let parts = [Part::Text(br#"{"event":"clear","#), Part::Text(self.ids.as_bytes()), Part::Text(b"}")];
        append_text(out, &parts);
    }
}
