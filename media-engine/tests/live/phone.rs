//! A phone: one UDP socket that speaks RTP in real time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

/// An RTP packet, taken apart by hand so that the engine's own parser is not its own judge.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) from: u16,
    pub(crate) ssrc: u32,
    pub(crate) marker: bool,
    pub(crate) payload_type: u8,
    pub(crate) sequence: u16,
    pub(crate) timestamp: u32,
    pub(crate) payload: Vec<u8>,
}

/// The payload of packet `number`: no two alike, and no octet that another encoder would write differently.
pub(crate) fn pcmu(number: u32) -> [u8; 160] {
    std::array::from_fn(|i| ((number * 31 + i as u32 * 7) % 120) as u8)
}

pub(crate) struct Phone {
    socket: UdpSocket,
}

impl Phone {
    pub(crate) fn new() -> Self {
        Self { socket: UdpSocket::bind("127.0.0.1:0").unwrap() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.socket.local_addr().unwrap().port()
    }

    pub(crate) fn try_receive(&self, within: Duration) -> Option<Heard> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut octets = [0; 2_000];
        let (len, from) = match self.socket.recv_from(&mut octets) {
            Ok(received) => received,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
            Err(error) => panic!("{error}"),
        };
        assert!(len >= 12 && octets[0] == 0x80);
        Some(Heard {
            from: from.port(),
            ssrc: u32::from_be_bytes([octets[8], octets[9], octets[10], octets[11]]),
            marker: octets[1] & 0x80 != 0,
            payload_type: octets[1] & 0x7F,
            sequence: u16::from_be_bytes([octets[2], octets[3]]),
            timestamp: u32::from_be_bytes([octets[4], octets[5], octets[6], octets[7]]),
            payload: octets[12..len].to_vec(),
        })
    }

    pub(crate) fn receive(&self) -> Heard {
        self.try_receive(Duration::from_secs(2)).expect("a packet comes")
    }

    fn send(&self, port: u16, payload_type: u8, sequence: u16, timestamp: u32, payload: &[u8]) {
        let mut packet = vec![0x80, payload_type];
        packet.extend_from_slice(&sequence.to_be_bytes());
        packet.extend_from_slice(&timestamp.to_be_bytes());
        packet.extend_from_slice(&0x1234_5678u32.to_be_bytes());
        packet.extend_from_slice(payload);
        self.socket.send_to(&packet, SocketAddr::from(([127, 0, 0, 1], port))).unwrap();
    }

    /// Sends so many packets, one each 20 ms, and gives what was heard meanwhile and 100 ms after.
    pub(crate) fn talk(&self, port: u16, packets: u32) -> Vec<Heard> {
        self.talk_of(port, packets, pcmu)
    }

    /// The same with one code for every sample.
    pub(crate) fn talk_with(&self, port: u16, packets: u32, code: u8) -> Vec<Heard> {
        self.talk_of(port, packets, |_| [code; 160])
    }

    fn talk_of(&self, port: u16, packets: u32, payload: impl Fn(u32) -> [u8; 160]) -> Vec<Heard> {
        let mut next = Instant::now();
        let mut heard = Vec::new();
        for number in 0..packets {
            self.send(port, 0, number as u16, number * 160, &payload(number));
            // A machine that kept us waiting is no reason for a volley, which a queue might not hold.
            next = (next + Duration::from_millis(20)).max(Instant::now());
            while let Some(left) = next.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
            {
                heard.extend(self.try_receive(left));
            }
        }
        let end = Instant::now() + Duration::from_millis(100);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            heard.extend(self.try_receive(left));
        }
        heard
    }

    /// Presses a key as RFC 4733 has it: five packets and three ends.
    pub(crate) fn press(&self, port: u16, key: u8) {
        self.press_after(port, key, 0);
    }

    /// The same after so many packets.
    pub(crate) fn press_after(&self, port: u16, key: u8, packets: u16) {
        for n in 1..=8u16 {
            let (end, duration) = if n > 5 { (0x80, 800u16) } else { (0, 160 * n) };
            let [high, low] = duration.to_be_bytes();
            let begin = 4_000 + 160 * u32::from(packets);
            self.send(port, 101, packets + n, begin, &[key, end | 10, high, low]);
        }
    }
}

pub(crate) fn http_get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
