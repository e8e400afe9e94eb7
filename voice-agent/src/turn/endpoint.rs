//! Has the caller finished? How much silence ends a turn, by what was said before it; and which words are no turn.

use std::time::Duration;

/// After a whole sentence.
const AFTER_SENTENCE: Duration = Duration::from_millis(500);
/// After words that could go on.
const AFTER_WORDS: Duration = Duration::from_millis(700);
/// After a word that must go on ("my name is …").
const AFTER_OPEN_WORD: Duration = Duration::from_millis(1_100);
/// When nothing was recognised.
const AFTER_NOTHING: Duration = Duration::from_millis(700);

/// Nobody ends a sentence with these.
const OPEN_WORDS: &[&str] = &[
    "a", "an", "and", "at", "because", "but", "for", "from", "i'd", "i'm", "is", "it's", "like", "my", "of",
    "on", "or", "so", "that's", "the", "this", "to", "uh", "um", "with", "would",
];

/// Said while the other one talks, to show that one listens. Not "yes" and "no": those answer.
const BACK_CHANNELS: &[&str] = &[
    "ah", "aha", "alright", "hm", "hmm", "huh", "i see", "mhm", "mm", "mm hmm", "mmhmm", "mmm", "oh", "ok",
    "okay", "right", "sure", "uh huh", "uhhuh", "yeah",
];

/// Silence after the last word that ends a turn which so far is `text`.
pub fn silence_after(text: &str) -> Duration {
    let words = words(text);
    match words.last() {
        None => AFTER_NOTHING,
        Some(last) if OPEN_WORDS.contains(&last.as_str()) => AFTER_OPEN_WORD,
        Some(_) if text.trim_end().ends_with(['.', '?', '!']) && !text.trim_end().ends_with("...") => {
            AFTER_SENTENCE
        }
        Some(_) => AFTER_WORDS,
    }
}

/// Does the text hold a word at all?
pub fn has_words(text: &str) -> bool {
    text.chars().any(char::is_alphanumeric)
}

/// Is it only a sign of listening?
pub fn is_back_channel(text: &str) -> bool {
    BACK_CHANNELS.contains(&words(text).join(" ").as_str())
}

/// Lower-case words without punctuation; "uh-huh" is two.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '\''))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_sentence_waits_less_than_an_open_one() {
        assert_eq!(silence_after("On Friday, please."), AFTER_SENTENCE);
        assert_eq!(silence_after("On Friday"), AFTER_WORDS);
        assert_eq!(silence_after("My name is."), AFTER_OPEN_WORD);
        assert_eq!(silence_after("I would like..."), AFTER_OPEN_WORD);
        assert_eq!(silence_after(" - "), AFTER_NOTHING);
    }

    #[test]
    fn signs_of_listening_are_told_from_answers() {
        for text in ["Uh-huh.", "Okay.", "Mm-hmm", "I see."] {
            assert!(is_back_channel(text), "{text}");
        }
        for text in ["Yes.", "No.", "Okay, but wait.", "Friday."] {
            assert!(!is_back_channel(text), "{text}");
        }
    }

    #[test]
    fn punctuation_alone_is_no_word() {
        assert!(!has_words(" ... ") && has_words("7"));
    }
}
