//! How a conversation reaches its engine: by a WebSocket of its own, or as a call on a link.
//!
//! Both carry the `pcm` agent protocol, so a session hears by an [`Ear`] and speaks by a [`Mouth`] and does not know which.

use bytes::Bytes;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use tandem_stream::agent::ToAgent;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::link;
use crate::outbox::{Frame, Outbox};

/// A WebSocket to an engine.
pub type Socket = WebSocketStream<TcpStream>;

/// What the engine says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// Caller audio, L16 little-endian.
    Audio(Bytes),
    /// An event.
    Event(ToAgent),
    /// Something that cannot be read.
    Malformed,
}

/// The hearing half.
#[derive(Debug)]
pub enum Ear {
    /// Of a WebSocket.
    WebSocket(SplitStream<Socket>),
    /// Of a call on a link.
    Link(link::Ear),
}

/// The speaking half.
#[derive(Debug)]
pub enum Mouth {
    /// Of a WebSocket.
    WebSocket(SplitSink<Socket, Message>),
    /// Of a call on a link.
    Link(link::Mouth),
}

/// Both halves of a WebSocket.
pub fn split(socket: Socket) -> (Ear, Mouth) {
    let (sink, stream) = socket.split();
    (Ear::WebSocket(stream), Mouth::WebSocket(sink))
}

impl Ear {
    /// The next thing; `None`: the connection is over. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Incoming> {
        match self {
            Self::Link(ear) => ear.next().await,
            Self::WebSocket(stream) => loop {
                return Some(match stream.next().await?.ok()? {
                    Message::Binary(audio) => Incoming::Audio(audio),
                    Message::Text(text) => match ToAgent::parse(&text) {
                        Ok(Some(event)) => Incoming::Event(event),
                        Ok(None) => continue,
                        Err(_) => Incoming::Malformed,
                    },
                    Message::Close(_) => return None,
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                });
            },
        }
    }
}

impl Mouth {
    /// Says what comes to the outbox until that is closed, then good-bye.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn speak(self, outbox: Outbox) -> Result<(), WsError> {
        match self {
            Self::Link(mouth) => {
                mouth.speak(outbox).await;
                Ok(())
            }
            Self::WebSocket(mut sink) => {
                while let Some(frame) = outbox.next().await {
                    let message = match frame {
                        Frame::Audio { pcm, .. } => Message::Binary(pcm),
                        Frame::Event(event) => Message::text(event.to_json()),
                    };
                    sink.send(message).await?;
                }
                sink.close().await
            }
        }
    }
}
