//! Registrar for phones (RFC 3261 §10.3): who has proved to be a user binds its contacts, and calls find them.
//!
//! ```text
//!   REGISTER ──auth.rs──▶ user ──▶ binding.rs ──▶ store ──▶ 200 with all contacts
//!   connection gone ─────────────▶ the bindings that came by it end
//!   a call to the user ──▶ Locator::contacts ──▶ where to send it, best first
//! ```
//!
//! One registrar has one domain: the host of To is not looked at, so that a phone may be set up with any name or address
//! of ours. Answering is one step from reading to storing; no state is kept of a request that is refused.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tandem_sip::{ConnectionId, Flow, HeaderName, NameAddr, Reply, Request, Transport, Uri};

use super::binding::{self, Binding, Lifetimes, Objection, Origin, Wish};
use super::store::{BindingError, BindingStore};

/// Seconds in the Retry-After of a 503 when the store does not answer.
const RETRY_AFTER_STORE_S: u32 = 10;

/// See the module.
#[derive(Debug)]
pub struct Registrar<S> {
    store: Arc<S>,
    lifetimes: Lifetimes,
    /// Users with a binding that came by this connection: as many entries as there are connections, each with its users.
    by_connection: HashMap<ConnectionId, HashSet<Arc<str>>>,
}

/// What became of a REGISTER.
#[derive(Debug)]
pub struct Outcome {
    /// The answer.
    pub reply: Reply,
    /// In a word, for counters.
    pub word: &'static str,
    /// The user's contacts after it, when their number has changed: for a log line.
    pub changed: Option<usize>,
}

impl<S: BindingStore> Registrar<S> {
    /// A registrar over this store.
    pub fn new(store: Arc<S>, lifetimes: Lifetimes) -> Self {
        Self { store, lifetimes, by_connection: HashMap::new() }
    }

    /// For those who call users.
    pub fn locator(&self) -> Locator<S> {
        Locator { store: self.store.clone() }
    }

    /// Carries out a REGISTER whose sender has proved to be this user.
    pub async fn register(
        &mut self,
        user: &Arc<str>,
        contacts_max: usize,
        request: &Request,
        flow: Flow,
        now_ms: i64,
    ) -> Outcome {
        let done = match self.read(request, flow) {
            Ok((wish, origin)) => {
                let apply = |bindings: &mut Vec<Binding>| {
                    let before = bindings.len();
                    binding::apply(bindings, &wish, &origin, contacts_max.max(1), now_ms)?;
                    Ok::<_, Objection>((before, bindings.clone()))
                };
                self.store.update(user, apply).await
            }
            Err(objection) => Ok(Err(objection)),
        };
        match done {
            Ok(Ok((before, bindings))) => {
                self.note_connection(user, flow, &bindings);
                let changed = (before != bindings.len()).then_some(bindings.len());
                Outcome { reply: granted(request, &bindings, now_ms), word: "granted", changed }
            }
            Ok(Err(objection)) => {
                Outcome { reply: refused(&objection), word: objection.word(), changed: None }
            }
            Err(error) => {
                tracing::warn!(%error, "a phone could not be registered");
                Outcome {
                    reply: Reply::new(503).retry_after_s(RETRY_AFTER_STORE_S),
                    word: "store",
                    changed: None,
                }
            }
        }
    }

    fn read(&self, request: &Request, flow: Flow) -> Result<(Wish, Origin), Objection> {
        let origin = Origin::read(request, flow)?;
        let is_udp = flow.transport == Transport::Udp;
        let is_natted_udp = is_udp && origin.is_direct && request.head.via().is_natted(flow.remote);
        Ok((Wish::read(request, &self.lifetimes, is_natted_udp)?, origin))
    }

    fn note_connection(&mut self, user: &Arc<str>, flow: Flow, bindings: &[Binding]) {
        let Some(connection) = flow.connection else { return };
        if bindings.iter().any(|binding| binding.flow.connection == Some(connection)) {
            self.by_connection.entry(connection).or_default().insert(user.clone());
        }
    }

    /// A connection is gone: nobody can be reached by it any more. Gives the users who have lost a contact.
    pub async fn handle_closed(&mut self, connection: ConnectionId) -> Result<Vec<Arc<str>>, BindingError> {
        let mut losers = Vec::new();
        for user in self.by_connection.remove(&connection).unwrap_or_default() {
            let drop = |bindings: &mut Vec<Binding>| {
                let before = bindings.len();
                // What came through a proxy with a Path is reached by that Path, whichever connection it takes.
                bindings.retain(|binding| {
                    binding.flow.connection != Some(connection) || !binding.path.is_empty()
                });
                before != bindings.len()
            };
            if self.store.update(&user, drop).await? {
                losers.push(user);
            }
        }
        Ok(losers)
    }
}

/// 200 with every contact of the user, those of other phones too (RFC 3261 §10.3, step 8).
fn granted(request: &Request, bindings: &[Binding], now_ms: i64) -> Reply {
    let mut reply = Reply::new(200);
    for binding in bindings {
        reply = with(reply, "Contact", &binding::contact_value(binding, now_ms));
    }
    if request.head.lists(HeaderName::Supported, "path") {
        let lines = request.head.headers().iter().filter(|(name, _)| name.eq_ignore_ascii_case("path"));
        for value in lines.filter_map(|(_, value)| std::str::from_utf8(value).ok()) {
            reply = with(reply, "Path", value);
        }
    }
    match date(now_ms) {
        Some(date) => with(reply, "Date", &date),
        None => reply,
    }
}

fn refused(objection: &Objection) -> Reply {
    let reply = Reply::new(objection.status());
    match objection {
        Objection::TooBrief { min_s, .. } => with(reply, "Min-Expires", &min_s.to_string()),
        Objection::Malformed(_) | Objection::Wildcard => reply.reason(&format!("Bad Request: {objection}")),
        Objection::TooMany { .. } => reply.reason(&format!("Forbidden: {objection}")),
        Objection::OutOfOrder { .. } => reply,
    }
}

/// One more header of what has been read already. What a header may not hold is left out.
fn with(reply: Reply, name: &str, value: &str) -> Reply {
    let plain = reply.clone();
    reply.header(name, value).unwrap_or(plain)
}

/// As RFC 3261 §20.17 wants it: `Sat, 13 Nov 2010 23:29:00 GMT`.
fn date(now_ms: i64) -> Option<String> {
    const FORMAT: &[time::format_description::BorrowedFormatItem<'_>] = time::macros::format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    time::OffsetDateTime::from_unix_timestamp(now_ms / 1_000).ok()?.format(&FORMAT).ok()
}

/// Where a call to one phone goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Location {
    /// The Request-URI.
    pub target: Uri,
    /// Route headers, the nearest first.
    pub route: Vec<NameAddr>,
    /// The way the phone came by, when nothing needs to be resolved.
    pub flow: Option<Flow>,
    /// Preference in thousandths.
    pub q: u16,
}

impl Location {
    fn of(binding: Binding) -> Self {
        // A phone that came by itself is reached by the same way, NAT or not. Behind proxies the Path leads to it, and
        // without a Path its Contact must do.
        let flow = (binding.is_direct && binding.path.is_empty()).then_some(binding.flow);
        Self { target: binding.uri, route: binding.path, flow, q: binding.q }
    }

    /// The URI of the next hop.
    pub fn next_hop(&self) -> &Uri {
        self.route.first().map_or(&self.target, |route| &route.uri)
    }
}

/// Finds the phones of a user. Cheap to clone.
#[derive(Debug)]
pub struct Locator<S> {
    store: Arc<S>,
}

impl<S> Clone for Locator<S> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone() }
    }
}

impl<S: BindingStore> Locator<S> {
    /// Where this user can be called now: higher q first, of equals the one that registered last. Empty: nowhere.
    pub async fn contacts(&self, user: &str, now_ms: i64) -> Result<Vec<Location>, BindingError> {
        let mut bindings = self.store.read(user).await?;
        bindings.retain(|binding| now_ms < binding.until_ms);
        bindings.reverse();
        bindings.sort_by_key(|binding| std::cmp::Reverse(binding.q));
        Ok(bindings.into_iter().map(Location::of).collect())
    }

    /// How many users and contacts there are.
    pub async fn count(&self) -> Result<(usize, usize), BindingError> {
        self.store.count().await
    }
}

#[cfg(test)]
mod tests {
    use super::super::binding::tests::{request, request_of};
    use super::super::store::EmbeddedBindings;
    use super::*;

    const NOW_MS: i64 = 1_800_000_000_000;

    fn registrar() -> Registrar<EmbeddedBindings> {
        Registrar::new(Arc::default(), Lifetimes::default())
    }

    fn udp() -> Flow {
        Flow::udp(([127, 0, 0, 1], 4573).into(), ([192, 0, 2, 9], 4000).into())
    }

    fn tcp(id: u64) -> Flow {
        let remote = ([192, 0, 2, 9], 40_000 + id as u16).into();
        Flow::connected(Transport::Tcp, ([127, 0, 0, 1], 4573).into(), remote, ConnectionId(id))
    }

    async fn register(registrar: &mut Registrar<EmbeddedBindings>, headers: &str, flow: Flow) -> Outcome {
        registrar.register(&"anna".into(), 4, &request(headers), flow, NOW_MS).await
    }

    fn headers(outcome: &Outcome) -> String {
        format!("{:?}", outcome.reply)
    }

    #[tokio::test]
    async fn phone_is_found_by_the_way_it_came() {
        let mut registrar = registrar();
        let outcome = register(&mut registrar, "Contact: <sip:anna@10.0.0.9:5060>\r\n", udp()).await;
        assert_eq!((outcome.reply.status(), outcome.word, outcome.changed), (200, "granted", Some(1)));
        let found = registrar.locator().contacts("anna", NOW_MS).await.unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].target.as_str(), "sip:anna@10.0.0.9:5060");
        assert_eq!(found[0].flow, Some(udp()));
        assert!(registrar.locator().contacts("ben", NOW_MS).await.unwrap().is_empty());
        // It is behind a NAT: its binding is short, and ends.
        assert!(registrar.locator().contacts("anna", NOW_MS + 60_000).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn better_contact_is_called_first_and_of_equals_the_later_one() {
        let mut registrar = registrar();
        let list = "Contact: <sip:a@h>;q=0.2, <sip:b@h>, <sip:c@h>\r\n";
        register(&mut registrar, list, udp()).await;
        let found = registrar.locator().contacts("anna", NOW_MS).await.unwrap();
        let targets: Vec<&str> = found.iter().map(|location| location.target.as_str()).collect();
        assert_eq!(targets, ["sip:c@h", "sip:b@h", "sip:a@h"]);
    }

    #[tokio::test]
    async fn bindings_die_with_their_connection() {
        let mut registrar = registrar();
        register(&mut registrar, "Contact: <sip:a@h;transport=tcp>\r\n", tcp(1)).await;
        let other = request("Contact: <sip:b@h;transport=tcp>\r\n");
        registrar.register(&"ben".into(), 4, &other, tcp(2), NOW_MS).await;
        assert_eq!(registrar.handle_closed(ConnectionId(1)).await.unwrap(), [Arc::<str>::from("anna")]);
        assert!(registrar.locator().contacts("anna", NOW_MS).await.unwrap().is_empty());
        assert_eq!(registrar.locator().contacts("ben", NOW_MS).await.unwrap().len(), 1);
        assert!(registrar.handle_closed(ConnectionId(1)).await.unwrap().is_empty());
        assert_eq!(registrar.locator().count().await.unwrap(), (1, 1));
    }

    #[tokio::test]
    async fn phone_behind_a_proxy_is_reached_by_its_path() {
        let mut registrar = registrar();
        let headers_in = "Via: SIP/2.0/TCP 10.0.0.1;branch=z9hG4bK2\r\nSupported: path\r\nPath: <sip:edge.example;lr>\r\n\
                          Contact: <sip:a@10.0.0.9>\r\n";
        let outcome = register(&mut registrar, headers_in, tcp(1)).await;
        assert!(headers(&outcome).contains("\"Path\""), "{}", headers(&outcome));
        let found = registrar.locator().contacts("anna", NOW_MS).await.unwrap();
        assert_eq!((found[0].flow, found[0].next_hop().as_str()), (None, "sip:edge.example;lr"));
        registrar.handle_closed(ConnectionId(1)).await.unwrap();
        assert_eq!(registrar.locator().contacts("anna", NOW_MS).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn refusal_says_what_would_be_right_and_changes_nothing() {
        let mut registrar = registrar();
        let brief = register(&mut registrar, "Contact: <sip:a@h>;expires=5\r\n", udp()).await;
        assert_eq!((brief.reply.status(), brief.word), (423, "too_brief"));
        assert!(headers(&brief).contains("Min-Expires"), "{}", headers(&brief));
        let wild = register(&mut registrar, "Contact: *\r\n", udp()).await;
        assert_eq!((wild.reply.status(), wild.word), (400, "wildcard"));
        assert_eq!(registrar.locator().count().await.unwrap(), (0, 0));
    }

    #[tokio::test]
    async fn query_lists_and_wildcard_removes() {
        let mut registrar = registrar();
        register(&mut registrar, "Contact: <sip:a@h>, <sip:b@h>\r\n", udp()).await;
        let query = register(&mut registrar, "", udp()).await;
        assert_eq!(headers(&query).matches("\"Contact\"").count(), 2, "{}", headers(&query));
        // Of the same Call-ID and CSeq: a copy. Removing needs a newer one.
        let copy = register(&mut registrar, "Contact: *\r\nExpires: 0\r\n", udp()).await;
        assert_eq!(copy.reply.status(), 500);
        let newer = request_of("c1", 8, "Contact: *\r\nExpires: 0\r\n");
        let gone = registrar.register(&"anna".into(), 4, &newer, udp(), NOW_MS).await;
        assert_eq!((gone.reply.status(), gone.changed), (200, Some(0)));
    }

    #[test]
    fn date_is_of_the_rfcs_form() {
        assert_eq!(date(1_289_690_940_000).as_deref(), Some("Sat, 13 Nov 2010 23:29:00 GMT"));
    }
}
