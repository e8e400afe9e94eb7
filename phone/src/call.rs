//! A call that is up: what one can do with it, and the task that follows its signalling.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_audio::tone::Digit;
use tandem_rtp::event::MAX_QUEUED_DIGITS;
use tandem_sdp::{Direction, LocalMedia, Negotiated, SessionDescription, accept_answer, answer, offer};
use tandem_sip::{Body, CallHandle, EndReason, Event, Headers, Reply, Request};
use tokio::sync::{mpsc, oneshot, watch};

use crate::ear::Heard;
use crate::line::Line;
use crate::media::{Media, MediaCommand, Played};
use crate::report::{CallReport, EndedBy};
use crate::wav::{self, WavError};

/// Provisional responses that are remembered.
const PROVISIONAL_MAX: usize = 64;
/// How long a BYE may take: timer F of RFC 3261 and a little more.
const BYE_PATIENCE: Duration = Duration::from_secs(35);

/// When things happened while a call came up.
#[derive(Debug, Clone)]
pub(crate) struct Timing {
    pub(crate) invited: Instant,
    pub(crate) ringing: Option<Instant>,
    pub(crate) provisional: Vec<u16>,
    pub(crate) answered: Instant,
    /// As the callee: when the ACK came.
    pub(crate) connected: Option<Instant>,
}

impl Timing {
    pub(crate) fn new(invited: Instant) -> Self {
        Timing { invited, ringing: None, provisional: Vec::new(), answered: invited, connected: None }
    }

    pub(crate) fn handle_provisional(&mut self, status: u16, now: Instant) {
        if matches!(status, 180 | 183) {
            self.ringing.get_or_insert(now);
        }
        if self.provisional.len() < PROVISIONAL_MAX {
            self.provisional.push(status);
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone)]
struct Outcome {
    at: Instant,
    by: EndedBy,
    reason: Option<String>,
}

/// Why keys were not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DtmfError {
    /// The peer does not speak telephone-event at our clock rate.
    #[error("telephone-event was not negotiated")]
    NotNegotiated,
    /// Not a key.
    #[error("{0:?} is not a key of a telephone")]
    Key(char),
    /// More than wait at once.
    #[error("{0} keys at once, at most {MAX_QUEUED_DIGITS} are sent")]
    TooMany(usize),
    /// The call is over.
    #[error("the call is over")]
    Over,
}

/// Why a hold or its end failed; the call goes on as it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HoldError {
    /// The peer refused the re-INVITE.
    #[error("re-INVITE was refused with {0}")]
    Refused(u16),
    /// It cannot be sent now, or its answer makes no sense.
    #[error("re-INVITE failed: {0}")]
    Failed(String),
    /// The call is over.
    #[error("the call is over")]
    Over,
}

enum Order {
    Redirect { direction: Direction, done: oneshot::Sender<Result<(), HoldError>> },
}

/// A call that is up. Dropped, it hangs up.
#[derive(Debug)]
pub struct Call {
    line: Arc<Line>,
    handle: CallHandle,
    media: Arc<Media>,
    negotiated: Negotiated,
    timing: Timing,
    orders: mpsc::Sender<Order>,
    outcome: watch::Receiver<Option<Outcome>>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.bye();
        self.media.stop();
    }
}

impl Call {
    pub(crate) fn start(
        line: Arc<Line>,
        handle: CallHandle,
        events: mpsc::Receiver<Event>,
        media: Media,
        local: LocalMedia,
        negotiated: Negotiated,
        timing: Timing,
    ) -> Self {
        let media = Arc::new(media);
        let (orders, order_queue) = mpsc::channel(4);
        let (outcome_sender, outcome) = watch::channel(None);
        let driver = Driver {
            line: line.clone(),
            handle,
            media: media.clone(),
            local,
            reinvite: None,
            delayed: None,
            outcome: outcome_sender,
        };
        tokio::spawn(driver.run(events, order_queue));
        Call { line, handle, media, negotiated, timing, orders, outcome }
    }

    /// What was agreed when the call came up.
    pub fn negotiated(&self) -> &Negotiated {
        &self.negotiated
    }

    /// Plays 8 kHz samples after what is played already, and comes back when the last packet has left; `None` when the call
    /// ended before. Dropping the future does not stop the sound.
    pub async fn play(&self, samples: &[i16]) -> Option<Played> {
        let (done, played) = oneshot::channel();
        let command = MediaCommand::Play { samples: samples.to_vec(), done };
        self.media.commands.send(command).await.ok()?;
        played.await.ok()
    }

    /// Plays a WAV file like [`Call::play`].
    ///
    /// # Errors
    /// [`WavError`]; nothing was played then.
    pub async fn play_wav(&self, path: impl AsRef<Path>) -> Result<Option<Played>, WavError> {
        Ok(self.play(&wav::read_8k(path)?).await)
    }

    /// The recording so far.
    pub fn heard(&self) -> Heard {
        self.media.view.ear().heard()
    }

    /// Waits until the peer is heard speaking and gives the onset's arrival; at once if it speaks now. `None` when nothing was heard in
    /// time or the call ended.
    pub async fn wait_for_speech(&self, timeout: Duration) -> Option<Instant> {
        let deadline = Instant::now() + timeout;
        self.watch_ear(deadline, |now| self.media.view.ear().speaking_since(now), || deadline).await
    }

    /// Waits until nothing audible was heard for `quiet_for` (or since the call came up). False when it was still loud at the timeout; true
    /// when the call ended.
    pub async fn wait_until_quiet(&self, quiet_for: Duration, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let quiet_since = || self.media.view.ear().last_audible().unwrap_or(self.timing.answered);
        let is_quiet =
            |now: Instant| (now.saturating_duration_since(quiet_since()) >= quiet_for).then_some(());
        let quiet = self.watch_ear(deadline, is_quiet, || quiet_since() + quiet_for).await;
        quiet.is_some() || self.outcome.borrow().is_some()
    }

    /// Asks `check` whenever something was heard and at the time `again` says, until it has an answer.
    async fn watch_ear<T>(
        &self,
        deadline: Instant,
        check: impl Fn(Instant) -> Option<T>,
        again: impl Fn() -> Instant,
    ) -> Option<T> {
        let mut outcome = self.outcome.clone();
        loop {
            let heard = self.media.view.changed.notified();
            let now = Instant::now();
            if let Some(answer) = check(now) {
                return Some(answer);
            }
            if now >= deadline {
                return None;
            }
            tokio::select! {
                () = heard => {}
                () = tokio::time::sleep_until(again().min(deadline).into()) => {}
                _ = outcome.wait_for(Option::is_some) => return None,
            }
        }
    }

    /// Presses keys (`0`–`9`, `*`, `#`, `A`–`D`) as telephone-events, and comes back when the last was released.
    ///
    /// # Errors
    /// [`DtmfError`]
    pub async fn send_dtmf(&self, keys: &str) -> Result<(), DtmfError> {
        if self.negotiated.telephone_event_payload_type.is_none() {
            return Err(DtmfError::NotNegotiated);
        }
        let digit = |key| Digit::from_char(key).ok_or(DtmfError::Key(key));
        let digits = keys.chars().map(digit).collect::<Result<Vec<_>, _>>()?;
        if digits.len() > MAX_QUEUED_DIGITS {
            return Err(DtmfError::TooMany(digits.len()));
        }
        let (done, sent) = oneshot::channel();
        let command = MediaCommand::Digits { digits, done };
        self.media.commands.send(command).await.map_err(|_| DtmfError::Over)?;
        sent.await.map_err(|_| DtmfError::Over)
    }

    /// Puts the peer on hold: it shall not send, and we send silence.
    ///
    /// # Errors
    /// [`HoldError`]
    pub async fn hold(&self) -> Result<(), HoldError> {
        self.redirect(Direction::SendOnly).await
    }

    /// Ends the hold.
    ///
    /// # Errors
    /// [`HoldError`]
    pub async fn resume(&self) -> Result<(), HoldError> {
        self.redirect(Direction::SendRecv).await
    }

    async fn redirect(&self, direction: Direction) -> Result<(), HoldError> {
        let (done, result) = oneshot::channel();
        self.orders.send(Order::Redirect { direction, done }).await.map_err(|_| HoldError::Over)?;
        result.await.map_err(|_| HoldError::Over)?
    }

    /// Hangs up, waits until the BYE is answered, and reports.
    pub async fn hang_up(self) -> CallReport {
        self.bye();
        let mut outcome = self.outcome.clone();
        // Unanswered, the endpoint gives the BYE up by itself.
        let _ = tokio::time::timeout(BYE_PATIENCE, outcome.wait_for(Option::is_some)).await;
        self.report()
    }

    /// Waits until the call is over, whoever ends it, and reports.
    pub async fn ended(&self) -> CallReport {
        let mut outcome = self.outcome.clone();
        // An error means that the call's task is gone, and the call with it.
        let _ = outcome.wait_for(Option::is_some).await;
        self.report()
    }

    /// True when the call is over.
    pub fn is_over(&self) -> bool {
        self.outcome.borrow().is_some()
    }

    /// The call so far, in figures.
    pub fn report(&self) -> CallReport {
        let outcome = self.outcome.borrow().clone();
        let ear = self.media.view.ear();
        let Timing { invited, ringing, provisional, answered, connected } = &self.timing;
        let ms = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * 1_000.0;
        CallReport {
            setup_ms: ms(*invited, connected.unwrap_or(*answered)),
            ringing_ms: ringing.map(|ringing| ms(*invited, ringing)),
            provisional: provisional.clone(),
            first_packet_ms: ear.first_packet().map(|at| ms(*answered, at)),
            first_audible_ms: ear.first_audible().map(|at| ms(*answered, at)),
            duration: outcome.as_ref().map_or_else(Instant::now, |outcome| outcome.at) - *answered,
            rtp: self.media.view.report(),
            response_ms: ear.responses().iter().map(|latency| latency.as_secs_f64() * 1_000.0).collect(),
            ended_by: outcome.as_ref().map(|outcome| outcome.by),
            reason: outcome.and_then(|outcome| outcome.reason),
        }
    }

    fn bye(&self) {
        if !self.is_over() {
            // The peer may have hung up this moment.
            let _ =
                self.line.shared.act(|state, now| state.endpoint.hang_up(self.handle, Headers::new(), now));
        }
    }
}

/// A re-INVITE of ours under way: what we offered, and who waits for the answer.
struct Reinvite {
    offered: SessionDescription,
    direction: Direction,
    done: oneshot::Sender<Result<(), HoldError>>,
}

/// Follows one call's signalling until it ends.
struct Driver {
    line: Arc<Line>,
    handle: CallHandle,
    media: Arc<Media>,
    /// What we describe; its version grows with each change.
    local: LocalMedia,
    /// Our re-INVITE that waits for its answer.
    reinvite: Option<Reinvite>,
    /// Our offer in the 200 to a re-INVITE that had none.
    delayed: Option<SessionDescription>,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Driver {
    async fn run(mut self, mut events: mpsc::Receiver<Event>, mut orders: mpsc::Receiver<Order>) {
        let outcome = loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Ended { why, .. }) => break outcome(&why),
                    Some(event) => self.handle_event(event).await,
                    None => break (EndedBy::Lost, Some("too many events, or the line was closed".to_owned())),
                },
                Some(order) = orders.recv() => self.handle_order(order),
            }
        };
        self.media.stop();
        let (by, reason) = outcome;
        self.outcome.send_replace(Some(Outcome { at: Instant::now(), by, reason }));
    }

    async fn handle_event(&mut self, event: Event) {
        match event {
            Event::Reinvite { request, .. } => self.handle_reinvite(&request).await,
            Event::Acknowledged { ack, .. } => {
                if let (Some(ours), Some(body)) = (self.delayed.take(), ack.sdp())
                    && let Ok(theirs) = SessionDescription::parse(body)
                    && let Ok(negotiated) = accept_answer(&ours, &theirs)
                {
                    self.update(negotiated).await;
                }
            }
            Event::ReinviteAnswered { response, .. } => {
                let Some(Reinvite { offered, direction, done }) = self.reinvite.take() else { return };
                let agreed = response
                    .sdp()
                    .ok_or_else(|| "answered without a session description".to_owned())
                    .and_then(|body| SessionDescription::parse(body).map_err(|error| error.to_string()))
                    .and_then(|theirs| accept_answer(&offered, &theirs).map_err(|error| error.to_string()));
                let result = match agreed {
                    Ok(negotiated) => {
                        self.local.direction = direction;
                        self.update(negotiated).await;
                        Ok(())
                    }
                    Err(what) => Err(HoldError::Failed(what)),
                };
                // Nobody may be waiting any more.
                let _ = done.send(result);
            }
            Event::ReinviteRefused { status, .. } => {
                if let Some(reinvite) = self.reinvite.take() {
                    // Nobody may be waiting any more.
                    let _ = reinvite.done.send(Err(HoldError::Refused(status)));
                }
            }
            _ => {}
        }
    }

    async fn handle_reinvite(&mut self, request: &Request) {
        self.local.session_version += 1;
        let Some(body) = request.sdp() else {
            let ours = offer(&self.local);
            self.answer(&ours);
            self.delayed = Some(ours);
            return;
        };
        let agreed =
            SessionDescription::parse(body).ok().and_then(|theirs| answer(&theirs, &self.local).ok());
        match agreed {
            Some((ours, negotiated)) => {
                self.answer(&ours);
                self.update(negotiated).await;
            }
            None => {
                // The peer may have withdrawn it.
                let refusal = Reply::new(488);
                let _ = self.line.shared.act(|state, now| state.endpoint.reject(self.handle, refusal, now));
            }
        }
    }

    fn answer(&self, ours: &SessionDescription) {
        let body = Body::sdp(ours.to_string());
        // The peer may have withdrawn the re-INVITE or hung up.
        let _ = self.line.shared.act(|state, now| state.endpoint.answer(self.handle, body, now));
    }

    async fn update(&self, negotiated: Negotiated) {
        // The media task outlives this one.
        let _ = self.media.commands.send(MediaCommand::Update(negotiated)).await;
    }

    fn handle_order(&mut self, Order::Redirect { direction, done }: Order) {
        if self.reinvite.is_some() {
            let _ = done.send(Err(HoldError::Failed("another re-INVITE is under way".to_owned())));
            return;
        }
        self.local.session_version += 1;
        let ours = offer(&LocalMedia { direction, ..self.local.clone() });
        let body = Some(Body::sdp(ours.to_string()));
        let sent = self.line.shared.act(|state, now| state.endpoint.reinvite(self.handle, body, now));
        match sent {
            Ok(()) => self.reinvite = Some(Reinvite { offered: ours, direction, done }),
            Err(error) => drop(done.send(Err(HoldError::Failed(error.to_string())))),
        }
    }
}

fn outcome(why: &EndReason) -> (EndedBy, Option<String>) {
    match why {
        EndReason::RemoteBye { reason } => (EndedBy::Peer, reason.clone()),
        EndReason::LocalBye { .. } => (EndedBy::Us, None),
        EndReason::DialogLost { status } => {
            (EndedBy::Lost, Some(format!("the peer lost the dialog: {status}")))
        }
        other => (EndedBy::Lost, Some(format!("{other:?}"))),
    }
}
