//! SIP over WebSocket, with JsSIP as the phone of a web page.

use std::time::Duration;

use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::certificates::Authority;
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

/// Without a proxy between them, in the clear and over TLS.
#[tokio::test(flavor = "multi_thread")]
async fn web_phone_calls_holds_resumes_and_hangs_up_over_our_own_websocket() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let mut stack = Stack::prepare(&["--demo", "--no-call", "--no-voice"], &[])?
        .secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let ca = authority.certificate.to_string_lossy().into_owned();
    let ports = stack.ports();
    for (n, url) in [format!("ws://127.0.0.1:{}", ports.sip_ws), format!("wss://127.0.0.1:{}", ports.sip_wss)]
        .iter()
        .enumerate()
    {
        let mut media = Media::open()?;
        let phone = JsSip::starts(
            url,
            &format!("sip:pcm:demo-key@{}", stack.sip()),
            media.port(),
            &["call", "wait", "500", "hold", "wait", "500", "resume", "wait", "500", "bye"],
            &[("SIP_DOMAIN", "127.0.0.1"), ("CA_FILE", &ca)],
        )?;
        media.wait_for_packet(SOON)?;
        bot.event("hold", n + 1, SOON).await?;
        bot.event("resume", n + 1, SOON).await?;
        phone.succeeds().map_err(|error| anyhow::anyhow!("{url}: {error}\n{}", stack.everything_said()))?;
    }
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 2 && calls.iter().all(|call| call.state == "ended"), "{calls:?}");
    Ok(())
}

/// The agent hangs up: the BYE goes by the connection that the phone has opened, since its Contact names nothing.
#[tokio::test(flavor = "multi_thread")]
async fn web_phone_is_hung_up_on_by_its_own_connection() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let mut stack = Stack::prepare(&["--demo", "--no-call", "--no-voice"], &[])?
        .secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let media = Media::open()?;
    let phone = JsSip::starts(
        &format!("ws://127.0.0.1:{}", stack.ports().sip_ws),
        &format!("sip:pcm:demo-key@{}", stack.sip()),
        media.port(),
        &["call", "ended"],
        &[("SIP_DOMAIN", "127.0.0.1")],
    )?;
    phone.has_done("call", 1)?;
    bot.event("start", 1, SOON).await?;
    bot.send_event(serde_json::json!({ "event": "hangup" }))?;
    phone.succeeds().map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))
}
