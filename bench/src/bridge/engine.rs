//! The target of `bridge`: a session an engine, with a second leg in it, told over the engine's gRPC.
use std::net::SocketAddr;

use anyhow::Context;
use tandem_api::engine::v1::engine_service_client::EngineServiceClient;
use tandem_api::engine::v1::{
    AddLegRequest, Agent, CallInfo, CloseSessionRequest, Codec, DescribeRequest, EchoAgent, LegRole,
    OpenSessionRequest, RtpParameters, StartSessionRequest, agent,
};
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::transport::Channel;

use crate::marker::Law;

/// A connection to it.
pub(super) struct Engine {
    runtime: Runtime,
    client: EngineServiceClient<Channel>,
    /// Tells this run's sessions from others'.
    run: u32,
}

impl Engine {
    /// Connects.
    ///
    /// # Errors
    /// No engine answers there.
    pub(super) fn connect(url: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = runtime.block_on(async {
            let mut client = EngineServiceClient::connect(url.to_owned()).await?;
            client.describe(DescribeRequest {}).await?;
            anyhow::Ok(client)
        });
        let client = client.with_context(|| format!("no engine at {url}"))?;
        Ok(Self { runtime, client, run: rand::random() })
    }

    /// Opens bridge `number` between two callers, and gives where each is to speak to.
    ///
    /// # Errors
    /// In its own words; nothing is left in the engine then.
    pub(super) fn open(
        &mut self,
        number: usize,
        callers: [SocketAddr; 2],
        laws: [Law; 2],
    ) -> anyhow::Result<[SocketAddr; 2]> {
        let opened = self.open_both(number, callers, laws);
        if opened.is_err() {
            // Half a bridge would hold its ports until the engine's limit. It may not have come to a session: what went wrong is
            // the first error.
            let _ = self.close(number);
        }
        opened
    }

    fn open_both(
        &mut self,
        number: usize,
        [first, second]: [SocketAddr; 2],
        [of_first, of_second]: [Law; 2],
    ) -> anyhow::Result<[SocketAddr; 2]> {
        let session_id = self.session_id(number);
        let Self { runtime, client, .. } = self;
        let open = OpenSessionRequest {
            session_id: session_id.clone(),
            call: Some(CallInfo { call_id: session_id.clone(), ..CallInfo::default() }),
            rtp: Some(rtp(first, of_first)),
            // In a bridge it neither hears nor is heard.
            agent: Some(Agent { target: Some(agent::Target::Echo(EchoAgent {})), ..Agent::default() }),
            ..OpenSessionRequest::default()
        };
        runtime
            .block_on(async {
                let opened = client.open_session(open).await?.into_inner();
                let add = AddLegRequest {
                    session_id: session_id.clone(),
                    rtp: Some(rtp(second, of_second)),
                    role: LegRole::Bridge.into(),
                    caller_rings: false,
                };
                client.start_session(StartSessionRequest { session_id, early: false }).await?;
                let added = client.add_leg(add).await?.into_inner();
                Ok([(opened.local_address, opened.local_port), (added.local_address, added.local_port)])
            })
            .map_err(said)?
            .into_iter()
            .map(|(address, port)| Ok(SocketAddr::new(address.parse()?, u16::try_from(port)?)))
            .collect::<anyhow::Result<Vec<_>>>()?
            .try_into()
            .map_err(|_| anyhow::anyhow!("the engine gave other than two addresses"))
    }

    /// Closes a bridge.
    ///
    /// # Errors
    /// In its own words.
    pub(super) fn close(&mut self, number: usize) -> anyhow::Result<()> {
        let request = CloseSessionRequest { session_id: self.session_id(number), reason: "bench".into() };
        self.runtime.block_on(self.client.close_session(request)).map_err(said)?;
        Ok(())
    }

    fn session_id(&self, number: usize) -> String {
        format!("bench-{:08x}-{number}", self.run)
    }
}

/// Without the metadata, which nobody counts by.
fn said(status: Status) -> anyhow::Error {
    anyhow::anyhow!("the engine: {}", status.message())
}

fn rtp(remote: SocketAddr, law: Law) -> RtpParameters {
    let codec = match law {
        Law::Pcmu => Codec::Pcmu,
        Law::Pcma => Codec::Pcma,
    };
    RtpParameters {
        remote_address: remote.ip().to_string(),
        remote_port: remote.port().into(),
        codec: codec.into(),
        payload_type: law.payload_type().into(),
        ptime_ms: 20,
        ..RtpParameters::default()
    }
}
