//! Protection and its removal; see the module above.

use std::fmt;

use bytes::BytesMut;
use rtc_shared::error::Error;
use rtc_srtp::context::Context;
use rtc_srtp::crypto::{RTCCryptoProvider, providers::RingProvider};
use rtc_srtp::option::{srtcp_replay_protection, srtp_replay_protection};
use rtc_srtp::protection_profile::ProtectionProfile;

use super::key::{MasterKey, Suite};
use crate::units::Ssrc;

/// Octets that protection adds to an RTP packet at most: a tag of AES-GCM.
pub const RTP_OVERHEAD_MAX: usize = 16;
/// Octets that it adds to a compound of RTCP at most: a tag and the index.
pub const RTCP_OVERHEAD_MAX: usize = 20;
/// SSRCs that may prove themselves under one key. A peer takes another one on a transfer, a hold, or a change of device behind it,
/// and keeps the key; in a long call that is a dozen. None is ever given up for a new one, for its packets could be played back then:
/// what is remembered of each, some hundred octets, is what forbids it.
pub const MAX_SSRCS: usize = 64;
/// Packets behind the newest that are still taken, once each (RFC 3711 §3.3.2 asks for 64 at least).
const REPLAY_WINDOW: usize = 128;

/// Why a packet was not protected or not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SrtpError {
    /// Its tag is not that of our peer: forged, damaged, or under another key.
    #[error("packet is not authentic")]
    Forged,
    /// It came before, or is older than the replay window.
    #[error("packet was replayed")]
    Replayed,
    /// It has no room for a header and a tag.
    #[error("packet is too short")]
    Short,
    /// So many SSRCs have proved themselves under this key that no further one is taken.
    #[error("{MAX_SSRCS} SSRCs were used with this key already")]
    SsrcsFull,
    /// The buffer has no room for the tag.
    #[error("no room for the tag")]
    NoRoom,
    /// The key was used up (2^48 packets) or the library could not use it.
    #[error("key cannot be used")]
    Library,
}

/// Octets at the end of a protected compound, from the index on.
const fn rtcp_trailer_len(suite: Suite) -> usize {
    match suite {
        Suite::AesCm128HmacSha1_80 | Suite::AesCm128HmacSha1_32 => 4 + 10,
        // The tag is before the index (RFC 7714 §9.2).
        Suite::AeadAes128Gcm | Suite::AeadAes256Gcm => 4,
    }
}

fn context(key: &MasterKey) -> Result<Context, SrtpError> {
    let profile = match key.suite() {
        Suite::AesCm128HmacSha1_80 => ProtectionProfile::Aes128CmHmacSha1_80,
        Suite::AesCm128HmacSha1_32 => ProtectionProfile::Aes128CmHmacSha1_32,
        Suite::AeadAes128Gcm => ProtectionProfile::AeadAes128Gcm,
        Suite::AeadAes256Gcm => ProtectionProfile::AeadAes256Gcm,
    };
    let (octets, salt) = key.expose().split_at(key.suite().key_len());
    let provider = RingProvider::new();
    Context::new(
        octets,
        salt,
        profile,
        Some(srtp_replay_protection(REPLAY_WINDOW)),
        Some(srtcp_replay_protection(REPLAY_WINDOW)),
        provider.crypto(),
    )
    .map_err(|_| SrtpError::Library)
}

fn reason(error: &Error) -> SrtpError {
    match error {
        Error::SrtpSsrcDuplicated(..) | Error::SrtcpSsrcDuplicated(..) => SrtpError::Replayed,
        Error::ErrExceededMaxPackets => SrtpError::Library,
        Error::ErrTooShortRtp
        | Error::ErrTooShortRtcp
        | Error::ErrHeaderSizeInsufficient
        | Error::ErrHeaderSizeInsufficientForExtension => SrtpError::Short,
        _ => SrtpError::Forged,
    }
}

/// The sending side.
pub struct Outbound {
    key: MasterKey,
    context: Context,
}

impl Outbound {
    /// A side that has sent nothing. Its first sequence number must be below 2^15, lest a peer that loses the first packets
    /// guesses the rollover counter wrong (RFC 3711 §3.3.1).
    ///
    /// # Errors
    /// [`SrtpError::Library`]
    pub fn new(key: MasterKey) -> Result<Self, SrtpError> {
        Ok(Self { context: context(&key)?, key })
    }

    /// The key in use.
    pub const fn key(&self) -> &MasterKey {
        &self.key
    }

    /// Protects the RTP packet of `len` octets at the start of the buffer, in place; gives its new length.
    ///
    /// # Errors
    /// [`SrtpError`]; the packet must not leave then.
    pub fn protect_rtp(&mut self, buffer: &mut [u8], len: usize) -> Result<usize, SrtpError> {
        let packet = buffer.get(..len).ok_or(SrtpError::NoRoom)?;
        let protected = self.context.encrypt_rtp(packet).map_err(|error| reason(&error))?;
        replace(buffer, &protected)
    }

    /// Protects the compound of `len` octets at the start of the buffer, in place; gives its new length.
    ///
    /// # Errors
    /// [`SrtpError`]; the compound must not leave then.
    pub fn protect_rtcp(&mut self, buffer: &mut [u8], len: usize) -> Result<usize, SrtpError> {
        let packet = buffer.get(..len).ok_or(SrtpError::NoRoom)?;
        let protected = self.context.encrypt_rtcp(packet).map_err(|error| reason(&error))?;
        replace(buffer, &protected)
    }
}

fn replace(buffer: &mut [u8], protected: &[u8]) -> Result<usize, SrtpError> {
    buffer.get_mut(..protected.len()).ok_or(SrtpError::NoRoom)?.copy_from_slice(protected);
    Ok(protected.len())
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("key", &self.key).finish_non_exhaustive()
    }
}

/// One key of the receiving side.
struct Generation {
    key: MasterKey,
    context: Context,
    /// Oldest first.
    proved: Vec<Ssrc>,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Rtp,
    Rtcp,
}

impl Kind {
    fn decrypt(self, context: &mut Context, packet: &[u8]) -> Result<BytesMut, SrtpError> {
        match self {
            Self::Rtp => context.decrypt_rtp(packet),
            Self::Rtcp => context.decrypt_rtcp(packet),
        }
        .map_err(|error| reason(&error))
    }
}

impl Generation {
    fn new(key: MasterKey) -> Result<Self, SrtpError> {
        Ok(Self { context: context(&key)?, key, proved: Vec::new() })
    }

    fn unprotect(&mut self, kind: Kind, ssrc: Ssrc, packet: &[u8]) -> Result<BytesMut, SrtpError> {
        if matches!(kind, Kind::Rtcp) {
            let index = packet.len().checked_sub(rtcp_trailer_len(self.key.suite()));
            match index.and_then(|index| packet.get(index)) {
                Some(first) if first & 0x80 != 0 => {}
                Some(_) => return Err(SrtpError::Forged),
                None => return Err(SrtpError::Short),
            }
        }
        // The newest is the one that speaks.
        if self.proved.iter().rev().any(|proved| *proved == ssrc) {
            return kind.decrypt(&mut self.context, packet);
        }
        if self.proved.len() >= MAX_SSRCS {
            return Err(SrtpError::SsrcsFull);
        }
        kind.decrypt(&mut context(&self.key)?, packet)?;
        self.proved.push(ssrc);
        kind.decrypt(&mut self.context, packet)
    }
}

/// The receiving side.
pub struct Inbound {
    current: Generation,
    /// Its packets may still be on their way.
    previous: Option<Box<Generation>>,
    refused: u64,
}

impl Inbound {
    /// A side that has heard nothing.
    ///
    /// # Errors
    /// [`SrtpError::Library`]
    pub fn new(key: MasterKey) -> Result<Self, SrtpError> {
        Ok(Self { current: Generation::new(key)?, previous: None, refused: 0 })
    }

    /// The key in use.
    pub const fn key(&self) -> &MasterKey {
        &self.current.key
    }

    /// Packets that were not believed.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// The peer has another key from now on. The same one changes nothing: the rollover counter goes on.
    ///
    /// # Errors
    /// [`SrtpError::Library`]; the old key stays then.
    pub fn rekey(&mut self, key: MasterKey) -> Result<(), SrtpError> {
        if key != self.current.key {
            let before = std::mem::replace(&mut self.current, Generation::new(key)?);
            self.previous = Some(Box::new(before));
        }
        Ok(())
    }

    /// Gives the packet without its protection.
    ///
    /// # Errors
    /// [`SrtpError`]: drop it.
    pub fn unprotect_rtp(&mut self, packet: &[u8]) -> Result<BytesMut, SrtpError> {
        self.unprotect(Kind::Rtp, packet, 8)
    }

    /// Gives the compound without its protection.
    ///
    /// # Errors
    /// [`SrtpError`]: drop it.
    pub fn unprotect_rtcp(&mut self, packet: &[u8]) -> Result<BytesMut, SrtpError> {
        self.unprotect(Kind::Rtcp, packet, 4)
    }

    fn unprotect(&mut self, kind: Kind, packet: &[u8], ssrc_at: usize) -> Result<BytesMut, SrtpError> {
        let outcome = match packet.get(ssrc_at..).and_then(|rest| rest.first_chunk::<4>()) {
            Some(ssrc) => self.try_keys(kind, Ssrc(u32::from_be_bytes(*ssrc)), packet),
            None => Err(SrtpError::Short),
        };
        self.refused += u64::from(outcome.is_err());
        outcome
    }

    fn try_keys(&mut self, kind: Kind, ssrc: Ssrc, packet: &[u8]) -> Result<BytesMut, SrtpError> {
        let outcome = self.current.unprotect(kind, ssrc, packet);
        match (&outcome, &mut self.previous) {
            (Err(SrtpError::Forged), Some(previous)) => previous.unprotect(kind, ssrc, packet),
            (Ok(_), previous @ Some(_)) => {
                *previous = None;
                outcome
            }
            _ => outcome,
        }
    }
}

impl fmt::Debug for Inbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbound")
            .field("key", &self.current.key)
            .field("refused", &self.refused)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
