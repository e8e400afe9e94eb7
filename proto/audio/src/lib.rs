//! Sound: PCM frames, codecs, resampling, tones, voice activity, transcoding.
//!
//! ```text
//!  wire bytes of A ──▶ transcode::Decoder ──▶ PCM16 at a wanted rate ──▶ transcode::Encoder ──▶ wire bytes of B
//!                        g711, g722, opus, L16    conceal, resample, vad      resample, the same codecs
//! ```
//!
//! Everything works on slices that the caller owns. Nothing here allocates after it was made, and nothing can
//! panic on what a peer sent. No clock, no socket, no thread.
//!
//! * [`mod@format`]: [`Codec`](format::Codec), [`SampleRate`](format::SampleRate), [`ClockRate`](format::ClockRate),
//!   [`Ptime`](format::Ptime): the units that everybody shares
//! * [`pcm`]: PCM16 frames: silence, gain, mixing two, level, byte orders
//! * [`g711`]: PCMU and PCMA; [`g722`]; [`mod@opus`]
//! * [`conceal`]: what is put in the place of lost packets; [`noise`]: comfort noise (RFC 3389)
//! * [`resample`]: 8 / 16 / 24 / 48 kHz, state carried from frame to frame; [`stretch`]: a few samples more or fewer
//! * [`tone`]: sine, DTMF, call progress tones
//! * [`vad`]: voice activity from energy above the noise floor; [`dtmf`]: keys in the sound
//! * [`transcode`]: from one leg's format to the other's, chosen once a session

pub mod conceal;
pub mod dtmf;
pub mod format;
pub mod g711;
pub mod g722;
pub mod noise;
pub mod opus;
pub mod pcm;
pub mod resample;
mod simd;
pub mod stretch;
pub mod tone;
pub mod transcode;
pub mod vad;
