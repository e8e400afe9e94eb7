//! A softphone of another family.

use tandem_tests::stack::Stack;
use tandem_tests::{baresip, sound};

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
