//! Media connections of providers: whose they are, and the calls that begin with them.
//!
//! ```text
//!   MediaUpgrade ─▶ a call here whose connection has dropped? ─▶ it goes on
//!                └▶ room for one more? ─▶ Claim: the store ─▶ fresh: a call begins
//!                        └── no: 503                  └──── nobody's: 404, somebody's: 409, silence: 503
//! ```
//!
//! A claim can be taken once, so it is taken only when there is room: a provider that is told to come again still has it.

use std::time::Instant;

use uuid::Uuid;

use super::{Calls, Surroundings};
use crate::call::action::{Action, Refusal, UpgradeAnswer};
use crate::call::admission::{self, Trace, refused_by};
use crate::call::ending::{Cause, Ending};
use crate::call::machine::{Call, credential_of};
use crate::media::{EngineId, Upgrade};
use crate::store::contexts::CallContext;

/// Claims that the store is asked about at once; above that connections are told to come again. A store that answers is done
/// with as many in a fraction of a second.
pub const CLAIMS_MAX: usize = 1_024;

/// What the store says of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// It was fresh, and is this call's.
    Fresh(Box<CallContext>),
    /// Its connection had dropped.
    Again(Uuid),
    /// There is none, or somebody has it.
    Nobodys,
    /// The store did not answer.
    Unknown(String),
}

impl Calls {
    /// A media connection waits for an answer.
    pub(super) fn handle_upgrade(&mut self, engine: EngineId, upgrade: Box<Upgrade>, now: Instant) {
        let mut waiting = self.calls.iter().filter(|(_, call)| call.awaits(engine, &upgrade));
        if let Some(call_id) = waiting.next().map(|(call_id, _)| *call_id) {
            return self.give_back(call_id, engine, *upgrade, now);
        }
        let mut trace = Trace::new();
        let mut room = self.check_capacity(&mut trace);
        if room.is_ok() && self.claims_asked >= CLAIMS_MAX {
            let expected = format!("fewer than {CLAIMS_MAX}");
            let got = self.claims_asked.to_string();
            trace.push(refused_by("store", "claims that wait for the store", &expected, &got));
            room = Err(Ending::new(Cause::StoreBehind));
        }
        if let Err(ending) = room {
            let answer = UpgradeAnswer::refuse(&ending, true);
            return self.refuse_upgrade(engine, *upgrade, answer, None, trace, ending, now);
        }
        self.claims_asked += 1;
        self.actions.push_back(Action::Claim { engine, upgrade });
    }

    /// The store has answered a [`Action::Claim`].
    pub fn handle_claimed(&mut self, engine: EngineId, upgrade: Upgrade, claimed: Claimed, now: Instant) {
        self.claims_asked = self.claims_asked.saturating_sub(1);
        let (ending, got) = match claimed {
            Claimed::Fresh(context) => return self.begin_media(engine, upgrade, *context, now),
            // It may have dropped just now.
            Claimed::Again(call_id)
                if self.calls.get(&call_id).is_some_and(|call| call.awaits(engine, &upgrade)) =>
            {
                return self.give_back(call_id, engine, upgrade, now);
            }
            // Of another control plane or engine, or it has just ended or come back.
            Claimed::Again(_) => (Ending::new(Cause::ClaimTaken), "one of a call elsewhere"),
            Claimed::Nobodys => (Ending::new(Cause::UnknownClaim), "none, or one that is taken"),
            Claimed::Unknown(why) => (Ending::with_detail(Cause::StoreFailed, why), "no answer"),
        };
        // What became of the claim in a store that did not answer is not known: it may be there for another try.
        let may_return = ending.cause == Cause::StoreFailed;
        let trace = vec![admission::step("credential", "claim", "context id", EXPECTED, got, false)];
        let answer = UpgradeAnswer::refuse(&ending, may_return);
        self.refuse_upgrade(engine, upgrade, answer, None, trace, ending, now);
    }

    fn give_back(&mut self, call_id: Uuid, engine: EngineId, upgrade: Upgrade, now: Instant) {
        self.on_call(call_id, now, |call, _, around| {
            call.handle_returned(engine, upgrade.upgrade_id, around);
        });
    }

    /// A connection that never becomes a call of ours is refused: no record, one log line.
    #[expect(clippy::too_many_arguments)] // what a line says
    fn refuse_upgrade(
        &mut self,
        engine: EngineId,
        upgrade: Upgrade,
        answer: UpgradeAnswer,
        whose: Option<&CallContext>,
        trace: Trace,
        ending: Ending,
        now: Instant,
    ) {
        let refusal = Refusal {
            call_id: whose.map_or_else(|| self.new_call_id(now), |context| context.call_id),
            tenant_id: whose.map(|context| context.tenant_id.clone()),
            trunk: None,
            source: upgrade.source,
            from: whose.map(|context| admission::shown(&context.from)).unwrap_or_default(),
            to: whose.map(|context| admission::shown(&context.to)).unwrap_or_default(),
            step: trace.last().cloned().unwrap_or_default(),
            trace,
            is_recorded: false,
            ending,
        };
        self.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id: upgrade.upgrade_id, answer });
        self.actions.push_back(Action::Refused(Box::new(refusal)));
    }

    fn begin_media(&mut self, engine: EngineId, upgrade: Upgrade, context: CallContext, now: Instant) {
        let call_id = context.call_id;
        let mut trace = Trace::new();
        let is_alive = self.calls.contains_key(&call_id);
        if let Err(ending) = self.check_media(&upgrade, &context, is_alive, &mut trace) {
            // The claim is used up: nobody can come for this call any more, unless somebody has.
            if !is_alive {
                self.actions.push_back(Action::Forget(call_id));
            }
            let answer = UpgradeAnswer::refuse(&ending, false);
            return self.refuse_upgrade(engine, upgrade, answer, Some(&context), trace, ending, now);
        }
        let credential = credential_of(&context);
        self.gate.begin(call_id, None);
        let Self { actions, strays, settings, rng, gate, tokens, .. } = self;
        let wall = self.wall;
        let around = Surroundings { actions, strays, settings, now, setup: None, gate, wall, rng, tokens };
        let call = Call::of_media(context, engine, upgrade, &around);
        around.actions.push_back(Action::Lookup { call_id, credential });
        self.calls.insert(call_id, call);
        self.on_call(call_id, now, |_, _, _| {});
    }

    fn check_media(
        &self,
        upgrade: &Upgrade,
        context: &CallContext,
        is_alive: bool,
        trace: &mut Trace,
    ) -> Result<(), Ending> {
        let named = context.provider.as_ref().map(|provider| &*provider.name).unwrap_or_default();
        let came = &*upgrade.provider;
        // AudioSocket is Asterisk's other way.
        if named != came && (named, came) != ("asterisk", "audiosocket") {
            trace.push(admission::step(
                "credential",
                "claim",
                "provider",
                named,
                &admission::shown(came),
                false,
            ));
            return Err(Ending::with_detail(Cause::UnknownClaim, "the call is another provider's"));
        }
        if is_alive {
            trace.push(admission::step(
                "credential",
                "claim",
                "context id",
                EXPECTED,
                "one that lives",
                false,
            ));
            return Err(Ending::new(Cause::ClaimTaken));
        }
        // There was room when the store was asked.
        self.check_capacity(trace)
    }
}

/// Of a connection.
const EXPECTED: &str = "the claim of a call that waits for it";
