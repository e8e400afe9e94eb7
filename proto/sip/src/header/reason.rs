//! Reason (RFC 3326): why a request was sent, in SIP's and in the telephone network's words (Q.850).

use std::fmt;

use super::{Params, ValueError};
use crate::grammar;
use crate::headers::{HeaderName, Headers};

/// One Reason value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// `SIP`, `Q.850` or another.
    pub protocol: Box<str>,
    /// The cause, if there is one: a SIP status, or Q.850's 1..=127.
    pub cause: Option<u16>,
    /// Text for people.
    pub text: Option<Box<str>>,
}

impl Reason {
    /// A cause of Q.850.
    pub fn q850(cause: u16, text: &str) -> Reason {
        Reason::of("Q.850", cause, text)
    }

    /// A SIP status.
    pub fn sip(status: u16, text: &str) -> Reason {
        Reason::of("SIP", status, text)
    }

    fn of(protocol: &str, cause: u16, text: &str) -> Reason {
        let text: String = text.chars().filter(|c| !c.is_control()).collect();
        Reason {
            protocol: protocol.into(),
            cause: Some(cause),
            text: (!text.is_empty()).then(|| text.into()),
        }
    }

    /// Reads one item. A cause that is no number counts as absent.
    pub fn parse(text: &str) -> Result<Reason, ValueError> {
        let end = text.find(';').unwrap_or(text.len());
        let protocol = grammar::trim(&text[..end]);
        if protocol.is_empty() || !protocol.bytes().all(grammar::is_token) {
            return Err(ValueError::Token);
        }
        let params = Params::parse(&text[end..])?;
        let cause = params.get("cause").as_deref().and_then(grammar::decimal);
        Ok(Reason {
            protocol: protocol.into(),
            cause: cause.and_then(|cause| u16::try_from(cause).ok()),
            text: params.get("text").filter(|text| !text.is_empty()).map(|text| text.into()),
        })
    }

    /// All values of a message, in order; malformed ones are passed over.
    pub fn all(headers: &Headers) -> impl Iterator<Item = Reason> {
        headers.items(HeaderName::Reason).filter_map(|item| Reason::parse(item).ok())
    }

    /// The Q.850 cause of a message.
    pub fn q850_of(headers: &Headers) -> Option<u16> {
        Reason::all(headers).find(|reason| reason.protocol.eq_ignore_ascii_case("Q.850"))?.cause
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.protocol)?;
        if let Some(cause) = self.cause {
            write!(f, ";cause={cause}")?;
        }
        match &self.text {
            Some(text) => write!(f, ";text={}", grammar::quote(text)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_of_both_protocols_are_read() {
        let mut headers = Headers::new();
        headers.push("Reason", r#"SIP ;cause=200 ;text="Call completed, elsewhere""#).unwrap();
        headers.push("Reason", "q.850;cause=16;x=1, =;, Preemption").unwrap();
        let all: Vec<_> = Reason::all(&headers).collect();
        assert_eq!(all.len(), 3);
        assert_eq!((all[0].cause, all[0].text.as_deref()), (Some(200), Some("Call completed, elsewhere")));
        assert_eq!((&*all[2].protocol, all[2].cause), ("Preemption", None));
        assert_eq!(Reason::q850_of(&headers), Some(16));
    }

    #[test]
    fn written_reason_reads_back() {
        for reason in [Reason::q850(16, "Normal \"call\"\r\n clearing"), Reason::sip(486, "")] {
            assert_eq!(Reason::parse(&reason.to_string()), Ok(reason));
        }
        assert_eq!(Reason::q850(17, "User busy").to_string(), r#"Q.850;cause=17;text="User busy""#);
        assert_eq!(Reason::parse("Q.850;cause=99999").unwrap().cause, None);
    }
}
