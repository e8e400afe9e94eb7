//! Logs, and the types that keep secrets and numbers out of them.
//!
//! A terminal gets text that a person reads, a pipe gets JSON, a line an event, both on standard error. A state
//! change of a call is an event; a packet is not. `call_id` is a field of every span and event of a call.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts the logs. A second call in one process changes nothing.
pub fn start(filter: &str) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let started = if std::io::stderr().is_terminal() {
        registry.with(tracing_subscriber::fmt::layer().with_writer(std::io::stderr)).try_init()
    } else {
        let json = tracing_subscriber::fmt::layer().json().flatten_event(true);
        registry.with(json.with_writer(std::io::stderr)).try_init()
    };
    // Only tests start the logs twice.
    drop(started);
}

/// A caller's or callee's number or name as logs may show it: the last two characters, the rest as dots.
#[derive(Clone, Copy)]
pub struct Masked<'a>(pub &'a str);

impl std::fmt::Display for Masked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let count = self.0.chars().count();
        // Two characters of a very short name would be the name.
        let shown = if count >= 6 { 2 } else { 0 };
        f.write_str("…")?;
        self.0.chars().skip(count - shown).try_for_each(|c| std::fmt::Write::write_char(f, c))
    }
}

impl std::fmt::Debug for Masked<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_masked_but_for_its_end() {
        assert_eq!(Masked("+15005550006").to_string(), "…06");
        assert_eq!(Masked("anna").to_string(), "…");
        assert_eq!(Masked("").to_string(), "…");
    }
}
