//! TLS under a connection that we dial (`wss://`, `grpcs://`), or that came in and has shaken hands already: rustls, fed with octets
//! like everything here.
//!
//! ```text
//!   TCP ──handle_bytes──▶ held until the worker grants the handshake its turn ──▶ rustls ──▶ its octets
//!   TCP ◀──poll_stream──────────────────────────────────────────────────────────── rustls ◀── write
//! ```
//!
//! A handshake costs some 0.2 ms of processor time, as much as the audio of a call for a second. So that many at once do not
//! make the others' packets late, what comes during a handshake is held, and the worker lets only few go on in one turn.
//! rustls allocates with every record: such a call is not one of those of which the packet path allocates nothing.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, ServerConnection};

/// Octets that may be held for a handshake: several times the longest chain of certificates.
const HELD_MAX: usize = 128 * 1_024;

/// Octets that a record adds to what is in it, at most (RFC 8446 §5.2, with a TLS 1.2 nonce).
const RECORD_OVERHEAD: usize = 64;

/// Octets that are put into one record: with its overhead it fits the ring's stage.
const RECORD_OCTETS: usize = 4_096 - RECORD_OVERHEAD;

/// One connection.
pub(super) struct Tls {
    connection: Connection,
    /// In words: who is at the other end.
    peer: &'static str,
    held: Vec<u8>,
    plain: Box<[u8]>,
    /// We have said that nothing more comes.
    has_ended: bool,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("is_handshaking", &self.is_handshaking()).finish_non_exhaustive()
    }
}

impl Tls {
    /// A connection to be made to this host, with its first flight to be written.
    pub(super) fn new(config: Arc<ClientConfig>, host: &str) -> Result<Self, String> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| format!("agent host {host} is no name that a certificate could have"))?;
        let connection = ClientConnection::new(config, name).map_err(|error| format!("TLS: {error}"))?;
        Ok(Self::over(connection.into(), "agent"))
    }

    /// A connection that came in; its handshake is over.
    pub(super) fn accepted(connection: ServerConnection) -> Self {
        Self::over(connection.into(), "provider")
    }

    fn over(connection: Connection, peer: &'static str) -> Self {
        Self {
            connection,
            peer,
            held: Vec::new(),
            plain: vec![0; 4_096].into_boxed_slice(),
            has_ended: false,
        }
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Something waits for [`Tls::handle_handshake`].
    pub(super) fn wants_handshake(&self) -> bool {
        !self.held.is_empty()
    }

    /// Octets came: what they hold is handed to `take`. Those of a handshake are held.
    pub(super) fn handle_bytes(&mut self, bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), String> {
        if !self.is_handshaking() && self.held.is_empty() {
            return self.read(bytes, take);
        }
        if self.held.len() + bytes.len() > HELD_MAX {
            return Err(format!("{}'s TLS handshake is too long", self.peer));
        }
        self.held.extend_from_slice(bytes);
        Ok(())
    }

    /// Goes on with the handshake; the worker says when.
    pub(super) fn handle_handshake(&mut self, take: &mut dyn FnMut(&[u8])) -> Result<(), String> {
        let held = std::mem::take(&mut self.held);
        self.read(&held, take)
    }

    fn read(&mut self, mut bytes: &[u8], take: &mut dyn FnMut(&[u8])) -> Result<(), String> {
        while !bytes.is_empty() {
            let peer = self.peer;
            let failed = |error: &dyn std::fmt::Display| format!("{peer}'s TLS failed: {error}");
            let read = self.connection.read_tls(&mut bytes).map_err(|error| failed(&error))?;
            self.connection.process_new_packets().map_err(|error| match error {
                rustls::Error::InvalidCertificate(why) => {
                    format!("{peer}'s certificate is refused: {}", rustls::Error::InvalidCertificate(why))
                }
                error => failed(&error),
            })?;
            // The end of the stream and "nothing now" are the same to us: TCP tells the end.
            while let Ok(len @ 1..) = self.connection.reader().read(&mut self.plain) {
                take(&self.plain[..len]);
            }
            if read == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Writes records of what `poll_plain` gives into `out`, as much as fits; says how many octets, and whether it went well.
    pub(super) fn poll_records(
        &mut self,
        out: &mut [u8],
        mut poll_plain: impl FnMut(&mut [u8]) -> usize,
    ) -> (usize, Result<(), String>) {
        let mut len = self.poll_output(out);
        let mut plain = [0; RECORD_OCTETS];
        while !self.has_output() && !self.is_handshaking() {
            let room = out.len().saturating_sub(len + RECORD_OVERHEAD).min(RECORD_OCTETS);
            let octets = poll_plain(&mut plain[..room]);
            if octets == 0 {
                break;
            }
            if let Err(reason) = self.write(&plain[..octets]) {
                return (len, Err(reason));
            }
            len += self.poll_output(&mut out[len..]);
        }
        (len, Ok(()))
    }

    /// Encrypts; [`Tls::poll_output`] gives it out.
    fn write(&mut self, plain: &[u8]) -> Result<(), String> {
        self.connection
            .writer()
            .write_all(plain)
            .map_err(|error| format!("{}'s TLS failed: {error}", self.peer))
    }

    /// Something waits for [`Tls::poll_output`].
    pub(super) fn has_output(&self) -> bool {
        self.connection.wants_write()
    }

    /// [`Tls::poll_goodbye`] was not called yet.
    pub(super) fn owes_goodbye(&self) -> bool {
        !self.has_ended
    }

    /// Says that nothing more comes, once (RFC 8446 §6.1); writes it into `out` and says how many octets.
    pub(super) fn poll_goodbye(&mut self, out: &mut [u8]) -> usize {
        if !std::mem::replace(&mut self.has_ended, true) {
            self.connection.send_close_notify();
        }
        self.poll_output(out)
    }

    /// Moves records into `out`, as much as fits, and says how many octets.
    fn poll_output(&mut self, out: &mut [u8]) -> usize {
        let mut len = 0;
        while self.connection.wants_write() && len < out.len() {
            match self.connection.write_tls(&mut &mut out[len..]) {
                Ok(written @ 1..) => len += written,
                Ok(0) | Err(_) => break,
            }
        }
        len
    }
}
