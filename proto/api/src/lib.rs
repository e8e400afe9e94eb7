//! The gRPC contracts: [`engine`] between the planes, [`agent`] with agents, [`v1`] with the world.
//!
//! The .proto files below `tandem/` are the documents to read; this crate only includes what is generated from
//! them. It is the one crate under `proto/` that knows a wire library (tonic), and it holds no logic.

/// `tandem.engine.v1`: commands to a media engine and its event stream.
pub mod engine {
    #[allow(missing_docs, clippy::all)]
    /// Generated from `tandem/engine/v1/engine.proto`.
    pub mod v1 {
        tonic::include_proto!("tandem.engine.v1");

        impl std::fmt::Debug for SrtpKeys {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("SrtpKeys").field("suite", &self.suite()).finish_non_exhaustive()
            }
        }

        impl std::fmt::Debug for DtlsParameters {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("DtlsParameters")
                    .field("active", &self.active)
                    .field("local_ufrag", &self.local_ufrag)
                    .field("remote_ufrag", &self.remote_ufrag)
                    .finish_non_exhaustive()
            }
        }
    }
}

/// `tandem.agent.v1`: what an agent serves that is reached by gRPC.
pub mod agent {
    #[allow(missing_docs, clippy::all)]
    /// Generated from `tandem/agent/v1/agent.proto`.
    pub mod v1 {
        tonic::include_proto!("tandem.agent.v1");
    }
}

pub use prost;

/// `tandem.v1`: calls and conversations, for people, tools and the voice agent.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("tandem.v1");
}

/// Descriptors of all services, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("tandem_descriptor");
