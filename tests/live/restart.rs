//! What dies, what goes on, and who starts it again.

use std::time::{Duration, Instant};

use tandem_tests::caller::Caller;
use tandem_tests::media::Heard;
use tandem_tests::stack::{Stack, alive};

/// Callers of a dead engine are told within this; a restart takes less.
const BYE_WITHIN: Duration = Duration::from_secs(10);
const BACK_WITHIN: Duration = Duration::from_secs(15);

/// So many packets come, in no more time than a busy machine needs for them.
fn hears(caller: &mut Caller, packets: usize) -> anyhow::Result<Heard> {
    let within = Duration::from_secs(10);
    let heard = caller.listens_until(within, |heard| heard.0.len() >= packets)?;
    anyhow::ensure!(heard.0.len() >= packets, "{} packets of {packets} in {within:?}", heard.0.len());
    Ok(heard)
}

/// A call to this assistant can be made, and audio flows in it.
fn call_works(stack: &Stack, assistant: &str) -> anyhow::Result<()> {
    let mut caller = Caller::dials(stack, assistant)?;
    hears(&mut caller, 16)?;
    caller.hangs_up()
}

#[test]
fn killed_engine_means_bye_for_its_callers_and_the_next_call_works() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let mut callers = Vec::new();
    for _ in 0..3 {
        callers.push(Caller::dials(&stack, "tone")?);
    }
    for caller in &mut callers {
        hears(caller, 5)?;
    }
    let killed = Instant::now();
    let dead = stack.kill("engine")?;
    for caller in &callers {
        let bye = caller.is_hung_up_on(BYE_WITHIN.saturating_sub(killed.elapsed()));
        let bye = bye.map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
        anyhow::ensure!(bye.header("Reason").is_some(), "the BYE does not say why: {}", bye.text);
    }
    println!("the last caller got a BYE after {:.1} s", killed.elapsed().as_secs_f64());
    stack.wait_for_restart("engine", dead, BACK_WITHIN)?;
    stack.wait_until_ready(BACK_WITHIN)?;
    println!("ready again after {:.1} s", killed.elapsed().as_secs_f64());
    call_works(&stack, "tone")?;
    let output = stack.output();
    anyhow::ensure!(output.contains("engine died (signal 9") && output.contains("restart 1"), "{output}");
    Ok(())
}

#[test]
fn killed_control_plane_leaves_media_flowing_and_comes_back() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, "tone")?;
    hears(&mut caller, 5)?;
    let dead = stack.kill("control")?;
    // Three seconds of it.
    hears(&mut caller, 150)?.is_one_even_stream()?;
    stack.wait_for_restart("control", dead, BACK_WITHIN)?;
    stack.wait_until_ready(BACK_WITHIN)?;
    call_works(&stack, "tone")
}

#[test]
fn clean_shutdown_hangs_up_and_leaves_nothing_behind() -> anyhow::Result<()> {
    let mut stack = Stack::start()?;
    let caller = Caller::dials(&stack, "echo")?;
    let children = stack.children();
    let status = std::thread::scope(|scope| -> anyhow::Result<_> {
        let bye = scope.spawn(|| caller.is_hung_up_on(Duration::from_secs(10)));
        let status = stack.end()?;
        let bye = bye.join().map_err(|_| anyhow::anyhow!("the caller panicked"))?;
        bye.map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))?;
        Ok(status)
    })?;
    anyhow::ensure!(status.success(), "{status}\n{}", stack.everything_said());
    let left: Vec<_> = children.iter().filter(|pid| alive(**pid)).collect();
    anyhow::ensure!(left.is_empty(), "{left:?} are still alive\n{}", stack.everything_said());
    anyhow::ensure!(!stack.output().contains("killed"), "somebody had to be killed:\n{}", stack.output());
    Ok(())
}

#[test]
fn children_outlive_a_killed_supervisor_and_the_next_one_adopts_them() -> anyhow::Result<()> {
    let mut stack = Stack::start()?;
    let mut caller = Caller::dials(&stack, "tone")?;
    let children = stack.children();
    anyhow::ensure!(children.len() == 2, "{children:?}");
    stack.kill_supervisor()?;
    hears(&mut caller, 50)?;
    anyhow::ensure!(stack.children() == children, "a child died with its supervisor");
    stack.start_supervisor()?;
    anyhow::ensure!(stack.children() == children, "not adopted:\n{}", stack.output());
    anyhow::ensure!(stack.output().contains("engine adopted"), "{}", stack.output());
    // The call lives through all of it, and an adopted child is restarted like any other.
    caller.hangs_up()?;
    let dead = stack.kill("engine")?;
    stack.wait_for_restart("engine", dead, BACK_WITHIN)?;
    stack.wait_until_ready(BACK_WITHIN)?;
    call_works(&stack, "tone")?;
    anyhow::ensure!(stack.end()?.success());
    anyhow::ensure!(stack.children().is_empty(), "{:?}", stack.children());
    Ok(())
}

#[test]
fn second_supervisor_of_one_folder_is_refused_and_taken_ports_are_named() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let mut second = Stack::sharing(&stack, &[])?;
    anyhow::ensure!(!second.run_to_end(Duration::from_secs(20))?.success());
    anyhow::ensure!(second.output().contains("another `tandem up` is in charge"), "{}", second.output());
    let elsewhere = tempfile::tempdir()?;
    let folder = elsewhere.path().to_string_lossy().into_owned();
    let mut third = Stack::sharing(&stack, &[("TANDEM_STATE_DIR", &folder)])?;
    anyhow::ensure!(!third.run_to_end(Duration::from_secs(20))?.success());
    let output = third.output();
    anyhow::ensure!(output.contains("set TANDEM_ENGINE_GRPC_LISTEN to another address"), "{output}");
    anyhow::ensure!(stack.children().len() == 2, "the first one goes on");
    Ok(())
}
