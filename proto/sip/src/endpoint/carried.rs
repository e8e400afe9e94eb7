//! What goes over each connection, so that the end of one costs no more than what it carried.
//!
//! Whatever gets a connection is noted here; what is over, or has moved to another connection, stays in the list until it
//! has doubled, and goes then. So a list is never longer than twice what lives, and noting something takes the same short
//! time on average.

use std::collections::HashMap;

use super::Endpoint;
use super::ledger::Owner;
use crate::flow::ConnectionId;
use crate::table::Id;

/// Entries below which no list is looked through.
const SWEEP_MIN: usize = 32;

/// Something with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Carried {
    Transaction(Id),
    Call(Id),
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct CarriedBy {
    lists: HashMap<ConnectionId, List>,
}

#[derive(Debug, Default)]
struct List {
    all: Vec<Carried>,
    /// How many were alive when it was looked through last.
    alive: usize,
}

impl Endpoint {
    /// Notes that something goes over a connection.
    pub(super) fn carry(&mut self, connection: Option<ConnectionId>, what: Carried) {
        let Some(connection) = connection else { return };
        let list = self.carried_by.lists.entry(connection).or_default();
        list.all.push(what);
        if list.all.len() < 2 * list.alive + SWEEP_MIN {
            return;
        }
        list.all.sort_unstable();
        list.all.dedup();
        let (transactions, calls) = (&self.transactions, &self.calls);
        list.all.retain(|what| match *what {
            Carried::Transaction(id) => transactions.get(id).is_some_and(|transaction| {
                let acks = transaction.acks.iter().map(|ack| ack.flow.connection);
                acks.chain([transaction.flow.connection]).any(|of| of == Some(connection))
            }),
            Carried::Call(id) => calls.get(id).is_some_and(|call| {
                let unacked = call.unacked.as_ref().and_then(|unacked| unacked.flow.connection);
                [call.flow.connection, unacked].contains(&Some(connection))
            }),
        });
        list.alive = list.all.len();
    }

    /// Transactions and calls that a connection carries or has carried, each once; those of a call's transactions are with
    /// them. From now on it carries nothing.
    pub(super) fn take_carried(&mut self, connection: ConnectionId) -> (Vec<Id>, Vec<Id>) {
        let list = self.carried_by.lists.remove(&connection).unwrap_or_default();
        let (mut transactions, mut calls) = (Vec::new(), Vec::new());
        for what in list.all {
            match what {
                Carried::Transaction(id) => {
                    if let Some(Owner::Call(call)) = self.transactions.get(id).map(|of| of.owner) {
                        calls.push(call);
                    }
                    transactions.push(id);
                }
                Carried::Call(id) => calls.push(id),
            }
        }
        for ids in [&mut transactions, &mut calls] {
            ids.sort_unstable();
            ids.dedup();
        }
        (transactions, calls)
    }

    /// Whether a call goes over this connection.
    pub(super) fn carries_call(&self, connection: ConnectionId) -> bool {
        let list = self.carried_by.lists.get(&connection).map(|list| list.all.as_slice());
        list.unwrap_or_default().iter().any(|what| match *what {
            Carried::Call(id) => {
                self.calls.get(id).is_some_and(|call| call.flow.connection == Some(connection))
            }
            Carried::Transaction(_) => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::EndpointConfig;

    #[test]
    fn list_of_a_long_connection_holds_no_more_than_twice_what_lives() {
        let mut endpoint = Endpoint::new(EndpointConfig::default());
        for index in 0..100_000 {
            endpoint.carry(Some(ConnectionId(1)), Carried::Transaction(Id { index, generation: 7 }));
            endpoint.carry(None, Carried::Transaction(Id { index, generation: 7 }));
        }
        assert!(endpoint.carried_by.lists[&ConnectionId(1)].all.len() < SWEEP_MIN);
        assert_eq!(endpoint.carried_by.lists.len(), 1);
        endpoint.take_carried(ConnectionId(1));
        assert!(endpoint.carried_by.lists.is_empty());
    }
}
