//! Sessions that no call needs any more, on engines that could not be told: they are closed when the engine is heard again.
//!
//! Only sessions that this control plane asked for are in here; what an earlier one left is not ours to end.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use crate::media::{EngineId, Listed};

/// Sessions that may wait: the calls of a whole node, twice. Full: the engine's own clocks end the others.
pub const STRAYS_MAX: usize = 8_192;

/// See the module.
#[derive(Debug, Default)]
pub struct Strays {
    sessions: BTreeSet<(EngineId, Uuid)>,
}

impl Strays {
    /// This session may still live there.
    pub fn add(&mut self, engine: EngineId, session_id: Uuid) {
        if self.sessions.len() < STRAYS_MAX {
            self.sessions.insert((engine, session_id));
        }
    }

    /// It is over.
    pub fn remove(&mut self, engine: EngineId, session_id: Uuid) {
        self.sessions.remove(&(engine, session_id));
    }

    /// An engine says what lives there: gives those to be closed, and forgets the others of that engine.
    pub fn take_listed(&mut self, engine: EngineId, listed: &HashMap<Uuid, Listed>) -> Vec<Uuid> {
        let all = (engine, Uuid::nil())..=(engine, Uuid::max());
        let own: Vec<(EngineId, Uuid)> = self.sessions.range(all).copied().collect();
        for stray in &own {
            self.sessions.remove(stray);
        }
        own.into_iter().map(|(_, session_id)| session_id).filter(|id| listed.contains_key(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strays_of_an_engine_are_taken_once_and_only_those_that_live() {
        let (here, there) = (EngineId(0), EngineId(1));
        let [alive, dead, elsewhere] = [1, 2, 3].map(Uuid::from_u128);
        let mut strays = Strays::default();
        strays.add(here, alive);
        strays.add(here, dead);
        strays.add(there, elsewhere);
        let foreign = Uuid::from_u128(9);
        let listed = [alive, elsewhere, foreign].map(|id| (id, Listed::default())).into();
        assert_eq!(strays.take_listed(here, &listed), [alive]);
        assert!(strays.take_listed(here, &listed).is_empty());
        assert_eq!(strays.take_listed(there, &listed), [elsewhere]);
    }

    #[test]
    fn full_table_takes_no_more() {
        let mut strays = Strays::default();
        for n in 0..=STRAYS_MAX as u128 {
            strays.add(EngineId(0), Uuid::from_u128(n));
        }
        assert_eq!(strays.sessions.len(), STRAYS_MAX);
    }
}
