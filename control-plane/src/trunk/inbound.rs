//! Calls from a trunk: which sources are let in, and which number reaches which assistant.
//!
//! Numbers are compared as digits: visual separators (`-`, `.`, space, parentheses) fall away, and so does a leading `+`
//! or `00`, so that `+49 30 1234`, `0049301234` and `49301234` are the same number. With a country code a single leading
//! `0` is that country's trunk prefix: `0301234` is `49301234` with `country_code = "49"`. What is no number (`sales`)
//! is compared as it is written, with case.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

/// Calls that a trunk offers a second, when nobody says: a carrier's usual limit is 1 to 30.
pub const CALLS_PER_SECOND_DEFAULT: f64 = 30.0;
/// Digits that make a text a number: fewer are an extension and are compared as they are.
pub(super) const NUMBER_MIN: usize = 5;

/// What a trunk may offer us.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Source addresses that belong to the trunk.
    pub allow: Vec<IpNet>,
    /// Names in its client certificate: a subject alternative name or the common name, without case. `*.example.com`
    /// stands for one label.
    pub tls_client: Vec<String>,
    /// Which number reaches whom; the longest match wins.
    pub routes: Vec<Route>,
    /// Where the dialled number stands in its INVITE.
    pub did_from: DidSource,
    /// Country whose national numbers it sends, as digits: `49`.
    pub country_code: Option<String>,
    /// Calls a second; more are refused.
    pub calls_per_second: f64,
    /// Live calls; more are refused. `None`: only the node's limit holds.
    pub calls_max: Option<usize>,
    /// For how long the agent is heard before the call is answered (183 with SDP): until then, or until it says `answer`.
    /// `None`: the call is answered first.
    pub early_media: Option<Duration>,
    /// Refuses what is over a limit with 486 Busy Here instead of 503: for carriers that take a trunk out of service
    /// after a 503.
    pub busy_when_full: bool,
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            tls_client: Vec::new(),
            routes: Vec::new(),
            did_from: DidSource::default(),
            country_code: None,
            calls_per_second: CALLS_PER_SECOND_DEFAULT,
            calls_max: None,
            early_media: None,
            busy_when_full: false,
        }
    }
}

/// One number, or a range of them, and who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The dialled number.
    pub did: DidPattern,
    /// An assistant of the trunk's tenant.
    pub assistant_id: Arc<str>,
}

/// How much of a number a pattern says, in digits, and whether it says all of it: the greater wins.
pub type Weight = (usize, bool);

/// Where a trunk writes the number that was dialled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DidSource {
    /// The user of the Request-URI.
    #[default]
    RequestUri,
    /// The user of To: for registered trunks that put our Contact into the Request-URI.
    To,
    /// The user of P-Called-Party-ID (RFC 7315 §4.2), else of the Request-URI.
    PCalledPartyId,
}

/// `+4930123456` for one number, `+4930*` for all that begin so, `*` for all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DidPattern {
    text: Box<str>,
    is_prefix: bool,
}

impl DidPattern {
    /// Reads a pattern; the number as it is written in tandem.toml. `None`: empty, or a `*` that is not at the end.
    pub fn parse(text: &str, country_code: Option<&str>) -> Option<Self> {
        let (number, is_prefix) = match text.trim().strip_suffix('*') {
            Some(number) => (number, true),
            None => (text.trim(), false),
        };
        if number.contains('*') || (number.is_empty() && !is_prefix) {
            return None;
        }
        let text = if is_prefix { normal_prefix(number) } else { normal(number, country_code).into_owned() };
        Some(Self { text: text.into(), is_prefix })
    }

    /// How much of a number (already [`normal`]) the pattern says; `None`: it is another's. An exact number says more
    /// than a prefix of the same length.
    fn matches(&self, number: &str) -> Option<Weight> {
        let fits = if self.is_prefix { number.starts_with(&*self.text) } else { number == &*self.text };
        fits.then_some((self.text.len(), !self.is_prefix))
    }
}

impl std::fmt::Display for DidPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.text, if self.is_prefix { "*" } else { "" })
    }
}

impl Inbound {
    /// Whether this source is the trunk's.
    pub fn admits(&self, ip: IpAddr, certificate: &[Box<str>]) -> bool {
        // A dual-stack socket shows IPv4 peers as mapped addresses.
        let ip = ip.to_canonical();
        self.allow.iter().any(|net| net.contains(&ip))
            || self.tls_client.iter().any(|own| certificate.iter().any(|name| fits_name(own, name)))
    }

    /// Who answers this number; the longest pattern wins, of two equally long the exact one, of two equal ones the
    /// first.
    pub fn route(&self, dialled: &str) -> Option<&Route> {
        self.route_of(dialled).map(|(route, _)| route)
    }

    /// The same, with how much of the number its pattern says and whether it says all of it: to compare trunks.
    pub fn route_of(&self, dialled: &str) -> Option<(&Route, Weight)> {
        let number = normal(dialled, self.country_code.as_deref());
        let mut best: Option<(&Route, Weight)> = None;
        for route in &self.routes {
            let Some(weight) = route.did.matches(&number) else { continue };
            if best.is_none_or(|(_, most)| weight > most) {
                best = Some((route, weight));
            }
        }
        best
    }
}

/// `*.example.com` stands for one label.
fn fits_name(own: &str, name: &str) -> bool {
    match own.strip_prefix("*.") {
        Some(domain) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
        None => own.eq_ignore_ascii_case(name),
    }
}

/// A number as it is compared: see the module.
pub fn normal<'a>(dialled: &'a str, country_code: Option<&str>) -> Cow<'a, str> {
    let Some(digits) = digits_of(dialled) else { return Cow::Borrowed(dialled) };
    if let Some(rest) = digits.strip_prefix('+') {
        return Cow::Owned(rest.to_owned());
    }
    if digits.len() < NUMBER_MIN {
        return Cow::Owned(digits);
    }
    if let Some(rest) = digits.strip_prefix("00") {
        return Cow::Owned(rest.to_owned());
    }
    match (digits.strip_prefix('0'), country_code) {
        (Some(national), Some(code)) => Cow::Owned(format!("{code}{national}")),
        _ => Cow::Owned(digits),
    }
}

/// The same for the beginning of a number, which may be short and is never national.
pub fn normal_prefix(text: &str) -> String {
    match digits_of(text) {
        Some(digits) => {
            let bare = digits.strip_prefix('+').or_else(|| digits.strip_prefix("00")).unwrap_or(&digits);
            bare.to_owned()
        }
        None => text.to_owned(),
    }
}

/// The digits of a number, with its `+`; `None`: it is none.
pub(super) fn digits_of(text: &str) -> Option<String> {
    let mut digits = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '0'..='9' => digits.push(c),
            '+' if digits.is_empty() => digits.push(c),
            ' ' | '-' | '.' | '(' | ')' => {}
            _ => return None,
        }
    }
    digits.contains(|c: char| c.is_ascii_digit()).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbound(routes: &[(&str, &str)]) -> Inbound {
        let routes = routes.iter().map(|(did, assistant)| Route {
            did: DidPattern::parse(did, None).unwrap(),
            assistant_id: (*assistant).into(),
        });
        Inbound { routes: routes.collect(), ..Inbound::default() }
    }

    fn reached(inbound: &Inbound, dialled: &str) -> Option<String> {
        inbound.route(dialled).map(|route| route.assistant_id.to_string())
    }

    #[test]
    fn longest_match_wins_and_exact_beats_a_prefix_of_the_same_length() {
        let inbound = inbound(&[
            ("*", "rest"),
            ("+4930*", "berlin"),
            ("+49301234*", "house"),
            ("+49301234", "desk"),
            ("+4930123499", "boss"),
        ]);
        for (dialled, assistant) in [
            ("+4930123499", "boss"),
            ("+49301234", "desk"),
            ("+4930123477", "house"),
            ("+49309", "berlin"),
            ("+43123456", "rest"),
            ("sales", "rest"),
        ] {
            assert_eq!(reached(&inbound, dialled).as_deref(), Some(assistant), "{dialled}");
        }
    }

    #[test]
    fn plus_double_zero_and_bare_digits_are_the_same_number() {
        let inbound = inbound(&[("+49 30 1234-56", "desk")]);
        for dialled in ["+4930123456", "004930123456", "4930123456", "+49 (30) 12.34-56"] {
            assert_eq!(reached(&inbound, dialled).as_deref(), Some("desk"), "{dialled}");
        }
        assert_eq!(reached(&inbound, "030123456"), None, "which country's?");
    }

    #[test]
    fn national_number_is_completed_with_the_country_code() {
        let national = Inbound { country_code: Some("49".into()), ..inbound(&[("+4930123456", "desk")]) };
        assert_eq!(reached(&national, "030123456").as_deref(), Some("desk"));
        assert_eq!(reached(&national, "004930123456").as_deref(), Some("desk"));
        assert_eq!(DidPattern::parse("030123456", Some("49")).unwrap().to_string(), "4930123456");
    }

    #[test]
    fn short_extensions_and_names_are_compared_as_written() {
        let inbound = inbound(&[("00", "operator"), ("sales", "sales"), ("12", "twelve")]);
        assert_eq!(reached(&inbound, "00").as_deref(), Some("operator"));
        assert_eq!(reached(&inbound, "12").as_deref(), Some("twelve"));
        assert_eq!(reached(&inbound, "sales").as_deref(), Some("sales"));
        assert_eq!(reached(&inbound, "Sales"), None);
    }

    #[test]
    fn patterns_that_mean_nothing_are_none() {
        for text in ["", "+49*30", "**"] {
            assert!(DidPattern::parse(text, None).is_none(), "{text}");
        }
    }

    #[test]
    fn source_is_admitted_by_address_or_by_certificate() {
        let inbound = Inbound {
            allow: vec!["192.0.2.0/28".parse().unwrap()],
            tls_client: vec!["SBC.carrier.example".into(), "*.peer.example".into()],
            ..Inbound::default()
        };
        let admits = |ip: &str, names: &[&str]| {
            let names: Vec<Box<str>> = names.iter().map(|name| Box::from(*name)).collect();
            inbound.admits(ip.parse().unwrap(), &names)
        };
        assert!(admits("192.0.2.5", &[]) && admits("::ffff:192.0.2.5", &[]));
        assert!(!admits("192.0.2.16", &[]));
        assert!(admits("198.51.100.1", &["sbc.carrier.example"]));
        assert!(admits("198.51.100.1", &["x", "a.peer.example"]));
        assert!(!admits("198.51.100.1", &["a.b.peer.example", "peer.example"]));
    }
}
