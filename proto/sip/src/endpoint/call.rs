//! A call: one INVITE and the dialog that came of it.

use std::time::Instant;

use super::event::RequestHandle;
use crate::dialog::{Dialog, Unacked};
use crate::digest::Credentials;
use crate::flow::{ConnectionId, Flow};
use crate::headers::{HeaderName, Headers};
use crate::table::Id;
use crate::uri::Uri;

/// How far a call is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// UAS: their INVITE has no final response.
    Incoming {
        /// When the last provisional response is sent again.
        repeat_at: Option<Instant>,
    },
    /// UAC: our INVITE has no final response.
    Outgoing {
        /// When we cancel it ourselves; `None` once cancelled.
        ring_until: Option<Instant>,
        /// The user gave up; CANCEL leaves, or has left, with these headers.
        cancel: Option<Headers>,
    },
    /// Answered.
    Confirmed,
    /// Our BYE has left; its answer ends the call.
    Closing,
}

/// One call.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) phase: Phase,
    /// `None` only while outgoing.
    pub(crate) dialog: Option<Dialog>,
    /// Our tag, under which the peer's requests find the call.
    pub(crate) local_tag: Box<str>,
    /// We sent the first INVITE, so the Call-ID is ours.
    pub(crate) called: bool,
    /// How the peer was reached last.
    pub(crate) flow: Flow,
    /// sent-by's port of the peer's last request: where it listens, when its connection is gone. `None`: it sent none,
    /// and `flow` is where we called it.
    pub(crate) sent_by_port: Option<u16>,
    /// The peer's Via or Contact shows another address than its packets: requests go to the packets' source.
    pub(crate) natted: bool,
    /// Their INVITE or re-INVITE that waits for our answer.
    pub(crate) invite_in: Option<Id>,
    /// Our 2xx that waits for its ACK.
    pub(crate) unacked: Option<Unacked>,
    /// A BYE that waits for that ACK (RFC 3261 §15).
    pub(crate) bye_wanted: Option<Headers>,
    /// Our INVITE or re-INVITE that waits for its final response.
    pub(crate) invite_out: Option<Id>,
    /// Whether that INVITE had an offer; if not, the user writes the ACK.
    pub(crate) offered: bool,
    /// Our answered INVITE and its CSeq, whose ACK the user has to write.
    pub(crate) ack_wanted: Option<(Id, u32)>,
    /// For 401 and 407 to any request of the call.
    pub(crate) credentials: Option<Credentials>,
    /// The Authorization lines of our INVITE, which its ACK repeats (§22.1).
    pub(crate) authorization: Vec<(HeaderName, String)>,
    /// The earliest wake-up queued for it.
    pub(crate) wake: Option<Instant>,
}

impl Call {
    pub(crate) fn new(phase: Phase, local_tag: Box<str>, flow: Flow) -> Call {
        Call {
            dialog: None,
            called: matches!(phase, Phase::Outgoing { .. }),
            phase,
            local_tag,
            flow,
            sent_by_port: None,
            natted: false,
            invite_in: None,
            unacked: None,
            bye_wanted: None,
            invite_out: None,
            offered: true,
            ack_wanted: None,
            credentials: None,
            authorization: Vec::new(),
            wake: None,
        }
    }

    /// A connection is gone: from now on we go where the peer listens, not to the port it had connected from.
    pub(crate) fn connection_closed(&mut self, connection: ConnectionId) {
        let port = self.sent_by_port;
        let flows = [Some(&mut self.flow), self.unacked.as_mut().map(|unacked| &mut unacked.flow)];
        for flow in flows.into_iter().flatten().filter(|flow| flow.connection == Some(connection)) {
            flow.connection = None;
            if let Some(port) = port {
                flow.remote.set_port(port);
            }
        }
    }

    /// When the call itself (not one of its transactions) has something to do.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let own = match &self.phase {
            Phase::Incoming { repeat_at } => *repeat_at,
            Phase::Outgoing { ring_until, .. } => *ring_until,
            Phase::Confirmed | Phase::Closing => None,
        };
        [own, self.unacked.as_ref().map(Unacked::deadline)].into_iter().flatten().min()
    }

    /// Where the next request in the dialog goes: the open connection; else the first route or the target if that is an
    /// address and the peer is not behind a NAT; else where its packets come from.
    pub(crate) fn next_flow(&self) -> Flow {
        if self.flow.connection.is_some() {
            return self.flow;
        }
        let hop =
            self.dialog.as_ref().filter(|dialog| dialog.has_routes() || !self.natted).map(Dialog::next_hop);
        let remote =
            hop.and_then(|uri| uri.socket_addr()).filter(|addr| addr.is_ipv4() == self.flow.local.is_ipv4());
        Flow { remote: remote.unwrap_or(self.flow.remote), ..self.flow }
    }

    /// What it is doing, for [`super::CallError::State`].
    pub(crate) fn doing(&self) -> &'static str {
        match self.phase {
            Phase::Incoming { .. } => "the caller waits for an answer",
            Phase::Outgoing { .. } => "the INVITE is pending",
            Phase::Confirmed if self.unacked.is_some() => "the ACK is awaited",
            Phase::Confirmed => "the call is up",
            Phase::Closing => "the BYE is pending",
        }
    }
}

/// A request other than INVITE that the user answers, or that waits for the peer's answer.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// The transaction.
    pub(crate) transaction: Id,
    /// The call, inside a dialog.
    pub(crate) call: Option<Id>,
    /// For 401 and 407 outside a dialog.
    pub(crate) credentials: Option<Credentials>,
    /// UPDATE of theirs: the dialog's target once we have accepted it.
    pub(crate) new_target: Option<Uri>,
}

impl From<RequestHandle> for Id {
    fn from(handle: RequestHandle) -> Id {
        Id { index: handle.index, generation: handle.generation }
    }
}
