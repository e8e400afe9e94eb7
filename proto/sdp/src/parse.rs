//! Text to description, over sdp-types (RFC 8866 §5, §9).
//!
//! Carriers and phones break the RFC in ways that harm nobody, and a call should not fail for them. So only the lines that
//! negotiation reads (`v= c= m= a=`) reach the strict parser; `o=` and `s=` are read as far as they can be, other lines are
//! skipped, and order, missing `t=`, blanks at a line's end, bare line feeds and trailing NULs are all forgiven. What remains
//! wrong is an error with the number of its line.

use sdp_types::{ParserError, Session};

use crate::description::{Attribute, Connection, Media, Origin, SessionDescription};

/// Longest body accepted, in octets: a WebRTC offer with many candidates has about 6 000.
pub const BODY_MAX: usize = 16 * 1024;
/// Most `m=` lines accepted.
pub const MEDIA_MAX: usize = 16;

/// A body that is not a session description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Longer than [`BODY_MAX`].
    #[error("session description of {0} octets is longer than {BODY_MAX}")]
    TooLong(usize),
    /// No `v=0` at its beginning.
    #[error("session description does not begin with v=0")]
    Version,
    /// More than [`MEDIA_MAX`] media.
    #[error("session description has {0} media, at most {MEDIA_MAX} are accepted")]
    TooManyMedia(usize),
    /// A line that cannot be read.
    #[error("session description is wrong in line {line}: {what}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

impl SessionDescription {
    /// Reads a body.
    ///
    /// # Errors
    /// [`ParseError`]
    pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
        if body.len() > BODY_MAX {
            return Err(ParseError::TooLong(body.len()));
        }
        let lines: Vec<&[u8]> = body.split(|octet| *octet == b'\n').map(trimmed).collect();
        let session = Session::parse(&essential(&lines)).map_err(|error| line_error(&error))?;
        if session.medias.len() > MEDIA_MAX {
            return Err(ParseError::TooManyMedia(session.medias.len()));
        }
        let media: Vec<Media> = session.medias.into_iter().map(media).collect();
        if let Some(empty) = media.iter().position(|media| media.formats.is_empty()) {
            let mut numbered = (1..).zip(&lines).filter(|(_, line)| line.starts_with(b"m="));
            let line = numbered.nth(empty).map_or(0, |(number, _)| number);
            return Err(ParseError::Line { line, what: "media without a format".to_owned() });
        }
        Ok(SessionDescription {
            origin: value(&lines, b"o=").and_then(|text| origin(&text)),
            name: value(&lines, b"s=").unwrap_or_default(),
            connection: session.connection.map(connection),
            attributes: session.attributes.into_iter().map(attribute).collect(),
            media,
        })
    }
}

impl std::str::FromStr for SessionDescription {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text.as_bytes())
    }
}

/// A line without what some senders leave around it.
fn trimmed(line: &[u8]) -> &[u8] {
    let stray = |octet: &u8| matches!(octet, b' ' | b'\t' | b'\r' | 0);
    let end = line.iter().rposition(|octet| !stray(octet)).map_or(0, |last| last + 1);
    &line[..end]
}

/// The lines that negotiation reads, each in its old place so that line numbers stay true.
fn essential(lines: &[&[u8]]) -> Vec<u8> {
    let mut text = Vec::new();
    let (mut in_media, mut connected) = (false, false);
    for line in lines {
        let keep = match line.first_chunk::<2>() {
            Some(b"m=") => {
                in_media = true;
                true
            }
            // A second c= of the session is superfluous; the first one counts.
            Some(b"c=") if !in_media => !std::mem::replace(&mut connected, true),
            Some([b'o' | b's' | b'i' | b'u' | b'e' | b'p' | b'b' | b't' | b'r' | b'z' | b'k', b'=']) => false,
            _ => true,
        };
        if keep {
            text.extend_from_slice(line);
        }
        text.push(b'\n');
    }
    text
}

/// The first line of this kind before the first media.
fn value(lines: &[&[u8]], key: &[u8]) -> Option<String> {
    let session = lines.iter().take_while(|line| !line.starts_with(b"m="));
    let value = session.filter_map(|line| line.strip_prefix(key)).next()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

fn origin(text: &str) -> Option<Origin> {
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    let [username, session_id, session_version, _nettype, _addrtype, address] = words.as_slice() else {
        return None;
    };
    Some(Origin {
        username: (*username).to_owned(),
        session_id: (*session_id).to_owned(),
        session_version: (*session_version).to_owned(),
        address: (*address).to_owned(),
    })
}

fn connection(connection: sdp_types::Connection) -> Connection {
    match connection.connection_address.parse() {
        Ok(address) => Connection::Address(address),
        Err(_) => Connection::Other(connection.connection_address),
    }
}

fn attribute(attribute: sdp_types::Attribute) -> Attribute {
    Attribute { name: attribute.attribute, value: attribute.value }
}

fn media(media: sdp_types::Media) -> Media {
    Media {
        kind: media.media,
        port: media.port,
        protocol: media.proto,
        formats: media.fmt.split_ascii_whitespace().map(str::to_owned).collect(),
        connection: media.connections.into_iter().next().map(connection),
        attributes: media.attributes.into_iter().map(attribute).collect(),
    }
}

fn line_error(error: &ParserError) -> ParseError {
    let wrong = |line: usize, what: &str| ParseError::Line { line, what: what.to_owned() };
    match error {
        ParserError::NoVersion | ParserError::InvalidVersion(..) => ParseError::Version,
        ParserError::InvalidLineFormat(line, what) => wrong(*line, &what.to_lowercase()),
        ParserError::InvalidFieldEncoding(line, field) => wrong(*line, &format!("{field} is not UTF-8")),
        ParserError::InvalidFieldFormat(line, field) => wrong(*line, &format!("{field} cannot be read")),
        ParserError::MissingField(line, field) => wrong(*line, &format!("{field} is missing")),
        ParserError::FieldTrailingData(line, field) => wrong(*line, &format!("{field} has too many fields")),
        ParserError::MultipleVersions(line) => wrong(*line, "second v="),
        ParserError::MultipleConnections(line) => wrong(*line, "second c="),
        // The lines of the remaining errors never reach the parser.
        other => wrong(0, &other.to_string().to_lowercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn errors_name_the_line() {
        let error = SessionDescription::parse(b"v=0\r\ns=-\r\nm=audio x RTP/AVP 0\r\n").unwrap_err();
        assert_eq!(error.to_string(), "session description is wrong in line 3: Media port cannot be read");
        let error = SessionDescription::parse(b"v=0\nrubbish\n").unwrap_err();
        assert_eq!(error, ParseError::Line { line: 2, what: "line not in key=value format".to_owned() });
    }

    #[test]
    fn what_is_not_a_description_is_refused() {
        assert_eq!(SessionDescription::parse(b""), Err(ParseError::Version));
        assert_eq!(SessionDescription::parse(b"v=1\r\n"), Err(ParseError::Version));
        assert_eq!(
            SessionDescription::parse(b"<xml/>"),
            Err(ParseError::Line { line: 1, what: "line not in key=value format".to_owned() })
        );
        assert_eq!(SessionDescription::parse(&[b'x'; BODY_MAX + 1]), Err(ParseError::TooLong(BODY_MAX + 1)));
    }

    #[test]
    fn more_media_than_anyone_needs_are_refused() {
        let body = format!("v=0\n{}", "m=audio 1 RTP/AVP 0\n".repeat(MEDIA_MAX + 1));
        assert_eq!(SessionDescription::parse(body.as_bytes()), Err(ParseError::TooManyMedia(MEDIA_MAX + 1)));
    }

    #[test]
    fn media_without_a_format_is_named_by_its_line() {
        let error = SessionDescription::parse(b"v=0\nm=audio 1 RTP/AVP 0\na=x\nm=audio 1 RTP/AVP \x0C\n")
            .unwrap_err();
        assert_eq!(error, ParseError::Line { line: 4, what: "media without a format".to_owned() });
    }

    #[test]
    fn blanks_bare_line_feeds_and_trailing_nuls_are_forgiven() {
        let body = b"v=0 \ns=call \nc=IN IP4 192.0.2.1 \n\n \nm=audio 4000 RTP/AVP 0 8 \na=ptime:20 \r\n\0\0";
        let description = SessionDescription::parse(body).unwrap();
        assert_eq!(description.name, "call");
        assert_eq!(description.media[0].formats, ["0", "8"]);
        assert_eq!(description.media[0].ptime_ms(), Some(20));
    }

    #[test]
    fn lines_nobody_reads_cannot_spoil_a_call() {
        let body = b"v=0\no=x\no=y\ns=caf\xE9\ni=\xFF\nb=?\nt=now\nr=\nz=\nk=\nc=IN IP4 192.0.2.1\nc=IN IP4 192.0.2.2\nm=audio 4000 RTP/AVP 0\ni=\xFF\nb=\n";
        let description = SessionDescription::parse(body).unwrap();
        assert_eq!(description.origin, None);
        assert_eq!(description.connection, Some(Connection::Address([192, 0, 2, 1].into())));
    }

    #[test]
    fn origin_may_hold_numbers_beyond_64_bits() {
        let body = b"v=0\no=- 340282366920938463463374607431768211456 99999999999999999999999 IN IP4 h\n";
        let origin = SessionDescription::parse(body).unwrap().origin.unwrap();
        assert_eq!(origin.session_version, "99999999999999999999999");
    }

    prop_compose! {
        fn any_connection()(kind in 0..3, v4: [u8; 4], v6: [u16; 8]) -> Connection {
            match kind {
                0 => Connection::Address(v4.into()),
                1 => Connection::Address(v6.into()),
                _ => Connection::Other("sbc.example.net".to_owned()),
            }
        }
    }

    prop_compose! {
        fn any_attributes()(pairs in proptest::collection::vec(("[a-z][a-z0-9-]{0,10}", proptest::option::of("[!-~]([ -~]{0,20}[!-~])?")), 0..4)) -> Vec<Attribute> {
            pairs.into_iter().map(|(name, value)| Attribute { name, value }).collect()
        }
    }

    prop_compose! {
        fn any_media()(
            kind in "[a-z]{1,8}", port: u16, protocol in "[A-Z]{1,4}(/[A-Z]{1,5}){0,2}",
            formats in proptest::collection::vec("[a-z0-9]{1,4}", 1..6),
            connection in proptest::option::of(any_connection()), attributes in any_attributes(),
        ) -> Media {
            Media { kind, port, protocol, formats, connection, attributes }
        }
    }

    prop_compose! {
        fn any_description()(
            name in "[A-Za-z]([A-Za-z ]{0,10}[a-z])?", id: u64, version: u64,
            connection in proptest::option::of(any_connection()), attributes in any_attributes(),
            media in proptest::collection::vec(any_media(), 0..4),
        ) -> SessionDescription {
            let origin = Origin {
                username: "-".to_owned(),
                session_id: id.to_string(),
                session_version: version.to_string(),
                address: "192.0.2.1".to_owned(),
            };
            SessionDescription { origin: Some(origin), name, connection, attributes, media }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(description in any_description()) {
            prop_assert_eq!(SessionDescription::parse(description.to_string().as_bytes()), Ok(description));
        }

        #[test]
        fn any_octets_are_parsed_or_refused(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = SessionDescription::parse(&body);
        }

        #[test]
        fn a_damaged_body_is_parsed_or_refused(at in 0usize..200, octet: u8) {
            let mut body = include_bytes!("../tests/bodies/asterisk.sdp").to_vec();
            let at = at % body.len();
            body[at] = octet;
            if let Ok(description) = SessionDescription::parse(&body) {
                let again = SessionDescription::parse(description.to_string().as_bytes());
                prop_assert_eq!(again.map(|d| d.media), Ok(description.media));
            }
        }
    }
}
