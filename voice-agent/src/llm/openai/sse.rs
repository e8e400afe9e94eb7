//! Server-sent events, as far as chat completions use them: `data:` lines in pieces of any size → payloads.

/// Longest line; a chunk of an answer is some hundred octets.
const LINE_MAX: usize = 256 * 1024;

/// A line longer than `LINE_MAX` (256 kB): the peer does not speak server-sent events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a line of the event stream is longer than {LINE_MAX} octets")]
pub(super) struct LineTooLong;

/// Collects lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pending: Vec<u8>,
}

impl Lines {
    /// Adds octets; gives the payload of each `data:` line that is complete now.
    ///
    /// # Errors
    /// [`LineTooLong`]
    pub(super) fn push(&mut self, octets: &[u8]) -> Result<Vec<String>, LineTooLong> {
        self.pending.extend_from_slice(octets);
        let mut payloads = Vec::new();
        while let Some(end) = self.pending.iter().position(|octet| *octet == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            payloads.extend(payload(&line));
        }
        if self.pending.len() > LINE_MAX { Err(LineTooLong) } else { Ok(payloads) }
    }

    /// A last line without its end.
    pub(super) fn finish(&mut self) -> Option<String> {
        payload(&std::mem::take(&mut self.pending))
    }
}

fn payload(line: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(line);
    let data = text.trim_end_matches(['\r', '\n']).strip_prefix("data:")?;
    Some(data.strip_prefix(' ').unwrap_or(data).to_owned()).filter(|data| !data.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": comment\r\ndata: {\"a\":1}\r\n\r\nevent: x\ndata:{\"b\":\"ü\"}\n\ndata: [DONE]\n";

    #[test]
    fn only_data_lines_carry_payload() {
        assert_eq!(
            Lines::default().push(STREAM.as_bytes()).unwrap(),
            ["{\"a\":1}", "{\"b\":\"ü\"}", "[DONE]"]
        );
    }

    #[test]
    fn an_endless_line_is_refused() {
        assert_eq!(Lines::default().push(&vec![b'x'; LINE_MAX + 1]), Err(LineTooLong));
    }

    proptest::proptest! {
        #[test]
        fn pieces_of_any_size_give_the_same(cuts in proptest::collection::vec(1usize..9, 0..60)) {
            let (mut lines, mut got, mut rest) = (Lines::default(), Vec::new(), STREAM.as_bytes());
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                got.extend(lines.push(piece).unwrap());
                rest = left;
            }
            got.extend(lines.push(rest).unwrap());
            proptest::prop_assert_eq!(got.len(), 3);
        }
    }
}
