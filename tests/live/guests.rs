//! Somebody is brought into a call, with real phones and sound: put through to, whispering, listening in.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tandem_api::v1::JoinRole;
use tandem_tests::baresip::Phone;
use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::media::{Heard, Media};
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
         [trunk.health]\nenabled = false\n[trunk.outbound]\ncaller_id = \"700\"\n"
    )
}

/// Both talk at once, each something else; gives what each has heard.
fn both_talk(
    [first, second]: [&mut Media; 2],
    [to_first, to_second]: [SocketAddr; 2],
    [says_first, says_second]: [&[i16]; 2],
) -> anyhow::Result<[Heard; 2]> {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| second.talk(to_second, says_second));
        let heard = first.talk(to_first, says_first)?;
        let other = other.join().map_err(|_| anyhow::anyhow!("the second talker panicked"))??;
        Ok([heard, other])
    })
}

/// A second of what was said is found in what was heard.
fn is_heard(who: &str, said: &[i16], heard: &[i16]) -> anyhow::Result<()> {
    let second = said.get(8_000..16_000).context("two seconds are said")?;
    let (r, delay) = sound::resemblance(second, heard, heard.len().saturating_sub(8_000));
    anyhow::ensure!(r > 0.85, "{who} is heard with r = {r:.3}, {delay} of {} samples later", heard.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_puts_the_caller_through_and_the_two_hear_each_other() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let port = free_port()?;
    let stack = Stack::start_configured(&pbx(port, "pcm"), &[])?;
    let (mut caller, mut target) = (Media::open()?, Media::open()?);
    let target_phone = Sipp::scenario("called_answers.xml")
        .key("rtp_port", target.port())
        .talk(Duration::from_secs(6))
        .listens_at(port)?;
    let caller_phone = Sipp::scenario("trunk_call.xml")
        .key("to", "700")
        .key("rtp_port", caller.port())
        .talk(Duration::from_secs(20))
        .calls_meanwhile(stack.sip())?;
    caller.wait_for_packet(SOON).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    bot.send_event(json!({"event": "transfer", "to": "200", "mode": "bridge"}))?;
    target.wait_for_packet(SOON).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    let places = [caller.heard_from()?, target.heard_from()?];
    // What has come meanwhile: it rang for longer than a socket keeps.
    caller.listen(Duration::from_millis(100))?;
    // Two voices that are not alike: one sweeps up, the other down.
    let up = sound::sweep(8_000, 3.0);
    let down: Vec<i16> = up.iter().rev().copied().collect();
    let [at_caller, at_target] = both_talk([&mut caller, &mut target], places, [&up, &down])?;
    at_caller.is_one_even_stream()?;
    at_target.is_one_even_stream()?;
    is_heard("the target", &down, &at_caller.samples())?;
    is_heard("the caller", &up, &at_target.samples())?;
    // The target hangs up: the caller is with the agent again.
    target_phone.succeeds(1)?;
    let mut told = Vec::new();
    for nth in 1..=4 {
        told.push(bot.event("transfer", nth, SOON).await?["status"].clone());
    }
    anyhow::ensure!(told == ["trying", "ringing", "joined", "left"], "{told:?}");
    bot.send_event(json!({"event": "hangup", "after": "now"}))?;
    drop(caller_phone);
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    anyhow::ensure!(calls[0].ending.clone().unwrap_or_default().reason == "agent_hangup", "{calls:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_with_a_softphone_listens_in_and_then_whispers_to_the_agent() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let port = free_port()?;
    let stack = Stack::start_configured(&pbx(port, "pcm"), &[])?;
    let mut caller = Media::open()?;
    let caller_phone = Sipp::scenario("trunk_call.xml")
        .key("to", "700")
        .key("rtp_port", caller.port())
        .talk(Duration::from_secs(15))
        .calls_meanwhile(stack.sip())?;
    caller.wait_for_packet(SOON).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    let call_id = stack.calls().await?.first().context("a call is alive")?.call_id.clone();
    let account = "<sip:operator@127.0.0.1>;regint=0;answermode=auto";
    let mut operator = Phone::start_at(port, account, "", &sound::sweep(8_000, 60.0))?;
    stack.joins(&call_id, "operator", JoinRole::Listen).await?;
    operator
        .event("CALL_ESTABLISHED", 1)
        .map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    let before = bot.heard().len();
    caller.listen(Duration::from_secs(1))?;
    let secret = sound::loudness(&bot.heard()[before..]);
    anyhow::ensure!(secret < 50.0, "who listens in is heard by the agent: {secret}");
    anyhow::ensure!(bot.events("transfer").is_empty(), "{:?}", bot.events("transfer"));

    stack.joins(&call_id, "", JoinRole::Whisper).await?;
    let before = bot.heard().len();
    let at_caller = caller.listen(Duration::from_secs(3))?.samples();
    let at_agent = bot.heard()[before..].to_vec();
    let whispered = sound::loudness(&at_agent);
    anyhow::ensure!(whispered > 500.0, "the agent hears {whispered} of {} samples", at_agent.len());
    let heard = sound::loudness(&at_caller);
    anyhow::ensure!(heard < 50.0, "the caller hears {heard}");
    operator.command("hangup")?;
    bot.event("transfer", 1, SOON).await?;
    anyhow::ensure!(stack.calls().await?[0].state == "connected");
    bot.send_event(json!({"event": "hangup", "after": "now"}))?;
    drop(caller_phone);
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    Ok(())
}
