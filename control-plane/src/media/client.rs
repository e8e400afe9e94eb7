//! gRPC to one engine: commands, and the event stream with its reconnect.
//!
//! ```text
//!   call/driver ──perform(command)──▶ commands: one stream, COMMAND_TIMEOUT ──▶ EngineReply
//!   run(): connect ─▶ Events ─▶ Snapshot = News::Up ─▶ events … silence or error = News::Down ─▶ again
//! ```
//!
//! After each connect the Snapshot says what is alive, so no event needs to be replayed.

use std::error::Error as _;
use std::time::Duration;

use tandem_api::engine::v1 as engine;
use tandem_api::engine::v1::command_request::Command;
use tandem_api::engine::v1::command_response::Outcome;
use tandem_api::engine::v1::engine_service_client::EngineServiceClient;
use tandem_api::engine::v1::event::Event as Body;
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use uuid::Uuid;

use super::commands::{COMMAND_TIMEOUT, Commands};
use super::{Addresses, EngineId, Listed, ListedStream, News, SessionEvent, StreamEnd, Upgrade};
use crate::call::action::{EngineCommand, EngineRefusal, EngineReply, UpgradeAnswer};
use crate::store::contexts::Claim;

/// An engine sends a heartbeat each second: three missing are a dead stream.
pub const HEARTBEAT_SILENCE_MAX: Duration = Duration::from_secs(3);
/// How long a TCP connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two attempts to get the event stream: short, since callers wait for an engine that restarts.
const RECONNECT_AFTER: Duration = Duration::from_millis(250);

/// How an engine names the field that holds where the caller wants its RTP.
const ADDRESS_FIELD: &str = "rtp.remote_address";

/// One engine. Cheap to clone: clones share the connection.
#[derive(Debug, Clone)]
pub struct EngineClient {
    id: EngineId,
    url: String,
    client: EngineServiceClient<Channel>,
    commands: Commands,
}

/// The address of an engine is no URL.
#[derive(Debug, thiserror::Error)]
#[error("engine address {url} is not a URL: {source}")]
pub struct AddressError {
    url: String,
    source: tonic::transport::Error,
}

impl EngineClient {
    /// A client; the connection is made with the first use.
    pub fn new(id: EngineId, url: &str) -> Result<Self, AddressError> {
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|source| AddressError { url: url.to_owned(), source })?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true);
        let client = EngineServiceClient::new(endpoint.connect_lazy());
        let commands = Commands::new(client.clone());
        Ok(Self { id, url: url.to_owned(), client, commands })
    }

    /// Which engine it is.
    pub fn id(&self) -> EngineId {
        self.id
    }

    /// Where it is.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Performs one command and gives what the engine said to it.
    pub async fn perform(&self, call_id: Uuid, command: EngineCommand) -> EngineReply {
        let session_id = call_id.to_string();
        match command {
            EngineCommand::Open(request) => EngineReply::Opened(
                self.ask(Command::Open(*request), |outcome| match outcome {
                    Outcome::Opened(opened) => Some(Box::new(opened)),
                    _ => None,
                })
                .await,
            ),
            EngineCommand::Start | EngineCommand::Listen => {
                let early = command == EngineCommand::Listen;
                let request = engine::StartSessionRequest { session_id, early };
                EngineReply::Started(self.ask(Command::Start(request), |_| Some(())).await)
            }
            EngineCommand::Tell(what) => {
                let request = engine::TellAgentRequest { session_id, what: Some(*what) };
                EngineReply::Told(self.ask(Command::Tell(request), |_| Some(())).await)
            }
            EngineCommand::Update(rtp) => {
                let request = engine::UpdateSessionRequest { session_id, rtp: Some(*rtp) };
                EngineReply::Updated(self.ask(Command::Update(request), |_| Some(())).await)
            }
            EngineCommand::AddLeg(request) => EngineReply::LegAdded(
                self.ask(Command::AddLeg(engine::AddLegRequest { session_id, ..*request }), |outcome| {
                    match outcome {
                        Outcome::LegAdded(added) => Some(Box::new(added)),
                        _ => None,
                    }
                })
                .await,
            ),
            EngineCommand::UpdateLeg(request) => {
                let request = engine::UpdateLegRequest { session_id, ..*request };
                EngineReply::LegUpdated(self.ask(Command::UpdateLeg(request), |_| Some(())).await)
            }
            EngineCommand::RemoveLeg => {
                let request = engine::RemoveLegRequest { session_id };
                EngineReply::LegRemoved(
                    self.ask(Command::RemoveLeg(request), |outcome| match outcome {
                        Outcome::LegRemoved(removed) => Some(Box::new(removed.stats.unwrap_or_default())),
                        _ => None,
                    })
                    .await,
                )
            }
            EngineCommand::Join { other, role } => {
                let other_session_id = other.to_string();
                let request = engine::JoinSessionsRequest { session_id, other_session_id, role: role.into() };
                let joined = self.ask(Command::Join(request), |outcome| match outcome {
                    Outcome::Joined(joined) => Some(Box::new(joined.stats.unwrap_or_default())),
                    _ => None,
                });
                EngineReply::Joined(other, joined.await)
            }
            EngineCommand::Close { reason } => {
                let request = engine::CloseSessionRequest { session_id, reason: reason.to_owned() };
                EngineReply::Closed(
                    self.ask(Command::Close(request), |outcome| match outcome {
                        Outcome::Closed(closed) => Some(Box::new(closed.stats.unwrap_or_default())),
                        _ => None,
                    })
                    .await,
                )
            }
        }
    }

    /// Says what becomes of a media connection. One that has gone meanwhile is no matter.
    pub async fn answer_upgrade(&self, upgrade_id: String, answer: UpgradeAnswer) {
        use engine::answer_upgrade_request::Answer;
        let answer = match answer {
            UpgradeAnswer::Refuse { status, reason, retry_after_s } => {
                Answer::Refuse(engine::UpgradeRefusal { status: status.into(), reason, retry_after_s })
            }
            UpgradeAnswer::Retake(call_id) => Answer::SessionId(call_id.to_string()),
        };
        let request = engine::AnswerUpgradeRequest { upgrade_id, answer: Some(answer) };
        if let Err(error) = self.ask(Command::AnswerUpgrade(request), |_| Some(())).await {
            tracing::debug!(engine = %self.url, ?error, "a media connection was not answered");
        }
    }

    async fn ask<T>(
        &self,
        command: Command,
        read: impl FnOnce(Outcome) -> Option<T>,
    ) -> Result<T, EngineRefusal> {
        let outcome = self.commands.perform(command).await.map_err(|status| refusal(&status))?;
        read(outcome).ok_or_else(|| EngineRefusal::Invalid("an answer to another command".to_owned()))
    }

    /// Holds the event stream for ever and tells what it says. Ends when nobody listens.
    pub async fn run(self, controller_id: String, news: mpsc::Sender<(EngineId, News)>) {
        let mut is_first_failure = true;
        while !news.is_closed() {
            match self.follow(&controller_id, &news).await {
                Ok(()) => is_first_failure = true,
                Err(status) => {
                    // One line an outage, not four a second.
                    if std::mem::take(&mut is_first_failure) {
                        tracing::warn!(engine = %self.url, error = %status.message(), "no media engine answers");
                    }
                }
            }
            tokio::time::sleep(RECONNECT_AFTER).await;
        }
    }

    /// One life of the stream. `Err`: it never came up.
    async fn follow(&self, controller_id: &str, news: &mpsc::Sender<(EngineId, News)>) -> Result<(), Status> {
        let mut client = self.client.clone();
        let request = engine::EventsRequest { controller_id: controller_id.to_owned() };
        let late = |_| Status::deadline_exceeded("no event stream in time");
        let mut stream =
            tokio::time::timeout(COMMAND_TIMEOUT, client.events(request)).await.map_err(late)??.into_inner();
        let mut is_up = false;
        let ended = loop {
            let event = match tokio::time::timeout(HEARTBEAT_SILENCE_MAX, stream.message()).await {
                Err(_) => break Status::deadline_exceeded("the event stream is silent"),
                Ok(Err(status)) => break status,
                Ok(Ok(None)) => break Status::unavailable("the event stream has ended"),
                Ok(Ok(Some(event))) => event,
            };
            let Some(news_item) = read(event) else { continue };
            if let News::Up { instance_id, sessions, .. } = &news_item {
                is_up = true;
                tracing::info!(engine = %self.url, %instance_id, sessions = sessions.len(), "media engine is up");
            }
            if news.send((self.id, news_item)).await.is_err() {
                return Ok(());
            }
        };
        if !is_up {
            return Err(ended);
        }
        tracing::warn!(engine = %self.url, error = %ended.message(), "media engine is gone");
        // Nobody listens: we are going down.
        let _ = news.send((self.id, News::Down)).await;
        Ok(())
    }
}

fn refusal(status: &Status) -> EngineRefusal {
    let message = status.message().to_owned();
    match status.code() {
        // Made up on this side: the connection broke, before or after the engine did it.
        _ if status.source().is_some() => EngineRefusal::Unreachable(message),
        Code::DeadlineExceeded | Code::Cancelled => EngineRefusal::Unreachable(message),
        // Of the engine itself: it drains, or the core has no room for a command.
        Code::ResourceExhausted | Code::Unavailable => EngineRefusal::Full(message),
        Code::NotFound => EngineRefusal::Gone,
        Code::InvalidArgument if message.starts_with(ADDRESS_FIELD) => EngineRefusal::Address(message),
        _ => EngineRefusal::Invalid(message),
    }
}

/// An event in our words; `None` for what we do not know (a newer engine) or whose session is no UUID.
pub fn read(event: engine::Event) -> Option<News> {
    let session_event = match event.event? {
        Body::Snapshot(snapshot) => {
            let sessions = snapshot.sessions.into_iter().filter_map(|session| {
                let engine::SessionSummary { agent_ready, agent_gone, agent_hangup, .. } = session;
                let port = u16::try_from(session.local_port).unwrap_or_default();
                let stream = (!session.stream.is_empty()).then(|| ListedStream {
                    is_dropped: session.stream == "dropped",
                    provider_call_id: session.provider_call_id,
                    codec: session.stream_codec,
                });
                let listed = Listed { agent_ready, agent_gone, agent_hangup, port, stream };
                Some((session.session_id.parse().ok()?, listed))
            });
            let engine = snapshot.engine.unwrap_or_default();
            let port = |port: u32| u16::try_from(port).unwrap_or_default();
            return Some(News::Up {
                instance_id: snapshot.instance_id,
                sessions: sessions.collect(),
                addresses: Addresses {
                    ws: engine.ws_address,
                    is_ws_secure: engine.ws_secure,
                    audiosocket: engine.audiosocket_address,
                    rtp_ports: (port(engine.rtp_port_min), port(engine.rtp_port_max)),
                    cores: engine.cores.len(),
                },
            });
        }
        Body::Heartbeat(heartbeat) => {
            let sessions = heartbeat.cores.iter().map(|core| core.sessions).sum();
            return Some(News::Heartbeat { sessions, draining: heartbeat.draining });
        }
        Body::AgentConnected(_) => SessionEvent::AgentConnected,
        Body::AgentFailed(failed) => SessionEvent::AgentFailed { reason: failed.reason },
        Body::AgentHangup(_) => SessionEvent::AgentHangup,
        Body::AgentTransfer(transfer) => {
            SessionEvent::AgentTransfer { mode: transfer.mode(), to: transfer.to }
        }
        Body::AgentAnswer(_) => SessionEvent::AgentAnswer,
        Body::AgentDtmf(dtmf) => SessionEvent::AgentDtmf { digits: dtmf.digits },
        Body::AgentHeaders(set) => SessionEvent::AgentHeaders { headers: set.headers.into_iter().collect() },
        Body::MediaStarted(started) => SessionEvent::MediaStarted { took_ms: started.took_ms },
        Body::DtmfReceived(_) => SessionEvent::Dtmf,
        Body::SessionReport(report) => match (report.stats, report.second_leg) {
            (Some(stats), _) => SessionEvent::Report { stats: Box::new(stats) },
            (None, stats) => SessionEvent::LegReport { stats: Box::new(stats?) },
        },
        Body::MediaUpgrade(upgrade) => {
            let host: std::net::IpAddr = upgrade.remote_address.parse().ok()?;
            return Some(News::Upgrade(Box::new(Upgrade {
                upgrade_id: upgrade.upgrade_id,
                provider: upgrade.provider,
                // What is no UUID is no claim of ours; nil is nobody's.
                claim: Claim(upgrade.context_id.parse().unwrap_or_default()),
                path_and_query: upgrade.path_and_query,
                headers: upgrade.headers,
                source: (host, u16::try_from(upgrade.remote_port).ok()?).into(),
                is_secure: upgrade.secure,
            })));
        }
        Body::StreamStarted(started) => {
            SessionEvent::StreamStarted { provider_call_id: started.provider_call_id, codec: started.codec }
        }
        Body::StreamDropped(dropped) => {
            let how = match dropped.how.as_str() {
                "drop" => StreamEnd::Drop,
                "fault" => StreamEnd::Fault,
                _ => StreamEnd::Stop,
            };
            SessionEvent::StreamDropped { how, leg_may_live: dropped.leg_may_live, reason: dropped.reason }
        }
        Body::LegLost(lost) => SessionEvent::LegLost { reason: lost.reason(), detail: lost.detail },
        Body::Idle(idle) => SessionEvent::Idle { idle_ms: idle.idle_ms },
        Body::SessionEnded(ended) => {
            SessionEvent::Ended { reason: ended.reason(), stats: ended.stats, detail: ended.detail }
        }
    };
    Some(News::Session { session_id: event.session_id.parse().ok()?, event: session_event })
}

#[cfg(test)]
mod tests {
    use tandem_api::engine::v1::session_ended::Reason;

    use super::*;

    #[test]
    fn statuses_say_whether_another_engine_may_help() {
        assert!(matches!(refusal(&Status::resource_exhausted("ports")), EngineRefusal::Full(_)));
        assert!(matches!(refusal(&Status::unavailable("draining")), EngineRefusal::Full(_)));
        assert!(matches!(refusal(&Status::deadline_exceeded("late")), EngineRefusal::Unreachable(_)));
        assert!(matches!(refusal(&Status::invalid_argument("rtp.codec")), EngineRefusal::Invalid(_)));
        assert_eq!(refusal(&Status::not_found("session")), EngineRefusal::Gone);
    }

    #[test]
    fn broken_connection_is_no_word_of_the_engine() {
        let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        let status = Status::from_error(Box::new(broken));
        assert!(matches!(refusal(&status), EngineRefusal::Unreachable(_)), "{status:?}");
    }

    #[test]
    fn address_that_the_engine_cannot_reach_is_told_from_other_faults() {
        let status = Status::invalid_argument("rtp.remote_address: ::1 cannot be reached from 127.0.0.1");
        assert!(matches!(refusal(&status), EngineRefusal::Address(why) if why.contains("::1")));
    }

    #[test]
    fn loss_of_a_second_leg_is_told_with_its_reason() {
        let lost = engine::LegLost { reason: Reason::MediaTimeout.into(), detail: "d".into() };
        let session_id = Uuid::from_u128(7).to_string();
        let event = engine::Event { sequence: 1, session_id, event: Some(Body::LegLost(lost)) };
        let Some(News::Session { event, .. }) = read(event) else { panic!("an event of a session") };
        assert_eq!(event, SessionEvent::LegLost { reason: Reason::MediaTimeout, detail: "d".into() });
    }

    #[test]
    fn snapshot_tells_what_the_events_have_said() {
        let session = |id: u128, change: fn(&mut engine::SessionSummary)| {
            let session_id = Uuid::from_u128(id).to_string();
            let mut summary = engine::SessionSummary { session_id, agent_ready: true, ..Default::default() };
            change(&mut summary);
            summary
        };
        let sessions = vec![
            session(1, |_| {}),
            session(2, |summary| {
                summary.agent_ready = false;
                summary.agent_gone = Some("reset".into());
            }),
            session(3, |summary| summary.agent_hangup = true),
            session(4, |summary| summary.agent_ready = false),
        ];
        let snapshot = engine::Snapshot { instance_id: "i".into(), sessions, engine: None };
        let event = engine::Event { event: Some(Body::Snapshot(snapshot)), ..Default::default() };
        let Some(News::Up { sessions, .. }) = read(event) else { panic!("up") };
        let told = |id: u128| sessions[&Uuid::from_u128(id)].to_event();
        assert_eq!(told(1), Some(SessionEvent::AgentConnected));
        assert_eq!(told(2), Some(SessionEvent::AgentFailed { reason: "reset".into() }));
        assert_eq!(told(3), Some(SessionEvent::AgentHangup));
        assert_eq!(told(4), None);
    }

    #[test]
    fn heartbeat_adds_up_the_cores() {
        let core = |sessions| engine::CoreLoad { sessions, ..Default::default() };
        let heartbeat = engine::Heartbeat { cores: vec![core(3), core(4)], draining: true };
        let event = engine::Event { event: Some(Body::Heartbeat(heartbeat)), ..Default::default() };
        assert_eq!(read(event), Some(News::Heartbeat { sessions: 7, draining: true }));
    }

    #[test]
    fn event_of_a_session_without_a_uuid_is_nobodys() {
        let event = engine::Event {
            session_id: "x".into(),
            event: Some(Body::AgentHangup(engine::AgentHangup::default())),
            ..Default::default()
        };
        assert_eq!(read(event), None);
    }
}
