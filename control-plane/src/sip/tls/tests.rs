use std::path::PathBuf;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use super::*;

/// An authority and the folder of its files.
pub(in crate::sip) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub(in crate::sip) folder: TempDir,
}

impl Authority {
    pub(in crate::sip) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { issuer, folder }
    }

    pub(in crate::sip) fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// A certificate with these names (or, without any, this common name), and its key.
    pub(in crate::sip) fn issue(&self, file: &str, common_name: &str, names: &[&str]) -> TlsFiles {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = TlsFiles {
            cert: self.folder.path().join(format!("{file}.pem")),
            key: self.folder.path().join(format!("{file}.key")),
        };
        std::fs::write(&files.cert, certificate.pem()).unwrap();
        std::fs::write(&files.key, key.serialize_pem()).unwrap();
        files
    }
}

fn chain(files: &TlsFiles) -> Vec<CertificateDer<'static>> {
    read_certificates("test", &files.cert).unwrap()
}

fn trunk(name: &str, ca: &Authority) -> TrunkIdentity {
    let shows_certificate = true;
    TrunkIdentity { ca: Some(ca.ca()), shows_certificate, ..TrunkIdentity::new(name.into()) }
}

#[test]
fn names_of_a_peer_hold_only_for_trunks_that_trust_its_authority() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let tls = Tls::load(None, vec![trunk("a", &ours), trunk("b", &theirs)]).unwrap();
    let files = ours.issue("peer", "unused", &["pbx.example", "SIP.example"]);
    let peer = tls.peer(&chain(&files)).unwrap();
    assert_eq!(peer.names, ["pbx.example", "sip.example"].map(Box::<str>::from));
    assert!(peer.is("a", &["sip.example"]) && !peer.is("a", &["other.example"]));
    assert!(!peer.is("b", &["pbx.example"]), "the other trunk's authority has not signed it");
}

#[test]
fn common_name_counts_only_without_other_names() {
    let authority = Authority::new();
    let tls = Tls::load(None, vec![trunk("a", &authority)]).unwrap();
    let peer = tls.peer(&chain(&authority.issue("old", "Old-PBX", &[]))).unwrap();
    assert_eq!(peer.names, [Box::<str>::from("old-pbx")]);
}

#[test]
fn certificate_of_a_stranger_names_nobody() {
    let (ours, strange) = (Authority::new(), Authority::new());
    let tls = Tls::load(None, vec![trunk("a", &ours)]).unwrap();
    assert_eq!(tls.peer(&chain(&strange.issue("peer", "x", &["pbx.example"]))), None);
    assert_eq!(tls.peer(&[]), None);
}

#[test]
fn broken_files_say_whose_and_what_to_do() {
    let authority = Authority::new();
    let good = authority.issue("one", "x", &["a.example"]);
    let other = authority.issue("two", "x", &["a.example"]);
    let missing = TlsFiles { cert: "/nowhere/cert.pem".into(), ..good.clone() };
    let error = Tls::load(Some(missing), Vec::new()).unwrap_err().to_string();
    assert!(
        error.starts_with("TANDEM_TLS_CERT: cannot read a certificate from /nowhere/cert.pem"),
        "{error}"
    );
    let mixed = TlsFiles { cert: good.cert.clone(), key: other.key };
    let error = Tls::load(Some(mixed), Vec::new()).unwrap_err().to_string();
    assert!(error.contains("cannot be used together"), "{error}");
    let no_ca = TrunkIdentity { ca: Some(good.key), ..trunk("t", &authority) };
    let error = Tls::load(None, vec![no_ca]).unwrap_err().to_string();
    assert!(error.starts_with("trunk \"t\": cannot read a certificate"), "{error}");
}

#[test]
fn renewed_certificate_is_used_and_a_broken_one_is_not() {
    let authority = Authority::new();
    let files = authority.issue("own", "x", &["a.example"]);
    let tls = Tls::load(Some(files.clone()), Vec::new()).unwrap();
    let (first, stamps) = (tls.sip_server().unwrap(), tls.stamps());
    assert_eq!(tls.reload(&stamps), stamps);
    assert!(Arc::ptr_eq(&first, &tls.sip_server().unwrap()));

    std::fs::write(&files.cert, "broken").unwrap();
    let stamps = tls.reload(&stamps);
    assert!(Arc::ptr_eq(&first, &tls.sip_server().unwrap()), "the old one stays");

    authority.issue("own", "x", &["renewed.example"]);
    tls.reload(&stamps);
    assert!(!Arc::ptr_eq(&first, &tls.sip_server().unwrap()));
}
