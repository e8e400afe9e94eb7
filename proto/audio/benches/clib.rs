//! The C libraries that others use, opened at run time: no build needs them, and a bench whose library is missing says so.
//!
//! Debian: libspandsp2, libsoxr0, libspeexdsp1.
#![allow(unsafe_code)]
#![allow(dead_code)] // Each bench uses a part.

use std::ffi::{CStr, c_char, c_int, c_void};

#[link(name = "dl")]
unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

const RTLD_NOW: c_int = 2;

/// A library, or `None` with a word to whoever looks on.
pub(crate) struct Library(*mut c_void);

impl Library {
    pub(crate) fn open(name: &CStr) -> Option<Self> {
        // SAFETY: the name ends with a zero; these libraries do nothing when they are opened.
        let library = unsafe { dlopen(name.as_ptr(), RTLD_NOW) };
        if library.is_null() {
            eprintln!("skipped: {} is not installed", name.to_string_lossy());
            return None;
        }
        Some(Self(library))
    }

    /// A function.
    ///
    /// # Safety
    /// `F` must be a function pointer of the type that the library's header gives.
    pub(crate) unsafe fn function<F: Copy>(&self, name: &CStr) -> F {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
        // SAFETY: the library stays open for ever, and the name ends with a zero.
        let symbol = unsafe { dlsym(self.0, name.as_ptr()) };
        assert!(!symbol.is_null(), "{} is missing", name.to_string_lossy());
        // SAFETY: the caller vouches for the type.
        unsafe { std::mem::transmute_copy(&symbol) }
    }
}

/// spandsp's G.722.
pub(crate) struct SpandspG722 {
    encoder: *mut c_void,
    decoder: *mut c_void,
    encode: unsafe extern "C" fn(*mut c_void, *mut u8, *const i16, c_int) -> c_int,
    decode: unsafe extern "C" fn(*mut c_void, *mut i16, *const u8, c_int) -> c_int,
}

impl SpandspG722 {
    pub(crate) fn open() -> Option<Self> {
        type Init = unsafe extern "C" fn(*mut c_void, c_int, c_int) -> *mut c_void;
        let library = Library::open(c"libspandsp.so.2")?;
        // SAFETY: the types are those of spandsp/g722.h; 64 000 bits a second and no option are what it takes, and a null
        // state makes it allocate one, which is never freed here.
        unsafe {
            let encode_init: Init = library.function(c"g722_encode_init");
            let decode_init: Init = library.function(c"g722_decode_init");
            Some(Self {
                encoder: encode_init(std::ptr::null_mut(), 64_000, 0),
                decoder: decode_init(std::ptr::null_mut(), 64_000, 0),
                encode: library.function(c"g722_encode"),
                decode: library.function(c"g722_decode"),
            })
        }
    }

    pub(crate) fn encode(&mut self, samples: &[i16; 320], codes: &mut [u8; 160]) -> i32 {
        // SAFETY: 320 samples become 160 octets.
        unsafe { (self.encode)(self.encoder, codes.as_mut_ptr(), samples.as_ptr(), 320) }
    }

    pub(crate) fn decode(&mut self, codes: &[u8; 160], samples: &mut [i16; 320]) -> i32 {
        // SAFETY: 160 octets become 320 samples.
        unsafe { (self.decode)(self.decoder, samples.as_mut_ptr(), codes.as_ptr(), 160) }
    }
}

/// A resampler of 16-bit samples in one channel: `(input, output) → samples written`.
pub(crate) type Resample = Box<dyn FnMut(&[i16], &mut [i16]) -> usize>;

#[repr(C)]
struct SoxrIoSpec {
    input: c_int,
    output: c_int,
    scale: f64,
    extra: *mut c_void,
    flags: u64,
}

#[repr(C)]
struct SoxrQuality {
    precision: f64,
    phase_response: f64,
    passband_end: f64,
    stopband_begin: f64,
    extra: *mut c_void,
    flags: u64,
}

/// soxr at its high quality (SOXR_HQ).
pub(crate) fn soxr(from_hz: u32, to_hz: u32) -> Option<Resample> {
    type Create = unsafe extern "C" fn(
        f64,
        f64,
        u32,
        *mut *const c_char,
        *const SoxrIoSpec,
        *const SoxrQuality,
        *const c_void,
    ) -> *mut c_void;
    type Process = unsafe extern "C" fn(
        *mut c_void,
        *const c_void,
        usize,
        *mut usize,
        *mut c_void,
        usize,
        *mut usize,
    ) -> *const c_char;
    const INT16_I: c_int = 3;
    const HQ: u64 = 4;
    let library = Library::open(c"libsoxr.so.0")?;
    // SAFETY: the types are those of soxr.h; every pointer is to a value that lives through the call, or null where that
    // is allowed.
    unsafe {
        let create: Create = library.function(c"soxr_create");
        let process: Process = library.function(c"soxr_process");
        let io_spec: unsafe extern "C" fn(c_int, c_int) -> SoxrIoSpec = library.function(c"soxr_io_spec");
        let quality: unsafe extern "C" fn(u64, u64) -> SoxrQuality = library.function(c"soxr_quality_spec");
        let (io, quality) = (io_spec(INT16_I, INT16_I), quality(HQ, 0));
        let mut error = std::ptr::null();
        let state =
            create(f64::from(from_hz), f64::from(to_hz), 1, &mut error, &io, &quality, std::ptr::null());
        assert!(error.is_null() && !state.is_null());
        Some(Box::new(move |input, output| {
            let (mut taken, mut written) = (0, 0);
            process(
                state,
                input.as_ptr().cast(),
                input.len(),
                &mut taken,
                output.as_mut_ptr().cast(),
                output.len(),
                &mut written,
            );
            written
        }))
    }
}

/// speexdsp at quality 3, as softphones use it.
pub(crate) fn speex(from_hz: u32, to_hz: u32) -> Option<Resample> {
    type Init = unsafe extern "C" fn(u32, u32, u32, c_int, *mut c_int) -> *mut c_void;
    type Process = unsafe extern "C" fn(*mut c_void, u32, *const i16, *mut u32, *mut i16, *mut u32) -> c_int;
    let library = Library::open(c"libspeexdsp.so.1")?;
    // SAFETY: the types are those of speex_resampler.h; lengths are those of the slices.
    unsafe {
        let init: Init = library.function(c"speex_resampler_init");
        let process: Process = library.function(c"speex_resampler_process_int");
        let state = init(1, from_hz, to_hz, 3, std::ptr::null_mut());
        Some(Box::new(move |input, output| {
            let (mut taken, mut written) = (input.len() as u32, output.len() as u32);
            process(state, 0, input.as_ptr(), &mut taken, output.as_mut_ptr(), &mut written);
            written as usize
        }))
    }
}
