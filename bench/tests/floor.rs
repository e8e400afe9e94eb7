//! `floor` end to end: the echo's own process, the generator, the report.
use std::process::Command;

use serde_json::Value;

#[test]
fn floor_of_ten_calls_loses_nothing_and_has_a_price() {
    if !tandem_bench::host::io_uring_works() {
        eprintln!("io_uring is not available here: not tested");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("floor.json");
    // A machine busy with a build may make the generator late; what is counted must be right all the same.
    let output = Command::new(env!("CARGO_BIN_EXE_tandem-bench"))
        .args([
            "floor",
            "--concurrent",
            "10",
            "--duration",
            "1",
            "--warm-up",
            "0.2",
            "--report-anyway",
            "--json",
        ])
        .arg(&json)
        .output()
        .unwrap();
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let limited = report["generator"]["limited"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if limited { 3 } else { 0 }), "{output:?}");
    assert!(report["floor"]["cpu_ms_per_call_s"].as_f64().unwrap() > 0.0);
    assert!(report["rtp"]["received"].as_u64().unwrap() >= 10 * 50);
    for key in ["lost", "duplicated", "reordered", "foreign", "ssrc_changes", "silent_streams"] {
        assert_eq!(report["rtp"][key], 0, "{key}");
    }
    if !limited {
        assert_eq!(report["audio"]["lost"], 0);
    }
    assert!(report["round_trip_ms"]["p50"].as_f64().unwrap() > 0.0);
    assert_eq!(report["round_trip_ms"]["by"], "frame");
    assert!(String::from_utf8_lossy(&output.stdout).contains("ms CPU per call-second"));
}

#[test]
fn interrupted_floor_reports_nothing_and_leaves_no_echo() {
    if !tandem_bench::host::io_uring_works() {
        eprintln!("io_uring is not available here: not tested");
        return;
    }
    let mut bench = Command::new(env!("CARGO_BIN_EXE_tandem-bench"))
        .args(["floor", "--concurrent", "2", "--duration", "60", "--quiet"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Until its echo is there: the child is ours to find by its parent.
    let children = format!("/proc/{0}/task/{0}/children", bench.id());
    let mut echo = None;
    for _ in 0..500 {
        std::thread::sleep(std::time::Duration::from_millis(10));
        echo = std::fs::read_to_string(&children).ok().and_then(|text| text.trim().parse::<u32>().ok());
        if echo.is_some() {
            break;
        }
    }
    let echo = echo.expect("the echo has started");
    let interrupted = Command::new("kill").args(["-INT", &bench.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(bench.wait().unwrap().code(), Some(130));
    assert!(!std::path::Path::new(&format!("/proc/{echo}")).exists(), "echo {echo} is still there");
}
