//! One inbound RTP stream: which packets belong to it, and how well it arrives (RFC 3550 appendices A.1, A.3, A.8).
//!
//! ```text
//!              ┌ next or ahead by ≤ 3 000 ─▶ Accepted           ┌ alone ──────────▶ Rejected
//!  same SSRC ──┼ behind by ≤ 100: unseen ──▶ Accepted, reordered│
//!              │                  seen ────▶ Duplicate          │
//!              └ elsewhere ─────────────────────────────────────┴ twice in a row ─▶ Accepted, started anew
//!  other SSRC ─── old one silent, or three in a row ───▶ Accepted, started anew; else Rejected
//! ```
//!
//! The first packet is accepted at once: a caller's first word must not wait for probation. Packets come here only from
//! the source that the latch believes, so a change of SSRC is the peer's own (a transfer, a restart behind the same
//! border controller) and needs only to be told from a stray packet.

use std::time::{Duration, Instant};

use tandem_audio::format::ClockRate;

use crate::packet::Header;
use crate::rtcp::{NtpTime, ReportBlock};
use crate::units::{ExtendedSequence, SequenceNumber, Ssrc, Timestamp};

/// A packet so far ahead is loss; further is another numbering (RFC 3550's value: a minute of 20 ms packets).
const MAX_DROPOUT: i16 = 3_000;
/// A packet so far behind is late; further is another numbering (RFC 3550's value).
const MAX_MISORDER: i16 = 100;
/// Packets that are remembered to tell a late one from a duplicate: the width of `seen`, above `MAX_MISORDER`.
const SEEN_BITS: u64 = 128;
/// Packets in a row that a new SSRC needs while the old one was just heard.
const SSRC_CONSECUTIVE: u8 = 3;
/// After so long without the old SSRC a new one is taken at once.
const SSRC_SILENCE: Duration = Duration::from_millis(500);

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It belongs to the stream.
    Accepted {
        /// Its number with the wraps counted.
        sequence: ExtendedSequence,
        /// It is the first of a stream: of the session, of a new SSRC, or after the numbers jumped. Whoever keeps state a
        /// stream (reordering, telephone-events) forgets it now.
        started: bool,
    },
    /// It came before: drop it.
    Duplicate,
    /// It does not belong to the stream: drop it.
    Rejected(Rejection),
}

/// Why a packet does not belong to the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Another SSRC than the one that is followed.
    ForeignSsrc,
    /// The first packet whose number is far from the last one's.
    SequenceJump,
}

/// Counters since the session began, over all SSRCs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReceiverStats {
    /// Packets accepted, each once.
    pub received: u64,
    /// Octets of payload in them.
    pub octets: u64,
    /// Packets that were expected and did not come (yet).
    pub lost: u64,
    /// Packets that came again.
    pub duplicate: u64,
    /// Packets accepted after one with a higher number.
    pub reordered: u64,
    /// Packets of an SSRC that was not followed.
    pub rejected_ssrc: u64,
    /// Packets whose number was far off.
    pub rejected_jump: u64,
    /// How often the stream began anew, the first time not counted.
    pub restarts: u64,
    /// Interarrival jitter now (RFC 3550 §6.4.1).
    pub jitter_ms: f64,
}

/// The receiving side of one RTP leg.
#[derive(Debug, Clone)]
pub struct Receiver {
    clock: ClockRate,
    stream: Option<Stream>,
    candidate: Option<Candidate>,
    /// An SSRC that is followed as soon as it is heard.
    announced: Option<Ssrc>,
    /// Totals; `lost` holds that of streams before this one.
    stats: ReceiverStats,
    report: Option<SenderReportSeen>,
}

#[derive(Debug, Clone)]
struct Stream {
    ssrc: Ssrc,
    first: ExtendedSequence,
    highest: ExtendedSequence,
    /// Bit n: the packet n before the highest was seen.
    seen: u128,
    /// Each packet once.
    unique: u64,
    /// With duplicates, as a report block counts.
    arrived: u64,
    /// After a jump: the number that would confirm it.
    jumped_to: Option<SequenceNumber>,
    last_arrival: Instant,
    jitter: Jitter,
    /// At the last report block: (expected, arrived).
    reported: (u64, u64),
}

#[derive(Debug, Clone, Copy)]
struct Candidate {
    ssrc: Ssrc,
    next: SequenceNumber,
    in_a_row: u8,
}

#[derive(Debug, Clone, Copy)]
struct SenderReportSeen {
    ssrc: Ssrc,
    middle_ntp: u32,
    arrival: Instant,
}

impl Receiver {
    /// A receiver that has heard nothing; `clock` is that of the negotiated codec.
    pub const fn new(clock: ClockRate) -> Self {
        Self {
            clock,
            stream: None,
            candidate: None,
            announced: None,
            stats: ReceiverStats {
                received: 0,
                octets: 0,
                lost: 0,
                duplicate: 0,
                reordered: 0,
                rejected_ssrc: 0,
                rejected_jump: 0,
                restarts: 0,
                jitter_ms: 0.0,
            },
            report: None,
        }
    }

    /// The SSRC that is followed.
    pub fn ssrc(&self) -> Option<Ssrc> {
        self.stream.as_ref().map(|stream| stream.ssrc)
    }

    /// When the last packet of the stream arrived.
    pub fn last_arrival(&self) -> Option<Instant> {
        self.stream.as_ref().map(|stream| stream.last_arrival)
    }

    /// The counters now.
    pub fn stats(&self) -> ReceiverStats {
        let mut stats = self.stats;
        if let Some(stream) = &self.stream {
            stats.lost += stream.lost();
            stats.jitter_ms = stream.jitter.ticks() * 1_000.0 / f64::from(self.clock.hz());
        }
        stats
    }

    /// Judges a packet from the source that the latch believes.
    pub fn handle_packet(&mut self, header: &Header, payload_octets: usize, now: Instant) -> Verdict {
        let verdict = self.judge(header, now);
        match verdict {
            Verdict::Accepted { .. } => {
                self.stats.received += 1;
                self.stats.octets += payload_octets as u64;
            }
            Verdict::Duplicate => self.stats.duplicate += 1,
            Verdict::Rejected(Rejection::ForeignSsrc) => self.stats.rejected_ssrc += 1,
            Verdict::Rejected(Rejection::SequenceJump) => self.stats.rejected_jump += 1,
        }
        verdict
    }

    /// A re-INVITE changed the remote side: the next SSRC is taken at once. The clock may be another, too.
    pub fn rearm(&mut self, clock: ClockRate) {
        self.end_stream();
        self.clock = clock;
    }

    /// This SSRC is the peer's next one: it is followed as soon as it is heard.
    pub const fn announce(&mut self, ssrc: Ssrc) {
        self.announced = Some(ssrc);
    }

    /// Remembers a sender report, so that our report blocks let the peer compute the round trip.
    pub fn handle_sender_report(&mut self, ssrc: Ssrc, ntp: NtpTime, now: Instant) {
        self.report = Some(SenderReportSeen { ssrc, middle_ntp: ntp.middle(), arrival: now });
    }

    /// What we tell the peer about its stream (RFC 3550 §6.4.1). The lost fraction is that since the last call.
    pub fn report_block(&mut self, now: Instant) -> Option<ReportBlock> {
        let stream = self.stream.as_mut()?;
        let expected = stream.expected();
        let (expected_before, arrived_before) = stream.reported;
        let expected_now = expected.saturating_sub(expected_before);
        let lost_now = expected_now.saturating_sub(stream.arrived - arrived_before);
        let fraction_lost = (256 * lost_now).checked_div(expected_now).unwrap_or(0).min(255) as u8;
        stream.reported = (expected, stream.arrived);
        let seen = self.report.filter(|report| report.ssrc == stream.ssrc);
        Some(ReportBlock {
            ssrc: stream.ssrc,
            fraction_lost,
            cumulative_lost: (expected as i64 - stream.arrived as i64).clamp(-0x80_0000, 0x7F_FFFF) as i32,
            highest_sequence: stream.highest.to_report(),
            jitter: stream.jitter.ticks() as u32,
            last_sender_report: seen.map_or(0, |report| report.middle_ntp),
            delay_since_sender_report: seen.map_or(0, |report| {
                (now.saturating_duration_since(report.arrival).as_secs_f64() * 65_536.0) as u32
            }),
        })
    }

    fn judge(&mut self, header: &Header, now: Instant) -> Verdict {
        let clock = self.clock;
        let Some(stream) = &mut self.stream else {
            return self.start(header, now);
        };
        if stream.ssrc != header.ssrc {
            if self.announced.take_if(|announced| *announced == header.ssrc).is_some()
                || now.saturating_duration_since(stream.last_arrival) >= SSRC_SILENCE
                || Candidate::handle(&mut self.candidate, header) >= SSRC_CONSECUTIVE
            {
                return self.start(header, now);
            }
            return Verdict::Rejected(Rejection::ForeignSsrc);
        }
        self.candidate = None;

        let distance = header.sequence.distance_from(stream.highest.sequence());
        let sequence = stream.highest.nearest(header.sequence);
        if (1..=MAX_DROPOUT).contains(&distance) {
            stream.seen = stream.seen.checked_shl(distance as u32).unwrap_or(0) | 1;
            stream.highest = sequence;
            stream.jitter.handle_packet(header.timestamp, now, clock);
        } else if (-MAX_MISORDER..=0).contains(&distance) {
            let bit = 1_u128 << distance.unsigned_abs();
            if stream.seen & bit != 0 {
                stream.arrived += 1;
                stream.last_arrival = now;
                return Verdict::Duplicate;
            }
            stream.seen |= bit;
            stream.first = stream.first.min(sequence);
            self.stats.reordered += 1;
        } else if stream.jumped_to == Some(header.sequence) {
            return self.start(header, now);
        } else {
            stream.jumped_to = Some(header.sequence.next());
            return Verdict::Rejected(Rejection::SequenceJump);
        }
        stream.jumped_to = None;
        stream.last_arrival = now;
        stream.unique += 1;
        stream.arrived += 1;
        Verdict::Accepted { sequence, started: false }
    }

    fn start(&mut self, header: &Header, now: Instant) -> Verdict {
        if self.stream.is_some() {
            self.end_stream();
        }
        if self.stats.received > 0 {
            self.stats.restarts += 1;
        }
        let sequence = ExtendedSequence::start(header.sequence);
        self.stream = Some(Stream {
            ssrc: header.ssrc,
            first: sequence,
            highest: sequence,
            seen: 1,
            unique: 1,
            arrived: 1,
            jumped_to: None,
            last_arrival: now,
            jitter: Jitter::new(header.timestamp, now),
            reported: (0, 0),
        });
        Verdict::Accepted { sequence, started: true }
    }

    fn end_stream(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.stats.lost += stream.lost();
        }
        self.candidate = None;
    }
}

impl Stream {
    fn expected(&self) -> u64 {
        self.highest.since(self.first) + 1
    }

    fn lost(&self) -> u64 {
        self.expected().saturating_sub(self.unique)
    }
}

impl Candidate {
    /// Counts a packet of an SSRC that is not followed (yet) and returns how many came in a row.
    fn handle(slot: &mut Option<Self>, header: &Header) -> u8 {
        let in_a_row = match slot {
            Some(known) if known.ssrc == header.ssrc && known.next == header.sequence => known.in_a_row + 1,
            _ => 1,
        };
        *slot = Some(Self { ssrc: header.ssrc, next: header.sequence.next(), in_a_row });
        in_a_row
    }
}

/// Interarrival jitter (RFC 3550 §A.8), in sixteenths of a tick.
#[derive(Debug, Clone)]
struct Jitter {
    last_timestamp: Timestamp,
    last_arrival: Instant,
    sixteenths: u64,
}

impl Jitter {
    fn new(timestamp: Timestamp, arrival: Instant) -> Self {
        Self { last_timestamp: timestamp, last_arrival: arrival, sixteenths: 0 }
    }

    fn handle_packet(&mut self, timestamp: Timestamp, arrival: Instant, clock: ClockRate) {
        let media_ticks = i64::from(timestamp.distance_from(self.last_timestamp));
        if media_ticks == 0 {
            return; // telephone-event packets repeat the event's begin; they say nothing of the network
        }
        let elapsed = arrival.saturating_duration_since(self.last_arrival);
        // Whole microseconds do: a tick is twenty of them at least, and 128 bits cost more than all the rest.
        let arrival_ticks =
            ((elapsed.as_micros() as u64).saturating_mul(u64::from(clock.hz())) / 1_000_000) as i64;
        (self.last_timestamp, self.last_arrival) = (timestamp, arrival);
        let difference = (arrival_ticks - media_ticks).unsigned_abs();
        // A second off is a sender that set its clock anew, not a network.
        if difference < u64::from(clock.hz()) {
            self.sixteenths = self.sixteenths + difference - ((self.sixteenths + 8) >> 4);
        }
    }

    fn ticks(&self) -> f64 {
        self.sixteenths as f64 / 16.0
    }
}

const _: () = assert!(SEEN_BITS > MAX_MISORDER as u64 && SEEN_BITS == u128::BITS as u64);

#[cfg(test)]
mod tests;
