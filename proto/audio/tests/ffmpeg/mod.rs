//! ffmpeg as a filter, and its samples.

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs ffmpeg as a filter from standard input to standard output.
pub(crate) fn ffmpeg(arguments: &[&str], input: Vec<u8>) -> Vec<u8> {
    let mut child = Command::new("ffmpeg")
        .args(["-hide_banner", "-loglevel", "error"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ffmpeg is needed: run scripts/setup.sh test");
    let mut stdin = child.stdin.take().unwrap();
    #[allow(clippy::disallowed_methods)] // Both ends of a pipe must be served at once.
    let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

pub(crate) fn octets(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

pub(crate) fn samples(octets: &[u8]) -> Vec<i16> {
    octets.as_chunks::<2>().0.iter().map(|&pair| i16::from_le_bytes(pair)).collect()
}
