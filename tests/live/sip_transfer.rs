//! Transfer as the phones see it: Replaces and REFER.

use anyhow::Context;
use tandem_tests::sipp::Sipp;
use tandem_tests::stack::Stack;

/// What an attended transfer to us ends in (RFC 3891): the new call takes the old one's place, and the old one gets BYE.
#[tokio::test(flavor = "multi_thread")]
async fn call_with_replaces_takes_the_place_of_the_call_that_it_names() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let first = Sipp::scenario("replaced.xml").calls_meanwhile(stack.sip())?;
    let dialog = first.logs("dialog")?;
    let [call_id, ours, theirs] = dialog.split(' ').collect::<Vec<_>>()[..] else {
        anyhow::bail!("the scenario logs {dialog}")
    };
    let theirs = theirs.strip_prefix(";tag=").context("a dialog has a tag")?;
    let replaces = format!("{call_id};to-tag={theirs};from-tag={ours}");
    Sipp::scenario("replaces.xml")
        .key("replaces", replaces)
        .succeeds(stack.sip())
        .map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    first.succeeds(1)?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.iter().all(|call| call.state == "ended"), "{calls:?}");
    Ok(())
}
