//! What sipp is told about requests that no ordinary call has: RFC 3261 §8.2 and its neighbours.

use std::net::SocketAddr;

use anyhow::Context;
use tandem_tests::bot;
use tandem_tests::sipp::Sipp;
use tandem_tests::stack::Stack;

/// Runs these scenarios one after the other, by UDP and by TCP, and names those that did not go as written.
fn all_go_as_written(stack: &Stack, scenarios: &[&str]) -> anyhow::Result<()> {
    let mut wrong = Vec::new();
    for (scenario, tcp) in scenarios.iter().flat_map(|name| [(name, false), (name, true)]) {
        let mut sipp = Sipp::scenario(&format!("{scenario}.xml"));
        if tcp {
            sipp = sipp.over_tcp();
        }
        if let Err(error) = goes_as_written(&sipp, stack.sip()) {
            let by = if tcp { "TCP" } else { "UDP" };
            wrong.push(format!("-- {scenario} over {by} --\n{error:#}"));
        }
    }
    anyhow::ensure!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), stack.everything_said());
    Ok(())
}

fn goes_as_written(sipp: &Sipp, to: SocketAddr) -> anyhow::Result<()> {
    sipp.succeeds(to).context("sipp")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_outside_of_a_call_are_answered_as_the_rfcs_tell() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    // A source that has called rightly is not taken for a scanner.
    Sipp::scenario("echo_call.xml").succeeds(stack.sip())?;
    all_go_as_written(
        &stack,
        &[
            "options",
            "method_unknown",
            "require_unknown",
            "scheme_unknown",
            "body_unknown",
            "encoding_unknown",
            "subscribe",
            "publish",
            "replaces_nothing",
            "session_timer_short",
            "max_forwards_zero",
            "stray_bye",
            "stray_update",
        ],
    )?;
    let conversations = stack.calls().await?;
    let answered = conversations.iter().filter(|call| call.state != "failed").count();
    anyhow::ensure!(answered == 1, "a refused request became a call: {conversations:?}");
    Ok(())
}

#[test]
fn requests_in_a_call_are_answered_as_the_rfcs_tell_and_the_call_goes_on() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    all_go_as_written(
        &stack,
        &[
            "options_in_dialog",
            "method_unknown_in_dialog",
            "cseq_backwards",
            "info_unknown",
            "message",
            "reinvite_refused",
            "cancel_too_late",
            "refer_refused",
        ],
    )
}

#[test]
fn one_request_that_came_by_two_ways_is_one_call() -> anyhow::Result<()> {
    let _rings = bot::silent()?;
    let stack = Stack::start()?;
    Sipp::scenario("merged.xml").key("to", "pcm:demo-key").succeeds(stack.sip())?;
    Sipp::scenario("merged.xml").key("to", "pcm:demo-key").over_tcp().succeeds(stack.sip())
}
