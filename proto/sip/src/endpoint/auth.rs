//! Our answer to 401 and 407 (RFC 3261 §22.2): the same request once more, with credentials.

use std::time::Instant;

use super::Endpoint;
use super::ledger::Owner;
use crate::digest::Challenge;
use crate::headers::HeaderName;
use crate::message::{Method, Response};
use crate::table::Id;
use crate::write::Writer;

impl Endpoint {
    /// On 401 or 407: sends the request again with an answer to the challenge (§22.2). False if there is nothing to
    /// answer with, or the peer has refused our answer already.
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
        let credentials = match owner {
            Owner::Nobody => None,
            Owner::Call(id) => self.calls.get(id).and_then(|call| call.credentials.clone()),
            Owner::Exchange(id) => self.exchanges.get(id).and_then(|exchange| {
                let of_call = || self.calls.get(exchange.call?)?.credentials.clone();
                exchange.credentials.clone().or_else(of_call)
            }),
        };
        let Some(credentials) = credentials else { return false };
        let Some(challenge) = Challenge::strongest(response.head.headers().all(challenge)) else {
            return false;
        };
        let Some(request) = self.request_of(transaction) else { return false };
        if request.head.headers().contains(answer) && !challenge.stale {
            return false;
        }
        let Some(flow) = self.transactions.get(transaction).map(|transaction| transaction.flow) else {
            return false;
        };
        let cnonce = self.random.token("");
        let value = challenge.answer(&credentials, request.method.as_str(), request.uri.as_str(), &cnonce, 1);
        let number = request.head.cseq().number + 1;
        let (branch, via) = self.new_via(flow);
        let mut writer = Writer::request(&request.method, &request.uri);
        for (name, old) in request.head.headers().iter() {
            match HeaderName::from_bytes(name.as_bytes()) {
                HeaderName::Via => writer.header(HeaderName::Via, &via),
                HeaderName::CSeq => {
                    writer.header_fmt(HeaderName::CSeq, format_args!("{number} {}", request.method))
                }
                HeaderName::ContentLength => {}
                known if known == answer => {}
                _ => writer.line(name, old),
            }
        }
        writer.header(answer, &value);
        let next =
            self.start_client(&request.method, &branch, writer.finish(&request.body), flow, owner, now);
        let is_invite = request.method == Method::Invite;
        match owner {
            Owner::Call(id) => {
                let Some(call) = self.calls.get_mut(id) else { return true };
                if let Some(dialog) = &mut call.dialog {
                    dialog.next_cseq();
                }
                if is_invite {
                    call.invite_out = Some(next);
                    call.authorization.retain(|(name, _)| *name != answer);
                    call.authorization.push((answer, value));
                }
            }
            Owner::Exchange(id) => {
                let call = self.exchanges.get_mut(id).and_then(|exchange| {
                    exchange.transaction = next;
                    exchange.call
                });
                if let Some(dialog) =
                    call.and_then(|id| self.calls.get_mut(id)).and_then(|call| call.dialog.as_mut())
                {
                    dialog.next_cseq();
                }
            }
            Owner::Nobody => {}
        }
        true
    }
}
