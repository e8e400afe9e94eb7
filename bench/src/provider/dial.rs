//! The connection of a call's media: TCP, and for WebSockets the upgrade.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use tandem_stream::websocket::{ClientHandshake, HANDSHAKE_MAX, Url};

use super::announce::Place;

/// Exotel gives a handshake 10 s, and nobody more.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection that is ready for media, and what has come with the handshake's last octets.
#[derive(Debug)]
pub struct Connected {
    /// Not blocking any more.
    pub stream: TcpStream,
    /// Octets of the first messages.
    pub rest: Vec<u8>,
}

/// Connects.
///
/// # Errors
/// What went wrong, in words that can be counted.
pub fn connect(place: &Place) -> Result<Connected, String> {
    let io = |error: std::io::Error| format!("media connection: {error}");
    let connected = match place {
        Place::AudioSocket(address) => Connected { stream: open(*address).map_err(io)?, rest: Vec::new() },
        Place::WebSocket(text, headers) => {
            let url = Url::parse(text).map_err(|error| format!("media URL: {error}"))?;
            if url.secure {
                return Err(
                    "media URL: wss, and this generator speaks no TLS: unset the engine's certificate".into(),
                );
            }
            let address = (url.host.as_str(), url.port).to_socket_addrs().map_err(io)?.next();
            let stream = open(address.ok_or("media URL: its name has no address")?).map_err(io)?;
            upgrade(stream, &url, headers)?
        }
    };
    connected.stream.set_nonblocking(true).map_err(io)?;
    Ok(connected)
}

fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn upgrade(
    mut stream: TcpStream,
    url: &Url,
    headers: &[(&'static str, String)],
) -> Result<Connected, String> {
    let io = |error: std::io::Error| format!("upgrade: {error}");
    let handshake = ClientHandshake::new(rand::random());
    let mut request = Vec::new();
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
    handshake
        .write_request(&url.host_header(), &url.path, headers, &mut request)
        .map_err(|error| format!("upgrade: {error}"))?;
    stream.write_all(&request).map_err(io)?;
    let (mut answer, mut piece) = (Vec::new(), [0; 1_024]);
    let until = Instant::now() + PATIENCE;
    loop {
        let len = stream.read(&mut piece).map_err(io)?;
        answer.extend_from_slice(&piece[..len]);
        if let Some(taken) = handshake.read_response(&answer).map_err(|error| format!("upgrade: {error}"))? {
            return Ok(Connected { stream, rest: answer.split_off(taken) });
        }
        if len == 0 || answer.len() > HANDSHAKE_MAX || Instant::now() > until {
            return Err("upgrade: closed without an answer".into());
        }
    }
}
