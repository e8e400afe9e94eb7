//! What a provider is answered: documents that lead a call's media to an engine, and polite failures.

use std::fmt::Write as _;

use axum::http::StatusCode;
use uuid::Uuid;

/// Where a call's media go, and what goes with it. Its `Debug` does not show the claim, which is live, nor the parameters,
/// which are somebody's.
#[derive(Clone, Copy)]
pub struct MediaPlan<'a> {
    /// `wss://ENGINE/v1/media/{provider}/{contextId}`, without a query.
    pub media_url: &'a str,
    /// The claim: single use, so it is no secret for long.
    pub context_id: Uuid,
    /// Where the provider sends news of the call.
    pub callback_url: &'a str,
    /// Our number: some providers want it for the media leg.
    pub number: &'a str,
    /// Samples a second of the audio, where the provider lets us choose.
    pub sample_rate: u32,
    /// What the provider carries to the media connection for us. What does not fit is left out: our own record of the
    /// call has them all.
    pub parameters: &'a [(String, String)],
}

impl std::fmt::Debug for MediaPlan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MediaPlan")
            .field("media_url", &self.media_url.rsplit_once('/').map_or("", |(place, _)| place))
            .field("callback_url", &self.callback_url)
            .field("number", &self.number)
            .field("sample_rate", &self.sample_rate)
            .field("parameters", &self.parameters.len())
            .finish_non_exhaustive()
    }
}

/// An HTTP response to a provider. Its `Debug` does not show the body, which holds the claim.
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    /// 200 unless it is a failure that the provider should see as one.
    pub status: StatusCode,
    /// Of `Content-Type`; empty: no body.
    pub content_type: &'static str,
    /// The body.
    pub body: String,
    /// Of `Retry-After`, seconds.
    pub retry_after_s: Option<u32>,
    /// Names of parameters that did not fit, for the trace.
    pub left_out: Vec<String>,
}

impl std::fmt::Debug for Document {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Document")
            .field("status", &self.status.as_u16())
            .field("content_type", &self.content_type)
            .field("octets", &self.body.len())
            .field("retry_after_s", &self.retry_after_s)
            .field("left_out", &self.left_out)
            .finish_non_exhaustive()
    }
}

impl Document {
    /// 200 with this body.
    pub fn ok(content_type: &'static str, body: String) -> Self {
        Self { status: StatusCode::OK, content_type, body, retry_after_s: None, left_out: Vec::new() }
    }

    /// 200 and nothing more: the answer to a callback.
    pub fn empty() -> Self {
        Self::ok("", String::new())
    }

    /// 503 with Retry-After and no body: the provider goes on to its fallback, or comes again.
    pub fn unavailable(retry_after_s: u32) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, retry_after_s: Some(retry_after_s), ..Self::empty() }
    }

    /// With the names of what did not fit.
    pub fn without(mut self, left_out: Vec<String>) -> Self {
        self.left_out = left_out;
        self
    }
}

/// Why a call is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decline<'a> {
    /// We are full: the caller hears busy.
    Busy,
    /// Another node, or this one later, may take it: 503 with Retry-After.
    Unavailable {
        /// Seconds.
        retry_after_s: u32,
    },
    /// The caller hears a sentence, then the call ends.
    Say(&'a str),
}

/// Characters of a spoken refusal: some ten seconds.
pub const SPOKEN_MAX: usize = 300;

/// A sentence cut to [`SPOKEN_MAX`].
pub fn spoken(text: &str) -> String {
    text.chars().take(SPOKEN_MAX).collect()
}

/// Writes XML, escaping what must be escaped.
#[derive(Debug)]
pub struct Xml(String);

impl Xml {
    /// With the declaration.
    pub fn new() -> Self {
        Self("<?xml version=\"1.0\" encoding=\"UTF-8\"?>".to_owned())
    }

    /// `<name a="b">`; attributes with empty values are left out.
    pub fn open(&mut self, name: &str, attributes: &[(&str, &str)]) -> &mut Self {
        self.tag(name, attributes);
        self.0.push('>');
        self
    }

    /// `<name a="b"/>`.
    pub fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) -> &mut Self {
        self.tag(name, attributes);
        self.0.push_str("/>");
        self
    }

    /// `</name>`.
    pub fn close(&mut self, name: &str) -> &mut Self {
        let _ = write!(self.0, "</{name}>");
        self
    }

    /// Text between tags.
    pub fn text(&mut self, text: &str) -> &mut Self {
        escape(&mut self.0, text);
        self
    }

    /// The document.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.0)
    }

    fn tag(&mut self, name: &str, attributes: &[(&str, &str)]) {
        let _ = write!(self.0, "<{name}");
        for (key, value) in attributes.iter().filter(|(_, value)| !value.is_empty()) {
            let _ = write!(self.0, " {key}=\"");
            escape(&mut self.0, value);
            self.0.push('"');
        }
    }
}

impl Default for Xml {
    fn default() -> Self {
        Self::new()
    }
}

fn escape(out: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // A parser turns a bare line end in an attribute into a space (XML 1.0 §3.3.3).
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            // Not a character of XML 1.0 (§2.2), not even escaped.
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The plan that providers' tests share.
    pub(in crate::provider) fn plan(parameters: &[(String, String)]) -> MediaPlan<'_> {
        MediaPlan {
            media_url: "wss://m.example.test/v1/media/x/ctx-1",
            context_id: Uuid::from_u128(0x1234),
            callback_url: "https://c.example.test/e?a=1&b=2",
            number: "+14155550199",
            sample_rate: 8_000,
            parameters,
        }
    }

    /// Elements, attributes by name and text of a document, so that order and spelling do not matter.
    pub(in crate::provider) fn outline(xml: &str) -> Vec<String> {
        let parsed = roxmltree::Document::parse(xml).unwrap();
        let elements = parsed.descendants().filter(roxmltree::Node::is_element);
        let outline = elements.map(|node| {
            let mut attributes: Vec<_> =
                node.attributes().map(|a| format!("{}={}", a.name(), a.value())).collect();
            attributes.sort();
            let path: Vec<_> =
                node.ancestors().filter(|a| a.is_element()).map(|a| a.tag_name().name()).collect();
            format!("{} {attributes:?} {:?}", path.join("<"), node.text().unwrap_or_default().trim())
        });
        outline.collect()
    }

    proptest! {
        #[test]
        fn any_text_comes_back_from_a_parser(name in "[^\\p{C}\u{FFFE}\u{FFFF}]{1,40}", text in any::<String>()) {
            let mut xml = Xml::new();
            xml.open("a", &[("name", &name)]).text(&text).close("a");
            let document = xml.finish();
            let parsed = roxmltree::Document::parse(&document).unwrap();
            let root = parsed.root_element();
            prop_assert_eq!(root.attribute("name").unwrap(), name);
            let printable: String = text
                .chars()
                .map(|c| {
                    let is_foreign = (c.is_control() && !"\t\n\r".contains(c)) || "\u{FFFE}\u{FFFF}".contains(c);
                    if is_foreign { '\u{FFFD}' } else { c }
                })
                .collect();
            prop_assert_eq!(root.text().unwrap_or_default(), printable);
        }
    }

    #[test]
    fn debug_shows_no_claim() {
        let parameters = [("pin".to_owned(), "4711".to_owned())];
        let plan = MediaPlan { media_url: "wss://m.example.test/v1/media/x/claim-1", ..plan(&parameters) };
        let body = format!("{} {}", plan.media_url, plan.context_id);
        for shown in [format!("{plan:?}"), format!("{:?}", Document::ok("text/xml", body.clone()))] {
            let is_told =
                ["claim-1", "4711", &plan.context_id.to_string()].iter().any(|it| shown.contains(*it));
            assert!(!is_told, "{shown}");
        }
        assert!(format!("{plan:?}").contains("wss://m.example.test/v1/media/x"));
        assert!(format!("{:?}", Document::ok("text/xml", body)).contains("text/xml"));
    }

    #[test]
    fn unavailable_has_no_body_and_says_when_to_come_again() {
        let document = Document::unavailable(7);
        assert_eq!((document.status.as_u16(), document.retry_after_s), (503, Some(7)));
        assert!(document.body.is_empty() && document.content_type.is_empty());
    }
}
