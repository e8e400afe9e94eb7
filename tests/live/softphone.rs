//! A softphone of another family.

use std::time::Duration;

use tandem_tests::baresip::Phone;
use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::linphone::Linphone;
use tandem_tests::stack::{Stack, free_port};
use tandem_tests::{baresip, sound};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn baresip_hears_itself_in_the_echo() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let said = sound::sweep(8_000, 4.0);
    let call = baresip::call(&format!("sip:echo:demo-key@{}", stack.sip()), &said)?;
    anyhow::ensure!(call.output.contains("Call established"), "{}\n{}", call.output, stack.everything_said());
    // One second of what was said, looked for in what was heard: the recordings begin at slightly different moments,
    // and a softphone without a sound card is not exact to the sample over a whole call.
    let second = &call.said[8_000..16_000];
    let (r, delay) = sound::resemblance(second, &call.heard, call.heard.len().saturating_sub(8_000));
    anyhow::ensure!(
        r > 0.9,
        "resemblance {r:.3} at {delay} of {} samples\n{}",
        call.heard.len(),
        call.output
    );
    println!("echo resembles what was said: r = {r:.3}, {:.0} ms later", (delay as f64 - 8_000.0) / 8.0);
    Ok(())
}

/// Codecs of which another family's encoder and decoder are at the other end.
#[test]
fn baresip_hears_itself_in_g722_and_opus() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    for codec in [baresip::G722, baresip::OPUS] {
        let said = sound::sweep(codec.sound.0, 4.0);
        let call = baresip::call_in(codec, &format!("sip:echo:demo-key@{}", stack.sip()), &said)?;
        anyhow::ensure!(
            call.output.contains("Call established"),
            "{}\n{}",
            call.output,
            stack.everything_said()
        );
        let second = &call.said[8_000..16_000];
        let (r, _) = sound::resemblance(second, &call.heard, call.heard.len().saturating_sub(8_000));
        anyhow::ensure!(r > 0.9, "{}: resemblance {r:.3}\n{}", codec.name, call.output);
    }
    Ok(())
}

/// Hold, resume and keys, as somebody does them who has the phone in the hand.
#[tokio::test(flavor = "multi_thread")]
async fn baresip_holds_resumes_presses_a_key_and_hangs_up() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let stack = Stack::start()?;
    let mut phone = Phone::start("<sip:caller@127.0.0.1>;regint=0", "", &sound::sweep(8_000, 60.0))?;
    phone.command(&format!("dial sip:pcm:demo-key@{}", stack.sip()))?;
    phone.event("CALL_ESTABLISHED", 1)?;
    bot.event("start", 1, SOON).await?;
    phone.command("hold")?;
    bot.event("hold", 1, SOON).await?;
    phone.command("resume")?;
    bot.event("resume", 1, SOON).await?;
    phone.command("sndcode 5")?;
    let key = bot.event("dtmf", 1, SOON).await?;
    anyhow::ensure!(key["digit"] == "5", "{key}");
    phone.command("hangup")?;
    bot.event("stop", 1, SOON).await?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    Ok(())
}

/// What somebody does who has a linphone: register (with SHA-256), call, hold, resume, press a key, hang up.
#[tokio::test(flavor = "multi_thread")]
async fn linphone_registers_calls_holds_resumes_and_presses_a_key() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let tables = "[[phone]]\nuser = \"alice\"\ntenant = \"demo\"\npassword = \"correct-horse-battery\"\nassistant = \"pcm\"\n";
    let stack = Stack::start_configured(tables, &[("TANDEM_SIP_DIGEST", "sha-256")])?;
    let mut phone = Linphone::start(free_port()?)?;
    let sip = stack.sip();
    phone.command(&format!("register sip:alice@{sip} sip:{sip} correct-horse-battery"))?;
    phone
        .is_registered()
        .map_err(|error| anyhow::anyhow!("{error}\n{}\n{}", phone.messages(), stack.everything_said()))?;
    phone.command(&format!("call sip:pcm@{sip}"))?;
    phone.waits_for("Media streams established")?;
    bot.event("start", 1, SOON).await?;
    phone.command("pause")?;
    bot.event("hold", 1, SOON).await?;
    phone.waits_for("paused")?;
    phone.command("resume")?;
    bot.event("resume", 1, SOON).await?;
    phone.command("5")?;
    let key = bot.event("dtmf", 1, SOON).await?;
    anyhow::ensure!(key["digit"] == "5", "{key}");
    phone.command("terminate")?;
    bot.event("stop", 1, SOON).await?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    let log = phone.log();
    anyhow::ensure!(log.contains("algorithm=SHA-256"), "its digest was another");
    Ok(())
}
