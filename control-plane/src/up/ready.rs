//! Waits until a child serves, and says so.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::folder::Folder;
use super::keeper::Keeper;
use super::spec::{Ready, Spec};
use super::{UpError, say};

/// The slowest is the voice agent, which loads its models: seconds on an idle machine, a minute on a busy one.
const READY_WITHIN: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(100);
/// After so long a wait the person at the terminal is told what we wait for, and again every so often.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// A child that dies so often before it ever served will not get better.
const DEATHS_MAX: u32 = 3;
/// One question may take this long.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// A status line is shorter than this.
const STATUS_LINE_MAX: u64 = 256;

/// Waits for one child.
pub async fn wait(spec: &Spec, keeper: &Keeper, folder: &Folder) -> Result<Duration, UpError> {
    let began = Instant::now();
    let mut told = began;
    loop {
        if serves(&spec.ready).await {
            return Ok(began.elapsed());
        }
        let health = keeper.health();
        let overdue = began.elapsed() > READY_WITHIN;
        if health.deaths >= DEATHS_MAX || overdue {
            let how = match health.deaths {
                0 => format!("still not serving after {} s", READY_WITHIN.as_secs()),
                deaths => format!("died {deaths} times, the last time with {}", health.last),
            };
            return Err(UpError::NeverReady {
                name: spec.name,
                how,
                log: folder.log_path(spec.name),
                tail: folder.log_end(spec.name),
            });
        }
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            say(&format!("waiting for {} ({} s)", spec.name, began.elapsed().as_secs()));
        }
        tokio::time::sleep(STEP).await;
    }
}

async fn serves(ready: &Ready) -> bool {
    let asked = async {
        match ready {
            Ready::Running => Ok(true),
            Ready::Http(address, path) => http_ok(*address, path).await,
        }
    };
    matches!(tokio::time::timeout(ASK_TIMEOUT, asked).await, Ok(Ok(true)))
}

/// Does this path answer 200? One request over one connection; no HTTP client is needed for that.
async fn http_ok(address: SocketAddr, path: &str) -> io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(STATUS_LINE_MAX).read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200 ") || answer.starts_with(b"HTTP/1.0 200 "))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn answers(line: &'static str) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 256];
            let _ = stream.read(&mut request).await.unwrap();
            stream.write_all(line.as_bytes()).await.unwrap();
        });
        serves(&Ready::Http(address, "/readyz")).await
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        assert!(answers("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await);
        assert!(!answers("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await);
        assert!(!answers("").await);
    }

    #[tokio::test]
    async fn nobody_there_is_not_ready() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(!serves(&Ready::Http(address, "/readyz")).await);
    }
}
