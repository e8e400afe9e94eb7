//! A SIP peer that writes its requests by hand, so that a test can send what no decent phone would.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context;

/// An offer that every server of ours can answer.
pub const OFFER: &str = "v=0\r\no=peer 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
                         m=audio 17170 RTP/AVP 0 101\r\na=rtpmap:0 PCMU/8000\r\n\
                         a=rtpmap:101 telephone-event/8000\r\na=ptime:20\r\n";

/// A peer with a socket of its own, in one call.
pub struct Peer {
    socket: UdpSocket,
    server: SocketAddr,
    call: String,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Message {
    /// The first line.
    pub start: String,
    /// The whole text.
    pub text: String,
}

impl Message {
    /// The status code; 0 for a request.
    pub fn status(&self) -> u16 {
        self.start.strip_prefix("SIP/2.0 ").and_then(|rest| rest.get(..3)?.parse().ok()).unwrap_or(0)
    }

    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let head = self.text.split("\r\n\r\n").next()?;
        head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.trim().eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// What follows the empty line.
    pub fn body(&self) -> &str {
        self.text.split_once("\r\n\r\n").map_or("", |(_, body)| body)
    }
}

impl Peer {
    /// A peer that talks to this server.
    pub fn new(server: SocketAddr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        let call = format!("{:x}", rand::random::<u64>());
        Ok(Self { socket, server, call })
    }

    /// The text of a request. Several requests of one peer are of one call; `branch` tells its transactions apart.
    pub fn request(&self, method: &str, uri: &str, branch: &str, to_tag: &str, body: &str) -> String {
        let local = self.local();
        let call = &self.call;
        // ACK carries the number of the INVITE.
        let number = if matches!(method, "INVITE" | "ACK" | "CANCEL" | "OPTIONS") { 1 } else { 2 };
        let to_tag = if to_tag.is_empty() { String::new() } else { format!(";tag={to_tag}") };
        let content = if body.is_empty() { "" } else { "Content-Type: application/sdp\r\n" };
        format!(
            "{method} {uri} SIP/2.0\r\n\
             Via: SIP/2.0/UDP {local};branch=z9hG4bK{branch}{call};rport\r\n\
             From: <sip:peer@{local}>;tag=p{call}\r\n\
             To: <sip:someone@{server}>{to_tag}\r\n\
             Call-ID: {call}@{local}\r\n\
             CSeq: {number} {method}\r\n\
             Contact: <sip:peer@{local}>\r\n\
             Max-Forwards: 70\r\n\
             {content}Content-Length: {length}\r\n\r\n{body}",
            server = self.server,
            length = body.len(),
        )
    }

    /// Where this peer is reached.
    pub fn local(&self) -> SocketAddr {
        self.socket.local_addr().expect("a bound socket has an address")
    }

    /// Sends these octets as one datagram.
    pub fn send(&self, datagram: impl AsRef<[u8]>) -> anyhow::Result<()> {
        self.socket.send_to(datagram.as_ref(), self.server)?;
        Ok(())
    }

    /// The next message, if one comes in time.
    pub fn receive(&self, within: Duration) -> Option<Message> {
        self.socket.set_read_timeout(Some(within.max(Duration::from_millis(1)))).ok()?;
        let mut buffer = [0; 65_535];
        let (len, _) = self.socket.recv_from(&mut buffer).ok()?;
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        Some(Message { start: text.lines().next().unwrap_or_default().to_owned(), text })
    }

    /// Sends an INVITE and waits for its final answer; a refusal is acknowledged. Also returns the provisional
    /// answers' codes, each once.
    pub fn invite(&self, uri: &str, body: &str, within: Duration) -> anyhow::Result<(Message, Vec<u16>)> {
        self.send(self.request("INVITE", uri, "i", "", body))?;
        let began = Instant::now();
        let mut provisional = Vec::new();
        loop {
            let left = within.checked_sub(began.elapsed()).unwrap_or_default();
            let answer =
                self.receive(left).with_context(|| format!("no final answer; only {provisional:?}"))?;
            match answer.status() {
                code @ 100..200 if !provisional.contains(&code) => provisional.push(code),
                100..200 => {}
                200..300 => return Ok((answer, provisional)),
                300.. => {
                    self.send(self.request("ACK", uri, "i", &tag(&answer), ""))?;
                    return Ok((answer, provisional));
                }
                _ => {}
            }
        }
    }

    /// Acknowledges a 2xx with this answer, and returns the URI to which further requests go, and the peer's tag.
    pub fn acknowledge(&self, ok: &Message, body: &str) -> anyhow::Result<(String, String)> {
        let contact = ok.header("Contact").context("a 2xx has a Contact")?;
        let uri = contact.trim_start_matches('<').split('>').next().unwrap_or_default().to_owned();
        let tag = tag(ok);
        self.send(self.request("ACK", &uri, "a", &tag, body))?;
        Ok((uri, tag))
    }

    /// Hangs up and waits for the 200.
    pub fn bye(&self, uri: &str, tag: &str) -> anyhow::Result<()> {
        self.send(self.request("BYE", uri, "b", tag, ""))?;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(5) {
            let Some(answer) = self.receive(Duration::from_secs(5)) else { break };
            if answer.status() == 200 && answer.header("CSeq").is_some_and(|cseq| cseq.ends_with("BYE")) {
                return Ok(());
            }
        }
        anyhow::bail!("the BYE was not answered with 200")
    }
}

/// The To tag of an answer.
fn tag(answer: &Message) -> String {
    let to = answer.header("To").unwrap_or_default();
    to.split_once(";tag=").map_or("", |(_, tag)| tag.split(';').next().unwrap_or_default()).to_owned()
}
