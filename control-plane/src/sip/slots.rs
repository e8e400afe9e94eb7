//! How many connections there may be, in all and from one source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::trunk::bucket::{Bucket, Rate};
use crate::trunk::guard::network;
use crate::trunk::lru::Lru;

/// Connections at once, accepted and opened: some kilobytes each, tens with TLS. Full: new ones are closed at once.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Accepted connections of one source at once: an office of softphones behind one NAT. Beyond: closed at once. So a
/// single host cannot keep the others out. This machine's own programs (a proxy in front of `ws:`) are not counted by source.
pub const CONNECTIONS_A_SOURCE_MAX: usize = 256;

/// Connections of one source a second, and at once: an office that comes back after an outage may do so
/// all together, and a carrier may open one for each call. More
/// are closed at once, so that coming and going costs nobody else anything.
const ACCEPTS_RATE: Rate = Rate { per_second: 100.0, burst: 2.0 * CONNECTIONS_A_SOURCE_MAX as f64 };
/// Sources whose accepts are counted, at some 60 octets each. Full: the one that was silent longest is forgotten.
const SOURCES_MAX: usize = 16_384;

/// All connections, counted.
#[derive(Debug, Clone)]
pub(super) struct Slots(Arc<Mutex<Counts>>);

#[derive(Debug)]
struct Counts {
    open: usize,
    by_source: HashMap<IpAddr, usize>,
    accepts: Lru<IpAddr, Option<Bucket>>,
}

impl Default for Slots {
    fn default() -> Self {
        let counts = Counts { open: 0, by_source: HashMap::new(), accepts: Lru::new(SOURCES_MAX) };
        Self(Arc::new(Mutex::new(counts)))
    }
}

/// Why there is no room for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// [`CONNECTIONS_MAX`].
    Full,
    /// [`CONNECTIONS_A_SOURCE_MAX`], or too many one after the other.
    Source,
}

impl Slots {
    /// Room for a connection: accepted from this source, or (`None`) opened by us.
    pub(super) fn take(&self, source: Option<IpAddr>, now: Instant) -> Result<Slot, NoSlot> {
        let source = source.map(network).filter(|source| !source.is_loopback());
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.open >= CONNECTIONS_MAX {
            return Err(NoSlot::Full);
        }
        if let Some(source) = source {
            if counts.by_source.get(&source).is_some_and(|of| *of >= CONNECTIONS_A_SOURCE_MAX) {
                return Err(NoSlot::Source);
            }
            let accepts = counts.accepts.entry(source);
            if !accepts.get_or_insert_with(|| Bucket::new(ACCEPTS_RATE, now)).take(ACCEPTS_RATE, now) {
                return Err(NoSlot::Source);
            }
            *counts.by_source.entry(source).or_default() += 1;
        }
        counts.open += 1;
        Ok(Slot { slots: self.clone(), source })
    }
}

/// Room for one connection; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    source: Option<IpAddr>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.slots.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.open -= 1;
        let Some(source) = self.source else { return };
        if let Some(of_source) = counts.by_source.get_mut(&source) {
            *of_source -= 1;
            if *of_source == 0 {
                counts.by_source.remove(&source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn now() -> Instant {
        Instant::now()
    }

    #[test]
    fn one_source_cannot_take_all_connections() {
        let slots = Slots::default();
        let one: IpAddr = [192, 0, 2, 1].into();
        let mut held: Vec<_> =
            (0..CONNECTIONS_A_SOURCE_MAX).map(|_| slots.take(Some(one), now()).unwrap()).collect();
        assert_eq!(slots.take(Some(one), now()).unwrap_err(), NoSlot::Source);
        assert!(slots.take(Some([192, 0, 2, 2].into()), now()).is_ok(), "another source is not touched");
        held.pop();
        assert!(slots.take(Some(one), now()).is_ok());
    }

    #[test]
    fn source_that_comes_and_goes_is_slowed_down_and_others_are_not() {
        let (slots, now) = (Slots::default(), now());
        let one: IpAddr = [192, 0, 2, 1].into();
        let accepted = |at| (0..1_000).filter(|_| slots.take(Some(one), at).is_ok()).count();
        assert_eq!(accepted(now), 2 * CONNECTIONS_A_SOURCE_MAX, "each closed at once");
        assert!(slots.take(Some([192, 0, 2, 2].into()), now).is_ok());
        assert_eq!(accepted(now + Duration::from_secs(1)), 100);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_source() {
        let of = |text: &str| network(text.parse().unwrap());
        assert_eq!(of("2001:db8:0:1::1"), of("2001:db8:0:1:ffff::2"));
        assert_ne!(of("2001:db8:0:1::1"), of("2001:db8:0:2::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn proxy_on_this_machine_speaks_for_many() {
        let slots = Slots::default();
        let of_proxy = |_| slots.take(Some([127, 0, 0, 1].into()), now()).unwrap();
        let _held: Vec<_> = (0..=CONNECTIONS_A_SOURCE_MAX).map(of_proxy).collect();
        assert!(slots.take(Some([192, 0, 2, 1].into()), now()).is_ok());
    }

    #[test]
    fn all_is_given_back() {
        let slots = Slots::default();
        drop([slots.take(Some([192, 0, 2, 1].into()), now()), slots.take(None, now())]);
        let counts = slots.0.lock().unwrap();
        assert!(counts.open == 0 && counts.by_source.is_empty());
    }

    #[test]
    fn there_is_a_limit_for_all() {
        let slots = Slots::default();
        let _held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| slots.take(None, now()).unwrap()).collect();
        assert_eq!(slots.take(None, now()).unwrap_err(), NoSlot::Full);
    }
}
