//! A softphone without a handset: SIP calls with real RTP, for the demo call, tests and tools.
//!
//! ```text
//!   Phone::bind ── call(uri) ──▶ Call ── play, heard, wait_for_speech, send_dtmf, hold, hang_up ──▶ CallReport
//!        └──────── answer_next ─▶ Call
//!
//!   line.rs   sockets ⇄ tandem-sip's endpoint, one for the phone         (transport.rs: TCP)
//!   call.rs   one task a call: offers, answers, re-INVITEs, its end      (report.rs: what became of it)
//!   media.rs  one task a call: a packet each ptime out, whatever comes in (ear.rs: what was heard, and when)
//! ```
//!
//! What is played and heard is 8 kHz PCM16 whatever the codec. Sound leaves on an absolute schedule from the answer on, silence
//! when nothing is played. Left out: TLS, RTCP, several calls' mixing, and whatever a handset has buttons for.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use tandem_phone::{CallOptions, Phone, PhoneConfig};
//!
//! let phone = Phone::bind(PhoneConfig::default()).await?;
//! let call = phone.call("sip:demo:demo-key@127.0.0.1:4573", CallOptions::default()).await?;
//! call.wait_for_speech(Duration::from_secs(5)).await;
//! call.wait_until_quiet(Duration::from_millis(700), Duration::from_secs(15)).await;
//! call.play_wav("question.wav").await?;
//! println!("{}", call.hang_up().await);
//! # Ok(()) }
//! ```

mod answer;
mod call;
mod ear;
mod line;
mod media;
mod phone;
mod report;
mod transport;
pub mod wav;

pub use answer::{AnswerOptions, Incoming};
pub use call::{Call, DtmfError, HoldError};
pub use ear::{Heard, HeardPacket};
pub use media::Played;
pub use phone::{BindError, CallError, CallOptions, FailedBy, Phone, PhoneConfig, SipTransport};
pub use report::{CallReport, EndedBy, RtpReport};
