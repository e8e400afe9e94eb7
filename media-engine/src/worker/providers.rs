//! Providers' connections in the worker: each comes as a socket from the control thread, into the ring of the core that has, or
//! will have, its session.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::{GENERATION_MASK, LINGER, Leg, Slot, Worker, owned, owner};
use crate::mailbox::{Handover, Incoming, OpenError, Opened, RetakeError, SessionKey};
use crate::ring::{Owner, RingError, SocketId};
use crate::session::Session;

impl Worker {
    /// Takes the connection out of the control thread's hands, when nothing else can go wrong.
    fn take_line(
        &mut self,
        key: SessionKey,
        incoming: Handover,
        now: Instant,
    ) -> Option<Result<(), RingError>> {
        let Incoming { socket, connection } = incoming.take()?;
        let socket = match self.ring.add_stream(socket, owner(key, Leg::Provider)) {
            Ok(socket) => socket,
            Err(error) => return Some(Err(error)),
        };
        let slot = &mut self.sessions[key.index as usize];
        let before = slot.provider.replace(socket);
        slot.session.attach(connection, now);
        if let Some(before) = before {
            self.ring.close(before);
        }
        self.touch(key.index);
        Some(Ok(()))
    }

    /// A session whose caller comes by a provider's connection.
    pub(super) fn insert_streamed(
        &mut self,
        id: Arc<str>,
        call_id: Arc<str>,
        local_address: IpAddr,
        session: Session,
        incoming: Handover,
        now: Instant,
    ) -> Result<Opened, OpenError> {
        // Its own, and the agent's.
        if self.ring.room() < 2 {
            return Err(OpenError::SessionsFull(self.sessions_max));
        }
        self.generation = (self.generation + 1) & GENERATION_MASK;
        let key = SessionKey { index: self.sessions.vacant_key() as u32, generation: self.generation };
        let agent_ready = session.is_agent_ready();
        self.sessions.insert(Box::new(Slot {
            id,
            call_id,
            generation: key.generation,
            session,
            udp: None,
            rtcp: None,
            local_address,
            peer: None,
            stream: None,
            provider: None,
            link: None,
            is_ready: false,
            is_shaking: false,
            port: 0,
            phase: None,
            second: None,
            joining: None,
            deadline: None,
            is_touched: false,
            leaving: None,
        }));
        let error = match self.take_line(key, incoming, now) {
            Some(Ok(())) => return Ok(Opened { key, port: 0, agent_ready }),
            Some(Err(error)) => OpenError::Socket(error.to_string()),
            None => OpenError::NoConnection,
        };
        self.sessions.remove(key.index as usize);
        Err(error)
    }

    /// Another connection for a session that has lost its own.
    pub(super) fn retake(
        &mut self,
        key: SessionKey,
        incoming: Handover,
        now: Instant,
    ) -> Result<(), RetakeError> {
        let slot = self.live(key).ok_or(RetakeError::NoSession)?;
        if !slot.session.wants_line() {
            return Err(RetakeError::Up);
        }
        if self.ring.room() < 1 {
            return Err(RetakeError::Full);
        }
        self.take_line(key, incoming, now).ok_or(RetakeError::Up)?.map_err(|_| RetakeError::Full)
    }

    /// A provider's connection ended.
    pub(super) fn handle_provider_ended(
        &mut self,
        from: Owner,
        error: Option<&std::io::Error>,
        now: Instant,
    ) {
        let (key, _) = owned(from);
        let Some(slot) = self.slot(from) else { return };
        let socket = slot.provider.take();
        slot.session.handle_provider_ended(error, now);
        if let Some(socket) = socket {
            self.ring.close(socket);
        }
        self.touch(key.index);
    }

    /// Writes what waits for a provider, and closes a connection that is of no more use.
    pub(super) fn drain_provider(&mut self, index: u32, now: Instant) {
        let slot = &mut self.sessions[index as usize];
        let Some(socket) = slot.provider else { return };
        while slot.session.has_provider_output() {
            let Some(stage) = self.ring.stage(socket) else { break };
            let len = slot.session.poll_provider(stage, now);
            if len == 0 {
                break;
            }
            self.tally.provider_sent_octets_total += len as u64;
            self.ring.send_stage(socket, len);
        }
        if slot.session.is_line_over() {
            slot.provider = None;
            self.let_linger(socket, now);
        }
    }

    /// Its last words leave; then the peer may close, or it is closed.
    fn let_linger(&mut self, socket: SocketId, now: Instant) {
        self.ring.finish(socket);
        self.lingering.push_back((now + LINGER, socket));
    }
}
