//! Who may knock at all: a look at each source and each request before any transaction, cheap and without an answer.
//!
//! ```text
//!   bytes ──check_source──▶ a source that has failed too often, or that floods ──▶ silence, before a parser sees them
//!   request of no dialog and no transaction ──check──▶ (the endpoint asks: tandem_sip's Door)
//!      a trunk's address or certificate, a source that was admitted before ──▶ pass, below rates of their own
//!      a scanner's User-Agent, a source that has failed too often ──▶ silence, and a count
//!      everybody else: so many a second from one source, so many from all strangers together
//!   admission ──admitted / refused──▶ what is known of a source
//!   the shell ──resolved──▶ the addresses at which a trunk is called are the trunk's too
//! ```
//!
//! What belongs to a live dialog never comes here, so a flood under a carrier's address does not cost it its BYEs. A source
//! that was admitted once is passed for [`GOOD_FOR`]: neither a flood of others nor failures under its address (which
//! anybody can forge over UDP) silence it. Trust is for one address, suspicion for the whole /64 of IPv6 that one host may
//! have. Each look is a few hash lookups and a walk over the trunks' address ranges; each table has its bound, and strangers
//! can only push out strangers. No socket, no clock, no task in here.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_sip::endpoint::Knock;

use super::bucket::{Bucket, Rate};
use super::lru::Lru;
use super::{Trunk, Trunks};
use crate::sip::TlsPeer;

mod claim;
#[cfg(test)]
mod tests;

use claim::Claim;

/// How long a source is passed after it was admitted: longer than from one registration or OPTIONS to the next.
pub const GOOD_FOR: Duration = Duration::from_secs(3_600);
/// Good sources that are remembered; each is some 130 octets. Full: the one that was silent longest is a stranger again.
const GOOD_MAX: usize = 65_536;
/// Strangers that are remembered; each is some 170 octets, so 11 MiB. Full: the one that was silent longest is forgotten.
const STRANGERS_MAX: usize = 65_536;
/// Addresses of trunks that were found by name; a trunk has a dozen at most. Full: the one that was silent longest is a
/// stranger's again until its trunk is called.
const RESOLVED_MAX: usize = 4_096;
/// Within this time failures of a source add up.
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Requests without any credential that are refused with a reason until the source meets silence.
const UNKNOWN_MAX: u32 = 10;
/// A source that goes on failing is silenced for twice as long each time, up to this.
const SILENCE_MAX: Duration = Duration::from_secs(3_600);
/// Whatever a stranger sends, responses and what belongs to its calls included: more is not even parsed.
const FLOOD_RATE: Rate = Rate { per_second: 500.0, burst: 2_000.0 };
/// Requests of one stranger: a phone that registers, subscribes and calls at once stays below it.
const SOURCE_RATE: Rate = Rate { per_second: 20.0, burst: 60.0 };
/// Requests without any credential of one source that was admitted.
const GOOD_RATE: Rate = Rate { per_second: 100.0, burst: 500.0 };
/// Requests of a trunk that lead to nobody: a number without route, a key, a REGISTER. Each may leave a transaction for
/// 32 s, and the trunk's address may be forged.
const NOWHERE_RATE: Rate = Rate { per_second: 50.0, burst: 200.0 };
/// Wrong keys of a trusted source, which is never silenced: then its keys are not looked at for a while.
const WRONG_KEYS_RATE: Rate = Rate { per_second: 0.5, burst: 20.0 };
/// Requests with some credential of all strangers together. Each may leave a transaction for 32 s, so this is what a flood
/// of forged ones can hold: some 7 000. After a restart it is also how fast phones come back.
const CLAIMANTS_RATE: Rate = Rate { per_second: 200.0, burst: 1_000.0 };
/// A source is reported so often at most.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// Reports of all sources together: what a person can look through. More are counted.
const REPORTS_RATE: Rate = Rate { per_second: 5.0, burst: 20.0 };
/// Reports that wait for the log. Full: they are counted.
const REPORTS_MAX: usize = 64;

/// What the guard is told by the settings.
#[derive(Debug, Clone, PartialEq)]
pub struct GuardSettings {
    /// Parts of User-Agent (or of From's display name) that scanners show, in lower case.
    pub scanner_agents: Vec<String>,
    /// Wrong keys and passwords within a minute until a source meets silence.
    pub failures_max: u32,
    /// The first silence; the next is twice as long, and so on.
    pub silence: Duration,
    /// Requests without any credential of all strangers together; more are dropped.
    pub strangers_per_second: f64,
}

/// What common scanners call themselves.
pub const SCANNER_AGENTS: &str = "friendly-scanner,friendly-request,sipvicious,sipcli,sip-scan,sipscan,vaxsipuseragent,\
                                  vaxipuseragent,sundayddr,iwar,sivus,gulp,smap,pplsip,eyebeam-scan,nm@p,zgrab";

impl Default for GuardSettings {
    fn default() -> Self {
        Self {
            scanner_agents: SCANNER_AGENTS.split(',').map(|agent| agent.trim().to_owned()).collect(),
            failures_max: 10,
            silence: Duration::from_secs(60),
            strangers_per_second: 20.0,
        }
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The endpoint may look at it.
    Pass,
    /// Silence. A connection is closed.
    Drop(Why),
}

/// Why a request is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// It names a scanner.
    Scanner,
    /// Its source has failed too often.
    Silenced,
    /// Its source sends too much.
    SourceRate,
    /// All strangers together send too much.
    StrangersRate,
    /// A trunk sends too much, or too much that leads nowhere.
    TrunkRate,
    /// A trusted source has brought too many wrong keys.
    WrongKeys,
}

impl Why {
    /// Every reason.
    pub const ALL: [Why; 6] =
        [Why::Scanner, Why::Silenced, Why::SourceRate, Why::StrangersRate, Why::TrunkRate, Why::WrongKeys];

    /// The word in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Scanner => "scanner",
            Self::Silenced => "silenced",
            Self::SourceRate => "source_rate",
            Self::StrangersRate => "strangers_rate",
            Self::TrunkRate => "trunk_rate",
            Self::WrongKeys => "wrong_keys",
        }
    }
}

/// How a request has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No credential, and from nowhere that we know.
    Unknown,
    /// A wrong key or password.
    Wrong,
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Its address.
    pub ip: IpAddr,
    /// Who it has proven to be by its certificate.
    pub peer: Option<&'a TlsPeer>,
}

/// How a source stands with us.
enum Standing {
    Trunk(Arc<Trunk>),
    Good,
    Stranger,
}

/// What is remembered of a stranger.
#[derive(Debug, Default)]
struct Stranger {
    everything: Option<Bucket>,
    requests: Option<Bucket>,
    /// Failures since this instant.
    since: Option<Instant>,
    unknown: u32,
    wrong: u32,
    /// Everything is dropped until then.
    silent_until: Option<Instant>,
    /// What carries no credential is dropped until then.
    unknown_silent_until: Option<Instant>,
    /// The length of the last silence.
    silence: Duration,
    reported: Option<Instant>,
    dropped: u64,
}

/// What is remembered of a source that was admitted.
#[derive(Debug, Default)]
struct Good {
    until: Option<Instant>,
    unknown: Option<Bucket>,
    wrong_keys: Option<Bucket>,
}

/// What is remembered of a trunk.
#[derive(Debug, Default)]
struct OfTrunk {
    calls: Option<Bucket>,
    nowhere: Option<Bucket>,
    wrong_keys: Option<Bucket>,
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Who.
    pub source: IpAddr,
    /// Why the last one was dropped.
    pub why: Why,
    /// Requests that were dropped since the source's last line.
    pub dropped: u64,
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GuardCounters {
    /// Dropped requests, by [`Why`] in the order of [`Why::ALL`].
    pub dropped: [u64; Why::ALL.len()],
    /// Silences that began.
    pub silences: u64,
    /// Reports for which there was no room.
    pub unreported: u64,
}

/// See the module.
#[derive(Debug)]
pub struct SourceGuard {
    settings: GuardSettings,
    trunks: Trunks,
    good: Lru<IpAddr, Good>,
    strangers: Lru<IpAddr, Stranger>,
    /// The trunk that is called at an address, and until when that is believed.
    resolved: Lru<IpAddr, Option<(Arc<Trunk>, Instant)>>,
    of_trunks: HashMap<Arc<str>, OfTrunk>,
    all_unknown: Option<Bucket>,
    all_claimants: Option<Bucket>,
    all_reports: Option<Bucket>,
    reports: VecDeque<Report>,
    counters: GuardCounters,
}

impl SourceGuard {
    /// A guard that knows the addresses and users of these trunks and phones.
    pub fn new(settings: GuardSettings, trunks: Trunks) -> Self {
        Self {
            settings,
            trunks,
            good: Lru::new(GOOD_MAX),
            strangers: Lru::new(STRANGERS_MAX),
            resolved: Lru::new(RESOLVED_MAX),
            of_trunks: HashMap::new(),
            all_unknown: None,
            all_claimants: None,
            all_reports: None,
            reports: VecDeque::new(),
            counters: GuardCounters::default(),
        }
    }

    /// What was counted.
    pub fn counters(&self) -> &GuardCounters {
        &self.counters
    }

    /// Sources that are remembered: good ones and strangers.
    pub fn sources(&self) -> (usize, usize) {
        (self.good.len(), self.strangers.len())
    }

    /// May anybody read these bytes? One datagram, or any piece of a stream.
    pub fn check_source(&mut self, bytes: &[u8], source: Source<'_>, now: Instant) -> Verdict {
        if !matches!(self.standing(source, now), Standing::Stranger) {
            return Verdict::Pass;
        }
        let stranger = self.strangers.entry(network(source.ip));
        if stranger.silent_until.is_some_and(|until| now < until) && !is_response(bytes) {
            return self.drop_it(source.ip, Why::Silenced, now);
        }
        if !take(&mut stranger.everything, FLOOD_RATE, now) {
            return self.drop_it(source.ip, Why::SourceRate, now);
        }
        Verdict::Pass
    }

    /// May the endpoint handle what nobody waits for?
    pub fn check(&mut self, knock: &Knock<'_>, source: Source<'_>, now: Instant) -> Verdict {
        let claim = match knock {
            Knock::Request(request) => Some(Claim::of(request)),
            Knock::Repeated(_) | Knock::Malformed(_) | Knock::Garbage => None,
        };
        let is_scan = claim.as_ref().is_some_and(|claim| claim.names_one_of(&self.settings.scanner_agents));
        match self.standing(source, now) {
            // What shows itself as a scanner is dropped under any name, and a trusted name does not suffer for it.
            Standing::Trunk(_) | Standing::Good if is_scan => self.drop_it(source.ip, Why::Scanner, now),
            Standing::Trunk(_) | Standing::Good if matches!(knock, Knock::Repeated(_)) => Verdict::Pass,
            Standing::Trunk(trunk) => self.check_trunk(&trunk, claim.as_ref(), source, now),
            Standing::Good => self.check_good(claim.as_ref(), source.ip, now),
            Standing::Stranger if is_scan => {
                self.silence(source.ip, Failure::Unknown, now);
                self.drop_it(source.ip, Why::Scanner, now)
            }
            Standing::Stranger => self.check_stranger(knock, claim.as_ref(), source.ip, now),
        }
    }

    /// A trunk may offer far more than its calls a second, so that admission can refuse them with a reason; and little that
    /// leads nowhere.
    fn check_trunk(
        &mut self,
        trunk: &Arc<Trunk>,
        claim: Option<&Claim<'_>>,
        source: Source<'_>,
        now: Instant,
    ) -> Verdict {
        let leads_somewhere = claim.is_some_and(|claim| {
            claim.is_call() && self.trunks.find_by_source(source.ip, source.peer).any(|t| claim.is_routed(t))
        });
        let per_second = 4.0 * trunk.inbound.calls_per_second + 100.0;
        let of_trunk = self.of_trunks.entry(trunk.name.clone()).or_default();
        if claim.is_some_and(|claim| claim.has_key) && !has(&of_trunk.wrong_keys, WRONG_KEYS_RATE, now) {
            return self.drop_it(source.ip, Why::WrongKeys, now);
        }
        // Two buckets: what leads nowhere must not use up what is there for calls.
        let fits = match leads_somewhere {
            true => take(&mut of_trunk.calls, Rate { per_second, burst: 2.0 * per_second }, now),
            false => take(&mut of_trunk.nowhere, NOWHERE_RATE, now),
        };
        if fits { Verdict::Pass } else { self.drop_it(source.ip, Why::TrunkRate, now) }
    }

    fn check_good(&mut self, claim: Option<&Claim<'_>>, ip: IpAddr, now: Instant) -> Verdict {
        let has_claim = claim.is_some_and(|claim| claim.has_credential || self.is_phone(claim));
        let good = self.good.entry(ip.to_canonical());
        if claim.is_some_and(|claim| claim.has_key) && !has(&good.wrong_keys, WRONG_KEYS_RATE, now) {
            return self.drop_it(ip, Why::WrongKeys, now);
        }
        // Its calls show something; only what shows nothing is counted, so that a flood under its address does not stop them.
        if has_claim || take(&mut good.unknown, GOOD_RATE, now) {
            return Verdict::Pass;
        }
        self.drop_it(ip, Why::SourceRate, now)
    }

    fn check_stranger(
        &mut self,
        knock: &Knock<'_>,
        claim: Option<&Claim<'_>>,
        ip: IpAddr,
        now: Instant,
    ) -> Verdict {
        let has_claim = claim.is_some_and(|claim| claim.has_credential || self.is_phone(claim));
        let stranger = self.strangers.entry(network(ip));
        let is_silent = |until: Option<Instant>| until.is_some_and(|until| now < until);
        // Again here: the silence may have begun in the middle of a stream.
        if is_silent(stranger.silent_until) {
            return self.drop_it(ip, Why::Silenced, now);
        }
        if !take(&mut stranger.requests, SOURCE_RATE, now) {
            return self.drop_it(ip, Why::SourceRate, now);
        }
        match knock {
            // The last response once more, or no answer at all.
            Knock::Repeated(_) | Knock::Garbage => Verdict::Pass,
            _ if !has_claim && is_silent(stranger.unknown_silent_until) => {
                self.drop_it(ip, Why::Silenced, now)
            }
            _ if has_claim => {
                let fits = take(&mut self.all_claimants, CLAIMANTS_RATE, now);
                if fits { Verdict::Pass } else { self.drop_it(ip, Why::StrangersRate, now) }
            }
            _ => {
                let per_second = self.settings.strangers_per_second;
                let rate = Rate { per_second, burst: (per_second * 5.0).max(1.0) };
                let fits = take(&mut self.all_unknown, rate, now);
                if fits { Verdict::Pass } else { self.drop_it(ip, Why::StrangersRate, now) }
            }
        }
    }

    /// By address or certificate a trunk's, or admitted lately, or neither.
    fn standing(&mut self, source: Source<'_>, now: Instant) -> Standing {
        let ip = source.ip.to_canonical();
        if let Some(trunk) = self.trunks.find_by_source(ip, source.peer).next() {
            return Standing::Trunk(trunk.clone());
        }
        if let Some((trunk, until)) = self.resolved.get_mut(&ip).and_then(|entry| entry.as_ref()) {
            if *until > now {
                return Standing::Trunk(trunk.clone());
            }
            self.resolved.remove(&ip);
        }
        let until = self.good.get_mut(&ip).and_then(|good| good.until);
        if until.is_some_and(|until| until <= now) {
            self.good.remove(&ip);
            return Standing::Stranger;
        }
        if until.is_some() { Standing::Good } else { Standing::Stranger }
    }

    fn is_phone(&self, claim: &Claim<'_>) -> bool {
        claim.from_user.as_ref().is_some_and(|user| self.trunks.find_phone(user).is_some())
    }

    /// A trunk is called at this address: what comes from there is the trunk's, whether it may call us or not.
    pub fn resolved(&mut self, trunk: &str, ip: IpAddr, now: Instant) {
        if let Some(trunk) = self.trunks.find(trunk) {
            let ip = ip.to_canonical();
            *self.resolved.entry(ip) = Some((trunk.clone(), now + GOOD_FOR));
            self.strangers.remove(&network(ip));
        }
    }

    /// A call or a registration from there was admitted.
    pub fn admitted(&mut self, ip: IpAddr, now: Instant) {
        let ip = ip.to_canonical();
        self.strangers.remove(&network(ip));
        self.good.entry(ip).until = Some(now + GOOD_FOR);
    }

    /// A request from there was refused by admission.
    pub fn refused(&mut self, source: Source<'_>, failure: Failure, now: Instant) {
        let ip = source.ip.to_canonical();
        match (self.standing(source, now), failure) {
            (Standing::Stranger, _) => self.refused_stranger(ip, failure, now),
            (_, Failure::Unknown) => {}
            (Standing::Trunk(trunk), Failure::Wrong) => {
                let of_trunk = self.of_trunks.entry(trunk.name.clone()).or_default();
                take(&mut of_trunk.wrong_keys, WRONG_KEYS_RATE, now);
            }
            (Standing::Good, Failure::Wrong) => {
                take(&mut self.good.entry(ip).wrong_keys, WRONG_KEYS_RATE, now);
            }
        }
    }

    fn refused_stranger(&mut self, ip: IpAddr, failure: Failure, now: Instant) {
        let failures_max = self.settings.failures_max;
        let stranger = self.strangers.entry(network(ip));
        if stranger.since.is_none_or(|since| now.saturating_duration_since(since) >= FAILURE_WINDOW) {
            (stranger.since, stranger.unknown, stranger.wrong) = (Some(now), 0, 0);
        }
        match failure {
            Failure::Unknown => {
                stranger.unknown += 1;
                if stranger.unknown >= UNKNOWN_MAX {
                    self.silence(ip, failure, now);
                }
            }
            Failure::Wrong => {
                stranger.wrong += 1;
                if stranger.wrong >= failures_max {
                    stranger.wrong = 0;
                    self.silence(ip, failure, now);
                }
            }
        }
    }

    /// Nothing from there is looked at for a while, twice as long as the last time. Who has only been unknown may still
    /// come with a credential: a good caller can share an address with a scanner.
    fn silence(&mut self, ip: IpAddr, failure: Failure, now: Instant) {
        let first = self.settings.silence;
        let stranger = self.strangers.entry(network(ip));
        let until = match failure {
            Failure::Unknown => &mut stranger.unknown_silent_until,
            Failure::Wrong => &mut stranger.silent_until,
        };
        if until.is_some_and(|until| now < until) {
            return;
        }
        stranger.silence = (stranger.silence * 2).clamp(first, SILENCE_MAX.max(first));
        *until = Some(now + stranger.silence);
        self.counters.silences += 1;
    }

    fn drop_it(&mut self, ip: IpAddr, why: Why, now: Instant) -> Verdict {
        self.counters.dropped[why as usize] += 1;
        let stranger = self.strangers.entry(network(ip));
        stranger.dropped += 1;
        if stranger.reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT_EVERY) {
            let bucket = self.all_reports.get_or_insert_with(|| Bucket::new(REPORTS_RATE, now));
            if self.reports.len() < REPORTS_MAX && bucket.take(REPORTS_RATE, now) {
                let dropped = std::mem::take(&mut stranger.dropped);
                stranger.reported = Some(now);
                self.reports.push_back(Report { source: ip, why, dropped });
            } else {
                self.counters.unreported += 1;
            }
        }
        Verdict::Drop(why)
    }

    /// The next line for the log.
    pub fn poll_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }
}

/// A token of a bucket that may not be there yet.
fn take(bucket: &mut Option<Bucket>, rate: Rate, now: Instant) -> bool {
    bucket.get_or_insert_with(|| Bucket::new(rate, now)).take(rate, now)
}

/// Whether there would be one.
fn has(bucket: &Option<Bucket>, rate: Rate, now: Instant) -> bool {
    bucket.is_none_or(|mut bucket| bucket.take(rate, now))
}

/// Whether these bytes begin a response. It may stand behind empty lines, as everywhere (RFC 3261 §7.5).
fn is_response(mut bytes: &[u8]) -> bool {
    while let Some(rest) = bytes.strip_prefix(b"\r\n") {
        bytes = rest;
    }
    bytes.starts_with(b"SIP/")
}

/// What counts as one source where sources are limited: an IPv4 address, or a /64 of IPv6, which one host has to itself.
pub fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.into(),
        IpAddr::V6(ip) if ip.is_loopback() => ip.into(),
        IpAddr::V6(ip) => (ip.to_bits() >> 64 << 64).to_be_bytes().into(),
    }
}
