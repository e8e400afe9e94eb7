//! Text as it is written → text as it is to be read aloud.
//!
//! The offline voice reads times, amounts and ordinals itself. What is left: signs of mark-up that a language model
//! may write, links, and long digit strings, which are numbers to dial, not to count.

/// A digit string of at least this length is read digit by digit.
const DIGITS_MIN: usize = 5;

/// Makes text speakable.
pub fn speakable(text: &str) -> String {
    let mut words = Vec::new();
    for word in text.split_whitespace() {
        let word: String = word.chars().filter(|c| !is_mark_up(*c)).collect();
        if word.contains("://") {
            words.push("a link".to_owned());
        } else if let Some(digits) = dialled(&word) {
            words.push(digits);
        } else if !word.is_empty() && word != "-" {
            words.push(word);
        }
    }
    words.join(" ")
}

fn is_mark_up(character: char) -> bool {
    matches!(character, '*' | '_' | '#' | '`' | '<' | '>' | '|' | '~' | '^')
        // Pictographs: there is nothing to say for them.
        || matches!(u32::from(character), 0x2600..=0x27BF | 0x1F000..=0x1FAFF | 0xFE00..=0xFE0F)
}

/// "+15005550006," → "plus 1 5 0 0 …,": separated by spaces, groups kept apart by commas.
fn dialled(word: &str) -> Option<String> {
    let body = word.trim_end_matches([',', '.', '?', '!', ';', ':']);
    let end = &word[body.len()..];
    let (plus, body) = match body.strip_prefix('+') {
        Some(rest) => ("plus ", rest),
        None => ("", body),
    };
    let count = body.chars().filter(char::is_ascii_digit).count();
    let only_digits = body.chars().all(|c| c.is_ascii_digit() || matches!(c, '-' | '/' | '(' | ')'));
    if !only_digits || count < DIGITS_MIN {
        return None;
    }
    let groups: Vec<String> = body
        .split(|c: char| !c.is_ascii_digit())
        .filter(|group| !group.is_empty())
        .map(|group| group.chars().map(String::from).collect::<Vec<_>>().join(" "))
        .collect();
    Some(format!("{plus}{}{end}", groups.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_to_dial_are_read_digit_by_digit() {
        assert_eq!(speakable("Call +15005550006, please."), "Call plus 1 5 0 0 5 5 5 0 0 0 6, please.");
        assert_eq!(speakable("555-01234."), "5 5 5, 0 1 2 3 4.");
    }

    #[test]
    fn times_and_small_numbers_are_left_to_the_voice() {
        assert_eq!(speakable("A table for 4 at 7:30 PM in 2026"), "A table for 4 at 7:30 PM in 2026");
    }

    #[test]
    fn mark_up_is_not_read_aloud() {
        assert_eq!(speakable("**Open** - `noon` 😀 https://a.example/b"), "Open noon a link");
    }
}
