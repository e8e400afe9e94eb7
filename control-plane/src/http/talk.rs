//! Calls that we place, and what is asked of live ones: the same for gRPC and REST.

use std::collections::HashMap;

use serde::Deserialize;
use tandem_api::engine::v1::LegRole;
use tandem_api::v1 as api;
use uuid::Uuid;

use super::{ApiError, Shared};
use crate::call::bulk::BULK_CALLS_MAX;
use crate::call::machine::{Asked, TransferTo};
use crate::call::order::{FieldError, Order};
use crate::call::registry::joining::Guest;
use crate::call::registry::placing::PlaceError;
use crate::store::accounts::Principal;
use crate::trunk::health;

/// The body of `POST /v1/calls`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PhoneCall {
    #[serde(default)]
    assistant_id: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    trunk: String,
    #[serde(default)]
    credential: String,
    #[serde(default, alias = "fromNumber")]
    from: String,
    #[serde(default, alias = "toNumber")]
    to: String,
    #[serde(default)]
    args: HashMap<String, String>,
    #[serde(default)]
    metadata: HashMap<String, String>,
    #[serde(default)]
    options: HashMap<String, String>,
    #[serde(default)]
    headers: HashMap<String, String>,
    #[serde(default)]
    idempotency_key: String,
}

/// The body of `POST /v1/bulks`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Bulk {
    pub(super) calls: Vec<PhoneCall>,
}

/// The body of `POST /v1/calls/{id}/transfer`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Transfer {
    #[serde(default)]
    pub(super) to: String,
    #[serde(default)]
    pub(super) to_call_id: String,
}

/// The body of `POST /v1/calls/{id}/join`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Join {
    role: Option<JoinRole>,
    #[serde(default)]
    to: String,
    #[serde(default)]
    trunk: String,
    /// Not somebody to be called, but another call.
    #[serde(default)]
    other_call_id: String,
}

/// As gRPC asks for it.
pub(super) enum JoinRequest {
    /// Somebody is called, or has another role.
    Guest(api::JoinCallRequest),
    /// With another call.
    Calls(api::JoinCallsRequest),
}

/// As JSON names it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum JoinRole {
    Listen,
    Whisper,
    Conference,
    Bridge,
}

impl Join {
    /// As gRPC asks for it.
    pub(super) fn into_request(self, call_id: String) -> Result<JoinRequest, ApiError> {
        let Self { role, to, trunk, other_call_id } = self;
        if !other_call_id.is_empty() {
            if role.is_some() || !to.is_empty() || !trunk.is_empty() {
                let what = "otherCallId goes with nothing else: the two are bridged";
                return Err(ApiError::Invalid(what.to_owned()));
            }
            return Ok(JoinRequest::Calls(api::JoinCallsRequest { call_id, other_call_id }));
        }
        let role = match role.ok_or_else(|| ApiError::Invalid("role is missing".to_owned()))? {
            JoinRole::Listen => api::JoinRole::Listen,
            JoinRole::Whisper => api::JoinRole::Whisper,
            JoinRole::Conference => api::JoinRole::Conference,
            JoinRole::Bridge => api::JoinRole::Bridge,
        };
        Ok(JoinRequest::Guest(api::JoinCallRequest { call_id, role: role.into(), to, trunk }))
    }
}

impl From<PhoneCall> for api::CreatePhoneCallRequest {
    fn from(call: PhoneCall) -> Self {
        let assistant = api::AssistantDefinition { assistant_id: call.assistant_id, version: call.version };
        Self {
            assistant: Some(assistant),
            metadata: call.metadata,
            args: call.args,
            options: call.options,
            from_number: call.from,
            to_number: call.to,
            trunk: call.trunk,
            credential: call.credential,
            headers: call.headers,
            idempotency_key: call.idempotency_key,
        }
    }
}

/// Reads a JSON body; an error names the place in it.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let field = error.path().to_string();
        ApiError::Fields(vec![FieldError { field, problem: error.into_inner().to_string() }])
    })
}

impl Shared {
    async fn order(
        &self,
        principal: &Principal,
        request: &api::CreatePhoneCallRequest,
    ) -> Result<Order, ApiError> {
        let assistant_id = request.assistant.as_ref().map(|assistant| assistant.assistant_id.as_str());
        let assistant = match assistant_id.filter(|id| !id.is_empty()) {
            Some(id) => self.accounts.assistant(&principal.tenant_id, id).await?,
            None => None,
        };
        let tenant_id = &principal.tenant_id;
        let read = Order::read(request, tenant_id, &self.trunks, &self.credentials, assistant.as_ref());
        let mut order = read.map_err(ApiError::Fields)?;
        order.prefer(|trunk| self.office.board.health(&trunk.name) == health::State::Down);
        Ok(order)
    }

    /// Queues one call.
    pub(super) async fn create_call(
        &self,
        principal: &Principal,
        request: &api::CreatePhoneCallRequest,
    ) -> Result<api::Call, ApiError> {
        let order = self.order(principal, request).await?;
        let call_id = self.live.place(order).await?;
        self.call(principal, &call_id.to_string()).await
    }

    /// Queues many calls, or none.
    pub(super) async fn create_bulk(
        &self,
        principal: &Principal,
        requests: Vec<api::CreatePhoneCallRequest>,
    ) -> Result<api::CreateBulkPhoneCallResponse, ApiError> {
        if requests.is_empty() || requests.len() > BULK_CALLS_MAX {
            return Err(PlaceError::BulkSize.into());
        }
        let (mut orders, mut errors) = (Vec::new(), Vec::new());
        for (index, request) in requests.iter().enumerate() {
            match self.order(principal, request).await {
                Ok(order) => orders.push(order),
                Err(ApiError::Fields(wrong)) => errors.extend(wrong.into_iter().map(|error| FieldError {
                    field: format!("phone_calls[{index}].{}", error.field),
                    ..error
                })),
                Err(error) => return Err(error),
            }
        }
        if !errors.is_empty() {
            return Err(ApiError::Fields(errors));
        }
        let (bulk_id, ids) = self.live.place_bulk(orders).await?;
        let mut calls = Vec::new();
        for id in ids {
            calls.push(self.call(principal, &id.to_string()).await?);
        }
        Ok(api::CreateBulkPhoneCallResponse { bulk_id: bulk_id.to_string(), calls })
    }

    /// How far a bulk is; with `cancel` what waits of it ends.
    pub(super) async fn bulk(
        &self,
        principal: &Principal,
        bulk_id: &str,
        cancel: bool,
    ) -> Result<api::BulkPhoneCall, ApiError> {
        let unknown = || ApiError::NoBulk(bulk_id.to_owned());
        let id = bulk_id.parse().map_err(|_| unknown())?;
        self.live.bulk(principal.tenant_id.clone(), id, cancel).await.ok_or_else(unknown)
    }

    /// Ends a live call.
    pub(super) async fn hang_up(&self, principal: &Principal, call_id: &str) -> Result<(), ApiError> {
        let alive = match call_id.parse::<Uuid>() {
            Ok(id) => self.live.hang_up(principal.tenant_id.clone(), id).await,
            Err(_) => false,
        };
        if alive { Ok(()) } else { Err(ApiError::NotLive(call_id.to_owned())) }
    }

    /// Puts the other side of a call on hold, or takes it back.
    pub(super) async fn hold(
        &self,
        principal: &Principal,
        call_id: &str,
        is_held: bool,
    ) -> Result<(), ApiError> {
        let unknown = || ApiError::NotLive(call_id.to_owned());
        let id = call_id.parse().map_err(|_| unknown())?;
        done(self.live.hold(principal.tenant_id.clone(), id, is_held).await.ok_or_else(unknown)?)
    }

    /// Hands the other side of a call on.
    pub(super) async fn transfer(
        &self,
        principal: &Principal,
        call_id: &str,
        to: &str,
        to_call_id: &str,
    ) -> Result<(), ApiError> {
        let unknown = || ApiError::NotLive(call_id.to_owned());
        let id = call_id.parse().map_err(|_| unknown())?;
        let to = match (to, to_call_id) {
            (to, "") if !to.is_empty() => TransferTo::Blind(to.to_owned()),
            ("", other) if !other.is_empty() => {
                TransferTo::Attended(other.parse().map_err(|_| ApiError::NotLive(other.to_owned()))?)
            }
            _ => return Err(ApiError::Invalid("name one of to and to_call_id".to_owned())),
        };
        done(self.live.transfer(principal.tenant_id.clone(), id, to).await.ok_or_else(unknown)?)
    }

    /// Brings somebody into a call, or gives who is there another role.
    pub(super) async fn join(
        &self,
        principal: &Principal,
        request: api::JoinCallRequest,
    ) -> Result<(), ApiError> {
        let role = match request.role() {
            api::JoinRole::Unspecified => return Err(ApiError::Invalid("role is missing".to_owned())),
            api::JoinRole::Listen => LegRole::Listen,
            api::JoinRole::Whisper => LegRole::Whisper,
            api::JoinRole::Conference => LegRole::Conference,
            api::JoinRole::Bridge => LegRole::Bridge,
        };
        let api::JoinCallRequest { call_id, to, trunk, .. } = request;
        let unknown = || ApiError::NotLive(call_id.clone());
        let id = call_id.parse().map_err(|_| unknown())?;
        let guest = Guest { to, role, trunk };
        done(self.live.join(principal.tenant_id.clone(), id, guest).await.ok_or_else(unknown)?)
    }

    /// Joins two live calls.
    pub(super) async fn join_calls(
        &self,
        principal: &Principal,
        request: &api::JoinCallsRequest,
    ) -> Result<(), ApiError> {
        let read = |id: &str| id.parse::<Uuid>().map_err(|_| ApiError::NotLive(id.to_owned()));
        let (id, other) = (read(&request.call_id)?, read(&request.other_call_id)?);
        let asked = self.live.join_calls(principal.tenant_id.clone(), id, other).await;
        done(asked.map_err(|unknown| ApiError::NotLive(unknown.to_string()))?)
    }
}

fn done(asked: Asked) -> Result<(), ApiError> {
    Err(ApiError::Refused(match asked {
        Asked::Done => return Ok(()),
        Asked::State(state) => format!("the call is {}", state.word()),
        Asked::Busy => "a change or transfer of this call is under way; try again".to_owned(),
        Asked::Policy(why) => why,
        Asked::NoTarget => {
            "to_call_id is no answered call of this tenant, or nobody has been brought into the call"
                .to_owned()
        }
    }))
}
