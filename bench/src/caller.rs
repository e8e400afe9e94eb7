//! The signalling side of the callers: tandem-sip's user agent behind one UDP socket.
//!
//! One thread, no runtime: [`Caller::turn`] sleeps until a datagram, a timer of the core, or the instant it is given.
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use tandem_audio::format::{Codec, Ptime};
use tandem_sdp::LocalSrtp;
use tandem_sdp::crypto::NegotiatedSrtp;
use tandem_sdp::description::{Direction, SessionDescription};
use tandem_sdp::negotiate::{self, LocalMedia};
use tandem_sip::{
    Body, CallError, CallHandle, EndReason, Endpoint, EndpointConfig, Event, Flow, Headers, InviteRequest,
    NameAddr, NoResponse, Uri,
};

use crate::host;
use crate::marker::Law;

/// Largest datagram that we read, octets.
const DATAGRAM_LIMIT: usize = 65_535;

/// Room for responses that come while this thread is busy: at 4 000 set-ups a second, half a second of them.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;

/// Datagrams read before the caller's own work goes on.
const DATAGRAMS_A_TURN: usize = 256;

/// Why there is no caller.
#[derive(Debug, thiserror::Error)]
pub enum CallerError {
    /// The target is not a SIP URI. Its text is not shown: it may hold a key.
    #[error("the target is not a SIP URI: {0}")]
    Target(String),
    /// No such host.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No socket.
    #[error("cannot open the SIP socket")]
    Socket(#[from] io::Error),
}

/// A user agent that calls one target.
pub struct Caller {
    socket: UdpSocket,
    endpoint: Endpoint,
    target: Uri,
    from: NameAddr,
    flow: Flow,
    events: VecDeque<Event>,
    datagram: Vec<u8>,
}

impl Caller {
    /// A caller of `target`.
    ///
    /// # Errors
    /// When the target makes no sense or there is no way to it.
    pub fn open(target: &str) -> Result<Self, CallerError> {
        let target = Uri::parse(target).map_err(|error| CallerError::Target(error.to_string()))?;
        let host = target.host().trim_matches(['[', ']']).to_owned();
        let resolve = |source| CallerError::Resolve { host: host.clone(), source };
        let remote = (host.as_str(), target.port_or_default())
            .to_socket_addrs()
            .map_err(resolve)?
            .next()
            .ok_or_else(|| resolve(io::Error::from(io::ErrorKind::NotFound)))?;
        let any: IpAddr =
            if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = socket2::Socket::new(socket2::Domain::for_address(remote), socket2::Type::DGRAM, None)?;
        // The kernel caps it at net.core.rmem_max; less room only means earlier retransmissions.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        socket.bind(&SocketAddr::new(any, 0).into())?;
        // Connected: the kernel chooses the local address that the target sees, and tells when nobody listens there.
        socket.connect(&remote.into())?;
        socket.set_nonblocking(true)?;
        let socket = UdpSocket::from(socket);
        let local = socket.local_addr()?;
        let config = EndpointConfig {
            user_agent: concat!("tandem-bench/", env!("CARGO_PKG_VERSION")).into(),
            contact_user: "bench".into(),
            seed: rand::random(),
            ..EndpointConfig::default()
        };
        Ok(Self {
            endpoint: Endpoint::new(config),
            from: NameAddr::new(Uri::sip(Some("bench"), local)),
            flow: Flow::udp(local, remote),
            target,
            socket,
            events: VecDeque::new(),
            datagram: vec![0; DATAGRAM_LIMIT],
        })
    }

    /// Our address as the target sees it.
    pub fn local(&self) -> SocketAddr {
        self.flow.local
    }

    /// The target without its key.
    pub fn target_for_people(&self) -> String {
        self.target.redacted().to_string()
    }

    /// Retransmissions of ours so far.
    pub fn retransmits(&self) -> u64 {
        self.endpoint.counters().retransmits_out
    }

    /// Sends an INVITE with this offer.
    ///
    /// # Errors
    /// When the core's tables are full.
    pub fn invite(&mut self, offer: &SessionDescription, extra: Headers) -> Result<CallHandle, CallError> {
        self.invite_from(self.from.clone(), offer, extra)
    }

    /// The same in the name of this user.
    ///
    /// # Errors
    /// When the core's tables are full.
    pub fn invite_as(&mut self, user: &str, offer: &SessionDescription) -> Result<CallHandle, CallError> {
        self.invite_from(NameAddr::new(Uri::sip(Some(user), self.flow.local)), offer, Headers::new())
    }

    fn invite_from(
        &mut self,
        from: NameAddr,
        offer: &SessionDescription,
        extra: Headers,
    ) -> Result<CallHandle, CallError> {
        let mut invite = InviteRequest::new(self.target.clone(), from, self.flow);
        invite.body = Some(Body::sdp(offer.to_string()));
        invite.headers = extra;
        let call = self.endpoint.invite(invite, Instant::now());
        self.drain();
        call
    }

    /// Ends a call, whatever its state.
    pub fn hang_up(&mut self, call: CallHandle) {
        // Unknown: it has just ended by itself, and its event is on the way.
        let _ = self.endpoint.hang_up(call, Headers::new(), Instant::now());
        self.drain();
    }

    /// The next event, if one is waiting.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Works until something has happened (see [`Self::poll_event`]) or `until` has come.
    ///
    /// # Errors
    /// When the socket fails; a port where nobody listens is not a failure of the socket.
    pub fn turn(&mut self, until: Instant) -> io::Result<()> {
        loop {
            self.read_waiting()?;
            let now = Instant::now();
            if self.endpoint.poll_timeout().is_some_and(|deadline| deadline <= now) {
                self.endpoint.handle_timeout(now);
                self.drain();
            }
            if !self.events.is_empty() || now >= until {
                return Ok(());
            }
            let deadline = self.endpoint.poll_timeout().map_or(until, |deadline| deadline.min(until));
            let wait = deadline.saturating_duration_since(now).min(Duration::from_millis(100));
            host::wait_readable(self.socket.as_raw_fd(), wait)?;
            if host::interrupted() {
                return Ok(());
            }
        }
    }

    fn read_waiting(&mut self) -> io::Result<()> {
        for _ in 0..DATAGRAMS_A_TURN {
            match self.socket.recv(&mut self.datagram) {
                Ok(len) => self.endpoint.handle_input(&self.datagram[..len], self.flow, Instant::now()),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(()),
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::ConnectionRefused => {
                        self.endpoint.handle_transport_error(self.flow, Instant::now())
                    }
                    _ => return Err(error),
                },
            }
            self.drain();
        }
        Ok(())
    }

    /// The drain contract of the core: after each input everything that must leave leaves.
    fn drain(&mut self) {
        while let Some(transmit) = self.endpoint.poll_transmit() {
            // Refused: the error of an earlier datagram. What is lost is repeated by the core's own timers.
            let _ = self.socket.send(&transmit.bytes);
        }
        while let Some(event) = self.endpoint.poll_event() {
            self.events.push_back(event);
        }
    }
}

/// The offer of one call: one codec, as a phone with one would.
pub fn offer(address: IpAddr, port: u16, law: Law, srtp: LocalSrtp) -> SessionDescription {
    let local = LocalMedia {
        address,
        port,
        codecs: vec![codec(law)],
        ptime: Ptime::MS_20,
        telephone_event: true,
        comfort_noise: false,
        session_id: u64::from(port),
        session_version: 1,
        direction: Direction::SendRecv,
        srtp,
        dtls: None,
    };
    negotiate::offer(&local)
}

/// Where the answer wants our media, and with which keys, or why it is of no use.
///
/// # Errors
/// The cause, in words for the failures by cause.
pub fn read_answer(
    offer: &SessionDescription,
    answer: Option<&[u8]>,
) -> Result<(SocketAddr, Option<NegotiatedSrtp>), String> {
    let answer = answer.ok_or("200 without SDP")?;
    let answer = SessionDescription::parse(answer).map_err(|error| format!("answer: {error}"))?;
    let agreed = negotiate::accept_answer(offer, &answer).map_err(|error| format!("answer: {error}"))?;
    if agreed.ptime != Ptime::MS_20 {
        return Err(format!("answer: ptime {} instead of 20 ms", agreed.ptime));
    }
    Ok((agreed.remote, agreed.srtp))
}

/// Why a call ended, in words short enough to count by.
pub fn cause(why: &EndReason) -> String {
    match why {
        EndReason::Failed { response } => format!("{} {}", response.status, response.reason),
        EndReason::NoResponse(NoResponse::Timeout) => "no final response".into(),
        EndReason::NoResponse(NoResponse::Transport) => "nobody listens at the target".into(),
        EndReason::RemoteBye { reason } => match reason {
            Some(reason) => format!("ended by the target: {reason}"),
            None => "ended by the target".into(),
        },
        EndReason::DialogLost { status } => format!("dialog lost: {status}"),
        EndReason::LocalBye { status: Some(200..=299) } => "ended by us".into(),
        EndReason::LocalBye { status: Some(status) } => format!("BYE answered with {status}"),
        EndReason::LocalBye { status: None } => "BYE not answered".into(),
        other => format!("{other:?}"),
    }
}

/// The codec of a law.
pub(crate) fn codec(law: Law) -> Codec {
    match law {
        Law::Pcmu => Codec::Pcmu,
        Law::Pcma => Codec::Pcma,
    }
}
