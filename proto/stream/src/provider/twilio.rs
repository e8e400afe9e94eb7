//! Twilio Media Streams, bidirectional (`<Connect><Stream>`), with Tandem in the bot's place. ([`crate::twilio`] is the other side.)
//!
//! mu-law at 8 kHz, 20 ms a message from Twilio, any length to it. All pending marks are echoed at once after `clear`. DTMF, hanging
//! up and transfers towards the caller are REST's.

use super::wire::{Envelope, Object, Part, append_text, open};
use super::{
    Encoding, FormatError, Frame, FrameRule, Incoming, Malformed, MediaFormat, PacedBy, Pacing, Provider,
    Receipts, START_WITHIN, Setup, Start, Wire,
};
use crate::twilio::quoted;

/// Twilio. What its buffer holds is not published; a second ahead keeps `clear` cheap.
pub(super) static TWILIO: Provider = Provider {
    name: "twilio",
    pacing: Pacing { paced_by: PacedBy::Provider, send_ahead_ms: 1_000, provider_holds_ms: None },
    receipts: Receipts::Echoed,
    confirms_clear: false,
    ends_by_closing: false,
    names_call: true,
    is_continuous: true,
    start_within: START_WITHIN,
    outgoing: None,
    leg_may_outlive_stop: |_| false,
    subprotocol: None,
    wire: || Box::<Twilio>::default(),
};

#[derive(Debug, Default)]
struct Twilio {
    /// As a JSON string.
    stream_sid: String,
}

impl Wire for Twilio {
    fn read<'a>(&mut self, text: &'a str, _: &Setup) -> Result<Incoming<'a>, Malformed> {
        let (event, object) = match open(text)? {
            Envelope::Audio(payload) => return Ok(Incoming::Audio(payload)),
            Envelope::Event(event, object) => (event, object),
        };
        Ok(match event.as_str() {
            "connected" => Incoming::Connected,
            "start" => {
                let start = object.object(&["start"]);
                let stream_id = start.id(&["streamSid"]);
                if stream_id.is_empty() {
                    return Err(Malformed::Field { event: "start", field: "start.streamSid" });
                }
                self.stream_sid = quoted(&stream_id);
                match format(&start.object(&["mediaFormat"])) {
                    Ok(format) => Incoming::Start(Start {
                        call_id: start.id(&["callSid"]),
                        stream_id,
                        account_id: start.id(&["accountSid"]),
                        from: String::new(),
                        to: String::new(),
                        custom: start.object(&["customParameters"]).custom(&[]),
                        format,
                    }),
                    Err(error) => Incoming::Refused(error),
                }
            }
            "dtmf" => Incoming::Dtmf { digit: object.object(&["dtmf"]).digit()?, duration_ms: None },
            "mark" => Incoming::Mark(object.object(&["mark"]).need("mark", &["name"])?),
            "stop" => Incoming::Stop(String::new()),
            _ => Incoming::Ignored,
        })
    }

    fn frame_rule(&self, format: MediaFormat, setup: &Setup) -> FrameRule {
        let message = format.octets_per_ms() * setup.message_ms.unwrap_or(20) as usize;
        FrameRule { message, unit: 1, silence: format.silence() }
    }

    fn write_audio(&mut self, frame: Frame<'_>, _: u64, out: &mut Vec<u8>) {
        append_text(
            out,
            &[
                Part::Text(br#"{"event":"media","streamSid":"#),
                Part::Text(self.stream_sid.as_bytes()),
                Part::Text(br#","media":{"payload":""#),
                Part::Base64(frame.octets()),
                Part::Text(br#""}}"#),
            ],
        );
    }

    fn write_mark(&mut self, serial: u64, out: &mut Vec<u8>) {
        append_text(
            out,
            &[
                Part::Text(br#"{"event":"mark","streamSid":"#),
                Part::Text(self.stream_sid.as_bytes()),
                Part::Text(br#","mark":{"name":"t"#),
                Part::Number(serial),
                Part::Text(br#""}}"#),
            ],
        );
    }

    fn write_clear(&mut self, out: &mut Vec<u8>) {
        append_text(
            out,
            &[
                Part::Text(br#"{"event":"clear","streamSid":"#),
                Part::Text(self.stream_sid.as_bytes()),
                Part::Text(b"}"),
            ],
        );
    }
}

/// mu-law at 8 kHz, which is also meant when nothing is said; all else is refused.
fn format(of: &Object) -> Result<MediaFormat, FormatError> {
    let name = of.text(&["encoding"]).unwrap_or_else(|| "audio/x-mulaw".to_owned());
    let hz = of.number(&["sampleRate"]).unwrap_or(8_000);
    match MediaFormat::named(&name, hz)? {
        format if format.encoding == Encoding::Pcmu && hz == 8_000 => Ok(format),
        _ => Err(FormatError { name, hz }),
    }
}
