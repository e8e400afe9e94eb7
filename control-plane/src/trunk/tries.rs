//! Wrong passwords, counted: of one account from one source, and of one account from everywhere.
//!
//! Who has proved the password from a source within the last hour is not kept out by what others guess elsewhere. An
//! account that does not exist is counted like any other, so nobody can ask by it which there are.

use std::net::IpAddr;

use super::guard::{GOOD_FOR, network};
use super::lru::Lru;

/// Wrong passwords of one account from one source within [`WINDOW_S`]; then none is looked at.
pub const TRIES_MAX: u32 = 5;
/// The same from all sources that have not proved it: as many mistakes as people make who set up an office of phones.
pub const TRIES_OF_ACCOUNT_MAX: u32 = 30;
/// Seconds within which wrong passwords add up.
const WINDOW_S: u64 = 60;
/// Accounts, and accounts by source, that are counted, at some 60 octets each. Full: the one that was silent longest is
/// forgotten; at the guard's rates that takes longer than the window.
const COUNTED_MAX: usize = 65_536;

/// See the module. `now_s` counts seconds from anywhere.
#[derive(Debug)]
pub struct Tries {
    by_source: Lru<(IpAddr, u64), Wrong>,
    by_account: Lru<u64, Wrong>,
    proven: Lru<(IpAddr, u64), u64>,
}

#[derive(Debug, Default)]
struct Wrong {
    count: u32,
    since_s: u64,
}

impl Wrong {
    fn in_window(&mut self, now_s: u64) -> u32 {
        if now_s.saturating_sub(self.since_s) >= WINDOW_S {
            *self = Self { count: 0, since_s: now_s };
        }
        self.count
    }

    fn add(&mut self, now_s: u64) {
        self.in_window(now_s);
        self.count = self.count.saturating_add(1);
    }
}

impl Default for Tries {
    fn default() -> Self {
        Self {
            by_source: Lru::new(COUNTED_MAX),
            by_account: Lru::new(COUNTED_MAX),
            proven: Lru::new(COUNTED_MAX),
        }
    }
}

impl Tries {
    /// Whether a password for this account may be looked at.
    pub fn may_try(&mut self, source: IpAddr, account: &str, now_s: u64) -> bool {
        let (source, account) = (network(source), hash_of(account));
        let of_source = self.by_source.get_mut(&(source, account)).map_or(0, |wrong| wrong.in_window(now_s));
        let of_account = self.by_account.get_mut(&account).map_or(0, |wrong| wrong.in_window(now_s));
        of_source < TRIES_MAX
            && (of_account < TRIES_OF_ACCOUNT_MAX || self.has_proved(source, account, now_s))
    }

    /// It was wrong.
    pub fn wrong(&mut self, source: IpAddr, account: &str, now_s: u64) {
        let (source, account) = (network(source), hash_of(account));
        self.by_source.entry((source, account)).add(now_s);
        if !self.has_proved(source, account, now_s) {
            self.by_account.entry(account).add(now_s);
        }
    }

    /// It was right.
    pub fn right(&mut self, source: IpAddr, account: &str, now_s: u64) {
        let (source, account) = (network(source), hash_of(account));
        self.by_source.remove(&(source, account));
        *self.proven.entry((source, account)) = now_s.saturating_add(GOOD_FOR.as_secs());
    }

    fn has_proved(&mut self, source: IpAddr, account: u64, now_s: u64) -> bool {
        self.proven.get_mut(&(source, account)).is_some_and(|until_s| now_s < *until_s)
    }
}

/// So that the tables hold no strings: of two accounts with the same hash one may have to wait a minute.
fn hash_of(account: &str) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    account.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        [198, 51, 100, last].into()
    }

    /// Guesses until none is looked at, at most 100.
    fn guess(tries: &mut Tries, source: IpAddr, account: &str, now_s: u64) -> usize {
        let looked_at = |_: &u32| {
            let may = tries.may_try(source, account, now_s);
            if may {
                tries.wrong(source, account, now_s);
            }
            may
        };
        (0..100).take_while(looked_at).count()
    }

    #[test]
    fn source_has_five_tries_a_minute_for_each_account() {
        let mut tries = Tries::default();
        assert_eq!(guess(&mut tries, ip(1), "200", 1_000), 5);
        assert_eq!(guess(&mut tries, ip(1), "201", 1_000), 5);
        assert_eq!(guess(&mut tries, ip(1), "200", 1_059), 0);
        assert_eq!(guess(&mut tries, ip(1), "200", 1_060), 5);
        let of_network = |n: u16| format!("2001:db8::{n:x}").parse().unwrap();
        let all: usize = (0..10).map(|n| guess(&mut tries, of_network(n), "202", 1_000)).sum();
        assert_eq!(all, 5, "a /64 is one source");
    }

    #[test]
    fn account_has_thirty_tries_a_minute_wherever_they_come_from() {
        let mut tries = Tries::default();
        tries.right(ip(1), "200", 1_000);
        let all: usize = (2..=100).map(|last| guess(&mut tries, ip(last), "200", 1_000)).sum();
        assert_eq!(all, 30);
        assert!(!tries.may_try(ip(200), "200", 1_000));
        assert!(tries.may_try(ip(1), "200", 1_000), "its own phone");
        assert!(tries.may_try(ip(200), "201", 1_000), "another account");
        tries.wrong(ip(1), "200", 1_000);
        assert_eq!(guess(&mut tries, ip(1), "200", 1_000), 4, "whose own mistakes count for it alone");
    }

    #[test]
    fn right_password_takes_back_what_was_counted_of_its_source() {
        let mut tries = Tries::default();
        for _ in 0..TRIES_MAX - 1 {
            tries.wrong(ip(1), "200", 1_000);
        }
        tries.right(ip(1), "200", 1_000);
        assert_eq!(guess(&mut tries, ip(1), "200", 1_000), 5);
    }
}
