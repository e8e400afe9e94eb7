//! Vonage's WebSocket endpoint of the Voice API (`audio/l16;rate=…`).
//!
//! Binary messages are sound, *exactly one frame of 20 ms each*, both ways: at any other size Vonage stops listening and closes with
//! 1006, so the tail of an utterance is padded. Text is JSON. Custom headers come at the top level of the first text, before which
//! sound may come. There is no stop: the socket closes, and the phone's leg may live on.

use super::wire::{Object, Part, append_binary, append_text, digit};
use super::{
    Frame, FrameRule, Incoming, Malformed, MediaFormat, PacedBy, Pacing, Provider, Receipts, START_WITHIN,
    Setup, Start, Wire,
};

/// Vonage. It holds 3072 messages, about 60 s; what is sent a second ahead is enough, and cheap to clear. Whether notifications are
/// echoed after a clear is not known: the ledger takes them for flushed either way.
pub(super) static VONAGE: Provider = Provider {
    name: "vonage",
    pacing: Pacing { paced_by: PacedBy::Provider, send_ahead_ms: 1_000, provider_holds_ms: Some(60_000) },
    receipts: Receipts::Echoed,
    confirms_clear: true,
    ends_by_closing: true,
    names_call: false,
    is_continuous: true,
    start_within: START_WITHIN,
    outgoing: None,
    leg_may_outlive_stop: |_| true,
    subprotocol: None,
    wire: || Box::new(Vonage),
};

#[derive(Debug)]
struct Vonage;

impl Wire for Vonage {
    fn read<'a>(&mut self, text: &'a str, setup: &Setup) -> Result<Incoming<'a>, Malformed> {
        let object = Object::parse(text)?;
        let event = object.need("?", &["event"])?;
        Ok(match event.strip_prefix("websocket:").unwrap_or(&event) {
            "connected" => {
                let said = object.text(&["content-type"]).unwrap_or_else(|| "audio/l16".to_owned());
                let mut parameters = said.split(';').map(str::trim);
                let name = parameters.next().unwrap_or_default();
                let rate = parameters.find_map(|parameter| parameter.strip_prefix("rate="));
                let hz = rate.map_or(Ok(u64::from(setup.rate.hz())), |rate| rate.trim().parse()).unwrap_or(0);
                match MediaFormat::named(name, hz) {
                    Ok(format) => Incoming::Start(Start {
                        call_id: object.id(&["uuid"]),
                        stream_id: String::new(),
                        account_id: String::new(),
                        from: String::new(),
                        to: String::new(),
                        custom: object.custom(&["event", "content-type"]),
                        format,
                    }),
                    Err(error) => Incoming::Refused(error),
                }
            }
            "dtmf" => {
                // The older shape nests the key.
                let nested = object.object(&["dtmf"]);
                let pressed = object.text(&["digit"]).or_else(|| nested.text(&["digit"]));
                let duration_ms = object.number(&["duration"]).or_else(|| nested.number(&["duration"]));
                let pressed = pressed.ok_or(Malformed::Field { event: "dtmf", field: "digit" })?;
                Incoming::Dtmf { digit: digit(&pressed)?, duration_ms }
            }
            "cleared" => Incoming::Cleared,
            "notify" => Incoming::Mark(object.object(&["payload"]).need("notify", &["id"])?),
            _ => Incoming::Ignored,
        })
    }

    fn hears_binary(&self) -> bool {
        true
    }

    fn frame_rule(&self, format: MediaFormat, _: &Setup) -> FrameRule {
        let frame = format.frame_octets();
        FrameRule { message: frame, unit: frame, silence: format.silence() }
    }

    fn write_audio(&mut self, frame: Frame<'_>, _: u64, out: &mut Vec<u8>) {
        append_binary(out, frame.octets());
    }

    fn write_mark(&mut self, serial: u64, out: &mut Vec<u8>) {
        let parts = [
            Part::Text(br#"{"action":"notify","payload":{"id":"t"#),
            Part::Number(serial),
            Part::Text(br#""}}"#),
        ];
        append_text(out, &parts);
    }

    fn write_clear(&mut self, out: &mut Vec<u8>) {
        append_text(out, &[Part::Text(br#"{"action":"clear"}"#)]);
    }
}
