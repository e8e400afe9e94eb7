//! The carrier leg: RTP to and from a phone, a PBX or a trunk.
//!
//! ```text
//!   datagram ─▶ parse ─▶ payload type ─▶ (SRTP) ─▶ latch ─▶ receiver ─▶ reorder ─┬─ sound ─▶ Heard, at once and in order
//!            └─ RTCP ─▶ (SRTCP) ─▶ reports                                       └─ telephone-event ─▶ digits
//!   fill(payload) ─▶ sender ─▶ (SRTP) ─▶ datagram to the latched source, else to the SDP's address
//!   report due ─▶ reports ─▶ (SRTCP) ─▶ datagram: on this port with rtcp-mux (RFC 5761), else from the odd one beside it
//! ```
//!
//! A packet that fails a step is counted and dropped. With SRTP a packet must be authentic before it may latch a source. Of a
//! browser ICE says which source that is, and DTLS which keys: [`super::secure`] sees its datagrams first.
//! RTCP is read on either port, since some peers multiplex without having asked; it never latches.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tandem_audio::format::{Codec, Ptime};
use tandem_audio::noise::{MAX_SID_OCTETS, Sid};
use tandem_audio::tone::Digit;
use tandem_rtp::dtls::{Identity, Kind};
use tandem_rtp::event::{DigitEvent, EventDetector, EventSender};
use tandem_rtp::jitter::{Placement, Release, ReorderBuffer};
use tandem_rtp::latch::{Latching, SOURCE_SILENCE, SourceLatch};
use tandem_rtp::packet::{HEADER_LEN, Header, Packet, is_rtcp};
use tandem_rtp::quality::Impairment;
use tandem_rtp::receiver::{Receiver, Verdict};
use tandem_rtp::report::{Media, Reports, WallClock};
use tandem_rtp::sender::Sender;
use tandem_rtp::srtp::{Inbound, MasterKey, Outbound, SrtpError};
use tandem_rtp::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};

use super::event::{Heard, Stats};
use super::secure::{SecureParameters, SecureTransport, TransportFailure};
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

/// How reports travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Rtcp {
    /// Not at all.
    #[default]
    Off,
    /// On the RTP port (RFC 5761).
    Mux,
    /// From the odd port beside it.
    Separate {
        /// Where the peer wants them; `None`: the port after its RTP port.
        remote: Option<SocketAddr>,
    },
}

/// Keys of both directions (RFC 4568). Another key, or another suite, is a re-key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SrtpKeys {
    /// What we send is protected with this.
    pub local: MasterKey,
    /// What the peer sends is protected with this.
    pub remote: MasterKey,
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
    /// How reports travel.
    pub rtcp: Rtcp,
    /// Keys, if the stream is protected.
    pub srtp: Option<SrtpKeys>,
    /// ICE and DTLS, if those give address and keys.
    pub secure: Option<SecureParameters>,
    /// What else was negotiated of the sound.
    pub sound: SoundParameters,
}

/// Of the parameters what each packet needs, close together.
#[derive(Debug, Clone, Copy)]
struct Wire {
    codec: Option<Codec>,
    sound: PayloadType,
    event: Option<PayloadType>,
    noise: Option<PayloadType>,
    ptime: Ptime,
    direction: Direction,
}

/// What a packet carries, by its payload type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carries {
    Sound,
    Event,
    Noise,
}

impl Wire {
    fn of(parameters: &RtpParameters) -> Self {
        Self {
            codec: parameters.codec,
            sound: parameters.payload_type,
            event: parameters.event_payload_type,
            noise: parameters.sound.comfort_noise_payload_type,
            ptime: parameters.ptime,
            direction: parameters.direction,
        }
    }

    /// `None`: nothing that was negotiated.
    fn carries(&self, payload_type: PayloadType) -> Option<Carries> {
        match payload_type {
            _ if self.codec.is_none() => None,
            event if self.event == Some(event) => Some(Carries::Event),
            noise if self.noise == Some(noise) => Some(Carries::Noise),
            sound if self.sound == sound => Some(Carries::Sound),
            _ => None,
        }
    }
}

/// The SRTP of a leg.
#[derive(Debug)]
struct Srtp {
    inbound: Inbound,
    outbound: Outbound,
}

impl Srtp {
    fn new(keys: &SrtpKeys) -> Result<Self, SrtpError> {
        Ok(Self { inbound: Inbound::new(keys.remote)?, outbound: Outbound::new(keys.local)? })
    }

    fn rekey(&mut self, keys: &SrtpKeys) -> Result<(), SrtpError> {
        if keys.local != *self.outbound.key() {
            self.outbound = Outbound::new(keys.local)?;
        }
        self.inbound.rekey(keys.remote)
    }
}

/// Our SSRC is changed for one that collides at most so often: a peer that goes on answering with ours is a mirror, which
/// is heard as it is (an echo at the far end, a test that reflects packets).
const COLLISIONS_MAX: u8 = 1;

/// Headers of IPv4, UDP and RTP, for the bandwidth of the session.
const HEADERS_OCTETS: usize = 20 + 8 + HEADER_LEN;

/// See the module.
#[derive(Debug)]
pub struct RtpLeg {
    wire: Wire,
    /// Something was pressed, and [`EventDetector`] may have something to say or to wait for.
    hears_keys: bool,
    latch: SourceLatch,
    receiver: Receiver,
    reorder: ReorderBuffer,
    /// Not looked at while nobody presses a key.
    digits: Box<EventDetector>,
    keys: EventSender,
    sender: Sender,
    reports: Reports,
    parameters: Box<RtpParameters>,
    /// Where the peer's last report came from, if not from its RTP port.
    report_source: Option<SocketAddr>,
    srtp: Option<Box<Srtp>>,
    secure: Option<Box<SecureTransport>>,
    identity: Option<Arc<Identity>>,
    /// There are no keys yet, or they could not be used: nothing may leave, or be believed.
    is_locked: bool,
    /// The SSRC after the next collision.
    next_ssrc: Ssrc,
    collisions: u8,
    rejected: u64,
    heard_any: bool,
}

impl RtpLeg {
    /// A leg that has heard and said nothing. `seed` gives SSRC, first sequence number and timestamp (RFC 3550 §5.1), and
    /// what reports need of chance. The identity is for DTLS.
    pub fn new(
        parameters: RtpParameters,
        identity: Option<Arc<Identity>>,
        seed: [u32; 3],
        wall: WallClock,
    ) -> Self {
        let secure = parameters.secure.map(|secure| Box::new(SecureTransport::new(secure, identity.clone())));
        let (latching, remote) = match secure {
            Some(_) => (Latching::Strict, None),
            None => (parameters.latching, parameters.remote),
        };
        let codec = parameters.codec.unwrap_or(Codec::Pcmu);
        let srtp = parameters.srtp.as_ref().map(Srtp::new);
        Self {
            latch: SourceLatch::closed(latching, remote),
            receiver: Receiver::new(codec.clock_rate()),
            reorder: ReorderBuffer::new(codec.octets(Ptime::MS_60)),
            digits: Box::new(EventDetector::new(codec.clock_rate())),
            hears_keys: false,
            keys: EventSender::new(codec.clock_rate()),
            sender: Sender::new(
                Ssrc(seed[0]),
                parameters.payload_type,
                // The upper half would let a peer that loses the first packets guess the rollover counter wrong
                // (RFC 3711 §3.3.1).
                SequenceNumber(seed[1] as u16 & 0x7FFF),
                Timestamp(seed[2]),
            ),
            reports: Reports::new(wall, u64::from(seed[1]) << 32 | u64::from(seed[2])),
            report_source: None,
            is_locked: secure.is_some() || matches!(srtp, Some(Err(_))),
            srtp: srtp.and_then(Result::ok).map(Box::new),
            secure,
            identity,
            next_ssrc: Ssrc(seed[0] ^ seed[1].rotate_left(16) ^ 0xA5A5_0001),
            collisions: 0,
            wire: Wire::of(&parameters),
            parameters: Box::new(parameters),
            rejected: 0,
            heard_any: false,
        }
    }

    /// Takes the stream out, for another session: SSRC, numbers, keys, latch and counters go with it. What is left behind has heard
    /// and said nothing, and sends nothing.
    pub fn take(&mut self, wall: WallClock) -> Self {
        let still = RtpParameters {
            remote: None,
            event_payload_type: None,
            direction: Direction::Inactive,
            rtcp: Rtcp::Off,
            srtp: None,
            secure: None,
            ..*self.parameters
        };
        std::mem::replace(self, Self::new(still, None, [0; 3], wall))
    }

    /// What is negotiated now.
    pub fn parameters(&self) -> &RtpParameters {
        &self.parameters
    }

    /// What we accept and send, by what is negotiated.
    pub const fn direction(&self) -> Direction {
        self.wire.direction
    }

    /// The length of our packets.
    pub const fn ptime(&self) -> Ptime {
        self.wire.ptime
    }

    /// A re-INVITE changed something. Sequence numbers, SSRC and counters go on.
    pub fn update(&mut self, parameters: RtpParameters) {
        if parameters.codec != self.parameters.codec {
            let codec = parameters.codec.unwrap_or(Codec::Pcmu);
            self.receiver.rearm(codec.clock_rate());
            self.reorder = ReorderBuffer::new(codec.octets(Ptime::MS_60));
            *self.digits = EventDetector::new(codec.clock_rate());
            self.hears_keys = false;
            self.keys = EventSender::new(codec.clock_rate());
        } else if parameters.remote != self.parameters.remote {
            self.receiver.rearm(parameters.codec.unwrap_or(Codec::Pcmu).clock_rate());
        }
        if parameters.event_payload_type.is_none() && !self.keys.is_idle() {
            // Nothing carries them any more, and an agent that hangs up after them would wait for ever.
            self.keys = EventSender::new(parameters.codec.unwrap_or(Codec::Pcmu).clock_rate());
        }
        if parameters.secure != self.parameters.secure {
            self.secure_anew(&parameters);
        } else if parameters.srtp != self.parameters.srtp {
            self.is_locked = self.rekey(parameters.srtp).is_err();
        }
        if parameters.rtcp != self.parameters.rtcp {
            self.report_source = None;
        }
        match &self.secure {
            Some(secure) => self.latch.rearm(Latching::Strict, secure.pair()),
            None => self.latch.rearm(parameters.latching, parameters.remote),
        }
        self.sender.set_payload_type(parameters.payload_type);
        self.wire = Wire::of(&parameters);
        *self.parameters = parameters;
    }

    fn rekey(&mut self, keys: Option<SrtpKeys>) -> Result<(), SrtpError> {
        match (&keys, &mut self.srtp) {
            (Some(keys), Some(srtp)) => srtp.rekey(keys)?,
            (Some(keys), None) => self.srtp = Some(Box::new(Srtp::new(keys)?)),
            (None, _) => self.srtp = None,
        }
        Ok(())
    }

    fn secure_anew(&mut self, parameters: &RtpParameters) {
        match (parameters.secure, &mut self.secure) {
            (Some(changed), Some(secure)) => self.is_locked |= secure.update(changed),
            (Some(new), None) => {
                self.secure = Some(Box::new(SecureTransport::new(new, self.identity.clone())));
                self.is_locked = true;
            }
            (None, secure) => {
                *secure = None;
                self.is_locked = self.rekey(parameters.srtp).is_err();
            }
        }
    }

    /// Takes a datagram of a leg with ICE and DTLS. True: it is of RTP, from where the peer is.
    fn handle_secure(&mut self, source: SocketAddr, bytes: &[u8], now: Instant) -> bool {
        let Some(secure) = &mut self.secure else { return true };
        let kind = Kind::of(bytes);
        if kind == Kind::Rtp && secure.pair() == Some(source) {
            return true;
        }
        if secure.handle_datagram(kind, source, bytes, now) {
            self.latch.rearm(Latching::Strict, secure.pair());
        }
        self.take_keys();
        false
    }

    /// A step of the DTLS handshake waits for [`RtpLeg::handle_handshake`].
    pub fn wants_handshake(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| secure.wants_handshake())
    }

    /// One step of the DTLS handshake; the worker says when.
    pub fn handle_handshake(&mut self, now: Instant) {
        if let Some(secure) = &mut self.secure {
            secure.handle_handshake(now);
            self.take_keys();
        }
    }

    /// Datagrams of a handshake that found too many waiting.
    pub fn handshake_overflowed(&self) -> u64 {
        self.secure.as_ref().map_or(0, |secure| secure.overflowed())
    }

    /// Takes the keys of a handshake that is over.
    fn take_keys(&mut self) {
        if let Some(keys) = self.secure.as_mut().and_then(|secure| secure.poll_keys()) {
            self.is_locked = self.rekey(Some(keys)).is_err();
        }
    }

    /// Writes what ICE and DTLS have to send: where it goes, and its length.
    pub fn poll_secure(&mut self, out: &mut [u8]) -> Option<(SocketAddr, usize)> {
        self.secure.as_mut()?.poll_transmit(out)
    }

    /// Why there is no way to the peer.
    pub fn failure(&self) -> Option<TransportFailure> {
        self.secure.as_ref()?.failure()
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
        if self.secure.is_some() && !self.handle_secure(source, bytes, now) {
            return false;
        }
        if is_rtcp(bytes) {
            self.handle_report(source, bytes, false, now);
            return false;
        }
        let Ok(mut packet) = Packet::parse(bytes) else {
            self.rejected += 1;
            return false;
        };
        let carries = match self.wire.carries(packet.header.payload_type) {
            Some(carries) if !self.is_locked => carries,
            _ => {
                self.rejected += 1;
                return false;
            }
        };
        let clear;
        if let Some(srtp) = &mut self.srtp {
            let Ok(unprotected) = srtp.inbound.unprotect_rtp(bytes) else { return false };
            clear = unprotected;
            let Ok(parsed) = Packet::parse(&clear) else {
                self.rejected += 1;
                return false;
            };
            packet = parsed;
        }
        if !self.latch.handle_packet(source, packet.header.ssrc, now).is_accepted() {
            return false;
        }
        if packet.header.ssrc == self.sender.ssrc() {
            self.handle_collision(&packet.header, now);
        }
        let verdict = self.receiver.handle_packet(&packet.header, packet.payload.len(), now);
        let Verdict::Accepted { sequence, started } = verdict else {
            return false;
        };
        if started {
            self.reorder.reset();
            self.digits.reset();
            // A key that was down is released by that.
            self.hears_keys = true;
        }
        let placement = self.reorder.handle_packet(sequence, &packet.header, packet.payload, now);
        if placement == Placement::AfterHeld {
            self.release(now, &mut hear);
        }
        if matches!(placement, Placement::InOrder | Placement::AfterHeld) {
            self.reports.handle_in_order(1);
            match carries {
                Carries::Sound => hear(Heard::Sound(packet.payload)),
                Carries::Noise => hear(Heard::Noise(packet.payload)),
                Carries::Event => {
                    self.digits.handle_packet(packet.header.timestamp, packet.payload, now);
                    self.hears_keys = true;
                }
            }
        }
        self.release(now, hear);
        !std::mem::replace(&mut self.heard_any, true)
    }

    /// Takes a piece of sound that came by a stream: in order, after `gap` pieces that did not come, under a header of our own
    /// making. True when it is the first of the session.
    pub fn handle_frame(
        &mut self,
        header: &Header,
        payload: &[u8],
        gap: u64,
        now: Instant,
        mut hear: impl FnMut(Heard<'_>),
    ) -> bool {
        if self.is_locked || self.wire.codec.is_none() {
            return false;
        }
        self.receiver.handle_packet(header, payload.len(), now);
        if gap > 0 {
            hear(Heard::Gap { packets: gap });
        }
        hear(Heard::Sound(payload));
        !std::mem::replace(&mut self.heard_any, true)
    }

    /// Nothing may leave, or be believed; or it may again.
    pub fn set_locked(&mut self, is_locked: bool) {
        self.is_locked = is_locked;
    }

    /// The peer speaks with our SSRC (RFC 3550 §8.2): by chance, and then ours changes; or it gives back what we send, and
    /// then changing more often would not help.
    fn handle_collision(&mut self, header: &Header, now: Instant) {
        if self.collisions >= COLLISIONS_MAX {
            return;
        }
        self.collisions += 1;
        self.sender.change_ssrc(self.next_ssrc);
        // A mirror will speak with the new one next.
        self.receiver.announce(self.next_ssrc);
        self.reports.handle_ssrc_change(header.ssrc, now, &self.media());
    }

    /// When [`RtpLeg::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let reorder = self.reorder.poll_timeout();
        if !self.hears_keys && self.secure.is_none() {
            return reorder;
        }
        let secure = self.secure.as_ref().and_then(|secure| secure.poll_timeout());
        [reorder, self.digits.poll_timeout(), secure].into_iter().flatten().min()
    }

    /// Gives up waiting for a missing packet, or for the end of a key.
    pub fn handle_timeout(&mut self, now: Instant, hear: impl FnMut(Heard<'_>)) {
        if let Some(secure) = &mut self.secure {
            secure.handle_timeout(now);
            self.take_keys();
        }
        self.reorder.handle_timeout(now);
        self.release(now, hear);
        if self.hears_keys {
            self.digits.handle_timeout(now);
        }
    }

    fn release(&mut self, now: Instant, mut hear: impl FnMut(Heard<'_>)) {
        while let Some(release) = self.reorder.poll_release() {
            match release {
                Release::Packet(held) => {
                    self.reports.handle_in_order(1);
                    match self.wire.carries(held.header.payload_type) {
                        Some(Carries::Event) => {
                            self.digits.handle_packet(held.header.timestamp, held.payload, now);
                            self.hears_keys = true;
                        }
                        Some(Carries::Noise) => hear(Heard::Noise(held.payload)),
                        // A type that is negotiated no more was heard in its time: it keeps its place.
                        Some(Carries::Sound) | None => hear(Heard::Sound(held.payload)),
                    }
                }
                Release::Gap { packets, .. } => {
                    self.reports.handle_missing(packets);
                    hear(Heard::Gap { packets });
                }
            }
        }
    }

    /// A key that was pressed and released, once.
    pub fn poll_digit(&mut self) -> Option<(char, u32)> {
        if !self.hears_keys {
            return None;
        }
        while let Some(event) = self.digits.poll_event() {
            if let DigitEvent::Ended { digit, duration_ms } = event {
                return Some((digit.as_char(), duration_ms));
            }
        }
        self.hears_keys = self.digits.poll_timeout().is_some();
        None
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
        self.wire.codec?;
        if !self.wire.direction.sends() || self.is_locked {
            return None;
        }
        self.latch.remote()
    }

    fn media(&self) -> Media {
        let codec = self.parameters.codec.unwrap_or(Codec::Pcmu);
        let ptime = self.parameters.ptime;
        let packets_a_second = 1_000 / ptime.as_ms().max(1);
        Media {
            clock: codec.clock_rate(),
            ptime,
            impairment: Impairment::G711_CONCEALED,
            octets_a_second: 2 * packets_a_second * (codec.octets(ptime) + HEADERS_OCTETS) as u32,
        }
    }

    /// Takes a datagram that is RTCP; `own_port`: it came to the port of its own.
    pub fn handle_report(&mut self, source: SocketAddr, bytes: &[u8], own_port: bool, now: Instant) {
        let is_signalled =
            matches!(self.parameters.rtcp, Rtcp::Separate { remote } if remote == Some(source));
        if self.parameters.rtcp == Rtcp::Off
            || self.is_locked
            || !(is_signalled || self.latch.is_believed(source))
        {
            return;
        }
        let clear;
        let mut compound = bytes;
        if let Some(srtp) = &mut self.srtp {
            let Ok(unprotected) = srtp.inbound.unprotect_rtcp(bytes) else { return };
            clear = unprotected;
            compound = &clear;
        }
        let received = self.reports.stats().received;
        let clock = self.parameters.codec.unwrap_or(Codec::Pcmu).clock_rate();
        self.reports.handle_datagram(compound, self.sender.ssrc(), clock, &mut self.receiver, now);
        if own_port && self.parameters.latching == Latching::Auto && self.reports.stats().received > received
        {
            self.report_source = Some(source);
        }
    }

    /// The call is up, or the other side may be heard before: it may be heard from another address than it signalled, and
    /// checks are owed, if ICE was negotiated. Reports are sent from now on, if they were; before that and after the end none
    /// is due.
    pub fn begin(&mut self, now: Instant) {
        self.latch.open();
        if let Some(secure) = &mut self.secure {
            secure.begin(now);
        }
        if self.parameters.rtcp == Rtcp::Off || self.parameters.codec.is_none() {
            self.reports.stop();
        } else {
            self.reports.begin(&self.media(), now);
        }
    }

    /// When [`RtpLeg::poll_report`] has something.
    pub const fn poll_report_timeout(&self) -> Option<Instant> {
        self.reports.poll_timeout()
    }

    /// Where reports go now: to where the peer's came from, else beside where our RTP goes, else as it was signalled.
    fn report_destination(&self) -> Option<SocketAddr> {
        let Rtcp::Separate { remote } = self.parameters.rtcp else { return self.latch.remote() };
        if let Some(source) = self.report_source.filter(|source| self.latch.is_believed(*source)) {
            return Some(source);
        }
        let rtp = self.latch.remote()?;
        let beside = || rtp.port().checked_add(1).map(|port| SocketAddr::new(rtp.ip(), port));
        // A peer behind NAT signals an address that is not to be reached; its RTP shows a better one.
        remote.filter(|_| Some(rtp) == self.parameters.remote).or_else(beside)
    }

    /// Writes the report that is due, if one is: where it goes, and its length. `next_packet` is when the next packet of
    /// sound is due.
    pub fn poll_report(
        &mut self,
        now: Instant,
        next_packet: Option<Instant>,
        out: &mut [u8],
    ) -> Option<(SocketAddr, usize)> {
        if self.reports.poll_timeout().is_none_or(|due| due > now) {
            return None;
        }
        let media = self.media();
        let media_now = self.media_time(now, next_packet);
        let Self { reports, sender, receiver, reorder, .. } = self;
        let len = reports.write_report(out, sender, media_now, receiver, reorder, &media, now).ok()?;
        let to = self.report_destination()?;
        Some((to, self.protect_report(out, len)?))
    }

    /// Writes our leave: where it goes, and its length. Only once, and only if reports were begun.
    pub fn poll_goodbye(&mut self, now: Instant, out: &mut [u8]) -> Option<(SocketAddr, usize)> {
        self.reports.poll_timeout()?;
        let media_now = self.media_time(now, None);
        let Self { reports, sender, receiver, .. } = self;
        let len = reports.write_bye(out, sender, media_now, receiver, now).ok()?;
        let to = self.report_destination()?;
        Some((to, self.protect_report(out, len)?))
    }

    fn protect_report(&mut self, out: &mut [u8], len: usize) -> Option<usize> {
        if self.is_locked {
            return None;
        }
        match &mut self.srtp {
            Some(srtp) => srtp.outbound.protect_rtcp(out, len).ok(),
            None => Some(len),
        }
    }

    /// Our media time now: the next packet's, less the time until it is due.
    fn media_time(&self, now: Instant, next_packet: Option<Instant>) -> Timestamp {
        let until = next_packet.map_or_else(Default::default, |next| next.saturating_duration_since(now));
        let clock = self.parameters.codec.unwrap_or(Codec::Pcmu).clock_rate();
        let ticks = until.as_micros() as u64 * u64::from(clock.hz()) / 1_000_000;
        self.sender.timestamp().plus((ticks as u32).wrapping_neg())
    }

    /// The one address that can be heard now and is sent to, if there is no other: the signalled address, while it
    /// speaks. The socket may be connected to it, which makes sending cheaper; from all else the latch must decide.
    pub fn exclusive_peer(&self, now: Instant) -> Option<SocketAddr> {
        let source = self.latch.exclusive_source()?;
        let quiet = now.saturating_duration_since(self.receiver.last_arrival()?);
        // A peer that ICE found may check from another address at any time.
        (self.secure.is_none() && quiet < SOURCE_SILENCE).then_some(source)
    }

    /// A packet is due but cannot go: media time passes.
    pub fn skip(&mut self) {
        let codec = self.wire.codec.unwrap_or(Codec::Pcmu);
        self.sender.skip(codec.ticks(self.wire.ptime));
    }

    /// Writes the packet that is due: a key if one is being pressed, else the sound that `fill` puts into the payload.
    /// It says how long the payload is; 0: nothing need be sent, and media time passes. The buffer must have room for a
    /// packet ([`HEADER_LEN`] and the payload); if not, nothing is written.
    pub fn write_packet(
        &mut self,
        out: &mut [u8],
        fill: impl FnOnce(Codec, &mut [u8]) -> usize,
    ) -> Option<usize> {
        let Wire { codec: Some(codec), ptime, .. } = self.wire else { return None };
        let ticks = codec.ticks(ptime);
        let (head, body) = out.split_at_mut_checked(HEADER_LEN)?;
        let payload = body.get_mut(..codec.octets(ptime))?;
        if !self.keys.is_idle()
            && let Some(event_type) = self.wire.event
            && let Some(key) = self.keys.next_packet(self.sender.timestamp(), ticks)
        {
            let header = self.sender.next_event_header(event_type, &key, ticks);
            header.write(head).ok()?;
            payload.get_mut(..key.payload.len())?.copy_from_slice(&key.payload);
            return self.protect(out, HEADER_LEN + key.payload.len());
        }
        let len = fill(codec, payload);
        if len == 0 {
            self.sender.skip(ticks);
            return None;
        }
        let header = self.sender.next_header(ticks, len);
        header.write(head).ok()?;
        self.protect(out, HEADER_LEN + len)
    }

    /// Comfort noise may be sent now: it was negotiated, and no key is being pressed. Opus has silence of its own.
    pub fn takes_noise(&self) -> bool {
        let RtpParameters { sound, codec, .. } = &*self.parameters;
        let fits = codec.is_some_and(|codec| codec != Codec::Opus);
        fits && sound.comfort_noise_payload_type.is_some()
            && self.keys.is_idle()
            && self.destination().is_some()
    }

    /// Writes the packet that is due as a description of noise (RFC 3389). `None` when it may not be sent.
    pub fn write_noise(&mut self, sid: &Sid, out: &mut [u8]) -> Option<usize> {
        let payload_type = self.parameters.sound.comfort_noise_payload_type?;
        let ticks = self.parameters.codec?.ticks(self.parameters.ptime);
        let (head, body) = out.split_at_mut_checked(HEADER_LEN)?;
        let len = sid.write(body.get_mut(..MAX_SID_OCTETS)?);
        self.sender.next_noise_header(payload_type, ticks, len).write(head).ok()?;
        self.protect(out, HEADER_LEN + len)
    }

    fn protect(&mut self, out: &mut [u8], len: usize) -> Option<usize> {
        match &mut self.srtp {
            Some(srtp) => srtp.outbound.protect_rtp(out, len).ok(),
            None => Some(len),
        }
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
        stats.rtp_rejected = self.rejected
            + self.latch.rejected()
            + receiver.rejected_ssrc
            + receiver.rejected_jump
            + self.secure.as_ref().map_or(0, |secure| secure.rejected());
        stats.jitter_ms = receiver.jitter_ms;
        stats.srtp_rejected = self.srtp.as_ref().map_or(0, |srtp| srtp.inbound.refused());
        let (reports, peer) = (self.reports.stats(), self.reports.peer());
        stats.rtcp_sent = reports.sent;
        stats.rtcp_received = reports.received;
        stats.round_trip_ms = peer.round_trip.map(|round_trip| round_trip.as_secs_f64() * 1_000.0);
        stats.remote_lost = peer.lost;
        stats.remote_jitter_ms = peer.jitter_ms;
        stats.remote_mos = peer.mos_cq;
        if receiver.received > 0 {
            let score = self.reports.score(&self.media());
            stats.mos = Some(score.mos_cq);
            stats.r_factor = Some(score.r_factor);
        }
    }
}
