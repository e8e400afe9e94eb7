//! Where the milliseconds of a turn went, from the end of the caller's speech to the first audio sent.

use std::time::Instant;

use tandem_api::v1::TurnTiming;

/// Moments of one turn of the agent. What the caller did not cause (greeting, idle prompt) has no beginning, and all
/// its times are 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Waterfall {
    /// The caller's speech ended.
    pub speech_ended: Option<Instant>,
    /// It was decided that it had ended.
    pub end_decided: Option<Instant>,
    /// The transcript was there.
    pub stt_final: Option<Instant>,
    /// The model's first words.
    pub first_text: Option<Instant>,
    /// The voice's first audio.
    pub first_audio: Option<Instant>,
    /// The first audio was written to the engine's connection.
    pub first_sent: Option<Instant>,
}

impl Waterfall {
    /// As the record has it.
    pub fn timing(&self) -> TurnTiming {
        let since = |moment: Option<Instant>| match (self.speech_ended, moment) {
            // 0 means "not measured": a moment in the same millisecond is 1.
            (Some(from), Some(at)) => {
                u32::try_from(at.saturating_duration_since(from).as_millis()).unwrap_or(u32::MAX).max(1)
            }
            _ => 0,
        };
        TurnTiming {
            end_of_speech_ms: since(self.end_decided),
            stt_final_ms: since(self.stt_final),
            llm_first_token_ms: since(self.first_text),
            tts_first_audio_ms: since(self.first_audio),
            first_audio_sent_ms: since(self.first_sent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_count_from_the_end_of_speech_and_missing_ones_are_zero() {
        let end = Instant::now();
        let at = |ms| Some(end + Duration::from_millis(ms));
        let waterfall = Waterfall {
            speech_ended: Some(end),
            end_decided: at(500),
            stt_final: at(310),
            first_text: at(500),
            ..Waterfall::default()
        };
        let timing = waterfall.timing();
        assert_eq!((timing.end_of_speech_ms, timing.stt_final_ms), (500, 310));
        assert_eq!((timing.tts_first_audio_ms, timing.first_audio_sent_ms), (0, 0));
    }

    #[test]
    fn a_greeting_has_no_times() {
        let waterfall = Waterfall { first_sent: Some(Instant::now()), ..Waterfall::default() };
        assert_eq!(waterfall.timing(), TurnTiming::default());
    }
}
