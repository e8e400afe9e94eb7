//! The fakes against our own adapters: what they send must be genuine to those, and what those ask must be taken. A fake
//! and an adapter that drift apart meet here; a fake and its provider in tests/peers/providers/fake.py.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use control_plane::provider::rest::MachineDetection;
use control_plane::provider::webhook::{AnswerBy, Endpoint, Webhook};
use control_plane::provider::{
    Account, CallStatus, Control, ControlOutcome, Dial, DialOutcome, Lookup, MediaPlan, RestAnswer,
    RestRequest, Stamp, Transfer, Values, WebhookRequest, find,
};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use uuid::Uuid;

use super::course::Event;
use super::http::{self, Outgoing};
use super::*;

const SOON: Duration = Duration::from_secs(10);
const CONTEXT: Uuid = Uuid::from_u128(0x7);

/// What the control plane's double has seen.
#[derive(Debug, Default)]
struct Seen {
    webhooks: Vec<Webhook>,
    refused: Vec<String>,
    media: Vec<String>,
}

impl Seen {
    fn statuses(&self) -> Vec<CallStatus> {
        let status = |webhook: &Webhook| match webhook {
            Webhook::Status(event) => event.status,
            _ => None,
        };
        self.webhooks.iter().filter_map(status).collect()
    }
}

/// A control plane that checks with our adapters, and an agent that says back what it hears.
struct World {
    fake: Fake,
    account: Arc<dyn Account>,
    base: String,
    media: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    provider: Provider,
}

fn account(settings: &Settings, api_url: &str, public_key: &str) -> Arc<dyn Account> {
    let Settings { account, secret, key, webhook_secret, webhook_user, .. } = settings;
    let fields = match settings.provider {
        Provider::Twilio => json!({ "account_sid": account, "account_token": secret, "api_url": api_url }),
        Provider::Vonage => json!({ "application_id": account, "api_key": key, "private_key": secret,
            "signature_secret": webhook_secret, "api_url": api_url }),
        Provider::Exotel => {
            json!({ "account_sid": account, "client_id": key, "client_secret": secret, "region": "in",
            "webhook_user": webhook_user, "webhook_password": webhook_secret, "api_url": api_url })
        }
        Provider::Asterisk => {
            json!({ "ari_url": api_url, "ari_user": account, "ari_password": secret, "trunk": "carrier" })
        }
        Provider::Telnyx => {
            json!({ "api_key": secret, "public_key": public_key, "connection_id": key, "api_url": api_url })
        }
        Provider::Plivo => json!({ "auth_id": account, "auth_token": secret, "api_url": api_url }),
    };
    let provider = find(settings.provider.name()).unwrap();
    let values = Values::from_json(provider.form, fields.as_object().unwrap()).unwrap();
    (provider.open)(&values).unwrap()
}

impl World {
    async fn start(provider: Provider) -> Self {
        Self::with(provider, |_| {}, "").await
    }

    /// `fault`: what the agent does wrong.
    async fn with(provider: Provider, change: impl FnOnce(&mut Settings), fault: &'static str) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let agent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let media = agent.local_addr().unwrap();
        let mut settings = Settings::demo(provider, &base);
        // What is signed is another name than what is dialled, as behind a proxy.
        settings.public_url = "https://voice.example.test".to_owned();
        settings.audiosocket = Some(media);
        change(&mut settings);
        let fake = Fake::start(settings.clone()).await.unwrap();
        let account = account(&settings, &fake.api_url(), &fake.public_key());
        let answer = {
            let (account, seen) = (Arc::clone(&account), Arc::clone(&seen));
            move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
                let (account, seen) = (Arc::clone(&account), Arc::clone(&seen));
                async move {
                    webhook(account.as_ref(), provider, media, &seen, &method, &uri, &headers, &body).await
                }
            }
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        let said = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = agent.accept().await {
                let said = Arc::clone(&said);
                tokio::spawn(async move {
                    match provider {
                        Provider::Asterisk => echo_audiosocket(stream, &said).await,
                        _ => echo_websocket(stream, provider, fault, &said).await,
                    }
                });
            }
        });
        Self { fake, account, base: settings.public_url, media, seen, provider }
    }

    fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&lock(&self.seen))
    }

    fn media_url(&self) -> String {
        media_url(self.provider, self.media)
    }

    async fn dial(&self, to: &str) -> DialOutcome {
        let (url, callback) = (self.media_url(), format!("{}/v1/telephony/x/event/1", self.base));
        let dial = Dial {
            to,
            from: "+15005550006",
            plan: plan(&url, &callback),
            document_url: &callback,
            ring_s: 30,
            limit_s: 600,
            machine: MachineDetection::Off,
            options: &[],
        };
        let answer = ask(&self.account.dial(&dial, Stamp::now()).unwrap()).await;
        self.account.dialled(&answered(&answer))
    }

    async fn control(&self, call: &str, control: Control<'_>) -> ControlOutcome {
        let answer = ask(&self.account.control(call, control, Stamp::now()).unwrap()).await;
        self.account.controlled(&answered(&answer))
    }
}

fn media_url(provider: Provider, media: SocketAddr) -> String {
    format!("ws://{media}/v1/media/{}/{CONTEXT}", provider.name())
}

fn plan<'a>(media_url: &'a str, callback_url: &'a str) -> MediaPlan<'a> {
    MediaPlan {
        media_url,
        context_id: CONTEXT,
        callback_url,
        number: "+15005550006",
        sample_rate: 8_000,
        parameters: &[],
    }
}

fn answered(answer: &(u16, Vec<u8>)) -> RestAnswer<'_> {
    RestAnswer::Answered { status: answer.0, retry_after_s: None, body: &answer.1 }
}

/// Sends a request of ours as it is.
async fn ask(request: &RestRequest) -> (u16, Vec<u8>) {
    use control_plane::provider::rest;
    let outgoing = Outgoing {
        method: match request.method {
            rest::Method::Get => "GET",
            rest::Method::Post => "POST",
            rest::Method::Put => "PUT",
            rest::Method::Delete => "DELETE",
        },
        url: request.url.clone(),
        headers: request.headers.clone(),
        body: request.body.clone(),
    };
    let settings = Settings::demo(Provider::Twilio, "http://127.0.0.1:1");
    let answer = http::send(&settings, &outgoing).await.unwrap();
    (answer.status, answer.body.into_bytes())
}

async fn webhook(
    account: &dyn Account,
    provider: Provider,
    media: SocketAddr,
    seen: &Mutex<Seen>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    body: &[u8],
) -> Response {
    let public_url = format!("https://voice.example.test{}", uri.path());
    let request = WebhookRequest {
        endpoint: if uri.path().contains("/event/") { Endpoint::Event } else { Endpoint::Call },
        method,
        public_url: &public_url,
        query: uri.query().unwrap_or_default(),
        headers,
        body,
        source: IpAddr::from([127, 0, 0, 1]),
        has_api_key: headers.get("x-api-key").is_some_and(|key| key == "demo-key"),
        now_s: proof::now_s() as i64,
    };
    let url = media_url(provider, media);
    let callback = format!("https://voice.example.test/v1/telephony/{}/event/1", provider.name());
    let plan = plan(&url, &callback);
    let found = match account.webhook(&request) {
        Ok(found) => found,
        Err(refusal) => {
            lock(seen).refused.push(format!("{refusal:?} {uri}"));
            return StatusCode::FORBIDDEN.into_response();
        }
    };
    lock(seen).webhooks.push(found.clone());
    match found {
        Webhook::Inbound(call) if call.answer == AnswerBy::Rest => {
            let request =
                account.control(&call.provider_call_id, Control::Answer(&plan), Stamp::now()).unwrap();
            tokio::spawn(async move {
                // The webhook is answered before.
                tokio::time::sleep(Duration::from_millis(20)).await;
                ask(&request).await
            });
            StatusCode::OK.into_response()
        }
        Webhook::Inbound(_) | Webhook::Document(_) => {
            let document = account.answer(&plan);
            (document.status, [(header::CONTENT_TYPE, document.content_type)], document.body).into_response()
        }
        _ => StatusCode::OK.into_response(),
    }
}

async fn echo_websocket(stream: TcpStream, provider: Provider, fault: &'static str, seen: &Mutex<Seen>) {
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    let (mut id, mut sounds) = (Json::Null, 0);
    while let Some(Ok(message)) = socket.next().await {
        let mut out = Vec::new();
        match message {
            Message::Binary(octets) => {
                sounds += 1;
                let octets = if fault == "frame" { octets.slice(2..) } else { octets };
                out.push(Message::Binary(octets));
                if sounds == 10 {
                    out.push(Message::text(
                        json!({ "action": "notify", "payload": { "id": "m-10" } }).to_string(),
                    ));
                }
            }
            Message::Text(text) => {
                let text: Json = serde_json::from_str(&text).unwrap();
                let event = text["event"].as_str().unwrap_or_default().to_owned();
                if event == "start" {
                    let start = &text["start"];
                    id = [&text["streamSid"], &text["stream_sid"], &text["stream_id"], &start["streamId"]]
                        .into_iter()
                        .find(|id| id.is_string())
                        .cloned()
                        .unwrap();
                }
                if event == "media" {
                    sounds += 1;
                    let payload = &text["media"]["payload"];
                    let mark = json!({ "name": "m-10" });
                    let (sound, mark) = match provider {
                        Provider::Plivo => (
                            json!({ "event": "playAudio", "streamId": id, "media": {
                                "contentType": "audio/x-mulaw", "sampleRate": 8_000, "payload": payload } }),
                            json!({ "event": "checkpoint", "streamId": id, "name": "m-10" }),
                        ),
                        _ => (
                            json!({ "event": "media", "streamSid": id, "stream_sid": id,
                                "media": { "payload": payload } }),
                            json!({ "event": "mark", "streamSid": id, "stream_sid": id, "mark": mark }),
                        ),
                    };
                    let sound =
                        if fault == "id" { sound.to_string().replace("MZ", "XX") } else { sound.to_string() };
                    out.push(Message::text(sound));
                    if sounds == 10 {
                        out.push(Message::text(mark.to_string()));
                    }
                } else {
                    let digit = text["digit"].as_str().or(text["dtmf"]["digit"].as_str()).unwrap_or_default();
                    lock(seen).media.push(format!("{event} {digit}").trim_end().to_owned());
                }
            }
            Message::Close(_) => break,
            _ => {}
        }
        for message in out {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    }
}

async fn echo_audiosocket(mut stream: TcpStream, seen: &Mutex<Seen>) {
    let mut header = [0; 3];
    while stream.read_exact(&mut header).await.is_ok() {
        let mut payload = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
        stream.read_exact(&mut payload).await.unwrap();
        match header[0] {
            1 => {
                assert_eq!(payload, CONTEXT.as_bytes());
                lock(seen).media.push("uuid".to_owned());
                // Asterisk waits for a frame.
                stream.write_all(&[&[0x10, 1, 0x40][..], &[0; 320]].concat()).await.unwrap();
            }
            3 => lock(seen).media.push(format!("dtmf {}", char::from(payload[0]))),
            _ => stream.write_all(&[&header[..], &payload].concat()).await.unwrap(),
        }
    }
}

/// Says something, presses a key, and waits until it has come back.
async fn talk(world: &World, call: &Call) {
    call.noted("media started", SOON).await.unwrap();
    let said = crate::sound::sweep(call.rate_hz(), 1.0);
    call.say(&said);
    call.press('5');
    let heard = call.heard_samples(said.len() * 3 / 2, SOON).await.unwrap();
    let (likeness, _) = crate::sound::resemblance(&said, &heard, heard.len());
    assert!(likeness > 0.95, "{}: {likeness}", world.provider.name());
    let name = world.provider.name();
    soon("the key is heard", SOON, || {
        world.seen(|seen| seen.media.iter().any(|event| event.ends_with("dtmf 5"))).then_some(())
    })
    .await
    .unwrap_or_else(|error| panic!("{name}: {error}"));
    if world.provider != Provider::Asterisk {
        soon("the mark", SOON, || (call.marks() == ["m-10"]).then_some(())).await.unwrap();
    }
    assert!(call.violations().is_empty(), "{name}: {:?}", call.violations());
}

#[tokio::test]
async fn our_calls_are_taken_and_their_callbacks_are_genuine() {
    for provider in Provider::ALL {
        let world = World::start(provider).await;
        let name = provider.name();
        let outcome = world.dial("+14155550100").await;
        let DialOutcome::Accepted { provider_call_id } = outcome else { panic!("{name}: {outcome:?}") };
        let call = world.fake.placed(1, SOON).await.unwrap();
        // What Plivo's answer names is the request; the call has the same id at the fake.
        assert_eq!(call.id(), provider_call_id.trim_start_matches("request:"), "{name}");
        assert_eq!(provider_call_id.starts_with("request:"), provider == Provider::Plivo);
        talk(&world, &call).await;
        let lookup = ask(&world.account.lookup(call.id(), Stamp::now()).unwrap()).await;
        assert!(
            matches!(world.account.looked_up(&answered(&lookup)), Lookup::Found(_)),
            "{name}: {lookup:?}"
        );
        if provider == Provider::Exotel {
            // There is no request for it.
            call.hang_up();
        } else {
            assert_eq!(world.control(call.id(), Control::HangUp).await, ControlOutcome::Done, "{name}");
        }
        assert_eq!(call.ended(SOON).await.unwrap(), Event::Completed, "{name}");
        call.noted("callback completed 200", SOON).await.unwrap();
        assert!(world.seen(|seen| seen.refused.is_empty()), "{name}: {:?}", lock(&world.seen));
        let statuses = world.seen(Seen::statuses);
        assert_eq!(statuses.last(), Some(&CallStatus::Completed), "{name}: {statuses:?}");
        if !matches!(provider, Provider::Asterisk | Provider::Plivo) {
            assert!(statuses.contains(&CallStatus::Answered), "{name}: {statuses:?}");
        }
        if provider != Provider::Exotel {
            let again = world.control(call.id(), Control::HangUp).await;
            assert_eq!(again, ControlOutcome::Gone, "{name}");
        }
    }
}

#[tokio::test]
async fn inbound_calls_are_genuine_and_talk() {
    for provider in Provider::ALL {
        let world = World::start(provider).await;
        let name = provider.name();
        let call = world.fake.announce("+14155550100", "+15005550006").await.unwrap();
        talk(&world, &call).await;
        call.hang_up();
        assert_eq!(call.ended(SOON).await.unwrap(), Event::Completed, "{name}");
        assert!(world.seen(|seen| seen.refused.is_empty()), "{name}: {:?}", lock(&world.seen));
        let inbound = world.seen(|seen| {
            seen.webhooks.iter().find_map(|webhook| match webhook {
                Webhook::Inbound(call) => Some((call.from.clone(), call.to.clone())),
                _ => None,
            })
        });
        assert_eq!(inbound, Some(("+14155550100".to_owned(), "+15005550006".to_owned())), "{name}");
        if matches!(provider, Provider::Twilio | Provider::Exotel | Provider::Telnyx) {
            assert!(world.seen(|seen| seen.media.contains(&"stop".to_owned())), "{name}");
        }
    }
}

#[tokio::test]
async fn callees_who_do_not_answer_are_told_in_the_providers_words() {
    for (callee, end, status) in [
        (Callee::Busy, Event::Busy, CallStatus::Busy),
        (Callee::NoAnswer, Event::NoAnswer, CallStatus::NoAnswer),
        (Callee::Declines, Event::Rejected, CallStatus::Rejected),
    ] {
        for provider in Provider::ALL {
            let world = World::with(provider, |settings| settings.callee = callee, "").await;
            world.dial("+14155550100").await;
            let call = world.fake.placed(1, SOON).await.unwrap();
            assert_eq!(call.ended(SOON).await.unwrap(), end);
            call.noted(&format!("callback {} 200", end.word()), SOON).await.unwrap();
            let last = world.seen(Seen::statuses).last().copied();
            // Plivo and Exotel have no word for a callee's refusal.
            let is_dumb = matches!(provider, Provider::Plivo | Provider::Exotel);
            let status = if is_dumb && callee == Callee::Declines { CallStatus::Failed } else { status };
            assert_eq!(last, Some(status), "{}", provider.name());
        }
    }
}

#[tokio::test]
async fn callbacks_come_as_badly_as_they_are_asked_to() {
    let statuses = async |callbacks| {
        let world = World::with(Provider::Twilio, |settings| settings.callbacks = callbacks, "").await;
        world.dial("+14155550100").await;
        let call = world.fake.placed(1, SOON).await.unwrap();
        call.noted("media started", SOON).await.unwrap();
        call.hang_up();
        call.ended(SOON).await.unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
        world.seen(Seen::statuses)
    };
    use CallStatus::{Answered, Completed, Initiated, Ringing};
    assert_eq!(statuses(Callbacks::Orderly).await, [Initiated, Ringing, Answered, Completed]);
    assert_eq!(statuses(Callbacks::Backwards).await, [Completed, Answered, Ringing, Initiated]);
    assert_eq!(statuses(Callbacks::Twice).await[..4], [Initiated, Initiated, Ringing, Ringing]);
    assert_eq!(statuses(Callbacks::None).await, []);
    assert_eq!(statuses(Callbacks::Late(Duration::from_millis(100))).await.len(), 4);
}

#[tokio::test]
async fn what_a_provider_would_not_play_ends_the_stream_and_is_written_down() {
    for (provider, fault, words) in [
        (Provider::Vonage, "frame", "unexpected frame size 159, when required 160"),
        (Provider::Twilio, "id", "streamSid"),
    ] {
        let world = World::with(provider, |_| {}, fault).await;
        let call = world.fake.announce("+14155550100", "+15005550006").await.unwrap();
        assert_eq!(call.ended(SOON).await.unwrap(), Event::Completed);
        assert!(call.violations()[0].contains(words), "{:?}", call.violations());
    }
}

#[tokio::test]
async fn dropped_socket_ends_a_call_that_has_nothing_else_to_do() {
    let world = World::start(Provider::Twilio).await;
    let call = world.fake.announce("+14155550100", "+15005550006").await.unwrap();
    call.noted("media started", SOON).await.unwrap();
    call.drop_socket();
    assert_eq!(call.ended(SOON).await.unwrap(), Event::Completed);
    assert!(world.seen(|seen| !seen.media.contains(&"stop".to_owned())));
}

#[tokio::test]
async fn transfers_and_keys_reach_the_call() {
    for provider in Provider::ALL {
        // Exotel has none; a channel of Asterisk's that is in the dialplan is not ARI's to command, which our adapter knows.
        if matches!(provider, Provider::Exotel | Provider::Asterisk) {
            continue;
        }
        let world = World::start(provider).await;
        let name = provider.name();
        world.dial("+14155550100").await;
        let call = world.fake.placed(1, SOON).await.unwrap();
        call.noted("media started", SOON).await.unwrap();
        if provider != Provider::Twilio {
            assert_eq!(world.control(call.id(), Control::Dtmf("12#")).await, ControlOutcome::Done, "{name}");
            assert_eq!(call.digits(), "12#", "{name}");
        }
        if provider == Provider::Plivo {
            continue;
        }
        let transfer =
            Transfer { to: "+4930123", from: "+15005550006", ring_s: 20, result_url: "", document_url: "" };
        assert_eq!(
            world.control(call.id(), Control::Transfer(transfer)).await,
            ControlOutcome::Done,
            "{name}"
        );
        let note = call.noted("dialled", SOON).await.unwrap();
        assert!(note.contains("4930123"), "{name}: {note}");
        call.noted("media stopped", SOON).await.unwrap();
        call.hang_up();
        assert_eq!(call.ended(SOON).await.unwrap(), Event::Completed, "{name}");
    }
}

/// A request by hand.
async fn asked(
    fake: &Fake,
    method: &'static str,
    path: &str,
    authorization: &str,
    body: &str,
    kind: &str,
) -> (u16, Json) {
    let headers = vec![("Authorization", authorization.to_owned()), ("Content-Type", kind.to_owned())];
    let url = format!("http://{}{path}", fake.address);
    let outgoing = Outgoing { method, url, headers, body: body.to_owned() };
    let settings = Settings::demo(Provider::Twilio, "http://127.0.0.1:1");
    let answer = http::send(&settings, &outgoing).await.unwrap();
    (answer.status, serde_json::from_str(&answer.body).unwrap_or_default())
}

const FORM: &str = "application/x-www-form-urlencoded";
const JSON: &str = "application/json";

/// Whose; path, authorization, body and its kind; status, and where in the answer which value is.
type Case = (Provider, &'static str, String, &'static str, &'static str, u16, &'static str, Json);

#[tokio::test]
async fn misspelt_parameters_are_the_providers_own_errors() {
    let basic =
        |user: &str, password: &str| format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
    let cases: [Case; 7] = [
        (
            Provider::Twilio,
            "/2010-04-01/Accounts/AC000000000000000000000000000000de/Calls.json",
            basic("AC000000000000000000000000000000de", "demo-twilio-auth-token"),
            "To=%2B14155550100&From=%2B15005550006&Url=http%3A%2F%2Fx&RingTimeout=1",
            FORM,
            400,
            "/code",
            json!(20_001),
        ),
        (
            Provider::Twilio,
            "/2010-04-01/Accounts/AC000000000000000000000000000000de/Calls.json",
            basic("AC000000000000000000000000000000de", "demo-twilio-auth-token"),
            "To=%2B14155550100&From=%2B15005550006",
            FORM,
            400,
            "/code",
            json!(21_205),
        ),
        (
            Provider::Twilio,
            "/2010-04-01/Accounts/AC000000000000000000000000000000de/Calls.json",
            basic("AC000000000000000000000000000000de", "wrong"),
            "",
            FORM,
            401,
            "/code",
            json!(20_003),
        ),
        (
            Provider::Vonage,
            "/v1/calls",
            "Bearer a.b.c".to_owned(),
            "{}",
            JSON,
            401,
            "/title",
            json!("Unauthorized"),
        ),
        (
            Provider::Exotel,
            "/v1/Accounts/demo-exotel/Calls/connect.json",
            basic("demo-exotel-rest", "demo-exotel-rest-token"),
            "From=%2B1&To=%2B2",
            FORM,
            400,
            "/RestException/Code",
            json!(34_001),
        ),
        (
            Provider::Telnyx,
            "/v2/calls",
            "Bearer KEYdemo".to_owned(),
            r#"{"connection_id":"1494404757140276705","to":"+14155550100","from":"+15005550006","timeout":3}"#,
            JSON,
            422,
            "/errors/0/code",
            json!("10015"),
        ),
        (
            Provider::Plivo,
            "/v1/Account/MADEMODEMODEMODEMODE/Call/",
            basic("MADEMODEMODEMODEMODE", "demo-plivo-token"),
            r#"{"from":"15005550006","to":"+14155550100","answer_url":"http://x"}"#,
            JSON,
            400,
            "/error",
            json!("+14155550100 is not a valid destination number"),
        ),
    ];
    for (provider, path, authorization, body, kind, status, pointer, value) in cases {
        let fake = Fake::start(Settings::demo(provider, "http://127.0.0.1:1")).await.unwrap();
        let (got, json) = asked(&fake, "POST", path, &authorization, body, kind).await;
        assert_eq!((got, json.pointer(pointer)), (status, Some(&value)), "{path} {body}: {json}");
        assert_eq!((fake.placed_count(), fake.requests().len()), (0, 1));
    }
}

#[tokio::test]
async fn channel_that_exists_is_not_dialled_again() {
    let world = World::start(Provider::Asterisk).await;
    assert!(matches!(world.dial("+14155550100").await, DialOutcome::Accepted { .. }));
    assert_eq!(world.dial("+14155550100").await, DialOutcome::AlreadyPlaced);
    assert_eq!(world.fake.placed_count(), 1);
}

#[tokio::test]
async fn refusal_that_was_ordered_comes_once() {
    let world = World::start(Provider::Twilio).await;
    world.fake.refuse_next(429, json!({ "code": 20_429, "message": "Too Many Requests", "status": 429 }));
    assert!(matches!(world.dial("+14155550100").await, DialOutcome::Refused(_)));
    assert!(matches!(world.dial("+14155550100").await, DialOutcome::Accepted { .. }));
}

#[tokio::test]
async fn the_official_sdks_place_read_and_end_calls_at_the_fakes() {
    let peer = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/providers");
    let python = peer.join(".venv/bin/python");
    if !python.exists() {
        eprintln!("skipped: no SDKs of the providers (scripts/setup.sh test)");
        return;
    }
    let mut asked = json!({ "from": "+15005550006", "to": "+14155550100" });
    let mut fakes = Vec::new();
    for provider in [Provider::Twilio, Provider::Vonage, Provider::Plivo] {
        let mut settings = Settings::demo(provider, "http://127.0.0.1:1");
        // It rings for as long as the SDK looks at it.
        settings.callee = Callee::Answers(Duration::from_secs(60));
        settings.callbacks = Callbacks::None;
        let fake = Fake::start(settings.clone()).await.unwrap();
        asked[provider.name()] =
            json!({ "url": fake.api_url(), "account": settings.account, "secret": settings.secret });
        fakes.push((provider, fake));
    }
    let told = tokio::task::spawn_blocking(move || {
        use std::io::Write as _;
        let mut oracle = std::process::Command::new(python)
            .arg(peer.join("fake.py"))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        oracle.stdin.take().unwrap().write_all(asked.to_string().as_bytes()).unwrap();
        let output = oracle.wait_with_output().unwrap();
        assert!(output.status.success(), "the oracle failed; its words are above");
        serde_json::from_slice::<Json>(&output.stdout).unwrap()
    })
    .await
    .unwrap();
    for (provider, fake) in &fakes {
        let name = provider.name();
        let call = fake.placed(1, SOON).await.unwrap();
        assert_eq!(told[name]["id"], call.id(), "{told}");
        assert_eq!(call.ended(SOON).await.unwrap(), Event::Canceled, "{name}");
        let first = match provider {
            Provider::Twilio => "queued",
            Provider::Vonage => "started",
            _ => "call fired",
        };
        assert_eq!(told[name]["states"][0], first, "{told}");
    }
    assert_eq!(told["twilio"]["refusal"], "20003");
    assert_eq!(told["vonage"]["refusal"], "AuthenticationError");
    assert_eq!(told["plivo"]["refusal"], "AuthenticationError");
}
