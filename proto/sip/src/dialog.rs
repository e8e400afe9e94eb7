//! Dialog (RFC 3261 §12): what two user agents remember of each other for the length of a call.
//!
//! ```text
//!   UAS: INVITE ──▶ early ──our 2xx──▶ confirmed ──BYE──▶ terminated
//!   UAC: 2xx ─────────────────────────▶ confirmed ──BYE──▶ terminated
//! ```
//!
//! Here are the identity, both sequence numbers, the route set and the remote target, and how requests are written from
//! them. The state itself is the endpoint's call; `Unacked` repeats its 2xx until the ACK comes.

use std::time::Instant;

use crate::flow::Flow;
use crate::header::NameAddr;
use crate::header::refer::Replaces;
use crate::headers::HeaderName;
use crate::message::{Head, Method, Request, Response};
use crate::timer::Timers;
use crate::transaction::{Backoff, Due};
use crate::uri::Uri;
use crate::write::Writer;

/// One dialog as one side sees it. `Debug` shows no address: those may carry secrets.
#[derive(Clone)]
pub struct Dialog {
    call_id: Box<str>,
    local_tag: Box<str>,
    remote_tag: Box<str>,
    /// From of our requests, with our tag.
    local: Box<str>,
    /// To of our requests, with the peer's tag.
    remote: Box<str>,
    target: Uri,
    routes: Vec<NameAddr>,
    local_cseq: u32,
    remote_cseq: Option<u32>,
}

impl Dialog {
    /// The dialog that our response with `local_tag` makes (§12.1.1). `None`: the INVITE has no usable Contact.
    pub(crate) fn uas(invite: &Request, local_tag: &str) -> Option<Dialog> {
        let head = &invite.head;
        Some(Dialog {
            call_id: head.call_id().into(),
            local_tag: local_tag.into(),
            remote_tag: tag_of(head.from()),
            local: format!("{};tag={local_tag}", text(head, HeaderName::To)).into(),
            remote: text(head, HeaderName::From).into(),
            target: target(head)?,
            routes: head.routes(HeaderName::RecordRoute).collect(),
            local_cseq: 0,
            remote_cseq: Some(head.cseq().number),
        })
    }

    /// The dialog that a response to our INVITE makes (§12.1.2). `None`: it has no usable Contact.
    pub(crate) fn uac(response: &Response) -> Option<Dialog> {
        Some(Dialog::uac_to(response, target(&response.head)?))
    }

    /// The same with a given target.
    pub(crate) fn uac_to(response: &Response, target: Uri) -> Dialog {
        let head = &response.head;
        let mut routes: Vec<NameAddr> = head.routes(HeaderName::RecordRoute).collect();
        routes.reverse();
        Dialog {
            call_id: head.call_id().into(),
            local_tag: tag_of(head.from()),
            remote_tag: tag_of(head.to()),
            local: text(head, HeaderName::From).into(),
            remote: text(head, HeaderName::To).into(),
            target,
            routes,
            local_cseq: head.cseq().number,
            remote_cseq: None,
        }
    }

    /// Call-ID.
    pub fn call_id(&self) -> &str {
        &self.call_id
    }

    /// Our tag.
    pub fn local_tag(&self) -> &str {
        &self.local_tag
    }

    /// The peer's tag; empty if it is of RFC 2543.
    pub fn remote_tag(&self) -> &str {
        &self.remote_tag
    }

    /// Where the peer wants its requests: its last Contact.
    pub fn remote_target(&self) -> &Uri {
        &self.target
    }

    /// How the peer knows this dialog: for a Refer-To by which a third party takes our place (RFC 3891).
    pub fn replaces(&self) -> Replaces {
        Replaces {
            call_id: self.call_id.clone(),
            to_tag: self.remote_tag.clone(),
            from_tag: self.local_tag.clone(),
            early_only: false,
        }
    }

    /// Whether a request or response head belongs to this dialog, seen from its receiver.
    pub(crate) fn matches(&self, head: &Head) -> bool {
        *self.call_id == *head.call_id()
            && *self.local_tag == *head.to().tag().unwrap_or_default()
            && *self.remote_tag == *head.from().tag().unwrap_or_default()
    }

    /// The sequence numbers of the early dialog that this one was (§13.2.2.4).
    pub(crate) fn continue_from(&mut self, early: &Dialog) {
        self.local_cseq = self.local_cseq.max(early.local_cseq);
        self.remote_cseq = early.remote_cseq;
    }

    /// Our own address, with its tag.
    pub(crate) fn local_addr(&self) -> Option<NameAddr> {
        NameAddr::parse(&self.local).ok()
    }

    /// Takes a request's sequence number; false if it is out of order (§12.2.2: answer 500).
    pub(crate) fn accept(&mut self, number: u32) -> bool {
        let in_order = self.remote_cseq.is_none_or(|last| number > last);
        if in_order {
            self.remote_cseq = Some(number);
        }
        in_order
    }

    /// A target refresh (re-INVITE, UPDATE, and their 2xx): the peer's new Contact.
    pub(crate) fn refresh_target(&mut self, head: &Head) {
        if let Some(target) = target(head) {
            self.target = target;
        }
    }

    /// The same, taken from an UPDATE when it came: see [`target`].
    pub(crate) fn set_target(&mut self, target: Uri) {
        self.target = target;
    }

    /// The sequence number for our next request.
    pub(crate) fn next_cseq(&mut self) -> u32 {
        self.local_cseq += 1;
        self.local_cseq
    }

    /// That of our last one.
    pub(crate) fn last_cseq(&self) -> u32 {
        self.local_cseq
    }

    /// The first route, or the target: where a request of ours goes.
    pub(crate) fn next_hop(&self) -> &Uri {
        self.routes.first().map_or(&self.target, |route| &route.uri)
    }

    /// Whether the path is of proxies that recorded themselves.
    pub(crate) fn has_routes(&self) -> bool {
        !self.routes.is_empty()
    }

    /// Begins a request: Request-Line, Via, Max-Forwards, Route, From, To, Call-ID, CSeq (§12.2.1.1).
    pub(crate) fn write(&self, method: &Method, cseq: u32, via: &str) -> Writer {
        // A first route without ;lr is a strict router: it wants to see itself in the Request-URI.
        let strict = self.routes.first().filter(|route| !route.is_loose_route());
        let uri = strict.map_or(&self.target, |route| &route.uri);
        let mut writer = Writer::request(method, uri);
        writer.header(HeaderName::Via, via);
        writer.header(HeaderName::MaxForwards, "70");
        for route in &self.routes[usize::from(strict.is_some())..] {
            writer.header(HeaderName::Route, &route.to_wire());
        }
        if strict.is_some() {
            writer.header_fmt(HeaderName::Route, format_args!("<{}>", self.target.as_str()));
        }
        writer.header(HeaderName::From, &self.local);
        writer.header(HeaderName::To, &self.remote);
        writer.header(HeaderName::CallId, &self.call_id);
        writer.header_fmt(HeaderName::CSeq, format_args!("{cseq} {method}"));
        writer
    }
}

impl std::fmt::Debug for Dialog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialog")
            .field("call_id", &self.call_id)
            .field("local_tag", &self.local_tag)
            .field("remote_tag", &self.remote_tag)
            .finish_non_exhaustive()
    }
}

fn tag_of(addr: &NameAddr) -> Box<str> {
    addr.tag().unwrap_or_default().into()
}

/// A From or To as the peer wrote it; one that is not UTF-8 is written anew.
fn text(head: &Head, name: HeaderName) -> String {
    let addr = if name == HeaderName::From { head.from() } else { head.to() };
    head.headers().get(name).map_or_else(|| addr.to_wire(), str::to_owned)
}

/// Contact as a Request-URI, in which headers may not stand.
pub(crate) fn target(head: &Head) -> Option<Uri> {
    head.contact().filter(NameAddr::is_sip).map(|contact| contact.uri.without_headers())
}

/// Our 2xx to an INVITE, sent again until its ACK comes, on any transport (RFC 3261 §13.3.1.4).
#[derive(Debug)]
pub(crate) struct Unacked {
    /// The CSeq number that the ACK will have.
    pub(crate) cseq: u32,
    /// The 2xx.
    pub(crate) bytes: Vec<u8>,
    pub(crate) flow: Flow,
    /// The answer to a re-INVITE that the user knows nothing of.
    pub(crate) is_hidden: bool,
    repeat: Backoff,
    give_up: Instant,
}

impl Unacked {
    pub(crate) fn new(cseq: u32, bytes: Vec<u8>, flow: Flow, timers: &Timers, now: Instant) -> Unacked {
        let repeat = Backoff::new(timers.t1, Some(timers.t2), now);
        Unacked { cseq, bytes, flow, is_hidden: false, repeat, give_up: now + timers.t1_64() }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.repeat.next.min(self.give_up)
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Due {
        if now >= self.give_up { Due::TimedOut } else { self.repeat.fire(now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::parse::parse;

    fn invite(extra: &str) -> Request {
        let text = format!(
            "INVITE sip:a@b SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: C <sip:c@d>;tag=1\r\n\
             To: sip:a@b\r\nCall-ID: x\r\nCSeq: 7 INVITE\r\n{extra}\r\n"
        );
        let Ok(Message::Request(request)) = parse(text.as_bytes()) else { panic!("test request parses") };
        request
    }

    fn written(dialog: &Dialog) -> String {
        String::from_utf8(dialog.write(&Method::Bye, 1, "V").finish(b"")).unwrap()
    }

    #[test]
    fn requests_follow_the_recorded_route_to_the_contact() {
        let request =
            invite("Contact: <sip:c@10.0.0.1;x=1?h=1>\r\nRecord-Route: <sip:p1;lr>, <sip:p2;lr>\r\n");
        let dialog = Dialog::uas(&request, "2").unwrap();
        assert_eq!(
            written(&dialog),
            "BYE sip:c@10.0.0.1;x=1 SIP/2.0\r\nVia: V\r\nMax-Forwards: 70\r\nRoute: <sip:p1;lr>\r\n\
             Route: <sip:p2;lr>\r\nFrom: sip:a@b;tag=2\r\nTo: C <sip:c@d>;tag=1\r\nCall-ID: x\r\nCSeq: 1 BYE\r\n\
             Content-Length: 0\r\n\r\n"
        );
        assert_eq!(dialog.next_hop().as_str(), "sip:p1;lr");
    }

    #[test]
    fn strict_router_sees_itself_in_the_request_uri() {
        let request = invite("Contact: <sip:c@10.0.0.1>\r\nRecord-Route: <sip:p1>, <sip:p2;lr>\r\n");
        let text = written(&Dialog::uas(&request, "2").unwrap());
        assert!(text.starts_with("BYE sip:p1 SIP/2.0\r\n"), "{text}");
        assert!(text.contains("Route: <sip:p2;lr>\r\nRoute: <sip:c@10.0.0.1>\r\n"), "{text}");
    }

    #[test]
    fn sequence_numbers_only_rise() {
        let mut dialog = Dialog::uas(&invite("Contact: <sip:c@10.0.0.1>\r\n"), "2").unwrap();
        assert_eq!([dialog.accept(7), dialog.accept(9), dialog.accept(8)], [false, true, false]);
        assert_eq!([dialog.next_cseq(), dialog.next_cseq()], [1, 2]);
    }

    #[test]
    fn invite_without_contact_makes_no_dialog() {
        assert!(Dialog::uas(&invite(""), "2").is_none());
        assert!(Dialog::uas(&invite("Contact: <tel:+1555>\r\n"), "2").is_none());
    }
}
