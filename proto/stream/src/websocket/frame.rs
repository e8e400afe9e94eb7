//! Frames on the way out (RFC 6455 §5.2): header, mask, payload, into a buffer of the caller's.
//!
//! ```text
//!   octet 0: FIN, opcode   octet 1: MASK, length 0..125 | 126 + u16 | 127 + u64   [4 octets mask key]   payload
//! ```

/// The longest header of an unmasked frame: two octets and a 64-bit length.
pub const HEADER_MAX: usize = 10;
/// The longest header of a masked frame.
pub const MASKED_HEADER_MAX: usize = HEADER_MAX + 4;
/// The longest payload of a control frame (RFC 6455 §5.5).
pub(super) const CONTROL_PAYLOAD_MAX: usize = 125;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opcode {
    /// A further fragment of the message that is under way.
    Continuation,
    /// UTF-8 text.
    Text,
    /// Octets.
    Binary,
    /// The sender closes.
    Close,
    /// To be answered by a pong with the same payload.
    Ping,
    /// The answer to a ping.
    Pong,
}

impl Opcode {
    /// The four bits on the wire.
    pub const fn bits(self) -> u8 {
        match self {
            Opcode::Continuation => 0x0,
            Opcode::Text => 0x1,
            Opcode::Binary => 0x2,
            Opcode::Close => 0x8,
            Opcode::Ping => 0x9,
            Opcode::Pong => 0xA,
        }
    }

    /// The opcode with these four bits, `None` for the reserved ones.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0x0 => Opcode::Continuation,
            0x1 => Opcode::Text,
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xA => Opcode::Pong,
            _ => return None,
        })
    }

    /// Control frames are short, never fragmented, and may stand between fragments.
    pub const fn is_control(self) -> bool {
        matches!(self, Opcode::Close | Opcode::Ping | Opcode::Pong)
    }
}

/// A frame that cannot be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The caller's buffer is too short; nothing was written.
    #[error("frame of {need} octets does not fit in a buffer of {len}")]
    Short {
        /// Octets in the buffer.
        len: usize,
        /// Octets that the frame takes.
        need: usize,
    },
    /// A control frame carries at most 125 octets.
    #[error("control frame payload of {len} octets, at most 125 are allowed")]
    ControlTooLong {
        /// Octets of payload.
        len: usize,
    },
}

const fn header_len(payload: usize, masked: bool) -> usize {
    let length = match payload {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => 10,
    };
    length + if masked { 4 } else { 0 }
}

/// Octets of a frame with this much payload, header and mask key included.
pub const fn frame_len(payload: usize, masked: bool) -> usize {
    header_len(payload, masked) + payload
}

/// Writes the header of an unfragmented frame and returns its length; the payload, already masked, goes behind it.
///
/// # Errors
/// [`WriteError::Short`] when `out` cannot hold header *and* payload, so a success means that both fit;
/// [`WriteError::ControlTooLong`].
pub fn write_header(
    out: &mut [u8],
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    payload_len: usize,
) -> Result<usize, WriteError> {
    if opcode.is_control() && payload_len > CONTROL_PAYLOAD_MAX {
        return Err(WriteError::ControlTooLong { len: payload_len });
    }
    let header = header_len(payload_len, mask.is_some());
    let need = header + payload_len;
    if out.len() < need {
        return Err(WriteError::Short { len: out.len(), need });
    }
    out[0] = 0x80 | opcode.bits();
    let mask_bit = if mask.is_some() { 0x80 } else { 0 };
    match payload_len {
        0..=125 => out[1] = mask_bit | payload_len as u8,
        126..=0xFFFF => {
            out[1] = mask_bit | 126;
            out[2..4].copy_from_slice(&(payload_len as u16).to_be_bytes());
        }
        _ => {
            out[1] = mask_bit | 127;
            out[2..10].copy_from_slice(&(payload_len as u64).to_be_bytes());
        }
    }
    if let Some(mask) = mask {
        out[header - 4..header].copy_from_slice(&mask);
    }
    Ok(header)
}

/// Writes one whole frame and returns its length. A client passes a fresh random `mask`, a server `None`.
///
/// # Errors
/// As [`write_header`].
pub fn write_frame(
    out: &mut [u8],
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    payload: &[u8],
) -> Result<usize, WriteError> {
    write_frame_with(out, opcode, mask, payload.len(), |room| room.copy_from_slice(payload))
}

/// Writes one whole frame whose payload `fill` produces in its place, which saves a copy; masks it there.
///
/// # Errors
/// As [`write_header`]; `fill` is not called then.
pub fn write_frame_with(
    out: &mut [u8],
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    payload_len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Result<usize, WriteError> {
    let header = write_header(out, opcode, mask, payload_len)?;
    let payload = &mut out[header..header + payload_len];
    fill(payload);
    if let Some(mask) = mask {
        apply_mask(payload, mask);
    }
    Ok(header + payload_len)
}

/// Appends one whole frame to `out`; for the rare frames, since the vector may grow.
///
/// # Errors
/// [`WriteError::ControlTooLong`].
pub fn append_frame(
    out: &mut Vec<u8>,
    opcode: Opcode,
    mask: Option<[u8; 4]>,
    payload: &[u8],
) -> Result<(), WriteError> {
    let start = out.len();
    out.resize(start + frame_len(payload.len(), mask.is_some()), 0);
    let written = write_frame(&mut out[start..], opcode, mask, payload);
    if written.is_err() {
        out.truncate(start);
    }
    written.map(|_| ())
}

/// Appends a close frame. A reason that does not fit in 123 octets is cut at a character.
pub fn write_close(out: &mut Vec<u8>, mask: Option<[u8; 4]>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_PAYLOAD_MAX - 2)];
    let mut payload = [0; CONTROL_PAYLOAD_MAX];
    payload[..2].copy_from_slice(&code.to_be_bytes());
    payload[2..2 + reason.len()].copy_from_slice(reason.as_bytes());
    append_frame(out, Opcode::Close, mask, &payload[..2 + reason.len()]).expect("the reason was cut to fit");
}

/// Masks or unmasks a payload in place (RFC 6455 §5.3); the same operation both ways.
pub fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let word = u32::from_ne_bytes(mask);
    let wide = u64::from(word) | u64::from(word) << 32;
    let (words, rest) = payload.as_chunks_mut::<8>();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (octet, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *octet ^= key;
    }
}
