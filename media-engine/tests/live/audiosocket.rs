//! An AudioSocket server as the agent, on the real kernel; its frames are taken apart by hand.

use std::time::Duration;

use tandem_api::engine::v1 as proto;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{close, on_both, open, start, wait_for};
use crate::phone::Phone;

const ID: &str = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";

async fn frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let read = async {
        let mut header = [0; 3];
        stream.read_exact(&mut header).await.unwrap();
        let mut payload = vec![0; usize::from(u16::from_be_bytes([header[1], header[2]]))];
        stream.read_exact(&mut payload).await.unwrap();
        (header[0], payload)
    };
    tokio::time::timeout(Duration::from_secs(5), read).await.expect("a frame comes")
}

#[test]
fn an_audiosocket_server_hears_keys_and_speech_is_heard_and_hangs_up() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            let _engine = engine;
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let agent = proto::AudioSocketAgent {
                address: listener.local_addr().unwrap().to_string(),
                uuid: ID.into(),
                ..Default::default()
            };
            let agent =
                proto::Agent { target: Some(proto::agent::Target::Audiosocket(agent)), ..Default::default() };
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            let opened = client.open_session(open("a", &phone, agent)).await.unwrap().into_inner();
            let (mut stream, _) = listener.accept().await.unwrap();
            let (kind, id) = frame(&mut stream).await;
            assert_eq!((kind, &id[..2], id.len()), (0x01, &[0x6b, 0xa7][..], 16), "the call's id is first");
            start(&mut client, "a").await;
            let port = opened.local_port as u16;
            phone.press(port, 5);
            let talking = tokio::task::spawn_blocking(move || phone.talk_with(port, 150, 0x10));
            let (mut keys, mut heard) = (0, 0);
            while heard < 20 || keys < 1 {
                match frame(&mut stream).await {
                    (0x03, key) => {
                        assert_eq!(key, b"5");
                        keys += 1;
                    }
                    (0x10, samples) => {
                        assert_eq!(samples.len(), 320);
                        heard += 1;
                    }
                    other => panic!("unexpected {other:?}"),
                }
            }
            // Half a second in one burst, then good-bye: it is paced, and heard to its end.
            for _ in 0..25 {
                let sound = i16::MAX.to_le_bytes().repeat(160);
                stream.write_all(&[&[0x10, 0x01, 0x40], &sound[..]].concat()).await.unwrap();
            }
            stream.write_all(&[0, 0, 0]).await.unwrap();
            let after = wait_for(&mut events, |event| match event {
                proto::event::Event::AgentHangup(hangup) => Some(hangup.after.clone()),
                _ => None,
            });
            assert_eq!(after.await, "drain");
            let loud = talking.await.unwrap().iter().filter(|packet| packet.payload == [0x80; 160]).count();
            assert_eq!(loud, 25);
            close(&mut client, "a").await;
        },
    );
}
