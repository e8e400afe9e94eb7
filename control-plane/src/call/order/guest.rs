//! Whom a live call brings in: over its own trunk if it has one that can be called over, else over the tenant's only one.

use super::{Agent, Arc, FieldError, Order, Trunk, Trunks, phones_as, read_phone, read_to, read_trunk};
use tandem_sip::Headers;

/// The call that brings somebody in.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    /// Whose it is.
    pub tenant_id: &'a Arc<str>,
    /// Who talks in it.
    pub assistant_id: &'a Arc<str>,
    /// As the assistant says.
    pub agent: &'a Agent,
    /// Over which it came or goes.
    pub trunk: Option<&'a Arc<Trunk>>,
    /// The number that is shown.
    pub number: &'a str,
}

impl Order {
    /// Checks whom somebody wants brought in: a number, a SIP URI, or `phone:` and a user. `trunk`: over this one; empty: the
    /// call's own.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn guest(host: Host<'_>, to: &str, trunk: &str, trunks: &Trunks) -> Result<Self, FieldError> {
        let phone = to.strip_prefix("phone:");
        let usable =
            |own: &&Arc<Trunk>| own.tenant_id == *host.tenant_id && own.credential.next_hop().is_some();
        let trunk = match (phone, trunk, host.trunk.filter(usable)) {
            (Some(user), "", _) => {
                let srtp = trunks.find_phone(user).map(|phone| phone.srtp).unwrap_or_default();
                phones_as(host.number, host.tenant_id, srtp)
            }
            (Some(_), _, _) => {
                return Err(FieldError::new("trunk", "must be empty: a phone of ours is called without one"));
            }
            (None, "", Some(own)) => own.clone(),
            (None, name, _) => read_trunk(name, host.tenant_id, trunks)?,
        };
        let to = match phone {
            Some(user) => read_phone(user, host.tenant_id, trunks),
            None => read_to(to, Some(&trunk)),
        };
        let to = to.map_err(|error| FieldError { field: "to".to_owned(), ..error })?;
        let own_number = trunk.outbound.caller_id.clone().or_else(|| trunk.credential.user());
        Ok(Self {
            provider: None,
            tenant_id: host.tenant_id.clone(),
            assistant_id: host.assistant_id.clone(),
            agent: host.agent.clone(),
            from: own_number.unwrap_or_else(|| host.number.to_owned()).into(),
            ring_max: trunk.outbound.ring_timeout,
            trunk,
            failover: Vec::new(),
            to,
            args: Default::default(),
            metadata: Default::default(),
            headers: Headers::new(),
            duration_max: None,
            bulk: None,
            idempotency: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::order::Callee;
    use crate::trunk::SipCredential;
    use tandem_sip::Uri;

    fn read(to: &str, trunk: &str, own: Option<&Arc<Trunk>>) -> Result<Order, String> {
        let (tenant_id, assistant_id) = ("t1".into(), "echo".into());
        let host = Host {
            tenant_id: &tenant_id,
            assistant_id: &assistant_id,
            agent: &Agent::Echo,
            trunk: own,
            number: "100",
        };
        Order::guest(host, to, trunk, &Trunks::default()).map_err(|error| error.to_string())
    }

    fn carrier() -> Arc<Trunk> {
        let sip_uri = Uri::parse("sip:42@carrier.example").ok();
        let credential = SipCredential { sip_uri, ..SipCredential::default() };
        Arc::new(Trunk { tenant_id: "t1".into(), name: "carrier".into(), credential, ..Trunk::default() })
    }

    #[test]
    fn number_goes_over_the_trunk_of_the_call() {
        let order = read("+4930333", "", Some(&carrier())).unwrap();
        assert_eq!((&*order.trunk.name, &*order.from), ("carrier", "42"));
        assert_eq!(order.to, Callee::Number("+4930333".into()));
    }

    #[test]
    fn what_cannot_be_called_is_refused_by_its_field() {
        for (to, trunk, own, field) in [
            ("+4930333", "", None, "trunk: "),
            ("phone:nobody", "", None, "to: "),
            ("phone:anna", "carrier", None, "trunk: "),
            ("", "", Some(carrier()), "to: "),
            ("sip:anna@elsewhere.example", "", Some(carrier()), "to: "),
        ] {
            let error = read(to, trunk, own.as_ref()).unwrap_err();
            assert!(error.starts_with(field), "{to}: {error}");
        }
    }
}
