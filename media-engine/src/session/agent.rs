//! What a session does with what its agent says, and with the stream that it says it on.

use std::time::{Duration, Instant};

use tandem_rtp::event::{EventSender, MAX_QUEUED_DIGITS};
use tandem_stream::link;

use super::output::push;
use super::playout::Playout;
use super::{DRAIN_GRACE, Session};
use crate::leg::agent::Agent;
use crate::leg::event::{Event, Request};
use crate::leg::link::LinkStream;
use crate::leg::rtp::RtpLeg;
use crate::leg::stream::{Said, Stream, Tell};

/// Keys that an agent has pressed before it hangs up take so long at most.
const KEYS_MAX: Duration = Duration::from_millis(
    MAX_QUEUED_DIGITS as u64 * (EventSender::DEFAULT_KEY_MS + EventSender::DEFAULT_PAUSE_MS) as u64,
);

impl Session {
    /// The TCP connection to the agent is up, or the link that carries this call.
    pub fn handle_connected(&mut self, now: Instant) {
        let Some(stream) = self.agent.stream_mut() else { return };
        stream.handle_connected();
        if stream.take_ready() {
            let took_ms = self.age(now).as_millis() as u32;
            self.push_event(Event::AgentConnected { took_ms });
        }
    }

    /// Octets came from the agent.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.heed(now, |stream, take| stream.handle_bytes(bytes, take));
    }

    /// A frame of the call came on its link.
    pub fn handle_frame(&mut self, message: &link::Message<'_>, now: Instant) {
        self.heed(now, |stream, take| stream.handle_frame(message, take));
    }

    /// Lets the stream read and does what the agent says.
    pub(super) fn heed(&mut self, now: Instant, read: impl FnOnce(&mut Stream, &mut dyn FnMut(Said<'_>))) {
        let took_ms = self.age(now).as_millis() as u32;
        self.playout.set_time(now);
        let unsent_ms = self.unsent_ms();
        let Self {
            agent,
            playout,
            events,
            budget,
            rtp,
            hangup_when_dry,
            hung_up,
            ended,
            wants_clear,
            is_streamed,
            ..
        } = self;
        let Agent::Stream(stream) = agent else { return };
        if *ended {
            return;
        }
        // Answers are written after the stream is done reading: it cannot do both at once.
        let mut cleared = None;
        let mut refused = Vec::new();
        let (mut is_ready, mut has_decided) = (false, false);
        read(stream, &mut |said| match said {
            Said::Ready => {
                is_ready = true;
                push(events, budget, Event::AgentConnected { took_ms });
            }
            Said::Sound(samples) => playout.push(samples),
            Said::Request(Request::Clear) => {
                let mut names = cleared.take().unwrap_or_else(Vec::new);
                playout.clear(|name| names.push(name));
                *hangup_when_dry = None;
                has_decided = true;
                cleared = Some(names);
            }
            Said::Request(Request::Mark { name }) => refused.extend(playout.mark(name).err()),
            Said::Request(Request::Pause) => {
                playout.pause();
                has_decided = true;
            }
            Said::Request(Request::Resume) => {
                playout.resume();
                has_decided = true;
            }
            Said::Request(Request::Dtmf { digits }) if rtp.parameters().event_payload_type.is_none() => {
                if budget.take(now) {
                    push(events, budget, Event::AgentDtmf { digits });
                }
            }
            Said::Request(Request::Dtmf { digits }) => drop(rtp.press(&digits)),
            Said::Request(Request::Answer) => {
                if budget.take(now) {
                    push(events, budget, Event::AgentAnswer);
                }
            }
            Said::Request(Request::Headers { headers }) => {
                if budget.take(now) {
                    push(events, budget, Event::AgentHeaders { headers });
                }
            }
            Said::Request(Request::Hangup { after_drain: true }) => {
                // Last words are to be heard, not held.
                playout.resume();
                hangup_when_dry.get_or_insert_with(|| drained_by(playout, rtp, now));
            }
            Said::Request(Request::Hangup { after_drain: false }) => {
                if !std::mem::replace(hung_up, true) {
                    push(events, budget, Event::AgentHangup { after_drain: false });
                }
            }
            Said::Request(Request::Transfer { to, mode }) => {
                if budget.take(now) {
                    push(events, budget, Event::AgentTransfer { to, mode });
                }
            }
        });
        if is_ready && self.is_outbound && self.started.is_some() && !self.is_early {
            stream.tell(&Tell::Answered);
        }
        if let (true, Some(speech)) = (has_decided, &mut self.speech) {
            speech.decide();
        }
        if let Some(names) = cleared {
            playout.take_back(unsent_ms);
            tell_cleared(stream, &names, playout.heard_ms());
            *wants_clear = *is_streamed;
        }
        // A mark that nobody will see reached is answered now: an agent must not wait for ever.
        let heard_ms = playout.heard_ms().saturating_sub(if *wants_clear { 0 } else { unsent_ms });
        for name in &refused {
            stream.tell(&Tell::Mark { name, heard_ms });
        }
        self.clear_provider(now);
        self.handle_played();
        self.handle_loss(now);
    }

    /// The agent cannot even be dialled.
    pub fn handle_undiallable(&mut self, reason: &str) {
        if let Some(stream) = self.agent.stream_mut() {
            stream.abandon();
            self.lose_agent(reason.to_owned());
        }
    }

    /// The TCP connection to the agent ended, or could not be made.
    pub fn handle_ended(&mut self, error: Option<&std::io::Error>, now: Instant) {
        if let Some(stream) = self.agent.stream_mut() {
            stream.handle_ended(error);
        }
        self.handle_loss(now);
    }

    /// The link that carries this call is lost.
    pub fn handle_link_lost(&mut self, reason: &str, now: Instant) {
        if let Some(stream) = self.agent.stream_mut() {
            stream.handle_link_lost(reason);
        }
        self.handle_loss(now);
    }

    /// The agent's stream may be lost. One that asked to hang up is not missed, and its last words are still played. In the
    /// Twilio dialect, which has no word for it, closing is how an agent hangs up.
    pub(super) fn handle_loss(&mut self, now: Instant) {
        let Some(stream) = self.agent.stream_mut() else { return };
        let Some(loss) = stream.poll_loss() else { return };
        let is_hangup = loss.is_normal && stream.hangs_up_by_closing() && self.started.is_some();
        if self.ended || self.hung_up || self.hangup_when_dry.is_some() {
            return;
        }
        if is_hangup {
            self.hangup_when_dry = Some(drained_by(&self.playout, &self.rtp, now));
            self.handle_played();
        } else {
            self.lose_agent(loss.reason);
        }
    }

    fn lose_agent(&mut self, reason: String) {
        self.agent_gone = Some(reason.clone());
        self.push_event(Event::AgentFailed { reason });
    }

    /// What was played may have reached marks, or the end.
    pub(super) fn handle_played(&mut self) {
        let unsent_ms = self.unsent_ms();
        while let Some(played) = self.playout.poll_mark() {
            if let Some(stream) = self.agent.stream_mut() {
                let heard_ms = played.heard_ms.saturating_sub(unsent_ms);
                stream.tell(&Tell::Mark { name: &played.name, heard_ms });
            }
        }
        if let Some(stream) = self.agent.stream_mut() {
            if let Some(heard_ms) = self.playout.poll_paused() {
                stream.tell(&Tell::Paused { heard_ms });
            }
            stream.handle_waiting(self.playout.waiting_ms());
        }
        if self.hangup_when_dry.is_some()
            && self.playout.is_empty()
            && !self.rtp.is_pressing()
            && !self.is_unheard
        {
            self.hang_up_dry();
        }
    }

    /// The agent has been heard out, or cannot be.
    pub(super) fn hang_up_dry(&mut self) {
        if self.hangup_when_dry.take().is_some() && !std::mem::replace(&mut self.hung_up, true) {
            self.push_event(Event::AgentHangup { after_drain: true });
        }
    }

    /// The call on a link, if the agent is reached by one.
    pub fn link_mut(&mut self) -> Option<&mut LinkStream> {
        self.agent.stream_mut().and_then(Stream::link_mut)
    }
}

/// When what the agent has said and pressed will be over at the latest.
fn drained_by(playout: &Playout, rtp: &RtpLeg, now: Instant) -> Instant {
    let keys = if rtp.is_pressing() { KEYS_MAX } else { Duration::ZERO };
    now + Duration::from_millis(playout.waiting_ms()) + keys + DRAIN_GRACE
}

/// The queue was emptied of what these marks stood behind. The Twilio dialect echoes them; ours says once how much was heard.
pub(super) fn tell_cleared(stream: &mut Stream, names: &[String], heard_ms: u64) {
    if stream.gives_cleared_marks_back() {
        for name in names {
            stream.tell(&Tell::Mark { name, heard_ms });
        }
    }
    stream.tell(&Tell::Cleared { heard_ms });
}
