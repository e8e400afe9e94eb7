//! An agent behind a WebSocket of its own, and the two dialects that are spoken to it.

use std::time::Instant;

use tandem_audio::format::SampleRate;
use tandem_audio::{g711, pcm};
use tandem_stream::websocket::{ClientHandshake, MASKED_HEADER_MAX, Opcode, close, write_frame_with};
use tandem_stream::{Dialect, agent as pcm_dialect, twilio};

use super::agent::{CallInfo, WebSocketParameters};
use super::backlog::Backlog;
use super::event::Request;
use super::stream::{FRAME_MS, PIECE, Said, Tell, event, hear_pcm, request};
use super::tls::Tls;
use super::websocket::{Connection, Incoming, Loss, Masks};

/// An agent behind a WebSocket.
#[derive(Debug)]
pub struct WebSocketStream {
    connection: Connection,
    /// Below the connection, for `wss://`.
    tls: Option<Box<Tls>>,
    dialect: Dialect,
    start: Start,
    writer: twilio::StreamWriter,
    backlog: Backlog,
    /// Milliseconds of caller audio that went out or were dropped: the Twilio dialect's clock.
    clock_ms: u64,
    frames_in: u64,
    frames_out: u64,
    malformed: u64,
}

/// What the start frame says.
#[derive(Debug)]
struct Start {
    pcm: pcm_dialect::Start,
    /// Said when the stream is up; nothing is said twice.
    said: bool,
}

impl WebSocketStream {
    pub(super) fn new(
        parameters: WebSocketParameters,
        call: &CallInfo,
        seed: u64,
        now: Instant,
    ) -> Result<Self, String> {
        let mut masks = Masks::new(seed);
        let (high, low) = (masks.next_bits(), masks.next_bits());
        let mut key = [0; 16];
        key[..8].copy_from_slice(&high.to_ne_bytes());
        key[8..].copy_from_slice(&low.to_ne_bytes());
        let handshake = ClientHandshake::new(key);
        let mut request = Vec::new();
        let headers = parameters.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let url = &parameters.url;
        handshake
            .write_request(&url.host_header(), &url.path, headers, &mut request)
            .map_err(|error| error.to_string())?;
        let tls = match parameters.tls {
            Some(config) => Some(Box::new(Tls::new(config, &url.host)?)),
            None => None,
        };
        let ids = twilio::StreamIds {
            stream_sid: format!("MZ{:016x}{:016x}", masks.next_bits(), masks.next_bits()),
            call_sid: format!("CA{}", call.call_id.replace('-', "")),
            account_sid: format!("AC{}", call.tenant_id.replace('-', "")),
        };
        let mut pcm = pcm_dialect::Start::new(&call.call_id, &call.from, &call.to, &call.direction);
        pcm.custom = parameters.custom;
        Ok(Self {
            connection: Connection::new(handshake, request, masks, now + parameters.connect_timeout),
            tls,
            dialect: parameters.dialect,
            start: Start { pcm, said: false },
            writer: twilio::StreamWriter::new(ids),
            backlog: Backlog::new(frame_octets(parameters.dialect), FRAME_MS),
            clock_ms: 0,
            frames_in: 0,
            frames_out: 0,
            malformed: 0,
        })
    }

    /// Which dialect it speaks.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(super) fn rate(&self) -> SampleRate {
        match self.dialect {
            Dialect::Pcm => SampleRate::Hz16000,
            Dialect::Twilio => SampleRate::Hz8000,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.is_open()
    }

    pub(super) fn has_failed(&self) -> bool {
        self.connection.has_failed()
    }

    pub(super) fn counters(&self) -> (u64, u64, u64) {
        (self.frames_in, self.frames_out, self.backlog.dropped_ms())
    }

    pub(super) fn malformed(&self) -> u64 {
        self.malformed
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.connection.poll_timeout()
    }

    pub(super) fn handle_connected(&mut self) {
        self.connection.handle_connected();
    }

    pub(super) fn handle_ended(&mut self, error: Option<&std::io::Error>) {
        self.connection.handle_ended(error);
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.connection.handle_timeout(now);
    }

    pub(super) fn abandon(&mut self) {
        self.connection.close(close::NORMAL);
    }

    pub(super) fn poll_loss(&mut self) -> Option<Loss> {
        self.connection.poll_loss()
    }

    pub(super) fn handle_bytes(&mut self, bytes: &[u8], take: &mut dyn FnMut(Said<'_>)) {
        self.through_tls(take, |tls, plain| tls.handle_bytes(bytes, plain), bytes);
    }

    pub(super) fn wants_handshake(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_handshake()) && self.connection.is_usable()
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
            self.connection.fail(reason);
        }
        self.tls = Some(tls);
    }

    fn handle_plain(&mut self, bytes: &[u8], take: &mut dyn FnMut(Said<'_>)) {
        let Self { connection, dialect, start, writer, frames_in, malformed, backlog, .. } = self;
        connection.handle_bytes(bytes, |incoming, out| match (incoming, &dialect) {
            (Incoming::Opened, Dialect::Pcm) => {
                out.text(&pcm_dialect::ToAgent::Start(start.pcm.clone()).to_json());
                start.said = true;
                backlog.attach();
                take(Said::Ready);
            }
            (Incoming::Opened, Dialect::Twilio) => {
                out.text(&writer.connected());
                out.text(&writer.start(&start.pcm.custom));
                start.said = true;
                backlog.attach();
                take(Said::Ready);
            }
            (Incoming::Binary(octets), Dialect::Pcm) => match octets.len() % 2 {
                0 => {
                    *frames_in += 1;
                    hear_pcm(octets, take);
                }
                _ => *malformed += 1,
            },
            (Incoming::Text(text), Dialect::Pcm) => match pcm_dialect::FromAgent::parse(text) {
                Ok(Some(event)) => take(Said::Request(request(event))),
                Ok(None) | Err(_) => *malformed += 1,
            },
            (Incoming::Text(text), Dialect::Twilio) => match twilio::FromBot::parse(text) {
                Ok(Some(twilio::FromBot::Media { payload })) => match hear_twilio(&payload, take) {
                    Ok(_) => *frames_in += 1,
                    Err(_) => *malformed += 1,
                },
                Ok(Some(twilio::FromBot::Mark { name })) => take(Said::Request(Request::Mark { name })),
                Ok(Some(twilio::FromBot::Clear)) => take(Said::Request(Request::Clear)),
                Ok(None) | Err(_) => *malformed += 1,
            },
            (Incoming::Binary(_), Dialect::Twilio) => *malformed += 1,
        });
    }

    pub(super) fn hear(&mut self, samples: &[i16]) {
        if !self.connection.is_usable() {
            return;
        }
        for piece in samples.chunks(PIECE) {
            let mut octets = [0; 2 * PIECE];
            let len = match self.dialect {
                Dialect::Pcm => pcm::write_le(piece, &mut octets),
                Dialect::Twilio => g711::encode_ulaw(piece, &mut octets[..PIECE]),
            };
            self.backlog.push(&octets[..len]);
        }
        self.clock_ms += self.backlog.trim();
    }

    pub(super) fn tell(&mut self, what: &Tell<'_>) {
        let text = match (self.dialect, what) {
            (Dialect::Pcm, what) => event(what).to_json(),
            (Dialect::Twilio, Tell::Gap { ms }) => {
                // Its frames have timestamps: those go on.
                self.clock_ms += ms;
                return;
            }
            (Dialect::Twilio, Tell::Dtmf { digit, .. }) => self.writer.dtmf(*digit),
            (Dialect::Twilio, Tell::Mark { name, .. }) => self.writer.mark(name),
            (Dialect::Twilio, _) => return,
        };
        self.connection.send_text(&text);
    }

    pub(super) fn stop(&mut self, reason: &str) {
        if self.connection.is_open() && self.start.said {
            let text = match self.dialect {
                Dialect::Pcm => pcm_dialect::ToAgent::Stop { reason: reason.to_owned() }.to_json(),
                Dialect::Twilio => self.writer.stop(),
            };
            self.connection.send_text(&text);
        }
        self.connection.close(close::NORMAL);
        self.backlog.clear();
    }

    pub(super) fn has_output(&self) -> bool {
        match &self.tls {
            Some(_) if self.connection.has_failed() => false,
            Some(tls) => tls.has_output() || (!tls.is_handshaking() && self.has_plain_output()),
            None => self.has_plain_output(),
        }
    }

    pub(super) fn poll_stream(&mut self, out: &mut [u8]) -> usize {
        let Some(mut tls) = self.tls.take() else { return self.poll_plain(out) };
        let (len, outcome) = tls.poll_records(out, |plain| self.poll_plain(plain));
        if let Err(reason) = outcome {
            self.connection.fail(reason);
        }
        self.tls = Some(tls);
        len
    }

    fn has_plain_output(&self) -> bool {
        self.connection.has_control() || (self.connection.is_open() && self.backlog.has_frame())
    }

    fn poll_plain(&mut self, out: &mut [u8]) -> usize {
        let mut len = self.connection.poll_control(out);
        if self.connection.has_control() || !self.connection.is_open() {
            return len;
        }
        let octets = frame_octets(self.dialect);
        while self.backlog.has_frame() {
            let room = &mut out[len..];
            let written = match self.dialect {
                Dialect::Pcm => {
                    let mask = self.connection.next_mask();
                    write_frame_with(room, Opcode::Binary, Some(mask), octets, |payload| {
                        self.backlog.copy(payload);
                    })
                }
                Dialect::Twilio => {
                    let message = self.writer.media_len(self.clock_ms, octets);
                    if room.len() < message + MASKED_HEADER_MAX {
                        break;
                    }
                    let mut mulaw = [0; twilio::FRAME_BYTES];
                    self.backlog.copy(&mut mulaw);
                    let mask = self.connection.next_mask();
                    write_frame_with(room, Opcode::Text, Some(mask), message, |payload| {
                        // It fits: `message` is its exact length.
                        let _ = self.writer.media(self.clock_ms, &mulaw, payload);
                    })
                }
            };
            let Ok(written) = written else { break };
            self.backlog.pop();
            self.clock_ms += u64::from(FRAME_MS);
            self.frames_out += 1;
            len += written;
        }
        len
    }
}

/// Octets of one caller frame in wire format.
const fn frame_octets(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Pcm => pcm_dialect::FRAME_BYTES,
        Dialect::Twilio => twilio::FRAME_BYTES,
    }
}

fn hear_twilio(payload: &str, take: &mut dyn FnMut(Said<'_>)) -> Result<usize, twilio::PayloadError> {
    let mut scratch = [0; PIECE];
    twilio::decode_payload(payload, &mut scratch, |mulaw| {
        let mut samples = [0; PIECE];
        let len = g711::decode_ulaw(mulaw, &mut samples);
        take(Said::Sound(&samples[..len]));
    })
}
