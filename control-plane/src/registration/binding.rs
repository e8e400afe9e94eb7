//! Bindings: where one user's phones can be reached (RFC 3261 §10.2, §10.3). Pure values and functions.
//!
//! ```text
//!   REGISTER ──read──▶ Wish { Query | RemoveAll | Bind(contacts) } ──apply──▶ bindings of its user
//!                        │ 400, 423, 403                              │ 500: older than what is bound
//! ```
//!
//! A request is applied as a whole or not at all. RFC 3327: a Path is kept, and requests to the phone follow it. RFC 5626:
//! a contact with `+sip.instance` and `reg-id` replaces the one with the same, however often its address changes.

use tandem_sip::{Flow, HeaderName, NameAddr, Request, Uri};

/// Contacts that one REGISTER may bring. More: 403.
pub const CONTACTS_A_REQUEST_MAX: usize = 16;
/// Routes of one Path. More: 403.
pub const PATH_MAX: usize = 8;
/// Octets of `+sip.instance`: a URN of a UUID has 47. A longer one is not kept.
const INSTANCE_LEN_MAX: usize = 128;
/// q of a contact that names none, in thousandths.
const Q_DEFAULT: u16 = 1_000;

/// Lifetimes that a registrar grants, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// When the phone names none.
    pub default_s: u32,
    /// Less is refused with 423.
    pub min_s: u32,
    /// More is cut to this.
    pub max_s: u32,
    /// At most so much for a phone behind a NAT that registers over UDP: its refreshes keep the NAT's mapping open. May be
    /// below `min_s`, since it is we who shorten then.
    pub nat_max_s: u32,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self { default_s: 3_600, min_s: 60, max_s: 7_200, nat_max_s: 60 }
    }
}

/// One phone of a user.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// The Contact: the Request-URI of calls to it.
    pub uri: Uri,
    /// The way by which its REGISTER came.
    pub flow: Flow,
    /// No proxy was between us: calls go back by `flow`, whatever address the Contact shows (NAT).
    pub is_direct: bool,
    /// Routes of calls to it, first the nearest (RFC 3327).
    pub path: Vec<NameAddr>,
    /// `+sip.instance` and `reg-id` (RFC 5626).
    pub instance: Option<Instance>,
    /// Preference in thousandths; higher is called first.
    pub q: u16,
    /// Call-ID of the REGISTER that made it, and its CSeq: an older one of the same Call-ID must not undo it.
    pub call_id: Box<str>,
    /// See `call_id`.
    pub cseq: u32,
    /// When it ends, in milliseconds since the Unix epoch: a clock that nodes share.
    pub until_ms: i64,
}

/// A phone's identity that outlives its addresses (RFC 5626 §4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// `+sip.instance`, a URN in angle brackets.
    pub id: Box<str>,
    /// Which of its flows; 0: it named none.
    pub reg_id: u32,
}

/// What a REGISTER asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Wish {
    /// No Contact: which bindings are there?
    Query,
    /// `Contact: *` and `Expires: 0`.
    RemoveAll,
    /// Contacts to bind, or to remove when they last 0 seconds.
    Bind(Vec<Contact>),
}

/// One Contact of a REGISTER.
#[derive(Debug, Clone, PartialEq)]
pub struct Contact {
    /// Its URI.
    pub uri: Uri,
    /// Seconds as granted; 0 removes it.
    pub expires_s: u32,
    /// See [`Binding::q`].
    pub q: u16,
    /// See [`Binding::instance`].
    pub instance: Option<Instance>,
}

/// Where a REGISTER came from, and in which order.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The way it came.
    pub flow: Flow,
    /// See [`Binding::is_direct`].
    pub is_direct: bool,
    /// See [`Binding::path`].
    pub path: Vec<NameAddr>,
    /// See [`Binding::call_id`].
    pub call_id: Box<str>,
    /// See [`Binding::cseq`].
    pub cseq: u32,
}

/// Why a REGISTER changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Objection {
    /// A Contact, Expires or Path that cannot be read.
    #[error("{0}")]
    Malformed(&'static str),
    /// `*` beside another Contact or without `Expires: 0` (RFC 3261 §10.2.2).
    #[error("Contact * stands alone and with Expires: 0")]
    Wildcard,
    /// Shorter than we grant.
    #[error("a lifetime of {asked_s} s is below {min_s} s")]
    TooBrief {
        /// What was asked for.
        asked_s: u32,
        /// What we grant at least.
        min_s: u32,
    },
    /// Too many of something.
    #[error("more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: usize,
    },
    /// The request is older than the one that made a binding (RFC 3261 §10.3, step 7).
    #[error("CSeq {got} of the same Call-ID is not above {last}")]
    OutOfOrder {
        /// Of the binding.
        last: u32,
        /// Of the request.
        got: u32,
    },
}

impl Objection {
    /// The status of the answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Wildcard => 400,
            Self::TooBrief { .. } => 423,
            Self::TooMany { .. } => 403,
            Self::OutOfOrder { .. } => 500,
        }
    }

    /// A word for counters and log lines.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::Wildcard => "wildcard",
            Self::TooBrief { .. } => "too_brief",
            Self::TooMany { .. } => "too_many",
            Self::OutOfOrder { .. } => "out_of_order",
        }
    }
}

impl Origin {
    /// Reads Path, Call-ID, CSeq and how many proxies there were.
    pub fn read(request: &Request, flow: Flow) -> Result<Self, Objection> {
        let head = &request.head;
        let mut path = Vec::new();
        for value in path_items(request) {
            let route = NameAddr::parse(value).map_err(|_| Objection::Malformed("Path cannot be read"))?;
            if path.len() == PATH_MAX {
                return Err(Objection::TooMany { what: "routes in Path", max: PATH_MAX });
            }
            path.push(route);
        }
        Ok(Self {
            flow,
            is_direct: head.headers().items(HeaderName::Via).nth(1).is_none(),
            path,
            call_id: head.call_id().into(),
            cseq: head.cseq().number,
        })
    }
}

/// The items of Path. The header has no name of its own in the core, so its lines are split here: a route's URI stands in
/// angle brackets, in which a comma may be.
fn path_items(request: &Request) -> impl Iterator<Item = &str> {
    let lines = request.head.headers().iter().filter(|(name, _)| name.eq_ignore_ascii_case("path"));
    lines.flat_map(|(_, value)| {
        let text = std::str::from_utf8(value).unwrap_or("?");
        let mut depth = 0_u32;
        text.split(move |c| {
            match c {
                '<' => depth = 1,
                '>' => depth = 0,
                _ => {}
            }
            c == ',' && depth == 0
        })
    })
}

impl Wish {
    /// Reads the Contacts and their lifetimes (RFC 3261 §10.3, steps 6 and 7).
    pub fn read(request: &Request, lifetimes: &Lifetimes, is_natted_udp: bool) -> Result<Self, Objection> {
        let headers = request.head.headers();
        let expires = match headers.get(HeaderName::Expires) {
            Some(text) => Some(seconds(text).ok_or(Objection::Malformed("Expires is not a number"))?),
            None => None,
        };
        let items: Vec<&str> = headers.items(HeaderName::Contact).take(CONTACTS_A_REQUEST_MAX + 1).collect();
        if items.len() > CONTACTS_A_REQUEST_MAX {
            return Err(Objection::TooMany { what: "contacts", max: CONTACTS_A_REQUEST_MAX });
        }
        if items.contains(&"*") {
            return if items.len() == 1 && expires == Some(0) {
                Ok(Self::RemoveAll)
            } else {
                Err(Objection::Wildcard)
            };
        }
        if items.is_empty() {
            return if headers.contains(HeaderName::Contact) {
                Err(Objection::Malformed("Contact cannot be read"))
            } else {
                Ok(Self::Query)
            };
        }
        let contacts = items.into_iter().map(|item| Contact::read(item, expires, lifetimes, is_natted_udp));
        Ok(Self::Bind(contacts.collect::<Result<_, _>>()?))
    }
}

impl Contact {
    fn read(
        item: &str,
        expires: Option<u32>,
        lifetimes: &Lifetimes,
        is_natted_udp: bool,
    ) -> Result<Self, Objection> {
        let contact = NameAddr::parse(item).map_err(|_| Objection::Malformed("Contact cannot be read"))?;
        if !contact.is_sip() {
            return Err(Objection::Malformed("Contact is no sip or sips URI"));
        }
        let own = match contact.params.get("expires") {
            Some(text) => Some(seconds(&text).ok_or(Objection::Malformed("expires is not a number"))?),
            None => None,
        };
        let asked_s = own.or(expires).unwrap_or(lifetimes.default_s);
        if asked_s > 0 && asked_s < lifetimes.min_s {
            return Err(Objection::TooBrief { asked_s, min_s: lifetimes.min_s });
        }
        let max_s = if is_natted_udp { lifetimes.nat_max_s.min(lifetimes.max_s) } else { lifetimes.max_s };
        let q = match contact.params.get("q") {
            Some(text) => thousandths(&text).ok_or(Objection::Malformed("q is not from 0 to 1"))?,
            None => Q_DEFAULT,
        };
        let instance = contact.params.get("+sip.instance").filter(|id| id.len() <= INSTANCE_LEN_MAX);
        let reg_id = contact.params.get("reg-id").and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Self {
            uri: contact.uri.without_headers(),
            expires_s: asked_s.min(max_s),
            q,
            instance: instance.map(|id| Instance { id: id.as_ref().into(), reg_id }),
        })
    }

    /// Whether this contact is what is bound there.
    fn names(&self, binding: &Binding) -> bool {
        match (&self.instance, &binding.instance) {
            (Some(ours), Some(theirs)) if ours.reg_id != 0 => ours == theirs,
            _ => self.uri == binding.uri,
        }
    }
}

/// Seconds of an Expires. What does not fit into 32 bits is as long as can be (RFC 3261 §20.19 allows 2^32-1).
fn seconds(text: &str) -> Option<u32> {
    let text = text.trim();
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u32::MAX))
}

/// `0.75` is 750: at most three digits after the point (RFC 3261 §25.1, qvalue).
fn thousandths(text: &str) -> Option<u16> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let is_part = part.len() <= 3 && part.bytes().all(|b| b.is_ascii_digit());
    let part: u16 = format!("{part:0<3}").parse().ok().filter(|_| is_part)?;
    match whole {
        "0" => Some(part),
        "1" if part == 0 => Some(1_000),
        _ => None,
    }
}

/// Applies a wish to a user's bindings: all of it, or nothing.
///
/// When more than `contacts_max` would be bound, those that end first give way: a phone that changes its address at each
/// start must not be locked out by its own past.
pub fn apply(
    bindings: &mut Vec<Binding>,
    wish: &Wish,
    origin: &Origin,
    contacts_max: usize,
    now_ms: i64,
) -> Result<(), Objection> {
    bindings.retain(|binding| now_ms < binding.until_ms);
    let contacts = match wish {
        Wish::Query => return Ok(()),
        Wish::RemoveAll => {
            bindings.iter().try_for_each(|binding| in_order(binding, origin))?;
            bindings.clear();
            return Ok(());
        }
        Wish::Bind(contacts) => contacts,
    };
    if contacts.iter().filter(|contact| contact.expires_s > 0).count() > contacts_max {
        return Err(Objection::TooMany { what: "contacts of this user", max: contacts_max });
    }
    let named = |binding: &Binding| contacts.iter().any(|contact| contact.names(binding));
    bindings.iter().filter(|binding| named(binding)).try_for_each(|binding| in_order(binding, origin))?;

    for contact in contacts {
        bindings.retain(|binding| !contact.names(binding));
        if contact.expires_s > 0 {
            bindings.push(Binding {
                uri: contact.uri.clone(),
                flow: origin.flow,
                is_direct: origin.is_direct,
                path: origin.path.clone(),
                instance: contact.instance.clone(),
                q: contact.q,
                call_id: origin.call_id.clone(),
                cseq: origin.cseq,
                until_ms: now_ms + i64::from(contact.expires_s) * 1_000,
            });
        }
    }
    while bindings.len() > contacts_max {
        let others = bindings.iter().enumerate().filter(|(_, binding)| !is_of(binding, origin));
        let first = others.min_by_key(|(_, binding)| binding.until_ms).map_or(0, |(index, _)| index);
        bindings.remove(first);
    }
    Ok(())
}

/// Made by this very request.
fn is_of(binding: &Binding, origin: &Origin) -> bool {
    binding.call_id == origin.call_id && binding.cseq == origin.cseq
}

fn in_order(binding: &Binding, origin: &Origin) -> Result<(), Objection> {
    if binding.call_id == origin.call_id && origin.cseq <= binding.cseq {
        return Err(Objection::OutOfOrder { last: binding.cseq, got: origin.cseq });
    }
    Ok(())
}

/// The value of a binding's Contact in a 200: with the seconds that it has left.
pub fn contact_value(binding: &Binding, now_ms: i64) -> String {
    let left_ms = u64::try_from(binding.until_ms - now_ms).unwrap_or_default();
    let mut out = format!("<{}>;expires={}", binding.uri.as_str(), left_ms.div_ceil(1_000));
    if binding.q != Q_DEFAULT {
        out += &format!(";q=0.{:03}", binding.q);
    }
    if let Some(Instance { id, reg_id }) = &binding.instance {
        let id: String = id.chars().filter(|c| !c.is_control() && !matches!(c, '"' | '\\')).collect();
        out += &format!(";+sip.instance=\"{id}\"");
        if *reg_id != 0 {
            out += &format!(";reg-id={reg_id}");
        }
    }
    out
}

#[cfg(test)]
pub(in crate::registration) mod tests;
