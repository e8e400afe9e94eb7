//! The media of a check's call: it sends silence, so that the other side's latching works, and counts what comes.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// One packet of PCMU.
const PTIME: Duration = Duration::from_millis(20);
/// Its ticks.
const TICKS: u32 = 160;
/// Silence in PCMU and PCMA: the same octet would not do for both.
const SILENCE_PCMU: u8 = 0xff;
const SILENCE_PCMA: u8 = 0xd5;
/// Payload type of PCMA (RFC 3551 §6).
const PCMA: u8 = 8;

pub(super) struct Ear {
    socket: UdpSocket,
    tick: Interval,
    /// Where to send, and which payload type.
    pub(super) remote: Option<(SocketAddr, u8)>,
    /// RTP packets heard.
    pub(super) heard: u64,
    sequence: u16,
    timestamp: u32,
    ssrc: u32,
}

impl Ear {
    /// On a port that the system chooses, on every address of this family.
    pub(super) async fn open(is_ipv6: bool) -> io::Result<Self> {
        let any: SocketAddr = if is_ipv6 { ([0_u16; 8], 0).into() } else { ([0_u8; 4], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        let mut tick = interval(PTIME);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (sequence, ssrc) = (rand::random(), rand::random());
        Ok(Self { socket, tick, remote: None, heard: 0, sequence, timestamp: 0, ssrc })
    }

    pub(super) fn port(&self) -> u16 {
        self.socket.local_addr().map_or(0, |address| address.port())
    }

    /// Hears one packet or sends one. May be dropped at any await.
    pub(super) async fn turn(&mut self) {
        let mut packet = [0; 2_048];
        tokio::select! {
            heard = self.socket.recv_from(&mut packet) => {
                // RTP version 2, and no RTCP (RFC 5761 §4).
                let is_rtp = |packet: &[u8]| packet.len() >= 12 && packet[0] >> 6 == 2 && !(64..=95).contains(&(packet[1] & 0x7f));
                if heard.is_ok_and(|(len, _)| is_rtp(&packet[..len])) {
                    self.heard += 1;
                }
            }
            _ = self.tick.tick() => self.send(),
        }
    }

    fn send(&mut self) {
        let Some((remote, payload_type)) = self.remote else { return };
        let silence = if payload_type == PCMA { SILENCE_PCMA } else { SILENCE_PCMU };
        let mut packet = Vec::with_capacity(12 + TICKS as usize);
        packet.extend_from_slice(&[0x80, payload_type & 0x7f]);
        packet.extend_from_slice(&self.sequence.to_be_bytes());
        packet.extend_from_slice(&self.timestamp.to_be_bytes());
        packet.extend_from_slice(&self.ssrc.to_be_bytes());
        packet.resize(12 + TICKS as usize, silence);
        self.sequence = self.sequence.wrapping_add(1);
        self.timestamp = self.timestamp.wrapping_add(TICKS);
        // A packet that does not leave is a lost packet.
        let _ = self.socket.try_send_to(&packet, remote);
    }
}
