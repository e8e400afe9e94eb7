//! Kamailio between Tandem and those who call it.

use std::time::Duration;

use tandem_tests::kamailio::Plan;
use tandem_tests::sipp::Sipp;
use tandem_tests::stack::Stack;
use tandem_tests::{baresip, sound};

/// Requests in a dialog follow the route that Kamailio recorded, in both directions.
#[tokio::test(flavor = "multi_thread")]
async fn calls_through_a_proxy_that_records_its_route_go_as_without_it() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    for (transport, kamailio) in
        [("udp", Plan::to(stack.sip()).start()?), ("tcp", Plan::to(stack.sip()).by("tcp").start()?)]
    {
        for scenario in
            ["options_in_dialog", "hold_sendonly", "delayed_offer", "codec_swap", "reinvite_refused"]
        {
            for sipp in [
                Sipp::scenario(&format!("{scenario}.xml")),
                Sipp::scenario(&format!("{scenario}.xml")).over_tcp(),
            ] {
                sipp.succeeds(kamailio.sip).map_err(|error| {
                    anyhow::anyhow!(
                        "{scenario} by {transport}: {error}\n{}\n{}",
                        kamailio.said(),
                        stack.everything_said()
                    )
                })?;
            }
        }
    }
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 20 && calls.iter().all(|call| call.state == "ended"), "{calls:?}");
    Ok(())
}

#[test]
fn caller_behind_a_proxy_that_never_acknowledges_gets_the_bye_by_the_recorded_route() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let kamailio = Plan::to(stack.sip()).start()?;
    Sipp::scenario("ack_lost.xml").succeeds(kamailio.sip)
}

#[test]
fn baresip_hears_itself_through_a_proxy() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let kamailio = Plan::to(stack.sip()).start()?;
    let said = sound::sweep(8_000, 4.0);
    let call = baresip::call(&format!("sip:echo:demo-key@{}", kamailio.sip), &said)?;
    anyhow::ensure!(call.output.contains("Call established"), "{}\n{}", call.output, kamailio.said());
    let second = &call.said[8_000..16_000];
    let (r, _) = sound::resemblance(second, &call.heard, call.heard.len().saturating_sub(8_000));
    anyhow::ensure!(r > 0.9, "resemblance {r:.3}\n{}", call.output);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_calls_at_once_through_a_proxy_succeed() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let kamailio = Plan::to(stack.sip()).start()?;
    let sipp = Sipp::scenario("echo_call.xml").calls(50, 50).talk(Duration::from_secs(2));
    sipp.succeeds(kamailio.sip)?;
    anyhow::ensure!(stack.calls_when_over().await?.len() == 50);
    Ok(())
}
