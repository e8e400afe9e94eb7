//! May this caller have this call? Four plain functions in a row, each adding steps to the decision trace.
//!
//! ```text
//!   credential ──▶ principal ──▶ assistant ──▶ agent
//!      │ key in the URI      ──▶ [store] its tenant ──▶ the URI's user
//!      │ phone's digest      ──▶ its tenant         ──▶ the dialled phone's assistant, its own, or the dialled user
//!      │ trunk's address or certificate ──▶ its tenant ──▶ the assistant of the dialled number
//!     403 · 401                 403 · 503              404            500
//! ```
//!
//! Default deny: who has none of the three is refused, and nothing is looked up or kept. Whether an assistant exists is
//! said only to the bearer of a valid credential. No step keeps or shows a key or a password.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tandem_api::v1::DecisionStep;
use tandem_sip::message::{Reply, Request};
use tandem_sip::{HeaderName, NameAddr, Uri};

use super::agent::Agent;
use super::ending::{Cause, Ending};
use super::gate::{Gate, Owner, Wrong};
use super::machine::Place;
use crate::sip::TlsPeer;
use crate::store::accounts::{Found, KeyHash, Principal};
use crate::trunk::inbound::Weight;
use crate::trunk::{DidSource, Phone, Route, Trunk, Trunks};

/// The steps that were asked, in order; the last one of a refused call refused it.
pub type Trace = Vec<DecisionStep>;

/// An INVITE, as admission sees it.
#[derive(Debug, Clone, Copy)]
pub struct Invite<'a> {
    /// The request.
    pub request: &'a Request,
    /// Where it came from.
    pub source: SocketAddr,
    /// Who the source has proven to be by its client certificate.
    pub peer: Option<&'a TlsPeer>,
    /// The call whose place it wants: then it need not say whom it calls.
    pub place: Option<&'a Place>,
    /// The present.
    pub now: Instant,
}

/// How a caller has proved who it is.
#[derive(Debug, Clone)]
pub enum Proof {
    /// An API key in the Request-URI.
    Key(KeyHash),
    /// A phone's password.
    Phone(Arc<Phone>),
    /// A source address or a certificate of a trunk.
    Trunk(Arc<Trunk>),
    /// The claim of a call of this tenant, which a verified webhook has minted.
    Claim(Arc<str>),
}

/// What a caller asks for, and by what right.
#[derive(Debug, Clone)]
pub struct Credential {
    /// Whom it wants.
    pub assistant_id: Arc<str>,
    /// By what right.
    pub proof: Proof,
}

impl Credential {
    /// The trunk that the call comes over.
    pub fn trunk(&self) -> Option<&Arc<Trunk>> {
        match &self.proof {
            Proof::Trunk(trunk) => Some(trunk),
            Proof::Key(_) | Proof::Phone(_) | Proof::Claim(_) => None,
        }
    }

    /// Whose call it would be, as far as that is known without the store.
    pub fn owner(&self) -> Owner {
        match &self.proof {
            Proof::Key(_) => Owner::default(),
            Proof::Phone(phone) => Owner::of_phone(phone),
            Proof::Trunk(trunk) => Owner::of_trunk(trunk),
            Proof::Claim(tenant_id) => Owner { tenant: Some(tenant_id.clone()), trunk: None },
        }
    }

    /// The tenant and what proved it, when the store need not be asked.
    pub fn principal(&self) -> Option<Principal> {
        match &self.proof {
            Proof::Key(_) => None,
            Proof::Phone(phone) => {
                let key_id = format!("phone:{}", phone.user).into();
                Some(Principal { tenant_id: phone.tenant_id.clone(), key_id })
            }
            Proof::Trunk(trunk) => {
                let key_id = format!("trunk:{}", trunk.name).into();
                Some(Principal { tenant_id: trunk.tenant_id.clone(), key_id })
            }
            Proof::Claim(tenant_id) => {
                Some(Principal { tenant_id: tenant_id.clone(), key_id: "claim".into() })
            }
        }
    }
}

/// A caller that is not let in by the first step.
#[derive(Debug)]
pub enum Turned {
    /// It must say its password: 401. Nothing is kept or counted.
    Challenged(Reply),
    /// It is refused; whose it would have been, when that is known.
    Refused(Ending, Owner),
}

impl From<Ending> for Turned {
    fn from(ending: Ending) -> Self {
        Self::Refused(ending, Owner::default())
    }
}

/// One step of a decision trace.
pub(super) fn step(
    step: &str,
    rule: &str,
    field: &str,
    expected: &str,
    got: &str,
    passed: bool,
) -> DecisionStep {
    DecisionStep {
        step: step.to_owned(),
        rule: rule.to_owned(),
        field: field.to_owned(),
        expected: expected.to_owned(),
        got: got.to_owned(),
        passed,
    }
}

/// 1. What right does the caller have to be here?
///
/// A key in the URI is asked first, then an Authorization of one of our phones, then the source as a trunk's. A phone
/// that has not said its password yet is challenged.
pub fn credential(invite: &Invite<'_>, gate: &mut Gate, trace: &mut Trace) -> Result<Credential, Turned> {
    let uri = &invite.request.uri;
    if let Some(key) = uri.password().filter(|key| !key.is_empty()) {
        return by_key(uri, &key, invite.place, trace).map_err(Turned::from);
    }
    let authorized = authorized_user(invite.request, gate.trunks());
    if let Some((_, Some(phone))) = &authorized {
        return by_phone(phone.clone(), invite, gate, trace);
    }
    let candidates: Vec<Arc<Trunk>> =
        gate.trunks().find_by_source(invite.source.ip(), invite.peer).cloned().collect();
    if !candidates.is_empty() {
        return by_trunk(&candidates, invite, gate, trace);
    }
    // Everybody is asked for a password, whether the user exists or not, so that nobody can ask which phones there are.
    if gate.trunks().phones().next().is_some() {
        let claimed = || invite.request.head.from().uri.user().unwrap_or_default().into_owned();
        let user = authorized.map_or_else(claimed, |(user, _)| user);
        return match gate.trunks().find_phone(&user).cloned() {
            Some(phone) => by_phone(phone, invite, gate, trace),
            None => by_nobody(&user, invite, gate, trace),
        };
    }
    if !gate.trunks().is_empty() {
        let source = invite.source.ip().to_canonical().to_string();
        trace.push(step("credential", "trunk_source", "source", "a source of a trunk", &source, false));
    }
    let got = match (uri.user(), uri.password()) {
        (None, _) => "no user",
        (Some(_), None) => "no key",
        (Some(_), Some(_)) => "an empty key",
    };
    let expected = "sip:{assistant}:{key}@host";
    trace.push(step("credential", "uri_credentials", "Request-URI", expected, got, false));
    Err(Ending::new(Cause::MissingKey).into())
}

fn by_key(uri: &Uri, key: &str, place: Option<&Place>, trace: &mut Trace) -> Result<Credential, Ending> {
    let expected = "sip:{assistant}:{key}@host";
    let user = uri.user();
    let got = if user.is_some() { "an assistant and a key" } else { "no user" };
    trace.push(step("credential", "uri_credentials", "Request-URI", expected, got, user.is_some()));
    let user = user.ok_or(Ending::new(Cause::MissingKey))?;
    let assistant_id = place.map_or_else(|| user.as_ref().into(), |place| place.assistant_id.clone());
    Ok(Credential { assistant_id, proof: Proof::Key(KeyHash::of(key)) })
}

/// The user that an Authorization names, and the phone of that user; of several the first that has one.
fn authorized_user(request: &Request, trunks: &Trunks) -> Option<(String, Option<Arc<Phone>>)> {
    let values = request.head.headers().all(HeaderName::Authorization);
    let answers = values.filter_map(|value| tandem_sip::digest::Answer::parse(value).ok());
    let users = answers.map(|answer| {
        let phone = trunks.find_phone(&answer.username).cloned();
        (answer.username, phone)
    });
    // Stable: a phone's comes first, else what came first.
    users.min_by_key(|(_, phone)| phone.is_none())
}

/// The user of no phone: it is challenged, and refused after as many tries as any other.
fn by_nobody(
    user: &str,
    invite: &Invite<'_>,
    gate: &mut Gate,
    trace: &mut Trace,
) -> Result<Credential, Turned> {
    let source = invite.source.ip().to_canonical();
    if let Err(Wrong::Again(why)) = gate.check_phone(user, None, invite.request, source, invite.now) {
        return Err(Turned::Challenged(gate.challenge(why, invite.now)));
    }
    let got = "too many wrong answers";
    trace.push(step("credential", "phone_digest", "Authorization", "the password of a phone", got, false));
    Err(Ending::new(Cause::WrongPassword).into())
}

fn by_phone(
    phone: Arc<Phone>,
    invite: &Invite<'_>,
    gate: &mut Gate,
    trace: &mut Trace,
) -> Result<Credential, Turned> {
    let source = invite.source.ip().to_canonical();
    let expected = format!("the password of phone {}", phone.user);
    let got = match gate.check_phone(&phone.user, Some(&phone), invite.request, source, invite.now) {
        Ok(()) => "a right answer".to_owned(),
        Err(Wrong::Again(why)) => return Err(Turned::Challenged(gate.challenge(why, invite.now))),
        Err(Wrong::TooMany) => "too many wrong answers".to_owned(),
    };
    let passed = got == "a right answer";
    trace.push(step("credential", "phone_digest", "Authorization", &expected, &got, passed));
    if !passed {
        return Err(Turned::Refused(Ending::new(Cause::WrongPassword), Owner::of_phone(&phone)));
    }
    let got = format!("phone {}", phone.user);
    trace.push(step("principal", "phone", "Authorization", "a phone of a tenant", &got, true));
    if let Some(place) = invite.place {
        return Ok(Credential { assistant_id: place.assistant_id.clone(), proof: Proof::Phone(phone) });
    }
    let dialled = invite.request.uri.user().unwrap_or_default();
    let other = gate.trunks().find_phone(&dialled).filter(|other| other.tenant_id == phone.tenant_id);
    let assistant_id = other.and_then(|other| other.assistant_id.clone()).or(phone.assistant_id.clone());
    let assistant_id = match assistant_id {
        Some(assistant_id) => assistant_id,
        None if !dialled.is_empty() => dialled.as_ref().into(),
        None => {
            trace.push(step("assistant", "phone_route", "user", "an assistant's id", "no user", false));
            return Err(Turned::Refused(Ending::new(Cause::UnknownAssistant), Owner::of_phone(&phone)));
        }
    };
    let got = format!("{} to {assistant_id}", shown(&dialled));
    trace.push(step("assistant", "phone_route", "user", "a phone's or its own assistant", &got, true));
    Ok(Credential { assistant_id, proof: Proof::Phone(phone) })
}

/// A source may be several trunks'; then the number decides, and the longest match wins. A number that none of them
/// routes is refused.
fn by_trunk(
    candidates: &[Arc<Trunk>],
    invite: &Invite<'_>,
    gate: &mut Gate,
    trace: &mut Trace,
) -> Result<Credential, Turned> {
    let names: Vec<&str> = candidates.iter().map(|trunk| &*trunk.name).collect();
    let got = format!("{}: {}", invite.source.ip().to_canonical(), names.join(", "));
    trace.push(step("credential", "trunk_source", "source", "a source of a trunk", &got, true));
    // Who takes another call's place calls our Contact, which names no number.
    if let Some(place) = invite.place
        && let Some(trunk) =
            candidates.iter().find(|trunk| Some(&trunk.tenant_id) == place.tenant_id.as_ref())
    {
        let name = format!("trunk {}", trunk.name);
        trace.push(step("principal", "trunk", "source", "a trunk of the call's tenant", &name, true));
        return Ok(Credential {
            assistant_id: place.assistant_id.clone(),
            proof: Proof::Trunk(trunk.clone()),
        });
    }
    let mut best: Option<(&Arc<Trunk>, &Route, Weight)> = None;
    for trunk in candidates {
        let dialled = dialled_number(invite.request, trunk.inbound.did_from);
        let Some((route, weight)) = trunk.inbound.route_of(&dialled) else { continue };
        if best.as_ref().is_none_or(|(.., most)| weight > *most) {
            best = Some((trunk, route, weight));
        }
    }
    let first = candidates.first();
    let dialled =
        first.map(|trunk| dialled_number(invite.request, trunk.inbound.did_from)).unwrap_or_default();
    let Some((trunk, route, _)) = best else {
        let got = format!("{}, which none of them routes", shown(&dialled));
        let owner = match candidates {
            [only] => {
                let name = format!("trunk {}", only.name);
                trace.push(step("principal", "trunk", "source", "one trunk", &name, true));
                let numbers: Vec<String> =
                    only.inbound.routes.iter().take(8).map(|route| route.did.to_string()).collect();
                let expected = format!("a number of the trunk: {}", numbers.join(", "));
                trace.push(step("assistant", "did_route", "number", &expected, &shown(&dialled), false));
                Owner::of_trunk(only)
            }
            _ => {
                trace.push(step(
                    "principal",
                    "trunk",
                    "number",
                    "a number of one of the trunks",
                    &got,
                    false,
                ));
                Owner::default()
            }
        };
        return Err(Turned::Refused(Ending::new(Cause::UnknownNumber), owner));
    };
    let name = format!("trunk {}", trunk.name);
    trace.push(step("principal", "trunk", "source", "one trunk", &name, true));
    let refused = |ending| Turned::Refused(ending, Owner::of_trunk(trunk));
    gate.check_trunk(trunk, invite.now, trace).map_err(refused)?;
    let assistant_id = route.assistant_id.clone();
    let got = format!("{} to {assistant_id}", shown(&dialled));
    trace.push(step("assistant", "did_route", "number", "a number of the trunk", &got, true));
    Ok(Credential { assistant_id, proof: Proof::Trunk(trunk.clone()) })
}

/// The number that was dialled.
pub(crate) fn dialled_number(request: &Request, from: DidSource) -> String {
    let user = |uri: &Uri| match uri.user() {
        Some(user) => Some(user.into_owned()),
        // tel:+49301234;phone-context=…
        None if uri.host().is_empty() => uri.opaque().split(';').next().map(str::to_owned),
        None => None,
    };
    let of_header = match from {
        DidSource::RequestUri => None,
        DidSource::To => user(&request.head.to().uri),
        DidSource::PCalledPartyId => request
            .head
            .headers()
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("P-Called-Party-ID"))
            .and_then(|(_, value)| NameAddr::parse(std::str::from_utf8(value).ok()?).ok())
            .and_then(|address| user(&address.uri)),
    };
    let number = of_header.or_else(|| user(&request.uri)).unwrap_or_default();
    // Parameters of a telephone number in the user part (RFC 3261 §19.1.6): +4930;phone-context=…
    number.split(';').next().unwrap_or_default().to_owned()
}

/// 2. Whose call is it?
pub fn principal(credential: &Credential, found: &Found, trace: &mut Trace) -> Result<Principal, Ending> {
    // A phone or a trunk has said it in the first step.
    if let Some(principal) = credential.principal() {
        return Ok(principal);
    }
    let got = if found.principal.is_some() { "a known key" } else { "an unknown key" };
    let passed = found.principal.is_some();
    trace.push(step("principal", "api_key", "key", "a key of a tenant, not revoked", got, passed));
    found.principal.clone().ok_or(Ending::new(Cause::WrongKey))
}

/// 3. Does that tenant have this assistant? Gives its agent, readable or not.
pub fn assistant(
    credential: &Credential,
    found: &Found,
    trace: &mut Trace,
) -> Result<Result<Agent, Arc<str>>, Ending> {
    let got = shown(&credential.assistant_id);
    let passed = found.assistant.is_some();
    trace.push(step("assistant", "assistant_exists", "user", "an assistant of this tenant", &got, passed));
    match &found.assistant {
        Some(assistant) => Ok(assistant.agent.clone()),
        None => Err(Ending::new(Cause::UnknownAssistant)),
    }
}

/// 4. Can the assistant's agent be reached with what is stored?
pub fn agent(agent: Result<Agent, Arc<str>>, trace: &mut Trace) -> Result<Agent, Ending> {
    let expected = "a readable agent";
    match agent {
        Ok(agent) => {
            trace.push(step("provider", "agent_options", "agent", expected, agent.kind(), true));
            Ok(agent)
        }
        Err(wrong) => {
            trace.push(step("provider", "agent_options", "agent", expected, &wrong, false));
            Err(Ending::with_detail(Cause::BrokenAssistant, &*wrong))
        }
    }
}

/// A rule outside the four that refused a call (capacity, offer, engine), as a step of the same trace.
pub fn refused_by(rule: &str, field: &str, expected: &str, got: &str) -> DecisionStep {
    let name = match rule {
        "offer" => "media",
        _ => "capacity",
    };
    step(name, rule, field, expected, got, false)
}

/// What ended a call before its answer though no rule had refused it, as the last step of the same trace.
pub fn ended_by(reason: &str, got: &str) -> DecisionStep {
    step("ending", reason, "call", "an answer", got, false)
}

/// What cut an answered call off, as the last step of the same trace.
pub fn cut_off_by(reason: &str, field: &str, expected: &str, got: &str) -> DecisionStep {
    step("ending", reason, field, expected, got, false)
}

/// What a stranger wrote, as a trace may hold it: short, and nothing that breaks a line.
pub fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests;
