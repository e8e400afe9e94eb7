//! Reads a process's own figures from its Prometheus page: processor time and memory.
use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::clock::Mono;
use crate::observe::Usage;

/// A page longer than this is not one of ours, octets.
const PAGE_LIMIT: u64 = 4 * 1024 * 1024;

/// A process that does not answer its metrics in this time is in no state to be measured.
const PATIENCE: Duration = Duration::from_secs(3);

/// Where a process shows its metrics: `http://host:port/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsUrl {
    authority: String,
    path: String,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum ScrapeError {
    /// Not a URL that we can read.
    #[error("{0:?} is not of the form http://host:port/path")]
    Url(String),
    /// No connection, or it broke.
    #[error("cannot read {url}")]
    Io {
        /// The page.
        url: String,
        /// The kernel's word.
        source: std::io::Error,
    },
    /// Not 200.
    #[error("{url} answered {status:?}")]
    Status {
        /// The page.
        url: String,
        /// Its status line.
        status: String,
    },
    /// The page has no such figure.
    #[error("{url} does not show {name}")]
    Missing {
        /// The page.
        url: String,
        /// The metric.
        name: &'static str,
    },
}

impl std::str::FromStr for MetricsUrl {
    type Err = ScrapeError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").ok_or_else(|| ScrapeError::Url(text.into()))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, "metrics"));
        if !authority.contains(':') {
            return Err(ScrapeError::Url(text.into()));
        }
        Ok(Self { authority: authority.into(), path: format!("/{path}") })
    }
}

impl std::fmt::Display for MetricsUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}{}", self.authority, self.path)
    }
}

impl MetricsUrl {
    /// Reads the figures now.
    ///
    /// # Errors
    /// When the page cannot be read or lacks the processor time.
    pub fn read(&self) -> Result<Usage, ScrapeError> {
        let before = Mono::now();
        let page = self.get()?;
        let after = Mono::now();
        let name = "process_cpu_seconds_total";
        let cpu_s =
            metric(&page, name).ok_or_else(|| ScrapeError::Missing { url: self.to_string(), name })?;
        let at = before + (after - before) / 2;
        Ok(Usage { at, cpu_s, resident_bytes: metric(&page, "process_resident_memory_bytes") })
    }

    fn get(&self) -> Result<String, ScrapeError> {
        let io = |source| ScrapeError::Io { url: self.to_string(), source };
        let address = self
            .authority
            .to_socket_addrs()
            .map_err(io)?
            .next()
            .ok_or_else(|| ScrapeError::Url(self.to_string()))?;
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(io)?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(io)?;
        // HTTP/1.0: the answer comes whole and unchunked, and the connection ends with it.
        let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\n\r\n", self.path, self.authority);
        stream.write_all(request.as_bytes()).map_err(io)?;
        let mut answer = String::new();
        stream.take(PAGE_LIMIT).read_to_string(&mut answer).map_err(io)?;
        let (head, page) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.lines().next().unwrap_or_default();
        if status.split(' ').nth(1) != Some("200") {
            return Err(ScrapeError::Status { url: self.to_string(), status: status.into() });
        }
        Ok(page.to_owned())
    }
}

/// The sum of a metric over its labels.
fn metric(page: &str, name: &str) -> Option<f64> {
    let values = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labels) => labels.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.split_whitespace().next()?.parse::<f64>().ok()
    });
    values.fold(None, |sum, value| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# HELP process_cpu_seconds_total x\n# TYPE process_cpu_seconds_total counter\n\
        process_cpu_seconds_total 12.5\nprocess_cpu_seconds_total_other 99\n\
        rtp_packets_total{core=\"0\"} 3\nrtp_packets_total{core=\"1\"} 4 1700000000\n";

    #[test]
    fn metric_is_read_by_its_whole_name_and_summed_over_labels() {
        assert_eq!(metric(PAGE, "process_cpu_seconds_total"), Some(12.5));
        assert_eq!(metric(PAGE, "rtp_packets_total"), Some(7.0));
        assert_eq!(metric(PAGE, "absent"), None);
    }

    #[test]
    fn url_without_a_path_means_metrics() {
        assert_eq!(
            "http://127.0.0.1:9101".parse::<MetricsUrl>().unwrap().to_string(),
            "http://127.0.0.1:9101/metrics"
        );
        assert!("https://x:1/".parse::<MetricsUrl>().is_err());
        assert!("http://nowhere/metrics".parse::<MetricsUrl>().is_err());
    }

    #[test]
    fn page_is_fetched_and_a_refusal_is_named() {
        use std::net::TcpListener;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url: MetricsUrl = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        let server = std::thread::spawn(move || {
            for answer in
                [format!("HTTP/1.0 200 OK\r\n\r\n{PAGE}"), "HTTP/1.1 503 Draining\r\n\r\n".to_owned()]
            {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut octet = [0];
                    stream.read_exact(&mut octet).unwrap();
                    request.push(octet[0]);
                }
                assert!(request.starts_with(b"GET /metrics HTTP/1.0\r\n"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        assert_eq!(url.read().unwrap().cpu_s, 12.5);
        assert!(matches!(url.read(), Err(ScrapeError::Status { status, .. }) if status.contains("503")));
        server.join().unwrap();
    }
}
