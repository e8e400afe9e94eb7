//! Both planes in one process and in virtual time: the SIP endpoint, the core of call handling, and the engine's
//! sessions, with nothing between them but function calls. What is left out is what has its own tests: sockets, gRPC,
//! the database, the ring.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_plane::call::action::{Action, EngineCommand, EngineRefusal, EngineReply, Refusal};
use control_plane::call::admission::{Credential, Proof};
use control_plane::call::agent::{Agent, Dialect, Speech};
use control_plane::call::gate::{Gate, TenantLimits};
use control_plane::call::machine::{Asked, TransferTo};
use control_plane::call::order::{Callee, Order, PHONES};
use control_plane::call::registry::joining::Guest;
use control_plane::call::registry::{Calls, Settings};
use control_plane::config::Limits;
use control_plane::media::{EngineId, News, client};
use control_plane::sip::{Destination, Verb};
use control_plane::store::accounts::{Assistant, Found, KeyHash, Principal};
use control_plane::trunk::{Trunk, Trunks};
use media_engine::contract::{self, Target};
use media_engine::leg::agent::AgentParameters;
use media_engine::session::joining::JoinError;
use media_engine::session::second::Role;
use media_engine::session::{Port, Session, SessionParameters, Transmit};
use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::LegRole;
use tandem_api::v1::Call;
use tandem_sip::{Endpoint, EndpointConfig, Flow, Headers, InviteRequest, Method, Uri};
use tandem_stream::websocket::UpgradeRequest;
use uuid::Uuid;

use crate::network::{Datagram, Network};

/// The only engine.
const ENGINE: EngineId = EngineId(0);
const ENGINE_ADDRESS: [u8; 4] = [192, 0, 2, 20];
const FIRST_RTP_PORT: u16 = 20_000;
/// Where the stack hears SIP.
const SIP: ([u8; 4], u16) = ([192, 0, 2, 10], 5_060);

/// Both planes.
pub struct Planes {
    endpoint: Endpoint,
    calls: Calls,
    sessions: BTreeMap<Uuid, Open>,
    next_port: u16,
    engine_is_up: bool,
    /// RTP packets that the engine has sent, wherever to.
    rtp_sent: usize,
    /// Where our phone is registered.
    contacts: Vec<SocketAddr>,
    /// The newest record of each call, by its id.
    pub records: BTreeMap<String, Call>,
    /// Refusals, in order.
    pub refusals: Vec<Refusal>,
}

struct Open {
    session: Session,
    address: SocketAddr,
    /// Of its second leg.
    second: Option<SocketAddr>,
}

impl Open {
    fn send(from: SocketAddr, transmit: &Transmit, packet: &[u8], network: &mut Network) {
        let mut from = from;
        if transmit.from == Port::Rtcp {
            from.set_port(from.port() + 1);
        }
        network.send(from, transmit.to, packet[..transmit.len].to_vec());
    }
}

impl Planes {
    /// A stack that knows the demo key and the assistants `echo`, `tone`, `pcm` (whose agent never answers) and `mute` (whose
    /// agent is there and says nothing).
    pub fn new(limits: Limits, network: &mut Network) -> Self {
        let seed = network.random();
        let settings = Settings {
            limits,
            talker_url: "ws://192.0.2.30:8767/v1/talk".to_owned(),
            talker_token: None,
            engines: vec!["http://192.0.2.20:7070".to_owned()],
            credentials: Default::default(),
            public_url: String::new(),
            seed,
        };
        let in_dialog_methods = vec![Method::Update, Method::Info, Method::Refer];
        let config =
            EndpointConfig { seed: network.random(), in_dialog_methods, ..EndpointConfig::default() };
        let mut planes = Self {
            endpoint: Endpoint::new(config),
            calls: Calls::new(settings, network.now(), 0),
            sessions: BTreeMap::new(),
            next_port: FIRST_RTP_PORT,
            engine_is_up: true,
            rtp_sent: 0,
            contacts: Vec::new(),
            records: BTreeMap::new(),
            refusals: Vec::new(),
        };
        let up = News::Up {
            instance_id: "first".to_owned(),
            sessions: Default::default(),
            addresses: Default::default(),
        };
        planes.calls.handle_news(ENGINE, up, network.now());
        planes
    }

    /// The same stack, which lets these trunks in. No call is alive yet.
    pub fn with_trunks(mut self, trunks: Vec<Trunk>) -> Self {
        let trunks = Trunks::new(trunks, []);
        self.calls = self.calls.with_gate(Gate::new(trunks, "tandem", &[7; 32], TenantLimits::default()));
        self
    }

    /// The only call that is alive.
    pub fn only_call(&self) -> Uuid {
        let calls = self.calls.list(TENANT);
        let [call] = calls.as_slice() else { panic!("one call is alive, not {}", calls.len()) };
        call.call_id.parse().expect("a call's id is a UUID")
    }

    /// The call that came last, of those that are alive.
    pub fn newest_call(&self) -> Uuid {
        let calls = self.calls.list(TENANT);
        calls.first().expect("a call is alive").call_id.parse().expect("a call's id is a UUID")
    }

    /// Where SIP is heard.
    pub fn sip() -> SocketAddr {
        SocketAddr::from(SIP)
    }

    /// RTP ports that are open: one a leg.
    pub fn ports_in_use(&self) -> usize {
        let legs = |open: &Open| usize::from(open.address.port() != 0) + usize::from(open.second.is_some());
        self.sessions.values().map(legs).sum()
    }

    /// RTP packets that the engine has sent, wherever to.
    pub fn rtp_sent(&self) -> usize {
        self.rtp_sent
    }

    /// Calls that are alive.
    pub fn live_calls(&self) -> usize {
        self.calls.len()
    }

    /// The engine dies: its sessions, its ports and its event stream are gone.
    pub fn kill_engine(&mut self, network: &mut Network) {
        self.engine_is_up = false;
        self.sessions.clear();
        self.calls.handle_news(ENGINE, News::Down, network.now());
        self.drain(network);
    }

    /// Another engine comes up in its place.
    pub fn restart_engine(&mut self, network: &mut Network) {
        self.engine_is_up = true;
        let up = News::Up {
            instance_id: "second".to_owned(),
            sessions: Default::default(),
            addresses: Default::default(),
        };
        self.calls.handle_news(ENGINE, up, network.now());
        self.drain(network);
    }

    /// Ends all calls, as a shutdown does.
    pub fn end_all(&mut self, network: &mut Network) {
        self.calls.end_all(network.now());
        self.drain(network);
    }

    /// Calls somebody over this trunk, for one of the assistants.
    pub fn places(&mut self, assistant: &str, trunk: &Arc<Trunk>, network: &mut Network) -> Uuid {
        let order = order(assistant, trunk);
        let call_id = self.calls.place(order, network.now()).expect("the queue has room");
        self.drain(network);
        call_id
    }

    /// Calls a phone of ours that is registered at these places.
    pub fn places_to_phone(
        &mut self,
        assistant: &str,
        contacts: Vec<SocketAddr>,
        network: &mut Network,
    ) -> Uuid {
        self.contacts = contacts;
        let mut trunk = Trunk { name: PHONES.into(), tenant_id: TENANT.into(), ..Trunk::default() };
        trunk.credential.sip_uri = Uri::parse("sip:tandem.invalid").ok();
        let order = Order { to: Callee::Phone("200".into()), ..order(assistant, &Arc::new(trunk)) };
        let call_id = self.calls.place(order, network.now()).expect("the queue has room");
        self.drain(network);
        call_id
    }

    /// Calls so many at once; gives the bulk's id.
    pub fn places_bulk(&mut self, count: usize, trunk: &Arc<Trunk>, network: &mut Network) -> Uuid {
        let orders = (0..count).map(|_| order("tone", trunk)).collect();
        let (bulk, _) = self.calls.place_bulk(orders, network.now()).expect("the queue has room");
        self.drain(network);
        bulk
    }

    /// How far a bulk is.
    pub fn bulk(&self, bulk: Uuid) -> tandem_api::v1::BulkPhoneCall {
        self.calls.bulk(TENANT, bulk).expect("a bulk that is known")
    }

    /// The state of a call; of one that is over as its record says.
    pub fn state(&self, call_id: Uuid) -> String {
        let live = self.calls.get(TENANT, call_id);
        live.or_else(|| self.records.get(&call_id.to_string()).cloned())
            .map(|call| call.state)
            .unwrap_or_default()
    }

    /// The word of a call's ending.
    pub fn ending(&self, call_id: Uuid) -> String {
        let record = self.records.get(&call_id.to_string());
        record.and_then(|call| call.ending.clone()).map(|ending| ending.reason).unwrap_or_default()
    }

    /// Puts the other side on hold, or takes it back.
    pub fn holds(&mut self, call_id: Uuid, is_held: bool, network: &mut Network) {
        self.calls.hold(TENANT, call_id, is_held, network.now()).expect("a live call");
        self.drain(network);
    }

    /// Hands the other side on.
    pub fn transfers(&mut self, call_id: Uuid, to: TransferTo, network: &mut Network) {
        self.calls.transfer(TENANT, call_id, to, network.now()).expect("a live call");
        self.drain(network);
    }

    /// Calls somebody and adds them to a call.
    pub fn brings_in(&mut self, call_id: Uuid, to: &str, role: LegRole, network: &mut Network) -> Asked {
        let guest = Guest { to: to.to_owned(), role, trunk: String::new() };
        let asked = self.calls.join(TENANT, call_id, &guest, network.now()).expect("a live call");
        self.drain(network);
        asked
    }

    /// Joins two calls.
    pub fn joins(&mut self, call_id: Uuid, other: Uuid, network: &mut Network) -> Asked {
        let asked = self.calls.join_calls(TENANT, call_id, other, network.now()).expect("live calls");
        self.drain(network);
        asked
    }

    /// Ends a call as an operator does.
    pub fn hangs_up(&mut self, call_id: Uuid, network: &mut Network) {
        self.calls.hang_up(TENANT, call_id, network.now());
        self.drain(network);
    }

    /// A datagram has arrived here. False: it is for somebody else.
    pub fn handle_datagram(&mut self, datagram: &Datagram, network: &mut Network) -> bool {
        let now = network.now();
        if datagram.to == Self::sip() {
            self.endpoint.handle_input(&datagram.bytes, Flow::udp(datagram.to, datagram.from), now);
        } else if let Some(open) = self.sessions.values_mut().find(|open| open.address == datagram.to) {
            open.session.handle_datagram(datagram.from, &datagram.bytes, now);
        } else if let Some(open) = self.sessions.values_mut().find(|open| open.second == Some(datagram.to)) {
            open.session.handle_second_datagram(datagram.from, &datagram.bytes, now);
        } else {
            return datagram.to.ip() == SocketAddr::from((ENGINE_ADDRESS, 0)).ip();
        }
        self.drain(network);
        true
    }

    /// The earliest deadline of all parts.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sessions = self.sessions.values().filter_map(|open| open.session.poll_timeout());
        sessions.chain(self.endpoint.poll_timeout()).chain(self.calls.poll_timeout()).min()
    }

    /// Deadlines may have passed.
    pub fn handle_timeout(&mut self, network: &mut Network) {
        let now = network.now();
        self.endpoint.handle_timeout(now);
        self.calls.handle_timeout(now);
        for open in self.sessions.values_mut() {
            open.session.handle_timeout(now);
        }
        self.drain(network);
    }

    /// Empties every part until none has anything left to say: the drain contract, for all at once.
    fn drain(&mut self, network: &mut Network) {
        loop {
            let mut quiet = true;
            while let Some(transmit) = self.endpoint.poll_transmit() {
                network.send(transmit.flow.local, transmit.flow.remote, transmit.bytes);
            }
            while let Some(event) = self.endpoint.poll_event() {
                quiet = false;
                self.calls.handle_sip(event, network.now());
            }
            while let Some(action) = self.calls.poll_action() {
                quiet = false;
                self.perform(action, network);
            }
            quiet &= !self.drain_sessions(network);
            if quiet {
                return;
            }
        }
    }

    fn drain_sessions(&mut self, network: &mut Network) -> bool {
        let now = network.now();
        let mut news = Vec::new();
        let mut packet = [0; 1_472];
        for (id, open) in &mut self.sessions {
            while open.session.wants_handshake() {
                open.session.handle_handshake(now);
            }
            // Nobody minds what the agent hears.
            while open.session.poll_stream(&mut packet) > 0 {}
            while let Some(transmit) = open.session.poll_transmit(now, &mut packet) {
                self.rtp_sent += usize::from(transmit.from == Port::Rtp);
                Open::send(open.address, &transmit, &packet, network);
            }
            while let (Some(from), Some(transmit)) = (open.second, open.session.poll_second(now, &mut packet))
            {
                Open::send(from, &transmit, &packet, network);
            }
            while let Some(event) = open.session.poll_event() {
                // Across the border and back: in the words of engine.proto.
                let event = Some(contract::event(&event));
                news.extend(client::read(engine::Event { sequence: 0, session_id: id.to_string(), event }));
            }
        }
        self.sessions.retain(|_, open| open.address.port() != 0);
        let any = !news.is_empty();
        for item in news {
            self.calls.handle_news(ENGINE, item, now);
        }
        any
    }

    fn perform(&mut self, action: Action, network: &mut Network) {
        let now = network.now();
        match action {
            // As the driver does it: an INVITE to each contact.
            Action::Sip(Verb::Invite(token, invite, to)) if to.trunk.as_deref() == Some(PHONES) => {
                let mut branch = Some(token);
                for contact in self.contacts.clone() {
                    let Some(token) = branch.take().or_else(|| self.calls.fork(token, now)) else { return };
                    let uri = Uri::parse(&format!("sip:200@{contact}")).expect("an address is a host");
                    let destination = Destination { uri: uri.clone(), trunk: None, ..to.clone() };
                    let invite = Box::new(InviteRequest { target: uri, ..(*invite).clone() });
                    self.perform_verb(Verb::Invite(token, invite, destination), now);
                }
            }
            Action::Sip(verb) => self.perform_verb(verb, now),
            Action::Engine { call_id, command, .. } => {
                // A dead engine answers nothing; the call hears of it through the event stream.
                if self.engine_is_up {
                    let reply = self.command(call_id, command, network);
                    self.calls.handle_reply(call_id, reply, now);
                }
            }
            Action::CloseStray { engine, session_id } => {
                if self.engine_is_up {
                    let reply = self.command(session_id, EngineCommand::Close { reason: "stray" }, network);
                    self.calls.handle_stray(engine, session_id, &reply);
                }
            }
            Action::Lookup { call_id, credential } => {
                let found = find(&credential);
                self.calls.handle_found(call_id, &credential, Ok(found), now);
            }
            Action::Record(record) => {
                self.records.insert(record.call.call_id.clone(), record.call);
            }
            Action::Refused(refusal) => self.refusals.push(*refusal),
            Action::Remember(_) | Action::Forget(_) | Action::Changed(_) | Action::Admitted(..) => {}
            // No provider dials in here.
            Action::Claim { .. } | Action::Dropped(_) | Action::AnswerUpgrade { .. } => {}
            Action::Mint { .. } | Action::Errand { .. } | Action::Missed(_) => {}
        }
    }

    fn perform_verb(&mut self, mut verb: Verb, now: Instant) {
        if let Verb::Invite(_, invite, _) = &mut verb {
            invite.flow = Flow::udp(Self::sip(), Self::sip());
        }
        // A verb may come too late: the peer was faster, and the event that says so is on its way.
        if let Ok(Some(event)) = verb.perform(&mut self.endpoint, now) {
            self.calls.handle_sip(event, now);
        }
    }

    /// What the engine's control thread does with a command.
    fn command(&mut self, id: Uuid, command: EngineCommand, network: &mut Network) -> EngineReply {
        let now = network.now();
        match command {
            EngineCommand::Open(request) => {
                EngineReply::Opened(Ok(Box::new(self.open(id, *request, network))))
            }
            EngineCommand::Start => {
                if let Some(open) = self.sessions.get_mut(&id) {
                    open.session.start(now + Duration::from_millis(5), now);
                }
                EngineReply::Started(Ok(()))
            }
            EngineCommand::Listen => {
                if let Some(open) = self.sessions.get_mut(&id) {
                    open.session.listen(now + Duration::from_millis(5), now);
                }
                EngineReply::Started(Ok(()))
            }
            EngineCommand::Tell(what) => {
                let notice = contract::notice(Some(*what)).expect("the control plane says what can be told");
                if let Some(open) = self.sessions.get_mut(&id) {
                    open.session.tell(&notice, now);
                }
                EngineReply::Told(Ok(()))
            }
            EngineCommand::Update(rtp) => {
                if let Some(open) = self.sessions.get_mut(&id) {
                    let (rtp, _) =
                        contract::rtp(Some(*rtp)).expect("the control plane sends what can be carried");
                    open.session.update(rtp, now + Duration::from_millis(5), now);
                }
                EngineReply::Updated(Ok(()))
            }
            EngineCommand::AddLeg(request) => {
                let address = SocketAddr::from((ENGINE_ADDRESS, self.next_port));
                let (rtp, _) =
                    contract::rtp(request.rtp.clone()).expect("the control plane sends what can be carried");
                let role = contract::role(request.role(), request.caller_rings).expect("a role");
                let seed = [(); 3].map(|()| network.random() as u32);
                let Some(open) = self.sessions.get_mut(&id).filter(|open| open.second.is_none()) else {
                    return EngineReply::LegAdded(Err(EngineRefusal::Gone));
                };
                self.next_port += 2;
                open.second = Some(address);
                open.session.add_second(rtp, role, seed, now + Duration::from_millis(5));
                EngineReply::LegAdded(Ok(Box::new(engine::AddLegResponse {
                    local_address: address.ip().to_string(),
                    local_port: address.port().into(),
                    dtls_fingerprint: Vec::new(),
                })))
            }
            EngineCommand::UpdateLeg(request) => {
                let rtp = request.rtp.clone().map(|rtp| {
                    contract::rtp(Some(rtp)).expect("the control plane sends what can be carried").0
                });
                let role = contract::role(request.role(), request.caller_rings);
                let is_there = self.sessions.get_mut(&id).is_some_and(|open| {
                    open.session.update_second(rtp, role, now + Duration::from_millis(5))
                });
                EngineReply::LegUpdated(if is_there { Ok(()) } else { Err(EngineRefusal::Gone) })
            }
            EngineCommand::RemoveLeg => {
                let removed = self.sessions.get_mut(&id).and_then(|open| {
                    open.second = None;
                    open.session.remove_second()
                });
                EngineReply::LegRemoved(
                    removed.map(|stats| Box::new(contract::stats(&stats))).ok_or(EngineRefusal::Gone),
                )
            }
            EngineCommand::Join { other, role } => {
                let role = contract::role(role, false).expect("a role");
                EngineReply::Joined(other, self.join(id, other, role, now))
            }
            EngineCommand::Close { reason } => {
                let closed = self.sessions.remove(&id).map(|mut open| {
                    open.session.close(reason);
                    Box::new(contract::stats(&open.session.stats(now)))
                });
                EngineReply::Closed(closed.ok_or(EngineRefusal::Gone))
            }
        }
    }

    /// The other session stays until it has told of its end.
    fn join(
        &mut self,
        id: Uuid,
        other: Uuid,
        role: Role,
        now: Instant,
    ) -> Result<Box<engine::SessionStats>, EngineRefusal> {
        let refused = |error: JoinError| EngineRefusal::Invalid(error.to_string());
        let stays = self.sessions.get(&id).ok_or(EngineRefusal::Gone)?;
        stays.session.check_join().map_err(refused)?;
        let ends = self.sessions.get_mut(&other).ok_or(EngineRefusal::Gone)?;
        let leg = ends.session.lift(now).map_err(refused)?;
        let (address, stats) = (ends.address, ends.session.stats(now));
        ends.session.leave(id.to_string().into(), now);
        // Nobody hears there any more.
        ends.address.set_port(0);
        let stays = self.sessions.get_mut(&id).ok_or(EngineRefusal::Gone)?;
        stays.session.land(leg, role, now).map_err(|(error, _)| refused(error))?;
        stays.second = Some(address);
        Ok(Box::new(contract::stats(&stats)))
    }

    fn open(
        &mut self,
        id: Uuid,
        request: engine::OpenSessionRequest,
        network: &mut Network,
    ) -> engine::OpenSessionResponse {
        let (rtp, _) = contract::rtp(request.rtp).expect("the control plane sends what can be carried");
        let is_mute = request.call.as_ref().is_some_and(|call| call.assistant_id == MUTE);
        let call = contract::call(request.call, &request.session_id);
        let speech = contract::speech(request.agent.as_ref());
        let agent =
            contract::agent(request.agent, &call).expect("the control plane sends what can be carried");
        let agent = match agent {
            Target::Echo | Target::File { .. } => AgentParameters::Echo,
            Target::Tone { frequency_hz } => AgentParameters::Tone { frequency_hz },
            // Its connection is never made: nobody is there.
            Target::WebSocket(parameters) => AgentParameters::WebSocket(parameters),
            Target::Link(parameters) => AgentParameters::Link(parameters),
            Target::AudioSocket(parameters) => AgentParameters::AudioSocket(parameters),
            Target::Grpc(parameters) => AgentParameters::Grpc(parameters),
        };
        let parameters = SessionParameters {
            call,
            rtp,
            agent,
            speech,
            media_timeout: contract::media_timeout(request.media_timeout_ms),
            max_session: contract::max_session(request.max_session_ms),
            seed: network.random(),
            since_epoch: Default::default(),
            identity: None,
            stream: None,
        };
        let mut session = Session::new(parameters, network.now()).expect("an upgrade request can be written");
        if is_mute {
            upgrade(&mut session, network.now());
        }
        let agent_ready = session.is_agent_ready();
        let address = SocketAddr::from((ENGINE_ADDRESS, self.next_port));
        self.next_port += 2;
        self.sessions.insert(id, Open { session, address, second: None });
        engine::OpenSessionResponse {
            instance_id: "first".to_owned(),
            local_address: address.ip().to_string(),
            local_port: address.port().into(),
            core: 0,
            agent_ready,
            dtls_fingerprint: vec![0xAB; 32],
        }
    }
}

/// The assistant whose agent says nothing.
const MUTE: &str = "mute";
/// After so long in which nobody spoke its calls end.
pub const MUTE_IDLE: Duration = Duration::from_secs(30);

/// The agent takes the connection of its session.
fn upgrade(session: &mut Session, now: Instant) {
    session.handle_connected(now);
    let mut out = [0; 4_096];
    let len = session.poll_stream(&mut out);
    let request = UpgradeRequest::parse(&out[..len]).expect("the engine writes HTTP");
    let (request, _) = request.expect("an upgrade request fits");
    let mut answer = Vec::new();
    request.write_response(&mut answer);
    session.handle_bytes(&answer, now);
}

/// Whose everything is.
const TENANT: &str = "demo";

fn order(assistant: &str, trunk: &Arc<Trunk>) -> Order {
    Order {
        tenant_id: TENANT.into(),
        assistant_id: assistant.into(),
        agent: agent(assistant).expect("an assistant of the demo"),
        trunk: trunk.clone(),
        failover: Vec::new(),
        from: "+4930111".into(),
        to: Callee::Number("+4930222".into()),
        args: BTreeMap::new(),
        metadata: BTreeMap::new(),
        headers: Headers::new(),
        ring_max: trunk.outbound.ring_timeout,
        duration_max: None,
        bulk: None,
        idempotency: None,
        provider: None,
    }
}

/// What the database of a demo holds.
fn find(credential: &Credential) -> Found {
    let is_known = match &credential.proof {
        Proof::Key(key) => *key == KeyHash::of("demo-key"),
        Proof::Phone(_) | Proof::Trunk(_) | Proof::Claim(_) => true,
    };
    if !is_known {
        return Found::default();
    }
    let agent = agent(&credential.assistant_id);
    Found {
        principal: Some(Principal { tenant_id: TENANT.into(), key_id: "demo".into() }),
        assistant: agent
            .map(|agent| Assistant { assistant_id: credential.assistant_id.clone(), agent: Ok(agent) }),
    }
}

fn agent(assistant: &str) -> Option<Agent> {
    match assistant {
        "echo" => Some(Agent::Echo),
        "tone" => Some(Agent::Tone { frequency_hz: 440.0 }),
        "pcm" => Some(websocket(Speech::default())),
        MUTE => Some(websocket(Speech { idle_seconds: MUTE_IDLE.as_secs() as u32, ..Speech::default() })),
        _ => None,
    }
}

fn websocket(speech: Speech) -> Agent {
    Agent::WebSocket {
        url: "ws://192.0.2.40:8766/".to_owned(),
        dialect: Dialect::Pcm,
        headers: Default::default(),
        custom: Default::default(),
        speech,
    }
}
