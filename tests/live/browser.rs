//! A browser calls: Chromium with JsSIP in a page, its own ICE and DTLS, its own codecs.

use std::time::Duration;

use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::browser::Browser;
use tandem_tests::certificates::Authority;
use tandem_tests::stack::Stack;

const PASSWORD: &str = "correct horse battery";
const SOON: Duration = Duration::from_secs(10);

fn phone(assistant: &str) -> String {
    format!(
        "[[phone]]\nuser = \"browser\"\ntenant = \"demo\"\npassword = \"{PASSWORD}\"\nassistant = \"{assistant}\"\n"
    )
}

/// Registers, calls the echo and waits for its own tone, in Opus and in G.711.
#[tokio::test(flavor = "multi_thread")]
async fn browser_hears_its_own_tone_from_the_echo_in_opus_and_in_g711() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let mut stack = Stack::prepare_configured(&phone("echo"), &[])?.secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let url = format!("ws://127.0.0.1:{}", stack.ports().sip_ws);
    let sip = stack.sip().to_string();
    for codec in ["opus", "PCMU"] {
        let steps = ["register", PASSWORD, "call", "tone", "bye"];
        let browser =
            Browser::starts(&url, &format!("sip:echo@{sip}"), codec, &steps, &[("SIP_DOMAIN", &sip)])?;
        let said = browser
            .succeeds()
            .map_err(|error| anyhow::anyhow!("{codec}: {error}\n{}", stack.everything_said()))?;
        anyhow::ensure!(said.contains("heard 1008 Hz") || said.contains("heard 984 Hz"), "{said}");
    }
    let calls = stack.calls_when_over().await?;
    let is_fine = |call: &tandem_api::v1::Call| call.media.as_ref().is_some_and(|media| media.encrypted);
    anyhow::ensure!(calls.len() == 2 && calls.iter().all(is_fine), "{calls:?}");
    Ok(())
}

/// It is called, too: what we offer a phone that says so is what a browser speaks.
#[tokio::test(flavor = "multi_thread")]
async fn browser_is_called_and_hears_its_own_tone() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let phone = phone("echo") + "srtp = \"dtls\"\n";
    let mut stack = Stack::prepare_configured(&phone, &[])?.secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let url = format!("wss://127.0.0.1:{}", stack.ports().sip_wss);
    let sip = stack.sip().to_string();
    let steps = ["register", PASSWORD, "called", "tone", "bye"];
    let browser = Browser::starts(&url, "", "opus", &steps, &[("SIP_DOMAIN", &sip)])?;
    browser.has_done("register", 1)?;
    stack.places("echo", "phone:browser").await?;
    browser.succeeds().map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    let calls = stack.calls_when_over().await?;
    let is_fine = |call: &tandem_api::v1::Call| call.media.as_ref().is_some_and(|media| media.encrypted);
    anyhow::ensure!(calls.len() == 1 && calls.iter().all(is_fine), "{calls:?}");
    Ok(())
}

/// Over TLS; its agent is held and taken back, the network changes under it, and keys come through SRTP.
#[tokio::test(flavor = "multi_thread")]
async fn browser_holds_resumes_restarts_ice_and_presses_keys() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let bot = Bot::listen(Dialect::Pcm, true).await?;
    let mut stack = Stack::prepare(&["--demo", "--no-call", "--no-voice"], &[])?
        .secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let url = format!("wss://127.0.0.1:{}", stack.ports().sip_wss);
    let target = format!("sip:pcm:demo-key@{}", stack.sip());
    let steps = [
        "call", "tone", "hold", "silence", "resume", "tone", "restart", "tone", "keys", "5", "wait", "500",
        "bye",
    ];
    let browser = Browser::starts(&url, &target, "opus", &steps, &[])?;
    browser.succeeds().map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    bot.event("hold", 1, SOON).await?;
    bot.event("resume", 1, SOON).await?;
    let key = bot.event("dtmf", 1, SOON).await?;
    anyhow::ensure!(key["digit"] == "5", "{key}");
    Ok(())
}
