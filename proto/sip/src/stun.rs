//! STUN binding requests at the SIP port: how a phone behind NAT keeps its UDP mapping open and learns when it has
//! changed (RFC 5626 §4.4.2, RFC 8489 §5, §14.2).
//!
//! ```text
//!   datagram ──is_stun──▶ first octet 0..=3, magic cookie ──answer──▶ XOR-MAPPED-ADDRESS of the sender
//! ```
//!
//! Only what a keep-alive needs: a binding request without credentials is answered with the address it came from. An
//! attribute that must be understood and is not gets error 420. All else is dropped and counted by whoever asked.
//! The answer is at most [`ANSWER_LEN_MAX`] octets, so that nobody can use us to multiply traffic.

use std::net::{IpAddr, SocketAddr};

/// Longest datagram read: a keep-alive has 20 octets, with SOFTWARE and FINGERPRINT some more.
pub const MESSAGE_LEN_MAX: usize = 548;
/// Unknown attributes that are named in a 420. Further ones are not.
pub const UNKNOWN_MAX: usize = 8;
/// Longest answer: a header, ERROR-CODE and [`UNKNOWN_MAX`] names of attributes.
pub const ANSWER_LEN_MAX: usize = HEADER_LEN + 8 + 4 + 2 * UNKNOWN_MAX;

const HEADER_LEN: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Types below must be understood by the receiver.
const OPTIONAL_FROM: u16 = 0x8000;

/// Why a datagram is no binding request of ours to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StunError {
    /// Not a whole header, or longer than [`MESSAGE_LEN_MAX`].
    #[error("STUN message of {0} octets")]
    Length(usize),
    /// The length in the header is not that of the datagram, or no multiple of four.
    #[error("STUN length field of {0} does not fit")]
    LengthField(u16),
    /// An attribute is cut off.
    #[error("STUN attribute {0:#06x} is cut off")]
    Attribute(u16),
    /// A response, an indication or a method other than binding.
    #[error("STUN message of type {0:#06x} is no binding request")]
    Type(u16),
}

/// Whether a datagram at the SIP port is STUN: no SIP message begins with an octet below 4, and the cookie is there.
pub fn is_stun(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|&first| first < 4) && datagram.get(4..8) == Some(&MAGIC_COOKIE[..])
}

/// The answer to a binding request from this address.
pub fn answer(datagram: &[u8], source: SocketAddr) -> Result<Vec<u8>, StunError> {
    let request = Request::parse(datagram)?;
    let mut body = Vec::with_capacity(ANSWER_LEN_MAX - HEADER_LEN);
    let kind = if request.unknown.is_empty() {
        push_attribute(&mut body, XOR_MAPPED_ADDRESS, &xor_address(source, &request.transaction_id));
        BINDING_SUCCESS
    } else {
        // Class 4, number 20.
        push_attribute(&mut body, ERROR_CODE, &[0, 0, 4, 20]);
        let unknown: Vec<u8> =
            request.unknown.iter().take(UNKNOWN_MAX).flat_map(|kind| kind.to_be_bytes()).collect();
        push_attribute(&mut body, UNKNOWN_ATTRIBUTES, &unknown);
        BINDING_ERROR
    };
    let mut out = Vec::with_capacity(HEADER_LEN + body.len());
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(body.len() as u16).to_be_bytes());
    out.extend_from_slice(&MAGIC_COOKIE);
    out.extend_from_slice(&request.transaction_id);
    out.extend_from_slice(&body);
    Ok(out)
}

/// A binding request without attributes, for tests and for whoever keeps a mapping of their own open.
pub fn binding_request(transaction_id: [u8; 12]) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[..2].copy_from_slice(&BINDING_REQUEST.to_be_bytes());
    out[4..8].copy_from_slice(&MAGIC_COOKIE);
    out[8..].copy_from_slice(&transaction_id);
    out
}

struct Request {
    transaction_id: [u8; 12],
    /// Attributes that must be understood and are not, in their order, at most [`UNKNOWN_MAX`].
    unknown: Vec<u16>,
}

impl Request {
    fn parse(datagram: &[u8]) -> Result<Request, StunError> {
        let (Some((header, mut rest)), ..=MESSAGE_LEN_MAX) =
            (datagram.split_at_checked(HEADER_LEN), datagram.len())
        else {
            return Err(StunError::Length(datagram.len()));
        };
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let length = u16::from_be_bytes([header[2], header[3]]);
        if usize::from(length) != rest.len() || length % 4 != 0 {
            return Err(StunError::LengthField(length));
        }
        if kind != BINDING_REQUEST {
            return Err(StunError::Type(kind));
        }
        let mut transaction_id = [0; 12];
        transaction_id.copy_from_slice(&header[8..]);
        let mut unknown = Vec::new();
        while let Some((head, after)) = rest.split_at_checked(4) {
            let kind = u16::from_be_bytes([head[0], head[1]]);
            let length = usize::from(u16::from_be_bytes([head[2], head[3]]));
            rest = after.get(length.next_multiple_of(4)..).ok_or(StunError::Attribute(kind))?;
            if kind < OPTIONAL_FROM && unknown.len() < UNKNOWN_MAX {
                unknown.push(kind);
            }
        }
        Ok(Request { transaction_id, unknown })
    }
}

fn push_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(value.len() as u16).to_be_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The value of XOR-MAPPED-ADDRESS: middleboxes that rewrite addresses in payloads do not know it again.
fn xor_address(source: SocketAddr, transaction_id: &[u8; 12]) -> Vec<u8> {
    let key = MAGIC_COOKIE.iter().chain(transaction_id);
    let port = source.port() ^ u16::from_be_bytes([MAGIC_COOKIE[0], MAGIC_COOKIE[1]]);
    let (family, octets) = match source.ip() {
        IpAddr::V4(ip) => (1, ip.octets().to_vec()),
        IpAddr::V6(ip) => (2, ip.octets().to_vec()),
    };
    let mut out = vec![0, family];
    out.extend_from_slice(&port.to_be_bytes());
    out.extend(octets.iter().zip(key).map(|(octet, key)| octet ^ key));
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: [u8; 12] = [0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae];

    fn with_attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        push_attribute(&mut body, kind, value);
        let mut out = binding_request(ID).to_vec();
        out[3] = body.len() as u8;
        out.extend_from_slice(&body);
        out
    }

    #[test]
    fn keep_alive_is_answered_with_the_address_it_came_from() {
        // The address and the transaction of RFC 5769 §2.2 and §2.3.
        let answer_to = |source: &str| answer(&binding_request(ID), source.parse().unwrap()).unwrap();
        let v4 = answer_to("192.0.2.1:32853");
        assert_eq!(v4[..2], BINDING_SUCCESS.to_be_bytes());
        assert_eq!(v4[8..20], ID);
        assert_eq!(v4[20..], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43]);
        let v6 = answer_to("[2001:db8:1234:5678:11:2233:4455:6677]:32853");
        assert_eq!(v6[24..28], [0, 2, 0xa1, 0x47]);
        let expected =
            [0x01, 0x13, 0xa9, 0xfa, 0xa5, 0xd3, 0xf1, 0x79, 0xbc, 0x25, 0xf4, 0xb5, 0xbe, 0xd2, 0xb9, 0xd9];
        assert_eq!(v6[28..], expected);
    }

    #[test]
    fn optional_attributes_are_passed_over_and_unknown_ones_are_named() {
        let source = "192.0.2.1:1".parse().unwrap();
        let software = answer(&with_attribute(0x8022, b"phone"), source).unwrap();
        assert_eq!(software[..2], BINDING_SUCCESS.to_be_bytes());
        let refused = answer(&with_attribute(0x0007, b""), source).unwrap();
        assert_eq!(refused[..2], BINDING_ERROR.to_be_bytes());
        assert_eq!(refused[20..], [0, 9, 0, 4, 0, 0, 4, 20, 0, 10, 0, 2, 0, 7, 0, 0]);
    }

    #[test]
    fn what_is_no_binding_request_is_not_answered() {
        let source = "192.0.2.1:1".parse().unwrap();
        let mut response = binding_request(ID);
        response[..2].copy_from_slice(&BINDING_SUCCESS.to_be_bytes());
        assert_eq!(answer(&response, source), Err(StunError::Type(BINDING_SUCCESS)));
        let mut long = binding_request(ID);
        long[3] = 4;
        assert_eq!(answer(&long, source), Err(StunError::LengthField(4)));
        let mut cut = with_attribute(0x8022, b"phone");
        cut[23] = 200;
        assert_eq!(answer(&cut, source), Err(StunError::Attribute(0x8022)));
        assert_eq!(answer(&[0, 1], source), Err(StunError::Length(2)));
        assert!(is_stun(&binding_request(ID)));
        assert!(!is_stun(b"OPTIONS sip:a SIP/2.0\r\n") && !is_stun(b"\r\n\r\n") && !is_stun(&[0, 1, 0, 0]));
    }

    proptest! {
        #[test]
        fn whatever_comes_the_answer_is_short_and_well_formed(
            body in prop::collection::vec(any::<u8>(), 0..64),
            port in any::<u16>(),
            ip in any::<[u8; 4]>(),
        ) {
            let mut datagram = binding_request(ID).to_vec();
            datagram[3] = body.len() as u8;
            datagram.extend_from_slice(&body);
            if let Ok(out) = answer(&datagram, (ip, port).into()) {
                prop_assert!(out.len() <= ANSWER_LEN_MAX);
                prop_assert_eq!(usize::from(u16::from_be_bytes([out[2], out[3]])), out.len() - HEADER_LEN);
                prop_assert!(is_stun(&out));
            }
        }
    }
}
