//! `[[deployment]]` of tandem.toml: which credential's number leads to which assistant, and how calls leave by it.

use std::sync::Arc;

use super::PROVIDERS;
use super::file::Credential;
use super::rest::MachineDetection;
use crate::settings::section::{Section, Source};

/// Options of a deployment that are the provider's own; each module reads those that it knows.
const OPTIONS: &[&str] = &[
    "app_id",
    "app",
    "context",
    "extension",
    "priority",
    "caller_id",
    "endpoint_technology",
    "trunk",
    "connection_id",
];

/// A credential that is deployed to an assistant, or to all of its tenant.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// What the provider knows us by.
    pub credential: Arc<Credential>,
    /// Who answers and calls; `None`: every assistant of the credential's tenant.
    pub assistant_id: Option<Arc<str>>,
    /// Our number there; empty: each call must say from which it goes.
    pub phone: String,
    /// Whether to find out what picks up.
    pub machine: MachineDetection,
    /// Samples a second, where the provider lets us choose.
    pub sample_rate: u32,
    /// Prefixes of numbers that callers may be put through to; empty: none.
    pub transfer_targets: Vec<String>,
    /// The provider's own.
    pub options: Vec<(String, String)>,
}

impl Deployment {
    /// The provider's name, as routes have it.
    pub fn provider(&self) -> &'static str {
        self.credential.provider.form.provider
    }

    /// Whether calls can be placed by it: messengers only write.
    pub fn places_calls(&self) -> bool {
        PROVIDERS.iter().any(|provider| provider.form.provider == self.provider())
    }

    /// Whether this assistant may use it.
    pub fn serves(&self, assistant_id: &str) -> bool {
        self.assistant_id.as_deref().is_none_or(|own| own == assistant_id)
    }
}

/// Reads the tables; mistakes are left in `source`.
pub(super) fn read(
    source: &Source<'_>,
    tables: &toml::Table,
    credentials: &[Arc<Credential>],
) -> Vec<Arc<Deployment>> {
    let sections = Section::all(source, "deployment", "credential", tables.get("deployment").cloned());
    // Of a credential that is there and wrong enough has been said.
    let is_there = |name: &str| {
        tables.get("credential").and_then(toml::Value::as_table).is_some_and(|table| table.contains_key(name))
    };
    let read = |mut section| read_one(&mut section, credentials, &is_there).map(Arc::new);
    sections.into_iter().filter_map(read).collect()
}

fn read_one(
    section: &mut Section<'_>,
    credentials: &[Arc<Credential>],
    is_there: &dyn Fn(&str) -> bool,
) -> Option<Deployment> {
    let names: Vec<&str> = credentials.iter().map(|credential| &*credential.name).collect();
    let expected = match names.as_slice() {
        [] => "a [credential.NAME] of this file; there is none".to_owned(),
        names => format!("a credential of this file: {}", names.join(", ")),
    };
    let name = section.needed("credential", &expected);
    let assistant = section.text("assistant", "an assistant's id; left out: every one of the tenant");
    let phone = section.text("phone", "a number such as \"+14155550100\"").unwrap_or_default();
    let machine = section.choice(
        "machine_detection",
        &[
            ("off", MachineDetection::Off),
            ("detect", MachineDetection::Detect),
            ("until_beep", MachineDetection::UntilBeep),
        ],
    );
    let sample_rate = section.choice("sample_rate", &[("8000", 8_000), ("16000", 16_000), ("24000", 24_000)]);
    let transfer_targets =
        section.list("transfer_targets", "prefixes of numbers such as [\"+4930\"]", |text| {
            let is_prefix =
                text.starts_with('+') && text.len() > 1 && text[1..].bytes().all(|b| b.is_ascii_digit());
            is_prefix.then(|| text.to_owned())
        });
    let mut options = Vec::new();
    for name in OPTIONS {
        if let Some(value) = section.text(name, "a text") {
            options.push(((*name).to_owned(), value));
        }
    }
    let name = name?;
    let Some(credential) = credentials.iter().find(|credential| *credential.name == *name) else {
        if !is_there(&name) {
            section.wrong(format!("\"credential\" = \"{name}\" is not {expected}"));
        }
        return None;
    };
    let is_wide = credential.provider.form.provider == "vonage";
    Some(Deployment {
        credential: credential.clone(),
        assistant_id: assistant.map(Into::into),
        phone,
        machine: machine.unwrap_or_default(),
        sample_rate: sample_rate.unwrap_or(if is_wide { 16_000 } else { 8_000 }),
        transfer_targets,
        options,
    })
}
