//! Protected calls: baresip with libre's SRTP, another implementation than ours, over TLS and against what is not allowed.

use std::time::Duration;

use tandem_tests::baresip::Phone;
use tandem_tests::bot::{Bot, Dialect};
use tandem_tests::certificates::Authority;
use tandem_tests::sound;
use tandem_tests::stack::Stack;

const SOON: Duration = Duration::from_secs(10);

/// Both ways are heard: a key goes through SRTP to the agent, and the reports say that nothing was lost either way.
#[tokio::test(flavor = "multi_thread")]
async fn baresip_that_demands_srtp_talks_over_tls() -> anyhow::Result<()> {
    let bot = Bot::listen(Dialect::Pcm, false).await?;
    let authority = Authority::new("Authority of the test")?;
    let mut stack = Stack::prepare(&["--demo", "--no-call", "--no-voice"], &[])?
        .secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let settings = format!("sip_cafile {}\nmodule srtp.so\n", authority.certificate.display());
    let account = "<sip:caller@127.0.0.1;transport=tls>;regint=0;mediaenc=srtp-mand";
    let mut phone = Phone::start(account, &settings, &sound::sweep(8_000, 60.0))?;
    phone.command(&format!("dial sip:pcm:demo-key@127.0.0.1:{};transport=tls", stack.ports().sip_tls))?;
    phone.event("CALL_ESTABLISHED", 1)?;
    bot.event("start", 1, SOON).await?;
    phone.command("sndcode 5")?;
    let key = bot.event("dtmf", 1, SOON).await?;
    anyhow::ensure!(key["digit"] == "5", "{key}");
    // A hold and its end are two re-INVITEs with the same keys.
    phone.command("hold")?;
    bot.event("hold", 1, SOON).await?;
    phone.command("resume")?;
    bot.event("resume", 1, SOON).await?;
    tokio::time::sleep(Duration::from_secs(7)).await; // reports of both sides
    phone.command("hangup")?;
    let calls = stack.calls_when_over().await?;
    let media = calls[0].media.clone().unwrap_or_default();
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended" && media.encrypted, "{calls:?}");
    anyhow::ensure!(media.rtp_received > 300 && media.rtp_lost == 0 && media.remote_lost == 0, "{media:?}");
    anyhow::ensure!(media.mos.is_some_and(|mos| mos > 4.0) && media.round_trip_ms.is_some(), "{media:?}");
    Ok(())
}

#[test]
fn baresip_hears_itself_through_srtp() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let mut stack = Stack::prepare(&["--demo", "--no-call", "--no-voice"], &[])?
        .secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let settings = format!("sip_cafile {}\nmodule srtp.so\n", authority.certificate.display());
    let said = sound::sweep(8_000, 4.0);
    let account = "<sip:caller@127.0.0.1;transport=tls>;regint=0;mediaenc=srtp-mand";
    let uri = format!("sip:echo:demo-key@127.0.0.1:{};transport=tls", stack.ports().sip_tls);
    let call = tandem_tests::baresip::call_with(account, &settings, &uri, &said)?;
    let second = call.said.get(8_000..16_000).ok_or_else(|| anyhow::anyhow!("{}", call.output))?;
    let (r, _) = sound::resemblance(second, &call.heard, call.heard.len().saturating_sub(8_000));
    anyhow::ensure!(r > 0.9, "resemblance {r:.3}\n{}\n{}", call.output, stack.everything_said());
    Ok(())
}

/// Keys in signalling that anybody reads protect nobody: such a call is refused, until a trunk says otherwise.
#[tokio::test(flavor = "multi_thread")]
async fn srtp_that_is_demanded_over_udp_is_refused() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let account = "<sip:caller@127.0.0.1>;regint=0;mediaenc=srtp-mand";
    let mut phone = Phone::start(account, "module srtp.so\n", &sound::sweep(8_000, 10.0))?;
    phone.command(&format!("dial sip:echo:demo-key@{}", stack.sip()))?;
    let closed = phone.event("CALL_CLOSED", 1)?;
    anyhow::ensure!(closed["param"].as_str().is_some_and(|why| why.contains("488")), "{closed}");
    Ok(())
}
