//! A caller, a network and both planes, in virtual time: what scenarios are told with.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_plane::config::Limits;
use control_plane::trunk::{DidPattern, Route, Trunk};
use tandem_sip::header::refer::{ReferTo, Replaces};
use tandem_sip::{
    Body, CallHandle, EndReason, Endpoint, EndpointConfig, Event, Flow, HeaderName, Headers, InviteRequest,
    Method, NameAddr, Reply, Uri,
};
use uuid::Uuid;

use crate::network::{Datagram, Network};
use crate::planes::Planes;

const CALLER: [u8; 4] = [198, 51, 100, 7];
const OTHER: [u8; 4] = [198, 51, 100, 8];
const SIP_PORT: u16 = 5_060;
const RTP_PORT: u16 = 40_000;
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
    /// Somebody else, who takes part in transfers.
    pub other: Caller,
}

/// A phone with one line. It says silence all the time it is in a call, unless it speaks.
pub struct Caller {
    address: [u8; 4],
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
    /// Its dialog as the stack would name it.
    dialog: Option<Replaces>,
    /// The INVITE that came in had this Replaces, and this Referred-By.
    invited_with: (Option<String>, Option<String>),
    /// How a transfer went that it has asked for: statuses.
    progress: Vec<u16>,
    /// Its ACK leaves when the scenario says so.
    keeps_ack: bool,
    /// What it does when it is called at all.
    manners: Manners,
    /// It says something, and no silence.
    speaks: bool,
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
        let caller = Caller::new(CALLER, &mut network);
        let other = Caller::new(OTHER, &mut network);
        Self { network, planes, caller, other }
    }

    /// A world in which the caller comes over a trunk, whose other subscriber is `other`.
    pub fn with_trunk(network: Network, change: impl FnOnce(&mut Trunk)) -> Self {
        let mut trunk = Trunk { name: "pbx".into(), tenant_id: "demo".into(), ..Trunk::default() };
        let uri = Uri::parse(&format!("sip:{}", sip_of(OTHER))).expect("a constant that is a URI");
        trunk.credential.sip_uri = Some(uri);
        let network_of = |address| format!("{}/32", IpAddr::from(address)).parse().expect("one address");
        trunk.inbound.allow = [CALLER, OTHER].map(network_of).to_vec();
        trunk.inbound.routes = vec![Route {
            did: DidPattern::parse("700", None).expect("a number is a pattern"),
            assistant_id: "tone".into(),
        }];
        change(&mut trunk);
        let mut world = Self::new(network);
        world.planes = world.planes.with_trunks(vec![trunk]);
        world
    }

    /// Dials an assistant with a key, or without one.
    pub fn dials(&mut self, user: &str) {
        let uri = Uri::parse(&format!("sip:{user}@{}", Planes::sip())).expect("a test dials a valid URI");
        let invite = self.caller.invite(uri);
        self.caller.call = self.caller.endpoint.invite(invite, self.network.now()).ok();
        self.drain_callers();
    }

    /// Dials without an offer; the answer to ours comes when the scenario says so.
    pub fn dials_without_an_offer(&mut self, user: &str) {
        let uri = Uri::parse(&format!("sip:{user}@{}", Planes::sip())).expect("a test dials a valid URI");
        let invite = InviteRequest { body: None, ..self.caller.invite(uri) };
        self.caller.keeps_ack = true;
        self.caller.call = self.caller.endpoint.invite(invite, self.network.now()).ok();
        self.drain_callers();
    }

    /// The caller's ACK leaves, with its answer.
    pub fn acknowledges(&mut self) {
        let call = self.caller.call.expect("a call was dialled");
        let _ = self.caller.endpoint.ack(call, self.caller.offer("sendrecv"), self.network.now());
        self.drain_callers();
    }

    /// The other phone dials, to take the caller's place (RFC 3891); `offer`: or it wants the stack to offer.
    pub fn other_replaces_the_caller(&mut self, user: &str, with_offer: bool) {
        let uri = Uri::parse(&format!("sip:{user}@{}", Planes::sip())).expect("a test dials a valid URI");
        let mut invite = self.other.invite(uri);
        invite.replaces = self.caller.dialog.clone();
        if !with_offer {
            invite.body = None;
        }
        self.other.call = self.other.endpoint.invite(invite, self.network.now()).ok();
        self.drain_callers();
    }

    /// The other phone dials.
    pub fn other_dials(&mut self, user: &str) {
        let uri = Uri::parse(&format!("sip:{user}@{}", Planes::sip())).expect("a test dials a valid URI");
        let invite = self.other.invite(uri);
        self.other.call = self.other.endpoint.invite(invite, self.network.now()).ok();
        self.drain_callers();
    }

    /// The other phone puts its other side on hold, or takes it off.
    pub fn other_offers_again(&mut self, direction: &str) {
        let call = self.other.call.expect("a call");
        let offer = self.other.offer(direction);
        let _ = self.other.endpoint.reinvite(call, Some(offer), self.network.now());
        self.drain_callers();
    }

    /// The other phone gives up before the answer.
    pub fn other_cancels(&mut self) {
        let call = self.other.call.expect("a call was dialled");
        let _ = self.other.endpoint.cancel(call, self.network.now());
        self.drain_callers();
    }

    /// The other phone hangs up.
    pub fn other_hangs_up(&mut self) {
        let call = self.other.call.expect("a call");
        let _ = self.other.endpoint.hang_up(call, Headers::new(), self.network.now());
        self.drain_callers();
    }

    /// The other phone is picked up.
    pub fn other_answers(&mut self) {
        let call = self.other.call.expect("a call came in");
        self.other.pick_up(call, self.network.now());
        self.drain_callers();
    }

    /// The other phone rings.
    pub fn other_rings(&mut self) {
        let call = self.other.call.expect("a call came in");
        let _ = self.other.endpoint.ring(call, self.network.now());
        self.drain_callers();
    }

    /// The other phone says no.
    pub fn other_refuses(&mut self, status: u16) {
        let call = self.other.call.expect("a call came in");
        let _ = self.other.endpoint.reject(call, Reply::new(status), self.network.now());
        self.drain_callers();
    }

    /// The caller asks the stack to call this instead, in the words of Refer-To.
    pub fn refers(&mut self, to: &str) {
        let call = self.caller.call.expect("a call was dialled");
        let to = ReferTo::parse(to).expect("a test writes a valid Refer-To");
        let _ = self.caller.endpoint.refer(call, &to, Headers::new(), self.network.now());
        self.drain_callers();
    }

    /// Gives up before the answer.
    pub fn cancels(&mut self) {
        let call = self.caller.call.expect("a call was dialled");
        let _ = self.caller.endpoint.cancel(call, self.network.now());
        self.drain_callers();
    }

    /// Hangs up.
    pub fn hangs_up(&mut self) {
        let call = self.caller.call.expect("a call was dialled");
        let _ = self.caller.endpoint.hang_up(call, Headers::new(), self.network.now());
        self.drain_callers();
    }

    /// The stack calls the phone over a trunk.
    pub fn places(&mut self, assistant: &str, trunk: &Arc<Trunk>) -> Uuid {
        self.planes.places(assistant, trunk, &mut self.network)
    }

    /// The stack calls a phone of its own that is registered twice: at the caller's place, and at the other's.
    pub fn places_to_both(&mut self, assistant: &str) -> Uuid {
        let contacts = vec![sip_of(CALLER), sip_of(OTHER)];
        self.planes.places_to_phone(assistant, contacts, &mut self.network)
    }

    /// From now on both phones do this when they are called.
    pub fn phones_always(&mut self, manners: [Manners; 2]) {
        [self.caller.manners, self.other.manners] = manners;
    }

    /// A trunk that leads to the phone.
    pub fn trunk(change: impl FnOnce(&mut Trunk)) -> Arc<Trunk> {
        let uri = format!("sip:{}", sip_of(CALLER));
        let mut trunk = Trunk { name: "carrier".into(), tenant_id: "demo".into(), ..Trunk::default() };
        trunk.credential.sip_uri = Some(Uri::parse(&uri).expect("a constant that is a URI"));
        change(&mut trunk);
        Arc::new(trunk)
    }

    /// The called phone rings.
    pub fn rings(&mut self) {
        let call = self.caller.call.expect("a call came in");
        let _ = self.caller.endpoint.ring(call, self.network.now());
        self.drain_callers();
    }

    /// The called side plays something before it answers.
    pub fn plays_early(&mut self) {
        let call = self.caller.call.expect("a call came in");
        let reply = Reply::new(183).body(self.caller.offer("sendrecv"));
        let _ = self.caller.endpoint.respond(call, reply, self.network.now());
        self.caller.next_packet = Some(self.network.now());
        self.drain_callers();
    }

    /// The called phone is picked up.
    pub fn answers(&mut self) {
        let call = self.caller.call.expect("a call came in");
        self.caller.pick_up(call, self.network.now());
        self.drain_callers();
    }

    /// The called side says no.
    pub fn refuses(&mut self, status: u16) {
        let call = self.caller.call.expect("a call came in");
        let _ = self.caller.endpoint.reject(call, Reply::new(status), self.network.now());
        self.drain_callers();
    }

    /// From now on the phone does this when it is called.
    pub fn phone_always(&mut self, manners: Manners) {
        self.caller.manners = manners;
    }

    /// Says how the call fares that it was asked to place.
    pub fn says_of_the_transfer(&mut self, status: u16, reason: &str) {
        let call = self.caller.call.expect("a call");
        let _ = self.caller.endpoint.notify_refer(call, status, reason, self.network.now());
        self.drain_callers();
    }

    /// Sends a request in the dialog, with this body.
    pub fn sends_info(&mut self, content_type: &'static str, text: &str) {
        let call = self.caller.call.expect("a call");
        let body = Body { content_type, bytes: text.as_bytes().to_vec() };
        let now = self.network.now();
        let _ = self.caller.endpoint.request_in_call(call, Method::Info, Headers::new(), Some(body), now);
        self.drain_callers();
    }

    /// Offers these formats anew: another codec.
    pub fn offers_formats(&mut self, formats: &str) {
        let call = self.caller.call.expect("a call was dialled");
        let sdp = String::from_utf8(self.caller.offer("sendrecv").bytes).expect("our own text");
        let sdp =
            sdp.replace("RTP/AVP 0", &format!("RTP/AVP {formats}")).replace("a=rtpmap:0 PCMU/8000\r\n", "");
        let _ = self.caller.endpoint.reinvite(call, Some(Body::sdp(sdp)), self.network.now());
        self.drain_callers();
    }

    /// Puts the other side on hold, or takes it off: a re-INVITE.
    pub fn offers_again(&mut self, direction: &str) {
        let call = self.caller.call.expect("a call was dialled");
        let offer = self.caller.offer(direction);
        let _ = self.caller.endpoint.reinvite(call, Some(offer), self.network.now());
        self.drain_callers();
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
        let callers = [&self.caller, &self.other];
        let callers = callers.map(|caller| [caller.endpoint.poll_timeout(), caller.next_packet]);
        let others = [self.network.next_arrival(), self.planes.poll_timeout()];
        callers.into_iter().flatten().chain(others).flatten().min()
    }

    fn step(&mut self, at: Instant) {
        self.network.advance(at);
        while let Some(datagram) = self.network.receive() {
            if self.planes.handle_datagram(&datagram, &mut self.network) {
                continue;
            }
            let now = self.network.now();
            for caller in [&mut self.caller, &mut self.other] {
                caller.handle_datagram(&datagram, now);
            }
            self.drain_callers();
        }
        self.planes.handle_timeout(&mut self.network);
        for caller in [&mut self.caller, &mut self.other] {
            caller.endpoint.handle_timeout(self.network.now());
            caller.say(&mut self.network);
        }
        self.drain_callers();
    }

    fn drain_callers(&mut self) {
        for caller in [&mut self.caller, &mut self.other] {
            caller.drain(&mut self.network);
        }
    }
}

impl Caller {
    fn new(address: [u8; 4], network: &mut Network) -> Self {
        let in_dialog_methods = vec![Method::Update, Method::Info, Method::Refer];
        let config =
            EndpointConfig { seed: network.random(), in_dialog_methods, ..EndpointConfig::default() };
        Self {
            address,
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
            dialog: None,
            invited_with: (None, None),
            progress: Vec::new(),
            keeps_ack: false,
            manners: Manners::Waits,
            speaks: false,
        }
    }

    fn invite(&self, uri: Uri) -> InviteRequest {
        let from = Uri::parse(&format!("sip:caller@{}", IpAddr::from(self.address)));
        let from = NameAddr::new(from.expect("an address is a host"));
        let mut invite = InviteRequest::new(uri, from, Flow::udp(sip_of(self.address), Planes::sip()));
        invite.body = Some(self.offer("sendrecv"));
        invite
    }

    fn handle_datagram(&mut self, datagram: &Datagram, now: Instant) {
        if datagram.to == sip_of(self.address) {
            let flow = Flow::udp(datagram.to, datagram.from);
            self.endpoint.handle_input(&datagram.bytes, flow, now);
        } else if datagram.to == SocketAddr::from((self.address, RTP_PORT)) && datagram.bytes.len() > 12 {
            let bytes = &datagram.bytes;
            self.heard.push(Packet {
                at: now,
                sequence: u16::from_be_bytes([bytes[2], bytes[3]]),
                ssrc: u32::from_be_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
                payload_type: bytes[1] & 0x7f,
                is_loud: bytes[12..].iter().any(|octet| octet & 0x7f != 0x7f),
            });
        }
    }

    fn drain(&mut self, network: &mut Network) {
        loop {
            while let Some(transmit) = self.endpoint.poll_transmit() {
                network.send(transmit.flow.local, transmit.flow.remote, transmit.bytes);
            }
            let Some(event) = self.endpoint.poll_event() else { return };
            self.handle_event(event, network.now());
        }
    }

    /// PCMU at 20 ms, in this direction.
    fn offer(&self, direction: &str) -> Body {
        let address = IpAddr::from(self.address);
        let sdp = format!(
            "v=0\r\no=caller 1 1 IN IP4 {address}\r\ns=-\r\nc=IN IP4 {address}\r\nt=0 0\r\n\
             m=audio {RTP_PORT} RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\na=ptime:20\r\na={direction}\r\n"
        );
        Body::sdp(sdp)
    }

    /// Replaces and Referred-By of the INVITE that came in.
    pub fn invited_with(&self) -> (Option<&str>, Option<&str>) {
        (self.invited_with.0.as_deref(), self.invited_with.1.as_deref())
    }

    /// How the transfer went that it has asked for: the statuses that it was told, the REFER's own among them.
    pub fn progress(&self) -> &[u16] {
        &self.progress
    }

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
        let _ = self.endpoint.answer(call, self.offer("sendrecv"), now);
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
            Event::Answered { call, response, wants_ack } => {
                if wants_ack && !self.keeps_ack {
                    let _ = self.endpoint.ack(call, self.offer("sendrecv"), now);
                }
                let tag = |addr: NameAddr| addr.tag().map(|tag| tag.as_ref().into()).unwrap_or_default();
                self.dialog = Some(Replaces {
                    call_id: response.head.call_id().into(),
                    to_tag: tag(response.head.to().clone()),
                    from_tag: tag(response.head.from().clone()),
                    early_only: false,
                });
                self.statuses.push(response.status);
                self.answered = Some(now);
                self.remote = response.sdp().and_then(|sdp| rtp_address(&String::from_utf8_lossy(sdp)));
                self.next_packet = Some(now);
            }
            Event::IncomingInvite { call, request, .. } => {
                self.call = Some(call);
                self.incoming.push((now, call));
                let header = |name| request.header(name).map(str::to_owned);
                self.invited_with = (header(HeaderName::Replaces), header(HeaderName::ReferredBy));
                self.remote = request.sdp().and_then(|sdp| rtp_address(&String::from_utf8_lossy(sdp)));
                match self.manners {
                    Manners::Waits => {}
                    Manners::Answers => self.pick_up(call, now),
                    Manners::Busy => drop(self.endpoint.reject(call, Reply::new(486), now)),
                }
            }
            Event::Reinvite { call, request } => {
                let text = String::from_utf8_lossy(&request.body).into_owned();
                let direction = match text {
                    text if text.contains("a=inactive") => "inactive",
                    text if text.contains("a=sendonly") => "recvonly",
                    _ => "sendrecv",
                };
                let _ = self.endpoint.answer(call, self.offer(direction), now);
            }
            Event::Request { handle, request, .. } if request.method == Method::Refer => {
                self.referred = request.header(HeaderName::ReferTo).map(str::to_owned);
                let _ = self.endpoint.accept_refer(handle, now);
            }
            Event::ReferProgress { status, .. } => self.progress.push(status),
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

    /// From now on it speaks, or is silent.
    pub fn speaks(&mut self, speaks: bool) {
        self.speaks = speaks;
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
        packet.extend([if self.speaks { 0x90 } else { 0xff }; 160]);
        self.sequence = self.sequence.wrapping_add(1);
        network.send(SocketAddr::from((self.address, RTP_PORT)), remote, packet);
        self.next_packet = Some(due + PTIME);
    }
}

fn sip_of(address: [u8; 4]) -> SocketAddr {
    SocketAddr::from((address, SIP_PORT))
}

fn rtp_address(sdp: &str) -> Option<SocketAddr> {
    let address = sdp.lines().find_map(|line| line.strip_prefix("c=IN IP4 "))?.trim();
    let port = sdp.lines().find_map(|line| line.strip_prefix("m=audio "))?.split(' ').next()?;
    format!("{address}:{port}").parse().ok()
}
