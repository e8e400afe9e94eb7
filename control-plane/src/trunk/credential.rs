//! What a trunk knows us by: one struct serves REGISTER, digest answers and outbound calls.

use secrecy::{ExposeSecret, SecretString};
use tandem_sip::Uri;
use tandem_sip::digest::Credentials;

/// A trunk's credential, field by field as people fill it in. Everything but the URI may be left out.
#[derive(Debug, Clone, Default)]
pub struct SipCredential {
    /// The trunk: host, port, transport, and (as user) our account there. `None`: it only calls us.
    pub sip_uri: Option<Uri>,
    /// Host and port that requests go to instead of those in `sip_uri` (an outbound proxy or SBC). A `transport` of its
    /// own overrides that of `sip_uri` too.
    pub sip_server: Option<Uri>,
    /// User of the digest, and of From when nothing else says; `None`: the user of `sip_uri`.
    pub sip_username: Option<String>,
    /// Password of the digest; `None`: the trunk knows us by our address or certificate.
    pub sip_password: Option<SecretString>,
    /// The only realm that is answered; `None`: any, since the challenge comes from whom we have asked.
    pub sip_realm: Option<String>,
    /// Host in our From and in the address of record; `None`: the host of `sip_uri`.
    pub sip_domain: Option<String>,
    /// Headers that every request to this trunk carries: name and value.
    pub sip_headers: Vec<(String, String)>,
}

impl SipCredential {
    /// Where requests go: `sip_uri` without user and password, with the host, port and transport of `sip_server` when
    /// there is one. To be resolved as RFC 3263 says. `None`: the trunk only calls us.
    pub fn next_hop(&self) -> Option<Uri> {
        let uri = self.sip_uri.as_ref()?;
        let place = self.sip_server.as_ref().unwrap_or(uri);
        let scheme = if uri.as_str().starts_with("sips:") { "sips" } else { "sip" };
        let port = place.port().map(|port| format!(":{port}")).unwrap_or_default();
        let transport = place.param("transport").or_else(|| uri.param("transport"));
        let transport = transport.map(|name| format!(";transport={name}")).unwrap_or_default();
        Uri::parse(&format!("{scheme}:{}{port}{transport}", place.host())).ok()
    }

    /// Whether requests go there through TLS.
    pub fn is_private(&self) -> bool {
        self.next_hop().is_some_and(|uri| {
            let transport = uri.param("transport");
            let is_tls = |name: &str| ["tls", "wss"].iter().any(|tls| tls.eq_ignore_ascii_case(name));
            uri.as_str().starts_with("sips:") || transport.is_some_and(is_tls)
        })
    }

    /// The user of our account there.
    pub fn user(&self) -> Option<String> {
        let own = self.sip_username.clone();
        own.or_else(|| self.sip_uri.as_ref()?.user().map(std::borrow::Cow::into_owned))
    }

    /// The host of our account there: in From, To of REGISTER, and the Request-URI of a call.
    pub fn domain(&self) -> Option<&str> {
        self.sip_domain.as_deref().or_else(|| self.sip_uri.as_ref().map(Uri::host))
    }

    /// Our address of record there: what a REGISTER binds.
    pub fn address_of_record(&self) -> Option<Uri> {
        let user = self.user()?;
        let domain = self.domain()?;
        Uri::parse(&format!("sip:{}@{domain}", escape_user(&user))).ok()
    }

    /// What a challenge is answered with; `None` without a password.
    pub fn digest(&self) -> Option<Credentials> {
        let password = self.sip_password.as_ref()?.expose_secret().to_owned();
        Some(Credentials { realm: self.sip_realm.clone(), ..Credentials::new(self.user()?, password) })
    }
}

/// A user part with everything escaped that its grammar does not allow (RFC 3261 §25.1).
pub fn escape_user(user: &str) -> String {
    let mut out = String::with_capacity(user.len());
    for octet in user.bytes() {
        if octet.is_ascii_alphanumeric() || b"-_.!~*'()&=+$,;?/".contains(&octet) {
            out.push(char::from(octet));
        } else {
            out.push_str(&format!("%{octet:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential(uri: &str, server: Option<&str>) -> SipCredential {
        SipCredential {
            sip_uri: Some(Uri::parse(uri).unwrap()),
            sip_server: server.map(|server| Uri::parse(server).unwrap()),
            ..SipCredential::default()
        }
    }

    #[test]
    fn server_overrides_host_and_port_and_keeps_the_rest() {
        let hop = |uri, server| credential(uri, server).next_hop().unwrap().as_str().to_owned();
        assert_eq!(hop("sip:42@carrier.example;transport=tls", None), "sip:carrier.example;transport=tls");
        assert_eq!(
            hop("sip:42@carrier.example:5080;transport=tls", Some("sip:sbc.example")),
            "sip:sbc.example;transport=tls"
        );
        assert_eq!(
            hop("sip:42@carrier.example", Some("sip:192.0.2.7:5070;transport=tcp")),
            "sip:192.0.2.7:5070;transport=tcp"
        );
        assert_eq!(hop("sips:42@carrier.example", Some("sip:[2001:db8::1]:5061")), "sips:[2001:db8::1]:5061");
        assert!(SipCredential::default().next_hop().is_none());
    }

    #[test]
    fn account_is_the_username_at_the_domain_and_both_have_defaults() {
        let plain = credential("sip:42@carrier.example:5080", Some("sip:sbc.example"));
        assert_eq!(plain.address_of_record().unwrap().as_str(), "sip:42@carrier.example");
        let named = SipCredential {
            sip_username: Some("a b".into()),
            sip_domain: Some("ims.example".into()),
            ..credential("sip:carrier.example", None)
        };
        assert_eq!(named.address_of_record().unwrap().as_str(), "sip:a%20b@ims.example");
        assert!(credential("sip:carrier.example", None).address_of_record().is_none());
    }

    #[test]
    fn digest_needs_a_password_and_shows_none() {
        let mut credential = credential("sip:42@carrier.example", None);
        assert!(credential.digest().is_none());
        credential.sip_password = Some("hunter2".into());
        assert_eq!(credential.digest().unwrap().username, "42");
        assert!(!format!("{credential:?}").contains("hunter2"));
        let answers = |credential: &SipCredential, realm: &str| credential.digest().unwrap().answers(realm);
        assert!(answers(&credential, "anything"));
        credential.sip_realm = Some("carrier".into());
        assert!(answers(&credential, "carrier") && !answers(&credential, "Carrier"));
    }
}
