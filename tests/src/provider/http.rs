//! What comes in and goes out: requests taken apart, and webhooks sent. HTTP/1.0 going out, a connection each.

use std::time::Duration;

use anyhow::Context;
use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Settings;

/// Twilio's ceiling for a webhook.
const PATIENCE: Duration = Duration::from_secs(15);

/// A request to the API.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET, POST, PUT, DELETE.
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Names and values.
    pub query: Vec<(String, String)>,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// User and password of HTTP Basic.
    pub(crate) fn basic(&self) -> Option<(String, String)> {
        let text = self.header("authorization").strip_prefix("Basic ")?;
        let text = String::from_utf8(STANDARD.decode(text).ok()?).ok()?;
        text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
    }

    /// The token of `Authorization: Bearer`.
    pub(crate) fn bearer(&self) -> &str {
        self.header("authorization").strip_prefix("Bearer ").unwrap_or_default()
    }

    /// The body as a form; `None`: it is none.
    pub fn form(&self) -> Option<Vec<(String, String)>> {
        let is_form = self.header("content-type").starts_with("application/x-www-form-urlencoded");
        is_form.then(|| form_urlencoded::parse(&self.body).into_owned().collect())
    }

    /// The body as JSON.
    pub fn json(&self) -> Option<Json> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The path's segments, without empty ones.
    pub(crate) fn segments(&self) -> Vec<&str> {
        self.path.split('/').filter(|segment| !segment.is_empty()).collect()
    }
}

/// The first value of a name.
pub(crate) fn value<'a>(pairs: &'a [(String, String)], name: &str) -> Option<&'a str> {
    pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

/// The first name that is not known, or is missing.
pub(crate) fn wrong_name<'a>(
    given: impl Iterator<Item = &'a str> + Clone,
    needed: &[&str],
    known: &[&str],
) -> Option<String> {
    let unknown = given.clone().find(|name| !needed.contains(name) && !known.contains(name));
    let missing = needed.iter().find(|name| !given.clone().any(|given| given == **name));
    unknown
        .map(|name| format!("unknown parameter {name}"))
        .or(missing.map(|name| format!("missing parameter {name}")))
}

/// The same of a JSON object.
pub(crate) fn wrong_key(object: &Json, needed: &[&str], known: &[&str]) -> Option<String> {
    match object.as_object() {
        Some(object) => wrong_name(object.keys().map(String::as_str), needed, known),
        None => Some("a body that is no JSON object".to_owned()),
    }
}

/// An answer of the API.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    body: Option<Json>,
}

impl Answer {
    pub(crate) fn json(status: u16, body: Json) -> Self {
        Self { status, body: Some(body) }
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status, body: None }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match self.body {
            Some(body) => {
                (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
            }
            None => status.into_response(),
        }
    }
}

/// Serves the API.
pub(crate) async fn serve(
    listener: TcpListener,
    answer: impl Fn(Request) -> Answer + Clone + Send + Sync + 'static,
) {
    let handle = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
        let answer = answer.clone();
        async move {
            let query =
                form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
            answer(Request {
                method: method.to_string(),
                path: decoded(uri.path()),
                query,
                headers,
                body: body.to_vec(),
            })
        }
    };
    let app = axum::Router::new().fallback(handle);
    // It ends with its task.
    let _ = axum::serve(listener, app).await;
}

/// A path without its escapes: Telnyx's ids have colons.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let octet = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match octet {
            Some(octet) => {
                out.push(octet);
                out.extend_from_slice(&part.as_bytes()[2..]);
            }
            None => {
                out.push(b'%');
                out.extend_from_slice(part.as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A webhook or callback, its URL as it is signed.
#[derive(Debug, Clone)]
pub(crate) struct Outgoing {
    pub(crate) method: &'static str,
    pub(crate) url: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Outgoing {
    pub(crate) fn get(url: &str, query: &[(&str, String)], headers: Vec<(&'static str, String)>) -> Self {
        let query = encoded(query);
        let sign = if url.contains('?') { '&' } else { '?' };
        Self { method: "GET", url: format!("{url}{sign}{query}"), headers, body: String::new() }
    }

    pub(crate) fn form(url: &str, form: &[(&str, String)], mut headers: Vec<(&'static str, String)>) -> Self {
        headers.push(("Content-Type", "application/x-www-form-urlencoded; charset=UTF-8".to_owned()));
        Self { method: "POST", url: url.to_owned(), headers, body: encoded(form) }
    }

    pub(crate) fn json(url: &str, body: String, mut headers: Vec<(&'static str, String)>) -> Self {
        headers.push(("Content-Type", "application/json".to_owned()));
        Self { method: "POST", url: url.to_owned(), headers, body }
    }
}

fn encoded(pairs: &[(&str, String)]) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// What a webhook was answered.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// Sends a webhook to where the public URL leads.
pub(crate) async fn send(settings: &Settings, outgoing: &Outgoing) -> anyhow::Result<Answered> {
    let path = outgoing.url.strip_prefix(&settings.public_url);
    let url = path.map_or_else(|| outgoing.url.clone(), |path| format!("{}{path}", settings.control));
    tokio::time::timeout(PATIENCE, exchange(&url, outgoing)).await.context("no answer in 15 s")?
}

async fn exchange(url: &str, outgoing: &Outgoing) -> anyhow::Result<Answered> {
    let rest = url.strip_prefix("http://").with_context(|| format!("{url:?} is not http"))?;
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let path = if path.is_empty() { "/" } else { path };
    let mut head = format!("{} {path} HTTP/1.0\r\nHost: {authority}\r\n", outgoing.method);
    for (name, value) in &outgoing.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if outgoing.method != "GET" {
        head += &format!("Content-Length: {}\r\n", outgoing.body.len());
    }
    let mut stream = TcpStream::connect(authority).await.with_context(|| format!("nobody at {authority}"))?;
    stream.write_all(format!("{head}\r\n{}", outgoing.body).as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer).context("the answer is no text")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is no HTTP")?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
    Ok(Answered { status, body: body.to_owned() })
}
