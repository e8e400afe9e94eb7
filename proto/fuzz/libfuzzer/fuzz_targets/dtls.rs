//! See `tandem_fuzz::dtls`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| tandem_fuzz::dtls(octets));
