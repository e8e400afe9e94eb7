//! The media plane: one thread a core on io_uring carries every call's audio.

pub mod ring;
