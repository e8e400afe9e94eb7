//! How trunks and phones stand, for those who ask: call routing, the API, metrics. Written by one task, read by any.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::registrant;
use crate::trunk::health;

/// One trunk.
#[derive(Debug, Clone, PartialEq)]
pub struct TrunkStatus {
    /// How it answers OPTIONS.
    pub health: health::State,
    /// What is wrong with it; empty: nothing.
    pub health_detail: String,
    /// How long the last answer took.
    pub rtt: Option<Duration>,
    /// When `health` changed last, in milliseconds since the Unix epoch.
    pub since_ms: i64,
    /// `None`: we do not register with it.
    pub registration: Option<RegistrationStatus>,
}

/// Our registration with a trunk.
#[derive(Debug, Clone, PartialEq)]
pub struct RegistrationStatus {
    /// In one word.
    pub state: registrant::State,
    /// What went wrong last; empty: nothing.
    pub detail: String,
    /// SIP status of the last refusal; 0: none.
    pub sip_status: u16,
    /// When the next REGISTER is due, in milliseconds since the Unix epoch; 0: none is.
    pub next_ms: i64,
    /// Until when the trunk reaches us; 0: it does not.
    pub registered_until_ms: i64,
}

impl Default for TrunkStatus {
    fn default() -> Self {
        Self {
            health: health::State::Unknown,
            health_detail: String::new(),
            rtt: None,
            since_ms: 0,
            registration: None,
        }
    }
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    trunks: BTreeMap<Arc<str>, TrunkStatus>,
    /// REGISTERs of phones by what became of them; the words are a closed list.
    registers: BTreeMap<&'static str, u64>,
    users: usize,
    contacts: usize,
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A trunk's status; unknown for one that is not watched.
    pub fn trunk(&self, name: &str) -> TrunkStatus {
        self.lock().trunks.get(name).cloned().unwrap_or_default()
    }

    /// A trunk's health: what failover goes by.
    pub fn health(&self, name: &str) -> health::State {
        self.lock().trunks.get(name).map_or(health::State::Unknown, |status| status.health)
    }

    /// Writes a trunk's status; gives the one before.
    pub fn set_trunk(&self, name: &Arc<str>, status: TrunkStatus) -> Option<TrunkStatus> {
        self.lock().trunks.insert(name.clone(), status)
    }

    /// A REGISTER was answered.
    pub fn count_register(&self, word: &'static str) {
        *self.lock().registers.entry(word).or_default() += 1;
    }

    /// How many users and contacts are registered.
    pub fn set_phones(&self, users: usize, contacts: usize) {
        let mut inner = self.lock();
        (inner.users, inner.contacts) = (users, contacts);
    }

    /// Prometheus text. Trunks are those of the configuration, so the number of series is bounded.
    pub fn render(&self, now_ms: i64) -> String {
        let inner = self.lock();
        let mut out = String::new();
        family(&mut out, "tandem_trunk_up", "1: the trunk answers (up or degraded), 0: it is down.");
        for (name, status) in watched(&inner) {
            let up = u8::from(status.health != health::State::Down);
            sample(&mut out, "tandem_trunk_up", name, "", up);
        }
        family(&mut out, "tandem_trunk_state", "1 for the state that the trunk is in.");
        for (name, status) in watched(&inner) {
            for state in health::State::ALL {
                let label = format!(",state=\"{}\"", state.word());
                sample(&mut out, "tandem_trunk_state", name, &label, u8::from(status.health == state));
            }
        }
        family(&mut out, "tandem_trunk_rtt_seconds", "How long the trunk took to answer the last OPTIONS.");
        for (name, status) in watched(&inner) {
            if let Some(rtt) = status.rtt {
                sample(&mut out, "tandem_trunk_rtt_seconds", name, "", rtt.as_secs_f64());
            }
        }
        let registered: Vec<_> = inner
            .trunks
            .iter()
            .filter_map(|(name, status)| Some((name, status.registration.as_ref()?)))
            .collect();
        family(&mut out, "tandem_trunk_registration", "1 for the state of our registration with the trunk.");
        for (name, registration) in &registered {
            for state in registrant::State::ALL {
                let label = format!(",state=\"{}\"", state.word());
                let is = u8::from(registration.state == state);
                sample(&mut out, "tandem_trunk_registration", name, &label, is);
            }
        }
        family(&mut out, "tandem_trunk_next_register_seconds", "Until the next REGISTER to the trunk.");
        for (name, registration) in &registered {
            if registration.next_ms > 0 {
                let left = (registration.next_ms - now_ms).max(0) as f64 / 1_000.0;
                sample(&mut out, "tandem_trunk_next_register_seconds", name, "", left);
            }
        }
        family(&mut out, "tandem_registrar_users", "Users with a registered phone.");
        line(&mut out, format_args!("tandem_registrar_users {}", inner.users));
        family(&mut out, "tandem_registrar_contacts", "Registered contacts.");
        line(&mut out, format_args!("tandem_registrar_contacts {}", inner.contacts));
        let help = "REGISTERs of phones by what became of them.";
        line(&mut out, format_args!("# HELP tandem_registrar_requests_total {help}"));
        line(&mut out, format_args!("# TYPE tandem_registrar_requests_total counter"));
        for (word, count) in &inner.registers {
            line(&mut out, format_args!("tandem_registrar_requests_total{{result=\"{word}\"}} {count}"));
        }
        out
    }
}

/// Trunks that are asked whether they are there.
fn watched(inner: &Inner) -> impl Iterator<Item = (&Arc<str>, &TrunkStatus)> {
    inner.trunks.iter().filter(|(_, status)| status.health != health::State::Unknown)
}

fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{text}");
}

fn family(out: &mut String, name: &str, help: &str) {
    line(out, format_args!("# HELP {name} {help}\n# TYPE {name} gauge"));
}

fn sample(out: &mut String, name: &str, trunk: &str, labels: &str, value: impl std::fmt::Display) {
    let trunk: String = trunk.chars().filter(|c| !matches!(c, '"' | '\\' | '\n')).collect();
    line(out, format_args!("{name}{{trunk=\"{trunk}\"{labels}}} {value}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scrape_has_a_line_for_each_fact() {
        let board = Board::default();
        let registration = RegistrationStatus {
            state: registrant::State::Registered,
            detail: String::new(),
            sip_status: 0,
            next_ms: 61_000,
            registered_until_ms: 90_000,
        };
        let status = TrunkStatus {
            health: health::State::Degraded,
            rtt: Some(Duration::from_millis(25)),
            registration: Some(registration),
            ..TrunkStatus::default()
        };
        assert!(board.set_trunk(&"carrier".into(), status).is_none());
        board.set_trunk(&"unwatched".into(), TrunkStatus::default());
        board.count_register("granted");
        board.set_phones(2, 3);
        let text = board.render(1_000);
        for expected in [
            "tandem_trunk_up{trunk=\"carrier\"} 1",
            "tandem_trunk_state{trunk=\"carrier\",state=\"degraded\"} 1",
            "tandem_trunk_state{trunk=\"carrier\",state=\"up\"} 0",
            "tandem_trunk_rtt_seconds{trunk=\"carrier\"} 0.025",
            "tandem_trunk_registration{trunk=\"carrier\",state=\"registered\"} 1",
            "tandem_trunk_next_register_seconds{trunk=\"carrier\"} 60",
            "tandem_registrar_users 2",
            "tandem_registrar_contacts 3",
            "tandem_registrar_requests_total{result=\"granted\"} 1",
        ] {
            assert!(text.lines().any(|line| line == expected), "{expected} is not in {text}");
        }
        assert!(!text.contains("unwatched"));
        assert_eq!(board.health("carrier"), health::State::Degraded);
        assert_eq!(board.health("nobody"), health::State::Unknown);
    }
}
