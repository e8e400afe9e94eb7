//! Media connections of providers: whose they are, and the calls that begin with them.

use std::time::Instant;

use uuid::Uuid;

use super::{Calls, Surroundings};
use crate::call::action::{Action, UpgradeAnswer};
use crate::call::admission::Trace;
use crate::call::machine::{Call, credential_of};
use crate::media::{EngineId, Upgrade};
use crate::store::contexts::CallContext;

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
    /// The store has answered a [`Action::Claim`].
    pub fn handle_claimed(&mut self, engine: EngineId, upgrade: Upgrade, claimed: Claimed, now: Instant) {
        match claimed {
            Claimed::Fresh(context) => self.begin_media(engine, upgrade, *context, now),
            // A call of another control plane, or one that has just ended.
            Claimed::Again(call_id) if !self.calls.contains_key(&call_id) => {
                self.refuse_media(engine, upgrade, UpgradeAnswer::refuse(409, "this call is not here"));
            }
            Claimed::Again(call_id) => {
                self.on_call(call_id, now, |call, _, around| call.handle_returned(engine, upgrade, around));
            }
            Claimed::Nobodys => {
                self.refuse_media(
                    engine,
                    upgrade,
                    UpgradeAnswer::refuse(404, "nobody waits for this connection"),
                );
            }
            Claimed::Unknown(why) => {
                tracing::warn!(error = %why, provider = %upgrade.provider, "a media connection is refused: its claim is unknown");
                self.refuse_media(
                    engine,
                    upgrade,
                    UpgradeAnswer::refuse(503, "the context store does not answer"),
                );
            }
        }
    }

    fn refuse_media(&mut self, engine: EngineId, upgrade: Upgrade, answer: UpgradeAnswer) {
        self.actions.push_back(Action::AnswerUpgrade { engine, upgrade_id: upgrade.upgrade_id, answer });
    }

    fn begin_media(&mut self, engine: EngineId, upgrade: Upgrade, context: CallContext, now: Instant) {
        let call_id = context.call_id;
        let named = context.provider.as_ref().map(|provider| &*provider.name);
        // AudioSocket is Asterisk's other way.
        let is_same = named == Some(&upgrade.provider)
            || (named, &*upgrade.provider) == (Some("asterisk"), "audiosocket");
        let answer = match self.check_capacity(&mut Trace::new()) {
            _ if !is_same => Some(UpgradeAnswer::refuse(404, "the call is another provider's")),
            _ if self.calls.contains_key(&call_id) => Some(UpgradeAnswer::refuse(409, "the call is alive")),
            Err(ending) => Some(UpgradeAnswer::of(&ending)),
            Ok(()) => None,
        };
        if let Some(answer) = answer {
            self.actions.push_back(Action::Forget(call_id));
            return self.refuse_media(engine, upgrade, answer);
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
}
