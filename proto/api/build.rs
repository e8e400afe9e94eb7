//! Generates the gRPC code from the .proto files (needs protoc on the PATH).

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=tandem");
    let descriptors = PathBuf::from(std::env::var("OUT_DIR")?).join("tandem_descriptor.bin");
    tonic_prost_build::configure()
        .file_descriptor_set_path(descriptors)
        // Keys: src/lib.rs has a Debug that keeps them to itself.
        .skip_debug(["tandem.engine.v1.SrtpKeys", "tandem.engine.v1.DtlsParameters"])
        .compile_protos(
            &[
                "tandem/agent/v1/agent.proto",
                "tandem/engine/v1/engine.proto",
                "tandem/v1/call.proto",
                "tandem/v1/refusal.proto",
                "tandem/v1/talk.proto",
                "tandem/v1/trunk.proto",
            ],
            &["."],
        )?;
    Ok(())
}
