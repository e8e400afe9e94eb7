//! OpenSSL at the other end of the handshake: both sides derive the same keys, whoever begins.
#![cfg(feature = "dtls")]
#![allow(clippy::unwrap_used)]
#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "a test against another program is its own shell"
)]

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tandem_rtp::dtls::{DATAGRAM_LEN_MAX, DtlsKeys, DtlsSrtp, Fingerprint, Identity, Setup};

const PROFILES: &str = "SRTP_AES128_CM_SHA1_80";
/// Keys and salts of that profile, both sides'.
const MATERIAL_LEN: usize = 2 * (16 + 14);
const PATIENCE: Duration = Duration::from_secs(20);

struct OpenSsl(Child);

impl Drop for OpenSsl {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn made() -> (Identity, rcgen::CertifiedKey<rcgen::KeyPair>) {
    let made = rcgen::generate_simple_self_signed(["tandem.test".to_owned()]).unwrap();
    (Identity::new(made.cert.der().to_vec(), made.signing_key.serialize_der()), made)
}

/// `openssl s_client` or `s_server` with a certificate of its own.
fn openssl(verb: &str, folder: &Path, address: &str) -> (OpenSsl, Fingerprint) {
    let (identity, theirs) = made();
    let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
    std::fs::write(&certificate, theirs.cert.pem()).unwrap();
    std::fs::write(&key, theirs.signing_key.serialize_pem()).unwrap();
    let mut command = Command::new("openssl");
    command
        .args([verb, "-dtls", "-mtu", "1200", "-use_srtp", PROFILES])
        .args(["-keymatexport", "EXTRACTOR-dtls_srtp", "-keymatexportlen", &MATERIAL_LEN.to_string()])
        .args(["-cert".as_ref(), certificate.as_os_str(), "-key".as_ref(), key.as_os_str()]);
    match verb {
        "s_server" => command.args(["-Verify", "1", "-accept", address]),
        _ => command.args(["-connect", address]),
    };
    // Its end of input would end the connection.
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    (OpenSsl(child.expect("openssl is missing: scripts/setup.sh test installs it")), identity.fingerprint())
}

/// Shakes hands; `peer` is where to begin, or nobody waits for us.
fn shake(socket: &UdpSocket, mut dtls: DtlsSrtp, mut peer: Option<std::net::SocketAddr>) -> DtlsKeys {
    let began = Instant::now();
    let mut buffer = [0; 2_048];
    socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    while began.elapsed() < PATIENCE {
        while let Some(len) = dtls.poll_transmit(&mut buffer[..DATAGRAM_LEN_MAX]) {
            // Who does not listen yet is tried again later.
            let _ = peer.map(|peer| socket.send_to(&buffer[..len], peer));
        }
        if let Some(keys) = dtls.poll_keys() {
            return keys;
        }
        assert_eq!(dtls.failure(), None);
        if let Ok((len, from)) = socket.recv_from(&mut buffer) {
            peer = Some(from);
            dtls.handle_datagram(&buffer[..len], Instant::now());
        }
        dtls.handle_timeout(Instant::now());
    }
    panic!("no keys within {PATIENCE:?}");
}

/// What OpenSSL has exported, in its own words.
fn exported(openssl: &mut OpenSsl) -> Vec<u8> {
    let lines = BufReader::new(openssl.0.stdout.take().unwrap()).lines().map_while(Result::ok);
    let hex =
        lines.filter_map(|line| line.trim().strip_prefix("Keying material: ").map(str::to_owned)).next();
    let hex = hex.expect("openssl prints the material");
    (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).unwrap()).collect()
}

/// Key and salt of one side, cut from the material (RFC 5764 §4.2).
fn side(material: &[u8], is_server: bool) -> Vec<u8> {
    let (keys, salts) = material.split_at(32);
    let (key, salt) = if is_server { (16, 14) } else { (0, 0) };
    [&keys[key..key + 16], &salts[salt..salt + 14]].concat()
}

#[test]
fn openssl_as_client_has_our_keys() {
    let folder = tempfile::tempdir().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (mut openssl, theirs) = openssl("s_client", folder.path(), &socket.local_addr().unwrap().to_string());
    let dtls = DtlsSrtp::new(&made().0, Setup::Passive, theirs, Instant::now()).unwrap();
    let keys = shake(&socket, dtls, None);
    let material = exported(&mut openssl);
    assert_eq!(keys.remote.expose(), side(&material, false));
    assert_eq!(keys.local.expose(), side(&material, true));
}

#[test]
fn openssl_as_server_has_our_keys() {
    let folder = tempfile::tempdir().unwrap();
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (mut openssl, theirs) = openssl("s_server", folder.path(), &free.to_string());
    let dtls = DtlsSrtp::new(&made().0, Setup::Active, theirs, Instant::now()).unwrap();
    let keys = shake(&socket, dtls, Some(free));
    let material = exported(&mut openssl);
    assert_eq!(keys.local.expose(), side(&material, false));
    assert_eq!(keys.remote.expose(), side(&material, true));
}
