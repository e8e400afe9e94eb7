//! Somebody is brought into a live call, through the API.

use std::time::Instant;

use tandem_api::engine::v1::LegRole;
use uuid::Uuid;

use super::Calls;
use crate::call::machine::Asked;

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
}
