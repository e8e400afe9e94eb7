//! Frames of HTTP/2 (RFC 9113 §4.1, §6): nine octets and a payload.

/// Octets of a frame's header.
pub const FRAME_HEADER_OCTETS: usize = 9;

/// Longest payload that we take or make: what everybody must take (§6.5.2).
pub(super) const PAYLOAD_MAX: usize = 16_384;

/// What a client says first (§3.4).
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bits of a frame's flags.
pub(super) mod flags {
    pub(in super::super) const END_STREAM: u8 = 0x1;
    pub(in super::super) const ACK: u8 = 0x1;
    pub(in super::super) const END_HEADERS: u8 = 0x4;
    pub(in super::super) const PADDED: u8 = 0x8;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// Kinds of frames (§6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FrameKind {
    Data = 0,
    Headers = 1,
    Priority = 2,
    Reset = 3,
    Settings = 4,
    PushPromise = 5,
    Ping = 6,
    GoAway = 7,
    WindowUpdate = 8,
    Continuation = 9,
}

impl FrameKind {
    pub(super) const fn from_octet(octet: u8) -> Option<Self> {
        Some(match octet {
            0 => Self::Data,
            1 => Self::Headers,
            2 => Self::Priority,
            3 => Self::Reset,
            4 => Self::Settings,
            5 => Self::PushPromise,
            6 => Self::Ping,
            7 => Self::GoAway,
            8 => Self::WindowUpdate,
            9 => Self::Continuation,
            _ => return None,
        })
    }
}

/// Settings that mean something to us (§6.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Setting {
    HeaderTableSize = 1,
    EnablePush = 2,
    InitialWindowSize = 4,
}

impl Setting {
    pub(super) const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::HeaderTableSize,
            2 => Self::EnablePush,
            4 => Self::InitialWindowSize,
            _ => return None,
        })
    }
}

/// The header of a frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) len: usize,
    pub(super) kind: u8,
    flags: u8,
    stream: u32,
}

impl Head {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let &[l0, l1, l2, kind, flags, s0, s1, s2, s3] = bytes.first_chunk::<FRAME_HEADER_OCTETS>()?;
        Some(Self {
            len: u32::from_be_bytes([0, l0, l1, l2]) as usize,
            kind,
            flags,
            // The upper bit is reserved.
            stream: u32::from_be_bytes([s0 & 0x7F, s1, s2, s3]),
        })
    }
}

/// A whole frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) kind: u8,
    flags: u8,
    pub(super) stream: u32,
    pub(super) payload: &'a [u8],
}

impl<'a> Frame<'a> {
    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The payload without padding (§6.1); `None` when the padding is longer than it.
    pub(super) fn unpadded(&self) -> Option<&'a [u8]> {
        if !self.has(flags::PADDED) {
            return Some(self.payload);
        }
        let (&padding, rest) = self.payload.split_first()?;
        rest.get(..rest.len().checked_sub(usize::from(padding))?)
    }

    /// Four octets of the payload as a number.
    pub(super) fn number(&self, at: usize) -> Option<u32> {
        let four = self.payload.get(at..)?.first_chunk::<4>()?;
        Some(u32::from_be_bytes(*four))
    }
}

/// The frame that begins here and what is after it; `None` while it is not whole.
pub(super) fn split(head: Head, bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (payload, rest) = bytes.get(FRAME_HEADER_OCTETS..)?.split_at_checked(head.len)?;
    Some((Frame { kind: head.kind, flags: head.flags, stream: head.stream, payload }, rest))
}

/// Length of the frame that begins here, its header included; `None` while that is not known.
pub(super) fn len_of(bytes: &[u8]) -> Option<usize> {
    Head::read(bytes).map(|head| FRAME_HEADER_OCTETS + head.len)
}

/// Writes a header; `out` has room for it.
pub(super) fn write_head(out: &mut [u8], len: usize, kind: FrameKind, flags: u8, stream: u32) {
    let [_, l0, l1, l2] = (len as u32).to_be_bytes();
    let [s0, s1, s2, s3] = stream.to_be_bytes();
    out[..FRAME_HEADER_OCTETS].copy_from_slice(&[l0, l1, l2, kind as u8, flags, s0, s1, s2, s3]);
}

/// Appends a frame.
pub(super) fn append(out: &mut Vec<u8>, kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) {
    let at = out.len();
    out.resize(at + FRAME_HEADER_OCTETS, 0);
    write_head(&mut out[at..], payload.len(), kind, flags, stream);
    out.extend_from_slice(payload);
}

/// Appends our settings.
pub(super) fn append_settings(out: &mut Vec<u8>, settings: &[(Setting, u32)]) {
    let mut payload = Vec::with_capacity(6 * settings.len());
    for (setting, value) in settings {
        payload.extend_from_slice(&(*setting as u16).to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    append(out, FrameKind::Settings, 0, 0, &payload);
}

/// Appends a grant.
pub(super) fn append_window_update(out: &mut Vec<u8>, stream: u32, octets: u32) {
    append(out, FrameKind::WindowUpdate, 0, stream, &octets.to_be_bytes());
}
