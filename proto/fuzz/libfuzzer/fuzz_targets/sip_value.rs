//! See `tandem_fuzz::sip_value`.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|octets: &[u8]| tandem_fuzz::sip_value(octets));
