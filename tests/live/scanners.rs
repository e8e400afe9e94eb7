//! Scanners: what they get, what they cost, and that those who call rightly do not notice.

use tandem_tests::scanner;
use tandem_tests::sipp::Sipp;
use tandem_tests::stack::{Stack, resident_bytes};

const INVITES: u32 = 10_000;
/// Of them, so many come before memory is read for the first time: tables and pools have their size then.
const WARM_UP: u32 = 1_000;
/// What memory may grow by over the rest, of which the guard lets in some hundreds and drops the others unseen. What one that
/// is let in may cost is measured where no guard stands before the endpoint: proto/sip/tests/memory.rs.
const GROWTH_MAX: u64 = 16 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_scanner_invites_make_no_call_and_do_not_disturb_good_ones() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let sip = stack.sip();
    tokio::task::spawn_blocking(move || scanner::floods(sip, WARM_UP)).await??;
    let before = resident_bytes(stack.pid("control")?)?;
    let good = Sipp::scenario("echo_call.xml").calls(40, 4).per_second(10).calls_meanwhile(sip)?;
    let answers = tokio::task::spawn_blocking(move || scanner::floods(sip, INVITES - WARM_UP)).await??;
    good.succeeds(40).map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
    let after = resident_bytes(stack.pid("control")?)?;
    println!("{answers} answers; control plane {} KiB before, {} KiB after", before / 1_024, after / 1_024);
    anyhow::ensure!(after < before + GROWTH_MAX, "grew from {before} to {after} octets");
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 40, "{} calls of 40 good ones", calls.len());
    anyhow::ensure!(calls.iter().all(|call| call.state == "ended"), "{calls:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn sipvicious_finds_no_extension_and_makes_no_call() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let sip = stack.sip();
    // The scanner shares its address with somebody who calls rightly, which keeps that address from being silenced.
    Sipp::scenario("echo_call.xml").succeeds(sip)?;
    for (program, arguments) in [
        ("svmap", &["-m", "INVITE"][..]),
        ("svmap", &["-m", "OPTIONS"][..]),
        ("svwar", &["-m", "INVITE", "-e", "100-300"][..]),
        ("svwar", &["-m", "REGISTER", "-e", "100-300"][..]),
    ] {
        let said =
            tokio::task::spawn_blocking(move || scanner::sipvicious(program, sip, arguments)).await??;
        println!("{program} {arguments:?}:\n{said}");
        anyhow::ensure!(!said.contains("reqauth") && !said.contains("noauth"), "it found something:\n{said}");
    }
    Sipp::scenario("echo_call.xml").calls(2, 1).succeeds(sip)?;
    let calls = stack.calls_when_over().await?;
    anyhow::ensure!(calls.len() == 3, "a scanner has made calls: {calls:?}");
    Ok(())
}
