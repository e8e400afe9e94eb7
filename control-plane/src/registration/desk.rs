//! Sorts what the SIP shell says: what belongs to registration, and what to call handling.
//!
//! ```text
//!   SipEvent ──Desk::take──▶ REGISTER, connections gone, what became of our requests ──▶ News ──▶ driver.rs
//!                └─────────▶ everything else goes back to call handling
//! ```
//!
//! Requests of ours are known by their token: registration numbers its own from the top half of the range.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tandem_sip::{
    CallHandle, ConnectionId, Event, Flow, Method, NoResponse, Request, RequestHandle, Response,
};
use tokio::sync::mpsc;

use crate::sip::{NotSent, SipEvent, TlsPeer, Token};

/// News that wait for the registration task: some seconds' worth of REGISTERs after an outage. Full: a REGISTER gets 503,
/// and what became of a request of ours is found out by its timer.
pub const NEWS_MAX: usize = 4_096;
/// Tokens of registration; call handling numbers its own from 1.
const OURS: u64 = 1 << 63;

/// A token of registration's.
pub fn token() -> Token {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    Token(OURS | NEXT.fetch_add(1, Ordering::Relaxed))
}

fn is_ours(token: Token) -> bool {
    token.0 & OURS != 0
}

/// What the registration task is told.
#[derive(Debug)]
pub enum News {
    /// A phone registers.
    Register {
        /// To be answered.
        handle: RequestHandle,
        /// What came.
        request: Box<Request>,
        /// How it came.
        flow: Flow,
    },
    /// A request of ours has its final response, or none.
    Response {
        /// Of the request.
        token: Token,
        /// What came.
        result: Result<Box<Response>, NoResponse>,
    },
    /// A request or call of ours has not left.
    NotSent {
        /// Of the request.
        token: Token,
        /// Why.
        why: NotSent,
    },
    /// The connection of a REGISTER of ours is gone.
    FlowLost {
        /// Of the REGISTER.
        token: Token,
    },
    /// A connection is gone, whosever.
    Closed(ConnectionId),
    /// A call of ours has left; again, when it went to the next target.
    Placed {
        /// Of the call.
        token: Token,
        /// Its handle.
        call: CallHandle,
    },
    /// Something happened in a call of ours.
    Call {
        /// Of the call.
        token: Token,
        /// What.
        event: Event,
    },
}

/// What became of an event.
#[derive(Debug)]
pub enum Taken {
    /// It was registration's.
    Ours,
    /// It is call handling's.
    NotOurs(SipEvent),
    /// A REGISTER for which there is no room: answer it with 503.
    Full(RequestHandle),
}

/// See the module.
#[derive(Debug)]
pub struct Desk {
    news: mpsc::Sender<News>,
    requests: Names<RequestHandle>,
    calls: Names<CallHandle>,
}

/// Which handle belongs to which token, and back; a token has one handle, the last. As many as requests under way.
#[derive(Debug)]
struct Names<H> {
    by_handle: HashMap<H, Token>,
    by_token: HashMap<Token, H>,
}

impl<H: Copy + Eq + std::hash::Hash> Names<H> {
    fn new() -> Self {
        Self { by_handle: HashMap::new(), by_token: HashMap::new() }
    }

    fn set(&mut self, token: Token, handle: H) {
        if let Some(earlier) = self.by_token.insert(token, handle) {
            self.by_handle.remove(&earlier);
        }
        self.by_handle.insert(handle, token);
    }

    fn get(&self, handle: H) -> Option<Token> {
        self.by_handle.get(&handle).copied()
    }

    fn end(&mut self, token: Token) {
        if let Some(handle) = self.by_token.remove(&token) {
            self.by_handle.remove(&handle);
        }
    }
}

impl Desk {
    /// A desk and where its news come out.
    pub fn new() -> (Self, mpsc::Receiver<News>) {
        let (news, news_out) = mpsc::channel(NEWS_MAX);
        (Self { news, requests: Names::new(), calls: Names::new() }, news_out)
    }

    /// Takes an event that is registration's.
    pub fn take(&mut self, event: SipEvent) -> Taken {
        match event {
            SipEvent::Sent { token, handle } if is_ours(token) => {
                self.requests.set(token, handle);
                Taken::Ours
            }
            SipEvent::NotSent { token, why } if is_ours(token) => {
                self.requests.end(token);
                self.calls.end(token);
                self.tell(News::NotSent { token, why })
            }
            SipEvent::FlowLost { token } if is_ours(token) => self.tell(News::FlowLost { token }),
            SipEvent::Placed { token, call } if is_ours(token) => {
                self.calls.set(token, call);
                self.tell(News::Placed { token, call })
            }
            SipEvent::Closed { connection } => self.tell(News::Closed(connection)),
            SipEvent::Endpoint { event, peer } => self.take_event(event, peer),
            event => Taken::NotOurs(event),
        }
    }

    fn take_event(&mut self, event: Event, peer: Option<Arc<TlsPeer>>) -> Taken {
        match event {
            Event::Request { handle, call: None, request, flow } if request.method == Method::Register => {
                match self.news.try_send(News::Register { handle, request, flow }) {
                    Ok(()) => Taken::Ours,
                    Err(_) => Taken::Full(handle),
                }
            }
            Event::Response { handle, call: None, result } => match self.requests.get(handle) {
                Some(token) => {
                    self.requests.end(token);
                    self.tell(News::Response { token, result })
                }
                None => {
                    let event = Event::Response { handle, call: None, result };
                    Taken::NotOurs(SipEvent::Endpoint { event, peer })
                }
            },
            event => {
                let Some(token) = call_of(&event).and_then(|call| self.calls.get(call)) else {
                    return Taken::NotOurs(SipEvent::Endpoint { event, peer });
                };
                if matches!(event, Event::Ended { .. }) {
                    self.calls.end(token);
                }
                self.tell(News::Call { token, event })
            }
        }
    }

    fn tell(&self, news: News) -> Taken {
        if self.news.try_send(news).is_err() {
            tracing::warn!("registration falls behind: what became of a request is not told");
        }
        Taken::Ours
    }
}

/// The call that an event is about, of those that a call of ours can have.
fn call_of(event: &Event) -> Option<CallHandle> {
    match event {
        Event::Provisional { call, .. }
        | Event::Answered { call, .. }
        | Event::Reinvite { call, .. }
        | Event::ReinviteCancelled { call }
        | Event::ReinviteAnswered { call, .. }
        | Event::ReinviteRefused { call, .. }
        | Event::Ended { call, .. } => Some(*call),
        Event::Request { call, .. } | Event::Response { call, .. } => *call,
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tandem_sip::parse::parse;
    use tandem_sip::{Endpoint, EndpointConfig, InviteRequest, Message, NameAddr, Uri};

    use super::*;

    fn flow() -> Flow {
        Flow::udp(([127, 0, 0, 1], 4573).into(), ([192, 0, 2, 9], 5060).into())
    }

    fn request(method: &str) -> Box<Request> {
        let text = format!(
            "{method} sip:tandem SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK1\r\nMax-Forwards: 70\r\n\
             From: <sip:a@h>;tag=1\r\nTo: <sip:a@h>\r\nCall-ID: c\r\nCSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
        );
        match parse(text.as_bytes()).unwrap() {
            Message::Request(request) => Box::new(request),
            Message::Response(_) => panic!("a request"),
        }
    }

    /// Handles as the endpoint gives them: of calls and of requests.
    fn handles() -> (Vec<CallHandle>, Vec<RequestHandle>) {
        let now = std::time::Instant::now();
        let mut endpoint = Endpoint::new(EndpointConfig::default());
        let uri = || Uri::parse("sip:a@192.0.2.9").unwrap();
        let invite = || InviteRequest::new(uri(), NameAddr::new(uri()), flow());
        let options =
            || tandem_sip::OutgoingRequest::new(Method::Options, uri(), NameAddr::new(uri()), flow());
        let calls = (0..2).map(|_| endpoint.invite(invite(), now).unwrap()).collect();
        (calls, (0..2).map(|_| endpoint.request(options(), now).unwrap()).collect())
    }

    fn endpoint_event(event: Event) -> SipEvent {
        SipEvent::Endpoint { event, peer: None }
    }

    fn unanswered(handle: RequestHandle) -> SipEvent {
        endpoint_event(Event::Response { handle, call: None, result: Err(NoResponse::Timeout) })
    }

    #[test]
    fn register_is_ours_and_other_requests_are_not() {
        let (mut desk, mut news) = Desk::new();
        let (_, requests) = handles();
        let event = |method: &str| {
            let handle = requests[0];
            endpoint_event(Event::Request { handle, call: None, request: request(method), flow: flow() })
        };
        assert!(matches!(desk.take(event("REGISTER")), Taken::Ours));
        assert!(matches!(news.try_recv(), Ok(News::Register { .. })));
        assert!(matches!(desk.take(event("MESSAGE")), Taken::NotOurs(_)));
        assert!(news.try_recv().is_err());
    }

    #[test]
    fn response_goes_to_whoever_has_sent_the_request() {
        let (mut desk, mut news) = Desk::new();
        let (_, requests) = handles();
        let own = token();
        assert!(matches!(desk.take(SipEvent::Sent { token: own, handle: requests[0] }), Taken::Ours));
        let foreign = SipEvent::Sent { token: Token(1), handle: requests[1] };
        assert!(matches!(desk.take(foreign), Taken::NotOurs(_)));
        assert!(matches!(desk.take(unanswered(requests[1])), Taken::NotOurs(_)));
        assert!(matches!(desk.take(unanswered(requests[0])), Taken::Ours));
        assert!(matches!(news.try_recv(), Ok(News::Response { token, .. }) if token == own));
        // It is over: the handle means nothing any more.
        assert!(matches!(desk.take(unanswered(requests[0])), Taken::NotOurs(_)));
    }

    #[test]
    fn request_that_moved_to_the_next_target_is_known_by_its_last_handle_only() {
        let (mut desk, _news) = Desk::new();
        let (_, requests) = handles();
        let own = token();
        for handle in &requests {
            desk.take(SipEvent::Sent { token: own, handle: *handle });
        }
        assert!(matches!(desk.take(unanswered(requests[0])), Taken::NotOurs(_)));
        assert!(matches!(desk.take(unanswered(requests[1])), Taken::Ours));
    }

    #[test]
    fn call_of_ours_is_told_until_it_has_ended() {
        let (mut desk, mut news) = Desk::new();
        let (calls, _) = handles();
        let own = token();
        desk.take(SipEvent::Placed { token: own, call: calls[0] });
        assert!(matches!(news.try_recv(), Ok(News::Placed { .. })));
        let ended = |call| {
            let why = tandem_sip::EndReason::LocalBye { status: Some(200) };
            endpoint_event(Event::Ended { call, why })
        };
        assert!(matches!(desk.take(ended(calls[1])), Taken::NotOurs(_)), "a call of call handling");
        assert!(matches!(desk.take(ended(calls[0])), Taken::Ours));
        assert!(matches!(news.try_recv(), Ok(News::Call { token, .. }) if token == own));
        assert!(matches!(desk.take(ended(calls[0])), Taken::NotOurs(_)), "it is forgotten");
    }

    #[test]
    fn register_without_room_is_given_back_and_other_news_are_dropped() {
        let (mut desk, news) = Desk::new();
        let (_, requests) = handles();
        let register = || {
            let handle = requests[0];
            endpoint_event(Event::Request { handle, call: None, request: request("REGISTER"), flow: flow() })
        };
        for _ in 0..NEWS_MAX {
            assert!(matches!(desk.take(register()), Taken::Ours));
        }
        assert!(matches!(desk.take(register()), Taken::Full(handle) if handle == requests[0]));
        assert!(matches!(desk.take(SipEvent::FlowLost { token: token() }), Taken::Ours));
        assert_eq!(news.len(), NEWS_MAX);
    }
}
