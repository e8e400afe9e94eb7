//! Trunks and phones that call: by their address, by their digest, or not at all.

use tandem_tests::sipp::Sipp;
use tandem_tests::stack::Stack;

/// A carrier on this machine, whose numbers go to the echo, and a phone that may call the tone.
const TABLES: &str = r#"
[[trunk]]
name = "carrier"
tenant = "demo"
[trunk.inbound]
allow = ["127.0.0.1"]
country_code = "49"
[[trunk.inbound.route]]
did = "+4930123456"
assistant = "echo"
"#;

/// Nobody is let in by address: a phone must prove its password.
const PHONES: &str = r#"
[[phone]]
user = "alice"
tenant = "demo"
password = "correct horse battery"
assistant = "tone"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn call_from_a_trunk_goes_where_its_number_goes_without_a_secret_in_its_uri() -> anyhow::Result<()> {
    let stack = Stack::start_configured(TABLES, &[])?;
    // The same number, as carriers write it.
    for to in ["+4930123456", "030123456", "004930123456", "4930123456"] {
        Sipp::scenario("trunk_call.xml")
            .key("to", to)
            .succeeds(stack.sip())
            .map_err(|error| anyhow::anyhow!("to {to}: {error}\n{}", stack.everything_said()))?;
    }
    Sipp::scenario("trunk_call.xml").key("to", "+4930123456").over_tcp().succeeds(stack.sip())?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 5, "{calls:?}");
    for call in &calls {
        anyhow::ensure!(call.state == "ended" && call.assistant_id == "echo", "{call:?}");
    }
    Sipp::scenario("trunk_unknown_number.xml").key("to", "+4930999").succeeds(stack.sip())
}

#[tokio::test(flavor = "multi_thread")]
async fn phone_calls_with_its_digest_and_nobody_without_it() -> anyhow::Result<()> {
    let stack = Stack::start_configured(PHONES, &[])?;
    let phone = |scenario: &str, password: &str| {
        Sipp::scenario(scenario)
            .key("to", "tone")
            .key("user", "alice")
            .flag("-au", "alice")
            .flag("-ap", password)
    };
    for sipp in [
        phone("digest_call.xml", "correct horse battery"),
        phone("digest_call.xml", "correct horse battery").over_tcp(),
    ] {
        sipp.succeeds(stack.sip())
            .map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    }
    phone("digest_wrong.xml", "wrong horse battery").succeeds(stack.sip())?;
    let calls = stack.calls_when_over().await?;
    let answered = calls.iter().filter(|call| call.state == "ended").count();
    anyhow::ensure!(answered == 2, "{calls:?}");
    anyhow::ensure!(!stack.log("control").contains("battery"), "the log holds a password");
    Ok(())
}
