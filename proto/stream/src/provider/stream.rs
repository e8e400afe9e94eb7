//! One call's media at a provider: what all dialects have in common.

use std::time::{Duration, Instant};

use tandem_audio::format::SampleRate;

use super::frame::{Frame, Framer};
use super::ledger::{Ledger, MarksFull};
use super::reorder::{Order, Reorder};
use super::wire::{self, Payload};
use super::{Event, Incoming, Malformed, MediaFormat, Provider, Start, StopReason, Wire};
use crate::twilio::decode_payload;

pub use crate::twilio::MARK_NAME_MAX;

/// How long a provider may take from the handshake to its start. A connection that says nothing for so long is nobody's call.
pub const START_WITHIN: Duration = Duration::from_secs(10);
/// The same in the place of a connection that was lost: the call is up, and a caller waits.
pub const RETAKE_START_WITHIN: Duration = Duration::from_secs(3);
/// Octets of binary sound that are kept when they come before the start: 200 ms at 24 kHz. The oldest go first.
const EARLY_OCTETS_MAX: usize = 9_600;
/// Shortest silence between the timestamps of sound that is a gap: one frame.
const GAP_MS: u64 = 20;

/// What the deployment has asked the provider for, to fall back on where the start is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    /// The rate of linear sound, as in the URL, the NCCO or the dial string. A start that names another is followed.
    pub rate: SampleRate,
    /// Milliseconds of sound in one message, 10 to 1 000, for providers that leave it to us; the dialect's own choice otherwise.
    pub message_ms: Option<u32>,
    /// The call is up already and its connection was lost: [`RETAKE_START_WITHIN`] holds.
    pub is_retake: bool,
}

impl Setup {
    /// This rate, and messages of the length that the dialect likes.
    pub const fn new(rate: SampleRate) -> Self {
        Setup { rate, message_ms: None, is_retake: false }
    }
}

/// A mark that cannot be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MarkError {
    /// The stream has not started, or is over.
    #[error("a mark needs a stream that has started and not stopped")]
    NoStream,
    /// Longer than [`MARK_NAME_MAX`].
    #[error("mark name of {0} octets is longer than {MARK_NAME_MAX}")]
    Name(usize),
    /// Too many wait already.
    #[error(transparent)]
    Full(#[from] MarksFull),
}

/// What passed, and what did not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages of sound that were heard.
    pub audio_in: u64,
    /// Messages of sound that were written.
    pub audio_out: u64,
    /// Octets of sound that came too early and did not fit, or too late.
    pub dropped_octets: u64,
    /// Messages without meaning for us.
    pub ignored: u64,
    /// Messages that could not be read.
    pub malformed: u64,
}

/// What there is between start and stop.
#[derive(Debug)]
struct Live {
    start: Start,
    /// How our sound is written.
    outgoing: MediaFormat,
    framer: Framer,
    ledger: Ledger,
    /// Where the provider's next sound should begin.
    next_ms: Option<u64>,
    /// Something was said since the last clear.
    has_said: bool,
    is_xoff: bool,
    outstanding_clears: u32,
}

#[derive(Debug)]
enum State {
    /// Sound that came before its time.
    Waiting {
        since: Instant,
        until: Instant,
        early: Vec<u8>,
    },
    Live(Live),
    Stopped,
}

/// See the module of the providers.
#[derive(Debug)]
pub struct MediaStream {
    provider: &'static Provider,
    wire: Box<dyn Wire>,
    setup: Setup,
    state: State,
    reorder: Reorder,
    counters: Counters,
}

impl MediaStream {
    /// A provider's connection, just upgraded.
    pub fn new(provider: &'static Provider, mut setup: Setup, now: Instant) -> Self {
        setup.message_ms = setup.message_ms.map(|ms| ms.clamp(10, 1_000));
        let within = if setup.is_retake { RETAKE_START_WITHIN } else { START_WITHIN };
        MediaStream {
            provider,
            wire: (provider.wire)(),
            setup,
            state: State::Waiting { since: now, until: now + within, early: Vec::new() },
            reorder: Reorder::default(),
            counters: Counters::default(),
        }
    }

    /// Whose dialect this is.
    pub const fn provider(&self) -> &'static Provider {
        self.provider
    }

    /// What passed.
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// What the provider said at the start, between start and stop.
    pub const fn start(&self) -> Option<&Start> {
        match &self.state {
            State::Live(live) => Some(&live.start),
            _ => None,
        }
    }

    /// The format of the caller's sound, between start and stop.
    pub fn format(&self) -> Option<MediaFormat> {
        self.start().map(|start| start.format)
    }

    /// The format of ours, between start and stop.
    pub fn outgoing(&self) -> Option<MediaFormat> {
        self.format().map(|format| self.provider.outgoing.unwrap_or(format))
    }

    /// Milliseconds of sound that wait to become a whole message.
    pub fn waiting_ms(&self) -> u64 {
        match &self.state {
            State::Live(live) => (live.framer.waiting() / live.outgoing.octets_per_ms()) as u64,
            _ => 0,
        }
    }

    /// Milliseconds of the agent's sound that the caller has heard since the stream began, as far as can be said.
    pub fn heard_ms(&self, now: Instant) -> u64 {
        if let State::Live(live) = &self.state { live.ledger.heard_ms(now) } else { 0 }
    }

    /// Milliseconds of sound that may be sent now, so that never more than the provider's send-ahead is under way. 0 while it
    /// says stop, or when it has stopped playing.
    pub fn room_ms(&self, now: Instant) -> u64 {
        match &self.state {
            State::Live(live) if !live.is_xoff && !live.ledger.is_stalled(now) => {
                let waiting = live.framer.waiting() / live.outgoing.octets_per_ms();
                let under_way = live.ledger.ahead_ms(now) + waiting as u64;
                u64::from(self.provider.pacing.send_ahead_ms).saturating_sub(under_way)
            }
            _ => 0,
        }
    }

    /// Whether all that was said has been heard: the provider has echoed every mark, the clock has passed the rest. False for a
    /// provider that has stopped playing.
    pub fn is_heard(&self, now: Instant) -> bool {
        match &self.state {
            State::Live(live) => live.framer.waiting() == 0 && live.ledger.is_settled(now),
            _ => true,
        }
    }

    /// Takes a text message. Sound in it is decoded into `scratch`, of [`super::SCRATCH_MIN`] octets at least; 20 ms of the
    /// format are a good size.
    pub fn handle_text(
        &mut self,
        text: &str,
        now: Instant,
        scratch: &mut [u8],
        mut take: impl FnMut(Event<'_>),
    ) {
        if matches!(self.state, State::Stopped) {
            return self.ignore(&mut take);
        }
        let incoming = match self.wire.read(text, &self.setup) {
            Ok(incoming) => incoming,
            Err(error) => return self.refuse(error, &mut take),
        };
        match (incoming, &mut self.state) {
            (Incoming::Connected, state) => {
                if let State::Waiting { since, until, .. } = state
                    && !self.setup.is_retake
                {
                    *until = *since + self.provider.start_within;
                }
                take(Event::Connected);
            }
            (Incoming::Start(start), State::Waiting { .. }) => self.begin(start, &mut take),
            (Incoming::Refused(error), State::Waiting { .. }) => {
                self.stop(StopReason::Format(error), &mut take)
            }
            (Incoming::Audio(payload), State::Live(_)) => self.hear_base64(&payload, scratch, &mut take),
            (Incoming::Dtmf { digit, duration_ms }, State::Live(_)) => {
                take(Event::Dtmf { digit, duration_ms })
            }
            (Incoming::Mark(name), State::Live(live)) => {
                let is_ours = wire::serial(&name).is_some_and(|serial| {
                    live.ledger
                        .handle_echo(serial, now, |name, heard_ms| take(Event::Mark { name, heard_ms }))
                });
                if !is_ours {
                    self.ignore(&mut take);
                }
            }
            (Incoming::Cleared, State::Live(live)) if live.outstanding_clears > 0 => {
                live.outstanding_clears -= 1;
                take(Event::Cleared { outstanding: live.outstanding_clears });
            }
            (Incoming::Xoff, State::Live(live)) => {
                live.is_xoff = true;
                take(Event::Xoff);
            }
            (Incoming::Xon, State::Live(live)) => {
                live.is_xoff = false;
                take(Event::Xon);
            }
            (Incoming::Complaint(text), _) => take(Event::Complaint(bounded(&text))),
            (Incoming::Stop(reason), _) => {
                self.stop(StopReason::Said(bounded(&reason).to_owned()), &mut take);
            }
            _ => self.ignore(&mut take),
        }
    }

    /// Takes a binary message.
    pub fn handle_binary(&mut self, sound: &[u8], mut take: impl FnMut(Event<'_>)) {
        if !self.wire.hears_binary() {
            return self.refuse(Malformed::Binary(sound.len()), &mut take);
        }
        match &mut self.state {
            State::Waiting { early, .. } => {
                early.extend_from_slice(sound);
                // In whole samples, whatever their size will turn out to be.
                let over = early.len().saturating_sub(EARLY_OCTETS_MAX).next_multiple_of(2).min(early.len());
                early.drain(..over);
                self.counters.dropped_octets += over as u64;
            }
            State::Live(_) => self.hear(sound, None, &mut take),
            State::Stopped => self.ignore(&mut take),
        }
    }

    /// The connection has closed.
    pub fn handle_closed(&mut self, mut take: impl FnMut(Event<'_>)) {
        if !matches!(self.state, State::Stopped) {
            self.stop(StopReason::RemoteClosed, &mut take);
        }
    }

    /// To be called at [`MediaStream::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Instant, mut take: impl FnMut(Event<'_>)) {
        match &mut self.state {
            State::Waiting { until, .. } if *until <= now => self.stop(StopReason::NoStart, &mut take),
            State::Live(live) => {
                live.ledger.handle_timeout(now, |name, heard_ms| take(Event::Mark { name, heard_ms }));
            }
            _ => {}
        }
    }

    /// When [`MediaStream::handle_timeout`] is next wanted.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Waiting { until, .. } => Some(*until),
            State::Live(live) => live.ledger.poll_timeout(),
            State::Stopped => None,
        }
    }

    /// Says the agent's sound, in the [`MediaStream::outgoing`] format and however it was cut; appends what has become whole messages, and marks of
    /// our own among them. False when there is no stream to say it in.
    pub fn audio(&mut self, sound: &[u8], now: Instant, out: &mut Vec<u8>) -> bool {
        let State::Live(live) = &mut self.state else { return false };
        let Live { outgoing, framer, ledger, has_said, .. } = live;
        let mut say = Saying { wire: &mut *self.wire, ledger, format: *outgoing, now, out };
        framer.push(sound, |frame| {
            *has_said = true;
            self.counters.audio_out += 1;
            say.say(frame);
        });
        true
    }

    /// The utterance is over: appends what waits, padded, and a mark.
    pub fn end_utterance(&mut self, now: Instant, out: &mut Vec<u8>) {
        let State::Live(live) = &mut self.state else { return };
        let Live { outgoing, framer, ledger, has_said, .. } = live;
        let mut say = Saying { wire: &mut *self.wire, ledger, format: *outgoing, now, out };
        framer.flush(|frame| {
            *has_said = true;
            self.counters.audio_out += 1;
            say.say(frame);
        });
        say.mark(true);
    }

    /// Asks to be told when the sound said before has been heard ([`Event::Mark`]). A mark in the midst of a message leaves after
    /// it, so an utterance must be ended once there is no more of it.
    ///
    /// # Errors
    /// [`MarkError`]
    pub fn mark(&mut self, name: &str, now: Instant, out: &mut Vec<u8>) -> Result<(), MarkError> {
        let State::Live(live) = &mut self.state else { return Err(MarkError::NoStream) };
        if name.len() > MARK_NAME_MAX {
            return Err(MarkError::Name(name.len()));
        }
        let Live { outgoing, framer, ledger, .. } = live;
        ledger.want(name, framer.waiting())?;
        Saying { wire: &mut *self.wire, ledger, format: *outgoing, now, out }.mark(false);
        Ok(())
    }

    /// Drops what was said and not heard, and hands out the agent's marks among it; returns the heard milliseconds. Where nothing
    /// was said since the last clear, nothing is written (C12).
    pub fn clear(&mut self, now: Instant, out: &mut Vec<u8>, flushed: impl FnMut(&str)) -> u64 {
        let State::Live(live) = &mut self.state else { return 0 };
        live.framer.clear();
        if std::mem::take(&mut live.has_said) {
            self.wire.write_clear(out);
            live.outstanding_clears += u32::from(self.provider.confirms_clear);
        }
        live.ledger.clear(now, flushed)
    }

    /// Answers the call; false where the protocol has no word for it.
    pub fn answer(&mut self, out: &mut Vec<u8>) -> bool {
        matches!(self.state, State::Live(_)) && self.wire.write_answer(out)
    }

    /// Hangs up; false where the protocol has no word for it: close the connection, and hang up by the provider's REST interface.
    pub fn hangup(&mut self, out: &mut Vec<u8>) -> bool {
        matches!(self.state, State::Live(_)) && self.wire.write_hangup(out)
    }

    /// We close the connection: whatever still comes is ignored (C8).
    pub fn close(&mut self) {
        self.state = State::Stopped;
    }

    fn begin(&mut self, start: Start, take: &mut impl FnMut(Event<'_>)) {
        let format = self.provider.outgoing.unwrap_or(start.format);
        let live = Live {
            outgoing: format,
            framer: Framer::new(self.wire.frame_rule(format, &self.setup)),
            ledger: Ledger::new(format.octets_per_ms(), self.provider.receipts),
            next_ms: None,
            has_said: false,
            is_xoff: false,
            outstanding_clears: 0,
            start,
        };
        take(Event::Start(&live.start));
        if let State::Waiting { early, .. } = std::mem::replace(&mut self.state, State::Live(live))
            && !early.is_empty()
        {
            self.hear(&early, None, take);
        }
    }

    fn stop(&mut self, reason: StopReason, take: &mut impl FnMut(Event<'_>)) {
        self.reorder.give_up();
        while !self.reorder.is_empty() {
            self.hear_held(take);
            self.reorder.give_up();
        }
        self.state = State::Stopped;
        take(Event::Stop(reason));
    }

    fn ignore(&mut self, take: &mut impl FnMut(Event<'_>)) {
        self.counters.ignored += 1;
        take(Event::Ignored);
    }

    fn refuse(&mut self, error: Malformed, take: &mut impl FnMut(Event<'_>)) {
        self.counters.malformed += 1;
        take(Event::Malformed(error));
    }

    fn hear_base64(&mut self, payload: &Payload<'_>, scratch: &mut [u8], take: &mut impl FnMut(Event<'_>)) {
        if payload.is_outbound {
            return self.ignore(take);
        }
        let Some(format) = self.format() else { return };
        let text: &str = &payload.base64;
        let padding = text.bytes().rev().take_while(|octet| *octet == b'=').count();
        let octets = (text.len() / 4 * 3).saturating_sub(padding);
        // Pieces of whole groups and whole samples.
        let len = scratch.len() / super::SCRATCH_MIN * super::SCRATCH_MIN;
        let scratch = &mut scratch[..len];
        if len == 0 || base64_simd::STANDARD.check(text.as_bytes()).is_err() {
            return self.refuse(Malformed::Base64(text.len()), take);
        }
        if !octets.is_multiple_of(format.sample_octets()) {
            return self.refuse(Malformed::HalfSample(octets), take);
        }
        let order = match payload.chunk {
            Some(chunk) if self.wire.reorders() => self.reorder.accept(chunk),
            _ => Order::Now,
        };
        match order {
            Order::Now => {
                let mut timestamp_ms = payload.timestamp_ms;
                // Checked above, so that nothing is left to go wrong.
                let _ = decode_payload(text, scratch, |piece| {
                    self.hear_piece(piece, timestamp_ms, take);
                    let ms = (piece.len() / format.octets_per_ms()) as u64;
                    timestamp_ms = timestamp_ms.map(|at| at.saturating_add(ms));
                });
                self.counters.audio_in += 1;
            }
            Order::Early => {
                self.reorder.hold(payload.chunk.unwrap_or_default(), payload.timestamp_ms, |sound| {
                    let _ = decode_payload(text, scratch, |piece| sound.extend_from_slice(piece));
                });
            }
            Order::Late => {
                self.counters.dropped_octets += octets as u64;
                return self.ignore(take);
            }
        }
        self.hear_held(take);
    }

    fn hear_held(&mut self, take: &mut impl FnMut(Event<'_>)) {
        while let Some(held) = self.reorder.poll() {
            self.hear(&held.sound, held.timestamp_ms, take);
            self.reorder.recycle(held);
        }
    }

    /// Hears a whole message.
    fn hear(&mut self, sound: &[u8], timestamp_ms: Option<u64>, take: &mut impl FnMut(Event<'_>)) {
        let Some(format) = self.format() else { return };
        if !sound.len().is_multiple_of(format.sample_octets()) {
            return self.refuse(Malformed::HalfSample(sound.len()), take);
        }
        self.counters.audio_in += 1;
        self.hear_piece(sound, timestamp_ms, take);
    }

    fn hear_piece(&mut self, sound: &[u8], position_ms: Option<u64>, take: &mut impl FnMut(Event<'_>)) {
        let State::Live(live) = &mut self.state else { return };
        let gap_ms = match (position_ms, live.next_ms) {
            (Some(at), Some(next)) => Some(at.saturating_sub(next)).filter(|gap| *gap >= GAP_MS).unwrap_or(0),
            _ => 0,
        };
        let ms = (sound.len() / live.start.format.octets_per_ms()) as u64;
        live.next_ms = position_ms.map(|at| at.saturating_add(ms));
        if !sound.is_empty() {
            take(Event::Audio { sound, position_ms, gap_ms });
        }
    }
}

/// Everything that a message of ours touches.
struct Saying<'a> {
    wire: &'a mut dyn Wire,
    ledger: &'a mut Ledger,
    format: MediaFormat,
    now: Instant,
    out: &'a mut Vec<u8>,
}

impl Saying<'_> {
    fn say(&mut self, frame: Frame<'_>) {
        let at_ms = self.ledger.wire() / self.format.octets_per_ms() as u64;
        self.wire.write_audio(frame, at_ms, self.out);
        self.ledger.sent(frame.octets().len(), frame.padding(), self.now);
        self.mark(false);
    }

    fn mark(&mut self, is_end: bool) {
        while let Some(serial) = self.ledger.poll_mark(is_end, self.now) {
            self.wire.write_mark(serial, self.out);
        }
    }
}

/// What a provider says in free text, cut.
fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(256)]
}
