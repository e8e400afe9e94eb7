//! For the tests of the modules: a provider's request, an account, and a call to place.

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde_json::Value as Json;

use super::document::tests::plan;
use super::rest::{MachineDetection, RestAnswer};
use super::webhook::{Endpoint, Webhook, WebhookRequest};
use super::*;

/// A request of a provider, word by word.
#[derive(Debug, Clone)]
pub(in crate::provider) struct Asked {
    pub(in crate::provider) endpoint: Endpoint,
    pub(in crate::provider) method: Method,
    pub(in crate::provider) url: String,
    pub(in crate::provider) headers: HeaderMap,
    pub(in crate::provider) body: Vec<u8>,
    pub(in crate::provider) source: IpAddr,
    pub(in crate::provider) has_api_key: bool,
    pub(in crate::provider) now_s: i64,
}

impl Asked {
    pub(in crate::provider) fn new(method: Method, url: &str) -> Self {
        Self {
            endpoint: Endpoint::Call,
            method,
            url: url.to_owned(),
            headers: HeaderMap::new(),
            body: Vec::new(),
            source: IpAddr::from([198, 51, 100, 7]),
            has_api_key: false,
            now_s: 1_700_000_000,
        }
    }

    pub(in crate::provider) fn get(url: &str) -> Self {
        Self::new(Method::GET, url)
    }

    pub(in crate::provider) fn post(url: &str) -> Self {
        Self::new(Method::POST, url)
    }

    pub(in crate::provider) fn event(mut self) -> Self {
        self.endpoint = Endpoint::Event;
        self
    }

    pub(in crate::provider) fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().unwrap();
        self.headers.insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    pub(in crate::provider) fn form(mut self, pairs: &[(&str, &str)]) -> Self {
        self.body = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish().into_bytes();
        self.header("content-type", "application/x-www-form-urlencoded; charset=UTF-8")
    }

    pub(in crate::provider) fn json(mut self, body: &str) -> Self {
        self.body = body.as_bytes().to_vec();
        self.header("content-type", "application/json")
    }

    pub(in crate::provider) fn to<T>(&self, read: impl FnOnce(&WebhookRequest<'_>) -> T) -> T {
        let (public_url, query) = self.url.split_once('?').unwrap_or((&self.url, ""));
        read(&WebhookRequest {
            endpoint: self.endpoint,
            method: &self.method,
            public_url,
            query,
            headers: &self.headers,
            body: &self.body,
            source: self.source,
            has_api_key: self.has_api_key,
            now_s: self.now_s,
        })
    }

    pub(in crate::provider) fn webhook(&self, account: &Arc<dyn Account>) -> Result<Webhook, Refusal> {
        self.to(|request| account.webhook(request))
    }
}

/// An account of this provider with these fields.
pub(in crate::provider) fn account(provider: &str, fields: Json) -> Arc<dyn Account> {
    let provider = find(provider).unwrap();
    let values = Values::from_json(provider.form, fields.as_object().unwrap()).unwrap();
    (provider.open)(&values).unwrap()
}

/// A call to place.
pub(in crate::provider) fn dial<'a>(options: &'a [(String, String)], machine: MachineDetection) -> Dial<'a> {
    Dial {
        to: "+14155550100",
        from: "+14155550199",
        plan: plan(&[]),
        document_url: "https://c.example.test/document",
        ring_s: 30,
        limit_s: 3_600,
        machine,
        options,
    }
}

pub(in crate::provider) const STAMP: Stamp = Stamp { now_s: 1_700_000_000, id: uuid::Uuid::from_u128(7) };

/// The fields of a request's form.
pub(in crate::provider) fn form_of(request: &RestRequest) -> Vec<(String, String)> {
    form_urlencoded::parse(request.body.as_bytes()).into_owned().collect()
}

/// An answer of a provider.
pub(in crate::provider) fn answered(status: u16, body: &str) -> RestAnswer<'_> {
    RestAnswer::Answered { status, retry_after_s: None, body: body.as_bytes() }
}
