//! The phone itself: binds a line, calls, takes calls.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_audio::format::{Codec, Ptime};
use tandem_sdp::{Direction, LocalMedia, Negotiated, SessionDescription, accept_answer, answer, offer};
use tandem_sip::digest::Credentials;
use tandem_sip::{
    Body, CallHandle, EndReason, Endpoint, EndpointConfig, Event, HeaderName, Headers, InviteRequest,
    NameAddr, NoResponse, Response, Uri,
};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Mutex, mpsc};

use crate::answer::{AnswerOptions, Incoming};
use crate::call::{Call, Timing};
use crate::line::{Line, NewCall};
use crate::media::MediaPort;

/// How SIP travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SipTransport {
    /// Datagrams, repeated until answered.
    #[default]
    Udp,
    /// Connections, opened when needed.
    Tcp,
}

/// Where and as whom a phone lives.
#[derive(Debug, Clone)]
pub struct PhoneConfig {
    /// Where SIP is spoken, and on whose address RTP; a concrete address, since peers are told it. Port 0: any.
    pub local: SocketAddr,
    /// How SIP travels.
    pub transport: SipTransport,
    /// User part of our From and Contact.
    pub user: String,
}

/// Any port on loopback, over UDP, as `phone`.
impl Default for PhoneConfig {
    fn default() -> Self {
        PhoneConfig {
            local: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            transport: SipTransport::Udp,
            user: "phone".to_owned(),
        }
    }
}

/// The line could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("SIP at {local} cannot be bound: {cause}")]
pub struct BindError {
    /// Where.
    pub local: SocketAddr,
    /// Why.
    pub cause: io::Error,
}

/// How to call.
#[derive(Debug, Clone)]
pub struct CallOptions {
    /// Codecs, best first.
    pub codecs: Vec<Codec>,
    /// The packet time that we ask for and, unless the peer asks otherwise, send.
    pub ptime: Ptime,
    /// Offers nothing, and answers the peer's offer in the ACK.
    pub delayed_offer: bool,
    /// Offers telephone-event.
    pub telephone_event: bool,
    /// Headers added to the INVITE.
    pub headers: Vec<(String, String)>,
    /// For a 401 or 407 with a digest challenge.
    pub credentials: Option<Credentials>,
    /// How long it may ring before we give up.
    pub timeout: Duration,
    /// Keeps what is heard.
    pub record: bool,
}

/// G.711, 20 ms, a minute of patience, recorded.
impl Default for CallOptions {
    fn default() -> Self {
        CallOptions {
            codecs: vec![Codec::Pcmu, Codec::Pcma],
            ptime: Ptime::MS_20,
            delayed_offer: false,
            telephone_event: true,
            headers: Vec::new(),
            credentials: None,
            timeout: Duration::from_secs(60),
            record: true,
        }
    }
}

/// In which way a call came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedBy {
    /// The peer refused it: see the status.
    Refusal,
    /// Nobody answered the INVITE at all, or it could not be sent.
    NoResponse,
    /// It rang longer than [`CallOptions::timeout`].
    Timeout,
    /// The caller gave up before we answered.
    Cancelled,
    /// Answered, but without media that both can speak, or without an ACK.
    Media,
    /// We could not even try: the address, a header, a socket.
    Local,
}

/// A call that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("call failed: {reason}")]
pub struct CallError {
    /// The final SIP status, if there was one.
    pub status: Option<u16>,
    /// The status with its phrase, or what went wrong.
    pub reason: String,
    /// The Reason or Warning header of the refusal.
    pub detail: Option<String>,
    /// In which way.
    pub ending: FailedBy,
    /// Provisional statuses before that, in order.
    pub provisional: Vec<u16>,
}

impl CallError {
    pub(crate) fn new(ending: FailedBy, reason: impl Into<String>) -> Self {
        CallError { status: None, reason: reason.into(), detail: None, ending, provisional: Vec::new() }
    }

    fn refused(response: &Response) -> Self {
        let detail = response.header(HeaderName::Reason).or_else(|| response.header(HeaderName::Warning));
        CallError {
            status: Some(response.status),
            detail: detail.map(str::to_owned),
            ..CallError::new(FailedBy::Refusal, format!("{} {}", response.status, response.reason))
        }
    }

    pub(crate) fn ended(why: &EndReason) -> Self {
        match why {
            EndReason::Failed { response } => CallError::refused(response),
            EndReason::NoResponse(cause @ NoResponse::Timeout) => {
                CallError { status: Some(408), ..CallError::new(FailedBy::NoResponse, cause.to_string()) }
            }
            EndReason::NoResponse(cause) => CallError::new(FailedBy::NoResponse, cause.to_string()),
            EndReason::Cancelled { reason } => CallError {
                detail: reason.clone(),
                ..CallError::new(FailedBy::Cancelled, "the caller gave up")
            },
            EndReason::NoAck => CallError::new(FailedBy::Media, "our answer was not acknowledged"),
            other => CallError::new(FailedBy::Refusal, format!("ended before it began: {other:?}")),
        }
    }
}

/// A softphone on a line of its own. Dropped, it takes no calls any more; calls go on.
#[derive(Debug)]
pub struct Phone {
    line: Arc<Line>,
    user: String,
    incoming: Mutex<mpsc::Receiver<NewCall>>,
}

impl Phone {
    /// Opens the line.
    ///
    /// # Errors
    /// [`BindError`]
    pub async fn bind(config: PhoneConfig) -> Result<Phone, BindError> {
        let local = config.local;
        let error = |cause| BindError { local, cause };
        let endpoint = Endpoint::new(EndpointConfig {
            user_agent: concat!("TandemPhone/", env!("CARGO_PKG_VERSION")).to_owned(),
            contact_user: config.user.clone(),
            seed: rand::random(),
            ..EndpointConfig::default()
        });
        let (line, incoming) = match config.transport {
            SipTransport::Udp => {
                let socket = UdpSocket::bind(local).await.map_err(error)?;
                // Until tokio has seen it writable once, try_send_to would block, and the first INVITE wait for T1.
                socket.writable().await.map_err(error)?;
                Line::udp(endpoint, socket)
            }
            SipTransport::Tcp => Line::tcp(endpoint, TcpListener::bind(local).await.map_err(error)?),
        }
        .map_err(error)?;
        Ok(Phone { line: Arc::new(line), user: config.user, incoming: Mutex::new(incoming) })
    }

    /// Where SIP is spoken.
    pub fn local_addr(&self) -> SocketAddr {
        self.line.shared.local
    }

    /// A URI by which others on this machine can call us.
    pub fn uri(&self) -> String {
        Uri::sip(Some(&self.user), self.local_addr()).as_str().to_owned()
    }

    /// Calls somebody, and comes back when they answer. Dropping the future gives the call up.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn call(&self, uri: &str, options: CallOptions) -> Result<Call, CallError> {
        let local_error = |what: &dyn std::fmt::Display| CallError::new(FailedBy::Local, what.to_string());
        let target = Uri::parse(uri).map_err(|error| local_error(&error))?;
        let remote = self.resolve(&target).await?;
        let port = MediaPort::bind(self.local_addr().ip()).await.map_err(|error| local_error(&error))?;
        let local = LocalMedia {
            codecs: options.codecs.clone(),
            ptime: options.ptime,
            telephone_event: options.telephone_event,
            ..local_media(&self.line, port.port().map_err(|error| local_error(&error))?)
        };
        let offered = (!options.delayed_offer).then(|| offer(&local));
        let mut headers = Headers::new();
        for (name, value) in &options.headers {
            headers.push(name, value).map_err(|error| local_error(&error))?;
        }
        let from = NameAddr::new(Uri::sip(Some(&self.user), self.local_addr()));
        let invite = InviteRequest {
            body: offered.as_ref().map(|description| Body::sdp(description.to_string())),
            headers,
            credentials: options.credentials.clone(),
            ..InviteRequest::new(target, from, self.line.shared.flow_to(remote))
        };
        let invited = Instant::now();
        let started = self.line.shared.act(|state, now| {
            let handle = state.endpoint.invite(invite, now)?;
            Ok::<_, tandem_sip::CallError>((handle, state.route(handle)))
        });
        let (handle, mut events) = started.map_err(|error| local_error(&error))?;
        let pending = Pending { line: &self.line, handle, armed: true };
        let mut timing = Timing::new(invited);
        let answered = tokio::time::timeout(options.timeout, wait_for_answer(&mut events, &mut timing)).await;
        let failed = |error: CallError| CallError { provisional: timing.provisional.clone(), ..error };
        let (response, wants_ack) = match answered {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => return Err(pending.over(failed(error))),
            Err(_) => {
                let patience = options.timeout.as_secs_f64();
                return Err(failed(CallError::new(
                    FailedBy::Timeout,
                    format!("no answer within {patience} s"),
                )));
            }
        };
        debug_assert_eq!(wants_ack, offered.is_none(), "a 2xx to an offer needs no answer of ours");
        timing.answered = Instant::now();
        let (negotiated, acknowledgement) = agree(offered.as_ref(), &local, &response).map_err(&failed)?;
        if let Some(body) = acknowledgement {
            let acked = self.line.shared.act(|state, now| state.endpoint.ack(handle, body, now));
            acked.map_err(|error| failed(local_error(&error)))?;
        }
        let media = port.start(negotiated, options.record);
        let pending = pending.disarm();
        Ok(Call::start(self.line.clone(), pending, events, media, local, negotiated, timing))
    }

    /// Waits for the next call and looks at it before deciding. `None` when the line is closed.
    pub async fn next_call(&self) -> Option<Incoming> {
        let new = self.incoming.lock().await.recv().await?;
        Some(Incoming::new(self.line.clone(), new))
    }

    /// Waits for the next call, lets it ring as the options say, and answers it.
    ///
    /// # Errors
    /// [`CallError`]
    pub async fn answer_next(&self, options: AnswerOptions) -> Result<Call, CallError> {
        let closed = CallError::new(FailedBy::Local, "the line is closed");
        self.next_call().await.ok_or(closed)?.answer(options).await
    }

    async fn resolve(&self, target: &Uri) -> Result<SocketAddr, CallError> {
        if let Some(address) = target.socket_addr() {
            return Ok(address);
        }
        let host = target.host().to_owned();
        let mut found =
            tokio::net::lookup_host((host.as_str(), target.port_or_default())).await.map_err(|error| {
                CallError::new(FailedBy::Local, format!("host {host:?} is not found: {error}"))
            })?;
        let same_family = |address: &SocketAddr| address.is_ipv4() == self.local_addr().is_ipv4();
        let unusable =
            || CallError::new(FailedBy::Local, format!("host {host:?} has no address of our family"));
        found.find(same_family).ok_or_else(unusable)
    }
}

/// What we can do on a port; codecs and the like are G.711's.
pub(crate) fn local_media(line: &Line, port: u16) -> LocalMedia {
    // 31 bits: old parsers read o= as a signed number.
    let session_id = u64::from(rand::random::<u32>() >> 1);
    LocalMedia {
        direction: Direction::SendRecv,
        ..LocalMedia::g711(line.shared.local.ip(), port, session_id)
    }
}

/// An INVITE under way: given up when dropped.
struct Pending<'a> {
    line: &'a Line,
    handle: CallHandle,
    armed: bool,
}

impl Pending<'_> {
    fn disarm(mut self) -> CallHandle {
        self.armed = false;
        self.handle
    }

    /// The endpoint has ended it already.
    fn over(mut self, error: CallError) -> CallError {
        self.armed = false;
        error
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if self.armed {
            // It may have ended this moment.
            let _ =
                self.line.shared.act(|state, now| state.endpoint.hang_up(self.handle, Headers::new(), now));
        }
    }
}

async fn wait_for_answer(
    events: &mut mpsc::Receiver<Event>,
    timing: &mut Timing,
) -> Result<(Box<Response>, bool), CallError> {
    while let Some(event) = events.recv().await {
        match event {
            Event::Provisional { response, .. } => timing.handle_provisional(response.status, Instant::now()),
            Event::Answered { response, wants_ack, .. } => return Ok((response, wants_ack)),
            Event::Ended { why, .. } => return Err(CallError::ended(&why)),
            _ => {}
        }
    }
    Err(CallError::new(FailedBy::Local, "the line is closed"))
}

/// What the 200 means for our media, and the body of the ACK if it needs one.
fn agree(
    offered: Option<&SessionDescription>,
    local: &LocalMedia,
    response: &Response,
) -> Result<(Negotiated, Option<Body>), CallError> {
    let media = |what: &dyn std::fmt::Display| CallError {
        status: Some(response.status),
        ..CallError::new(FailedBy::Media, what.to_string())
    };
    let body = response.sdp().ok_or_else(|| media(&"answered without a session description"))?;
    let theirs = SessionDescription::parse(body).map_err(|error| media(&error))?;
    match offered {
        Some(ours) => {
            let negotiated = accept_answer(ours, &theirs).map_err(|error| media(&error))?;
            Ok((negotiated, None))
        }
        None => {
            let (ours, negotiated) = answer(&theirs, local).map_err(|error| media(&error))?;
            Ok((negotiated, Some(Body::sdp(ours.to_string()))))
        }
    }
}
