//! The webhook that a provider would send for an inbound call, and what the answer says about its media.
//!
//! ```text
//!   twilio    POST form, X-Twilio-Signature of the public URL and the fields   <Stream url="…"><Parameter/>
//!   vonage    GET, JWT (HS256)                                                [{"action":"connect","endpoint":[…]}]
//!   exotel    GET, HTTP Basic                                                 {"url":"…"}
//!   asterisk  GET, x-api-key                                                  the UUID
//! ```
//! The credentials are the demo's, which are no secret. A call a connection, as `Connection: close` would have it.
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use base64_simd::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::Transport;
use super::wire::{Ids, Speech};

/// Twilio's ceiling for a webhook is 15 s; nobody else waits for as long.
const PATIENCE: Duration = Duration::from_secs(15);

/// An answer longer than this is no document of ours, octets.
const ANSWER_MAX: u64 = 64 * 1_024;

/// The demo's credentials.
const TWILIO_ACCOUNT: &str = "AC000000000000000000000000000000de";
const TWILIO_TOKEN: &str = "demo-twilio-auth-token";
const VONAGE_KEY: &str = "demo1234";
const VONAGE_SECRET: &str = "demo-vonage-signature-secret";
const VONAGE_APPLICATION: &str = "00000000-0000-4000-8000-0000000000de";
const EXOTEL_USER: &str = "demo-exotel";
const EXOTEL_PASSWORD: &str = "demo-exotel-token";
const API_KEY: &str = "demo-key";
/// The demo's number at each of them.
const NUMBER: &str = "+15005550006";

/// Where webhooks go: `http://host:port`, with a path in front if there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseUrl {
    authority: String,
    path: String,
}

impl std::str::FromStr for BaseUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
        let rest = rest
            .filter(|rest| !rest.is_empty())
            .ok_or(format!("{text:?} is not of the form http://host:port"))?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let port = if authority.contains(':') { "" } else { ":80" };
        Ok(Self { authority: format!("{authority}{port}"), path: path.to_owned() })
    }
}

impl std::fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

/// Who announces calls, and where.
#[derive(Debug, Clone)]
pub struct Announcer {
    /// Whose calls.
    pub transport: Transport,
    /// The control plane.
    pub url: BaseUrl,
    /// What it is known by outside, where that is another: the signature is over this.
    pub public_url: String,
    /// Whom to call.
    pub assistant: String,
    /// Where AudioSocket is dialled.
    pub audiosocket: SocketAddr,
}

/// Where a call's media are to be dialled.
#[derive(Debug, Clone)]
pub enum Place {
    /// `ws://…`, with headers for the upgrade.
    WebSocket(String, Vec<(&'static str, String)>),
    /// TCP.
    AudioSocket(SocketAddr),
}

/// A call that has been announced.
#[derive(Debug, Clone)]
pub struct Announced {
    /// What the provider knows of it.
    pub ids: Ids,
    /// Where to.
    pub place: Place,
    /// How to speak.
    pub speech: Speech,
}

/// Ids of call number `slot`, in the provider's spelling.
pub fn ids(transport: Transport, slot: usize) -> Ids {
    let from = format!("+1415{:07}", 5_550_000 + slot % 1_000_000);
    let random = u128::from_be_bytes(rand::random());
    let (call, account) = match transport {
        Transport::Twilio => (format!("CA{random:032x}"), TWILIO_ACCOUNT),
        Transport::Vonage => (uuid_text(random.to_be_bytes()), VONAGE_APPLICATION),
        Transport::Exotel => (format!("{random:032x}"), EXOTEL_USER),
        Transport::AudioSocket => (format!("bench-{random:032x}"), ""),
    };
    Ids { call, account: account.into(), from, to: NUMBER.into() }
}

impl Announcer {
    /// Announces call number `slot` and reads where its media go.
    ///
    /// # Errors
    /// What went wrong, in words that can be counted: the same cause has the same words.
    pub fn announce(&self, slot: usize) -> Result<Announced, String> {
        let ids = ids(self.transport, slot);
        let request = self.request(&ids);
        let answer = self.exchange(&request)?;
        let (place, speech) = self.read(&answer)?;
        Ok(Announced { ids, place, speech })
    }

    fn request(&self, ids: &Ids) -> String {
        let path = format!("/v1/telephony/{}/call/{}", self.transport.provider(), escaped(&self.assistant));
        let Ids { call, account, from, to } = ids;
        let digits = |number: &str| number.trim_start_matches('+').to_owned();
        let (method, pairs, header) = match self.transport {
            Transport::Twilio => {
                let form = vec![
                    ("AccountSid", account.clone()),
                    ("ApiVersion", "2010-04-01".into()),
                    ("CallSid", call.clone()),
                    ("CallStatus", "ringing".into()),
                    ("Called", to.clone()),
                    ("Caller", from.clone()),
                    ("Direction", "inbound".into()),
                    ("From", from.clone()),
                    ("To", to.clone()),
                ];
                let header = twilio_signature(&format!("{}{path}", self.public_url), &form);
                ("POST", form, ("X-Twilio-Signature", header))
            }
            Transport::Vonage => {
                let query = vec![
                    ("to", digits(to)),
                    ("from", digits(from)),
                    ("uuid", call.clone()),
                    ("conversation_uuid", format!("CON-{call}")),
                ];
                ("GET", query, ("Authorization", format!("Bearer {}", vonage_token())))
            }
            Transport::Exotel => {
                let query = vec![
                    ("CallSid", call.clone()),
                    ("CallFrom", from.clone()),
                    ("CallTo", to.clone()),
                    ("Direction", "incoming".into()),
                ];
                ("GET", query, ("Authorization", exotel_authorization()))
            }
            Transport::AudioSocket => {
                let query = vec![("from", from.clone()), ("to", to.clone()), ("channel_id", call.clone())];
                ("GET", query, ("x-api-key", API_KEY.into()))
            }
        };
        let pairs: Vec<String> =
            pairs.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        let pairs = pairs.join("&");
        let mut out = String::new();
        let (query, body) =
            if method == "POST" { (String::new(), pairs) } else { (format!("?{pairs}"), String::new()) };
        // HTTP/1.0: the answer comes whole and unchunked, and the connection ends with it.
        let _ = write!(
            out,
            "{method} {}{path}{query} HTTP/1.0\r\nHost: {}\r\nUser-Agent: tandem-bench\r\n{}: {}\r\n",
            self.url.path, self.url.authority, header.0, header.1
        );
        if method == "POST" {
            let _ = write!(
                out,
                "Content-Type: application/x-www-form-urlencoded; charset=UTF-8\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        out + "\r\n" + &body
    }

    fn exchange(&self, request: &str) -> Result<String, String> {
        let io = |error: std::io::Error| format!("webhook: {error}");
        let address = self.url.authority.to_socket_addrs().map_err(io)?.next();
        let address = address.ok_or("webhook: the control plane's name has no address")?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(io)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        stream.write_all(request.as_bytes()).map_err(io)?;
        let mut answer = Vec::new();
        stream.take(ANSWER_MAX).read_to_end(&mut answer).map_err(io)?;
        let answer = String::from_utf8(answer).map_err(|_| "webhook: the answer is no text")?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("webhook: the answer is no HTTP")?;
        let status = head.lines().next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        if status == "200" { Ok(body.to_owned()) } else { Err(format!("webhook answered {status}")) }
    }

    fn read(&self, answer: &str) -> Result<(Place, Speech), String> {
        let unread = |what: &str| format!("the answer has no {what}");
        let mut speech = Speech::default();
        let place = match self.transport {
            Transport::Twilio => {
                let stream = elements(answer, "Stream").next().ok_or(unread("<Stream>"))?;
                let url = attribute(stream, "url").ok_or(unread("url in its <Stream>"))?;
                speech.parameters = elements(answer, "Parameter")
                    .filter_map(|element| Some((attribute(element, "name")?, attribute(element, "value")?)))
                    .collect();
                // What Twilio signs of an upgrade is its URL.
                let signature = twilio_signature(&url, &[]);
                Place::WebSocket(url, vec![("X-Twilio-Signature", signature)])
            }
            Transport::Vonage => {
                let ncco: Value = serde_json::from_str(answer).map_err(|_| unread("NCCO"))?;
                let endpoint = &ncco[0]["endpoint"][0];
                let url = endpoint["uri"].as_str().ok_or(unread("uri in its NCCO"))?;
                let kind = endpoint["content-type"].as_str().unwrap_or_default();
                speech.rate_hz = rate(kind.rsplit_once("rate=").map_or("", |(_, rate)| rate))?;
                speech.parameters = plain(&endpoint["headers"]);
                let custom = endpoint["authorization"]["value"].as_str();
                let headers = custom.map(|value| ("Authorization", value.to_owned()));
                Place::WebSocket(url.to_owned(), headers.into_iter().collect())
            }
            Transport::Exotel => {
                let document: Value = serde_json::from_str(answer).map_err(|_| unread("JSON"))?;
                let url = document["url"].as_str().ok_or(unread("url"))?;
                let query = url.split_once('?').map_or("", |(_, query)| query);
                for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
                    match name {
                        "sample-rate" => speech.rate_hz = rate(value)?,
                        _ => drop(speech.parameters.insert(name.to_owned(), value.to_owned())),
                    }
                }
                Place::WebSocket(url.to_owned(), vec![("Authorization", exotel_authorization())])
            }
            Transport::AudioSocket => {
                speech.uuid = uuid(answer).ok_or(unread("UUID alone"))?;
                Place::AudioSocket(self.audiosocket)
            }
        };
        Ok((place, speech))
    }
}

fn rate(text: &str) -> Result<u32, String> {
    match text {
        "8000" => Ok(8_000),
        "16000" => Ok(16_000),
        "24000" => Ok(24_000),
        _ => Err("the answer has a sample rate that the provider does not know".into()),
    }
}

fn plain(object: &Value) -> BTreeMap<String, String> {
    let pairs = object.as_object().into_iter().flatten();
    pairs.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

/// Start tags of this name, without their brackets. Our own documents are read by it, not XML at large.
fn elements<'a>(xml: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    xml.split('<').filter_map(move |tag| {
        let rest = tag.strip_prefix(name)?;
        rest.starts_with([' ', '\n']).then(|| rest.split('>').next().unwrap_or(rest))
    })
}

fn attribute(element: &str, name: &str) -> Option<String> {
    let at = element.find(&format!(" {name}=\""))? + name.len() + 3;
    let value = element[at..].split('"').next()?;
    let plain =
        value.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'");
    Some(plain.replace("&amp;", "&"))
}

/// RFC 3986 §2.3: what is not unreserved becomes its octets.
fn escaped(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, octet| {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            out.push(char::from(octet));
        } else {
            let _ = write!(out, "%{octet:02X}");
        }
        out
    })
}

/// Base64 of HMAC-SHA1 over the URL and the sorted fields.
fn twilio_signature(url: &str, fields: &[(&str, String)]) -> String {
    let mut fields: Vec<_> = fields.iter().collect();
    fields.sort();
    let signed = fields.iter().fold(url.to_owned(), |signed, (name, value)| signed + name + value);
    let key = ::ring::hmac::Key::new(::ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, TWILIO_TOKEN.as_bytes());
    STANDARD.encode_to_string(::ring::hmac::sign(&key, signed.as_bytes()))
}

fn vonage_token() -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode_to_string(value.to_string());
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let claims = json!({
        "iat": since.as_secs(), "jti": uuid_text(rand::random()), "iss": "Vonage",
        "api_key": VONAGE_KEY, "application_id": VONAGE_APPLICATION,
    });
    let signed = format!("{}.{}", part(json!({"alg": "HS256", "typ": "JWT"})), part(claims));
    let key = ::ring::hmac::Key::new(::ring::hmac::HMAC_SHA256, VONAGE_SECRET.as_bytes());
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode_to_string(::ring::hmac::sign(&key, signed.as_bytes())))
}

fn exotel_authorization() -> String {
    format!("Basic {}", STANDARD.encode_to_string(format!("{EXOTEL_USER}:{EXOTEL_PASSWORD}")))
}

/// A UUID's text, and nothing else.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let is_dash = |at: usize| matches!(at, 8 | 13 | 18 | 23);
    let shape =
        text.len() == 36 && text.bytes().enumerate().all(|(at, octet)| (octet == b'-') == is_dash(at));
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let number = shape.then(|| u128::from_str_radix(&digits, 16).ok())??;
    Some(number.to_be_bytes())
}

/// A random version 4 UUID of these octets.
pub fn uuid_text(mut octets: [u8; 16]) -> String {
    octets[6] = octets[6] & 0x0F | 0x40;
    octets[8] = octets[8] & 0x3F | 0x80;
    let digits = format!("{:032x}", u128::from_be_bytes(octets));
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcer(transport: Transport) -> Announcer {
        Announcer {
            transport,
            url: "http://127.0.0.1:8080".parse().unwrap(),
            public_url: "https://voice.example.test".into(),
            assistant: "echo".into(),
            audiosocket: ([127, 0, 0, 1], 9_093).into(),
        }
    }

    #[test]
    fn base_url_may_have_a_path_and_no_port() {
        let url = |text: &str| text.parse::<BaseUrl>().map(|url| (url.authority, url.path));
        assert_eq!(url("http://a:8080/").unwrap(), ("a:8080".into(), String::new()));
        assert_eq!(url("http://a/b/c").unwrap(), ("a:80".into(), "/b/c".into()));
        assert!(url("https://a").is_err() && url("http://").is_err());
    }

    #[test]
    fn twilio_signature_is_the_sdks() {
        // Made with twilio 9.13.0: RequestValidator("demo-twilio-auth-token").compute_signature(url, fields).
        let fields = [
            ("To", "+2".to_owned()),
            ("From", "+1".to_owned()),
            ("B", "x".to_owned()),
            ("a", "1".to_owned()),
        ];
        assert_eq!(twilio_signature("https://h.test/p", &fields), "bopEtC7iERYVGKL2crTK2VJIvFw=");
    }

    #[test]
    fn twilio_answer_gives_url_and_parameters() {
        let xml = r#"<?xml version="1.0"?><Response><Connect><Stream statusCallback="https://c/e" url="ws://m/v1/media/twilio/1?a=1&amp;b=2"><Parameter name="ctx" value="1"/><Parameter name="q" value="a&lt;b &amp; &quot;c&quot;" /></Stream></Connect></Response>"#;
        let (place, speech) = announcer(Transport::Twilio).read(xml).unwrap();
        let Place::WebSocket(url, headers) = place else { panic!() };
        assert_eq!(url, "ws://m/v1/media/twilio/1?a=1&b=2");
        assert_eq!(headers[0].0, "X-Twilio-Signature");
        assert_eq!(speech.parameters["q"], "a<b & \"c\"");
        let busy = announcer(Transport::Twilio).read("<Response><Reject reason=\"busy\"/></Response>");
        assert_eq!(busy.unwrap_err(), "the answer has no <Stream>");
    }

    #[test]
    fn vonage_answer_gives_rate_headers_and_authorization() {
        let ncco = r#"[{"action":"connect","endpoint":[{"type":"websocket","uri":"ws://m/1","content-type":"audio/l16;rate=16000","headers":{"ctx":"1"},"authorization":{"type":"custom","value":"Bearer t"}}]}]"#;
        let (place, speech) = announcer(Transport::Vonage).read(ncco).unwrap();
        let Place::WebSocket(url, headers) = place else { panic!() };
        assert_eq!((url.as_str(), headers), ("ws://m/1", vec![("Authorization", "Bearer t".to_owned())]));
        assert_eq!((speech.rate_hz, speech.parameters["ctx"].as_str()), (16_000, "1"));
        assert!(announcer(Transport::Vonage).read("[]").is_err());
    }

    #[test]
    fn exotel_answer_gives_rate_and_parameters_of_the_query() {
        let (_, speech) =
            announcer(Transport::Exotel).read(r#"{"url":"ws://m/1?sample-rate=16000&a=1"}"#).unwrap();
        assert_eq!((speech.rate_hz, speech.parameters["a"].as_str()), (16_000, "1"));
    }

    #[test]
    fn asterisk_answer_is_a_uuid_and_nothing_else() {
        let asterisk = announcer(Transport::AudioSocket);
        let (_, speech) = asterisk.read("6ba7b810-9dad-11d1-80b4-00c04fd430c8").unwrap();
        assert_eq!(speech.uuid[..4], [0x6b, 0xa7, 0xb8, 0x10]);
        for wrong in ["6ba7b810-9dad-11d1-80b4-00c04fd430c8\n", "", "6ba7b8109dad-11d1-80b4-00c04fd430c8-"] {
            assert!(asterisk.read(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_provider_proves_itself_in_its_own_way() {
        for (transport, line, header) in [
            (
                Transport::Twilio,
                "POST /v1/telephony/twilio/call/echo HTTP/1.0\r\n",
                "\r\nX-Twilio-Signature: ",
            ),
            (
                Transport::Vonage,
                "GET /v1/telephony/vonage/call/echo?to=15005550006&",
                "\r\nAuthorization: Bearer ey",
            ),
            (
                Transport::Exotel,
                "GET /v1/telephony/exotel/call/echo?CallSid=",
                "\r\nAuthorization: Basic ZGVtby1leG90",
            ),
            (
                Transport::AudioSocket,
                "GET /v1/telephony/asterisk/call/echo?from=%2B1415",
                "\r\nx-api-key: demo-key\r\n",
            ),
        ] {
            let request = announcer(transport).request(&ids(transport, 3));
            assert!(request.starts_with(line), "{request}");
            assert!(request.contains(header), "{request}");
        }
    }
}
