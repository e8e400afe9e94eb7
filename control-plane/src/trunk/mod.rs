//! Who may call us and whom we may call: trunks to carriers and PBXs, and phones, as tandem.toml names them.
//!
//! ```text
//!   [[trunk]]  ──▶ Trunk { credential.rs  how it is reached, and with which digest (REGISTER, INVITE, OPTIONS)
//!                          inbound.rs     sources that are let in; numbers and their assistants; limits
//!                          outbound.rs    who we say we are; limits; ringing, redirects, early media
//!                          policy.rs      registration, health, transfer, header passing, timers, addresses }
//!   [[phone]]  ──▶ Phone
//!                  Trunks: found by name, by source, by user; cheap to clone, never changed after the start
//! ```
//!
//! Plain values without behaviour of their own: registration, placing of calls and admission read them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use secrecy::SecretString;
use tandem_audio::format::Codec;

pub mod bucket;
pub mod credential;
pub mod file;
pub mod guard;
pub mod health;
pub mod inbound;
pub mod lru;
pub mod outbound;
pub mod policy;
pub mod tries;

use crate::sip::TlsPeer;
pub use credential::SipCredential;
pub use inbound::{DidPattern, DidSource, Inbound, Route};
pub use outbound::{NumberFormat, Outbound, Redirects, Template, TemplateValues};

pub use policy::{
    Addresses, HeaderRules, Health, HoldOffer, Latching, ReferIn, Registration, Reliable, SessionTimer,
    SrtpRules, TlsIdentity, TransferPolicy,
};

/// A carrier, a PBX or another SIP server, and everything that is agreed with it.
#[derive(Debug, Clone, Default)]
pub struct Trunk {
    /// Unique; in logs, metrics, and what `tandem trunk` and the API call it.
    pub name: Arc<str>,
    /// Whose trunk it is: its calls are this tenant's.
    pub tenant_id: Arc<str>,
    /// How it is reached and what it knows us by.
    pub credential: SipCredential,
    /// Calls from it.
    pub inbound: Inbound,
    /// Calls to it.
    pub outbound: Outbound,
    /// Whether and how we register with it.
    pub registration: Registration,
    /// How we find out that it is there.
    pub health: Health,
    /// Who may transfer calls, and to where.
    pub transfer: TransferPolicy,
    /// Which headers an agent sees and may set.
    pub headers: HeaderRules,
    /// Session timer of its calls (RFC 4028), both directions; `None`: we answer a peer's wish and have none of our own.
    pub session_timer: Option<SessionTimer>,
    /// Reliable provisional responses (RFC 3262) on its calls, both directions.
    pub reliable: Reliable,
    /// What our offer says that puts it on hold.
    pub hold: HoldOffer,
    /// Whether the keys of an agent go by SIP INFO when the trunk has not agreed on telephone-events.
    pub is_dtmf_by_info: bool,
    /// Whether the sound is protected.
    pub srtp: SrtpRules,
    /// Whether keys are looked for in its callers' sound: for peers that send them no other way.
    pub is_dtmf_inband: bool,
    /// How the source of its calls' RTP is trusted.
    pub latching: Latching,
    /// Codecs that are offered to it, best first, and the only ones that are answered; empty: G.711 is offered, and all we
    /// know is answered in the offerer's order.
    pub codecs: Vec<Codec>,
    /// Which addresses and which certificate it sees of us.
    pub addresses: Addresses,
}

/// A telephone (or softphone) that registers with us and may call.
#[derive(Debug, Clone)]
pub struct Phone {
    /// Unique; the user of its address of record and of its digest.
    pub user: Arc<str>,
    /// What its digest is made of.
    pub password: SecretString,
    /// Whose phone it is.
    pub tenant_id: Arc<str>,
    /// Whom it reaches when it dials no other phone's user. `None`: the dialled user names an assistant of its tenant.
    pub assistant_id: Option<Arc<str>>,
    /// Contacts that may be registered at once; one more pushes the oldest out.
    pub contacts_max: usize,
    /// Whether calls to it are protected.
    pub srtp: SrtpRules,
}

/// Contacts of a phone when nobody says: a desk phone, a softphone, and one that has forgotten to unregister.
pub const CONTACTS_MAX_DEFAULT: usize = 4;

impl Default for Phone {
    fn default() -> Self {
        Self {
            user: Arc::default(),
            password: SecretString::default(),
            tenant_id: Arc::default(),
            assistant_id: None,
            contacts_max: CONTACTS_MAX_DEFAULT,
            srtp: SrtpRules::default(),
        }
    }
}

/// All trunks and phones. Cheap to clone; the same from start to end.
#[derive(Debug, Clone, Default)]
pub struct Trunks(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    trunks: Vec<Arc<Trunk>>,
    by_name: HashMap<Arc<str>, Arc<Trunk>>,
    phones: HashMap<Arc<str>, Arc<Phone>>,
}

impl Trunks {
    /// Puts them together; of two with the same name the first is kept (the configuration refuses doubles).
    pub fn new(trunks: impl IntoIterator<Item = Trunk>, phones: impl IntoIterator<Item = Phone>) -> Self {
        let mut inner = Inner::default();
        for trunk in trunks.into_iter().map(Arc::new) {
            if !inner.by_name.contains_key(&trunk.name) {
                inner.by_name.insert(trunk.name.clone(), trunk.clone());
                inner.trunks.push(trunk);
            }
        }
        for phone in phones.into_iter().map(Arc::new) {
            inner.phones.entry(phone.user.clone()).or_insert(phone);
        }
        Self(Arc::new(inner))
    }

    /// All trunks, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Trunk>> {
        self.0.trunks.iter()
    }

    /// All phones, in no order.
    pub fn phones(&self) -> impl Iterator<Item = &Arc<Phone>> {
        self.0.phones.values()
    }

    /// The trunk of this name.
    pub fn find(&self, name: &str) -> Option<&Arc<Trunk>> {
        self.0.by_name.get(name)
    }

    /// Trunks that let this source in, in the file's order: by its address, or by one of the names in a client certificate
    /// that the trunk's own authority has signed.
    pub fn find_by_source<'a>(
        &'a self,
        ip: IpAddr,
        peer: Option<&'a TlsPeer>,
    ) -> impl Iterator<Item = &'a Arc<Trunk>> {
        self.0.trunks.iter().filter(move |trunk| {
            let names = peer.map(|peer| peer.names_for(&trunk.name)).unwrap_or_default();
            trunk.inbound.admits(ip, names)
        })
    }

    /// The phone of this user.
    pub fn find_phone(&self, user: &str) -> Option<&Arc<Phone>> {
        self.0.phones.get(user)
    }

    /// Every assistant that a number or a phone leads to: who names it, its tenant, and its id.
    pub fn assistants(&self) -> Vec<(String, Arc<str>, Arc<str>)> {
        let mut all = Vec::new();
        for trunk in self.iter() {
            for route in &trunk.inbound.routes {
                let owner = format!("trunk {}, number {}", trunk.name, route.did);
                all.push((owner, trunk.tenant_id.clone(), route.assistant_id.clone()));
            }
        }
        for phone in self.phones() {
            if let Some(assistant_id) = &phone.assistant_id {
                all.push((format!("phone {}", phone.user), phone.tenant_id.clone(), assistant_id.clone()));
            }
        }
        all
    }

    /// Neither trunk nor phone.
    pub fn is_empty(&self) -> bool {
        self.0.trunks.is_empty() && self.0.phones.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trunk(name: &str, allow: &str) -> Trunk {
        let inbound = Inbound { allow: vec![allow.parse().unwrap()], ..Inbound::default() };
        Trunk { name: name.into(), tenant_id: "t1".into(), inbound, ..Trunk::default() }
    }

    #[test]
    fn trunks_are_found_by_name_and_by_source_in_the_files_order() {
        let trunks = Trunks::new([trunk("a", "192.0.2.0/24"), trunk("b", "192.0.2.7/32")], []);
        assert_eq!(&*trunks.find("b").unwrap().name, "b");
        let names = |ip: &str| -> Vec<String> {
            let ip = ip.parse().unwrap();
            trunks.find_by_source(ip, None).map(|trunk| trunk.name.to_string()).collect()
        };
        assert_eq!(names("192.0.2.7"), ["a", "b"]);
        assert_eq!(names("192.0.2.8"), ["a"]);
        assert!(names("198.51.100.1").is_empty());
    }

    #[test]
    fn name_in_a_certificate_counts_only_where_its_authority_is_believed() {
        let mut trunk = trunk("a", "192.0.2.0/24");
        trunk.inbound.tls_client = vec!["sbc.carrier.example".into()];
        let trunks = Trunks::new([trunk], []);
        let stranger = "198.51.100.1".parse().unwrap();
        let peer = |vouched: &str| TlsPeer {
            names: vec!["sbc.carrier.example".into()],
            trunks: vec![vouched.into()],
        };
        assert_eq!(trunks.find_by_source(stranger, Some(&peer("a"))).count(), 1);
        assert_eq!(trunks.find_by_source(stranger, Some(&peer("b"))).count(), 0, "another trunk's authority");
    }

    #[test]
    fn phone_is_found_by_its_user_and_shows_no_password() {
        let phone = Phone { user: "200".into(), password: "hunter2".into(), ..Phone::default() };
        let trunks = Trunks::new([], [phone]);
        assert!(trunks.find_phone("200").is_some() && trunks.find_phone("201").is_none());
        assert!(!format!("{trunks:?}").contains("hunter2"));
    }
}
