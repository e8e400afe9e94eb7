//! Telephone-events: DTMF in RTP (RFC 4733), in and out.
//!
//! ```text
//!   0                   1                   2                   3
//!  |     event     |E|R| volume    |          duration             |
//! ```
//!
//! All packets of one key have the timestamp at which it was pressed; the duration grows, and the last packet, with E set, is sent three
//! times. [`EventDetector`] tells keys apart by that timestamp alone, so a lost first packet, a missing marker and lost
//! ends cost nothing: one packet of the twelve or so of a key is enough, and no key is told twice.

use std::time::{Duration, Instant};

use tandem_audio::format::ClockRate;
use tandem_audio::tone::Digit;

use crate::units::Timestamp;

/// Octets of one event in a payload.
pub const EVENT_LEN: usize = 4;
/// A key whose packets stopped without an end has ended. Ends may be lost, but packets come each 20 to 60 ms.
const KEY_SILENCE: Duration = Duration::from_millis(200);
/// A timestamp so far back (in milliseconds) is not a late packet but a sender that set its clock anew.
const MAX_LATE_MS: u32 = 5_000;
/// A long key is cut in segments of this many ticks (RFC 4733 §2.5.1.3).
const SEGMENT_TICKS: u32 = 0xFFFF;
/// How often the end is sent (RFC 4733 §2.5.1.4).
const END_REPEATS: u8 = 3;
/// Volume of the keys that we send: −10 dBm0.
const VOLUME: u8 = 10;
/// Keys that wait to be sent. More than a caller's menu asks for; further ones are refused.
pub const MAX_QUEUED_DIGITS: usize = 64;

/// One event as it is in a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TelephoneEvent {
    /// Event code: 0–15 are the keys of a telephone, 16 is a hook flash.
    pub event: u8,
    /// The event has ended.
    pub end: bool,
    /// Power in −dBm0, 0 to 63.
    pub volume: u8,
    /// Ticks since the timestamp of the packet.
    pub duration: u16,
}

/// The payload is no telephone-event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("telephone-event of {0} octets is shorter than 4")]
pub struct EventError(pub usize);

impl TelephoneEvent {
    /// Reads the first event of a payload; RFC 4733 has one a packet.
    ///
    /// # Errors
    /// [`EventError`] when the payload is too short.
    pub fn parse(payload: &[u8]) -> Result<Self, EventError> {
        let Some(&[event, flags, d0, d1]) = payload.first_chunk::<EVENT_LEN>() else {
            return Err(EventError(payload.len()));
        };
        Ok(Self {
            event,
            end: flags & 0x80 != 0,
            volume: flags & 0x3F,
            duration: u16::from_be_bytes([d0, d1]),
        })
    }

    /// The event as it goes on the wire.
    pub const fn to_octets(self) -> [u8; EVENT_LEN] {
        let [d0, d1] = self.duration.to_be_bytes();
        [self.event, if self.end { 0x80 } else { 0 } | (self.volume & 0x3F), d0, d1]
    }

    /// The key, if it is one.
    pub const fn digit(self) -> Option<Digit> {
        Digit::from_event(self.event)
    }
}

/// What a caller does with a key. Each key gives one `Began` and then one `Ended`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DigitEvent {
    /// Pressed.
    Began {
        /// Which.
        digit: Digit,
    },
    /// Released, or its packets stopped.
    Ended {
        /// Which.
        digit: Digit,
        /// How long it was down, as far as the packets told.
        duration_ms: u32,
    },
}

#[derive(Debug, Clone, Copy)]
struct Pressed {
    digit: Digit,
    /// Timestamp of the current segment.
    timestamp: Timestamp,
    /// Ticks of the segments before it.
    earlier_ticks: u32,
    /// Ticks of this segment.
    ticks: u32,
    last_arrival: Instant,
}

/// Most events that wait between two drains: the end of one key, the begin and the end of the next.
const MAX_PENDING: usize = 3;

/// Hears the keys of one inbound stream.
#[derive(Debug, Clone)]
pub struct EventDetector {
    clock: ClockRate,
    pressed: Option<Pressed>,
    /// Timestamp of the newest key that ended.
    ended: Option<Timestamp>,
    pending: [Option<DigitEvent>; MAX_PENDING],
    ignored: u64,
}

impl EventDetector {
    /// A detector; `clock` is that of the negotiated telephone-event (8 000 beside narrow-band codecs).
    pub const fn new(clock: ClockRate) -> Self {
        Self { clock, pressed: None, ended: None, pending: [None; MAX_PENDING], ignored: 0 }
    }

    /// Packets that were no key: malformed, other events, and late ones of keys that have ended (two of each key's three ends among them).
    pub const fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Takes the payload of a packet of the telephone-event type. Drain [`EventDetector::poll_event`] afterwards.
    pub fn handle_packet(&mut self, timestamp: Timestamp, payload: &[u8], now: Instant) {
        let Ok(event) = TelephoneEvent::parse(payload) else {
            self.ignored += 1;
            return;
        };
        let Some(digit) = event.digit() else {
            self.ignored += 1;
            return;
        };
        let newest = self.pressed.map(|pressed| pressed.timestamp).or(self.ended);
        let behind = newest.map_or(0, |newest| newest.distance_from(timestamp));
        let late = behind > 0 && self.clock.ticks_to_ms(behind.unsigned_abs()) < MAX_LATE_MS;
        if late || (self.pressed.is_none() && self.ended == Some(timestamp)) {
            self.ignored += 1;
            return;
        }

        let ticks = u32::from(event.duration);
        match &mut self.pressed {
            Some(pressed) if pressed.timestamp == timestamp => {
                pressed.ticks = pressed.ticks.max(ticks);
                pressed.last_arrival = now;
            }
            Some(pressed) if pressed.digit == digit && pressed.timestamp.plus(SEGMENT_TICKS) == timestamp => {
                pressed.timestamp = timestamp;
                pressed.earlier_ticks = pressed.earlier_ticks.saturating_add(SEGMENT_TICKS);
                pressed.ticks = ticks;
                pressed.last_arrival = now;
            }
            _ => {
                self.end_pressed();
                self.pressed = Some(Pressed { digit, timestamp, earlier_ticks: 0, ticks, last_arrival: now });
                self.push(DigitEvent::Began { digit });
            }
        }
        if event.end {
            self.end_pressed();
        }
    }

    /// When a key whose end is lost counts as released.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.pressed.map(|pressed| pressed.last_arrival + KEY_SILENCE)
    }

    /// Releases a key whose end is lost. Drain [`EventDetector::poll_event`] afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.poll_timeout().is_some_and(|deadline| deadline <= now) {
            self.end_pressed();
        }
    }

    /// What happened, oldest first.
    pub fn poll_event(&mut self) -> Option<DigitEvent> {
        let first = self.pending[0].take()?;
        self.pending.rotate_left(1);
        Some(first)
    }

    /// A new stream begins: its timestamps have nothing to do with those before. A key that was down is released.
    pub fn reset(&mut self) {
        self.end_pressed();
        self.ended = None;
    }

    fn end_pressed(&mut self) {
        if let Some(pressed) = self.pressed.take() {
            self.ended = Some(pressed.timestamp);
            let ticks = pressed.earlier_ticks.saturating_add(pressed.ticks);
            self.push(DigitEvent::Ended { digit: pressed.digit, duration_ms: self.clock.ticks_to_ms(ticks) });
        }
    }

    /// Undrained events beyond the bound push out the oldest.
    fn push(&mut self, event: DigitEvent) {
        if let Some(free) = self.pending.iter_mut().find(|slot| slot.is_none()) {
            *free = Some(event);
        } else {
            self.pending.rotate_left(1);
            self.pending[MAX_PENDING - 1] = Some(event);
        }
    }
}

/// One packet to send in place of sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventPacket {
    /// When the key was pressed, in media time.
    pub timestamp: Timestamp,
    /// The first packet of the key.
    pub marker: bool,
    /// What it carries.
    pub payload: [u8; EVENT_LEN],
}

/// The queue of keys to send is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_QUEUED_DIGITS} digits wait to be sent already")]
pub struct QueueFull;

#[derive(Debug, Clone, Copy)]
enum Sending {
    Idle,
    /// The key is down since `timestamp`.
    Key {
        digit: Digit,
        timestamp: Timestamp,
        ticks: u32,
    },
    /// The end is sent `left` times more.
    Ending {
        timestamp: Timestamp,
        payload: [u8; EVENT_LEN],
        left: u8,
    },
    /// So many ticks until the next key may begin.
    Pause {
        ticks_left: u32,
    },
}

/// Sends keys on one outbound stream, one after the other.
#[derive(Debug, Clone)]
pub struct EventSender {
    /// Elsewhere: most packets find it empty.
    queue: Box<[Option<Digit>; MAX_QUEUED_DIGITS]>,
    first: usize,
    count: usize,
    state: Sending,
    key_ticks: u32,
    pause_ticks: u32,
}

impl EventSender {
    /// How long a key is down, unless said otherwise. ITU-T Q.24 asks a receiver to accept 40 ms; most senders use 100.
    pub const DEFAULT_KEY_MS: u32 = 100;
    /// Pause between keys, unless said otherwise.
    pub const DEFAULT_PAUSE_MS: u32 = 60;

    /// A sender with the default lengths.
    pub fn new(clock: ClockRate) -> Self {
        Self::with_lengths(clock, Self::DEFAULT_KEY_MS, Self::DEFAULT_PAUSE_MS)
    }

    /// A sender whose keys are down for `key_ms` (limited to 40 … 5 000), with `pause_ms` (40 … 5 000) between them.
    pub fn with_lengths(clock: ClockRate, key_ms: u32, pause_ms: u32) -> Self {
        let ticks_per_ms = clock.hz() / 1_000;
        // A key of more than 65 535 ticks would have to be cut in segments; at 48 kHz that is 1.3 s.
        let key_ticks = limit_ms(key_ms) * ticks_per_ms;
        Self {
            queue: Box::new([None; MAX_QUEUED_DIGITS]),
            first: 0,
            count: 0,
            state: Sending::Idle,
            key_ticks: if key_ticks > SEGMENT_TICKS { SEGMENT_TICKS } else { key_ticks },
            pause_ticks: limit_ms(pause_ms) * ticks_per_ms,
        }
    }

    /// Queues a key.
    ///
    /// # Errors
    /// [`QueueFull`] when [`MAX_QUEUED_DIGITS`] wait already.
    pub fn push(&mut self, digit: Digit) -> Result<(), QueueFull> {
        if self.count == MAX_QUEUED_DIGITS {
            return Err(QueueFull);
        }
        self.queue[(self.first + self.count) % MAX_QUEUED_DIGITS] = Some(digit);
        self.count += 1;
        Ok(())
    }

    /// True when nothing is being sent and nothing waits.
    pub const fn is_idle(&self) -> bool {
        matches!(self.state, Sending::Idle) && self.count == 0
    }

    /// Forgets keys that wait; one that is down is ended properly.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// Called once for each packet that is due: `timestamp` is the stream's media time, `ticks` the length of a packet. `Some`: send
    /// this in place of sound; `None`: send sound.
    pub fn next_packet(&mut self, timestamp: Timestamp, ticks: u32) -> Option<EventPacket> {
        if let Sending::Pause { ticks_left } = self.state {
            self.state = match ticks_left.saturating_sub(ticks) {
                0 => Sending::Idle,
                ticks_left => Sending::Pause { ticks_left },
            };
            return None;
        }
        let mut marker = false;
        if matches!(self.state, Sending::Idle) {
            let digit = self.pop()?;
            self.state = Sending::Key { digit, timestamp, ticks: 0 };
            marker = true;
        }
        match self.state {
            Sending::Key { digit, timestamp, ticks: before } => {
                let now = before.saturating_add(ticks).min(self.key_ticks);
                let end = now == self.key_ticks;
                let event =
                    TelephoneEvent { event: digit.event(), end, volume: VOLUME, duration: now as u16 };
                let payload = event.to_octets();
                self.state = if end {
                    Sending::Ending { timestamp, payload, left: END_REPEATS - 1 }
                } else {
                    Sending::Key { digit, timestamp, ticks: now }
                };
                Some(EventPacket { timestamp, marker, payload })
            }
            Sending::Ending { timestamp, payload, left } => {
                self.state = if left > 1 {
                    Sending::Ending { timestamp, payload, left: left - 1 }
                } else {
                    Sending::Pause { ticks_left: self.pause_ticks }
                };
                Some(EventPacket { timestamp, marker, payload })
            }
            Sending::Idle | Sending::Pause { .. } => None,
        }
    }

    fn pop(&mut self) -> Option<Digit> {
        self.count = self.count.checked_sub(1)?;
        let digit = self.queue[self.first].take();
        self.first = (self.first + 1) % MAX_QUEUED_DIGITS;
        digit
    }
}

const fn limit_ms(ms: u32) -> u32 {
    if ms < 40 {
        40
    } else if ms > 5_000 {
        5_000
    } else {
        ms
    }
}

#[cfg(test)]
mod tests;
