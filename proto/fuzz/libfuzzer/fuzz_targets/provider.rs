//! See `tandem_fuzz::provider`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| tandem_fuzz::provider(octets));
