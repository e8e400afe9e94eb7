//! Who calls, and whom the caller had dialled first: P-Asserted-Identity (RFC 3325), Diversion (RFC 5806) and
//! History-Info (RFC 7044). Read as far as they can be; a malformed item is passed over, for the call goes on without it.

use super::NameAddr;
use super::reason::Reason;
use super::refer::embedded_headers;
use crate::grammar;
use crate::headers::{HeaderName, Headers};

/// Items that are read of one list: more is no history but an attack.
pub const MAX_ITEMS: usize = 32;

/// The asserted identities: a `sip:` or `sips:` URI and a `tel:` one at most, but whatever stands there is given.
/// Only worth something from a peer whom the trunk trusts.
pub fn asserted(headers: &Headers) -> impl Iterator<Item = NameAddr> {
    let items = headers.items(HeaderName::PAssertedIdentity).take(MAX_ITEMS);
    items.filter_map(|item| NameAddr::parse(item).ok())
}

/// One Diversion: the newest comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diversion {
    /// Who diverted the call.
    pub by: NameAddr,
    /// Why: `user-busy`, `no-answer`, `unconditional` …
    pub reason: Option<Box<str>>,
    /// How often in all.
    pub counter: Option<u32>,
    /// Whether whoever diverted does not want to be shown.
    pub is_private: bool,
}

impl Diversion {
    /// Reads one item.
    pub fn parse(text: &str) -> Option<Diversion> {
        let by = NameAddr::parse(text).ok()?;
        let reason = by.params.get("reason").filter(|reason| !reason.is_empty()).map(|reason| reason.into());
        let counter = by.params.get("counter").as_deref().and_then(grammar::decimal);
        let privacy = by.params.get("privacy");
        let is_private =
            privacy.is_some_and(|privacy| !privacy.is_empty() && !privacy.eq_ignore_ascii_case("off"));
        Some(Diversion { by, reason, counter, is_private })
    }

    /// All of a message, the newest first.
    pub fn all(headers: &Headers) -> impl Iterator<Item = Diversion> {
        headers.items(HeaderName::Diversion).take(MAX_ITEMS).filter_map(Diversion::parse)
    }
}

/// One History-Info entry: the oldest comes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryInfo {
    /// The target at that step, without embedded headers.
    pub target: NameAddr,
    /// Place in the tree of retargetings: `1.1`.
    pub index: Box<str>,
    /// Why the step after this one was taken.
    pub reason: Option<Reason>,
    /// The `cause` URI parameter (RFC 4458): a SIP status that says how the call was diverted.
    pub cause: Option<u16>,
    /// Whether whoever stands here does not want to be shown.
    pub is_private: bool,
}

impl HistoryInfo {
    /// Reads one item. One without an index has an empty one.
    pub fn parse(text: &str) -> Option<HistoryInfo> {
        let addr = NameAddr::parse(text).ok()?;
        let mut reason = None;
        let mut is_private = false;
        for (name, value) in embedded_headers(&addr.uri) {
            let name = grammar::unescape(name);
            let value = grammar::unescape(value);
            if name.eq_ignore_ascii_case("Reason") {
                reason = reason.or_else(|| Reason::parse(&value).ok());
            } else if name.eq_ignore_ascii_case("Privacy") {
                is_private = !value.eq_ignore_ascii_case("none");
            }
        }
        let cause = addr.uri.param("cause").and_then(grammar::decimal);
        Some(HistoryInfo {
            index: addr.params.get("index").unwrap_or_default().into(),
            reason,
            cause: cause.and_then(|cause| u16::try_from(cause).ok()),
            is_private,
            target: NameAddr { uri: addr.uri.without_headers(), ..addr },
        })
    }

    /// All of a message, the oldest first.
    pub fn all(headers: &Headers) -> impl Iterator<Item = HistoryInfo> {
        headers.items(HeaderName::HistoryInfo).take(MAX_ITEMS).filter_map(HistoryInfo::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &str, values: &[&str]) -> Headers {
        let mut headers = Headers::new();
        for value in values {
            headers.push(name, value).unwrap();
        }
        headers
    }

    #[test]
    fn asserted_identities_of_both_kinds_are_read() {
        let headers = headers("P-Asserted-Identity", &["\"Cullen\" <sip:f@b.example>, tel:+14085264000"]);
        let uris: Vec<_> = asserted(&headers).map(|addr| addr.uri.as_str().to_owned()).collect();
        assert_eq!(uris, ["sip:f@b.example", "tel:+14085264000"]);
    }

    #[test]
    fn diversion_says_who_and_why() {
        let headers = headers(
            "Diversion",
            &["<tel:+15551>;reason=no-answer;counter=2;privacy=full", "junk, <sip:a@b>;reason=\"user busy\""],
        );
        let all: Vec<_> = Diversion::all(&headers).collect();
        assert_eq!(all.len(), 2, "the malformed one is passed over");
        assert_eq!(
            (all[0].reason.as_deref(), all[0].counter, all[0].is_private),
            (Some("no-answer"), Some(2), true)
        );
        assert_eq!((all[1].reason.as_deref(), all[1].is_private), (Some("user busy"), false));
    }

    #[test]
    fn history_is_read_with_what_its_uris_carry() {
        let headers = headers(
            "History-Info",
            &["<sip:bob@p.example?Reason=SIP%3Bcause%3D302&Privacy=history>;index=1, \
               <sip:carol@p.example;cause=486>;index=1.1;mp=1"],
        );
        let all: Vec<_> = HistoryInfo::all(&headers).collect();
        assert_eq!((&*all[0].index, all[0].target.uri.as_str()), ("1", "sip:bob@p.example"));
        assert_eq!(all[0].reason.as_ref().and_then(|reason| reason.cause), Some(302));
        assert!(all[0].is_private && !all[1].is_private);
        assert_eq!((&*all[1].index, all[1].cause), ("1.1", Some(486)));
    }
}
