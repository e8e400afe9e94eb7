//! What stands before the SRTP of a browser: ICE-lite finds where it is, DTLS gives the keys.
//!
//! ```text
//!   datagram ─┬─ STUN ─▶ ice ─▶ answer              a nomination makes its source the pair: the only one heard and sent to
//!             ├─ DTLS ─▶ from the pair? ─▶ held until the worker grants a step ─▶ dtls ─▶ flights back, in the end keys
//!             └─ RTP  ─▶ from the pair? ─▶ the leg, which believes nothing before there are keys
//! ```
//!
//! The handshake begins when there is a pair, not before: until then nobody has proved that he knows our description. Once
//! there are keys it only repeats what was lost on its way. A browser checks again every few seconds (RFC 7675); one of which no
//! check has come for [`CONSENT_MAX`] is gone, and one that never checked has never come.
//!
//! A handshake allocates, and its asymmetric arithmetic costs as much as the sound of many calls; so that many at once do not make
//! the others' packets late, its datagrams are held, and the worker lets only few go on in one turn. Packets of sound never
//! come here.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_rtp::dtls::{DATAGRAM_LEN_MAX, DtlsError, DtlsSrtp, Fingerprint, Identity, Kind, Setup};
use tandem_rtp::ice::{ANSWER_LEN_MAX, Credentials, IceLite, IceText};

use super::rtp::SrtpKeys;

/// A browser that is there has checked within this time (RFC 7675 §5.1).
pub const CONSENT_MAX: Duration = Duration::from_secs(30);
/// A browser that has nominated an address of its own has shaken hands within this time: longer than a handshake may take,
/// which it may be the browser's part to begin.
pub const KEYS_MAX: Duration = Duration::from_secs(30);
/// Answers to checks that wait for the next tick: a browser has a few addresses and checks from each. Further checks count, but
/// are not answered; they come again.
const ANSWERS_MAX: usize = 8;
/// Of them those to checks that are nobody's we know: a flood of these must not keep the peer from being answered.
const REFUSALS_MAX: usize = 2;
/// Datagrams of the handshake that wait for the next tick; a flight has two or three. Further ones are lost, and sent again.
const FLIGHT_MAX: usize = 16;

/// Datagrams of the handshake that wait for a step: two flights of a browser. Further ones are lost, and DTLS sends them again.
pub const HELD_MAX: usize = 8;

/// What was negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecureParameters {
    /// Our part in the handshake.
    pub setup: Setup,
    /// The certificate that the peer must show.
    pub fingerprint: Fingerprint,
    /// What its checks must have.
    pub ice: Credentials,
    /// Who makes them.
    pub remote_ufrag: IceText,
}

/// Why there is no transport, or none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TransportFailure {
    /// Nobody has checked.
    #[error("ICE: no check came")]
    NoCheck,
    /// Nobody checks any more.
    #[error("ICE: checks stopped")]
    ConsentLost,
    /// There will be no keys.
    #[error("DTLS: {0}")]
    Dtls(DtlsError),
}

#[derive(Debug)]
struct Answer {
    to: SocketAddr,
    octets: [u8; ANSWER_LEN_MAX],
    len: usize,
}

/// See the module.
#[derive(Debug)]
pub struct SecureTransport {
    parameters: SecureParameters,
    identity: Option<Arc<Identity>>,
    ice: IceLite,
    dtls: Option<DtlsSrtp>,
    answers: VecDeque<Answer>,
    /// Not read yet, oldest first.
    held: VecDeque<Vec<u8>>,
    /// It is our part to begin, and we have not.
    is_to_begin: bool,
    /// Datagrams that found `held` full.
    overflowed: u64,
    flight: VecDeque<Vec<u8>>,
    /// Something is to be sent since then.
    pending: Option<Instant>,
    /// Checks are owed since then.
    owed_since: Option<Instant>,
    /// There is a pair and no key since then.
    keys_owed_since: Option<Instant>,
    failure: Option<TransportFailure>,
    /// Nobody has been told of it since then.
    failed: Option<Instant>,
    rejected: u64,
}

impl SecureTransport {
    /// A transport that nobody has come by. Without an identity no handshake succeeds.
    pub fn new(parameters: SecureParameters, identity: Option<Arc<Identity>>) -> Self {
        Self {
            ice: IceLite::new(parameters.ice, parameters.remote_ufrag),
            parameters,
            identity,
            dtls: None,
            answers: VecDeque::with_capacity(ANSWERS_MAX),
            held: VecDeque::new(),
            is_to_begin: false,
            overflowed: 0,
            flight: VecDeque::new(),
            pending: None,
            owed_since: None,
            keys_owed_since: None,
            failure: None,
            failed: None,
            rejected: 0,
        }
    }

    /// An offer or answer changed something. Other credentials are a restart of ICE, which keeps keys and pair until the new
    /// ones nominate another; another certificate is another handshake. True: what keys there are, are of no more use.
    pub fn update(&mut self, parameters: SecureParameters) -> bool {
        let before = std::mem::replace(&mut self.parameters, parameters);
        if (before.ice, before.remote_ufrag) != (parameters.ice, parameters.remote_ufrag) {
            self.ice.restart(parameters.ice, parameters.remote_ufrag);
        }
        let is_another = before.fingerprint != parameters.fingerprint;
        if is_another {
            self.dtls = None;
            self.is_to_begin = false;
            self.held.clear();
            self.flight.clear();
            self.keys_owed_since = None;
        }
        is_another
    }

    /// The call is up: checks are owed from now on.
    pub fn begin(&mut self, now: Instant) {
        self.owed_since.get_or_insert(now);
    }

    /// The one address that is heard and sent to.
    pub const fn pair(&self) -> Option<SocketAddr> {
        self.ice.pair()
    }

    /// Datagrams that were not the peer's, or too many.
    pub const fn rejected(&self) -> u64 {
        self.rejected + self.overflowed + self.ice.refused()
    }

    /// Of them those of a handshake that found [`HELD_MAX`] waiting.
    pub const fn overflowed(&self) -> u64 {
        self.overflowed
    }

    /// Why there is no transport.
    pub const fn failure(&self) -> Option<TransportFailure> {
        self.failure
    }

    /// Takes a datagram that is no RTP. True: there is another pair.
    pub fn handle_datagram(&mut self, kind: Kind, source: SocketAddr, bytes: &[u8], now: Instant) -> bool {
        match kind {
            Kind::Stun => self.handle_check(source, bytes, now),
            Kind::Dtls if self.pair() == Some(source) => {
                match self.held.len() < HELD_MAX {
                    true => self.held.push_back(bytes.to_vec()),
                    false => self.overflowed += 1,
                }
                false
            }
            Kind::Dtls | Kind::Rtp | Kind::Unknown => {
                self.rejected += 1;
                false
            }
        }
    }

    fn handle_check(&mut self, source: SocketAddr, bytes: &[u8], now: Instant) -> bool {
        let mut octets = [0; ANSWER_LEN_MAX];
        let Ok(checked) = self.ice.handle_datagram(bytes, source, now, &mut octets) else { return false };
        let room = if checked.is_authentic { ANSWERS_MAX } else { REFUSALS_MAX };
        if self.answers.len() < room {
            self.answers.push_back(Answer { to: source, octets, len: checked.answer_len });
            self.pending.get_or_insert(now);
        } else if checked.is_authentic {
            self.rejected += 1;
        }
        if checked.is_authentic && self.pair() == Some(source) && !self.has_keys() {
            self.keys_owed_since.get_or_insert(now);
            // Not only with the nomination: another certificate is another handshake with the pair that there is.
            self.is_to_begin = self.dtls.is_none() && self.parameters.setup == Setup::Active;
        }
        checked.is_nominated
    }

    fn has_keys(&self) -> bool {
        self.dtls.as_ref().is_some_and(DtlsSrtp::is_done)
    }

    /// A step of the handshake waits for [`SecureTransport::handle_handshake`].
    pub fn wants_handshake(&self) -> bool {
        self.is_to_begin || !self.held.is_empty()
    }

    /// One step: a datagram is read, or the handshake begun. The worker says when.
    pub fn handle_handshake(&mut self, now: Instant) {
        let begins = std::mem::take(&mut self.is_to_begin);
        match self.held.pop_front() {
            Some(datagram) => self.shake(now, |dtls| dtls.handle_datagram(&datagram, now)),
            None if begins => self.shake(now, |_| ()),
            None => {}
        }
    }

    /// Lets the handshake, which begins now if it has not, do something, and takes what it says.
    fn shake(&mut self, now: Instant, step: impl FnOnce(&mut DtlsSrtp)) {
        if self.dtls.is_none() {
            let identity = self.identity.as_ref().ok_or(DtlsError::Handshake);
            let SecureParameters { setup, fingerprint, .. } = self.parameters;
            match identity.and_then(|identity| DtlsSrtp::new(identity, setup, fingerprint, now)) {
                Ok(dtls) => self.dtls = Some(dtls),
                Err(error) => return self.fail(TransportFailure::Dtls(error), now),
            }
        }
        let Some(dtls) = &mut self.dtls else { return };
        step(dtls);
        let mut out = [0; DATAGRAM_LEN_MAX];
        while let Some(len) = dtls.poll_transmit(&mut out) {
            if self.flight.len() < FLIGHT_MAX {
                self.flight.push_back(out[..len].to_vec());
            }
            self.pending.get_or_insert(now);
        }
        if let Some(error) = dtls.failure().filter(|_| !dtls.is_done()) {
            self.fail(TransportFailure::Dtls(error), now);
        }
    }

    fn fail(&mut self, failure: TransportFailure, now: Instant) {
        if self.failure.is_none() {
            (self.failure, self.failed) = (Some(failure), Some(now));
        }
    }

    /// Keys, once, when the handshake is over.
    pub fn poll_keys(&mut self) -> Option<SrtpKeys> {
        let keys = self.dtls.as_mut()?.poll_keys()?;
        Some(SrtpKeys { local: keys.local, remote: keys.remote })
    }

    /// When there is something to send or to give up.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let dtls = self.dtls.as_ref().and_then(DtlsSrtp::poll_timeout);
        [self.pending, self.failed, dtls, self.consent_ends(), self.keys_end()].into_iter().flatten().min()
    }

    /// When it has taken too long from the pair to the keys.
    fn keys_end(&self) -> Option<Instant> {
        let (Some(up), Some(pair)) = (self.owed_since, self.keys_owed_since) else { return None };
        let is_owed = self.failure.is_none() && !self.has_keys();
        is_owed.then(|| up.max(pair) + KEYS_MAX)
    }

    fn consent_ends(&self) -> Option<Instant> {
        let since = self.owed_since.filter(|_| self.failure.is_none())?;
        Some(self.ice.last_heard().map_or(since, |heard| heard.max(since)) + CONSENT_MAX)
    }

    /// A deadline of [`SecureTransport::poll_timeout`] has passed; ask for [`SecureTransport::failure`] afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.failed = None;
        if self.dtls.as_ref().and_then(DtlsSrtp::poll_timeout).is_some_and(|at| at <= now) {
            self.shake(now, |dtls| dtls.handle_timeout(now));
        }
        if self.consent_ends().is_some_and(|end| end <= now) {
            self.fail(
                match self.ice.last_heard() {
                    Some(_) => TransportFailure::ConsentLost,
                    None => TransportFailure::NoCheck,
                },
                now,
            );
            self.failed = None;
        }
        if self.keys_end().is_some_and(|end| end <= now) {
            self.fail(TransportFailure::Dtls(DtlsError::Handshake), now);
            self.failed = None;
        }
    }

    /// Writes the next datagram into `out`: where it goes, and its length.
    pub fn poll_transmit(&mut self, out: &mut [u8]) -> Option<(SocketAddr, usize)> {
        self.pending?;
        while let Some(answer) = self.answers.pop_front() {
            if let Some(to) = out.get_mut(..answer.len) {
                to.copy_from_slice(&answer.octets[..answer.len]);
                return Some((answer.to, answer.len));
            }
        }
        while let (Some(pair), Some(datagram)) = (self.pair(), self.flight.pop_front()) {
            if let Some(to) = out.get_mut(..datagram.len()) {
                to.copy_from_slice(&datagram);
                return Some((pair, datagram.len()));
            }
        }
        self.pending = None;
        None
    }
}

#[cfg(test)]
#[path = "secure/tests.rs"]
mod tests;
