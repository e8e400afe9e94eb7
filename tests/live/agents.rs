//! Agents that somebody else wrote: WebSocket servers that speak Tandem's pcm protocol or Twilio Media Streams.

use std::time::{Duration, Instant};

use serde_json::json;
use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::caller::Caller;
use tandem_tests::media::Heard;
use tandem_tests::sound;
use tandem_tests::stack::Stack;

const SOON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn pcm_agent_hears_the_caller_and_the_caller_hears_the_agent() -> anyhow::Result<()> {
    round_trip(Dialect::Pcm, "pcm", 16_000).await
}

#[tokio::test(flavor = "multi_thread")]
async fn twilio_agent_hears_the_caller_and_the_caller_hears_the_agent() -> anyhow::Result<()> {
    round_trip(Dialect::Twilio, "ws", 8_000).await
}

/// Audio both ways through an echoing bot, without a gap, and a start frame that tells whose call it is.
async fn round_trip(dialect: Dialect, assistant: &str, rate_hz: u32) -> anyhow::Result<()> {
    let bot = Bot::listen(dialect, true).await?;
    let stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, assistant)?;
    let start = bot.event("start", 1, SOON).await?;
    let said = sound::sweep(8_000, 3.0);
    let heard = caller.says(&said)?;
    heard.is_one_even_stream()?;
    resembles(assistant, &said, &heard.samples())?;
    let at_agent = bot.heard();
    let wanted = sound::sweep(rate_hz, 3.0);
    let (r, _) = sound::resemblance(&wanted[..rate_hz as usize], &at_agent, rate_hz as usize / 2);
    anyhow::ensure!(r > 0.9, "the agent hears the caller with r = {r:.3}, {} samples", at_agent.len());
    caller.hangs_up()?;
    let stop = bot.event("stop", 1, SOON).await?;
    let calls = stack.calls_when_over().await?;
    let call_id = calls.first().map(|call| call.call_id.clone()).unwrap_or_default();
    let told = match dialect {
        Dialect::Pcm => start["callId"].as_str(),
        Dialect::Twilio => start["start"]["callSid"].as_str(),
    };
    anyhow::ensure!(told.is_some_and(|id| !id.is_empty()), "the start frame names no call: {start}");
    if dialect == Dialect::Pcm {
        anyhow::ensure!(told == Some(call_id.as_str()), "start {start}, call {call_id}");
        anyhow::ensure!(stop["reason"].is_string(), "{stop}");
        anyhow::ensure!(start["sampleRate"] == 16_000 && start["frameMs"] == 20, "{start}");
    }
    Ok(())
}

/// An echo, half second by half second. A bot that answers late on a busy machine leaves a pause of a packet, and what
/// follows is shifted: that spoils the half second in which it happens, and no other.
fn resembles(who: &str, said: &[i16], heard: &[i16]) -> anyhow::Result<()> {
    let half_seconds = said.chunks_exact(4_000).enumerate();
    let pieces: Vec<(f64, usize)> = half_seconds
        .map(|(n, piece)| sound::resemblance(piece, &heard[(n * 4_000).min(heard.len())..], 4_000))
        .collect();
    println!("{who}: resemblance and delay in samples of each half second: {pieces:.2?}");
    let good = pieces.iter().filter(|(r, _)| *r > 0.85).count();
    anyhow::ensure!(good + 2 >= pieces.len(), "{who}: {pieces:.2?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pcm_agent_is_told_of_keys() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, "pcm")?;
    caller.says(&vec![0; 1_600])?;
    for (n, key) in ['4', '2', '#'].into_iter().enumerate() {
        caller.presses(key)?;
        let event = bot.event("dtmf", n + 1, SOON).await?;
        anyhow::ensure!(event["digit"] == key.to_string() || event["digits"] == key.to_string(), "{event}");
    }
    caller.says(&vec![0; 1_600])?;
    anyhow::ensure!(bot.events("dtmf").len() == 3, "each key once: {:?}", bot.events("dtmf"));
    caller.hangs_up()
}

#[tokio::test(flavor = "multi_thread")]
async fn pcm_agent_that_clears_silences_itself_and_learns_what_was_heard() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, "pcm")?;
    bot.event("start", 1, SOON).await?;
    // Five seconds in one burst, as a synthesiser gives them; interrupted after about one.
    let speech: Vec<i16> = sound::sweep(16_000, 5.0);
    let said = Instant::now();
    bot.say(&speech)?;
    bot.send_event(json!({ "event": "mark", "name": "end of sentence" }))?;
    let heard = caller.listens(Duration::from_millis(1_000))?;
    anyhow::ensure!(sound::loudness(&heard.samples()) > 1_000.0, "the agent is not heard");
    bot.send_event(json!({ "event": "clear" }))?;
    let cleared = bot.event("cleared", 1, SOON).await?;
    let at_most_ms = said.elapsed().as_millis() as u64;
    let heard_ms = cleared["heardMs"].as_u64().unwrap_or_default();
    let after = caller.listens(Duration::from_millis(600))?;
    let samples = after.samples();
    let tail = &samples[samples.len().saturating_sub(2_400)..];
    anyhow::ensure!(
        sound::loudness(tail) < 50.0,
        "after the clear the loudness is {}",
        sound::loudness(tail)
    );
    // No more than there was time for: all 5 000 would mean that nothing was cleared.
    anyhow::ensure!(heard_ms <= at_most_ms + 20, "heardMs {heard_ms} within {at_most_ms} ms");
    anyhow::ensure!(heard_ms < 4_500, "heardMs {heard_ms}: nothing was left to clear");
    // What the wire carried is what the agent is told, to one packet: count the loud ones.
    let loud = |packets: &Heard| {
        let frames = packets.samples();
        frames.chunks(160).filter(|frame| sound::loudness(frame) > 500.0).count() as u64 * 20
    };
    let wire_ms = loud(&heard) + loud(&after);
    anyhow::ensure!(heard_ms >= loud(&heard), "heardMs {heard_ms}, {} before the clear", loud(&heard));
    println!("heardMs {heard_ms}, on the wire {wire_ms}");
    anyhow::ensure!(heard_ms.abs_diff(wire_ms) <= 60, "heardMs {heard_ms}, on the wire {wire_ms} ms");
    caller.hangs_up()
}

#[tokio::test(flavor = "multi_thread")]
async fn pcm_agent_hears_of_a_mark_when_the_audio_before_it_has_left() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    let caller = Caller::dials(&stack, "pcm")?;
    bot.event("start", 1, SOON).await?;
    let began = Instant::now();
    bot.say(&sound::sweep(16_000, 0.6))?;
    bot.send_event(json!({ "event": "mark", "name": "done" }))?;
    let mark = bot.event("mark", 1, SOON).await?;
    let after = began.elapsed();
    anyhow::ensure!(
        after >= Duration::from_millis(550),
        "the mark came after {after:?}, before the audio was out"
    );
    anyhow::ensure!(mark["name"] == "done", "{mark}");
    let heard_ms = mark["heardMs"].as_u64().unwrap_or_default();
    anyhow::ensure!((580..=640).contains(&heard_ms), "{mark}");
    caller.hangs_up()
}

#[tokio::test(flavor = "multi_thread")]
async fn agent_that_hangs_up_after_its_goodbye_is_heard_to_the_end() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, "pcm")?;
    bot.event("start", 1, SOON).await?;
    let goodbye = sound::sweep(16_000, 1.0);
    bot.say(&goodbye)?;
    bot.send_event(json!({ "event": "hangup", "after": "drain" }))?;
    let loud =
        |heard: &Heard| heard.samples().chunks(160).filter(|frame| sound::loudness(frame) > 500.0).count();
    let mut heard = caller.listens_until(SOON, |heard| loud(heard) >= 45)?;
    heard.0.extend(caller.listens(Duration::from_millis(300))?.0);
    anyhow::ensure!((45..=55).contains(&loud(&heard)), "{} loud packets of 50", loud(&heard));
    caller.is_hung_up_on(SOON)?;
    let calls = stack.calls_when_over().await?;
    let ending = calls.first().and_then(|call| call.ending.clone()).unwrap_or_default();
    anyhow::ensure!(ending.party == "agent", "{ending:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn twilio_agent_can_clear_and_hangs_up_by_closing() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Twilio, false).await?;
    let stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, "ws")?;
    bot.event("start", 1, SOON).await?;
    bot.say(&sound::sweep(8_000, 4.0))?;
    bot.send_event(json!({ "event": "mark", "mark": { "name": "end" } }))?;
    let heard = caller.listens(Duration::from_millis(800))?;
    anyhow::ensure!(sound::loudness(&heard.samples()) > 1_000.0, "the agent is not heard");
    bot.send_event(json!({ "event": "clear" }))?;
    // Twilio gives the marks of cleared audio back at once.
    let mark = bot.event("mark", 1, SOON).await?;
    anyhow::ensure!(mark["mark"]["name"] == "end", "{mark}");
    let samples = caller.listens(Duration::from_millis(500))?.samples();
    let tail = &samples[samples.len().saturating_sub(1_600)..];
    anyhow::ensure!(
        sound::loudness(tail) < 50.0,
        "after the clear the loudness is {}",
        sound::loudness(tail)
    );
    bot.close()?;
    caller.is_hung_up_on(SOON)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn call_to_an_agent_that_is_not_there_rings_and_is_refused_with_480() -> anyhow::Result<()> {
    let stack =
        Stack::start_with(&["--demo", "--no-call", "--no-voice"], &[("TANDEM_RING_SECONDS_MAX", "2")])?;
    for assistant in ["ws", "pcm"] {
        let (caller, answer, provisional) = Caller::tries(&stack, assistant, Duration::from_secs(15))?;
        anyhow::ensure!(caller.is_none() && answer.status() == 480, "{assistant}: {}", answer.start);
        anyhow::ensure!(provisional.contains(&180), "it did not ring: {provisional:?}");
        anyhow::ensure!(answer.header("Reason").is_some(), "no reason: {}", answer.text);
    }
    let calls = stack.calls_when_over().await?;
    let parties: Vec<_> = calls.iter().filter_map(|call| Some(call.ending.clone()?.party)).collect();
    anyhow::ensure!(parties == ["agent", "agent"], "{parties:?}");
    Ok(())
}
