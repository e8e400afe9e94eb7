//! DTLS-SRTP (RFC 5764): the handshake by which a browser and we agree on the keys of SRTP, over the dimpl library.
//!
//! ```text
//!  datagram, first octet 20..=63 ──handle_datagram──▶ ┌────────────┐ ──poll_transmit─▶ peer
//!  clock ──handle_timeout───────────────────────────▶ │ handshake  │ ──poll_timeout──▶ shell's timer
//!  fingerprint of the peer's description ───────────▶ │            │ ──poll_keys─────▶ srtp::{Inbound, Outbound}
//!                                                     └────────────┘   once, and only if the certificate is that one
//! ```
//!
//! A certificate is made by whoever shows it and proves nothing by itself: what counts is that the peer's has the fingerprint
//! (RFC 8122) that its description named, which is as good as the signalling that it came through. Until that was seen there
//! are no keys, whatever the handshake says. DTLS 1.2 and 1.3.
//!
//! Offer and answer need fingerprints and roles only; the handshake is behind the feature `dtls`, which the engine has and
//! the control plane has not. Only the handshake allocates; once there are keys no packet comes here.

mod fingerprint;
#[cfg(feature = "dtls")]
mod handshake;

pub use fingerprint::Fingerprint;
#[cfg(feature = "dtls")]
pub use handshake::{DATAGRAM_LEN_MAX, DtlsError, DtlsKeys, DtlsSrtp, HANDSHAKE_MAX, Identity};

/// Who begins the handshake (`a=setup`, RFC 5763 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Setup {
    /// We do: the DTLS client.
    Active,
    /// The peer does. What a lite side should choose: the peer knows when its checks have succeeded.
    Passive,
}

impl Setup {
    /// The word in SDP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Passive => "passive",
        }
    }
}

/// What a datagram at a media port is, by its first octet (RFC 7983 §7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A check of ICE.
    Stun,
    /// A record of DTLS.
    Dtls,
    /// RTP or RTCP, protected or not.
    Rtp,
    /// Nothing that belongs here.
    Unknown,
}

impl Kind {
    /// Of this datagram.
    pub const fn of(datagram: &[u8]) -> Self {
        match datagram {
            [0..=3, ..] => Self::Stun,
            [20..=63, ..] => Self::Dtls,
            [128..=191, ..] => Self::Rtp,
            _ => Self::Unknown,
        }
    }
}
