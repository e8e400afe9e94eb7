//! Plivo's audio streams (`<Stream bidirectional="true">`).
//!
//! Like Twilio's with words of their own: `playAudio`, `checkpoint` answered by `playedStream`, `clearAudio` by `clearedAudio`. There
//! is no `connected`, and with some compatible providers no `stop` either.

use super::wire::{Envelope, Part, append_text, open};
use super::{
    Encoding, FormatError, Frame, FrameRule, Incoming, Malformed, MediaFormat, PacedBy, Pacing, Provider,
    Receipts, START_WITHIN, Setup, Start, Wire,
};
use crate::twilio::quoted;

/// Plivo. Nothing is said of its buffer.
pub(super) static PLIVO: Provider = Provider {
    name: "plivo",
    pacing: Pacing { paced_by: PacedBy::Provider, send_ahead_ms: 1_000, provider_holds_ms: None },
    receipts: Receipts::Echoed,
    confirms_clear: true,
    ends_by_closing: false,
    names_call: true,
    is_continuous: true,
    start_within: START_WITHIN,
    outgoing: None,
    leg_may_outlive_stop: |_| true,
    subprotocol: None,
    wire: || Box::<Plivo>::default(),
};

#[derive(Debug, Default)]
struct Plivo {
    /// As a JSON string.
    stream_id: String,
    /// `"contentType":"…","sampleRate":…`
    format: String,
}

impl Wire for Plivo {
    fn read<'a>(&mut self, text: &'a str, setup: &Setup) -> Result<Incoming<'a>, Malformed> {
        let (event, object) = match open(text)? {
            Envelope::Audio(payload) => return Ok(Incoming::Audio(payload)),
            Envelope::Event(event, object) => (event, object),
        };
        Ok(match event.as_str() {
            "start" => {
                let start = object.object(&["start"]);
                let stream_id = start.id(&["streamId"]);
                if stream_id.is_empty() {
                    return Err(Malformed::Field { event: "start", field: "start.streamId" });
                }
                let format = start.object(&["mediaFormat"]);
                let name = format.text(&["encoding"]).unwrap_or_else(|| "audio/x-mulaw".to_owned());
                let hz = format.number(&["sampleRate"]).unwrap_or(u64::from(setup.rate.hz()));
                let format = match MediaFormat::named(&name, hz) {
                    Ok(format) => format,
                    Err(error) => return Ok(Incoming::Refused(error)),
                };
                let content = match format.encoding {
                    Encoding::Pcmu => "audio/x-mulaw",
                    Encoding::L16 => "audio/x-l16",
                    Encoding::Pcma | Encoding::G722 => {
                        return Ok(Incoming::Refused(FormatError { name, hz }));
                    }
                };
                self.format = format!(r#""contentType":"{content}","sampleRate":{}"#, format.rate.hz());
                self.stream_id = quoted(&stream_id);
                let mut custom = object.object(&["extra_headers"]).custom(&[]);
                if let Some(headers) = object.text(&["extra_headers"]) {
                    custom.extend(extra_headers(&headers));
                }
                Incoming::Start(Start {
                    call_id: start.id(&["callId"]),
                    stream_id,
                    account_id: start.id(&["accountId"]),
                    from: String::new(),
                    to: String::new(),
                    custom,
                    format,
                })
            }
            "dtmf" => Incoming::Dtmf { digit: object.object(&["dtmf"]).digit()?, duration_ms: None },
            "playedStream" => Incoming::Mark(object.need("playedStream", &["name"])?),
            "clearedAudio" => Incoming::Cleared,
            "stop" => Incoming::Stop(String::new()),
            _ => Incoming::Ignored,
        })
    }

    fn frame_rule(&self, format: MediaFormat, setup: &Setup) -> FrameRule {
        let message = format.octets_per_ms() * setup.message_ms.unwrap_or(20) as usize;
        FrameRule { message, unit: format.sample_octets(), silence: format.silence() }
    }

    fn write_audio(&mut self, frame: Frame<'_>, _: u64, out: &mut Vec<u8>) {
        append_text(
            out,
            &[
                Part::Text(br#"{"event":"playAudio","streamId":"#),
                Part::Text(self.stream_id.as_bytes()),
                Part::Text(br#","media":{"#),
                Part::Text(self.format.as_bytes()),
                Part::Text(br#","payload":""#),
                Part::Base64(frame.octets()),
                Part::Text(br#""}}"#),
            ],
        );
    }

    fn write_mark(&mut self, serial: u64, out: &mut Vec<u8>) {
        append_text(
            out,
            &[
                Part::Text(br#"{"event":"checkpoint","streamId":"#),
                Part::Text(self.stream_id.as_bytes()),
                Part::Text(br#","name":"t"#),
                Part::Number(serial),
                Part::Text(br#""}"#),
            ],
        );
    }

    fn write_clear(&mut self, out: &mut Vec<u8>) {
        append_text(
            out,
            &[
                Part::Text(br#"{"event":"clearAudio","streamId":"#),
                Part::Text(self.stream_id.as_bytes()),
                Part::Text(b"}"),
            ],
        );
    }
}

/// `{ctx: ctx-1, other: x}` or `ctx=ctx-1;other=x`: how the headers are written is not documented, so both are read.
fn extra_headers(text: &str) -> impl Iterator<Item = (String, String)> {
    let text = text.trim().trim_start_matches('{').trim_end_matches('}');
    text.split([',', ';']).take(super::CUSTOM_MAX).filter_map(|pair| {
        let (name, value) = pair.split_once([':', '='])?;
        let bare = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
        (pair.len() <= super::ID_OCTETS_MAX).then(|| (bare(name), bare(value)))
    })
}
