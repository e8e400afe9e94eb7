//! What became of a call, in figures.

use std::fmt;
use std::time::Duration;

/// Who ended a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndedBy {
    /// We hung up.
    Us,
    /// The peer hung up.
    Peer,
    /// Nobody: the dialog or its transport was lost.
    Lost,
}

/// RTP in figures; what was received is judged as RFC 3550 says.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RtpReport {
    /// Packets we sent.
    pub sent: u64,
    /// Packets of the peer's stream, each once.
    pub received: u64,
    /// Packets that were expected and did not come.
    pub lost: u64,
    /// Packets that came again.
    pub duplicated: u64,
    /// Packets that came after a later one.
    pub reordered: u64,
    /// Interarrival jitter at the end.
    pub jitter_ms: f64,
    /// The most that one of our packets left after its time.
    pub late_max_ms: f64,
}

/// A call from its INVITE to its end.
#[derive(Debug, Clone, PartialEq)]
pub struct CallReport {
    /// INVITE to 200 (as the callee: INVITE to the ACK).
    pub setup_ms: f64,
    /// INVITE to the first 180 or 183, if there was one.
    pub ringing_ms: Option<f64>,
    /// Provisional statuses, in order.
    pub provisional: Vec<u16>,
    /// 200 to the first RTP packet.
    pub first_packet_ms: Option<f64>,
    /// 200 to the first sound one can hear.
    pub first_audible_ms: Option<f64>,
    /// 200 to the end.
    pub duration: Duration,
    /// RTP both ways.
    pub rtp: RtpReport,
    /// From the end of what we said to their first audible sound, at the wire; one a turn.
    pub response_ms: Vec<f64>,
    /// Who ended it; `None` while it lasts.
    pub ended_by: Option<EndedBy>,
    /// The Reason header of the BYE, or what was lost.
    pub reason: Option<String>,
}

impl CallReport {
    /// The median response latency.
    pub fn response_median_ms(&self) -> Option<f64> {
        let mut sorted = self.response_ms.clone();
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len() / 2).copied()
    }
}

impl fmt::Display for CallReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rtp = &self.rtp;
        writeln!(f, "setup {:.1} ms, lasted {:.1} s", self.setup_ms, self.duration.as_secs_f64())?;
        writeln!(
            f,
            "RTP sent {}, received {}, lost {}, duplicated {}, reordered {}, jitter {:.1} ms",
            rtp.sent, rtp.received, rtp.lost, rtp.duplicated, rtp.reordered, rtp.jitter_ms
        )?;
        let responses: Vec<_> = self.response_ms.iter().map(|ms| format!("{ms:.0}")).collect();
        if !responses.is_empty() {
            writeln!(f, "response latency {} ms", responses.join(", "))?;
        }
        match (self.ended_by, &self.reason) {
            (Some(by), Some(reason)) => write!(f, "ended by {by:?}: {reason}"),
            (Some(by), None) => write!(f, "ended by {by:?}"),
            (None, _) => write!(f, "still up"),
        }
    }
}
