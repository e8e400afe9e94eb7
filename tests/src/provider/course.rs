//! A call from its beginning to its end: ringing, the document, media, transfers, and news of all of it.
//!
//! ```text
//!   placed ─▶ initiated ─▶ ringing ─▶ answered ─▶ script: stream, dial, say … ─▶ completed
//!                 └── busy, no-answer, rejected, canceled                inbound calls begin at the script
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::http::{self, Outgoing};
use super::media::{self, Left, Stop};
use super::{Call, Callbacks, Callee, Desk, Provider, Script, StreamEvent, fresh};

/// From the request to the first ringing.
const DIALS_IN: Duration = Duration::from_millis(10);

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Known.
    Queued,
    /// Dialled.
    Initiated,
    /// It rings.
    Ringing,
    /// Somebody has picked up.
    Answered,
    /// It was a call.
    Completed,
    /// Busy.
    Busy,
    /// Nobody picked up.
    NoAnswer,
    /// Given up by us before somebody did.
    Canceled,
    /// Declined.
    Rejected,
}

impl Event {
    /// Nothing comes after it.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Completed | Self::Busy | Self::NoAnswer | Self::Canceled | Self::Rejected)
    }

    /// In notes.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Initiated => "initiated",
            Self::Ringing => "ringing",
            Self::Answered => "answered",
            Self::Completed => "completed",
            Self::Busy => "busy",
            Self::NoAnswer => "no-answer",
            Self::Canceled => "canceled",
            Self::Rejected => "rejected",
        }
    }
}

/// What happens to a call from outside of its course.
#[derive(Debug)]
pub(crate) enum Control {
    /// The caller, or the called, hangs up.
    HangUp,
    /// The API ends it.
    End,
    /// The API leads it elsewhere.
    Run(Script),
    /// The media socket breaks.
    DropSocket,
}

/// What is known of a call.
#[derive(Debug)]
pub struct Course {
    pub(crate) id: String,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) outbound: bool,
    pub(crate) state: Event,
    /// Where news go.
    pub(crate) status_url: Option<String>,
    /// Which news, in the provider's words; empty: its default.
    pub(crate) wanted: Vec<String>,
    /// What the request said is to be done with the answered call.
    pub(crate) script: Option<Script>,
    /// More of the request that callbacks repeat.
    pub(crate) extra: HashMap<&'static str, String>,
    pub(crate) digits: String,
    /// Callbacks so far.
    pub(crate) sequence: usize,
    pub(crate) answered_at: Option<tokio::time::Instant>,
    sender: mpsc::UnboundedSender<Control>,
    inbox: Option<mpsc::UnboundedReceiver<Control>>,
    held: Vec<(Event, Outgoing)>,
}

impl Course {
    pub(crate) fn new(id: String, from: &str, to: &str, outbound: bool) -> Self {
        let (sender, inbox) = mpsc::unbounded_channel();
        Self {
            id,
            from: from.to_owned(),
            to: to.to_owned(),
            outbound,
            state: Event::Queued,
            status_url: None,
            wanted: Vec::new(),
            script: None,
            extra: HashMap::new(),
            digits: String::new(),
            sequence: 0,
            answered_at: None,
            sender,
            inbox: Some(inbox),
            held: Vec::new(),
        }
    }

    pub(crate) fn inbound(provider: Provider, from: &str, to: &str) -> Self {
        Self::new(fresh_id(provider), from, to, false)
    }

    pub(crate) fn tell(&self, control: Control) {
        // A call that is over does not listen.
        let _ = self.sender.send(control);
    }

    /// Whether a provider that can be asked for some news only is to send this.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.wanted.iter().any(|wanted| wanted == name)
    }

    /// Whole seconds since it was answered.
    pub(crate) fn duration_s(&self) -> u64 {
        self.answered_at.map_or(0, |at| at.elapsed().as_secs().max(1))
    }
}

/// An id in the provider's spelling.
pub(crate) fn fresh_id(provider: Provider) -> String {
    let id = fresh();
    match provider {
        Provider::Twilio => format!("CA{}", id.simple()),
        Provider::Exotel => id.simple().to_string(),
        Provider::Telnyx => format!("v3:{}", id.simple()),
        Provider::Asterisk => format!("pbx-{}", id.simple()),
        Provider::Vonage | Provider::Plivo => id.to_string(),
    }
}

/// Begins a call that the API has placed.
pub(crate) fn begin(desk: &Arc<Desk>, call: &Call) {
    let (desk, taken) = (Arc::clone(desk), call.clone());
    call.set_task(tokio::spawn(async move {
        let Some(mut inbox) = taken.course().inbox.take() else { return };
        let end = outbound(&desk, &taken, &mut inbox).await;
        finish(&desk, &taken, end).await;
    }));
}

/// Takes an inbound call up where its webhook has been answered.
pub(crate) fn take(desk: &Arc<Desk>, call: &Call, script: Script) {
    let (desk, taken) = (Arc::clone(desk), call.clone());
    call.set_task(tokio::spawn(async move {
        let Some(mut inbox) = taken.course().inbox.take() else { return };
        if !matches!(script, Script::Reject | Script::Wait) {
            taken.course().answered_at = Some(tokio::time::Instant::now());
            tell(&desk, &taken, Event::Answered).await;
        }
        let end = run(&desk, &taken, script, &mut inbox).await;
        finish(&desk, &taken, end).await;
    }));
}

async fn outbound(desk: &Desk, call: &Call, inbox: &mut mpsc::UnboundedReceiver<Control>) -> Event {
    tokio::time::sleep(DIALS_IN).await;
    tell(desk, call, Event::Initiated).await;
    tell(desk, call, Event::Ringing).await;
    let after = match desk.settings.callee {
        Callee::Answers(after) => after,
        Callee::Busy => return Event::Busy,
        Callee::NoAnswer => return Event::NoAnswer,
        Callee::Declines => return Event::Rejected,
    };
    tokio::select! {
        () = tokio::time::sleep(after) => {}
        _ = inbox.recv() => return Event::Canceled,
    }
    call.course().answered_at = Some(tokio::time::Instant::now());
    tell(desk, call, Event::Answered).await;
    let script = call.course().script.take().unwrap_or(Script::Hangup);
    run(desk, call, script, inbox).await
}

/// Does what documents say until the call is over.
async fn run(
    desk: &Desk,
    call: &Call,
    mut script: Script,
    inbox: &mut mpsc::UnboundedReceiver<Control>,
) -> Event {
    let voice = desk.settings.provider.voice();
    loop {
        script = match script {
            Script::Fetch(url) => fetch(desk, call, &url).await,
            Script::Say(text) => {
                call.note(format!("said {text}"));
                return Event::Completed;
            }
            Script::Reject => return Event::Busy,
            Script::Hangup => return Event::Completed,
            Script::Wait => match inbox.recv().await {
                Some(Control::Run(next)) => {
                    if call.course().answered_at.is_none() {
                        call.course().answered_at = Some(tokio::time::Instant::now());
                        tell(desk, call, Event::Answered).await;
                    }
                    next
                }
                Some(Control::DropSocket) => Script::Wait,
                Some(Control::HangUp | Control::End) | None => return Event::Completed,
            },
            Script::Dial { to, action } => {
                call.note(format!("dialled {to}"));
                match inbox.recv().await {
                    Some(Control::Run(next)) => next,
                    Some(Control::DropSocket) => Script::Dial { to, action },
                    Some(Control::HangUp | Control::End) | None => {
                        if let Some(outgoing) = voice.dialled(desk, call, &action) {
                            post(desk, call, "dialled", &outgoing).await;
                        }
                        return Event::Completed;
                    }
                }
            }
            Script::Stream(stream) => match talk(desk, call, stream, inbox).await {
                Some(next) => next,
                None => return Event::Completed,
            },
        };
    }
}

async fn fetch(desk: &Desk, call: &Call, url: &str) -> Script {
    let voice = desk.settings.provider.voice();
    let answer = http::send(&desk.settings, &voice.fetch(desk, call, url)).await;
    let script = answer.map_err(|error| error.to_string()).and_then(|answer| {
        call.note(format!("document {}", answer.status));
        if answer.status == 200 { voice.script(desk, &answer.body) } else { Err(answer.body) }
    });
    script.unwrap_or_else(|why| {
        call.note(format!("document not understood: {why}"));
        Script::Hangup
    })
}

/// One stream; what comes next, or `None`: the call is over.
async fn talk(
    desk: &Desk,
    call: &Call,
    stream: media::Stream,
    inbox: &mut mpsc::UnboundedReceiver<Control>,
) -> Option<Script> {
    let voice = desk.settings.provider.voice();
    let told = async |event| match voice.stream_event(desk, call, &stream, event) {
        Some(outgoing) => post(desk, call, "stream", &outgoing).await,
        None => None,
    };
    let socket = match media::connect(call, &stream).await {
        Ok(socket) => socket,
        Err(why) => {
            call.note(format!("media refused: {why}"));
            told(StreamEvent::Failed).await;
            return None;
        }
    };
    call.note("media started".to_owned());
    told(StreamEvent::Started).await;
    let (stop, stopped) = oneshot::channel();
    let mut talking = Box::pin(media::talk(desk, call, &stream, socket, stopped));
    let (left, control) = tokio::select! {
        left = &mut talking => (left, None),
        control = inbox.recv() => {
            let how = if matches!(control, Some(Control::DropSocket)) { Stop::Abruptly } else { Stop::Politely };
            let _ = stop.send(how);
            (talking.await, control)
        }
    };
    call.note(format!("media {}", left.word()));
    let event = if left == Left::Broken { StreamEvent::Failed } else { StreamEvent::Stopped };
    let answer = told(event).await;
    match control {
        Some(Control::Run(next)) => return Some(next),
        Some(Control::HangUp | Control::End) => return None,
        Some(Control::DropSocket) | None => {}
    }
    // What the next verb would be: of Vonage, whatever the answer says.
    let resumed = answer.filter(|_| desk.settings.provider == Provider::Vonage);
    match resumed.and_then(|body| voice.script(desk, &body).ok()) {
        Some(Script::Hangup) | None if stream.keeps_call => Some(Script::Wait),
        Some(Script::Hangup) | None => None,
        Some(next) => Some(next),
    }
}

async fn finish(desk: &Desk, call: &Call, end: Event) {
    tell(desk, call, end).await;
    let held = std::mem::take(&mut call.course().held);
    for (event, outgoing) in held.into_iter().rev() {
        post(desk, call, event.word(), &outgoing).await;
    }
}

/// The call has come so far; tells whoever wants to know.
async fn tell(desk: &Desk, call: &Call, event: Event) {
    call.course().state = event;
    call.note(event.word().to_owned());
    let Some(outgoing) = desk.settings.provider.voice().event(desk, call, event) else { return };
    call.course().sequence += 1;
    match desk.settings.callbacks {
        Callbacks::None => {}
        Callbacks::Orderly => drop(post(desk, call, event.word(), &outgoing).await),
        Callbacks::Twice => {
            for _ in 0..2 {
                post(desk, call, event.word(), &outgoing).await;
            }
        }
        Callbacks::Backwards => call.course().held.push((event, outgoing)),
        Callbacks::Late(late) => {
            let (settings, call) = (desk.settings.clone(), call.clone());
            tokio::spawn(async move {
                tokio::time::sleep(late).await;
                let answer = http::send(&settings, &outgoing).await;
                note_callback(&call, event.word(), &answer);
            });
        }
    }
}

/// Sends a callback and notes what came of it; returns the answer's body.
async fn post(desk: &Desk, call: &Call, what: &str, outgoing: &Outgoing) -> Option<String> {
    let answer = http::send(&desk.settings, outgoing).await;
    note_callback(call, what, &answer);
    answer.ok().filter(|answer| answer.status == 200).map(|answer| answer.body)
}

fn note_callback(call: &Call, what: &str, answer: &anyhow::Result<http::Answered>) {
    match answer {
        Ok(answer) => call.note(format!("callback {what} {}", answer.status)),
        Err(error) => call.note(format!("callback {what} failed: {error:#}")),
    }
}
