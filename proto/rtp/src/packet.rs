//! One RTP packet (RFC 3550 §5.1): parsed to a view on the datagram, written in place.
//!
//! ```text
//!   0                   1                   2                   3
//!  |V=2|P|X|  CC   |M|     PT      |       sequence number         |
//!  |                           timestamp                           |
//!  |                             SSRC                              |
//!  |                     CSRC × CC (32 bits each)                  |
//!  |  profile of the extension     |     length in 32-bit words    |   if X
//!  |                             payload                    …  pad |   the last octet counts the padding, if P
//! ```
//!
//! Every length is checked against the datagram before it is believed. Nothing is copied.

use crate::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};

/// Octets of a header without CSRC and extension, which is all that we ever write.
pub const HEADER_LEN: usize = 12;

/// Why a datagram is no RTP packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// Fewer octets than the header says that it has.
    #[error("RTP packet of {len} octets is shorter than its {need}-octet header")]
    Short {
        /// Octets of the datagram.
        len: usize,
        /// Octets that the header takes.
        need: usize,
    },
    /// Not version 2.
    #[error("RTP version {0} is not supported")]
    Version(u8),
    /// The padding count is zero or larger than the payload.
    #[error("padding of {padding} octets in {len} octets of payload")]
    Padding {
        /// What the last octet says.
        padding: u8,
        /// Octets after the header.
        len: usize,
    },
    /// The second octet is an RTCP packet type (RFC 5761 §4).
    #[error("packet type {0} is RTCP")]
    Rtcp(u8),
}

/// The buffer has no room for what was to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{need} octets do not fit a buffer of {len}")]
pub struct NoRoom {
    /// Octets of the buffer.
    pub len: usize,
    /// Octets to be written.
    pub need: usize,
}

/// True when a datagram on a shared port is RTCP rather than RTP (RFC 5761 §4): packet types 192 to 223.
pub fn is_rtcp(datagram: &[u8]) -> bool {
    matches!(datagram, [first, 192..=223, ..] if first >> 6 == 2)
}

/// The fixed part of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Begin of a talkspurt, or of a telephone-event.
    pub marker: bool,
    /// What the payload is.
    pub payload_type: PayloadType,
    /// Number of the packet.
    pub sequence: SequenceNumber,
    /// Media time of the first sample.
    pub timestamp: Timestamp,
    /// Who speaks.
    pub ssrc: Ssrc,
}

impl Header {
    /// The header as it goes on the wire, without CSRC, extension and padding.
    pub const fn to_octets(&self) -> [u8; HEADER_LEN] {
        let [s0, s1] = self.sequence.0.to_be_bytes();
        let [t0, t1, t2, t3] = self.timestamp.0.to_be_bytes();
        let [c0, c1, c2, c3] = self.ssrc.0.to_be_bytes();
        let marker = if self.marker { 0x80 } else { 0 };
        [0x80, marker | self.payload_type.get(), s0, s1, t0, t1, t2, t3, c0, c1, c2, c3]
    }

    /// Writes the header to the start of a buffer; the payload's place follows at [`HEADER_LEN`].
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is shorter than [`HEADER_LEN`]; nothing is written then.
    pub fn write(&self, buffer: &mut [u8]) -> Result<(), NoRoom> {
        let len = buffer.len();
        let slot = buffer.first_chunk_mut::<HEADER_LEN>().ok_or(NoRoom { len, need: HEADER_LEN })?;
        *slot = self.to_octets();
        Ok(())
    }
}

/// A header extension (RFC 3550 §5.3.1); its elements (RFC 8285) are not looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extension<'a> {
    /// Which profile defines it; 0xBEDE is RFC 8285's one-octet form.
    pub profile: u16,
    /// Whole 32-bit words.
    pub data: &'a [u8],
}

/// A packet as a view on its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The fixed part.
    pub header: Header,
    /// Contributing sources, four octets each.
    csrc: &'a [u8],
    /// The extension, if there is one.
    pub extension: Option<Extension<'a>>,
    /// What is carried, without padding.
    pub payload: &'a [u8],
    /// Octets of padding after the payload.
    pub padding: u8,
}

impl<'a> Packet<'a> {
    /// Reads a datagram.
    ///
    /// # Errors
    /// [`PacketError`] when it is not a whole RTP packet of version 2.
    pub fn parse(datagram: &'a [u8]) -> Result<Self, PacketError> {
        let len = datagram.len();
        let Some((&[first, second, s0, s1, t0, t1, t2, t3, c0, c1, c2, c3], rest)) =
            datagram.split_first_chunk::<HEADER_LEN>()
        else {
            return Err(PacketError::Short { len, need: HEADER_LEN });
        };
        if first >> 6 != 2 {
            return Err(PacketError::Version(first >> 6));
        }
        if matches!(second, 192..=223) {
            return Err(PacketError::Rtcp(second));
        }
        let csrc_len = 4 * usize::from(first & 0x0F);
        let short = |need| PacketError::Short { len, need };
        let (csrc, rest) = rest.split_at_checked(csrc_len).ok_or(short(HEADER_LEN + csrc_len))?;
        let (extension, rest) = if first & 0x10 == 0 {
            (None, rest)
        } else {
            let base = HEADER_LEN + csrc_len + 4;
            let (&[p0, p1, w0, w1], rest) = rest.split_first_chunk::<4>().ok_or(short(base))?;
            let data_len = 4 * usize::from(u16::from_be_bytes([w0, w1]));
            let (data, rest) = rest.split_at_checked(data_len).ok_or(short(base + data_len))?;
            (Some(Extension { profile: u16::from_be_bytes([p0, p1]), data }), rest)
        };
        let (payload, padding) = if first & 0x20 == 0 {
            (rest, 0)
        } else {
            let padding = rest.last().copied().unwrap_or(0);
            let bad = PacketError::Padding { padding, len: rest.len() };
            if padding == 0 {
                return Err(bad);
            }
            let payload_len = rest.len().checked_sub(usize::from(padding)).ok_or(bad)?;
            (&rest[..payload_len], padding)
        };
        Ok(Self {
            header: Header {
                marker: second & 0x80 != 0,
                payload_type: PayloadType::from_bits(second),
                sequence: SequenceNumber(u16::from_be_bytes([s0, s1])),
                timestamp: Timestamp(u32::from_be_bytes([t0, t1, t2, t3])),
                ssrc: Ssrc(u32::from_be_bytes([c0, c1, c2, c3])),
            },
            csrc,
            extension,
            payload,
            padding,
        })
    }

    /// Contributing sources that a mixer named.
    pub fn csrc(&self) -> impl ExactSizeIterator<Item = Ssrc> + 'a {
        self.csrc.as_chunks::<4>().0.iter().map(|&octets| Ssrc(u32::from_be_bytes(octets)))
    }
}

#[cfg(test)]
mod tests;
