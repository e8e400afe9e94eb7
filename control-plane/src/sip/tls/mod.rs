//! TLS for SIP: our certificate, whom we trust, and who has shown a certificate to us (RFC 5922).
//!
//! ```text
//!   TANDEM_TLS_CERT, TANDEM_TLS_KEY ─▶ server ──▶ tls: and wss: listeners
//!   a trunk's ca, cert, key ─────────▶ clients ─▶ connections to that trunk
//!   all trunks' ca ──────────────────▶ peers ───▶ names of those that connect to us, for admission
//! ```
//!
//! Versions 1.2 and 1.3, provider ring. What a server shows is always verified: against its trunk's `ca` and nothing else,
//! or, without one, against the public roots. Files are read again when they change; broken ones are an error in the log
//! and what was read before stays in use.

mod peer;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};

use self::peer::{AskForCertificate, Authorities};
use super::TlsPeer;
use crate::trunk::Trunk;

/// How often files are looked at. A renewed certificate is in use so many seconds later.
const RELOAD_EVERY: Duration = Duration::from_secs(5);

/// A certificate chain and its key, both PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, then its intermediates.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// How a trunk and we know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrunkIdentity {
    /// The trunk.
    pub name: Arc<str>,
    /// PEM file of the only authorities that may vouch for it; `None`: the public ones.
    pub ca: Option<PathBuf>,
    /// The name that its certificate must have; `None`: the host of its URI.
    pub server_name: Option<Box<str>>,
    /// What we show when it asks for a certificate.
    pub cert: Option<TlsFiles>,
    /// Whether it shows certificates to us, so that the listener must ask for them.
    pub shows_certificate: bool,
    /// Host or address that it is told in Via and Contact; `None`: as everybody.
    pub advertised_host: Option<Arc<str>>,
}

impl TrunkIdentity {
    /// A trunk without anything of its own.
    pub fn new(name: Arc<str>) -> Self {
        Self {
            name,
            ca: None,
            server_name: None,
            cert: None,
            shows_certificate: false,
            advertised_host: None,
        }
    }
}

impl From<&Trunk> for TrunkIdentity {
    fn from(trunk: &Trunk) -> Self {
        let tls = trunk.addresses.tls.clone().unwrap_or_default();
        let cert = tls.certificate.zip(tls.key).map(|(cert, key)| TlsFiles { cert, key });
        Self {
            name: trunk.name.clone(),
            ca: tls.ca,
            server_name: tls.server_name.map(|name| name.to_ascii_lowercase().into()),
            cert,
            shows_certificate: !trunk.inbound.tls_client.is_empty(),
            advertised_host: trunk.addresses.advertised_host.as_deref().map(Into::into),
        }
    }
}

/// Which file cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Not there, not readable, or no PEM.
    #[error("{whose}: cannot read {what} from {path}: {why}; give a PEM file that this user may read")]
    File {
        /// TANDEM_TLS_CERT, or a trunk.
        whose: String,
        /// "a certificate", "a key".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The key is another's, or of a kind that is not supported.
    #[error(
        "{whose}: {cert} and {key} cannot be used together: {why}; the first certificate in the file must be the \
         one that the key belongs to, RSA, ECDSA or Ed25519"
    )]
    Pair {
        /// TANDEM_TLS_CERT, or a trunk.
        whose: String,
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// A CA file without a usable certificate.
    #[error(
        "{whose}: {path} holds no certificate of an authority; give a PEM file with the CA's own certificate"
    )]
    Authority {
        /// A trunk.
        whose: String,
        /// The file.
        path: PathBuf,
    },
    /// rustls refuses; never seen with our provider.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

/// See the module. One for all connections.
#[derive(Debug)]
pub(super) struct Tls {
    files: Option<TlsFiles>,
    trunks: Vec<TrunkIdentity>,
    state: RwLock<Arc<State>>,
}

#[derive(Debug)]
struct State {
    /// For `tls:`; asks for a certificate if a trunk shows one.
    sip: Option<Arc<ServerConfig>>,
    /// For `wss:`; a browser that is asked for a certificate would ask its user.
    websocket: Option<Arc<ServerConfig>>,
    /// For trunks with something of their own.
    trunks: HashMap<Arc<str>, Arc<ClientConfig>>,
    /// For all others.
    anybody: Arc<ClientConfig>,
    authorities: Authorities,
}

impl Tls {
    /// Reads all files.
    pub(super) fn load(files: Option<TlsFiles>, trunks: Vec<TrunkIdentity>) -> Result<Self, TlsError> {
        let state = RwLock::new(Arc::new(State::load(files.as_ref(), &trunks)?));
        Ok(Self { files, trunks, state })
    }

    fn state(&self) -> Arc<State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a `tls:` listener shows.
    pub(super) fn sip_server(&self) -> Option<Arc<ServerConfig>> {
        self.state().sip.clone()
    }

    /// What a `wss:` listener shows.
    pub(super) fn websocket_server(&self) -> Option<Arc<ServerConfig>> {
        self.state().websocket.clone()
    }

    /// How we connect to a trunk, or to somebody.
    pub(super) fn client(&self, trunk: Option<&str>) -> Arc<ClientConfig> {
        let state = self.state();
        trunk.and_then(|name| state.trunks.get(name)).unwrap_or(&state.anybody).clone()
    }

    /// Who has connected, by the certificates it has shown. `None`: nobody vouches for it.
    pub(super) fn peer(&self, chain: &[CertificateDer<'_>]) -> Option<TlsPeer> {
        self.state().authorities.peer(chain)
    }

    /// The host that a trunk is told.
    pub(super) fn advertised_host(&self, trunk: &str) -> Option<Arc<str>> {
        self.trunks.iter().find(|known| *known.name == *trunk)?.advertised_host.clone()
    }

    /// The name that a trunk's certificate must have, if it is not its URI's host.
    pub(super) fn server_name(&self, trunk: &str) -> Option<Box<str>> {
        self.trunks.iter().find(|known| *known.name == *trunk)?.server_name.clone()
    }

    /// Reads files again when they have changed, for as long as anybody else holds this.
    pub(super) async fn watch(self: Arc<Self>) {
        let mut known = self.stamps();
        if known.is_empty() {
            return;
        }
        while Arc::strong_count(&self) > 1 {
            tokio::time::sleep(RELOAD_EVERY).await;
            let tls = self.clone();
            let seen = known.clone();
            let looked = tokio::task::spawn_blocking(move || tls.reload(&seen)).await;
            known = looked.unwrap_or(known);
        }
    }

    /// Once: reads all files again if one has changed since these stamps; gives the new ones.
    fn reload(&self, known: &Stamps) -> Stamps {
        let stamps = self.stamps();
        if stamps == *known {
            return stamps;
        }
        match State::load(self.files.as_ref(), &self.trunks) {
            Ok(state) => {
                *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
                tracing::info!("certificates have changed and are in use");
            }
            Err(error) => {
                tracing::error!(%error, "certificates have changed and cannot be used; the old ones stay");
            }
        }
        stamps
    }

    fn stamps(&self) -> Stamps {
        let of_trunks = self.trunks.iter().flat_map(|trunk| {
            let pair = trunk.cert.iter().flat_map(|files| [&files.cert, &files.key]);
            trunk.ca.iter().chain(pair)
        });
        let own = self.files.iter().flat_map(|files| [&files.cert, &files.key]);
        let stamp = |path: &PathBuf| {
            let metadata = std::fs::metadata(path).ok();
            (path.clone(), metadata.and_then(|of| Some((of.modified().ok()?, of.len()))))
        };
        own.chain(of_trunks).map(stamp).collect()
    }
}

/// When each file was changed last, and its length; `None`: it is not there.
type Stamps = BTreeMap<PathBuf, Option<(SystemTime, u64)>>;

impl State {
    fn load(files: Option<&TlsFiles>, trunks: &[TrunkIdentity]) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let mut clients = HashMap::new();
        for trunk in trunks.iter().filter(|trunk| trunk.ca.is_some() || trunk.cert.is_some()) {
            let whose = format!("trunk \"{}\"", trunk.name);
            let roots = match &trunk.ca {
                Some(path) => read_authorities(&whose, path)?,
                None => public_roots(),
            };
            let config = client_config(&provider, roots, trunk.cert.as_ref(), &whose)?;
            clients.insert(trunk.name.clone(), Arc::new(config));
        }
        let authorities = Authorities::load(trunks, &provider)?;
        let mut servers = (None, None);
        if let Some(files) = files {
            let ask = AskForCertificate::new(&provider, &authorities);
            servers.0 = Some(Arc::new(server_config(&provider, files, ask)?));
            servers.1 = Some(Arc::new(server_config(&provider, files, None)?));
        }
        Ok(Self {
            sip: servers.0,
            websocket: servers.1,
            trunks: clients,
            anybody: Arc::new(client_config(&provider, public_roots(), None, "")?),
            authorities,
        })
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    files: &TlsFiles,
    ask: Option<AskForCertificate>,
) -> Result<ServerConfig, TlsError> {
    let whose = "TANDEM_TLS_CERT";
    let (chain, key) = read_pair(whose, files)?;
    let builder =
        ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = match ask {
        Some(ask) => builder.with_client_cert_verifier(Arc::new(ask)),
        None => builder.with_no_client_auth(),
    };
    builder.with_single_cert(chain, key).map_err(|why| pair_error(whose, files, &why))
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: RootCertStore,
    files: Option<&TlsFiles>,
    whose: &str,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let Some(files) = files else { return Ok(builder.with_no_client_auth()) };
    let (chain, key) = read_pair(whose, files)?;
    builder.with_client_auth_cert(chain, key).map_err(|why| pair_error(whose, files, &why))
}

fn pair_error(whose: &str, files: &TlsFiles, why: &rustls::Error) -> TlsError {
    TlsError::Pair {
        whose: whose.to_owned(),
        cert: files.cert.clone(),
        key: files.key.clone(),
        why: why.to_string(),
    }
}

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn read_pair(whose: &str, files: &TlsFiles) -> Result<Pair, TlsError> {
    let chain = read_certificates(whose, &files.cert)?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|why| TlsError::File {
        whose: whose.to_owned(),
        what: "a key",
        path: files.key.clone(),
        why: why.to_string(),
    })?;
    Ok((chain, key))
}

fn read_certificates(whose: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |why: String| TlsError::File {
        whose: whose.to_owned(),
        what: "a certificate",
        path: path.to_owned(),
        why,
    };
    let chain = CertificateDer::pem_file_iter(path).map_err(|why| failed(why.to_string()))?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|why| failed(why.to_string()))?;
    if chain.is_empty() { Err(failed("there is none in it".to_owned())) } else { Ok(chain) }
}

fn read_authorities(whose: &str, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(read_certificates(whose, path)?);
    if added == 0 {
        return Err(TlsError::Authority { whose: whose.to_owned(), path: path.to_owned() });
    }
    Ok(roots)
}

/// The authorities of the web, as Mozilla lists them.
fn public_roots() -> RootCertStore {
    RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }
}

#[cfg(test)]
pub(super) mod tests;
