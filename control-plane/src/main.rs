//! `tandem`: read the command line, start the logs, do what was asked, say what went wrong.

use std::process::ExitCode;

use clap::Parser;
use control_plane::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tandem: {error}");
            ExitCode::FAILURE
        }
    }
}
