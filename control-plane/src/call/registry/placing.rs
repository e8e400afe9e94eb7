//! Calls that we place: the queue, its turns, bulks, and requests that come twice.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_api::v1 as api;
use uuid::Uuid;

use super::{Calls, Surroundings};
use crate::call::bulk::BULK_CALLS_MAX;
use crate::call::dispatcher::QueueFull;
use crate::call::ending::{Cause, Ending};
use crate::call::machine::Call;
use crate::call::order::{Idempotency, Order};
use crate::call::state::State;

/// Idempotency keys that are remembered, of all tenants; the oldest goes first.
pub const REPEATS_MAX: usize = 20_000;
/// How long one is remembered. In memory: a restart forgets it.
pub const REPEATS_TTL: Duration = Duration::from_secs(86_400);

/// Why a call is not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Too many wait.
    #[error(transparent)]
    Full(#[from] QueueFull),
    /// The node goes down.
    #[error("this node is going down and takes no new calls")]
    Draining,
    /// The store cannot take the records of new calls.
    #[error("the database does not keep up with the records of calls")]
    StoreBehind,
    /// The key is another request's.
    #[error("idempotency key {0:?} belongs to another request")]
    OtherRequest(Arc<str>),
    /// Nothing, or too much at once.
    #[error("a bulk holds 1 to {BULK_CALLS_MAX} calls")]
    BulkSize,
}

/// Requests by their idempotency key.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    known: HashMap<(Arc<str>, Arc<str>), Known>,
    order: VecDeque<(Arc<str>, Arc<str>)>,
}

#[derive(Debug)]
struct Known {
    fingerprint: [u8; 32],
    call_id: Uuid,
    until: Instant,
}

impl Repeats {
    /// The call of the same request, if it came before.
    fn find(
        &self,
        tenant_id: &Arc<str>,
        given: &Idempotency,
        now: Instant,
    ) -> Result<Option<Uuid>, PlaceError> {
        let known = self.known.get(&(tenant_id.clone(), given.key.clone()));
        match known.filter(|known| known.until > now) {
            None => Ok(None),
            Some(known) if known.fingerprint == given.fingerprint => Ok(Some(known.call_id)),
            Some(_) => Err(PlaceError::OtherRequest(given.key.clone())),
        }
    }

    fn add(&mut self, tenant_id: &Arc<str>, given: &Idempotency, call_id: Uuid, now: Instant) {
        while self.order.len() >= REPEATS_MAX
            || self.order.front().is_some_and(|oldest| self.known.get(oldest).is_none_or(|k| k.until <= now))
        {
            let Some(gone) = self.order.pop_front() else { break };
            self.known.remove(&gone);
        }
        let key = (tenant_id.clone(), given.key.clone());
        let known = Known { fingerprint: given.fingerprint, call_id, until: now + REPEATS_TTL };
        if self.known.insert(key.clone(), known).is_none() {
            self.order.push_back(key);
        }
    }
}

impl Calls {
    /// Queues a call; a request that came before gives the call of then.
    pub fn place(&mut self, order: Order, now: Instant) -> Result<Uuid, PlaceError> {
        self.check_place()?;
        if let Some(known) = self.known(&order, now)? {
            return Ok(known);
        }
        self.dispatcher.check(&order.tenant_id, 1)?;
        let call_id = self.queue(order, now)?;
        self.pump(now);
        Ok(call_id)
    }

    /// Queues many calls of one tenant, or none of them.
    pub fn place_bulk(
        &mut self,
        mut orders: Vec<Order>,
        now: Instant,
    ) -> Result<(Uuid, Vec<Uuid>), PlaceError> {
        self.check_place()?;
        let Some(tenant_id) = orders.first().map(|order| order.tenant_id.clone()) else {
            return Err(PlaceError::BulkSize);
        };
        if orders.len() > BULK_CALLS_MAX {
            return Err(PlaceError::BulkSize);
        }
        let known: Vec<Option<Uuid>> =
            orders.iter().map(|order| self.known(order, now)).collect::<Result<_, _>>()?;
        self.dispatcher.check(&tenant_id, known.iter().filter(|known| known.is_none()).count())?;
        let bulk_id = self.new_call_id(now);
        let created_ms = self.wall.at(now);
        let mut queued = Vec::new();
        let mut calls = Vec::new();
        // The bulk must know its calls before they move on.
        for (order, known) in orders.iter_mut().zip(&known) {
            order.bulk = Some(bulk_id);
            let call_id = known.unwrap_or_else(|| self.new_call_id(now));
            calls.push(call_id);
            if known.is_none() {
                queued.push(call_id);
            }
        }
        self.bulks.add(bulk_id, tenant_id, &queued, created_ms);
        for ((order, known), call_id) in orders.into_iter().zip(known).zip(&calls) {
            if known.is_none() {
                self.queue_as(*call_id, order, now)?;
            }
        }
        self.pump(now);
        Ok((bulk_id, calls))
    }

    /// How far a bulk of this tenant is.
    pub fn bulk(&self, tenant_id: &str, bulk_id: Uuid) -> Option<api::BulkPhoneCall> {
        self.bulks.get(tenant_id, bulk_id)
    }

    /// Takes what still waits of a bulk out of the queue.
    pub fn cancel_bulk(
        &mut self,
        tenant_id: &str,
        bulk_id: Uuid,
        now: Instant,
    ) -> Option<api::BulkPhoneCall> {
        for call_id in self.bulks.queued(tenant_id, bulk_id)? {
            self.on_call(call_id, now, |call, _, around| {
                if call.state() == State::Queued {
                    call.end(Ending::new(Cause::QueueCancelled), around);
                }
            });
        }
        self.bulks.get(tenant_id, bulk_id)
    }

    fn check_place(&self) -> Result<(), PlaceError> {
        match (self.draining, self.store_behind) {
            (true, _) => Err(PlaceError::Draining),
            (_, true) => Err(PlaceError::StoreBehind),
            _ => Ok(()),
        }
    }

    fn known(&self, order: &Order, now: Instant) -> Result<Option<Uuid>, PlaceError> {
        let given = order.idempotency.as_ref();
        given.map_or(Ok(None), |given| self.repeats.find(&order.tenant_id, given, now))
    }

    fn queue(&mut self, order: Order, now: Instant) -> Result<Uuid, PlaceError> {
        let call_id = self.new_call_id(now);
        self.queue_as(call_id, order, now)?;
        Ok(call_id)
    }

    fn queue_as(&mut self, call_id: Uuid, order: Order, now: Instant) -> Result<(), PlaceError> {
        self.dispatcher.push(order.queued(call_id))?;
        if let Some(given) = &order.idempotency {
            self.repeats.add(&order.tenant_id, given, call_id, now);
        }
        let Self { actions, strays, settings, rng, gate, tokens, .. } = self;
        let wall = self.wall;
        let around = Surroundings { actions, strays, settings, now, setup: None, gate, wall, rng, tokens };
        let mut around = around;
        let call = match order.provider.clone() {
            Some(deployment) => Call::place_with_provider(call_id, order, deployment, &mut around),
            None => Call::place(call_id, order, &around),
        };
        self.calls.insert(call_id, call);
        self.on_call(call_id, now, |_, _, _| {});
        Ok(())
    }

    /// Whether this node can carry one more call. What cannot be carried now waits on.
    pub(super) fn may_dial(&self) -> bool {
        !self.draining
            && self.fleet.available() > 0
            && self.under_way() < self.settings.limits.calls_max
            && self.dispatcher.queued() > 0
    }

    /// Lets leave what may leave now.
    pub(super) fn pump(&mut self, now: Instant) {
        self.pump_at = None;
        while self.may_dial()
            && let Some(call_id) = self.dispatcher.poll(now, |tenant| self.gate.has_room(tenant))
        {
            if let Some(tenant_id) = self.calls.get(&call_id).and_then(Call::tenant_id) {
                self.gate.count(call_id, tenant_id);
            }
            self.on_call(call_id, now, |call, fleet, around| call.dial(fleet, around));
        }
        // A call that failed at once has made room, and its turn is over: nothing else is waiting for that.
        self.pump_at = self.pump_at.filter(|_| self.dispatcher.queued() > 0);
    }
}
