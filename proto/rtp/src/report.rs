//! The reports of one RTP session: what we tell the peer about its stream, and what it tells us about ours (RFC 3550 §6).
//!
//! ```text
//!  compound from the peer ──handle_datagram──▶ its view of our stream: loss, jitter, round trip
//!                                          └─▶ the receiver: when its last sender report came
//!  interval::ReportTimer ──due──▶ write_report ─▶ SR or RR, SDES CNAME, XR VoIP metrics
//!  the call ends         ───────▶ write_bye ────▶ RR, SDES, BYE, at once: we are two, not fifty (§6.3.7)
//! ```
//!
//! A sender report leaves when something was sent since the last report, else a receiver report. The canonical name is
//! random and of this session only (RFC 7022 §4.2), since a name that stayed would tell a peer which calls are one person's.
//!
//! Whose datagrams are believed is the caller's matter, as is where ours go. What a peer reports changes figures only: no
//! BYE of a stranger's can end a call.

use std::time::{Duration, Instant};

use tandem_audio::format::{ClockRate, Ptime};

use crate::jitter::{MAX_WAIT, ReorderBuffer};
use crate::packet::NoRoom;
use crate::quality::{BurstMeter, Impairment, Score, score};
use crate::receiver::Receiver;
use crate::rtcp::interval::{ReportTimer, splitmix};
use crate::rtcp::xr::VoipMetrics;
use crate::rtcp::{self, Compound, NtpTime, ReportBlock, RtcpPacket};
use crate::sender::Sender;
use crate::units::{Ssrc, Timestamp};

/// Octets of the longest compound that is written here.
pub const REPORT_LEN_MAX: usize = 28 + 24 + 28 + 44 + 8;
/// Packets of one datagram that are read. Nobody sends more to one peer; the rest is left alone.
const PACKETS_MAX: usize = 16;
const CNAME_LEN: usize = 16;

/// Ties the clock that deadlines are told in to the wall clock that reports carry.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    at: Instant,
    since_epoch: Duration,
}

impl WallClock {
    /// At `at` the time since 1970 was `since_epoch`.
    pub const fn new(at: Instant, since_epoch: Duration) -> Self {
        Self { at, since_epoch }
    }

    /// The wall-clock time of a later instant.
    pub fn ntp(&self, now: Instant) -> NtpTime {
        NtpTime::from_unix(self.since_epoch + now.saturating_duration_since(self.at))
    }
}

/// What the peer says of our stream.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PeerView {
    /// Share of our packets that it lost between its last two reports, 0 to 1.
    pub fraction_lost: f64,
    /// Packets of ours that it lost since the beginning.
    pub lost: u64,
    /// Interarrival jitter there.
    pub jitter_ms: f64,
    /// From here to there and back; `None` until one of our sender reports was answered.
    pub round_trip: Option<Duration>,
    /// Conversational quality there, by its own extended report.
    pub mos_cq: Option<f64>,
}

/// Counters since the session began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReportStats {
    /// Compounds sent.
    pub sent: u64,
    /// Compounds received and read to their end.
    pub received: u64,
    /// Datagrams that are no compound of RTCP.
    pub malformed: u64,
}

/// The stream that is reported on.
#[derive(Debug, Clone, Copy)]
pub struct Media {
    /// Ticks a second of its timestamps.
    pub clock: ClockRate,
    /// The length of a packet.
    pub ptime: Ptime,
    /// What its codec does to speech.
    pub impairment: Impairment,
    /// Octets a second with all headers, both ways.
    pub octets_a_second: u32,
}

/// See the module. What each packet needs is here; the rest is elsewhere, so that it does not come into the cache with it.
#[derive(Debug, Clone)]
pub struct Reports {
    timer: ReportTimer,
    /// Packets in order that `bursts` was not told of yet.
    in_order: u64,
    rest: Box<Rest>,
}

#[derive(Debug, Clone)]
struct Rest {
    wall: WallClock,
    cname: [u8; CNAME_LEN],
    peer: PeerView,
    peer_left: bool,
    bursts: BurstMeter,
    stats: ReportStats,
    /// Packets of ours that had left at the last report.
    packets_reported: u64,
    /// An SSRC that we gave up and must take leave of.
    given_up: Option<Ssrc>,
}

impl Reports {
    /// Reports of a session that has not begun. `seed` gives the canonical name and the times of the reports.
    pub fn new(wall: WallClock, seed: u64) -> Self {
        let mut random = seed ^ 0x5_2545_0C11;
        let mut cname = [0; CNAME_LEN];
        for octet in &mut cname {
            *octet = b"0123456789abcdef"[(splitmix(&mut random) >> 60) as usize];
        }
        let rest = Rest {
            wall,
            cname,
            peer: PeerView::default(),
            peer_left: false,
            bursts: BurstMeter::default(),
            stats: ReportStats::default(),
            packets_reported: 0,
            given_up: None,
        };
        Self { timer: ReportTimer::new(random), in_order: 0, rest: Box::new(rest) }
    }

    /// What the peer says of our stream.
    pub const fn peer(&self) -> &PeerView {
        &self.rest.peer
    }

    /// The peer said BYE and nothing since.
    pub const fn has_peer_left(&self) -> bool {
        self.rest.peer_left
    }

    /// The counters.
    pub const fn stats(&self) -> ReportStats {
        self.rest.stats
    }

    /// How the peer's stream sounds here: its loss, what came too late among it, and the delay as far as it is known.
    pub fn score(&self, media: &Media) -> Score {
        let bursts = self.bursts().summary(media.ptime.as_duration());
        score(media.impairment, bursts.loss, bursts.burst_ratio, self.one_way(media))
    }

    fn bursts(&self) -> BurstMeter {
        let mut bursts = self.rest.bursts.clone();
        bursts.handle_received(self.in_order);
        bursts
    }

    /// Half the round trip, one packet that had to fill, and one that waits for its turn.
    fn one_way(&self, media: &Media) -> Duration {
        self.rest.peer.round_trip.unwrap_or_default() / 2 + end_system_delay(media)
    }

    /// The session begins: reports are sent from now on.
    pub fn begin(&mut self, media: &Media, now: Instant) {
        if self.timer.next().is_none() {
            self.timer.begin(now, media.octets_a_second);
        }
    }

    /// No more reports, until the session begins again.
    pub const fn stop(&mut self) {
        self.timer.stop();
    }

    /// When a report is due.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.timer.next()
    }

    /// Packets that came in order, for the metrics.
    pub const fn handle_in_order(&mut self, packets: u64) {
        self.in_order += packets;
    }

    /// Packets that did not come in time, for the metrics.
    pub fn handle_missing(&mut self, packets: u64) {
        self.rest.bursts.handle_received(std::mem::take(&mut self.in_order));
        self.rest.bursts.handle_missing(packets);
    }

    /// We changed our SSRC (a collision, RFC 3550 §8.2): the old one says BYE with the next report, which is due at once.
    pub fn handle_ssrc_change(&mut self, old: Ssrc, now: Instant, media: &Media) {
        self.rest.given_up = Some(old);
        self.rest.peer = PeerView { round_trip: self.rest.peer.round_trip, ..PeerView::default() };
        self.rest.packets_reported = 0;
        if self.timer.next().is_some() {
            self.timer.begin(now, media.octets_a_second);
        }
    }

    /// Takes a datagram from a source that is believed. `own` is the SSRC of our stream.
    pub fn handle_datagram(
        &mut self,
        datagram: &[u8],
        own: Ssrc,
        clock: ClockRate,
        receiver: &mut Receiver,
        now: Instant,
    ) {
        if !rtcp::is_compound(datagram) {
            self.rest.stats.malformed += 1;
            return;
        }
        self.timer.handle_received(datagram.len());
        self.rest.stats.received += 1;
        for packet in rtcp::parse(datagram).take(PACKETS_MAX) {
            match packet {
                Ok(RtcpPacket::SenderReport { ssrc, info, reports }) => {
                    self.rest.peer_left = false;
                    receiver.handle_sender_report(ssrc, info.ntp, now);
                    self.handle_blocks(reports, own, clock, now);
                }
                Ok(RtcpPacket::ReceiverReport { reports, .. }) => {
                    self.rest.peer_left = false;
                    self.handle_blocks(reports, own, clock, now);
                }
                Ok(RtcpPacket::ExtendedReport { metrics: Some(metrics), .. }) if metrics.ssrc == own => {
                    // 10 to 50 are opinions; 127 says that it does not know.
                    self.rest.peer.mos_cq =
                        Some(metrics.mos_cq).filter(|mos| *mos <= 50).map(|mos| f64::from(mos) / 10.0);
                }
                Ok(RtcpPacket::Bye { ssrc, .. }) => {
                    self.rest.peer_left =
                        ssrc.is_none() || ssrc == receiver.ssrc() || receiver.ssrc().is_none();
                }
                Ok(_) => {}
                Err(_) => self.rest.stats.malformed += 1,
            }
        }
    }

    fn handle_blocks(&mut self, blocks: rtcp::ReportBlocks<'_>, own: Ssrc, clock: ClockRate, now: Instant) {
        let Some(block) = blocks.iter().find(|block| block.ssrc == own) else { return };
        self.rest.peer.fraction_lost = f64::from(block.fraction_lost) / 256.0;
        self.rest.peer.lost = block.cumulative_lost.max(0) as u64;
        self.rest.peer.jitter_ms = f64::from(block.jitter) * 1_000.0 / f64::from(clock.hz());
        if let Some(round_trip) = block.round_trip(self.rest.wall.ntp(now)) {
            self.rest.peer.round_trip = Some(round_trip);
        }
    }

    /// Writes the report that is due and returns its length. `media_now` is our media time at `now`.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is shorter than [`REPORT_LEN_MAX`].
    pub fn write_report(
        &mut self,
        buffer: &mut [u8],
        sender: &Sender,
        media_now: Timestamp,
        receiver: &mut Receiver,
        reorder: &ReorderBuffer,
        media: &Media,
        now: Instant,
    ) -> Result<usize, NoRoom> {
        let own = sender.ssrc();
        let block = receiver.report_block(now);
        let mut compound = Compound::new(buffer);
        self.write_first(&mut compound, sender, media_now, block.as_slice(), now)?;
        compound.cname(own, self.cname_text())?;
        if let Some(block) = block {
            let metrics = self.metrics(block.ssrc, receiver, reorder, media);
            compound.voip_metrics(own, &metrics)?;
        }
        if let Some(old) = self.rest.given_up {
            compound.bye(old)?;
            self.rest.given_up = None;
        }
        let len = compound.len();
        self.rest.packets_reported = sender.packets();
        self.rest.stats.sent += 1;
        self.timer.handle_sent(len, now, media.octets_a_second);
        Ok(len)
    }

    /// Writes the last report, with our leave, and returns its length. No report is due after it.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is shorter than [`REPORT_LEN_MAX`].
    pub fn write_bye(
        &mut self,
        buffer: &mut [u8],
        sender: &Sender,
        media_now: Timestamp,
        receiver: &mut Receiver,
        now: Instant,
    ) -> Result<usize, NoRoom> {
        self.timer.stop();
        let block = receiver.report_block(now);
        let mut compound = Compound::new(buffer);
        self.write_first(&mut compound, sender, media_now, block.as_slice(), now)?;
        compound.cname(sender.ssrc(), self.cname_text())?;
        compound.bye(sender.ssrc())?;
        self.rest.stats.sent += 1;
        Ok(compound.len())
    }

    fn write_first(
        &self,
        compound: &mut Compound<'_>,
        sender: &Sender,
        media_now: Timestamp,
        blocks: &[ReportBlock],
        now: Instant,
    ) -> Result<(), NoRoom> {
        if sender.packets() == self.rest.packets_reported {
            return compound.receiver_report(sender.ssrc(), blocks);
        }
        let mut info = sender.sender_info(self.rest.wall.ntp(now));
        info.timestamp = media_now;
        compound.sender_report(sender.ssrc(), &info, blocks)
    }

    fn metrics(
        &self,
        ssrc: Ssrc,
        receiver: &Receiver,
        reorder: &ReorderBuffer,
        media: &Media,
    ) -> VoipMetrics {
        let bursts = self.bursts().summary(media.ptime.as_duration());
        let score = score(media.impairment, bursts.loss, bursts.burst_ratio, self.one_way(media));
        let stats = receiver.stats();
        let expected = (stats.received + stats.lost).max(1);
        let in_256ths = |packets: u64| (packets.saturating_mul(256) / expected).min(255) as u8;
        let tenths = |mos: f64| (mos * 10.0).round() as u8;
        VoipMetrics {
            ssrc,
            loss_rate: in_256ths(stats.lost),
            discard_rate: in_256ths(reorder.stats().late),
            burst_density: bursts.burst_density,
            gap_density: bursts.gap_density,
            burst_duration_ms: bursts.burst_duration_ms,
            gap_duration_ms: bursts.gap_duration_ms,
            round_trip_ms: whole_ms(self.rest.peer.round_trip.unwrap_or_default()),
            end_system_delay_ms: whole_ms(end_system_delay(media)),
            r_factor: score.r_factor.round() as u8,
            mos_lq: tenths(score.mos_lq),
            mos_cq: tenths(score.mos_cq),
            // What is in order does not wait; what is early waits at most so long.
            jitter_buffer_nominal_ms: 0,
            jitter_buffer_maximum_ms: whole_ms(MAX_WAIT),
        }
    }

    fn cname_text(&self) -> &str {
        std::str::from_utf8(&self.rest.cname).unwrap_or_default()
    }
}

fn end_system_delay(media: &Media) -> Duration {
    2 * media.ptime.as_duration()
}

fn whole_ms(duration: Duration) -> u16 {
    u16::try_from(duration.as_millis()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
