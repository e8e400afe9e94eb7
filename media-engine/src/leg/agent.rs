//! The agent leg: who the caller talks to.
//!
//! ```text
//!   Echo        the caller's own sound, decoded, goes to the playout queue
//!   Tone, File  make their sound when a frame is due; they hear nothing
//!   Stream      we dial it; it hears the caller at once, speaks into the playout queue, and asks (Request)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_audio::format::SampleRate;
use tandem_audio::tone::Sine;
use tandem_stream::websocket::Url;
use tandem_stream::{Dialect, audiosocket};

use super::audiosocket::AudioSocketStream;
use super::dialect::WebSocketStream;
use super::grpc::GrpcStream;
use super::link::LinkStream;
use super::stream::{Kind, Stream};

/// The tone's peak: −9 dB below full scale, loud but not at the limit of G.711.
const TONE_PEAK: i16 = 11_600;

/// What the agent is told about the call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CallInfo {
    /// The call's UUID.
    pub call_id: String,
    /// Who calls.
    pub from: String,
    /// Who was called.
    pub to: String,
    /// `inbound` or `outbound`.
    pub direction: String,
    /// Whose call it is; becomes the account of the Twilio dialect.
    pub tenant_id: String,
}

/// Sound of the file agent, loaded and resampled by the control thread.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Samples at 16 kHz.
    pub samples: Arc<[i16]>,
    /// Begin again at the end.
    pub repeat: bool,
}

impl Recording {
    /// The rate that recordings are kept at.
    pub const RATE: SampleRate = SampleRate::Hz16000;
}

/// An agent that is dialled.
#[derive(Clone)]
pub struct WebSocketParameters {
    /// Where.
    pub url: Url,
    /// How it wants to be spoken to.
    pub dialect: Dialect,
    /// For `wss://`: what it is trusted by.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Headers of the upgrade request; they may hold secrets.
    pub headers: Vec<(String, String)>,
    /// For its start frame.
    pub custom: BTreeMap<String, String>,
    /// It must be there after so long.
    pub connect_timeout: Duration,
}

/// Headers, query and custom fields may hold secrets: they are not shown.
impl std::fmt::Debug for WebSocketParameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WebSocketParameters")
            .field("host", &self.url.host)
            .field("port", &self.url.port)
            .field("dialect", &self.dialect)
            .finish_non_exhaustive()
    }
}

/// The built-in voice agent, reached by the link of the core.
#[derive(Clone)]
pub struct LinkParameters {
    /// Its host and port.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The shared secret; may be empty.
    pub token: Vec<u8>,
    /// For its start frame.
    pub custom: BTreeMap<String, String>,
    /// It must have accepted the call after so long.
    pub connect_timeout: Duration,
}

/// The token and custom fields are secrets: they are not shown.
impl std::fmt::Debug for LinkParameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkParameters")
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// An agent that serves `tandem.agent.v1.Agent`.
#[derive(Clone)]
pub struct GrpcParameters {
    /// Where; its scheme says whether by TLS.
    pub url: Url,
    /// For `grpcs://`: what it is trusted by.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// Metadata of the call; they may hold secrets.
    pub headers: Vec<(String, String)>,
    /// For its start message.
    pub custom: BTreeMap<String, String>,
    /// It must have accepted the call after so long.
    pub connect_timeout: Duration,
}

/// Metadata and custom fields may hold secrets: they are not shown.
impl std::fmt::Debug for GrpcParameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrpcParameters")
            .field("host", &self.url.host)
            .field("port", &self.url.port)
            .finish_non_exhaustive()
    }
}

/// An AudioSocket server, dialled as Asterisk does.
#[derive(Debug, Clone)]
pub struct AudioSocketParameters {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What it knows the call by.
    pub id: [u8; 16],
    /// Of the audio, both ways.
    pub rate: audiosocket::Rate,
    /// It must be there after so long.
    pub connect_timeout: Duration,
}

/// Which agent.
#[derive(Debug, Clone)]
pub enum AgentParameters {
    /// The caller hears himself.
    Echo,
    /// A steady tone.
    Tone {
        /// Its frequency.
        frequency_hz: f64,
    },
    /// A recording.
    File(Recording),
    /// One that we dial by WebSocket.
    WebSocket(Box<WebSocketParameters>),
    /// The built-in voice agent.
    Link(Box<LinkParameters>),
    /// An AudioSocket server.
    AudioSocket(AudioSocketParameters),
    /// One that serves our gRPC service.
    Grpc(Box<GrpcParameters>),
}

/// The agent of one session.
#[derive(Debug)]
pub enum Agent {
    /// The caller hears himself.
    Echo,
    /// A steady tone at 8 kHz.
    Tone(Sine),
    /// A recording, and how far it was played.
    File {
        /// The sound.
        recording: Recording,
        /// The next sample.
        at: usize,
    },
    /// One that we dialled.
    Stream(Box<Stream>),
}

impl Agent {
    /// The agent for these parameters.
    ///
    /// # Errors
    /// It cannot be asked so, in words.
    pub fn new(
        parameters: AgentParameters,
        call: &CallInfo,
        seed: u64,
        now: Instant,
    ) -> Result<Self, String> {
        Ok(match parameters {
            AgentParameters::Echo => Self::Echo,
            AgentParameters::Tone { frequency_hz } => {
                Self::Tone(Sine::new(frequency_hz, TONE_PEAK, SampleRate::Hz8000))
            }
            AgentParameters::File(recording) => Self::File { recording, at: 0 },
            AgentParameters::WebSocket(parameters) => {
                let stream = WebSocketStream::new(*parameters, call, seed, now)?;
                Self::Stream(Box::new(Stream::new(Kind::WebSocket(stream))))
            }
            AgentParameters::Link(parameters) => {
                Self::Stream(Box::new(Stream::new(Kind::Link(LinkStream::new(*parameters, call, now)))))
            }
            AgentParameters::AudioSocket(parameters) => Self::Stream(Box::new(Stream::new(
                Kind::AudioSocket(AudioSocketStream::new(parameters, now)),
            ))),
            AgentParameters::Grpc(parameters) => {
                Self::Stream(Box::new(Stream::new(Kind::Grpc(GrpcStream::new(*parameters, call, now)?))))
            }
        })
    }

    /// Rate of its sound; `None`: whatever the carrier leg has.
    pub fn rate(&self) -> Option<SampleRate> {
        match self {
            Self::Echo => None,
            Self::Tone(_) => Some(SampleRate::Hz8000),
            Self::File { .. } => Some(Recording::RATE),
            Self::Stream(stream) => Some(stream.rate()),
        }
    }

    /// Makes the next frame of an agent that needs no queue; false when its sound comes through the playout queue.
    pub fn make_frame(&mut self, frame: &mut [i16]) -> bool {
        match self {
            Self::Tone(sine) => sine.fill(frame),
            Self::File { recording, at } => {
                let mut rest = frame;
                while !rest.is_empty() {
                    let left = recording.samples.get(*at..).unwrap_or_default();
                    if left.is_empty() && (recording.samples.is_empty() || !recording.repeat) {
                        rest.fill(0);
                        break;
                    }
                    if left.is_empty() {
                        *at = 0;
                        continue;
                    }
                    let len = left.len().min(rest.len());
                    rest[..len].copy_from_slice(&left[..len]);
                    *at += len;
                    rest = &mut rest[len..];
                }
            }
            Self::Echo | Self::Stream(_) => return false,
        }
        true
    }

    /// The dialled stream, if it is one.
    pub fn stream(&self) -> Option<&Stream> {
        match self {
            Self::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    /// The same, to be used.
    pub fn stream_mut(&mut self) -> Option<&mut Stream> {
        match self {
            Self::Stream(stream) => Some(stream),
            _ => None,
        }
    }
}
