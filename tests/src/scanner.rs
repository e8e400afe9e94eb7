//! Those who try every address and every number all day long: INVITEs, REGISTERs and OPTIONS that nobody has asked for.

use std::net::{SocketAddr, UdpSocket};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Sources that take turns: other addresses than that of the good callers, as in life.
const SOURCES: [&str; 4] = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"];
/// Requests in one go, and the pause after it: some 2 000 a second, which a debug build can still take.
const VOLLEY: u32 = 20;
const PAUSE: Duration = Duration::from_millis(10);
/// What the programs of scanners call themselves, and what phones do whose name they borrow.
const AGENTS: [&str; 5] =
    ["friendly-scanner", "sipcli/v1.8", "VaxSIPUserAgent/3.1", "pplsip", "Linphone/3.6.1"];

/// Sends so many INVITEs, each another call, to numbers and names that nobody has; answers are thrown away, and no ACK is
/// sent. Returns how many answers there were.
pub fn floods(to: SocketAddr, invites: u32) -> anyhow::Result<u32> {
    let mut sockets = Vec::new();
    for source in SOURCES {
        let socket = UdpSocket::bind((source, 0))?;
        socket.set_nonblocking(true)?;
        sockets.push(socket);
    }
    let (mut answers, mut next) = (0, Instant::now());
    let mut buffer = [0; 2_048];
    for number in 0..invites {
        let socket = &sockets[number as usize % sockets.len()];
        // A full buffer on loopback drops the datagram, as any network would.
        let _ = socket.send_to(invite(socket.local_addr()?, to, number).as_bytes(), to);
        while socket.recv_from(&mut buffer).is_ok() {
            answers += 1;
        }
        if number % VOLLEY == VOLLEY - 1 {
            next += PAUSE;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    Ok(answers)
}

fn invite(from: SocketAddr, to: SocketAddr, number: u32) -> String {
    let user = match number % 4 {
        0 => format!("00{}", 44_000_000_000_u64 + u64::from(number)),
        1 => format!("{}", 100 + number % 900),
        2 => format!("echo:guess-{number}"),
        _ => "admin".to_owned(),
    };
    let agent = AGENTS[number as usize % AGENTS.len()];
    let unique = format!("{number}-{:x}", rand::random::<u32>());
    let body = format!(
        "v=0\r\no=- 1 1 IN IP4 {ip}\r\ns=-\r\nc=IN IP4 {ip}\r\nt=0 0\r\nm=audio 9 RTP/AVP 0\r\n",
        ip = from.ip()
    );
    format!(
        "INVITE sip:{user}@{to} SIP/2.0\r\n\
         Via: SIP/2.0/UDP {from};branch=z9hG4bK{unique};rport\r\n\
         From: <sip:100@{to}>;tag={unique}\r\n\
         To: <sip:100@{to}>\r\n\
         Call-ID: {unique}\r\n\
         CSeq: 1 INVITE\r\n\
         Contact: <sip:100@{from}>\r\n\
         Max-Forwards: 70\r\n\
         User-Agent: {agent}\r\n\
         Content-Type: application/sdp\r\n\
         Content-Length: {length}\r\n\r\n{body}",
        length = body.len()
    )
}

/// Runs a program of SIPVicious (`svmap`, `svwar`) against this server, and returns what it printed.
pub fn sipvicious(program: &str, to: SocketAddr, arguments: &[&str]) -> anyhow::Result<String> {
    let folder = tempfile::Builder::new().prefix("tandem-scanner-").tempdir()?;
    let out = std::fs::File::create(folder.path().join("out"))?;
    let mut child = Command::new(program)
        .args(["-p", &to.port().to_string(), "-P", &crate::stack::free_port()?.to_string()])
        .args(arguments)
        .arg(to.ip().to_string())
        // It keeps its sessions there.
        .env("HOME", folder.path())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .spawn()
        .with_context(|| format!("{program} is missing: scripts/setup.sh test installs it"))?;
    let ended = crate::eventually(&format!("{program} ends"), Duration::from_secs(120), || {
        child.try_wait().ok().flatten()
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    let said = String::from_utf8_lossy(&std::fs::read(folder.path().join("out"))?).into_owned();
    ended.with_context(|| said.clone())?;
    Ok(said)
}
