//! SRTP of a call, seen from the caller: the generator's packets are protected before they leave and opened when they come.
//!
//! It is the same library as the engine's, so the generator pays as much for a packet as the engine does; what that is stands in
//! the report as the generator's processor time.
use tandem_rtp::srtp::{Inbound, MasterKey, Outbound, RTP_OVERHEAD_MAX, SrtpError, Suite};
use tandem_sdp::crypto::{LocalSrtp, NegotiatedSrtp, SrtpPolicy};

/// Octets that protection may add to a packet.
pub const OVERHEAD_MAX: usize = RTP_OVERHEAD_MAX;

/// Which suite is offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Protect {
    /// `AES_CM_128_HMAC_SHA1_80`, which every phone speaks.
    AesCm,
    /// `AEAD_AES_128_GCM`
    AesGcm,
}

impl Protect {
    /// The suite.
    pub const fn suite(self) -> Suite {
        match self {
            Self::AesCm => Suite::AesCm128HmacSha1_80,
            Self::AesGcm => Suite::AeadAes128Gcm,
        }
    }

    /// A key for one call, and none but protected calls.
    pub fn keys(self) -> LocalSrtp {
        let mut octets = vec![0; self.suite().master_len()];
        rand::fill(&mut octets[..]);
        let keys = MasterKey::new(self.suite(), &octets).into_iter().collect();
        LocalSrtp { policy: SrtpPolicy::Required, keys }
    }
}

/// Both directions of one call.
pub struct Protection {
    outbound: Outbound,
    inbound: Inbound,
}

impl Protection {
    /// With the keys that were agreed.
    ///
    /// # Errors
    /// [`SrtpError::Library`]
    pub fn new(keys: &NegotiatedSrtp) -> Result<Self, SrtpError> {
        Ok(Self { outbound: Outbound::new(keys.local)?, inbound: Inbound::new(keys.remote)? })
    }

    /// Protects the packet of `len` octets at the start of the buffer; 0 when it cannot be.
    pub fn protect(&mut self, buffer: &mut [u8], len: usize) -> usize {
        self.outbound.protect_rtp(buffer, len).unwrap_or_default()
    }

    /// Opens a datagram and gives it to `hear`; what is not authentic is given as it is, and counts as foreign.
    pub fn open(&mut self, datagram: &[u8], hear: impl FnOnce(&[u8])) {
        match self.inbound.unprotect_rtp(datagram) {
            Ok(packet) => hear(&packet),
            // Reports are protected too, and nobody here reads them.
            Err(_) => hear(&[]),
        }
    }
}
