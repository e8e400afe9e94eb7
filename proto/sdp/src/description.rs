//! A session description as types: what offer/answer reads and writes, the rest as plain attributes.

use std::net::IpAddr;

/// A whole description.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionDescription {
    /// `o=`; `None` when it was missing or unreadable, which harms nobody.
    pub origin: Option<Origin>,
    /// `s=`
    pub name: String,
    /// `c=` of the session: for every media without its own.
    pub connection: Option<Connection>,
    /// `a=` of the session.
    pub attributes: Vec<Attribute>,
    /// `m=`, in order: an answer must have as many.
    pub media: Vec<Media>,
}

/// `o=`: who described, and which edition this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// User name, `-` for none.
    pub username: String,
    /// Numeric by the RFC, not always in the wild.
    pub session_id: String,
    /// Rises with each change of the description (RFC 3264 §8).
    pub session_version: String,
    /// The describer's address or name; only for uniqueness.
    pub address: String,
}

/// `c=`: where media is to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Connection {
    /// An IP literal.
    Address(IpAddr),
    /// A host name, or a multicast range: nothing that we send to.
    Other(String),
}

/// `a=name` or `a=name:value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Before the colon.
    pub name: String,
    /// After it.
    pub value: Option<String>,
}

impl Attribute {
    /// `a=name`
    pub fn flag(name: &str) -> Self {
        Attribute { name: name.to_owned(), value: None }
    }

    /// `a=name:value`
    pub fn with_value(name: &str, value: impl Into<String>) -> Self {
        Attribute { name: name.to_owned(), value: Some(value.into()) }
    }
}

/// `m=` and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Media {
    /// `audio`, `video`, `application`, `image`, …
    pub kind: String,
    /// Where RTP is to be sent; 0 refuses the stream.
    pub port: u16,
    /// `RTP/AVP`, `RTP/SAVP`, `UDP/TLS/RTP/SAVPF`, `udptl`, …
    pub protocol: String,
    /// Payload types for RTP, best first.
    pub formats: Vec<String>,
    /// `c=` of this media.
    pub connection: Option<Connection>,
    /// `a=` of this media.
    pub attributes: Vec<Attribute>,
}

/// Who sends, as the describer sees it (RFC 3264 §5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Direction {
    /// Sends and receives.
    #[default]
    SendRecv,
    /// Only sends: holds the other.
    SendOnly,
    /// Only receives.
    RecvOnly,
    /// Neither.
    Inactive,
}

impl Direction {
    /// From its two halves.
    pub const fn from_parts(sends: bool, receives: bool) -> Self {
        match (sends, receives) {
            (true, true) => Direction::SendRecv,
            (true, false) => Direction::SendOnly,
            (false, true) => Direction::RecvOnly,
            (false, false) => Direction::Inactive,
        }
    }

    /// Whether the describer sends.
    pub const fn sends(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::SendOnly)
    }

    /// Whether the describer receives.
    pub const fn receives(self) -> bool {
        matches!(self, Direction::SendRecv | Direction::RecvOnly)
    }

    /// The same, seen from the other side.
    pub const fn reversed(self) -> Self {
        Direction::from_parts(self.receives(), self.sends())
    }

    /// What both allow.
    pub const fn and(self, other: Self) -> Self {
        Direction::from_parts(self.sends() && other.sends(), self.receives() && other.receives())
    }

    /// The attribute's name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Direction::SendRecv => "sendrecv",
            Direction::SendOnly => "sendonly",
            Direction::RecvOnly => "recvonly",
            Direction::Inactive => "inactive",
        }
    }

    /// The direction of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Direction::SendRecv, Direction::SendOnly, Direction::RecvOnly, Direction::Inactive]
            .into_iter()
            .find(|direction| direction.as_str().eq_ignore_ascii_case(name))
    }
}

/// `a=rtpmap:96 L16/16000/1`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RtpMap<'a> {
    /// 0 to 127.
    pub payload_type: u8,
    /// Encoding name; compare without case.
    pub encoding: &'a str,
    /// Ticks a second of the RTP timestamp.
    pub clock_rate_hz: u32,
    /// Channels, 1 when not said.
    pub channels: u32,
}

/// `a=rtcp:53020 IN IP4 126.16.64.4` (RFC 3605)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rtcp {
    /// Where RTCP is to be sent.
    pub port: u16,
    /// At which address, if not that of the media.
    pub address: Option<IpAddr>,
}

impl Media {
    /// Whether this is the stream kind (`audio`, …), without case.
    pub fn is(&self, kind: &str) -> bool {
        self.kind.eq_ignore_ascii_case(kind)
    }

    /// The value of the first attribute of this name that has one.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|a| a.name.eq_ignore_ascii_case(name)).and_then(|a| a.value.as_deref())
    }

    /// Whether `a=name` is there, with a value or without.
    pub fn has_flag(&self, name: &str) -> bool {
        self.attributes.iter().any(|a| a.name.eq_ignore_ascii_case(name))
    }

    /// All readable `a=rtpmap`.
    pub fn rtpmaps(&self) -> impl Iterator<Item = RtpMap<'_>> {
        self.attributes
            .iter()
            .filter(|a| a.name.eq_ignore_ascii_case("rtpmap"))
            .filter_map(|a| parse_rtpmap(a.value.as_deref()?))
    }

    /// The `a=rtpmap` of a payload type.
    pub fn rtpmap(&self, payload_type: u8) -> Option<RtpMap<'_>> {
        self.rtpmaps().find(|map| map.payload_type == payload_type)
    }

    /// The parameters in `a=fmtp` of a payload type.
    pub fn fmtp(&self, payload_type: u8) -> Option<&str> {
        self.attributes
            .iter()
            .filter(|a| a.name.eq_ignore_ascii_case("fmtp"))
            .filter_map(|a| a.value.as_deref()?.trim().split_once(' '))
            .find(|(format, _)| format.parse() == Ok(payload_type))
            .map(|(_, parameters)| parameters.trim())
    }

    /// `a=ptime` in whole milliseconds.
    pub fn ptime_ms(&self) -> Option<u32> {
        milliseconds(self.attribute("ptime")?)
    }

    /// `a=maxptime` in whole milliseconds.
    pub fn maxptime_ms(&self) -> Option<u32> {
        milliseconds(self.attribute("maxptime")?)
    }

    /// The direction this media names itself; the session's applies when it names none.
    pub fn own_direction(&self) -> Option<Direction> {
        direction(&self.attributes)
    }

    /// `a=rtcp`
    pub fn rtcp(&self) -> Option<Rtcp> {
        let mut words = self.attribute("rtcp")?.split_whitespace();
        let port = words.next()?.parse().ok()?;
        Some(Rtcp { port, address: words.nth(2).and_then(|address| address.parse().ok()) })
    }

    /// Payload types in order of preference; what is not a number from 0 to 127 is left out.
    pub fn payload_types(&self) -> impl Iterator<Item = u8> {
        self.formats
            .iter()
            .filter_map(|format| format.parse().ok())
            .filter(|payload_type| *payload_type < 128)
    }
}

impl SessionDescription {
    /// Where this media is to be sent: its own `c=`, or the session's.
    pub fn connection_of<'a>(&'a self, media: &'a Media) -> Option<&'a Connection> {
        media.connection.as_ref().or(self.connection.as_ref())
    }

    /// Who sends, as the describer says: the media's own word, the session's, or both ways. An address of zeros
    /// means that the describer does not want to receive (RFC 3264 §8.4, the old way to hold).
    pub fn direction_of(&self, media: &Media) -> Direction {
        let said = self.said_direction_of(media);
        match self.connection_of(media) {
            Some(Connection::Address(address)) if address.is_unspecified() => said.and(Direction::SendOnly),
            _ => said,
        }
    }

    /// The same without regard to the address.
    pub fn said_direction_of(&self, media: &Media) -> Direction {
        media.own_direction().or_else(|| direction(&self.attributes)).unwrap_or_default()
    }
}

fn direction(attributes: &[Attribute]) -> Option<Direction> {
    attributes.iter().find_map(|a| Direction::from_name(&a.name))
}

fn parse_rtpmap(value: &str) -> Option<RtpMap<'_>> {
    let (payload_type, encoding) = value.trim().split_once(char::is_whitespace)?;
    let mut parts = encoding.trim().split('/');
    Some(RtpMap {
        payload_type: payload_type.parse().ok().filter(|payload_type| *payload_type < 128)?,
        encoding: parts.next()?,
        clock_rate_hz: parts.next()?.trim().parse().ok()?,
        channels: match parts.next() {
            Some(channels) => channels.trim().parse().ok()?,
            None => 1,
        },
    })
}

/// Some phones write `20.0`; nothing below a millisecond matters.
fn milliseconds(text: &str) -> Option<u32> {
    let whole = text.trim().split('.').next()?;
    whole.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn media(lines: &str) -> Media {
        let body = format!("v=0\nm=audio 4000 RTP/AVP 96 300 x 0\n{lines}");
        body.parse::<SessionDescription>().unwrap().media.remove(0)
    }

    #[test]
    fn rtpmap_and_fmtp_are_read_by_payload_type() {
        let media =
            media("a=rtpmap:96 L16/16000\na=rtpmap:97 opus/48000/2\na=rtpmap:nonsense\na=fmtp:96 a=1; b=2\n");
        let map = media.rtpmap(96).unwrap();
        assert_eq!((map.encoding, map.clock_rate_hz, map.channels), ("L16", 16_000, 1));
        assert_eq!(media.rtpmap(97).unwrap().channels, 2);
        assert_eq!(media.fmtp(96), Some("a=1; b=2"));
        assert_eq!(media.fmtp(97), None);
    }

    #[test]
    fn formats_that_are_no_payload_types_are_left_out() {
        assert_eq!(media("").payload_types().collect::<Vec<_>>(), [96, 0]);
    }

    #[test]
    fn rtcp_may_have_an_address_of_its_own() {
        let plain = media("a=rtcp:4007\n").rtcp().unwrap();
        assert_eq!((plain.port, plain.address), (4007, None));
        let other = media("a=rtcp:4007 IN IP4 192.0.2.9\n").rtcp().unwrap();
        assert_eq!(other.address, Some([192, 0, 2, 9].into()));
    }

    #[test]
    fn directions_reverse_and_meet() {
        assert_eq!(Direction::SendOnly.reversed(), Direction::RecvOnly);
        assert_eq!(Direction::SendRecv.and(Direction::RecvOnly), Direction::RecvOnly);
        assert_eq!(Direction::SendOnly.and(Direction::RecvOnly), Direction::Inactive);
    }
}
