//! `tandem trunk check`: what is agreed with a trunk, tried step by step, and what the trunk sees of us.
//!
//! ```text
//!   options ▶ seen_… ▶ auth ▶ registration ──with a number──▶ codec ▶ early_media ▶ dtmf ▶ session_timer ▶ hold ▶ hangup
//!                                          └─without─────────▶ the same, skipped
//! ```
//!
//! Nothing is changed at the trunk: the password is tried by a REGISTER without a Contact, which only asks (RFC 3261
//! §10.2.3). The call is a real one, of some seconds, and may cost money: it is only placed to a number that somebody named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_sip::{HeaderName, Response};
use tokio::sync::mpsc;

use super::driver::{self, Office};
use super::registrant::State;
use crate::trunk::Trunk;

mod call;
mod ear;
mod sdp;

/// The steps that need a call.
pub(crate) const CALL_STEPS: [&str; 6] = ["codec", "early_media", "dtmf", "session_timer", "hold", "hangup"];
/// Octets of a peer's header that are shown.
const SHOWN_MAX: usize = 200;

/// What a step has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// Not as it should be.
    Fail,
    /// Not tried, and the detail says why.
    Skipped,
    /// No verdict: what the trunk sees of us.
    Info,
}

impl Verdict {
    /// For the API.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Skipped => "skipped",
            Self::Info => "info",
        }
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its name.
    pub name: &'static str,
    /// What it has shown.
    pub verdict: Verdict,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty: nothing.
    pub advice: String,
    /// How long it took.
    pub took: Duration,
}

/// Where the steps of a check go. Nobody reads any more: the check ends after the step it is in.
pub(crate) struct Report {
    steps: mpsc::Sender<Step>,
    began: Instant,
}

/// Nobody reads the steps any more.
#[derive(Debug)]
pub(crate) struct Unread;

impl Report {
    async fn say(
        &mut self,
        name: &'static str,
        verdict: Verdict,
        detail: impl Into<String>,
        advice: impl Into<String>,
    ) -> Result<(), Unread> {
        let took = self.began.elapsed();
        self.began = Instant::now();
        let step = Step { name, verdict, detail: detail.into(), advice: advice.into(), took };
        self.steps.send(step).await.map_err(|_| Unread)
    }

    async fn skip(&mut self, names: &[&'static str], detail: &str, advice: &str) -> Result<(), Unread> {
        for (index, name) in names.iter().enumerate() {
            // What to do is said once.
            let advice = if index == 0 { advice } else { "" };
            self.say(name, Verdict::Skipped, detail, advice).await?;
        }
        Ok(())
    }
}

/// Runs a check; `to` is a number or a SIP URI to call.
pub async fn run(office: Office, trunk: Arc<Trunk>, to: Option<String>, steps: mpsc::Sender<Step>) {
    let mut report = Report { steps, began: Instant::now() };
    // Whoever went away needs no more steps.
    let _ = try_all(&office, &trunk, to, &mut report).await;
}

async fn try_all(
    office: &Office,
    trunk: &Arc<Trunk>,
    to: Option<String>,
    report: &mut Report,
) -> Result<(), Unread> {
    if driver::destination(trunk).is_none() {
        let detail = "the trunk has no sip_uri: it only calls us";
        report.skip(&["options", "auth"], detail, "").await?;
        registration(office, trunk, report).await?;
        return report.skip(&CALL_STEPS, detail, "").await;
    }
    let via_host = options(office, trunk, report).await?;
    auth(office, trunk, report).await?;
    registration(office, trunk, report).await?;
    match to {
        Some(to) => call::try_call(office, trunk, &to, via_host, report).await,
        None => {
            let advice = format!(
                "run `tandem trunk check {} --to NUMBER` with a number that answers; it is called for about ten seconds",
                trunk.name
            );
            report.skip(&CALL_STEPS, "needs a call", &advice).await
        }
    }
}

/// OPTIONS, and what its response says of us. Gives the host in our Via.
async fn options(office: &Office, trunk: &Trunk, report: &mut Report) -> Result<Option<String>, Unread> {
    let Some((request, destination)) = driver::options_request(trunk) else { return Ok(None) };
    let (address, from) = (destination.uri.redacted().to_string(), request.from.uri.redacted().to_string());
    let user = driver::contact_user(trunk);
    let began = Instant::now();
    let response = match office.send(request, destination).await {
        Ok(response) => response,
        Err(why) => {
            let advice = format!(
                "is {address} right (sip_uri, sip_server, transport), and does a firewall let it out and its answers in?"
            );
            report.say("options", Verdict::Fail, format!("{address}: {why}"), advice).await?;
            return Ok(None);
        }
    };
    let ms = began.elapsed().as_millis();
    let said = format!("{address} answers {} in {ms} ms{}", status_line(&response), server(&response));
    match response.status {
        408 | 503 => {
            let advice = "the trunk is there but out of service, or does not know our address: ask it";
            report.say("options", Verdict::Fail, said, advice).await?;
        }
        _ => report.say("options", Verdict::Pass, said, "").await?,
    }
    for (name, header) in [("seen_allow", HeaderName::Allow), ("seen_supported", HeaderName::Supported)] {
        if let Some(value) = response.header(header) {
            report
                .say(name, Verdict::Info, format!("the trunk's {}: {}", header.as_str(), shown(value)), "")
                .await?;
        }
    }
    seen(&response, &from, &user, report).await?;
    Ok(Some(response.head.via().host.to_string()))
}

/// Via, Contact and From as the trunk has got them, from the Via that it sends back.
async fn seen(response: &Response, from: &str, user: &str, report: &mut Report) -> Result<(), Unread> {
    let via = response.head.via();
    let port = via.port.map(|port| format!(":{port}")).unwrap_or_default();
    let sent_by = format!("{}{port}", via.host);
    report
        .say("seen_via", Verdict::Info, format!("our Via: SIP/2.0/{} {sent_by}", via.transport), "")
        .await?;
    let at = if user.is_empty() { "" } else { "@" };
    let transport = match via.known_transport().and_then(|transport| transport.uri_param()) {
        Some(name) => format!(";transport={name}"),
        None => String::new(),
    };
    report
        .say("seen_contact", Verdict::Info, format!("our Contact: <sip:{user}{at}{sent_by}{transport}>"), "")
        .await?;
    report.say("seen_from", Verdict::Info, format!("our From: <{from}>"), "").await?;
    report.say("seen_codecs", Verdict::Info, format!("our codecs: {}", sdp::OFFERED), "").await?;
    let received = via.params.get("received");
    let rport = via.params.get("rport").filter(|port| !port.is_empty());
    let source_host = received.as_deref().unwrap_or(&via.host).to_owned();
    let source = format!("{source_host}{}", rport.map(|port| format!(":{port}")).unwrap_or_default());
    let source_ip = source_host.trim_matches(['[', ']']).parse().ok();
    let is_same = via.host_ip().is_none() || source_ip == via.host_ip();
    let detail = format!("our packets come from {source}, as the trunk sees it");
    let advice = if is_same {
        String::new()
    } else {
        format!(
            "there is a NAT: set advertised_host = \"{source_host}\" for this trunk (or TANDEM_SIP_PUBLIC), and let port {} in",
            via.port_or_default()
        )
    };
    report.say("seen_source", Verdict::Info, detail, advice).await
}

async fn auth(office: &Office, trunk: &Trunk, report: &mut Report) -> Result<(), Unread> {
    let password = trunk.credential.sip_password.is_some();
    let Some(request) = driver::query_request(trunk).filter(|_| password) else {
        let detail = "no sip_password: the trunk knows us by our address or certificate";
        return report.say("auth", Verdict::Skipped, detail, "").await;
    };
    let Some(destination) = driver::destination(trunk) else { return Ok(()) };
    let account = request.from.uri.redacted().to_string();
    let first = request.cseq;
    match office.send(request, destination).await {
        Ok(response) => {
            let said = format!("REGISTER (a query) for {account}: {}", status_line(&response));
            let was_challenged = response.head.cseq().number > first;
            match response.status {
                200..=299 if was_challenged => report.say("auth", Verdict::Pass, said, "").await,
                200..=299 => {
                    report
                        .say("auth", Verdict::Pass, format!("{said}, without asking for a password"), "")
                        .await
                }
                401 | 403 | 407 => {
                    let advice = "check sip_username, sip_password, sip_realm and sip_domain with the trunk";
                    report.say("auth", Verdict::Fail, said, advice).await
                }
                404 | 604 => {
                    let advice = "the trunk does not know this account: check sip_username and sip_domain";
                    report.say("auth", Verdict::Fail, said, advice).await
                }
                _ => {
                    let advice = "the trunk takes no REGISTER, so only a call can tell: use --to";
                    report.say("auth", Verdict::Skipped, said, advice).await
                }
            }
        }
        Err(why) => report.say("auth", Verdict::Fail, format!("REGISTER for {account}: {why}"), "").await,
    }
}

async fn registration(office: &Office, trunk: &Trunk, report: &mut Report) -> Result<(), Unread> {
    let status = office.board.trunk(&trunk.name).registration;
    let Some(registration) = status else {
        let detail = "we do not register with this trunk";
        let advice =
            "if it reaches us by registration and not by our address, give it a [trunk.registration] table";
        return report.say("registration", Verdict::Skipped, detail, advice).await;
    };
    let word = registration.state.word();
    let detail = if registration.detail.is_empty() {
        word.to_owned()
    } else {
        format!("{word}: {}", registration.detail)
    };
    let (verdict, advice) = match registration.state {
        State::Registered => (Verdict::Pass, ""),
        State::Standby => {
            (Verdict::Skipped, "another node registers, or the store does not answer: ask that node")
        }
        State::Registering | State::Stopped => (Verdict::Skipped, "try again in a moment"),
        State::Refused => {
            (Verdict::Fail, "the trunk refuses: check sip_username, sip_password and sip_domain")
        }
        State::Unreachable => (Verdict::Fail, "the trunk does not answer REGISTER: see the step options"),
    };
    report.say("registration", verdict, detail, advice).await
}

/// `200 OK`.
pub(crate) fn status_line(response: &Response) -> String {
    let reason = shown(&response.reason);
    if reason.is_empty() {
        format!("{} {}", response.status, tandem_sip::message::reason_phrase(response.status))
    } else {
        format!("{} {reason}", response.status)
    }
}

fn server(response: &Response) -> String {
    let name = response.header(HeaderName::Server).or_else(|| response.header(HeaderName::UserAgent));
    name.map(|name| format!(" ({})", shown(name))).unwrap_or_default()
}

/// What a peer wrote, as a terminal may show it.
pub(crate) fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect::<String>().trim().to_owned()
}
