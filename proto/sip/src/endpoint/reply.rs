//! The headers that every response copies from its request (RFC 3261 §8.2.6), written once.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use crate::flow::Flow;
use crate::grammar;
use crate::header::Via;
use crate::headers::{HeaderName, Headers};
use crate::message::reason_phrase;
use crate::write::Writer;

/// What a request's responses begin with.
#[derive(Debug, Default)]
pub(crate) struct Template {
    /// Via, From, Call-ID, CSeq and Timestamp lines.
    lines: Vec<u8>,
    /// Record-Route lines: for responses that make a dialog.
    routes: Vec<u8>,
    /// To, and whether it has its tag already.
    to: Option<(Vec<u8>, bool)>,
}

impl Template {
    /// From a request's headers; a salvaged one may lack some.
    pub(crate) fn new(headers: &Headers, via: &Via, has_to_tag: bool, source: SocketAddr) -> Template {
        let mut template = Template { lines: Vec::with_capacity(512), routes: Vec::new(), to: None };
        let mut top = true;
        for (name, _, value) in headers.lines() {
            match name {
                HeaderName::Via if top => {
                    top = false;
                    let first = via_seen_from(via, source);
                    let others = grammar::find_outside(value, b',').map_or(&[][..], |comma| &value[comma..]);
                    push_line(&mut template.lines, name, &[first.as_bytes(), others]);
                }
                HeaderName::Via
                | HeaderName::From
                | HeaderName::CallId
                | HeaderName::CSeq
                | HeaderName::Timestamp => {
                    push_line(&mut template.lines, name, &[value]);
                }
                HeaderName::RecordRoute => push_line(&mut template.routes, name, &[value]),
                HeaderName::To => template.to = Some((value.to_vec(), has_to_tag)),
                _ => {}
            }
        }
        template
    }

    /// A To tag for an answer without state: the same for a request and its repetitions, unknown beforehand.
    pub(crate) fn stateless_tag(&self, secret: u64) -> String {
        let mut hasher = DefaultHasher::new();
        (secret, &self.lines).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// Begins a response. `tag` goes to To unless it has one; a 100 has none of ours.
    pub(crate) fn respond(&self, status: u16, reason: Option<&str>, tag: &str, with_routes: bool) -> Writer {
        let mut writer = Writer::response(status, reason.unwrap_or(reason_phrase(status)));
        writer.lines(&self.lines);
        if with_routes {
            writer.lines(&self.routes);
        }
        if let Some((to, has_tag)) = &self.to {
            if *has_tag || status == 100 {
                writer.line(HeaderName::To.as_str(), to);
            } else {
                writer.line(HeaderName::To.as_str(), &[to, &b";tag="[..], tag.as_bytes()].concat());
            }
        }
        writer
    }
}

fn push_line(out: &mut Vec<u8>, name: HeaderName, value: &[&[u8]]) {
    out.extend_from_slice(name.as_str().as_bytes());
    out.extend_from_slice(b": ");
    for part in value {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

/// The top Via with `received` and `rport` as we see them (RFC 3261 §18.2.1, RFC 3581 §4).
fn via_seen_from(via: &Via, source: SocketAddr) -> String {
    let mut out = format!("SIP/2.0/{} {}", via.transport, via.host);
    if let Some(port) = via.port {
        let _ = write!(out, ":{port}");
    }
    let mut wants_rport = false;
    for (name, value) in via.params.iter() {
        if name.eq_ignore_ascii_case("rport") {
            wants_rport = true;
        } else if name.eq_ignore_ascii_case("received") {
            // Only the receiver writes it: a sender's own would send the response elsewhere.
        } else if value.is_empty() {
            let _ = write!(out, ";{name}");
        } else {
            let _ = write!(out, ";{name}={value}");
        }
    }
    if wants_rport {
        let _ = write!(out, ";rport={}", source.port());
    }
    if wants_rport || via.host_ip() != Some(source.ip()) {
        let _ = write!(out, ";received={}", source.ip());
    }
    out
}

/// Where a response goes (RFC 3261 §18.2.2, RFC 3581 §4): the connection it came by; over UDP the source, at the source's
/// port if `rport` asks for it, else at sent-by's. `maddr` is not honoured: it would let a stranger aim our responses.
pub(crate) fn response_flow(via: &Via, flow: Flow) -> Flow {
    if flow.transport.is_reliable() || via.params.get("rport").is_some() {
        return flow;
    }
    Flow { remote: SocketAddr::new(flow.remote.ip(), via.port_or_default()), ..flow }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(via: &str, source: &str) -> String {
        via_seen_from(&Via::parse(via).unwrap(), source.parse().unwrap())
    }

    #[test]
    fn via_gets_what_the_sender_cannot_know() {
        assert_eq!(
            seen("SIP/2.0/UDP 10.0.0.1:5060;rport;branch=z9hG4bK1", "192.0.2.9:4000"),
            "SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bK1;rport=4000;received=192.0.2.9"
        );
        assert_eq!(
            seen("SIP/2.0/UDP pc.example;branch=z9hG4bK1;received=1.1.1.1", "192.0.2.9:5060"),
            "SIP/2.0/UDP pc.example;branch=z9hG4bK1;received=192.0.2.9"
        );
        let plain = "SIP/2.0/UDP 192.0.2.9:5062;branch=z9hG4bK1";
        assert_eq!(seen(plain, "192.0.2.9:5062"), plain);
    }

    #[test]
    fn response_goes_to_the_source_port_only_if_asked() {
        let flow = Flow::udp(([127, 0, 0, 1], 5060).into(), ([192, 0, 2, 9], 4000).into());
        let to = |via: &str| response_flow(&Via::parse(via).unwrap(), flow).remote.to_string();
        assert_eq!(to("SIP/2.0/UDP 10.0.0.1:5070;rport;branch=z9hG4bK1"), "192.0.2.9:4000");
        assert_eq!(to("SIP/2.0/UDP 10.0.0.1:5070;branch=z9hG4bK1"), "192.0.2.9:5070");
        assert_eq!(to("SIP/2.0/UDP pc.example;branch=z9hG4bK1"), "192.0.2.9:5060");
    }
}
