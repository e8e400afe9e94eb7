//! The handshake; see the module above.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use dimpl::{Config, Dtls, DtlsCertificate, Error, Output, SrtpProfile, UnexpectedMessageError};
use sha2::{Digest as _, Sha256};

use super::{Fingerprint, Setup};
use crate::srtp::{MasterKey, Suite};

/// Longest datagram that is written: what fits through tunnels and PPPoE.
pub const DATAGRAM_LEN_MAX: usize = 1_200;
/// A handshake that takes longer has failed: the caller has hung up by then.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(20);
/// What the library has to say at once is at most a whole record.
const OUTPUT_LEN_MAX: usize = 1 << 14;
/// The peer's certificate is looked at in a buffer of this size; browsers' have some 300 octets.
const CERTIFICATE_LEN_MAX: usize = 8 * 1_024;

/// The certificate that we show, and its key. `Debug` shows neither.
#[derive(Clone)]
pub struct Identity(DtlsCertificate);

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({}, redacted)", self.fingerprint())
    }
}

fn fingerprint_of(certificate: &[u8]) -> Fingerprint {
    Fingerprint::new(Sha256::digest(certificate).into())
}

/// What all handshakes have in common, made once: the library tries out its whole cryptography each time it is asked for.
fn settings() -> Result<Arc<Config>, DtlsError> {
    static SETTINGS: OnceLock<Arc<Config>> = OnceLock::new();
    if let Some(settings) = SETTINGS.get() {
        return Ok(Arc::clone(settings));
    }
    let settings = Config::builder()
        .mtu(DATAGRAM_LEN_MAX)
        .handshake_timeout(HANDSHAKE_MAX)
        .require_client_certificate(true)
        .build()
        .map_err(|_| DtlsError::Handshake)?;
    Ok(Arc::clone(SETTINGS.get_or_init(|| Arc::new(settings))))
}

impl Identity {
    /// From a certificate and its ECDSA key, both in DER.
    pub fn new(certificate: Vec<u8>, private_key: Vec<u8>) -> Self {
        // Here, and not while packets wait; a refusal comes again with the first handshake.
        let _ = settings();
        Self(DtlsCertificate { certificate, private_key })
    }

    /// What our description says of it.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint_of(&self.0.certificate)
    }
}

/// Why there will be no keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DtlsError {
    /// Its certificate is not the one that its description named: somebody is in between.
    #[error("certificate does not have the fingerprint that was signalled")]
    Fingerprint,
    /// The handshake failed, or took too long.
    #[error("DTLS handshake failed")]
    Handshake,
    /// It agreed on a profile that we do not do.
    #[error("SRTP profile is not supported")]
    Profile,
}

/// Keys of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DtlsKeys {
    /// Of what we send.
    pub local: MasterKey,
    /// Of what the peer sends.
    pub remote: MasterKey,
}

/// One handshake; see the module above.
#[derive(Debug)]
pub struct DtlsSrtp {
    dtls: Dtls,
    setup: Setup,
    expected: Fingerprint,
    is_verified: bool,
    exported: Option<DtlsKeys>,
    told: bool,
    failure: Option<DtlsError>,
    next: Option<Instant>,
    /// Where the library writes; smaller once the peer's certificate was seen.
    scratch: Vec<u8>,
}

impl DtlsSrtp {
    /// A handshake that has not begun. `expected` is the fingerprint of the peer's description.
    ///
    /// # Errors
    /// [`DtlsError::Handshake`] when the library does not take the settings.
    pub fn new(
        identity: &Identity,
        setup: Setup,
        expected: Fingerprint,
        now: Instant,
    ) -> Result<Self, DtlsError> {
        let mut dtls = Dtls::new_auto(settings()?, identity.0.clone(), now);
        dtls.set_active(setup == Setup::Active);
        let mut this = Self {
            dtls,
            setup,
            expected,
            is_verified: false,
            exported: None,
            told: false,
            failure: None,
            next: Some(now),
            scratch: vec![0; CERTIFICATE_LEN_MAX],
        };
        this.handle_timeout(now);
        Ok(this)
    }

    /// Whether the keys were given; then it only repeats what the peer has missed.
    pub const fn is_done(&self) -> bool {
        self.told
    }

    /// Why there will be no keys, if there will be none.
    pub const fn failure(&self) -> Option<DtlsError> {
        self.failure
    }

    /// Takes a datagram. Drain [`DtlsSrtp::poll_transmit`] afterwards.
    pub fn handle_datagram(&mut self, datagram: &[u8], now: Instant) {
        if self.failure.is_some() {
            return;
        }
        let outcome = self.dtls.handle_timeout(now).and_then(|()| self.dtls.handle_packet(datagram));
        if outcome.is_err_and(|error| !is_noise(&error)) {
            self.failure = Some(DtlsError::Handshake);
        }
    }

    /// A deadline of [`DtlsSrtp::poll_timeout`] has passed. Drain [`DtlsSrtp::poll_transmit`] afterwards.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.failure.is_none() && self.dtls.handle_timeout(now).is_err() {
            self.failure = Some(DtlsError::Handshake);
        }
    }

    /// When something is to be sent again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next.filter(|_| self.failure.is_none())
    }

    /// Writes the next datagram and returns its length; `None` when nothing is left to send.
    pub fn poll_transmit(&mut self, out: &mut [u8]) -> Option<usize> {
        while self.failure.is_none() {
            match self.dtls.poll_output(&mut self.scratch) {
                Output::Packet(packet) => {
                    let len = packet.len();
                    // A buffer that is too short loses the datagram, which is sent again later.
                    out.get_mut(..len)?.copy_from_slice(packet);
                    return Some(len);
                }
                Output::PeerCert(certificate) => {
                    self.is_verified = fingerprint_of(certificate) == self.expected;
                    if !self.is_verified {
                        self.failure = Some(DtlsError::Fingerprint);
                    }
                }
                Output::KeyingMaterial(material, profile) => match keys(&material, profile, self.setup) {
                    Some(keys) => self.exported = Some(keys),
                    None => self.failure = Some(DtlsError::Profile),
                },
                Output::Timeout(next) => {
                    self.next = Some(next);
                    return None;
                }
                // Data under DTLS, which nobody needs, is read and forgotten.
                Output::BufferTooSmall { needed } if needed <= OUTPUT_LEN_MAX => {
                    self.scratch.resize(needed, 0)
                }
                Output::BufferTooSmall { .. } => self.failure = Some(DtlsError::Handshake),
                _ => {}
            }
        }
        None
    }

    /// The keys, once: when the handshake is over and the peer is who was signalled.
    pub fn poll_keys(&mut self) -> Option<DtlsKeys> {
        let keys = self.exported.filter(|_| self.is_verified && self.failure.is_none())?;
        self.told = true;
        self.exported = None;
        self.scratch = vec![0; DATAGRAM_LEN_MAX];
        Some(keys)
    }
}

/// What is no answer of a server at all is dropped (RFC 6347 §4.1.2.7): anybody may have sent it. The library has changed nothing then.
fn is_noise(error: &Error) -> bool {
    matches!(error, Error::UnexpectedMessage(UnexpectedMessageError::UnrecognizedAutoServerResponse))
}

/// Cuts the exported material: keys of client and server, then their salts (RFC 5764 §4.2).
fn keys(material: &[u8], profile: SrtpProfile, setup: Setup) -> Option<DtlsKeys> {
    let suite = match profile {
        SrtpProfile::AES128_CM_SHA1_80 => Suite::AesCm128HmacSha1_80,
        SrtpProfile::AEAD_AES_128_GCM => Suite::AeadAes128Gcm,
        SrtpProfile::AEAD_AES_256_GCM => Suite::AeadAes256Gcm,
        _ => return None,
    };
    let (key_len, salt_len) = (suite.key_len(), suite.master_len() - suite.key_len());
    let (keys, salts) = material.split_at_checked(2 * key_len)?;
    let (client_key, server_key) = keys.split_at(key_len);
    let (client_salt, server_salt) = salts.get(..2 * salt_len)?.split_at(salt_len);
    let client = MasterKey::new(suite, &[client_key, client_salt].concat()).ok()?;
    let server = MasterKey::new(suite, &[server_key, server_salt].concat()).ok()?;
    Some(match setup {
        Setup::Active => DtlsKeys { local: client, remote: server },
        Setup::Passive => DtlsKeys { local: server, remote: client },
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
