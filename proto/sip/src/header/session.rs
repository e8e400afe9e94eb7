//! Session-Expires and Min-SE (RFC 4028 §4, §5): how long a session lives without a refresh, and who refreshes it.

use std::fmt;

use super::{Params, ValueError};
use crate::grammar;

/// Who sends the refreshes: in terms of the *transaction* that carries the header, not of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refresher {
    /// Whoever sent this request.
    Uac,
    /// Whoever answers it.
    Uas,
}

impl Refresher {
    /// The value of the `refresher` parameter.
    pub const fn token(self) -> &'static str {
        match self {
            Refresher::Uac => "uac",
            Refresher::Uas => "uas",
        }
    }
}

/// Session-Expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionExpires {
    /// Seconds until the session is over unless it is refreshed.
    pub interval_s: u32,
    /// Who refreshes; open in a request that leaves it to the UAS.
    pub refresher: Option<Refresher>,
}

impl SessionExpires {
    /// Reads a field's value. A refresher that is neither `uac` nor `uas` counts as absent.
    pub fn parse(text: &str) -> Result<SessionExpires, ValueError> {
        let (interval_s, params) = seconds_and_params(text)?;
        let refresher = params.get("refresher").and_then(|token| {
            [Refresher::Uac, Refresher::Uas].into_iter().find(|one| one.token().eq_ignore_ascii_case(&token))
        });
        Ok(SessionExpires { interval_s, refresher })
    }
}

impl fmt::Display for SessionExpires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.interval_s)?;
        match self.refresher {
            Some(refresher) => write!(f, ";refresher={}", refresher.token()),
            None => Ok(()),
        }
    }
}

/// Reads Min-SE: seconds, with parameters that say nothing yet.
pub fn parse_min_se(text: &str) -> Result<u32, ValueError> {
    Ok(seconds_and_params(text)?.0)
}

fn seconds_and_params(text: &str) -> Result<(u32, Params), ValueError> {
    let end = text.find(';').unwrap_or(text.len());
    let seconds = grammar::decimal(grammar::trim(&text[..end])).ok_or(ValueError::Number)?;
    Ok((seconds, Params::parse(&text[end..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interval_and_refresher_are_read_and_written() {
        for (text, interval_s, refresher, written) in [
            ("1800", 1800, None, "1800"),
            ("1800 ; Refresher = UAC", 1800, Some(Refresher::Uac), "1800;refresher=uac"),
            ("90;refresher=uas;x=1", 90, Some(Refresher::Uas), "90;refresher=uas"),
            ("90;refresher=nobody", 90, None, "90"),
        ] {
            let value = SessionExpires::parse(text).unwrap();
            assert_eq!((value.interval_s, value.refresher), (interval_s, refresher), "{text}");
            assert_eq!(value.to_string(), written);
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in ["", ";refresher=uac", "-1", "99999999999", "18 00", "1800 refresher=uac"] {
            assert_eq!(SessionExpires::parse(text), Err(ValueError::Number), "{text}");
        }
        assert_eq!(parse_min_se("120;x"), Ok(120));
        assert_eq!(parse_min_se("1800;;"), Err(ValueError::Parameter));
    }
}
