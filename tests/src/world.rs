//! A caller, a network and both planes, in virtual time: what scenarios are told with.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use control_plane::config::Limits;
use tandem_sip::{
    Body, CallHandle, EndReason, Endpoint, EndpointConfig, Event, Flow, Headers, InviteRequest, NameAddr, Uri,
};

use crate::network::Network;
use crate::planes::Planes;

const CALLER_SIP: ([u8; 4], u16) = ([198, 51, 100, 7], 5_060);
const CALLER_RTP: ([u8; 4], u16) = ([198, 51, 100, 7], 40_000);
const PTIME: Duration = Duration::from_millis(20);
/// No scenario lasts longer than this of virtual time.
const PATIENCE: Duration = Duration::from_secs(3 * 60 * 60);

/// Everything that happens happens in here.
pub struct World {
    /// Between the two.
    pub network: Network,
    /// Who is called.
    pub planes: Planes,
    /// Who calls.
    pub caller: Caller,
}

/// A phone with one line. It says silence all the time it is in a call.
pub struct Caller {
    endpoint: Endpoint,
    call: Option<CallHandle>,
    statuses: Vec<u16>,
    answered: Option<Instant>,
    ended: Option<(Instant, EndReason)>,
    remote: Option<SocketAddr>,
    next_packet: Option<Instant>,
    sequence: u16,
    heard: Vec<(Instant, u16)>,
}

impl World {
    /// A world with a network of its own and the usual limits of calls.
    pub fn new(network: Network) -> Self {
        Self::with_limits(network, Limits::default())
    }

    /// A world in which calls have other limits.
    pub fn with_limits(mut network: Network, limits: Limits) -> Self {
        let planes = Planes::new(limits, &mut network);
        let config = EndpointConfig { seed: network.random(), ..EndpointConfig::default() };
        let caller = Caller {
            endpoint: Endpoint::new(config),
            call: None,
            statuses: Vec::new(),
            answered: None,
            ended: None,
            remote: None,
            next_packet: None,
            sequence: 0,
            heard: Vec::new(),
        };
        Self { network, planes, caller }
    }

    /// Dials an assistant with a key, or without one.
    pub fn dials(&mut self, user: &str) {
        let uri = Uri::parse(&format!("sip:{user}@{}", Planes::sip())).expect("a test dials a valid URI");
        let from = Uri::parse("sip:caller@198.51.100.7").expect("a constant that is a URI");
        let flow = Flow::udp(SocketAddr::from(CALLER_SIP), Planes::sip());
        let mut invite = InviteRequest::new(uri, NameAddr::new(from), flow);
        invite.body = Some(offer("sendrecv"));
        self.caller.call = self.caller.endpoint.invite(invite, self.network.now()).ok();
        self.drain_caller();
    }

    /// Gives up before the answer.
    pub fn cancels(&mut self) {
        let call = self.caller.call.expect("a call was dialled");
        let _ = self.caller.endpoint.cancel(call, self.network.now());
        self.drain_caller();
    }

    /// Hangs up.
    pub fn hangs_up(&mut self) {
        let call = self.caller.call.expect("a call was dialled");
        let _ = self.caller.endpoint.hang_up(call, Headers::new(), self.network.now());
        self.drain_caller();
    }

    /// Puts the other side on hold, or takes it off: a re-INVITE.
    pub fn offers_again(&mut self, direction: &str) {
        let call = self.caller.call.expect("a call was dialled");
        let _ = self.caller.endpoint.reinvite(call, Some(offer(direction)), self.network.now());
        self.drain_caller();
    }

    /// Lets time pass until something is so; fails when it never is.
    pub fn until(&mut self, what: &str, mut so: impl FnMut(&World) -> bool) {
        let give_up = self.network.now() + PATIENCE;
        while !so(self) {
            let next = self.next_instant();
            let Some(next) = next.filter(|next| *next <= give_up) else {
                panic!("never: {what}. {} after {:?}", self.story(), self.network.elapsed());
            };
            self.step(next);
        }
    }

    /// Lets so much time pass.
    pub fn passes(&mut self, time: Duration) {
        let end = self.network.now() + time;
        while let Some(next) = self.next_instant().filter(|next| *next <= end) {
            self.step(next);
        }
        self.network.advance(end);
    }

    /// What has happened, for a failure's message.
    pub fn story(&self) -> String {
        let caller = &self.caller;
        format!(
            "the caller got {:?}, heard {} packets, ended {:?}",
            caller.statuses,
            caller.heard.len(),
            caller.ended
        )
    }

    fn next_instant(&self) -> Option<Instant> {
        let caller = [self.caller.endpoint.poll_timeout(), self.caller.next_packet];
        let others = [self.network.next_arrival(), self.planes.poll_timeout()];
        caller.into_iter().chain(others).flatten().min()
    }

    fn step(&mut self, at: Instant) {
        self.network.advance(at);
        while let Some(datagram) = self.network.receive() {
            if self.planes.handle_datagram(&datagram, &mut self.network) {
                continue;
            }
            let now = self.network.now();
            if datagram.to == SocketAddr::from(CALLER_SIP) {
                let flow = Flow::udp(datagram.to, datagram.from);
                self.caller.endpoint.handle_input(&datagram.bytes, flow, now);
                self.drain_caller();
            } else if datagram.to == SocketAddr::from(CALLER_RTP) && datagram.bytes.len() > 12 {
                self.caller.heard.push((now, u16::from_be_bytes([datagram.bytes[2], datagram.bytes[3]])));
            }
        }
        self.planes.handle_timeout(&mut self.network);
        self.caller.endpoint.handle_timeout(self.network.now());
        self.caller.say(&mut self.network);
        self.drain_caller();
    }

    fn drain_caller(&mut self) {
        let now = self.network.now();
        while let Some(transmit) = self.caller.endpoint.poll_transmit() {
            self.network.send(transmit.flow.local, transmit.flow.remote, transmit.bytes);
        }
        while let Some(event) = self.caller.endpoint.poll_event() {
            self.caller.handle_event(event, now);
        }
    }
}

impl Caller {
    /// Statuses in the order of arrival; the final one of a refusal last.
    pub fn statuses(&self) -> &[u16] {
        &self.statuses
    }

    /// Has got this status.
    pub fn got(&self, status: u16) -> bool {
        self.statuses.contains(&status)
    }

    /// Is in a call.
    pub fn is_connected(&self) -> bool {
        self.answered.is_some() && self.ended.is_none()
    }

    /// The call is over.
    pub fn is_over(&self) -> bool {
        self.ended.is_some()
    }

    /// Was hung up on.
    pub fn was_hung_up_on(&self) -> bool {
        matches!(&self.ended, Some((_, EndReason::RemoteBye { .. })))
    }

    /// How long the call lasted, from the answer.
    pub fn lasted(&self) -> Option<Duration> {
        Some(self.ended.as_ref()?.0.saturating_duration_since(self.answered?))
    }

    /// RTP packets heard so far.
    pub fn packets(&self) -> usize {
        self.heard.len()
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Provisional { response, .. } => self.statuses.push(response.status),
            Event::Answered { response, .. } => {
                self.statuses.push(response.status);
                self.answered = Some(now);
                self.remote = response.sdp().and_then(|sdp| rtp_address(&String::from_utf8_lossy(sdp)));
                self.next_packet = Some(now);
            }
            Event::ReinviteAnswered { .. } => self.statuses.push(200),
            Event::ReinviteRefused { status, .. } => self.statuses.push(status),
            Event::Ended { why, .. } => {
                if let EndReason::Failed { response } = &why {
                    self.statuses.push(response.status);
                }
                self.next_packet = None;
                self.ended = Some((now, why));
            }
            _ => {}
        }
    }

    fn say(&mut self, network: &mut Network) {
        let (Some(due), Some(remote)) = (self.next_packet, self.remote) else { return };
        if due > network.now() {
            return;
        }
        let mut packet = vec![0x80, 0];
        packet.extend(self.sequence.to_be_bytes());
        packet.extend((u32::from(self.sequence) * 160).to_be_bytes());
        packet.extend([0xca, 0x11, 0xe4, 0x01]);
        packet.extend([0xff; 160]);
        self.sequence = self.sequence.wrapping_add(1);
        network.send(SocketAddr::from(CALLER_RTP), remote, packet);
        self.next_packet = Some(due + PTIME);
    }
}

/// PCMU at 20 ms, in this direction.
fn offer(direction: &str) -> Body {
    let (address, port) = CALLER_RTP;
    let [a, b, c, d] = address;
    let sdp = format!(
        "v=0\r\no=caller 1 1 IN IP4 {a}.{b}.{c}.{d}\r\ns=-\r\nc=IN IP4 {a}.{b}.{c}.{d}\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=ptime:20\r\na={direction}\r\n"
    );
    Body::sdp(sdp)
}

fn rtp_address(sdp: &str) -> Option<SocketAddr> {
    let address = sdp.lines().find_map(|line| line.strip_prefix("c=IN IP4 "))?.trim();
    let port = sdp.lines().find_map(|line| line.strip_prefix("m=audio "))?.split(' ').next()?;
    format!("{address}:{port}").parse().ok()
}
