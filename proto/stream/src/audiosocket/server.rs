//! The side that Asterisk connects to, with Asterisk's own rules kept.
//!
//! ```text
//!   Asterisk ── UUID, audio, DTMF ─▶ Server::handle_bytes ──▶ ServerEvent
//!   Asterisk ◀── one frame a write ── Server::write, every 20 ms from the UUID to the hang-up, silence included
//! ```
//!
//! What Asterisk does to a server that is careless (res_audiosocket.c, chan_audiosocket.c): it drops the call when a payload is
//! more than 5 ms behind its header, when audio has no payload, and on any type but hang-up and audio. It has no buffer and no
//! clock, so frames go to the caller as they come. From 20.17, 21.12, 22.7 and 23.1 it starves the caller's sound while we are
//! silent. So [`Server::write`] writes exactly one frame of 20 ms in one piece, and the shell calls it on a clock of its own
//! and hands each piece to one `write`, with TCP_NODELAY.

use std::time::{Duration, Instant};

use crate::provider::{PacedBy, Pacing};

use super::{HEADER_OCTETS, Message, RATES, Rate, Reader, TooLong, append, write_audio};

/// Asterisk holds nothing and plays as it comes: a frame every 20 ms, none ahead.
pub const PACING: Pacing = Pacing { paced_by: PacedBy::Us, send_ahead_ms: 0, provider_holds_ms: Some(0) };
/// How long a connection may be silent before it says which call it is. Where the dialplan has not answered the channel, it never
/// does: it closes.
pub const ID_WITHIN: Duration = Duration::from_secs(5);
/// Our first frame must be out so soon after the UUID.
pub const FIRST_FRAME_WITHIN: Duration = Duration::from_millis(100);
/// Frames of 160 octets in a row, 20 ms apart, that show mu-law behind the type of linear sound: half a second.
pub const MISLABELLED_FRAMES: u32 = 25;
/// Frames by whose pace the rate is judged where the label may lie: 200 ms of 20 ms each, 600 of 60.
const JUDGED_FRAMES: u32 = 10;
/// Judged so often at most; then the label is believed.
const JUDGEMENTS: u32 = 5;
/// How far the pace may be from a rate's, in percent: rates of which a frame could be are a third apart at least.
const PACE_PERCENT: u64 = 15;
/// Between frames.
const FRAME: Duration = Duration::from_millis(20);

/// The sound of a call, both ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Format {
    /// What the frames are labelled.
    pub label: Rate,
    /// Samples a second that they really hold: another number than the label's where an old Asterisk has labelled all `slin` 8 kHz.
    pub hz: u32,
}

impl Format {
    /// All that the dialplan's application speaks, and our silence until something is heard.
    pub const TELEPHONE: Self = Format { label: Rate::Hz8000, hz: 8_000 };

    /// Octets of 20 ms.
    pub const fn frame_octets(self) -> usize {
        self.hz as usize / 50 * 2
    }
}

/// Why a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Asterisk has closed: the call is over. It never says so otherwise.
    Closed,
    /// Closed before it said which call it is: a dialplan without `Answer()`, a probe. Worth a counter, not an alarm (C23).
    Stranger,
    /// Silent for [`ID_WITHIN`].
    NoId,
    /// A hang-up frame, which no Asterisk sends, or an error frame.
    Said(Option<u8>),
    /// No AudioSocket is spoken here.
    TooLong(TooLong),
}

/// What comes from Asterisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerEvent<'a> {
    /// Which call this is. From now on a frame is due every 20 ms.
    Id([u8; 16]),
    /// The format of the call is known: our frames change to it, and so does the sound that follows. Before, both are
    /// [`Format::TELEPHONE`].
    Format(Format),
    /// The caller's sound, little-endian, at the [`Format::hz`] of [`Server::format`].
    Audio(&'a [u8]),
    /// The caller pressed a key.
    Dtmf(u8),
    /// The sound is mu-law under the label of linear sound: the dial string lacks `/c(slin)`. Said once.
    Mislabelled,
    /// A frame that has no place here. Counted.
    Ignored,
    /// Nothing comes after this.
    End(End),
}

/// A piece of sound that is not exactly one frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sound of {len} octets is not one frame of {need}")]
pub struct NotAFrame {
    /// What was given.
    pub len: usize,
    /// 20 ms of the call's format.
    pub need: usize,
}

/// What passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames of sound that were heard.
    pub audio_in: u64,
    /// Frames of sound that were written.
    pub audio_out: u64,
    /// Frames that had no place.
    pub ignored: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Live { format: Option<Format> },
    Ended,
}

/// How fast sound comes that is labelled 8 kHz in frames of another length than 20 ms of it. Old Asterisks label all `slin` so, at
/// whatever rate it is: 640 octets may be 20 ms at 16 kHz, and just as well 40 at 8.
#[derive(Debug, Clone, Copy)]
struct Pace {
    since: Instant,
    /// After the first.
    frames: u32,
    octets: u64,
    judged: u32,
}

impl Pace {
    const fn begin(now: Instant, judged: u32) -> Self {
        Pace { since: now, frames: 0, octets: 0, judged }
    }

    /// Hears a frame; the rate, when it is known.
    fn hear(&mut self, octets: usize, now: Instant) -> Option<u32> {
        self.frames += 1;
        self.octets += octets as u64;
        if self.frames < JUDGED_FRAMES {
            return None;
        }
        let took_us = now.saturating_duration_since(self.since).as_micros().max(1) as u64;
        let measured = self.octets * 1_000_000 / 2 / took_us;
        let fits = |hz: u32| {
            let hz = u64::from(hz);
            // Of whole 10 ms.
            (octets as u64).is_multiple_of(hz / 50) && measured.abs_diff(hz) * 100 <= hz * PACE_PERCENT
        };
        let found = RATES.iter().map(|(_, _, hz)| *hz).find(|hz| fits(*hz));
        // The network has held some back, perhaps.
        *self = Pace::begin(now, self.judged + 1);
        found.or((self.judged >= JUDGEMENTS).then(|| Rate::Hz8000.hz()))
    }
}

/// Frames of 160 octets in a row.
#[derive(Debug, Clone, Copy)]
enum Suspicion {
    None,
    Run { since: Instant, frames: u32 },
    Told,
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    reader: Reader,
    dialog: Dialog,
}

/// All of a server but its reader, which lends out what it reads.
#[derive(Debug)]
struct Dialog {
    state: State,
    pace: Option<Pace>,
    suspicion: Suspicion,
    counters: Counters,
}

impl Server {
    /// A connection that Asterisk has just opened.
    pub fn new(now: Instant) -> Self {
        let state = State::Waiting { until: now + ID_WITHIN };
        let dialog = Dialog { state, pace: None, suspicion: Suspicion::None, counters: Counters::default() };
        Server { reader: Reader::default(), dialog }
    }

    /// What passed.
    pub const fn counters(&self) -> Counters {
        self.dialog.counters
    }

    /// The format, once it is known.
    pub const fn known_format(&self) -> Option<Format> {
        match self.dialog.state {
            State::Live { format } => format,
            _ => None,
        }
    }

    /// What [`Server::write`] expects now.
    pub const fn format(&self) -> Format {
        match self.dialog.state {
            State::Live { format: Some(format) } => format,
            _ => Format::TELEPHONE,
        }
    }

    /// Takes a piece of the connection, however it was cut.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant, mut take: impl FnMut(ServerEvent<'_>)) {
        let Server { reader, dialog } = self;
        if dialog.state == State::Ended {
            return;
        }
        if let Err(error) = reader.handle_bytes(bytes, |message| dialog.handle(message, now, &mut take)) {
            dialog.end(End::TooLong(error), &mut take);
        }
    }

    /// The connection has closed.
    pub fn handle_closed(&mut self, mut take: impl FnMut(ServerEvent<'_>)) {
        let is_stranger = matches!(self.dialog.state, State::Waiting { .. });
        self.dialog.end(if is_stranger { End::Stranger } else { End::Closed }, &mut take);
    }

    /// To be called at [`Server::poll_timeout`].
    pub fn handle_timeout(&mut self, now: Instant, mut take: impl FnMut(ServerEvent<'_>)) {
        if self.poll_timeout().is_some_and(|until| until <= now) {
            self.dialog.end(End::NoId, &mut take);
        }
    }

    /// When [`Server::handle_timeout`] is next wanted.
    pub const fn poll_timeout(&self) -> Option<Instant> {
        match self.dialog.state {
            State::Waiting { until } => Some(until),
            _ => None,
        }
    }

    /// Appends one frame, header and payload in one piece, to be handed to one `write`. Nothing is written before the UUID and
    /// after the end.
    ///
    /// # Errors
    /// [`NotAFrame`]
    pub fn write(&mut self, sound: &[u8], out: &mut Vec<u8>) -> Result<(), NotAFrame> {
        let need = self.format().frame_octets();
        if sound.len() != need {
            return Err(NotAFrame { len: sound.len(), need });
        }
        self.put(out, |room| room.copy_from_slice(sound));
        Ok(())
    }

    /// Appends one frame of silence: what is due when nothing is said.
    pub fn write_silence(&mut self, out: &mut Vec<u8>) {
        self.put(out, |_| {});
    }

    fn put(&mut self, out: &mut Vec<u8>, fill: impl FnOnce(&mut [u8])) {
        if !matches!(self.dialog.state, State::Live { .. }) {
            return;
        }
        let format = self.format();
        let at = out.len();
        out.resize(at + HEADER_OCTETS + format.frame_octets(), 0);
        let written = write_audio(&mut out[at..], format.label, format.frame_octets(), fill);
        debug_assert_eq!(written, Some(out.len() - at));
        self.dialog.counters.audio_out += 1;
    }

    /// Ends the call: the application goes on in the dialplan, the channel hangs up.
    pub fn hangup(&mut self, out: &mut Vec<u8>) {
        if matches!(self.dialog.state, State::Live { .. }) {
            append(out, &Message::Hangup);
        }
        self.dialog.state = State::Ended;
    }
}

impl Dialog {
    fn end(&mut self, end: End, take: &mut impl FnMut(ServerEvent<'_>)) {
        if std::mem::replace(&mut self.state, State::Ended) != State::Ended {
            take(ServerEvent::End(end));
        }
    }

    fn handle(&mut self, message: Message<'_>, now: Instant, take: &mut impl FnMut(ServerEvent<'_>)) {
        match (message, self.state) {
            (_, State::Ended) => {}
            (Message::Id(id), State::Waiting { .. }) => {
                self.state = State::Live { format: None };
                take(ServerEvent::Id(id));
            }
            (Message::Hangup, _) => self.end(End::Said(None), take),
            (Message::Error(code), _) => self.end(End::Said(code), take),
            (Message::Audio { rate, samples }, State::Live { format }) => {
                let format = match format {
                    Some(format) => format,
                    None => match self.judge(rate, samples.len(), now) {
                        None => Format::TELEPHONE,
                        Some(format) => {
                            self.state = State::Live { format: Some(format) };
                            take(ServerEvent::Format(format));
                            format
                        }
                    },
                };
                // A channel keeps its format; at another rate the sound would have another pitch.
                if rate != format.label {
                    return self.ignore(take);
                }
                self.counters.audio_in += 1;
                self.suspect(rate, samples.len(), now, take);
                take(ServerEvent::Audio(samples));
            }
            (Message::Dtmf(digit), State::Live { .. }) => take(ServerEvent::Dtmf(digit)),
            _ => self.ignore(take),
        }
    }

    /// The format of a call by its first frame, or by the pace of its first frames.
    fn judge(&mut self, label: Rate, octets: usize, now: Instant) -> Option<Format> {
        let is_plain = label != Rate::Hz8000 || octets <= Format::TELEPHONE.frame_octets();
        if is_plain {
            return Some(Format { label, hz: label.hz() });
        }
        let Some(pace) = &mut self.pace else {
            self.pace = Some(Pace::begin(now, 0));
            return None;
        };
        pace.hear(octets, now).map(|hz| Format { label, hz })
    }

    fn ignore(&mut self, take: &mut impl FnMut(ServerEvent<'_>)) {
        self.counters.ignored += 1;
        take(ServerEvent::Ignored);
    }

    /// 160 octets are 20 ms of mu-law, but 10 ms of linear sound: their pace tells which.
    fn suspect(&mut self, rate: Rate, octets: usize, now: Instant, take: &mut impl FnMut(ServerEvent<'_>)) {
        let is_suspect = rate == Rate::Hz8000 && octets == 160;
        self.suspicion = match self.suspicion {
            Suspicion::Told => Suspicion::Told,
            _ if !is_suspect => Suspicion::None,
            Suspicion::Run { since, frames } if frames < MISLABELLED_FRAMES => {
                Suspicion::Run { since, frames: frames + 1 }
            }
            Suspicion::Run { since, .. } => {
                let expected = FRAME * MISLABELLED_FRAMES;
                let took = now.saturating_duration_since(since);
                if took >= expected * 4 / 5 && took <= expected * 6 / 5 {
                    take(ServerEvent::Mislabelled);
                    Suspicion::Told
                } else {
                    Suspicion::Run { since: now, frames: 1 }
                }
            }
            Suspicion::None => Suspicion::Run { since: now, frames: 1 },
        };
    }
}
