//! Who may knock at all: a look at each request before any transaction, cheap and without an answer.
//!
//! ```text
//!   bytes ──check──▶ a trunk's address, or a source that was admitted before ──▶ pass, if it names no scanner
//!                    a scanner's User-Agent, a source that has failed too often ──▶ silence, and a count
//!                    everybody else: so many a second from one source, so many from all strangers together
//!   admission ──admitted / refused──▶ what is known of a source
//! ```
//!
//! A source that was admitted once is passed for [`GOOD_FOR`]: neither a flood of others nor failures under its address
//! (which anybody can forge over UDP) silence it. What is remembered of strangers and of good sources stands in two
//! tables, so that strangers can only push out strangers. No socket, no clock, no task in here.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tandem_sip::Flow;

use super::Trunks;
use super::bucket::{Bucket, Rate};
use super::glance::{Glance, Kind};
use super::lru::Lru;

/// How long a source is passed after it was admitted: longer than from one registration or OPTIONS to the next.
pub const GOOD_FOR: Duration = Duration::from_secs(3_600);
/// Good sources that are remembered; each is some 60 octets. Full: the one that was silent longest is a stranger again.
const GOOD_MAX: usize = 65_536;
/// Strangers that are remembered; each is some 130 octets, so 9 MiB. Full: the one that was silent longest is forgotten.
const STRANGERS_MAX: usize = 65_536;
/// Within this time failures of a source add up.
const FAILURE_WINDOW: Duration = Duration::from_secs(60);
/// Requests without any credential that are refused with a reason until the source meets silence.
const UNKNOWN_MAX: u32 = 10;
/// A source that goes on failing is silenced for twice as long each time, up to this.
const SILENCE_MAX: Duration = Duration::from_secs(3_600);
/// Requests of one stranger: a phone that registers, subscribes and calls at once stays below it.
const SOURCE_RATE: Rate = Rate { per_second: 20.0, burst: 60.0 };
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
}

impl Why {
    /// Every reason.
    pub const ALL: [Why; 4] = [Why::Scanner, Why::Silenced, Why::SourceRate, Why::StrangersRate];

    /// The word in logs and metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Scanner => "scanner",
            Self::Silenced => "silenced",
            Self::SourceRate => "source_rate",
            Self::StrangersRate => "strangers_rate",
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

/// What is remembered of a stranger.
#[derive(Debug, Default)]
struct Stranger {
    bucket: Option<Bucket>,
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
    pub dropped: [u64; 4],
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
    good: Lru<IpAddr, Option<Instant>>,
    strangers: Lru<IpAddr, Stranger>,
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

    /// May the endpoint see these bytes? One datagram, or any piece of a stream.
    pub fn check(&mut self, bytes: &[u8], flow: Flow, now: Instant) -> Verdict {
        let ip = flow.remote.ip().to_canonical();
        if self.is_trusted(ip, now) {
            // What shows itself as a scanner is dropped under any name, and the name does not suffer for it.
            let is_scan =
                Glance::at(bytes).is_some_and(|glance| glance.names_one_of(&self.settings.scanner_agents));
            return if is_scan { self.drop_it(ip, Why::Scanner, now) } else { Verdict::Pass };
        }
        let silent_until = self.strangers.get_mut(&ip).and_then(|stranger| stranger.silent_until);
        if silent_until.is_some_and(|until| now < until) && !Glance::is_response(bytes) {
            return self.drop_it(ip, Why::Silenced, now);
        }
        // Responses, keep-alives and the middle of a stream are not ours to judge.
        let Some(glance) = Glance::at(bytes) else { return Verdict::Pass };
        if glance.names_one_of(&self.settings.scanner_agents) {
            self.silence(ip, Failure::Unknown, now);
            return self.drop_it(ip, Why::Scanner, now);
        }
        let has_claim = glance.has_credential || glance.from_user.is_some_and(|user| self.is_phone(user));
        let stranger = self.strangers.entry(ip);
        if !stranger.bucket.get_or_insert_with(|| Bucket::new(SOURCE_RATE, now)).take(SOURCE_RATE, now) {
            return self.drop_it(ip, Why::SourceRate, now);
        }
        let unknown_silent = stranger.unknown_silent_until.is_some_and(|until| now < until);
        match (glance.kind, has_claim) {
            // A dialog that there is, or a stray that costs nothing.
            (Kind::InDialog, _) => Verdict::Pass,
            (Kind::New, false) if unknown_silent => self.drop_it(ip, Why::Silenced, now),
            (Kind::New, true) => {
                let bucket = self.all_claimants.get_or_insert_with(|| Bucket::new(CLAIMANTS_RATE, now));
                if bucket.take(CLAIMANTS_RATE, now) {
                    return Verdict::Pass;
                }
                self.drop_it(ip, Why::StrangersRate, now)
            }
            (Kind::New, false) => {
                let per_second = self.settings.strangers_per_second;
                let rate = Rate { per_second, burst: (per_second * 5.0).max(1.0) };
                if self.all_unknown.get_or_insert_with(|| Bucket::new(rate, now)).take(rate, now) {
                    return Verdict::Pass;
                }
                self.drop_it(ip, Why::StrangersRate, now)
            }
        }
    }

    /// Whether a source is a trunk's or was admitted lately.
    fn is_trusted(&mut self, ip: IpAddr, now: Instant) -> bool {
        if self.trunks.find_by_source(ip, None).next().is_some() {
            return true;
        }
        let until = self.good.get_mut(&ip).copied().flatten();
        if until.is_some_and(|until| until <= now) {
            self.good.remove(&ip);
            return false;
        }
        until.is_some()
    }

    fn is_phone(&self, user: &[u8]) -> bool {
        std::str::from_utf8(user).is_ok_and(|user| self.trunks.find_phone(user).is_some())
    }

    /// A call or a registration from there was admitted.
    pub fn admitted(&mut self, ip: IpAddr, now: Instant) {
        let ip = ip.to_canonical();
        self.strangers.remove(&ip);
        *self.good.entry(ip) = Some(now + GOOD_FOR);
    }

    /// A request from there was refused by admission.
    pub fn refused(&mut self, ip: IpAddr, failure: Failure, now: Instant) {
        let ip = ip.to_canonical();
        if self.is_trusted(ip, now) {
            return;
        }
        let failures_max = self.settings.failures_max;
        let stranger = self.strangers.entry(ip);
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
        let stranger = self.strangers.entry(ip);
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
        let stranger = self.strangers.entry(ip);
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::trunk::{Inbound, Phone, Trunk};

    const OURS: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 5060);

    fn guard() -> SourceGuard {
        let inbound = Inbound { allow: vec!["203.0.113.0/28".parse().unwrap()], ..Inbound::default() };
        let trunk = Trunk { name: "carrier".into(), inbound, ..Trunk::default() };
        let phone = Phone { user: "200".into(), ..Phone::default() };
        SourceGuard::new(GuardSettings::default(), Trunks::new([trunk], [phone]))
    }

    fn invite(uri: &str, agent: &str) -> String {
        format!(
            "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 198.51.100.1\r\nFrom: <sip:1000@x>;tag=1\r\nTo: <{uri}>\r\n\
             User-Agent: {agent}\r\n\r\n"
        )
    }

    fn from(ip: &str) -> Flow {
        Flow::udp(OURS, SocketAddr::new(ip.parse().unwrap(), 5060))
    }

    fn check(guard: &mut SourceGuard, ip: &str, text: &str, now: Instant) -> Verdict {
        guard.check(text.as_bytes(), from(ip), now)
    }

    #[test]
    fn scanner_is_dropped_and_its_source_meets_silence_for_a_while() {
        let (mut guard, now) = (guard(), Instant::now());
        let scan = invite("sip:100@192.0.2.1", "friendly-scanner");
        assert_eq!(check(&mut guard, "198.51.100.1", &scan, now), Verdict::Drop(Why::Scanner));
        let plain = invite("sip:desk@192.0.2.1", "Phone/1");
        assert_eq!(check(&mut guard, "198.51.100.1", &plain, now), Verdict::Drop(Why::Silenced));
        let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
        assert_eq!(check(&mut guard, "198.51.100.1", &keyed, now), Verdict::Pass, "a good caller beside it");
        let later = now + Duration::from_secs(60);
        assert_eq!(check(&mut guard, "198.51.100.1", &plain, later), Verdict::Pass);
        assert_eq!(check(&mut guard, "198.51.100.1", &scan, later), Verdict::Drop(Why::Scanner));
        let doubled = later + Duration::from_secs(119);
        assert_eq!(check(&mut guard, "198.51.100.1", &plain, doubled), Verdict::Drop(Why::Silenced));
    }

    #[test]
    fn trunk_and_admitted_source_do_not_suffer_for_what_comes_under_their_address() {
        let (mut guard, now) = (guard(), Instant::now());
        guard.admitted("198.51.100.1".parse().unwrap(), now);
        for ip in ["203.0.113.5", "198.51.100.1"] {
            for _ in 0..1_000 {
                guard.refused(ip.parse().unwrap(), Failure::Wrong, now);
                let scan = invite("sip:100@192.0.2.1", "friendly-scanner");
                assert_eq!(check(&mut guard, ip, &scan, now), Verdict::Drop(Why::Scanner));
                let plain = invite("sip:100@192.0.2.1", "Phone/1");
                assert_eq!(check(&mut guard, ip, &plain, now), Verdict::Pass);
            }
        }
        let plain = invite("sip:100@192.0.2.1", "Phone/1");
        let expired = now + GOOD_FOR;
        let passed = (0..200).filter(|_| check(&mut guard, "198.51.100.1", &plain, expired) == Verdict::Pass);
        assert_eq!(passed.count(), 60, "a stranger again");
    }

    #[test]
    fn wrong_keys_lead_to_silence_for_everything_and_no_credential_only_for_its_like() {
        let (mut guard, now) = (guard(), Instant::now());
        let plain = invite("sip:desk@192.0.2.1", "Phone/1");
        let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
        for _ in 0..UNKNOWN_MAX {
            assert_eq!(check(&mut guard, "198.51.100.1", &plain, now), Verdict::Pass);
            guard.refused("198.51.100.1".parse().unwrap(), Failure::Unknown, now);
        }
        assert_eq!(check(&mut guard, "198.51.100.1", &plain, now), Verdict::Drop(Why::Silenced));
        assert_eq!(check(&mut guard, "198.51.100.1", &keyed, now), Verdict::Pass);
        for _ in 0..10 {
            guard.refused("198.51.100.1".parse().unwrap(), Failure::Wrong, now);
        }
        assert_eq!(check(&mut guard, "198.51.100.1", &keyed, now), Verdict::Drop(Why::Silenced));
        let response = "SIP/2.0 200 OK\r\n\r\n";
        assert_eq!(check(&mut guard, "198.51.100.1", response, now), Verdict::Pass);
    }

    #[test]
    fn failures_that_are_far_apart_do_not_add_up() {
        let (mut guard, now) = (guard(), Instant::now());
        let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
        for minute in 0..30 {
            let at = now + FAILURE_WINDOW * minute;
            guard.refused("198.51.100.1".parse().unwrap(), Failure::Wrong, at);
            assert_eq!(check(&mut guard, "198.51.100.1", &keyed, at), Verdict::Pass);
        }
    }

    #[test]
    fn spoofed_flood_is_bounded_in_memory_and_in_what_passes_and_phones_get_through() {
        let (mut guard, now) = (guard(), Instant::now());
        let plain = invite("sip:100@192.0.2.1", "Asterisk PBX");
        let mut passed = 0;
        for n in 0..200_000u32 {
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n);
            let flow = Flow::udp(OURS, SocketAddr::new(ip.into(), 5060));
            passed += u32::from(guard.check(plain.as_bytes(), flow, now) == Verdict::Pass);
        }
        assert_eq!(passed, 100, "five seconds' worth at once");
        assert_eq!(guard.sources(), (0, STRANGERS_MAX));
        let register = "REGISTER sip:192.0.2.1 SIP/2.0\r\nFrom: <sip:200@192.0.2.1>;tag=1\r\nTo: <sip:200@192.0.2.1>\r\n\r\n";
        assert_eq!(check(&mut guard, "198.51.100.1", register, now), Verdict::Pass);
        let reports = std::iter::from_fn(|| guard.poll_report()).count();
        assert!(reports <= 20, "{reports} lines in a second");
    }

    #[test]
    fn one_source_leaves_one_line_a_minute_with_a_count() {
        let (mut guard, now) = (guard(), Instant::now());
        let scan = invite("sip:100@192.0.2.1", "sipvicious");
        for second in 0..120 {
            for _ in 0..10 {
                check(&mut guard, "198.51.100.1", &scan, now + Duration::from_secs(second));
            }
        }
        let reports: Vec<Report> = std::iter::from_fn(|| guard.poll_report()).collect();
        assert_eq!(reports.iter().map(|report| report.dropped).collect::<Vec<_>>(), [1, 600]);
    }

    #[test]
    fn one_stranger_cannot_flood_even_with_credentials() {
        let (mut guard, now) = (guard(), Instant::now());
        let keyed = invite("sip:desk:key@192.0.2.1", "Phone/1");
        let passed = (0..1_000).filter(|_| check(&mut guard, "198.51.100.1", &keyed, now) == Verdict::Pass);
        assert_eq!(passed.count(), 60);
    }
}
