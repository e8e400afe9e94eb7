//! RAck (RFC 3262 §7.2): which reliable provisional response a PRACK confirms.

use std::fmt;

use super::{CSeq, ValueError};
use crate::grammar;

/// RAck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RAck {
    /// RSeq of the response.
    pub rseq: u32,
    /// CSeq of the response.
    pub cseq: CSeq,
}

impl RAck {
    /// Reads `response-number CSeq-number METHOD`.
    pub fn parse(text: &str) -> Result<RAck, ValueError> {
        let (rseq, cseq) = text.split_once([' ', '\t']).ok_or(ValueError::Number)?;
        let rseq = grammar::decimal(rseq).ok_or(ValueError::Number)?;
        Ok(RAck { rseq, cseq: CSeq::parse(grammar::trim_start(cseq))? })
    }
}

impl fmt::Display for RAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.rseq, self.cseq.number, self.cseq.method)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Method;

    #[test]
    fn three_words_are_read_and_written() {
        let rack = RAck::parse("776656  1\tINVITE").unwrap();
        assert_eq!((rack.rseq, rack.cseq.number, &rack.cseq.method), (776_656, 1, &Method::Invite));
        assert_eq!(rack.to_string(), "776656 1 INVITE");
    }

    #[test]
    fn less_than_three_words_are_refused() {
        for text in ["", "1", "1 2", "x 1 INVITE", "1 x INVITE", "4294967296 1 INVITE"] {
            assert!(RAck::parse(text).is_err(), "{text}");
        }
    }
}
