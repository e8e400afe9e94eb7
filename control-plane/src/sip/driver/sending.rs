//! The driver's way with requests of our own: find out where they go, find a connection, go on when a target fails.

use std::time::Instant;

use tandem_sip::resolve::{Resolution, Target};
use tandem_sip::{Flow, Headers, Method, Transport};

use super::super::counters::count;
use super::super::outgoing::{Attempt, Handle, Wanted};
use super::super::transport::Identity;
use super::super::{Destination, NotSent, SipEvent, Token};
use super::{Driver, RESOLUTIONS_MAX, Resolving};

impl Driver {
    /// Finds out where a request goes.
    pub(super) fn begin(&mut self, token: Token, mut wanted: Wanted, destination: Destination) {
        let Destination { uri, transport, trunk, flow } = destination;
        if let Some(host) = trunk.as_ref().and_then(|trunk| self.tls.advertised_host(trunk)) {
            wanted.advertise(host);
        }
        if let Some(flow) = flow {
            return self.begin_by_flow(token, wanted, flow);
        }
        let named = trunk.as_ref().and_then(|trunk| self.tls.server_name(trunk));
        let host =
            named.unwrap_or_else(|| uri.host().trim_matches(['[', ']', '.']).to_ascii_lowercase().into());
        let ours = self.transports.outgoing();
        let resolution = match Resolution::new(&uri, transport, &ours, rand::random()) {
            Ok(resolution) => resolution,
            Err(why) => {
                let why = why.to_string().into();
                return self.not_sent(token, NotSent::Unresolved { host, why });
            }
        };
        let identity = Identity { trunk, host };
        if let Some(targets) = resolution.targets() {
            return self.try_targets(token, wanted, identity, targets);
        }
        if self.resolving.len() >= RESOLUTIONS_MAX {
            return self.not_sent(token, NotSent::Full("names being looked up"));
        }
        self.resolving.insert(token, Resolving { wanted, identity });
        let (resolver, resolved) = (self.resolver.clone(), self.resolved_in.clone());
        tokio::spawn(async move {
            let targets = resolver.resolve(resolution).await;
            // The driver is gone: so is everything.
            let _ = resolved.send((token, targets)).await;
        });
    }

    /// The peer has come by this flow, and nothing else leads to it.
    fn begin_by_flow(&mut self, token: Token, wanted: Wanted, flow: Flow) {
        if flow.transport != Transport::Udp && !flow.connection.is_some_and(|id| self.transports.knows(id)) {
            let why = "the connection by which it is reached is gone";
            let (transport, remote) = (flow.transport.token(), flow.remote);
            return self.not_sent(token, NotSent::Unreachable { transport, remote, why });
        }
        self.keep_alive(token, &wanted, flow);
        self.perform_now(wanted.verb(token, flow));
    }

    pub(super) fn handle_resolved(&mut self, token: Token, targets: Result<Vec<Target>, String>) {
        let Some(Resolving { wanted, identity }) = self.resolving.remove(&token) else { return };
        match targets {
            Ok(targets) => self.try_targets(token, wanted, identity, targets),
            Err(why) => {
                count(&self.counters.net.unresolved);
                self.not_sent(token, NotSent::Unresolved { host: identity.host, why: why.into() });
            }
        }
    }

    fn try_targets(&mut self, token: Token, wanted: Wanted, identity: Identity, targets: Vec<Target>) {
        let now = Instant::now();
        if let Some(trunk) = &identity.trunk {
            for target in &targets {
                self.guard.resolved(trunk, target.address.ip(), now);
            }
        }
        let attempt = self.outgoing.plan(token, wanted, Some(identity), targets, now);
        if let Err(why) = self.try_next(attempt) {
            self.not_sent(token, why);
        }
    }

    /// Gives a request to its next hop that can be reached. `Err`: there is none.
    pub(super) fn try_next(&mut self, mut attempt: Attempt) -> Result<(), NotSent> {
        let (now, token) = (Instant::now(), attempt.token);
        let mut why = NotSent::Full("targets");
        while let Some(hop) = attempt.next_hop() {
            let Target { transport, address } = hop.target;
            let flow = match self.transports.flow_to(transport, address, attempt.identity.clone()) {
                Ok((flow, is_old)) => {
                    if is_old {
                        attempt.goes_by_old_connection(hop);
                    }
                    flow
                }
                Err(error) => {
                    self.outgoing.unreachable(hop.target, now);
                    why = error;
                    continue;
                }
            };
            self.keep_alive(token, &attempt.wanted, flow);
            let said = match attempt.wanted.clone().verb(token, flow).perform(&mut self.endpoint, now)? {
                Some(SipEvent::NotSent { why, .. }) => return Err(why),
                said => said,
            };
            match &said {
                Some(SipEvent::Placed { call, .. }) => {
                    self.outgoing.placed(Handle::Call(*call), attempt, now);
                }
                Some(SipEvent::Sent { handle, .. }) => {
                    self.outgoing.placed(Handle::Request(*handle), attempt, now);
                }
                _ => {}
            }
            self.said.extend(said);
            return Ok(());
        }
        Err(why)
    }

    /// A registration keeps the way alive by which it goes, and hears of the end of a connection.
    fn keep_alive(&mut self, token: Token, wanted: &Wanted, flow: Flow) {
        let is_register = matches!(wanted, Wanted::Request(request) if request.method == Method::Register);
        match flow.connection {
            _ if !is_register => {}
            Some(connection) => self.transports.keep_alive(connection, token),
            None => self.keep_alives.keep(flow, Instant::now()),
        }
    }

    /// Requests whose target has said nothing for too long go to the next one.
    pub(super) fn leave_silent(&mut self, now: Instant) {
        while let Some(handle) = self.outgoing.handle_timeout(now) {
            if let Handle::Call(call) = handle
                && self.endpoint.has_heard(call)
            {
                continue;
            }
            let Some(attempt) = self.outgoing.take(handle, now) else { continue };
            // Nowhere else to go: then the silent one is all there is, and it may still wake up.
            if self.try_next(attempt).is_err() {
                continue;
            }
            count(&self.counters.net.failovers);
            self.outgoing.leave(handle);
            if let Handle::Call(call) = handle {
                // It gets a CANCEL if it wakes up, and a BYE if it has answered by then.
                let _ = self.endpoint.hang_up(call, Headers::new(), now);
            }
        }
    }
}
