//! `twilio`, `vonage`, `exotel` and `audiosocket` end to end, against a small control plane and a media server that echoes.
#![allow(clippy::unwrap_used)] // the servers beside the tests are test code too
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use tandem_stream::websocket::{FrameReader, Message, Opcode, Role, UpgradeRequest, append_frame};

/// What the media server does with a call.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Echo,
    /// Swallows one message of sound in so many.
    LoseOneIn(u64),
    /// Closes after so many messages of sound.
    CloseAfter(u64),
    /// Sets a mark behind each tenth message.
    Mark,
    /// Answers each webhook with 403.
    Refuse,
}

/// What the servers have seen.
#[derive(Default)]
struct Seen {
    webhooks: Vec<String>,
    upgrades: Vec<String>,
    texts: Vec<Value>,
    uuids: Vec<Vec<u8>>,
}

struct Servers {
    control: SocketAddr,
    media: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

const UUID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

impl Servers {
    /// They end with the process: nothing is left in them.
    fn start(manner: Manner, provider: &'static str) -> Self {
        let control = TcpListener::bind("127.0.0.1:0").unwrap();
        let media = TcpListener::bind("127.0.0.1:0").unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let servers = Self {
            control: control.local_addr().unwrap(),
            media: media.local_addr().unwrap(),
            seen: seen.clone(),
        };
        let place = servers.media;
        thread::spawn({
            let seen = seen.clone();
            move || {
                for stream in control.incoming() {
                    answer(stream.unwrap(), manner, place, &seen);
                }
            }
        });
        thread::spawn(move || {
            for stream in media.incoming() {
                let seen = seen.clone();
                thread::spawn(move || match provider {
                    "audiosocket" => serve_audiosocket(stream.unwrap(), manner, &seen),
                    _ => serve_websocket(stream.unwrap(), manner, &seen),
                });
            }
        });
        servers
    }

    fn url(&self) -> String {
        format!("http://{}", self.control)
    }
}

fn answer(mut stream: TcpStream, manner: Manner, media: SocketAddr, seen: &Mutex<Seen>) {
    let mut request = String::new();
    let mut octets = [0; 4_096];
    loop {
        let len = stream.read(&mut octets).unwrap();
        request += std::str::from_utf8(&octets[..len]).unwrap();
        let Some((head, body)) = request.split_once("\r\n\r\n") else { continue };
        let needed =
            head.lines().find_map(|line| line.strip_prefix("Content-Length: ")?.parse::<usize>().ok());
        if body.len() >= needed.unwrap_or(0) {
            break;
        }
    }
    let provider = request.split('/').nth(3).unwrap().to_owned();
    seen.lock().unwrap().webhooks.push(request);
    if manner == Manner::Refuse {
        stream.write_all(b"HTTP/1.0 403 Forbidden\r\n\r\n").unwrap();
        return;
    }
    let url = format!("ws://{media}/v1/media/{provider}/{UUID}");
    let document = match provider.as_str() {
        "twilio" => format!(
            r#"<Response><Connect><Stream url="{url}"><Parameter name="ctx" value="{UUID}"/></Stream></Connect></Response>"#
        ),
        "vonage" => json!([{"action": "connect", "endpoint": [{"type": "websocket", "uri": url,
            "content-type": "audio/l16;rate=16000", "headers": {"ctx": UUID},
            "authorization": {"type": "custom", "value": "Bearer once"}}]}])
        .to_string(),
        "exotel" => json!({ "url": format!("{url}?sample-rate=8000") }).to_string(),
        "asterisk" => UUID.to_owned(),
        other => panic!("{other}"),
    };
    stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{document}").as_bytes()).unwrap();
}

fn serve_websocket(mut stream: TcpStream, manner: Manner, seen: &Mutex<Seen>) {
    stream.set_nodelay(true).unwrap();
    let (mut head, mut octets, mut out) = (Vec::new(), [0; 4_096], Vec::new());
    let rest = loop {
        let len = stream.read(&mut octets).unwrap();
        head.extend_from_slice(&octets[..len]);
        if let Some((request, len)) = UpgradeRequest::parse(&head).unwrap() {
            request.write_response(&mut out);
            break head.split_off(len);
        }
    };
    seen.lock().unwrap().upgrades.push(String::from_utf8_lossy(&head).into_owned());
    stream.write_all(&out).unwrap();
    let (mut reader, mut sounds, mut piece) = (FrameReader::new(Role::Server), 0, rest);
    loop {
        let mut left = &piece[..];
        out.clear();
        while !left.is_empty() {
            let taken = reader.push(left);
            left = &left[taken..];
            while let Some(message) = reader.poll_message().unwrap() {
                let echo = match message {
                    Message::Binary(sound) => Some((Opcode::Binary, sound.to_vec())),
                    Message::Text(text) => {
                        let text: Value = serde_json::from_str(text).unwrap();
                        let echo = (text["event"] == "media").then(|| {
                            json!({"event": "media", "streamSid": "MZ", "media": {"payload": text["media"]["payload"]}})
                        });
                        seen.lock().unwrap().texts.push(text);
                        echo.map(|echo| (Opcode::Text, echo.to_string().into_bytes()))
                    }
                    Message::Close { .. } => {
                        append_frame(&mut out, Opcode::Close, None, &1_000_u16.to_be_bytes()).unwrap();
                        let _ = stream.write_all(&out);
                        return;
                    }
                    _ => None,
                };
                let Some((opcode, echo)) = echo else { continue };
                sounds += 1;
                match manner {
                    Manner::LoseOneIn(n) if sounds % n == 0 => continue,
                    Manner::CloseAfter(n) if sounds == n => return,
                    _ => append_frame(&mut out, opcode, None, &echo).unwrap(),
                }
                if manner == Manner::Mark && sounds % 10 == 0 {
                    let mark = json!({"event": "mark", "mark": {"name": format!("m{sounds}")}}).to_string();
                    append_frame(&mut out, Opcode::Text, None, mark.as_bytes()).unwrap();
                }
            }
        }
        if stream.write_all(&out).is_err() {
            return;
        }
        piece.resize(4_096, 0);
        match stream.read(&mut piece) {
            Ok(len) if len > 0 => piece.truncate(len),
            _ => return,
        }
    }
}

fn serve_audiosocket(mut stream: TcpStream, manner: Manner, seen: &Mutex<Seen>) {
    stream.set_nodelay(true).unwrap();
    let mut sounds = 0;
    let mut header = [0; 3];
    while stream.read_exact(&mut header).is_ok() {
        let mut payload = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
        stream.read_exact(&mut payload).unwrap();
        if header[0] == 1 {
            seen.lock().unwrap().uuids.push(payload);
            continue;
        }
        sounds += 1;
        if matches!(manner, Manner::CloseAfter(n) if sounds == n) {
            return;
        }
        stream.write_all(&[&header[..], &payload].concat()).unwrap();
    }
}

/// Runs tandem-bench with `--json` and gives what it wrote.
fn bench(args: &[&str]) -> (Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_tandem-bench"))
        .args(args)
        .args(["--report-anyway", "--quiet", "--warm-up", "0.3", "--duration", "2", "--json"])
        .arg(&json)
        .output()
        .unwrap();
    let report =
        std::fs::read_to_string(&json).map_or(Value::Null, |text| serde_json::from_str(&text).unwrap());
    (output, report)
}

fn is_possible() -> bool {
    let works = tandem_bench::host::io_uring_works();
    if !works {
        eprintln!("io_uring is not available here: not tested");
    }
    works
}

#[test]
fn calls_of_every_provider_are_announced_answered_and_lose_nothing() {
    if !is_possible() {
        return;
    }
    for provider in ["twilio", "vonage", "exotel", "audiosocket"] {
        let servers = Servers::start(Manner::Echo, provider);
        let (output, report) = bench(&[
            provider,
            "--url",
            &servers.url(),
            "--audiosocket",
            &servers.media.to_string(),
            "--concurrent",
            "4",
            "--cps",
            "50",
        ]);
        let limited =
            report["generator"]["limited"].as_bool().unwrap_or_else(|| panic!("{provider}: {output:?}"));
        assert_eq!(output.status.code(), Some(if limited { 3 } else { 0 }), "{output:?}");
        for key in [
            "calls.attempted",
            "setup_ms.p50",
            "setup_ms.p95",
            "setup_ms.p99",
            "rtp.sent",
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
        ] {
            let value = key.split('.').fold(&report, |value, name| &value[name]);
            assert!(value.is_number(), "{provider}: {key} is {value}");
        }
        assert_eq!(report["calls"]["established"], 4, "{provider}: {report}");
        assert_eq!(report["calls"]["failures"], json!({}), "{provider}");
        assert_eq!(report["drops"], 0, "{provider}");
        for key in ["lost", "duplicated", "reordered", "foreign", "silent_streams"] {
            assert_eq!(report["rtp"][key], 0, "{provider}: {key}");
        }
        assert!(report["rtp"]["received"].as_u64().unwrap() >= 4 * 100, "{provider}: {report}");
        assert_eq!(report["audio"]["lost"], 0, "{provider}");
        assert_eq!(report["round_trip_ms"]["by"], "frame", "{provider}");
        let seen = servers.seen.lock().unwrap();
        assert_eq!(seen.webhooks.len(), 4);
        let events = |name: &str| seen.texts.iter().filter(|text| text["event"] == name).count();
        match provider {
            "audiosocket" => assert!(seen.uuids.len() == 4 && seen.uuids[0][..4] == [0x6b, 0xa7, 0xb8, 0x10]),
            "vonage" => {
                assert_eq!((events("websocket:connected"), seen.upgrades.len()), (4, 4));
                assert!(seen.upgrades[0].contains("Authorization: Bearer once"));
            }
            _ => assert_eq!((events("connected"), events("start"), events("stop")), (4, 4, 4), "{provider}"),
        }
    }
}

#[test]
fn loss_at_the_target_is_seen_by_the_marks() {
    if !is_possible() {
        return;
    }
    let servers = Servers::start(Manner::LoseOneIn(20), "twilio");
    let (output, report) = bench(&["twilio", "--url", &servers.url(), "--concurrent", "2"]);
    let number =
        |section: &str, key: &str| report[section][key].as_f64().unwrap_or_else(|| panic!("{output:?}"));
    let share = number("rtp", "lost") / (number("rtp", "lost") + number("rtp", "received"));
    assert!((0.04..0.06).contains(&share), "{report}");
    assert!(number("mos", "mean") < 3.5, "{report}");
}

#[test]
fn sockets_that_the_target_closes_are_drops() {
    if !is_possible() {
        return;
    }
    for provider in ["twilio", "audiosocket"] {
        // 4.6 s: inside the window, after the ramp and its patience.
        let servers = Servers::start(Manner::CloseAfter(190), provider);
        let media = servers.media.to_string();
        let args = [provider, "--url", &servers.url(), "--audiosocket", &media, "--concurrent", "3"];
        let (output, report) = bench(&args);
        assert_eq!(report["drops"], 3, "{provider}: {output:?} {report}");
        assert_eq!(report["calls"]["failures"], json!({"closed by the target": 3}), "{provider}");
        assert_eq!(report["calls"]["failed"], 3);
    }
}

#[test]
fn marks_come_back_when_their_sound_has_been_played() {
    if !is_possible() {
        return;
    }
    let servers = Servers::start(Manner::Mark, "twilio");
    let (_, report) = bench(&["twilio", "--url", &servers.url(), "--concurrent", "1"]);
    assert_eq!(report["drops"], 0, "{report}");
    let seen = servers.seen.lock().unwrap();
    let is_event = |text: &&Value, name: &str| text["event"] == name;
    let marks: Vec<&str> = seen
        .texts
        .iter()
        .filter(|text| is_event(text, "mark"))
        .map(|text| text["mark"]["name"].as_str().unwrap())
        .collect();
    let sounds = seen.texts.iter().filter(|text| is_event(text, "media")).count();
    assert!(marks.len() + 2 >= sounds / 10, "{} marks of {sounds} messages", marks.len());
    assert_eq!(marks[..3], ["m10", "m20", "m30"]);
}

#[test]
fn refused_webhooks_are_counted_by_cause_and_nothing_is_reported() {
    if !is_possible() {
        return;
    }
    let servers = Servers::start(Manner::Refuse, "twilio");
    let (output, report) = bench(&["twilio", "--url", &servers.url(), "--concurrent", "3", "--cps", "50"]);
    assert_eq!((output.status.code(), report), (Some(1), Value::Null));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("no call was established") && said.contains("3 × webhook answered 403"), "{said}");
}

#[test]
fn an_echo_peer_is_dialled_without_any_webhook() {
    if !is_possible() {
        return;
    }
    let servers = Servers::start(Manner::Echo, "twilio");
    let peer = format!("ws://{}/{{id}}", servers.media);
    let (output, report) = bench(&["twilio", "--echo-peer", &peer, "--concurrent", "2"]);
    assert_eq!(report["calls"]["established"], 2, "{output:?}");
    assert_eq!(report["rtp"]["lost"], 0);
    let seen = servers.seen.lock().unwrap();
    assert_eq!((seen.webhooks.len(), seen.upgrades.len()), (0, 2));
    assert!(!seen.upgrades[0].contains("{id}"));
}
