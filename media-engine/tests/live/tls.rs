//! Agents behind `wss://`: a bot with a certificate of its own house, trusted or not.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tandem_api::engine::v1 as proto;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_tungstenite::tungstenite::Message;

use super::{close, on_both, open, start, wait_for, websocket};
use crate::phone::Phone;

/// A listener with a certificate for this name, and the certificate as a file.
pub(crate) struct House {
    pub(crate) acceptor: TlsAcceptor,
    pub(crate) ca: PathBuf,
    _folder: tempfile::TempDir,
}

impl House {
    fn of(name: &str) -> Self {
        Self::speaking(name, &[])
    }

    /// The same, which knows these protocols by ALPN.
    pub(crate) fn speaking(name: &str, protocols: &[&[u8]]) -> Self {
        let own = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        std::fs::write(&ca, own.cert.pem()).unwrap();
        let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), ca, _folder: folder }
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("wss://localhost:{}/talk", listener.local_addr().unwrap().port());
    (listener, url)
}

#[test]
fn an_agent_behind_tls_hears_and_is_heard_when_its_certificate_is_trusted() {
    let house = House::of("localhost");
    on_both(
        |config| config.agent_ca = Some(house.ca.clone()),
        |engine, mut client| {
            let acceptor = house.acceptor.clone();
            async move {
                let _engine = engine;
                let (listener, url) = listen().await;
                let phone = Phone::new();
                let request = open("a", &phone, websocket(url, proto::Dialect::Pcm));
                let opened = client.open_session(request).await.unwrap().into_inner();
                let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
                let mut bot = tokio_tungstenite::accept_async(stream).await.unwrap();
                start(&mut client, "a").await;
                let port = opened.local_port as u16;
                let talking = tokio::task::spawn_blocking(move || phone.talk_with(port, 50, 0x10));
                let (mut heard, mut is_told) = (0, false);
                while heard < 20 {
                    let message = tokio::time::timeout(Duration::from_secs(5), bot.next()).await.unwrap();
                    match message.unwrap().unwrap() {
                        Message::Text(text) => is_told |= text.contains("\"event\":\"start\""),
                        Message::Binary(audio) => {
                            assert_eq!(audio.len(), 640);
                            heard += 1;
                            // More than one record, and cut where TCP likes it.
                            bot.send(Message::binary(i16::MAX.to_le_bytes().repeat(320))).await.unwrap();
                        }
                        other => panic!("unexpected {other:?}"),
                    }
                }
                assert!(is_told);
                bot.send(Message::binary(i16::MAX.to_le_bytes().repeat(16_000))).await.unwrap();
                let loud = talking.await.unwrap();
                let loud = loud.iter().filter(|packet| packet.payload[80] == 0x80).count();
                assert!(loud >= 20, "{loud} packets of the agent");
                let stats = close(&mut client, "a").await;
                assert!(stats.agent_frames_out >= 20 && stats.agent_frames_in >= 20, "{stats:?}");
                while let Some(Ok(message)) = bot.next().await {
                    if let Message::Text(text) = message
                        && text.contains("\"stop\"")
                    {
                        return;
                    }
                }
                panic!("it was not told that the call is over");
            }
        },
    );
}

#[test]
fn a_certificate_that_is_not_trusted_or_of_another_name_is_refused_with_the_reason() {
    // The stranger has the name of the house and a key of its own.
    let (house, stranger, other) = (House::of("localhost"), House::of("localhost"), House::of("other.test"));
    for (shown, trusted, wanted) in
        [(&stranger, &house, "BadSignature"), (&other, &other, "not valid for name")]
    {
        on_both(
            |config| config.agent_ca = Some(trusted.ca.clone()),
            |engine, mut client| {
                let acceptor = shown.acceptor.clone();
                async move {
                    let _engine = engine;
                    let (listener, url) = listen().await;
                    let phone = Phone::new();
                    let mut events =
                        client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
                    client
                        .open_session(open("a", &phone, websocket(url, proto::Dialect::Pcm)))
                        .await
                        .unwrap();
                    let accepted = acceptor.accept(listener.accept().await.unwrap().0).await;
                    assert!(accepted.is_err(), "we do not go on");
                    let reason = wait_for(&mut events, |event| match event {
                        proto::event::Event::AgentFailed(failed) => Some(failed.reason.clone()),
                        _ => None,
                    });
                    let reason = reason.await;
                    assert!(reason.starts_with("agent's certificate is refused"), "{reason}");
                    assert!(reason.contains(wanted), "{reason}");
                    close(&mut client, "a").await;
                }
            },
        );
    }
}

#[test]
fn an_agent_without_tls_behind_wss_is_refused() {
    on_both(
        |_| {},
        |engine, mut client| async move {
            use tokio::io::AsyncWriteExt;
            let _engine = engine;
            let (listener, url) = listen().await;
            let phone = Phone::new();
            let mut events = client.events(proto::EventsRequest::default()).await.unwrap().into_inner();
            client.open_session(open("a", &phone, websocket(url, proto::Dialect::Pcm))).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
            let reason = wait_for(&mut events, |event| match event {
                proto::event::Event::AgentFailed(failed) => Some(failed.reason.clone()),
                _ => None,
            });
            let reason = reason.await;
            assert!(reason.starts_with("agent's TLS failed"), "{reason}");
            close(&mut client, "a").await;
        },
    );
}
