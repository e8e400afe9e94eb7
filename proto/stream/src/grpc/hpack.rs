//! Headers of HTTP/2 (HPACK, RFC 7541), as much of them as one call needs.
//!
//! What we write is literal and never put into a table. Our table has the size nought ([`super::Client`] says so in its settings), so what
//! we read is literal too, or of the static table. Of the answer three fields are looked at; a value that is not printable ASCII
//! is as good as none.

use super::{Request, RequestError};

/// Values of `:status` in the static table, from index 8 (RFC 7541 appendix A).
const STATUSES: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
/// Entries of the static table.
const STATIC_ENTRIES: usize = 61;
/// Longest integer: more octets than this would not fit.
const INTEGER_OCTETS_MAX: u32 = 4;
/// Longest code of a printable character but one, the backslash; that and what is not printable is not decoded.
const CODE_BITS_MAX: u32 = 15;

/// Bits of the Huffman code of each character from the space to the tilde (appendix B). The code is canonical: these lengths are all of it,
/// with the one octet of 13 bits that is not printable.
const CODE_BITS: [u8; 95] = [
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13,
];
/// Bits of the code of the octet 0.
const NUL_BITS: u32 = 13;

/// What is wanted of an answer's headers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Answer {
    pub(super) status: Option<u16>,
    pub(super) grpc_status: Option<u32>,
    /// Its percent signs decoded.
    pub(super) grpc_message: String,
}

/// The header block of a call.
pub(super) fn write_request<'a>(
    request: Request<'_>,
    headers: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<u8>, RequestError> {
    // Indexed: ":method: POST", ":scheme: http" or "https".
    let mut out = vec![0x83, if request.secure { 0x87 } else { 0x86 }];
    // Literal without indexing, names from the static table.
    write_indexed(&mut out, 4, request.path);
    write_indexed(&mut out, 1, request.authority);
    write_indexed(&mut out, 31, "application/grpc");
    write_literal(&mut out, "te", "trailers");
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        let is_token = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
        let is_own =
            ["te", "content-type", "connection", "transfer-encoding", "host"].contains(&name.as_str());
        if name.is_empty() || !name.bytes().all(is_token) || is_own {
            return Err(RequestError::Name(name));
        }
        if !value.bytes().all(|c| (b' '..=b'~').contains(&c)) {
            return Err(RequestError::Value(name));
        }
        write_literal(&mut out, &name, value);
    }
    Ok(out)
}

fn write_integer(out: &mut Vec<u8>, first: u8, prefix_bits: u32, value: usize) {
    let most = (1 << prefix_bits) - 1;
    if value < most {
        out.push(first | value as u8);
        return;
    }
    out.push(first | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    write_integer(out, 0, 7, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn write_indexed(out: &mut Vec<u8>, name: usize, value: &str) {
    write_integer(out, 0, 4, name);
    write_text(out, value);
}

/// Never indexed (§6.2.3): it may be a secret.
fn write_literal(out: &mut Vec<u8>, name: &str, value: &str) {
    out.push(0x10);
    write_text(out, name);
    write_text(out, value);
}

/// Reads a header block; `None` when it is malformed, or refers to a table that does not exist.
pub(super) fn read(block: &[u8]) -> Option<Answer> {
    let mut reader = Reader { rest: block };
    let mut answer = Answer::default();
    while let Some(&first) = reader.rest.first() {
        match first {
            // Indexed.
            0x80.. => match reader.integer(7)? {
                index @ 8..=14 => answer.status = Some(STATUSES[index - 8]),
                1..=STATIC_ENTRIES => {}
                _ => return None,
            },
            // The table's size: it can only be what it is.
            0x20..0x40 => match reader.integer(5)? {
                0 => {}
                _ => return None,
            },
            // Literal: to be indexed (6 bits of name), not to be, or never (4).
            _ => {
                let name = match reader.integer(if first >= 0x40 { 6 } else { 4 })? {
                    0 => reader.text()?,
                    8..=14 => ":status".to_owned(),
                    1..=STATIC_ENTRIES => String::new(),
                    _ => return None,
                };
                let value = reader.text()?;
                match name.as_str() {
                    ":status" => answer.status = value.parse().ok(),
                    "grpc-status" => answer.grpc_status = value.parse().ok(),
                    "grpc-message" => answer.grpc_message = percent_decoded(&value),
                    _ => {}
                }
            }
        }
    }
    Some(answer)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn octet(&mut self) -> Option<u8> {
        let (&octet, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(octet)
    }

    /// An integer in the lower bits of the next octet and what follows (§5.1).
    fn integer(&mut self, prefix_bits: u32) -> Option<usize> {
        let most = (1_usize << prefix_bits) - 1;
        let mut value = usize::from(self.octet()?) & most;
        if value < most {
            return Some(value);
        }
        for n in 0..INTEGER_OCTETS_MAX {
            let octet = self.octet()?;
            value += usize::from(octet & 0x7F) << (7 * n);
            if octet < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// A string (§5.2); what is not printable ASCII reads as empty.
    fn text(&mut self) -> Option<String> {
        let is_coded = *self.rest.first()? >= 0x80;
        let len = self.integer(7)?;
        let (octets, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        if is_coded {
            return Some(decoded(octets).unwrap_or_default());
        }
        let is_printable = octets.iter().all(|c| (b' '..=b'~').contains(c));
        Some(if is_printable { octets.iter().map(|&c| char::from(c)).collect() } else { String::new() })
    }
}

/// Undoes the Huffman code; `None` when something is in it that is not printable.
fn decoded(octets: &[u8]) -> Option<String> {
    let mut text = String::new();
    let (mut code, mut bits) = (0_u32, 0_u32);
    for octet in octets {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(octet >> bit & 1);
            bits += 1;
            if let Some(character) = character_of(code, bits) {
                text.push(character);
                (code, bits) = (0, 0);
            } else if bits > CODE_BITS_MAX {
                return None;
            }
        }
    }
    // What is left is padding: ones, and fewer than eight.
    (bits < 8 && code == (1 << bits) - 1).then_some(text)
}

/// The character with this code of so many bits.
fn character_of(code: u32, bits: u32) -> Option<char> {
    // Canonical: codes of one length follow each other in the order of the octets, after those of all shorter ones.
    let count = |bits: u32| {
        let printable = CODE_BITS.iter().filter(|of| u32::from(**of) == bits).count() as u32;
        printable + u32::from(bits == NUL_BITS)
    };
    let mut first = 0;
    for shorter in 1..bits {
        first = (first + count(shorter)) << 1;
    }
    let mut place = code.checked_sub(first)?;
    if bits == NUL_BITS {
        place = place.checked_sub(1)?;
    }
    let with = CODE_BITS.iter().enumerate().filter(|(_, of)| u32::from(**of) == bits);
    let (at, _) = with.into_iter().nth(place as usize)?;
    Some(char::from(b' ' + at as u8))
}

/// What gRPC writes with percent signs; what is no UTF-8 afterwards stays legible.
fn percent_decoded(text: &str) -> String {
    let mut octets = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&octet, tail)) = rest.split_first() {
        let hex = |at: usize| tail.get(at).and_then(|c| char::from(*c).to_digit(16));
        if let (b'%', Some(high), Some(low)) = (octet, hex(0), hex(1)) {
            octets.push((16 * high + low) as u8);
            rest = &tail[2..];
        } else {
            octets.push(octet);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Examples of RFC 7541 appendix C.
    #[test]
    fn huffman_coded_strings_of_the_rfc_are_read() {
        for (octets, text) in [
            (
                &[0xF1, 0xE3, 0xC2, 0xE5, 0xF2, 0x3A, 0x6B, 0xA0, 0xAB, 0x90, 0xF4, 0xFF][..],
                "www.example.com",
            ),
            (&[0xA8, 0xEB, 0x10, 0x64, 0x9C, 0xBF], "no-cache"),
            (&[0x64, 0x02], "302"),
            (&[0xAE, 0xC3, 0x77, 0x1A, 0x4B], "private"),
            (
                &[
                    0xD0, 0x7A, 0xBE, 0x94, 0x10, 0x54, 0xD4, 0x44, 0xA8, 0x20, 0x05, 0x95, 0x04, 0x0B, 0x81,
                    0x66, 0xE0, 0x82, 0xA6, 0x2D, 0x1B, 0xFF,
                ],
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
        ] {
            assert_eq!(decoded(octets).as_deref(), Some(text));
        }
        assert_eq!(decoded(&[0xFF, 0xFF, 0xFF, 0xFF]), None, "the end-of-string symbol");
    }

    #[test]
    fn trailers_are_read_whether_they_are_indexed_or_spelt_out() {
        assert_eq!(read(&[0x20, 0x88]).unwrap().status, Some(200));
        let mut block = vec![0x20];
        write_indexed(&mut block, 8, "503");
        write_literal(&mut block, "grpc-status", "14");
        write_literal(&mut block, "grpc-message", "no%20room%21 %zz");
        write_literal(&mut block, "x-other", "1");
        let answer = read(&block).unwrap();
        assert_eq!((answer.status, answer.grpc_status), (Some(503), Some(14)));
        assert_eq!(answer.grpc_message, "no room! %zz");
        assert_eq!(read(&[0xBE]), None, "of a dynamic table, which there is not");
        assert_eq!(read(&[0x3F, 0x20]), None, "nor may there be");
    }

    #[test]
    fn headers_that_cannot_be_sent_are_named_and_their_values_are_not() {
        let request = Request { secure: false, authority: "a:1", path: "/p" };
        let write = |name, value| write_request(request, [(name, value)].into_iter());
        assert!(write("X-Team", "support").is_ok());
        assert_eq!(write("x y", "v"), Err(RequestError::Name("x y".into())));
        assert_eq!(write("TE", "v"), Err(RequestError::Name("te".into())));
        let refused = write("authorization", "sec\nret").unwrap_err();
        assert!(!refused.to_string().contains("ret"), "{refused}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in "[ -~]{0,300}", status in 0u32..17) {
            let mut block = Vec::new();
            write_literal(&mut block, "grpc-status", &status.to_string());
            let escaped = message.replace('%', "%25");
            write_literal(&mut block, "grpc-message", &escaped);
            let answer = read(&block).unwrap();
            prop_assert_eq!(answer.grpc_status, Some(status));
            prop_assert_eq!(answer.grpc_message, message);
        }

        #[test]
        fn no_octets_make_it_panic(block in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&block);
        }
    }
}
