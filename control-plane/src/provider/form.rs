//! What a provider knows us by, described once: tandem.toml, the command line, the console and the vault are all driven
//! by these forms.
//!
//! ```text
//!   Form ──┬─ [credential.NAME] of tandem.toml ──from_section──┐
//!          └─ JSON of the vault or the console ──from_json─────┴─▶ Values ──Provider::open──▶ Account
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use secrecy::SecretString;
use serde::Serialize;
use serde_json::Value as Json;

use crate::settings::nearest_of;
use crate::settings::section::Section;

/// Octets of one field: a private key of 4096 bits in PEM has 3 300. More is a wrong file.
pub const FIELD_MAX: usize = 16 * 1024;

/// Every field of one provider's credential.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Form {
    /// As routes and files name the provider.
    pub provider: &'static str,
    /// As people name it.
    pub title: &'static str,
    /// Its fields, in the order in which people fill them in.
    pub fields: &'static [Field],
}

/// One field.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Field {
    /// Its name, and for a secret the names of a variable and of a file that hold it.
    pub keys: [&'static str; 3],
    /// As a form shows it.
    pub label: &'static str,
    /// Where it is found, or what it does.
    pub help: &'static str,
    /// A value as it may look.
    pub example: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Whether nothing works without it.
    pub is_required: bool,
    /// What a value must keep to; says what is right when it does not. Never gets to see a value twice.
    #[serde(skip)]
    pub check: fn(&str) -> Result<(), &'static str>,
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A text that anybody may see.
    Text,
    /// A text that nobody may see again.
    Secret,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Networks, as `203.0.113.0/28` or a single address.
    Networks,
    /// Names, and a secret each.
    SecretTable,
}

impl Field {
    /// Its name.
    pub const fn name(&self) -> &'static str {
        self.keys[0]
    }

    /// Makes it one without which nothing works.
    pub const fn required(mut self) -> Self {
        self.is_required = true;
        self
    }

    /// Gives it a rule.
    pub const fn checked(mut self, check: fn(&str) -> Result<(), &'static str>) -> Self {
        self.check = check;
        self
    }

    /// A text.
    pub const fn text(
        name: &'static str,
        label: &'static str,
        example: &'static str,
        help: &'static str,
    ) -> Self {
        Self::of([name, name, name], Kind::Text, label, example, help)
    }

    /// A secret; see [`secret_keys`].
    pub const fn secret(keys: [&'static str; 3], label: &'static str, help: &'static str) -> Self {
        Self::of(keys, Kind::Secret, label, "", help)
    }

    /// Any kind.
    pub const fn of(
        keys: [&'static str; 3],
        kind: Kind,
        label: &'static str,
        example: &'static str,
        help: &'static str,
    ) -> Self {
        Self { keys, label, help, example, kind, is_required: false, check: |_| Ok(()) }
    }

    /// What is right, for messages.
    fn expected(&self) -> String {
        match self.kind {
            Kind::Text | Kind::Secret if self.example.is_empty() => "a text between quotes".to_owned(),
            Kind::Text | Kind::Secret => format!("a text such as \"{}\"", self.example),
            Kind::Choice(words) => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                format!("one of {}", words.join(", "))
            }
            Kind::Networks => "networks such as \"203.0.113.0/28\"".to_owned(),
            Kind::SecretTable => format!("a table such as {{ {} = \"…\" }}", self.example),
        }
    }
}

/// The three keys of a secret: `secret_keys!("account_token")`.
macro_rules! secret_keys {
    ($name:literal) => {
        [$name, concat!($name, "_env"), concat!($name, "_file")]
    };
}
pub(super) use secret_keys;

/// What somebody has filled in, checked field by field.
#[derive(Debug, Clone, Default)]
pub struct Values(BTreeMap<&'static str, Value>);

#[derive(Debug, Clone)]
enum Value {
    Text(String),
    Secret(SecretString),
    Networks(Vec<IpNet>),
    Secrets(BTreeMap<String, SecretString>),
}

/// What is wrong with a credential. The text holds no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// A field that no form of this provider has.
    #[error("unknown field \"{field}\"; did you mean \"{nearest}\"?")]
    Unknown {
        /// As given.
        field: String,
        /// The field with the smallest edit distance.
        nearest: &'static str,
    },
    /// A field without which nothing works.
    #[error("\"{field}\" is missing: {help}")]
    Missing {
        /// Which.
        field: &'static str,
        /// Where it is found.
        help: &'static str,
    },
    /// A field with something else in it.
    #[error("\"{field}\" is not {expected}")]
    Wrong {
        /// Which.
        field: &'static str,
        /// What would be right.
        expected: String,
    },
}

impl Values {
    /// Reads the fields from a table of tandem.toml; mistakes are left in its source.
    pub fn from_section(form: &Form, section: &mut Section<'_>) -> Self {
        let mut values = BTreeMap::new();
        for field in form.fields {
            let is_given = field.keys.iter().any(|key| section.has(key));
            if !is_given {
                section.know(&field.keys);
                if field.is_required {
                    section.wrong(FormError::missing(field).to_string());
                }
                continue;
            }
            let value = match field.kind {
                Kind::Secret => section.secret(field.keys).map(Value::Secret),
                Kind::Text | Kind::Choice(_) => {
                    section.text(field.name(), &field.expected()).map(Value::Text)
                }
                Kind::Networks => {
                    Some(Value::Networks(section.list(field.name(), &field.expected(), network)))
                }
                Kind::SecretTable => {
                    let secrets = section.secrets_by_name(field.name());
                    Some(Value::Secrets(secrets.into_iter().map(|(k, v)| (k, v.into())).collect()))
                }
            };
            let Some(value) = value else { continue };
            match checked(field, value) {
                Ok(value) => drop(values.insert(field.name(), value)),
                Err(error) => section.wrong(error.to_string()),
            }
        }
        Self(values)
    }

    /// Reads the fields from an object of the vault, the console or the command line; all mistakes at once.
    pub fn from_json(form: &Form, object: &serde_json::Map<String, Json>) -> Result<Self, Vec<FormError>> {
        let mut errors = Vec::new();
        for key in object.keys() {
            if !form.fields.iter().any(|field| field.name() == key) {
                let nearest = nearest_of(key, form.fields.iter().map(Field::name));
                errors.push(FormError::Unknown { field: key.clone(), nearest: nearest_name(form, nearest) });
            }
        }
        let mut values = BTreeMap::new();
        for field in form.fields {
            let given = object.get(field.name()).filter(|value| !is_empty(value));
            match given.map(|given| read_json(field, given)) {
                None if field.is_required => errors.push(FormError::missing(field)),
                None => {}
                Some(Ok(value)) => drop(values.insert(field.name(), value)),
                Some(Err(error)) => errors.push(error),
            }
        }
        if errors.is_empty() { Ok(Self(values)) } else { Err(errors) }
    }

    /// A text; empty when it was left out.
    pub fn text(&self, name: &str) -> String {
        self.text_or(name, "")
    }

    /// A text, or what holds without it.
    pub fn text_or(&self, name: &str, default: &str) -> String {
        match self.0.get(name) {
            Some(Value::Text(text)) => text.clone(),
            _ => default.to_owned(),
        }
    }

    /// A secret; `None` when it was left out.
    pub fn secret(&self, name: &str) -> Option<SecretString> {
        match self.0.get(name) {
            Some(Value::Secret(secret)) => Some(secret.clone()),
            _ => None,
        }
    }

    /// A secret that the form requires.
    pub fn needed_secret(&self, name: &'static str) -> Result<SecretString, FormError> {
        self.secret(name).ok_or(FormError::Missing { field: name, help: "the form asks for it" })
    }

    /// Networks; none when they were left out.
    pub fn networks(&self, name: &str) -> Vec<IpNet> {
        match self.0.get(name) {
            Some(Value::Networks(networks)) => networks.clone(),
            _ => Vec::new(),
        }
    }

    /// Names and secrets; none when they were left out.
    pub fn secrets(&self, name: &str) -> BTreeMap<String, SecretString> {
        match self.0.get(name) {
            Some(Value::Secrets(secrets)) => secrets.clone(),
            _ => BTreeMap::new(),
        }
    }

    /// Fields and what may be shown of them, in the form's order.
    pub fn shown(&self, form: &Form) -> Vec<(&'static str, String)> {
        let shown = |value: &Value| match value {
            Value::Text(text) => text.clone(),
            Value::Secret(_) => "(set)".to_owned(),
            Value::Networks(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            Value::Secrets(table) => table.keys().cloned().collect::<Vec<_>>().join(", "),
        };
        let fields = form.fields.iter();
        fields.filter_map(|field| Some((field.name(), shown(self.0.get(field.name())?)))).collect()
    }
}

impl FormError {
    fn missing(field: &Field) -> Self {
        Self::Missing { field: field.name(), help: field.help }
    }

    /// Something is wrong with a field of this name.
    pub fn wrong(field: &'static str, expected: &str) -> Self {
        Self::Wrong { field, expected: expected.to_owned() }
    }
}

/// The field's own name: what [`nearest_of`] gives borrows from its argument.
fn nearest_name(form: &Form, nearest: Option<&str>) -> &'static str {
    let found = form.fields.iter().map(Field::name).find(|name| Some(*name) == nearest);
    found.unwrap_or_default()
}

fn is_empty(value: &Json) -> bool {
    value.is_null() || value.as_str().is_some_and(str::is_empty)
}

fn read_json(field: &Field, given: &Json) -> Result<Value, FormError> {
    let wrong = || FormError::Wrong { field: field.name(), expected: field.expected() };
    let text = || given.as_str().map(str::trim).filter(|text| !text.is_empty()).ok_or_else(wrong);
    let value = match field.kind {
        Kind::Text | Kind::Choice(_) => Value::Text(text()?.to_owned()),
        Kind::Secret => Value::Secret(text()?.into()),
        Kind::Networks => {
            let items: Vec<&str> = match given {
                Json::Array(items) => items.iter().map(|item| item.as_str().unwrap_or_default()).collect(),
                _ => text()?.split(',').collect(),
            };
            let networks: Option<Vec<IpNet>> = items.into_iter().map(|item| network(item.trim())).collect();
            Value::Networks(networks.ok_or_else(wrong)?)
        }
        Kind::SecretTable => {
            let table = given.as_object().ok_or_else(wrong)?;
            let pairs = table.iter().map(|(name, value)| Some((name.clone(), value.as_str()?.into())));
            Value::Secrets(pairs.collect::<Option<_>>().ok_or_else(wrong)?)
        }
    };
    checked(field, value)
}

fn checked(field: &Field, value: Value) -> Result<Value, FormError> {
    use secrecy::ExposeSecret;

    let wrong = |expected: String| Err(FormError::Wrong { field: field.name(), expected });
    let text = match &value {
        Value::Text(text) => text.as_str(),
        Value::Secret(secret) => secret.expose_secret(),
        Value::Networks(_) | Value::Secrets(_) => return Ok(value),
    };
    if text.len() > FIELD_MAX {
        return wrong(format!("{}: it has {} octets", field.expected(), text.len()));
    }
    if let Kind::Choice(words) = field.kind
        && !words.contains(&text)
    {
        return wrong(field.expected());
    }
    match (field.check)(text) {
        Ok(()) => Ok(value),
        Err(expected) => wrong(expected.to_owned()),
    }
}

/// A network, or one address as a network of its own.
fn network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

/// For [`Field::checked`]: where a provider's API is, without a path's last `/`.
pub fn is_base_url(text: &str) -> Result<(), &'static str> {
    const EXPECTED: &str =
        "a URL such as \"https://api.example.com\", without user, query or a \"/\" at its end";
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).ok_or(EXPECTED)?;
    let host = rest.split('/').next().unwrap_or_default();
    let is_fine = !host.is_empty()
        && !text.ends_with('/')
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'@' | b'?' | b'#' | b'"' | b'\\'));
    if is_fine { Ok(()) } else { Err(EXPECTED) }
}

/// For [`Field::checked`]: one word of a URL's path.
pub fn is_path_word(text: &str) -> Result<(), &'static str> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if text.len() <= 64 && text.bytes().all(fits) {
        Ok(())
    } else {
        Err("a word of at most 64 letters, digits, \"-\", \"_\" or \".\"")
    }
}

/// Where a provider's API is, when it is not where it says it is: for a fake, a proxy or a region.
pub const API_URL: Field = Field::text(
    "api_url",
    "API address",
    "https://api.example.com",
    "leave it out: it is the provider's own; for a proxy, a region of its own or a test",
)
.checked(is_base_url);
