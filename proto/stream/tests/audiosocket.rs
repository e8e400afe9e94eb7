//! The AudioSocket server against an Asterisk that is as strict as the real one (C21 to C23).

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use proptest::prelude::*;
use tandem_stream::audiosocket::{
    End, Format, ID_WITHIN, Message, NotAFrame, PAYLOAD_MAX, Rate, Server, ServerEvent, TooLong, append,
};

const ID: [u8; 16] = *b"\x6b\xa7\xb8\x10\x9d\xad\x11\xd1\x80\xb4\x00\xc0\x4f\xd4\x30\xc8";
const MS: Duration = Duration::from_millis(1);

#[expect(clippy::disallowed_methods, reason = "a test is its own shell")]
fn t0() -> Instant {
    Instant::now()
}

fn wire(messages: &[Message<'_>]) -> Vec<u8> {
    let mut wire = Vec::new();
    messages.iter().for_each(|message| append(&mut wire, message));
    wire
}

fn audio(rate: Rate, samples: &[u8]) -> Message<'_> {
    Message::Audio { rate, samples }
}

fn events(server: &mut Server, bytes: &[u8], now: Instant) -> Vec<String> {
    let mut seen = Vec::new();
    server.handle_bytes(bytes, now, |event| {
        seen.push(match event {
            ServerEvent::Audio(sound) => format!("audio {}", sound.len()),
            ServerEvent::Id(id) => format!("id {}", id == ID),
            other => format!("{other:?}"),
        });
    });
    seen
}

fn live(now: Instant) -> Server {
    let mut server = Server::new(now);
    assert_eq!(events(&mut server, &wire(&[Message::Id(ID)]), now), ["id true"]);
    server
}

/// How res_audiosocket.c reads, a write of the peer's at a time: what is not whole after one write has timed out.
fn asterisk_reads(mut write: &[u8]) -> Result<Vec<(u8, usize)>, String> {
    let mut frames = Vec::new();
    while !write.is_empty() {
        let (header, rest) = write.split_first_chunk::<3>().ok_or("header in two writes")?;
        let len = usize::from(u16::from_be_bytes([header[1], header[2]]));
        match header[0] {
            0x00 => return Ok([frames, vec![(0x00, 0)]].concat()),
            0x10..=0x18 if len == 0 => return Err("audio without a payload".into()),
            0x10..=0x18 => {}
            kind => return Err(format!("type {kind:#04x}")),
        }
        let rest = rest.split_at_checked(len).ok_or("poll timed out while waiting for data")?.1;
        frames.push((header[0], len));
        write = rest;
    }
    Ok(frames)
}

#[test]
fn c21_frames_are_read_however_asterisk_or_the_network_cuts_them() {
    let now = t0();
    let sound = [7; 320];
    let all = wire(&[
        Message::Id(ID),
        audio(Rate::Hz8000, &sound),
        Message::Dtmf(b'5'),
        audio(Rate::Hz8000, &sound),
    ]);
    let format = format!("{:?}", ServerEvent::Format(Format::TELEPHONE));
    let expected = ["id true", &format, "audio 320", "Dtmf(53)", "audio 320"];
    for cut in [1, 2, 3, 7, 19, 100, all.len()] {
        let mut server = Server::new(now);
        let seen: Vec<String> = all.chunks(cut).flat_map(|piece| events(&mut server, piece, now)).collect();
        assert_eq!(seen, expected, "in pieces of {cut}");
        assert_eq!(server.counters().audio_in, 2);
    }
}

#[test]
fn c22_asterisk_takes_whatever_we_write() {
    let now = t0();
    for (rate, octets, kind) in [
        (Rate::Hz8000, 320, 0x10),
        (Rate::Hz12000, 480, 0x11),
        (Rate::Hz16000, 640, 0x12),
        (Rate::Hz24000, 960, 0x13),
        (Rate::Hz44100, 1_764, 0x15),
        (Rate::Hz48000, 1_920, 0x16),
        (Rate::Hz192000, 7_680, 0x18),
    ] {
        let mut server = live(now);
        // The first frame can leave with the UUID, with nothing heard yet: no need to wait for the 100 ms to pass.
        let mut out = Vec::new();
        server.write_silence(&mut out);
        assert_eq!(asterisk_reads(&out), Ok(vec![(0x10, 320)]));
        events(&mut server, &wire(&[audio(rate, &vec![1; octets])]), now);
        out.clear();
        server.write(&vec![2; octets], &mut out).unwrap();
        assert_eq!(asterisk_reads(&out), Ok(vec![(kind, octets)]), "answered in the type it spoke");
        for wrong in [0, 1, octets - 2, octets + 2, octets * 2] {
            let error = server.write(&vec![0; wrong], &mut out);
            assert_eq!(error, Err(NotAFrame { len: wrong, need: octets }));
        }
        out.clear();
        server.hangup(&mut out);
        assert_eq!(asterisk_reads(&out), Ok(vec![(0x00, 0)]));
        out.clear();
        server.write_silence(&mut out);
        server.hangup(&mut out);
        assert!(out.is_empty(), "nothing follows a hang-up");
    }
    // The reader that we are held to refuses what the real one refuses.
    for bad in
        [&[0x10, 1, 0x40][..], &[0x10, 0], &[0x10, 0, 0], &[0x01, 0, 0], &[0x03, 0, 1, b'5'], &[0xFF, 0, 0]]
    {
        assert!(asterisk_reads(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn c23_a_connection_without_a_uuid_is_a_stranger() {
    let now = t0();
    let mut seen = Vec::new();
    Server::new(now).handle_closed(|event| seen.push(format!("{event:?}")));
    let mut silent = Server::new(now);
    assert_eq!(silent.poll_timeout(), Some(now + ID_WITHIN));
    silent.handle_timeout(now + ID_WITHIN - MS, |event| panic!("{event:?} is early"));
    silent.handle_timeout(now + ID_WITHIN, |event| seen.push(format!("{event:?}")));
    live(now).handle_closed(|event| seen.push(format!("{event:?}")));
    assert_eq!(seen, ["End(Stranger)", "End(NoId)", "End(Closed)"]);
    assert_eq!(live(now).poll_timeout(), None);
    // Before the UUID nothing is written and nothing heard.
    let (mut server, mut out) = (Server::new(now), Vec::new());
    server.write_silence(&mut out);
    assert!(out.is_empty());
    assert_eq!(events(&mut server, &wire(&[audio(Rate::Hz8000, &[0; 320])]), now), ["Ignored"]);
}

#[test]
fn old_asterisks_rate_is_deduced_from_the_pace_of_its_sound() {
    for (octets, ms, hz) in [
        (320, 20, 8_000),
        (640, 40, 8_000),
        (960, 60, 8_000),
        (480, 20, 12_000),
        (640, 20, 16_000),
        (1_280, 40, 16_000),
        (960, 20, 24_000),
        (1_764, 20, 44_100),
        (1_920, 20, 48_000),
    ] {
        let mut now = t0();
        let mut server = live(now);
        let frame = wire(&[audio(Rate::Hz8000, &vec![0; octets])]);
        let mut formats = 0;
        for n in 0..11 {
            if n < 10 && octets > 320 {
                assert_eq!((server.known_format(), server.format()), (None, Format::TELEPHONE));
            }
            // The network is not even: every other one is late.
            let at = now + if n % 2 == 1 { 5 * MS } else { Duration::ZERO };
            formats +=
                events(&mut server, &frame, at).iter().filter(|event| event.contains("Format")).count();
            now += ms * MS;
        }
        assert_eq!(formats, 1, "{octets} octets every {ms} ms");
        assert_eq!(server.format(), Format { label: Rate::Hz8000, hz });
        let mut out = Vec::new();
        let ours = server.format().frame_octets();
        server.write(&vec![0; ours], &mut out).unwrap();
        assert_eq!(asterisk_reads(&out), Ok(vec![(0x10, ours)]), "labelled as it labels");
        // Another label later is another pitch.
        assert_eq!(events(&mut server, &wire(&[audio(Rate::Hz16000, &[0; 640])]), now), ["Ignored"]);
    }
}

#[test]
fn sound_that_the_network_held_back_is_judged_by_what_follows() {
    let mut now = t0();
    let mut server = live(now);
    let frame = wire(&[audio(Rate::Hz8000, &[0; 640])]);
    // Ten frames of 20 ms at once.
    for _ in 0..11 {
        events(&mut server, &frame, now);
    }
    assert_eq!(server.known_format(), None);
    for _ in 0..10 {
        now += 20 * MS;
        events(&mut server, &frame, now);
    }
    assert_eq!(server.known_format().map(|format| format.hz), Some(16_000));
    // What has no pace is what it is labelled.
    let mut server = live(now);
    for _ in 0..51 {
        events(&mut server, &frame, now);
    }
    assert_eq!(server.known_format(), Some(Format::TELEPHONE));
}

#[test]
fn mu_law_under_the_label_of_linear_sound_is_told_once() {
    for (ms, is_mu_law) in [(20, true), (10, false), (40, false)] {
        let mut now = t0();
        let mut server = live(now);
        let mut told = 0;
        for _ in 0..200 {
            let seen = events(&mut server, &wire(&[audio(Rate::Hz8000, &[0xFF; 160])]), now);
            told += seen.iter().filter(|event| *event == "Mislabelled").count();
            now += ms * MS;
        }
        assert_eq!(told, usize::from(is_mu_law), "frames every {ms} ms");
    }
    // Whole frames in between are no mu-law.
    let mut now = t0();
    let mut server = live(now);
    for n in 0..200 {
        let sound = vec![0; if n % 20 == 0 { 320 } else { 160 }];
        assert!(
            !events(&mut server, &wire(&[audio(Rate::Hz8000, &sound)]), now)
                .contains(&"Mislabelled".to_owned())
        );
        now += 20 * MS;
    }
}

#[test]
fn what_no_asterisk_sends_is_tolerated() {
    let now = t0();
    let mut server = live(now);
    let odd = [&[0x02, 0, 0][..], &[0x10, 0, 0], &[0x03, 0, 1, b'x'], &wire(&[Message::Id(ID)])].concat();
    assert_eq!(events(&mut server, &odd, now), ["Ignored"; 4]);
    assert_eq!(server.counters().ignored, 4);
    assert_eq!(events(&mut server, &[0xFF, 0, 1, 4, 0x03, 0, 1, b'5'], now), ["End(Said(Some(4)))"]);
    assert!(
        events(&mut server, &wire(&[Message::Dtmf(b'5')]), now).is_empty(),
        "nothing comes after the end"
    );
    let ended = format!("End({:?})", End::TooLong(TooLong(PAYLOAD_MAX + 1)));
    assert_eq!(events(&mut live(now), &[0x10, 0x1E, 0x01], now), [ended]);
}

proptest! {
    #[test]
    fn whatever_asterisk_sends_we_write_legal_frames(octets: Vec<u8>, cut in 1usize..40, is_live: bool) {
        let now = t0();
        let mut server = if is_live { live(now) } else { Server::new(now) };
        for piece in octets.chunks(cut) {
            events(&mut server, piece, now);
            let mut out = Vec::new();
            server.write_silence(&mut out);
            prop_assert!(asterisk_reads(&out).is_ok_and(|frames| frames.len() <= 1));
        }
    }
}
