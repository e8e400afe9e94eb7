//! `bridge` end to end, against a small relay that speaks rtpengine's ng protocol.
#![allow(clippy::unwrap_used)] // the relay beside the tests is test code too
use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tandem_audio::g711;

/// What is measured is this process with its children: a child of another test must not end in the middle.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Transcodes between two callers, and forgets one packet in so many.
struct Relay {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    open: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// Sockets of a bridge, towards the first caller and the second, and where those are.
struct Bridge {
    sockets: [UdpSocket; 2],
    callers: [Option<SocketAddr>; 2],
    packets: u64,
}

impl Relay {
    fn start(lose_one_in: u64) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let address = socket.local_addr().unwrap();
        let (stop, open) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let thread = std::thread::spawn({
            let (stop, open) = (stop.clone(), open.clone());
            move || {
                let mut bridges: HashMap<String, Bridge> = HashMap::new();
                let mut datagram = [0; 4_096];
                while !stop.load(Ordering::Relaxed) {
                    if let Ok((len, from)) = socket.recv_from(&mut datagram) {
                        let request = String::from_utf8_lossy(&datagram[..len]).into_owned();
                        let (cookie, request) = request.split_once(' ').unwrap();
                        let answer = answer(request, &mut bridges);
                        socket.send_to(format!("{cookie} {answer}").as_bytes(), from).unwrap();
                        open.store(bridges.len(), Ordering::Relaxed);
                    }
                    for bridge in bridges.values_mut() {
                        bridge.relay(lose_one_in);
                    }
                }
            }
        });
        Self { address, stop, open, thread: Some(thread) }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// The text behind this key of a bencoded dictionary.
fn text<'a>(request: &'a str, key: &str) -> Option<&'a str> {
    let rest = request.split_once(&format!("{}:{key}", key.len()))?.1;
    let (len, rest) = rest.split_once(':')?;
    rest.get(..len.parse().ok()?)
}

fn answer(request: &str, bridges: &mut HashMap<String, Bridge>) -> String {
    let call = text(request, "call-id").unwrap_or_default().to_owned();
    let side = match text(request, "command") {
        Some("ping") => return "d6:result4:ponge".into(),
        Some("delete") => {
            bridges.remove(&call);
            return "d6:result2:oke".into();
        }
        Some("offer") => 0,
        Some("answer") => 1,
        other => panic!("{other:?}"),
    };
    let bridge = bridges.entry(call).or_insert_with(|| {
        let sockets = [(); 2].map(|()| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        sockets.iter().for_each(|socket| socket.set_nonblocking(true).unwrap());
        Bridge { sockets, callers: [None; 2], packets: 0 }
    });
    let given = text(request, "sdp").unwrap();
    let line = given.lines().find(|line| line.starts_with("m=audio")).unwrap();
    let port: u16 = line.split(' ').nth(1).unwrap().parse().unwrap();
    bridge.callers[side] = Some((Ipv4Addr::LOCALHOST, port).into());
    // Whom the description is for: the other one, in his codec.
    let (to, codec) = if side == 0 { (1, "8") } else { (0, "0") };
    let port = bridge.sockets[to].local_addr().unwrap().port();
    let sdp = format!(
        "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio {port} RTP/AVP {codec}\r\n"
    );
    format!("d6:result2:ok3:sdp{}:{sdp}e", sdp.len())
}

impl Bridge {
    fn relay(&mut self, lose_one_in: u64) {
        let mut packet = [0; 2_048];
        for side in 0..2 {
            while let Ok(len) = self.sockets[side].recv(&mut packet) {
                self.packets += 1;
                if self.packets.is_multiple_of(lose_one_in) {
                    continue;
                }
                let law = |code| match side {
                    0 => g711::alaw_from_linear(g711::linear_from_ulaw(code)),
                    _ => g711::ulaw_from_linear(g711::linear_from_alaw(code)),
                };
                packet[1] = packet[1] & 0x80 | if side == 0 { 8 } else { 0 };
                packet[12..len].iter_mut().for_each(|code| *code = law(*code));
                if let Some(to) = self.callers[1 - side] {
                    self.sockets[1 - side].send_to(&packet[..len], to).unwrap();
                }
            }
        }
    }
}

/// Runs it; gives the report, unless this machine has no io_uring.
fn bridge(relay: &Relay, bridges: u32) -> Option<Value> {
    if !tandem_bench::host::io_uring_works() {
        eprintln!("io_uring is not available here: not tested");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bridge.json");
    let output = Command::new(env!("CARGO_BIN_EXE_tandem-bench"))
        .args(["bridge", "--duration", "1", "--warm-up", "0.2", "--report-anyway", "--quiet"])
        .args(["--concurrent", &bridges.to_string(), "--rtpengine", &relay.address.to_string()])
        .args(["--target-pid", &std::process::id().to_string(), "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let Ok(text) = std::fs::read_to_string(&json) else { panic!("no report: {output:?}") };
    let report: Value = serde_json::from_str(&text).unwrap();
    // A machine busy with a build may make the generator late; what is counted must be right all the same.
    let limited = report["generator"]["limited"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if limited { 3 } else { 0 }), "{output:?}");
    Some(report)
}

#[test]
fn each_line_of_a_bridge_hears_the_other_one_in_its_own_codec() {
    let _alone = alone();
    let relay = Relay::start(u64::MAX);
    let Some(report) = bridge(&relay, 5) else { return };
    assert_eq!(report["calls"]["established"], 5);
    assert_eq!(report["calls"]["failed"], 0, "{}", report["calls"]);
    for key in ["lost", "duplicated", "foreign", "ssrc_changes", "silent_streams"] {
        assert_eq!(report["rtp"][key], 0, "{key}");
    }
    assert!(report["audio"]["returned"].as_u64().unwrap() >= 5 * 2 * 40, "{}", report["audio"]);
    assert_eq!(report["audio"]["filled"], 0, "every packet bears a mark");
    assert_eq!(report["round_trip_ms"]["by"], "frame");
    assert!(report["engine"]["cpu_ms_per_call_s"].as_f64().unwrap() > 0.0);
    assert_eq!(relay.open.load(Ordering::Relaxed), 0, "every bridge was closed");
}

#[test]
fn what_a_bridge_loses_is_seen_by_sequence_number() {
    let _alone = alone();
    let relay = Relay::start(10);
    let Some(report) = bridge(&relay, 2) else { return };
    assert!(report["rtp"]["lost"].as_u64().unwrap() > 0, "{}", report["rtp"]);
    assert!(report["audio"]["lost"].as_u64().unwrap() > 0, "{}", report["audio"]);
}

#[test]
fn nobody_at_the_address_is_an_error_that_names_it() {
    let _alone = alone();
    let output = Command::new(env!("CARGO_BIN_EXE_tandem-bench"))
        .args(["bridge", "--quiet", "--engine", "http://127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no engine at http://127.0.0.1:1"), "{said}");
}
