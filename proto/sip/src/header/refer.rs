//! Who is to be called instead, and which dialog that call takes over: Refer-To (RFC 3515) and Replaces (RFC 3891).
//!
//! ```text
//!   REFER … Refer-To: <sip:carol@c.example?Replaces=cid%3Bto-tag%3D7%3Bfrom-tag%3D6>
//!                ──▶ INVITE sip:carol@c.example … Replaces: cid;to-tag=7;from-tag=6
//! ```

use super::{NameAddr, Params, ValueError};
use crate::grammar;
use crate::uri::Uri;

/// Refer-To.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferTo {
    /// Whom to call: without the headers that its URI carried.
    pub target: NameAddr,
    /// The dialog at the target that the new call replaces (attended transfer).
    pub replaces: Option<Replaces>,
}

impl ReferTo {
    /// A blind transfer to this URI.
    pub fn blind(target: Uri) -> ReferTo {
        ReferTo { target: NameAddr::new(target.without_headers()), replaces: None }
    }

    /// An attended transfer: the peer of the dialog that `replaces` names is called at `target`.
    pub fn attended(target: Uri, replaces: Replaces) -> ReferTo {
        ReferTo { replaces: Some(replaces), ..ReferTo::blind(target) }
    }

    /// Reads a field's value. Embedded headers other than Replaces are dropped: they would be the referrer's words in
    /// our request.
    pub fn parse(text: &str) -> Result<ReferTo, ValueError> {
        let addr = NameAddr::parse(text)?;
        let mut replaces = None;
        for (name, value) in embedded_headers(&addr.uri) {
            if grammar::unescape(name).eq_ignore_ascii_case("Replaces") {
                if replaces.is_some() {
                    return Err(ValueError::Replaces);
                }
                replaces = Some(Replaces::parse(&grammar::unescape(value))?);
            }
        }
        let target = NameAddr { uri: addr.uri.without_headers(), ..addr };
        Ok(ReferTo { target, replaces })
    }

    /// As it goes on the wire, **with a password if the target has one**.
    pub fn to_wire(&self) -> String {
        let Some(replaces) = &self.replaces else { return self.target.to_wire() };
        let mut bare = NameAddr { params: Params::default(), ..self.target.clone() }.to_wire();
        bare.pop();
        bare.push_str("?Replaces=");
        bare.push_str(&grammar::escape_uri_header(&replaces.to_wire()));
        bare.push('>');
        bare.push_str(self.target.params.as_str());
        bare
    }
}

/// The headers after a URI's `?`, still escaped.
pub(crate) fn embedded_headers(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    let pairs = uri.headers().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

/// Replaces: a dialog as the receiver of the INVITE knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaces {
    /// Call-ID.
    pub call_id: Box<str>,
    /// The receiver's own tag.
    pub to_tag: Box<str>,
    /// The tag of its peer.
    pub from_tag: Box<str>,
    /// Only an unanswered call may be replaced.
    pub early_only: bool,
}

impl Replaces {
    /// Reads a field's value: one dialog, each tag once. A tag `0` stands for none (RFC 3891 §6.1).
    pub fn parse(text: &str) -> Result<Replaces, ValueError> {
        let end = text.find(';').unwrap_or(text.len());
        let call_id = grammar::trim(&text[..end]);
        if call_id.is_empty() || !call_id.bytes().all(|b| grammar::is_word(b) || b == b'@') {
            return Err(ValueError::Replaces);
        }
        let params = Params::parse(&text[end..])?;
        let tag = |name: &str| {
            let mut values = params.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
            match (values.next(), values.next()) {
                (Some((_, "0")), None) => Ok("".into()),
                (Some((_, value)), None) if !value.is_empty() => Ok(value.into()),
                _ => Err(ValueError::Replaces),
            }
        };
        Ok(Replaces {
            call_id: call_id.into(),
            to_tag: tag("to-tag")?,
            from_tag: tag("from-tag")?,
            early_only: params.get("early-only").is_some(),
        })
    }

    /// As it goes on the wire.
    pub fn to_wire(&self) -> String {
        let tag = |tag: &str| if tag.is_empty() { "0".to_owned() } else { tag.to_owned() };
        let early_only = if self.early_only { ";early-only" } else { "" };
        format!("{};to-tag={};from-tag={}{early_only}", self.call_id, tag(&self.to_tag), tag(&self.from_tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blind_target_is_read_with_and_without_brackets() {
        for text in ["sip:carol@c.example", "<sip:carol@c.example>", "Carol <sip:carol@c.example?Subject=hi>"]
        {
            let refer = ReferTo::parse(text).unwrap();
            assert_eq!(
                (refer.target.uri.as_str(), &refer.replaces),
                ("sip:carol@c.example", &None),
                "{text}"
            );
        }
    }

    #[test]
    fn embedded_replaces_is_unescaped_and_written_back() {
        let text = "<sip:carol@c.example;transport=tcp?Replaces=090459243588173445%40192.0.2.9%3Bto-tag%3D7-x%3Bfrom-tag%3D6>;x=1";
        let refer = ReferTo::parse(text).unwrap();
        let replaces = refer.replaces.as_ref().unwrap();
        assert_eq!(
            (&*replaces.call_id, &*replaces.to_tag, &*replaces.from_tag, replaces.early_only),
            ("090459243588173445@192.0.2.9", "7-x", "6", false)
        );
        assert_eq!(refer.target.uri.as_str(), "sip:carol@c.example;transport=tcp");
        assert_eq!(refer.to_wire(), text);
    }

    #[test]
    fn replaces_needs_each_tag_once() {
        let full = Replaces::parse("98732@sip.example.com ;from-tag=r33 ;to-tag=ff8;early-only").unwrap();
        assert_eq!(full.to_wire(), "98732@sip.example.com;to-tag=ff8;from-tag=r33;early-only");
        assert_eq!(Replaces::parse("c;to-tag=0;from-tag=1").unwrap().to_tag, "".into());
        for text in [
            "c",
            "c;to-tag=1",
            "c;to-tag=1;from-tag=2;to-tag=3",
            ";to-tag=1;from-tag=2",
            "c;to-tag;from-tag=2",
        ] {
            assert_eq!(Replaces::parse(text), Err(ValueError::Replaces), "{text}");
        }
        assert!(Replaces::parse("c;to-tag=1;from-tag=2,d;to-tag=1;from-tag=2").is_err());
    }

    #[test]
    fn referrer_cannot_smuggle_in_a_second_replaces() {
        let once = "Replaces=c%3Bto-tag%3D1%3Bfrom-tag%3D2";
        assert!(ReferTo::parse(&format!("<sip:a@b?{once}>")).is_ok());
        assert_eq!(ReferTo::parse(&format!("<sip:a@b?{once}&{once}>")), Err(ValueError::Replaces));
    }
}
