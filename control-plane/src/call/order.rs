//! A call that somebody wants placed: the request of the API, checked field by field.
//!
//! ```text
//!   CreatePhoneCallRequest ─▶ Order::read(tenant, trunks, assistant) ─▶ Order          queued, dialled
//!                                    └── every field that is wrong ──▶ FieldError, all at once
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use tandem_api::v1 as api;
use tandem_sip::{Headers, Uri};
use uuid::Uuid;

use super::agent::Agent;
use super::dispatcher::{Pace, Queued};
use crate::provider::{Credentials, Deployment};
use crate::store::accounts::Assistant;
use crate::trunk::{HeaderRules, SipCredential, SrtpRules, Trunk, Trunks};

mod guest;

pub use guest::Host;

/// Entries of `metadata`, of `args` and of `headers`.
pub const ENTRIES_MAX: usize = 16;
/// Octets of a key of these.
pub const KEY_MAX: usize = 64;
/// Octets of a value of these.
pub const VALUE_MAX: usize = 1_024;
/// Octets of a number or URI.
pub const NUMBER_MAX: usize = 128;
/// Octets of an idempotency key.
pub const IDEMPOTENCY_KEY_MAX: usize = 128;
/// The longest that a call may be let ring, in seconds: RFC 3261 §16.6's timer C.
const RING_SECONDS_MAX: u64 = 180;

/// A field of a request that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Its name, with the path to it: `phone_calls[3].to_number`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

impl FieldError {
    fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

impl std::fmt::Display for FieldError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.problem)
    }
}

/// By what a repeated request is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// As the client chose it.
    pub key: Arc<str>,
    /// Of everything else in the request.
    pub fingerprint: [u8; 32],
}

/// Who is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Callee {
    /// A number, which the trunk writes in its own form.
    Number(String),
    /// A SIP URI.
    Uri(Uri),
    /// A phone that registers with us, by its user; where it is, is asked when it is dialled.
    Phone(Arc<str>),
}

/// The trunk of calls to our own phones: a name that no `[[trunk]]` can have.
pub const PHONES: &str = "(phones)";
/// Host in From and To of such a call: ours are many, and none is the phone's (RFC 2606).
const PHONES_HOST: &str = "tandem.invalid";

impl Callee {
    /// As records show it.
    pub fn shown(&self) -> &str {
        match self {
            Self::Number(number) => number,
            Self::Uri(uri) => uri.as_str(),
            Self::Phone(user) => user,
        }
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Order {
    /// Whose call it is.
    pub tenant_id: Arc<str>,
    /// Who talks for us.
    pub assistant_id: Arc<str>,
    /// As the assistant says.
    pub agent: Agent,
    /// Over which it goes.
    pub trunk: Arc<Trunk>,
    /// Trunks that are tried when that one does not answer.
    pub failover: Vec<Arc<Trunk>>,
    /// The number that the callee sees.
    pub from: Arc<str>,
    /// Who is called.
    pub to: Callee,
    /// For the agent's start frame.
    pub args: BTreeMap<String, String>,
    /// For whoever reads the call's record.
    pub metadata: BTreeMap<String, String>,
    /// Of the INVITE.
    pub headers: Headers,
    /// How long it may ring.
    pub ring_max: Duration,
    /// How long it may last; `None`: as long as any call.
    pub duration_max: Option<Duration>,
    /// Of which bulk.
    pub bulk: Option<Uuid>,
    /// By what it is known when it comes again.
    pub idempotency: Option<Idempotency>,
    /// The provider that places it; `None`: it goes by SIP, over the trunk.
    pub provider: Option<Arc<Deployment>>,
}

impl Order {
    /// Checks a request.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub fn read(
        request: &api::CreatePhoneCallRequest,
        tenant_id: &Arc<str>,
        trunks: &Trunks,
        credentials: &Credentials,
        assistant: Option<&Assistant>,
    ) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let agent = keep(read_assistant(request, assistant), &mut errors);
        let phone = request.to_number.strip_prefix("phone:");
        let deployment = match read_deployment(request, tenant_id, trunks, credentials) {
            Ok(deployment) => deployment,
            Err(error) => {
                errors.push(error);
                return Err(errors);
            }
        };
        let trunk = match phone {
            _ if deployment.is_some() => deployment.as_deref().map(|own| stand_in(own, tenant_id)),
            Some(user) => {
                let srtp = trunks.find_phone(user).map(|phone| phone.srtp).unwrap_or_default();
                keep(phones(request, tenant_id, srtp), &mut errors)
            }
            None => keep(read_trunk(&request.trunk, tenant_id, trunks), &mut errors),
        };
        let trunk_of = trunk.as_deref();
        let from = keep(read_from(&request.from_number, trunk_of), &mut errors);
        let to = match phone {
            Some(user) => keep(read_phone(user, tenant_id, trunks), &mut errors),
            None if deployment.is_some() => keep(read_number(&request.to_number), &mut errors),
            None => keep(read_to(&request.to_number, trunk_of), &mut errors),
        };
        let args = read_map("args", &request.args, &mut errors);
        let metadata = read_map("metadata", &request.metadata, &mut errors);
        let rules = trunk_of.map(|trunk| &trunk.headers);
        let headers = read_headers(&request.headers, rules, &mut errors);
        let options = read_options(&request.options, trunk_of, &mut errors);
        let key = &request.idempotency_key;
        if key.len() > IDEMPOTENCY_KEY_MAX || key.chars().any(char::is_control) {
            let problem = format!("must have at most {IDEMPOTENCY_KEY_MAX} octets and no control characters");
            errors.push(FieldError::new("idempotency_key", problem));
        }
        match (agent, trunk, from, to) {
            (Some((assistant_id, agent)), Some(trunk), Some(from), Some(to)) if errors.is_empty() => {
                Ok(Self {
                    tenant_id: tenant_id.clone(),
                    assistant_id,
                    agent,
                    failover: failover(&trunk, trunks, request),
                    ring_max: options.0.unwrap_or(trunk.outbound.ring_timeout),
                    trunk,
                    from,
                    to,
                    args,
                    metadata,
                    headers,
                    duration_max: options.1,
                    bulk: None,
                    provider: deployment,
                    idempotency: (!key.is_empty())
                        .then(|| Idempotency { key: key.as_str().into(), fingerprint: fingerprint(request) }),
                })
            }
            _ => Err(errors),
        }
    }

    /// A trunk that is known to be down is asked last: the first that is not, in the order of the failover, comes first.
    pub fn prefer(&mut self, is_down: impl Fn(&Trunk) -> bool) {
        let mut all = vec![self.trunk.clone()];
        all.append(&mut self.failover);
        // Stable: among equals the configuration's order stays.
        all.sort_by_key(|trunk| is_down(trunk));
        self.trunk = all.remove(0);
        self.failover = all;
    }

    /// For whoever reads the call's record.
    pub fn shown_metadata(&self) -> HashMap<String, String> {
        self.metadata.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// As the queue sees it.
    pub fn queued(&self, call_id: Uuid) -> Queued {
        let outbound = &self.trunk.outbound;
        let max = |calls: Option<usize>| calls.map(|calls| u32::try_from(calls).unwrap_or(u32::MAX));
        Queued {
            call_id,
            tenant_id: self.tenant_id.clone(),
            trunk: self.trunk.name.clone(),
            trunk_pace: Pace {
                calls_per_second: Some(outbound.calls_per_second),
                calls_max: max(outbound.calls_max),
            },
            from: self.from.clone(),
            number_pace: Pace {
                calls_per_second: outbound.calls_per_second_per_number,
                calls_max: max(outbound.calls_max_per_number),
            },
            bulk: self.bulk,
        }
    }
}

/// The trunks behind a trunk, of the same tenant, whose own rules let this call go over them: its number or host, and the
/// headers that its agent sets.
fn failover(trunk: &Trunk, trunks: &Trunks, request: &api::CreatePhoneCallRequest) -> Vec<Arc<Trunk>> {
    let next = trunk.outbound.failover.iter().filter_map(|name| trunks.find(name));
    let fits = |next: &&Arc<Trunk>| {
        let mut errors = Vec::new();
        read_headers(&request.headers, Some(&next.headers), &mut errors);
        errors.is_empty() && read_to(&request.to_number, Some(next)).is_ok()
    };
    next.filter(|next| next.tenant_id == trunk.tenant_id && next.credential.next_hop().is_some())
        .filter(fits)
        .cloned()
        .collect()
}

fn keep<T>(read: Result<T, FieldError>, errors: &mut Vec<FieldError>) -> Option<T> {
    read.map_err(|error| errors.push(error)).ok()
}

fn read_assistant(
    request: &api::CreatePhoneCallRequest,
    assistant: Option<&Assistant>,
) -> Result<(Arc<str>, Agent), FieldError> {
    let wanted = request.assistant.clone().unwrap_or_default();
    if wanted.assistant_id.is_empty() {
        return Err(FieldError::new("assistant.assistant_id", "is missing"));
    }
    if !matches!(wanted.version.as_str(), "" | "latest") {
        return Err(FieldError::new("assistant.version", "must be empty or \"latest\""));
    }
    let Some(assistant) = assistant else {
        let problem = format!("the tenant has no assistant {:?}", wanted.assistant_id);
        return Err(FieldError::new("assistant.assistant_id", problem));
    };
    match &assistant.agent {
        Ok(Agent::None) => Err(FieldError::new(
            "assistant.assistant_id",
            "has no agent that could talk: it cannot place calls",
        )),
        Ok(agent) => Ok((assistant.assistant_id.clone(), agent.clone())),
        Err(wrong) => {
            Err(FieldError::new("assistant.assistant_id", format!("its agent is unusable: {wrong}")))
        }
    }
}

fn read_trunk(name: &str, tenant_id: &str, trunks: &Trunks) -> Result<Arc<Trunk>, FieldError> {
    let usable =
        |trunk: &&Arc<Trunk>| &*trunk.tenant_id == tenant_id && trunk.credential.next_hop().is_some();
    let own: Vec<&Arc<Trunk>> = trunks.iter().filter(usable).collect();
    let names = || own.iter().map(|trunk| &*trunk.name).collect::<Vec<_>>().join(", ");
    let found = match (name, own.as_slice()) {
        (_, []) => return Err(FieldError::new("trunk", "the tenant has no trunk that can be called over")),
        ("", [only]) => Some(*only),
        ("", _) => None,
        (name, own) => own.iter().find(|trunk| &*trunk.name == name).copied(),
    };
    found.cloned().ok_or_else(|| FieldError::new("trunk", format!("must be one of {}", names())))
}

/// By which provider it goes. Without a name that is the one whose number it shows, or the only one of a tenant without
/// trunks; `None`: it goes by SIP.
fn read_deployment(
    request: &api::CreatePhoneCallRequest,
    tenant_id: &Arc<str>,
    trunks: &Trunks,
    credentials: &Credentials,
) -> Result<Option<Arc<Deployment>>, FieldError> {
    let assistant_id =
        request.assistant.as_ref().map(|assistant| &*assistant.assistant_id).unwrap_or_default();
    let usable = credentials.of_assistant(tenant_id, assistant_id);
    let usable: Vec<&Arc<Deployment>> = usable.filter(|deployment| deployment.places_calls()).collect();
    let shows = |deployment: &&&Arc<Deployment>| {
        !request.from_number.is_empty() && deployment.phone == request.from_number
    };
    if !request.credential.is_empty() {
        if !request.trunk.is_empty() {
            return Err(FieldError::new(
                "credential",
                "goes without \"trunk\": a call leaves by one of them",
            ));
        }
        if request.to_number.starts_with("phone:") {
            return Err(FieldError::new(
                "credential",
                "must be empty: a phone of ours is called without one",
            ));
        }
        let named: Vec<&Arc<Deployment>> =
            usable.iter().copied().filter(|own| *own.credential.name == *request.credential).collect();
        let Some(first) = named.first() else {
            let mut names: Vec<&str> = usable.iter().map(|own| &*own.credential.name).collect();
            names.dedup();
            let problem = match names.as_slice() {
                [] => "no credential is deployed to the assistant: see [[deployment]]".to_owned(),
                names => format!("must be one that is deployed to the assistant: {}", names.join(", ")),
            };
            return Err(FieldError::new("credential", problem));
        };
        return Ok(Some((*named.iter().find(shows).unwrap_or(first)).clone()));
    }
    let is_sip = !request.trunk.is_empty()
        || request.to_number.starts_with("phone:")
        || request.to_number.starts_with("sip:")
        || request.to_number.starts_with("sips:");
    if is_sip {
        return Ok(None);
    }
    if let Some(shown) = usable.iter().find(shows) {
        return Ok(Some((*shown).clone()));
    }
    let has_trunk =
        trunks.iter().any(|trunk| trunk.tenant_id == *tenant_id && trunk.credential.next_hop().is_some());
    let mut names: Vec<&str> = usable.iter().map(|own| &*own.credential.name).collect();
    names.sort_unstable();
    names.dedup();
    match names.as_slice() {
        // Of several numbers the first: who wants another says which.
        [_] if !has_trunk => Ok(usable.first().map(|first| (*first).clone())),
        [_, _, ..] if !has_trunk => {
            Err(FieldError::new("credential", format!("must be one of {}", names.join(", "))))
        }
        _ => Ok(None),
    }
}

/// What stands for a trunk in a call that a provider places: its pace and the number that it shows.
fn stand_in(deployment: &Deployment, tenant_id: &Arc<str>) -> Arc<Trunk> {
    let credential = &deployment.credential;
    // A name that no `[[trunk]]` can have.
    let name = format!("({}) {}", deployment.provider(), credential.name);
    let mut trunk = Trunk { name: name.into(), tenant_id: tenant_id.clone(), ..Trunk::default() };
    trunk.outbound.caller_id = Some(deployment.phone.clone()).filter(|phone| !phone.is_empty());
    trunk.outbound.calls_per_second = credential.calls_per_second;
    trunk.outbound.calls_max = credential.calls_max.map(|max| max as usize);
    Arc::new(trunk)
}

/// Whom a provider can call: a number.
fn read_number(text: &str) -> Result<Callee, FieldError> {
    match read_to(text, None)? {
        Callee::Number(number) => Ok(Callee::Number(number)),
        _ => Err(FieldError::new("to_number", "must be a number: a provider's REST API dials no SIP URI")),
    }
}

/// What stands for a trunk in a call to a phone of ours: it shows the assistant unless a number is given.
fn phones(
    request: &api::CreatePhoneCallRequest,
    tenant_id: &Arc<str>,
    srtp: SrtpRules,
) -> Result<Arc<Trunk>, FieldError> {
    if !request.trunk.is_empty() {
        return Err(FieldError::new("trunk", "must be empty: a phone of ours is called without one"));
    }
    let shown = request.assistant.as_ref().map(|assistant| assistant.assistant_id.as_str());
    Ok(phones_as(shown.unwrap_or_default(), tenant_id, srtp))
}

/// The same, which shows this number or name.
fn phones_as(shown: &str, tenant_id: &Arc<str>, srtp: SrtpRules) -> Arc<Trunk> {
    let sip_uri = Uri::parse(&format!("sip:{PHONES_HOST}")).ok();
    let mut trunk = Trunk { name: PHONES.into(), tenant_id: tenant_id.clone(), srtp, ..Trunk::default() };
    trunk.credential = SipCredential { sip_uri, ..SipCredential::default() };
    trunk.outbound.caller_id = Some(shown.to_owned()).filter(|shown| !shown.is_empty());
    Arc::new(trunk)
}

fn read_phone(user: &str, tenant_id: &str, trunks: &Trunks) -> Result<Callee, FieldError> {
    let phone = trunks.find_phone(user).filter(|phone| &*phone.tenant_id == tenant_id);
    let problem = || FieldError::new("to_number", format!("the tenant has no phone {user:?}"));
    phone.map(|phone| Callee::Phone(phone.user.clone())).ok_or_else(problem)
}

fn read_from(text: &str, trunk: Option<&Trunk>) -> Result<Arc<str>, FieldError> {
    if !text.is_empty() {
        return match is_user(text) {
            true => Ok(text.into()),
            false => Err(FieldError::new("from_number", "must be a number or a name, such as +4930123456")),
        };
    }
    let Some(trunk) = trunk else { return Ok(Arc::default()) };
    let own = trunk.outbound.caller_id.clone().or_else(|| trunk.credential.user());
    own.map(Into::into).ok_or_else(|| {
        FieldError::new("from_number", "is missing, and the trunk has no caller_id to use instead")
    })
}

/// Whom a text names, if this trunk may call them.
pub(crate) fn read_to(text: &str, trunk: Option<&Trunk>) -> Result<Callee, FieldError> {
    let wrong = |problem: &str| FieldError::new("to_number", problem);
    if text.is_empty() {
        return Err(wrong("is missing"));
    }
    if text.len() > NUMBER_MAX {
        return Err(wrong("is longer than 128 octets"));
    }
    let text = text.strip_prefix("tel:").unwrap_or(text);
    if text.starts_with("sip:") || text.starts_with("sips:") {
        let uri = Uri::parse(text).map_err(|error| wrong(&format!("is no SIP URI: {error}")))?;
        if uri.password().is_some() || uri.headers().is_some() {
            return Err(wrong("must be a SIP URI without password and headers"));
        }
        if uri.user().is_none() {
            return Err(wrong("must be a SIP URI with a user"));
        }
        return match trunk {
            Some(trunk) if !is_host_of(trunk, uri.host()) => {
                Err(wrong(&format!("host {} is not one of trunk {}", uri.host(), trunk.name)))
            }
            Some(trunk) if !trunk.outbound.allows_number(&uri.user().unwrap_or_default()) => {
                Err(wrong("is not among the numbers that the trunk may call"))
            }
            _ => Ok(Callee::Uri(uri)),
        };
    }
    if !is_user(text) {
        return Err(wrong("must be a number such as +4930123456, or a SIP URI"));
    }
    if trunk.is_some_and(|trunk| !trunk.outbound.allows_number(text)) {
        return Err(wrong("is not among the numbers that the trunk may call"));
    }
    Ok(Callee::Number(text.to_owned()))
}

/// Whether a URI at this host is the trunk's to reach.
pub fn is_host_of(trunk: &Trunk, host: &str) -> bool {
    let credential = &trunk.credential;
    let uris = [credential.sip_uri.as_ref(), credential.sip_server.as_ref()];
    credential.domain().is_some_and(|domain| domain.eq_ignore_ascii_case(host))
        || uris.into_iter().flatten().any(|uri| uri.host().eq_ignore_ascii_case(host))
}

/// A telephone number or an extension or a name, as people write them.
fn is_user(text: &str) -> bool {
    let ordinary = |c: char| c.is_ascii_alphanumeric() || "+-_.*#() ".contains(c);
    text.len() <= NUMBER_MAX && text.chars().any(|c| c.is_ascii_alphanumeric()) && text.chars().all(ordinary)
}

fn read_map(
    field: &'static str,
    given: &HashMap<String, String>,
    errors: &mut Vec<FieldError>,
) -> BTreeMap<String, String> {
    if given.len() > ENTRIES_MAX {
        errors.push(FieldError::new(field, format!("has {} entries, at most {ENTRIES_MAX}", given.len())));
        return BTreeMap::new();
    }
    for (key, value) in given {
        if key.is_empty() || key.len() > KEY_MAX || key.chars().any(char::is_control) {
            errors.push(FieldError::new(field, format!("keys must have 1 to {KEY_MAX} octets")));
        } else if value.len() > VALUE_MAX {
            errors.push(FieldError::new(
                format!("{field}.{key}"),
                format!("is longer than {VALUE_MAX} octets"),
            ));
        }
    }
    given.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn read_headers(
    given: &HashMap<String, String>,
    rules: Option<&HeaderRules>,
    errors: &mut Vec<FieldError>,
) -> Headers {
    let mut headers = Headers::new();
    let given = read_map("headers", given, errors);
    for (name, value) in &given {
        let field = format!("headers.{name}");
        if rules.is_some_and(|rules| !rules.lets_set(name)) {
            errors.push(FieldError::new(field, "is not on the trunk's list of headers that may be set"));
        } else if let Err(error) = headers.push(name, value) {
            errors.push(FieldError::new(field, error.to_string()));
        }
    }
    headers
}

fn read_options(
    given: &HashMap<String, String>,
    trunk: Option<&Trunk>,
    errors: &mut Vec<FieldError>,
) -> (Option<Duration>, Option<Duration>) {
    let mut read = (None, None);
    for (key, value) in given {
        let field = format!("options.{key}");
        let seconds = value.parse::<u64>().ok().filter(|seconds| *seconds > 0);
        match (key.as_str(), seconds) {
            ("ring_seconds_max", Some(seconds)) if seconds <= RING_SECONDS_MAX => {
                let own = trunk.map(|trunk| trunk.outbound.ring_timeout);
                let wanted = Duration::from_secs(seconds);
                read.0 = Some(own.map_or(wanted, |own| own.min(wanted)));
            }
            ("ring_seconds_max", _) => {
                errors.push(FieldError::new(field, format!("must be 1 to {RING_SECONDS_MAX} seconds")));
            }
            ("duration_seconds_max", Some(seconds)) => read.1 = Some(Duration::from_secs(seconds)),
            ("duration_seconds_max", None) => {
                errors.push(FieldError::new(field, "must be a number of seconds"));
            }
            _ => errors
                .push(FieldError::new(field, "is unknown; known are ring_seconds_max, duration_seconds_max")),
        }
    }
    read
}

/// Of everything but the key. Maps have no order of their own, so their entries are sorted.
fn fingerprint(request: &api::CreatePhoneCallRequest) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut feed = |text: &str| {
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text.as_bytes());
    };
    let assistant = request.assistant.clone().unwrap_or_default();
    let api::CreatePhoneCallRequest { from_number, to_number, trunk, credential, .. } = request;
    for text in [&assistant.assistant_id, from_number, to_number, trunk, credential] {
        feed(text);
    }
    for map in [&request.metadata, &request.args, &request.options, &request.headers] {
        feed(&map.len().to_string());
        for (key, value) in map.iter().collect::<BTreeMap<_, _>>() {
            feed(key);
            feed(value);
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trunk::{Outbound, SipCredential};

    fn trunks() -> Trunks {
        let credential = SipCredential {
            sip_uri: Some(Uri::parse("sip:42@carrier.example").unwrap()),
            ..SipCredential::default()
        };
        let outbound = Outbound {
            numbers_denied: vec!["+49900".into()],
            failover: vec!["second".into(), "foreign".into(), "gone".into()],
            ..Outbound::default()
        };
        let headers = HeaderRules { from_agent: vec!["X-*".into()], ..HeaderRules::default() };
        let trunk = |name: &str, tenant: &str| Trunk {
            name: name.into(),
            tenant_id: tenant.into(),
            credential: credential.clone(),
            outbound: outbound.clone(),
            headers: headers.clone(),
            ..Trunk::default()
        };
        Trunks::new([trunk("first", "t1"), trunk("second", "t1"), trunk("foreign", "t2")], [])
    }

    fn request() -> api::CreatePhoneCallRequest {
        api::CreatePhoneCallRequest {
            assistant: Some(api::AssistantDefinition { assistant_id: "desk".into(), version: String::new() }),
            from_number: "+4930111".into(),
            to_number: "+4930123456".into(),
            trunk: "first".into(),
            ..Default::default()
        }
    }

    fn read(request: &api::CreatePhoneCallRequest) -> Result<Order, Vec<FieldError>> {
        let desk = Assistant { assistant_id: "desk".into(), agent: Ok(Agent::Echo) };
        Order::read(request, &"t1".into(), &trunks(), &Credentials::default(), Some(&desk))
    }

    fn fields(request: &api::CreatePhoneCallRequest) -> Vec<String> {
        let mut fields: Vec<String> = read(request).unwrap_err().into_iter().map(|e| e.field).collect();
        fields.sort();
        fields
    }

    #[test]
    fn good_request_becomes_an_order_with_the_tenants_own_failover_trunks() {
        let order = read(&request()).unwrap();
        assert_eq!(order.to, Callee::Number("+4930123456".into()));
        assert_eq!(order.failover.iter().map(|trunk| &*trunk.name).collect::<Vec<_>>(), ["second"]);
        assert_eq!(order.ring_max, Duration::from_secs(60));
        assert_eq!(order.queued(Uuid::nil()).trunk_pace.calls_per_second, Some(5.0));
    }

    #[test]
    fn everything_wrong_is_said_at_once_and_by_name() {
        let mut wrong = api::CreatePhoneCallRequest { trunk: "foreign".into(), ..Default::default() };
        wrong.options.insert("colour".into(), "red".into());
        wrong.idempotency_key = "x".repeat(200);
        let expected = ["assistant.assistant_id", "idempotency_key", "options.colour", "to_number", "trunk"];
        assert_eq!(fields(&wrong), expected);
    }

    #[test]
    fn numbers_and_uris_must_be_the_trunks_to_call() {
        let to = |text: &str| read(&api::CreatePhoneCallRequest { to_number: text.into(), ..request() });
        for good in ["+4930123456", "tel:+4930123456", "sip:anna@carrier.example", "*21#", "0301234"] {
            assert!(to(good).is_ok(), "{good}");
        }
        for wrong in [
            "+49900123",
            "sip:anna@evil.example",
            "sip:anna:secret@carrier.example",
            "sip:carrier.example",
            "sip:anna@carrier.example?X=1",
            "+49\r\nVia: x",
            "+49@evil",
        ] {
            assert!(to(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn headers_pass_by_the_trunks_list_and_cannot_break_a_line() {
        let mut given = request();
        given.headers.insert("X-Account".into(), "7".into());
        assert_eq!(read(&given).unwrap().headers.get_named("x-account"), Some("7"));
        given.headers.insert("Contact".into(), "<sip:me@evil>".into());
        given.headers.insert("X-Bad".into(), "a\r\nVia: evil".into());
        assert_eq!(fields(&given), ["headers.Contact", "headers.X-Bad"]);
    }

    #[test]
    fn credential_is_chosen_by_the_number_shown_or_because_it_is_the_only_one() {
        let text = "[credential.main]\nprovider = 'plivo'\nauth_id = 'MA1'\nauth_token = 'hunter2'\n\
                    [credential.wa]\nprovider = 'whatsapp'\nphone_number_id = '1'\naccess_token = 'a'\napp_secret = 'b'\n\
                    verify_token = 'c'\n[[deployment]]\ncredential = 'wa'\n\
                    [[deployment]]\ncredential = 'main'\nphone = '+4930111'\n\
                    [[deployment]]\ncredential = 'main'\nphone = '+4930112'\n";
        let tables: toml::Table = text.parse().unwrap();
        let source = crate::settings::section::Source::new(std::path::Path::new("t"), &|_| None);
        let (_, tenants) = crate::store::declared::read(&source, &tables, false);
        let credentials = crate::provider::file::read(&source, &tables, &tenants);
        let errors = source.into_errors();
        assert!(errors.is_empty(), "{errors:?}");
        let tenant: Arc<str> = "default".into();
        let desk = Assistant { assistant_id: "desk".into(), agent: Ok(Agent::Echo) };
        let read = |from: &str, credential: &str| {
            let given = api::CreatePhoneCallRequest {
                from_number: from.into(),
                trunk: String::new(),
                credential: credential.into(),
                ..request()
            };
            Order::read(&given, &tenant, &Trunks::default(), &credentials, Some(&desk))
        };
        let phone =
            |order: Order| order.provider.map(|deployment| deployment.phone.clone()).unwrap_or_default();
        assert_eq!(phone(read("", "").unwrap()), "+4930111", "the only one that places calls");
        assert_eq!(phone(read("+4930112", "").unwrap()), "+4930112");
        assert_eq!(phone(read("+4930112", "main").unwrap()), "+4930112");
        assert!(read("", "wa").is_err() && read("", "nobody").is_err());
        let order = read("", "main").unwrap();
        assert_eq!((&*order.from, &*order.trunk.name), ("+4930111", "(plivo) main"));
    }

    #[test]
    fn trunk_that_is_down_is_asked_last() {
        let mut order = read(&request()).unwrap();
        order.prefer(|trunk| &*trunk.name == "first");
        assert_eq!((&*order.trunk.name, &*order.failover[0].name), ("second", "first"));
        order.prefer(|_| true);
        assert_eq!(&*order.trunk.name, "second");
    }

    #[test]
    fn trunk_must_be_named_when_there_are_several() {
        let given = api::CreatePhoneCallRequest { trunk: String::new(), ..request() };
        let errors = read(&given).unwrap_err();
        assert_eq!(errors[0].to_string(), "trunk: must be one of first, second");
    }

    #[test]
    fn same_request_has_the_same_fingerprint_whatever_its_key() {
        let with = |key: &str, to: &str| {
            let mut given = request();
            given.to_number = to.into();
            given.idempotency_key = key.into();
            for n in 0..10 {
                given.args.insert(format!("k{n}"), "v".into());
            }
            read(&given).unwrap().idempotency.unwrap().fingerprint
        };
        assert_eq!(with("a", "+4930"), with("b", "+4930"));
        assert_ne!(with("a", "+4930"), with("a", "+4931"));
    }

    #[test]
    fn trunk_behind_a_trunk_is_tried_only_where_its_own_rules_let_the_call_go() {
        let credential = |host: &str| SipCredential {
            sip_uri: Some(Uri::parse(&format!("sip:42@{host}")).unwrap()),
            ..SipCredential::default()
        };
        let mut first = Trunk { name: "first".into(), tenant_id: "t1".into(), ..Trunk::default() };
        first.credential = credential("one.example");
        first.headers.from_agent = vec!["X-*".into()];
        first.outbound.failover = vec!["second".into()];
        let mut second = Trunk { name: "second".into(), tenant_id: "t1".into(), ..Trunk::default() };
        second.credential = credential("two.example");
        second.outbound.numbers_denied = vec!["+49900".into()];
        let trunks = Trunks::new([first, second], []);
        let desk = Assistant { assistant_id: "desk".into(), agent: Ok(Agent::Echo) };
        let behind = |to: &str, header: Option<&str>| {
            let headers = header.map(|name| (name.to_owned(), "1".to_owned())).into_iter().collect();
            let request = api::CreatePhoneCallRequest {
                to_number: to.into(),
                trunk: "first".into(),
                headers,
                ..request()
            };
            let none = Credentials::default();
            Order::read(&request, &"t1".into(), &trunks, &none, Some(&desk)).unwrap().failover.len()
        };
        assert_eq!(behind("+4930111", None), 1);
        assert_eq!(behind("+49900111", None), 0, "a number that it may not call");
        assert_eq!(behind("sip:anna@one.example", None), 0, "a host that is not its own");
        assert_eq!(behind("+4930111", Some("X-Campaign")), 0, "a header that it does not pass");
    }
}
