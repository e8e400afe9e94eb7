//! What a refused request is told, and what our user is told of it.

use std::fmt::Display;

use super::Endpoint;
use super::event::Event;
use super::ledger::Extras;
use crate::flow::Flow;
use crate::message::{Method, Reply};

/// Refusals that wait for `poll_event`: more than one stream's piece of bad messages makes. Full: they are only counted.
pub const MAX_REFUSALS_QUEUED: usize = 1_024;

/// Longest detail of a refusal, in octets: it goes into a log line.
pub const MAX_DETAIL_LEN: usize = 80;

/// A final answer by the endpoint itself, with its reason.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) reply: Reply,
    pub(crate) extras: Extras,
    pub(crate) rule: &'static str,
    pub(crate) detail: String,
}

impl Refusal {
    /// `detail` must hold no URI and no credentials.
    pub(crate) fn new(status: u16, rule: &'static str, detail: impl Display) -> Refusal {
        // It may be a header's text, and goes into logs.
        let mut detail: String =
            detail.to_string().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
        let end = (0..=MAX_DETAIL_LEN.min(detail.len())).rev().find(|&end| detail.is_char_boundary(end));
        detail.truncate(end.unwrap_or(0));
        Refusal { reply: Reply::new(status), extras: Extras::Plain, rule, detail }
    }

    /// The answer says what we can do.
    pub(crate) fn with_capabilities(self) -> Refusal {
        Refusal { extras: Extras::Capabilities, ..self }
    }

    /// 481.
    pub(crate) fn unknown_dialog(method: &Method) -> Refusal {
        Refusal::new(481, "dialog_known", method)
    }
}

impl Endpoint {
    /// Tells the user, unless too much waits already.
    pub(super) fn report(&mut self, flow: Flow, refusal: Refusal) {
        self.counters.refused += 1;
        if self.events.len() < MAX_REFUSALS_QUEUED {
            let Refusal { reply, rule, detail, .. } = refusal;
            self.events.push_back(Event::Refused { flow, status: reply.status, rule, detail });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_is_cut_between_characters_and_holds_no_control_characters() {
        assert_eq!(Refusal::new(501, "method_known", "A".repeat(500)).detail.len(), MAX_DETAIL_LEN);
        assert_eq!(Refusal::new(400, "x", "a\u{1b}[31m\nb").detail, "a?[31m?b");
        assert_eq!(Refusal::new(400, "x", "a\u{e4}".repeat(50)).detail.len(), MAX_DETAIL_LEN - 1);
    }
}
