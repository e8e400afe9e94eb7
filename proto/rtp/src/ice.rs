//! ICE-lite (RFC 8445 §2.5): one host candidate, which answers the checks of a browser and never checks by itself.
//!
//! ```text
//!  datagram, first octet 0..=3 ──▶ binding request, cookie, FINGERPRINT
//!     ──▶ USERNAME ours:theirs, MESSAGE-INTEGRITY with our password ──▶ success, XOR-MAPPED-ADDRESS
//!                                  │                                └─ USE-CANDIDATE ─▶ this source is the pair
//!                                  └─ wrong ─▶ 401, short               (the first, or another one: the peer decides)
//! ```
//!
//! Who knows the password proves that it has seen our description, so the pair that it nominates is where the media go:
//! it takes the place of latching. Consent (RFC 7675) is the peer's to refresh: [`IceLite::last_heard`] says when it was.
//!
//! Nothing allocates; answers are shorter than [`ANSWER_LEN_MAX`] and not longer than what was asked by much, so that
//! nobody can use us to multiply traffic. `tandem-sip` answers STUN at the SIP port too, without credentials: the two have
//! the header's layout in common and nothing else.

mod credentials;

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

pub use credentials::{Credentials, IceText, TEXT_LEN_MAX};

/// Longest answer: header, XOR-MAPPED-ADDRESS of IPv6, MESSAGE-INTEGRITY, FINGERPRINT; refusals are shorter.
pub const ANSWER_LEN_MAX: usize = HEADER_LEN + 24 + 24 + 8;
/// Longest request read: a check has about 100 octets, with long names some more.
const REQUEST_LEN_MAX: usize = 1_200;
/// Attributes of one request that are read.
const ATTRIBUTES_MAX: usize = 32;

const HEADER_LEN: usize = 20;
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const FINGERPRINT_XOR: u32 = 0x5354_554e;
const BINDING_REQUEST: u16 = 0x0001;
const BINDING_SUCCESS: u16 = 0x0101;
const BINDING_ERROR: u16 = 0x0111;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PRIORITY: u16 = 0x0024;
const USE_CANDIDATE: u16 = 0x0025;
const FINGERPRINT: u16 = 0x8028;
const ICE_CONTROLLED: u16 = 0x8029;
/// Types below must be understood by the receiver (RFC 8489 §14).
const OPTIONAL_FROM: u16 = 0x8000;

/// Why a datagram was not taken for a check of our peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IceError {
    /// Not a whole message, or one with an attribute cut off.
    #[error("STUN message of {0} octets is malformed")]
    Malformed(usize),
    /// No FINGERPRINT, or one of another message.
    #[error("STUN fingerprint does not match")]
    Fingerprint,
    /// A response, an indication, or another method.
    #[error("STUN message of type {0:#06x} is no binding request")]
    Type(u16),
    /// The buffer for the answer is too short.
    #[error("no room for the answer")]
    NoRoom,
}

/// What a check was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Octets of the answer, which goes back to the source.
    pub answer_len: usize,
    /// It was our peer's.
    pub is_authentic: bool,
    /// It nominated its source, and that was not the pair before.
    pub is_nominated: bool,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct IceLite {
    local: Credentials,
    remote_ufrag: IceText,
    pair: Option<SocketAddr>,
    last_heard: Option<Instant>,
    refused: u64,
}

impl IceLite {
    /// A side that was not checked yet. `remote_ufrag` is that of the peer's description.
    pub const fn new(local: Credentials, remote_ufrag: IceText) -> Self {
        Self { local, remote_ufrag, pair: None, last_heard: None, refused: 0 }
    }

    /// Where media go and come from, once the peer has nominated it.
    pub const fn pair(&self) -> Option<SocketAddr> {
        self.pair
    }

    /// When the last authentic check came.
    pub const fn last_heard(&self) -> Option<Instant> {
        self.last_heard
    }

    /// Checks that were not our peer's.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// The peer has begun anew (RFC 8445 §9): checks must have these from now on. The pair holds until one of them nominates
    /// another.
    pub fn restart(&mut self, local: Credentials, remote_ufrag: IceText) {
        (self.local, self.remote_ufrag) = (local, remote_ufrag);
    }

    /// Takes a check and writes its answer.
    ///
    /// # Errors
    /// [`IceError`]: it gets no answer at all.
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        source: SocketAddr,
        now: Instant,
        answer: &mut [u8],
    ) -> Result<Checked, IceError> {
        let request = Request::parse(datagram).inspect_err(|_| self.refused += 1)?;
        let mut writer = Writer::new(answer, &request.transaction_id);
        let refusal = match &request {
            Request { username: None, .. } | Request { integrity: None, .. } => Some((4, 0)),
            _ if !self.is_ours(&request, datagram) => Some((4, 1)),
            Request { is_unknown: true, .. } => Some((4, 20)),
            // Both sides would be controlled: we are lite and never control (§7.3.1.1).
            Request { is_controlled: true, .. } => Some((4, 87)),
            _ => None,
        };
        if let Some((class, number)) = refusal {
            self.refused += 1;
            writer.begin(BINDING_ERROR)?;
            writer.attribute(ERROR_CODE, &[0, 0, class, number])?;
            let answer_len = writer.fingerprint()?;
            return Ok(Checked { answer_len, is_authentic: false, is_nominated: false });
        }
        writer.begin(BINDING_SUCCESS)?;
        writer.xor_mapped_address(source)?;
        writer.integrity(self.local.password.as_bytes())?;
        let answer_len = writer.fingerprint()?;
        self.last_heard = Some(now);
        let is_nominated = request.is_nominating && self.pair != Some(source);
        if is_nominated {
            self.pair = Some(source);
        }
        Ok(Checked { answer_len, is_authentic: true, is_nominated })
    }

    fn is_ours(&self, request: &Request<'_>, datagram: &[u8]) -> bool {
        let Some((ours, theirs)) = request.username.and_then(|name| {
            let colon = name.iter().position(|octet| *octet == b':')?;
            Some((&name[..colon], &name[colon + 1..]))
        }) else {
            return false;
        };
        let Some((at, tag)) = request.integrity else { return false };
        ours == self.local.ufrag.as_bytes()
            && theirs == self.remote_ufrag.as_bytes()
            && integrity_of(self.local.password.as_bytes(), &datagram[..at])
                .is_some_and(|mac| mac.verify_slice(tag).is_ok())
    }
}

/// Writes a check as a peer that controls sends it, and gives its length: what [`IceLite`] is tested with.
///
/// # Errors
/// [`IceError::NoRoom`]
pub fn write_check(
    out: &mut [u8],
    transaction_id: [u8; 12],
    (remote, local_ufrag): (&Credentials, IceText),
    is_nominating: bool,
) -> Result<usize, IceError> {
    let mut username = [0; 2 * TEXT_LEN_MAX + 1];
    let (theirs, ours) = (remote.ufrag.as_bytes(), local_ufrag.as_bytes());
    username[..theirs.len()].copy_from_slice(theirs);
    username[theirs.len()] = b':';
    username[theirs.len() + 1..][..ours.len()].copy_from_slice(ours);
    let mut writer = Writer::new(out, &transaction_id);
    writer.begin(BINDING_REQUEST)?;
    writer.attribute(USERNAME, &username[..theirs.len() + 1 + ours.len()])?;
    writer.attribute(PRIORITY, &[0x6e, 0, 1, 0xff])?;
    if is_nominating {
        writer.attribute(USE_CANDIDATE, &[])?;
    }
    writer.integrity(remote.password.as_bytes())?;
    writer.fingerprint()
}

/// The MAC over a message up to its MESSAGE-INTEGRITY, with the length as if it ended behind that (RFC 8489 §14.5).
fn integrity_of(password: &[u8], before: &[u8]) -> Option<Hmac<Sha1>> {
    let mut mac = <Hmac<Sha1> as KeyInit>::new_from_slice(password).ok()?;
    let len = u16::try_from(before.len().checked_sub(HEADER_LEN)? + 24).ok()?;
    mac.update(&before[..2]);
    mac.update(&len.to_be_bytes());
    mac.update(&before[4..]);
    Some(mac)
}

struct Request<'a> {
    transaction_id: [u8; 12],
    username: Option<&'a [u8]>,
    /// Where MESSAGE-INTEGRITY begins, and its value.
    integrity: Option<(usize, &'a [u8])>,
    is_nominating: bool,
    is_controlled: bool,
    /// It has an attribute that must be understood and is not.
    is_unknown: bool,
}

impl<'a> Request<'a> {
    fn parse(datagram: &'a [u8]) -> Result<Self, IceError> {
        let malformed = IceError::Malformed(datagram.len());
        let header = datagram.first_chunk::<HEADER_LEN>().ok_or(malformed)?;
        let kind = u16::from_be_bytes([header[0], header[1]]);
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        if datagram.len() > REQUEST_LEN_MAX
            || HEADER_LEN + length != datagram.len()
            || length % 4 != 0
            || header[4..8] != MAGIC_COOKIE
        {
            return Err(malformed);
        }
        if kind != BINDING_REQUEST {
            return Err(IceError::Type(kind));
        }
        let mut transaction_id = [0; 12];
        transaction_id.copy_from_slice(&header[8..]);
        let mut request = Self {
            transaction_id,
            username: None,
            integrity: None,
            is_nominating: false,
            is_controlled: false,
            is_unknown: false,
        };
        let mut at = HEADER_LEN;
        for _ in 0..ATTRIBUTES_MAX {
            let Some(&[k0, k1, l0, l1]) = datagram[at..].first_chunk::<4>() else { break };
            let kind = u16::from_be_bytes([k0, k1]);
            let len = usize::from(u16::from_be_bytes([l0, l1]));
            let value = datagram.get(at + 4..at + 4 + len).ok_or(malformed)?;
            match kind {
                FINGERPRINT => {
                    let expected = crc32(&datagram[..at]) ^ FINGERPRINT_XOR;
                    // It is the last attribute (RFC 8489 §14.7).
                    return match value == expected.to_be_bytes() && at + 8 == datagram.len() {
                        true => Ok(request),
                        false => Err(IceError::Fingerprint),
                    };
                }
                // What stands behind the MAC is not covered by it.
                _ if request.integrity.is_some() => {}
                USERNAME => request.username = Some(value),
                MESSAGE_INTEGRITY if len == 20 => request.integrity = Some((at, value)),
                USE_CANDIDATE => request.is_nominating = true,
                ICE_CONTROLLED => request.is_controlled = true,
                PRIORITY => {}
                _ => request.is_unknown |= kind < OPTIONAL_FROM,
            }
            at = (at + 4 + len.next_multiple_of(4)).min(datagram.len());
        }
        Err(IceError::Fingerprint)
    }
}

/// Writes an answer into the caller's buffer.
struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
    transaction_id: &'a [u8; 12],
}

impl<'a> Writer<'a> {
    const fn new(out: &'a mut [u8], transaction_id: &'a [u8; 12]) -> Self {
        Self { out, len: 0, transaction_id }
    }

    fn begin(&mut self, kind: u16) -> Result<(), IceError> {
        let header = self.out.get_mut(..HEADER_LEN).ok_or(IceError::NoRoom)?;
        header[..2].copy_from_slice(&kind.to_be_bytes());
        header[4..8].copy_from_slice(&MAGIC_COOKIE);
        header[8..].copy_from_slice(self.transaction_id);
        self.len = HEADER_LEN;
        Ok(())
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> Result<(), IceError> {
        let end = self.len + 4 + value.len().next_multiple_of(4);
        let slot = self.out.get_mut(self.len..end).ok_or(IceError::NoRoom)?;
        slot.fill(0);
        slot[..2].copy_from_slice(&kind.to_be_bytes());
        slot[2..4].copy_from_slice(&(value.len() as u16).to_be_bytes());
        slot[4..4 + value.len()].copy_from_slice(value);
        self.len = end;
        self.set_length(end);
        Ok(())
    }

    fn set_length(&mut self, end: usize) {
        self.out[2..4].copy_from_slice(&((end - HEADER_LEN) as u16).to_be_bytes());
    }

    /// Middleboxes that rewrite addresses in payloads do not know this one again (RFC 8489 §14.2).
    fn xor_mapped_address(&mut self, source: SocketAddr) -> Result<(), IceError> {
        let port = source.port() ^ u16::from_be_bytes([MAGIC_COOKIE[0], MAGIC_COOKIE[1]]);
        let mut value = [0; 20];
        value[2..4].copy_from_slice(&port.to_be_bytes());
        let key = MAGIC_COOKIE.iter().chain(self.transaction_id);
        let len = match source.ip() {
            IpAddr::V4(ip) => {
                value[1] = 1;
                value[4..]
                    .iter_mut()
                    .zip(ip.octets())
                    .zip(key)
                    .for_each(|((to, octet), key)| *to = octet ^ key);
                8
            }
            IpAddr::V6(ip) => {
                value[1] = 2;
                value[4..]
                    .iter_mut()
                    .zip(ip.octets())
                    .zip(key)
                    .for_each(|((to, octet), key)| *to = octet ^ key);
                20
            }
        };
        self.attribute(XOR_MAPPED_ADDRESS, &value[..len])
    }

    fn integrity(&mut self, password: &[u8]) -> Result<(), IceError> {
        let mac = integrity_of(password, &self.out[..self.len]).ok_or(IceError::NoRoom)?;
        self.attribute(MESSAGE_INTEGRITY, &mac.finalize().into_bytes())
    }

    /// The last attribute; gives the length of the whole.
    fn fingerprint(&mut self) -> Result<usize, IceError> {
        self.set_length(self.len + 8);
        let crc = crc32(&self.out[..self.len]) ^ FINGERPRINT_XOR;
        self.attribute(FINGERPRINT, &crc.to_be_bytes())?;
        Ok(self.len)
    }
}

/// The CRC of ITU-T V.42, which FINGERPRINT takes. A check a few times a second needs no table.
fn crc32(octets: &[u8]) -> u32 {
    !octets.iter().fold(u32::MAX, |crc, octet| {
        (0..8).fold(crc ^ u32::from(*octet), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests;
