//! Asterisk's AudioSocket: a call over one TCP connection, in frames of a type, a length and a payload.
//!
//! ```text
//!   caller's side ── id (UUID, 16 octets) ──▶ agent's side     first, once
//!                 ══ audio, both ways, one frame every 20 ms ══
//!                 ── DTMF digit ────────────▶
//!                 ◀─ hang-up ── (or the connection closes) ──▶
//! ```
//!
//! Type in one octet, length in two (big-endian), payload. Audio is signed 16-bit *little-endian*, one channel; its rate
//! is in the type ([`Rate`]). There is no word for marks, for clearing a queue, or for who calls: the UUID is all.
//! [`Reader`] and [`append`] serve both sides; [`Server`] is the agent's, as Asterisk wants it.

mod server;

pub use server::{
    Counters, End, FIRST_FRAME_WITHIN, Format, ID_WITHIN, MISLABELLED_FRAMES, NotAFrame, PACING, Server,
    ServerEvent,
};

/// Octets before a payload.
pub const HEADER_OCTETS: usize = 3;
/// Longest payload that is read: 20 ms at 192 kHz. The length field could say eight times as much.
pub const PAYLOAD_MAX: usize = 7_680;

/// Rates of audio that have a frame type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rate {
    /// 8 kHz: all that Asterisk knew before 20.17, 21.12, 22.7 and 23.1.
    Hz8000,
    /// 12 kHz.
    Hz12000,
    /// 16 kHz.
    Hz16000,
    /// 24 kHz.
    Hz24000,
    /// 32 kHz.
    Hz32000,
    /// 44.1 kHz.
    Hz44100,
    /// 48 kHz.
    Hz48000,
    /// 96 kHz.
    Hz96000,
    /// 192 kHz.
    Hz192000,
}

const RATES: [(u8, Rate, u32); 9] = [
    (0x10, Rate::Hz8000, 8_000),
    (0x11, Rate::Hz12000, 12_000),
    (0x12, Rate::Hz16000, 16_000),
    (0x13, Rate::Hz24000, 24_000),
    (0x14, Rate::Hz32000, 32_000),
    (0x15, Rate::Hz44100, 44_100),
    (0x16, Rate::Hz48000, 48_000),
    (0x17, Rate::Hz96000, 96_000),
    (0x18, Rate::Hz192000, 192_000),
];

impl Rate {
    /// The rate of so many samples a second.
    pub fn from_hz(hz: u32) -> Option<Self> {
        RATES.iter().find(|(_, _, of)| *of == hz).map(|(_, rate, _)| *rate)
    }

    /// Samples a second.
    pub fn hz(self) -> u32 {
        RATES[self as usize].2
    }

    /// Octets of a frame of 20 ms.
    pub fn frame_octets(self) -> usize {
        self.hz() as usize / 50 * 2
    }

    fn kind(self) -> u8 {
        RATES[self as usize].0
    }
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// The call is over.
    Hangup,
    /// Which call this is; first, from the caller's side.
    Id([u8; 16]),
    /// A key was pressed.
    Dtmf(u8),
    /// Audio, little-endian.
    Audio {
        /// Of the samples.
        rate: Rate,
        /// An even number of octets.
        samples: &'a [u8],
    },
    /// Something went wrong on the other side; its code, if it gave one.
    Error(Option<u8>),
    /// A type that nobody knows, or a payload that does not fit its type: to be counted.
    Unknown(u8),
}

/// A payload above [`PAYLOAD_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an AudioSocket frame of {0} octets is longer than {PAYLOAD_MAX}")]
pub struct TooLong(pub usize);

/// Appends a frame. [`Message::Unknown`] is nothing to be sent: it becomes an error frame.
pub fn append(out: &mut Vec<u8>, message: &Message<'_>) {
    let mut code = [0];
    let (kind, payload): (u8, &[u8]) = match message {
        Message::Hangup => (0x00, &[]),
        Message::Id(id) => (0x01, id),
        Message::Dtmf(digit) => (0x03, std::slice::from_ref(digit)),
        Message::Audio { rate, samples } => (rate.kind(), &samples[..samples.len().min(PAYLOAD_MAX)]),
        Message::Error(Some(given)) => {
            code[0] = *given;
            (0xFF, &code)
        }
        Message::Error(None) | Message::Unknown(_) => (0xFF, &[]),
    };
    let [high, low] = (payload.len() as u16).to_be_bytes();
    out.extend_from_slice(&[kind, high, low]);
    out.extend_from_slice(payload);
}

/// Writes an audio frame of `octets` straight into `out`; `fill` writes its samples. `None` when it does not fit.
pub fn write_audio(out: &mut [u8], rate: Rate, octets: usize, fill: impl FnOnce(&mut [u8])) -> Option<usize> {
    if octets > PAYLOAD_MAX {
        return None;
    }
    let (head, payload) = out.get_mut(..HEADER_OCTETS + octets)?.split_at_mut(HEADER_OCTETS);
    let [high, low] = (octets as u16).to_be_bytes();
    head.copy_from_slice(&[rate.kind(), high, low]);
    fill(payload);
    Some(HEADER_OCTETS + octets)
}

fn read(kind: u8, payload: &[u8]) -> Message<'_> {
    match (kind, payload) {
        (0x00, _) => Message::Hangup,
        (0x01, id) => id.try_into().map_or(Message::Unknown(kind), Message::Id),
        (0x03, [digit @ (b'0'..=b'9' | b'*' | b'#' | b'A'..=b'D')]) => Message::Dtmf(*digit),
        (0x10..=0x18, samples) if !samples.is_empty() && samples.len() % 2 == 0 => {
            Message::Audio { rate: RATES[usize::from(kind - 0x10)].1, samples }
        }
        (0xFF, code) => Message::Error(code.first().copied()),
        _ => Message::Unknown(kind),
    }
}

/// Cuts a stream into frames. Whole frames are read where they lie; one that is cut is kept in a buffer that has its full
/// size from the start.
#[derive(Debug)]
pub struct Reader {
    pending: Vec<u8>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { pending: Vec::with_capacity(HEADER_OCTETS + PAYLOAD_MAX) }
    }
}

impl Reader {
    /// Takes a piece of the stream and hands its frames to `take`.
    ///
    /// # Errors
    /// [`TooLong`]: nothing more can be read.
    pub fn handle_bytes(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(Message<'_>),
    ) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if self.pending.is_empty()
                && let Some(taken) = read_frame(bytes, &mut take)?
            {
                bytes = &bytes[taken..];
                continue;
            }
            let need = match self.pending.first_chunk::<HEADER_OCTETS>() {
                None => HEADER_OCTETS,
                Some(header) => HEADER_OCTETS + payload_len(header)?,
            };
            let more = need.saturating_sub(self.pending.len()).min(bytes.len());
            self.pending.extend_from_slice(&bytes[..more]);
            bytes = &bytes[more..];
            if read_frame(&self.pending, &mut take)?.is_some() {
                self.pending.clear();
            }
        }
        Ok(())
    }

    /// Octets that are kept for a frame that is not whole.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

fn payload_len(header: &[u8; HEADER_OCTETS]) -> Result<usize, TooLong> {
    let len = usize::from(u16::from_be_bytes([header[1], header[2]]));
    if len > PAYLOAD_MAX { Err(TooLong(len)) } else { Ok(len) }
}

fn read_frame(bytes: &[u8], take: &mut impl FnMut(Message<'_>)) -> Result<Option<usize>, TooLong> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_OCTETS>() else { return Ok(None) };
    let len = payload_len(header)?;
    let Some(payload) = rest.get(..len) else { return Ok(None) };
    take(read(header[0], payload));
    Ok(Some(HEADER_OCTETS + len))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_are_asterisks_own_octets() {
        let id = *b"\x6b\xa7\xb8\x10\x9d\xad\x11\xd1\x80\xb4\x00\xc0\x4f\xd4\x30\xc8";
        let cases: [(Message<'_>, &[u8]); 5] = [
            (Message::Hangup, &[0, 0, 0]),
            (Message::Id(id), &[&[1, 0, 16], &id[..]].concat()),
            (Message::Dtmf(b'5'), &[3, 0, 1, 0x35]),
            (
                Message::Audio { rate: Rate::Hz8000, samples: &[0; 320] },
                &[&[0x10, 1, 0x40], &[0; 320][..]].concat(),
            ),
            (Message::Error(Some(2)), &[0xFF, 0, 1, 2]),
        ];
        for (message, octets) in cases {
            let mut wire = Vec::new();
            append(&mut wire, &message);
            assert_eq!(wire, octets);
            let mut seen = 0;
            let same = |read: Message<'_>| seen += usize::from(read == message);
            Reader::default().handle_bytes(&wire, same).unwrap();
            assert_eq!(seen, 1);
        }
    }

    #[test]
    fn every_rate_has_its_type_and_its_frame_of_20_ms() {
        for (kind, rate, hz) in RATES {
            assert_eq!((rate.kind(), rate.hz(), Rate::from_hz(hz)), (kind, hz, Some(rate)));
            assert_eq!(rate.frame_octets(), hz as usize / 25);
            assert!(rate.frame_octets() <= PAYLOAD_MAX);
        }
        assert_eq!(Rate::from_hz(11_025), None);
    }

    #[test]
    fn what_makes_no_sense_is_unknown_and_the_next_frame_is_read() {
        let wire = [
            &[1, 0, 2, 1, 2][..],
            &[3, 0, 1, b'x'],
            &[0x10, 0, 1, 9],
            &[0x10, 0, 0],
            &[0x42, 0, 0],
            &[0, 0, 0],
        ];
        let mut seen = Vec::new();
        Reader::default().handle_bytes(&wire.concat(), |message| seen.push(format!("{message:?}"))).unwrap();
        assert_eq!(seen[..5], ["Unknown(1)", "Unknown(3)", "Unknown(16)", "Unknown(16)", "Unknown(66)"]);
        assert_eq!(seen[5], "Hangup");
    }

    proptest! {
        #[test]
        fn audio_survives_the_wire_however_it_is_cut(
            frames in proptest::collection::vec(proptest::collection::vec(any::<[u8; 2]>(), 1..400), 1..12),
            cut in 1usize..50,
            rate in 0usize..9,
        ) {
            let rate = RATES[rate].1;
            let (mut wire, mut heard) = (Vec::new(), Vec::new());
            for frame in &frames {
                append(&mut wire, &Message::Audio { rate, samples: &frame.concat() });
            }
            let mut reader = Reader::default();
            for piece in wire.chunks(cut) {
                reader.handle_bytes(piece, |message| {
                    if let Message::Audio { rate: of, samples } = message {
                        assert_eq!(of, rate);
                        heard.extend_from_slice(samples);
                    }
                }).unwrap();
            }
            prop_assert_eq!(reader.pending(), 0);
            prop_assert_eq!(heard, frames.concat().concat());
        }

        #[test]
        fn whatever_comes_is_read_or_refused(octets in proptest::collection::vec(any::<u8>(), 0..300), cut in 1usize..40) {
            let mut reader = Reader::default();
            for piece in octets.chunks(cut) {
                if reader.handle_bytes(piece, |_| {}).is_err() {
                    break;
                }
            }
            prop_assert!(reader.pending() <= HEADER_OCTETS + PAYLOAD_MAX);
        }
    }
}
