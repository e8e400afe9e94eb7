//! Opus against ffmpeg's own decoder and its libopus, each way: as near to what was said as they come, within 0.1 dB.
//!
//! Needs `ffmpeg` on the PATH (`scripts/setup.sh test` installs it); without it the tests fail.
#![allow(clippy::unwrap_used)]

mod ffmpeg;

use ffmpeg::{ffmpeg, octets, samples};
use tandem_audio::format::{Ptime, SampleRate};
use tandem_audio::opus::{MAX_FRAME_OCTETS, OpusDecoder, OpusEncoder, OpusSettings};
use tandem_audio::tone::Sine;

const RATE: SampleRate = SampleRate::Hz48000;
const FRAME: usize = RATE.samples(Ptime::MS_20);
const FRAMES: usize = 150;

/// Three seconds of chords that come and go.
fn signal() -> Vec<i16> {
    let mut signal = vec![0; FRAMES * FRAME];
    for (n, part) in signal.chunks_mut(10 * FRAME).enumerate() {
        for hz in [180.0, 410.0, 1_130.0, 2_700.0] {
            Sine::new(hz + 17.0 * n as f64, 3_500, RATE).add(part);
        }
    }
    signal
}

/// Decibels by which `heard` is nearer to `said` than silence is, at the delay at which it is nearest.
fn snr_db(said: &[i16], heard: &[i16]) -> f64 {
    let at = |delay: usize| {
        let pairs =
            || said[FRAME..].iter().zip(&heard[FRAME + delay..]).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let power: f64 = pairs().map(|(a, _)| a * a).sum();
        let error: f64 = pairs().map(|(a, b)| (a - b) * (a - b)).sum();
        10.0 * (power / error).log10()
    };
    (0..700).map(at).fold(f64::MIN, f64::max)
}

/// Checksum of an Ogg page (RFC 3533 §6).
fn checksum(page: &[u8]) -> u32 {
    page.iter().fold(0_u32, |crc, &octet| {
        (0..8).fold(crc ^ u32::from(octet) << 24, |crc, _| {
            crc << 1 ^ if crc >> 31 == 1 { 0x04c1_1db7 } else { 0 }
        })
    })
}

/// Packets as an Ogg file, one a page (RFC 7845).
fn ogg(packets: &[Vec<u8>]) -> Vec<u8> {
    let mut head = b"OpusHead\x01\x01".to_vec();
    head.extend([0, 0]);
    head.extend(48_000_u32.to_le_bytes());
    head.extend([0, 0, 0]);
    let tags = b"OpusTags\x00\x00\x00\x00\x00\x00\x00\x00".to_vec();
    let mut file = Vec::new();
    let all = [head, tags].into_iter().chain(packets.iter().cloned());
    for (n, packet) in all.enumerate() {
        let kind = if n == 0 {
            2
        } else if n == packets.len() + 1 {
            4
        } else {
            0
        };
        let mut page = b"OggS\x00".to_vec();
        page.push(kind);
        page.extend((n.saturating_sub(1) as u64 * FRAME as u64).to_le_bytes());
        page.extend(7_u32.to_le_bytes());
        page.extend((n as u32).to_le_bytes());
        page.extend([0; 4]);
        page.push((packet.len() / 255 + 1) as u8);
        page.extend(vec![255; packet.len() / 255]);
        page.push((packet.len() % 255) as u8);
        page.extend(packet);
        let crc = checksum(&page);
        page[22..26].copy_from_slice(&crc.to_le_bytes());
        file.extend(page);
    }
    file
}

/// The packets of an Ogg file after its two headers.
fn packets(file: &[u8]) -> Vec<Vec<u8>> {
    let (mut packets, mut packet, mut rest) = (Vec::new(), Vec::new(), file);
    while rest.len() > 27 {
        assert_eq!(&rest[..4], b"OggS");
        let lacing = &rest[27..27 + usize::from(rest[26])];
        let mut body = &rest[27 + lacing.len()..];
        for &len in lacing {
            packet.extend(&body[..usize::from(len)]);
            body = &body[usize::from(len)..];
            if len < 255 {
                packets.push(std::mem::take(&mut packet));
            }
        }
        rest = body;
    }
    packets.split_off(2)
}

fn decode(packets: &[Vec<u8>]) -> Vec<i16> {
    let mut decoder = OpusDecoder::new(RATE);
    let mut heard = Vec::new();
    let mut samples = vec![0; 6 * FRAME];
    for packet in packets {
        let len = decoder.decode(packet, &mut samples);
        assert_eq!(len, FRAME);
        heard.extend(&samples[..len]);
    }
    heard
}

/// ffmpeg's decoder of that name: `opus` is its own, `libopus` is the library.
fn decode_theirs(decoder: &str, packets: &[Vec<u8>]) -> Vec<i16> {
    samples(&ffmpeg(
        &["-c:a", decoder, "-f", "ogg", "-i", "-", "-ar", "48000", "-f", "s16le", "-"],
        ogg(packets),
    ))
}

/// Speech's own mode (SILK) and music's (CELT), by what each is given to spend. ffmpeg's own decoder resamples SILK's sound
/// in a way of its own, a fraction of a sample later, so that only the library's says what libopus 1.3 hears there.
const MODES: [(u32, &[&str]); 2] = [(24_000, &["libopus"]), (96_000, &["libopus", "opus"])];

fn compare(said: &[i16], packets: &[Vec<u8>], decoders: &[&str]) {
    let ours = snr_db(said, &decode(packets));
    assert!(ours > 8.0, "{ours:.2} dB");
    for decoder in decoders {
        let theirs = snr_db(said, &decode_theirs(decoder, packets));
        assert!((ours - theirs).abs() <= 0.1, "{ours:.2} dB, by ffmpeg's {decoder} {theirs:.2} dB");
    }
}

#[test]
fn what_we_encode_is_heard_by_ffmpeg_as_by_us() {
    let said = signal();
    for (bitrate, decoders) in MODES {
        // FEC is SILK's own.
        let settings =
            OpusSettings { bitrate: Some(bitrate), fec: bitrate < 50_000, ..OpusSettings::default() };
        let mut encoder = OpusEncoder::new(RATE, settings);
        let encode = |frame: &[i16]| {
            let mut payload = [0; MAX_FRAME_OCTETS];
            let len = encoder.encode(frame, &mut payload);
            payload[..len].to_vec()
        };
        compare(&said, &said.chunks(FRAME).map(encode).collect::<Vec<_>>(), decoders);
    }
}

#[test]
fn what_ffmpeg_encodes_is_heard_by_us_as_by_ffmpeg() {
    let said = signal();
    for (bitrate, decoders) in MODES {
        let pcm = ["-f", "s16le", "-ar", "48000", "-ac", "1", "-i", "-"];
        let bitrate = bitrate.to_string();
        let how = ["-c:a", "libopus", "-b:a", &bitrate, "-application", "voip", "-page_duration", "20000"];
        let file = ffmpeg(&[&pcm[..], &how, &["-f", "ogg", "-"]].concat(), octets(&said));
        let packets = packets(&file);
        assert!(packets.len() >= FRAMES);
        compare(&said, &packets, decoders);
    }
}
