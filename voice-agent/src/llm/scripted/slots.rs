//! What a booking needs, found in what the caller said: a day, a time, a name.

/// Minutes since midnight.
pub type Minutes = u16;

const DAYS: &[&str] = &[
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
    "today",
    "tonight",
    "tomorrow",
];

const NUMBERS: &[&str] = &[
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];

/// Words that stand around a name and are none.
const NO_NAMES: &[&str] = &[
    "a",
    "am",
    "book",
    "booking",
    "er",
    "for",
    "good",
    "hello",
    "here",
    "hi",
    "i",
    "i'm",
    "is",
    "it",
    "it's",
    "its",
    "last",
    "first",
    "like",
    "my",
    "name",
    "name's",
    "of",
    "ok",
    "okay",
    "on",
    "please",
    "reservation",
    "so",
    "sure",
    "table",
    "thank",
    "thanks",
    "that",
    "the",
    "this",
    "to",
    "uh",
    "um",
    "under",
    "well",
    "would",
    "yeah",
    "yes",
    "you",
    "no",
    "not",
    "sorry",
    "what",
    "when",
    "can",
    "could",
    "do",
    "speaking",
    "at",
];

/// A name has at most this many words.
const NAME_WORDS_MAX: usize = 3;

/// Lower-case words; digits with `:` between stay together ("7:30"), "p.m." is "pm".
fn words(text: &str) -> Vec<String> {
    let text = text.to_lowercase().replace('’', "'").replace("p.m", "pm").replace("a.m", "am");
    text.split(|c: char| !(c.is_alphanumeric() || matches!(c, '\'' | ':' | '.')))
        .map(|word| word.trim_matches(['.', ':', '\'']).to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// The last day named ("Friday, no, Saturday"): as it is spoken.
pub fn day(text: &str) -> Option<String> {
    let words = words(text);
    let found = words.iter().rev().find_map(|word| {
        let word = word.strip_suffix("'s").unwrap_or(word);
        DAYS.iter().find(|day| word == **day || word.strip_suffix('s') == Some(**day))
    })?;
    Some(match *found {
        day @ ("today" | "tonight" | "tomorrow") => day.to_owned(),
        day => capitalised(day),
    })
}

/// The time of day. Without "am" or "pm" a restaurant means the afternoon.
pub fn time(text: &str) -> Option<Minutes> {
    let words = words(text);
    let says = |word: &str| words.iter().any(|said| said == word);
    let before_noon = says("am") || says("morning");
    let pinned = before_noon || says("pm") || says("evening") || says("afternoon") || says("night");
    let (hour, minute, sure) = clock(&words)?;
    if !(sure || pinned || near_time_word(&words)) {
        return None;
    }
    let hour = match hour {
        12 if before_noon => 0,
        1..=11 if !before_noon => hour + 12,
        _ => hour,
    };
    (hour < 24).then_some(hour * 60 + minute)
}

/// Hour, minute, and whether the form alone shows that it is a time.
fn clock(words: &[String]) -> Option<(u16, u16, bool)> {
    let at = |index: usize| words.get(index).map(String::as_str);
    for (index, word) in words.iter().enumerate() {
        match (word.as_str(), at(index + 1)) {
            ("noon" | "midday", _) => return Some((12, 0, true)),
            ("half", Some("past")) => {
                if let Some(hour) = at(index + 2).and_then(hour) {
                    return Some((hour, 30, true));
                }
            }
            ("quarter", Some(side @ ("past" | "to"))) => {
                if let Some(hour) = at(index + 2).and_then(hour) {
                    return Some(if side == "past" {
                        (hour, 15, true)
                    } else {
                        ((hour + 10) % 12 + 1, 45, true)
                    });
                }
            }
            _ => {}
        }
    }
    for (index, word) in words.iter().enumerate() {
        if let Some((hours, minutes)) = word.split_once([':', '.'])
            && let (Ok(hours), Ok(minutes)) = (hours.parse(), minutes.parse())
            && hours < 24
            && minutes < 60
        {
            return Some((hours, minutes, true));
        }
        if let Some(digits) = word.strip_suffix("pm").or_else(|| word.strip_suffix("am"))
            && let Some(found) = hour(digits)
        {
            return Some((found, 0, true));
        }
        // "six people" counts guests, "seven thirty" does not.
        let follower = at(index + 1);
        if let Some(found) = hour(word)
            && !matches!(follower, Some("people" | "persons" | "guests" | "of"))
        {
            let sure = matches!(follower, Some("o'clock" | "oclock" | "pm" | "am"));
            let minute = follower.and_then(|next| minute(next, at(index + 2)));
            return Some((found, minute.unwrap_or(0), sure || minute.is_some()));
        }
    }
    None
}

/// Is there a word that makes a bare number a time: "at seven", or nothing but the number?
fn near_time_word(words: &[String]) -> bool {
    let number = words.iter().position(|word| hour(word).is_some());
    let Some(number) = number else { return false };
    let before = number.checked_sub(1).and_then(|index| words.get(index)).map(String::as_str);
    matches!(before, Some("at" | "around" | "about" | "by" | "for" | "it" | "say")) || words.len() <= 2
}

fn hour(word: &str) -> Option<u16> {
    let number = word.parse().ok().or_else(|| spelled(word))?;
    (1..=23).contains(&number).then_some(number)
}

fn minute(word: &str, next: Option<&str>) -> Option<u16> {
    if let Ok(number) = word.parse::<u16>() {
        return (word.len() == 2 && number < 60).then_some(number);
    }
    let tens = match word {
        "twenty" => 20,
        "thirty" => 30,
        "forty" => 40,
        "fifty" => 50,
        _ => return spelled(word).filter(|number| (10..20).contains(number)),
    };
    Some(tens + next.and_then(spelled).filter(|ones| *ones < 10).unwrap_or(0))
}

fn spelled(word: &str) -> Option<u16> {
    NUMBERS.iter().position(|number| *number == word).and_then(|number| u16::try_from(number).ok())
}

/// Words before a name that always mean one.
const INTRODUCTIONS: &[&[&str]] =
    &[&["name", "is"], &["name's"], &["name", "of"], &["the", "name"], &["call", "me"]];
/// Words before a name that may mean something else ("I'm hungry").
const WEAK_INTRODUCTIONS: &[&[&str]] = &[&["this", "is"], &["i'm"], &["i", "am"], &["it's"]];

/// A name that is introduced: "my name is …", "under the name …"; with `weak` also "this is …", "I'm …".
pub fn introduced_name(text: &str, weak: bool) -> Option<String> {
    let words = words(text);
    let weak: &[&[&str]] = if weak { WEAK_INTRODUCTIONS } else { &[] };
    for introduction in INTRODUCTIONS.iter().chain(weak) {
        let at = words.windows(introduction.len()).position(|window| window == *introduction);
        if let Some(at) = at {
            let name: Vec<&String> = words[at + introduction.len()..]
                .iter()
                .take_while(|word| is_name_word(word))
                .take(NAME_WORDS_MAX)
                .collect();
            if !name.is_empty() {
                return Some(join(&name));
            }
        }
    }
    None
}

/// A name as an answer to "your name?": a few words that are neither filler nor a day nor a number.
pub fn bare_name(text: &str) -> Option<String> {
    let words = words(text);
    let name: Vec<&String> = words.iter().filter(|word| is_name_word(word)).collect();
    (1..=NAME_WORDS_MAX)
        .contains(&name.len())
        .then(|| join(&name))
        .filter(|_| words.len() <= NAME_WORDS_MAX + 3)
}

fn is_name_word(word: &str) -> bool {
    !NO_NAMES.contains(&word)
        && !DAYS.contains(&word)
        && spelled(word).is_none()
        && word.chars().all(|c| c.is_alphabetic() || c == '\'')
}

fn join(words: &[&String]) -> String {
    words.iter().map(|word| capitalised(word)).collect::<Vec<_>>().join(" ")
}

fn capitalised(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// As it is spoken: "7 PM", "7:30 PM", "noon".
pub fn spoken_time(time: Minutes) -> String {
    let (hour, minute) = (time / 60, time % 60);
    let half = if hour < 12 { "AM" } else { "PM" };
    let clock = if hour % 12 == 0 { 12 } else { hour % 12 };
    match (hour, minute) {
        (12, 0) => "noon".to_owned(),
        (_, 0) => format!("{clock} {half}"),
        _ => format!("{clock}:{minute:02} {half}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_the_ways_people_say_them() {
        for (text, expected) in [
            ("At seven in the evening, please.", "7 PM"),
            ("Seven.", "7 PM"),
            ("7 p.m.", "7 PM"),
            ("7pm", "7 PM"),
            ("seven thirty", "7:30 PM"),
            ("half past seven", "7:30 PM"),
            ("Quarter to eight please", "7:45 PM"),
            ("a quarter past six", "6:15 PM"),
            ("19:30", "7:30 PM"),
            ("at 7:30", "7:30 PM"),
            ("eight o'clock", "8 PM"),
            ("noon would be good", "noon"),
            ("at eleven in the morning", "11 AM"),
            ("at seven twenty five", "7:25 PM"),
            ("Let's make it eight.", "8 PM"),
            ("for 6 people at 8", "8 PM"),
            ("A quarter to one", "12:45 PM"),
        ] {
            assert_eq!(time(text).map(spoken_time).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time() {
        for text in ["a table for two people", "My name is Anna", "", "one of them was late", "99:99"] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn days_the_last_one_counts() {
        assert_eq!(day("On Friday, please.").as_deref(), Some("Friday"));
        assert_eq!(day("Friday, no, Saturday.").as_deref(), Some("Saturday"));
        assert_eq!(day("tomorrow evening").as_deref(), Some("tomorrow"));
        assert_eq!(day("Are you open on Sundays?").as_deref(), Some("Sunday"));
        assert_eq!(day("some day"), None);
    }

    #[test]
    fn names_introduced_and_bare() {
        assert_eq!(introduced_name("My name is Anna Miller.", false).as_deref(), Some("Anna Miller"));
        assert_eq!(introduced_name("Hi, this is anna miller, please", true).as_deref(), Some("Anna Miller"));
        assert_eq!(introduced_name("under the name O'Brien", false).as_deref(), Some("O'brien"));
        assert_eq!(introduced_name("I would like to book a table.", true), None);
        assert_eq!(introduced_name("My name is.", true), None);
        assert_eq!(introduced_name("I'm coming at seven.", false), None);
        assert_eq!(bare_name("Um, Anna Miller, please.").as_deref(), Some("Anna Miller"));
        assert_eq!(bare_name("On Friday"), None);
        assert_eq!(bare_name("that is a very long story without any name in it"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics_and_times_are_in_the_day(text in "\\PC{0,80}") {
            let _ = (day(&text), introduced_name(&text, true), bare_name(&text));
            proptest::prop_assert!(time(&text).is_none_or(|time| time < 24 * 60));
        }

        #[test]
        fn number_soup_never_panics(text in "(half|quarter|past|to|one|twelve|zero|[0-9:. ]{1,5}|pm|at|thirty| ){0,12}") {
            proptest::prop_assert!(time(&text).is_none_or(|time| time < 24 * 60));
        }
    }
}
