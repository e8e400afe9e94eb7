//! WhatsApp Business (Cloud API): messages come by a signed webhook and are answered through the Graph API.
//!
//! ```text
//!   GET   hub.mode=subscribe&hub.verify_token=…&hub.challenge=…    the challenge is said back
//!   POST  X-Hub-Signature-256: sha256=HEX of the raw body          entry[].changes[].value.messages[]
//!   reply POST /{version}/{phone_number_id}/messages, Bearer
//! ```
//!
//! It places no calls: WhatsApp calls come by SIP, as those of a trunk.

use std::sync::Arc;

use axum::http::Method as HttpMethod;
use ring::hmac;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value as Json, json};

use super::document::{Decline, Document, MediaPlan};
use super::form::{self, Field, Form, FormError, Values, secret_keys};
use super::rest::{
    self, Control, ControlOutcome, Dial, DialOutcome, ErrorBody, Lookup, Method, RestAnswer, RestRequest,
    Stamp, Unsupported, at,
};
use super::webhook::{Refusal, TextMessage, Webhook, WebhookRequest, shown, with_plus};
use super::{Account, proof};

const NAME: &str = "whatsapp";
const SIGNATURE: &str = "X-Hub-Signature-256";
/// The Graph API's version; each lives for two years.
const VERSION: &str = "v23.0";
/// Characters of one message.
pub const TEXT_MAX: usize = 4_096;
/// Messages of one webhook; Meta sends far fewer.
const MESSAGES_MAX: usize = 100;

/// What WhatsApp knows us by.
pub const FORM: Form = Form {
    provider: NAME,
    title: "WhatsApp",
    fields: &[
        Field::text(
            "phone_number_id",
            "Phone number id",
            "106540352242922",
            "on the app's WhatsApp page, API setup",
        )
        .required()
        .checked(form::is_path_word),
        Field::secret(secret_keys!("access_token"), "Access token", "of a system user, for messages")
            .required(),
        Field::secret(
            secret_keys!("app_secret"),
            "App secret",
            "on the app's basic settings; signs webhooks",
        )
        .required(),
        Field::secret(
            secret_keys!("verify_token"),
            "Verify token",
            "any text; entered beside the webhook's URL",
        )
        .required(),
        form::API_URL,
    ],
};

/// Makes an account of a filled form.
pub fn open(values: &Values) -> Result<Arc<dyn Account>, FormError> {
    let token = values.needed_secret("access_token")?;
    let phone_number_id = values.text("phone_number_id");
    let base = values.text_or("api_url", "https://graph.facebook.com");
    Ok(Arc::new(WhatsApp {
        url: format!("{base}/{VERSION}/{phone_number_id}"),
        authorization: format!("Bearer {}", token.expose_secret()).into(),
        app_secret: values.needed_secret("app_secret")?,
        verify_token: values.needed_secret("verify_token")?,
        phone_number_id,
    }))
}

/// One number of a WhatsApp Business account.
#[derive(Debug)]
struct WhatsApp {
    phone_number_id: String,
    url: String,
    authorization: SecretString,
    app_secret: SecretString,
    verify_token: SecretString,
}

const fn no_calls(what: &'static str) -> Unsupported {
    Unsupported { provider: NAME, what, instead: "WhatsApp calls come and go by SIP: make it a [[trunk]]" }
}

impl WhatsApp {
    fn verify(&self, request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        let given = request.header(SIGNATURE).ok_or(Refusal::Unsigned(SIGNATURE))?;
        let given = given.trim().strip_prefix("sha256=").and_then(|hex| hex::decode(hex).ok());
        let given = given.ok_or(Refusal::Signature(SIGNATURE))?;
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.app_secret.expose_secret().as_bytes());
        hmac::verify(&key, request.body, &given).map_err(|_| Refusal::Signature(SIGNATURE))
    }

    fn challenge(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        let params = request.query_params()?;
        let token = params.get("hub.verify_token").ok_or(Refusal::Unsigned("hub.verify_token"))?;
        if !proof::is_same(&self.verify_token, token) {
            return Err(Refusal::Signature("hub.verify_token"));
        }
        if params.get("hub.mode") != Some("subscribe") {
            return Err(Refusal::Malformed("hub.mode is not subscribe"));
        }
        Ok(Webhook::Challenge(params.needed("hub.challenge")?))
    }

    fn messages(&self, json: &Json) -> Vec<TextMessage> {
        let mut messages = Vec::new();
        let each = |json: &Json, key: &str| json[key].as_array().cloned().unwrap_or_default();
        for change in each(json, "entry").iter().flat_map(|entry| each(entry, "changes")) {
            let value = &change["value"];
            // Another number of the same account has a credential of its own.
            if at(value, &["metadata", "phone_number_id"]) != Some(self.phone_number_id.as_str()) {
                continue;
            }
            let to = at(value, &["metadata", "display_phone_number"]).map(shown).unwrap_or_default();
            for message in each(value, "messages") {
                let (Some(id), Some(from)) = (at(&message, &["id"]), at(&message, &["from"])) else {
                    continue;
                };
                let text = match at(&message, &["type"]) {
                    Some("text") => at(&message, &["text", "body"]),
                    Some("button") => at(&message, &["button", "text"]),
                    Some("interactive") => at(&message, &["interactive", "button_reply", "title"])
                        .or_else(|| at(&message, &["interactive", "list_reply", "title"])),
                    // A picture, a voice message: nothing that can be read.
                    _ => None,
                };
                messages.push(TextMessage {
                    id: shown(id),
                    from: with_plus(&shown(from)),
                    to: with_plus(&to),
                    text: text.map(|text| text.chars().take(TEXT_MAX).collect()),
                });
                if messages.len() == MESSAGES_MAX {
                    return messages;
                }
            }
        }
        messages
    }
}

impl Account for WhatsApp {
    fn webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal> {
        request.check_bounds()?;
        if request.method == HttpMethod::GET {
            return self.challenge(request);
        }
        self.verify(request)?;
        Ok(Webhook::Messages(self.messages(&request.json()?)))
    }

    fn upgrade(&self, _request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        Err(Refusal::Malformed("WhatsApp brings no media by WebSocket"))
    }

    fn answer(&self, _plan: &MediaPlan<'_>) -> Document {
        Document::empty()
    }

    fn decline(&self, _decline: Decline<'_>) -> Document {
        Document::empty()
    }

    fn message(&self, to: &str, text: &str) -> Result<RestRequest, Unsupported> {
        let text: String = text.chars().take(TEXT_MAX).collect();
        let body = json!({
            "messaging_product": "whatsapp",
            "recipient_type": "individual",
            "to": super::webhook::without_plus(to),
            "type": "text",
            "text": { "preview_url": false, "body": text },
        });
        let authorization = self.authorization.expose_secret().to_owned();
        Ok(RestRequest::new(Method::Post, format!("{}/messages", self.url), authorization).json(&body))
    }

    fn dial(&self, _dial: &Dial<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Err(no_calls("place calls by its REST API"))
    }

    fn dialled(&self, answer: &RestAnswer<'_>) -> DialOutcome {
        rest::dialled(answer, |_| None, error)
    }

    fn control(&self, _call: &str, _control: Control<'_>, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Err(no_calls("be asked about calls"))
    }

    fn controlled(&self, answer: &RestAnswer<'_>) -> ControlOutcome {
        rest::controlled(answer, error)
    }

    fn lookup(&self, _call: &str, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        Err(no_calls("be asked about calls"))
    }

    fn looked_up(&self, answer: &RestAnswer<'_>) -> Lookup {
        rest::looked_up(answer, |_| None)
    }

    fn probe(&self, _stamp: Stamp) -> Result<RestRequest, Unsupported> {
        let authorization = self.authorization.expose_secret().to_owned();
        Ok(RestRequest::new(Method::Get, format!("{}?fields=display_phone_number", self.url), authorization))
    }
}

/// `{"error":{"code":131030,"message":"…"}}`.
fn error(json: &Json) -> Option<ErrorBody> {
    let error = json.get("error")?;
    let code = error["code"].as_i64().map(|code| code.to_string()).unwrap_or_default();
    // A gateway has no code of theirs.
    let is_own = !code.is_empty();
    Some(ErrorBody {
        code,
        detail: at(error, &["message"]).unwrap_or_default().to_owned(),
        class: None,
        is_own,
    })
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderMap, HeaderValue};

    use super::super::webhook::Endpoint;
    use super::*;

    fn account() -> Arc<dyn Account> {
        let fields = json!({ "phone_number_id": "106", "access_token": "EAAtoken", "app_secret": "hunter2",
                             "verify_token": "let me in" });
        open(&Values::from_json(&FORM, fields.as_object().unwrap()).unwrap()).unwrap()
    }

    fn ask(
        method: &HttpMethod,
        query: &str,
        signature: Option<&str>,
        body: &str,
    ) -> Result<Webhook, Refusal> {
        let mut headers = HeaderMap::new();
        if let Some(signature) = signature {
            headers.insert("x-hub-signature-256", HeaderValue::from_str(signature).unwrap());
        }
        account().webhook(&WebhookRequest {
            endpoint: Endpoint::Call,
            method,
            public_url: "https://tandem.example.com/v1/telephony/whatsapp/desk",
            query,
            headers: &headers,
            body: body.as_bytes(),
            source: "192.0.2.1".parse().unwrap(),
            has_api_key: false,
            now_s: 0,
        })
    }

    fn sign(body: &str) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"hunter2");
        format!("sha256={}", hex::encode(hmac::sign(&key, body.as_bytes())))
    }

    fn update(message: Json) -> String {
        json!({
            "object": "whatsapp_business_account",
            "entry": [{ "id": "1", "changes": [{ "field": "messages", "value": {
                "messaging_product": "whatsapp",
                "metadata": { "display_phone_number": "15550783881", "phone_number_id": "106" },
                "contacts": [{ "profile": { "name": "Anna" }, "wa_id": "4930111222333" }],
                "messages": [message],
            }}]}],
        })
        .to_string()
    }

    #[test]
    fn subscription_is_verified_by_its_token() {
        let query =
            |token: &str| format!("hub.mode=subscribe&hub.verify_token={token}&hub.challenge=1158201444");
        let said = ask(&HttpMethod::GET, &query("let%20me%20in"), None, "").unwrap();
        assert_eq!(said, Webhook::Challenge("1158201444".into()));
        assert_eq!(ask(&HttpMethod::GET, &query("guess"), None, "").unwrap_err().status(), 403);
        assert_eq!(ask(&HttpMethod::GET, "hub.challenge=1", None, "").unwrap_err().status(), 403);
    }

    #[test]
    fn messages_are_read_after_their_signature() {
        let body =
            update(json!({ "from": "4930111222333", "id": "wamid.1", "timestamp": "1", "type": "text",
                                  "text": { "body": "Hello" } }));
        let Ok(Webhook::Messages(messages)) = ask(&HttpMethod::POST, "", Some(&sign(&body)), &body) else {
            panic!("it is signed");
        };
        let expected = TextMessage {
            id: "wamid.1".into(),
            from: "+4930111222333".into(),
            to: "+15550783881".into(),
            text: Some("Hello".into()),
        };
        assert_eq!(messages, [expected]);
        let changed = body.replace("Hello", "Hallo");
        assert_eq!(ask(&HttpMethod::POST, "", Some(&sign(&body)), &changed).unwrap_err().status(), 403);
        assert_eq!(ask(&HttpMethod::POST, "", None, &body).unwrap_err().status(), 403);
        let uppercase = sign(&body).to_uppercase();
        assert_eq!(ask(&HttpMethod::POST, "", Some(&uppercase), &body).unwrap_err().status(), 403);
    }

    #[test]
    fn what_is_no_text_or_not_ours_is_told_so() {
        let voice = update(
            json!({ "from": "4930111222333", "id": "wamid.2", "type": "audio", "audio": { "id": "9" } }),
        );
        let Ok(Webhook::Messages(messages)) = ask(&HttpMethod::POST, "", Some(&sign(&voice)), &voice) else {
            panic!()
        };
        assert_eq!(messages[0].text, None);
        let other = voice.replace("\"106\"", "\"107\"");
        let found = ask(&HttpMethod::POST, "", Some(&sign(&other)), &other).unwrap();
        assert_eq!(found, Webhook::Messages(Vec::new()));
        let receipt =
            json!({ "entry": [{ "changes": [{ "value": { "statuses": [{ "status": "read" }] } }] }] })
                .to_string();
        let found = ask(&HttpMethod::POST, "", Some(&sign(&receipt)), &receipt).unwrap();
        assert_eq!(found, Webhook::Messages(Vec::new()));
    }

    #[test]
    fn reply_goes_through_the_graph_api() {
        let request = account().message("+4930111222333", "Good day").unwrap();
        assert_eq!(request.url, "https://graph.facebook.com/v23.0/106/messages");
        assert_eq!(request.header("authorization"), Some("Bearer EAAtoken"));
        let body: Json = serde_json::from_str(&request.body).unwrap();
        assert_eq!((&body["to"], &body["text"]["body"]), (&json!("4930111222333"), &json!("Good day")));
        assert!(!format!("{request:?} {:?}", account()).contains("EAAtoken"));
    }
}
