//! The carrier leg: RTP to and from a phone, a PBX or a trunk.
//!
//! ```text
//!   datagram ─▶ parse ─▶ payload type ─▶ latch ─▶ receiver ─▶ reorder ─┬─ sound ─▶ Heard, at once and in order
//!                                                                      └─ telephone-event ─▶ digits
//!   fill(payload) ─▶ sender ─▶ datagram to the latched source, else to the SDP's address
//! ```
//!
//! A packet that fails a step is counted and dropped. RTCP on this port is dropped too: the odd port beside it is
//! reserved, but reports are not sent yet.

use std::net::SocketAddr;
use std::time::Instant;

use tandem_audio::format::{Codec, Ptime};
use tandem_audio::tone::Digit;
use tandem_rtp::event::{DigitEvent, EventDetector, EventSender};
use tandem_rtp::jitter::{Placement, Release, ReorderBuffer};
use tandem_rtp::latch::{Latching, SOURCE_SILENCE, SourceLatch};
use tandem_rtp::packet::{HEADER_LEN, Packet, is_rtcp};
use tandem_rtp::receiver::{Receiver, Verdict};
use tandem_rtp::sender::Sender;
use tandem_rtp::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};

use super::event::{Heard, Stats};
use crate::session::bridge::SoundParameters;

/// Seen from us: which ways the audio flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Direction {
    /// Both.
    #[default]
    SendReceive,
    /// We only send.
    SendOnly,
    /// We only accept.
    ReceiveOnly,
    /// Neither.
    Inactive,
}

impl Direction {
    /// We may send.
    pub const fn sends(self) -> bool {
        matches!(self, Self::SendReceive | Self::SendOnly)
    }

    /// We accept.
    pub const fn accepts(self) -> bool {
        matches!(self, Self::SendReceive | Self::ReceiveOnly)
    }
}

/// What was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RtpParameters {
    /// Address in the SDP; `None` while it is not known.
    pub remote: Option<SocketAddr>,
    /// Codec both ways; `None` while it is not known.
    pub codec: Option<Codec>,
    /// Its payload type both ways.
    pub payload_type: PayloadType,
    /// What we send.
    pub ptime: Ptime,
    /// telephone-event, if it was negotiated.
    pub event_payload_type: Option<PayloadType>,
    /// Which ways.
    pub direction: Direction,
    /// How the source is trusted.
    pub latching: Latching,
    /// What else was negotiated of the sound.
    pub sound: SoundParameters,
}

impl RtpParameters {
    /// Of a payload that is no telephone-event: what it is.
    fn heard<'a>(&self, payload_type: PayloadType, payload: &'a [u8]) -> Heard<'a> {
        match self.sound.comfort_noise_payload_type == Some(payload_type) {
            true => Heard::Noise(payload),
            false => Heard::Sound(payload),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct RtpLeg {
    parameters: RtpParameters,
    latch: SourceLatch,
    receiver: Receiver,
    reorder: ReorderBuffer,
    digits: EventDetector,
    keys: EventSender,
    sender: Sender,
    rejected: u64,
    heard_any: bool,
}

impl RtpLeg {
    /// A leg that has heard and said nothing. `seed` gives SSRC, first sequence number and timestamp (RFC 3550 §5.1).
    pub fn new(parameters: RtpParameters, seed: [u32; 3]) -> Self {
        let codec = parameters.codec.unwrap_or(Codec::Pcmu);
        Self {
            latch: SourceLatch::new(parameters.latching, parameters.remote),
            receiver: Receiver::new(codec.clock_rate()),
            reorder: ReorderBuffer::new(codec.octets(Ptime::MS_60)),
            digits: EventDetector::new(codec.clock_rate()),
            keys: EventSender::new(codec.clock_rate()),
            sender: Sender::new(
                Ssrc(seed[0]),
                parameters.payload_type,
                SequenceNumber(seed[1] as u16),
                Timestamp(seed[2]),
            ),
            parameters,
            rejected: 0,
            heard_any: false,
        }
    }

    /// What is negotiated now.
    pub fn parameters(&self) -> &RtpParameters {
        &self.parameters
    }

    /// A re-INVITE changed something. Sequence numbers, SSRC and counters go on.
    pub fn update(&mut self, parameters: RtpParameters) {
        if parameters.codec != self.parameters.codec {
            let codec = parameters.codec.unwrap_or(Codec::Pcmu);
            self.receiver.rearm(codec.clock_rate());
            self.reorder = ReorderBuffer::new(codec.octets(Ptime::MS_60));
            self.digits = EventDetector::new(codec.clock_rate());
            self.keys = EventSender::new(codec.clock_rate());
        } else if parameters.remote != self.parameters.remote {
            self.receiver.rearm(parameters.codec.unwrap_or(Codec::Pcmu).clock_rate());
        }
        self.latch.rearm(parameters.latching, parameters.remote);
        self.sender.set_payload_type(parameters.payload_type);
        self.parameters = parameters;
    }

    /// When the last accepted packet came.
    pub fn last_arrival(&self) -> Option<Instant> {
        self.receiver.last_arrival()
    }

    /// Takes a datagram and gives the sound that is in order now to `hear`. True when it is the first valid packet of
    /// the session.
    pub fn handle_datagram(
        &mut self,
        source: SocketAddr,
        bytes: &[u8],
        now: Instant,
        mut hear: impl FnMut(Heard<'_>),
    ) -> bool {
        if is_rtcp(bytes) {
            return false;
        }
        let Ok(packet) = Packet::parse(bytes) else {
            self.rejected += 1;
            return false;
        };
        let payload_type = packet.header.payload_type;
        let is_event = self.parameters.event_payload_type == Some(payload_type);
        let is_noise = self.parameters.sound.comfort_noise_payload_type == Some(payload_type);
        if self.parameters.codec.is_none()
            || !(is_event || is_noise || payload_type == self.parameters.payload_type)
        {
            self.rejected += 1;
            return false;
        }
        if !self.latch.handle_packet(source, packet.header.ssrc, now).is_accepted() {
            return false;
        }
        let verdict = self.receiver.handle_packet(&packet.header, packet.payload.len(), now);
        let Verdict::Accepted { sequence, started } = verdict else {
            return false;
        };
        if started {
            self.reorder.reset();
            self.digits.reset();
        }
        let placement = self.reorder.handle_packet(sequence, &packet.header, packet.payload, now);
        if placement == Placement::AfterHeld {
            self.release(now, &mut hear);
        }
        if matches!(placement, Placement::InOrder | Placement::AfterHeld) {
            match is_event {
                true => self.digits.handle_packet(packet.header.timestamp, packet.payload, now),
                false => hear(self.parameters.heard(payload_type, packet.payload)),
            }
        }
        self.release(now, hear);
        !std::mem::replace(&mut self.heard_any, true)
    }

    /// When [`RtpLeg::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let reorder = if self.reorder.held() == 0 { None } else { self.reorder.poll_timeout() };
        match (reorder, self.digits.poll_timeout()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Gives up waiting for a missing packet, or for the end of a key.
    pub fn handle_timeout(&mut self, now: Instant, hear: impl FnMut(Heard<'_>)) {
        self.reorder.handle_timeout(now);
        self.release(now, hear);
        self.digits.handle_timeout(now);
    }

    fn release(&mut self, now: Instant, mut hear: impl FnMut(Heard<'_>)) {
        while let Some(release) = self.reorder.poll_release() {
            match release {
                Release::Packet(held) => {
                    match self.parameters.event_payload_type == Some(held.header.payload_type) {
                        true => self.digits.handle_packet(held.header.timestamp, held.payload, now),
                        false => hear(self.parameters.heard(held.header.payload_type, held.payload)),
                    }
                }
                Release::Gap { packets, .. } => hear(Heard::Gap { packets }),
            }
        }
    }

    /// A key that was pressed and released, once.
    pub fn poll_digit(&mut self) -> Option<(char, u32)> {
        loop {
            if let DigitEvent::Ended { digit, duration_ms } = self.digits.poll_event()? {
                return Some((digit.as_char(), duration_ms));
            }
        }
    }

    /// Presses keys towards the caller: as telephone-events, if those were negotiated. Says how many could not be.
    pub fn press(&mut self, digits: &str) -> usize {
        if self.parameters.event_payload_type.is_none() {
            return digits.chars().count();
        }
        digits
            .chars()
            .filter(|&key| Digit::from_char(key).is_none_or(|digit| self.keys.push(digit).is_err()))
            .count()
    }

    /// Where packets go now, if they may go at all.
    pub fn destination(&self) -> Option<SocketAddr> {
        self.parameters.codec?;
        if !self.parameters.direction.sends() {
            return None;
        }
        self.latch.remote()
    }

    /// The one address that can be heard now and is sent to, if there is no other: the signalled address, while it
    /// speaks. The socket may be connected to it, which makes sending cheaper; from all else the latch must decide.
    pub fn exclusive_peer(&self, now: Instant) -> Option<SocketAddr> {
        let source = self.latch.source().filter(|source| Some(*source) == self.parameters.remote)?;
        let quiet = now.saturating_duration_since(self.receiver.last_arrival()?);
        (self.parameters.latching != Latching::Off && quiet < SOURCE_SILENCE).then_some(source)
    }

    /// A packet is due but cannot go: media time passes.
    pub fn skip(&mut self) {
        let codec = self.parameters.codec.unwrap_or(Codec::Pcmu);
        self.sender.skip(codec.ticks(self.parameters.ptime));
    }

    /// Writes the packet that is due: a key if one is being pressed, else the sound that `fill` puts into the payload.
    /// It says how long the payload is; 0: nothing need be sent, and media time passes. The buffer must have room for a
    /// packet ([`HEADER_LEN`] and the payload); if not, nothing is written.
    pub fn write_packet(
        &mut self,
        out: &mut [u8],
        fill: impl FnOnce(Codec, &mut [u8]) -> usize,
    ) -> Option<usize> {
        let codec = self.parameters.codec?;
        let ptime = self.parameters.ptime;
        let ticks = codec.ticks(ptime);
        let (head, body) = out.split_at_mut_checked(HEADER_LEN)?;
        let payload = body.get_mut(..codec.octets(ptime))?;
        if let Some(event_type) = self.parameters.event_payload_type
            && !self.keys.is_idle()
            && let Some(key) = self.keys.next_packet(self.sender.timestamp(), ticks)
        {
            let header = self.sender.next_event_header(event_type, &key, ticks);
            header.write(head).ok()?;
            payload.get_mut(..key.payload.len())?.copy_from_slice(&key.payload);
            return Some(HEADER_LEN + key.payload.len());
        }
        let len = fill(codec, payload);
        if len == 0 {
            self.sender.skip(ticks);
            return None;
        }
        let header = self.sender.next_header(ticks, len);
        header.write(head).ok()?;
        Some(HEADER_LEN + len)
    }

    /// True while a key goes out instead of sound.
    pub fn is_pressing(&self) -> bool {
        !self.keys.is_idle()
    }

    /// The RTP part of the session's counters.
    pub fn count(&self, stats: &mut Stats) {
        let receiver = self.receiver.stats();
        let reorder = self.reorder.stats();
        stats.rtp_sent = self.sender.packets();
        stats.rtp_received = receiver.received;
        stats.rtp_lost = receiver.lost;
        stats.rtp_late = reorder.late;
        stats.rtp_duplicate = receiver.duplicate;
        stats.rtp_reordered = receiver.reordered;
        stats.rtp_rejected =
            self.rejected + self.latch.rejected() + receiver.rejected_ssrc + receiver.rejected_jump;
        stats.jitter_ms = receiver.jitter_ms;
    }
}
