//! Who has connected to us, by its certificate (RFC 5922 §7).
//!
//! The handshake asks for a certificate and takes whatever comes, so that a phone with its factory's certificate can still
//! register; a certificate that none of the trunks' authorities has signed just gives no name. Which authority has signed
//! matters: a trunk's own must not be able to name another trunk's peer, so each name comes with the trunks it holds for.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use tandem_sip::Uri;
use webpki::EndEntityCert;

use super::{TlsError, TrunkIdentity, public_roots, read_authorities};
use crate::sip::TlsPeer;

/// Names of one certificate that are kept. Further ones are left out.
const NAMES_MAX: usize = 32;

/// Who may vouch for whom.
#[derive(Debug, Default)]
pub(super) struct Authorities(Vec<Authority>);

#[derive(Debug)]
struct Authority {
    verifier: Arc<dyn ClientCertVerifier>,
    /// The trunks whose peers it vouches for.
    trunks: Vec<Arc<str>>,
}

impl Authorities {
    /// One for each CA file that a trunk which shows certificates names, and one for the public roots.
    pub(super) fn load(trunks: &[TrunkIdentity], provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let mut by_file: Vec<(Option<&Path>, Vec<Arc<str>>)> = Vec::new();
        for trunk in trunks.iter().filter(|trunk| trunk.shows_certificate) {
            let file = trunk.ca.as_deref();
            match by_file.iter_mut().find(|(known, _)| *known == file) {
                Some((_, trunks)) => trunks.push(trunk.name.clone()),
                None => by_file.push((file, vec![trunk.name.clone()])),
            }
        }
        let mut authorities = Vec::with_capacity(by_file.len());
        for (file, trunks) in by_file {
            let whose = format!("trunk \"{}\"", trunks[0]);
            let roots = match file {
                Some(path) => read_authorities(&whose, path)?,
                None => public_roots(),
            };
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|error| Error::General(error.to_string()))?;
            authorities.push(Authority { verifier, trunks });
        }
        Ok(Self(authorities))
    }

    /// See [`super::Tls::peer`].
    pub(super) fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<TlsPeer> {
        let (own, intermediates) = chain.split_first()?;
        let now = UnixTime::now();
        let vouches =
            |authority: &&Authority| authority.verifier.verify_client_cert(own, intermediates, now).is_ok();
        let trunks: Vec<Arc<str>> =
            self.0.iter().filter(vouches).flat_map(|authority| authority.trunks.iter().cloned()).collect();
        let names = names(own)?;
        (!trunks.is_empty() && !names.is_empty()).then_some(TlsPeer { names, trunks })
    }
}

/// DNS names and SIP domains of subjectAltName, or else the common name.
fn names(certificate: &CertificateDer<'_>) -> Option<Vec<Box<str>>> {
    let certificate = EndEntityCert::try_from(certificate).ok()?;
    let domain = |uri: &str| Uri::parse(uri).ok().map(|uri| uri.host().to_owned()).filter(|h| !h.is_empty());
    let mut names: Vec<Box<str>> = certificate
        .valid_dns_names()
        .map(str::to_owned)
        .chain(certificate.valid_uri_names().filter_map(domain))
        .take(NAMES_MAX)
        .map(|name| name.to_ascii_lowercase().into())
        .collect();
    if names.is_empty() {
        names.extend(common_name(certificate.subject()).map(|name| name.to_ascii_lowercase().into()));
    }
    Some(names)
}

/// The first commonName of a subject: a sequence of sets of (object identifier, string) in DER.
fn common_name(subject: &[u8]) -> Option<&str> {
    const SET: u8 = 0x31;
    const SEQUENCE: u8 = 0x30;
    const OBJECT_IDENTIFIER: u8 = 0x06;
    /// 2.5.4.3
    const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
    /// UTF8String, PrintableString, IA5String.
    const STRINGS: [u8; 3] = [0x0c, 0x13, 0x16];
    let mut rest = subject;
    while let Some((SET, set, after)) = der(rest) {
        rest = after;
        let Some((SEQUENCE, pair, _)) = der(set) else { continue };
        let Some((OBJECT_IDENTIFIER, kind, value)) = der(pair) else { continue };
        let Some((tag, text, _)) = der(value) else { continue };
        if kind == COMMON_NAME && STRINGS.contains(&tag) {
            return std::str::from_utf8(text).ok();
        }
    }
    None
}

/// Tag, contents, and what follows. Only lengths below 64 KiB: a subject is shorter.
fn der(octets: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (len, body) = match octets.get(1..)? {
        [len @ ..=0x7f, body @ ..] => (usize::from(*len), body),
        [0x81, len, body @ ..] => (usize::from(*len), body),
        [0x82, high, low, body @ ..] => (usize::from(u16::from_be_bytes([*high, *low])), body),
        _ => return None,
    };
    let (contents, after) = body.split_at_checked(len)?;
    Some((octets[0], contents, after))
}

/// Asks for a certificate, wants the proof that the peer has its key, and leaves the judgement to [`Authorities`].
#[derive(Debug)]
pub(super) struct AskForCertificate {
    hints: Vec<DistinguishedName>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl AskForCertificate {
    /// `None`: no trunk shows certificates, so nobody is asked.
    pub(super) fn new(provider: &CryptoProvider, authorities: &Authorities) -> Option<Self> {
        if authorities.0.is_empty() {
            return None;
        }
        // No hints: a peer that finds none of its own among them would show nothing.
        Some(Self { hints: Vec::new(), algorithms: provider.signature_verification_algorithms })
    }
}

impl ClientCertVerifier for AskForCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_name_is_found_among_other_attributes() {
        // O=Acme, CN=pbx
        let subject = [
            &[0x31, 13, 0x30, 11, 0x06, 3, 0x55, 0x04, 0x0a, 0x0c, 4][..],
            b"Acme",
            &[0x31, 12, 0x30, 10, 0x06, 3, 0x55, 0x04, 0x03, 0x13, 3],
            b"pbx",
        ]
        .concat();
        assert_eq!(common_name(&subject), Some("pbx"));
        for end in 0..subject.len() {
            let _ = common_name(&subject[..end]);
        }
        assert_eq!(common_name(&subject[..15]), None);
    }

    #[test]
    fn der_lengths_beyond_the_octets_are_refused() {
        assert_eq!(der(&[0x30, 2, 1, 2, 3]), Some((0x30, &[1, 2][..], &[3][..])));
        assert_eq!(der(&[0x30, 0x81, 1, 9]), Some((0x30, &[9][..], &[][..])));
        for broken in
            [&[][..], &[0x30], &[0x30, 5, 1], &[0x30, 0x82, 1], &[0x30, 0x80, 0], &[0x30, 0x83, 0, 0, 1]]
        {
            assert_eq!(der(broken), None, "{broken:?}");
        }
    }
}
