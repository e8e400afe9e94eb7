//! Transfer as the phones see it: Replaces and REFER, of either side.

use std::time::Duration;

use anyhow::Context;
use tandem_tests::baresip::Phone;
use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::linphone::Linphone;
use tandem_tests::media::Media;
use tandem_tests::sipp::Sipp;
use tandem_tests::sound;
use tandem_tests::stack::{Stack, free_port};

const SOON: Duration = Duration::from_secs(15);

/// A PBX on this machine: calls to 700 come from it, and it leads to this port.
fn pbx(port: u16, assistant: &str) -> String {
    format!(
        "[[trunk]]\nname = \"pbx\"\ntenant = \"demo\"\nsip_uri = \"sip:127.0.0.1:{port}\"\n\
         [trunk.inbound]\nallow = [\"127.0.0.1\"]\n\
         [[trunk.inbound.route]]\ndid = \"700\"\nassistant = \"{assistant}\"\n\
         [trunk.health]\nenabled = false\n[trunk.transfer]\nrefer_in = \"same_trunk\"\ntargets = [\"127.0.0.1\"]\n\
         [trunk.outbound]\ncaller_id = \"700\"\n"
    )
}

/// What an attended transfer to us ends in (RFC 3891): the new call takes the old one's place, and the old one gets BYE. It
/// is one call: the agent's stream, and the record, go on.
#[tokio::test(flavor = "multi_thread")]
async fn call_with_replaces_takes_the_place_of_the_call_that_it_names() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    let first = Sipp::scenario("replaced.xml").key("to", "pcm:demo-key").calls_meanwhile(stack.sip())?;
    let dialog = first.logs("dialog")?;
    let [call_id, ours, theirs] = dialog.split(' ').collect::<Vec<_>>()[..] else {
        anyhow::bail!("the scenario logs {dialog}")
    };
    let theirs = theirs.strip_prefix(";tag=").context("a dialog has a tag")?;
    let replaces = format!("{call_id};to-tag={theirs};from-tag={ours}");
    let mut media = Media::open()?;
    let second = Sipp::scenario("replaces.xml")
        .key("to", "pcm:demo-key")
        .key("replaces", replaces)
        .key("rtp_port", media.port())
        .talk(Duration::from_secs(2))
        .calls_meanwhile(stack.sip())?;
    media.wait_for_packet(SOON).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    second.succeeds(1).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    first.succeeds(1)?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    anyhow::ensure!(calls[0].ending.clone().unwrap_or_default().reason == "hangup", "{calls:?}");
    anyhow::ensure!(bot.connections() == 1, "the agent was dialled {} times", bot.connections());
    let moved = bot.event("transfer", 1, SOON).await?;
    anyhow::ensure!(moved["status"] == "moved", "{moved}");
    Ok(())
}

/// REFER of the caller, followed: 202, NOTIFYs, an INVITE to the target, and the agent talks with that one.
#[tokio::test(flavor = "multi_thread")]
async fn caller_hands_us_on_and_the_agent_talks_with_the_target() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let port = free_port()?;
    let stack = Stack::start_configured(&pbx(port, "pcm"), &[])?;
    let mut media = Media::open()?;
    let target = Sipp::scenario("referred_to.xml")
        .key("rtp_port", media.port())
        .talk(Duration::from_secs(2))
        .listens_at(port)?;
    let caller = Sipp::scenario("refers.xml").key("to", "700").key("target_port", port);
    let caller = caller.calls_meanwhile(stack.sip())?;
    target.logs("answered").map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    media.wait_for_packet(SOON)?;
    caller.succeeds(1).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    target.succeeds(1)?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended" && bot.connections() == 1, "{calls:?}");
    let told: Vec<_> = bot.events("transfer").iter().map(|event| event["status"].clone()).collect();
    anyhow::ensure!(told == ["referred", "moved"], "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_whose_target_is_busy_keeps_its_call() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let port = free_port()?;
    let stack = Stack::start_configured(&pbx(port, "pcm"), &[])?;
    let target = Sipp::scenario("called_busy.xml").listens_at(port)?;
    Sipp::scenario("refers_in_vain.xml")
        .key("to", "700")
        .key("target_port", port)
        .succeeds(stack.sip())
        .map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    target.succeeds(1)?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    let told: Vec<_> = bot.events("transfer").iter().map(|event| event["status"].clone()).collect();
    anyhow::ensure!(told == ["referred", "failed"], "{told:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replaces_in_refer_to_goes_into_the_invite_to_the_target() -> anyhow::Result<()> {
    let port = free_port()?;
    let stack = Stack::start_configured(&pbx(port, "tone"), &[])?;
    let target = Sipp::scenario("referred_to_attended.xml").listens_at(port)?;
    Sipp::scenario("refers_attended.xml")
        .key("to", "700")
        .key("target_port", port)
        .succeeds(stack.sip())
        .map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    target.succeeds(1)?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    Ok(())
}

/// baresip as the one that is handed on: it follows our REFER to another baresip, and hears that one.
#[tokio::test(flavor = "multi_thread")]
async fn baresip_follows_our_refer_to_another_phone() -> anyhow::Result<()> {
    let (first_port, second_port) = (free_port()?, free_port()?);
    let stack = Stack::start_configured(&pbx(first_port, "tone"), &[])?;
    let first = Phone::start_at(
        first_port,
        "<sip:first@127.0.0.1>;regint=0;answermode=auto;call_transfer=yes",
        "",
        &sound::sweep(8_000, 60.0),
    )?;
    let second = Phone::start_at(
        second_port,
        "<sip:second@127.0.0.1>;regint=0;answermode=auto",
        "",
        &sound::sweep(8_000, 60.0),
    )?;
    let call_id = stack.places("tone", "first").await?;
    first.event("CALL_ESTABLISHED", 1)?;
    stack.transfers(&call_id, &format!("sip:second@127.0.0.1:{second_port}")).await?;
    second
        .event("CALL_ESTABLISHED", 1)
        .map_err(|error| anyhow::anyhow!("{error}\n{}\n{}", first.said(), stack.everything_said()))?;
    let call = stack.call_when_over(&call_id).await?;
    anyhow::ensure!(
        call.ending.clone().unwrap_or_default().reason == "transferred",
        "{call:?}\n{}",
        first.said()
    );
    Ok(())
}

/// baresip as the one that hands us on, to another baresip.
#[tokio::test(flavor = "multi_thread")]
async fn baresip_hands_our_agent_to_another_phone() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let port = free_port()?;
    let stack = Stack::start_configured(&pbx(port, "pcm"), &[])?;
    let mut second = Phone::start_at(
        port,
        "<sip:second@127.0.0.1>;regint=0;answermode=auto",
        "",
        &sound::sweep(8_000, 60.0),
    )?;
    let mut first = Phone::start("<sip:first@127.0.0.1>;regint=0", "", &sound::sweep(8_000, 60.0))?;
    first.command(&format!("dial sip:700@{}", stack.sip()))?;
    first.event("CALL_ESTABLISHED", 1)?;
    bot.event("start", 1, SOON).await?;
    first.command(&format!("transfer sip:second@127.0.0.1:{port}"))?;
    second
        .event("CALL_ESTABLISHED", 1)
        .map_err(|error| anyhow::anyhow!("{error}\n{}\n{}", first.said(), stack.everything_said()))?;
    first.event("CALL_CLOSED", 1)?;
    let moved = bot.event("transfer", 2, SOON).await?;
    anyhow::ensure!(moved["status"] == "moved", "{moved}");
    // The agent hears the second phone's key.
    second.command("sndcode 5")?;
    let key = bot.event("dtmf", 1, SOON).await?;
    anyhow::ensure!(key["digit"] == "5", "{key}");
    second.command("hangup")?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended" && bot.connections() == 1, "{calls:?}");
    Ok(())
}

/// linphone hands us on, blind: to a phone of its own kind.
#[tokio::test(flavor = "multi_thread")]
async fn linphone_hands_our_agent_to_another_phone() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let port = free_port()?;
    let stack = Stack::start_configured(&pbx(port, "pcm"), &[])?;
    let (mut first, mut second) = (Linphone::start(free_port()?)?, Linphone::start(port)?);
    second.command("autoanswer enable")?;
    first.command(&format!("call sip:700@{}", stack.sip()))?;
    bot.event("start", 1, SOON).await?;
    first.waits_for("Media streams established")?;
    first.command(&format!("transfer sip:second@127.0.0.1:{port}"))?;
    is_the_seconds(&bot, &mut first, &mut second, &stack).await
}

/// The same, attended: it talks with both, and joins them. The target replaces its call with linphone by ours (RFC 3891).
#[tokio::test(flavor = "multi_thread")]
async fn linphone_joins_our_agent_and_another_phone() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let port = free_port()?;
    let stack = Stack::start_configured(&pbx(port, "pcm"), &[])?;
    let (mut first, mut second) = (Linphone::start(free_port()?)?, Linphone::start(port)?);
    second.command("autoanswer enable")?;
    first.command(&format!("call sip:700@{}", stack.sip()))?;
    bot.event("start", 1, SOON).await?;
    first.waits_for("Media streams established")?;
    first.command("pause")?;
    bot.event("hold", 1, SOON).await?;
    first.command(&format!("call sip:second@127.0.0.1:{port}"))?;
    first.waits_for("Media streams established with sip:second")?;
    first.command("transfer 1 --to-call 2")?;
    is_the_seconds(&bot, &mut first, &mut second, &stack).await?;
    anyhow::ensure!(second.log().contains("Replaces:"), "{}", second.said());
    Ok(())
}

/// The agent talks with the second phone, and hears its key; it is one call.
async fn is_the_seconds(
    bot: &Bot,
    first: &mut Linphone,
    second: &mut Linphone,
    stack: &Stack,
) -> anyhow::Result<()> {
    let said = |first: &Linphone, second: &Linphone| {
        format!(
            "first:\n{}\n{}\nsecond:\n{}\n{}\n{}",
            first.said(),
            first.messages(),
            second.said(),
            second.messages(),
            stack.everything_said()
        )
    };
    let moved = bot.event("transfer", 2, SOON).await;
    let moved = moved.map_err(|error| anyhow::anyhow!("{error}\n{}", said(first, second)))?;
    anyhow::ensure!(moved["status"] == "moved", "{moved}\n{}", said(first, second));
    second.command("5")?;
    let key = bot.event("dtmf", 1, SOON).await;
    let key = key.map_err(|error| anyhow::anyhow!("{error}\n{}", said(first, second)))?;
    anyhow::ensure!(key["digit"] == "5", "{key}");
    second.command("terminate")?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended" && bot.connections() == 1, "{calls:?}");
    Ok(())
}
