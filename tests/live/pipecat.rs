//! A bot that was built for Twilio, with pipecat, answers SIP calls through the assistant `ws`.

use std::time::{Duration, Instant};

use tandem_tests::caller::Caller;
use tandem_tests::media::Heard;
use tandem_tests::pipecat::Pipecat;
use tandem_tests::sound;
use tandem_tests::stack::Stack;

const SOON: Duration = Duration::from_secs(15);
/// Longer than the way there and back; at 8 kHz.
const DELAY_MAX: usize = 8_000;
/// Root mean square of 20 ms of the bot's tone, which has 5 657; and of nothing, but for a codec's noise.
const LOUD: f64 = 1_000.0;
const QUIET: f64 = 50.0;

/// What the caller says comes back; the caller hangs up, and the bot's pipeline ends.
#[tokio::test(flavor = "multi_thread")]
async fn caller_hears_itself_through_a_pipecat_bot_and_hangs_up() -> anyhow::Result<()> {
    let bot = Pipecat::listens()?;
    let stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, "ws")?;
    let start = bot.says("twilio stream ")?;
    let said = sound::sweep(8_000, 6.0);
    let began = Instant::now();
    let heard = caller.says(&said)?;
    let (pauses, paused) = heard.is_one_stream_with_pauses()?;
    println!("{} packets, {pauses} pauses, {} ms in all", heard.0.len(), paused.as_millis());
    resembles(&said, &heard.timeline(began))?;
    caller.hangs_up()?;
    bot.says("disconnected")?;
    bot.says("ended")?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    let ending = calls[0].ending.clone().unwrap_or_default();
    anyhow::ensure!(ending.party == "caller", "{ending:?}");
    let call_sid = format!("call CA{}", calls[0].call_id.replace('-', ""));
    anyhow::ensure!(start.starts_with("MZ") && start.ends_with(&call_sid), "{start}, {}", calls[0].call_id);
    understood_all(&stack)?;
    bot.is_content()
}

/// An echo, quarter second by quarter second. A bot that answers late on a busy machine leaves a pause, and what follows
/// is shifted: that spoils the quarter in which it happens, and no other.
fn resembles(said: &[i16], heard: &[i16]) -> anyhow::Result<()> {
    let quarters = said.chunks_exact(2_000).enumerate();
    let pieces: Vec<(f64, usize)> = quarters
        .map(|(n, piece)| sound::resemblance(piece, &heard[(n * 2_000).min(heard.len())..], DELAY_MAX))
        .collect();
    let told: Vec<String> = pieces.iter().map(|(r, delay)| format!("{r:.2} at {}", delay / 8)).collect();
    println!("resemblance and delay in ms of each quarter second: {}", told.join(", "));
    let mut delays: Vec<usize> = pieces.iter().filter(|(r, _)| *r > 0.9).map(|(_, delay)| *delay).collect();
    delays.sort_unstable();
    // What is said in the last second may not have come back yet.
    anyhow::ensure!(delays.len() * 3 >= pieces.len() * 2, "no echo: {told:?}");
    println!("the echo takes {} ms (median)", delays[delays.len() / 2] / 8);
    Ok(())
}

/// The bot hears a key and says a tone, the caller talks over it and it is silent; another key, and the bot hangs up.
#[tokio::test(flavor = "multi_thread")]
async fn pipecat_bot_is_steered_by_keys_interrupted_by_talk_and_hangs_up() -> anyhow::Result<()> {
    let bot = Pipecat::listens()?;
    let stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, "ws")?;
    bot.says("twilio stream ")?;
    caller.says(&silence(200))?;
    caller.presses('1')?;
    bot.says("key 1")?;
    let heard = caller.says(&silence(1_000))?;
    anyhow::ensure!(sound::loudness(&heard.samples()) > LOUD, "the tone is not heard");

    // 100 ms of talk; the bot then says back what comes after the first loud frame.
    let talked = Instant::now();
    let mut heard = caller.says(&sound::sweep(8_000, 0.1))?;
    heard.0.extend(caller.says(&silence(1_500))?.0);
    bot.says("interrupted")?;
    let last = last_loud(&heard).map_or(Duration::ZERO, |at| at.duration_since(talked));
    println!("the last loud packet came {} ms after the first word", last.as_millis());
    let samples = heard.samples();
    let tail = &samples[samples.len().saturating_sub(4_000)..];
    anyhow::ensure!(sound::loudness(tail) < QUIET, "still {} after the interruption", sound::loudness(tail));

    caller.presses('#')?;
    bot.says("key #")?;
    caller.is_hung_up_on(SOON)?;
    bot.says("ended")?;
    let calls = stack.calls_when_over().await?;
    let ending = calls.first().and_then(|call| call.ending.clone()).unwrap_or_default();
    anyhow::ensure!(calls.len() == 1 && ending.party == "agent", "{calls:?}");
    understood_all(&stack)?;
    bot.is_content()
}

/// Was each message of the bot one of the Twilio dialect, its `clear` too?
fn understood_all(stack: &Stack) -> anyhow::Result<()> {
    let page = stack.engine_metrics().unwrap_or_default();
    let counts: Vec<&str> =
        page.lines().filter(|line| line.starts_with("tandem_engine_agent_malformed_total{")).collect();
    anyhow::ensure!(!counts.is_empty() && counts.iter().all(|line| line.ends_with(" 0")), "{counts:?}");
    Ok(())
}

fn silence(ms: usize) -> Vec<i16> {
    vec![0; ms * 8]
}

/// When the last packet came that is not silence.
fn last_loud(heard: &Heard) -> Option<Instant> {
    let loud = heard.0.iter().rev().find(|packet| {
        let samples: Vec<i16> =
            packet.payload.iter().map(|code| tandem_audio::g711::linear_from_ulaw(*code)).collect();
        sound::loudness(&samples) > LOUD
    });
    loud.map(|packet| packet.at)
}
