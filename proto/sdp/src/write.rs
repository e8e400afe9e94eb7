//! Description to text (RFC 8866 §5), in the order the RFC asks for, with CRLF.

use std::fmt::{self, Display, Formatter};

use crate::description::{Attribute, Connection, Media, Origin, SessionDescription};

/// The media type of a session description in SIP.
pub const CONTENT_TYPE: &str = "application/sdp";

/// `to_string` gives the body. Line breaks inside fields are left out, so that no field can add a line.
impl Display for SessionDescription {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("v=0\r\n")?;
        match &self.origin {
            Some(origin) => origin.fmt(f)?,
            None => f.write_str("o=- 0 0 IN IP4 0.0.0.0\r\n")?,
        }
        // "-" stands for no name (RFC 8866 §5.3).
        let name = if self.name.is_empty() { "-" } else { &self.name };
        write!(f, "s={}\r\n", Field(name))?;
        if let Some(connection) = &self.connection {
            connection.fmt(f)?;
        }
        f.write_str("t=0 0\r\n")?;
        self.attributes.iter().try_for_each(|attribute| attribute.fmt(f))?;
        self.media.iter().try_for_each(|media| media.fmt(f))
    }
}

impl Display for Origin {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let family = if self.address.contains(':') { "IP6" } else { "IP4" };
        let [username, id, version, address] =
            [&self.username, &self.session_id, &self.session_version, &self.address]
                .map(|field| Field(field));
        write!(f, "o={username} {id} {version} IN {family} {address}\r\n")
    }
}

impl Display for Connection {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Connection::Address(address) if address.is_ipv6() => write!(f, "c=IN IP6 {address}\r\n"),
            Connection::Address(address) => write!(f, "c=IN IP4 {address}\r\n"),
            Connection::Other(name) => write!(f, "c=IN IP4 {}\r\n", Field(name)),
        }
    }
}

impl Display for Attribute {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match &self.value {
            Some(value) => write!(f, "a={}:{}\r\n", Field(&self.name), Field(value)),
            None => write!(f, "a={}\r\n", Field(&self.name)),
        }
    }
}

impl Display for Media {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "m={} {} {}", Field(&self.kind), self.port, Field(&self.protocol))?;
        self.formats.iter().try_for_each(|format| write!(f, " {}", Field(format)))?;
        f.write_str("\r\n")?;
        if let Some(connection) = &self.connection {
            connection.fmt(f)?;
        }
        self.attributes.iter().try_for_each(|attribute| attribute.fmt(f))
    }
}

/// A field without what would break its line.
struct Field<'a>(&'a str);

impl Display for Field<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.split(['\r', '\n', '\0']).try_for_each(|piece| f.write_str(piece))
    }
}
