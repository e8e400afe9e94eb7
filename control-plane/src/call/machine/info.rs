//! Keys by SIP INFO, both ways: `application/dtmf-relay` and `application/dtmf`, as phones and gateways send them.
//!
//! ```text
//!   INFO ─▶ digit ─▶ engine: TellAgent (which tells a key once that also came as telephone-event)
//!   agent's digits, without telephone-event ─▶ one INFO a key, the next when it is answered
//! ```

use std::time::Duration;

use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::tell_agent_request::What as Tell;
use tandem_sip::message::{Body, Method, Reply};
use tandem_sip::{Headers, Request, RequestHandle};

use super::Call;
use crate::call::action::Action;
use crate::call::registry::Surroundings;
use crate::call::state::State;
use crate::sip::Verb;

/// Milliseconds of a key that says nothing of its length.
const KEY_MS_DEFAULT: u32 = 160;
/// The longest that is believed.
const KEY_MS_MAX: u32 = 8_000;
/// Keys that wait for the INFO before them: one event of an agent. More are dropped.
const KEYS_MAX: usize = 64;
/// What we say of our own keys.
const OWN_KEY: Duration = Duration::from_millis(160);

/// Keys that wait for their INFO.
#[derive(Debug, Default)]
pub(super) struct Keys {
    waiting: std::collections::VecDeque<char>,
    is_under_way: bool,
}

impl Call {
    /// INFO in the dialog.
    pub fn handle_info(&mut self, handle: RequestHandle, request: &Request, around: &mut Surroundings<'_>) {
        let kind = request.head.content_type().unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let status = match (kind.as_str(), request.body.as_slice()) {
            // Whether we are alive (RFC 2976 §2.2).
            (_, []) => 200,
            ("application/dtmf-relay" | "application/dtmf", body) => match read_key(body) {
                Some((digit, duration_ms)) => {
                    let dtmf = engine::DtmfReceived { digit: digit.to_string(), duration_ms };
                    self.session.tell(Tell::Dtmf(dtmf));
                    200
                }
                None => 400,
            },
            _ => 415,
        };
        let mut reply = Reply::new(status);
        if status == 415
            && let Ok(with) = reply.clone().header("Accept", "application/dtmf-relay, application/dtmf")
        {
            reply = with;
        }
        around.actions.push_back(Action::Sip(Verb::Reply(handle, reply)));
    }

    /// The agent presses keys, and telephone-events are not negotiated.
    pub(super) fn press(&mut self, digits: &str, around: &mut Surroundings<'_>) {
        let is_wanted = self.trunk.as_ref().is_some_and(|trunk| trunk.is_dtmf_by_info);
        if !is_wanted {
            return;
        }
        let room = KEYS_MAX - self.keys.waiting.len();
        self.keys.waiting.extend(digits.chars().filter(|c| is_key(*c)).take(room));
        self.send_key(around);
    }

    fn send_key(&mut self, around: &mut Surroundings<'_>) {
        let is_up = matches!(self.life.state(), State::Connected | State::OnHold);
        if self.keys.is_under_way || !is_up {
            return;
        }
        let Some(key) = self.keys.waiting.pop_front() else { return };
        self.keys.is_under_way = true;
        let text = format!("Signal={key}\r\nDuration={}\r\n", OWN_KEY.as_millis());
        let body = Body { content_type: "application/dtmf-relay", bytes: text.into_bytes() };
        let token = around.token(self.id);
        self.ask_sip(around, |sip| Verb::RequestInCall(token, sip, Method::Info, Headers::new(), Some(body)));
    }

    /// An INFO of ours has its answer, whatever it says, or could not leave.
    pub fn handle_info_answered(&mut self, around: &mut Surroundings<'_>) {
        if std::mem::take(&mut self.keys.is_under_way) {
            self.send_key(around);
        }
    }
}

fn is_key(c: char) -> bool {
    matches!(c, '0'..='9' | '*' | '#' | 'A'..='D')
}

/// `Signal=5\r\nDuration=160`, or the bare key. Codes 10 and 11 are `*` and `#`, 12 to 15 `A` to `D`.
fn read_key(body: &[u8]) -> Option<(char, u32)> {
    let text = std::str::from_utf8(body).ok()?;
    let field = |name: &str| {
        let mut pairs = text.lines().filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| key.trim().eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let signal = match field("signal") {
        Some(signal) => signal,
        None if !text.contains('=') => text.trim(),
        None => return None,
    };
    let mut chars = signal.chars();
    let key = match (chars.next(), chars.next()) {
        (Some(key), None) => Some(key.to_ascii_uppercase()).filter(|key| is_key(*key)),
        _ => match signal {
            "10" => Some('*'),
            "11" => Some('#'),
            "12" => Some('A'),
            "13" => Some('B'),
            "14" => Some('C'),
            "15" => Some('D'),
            _ => None,
        },
    }?;
    let duration_ms = field("duration").and_then(|value| value.parse().ok()).unwrap_or(KEY_MS_DEFAULT);
    Some((key, duration_ms.min(KEY_MS_MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_phones_and_gateways_write_them() {
        let read = |text: &str| read_key(text.as_bytes());
        assert_eq!(read("Signal=5\r\nDuration=200\r\n"), Some(('5', 200)));
        assert_eq!(read("Signal= *\nDuration= 250"), Some(('*', 250)));
        assert_eq!(read("signal=11"), Some(('#', KEY_MS_DEFAULT)));
        assert_eq!(read("7"), Some(('7', KEY_MS_DEFAULT)));
        assert_eq!(read("d\r\n"), Some(('D', KEY_MS_DEFAULT)));
        assert_eq!(read("Signal=1\r\nDuration=99999999"), Some(('1', KEY_MS_MAX)));
    }

    #[test]
    fn what_is_no_key_is_none() {
        for text in ["", "Signal=", "Signal=E", "Signal=16", "12345", "Duration=100", "Signal=!\r\n", "\u{1}"]
        {
            assert_eq!(read_key(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(read_key(b"\xff\xfe"), None);
    }
}
