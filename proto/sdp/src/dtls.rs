//! What a description says of DTLS-SRTP and ICE (RFC 5763, RFC 8122, RFC 8839): certificate, role, credentials, candidates.
//!
//! ```text
//!   UDP/TLS/RTP/SAVPF with a=fingerprint, a=setup, a=ice-ufrag, a=ice-pwd, a=rtcp-mux ──▶ NegotiatedDtls, or refused
//!                                ours: a=ice-lite, one a=candidate of type host, a=end-of-candidates
//! ```
//!
//! We are lite (RFC 8445 §2.5): the peer checks and we answer, so its candidates are not read, and a host name among them (mDNS)
//! harms nobody. One component: without `a=rtcp-mux` there would be two handshakes, and no browser asks for that any more. A
//! peer that is lite too would wait for our checks for ever, so it is refused with that reason.

use std::net::IpAddr;

use tandem_rtp::dtls::{Fingerprint, Setup};
use tandem_rtp::ice::{Credentials, IceText};

use crate::description::{Attribute, Media, SessionDescription};

/// Browsers' profile, with feedback, and the plain one (RFC 5764 §8).
const PROFILES: [&str; 2] = ["UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP"];
/// Priority of a host candidate that is the only one (RFC 8445 §5.1.2.1): type 126, component 1.
const PRIORITY: u32 = (126 << 24) | (65_535 << 8) | 255;

/// What we do DTLS with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalDtls {
    /// Of the certificate that will be shown.
    pub fingerprint: Fingerprint,
    /// Credentials come from it; random, and the same for the whole dialog.
    pub secret: Secret,
    /// Whether our offers are of it; answers are if the offer was.
    pub is_offered: bool,
    /// What holds in this dialog already.
    pub current: Option<NegotiatedDtls>,
}

/// Random octets that stay here. `Debug` does not show them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

/// What both sides have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NegotiatedDtls {
    /// Our part in the handshake.
    pub setup: Setup,
    /// The certificate that the peer must show.
    pub fingerprint: Fingerprint,
    /// What the peer's checks must have.
    pub ice: Credentials,
    /// What they are made with.
    pub remote_ice: Credentials,
}

/// Why DTLS and ICE of a description cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DtlsRefusal {
    /// It is not done in this call.
    #[error("DTLS-SRTP is not allowed here")]
    Off,
    /// No SHA-256 of a certificate.
    #[error("DTLS-SRTP without an a=fingerprint of sha-256")]
    Fingerprint,
    /// `holdconn`, or the same role as ours.
    #[error("DTLS-SRTP with an a=setup that leaves no role for us")]
    Setup,
    /// No credentials, or longer ones than a sender may have (RFC 8839 §5.4).
    #[error(
        "DTLS-SRTP without usable a=ice-ufrag and a=ice-pwd; media without ICE are not supported over it"
    )]
    Ice,
    /// Both would wait for checks.
    #[error("peer is ICE-lite, as we are: nobody would send checks")]
    Lite,
    /// RTCP would need a handshake of its own.
    #[error("DTLS-SRTP without a=rtcp-mux is not supported")]
    RtcpMux,
}

/// What the peer says.
struct Peer {
    setup: Option<String>,
    fingerprint: Fingerprint,
    ice: Credentials,
}

/// Whether this stream is of DTLS-SRTP.
pub(crate) fn is_dtls(media: &Media) -> bool {
    PROFILES.iter().any(|profile| media.protocol.eq_ignore_ascii_case(profile))
}

/// The profile of our offers.
pub(crate) const fn profile() -> &'static str {
    PROFILES[0]
}

/// An attribute of the media, or of the session for all of them.
fn value<'a>(description: &'a SessionDescription, media: &'a Media, name: &str) -> Option<&'a str> {
    let of_session = || description.attributes.iter().find(|a| a.name.eq_ignore_ascii_case(name));
    media.attribute(name).or_else(|| of_session()?.value.as_deref())
}

impl Peer {
    fn read(description: &SessionDescription, media: &Media) -> Result<Self, DtlsRefusal> {
        let fingerprints = media.attributes.iter().chain(&description.attributes);
        let fingerprint = fingerprints
            .filter(|a| a.name.eq_ignore_ascii_case("fingerprint"))
            .find_map(|a| Fingerprint::parse(a.value.as_deref()?))
            .ok_or(DtlsRefusal::Fingerprint)?;
        let text = |name| value(description, media, name).and_then(IceText::parse).ok_or(DtlsRefusal::Ice);
        let ice = Credentials { ufrag: text("ice-ufrag")?, password: text("ice-pwd")? };
        let is_lite =
            |attributes: &[Attribute]| attributes.iter().any(|a| a.name.eq_ignore_ascii_case("ice-lite"));
        if is_lite(&description.attributes) || is_lite(&media.attributes) {
            return Err(DtlsRefusal::Lite);
        }
        if !media.has_flag("rtcp-mux") {
            return Err(DtlsRefusal::RtcpMux);
        }
        let setup = value(description, media, "setup").map(|word| word.trim().to_ascii_lowercase());
        Ok(Self { setup, fingerprint, ice })
    }
}

/// Our side of the answer to an offered stream; `None` when it is not of DTLS.
pub(crate) fn answered(
    offer: &SessionDescription,
    media: &Media,
    local: Option<&LocalDtls>,
) -> Result<Option<NegotiatedDtls>, DtlsRefusal> {
    if !is_dtls(media) {
        return Ok(None);
    }
    let local = local.ok_or(DtlsRefusal::Off)?;
    let peer = Peer::read(offer, media)?;
    let setup = match (peer.setup.as_deref(), &local.current) {
        // The roles stay while the association does (RFC 8842 §5.3).
        (Some("actpass"), Some(current)) if current.fingerprint == peer.fingerprint => current.setup,
        // A lite side should wait: the peer knows when its checks have succeeded. Nothing said means active (RFC 4145 §4.1).
        (Some("actpass" | "active") | None, _) => Setup::Passive,
        (Some("passive"), _) => Setup::Active,
        (Some(_), _) => return Err(DtlsRefusal::Setup),
    };
    let ice = match &local.current {
        Some(current) if current.remote_ice == peer.ice => current.ice,
        _ => Credentials::derived(&local.secret.0, Some(&peer.ice)),
    };
    Ok(Some(NegotiatedDtls { setup, fingerprint: peer.fingerprint, ice, remote_ice: peer.ice }))
}

/// What the answer to an offer of ours has agreed on; `None` when it was not of DTLS.
pub(crate) fn accepted(
    ours: &Media,
    answer: &SessionDescription,
    theirs: &Media,
) -> Result<Option<NegotiatedDtls>, DtlsRefusal> {
    if !is_dtls(ours) {
        return Ok(None);
    }
    let peer = Peer::read(answer, theirs)?;
    let setup = match peer.setup.as_deref() {
        Some("active") | None => Setup::Passive,
        Some("passive") => Setup::Active,
        Some(_) => return Err(DtlsRefusal::Setup),
    };
    let own = |name| ours.attribute(name).and_then(IceText::parse).ok_or(DtlsRefusal::Ice);
    let ice = Credentials { ufrag: own("ice-ufrag")?, password: own("ice-pwd")? };
    Ok(Some(NegotiatedDtls { setup, fingerprint: peer.fingerprint, ice, remote_ice: peer.ice }))
}

impl LocalDtls {
    /// The credentials of our offers.
    pub(crate) fn offered_ice(&self) -> Credentials {
        match &self.current {
            Some(current) => current.ice,
            None => Credentials::derived(&self.secret.0, None),
        }
    }

    /// What our media says; `setup` is `None` in offers, which leave the choice to the peer (RFC 5763 §5).
    pub(crate) fn attributes(
        &self,
        ice: &Credentials,
        setup: Option<Setup>,
        address: IpAddr,
        port: u16,
    ) -> Vec<Attribute> {
        vec![
            Attribute::with_value("fingerprint", self.fingerprint.to_string()),
            Attribute::with_value("setup", setup.map_or("actpass", Setup::as_str)),
            Attribute::with_value("ice-ufrag", ice.ufrag.as_str()),
            Attribute::with_value("ice-pwd", ice.password.as_str()),
            Attribute::with_value("candidate", format!("1 1 UDP {PRIORITY} {address} {port} typ host")),
            Attribute::flag("end-of-candidates"),
        ]
    }
}

/// What the session says of ICE and of bundled media (RFC 9143): ours is one stream, alone in its group.
pub(crate) fn session_attributes(group_of: Option<&SessionDescription>, mid: Option<&str>) -> Vec<Attribute> {
    let is_bundle = |a: &&Attribute| {
        let mut words = a.value.iter().flat_map(|value| value.split_ascii_whitespace());
        a.name.eq_ignore_ascii_case("group")
            && words.next() == Some("BUNDLE")
            && words.any(|word| Some(word) == mid)
    };
    let is_bundled = group_of.is_some_and(|offer| offer.attributes.iter().any(|a| is_bundle(&a)));
    let group = mid.filter(|_| is_bundled).map(|mid| Attribute::with_value("group", format!("BUNDLE {mid}")));
    group.into_iter().chain([Attribute::flag("ice-lite")]).collect()
}
