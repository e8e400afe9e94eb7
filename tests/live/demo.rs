//! What `make run ARGS=--once` does: the recorded caller books a table with the offline voice agent.

use std::time::Duration;

use tandem_tests::stack::Stack;

/// Loading the models and a conversation of six turns, with a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(180);

#[test]
fn recorded_caller_books_a_table_and_the_report_says_so() -> anyhow::Result<()> {
    let mut stack = Stack::prepare(&["--demo", "--once"], &[])?;
    let status = stack.run_to_end(WITHIN)?;
    let output = stack.output();
    anyhow::ensure!(status.success(), "{status}\n{}", stack.everything_said());
    for part in ["agent   ", "caller  ", "setup  ", "response latency  median", " 0 lost", "ended  "] {
        anyhow::ensure!(output.contains(part), "the report has no {part:?}:\n{output}");
    }
    anyhow::ensure!(stack.children().is_empty(), "it left {:?} behind", stack.children());
    println!("{output}");
    Ok(())
}
