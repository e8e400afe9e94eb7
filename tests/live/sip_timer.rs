//! Session timers in real time (RFC 4028). Their arithmetic is tested in virtual time beside the code.

use tandem_tests::sipp::Sipp;
use tandem_tests::stack::Stack;

/// The shortest interval that RFC 4028 allows, and so the shortest wait for a refresh.
#[test]
fn session_of_ninety_seconds_is_refreshed_in_time() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    Sipp::scenario("session_timer.xml")
        .succeeds(stack.sip())
        .map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))
}

/// `make soak` runs it: too long for every day.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "five minutes: make soak"]
async fn soak_sessions_of_ninety_seconds_last_five_minutes_by_their_refreshes() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    // No media: a call whose caller says nothing for a minute is ended by its media timeout.
    let sipp = Sipp::scenario("session_timer_soak.xml").key("to", "null:demo-key");
    sipp.calls(20, 20).lasts(300).succeeds(stack.sip())?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 20 && calls.iter().all(|call| call.state == "ended"), "{calls:?}");
    Ok(())
}
