//! A call for us: looked at, then answered or refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_audio::format::Codec;
use tandem_sdp::{LocalMedia, Negotiated, SessionDescription, accept_answer, answer, offer};
use tandem_sip::{Body, CallHandle, Event, Headers, Reply, Request};
use tokio::sync::mpsc;

use crate::call::{Call, Timing};
use crate::line::{Line, NewCall};
use crate::media::MediaPort;
use crate::phone::{CallError, FailedBy, local_media};

/// How to answer.
#[derive(Debug, Clone)]
pub struct AnswerOptions {
    /// Codecs, best first; of those the caller offers, the caller's order counts.
    pub codecs: Vec<Codec>,
    /// How long it rings (180) before the 200; zero: no 180 at all.
    pub ring_for: Duration,
    /// Keeps what is heard.
    pub record: bool,
}

/// G.711, at once, recorded.
impl Default for AnswerOptions {
    fn default() -> Self {
        AnswerOptions { codecs: vec![Codec::Pcmu, Codec::Pcma], ring_for: Duration::ZERO, record: true }
    }
}

/// A call that waits for our decision. Dropped, it is refused with 480.
#[derive(Debug)]
pub struct Incoming {
    line: Arc<Line>,
    handle: CallHandle,
    request: Box<Request>,
    events: Option<mpsc::Receiver<Event>>,
    invited: Instant,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.events.is_some() {
            // The caller may have given up already.
            let _ =
                self.line.shared.act(|state, now| state.endpoint.hang_up(self.handle, Headers::new(), now));
        }
    }
}

impl Incoming {
    pub(crate) fn new(line: Arc<Line>, new: NewCall) -> Self {
        let NewCall { handle, request, events, invited } = new;
        Incoming { line, handle, request, events: Some(events), invited }
    }

    /// The INVITE.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// 180 Ringing.
    pub fn ring(&self) {
        // The caller may have given up already; `answer` will say so.
        let _ = self.line.shared.act(|state, now| state.endpoint.ring(self.handle, now));
    }

    /// Refuses it.
    pub fn reject(mut self, status: u16) {
        self.events = None;
        // The caller may have given up already.
        let _ =
            self.line.shared.act(|state, now| state.endpoint.reject(self.handle, Reply::new(status), now));
    }

    /// Answers it, and comes back when the ACK is here.
    ///
    /// # Errors
    /// [`CallError`]; without a common codec the caller got 488.
    pub async fn answer(mut self, options: AnswerOptions) -> Result<Call, CallError> {
        let closed = || CallError::new(FailedBy::Local, "the line is closed");
        let mut events = self.events.take().ok_or_else(closed)?;
        // Whatever goes wrong from here on refuses the call or hangs up.
        let guard = Incoming::guard(&self);
        if !options.ring_for.is_zero() {
            self.ring();
            let given_up = tokio::time::timeout(options.ring_for, next_end(&mut events)).await;
            if let Ok(error) = given_up {
                return Err(error);
            }
        }
        let local_error = |what: &dyn std::fmt::Display| CallError::new(FailedBy::Local, what.to_string());
        let port = MediaPort::bind(self.line.shared.local.ip()).await.map_err(|error| local_error(&error))?;
        let number = port.port().map_err(|error| local_error(&error))?;
        let local = LocalMedia { codecs: options.codecs, ..local_media(&self.line, number) };
        let (body, negotiated) = match self.agree(&local) {
            Ok(agreed) => agreed,
            Err(error) => {
                let refusal = Reply::new(488);
                let _ = self.line.shared.act(|state, now| state.endpoint.reject(self.handle, refusal, now));
                return Err(error);
            }
        };
        let sent = Body::sdp(body.to_string());
        let answered = self.line.shared.act(|state, now| state.endpoint.answer(self.handle, sent, now));
        let mut timing = Timing::new(self.invited);
        timing.answered = Instant::now();
        let (negotiated, media) = match negotiated {
            // We speak from the 200 on; the caller may hear us before its ACK arrives.
            Some(negotiated) => {
                let media = port.start(negotiated, options.record);
                answered.map_err(|error| local_error(&error))?;
                acknowledged(&mut events).await?;
                (negotiated, media)
            }
            None => {
                answered.map_err(|error| local_error(&error))?;
                let ack = acknowledged(&mut events).await?;
                let media_error =
                    |what: &dyn std::fmt::Display| CallError::new(FailedBy::Media, what.to_string());
                let theirs = ack.sdp().ok_or_else(|| media_error(&"the ACK has no answer to our offer"))?;
                let theirs = SessionDescription::parse(theirs).map_err(|error| media_error(&error))?;
                let negotiated = accept_answer(&body, &theirs).map_err(|error| media_error(&error))?;
                (negotiated, port.start(negotiated, options.record))
            }
        };
        timing.connected = Some(Instant::now());
        guard.disarm();
        Ok(Call::start(self.line.clone(), self.handle, events, media, local, negotiated, timing))
    }

    /// Our description, and the agreement if the INVITE had an offer.
    fn agree(&self, local: &LocalMedia) -> Result<(SessionDescription, Option<Negotiated>), CallError> {
        let media_error = |what: &dyn std::fmt::Display| CallError {
            status: Some(488),
            ..CallError::new(FailedBy::Media, what.to_string())
        };
        let Some(body) = self.request.sdp() else {
            return Ok((offer(local), None));
        };
        let theirs = SessionDescription::parse(body).map_err(|error| media_error(&error))?;
        let (ours, negotiated) = answer(&theirs, local).map_err(|error| media_error(&error))?;
        Ok((ours, Some(negotiated)))
    }

    fn guard(&self) -> Guard {
        Guard { line: self.line.clone(), handle: Some(self.handle) }
    }
}

/// Ends the call when dropped.
struct Guard {
    line: Arc<Line>,
    handle: Option<CallHandle>,
}

impl Guard {
    fn disarm(mut self) {
        self.handle = None;
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(handle) = self.handle {
            // It may be over already.
            let _ = self.line.shared.act(|state, now| state.endpoint.hang_up(handle, Headers::new(), now));
        }
    }
}

/// Waits until the caller gives up.
async fn next_end(events: &mut mpsc::Receiver<Event>) -> CallError {
    while let Some(event) = events.recv().await {
        if let Event::Ended { why, .. } = event {
            return CallError::ended(&why);
        }
    }
    CallError::new(FailedBy::Local, "the line is closed")
}

async fn acknowledged(events: &mut mpsc::Receiver<Event>) -> Result<Box<Request>, CallError> {
    while let Some(event) = events.recv().await {
        match event {
            Event::Acknowledged { ack, .. } => return Ok(ack),
            Event::Ended { why, .. } => return Err(CallError::ended(&why)),
            _ => {}
        }
    }
    Err(CallError::new(FailedBy::Local, "the line is closed"))
}
