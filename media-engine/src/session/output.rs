//! What must leave a session: packets, reports, octets for the agent, events.

use std::collections::VecDeque;
use std::time::Instant;

use tandem_audio::format::MAX_PACKET_SAMPLES;
use tandem_audio::noise::Sid;
use tandem_audio::tone::ProgressTone;

use super::playout::{Playout, PtimeClock};
use super::second::{Party, SecondLeg};
use super::speech::NOISE_LEVEL;
use super::{EVENTS_MAX, EventBudget, Oddities, Port, Session, Transmit};
use crate::leg::agent::Agent;
use crate::leg::event::Event;
use crate::leg::provider::Counters;
use crate::leg::rtp::{Rtcp, RtpLeg};
use crate::leg::stream::Stream;

impl Session {
    /// Writes the datagram that is due into `out` (room for 1 472 octets), or `None` when none is due.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        if self.ended {
            return None;
        }
        self.poll_packet(now, out).or_else(|| self.poll_secure(out)).or_else(|| {
            let next_packet = self.clock.as_ref().map(PtimeClock::next);
            let (to, len) = self.rtp.poll_report(now, next_packet, out)?;
            let stats = self.stats(now);
            self.push_event(Event::Report { stats });
            Some(Transmit { from: self.report_port(), to, len })
        })
    }

    fn poll_secure(&mut self, out: &mut [u8]) -> Option<Transmit> {
        let (to, len) = self.rtp.poll_secure(out)?;
        Some(Transmit { from: Port::Rtp, to, len })
    }

    /// Writes the leave that RTCP takes when the session is over; once.
    pub fn poll_goodbye(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        let (to, len) = self.rtp.poll_goodbye(now, out)?;
        Some(Transmit { from: self.report_port(), to, len })
    }

    fn report_port(&self) -> Port {
        report_port(&self.rtp)
    }

    pub(super) fn poll_packet(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        loop {
            let lost = self.clock.as_mut()?.poll_due(now)?;
            self.playout.set_time(now);
            for _ in 0..lost {
                self.rtp.skip();
            }
            self.hear_pause(now);
            if let Some(len) = self.make_noise(now, out) {
                self.handle_played();
                let Some(len) = len else { continue };
                let Some(to) = self.rtp.destination() else { continue };
                return Some(Transmit { from: Port::Rtp, to, len });
            }
            let ptime = self.rtp.ptime();
            let is_streamed = self.is_streamed;
            let Self {
                agent,
                playout,
                second,
                ringing,
                is_early,
                bridge,
                rtp,
                speech,
                has_said,
                is_unheard,
                ..
            } = self;
            let mut voice = |frame: &mut [i16]| {
                if *is_early {
                    return 0;
                }
                let len = say(agent, playout, second.as_deref_mut(), ringing.as_deref_mut(), frame);
                if let Some(speech) = speech {
                    speech.hear_agent(&frame[..len], now);
                }
                *has_said = len > 0;
                *is_unheard |= len > 0 && is_streamed;
                len
            };
            let (Some(to), Some(bridge)) = (rtp.destination(), bridge.as_mut()) else {
                rtp.skip();
                // The caller is on hold; whom the agent consults hears it all the same.
                if matches!(self.second(), Some(second) if second.role().hears(Party::Second, Party::Agent)) {
                    let samples = self.playout.rate().samples(ptime).min(MAX_PACKET_SAMPLES);
                    let mut frame = [0; MAX_PACKET_SAMPLES];
                    let Self { agent, playout, second, .. } = self;
                    say(agent, playout, second.as_deref_mut(), None, &mut frame[..samples]);
                    self.handle_played();
                }
                continue;
            };
            let written = rtp.write_packet(out, |_, payload| bridge.down(payload, &mut voice));
            self.handle_played();
            if let Some(len) = written {
                return Some(Transmit { from: Port::Rtp, to, len });
            }
        }
    }

    /// While the agent says nothing, and noise was asked for and negotiated: the packet that is due, which is a description of it or
    /// none at all. `None`: sound is due.
    fn make_noise(&mut self, now: Instant, out: &mut [u8]) -> Option<Option<usize>> {
        let speech = self.speech.as_mut()?;
        let is_still = self.playout.is_still()
            && self.second.is_none()
            && !self.is_early
            && matches!(self.agent, Agent::Stream(_))
            && self.rtp.takes_noise();
        let is_due = speech.poll_noise(is_still, now)?;
        if !is_due {
            self.rtp.skip();
            return Some(None);
        }
        Some(self.rtp.write_noise(&Sid::white(NOISE_LEVEL), out))
    }

    /// The same for the second leg.
    pub fn poll_second(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        let second = self.second.as_mut().filter(|_| !self.ended)?;
        if let Some((to, len)) = second.poll_transmit(now, out) {
            return Some(Transmit { from: Port::Rtp, to, len });
        }
        let (to, len) = second.poll_report(now, out)?;
        let (from, stats) = (report_port(second.rtp()), second.stats());
        self.push_event(Event::SecondReport { stats });
        Some(Transmit { from, to, len })
    }

    /// Writes the leave that RTCP takes on the second leg, before that is removed or the session is over; once.
    pub fn poll_second_goodbye(&mut self, now: Instant, out: &mut [u8]) -> Option<Transmit> {
        let second = self.second.as_mut()?;
        let (to, len) = second.poll_goodbye(now, out)?;
        Some(Transmit { from: report_port(second.rtp()), to, len })
    }

    /// Whether [`Session::poll_stream`] has something.
    pub fn has_stream_output(&self) -> bool {
        self.agent.stream().is_some_and(|stream| stream.has_output())
    }

    /// Writes octets for the agent's TCP stream into `out` and says how many.
    pub fn poll_stream(&mut self, out: &mut [u8]) -> usize {
        self.agent.stream_mut().map_or(0, |stream| stream.poll_stream(out))
    }

    /// True once the agent's stream is of no more use: lost, or closed by us and all of it written.
    pub fn is_stream_over(&self) -> bool {
        self.agent.stream().is_none_or(|stream| {
            stream.has_failed() || (!stream.is_open() && self.ended && !stream.has_output())
        })
    }

    /// When to come back: for [`Session::poll_transmit`] or [`Session::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.ended {
            return None;
        }
        let agent = self.agent.stream().and_then(Stream::poll_timeout);
        let clock = self.clock.as_ref().map(PtimeClock::next);
        let report = self.rtp.poll_report_timeout();
        let second = self.second.as_ref().map(|second| second.poll_timeout());
        let speech = self.speech.as_ref().and_then(|speech| speech.poll_timeout(self.is_watched()));
        let (transport, hangup, media) =
            (self.rtp.poll_timeout(), self.hangup_when_dry, Some(self.media_deadline));
        let provider = self.provider.as_ref().and_then(|provider| provider.poll_timeout());
        [clock, report, transport, agent, second, speech, hangup, media, provider, self.end]
            .into_iter()
            .flatten()
            .min()
    }

    /// What the control plane should know, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What was asked for and not done since the last time, for the counters of the core.
    pub fn poll_oddities(&mut self) -> Oddities {
        let second = self.second.as_ref().map_or(0, |second| second.rtp().handshake_overflowed());
        let all = Oddities {
            events_refused: self.budget.refused,
            marks_refused: self.playout.marks_refused(),
            malformed: self.agent.stream().map_or(0, Stream::malformed),
            handshake_overflowed: self.rtp.handshake_overflowed() + second,
            provider: self.provider.as_ref().map(|provider| provider.counters()).unwrap_or_default(),
        };
        let told = std::mem::replace(&mut self.told, all);
        Oddities {
            events_refused: all.events_refused - told.events_refused,
            // Another codec begins the echo's queue anew, and its count too.
            marks_refused: all.marks_refused.saturating_sub(told.marks_refused),
            malformed: all.malformed - told.malformed,
            // A second leg takes its count along when it goes.
            handshake_overflowed: all.handshake_overflowed.saturating_sub(told.handshake_overflowed),
            provider: Counters {
                malformed: all.provider.malformed.saturating_sub(told.provider.malformed),
                dropped_ms: all.provider.dropped_ms.saturating_sub(told.provider.dropped_ms),
                mislabelled: all.provider.mislabelled.saturating_sub(told.provider.mislabelled),
            },
        }
    }

    pub(super) fn push_event(&mut self, event: Event) {
        push(&mut self.events, &mut self.budget, event);
    }
}

/// From which port a leg's reports go.
fn report_port(rtp: &RtpLeg) -> Port {
    match rtp.parameters().rtcp {
        Rtcp::Separate { .. } => Port::Rtcp,
        Rtcp::Off | Rtcp::Mux => Port::Rtp,
    }
}

/// What the caller hears next, and how many samples of it: the agent, and the second leg as its role says, which
/// gets the agent's words at the same time.
fn say(
    agent: &mut Agent,
    playout: &mut Playout,
    second: Option<&mut SecondLeg>,
    ringing: Option<&mut ProgressTone>,
    frame: &mut [i16],
) -> usize {
    let mut from_agent = |frame: &mut [i16]| match agent.make_frame(frame) {
        true => frame.len(),
        false => playout.take(frame),
    };
    let Some(second) = second else { return from_agent(frame) };
    let role = second.role();
    let (caller_hears, second_hears) =
        (role.hears(Party::Caller, Party::Agent), role.hears(Party::Second, Party::Agent));
    let mut len = if caller_hears || second_hears { from_agent(frame) } else { 0 };
    frame[len..].fill(0);
    second.push(Party::Agent, &frame[..len]);
    if !caller_hears {
        frame[..len].fill(0);
        len = 0;
        if let Some(ringing) = ringing {
            ringing.fill(frame);
            len = frame.len();
        }
    }
    len.max(second.mix_into(Party::Caller, frame))
}

/// Queues an event, or counts it when too many wait.
pub(super) fn push(events: &mut VecDeque<Event>, budget: &mut EventBudget, event: Event) {
    if events.len() < EVENTS_MAX {
        events.push_back(event);
    } else {
        budget.refused += 1;
    }
}
