//! Headers of an INVITE that the agent is shown: those that its trunk lets through, and who sent the call here.
//!
//! ```text
//!   X-Customer: 7                    to_agent has X-*      ─▶ custom {"sip.x-customer": "7"}
//!   Diversion: <sip:+4930@carrier>   always, of a trunk    ─▶ custom {"sip.diversion": "<sip:+4930@carrier>"}
//!   Authorization: …                 never
//! ```
//!
//! Only of trunks: what a stranger says of its identity is worth nothing (RFC 3325 §8).

use std::collections::BTreeMap;

use tandem_sip::Request;

use crate::trunk::HeaderRules;

/// Headers that are shown, in all; more are left out, in the order of the message.
pub const SHOWN_MAX: usize = 12;
/// Characters of one value, all lines of its header together.
pub const VALUE_MAX: usize = 512;
/// Shown of every trunk: whom the network believes the caller to be, and by whom the call was diverted.
const ALWAYS: [&str; 3] = ["P-Asserted-Identity", "Diversion", "History-Info"];

/// The fields for an agent's start frame.
pub fn shown(request: &Request, rules: &HeaderRules) -> BTreeMap<String, String> {
    let mut fields: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in request.head.headers().iter() {
        let is_always = ALWAYS.iter().any(|always| always.eq_ignore_ascii_case(name));
        if !is_always && !rules.shows(name) {
            continue;
        }
        let key = format!("sip.{}", name.to_ascii_lowercase());
        if fields.len() >= SHOWN_MAX && !fields.contains_key(&key) {
            continue;
        }
        let field = fields.entry(key).or_default();
        if !field.is_empty() {
            field.push_str(", ");
        }
        let room = VALUE_MAX.saturating_sub(field.chars().count());
        let text = String::from_utf8_lossy(value);
        field.extend(text.chars().filter(|c| !c.is_control()).take(room));
    }
    fields
}

#[cfg(test)]
mod tests {
    use tandem_sip::{Headers, Method, Uri};

    use super::*;

    fn request(more: &[(&str, &str)]) -> Request {
        let mut headers = Headers::new();
        for (name, value) in [
            ("Via", "SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1"),
            ("From", "<sip:a@192.0.2.9>;tag=1"),
            ("To", "<sip:b@192.0.2.1>"),
            ("Call-ID", "c"),
            ("CSeq", "1 INVITE"),
        ]
        .iter()
        .chain(more)
        {
            headers.push(name, value).unwrap();
        }
        Request::new(Method::Invite, Uri::parse("sip:b@192.0.2.1").unwrap(), headers, Vec::new()).unwrap()
    }

    fn rules() -> HeaderRules {
        HeaderRules { to_agent: vec!["X-*".into(), "Authorization".into()], ..HeaderRules::default() }
    }

    #[test]
    fn listed_headers_and_the_networks_own_are_shown_and_nothing_else() {
        let fields = shown(
            &request(&[
                ("X-Customer", "7"),
                ("Diversion", "<sip:1@c>;reason=no-answer"),
                ("diversion", "<sip:2@c>"),
                ("Authorization", "Digest secret"),
                ("Subject", "hello"),
            ]),
            &rules(),
        );
        let fields: Vec<_> = fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let diverted = ("sip.diversion", "<sip:1@c>;reason=no-answer, <sip:2@c>");
        assert_eq!(fields, [diverted, ("sip.x-customer", "7")]);
    }

    #[test]
    fn number_and_length_are_bounded() {
        let names: Vec<String> = (0..40).map(|n| format!("X-{n}")).collect();
        let long = "x".repeat(5_000);
        let more: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), long.as_str())).collect();
        let fields = shown(&request(&more), &rules());
        assert_eq!(fields.len(), SHOWN_MAX);
        assert!(fields.values().all(|value| value.len() == VALUE_MAX));
    }
}
