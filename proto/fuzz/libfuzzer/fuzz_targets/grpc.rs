//! See `tandem_fuzz::grpc`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| tandem_fuzz::grpc(octets));
