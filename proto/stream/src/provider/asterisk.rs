//! Asterisk's chan_websocket (`Dial(WebSocket/…/c(slin16)f(json)n)`), where Asterisk dials us. It keeps the time, unlike AudioSocket.
//!
//! Binary is sound, in whole frames of `optimal_frame_size` to Asterisk; text is control, as JSON or in plain words by the dial
//! string's `f()`, and we answer in the form that the start came in. Sound may come before the start. There is no stop: the socket
//! closes. After MEDIA_XOFF (900 frames) sound is dropped. `QUEUE_DRAINED` comes only when it was asked for, which marks make
//! needless: it names no place, and may have crossed later sound.

use std::collections::BTreeMap;

use super::wire::{Object, Part, append_binary, append_text, digit};
use super::{
    CUSTOM_MAX, EVENT_TEXT_MAX, Frame, FrameRule, Incoming, Malformed, MediaFormat, PacedBy, Pacing,
    Provider, Receipts, START_WITHIN, Setup, Start, Wire,
};

/// Largest message that leaves the socket alive.
const MESSAGE_OCTETS_MAX: usize = 65_500;

/// Asterisk by WebSocket. Its queue holds 1 000 frames and says stop at 900, which is 18 s; a second ahead never gets there.
pub(super) static ASTERISK: Provider = Provider {
    name: "asterisk",
    pacing: Pacing { paced_by: PacedBy::Provider, send_ahead_ms: 1_000, provider_holds_ms: Some(18_000) },
    receipts: Receipts::Echoed,
    confirms_clear: false,
    ends_by_closing: true,
    names_call: false,
    is_continuous: false,
    start_within: START_WITHIN,
    outgoing: None,
    leg_may_outlive_stop: |_| true,
    subprotocol: Some("media"),
    wire: || Box::<Asterisk>::default(),
};

#[derive(Debug, Default)]
struct Asterisk {
    /// The start came in plain words.
    is_plain: bool,
    /// Octets of a frame, as Asterisk gave them.
    frame_octets: usize,
}

impl Wire for Asterisk {
    fn read<'a>(&mut self, text: &'a str, setup: &Setup) -> Result<Incoming<'a>, Malformed> {
        let is_plain = !text.trim_start().starts_with('{');
        let object = if is_plain { plain(text)? } else { Object::parse(text)? };
        let event = object.need("?", &["event"])?;
        Ok(match event.as_str() {
            "MEDIA_START" => {
                self.is_plain = is_plain;
                let named = object.text(&["format"]).unwrap_or_default();
                let (name, hz) = format(&named, setup);
                let format = match MediaFormat::named(name, hz) {
                    Ok(format) => format,
                    Err(mut error) => {
                        error.name = object.id(&["format"]);
                        return Ok(Incoming::Refused(error));
                    }
                };
                let octets = object.number(&["optimal_frame_size"]).unwrap_or(0) as usize;
                let is_usable = (1..=MESSAGE_OCTETS_MAX).contains(&octets)
                    && octets.is_multiple_of(format.sample_octets());
                self.frame_octets = if is_usable { octets } else { format.frame_octets() };
                Incoming::Start(Start {
                    // `channel_id` is the WebSocket channel's own, never the caller's.
                    call_id: String::new(),
                    stream_id: object.id(&["connection_id"]),
                    account_id: String::new(),
                    from: String::new(),
                    to: String::new(),
                    custom: object.object(&["channel_variables"]).custom(&[]),
                    format,
                })
            }
            "DTMF_END" => Incoming::Dtmf {
                digit: digit(&object.need("DTMF_END", &["digit"])?)?,
                duration_ms: object.number(&["duration_ms", "duration"]),
            },
            "MEDIA_MARK_PROCESSED" => {
                Incoming::Mark(object.need("MEDIA_MARK_PROCESSED", &["correlation_id"])?)
            }
            "MEDIA_XOFF" => Incoming::Xoff,
            "MEDIA_XON" => Incoming::Xon,
            "ERROR" => {
                Incoming::Complaint(object.text(&["error_text", "message", "error"]).unwrap_or_default())
            }
            _ => Incoming::Ignored,
        })
    }

    fn hears_binary(&self) -> bool {
        true
    }

    fn frame_rule(&self, format: MediaFormat, setup: &Setup) -> FrameRule {
        let unit = self.frame_octets.max(1);
        let wished = format.octets_per_ms() * setup.message_ms.unwrap_or(20) as usize;
        let message = (wished.max(unit) / unit * unit).min(MESSAGE_OCTETS_MAX / unit * unit);
        FrameRule { message, unit, silence: format.silence() }
    }

    fn write_audio(&mut self, frame: Frame<'_>, _: u64, out: &mut Vec<u8>) {
        append_binary(out, frame.octets());
    }

    fn write_mark(&mut self, serial: u64, out: &mut Vec<u8>) {
        let (before, after): (&[u8], &[u8]) = if self.is_plain {
            (b"MARK_MEDIA t", b"")
        } else {
            (br#"{"command":"MARK_MEDIA","correlation_id":"t"#, br#""}"#)
        };
        append_text(out, &[Part::Text(before), Part::Number(serial), Part::Text(after)]);
    }

    fn write_clear(&mut self, out: &mut Vec<u8>) {
        self.command(b"FLUSH_MEDIA", out);
    }

    fn write_answer(&mut self, out: &mut Vec<u8>) -> bool {
        self.command(b"ANSWER", out);
        true
    }

    fn write_hangup(&mut self, out: &mut Vec<u8>) -> bool {
        self.command(b"HANGUP", out);
        true
    }
}

impl Asterisk {
    fn command(&self, word: &[u8], out: &mut Vec<u8>) {
        if self.is_plain {
            append_text(out, &[Part::Text(word)]);
        } else {
            append_text(out, &[Part::Text(br#"{"command":""#), Part::Text(word), Part::Text(br#""}"#)]);
        }
    }
}

/// Asterisk's name of a format, as encoding and rate.
fn format<'a>(name: &'a str, setup: &Setup) -> (&'a str, u64) {
    match name.strip_prefix("slin") {
        Some("") => ("slin", 8_000),
        // slin16 is 16 kHz, slin44 44.1, which nobody here resamples.
        Some(khz) => ("slin", khz.parse::<u64>().map_or(0, |khz| khz.saturating_mul(1_000))),
        None => (name, u64::from(setup.rate.hz())),
    }
}

/// `EVENT name:value name:value`; a value without a name is the mark's or the key's.
fn plain(text: &str) -> Result<Object, Malformed> {
    if text.len() > EVENT_TEXT_MAX {
        return Err(Malformed::TooLong(text.len()));
    }
    let mut words = text.split_ascii_whitespace();
    let event = words.next().ok_or(Malformed::NotAnObject)?;
    if !event.bytes().all(|octet| octet.is_ascii_uppercase() || octet == b'_') {
        return Err(Malformed::NotAnObject);
    }
    let mut fields: BTreeMap<String, String> = words
        .take(CUSTOM_MAX)
        .map(|word| match word.split_once(':') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None if event == "DTMF_END" => ("digit".to_owned(), word.to_owned()),
            None => ("correlation_id".to_owned(), word.to_owned()),
        })
        .collect();
    fields.insert("event".to_owned(), event.to_owned());
    Ok(Object::from_texts(fields))
}
