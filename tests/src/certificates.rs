//! Certificates of an authority that only a test trusts, made by openssl.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

/// An authority and what it has signed; gone when dropped.
pub struct Authority {
    folder: tempfile::TempDir,
    /// Its own certificate, PEM.
    pub certificate: PathBuf,
}

/// A certificate and its key, PEM.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Both in one file.
    pub both: PathBuf,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("tandem-ca-").tempdir()?;
        let certificate = folder.path().join("ca.pem");
        let subject = format!("/CN={name}");
        openssl(
            folder.path(),
            &[
                "-x509",
                "-subj",
                &subject,
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
                "-addext",
                "basicConstraints=critical,CA:TRUE",
            ],
        )?;
        Ok(Self { folder, certificate })
    }

    /// A certificate for this name, and for 127.0.0.1: `sbc.carrier.test`, `localhost`, …
    pub fn signs(&self, name: &str) -> anyhow::Result<Identity> {
        let folder = self.folder.path();
        let file = |end: &str| folder.join(format!("{name}.{end}"));
        let names = format!("subjectAltName=DNS:{name},DNS:localhost,IP:127.0.0.1");
        let (subject, key, certificate) =
            (format!("/CN={name}"), format!("{name}.key"), format!("{name}.pem"));
        openssl(
            folder,
            &[
                "-x509",
                "-CA",
                "ca.pem",
                "-CAkey",
                "ca.key",
                "-subj",
                &subject,
                "-addext",
                &names,
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-addext",
                "extendedKeyUsage=serverAuth,clientAuth",
                "-keyout",
                &key,
                "-out",
                &certificate,
            ],
        )?;
        let both = std::fs::read_to_string(file("pem"))? + &std::fs::read_to_string(file("key"))?;
        std::fs::write(file("both.pem"), both)?;
        Ok(Identity { certificate: file("pem"), key: file("key"), both: file("both.pem") })
    }
}

fn openssl(folder: &Path, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("openssl")
        .args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .context("openssl is missing: scripts/setup.sh test installs it")?;
    anyhow::ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authority_signs_what_openssl_then_verifies() {
        let authority = Authority::new("Test").unwrap();
        let identity = authority.signs("sbc.carrier.test").unwrap();
        let verified = Command::new("openssl")
            .args(["verify", "-verify_hostname", "sbc.carrier.test", "-CAfile"])
            .arg(&authority.certificate)
            .arg(&identity.certificate)
            .output()
            .unwrap();
        assert!(verified.status.success(), "{verified:?}");
        assert!(std::fs::read_to_string(identity.both).unwrap().contains("PRIVATE KEY"));
    }
}
