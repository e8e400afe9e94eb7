//! What a verb prints for people and for pipes.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// What a shell reports of a program that SIGPIPE ended: 128 + 13.
const PIPE_CLOSED: i32 = 141;

/// Prints a line. A reader that has seen enough (`tandem call list | head`) ends the program quietly, as other
/// programs end.
pub(super) fn line(text: Arguments<'_>) {
    let Err(error) = writeln!(std::io::stdout().lock(), "{text}") else { return };
    if error.kind() != ErrorKind::BrokenPipe {
        eprintln!("tandem: standard output: {error}");
    }
    std::process::exit(if error.kind() == ErrorKind::BrokenPipe { PIPE_CLOSED } else { 1 });
}

/// `println!` for the verbs: see [`fn@line`].
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::print::line(format_args!($($text)*)) };
}
pub(super) use say;
