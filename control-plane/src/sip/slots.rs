//! How many connections there may be, in all and from one source.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Connections at once, accepted and opened: some kilobytes each, tens with TLS. Full: new ones are closed at once.
pub const CONNECTIONS_MAX: usize = 4_096;
/// Accepted connections of one source at once: an office of softphones behind one NAT. Beyond: closed at once. So a
/// single host cannot keep the others out. This machine's own programs (a proxy in front of `ws:`) are not counted by source.
pub const CONNECTIONS_A_SOURCE_MAX: usize = 256;

/// All connections, counted.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    open: usize,
    by_source: HashMap<IpAddr, usize>,
}

/// Why there is no room for one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// [`CONNECTIONS_MAX`].
    Full,
    /// [`CONNECTIONS_A_SOURCE_MAX`].
    Source,
}

impl Slots {
    /// Room for a connection: accepted from this source, or (`None`) opened by us.
    pub(super) fn take(&self, source: Option<IpAddr>) -> Result<Slot, NoSlot> {
        let source = source.map(network).filter(|source| !source.is_loopback());
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.open >= CONNECTIONS_MAX {
            return Err(NoSlot::Full);
        }
        if let Some(source) = source {
            let of_source = counts.by_source.entry(source).or_default();
            if *of_source >= CONNECTIONS_A_SOURCE_MAX {
                return Err(NoSlot::Source);
            }
            *of_source += 1;
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

/// What counts as one source: an IPv4 address, or a /64 of IPv6, which one host has to itself.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) if ip.is_loopback() => ip.into(),
        IpAddr::V6(ip) => (ip.to_bits() >> 64 << 64).to_be_bytes().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all_connections() {
        let slots = Slots::default();
        let one: IpAddr = [192, 0, 2, 1].into();
        let mut held: Vec<_> =
            (0..CONNECTIONS_A_SOURCE_MAX).map(|_| slots.take(Some(one)).unwrap()).collect();
        assert_eq!(slots.take(Some(one)).unwrap_err(), NoSlot::Source);
        assert!(slots.take(Some([192, 0, 2, 2].into())).is_ok(), "another source is not touched");
        held.pop();
        assert!(slots.take(Some(one)).is_ok());
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
        let of_proxy = |_| slots.take(Some([127, 0, 0, 1].into())).unwrap();
        let _held: Vec<_> = (0..=CONNECTIONS_A_SOURCE_MAX).map(of_proxy).collect();
        assert!(slots.take(Some([192, 0, 2, 1].into())).is_ok());
    }

    #[test]
    fn all_is_given_back() {
        let slots = Slots::default();
        drop([slots.take(Some([192, 0, 2, 1].into())), slots.take(None)]);
        let counts = slots.0.lock().unwrap();
        assert!(counts.open == 0 && counts.by_source.is_empty());
    }

    #[test]
    fn there_is_a_limit_for_all() {
        let slots = Slots::default();
        let _held: Vec<_> = (0..CONNECTIONS_MAX).map(|_| slots.take(None).unwrap()).collect();
        assert_eq!(slots.take(None).unwrap_err(), NoSlot::Full);
    }
}
