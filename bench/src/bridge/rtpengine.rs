//! The peer of `bridge`: rtpengine, told over its ng protocol to transcode between two callers.
//!
//! ```text
//!   ours                                        rtpengine
//!   offer: SDP of the first caller, PCMU  ─────▶
//!          mask PCMU, transcode PCMA      ◀───── SDP for the second: PCMA, where he is to speak to
//!   answer: SDP of the second, PCMA       ─────▶
//!                                         ◀───── SDP for the first: PCMU, where he is to speak to
//!   delete                                ─────▶
//! ```
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context;
use tandem_audio::format::Ptime;
use tandem_sdp::LocalSrtp;
use tandem_sdp::description::{Direction, SessionDescription};
use tandem_sdp::negotiate::{self, LocalMedia};

use super::bencode::Value;
use crate::caller;
use crate::marker::Law;

/// A request is sent so many times: it is UDP.
const TRIES: u32 = 3;

/// Waited for an answer each time.
const PATIENCE: Duration = Duration::from_secs(1);

/// Longest answer: an SDP and little more.
const ANSWER_OCTETS_MAX: usize = 16 * 1_024;

/// Tag of the first caller.
const FIRST: &str = "first";

/// Tag of the second.
const SECOND: &str = "second";

/// A connection to it.
pub(super) struct Rtpengine {
    socket: UdpSocket,
    /// Tells this run's calls and requests from others'.
    run: u32,
    requests: u64,
}

impl Rtpengine {
    /// Finds it at this address.
    ///
    /// # Errors
    /// Nobody answers there.
    pub(super) fn connect(address: SocketAddr) -> anyhow::Result<Self> {
        let any: SocketAddr =
            if address.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut this = Self { socket, run: rand::random(), requests: 0 };
        let pong = this.ask(&Value::dictionary([("command", Value::text("ping"))]));
        anyhow::ensure!(
            pong.with_context(|| format!("no rtpengine at {address}"))?.get("result")
                == Some(&Value::text("pong")),
            "what listens on {address} is no rtpengine"
        );
        Ok(this)
    }

    /// Opens bridge `number` between two callers, and gives where each is to speak to.
    ///
    /// # Errors
    /// In its own words.
    pub(super) fn open(
        &mut self,
        number: usize,
        [first, second]: [SocketAddr; 2],
        [of_first, of_second]: [Law; 2],
    ) -> anyhow::Result<[SocketAddr; 2]> {
        let call = self.call_id(number);
        let offer = sdp_offer(first, of_first);
        let offered = self.ask(&Value::dictionary([
            ("command", Value::text("offer")),
            ("call-id", Value::text(&call)),
            ("from-tag", Value::text(FIRST)),
            ("sdp", Value::text(&offer.to_string())),
            ("ICE", Value::text("remove")),
            ("rtcp-mux", Value::texts(&["demux"])),
            (
                "codec",
                Value::dictionary([
                    ("mask", Value::texts(&[of_first.name()])),
                    ("transcode", Value::texts(&[of_second.name()])),
                ]),
            ),
        ]))?;
        let offered = sdp_of(&offered)?;
        let remote = SessionDescription::parse(&offered).context("its offer")?;
        let (answer, agreed) = negotiate::answer(&remote, &local(second, of_second)).context("its offer")?;
        let answered = self.ask(&Value::dictionary([
            ("command", Value::text("answer")),
            ("call-id", Value::text(&call)),
            ("from-tag", Value::text(FIRST)),
            ("to-tag", Value::text(SECOND)),
            ("sdp", Value::text(&answer.to_string())),
            ("ICE", Value::text("remove")),
        ]))?;
        let (for_first, _) =
            caller::read_answer(&offer, Some(&sdp_of(&answered)?)).map_err(anyhow::Error::msg)?;
        Ok([for_first, agreed.remote])
    }

    /// Closes a bridge.
    ///
    /// # Errors
    /// In its own words.
    pub(super) fn close(&mut self, number: usize) -> anyhow::Result<()> {
        let call = self.call_id(number);
        self.ask(&Value::dictionary([
            ("command", Value::text("delete")),
            ("call-id", Value::text(&call)),
            ("from-tag", Value::text(FIRST)),
            ("delete-delay", Value::Integer(0)),
        ]))?;
        Ok(())
    }

    fn call_id(&self, number: usize) -> String {
        format!("bench-{:08x}-{number}", self.run)
    }

    /// Sends a request until it is answered. A repeated one has the same cookie and is carried out once.
    fn ask(&mut self, request: &Value) -> anyhow::Result<Value> {
        self.requests += 1;
        let cookie = format!("{:08x}_{} ", self.run, self.requests);
        let mut datagram = cookie.clone().into_bytes();
        request.write(&mut datagram);
        let mut answer = vec![0; ANSWER_OCTETS_MAX];
        for _ in 0..TRIES {
            self.socket.send(&datagram)?;
            loop {
                match self.socket.recv(&mut answer) {
                    // The answer to a request that was given up.
                    Ok(len) if !answer[..len].starts_with(cookie.as_bytes()) => {}
                    Ok(len) => {
                        let answer = Value::parse(&answer[cookie.len()..len])?;
                        if answer.get("result") == Some(&Value::text("error")) {
                            let reason = answer.get("error-reason").and_then(Value::as_octets);
                            anyhow::bail!(
                                "rtpengine: {}",
                                String::from_utf8_lossy(reason.unwrap_or(b"error"))
                            );
                        }
                        return Ok(answer);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        anyhow::bail!("no answer in {} s", TRIES)
    }
}

fn sdp_of(answer: &Value) -> anyhow::Result<Vec<u8>> {
    Ok(answer.get("sdp").and_then(Value::as_octets).context("rtpengine answered without SDP")?.to_vec())
}

/// One codec and nothing else: no keys, which would be more work than what is compared.
fn local(address: SocketAddr, law: Law) -> LocalMedia {
    LocalMedia {
        address: address.ip(),
        port: address.port(),
        codecs: vec![caller::codec(law)],
        ptime: Ptime::MS_20,
        telephone_event: false,
        comfort_noise: false,
        session_id: u64::from(address.port()),
        session_version: 1,
        direction: Direction::SendRecv,
        srtp: LocalSrtp::default(),
        dtls: None,
    }
}

fn sdp_offer(address: SocketAddr, law: Law) -> SessionDescription {
    negotiate::offer(&local(address, law))
}
