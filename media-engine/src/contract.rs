//! The words of engine.proto and our own: checked on the way in, filled in on the way out.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tandem_api::engine::v1 as proto;
use tandem_audio::format::{Codec, Ptime, SampleRate};
use tandem_audio::opus::OpusSettings;
use tandem_rtp::dtls::{Fingerprint, Setup};
use tandem_rtp::ice::{Credentials, IceText};
use tandem_rtp::latch::Latching;
use tandem_rtp::srtp::{MasterKey, Suite};
use tandem_rtp::units::PayloadType;
use tandem_stream::agent::TransferMode;
use tandem_stream::websocket::Url;
use tandem_stream::{Dialect, audiosocket, link};

use crate::leg::agent::{
    AudioSocketParameters, CallInfo, GrpcParameters, LinkParameters, WebSocketParameters,
};
use crate::leg::event::{EndReason, Event, HowDropped, Stats};
use crate::leg::provider::StreamParameters;
use crate::leg::rtp::{Direction, Rtcp, RtpParameters, SrtpKeys};
use crate::leg::secure::SecureParameters;
use crate::mailbox::StreamSummary;
use crate::session::Notice;
use crate::session::bridge::SoundParameters;
use crate::session::second::Role;
use crate::session::speech::{BargeIn, SpeechParameters};

/// A session id, and any other name, is no longer than this.
pub const NAME_MAX: usize = 128;

/// Headers or custom fields of a WebSocket agent; together with the URL they must fit an upgrade request.
pub const FIELDS_MAX: usize = 32;

/// Octets of a text that the agent is told.
pub const NOTICE_MAX: usize = 512;

/// Octets of all of them.
pub const FIELDS_OCTETS_MAX: usize = 16 * 1024;

const DEFAULT_PTIME: Ptime = Ptime::MS_20;
const DEFAULT_MEDIA_TIMEOUT_MS: u32 = 60_000;
const DEFAULT_CONNECT_TIMEOUT_MS: u32 = 5_000;
const DEFAULT_TONE_HZ: f64 = 440.0;

/// A request that cannot be carried out, with the field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {what}")]
pub struct Invalid {
    /// Path of the field in the request.
    pub field: &'static str,
    /// What is wrong with it.
    pub what: String,
}

fn invalid(field: &'static str, what: impl Into<String>) -> Invalid {
    Invalid { field, what: what.into() }
}

/// The id of a request.
pub fn session_id(text: &str) -> Result<&str, Invalid> {
    match text.len() {
        0 => Err(invalid("session_id", "is empty")),
        1..=NAME_MAX => Ok(text),
        len => Err(invalid("session_id", format!("has {len} octets, at most {NAME_MAX} are allowed"))),
    }
}

/// The carrier leg, and the port that was leased for it.
pub fn rtp(given: Option<proto::RtpParameters>) -> Result<(RtpParameters, Option<u16>), Invalid> {
    let given = given.ok_or_else(|| invalid("rtp", "is missing"))?;
    let codec = match given.codec() {
        proto::Codec::Unspecified if given.codec == 0 => None,
        proto::Codec::Unspecified => return Err(invalid("rtp.codec", "is unknown")),
        proto::Codec::Pcmu => Some(Codec::Pcmu),
        proto::Codec::Pcma => Some(Codec::Pcma),
        proto::Codec::L168k => Some(Codec::L16_8k),
        proto::Codec::L1616k => Some(Codec::L16_16k),
        proto::Codec::G722 => Some(Codec::G722),
        proto::Codec::Opus => Some(Codec::Opus),
    };
    let payload_type = |field, number: u32| {
        u8::try_from(number)
            .ok()
            .and_then(PayloadType::new)
            .ok_or_else(|| invalid(field, format!("{number} is no RTP payload type")))
    };
    let remote =
        address(&given.remote_address, given.remote_port, ["rtp.remote_address", "rtp.remote_port"])?;
    let rtcp = match given.rtcp() {
        proto::Rtcp::Unspecified | proto::Rtcp::Off => Rtcp::Off,
        proto::Rtcp::Mux => Rtcp::Mux,
        proto::Rtcp::Separate => Rtcp::Separate {
            remote: address(
                &given.remote_rtcp_address,
                given.remote_rtcp_port,
                ["rtp.remote_rtcp_address", "rtp.remote_rtcp_port"],
            )?,
        },
    };
    let srtp = given.srtp.as_ref().map(srtp_keys).transpose()?;
    let secure = given.dtls.as_ref().map(dtls).transpose()?;
    if secure.is_some() && (srtp.is_some() || matches!(rtcp, Rtcp::Separate { .. })) {
        return Err(invalid("rtp.dtls", "goes neither with rtp.srtp nor with RTCP_SEPARATE"));
    }
    let ptime = match given.ptime_ms {
        0 => DEFAULT_PTIME,
        ms => Ptime::from_ms(ms).ok_or_else(|| invalid("rtp.ptime_ms", format!("{ms} is not carried")))?,
    };
    if let Some(codec) = codec
        && ptime != codec.fitting_ptime(ptime)
    {
        let what = format!("{ptime} of {codec} make no packet, {} would", codec.fitting_ptime(ptime));
        return Err(invalid("rtp.ptime_ms", what));
    }
    let local_port = match given.local_port {
        0 => None,
        port => Some(
            u16::try_from(port)
                .ok()
                .filter(|port| port % 2 == 0)
                .ok_or_else(|| invalid("rtp.local_port", format!("{port} is no even port")))?,
        ),
    };
    let parameters = RtpParameters {
        // ICE finds it.
        remote: remote.filter(|_| secure.is_none()),
        codec,
        payload_type: payload_type("rtp.payload_type", given.payload_type)?,
        ptime,
        event_payload_type: given
            .telephone_event_payload_type
            .map(|number| payload_type("rtp.telephone_event_payload_type", number))
            .transpose()?,
        direction: match given.direction() {
            proto::Direction::Unspecified | proto::Direction::Sendrecv => Direction::SendReceive,
            proto::Direction::Sendonly => Direction::SendOnly,
            proto::Direction::Recvonly => Direction::ReceiveOnly,
            proto::Direction::Inactive => Direction::Inactive,
        },
        latching: match given.latching() {
            proto::Latching::Unspecified | proto::Latching::Auto => Latching::Auto,
            proto::Latching::Strict => Latching::Strict,
            proto::Latching::Off => Latching::Off,
        },
        rtcp,
        srtp,
        secure,
        sound: SoundParameters {
            comfort_noise_payload_type: given
                .comfort_noise_payload_type
                .map(|number| payload_type("rtp.comfort_noise_payload_type", number))
                .transpose()?,
            inband_dtmf: given.inband_dtmf,
            opus: opus(given.opus.unwrap_or_default())?,
        },
    };
    Ok((parameters, local_port))
}

/// A caller who comes by a provider's connection, and the upgrade that it is.
pub fn stream(given: proto::StreamLeg) -> Result<(String, StreamParameters), Invalid> {
    let proto::StreamLeg { upgrade_id, sample_rate, provider_call_id } = given;
    if provider_call_id.len() > NAME_MAX {
        let what = format!("has {} octets, at most {NAME_MAX} are allowed", provider_call_id.len());
        return Err(invalid("stream.provider_call_id", what));
    }
    let rate = match sample_rate {
        0 => None,
        hz => Some(
            SampleRate::from_hz(hz)
                .ok_or_else(|| invalid("stream.sample_rate", format!("{hz} is no rate of ours")))?,
        ),
    };
    Ok((upgrade_id, StreamParameters { rate, call_id: provider_call_id }))
}

/// A carrier leg whose sound comes by a stream: the codec is known when that has started.
pub fn stream_rtp() -> RtpParameters {
    RtpParameters {
        remote: None,
        codec: None,
        payload_type: PayloadType::PCMU,
        ptime: DEFAULT_PTIME,
        event_payload_type: None,
        direction: Direction::SendReceive,
        latching: Latching::Off,
        rtcp: Rtcp::Off,
        srtp: None,
        secure: None,
        sound: SoundParameters::default(),
    }
}

/// What a second leg is there for.
pub fn role(given: proto::LegRole, caller_rings: bool) -> Option<Role> {
    match given {
        proto::LegRole::Unspecified => None,
        proto::LegRole::Bridge => Some(Role::Bridge),
        proto::LegRole::Conference => Some(Role::Conference),
        proto::LegRole::Consult => Some(Role::Consult { rings: caller_rings }),
        proto::LegRole::Whisper => Some(Role::Whisper),
        proto::LegRole::Listen => Some(Role::Listen),
    }
}

/// An address of the peer; empty or without a port it is not known.
fn address(ip: &str, port: u32, fields: [&'static str; 2]) -> Result<Option<SocketAddr>, Invalid> {
    if ip.is_empty() || port == 0 {
        return Ok(None);
    }
    let ip: IpAddr = ip.parse().map_err(|_| invalid(fields[0], format!("{ip:?} is no IP address")))?;
    let port = u16::try_from(port).map_err(|_| invalid(fields[1], format!("{port} is no port")))?;
    Ok(Some(SocketAddr::new(ip, port)))
}

/// The keys; an error tells how long they are, never what they are.
fn srtp_keys(given: &proto::SrtpKeys) -> Result<SrtpKeys, Invalid> {
    let suite = match given.suite() {
        proto::SrtpSuite::Unspecified => return Err(invalid("rtp.srtp.suite", "is unknown")),
        proto::SrtpSuite::AesCm128HmacSha180 => Suite::AesCm128HmacSha1_80,
        proto::SrtpSuite::AesCm128HmacSha132 => Suite::AesCm128HmacSha1_32,
        proto::SrtpSuite::AeadAes128Gcm => Suite::AeadAes128Gcm,
        proto::SrtpSuite::AeadAes256Gcm => Suite::AeadAes256Gcm,
    };
    let key = |field, octets: &[u8]| {
        MasterKey::new(suite, octets).map_err(|error| invalid(field, error.to_string()))
    };
    Ok(SrtpKeys {
        local: key("rtp.srtp.local", &given.local)?,
        remote: key("rtp.srtp.remote", &given.remote)?,
    })
}

/// ICE and DTLS; an error names the field, never what is in it.
fn dtls(given: &proto::DtlsParameters) -> Result<SecureParameters, Invalid> {
    let fingerprint: [u8; 32] = given
        .remote_fingerprint
        .as_slice()
        .try_into()
        .map_err(|_| invalid("rtp.dtls.remote_fingerprint", "has not the 32 octets of SHA-256"))?;
    let text = |field, text: &str| {
        IceText::parse(text)
            .ok_or_else(|| invalid(field, "is empty, too long, or has characters that ICE has not"))
    };
    Ok(SecureParameters {
        setup: if given.active { Setup::Active } else { Setup::Passive },
        fingerprint: Fingerprint::new(fingerprint),
        ice: Credentials {
            ufrag: text("rtp.dtls.local_ufrag", &given.local_ufrag)?,
            password: text("rtp.dtls.local_password", &given.local_password)?,
        },
        remote_ufrag: text("rtp.dtls.remote_ufrag", &given.remote_ufrag)?,
    })
}

fn opus(given: proto::OpusParameters) -> Result<OpusSettings, Invalid> {
    let default = OpusSettings::default();
    let complexity = match given.complexity {
        None => default.complexity,
        Some(complexity @ 0..=10) => complexity as u8,
        Some(complexity) => {
            return Err(invalid("rtp.opus.complexity", format!("{complexity} is not within 0 and 10")));
        }
    };
    let bitrate = match given.bitrate {
        0 => None,
        bits @ 6_000..=128_000 => Some(bits),
        bits => return Err(invalid("rtp.opus.bitrate", format!("{bits} is not within 6000 and 128000"))),
    };
    let max_playback = match given.max_playback_rate_hz {
        0 => default.max_playback,
        hz => SampleRate::from_hz(hz)
            .ok_or_else(|| invalid("rtp.opus.max_playback_rate_hz", format!("{hz} is no rate of ours")))?,
    };
    let fec = given.fec.unwrap_or(default.fec);
    Ok(OpusSettings { bitrate, complexity, fec, dtx: given.dtx, max_playback, ..default })
}

/// What the agent is told about the call.
pub fn call(given: Option<proto::CallInfo>, session_id: &str) -> CallInfo {
    let given = given.unwrap_or_default();
    CallInfo {
        call_id: if given.call_id.is_empty() { session_id.to_owned() } else { given.call_id },
        from: given.from,
        to: given.to,
        direction: if given.direction.is_empty() { "inbound".into() } else { given.direction },
        tenant_id: given.tenant_id,
    }
}

/// Which agent, before files are loaded and names resolved.
#[derive(Debug)]
pub enum Target {
    /// The caller hears himself.
    Echo,
    /// A tone.
    Tone {
        /// Its frequency.
        frequency_hz: f64,
    },
    /// A recording below the media folder.
    File {
        /// Which.
        path: String,
        /// Begin again at the end.
        repeat: bool,
    },
    /// One that is dialled.
    WebSocket(Box<WebSocketParameters>),
    /// The built-in voice agent.
    Link(Box<LinkParameters>),
    /// An AudioSocket server.
    AudioSocket(AudioSocketParameters),
    /// One that serves our gRPC service.
    Grpc(Box<GrpcParameters>),
}

/// What is wanted of the caller's speech.
pub fn speech(given: Option<&proto::Agent>) -> SpeechParameters {
    let Some(given) = given.and_then(|agent| agent.speech.as_ref()) else {
        return SpeechParameters::default();
    };
    SpeechParameters {
        barge_in: match given.barge_in() {
            proto::BargeIn::Unspecified | proto::BargeIn::Off => BargeIn::Off,
            proto::BargeIn::Pause => BargeIn::Pause,
            proto::BargeIn::Clear => BargeIn::Clear,
        },
        suppress_silence: given.suppress_silence,
        idle: (given.idle_ms > 0).then(|| Duration::from_millis(u64::from(given.idle_ms))),
        comfort_noise: given.comfort_noise,
    }
}

/// The agent leg.
pub fn agent(given: Option<proto::Agent>, call: &CallInfo) -> Result<Target, Invalid> {
    use proto::agent::Target as Given;
    let target = given.and_then(|agent| agent.target).ok_or_else(|| invalid("agent.target", "is missing"))?;
    Ok(match target {
        Given::Echo(_) => Target::Echo,
        Given::Tone(tone) => Target::Tone {
            frequency_hz: match tone.frequency_hz {
                0.0 => DEFAULT_TONE_HZ,
                hz if (20.0..=3_900.0).contains(&hz) => hz,
                hz => {
                    let what = format!("{hz} is not within 20 and 3900");
                    return Err(invalid("agent.tone.frequency_hz", what));
                }
            },
        },
        Given::File(file) => Target::File { path: file.path, repeat: file.r#loop },
        Given::Websocket(agent) => Target::WebSocket(Box::new(websocket(agent)?)),
        Given::Link(agent) => Target::Link(Box::new(link_agent(agent)?)),
        Given::Audiosocket(agent) => Target::AudioSocket(audiosocket_agent(agent, call)?),
        Given::Grpc(agent) => Target::Grpc(Box::new(grpc_agent(agent)?)),
    })
}

fn websocket(given: proto::WebSocketAgent) -> Result<WebSocketParameters, Invalid> {
    let dialect = match given.dialect() {
        proto::Dialect::Unspecified | proto::Dialect::Pcm => Dialect::Pcm,
        proto::Dialect::Twilio => Dialect::Twilio,
    };
    let url = Url::parse(&given.url).map_err(|error| invalid("agent.websocket.url", error.to_string()))?;
    check_fields("agent.websocket.headers", &given.headers)?;
    check_fields("agent.websocket.custom", &given.custom)?;
    Ok(WebSocketParameters {
        url,
        dialect,
        tls: None,
        headers: given.headers.into_iter().collect(),
        custom: given.custom.into_iter().collect::<BTreeMap<_, _>>(),
        connect_timeout: millis(given.connect_timeout_ms, DEFAULT_CONNECT_TIMEOUT_MS),
    })
}

fn check_fields(field: &'static str, fields: &HashMap<String, String>) -> Result<(), Invalid> {
    let octets: usize = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    if fields.len() > FIELDS_MAX || octets > FIELDS_OCTETS_MAX {
        let what = format!("at most {FIELDS_MAX} with {FIELDS_OCTETS_MAX} octets are carried");
        return Err(invalid(field, what));
    }
    Ok(())
}

/// `host:port`, `[IPv6]:port`.
fn host_port(field: &'static str, given: &str) -> Result<(String, u16), Invalid> {
    let wrong = || invalid(field, format!("{given:?} is not host:port"));
    let (host, port) = given.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() || host.len() > NAME_MAX * 2 {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

fn link_agent(given: proto::LinkAgent) -> Result<LinkParameters, Invalid> {
    let (host, port) = host_port("agent.link.address", &given.address)?;
    if given.token.len() > link::TOKEN_MAX {
        return Err(invalid("agent.link.token", format!("is longer than {} octets", link::TOKEN_MAX)));
    }
    check_fields("agent.link.custom", &given.custom)?;
    Ok(LinkParameters {
        host,
        port,
        token: given.token.into_bytes(),
        custom: given.custom.into_iter().collect(),
        connect_timeout: millis(given.connect_timeout_ms, DEFAULT_CONNECT_TIMEOUT_MS),
    })
}

fn grpc_agent(given: proto::GrpcAgent) -> Result<GrpcParameters, Invalid> {
    let wrong = |what: String| invalid("agent.grpc.url", what);
    // The same address as a WebSocket's, under another scheme, and without a path.
    let address = match given.url.split_once("://") {
        Some(("grpc", address)) => format!("ws://{address}"),
        Some(("grpcs", address)) => format!("wss://{address}"),
        _ => return Err(wrong("scheme is neither grpc nor grpcs".to_owned())),
    };
    let url = Url::parse(&address).map_err(|error| wrong(error.to_string()))?;
    if url.path != "/" {
        return Err(wrong("has a path; the service has its own".to_owned()));
    }
    check_fields("agent.grpc.headers", &given.headers)?;
    check_fields("agent.grpc.custom", &given.custom)?;
    Ok(GrpcParameters {
        url,
        tls: None,
        headers: given.headers.into_iter().collect(),
        custom: given.custom.into_iter().collect(),
        connect_timeout: millis(given.connect_timeout_ms, DEFAULT_CONNECT_TIMEOUT_MS),
    })
}

fn audiosocket_agent(
    given: proto::AudioSocketAgent,
    call: &CallInfo,
) -> Result<AudioSocketParameters, Invalid> {
    let (host, port) = host_port("agent.audiosocket.address", &given.address)?;
    let id = match given.uuid.as_str() {
        "" => uuid::Uuid::parse_str(&call.call_id).unwrap_or_else(|_| uuid::Uuid::new_v4()),
        text => uuid::Uuid::parse_str(text)
            .map_err(|_| invalid("agent.audiosocket.uuid", format!("{text:?} is no UUID")))?,
    };
    let hz = if given.sample_rate_hz == 0 { 8_000 } else { given.sample_rate_hz };
    let rate = audiosocket::Rate::from_hz(hz).filter(|_| SampleRate::from_hz(hz).is_some());
    let rate = rate.ok_or_else(|| {
        invalid("agent.audiosocket.sample_rate_hz", format!("{hz} is not 8000, 16000, 24000 or 48000"))
    })?;
    let connect_timeout = millis(given.connect_timeout_ms, DEFAULT_CONNECT_TIMEOUT_MS);
    Ok(AudioSocketParameters { host, port, id: id.into_bytes(), rate, connect_timeout })
}

fn millis(given: u32, default: u32) -> Duration {
    Duration::from_millis(u64::from(if given == 0 { default } else { given }))
}

/// No RTP for so long ends the session.
pub fn media_timeout(given_ms: u32) -> Duration {
    millis(given_ms, DEFAULT_MEDIA_TIMEOUT_MS)
}

/// The session's own limit.
pub fn max_session(given_ms: u32) -> Option<Duration> {
    (given_ms > 0).then(|| Duration::from_millis(u64::from(given_ms)))
}

/// What the control plane has to tell the agent.
pub fn notice(given: Option<proto::tell_agent_request::What>) -> Result<Notice, Invalid> {
    use proto::tell_agent_request::What;
    match given.ok_or_else(|| invalid("what", "is missing"))? {
        What::Dtmf(dtmf) => {
            let mut chars = dtmf.digit.chars();
            match (chars.next(), chars.next()) {
                (Some(digit), None) if tandem_audio::tone::Digit::from_char(digit).is_some() => {
                    Ok(Notice::Dtmf { digit, duration_ms: dtmf.duration_ms })
                }
                _ => Err(invalid("dtmf.digit", "must be one of 0-9 * # A-D")),
            }
        }
        What::Transfer(transfer) if transfer.reason.len() <= NOTICE_MAX => {
            Ok(Notice::Transfer { status: transfer.status, reason: transfer.reason })
        }
        What::Transfer(_) => Err(invalid("transfer.reason", format!("is longer than {NOTICE_MAX} octets"))),
    }
}

/// Counters as they are told.
pub fn stats(stats: &Stats) -> proto::SessionStats {
    proto::SessionStats {
        rtp_sent: stats.rtp_sent,
        rtp_received: stats.rtp_received,
        rtp_lost: stats.rtp_lost,
        rtp_late: stats.rtp_late,
        rtp_duplicate: stats.rtp_duplicate,
        rtp_reordered: stats.rtp_reordered,
        rtp_rejected: stats.rtp_rejected,
        jitter_ms: stats.jitter_ms,
        agent_frames_in: stats.agent_frames_in,
        agent_frames_out: stats.agent_frames_out,
        playout_dropped_ms: stats.playout_dropped_ms,
        agent_dropped_ms: stats.agent_dropped_ms,
        duration_ms: stats.duration_ms,
        srtp_rejected: stats.srtp_rejected,
        rtcp_sent: stats.rtcp_sent,
        rtcp_received: stats.rtcp_received,
        round_trip_ms: stats.round_trip_ms,
        remote_lost: stats.remote_lost,
        remote_jitter_ms: stats.remote_jitter_ms,
        remote_mos: stats.remote_mos,
        mos: stats.mos,
        r_factor: stats.r_factor,
        playout_waiting_ms: stats.playout_waiting_ms,
        heard_ms: stats.heard_ms,
        caller_speaks: stats.caller_speaks,
        idle_ms: stats.idle_ms,
    }
}

fn transfer_mode(mode: TransferMode) -> proto::TransferMode {
    match mode {
        TransferMode::Refer => proto::TransferMode::Refer,
        TransferMode::Bridge => proto::TransferMode::Bridge,
        TransferMode::Consult => proto::TransferMode::Consult,
        TransferMode::Complete => proto::TransferMode::Complete,
        TransferMode::Conference => proto::TransferMode::Conference,
        TransferMode::Cancel => proto::TransferMode::Cancel,
    }
}

/// Why, and in words where the reason has several causes.
fn end_reason(reason: EndReason) -> (proto::session_ended::Reason, String) {
    use proto::session_ended::Reason;
    let told = match reason {
        EndReason::MediaTimeout => Reason::MediaTimeout,
        EndReason::MaxSession => Reason::MaxSession,
        EndReason::Orphaned => Reason::Orphaned,
        EndReason::EngineFault => Reason::EngineFault,
        EndReason::Shutdown => Reason::Shutdown,
        EndReason::Transport(failure) => return (Reason::Transport, failure.to_string()),
        EndReason::StreamStopped => return (Reason::Transport, "the provider has ended the call".into()),
        EndReason::StreamFault => {
            return (Reason::Transport, "the provider's sound cannot be carried".into());
        }
        EndReason::StreamLost => {
            return (Reason::Transport, "the provider's connection was lost, and no other came".into());
        }
    };
    (told, String::new())
}

/// The part of a summary that is a provider's connection.
pub fn stream_summary(stream: Option<StreamSummary>) -> proto::SessionSummary {
    let Some(StreamSummary { state, started }) = stream else { return proto::SessionSummary::default() };
    let mut told = proto::SessionSummary { stream: state.to_owned(), ..Default::default() };
    if let Some(started) = started {
        told.provider_call_id = started.call_id;
        told.stream_codec = started.codec.to_owned();
        told.stream_sample_rate = started.rate_hz;
    }
    told
}

/// An event as it is told.
pub fn event(event: &Event) -> proto::event::Event {
    use proto::event::Event as Told;
    match event {
        Event::AgentConnected { took_ms } => {
            Told::AgentConnected(proto::AgentConnected { took_ms: *took_ms })
        }
        Event::AgentFailed { reason } => Told::AgentFailed(proto::AgentFailed { reason: reason.clone() }),
        Event::AgentHangup { after_drain } => Told::AgentHangup(proto::AgentHangup {
            after: if *after_drain { "drain" } else { "now" }.to_owned(),
        }),
        Event::AgentTransfer { to, mode } => {
            Told::AgentTransfer(proto::AgentTransfer { to: to.clone(), mode: transfer_mode(*mode).into() })
        }
        Event::AgentAnswer => Told::AgentAnswer(proto::AgentAnswer {}),
        Event::AgentDtmf { digits } => Told::AgentDtmf(proto::AgentDtmf { digits: digits.clone() }),
        Event::AgentHeaders { headers } => Told::AgentHeaders(proto::AgentHeaders {
            headers: headers.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
        }),
        Event::MediaStarted { remote, took_ms } => Told::MediaStarted(proto::MediaStarted {
            remote_address: remote.ip().to_string(),
            remote_port: u32::from(remote.port()),
            took_ms: *took_ms,
        }),
        Event::Dtmf { digit, duration_ms } => {
            Told::DtmfReceived(proto::DtmfReceived { digit: digit.to_string(), duration_ms: *duration_ms })
        }
        Event::Idle { idle_ms } => Told::Idle(proto::Idle { idle_ms: *idle_ms }),
        Event::Report { stats: counters } => {
            Told::SessionReport(proto::SessionReport { stats: Some(stats(counters)), second_leg: None })
        }
        Event::SecondReport { stats: counters } => {
            Told::SessionReport(proto::SessionReport { stats: None, second_leg: Some(stats(counters)) })
        }
        Event::SecondLost { reason } => {
            let (reason, detail) = end_reason(*reason);
            Told::LegLost(proto::LegLost { reason: reason.into(), detail })
        }
        Event::StreamStarted(started) => Told::StreamStarted(proto::StreamStarted {
            provider_call_id: started.call_id.clone(),
            stream_id: started.stream_id.clone(),
            parameters: started.parameters.clone().into_iter().collect(),
            codec: started.codec.to_owned(),
            sample_rate: started.rate_hz,
        }),
        Event::StreamDropped { how, reason, leg_may_live, .. } => Told::StreamDropped(proto::StreamDropped {
            how: match how {
                HowDropped::Stop => "stop",
                HowDropped::Lost => "drop",
                HowDropped::Fault => "fault",
            }
            .to_owned(),
            reason: reason.clone(),
            leg_may_live: *leg_may_live,
        }),
        Event::Joined { into, stats: counters } => Told::SessionEnded(proto::SessionEnded {
            reason: proto::session_ended::Reason::Joined.into(),
            stats: Some(stats(counters)),
            joined_session_id: into.to_string(),
            ..Default::default()
        }),
        Event::Ended { reason, stats: counters } => {
            let (reason, detail) = end_reason(*reason);
            let stats = Some(stats(counters));
            let reason = reason.into();
            Told::SessionEnded(proto::SessionEnded { reason, stats, detail, ..Default::default() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters() -> proto::RtpParameters {
        proto::RtpParameters {
            remote_address: "192.0.2.7".into(),
            remote_port: 4_000,
            codec: proto::Codec::Pcma.into(),
            payload_type: 8,
            ..Default::default()
        }
    }

    #[test]
    fn zeros_mean_the_documented_defaults() {
        let (rtp, port) = rtp(Some(parameters())).unwrap();
        assert_eq!(rtp.ptime, Ptime::MS_20);
        assert_eq!(rtp.direction, Direction::SendReceive);
        assert_eq!(rtp.codec, Some(Codec::Pcma));
        assert_eq!(port, None);
        assert_eq!(media_timeout(0), Duration::from_secs(60));
        assert_eq!(max_session(0), None);
    }

    #[test]
    fn a_delayed_offer_has_neither_codec_nor_address() {
        let (rtp, _) = rtp(Some(proto::RtpParameters::default())).unwrap();
        assert_eq!((rtp.codec, rtp.remote), (None, None));
    }

    #[test]
    fn keys_show_in_no_debug_of_what_carries_them() {
        let mut given = parameters();
        given.srtp = Some(proto::SrtpKeys {
            suite: proto::SrtpSuite::AesCm128HmacSha180.into(),
            local: vec![171; 30],
            remote: vec![205; 30],
        });
        let request = proto::OpenSessionRequest { rtp: Some(given.clone()), ..Default::default() };
        let (rtp, _) = rtp(Some(given)).unwrap();
        let shown = format!("{request:?} {rtp:?}");
        assert!(!shown.contains("171") && !shown.contains("205") && !shown.contains("abab"), "{shown}");
    }

    fn browser() -> proto::DtlsParameters {
        proto::DtlsParameters {
            active: false,
            remote_fingerprint: vec![7; 32],
            local_ufrag: "ours".into(),
            local_password: "our-password".into(),
            remote_ufrag: "theirs".into(),
        }
    }

    #[test]
    fn where_ice_finds_the_peer_its_signalled_address_does_not_count() {
        let mut given = parameters();
        given.dtls = Some(browser());
        let (rtp, _) = rtp(Some(given)).unwrap();
        assert_eq!(rtp.remote, None);
        assert_eq!(rtp.secure.unwrap().remote_ufrag.as_str(), "theirs");
    }

    #[test]
    fn password_of_ice_shows_in_no_debug_of_what_carries_it() {
        let mut given = parameters();
        given.dtls = Some(browser());
        let shown = format!("{given:?} {:?}", rtp(Some(given.clone())).unwrap());
        assert!(!shown.contains("our-password"), "{shown}");
    }

    #[test]
    fn the_token_of_a_link_is_not_shown() {
        let given = proto::LinkAgent {
            address: "127.0.0.1:8767".into(),
            token: "very-secret".into(),
            ..Default::default()
        };
        let parameters = link_agent(given).unwrap();
        assert!(parameters.token == b"very-secret" && !format!("{parameters:?}").contains("secret"));
    }

    #[test]
    fn what_cannot_be_carried_is_named_by_its_field() {
        type Change = fn(&mut proto::RtpParameters);
        fn keys(suite: proto::SrtpSuite, local: usize, remote: usize) -> proto::SrtpKeys {
            proto::SrtpKeys { suite: suite.into(), local: vec![1; local], remote: vec![2; remote] }
        }
        let cases: [(&str, Change); 14] = [
            ("rtp.remote_address", |p| p.remote_address = "host".into()),
            ("rtp.remote_port", |p| p.remote_port = 70_000),
            ("rtp.codec", |p| p.codec = 99),
            ("rtp.payload_type", |p| p.payload_type = 200),
            ("rtp.ptime_ms", |p| p.ptime_ms = 7),
            ("rtp.ptime_ms", |p| (p.codec, p.ptime_ms) = (proto::Codec::L1616k.into(), 46)),
            ("rtp.local_port", |p| p.local_port = 4_001),
            ("rtp.remote_rtcp_port", |p| {
                (p.rtcp, p.remote_rtcp_address, p.remote_rtcp_port) =
                    (proto::Rtcp::Separate.into(), "192.0.2.7".into(), 70_000);
            }),
            ("rtp.dtls", |p| (p.dtls, p.rtcp) = (Some(browser()), proto::Rtcp::Separate.into())),
            ("rtp.dtls.remote_fingerprint", |p| {
                p.dtls = Some(proto::DtlsParameters { remote_fingerprint: vec![7; 20], ..browser() });
            }),
            ("rtp.dtls.local_password", |p| {
                p.dtls = Some(proto::DtlsParameters { local_password: "p".repeat(33), ..browser() });
            }),
            ("rtp.srtp.suite", |p| p.srtp = Some(keys(proto::SrtpSuite::Unspecified, 30, 30))),
            ("rtp.srtp.local", |p| p.srtp = Some(keys(proto::SrtpSuite::AeadAes128Gcm, 30, 28))),
            ("rtp.srtp.remote", |p| p.srtp = Some(keys(proto::SrtpSuite::AesCm128HmacSha180, 30, 0))),
        ];
        for (field, change) in cases {
            let mut given = parameters();
            change(&mut given);
            assert_eq!(rtp(Some(given)).unwrap_err().field, field);
        }
        assert_eq!(agent(None, &CallInfo::default()).unwrap_err().field, "agent.target");
        for address in ["", "host", "host:", ":1", "host:0", "host:70000"] {
            let given = proto::LinkAgent { address: address.into(), ..Default::default() };
            assert_eq!(link_agent(given).unwrap_err().field, "agent.link.address", "{address}");
        }
        let given = |uuid: &str, sample_rate_hz| proto::AudioSocketAgent {
            address: "[::1]:9092".into(),
            uuid: uuid.into(),
            sample_rate_hz,
            ..Default::default()
        };
        let call = CallInfo::default();
        let refused = |given| audiosocket_agent(given, &call).unwrap_err().field;
        assert_eq!(refused(given("no", 0)), "agent.audiosocket.uuid");
        assert_eq!(refused(given("", 12_000)), "agent.audiosocket.sample_rate_hz");
        let fine = audiosocket_agent(given("6ba7b810-9dad-11d1-80b4-00c04fd430c8", 16_000), &call).unwrap();
        assert_eq!((fine.host.as_str(), fine.port, fine.id[0]), ("::1", 9_092, 0x6b));
        for url in ["http://host:1", "grpc://", "grpc://host:0", "grpcs://host:1/path"] {
            let given = proto::GrpcAgent { url: url.into(), ..Default::default() };
            assert_eq!(grpc_agent(given).unwrap_err().field, "agent.grpc.url", "{url}");
        }
        let other = proto::WebSocketAgent { url: "https://host/".into(), ..Default::default() };
        assert_eq!(websocket(other).unwrap_err().field, "agent.websocket.url");
    }
}
