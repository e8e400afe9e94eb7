//! A caller in ten lines: dials an assistant, talks, listens, presses keys, hangs up or is hung up on.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::media::{Heard, Media};
use crate::peer::{Message, OFFER, Peer};
use crate::stack::Stack;

/// A call that was answered.
pub struct Caller {
    peer: Peer,
    media: Media,
    engine: SocketAddr,
    uri: String,
    tag: String,
    /// From the INVITE to the 200.
    pub setup: Duration,
}

impl Caller {
    /// Dials an assistant with the demo key; fails when it is not answered.
    pub fn dials(stack: &Stack, assistant: &str) -> anyhow::Result<Self> {
        let began = Instant::now();
        let (caller, answer, _) = Self::tries(stack, assistant, Duration::from_secs(20))?;
        let answered = began.elapsed();
        let mut caller = caller.with_context(|| format!("{}\n{}", answer.start, stack.everything_said()))?;
        caller.setup = answered;
        Ok(caller)
    }

    /// Dials an assistant; no caller when it is refused. Also returns the final answer and the codes before it.
    pub fn tries(
        stack: &Stack,
        assistant: &str,
        within: Duration,
    ) -> anyhow::Result<(Option<Self>, Message, Vec<u16>)> {
        let peer = Peer::new(stack.sip())?;
        let media = Media::open()?;
        let offer = OFFER.replace("17170", &media.port().to_string());
        let uri = format!("sip:{assistant}:demo-key@{}", stack.sip());
        let (answer, provisional) = peer.invite(&uri, &offer, within)?;
        if answer.status() != 200 {
            return Ok((None, answer, provisional));
        }
        let engine = rtp_address(answer.body()).with_context(|| format!("no audio in {}", answer.text))?;
        let (uri, tag) = peer.acknowledge(&answer, "")?;
        let caller = Self { peer, media, engine, uri, tag, setup: Duration::ZERO };
        Ok((Some(caller), answer, provisional))
    }

    /// Says these 8 kHz samples in real time, and listens meanwhile.
    pub fn says(&mut self, samples: &[i16]) -> anyhow::Result<Heard> {
        self.media.talk(self.engine, samples)
    }

    /// Says nothing, and listens.
    pub fn listens(&mut self, how_long: Duration) -> anyhow::Result<Heard> {
        self.media.listen(how_long)
    }

    /// Says nothing, and listens until it has heard enough, or so long.
    pub fn listens_until(
        &mut self,
        within: Duration,
        enough: impl FnMut(&Heard) -> bool,
    ) -> anyhow::Result<Heard> {
        self.media.listen_until(within, enough)
    }

    /// Presses a key.
    pub fn presses(&mut self, key: char) -> anyhow::Result<()> {
        self.media.press(self.engine, u8::try_from(key)?)
    }

    /// Hangs up.
    pub fn hangs_up(self) -> anyhow::Result<()> {
        self.peer.bye(&self.uri, &self.tag)
    }

    /// Waits for the other side's BYE, answers it, and returns it.
    pub fn is_hung_up_on(&self, within: Duration) -> anyhow::Result<Message> {
        let began = Instant::now();
        while let Some(left) = within.checked_sub(began.elapsed()) {
            let Some(message) = self.peer.receive(left) else { break };
            if message.start.starts_with("BYE ") {
                self.peer.send(ok(&message))?;
                return Ok(message);
            }
        }
        anyhow::bail!("no BYE within {within:?}")
    }
}

/// 200 for a request, with what it must repeat.
fn ok(request: &Message) -> String {
    let mut answer = "SIP/2.0 200 OK\r\n".to_owned();
    for line in request.text.split("\r\n\r\n").next().unwrap_or_default().lines().skip(1) {
        let name = line.split(':').next().unwrap_or_default().trim().to_ascii_lowercase();
        if matches!(name.as_str(), "via" | "from" | "to" | "call-id" | "cseq") {
            answer.push_str(line);
            answer.push_str("\r\n");
        }
    }
    answer.push_str("Content-Length: 0\r\n\r\n");
    answer
}

/// Address and port of the audio in a session description.
fn rtp_address(sdp: &str) -> Option<SocketAddr> {
    let address = sdp.lines().find_map(|line| line.strip_prefix("c=IN IP4 "))?.trim();
    let port = sdp.lines().find_map(|line| line.strip_prefix("m=audio "))?.split(' ').next()?;
    format!("{address}:{port}").parse().ok()
}
