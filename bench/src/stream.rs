//! The media of one call, seen from the caller: what it sends, and the account of what comes back.
//!
//! ```text
//!   echo     Speaker 0 ─▶ target ─▶ Listener 0
//!   bridge   Speaker 0 ─▶ target ─▶ Listener 1      and the other way round: a mark is looked up at who has said it
//! ```
//!
//! No socket and no clock: the generator's loop ([`crate::generator`]) brings octets and instants.
use crate::clock::{Mono, NANOS_PER_MS};
use crate::distribution::Distribution;
use crate::emodel::PLAYOUT_DELAY_MS;
use crate::marker::{Burst, BurstDetector, FRAME_OCTETS, FRAMES_PER_S, Signal};
use crate::schedule::{Deviations, InterarrivalJitter, ScheduleLog};
use crate::sequence::{Arrival, SequenceAccount, SequenceCounts};

mod sound;

pub use sound::SoundListener;

/// Octets of the RTP header that we send (RFC 3550 §5.1, no CSRC, no extension).
const HEADER_OCTETS: usize = 12;

/// Octets of a packet that we send.
pub const PACKET_OCTETS: usize = HEADER_OCTETS + FRAME_OCTETS;

/// Send times kept to match what comes back: 512 frames, 10 s. A round trip longer than that is not seen.
const SENT_KEPT: usize = 512;

/// The measured part of a run; packets outside of it are accounted by sequence number only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First instant inside.
    pub begin: Mono,
    /// First instant after it.
    pub end: Mono,
}

impl Window {
    /// True for an instant inside.
    pub fn contains(&self, instant: Mono) -> bool {
        self.begin <= instant && instant < self.end
    }
}

/// What one socket says.
pub struct Speaker {
    ssrc: u32,
    first_sequence: u16,
    first_timestamp: u32,
    /// Frames written so far, and the number of the next one.
    next_frame: u64,
    /// When frames left, by number modulo `SENT_KEPT`.
    sent_at: Box<[(u64, Mono)]>,
    sent: u64,
}

/// What one socket hears.
pub struct Listener {
    peer: Option<Peer>,
    burst: BurstDetector,
    log: ScheduleLog,
    jitter: InterarrivalJitter,
    account: StreamAccount,
}

/// The source that we hear.
struct Peer {
    ssrc: u32,
    sequence: SequenceAccount,
}

/// Durations of all streams together; a histogram a stream would take a megabyte a call.
#[derive(Clone, Default)]
pub struct Timings {
    /// In the window: from a frame's departure to its return.
    pub round_trip: Distribution,
    /// In the window, where no mark survives: the same from the bursts.
    pub burst_round_trip: Distribution,
    /// In the window: distance from the schedule.
    pub deviations: Deviations,
    /// At the end, one of each stream.
    pub jitter: Distribution,
}

/// What one stream, or many, came to.
#[derive(Debug, Clone, Default)]
pub struct StreamAccount {
    /// Streams in here.
    pub streams: u64,
    /// Streams that never received a packet.
    pub silent_streams: u64,
    /// Packets handed to the kernel.
    pub sent: u64,
    /// By sequence number.
    pub sequence: SequenceCounts,
    /// Datagrams that are no RTP, or RTP of another payload type.
    pub foreign: u64,
    /// Times that the source (SSRC) changed.
    pub ssrc_changes: u64,
    /// In the window: packets received.
    pub window_received: u64,
    /// In the window: packets that should have come at one a ptime.
    pub window_expected: u64,
    /// In the window: packets that bore a mark.
    pub marked: u64,
    /// In the window: packets without a mark on streams that have marks: the target filled in silence of its own.
    pub filled: u64,
    /// In the window: marks that came back again.
    pub repeated: u64,
    /// In the window: marks between the first and the last that never came back.
    pub audio_lost: u64,
    /// In the window: packets that a dejitter buffer of 40 ms would have missed.
    pub too_late: u64,
    /// In the window: round trips measured, by mark or by burst.
    pub round_trips: u64,
    /// In the window: their sum, nanoseconds.
    pub round_trip_sum_ns: u64,
    /// First and last mark of the window, and how many different ones.
    marks: Option<Marks>,
}

#[derive(Debug, Clone, Copy)]
struct Marks {
    first: u64,
    last: u64,
    unique: u64,
}

impl Speaker {
    /// One that has not begun.
    pub fn new(ssrc: u32) -> Self {
        Self {
            ssrc,
            // RFC 3550 wants both to start at random; derived from the random SSRC, so that wraps are met in every run.
            first_sequence: (ssrc >> 7) as u16,
            first_timestamp: ssrc.rotate_left(13),
            next_frame: 0,
            sent_at: vec![(u64::MAX, Mono(0)); SENT_KEPT].into_boxed_slice(),
            sent: 0,
        }
    }

    /// Writes the next packet and returns its frame number.
    pub fn write_next(&mut self, signal: &Signal, packet: &mut [u8]) -> u64 {
        let Some((header, payload)) = packet.split_first_chunk_mut::<HEADER_OCTETS>() else {
            return self.begin_frame();
        };
        let frame = match payload.first_chunk_mut::<FRAME_OCTETS>() {
            Some(payload) => self.write_sound(signal, payload),
            None => self.begin_frame(),
        };
        let marker = if frame == 0 { 0x80 } else { 0 };
        header[0] = 0x80; // version 2
        header[1] = marker | signal.law().payload_type();
        header[2..4].copy_from_slice(&self.first_sequence.wrapping_add(frame as u16).to_be_bytes());
        let timestamp = self.first_timestamp.wrapping_add((frame as u32).wrapping_mul(FRAME_OCTETS as u32));
        header[4..8].copy_from_slice(&timestamp.to_be_bytes());
        header[8..12].copy_from_slice(&self.ssrc.to_be_bytes());
        frame
    }

    /// Writes the sound of the next frame alone, for transports without RTP, and returns its number.
    pub fn write_sound(&mut self, signal: &Signal, sound: &mut [u8; FRAME_OCTETS]) -> u64 {
        let frame = self.begin_frame();
        signal.write(frame, sound);
        frame
    }

    fn begin_frame(&mut self) -> u64 {
        let frame = self.next_frame;
        self.next_frame += 1;
        self.sent += 1;
        frame
    }

    /// A frame that was not sent because the generator had fallen too far behind: its time passes unused.
    pub fn skip(&mut self) {
        self.next_frame += 1;
    }

    /// The frame has left at this instant.
    pub fn sent(&mut self, frame: u64, at: Mono) {
        self.sent_at[frame as usize % SENT_KEPT] = (frame, at);
    }

    /// The frame with this mark which was sent last.
    fn frame_of(&self, mark: u16) -> Option<u64> {
        let behind = (self.next_frame as u16).wrapping_sub(mark);
        self.next_frame.checked_sub(u64::from(behind))
    }

    /// When a frame left, while that is kept.
    fn left_at(&self, frame: u64) -> Option<Mono> {
        let (kept, at) = self.sent_at[frame as usize % SENT_KEPT];
        (kept == frame).then_some(at)
    }

    /// The last frame sent that carries this burst.
    fn frame_of_burst(&self, kind: usize) -> Option<u64> {
        let newest = self.next_frame.saturating_sub(1) / FRAMES_PER_S;
        let second =
            (newest.saturating_sub(3)..=newest).rev().find(|second| (second % 4) as usize == kind)?;
        Some(second * FRAMES_PER_S)
    }
}

impl Listener {
    /// One that has heard nothing; `window_frames` is the room for the log.
    pub fn new(window_frames: usize) -> Self {
        Self {
            peer: None,
            burst: BurstDetector::default(),
            log: ScheduleLog::with_capacity(window_frames),
            jitter: InterarrivalJitter::default(),
            account: StreamAccount { streams: 1, ..StreamAccount::default() },
        }
    }

    /// A datagram has arrived, with what `speaker` says in it if the target does what it should. Where only bursts survive,
    /// returns the arrival of the packet with the beginning of one that is complete with this packet.
    pub fn receive(
        &mut self,
        speaker: &Speaker,
        signal: &Signal,
        datagram: &[u8],
        arrival: Mono,
        window: Option<Window>,
        timings: &mut Timings,
    ) -> Option<Mono> {
        let Some(packet) = RtpView::parse(datagram).filter(|p| p.payload_type == signal.law().payload_type())
        else {
            self.account.foreign += 1;
            return None;
        };
        if self.peer.as_ref().is_none_or(|peer| peer.ssrc != packet.ssrc) {
            if let Some(old) = self.peer.take() {
                self.account.ssrc_changes += 1;
                self.account.sequence.add(&old.sequence.counts());
            }
            self.peer = Some(Peer { ssrc: packet.ssrc, sequence: SequenceAccount::new() });
            self.log.restart();
            self.jitter.restart();
        }
        let peer = self.peer.as_mut()?;
        let what = peer.sequence.record(packet.sequence);
        if matches!(what, Arrival::Duplicate | Arrival::Stale) {
            return None;
        }
        self.jitter.record(arrival, packet.timestamp);
        let inside = window.is_some_and(|window| window.contains(arrival));
        if inside {
            self.account.window_received += 1;
            self.log.record(arrival, packet.timestamp);
        }
        match signal.read_mark(packet.payload) {
            Some(number) => self.marked(speaker, number, arrival, inside, timings),
            None => {
                self.account.filled += u64::from(inside);
                // Out of order audio would look like an onset.
                if what == Arrival::Fresh
                    && let Some(found) = self.burst.record(signal, packet.payload, arrival)
                {
                    self.burst_came_back(speaker, found.burst.index(), found.at, inside, timings);
                    return Some(found.arrival);
                }
            }
        }
        None
    }

    fn marked(&mut self, speaker: &Speaker, number: u16, arrival: Mono, inside: bool, timings: &mut Timings) {
        let Some(frame) = speaker.frame_of(number) else { return };
        if !inside {
            return;
        }
        self.account.marked += 1;
        match &mut self.account.marks {
            None => self.account.marks = Some(Marks { first: frame, last: frame, unique: 1 }),
            Some(marks) if frame > marks.last => {
                marks.last = frame;
                marks.unique += 1;
            }
            Some(marks) if frame == marks.last => self.account.repeated += 1,
            Some(marks) => marks.unique += u64::from(frame > marks.first),
        }
        if let Some(left_at) = speaker.left_at(frame) {
            timings.round_trip.record_ns(arrival - left_at);
            self.account.round_trips += 1;
            self.account.round_trip_sum_ns += arrival - left_at;
        }
    }

    fn burst_came_back(
        &mut self,
        speaker: &Speaker,
        kind: usize,
        onset: Mono,
        inside: bool,
        timings: &mut Timings,
    ) {
        let Some(frame) = speaker.frame_of_burst(kind) else { return };
        if inside && let Some(left_at) = speaker.left_at(frame) {
            let nanos = onset - (left_at + Burst::OFFSET_NS);
            timings.burst_round_trip.record_ns(nanos);
            self.account.round_trips += 1;
            self.account.round_trip_sum_ns += nanos;
        }
    }

    /// Ends the stream, of which `speaker` is the other direction.
    pub fn finish(
        mut self,
        speaker: &Speaker,
        window: Option<Window>,
        timings: &mut Timings,
    ) -> StreamAccount {
        let account = &mut self.account;
        account.sent = speaker.sent;
        match &self.peer {
            Some(peer) => account.sequence.add(&peer.sequence.counts()),
            None => account.silent_streams = 1,
        }
        if let Some(window) = window {
            account.window_expected = (window.end - window.begin) / (20 * NANOS_PER_MS);
        }
        if let Some(marks) = account.marks.take() {
            account.audio_lost = (marks.last - marks.first + 1).saturating_sub(marks.unique);
        } else {
            account.filled = 0;
        }
        if account.sequence.received > 1 {
            timings.jitter.record_ns(self.jitter.nanos());
        }
        let too_late_ns = (PLAYOUT_DELAY_MS * NANOS_PER_MS as f64) as i64;
        account.too_late = self.log.fold(&mut timings.deviations, too_late_ns);
        self.account
    }
}

impl StreamAccount {
    /// Adds another stream's account.
    pub fn add(&mut self, other: &Self) {
        self.streams += other.streams;
        self.silent_streams += other.silent_streams;
        self.sent += other.sent;
        self.sequence.add(&other.sequence);
        self.foreign += other.foreign;
        self.ssrc_changes += other.ssrc_changes;
        self.window_received += other.window_received;
        self.window_expected += other.window_expected;
        self.marked += other.marked;
        self.filled += other.filled;
        self.repeated += other.repeated;
        self.audio_lost += other.audio_lost;
        self.too_late += other.too_late;
        self.round_trips += other.round_trips;
        self.round_trip_sum_ns += other.round_trip_sum_ns;
    }

    /// Share of packets that a listener misses: lost on the way or later than a dejitter buffer waits, percent.
    pub fn missed_percent(&self) -> f64 {
        let expected = self.sequence.received + self.sequence.lost;
        if expected == 0 {
            return 100.0;
        }
        (self.sequence.lost + self.too_late) as f64 * 100.0 / expected as f64
    }

    /// Mean round trip of audio, milliseconds, if any was measured.
    pub fn mean_round_trip_ms(&self) -> Option<f64> {
        (self.round_trips > 0)
            .then(|| self.round_trip_sum_ns as f64 / self.round_trips as f64 / NANOS_PER_MS as f64)
    }

    /// Packets missing in the window against one a ptime, allowing one at each edge of each stream.
    pub fn window_missing(&self) -> u64 {
        (self.window_expected.saturating_sub(self.streams)).saturating_sub(self.window_received)
    }
}

/// The parts of an RTP packet that we account (RFC 3550 §5.1). The bench's own reading, for the reason in
/// [`crate::sequence`].
struct RtpView<'a> {
    payload_type: u8,
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
    payload: &'a [u8],
}

impl<'a> RtpView<'a> {
    fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (header, rest) = datagram.split_first_chunk::<HEADER_OCTETS>()?;
        let [flags, kind, s0, s1, t0, t1, t2, t3, c0, c1, c2, c3] = *header;
        if flags >> 6 != 2 {
            return None;
        }
        let mut payload = rest.get(usize::from(flags & 0x0F) * 4..)?;
        if flags & 0x10 != 0 {
            let words = u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]);
            payload = payload.get(4 + usize::from(words) * 4..)?;
        }
        Some(Self {
            payload_type: kind & 0x7F,
            sequence: u16::from_be_bytes([s0, s1]),
            timestamp: u32::from_be_bytes([t0, t1, t2, t3]),
            ssrc: u32::from_be_bytes([c0, c1, c2, c3]),
            payload,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marker::Law;

    const PTIME_NS: u64 = 20_000_000;
    const START: Mono = Mono(1_000_000_000);

    /// Sends `frames` frames and returns, for each index in `back`, that frame `delay_ns` later in a stream of its own
    /// numbering, as an echo does.
    fn echoed(frames: u64, delay_ns: u64, back: impl Fn(u64) -> Option<u64>) -> (StreamAccount, Timings) {
        let mut timings = Timings::default();
        let signal = Signal::new(Law::Pcmu);
        let (mut speaker, mut listener) = (Speaker::new(0xABCD_1234), Listener::new(frames as usize));
        let window = Some(Window { begin: START, end: START + (frames + 100) * PTIME_NS });
        let mut sent = Vec::new();
        for k in 0..frames {
            let mut packet = [0; PACKET_OCTETS];
            let frame = speaker.write_next(&signal, &mut packet);
            speaker.sent(frame, START + k * PTIME_NS);
            sent.push(packet);
            let Some(source) = back(k) else { continue };
            let mut answer = sent[source as usize];
            answer[2..4].copy_from_slice(&(k as u16).to_be_bytes());
            answer[4..8].copy_from_slice(&(k as u32 * 160).to_be_bytes());
            answer[8..12].copy_from_slice(&77_u32.to_be_bytes());
            listener.receive(
                &speaker,
                &signal,
                &answer,
                START + k * PTIME_NS + delay_ns,
                window,
                &mut timings,
            );
        }
        let account = listener.finish(&speaker, window, &mut timings);
        (account, timings)
    }

    #[test]
    fn faithful_echo_has_no_loss_and_the_delay_as_round_trip() {
        let (account, timings) = echoed(500, 7_000_000, Some);
        assert_eq!(account.sequence, SequenceCounts { received: 500, ..Default::default() });
        assert_eq!((account.marked, account.filled, account.audio_lost, account.repeated), (500, 0, 0, 0));
        assert!((timings.round_trip.percentile_ms(50.0) - 7.0).abs() < 0.01);
        assert_eq!(timings.deviations.both.max_ms(), 0.0);
        assert_eq!(account.silent_streams, 0);
    }

    #[test]
    fn audio_lost_inside_the_target_shows_although_no_packet_is_missing() {
        let (account, _) = echoed(500, 0, |k| Some(if k == 300 { 299 } else { k }));
        assert_eq!(account.sequence.lost, 0);
        assert_eq!((account.audio_lost, account.repeated), (1, 1));
    }

    #[test]
    fn stream_without_an_answer_is_silent() {
        let (account, _) = echoed(100, 0, |_| None);
        assert_eq!((account.silent_streams, account.sent), (1, 100));
        assert!(account.window_missing() > 0);
    }

    #[test]
    fn packet_of_another_payload_type_is_foreign() {
        let signal = Signal::new(Law::Pcmu);
        let (mut speaker, mut listener) = (Speaker::new(1), Listener::new(0));
        let mut packet = [0; PACKET_OCTETS];
        speaker.write_next(&signal, &mut packet);
        packet[1] = 101;
        listener.receive(&speaker, &signal, &packet, START, None, &mut Timings::default());
        listener.receive(&speaker, &signal, &packet[..11], START, None, &mut Timings::default());
        assert_eq!(listener.finish(&speaker, None, &mut Timings::default()).foreign, 2);
    }

    #[test]
    fn header_is_read_past_csrc_and_extension() {
        let mut datagram = vec![0x80 | 0x10 | 2, 0, 0, 9, 0, 0, 0, 160, 0, 0, 0, 5];
        datagram.extend([0; 8]); // two CSRC
        datagram.extend([0xBE, 0xDE, 0, 1, 1, 2, 3, 4]);
        datagram.extend([42; 3]);
        let view = RtpView::parse(&datagram).unwrap();
        assert_eq!((view.sequence, view.timestamp, view.ssrc, view.payload), (9, 160, 5, &[42; 3][..]));
        assert!(RtpView::parse(&datagram[..22]).is_none());
    }

    #[test]
    fn new_source_is_accounted_by_itself() {
        let signal = Signal::new(Law::Pcmu);
        let (mut speaker, mut listener) = (Speaker::new(1), Listener::new(0));
        let mut packet = [0; PACKET_OCTETS];
        speaker.write_next(&signal, &mut packet);
        for (ssrc, sequence) in [(1_u32, 10_u16), (1, 11), (2, 5_000), (2, 5_001)] {
            packet[2..4].copy_from_slice(&sequence.to_be_bytes());
            packet[8..12].copy_from_slice(&ssrc.to_be_bytes());
            listener.receive(&speaker, &signal, &packet, START, None, &mut Timings::default());
        }
        let account = listener.finish(&speaker, None, &mut Timings::default());
        assert_eq!((account.ssrc_changes, account.sequence.received, account.sequence.lost), (1, 4, 0));
    }

    proptest::proptest! {
        #[test]
        fn no_datagram_panics(datagram in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let signal = Signal::new(Law::Pcma);
            let (speaker, mut listener) = (Speaker::new(1), Listener::new(0));
            let window = Some(Window { begin: Mono(0), end: START + 1 });
            listener.receive(&speaker, &signal, &datagram, START, window, &mut Timings::default());
            let _ = listener.finish(&speaker, window, &mut Timings::default());
        }
    }
}
