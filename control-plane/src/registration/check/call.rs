//! The call of a check: placed, answered, held, resumed, hung up, with a step for each thing that it shows.

use std::time::Duration;

use tandem_sip::{
    Body, CallHandle, EndReason, Event, Flow, HeaderName, Headers, InviteRequest, NameAddr, Reply, Response,
    Uri,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::ear::Ear;
use super::{CALL_STEPS, Report, Unread, Verdict, sdp, status_line};
use crate::call::order::{self, Callee};
use crate::registration::driver::{self, CallNews, Office};
use crate::sip::Verb;
use crate::trunk::Trunk;
use crate::trunk::credential::escape_user;

/// How long the answer is waited for.
const RING_MAX: Duration = Duration::from_secs(45);
/// How long a re-INVITE or a BYE may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long audio is listened for after the answer, and after the resume.
const LISTEN: Duration = Duration::from_secs(2);
/// After hold is agreed, packets under way still come.
const SETTLE: Duration = Duration::from_millis(300);
/// How long silence on hold is listened for.
const LISTEN_HELD: Duration = Duration::from_secs(1);
/// Packets in that time that mean that the other side goes on sending.
const HELD_PACKETS_MAX: u64 = 5;
/// News of the call that wait for the check.
const NEWS_MAX: usize = 64;

struct Line<'a> {
    office: &'a Office,
    news: mpsc::Receiver<CallNews>,
    ear: Ear,
    call: Option<CallHandle>,
    host: String,
    version: u32,
}

/// What the wait for something has brought.
enum Heard {
    Event(Event),
    Late,
    Gone(String),
}

pub(super) async fn try_call(
    office: &Office,
    trunk: &Trunk,
    to: &str,
    via_host: Option<String>,
    report: &mut Report,
) -> Result<(), Unread> {
    let callee = match order::read_to(to, Some(trunk)) {
        Ok(callee) => callee,
        Err(error) => {
            let detail = format!("{to} cannot be called: it {}", error.problem);
            return fail_all(report, &detail, "name another number, or change the trunk's lists").await;
        }
    };
    let Some((mut invite, destination)) = invite(trunk, &callee) else {
        return fail_all(report, &format!("{to} is no number and no SIP URI"), "--to +4930123456").await;
    };
    let host = via_host.unwrap_or_else(|| "127.0.0.1".to_owned());
    let ear = match Ear::open(host.starts_with('[')).await {
        Ok(ear) => ear,
        Err(error) => return fail_all(report, &format!("no UDP port for the call: {error}"), "").await,
    };
    let (news_in, news) = mpsc::channel(NEWS_MAX);
    let mut line = Line { office, news, ear, call: None, host, version: 1 };
    invite.body = Some(line.offer("sendrecv"));
    office.call(invite, destination, news_in).await;
    let done = line.talk(report).await;
    line.end().await;
    done
}

async fn fail_all(report: &mut Report, detail: &str, advice: &str) -> Result<(), Unread> {
    report.say("codec", Verdict::Fail, detail, advice).await?;
    report.skip(&CALL_STEPS[1..], "there was no call", "").await
}

fn invite(trunk: &Trunk, to: &Callee) -> Option<(InviteRequest, crate::sip::Destination)> {
    let credential = &trunk.credential;
    let target = match to {
        Callee::Uri(uri) => uri.clone(),
        Callee::Number(_) | Callee::Phone(_) => {
            let number = trunk.outbound.number_format.write(to.shown());
            Uri::parse(&format!("sip:{}@{}", escape_user(&number), credential.domain()?)).ok()?
        }
    };
    let from = match &trunk.outbound.caller_id {
        Some(number) => Uri::parse(&format!("sip:{}@{}", escape_user(number), credential.domain()?)).ok()?,
        None => driver::account(trunk)?,
    };
    let mut invite = InviteRequest::new(target, NameAddr::new(from), Flow::UNRESOLVED);
    invite.credentials = credential.digest();
    invite.advertised_host = trunk.addresses.advertised_host.as_deref().map(Into::into);
    invite.contact_user = Some(driver::contact_user(trunk).into());
    for (name, value) in credential.sip_headers.iter().chain(&trunk.outbound.headers) {
        // The configuration refuses what cannot stand in a header.
        let _ = invite.headers.push(name, value);
    }
    Some((invite, driver::destination(trunk)?))
}

impl Line<'_> {
    fn offer(&mut self, direction: &str) -> Body {
        let body = sdp::offer(&self.host, self.ear.port(), direction, self.version);
        self.version += 1;
        body
    }

    /// The next event of the call; audio goes on meanwhile.
    async fn next(&mut self, until: Instant) -> Heard {
        loop {
            let news = tokio::select! {
                news = self.news.recv() => news,
                () = self.ear.turn() => continue,
                () = tokio::time::sleep_until(until) => return Heard::Late,
            };
            match news {
                Some(CallNews::Placed(call)) => self.call = Some(call),
                Some(CallNews::Event(event)) => return Heard::Event(event),
                Some(CallNews::NotSent(why)) => {
                    self.call = None;
                    return Heard::Gone(why);
                }
                None => {
                    self.call = None;
                    return Heard::Gone("the service is going down".to_owned());
                }
            }
        }
    }

    /// Audio for a while; how many packets came.
    async fn listen(&mut self, time: Duration) -> u64 {
        let (before, until) = (self.ear.heard, Instant::now() + time);
        while timeout_at(until, self.ear.turn()).await.is_ok() {}
        self.ear.heard - before
    }

    async fn talk(&mut self, report: &mut Report) -> Result<(), Unread> {
        let mut early: Option<Early> = None;
        let until = Instant::now() + RING_MAX;
        let answered = loop {
            match self.next(until).await {
                Heard::Event(Event::Provisional { response, .. }) => {
                    let sdp = response.sdp().and_then(sdp::read);
                    self.tune(sdp.as_ref());
                    let early = early.get_or_insert_with(Early::default);
                    early.last = status_line(&response);
                    early.has_sdp |= sdp.is_some();
                }
                Heard::Event(Event::Answered { response, .. }) => break response,
                Heard::Event(Event::Ended { why, .. }) => {
                    self.call = None;
                    let (detail, advice) = refusal(&why);
                    return fail_all(report, &detail, advice).await;
                }
                Heard::Event(_) => {}
                Heard::Late => {
                    let detail = format!("nobody answered within {} s", RING_MAX.as_secs());
                    return fail_all(report, &detail, "name a number that answers by itself").await;
                }
                Heard::Gone(why) => return fail_all(report, &why, "see the step options").await,
            }
        };
        let heard_early = self.ear.heard;
        let sdp = answered.sdp().and_then(sdp::read);
        self.tune(sdp.as_ref());
        self.codec(sdp.as_ref(), report).await?;
        early_media(early, heard_early, report).await?;
        dtmf(sdp.as_ref(), report).await?;
        session_timer(&answered, report).await?;
        self.hold(report).await?;
        self.hang_up(report).await
    }

    fn tune(&mut self, sdp: Option<&sdp::Answer>) {
        if let Some(sdp) = sdp {
            self.ear.remote = sdp.remote.zip(sdp.codec.as_ref().map(|(number, _)| *number));
        }
    }

    async fn codec(&mut self, sdp: Option<&sdp::Answer>, report: &mut Report) -> Result<(), Unread> {
        let Some((number, name)) = sdp.and_then(|sdp| sdp.codec.as_ref()) else {
            let advice = "the trunk answers without audio: ask it for PCMU or PCMA";
            return report.say("codec", Verdict::Fail, "no audio in the answer", advice).await;
        };
        let packets = self.listen(LISTEN).await;
        let detail = format!("{name} ({number}); {packets} RTP packets in {} s", LISTEN.as_secs());
        if packets > 0 {
            return report.say("codec", Verdict::Pass, detail, "").await;
        }
        let advice = "no audio comes: is our address in the SDP reachable (see seen_source), and are UDP ports open? \
                      The check uses a port of the control plane, calls use those of the media engine";
        report.say("codec", Verdict::Fail, detail, advice).await
    }

    async fn hold(&mut self, report: &mut Report) -> Result<(), Unread> {
        let held = match self.change("sendonly").await {
            Ok(held) => held,
            Err(why) => {
                let advice =
                    "callers on hold will hear the agent: ask the trunk whether it takes a re-INVITE";
                return report.say("hold", Verdict::Fail, format!("hold: {why}"), advice).await;
            }
        };
        self.listen(SETTLE).await;
        let packets = self.listen(LISTEN_HELD).await;
        let resumed = self.change("sendrecv").await;
        let detail = match &resumed {
            Ok(direction) => format!("sendonly is answered with {held}, sendrecv with {direction}"),
            Err(why) => format!("sendonly is answered with {held}; resume: {why}"),
        };
        let is_held = matches!(held, "recvonly" | "inactive");
        if !is_held {
            let advice =
                "the trunk answers, but does not understand hold: it goes on sending and expecting audio";
            return report.say("hold", Verdict::Fail, detail, advice).await;
        }
        if resumed != Ok("sendrecv") {
            return report
                .say("hold", Verdict::Fail, detail, "a call that was held stays without audio")
                .await;
        }
        if packets > HELD_PACKETS_MAX && held == "inactive" {
            let detail = format!("{detail}; it sends {packets} packets in a second while it says inactive");
            return report
                .say("hold", Verdict::Fail, detail, "harmless: what comes while held is not played")
                .await;
        }
        report.say("hold", Verdict::Pass, detail, "").await
    }

    /// A re-INVITE; the direction of its answer.
    async fn change(&mut self, direction: &str) -> Result<&'static str, String> {
        let Some(call) = self.call else { return Err("the call is over".to_owned()) };
        let offer = self.offer(direction);
        self.office.verb(Verb::Reinvite(call, Some(offer))).await;
        let until = Instant::now() + ANSWER_MAX;
        loop {
            match self.next(until).await {
                Heard::Event(Event::ReinviteAnswered { response, .. }) => {
                    let sdp = response.sdp().and_then(sdp::read);
                    self.tune(sdp.as_ref());
                    return sdp.map(|sdp| sdp.direction).ok_or_else(|| "the answer has no audio".to_owned());
                }
                Heard::Event(Event::ReinviteRefused { status, .. }) => {
                    return Err(format!("refused with {status}"));
                }
                // Glare: the trunk changes the session meanwhile. It may try again.
                Heard::Event(Event::Reinvite { call, .. }) => {
                    self.office.verb(Verb::Reject(call, Reply::new(491))).await;
                }
                Heard::Event(Event::Ended { .. }) => {
                    self.call = None;
                    return Err("the trunk ended the call".to_owned());
                }
                Heard::Event(_) => {}
                Heard::Late => return Err("no answer to the re-INVITE".to_owned()),
                Heard::Gone(why) => return Err(why),
            }
        }
    }

    async fn hang_up(&mut self, report: &mut Report) -> Result<(), Unread> {
        let Some(call) = self.call else {
            return report.say("hangup", Verdict::Fail, "the call was over before", "").await;
        };
        self.office.verb(Verb::HangUp(call, Headers::new())).await;
        let until = Instant::now() + ANSWER_MAX;
        loop {
            match self.next(until).await {
                Heard::Event(Event::Ended { why, .. }) => {
                    self.call = None;
                    return match why {
                        EndReason::LocalBye { status: Some(status) } if status < 300 => {
                            report.say("hangup", Verdict::Pass, format!("BYE is answered {status}"), "").await
                        }
                        EndReason::LocalBye { status: Some(status) } => {
                            report.say("hangup", Verdict::Fail, format!("BYE is answered {status}"), "").await
                        }
                        EndReason::LocalBye { status: None } => {
                            let advice = "the trunk may go on charging for calls that are over";
                            report.say("hangup", Verdict::Fail, "BYE is not answered", advice).await
                        }
                        _ => report.say("hangup", Verdict::Pass, "the other side was faster", "").await,
                    };
                }
                Heard::Event(_) => {}
                Heard::Late => return report.say("hangup", Verdict::Fail, "BYE is not answered", "").await,
                Heard::Gone(why) => return report.say("hangup", Verdict::Fail, why, "").await,
            }
        }
    }

    /// No call is left behind, however the check went.
    async fn end(&mut self) {
        let Some(call) = self.call else { return };
        // Before the answer CANCEL is right, after it BYE; the endpoint takes the one that is possible.
        self.office.verb(Verb::Cancel(call)).await;
        self.office.verb(Verb::HangUp(call, Headers::new())).await;
        let until = Instant::now() + ANSWER_MAX;
        while let Heard::Event(event) = self.next(until).await {
            if matches!(event, Event::Ended { .. }) {
                return;
            }
        }
    }
}

#[derive(Default)]
struct Early {
    last: String,
    has_sdp: bool,
}

async fn early_media(early: Option<Early>, packets: u64, report: &mut Report) -> Result<(), Unread> {
    match early {
        Some(early) if early.has_sdp && packets > 0 => {
            let detail = format!("{} with SDP, {packets} RTP packets before the answer", early.last);
            report.say("early_media", Verdict::Pass, detail, "").await
        }
        Some(early) if early.has_sdp => {
            let detail = format!("{} with SDP, but no audio before the answer", early.last);
            let advice = "normal for a number that answers at once; announcements of the trunk may be lost";
            report.say("early_media", Verdict::Skipped, detail, advice).await
        }
        Some(early) => {
            let detail = format!("{} without SDP: this number has no early media", early.last);
            let advice = "call one with an announcement, for instance a number that does not exist";
            report.say("early_media", Verdict::Skipped, detail, advice).await
        }
        None => {
            let advice = "call one that rings first";
            report.say("early_media", Verdict::Skipped, "answered without ringing", advice).await
        }
    }
}

async fn dtmf(sdp: Option<&sdp::Answer>, report: &mut Report) -> Result<(), Unread> {
    match sdp.and_then(|sdp| sdp.dtmf) {
        Some(number) => {
            let detail = format!("telephone-event is agreed, payload type {number} (RFC 4733)");
            report.say("dtmf", Verdict::Pass, detail, "").await
        }
        None => {
            let advice = "ask the trunk for RFC 4733 (RFC 2833); digits by SIP INFO are heard too";
            report.say("dtmf", Verdict::Fail, "no telephone-event in the answer", advice).await
        }
    }
}

async fn session_timer(answered: &Response, report: &mut Report) -> Result<(), Unread> {
    match answered.header(HeaderName::SessionExpires) {
        Some(value) => {
            let detail = format!("Session-Expires: {}", super::shown(value));
            report.say("session_timer", Verdict::Pass, detail, "").await
        }
        None => {
            let detail = "the trunk agrees on no session timer (RFC 4028)";
            let advice = "a call whose BYE is lost ends by its media timeout";
            report.say("session_timer", Verdict::Skipped, detail, advice).await
        }
    }
}

/// Why there is no call, and what to do.
fn refusal(why: &EndReason) -> (String, &'static str) {
    match why {
        EndReason::Failed { response } => {
            let advice = match response.status {
                401 | 407 => "the trunk refuses the password: see the step auth",
                403 => {
                    "the trunk does not let us call this number, or not with this From: see seen_from and caller_id"
                }
                404 | 484 | 604 => "the number is not known in this form: try number_format",
                408 | 480 | 486 | 600 => "name a number that answers by itself",
                488 | 606 => "the trunk takes none of our codecs: see seen_codecs",
                503 => "the trunk is full or does not know our address",
                _ => "",
            };
            (format!("INVITE is answered {}", status_line(response)), advice)
        }
        EndReason::NoResponse(why) => (format!("INVITE: {why}"), "see the step options"),
        other => (format!("the call ended: {other:?}"), ""),
    }
}
