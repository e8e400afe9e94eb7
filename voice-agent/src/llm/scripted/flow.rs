//! The script: where the conversation stands, and what is said next. Pure: words and a wish in, words out.

use super::intents::{Intent, Wish};
use super::slots::{self, Minutes, bare_name, day, introduced_name, spoken_time};

/// First and last minute at which a table is given; the kitchen closes at ten.
const FIRST_TABLE: Minutes = 12 * 60;
const LAST_TABLE: Minutes = 21 * 60;

const HOURS: &str = "We are open from noon to 10 PM, Tuesday to Sunday. On Mondays we are closed.";
const MORE: &str = "Is there anything else I can do for you?";
const CAN_DO: &str = "I can book a table, or tell you our opening hours.";

/// What the agent says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The words.
    pub text: String,
    /// Hang up after them.
    pub hang_up: bool,
}

/// A question that is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    Name,
    Day,
    Time,
    More,
}

/// Where the conversation stands.
#[derive(Debug, Clone, Default)]
pub struct Flow {
    asked: Option<Question>,
    name: Option<String>,
    day: Option<String>,
    time: Option<Minutes>,
    booking: bool,
    booked: bool,
    last: Option<String>,
}

impl Flow {
    /// Answers the caller.
    pub fn answer(&mut self, text: &str, intent: &Intent) -> Answer {
        let (words, hang_up) = self.next(text, *intent);
        if *intent != Some(Wish::Repeat) {
            self.last = Some(words.clone());
        }
        Answer { text: words, hang_up }
    }

    fn next(&mut self, text: &str, intent: Intent) -> (String, bool) {
        // A question or a farewell goes before what else may be in the words ("are you open on Sunday?"), unless they
        // answer what was asked ("on Sunday" is near to that example, too).
        let answers = day(text).is_some() || slots::time(text).is_some();
        match intent {
            Some(Wish::Goodbye) => return (self.goodbye(), true),
            Some(Wish::No)
                if self.asked == Some(Question::More)
                    && day(text).is_none()
                    && slots::time(text).is_none() =>
            {
                return (self.goodbye(), true);
            }
            Some(Wish::Hours) if is_about_opening(text) || !answers => return (self.and_back(HOURS), false),
            Some(Wish::Repeat) => {
                return (self.last.clone().unwrap_or_else(|| format!("I said: {CAN_DO}")), false);
            }
            Some(Wish::Person) => {
                let sorry = "I am sorry, I am a demonstration, and there is nobody I could connect you to.";
                return (self.and_back(sorry), false);
            }
            Some(Wish::Help) => return (self.and_back(CAN_DO), false),
            _ => {}
        }
        let found = self.fill(text, intent);
        if let Some(problem) = found.problem {
            return (problem, false);
        }
        if !self.booking {
            return match intent {
                Some(Wish::Yes) => (format!("Gladly. {CAN_DO}"), false),
                _ => (format!("Sorry, I did not get that. {CAN_DO}"), false),
            };
        }
        if !found.any && intent != Some(Wish::Book) {
            let what = if self.booked { MORE.to_owned() } else { self.question() };
            return (format!("Sorry, I did not get that. {what}"), false);
        }
        (self.proceed(found.any), false)
    }

    fn goodbye(&self) -> String {
        match (&self.day, self.booked) {
            (Some(day), true) => format!("Thank you for calling. See you {}. Goodbye.", on(day)),
            _ => "Thank you for calling. Goodbye.".to_owned(),
        }
    }

    /// Says something by the way, and goes back to the open question.
    fn and_back(&mut self, aside: &str) -> String {
        if self.booking && !self.booked {
            format!("{aside} {}", self.question())
        } else {
            self.asked = Some(Question::More);
            format!("{aside} {MORE}")
        }
    }

    fn fill(&mut self, text: &str, intent: Intent) -> Found {
        let mut found = Found::default();
        let (day, time) = (day(text), slots::time(text));
        if intent == Some(Wish::Book) || day.is_some() || time.is_some() {
            self.booking = true;
        }
        if !self.booking {
            return found;
        }
        let asked = self.asked == Some(Question::Name);
        let name = introduced_name(text, asked)
            .or_else(|| bare_name(text).filter(|_| asked && day.is_none() && time.is_none()));
        if let Some(name) = name {
            self.name = Some(name);
            found.any = true;
        }
        if let Some(time) = time {
            if (FIRST_TABLE..=LAST_TABLE).contains(&time) {
                self.time = Some(time);
                found.any = true;
            } else {
                self.asked = Some(Question::Time);
                found.problem = Some(format!(
                    "I am sorry, tables are from noon to 9 PM, so {} is not possible. At what time would you like to come?",
                    spoken_time(time)
                ));
            }
        }
        if let Some(day) = day {
            if day == "Monday" {
                self.asked = Some(Question::Day);
                found.problem =
                    Some("I am sorry, on Mondays we are closed. Which other day would suit you?".into());
            } else {
                self.day = Some(day);
                found.any = true;
            }
        }
        found
    }

    /// The next question of the booking, or its end.
    fn proceed(&mut self, something_new: bool) -> String {
        if let (Some(name), Some(day), Some(time)) = (&self.name, &self.day, self.time) {
            let table = format!("a table for {name}, {} at {}", on(day), spoken_time(time));
            let text = match (self.booked, something_new) {
                (false, _) => format!("Thank you. I have booked {table}. {MORE}"),
                (true, true) => format!("I have changed it. You now have {table}. {MORE}"),
                (true, false) => format!("You have {table}. Tell me what to change."),
            };
            self.booked = true;
            self.asked = Some(Question::More);
            return text;
        }
        let thanks = match (something_new, self.asked) {
            (true, Some(_)) => "Thank you.",
            _ => "With pleasure.",
        };
        format!("{thanks} {}", self.question())
    }

    fn question(&mut self) -> String {
        let (asked, text) = if self.name.is_none() {
            (Question::Name, "What is your name?".to_owned())
        } else if self.day.is_none() {
            (Question::Day, "For which day would you like the table?".to_owned())
        } else {
            (Question::Time, "At what time would you like to come?".to_owned())
        };
        self.asked = Some(asked);
        text
    }
}

fn is_about_opening(text: &str) -> bool {
    let text = text.to_lowercase();
    ["open", "close", "hours"].iter().any(|word| text.contains(word))
}

#[derive(Default)]
struct Found {
    any: bool,
    problem: Option<String>,
}

fn on(day: &str) -> String {
    match day {
        "today" | "tonight" | "tomorrow" => day.to_owned(),
        _ => format!("on {day}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A dialogue: what the caller says with the wish that is in it, and a part of what the agent must answer.
    type Dialogue = &'static [(&'static str, Intent, &'static str)];

    const DIALOGUES: &[(&str, Dialogue)] = &[
        (
            "a booking in order",
            &[
                ("Hello, I would like to book a table.", Some(Wish::Book), "What is your name?"),
                ("My name is Anna Miller.", None, "which day"),
                ("On Friday, please.", None, "what time"),
                (
                    "At seven in the evening, please.",
                    None,
                    "booked a table for Anna Miller, on Friday at 7 PM.",
                ),
                ("Thank you, goodbye.", Some(Wish::Goodbye), "See you on Friday. Goodbye."),
            ],
        ),
        (
            "everything at once",
            &[
                (
                    "A table for tomorrow at half past seven, my name is Joe.",
                    Some(Wish::Book),
                    "a table for Joe, tomorrow at 7:30 PM",
                ),
                ("No.", Some(Wish::No), "Goodbye."),
            ],
        ),
        (
            "opening hours in the middle of a booking",
            &[
                ("I want to book a table.", Some(Wish::Book), "name"),
                (
                    "What are your opening hours?",
                    Some(Wish::Hours),
                    "noon to 10 PM, Tuesday to Sunday. On Mondays we are closed. What is your name?",
                ),
                ("Anna Miller.", None, "which day"),
            ],
        ),
        (
            "hours that name a day are no booking",
            &[
                ("Are you open on Sunday?", Some(Wish::Hours), "anything else"),
                ("No, thank you.", Some(Wish::No), "Goodbye."),
            ],
        ),
        (
            "not understood",
            &[
                ("Purple monkey dishwasher.", None, "Sorry, I did not get that. I can book a table"),
                ("I want a table.", Some(Wish::Book), "name"),
                ("", None, "Sorry, I did not get that. What is your name?"),
            ],
        ),
        (
            "closed day and late hour",
            &[
                ("I want a table on Monday.", Some(Wish::Book), "closed. Which other day"),
                ("Then Tuesday.", None, "name"),
                ("It's Bob.", None, "what time"),
                ("At eleven at night.", None, "11 PM is not possible"),
                ("Eight.", None, "for Bob, on Tuesday at 8 PM"),
            ],
        ),
        (
            "a change after the booking",
            &[
                ("Book a table on Friday at 8 pm, my name is Ann.", Some(Wish::Book), "booked"),
                (
                    "Make it Saturday.",
                    None,
                    "I have changed it. You now have a table for Ann, on Saturday at 8 PM.",
                ),
            ],
        ),
        (
            "repeat says the same again, twice too",
            &[
                ("I want to book a table.", Some(Wish::Book), "With pleasure. What is your name?"),
                ("Pardon?", Some(Wish::Repeat), "With pleasure. What is your name?"),
                ("Pardon?", Some(Wish::Repeat), "With pleasure. What is your name?"),
            ],
        ),
        (
            "a person is not to be had",
            &[("Can I talk to a person?", Some(Wish::Person), "nobody I could connect you to")],
        ),
    ];

    #[test]
    fn dialogues_go_as_written() {
        for (name, dialogue) in DIALOGUES {
            let mut flow = Flow::default();
            for (said, intent, expected) in *dialogue {
                let answer = flow.answer(said, intent);
                assert!(
                    answer.text.contains(expected),
                    "{name}: {said:?} → {:?}, not {expected:?}",
                    answer.text
                );
            }
        }
    }

    #[test]
    fn only_a_goodbye_hangs_up() {
        assert!(Flow::default().answer("Bye.", &Some(Wish::Goodbye)).hang_up);
        assert!(!Flow::default().answer("No.", &Some(Wish::No)).hang_up);
    }
}
