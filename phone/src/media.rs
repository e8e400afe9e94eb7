//! One call's RTP: a packet each ptime out, on an absolute schedule, and whatever comes in.
//!
//! ```text
//!   play, send_dtmf ──▶ queue ──▶ tick: encode ──▶ socket          handle_said ┐
//!                                                                              ├─▶ Ear
//!   socket ──▶ latch ──▶ receiver ──▶ reorder ──▶ decode ──▶ handle_audio ─────┘
//! ```

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tandem_audio::format::{MAX_PACKET_SAMPLES, MAX_PAYLOAD_OCTETS, SampleRate};
use tandem_audio::tone::Digit;
use tandem_audio::transcode::{Decoder, Encoder};
use tandem_rtp::event::{DigitEvent, EventDetector, EventSender};
use tandem_rtp::jitter::{Placement, Release, ReorderBuffer};
use tandem_rtp::latch::{Latching, SourceLatch};
use tandem_rtp::packet::{HEADER_LEN, Header, Packet, is_rtcp};
use tandem_rtp::receiver::{Receiver, Verdict};
use tandem_rtp::sender::Sender;
use tandem_rtp::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};
use tandem_sdp::Negotiated;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::AbortHandle;
use tokio::time::MissedTickBehavior;

use crate::ear::{Ear, is_audible};
use crate::report::RtpReport;

/// Orders that wait for the media task; it takes them within a ptime, so more than a few mean that it is dead.
const COMMANDS_MAX: usize = 64;
/// The longest datagram that can be RTP of ours.
const DATAGRAM_MAX: usize = 2_048;

/// When something was on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Played {
    /// Its first packet left.
    pub started: Instant,
    /// Its last packet left.
    pub ended: Instant,
}

pub(crate) enum MediaCommand {
    Play { samples: Vec<i16>, done: oneshot::Sender<Played> },
    Digits { digits: Vec<Digit>, done: oneshot::Sender<()> },
    Update(Negotiated),
}

/// What the media task shows to others.
#[derive(Debug)]
pub(crate) struct MediaView {
    ear: Mutex<Ear>,
    report: Mutex<RtpReport>,
    /// Something was heard.
    pub(crate) changed: Notify,
}

impl MediaView {
    pub(crate) fn ear(&self) -> MutexGuard<'_, Ear> {
        self.ear.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self) -> RtpReport {
        *self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A port for RTP that does not speak yet.
#[derive(Debug)]
pub(crate) struct MediaPort {
    socket: UdpSocket,
}

impl MediaPort {
    pub(crate) async fn bind(address: IpAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((address, 0)).await?;
        // Until tokio has seen it writable once, try_send_to would block and lose the first packet.
        socket.writable().await?;
        Ok(MediaPort { socket })
    }

    pub(crate) fn port(&self) -> io::Result<u16> {
        Ok(self.socket.local_addr()?.port())
    }

    /// Starts to speak and to hear.
    pub(crate) fn start(self, negotiated: Negotiated, record: bool) -> Media {
        let view = Arc::new(MediaView {
            ear: Mutex::new(Ear::new(record)),
            report: Mutex::default(),
            changed: Notify::new(),
        });
        let (commands, orders) = mpsc::channel(COMMANDS_MAX);
        let stream = Stream::new(self.socket, negotiated, view.clone());
        let task = tokio::spawn(stream.run(orders)).abort_handle();
        Media { commands, view, task }
    }
}

/// The media of one call; it stops when dropped.
#[derive(Debug)]
pub(crate) struct Media {
    pub(crate) commands: mpsc::Sender<MediaCommand>,
    pub(crate) view: Arc<MediaView>,
    task: AbortHandle,
}

impl Drop for Media {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Media {
    /// Stops sending and hearing; what was heard stays.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

/// Something being played: the samples that are left, and whom to tell.
struct Playing {
    samples: VecDeque<i16>,
    started: Option<Instant>,
    done: oneshot::Sender<Played>,
}

struct Stream {
    socket: UdpSocket,
    view: Arc<MediaView>,
    negotiated: Negotiated,
    // Out.
    encoder: Encoder,
    sender: Sender,
    playing: VecDeque<Playing>,
    keys: EventSender,
    keys_done: Vec<oneshot::Sender<()>>,
    sent: u64,
    late_max: Duration,
    // In.
    latch: SourceLatch,
    receiver: Receiver,
    reorder: ReorderBuffer,
    decoder: Decoder,
    detector: EventDetector,
}

/// What one wake-up is for.
enum Wake {
    Tick(Instant),
    Datagram(usize, SocketAddr),
    Order(Option<MediaCommand>),
    Deadline,
    Nothing,
}

impl Stream {
    fn new(socket: UdpSocket, negotiated: Negotiated, view: Arc<MediaView>) -> Self {
        let codec = negotiated.codec;
        Stream {
            socket,
            view,
            encoder: Encoder::new(SampleRate::Hz8000, codec),
            sender: Sender::new(
                Ssrc(rand::random()),
                payload_type(negotiated.payload_type),
                SequenceNumber(rand::random()),
                Timestamp(rand::random()),
            ),
            playing: VecDeque::new(),
            keys: EventSender::new(negotiated.clock),
            keys_done: Vec::new(),
            sent: 0,
            late_max: Duration::ZERO,
            latch: SourceLatch::new(Latching::Auto, Some(negotiated.remote)),
            receiver: Receiver::new(negotiated.clock),
            reorder: ReorderBuffer::new(MAX_PAYLOAD_OCTETS),
            decoder: Decoder::new(codec, SampleRate::Hz8000),
            detector: EventDetector::new(negotiated.clock),
            negotiated,
        }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<MediaCommand>) {
        let mut ticks = schedule(&self.negotiated);
        let mut datagram = [0; DATAGRAM_MAX];
        loop {
            let deadline = self.deadline();
            let wake = tokio::select! {
                biased;
                due = ticks.tick() => Wake::Tick(due.into_std()),
                received = self.socket.recv_from(&mut datagram) => match received {
                    Ok((len, source)) => Wake::Datagram(len, source),
                    // An ICMP error for an earlier send: the peer is not there yet or not any more.
                    Err(_) => Wake::Nothing,
                },
                order = orders.recv() => Wake::Order(order),
                () = sleep_until(deadline) => Wake::Deadline,
            };
            let now = Instant::now();
            match wake {
                Wake::Tick(due) => self.tick(due, now),
                Wake::Datagram(len, source) => self.handle_datagram(&datagram[..len], source, now),
                Wake::Order(Some(MediaCommand::Update(negotiated))) => {
                    let same_pace = negotiated.ptime == self.negotiated.ptime;
                    self.update(negotiated);
                    if !same_pace {
                        ticks = schedule(&self.negotiated);
                    }
                }
                Wake::Order(Some(MediaCommand::Play { samples, done })) => {
                    self.playing.push_back(Playing { samples: samples.into(), started: None, done });
                }
                Wake::Order(Some(MediaCommand::Digits { digits, done })) => {
                    // The caller has checked that they fit.
                    let _ = digits.into_iter().try_for_each(|digit| self.keys.push(digit));
                    self.keys_done.push(done);
                }
                Wake::Order(None) => return,
                Wake::Deadline => {
                    self.reorder.handle_timeout(now);
                    self.detector.handle_timeout(now);
                    self.drain(now);
                }
                Wake::Nothing => {}
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let deadlines = [self.reorder.poll_timeout(), self.detector.poll_timeout()];
        deadlines.into_iter().flatten().min()
    }

    fn update(&mut self, negotiated: Negotiated) {
        let codec = negotiated.codec;
        if codec != self.negotiated.codec {
            self.encoder = Encoder::new(SampleRate::Hz8000, codec);
            self.decoder = Decoder::new(codec, SampleRate::Hz8000);
        }
        if negotiated.clock != self.negotiated.clock {
            self.keys = EventSender::new(negotiated.clock);
            self.detector = EventDetector::new(negotiated.clock);
            self.receiver.rearm(negotiated.clock);
        }
        if negotiated.remote != self.negotiated.remote && !negotiated.remote.ip().is_unspecified() {
            self.latch.rearm(Latching::Auto, Some(negotiated.remote));
        }
        self.sender.set_payload_type(payload_type(negotiated.payload_type));
        self.negotiated = negotiated;
    }

    // --- out ---

    fn tick(&mut self, due: Instant, now: Instant) {
        let ticks = self.negotiated.codec.ticks(self.negotiated.ptime);
        if !self.negotiated.direction.sends() {
            self.sender.skip(ticks);
            return;
        }
        let mut packet = [0; HEADER_LEN + MAX_PAYLOAD_OCTETS];
        let event_type = self.negotiated.telephone_event_payload_type;
        let event =
            event_type.and_then(|pt| Some((pt, self.keys.next_packet(self.sender.timestamp(), ticks)?)));
        let (header, len) = match event {
            Some((event_type, event)) => {
                packet[HEADER_LEN..HEADER_LEN + event.payload.len()].copy_from_slice(&event.payload);
                let header = self.sender.next_event_header(payload_type(event_type), &event, ticks);
                (header, event.payload.len())
            }
            None => {
                let samples = SampleRate::Hz8000.samples(self.negotiated.ptime);
                let mut frame = [0; 8 * 60];
                self.next_frame(&mut frame[..samples], now);
                let len = self.encoder.encode(&frame[..samples], &mut packet[HEADER_LEN..]);
                (self.sender.next_header(ticks, len), len)
            }
        };
        if self.keys.is_idle() {
            for done in self.keys_done.drain(..) {
                // Nobody may be waiting any more.
                let _ = done.send(());
            }
        }
        if header.write(&mut packet).is_ok() {
            let remote = self.latch.remote().unwrap_or(self.negotiated.remote);
            // A full socket buffer loses the packet, as the network would.
            if self.socket.try_send_to(&packet[..HEADER_LEN + len], remote).is_ok() {
                self.sent += 1;
            }
        }
        self.late_max = self.late_max.max(now.saturating_duration_since(due));
        self.publish();
    }

    /// The next sound to send: what is played, or silence.
    fn next_frame(&mut self, frame: &mut [i16], now: Instant) {
        let mut filled = 0;
        while filled < frame.len() {
            let Some(current) = self.playing.front_mut() else { break };
            current.started.get_or_insert(now);
            let taken = current.samples.len().min(frame.len() - filled);
            for (slot, sample) in frame[filled..].iter_mut().zip(current.samples.drain(..taken)) {
                *slot = sample;
            }
            filled += taken;
            if current.samples.is_empty()
                && let Some(over) = self.playing.pop_front()
            {
                // Nobody may be waiting any more.
                let _ = over.done.send(Played { started: over.started.unwrap_or(now), ended: now });
            }
        }
        if filled > 0 && is_audible(frame) {
            self.view.ear().handle_said(now);
        }
    }

    // --- in ---

    fn handle_datagram(&mut self, datagram: &[u8], source: SocketAddr, now: Instant) {
        if is_rtcp(datagram) {
            return;
        }
        let Ok(packet) = Packet::parse(datagram) else { return };
        let kind = packet.header.payload_type.get();
        let known = kind == self.negotiated.payload_type
            || Some(kind) == self.negotiated.telephone_event_payload_type;
        if !known || !self.latch.handle_packet(source, packet.header.ssrc, now).is_accepted() {
            return;
        }
        let verdict = self.receiver.handle_packet(&packet.header, packet.payload.len(), now);
        if let Verdict::Accepted { sequence, started } = verdict {
            if started {
                self.reorder.reset();
                self.detector.reset();
                self.view.ear().restart();
            }
            let placement = self.reorder.handle_packet(sequence, &packet.header, packet.payload, now);
            if placement == Placement::AfterHeld {
                self.drain(now);
            }
            if matches!(placement, Placement::InOrder | Placement::AfterHeld) {
                hear(
                    &self.negotiated,
                    &mut self.decoder,
                    &mut self.detector,
                    &self.view,
                    &packet.header,
                    packet.payload,
                    now,
                );
            }
        }
        self.drain(now);
    }

    fn drain(&mut self, now: Instant) {
        while let Some(release) = self.reorder.poll_release() {
            if let Release::Packet(held) = release {
                let (decoder, detector) = (&mut self.decoder, &mut self.detector);
                hear(&self.negotiated, decoder, detector, &self.view, &held.header, held.payload, now);
            }
        }
        while let Some(event) = self.detector.poll_event() {
            if let DigitEvent::Began { digit } = event {
                self.view.ear().handle_digit(digit);
            }
        }
        self.publish();
        self.view.changed.notify_waiters();
    }

    fn publish(&self) {
        let stats = self.receiver.stats();
        *self.view.report.lock().unwrap_or_else(PoisonError::into_inner) = RtpReport {
            sent: self.sent,
            received: stats.received,
            lost: stats.lost,
            duplicated: stats.duplicate,
            reordered: stats.reordered,
            jitter_ms: stats.jitter_ms,
            late_max_ms: self.late_max.as_secs_f64() * 1_000.0,
        };
    }
}

/// One packet in order.
fn hear(
    negotiated: &Negotiated,
    decoder: &mut Decoder,
    detector: &mut EventDetector,
    view: &MediaView,
    header: &Header,
    payload: &[u8],
    now: Instant,
) {
    if Some(header.payload_type.get()) == negotiated.telephone_event_payload_type {
        detector.handle_packet(header.timestamp, payload, now);
        return;
    }
    let codec = negotiated.codec;
    let payload = &payload[..payload.len().min(MAX_PAYLOAD_OCTETS)];
    let mut samples = [0; MAX_PACKET_SAMPLES];
    let len = decoder.decode(payload, &mut samples);
    let ticks = codec.ticks_in(payload);
    view.ear().handle_audio(&samples[..len], header.timestamp, ticks, negotiated.clock, now);
}

/// Ticks from now on, each ptime; a late one does not delay those after it.
fn schedule(negotiated: &Negotiated) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(negotiated.ptime.as_duration());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    ticks
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// What was negotiated lies in 0 to 127; the range that RTCP takes is never negotiated by anybody sane.
fn payload_type(number: u8) -> PayloadType {
    PayloadType::new(number).unwrap_or(PayloadType::PCMU)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tandem_audio::format::{Codec, Ptime};
    use tandem_audio::tone::Sine;
    use tandem_sdp::Direction;

    fn towards(port: u16, codec: Codec, ptime: Ptime) -> Negotiated {
        let remote = SocketAddr::from(([127, 0, 0, 1], port));
        Negotiated {
            codec,
            payload_type: codec.static_payload_type().unwrap_or(96),
            clock: codec.clock_rate(),
            ptime,
            telephone_event_payload_type: Some(101),
            comfort_noise_payload_type: None,
            opus: tandem_sdp::negotiate::OpusWishes::default(),
            remote,
            remote_rtcp: remote,
            rtcp_mux: false,
            srtp: None,
            dtls: None,
            direction: Direction::SendRecv,
        }
    }

    /// Two ends that hear each other.
    async fn pair(codec: Codec, ptime: Ptime) -> (Media, Media) {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let (a, b) = (MediaPort::bind(loopback).await.unwrap(), MediaPort::bind(loopback).await.unwrap());
        let (a_port, b_port) = (a.port().unwrap(), b.port().unwrap());
        (a.start(towards(b_port, codec, ptime), true), b.start(towards(a_port, codec, ptime), true))
    }

    async fn play(media: &Media, samples: Vec<i16>) -> Played {
        let (done, played) = oneshot::channel();
        media.commands.send(MediaCommand::Play { samples, done }).await.ok().unwrap();
        played.await.unwrap()
    }

    #[tokio::test]
    async fn a_packet_leaves_each_ptime_whether_or_not_anything_is_played() {
        for (codec, ptime) in [(Codec::Pcmu, Ptime::MS_20), (Codec::L16_16k, Ptime::MS_40)] {
            let (a, b) = pair(codec, ptime).await;
            let mut tone = vec![0; 8_000 / 2];
            Sine::new(440.0, 8_000, SampleRate::Hz8000).fill(&mut tone);
            let played = play(&a, tone).await;
            // 0.5 s: the first packet leaves at its begin, the last one a ptime before its end.
            let expected = Duration::from_millis(500) - ptime.as_duration();
            let error = (played.ended - played.started).abs_diff(expected);
            assert!(error < Duration::from_millis(200), "played for {:?}", played.ended - played.started);
            tokio::time::sleep(Duration::from_millis(100)).await;
            let heard = b.view.ear().heard();
            assert!(heard.packets.len() as u32 >= 500 / ptime.as_ms());
            let loud = heard.samples.iter().filter(|sample| sample.unsigned_abs() > 1_000).count();
            // A sine of 8 000 is above 1 000 for 92 % of the time.
            assert!((3_500..4_000).contains(&loud), "{loud} loud samples");
            assert_eq!(b.view.report().lost, 0);
            assert!(a.view.report().received > 10, "silence flows the other way");
        }
    }

    #[tokio::test]
    async fn keys_arrive_once_each_and_in_order() {
        let (a, b) = pair(Codec::Pcma, Ptime::MS_20).await;
        let digits = "1*#".chars().map(|key| Digit::from_char(key).unwrap()).collect();
        let (done, sent) = oneshot::channel();
        a.commands.send(MediaCommand::Digits { digits, done }).await.ok().unwrap();
        sent.await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(b.view.ear().heard().digits, "1*#");
    }

    #[tokio::test]
    async fn nothing_leaves_while_we_may_not_send() {
        let (a, b) = pair(Codec::Pcmu, Ptime::MS_20).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(b.view.report().received > 0);
        let held = Negotiated { direction: Direction::RecvOnly, ..towards(9, Codec::Pcmu, Ptime::MS_20) };
        a.commands.send(MediaCommand::Update(held)).await.ok().unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let before = b.view.report().received;
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(b.view.report().received, before);
    }
}
