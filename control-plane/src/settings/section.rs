//! Reads the tables of tandem.toml key by key, and collects everything that is wrong with them.
//!
//! ```text
//!   [[trunk]] ──▶ Section ──text, number, choice, secret …──▶ values, or None and a TableError
//!                    └──drop──▶ a TableError for each key that nobody asked for, with the nearest one that was
//! ```
//!
//! Whoever asks goes on after an error with a default, so that one run names every mistake.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use secrecy::SecretString;
use toml::Value;

use super::nearest_of;

/// A secret that is read from a file may have so many octets; more is a wrong file.
const SECRET_FILE_MAX: u64 = 64 * 1024;

/// One mistake in a table of tandem.toml.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {table}: {problem}")]
pub struct TableError {
    /// The file.
    pub path: String,
    /// Which table, as `[[trunk]] "carrier"`.
    pub table: String,
    /// The key, what it holds (never a secret) and what would be right.
    pub problem: String,
}

/// Where the tables come from, and what is wrong with them so far.
pub struct Source<'a> {
    path: &'a Path,
    environment: &'a dyn Fn(&str) -> Option<String>,
    errors: RefCell<Vec<TableError>>,
}

impl<'a> Source<'a> {
    /// Tables of this file; `*_env` keys are looked up in `environment`.
    pub fn new(path: &'a Path, environment: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { path, environment, errors: RefCell::default() }
    }

    /// Every mistake that was found.
    pub fn into_errors(self) -> Vec<TableError> {
        self.errors.into_inner()
    }

    /// A path in the file: relative to the file's own folder.
    fn resolve(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    /// Adds a mistake that shows only when several tables are looked at together.
    pub fn wrong(&self, table: &str, problem: impl Into<String>) {
        self.errors.borrow_mut().push(TableError {
            path: self.path.display().to_string(),
            table: table.to_owned(),
            problem: problem.into(),
        });
    }
}

/// One table that is being read.
pub struct Section<'a> {
    source: &'a Source<'a>,
    /// `[[trunk]] "carrier"`, or `[trunk.inbound] of "carrier"`.
    name: String,
    /// `trunk.`, for the names of tables below.
    path: String,
    /// Whose tables are below.
    owner: String,
    table: toml::Table,
    asked: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// The tables of an array such as `[[trunk]]`. Each is named by its key `id`; a table without it by its number.
    pub fn all(source: &'a Source<'a>, array: &str, id: &str, value: Option<Value>) -> Vec<Self> {
        let items = match value {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                source.wrong(array, format!("must be a list of tables: write [[{array}]]"));
                return Vec::new();
            }
        };
        let mut sections = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let Value::Table(table) = item else {
                source.wrong(array, format!("must be a list of tables: write [[{array}]]"));
                continue;
            };
            let owner = match table.get(id) {
                Some(Value::String(name)) => format!("\"{name}\""),
                _ => format!("number {}", index + 1),
            };
            let name = format!("[[{array}]] {owner}");
            sections.push(Self { source, name, path: array.to_owned(), owner, table, asked: Vec::new() });
        }
        sections
    }

    /// The tables below a table, such as `[credential.NAME]`, each with its name.
    pub fn by_name(source: &'a Source<'a>, parent: &str, value: Option<Value>) -> Vec<(String, Self)> {
        let tables = match value {
            None => return Vec::new(),
            Some(Value::Table(tables)) => tables,
            Some(_) => {
                source.wrong(parent, format!("must be tables with names: write [{parent}.NAME]"));
                return Vec::new();
            }
        };
        let mut sections = Vec::new();
        for (name, item) in tables {
            let Value::Table(table) = item else {
                source.wrong(parent, format!("\"{name}\" must be a table: write [{parent}.{name}]"));
                continue;
            };
            let path = format!("{parent}.{name}");
            let (shown, owner) = (format!("[{path}]"), format!("\"{name}\""));
            sections.push((name, Self { source, name: shown, path, owner, table, asked: Vec::new() }));
        }
        sections
    }

    /// How messages call this table.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a key is there.
    pub fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Names keys that may stand here, so that a misspelt one is told what is near.
    pub fn know(&mut self, keys: &[&'static str]) {
        self.asked.extend(keys);
    }

    /// How many mistakes there are in the file so far.
    pub fn mistakes(&self) -> usize {
        self.source.errors.borrow().len()
    }

    /// Says that something is wrong with a key.
    pub fn wrong(&self, problem: impl Into<String>) {
        self.source.wrong(&self.name, problem);
    }

    /// The value of a key, read by `read`; `None`: absent, or wrong and reported. `expected` says what is right, with an
    /// example.
    pub fn take<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Option<T> {
        self.asked.push(key);
        let value = self.table.remove(key)?;
        let result = read(&value);
        if result.is_none() {
            self.wrong(format!("\"{key}\" = {} is not {expected}", shown(&value)));
        }
        result
    }

    /// A text that is not empty, read by `read`.
    pub fn parsed<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        self.take(key, expected, |value| {
            value.as_str().map(str::trim).filter(|text| !text.is_empty()).and_then(read)
        })
    }

    /// A text whose own error says what is wrong with it.
    pub fn explained<T, E: std::fmt::Display>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.text(key, &format!("a text such as {example}"))?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(why) => {
                let text = shown(&Value::String(text));
                self.wrong(format!("\"{key}\" = {text}: {why}; write it like {example}"));
                None
            }
        }
    }

    /// A text that is not empty.
    pub fn text(&mut self, key: &'static str, expected: &str) -> Option<String> {
        self.parsed(key, expected, |text| Some(text.to_owned()))
    }

    /// The same, and its absence is a mistake.
    pub fn needed(&mut self, key: &'static str, expected: &str) -> Option<String> {
        if !self.has(key) {
            self.asked.push(key);
            self.wrong(format!("\"{key}\" is missing: {expected}"));
            return None;
        }
        self.text(key, expected)
    }

    /// A list of texts, or one text.
    pub fn texts(&mut self, key: &'static str, expected: &str) -> Vec<String> {
        self.list(key, expected, |text| Some(text.to_owned()))
    }

    /// A list of texts, or one text, each read by `read`.
    pub fn list<T>(&mut self, key: &'static str, expected: &str, read: impl Fn(&str) -> Option<T>) -> Vec<T> {
        self.asked.push(key);
        let items = match self.table.remove(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(single) => vec![single],
        };
        let mut out = Vec::new();
        for item in items {
            let read = item.as_str().map(str::trim).filter(|text| !text.is_empty()).and_then(&read);
            match read {
                Some(value) => out.push(value),
                None => self.wrong(format!("\"{key}\": {} is not {expected}", shown(&item))),
            }
        }
        out
    }

    /// true or false.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.take(key, "true or false", Value::as_bool)
    }

    /// A whole number in a range.
    pub fn integer(&mut self, key: &'static str, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        self.take(key, &expected, |value| {
            u32::try_from(value.as_integer()?).ok().filter(|number| range.contains(number))
        })
    }

    /// A rate a second: a whole number or a fraction.
    pub fn rate(&mut self, key: &'static str) -> Option<f64> {
        self.take(key, "a rate a second from 0.01 to 10000, such as 5 or 0.5", |value| {
            let rate = value.as_float().or_else(|| value.as_integer().map(|whole| whole as f64))?;
            (0.01..=10_000.0).contains(&rate).then_some(rate)
        })
    }

    /// Whole seconds in a range.
    pub fn seconds(&mut self, key: &'static str, range: std::ops::RangeInclusive<u32>) -> Option<Duration> {
        self.integer(key, range).map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let listed: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let expected = format!("one of {}", listed.join(", "));
        self.parsed(key, &expected, |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value)
        })
    }

    /// A secret: `key`, or a variable that holds it as `key_env`, or a file as `key_file`. Never shown.
    pub fn secret(&mut self, keys: [&'static str; 3]) -> Option<SecretString> {
        let [plain, variable, file] = keys;
        let given: Vec<&str> = keys.into_iter().filter(|key| self.has(key)).collect();
        if given.len() > 1 {
            self.wrong(format!("{} say the same: keep one of them", quoted(&given)));
        }
        self.asked.extend(keys);
        let [plain_value, variable_value, file_value] = keys.map(|key| self.table.remove(key));
        if let Some(value) = plain_value {
            let text = value.as_str().filter(|text| !text.is_empty());
            if text.is_none() {
                self.wrong(format!("\"{plain}\" is not a text between quotes"));
            }
            return text.map(SecretString::from);
        }
        if let Some(value) = variable_value {
            let Some(name) = value.as_str() else {
                self.wrong(format!(
                    "\"{variable}\" is not the name of a variable such as \"CARRIER_PASSWORD\""
                ));
                return None;
            };
            let found = (self.source.environment)(name).filter(|secret| !secret.is_empty());
            if found.is_none() {
                self.wrong(format!("\"{variable}\" = \"{name}\": there is no such variable, or it is empty"));
            }
            return found.map(SecretString::from);
        }
        let Some(name) = file_value?.as_str().map(str::to_owned) else {
            self.wrong(format!("\"{file}\" is not the path of a file such as \"/run/secrets/carrier\""));
            return None;
        };
        match read_secret(&self.source.resolve(&name)) {
            Ok(secret) => Some(secret),
            Err(why) => {
                self.wrong(format!("\"{file}\" = \"{name}\": {why}"));
                None
            }
        }
    }

    /// A path to a file, relative to tandem.toml.
    pub fn path(&mut self, key: &'static str, example: &str) -> Option<PathBuf> {
        let text = self.text(key, &format!("the path of a file such as {example}"))?;
        let path = self.source.resolve(&text);
        if !path.is_file() {
            self.wrong(format!("\"{key}\" = \"{text}\": there is no such file"));
            return None;
        }
        Some(path)
    }

    /// A table of texts: names and values, in the order of the names.
    pub fn texts_by_name(&mut self, key: &'static str, expected: &str) -> BTreeMap<String, String> {
        self.take(key, expected, |value| {
            let pairs = value.as_table()?.iter();
            pairs.map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
        })
        .unwrap_or_default()
    }

    /// A table of variables whose values are secret: names and the values of the variables.
    pub fn secrets_by_name(&mut self, key: &'static str) -> BTreeMap<String, String> {
        let variables = self.texts_by_name(key, "a table such as { Authorization = \"AGENT_TOKEN\" }");
        let mut secrets = BTreeMap::new();
        for (name, variable) in variables {
            match (self.source.environment)(&variable).filter(|secret| !secret.is_empty()) {
                Some(secret) => drop(secrets.insert(name, secret)),
                None => self.wrong(format!(
                    "\"{key}\": {name} = \"{variable}\": there is no such variable, or it is empty"
                )),
            }
        }
        secrets
    }

    /// A table below this one, such as `[trunk.inbound]`; an absent one reads as empty.
    pub fn section(&mut self, key: &'static str) -> Section<'a> {
        self.asked.push(key);
        let table = match self.table.remove(key) {
            None => toml::Table::new(),
            Some(Value::Table(table)) => table,
            Some(_) => {
                self.wrong(format!("\"{key}\" must be a table: write [{}.{key}]", self.path));
                toml::Table::new()
            }
        };
        let path = format!("{}.{key}", self.path);
        let name = format!("[{path}] of {}", self.owner);
        Section { source: self.source, name, path, owner: self.owner.clone(), table, asked: Vec::new() }
    }

    /// Tables in a list below this one, such as `[[trunk.inbound.route]]`.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'a>> {
        self.asked.push(key);
        let path = format!("{}.{key}", self.path);
        let items = match self.table.remove(key) {
            None => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(other) => vec![other],
        };
        let mut sections = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let Value::Table(table) = item else {
                self.wrong(format!("\"{key}\" must be a list of tables: write [[{path}]]"));
                continue;
            };
            let name = format!("[[{path}]] number {} of {}", index + 1, self.owner);
            let (source, owner, path) = (self.source, self.owner.clone(), path.clone());
            sections.push(Section { source, name, path, owner, table, asked: Vec::new() });
        }
        sections
    }

    /// The whole rest of this table is nobody's business here.
    pub fn skip_rest(&mut self) {
        self.table.clear();
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        for key in self.table.keys() {
            let nearest = nearest_of(key, self.asked.iter().copied());
            let hint = nearest.map(|nearest| format!("; did you mean \"{nearest}\"?")).unwrap_or_default();
            self.source.wrong(&self.name, format!("unknown key \"{key}\"{hint}"));
        }
    }
}

fn quoted(keys: &[&str]) -> String {
    keys.iter().map(|key| format!("\"{key}\"")).collect::<Vec<_>>().join(" and ")
}

/// A value as a message may show it: short, never a whole table, and without the password of a URI.
fn shown(value: &Value) -> String {
    const SHOWN_MAX: usize = 64;
    match value {
        Value::Table(_) => "a table".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::String(text) => {
            // scheme:user:password@host
            let secret = text.rsplit_once('@').and_then(|(before, host)| {
                let (scheme, rest) = before.split_once(':')?;
                let (user, _) = rest.split_once(':')?;
                Some(format!("{scheme}:{user}:***@{host}"))
            });
            let text = secret.as_deref().unwrap_or(text);
            let short: String = text.chars().take(SHOWN_MAX).filter(|c| !c.is_control()).collect();
            format!("\"{short}\"")
        }
        other => other.to_string(),
    }
}

fn read_secret(path: &Path) -> Result<SecretString, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > SECRET_FILE_MAX {
        return Err(format!("it has {length} octets: that is no secret"));
    }
    // The text stays out of the message: the system's words are enough.
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() { Err("it is empty".to_owned()) } else { Ok(SecretString::from(secret)) }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn with<T>(text: &str, read: impl FnOnce(&mut Section<'_>) -> T) -> (T, Vec<String>) {
        let mut table: toml::Table = text.parse().unwrap();
        let environment = |name: &str| (name == "SECRET").then(|| "hunter2".to_owned());
        let source = Source::new(Path::new("tandem.toml"), &environment);
        let value = {
            let mut sections = Section::all(&source, "trunk", "name", table.remove("trunk"));
            read(&mut sections[0])
        };
        (value, source.into_errors().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn wrong_value_names_file_table_and_key_and_says_what_is_right() {
        let (rate, errors) = with("[[trunk]]\nname = 'a'\ncps = 'many'", |section| {
            section.text("name", "a name");
            section.rate("cps")
        });
        assert!(rate.is_none());
        assert_eq!(
            errors,
            ["tandem.toml: [[trunk]] \"a\": \"cps\" = \"many\" is not a rate a second from 0.01 to 10000, \
              such as 5 or 0.5"]
        );
    }

    #[test]
    fn unknown_key_below_names_its_table_and_the_nearest_key() {
        let text = "[[trunk]]\nname = 'a'\n[trunk.inbound]\nalow = ['x']\n[[trunk.inbound.route]]\ndit = '1'";
        let ((), errors) = with(text, |section| {
            section.text("name", "a name");
            let mut inbound = section.section("inbound");
            inbound.texts("allow", "networks");
            for mut route in inbound.sections("route") {
                route.text("did", "a number");
                route.text("assistant", "a name");
            }
        });
        assert_eq!(
            errors,
            [
                "tandem.toml: [[trunk.inbound.route]] number 1 of \"a\": unknown key \"dit\"; did you mean \"did\"?",
                "tandem.toml: [trunk.inbound] of \"a\": unknown key \"alow\"; did you mean \"allow\"?",
            ]
        );
    }

    #[test]
    fn secret_comes_from_the_file_the_environment_or_a_file_of_its_own_and_is_never_shown() {
        const KEYS: [&str; 3] = ["password", "password_env", "password_file"];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, "hunter2\n").unwrap();
        for line in [
            "password = 'hunter2'",
            "password_env = 'SECRET'",
            &format!("password_file = '{}'", path.display()),
        ] {
            let (secret, errors) = with(&format!("[[trunk]]\n{line}"), |section| section.secret(KEYS));
            assert_eq!(secret.unwrap().expose_secret(), "hunter2", "{line}");
            assert!(errors.is_empty(), "{errors:?}");
        }
        for (line, said) in [
            ("password_env = 'NOBODY'", "\"password_env\" = \"NOBODY\": there is no such variable"),
            ("password_file = 'no/such/file'", "\"password_file\" = \"no/such/file\": No such file"),
            ("password = 7", "\"password\" is not a text between quotes"),
            ("password = 'hunter2'\npassword_env = 'SECRET'", "keep one of them"),
        ] {
            let (_, errors) = with(&format!("[[trunk]]\n{line}"), |section| section.secret(KEYS));
            assert!(errors[0].contains(said), "{errors:?}");
            assert!(!errors[0].contains("hunter2"), "{errors:?}");
        }
    }

    #[test]
    fn array_written_as_a_table_says_how_to_write_it() {
        let mut table: toml::Table = "[trunk]\nname = 'a'".parse().unwrap();
        let source = Source::new(Path::new("tandem.toml"), &|_| None);
        assert!(Section::all(&source, "trunk", "name", table.remove("trunk")).is_empty());
        let errors = source.into_errors();
        assert_eq!(errors[0].to_string(), "tandem.toml: trunk: must be a list of tables: write [[trunk]]");
    }
}
