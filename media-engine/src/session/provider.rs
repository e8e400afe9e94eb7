//! A session whose caller comes by a provider's connection: what that says, and what leaves for it.

use std::net::Ipv4Addr;
use std::time::Instant;

use tandem_rtp::packet::HEADER_LEN;

use super::Session;
use super::digits::Source;
use crate::leg::event::{EndReason, Event, HowDropped};
use crate::leg::provider::{AUDIOSOCKET, Connection, Outcome, ProviderLeg, Word};
use crate::leg::rtp::RtpParameters;
use crate::mailbox::StreamSummary;

impl Session {
    /// The caller comes by a provider's connection.
    pub fn is_streamed(&self) -> bool {
        self.is_streamed
    }

    /// How the caller's connection stands, where he comes by one.
    pub fn stream_summary(&self) -> Option<StreamSummary> {
        let provider = self.provider.as_ref()?;
        Some(StreamSummary { state: provider.state(), started: self.stream_started.clone() })
    }

    /// The agent's sound that has left the playout queue and is on no way to the caller yet, in milliseconds.
    pub(super) fn unsent_ms(&self) -> u64 {
        self.provider.as_ref().map_or(self.unsent_ms, |provider| provider.unsent_ms())
    }

    /// Another connection may be attached.
    pub fn wants_line(&self) -> bool {
        !self.ended && self.provider.as_ref().is_some_and(|provider| provider.wants_line())
    }

    /// The connection that the caller comes by, the first or one in the place of a lost one.
    pub fn attach(&mut self, connection: Connection, now: Instant) {
        self.listen_to(now, |provider, take| provider.attach(connection, now, take));
    }

    /// Octets came from the provider.
    pub fn handle_provider_bytes(&mut self, bytes: &[u8], now: Instant) {
        self.listen_to(now, |provider, take| provider.handle_bytes(bytes, now, take));
    }

    /// The provider's connection ended.
    pub fn handle_provider_ended(&mut self, error: Option<&std::io::Error>, now: Instant) {
        self.listen_to(now, |provider, _| provider.handle_ended(error, now));
    }

    pub(super) fn handle_provider_timeout(&mut self, now: Instant) {
        if self.provider.as_ref().and_then(|provider| provider.poll_timeout()).is_some_and(|at| at <= now) {
            self.listen_to(now, |provider, take| provider.handle_timeout(now, take));
        }
    }

    /// Lets the provider's leg run, which is taken out for so long, and does what it says.
    fn listen_to(&mut self, now: Instant, run: impl FnOnce(&mut ProviderLeg, &mut dyn FnMut(Word<'_>))) {
        if self.ended {
            return;
        }
        let Some(mut provider) = self.provider.take() else { return };
        let remote = provider.remote();
        self.unsent_ms = provider.unsent_ms();
        let was_live = self.is_line_live;
        run(&mut provider, &mut |word| match word {
            Word::Started(started, codec) => {
                self.rtp.set_locked(false);
                // Where it goes is the connection's business; the RTP leg wants to know that it goes somewhere.
                let remote = Some((Ipv4Addr::LOCALHOST, 1).into());
                let parameters = RtpParameters { codec: Some(codec), remote, ..*self.rtp.parameters() };
                self.is_line_live = true;
                self.update(parameters, now, now);
                if let Some(started) = started {
                    self.stream_started = Some(started.clone());
                    self.push_event(Event::StreamStarted(started));
                }
            }
            Word::Sound { header, payload, gap } => {
                let is_first = self.hear(now, |rtp, hear| rtp.handle_frame(&header, payload, gap, now, hear));
                if let (true, Some(remote)) = (is_first, remote) {
                    let took_ms = self.age(now).as_millis() as u32;
                    self.push_event(Event::MediaStarted { remote, took_ms });
                }
                self.handle_digits(now);
            }
            Word::Dtmf { digit, duration_ms } => self.handle_digit(digit, duration_ms, Source::Stream, now),
        });
        let is_changed = provider.is_live() != was_live;
        self.is_line_live = provider.is_live();
        if !self.is_line_live {
            // The agent's words wait until somebody hears them.
            self.rtp.set_locked(true);
        }
        if std::mem::take(&mut self.wants_clear) {
            provider.clear(now);
        }
        self.playout.take_back(provider.poll_lost_ms());
        let (outcome, name) = (provider.poll_outcome(), provider.name());
        self.provider = Some(provider);
        if is_changed {
            // While nobody was there nobody was silent.
            self.handle_speech_timeout(now);
        }
        let dropped =
            |how, reason, leg_may_live| Event::StreamDropped { how, reason, leg_may_live, provider: name };
        match outcome {
            None => {}
            Some(Outcome::Stopped { reason, leg_may_live }) => {
                self.push_event(dropped(HowDropped::Stop, reason, leg_may_live));
                self.end(EndReason::StreamStopped, now);
            }
            Some(Outcome::Dropped(reason)) => self.push_event(dropped(HowDropped::Lost, reason, true)),
            Some(Outcome::Fault(reason)) => {
                // An AudioSocket's hang-up is one.
                self.push_event(dropped(HowDropped::Fault, reason, name != AUDIOSOCKET));
                self.end(EndReason::StreamFault, now);
            }
            Some(Outcome::GivenUp) => self.end(EndReason::StreamLost, now),
        }
    }

    /// The agent has taken back what was not heard.
    pub(super) fn clear_provider(&mut self, now: Instant) {
        if let (true, Some(provider)) = (self.wants_clear, &mut self.provider) {
            provider.clear(now);
            self.wants_clear = false;
        }
    }

    /// Gives the provider the packets that are due.
    pub fn pace(&mut self, now: Instant) {
        let Some(mut provider) = self.provider.take() else { return };
        while !self.ended {
            self.has_said = false;
            self.unsent_ms = provider.unsent_ms();
            let Some(transmit) = self.poll_packet(now, provider.packet()) else { break };
            debug_assert!(transmit.len >= HEADER_LEN, "a header comes first");
            provider.say(transmit.len, self.has_said, now);
        }
        if std::mem::take(&mut self.wants_clear) {
            provider.clear(now);
        }
        self.playout.take_back(provider.poll_lost_ms());
        self.is_unheard = provider.is_unheard(now);
        self.provider = Some(provider);
    }

    /// Whether [`Session::poll_provider`] has something.
    pub fn has_provider_output(&self) -> bool {
        self.provider.as_ref().is_some_and(|provider| provider.has_output())
    }

    /// Writes octets for the provider's connection into `out` and says how many.
    pub fn poll_provider(&mut self, out: &mut [u8], now: Instant) -> usize {
        self.provider.as_mut().map_or(0, |provider| provider.poll_stream(out, now))
    }

    /// True once the provider's connection is of no more use: lost, or closed by us and all of it written.
    pub fn is_line_over(&self) -> bool {
        self.provider.as_ref().is_none_or(|provider| provider.is_line_over())
    }
}
