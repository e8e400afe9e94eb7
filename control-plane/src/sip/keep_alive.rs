//! Keeps the NAT between us and a registrar open where we registered by UDP: a double CRLF now and then, which a SIP server
//! passes over. (Connections do that by themselves, and notice when the other side is gone: `connection.rs`.) Sans-IO.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tandem_sip::{Flow, Transmit, Transport};

/// Between two of them: NATs are known to forget a UDP mapping after 30 s.
const EVERY: Duration = Duration::from_secs(25);
/// A registration that was not refreshed for so long is over; carriers ask for an hour at most.
const KEPT_MAX: Duration = Duration::from_secs(4_000);
/// Registrars that are kept open. Full: further ones are not, and their NATs may forget us.
const REGISTRARS_MAX: usize = 1_024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct KeepAlives {
    kept: HashMap<SocketAddr, Kept>,
    due: BTreeSet<(Instant, SocketAddr)>,
}

#[derive(Debug)]
struct Kept {
    flow: Flow,
    next: Instant,
    until: Instant,
}

impl KeepAlives {
    /// A REGISTER leaves by this flow.
    pub(super) fn keep(&mut self, flow: Flow, now: Instant) {
        if flow.transport != Transport::Udp {
            return;
        }
        let until = now + KEPT_MAX;
        if let Some(kept) = self.kept.get_mut(&flow.remote) {
            (kept.flow, kept.until) = (flow, until);
        } else if self.kept.len() < REGISTRARS_MAX {
            let next = now + EVERY;
            self.kept.insert(flow.remote, Kept { flow, next, until });
            self.due.insert((next, flow.remote));
        }
    }

    /// When the next one is due.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The next one that is due by now.
    pub(super) fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        loop {
            let (at, remote) = *self.due.first()?;
            if at > now {
                return None;
            }
            self.due.pop_first();
            let Some(kept) = self.kept.get_mut(&remote) else { continue };
            if kept.until <= now {
                self.kept.remove(&remote);
                continue;
            }
            kept.next = now + EVERY;
            self.due.insert((kept.next, remote));
            return Some(Transmit { flow: kept.flow, bytes: b"\r\n\r\n".to_vec() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> Flow {
        Flow::udp(([192, 0, 2, 1], 5060).into(), ([192, 0, 2, 2], port).into())
    }

    #[test]
    fn registrar_hears_of_us_until_registrations_end() {
        let (mut alive, start) = (KeepAlives::default(), Instant::now());
        alive.keep(flow(5060), start);
        assert_eq!(alive.poll_transmit(start), None);
        let mut pings = 0;
        while let Some(at) = alive.poll_timeout() {
            pings += usize::from(alive.poll_transmit(at).is_some());
        }
        assert_eq!(pings, 159, "one each 25 s of 4000 s");
        assert!(alive.kept.is_empty());
    }

    #[test]
    fn refreshed_registration_goes_on_and_adds_no_ping() {
        let (mut alive, start) = (KeepAlives::default(), Instant::now());
        alive.keep(flow(5060), start);
        alive.keep(flow(5060), start + Duration::from_secs(10));
        let at = alive.poll_timeout().unwrap();
        assert_eq!(alive.poll_transmit(at).unwrap().flow, flow(5060));
        assert_eq!(alive.poll_transmit(at), None);
    }

    #[test]
    fn table_is_bounded_and_connections_are_none_of_its() {
        let (mut alive, start) = (KeepAlives::default(), Instant::now());
        for port in 0..2_000 {
            alive.keep(flow(port), start);
        }
        assert_eq!((alive.kept.len(), alive.due.len()), (REGISTRARS_MAX, REGISTRARS_MAX));
        let mut alive = KeepAlives::default();
        alive.keep(Flow { transport: Transport::Tcp, ..flow(1) }, start);
        assert_eq!(alive.poll_timeout(), None);
    }
}
