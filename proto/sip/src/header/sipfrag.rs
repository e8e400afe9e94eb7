//! How a referred call fares: the sipfrag body of a NOTIFY (RFC 3420, RFC 3515 §2.4.5) and its Subscription-State
//! (RFC 6665 §4.1.3).

use super::{Params, ValueError};
use crate::grammar;

/// Longest reason phrase that is kept of a sipfrag, in octets: it goes into an event and a log line.
pub const MAX_PHRASE_LEN: usize = 128;

/// Status and reason phrase of a sipfrag that begins with a Status-Line. Lenient: line breaks of any kind, empty lines
/// before, no phrase.
pub fn parse_sipfrag(body: &[u8]) -> Option<(u16, String)> {
    let line = body.split(|&b| b == b'\r' || b == b'\n').find(|line| !line.is_empty())?;
    let text = String::from_utf8_lossy(line);
    let rest = text.trim_start().strip_prefix("SIP/2.0")?.strip_prefix([' ', '\t'])?.trim_start();
    let (status, phrase) = rest.split_at_checked(3)?;
    let status = grammar::decimal(status).filter(|status| (100..700).contains(status))? as u16;
    if !phrase.is_empty() && !phrase.starts_with([' ', '\t']) {
        return None;
    }
    let phrase = phrase.trim().chars().filter(|c| !c.is_control());
    let mut kept = String::new();
    for c in phrase {
        if kept.len() + c.len_utf8() > MAX_PHRASE_LEN {
            break;
        }
        kept.push(c);
    }
    Some((status, kept))
}

/// The body of a NOTIFY.
pub fn write_sipfrag(status: u16, phrase: &str) -> String {
    let phrase: String = phrase.chars().filter(|c| !c.is_control()).collect();
    format!("SIP/2.0 {status} {phrase}\r\n")
}

/// Subscription-State.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionState {
    /// `terminated`: no NOTIFY follows.
    pub is_terminated: bool,
    /// Seconds left.
    pub expires_s: Option<u32>,
    /// Why it ended: `noresource`, `timeout` …
    pub reason: Option<Box<str>>,
}

impl SubscriptionState {
    /// Reads a field's value; a state of an unknown name counts as active.
    pub fn parse(text: &str) -> Result<SubscriptionState, ValueError> {
        let end = text.find(';').unwrap_or(text.len());
        let state = grammar::trim(&text[..end]);
        if state.is_empty() || !state.bytes().all(grammar::is_token) {
            return Err(ValueError::Token);
        }
        let params = Params::parse(&text[end..])?;
        Ok(SubscriptionState {
            is_terminated: state.eq_ignore_ascii_case("terminated"),
            expires_s: params.get("expires").as_deref().and_then(grammar::decimal),
            reason: params.get("reason").map(|reason| reason.into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_line_is_found_however_it_is_written() {
        for (body, expected) in [
            ("SIP/2.0 200 OK\r\n", Some((200, "OK"))),
            ("\r\nSIP/2.0 486 Busy Here\r\nWarning: x\r\n", Some((486, "Busy Here"))),
            ("SIP/2.0 100\n", Some((100, ""))),
            ("SIP/2.0  503   Gone away", Some((503, "Gone away"))),
            ("SIP/2.0 99 Low", None),
            ("SIP/2.0 2000 High", None),
            ("INVITE sip:a@b SIP/2.0\r\n", None),
            ("", None),
        ] {
            let read = parse_sipfrag(body.as_bytes());
            assert_eq!(
                read.as_ref().map(|(status, phrase)| (*status, phrase.as_str())),
                expected,
                "{body:?}"
            );
        }
        assert_eq!(
            parse_sipfrag(write_sipfrag(180, "Ring\r\ning").as_bytes()),
            Some((180, "Ringing".to_owned()))
        );
    }

    #[test]
    fn phrase_is_bounded() {
        let long = format!("SIP/2.0 500 {}", "\u{e4}".repeat(1000));
        assert_eq!(parse_sipfrag(long.as_bytes()).unwrap().1.len(), MAX_PHRASE_LEN);
    }

    #[test]
    fn subscription_state_is_read() {
        let state = SubscriptionState::parse("Terminated;reason=noresource").unwrap();
        assert_eq!((state.is_terminated, state.reason.as_deref()), (true, Some("noresource")));
        let state = SubscriptionState::parse("active ; expires=60").unwrap();
        assert_eq!((state.is_terminated, state.expires_s), (false, Some(60)));
        assert_eq!(SubscriptionState::parse(";x"), Err(ValueError::Token));
    }
}
