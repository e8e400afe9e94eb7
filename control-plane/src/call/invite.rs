//! The INVITE of a call of ours, as its trunk wants it: Request-URI, From, identities, headers, digest, and the way.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tandem_sip::endpoint::{Reliability, SessionTimer};
use tandem_sip::header::ValueError;
use tandem_sip::message::{Body, Reply};
use tandem_sip::uri::UriError;
use tandem_sip::{Flow, Headers, InviteRequest, NameAddr, Uri};

use super::order::{Callee, Order};
use crate::sip::Destination;
use crate::trunk::credential::escape_user;
use crate::trunk::{Reliable, TemplateValues, Trunk};

/// Why a trunk cannot be asked. The configuration is checked when it is read, so this is what only one call can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// It only calls us.
    #[error("trunk {0} has no sip_uri")]
    NoUri(std::sync::Arc<str>),
    /// The number does not fit a URI.
    #[error("the called number makes no URI: {0}")]
    Uri(#[from] UriError),
    /// A template with this call's values is no address.
    #[error("{field} makes no address: {source}")]
    Address {
        /// Which template.
        field: &'static str,
        /// Why.
        source: ValueError,
    },
}

/// The endpoint's own limit lies this much above ours, which gives the reason.
const RING_SLACK: Duration = Duration::from_secs(10);
/// Where nothing is known yet: the shell chooses.
pub const ANYWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Writes the INVITE to this target; `None`: to whom the order says.
pub fn invite(
    order: &Order,
    trunk: &Trunk,
    target: Option<Uri>,
    offer: Option<Body>,
) -> Result<(InviteRequest, Destination), InviteError> {
    let no_uri = || InviteError::NoUri(trunk.name.clone());
    let next_hop = trunk.credential.next_hop().ok_or_else(no_uri)?;
    let domain = trunk.credential.domain().ok_or_else(no_uri)?;
    let to = match &order.to {
        Callee::Number(number) => trunk.outbound.number_format.write(number),
        Callee::Uri(uri) => uri.user().unwrap_or_default().into_owned(),
        Callee::Phone(user) => user.to_string(),
    };
    let target = match (target, &order.to) {
        (Some(target), _) => target,
        (None, Callee::Uri(uri)) => uri.clone(),
        (None, Callee::Number(_) | Callee::Phone(_)) => {
            Uri::parse(&format!("sip:{}@{}", escape_user(&to), request_host(trunk, domain)))?
        }
    };
    let user = trunk.credential.user().unwrap_or_default();
    let values = TemplateValues { caller_id: &order.from, caller_name: "", user: &user, domain, to: &to };
    let from = match &trunk.outbound.from {
        Some(template) => template.render(&values),
        None => format!("<sip:{}@{domain}>", escape_user(&order.from)),
    };
    let from = NameAddr::parse(&from).map_err(|source| InviteError::Address { field: "from", source })?;
    let mut request = InviteRequest::new(target, from, Flow::udp(ANYWHERE, ANYWHERE));
    for (name, template) in
        [("P-Asserted-Identity", &trunk.outbound.pai), ("P-Preferred-Identity", &trunk.outbound.ppi)]
    {
        if let Some(template) = template {
            push(&mut request.headers, name, &template.render(&values));
        }
    }
    for (name, value) in trunk.credential.sip_headers.iter().chain(&trunk.outbound.headers) {
        push(&mut request.headers, name, value);
    }
    for (name, value) in order.headers.iter() {
        push(&mut request.headers, name, &String::from_utf8_lossy(value));
    }
    request.credentials = trunk.credential.digest();
    request.body = offer;
    request.ring_timeout = Some(order.ring_max + RING_SLACK);
    request.advertised_host = trunk.addresses.advertised_host.as_deref().map(Into::into);
    let (reliable, session_timer) = agreed(trunk);
    (request.session_timer, request.reliable) = (session_timer, Some(reliable));
    let destination =
        Destination { uri: next_hop, transport: None, trunk: Some(trunk.name.clone()), flow: None };
    Ok((request, destination))
}

/// The host of the Request-URI: the domain, or the host and port of `sip_uri`.
/// Reliable provisional responses and session timer of this trunk's calls, both directions.
pub fn agreed(trunk: &Trunk) -> (Reliability, Option<SessionTimer>) {
    let reliable = match trunk.reliable {
        Reliable::IfRequired => Reliability::IfRequired,
        Reliable::Prefer => Reliability::Prefer,
        Reliable::Never => Reliability::Never,
    };
    let timer = trunk.session_timer.map(|timer| SessionTimer {
        expires_s: timer.expires_s,
        min_se_s: timer.min_se_s,
        refresher: None,
    });
    (reliable, timer)
}

/// 420: what its request requires is not agreed with this trunk.
pub fn bad_extension(tag: &str) -> Reply {
    let reply = Reply::new(420);
    reply.clone().header("Unsupported", tag).unwrap_or(reply)
}

fn request_host(trunk: &Trunk, domain: &str) -> String {
    let port = trunk.credential.sip_uri.as_ref().and_then(Uri::port);
    match port.filter(|_| trunk.credential.sip_domain.is_none()) {
        Some(port) => format!("{domain}:{port}"),
        None => domain.to_owned(),
    }
}

/// What cannot stand in a header is left out: a call without it is better than none.
fn push(headers: &mut Headers, name: &str, value: &str) {
    if let Err(error) = headers.push(name, value) {
        tracing::warn!(name, %error, "a header of a trunk cannot be sent");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::call::agent::Agent;
    use crate::trunk::{NumberFormat, Outbound, SipCredential, Template};

    fn order(trunk: Trunk, to: Callee) -> Order {
        Order {
            tenant_id: "t1".into(),
            assistant_id: "desk".into(),
            agent: Agent::Echo,
            ring_max: trunk.outbound.ring_timeout,
            trunk: Arc::new(trunk),
            failover: Vec::new(),
            from: "+4930111".into(),
            to,
            args: Default::default(),
            metadata: Default::default(),
            headers: Headers::new().with("X-Account", "7").unwrap(),
            duration_max: None,
            bulk: None,
            idempotency: None,
            provider: None,
        }
    }

    fn trunk() -> Trunk {
        Trunk {
            name: "carrier".into(),
            credential: SipCredential {
                sip_uri: Some(Uri::parse("sip:42@carrier.example:5070").unwrap()),
                sip_server: Some(Uri::parse("sip:sbc.example").unwrap()),
                sip_password: Some("hunter2".into()),
                sip_headers: vec![("X-Key".into(), "k".into())],
                ..SipCredential::default()
            },
            outbound: Outbound {
                number_format: NumberFormat::Bare,
                pai: Some(Template::parse("<sip:{user}@{domain}>").unwrap()),
                ..Outbound::default()
            },
            ..Trunk::default()
        }
    }

    #[test]
    fn invite_says_what_the_trunk_wants_to_hear() {
        let order = order(trunk(), Callee::Number("+49 30 123".into()));
        let (request, destination) = invite(&order, &order.trunk, None, None).unwrap();
        assert_eq!(request.target.as_str(), "sip:4930123@carrier.example:5070");
        assert_eq!(request.from.uri.as_str(), "sip:+4930111@carrier.example");
        let header = |name: &str| request.headers.get_named(name).map(str::to_owned);
        assert_eq!(header("P-Asserted-Identity").as_deref(), Some("<sip:42@carrier.example>"));
        assert_eq!((header("X-Key").as_deref(), header("X-Account").as_deref()), (Some("k"), Some("7")));
        assert_eq!(request.credentials.unwrap().username, "42");
        assert_eq!(destination.uri.as_str(), "sip:sbc.example");
        assert_eq!(destination.trunk.as_deref(), Some("carrier"));
    }

    #[test]
    fn uri_is_called_as_it_is_and_a_redirection_wins() {
        let uri = Uri::parse("sip:anna@carrier.example").unwrap();
        let order = order(trunk(), Callee::Uri(uri.clone()));
        assert_eq!(invite(&order, &order.trunk, None, None).unwrap().0.target, uri);
        let elsewhere = Uri::parse("sip:bob@carrier.example").unwrap();
        let (request, _) = invite(&order, &order.trunk, Some(elsewhere.clone()), None).unwrap();
        assert_eq!(request.target, elsewhere);
    }

    #[test]
    fn trunk_that_only_calls_us_cannot_be_called() {
        let order = order(Trunk::default(), Callee::Number("1".into()));
        assert!(matches!(invite(&order, &order.trunk, None, None), Err(InviteError::NoUri(_))));
    }
}
