//! Webhooks of telephony providers through the whole control plane: proof, answer documents, callbacks, and polite failures.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use control_plane::config::Config;
use control_plane::provider::demo;
use control_plane::store::contexts::redis::RedisUrl;
use ring::hmac;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::stage::{KEY, Stage, until};

const TOKEN: &str = "demo-twilio-auth-token";
const PUBLIC: &str = "https://tandem.example.com";

fn with_demo(config: &mut Config) {
    demo::deploy(&mut config.credentials).unwrap();
    config.public_url = Some(PUBLIC.to_owned());
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: String,
    pub(crate) body: String,
}

/// One request with these headers.
pub(crate) async fn ask(
    server: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Answer {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let len = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {server}\r\n{headers}content-length: {len}\r\nconnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, headers: head.to_ascii_lowercase(), body: body.to_owned() }
}

fn hmac_sha1(text: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, TOKEN.as_bytes());
    STANDARD.encode(hmac::sign(&key, text.as_bytes()))
}

/// A POST as Twilio signs it: URL and sorted fields.
async fn twilio(stage: &Stage, path: &str, fields: &[(&str, &str)]) -> Answer {
    let mut sorted = fields.to_vec();
    sorted.sort();
    let signed: String = sorted.iter().map(|(name, value)| format!("{name}{value}")).collect();
    let signature = hmac_sha1(&format!("{PUBLIC}{path}{signed}"));
    let body = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
    let headers =
        [("content-type", "application/x-www-form-urlencoded"), ("X-Twilio-Signature", signature.as_str())];
    ask(stage.app.http_addr(), "POST", path, &headers, &body).await
}

const INBOUND: &[(&str, &str)] = &[
    ("CallSid", "CA00000000000000000000000000000001"),
    ("AccountSid", "AC000000000000000000000000000000de"),
    ("From", "+14155550100"),
    ("To", "+15005550006"),
    ("CallStatus", "ringing"),
    ("Direction", "inbound"),
];
const CALL: &str = "/v1/telephony/twilio/call/echo";

/// `url` and `statusCallback` of a Stream.
fn stream_of(twiml: &str) -> (String, String) {
    let document = roxmltree::Document::parse(twiml).unwrap();
    let stream = document.descendants().find(|node| node.has_tag_name("Stream")).expect(twiml);
    let attribute = |name: &str| stream.attribute(name).unwrap().to_owned();
    (attribute("url"), attribute("statusCallback"))
}

#[tokio::test]
async fn twilio_is_led_to_an_engine_and_a_repetition_to_the_same_place() {
    let stage = Stage::with(with_demo).await;
    let first = twilio(&stage, CALL, INBOUND).await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert!(first.headers.contains("content-type: text/xml"), "{}", first.headers);
    let (media, callback) = stream_of(&first.body);
    let claim = media.strip_prefix("ws://127.0.0.1:8090/v1/media/twilio/").expect(&media);
    let event = callback.strip_prefix(&format!("{PUBLIC}/v1/telephony/twilio/event/")).expect(&callback);
    assert_ne!(claim, event);
    assert_eq!(stream_of(&twilio(&stage, CALL, INBOUND).await.body), (media.clone(), callback.clone()));
    let mut other = INBOUND.to_vec();
    other[0].1 = "CA00000000000000000000000000000002";
    assert_ne!(stream_of(&twilio(&stage, CALL, &other).await.body).0, media);
}

#[tokio::test]
async fn forged_is_403_and_unknown_404_after_the_proof_and_nothing_is_a_500() {
    let stage = Stage::with(with_demo).await;
    let address = stage.app.http_addr();
    let kind = ("content-type", "application/x-www-form-urlencoded");
    let forged = ask(address, "POST", CALL, &[kind, ("X-Twilio-Signature", "AAAA")], "CallSid=CA1").await;
    assert_eq!((forged.status, forged.body.as_str()), (403, ""));
    assert_eq!(ask(address, "POST", CALL, &[kind], "CallSid=CA1").await.status, 403);
    assert_eq!(twilio(&stage, "/v1/telephony/twilio/call/nobody", INBOUND).await.status, 404);
    assert_eq!(ask(address, "GET", "/v1/telephony/carrier/call/echo", &[], "").await.status, 404);
    assert_eq!(ask(address, "GET", "/v1/telephony/twilio/event/nonsense", &[], "").await.status, 404);
    let large = "x".repeat(100_000);
    assert_eq!(ask(address, "POST", CALL, &[kind], &large).await.status, 413);
    assert_eq!(ask(address, "DELETE", CALL, &[], "").await.status, 405);
    // What is signed and lacks what it needs is the sender's mistake.
    assert_eq!(
        twilio(&stage, CALL, &[("AccountSid", "AC000000000000000000000000000000de")]).await.status,
        400
    );
    let metrics = stage.get("/metrics").await.body;
    assert!(metrics.contains("tandem_webhooks_total{provider=\"twilio\",outcome=\"refused\"}"), "{metrics}");
}

#[tokio::test]
async fn twilio_may_get_instead_of_post() {
    let stage = Stage::with(with_demo).await;
    let path =
        format!("{CALL}?{}", form_urlencoded::Serializer::new(String::new()).extend_pairs(INBOUND).finish());
    let signature = hmac_sha1(&format!("{PUBLIC}{path}"));
    let got = ask(stage.app.http_addr(), "GET", &path, &[("X-Twilio-Signature", &signature)], "").await;
    assert_eq!(got.status, 200, "{}", got.body);
    stream_of(&got.body);
}

#[tokio::test]
async fn vonage_exotel_and_asterisk_are_answered_in_their_own_way() {
    let stage = Stage::with(with_demo).await;
    let address = stage.app.http_addr();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({ "iat": now, "jti": "j1", "iss": "Vonage", "api_key": "demo1234",
                         "application_id": "00000000-0000-4000-8000-0000000000de" });
    let unsigned = format!("{}.{}", part(json!({ "alg": "HS256", "typ": "JWT" })), part(claims));
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"demo-vonage-signature-secret");
    let token =
        format!("Bearer {unsigned}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, unsigned.as_bytes())));
    let path =
        "/v1/telephony/vonage/call/echo?to=15005550006&from=14155550100&uuid=u1&conversation_uuid=CON-1";
    let ncco = ask(address, "GET", path, &[("authorization", &token)], "").await;
    assert_eq!(ncco.status, 200, "{}", ncco.body);
    let ncco: Value = serde_json::from_str(&ncco.body).unwrap();
    let endpoint = &ncco[0]["endpoint"][0];
    assert!(endpoint["uri"].as_str().unwrap().starts_with("ws://127.0.0.1:8090/v1/media/vonage/"), "{ncco}");
    assert_eq!(endpoint["content-type"], "audio/l16;rate=16000");
    assert_eq!(ask(address, "GET", path, &[], "").await.status, 403);

    let basic = format!("Basic {}", STANDARD.encode("demo-exotel:demo-exotel-token"));
    let path = "/v1/telephony/exotel/call/echo?CallSid=s1&CallFrom=09876543210&CallTo=15005550006&Direction=incoming";
    let applet = ask(address, "GET", path, &[("authorization", &basic)], "").await;
    assert_eq!(applet.status, 200, "{}", applet.body);
    let applet: Value = serde_json::from_str(&applet.body).unwrap();
    assert!(applet["url"].as_str().unwrap().starts_with("ws://127.0.0.1:8090/v1/media/exotel/"), "{applet}");
    assert_eq!(ask(address, "GET", path, &[("authorization", "Basic eDp5")], "").await.status, 403);

    let path = "/v1/telephony/asterisk/call/echo?from=100&to=200&channel_id=1700000000.1";
    let uuid = ask(address, "GET", path, &[("x-api-key", KEY)], "").await;
    assert_eq!(uuid.status, 200, "{}", uuid.body);
    uuid::Uuid::parse_str(&uuid.body).expect("nothing but the context's UUID");
    let wrong = ask(address, "GET", path, &[("x-api-key", "nobody's")], "").await;
    assert_eq!((wrong.status, wrong.body.as_str()), (403, ""), "a dialplan would dial what stands there");
}

#[tokio::test]
async fn callback_of_a_call_that_never_came_ends_its_claim() {
    let stage = Stage::with(with_demo).await;
    let (_, callback) = stream_of(&twilio(&stage, CALL, INBOUND).await.body);
    let path = callback.strip_prefix(PUBLIC).unwrap();
    let mut fields = INBOUND.to_vec();
    fields[4].1 = "completed";
    assert_eq!(twilio(&stage, path, &fields).await.status, 200);
    assert_eq!(twilio(&stage, path, &fields).await.status, 200, "again is harmless");
    let forged = ask(stage.app.http_addr(), "POST", path, &[], "CallSid=CA1").await;
    assert_eq!(forged.status, 403);
    let other = "/v1/telephony/twilio/event/00000000-0000-4000-8000-000000000000";
    assert_eq!(twilio(&stage, other, &fields).await.status, 404);
}

#[tokio::test]
async fn full_node_is_busy_in_the_providers_own_words() {
    let stage = Stage::with(|config| {
        with_demo(config);
        config.tenant_limits.calls_max = Some(1);
    })
    .await;
    let call = stage.call("echo:demo-key").await.unwrap();
    let answer = twilio(&stage, CALL, INBOUND).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("<Reject reason=\"busy\"/>"), "{}", answer.body);
    call.hang_up().await;
}

// --- a real Redis ---

pub(crate) struct Redis {
    process: Child,
    pub(crate) port: u16,
    folder: tempfile::TempDir,
}

impl Redis {
    pub(crate) async fn start() -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = tempfile::tempdir().unwrap();
        let process = Self::spawn(port, folder.path());
        let redis = Self { process, port, folder };
        redis.until_up().await;
        redis
    }

    fn spawn(port: u16, folder: &std::path::Path) -> Child {
        Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--dir"])
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed by `make test`")
    }

    async fn until_up(&self) {
        until(|| async { TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() }).await;
    }

    /// What redis-cli says to these.
    pub(crate) fn cli(&self, arguments: &[&str]) -> String {
        let port = self.port.to_string();
        let done = Command::new("redis-cli").args(["-p", &port]).args(arguments).output().unwrap();
        String::from_utf8_lossy(&done.stdout).into_owned()
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.process = Self::spawn(self.port, self.folder.path());
        self.until_up().await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn redis_that_goes_away_is_a_polite_failure_and_comes_back_without_a_restart() {
    let mut redis = Redis::start().await;
    let url = format!("redis://127.0.0.1:{}", redis.port);
    let stage = Stage::with(|config| {
        with_demo(config);
        config.redis = Some(RedisUrl::parse(&url).unwrap());
    })
    .await;
    let (media, callback) = stream_of(&twilio(&stage, CALL, INBOUND).await.body);
    let live = stage.call("echo:demo-key").await.unwrap();
    redis.kill();
    let mut other = INBOUND.to_vec();
    other[0].1 = "CA00000000000000000000000000000002";
    let asked = Instant::now();
    let sorry = twilio(&stage, CALL, &other).await;
    assert_eq!(sorry.status, 200, "{}", sorry.body);
    assert!(sorry.body.contains("<Say>") && sorry.body.contains("<Hangup/>"), "{}", sorry.body);
    assert!(asked.elapsed() < Duration::from_secs(5), "a provider does not wait for long");
    let event = callback.strip_prefix(PUBLIC).unwrap();
    let later = twilio(&stage, event, &other).await;
    assert_eq!(later.status, 503);
    assert!(later.headers.contains("retry-after: "), "{}", later.headers);
    assert_eq!(stage.only_call().await["state"], "connected", "live calls go on");

    redis.restart().await;
    until(|| async { twilio(&stage, CALL, &other).await.body.contains("<Stream") }).await;
    // What was acknowledged before is there: the same call gets the same claim.
    assert_eq!(stream_of(&twilio(&stage, CALL, INBOUND).await.body), (media, callback));
    live.hang_up().await;
}
