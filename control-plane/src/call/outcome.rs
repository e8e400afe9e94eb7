//! What became of a call that we placed: the other side's final response, as one of a few words.
//!
//! ```text
//!   status, Reason (RFC 3326) ──▶ busy · no_answer · rejected · unreachable · failed     + what the carrier said, kept
//! ```
//!
//! The status decides where it is specific (486 is busy everywhere); where carriers use one for everything (480, 500,
//! 503 …) the Q.850 cause in the Reason header does, if there is one.

use tandem_api::v1 as api;
use tandem_sip::{HeaderName, Headers, Response};

use super::ending::{Cause, Ending};
use crate::provider::webhook::StatusEvent;

/// Characters of a carrier's text that are kept.
const TEXT_MAX: usize = 128;

/// A final response, or the Reason of a BYE, as it came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CarrierWord {
    /// Of the response; 0: there was none.
    pub status: u16,
    /// Its reason phrase.
    pub phrase: String,
    /// Of the Reason header; 0: none.
    pub q850_cause: u8,
    /// Beside it.
    pub q850_text: String,
}

impl CarrierWord {
    /// What this response says.
    pub fn of(response: &Response) -> Self {
        let (q850_cause, q850_text) = q850(response.head.headers()).unwrap_or_default();
        Self { status: response.status, phrase: shown(&response.reason), q850_cause, q850_text }
    }

    /// What the Reason header of a BYE says; `None` without a Q.850 cause.
    pub fn of_reason(value: &str) -> Option<Self> {
        let (q850_cause, q850_text) = read_reason(value)?;
        Some(Self { q850_cause, q850_text, ..Self::default() })
    }

    /// What a provider's callback says of its carrier; `None`: neither status nor cause.
    pub fn of_provider(event: &StatusEvent) -> Option<Self> {
        let (status, q850_cause) =
            (event.sip_status.unwrap_or_default(), event.q850_cause.unwrap_or_default());
        (status != 0 || q850_cause != 0).then(|| Self {
            status,
            phrase: shown(&event.word),
            q850_cause,
            q850_text: shown(event.cause.as_deref().unwrap_or_default()),
        })
    }

    /// As the API says it.
    pub fn to_api(&self) -> api::CarrierWord {
        api::CarrierWord {
            sip_status: self.status.into(),
            reason_phrase: self.phrase.clone(),
            q850_cause: self.q850_cause.into(),
            q850_text: self.q850_text.clone(),
        }
    }

    /// Which line of the table it is.
    pub fn cause(&self) -> Cause {
        match self.status {
            486 | 600 => Cause::Busy,
            401 | 403 | 407 | 433 | 603 | 607 | 608 => Cause::Rejected,
            404 | 410 | 484 | 485 | 604 => Cause::Unreachable,
            300..=399 => Cause::Redirected,
            // A stranger's 487: a proxy gave up for us.
            408 | 480 | 487 => self.q850().unwrap_or(Cause::NoAnswer),
            488 | 606 => Cause::NoCommonCodec,
            502..=504 => self.q850().unwrap_or(Cause::TrunkUnreachable),
            _ => self.q850().unwrap_or(Cause::Failed),
        }
    }

    /// By the Q.850 cause alone, where that is specific.
    fn q850(&self) -> Option<Cause> {
        match self.q850_cause {
            17 => Some(Cause::Busy),
            18 | 19 => Some(Cause::NoAnswer),
            21 | 55 | 57 => Some(Cause::Rejected),
            1 | 2 | 3 | 20 | 22 | 27 | 28 => Some(Cause::Unreachable),
            _ => None,
        }
    }

    /// The whole ending.
    pub fn to_ending(&self) -> Ending {
        let detail = match (self.phrase.as_str(), self.q850_text.as_str()) {
            (phrase, "") => format!("{} {phrase}", self.status),
            (phrase, text) => format!("{} {phrase}, {text}", self.status),
        };
        let mut ending = Ending::with_detail(self.cause(), detail.trim_end()).of_outbound();
        ending.carrier = Some(Box::new(self.clone()));
        ending
    }
}

fn q850(headers: &Headers) -> Option<(u8, String)> {
    headers.items(HeaderName::Reason).find_map(read_reason)
}

/// `Q.850;cause=17;text="User busy"`.
fn read_reason(value: &str) -> Option<(u8, String)> {
    let (protocol, params) = value.split_once(';')?;
    if !protocol.trim().eq_ignore_ascii_case("Q.850") {
        return None;
    }
    let param = |name: &str| {
        let (_, value) = params
            .split(';')
            .filter_map(|param| param.split_once('='))
            .find(|(key, _)| key.trim().eq_ignore_ascii_case(name))?;
        Some(value.trim().trim_matches('"'))
    };
    let cause = param("cause")?.parse().ok().filter(|cause| (1..=127).contains(cause))?;
    Some((cause, shown(param("text").unwrap_or_default())))
}

/// What a stranger wrote, as records may hold it: short, and nothing that breaks a line.
fn shown(text: &str) -> String {
    text.chars().take(TEXT_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(status: u16, q850_cause: u8) -> CarrierWord {
        CarrierWord { status, q850_cause, ..CarrierWord::default() }
    }

    #[test]
    fn specific_statuses_speak_for_themselves() {
        for (status, cause) in [
            (486, Cause::Busy),
            (600, Cause::Busy),
            (603, Cause::Rejected),
            (403, Cause::Rejected),
            (404, Cause::Unreachable),
            (484, Cause::Unreachable),
            (480, Cause::NoAnswer),
            (408, Cause::NoAnswer),
            (302, Cause::Redirected),
            (503, Cause::TrunkUnreachable),
            (500, Cause::Failed),
        ] {
            assert_eq!(word(status, 0).cause(), cause, "{status}");
        }
        assert_eq!(word(486, 1).cause(), Cause::Busy);
    }

    #[test]
    fn q850_cause_tells_what_a_vague_status_means() {
        assert_eq!(word(480, 17).cause(), Cause::Busy);
        assert_eq!(word(500, 1).cause(), Cause::Unreachable);
        assert_eq!(word(503, 21).cause(), Cause::Rejected);
        assert_eq!(word(503, 38).cause(), Cause::TrunkUnreachable);
    }

    #[test]
    fn reason_header_is_read_with_its_text_and_others_are_passed_over() {
        assert_eq!(read_reason("Q.850;cause=17;text=\"User busy\""), Some((17, "User busy".into())));
        assert_eq!(read_reason("q.850 ; cause = 1"), Some((1, String::new())));
        for wrong in ["SIP;cause=200;text=\"x\"", "Q.850", "Q.850;text=\"x\"", "Q.850;cause=999", ""] {
            assert_eq!(read_reason(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ending_keeps_the_carriers_words_and_status() {
        let carrier =
            CarrierWord { status: 480, phrase: "Gone".into(), q850_cause: 17, q850_text: "User busy".into() };
        let told = carrier.to_ending().to_api();
        assert_eq!((told.reason.as_str(), told.sip_status, told.q850_cause), ("busy", 480, 17));
        assert_eq!(told.detail, "the number is busy: 480 Gone, User busy");
        assert_eq!(told.carrier.unwrap().q850_text, "User busy");
    }
}
