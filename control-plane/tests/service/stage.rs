//! A control plane, an engine, a phone, and a small HTTP client.

use std::net::SocketAddr;
use std::time::Duration;

use control_plane::app::App;
use control_plane::config::Config;
use tandem_phone::{Call, CallError, CallOptions, Phone, PhoneConfig, SipTransport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::engine::{Engine, Served};

pub(crate) const KEY: &str = "demo-key";
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct Stage {
    pub(crate) app: App,
    pub(crate) served: Served,
}

impl Stage {
    pub(crate) async fn up() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let served = Engine::serve("127.0.0.1:0".parse().unwrap()).await;
        let mut config = Config::for_tests(vec![served.url()]);
        change(&mut config);
        let app = App::start(config).await.unwrap();
        let stage = Self { app, served };
        stage.until_ready().await;
        stage
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.served.engine
    }

    pub(crate) async fn until_ready(&self) {
        until(|| async { self.get("/readyz").await.status == 200 }).await;
    }

    pub(crate) fn uri(&self, user: &str) -> String {
        format!("sip:{user}@{}", self.app.sip_udp_addr().unwrap())
    }

    pub(crate) async fn phone(&self, transport: SipTransport) -> Phone {
        Phone::bind(PhoneConfig { transport, ..PhoneConfig::default() }).await.unwrap()
    }

    pub(crate) async fn call(&self, user: &str) -> Result<Call, CallError> {
        let phone = self.phone(SipTransport::Udp).await;
        phone.call(&self.uri(user), CallOptions::default()).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        get(self.app.http_addr(), path, Some(KEY)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        post(self.app.http_addr(), path, Some(KEY), body).await
    }

    /// The one call there is, as the API shows it.
    pub(crate) async fn only_call(&self) -> serde_json::Value {
        let calls = self.get("/v1/calls").await.json()["calls"].as_array().unwrap().clone();
        assert_eq!(calls.len(), 1, "{calls:?}");
        calls[0].clone()
    }

    /// Waits until the one call there is has this state.
    pub(crate) async fn until_state(&self, state: &str) -> serde_json::Value {
        until(|| async { self.only_call().await["state"] == state }).await;
        self.only_call().await
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").await.body;
        let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{} {}", self.status, self.body))
    }
}

/// GET over a connection of its own.
pub(crate) async fn get(server: SocketAddr, path: &str, key: Option<&str>) -> Answer {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {server}\r\n{key}connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), body: body.to_owned() }
}

/// POST of JSON over a connection of its own.
pub(crate) async fn post(server: SocketAddr, path: &str, key: Option<&str>, body: &str) -> Answer {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let key = key.map(|key| format!("x-api-key: {key}\r\n")).unwrap_or_default();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: {server}\r\n{key}content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), body: body.to_owned() }
}

/// Waits until it is so; fails when it never is.
pub(crate) async fn until<F: Future<Output = bool>>(mut is_so: impl FnMut() -> F) {
    let waiting = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it never was so");
}
