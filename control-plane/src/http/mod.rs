//! One port: REST, gRPC, health and metrics.

pub mod view;
