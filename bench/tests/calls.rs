//! `calls` and `setup` end to end, against a small user agent server that echoes.
#![allow(clippy::unwrap_used)] // the server beside the tests is test code too
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;
use tandem_sdp::{Direction, LocalMedia, SessionDescription, negotiate};
use tandem_sip::{Body, CallHandle, Endpoint, EndpointConfig, Event, Flow, Reply};

/// What the server does with a call.
#[derive(Clone, Copy)]
enum Manner {
    Echo,
    /// Echoes, but swallows one packet in so many.
    LoseOneIn(u64),
    Refuse(u16),
    /// Answers with an inactive media line.
    Null,
}

/// A user agent server.
struct Uas {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    /// Calls not yet ended.
    live: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Uas {
    fn start(manner: Manner) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
        let address = socket.local_addr().unwrap();
        let (stop, live) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (stop, live) = (stop.clone(), live.clone());
            move || serve(&socket, manner, &stop, &live)
        });
        Self { address, stop, live, thread: Some(thread) }
    }

    fn target(&self) -> String {
        format!("sip:echo:demo-key@{}", self.address)
    }
}

impl Drop for Uas {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(socket: &UdpSocket, manner: Manner, stop: &AtomicBool, live: &AtomicUsize) {
    let local = socket.local_addr().unwrap();
    let mut endpoint = Endpoint::new(EndpointConfig::default());
    let mut echoes: HashMap<CallHandle, Echo> = HashMap::new();
    let mut datagram = [0; 65_535];
    while !stop.load(Ordering::Relaxed) {
        if let Ok((len, remote)) = socket.recv_from(&mut datagram) {
            endpoint.handle_input(&datagram[..len], Flow::udp(local, remote), Instant::now());
        }
        if endpoint.poll_timeout().is_some_and(|deadline| deadline <= Instant::now()) {
            endpoint.handle_timeout(Instant::now());
        }
        while let Some(event) = endpoint.poll_event() {
            match event {
                Event::IncomingInvite { call, request, .. } => match manner {
                    Manner::Refuse(status) => {
                        endpoint.reject(call, Reply::new(status), Instant::now()).unwrap()
                    }
                    Manner::Echo | Manner::LoseOneIn(_) | Manner::Null => {
                        let echo = Echo::start(manner);
                        let offer = SessionDescription::parse(request.sdp().unwrap()).unwrap();
                        let mut media = LocalMedia::g711(Ipv4Addr::LOCALHOST.into(), echo.port, 1);
                        if matches!(manner, Manner::Null) {
                            media.direction = Direction::Inactive;
                        }
                        let (answer, _) = negotiate::answer(&offer, &media).unwrap();
                        echoes.insert(call, echo);
                        endpoint.answer(call, Body::sdp(answer.to_string()), Instant::now()).unwrap();
                    }
                },
                Event::Ended { call, .. } => drop(echoes.remove(&call)),
                _ => {}
            }
        }
        while let Some(transmit) = endpoint.poll_transmit() {
            socket.send_to(&transmit.bytes, transmit.flow.remote).unwrap();
        }
        live.store(echoes.len(), Ordering::Relaxed);
    }
}

/// Sends every datagram back, from a thread of its own.
struct Echo {
    port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(manner: Manner) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let port = socket.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut datagram = [0; 2_048];
            let mut count = 0;
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, caller)) = socket.recv_from(&mut datagram) else { continue };
                count += 1;
                if matches!(manner, Manner::LoseOneIn(n) if count % n == 0) {
                    continue;
                }
                socket.send_to(&datagram[..len], caller).unwrap();
            }
        });
        Self { port, stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// Runs tandem-bench with `--json` and gives what it wrote.
fn bench(args: &[&str]) -> (Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_tandem-bench"))
        .args(args)
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let report =
        std::fs::read_to_string(&json).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    (output, report)
}

/// A machine busy with a build may limit the generator; what is counted must be right all the same.
fn assert_exit_code_tells(output: &Output, report: &Value) {
    assert_eq!(output.status.code(), Some(if limited(report) { 3 } else { 0 }), "{output:?}");
}

fn limited(report: &Value) -> bool {
    report["generator"]["limited"].as_bool().unwrap()
}

fn assert_number(report: &Value, keys: &[&str]) {
    for key in keys {
        let value = key.split('.').fold(report, |value, name| &value[name]);
        assert!(value.is_number(), "{key} is {value}");
    }
}

#[test]
fn five_calls_are_established_lose_nothing_and_end_with_bye() {
    if !tandem_bench::host::io_uring_works() {
        eprintln!("io_uring is not available here: not tested");
        return;
    }
    for codec in ["pcmu", "pcma"] {
        let uas = Uas::start(Manner::Echo);
        let (output, report) = bench(&[
            "calls",
            "--target",
            &uas.target(),
            "--concurrent",
            "5",
            "--cps",
            "50",
            "--duration",
            "2",
            "--warm-up",
            "0.3",
            "--codec",
            codec,
            "--report-anyway",
        ]);
        assert_exit_code_tells(&output, &report);
        assert_number(
            &report,
            &[
                "calls.attempted",
                "calls.established",
                "calls.failed",
                "setup_ms.p50",
                "setup_ms.p95",
                "setup_ms.p99",
                "rtp.sent",
                "rtp.received",
                "rtp.lost",
                "rtp.duplicated",
                "rtp.reordered",
                "schedule_ms.p50",
                "schedule_ms.p99",
                "schedule_ms.p999",
                "schedule_ms.max",
                "schedule_ms.timer_p999",
                "generator.cpu_percent",
                "generator.late_ms_p999",
                "round_trip_ms.p50",
                "round_trip_ms.p99",
                "mos.mean",
                "mos.min",
            ],
        );
        assert_eq!(report["calls"]["established"], 5, "{report}");
        assert_eq!(report["calls"]["failed"], 0, "{report}");
        assert_eq!(report["calls"]["failures"], serde_json::json!({}));
        for key in ["lost", "duplicated", "reordered", "foreign", "silent_streams"] {
            assert_eq!(report["rtp"][key], 0, "{key}");
        }
        assert!(report["rtp"]["received"].as_u64().unwrap() >= 5 * 100);
        let mos = report["mos"]["mean"].as_f64().unwrap();
        assert!(
            (1.0..=4.41).contains(&mos)
                && (mos > 4.0 || limited(&report) || report["schedule_ms"]["p99"].as_f64().unwrap() > 20.0),
            "{mos}"
        );
        assert_eq!(uas.live.load(Ordering::Relaxed), 0, "calls were left on the line");
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            !said.contains("demo-key") && !report.to_string().contains("demo-key"),
            "the key was told: {said}"
        );
    }
}

#[test]
fn loss_at_the_target_is_seen_in_packets_audio_and_quality() {
    if !tandem_bench::host::io_uring_works() {
        eprintln!("io_uring is not available here: not tested");
        return;
    }
    let uas = Uas::start(Manner::LoseOneIn(20));
    let (output, report) = bench(&[
        "calls",
        "--target",
        &uas.target(),
        "--concurrent",
        "2",
        "--duration",
        "2",
        "--warm-up",
        "0.2",
        "--report-anyway",
    ]);
    assert_exit_code_tells(&output, &report);
    let number = |section: &str, key: &str| report[section][key].as_f64().unwrap();
    let share = number("rtp", "lost") / (number("rtp", "lost") + number("rtp", "received"));
    assert!((0.04..0.06).contains(&share), "{report}");
    assert!((6.0..=12.0).contains(&number("audio", "lost")), "{report}");
    assert!(number("mos", "mean") < 3.0, "{report}");
}

#[test]
fn refused_calls_are_counted_by_cause_and_nothing_is_reported() {
    if !tandem_bench::host::io_uring_works() {
        eprintln!("io_uring is not available here: not tested");
        return;
    }
    let uas = Uas::start(Manner::Refuse(486));
    let (output, report) =
        bench(&["calls", "--target", &uas.target(), "--concurrent", "3", "--cps", "50", "--duration", "1"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(report, Value::Null);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no call was established") && said.contains("3 × 486"), "{said}");
}

#[test]
fn target_where_nobody_listens_is_named_and_not_waited_for() {
    if !tandem_bench::host::io_uring_works() {
        eprintln!("io_uring is not available here: not tested");
        return;
    }
    let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let began = Instant::now();
    let target = format!("sip:echo@{closed}");
    let (output, _) = bench(&["calls", "--target", &target, "--concurrent", "2", "--duration", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nobody listens"), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[test]
fn interrupted_run_hangs_up_every_call() {
    if !tandem_bench::host::io_uring_works() {
        eprintln!("io_uring is not available here: not tested");
        return;
    }
    let uas = Uas::start(Manner::Echo);
    let mut bench = Command::new(env!("CARGO_BIN_EXE_tandem-bench"))
        .args(["calls", "--target", &uas.target(), "--concurrent", "3", "--duration", "60", "--quiet"])
        .spawn()
        .unwrap();
    let patience = Instant::now() + Duration::from_secs(10);
    while uas.live.load(Ordering::Relaxed) < 3 && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(uas.live.load(Ordering::Relaxed), 3);
    assert!(Command::new("kill").args(["-INT", &bench.id().to_string()]).status().unwrap().success());
    assert_eq!(bench.wait().unwrap().code(), Some(130));
    assert_eq!(uas.live.load(Ordering::Relaxed), 0, "calls were left on the line");
}

#[test]
fn setup_counts_each_call_once_and_times_it() {
    let uas = Uas::start(Manner::Echo);
    let (output, report) =
        bench(&["setup", "--target", &uas.target(), "--cps", "50", "--calls", "40", "--report-anyway"]);
    assert_exit_code_tells(&output, &report);
    assert_number(
        &report,
        &["setup.attempted", "setup.failed", "setup.per_second", "setup_ms.p50", "setup_ms.p99"],
    );
    assert_eq!(report["setup"]["attempted"], 40);
    assert_eq!(report["setup"]["failed"], 0, "{report}");
    assert_eq!(report["setup_ms"]["count"], 40);
    assert_eq!(uas.live.load(Ordering::Relaxed), 0);
}

#[test]
fn setup_without_media_wants_an_inactive_answer() {
    let uas = Uas::start(Manner::Echo);
    let (output, _) =
        bench(&["setup", "--no-media", "--target", &uas.target(), "--cps", "50", "--calls", "5"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("answered with media"), "{output:?}");
    assert_eq!(uas.live.load(Ordering::Relaxed), 0, "they are hung up all the same");
    let uas = Uas::start(Manner::Null);
    let (output, report) = bench(&[
        "setup",
        "--no-media",
        "--target",
        &uas.target(),
        "--cps",
        "50",
        "--calls",
        "20",
        "--target-pid",
        &std::process::id().to_string(),
        "--report-anyway",
    ]);
    assert_exit_code_tells(&output, &report);
    assert_eq!(
        (&report["setup"]["failed"], &report["setup"]["media"]),
        (&Value::from(0), &Value::from(false))
    );
    assert_number(
        &report,
        &["target.cpu_us_per_call", "target.resident_bytes_before", "target.resident_bytes_after"],
    );
    assert_eq!(report["target"]["resident_bytes"].as_array().unwrap().len(), 10, "{report}");
}

#[test]
fn idle_calls_are_held_read_four_times_and_hung_up() {
    let uas = Uas::start(Manner::Null);
    let (output, report) = bench(&[
        "idle",
        "--no-media",
        "--target",
        &uas.target(),
        "--concurrent",
        "40",
        "--cps",
        "200",
        "--settle",
        "0.2",
        "--target-pid",
        &std::process::id().to_string(),
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!((&report["idle"]["held"], &report["idle"]["failed"]), (&Value::from(40), &Value::from(0)));
    let counts: Vec<_> =
        report["idle"]["readings"].as_array().unwrap().iter().map(|r| r["calls"].clone()).collect();
    assert_eq!(counts, [10, 20, 30, 40]);
    assert_eq!(uas.live.load(Ordering::Relaxed), 0, "calls were left on the line");
}
