//! The calls of `EngineService`. Each is idempotent by session id.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tandem_api::engine::v1 as proto;
use tandem_api::engine::v1::engine_service_server::EngineService;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::events::{self, EventStream};
use super::joining::{self, Half};
use super::statistics::{self, StatisticsStream};
use super::upgrades::{Otherwise, Refusal};
use super::{Control, Entry, lock};
use crate::contract::{self, Invalid, Target};
use crate::leg::agent::{AgentParameters, CallInfo};
use crate::leg::provider::StreamParameters;
use crate::leg::rtp::RtpParameters;
use crate::mailbox::{Command, LegError, Open, OpenError, Opened, RetakeError, SessionKey};
use crate::ports::owner;
use crate::recording;
use crate::session::SessionParameters;
use crate::session::second::Role;
use crate::session::speech::SpeechParameters;

/// A name that does not resolve in this time is a dead agent: the caller is ringing.
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);

/// Commands of one stream that are carried out at once. More wait in the connection, whose window then closes.
const STREAM_COMMANDS_MAX: usize = 1_024;

/// The service.
#[derive(Debug, Clone)]
pub(super) struct Service {
    control: Arc<Control>,
}

impl Service {
    pub(super) fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// A session that is open, with its core.
    fn find(&self, id: &str) -> Result<(Arc<Entry>, SessionKey), Status> {
        let missing = || Status::not_found(format!("no session {id}"));
        let entry = self.control.entry(id).ok_or_else(missing)?;
        let key = entry.opened.get().ok_or_else(missing)?.key;
        Ok((entry, key))
    }
}

impl From<Invalid> for Status {
    fn from(error: Invalid) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

impl From<OpenError> for Status {
    fn from(error: OpenError) -> Self {
        let text = error.to_string();
        match error {
            OpenError::SessionsFull(_) | OpenError::PortsFull { .. } | OpenError::PortBusy(_) => {
                Status::resource_exhausted(text)
            }
            OpenError::Socket(_) => Status::internal(text),
            OpenError::Agent(_) => Status::invalid_argument(text),
            OpenError::NoConnection => Status::not_found(text),
        }
    }
}

/// A request to open a session, checked.
struct Checked {
    id: String,
    call: CallInfo,
    rtp: RtpParameters,
    /// The upgrade that the caller comes by, instead of RTP.
    stream: Option<(String, StreamParameters)>,
    local_port: Option<u16>,
    agent: Target,
    speech: SpeechParameters,
    media_timeout: Duration,
    max_session: Option<Duration>,
}

/// Checks a request. What takes time is left to [`prepare`].
fn check(control: &Control, request: proto::OpenSessionRequest) -> Result<Checked, Status> {
    let id = contract::session_id(&request.session_id)?.to_owned();
    let stream = request.stream.map(contract::stream).transpose()?;
    let (rtp, local_port) = match (&stream, request.rtp) {
        (None, rtp) => contract::rtp(rtp)?,
        (Some(_), None) => (contract::stream_rtp(), None),
        (Some(_), Some(_)) => return Err(Status::invalid_argument("rtp: does not go with stream")),
    };
    check_family(control, &rtp)?;
    let call = contract::call(request.call, &id);
    let speech = contract::speech(request.agent.as_ref());
    let agent = contract::agent(request.agent, &call)?;
    Ok(Checked {
        call,
        id,
        rtp,
        stream,
        local_port,
        agent,
        speech,
        media_timeout: contract::media_timeout(request.media_timeout_ms),
        max_session: contract::max_session(request.max_session_ms),
    })
}

/// Loads what is to be loaded, resolves what is to be resolved.
async fn prepare(control: &Control, checked: Checked) -> Result<(Box<Open>, Option<Otherwise>), Status> {
    let Checked { id, call, rtp, stream, local_port, agent, speech, media_timeout, max_session } = checked;
    let (upgrade, stream) = stream.unzip();
    // First of all: it is parked for less long than a name may take. What has been taken is refused by us if nothing comes of it.
    let (incoming, otherwise) = match upgrade {
        None => (None, None),
        Some(upgrade) => control
            .upgrades
            .take(&upgrade)
            .await
            .ok_or_else(|| no_upgrade(&upgrade))
            .map(|(incoming, otherwise)| (Some(incoming), Some(otherwise)))?,
    };
    let mut agent_address = None;
    let agent = match agent {
        Target::Echo => AgentParameters::Echo,
        Target::Tone { frequency_hz } => AgentParameters::Tone { frequency_hz },
        Target::File { path, repeat } => {
            let folder = control.config.media_dir.clone();
            let loaded = tokio::task::spawn_blocking(move || recording::load(&folder, &path, repeat)).await;
            let loaded = loaded.map_err(|error| Status::internal(error.to_string()))?;
            let wrong = |error: recording::RecordingError| {
                Status::invalid_argument(format!("agent.file.path: {error}"))
            };
            AgentParameters::File(loaded.map_err(wrong)?)
        }
        Target::WebSocket(mut parameters) => {
            agent_address = Some(resolve(&parameters.url.host, parameters.url.port).await);
            if parameters.url.secure {
                match control.agent_tls() {
                    Ok(tls) => parameters.tls = Some(tls),
                    Err(reason) => agent_address = Some(Err(reason)),
                }
            }
            AgentParameters::WebSocket(parameters)
        }
        Target::Link(parameters) => {
            agent_address = Some(resolve(&parameters.host, parameters.port).await);
            AgentParameters::Link(parameters)
        }
        Target::Grpc(mut parameters) => {
            agent_address = Some(resolve(&parameters.url.host, parameters.url.port).await);
            if parameters.url.secure {
                match control.agent_tls() {
                    Ok(tls) => {
                        // Servers that speak several protocols ask for the word (RFC 9113 §3.2).
                        let mut tls = rustls::ClientConfig::clone(&tls);
                        tls.alpn_protocols = vec![b"h2".to_vec()];
                        parameters.tls = Some(Arc::new(tls));
                    }
                    Err(reason) => agent_address = Some(Err(reason)),
                }
            }
            AgentParameters::Grpc(parameters)
        }
        Target::AudioSocket(parameters) => {
            agent_address = Some(resolve(&parameters.host, parameters.port).await);
            AgentParameters::AudioSocket(parameters)
        }
    };
    // A clock that stands before 1970 makes reports say 1970: they are still good for a round trip.
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let parameters = SessionParameters {
        call,
        rtp,
        stream,
        agent,
        speech,
        media_timeout,
        max_session,
        seed: rand::random(),
        since_epoch,
        identity: Some(Arc::clone(&control.identity)),
    };
    let local_address = control.config.rtp_address;
    let open =
        Box::new(Open { id: id.into(), parameters, agent_address, local_address, local_port, incoming });
    Ok((open, otherwise))
}

fn no_upgrade(id: &str) -> Status {
    Status::not_found(format!("media upgrade {id} has gone, or was answered"))
}

fn check_family(control: &Control, rtp: &RtpParameters) -> Result<(), Status> {
    match rtp.remote {
        Some(remote) if remote.is_ipv4() != control.config.rtp_address.is_ipv4() => {
            Err(Status::invalid_argument(format!(
                "rtp.remote_address: {} cannot be reached from {}",
                remote.ip(),
                control.config.rtp_address
            )))
        }
        _ => Ok(()),
    }
}

/// The agent's address; names are looked up here, never on a worker.
async fn resolve(host: &str, port: u16) -> Result<SocketAddr, String> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok((ip, port).into());
    }
    let found = tokio::time::timeout(RESOLVE_WITHIN, tokio::net::lookup_host((host, port))).await;
    match found {
        Ok(Ok(addresses)) => {
            // A name with both families is tried by IPv4 first: agents that listen on one of them mostly listen there.
            let all: Vec<SocketAddr> = addresses.collect();
            let first = all.iter().find(|address| address.is_ipv4()).or(all.first());
            first.copied().ok_or_else(|| format!("agent host {host} has no address"))
        }
        Ok(Err(error)) => Err(format!("agent host {host} does not resolve: {error}")),
        Err(_) => Err(format!("agent host {host} did not resolve within {} s", RESOLVE_WITHIN.as_secs())),
    }
}

/// Opens a session, or waits for another request that is opening it. Its name is known from the first moment, so that
/// a request to close it finds what is being opened.
async fn open(control: Arc<Control>, checked: Checked) -> Result<(Arc<Entry>, Opened), Status> {
    let id = checked.id.clone();
    let config = &control.config;
    let core = match checked.local_port {
        None => control.least_loaded(),
        Some(port) => owner(config.rtp_ports, port, control.cores.len()).ok_or_else(|| {
            Status::invalid_argument(format!(
                "rtp.local_port: {port} is outside {}-{}",
                config.rtp_ports.min, config.rtp_ports.max
            ))
        })?,
    };
    if control.sessions() >= config.sessions_max && control.entry(&id).is_none() {
        let max = config.sessions_max;
        return Err(Status::resource_exhausted(format!("all {max} sessions of this engine are in use")));
    }
    let entry = control.reserve(&id, core);
    let opened = open_once(&control, &entry, checked).await?;
    Ok((entry, opened))
}

/// One at a time in here: another request to open it, or to close it, waits.
async fn open_once(control: &Control, entry: &Arc<Entry>, checked: Checked) -> Result<Opened, Status> {
    let id = checked.id.clone();
    let opened = entry.opened.get_or_try_init(|| async {
        if !control.has(&id, entry) {
            return Err(Status::aborted(format!(
                "session {id} was closed or refused while it was being opened"
            )));
        }
        open_on(control, entry, checked).await.inspect_err(|status| {
            control.forget(&id);
            tracing::warn!(session_id = id, reason = status.message(), "session refused");
        })
    });
    opened.await.copied()
}

async fn open_on(control: &Control, entry: &Entry, checked: Checked) -> Result<Opened, Status> {
    let core = &control.cores[entry.core];
    // Until the end: it has the last word to a connection that nobody took.
    let (open, _otherwise) = prepare(control, checked).await?;
    let id = Arc::clone(&open.id);
    let opened = core.ask(|reply| Command::Open { open, reply }).await??;
    if opened.agent_ready {
        entry.is_agent_ready.store(true, Ordering::Relaxed);
    }
    tracing::info!(session_id = &*id, core = core.number(), port = opened.port, "session opened");
    Ok(opened)
}

/// The session that is to be closed; one that is being opened is waited for, one that was not begun never will be.
async fn opened_to_close(control: &Control, id: &str) -> Result<(Arc<Entry>, SessionKey), Status> {
    let missing = || Status::not_found(format!("no session {id}"));
    let entry = control.entry(id).ok_or_else(missing)?;
    let opened = entry.opened.get_or_try_init(|| async {
        if control.has(id, &entry) {
            control.forget(id);
        }
        Err(missing())
    });
    let key = opened.await?.key;
    Ok((entry, key))
}

/// What the calls do, and the commands of a stream.
impl Service {
    async fn open(&self, request: proto::OpenSessionRequest) -> Result<proto::OpenSessionResponse, Status> {
        let known = self.control.entry(&request.session_id).is_some();
        if self.control.is_draining() && !known {
            return Err(Status::unavailable("the engine is draining"));
        }
        let checked = check(&self.control, request)?;
        // In a task of its own: a caller that goes away in the middle must not leave a session that nobody knows.
        let (entry, opened) = tokio::spawn(open(Arc::clone(&self.control), checked))
            .await
            .map_err(|error| Status::internal(error.to_string()))??;
        Ok(proto::OpenSessionResponse {
            instance_id: self.control.instance_id.clone(),
            local_address: self.control.config.rtp_public.to_string(),
            local_port: u32::from(opened.port),
            core: self.control.cores[entry.core].number() as u32,
            agent_ready: entry.is_agent_ready.load(Ordering::Relaxed),
            dtls_fingerprint: self.control.fingerprint(),
        })
    }

    async fn start(
        &self,
        request: proto::StartSessionRequest,
    ) -> Result<proto::StartSessionResponse, Status> {
        let proto::StartSessionRequest { session_id: id, early: is_early } = request;
        let (entry, key) = self.find(&id)?;
        match self.control.cores[entry.core].ask(|reply| Command::Start { key, is_early, reply }).await? {
            true => Ok(proto::StartSessionResponse {}),
            false => Err(Status::not_found(format!("no session {id}"))),
        }
    }

    async fn tell(&self, request: proto::TellAgentRequest) -> Result<proto::TellAgentResponse, Status> {
        let proto::TellAgentRequest { session_id: id, what } = request;
        let notice = contract::notice(what)?;
        let (entry, key) = self.find(&id)?;
        match self.control.cores[entry.core].ask(|reply| Command::Tell { key, notice, reply }).await? {
            true => Ok(proto::TellAgentResponse {}),
            false => Err(Status::not_found(format!("no session {id}"))),
        }
    }

    async fn update(
        &self,
        request: proto::UpdateSessionRequest,
    ) -> Result<proto::UpdateSessionResponse, Status> {
        let proto::UpdateSessionRequest { session_id: id, rtp } = request;
        let (rtp, _) = contract::rtp(rtp)?;
        check_family(&self.control, &rtp)?;
        let (entry, key) = self.find(&id)?;
        match self.control.cores[entry.core].ask(|reply| Command::Update { key, rtp, reply }).await? {
            true => Ok(proto::UpdateSessionResponse {}),
            false => Err(Status::not_found(format!("no session {id}"))),
        }
    }

    async fn close(
        &self,
        request: proto::CloseSessionRequest,
    ) -> Result<proto::CloseSessionResponse, Status> {
        let proto::CloseSessionRequest { session_id: id, reason } = request;
        let (entry, key) = opened_to_close(&self.control, &id).await?;
        let core = &self.control.cores[entry.core];
        let stats = core.ask(|reply| Command::Close { key, reason: reason.clone(), reply }).await?;
        self.control.forget(&id);
        let Some(stats) = stats else {
            return Err(Status::not_found(format!("no session {id}")));
        };
        tracing::info!(
            session_id = id,
            reason,
            duration_ms = stats.duration_ms,
            rtp_sent = stats.rtp_sent,
            rtp_received = stats.rtp_received,
            "session closed"
        );
        Ok(proto::CloseSessionResponse { stats: Some(contract::stats(&stats)) })
    }

    async fn add_leg(&self, request: proto::AddLegRequest) -> Result<proto::AddLegResponse, Status> {
        let role = contract::role(request.role(), request.caller_rings)
            .ok_or_else(|| Status::invalid_argument("role: is missing"))?;
        let proto::AddLegRequest { session_id: id, rtp, .. } = request;
        let (rtp, local_port) = contract::rtp(rtp)?;
        check_family(&self.control, &rtp)?;
        let (entry, key) = self.find(&id)?;
        let config = &self.control.config;
        if let Some(port) = local_port
            && owner(config.rtp_ports, port, self.control.cores.len()) != Some(entry.core)
        {
            let what = format!("rtp.local_port: {port} is not of the core that has session {id}");
            return Err(Status::invalid_argument(what));
        }
        let local_address = config.rtp_address;
        let seed = rand::random();
        let core = &self.control.cores[entry.core];
        let added = core
            .ask(|reply| Command::AddLeg { key, rtp, role, local_address, local_port, seed, reply })
            .await?;
        let port = added.map_err(|error| match error {
            LegError::NoSession => Status::not_found(format!("no session {id}")),
            LegError::Taken => Status::already_exists(error.to_string()),
            LegError::Port(error) => error.into(),
        })?;
        tracing::info!(session_id = id, port, ?role, "second leg added");
        let local_address = config.rtp_public.to_string();
        let dtls_fingerprint = self.control.fingerprint();
        Ok(proto::AddLegResponse { local_address, local_port: port.into(), dtls_fingerprint })
    }

    async fn update_leg(&self, request: proto::UpdateLegRequest) -> Result<proto::UpdateLegResponse, Status> {
        let role = contract::role(request.role(), request.caller_rings);
        let proto::UpdateLegRequest { session_id: id, rtp, .. } = request;
        let rtp = match rtp {
            Some(rtp) => Some(contract::rtp(Some(rtp))?.0),
            None => None,
        };
        if let Some(rtp) = &rtp {
            check_family(&self.control, rtp)?;
        }
        let (entry, key) = self.find(&id)?;
        let core = &self.control.cores[entry.core];
        match core.ask(|reply| Command::UpdateLeg { key, rtp, role, reply }).await? {
            true => Ok(proto::UpdateLegResponse {}),
            false => Err(Status::not_found(format!("no second leg in session {id}"))),
        }
    }

    async fn remove_leg(&self, request: proto::RemoveLegRequest) -> Result<proto::RemoveLegResponse, Status> {
        let proto::RemoveLegRequest { session_id: id } = request;
        let (entry, key) = self.find(&id)?;
        let removed = self.control.cores[entry.core].ask(|reply| Command::RemoveLeg { key, reply }).await?;
        let stats = removed.ok_or_else(|| Status::not_found(format!("no second leg in session {id}")))?;
        lock(&entry.joined).take();
        tracing::info!(session_id = id, "second leg removed");
        Ok(proto::RemoveLegResponse { stats: Some(contract::stats(&stats)) })
    }

    async fn join(&self, request: proto::JoinSessionsRequest) -> Result<proto::JoinSessionsResponse, Status> {
        let role = contract::role(request.role(), false).unwrap_or(Role::Bridge);
        let proto::JoinSessionsRequest { session_id: id, other_session_id: other, .. } = request;
        if id == other {
            return Err(Status::invalid_argument("other_session_id: is the session itself"));
        }
        let (entry, key) = self.find(&id)?;
        let stays = Half { id, entry, key };
        let ends = match self.find(&other) {
            Ok((entry, key)) => Half { id: other, entry, key },
            // The answer to the first request was lost.
            Err(_) if lock(&stays.entry.joined).as_deref() == Some(&*other) => {
                return Ok(proto::JoinSessionsResponse { stats: None });
            }
            Err(status) => return Err(status),
        };
        let control = Arc::clone(&self.control);
        // In a task of its own: a caller that goes away in the middle must not leave a leg between two cores.
        let joined = tokio::spawn(async move { joining::join(&control, &stays, &ends, role).await });
        let stats = joined.await.map_err(|error| Status::internal(error.to_string()))??;
        Ok(proto::JoinSessionsResponse { stats: stats.as_ref().map(contract::stats) })
    }

    async fn answer_upgrade(
        &self,
        request: proto::AnswerUpgradeRequest,
    ) -> Result<proto::AnswerUpgradeResponse, Status> {
        use proto::answer_upgrade_request::Answer;
        let upgrades = &self.control.upgrades;
        let proto::AnswerUpgradeRequest { upgrade_id: upgrade, answer } = request;
        match answer {
            None => return Err(Status::invalid_argument("answer: is missing")),
            Some(Answer::Refuse(refusal)) => {
                if !upgrades.refuse(&upgrade, Refusal::from_proto(refusal)?) {
                    return Err(no_upgrade(&upgrade));
                }
            }
            Some(Answer::SessionId(id)) => {
                let Ok((entry, key)) = self.find(&id) else {
                    return match upgrades.refuse(&upgrade, Refusal::gone()) {
                        true => Err(Status::not_found(format!("no session {id}"))),
                        false => Err(no_upgrade(&upgrade)),
                    };
                };
                let taken = upgrades.take(&upgrade).await;
                let (incoming, mut otherwise) = taken.ok_or_else(|| no_upgrade(&upgrade))?;
                let core = &self.control.cores[entry.core];
                let taken = core.ask(|reply| Command::Retake { key, incoming, reply }).await?;
                taken.map_err(|error| match error {
                    RetakeError::NoSession => {
                        otherwise.because(Refusal::gone());
                        Status::not_found(format!("no session {id}"))
                    }
                    RetakeError::Up => {
                        otherwise.because(Refusal::conflict());
                        Status::failed_precondition(error.to_string())
                    }
                    RetakeError::Full => Status::resource_exhausted(error.to_string()),
                })?;
                upgrades.count_retaken(otherwise.provider());
                tracing::info!(session_id = id, "another connection of the provider's");
            }
        }
        Ok(proto::AnswerUpgradeResponse {})
    }

    /// One command of a stream.
    async fn perform(&self, request: proto::CommandRequest) -> proto::CommandResponse {
        use proto::command_request::Command as Given;
        use proto::command_response::Outcome;
        let done = match request.command {
            Some(Given::Open(open)) => self.open(open).await.map(Outcome::Opened),
            Some(Given::Start(start)) => self.start(start).await.map(Outcome::Started),
            Some(Given::Update(update)) => self.update(update).await.map(Outcome::Updated),
            Some(Given::Tell(tell)) => self.tell(tell).await.map(Outcome::Told),
            Some(Given::Close(close)) => self.close(close).await.map(Outcome::Closed),
            Some(Given::AddLeg(add)) => self.add_leg(add).await.map(Outcome::LegAdded),
            Some(Given::UpdateLeg(update)) => self.update_leg(update).await.map(Outcome::LegUpdated),
            Some(Given::RemoveLeg(remove)) => self.remove_leg(remove).await.map(Outcome::LegRemoved),
            Some(Given::Join(join)) => self.join(join).await.map(Outcome::Joined),
            Some(Given::AnswerUpgrade(answer)) => {
                self.answer_upgrade(answer).await.map(Outcome::UpgradeAnswered)
            }
            None => Err(Status::unimplemented("a command that this engine does not know")),
        };
        let refused = |status: Status| {
            let (code, message) = (status.code() as u32, status.message().to_owned());
            Outcome::Refused(proto::CommandRefusal { code, message })
        };
        let outcome = Some(done.unwrap_or_else(refused));
        proto::CommandResponse { number: request.number, outcome }
    }
}

/// Carries out what comes on one stream, side by side, until it ends or nobody wants the answers any more.
async fn carry_out(
    service: Service,
    mut commands: Streaming<proto::CommandRequest>,
    answers: mpsc::Sender<Result<proto::CommandResponse, Status>>,
) {
    let places = Arc::new(Semaphore::new(STREAM_COMMANDS_MAX));
    while let Ok(Some(request)) = commands.message().await {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (service, answers) = (service.clone(), answers.clone());
        tokio::spawn(async move {
            // Its sender may be gone; the command is carried out all the same, as a lost answer would be.
            let _ = answers.send(Ok(service.perform(request).await)).await;
            drop(place);
        });
    }
}

#[tonic::async_trait]
impl EngineService for Service {
    type EventsStream = EventStream;
    type StatisticsStream = StatisticsStream;
    type CommandsStream = ReceiverStream<Result<proto::CommandResponse, Status>>;

    async fn describe(
        &self,
        _: Request<proto::DescribeRequest>,
    ) -> Result<Response<proto::DescribeResponse>, Status> {
        Ok(Response::new(self.control.describe()))
    }

    async fn open_session(
        &self,
        request: Request<proto::OpenSessionRequest>,
    ) -> Result<Response<proto::OpenSessionResponse>, Status> {
        self.open(request.into_inner()).await.map(Response::new)
    }

    async fn start_session(
        &self,
        request: Request<proto::StartSessionRequest>,
    ) -> Result<Response<proto::StartSessionResponse>, Status> {
        self.start(request.into_inner()).await.map(Response::new)
    }

    async fn tell_agent(
        &self,
        request: Request<proto::TellAgentRequest>,
    ) -> Result<Response<proto::TellAgentResponse>, Status> {
        self.tell(request.into_inner()).await.map(Response::new)
    }

    async fn update_session(
        &self,
        request: Request<proto::UpdateSessionRequest>,
    ) -> Result<Response<proto::UpdateSessionResponse>, Status> {
        self.update(request.into_inner()).await.map(Response::new)
    }

    async fn close_session(
        &self,
        request: Request<proto::CloseSessionRequest>,
    ) -> Result<Response<proto::CloseSessionResponse>, Status> {
        self.close(request.into_inner()).await.map(Response::new)
    }

    async fn add_leg(
        &self,
        request: Request<proto::AddLegRequest>,
    ) -> Result<Response<proto::AddLegResponse>, Status> {
        Service::add_leg(self, request.into_inner()).await.map(Response::new)
    }

    async fn update_leg(
        &self,
        request: Request<proto::UpdateLegRequest>,
    ) -> Result<Response<proto::UpdateLegResponse>, Status> {
        Service::update_leg(self, request.into_inner()).await.map(Response::new)
    }

    async fn remove_leg(
        &self,
        request: Request<proto::RemoveLegRequest>,
    ) -> Result<Response<proto::RemoveLegResponse>, Status> {
        Service::remove_leg(self, request.into_inner()).await.map(Response::new)
    }

    async fn join_sessions(
        &self,
        request: Request<proto::JoinSessionsRequest>,
    ) -> Result<Response<proto::JoinSessionsResponse>, Status> {
        self.join(request.into_inner()).await.map(Response::new)
    }

    async fn commands(
        &self,
        request: Request<Streaming<proto::CommandRequest>>,
    ) -> Result<Response<Self::CommandsStream>, Status> {
        let (answers, stream) = mpsc::channel(STREAM_COMMANDS_MAX);
        tokio::spawn(carry_out(self.clone(), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn list_sessions(
        &self,
        _: Request<proto::ListSessionsRequest>,
    ) -> Result<Response<proto::ListSessionsResponse>, Status> {
        Ok(Response::new(proto::ListSessionsResponse {
            instance_id: self.control.instance_id.clone(),
            sessions: self.control.list().await?,
        }))
    }

    async fn events(&self, request: Request<proto::EventsRequest>) -> Result<Response<EventStream>, Status> {
        let controller_id = request.into_inner().controller_id;
        Ok(Response::new(events::subscribe(Arc::clone(&self.control), controller_id).await?))
    }

    async fn statistics(
        &self,
        request: Request<proto::StatisticsRequest>,
    ) -> Result<Response<StatisticsStream>, Status> {
        Ok(Response::new(statistics::watch(Arc::clone(&self.control), request.into_inner())?))
    }

    async fn answer_upgrade(
        &self,
        request: Request<proto::AnswerUpgradeRequest>,
    ) -> Result<Response<proto::AnswerUpgradeResponse>, Status> {
        Service::answer_upgrade(self, request.into_inner()).await.map(Response::new)
    }

    async fn drain(&self, _: Request<proto::DrainRequest>) -> Result<Response<proto::DrainResponse>, Status> {
        self.control.drain();
        Ok(Response::new(proto::DrainResponse { sessions: self.control.sessions() as u32 }))
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use tonic::Code;

    use super::super::tests::{Worker, control, on_runtime};
    use super::super::upgrades;
    use super::*;

    fn request(id: &str) -> proto::OpenSessionRequest {
        let echo = proto::agent::Target::Echo(proto::EchoAgent {});
        proto::OpenSessionRequest {
            session_id: id.to_owned(),
            rtp: Some(proto::RtpParameters::default()),
            agent: Some(proto::Agent { target: Some(echo), ..Default::default() }),
            ..Default::default()
        }
    }

    fn poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn close_waits_for_a_session_that_is_being_opened() {
        on_runtime(async {
            let (control, mut workers) = control(1);
            let Worker { queue, .. } = &mut workers[0];
            let checked = check(&control, request("a")).unwrap();
            let mut opening = std::pin::pin!(open(Arc::clone(&control), checked));
            assert!(poll(&mut opening).is_pending());
            let mut closing = std::pin::pin!(opened_to_close(&control, "a"));
            assert!(poll(&mut closing).is_pending());

            let Ok(Command::Open { reply, .. }) = queue.pop() else { panic!("an Open") };
            let key = SessionKey { index: 3, generation: 1 };
            reply.send(Ok(Opened { key, port: 20_000, agent_ready: true })).unwrap();
            assert!(matches!(poll(&mut opening), Poll::Ready(Ok(_))));
            let Poll::Ready(Ok((_, found))) = poll(&mut closing) else { panic!("a key") };
            assert_eq!(found, key);
        });
    }

    #[test]
    fn session_that_was_closed_before_its_core_was_asked_is_never_opened() {
        on_runtime(async {
            let (control, mut workers) = control(1);
            let entry = control.reserve("a", 0);
            assert_eq!(opened_to_close(&control, "a").await.unwrap_err().code(), Code::NotFound);
            assert_eq!(control.sessions(), 0);
            // The request that had reserved it comes to its turn now.
            let opened = open_once(&control, &entry, check(&control, request("a")).unwrap()).await;
            assert_eq!(opened.unwrap_err().code(), Code::Aborted);
            assert!(workers[0].queue.pop().is_err());
        });
    }

    #[test]
    fn a_connection_does_not_wait_for_the_name_of_its_agent() {
        on_runtime(async {
            let (control, _workers) = control(1);
            let (id, mut answer) = upgrades::park(&control.upgrades);
            let agent = proto::WebSocketAgent { url: "ws://agent.invalid/".into(), ..Default::default() };
            let target = proto::agent::Target::Websocket(agent);
            let request = proto::OpenSessionRequest {
                rtp: None,
                stream: Some(proto::StreamLeg { upgrade_id: id, ..Default::default() }),
                agent: Some(proto::Agent { target: Some(target), ..Default::default() }),
                ..request("a")
            };
            let mut opening = std::pin::pin!(prepare(&control, check(&control, request).unwrap()));
            assert!(poll(&mut opening).is_pending());
            assert!(answer.try_recv().is_ok(), "it is taken before the name is looked up");
        });
    }

    #[test]
    fn session_that_was_refused_is_forgotten() {
        on_runtime(async {
            let (control, mut workers) = control(1);
            let checked = check(&control, request("a")).unwrap();
            let mut opening = std::pin::pin!(open(Arc::clone(&control), checked));
            assert!(poll(&mut opening).is_pending());
            let Ok(Command::Open { reply, .. }) = workers[0].queue.pop() else { panic!("an Open") };
            reply.send(Err(OpenError::SessionsFull(1))).unwrap();
            let Poll::Ready(Err(status)) = poll(&mut opening) else { panic!("refused") };
            assert_eq!((status.code(), control.sessions()), (Code::ResourceExhausted, 0));
        });
    }
}
