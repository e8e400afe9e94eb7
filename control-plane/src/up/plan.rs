//! From the settings to the three children: who is told what.
//!
//! Each child is given only the settings that it reads, so that a change of one does not restart the others. Where the
//! children meet (the engine's gRPC, the talker, the control plane's API) the addresses follow from the listeners
//! unless a setting says otherwise.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::UpError;
use super::folder::Folder;
use super::spec::{Listener, Ready, Spec};
use crate::config::{Config, SipTransport};
use crate::settings::{Layers, SETTINGS};

/// The children, and where a person meets them.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Carries.
    pub engine: Spec,
    /// Thinks; `None` when the voice agent is not wanted.
    pub talker: Option<Spec>,
    /// Decides.
    pub control: Spec,
    /// The checked settings of the control plane.
    pub config: Config,
    /// The voice agent is the offline script; no language model is set.
    pub scripted: bool,
}

/// Settings, by the beginning of their keys, that only the engine and only the talker read.
const ENGINE_KEYS: &[&str] = &["engine_", "tls_", "log"];
const TALKER_KEYS: &[&str] = &["talker_listen", "talker_conversations", "local_voice_", "llm_", "log"];

impl Plan {
    /// Reads the settings. Nothing is started, but the folder's secrets are made.
    pub fn new(layers: &Layers, folder: &Folder, voice: bool) -> Result<Self, UpError> {
        let mut layers = layers.clone();
        let engine_grpc = address(&layers, "engine_grpc_listen")?;
        let engine_metrics = address(&layers, "engine_metrics_listen")?;
        let talker = address(&layers, "talker_listen")?;
        let http = address(&layers, "http_listen")?;
        let talker_url = format!("link://{}", reachable(talker));
        let engines = format!("http://{}", reachable(engine_grpc));
        derive(&mut layers, "talker_url", &talker_url);
        derive(&mut layers, "engines", &engines);
        derive(&mut layers, "control_url", &format!("http://{}", reachable(http)));
        let state_dir = folder.path().to_string_lossy().into_owned();
        layers.flag("state_dir", Some(&state_dir));
        secret(&mut layers, folder, "service_token", "service-token")?;
        secret(&mut layers, folder, "master_key", "master-key")?;

        let config = Config::from_layers(&layers)?;
        if config.demo {
            check_loopback(&layers, &[engine_grpc, engine_metrics, talker])?;
        }
        let tandem = std::env::current_exe().map_err(UpError::OwnProgram)?;
        let mut engine = Self::engine(&layers, &engine_program(&tandem)?, engine_grpc, engine_metrics);
        // The engine knows no master key and no token: it asks nobody and tells nobody but its controller.
        engine.settings.insert("TANDEM_STATE_DIR".to_owned(), state_dir);
        Ok(Self {
            engine,
            talker: voice.then(|| Self::talker(&layers, &tandem, talker)),
            control: Self::control(&layers, &tandem, &config),
            config,
            scripted: layers.text("llm_url").is_none(),
        })
    }

    fn engine(layers: &Layers, program: &Path, grpc: SocketAddr, metrics: SocketAddr) -> Spec {
        Spec {
            name: "engine",
            program: program.to_owned(),
            args: Vec::new(),
            files: Vec::new(),
            settings: given(layers, |key| ENGINE_KEYS.iter().any(|prefix| key.starts_with(prefix))),
            listeners: vec![
                tcp(grpc, "TANDEM_ENGINE_GRPC_LISTEN"),
                tcp(metrics, "TANDEM_ENGINE_METRICS_LISTEN"),
            ],
            ready: Ready::Http(reachable(metrics), "/readyz"),
        }
    }

    fn talker(layers: &Layers, tandem: &Path, listen: SocketAddr) -> Spec {
        let wanted = |key: &str| {
            key == "control_url"
                || key == "service_token"
                || TALKER_KEYS.iter().any(|prefix| key.starts_with(prefix))
        };
        Spec {
            name: "talker",
            program: tandem.to_owned(),
            args: vec!["talker".to_owned()],
            files: Vec::new(),
            settings: given(layers, wanted),
            listeners: vec![tcp(listen, "TANDEM_TALKER_LISTEN")],
            ready: Ready::Http(reachable(listen), "/healthz"),
        }
    }

    fn control(layers: &Layers, tandem: &Path, config: &Config) -> Spec {
        let others =
            |key: &str| ["engine_", "llm_", "local_voice_"].iter().any(|prefix| key.starts_with(prefix));
        let sip = config.sip_listen.iter().map(|listen| Listener {
            address: listen.address,
            udp: listen.transport == SipTransport::Udp,
            setting: "TANDEM_SIP_LISTEN",
        });
        Spec {
            name: "control",
            program: tandem.to_owned(),
            args: control_args(layers),
            files: tables_file(layers).map(Path::to_path_buf).into_iter().collect(),
            settings: given(layers, |key| !others(key)),
            listeners: std::iter::once(tcp(config.http_listen, "TANDEM_HTTP_LISTEN")).chain(sip).collect(),
            ready: Ready::Http(reachable(config.http_listen), "/readyz"),
        }
    }

    /// Where SIP is heard over UDP, from this machine; the first listener when none is UDP.
    pub fn sip_udp(&self) -> SocketAddr {
        let listeners = &self.config.sip_listen;
        let udp = listeners.iter().find(|listen| listen.transport == SipTransport::Udp);
        // Config::from_layers wants at least one listener.
        let listen = udp.or(listeners.first()).map(|listen| listen.address);
        reachable(listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 4573))))
    }

    /// Where the API is reached from this machine.
    pub fn http(&self) -> SocketAddr {
        reachable(self.config.http_listen)
    }

    /// The children in the order in which they are started: what others need first.
    pub fn specs(&self) -> Vec<Spec> {
        let mut specs = vec![self.engine.clone()];
        specs.extend(self.talker.clone());
        specs.push(self.control.clone());
        specs
    }
}

/// Settings go to the control plane as variables; the tables of the file can only be read there.
/// The settings file, if it has tables, which no variable can carry.
fn tables_file(layers: &Layers) -> Option<&Path> {
    layers.path().filter(|_| !layers.tables().is_empty())
}

fn control_args(layers: &Layers) -> Vec<String> {
    let mut args = vec!["serve".to_owned()];
    if let Some(path) = tables_file(layers) {
        args.extend(["--config".to_owned(), path.display().to_string()]);
    }
    args
}

/// The settings with these keys, as the variables of a child.
fn given(layers: &Layers, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, String> {
    let keys = SETTINGS.iter().filter(|setting| wanted(setting.key));
    keys.filter_map(|setting| Some((setting.variable(), layers.text(setting.key)?.to_owned()))).collect()
}

fn tcp(address: SocketAddr, setting: &'static str) -> Listener {
    Listener { address, udp: false, setting }
}

/// Where a listener is reached from this machine.
fn reachable(mut listen: SocketAddr) -> SocketAddr {
    if listen.ip().is_unspecified() {
        listen.set_ip(match listen {
            SocketAddr::V4(_) => [127, 0, 0, 1].into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    listen
}

fn address(layers: &Layers, key: &'static str) -> Result<SocketAddr, UpError> {
    let text = layers.text(key).unwrap_or_default().trim();
    text.parse().map_err(|_| UpError::Address { origin: layers.origin(key), value: text.to_owned() })
}

/// Fills a setting in that nobody has given.
fn derive(layers: &mut Layers, key: &'static str, value: &str) {
    if layers.is_default(key) {
        layers.flag(key, Some(value));
    }
}

/// Fills a secret in that nobody has given, from its file in the state folder, which is made on first use.
fn secret(
    layers: &mut Layers,
    folder: &Folder,
    key: &'static str,
    file: &'static str,
) -> Result<(), UpError> {
    if layers.text(key).is_none() {
        let made = folder.secret(file).map_err(|source| UpError::Secret { file, source })?;
        layers.flag(key, Some(&made));
    }
    Ok(())
}

/// `--demo` opens a key that everybody knows: nothing of it may be reachable from outside. The control plane's own
/// listeners are checked by its configuration, which says the same.
fn check_loopback(layers: &Layers, addresses: &[SocketAddr]) -> Result<(), UpError> {
    let rtp = layers.text("engine_rtp_addr").unwrap_or_default();
    if !rtp.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback()) {
        return Err(UpError::NotLoopback { listener: format!("rtp {rtp}") });
    }
    match addresses.iter().find(|address| !address.ip().is_loopback()) {
        Some(address) => Err(UpError::NotLoopback { listener: address.to_string() }),
        None => Ok(()),
    }
}

/// `tandem-engine` lies beside `tandem`.
fn engine_program(tandem: &Path) -> Result<PathBuf, UpError> {
    let program = tandem.with_file_name("tandem-engine");
    if program.is_file() { Ok(program) } else { Err(UpError::NoEngine { program }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(flags: &[(&'static str, &str)]) -> Layers {
        let mut layers = Layers::default();
        for (key, value) in flags {
            layers.flag(key, Some(value));
        }
        layers
    }

    #[test]
    fn each_child_is_told_only_what_it_reads() {
        let layers = layers(&[("llm_key", "k"), ("master_key", "m"), ("service_token", "t")]);
        let loopback = SocketAddr::from(([127, 0, 0, 1], 1));
        let engine = Plan::engine(&layers, Path::new("/e"), loopback, loopback);
        assert!(engine.settings.contains_key("TANDEM_ENGINE_RTP_PORTS"));
        assert!(engine.settings.keys().all(|key| !key.contains("KEY") || key.contains("TLS")));
        let talker = Plan::talker(&layers, Path::new("/t"), loopback);
        assert_eq!(talker.settings.get("TANDEM_LLM_KEY").map(String::as_str), Some("k"));
        assert!(!talker.settings.contains_key("TANDEM_MASTER_KEY"));
        let config = Config::from_layers(&layers).unwrap();
        let control = Plan::control(&layers, Path::new("/t"), &config);
        assert!(control.settings.contains_key("TANDEM_MASTER_KEY"));
        assert!(!control.settings.contains_key("TANDEM_LLM_KEY"));
        let sip: Vec<_> = control.listeners.iter().filter(|l| l.setting == "TANDEM_SIP_LISTEN").collect();
        assert_eq!(sip.len(), 2);
    }

    #[test]
    fn listener_on_every_address_is_reached_over_loopback() {
        assert_eq!(reachable("0.0.0.0:7".parse().unwrap()), "127.0.0.1:7".parse().unwrap());
        assert_eq!(reachable("[::]:7".parse().unwrap()), "[::1]:7".parse().unwrap());
        assert_eq!(reachable("192.0.2.1:7".parse().unwrap()), "192.0.2.1:7".parse().unwrap());
    }

    #[test]
    fn demo_refuses_media_that_could_be_reached_from_outside() {
        let loopback: SocketAddr = "127.0.0.1:7070".parse().unwrap();
        assert!(check_loopback(&layers(&[]), &[loopback]).is_ok());
        assert!(check_loopback(&layers(&[("engine_rtp_addr", "0.0.0.0")]), &[loopback]).is_err());
        assert!(check_loopback(&layers(&[]), &["0.0.0.0:7070".parse().unwrap()]).is_err());
    }

    #[test]
    fn given_address_beats_the_derived_one() {
        let mut layers = layers(&[("talker_url", "ws://10.0.0.1:1/v1/talk")]);
        derive(&mut layers, "talker_url", "ws://derived/");
        assert_eq!(layers.text("talker_url"), Some("ws://10.0.0.1:1/v1/talk"));
        derive(&mut layers, "engines", "http://127.0.0.1:9");
        assert_eq!(layers.text("engines"), Some("http://127.0.0.1:9"));
    }
}
