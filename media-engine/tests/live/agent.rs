//! A bot: a WebSocket server from another house (tungstenite), so that our client is not its own judge.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

pub(crate) struct Bot {
    listener: TcpListener,
    stream: Option<WebSocketStream<TcpStream>>,
}

impl Bot {
    pub(crate) async fn listen() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap(), stream: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("ws://{}/talk?x=1", self.listener.local_addr().unwrap())
    }

    pub(crate) async fn accept(&mut self) {
        let (stream, _) = self.listener.accept().await.unwrap();
        self.stream = Some(tokio_tungstenite::accept_async(stream).await.unwrap());
    }

    async fn next(&mut self) -> Option<Message> {
        let stream = self.stream.as_mut().expect("accepted");
        let next = tokio::time::timeout(Duration::from_secs(5), stream.next());
        next.await.expect("a message comes").and_then(Result::ok)
    }

    pub(crate) async fn text(&mut self) -> String {
        loop {
            if let Message::Text(text) = self.next().await.expect("the stream goes on") {
                return text.to_string();
            }
        }
    }

    pub(crate) async fn text_with(&mut self, part: &str) -> String {
        loop {
            let text = self.text().await;
            if text.contains(part) {
                return text;
            }
        }
    }

    pub(crate) async fn binary(&mut self) -> Vec<u8> {
        loop {
            if let Message::Binary(octets) = self.next().await.expect("the stream goes on") {
                return octets.to_vec();
            }
        }
    }

    pub(crate) async fn send_text(&mut self, text: &str) {
        self.stream.as_mut().expect("accepted").send(Message::text(text)).await.unwrap();
    }

    pub(crate) async fn send_binary(&mut self, octets: Vec<u8>) {
        self.stream.as_mut().expect("accepted").send(Message::binary(octets)).await.unwrap();
    }

    /// Waits for a close frame.
    pub(crate) async fn closed(&mut self) {
        while let Some(message) = self.next().await {
            if matches!(message, Message::Close(_)) {
                return;
            }
        }
        panic!("the stream broke without a close frame");
    }
}
