//! `tandem-engine --explain`: what an operator asks before anything else.
#![allow(clippy::unwrap_used)]

use std::process::Command;

fn explain(driver: &str) -> String {
    let engine = env!("CARGO_BIN_EXE_tandem-engine");
    let folder = tempfile::tempdir().unwrap();
    let asked =
        Command::new(engine).args(["--explain", "--driver", driver]).current_dir(folder.path()).output();
    let asked = asked.unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    String::from_utf8(asked.stdout).unwrap()
}

#[test]
fn every_feature_is_used_or_has_a_reason() {
    let text = explain("auto");
    for head in ["driver:", "kernel:", "limits:", "cores:"] {
        assert!(text.lines().any(|line| line.starts_with(head)), "{head} in {text}");
    }
    let features: Vec<&str> = text.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(features.len() >= 6, "{text}");
    for line in features {
        let rest = line
            .strip_prefix("  used   ")
            .or_else(|| line.strip_prefix("  unused "))
            .unwrap_or_else(|| panic!("{line:?}"));
        let (name, note) = rest.split_once(": ").unwrap_or_else(|| panic!("{line:?}"));
        assert!(!name.is_empty() && note.len() > 10, "{line:?}");
    }
    assert!(text.contains("  unused SQPOLL: "), "{text}");
}

#[test]
fn with_epoll_nothing_of_io_uring_is_said_to_be_used() {
    let text = explain("epoll");
    assert!(text.starts_with("driver: epoll"), "{text}");
    let used: Vec<&str> = text.lines().filter(|line| line.starts_with("  used")).collect();
    assert_eq!(used.len(), 1, "{text}");
    assert!(used[0].contains("epoll"), "{text}");
    assert!(text.contains("  unused io_uring: "), "{text}");
}
