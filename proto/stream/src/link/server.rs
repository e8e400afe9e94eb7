//! The agent's side of a link: it checks the preamble, the version and the token, and answers pings.

use super::{Decoder, LinkError, Message, NO_CALL, PREAMBLE, VERSION, append};

#[derive(Debug)]
enum State {
    /// So many octets of the preamble have come.
    Preamble(usize),
    Greeting,
    Up,
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    state: State,
    token: Vec<u8>,
    decoder: Decoder,
}

impl Server {
    /// A connection that was accepted; with an empty token any token will do.
    pub fn new(token: Vec<u8>) -> Self {
        Self { state: State::Preamble(0), token, decoder: Decoder::default() }
    }

    /// The engine has said who it is.
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up)
    }

    /// A piece of the stream: frames of calls are handed to `take`, answers of the connection's own are appended to `out`.
    ///
    /// # Errors
    /// Write `out`, then close: it says why, if the other side can understand it.
    pub fn handle_bytes(
        &mut self,
        mut bytes: &[u8],
        out: &mut Vec<u8>,
        mut take: impl FnMut(u32, Message<'_>),
    ) -> Result<(), LinkError> {
        let Self { state, token, decoder } = self;
        if let State::Preamble(come) = state {
            let more = (PREAMBLE.len() - *come).min(bytes.len());
            if PREAMBLE[*come..*come + more] != bytes[..more] {
                return Err(LinkError::Preamble);
            }
            *come += more;
            bytes = &bytes[more..];
            if *come < PREAMBLE.len() {
                return Ok(());
            }
            *state = State::Greeting;
        }
        let outcome = decoder.handle_bytes(bytes, |call, message| {
            match (message, &*state) {
                (Message::Hello { version, token: given }, State::Greeting) => {
                    if version != VERSION {
                        return Err(LinkError::Version(version));
                    }
                    if !token.is_empty() && !is_same(token, given) {
                        return Err(LinkError::Token);
                    }
                    *state = State::Up;
                    append(out, NO_CALL, &Message::Welcome { version: VERSION });
                }
                (_, State::Preamble(_) | State::Greeting) => return Err(LinkError::Greeting),
                (Message::Ping, State::Up) => append(out, NO_CALL, &Message::Pong),
                (Message::Pong | Message::Hello { .. }, State::Up) => {}
                (message, State::Up) => take(call, message),
            }
            Ok(())
        });
        if let Err(error) = &outcome {
            append(out, NO_CALL, &Message::Refused { reason: &error.to_string() });
        }
        outcome
    }
}

/// Compares secrets in a time that does not tell how much of them is the same.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differs = a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differs) == 0
}
