//! What a session does with the caller's speech: barge-in, silence that the agent is spared, and how long nobody has spoken.
//!
//! ```text
//!   Vad ──began──▶ barge-in: the playout queue pauses or is cleared        agent decides: resume, clear
//!       ──ended──▶ a pause that nobody decided on ends a second later
//!   caller's samples ─▶ Gate ─▶ agent       closed: the last 200 ms are kept, and given first when it opens
//!   caller's speech, agent's sound that left ─▶ quiet since ─▶ Idle
//! ```
//!
//! Nobody has this but sessions that were opened with one of the options; it is boxed, and the packet path of the others pays for one
//! branch.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tandem_audio::format::SampleRate;
use tandem_audio::vad::Vad;

/// Sound before the onset that the agent is given first, so that no word begins in its middle: the detector takes 30 ms, and the
/// quiet consonants before a vowel up to 150.
pub const PRE_ROLL_MS: usize = 200;

/// A pause that the barge-in has made and that the agent neither ended nor made a clear of ends so long after the caller has fallen
/// silent: an agent that knows nothing of it must not stay silent for ever.
pub const DECIDE_WITHIN: Duration = Duration::from_secs(1);

/// Sound of the agent below this peak, −50 dBFS, is silence that somebody sends.
const SILENCE_PEAK: u16 = 104;

/// Silent packets before comfort noise takes their place: a pause between two sentences sends no description of itself.
pub const NOISE_AFTER: Duration = Duration::from_millis(200);

/// How often the noise is described anew while it lasts: often enough for NATs, and for peers that time out.
pub const NOISE_EVERY: Duration = Duration::from_millis(500);

/// Of the comfort noise that is sent: −65 dBov, a quiet line.
pub const NOISE_LEVEL: u8 = 65;

/// What happens to the playout queue when the caller begins to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BargeIn {
    /// Nothing: the agent hears of it, and decides.
    #[default]
    Off,
    /// It fades out and is held; the agent resumes or clears it.
    Pause,
    /// It is emptied.
    Clear,
}

/// What is wanted of a session; nothing by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpeechParameters {
    /// When the caller begins to speak.
    pub barge_in: BargeIn,
    /// The agent gets no frames of silence, but is told how long the gaps are.
    pub suppress_silence: bool,
    /// Nobody has spoken for so long: an event, once.
    pub idle: Option<Duration>,
    /// While the agent says nothing the caller gets comfort noise (RFC 3389), where that was negotiated.
    pub comfort_noise: bool,
}

/// What the playout queue waits for after a barge-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// For nothing.
    No,
    /// The caller speaks.
    Speaking,
    /// He is silent again: it goes on then.
    Until(Instant),
}

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// The playout queue goes on.
    Resume,
    /// Nobody has spoken for so long.
    Idle(Duration),
}

/// See the module.
#[derive(Debug)]
pub struct Speech {
    parameters: SpeechParameters,
    is_speaking: bool,
    /// Nobody was heard since.
    quiet_since: Instant,
    was_idle_told: bool,
    /// Silence counted when the clock was last looked at.
    was_watched: bool,
    held: Held,
    gate: Option<Gate>,
    /// The agent has been silent since; and when its silence was described last.
    still_since: Option<Instant>,
    described: Option<Instant>,
}

impl Speech {
    /// Of a session whose agent hears sound of this rate; `None` when nothing is wanted.
    pub fn new(parameters: SpeechParameters, rate: SampleRate, now: Instant) -> Option<Box<Self>> {
        (parameters != SpeechParameters::default()).then(|| {
            Box::new(Self {
                parameters,
                is_speaking: false,
                quiet_since: now,
                was_idle_told: false,
                was_watched: false,
                held: Held::No,
                gate: parameters.suppress_silence.then(|| Gate::new(rate)),
                still_since: None,
                described: None,
            })
        })
    }

    /// The caller's speech must be looked for.
    pub fn listens(&self) -> bool {
        let SpeechParameters { barge_in, suppress_silence, idle, .. } = self.parameters;
        barge_in != BargeIn::Off || suppress_silence || idle.is_some()
    }

    /// How long nobody has spoken.
    pub fn idle(&self, now: Instant) -> Duration {
        match self.is_speaking {
            true => Duration::ZERO,
            false => now.saturating_duration_since(self.quiet_since),
        }
    }

    /// Through which the agent hears the caller, if it is spared silence.
    pub fn gate_mut(&mut self) -> Option<&mut Gate> {
        self.gate.as_mut()
    }

    /// The caller began to speak. Says what is to become of the playout queue, which has `sound` or not.
    pub fn handle_onset(&mut self, sound: bool, now: Instant) -> BargeIn {
        self.is_speaking = true;
        self.attend(now);
        match self.parameters.barge_in {
            barge_in if sound => {
                if barge_in == BargeIn::Pause {
                    self.held = Held::Speaking;
                }
                barge_in
            }
            _ if self.held != Held::No => {
                // He goes on before the agent has decided.
                self.held = Held::Speaking;
                BargeIn::Off
            }
            _ => BargeIn::Off,
        }
    }

    /// The caller has not spoken for the length of the detector's hangover.
    pub fn handle_end(&mut self, now: Instant) {
        self.is_speaking = false;
        let hangover = Duration::from_millis(u64::from(Vad::DEFAULT_HANGOVER_MS));
        self.attend(now.checked_sub(hangover).map_or(now, |heard| heard.max(self.quiet_since)));
        if self.held == Held::Speaking {
            self.held = Held::Until(now + DECIDE_WITHIN);
        }
    }

    /// The agent has resumed, paused or cleared its sound by itself.
    pub fn decide(&mut self) {
        self.held = Held::No;
    }

    /// The call was answered, is no longer on hold, or the agent was told of a transfer: silence counts from here.
    pub fn attend(&mut self, now: Instant) {
        self.quiet_since = now;
        self.was_idle_told = false;
    }

    /// The caller hears this of the agent.
    pub fn hear_agent(&mut self, samples: &[i16], now: Instant) {
        if samples.iter().any(|sample| sample.unsigned_abs() > SILENCE_PEAK) {
            self.attend(now);
        }
    }

    /// A packet is due and the agent is silent, or is not: whether noise stands in its place, and if it is described now.
    pub fn poll_noise(&mut self, is_still: bool, now: Instant) -> Option<bool> {
        if !self.parameters.comfort_noise || !is_still {
            (self.still_since, self.described) = (None, None);
            return None;
        }
        let since = *self.still_since.get_or_insert(now);
        if now.saturating_duration_since(since) < NOISE_AFTER {
            return None;
        }
        let is_due = self.described.is_none_or(|at| now.saturating_duration_since(at) >= NOISE_EVERY);
        if is_due {
            self.described = Some(now);
        }
        Some(is_due)
    }

    /// What has become due at `now`; `is_watched`: silence counts, because the call is up, not on hold, and nobody else is there.
    /// What was silent before does not.
    pub fn handle_timeout(&mut self, is_watched: bool, now: Instant) -> Option<Due> {
        if is_watched && !std::mem::replace(&mut self.was_watched, is_watched) {
            self.attend(now);
        }
        self.was_watched = is_watched;
        if let Held::Until(at) = self.held
            && at <= now
        {
            self.held = Held::No;
            return Some(Due::Resume);
        }
        if self.idle_deadline().filter(|_| is_watched)? > now {
            return None;
        }
        self.was_idle_told = true;
        Some(Due::Idle(self.idle(now)))
    }

    fn idle_deadline(&self) -> Option<Instant> {
        let limit = self.parameters.idle.filter(|_| !self.is_speaking && !self.was_idle_told)?;
        Some(self.quiet_since + limit)
    }

    /// When [`Speech::handle_timeout`] has something.
    pub fn poll_timeout(&self, is_watched: bool) -> Option<Instant> {
        let held = match self.held {
            Held::Until(at) => Some(at),
            Held::No | Held::Speaking => None,
        };
        let idle = self.idle_deadline().filter(|_| is_watched);
        match (held, idle) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }
}

/// Keeps silence from the agent.
#[derive(Debug)]
pub struct Gate {
    is_open: bool,
    /// The last of what was kept back, oldest first.
    kept: VecDeque<i16>,
    room: usize,
    /// Samples that were kept back and are gone.
    skipped: u64,
    samples_per_ms: usize,
}

impl Gate {
    fn new(rate: SampleRate) -> Self {
        let room = PRE_ROLL_MS * rate.samples_per_ms();
        let kept = VecDeque::with_capacity(room);
        Self { is_open: false, kept, room, skipped: 0, samples_per_ms: rate.samples_per_ms() }
    }

    /// Hands samples to the agent, or keeps them.
    pub fn pass(&mut self, samples: &[i16], agent: impl FnOnce(&[i16])) {
        if self.is_open {
            return agent(samples);
        }
        let newest = &samples[samples.len().saturating_sub(self.room)..];
        let over = (self.kept.len() + newest.len()).saturating_sub(self.room);
        self.skipped += (over + samples.len() - newest.len()) as u64;
        self.kept.drain(..over);
        self.kept.extend(newest);
    }

    /// Speech began: gives what was kept, after how many milliseconds are missing before it.
    pub fn open(&mut self) -> Option<(u64, [&[i16]; 2])> {
        if std::mem::replace(&mut self.is_open, true) {
            return None;
        }
        let missing_ms = std::mem::take(&mut self.skipped) / self.samples_per_ms as u64;
        let (first, second) = self.kept.as_slices();
        Some((missing_ms, [first, second]))
    }

    /// What was kept has been given.
    pub fn clear(&mut self) {
        self.kept.clear();
    }

    /// The agent did not hear the caller through it for a while, and does again; whether he speaks just now.
    pub fn begin_anew(&mut self, is_open: bool) {
        self.is_open = is_open;
        self.kept.clear();
        self.skipped = 0;
    }

    /// Speech ended.
    pub fn close(&mut self) {
        self.is_open = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn nothing_wanted_is_nothing_kept() {
        assert!(Speech::new(SpeechParameters::default(), SampleRate::Hz16000, Instant::now()).is_none());
    }

    #[test]
    fn gate_gives_the_last_fifth_of_a_second_and_says_what_is_missing() {
        let mut gate = Gate::new(SampleRate::Hz8000);
        for n in 0..20 {
            gate.pass(&[n; 160], |_| panic!("closed"));
        }
        let (missing_ms, [first, second]) = gate.open().unwrap();
        assert_eq!((missing_ms, first.len() + second.len()), (200, 1_600));
        assert_eq!(first.first(), Some(&10));
        gate.clear();
        assert!(gate.open().is_none());
        let mut heard = 0;
        gate.pass(&[1; 160], |samples| heard += samples.len());
        assert_eq!(heard, 160);
        gate.close();
        gate.pass(&[1; 4_000], |_| panic!("closed again"));
        assert_eq!(gate.open().map(|(missing_ms, _)| missing_ms), Some(300));
    }

    #[test]
    fn noise_is_described_after_a_while_and_then_twice_a_second() {
        let now = Instant::now();
        let wanted = SpeechParameters { comfort_noise: true, ..SpeechParameters::default() };
        let mut speech = Speech::new(wanted, SampleRate::Hz16000, now).unwrap();
        let described: Vec<u32> =
            (0..60).filter(|n| speech.poll_noise(true, now + *n * 20 * MS) == Some(true)).collect();
        assert_eq!(described, [10, 35]);
        assert_eq!(speech.poll_noise(false, now + 1_200 * MS), None);
        assert_eq!(speech.poll_noise(true, now + 1_220 * MS), None, "the next pause begins anew");
    }
}
