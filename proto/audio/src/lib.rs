//! Sound: PCM frames, codecs, resampling, tones, voice activity, transcoding.
//!
//! ```text
//!  wire bytes of A ──▶ transcode::Decoder ──▶ PCM16 at a wanted rate ──▶ transcode::Encoder ──▶ wire bytes of B
//!                        g711, L16             resample, pcm, tone, vad     resample, g711, L16
//! ```
//!
//! Everything works on slices that the caller owns. Nothing here allocates after it was made, and nothing can
//! panic on what a peer sent. No clock, no socket, no thread.
//!
//! * [`mod@format`]: [`Codec`](format::Codec), [`SampleRate`](format::SampleRate), [`ClockRate`](format::ClockRate),
//!   [`Ptime`](format::Ptime): the units that everybody shares
//! * [`pcm`]: PCM16 frames: silence, gain, mixing two, level, byte orders
//! * [`g711`]: PCMU and PCMA
//! * [`resample`]: 8 / 16 / 24 / 48 kHz, state carried from frame to frame
//! * [`tone`]: sine, DTMF, call progress tones
//! * [`vad`]: voice activity from energy above the noise floor
//! * [`transcode`]: from one leg's format to the other's, chosen once a session

pub mod format;
pub mod g711;
pub mod pcm;
pub mod resample;
pub mod tone;
pub mod transcode;
pub mod vad;
