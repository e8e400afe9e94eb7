//! SIP over TLS, with Kamailio's TLS module and baresip at the other end. The packaged sipp has no TLS: Kamailio lends it its own.

use tandem_tests::baresip::Phone;
use tandem_tests::certificates::{Authority, Identity};
use tandem_tests::kamailio::Plan;
use tandem_tests::sipp::Sipp;
use tandem_tests::sound;
use tandem_tests::stack::Stack;

/// Kamailio's tls.cfg: it trusts only this authority, and shows this certificate.
fn kamailio_tls(trusts: &Authority, shows: &Identity) -> String {
    let (ca, certificate, key) =
        (trusts.certificate.display(), shows.certificate.display(), shows.key.display());
    let side = |name: &str, verify: &str| {
        format!(
            "[{name}:default]\nmethod = TLSv1.2+\nverify_certificate = {verify}\nrequire_certificate = {verify}\n\
             certificate = {certificate}\nprivate_key = {key}\nca_list = {ca}\n\n"
        )
    };
    side("server", "no") + &side("client", "yes")
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_come_over_tls_from_a_proxy_that_verifies_our_certificate() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let mut stack = Stack::prepare(&["--demo", "--no-call", "--no-voice"], &[])?
        .secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let tls = std::net::SocketAddr::from(([127, 0, 0, 1], stack.ports().sip_tls));
    let carrier = authority.signs("sbc.carrier.test")?;
    let kamailio = Plan::to(tls).by("tls").tls(kamailio_tls(&authority, &carrier)).start()?;
    for scenario in ["options_in_dialog.xml", "hold_sendonly.xml", "delayed_offer.xml", "codec_swap.xml"] {
        Sipp::scenario(scenario).succeeds(kamailio.sip).map_err(|error| {
            anyhow::anyhow!("{scenario}: {error}\n{}\n{}", kamailio.said(), stack.everything_said())
        })?;
    }
    Sipp::scenario("echo_call.xml").calls(20, 20).succeeds(kamailio.sip)?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 24 && calls.iter().all(|call| call.state == "ended"), "{calls:?}");
    Ok(())
}

/// Our certificate is shown, and not another: who trusts another authority does not talk to us.
#[tokio::test(flavor = "multi_thread")]
async fn proxy_that_trusts_another_authority_sends_nothing() -> anyhow::Result<()> {
    let (authority, other) = (Authority::new("Authority of the test")?, Authority::new("Another authority")?);
    let mut stack = Stack::prepare(&["--demo", "--no-call", "--no-voice"], &[])?
        .secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let tls = std::net::SocketAddr::from(([127, 0, 0, 1], stack.ports().sip_tls));
    let kamailio =
        Plan::to(tls).by("tls").tls(kamailio_tls(&other, &other.signs("sbc.carrier.test")?)).start()?;
    let report = Sipp::scenario("echo_call.xml").run(kamailio.sip)?;
    anyhow::ensure!((report.successful, report.failed) == (0, 1), "{}", report.output);
    anyhow::ensure!(stack.calls().await?.is_empty(), "{:?}", stack.calls().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn baresip_calls_holds_and_resumes_over_tls() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let mut stack = Stack::prepare(&["--demo", "--no-call", "--no-voice"], &[])?
        .secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let settings = format!("sip_cafile {}\n", authority.certificate.display());
    let said = sound::sweep(8_000, 60.0);
    let mut phone = Phone::start("<sip:caller@127.0.0.1;transport=tls>;regint=0", &settings, &said)?;
    phone.command(&format!("dial sip:echo:demo-key@127.0.0.1:{};transport=tls", stack.ports().sip_tls))?;
    phone.event("CALL_ESTABLISHED", 1)?;
    phone.command("hold")?;
    phone.event("CALL_REMOTE_SDP", 2)?;
    phone.command("resume")?;
    phone.event("CALL_REMOTE_SDP", 3)?;
    phone.command("hangup")?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    Ok(())
}

/// The certificate is the credential: no address, no secret in a URI.
#[tokio::test(flavor = "multi_thread")]
async fn trunk_is_known_by_its_client_certificate_and_a_stranger_with_another_is_not() -> anyhow::Result<()> {
    let authority = Authority::new("Authority of the test")?;
    let tables = format!(
        "[[trunk]]\nname = \"carrier\"\ntenant = \"demo\"\n[trunk.tls]\nca = \"{}\"\n\
         [trunk.inbound]\ntls_client = [\"sbc.carrier.test\"]\n\
         [[trunk.inbound.route]]\ndid = \"+4930123456\"\nassistant = \"echo\"\n",
        authority.certificate.display()
    );
    let mut stack = Stack::prepare_configured(&tables, &[])?.secured(&authority.signs("tandem.test")?);
    stack.start_supervisor()?;
    let tls = std::net::SocketAddr::from(([127, 0, 0, 1], stack.ports().sip_tls));
    let call = Sipp::scenario("trunk_call.xml").key("to", "+4930123456");
    {
        let stranger = authority.signs("stranger.test")?;
        let kamailio = Plan::to(tls).by("tls").tls(kamailio_tls(&authority, &stranger)).start()?;
        let report = call.run(kamailio.sip)?;
        anyhow::ensure!((report.successful, report.failed) == (0, 1), "{}", report.output);
    }
    let carrier = authority.signs("sbc.carrier.test")?;
    let kamailio = Plan::to(tls).by("tls").tls(kamailio_tls(&authority, &carrier)).start()?;
    call.succeeds(kamailio.sip)
        .map_err(|error| anyhow::anyhow!("{error}\n{}\n{}", kamailio.said(), stack.everything_said()))?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    Ok(())
}
