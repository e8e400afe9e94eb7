//! Registration: phones with us, we with a trunk, and both through Kamailio.

use std::net::IpAddr;
use std::time::Duration;

use tandem_tests::baresip::Phone;
use tandem_tests::dns::NameServer;
use tandem_tests::kamailio::Plan;
use tandem_tests::sipp::Sipp;
use tandem_tests::stack::{Stack, free_port};
use tandem_tests::{eventually, namespace, pjsua, sound};

const SOON: Duration = Duration::from_secs(20);
const PASSWORD: &str = "correct horse battery";

/// Its realm is peers.test, its user tandem.
fn trunk(sip_uri: &str) -> String {
    format!(
        "[[trunk]]\nname = \"pbx\"\ntenant = \"demo\"\nsip_uri = \"{sip_uri}\"\nsip_password = \"{PASSWORD}\"\n\
         [trunk.inbound]\nallow = [\"127.0.0.1\"]\n[[trunk.inbound.route]]\ndid = \"*\"\nassistant = \"echo\"\n\
         [trunk.health]\nenabled = false\n[trunk.registration]\nexpires_s = 60\n"
    )
}

fn phone() -> String {
    format!(
        "[[phone]]\nuser = \"alice\"\ntenant = \"demo\"\npassword = \"{PASSWORD}\"\nassistant = \"tone\"\n"
    )
}

fn is_registered(stack: &Stack) -> anyhow::Result<()> {
    let registered = eventually("the trunk is registered", SOON, || {
        let log = stack.log("control");
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines
            .filter(|line| line["message"] == "registration")
            .any(|line| line["state"] == "registered")
            .then_some(())
    });
    registered.map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))
}

#[test]
fn phone_registers_with_its_digest_and_goes_away_again() -> anyhow::Result<()> {
    let stack = Stack::start_configured(&phone(), &[])?;
    let phone = |scenario: &str| {
        Sipp::scenario(scenario).key("user", "alice").flag("-au", "alice").flag("-ap", PASSWORD)
    };
    for sipp in [phone("register.xml"), phone("register.xml").over_tcp(), phone("register_short.xml")] {
        sipp.succeeds(stack.sip())
            .map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    }
    anyhow::ensure!(!stack.log("control").contains(PASSWORD), "the log holds the password");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn baresip_registers_and_calls_the_assistant_of_its_account() -> anyhow::Result<()> {
    let stack = Stack::start_configured(&phone(), &[])?;
    let account = format!("<sip:alice@{}>;auth_pass=\"{PASSWORD}\";regint=60", stack.sip());
    let mut phone = Phone::start(&account, "", &sound::sweep(8_000, 30.0))?;
    phone.is_registered().map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    phone.command(&format!("dial sip:tone@{}", stack.sip()))?;
    phone.event("CALL_ESTABLISHED", 1)?;
    phone.command("hangup")?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].assistant_id == "tone", "{calls:?}");
    Ok(())
}

/// SHA-256 with a stack that is not ours, for REGISTER and for INVITE, alone and beside MD5.
#[tokio::test(flavor = "multi_thread")]
async fn pjsip_registers_and_calls_with_sha_256() -> anyhow::Result<()> {
    for algorithms in ["sha-256", "sha-256,md5"] {
        let stack = Stack::start_configured(&phone(), &[("TANDEM_SIP_DIGEST", algorithms)])?;
        let sip = stack.sip();
        tokio::task::spawn_blocking(move || pjsua::registers_and_calls(sip, "alice", PASSWORD, "tone"))
            .await?
            .map_err(|error| anyhow::anyhow!("{algorithms}: {error}\n{}", stack.everything_said()))?;
        let calls = stack.calls_when_over().await?;
        anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
        // And who has another password gets nothing.
        let refused = tokio::task::spawn_blocking(move || {
            pjsua::registers_and_calls(sip, "alice", "wrong horse battery", "tone")
        });
        let Err(error) = refused.await? else { anyhow::bail!("a wrong password was taken") };
        let said = format!("{error:#}");
        let is_refused = said.contains("REGISTER was answered with 401") || said.contains("with 403");
        anyhow::ensure!(is_refused, "not for the password: {said}");
    }
    Ok(())
}

/// The digest is computed here by our code and checked there by Kamailio's, and the other way round for MD5.
#[tokio::test(flavor = "multi_thread")]
async fn we_register_at_kamailio_with_md5_and_sha_256_and_are_called_through_it() -> anyhow::Result<()> {
    for algorithm in ["MD5", "SHA-256"] {
        // Calls to who has not registered go to a port where nobody is: so a call that arrives has found our contact.
        let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let kamailio = Plan::to(nobody).registration_password(PASSWORD, algorithm).start()?;
        let stack = Stack::start_configured(&trunk(&format!("sip:tandem@{}", kamailio.sip)), &[])?;
        is_registered(&stack)
            .map_err(|error| anyhow::anyhow!("{algorithm}: {error}\n{}", kamailio.said()))?;
        Sipp::scenario("trunk_call.xml").key("to", "tandem").succeeds(kamailio.sip).map_err(|error| {
            anyhow::anyhow!("{algorithm}: {error}\n{}\n{}", kamailio.said(), stack.everything_said())
        })?;
        let calls = stack.calls_when_over().await?;
        anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    }
    Ok(())
}

/// NAPTR says UDP, SRV names two hosts, and the first of them does not answer (RFC 3263 §4). The system's own name server
/// says so at port 53, and every host has port 5060, as it is with a carrier: in a network of the test's own.
#[test]
fn trunk_is_found_by_naptr_and_srv_and_its_second_host_is_tried() -> anyhow::Result<()> {
    let [server, down, up] = [53, 11, 12].map(|host| IpAddr::from([127, 0, 0, host]));
    let test = "sip_register::trunk_is_found_by_naptr_and_srv_and_its_second_host_is_tried";
    if !namespace::entered(test, &[server, down, up], server)? {
        return Ok(());
    }
    let registrar = Sipp::scenario("called_registrar.xml").at(up).listens_at(5_060)?;
    let records = [
        "naptr-record=carrier.test,20,10,s,SIP+D2T,,_sip._tcp.carrier.test".to_owned(),
        "naptr-record=carrier.test,10,10,s,SIP+D2U,,_sip._udp.carrier.test".to_owned(),
        "srv-host=_sip._udp.carrier.test,down.carrier.test,5060,1,1".to_owned(),
        "srv-host=_sip._udp.carrier.test,up.carrier.test,5060,2,1".to_owned(),
        format!("host-record=down.carrier.test,{down}"),
        format!("host-record=up.carrier.test,{up}"),
    ];
    let _names = NameServer::start_at((server, 53).into(), &records)?;
    let stack = Stack::start_configured(&trunk("sip:tandem@carrier.test"), &[])?;
    is_registered(&stack)?;
    registrar.succeeds(1)
}

/// Two phones of one user, which both answer at once: one has the call, the other is cancelled or hung up on, and at the end
/// neither has one.
#[tokio::test(flavor = "multi_thread")]
async fn both_phones_of_a_user_ring_and_one_has_the_call() -> anyhow::Result<()> {
    let stack = Stack::start_configured(&phone(), &[])?;
    let account = format!("<sip:alice@{}>;auth_pass=\"{PASSWORD}\";regint=60;answermode=auto", stack.sip());
    let sound = sound::sweep(8_000, 60.0);
    let phones = [Phone::start(&account, "", &sound)?, Phone::start(&account, "", &sound)?];
    for phone in &phones {
        phone.is_registered().map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    }
    let call_id = stack.places("tone", "phone:alice").await?;
    for phone in &phones {
        phone.answers_by_itself()?;
    }
    let answered = || phones.iter().any(|phone| phone.event("CALL_ESTABLISHED", 1).is_ok());
    anyhow::ensure!(answered(), "{}\n{}", phones[0].said(), phones[1].said());
    stack.hangs_up(&call_id).await?;
    for phone in &phones {
        phone.event("CALL_CLOSED", 1)?;
    }
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 1 && calls[0].state == "ended", "{calls:?}");
    Ok(())
}
