//! Bytes that no phone sends.

use std::time::Duration;

use tokio::net::UdpSocket;

use crate::stage::{Stage, until};

async fn socket(stage: &Stage) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(stage.app.sip_udp_addr().unwrap()).await.unwrap();
    socket
}

async fn answer(socket: &UdpSocket) -> Option<String> {
    let mut datagram = [0; 4_096];
    let len =
        tokio::time::timeout(Duration::from_millis(400), socket.recv(&mut datagram)).await.ok()?.unwrap();
    Some(String::from_utf8_lossy(&datagram[..len]).into_owned())
}

fn request(method: &str, from: &UdpSocket, rest: &str) -> String {
    let local = from.local_addr().unwrap();
    format!(
        "{method} sip:tandem@127.0.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP {local};branch=z9hG4bK{method}1\r\n\
         From: <sip:a@b>;tag=1\r\nTo: <sip:c@d>;tag=2\r\nCall-ID: {method}@x\r\nMax-Forwards: 70\r\n\
         Content-Length: 0\r\n{rest}\r\n"
    )
}

#[tokio::test]
async fn options_is_answered_with_200() {
    let stage = Stage::up().await;
    let socket = socket(&stage).await;
    let options = request("OPTIONS", &socket, "CSeq: 1 OPTIONS\r\n").replace(";tag=2", "");
    socket.send(options.as_bytes()).await.unwrap();
    let answer = answer(&socket).await.unwrap();
    assert!(answer.starts_with("SIP/2.0 200"), "{answer}");
}

#[tokio::test]
async fn bye_for_an_unknown_dialog_is_481() {
    let stage = Stage::up().await;
    let socket = socket(&stage).await;
    socket.send(request("BYE", &socket, "CSeq: 1 BYE\r\n").as_bytes()).await.unwrap();
    let answer = answer(&socket).await.unwrap();
    assert!(answer.starts_with("SIP/2.0 481"), "{answer}");
}

#[tokio::test]
async fn unparsable_request_with_a_usable_via_is_400_and_other_garbage_is_silence() {
    let stage = Stage::up().await;
    let socket = socket(&stage).await;
    socket.send(request("INVITE", &socket, "CSeq: one INVITE\r\n").as_bytes()).await.unwrap();
    let answered = answer(&socket).await.unwrap();
    assert!(answered.starts_with("SIP/2.0 400"), "{answered}");
    for garbage in ["hello", "\0\0\0\0", "INVITE sip:a@b SIP/2.0\r\n\r\n"] {
        socket.send(garbage.as_bytes()).await.unwrap();
    }
    assert_eq!(answer(&socket).await, None);
    until(|| async { stage.metric("tandem_sip_garbage_total").await == 3.0 }).await;
    assert_eq!(stage.metric("tandem_sip_bad_requests_total").await, 1.0);
    // Nothing has died.
    stage.call("echo:demo-key").await.unwrap().hang_up().await;
}
