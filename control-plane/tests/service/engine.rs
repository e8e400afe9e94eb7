//! A media engine of engine.proto without media.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tandem_api::engine::v1 as api;
use tandem_api::engine::v1::engine_service_server::{EngineService, EngineServiceServer};
use tandem_api::engine::v1::event::Event as Body;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

/// One engine; clones are the same.
#[derive(Clone)]
pub(crate) struct Engine {
    state: Arc<State>,
}

struct State {
    instance_id: String,
    agent_ready: Mutex<bool>,
    sessions: Mutex<HashMap<String, Session>>,
    /// Commands by name, in order, with their session.
    commands: Mutex<Vec<(String, String)>>,
    leased: Mutex<Vec<u32>>,
    events: broadcast::Sender<api::Event>,
}

struct Session {
    request: api::OpenSessionRequest,
    _rtp: UdpSocket,
}

/// A served engine on a runtime of its own: dropped, its connections die as those of a killed process.
pub(crate) struct Served {
    pub(crate) engine: Engine,
    pub(crate) address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Served {
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Engine {
    /// Serves a new instance at this address; port 0 lets the system choose.
    pub(crate) async fn serve(address: SocketAddr) -> Served {
        let (events, _) = broadcast::channel(64);
        let state = State {
            instance_id: uuid::Uuid::new_v4().to_string(),
            agent_ready: Mutex::new(true),
            sessions: Mutex::default(),
            commands: Mutex::default(),
            leased: Mutex::default(),
            events,
        };
        let engine = Self { state: Arc::new(state) };
        let listener = loop {
            // The port of an engine that was just killed may stay busy for a moment.
            match std::net::TcpListener::bind(address) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let service = EngineServiceServer::new(engine.clone());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            let server = tonic::transport::Server::builder().add_service(service);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Served { engine, address, runtime: Some(runtime) }
    }

    /// Whether agents are there when the session is opened.
    pub(crate) fn set_agent_ready(&self, ready: bool) {
        *self.state.agent_ready.lock().unwrap() = ready;
    }

    /// Tells the controller something about a session.
    pub(crate) fn tell(&self, session_id: &str, body: Body) {
        let event = api::Event { sequence: 0, session_id: session_id.to_owned(), event: Some(body) };
        self.state.events.send(event).unwrap();
    }

    /// The sessions alive.
    pub(crate) fn sessions(&self) -> Vec<String> {
        self.state.sessions.lock().unwrap().keys().cloned().collect()
    }

    /// The ports that sessions were to have, in the order in which they were opened; 0: any.
    pub(crate) fn leased(&self) -> Vec<u32> {
        self.state.leased.lock().unwrap().clone()
    }

    /// What was asked for a session.
    pub(crate) fn request(&self, session_id: &str) -> api::OpenSessionRequest {
        self.state.sessions.lock().unwrap()[session_id].request.clone()
    }

    /// All commands so far, by name.
    pub(crate) fn commands(&self) -> Vec<String> {
        self.state.commands.lock().unwrap().iter().map(|(name, _)| name.clone()).collect()
    }

    fn note(&self, name: &str, session_id: &str) {
        self.state.commands.lock().unwrap().push((name.to_owned(), session_id.to_owned()));
    }

    fn check(&self, session_id: &str) -> Result<(), Status> {
        match self.state.sessions.lock().unwrap().contains_key(session_id) {
            true => Ok(()),
            false => Err(Status::not_found("session")),
        }
    }

    async fn answer(&self, request: api::CommandRequest) -> api::CommandResponse {
        use api::command_request::Command;
        use api::command_response::Outcome;
        let done = match request.command.unwrap() {
            Command::Open(given) => {
                self.open_session(Request::new(given)).await.map(|done| Outcome::Opened(done.into_inner()))
            }
            Command::Start(given) => {
                self.start_session(Request::new(given)).await.map(|done| Outcome::Started(done.into_inner()))
            }
            Command::Update(given) => {
                self.update_session(Request::new(given)).await.map(|done| Outcome::Updated(done.into_inner()))
            }
            Command::Tell(given) => {
                self.tell_agent(Request::new(given)).await.map(|done| Outcome::Told(done.into_inner()))
            }
            Command::Close(given) => {
                self.close_session(Request::new(given)).await.map(|done| Outcome::Closed(done.into_inner()))
            }
            Command::Join(given) => {
                self.join_sessions(Request::new(given)).await.map(|done| Outcome::Joined(done.into_inner()))
            }
            _ => Err(Status::unimplemented("a second leg")),
        };
        let outcome = done.unwrap_or_else(|status| {
            Outcome::Refused(api::CommandRefusal {
                code: status.code() as u32,
                message: status.message().to_owned(),
            })
        });
        api::CommandResponse { number: request.number, outcome: Some(outcome) }
    }

    fn summaries(&self) -> Vec<api::SessionSummary> {
        let ids = self.sessions().into_iter();
        ids.map(|session_id| api::SessionSummary { session_id, ..Default::default() }).collect()
    }
}

#[tonic::async_trait]
impl EngineService for Engine {
    async fn describe(
        &self,
        _: Request<api::DescribeRequest>,
    ) -> Result<Response<api::DescribeResponse>, Status> {
        Ok(Response::new(api::DescribeResponse {
            instance_id: self.state.instance_id.clone(),
            ..Default::default()
        }))
    }

    async fn open_session(
        &self,
        request: Request<api::OpenSessionRequest>,
    ) -> Result<Response<api::OpenSessionResponse>, Status> {
        let request = request.into_inner();
        let rtp = UdpSocket::bind("127.0.0.1:0").await?;
        let local_port = rtp.local_addr()?.port().into();
        self.note("open", &request.session_id);
        let wanted = request.rtp.as_ref().map(|rtp| rtp.local_port).unwrap_or_default();
        self.state.leased.lock().unwrap().push(wanted);
        let session = Session { request: request.clone(), _rtp: rtp };
        self.state.sessions.lock().unwrap().insert(request.session_id, session);
        Ok(Response::new(api::OpenSessionResponse {
            instance_id: self.state.instance_id.clone(),
            local_address: "127.0.0.1".to_owned(),
            local_port,
            core: 0,
            agent_ready: *self.state.agent_ready.lock().unwrap(),
            dtls_fingerprint: vec![0xAB; 32],
        }))
    }

    async fn start_session(
        &self,
        request: Request<api::StartSessionRequest>,
    ) -> Result<Response<api::StartSessionResponse>, Status> {
        let session_id = request.into_inner().session_id;
        self.check(&session_id)?;
        self.note("start", &session_id);
        Ok(Response::new(api::StartSessionResponse {}))
    }

    async fn tell_agent(
        &self,
        request: Request<api::TellAgentRequest>,
    ) -> Result<Response<api::TellAgentResponse>, Status> {
        let session_id = request.into_inner().session_id;
        self.check(&session_id)?;
        self.note("tell", &session_id);
        Ok(Response::new(api::TellAgentResponse {}))
    }

    async fn update_session(
        &self,
        request: Request<api::UpdateSessionRequest>,
    ) -> Result<Response<api::UpdateSessionResponse>, Status> {
        let session_id = request.into_inner().session_id;
        self.check(&session_id)?;
        self.note("update", &session_id);
        Ok(Response::new(api::UpdateSessionResponse {}))
    }

    async fn close_session(
        &self,
        request: Request<api::CloseSessionRequest>,
    ) -> Result<Response<api::CloseSessionResponse>, Status> {
        let session_id = request.into_inner().session_id;
        self.note("close", &session_id);
        let Some(_) = self.state.sessions.lock().unwrap().remove(&session_id) else {
            return Err(Status::not_found("session"));
        };
        let stats = api::SessionStats { rtp_sent: 50, rtp_received: 49, rtp_lost: 1, ..Default::default() };
        Ok(Response::new(api::CloseSessionResponse { stats: Some(stats) }))
    }

    async fn add_leg(&self, _: Request<api::AddLegRequest>) -> Result<Response<api::AddLegResponse>, Status> {
        Err(Status::unimplemented("a second leg"))
    }

    async fn update_leg(
        &self,
        _: Request<api::UpdateLegRequest>,
    ) -> Result<Response<api::UpdateLegResponse>, Status> {
        Err(Status::unimplemented("a second leg"))
    }

    async fn remove_leg(
        &self,
        _: Request<api::RemoveLegRequest>,
    ) -> Result<Response<api::RemoveLegResponse>, Status> {
        Err(Status::unimplemented("a second leg"))
    }

    async fn join_sessions(
        &self,
        request: Request<api::JoinSessionsRequest>,
    ) -> Result<Response<api::JoinSessionsResponse>, Status> {
        let api::JoinSessionsRequest { session_id, other_session_id, .. } = request.into_inner();
        self.check(&session_id)?;
        self.note("join", &session_id);
        let Some(_) = self.state.sessions.lock().unwrap().remove(&other_session_id) else {
            return Err(Status::not_found("session"));
        };
        let stats = Some(api::SessionStats { rtp_sent: 30, ..Default::default() });
        let ended = api::SessionEnded {
            reason: api::session_ended::Reason::Joined.into(),
            stats,
            joined_session_id: session_id,
            ..Default::default()
        };
        self.tell(&other_session_id, Body::SessionEnded(ended));
        Ok(Response::new(api::JoinSessionsResponse { stats }))
    }

    type CommandsStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<api::CommandResponse, Status>> + Send>>;

    async fn commands(
        &self,
        request: Request<tonic::Streaming<api::CommandRequest>>,
    ) -> Result<Response<Self::CommandsStream>, Status> {
        let (out, stream) = mpsc::channel(64);
        let (engine, mut commands) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Ok(Some(request)) = commands.message().await {
                if out.send(Ok(engine.answer(request).await)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn list_sessions(
        &self,
        _: Request<api::ListSessionsRequest>,
    ) -> Result<Response<api::ListSessionsResponse>, Status> {
        Ok(Response::new(api::ListSessionsResponse {
            instance_id: self.state.instance_id.clone(),
            sessions: self.summaries(),
        }))
    }

    type StatisticsStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<api::StatisticsResponse, Status>> + Send>>;

    async fn statistics(
        &self,
        _: Request<api::StatisticsRequest>,
    ) -> Result<Response<Self::StatisticsStream>, Status> {
        Err(Status::unimplemented("nobody watches this engine"))
    }

    type EventsStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<api::Event, Status>> + Send>>;

    async fn events(&self, _: Request<api::EventsRequest>) -> Result<Response<Self::EventsStream>, Status> {
        let (out, stream) = mpsc::channel(64);
        let mut events = self.state.events.subscribe();
        let snapshot = api::Snapshot {
            instance_id: self.state.instance_id.clone(),
            sessions: self.summaries(),
            engine: Some(api::DescribeResponse {
                ws_address: "127.0.0.1:8090".to_owned(),
                audiosocket_address: "127.0.0.1:9093".to_owned(),
                rtp_port_min: 20_000,
                rtp_port_max: 20_999,
                cores: vec![api::CoreLoad::default()],
                ..Default::default()
            }),
        };
        let first = api::Event { event: Some(Body::Snapshot(snapshot)), ..Default::default() };
        tokio::spawn(async move {
            let _ = out.send(Ok(first)).await;
            let mut heartbeat = tokio::time::interval(std::time::Duration::from_secs(1));
            loop {
                let event = tokio::select! {
                    event = events.recv() => event.unwrap(),
                    _ = heartbeat.tick() => {
                        let body = Body::Heartbeat(api::Heartbeat::default());
                        api::Event { event: Some(body), ..Default::default() }
                    }
                };
                if out.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn answer_upgrade(
        &self,
        _: Request<api::AnswerUpgradeRequest>,
    ) -> Result<Response<api::AnswerUpgradeResponse>, Status> {
        Err(Status::unimplemented("this engine has no provider media"))
    }

    async fn drain(&self, _: Request<api::DrainRequest>) -> Result<Response<api::DrainResponse>, Status> {
        Ok(Response::new(api::DrainResponse::default()))
    }
}
