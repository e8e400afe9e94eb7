//! RTCP (RFC 3550 §6): compound packets written into a buffer, and a parser that believes nothing.
//!
//! Sender and receiver reports, SDES CNAME, BYE, and the VoIP metrics of extended reports ([`xr`]). Everything else (APP,
//! feedback) is skipped by its length. [`interval`] says when to send, [`crate::report`] what.

pub mod interval;
pub mod xr;

use crate::packet::NoRoom;
use crate::units::{Ssrc, Timestamp};

const TYPE_SENDER_REPORT: u8 = 200;
const TYPE_RECEIVER_REPORT: u8 = 201;
const TYPE_SOURCE_DESCRIPTION: u8 = 202;
const TYPE_BYE: u8 = 203;
const TYPE_EXTENDED_REPORT: u8 = 207;
const SDES_CNAME: u8 = 1;
const REPORT_BLOCK_LEN: usize = 24;
/// Five bits count the report blocks of one packet.
const MAX_REPORT_BLOCKS: usize = 31;
/// One octet counts the text of an SDES item or a BYE reason.
const MAX_TEXT: usize = 255;

/// Wall-clock time as NTP has it: seconds since 1900 in the upper, their fraction in the lower 32 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NtpTime(pub u64);

impl NtpTime {
    /// Seconds from 1900 to 1970.
    const UNIX_EPOCH: u64 = 2_208_988_800;

    /// From the time since 1970.
    pub fn from_unix(since_epoch: std::time::Duration) -> Self {
        let fraction = (u64::from(since_epoch.subsec_nanos()) << 32) / 1_000_000_000;
        Self((since_epoch.as_secs().wrapping_add(Self::UNIX_EPOCH)) << 32 | fraction)
    }

    /// The middle 32 bits, which report blocks carry.
    pub const fn middle(self) -> u32 {
        (self.0 >> 16) as u32
    }
}

/// What a sender tells of itself (RFC 3550 §6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderInfo {
    /// Wall-clock time of the report.
    pub ntp: NtpTime,
    /// The same instant in media time.
    pub timestamp: Timestamp,
    /// Packets sent, modulo 2^32.
    pub packets: u32,
    /// Octets of payload sent, modulo 2^32.
    pub octets: u32,
}

/// What a receiver tells of one sender (RFC 3550 §6.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportBlock {
    /// The sender that is reported on.
    pub ssrc: Ssrc,
    /// Share of packets lost since the last report, in 256ths.
    pub fraction_lost: u8,
    /// Packets lost since the beginning, 24 bits with sign: negative when duplicates came.
    pub cumulative_lost: i32,
    /// Highest sequence number, with its cycles in the upper half.
    pub highest_sequence: u32,
    /// Interarrival jitter in ticks.
    pub jitter: u32,
    /// Middle of the NTP time of the last sender report, or 0.
    pub last_sender_report: u32,
    /// Time since that report arrived, in 65 536ths of a second.
    pub delay_since_sender_report: u32,
}

/// Peers count the delay since our report by a clock of milliseconds or by their timer's tick, and round up: 20 ms, in
/// 65 536ths of a second.
const ROUNDED_UP: i32 = -(20 * 65_536 / 1_000);

impl ReportBlock {
    /// Round-trip time by RFC 3550 §6.4.1 when this block about us arrives at `now`; `None` when we sent no report yet
    /// or the numbers make no sense.
    pub fn round_trip(&self, now: NtpTime) -> Option<std::time::Duration> {
        if self.last_sender_report == 0 {
            return None;
        }
        let units =
            now.middle().wrapping_sub(self.last_sender_report).wrapping_sub(self.delay_since_sender_report);
        match units.cast_signed() {
            // On a short path the peer's rounding is longer than the way there and back.
            ROUNDED_UP..0 => Some(std::time::Duration::ZERO),
            // More below zero is a peer that counts wrong.
            i32::MIN..ROUNDED_UP => None,
            0.. => Some(std::time::Duration::from_nanos(u64::from(units) * 1_000_000_000 / 65_536)),
        }
    }

    fn parse(octets: &[u8; REPORT_BLOCK_LEN]) -> Self {
        let word = |n: usize| be_u32(octets, 4 * n).unwrap_or(0);
        Self {
            ssrc: Ssrc(word(0)),
            fraction_lost: octets[4],
            // Sign extension of 24 bits.
            cumulative_lost: (word(1) << 8) as i32 >> 8,
            highest_sequence: word(2),
            jitter: word(3),
            last_sender_report: word(4),
            delay_since_sender_report: word(5),
        }
    }

    fn to_octets(self) -> [u8; REPORT_BLOCK_LEN] {
        let lost = self.cumulative_lost.clamp(-0x80_0000, 0x7F_FFFF) as u32 & 0xFF_FFFF;
        let words = [
            self.ssrc.0,
            u32::from(self.fraction_lost) << 24 | lost,
            self.highest_sequence,
            self.jitter,
            self.last_sender_report,
            self.delay_since_sender_report,
        ];
        let mut octets = [0; REPORT_BLOCK_LEN];
        for (slot, word) in octets.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *slot = word.to_be_bytes();
        }
        octets
    }
}

/// Why a compound packet cannot be read further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RtcpError {
    /// A packet is longer than what is left of the datagram.
    #[error("RTCP packet needs {need} octets, {len} are left")]
    Short {
        /// Octets left.
        len: usize,
        /// Octets that the packet takes.
        need: usize,
    },
    /// Not version 2.
    #[error("RTCP version {0} is not supported")]
    Version(u8),
    /// The padding count is zero, odd or larger than the packet.
    #[error("padding of {0} octets in an RTCP packet")]
    Padding(u8),
}

/// One packet of a compound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RtcpPacket<'a> {
    /// From somebody who sends media.
    SenderReport {
        /// Who reports.
        ssrc: Ssrc,
        /// Of its own stream.
        info: SenderInfo,
        /// Of the streams that it hears.
        reports: ReportBlocks<'a>,
    },
    /// From somebody who only listens.
    ReceiverReport {
        /// Who reports.
        ssrc: Ssrc,
        /// Of the streams that it hears.
        reports: ReportBlocks<'a>,
    },
    /// Who somebody is; only the first chunk's canonical name is read.
    SourceDescription {
        /// Who.
        ssrc: Ssrc,
        /// Its canonical name, when there is one.
        cname: Option<&'a [u8]>,
    },
    /// Somebody leaves.
    Bye {
        /// The first that leaves, when one is named.
        ssrc: Option<Ssrc>,
        /// Why, when it says so.
        reason: Option<&'a [u8]>,
    },
    /// More than report blocks can say (RFC 3611).
    ExtendedReport {
        /// Who reports.
        ssrc: Ssrc,
        /// Its first block of VoIP metrics, when there is one.
        metrics: Option<xr::VoipMetrics>,
    },
    /// Something else, skipped.
    Other {
        /// Its packet type.
        packet_type: u8,
    },
}

/// The report blocks of one packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReportBlocks<'a>(&'a [[u8; REPORT_BLOCK_LEN]]);

impl<'a> ReportBlocks<'a> {
    /// One after the other.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = ReportBlock> + 'a {
        self.0.iter().map(ReportBlock::parse)
    }
}

/// True when a datagram is a whole compound: a report first, without padding, and packets of version 2 that fill it to
/// its last octet (RFC 3550 appendix A.2). Chance does not make one.
pub fn is_compound(datagram: &[u8]) -> bool {
    let [first, TYPE_SENDER_REPORT | TYPE_RECEIVER_REPORT, ..] = datagram else { return false };
    let mut rest = datagram;
    while let Some(&[version, _, l0, l1]) = rest.first_chunk::<4>() {
        let len = 4 + 4 * usize::from(u16::from_be_bytes([l0, l1]));
        match rest.get(len..) {
            Some(after) if version >> 6 == 2 => rest = after,
            _ => return false,
        }
    }
    first & 0x20 == 0 && rest.is_empty()
}

/// Reads the packets of a datagram one after the other; after an error it ends.
pub fn parse(datagram: &[u8]) -> Packets<'_> {
    Packets { rest: datagram }
}

/// The packets of one datagram.
#[derive(Debug, Clone)]
pub struct Packets<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Packets<'a> {
    type Item = Result<RtcpPacket<'a>, RtcpError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let result = self.read();
        if result.is_err() {
            self.rest = &[];
        }
        Some(result)
    }
}

impl<'a> Packets<'a> {
    fn read(&mut self) -> Result<RtcpPacket<'a>, RtcpError> {
        let len = self.rest.len();
        let Some(&[first, packet_type, l0, l1]) = self.rest.first_chunk::<4>() else {
            return Err(RtcpError::Short { len, need: 4 });
        };
        if first >> 6 != 2 {
            return Err(RtcpError::Version(first >> 6));
        }
        let need = 4 + 4 * usize::from(u16::from_be_bytes([l0, l1]));
        let (packet, rest) = self.rest.split_at_checked(need).ok_or(RtcpError::Short { len, need })?;
        self.rest = rest;
        let mut body = &packet[4..];
        if first & 0x20 != 0 {
            let padding = body.last().copied().unwrap_or(0);
            let without =
                body.len().checked_sub(usize::from(padding)).filter(|_| padding != 0 && padding % 4 == 0);
            body = &body[..without.ok_or(RtcpError::Padding(padding))?];
        }
        let count = usize::from(first & 0x1F);
        let short = RtcpError::Short { len: body.len(), need: 4 * (1 + count) };
        match packet_type {
            TYPE_SENDER_REPORT => {
                let (Some(ssrc), Some(n0), Some(n1), Some(timestamp), Some(packets), Some(octets)) = (
                    be_u32(body, 0),
                    be_u32(body, 4),
                    be_u32(body, 8),
                    be_u32(body, 12),
                    be_u32(body, 16),
                    be_u32(body, 20),
                ) else {
                    return Err(RtcpError::Short { len: body.len(), need: 24 });
                };
                let ntp = NtpTime(u64::from(n0) << 32 | u64::from(n1));
                let info = SenderInfo { ntp, timestamp: Timestamp(timestamp), packets, octets };
                Ok(RtcpPacket::SenderReport { ssrc: Ssrc(ssrc), info, reports: blocks(&body[24..], count)? })
            }
            TYPE_RECEIVER_REPORT => {
                let ssrc = be_u32(body, 0).ok_or(short)?;
                Ok(RtcpPacket::ReceiverReport { ssrc: Ssrc(ssrc), reports: blocks(&body[4..], count)? })
            }
            TYPE_SOURCE_DESCRIPTION if count > 0 => {
                let ssrc = be_u32(body, 0).ok_or(short)?;
                Ok(RtcpPacket::SourceDescription { ssrc: Ssrc(ssrc), cname: cname(&body[4..]) })
            }
            TYPE_BYE => {
                let names = body.get(..4 * count).ok_or(short)?;
                let reason =
                    body[names.len()..].split_first().and_then(|(&len, text)| text.get(..usize::from(len)));
                Ok(RtcpPacket::Bye { ssrc: be_u32(names, 0).map(Ssrc), reason })
            }
            TYPE_EXTENDED_REPORT => {
                let ssrc = be_u32(body, 0).ok_or(short)?;
                Ok(RtcpPacket::ExtendedReport {
                    ssrc: Ssrc(ssrc),
                    metrics: xr::VoipMetrics::find(&body[4..]),
                })
            }
            packet_type => Ok(RtcpPacket::Other { packet_type }),
        }
    }
}

/// `count` report blocks; a profile may append its own words, which are left alone.
fn blocks(octets: &[u8], count: usize) -> Result<ReportBlocks<'_>, RtcpError> {
    let blocks = octets.as_chunks::<REPORT_BLOCK_LEN>().0;
    let short = RtcpError::Short { len: octets.len(), need: count * REPORT_BLOCK_LEN };
    blocks.get(..count).map(ReportBlocks).ok_or(short)
}

/// The canonical name among the items of a chunk.
fn cname(mut items: &[u8]) -> Option<&[u8]> {
    while let [item, len, rest @ ..] = items {
        if *item == 0 {
            return None;
        }
        let text = rest.get(..usize::from(*len))?;
        if *item == SDES_CNAME {
            return Some(text);
        }
        items = &rest[text.len()..];
    }
    None
}

fn be_u32(octets: &[u8], at: usize) -> Option<u32> {
    octets.get(at..)?.first_chunk::<4>().map(|&word| u32::from_be_bytes(word))
}

/// Writes a compound packet. RFC 3550 §6.1 wants a report first and a CNAME after it.
#[derive(Debug)]
pub struct Compound<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Compound<'a> {
    /// An empty compound at the start of a buffer.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// Octets written so far.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True before anything was written.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends a sender report; report blocks past the 31st are left out.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is too short; the compound is as before then.
    pub fn sender_report(
        &mut self,
        ssrc: Ssrc,
        info: &SenderInfo,
        reports: &[ReportBlock],
    ) -> Result<(), NoRoom> {
        let reports = &reports[..reports.len().min(MAX_REPORT_BLOCKS)];
        self.packet(TYPE_SENDER_REPORT, reports.len(), 24 + REPORT_BLOCK_LEN * reports.len(), |body| {
            let (head, tail) = body.split_at_mut(24);
            let words = [
                ssrc.0,
                (info.ntp.0 >> 32) as u32,
                info.ntp.0 as u32,
                info.timestamp.0,
                info.packets,
                info.octets,
            ];
            for (slot, word) in head.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *slot = word.to_be_bytes();
            }
            write_blocks(tail, reports);
        })
    }

    /// Appends a receiver report; report blocks past the 31st are left out.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is too short; the compound is as before then.
    pub fn receiver_report(&mut self, ssrc: Ssrc, reports: &[ReportBlock]) -> Result<(), NoRoom> {
        let reports = &reports[..reports.len().min(MAX_REPORT_BLOCKS)];
        self.packet(TYPE_RECEIVER_REPORT, reports.len(), 4 + REPORT_BLOCK_LEN * reports.len(), |body| {
            let (head, tail) = body.split_at_mut(4);
            head.copy_from_slice(&ssrc.0.to_be_bytes());
            write_blocks(tail, reports);
        })
    }

    /// Appends a source description with a canonical name, of which 255 octets are kept.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is too short; the compound is as before then.
    pub fn cname(&mut self, ssrc: Ssrc, cname: &str) -> Result<(), NoRoom> {
        let text = &cname.as_bytes()[..cname.len().min(MAX_TEXT)];
        // Item type and length, the text, and at least one zero octet to end the chunk on a word.
        let len = 4 + (2 + text.len() + 1).next_multiple_of(4);
        self.packet(TYPE_SOURCE_DESCRIPTION, 1, len, |body| {
            body[..4].copy_from_slice(&ssrc.0.to_be_bytes());
            body[4] = SDES_CNAME;
            body[5] = text.len() as u8;
            body[6..6 + text.len()].copy_from_slice(text);
        })
    }

    /// Appends an extended report with VoIP metrics.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is too short; the compound is as before then.
    pub fn voip_metrics(&mut self, ssrc: Ssrc, metrics: &xr::VoipMetrics) -> Result<(), NoRoom> {
        self.packet(TYPE_EXTENDED_REPORT, 0, 4 + xr::VOIP_METRICS_LEN, |body| {
            let (head, tail) = body.split_at_mut(4);
            head.copy_from_slice(&ssrc.0.to_be_bytes());
            tail.copy_from_slice(&metrics.to_octets());
        })
    }

    /// Appends a BYE without a reason.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is too short; the compound is as before then.
    pub fn bye(&mut self, ssrc: Ssrc) -> Result<(), NoRoom> {
        self.packet(TYPE_BYE, 1, 4, |body| body.copy_from_slice(&ssrc.0.to_be_bytes()))
    }

    /// One packet: its header, then a body of zeros that `write` fills.
    fn packet(
        &mut self,
        packet_type: u8,
        count: usize,
        body_len: usize,
        write: impl FnOnce(&mut [u8]),
    ) -> Result<(), NoRoom> {
        let need = self.len + 4 + body_len;
        let room = NoRoom { len: self.buffer.len(), need };
        let slot = self.buffer.get_mut(self.len..need).ok_or(room)?;
        let (head, body) = slot.split_at_mut(4);
        let [l0, l1] = ((body_len / 4) as u16).to_be_bytes();
        head.copy_from_slice(&[0x80 | count as u8, packet_type, l0, l1]);
        body.fill(0);
        write(body);
        self.len = need;
        Ok(())
    }
}

fn write_blocks(octets: &mut [u8], reports: &[ReportBlock]) {
    for (slot, report) in octets.as_chunks_mut::<REPORT_BLOCK_LEN>().0.iter_mut().zip(reports) {
        *slot = report.to_octets();
    }
}

#[cfg(test)]
mod tests;
