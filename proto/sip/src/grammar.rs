//! Character classes and small scanners of the SIP grammar (RFC 3261 §25.1).
//!
//! Everything here is a total function on octets; who asks decides what a mismatch means.

use std::borrow::Cow;

/// What an octet may be part of: one bit a class.
const TOKEN: u8 = 1;
const WORD: u8 = 2;
const UNRESERVED: u8 = 4;
const RESERVED: u8 = 8;
const USER: u8 = 16;
const PASSWORD: u8 = 32;
const URI_PARAM: u8 = 64;
const HOST: u8 = 128;

/// The classes of each octet, so that a check is one load.
const CLASSES: [u8; 256] = {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 128 {
        if (b as u8).is_ascii_alphanumeric() {
            table[b] = TOKEN | WORD | UNRESERVED | USER | PASSWORD | URI_PARAM | HOST;
        }
        b += 1;
    }
    let table = mark(table, b"-.!%*_+`'~", TOKEN | WORD);
    let table = mark(table, b"()<>:\\\"/[]?{}", WORD);
    let table = mark(table, b"-_.!~*'()", UNRESERVED | USER | PASSWORD | URI_PARAM);
    let table = mark(table, b";/?:@&=+$,", RESERVED);
    let table = mark(table, b"&=+$,;?/", USER);
    let table = mark(table, b"&=+$,", PASSWORD);
    let table = mark(table, b"[]/:&+$", URI_PARAM);
    mark(table, b"-._", HOST)
};

const fn mark(mut table: [u8; 256], octets: &[u8], class: u8) -> [u8; 256] {
    let mut at = 0;
    while at < octets.len() {
        table[octets[at] as usize] |= class;
        at += 1;
    }
    table
}

const fn is(b: u8, class: u8) -> bool {
    CLASSES[b as usize] & class != 0
}

pub(crate) fn is_token(b: u8) -> bool {
    is(b, TOKEN)
}

/// `word` of Call-ID.
pub(crate) fn is_word(b: u8) -> bool {
    is(b, WORD)
}

pub(crate) fn is_unreserved(b: u8) -> bool {
    is(b, UNRESERVED)
}

pub(crate) fn is_reserved(b: u8) -> bool {
    is(b, RESERVED)
}

pub(crate) fn is_user(b: u8) -> bool {
    is(b, USER)
}

pub(crate) fn is_password(b: u8) -> bool {
    is(b, PASSWORD)
}

pub(crate) fn is_uri_param(b: u8) -> bool {
    is(b, URI_PARAM)
}

/// `hnv-unreserved` and what joins them.
pub(crate) fn is_uri_header(b: u8) -> bool {
    is(b, UNRESERVED) || b"[]/?:+$&=".contains(&b)
}

/// Letters of a host name; the underscore is no letter of DNS but of many intranets.
pub(crate) fn is_host(b: u8) -> bool {
    is(b, HOST)
}

pub(crate) fn is_space(b: u8) -> bool {
    b == b' ' || b == b'\t'
}

/// Without white space at both ends. (Faster than `str::trim_matches`, which decodes characters.)
pub(crate) fn trim(text: &str) -> &str {
    trim_end(trim_start(text))
}

pub(crate) fn trim_start(text: &str) -> &str {
    let spaces = text.bytes().take_while(|&b| is_space(b)).count();
    &text[spaces..]
}

pub(crate) fn trim_end(text: &str) -> &str {
    let spaces = text.bytes().rev().take_while(|&b| is_space(b)).count();
    &text[..text.len() - spaces]
}

/// Octets as text; those that are not UTF-8 become U+FFFD.
pub(crate) fn lossy(octets: &[u8]) -> Cow<'_, str> {
    // Nearly all are, and checking that is faster than looking for what is not.
    std::str::from_utf8(octets).map_or_else(|_| String::from_utf8_lossy(octets), Cow::Borrowed)
}

pub(crate) fn eq_ignore_case(a: &[u8], b: &[u8]) -> bool {
    a.eq_ignore_ascii_case(b)
}

/// Length of the host at the start of `bytes`: a name, IPv4, or IPv6 in brackets.
pub(crate) fn host_len(bytes: &[u8]) -> Option<usize> {
    if bytes.first() == Some(&b'[') {
        let close = bytes.iter().position(|&b| b == b']')?;
        let inside = std::str::from_utf8(&bytes[1..close]).ok()?;
        inside.parse::<std::net::Ipv6Addr>().ok()?;
        return Some(close + 1);
    }
    let len = bytes.iter().take_while(|&&b| is_host(b)).count();
    (len > 0).then_some(len)
}

/// Decodes %-escapes. What does not decode to UTF-8 is replaced by U+FFFD.
pub(crate) fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octet = bytes.get(at + 1..at + 3).and_then(|hex| {
            Some(hex_value(*hex.first()?)? << 4 | hex_value(*hex.get(1)?)?).filter(|_| bytes[at] == b'%')
        });
        match octet {
            Some(octet) => {
                out.push(octet);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}

fn hex_value(b: u8) -> Option<u8> {
    char::from(b).to_digit(16).map(|digit| digit as u8)
}

/// %-escapes what may not stand in a URI's user part.
pub(crate) fn escape_user(user: &str) -> String {
    let mut out = String::with_capacity(user.len());
    for &b in user.as_bytes() {
        if is_user(b) {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// %-escapes what may not stand in the value of a URI's header.
pub(crate) fn escape_uri_header(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 16);
    for &b in value.as_bytes() {
        if is_uri_header(b) && b != b'&' && b != b'=' {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

/// A quoted string; control characters are dropped.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars().filter(|c| !c.is_control()) {
        if c == '"' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// Length of the quoted string at the start of `bytes`, quotes included; `None` if it is not closed.
pub(crate) fn quoted_len(bytes: &[u8]) -> Option<usize> {
    debug_assert_eq!(bytes.first(), Some(&b'"'));
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// The text between the quotes, with `\x` turned into `x`.
pub(crate) fn unquote(text: &str) -> Cow<'_, str> {
    if !text.starts_with('"') {
        return Cow::Borrowed(text);
    }
    let inner = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    if !inner.contains('\\') {
        return Cow::Borrowed(inner);
    }
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => out.extend(chars.next()),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Offset of the first `separator` outside quotes and angle brackets. `None` also if a quote is not closed.
pub(crate) fn find_outside(bytes: &[u8], separator: u8) -> Option<usize> {
    // Most values have one item.
    let first = memchr::memchr(separator, bytes)?;
    if memchr::memchr2(b'"', b'<', &bytes[..first]).is_none() {
        return Some(first);
    }
    let mut at = 0;
    let mut in_angle = false;
    while at < bytes.len() {
        match bytes[at] {
            b'"' if !in_angle => {
                at += quoted_len(&bytes[at..])?;
                continue;
            }
            b'<' => in_angle = true,
            b'>' => in_angle = false,
            b if b == separator && !in_angle => return Some(at),
            _ => {}
        }
        at += 1;
    }
    None
}

/// Splits a comma-separated header value, minding quotes and angle brackets; items are trimmed.
pub(crate) fn split_commas(value: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(value);
    std::iter::from_fn(move || {
        let text = rest?;
        let (item, tail) = match find_outside(text.as_bytes(), b',') {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        rest = tail;
        Some(trim(item))
    })
}

/// A decimal number that fills the whole text: digits only, at least one, within `u32`.
pub(crate) fn decimal(text: &str) -> Option<u32> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_inside_quotes_and_brackets_do_not_split() {
        let items: Vec<_> = split_commas("\"a, b\" <sip:a,b@c>, <sip:d> ,e").collect();
        assert_eq!(items, ["\"a, b\" <sip:a,b@c>", "<sip:d>", "e"]);
    }

    #[test]
    fn escaped_quote_does_not_close_a_quoted_string() {
        assert_eq!(quoted_len(br#""a\"b" <x>"#), Some(6));
        assert_eq!(quoted_len(br#""a\""#), None);
        assert_eq!(unquote(r#""a\"b\\""#), r#"a"b\"#);
    }

    #[test]
    fn escapes_decode_and_bad_ones_stay() {
        assert_eq!(unescape("a%40b%zz%4"), "a@b%zz%4");
        assert_eq!(escape_user("a b@c"), "a%20b%40c");
    }
}
