//! The multiplexed link: many calls over one TCP connection between an engine core and the built-in voice agent.
//!
//! ```text
//!   engine ── "TNDMLINK", hello ──▶ agent      once: version and token
//!          ◀─ welcome | refused ───
//!          ── open ───────────────▶            each call: its start frame; accepted or closed comes back
//!          ◀═ audio, mark, clear ═▶            any number of calls, many frames a write
//!          ── close ──────────────▶            the call is over, in either direction; others go on
//! ```
//!
//! A frame is eight octets and a body: body length (16 bits), kind (8), zero (8), call (32), all little-endian. It carries
//! what the [`pcm`](crate::agent) dialect carries: audio, marks, clears and keys in binary, everything rarer as the same
//! JSON. A frame of a kind that nobody knows is skipped, one whose body cannot be read is [`Message::Malformed`] and the
//! matter of its call alone: what comes after it is still framed.
//!
//! Back-pressure is per call and counts octets of audio ([`credit`]): who has spent its credit keeps the audio of that
//! call back, so no call ever fills the connection for the others.

pub mod client;
pub mod credit;
pub mod server;

pub use client::Client;
pub use server::Server;

/// The first octets of a link, so that one port can serve links and HTTP.
pub const PREAMBLE: [u8; 8] = *b"TNDMLINK";
/// The version that is spoken here.
pub const VERSION: u8 = 1;
/// Octets before a body.
pub const HEADER_OCTETS: usize = 8;
/// Longest body: two of the longest events, and a second of audio.
pub const BODY_MAX: usize = 32 * 1_024;
/// Longest token.
pub const TOKEN_MAX: usize = 256;
/// Longest reason of a refusal or a close; a longer one is cut.
pub const REASON_MAX: usize = 512;

/// The call of frames that belong to the connection.
pub const NO_CALL: u32 = 0;

/// A connection that cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// It is something else.
    #[error("the connection does not begin as a link")]
    Preamble,
    /// A body above [`BODY_MAX`]: the framing is lost.
    #[error("a frame of {0} octets is longer than {BODY_MAX}")]
    TooLong(usize),
    /// Another version.
    #[error("link version {0} is not spoken here, {VERSION} is")]
    Version(u8),
    /// Not the token that is expected.
    #[error("the token is wrong")]
    Token,
    /// A frame of a call before the greeting.
    #[error("a frame came before the greeting")]
    Greeting,
    /// The other side refused us.
    #[error("refused: {0}")]
    Refused(String),
}

/// What a frame says. Directions are the protocol's: E is what the engine sends, A what the agent sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// E: first of all.
    Hello {
        /// Spoken.
        version: u8,
        /// The shared secret; may be empty.
        token: &'a [u8],
    },
    /// A: the hello is fine.
    Welcome {
        /// Spoken.
        version: u8,
    },
    /// A: the hello is not; the connection closes.
    Refused {
        /// In words.
        reason: &'a str,
    },
    /// Either: answer with a pong.
    Ping,
    /// Either: the answer.
    Pong,
    /// E: a call begins; the JSON of [`ToAgent::Start`](crate::agent::ToAgent::Start).
    Open {
        /// The start frame.
        start: &'a str,
    },
    /// A: the agent takes the call.
    Accepted,
    /// Either: L16 little-endian at 16 kHz, one channel; an even number of octets.
    Audio(&'a [u8]),
    /// Either: so many octets of audio more may be sent to me.
    Credit {
        /// Octets.
        octets: u32,
    },
    /// A: empty the queue. E: it is empty.
    Clear {
        /// E: milliseconds of the agent's audio that were heard. A: 0.
        heard_ms: u64,
    },
    /// A: say when everything before this was heard. E: it was.
    Mark {
        /// E: milliseconds of the agent's audio that were heard. A: 0.
        heard_ms: u64,
        /// As the agent named it.
        name: &'a str,
    },
    /// E: a key was pressed.
    Dtmf {
        /// `0`–`9`, `*`, `#`, `A`–`D`.
        digit: u8,
        /// How long it was held.
        duration_ms: u32,
    },
    /// Either: an event of the `pcm` dialect.
    Event(&'a str),
    /// Either: the call is over. Nothing of it follows from this side, and what still comes from the other is ignored.
    Close {
        /// In words.
        reason: &'a str,
    },
    /// A frame of a known kind whose body makes no sense: to be counted.
    Malformed,
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const WELCOME: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const PING: u8 = 4;
    pub(super) const PONG: u8 = 5;
    pub(super) const OPEN: u8 = 16;
    pub(super) const ACCEPTED: u8 = 17;
    pub(super) const AUDIO: u8 = 18;
    pub(super) const CREDIT: u8 = 19;
    pub(super) const CLEAR: u8 = 20;
    pub(super) const MARK: u8 = 21;
    pub(super) const DTMF: u8 = 22;
    pub(super) const EVENT: u8 = 23;
    pub(super) const CLOSE: u8 = 24;
}

fn header(kind: u8, call: u32, len: usize) -> [u8; HEADER_OCTETS] {
    let [a, b] = (len as u16).to_le_bytes();
    let [c, d, e, f] = call.to_le_bytes();
    [a, b, kind, 0, c, d, e, f]
}

/// Appends a frame. A text longer than [`BODY_MAX`] is cut; nobody who keeps the bounds of the dialect meets that.
pub fn append(out: &mut Vec<u8>, call: u32, message: &Message<'_>) {
    let begin = out.len();
    out.extend_from_slice(&[0; HEADER_OCTETS]);
    let kind = match message {
        Message::Hello { version, token } => {
            out.push(*version);
            out.extend_from_slice(&token[..token.len().min(TOKEN_MAX)]);
            kind::HELLO
        }
        Message::Welcome { version } => {
            out.push(*version);
            kind::WELCOME
        }
        Message::Refused { reason } => {
            out.extend_from_slice(cut(reason, REASON_MAX).as_bytes());
            kind::REFUSED
        }
        Message::Ping => kind::PING,
        Message::Pong | Message::Malformed => kind::PONG,
        Message::Open { start } => {
            out.extend_from_slice(cut(start, BODY_MAX).as_bytes());
            kind::OPEN
        }
        Message::Accepted => kind::ACCEPTED,
        Message::Audio(octets) => {
            out.extend_from_slice(&octets[..octets.len().min(BODY_MAX)]);
            kind::AUDIO
        }
        Message::Credit { octets } => {
            out.extend_from_slice(&octets.to_le_bytes());
            kind::CREDIT
        }
        Message::Clear { heard_ms } => {
            out.extend_from_slice(&heard_ms.to_le_bytes());
            kind::CLEAR
        }
        Message::Mark { heard_ms, name } => {
            out.extend_from_slice(&heard_ms.to_le_bytes());
            out.extend_from_slice(cut(name, crate::agent::MARK_NAME_MAX).as_bytes());
            kind::MARK
        }
        Message::Dtmf { digit, duration_ms } => {
            out.push(*digit);
            out.extend_from_slice(&duration_ms.to_le_bytes());
            kind::DTMF
        }
        Message::Event(text) => {
            out.extend_from_slice(cut(text, BODY_MAX).as_bytes());
            kind::EVENT
        }
        Message::Close { reason } => {
            out.extend_from_slice(cut(reason, REASON_MAX).as_bytes());
            kind::CLOSE
        }
    };
    let len = out.len() - begin - HEADER_OCTETS;
    out[begin..begin + HEADER_OCTETS].copy_from_slice(&header(kind, call, len));
}

/// Writes an audio frame of `octets` straight into `out`; `fill` writes its body. `None` when it does not fit.
pub fn write_audio(out: &mut [u8], call: u32, octets: usize, fill: impl FnOnce(&mut [u8])) -> Option<usize> {
    if octets > BODY_MAX {
        return None;
    }
    let (head, body) = out.get_mut(..HEADER_OCTETS + octets)?.split_at_mut(HEADER_OCTETS);
    head.copy_from_slice(&header(kind::AUDIO, call, octets));
    fill(body);
    Some(HEADER_OCTETS + octets)
}

fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

fn reason(body: &[u8]) -> Option<&str> {
    std::str::from_utf8(body).ok().filter(|reason| reason.len() <= REASON_MAX)
}

fn read(kind: u8, body: &[u8]) -> Option<Message<'_>> {
    let text = || std::str::from_utf8(body);
    let message = match kind {
        kind::HELLO => {
            let hello = body.split_first().filter(|(_, token)| token.len() <= TOKEN_MAX);
            hello.map(|(version, token)| Message::Hello { version: *version, token })
        }
        kind::WELCOME => body.first().map(|version| Message::Welcome { version: *version }),
        kind::REFUSED => reason(body).map(|reason| Message::Refused { reason }),
        kind::PING => Some(Message::Ping),
        kind::PONG => Some(Message::Pong),
        kind::OPEN => text().ok().map(|start| Message::Open { start }),
        kind::ACCEPTED => Some(Message::Accepted),
        kind::AUDIO => body.len().is_multiple_of(2).then_some(Message::Audio(body)),
        kind::CREDIT => body.try_into().ok().map(|b| Message::Credit { octets: u32::from_le_bytes(b) }),
        kind::CLEAR => body.try_into().ok().map(|b| Message::Clear { heard_ms: u64::from_le_bytes(b) }),
        kind::MARK => body.split_first_chunk().and_then(|(heard, name)| {
            let name = std::str::from_utf8(name).ok()?;
            let fits = name.len() <= crate::agent::MARK_NAME_MAX;
            fits.then_some(Message::Mark { heard_ms: u64::from_le_bytes(*heard), name })
        }),
        kind::DTMF => match *body {
            [digit @ (b'0'..=b'9' | b'*' | b'#' | b'A'..=b'D'), a, b, c, d] => {
                Some(Message::Dtmf { digit, duration_ms: u32::from_le_bytes([a, b, c, d]) })
            }
            _ => None,
        },
        kind::EVENT => text().ok().map(Message::Event),
        kind::CLOSE => reason(body).map(|reason| Message::Close { reason }),
        _ => return None,
    };
    Some(message.unwrap_or(Message::Malformed))
}

/// Cuts a stream into frames. Whole frames are read where they lie; only one that is cut by the end of a piece is kept,
/// in a buffer that has its full size from the start.
#[derive(Debug)]
pub struct Decoder {
    pending: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { pending: Vec::with_capacity(HEADER_OCTETS + BODY_MAX) }
    }
}

impl Decoder {
    /// Takes a piece of the stream and hands its frames to `take`, which may end it by an error.
    ///
    /// # Errors
    /// [`LinkError::TooLong`], or what `take` says. Nothing more can be read then.
    pub fn handle_bytes(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(u32, Message<'_>) -> Result<(), LinkError>,
    ) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            if self.pending.is_empty() {
                let Some(taken) = read_frame(bytes, &mut take)? else {
                    self.pending.extend_from_slice(bytes);
                    return Ok(());
                };
                bytes = &bytes[taken..];
                continue;
            }
            let need = match self.pending.first_chunk::<HEADER_OCTETS>() {
                None => HEADER_OCTETS,
                Some(header) => HEADER_OCTETS + body_len(header)?,
            };
            let more = need.saturating_sub(self.pending.len()).min(bytes.len());
            self.pending.extend_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            if read_frame(&self.pending, &mut take)?.is_some() {
                self.pending.clear();
            }
        }
        Ok(())
    }

    /// Octets that are kept for a frame that is not whole.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Forgets what is kept: another connection begins.
    pub fn reset(&mut self) {
        self.pending.clear();
    }
}

fn body_len(header: &[u8; HEADER_OCTETS]) -> Result<usize, LinkError> {
    let len = usize::from(u16::from_le_bytes([header[0], header[1]]));
    if len > BODY_MAX { Err(LinkError::TooLong(len)) } else { Ok(len) }
}

/// Reads the frame at the beginning and says how long it was; `None` when it is not whole.
fn read_frame(
    bytes: &[u8],
    take: &mut impl FnMut(u32, Message<'_>) -> Result<(), LinkError>,
) -> Result<Option<usize>, LinkError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_OCTETS>() else { return Ok(None) };
    let len = body_len(header)?;
    let Some(body) = rest.get(..len) else { return Ok(None) };
    let call = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    if let Some(message) = read(header[2], body) {
        take(call, message)?;
    }
    Ok(Some(HEADER_OCTETS + len))
}
