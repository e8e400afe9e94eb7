//! Telephony providers: what each says to us, what we answer, and what we ask of it.
//!
//! ```text
//!   provider's webhook ─▶ WebhookRequest ─┐                        ┌─▶ Webhook, or a Refusal with its status
//!   our answer         ◀─ Document ◀──────┤  Account of a module   ├─▶ RestRequest ─▶ (the shell sends it)
//!   [credential.NAME]  ─▶ Values ─────────┘  twilio, vonage, …     └─◀ RestAnswer ─▶ DialOutcome, ControlOutcome
//! ```
//!
//! Everything here is pure: octets and `now` go in, values come out. A provider is one module with a [`Form`] and an
//! [`Account`], and one line in [`PROVIDERS`]; what its media socket speaks is `proto/stream`'s business.

use std::fmt::Debug;
use std::sync::Arc;

pub mod asterisk;
pub mod client;
pub mod demo;
pub mod deployment;
pub mod document;
pub mod exotel;
pub mod file;
pub mod form;
pub mod jwt;
pub mod multipart;
pub mod plivo;
pub mod proof;
pub mod rest;
pub mod status;
pub mod telnyx;
pub mod twilio;
pub mod vonage;
pub mod webhook;
pub mod whatsapp;

#[cfg(test)]
mod asked;
#[cfg(test)]
mod tests;

pub use deployment::Deployment;
pub use document::{Decline, Document, MediaPlan};
pub use file::Credentials;
pub use form::{Form, FormError, Values};
pub use rest::{
    Control, ControlOutcome, Dial, DialOutcome, Lookup, RestAnswer, RestRequest, Stamp, Transfer, Unsupported,
};
pub use status::{CallStatus, advance};
pub use webhook::{Refusal, StatusEvent, Webhook, WebhookRequest};

/// Every provider, one line each.
pub const PROVIDERS: &[Provider] = &[
    Provider { form: &twilio::FORM, open: twilio::open },
    Provider { form: &vonage::FORM, open: vonage::open },
    Provider { form: &exotel::FORM, open: exotel::open },
    Provider { form: &asterisk::FORM, open: asterisk::open },
    Provider { form: &telnyx::FORM, open: telnyx::open },
    Provider { form: &plivo::FORM, open: plivo::open },
];

/// What brings messages and no calls, one line each.
pub const MESSENGERS: &[Provider] = &[Provider { form: &whatsapp::FORM, open: whatsapp::open }];

/// What the registry knows of a provider.
#[derive(Debug, Clone, Copy)]
pub struct Provider {
    /// Its name, and what its credential consists of.
    pub form: &'static Form,
    /// Makes an account of a filled form.
    pub open: fn(&Values) -> Result<Arc<dyn Account>, FormError>,
}

/// The provider of this name, as routes and files have it.
pub fn find(name: &str) -> Option<&'static Provider> {
    PROVIDERS.iter().chain(MESSENGERS).find(|provider| provider.form.provider == name)
}

/// One credential of a provider, and what can be done with it.
pub trait Account: Debug + Send + Sync {
    /// Checks a request's proof over its raw octets, then says what it is.
    fn webhook(&self, request: &WebhookRequest<'_>) -> Result<Webhook, Refusal>;

    /// Checks the upgrade request of a media WebSocket, for providers that prove themselves there; the claim in its path is
    /// another's business.
    fn upgrade(&self, _request: &WebhookRequest<'_>) -> Result<(), Refusal> {
        Ok(())
    }

    /// What leads a call's media to us.
    fn answer(&self, plan: &MediaPlan<'_>) -> Document;

    /// What ends a call politely.
    fn decline(&self, decline: Decline<'_>) -> Document;

    /// The request that sends a message in writing: [`Account::controlled`] reads its answer.
    fn message(&self, _to: &str, _text: &str) -> Result<RestRequest, Unsupported> {
        Err(Unsupported { provider: "it", what: "send messages", instead: "use a credential of WhatsApp" })
    }

    /// What puts a caller through, for providers that fetch it.
    fn transfer(&self, _transfer: &Transfer<'_>) -> Option<Document> {
        None
    }

    /// The request that places a call.
    fn dial(&self, dial: &Dial<'_>, stamp: Stamp) -> Result<RestRequest, Unsupported>;

    /// What came of it.
    fn dialled(&self, answer: &RestAnswer<'_>) -> DialOutcome;

    /// Whether the id in the answer to a dial is the request's: the call gets another one.
    fn names_requests(&self) -> bool {
        false
    }

    /// Whether a dial with an unknown outcome may be sent again as it is: the provider, or PBX, knows it by its id.
    fn is_dial_repeatable(&self) -> bool {
        false
    }

    /// The request that does this to a live call.
    fn control(&self, call: &str, control: Control<'_>, stamp: Stamp) -> Result<RestRequest, Unsupported>;

    /// What came of it.
    fn controlled(&self, answer: &RestAnswer<'_>) -> ControlOutcome;

    /// The request that asks where a call is whose callbacks have stopped.
    fn lookup(&self, call: &str, stamp: Stamp) -> Result<RestRequest, Unsupported>;

    /// What came of it.
    fn looked_up(&self, answer: &RestAnswer<'_>) -> Lookup;

    /// The request that shows whether the credential is right: [`Account::controlled`] reads its answer.
    fn probe(&self, stamp: Stamp) -> Result<RestRequest, Unsupported>;
}
