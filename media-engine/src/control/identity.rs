//! The certificate that this process shows in DTLS handshakes: its own, made when it starts.

use rcgen::{CertificateParams, DistinguishedName, DnType, Error, KeyPair};
use tandem_rtp::dtls::Identity;

/// What stands in it for a name. Nobody reads it: descriptions name the certificate by its fingerprint.
const NAME: &str = "tandem";

/// Makes a key (ECDSA over P-256, which every browser has) and a certificate that it has signed itself. It lives no longer than
/// the process, as browsers do it too, so there is no file to keep, to protect or to renew.
///
/// # Errors
/// There is no randomness.
pub fn new_identity() -> Result<Identity, Error> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::new(Vec::new())?;
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, NAME);
    parameters.distinguished_name = name;
    let certificate = parameters.self_signed(&key)?;
    Ok(Identity::new(certificate.der().to_vec(), key.serialize_der()))
}
