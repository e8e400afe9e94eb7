//! May this caller have this call? Four plain functions in a row, each adding a step to the decision trace.
//!
//! ```text
//!   credential(URI) ──▶ [store: key, then assistant] ──▶ principal ──▶ assistant ──▶ agent
//!        403                                               403           404          500
//! ```
//!
//! Whether an assistant exists is said only to the bearer of a valid key. No step keeps or shows the key itself: what
//! leaves `credential` is its hash.

use std::sync::Arc;

use tandem_api::v1::DecisionStep;
use tandem_sip::Uri;

use super::agent::Agent;
use super::ending::{Cause, Ending};
use crate::store::accounts::{Found, KeyHash, Principal};

/// The steps that were asked, in order; the last one of a refused call refused it.
pub type Trace = Vec<DecisionStep>;

/// What the Request-URI asks for, and with which key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// The user part.
    pub assistant_id: Arc<str>,
    /// Of the password part.
    pub key: KeyHash,
}

fn step(step: &str, rule: &str, field: &str, expected: &str, got: &str, passed: bool) -> DecisionStep {
    DecisionStep {
        step: step.to_owned(),
        rule: rule.to_owned(),
        field: field.to_owned(),
        expected: expected.to_owned(),
        got: got.to_owned(),
        passed,
    }
}

/// 1. Does the URI carry an assistant and a key?
pub fn credential(uri: &Uri, trace: &mut Trace) -> Result<Credential, Ending> {
    let expected = "sip:{assistant}:{key}@host";
    let (user, password) = (uri.user(), uri.password());
    let got = match (&user, &password) {
        (None, _) => "no user",
        (Some(_), None) => "no key",
        (Some(_), Some(key)) if key.is_empty() => "an empty key",
        (Some(_), Some(_)) => "an assistant and a key",
    };
    let complete = password.as_ref().is_some_and(|key| !key.is_empty());
    trace.push(step("credential", "uri_credentials", "Request-URI", expected, got, complete));
    match (user, password) {
        (Some(user), Some(key)) if complete => {
            Ok(Credential { assistant_id: user.as_ref().into(), key: KeyHash::of(&key) })
        }
        _ => Err(Ending::new(Cause::MissingKey)),
    }
}

/// 2. Whose key is it?
pub fn principal(found: &Found, trace: &mut Trace) -> Result<Principal, Ending> {
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

/// What a stranger wrote, as a trace may hold it: short, and nothing that breaks a line.
fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 64;
    text.chars().take(SHOWN_MAX).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::accounts::Assistant;

    fn uri(text: &str) -> Uri {
        Uri::parse(text).unwrap()
    }

    fn found() -> Found {
        Found {
            principal: Some(Principal { tenant_id: "t1".into(), key_id: "k1".into() }),
            assistant: Some(Assistant { assistant_id: "desk".into(), agent: Ok(Agent::Echo) }),
        }
    }

    fn run(uri_text: &str, found: &Found) -> (Result<Agent, Cause>, Trace) {
        let mut trace = Trace::new();
        let agent = credential(&uri(uri_text), &mut trace).and_then(|credential| {
            principal(found, &mut trace)?;
            let stored = assistant(&credential, found, &mut trace)?;
            agent(stored, &mut trace)
        });
        (agent.map_err(|ending| ending.cause), trace)
    }

    #[test]
    fn good_call_passes_four_steps() {
        let (agent, trace) = run("sip:desk:a-key@tandem", &found());
        assert_eq!(agent, Ok(Agent::Echo));
        let steps: Vec<_> = trace.iter().map(|step| (step.step.as_str(), step.passed)).collect();
        assert_eq!(
            steps,
            [("credential", true), ("principal", true), ("assistant", true), ("provider", true)]
        );
    }

    #[test]
    fn uri_without_a_key_is_refused_with_403() {
        for text in ["sip:desk@tandem", "sip:tandem", "sip:desk:@tandem"] {
            let (agent, trace) = run(text, &found());
            assert_eq!(agent, Err(Cause::MissingKey), "{text}");
            assert_eq!(trace.len(), 1);
            assert!(!trace[0].passed);
        }
    }

    #[test]
    fn wrong_key_is_refused_before_anything_is_said_about_the_assistant() {
        let (agent, trace) = run("sip:desk:a-key@tandem", &Found::default());
        assert_eq!(agent, Err(Cause::WrongKey));
        assert_eq!(trace.last().unwrap().step, "principal");
        assert!(trace.iter().all(|step| !step.got.contains("desk")));
    }

    #[test]
    fn unknown_assistant_is_404_for_a_valid_key() {
        let found = Found { assistant: None, ..found() };
        let (agent, trace) = run("sip:nobody:a-key@tandem", &found);
        assert_eq!(agent, Err(Cause::UnknownAssistant));
        assert_eq!(Cause::UnknownAssistant.row().sip_status, 404);
        assert_eq!(trace.last().unwrap().got, "nobody");
    }

    #[test]
    fn unreadable_agent_is_our_fault_and_says_what_is_wrong() {
        let broken =
            Assistant { assistant_id: "desk".into(), agent: Err("agent kind \"x\" is unknown".into()) };
        let (agent, trace) = run("sip:desk:a-key@tandem", &Found { assistant: Some(broken), ..found() });
        assert_eq!(agent, Err(Cause::BrokenAssistant));
        assert_eq!(trace.last().unwrap().got, "agent kind \"x\" is unknown");
    }

    #[test]
    fn key_stands_nowhere_in_the_trace_or_the_credential() {
        let mut trace = Trace::new();
        let credential = credential(&uri("sip:desk:hunter2@tandem"), &mut trace).unwrap();
        principal(&Found::default(), &mut trace).unwrap_err();
        assert!(!format!("{trace:?}{credential:?}").contains("hunter2"));
    }

    #[test]
    fn strange_assistant_names_cannot_break_a_log_line() {
        assert_eq!(shown("a\r\nb"), "a??b");
        assert_eq!(shown(&"x".repeat(500)).len(), 64);
    }
}
