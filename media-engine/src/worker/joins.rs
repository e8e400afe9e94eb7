//! A session's RTP leg goes to another session: of this core at once, of another one in steps that the control thread leads.
//!
//! ```text
//!   control:   Expect ──▶ core of the one that stays       a place for the leg
//!              Lift ────▶ core of the one that ends        ring lets go of the sockets ──▶ Moving, the answer
//!              Land ────▶ core of the one that stays       sockets into its ring; refused: the leg comes back
//!              Leave ───▶ core of the one that ends        its agent is let go; or Restore: it goes on
//! ```
//!
//! Until the ring has let go of the sockets the session goes on as ever. From then to the landing nobody reads them, for as long as
//! two wake-ups take: what comes waits in the kernel, and the ptime clock, which moves with the leg, sends what was due meanwhile.
//! The port stays the property of its first core, and goes home when it is closed.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Leg, SecondSocket, Slot, Worker, owned, owner};
use crate::leg::event::{EndReason, Stats};
use crate::leg::rtp::Rtcp;
use crate::mailbox::{Moving, Refused, SessionKey};
use crate::ring::Owner;
use crate::session::joining::{JoinError, MovingLeg};
use crate::session::second::Role;
use crate::wheel::Phase;

/// A leg that was announced comes within so long, or its place is free again: twice what the control thread waits for an answer.
pub const EXPECTED_MAX: Duration = Duration::from_secs(10);

/// Which half of a join a session is.
#[derive(Debug)]
pub(super) enum Joining {
    /// A leg comes from another core, until then at the latest.
    Expects(Instant),
    /// The ring lets go of its sockets, the odd one first: reports can wait.
    Lifting { reply: oneshot::Sender<Result<Box<Moving>, JoinError>>, rtcp: Option<OwnedFd> },
    /// Its leg is on its way.
    Gone,
}

impl Slot {
    /// Its leg is on its way to another core.
    pub(super) fn is_moving(&self) -> bool {
        matches!(self.joining.as_deref(), Some(Joining::Gone))
    }

    /// It is one half of a join.
    pub(super) fn is_joining(&self, now: Instant) -> bool {
        match self.joining.as_deref() {
            Some(Joining::Expects(until)) => now < *until,
            Some(Joining::Lifting { .. } | Joining::Gone) => true,
            None => false,
        }
    }

    fn check_join(&self, now: Instant) -> Result<(), JoinError> {
        self.session.check_join()?;
        if self.is_joining(now) { Err(JoinError::Busy) } else { Ok(()) }
    }
}

impl Worker {
    fn check_join(&mut self, key: SessionKey, now: Instant) -> Result<(), JoinError> {
        self.live(key).ok_or(JoinError::NoSession)?.check_join(now)
    }

    /// Joins two sessions of this core; an error names the one that cannot.
    pub(super) fn join(
        &mut self,
        key: SessionKey,
        other: SessionKey,
        role: Role,
        now: Instant,
    ) -> Result<Stats, (SessionKey, JoinError)> {
        if key == other {
            return Err((other, JoinError::Busy));
        }
        for each in [key, other] {
            self.check_join(each, now).map_err(|error| (each, error))?;
        }
        let gone = |error| (other, error);
        let from = self.live(other).ok_or(gone(JoinError::NoSession))?;
        let (Some(udp), Some(phase)) = (from.udp, from.phase) else {
            return Err(gone(JoinError::NotStarted));
        };
        let leg = from.session.lift(now).map_err(gone)?;
        (from.udp, from.phase) = (None, None);
        let (rtcp, port, is_tied) = (from.rtcp.take(), from.port, from.peer.take().is_some());
        self.ring.set_owner(udp, owner(key, Leg::Second));
        if let Some(rtcp) = rtcp {
            self.ring.set_owner(rtcp, owner(key, Leg::SecondRtcp));
        }
        if is_tied {
            self.ring.connect_udp(udp, None);
        }
        let slot = &mut self.sessions[key.index as usize];
        slot.second = Some(SecondSocket { udp, rtcp, port, is_foreign: false, phase });
        let landed = slot.session.land(leg, role, now);
        debug_assert!(landed.is_ok(), "it was asked whether it can");
        let into = Arc::clone(&slot.id);
        self.touch(key.index);
        self.leave_joined(other, into, now).ok_or(gone(JoinError::NoSession))
    }

    /// A leg of another core is announced.
    pub(super) fn expect_leg(&mut self, key: SessionKey, now: Instant) -> Result<(), JoinError> {
        self.check_join(key, now)?;
        // Its RTP and its reports.
        if self.ring.room() < 2 {
            return Err(JoinError::Full);
        }
        let slot = &mut self.sessions[key.index as usize];
        slot.joining = Some(Box::new(Joining::Expects(now + EXPECTED_MAX)));
        Ok(())
    }

    /// It does not come.
    pub(super) fn unexpect_leg(&mut self, key: SessionKey) {
        if let Some(slot) = self.live(key) {
            slot.joining.take_if(|joining| matches!(**joining, Joining::Expects(_)));
        }
    }

    /// Begins to take the RTP leg out of a session; the answer comes when the ring has let go of it.
    pub(super) fn lift(
        &mut self,
        key: SessionKey,
        reply: oneshot::Sender<Result<Box<Moving>, JoinError>>,
        now: Instant,
    ) {
        if let Err(error) = self.check_join(key, now) {
            let _ = reply.send(Err(error));
            return;
        }
        let slot = &mut self.sessions[key.index as usize];
        if slot.udp.is_none() {
            // Its caller comes by a provider's connection, which is no leg of another session's.
            let _ = reply.send(Err(JoinError::NotStarted));
            return;
        }
        slot.joining = Some(Box::new(Joining::Lifting { reply, rtcp: None }));
        if let Some(socket) = slot.rtcp.or(slot.udp) {
            self.ring.detach(socket);
        }
    }

    /// The ring has let go of a socket.
    pub(super) fn handle_detached(&mut self, owner: Owner, socket: OwnedFd, now: Instant) {
        let (key, leg) = owned(owner);
        // Of a session that ended meanwhile: it is closed by being dropped.
        let Some(slot) = self.live(key) else { return };
        let Some(Joining::Lifting { rtcp, .. }) = slot.joining.as_deref_mut() else { return };
        match leg {
            Leg::Rtcp => {
                *rtcp = Some(socket);
                slot.rtcp = None;
                if let Some(udp) = slot.udp {
                    self.ring.detach(udp);
                }
            }
            Leg::Rtp => {
                slot.udp = None;
                self.finish_lift(key, socket, now);
            }
            Leg::Agent | Leg::Second | Leg::SecondRtcp | Leg::Link | Leg::Provider => {}
        }
    }

    fn finish_lift(&mut self, key: SessionKey, udp: OwnedFd, now: Instant) {
        let slot = &mut self.sessions[key.index as usize];
        let Some(Joining::Lifting { reply, rtcp }) = slot.joining.take().map(|joining| *joining) else {
            return;
        };
        // An update that came meanwhile has opened it; where the leg lands it is opened again.
        if let Some(late) = slot.rtcp.take() {
            self.ring.close(late);
        }
        slot.peer = None;
        if let Some(phase) = slot.phase.take() {
            self.phases.release(phase);
        }
        match slot.session.lift(now) {
            Ok(leg) => {
                slot.joining = Some(Box::new(Joining::Gone));
                let moving = Box::new(Moving { leg, udp, rtcp, port: slot.port });
                // Nobody waits for it any more: it stays.
                if let Err(Ok(moving)) = reply.send(Ok(moving)) {
                    self.restore(key, Some(*moving), now);
                }
            }
            // It was asked whether it can; a second leg cannot have come, and an end would have taken the sockets.
            Err(error) => {
                let _ = reply.send(Err(error));
                slot.session.end(EndReason::EngineFault, now);
            }
        }
        self.touch(key.index);
    }

    /// The millisecond of a leg that goes on: its own, as this core counts them.
    fn keep_phase(&mut self, leg: &mut MovingLeg) -> Phase {
        let next = leg.next_packet();
        let tick = self.wheel.tick(next);
        let first = if self.wheel.instant(tick) < next { tick + 1 } else { tick };
        leg.set_next_packet(self.wheel.instant(first));
        self.phases.occupy(first, leg.ptime())
    }

    /// A leg of another core has come.
    pub(super) fn land(
        &mut self,
        key: SessionKey,
        moving: Moving,
        role: Role,
        reply: oneshot::Sender<Result<(), Refused>>,
        now: Instant,
    ) {
        let port = moving.port;
        let landed = self.try_land(key, moving, role, now);
        if landed.is_ok() {
            self.touch(key.index);
        }
        if let Err(Err((_, Some(_)))) = reply.send(landed) {
            // It cannot stay, and nobody takes it back.
            self.homeless.push(port);
        }
    }

    fn try_land(&mut self, key: SessionKey, moving: Moving, role: Role, now: Instant) -> Result<(), Refused> {
        // Whoever has removed it meanwhile wants it no more.
        let is_expected =
            self.live(key).is_some_and(|slot| matches!(slot.joining.as_deref(), Some(Joining::Expects(_))));
        self.unexpect_leg(key);
        let needed = 1 + usize::from(moving.rtcp.is_some());
        let checked = self.check_join(key, now);
        let has_room = self.ring.room() >= needed;
        let checked = checked.and(if has_room { Ok(()) } else { Err(JoinError::Full) });
        if let Err(error) = checked.and(if is_expected { Ok(()) } else { Err(JoinError::Busy) }) {
            return Err((error, Some(Box::new(moving))));
        }
        let Moving { mut leg, udp, rtcp, port } = moving;
        let Ok(udp) = self.ring.add_udp(udp, owner(key, Leg::Second)) else {
            self.homeless.push(port);
            return Err((JoinError::Lost, None));
        };
        // Without it the leg goes on, unreported.
        let rtcp = rtcp.and_then(|rtcp| self.ring.add_udp(rtcp, owner(key, Leg::SecondRtcp)).ok());
        let phase = self.keep_phase(&mut leg);
        let slot = &mut self.sessions[key.index as usize];
        slot.second = Some(SecondSocket { udp, rtcp, port, is_foreign: true, phase });
        let landed = slot.session.land(leg, role, now);
        debug_assert!(landed.is_ok(), "it was asked whether it can");
        let reports = slot.session.second().map(|second| second.rtp().parameters().rtcp);
        if matches!(reports, Some(Rtcp::Separate { .. })) {
            self.open_second_rtcp(key);
        }
        Ok(())
    }

    /// A leg comes back to the session that it was taken from.
    pub(super) fn restore(&mut self, key: SessionKey, moving: Option<Moving>, now: Instant) {
        let is_here = self.live(key).is_some_and(|slot| slot.is_moving());
        let Some(Moving { mut leg, udp, rtcp, port }) = moving else {
            if is_here {
                let slot = &mut self.sessions[key.index as usize];
                slot.joining = None;
                slot.session.end(EndReason::EngineFault, now);
                self.touch(key.index);
            }
            return;
        };
        if !is_here {
            // The session has ended meanwhile.
            return self.ports.give_back(port, now);
        }
        self.sessions[key.index as usize].joining = None;
        match self.ring.add_udp(udp, owner(key, Leg::Rtp)) {
            Ok(udp) => {
                let rtcp = rtcp.and_then(|rtcp| self.ring.add_udp(rtcp, owner(key, Leg::Rtcp)).ok());
                let phase = self.keep_phase(&mut leg);
                let slot = &mut self.sessions[key.index as usize];
                (slot.udp, slot.rtcp, slot.phase) = (Some(udp), rtcp, Some(phase));
                slot.session.restore(leg, now);
            }
            Err(error) => {
                let slot = &mut self.sessions[key.index as usize];
                tracing::error!(session_id = &*slot.id, %error, "a leg that came back has no place");
                slot.session.end(EndReason::EngineFault, now);
                self.ports.give_back(port, now);
            }
        }
        self.touch(key.index);
    }

    /// The leg of a session has landed: the session is over. `None`: it was so already.
    pub(super) fn leave_joined(&mut self, key: SessionKey, into: Arc<str>, now: Instant) -> Option<Stats> {
        let slot = self.live(key)?;
        slot.joining = None;
        let stats = slot.session.stats(now);
        slot.session.leave(into, now);
        self.touch(key.index);
        // Whoever hears that it is over may use its place at once.
        self.drain_touched(now);
        Some(stats)
    }

    /// A session is over that was one half of a join.
    pub(super) fn end_joining(&mut self, index: u32) {
        let joining = self.sessions[index as usize].joining.take();
        if let Some(Joining::Lifting { reply, .. }) = joining.map(|joining| *joining) {
            let _ = reply.send(Err(JoinError::NoSession));
        }
    }

    /// Ports of other cores that were closed here go home, through the control thread.
    pub(super) fn send_ports_home(&mut self) {
        while let Some(port) = self.homeless.pop() {
            if !self.outbox.push_port(port) {
                // The queue is full; the next turn tries again.
                self.homeless.push(port);
                break;
            }
        }
    }
}
