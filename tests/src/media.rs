//! RTP as the RFCs describe it (3550, 3551, 4733), written down a second time for the tests: one stream out, one in.

use std::net::{SocketAddr, UdpSocket};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

/// Packets a second and samples a packet, of G.711 at 20 ms.
const PTIME: Duration = Duration::from_millis(20);
const SAMPLES: usize = 160;
/// As offered in [`crate::peer::OFFER`].
const PCMU: u8 = 0;
const TELEPHONE_EVENT: u8 = 101;

/// One end of an RTP stream.
pub struct Media {
    socket: UdpSocket,
    ssrc: u32,
    sequence: u16,
    timestamp: u32,
    fresh: bool,
    /// Where the last datagram came from.
    heard_from: Mutex<Option<SocketAddr>>,
}

/// A packet that came.
#[derive(Debug, Clone)]
pub struct Packet {
    /// When.
    pub at: Instant,
    /// Its payload type.
    pub payload_type: u8,
    /// Marker bit.
    pub marker: bool,
    /// Sequence number.
    pub sequence: u16,
    /// Timestamp.
    pub timestamp: u32,
    /// Whose.
    pub ssrc: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// What came while we listened or talked, in the order of arrival.
#[derive(Debug, Clone, Default)]
pub struct Heard(pub Vec<Packet>);

impl Heard {
    /// The sound, decoded from µ-law.
    pub fn samples(&self) -> Vec<i16> {
        let audio = self.0.iter().filter(|packet| packet.payload_type == PCMU);
        let codes = audio.flat_map(|packet| packet.payload.iter().copied());
        codes.map(tandem_audio::g711::linear_from_ulaw).collect()
    }

    /// The sound since then, each packet laid where its timestamp puts it after the first, which lies where it came; a
    /// pause of the speaker is silence. For who measures a delay.
    pub fn timeline(&self, began: Instant) -> Vec<i16> {
        let Some(first) = self.0.first() else { return Vec::new() };
        let lead = first.at.saturating_duration_since(began).as_micros() as usize * 8 / 1_000;
        let mut samples = Vec::new();
        for packet in self.0.iter().filter(|packet| packet.payload_type == PCMU) {
            let at = lead + packet.timestamp.wrapping_sub(first.timestamp) as usize;
            samples.resize(at.max(samples.len()) + packet.payload.len(), 0);
            for (sample, code) in samples[at..].iter_mut().zip(&packet.payload) {
                *sample = tandem_audio::g711::linear_from_ulaw(*code);
            }
        }
        samples
    }

    /// Is it one stream, in order, that begins again with a marker wherever its speaker has paused (RFC 3551 §4.1)?
    /// Returns how often that was, and how long in all.
    pub fn is_one_stream_with_pauses(&self) -> anyhow::Result<(usize, Duration)> {
        let (mut pauses, mut ticks_paused) = (0, 0);
        for pair in self.0.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            anyhow::ensure!(a.ssrc == b.ssrc, "two sources: {:x} and {:x}", a.ssrc, b.ssrc);
            let step = b.sequence.wrapping_sub(a.sequence);
            let ticks = b.timestamp.wrapping_sub(a.timestamp);
            anyhow::ensure!(step == 1, "sequence {} is followed by {}", a.sequence, b.sequence);
            anyhow::ensure!(
                b.marker == (ticks != SAMPLES as u32) && ticks.is_multiple_of(SAMPLES as u32),
                "timestamp {} is followed by {}, marker {}",
                a.timestamp,
                b.timestamp,
                b.marker
            );
            if b.marker {
                pauses += 1;
                ticks_paused += ticks - SAMPLES as u32;
            }
        }
        Ok((pauses, Duration::from_millis(u64::from(ticks_paused) / 8)))
    }

    /// Packets missing between the first and the last.
    pub fn lost(&self) -> usize {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return 0 };
        let span = usize::from(last.sequence.wrapping_sub(first.sequence)) + 1;
        span.saturating_sub(self.0.len())
    }

    /// Is it one stream, in order, with timestamps that tick evenly?
    pub fn is_one_even_stream(&self) -> anyhow::Result<()> {
        for pair in self.0.windows(2) {
            let (a, b) = (&pair[0], &pair[1]);
            anyhow::ensure!(a.ssrc == b.ssrc, "two sources: {:x} and {:x}", a.ssrc, b.ssrc);
            let step = b.sequence.wrapping_sub(a.sequence);
            let ticks = b.timestamp.wrapping_sub(a.timestamp);
            anyhow::ensure!(step == 1, "sequence {} is followed by {}", a.sequence, b.sequence);
            anyhow::ensure!(
                ticks == SAMPLES as u32,
                "timestamp {} is followed by {}",
                a.timestamp,
                b.timestamp
            );
        }
        Ok(())
    }
}

impl Media {
    /// A port on loopback, and a stream that begins anywhere, as RFC 3550 wants it.
    pub fn open() -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        Ok(Self {
            socket,
            ssrc: rand::random(),
            sequence: rand::random(),
            timestamp: rand::random(),
            fresh: true,
            heard_from: Mutex::new(None),
        })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.socket.local_addr().expect("a bound socket has an address").port()
    }

    /// Where what was heard last came from.
    pub fn heard_from(&self) -> anyhow::Result<SocketAddr> {
        self.heard_from.lock().unwrap_or_else(PoisonError::into_inner).context("nothing has come")
    }

    /// Says these 8 kHz samples in real time, and listens meanwhile.
    pub fn talk(&mut self, to: SocketAddr, samples: &[i16]) -> anyhow::Result<Heard> {
        let mut heard = Heard::default();
        let began = Instant::now();
        for (n, frame) in samples.chunks_exact(SAMPLES).enumerate() {
            self.receive_until(began + PTIME * n as u32, &mut heard)?;
            self.send(to, PCMU, self.fresh, self.timestamp, &crate::sound::ulaw(frame))?;
            self.fresh = false;
            self.timestamp = self.timestamp.wrapping_add(SAMPLES as u32);
        }
        Ok(heard)
    }

    /// Listens for so long and says nothing.
    pub fn listen(&mut self, how_long: Duration) -> anyhow::Result<Heard> {
        let mut heard = Heard::default();
        self.receive_until(Instant::now() + how_long, &mut heard)?;
        self.timestamp = self.timestamp.wrapping_add(how_long.as_millis() as u32 * 8);
        self.fresh = true;
        Ok(heard)
    }

    /// Waits for a packet and forgets it.
    pub fn wait_for_packet(&mut self, within: Duration) -> anyhow::Result<()> {
        let heard = self.listen_until(within, |heard| !heard.0.is_empty())?;
        anyhow::ensure!(!heard.0.is_empty(), "no RTP within {within:?}");
        Ok(())
    }

    /// Listens until what was heard is enough, or so long.
    pub fn listen_until(
        &mut self,
        within: Duration,
        mut enough: impl FnMut(&Heard) -> bool,
    ) -> anyhow::Result<Heard> {
        let (mut heard, until) = (Heard::default(), Instant::now() + within);
        self.fresh = true;
        while !enough(&heard) && Instant::now() < until {
            self.receive_until(Instant::now() + PTIME, &mut heard)?;
        }
        Ok(heard)
    }

    /// Presses a digit for 100 ms, as RFC 4733 §2.5.1 tells: five updates, the end three times.
    pub fn press(&mut self, to: SocketAddr, digit: u8) -> anyhow::Result<()> {
        let event = match digit {
            b'0'..=b'9' => digit - b'0',
            b'*' => 10,
            b'#' => 11,
            other => anyhow::bail!("{other} is no key"),
        };
        let start = self.timestamp;
        for n in 1..=7_u16 {
            let (end, duration) = if n > 4 { (0x80, 5 * 160) } else { (0, n * 160) };
            let [high, low] = duration.to_be_bytes();
            self.send(to, TELEPHONE_EVENT, n == 1, start, &[event, end | 10, high, low])?;
            std::thread::sleep(PTIME);
        }
        self.timestamp = start.wrapping_add(7 * 160);
        Ok(())
    }

    fn send(
        &mut self,
        to: SocketAddr,
        payload_type: u8,
        marker: bool,
        timestamp: u32,
        payload: &[u8],
    ) -> anyhow::Result<()> {
        let mut packet = vec![0x80, payload_type | if marker { 0x80 } else { 0 }];
        packet.extend(self.sequence.to_be_bytes());
        packet.extend(timestamp.to_be_bytes());
        packet.extend(self.ssrc.to_be_bytes());
        packet.extend(payload);
        self.sequence = self.sequence.wrapping_add(1);
        match self.socket.send_to(&packet, to) {
            // The other end has closed its port meanwhile; the next send goes through again.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            sent => Ok(sent.map(drop)?),
        }
    }

    fn receive_until(&self, until: Instant, heard: &mut Heard) -> anyhow::Result<()> {
        let mut buffer = [0; 2_048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv_from(&mut buffer) {
                Ok((len, from)) => {
                    *self.heard_from.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
                    heard.0.extend(parse(&buffer[..len]));
                }
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Packet> {
    let (header, payload) = bytes.split_at_checked(12)?;
    let word = |n: usize| u32::from_be_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
    (header[0] == 0x80).then(|| Packet {
        at: Instant::now(),
        payload_type: header[1] & 0x7f,
        marker: header[1] & 0x80 != 0,
        sequence: u16::from_be_bytes([header[2], header[3]]),
        timestamp: word(4),
        ssrc: word(8),
        payload: payload.to_vec(),
    })
}
