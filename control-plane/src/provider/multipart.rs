//! `multipart/form-data` (RFC 7578) as Exotel's callbacks use it: short text fields, no files.

use super::webhook::{PARAMS_MAX, Refusal, TEXT_MAX};

/// The boundary of a `Content-Type: multipart/form-data; boundary=…`.
pub fn boundary(content_type: &str) -> Option<&str> {
    let mut parts = content_type.split(';');
    if !parts.next()?.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        let value = value.trim().trim_matches('"');
        let is_boundary = name.trim().eq_ignore_ascii_case("boundary");
        // RFC 2046 §5.1.1: 1 to 70 characters.
        (is_boundary && (1..=70).contains(&value.len())).then_some(value)
    })
}

/// The fields of a body, in its order.
pub fn fields(body: &[u8], boundary: &str) -> Result<Vec<(String, String)>, Refusal> {
    let text = String::from_utf8_lossy(body);
    let delimiter = format!("--{boundary}");
    let mut fields = Vec::new();
    // What stands before the first delimiter is a preamble; the last one is followed by "--".
    for part in text.split(delimiter.as_str()).skip(1) {
        if part.starts_with("--") {
            break;
        }
        let part = part.strip_prefix("\r\n").unwrap_or(part);
        let Some((head, value)) = part.split_once("\r\n\r\n") else {
            return Err(Refusal::Malformed("a part of the form has no headers"));
        };
        let Some(name) = head.split("\r\n").find_map(field_name) else {
            return Err(Refusal::Malformed("a part of the form has no name"));
        };
        if fields.len() == PARAMS_MAX {
            return Err(Refusal::Malformed("more parts than any provider sends"));
        }
        fields.push((name, value.strip_suffix("\r\n").unwrap_or(value).to_owned()));
    }
    Ok(fields)
}

/// The name in `Content-Disposition: form-data; name="CallSid"`.
fn field_name(line: &str) -> Option<String> {
    let (header, value) = line.split_once(':')?;
    if !header.trim().eq_ignore_ascii_case("Content-Disposition") {
        return None;
    }
    let name = value.split(';').find_map(|param| {
        let (key, value) = param.split_once('=')?;
        key.trim().eq_ignore_ascii_case("name").then(|| value.trim().trim_matches('"'))
    })?;
    (!name.is_empty() && name.len() <= TEXT_MAX).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_come_with_their_names_and_line_ends_of_their_own() {
        let body = "preamble\r\n--b1\r\nContent-Disposition: form-data; name=\"CallSid\"\r\n\r\nabc\r\n\
                    --b1\r\ncontent-disposition: form-data; name=Legs[0][Id]\r\nContent-Type: text/plain\r\n\r\n1\r\n2\r\n\
                    --b1--\r\nepilogue";
        let want = [("CallSid".to_owned(), "abc".to_owned()), ("Legs[0][Id]".into(), "1\r\n2".into())];
        assert_eq!(fields(body.as_bytes(), "b1").unwrap(), want);
        assert_eq!(boundary("multipart/form-data; charset=utf-8; boundary=\"b1\""), Some("b1"));
        assert_eq!(boundary("application/json"), None);
        assert_eq!(boundary("multipart/form-data; boundary="), None);
    }

    proptest! {
        #[test]
        fn arbitrary_octets_never_panic(body in proptest::collection::vec(any::<u8>(), 0..400), boundary in "[a-z-]{1,4}") {
            let _ = fields(&body, &boundary);
        }
    }
}
