//! The core's links to built-in voice agents: one TCP connection for all calls of this core.
//!
//! ```text
//!   sessions with output ──ready, in turns──▶ one stage ──one write a turn──▶ ring
//!   ring ──▶ Client::handle_bytes ──frame, by its call's number──▶ session
//! ```
//!
//! A link is dialled when its first call needs it and kept; when it is lost, every call on it is told and ends as with a
//! WebSocket that breaks, and it is dialled again ([`Client`] says when).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tandem_stream::link::{BODY_MAX, Client, HEADER_OCTETS, Message};

use super::{Leg, Slot, Worker, owner};
use crate::mailbox::SessionKey;
use crate::ring::{Received, SocketId};

/// Links that a core keeps: one an agent's address and token, and there is one built-in agent in most places.
const LINKS_MAX: usize = 8;

/// A link that is down and that no call has wanted for so long is forgotten.
const KEPT: Duration = Duration::from_secs(60);

/// What one call may write before the others have their turn: the longest frame.
const SHARE: usize = HEADER_OCTETS + BODY_MAX;

/// Bits of a call's number on its link that are the session's place; the others are of its generation, so that a frame for a
/// call that is over does not reach the next one in its place.
const INDEX_BITS: u32 = 20;

/// Sessions that a core can tell apart on a link.
pub(super) const SESSIONS_MAX: usize = 1 << INDEX_BITS;

fn call_number(key: SessionKey) -> u32 {
    key.generation << INDEX_BITS | key.index & ((1 << INDEX_BITS) - 1)
}

/// One link.
pub(super) struct Link {
    address: SocketAddr,
    token: Vec<u8>,
    client: Client,
    socket: Option<SocketId>,
    /// Of the connection: completions of an earlier one are not taken for this one's.
    generation: u32,
    /// Sessions that have something to write, each once.
    ready: VecDeque<u32>,
    used_at: Instant,
}

/// The token is a secret: it is not shown.
impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Link {
    /// It carries calls.
    pub(super) fn is_up(&self) -> bool {
        self.client.is_up()
    }
}

impl Worker {
    /// Puts a session on the link to this agent.
    pub(super) fn join_link(
        &mut self,
        key: SessionKey,
        address: SocketAddr,
        token: &[u8],
        now: Instant,
    ) -> Result<(), String> {
        let known = self.links.iter().find(|(_, link)| link.address == address && link.token == token);
        let index = match known.map(|(index, _)| index) {
            Some(index) => index,
            None if self.links.len() >= LINKS_MAX => {
                return Err(format!("this core has links to {LINKS_MAX} agents already"));
            }
            None => self.links.insert(Link {
                address,
                token: token.to_owned(),
                client: Client::new(token.to_owned(), now),
                socket: None,
                generation: 0,
                ready: VecDeque::with_capacity(self.sessions_max),
                used_at: now,
            }),
        };
        let link = &mut self.links[index];
        link.used_at = now;
        link.client.hurry(now);
        let slot = &mut self.sessions[key.index as usize];
        slot.link = Some(index);
        if let Some(stream) = slot.session.link_mut() {
            stream.set_call(call_number(key));
        }
        if link.client.is_up() {
            slot.session.handle_connected(now);
        }
        Ok(())
    }

    fn link(&mut self, key: SessionKey) -> Option<&mut Link> {
        self.links.get_mut(key.index as usize).filter(|link| link.generation == key.generation)
    }

    pub(super) fn handle_link_connected(&mut self, key: SessionKey, now: Instant) {
        if let Some(link) = self.link(key) {
            link.client.handle_connected(now);
        }
    }

    pub(super) fn handle_link_ended(
        &mut self,
        key: SessionKey,
        error: Option<&std::io::Error>,
        now: Instant,
    ) {
        let Some(link) = self.link(key) else { return };
        let what = match link.client.is_up() {
            true => "closed the link",
            false => "could not be connected",
        };
        let reason = match error {
            Some(error) => format!("{what}: {error}"),
            None => what.to_owned(),
        };
        self.lose_link(key.index as usize, &reason, now);
    }

    pub(super) fn handle_link_bytes(&mut self, key: SessionKey, data: Received, now: Instant) {
        let Self { ring, links, sessions, touched, .. } = self;
        let live = links.get_mut(key.index as usize).filter(|link| link.generation == key.generation);
        let Some(link) = live else { return self.ring.give_back(data) };
        let was_up = link.client.is_up();
        let outcome = link.client.handle_bytes(ring.bytes(&data), now, |call, message| {
            let index = call & ((1 << INDEX_BITS) - 1);
            let Some(slot) = sessions.get_mut(index as usize) else { return };
            let own = call_number(SessionKey { index, generation: slot.generation });
            if slot.link == Some(key.index as usize) && own == call {
                slot.session.handle_frame(&message, now);
                if !std::mem::replace(&mut slot.is_touched, true) {
                    touched.push(index);
                }
            }
        });
        let is_up = link.client.is_up();
        self.ring.give_back(data);
        match outcome {
            Ok(()) if is_up && !was_up => {
                tracing::info!(address = %self.links[key.index as usize].address, "link to the voice agent is up");
                self.on_link(key.index as usize, |slot| slot.session.handle_connected(now));
            }
            Ok(()) => {}
            Err(error) => self.lose_link(key.index as usize, &format!("broke the link: {error}"), now),
        }
    }

    /// Does something with every session on a link.
    fn on_link(&mut self, index: usize, mut run: impl FnMut(&mut Slot)) {
        for (place, slot) in &mut self.sessions {
            if slot.link == Some(index) {
                run(slot);
                if !std::mem::replace(&mut slot.is_touched, true) {
                    self.touched.push(place as u32);
                }
            }
        }
    }

    fn lose_link(&mut self, index: usize, reason: &str, now: Instant) {
        let link = &mut self.links[index];
        tracing::warn!(address = %link.address, reason, "link to the voice agent is lost");
        if let Some(socket) = link.socket.take() {
            self.ring.close(socket);
        }
        link.generation = link.generation.wrapping_add(1) & super::GENERATION_MASK;
        link.client.handle_ended(now);
        link.ready.clear();
        self.tally.links_lost_total += 1;
        self.on_link(index, |slot| {
            slot.is_ready = false;
            slot.session.handle_link_lost(reason, now);
        });
    }

    /// When the first link wants something.
    pub(super) fn links_deadline(&self) -> Option<Instant> {
        self.links.iter().map(|(_, link)| link.client.poll_timeout()).min()
    }

    /// Dials, pings and gives up what is due.
    pub(super) fn turn_links(&mut self, now: Instant) {
        for index in 0..LINKS_MAX {
            let Some(link) = self.links.get_mut(index) else { continue };
            if link.client.poll_timeout() > now {
                continue;
            }
            if let Some(reason) = link.client.handle_timeout(now) {
                self.lose_link(index, reason, now);
                continue;
            }
            if !link.client.wants_dial(now) {
                continue;
            }
            let is_wanted = self.sessions.iter().any(|(_, slot)| slot.link == Some(index));
            if !is_wanted && now.saturating_duration_since(link.used_at) >= KEPT {
                self.links.remove(index);
                continue;
            }
            link.client.dial(now);
            let key = SessionKey { index: index as u32, generation: link.generation };
            match self.ring.connect_link(link.address, owner(key, Leg::Link)) {
                Ok(socket) => link.socket = Some(socket),
                Err(error) => self.lose_link(index, &format!("could not be dialled: {error}"), now),
            }
        }
    }

    /// Writes what the links' calls have, all of it in one write a link.
    pub(super) fn pump_links(&mut self) {
        let Self { ring, links, sessions, touched, tally, .. } = self;
        for (_, link) in links {
            let Some(socket) = link.socket else { continue };
            if link.ready.is_empty() && !link.client.has_control() {
                continue;
            }
            let Some(stage) = ring.stage(socket) else { continue };
            let mut len = link.client.poll_control(stage);
            if link.client.is_up() && !link.client.has_control() {
                while let Some(index) = link.ready.pop_front() {
                    let Some(slot) = sessions.get_mut(index as usize) else { continue };
                    let share = stage.len().min(len + SHARE);
                    let written = slot.session.poll_stream(&mut stage[len..share]);
                    len += written;
                    if slot.session.has_stream_output() {
                        if written == 0 {
                            link.ready.push_front(index);
                            break; // the stage is full
                        }
                        link.ready.push_back(index);
                        continue;
                    }
                    slot.is_ready = false;
                    // All is said: it may leave.
                    if slot.session.is_ended() && !std::mem::replace(&mut slot.is_touched, true) {
                        touched.push(index);
                    }
                }
            }
            if len > 0 {
                tally.agent_sent_octets_total += len as u64;
                ring.send_stage(socket, len);
            }
        }
    }

    /// A session that is on a link has output.
    pub(super) fn get_ready(&mut self, index: u32) {
        let slot = &mut self.sessions[index as usize];
        if let Some(link) = slot.link.and_then(|link| self.links.get_mut(link))
            && slot.session.has_stream_output()
            && !std::mem::replace(&mut slot.is_ready, true)
        {
            link.ready.push_back(index);
        }
    }

    /// A session goes. What it could not say any more is said for it: the agent must not keep a call that is over.
    pub(super) fn leave_link(&mut self, key: SessionKey, was_said: bool) {
        let slot = &mut self.sessions[key.index as usize];
        let Some(link) = slot.link.take().and_then(|link| self.links.get_mut(link)) else { return };
        if slot.is_ready {
            link.ready.retain(|index| *index != key.index);
        }
        if !was_said && link.client.is_up() {
            link.client.push(call_number(key), &Message::Close { reason: "error" });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_call_in_a_place_has_another_number() {
        let of = |index, generation| call_number(SessionKey { index, generation });
        assert_ne!(of(7, 1), of(7, 2));
        assert_eq!(of(7, 1) & (SESSIONS_MAX as u32 - 1), 7);
        assert_eq!(of(0, 1 << 12), of(0, 0), "after 4 096 sessions of a core a number comes again");
    }
}
