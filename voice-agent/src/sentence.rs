//! Sentences: cut from a stream of text as it grows, and cut to what was heard of them.

/// A sentence longer than this is cut at a comma or a space: the first audio should not wait for a paragraph.
const SENTENCE_MAX: usize = 240;
/// A "sentence" shorter than this waits for the next: "No. 5", "Dr. Miller", "Hi."
const SENTENCE_MIN: usize = 12;

/// Text in pieces → whole sentences.
#[derive(Debug, Default)]
pub struct Splitter {
    pending: String,
}

impl Splitter {
    /// Adds a piece; gives the sentences that are complete now. The end of a sentence is only known when something
    /// follows it, so the last one waits for [`Self::finish`].
    pub fn push(&mut self, piece: &str) -> Vec<String> {
        self.pending.push_str(piece);
        let mut sentences = Vec::new();
        while let Some(end) = sentence_end(&self.pending) {
            let rest = self.pending.split_off(end);
            let sentence = std::mem::replace(&mut self.pending, rest);
            keep(&mut sentences, &sentence);
        }
        sentences
    }

    /// What is left when no more text comes.
    pub fn finish(&mut self) -> Option<String> {
        let mut last = Vec::new();
        keep(&mut last, &std::mem::take(&mut self.pending));
        last.pop()
    }
}

/// All sentences of a whole text.
pub fn split(text: &str) -> Vec<String> {
    let mut splitter = Splitter::default();
    let mut sentences = splitter.push(text);
    sentences.extend(splitter.finish());
    sentences
}

fn keep(sentences: &mut Vec<String>, sentence: &str) {
    let sentence = sentence.split_whitespace().collect::<Vec<_>>().join(" ");
    if sentence.chars().any(char::is_alphanumeric) {
        sentences.push(sentence);
    }
}

/// Octets up to the end of the first sentence, if its end can be seen.
fn sentence_end(text: &str) -> Option<usize> {
    let mut ended = false;
    let (mut comma, mut space) = (None, None);
    for (at, character) in text.char_indices() {
        if character == '\n' && at > 0 {
            return Some(at + 1);
        }
        if ended && character.is_whitespace() && at >= SENTENCE_MIN && !ends_in_abbreviation(&text[..at]) {
            return Some(at);
        }
        ended = matches!(character, '.' | '!' | '?' | '…')
            || (ended && matches!(character, '"' | '\'' | ')' | '”'));
        if character.is_whitespace() {
            space = Some(at);
            comma = Some(at).filter(|_| text[..at].ends_with([',', ';', ':'])).or(comma);
        }
        if at >= SENTENCE_MAX {
            return comma.or(space).or(Some(at)).filter(|end| *end > 0);
        }
    }
    None
}

fn ends_in_abbreviation(text: &str) -> bool {
    let word = text.rsplit(char::is_whitespace).next().unwrap_or_default();
    matches!(word.to_lowercase().as_str(), "dr." | "mr." | "mrs." | "ms." | "st." | "no." | "e.g." | "i.e.")
        || (word.len() == 2 && word.starts_with(char::is_uppercase) && word != "I.")
}

/// A sentence with the length of its audio.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spoken {
    /// The text.
    pub text: String,
    /// The length of its audio, as far as it was synthesised.
    pub audio_ms: u64,
}

/// The text of what was heard: whole sentences, then as many words of the next as its share of audio.
pub fn heard_text(spoken: &[Spoken], heard_ms: u64) -> String {
    let mut left_ms = heard_ms;
    let mut heard: Vec<&str> = Vec::new();
    for sentence in spoken {
        if left_ms >= sentence.audio_ms {
            left_ms -= sentence.audio_ms;
            heard.push(&sentence.text);
            continue;
        }
        let share = share(&sentence.text, left_ms, sentence.audio_ms);
        if !share.is_empty() {
            heard.push(share);
        }
        break;
    }
    heard.join(" ")
}

/// The sentences that were not heard to their end.
pub fn unheard(spoken: &[Spoken], heard_ms: u64) -> Vec<String> {
    let mut end_ms = 0;
    spoken
        .iter()
        .skip_while(|sentence| {
            end_ms += sentence.audio_ms;
            end_ms <= heard_ms
        })
        .map(|sentence| sentence.text.clone())
        .collect()
}

/// Words that end within the heard part, characters standing for time.
fn share(text: &str, heard_ms: u64, audio_ms: u64) -> &str {
    let characters = text.chars().count() as u64;
    let heard_characters = characters * heard_ms / audio_ms.max(1);
    let mut end = 0;
    for (count, (at, character)) in text.char_indices().enumerate() {
        if character.is_whitespace() && count as u64 <= heard_characters {
            end = at;
        }
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences_come_out_before_the_text_is_complete() {
        let mut splitter = Splitter::default();
        assert!(splitter.push("We are open from ").is_empty());
        assert!(splitter.push("noon to ten.").is_empty());
        assert_eq!(splitter.push(" Anything"), ["We are open from noon to ten."]);
        assert_eq!(splitter.push(" else?"), Vec::<String>::new());
        assert_eq!(splitter.finish().as_deref(), Some("Anything else?"));
        assert_eq!(splitter.finish(), None);
    }

    #[test]
    fn titles_and_numbers_do_not_end_a_sentence() {
        assert_eq!(
            split("I have booked it for Dr. Miller. At 7.30 then."),
            ["I have booked it for Dr. Miller.", "At 7.30 then."]
        );
    }

    #[test]
    fn short_beginnings_stay_with_what_follows() {
        assert_eq!(split("Sure. For which day?"), ["Sure. For which day?"]);
    }

    #[test]
    fn a_long_sentence_is_cut_at_a_comma() {
        let text = format!("{}, and so on {}", "word ".repeat(20).trim(), "word ".repeat(60));
        let parts = split(&text);
        assert!(parts[0].ends_with("word,"), "{:?}", parts[0]);
        assert!(parts.iter().all(|part| part.len() <= SENTENCE_MAX + 1));
    }

    fn spoken() -> Vec<Spoken> {
        vec![
            Spoken { text: "We are open every day.".into(), audio_ms: 1_000 },
            Spoken { text: "The kitchen closes at ten.".into(), audio_ms: 1_000 },
        ]
    }

    #[test]
    fn text_is_cut_to_the_words_heard() {
        assert_eq!(heard_text(&spoken(), 0), "");
        assert_eq!(heard_text(&spoken(), 500), "We are open");
        assert_eq!(heard_text(&spoken(), 1_000), "We are open every day.");
        assert_eq!(heard_text(&spoken(), 1_500), "We are open every day. The kitchen");
        assert_eq!(heard_text(&spoken(), 9_000), "We are open every day. The kitchen closes at ten.");
    }

    #[test]
    fn a_resumed_turn_begins_with_the_cut_sentence() {
        assert_eq!(unheard(&spoken(), 500).len(), 2);
        assert_eq!(unheard(&spoken(), 1_500), ["The kitchen closes at ten."]);
        assert!(unheard(&spoken(), 2_000).is_empty());
    }

    proptest::proptest! {
        #[test]
        fn splitting_loses_no_word(text in "[a-zA-Z.,!? \n]{0,600}") {
            let letters = |s: &str| s.chars().filter(|c| c.is_alphabetic()).collect::<String>();
            proptest::prop_assert_eq!(letters(&split(&text).join(" ")), letters(&text));
        }

        #[test]
        fn more_heard_is_never_less_text(text in "\\PC{0,80}", a in 0u64..3_000, b in 0u64..3_000) {
            let spoken = [Spoken { text, audio_ms: 2_000 }];
            let (less, more) = (a.min(b), a.max(b));
            proptest::prop_assert!(heard_text(&spoken, less).len() <= heard_text(&spoken, more).len());
        }
    }
}
