//! An agent that serves `tandem.agent.v1.Agent`: a gRPC call on an HTTP/2 connection of its own ([`tandem_stream::grpc`]).
//!
//! ```text
//!   Connecting ──connected──▶ Opening ──accepted──▶ Open ──our stop──▶ Closing
//!        └──────── time out, refused, status, broken ─────────▶ Failed
//! ```
//!
//! Audio is written where it leaves: one message in one frame, as far as the agent's window reaches. What is above waits, and in the end
//! the oldest of it is dropped. What the agent may send is granted as the caller hears it, so an agent that talks ahead is held back
//! by its own library. Everything rarer than audio goes through prost, and may allocate.

use std::time::Instant;

use tandem_api::agent::v1::{self as proto, from_agent, to_agent};
use tandem_api::prost::Message;
use tandem_audio::format::SampleRate;
use tandem_audio::pcm;
use tandem_audio::tone::Digit;
use tandem_stream::agent::{self as pcm_dialect, TransferMode};
use tandem_stream::grpc::{Client, GrpcError, Incoming, Request as Method, Status, WINDOW};
use tandem_stream::link::credit::Granter;

use super::agent::{CallInfo, GrpcParameters};
use super::backlog::Backlog;
use super::event::Request;
use super::stream::{FRAME_MS, PIECE, Said, Tell, hear_pcm};
use super::tls::Tls;
use super::websocket::Loss;

/// What is called.
const METHOD: &str = "/tandem.agent.v1.Agent/Call";

/// Field 1 of a message, `audio`, and its length: 640 as a varint.
const AUDIO_HEAD: [u8; 3] = [0x0A, 0x80, 0x05];

/// Octets of one caller frame as a message.
const AUDIO_OCTETS: usize = AUDIO_HEAD.len() + pcm_dialect::FRAME_BYTES;

const _: () = assert!(pcm_dialect::FRAME_BYTES == 640, "AUDIO_HEAD says so");

/// Octets of one millisecond of audio.
const OCTETS_A_MS: u64 = 2 * SampleRate::Hz16000.samples_per_ms() as u64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    /// For the agent's word.
    Opening,
    Open,
    /// Our stop is out or on its way.
    Closing,
    Failed,
}

/// See the module.
#[derive(Debug)]
pub struct GrpcStream {
    state: State,
    client: Client,
    /// Below the connection, for `grpcs://`.
    tls: Option<Box<Tls>>,
    /// The first message, until it is written.
    start: Option<Box<proto::Start>>,
    deadline: Option<Instant>,
    backlog: Backlog,
    granter: Granter,
    loss: Option<Loss>,
    frames_in: u64,
    frames_out: u64,
    malformed: u64,
}

impl GrpcStream {
    pub(super) fn new(parameters: GrpcParameters, call: &CallInfo, now: Instant) -> Result<Self, String> {
        let GrpcParameters { url, tls, headers, custom, connect_timeout } = parameters;
        let authority = url.host_header();
        let method = Method { secure: url.secure, authority: &authority, path: METHOD };
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let client = Client::new(method, headers).map_err(|error| error.to_string())?;
        let tls = match tls {
            Some(config) => Some(Box::new(Tls::new(config, &url.host)?)),
            None => None,
        };
        let start = proto::Start {
            call_id: call.call_id.clone(),
            from: call.from.clone(),
            to: call.to.clone(),
            direction: call.direction.clone(),
            sample_rate: pcm_dialect::SAMPLE_RATE_HZ,
            channels: 1,
            frame_ms: FRAME_MS,
            custom: custom.into_iter().collect(),
        };
        Ok(Self {
            state: State::Connecting,
            client,
            tls,
            start: Some(Box::new(start)),
            deadline: Some(now + connect_timeout),
            backlog: Backlog::new(pcm_dialect::FRAME_BYTES, FRAME_MS),
            granter: Granter::new(WINDOW),
            loss: None,
            frames_in: 0,
            frames_out: 0,
            malformed: 0,
        })
    }

    pub(super) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(super) fn has_failed(&self) -> bool {
        self.state == State::Failed
    }

    pub(super) fn counters(&self) -> (u64, u64, u64) {
        (self.frames_in, self.frames_out, self.backlog.dropped_ms())
    }

    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadline
    }

    pub(super) fn poll_loss(&mut self) -> Option<Loss> {
        self.loss.take()
    }

    fn fail(&mut self, reason: String, is_normal: bool) {
        if self.state != State::Failed {
            self.state = State::Failed;
            self.loss = Some(Loss { reason, is_normal });
        }
        self.deadline = None;
        self.backlog.clear();
    }

    fn say(&mut self, what: to_agent::What) {
        let message = proto::ToAgent { what: Some(what) }.encode_to_vec();
        self.check(|client| client.push(&message));
    }

    fn check(&mut self, run: impl FnOnce(&mut Client) -> Result<(), GrpcError>) {
        match run(&mut self.client) {
            Err(GrpcError::NotRead) => self.fail("agent does not read its stream".into(), false),
            Err(error) => self.fail(format!("agent broke the gRPC protocol: {error}"), false),
            Ok(()) => {}
        }
    }

    // --- from network and clock ---

    pub(super) fn handle_connected(&mut self) {
        if self.state == State::Connecting {
            self.state = State::Opening;
            if let Some(start) = self.start.take() {
                self.say(to_agent::What::Start(*start));
            }
        }
    }

    pub(super) fn handle_ended(&mut self, error: Option<&std::io::Error>) {
        let what = match self.state {
            State::Connecting => "could not be connected",
            State::Opening | State::Open => "closed the connection",
            State::Closing | State::Failed => {
                self.state = State::Failed;
                return;
            }
        };
        let reason = match error {
            Some(error) => format!("agent {what}: {error}"),
            None => format!("agent {what}"),
        };
        self.fail(reason, false);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            let what = match self.state {
                State::Connecting => "could not be connected in time",
                _ => "did not accept the call in time",
            };
            self.fail(format!("agent {what}"), false);
        }
    }

    pub(super) fn handle_bytes(&mut self, bytes: &[u8], take: &mut dyn FnMut(Said<'_>)) {
        self.through_tls(take, |tls, plain| tls.handle_bytes(bytes, plain), bytes);
    }

    pub(super) fn wants_handshake(&self) -> bool {
        let is_alive = !matches!(self.state, State::Failed | State::Closing);
        self.tls.as_ref().is_some_and(|tls| tls.wants_handshake()) && is_alive
    }

    pub(super) fn handle_handshake(&mut self, take: &mut dyn FnMut(Said<'_>)) {
        self.through_tls(take, |tls, plain| tls.handle_handshake(plain), &[]);
    }

    /// Lets TLS read and hears what it gives; without TLS, hears `plain`.
    fn through_tls(
        &mut self,
        take: &mut dyn FnMut(Said<'_>),
        read: impl FnOnce(&mut Tls, &mut dyn FnMut(&[u8])) -> Result<(), String>,
        plain: &[u8],
    ) {
        let Some(mut tls) = self.tls.take() else { return self.handle_plain(plain, take) };
        if let Err(reason) = read(&mut tls, &mut |plain| self.handle_plain(plain, take)) {
            self.fail(reason, false);
        }
        self.tls = Some(tls);
    }

    fn handle_plain(&mut self, bytes: &[u8], take: &mut dyn FnMut(Said<'_>)) {
        if matches!(self.state, State::Connecting | State::Failed) {
            return;
        }
        let Self { state, client, deadline, backlog, frames_in, malformed, .. } = self;
        let mut ended = None;
        let read = client.handle_bytes(bytes, &mut |incoming| match incoming {
            Incoming::Ended(status) => ended = Some(status),
            Incoming::Message(_) if *state == State::Closing => {}
            Incoming::Message(message) => match Words::read(message) {
                Some(Words::Accepted) if *state == State::Opening => {
                    (*state, *deadline) = (State::Open, None);
                    backlog.attach();
                    take(Said::Ready);
                }
                Some(Words::Audio(octets)) if *state == State::Open => {
                    *frames_in += 1;
                    hear_pcm(octets, take);
                }
                Some(Words::Request(request)) if *state == State::Open => take(Said::Request(request)),
                Some(Words::Unknown) => {}
                Some(_) | None => *malformed += 1,
            },
        });
        let received = self.client.take_received();
        self.granter.receive(received);
        self.check(|_| read);
        if let Some(status) = ended {
            self.handle_status(&status);
        }
    }

    fn handle_status(&mut self, Status { code, message }: &Status) {
        let reason = match (self.state, *code) {
            (State::Opening, _) if message.is_empty() => format!("agent refused the call: status {code}"),
            (State::Opening, _) => format!("agent refused the call: {message}"),
            (_, 0) => "agent ended the call's stream".to_owned(),
            _ => format!("agent ended the call's stream: {message} (status {code})"),
        };
        match self.state {
            State::Closing => self.state = State::Failed,
            _ => self.fail(reason, *code == 0),
        }
    }

    pub(super) fn handle_waiting(&mut self, ms: u64) {
        if self.state == State::Open
            && let Some(octets) = self.granter.grant(ms * OCTETS_A_MS)
        {
            self.check(|client| client.grant(octets));
        }
    }

    // --- what the session wants ---

    pub(super) fn hear(&mut self, samples: &[i16]) {
        if matches!(self.state, State::Closing | State::Failed) {
            return;
        }
        for piece in samples.chunks(PIECE) {
            let mut octets = [0; 2 * PIECE];
            let len = pcm::write_le(piece, &mut octets);
            self.backlog.push(&octets[..len]);
        }
        self.backlog.trim();
    }

    pub(super) fn tell(&mut self, what: &Tell<'_>) {
        if self.state == State::Open {
            self.say(told(what));
        }
    }

    pub(super) fn stop(&mut self, reason: &str) {
        match self.state {
            State::Opening | State::Open => {
                self.say(to_agent::What::Stop(proto::Stop { reason: reason.to_owned() }));
                self.client.finish();
                if self.state != State::Failed {
                    self.state = State::Closing;
                }
            }
            State::Connecting => self.state = State::Failed,
            State::Closing | State::Failed => {}
        }
        self.deadline = None;
        self.backlog.clear();
    }

    pub(super) fn abandon(&mut self) {
        self.state = State::Failed;
        self.deadline = None;
    }

    // --- what must leave ---

    fn has_plain_output(&self) -> bool {
        match self.state {
            State::Opening | State::Closing => self.client.has_output(),
            State::Open => {
                self.client.has_output()
                    || (self.backlog.has_frame() && self.client.takes_message(AUDIO_OCTETS))
            }
            State::Connecting | State::Failed => false,
        }
    }

    pub(super) fn has_output(&self) -> bool {
        match &self.tls {
            Some(_) if matches!(self.state, State::Connecting | State::Failed) => false,
            Some(tls) => tls.has_output() || (!tls.is_handshaking() && self.has_plain_output()),
            None => self.has_plain_output(),
        }
    }

    pub(super) fn poll_stream(&mut self, out: &mut [u8]) -> usize {
        let Some(mut tls) = self.tls.take() else { return self.poll_plain(out) };
        let (len, outcome) = tls.poll_records(out, |plain| self.poll_plain(plain));
        if let Err(reason) = outcome {
            self.fail(reason, false);
        }
        self.tls = Some(tls);
        len
    }

    fn poll_plain(&mut self, out: &mut [u8]) -> usize {
        if matches!(self.state, State::Connecting | State::Failed) {
            return 0;
        }
        let mut len = self.client.poll_output(out);
        while self.state == State::Open && self.backlog.has_frame() {
            let body = |body: &mut [u8]| {
                let (head, octets) = body.split_at_mut(AUDIO_HEAD.len());
                head.copy_from_slice(&AUDIO_HEAD);
                self.backlog.copy(octets);
            };
            let Some(written) = self.client.write_message(&mut out[len..], AUDIO_OCTETS, body) else { break };
            self.backlog.pop();
            self.frames_out += 1;
            len += written;
        }
        len
    }
}

/// A message of the agent.
enum Words<'a> {
    Audio(&'a [u8]),
    Accepted,
    Request(Request),
    /// Of a newer protocol than ours.
    Unknown,
}

impl<'a> Words<'a> {
    /// Reads a message; `None` when it is none, or says what may not be said.
    fn read(message: &'a [u8]) -> Option<Self> {
        if let Some(octets) = audio(message) {
            return octets.len().is_multiple_of(2).then_some(Self::Audio(octets));
        }
        let Some(what) = proto::FromAgent::decode(message).ok()?.what else { return Some(Self::Unknown) };
        use from_agent::What;
        Some(Self::Request(match what {
            // A way of writing it that no library has.
            What::Audio(_) => return None,
            What::Accepted(_) => return Some(Self::Accepted),
            What::Clear(_) => Request::Clear,
            What::Pause(_) => Request::Pause,
            What::Resume(_) => Request::Resume,
            What::Answer(_) => Request::Answer,
            What::Hangup(hangup) => Request::Hangup { after_drain: !hangup.now },
            What::Mark(mark) if mark.name.len() <= pcm_dialect::MARK_NAME_MAX => {
                Request::Mark { name: mark.name }
            }
            What::Dtmf(dtmf)
                if (1..=pcm_dialect::DTMF_DIGITS_MAX).contains(&dtmf.digits.len())
                    && dtmf.digits.chars().all(|digit| Digit::from_char(digit).is_some()) =>
            {
                Request::Dtmf { digits: dtmf.digits }
            }
            What::Transfer(transfer) if transfer.to.len() <= pcm_dialect::TEXT_MAX => {
                let mode = match transfer.mode.as_str() {
                    "" => Some(TransferMode::Refer),
                    mode => TransferMode::parse(mode),
                };
                let mode = mode.filter(|mode| !mode.names_somebody() || !transfer.to.is_empty())?;
                Request::Transfer { to: transfer.to, mode }
            }
            What::Headers(set)
                if (1..=pcm_dialect::HEADERS_MAX).contains(&set.headers.len())
                    && set
                        .headers
                        .iter()
                        .all(|(name, value)| name.len() + value.len() <= pcm_dialect::HEADER_MAX) =>
            {
                Request::Headers { headers: set.headers.into_iter().collect() }
            }
            What::Mark(_) | What::Dtmf(_) | What::Transfer(_) | What::Headers(_) => return None,
        }))
    }
}

/// The octets of a message that is audio and nothing else, where they lie.
fn audio(message: &[u8]) -> Option<&[u8]> {
    let (&0x0A, rest) = message.split_first()? else { return None };
    let mut len = 0;
    for (n, octet) in rest.iter().enumerate().take(4) {
        len |= usize::from(octet & 0x7F) << (7 * n);
        if *octet < 0x80 {
            return rest.get(n + 1..).filter(|octets| octets.len() == len);
        }
    }
    None
}

/// As the agent is told.
fn told(what: &Tell<'_>) -> to_agent::What {
    use to_agent::What;
    match what {
        Tell::Dtmf { digit, duration_ms } => {
            What::Dtmf(proto::DtmfPressed { digit: digit.to_string(), duration_ms: *duration_ms })
        }
        Tell::Mark { name, heard_ms } => {
            What::Mark(proto::MarkReached { name: (*name).to_owned(), heard_ms: *heard_ms })
        }
        Tell::Cleared { heard_ms } => What::Cleared(proto::Cleared { heard_ms: *heard_ms }),
        Tell::Paused { heard_ms } => What::Paused(proto::Paused { heard_ms: *heard_ms }),
        Tell::Speech { active } => What::Speech(proto::Speech { active: *active }),
        Tell::Gap { ms } => What::Gap(proto::Gap { ms: *ms }),
        Tell::Hold => What::Hold(proto::Hold {}),
        Tell::Resume => What::Resumed(proto::Resumed {}),
        Tell::Answered => What::Answered(proto::Answered {}),
        Tell::Transfer { status, reason } => What::Transfer(proto::TransferProgress {
            status: (*status).to_owned(),
            reason: (*reason).to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audio_is_written_as_prost_would_and_read_where_it_lies() {
        let frame = vec![7; pcm_dialect::FRAME_BYTES];
        let prost = proto::ToAgent { what: Some(to_agent::What::Audio(frame.clone())) }.encode_to_vec();
        assert_eq!(prost, [&AUDIO_HEAD[..], &frame].concat());
        for len in [0, 2, 126, 128, 640, 20_000] {
            let octets = vec![1; len];
            let message =
                proto::FromAgent { what: Some(from_agent::What::Audio(octets.clone())) }.encode_to_vec();
            assert!(matches!(Words::read(&message), Some(Words::Audio(read)) if read == octets), "{len}");
        }
        let odd = proto::FromAgent { what: Some(from_agent::What::Audio(vec![1; 3])) }.encode_to_vec();
        assert!(Words::read(&odd).is_none());
    }

    #[test]
    fn what_may_not_be_said_is_malformed_and_what_is_new_is_ignored() {
        let read = |what| Words::read(&proto::FromAgent { what: Some(what) }.encode_to_vec()).is_some();
        assert!(read(from_agent::What::Dtmf(proto::PressDtmf { digits: "12#A".into() })));
        assert!(!read(from_agent::What::Dtmf(proto::PressDtmf { digits: "12x".into() })));
        assert!(!read(from_agent::What::Dtmf(proto::PressDtmf { digits: String::new() })));
        assert!(!read(from_agent::What::Mark(proto::Mark { name: "m".repeat(257) })));
        assert!(!read(from_agent::What::Transfer(proto::Transfer::default())));
        assert!(!read(from_agent::What::Headers(proto::Headers::default())));
        // Field 99, which there is not.
        assert!(matches!(Words::read(&[0x9A, 0x06, 0x00]), Some(Words::Unknown)));
        assert!(Words::read(&[0xFF]).is_none());
    }
}
