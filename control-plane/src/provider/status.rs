//! What a provider says of a call, in our words, and the one state machine that keeps order.
//!
//! ```text
//!   queued ─▶ initiated ─▶ ringing ─▶ answered ─▶ completed
//!      └──────────┴───────────┴──────────┴──────▶ busy · no_answer · failed · canceled · rejected
//! ```
//!
//! Callbacks come at least once, in any order, and some never come. So a status only ever moves a call forward, steps may
//! be left out, and the first terminal one stays.

use serde::Serialize;

/// Where a provider's call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CallStatus {
    /// The provider, or we, have not dialled yet.
    #[default]
    Queued,
    /// The provider has dialled.
    Initiated,
    /// The other side's phone rings.
    Ringing,
    /// Somebody or something has picked up.
    Answered,
    /// Over, after an answer.
    Completed,
    /// The line was busy.
    Busy,
    /// It rang until the time was over.
    NoAnswer,
    /// It did not come about, for a reason of the network or the provider.
    Failed,
    /// Given up before the answer, by us.
    Canceled,
    /// The other side, or the carrier for it, said no.
    Rejected,
}

impl CallStatus {
    /// Every status, in the order of a call's life.
    pub const ALL: [Self; 10] = [
        Self::Queued,
        Self::Initiated,
        Self::Ringing,
        Self::Answered,
        Self::Completed,
        Self::Busy,
        Self::NoAnswer,
        Self::Failed,
        Self::Canceled,
        Self::Rejected,
    ];

    /// As records and metrics have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Initiated => "initiated",
            Self::Ringing => "ringing",
            Self::Answered => "answered",
            Self::Completed => "completed",
            Self::Busy => "busy",
            Self::NoAnswer => "no_answer",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
        }
    }

    /// Whether nothing comes after it.
    pub const fn is_terminal(self) -> bool {
        self.step() == Self::Completed.step()
    }

    /// Whether another try may reach somebody: the number was good, only not now.
    pub const fn is_worth_another_try(self) -> bool {
        matches!(self, Self::Busy | Self::NoAnswer)
    }

    /// How far along it is; all endings are equally far.
    const fn step(self) -> u8 {
        match self {
            Self::Queued => 0,
            Self::Initiated => 1,
            Self::Ringing => 2,
            Self::Answered => 3,
            Self::Completed
            | Self::Busy
            | Self::NoAnswer
            | Self::Failed
            | Self::Canceled
            | Self::Rejected => 4,
        }
    }
}

/// What a call's status becomes by this news; `None`: nothing, since it is old, repeated or after the end.
pub fn advance(current: CallStatus, next: CallStatus) -> Option<CallStatus> {
    (next.step() > current.step()).then_some(next)
}

/// What picked up, as far as the provider can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnsweredBy {
    /// A person.
    Human,
    /// A machine whose greeting still plays.
    Machine,
    /// A machine that has played its beep: a message would be recorded from now on.
    MachineBeep,
    /// A machine that fell silent, or ended in another way, without a beep.
    MachineEnd,
    /// A fax.
    Fax,
    /// The provider does not know.
    Unknown,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn end_of(news: impl IntoIterator<Item = CallStatus>) -> CallStatus {
        news.into_iter().fold(CallStatus::Queued, |now, next| advance(now, next).unwrap_or(now))
    }

    /// Steps of a call's life with some left out, and one ending.
    fn legal() -> impl Strategy<Value = Vec<CallStatus>> {
        let early = proptest::sample::subsequence(CallStatus::ALL[..4].to_vec(), 0..=4);
        let ending = proptest::sample::select(CallStatus::ALL[4..].to_vec());
        (early, ending).prop_map(|(mut steps, ending)| {
            steps.push(ending);
            steps
        })
    }

    proptest! {
        #[test]
        fn any_order_with_duplicates_ends_in_the_same_status(
            (ending, news) in legal().prop_flat_map(|steps| {
                let ending = *steps.last().unwrap();
                let doubled: Vec<_> = steps.iter().chain(&steps).copied().collect();
                let most = doubled.len();
                // A shuffled selection of the doubled steps, to which the ending is added so that it is not lost.
                let some = proptest::sample::subsequence(doubled, 0..=most).prop_map(move |mut some| {
                    some.push(ending);
                    some
                });
                (Just(ending), some.prop_shuffle())
            })
        ) {
            prop_assert_eq!(end_of(news), ending);
        }

        #[test]
        fn status_never_moves_back_and_an_ending_stays(
            news in proptest::collection::vec(proptest::sample::select(CallStatus::ALL.to_vec()), 0..20)
        ) {
            let mut now = CallStatus::Queued;
            let mut first_ending = None;
            for next in news {
                if let Some(moved) = advance(now, next) {
                    prop_assert!(moved.step() > now.step());
                    now = moved;
                }
                if next.is_terminal() && first_ending.is_none() {
                    first_ending = Some(next);
                }
            }
            prop_assert_eq!(first_ending, now.is_terminal().then_some(now));
        }
    }

    #[test]
    fn steps_may_be_left_out_and_repeats_are_nothing() {
        use CallStatus::*;
        assert_eq!(advance(Queued, Answered), Some(Answered));
        assert_eq!(advance(Answered, Ringing), None);
        assert_eq!(advance(Ringing, Ringing), None);
        assert_eq!(advance(Completed, Failed), None);
        assert_eq!(advance(Completed, Answered), None);
    }

    #[test]
    fn words_are_those_of_the_records() {
        for status in CallStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.word());
        }
        assert_eq!(serde_json::to_value(AnsweredBy::MachineBeep).unwrap(), "machine_beep");
    }
}
