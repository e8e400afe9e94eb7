//! Many calls from sipp, one after the other and all at once. Not one may fail.

use std::time::Duration;

use tandem_api::v1::Call;
use tandem_tests::sipp::Sipp;
use tandem_tests::sound;
use tandem_tests::stack::Stack;

/// Runs sipp and wants `calls` good ones, each of which the API then tells as ended by its caller.
async fn all_succeed(stack: &Stack, sipp: &Sipp, calls: u32) -> anyhow::Result<Vec<Call>> {
    let report = sipp.run(stack.sip())?;
    anyhow::ensure!(
        (report.successful, report.failed) == (calls, 0),
        "{} of {calls} calls went well, {} failed\n{}\n{}",
        report.successful,
        report.failed,
        report.output,
        stack.everything_said()
    );
    let told = stack.calls_when_over().await?;
    anyhow::ensure!(told.len() as u32 == calls, "the API tells {} calls of {calls}", told.len());
    for call in &told {
        let ending = call.ending.clone().unwrap_or_default();
        anyhow::ensure!(call.state == "ended" && ending.party == "caller", "{call:?}");
    }
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_consecutive_calls_succeed() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let sipp = Sipp::scenario("echo_call.xml").calls(200, 1).talk(Duration::from_millis(50));
    all_succeed(&stack, &sipp, 200).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_over_tcp_succeed() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let sipp = Sipp::scenario("echo_call.xml").calls(20, 5).over_tcp();
    all_succeed(&stack, &sipp, 20).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hundred_calls_at_once_succeed_without_media() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let sipp = Sipp::scenario("echo_call.xml").calls(100, 100).talk(Duration::from_secs(4));
    let report = sipp.run(stack.sip())?;
    anyhow::ensure!((report.successful, report.failed) == (100, 0), "{}", report.output);
    anyhow::ensure!(report.peak == 100, "only {} calls were alive at one time", report.peak);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hundred_calls_at_once_succeed_with_media_and_lose_nothing() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let sipp = Sipp::scenario("echo_call_media.xml")
        .calls(100, 100)
        .talk(Duration::from_secs(5))
        .says(sound::ulaw(&sound::sweep(8_000, 4.0)));
    let calls = all_succeed(&stack, &sipp, 100).await?;
    for call in calls {
        let media = call.media.clone().unwrap_or_default();
        // Five seconds are 250 packets; a loaded machine starts and ends a stream late, but it loses none.
        anyhow::ensure!(media.rtp_received > 150 && media.rtp_lost == 0, "{call:?}");
        anyhow::ensure!(media.rtp_sent > 200, "{call:?}");
    }
    Ok(())
}
