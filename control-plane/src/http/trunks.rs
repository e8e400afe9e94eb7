//! gRPC: trunks of a tenant, how they stand, and their check.

use std::pin::Pin;
use std::sync::Arc;

use tandem_api::v1 as api;
use tandem_api::v1::trunk_service_server::{TrunkService, TrunkServiceServer};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::Shared;
use crate::registration::check::{self, Step};
use crate::registration::driver::Office;
use crate::store::accounts::Principal;
use crate::trunk::Trunk;

/// Checks at once: each may hold a call. Full: RESOURCE_EXHAUSTED.
const CHECKS_MAX: usize = 4;
/// Steps that wait for a slow reader; a check has some twenty.
const STEPS_MAX: usize = 32;
/// Octets of a number or URI to call.
const TO_MAX: usize = 256;

/// The server type, for health.
pub(super) type Server = TrunkServiceServer<Service>;

pub(super) fn server(shared: Shared) -> Server {
    TrunkServiceServer::new(Service { shared, checks: Arc::new(Semaphore::new(CHECKS_MAX)) })
}

/// See the module.
pub(super) struct Service {
    shared: Shared,
    checks: Arc<Semaphore>,
}

impl Service {
    async fn authenticate<T>(&self, request: &Request<T>) -> Result<Principal, Status> {
        let key = request.metadata().get("x-api-key").and_then(|value| value.to_str().ok());
        Ok(self.shared.authenticate(key).await?)
    }

    /// A trunk of this tenant; another's is as unknown as none.
    fn find(&self, principal: &Principal, name: &str) -> Result<Arc<Trunk>, Status> {
        let trunk = self.shared.office.trunks.find(name);
        let trunk = trunk.filter(|trunk| trunk.tenant_id == principal.tenant_id);
        trunk.cloned().ok_or_else(|| Status::not_found(format!("no such trunk: {name}")))
    }
}

type Steps = Pin<Box<dyn tokio_stream::Stream<Item = Result<api::CheckStep, Status>> + Send>>;

#[tonic::async_trait]
impl TrunkService for Service {
    async fn list_trunks(
        &self,
        request: Request<api::ListTrunksRequest>,
    ) -> Result<Response<api::ListTrunksResponse>, Status> {
        let principal = self.authenticate(&request).await?;
        let office = &self.shared.office;
        let own = office.trunks.iter().filter(|trunk| trunk.tenant_id == principal.tenant_id);
        let trunks = own.map(|trunk| to_api(office, trunk)).collect();
        Ok(Response::new(api::ListTrunksResponse { trunks }))
    }

    async fn get_trunk(
        &self,
        request: Request<api::GetTrunkRequest>,
    ) -> Result<Response<api::Trunk>, Status> {
        let principal = self.authenticate(&request).await?;
        let trunk = self.find(&principal, &request.into_inner().name)?;
        Ok(Response::new(to_api(&self.shared.office, &trunk)))
    }

    type CheckTrunkStream = Steps;

    async fn check_trunk(&self, request: Request<api::CheckTrunkRequest>) -> Result<Response<Steps>, Status> {
        let principal = self.authenticate(&request).await?;
        let api::CheckTrunkRequest { name, to } = request.into_inner();
        let trunk = self.find(&principal, &name)?;
        if to.len() > TO_MAX || to.chars().any(char::is_control) {
            return Err(Status::invalid_argument(format!(
                "to must be a number or a SIP URI of at most {TO_MAX} octets"
            )));
        }
        let place = self.checks.clone().try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!("{CHECKS_MAX} checks are under way; try again in a moment"))
        })?;
        let (steps, steps_out) = mpsc::channel(STEPS_MAX);
        let office = self.shared.office.clone();
        tokio::spawn(async move {
            check::run(office, trunk, (!to.is_empty()).then_some(to), steps).await;
            drop(place);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(steps_out).map(|step| Ok(step_to_api(step))))))
    }
}

fn to_api(office: &Office, trunk: &Trunk) -> api::Trunk {
    let status = office.board.trunk(&trunk.name);
    let uri = |uri: Option<tandem_sip::Uri>| uri.map(|uri| uri.redacted().to_string()).unwrap_or_default();
    api::Trunk {
        name: trunk.name.to_string(),
        address: uri(trunk.credential.next_hop()),
        account: uri(trunk.credential.address_of_record()),
        failover: trunk.outbound.failover.iter().map(ToString::to_string).collect(),
        health: Some(api::TrunkHealth {
            state: status.health.word().to_owned(),
            detail: status.health_detail,
            rtt_ms: status.rtt.map(|rtt| rtt.as_secs_f64() * 1_000.0).unwrap_or_default(),
            since_ms: status.since_ms,
        }),
        registration: status.registration.map(|registration| api::TrunkRegistration {
            state: registration.state.word().to_owned(),
            detail: registration.detail,
            sip_status: registration.sip_status.into(),
            next_ms: registration.next_ms,
            registered_until_ms: registration.registered_until_ms,
        }),
    }
}

fn step_to_api(step: Step) -> api::CheckStep {
    api::CheckStep {
        name: step.name.to_owned(),
        verdict: step.verdict.word().to_owned(),
        detail: step.detail,
        advice: step.advice,
        took_ms: u32::try_from(step.took.as_millis()).unwrap_or(u32::MAX),
    }
}
