//! Somebody is brought into a live call, through the API: by being called, or with a call that is alive already.

use std::time::Instant;

use tandem_api::engine::v1::{LegRole, SessionStats};
use uuid::Uuid;

use super::Calls;
use crate::call::action::EngineRefusal;
use crate::call::machine::{Asked, Call};

/// Who is to be brought in, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// A number, a SIP URI, or `phone:` and a user; empty: who is there already, who has another role from now on.
    pub to: String,
    /// Who hears whom.
    pub role: LegRole,
    /// Over which trunk; empty: as the call itself.
    pub trunk: String,
}

impl Calls {
    /// Brings somebody into a call. `None`: this tenant has no such call.
    pub fn join(&mut self, tenant_id: &str, call_id: Uuid, guest: &Guest, now: Instant) -> Option<Asked> {
        self.own(tenant_id, call_id)?;
        let mut asked = None;
        self.on_call(call_id, now, |call, _, around| {
            asked = Some(call.join(&guest.to, guest.role, &guest.trunk, around));
        });
        asked
    }

    /// Joins two live calls of this tenant: who is at the other side of `other_id` becomes a guest of `call_id`, and `other_id` is
    /// over when the engine has joined their sessions. `None`: this tenant has no such call; which.
    pub fn join_calls(
        &mut self,
        tenant_id: &str,
        call_id: Uuid,
        other_id: Uuid,
        now: Instant,
    ) -> Result<Asked, Uuid> {
        let call = self.own(tenant_id, call_id).ok_or(call_id)?;
        let other = self.own(tenant_id, other_id).ok_or(other_id)?;
        if call_id == other_id {
            return Ok(Asked::Policy("a call cannot be joined to itself".to_owned()));
        }
        if let Err(asked) = call.check_join().and_then(|()| other.check_give()) {
            return Ok(asked);
        }
        if call.place_of_session() != other.place_of_session() {
            return Ok(Asked::Policy("the calls are on different media engines".to_owned()));
        }
        let to = other.other_side();
        let mut asked = Asked::Busy;
        self.on_call(call_id, now, |call, _, around| asked = call.join_other(other_id, &to, around));
        if asked == Asked::Done {
            self.on_call(other_id, now, |other, _, _| other.begin_joining(call_id));
        }
        Ok(asked)
    }

    /// An engine has joined two sessions, or has not.
    pub(super) fn handle_joined(
        &mut self,
        call_id: Uuid,
        other_id: Uuid,
        result: Result<Box<SessionStats>, EngineRefusal>,
        now: Instant,
    ) {
        let is_wanted = self.calls.get(&call_id).is_some_and(|call: &Call| call.wants(other_id));
        let mut given = None;
        self.on_call(other_id, now, |other, _, around| {
            given = other.handle_joined(call_id, result.as_deref(), is_wanted, around);
        });
        if let Some(given) = &given {
            self.by_sip.insert(given.sip, call_id);
        }
        let result = result.map(drop);
        self.on_call(call_id, now, |call, _, around| {
            call.handle_join_answered(other_id, result, given, around);
        });
    }
}
