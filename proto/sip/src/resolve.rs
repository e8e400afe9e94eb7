//! From a URI to the addresses that a request is tried at, in order (RFC 3263 §4). Sans-IO: whoever has a DNS client
//! takes the questions out and brings the answers in.
//!
//! ```text
//!   sip:example.com ─▶ NAPTR ─▶ SRV (one a transport) ─▶ A, AAAA ─▶ [ udp 192.0.2.1:5060, tcp 192.0.2.7:5060 … ]
//!      a transport is named ──────▶┘                      ▲
//!      a port is named ───────────────────────────────────┘
//!      the host is an address ─▶ no question at all
//!
//!   poll_question() ─▶ shell ─▶ handle_answer(question, answer) ─▶ … ─▶ targets()
//! ```
//!
//! Records of one priority are shuffled by weight (RFC 2782). `sips:` never becomes anything but TLS. `maddr` is not
//! honoured, as it is not in Via. What a server sends beyond the bounds below is left out.

use std::net::{IpAddr, SocketAddr};

use crate::flow::Transport;
use crate::random::Random;
use crate::uri::{Scheme, Uri};

/// NAPTR records of one name that are read.
pub const NAPTR_MAX: usize = 8;
/// SRV records of one name that are read.
pub const SRV_MAX: usize = 16;
/// Addresses of one name that are read.
pub const ADDRESSES_MAX: usize = 8;
/// Questions asked for one URI. More are not asked: what they would have found is left out.
pub const QUESTIONS_MAX: usize = 32;
/// Addresses that a request is tried at. More are left out: nobody waits for a seventeenth.
pub const TARGETS_MAX: usize = 16;

/// What DNS is asked. Names are without the last dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Question {
    /// Which transports does this domain have?
    Naptr(Box<str>),
    /// Which hosts serve `_sip._udp.example.com`?
    Srv(Box<str>),
    /// Which addresses, IPv4 and IPv6, has this host?
    Addresses(Box<str>),
}

/// One NAPTR record (RFC 3403 §4.1); its regular expression has no meaning here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Naptr {
    /// Lower ones first, and only they.
    pub order: u16,
    /// Among the same order, lower ones first.
    pub preference: u16,
    /// `s`: the replacement has SRV records.
    pub flags: Box<str>,
    /// `SIP+D2U` and so on.
    pub service: Box<str>,
    /// The name to go on with.
    pub replacement: Box<str>,
}

/// One SRV record (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Srv {
    /// Lower ones first.
    pub priority: u16,
    /// Share among the same priority.
    pub weight: u16,
    /// Port.
    pub port: u16,
    /// Host; `.` says that there is no such service.
    pub target: Box<str>,
}

/// What DNS said. An empty list: there is nothing, or nobody answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// To [`Question::Naptr`].
    Naptr(Vec<Naptr>),
    /// To [`Question::Srv`].
    Srv(Vec<Srv>),
    /// To [`Question::Addresses`].
    Addresses(Vec<IpAddr>),
}

/// One address that a request is tried at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Target {
    /// Over which transport.
    pub transport: Transport,
    /// Where.
    pub address: SocketAddr,
}

/// Why there are no targets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Neither `sip:` nor `sips:`.
    #[error("only sip: and sips: URIs lead to an address")]
    Scheme,
    /// The URI names a transport that does not exist, or that is not open here.
    #[error("transport {0} is not available here")]
    Transport(Box<str>),
}

/// The transport that a URI itself names, without DNS (§4.1). `None`: NAPTR decides, or it is none of ours.
pub fn named_transport(uri: &Uri) -> Option<Transport> {
    let is_secure = uri.scheme() == Scheme::Sips;
    match uri.param("transport") {
        Some(token) => match Transport::from_token(token)? {
            Transport::Ws if is_secure => Some(Transport::Wss),
            Transport::Wss => Some(Transport::Wss),
            // TLS on every hop: `sips:` with any other transport means TLS over TCP (RFC 3261 §26.2.2).
            _ if is_secure => Some(Transport::Tls),
            transport => Some(transport),
        },
        None if uri.host_ip().is_some() || uri.port().is_some() => {
            Some(if is_secure { Transport::Tls } else { Transport::Udp })
        }
        None => None,
    }
}

/// What stands in the list of targets to be, from the vaguest to the final.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Domain,
    Service { transport: Transport, name: Box<str> },
    Host { transport: Transport, name: Box<str>, port: u16 },
    Target(Target),
}

impl Entry {
    fn question(&self, domain: &str) -> Option<Question> {
        match self {
            Entry::Domain => Some(Question::Naptr(domain.into())),
            Entry::Service { name, .. } => Some(Question::Srv(name.clone())),
            Entry::Host { name, .. } => Some(Question::Addresses(name.clone())),
            Entry::Target(_) => None,
        }
    }
}

/// One URI on its way to its targets.
#[derive(Debug)]
pub struct Resolution {
    domain: Box<str>,
    is_secure: bool,
    /// Transports that we have, best first.
    ours: Vec<Transport>,
    entries: Vec<Entry>,
    /// SRV said that there is no such service: then the domain's own address is not tried.
    is_denied: bool,
    /// Whether the domain's own address has been put in.
    is_last_resort: bool,
    /// What is used when nothing says otherwise.
    default_transport: Transport,
    asked: Vec<Question>,
    /// What is known already: one host may serve several transports.
    answered: Vec<(Question, Answer)>,
    random: Random,
}

impl Resolution {
    /// Begins. `transport` overrides the URI's; `ours` are the transports that are open here, best first; the seed decides
    /// among records of one priority.
    pub fn new(
        uri: &Uri,
        transport: Option<Transport>,
        ours: &[Transport],
        seed: u64,
    ) -> Result<Resolution, ResolveError> {
        let is_secure = match uri.scheme() {
            Scheme::Sip => false,
            Scheme::Sips => true,
            Scheme::Tel | Scheme::Other => return Err(ResolveError::Scheme),
        };
        let named = match (transport, uri.param("transport")) {
            (Some(transport), _) if is_secure && !transport.is_secure() => Some(Transport::Tls),
            (Some(transport), _) => Some(transport),
            (None, Some(token)) => {
                let named = named_transport(uri).ok_or_else(|| ResolveError::Transport(token.into()))?;
                Some(named)
            }
            (None, None) => named_transport(uri),
        };
        if let Some(missing) = named.filter(|named| !ours.contains(named)) {
            return Err(ResolveError::Transport(missing.token().into()));
        }
        let default_transport = named.unwrap_or(if is_secure { Transport::Tls } else { Transport::Udp });
        let domain: Box<str> = uri.host().trim_end_matches('.').to_ascii_lowercase().into();
        let port = uri.port();
        let entry = match (uri.host_ip(), named, port) {
            (Some(ip), _, port) => {
                let port = port.unwrap_or(default_transport.default_port());
                Entry::Target(Target { transport: default_transport, address: SocketAddr::new(ip, port) })
            }
            (None, _, Some(port)) => Entry::Host { transport: default_transport, name: domain.clone(), port },
            (None, Some(transport), None) => Entry::Service { transport, name: service(transport, &domain) },
            (None, None, None) => Entry::Domain,
        };
        Ok(Resolution {
            is_last_resort: matches!(entry, Entry::Host { .. } | Entry::Target(_)),
            domain,
            is_secure,
            ours: ours.to_vec(),
            entries: vec![entry],
            is_denied: false,
            default_transport,
            asked: Vec::new(),
            answered: Vec::new(),
            random: Random::new(seed),
        })
    }

    /// The next question; several may be under way at once. Each must be answered by [`Resolution::handle_answer`].
    pub fn poll_question(&mut self) -> Option<Question> {
        let next = self
            .entries
            .iter()
            .filter_map(|entry| entry.question(&self.domain))
            .find(|question| !self.asked.contains(question))?;
        if self.asked.len() >= QUESTIONS_MAX {
            let asked = &self.asked;
            let domain = &self.domain;
            self.entries
                .retain(|entry| entry.question(domain).is_none_or(|question| asked.contains(&question)));
            return None;
        }
        self.asked.push(next.clone());
        Some(next)
    }

    /// An answer: what was asked about is replaced by what it is made of.
    pub fn handle_answer(&mut self, question: &Question, answer: Answer) {
        self.answered.push((question.clone(), answer));
        loop {
            while let Some((question, answer)) = self.next_known() {
                self.replace(&question, &answer);
            }
            if !self.entries.is_empty() || self.is_denied || self.is_last_resort {
                return;
            }
            // Neither NAPTR nor SRV: the domain's own address, at the default port (§4.2).
            self.is_last_resort = true;
            let transport = self.default_transport;
            let port = transport.default_port();
            self.entries.push(Entry::Host { transport, name: self.domain.clone(), port });
        }
    }

    /// The targets in the order in which to try them, at most [`TARGETS_MAX`]; `None`: there are questions left. Empty:
    /// DNS knows no way.
    pub fn targets(&self) -> Option<Vec<Target>> {
        let mut targets = Vec::new();
        for entry in &self.entries {
            let Entry::Target(target) = entry else { return None };
            if targets.len() < TARGETS_MAX && !targets.contains(target) {
                targets.push(*target);
            }
        }
        Some(targets)
    }

    /// What was asked so far, for messages.
    pub fn asked(&self) -> &[Question] {
        &self.asked
    }

    fn replace(&mut self, question: &Question, answer: &Answer) {
        let mut entries = Vec::with_capacity(self.entries.len());
        for entry in std::mem::take(&mut self.entries) {
            if entry.question(&self.domain).as_ref() == Some(question) {
                self.expand(entry, answer, &mut entries);
            } else {
                entries.push(entry);
            }
        }
        self.entries = entries;
    }

    /// An answer that an entry waits for. (Entries only become less vague: this comes to an end.)
    fn next_known(&self) -> Option<(Question, Answer)> {
        let wanted = |entry: &Entry| {
            let question = entry.question(&self.domain)?;
            self.answered.iter().find(|(known, _)| *known == question).cloned()
        };
        self.entries.iter().find_map(wanted)
    }

    fn expand(&mut self, entry: Entry, answer: &Answer, out: &mut Vec<Entry>) {
        match (entry, answer) {
            (Entry::Domain, Answer::Naptr(records)) => self.expand_domain(records, out),
            (Entry::Service { transport, .. }, Answer::Srv(records)) => {
                if let [only] = &records[..]
                    && only.target.trim_end_matches('.').is_empty()
                {
                    self.is_denied = true;
                    return;
                }
                for record in by_weight(records, &mut self.random) {
                    let name: Box<str> = record.target.trim_end_matches('.').to_ascii_lowercase().into();
                    if !name.is_empty() && record.port != 0 {
                        self.is_denied = false;
                        out.push(Entry::Host { transport, name, port: record.port });
                    }
                }
            }
            (Entry::Host { transport, port, .. }, Answer::Addresses(addresses)) => {
                let address = |ip: &IpAddr| Target { transport, address: SocketAddr::new(*ip, port) };
                out.extend(addresses.iter().take(ADDRESSES_MAX).map(address).map(Entry::Target));
            }
            // An answer of another kind than the question: as good as none.
            _ => {}
        }
    }

    fn expand_domain(&mut self, records: &[Naptr], out: &mut Vec<Entry>) {
        let usable = |record: &&Naptr| {
            let transport = transport_of_service(&record.service)?;
            let fits = self.ours.contains(&transport) && (!self.is_secure || transport.is_secure());
            (fits && record.flags.eq_ignore_ascii_case("s")).then_some(transport)
        };
        let mut records: Vec<(&Naptr, Transport)> = records
            .iter()
            .take(NAPTR_MAX)
            .filter_map(|record| usable(&record).map(|transport| (record, transport)))
            .collect();
        records.sort_by_key(|(record, _)| (record.order, record.preference));
        if records.is_empty() {
            // One question a transport, in our own order (§4.1).
            let is_secure = self.is_secure;
            let fits = |transport: &&Transport| {
                matches!(transport, Transport::Udp | Transport::Tcp | Transport::Tls)
                    && (!is_secure || transport.is_secure())
            };
            out.extend(
                self.ours
                    .iter()
                    .filter(fits)
                    .map(|&transport| Entry::Service { transport, name: service(transport, &self.domain) }),
            );
            return;
        }
        out.extend(records.into_iter().map(|(record, transport)| Entry::Service {
            transport,
            name: record.replacement.trim_end_matches('.').to_ascii_lowercase().into(),
        }));
    }
}

/// The SRV name of a transport in a domain (RFC 3263 §4.2, RFC 7118 §4.2).
fn service(transport: Transport, domain: &str) -> Box<str> {
    let prefix = match transport {
        Transport::Udp => "_sip._udp",
        Transport::Tcp => "_sip._tcp",
        Transport::Tls => "_sips._tcp",
        Transport::Ws => "_sip._ws",
        Transport::Wss => "_sips._ws",
    };
    format!("{prefix}.{domain}").into()
}

fn transport_of_service(service: &str) -> Option<Transport> {
    let services = [
        ("SIP+D2U", Transport::Udp),
        ("SIP+D2T", Transport::Tcp),
        ("SIPS+D2T", Transport::Tls),
        ("SIP+D2W", Transport::Ws),
        ("SIPS+D2W", Transport::Wss),
    ];
    services.into_iter().find(|(name, _)| name.eq_ignore_ascii_case(service)).map(|(_, transport)| transport)
}

/// Lower priorities first; among equals a draw in which each has its weight's chance (RFC 2782 §"Weight").
fn by_weight<'a>(records: &'a [Srv], random: &mut Random) -> Vec<&'a Srv> {
    let mut left: Vec<&Srv> = records.iter().take(SRV_MAX).collect();
    // Weight 0 first, so that it has a small chance.
    left.sort_by_key(|record| (record.priority, record.weight != 0));
    let mut ordered = Vec::with_capacity(left.len());
    while let Some(first) = left.first() {
        let group = left.iter().take_while(|record| record.priority == first.priority).count();
        let sum: u64 = left[..group].iter().map(|record| u64::from(record.weight)).sum();
        let drawn = random.next_u64() % (sum + 1);
        let mut running = 0;
        let hit = left[..group].iter().position(|record| {
            running += u64::from(record.weight);
            running >= drawn
        });
        ordered.push(left.remove(hit.unwrap_or(0)));
    }
    ordered
}

#[cfg(test)]
mod tests;
