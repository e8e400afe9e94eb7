//! What a child is: program, arguments, environment, listeners, and how one sees that it is ready.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

/// One child of `tandem up`.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Its name in messages, and of its log and record: `control`, `engine`, `talker`.
    pub name: &'static str,
    /// The binary.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its `TANDEM_*` variables, secrets among them; it inherits the rest of the environment.
    pub settings: BTreeMap<String, String>,
    /// Files that it reads at its start, beside its settings.
    pub files: Vec<PathBuf>,
    /// What it will bind.
    pub listeners: Vec<Listener>,
    /// How one sees that it serves.
    pub ready: Ready,
}

/// An address that a child will bind, and the setting that moves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Where.
    pub address: SocketAddr,
    /// Datagrams instead of a stream listener.
    pub udp: bool,
    /// The variable to change when the port is taken.
    pub setting: &'static str,
}

/// How one sees that a child serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// `GET path` answers 200.
    Http(SocketAddr, &'static str),
    /// As soon as it runs.
    Running,
}

impl Spec {
    /// A digest of the binary and of everything that the child is told. Two equal ones mean that a running child is
    /// just what would be started anew, so that it can be kept. Secrets enter it, and cannot be read out of it.
    pub fn fingerprint(&self) -> io::Result<String> {
        let file = fs::metadata(&self.program)?;
        let mut digest = Sha256::new();
        let mut put = |part: &str| {
            digest.update(part.len().to_le_bytes());
            digest.update(part);
        };
        put(&self.program.to_string_lossy());
        // A rebuilt binary has another inode or modification time; reading it whole would cost a start 50 ms.
        put(&format!("{} {} {} {}", file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
        for arg in &self.args {
            put(arg);
        }
        for (name, value) in &self.settings {
            put(name);
            put(value);
        }
        for path in &self.files {
            put(&path.to_string_lossy());
            // One that cannot be read is told by the child, which wants to read it.
            put(&fs::read_to_string(path).unwrap_or_default());
        }
        Ok(hex::encode(digest.finalize()))
    }

    /// Checks that each listener can be bound now. Without this a child would die with the same news in its log.
    pub fn check_listeners(&self) -> Result<(), (Listener, io::Error)> {
        for listener in &self.listeners {
            // Port 0 is never taken; the same options as the child's own sockets: none for UDP, SO_REUSEADDR for TCP.
            let bound = match listener.udp {
                true => std::net::UdpSocket::bind(listener.address).map(drop),
                false => std::net::TcpListener::bind(listener.address).map(drop),
            };
            bound.map_err(|error| (listener.clone(), error))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            name: "engine",
            program: "/bin/sh".into(),
            args: vec!["-c".into(), "true".into()],
            settings: BTreeMap::from([("TANDEM_SERVICE_TOKEN".into(), "s3cret".into())]),
            files: Vec::new(),
            listeners: Vec::new(),
            ready: Ready::Running,
        }
    }

    #[test]
    fn fingerprint_changes_with_each_setting_and_argument_only() {
        let same = spec().fingerprint().unwrap();
        assert_eq!(spec().fingerprint().unwrap(), same);
        let mut other = spec();
        other.settings.insert("TANDEM_SERVICE_TOKEN".into(), "another".into());
        assert_ne!(other.fingerprint().unwrap(), same);
        let mut other = spec();
        other.args = vec!["-ctrue".into()];
        assert_ne!(other.fingerprint().unwrap(), same);
        let mut other = spec();
        other.program = "/bin/cat".into();
        assert_ne!(other.fingerprint().unwrap(), same);
    }

    #[test]
    fn fingerprint_changes_with_the_tables_of_the_settings_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = spec();
        spec.files = vec![folder.path().join("tandem.toml")];
        fs::write(&spec.files[0], "[[trunk]]\nid = \"a\"\n").unwrap();
        let before = spec.fingerprint().unwrap();
        assert_eq!(spec.fingerprint().unwrap(), before);
        fs::write(&spec.files[0], "[[trunk]]\nid = \"b\"\n").unwrap();
        assert_ne!(spec.fingerprint().unwrap(), before);
    }

    #[test]
    fn taken_port_is_reported_with_its_setting() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut spec = spec();
        let listener =
            Listener { address: taken.local_addr().unwrap(), udp: false, setting: "TANDEM_HTTP_LISTEN" };
        spec.listeners.push(listener.clone());
        let (named, error) = spec.check_listeners().unwrap_err();
        assert_eq!((named, error.kind()), (listener, io::ErrorKind::AddrInUse));
    }
}
