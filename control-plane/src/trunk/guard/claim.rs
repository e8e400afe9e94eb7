//! What a request says of itself, as the parser has read it: enough to tell a phone from a scanner.

use std::borrow::Cow;

use tandem_sip::{HeaderName, Method, Request};

use crate::call::admission::dialled_number;
use crate::trunk::Trunk;

/// See the module.
pub(super) struct Claim<'a> {
    request: &'a Request,
    /// The Request-URI has a password: a key of the API.
    pub(super) has_key: bool,
    /// It has a key, or an Authorization.
    pub(super) has_credential: bool,
    /// The user of From.
    pub(super) from_user: Option<Cow<'a, str>>,
}

impl<'a> Claim<'a> {
    pub(super) fn of(request: &'a Request) -> Self {
        let headers = request.head.headers();
        let has_key = request.uri.password().is_some_and(|key| !key.is_empty());
        let answers = [HeaderName::Authorization, HeaderName::ProxyAuthorization];
        let has_credential = has_key || answers.into_iter().any(|name| headers.contains(name));
        Self { request, has_key, has_credential, from_user: request.head.from().uri.user() }
    }

    /// Whether User-Agent or From's display name shows one of these words (in lower case).
    pub(super) fn names_one_of(&self, agents: &[String]) -> bool {
        let agent = self.request.head.headers().all_bytes(HeaderName::UserAgent).next().unwrap_or_default();
        let from = self.request.head.headers().all_bytes(HeaderName::From).next().unwrap_or_default();
        let display = from.iter().position(|&b| b == b'<').map_or(&b""[..], |open| &from[..open]);
        agents.iter().any(|word| contains(agent, word.as_bytes()) || contains(display, word.as_bytes()))
    }

    /// Whether it is a call that shows no key.
    pub(super) fn is_call(&self) -> bool {
        self.request.method == Method::Invite && !self.has_key
    }

    /// Whether this trunk has an assistant for the number that was dialled.
    pub(super) fn is_routed(&self, trunk: &Trunk) -> bool {
        trunk.inbound.route(&dialled_number(self.request, trunk.inbound.did_from)).is_some()
    }
}

/// Whether `needle` (in lower case) stands somewhere, without case.
fn contains(text: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && text.windows(needle.len()).any(|window| window.eq_ignore_ascii_case(needle))
}
