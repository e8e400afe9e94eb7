//! Audio passes every dialect without touching the allocator.

use tandem_audio::format::SampleRate;
use tandem_stream::agent;
use tandem_stream::link;
use tandem_stream::provider::registry::PROVIDERS;
use tandem_stream::provider::{Event, MediaStream, Setup};
use tandem_stream::twilio::{self, BotWriter, FromBot, StreamIds, StreamWriter};
use tandem_stream::websocket::{FrameReader, Message, Opcode, Role, write_frame, write_frame_with};

/// One second of frames.
const FRAMES: u64 = 50;

fn allocations(mut frame: impl FnMut(u64)) -> u64 {
    frame(0);
    allocation_counter::measure(|| (1..=FRAMES).for_each(&mut frame)).count_total
}

#[test]
fn pcm_audio_is_written_and_read_without_allocation() {
    let samples = [321i16; agent::FRAME_SAMPLES];
    let mut reader = FrameReader::new(Role::Server);
    let mut wire = [0; 1024];
    let mut heard = 0;
    let count = allocations(|n| {
        let mask = (n as u32).to_be_bytes();
        let len = write_frame_with(&mut wire, Opcode::Binary, Some(mask), agent::FRAME_BYTES, |room| {
            agent::write_audio(&samples, room);
        })
        .expect("the frame fits");
        // In two segments, as TCP likes it.
        for segment in [&wire[..300], &wire[300..len]] {
            assert_eq!(reader.push(segment), segment.len());
            while let Some(message) = reader.poll_message().expect("the frame is sound") {
                let Message::Binary(payload) = message else { panic!("audio is binary") };
                heard += agent::read_audio(payload)
                    .expect("whole samples")
                    .filter(|sample| *sample == 321)
                    .count();
            }
        }
    });
    assert_eq!(heard, (FRAMES as usize + 1) * agent::FRAME_SAMPLES);
    assert_eq!(count, 0);
}

#[test]
fn media_streams_audio_is_written_without_allocation() {
    let ids = StreamIds { stream_sid: "MZ1".into(), call_sid: "CA1".into(), account_sid: "AC1".into() };
    let mut stream = StreamWriter::new(ids);
    let mut wire = [0; 1024];
    let count = allocations(|n| {
        let len = stream.media_len(n * 20, twilio::FRAME_BYTES);
        let written = write_frame_with(&mut wire, Opcode::Text, Some([1, 2, 3, 4]), len, |room| {
            assert_eq!(stream.media(n * 20, &[0x7F; twilio::FRAME_BYTES], room), Ok(len));
        });
        assert!(written.is_ok_and(|octets| octets > len));
    });
    assert_eq!(count, 0);
}

#[test]
fn media_streams_audio_is_read_without_allocation() {
    let mut text = [0; 1024];
    let len = BotWriter::new("MZ1").media(&[0x55; twilio::FRAME_BYTES], &mut text).expect("the message fits");
    let mut wire = [0; 1024];
    let len = write_frame(&mut wire, Opcode::Text, None, &text[..len]).expect("the frame fits");
    let mut reader = FrameReader::new(Role::Client);
    let mut scratch = [0; 960];
    let mut heard = 0;
    let count = allocations(|_| {
        reader.push(&wire[..len]);
        let message = reader.poll_message().expect("the frame is sound").expect("the frame is whole");
        let Message::Text(text) = message else { panic!("media is text") };
        let Ok(Some(FromBot::Media { payload })) = FromBot::parse(text) else { panic!("this is media") };
        heard += twilio::decode_payload(&payload, &mut scratch, |_| {}).expect("the payload is sound");
    });
    assert_eq!(heard, (FRAMES as usize + 1) * twilio::FRAME_BYTES);
    assert_eq!(count, 0);
}

#[test]
fn link_audio_is_written_and_read_without_allocation() {
    let samples = [321i16; agent::FRAME_SAMPLES];
    let mut decoder = link::Decoder::default();
    let mut wire = [0; 4 * 1024];
    let mut heard = 0;
    let count = allocations(|n| {
        let mut len = 0;
        for call in 0..3 {
            let room = &mut wire[len..];
            len += link::write_audio(room, call + n as u32, agent::FRAME_BYTES, |body| {
                agent::write_audio(&samples, body);
            })
            .expect("the frame fits");
        }
        // In two segments, as TCP likes it.
        for segment in [&wire[..700], &wire[700..len]] {
            let taken = decoder.handle_bytes(segment, |_, message| {
                heard += usize::from(matches!(message, link::Message::Audio(audio) if audio.len() == 640));
                Ok(())
            });
            assert_eq!(taken, Ok(()));
        }
    });
    assert_eq!(heard, 3 * (FRAMES as usize + 1));
    assert_eq!(count, 0);
}

#[test]
fn providers_audio_is_read_and_written_without_allocation() {
    #[expect(clippy::disallowed_methods, reason = "a test is its own shell")]
    let mut now = std::time::Instant::now();
    let starts = [
        r#"{"event":"start","start":{"streamSid":"MZ1"}}"#,
        r#"{"event":"websocket:connected","content-type":"audio/l16;rate=8000"}"#,
        r#"{"event":"start","start":{"stream_sid":"MZ1"}}"#,
        r#"{"event":"MEDIA_START","format":"slin","optimal_frame_size":320}"#,
        r#"{"event":"start","start":{"media_format":{"encoding":"L16","sample_rate":8000}}}"#,
        r#"{"event":"start","start":{"streamId":"MZ1"}}"#,
    ];
    for (provider, start) in PROVIDERS.into_iter().zip(starts) {
        let mut stream = MediaStream::new(provider, Setup::new(SampleRate::Hz8000), now);
        let mut scratch = [0; 960];
        stream.handle_text(start, now, &mut scratch, |_| {});
        assert!(stream.format().is_some(), "{}", provider.name);
        let payload = "AQID".repeat(40);
        let media: Vec<String> = (1..=FRAMES + 1)
            .map(|n| {
                let at = n * 20;
                format!(r#"{{"event":"media","media":{{"track":"inbound","chunk":"{n}","timestamp":"{at}","payload":"{}"}}}}"#,
                    payload)
            })
            .collect();
        let mut out = Vec::with_capacity(16 * 1024);
        let (mut heard, mut said) = (0, 0);
        let count = allocations(|n| {
            now += std::time::Duration::from_millis(20);
            let mut take = |event: Event<'_>| heard += usize::from(matches!(event, Event::Audio { .. }));
            if matches!(provider.name, "vonage" | "asterisk") {
                stream.handle_binary(&[1; 320], &mut take);
            } else {
                stream.handle_text(&media[n as usize], now, &mut scratch, &mut take);
            }
            out.clear();
            assert!(stream.audio(&[7; 330], now, &mut out));
            said += out.len();
        });
        assert_eq!(heard, FRAMES as usize + 1, "{}", provider.name);
        assert!(said > FRAMES as usize * 330, "{}", provider.name);
        assert_eq!(count, 0, "{}", provider.name);
    }
}
