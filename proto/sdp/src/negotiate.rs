//! Offer and answer (RFC 3264) for one audio stream.
//!
//! ```text
//!   offer ─▶ answer(offer, ours) ─▶ answer + Negotiated        we were called
//!   offer(ours) ─▶ … peer … ─▶ accept_answer(offer, answer) ─▶ Negotiated      we called, or were called without an offer
//! ```
//!
//! The first `m=` that is audio over RTP/AVP, RTP/SAVP or, of browsers, UDP/TLS/RTP/SAVPF with a codec of ours (and a key, if one is needed) is taken,
//! every other one is refused with port 0, in order.
//! Of its formats the first we know is taken: the order is the offerer's preference (§6.1), and answering with one codec keeps
//! both ways alike. Hold (`sendonly`, `inactive`, an address of zeros) becomes a direction, never an error.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tandem_audio::format::{ClockRate, Codec, MAX_PTIME_MS, Ptime, SampleRate};
use tandem_audio::noise::STATIC_PAYLOAD_TYPE;
use tandem_rtp::srtp::MasterKey;

use crate::crypto::{Crypto, LocalSrtp, NegotiatedSrtp, SrtpPolicy};
use crate::description::{Attribute, Connection, Direction, Media, Origin, SessionDescription};
use crate::dtls::{self, DtlsRefusal, LocalDtls, NegotiatedDtls};

/// The first dynamic payload type that our offers use (RFC 3551 §3).
const FIRST_DYNAMIC_PAYLOAD_TYPE: u8 = 96;
/// The payload types nearly everybody uses for telephone-event at 8 kHz, and ours at 16 and 48 kHz.
const TELEPHONE_EVENT_PAYLOAD_TYPES: [(u32, u8); 3] = [(8_000, 101), (16_000, 102), (48_000, 103)];
/// What we say of Opus: we make use of its forward error correction (RFC 7587 §6.1). All else is as its defaults say.
const OPUS_FORMAT: &str = "useinbandfec=1";
/// Sound in the clear, or opportunistically protected (RFC 8643).
const PROFILE: &str = "RTP/AVP";
/// Protected sound.
const SECURE_PROFILE: &str = "RTP/SAVP";

/// What we can do for one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalMedia {
    /// Where we receive: the advertised address.
    pub address: IpAddr,
    /// The RTP port there.
    pub port: u16,
    /// Codecs, best first; the order counts in offers, and in answers the offerer's does.
    pub codecs: Vec<Codec>,
    /// What we would send when the peer asks for nothing.
    pub ptime: Ptime,
    /// Whether telephone-event (RFC 4733) is spoken.
    pub telephone_event: bool,
    /// Whether comfort noise (RFC 3389) is understood.
    pub comfort_noise: bool,
    /// `o=`: the same for the whole dialog; random, or the time.
    pub session_id: u64,
    /// `o=`: one more for each new description of ours that differs.
    pub session_version: u64,
    /// What we want: `Inactive` or `SendOnly` put the peer on hold.
    pub direction: Direction,
    /// Whether and with which keys we protect it.
    pub srtp: LocalSrtp,
    /// With what we do DTLS-SRTP; `None`: it is refused.
    pub dtls: Option<LocalDtls>,
}

impl LocalMedia {
    /// G.711 both ways with telephone-event, 20 ms, first edition: what a telephone call wants.
    pub fn g711(address: IpAddr, port: u16, session_id: u64) -> Self {
        LocalMedia {
            address,
            port,
            codecs: vec![Codec::Pcmu, Codec::Pcma],
            ptime: Ptime::MS_20,
            telephone_event: true,
            comfort_noise: false,
            session_id,
            session_version: session_id,
            direction: Direction::SendRecv,
            srtp: LocalSrtp::default(),
            dtls: None,
        }
    }
}

/// What a peer asks of the Opus that it is sent (RFC 7587 §6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpusWishes {
    /// `useinbandfec`: it makes use of forward error correction.
    pub fec: bool,
    /// `usedtx`: it wants nothing sent while there is silence.
    pub dtx: bool,
    /// `maxplaybackrate`, rounded up to a rate of ours; `None`: no limit.
    pub max_playback: Option<SampleRate>,
    /// `maxaveragebitrate`, bits a second; `None`: no limit.
    pub bitrate_max: Option<u32>,
}

impl OpusWishes {
    /// Reads an `a=fmtp`; what is not understood is left.
    fn parse(format: &str) -> Self {
        let mut wishes = Self::default();
        for parameter in format.split(';') {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let (name, value) = (name.trim().to_ascii_lowercase(), value.trim());
            match name.as_str() {
                "useinbandfec" => wishes.fec = value == "1",
                "usedtx" => wishes.dtx = value == "1",
                "maxplaybackrate" => {
                    let rate = |hz: u32| SampleRate::ALL.into_iter().find(|rate| rate.hz() >= hz);
                    wishes.max_playback = value.parse().ok().and_then(rate);
                }
                "maxaveragebitrate" => wishes.bitrate_max = value.parse().ok().filter(|bits| *bits >= 6_000),
                _ => {}
            }
        }
        wishes
    }
}

/// What both sides have agreed on, as seen from us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Both ways.
    pub codec: Codec,
    /// Of the codec, both ways.
    pub payload_type: u8,
    /// Ticks a second of the RTP timestamp, of audio and telephone-events alike.
    pub clock: ClockRate,
    /// What we send.
    pub ptime: Ptime,
    /// Of telephone-event, if both speak it at the codec's clock rate.
    pub telephone_event_payload_type: Option<u8>,
    /// Of comfort noise, if both speak it and the codec has none of its own.
    pub comfort_noise_payload_type: Option<u8>,
    /// What the peer asks of Opus, if that is the codec.
    pub opus: OpusWishes,
    /// Where we send RTP; its address is zeros when the peer holds us in the old way.
    pub remote: SocketAddr,
    /// Where we send RTCP, unless it shares the port of RTP.
    pub remote_rtcp: SocketAddr,
    /// RTCP shares the port of RTP (RFC 5761).
    pub rtcp_mux: bool,
    /// Keys, if they stand in the descriptions.
    pub srtp: Option<NegotiatedSrtp>,
    /// Who shakes hands for the keys, and by which checks the peer is found, if they do not.
    pub dtls: Option<NegotiatedDtls>,
    /// Whether *we* send and receive.
    pub direction: Direction,
}

impl Negotiated {
    /// True when the peer does not listen to us.
    pub const fn is_held(&self) -> bool {
        !self.direction.sends()
    }

    /// True when it is protected in one way or the other.
    pub const fn is_protected(&self) -> bool {
        self.srtp.is_some() || self.dtls.is_some()
    }
}

/// Why there is no agreement. A control plane answers 488 (Not Acceptable Here) with this as its warning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiateError {
    /// No `m=audio` at all.
    #[error("no audio is offered")]
    NoAudio,
    /// All audio has port 0.
    #[error("audio is refused with port 0")]
    AudioRefused,
    /// Audio is offered over other transports than those we speak only.
    #[error(
        "audio over {0} is not supported, only {PROFILE} and, where it is allowed, {SECURE_PROFILE} and UDP/TLS/RTP/SAVPF"
    )]
    Transport(String),
    /// It is not protected, and must be.
    #[error("audio without SRTP is not accepted here")]
    Unprotected,
    /// It is protected with nothing we speak.
    #[error("no common SRTP suite: a=crypto with an AES_CM_128 or AEAD_AES suite and one key is needed")]
    NoCommonSuite,
    /// Its DTLS or its ICE cannot be used.
    #[error(transparent)]
    Dtls(#[from] DtlsRefusal),
    /// Nothing we speak.
    #[error("no common codec, offered are {}", .offered.join(", "))]
    NoCommonCodec {
        /// As `name/clock rate`, or the bare payload type without an `a=rtpmap`.
        offered: Vec<String>,
    },
    /// No `c=`, or nothing that we can send to.
    #[error("connection address {0:?} is not an IP address")]
    Address(String),
    /// The answer's `m=` lines are not those of the offer.
    #[error("answer has {answered} media for the {offered} that were offered")]
    MediaCount {
        /// In the offer.
        offered: usize,
        /// In the answer.
        answered: usize,
    },
}

/// Answers an offer.
///
/// # Errors
/// [`NegotiateError`], of the `m=audio` that came closest.
pub fn answer(
    offer: &SessionDescription,
    local: &LocalMedia,
) -> Result<(SessionDescription, Negotiated), NegotiateError> {
    let mut refusal = NegotiateError::NoAudio;
    let mut chosen = None;
    for (index, media) in offer.media.iter().enumerate().filter(|(_, media)| media.is("audio")) {
        let usable = usable(offer, media, &local.codecs)
            .and_then(|usable| Ok((usable, dtls::answered(offer, media, local.dtls.as_ref())?)))
            .and_then(|(usable, dtls)| {
                let crypto = if dtls.is_some() { None } else { answered_crypto(media, &local.srtp)? };
                Ok((usable, dtls, crypto))
            });
        match usable {
            Ok(((codec, payload_type, remote), dtls, crypto)) => {
                let ptime = agreed_ptime(media, local.ptime, codec);
                let direction = direction_of(offer, media).reversed().and(local.direction);
                let telephone_event =
                    if local.telephone_event { telephone_event(media, codec.clock_rate()) } else { None };
                let negotiated = Negotiated {
                    codec,
                    payload_type,
                    clock: codec.clock_rate(),
                    ptime,
                    telephone_event_payload_type: telephone_event,
                    comfort_noise_payload_type: comfort_noise(media, codec).filter(|_| local.comfort_noise),
                    opus: opus_wishes(media, codec, payload_type),
                    remote,
                    remote_rtcp: rtcp_address(media, remote),
                    rtcp_mux: media.has_flag("rtcp-mux"),
                    srtp: crypto.map(|(ours, remote)| NegotiatedSrtp { local: ours.key, remote }),
                    dtls,
                    direction,
                };
                chosen = Some((index, negotiated, crypto.map(|(ours, _)| ours)));
                break;
            }
            Err(error) => refusal = closest(refusal, error),
        }
    }
    let (chosen, negotiated, crypto) = chosen.ok_or(refusal)?;
    let secure = negotiated.dtls.zip(local.dtls.as_ref());
    let mid = offer.media[chosen].attribute("mid");
    let terms = Terms {
        transport: secure.map_or_else(Vec::new, |(dtls, ours)| {
            ours.attributes(&dtls.ice, Some(dtls.setup), local.address, local.port)
        }),
        mid: mid.filter(|_| secure.is_some()),
        // As it was offered, whichever it is (RFC 4568 §5.1.2, RFC 8643 §3.1).
        profile: offer.media[chosen].protocol.clone(),
        cryptos: crypto.into_iter().collect(),
        rtcp_mux: negotiated.rtcp_mux,
    };
    let ours = our_media(
        local,
        &[(negotiated.codec, negotiated.payload_type)],
        negotiated
            .telephone_event_payload_type
            .map(|payload_type| (negotiated.clock.hz(), payload_type))
            .as_slice(),
        negotiated.comfort_noise_payload_type.map(|payload_type| (negotiated.clock.hz(), payload_type)),
        negotiated.ptime,
        negotiated.direction,
        terms,
    );
    let media =
        offer.media.iter().enumerate().map(|(i, m)| if i == chosen { ours.clone() } else { refused(m) });
    let mut description = describe(local, media.collect());
    if secure.is_some() {
        description.attributes = dtls::session_attributes(Some(offer), mid);
    }
    Ok((description, negotiated))
}

/// Offers all we can.
pub fn offer(local: &LocalMedia) -> SessionDescription {
    let mut dynamic = FIRST_DYNAMIC_PAYLOAD_TYPE..;
    let mut number = |codec: &Codec| codec.static_payload_type().or_else(|| dynamic.next());
    let formats: Vec<_> = local
        .codecs
        .iter()
        .filter_map(|codec| number(codec).map(|payload_type| (*codec, payload_type)))
        .collect();
    let has_clock = |hz: u32| local.codecs.iter().any(|codec| codec.clock_rate().hz() == hz);
    let events =
        TELEPHONE_EVENT_PAYLOAD_TYPES.into_iter().filter(|(hz, _)| local.telephone_event && has_clock(*hz));
    let terms = offered_terms(local, None);
    let has_noise = local.comfort_noise && local.codecs.iter().any(|codec| is_noise_beside(*codec, 8_000));
    let noise = has_noise.then_some((8_000, STATIC_PAYLOAD_TYPE));
    let media =
        our_media(local, &formats, &events.collect::<Vec<_>>(), noise, local.ptime, local.direction, terms);
    let mut description = describe(local, vec![media]);
    if offers_dtls(local) {
        description.attributes = dtls::session_attributes(None, None);
    }
    description
}

/// Offers in a live dialog what holds there, as our last description had it: the numbers of the formats stay (RFC 3264
/// §8.3.2), so does each `m=` in its place (§8), and a browser's stream keeps its name and its group (RFC 8829 §5.2.2).
pub fn offer_again(local: &LocalMedia, holds: &Negotiated, last: &SessionDescription) -> SessionDescription {
    let live = last.media.iter().position(|media| media.is("audio") && media.port != 0);
    let mid = live.and_then(|live| last.media[live].attribute("mid"));
    let numbered = |payload_type: u8| (holds.clock.hz(), payload_type);
    let ours = our_media(
        local,
        &[(holds.codec, holds.payload_type)],
        holds.telephone_event_payload_type.map(numbered).as_slice(),
        holds.comfort_noise_payload_type.map(numbered),
        local.ptime,
        local.direction,
        offered_terms(local, mid),
    );
    let media = match live {
        Some(live) => last
            .media
            .iter()
            .enumerate()
            .map(|(i, m)| if i == live { ours.clone() } else { refused(m) })
            .collect(),
        None => vec![ours],
    };
    let mut description = describe(local, media);
    if offers_dtls(local) {
        description.attributes = dtls::session_attributes(Some(last), mid);
    }
    description
}

fn offers_dtls(local: &LocalMedia) -> bool {
    local.dtls.as_ref().is_some_and(|dtls| dtls.is_offered)
}

/// How a stream of our offers travels.
fn offered_terms<'a>(local: &LocalMedia, mid: Option<&'a str>) -> Terms<'a> {
    let dtls = local.dtls.as_ref().filter(|dtls| dtls.is_offered);
    Terms {
        transport: dtls.map_or_else(Vec::new, |dtls| {
            dtls.attributes(&dtls.offered_ice(), None, local.address, local.port)
        }),
        mid,
        profile: match dtls {
            Some(_) => dtls::profile(),
            None if local.srtp.policy == SrtpPolicy::Required => SECURE_PROFILE,
            None => PROFILE,
        }
        .to_owned(),
        cryptos: if dtls.is_some() { Vec::new() } else { local.srtp.lines() },
        rtcp_mux: true,
    }
}

/// Reads the answer to an offer of ours.
///
/// # Errors
/// [`NegotiateError`]; the call cannot go on then.
pub fn accept_answer(
    offer: &SessionDescription,
    answer: &SessionDescription,
) -> Result<Negotiated, NegotiateError> {
    if answer.media.len() != offer.media.len() {
        return Err(NegotiateError::MediaCount { offered: offer.media.len(), answered: answer.media.len() });
    }
    let ours = offer.media.iter().zip(&answer.media).find(|(ours, _)| ours.is("audio") && ours.port != 0);
    let (ours, theirs) = ours.ok_or(NegotiateError::NoAudio)?;
    let offered: Vec<Codec> = ours.payload_types().filter_map(|format| codec_of(ours, format)).collect();
    let (codec, payload_type, remote) = usable(answer, theirs, &offered)?;
    if dtls::is_dtls(ours) != dtls::is_dtls(theirs) {
        return Err(NegotiateError::Transport(theirs.protocol.clone()));
    }
    let dtls = dtls::accepted(ours, answer, theirs)?;
    let srtp = if dtls.is_some() { None } else { accepted_crypto(ours, theirs)? };
    let offered_ptime = ours.ptime_ms().and_then(Ptime::from_ms).unwrap_or_default();
    let events_offered = telephone_event(ours, codec.clock_rate()).is_some();
    let events = if events_offered { telephone_event(theirs, codec.clock_rate()) } else { None };
    Ok(Negotiated {
        codec,
        payload_type,
        clock: codec.clock_rate(),
        ptime: agreed_ptime(theirs, offered_ptime, codec),
        telephone_event_payload_type: events,
        comfort_noise_payload_type: comfort_noise(ours, codec).and_then(|_| comfort_noise(theirs, codec)),
        opus: opus_wishes(theirs, codec, payload_type),
        remote,
        remote_rtcp: rtcp_address(theirs, remote),
        rtcp_mux: ours.has_flag("rtcp-mux") && theirs.has_flag("rtcp-mux"),
        srtp,
        dtls,
        direction: offer.direction_of(ours).and(direction_of(answer, theirs).reversed()),
    })
}

/// The codec, its payload type and the peer's address, if this `m=audio` can be used.
fn usable(
    description: &SessionDescription,
    media: &Media,
    codecs: &[Codec],
) -> Result<(Codec, u8, SocketAddr), NegotiateError> {
    if media.port == 0 {
        return Err(NegotiateError::AudioRefused);
    }
    if !media.protocol.eq_ignore_ascii_case(PROFILE) && !is_secure(media) && !dtls::is_dtls(media) {
        return Err(NegotiateError::Transport(media.protocol.clone()));
    }
    let known = |payload_type: u8| {
        codec_of(media, payload_type)
            .filter(|codec| codecs.contains(codec))
            .map(|codec| (codec, payload_type))
    };
    let (codec, payload_type) = media
        .payload_types()
        .find_map(known)
        .ok_or_else(|| NegotiateError::NoCommonCodec { offered: names(media) })?;
    let address = match description.connection_of(media) {
        Some(Connection::Address(address)) if !address.is_multicast() => *address,
        // The checks of ICE show where it is.
        _ if dtls::is_dtls(media) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Some(Connection::Address(address)) => return Err(NegotiateError::Address(address.to_string())),
        Some(Connection::Other(name)) => return Err(NegotiateError::Address(name.clone())),
        None => return Err(NegotiateError::Address(String::new())),
    };
    Ok((codec, payload_type, SocketAddr::new(address, media.port)))
}

/// Who sends. A browser that has no candidate yet has an address of zeros, and means no hold by it.
fn direction_of(description: &SessionDescription, media: &Media) -> Direction {
    match dtls::is_dtls(media) {
        true => description.said_direction_of(media),
        false => description.direction_of(media),
    }
}

fn is_secure(media: &Media) -> bool {
    media.protocol.eq_ignore_ascii_case(SECURE_PROFILE)
}

/// Our line of the answer and the offerer's key, of the first suite that both speak; `None`: in the clear.
fn answered_crypto(
    offered: &Media,
    local: &LocalSrtp,
) -> Result<Option<(Crypto, MasterKey)>, NegotiateError> {
    if local.policy == SrtpPolicy::Off {
        return match is_secure(offered) {
            true => Err(NegotiateError::Transport(offered.protocol.clone())),
            false => Ok(None),
        };
    }
    let common = offered.cryptos().find_map(|theirs| {
        let key = local.key(theirs.key.suite())?;
        Some((Crypto { tag: theirs.tag, key }, theirs.key))
    });
    match common {
        Some(common) => Ok(Some(common)),
        None if is_secure(offered) => Err(NegotiateError::NoCommonSuite),
        None if local.policy == SrtpPolicy::Required => Err(NegotiateError::Unprotected),
        None => Ok(None),
    }
}

/// The keys of an answer: its line has the number and the suite of one of ours.
fn accepted_crypto(ours: &Media, theirs: &Media) -> Result<Option<NegotiatedSrtp>, NegotiateError> {
    let pair = theirs.cryptos().find_map(|answered| {
        let offered = ours
            .cryptos()
            .find(|offered| offered.tag == answered.tag && offered.key.suite() == answered.key.suite())?;
        Some(NegotiatedSrtp { local: offered.key, remote: answered.key })
    });
    match pair {
        Some(pair) => Ok(Some(pair)),
        None if is_secure(theirs) => Err(NegotiateError::NoCommonSuite),
        None if is_secure(ours) => Err(NegotiateError::Unprotected),
        None => Ok(None),
    }
}

/// The codec of a payload type: by its `a=rtpmap`, or the static one.
fn codec_of(media: &Media, payload_type: u8) -> Option<Codec> {
    match media.rtpmap(payload_type) {
        Some(map) => Codec::from_rtpmap(map.encoding, map.clock_rate_hz, map.channels),
        None => Codec::from_static_payload_type(payload_type),
    }
}

/// The payload type of telephone-event that ticks as the codec does (RFC 4733 §2.1).
fn telephone_event(media: &Media, clock: ClockRate) -> Option<u8> {
    media.payload_types().find(|payload_type| {
        media.rtpmap(*payload_type).is_some_and(|map| {
            map.encoding.eq_ignore_ascii_case("telephone-event") && map.clock_rate_hz == clock.hz()
        })
    })
}

/// The payload type of comfort noise that ticks as the codec does.
fn comfort_noise(media: &Media, codec: Codec) -> Option<u8> {
    media.payload_types().find(|payload_type| match media.rtpmap(*payload_type) {
        Some(map) => map.encoding.eq_ignore_ascii_case("CN") && is_noise_beside(codec, map.clock_rate_hz),
        None => *payload_type == STATIC_PAYLOAD_TYPE && is_noise_beside(codec, 8_000),
    })
}

/// Whether comfort noise of this clock rate goes with a codec: it ticks as the codec, which samples once a tick and has no
/// silence of its own.
fn is_noise_beside(codec: Codec, clock_rate_hz: u32) -> bool {
    codec.clock_rate().hz() == clock_rate_hz
        && codec.sample_rate().hz() == clock_rate_hz
        && codec != Codec::Opus
}

fn opus_wishes(media: &Media, codec: Codec, payload_type: u8) -> OpusWishes {
    let format = media.fmtp(payload_type).filter(|_| codec == Codec::Opus);
    format.map(OpusWishes::parse).unwrap_or_default()
}

/// What the peer wants to receive, else what we would send; never more than its `a=maxptime`, nor than one packet of the
/// codec can hold.
fn agreed_ptime(media: &Media, ours: Ptime, codec: Codec) -> Ptime {
    let wanted = media.ptime_ms().map_or(ours, |ms| Ptime::from_ms(ms).unwrap_or_default());
    let max = media.maxptime_ms().and_then(Ptime::from_ms).unwrap_or(wanted);
    codec.fitting_ptime(wanted.min(max))
}

fn rtcp_address(media: &Media, rtp: SocketAddr) -> SocketAddr {
    match media.rtcp() {
        Some(rtcp) => SocketAddr::new(rtcp.address.unwrap_or(rtp.ip()), rtcp.port),
        None => SocketAddr::new(rtp.ip(), rtp.port().saturating_add(1)),
    }
}

/// Of two reasons the one that got further: the more useful to whoever reads the 488.
fn closest(one: NegotiateError, other: NegotiateError) -> NegotiateError {
    let rank = |error: &NegotiateError| match error {
        NegotiateError::NoAudio | NegotiateError::MediaCount { .. } => 0,
        NegotiateError::AudioRefused => 1,
        NegotiateError::Transport(_) => 2,
        NegotiateError::NoCommonCodec { .. } => 3,
        NegotiateError::Unprotected | NegotiateError::NoCommonSuite | NegotiateError::Dtls(_) => 4,
        NegotiateError::Address(_) => 5,
    };
    if rank(&other) > rank(&one) { other } else { one }
}

fn names(media: &Media) -> Vec<String> {
    let name = |format: &String| match format.parse().ok().and_then(|payload_type| media.rtpmap(payload_type))
    {
        Some(map) => format!("{}/{}", map.encoding, map.clock_rate_hz),
        None => match format.parse().ok().and_then(Codec::from_static_payload_type) {
            Some(codec) => codec.to_string(),
            None => format!("payload type {format}"),
        },
    };
    media.formats.iter().map(name).collect()
}

/// How the stream travels.
struct Terms<'a> {
    profile: String,
    /// Of DTLS and ICE.
    transport: Vec<Attribute>,
    mid: Option<&'a str>,
    cryptos: Vec<Crypto>,
    rtcp_mux: bool,
}

fn our_media(
    local: &LocalMedia,
    formats: &[(Codec, u8)],
    events: &[(u32, u8)],
    noise: Option<(u32, u8)>,
    ptime: Ptime,
    direction: Direction,
    terms: Terms<'_>,
) -> Media {
    let mut attributes = Vec::new();
    for (codec, payload_type) in formats {
        attributes.push(Attribute::with_value("rtpmap", format!("{payload_type} {codec}")));
        if *codec == Codec::Opus {
            attributes.push(Attribute::with_value("fmtp", format!("{payload_type} {OPUS_FORMAT}")));
        }
    }
    if let Some((clock_rate_hz, payload_type)) = noise {
        attributes.push(Attribute::with_value("rtpmap", format!("{payload_type} CN/{clock_rate_hz}")));
    }
    for (clock_rate_hz, payload_type) in events {
        attributes
            .push(Attribute::with_value("rtpmap", format!("{payload_type} telephone-event/{clock_rate_hz}")));
        attributes.push(Attribute::with_value("fmtp", format!("{payload_type} 0-15")));
    }
    attributes.push(Attribute::with_value("ptime", ptime.as_ms().to_string()));
    if formats.iter().any(|(codec, _)| *codec == Codec::Opus) {
        // Opus may have packets of 120 ms; ours end at 60.
        attributes.push(Attribute::with_value("maxptime", MAX_PTIME_MS.to_string()));
    }
    attributes.push(Attribute::flag(direction.as_str()));
    attributes.extend(terms.rtcp_mux.then(|| Attribute::flag("rtcp-mux")));
    attributes.extend(terms.mid.map(|mid| Attribute::with_value("mid", mid)));
    attributes.extend(terms.transport);
    attributes.extend(terms.cryptos.into_iter().map(Crypto::to_attribute));
    let audio = formats.iter().map(|(_, payload_type)| payload_type);
    Media {
        kind: "audio".to_owned(),
        port: local.port,
        protocol: terms.profile,
        formats: audio
            .chain(noise.iter().map(|(_, payload_type)| payload_type))
            .chain(events.iter().map(|(_, payload_type)| payload_type))
            .map(u8::to_string)
            .collect(),
        connection: None,
        attributes,
    }
}

/// The same `m=` with port 0 (§6), under the name that it has (RFC 5888 §9).
fn refused(media: &Media) -> Media {
    let mid = media.attribute("mid").map(|mid| Attribute::with_value("mid", mid));
    Media { port: 0, connection: None, attributes: mid.into_iter().collect(), ..media.clone() }
}

fn describe(local: &LocalMedia, media: Vec<Media>) -> SessionDescription {
    SessionDescription {
        origin: Some(Origin {
            username: "-".to_owned(),
            session_id: local.session_id.to_string(),
            session_version: local.session_version.to_string(),
            address: local.address.to_string(),
        }),
        name: "-".to_owned(),
        connection: Some(Connection::Address(local.address)),
        attributes: Vec::new(),
        media,
    }
}
