//! The demo call in figures, as it is printed, and the verdict on it.

use std::fmt::{self, Write};

use tandem_api::v1::{Call, Conversation};
use tandem_phone::{CallReport, EndedBy};

/// What is known of the demo call: from the phone that made it, and from the service that took it.
#[derive(Debug, Clone)]
pub struct DemoReport {
    /// As the caller's phone measured it, at the wire.
    pub phone: CallReport,
    /// As the control plane recorded it.
    pub call: Call,
    /// What was said, as the voice agent wrote it down.
    pub conversation: Conversation,
}

/// What must have happened for the demo call to have worked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expected {
    /// Turns of the caller.
    pub turns: usize,
    /// Words that the agent must have said, in lower case.
    pub agent_words: Vec<String>,
}

/// Why the demo call did not work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Failure {
    /// Nobody's words were written down.
    #[error("the transcript holds nothing of the {0}")]
    Silent(&'static str),
    /// The agent did not say what the caller came for.
    #[error("the agent never said \"{0}\"")]
    Unsaid(String),
    /// Fewer answers than questions.
    #[error("the agent answered {got} of {wanted} turns")]
    Unanswered {
        /// Answers heard.
        got: usize,
        /// Turns of the caller.
        wanted: usize,
    },
    /// The stream had gaps.
    #[error("{0} RTP packets were lost")]
    Lost(u64),
    /// Not one packet came.
    #[error("no RTP was received")]
    NoMedia,
    /// Not by a BYE of one of the two.
    #[error("the call did not end normally: {0}")]
    Ending(String),
}

impl DemoReport {
    /// Did it work?
    pub fn verdict(&self, expected: &Expected) -> Result<(), Failure> {
        let said = |role: &str| -> String {
            let messages = self.conversation.messages.iter().filter(|message| message.role == role);
            messages.map(|message| message.text.to_lowercase() + "\n").collect()
        };
        if said("caller").trim().is_empty() {
            return Err(Failure::Silent("caller"));
        }
        let agent = said("agent");
        if agent.trim().is_empty() {
            return Err(Failure::Silent("agent"));
        }
        if let Some(word) = expected.agent_words.iter().find(|word| !agent.contains(word.as_str())) {
            return Err(Failure::Unsaid(word.clone()));
        }
        let got = self.phone.response_ms.len();
        if got < expected.turns {
            return Err(Failure::Unanswered { got, wanted: expected.turns });
        }
        let lost = self.phone.rtp.lost + self.media().rtp_lost;
        if lost > 0 {
            return Err(Failure::Lost(lost));
        }
        if self.phone.rtp.received == 0 {
            return Err(Failure::NoMedia);
        }
        let ending = self.call.ending.clone().unwrap_or_default();
        let hung_up = matches!(self.phone.ended_by, Some(EndedBy::Us | EndedBy::Peer));
        if self.call.state != "ended" || !hung_up || !matches!(ending.party.as_str(), "caller" | "agent") {
            return Err(Failure::Ending(format!("{} ({})", ending.detail, self.call.state)));
        }
        Ok(())
    }

    fn media(&self) -> tandem_api::v1::MediaStats {
        self.call.media.clone().unwrap_or_default()
    }
}

/// Where the transcript's lines are broken.
const LINE: usize = 96;

impl fmt::Display for DemoReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (phone, media) = (&self.phone, self.media());
        writeln!(f, "── demo call ─────────────────────────────────────────────────────────────")?;
        for message in &self.conversation.messages {
            let who = if message.role == "agent" { "agent " } else { "caller" };
            let cut = if message.interrupted { " …(interrupted)" } else { "" };
            let mut lines = wrap(&message.text, LINE - 8).into_iter();
            writeln!(f, "{who}  {}", lines.next().unwrap_or_default())?;
            for line in lines {
                writeln!(f, "        {line}")?;
            }
            if !cut.is_empty() {
                writeln!(f, "       {cut}")?;
            }
        }
        writeln!(f)?;
        writeln!(f, "setup             {:.0} ms (INVITE to 200)", phone.setup_ms)?;
        let turns: Vec<String> = phone.response_ms.iter().map(|ms| format!("{ms:.0}")).collect();
        let median = phone.response_median_ms().map_or("not measured".to_owned(), |ms| format!("{ms:.0} ms"));
        writeln!(f, "response latency  median {median}; by turn {} ms", turns.join(", "))?;
        writeln!(
            f,
            "                  (end of the caller's speech to the agent's first sound, at the wire)"
        )?;
        write_stages(f, &self.conversation)?;
        writeln!(
            f,
            "RTP               {} sent, {} received, {} lost; jitter {:.1} ms",
            phone.rtp.sent, phone.rtp.received, phone.rtp.lost, phone.rtp.jitter_ms
        )?;
        writeln!(
            f,
            "RTP at the engine {} sent, {} received, {} lost; codec {}",
            media.rtp_sent, media.rtp_received, media.rtp_lost, media.codec
        )?;
        let ending = self.call.ending.clone().unwrap_or_default();
        let lasted = phone.duration.as_secs_f64();
        writeln!(f, "ended             by the {} after {lasted:.1} s ({})", ending.party, ending.detail)?;
        write!(f, "──────────────────────────────────────────────────────────────────────────")
    }
}

/// The medians of the stages inside the agent, when it measured them.
fn write_stages(f: &mut fmt::Formatter<'_>, conversation: &Conversation) -> fmt::Result {
    let timings: Vec<_> = conversation.messages.iter().filter_map(|message| message.timing).collect();
    type Stage = (&'static str, fn(&tandem_api::v1::TurnTiming) -> u32);
    let stages: [Stage; 5] = [
        ("end of speech", |timing| timing.end_of_speech_ms),
        ("text", |timing| timing.stt_final_ms),
        ("first word", |timing| timing.llm_first_token_ms),
        ("first sound", |timing| timing.tts_first_audio_ms),
        ("sent", |timing| timing.first_audio_sent_ms),
    ];
    let mut line = String::new();
    for (name, stage) in stages {
        let mut values: Vec<u32> = timings.iter().map(stage).filter(|ms| *ms > 0).collect();
        values.sort_unstable();
        if let Some(median) = values.get(values.len() / 2) {
            let arrow = if line.is_empty() { "" } else { " → " };
            write!(line, "{arrow}{name} {median}")?;
        }
    }
    if line.is_empty() { Ok(()) } else { writeln!(f, "  inside the agent {line} ms (medians)") }
}

/// Breaks a text at spaces.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = lines.last().is_none_or(|line| line.chars().count() + word.chars().count() < width);
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if fits => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tandem_api::v1::{Ending, MediaStats, Message};
    use tandem_phone::RtpReport;

    use super::*;

    fn message(role: &str, text: &str) -> Message {
        Message { role: role.into(), text: text.into(), ..Message::default() }
    }

    fn good() -> (DemoReport, Expected) {
        let phone = CallReport {
            setup_ms: 31.4,
            ringing_ms: None,
            provisional: vec![180],
            first_packet_ms: Some(5.0),
            first_audible_ms: Some(60.0),
            duration: Duration::from_secs(21),
            rtp: RtpReport { sent: 1_050, received: 1_049, ..RtpReport::default() },
            response_ms: vec![612.0, 540.0],
            ended_by: Some(EndedBy::Peer),
            reason: None,
        };
        let ending =
            Ending { party: "agent".into(), detail: "the agent hung up".into(), ..Ending::default() };
        let media =
            MediaStats { rtp_sent: 1_050, rtp_received: 1_049, codec: "PCMU".into(), ..Default::default() };
        let call =
            Call { state: "ended".into(), ending: Some(ending), media: Some(media), ..Call::default() };
        let messages = vec![
            message("agent", "Hello."),
            message("caller", "A table for Friday please."),
            message("agent", "Booked for Friday. Goodbye."),
        ];
        let conversation = Conversation { call_id: "c".into(), messages };
        let expected = Expected { turns: 2, agent_words: vec!["booked".into(), "friday".into()] };
        (DemoReport { phone, call, conversation }, expected)
    }

    #[test]
    fn good_call_passes_and_its_report_holds_every_figure() {
        let (report, expected) = good();
        assert_eq!(report.verdict(&expected), Ok(()));
        let text = report.to_string();
        for part in [
            "caller  A table",
            "setup             31 ms",
            "median 612 ms",
            "by turn 612, 540",
            "0 lost",
            "PCMU",
            "by the agent after 21.0 s",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn each_way_to_fail_is_named() {
        let (mut report, expected) = good();
        report.phone.rtp.lost = 3;
        assert_eq!(report.verdict(&expected), Err(Failure::Lost(3)));
        let (mut report, expected) = good();
        report.conversation.messages.retain(|message| message.role == "agent");
        assert_eq!(report.verdict(&expected), Err(Failure::Silent("caller")));
        let (report, mut expected) = good();
        expected.agent_words.push("saturday".into());
        assert_eq!(report.verdict(&expected), Err(Failure::Unsaid("saturday".into())));
        let (mut report, expected) = good();
        report.phone.response_ms.pop();
        assert_eq!(report.verdict(&expected), Err(Failure::Unanswered { got: 1, wanted: 2 }));
        let (mut report, expected) = good();
        report.phone.ended_by = Some(EndedBy::Lost);
        assert!(matches!(report.verdict(&expected), Err(Failure::Ending(_))));
        let (mut report, expected) = good();
        report.phone.rtp.received = 0;
        assert_eq!(report.verdict(&expected), Err(Failure::NoMedia));
    }

    #[test]
    fn long_utterances_are_broken_at_spaces() {
        assert_eq!(wrap("one two three", 9), ["one two", "three"]);
        assert_eq!(wrap("", 9), [""]);
    }
}
