//! What admission remembers from call to call: challenges, wrong passwords, and how much each trunk and tenant uses.
//!
//! ```text
//!   INVITE ──admission::credential──▶ Gate: trunks, phones, nonces, tries ──▶ Credential, a challenge, or a refusal
//!   begin(call), over(call) ────────▶ Gate: live calls and rates by trunk and tenant
//! ```
//!
//! Everything is bounded: by the trunks and tenants that there are, by the live calls, or by a named limit.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use secrecy::ExposeSecret;
use tandem_sip::HeaderName;
use tandem_sip::digest::{Algorithm, Challenger, Denied};
use tandem_sip::message::{Reply, Request};
use uuid::Uuid;

use super::admission::{Trace, refused_by};
use super::ending::{Cause, Ending};
use crate::trunk::bucket::{Bucket, Rate};
pub use crate::trunk::tries::TRIES_MAX;
use crate::trunk::tries::Tries;
use crate::trunk::{Phone, Trunk, Trunks};

/// Tenants whose rate is counted; far more than one node serves. Full: all buckets begin anew.
const TENANTS_MAX: usize = 100_000;

/// What each tenant may do, when a limit is set.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TenantLimits {
    /// Live calls of a tenant, in both directions: one that comes in is refused, one of ours waits in its queue.
    pub calls_max: Option<usize>,
    /// New calls a second of a tenant that come in; those of ours go at the pace of their trunk.
    pub calls_per_second: Option<f64>,
}

/// See the module.
pub struct Gate {
    trunks: Trunks,
    challenger: Challenger,
    /// Nonces count seconds from here.
    start: Option<Instant>,
    tries: Tries,
    rates: HashMap<Arc<str>, Bucket>,
    tenant_rates: HashMap<Arc<str>, Bucket>,
    tenant_limits: TenantLimits,
    /// Whose each live call is.
    live: HashMap<Uuid, Owner>,
    /// How many of these each tenant has, in both directions.
    of_tenant: HashMap<Arc<str>, usize>,
}

/// Whose a call is, or would have been.
#[derive(Debug, Clone, Default)]
pub struct Owner {
    /// The trunk that it came over.
    pub trunk: Option<Arc<str>>,
    /// The tenant, once it is known.
    pub tenant: Option<Arc<str>>,
}

impl Owner {
    /// A call of this trunk.
    pub fn of_trunk(trunk: &Trunk) -> Self {
        Self { trunk: Some(trunk.name.clone()), tenant: Some(trunk.tenant_id.clone()) }
    }

    /// A call of this phone.
    pub fn of_phone(phone: &Phone) -> Self {
        Self { trunk: None, tenant: Some(phone.tenant_id.clone()) }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("live", &self.live.len()).finish_non_exhaustive()
    }
}

impl Gate {
    /// A gate for these trunks and phones. `secret` makes nonces: 32 random octets.
    pub fn new(trunks: Trunks, realm: &str, secret: &[u8; 32], tenant_limits: TenantLimits) -> Self {
        Self {
            trunks,
            challenger: Challenger::new(realm, secret),
            start: None,
            tries: Tries::default(),
            rates: HashMap::new(),
            tenant_rates: HashMap::new(),
            tenant_limits,
            live: HashMap::new(),
            of_tenant: HashMap::new(),
        }
    }

    /// Challenges with these hashes, the preferred one first.
    pub fn with_digest(mut self, algorithms: &[Algorithm]) -> Self {
        self.challenger = self.challenger.algorithms(algorithms);
        self
    }

    /// A gate that knows neither trunk nor phone: only keys open it.
    pub fn without_trunks(seed: u64) -> Self {
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&seed.to_be_bytes());
        Self::new(Trunks::default(), "tandem", &secret, TenantLimits::default())
    }

    /// The trunks and phones.
    pub fn trunks(&self) -> &Trunks {
        &self.trunks
    }

    // --- digest ---

    fn seconds(&mut self, now: Instant) -> u64 {
        let start = *self.start.get_or_insert(now);
        now.saturating_duration_since(start).as_secs()
    }

    /// Whether a request proves to come from the phone of this user. Of a user that nobody is it says what it would say
    /// of a phone whose password is not known.
    pub fn check_phone(
        &mut self,
        user: &str,
        phone: Option<&Phone>,
        request: &Request,
        source: IpAddr,
        now: Instant,
    ) -> Result<(), Wrong> {
        let now_s = self.seconds(now);
        if !self.tries.may_try(source, user, now_s) {
            return Err(Wrong::TooMany);
        }
        let password = |user: &str| {
            let phone = phone.filter(|phone| user == &*phone.user)?;
            Some(phone.password.expose_secret().to_owned())
        };
        match self.challenger.check(request, HeaderName::Authorization, now_s, password) {
            Ok(_) => {
                self.tries.right(source, user, now_s);
                Ok(())
            }
            Err(why @ (Denied::WrongPassword | Denied::UnknownUser)) => {
                self.tries.wrong(source, user, now_s);
                let has_more = self.tries.may_try(source, user, now_s);
                Err(if has_more { Wrong::Again(why) } else { Wrong::TooMany })
            }
            Err(why) => Err(Wrong::Again(why)),
        }
    }

    /// 401 with a challenge for each hash that we speak, the strongest first (RFC 8760 §2.3).
    pub fn challenge(&mut self, why: Denied, now: Instant) -> Reply {
        let now_s = self.seconds(now);
        let mut reply = Reply::new(401);
        for challenge in self.challenger.challenges(why.is_stale(), now_s) {
            // The realm was checked by the configuration: there is nothing in a challenge that a header cannot hold.
            if let Ok(with) = reply.clone().header(HeaderName::WwwAuthenticate.as_str(), &challenge) {
                reply = with;
            }
        }
        reply
    }

    // --- quotas ---

    /// May this trunk offer one more call now?
    pub fn check_trunk(&mut self, trunk: &Trunk, now: Instant, trace: &mut Trace) -> Result<(), Ending> {
        let inbound = &trunk.inbound;
        let cause = if inbound.busy_when_full { Cause::TrunkBusy } else { Cause::TrunkFull };
        if let Some(max) = inbound.calls_max {
            let live = self.live.values().filter(|owner| owner.trunk.as_ref() == Some(&trunk.name)).count();
            if live >= max {
                let (field, expected) =
                    (format!("live calls of trunk {}", trunk.name), format!("fewer than {max}"));
                trace.push(refused_by("trunk_calls_max", &field, &expected, &live.to_string()));
                return Err(Ending::new(cause));
            }
        }
        let rate = Rate::per_second(inbound.calls_per_second);
        let bucket = self.rates.entry(trunk.name.clone()).or_insert_with(|| Bucket::new(rate, now));
        if bucket.take(rate, now) {
            return Ok(());
        }
        let field = format!("new calls of trunk {}", trunk.name);
        let expected = format!("at most {} a second", inbound.calls_per_second);
        trace.push(refused_by("trunk_calls_per_second", &field, &expected, "more"));
        Err(Ending::new(cause))
    }

    /// A call is looked up; it counts for its trunk from here on.
    pub fn begin(&mut self, call_id: Uuid, trunk: Option<&Arc<Trunk>>) {
        let trunk = trunk.map(|trunk| trunk.name.clone());
        self.live.insert(call_id, Owner { trunk, tenant: None });
    }

    /// May this tenant have one more call now? It counts for it from here on.
    pub fn check_tenant(
        &mut self,
        call_id: Uuid,
        tenant_id: &Arc<str>,
        now: Instant,
        trace: &mut Trace,
    ) -> Result<(), Ending> {
        if let Some(max) = self.tenant_limits.calls_max {
            let live = self.live_of(tenant_id);
            if live >= max {
                let expected = format!("fewer than {max}");
                trace.push(refused_by(
                    "tenant_calls_max",
                    "live calls of the tenant",
                    &expected,
                    &live.to_string(),
                ));
                return Err(Ending::new(Cause::TenantFull));
            }
        }
        if let Some(per_second) = self.tenant_limits.calls_per_second {
            let rate = Rate::per_second(per_second);
            if self.tenant_rates.len() >= TENANTS_MAX && !self.tenant_rates.contains_key(tenant_id) {
                self.tenant_rates.clear();
            }
            let bucket = self.tenant_rates.entry(tenant_id.clone()).or_insert_with(|| Bucket::new(rate, now));
            if !bucket.take(rate, now) {
                let expected = format!("at most {per_second} a second");
                trace.push(refused_by(
                    "tenant_calls_per_second",
                    "new calls of the tenant",
                    &expected,
                    "more",
                ));
                return Err(Ending::new(Cause::TenantFull));
            }
        }
        self.count(call_id, tenant_id);
        Ok(())
    }

    fn live_of(&self, tenant_id: &str) -> usize {
        self.of_tenant.get(tenant_id).copied().unwrap_or_default()
    }

    /// Whether a call of ours may leave for this tenant now; until then it waits.
    pub fn has_room(&self, tenant_id: &str) -> bool {
        self.tenant_limits.calls_max.is_none_or(|max| self.live_of(tenant_id) < max)
    }

    /// A call counts for its tenant: one of ours from its turn on.
    pub fn count(&mut self, call_id: Uuid, tenant_id: &Arc<str>) {
        let owner = self.live.entry(call_id).or_default();
        if owner.tenant.is_none() {
            owner.tenant = Some(tenant_id.clone());
            *self.of_tenant.entry(tenant_id.clone()).or_default() += 1;
        }
    }

    /// A call is over.
    pub fn over(&mut self, call_id: Uuid) {
        let Some(tenant_id) = self.live.remove(&call_id).and_then(|owner| owner.tenant) else { return };
        if let Some(count) = self.of_tenant.get_mut(&tenant_id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.of_tenant.remove(&tenant_id);
            }
        }
    }
}

/// Why a phone is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It is challenged, for the first time or once more.
    Again(Denied),
    /// It has been wrong too often.
    TooMany,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::trunk::Inbound;

    fn gate(limits: TenantLimits) -> Gate {
        Gate::new(Trunks::default(), "tandem", &[7; 32], limits)
    }

    #[test]
    fn trunk_has_its_own_share_of_calls_and_gets_it_back() {
        let (mut gate, now) = (gate(TenantLimits::default()), Instant::now());
        let inbound = Inbound { calls_max: Some(2), busy_when_full: true, ..Inbound::default() };
        let trunk = Arc::new(Trunk { name: "a".into(), inbound, ..Trunk::default() });
        let ids = [Uuid::from_u128(1), Uuid::from_u128(2)];
        for id in ids {
            gate.check_trunk(&trunk, now, &mut Trace::new()).unwrap();
            gate.begin(id, Some(&trunk));
        }
        let mut trace = Trace::new();
        assert_eq!(gate.check_trunk(&trunk, now, &mut trace).unwrap_err().cause, Cause::TrunkBusy);
        assert_eq!((trace[0].rule.as_str(), trace[0].got.as_str()), ("trunk_calls_max", "2"));
        gate.over(ids[0]);
        assert!(gate.check_trunk(&trunk, now, &mut Trace::new()).is_ok());
    }

    #[test]
    fn trunk_that_calls_too_fast_is_refused_until_it_slows_down() {
        let (mut gate, now) = (gate(TenantLimits::default()), Instant::now());
        let inbound = Inbound { calls_per_second: 2.0, ..Inbound::default() };
        let trunk = Trunk { name: "a".into(), inbound, ..Trunk::default() };
        let mut check = |at| gate.check_trunk(&trunk, at, &mut Trace::new()).map_err(|ending| ending.cause);
        assert_eq!([check(now), check(now), check(now)], [Ok(()), Ok(()), Err(Cause::TrunkFull)]);
        assert_eq!(check(now + Duration::from_millis(500)), Ok(()));
    }

    #[test]
    fn calls_of_ours_count_for_their_tenant_once_and_until_they_are_over() {
        let limits = TenantLimits { calls_max: Some(2), ..TenantLimits::default() };
        let (mut gate, now) = (gate(limits), Instant::now());
        let [ours, theirs, more] = [1, 2, 3].map(Uuid::from_u128);
        gate.count(ours, &"a".into());
        gate.count(ours, &"a".into());
        assert!(gate.has_room("a"), "it is one call");
        gate.check_tenant(theirs, &"a".into(), now, &mut Trace::new()).unwrap();
        assert!(!gate.has_room("a") && gate.has_room("b"));
        assert!(gate.check_tenant(more, &"a".into(), now, &mut Trace::new()).is_err());
        gate.over(ours);
        gate.over(ours);
        assert!(gate.has_room("a"));
        gate.over(theirs);
        assert!(gate.of_tenant.is_empty());
    }

    #[test]
    fn tenants_do_not_use_up_each_others_share() {
        let limits = TenantLimits { calls_max: Some(1), calls_per_second: Some(100.0) };
        let (mut gate, now) = (gate(limits), Instant::now());
        let mut check = |id: u128, tenant: &str| {
            gate.check_tenant(Uuid::from_u128(id), &tenant.into(), now, &mut Trace::new())
                .map_err(|e| e.cause)
        };
        assert_eq!(check(1, "a"), Ok(()));
        assert_eq!(check(2, "a"), Err(Cause::TenantFull));
        assert_eq!(check(3, "b"), Ok(()));
        gate.over(Uuid::from_u128(1));
        let mut trace = Trace::new();
        assert!(gate.check_tenant(Uuid::from_u128(4), &"a".into(), now, &mut trace).is_ok());
    }
}
