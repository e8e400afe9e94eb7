//! A caller, a network and both planes, in virtual time: what scenarios are told with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_plane::config::Limits;
use control_plane::trunk::Trunk;
use tandem_sip::{
    Body, CallHandle, EndReason, Endpoint, EndpointConfig, Event, Flow, HeaderName, Headers, InviteRequest,
    Method, NameAddr, Reply, Uri,
};
use uuid::Uuid;

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
    heard: Vec<Packet>,
    /// Calls that came in, each with when it did.
    incoming: Vec<(Instant, CallHandle)>,
    /// Whom it was asked to call instead.
    referred: Option<String>,
    /// What it does when it is called at all.
    manners: Manners,
}

/// What a phone does when it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manners {
    /// Nothing, until the scenario says what.
    Waits,
    /// Answers at once.
    Answers,
    /// Is busy.
    Busy,
}

/// An RTP packet that was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// When.
    pub at: Instant,
    /// Its number.
    pub sequence: u16,
    /// Whose stream.
    pub ssrc: u32,
    /// Its payload type.
    pub payload_type: u8,
    /// It is no silence (of PCMU).
    pub is_loud: bool,
}

impl World {
    /// A world with a network of its own and the usual limits of calls.
    pub fn new(network: Network) -> Self {
        Self::with_limits(network, Limits::default())
    }

    /// A world in which calls have other limits.
    pub fn with_limits(mut network: Network, limits: Limits) -> Self {
        let planes = Planes::new(limits, &mut network);
        let in_dialog_methods = vec![Method::Update, Method::Info, Method::Refer];
        let config =
            EndpointConfig { seed: network.random(), in_dialog_methods, ..EndpointConfig::default() };
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
            incoming: Vec::new(),
            referred: None,
            manners: Manners::Waits,
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

    /// The stack calls the phone over a trunk.
    pub fn places(&mut self, assistant: &str, trunk: &Arc<Trunk>) -> Uuid {
        self.planes.places(assistant, trunk, &mut self.network)
    }

    /// A trunk that leads to the phone.
    pub fn trunk(change: impl FnOnce(&mut Trunk)) -> Arc<Trunk> {
        let uri = format!("sip:{}", SocketAddr::from(CALLER_SIP));
        let mut trunk = Trunk { name: "carrier".into(), tenant_id: "demo".into(), ..Trunk::default() };
        trunk.credential.sip_uri = Some(Uri::parse(&uri).expect("a constant that is a URI"));
        change(&mut trunk);
        Arc::new(trunk)
    }

    /// The called phone rings.
    pub fn rings(&mut self) {
        let call = self.caller.call.expect("a call came in");
        let _ = self.caller.endpoint.ring(call, self.network.now());
        self.drain_caller();
    }

    /// The called side plays something before it answers.
    pub fn plays_early(&mut self) {
        let call = self.caller.call.expect("a call came in");
        let reply = Reply::new(183).body(offer("sendrecv"));
        let _ = self.caller.endpoint.respond(call, reply, self.network.now());
        self.caller.next_packet = Some(self.network.now());
        self.drain_caller();
    }

    /// The called phone is picked up.
    pub fn answers(&mut self) {
        let call = self.caller.call.expect("a call came in");
        self.caller.pick_up(call, self.network.now());
        self.drain_caller();
    }

    /// The called side says no.
    pub fn refuses(&mut self, status: u16) {
        let call = self.caller.call.expect("a call came in");
        let _ = self.caller.endpoint.reject(call, Reply::new(status), self.network.now());
        self.drain_caller();
    }

    /// From now on the phone does this when it is called.
    pub fn phone_always(&mut self, manners: Manners) {
        self.caller.manners = manners;
    }

    /// Says how the call fares that it was asked to place.
    pub fn says_of_the_transfer(&mut self, status: u16, reason: &str) {
        let call = self.caller.call.expect("a call");
        let _ = self.caller.endpoint.notify_refer(call, status, reason, self.network.now());
        self.drain_caller();
    }

    /// Sends a request in the dialog, with this body.
    pub fn sends_info(&mut self, content_type: &'static str, text: &str) {
        let call = self.caller.call.expect("a call");
        let body = Body { content_type, bytes: text.as_bytes().to_vec() };
        let now = self.network.now();
        let _ = self.caller.endpoint.request_in_call(call, Method::Info, Headers::new(), Some(body), now);
        self.drain_caller();
    }

    /// Offers these formats anew: another codec.
    pub fn offers_formats(&mut self, formats: &str) {
        let call = self.caller.call.expect("a call was dialled");
        let sdp = String::from_utf8(offer("sendrecv").bytes).expect("our own text");
        let sdp =
            sdp.replace("RTP/AVP 0", &format!("RTP/AVP {formats}")).replace("a=rtpmap:0 PCMU/8000\r\n", "");
        let _ = self.caller.endpoint.reinvite(call, Some(Body::sdp(sdp)), self.network.now());
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
                let bytes = &datagram.bytes;
                self.caller.heard.push(Packet {
                    at: now,
                    sequence: u16::from_be_bytes([bytes[2], bytes[3]]),
                    ssrc: u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
                    payload_type: bytes[1] & 0x7f,
                    is_loud: bytes[12..].iter().any(|octet| octet & 0x7f != 0x7f),
                });
            }
        }
        self.planes.handle_timeout(&mut self.network);
        self.caller.endpoint.handle_timeout(self.network.now());
        self.caller.say(&mut self.network);
        self.drain_caller();
    }

    fn drain_caller(&mut self) {
        let now = self.network.now();
        loop {
            while let Some(transmit) = self.caller.endpoint.poll_transmit() {
                self.network.send(transmit.flow.local, transmit.flow.remote, transmit.bytes);
            }
            let Some(event) = self.caller.endpoint.poll_event() else { return };
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

    /// Calls that came in, each with when it did.
    pub fn incoming(&self) -> &[(Instant, CallHandle)] {
        &self.incoming
    }

    /// Was asked to call this one instead.
    pub fn referred(&self) -> Option<&str> {
        self.referred.as_deref()
    }

    /// What was heard.
    pub fn heard(&self) -> &[Packet] {
        &self.heard
    }

    /// The caller has given up.
    pub fn was_cancelled(&self) -> bool {
        matches!(&self.ended, Some((_, EndReason::Cancelled { .. })))
    }

    fn pick_up(&mut self, call: CallHandle, now: Instant) {
        let _ = self.endpoint.answer(call, offer("sendrecv"), now);
        self.answered = Some(now);
        self.next_packet = Some(now);
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
            Event::IncomingInvite { call, request, .. } => {
                self.call = Some(call);
                self.incoming.push((now, call));
                self.remote = request.sdp().and_then(|sdp| rtp_address(&String::from_utf8_lossy(sdp)));
                match self.manners {
                    Manners::Waits => {}
                    Manners::Answers => self.pick_up(call, now),
                    Manners::Busy => drop(self.endpoint.reject(call, Reply::new(486), now)),
                }
            }
            Event::Reinvite { call, request } => {
                let text = String::from_utf8_lossy(&request.body).into_owned();
                let direction = if text.contains("a=inactive") { "inactive" } else { "sendrecv" };
                let _ = self.endpoint.answer(call, offer(direction), now);
            }
            Event::Request { handle, request, .. } if request.method == Method::Refer => {
                self.referred = request.header(HeaderName::ReferTo).map(str::to_owned);
                let _ = self.endpoint.accept_refer(handle, now);
            }
            Event::Response { result: Ok(response), .. } => self.statuses.push(response.status),
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
