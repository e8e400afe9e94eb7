//! See `tandem_fuzz::audiosocket_server`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| tandem_fuzz::audiosocket_server(octets));
