//! A call: one INVITE and the dialog that came of it.

use std::sync::Arc;
use std::time::Instant;

use super::event::{EndReason, RequestHandle};
use super::refer::{ReferAsk, Transfers};
use super::reliable::{PrackWanted, Provisionals};
use super::session::{Ask, Session};
use crate::dialog::{Dialog, Unacked};
use crate::digest::Credentials;
use crate::flow::{ConnectionId, Flow};
use crate::headers::{HeaderName, Headers};
use crate::message::Body;
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

/// What a call's Via and Contact say of us, where it is not the endpoint's.
#[derive(Debug, Clone, Default)]
pub(crate) struct OwnAddress {
    pub(crate) host: Option<Arc<str>>,
    pub(crate) user: Option<Arc<str>>,
    /// Contact is a `sips:` URI, because the request or its next hop was one (RFC 3261 §8.1.1.8, §12.1.1).
    pub(crate) is_secure: bool,
}

/// Whether a peer insists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IsRequired(pub(crate) bool);

/// The dialog that a provisional response to our INVITE has made: one a fork.
#[derive(Debug)]
pub(crate) struct Early {
    pub(crate) dialog: Dialog,
    /// RSeq of the last reliable response that we have confirmed.
    pub(crate) rseq: Option<u32>,
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
    pub(crate) own: OwnAddress,
    /// Of our INVITE, until its transaction is over.
    pub(crate) early: Vec<Early>,
    /// Our INVITE said that we can confirm provisional responses.
    pub(crate) offers_100rel: bool,
    /// A PRACK whose body the user has to write.
    pub(crate) prack_wanted: Option<PrackWanted>,
    /// Their INVITE can confirm provisional responses, and whether it must.
    pub(crate) asks_100rel: Option<IsRequired>,
    /// Reliable provisional responses to their INVITE, until its ACK.
    pub(crate) reliable: Option<Box<Provisionals>>,
    pub(crate) session: Session,
    /// The description of ours that holds: repeated in a refresh.
    pub(crate) local_sdp: Option<Box<[u8]>>,
    /// Our offer that has no answer yet.
    pub(crate) offer_out: Option<Box<[u8]>>,
    /// A print of the peer's description that holds.
    pub(crate) remote_sdp: Option<u64>,
    /// A re-INVITE of the user's that waits for our refresh, or for the ACK to our 2xx.
    pub(crate) reinvite_wanted: Option<Option<Body>>,
    /// An UPDATE of ours with an offer that has no answer yet.
    pub(crate) update_out: Option<Id>,
    pub(crate) transfers: Option<Box<Transfers>>,
    /// The call that this one takes over when it is answered.
    pub(crate) replaces: Option<Id>,
    /// Why it will have ended, whatever the last message says.
    pub(crate) why: Option<EndReason>,
    /// The earliest wake-up queued for it.
    pub(crate) wake: Option<Instant>,
}

impl Call {
    pub(crate) fn new(phase: Phase, local_tag: Box<str>, flow: Flow, session: Session) -> Call {
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
            own: OwnAddress::default(),
            early: Vec::new(),
            offers_100rel: false,
            prack_wanted: None,
            asks_100rel: None,
            reliable: None,
            session,
            local_sdp: None,
            offer_out: None,
            remote_sdp: None,
            reinvite_wanted: None,
            update_out: None,
            transfers: None,
            replaces: None,
            why: None,
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
            Phase::Confirmed => self.session.deadline(),
            Phase::Closing => None,
        };
        let provisionals = self.reliable.as_ref().and_then(|provisionals| provisionals.deadline());
        let transfers = self.transfers.as_ref().and_then(|transfers| transfers.deadline());
        let unacked = self.unacked.as_ref().map(Unacked::deadline);
        [own, unacked, provisionals, transfers].into_iter().flatten().min()
    }

    /// Whether no INVITE is under way, so that a re-INVITE may leave.
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Confirmed
            && self.invite_in.is_none()
            && self.invite_out.is_none()
            && self.unacked.is_none()
            && self.ack_wanted.is_none()
    }

    /// Whether an offer may have no answer yet, so that there is no room for another (RFC 3311 §5.2). Before the answer only
    /// what went by a reliable response counts as agreed on.
    pub(crate) fn has_open_offer(&self) -> bool {
        if self.update_out.is_some() {
            return true;
        }
        match self.phase {
            Phase::Incoming { .. } => {
                self.local_sdp.is_none() || self.reliable.as_ref().is_none_or(|sent| sent.delays_the_answer())
            }
            Phase::Outgoing { .. } => {
                self.remote_sdp.is_none() || self.early.iter().all(|early| early.rseq.is_none())
            }
            Phase::Confirmed | Phase::Closing => {
                self.invite_in.is_some() || self.invite_out.is_some() || self.reinvite_wanted.is_some()
            }
        }
    }

    /// Whether their re-INVITE with an offer has no answer yet.
    pub(crate) fn waits_for_our_answer(&self) -> bool {
        self.phase == Phase::Confirmed && self.invite_in.is_some() && self.session.asked.sdp.is_some()
    }

    /// The dialog in which requests of ours go: before the answer the newest early one.
    pub(crate) fn current(&self) -> Option<&Dialog> {
        self.dialog.as_ref().or_else(|| self.early.last().map(|early| &early.dialog))
    }

    pub(crate) fn current_mut(&mut self) -> Option<&mut Dialog> {
        self.dialog.as_mut().or_else(|| self.early.last_mut().map(|early| &mut early.dialog))
    }

    /// The dialog, confirmed or early, with this tag of the peer's.
    pub(crate) fn dialog_with(&self, remote_tag: &str) -> Option<&Dialog> {
        let early = self.early.iter().map(|early| &early.dialog);
        self.dialog.iter().chain(early).find(|dialog| *dialog.remote_tag() == *remote_tag)
    }

    pub(crate) fn dialog_with_mut(&mut self, remote_tag: &str) -> Option<&mut Dialog> {
        let early = self.early.iter_mut().map(|early| &mut early.dialog);
        self.dialog.iter_mut().chain(early).find(|dialog| *dialog.remote_tag() == *remote_tag)
    }

    /// Where the next request in the dialog goes: the open connection; else the first route or the target if that is an
    /// address and the peer is not behind a NAT; else where its packets come from.
    pub(crate) fn next_flow(&self) -> Flow {
        match self.current() {
            Some(dialog) => self.flow_along(dialog),
            None => self.flow,
        }
    }

    /// The same for one of the early dialogs.
    pub(crate) fn flow_along(&self, dialog: &Dialog) -> Flow {
        if self.flow.connection.is_some() {
            return self.flow;
        }
        let hop = Some(dialog).filter(|dialog| dialog.has_routes() || !self.natted).map(Dialog::next_hop);
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
    /// Of ours outside a dialog: the host that Via names.
    pub(crate) host: Option<Arc<str>>,
    /// UPDATE of theirs, or ours.
    pub(crate) update: Option<Box<PendingUpdate>>,
    /// REFER of theirs in a dialog.
    pub(crate) refer: Option<ReferAsk>,
}

/// An UPDATE without its answer: what holds once it is accepted.
#[derive(Debug, Default)]
pub(crate) struct PendingUpdate {
    /// Theirs: the peer's tag and new target.
    pub(crate) new_target: Option<(Box<str>, Uri)>,
    /// Theirs: what it asks for.
    pub(crate) ask: Ask,
    /// Ours: the offer.
    pub(crate) offer: Option<Box<[u8]>>,
}

impl From<RequestHandle> for Id {
    fn from(handle: RequestHandle) -> Id {
        Id { index: handle.index, generation: handle.generation }
    }
}
