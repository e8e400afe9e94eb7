//! We hand the other side on (RFC 3515): blind to a number or URI, attended to the other side of another call (RFC 3891).
//!
//! ```text
//!   agent or API ─▶ policy ─▶ REFER ─▶ 202 ─▶ NOTIFY 100 … 180 ─▶ NOTIFY 200 ─▶ BYE: "transferred"
//!                     └── no               └── refused, failed, or silent for too long ─▶ the agent is told, the call goes on
//! ```
//!
//! Whom an agent may name is the trunk's to say: a language model must not be talked into dialling what costs money.

use std::time::{Duration, Instant};

use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::tell_agent_request::What as Tell;
use tandem_sip::header::refer::{ReferTo, Replaces};
use tandem_sip::message::{Head, Request, Response};
use tandem_sip::{Headers, Uri};
use uuid::Uuid;

use super::{Asked, Call};
use crate::call::ending::{Cause, Ending};
use crate::call::order;
use crate::call::registry::Surroundings;
use crate::call::state::State;
use crate::sip::Verb;
use crate::trunk::credential::escape_user;
use crate::trunk::{Trunk, inbound};

/// How long a transfer may take where no trunk says otherwise.
const TRANSFER_MAX: Duration = Duration::from_secs(60);
/// Octets of a target: an agent may write what it wants.
const TARGET_MAX: usize = 256;

/// Whom a call is handed to, as the API says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TransferTo {
    /// A number or a SIP URI.
    Blind(String),
    /// The other side of this call.
    Attended(Uuid),
}

/// The same, found.
#[derive(Debug, Clone)]
pub enum ReferTarget {
    /// A number or a SIP URI.
    Blind(String),
    /// The other side of this dialog.
    Attended(DialogId),
}

/// A dialog as Replaces names it, and where its other side is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DialogId {
    call_id: String,
    ours: String,
    theirs: String,
    target: Uri,
}

impl DialogId {
    /// Of a call of ours, by its 2xx.
    pub(super) fn of_answer(response: &Response) -> Option<Self> {
        let target = response.head.contact()?.uri;
        Self::new(&response.head, target, Role::Caller)
    }

    /// Of a call that came in, by its ACK; `contact` is the INVITE's.
    pub(super) fn of_ack(ack: &Request, contact: &Uri) -> Option<Self> {
        Self::new(&ack.head, contact.clone(), Role::Callee)
    }

    fn new(head: &Head, target: Uri, role: Role) -> Option<Self> {
        let (from, to) = (head.from().tag()?.into_owned(), head.to().tag()?.into_owned());
        let (ours, theirs) = match role {
            Role::Caller => (from, to),
            Role::Callee => (to, from),
        };
        Some(Self { call_id: head.call_id().to_owned(), ours, theirs, target })
    }

    fn to_refer(&self) -> ReferTo {
        let replaces = Replaces {
            call_id: self.call_id.as_str().into(),
            to_tag: self.theirs.as_str().into(),
            from_tag: self.ours.as_str().into(),
            early_only: false,
        };
        ReferTo::attended(self.target.without_password(), replaces)
    }
}

enum Role {
    Caller,
    Callee,
}

/// A transfer under way.
#[derive(Debug)]
pub(super) struct Transfer {
    give_up: Instant,
    /// 202: the other side tries.
    is_accepted: bool,
}

impl Call {
    /// Its dialog, once it is confirmed.
    pub fn dialog(&self) -> Option<&DialogId> {
        self.dialog.as_ref()
    }

    /// Hands the other side on.
    pub fn transfer(&mut self, to: ReferTarget, around: &mut Surroundings<'_>) -> Asked {
        let state = self.life.state();
        if !matches!(state, State::Connected | State::OnHold) {
            return Asked::State(state);
        }
        if self.stream.is_some() {
            return self.transfer_by_provider(&to, around);
        }
        if self.transfer.is_some() || self.has_open_guest() || self.joining.is_some() {
            return Asked::Busy;
        }
        let target = match self.target(&to) {
            Ok(target) => target,
            Err(why) => return Asked::Policy(why),
        };
        let headers = self.agent_headers.clone();
        self.ask_sip(around, |sip| Verb::Refer(sip, Box::new(target), headers));
        let timeout = self.trunk.as_ref().map_or(TRANSFER_MAX, |trunk| trunk.transfer.timeout);
        self.transfer = Some(Transfer { give_up: around.now + timeout, is_accepted: false });
        Asked::Done
    }

    /// The provider puts the other side through, by its REST API.
    fn transfer_by_provider(&mut self, to: &ReferTarget, around: &mut Surroundings<'_>) -> Asked {
        if self.transfer.is_some() {
            return Asked::Busy;
        }
        let ReferTarget::Blind(to) = to else {
            return Asked::Policy("a provider's call is handed on to a number only".to_owned());
        };
        let to = to.trim();
        let to = to.strip_prefix("tel:").unwrap_or(to);
        if let Err(why) = self.check_provider_target(to, around) {
            return Asked::Policy(why);
        }
        if let Err(why) = self.ask_transfer(to.to_owned(), around) {
            return Asked::Policy(why);
        }
        self.transfer = Some(Transfer { give_up: around.now + TRANSFER_MAX, is_accepted: false });
        Asked::Done
    }

    /// The other side is being handed on, by the provider or by REFER, or that has been asked for.
    pub(super) fn is_transferring(&self) -> bool {
        self.transfer.is_some()
    }

    /// What came of it. `false`: none was asked for.
    pub(super) fn handle_transfer_asked(&mut self, refused: Option<&str>) -> bool {
        let Some(transfer) = self.transfer.as_mut().filter(|transfer| !transfer.is_accepted) else {
            return false;
        };
        match refused {
            None => {
                transfer.is_accepted = true;
                self.transfer_is_theirs();
                self.tell_transfer("trying", "");
            }
            Some(why) => {
                self.transfer = None;
                self.tell_transfer("failed", why);
            }
        }
        true
    }

    /// From here on a hang-up of ours would cut the other side off from whom it was put through to.
    fn transfer_is_theirs(&mut self) {
        if let Some(stream) = self.stream.as_mut() {
            stream.is_over_there = true;
        }
    }

    /// The agent wants it; it is told why when it may not.
    pub(super) fn handle_agent_transfer(
        &mut self,
        to: String,
        mode: engine::TransferMode,
        around: &mut Surroundings<'_>,
    ) {
        use engine::TransferMode::{Refer, Unspecified};
        let asked = match mode {
            Refer | Unspecified => self.transfer(ReferTarget::Blind(to), around),
            _ => self.handle_agent_guest(&to, mode, around),
        };
        let why = match asked {
            Asked::Done => return,
            Asked::Policy(why) => why,
            Asked::Busy => "a transfer is under way already".to_owned(),
            Asked::State(state) => format!("the call is {}", state.word()),
            Asked::NoTarget => "there is nobody".to_owned(),
        };
        self.tell_transfer("failed", &why);
    }

    /// Whom the REFER names, if that is allowed.
    fn target(&self, to: &ReferTarget) -> Result<ReferTo, String> {
        if self.trunk.as_ref().is_some_and(|trunk| !trunk.transfer.refer_out) {
            return Err("the trunk's policy allows no transfer".to_owned());
        }
        let text = match to {
            ReferTarget::Attended(dialog) => return Ok(dialog.to_refer()),
            ReferTarget::Blind(text) => text.trim(),
        };
        let text = text.strip_prefix("tel:").unwrap_or(text);
        if text.is_empty() || text.len() > TARGET_MAX {
            return Err(format!("the target must have 1 to {TARGET_MAX} octets"));
        }
        if !text.starts_with("sip:") && !text.starts_with("sips:") {
            if text.contains([':', '@']) || !text.chars().any(char::is_alphanumeric) {
                return Err("the target must be a number or a SIP URI".to_owned());
            }
            self.check_number(text)?;
            let uri = Uri::parse(&format!("sip:{}@{}", escape_user(text), self.own_host()));
            return Ok(ReferTo::blind(uri.map_err(|error| error.to_string())?));
        }
        let uri = Uri::parse(text).map_err(|error| format!("the target is no SIP URI: {error}"))?;
        if uri.password().is_some() || uri.headers().is_some() {
            return Err("the target must be a SIP URI without password and headers".to_owned());
        }
        self.check_target(&uri)?;
        Ok(ReferTo::blind(uri))
    }

    /// A URI must be at the trunk's own hosts or at those that its policy names.
    pub(super) fn check_target(&self, uri: &Uri) -> Result<(), String> {
        let host = uri.host();
        let is_own = match &self.trunk {
            Some(trunk) => order::is_host_of(trunk, host) || names_host(&trunk.transfer.targets, host),
            None => host.eq_ignore_ascii_case(&self.own_host()),
        };
        if !is_own {
            return Err(format!("host {host} is not among the transfer targets of the trunk"));
        }
        self.check_number(&uri.user().unwrap_or_default())
    }

    /// A number must be one that the trunk may be asked for.
    fn check_number(&self, number: &str) -> Result<(), String> {
        self.trunk.as_deref().map_or(Ok(()), |trunk| check_number(trunk, number))
    }

    /// The domain in which a bare number means something to the other side.
    fn own_host(&self) -> String {
        if let Some(domain) = self.trunk.as_ref().and_then(|trunk| trunk.credential.domain()) {
            return domain.to_owned();
        }
        self.peer_host.clone()
    }

    /// How the transfer goes.
    pub fn handle_refer_progress(
        &mut self,
        status: u16,
        reason: &str,
        is_final: bool,
        around: &mut Surroundings<'_>,
    ) {
        if self.life.is_ending() {
            return;
        }
        let Some(transfer) = &mut self.transfer else { return };
        match (status, is_final) {
            (200..=299, true) => {
                self.tell_transfer("done", "");
                self.end(Ending::new(Cause::Transferred), around);
            }
            (_, true) => {
                self.transfer = None;
                self.tell_transfer("failed", format!("{status} {reason}").trim_end());
            }
            (_, false) => {
                if !std::mem::replace(&mut transfer.is_accepted, true) {
                    self.tell_transfer("trying", "");
                }
            }
        }
    }

    /// The other side hangs up while it is handed on: some do so as soon as they try. `false`: it is not.
    pub(super) fn is_leaving(&self) -> bool {
        self.transfer.as_ref().is_some_and(|transfer| transfer.is_accepted)
    }

    pub(super) fn transfer_deadline(&self) -> Option<Instant> {
        self.transfer.as_ref().map(|transfer| transfer.give_up)
    }

    pub(super) fn handle_transfer_timeout(&mut self, around: &mut Surroundings<'_>) {
        let is_due = self.transfer.as_ref().is_some_and(|transfer| transfer.give_up <= around.now);
        if is_due && self.stream.is_some() && self.is_leaving() {
            // The provider has put them through, and left the media with us: nobody is there any more.
            self.tell_transfer("done", "");
            return self.end(Ending::new(Cause::Transferred), around);
        }
        if self.transfer.take_if(|transfer| transfer.give_up <= around.now).is_some() {
            // A late word must not be taken for that of the next transfer.
            self.ask_sip(around, Verb::ForgetRefer);
            self.tell_transfer("failed", "nobody said in time how it went");
        }
    }

    pub(super) fn tell_transfer(&mut self, status: &str, reason: &str) {
        let reason = reason.chars().take(128).collect();
        let progress = engine::TransferProgress { status: status.to_owned(), reason };
        self.session.tell(Tell::Transfer(progress));
    }

    /// What the agent wants on the request that ends the call, as far as the trunk lets it.
    pub(super) fn set_agent_headers(&mut self, given: &std::collections::BTreeMap<String, String>) {
        let Some(trunk) = &self.trunk else { return };
        let mut headers = Headers::new();
        for (name, value) in given.iter().filter(|(name, _)| trunk.headers.lets_set(name)) {
            // What holds a line break is no header.
            if let Err(error) = headers.push(name, value) {
                tracing::debug!(name, %error, "a header of an agent is not sent");
            }
        }
        self.agent_headers = headers;
    }
}

/// A number must be one that the trunk's transfer targets name, if they name numbers, and that it may call.
pub(super) fn check_number(trunk: &Trunk, number: &str) -> Result<(), String> {
    let is_listed = !trunk.transfer.targets.iter().any(|target| is_number(target)) || lists(trunk, number);
    allowed(trunk, number, is_listed)
}

/// Over a trunk that is not the call's own only what its transfer targets name: a number by one of their prefixes, a name at
/// a host by that host.
pub(super) fn check_listed(trunk: &Trunk, user: &str, host: Option<&str>) -> Result<(), String> {
    let is_name = user.starts_with(char::is_alphabetic);
    let is_at_host = is_name && host.is_some_and(|host| names_host(&trunk.transfer.targets, host));
    allowed(trunk, user, is_at_host || lists(trunk, user))
}

fn allowed(trunk: &Trunk, number: &str, is_listed: bool) -> Result<(), String> {
    match is_listed && trunk.outbound.allows_number(number) {
        true => Ok(()),
        false => Err(format!("the number is not among the transfer targets of trunk {}", trunk.name)),
    }
}

/// Whether one of the prefixes among the targets is the number's.
fn lists(trunk: &Trunk, number: &str) -> bool {
    let number = inbound::normal(number, None);
    let mut prefixes = trunk.transfer.targets.iter().filter(|target| is_number(target));
    prefixes.any(|prefix| number.starts_with(&inbound::normal_prefix(prefix)))
}

/// `+49`, not `pbx.example.com`.
fn is_number(target: &str) -> bool {
    target.chars().all(|c| c.is_ascii_digit() || "+-() ".contains(c))
}

fn names_host(targets: &[String], host: &str) -> bool {
    targets.iter().any(|target| !is_number(target) && target.eq_ignore_ascii_case(host))
}
