//! What happens to a call between its answer and its end, with sipp as the phone.

use std::time::Duration;

use tandem_tests::bot::{self, Bot, Dialect};
use tandem_tests::lossy::LossyLine;
use tandem_tests::media::Media;
use tandem_tests::sipp::Sipp;
use tandem_tests::stack::Stack;

const SOON: Duration = Duration::from_secs(10);
/// Between the steps of a scenario: long enough for audio to flow, or to be missed.
const STEP: Duration = Duration::from_millis(1_500);
/// Packets that are under way when a hold is answered may still come so long after.
const ON_THE_WAY: Duration = Duration::from_millis(300);
/// Silence on hold is listened for in such slices: three packets each.
const HELD_SLICE: Duration = Duration::from_millis(60);
/// So many of them at most, which is within the hold of a scenario.
const HELD_SLICES: usize = 10;

/// RTP comes before the hold and after it, none while it lasts, and the agent is told of both.
async fn holds(scenario: &str) -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    let mut media = Media::open()?;
    let sipp = Sipp::scenario(scenario).key("to", "pcm:demo-key").key("rtp_port", media.port()).talk(STEP);
    let running = sipp.calls_meanwhile(stack.sip())?;
    media.wait_for_packet(SOON).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    running.logs("held")?;
    let hold = bot.event("hold", 1, SOON).await?;
    media.listen(ON_THE_WAY)?;
    // Slice by slice, as long as the hold lasts: a machine that is busy may let us sleep into the resumed call, and what is
    // heard in that slice says nothing.
    let mut silent = 0;
    for _ in 0..HELD_SLICES {
        let heard = media.listen(HELD_SLICE)?;
        if !bot.events("resume").is_empty() {
            break;
        }
        anyhow::ensure!(heard.0.is_empty(), "{} packets on hold ({hold})", heard.0.len());
        silent += 1;
    }
    anyhow::ensure!(silent > 0, "the hold was over before it could be listened to");
    running.logs("resumed")?;
    media.wait_for_packet(SOON).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    running.succeeds(1)?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_with_sendonly_stops_rtp_and_tells_the_agent() -> anyhow::Result<()> {
    holds("hold_sendonly.xml").await
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_with_inactive_stops_rtp_and_tells_the_agent() -> anyhow::Result<()> {
    holds("hold_inactive.xml").await
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_in_the_way_of_rfc_2543_stops_rtp_and_tells_the_agent() -> anyhow::Result<()> {
    holds("hold_zero.xml").await
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_with_update_stops_rtp_and_tells_the_agent() -> anyhow::Result<()> {
    holds("hold_update.xml").await
}

#[test]
fn offers_may_come_late_change_and_be_absent() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    for scenario in
        ["delayed_offer.xml", "delayed_offer_again.xml", "update_bare.xml", "session_timer_caller.xml"]
    {
        for sipp in [Sipp::scenario(scenario), Sipp::scenario(scenario).over_tcp()] {
            sipp.succeeds(stack.sip())
                .map_err(|error| anyhow::anyhow!("{scenario}: {error}\n{}", stack.everything_said()))?;
        }
    }
    Ok(())
}

#[test]
fn codec_changes_in_the_middle_of_a_call_and_the_stream_goes_on() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let mut media = Media::open()?;
    let sipp = Sipp::scenario("codec_swap.xml")
        .key("to", "tone:demo-key")
        .key("rtp_port", media.port())
        .talk(Duration::from_millis(600));
    let running = sipp.calls_meanwhile(stack.sip())?;
    media.wait_for_packet(SOON)?;
    let heard = media.listen_until(SOON, |heard| {
        let types: Vec<u8> = heard.0.iter().map(|packet| packet.payload_type).collect();
        types.iter().rposition(|kind| *kind == 8).is_some_and(|at| types[at..].contains(&0))
    })?;
    running.succeeds(1)?;
    let types: Vec<u8> = heard.0.iter().map(|packet| packet.payload_type).collect();
    anyhow::ensure!(types.contains(&8) && types.last() == Some(&0), "{types:?}");
    heard.is_one_even_stream()
}

#[test]
fn audio_follows_the_caller_to_another_port_without_a_gap() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let (mut before, mut after) = (Media::open()?, Media::open()?);
    let sipp = Sipp::scenario("address_change.xml")
        .key("to", "tone:demo-key")
        .key("rtp_port", before.port())
        .key("rtp_port_2", after.port())
        .talk(Duration::from_millis(600));
    let running = sipp.calls_meanwhile(stack.sip())?;
    let mut heard = before.listen_until(SOON, |heard| heard.0.len() > 5)?;
    let first = heard.0.first().map(|packet| packet.sequence).unwrap_or_default();
    running.logs("moved")?;
    heard.0.extend(after.listen_until(SOON, |heard| heard.0.len() > 15)?.0);
    heard.0.extend(before.listen(Duration::from_millis(20))?.0);
    running.succeeds(1)?;
    // What arrived at either port, in the order of the sender: nothing is missing in between.
    heard.0.sort_by_key(|packet| packet.sequence.wrapping_sub(first));
    heard.is_one_even_stream()
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_who_gives_up_gets_487_and_the_call_is_told_as_cancelled() -> anyhow::Result<()> {
    let _rings = bot::silent()?;
    let stack = Stack::start()?;
    for sipp in [Sipp::scenario("cancel.xml"), Sipp::scenario("cancel.xml").over_tcp()] {
        sipp.key("to", "pcm:demo-key").succeeds(stack.sip())?;
    }
    let calls = stack.calls_when_over().await?;
    let reasons: Vec<_> = calls.iter().filter_map(|call| Some(call.ending.clone()?.party)).collect();
    anyhow::ensure!(reasons == ["caller", "caller"], "{calls:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_succeed_where_three_of_ten_messages_are_lost() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let line = LossyLine::to(stack.sip(), 30, 3)?;
    Sipp::scenario("lossy.xml").calls(20, 20).succeeds(line.address())?;
    let (lost, carried) = line.counts();
    anyhow::ensure!(lost > 40 && carried > 100, "{lost} lost, {carried} carried");
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 20, "{} calls", calls.len());
    anyhow::ensure!(calls.iter().all(|call| call.state == "ended"), "{calls:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn caller_who_never_acknowledges_is_hung_up_on() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    Sipp::scenario("ack_lost.xml").succeeds(stack.sip())?;
    let calls = stack.calls_when_over().await?;
    let word = calls.first().and_then(|call| call.ending.clone()).unwrap_or_default();
    anyhow::ensure!(word.party == "caller" && word.sip_status == 408, "{word:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_info_reach_the_agent() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    Sipp::scenario("info_dtmf.xml").key("to", "pcm:demo-key").succeeds(stack.sip())?;
    bot.event("stop", 1, SOON).await?;
    let keys: Vec<_> = bot.events("dtmf").iter().map(|event| event["digit"].clone()).collect();
    anyhow::ensure!(keys == ["4", "#", "2"], "{keys:?}");
    Ok(())
}

/// The agent comes late, so that it rings.
#[tokio::test(flavor = "multi_thread")]
async fn caller_who_requires_100rel_gets_its_ringing_reliably() -> anyhow::Result<()> {
    let _bot = Bot::listen_late(Dialect::Pcm, Duration::from_secs(2)).await?;
    let stack = Stack::start()?;
    for scenario in ["prack_required.xml", "prack_delayed_offer.xml"] {
        for sipp in [Sipp::scenario(scenario), Sipp::scenario(scenario).over_tcp()] {
            sipp.key("to", "pcm:demo-key")
                .succeeds(stack.sip())
                .map_err(|error| anyhow::anyhow!("{scenario}: {error}\n{}", stack.everything_said()))?;
        }
    }
    Ok(())
}
