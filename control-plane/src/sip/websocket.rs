//! SIP over WebSocket (RFC 7118): how browsers reach us.
//!
//! ```text
//!   GET … Sec-WebSocket-Protocol: sip ──▶ 101, or 400 without that subprotocol
//!   one text or binary message = one SIP message; CRLF keep-alives are the endpoint's to answer
//!   PING of ours every half minute: keeps the NATs between us open, and finds browsers that are gone
//! ```
//!
//! Close codes: 1000 when we have no more use for it, 1001 when nothing was heard, 1002 and 1009 for what breaks the
//! protocol or [`MESSAGE_LEN_MAX`].

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tandem_sip::Flow;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at, timeout};
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

use super::connection::{FIRST_BYTES_MAX, Out, PATIENCE};
use super::counters::NetCounters;
use super::transport::Arrival;

/// Longest message, as over any transport. Longer: close code 1009.
const MESSAGE_LEN_MAX: usize = tandem_sip::parse::MAX_MESSAGE_LEN;
/// Octets that wait for a slow browser. More: it is closed.
const WRITE_BUFFER_MAX: usize = 4 * MESSAGE_LEN_MAX;
/// Between our pings: below the idle minute of common proxies. Nothing heard between two of them: closed.
const PING_EVERY: Duration = Duration::from_secs(30);
/// The subprotocol (RFC 7118 §4.1).
const SUBPROTOCOL: &str = "sip";

/// The server's side of the handshake.
pub(super) async fn accept<S>(stream: S) -> Result<WebSocketStream<S>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_LEN_MAX))
        .max_frame_size(Some(MESSAGE_LEN_MAX))
        .max_write_buffer_size(WRITE_BUFFER_MAX);
    accept_hdr_async_with_config(stream, choose_subprotocol, Some(config)).await
}

#[expect(clippy::result_large_err, reason = "the signature is tungstenite's")]
fn choose_subprotocol(request: &Request, mut response: Response) -> Result<Response, ErrorResponse> {
    let offered = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let mut offered =
        offered.iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    if !offered.any(|name| name.trim().eq_ignore_ascii_case(SUBPROTOCOL)) {
        let text = "SIP over WebSocket: ask for the subprotocol \"sip\" (RFC 7118)\n".to_owned();
        let mut refusal = ErrorResponse::new(Some(text));
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        return Err(refusal);
    }
    response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    Ok(response)
}

/// Reads and writes until either side ends it.
pub(super) async fn serve<S>(
    mut socket: WebSocketStream<S>,
    flow: Flow,
    mut writes: mpsc::Receiver<Out>,
    arrivals: &mpsc::Sender<Arrival>,
    counters: &NetCounters,
) where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut pings = interval_at(Instant::now() + PING_EVERY, PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (opened, mut heard, mut has_spoken) = (Instant::now(), true, false);
    let code = loop {
        tokio::select! {
            out = writes.recv() => match out {
                Some(Out::Message(bytes)) => {
                    if !send(&mut socket, message(bytes)).await {
                        return;
                    }
                }
                // Our pings do that already.
                Some(Out::KeepAlive) => {}
                None => break CloseCode::Normal,
            },
            came = socket.next() => {
                heard = true;
                let bytes = match came {
                    Some(Ok(Message::Text(text))) => Bytes::from(text),
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    // Pongs are tungstenite's. A close is answered by it, and then there is no more to come.
                    Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_))) => continue,
                    Some(Err(Error::Capacity(_))) => {
                        counters.websocket_errors.fetch_add(1, Ordering::Relaxed);
                        break CloseCode::Size;
                    }
                    Some(Err(Error::Protocol(_) | Error::Utf8(_))) => {
                        counters.websocket_errors.fetch_add(1, Ordering::Relaxed);
                        break CloseCode::Protocol;
                    }
                    Some(Err(_)) | None => return,
                };
                has_spoken = true;
                if arrivals.send(Arrival::Bytes(flow, bytes.into())).await.is_err() {
                    return;
                }
            }
            _ = pings.tick() => {
                if !heard || (!has_spoken && opened.elapsed() > FIRST_BYTES_MAX) {
                    break CloseCode::Away;
                }
                heard = false;
                if !send(&mut socket, Message::Ping(Bytes::new())).await {
                    return;
                }
            }
        }
    };
    let frame = CloseFrame { code, reason: "".into() };
    let _ = timeout(PATIENCE, socket.close(Some(frame))).await;
}

async fn send<S>(socket: &mut WebSocketStream<S>, message: Message) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    matches!(timeout(PATIENCE, socket.send(message)).await, Ok(Ok(())))
}

/// Text where it is text, as browsers expect; a body of other octets goes as binary (RFC 7118 §4.2).
fn message(bytes: Vec<u8>) -> Message {
    match String::from_utf8(bytes) {
        Ok(text) => Message::text(text),
        Err(error) => Message::binary(error.into_bytes()),
    }
}
