//! Which transaction a message belongs to (RFC 3261 §17.1.3, §17.2.3).
//!
//! A key is one short text that only a message of the same transaction yields. `|` separates the parts: it is in no
//! token, host or Call-ID.

use std::fmt::Write as _;

use crate::message::{Head, Method, Request};

/// Key of a transaction, or of a request that merged ones share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key(Box<str>);

impl Key {
    /// Of a client transaction: our branch and the method of CSeq (a CANCEL has the branch of its INVITE).
    pub(crate) fn client(branch: &str, method: &Method) -> Key {
        Key(join(["c", branch, method.as_str(), "", ""]))
    }

    /// Of the server transaction that a request belongs to; an ACK belongs to its INVITE's.
    pub(crate) fn server(request: &Request) -> Key {
        let method = if request.method == Method::Ack { &Method::Invite } else { &request.method };
        Key::of_method(&request.head, method)
    }

    /// Of the INVITE that a CANCEL wants to end.
    pub(crate) fn cancelled(head: &Head) -> Key {
        Key::of_method(head, &Method::Invite)
    }

    fn of_method(head: &Head, method: &Method) -> Key {
        let via = head.via();
        if via.has_rfc3261_branch() {
            let branch = via.branch().unwrap_or_default();
            let method = method.as_str();
            let mut key = String::with_capacity(branch.len() + method.len() + via.host.len() + 12);
            let _ = write!(key, "s|{branch}|{method}|");
            key.extend(via.host.chars().map(|c| c.to_ascii_lowercase()));
            let _ = write!(key, "|{}|", via.port_or_default());
            return Key(key.into_boxed_str());
        }
        // RFC 2543 branches are not unique: everything that an INVITE and its ACK share.
        let via = format!("{}/{}/{}", via.host, via.port_or_default(), via.branch().unwrap_or_default());
        let sequence = format!("{}/{}", head.cseq().number, head.from().tag().unwrap_or_default());
        Key(join(["o", head.call_id(), method.as_str(), &sequence, &via]))
    }

    /// What copies of one request share that reached us by several ways (RFC 3261 §8.2.2.2).
    pub(crate) fn merged(head: &Head) -> Key {
        let from_tag = head.from().tag().unwrap_or_default();
        let number = head.cseq().number.to_string();
        Key(join(["m", head.call_id(), head.cseq().method.as_str(), &number, &from_tag]))
    }
}

fn join(parts: [&str; 5]) -> Box<str> {
    let mut out = String::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
    for part in parts {
        out.push_str(part);
        out.push('|');
    }
    out.into_boxed_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Message;
    use crate::parse::parse;

    fn request(method: &str, via: &str, to_tag: &str) -> Request {
        let text = format!(
            "{method} sip:a@b SIP/2.0\r\nVia: {via}\r\nFrom: <sip:c@d>;tag=1\r\nTo: <sip:a@b>{to_tag}\r\n\
             Call-ID: x\r\nCSeq: 1 {method}\r\n\r\n"
        );
        let Ok(Message::Request(request)) = parse(text.as_bytes()) else { panic!("test request parses") };
        request
    }

    const VIA: &str = "SIP/2.0/UDP Host.example;branch=z9hG4bK1";

    #[test]
    fn ack_and_retransmission_belong_to_the_invite_and_cancel_does_not() {
        let invite = Key::server(&request("INVITE", VIA, ""));
        assert_eq!(
            invite,
            Key::server(&request(
                "INVITE",
                &VIA.to_lowercase().replace("sip/2.0/udp", "SIP/2.0/UDP").replace("z9hg4bk", "z9hG4bK"),
                ""
            ))
        );
        assert_eq!(invite, Key::server(&request("ACK", VIA, ";tag=2")));
        assert_ne!(invite, Key::server(&request("CANCEL", VIA, "")));
        assert_eq!(invite, Key::cancelled(&request("CANCEL", VIA, "").head));
    }

    #[test]
    fn same_branch_of_another_sender_is_another_transaction() {
        let other = VIA.replace("Host", "other");
        assert_ne!(Key::server(&request("INVITE", VIA, "")), Key::server(&request("INVITE", &other, "")));
    }

    #[test]
    fn rfc_2543_ack_belongs_to_its_invite() {
        let via = "SIP/2.0/UDP old.example";
        assert_eq!(Key::server(&request("INVITE", via, "")), Key::server(&request("ACK", via, ";tag=2")));
    }
}
