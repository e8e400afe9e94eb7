//! gRPC: refusals that have no record.

use tandem_api::v1 as api;
use tandem_api::v1::refusal_service_server::{RefusalService, RefusalServiceServer};
use tonic::{Request, Response, Status};

use super::Shared;
use super::grpc::Service;
use crate::store::refusals::REFUSALS_MAX;

/// Refusals in one answer when nobody says.
const LIMIT_DEFAULT: u32 = 50;

/// The server type, for health.
pub(super) type Server = RefusalServiceServer<Service>;

pub(super) fn server(shared: Shared) -> Server {
    RefusalServiceServer::new(Service(shared))
}

impl Service {
    /// Whose refusals may be shown: `None` for an operator, who sees all; else the tenant of the key.
    async fn reader<T>(&self, request: &Request<T>) -> Result<Option<String>, Status> {
        if self.check_service(request).is_ok() {
            return Ok(None);
        }
        Ok(Some(self.authenticate(request).await?.tenant_id.to_string()))
    }
}

#[tonic::async_trait]
impl RefusalService for Service {
    async fn list_refusals(
        &self,
        request: Request<api::ListRefusalsRequest>,
    ) -> Result<Response<api::ListRefusalsResponse>, Status> {
        let reader = self.reader(&request).await?;
        let limit = match request.into_inner().limit {
            0 => LIMIT_DEFAULT as usize,
            limit => (limit as usize).min(REFUSALS_MAX),
        };
        let refusals = self.0.refusals.list(reader.as_deref(), limit);
        Ok(Response::new(api::ListRefusalsResponse { refusals }))
    }

    async fn get_refusal(
        &self,
        request: Request<api::GetRefusalRequest>,
    ) -> Result<Response<api::RefusedCall>, Status> {
        let reader = self.reader(&request).await?;
        let call_id = request.into_inner().call_id;
        let found = self.0.refusals.find(reader.as_deref(), &call_id);
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("no such refusal: {call_id}")))
    }
}
