//! The Contact list of a registration (RFC 3261 §10.2, §10.3).

use super::{NameAddr, ValueError};
use crate::grammar;
use crate::headers::{HeaderName, Headers};

/// Contacts that are read of one REGISTER or its answer; more are an error.
pub const MAX_CONTACTS: usize = 64;

/// What the Contact fields of a message say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Contacts {
    /// `*`: all bindings, to remove them.
    Star,
    /// Bindings; none in a query.
    List(Vec<Contact>),
}

/// One binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contact {
    /// Address and parameters (`+sip.instance`, `reg-id` …).
    pub addr: NameAddr,
    /// The `expires` parameter in seconds; malformed counts as absent.
    pub expires_s: Option<u32>,
    /// The `q` parameter in thousandths; 1000 if absent or malformed.
    pub priority: u16,
}

impl Contact {
    /// Reads one item.
    pub fn parse(text: &str) -> Result<Contact, ValueError> {
        let addr = NameAddr::parse(text)?;
        let expires_s = addr.params.get("expires").as_deref().and_then(grammar::decimal);
        let priority = addr.params.get("q").as_deref().and_then(thousandths).unwrap_or(1000);
        Ok(Contact { addr, expires_s, priority })
    }
}

impl Contacts {
    /// Reads all Contact fields of a message. `*` must stand alone.
    pub fn parse(headers: &Headers) -> Result<Contacts, ValueError> {
        let mut contacts = Vec::new();
        let mut items = headers.items(HeaderName::Contact);
        while let Some(item) = items.next() {
            if item == "*" {
                let alone = contacts.is_empty() && items.next().is_none();
                return if alone { Ok(Contacts::Star) } else { Err(ValueError::Star) };
            }
            if contacts.len() == MAX_CONTACTS {
                return Err(ValueError::TooMany);
            }
            contacts.push(Contact::parse(item)?);
        }
        Ok(Contacts::List(contacts))
    }

    /// How long a registrar has granted the binding of `uri`, in seconds: its own `expires`, else the message's Expires.
    /// `None`: the binding is not there, or nothing is said.
    pub fn granted_s(&self, uri: &crate::uri::Uri, headers: &Headers) -> Option<u32> {
        let Contacts::List(contacts) = self else { return None };
        let ours = contacts.iter().find(|contact| contact.addr.uri == *uri)?;
        ours.expires_s.or_else(|| headers.get(HeaderName::Expires).and_then(grammar::decimal))
    }
}

/// `0.7` → 700; at most three digits after the point.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let fraction = grammar::decimal(&format!("{fraction:0<3}"))?;
    let value = grammar::decimal(whole).filter(|&whole| whole <= 1)? * 1000 + fraction;
    (value <= 1000).then_some(value as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::uri::Uri;

    fn headers(values: &[&str]) -> Headers {
        let mut headers = Headers::new();
        for value in values {
            headers.push("Contact", value).unwrap();
        }
        headers
    }

    #[test]
    fn expiry_and_priority_of_each_binding_are_read() {
        let mut headers = headers(&["<sip:a@h>;expires=60;q=0.7, sip:b@h;expires=x", "<sip:c@h>;q=1.0"]);
        headers.push("Expires", "3600").unwrap();
        let contacts = Contacts::parse(&headers).unwrap();
        let Contacts::List(list) = &contacts else { panic!() };
        let read: Vec<_> = list.iter().map(|contact| (contact.expires_s, contact.priority)).collect();
        assert_eq!(read, [(Some(60), 700), (None, 1000), (None, 1000)]);
        let granted = |uri: &str| contacts.granted_s(&Uri::parse(uri).unwrap(), &headers);
        assert_eq!(
            [granted("sip:a@h"), granted("sip:b@h"), granted("sip:d@h")],
            [Some(60), Some(3600), None]
        );
    }

    #[test]
    fn star_stands_alone() {
        assert_eq!(Contacts::parse(&headers(&["*"])), Ok(Contacts::Star));
        assert_eq!(Contacts::parse(&headers(&["*", "<sip:a@h>"])), Err(ValueError::Star));
        assert_eq!(Contacts::parse(&headers(&["<sip:a@h>, *"])), Err(ValueError::Star));
        assert_eq!(Contacts::parse(&headers(&[])), Ok(Contacts::List(Vec::new())));
    }

    #[test]
    fn flood_of_contacts_is_refused() {
        let many = vec!["<sip:a@h>"; MAX_CONTACTS + 1];
        assert_eq!(Contacts::parse(&headers(&many)), Err(ValueError::TooMany));
    }

    #[test]
    fn priorities_outside_of_zero_to_one_are_none() {
        assert_eq!(["0", "0.5", "1.000"].map(thousandths), [Some(0), Some(500), Some(1000)]);
        assert_eq!(["1.1", "2", "0.1234", "", ".5", "-1"].map(thousandths), [None; 6]);
    }
}
