//! One outbound RTP stream: sequence, timestamp, marker, payload type, and what a sender report needs.
//!
//! The caller draws the random starts (RFC 3550 §5.1), so that nothing here is random. The timestamp counts media time: it moves
//! by what a packet holds, and also when nothing is sent, and then the next packet begins a talkspurt and has the marker
//! (RFC 3551 §4.1).

use crate::event::EventPacket;
use crate::packet::{HEADER_LEN, Header, NoRoom};
use crate::rtcp::{NtpTime, SenderInfo};
use crate::units::{PayloadType, SequenceNumber, Ssrc, Timestamp};

/// The sending side of one SSRC.
#[derive(Debug, Clone)]
pub struct Sender {
    ssrc: Ssrc,
    payload_type: PayloadType,
    sequence: SequenceNumber,
    timestamp: Timestamp,
    talkspurt_begins: bool,
    packets: u64,
    octets: u64,
    /// Packets and octets of SSRCs before this one, which reports do not count (RFC 3550 §6.4.1).
    earlier: (u64, u64),
}

impl Sender {
    /// A stream that has sent nothing. `sequence` and `timestamp` of the first packet should be random.
    pub const fn new(
        ssrc: Ssrc,
        payload_type: PayloadType,
        sequence: SequenceNumber,
        timestamp: Timestamp,
    ) -> Self {
        Self {
            ssrc,
            payload_type,
            sequence,
            timestamp,
            talkspurt_begins: true,
            packets: 0,
            octets: 0,
            earlier: (0, 0),
        }
    }

    /// Our SSRC.
    pub const fn ssrc(&self) -> Ssrc {
        self.ssrc
    }

    /// Media time of the next packet.
    pub const fn timestamp(&self) -> Timestamp {
        self.timestamp
    }

    /// Packets sent, under all SSRCs.
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    /// Octets of payload sent, under all SSRCs.
    pub const fn octets(&self) -> u64 {
        self.octets
    }

    /// Header of the next packet of sound, which holds `ticks` of media time in `payload_octets`.
    pub fn next_header(&mut self, ticks: u32, payload_octets: usize) -> Header {
        let header = self.header(self.payload_type, self.timestamp, self.talkspurt_begins);
        self.talkspurt_begins = false;
        self.timestamp = self.timestamp.plus(ticks);
        self.count(payload_octets);
        header
    }

    /// Writes the next packet of sound and returns its length.
    ///
    /// # Errors
    /// [`NoRoom`] when the buffer is too short; nothing is counted then.
    pub fn write_packet(&mut self, ticks: u32, payload: &[u8], buffer: &mut [u8]) -> Result<usize, NoRoom> {
        let need = HEADER_LEN + payload.len();
        let len = buffer.len();
        let slot = buffer.get_mut(..need).ok_or(NoRoom { len, need })?;
        let (head, body) = slot.split_at_mut(HEADER_LEN);
        head.copy_from_slice(&self.next_header(ticks, payload.len()).to_octets());
        body.copy_from_slice(payload);
        Ok(need)
    }

    /// Header of a telephone-event packet that is sent in place of `ticks` of sound. Its timestamp is the event's
    /// begin (RFC 4733 §2.2.1); the stream's own time goes on beneath it.
    pub fn next_event_header(
        &mut self,
        payload_type: PayloadType,
        event: &EventPacket,
        ticks: u32,
    ) -> Header {
        let header = self.header(payload_type, event.timestamp, event.marker);
        self.timestamp = self.timestamp.plus(ticks);
        self.count(event.payload.len());
        header
    }

    /// Header of a packet of comfort noise in place of `ticks` of sound (RFC 3389 §4). It opens no talkspurt; the next sound does.
    pub const fn next_noise_header(
        &mut self,
        payload_type: PayloadType,
        ticks: u32,
        payload_octets: usize,
    ) -> Header {
        let header = self.header(payload_type, self.timestamp, false);
        self.timestamp = self.timestamp.plus(ticks);
        self.talkspurt_begins = true;
        self.count(payload_octets);
        header
    }

    /// `ticks` of media time pass without a packet; the next packet begins a talkspurt.
    pub fn skip(&mut self, ticks: u32) {
        self.timestamp = self.timestamp.plus(ticks);
        self.talkspurt_begins = true;
    }

    /// Another payload type from the next packet on (a re-INVITE chose another codec); it begins a talkspurt.
    pub fn set_payload_type(&mut self, payload_type: PayloadType) {
        if payload_type != self.payload_type {
            self.payload_type = payload_type;
            self.talkspurt_begins = true;
        }
    }

    /// Another SSRC from the next packet on, since a peer uses ours (RFC 3550 §8.2). It begins a talkspurt; sequence and
    /// timestamp go on.
    pub const fn change_ssrc(&mut self, ssrc: Ssrc) {
        self.ssrc = ssrc;
        self.talkspurt_begins = true;
        self.earlier = (self.packets, self.octets);
    }

    /// The sender part of a report: wall-clock time `ntp` is media time [`Sender::timestamp`].
    pub const fn sender_info(&self, ntp: NtpTime) -> SenderInfo {
        SenderInfo {
            ntp,
            timestamp: self.timestamp,
            packets: (self.packets - self.earlier.0) as u32,
            octets: (self.octets - self.earlier.1) as u32,
        }
    }

    const fn header(&mut self, payload_type: PayloadType, timestamp: Timestamp, marker: bool) -> Header {
        let sequence = self.sequence;
        self.sequence = sequence.next();
        Header { marker, payload_type, sequence, timestamp, ssrc: self.ssrc }
    }

    const fn count(&mut self, payload_octets: usize) {
        self.packets += 1;
        self.octets += payload_octets as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Packet;

    fn sender() -> Sender {
        Sender::new(Ssrc(7), PayloadType::PCMU, SequenceNumber(65_534), Timestamp(u32::MAX - 200))
    }

    #[test]
    fn sequence_and_timestamp_wrap_and_only_the_first_packet_is_marked() {
        let mut sender = sender();
        let mut buffer = [0; 172];
        let mut seen = vec![];
        for _ in 0..4 {
            assert_eq!(sender.write_packet(160, &[0xFF; 160], &mut buffer), Ok(172));
            let header = Packet::parse(&buffer).unwrap().header;
            seen.push((header.sequence.0, header.timestamp.0, header.marker));
        }
        let t = u32::MAX - 200;
        assert_eq!(
            seen,
            [
                (65_534, t, true),
                (65_535, t + 160, false),
                (0, t.wrapping_add(320), false),
                (1, t.wrapping_add(480), false)
            ]
        );
        assert_eq!((sender.packets(), sender.octets()), (4, 640));
    }

    #[test]
    fn packet_after_a_silence_is_marked_and_has_the_time_that_passed() {
        let mut sender = sender();
        let first = sender.next_header(160, 160);
        sender.skip(160);
        sender.skip(160);
        let second = sender.next_header(160, 160);
        assert!(second.marker);
        assert_eq!(second.timestamp.distance_from(first.timestamp), 480);
        assert_eq!(second.sequence, first.sequence.next());
    }

    #[test]
    fn sound_after_comfort_noise_is_marked_and_the_noise_is_not() {
        let mut sender = sender();
        let first = sender.next_header(160, 160);
        let noise = sender.next_noise_header(PayloadType::PCMA, 160, 1);
        let second = sender.next_header(160, 160);
        assert!(!noise.marker && second.marker);
        assert_eq!((noise.payload_type, second.payload_type), (PayloadType::PCMA, PayloadType::PCMU));
        assert_eq!(second.timestamp.distance_from(first.timestamp), 320);
        assert_eq!(second.sequence.distance_from(first.sequence), 2);
    }

    #[test]
    fn new_payload_type_begins_a_talkspurt_and_keeps_the_numbers() {
        let mut sender = sender();
        let first = sender.next_header(160, 160);
        sender.set_payload_type(PayloadType::PCMU);
        assert!(!sender.next_header(160, 160).marker);
        sender.set_payload_type(PayloadType::PCMA);
        let third = sender.next_header(160, 160);
        assert!(third.marker);
        assert_eq!(third.payload_type, PayloadType::PCMA);
        assert_eq!(third.sequence.distance_from(first.sequence), 2);
    }

    #[test]
    fn new_ssrc_begins_a_talkspurt_and_its_reports_count_from_zero() {
        let mut sender = sender();
        let first = sender.next_header(160, 160);
        sender.change_ssrc(Ssrc(8));
        let second = sender.next_header(160, 160);
        assert!(second.marker && second.ssrc == Ssrc(8));
        assert_eq!(second.sequence, first.sequence.next());
        let info = sender.sender_info(NtpTime(0));
        assert_eq!((info.packets, info.octets, sender.packets()), (1, 160, 2));
    }

    #[test]
    fn short_buffer_is_refused_and_not_counted() {
        let mut sender = sender();
        assert_eq!(sender.write_packet(160, &[0; 160], &mut [0; 100]), Err(NoRoom { len: 100, need: 172 }));
        assert_eq!(sender.packets(), 0);
        assert_eq!(sender.next_header(160, 160).sequence, SequenceNumber(65_534));
    }
}
