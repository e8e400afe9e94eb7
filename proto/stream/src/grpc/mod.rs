//! One gRPC call with a stream each way, as its client, over an HTTP/2 connection of its own (RFC 9113). Sans-IO.
//!
//! ```text
//!  octets ─▶ frames ─▶ SETTINGS, PING, WINDOW_UPDATE: answered here
//!                  └─▶ HEADERS ─▶ hpack ─▶ status        DATA ─▶ messages ─▶ Incoming::Message
//!  octets ◀─ preface, answers ◀─ messages ([`Client::push`]) ◀─ audio ([`Client::write_message`])   as far as both windows reach
//! ```
//!
//! What a call needs and no more: one stream, no server push, no compression, header tables of size nought. The messages are the caller's
//! business. A message that came whole in one frame, as audio does, is handed on where it lies; only what comes in pieces is copied.

mod frame;
mod hpack;

pub use frame::FRAME_HEADER_OCTETS;
use frame::{Frame, FrameKind, Setting, flags};

/// Octets before each message: a flag and its length.
pub const PREFIX_OCTETS: usize = 5;

/// What a message of audio costs beside its body.
pub const OVERHEAD_OCTETS: usize = FRAME_HEADER_OCTETS + PREFIX_OCTETS;

/// Longest message that is read: 32 s of L16 at 16 kHz, which is as much as the playout queue takes.
pub const MESSAGE_MAX: usize = 1024 * 1024;

/// Octets that may wait to be written, of messages and of answers to the peer: one that asks and does not read is cut off.
pub const WAITING_MAX: usize = 64 * 1024;

/// Octets of messages that the peer may send before more is granted ([`Client::grant`]): 20 s of L16 at 16 kHz and what is around it.
pub const WINDOW: u32 = 704 * 1024;

/// Windows as they are before anybody has said anything (RFC 9113 §6.9.2).
const WINDOW_AT_FIRST: i64 = 65_535;
const WINDOW_MAX: i64 = (1 << 31) - 1;

/// Header octets of one answer, before they are decoded.
const HEADERS_MAX: usize = 16 * 1024;

/// Our stream: the first that a client may open.
const STREAM: u32 = 1;

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// 0 is well; the others are of google.rpc.Code.
    pub code: u32,
    /// In the server's words.
    pub message: String,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A message.
    Message(&'a [u8]),
    /// The server ended the call; nothing comes after it.
    Ended(Status),
}

/// The peer broke the protocol, or speaks what we do not: the connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrpcError {
    /// Not HTTP/2: what an HTTP/1 server answers, mostly.
    #[error("the answer is not HTTP/2")]
    NotHttp2,
    /// A frame that is too long, or not what its kind must be.
    #[error("frame {kind} of {len} octets is malformed")]
    Frame {
        /// RFC 9113 §6.
        kind: u8,
        /// Of its payload.
        len: usize,
    },
    /// Headers that cannot be decoded.
    #[error("headers cannot be decoded")]
    Headers,
    /// A window grew beyond what there is.
    #[error("flow-control window overflows")]
    Window,
    /// Compressed without having been asked to.
    #[error("message is compressed")]
    Compressed,
    /// Longer than [`MESSAGE_MAX`].
    #[error("message of {0} octets is longer than {MESSAGE_MAX}")]
    MessageTooLong(usize),
    /// [`WAITING_MAX`] is full.
    #[error("peer does not read what it asks for")]
    NotRead,
}

/// A call that cannot be asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// A name that HTTP/2 has no place for.
    #[error("header name {0:?} cannot be sent")]
    Name(String),
    /// A value with something else than printable ASCII; it may be a secret.
    #[error("value of header {0:?} cannot be sent")]
    Value(String),
    /// All of them together.
    #[error("headers are longer than {} octets", frame::PAYLOAD_MAX)]
    TooLong,
}

/// What is to be called.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Over TLS.
    pub secure: bool,
    /// `host:port`.
    pub authority: &'a str,
    /// `/package.Service/Method`.
    pub path: &'a str,
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    /// Of a frame that came in pieces.
    partial: Vec<u8>,
    /// Of a message that came in pieces.
    message: Vec<u8>,
    /// Of headers that are continued.
    block: Option<Block>,
    has_greeted: bool,
    has_answered: bool,
    has_ended: bool,
    /// Octets of messages that may still be sent, of the connection and of the stream.
    windows: [i64; 2],
    peer_window: i64,
    /// Octets of messages that came and were not told by [`Client::take_received`].
    received: usize,
    /// Frames that no window holds back.
    answers: Vec<u8>,
    answered: usize,
    /// Messages with their prefixes.
    messages: Vec<u8>,
    sent: usize,
    finish: Finish,
}

#[derive(Debug)]
struct Block {
    octets: Vec<u8>,
    ends_stream: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    No,
    /// After the messages that wait.
    Wanted,
    Written,
}

impl Client {
    /// A call whose first octets wait to be written.
    ///
    /// # Errors
    /// [`RequestError`]
    pub fn new<'a>(
        request: Request<'_>,
        headers: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, RequestError> {
        let mut answers = frame::PREFACE.to_vec();
        let settings =
            [(Setting::HeaderTableSize, 0), (Setting::EnablePush, 0), (Setting::InitialWindowSize, WINDOW)];
        frame::append_settings(&mut answers, &settings);
        frame::append_window_update(&mut answers, 0, WINDOW - WINDOW_AT_FIRST as u32);
        let block = hpack::write_request(request, headers)?;
        if block.len() > frame::PAYLOAD_MAX {
            return Err(RequestError::TooLong);
        }
        frame::append(&mut answers, FrameKind::Headers, flags::END_HEADERS, STREAM, &block);
        Ok(Self {
            partial: Vec::new(),
            message: Vec::new(),
            block: None,
            has_greeted: false,
            has_answered: false,
            has_ended: false,
            windows: [WINDOW_AT_FIRST; 2],
            peer_window: WINDOW_AT_FIRST,
            received: 0,
            answers,
            answered: 0,
            messages: Vec::new(),
            sent: 0,
            finish: Finish::No,
        })
    }

    // --- from the network ---

    /// Takes octets of the connection.
    ///
    /// # Errors
    /// [`GrpcError`]: nothing more is to be made of it.
    pub fn handle_bytes(
        &mut self,
        mut bytes: &[u8],
        take: &mut dyn FnMut(Incoming<'_>),
    ) -> Result<(), GrpcError> {
        while !bytes.is_empty() && !self.has_ended {
            if self.partial.is_empty()
                && let Some((frame, rest)) = self.split(bytes)?
            {
                self.handle_frame(&frame, take)?;
                bytes = rest;
                continue;
            }
            // In pieces: as much as the frame wants, or its header.
            let known = match self.split(&self.partial)? {
                Some((frame, _)) => FRAME_HEADER_OCTETS + frame.payload.len(),
                None => frame::len_of(&self.partial).unwrap_or(FRAME_HEADER_OCTETS),
            };
            let wanted = known.saturating_sub(self.partial.len()).min(bytes.len());
            self.partial.extend_from_slice(&bytes[..wanted]);
            bytes = &bytes[wanted..];
            if frame::len_of(&self.partial).is_some_and(|len| self.partial.len() >= len) {
                let partial = std::mem::take(&mut self.partial);
                if let Some((frame, _)) = self.split(&partial)? {
                    self.handle_frame(&frame, take)?;
                }
                self.partial = partial;
                self.partial.clear();
            } else if frame::len_of(&self.partial).is_some() {
                // Its header is whole: judged before its payload is waited for.
                self.split(&self.partial)?;
            }
        }
        Ok(())
    }

    fn split<'a>(&self, bytes: &'a [u8]) -> Result<Option<(Frame<'a>, &'a [u8])>, GrpcError> {
        let Some(head) = frame::Head::read(bytes) else { return Ok(None) };
        if !self.has_greeted && head.kind != FrameKind::Settings as u8 {
            return Err(GrpcError::NotHttp2);
        }
        if head.len > frame::PAYLOAD_MAX {
            return Err(GrpcError::Frame { kind: head.kind, len: head.len });
        }
        Ok(frame::split(head, bytes))
    }

    fn handle_frame(
        &mut self,
        frame: &Frame<'_>,
        take: &mut dyn FnMut(Incoming<'_>),
    ) -> Result<(), GrpcError> {
        self.has_greeted = true;
        let malformed = GrpcError::Frame { kind: frame.kind, len: frame.payload.len() };
        let kind = FrameKind::from_octet(frame.kind);
        // Between headers and their continuation nothing else may come (RFC 9113 §6.10).
        if self.block.is_some() != (kind == Some(FrameKind::Continuation)) {
            return Err(malformed);
        }
        let is_ours = frame.stream == STREAM;
        match kind {
            Some(FrameKind::Data) if is_ours && self.has_answered => {
                let data = frame.unpadded().ok_or(malformed)?;
                self.received += frame.payload.len();
                self.handle_data(data, take)?;
                if frame.has(flags::END_STREAM) {
                    let message = "ended without a status".to_owned();
                    self.end(Status { code: 2, message }, take);
                }
            }
            Some(FrameKind::Headers) if is_ours => {
                let octets = frame.unpadded().ok_or(malformed.clone())?;
                let skipped = if frame.has(flags::PRIORITY) { 5 } else { 0 };
                let octets = octets.get(skipped..).ok_or(malformed)?.to_vec();
                self.block = Some(Block { octets, ends_stream: frame.has(flags::END_STREAM) });
                self.handle_block(frame.has(flags::END_HEADERS), take)?;
            }
            Some(FrameKind::Continuation) if is_ours => {
                if let Some(block) = &mut self.block {
                    block.octets.extend_from_slice(frame.payload);
                }
                self.handle_block(frame.has(flags::END_HEADERS), take)?;
            }
            Some(FrameKind::Data | FrameKind::Headers | FrameKind::Continuation | FrameKind::PushPromise) => {
                return Err(malformed);
            }
            Some(FrameKind::Reset) if is_ours => {
                let code = frame.number(0).ok_or(malformed)?;
                // 8 is CANCEL (§7), and 1 is gRPC's word for it.
                let message = format!("the stream was reset with error {code}");
                self.end(Status { code: if code == 8 { 1 } else { 14 }, message }, take);
            }
            Some(FrameKind::Settings) if !frame.has(flags::ACK) => self.handle_settings(frame.payload)?,
            Some(FrameKind::Ping) if frame.payload.len() != 8 => return Err(malformed),
            Some(FrameKind::Ping) if !frame.has(flags::ACK) => {
                self.answer(|out| frame::append(out, FrameKind::Ping, flags::ACK, 0, frame.payload))?;
            }
            Some(FrameKind::GoAway) => {
                // Streams up to the last that it knows go on; ours is the first.
                let last = frame.number(0).ok_or(malformed)?;
                if last & WINDOW_MAX as u32 == 0 {
                    self.end(Status { code: 14, message: "the server goes away".to_owned() }, take);
                }
            }
            Some(FrameKind::WindowUpdate) => {
                let more = i64::from(frame.number(0).ok_or(malformed.clone())?) & WINDOW_MAX;
                let window = match frame.stream {
                    0 => &mut self.windows[0],
                    STREAM => &mut self.windows[1],
                    _ => return Err(malformed),
                };
                if more == 0 {
                    return Err(malformed);
                }
                *window += more;
                if *window > WINDOW_MAX {
                    return Err(GrpcError::Window);
                }
            }
            // Acknowledgements, priorities, frames of kinds that nobody knows (§4.1).
            Some(FrameKind::Settings | FrameKind::Ping | FrameKind::Priority | FrameKind::Reset) | None => {}
        }
        Ok(())
    }

    fn handle_settings(&mut self, payload: &[u8]) -> Result<(), GrpcError> {
        let malformed = GrpcError::Frame { kind: FrameKind::Settings as u8, len: payload.len() };
        if !payload.len().is_multiple_of(6) {
            return Err(malformed);
        }
        for setting in payload.chunks_exact(6) {
            let value = u32::from_be_bytes([setting[2], setting[3], setting[4], setting[5]]);
            match Setting::from_number(u16::from_be_bytes([setting[0], setting[1]])) {
                Some(Setting::InitialWindowSize) => {
                    // What was sent already counts against the new one, which may make it negative (§6.9.2).
                    self.windows[1] += i64::from(value) - self.peer_window;
                    self.peer_window = i64::from(value);
                    if i64::from(value) > WINDOW_MAX || self.windows[1] > WINDOW_MAX {
                        return Err(GrpcError::Window);
                    }
                }
                Some(Setting::HeaderTableSize | Setting::EnablePush) | None => {}
            }
        }
        self.answer(|out| frame::append(out, FrameKind::Settings, flags::ACK, 0, &[]))
    }

    fn handle_block(&mut self, is_whole: bool, take: &mut dyn FnMut(Incoming<'_>)) -> Result<(), GrpcError> {
        let Some(block) = &self.block else { return Ok(()) };
        if block.octets.len() > HEADERS_MAX {
            return Err(GrpcError::Headers);
        }
        if !is_whole {
            return Ok(());
        }
        let answer = hpack::read(&block.octets).ok_or(GrpcError::Headers)?;
        let ends_stream = block.ends_stream;
        self.block = None;
        if let Some(status) = answer.status.filter(|status| *status != 200 && !self.has_answered) {
            // 1xx come before the answer itself.
            if status >= 200 {
                let message = format!("the server answered with HTTP status {status}");
                self.end(Status { code: 14, message }, take);
            }
            return Ok(());
        }
        self.has_answered = true;
        if ends_stream {
            let code = answer.grpc_status.unwrap_or(2);
            self.end(Status { code, message: answer.grpc_message }, take);
        }
        Ok(())
    }

    fn end(&mut self, status: Status, take: &mut dyn FnMut(Incoming<'_>)) {
        if !std::mem::replace(&mut self.has_ended, true) {
            take(Incoming::Ended(status));
        }
    }

    fn handle_data(&mut self, mut data: &[u8], take: &mut dyn FnMut(Incoming<'_>)) -> Result<(), GrpcError> {
        while !data.is_empty() {
            if self.message.is_empty()
                && let Some(len) = message_len(data)?
                && let Some(message) = data.get(PREFIX_OCTETS..len)
            {
                take(Incoming::Message(message));
                data = &data[len..];
                continue;
            }
            let known = message_len(&self.message)?.unwrap_or(PREFIX_OCTETS);
            let wanted = known.saturating_sub(self.message.len()).min(data.len());
            self.message.extend_from_slice(&data[..wanted]);
            data = &data[wanted..];
            if message_len(&self.message)? == Some(self.message.len()) {
                take(Incoming::Message(&self.message[PREFIX_OCTETS..]));
                self.message.clear();
            }
        }
        Ok(())
    }

    // --- what the call wants ---

    /// Octets of messages that came since this was last asked: they are to be granted again by and by.
    pub fn take_received(&mut self) -> usize {
        std::mem::take(&mut self.received)
    }

    /// The peer may send so many octets more.
    ///
    /// # Errors
    /// [`GrpcError::NotRead`]
    pub fn grant(&mut self, octets: u32) -> Result<(), GrpcError> {
        self.answer(|out| {
            frame::append_window_update(out, 0, octets);
            frame::append_window_update(out, STREAM, octets);
        })
    }

    /// Sends a message, after those that wait.
    ///
    /// # Errors
    /// [`GrpcError::NotRead`]
    pub fn push(&mut self, message: &[u8]) -> Result<(), GrpcError> {
        if self.messages.len() - self.sent + message.len() > WAITING_MAX {
            return Err(GrpcError::NotRead);
        }
        self.messages.push(0);
        self.messages.extend_from_slice(&(message.len() as u32).to_be_bytes());
        self.messages.extend_from_slice(message);
        Ok(())
    }

    /// Nothing is sent after what waits.
    pub fn finish(&mut self) {
        if self.finish == Finish::No {
            self.finish = Finish::Wanted;
        }
    }

    fn answer(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), GrpcError> {
        write(&mut self.answers);
        match self.answers.len() - self.answered > WAITING_MAX {
            true => Err(GrpcError::NotRead),
            false => Ok(()),
        }
    }

    // --- what must leave ---

    /// Octets of messages that the peer takes now.
    fn window(&self) -> usize {
        self.windows[0].min(self.windows[1]).max(0) as usize
    }

    fn spend(&mut self, octets: usize) {
        self.windows[0] -= octets as i64;
        self.windows[1] -= octets as i64;
    }

    fn has_messages(&self) -> bool {
        self.sent < self.messages.len()
    }

    /// Whether [`Client::poll_output`] has something.
    pub fn has_output(&self) -> bool {
        self.answered < self.answers.len()
            || (self.has_messages() && self.window() > 0)
            || (!self.has_messages() && self.finish == Finish::Wanted)
    }

    /// Writes into `out` what waits, as far as it fits and the windows reach, and says how many octets.
    pub fn poll_output(&mut self, out: &mut [u8]) -> usize {
        let waiting = &self.answers[self.answered..];
        let mut len = waiting.len().min(out.len());
        out[..len].copy_from_slice(&waiting[..len]);
        self.answered += len;
        if self.answered < self.answers.len() {
            return len;
        }
        self.answers.clear();
        self.answered = 0;
        while self.has_messages() {
            let room = out.len().saturating_sub(len + FRAME_HEADER_OCTETS);
            let waiting = &self.messages[self.sent..];
            let octets = waiting.len().min(self.window()).min(frame::PAYLOAD_MAX).min(room);
            if octets == 0 {
                return len;
            }
            frame::write_head(&mut out[len..], octets, FrameKind::Data, 0, STREAM);
            len += FRAME_HEADER_OCTETS;
            out[len..len + octets].copy_from_slice(&waiting[..octets]);
            len += octets;
            self.sent += octets;
            self.spend(octets);
        }
        self.messages.clear();
        self.sent = 0;
        if self.finish == Finish::Wanted && out.len() >= len + FRAME_HEADER_OCTETS {
            frame::write_head(&mut out[len..], 0, FrameKind::Data, flags::END_STREAM, STREAM);
            len += FRAME_HEADER_OCTETS;
            self.finish = Finish::Written;
        }
        len
    }

    /// Whether a message of so many octets may be written at once: nothing waits before it, and both windows have room.
    pub fn takes_message(&self, octets: usize) -> bool {
        self.answered == self.answers.len()
            && !self.has_messages()
            && self.finish == Finish::No
            && self.window() >= PREFIX_OCTETS + octets
    }

    /// Writes a message whole into `out`; `fill` writes its `octets`. `None`: it may not be, or does not fit.
    pub fn write_message(
        &mut self,
        out: &mut [u8],
        octets: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<usize> {
        if !self.takes_message(octets) || PREFIX_OCTETS + octets > frame::PAYLOAD_MAX {
            return None;
        }
        let whole = out.get_mut(..OVERHEAD_OCTETS + octets)?;
        frame::write_head(whole, PREFIX_OCTETS + octets, FrameKind::Data, 0, STREAM);
        whole[FRAME_HEADER_OCTETS] = 0;
        whole[FRAME_HEADER_OCTETS + 1..OVERHEAD_OCTETS].copy_from_slice(&(octets as u32).to_be_bytes());
        fill(&mut whole[OVERHEAD_OCTETS..]);
        self.spend(PREFIX_OCTETS + octets);
        Some(OVERHEAD_OCTETS + octets)
    }
}

/// Length of the message that begins here, its prefix included; `None` while that is not known.
fn message_len(octets: &[u8]) -> Result<Option<usize>, GrpcError> {
    let Some(&[flag, a, b, c, d]) = octets.get(..PREFIX_OCTETS) else { return Ok(None) };
    if flag != 0 {
        return Err(GrpcError::Compressed);
    }
    match u32::from_be_bytes([a, b, c, d]) as usize {
        len if len > MESSAGE_MAX => Err(GrpcError::MessageTooLong(len)),
        len => Ok(Some(PREFIX_OCTETS + len)),
    }
}

#[cfg(test)]
mod tests;
