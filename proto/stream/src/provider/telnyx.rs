//! Telnyx media streaming, bidirectional in `rtp` mode (without that mode our sound is dropped silently).
//!
//! Payloads are RTP's without their header: the caller's in whatever codec his call has, as the start says, and ours in PCMU, which is
//! what our call control asks for (`stream_bidirectional_codec`). Their order is not promised, so they are
//! sorted by chunk. The socket opens before the answer; the start comes with it. From 20 ms to 30 s a message to Telnyx.

use std::time::Duration;

use super::wire::{Envelope, Part, append_text, open};
use super::{
    Frame, FrameRule, Incoming, Malformed, MediaFormat, PacedBy, Pacing, Provider, Receipts, Setup, Start,
    Wire,
};

/// Telnyx. Nothing is said of its buffer. Of L16's byte order neither: little-endian is assumed, as everywhere in these dialects.
pub(super) static TELNYX: Provider = Provider {
    name: "telnyx",
    pacing: Pacing { paced_by: PacedBy::Provider, send_ahead_ms: 1_000, provider_holds_ms: None },
    receipts: Receipts::Echoed,
    confirms_clear: false,
    ends_by_closing: false,
    names_call: true,
    is_continuous: true,
    start_within: RINGS_WITHIN,
    outgoing: Some(MediaFormat::PCMU),
    leg_may_outlive_stop: |_| true,
    subprotocol: None,
    wire: || Box::new(Telnyx),
};

/// Its socket opens with the dial, and the start comes with the answer: as long as a phone may ring, and some more.
const RINGS_WITHIN: Duration = Duration::from_secs(120);

/// Longest client state that is kept as a custom parameter; ours holds a context's id.
const CLIENT_STATE_OCTETS_MAX: usize = 1_024;

#[derive(Debug)]
struct Telnyx;

impl Wire for Telnyx {
    fn read<'a>(&mut self, text: &'a str, setup: &Setup) -> Result<Incoming<'a>, Malformed> {
        let (event, object) = match open(text)? {
            Envelope::Audio(payload) => return Ok(Incoming::Audio(payload)),
            Envelope::Event(event, object) => (event, object),
        };
        Ok(match event.as_str() {
            "connected" => Incoming::Connected,
            "start" => {
                let start = object.object(&["start"]);
                let format = start.object(&["media_format"]);
                let name = format.text(&["encoding"]).unwrap_or_else(|| "PCMU".to_owned());
                let hz = format.number(&["sample_rate"]).unwrap_or(u64::from(setup.rate.hz()));
                let mut custom = start.object(&["custom_parameters"]).custom(&[]);
                let state =
                    start.text(&["client_state"]).filter(|state| state.len() <= CLIENT_STATE_OCTETS_MAX);
                if let Some(state) = state.filter(|_| custom.len() < super::CUSTOM_MAX) {
                    custom.insert("client_state".to_owned(), state);
                }
                match MediaFormat::named(&name, hz) {
                    Ok(format) => Incoming::Start(Start {
                        call_id: start.id(&["call_control_id"]),
                        stream_id: object.id(&["stream_id"]),
                        account_id: start.id(&["user_id"]),
                        from: start.id(&["from"]),
                        to: start.id(&["to"]),
                        custom,
                        format,
                    }),
                    Err(error) => Incoming::Refused(error),
                }
            }
            "dtmf" => Incoming::Dtmf { digit: object.object(&["dtmf"]).digit()?, duration_ms: None },
            "mark" => Incoming::Mark(object.object(&["mark"]).need("mark", &["name"])?),
            "error" => {
                let payload = object.object(&["payload"]);
                let [code, title, detail] =
                    ["code", "title", "detail"].map(|name| payload.text(&[name]).unwrap_or_default());
                Incoming::Complaint(format!("{code} {title}: {detail}"))
            }
            "stop" => Incoming::Stop(String::new()),
            _ => Incoming::Ignored,
        })
    }

    fn reorders(&self) -> bool {
        true
    }

    fn frame_rule(&self, format: MediaFormat, setup: &Setup) -> FrameRule {
        let unit = format.frame_octets();
        let message = format.octets_per_ms() * setup.message_ms.unwrap_or(20).clamp(20, 30_000) as usize;
        FrameRule { message, unit, silence: format.silence() }
    }

    fn write_audio(&mut self, frame: Frame<'_>, _: u64, out: &mut Vec<u8>) {
        let parts = [
            Part::Text(br#"{"event":"media","media":{"payload":""#),
            Part::Base64(frame.octets()),
            Part::Text(br#""}}"#),
        ];
        append_text(out, &parts);
    }

    fn write_mark(&mut self, serial: u64, out: &mut Vec<u8>) {
        let parts = [
            Part::Text(br#"{"event":"mark","mark":{"name":"t"#),
            Part::Number(serial),
            Part::Text(br#""}}"#),
        ];
        append_text(out, &parts);
    }

    fn write_clear(&mut self, out: &mut Vec<u8>) {
        append_text(out, &[Part::Text(br#"{"event":"clear"}"#)]);
    }
}
