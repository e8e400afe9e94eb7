//! The smaller agreements with a trunk: registration, health, transfer, headers, timers, addresses.

use std::path::PathBuf;
use std::time::Duration;

use tandem_sdp::SrtpPolicy;

/// Whether and how we register with a trunk (RFC 3261 §10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Register at all?
    pub is_wanted: bool,
    /// The lifetime that we ask for; the trunk may grant less, or ask for more with 423.
    pub expires: Duration,
    /// User of our Contact, by which the trunk calls us; `None`: the credential's user.
    pub contact_user: Option<String>,
}

impl Default for Registration {
    fn default() -> Self {
        Self { is_wanted: false, expires: Duration::from_secs(600), contact_user: None }
    }
}

/// Whether the sound of a trunk's calls is protected (SRTP with keys in SDP, RFC 4568, or by DTLS, RFC 5764).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SrtpRules {
    /// As the file says; `None`: what is offered with keys is answered with keys, and we do not offer any.
    pub mode: Option<SrtpPolicy>,
    /// Keys may also go through signalling without TLS, where anybody on their way can read them: for networks that
    /// somebody else protects, and phones that know no better.
    pub is_without_tls: bool,
    /// We offer DTLS-SRTP, since the other side speaks nothing else: a browser.
    pub offers_dtls: bool,
}

impl SrtpRules {
    /// What holds for one call. `is_private`: it is signalled through TLS. What is required is required on any signalling:
    /// a call is then refused rather than heard by everybody.
    pub fn policy(self, is_outbound: bool, is_private: bool) -> SrtpPolicy {
        match self.mode {
            Some(SrtpPolicy::Required) => SrtpPolicy::Required,
            Some(SrtpPolicy::Optional) if is_private || self.is_without_tls => SrtpPolicy::Optional,
            None if !is_outbound && (is_private || self.is_without_tls) => SrtpPolicy::Optional,
            _ => SrtpPolicy::Off,
        }
    }

    /// Whether somebody who comes over this trunk may take a protected call over in the clear: only where the file says
    /// that its calls may be so. Who says nothing has not thought of other people's calls.
    pub fn may_lose_protection(self) -> bool {
        matches!(self.mode, Some(SrtpPolicy::Off | SrtpPolicy::Optional))
    }

    /// Whether an offer of DTLS-SRTP is answered: unless all protection is off. Its keys never stand in a message, so
    /// signalling in the clear harms less than it does to keys in SDP; and a browser speaks nothing else.
    pub fn allows_dtls(self) -> bool {
        self.mode != Some(SrtpPolicy::Off)
    }
}

/// How we find out that a trunk is there: OPTIONS, every so often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Ask at all? Without it a trunk counts as up until a call says otherwise.
    pub is_wanted: bool,
    /// From one OPTIONS to the next; some jitter is added.
    pub interval: Duration,
    /// Unanswered (or 503) in a row until the trunk counts as down.
    pub failures_max: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { is_wanted: true, interval: Duration::from_secs(30), failures_max: 3 }
    }
}

/// Who may transfer calls of a trunk, and to where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferPolicy {
    /// What a REFER from the trunk does.
    pub refer_in: ReferIn,
    /// Whether an agent may hand its caller on over this trunk: by REFER, or by bringing in somebody who is called over it.
    pub refer_out: bool,
    /// Targets that either may name: a number prefix (`+49`) or a host (`pbx.example.com`). The trunk's own domain is
    /// always one; without prefixes every number that may be called is.
    pub targets: Vec<String>,
    /// How long a transfer may take from the 202 until the trunk says how it went; then the agent gets its caller back.
    pub timeout: Duration,
}

impl Default for TransferPolicy {
    fn default() -> Self {
        Self {
            refer_in: ReferIn::default(),
            refer_out: true,
            targets: Vec::new(),
            timeout: Duration::from_secs(60),
        }
    }
}

/// How the source of a call's RTP is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Latching {
    /// The first source that sends valid RTP becomes the address that we send to: who is behind NAT does not know his own.
    #[default]
    Auto,
    /// Only the address of the description is heard and sent to.
    Strict,
    /// The host of the description is heard from any port of it, and we always send to the address of the description.
    Off,
}

/// What our offer says that puts a peer on hold. Nothing is sent to it in either case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HoldOffer {
    /// `a=sendonly`, as RFC 3264 §8.4 and telephone networks have it (3GPP TS 24.610): the peer is held, and sends nothing.
    #[default]
    SendOnly,
    /// `a=inactive`: for a peer that waits for music after `sendonly`, and drops the call when none comes.
    Inactive,
}

/// What becomes of a REFER from a peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReferIn {
    /// 603: whoever makes us call can make us pay.
    #[default]
    Decline,
    /// We call the target over the same trunk.
    SameTrunk,
}

/// Headers that pass between the trunk and an agent. Names compare without case; `X-*` stands for all that begin so.
/// What SIP itself lives on (Via, Contact, Authorization …) never passes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderRules {
    /// Of an INVITE from the trunk, that the agent is shown.
    pub to_agent: Vec<String>,
    /// That an agent or an API request may set on what goes to the trunk.
    pub from_agent: Vec<String>,
}

/// Headers that belong to the dialog, the transaction or the hop: no agent sets them, and credentials are not shown.
const NEVER_PASSED: &[&str] = &[
    "via",
    "v",
    "from",
    "f",
    "to",
    "t",
    "call-id",
    "i",
    "cseq",
    "contact",
    "m",
    "route",
    "record-route",
    "path",
    "max-forwards",
    "content-length",
    "l",
    "content-type",
    "c",
    "content-encoding",
    "e",
    "authorization",
    "proxy-authorization",
    "www-authenticate",
    "proxy-authenticate",
    "authentication-info",
    "require",
    "proxy-require",
    "supported",
    "k",
    "unsupported",
    "allow",
    "allow-events",
    "u",
    "event",
    "o",
    "rack",
    "rseq",
    "session-expires",
    "x",
    "min-se",
    "refer-to",
    "r",
    "referred-by",
    "b",
    "replaces",
    "expires",
    "min-expires",
    "subscription-state",
    "mime-version",
    "timestamp",
    "security-client",
    "security-server",
    "security-verify",
];

impl HeaderRules {
    /// Whether an agent is shown this header.
    pub fn shows(&self, name: &str) -> bool {
        listed(&self.to_agent, name)
    }

    /// Whether an agent may set this header.
    pub fn lets_set(&self, name: &str) -> bool {
        listed(&self.from_agent, name)
    }

    /// Whether a rule may name this header at all.
    pub fn may_pass(name: &str) -> bool {
        !NEVER_PASSED.iter().any(|never| never.eq_ignore_ascii_case(name))
    }
}

fn listed(rules: &[String], name: &str) -> bool {
    let fits = |rule: &String| match rule.strip_suffix('*') {
        Some(prefix) => name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix)),
        None => rule.eq_ignore_ascii_case(name),
    };
    HeaderRules::may_pass(name) && rules.iter().any(fits)
}

/// A session timer (RFC 4028).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionTimer {
    /// Session-Expires that we ask for, in seconds.
    pub expires_s: u32,
    /// Min-SE, in seconds; 90 is the RFC's own lowest.
    pub min_se_s: u32,
}

impl Default for SessionTimer {
    fn default() -> Self {
        Self { expires_s: 1_800, min_se_s: 90 }
    }
}

/// Reliable provisional responses (RFC 3262).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reliable {
    /// When the peer requires them.
    #[default]
    IfRequired,
    /// Whenever the peer supports them.
    Prefer,
    /// 420 to a peer that requires them.
    Never,
}

/// What a trunk sees of us, when that differs from the listeners' own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Host in Via and Contact; IPv6 in brackets.
    pub advertised_host: Option<String>,
    /// The certificate that we show, and whom we believe.
    pub tls: Option<TlsIdentity>,
}

/// Mutual TLS with one trunk: files in PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsIdentity {
    /// Our certificate, then those that have signed it; `None`: we show none.
    pub certificate: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Whose certificates the trunk's must come from; `None`: the usual public ones.
    pub ca: Option<PathBuf>,
    /// The name that the trunk's certificate must have, if it is not the host of its URI.
    pub server_name: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_pass_by_name_or_prefix_and_never_what_sip_lives_on() {
        let rules = HeaderRules {
            to_agent: vec!["X-*".into(), "Diversion".into(), "*".into()],
            from_agent: vec!["x-account".into(), "Contact".into()],
        };
        assert!(rules.shows("x-customer") && rules.shows("diversion"));
        assert!(!rules.shows("Authorization") && !rules.shows("Via"));
        assert!(rules.lets_set("X-Account") && !rules.lets_set("X-Other") && !rules.lets_set("contact"));
        assert!(!HeaderRules::default().shows("X-Customer"));
    }
}
