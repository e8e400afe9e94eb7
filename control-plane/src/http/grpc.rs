//! gRPC: the services of `tandem.v1`.

use axum::extract::ConnectInfo;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use tandem_api::v1 as api;
use tandem_api::v1::call_service_server::{CallService, CallServiceServer};
use tandem_api::v1::conversation_service_server::{ConversationService, ConversationServiceServer};
use tandem_api::v1::talk_service_server::{TalkService, TalkServiceServer};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::listener::Peer;
use super::{ApiError, Shared};
use crate::call::registry::placing::PlaceError;
use crate::store::accounts::Principal;
use crate::store::conversations;

/// Octets of a message id.
const MESSAGE_ID_MAX: usize = 128;

/// The server type of calls, for health.
pub(super) type CallServer = CallServiceServer<Service>;
/// The server type of conversations, for health.
pub(super) type ConversationServer = ConversationServiceServer<Service>;

/// The server type of calls that we place, for health.
pub(super) type TalkServer = TalkServiceServer<Service>;

pub(super) fn talk_server(shared: Shared) -> TalkServer {
    TalkServiceServer::new(Service(shared))
}

pub(super) fn call_server(shared: Shared) -> CallServer {
    CallServiceServer::new(Service(shared))
}

pub(super) fn conversation_server(shared: Shared) -> ConversationServer {
    ConversationServiceServer::new(Service(shared))
}

/// All services: they share everything.
pub(super) struct Service(pub(super) Shared);

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let message = error.to_string();
        match error {
            ApiError::Unauthenticated => Self::unauthenticated(message),
            ApiError::NoCall(_) | ApiError::NotLive(_) | ApiError::NoBulk(_) => Self::not_found(message),
            ApiError::Invalid(_) | ApiError::Fields(_) | ApiError::Place(PlaceError::BulkSize) => {
                Self::invalid_argument(message)
            }
            ApiError::Refused(_) => Self::failed_precondition(message),
            ApiError::Place(PlaceError::Full(_)) => Self::resource_exhausted(message),
            ApiError::Place(PlaceError::OtherRequest(_)) => Self::already_exists(message),
            ApiError::Place(PlaceError::Draining | PlaceError::StoreBehind) => Self::unavailable(message),
            ApiError::Store(error) => {
                tracing::error!(%error, "a request could not be answered");
                Self::unavailable(message)
            }
        }
    }
}

impl Service {
    pub(super) async fn authenticate<T>(&self, request: &Request<T>) -> Result<Principal, Status> {
        let key = request.metadata().get("x-api-key").and_then(|value| value.to_str().ok());
        Ok(self.0.authenticate(key).await?)
    }

    /// Our own processes: by the service token, or, when there is none, by coming from this machine.
    pub(super) fn check_service<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let Some(token) = &self.0.service_token else {
            let peer = request.extensions().get::<ConnectInfo<Peer>>();
            return match peer {
                Some(ConnectInfo(Peer(peer))) if peer.ip().to_canonical().is_loopback() => Ok(()),
                _ => Err(Status::permission_denied(
                    "without TANDEM_SERVICE_TOKEN only processes on this machine may do this",
                )),
            };
        };
        let given = request.metadata().get("x-tandem-service-token").map(|value| value.as_bytes());
        let is_right = given.is_some_and(|given| given.ct_eq(token.expose_secret().as_bytes()).into());
        if is_right {
            return Ok(());
        }
        Err(Status::unauthenticated("x-tandem-service-token is missing or wrong"))
    }
}

#[tonic::async_trait]
impl CallService for Service {
    async fn list_calls(
        &self,
        request: Request<api::ListCallsRequest>,
    ) -> Result<Response<api::ListCallsResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        let request = request.into_inner();
        let page =
            self.0.list_calls(&principal, request.page_size, &request.page_token, request.live_only).await?;
        Ok(Response::new(api::ListCallsResponse { calls: page.calls, next_page_token: page.next }))
    }

    async fn get_call(&self, request: Request<api::GetCallRequest>) -> Result<Response<api::Call>, Status> {
        let principal = self.authenticate(&request).await?;
        Ok(Response::new(self.0.call(&principal, &request.into_inner().call_id).await?))
    }

    async fn hang_up_call(
        &self,
        request: Request<api::HangUpCallRequest>,
    ) -> Result<Response<api::HangUpCallResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        self.0.hang_up(&principal, &request.into_inner().call_id).await?;
        Ok(Response::new(api::HangUpCallResponse {}))
    }

    async fn hold_call(
        &self,
        request: Request<api::HoldCallRequest>,
    ) -> Result<Response<api::HoldCallResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        let api::HoldCallRequest { call_id, resume } = request.into_inner();
        self.0.hold(&principal, &call_id, !resume).await?;
        Ok(Response::new(api::HoldCallResponse {}))
    }

    async fn transfer_call(
        &self,
        request: Request<api::TransferCallRequest>,
    ) -> Result<Response<api::TransferCallResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        let api::TransferCallRequest { call_id, to, to_call_id } = request.into_inner();
        self.0.transfer(&principal, &call_id, &to, &to_call_id).await?;
        Ok(Response::new(api::TransferCallResponse {}))
    }

    async fn join_call(
        &self,
        request: Request<api::JoinCallRequest>,
    ) -> Result<Response<api::JoinCallResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        self.0.join(&principal, request.into_inner()).await?;
        Ok(Response::new(api::JoinCallResponse {}))
    }

    async fn join_calls(
        &self,
        request: Request<api::JoinCallsRequest>,
    ) -> Result<Response<api::JoinCallsResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        self.0.join_calls(&principal, &request.into_inner()).await?;
        Ok(Response::new(api::JoinCallsResponse {}))
    }
}

#[tonic::async_trait]
impl TalkService for Service {
    async fn create_phone_call(
        &self,
        request: Request<api::CreatePhoneCallRequest>,
    ) -> Result<Response<api::CreatePhoneCallResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        let key = request.metadata().get("idempotency-key").and_then(|key| key.to_str().ok());
        let key = key.unwrap_or_default().to_owned();
        let mut request = request.into_inner();
        if request.idempotency_key.is_empty() {
            request.idempotency_key = key;
        }
        let call = self.0.create_call(&principal, &request).await?;
        Ok(Response::new(api::CreatePhoneCallResponse { call: Some(call) }))
    }

    async fn create_bulk_phone_call(
        &self,
        request: Request<api::CreateBulkPhoneCallRequest>,
    ) -> Result<Response<api::CreateBulkPhoneCallResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        let calls = request.into_inner().phone_calls;
        Ok(Response::new(self.0.create_bulk(&principal, calls).await?))
    }

    async fn get_bulk_phone_call(
        &self,
        request: Request<api::GetBulkPhoneCallRequest>,
    ) -> Result<Response<api::BulkPhoneCall>, Status> {
        let principal = self.authenticate(&request).await?;
        Ok(Response::new(self.0.bulk(&principal, &request.into_inner().bulk_id, false).await?))
    }

    async fn cancel_bulk_phone_call(
        &self,
        request: Request<api::CancelBulkPhoneCallRequest>,
    ) -> Result<Response<api::BulkPhoneCall>, Status> {
        let principal = self.authenticate(&request).await?;
        Ok(Response::new(self.0.bulk(&principal, &request.into_inner().bulk_id, true).await?))
    }
}

#[tonic::async_trait]
impl ConversationService for Service {
    async fn get_conversation(
        &self,
        request: Request<api::GetConversationRequest>,
    ) -> Result<Response<api::Conversation>, Status> {
        let principal = self.authenticate(&request).await?;
        Ok(Response::new(self.0.conversation(&principal, &request.into_inner().call_id).await?))
    }

    async fn put_message(
        &self,
        request: Request<api::PutMessageRequest>,
    ) -> Result<Response<api::PutMessageResponse>, Status> {
        self.check_service(&request)?;
        let api::PutMessageRequest { call_id, message } = request.into_inner();
        let message = message.ok_or_else(|| Status::invalid_argument("message is missing"))?;
        let id: Uuid = call_id.parse().map_err(|_| Status::not_found("call_id is no call's"))?;
        check_message(&message)?;
        if !self.0.is_known(id).await? {
            return Err(Status::not_found(format!("no such call: {id}")));
        }
        let stored = conversations::put(&self.0.pool, &id.to_string(), &message).await;
        match stored.map_err(ApiError::from)? {
            true => Ok(Response::new(api::PutMessageResponse {})),
            false => Err(Status::resource_exhausted(format!(
                "the conversation has {} messages already",
                conversations::MESSAGES_MAX
            ))),
        }
    }
}

fn check_message(message: &api::Message) -> Result<(), Status> {
    if message.message_id.is_empty() || message.message_id.len() > MESSAGE_ID_MAX {
        return Err(Status::invalid_argument(format!(
            "message.message_id must have 1 to {MESSAGE_ID_MAX} octets"
        )));
    }
    if !matches!(message.role.as_str(), "caller" | "agent") {
        return Err(Status::invalid_argument("message.role must be caller or agent"));
    }
    if message.text.len() > conversations::TEXT_MAX {
        return Err(Status::invalid_argument(format!(
            "message.text has {} octets, at most {} are kept",
            message.text.len(),
            conversations::TEXT_MAX
        )));
    }
    Ok(())
}
