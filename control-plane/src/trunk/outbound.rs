//! Calls to a trunk: who we say we are, how often, and what we do with its answers.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::credential::escape_user;
use super::inbound::{NUMBER_MIN, digits_of, normal, normal_prefix};

/// How we call over a trunk.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// From, as a name-addr with placeholders; `None`: `<sip:{caller_id}@{domain}>`.
    pub from: Option<Template>,
    /// P-Asserted-Identity (RFC 3325); `None`: no such header.
    pub pai: Option<Template>,
    /// P-Preferred-Identity (RFC 3325); `None`: no such header.
    pub ppi: Option<Template>,
    /// The number that calls show when the one who places a call gives none.
    pub caller_id: Option<String>,
    /// How the called number is written into the Request-URI and To.
    pub number_format: NumberFormat,
    /// Numbers that may be called, each a prefix such as `+49`; empty: all.
    pub numbers_allowed: Vec<String>,
    /// Numbers that may not, each a prefix; they win over `numbers_allowed`.
    pub numbers_denied: Vec<String>,
    /// Country whose national numbers the trunk takes, as digits: `0900…` is then `49900…` for these lists too.
    pub country_code: Option<String>,
    /// How long it may ring before we CANCEL.
    pub ring_timeout: Duration,
    /// What a 3xx does.
    pub redirects: Redirects,
    /// INVITEs a second; more wait (bulk) or are refused (single).
    pub calls_per_second: f64,
    /// Live calls; as above.
    pub calls_max: Option<usize>,
    /// The same for each calling number.
    pub calls_per_second_per_number: Option<f64>,
    /// The same for each calling number.
    pub calls_max_per_number: Option<usize>,
    /// Whether the agent hears what comes before the answer (183 with SDP).
    pub early_media: bool,
    /// Our INVITE carries no offer: the trunk makes one, and our answer goes into the ACK.
    pub is_offer_delayed: bool,
    /// Headers of every INVITE, besides the credential's: name and value.
    pub headers: Vec<(String, String)>,
    /// Trunks that are tried next when this one is down or answers 503, in order, as far as their own numbers, hosts and headers
    /// let the call go. Their paces are not asked.
    pub failover: Vec<Arc<str>>,
}

/// How long it rings when nobody says: longer than a mailbox waits.
pub const RING_TIMEOUT_DEFAULT: Duration = Duration::from_secs(60);
/// INVITEs a second when nobody says: what most carriers let a new account do.
pub const CALLS_PER_SECOND_DEFAULT: f64 = 5.0;

impl Default for Outbound {
    fn default() -> Self {
        Self {
            from: None,
            pai: None,
            ppi: None,
            caller_id: None,
            number_format: NumberFormat::default(),
            numbers_allowed: Vec::new(),
            numbers_denied: Vec::new(),
            country_code: None,
            ring_timeout: RING_TIMEOUT_DEFAULT,
            redirects: Redirects::default(),
            calls_per_second: CALLS_PER_SECOND_DEFAULT,
            calls_max: None,
            calls_per_second_per_number: None,
            calls_max_per_number: None,
            early_media: true,
            is_offer_delayed: false,
            headers: Vec::new(),
            failover: Vec::new(),
        }
    }
}

impl Outbound {
    /// Whether this number, or user of a SIP URI, may be called.
    ///
    /// What stands behind a `;` is a parameter (RFC 3261 §19.1.6), and no part of the number. A carrier may dial the digits
    /// of what is half a number (`+49900123#`, `*21*0900#`): with a list of denied numbers that is refused, for nobody can
    /// say what it reaches. What begins with a letter is a name, and only a list of allowed numbers refuses it.
    pub fn allows_number(&self, to: &str) -> bool {
        let user = to.split(';').next().unwrap_or_default();
        let is_name = user.starts_with(char::is_alphabetic);
        let is_unclear = !is_name && digits_of(user).is_none();
        if is_unclear && !self.numbers_denied.is_empty() {
            // A service code such as `*21#` is too short to be somebody's number.
            let digits: String = user.chars().filter(|c| c.is_numeric()).collect();
            let is_short = digits.chars().count() < NUMBER_MIN;
            if !is_short
                || self.numbers_denied.iter().any(|prefix| digits.starts_with(&normal_prefix(prefix)))
            {
                return false;
            }
        }
        let forms = [normal(user, None), normal(user, self.country_code.as_deref()), international(user)];
        let begins = |prefix: &String| {
            let prefix = normal_prefix(prefix);
            forms.iter().any(|form| form.starts_with(&prefix))
        };
        !self.numbers_denied.iter().any(begins)
            && (self.numbers_allowed.is_empty() || self.numbers_allowed.iter().any(begins))
    }
}

/// Of an international number what follows all its zeros: some read `+0049` as `0049`. Else as [`normal`].
fn international(user: &str) -> Cow<'_, str> {
    let digits = digits_of(user).filter(|digits| digits.starts_with('+') || digits.starts_with("00"));
    match digits {
        Some(digits) => Cow::Owned(digits.trim_start_matches(['+', '0']).to_owned()),
        None => normal(user, None),
    }
}

/// What becomes of a 3xx to our INVITE.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Redirects {
    /// The call has failed: whoever can redirect our calls can make us pay for them.
    #[default]
    Refuse,
    /// The Contacts are tried, at the trunk, one after the other.
    Follow,
}

/// How a called number is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NumberFormat {
    /// As it was given.
    #[default]
    AsGiven,
    /// `+49301234`.
    Plus,
    /// `49301234`.
    Bare,
    /// `0049301234`.
    DoubleZero,
}

impl NumberFormat {
    /// A number in this form; what is no number stays as it is.
    pub fn write(self, number: &str) -> String {
        let digits = normal(number, None);
        if self == Self::AsGiven || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return number.to_owned();
        }
        match self {
            Self::AsGiven | Self::Bare => digits.into_owned(),
            Self::Plus => format!("+{digits}"),
            Self::DoubleZero => format!("00{digits}"),
        }
    }
}

/// A name-addr with placeholders: `"{caller_id}" <sip:{caller_id}@{domain};user=phone>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    CallerId,
    CallerName,
    User,
    Domain,
    To,
}

/// What the placeholders of a [`Template`] stand for in one call.
#[derive(Debug, Clone, Copy, Default)]
pub struct TemplateValues<'a> {
    /// `{caller_id}`: the number that the call shows.
    pub caller_id: &'a str,
    /// `{caller_name}`: the display name; empty: none.
    pub caller_name: &'a str,
    /// `{user}`: the credential's user.
    pub user: &'a str,
    /// `{domain}`: the credential's domain.
    pub domain: &'a str,
    /// `{to}`: the called number.
    pub to: &'a str,
}

/// A template that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{whatever}`.
    #[error(
        "unknown placeholder {{{0}}}; known are {{caller_id}}, {{caller_name}}, {{user}}, {{domain}}, {{to}}"
    )]
    Placeholder(String),
    /// A `{` without its `}`.
    #[error("a {{ without its }}")]
    Unclosed,
    /// With ordinary values it is no name-addr.
    #[error("not an address: {0}")]
    Address(String),
}

impl Template {
    /// Reads a template, and checks that it makes an address.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (name, after) = after.split_once('}').ok_or(TemplateError::Unclosed)?;
            parts.push(match name {
                "caller_id" => Part::CallerId,
                "caller_name" => Part::CallerName,
                "user" => Part::User,
                "domain" => Part::Domain,
                "to" => Part::To,
                other => return Err(TemplateError::Placeholder(other.to_owned())),
            });
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let template = Self(parts);
        let example = TemplateValues {
            caller_id: "+15550100",
            caller_name: "Name",
            user: "user",
            domain: "carrier.example",
            to: "+15550101",
        };
        match tandem_sip::NameAddr::parse(&template.render(&example)) {
            Ok(_) => Ok(template),
            Err(why) => Err(TemplateError::Address(why.to_string())),
        }
    }

    /// The name-addr as text. Values are escaped as the user of a URI; `{caller_name}` as a quoted string.
    pub fn render(&self, values: &TemplateValues<'_>) -> String {
        let mut out = String::new();
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::CallerId => out.push_str(&escape_user(values.caller_id)),
                Part::CallerName => {
                    out.extend(
                        values.caller_name.chars().filter(|c| !c.is_control() && !"\"\\".contains(*c)),
                    );
                }
                Part::User => out.push_str(&escape_user(values.user)),
                // A host has nothing to escape, and the configuration has checked it.
                Part::Domain => out.push_str(values.domain),
                Part::To => out.push_str(&escape_user(values.to)),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_is_filled_in_and_nothing_breaks_out_of_it() {
        let template = Template::parse("\"{caller_name}\" <sip:{caller_id}@{domain};user=phone>").unwrap();
        let values = TemplateValues {
            caller_id: "+4930>1",
            caller_name: "An\"na\r\nX: 1",
            domain: "carrier.example",
            ..TemplateValues::default()
        };
        assert_eq!(template.render(&values), "\"AnnaX: 1\" <sip:+4930%3E1@carrier.example;user=phone>");
    }

    #[test]
    fn template_that_cannot_be_used_says_why() {
        let wrong = |text: &str| Template::parse(text).unwrap_err().to_string();
        assert!(wrong("<sip:{number}@x>").starts_with("unknown placeholder {number}; known are {caller_id}"));
        assert_eq!(wrong("<sip:{caller_id@x>"), "a { without its }");
        assert!(wrong("{caller_id}@{domain}").starts_with("not an address"), "no scheme");
    }

    #[test]
    fn numbers_are_written_as_the_carrier_wants_them() {
        for (format, written) in [
            (NumberFormat::AsGiven, "+49 30 1234"),
            (NumberFormat::Plus, "+49301234"),
            (NumberFormat::Bare, "49301234"),
            (NumberFormat::DoubleZero, "0049301234"),
        ] {
            assert_eq!(format.write("+49 30 1234"), written);
            assert_eq!(format.write("sales"), "sales");
        }
    }

    #[test]
    fn denied_prefix_wins_over_an_allowed_one() {
        let outbound = Outbound {
            numbers_allowed: vec!["+49".into(), "0043".into()],
            numbers_denied: vec!["+49900".into()],
            ..Outbound::default()
        };
        assert!(outbound.allows_number("+4930123456") && outbound.allows_number("+431234567"));
        assert!(!outbound.allows_number("0049900123456") && !outbound.allows_number("+15550100"));
        assert!(Outbound::default().allows_number("+15550100"));
    }

    #[test]
    fn denied_number_is_denied_however_it_is_written() {
        let outbound = Outbound {
            numbers_denied: vec!["+49900".into(), "0137".into()],
            country_code: Some("49".into()),
            ..Outbound::default()
        };
        for number in [
            "+49900123456",
            "+49 (900) 12-34.56",
            "(+49)900123456",
            "0049900123456",
            "+0049900123456",
            "000049900123456",
            "49900123456",
            "0900123456",
            "+49900123456;npdi=yes",
            "+49900123456;phone-context=+49",
            "+49900123456#",
            "+49900*123",
            "*21*+49900123456#",
            "#31#0900123456",
            "+49900123456x1",
            "_+49900123456",
            "\t+49900123456",
            "0137123456",
        ] {
            assert!(!outbound.allows_number(number), "{number}");
        }
        for number in
            ["+4930123456", "030123456", "+4930123456;npdi=yes", "sales", "anna.b", "desk-2", "201", "*21#"]
        {
            assert!(outbound.allows_number(number), "{number}");
        }
        let free = Outbound::default();
        assert!(free.allows_number("*21*+49900123456#"), "no list, no rule");
    }
}
