//! Calls that we place over a trunk, with sipp, baresip and Kamailio as those who are called.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tandem_tests::baresip::Phone;
use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::kamailio::Plan;
use tandem_tests::sipp::Sipp;
use tandem_tests::sound;
use tandem_tests::stack::{Stack, free_port};

const SOON: Duration = Duration::from_secs(15);
const PASSWORD: &str = "correct horse battery";
const NUMBER: &str = "+4930555";

/// A trunk to this address. `more` are lines of [trunk.outbound] and tables after it.
fn trunk(to: SocketAddr, more: &str) -> String {
    format!(
        "[[trunk]]\nname = \"carrier\"\ntenant = \"demo\"\nsip_uri = \"sip:tandem@{to}\"\nsip_password = \"{PASSWORD}\"\n\
         [trunk.health]\nenabled = false\n[trunk.transfer]\ntargets = [\"127.0.0.1\"]\n\
         [trunk.outbound]\ncaller_id = \"+4930111\"\n{more}\n"
    )
}

/// A stack whose trunk leads to an address at which a scenario will listen.
fn with_trunk(more: &str) -> anyhow::Result<(Stack, u16)> {
    let port = free_port()?;
    Ok((Stack::start_configured(&trunk(SocketAddr::from(([127, 0, 0, 1], port)), more), &[])?, port))
}

/// Each scenario of a phone that is called, and the word for what became of the call.
#[tokio::test(flavor = "multi_thread")]
async fn every_outcome_has_its_word_and_the_carriers_own() -> anyhow::Result<()> {
    let (stack, port) = with_trunk("ring_timeout_s = 3")?;
    for (scenario, state, reason, status) in [
        ("called_answers.xml", "ended", "callee_hangup", 0),
        ("called_challenges.xml", "ended", "callee_hangup", 0),
        ("called_early_media.xml", "ended", "callee_hangup", 0),
        ("called_reliable.xml", "ended", "callee_hangup", 0),
        ("called_busy.xml", "failed", "busy", 486),
        ("called_rejects.xml", "failed", "rejected", 603),
        ("called_unknown.xml", "failed", "unreachable", 404),
        ("called_congested.xml", "failed", "trunk_unreachable", 503),
        ("called_never_answers.xml", "failed", "no_answer", 0),
    ] {
        let phone = Sipp::scenario(scenario).talk(Duration::from_millis(300)).listens_at(port)?;
        let call_id = stack.places("echo", NUMBER).await?;
        let call = stack.call_when_over(&call_id).await?;
        phone
            .succeeds(1)
            .map_err(|error| anyhow::anyhow!("{scenario}: {error}\n{call:?}\n{}", stack.everything_said()))?;
        let ending = call.ending.clone().unwrap_or_default();
        anyhow::ensure!(
            (call.state.as_str(), ending.reason.as_str()) == (state, reason),
            "{scenario}: {call:?}"
        );
        anyhow::ensure!(call.direction == "outbound" && call.trunk == "carrier", "{scenario}: {call:?}");
        let carrier = ending.carrier.unwrap_or_default();
        anyhow::ensure!(status == 0 || carrier.sip_status == status, "{scenario}: {carrier:?}");
    }
    anyhow::ensure!(!stack.log("control").contains(PASSWORD), "the log holds the password");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn call_to_where_nobody_listens_ends_as_unreachable_trunk() -> anyhow::Result<()> {
    let (stack, _) = with_trunk("")?;
    let call = stack.call_when_over(&stack.places("echo", NUMBER).await?).await?;
    let ending = call.ending.clone().unwrap_or_default();
    anyhow::ensure!(ending.reason == "trunk_unreachable", "{call:?}");
    Ok(())
}

/// A redirect is followed over the trunk, as everything that the trunk's limits and its bill are to see.
#[tokio::test(flavor = "multi_thread")]
async fn redirect_is_refused_by_default_and_followed_over_the_trunk_where_it_says_so() -> anyhow::Result<()> {
    for (more, reason) in [("", "redirected"), ("redirects = \"follow\"", "callee_hangup")] {
        let (stack, port) = with_trunk(more)?;
        let moved = Sipp::scenario("called_redirects.xml").key("moved_to", port).listens_at(port)?;
        let call_id = stack.places("echo", NUMBER).await?;
        moved.succeeds(1)?;
        // The next INVITE is repeated until somebody is at that port again.
        let target = match reason {
            "redirected" => None,
            _ => Some(Sipp::scenario("called_moved.xml").listens_at(port)?),
        };
        let call = stack.call_when_over(&call_id).await?;
        let ending = call.ending.clone().unwrap_or_default();
        anyhow::ensure!(ending.reason == reason, "{more}: {call:?}\n{}", stack.everything_said());
        if let Some(target) = target {
            target.succeeds(1)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn call_that_we_end_gets_a_bye_and_one_that_rings_gets_a_cancel() -> anyhow::Result<()> {
    let (stack, port) = with_trunk("")?;
    let phone = Sipp::scenario("called_listens.xml").listens_at(port)?;
    let call_id = stack.places("echo", NUMBER).await?;
    phone.logs("answered")?;
    stack.hangs_up(&call_id).await?;
    phone.succeeds(1)?;
    let call = stack.call_when_over(&call_id).await?;
    anyhow::ensure!(call.ending.clone().unwrap_or_default().reason == "operator_hangup", "{call:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn callee_is_held_and_resumed_by_re_invite() -> anyhow::Result<()> {
    let (stack, port) = with_trunk("")?;
    let phone = Sipp::scenario("called_held.xml").listens_at(port)?;
    let call_id = stack.places("tone", NUMBER).await?;
    phone.logs("answered")?;
    stack.holds(&call_id, false).await?;
    phone.logs("held")?;
    stack.holds(&call_id, true).await?;
    phone.logs("resumed")?;
    phone.succeeds(1)?;
    let call = stack.call_when_over(&call_id).await?;
    anyhow::ensure!(call.state == "ended", "{call:?}");
    Ok(())
}

/// REFER, 202, NOTIFY with what became of it, BYE (RFC 3515, RFC 5589).
#[tokio::test(flavor = "multi_thread")]
async fn callee_is_transferred_and_a_transfer_that_fails_leaves_the_call() -> anyhow::Result<()> {
    let (stack, port) = with_trunk("")?;
    let phone = Sipp::scenario("called_transfers.xml").listens_at(port)?;
    let call_id = stack.places("tone", NUMBER).await?;
    phone.logs("answered")?;
    stack.transfers(&call_id, "sip:elsewhere@127.0.0.1:9").await?;
    phone.succeeds(1)?;
    let call = stack.call_when_over(&call_id).await?;
    anyhow::ensure!(call.ending.clone().unwrap_or_default().reason == "transferred", "{call:?}");

    let phone = Sipp::scenario("called_transfer_fails.xml").listens_at(port)?;
    let call_id = stack.places("tone", NUMBER).await?;
    phone.logs("answered")?;
    // Whether the API waits for what becomes of it is its own affair; the call goes on in both cases.
    let _ = stack.transfers(&call_id, "sip:elsewhere@127.0.0.1:9").await;
    phone.logs("refused")?;
    phone.succeeds(1)?;
    let call = stack.call_when_over(&call_id).await?;
    anyhow::ensure!(call.ending.clone().unwrap_or_default().reason == "callee_hangup", "{call:?}");
    Ok(())
}

/// Our INVITE has no offer, the 183 has one, and what we answer is in the PRACK (RFC 3262 §5).
#[tokio::test(flavor = "multi_thread")]
async fn offer_in_a_reliable_183_is_answered_in_the_prack() -> anyhow::Result<()> {
    let (stack, port) = with_trunk("delayed_offer = true")?;
    let phone = Sipp::scenario("called_reliable_offers.xml").listens_at(port)?;
    let call_id = stack.places("tone", NUMBER).await?;
    let call = stack.call_when_over(&call_id).await?;
    phone.succeeds(1).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    anyhow::ensure!(call.ending.clone().unwrap_or_default().reason == "callee_hangup", "{call:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_leaves_no_faster_than_its_trunk_may() -> anyhow::Result<()> {
    let (stack, port) = with_trunk("calls_per_second = 2")?;
    let phones = Sipp::scenario("called_busy.xml").calls(7, 7).listens_at(port)?;
    let began = Instant::now();
    let numbers: Vec<String> = (0..7).map(|n| format!("+49305550{n}")).collect();
    stack.places_many("echo", &numbers).await?;
    phones.succeeds(7)?;
    // The first may leave at once, and perhaps a second's worth; the rest at two a second.
    anyhow::ensure!(began.elapsed() >= Duration::from_secs(2), "seven calls in {:?}", began.elapsed());
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 7, "{calls:?}");
    Ok(())
}

/// Kamailio challenges with 407, and its own code checks our digest; the phone behind it is baresip.
#[tokio::test(flavor = "multi_thread")]
async fn call_through_kamailio_with_md5_and_sha_256_reaches_a_registered_baresip() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    for (nth, algorithm) in [(1, "MD5"), (2, "SHA-256")] {
        let nobody = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let kamailio = Plan::to(nobody).call_password(PASSWORD, algorithm).start()?;
        let stack = Stack::start_configured(&trunk(kamailio.sip, ""), &[])?;
        let account = format!("<sip:4930555@{}>;regint=60;answermode=auto", kamailio.sip);
        let mut phone = Phone::start(&account, "", &sound::sweep(8_000, 60.0))?;
        phone.is_registered()?;
        let call_id = stack.places("pcm", "4930555").await?;
        phone.event("CALL_ESTABLISHED", 1).map_err(|error| {
            anyhow::anyhow!("{algorithm}: {error}\n{}\n{}", kamailio.said(), stack.everything_said())
        })?;
        bot.event("start", nth, SOON).await?;
        phone.command("sndcode 7")?;
        let key = bot.event("dtmf", nth, SOON).await?;
        anyhow::ensure!(key["digit"] == "7", "{key}");
        phone.command("hangup")?;
        let call = stack.call_when_over(&call_id).await?;
        anyhow::ensure!(call.ending.clone().unwrap_or_default().reason == "callee_hangup", "{call:?}");
    }
    Ok(())
}
