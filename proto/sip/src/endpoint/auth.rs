//! A refused request of ours once more, with other headers: credentials (RFC 3261 §22.2), or a longer session.

use std::time::Instant;

use super::Endpoint;
use super::ledger::Owner;
use crate::digest::{Answer, Challenge, Credentials};
use crate::headers::HeaderName;
use crate::message::{Method, Request, Response};
use crate::table::Id;
use crate::write::Writer;

/// How often one request is sent anew: a challenge of a proxy, one of the server behind it, and for one of them a stale
/// nonce; one more for a longer session.
pub const SENT_AGAIN_MAX: u8 = 4;

impl Endpoint {
    /// On 401 or 407: sends the request again with an answer to each challenge (§22.2). False if there is nothing to answer
    /// with, or the peer has refused our answer already.
    pub(super) fn try_credentials(
        &mut self,
        transaction: Id,
        owner: Owner,
        response: &Response,
        now: Instant,
    ) -> bool {
        let (challenge, answer) = match response.status {
            401 => (HeaderName::WwwAuthenticate, HeaderName::Authorization),
            407 => (HeaderName::ProxyAuthenticate, HeaderName::ProxyAuthorization),
            _ => return false,
        };
        let Some(credentials) = self.credentials_of(owner) else { return false };
        let mut challenges = Challenge::strongest_each(response.head.headers().all(challenge));
        challenges.retain(|challenge| credentials.answers(&challenge.realm));
        let Some(request) = self.request_of(transaction) else { return false };
        let Some(state) = self.transactions.get(transaction) else { return false };
        // A realm that we have answered asks again only because its nonce was too old, and once.
        let answered = |realm: &str| answers_of(&request, answer).any(|given| given.realm == realm);
        let repeats = challenges.iter().any(|challenge| answered(&challenge.realm));
        let is_refused = challenges.iter().any(|challenge| answered(&challenge.realm) && !challenge.stale);
        if challenges.is_empty() || is_refused || (repeats && state.was_stale) {
            return false;
        }
        let was_stale = state.was_stale || repeats;
        let mut add = self.renewed_answers(&request, &credentials, answer, &challenges);
        for challenge in &challenges {
            let cnonce = self.random.token("");
            let method = request.method.as_str();
            add.push((answer, challenge.answer(&credentials, method, request.uri.as_str(), &cnonce, 1)));
        }
        let Some(next) = self.send_again(transaction, owner, is_digest, &add, now) else { return false };
        if let Some(next) = self.transactions.get_mut(next) {
            next.was_stale = was_stale;
        }
        if let Owner::Call(id) = owner
            && request.method == Method::Invite
            && let Some(call) = self.calls.get_mut(id)
        {
            call.authorization = add;
        }
        true
    }

    /// What a request that is sent again says to the realms that do not ask now: the same nonces with the next count, for a
    /// server takes no count twice.
    fn renewed_answers(
        &mut self,
        request: &Request,
        credentials: &Credentials,
        asking: HeaderName,
        challenges: &[Challenge],
    ) -> Vec<(HeaderName, String)> {
        let mut renewed = Vec::new();
        for header in [HeaderName::ProxyAuthorization, HeaderName::Authorization] {
            for given in answers_of(request, header) {
                let asks_now =
                    header == asking && challenges.iter().any(|challenge| challenge.realm == given.realm);
                if !asks_now {
                    let count = given.qop_auth.as_ref().map_or(1, |(count, _)| count + 1);
                    let cnonce = self.random.token("");
                    let (method, uri) = (request.method.as_str(), request.uri.as_str());
                    renewed
                        .push((header, given.challenge().answer(credentials, method, uri, &cnonce, count)));
                }
            }
        }
        renewed
    }

    /// The same for a request that is sent again for another reason than a challenge.
    pub(super) fn renewed_credentials(&mut self, transaction: Id, owner: Owner) -> Vec<(HeaderName, String)> {
        let Some(credentials) = self.credentials_of(owner) else { return Vec::new() };
        let Some(request) = self.request_of(transaction) else { return Vec::new() };
        self.renewed_answers(&request, &credentials, HeaderName::Other, &[])
    }

    fn credentials_of(&self, owner: Owner) -> Option<Credentials> {
        let own = match owner {
            Owner::Exchange(id) => self.exchanges.get(id).and_then(|exchange| exchange.credentials.clone()),
            _ => None,
        };
        own.or_else(|| self.calls.get(self.call_of_owner(owner)?)?.credentials.clone())
    }

    /// Sends a request again in a new transaction: without the lines that `drop` names, with those of `add`, and under the
    /// next sequence number. `None`: it has been tried often enough.
    pub(super) fn send_again(
        &mut self,
        transaction: Id,
        owner: Owner,
        drop: impl Fn(HeaderName, &[u8]) -> bool,
        add: &[(HeaderName, String)],
        now: Instant,
    ) -> Option<Id> {
        let state = self.transactions.get(transaction).filter(|state| state.tries < SENT_AGAIN_MAX)?;
        let (flow, tries, was_stale) = (state.flow, state.tries, state.was_stale);
        let request = self.request_of(transaction)?;
        let call = self.call_of_owner(owner);
        let remote_tag = request.head.to().tag().map(|tag| tag.into_owned());
        let own = call.and_then(|id| self.calls.get(id)).map(|call| call.own.clone()).unwrap_or_default();
        let dialog = call
            .and_then(|id| self.calls.get_mut(id))
            .zip(remote_tag.as_deref())
            .and_then(|(call, tag)| call.dialog_with_mut(tag));
        let number = dialog.map_or(request.head.cseq().number + 1, |dialog| dialog.next_cseq());
        let host = own.host.clone().or_else(|| self.exchange_host(owner));
        let (branch, via) = self.new_via(flow, host.as_deref());
        let mut writer = Writer::request(&request.method, &request.uri);
        for (name, old) in request.head.headers().iter() {
            match HeaderName::from_bytes(name.as_bytes()) {
                HeaderName::Via => writer.header(HeaderName::Via, &via),
                HeaderName::CSeq => {
                    writer.header_fmt(HeaderName::CSeq, format_args!("{number} {}", request.method))
                }
                HeaderName::ContentLength => {}
                known if drop(known, old) => {}
                _ => writer.line(name, old),
            }
        }
        for (name, value) in add {
            writer.header(*name, value);
        }
        let bytes = writer.finish(&request.body);
        let next = self.start_client(&request.method, &branch, bytes, flow, owner, now);
        if let Some(state) = self.transactions.get_mut(next) {
            state.tries = tries + 1;
            state.was_stale = was_stale;
        }
        if let Owner::Exchange(id) = owner
            && let Some(exchange) = self.exchanges.get_mut(id)
        {
            exchange.transaction = next;
        }
        if let Some(call) = call.and_then(|id| self.calls.get_mut(id)) {
            if let Some(transfers) = &mut call.transfers {
                transfers.sent_again(transaction, next, number);
            }
            if call.invite_out == Some(transaction) {
                call.invite_out = Some(next);
                if call.dialog.is_none() {
                    // The refused INVITE's early dialogs are gone with it.
                    call.early.clear();
                    call.prack_wanted = None;
                }
            }
            if call.session.refresh == Some(transaction) {
                call.session.refresh = Some(next);
            }
        }
        Some(next)
    }

    fn exchange_host(&self, owner: Owner) -> Option<std::sync::Arc<str>> {
        let Owner::Exchange(id) = owner else { return None };
        self.exchanges.get(id)?.host.clone()
    }
}

/// Whether a line is a digest answer.
pub(super) fn is_digest(name: HeaderName, value: &[u8]) -> bool {
    matches!(name, HeaderName::Authorization | HeaderName::ProxyAuthorization)
        && std::str::from_utf8(value).is_ok_and(|value| Answer::parse(value).is_ok())
}

/// The answers that a request of ours carries.
fn answers_of(request: &Request, header: HeaderName) -> impl Iterator<Item = Answer> {
    request.head.headers().all(header).filter_map(|value| Answer::parse(value).ok())
}
