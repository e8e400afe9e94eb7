//! What a request may not be, before anybody looks at its meaning (RFC 3261 §8.2), in the RFC's order.
//!
//! | what | answer |
//! |---|---|
//! | method unknown to us, or not served | 501, 405 with Allow (SUBSCRIBE: 489 with Allow-Events) |
//! | new call with Max-Forwards: 0, where calls are passed on | 483 |
//! | Request-URI neither `sip:` nor `sips:` | 416 |
//! | Require that we do not understand | 420 with Unsupported |
//! | INVITE: coding or type of its body, Accept without SDP | 415, 406 |
//! | INVITE or UPDATE: session interval malformed, too short | 400, 422 with Min-SE |
//!
//! **Max-Forwards: 0 is no error to a user agent.** It forbids to *forward* (§16.3), and a user agent forwards nothing: it is
//! where the request has arrived, so OPTIONS gets its 200 and an INVITE its answer. A user who places calls on behalf of those
//! that come in (a B2BUA) sets [`super::EndpointConfig::forwards`]: then an INVITE with no hop left gets 483, as from a proxy
//! (RFC 7332 asks for that), and the smaller number is passed on by [`super::InviteRequest::max_forwards`].

use super::refusal::Refusal;
use super::session::{Ask, Session};
use super::{Endpoint, listed};
use crate::header::session::SessionExpires;
use crate::headers::HeaderName;
use crate::message::{Method, Request};
use crate::uri::Scheme;

impl Endpoint {
    /// What is wrong with a request.
    pub(super) fn objection(&self, request: &Request) -> Option<Refusal> {
        match &request.method {
            Method::Other(name) => return Some(Refusal::new(501, "method_known", name).with_capabilities()),
            Method::Subscribe if !self.serves_package_of(request) => {
                let package = request.header(HeaderName::Event).unwrap_or("no Event");
                return Some(self.bad_event(package));
            }
            method if !listed(&self.allow, method.as_str()) => {
                return Some(Refusal::new(405, "method_allowed", method).with_capabilities());
            }
            _ => {}
        }
        let is_new_call = request.method == Method::Invite && request.head.to().tag().is_none();
        if self.config.forwards && is_new_call && request.head.max_forwards() == Some(0) {
            return Some(Refusal::new(483, "max_forwards", "no hop left"));
        }
        if !matches!(request.uri.scheme(), Scheme::Sip | Scheme::Sips) {
            return Some(Refusal::new(416, "uri_scheme", "neither sip nor sips"));
        }
        let unsupported: Vec<&str> = request
            .head
            .headers()
            .items(HeaderName::Require)
            .filter(|tag| !listed(&self.supported, tag))
            .collect();
        if !unsupported.is_empty() {
            let unsupported = unsupported.join(", ");
            let mut refusal = Refusal::new(420, "required_extensions", &unsupported);
            refusal.reply.headers.push_raw(b"Unsupported", unsupported.as_bytes());
            return Some(refusal);
        }
        match request.method {
            Method::Invite => invite_objection(request).or_else(|| self.session_objection(request)),
            Method::Update => self.session_objection(request),
            _ => None,
        }
    }

    fn serves_package_of(&self, subscribe: &Request) -> bool {
        let package = subscribe.header(HeaderName::Event).and_then(|event| event.split(';').next());
        self.config.accepted_methods.contains(&Method::Subscribe)
            && package.is_some_and(|package| {
                let package = package.trim();
                self.config.event_packages.iter().any(|served| served.eq_ignore_ascii_case(package))
            })
    }

    fn session_objection(&self, request: &Request) -> Option<Refusal> {
        let value = request.header(HeaderName::SessionExpires)?;
        if self.config.session_timer.is_some() && SessionExpires::parse(value).is_err() {
            return Some(Refusal::new(400, "session_expires", "malformed"));
        }
        let min_s = Session::too_short(self.config.session_timer, &Ask::of(request))?;
        let mut refusal = Refusal::new(422, "session_interval", value);
        refusal.reply.headers.push_raw(b"Min-SE", min_s.to_string().as_bytes());
        Some(refusal)
    }
}

/// What is wrong with an INVITE's body: its type or coding (415), or that the caller takes no SDP (406).
fn invite_objection(invite: &Request) -> Option<Refusal> {
    let head = &invite.head;
    let coding = head.headers().get(HeaderName::ContentEncoding);
    if coding.is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        let mut refusal = Refusal::new(415, "body_coding", coding.unwrap_or_default()).with_capabilities();
        refusal.reply.headers.push_raw(b"Accept-Encoding", b"identity");
        return Some(refusal);
    }
    if !invite.body.is_empty() && invite.sdp().is_none() {
        let kind = head.headers().get(HeaderName::ContentType).unwrap_or("no Content-Type");
        return Some(Refusal::new(415, "body_type", kind).with_capabilities());
    }
    let mut accepted = head.headers().items(HeaderName::Accept).peekable();
    let takes_sdp = |kind: &str| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        ["application/sdp", "application/*", "*/*"].iter().any(|ours| ours.eq_ignore_ascii_case(kind))
    };
    if accepted.peek().is_some() && !accepted.any(takes_sdp) {
        return Some(Refusal::new(406, "accepts_sdp", "Accept without application/sdp").with_capabilities());
    }
    None
}
