//! Who is refused, with which status, and that each refusal leaves one line that names the rule.

use std::time::Duration;

use tandem_tests::peer::{Message, OFFER, Peer};
use tandem_tests::stack::Stack;
use tandem_tests::{eventually, stack};

const SOON: Duration = Duration::from_secs(15);

fn invite(stack: &Stack, user: &str, body: &str) -> anyhow::Result<Message> {
    let (answer, _) = Peer::new(stack.sip())?.invite(&format!("sip:{user}@{}", stack.sip()), body, SOON)?;
    Ok(answer)
}

/// Lines of the control plane's log that tell of a refusal by this rule.
fn refusals(stack: &Stack, rule: &str) -> usize {
    let log = stack.log("control");
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    lines.filter(|line| line["rule"] == rule).count()
}

fn one_line_says(stack: &Stack, rule: &str, lines: usize) -> anyhow::Result<()> {
    eventually(&format!("{lines} log line(s) with rule {rule}"), SOON, || {
        (refusals(stack, rule) == lines).then_some(())
    })
    .map_err(|error| anyhow::anyhow!("{error}\n{}", stack.everything_said()))
}

#[test]
fn each_refusal_has_its_status_and_one_line_with_its_rule() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let pids = stack.children();

    let answer = invite(&stack, "echo:wrong-key", OFFER)?;
    anyhow::ensure!(answer.status() == 403, "wrong key: {}", answer.start);
    one_line_says(&stack, "api_key", 1)?;

    let answer = invite(&stack, "echo", OFFER)?;
    anyhow::ensure!(answer.status() == 403, "no key: {}", answer.start);
    one_line_says(&stack, "uri_credentials", 1)?;

    let answer = invite(&stack, "nobody:demo-key", OFFER)?;
    anyhow::ensure!(answer.status() == 404, "unknown assistant, good key: {}", answer.start);
    one_line_says(&stack, "assistant_exists", 1)?;

    // A stranger must not learn which assistants there are.
    let answer = invite(&stack, "nobody:wrong-key", OFFER)?;
    anyhow::ensure!(answer.status() == 403, "unknown assistant, wrong key: {}", answer.start);
    one_line_says(&stack, "api_key", 2)?;

    let g729_only = OFFER
        .replace("RTP/AVP 0 101", "RTP/AVP 18")
        .replace("a=rtpmap:0 PCMU/8000\r\na=rtpmap:101 telephone-event/8000", "a=rtpmap:18 G729/8000");
    let answer = invite(&stack, "echo:demo-key", &g729_only)?;
    anyhow::ensure!(answer.status() == 488, "no common codec: {}", answer.start);
    one_line_says(&stack, "offer", 1)?;

    anyhow::ensure!(stack.children() == pids, "somebody died\n{}", stack.everything_said());
    for secret in ["wrong-key", "demo-key"] {
        anyhow::ensure!(!stack.log("control").contains(secret), "the log holds the key {secret}");
        anyhow::ensure!(!stack.log("engine").contains(secret), "the engine's log holds the key {secret}");
    }
    Ok(())
}

#[test]
fn invite_without_sdp_gets_our_offer_and_its_ack_brings_the_answer() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let media = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let port = media.local_addr()?.port();
    let peer = Peer::new(stack.sip())?;
    let (ok, _) = peer.invite(&format!("sip:tone:demo-key@{}", stack.sip()), "", SOON)?;
    anyhow::ensure!(ok.status() == 200, "{}", ok.text);
    let offer = ok.body();
    anyhow::ensure!(
        offer.contains("m=audio ") && offer.contains("RTP/AVP"),
        "no offer in the 200: {}",
        ok.text
    );
    anyhow::ensure!(offer.lines().any(|line| line.starts_with("a=rtpmap:0 PCMU")), "{offer}");
    let answer = OFFER.replace("17170", &port.to_string()).replace(" 0 101", " 0");
    let answer = answer.replace("a=rtpmap:101 telephone-event/8000\r\n", "");
    let (uri, tag) = peer.acknowledge(&ok, &answer)?;
    // The tone arrives at the port of the answer: the engine learnt it from the ACK.
    media.set_read_timeout(Some(SOON))?;
    let mut packet = [0; 2_048];
    let (len, _) = media.recv_from(&mut packet)?;
    anyhow::ensure!(len == 172 && packet[1] & 0x7f == 0, "{len} octets, payload type {}", packet[1] & 0x7f);
    peer.bye(&uri, &tag)
}

#[test]
fn unparsable_request_with_a_usable_via_gets_400() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let peer = Peer::new(stack.sip())?;
    let broken = peer
        .request("INVITE", &format!("sip:echo:demo-key@{}", stack.sip()), "x", "", "")
        .replace("CSeq: 1 INVITE", "CSeq: one INVITE");
    peer.send(broken)?;
    let answer = peer.receive(SOON).ok_or_else(|| anyhow::anyhow!("no answer"))?;
    anyhow::ensure!(answer.status() == 400, "{}", answer.text);
    one_line_says(&stack, "malformed_request", 1)
}

#[test]
fn garbage_gets_silence_and_nothing_dies() -> anyhow::Result<()> {
    let stack = Stack::start()?;
    let pids = stack.children();
    let peer = Peer::new(stack.sip())?;
    let noise: Vec<u8> = (0..1_400).map(|_| rand::random()).collect();
    let garbage: [&[u8]; 8] = [
        b"",
        b"\0",
        b"\r\n\r\n",
        b"hello",
        b"INVITE",
        b"INVITE sip:echo@127.0.0.1 SIP/2.0\r\n\r\n",
        b"SIP/2.0 200 OK\r\n\r\n",
        &noise,
    ];
    for datagram in garbage {
        peer.send(datagram)?;
        // Two CRLF are a keep-alive and may be answered (RFC 5626); nothing else here may.
        if let Some(answer) = peer.receive(Duration::from_millis(150)) {
            anyhow::ensure!(datagram == b"\r\n\r\n", "{datagram:?} was answered: {}", answer.text);
        }
    }
    // A TCP peer that talks nonsense loses its connection at most.
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(stack.sip())?;
    stream.write_all(&noise)?;
    drop(stream);
    anyhow::ensure!(stack.children() == pids, "somebody died\n{}", stack.everything_said());
    let answer = invite(&stack, "nobody:demo-key", OFFER)?;
    anyhow::ensure!(answer.status() == 404, "and it still answers: {}", answer.start);
    anyhow::ensure!(pids.iter().all(|pid| stack::alive(*pid)));
    Ok(())
}
