use serde_json::json;

use super::*;
use crate::provider::asked::{Asked, STAMP, account as open_account, answered, dial};
use crate::provider::document::tests::plan;
use crate::provider::rest::{MachineDetection, Transfer};

const URL: &str = "http://voice.example.test/v1/telephony/asterisk/call/42";

fn fields() -> Json {
    json!({
        "ari_url": "http://pbx:8088/ari", "ari_user": "tandem", "ari_password": "secret", "trunk": "carrier",
        "webhook_user": "pbx", "webhook_password": "pbx-password",
    })
}

fn account() -> Arc<dyn Account> {
    open_account("asterisk", fields())
}

/// Whose calls are in Stasis.
fn stasis() -> Arc<dyn Account> {
    let mut fields = fields();
    fields["app"] = json!("tandem");
    open_account("asterisk", fields)
}

fn proved(asked: Asked) -> Asked {
    Asked { has_api_key: true, ..asked }
}

fn event(query: &str) -> StatusEvent {
    match proved(Asked::get(&format!("http://voice.example.test/e?{query}"))).event().webhook(&account()) {
        Ok(Webhook::Status(event)) => event,
        other => panic!("{other:?}"),
    }
}

#[test]
fn api_key_or_password_is_asked_for() {
    let asked = || Asked::get(&format!("{URL}?from=100&to=200&channel_id=1.7"));
    assert!(proved(asked()).webhook(&account()).is_ok());
    let with = |user: &str, password: &str| {
        asked().header("authorization", &proof::basic_header(user, &password.into())).webhook(&account())
    };
    assert!(with("pbx", "pbx-password").is_ok());
    assert_eq!(with("pbx", "wrong"), Err(Refusal::ApiKey));
    assert_eq!(with("other", "pbx-password"), Err(Refusal::ApiKey));
    assert_eq!(asked().webhook(&account()).unwrap_err().status(), 403);
}

#[test]
fn api_key_is_read_from_a_header_and_never_from_the_query() {
    let key = |asked: Asked| {
        use secrecy::ExposeSecret;
        api_key(&asked.headers).map(|key| key.expose_secret().to_owned())
    };
    assert_eq!(key(Asked::get(URL).header("x-api-key", "k1")).as_deref(), Some("k1"));
    let basic = Asked::get(URL).header("authorization", &proof::basic_header("any", &"k2".into()));
    assert_eq!(key(basic).as_deref(), Some("k2"));
    assert_eq!(key(Asked::get(&format!("{URL}?x-api-key=k3"))), None);
}

#[test]
fn dialplan_may_name_things_in_its_own_words() {
    for query in ["from=100&to=200", "caller=100&extension=200", "callerid=100&dnid=200"] {
        let asked = proved(Asked::get(&format!("{URL}?{query}&channel_id=1.7&lang=de&x-api-key=k")));
        let Ok(Webhook::Inbound(call)) = asked.webhook(&account()) else { panic!("{query}") };
        assert_eq!(
            (call.from.as_str(), call.to.as_str(), call.provider_call_id.as_str()),
            ("100", "200", "1.7")
        );
        assert_eq!(call.arguments, [("lang".into(), "de".into())]);
    }
    let outbound = proved(Asked::get(&format!("{URL}?ctx=ctx-1&channel_id=1.7&amdstatus=MACHINE")));
    let Ok(Webhook::Document(wanted)) = outbound.webhook(&account()) else { panic!() };
    assert_eq!(
        (wanted.context_id.as_deref(), wanted.answered_by),
        (Some("ctx-1"), Some(AnsweredBy::Machine))
    );
}

/// The shell keeps no name for it, so two callers do not share one call.
#[test]
fn dialplan_that_names_no_channel_gives_its_calls_no_name() {
    let asked = proved(Asked::get(&format!("{URL}?from=100&to=200")));
    let Ok(Webhook::Inbound(call)) = asked.webhook(&account()) else { panic!() };
    assert_eq!((call.provider_call_id.as_str(), call.retry_token), ("", None));
    let over = event("ctx=ctx-1&cause=16");
    assert_eq!((over.provider_call_id.as_str(), over.context_id.as_deref()), ("", Some("ctx-1")));
    assert_eq!(over.status, Some(CallStatus::Completed));
}

#[test]
fn answer_is_the_uuid_and_nothing_else_and_a_refusal_is_empty() {
    let document = account().answer(&plan(&[]));
    assert_eq!(
        (document.body.as_str(), document.content_type),
        ("00000000-0000-0000-0000-000000001234", "text/plain")
    );
    for decline in [Decline::Busy, Decline::Say("Sorry"), Decline::Unavailable { retry_after_s: 1 }] {
        let document = account().decline(decline);
        assert_eq!((document.body.as_str(), document.status.as_u16()), ("", 503));
    }
}

#[test]
fn dialplan_tells_how_a_call_ended() {
    for (query, want) in [
        ("cause=16", CallStatus::Completed),
        ("cause=17", CallStatus::Busy),
        ("cause=18", CallStatus::NoAnswer),
        ("cause=19", CallStatus::NoAnswer),
        ("cause=21", CallStatus::Rejected),
        ("cause=34", CallStatus::Failed),
        ("dialstatus=ANSWER", CallStatus::Answered),
        ("dialstatus=BUSY&cause=16", CallStatus::Busy),
        ("dialstatus=NOANSWER", CallStatus::NoAnswer),
        ("dialstatus=CANCEL", CallStatus::Canceled),
        ("dialstatus=CONGESTION", CallStatus::Failed),
        ("dialstatus=CHANUNAVAIL", CallStatus::Failed),
    ] {
        assert_eq!(event(&format!("channel_id=1.7&{query}")).status, Some(want), "{query}");
    }
    // Answered, and over: whatever the cause is, somebody was there.
    for (query, want) in [
        ("dialstatus=ANSWER&cause=16&duration=12", CallStatus::Completed),
        ("dialstatus=ANSWER&cause=17&duration=12", CallStatus::Completed),
        ("dialstatus=ANSWER&cause=19&duration=12", CallStatus::Completed),
        ("dialstatus=ANSWER&cause=38&duration=12", CallStatus::Failed),
        ("dialstatus=ANSWER&cause=0&duration=12", CallStatus::Answered),
    ] {
        let told = event(&format!("channel_id=1.7&{query}"));
        assert_eq!((told.status, told.duration_s), (Some(want), Some(12)), "{query}");
    }
    assert_eq!(event("channel_id=1.7&cause=17").q850_cause, Some(17));
    assert_eq!(event("channel_id=1.7&cause=0").status, None);
}

/// C28.
#[test]
fn what_picked_up_is_told_by_amd() {
    for (word, want) in [
        ("HUMAN", Some(AnsweredBy::Human)),
        ("MACHINE", Some(AnsweredBy::Machine)),
        ("NOTSURE", Some(AnsweredBy::Unknown)),
        ("HANGUP", None),
    ] {
        let told = event(&format!("channel_id=1.7&amdstatus={word}"));
        assert_eq!((told.answered_by, told.status), (want, None), "{word}");
    }
}

#[test]
fn aris_events_become_statuses() {
    let told = |json: Json| match proved(Asked::post(URL).json(&json.to_string())).event().webhook(&account())
    {
        Ok(Webhook::Status(event)) => (event.provider_call_id, event.status, event.q850_cause),
        other => panic!("{other:?}"),
    };
    let channel = |state: &str| json!({ "id": "ch-1", "state": state });
    for (state, want) in [
        ("Down", CallStatus::Initiated),
        ("Dialing", CallStatus::Initiated),
        ("Ring", CallStatus::Ringing),
        ("Ringing", CallStatus::Ringing),
        ("Up", CallStatus::Answered),
        ("Busy", CallStatus::Busy),
    ] {
        let event = json!({ "type": "ChannelStateChange", "channel": channel(state) });
        assert_eq!(told(event), ("ch-1".into(), Some(want), None), "{state}");
    }
    for (word, want) in [
        ("", CallStatus::Initiated),
        ("RINGING", CallStatus::Ringing),
        ("ANSWER", CallStatus::Answered),
        ("NOANSWER", CallStatus::NoAnswer),
    ] {
        let event = json!({ "type": "Dial", "dialstatus": word, "peer": channel("Down") });
        assert_eq!(told(event).1, Some(want), "{word}");
    }
    let over = json!({ "type": "ChannelDestroyed", "cause": 17, "cause_txt": "User busy", "channel": channel("Up") });
    assert_eq!(told(over), ("ch-1".into(), Some(CallStatus::Busy), Some(17)));
    assert_eq!(ari_event(&json!({ "type": "PlaybackStarted" })), Webhook::Other("PlaybackStarted".into()));
    let strange = json!({ "type": "ChannelVarset", "channel": channel("Up") });
    assert_eq!(ari_event(&strange), Webhook::Other("ChannelVarset".into()));
}

#[test]
fn dial_names_the_channel_so_that_one_that_lives_is_not_dialled_again() {
    let request = account().dial(&dial(&[], MachineDetection::Off), STAMP).unwrap();
    let id = "00000000-0000-0000-0000-000000001234";
    assert_eq!(
        request.url,
        format!(
            "http://pbx:8088/ari/channels/{id}?endpoint=PJSIP%2F%2B14155550100%40carrier&timeout=30&\
             callerId=%2B14155550199&context=tandem-out&extension=s&priority=1"
        )
    );
    let body: Json = serde_json::from_str(&request.body).unwrap();
    assert_eq!(body["variables"][VARIABLE], id);
    let options = [("app".to_owned(), "tandem".to_owned()), ("trunk".to_owned(), "other".to_owned())];
    let stasis = account().dial(&dial(&options, MachineDetection::Off), STAMP).unwrap();
    assert!(stasis.url.contains("%40other&") && stasis.url.ends_with(&format!("&app=tandem&appArgs={id}")));
    let bare = open_account("asterisk", json!({}));
    assert!(bare.dial(&dial(&[], MachineDetection::Off), STAMP).is_err());
}

/// C27: the channel of the first request is there already.
#[test]
fn channel_that_exists_is_the_one_that_was_dialled() {
    let outcome =
        account().dialled(&answered(409, r#"{"message":"Channel with given unique ID already exists"}"#));
    assert_eq!(outcome, DialOutcome::AlreadyPlaced);
    // Once it is gone its id is free: the same request would ring again.
    assert!(!account().is_dial_repeatable());
    assert!(matches!(account().dialled(&RestAnswer::TimedOut), DialOutcome::Unknown { .. }));
}

/// A transfer's target is a model's words: it must not reach a context, trunk or technology of its choice.
#[test]
fn target_is_a_number_or_a_name_and_nothing_else() {
    let asked = |to: &str| {
        let transfer = Transfer { to, from: "", ring_s: 25, result_url: "", document_url: "" };
        let placed = account().dial(&Dial { to, ..dial(&[], MachineDetection::Off) }, STAMP);
        let moved = stasis().control("1.7", Control::Transfer(transfer), STAMP);
        assert_eq!(placed.is_ok(), moved.is_ok(), "{to}");
        placed.map(|request| request.url)
    };
    for (to, want) in
        [("+4930123", "%2B4930123"), ("200", "200"), ("*8#", "%2A8%23"), ("reception", "reception")]
    {
        let url = asked(to).unwrap();
        assert!(url.contains(&format!("?endpoint=PJSIP%2F{want}%40carrier&")), "{url}");
    }
    for to in [
        "PJSIP/100",
        "Local/s@internal",
        "100@internal",
        "s@from-internal/n",
        "100&PJSIP/200",
        "sip:100@example.com",
        "100,30",
        "a1",
        "1 00",
        "",
        "é",
    ] {
        let error = asked(to).unwrap_err();
        assert_eq!(error.what, "dial anything but a number (+ 0-9 * #) or a name of letters", "{to}");
    }
    // How it is reached is the credential's business.
    let mut there = fields();
    (there["endpoint_technology"], there["trunk"]) = (json!("Local"), json!("out"));
    let local = open_account("asterisk", there).dial(&dial(&[], MachineDetection::Off), STAMP).unwrap();
    assert!(local.url.contains("?endpoint=Local%2F%2B14155550100%40out&"), "{}", local.url);
}

/// ARI says 409 of a channel that is in the dialplan, to everything but its end.
#[test]
fn channel_in_the_dialplan_can_only_be_ended() {
    let transfer = Transfer { to: "+4930123", from: "", ring_s: 25, result_url: "", document_url: "" };
    let refused = |account: Arc<dyn Account>, control| account.control("1.7", control, STAMP).unwrap_err();
    let plan = plan(&[]);
    for control in [Control::Answer(&plan), Control::Transfer(transfer), Control::Dtmf("1")] {
        let error = refused(account(), control);
        assert!(error.what.ends_with("in the dialplan") && !error.instead.is_empty(), "{error}");
    }
    for account in [account(), stasis()] {
        let error = refused(account, Control::Redirect { plan: &plan, document_url: "" });
        assert_eq!(error.what, "lead a live call's media elsewhere");
    }
    assert!(account().control("1.7", Control::HangUp, STAMP).is_ok());
    assert!(account().control("1.7", Control::Reject, STAMP).is_ok());
}

#[test]
fn live_calls_are_controlled_by_their_channel() {
    let ask = |control| {
        let request = stasis().control("1.7", control, STAMP).unwrap();
        format!("{:?} {}", request.method, request.url.strip_prefix("http://pbx:8088/ari").unwrap())
    };
    assert_eq!(ask(Control::HangUp), "Delete /channels/1.7?reason=normal");
    assert_eq!(ask(Control::Reject), "Delete /channels/1.7?reason=rejected");
    assert_eq!(ask(Control::Dtmf("1w2#")), "Post /channels/1.7/dtmf?dtmf=12%23");
    let transfer = Transfer { to: "+4930123", from: "", ring_s: 25, result_url: "", document_url: "" };
    assert_eq!(
        ask(Control::Transfer(transfer)),
        "Post /channels/1.7/redirect?endpoint=PJSIP%2F%2B4930123%40carrier"
    );
    assert_eq!(ask(Control::Answer(&plan(&[]))), "Post /channels/1.7/answer");
    let Lookup::Found(found) = account().looked_up(&answered(200, r#"{"id":"1.7","state":"Up"}"#)) else {
        panic!()
    };
    assert_eq!(found.status, Some(CallStatus::Answered));
}
