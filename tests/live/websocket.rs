//! SIP over WebSocket, with JsSIP as the phone of a web page.

use std::time::Duration;

use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::jssip::JsSip;
use tandem_tests::kamailio::Plan;
use tandem_tests::media::Media;
use tandem_tests::stack::Stack;

const SOON: Duration = Duration::from_secs(10);

/// Kamailio is the one that speaks WebSocket here: what Tandem sees are a Contact that names nothing and a Route that does.
#[tokio::test(flavor = "multi_thread")]
async fn web_phone_behind_a_proxy_calls_holds_resumes_and_hangs_up() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    let kamailio = Plan::to(stack.sip()).websocket().start()?;
    let mut media = Media::open()?;
    let phone = JsSip::starts(
        &format!("ws://{}", kamailio.ws),
        &format!("sip:pcm:demo-key@{}", kamailio.sip),
        media.port(),
        &["call", "wait", "500", "hold", "wait", "500", "resume", "wait", "500", "bye"],
        &[("SIP_DOMAIN", "127.0.0.1")],
    )?;
    media.wait_for_packet(SOON)?;
    bot.event("hold", 1, SOON).await?;
    bot.event("resume", 1, SOON).await?;
    media.wait_for_packet(SOON)?;
    phone.succeeds().map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    Ok(())
}
