//! Bencoding, which rtpengine's control protocol is written in.
use std::collections::BTreeMap;

/// Lists and dictionaries inside each other beyond this are refused.
const DEPTH_MAX: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    /// `i42e`
    Integer(i64),
    /// `4:text`
    Text(Vec<u8>),
    /// `l…e`
    List(Vec<Value>),
    /// `d…e`
    Dictionary(BTreeMap<Vec<u8>, Value>),
}

/// It is not bencoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not bencoded at octet {0}")]
pub(super) struct BencodeError(usize);

impl Value {
    /// A text.
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.as_bytes().to_vec())
    }

    /// A list of texts.
    pub(super) fn texts(texts: &[&str]) -> Self {
        Self::List(texts.iter().map(|text| Self::text(text)).collect())
    }

    /// A dictionary of these.
    pub(super) fn dictionary<const N: usize>(entries: [(&str, Self); N]) -> Self {
        Self::Dictionary(entries.map(|(key, value)| (key.as_bytes().to_vec(), value)).into())
    }

    /// What a dictionary has under this key.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Dictionary(entries) => entries.get(key.as_bytes()),
            _ => None,
        }
    }

    /// The octets of a text.
    pub(super) fn as_octets(&self) -> Option<&[u8]> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Appends it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Integer(number) => out.extend_from_slice(format!("i{number}e").as_bytes()),
            Self::Text(text) => write_text(text, out),
            Self::List(values) => {
                out.push(b'l');
                values.iter().for_each(|value| value.write(out));
                out.push(b'e');
            }
            Self::Dictionary(entries) => {
                out.push(b'd');
                for (key, value) in entries {
                    write_text(key, out);
                    value.write(out);
                }
                out.push(b'e');
            }
        }
    }

    /// Reads the one value that these octets are.
    ///
    /// # Errors
    /// They are something else.
    pub(super) fn parse(octets: &[u8]) -> Result<Self, BencodeError> {
        let mut reader = Reader { octets, at: 0 };
        let value = reader.value(0)?;
        if reader.at == octets.len() { Ok(value) } else { Err(reader.error()) }
    }
}

fn write_text(text: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("{}:", text.len()).as_bytes());
    out.extend_from_slice(text);
}

struct Reader<'a> {
    octets: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn error(&self) -> BencodeError {
        BencodeError(self.at)
    }

    fn peek(&self) -> Result<u8, BencodeError> {
        self.octets.get(self.at).copied().ok_or(self.error())
    }

    fn value(&mut self, depth: usize) -> Result<Value, BencodeError> {
        if depth > DEPTH_MAX {
            return Err(self.error());
        }
        match self.peek()? {
            b'i' => {
                self.at += 1;
                Ok(Value::Integer(self.number(b'e')?))
            }
            b'l' => {
                self.at += 1;
                let mut values = Vec::new();
                while !self.ends()? {
                    values.push(self.value(depth + 1)?);
                }
                Ok(Value::List(values))
            }
            b'd' => {
                self.at += 1;
                let mut entries = BTreeMap::new();
                while !self.ends()? {
                    let key = self.text()?;
                    entries.insert(key, self.value(depth + 1)?);
                }
                Ok(Value::Dictionary(entries))
            }
            _ => Ok(Value::Text(self.text()?)),
        }
    }

    /// Whether a list or a dictionary ends here; its `e` is taken then.
    fn ends(&mut self) -> Result<bool, BencodeError> {
        let ends = self.peek()? == b'e';
        self.at += usize::from(ends);
        Ok(ends)
    }

    fn text(&mut self) -> Result<Vec<u8>, BencodeError> {
        let len = usize::try_from(self.number(b':')?).map_err(|_| self.error())?;
        let end = self.at.checked_add(len).ok_or(self.error())?;
        let text = self.octets.get(self.at..end).ok_or(self.error())?;
        self.at = end;
        Ok(text.to_vec())
    }

    fn number(&mut self, end: u8) -> Result<i64, BencodeError> {
        let rest = self.octets.get(self.at..).unwrap_or_default();
        let len = rest.iter().position(|&octet| octet == end).ok_or(self.error())?;
        let digits = std::str::from_utf8(&rest[..len]).map_err(|_| self.error())?;
        let number = digits.parse().map_err(|_| self.error())?;
        self.at += len + 1;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answer_is_read_as_it_was_written() {
        let value = Value::dictionary([
            ("result", Value::text("ok")),
            ("created", Value::Integer(-3)),
            ("tags", Value::texts(&["a", ""])),
        ]);
        let mut octets = Vec::new();
        value.write(&mut octets);
        assert_eq!(octets, b"d7:createdi-3e6:result2:ok4:tagsl1:a0:ee");
        assert_eq!(Value::parse(&octets), Ok(value));
    }

    #[test]
    fn what_is_cut_off_or_goes_on_is_refused() {
        for octets in ["", "i", "i4", "ie", "l", "d1:a", "5:text", "-1:", "i1ei2e", "99999999999999999999:"] {
            assert!(Value::parse(octets.as_bytes()).is_err(), "{octets}");
        }
        let deep = "l".repeat(40) + &"e".repeat(40);
        assert_eq!(Value::parse(deep.as_bytes()), Err(BencodeError(DEPTH_MAX + 1)));
    }

    proptest! {
        #[test]
        fn no_octets_panic(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Value::parse(&octets);
        }
    }
}
