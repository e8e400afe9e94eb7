//! What legs hand up to their session, and what a session hands up to the control plane.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tandem_stream::agent::TransferMode;

use super::secure::TransportFailure;

/// A piece of the caller's sound, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard<'a> {
    /// The payload of one packet.
    Sound(&'a [u8]),
    /// The caller pauses: the payload of a comfort-noise packet (RFC 3389).
    Noise(&'a [u8]),
    /// So many packets did not come in time.
    Gap {
        /// How many.
        packets: u64,
    },
}

/// What an agent asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Drop what has not been played.
    Clear,
    /// Say when everything before this was played.
    Mark {
        /// As the agent named it.
        name: String,
    },
    /// Fade out and hold what waits.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Press keys towards the caller.
    Dtmf {
        /// Which.
        digits: String,
    },
    /// End the call.
    Hangup {
        /// Only when everything was played.
        after_drain: bool,
    },
    /// Hand the caller on, or bring somebody in.
    Transfer {
        /// Whom.
        to: String,
        /// How.
        mode: TransferMode,
    },
    /// Answer the call, in which it has been heard before.
    Answer,
    /// Headers of the request that ends the call.
    Headers {
        /// Name and value.
        headers: BTreeMap<String, String>,
    },
}

/// Why the engine ended a session by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// No RTP for too long.
    MediaTimeout,
    /// The session's own limit.
    MaxSession,
    /// Nobody held the event stream for too long.
    Orphaned,
    /// The engine could not go on.
    EngineFault,
    /// The engine stops.
    Shutdown,
    /// ICE or DTLS found no way to the caller, or lost it.
    Transport(TransportFailure),
    /// The provider said that the call is over.
    StreamStopped,
    /// The provider's connection was lost, and no other came in its place.
    StreamLost,
    /// What comes on the provider's connection cannot be carried.
    StreamFault,
}

/// How a caller's connection went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HowDropped {
    /// The provider said that the call is over.
    Stop,
    /// It did not: another connection may come.
    Lost,
    /// We carry no such sound: the call is over, and nobody there has wanted that.
    Fault,
}

/// What happened in a session, for the control plane.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The agent's stream is up and was told who calls.
    AgentConnected {
        /// Since the session was opened.
        took_ms: u32,
    },
    /// The agent could not be reached, or its stream broke.
    AgentFailed {
        /// In words.
        reason: String,
    },
    /// The agent asked to end the call; with `after_drain`, all it said was played.
    AgentHangup {
        /// It asked to be heard out first.
        after_drain: bool,
    },
    /// The agent asked to hand the caller on, or to bring somebody in.
    AgentTransfer {
        /// Whom.
        to: String,
        /// How.
        mode: TransferMode,
    },
    /// The agent asked to answer the call.
    AgentAnswer,
    /// The agent wants to press keys, and telephone-events are not negotiated.
    AgentDtmf {
        /// Which.
        digits: String,
    },
    /// The agent has set headers of the request that will end the call.
    AgentHeaders {
        /// Name and value.
        headers: BTreeMap<String, String>,
    },
    /// The first valid RTP packet came.
    MediaStarted {
        /// From here.
        remote: SocketAddr,
        /// Since the session was opened.
        took_ms: u32,
    },
    /// The caller pressed a key and released it.
    Dtmf {
        /// Which.
        digit: char,
        /// How long it was down.
        duration_ms: u32,
    },
    /// Nobody has spoken for as long as the session was told to mind; once, until somebody speaks.
    Idle {
        /// Since the last sound that was heard.
        idle_ms: u64,
    },
    /// Its own RTCP report has left: how it goes.
    Report {
        /// The counters then.
        stats: Stats,
    },
    /// A report of the second leg has left: how that one goes.
    SecondReport {
        /// Its counters then.
        stats: Stats,
    },
    /// Nothing comes from the second leg any more, or there is no way to it. It stays until it is removed.
    SecondLost {
        /// [`EndReason::MediaTimeout`] or [`EndReason::Transport`].
        reason: EndReason,
    },
    /// A provider's connection has said which call it is.
    StreamStarted(Box<StreamStarted>),
    /// The caller's connection is gone.
    StreamDropped {
        /// For good?
        how: HowDropped,
        /// In words.
        reason: String,
        /// The caller may be on the line at the provider still.
        leg_may_live: bool,
        /// Whose it was.
        provider: &'static str,
    },
    /// Its RTP leg is the second one of another session now, and the session is over.
    Joined {
        /// Of which.
        into: Arc<str>,
        /// The final counters.
        stats: Stats,
    },
    /// The engine ended the session by itself.
    Ended {
        /// Why.
        reason: EndReason,
        /// The final counters.
        stats: Stats,
    },
}

/// What a provider says of its stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamStarted {
    /// The provider's name of the call.
    pub call_id: String,
    /// And of the stream.
    pub stream_id: String,
    /// Custom parameters.
    pub parameters: BTreeMap<String, String>,
    /// Encoding on the wire.
    pub codec: &'static str,
    /// Samples a second.
    pub rate_hz: u32,
}

/// Counters of one session.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// RTP packets sent.
    pub rtp_sent: u64,
    /// RTP packets accepted.
    pub rtp_received: u64,
    /// Expected and never come.
    pub rtp_lost: u64,
    /// Come after their place had passed.
    pub rtp_late: u64,
    /// Come twice.
    pub rtp_duplicate: u64,
    /// Come out of order.
    pub rtp_reordered: u64,
    /// Wrong source, version, payload type or SSRC.
    pub rtp_rejected: u64,
    /// Interarrival jitter.
    pub jitter_ms: f64,
    /// SRTP packets that were not authentic, or came again.
    pub srtp_rejected: u64,
    /// Compounds of RTCP sent.
    pub rtcp_sent: u64,
    /// Compounds of RTCP received.
    pub rtcp_received: u64,
    /// From here to the peer and back; `None` until it answered a report of ours.
    pub round_trip_ms: Option<f64>,
    /// Packets of ours that the peer lost, as it says.
    pub remote_lost: u64,
    /// Interarrival jitter at the peer, as it says.
    pub remote_jitter_ms: f64,
    /// Quality at the peer, as it says.
    pub remote_mos: Option<f64>,
    /// Mean opinion that the E-model gives what we hear (1 to 4.5); `None` while nothing was heard.
    pub mos: Option<f64>,
    /// What it comes from, 0 to 100.
    pub r_factor: Option<f64>,
    /// Pieces of sound that came from the agent.
    pub agent_frames_in: u64,
    /// Pieces of sound that went to the agent.
    pub agent_frames_out: u64,
    /// Agent's sound that found the playout queue full.
    pub playout_dropped_ms: u64,
    /// Caller's sound that the agent did not read in time.
    pub agent_dropped_ms: u64,
    /// Since the session was started.
    pub duration_ms: u64,
    /// Agent's sound that waits to be played.
    pub playout_waiting_ms: u64,
    /// Agent's sound that has left since the stream began.
    pub heard_ms: u64,
    /// Whether the caller speaks; `None` where nobody listens for it.
    pub caller_speaks: Option<bool>,
    /// How long nobody has spoken; `None` where nobody minds.
    pub idle_ms: Option<u64>,
}
