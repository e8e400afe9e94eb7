//! Connections that carry a stream: cut into messages, and closed when they do nothing for too long.
//!
//! Whoever sends half a message has [`PARTIAL_MAX`] for the rest, however slowly octets drip; whoever has no call must be
//! heard (a message or a keep-alive) every [`IDLE_MAX`]. A connection that has never sent anything is the shell's.

use std::time::Instant;

use super::event::Event;
use super::ledger::Wake;
use super::{Door, Endpoint, IDLE_MAX, MAX_CONNECTIONS, PARTIAL_MAX};
use crate::flow::{ConnectionId, Flow};
use crate::framing::{Frame, StreamFramer};
use crate::parse::ParseError;

/// One connection's stream.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    framer: StreamFramer,
    /// When the message began that is not complete.
    partial_since: Option<Instant>,
    /// When a call or something whole was seen last; `None`: nothing has come yet.
    alive: Option<Instant>,
    /// The earliest wake-up queued for it.
    pub(crate) wake: Option<Instant>,
}

impl Stream {
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let partial = self.partial_since.map(|since| since + PARTIAL_MAX);
        [partial, self.alive.map(|alive| alive + IDLE_MAX)].into_iter().flatten().min()
    }
}

impl Endpoint {
    /// False if there are too many connections.
    pub(super) fn open_stream(&mut self, connection: ConnectionId) -> bool {
        let room = self.streams.len() < MAX_CONNECTIONS || self.streams.contains_key(&connection);
        if room {
            self.streams.entry(connection).or_default();
        }
        room
    }

    pub(super) fn handle_stream(
        &mut self,
        bytes: &[u8],
        flow: Flow,
        connection: ConnectionId,
        now: Instant,
        door: &mut Door<'_>,
    ) {
        if !self.open_stream(connection) {
            let why = ParseError::TooManyConnections;
            return self.events.push_back(Event::CloseConnection { connection, why });
        }
        let mut stream = self.streams.remove(&connection).unwrap_or_default();
        let framer = &mut stream.framer;
        framer.feed(bytes);
        let before = framer.buffered();
        loop {
            match framer.next_frame() {
                Ok(Some(Frame::Message(message))) => {
                    if !self.handle_message(message, flow, now, door) {
                        let why = ParseError::Unwelcome;
                        return self.events.push_back(Event::CloseConnection { connection, why });
                    }
                }
                Ok(Some(Frame::Ping)) => self.transmit(flow, b"\r\n".to_vec()),
                Ok(None) => break,
                Err(why) => {
                    self.handle_unparsable(framer.remainder(), flow, why, door);
                    return self.events.push_back(Event::CloseConnection { connection, why });
                }
            }
        }
        // A lone CRLF is a keep-alive too, not half a message.
        let is_partial = framer.remainder().iter().any(|&b| b != b'\r' && b != b'\n');
        let heard_something_whole = framer.buffered() < before || !is_partial;
        if heard_something_whole {
            stream.partial_since = None;
        }
        if heard_something_whole || stream.alive.is_none() {
            stream.alive = Some(now);
        }
        if is_partial && stream.partial_since.is_none() {
            stream.partial_since = Some(now);
        }
        self.streams.insert(connection, stream);
        self.arm(Wake::Connection(connection));
    }

    pub(super) fn wake_connection(&mut self, connection: ConnectionId, now: Instant) {
        let has_call = self.carries_call(connection);
        let Some(stream) = self.streams.get_mut(&connection) else { return };
        if has_call {
            stream.alive = Some(now);
        }
        let why = if stream.partial_since.is_some_and(|since| since + PARTIAL_MAX <= now) {
            ParseError::Slow(PARTIAL_MAX.as_secs())
        } else if stream.alive.is_some_and(|alive| alive + IDLE_MAX <= now) {
            ParseError::Idle(IDLE_MAX.as_secs())
        } else {
            return;
        };
        self.streams.remove(&connection);
        self.events.push_back(Event::CloseConnection { connection, why });
    }
}
