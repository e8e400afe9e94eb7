//! Offer and answer of one dialog: which description of ours the caller has last seen, and what the engine is told.
//!
//! ```text
//!   INVITE with offer ──▶ answer ──▶ 200            re-INVITE ──▶ propose ──▶ engine updated ──▶ commit, 200
//!   INVITE without    ──▶ offer ──▶ 200, ACK ──▶ accept
//! ```
//!
//! The version in `o=` rises with each description that differs from the last one the caller has seen (RFC 3264 §8),
//! and only then: a refresh repeats it octet by octet.

use std::net::IpAddr;

use tandem_api::engine::v1 as engine;
use tandem_audio::format::{Codec, SampleRate};
use tandem_rtp::dtls::{Fingerprint, Setup};
use tandem_rtp::srtp::Suite;
use tandem_sdp::dtls::Secret;
use tandem_sdp::negotiate;
use tandem_sdp::{
    Direction, LocalDtls, LocalMedia, LocalSrtp, NegotiateError, Negotiated, ParseError, SessionDescription,
    SrtpPolicy,
};

use crate::trunk::{HoldOffer, Latching, Trunk};

/// Codecs that we answer with; the offerer's order counts.
const ANSWERED: [Codec; 6] = Codec::ALL;
/// Codecs that we offer when nobody says which: what every telephone speaks.
const OFFERED: [Codec; 2] = [Codec::Pcmu, Codec::Pcma];
/// And to a browser, all of which have Opus.
const OFFERED_TO_BROWSERS: [Codec; 3] = [Codec::Opus, Codec::Pcmu, Codec::Pcma];
/// The engine's encoder writes no more bits a second than this, whatever a peer would take.
const OPUS_BITRATE_MAX: u32 = 128_000;
/// Where the engine's port will stand while nobody has opened one: `answer` must not refuse with port 0.
const PORT_UNKNOWN: u16 = 9;
/// And its certificate's hash, which only the answer shows.
const FINGERPRINT_UNKNOWN: Fingerprint = Fingerprint::new([0; 32]);

/// Why a description of the caller's cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NegotiationError {
    /// It is no session description.
    #[error(transparent)]
    Unreadable(#[from] ParseError),
    /// It holds nothing that we can speak.
    #[error(transparent)]
    NoAgreement(#[from] NegotiateError),
    /// It came when no offer of ours was open, or did not come when one was.
    #[error("no session description where one is needed")]
    Missing,
}

/// Which message brings the answer to an offer of ours. An ACK without one may come while a 2xx is waited for: it is that of
/// the exchange before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AnswerIn {
    /// We offered in an INVITE.
    Answer,
    /// We offered in a 2xx.
    Ack,
}

/// The offer/answer state of one dialog.
#[derive(Debug, Default)]
pub struct Negotiation {
    /// Whether and with what the call is protected.
    srtp: LocalSrtp,
    /// What credentials of ICE come from; `None`: DTLS-SRTP is refused.
    dtls: Option<Secret>,
    /// Our offers are of DTLS-SRTP, for a phone that speaks nothing else.
    offers_dtls: bool,
    /// The trunk's own list, best first; empty: [`ANSWERED`] and [`OFFERED`].
    codecs: Vec<Codec>,
    /// The engine looks for keys in the sound of this call.
    inband_dtmf: bool,
    /// How the engine trusts the source of the call's RTP.
    latching: Latching,
    /// Of the engine's certificate for this call.
    fingerprint: Option<Fingerprint>,
    local: Option<LocalMedia>,
    /// The description that the caller has last got from us, as sent.
    sent: Option<SessionDescription>,
    /// An offer of ours, and what brings its answer.
    offered: Option<(SessionDescription, AnswerIn)>,
    current: Option<Negotiated>,
    proposed: Option<(SessionDescription, Negotiated)>,
}

impl Negotiation {
    /// Gives itself away; what was agreed on last stays, for the record.
    pub fn leave_behind(&mut self) -> Self {
        let left = Self { current: self.current, ..Self::default() };
        std::mem::replace(self, left)
    }

    /// The call is protected by these rules, with these keys, from now on. `dtls`: what credentials of ICE come from; `None`:
    /// DTLS-SRTP is refused.
    pub fn protect(&mut self, srtp: LocalSrtp, dtls: Option<Secret>) {
        if let Some(local) = &mut self.local {
            local.srtp = srtp.clone();
        }
        (self.srtp, self.dtls) = (srtp, dtls);
    }

    /// Of a call over a trunk, or over none.
    pub fn new(trunk: Option<&Trunk>) -> Self {
        let (codecs, inband_dtmf, latching) = trunk
            .map(|trunk| (trunk.codecs.clone(), trunk.is_dtmf_inband, trunk.latching))
            .unwrap_or_default();
        let offers_dtls = trunk.is_some_and(|trunk| trunk.srtp.offers_dtls);
        Self { codecs, inband_dtmf, latching, offers_dtls, ..Self::default() }
    }

    /// Could this offer be answered? Before there is a port.
    pub fn check(&self, offer: &SessionDescription) -> Result<Negotiated, NegotiateError> {
        let local = self.local_media(IpAddr::from([0, 0, 0, 0]), PORT_UNKNOWN, 0, Some(FINGERPRINT_UNKNOWN));
        negotiate::answer(offer, &local).map(|(_, negotiated)| negotiated)
    }

    /// The engine has opened a port, and shows this certificate there. `session_id` is random, for `o=`.
    pub fn open(&mut self, address: IpAddr, port: u16, session_id: u64, fingerprint: Option<Fingerprint>) {
        self.fingerprint = fingerprint;
        self.local = Some(self.local_media(address, port, session_id, fingerprint));
    }

    fn local_media(
        &self,
        address: IpAddr,
        port: u16,
        session_id: u64,
        fingerprint: Option<Fingerprint>,
    ) -> LocalMedia {
        let codecs = if self.codecs.is_empty() { ANSWERED.to_vec() } else { self.codecs.clone() };
        LocalMedia {
            codecs,
            comfort_noise: true,
            srtp: self.srtp.clone(),
            dtls: self.dtls.zip(fingerprint).map(|(secret, fingerprint)| LocalDtls {
                fingerprint,
                secret,
                is_offered: self.offers_dtls,
                current: None,
            }),
            ..LocalMedia::g711(address, port, session_id)
        }
    }

    /// What the engine is told of an agreement.
    pub fn rtp_parameters(&self, negotiated: &Negotiated) -> engine::RtpParameters {
        let latching = match self.latching {
            Latching::Auto => engine::Latching::Auto,
            Latching::Strict => engine::Latching::Strict,
            Latching::Off => engine::Latching::Off,
        };
        engine::RtpParameters {
            inband_dtmf: self.inband_dtmf,
            latching: latching.into(),
            ..rtp_parameters(negotiated)
        }
    }

    /// Nobody will open a port: an inactive stream, whatever is offered.
    pub fn open_inactive(&mut self, address: IpAddr, session_id: u64) {
        let direction = Direction::Inactive;
        self.local =
            Some(LocalMedia { direction, ..self.local_media(address, PORT_UNKNOWN, session_id, None) });
    }

    /// This dialog is to have the port of another one, under its own rules and with its own keys; nothing is said in it yet,
    /// and nobody is held.
    pub fn take_port_of(&mut self, other: &Self, has_media: bool) {
        let Some(of_other) = &other.local else { return };
        self.open(of_other.address, of_other.port, of_other.session_id, other.fingerprint);
        if let Some(local) = self.local.as_mut().filter(|_| !has_media) {
            local.direction = of_other.direction;
        }
    }

    /// Whether the call is protected by keys in SDP.
    pub fn srtp_policy(&self) -> SrtpPolicy {
        self.srtp.policy
    }

    /// What holds is protected.
    pub fn is_protected(&self) -> bool {
        self.current.is_some_and(|current| current.is_protected())
    }

    /// What is said in the clear is refused from now on. `false`: an offer of ours would have no keys.
    pub fn require_protection(&mut self) -> bool {
        self.srtp.policy = SrtpPolicy::Required;
        if let Some(local) = &mut self.local {
            local.srtp.policy = SrtpPolicy::Required;
        }
        !self.srtp.keys.is_empty() || self.offers_dtls && self.dtls.is_some()
    }

    /// What holds now.
    pub fn current(&self) -> Option<&Negotiated> {
        self.current.as_ref()
    }

    /// Whether the caller holds us.
    pub fn is_held(&self) -> bool {
        self.current.as_ref().is_some_and(Negotiated::is_held)
    }

    /// Whether an offer of ours waits for its answer, in whichever message.
    pub fn awaits_answer(&self) -> bool {
        self.offered.is_some()
    }

    /// Whether an offer of ours, made in a 2xx, waits for its answer in the ACK.
    pub fn awaits_ack(&self) -> bool {
        matches!(self.offered, Some((_, AnswerIn::Ack)))
    }

    /// Answers the offer of the INVITE.
    pub fn answer(&mut self, offer: &SessionDescription) -> Result<String, NegotiationError> {
        self.propose(offer)?;
        self.commit().ok_or(NegotiationError::Missing)
    }

    /// Prepares the answer to a re-INVITE; nothing holds until [`Negotiation::commit`].
    pub fn propose(&mut self, offer: &SessionDescription) -> Result<Negotiated, NegotiationError> {
        let mut local = self.local.clone().ok_or(NegotiationError::Missing)?;
        if let Some(dtls) = &mut local.dtls {
            dtls.current = self.current.and_then(|current| current.dtls);
        }
        if self.current.is_some_and(|current| current.is_protected()) {
            // What was protected stays so: nobody talks a call out of it half-way.
            local.srtp.policy = SrtpPolicy::Required;
        }
        let (description, mut negotiated) = negotiate::answer(offer, &local)?;
        // An old-style hold names no address; where the engine would send stays as it was.
        if negotiated.remote.ip().is_unspecified()
            && let Some(current) = &self.current
        {
            negotiated.remote = current.remote;
            negotiated.remote_rtcp = current.remote_rtcp;
        }
        let description = self.versioned(description);
        // One exchange at a time: an offer of ours that was never answered is answered no more.
        self.offered = None;
        self.proposed = Some((description, negotiated));
        Ok(negotiated)
    }

    /// The proposal holds; gives the text for the 200.
    pub fn commit(&mut self) -> Option<String> {
        let (description, negotiated) = self.proposed.take()?;
        self.current = Some(negotiated);
        let text = description.to_string();
        self.sent = Some(description);
        Some(text)
    }

    /// What was proposed, by whoever, is dropped: the re-INVITE was refused or taken back.
    pub fn abandon(&mut self) {
        self.proposed = None;
        self.offered = None;
    }

    /// Our offer, in an INVITE or re-INVITE of ours.
    pub fn offer(&mut self) -> Option<String> {
        self.offer_until(AnswerIn::Answer)
    }

    /// Our offer, in the 2xx to an INVITE or re-INVITE without one.
    pub fn offer_in_answer(&mut self) -> Option<String> {
        self.offer_until(AnswerIn::Ack)
    }

    fn offer_until(&mut self, answer: AnswerIn) -> Option<String> {
        let mut local = self.local.clone()?;
        let Some(current) = self.current else {
            local.codecs = match self.codecs.is_empty() {
                true if self.offers_dtls => OFFERED_TO_BROWSERS.to_vec(),
                true => OFFERED.to_vec(),
                false => self.codecs.clone(),
            };
            return self.offered(negotiate::offer(&local), answer);
        };
        // In a live dialog all stays: the engine need not change it twice. And so does its protection, or its want of it.
        match current.srtp {
            Some(keys) => {
                local.srtp = LocalSrtp { policy: SrtpPolicy::Required, keys: vec![keys.local] };
            }
            None => local.srtp = LocalSrtp::default(),
        }
        if let Some(dtls) = &mut local.dtls {
            (dtls.current, dtls.is_offered) = (current.dtls, current.dtls.is_some());
        }
        let description = match &self.sent {
            Some(last) => negotiate::offer_again(&local, &current, last),
            None => negotiate::offer(&LocalMedia { codecs: vec![current.codec], ..local }),
        };
        self.offered(description, answer)
    }

    fn offered(&mut self, description: SessionDescription, answer: AnswerIn) -> Option<String> {
        let description = self.versioned(description);
        let text = description.to_string();
        self.sent = Some(description.clone());
        self.proposed = None;
        self.offered = Some((description, answer));
        Some(text)
    }

    /// An answer that came before the answer: what holds until the final one. Another fork's replaces it.
    pub fn accept_early(&mut self, answer: &[u8]) -> Result<Negotiated, NegotiationError> {
        let (offer, _) = self.offered.as_ref().ok_or(NegotiationError::Missing)?;
        let negotiated = negotiate::accept_answer(offer, &SessionDescription::parse(answer)?)?;
        self.current = Some(negotiated);
        Ok(negotiated)
    }

    /// The answer to our INVITE: in the 200, or what came early when the 200 has none (RFC 3261 §13.2.1).
    pub fn accept_final(&mut self, answer: Option<&[u8]>) -> Result<Negotiated, NegotiationError> {
        match (answer, &self.offered, self.current) {
            // Agreed upon in a PRACK: what the 200 repeats is no answer to anything.
            (_, None, Some(agreed)) => Ok(agreed),
            (None, Some(_), Some(early)) => {
                self.offered = None;
                Ok(early)
            }
            (answer, ..) => self.accept(answer),
        }
    }

    /// Another INVITE begins from nothing; only our own port stays.
    pub fn restart(&mut self) {
        (self.current, self.offered, self.proposed) = (None, None, None);
    }

    /// We hold the other side, and say it like this, or do not any more: from the next description on.
    pub fn hold(&mut self, held: Option<HoldOffer>) {
        if let Some(local) = &mut self.local {
            local.direction = match held {
                Some(HoldOffer::SendOnly) => Direction::SendOnly,
                Some(HoldOffer::Inactive) => Direction::Inactive,
                None => Direction::SendRecv,
            };
        }
    }

    /// The caller's answer to our offer.
    pub fn accept(&mut self, answer: Option<&[u8]>) -> Result<Negotiated, NegotiationError> {
        let (offer, _) = self.offered.take().ok_or(NegotiationError::Missing)?;
        let answer = SessionDescription::parse(answer.ok_or(NegotiationError::Missing)?)?;
        let negotiated = negotiate::accept_answer(&offer, &answer)?;
        self.current = Some(negotiated);
        Ok(negotiated)
    }

    /// With the version that the caller must see: the last one if nothing differs, else one more.
    fn versioned(&mut self, mut description: SessionDescription) -> SessionDescription {
        let Some(sent) = &self.sent else { return description };
        if let (Some(ours), Some(last)) = (&mut description.origin, &sent.origin) {
            ours.session_version = last.session_version.clone();
        }
        if description == *sent {
            return description;
        }
        if let (Some(local), Some(origin)) = (&mut self.local, &mut description.origin) {
            local.session_version += 1;
            origin.session_version = local.session_version.to_string();
        }
        description
    }
}

/// The name of a codec in records and lists.
pub fn codec_name(codec: Codec) -> &'static str {
    match codec {
        Codec::Pcmu => "PCMU",
        Codec::Pcma => "PCMA",
        Codec::G722 => "G722",
        Codec::Opus => "opus",
        Codec::L16_8k => "L16/8000",
        Codec::L16_16k => "L16/16000",
        Codec::L16_24k => "L16/24000",
        Codec::L16_48k => "L16/48000",
    }
}

fn rtp_parameters(negotiated: &Negotiated) -> engine::RtpParameters {
    let codec = match negotiated.codec {
        Codec::Pcmu => engine::Codec::Pcmu,
        Codec::Pcma => engine::Codec::Pcma,
        Codec::G722 => engine::Codec::G722,
        Codec::Opus => engine::Codec::Opus,
        Codec::L16_8k => engine::Codec::L168k,
        Codec::L16_16k => engine::Codec::L1616k,
        // Of media streams: no answer has them.
        Codec::L16_24k | Codec::L16_48k => engine::Codec::Unspecified,
    };
    let direction = match negotiated.direction {
        Direction::SendRecv => engine::Direction::Sendrecv,
        Direction::SendOnly => engine::Direction::Sendonly,
        Direction::RecvOnly => engine::Direction::Recvonly,
        Direction::Inactive => engine::Direction::Inactive,
    };
    engine::RtpParameters {
        remote_address: negotiated.remote.ip().to_string(),
        remote_port: negotiated.remote.port().into(),
        codec: codec.into(),
        payload_type: negotiated.payload_type.into(),
        ptime_ms: negotiated.ptime.as_ms(),
        telephone_event_payload_type: negotiated.telephone_event_payload_type.map(u32::from),
        direction: direction.into(),
        latching: engine::Latching::Auto.into(),
        local_port: 0,
        rtcp: if negotiated.rtcp_mux { engine::Rtcp::Mux } else { engine::Rtcp::Separate }.into(),
        remote_rtcp_address: negotiated.remote_rtcp.ip().to_string(),
        remote_rtcp_port: negotiated.remote_rtcp.port().into(),
        srtp: negotiated.srtp.map(|keys| engine::SrtpKeys {
            suite: match keys.local.suite() {
                Suite::AesCm128HmacSha1_80 => engine::SrtpSuite::AesCm128HmacSha180,
                Suite::AesCm128HmacSha1_32 => engine::SrtpSuite::AesCm128HmacSha132,
                Suite::AeadAes128Gcm => engine::SrtpSuite::AeadAes128Gcm,
                Suite::AeadAes256Gcm => engine::SrtpSuite::AeadAes256Gcm,
            }
            .into(),
            local: keys.local.expose().to_vec(),
            remote: keys.remote.expose().to_vec(),
        }),
        dtls: negotiated.dtls.map(|dtls| engine::DtlsParameters {
            active: dtls.setup == Setup::Active,
            remote_fingerprint: dtls.fingerprint.as_octets().to_vec(),
            local_ufrag: dtls.ice.ufrag.to_string(),
            local_password: dtls.ice.password.to_string(),
            remote_ufrag: dtls.remote_ice.ufrag.to_string(),
        }),
        comfort_noise_payload_type: negotiated.comfort_noise_payload_type.map(u32::from),
        opus: (negotiated.codec == Codec::Opus).then(|| engine::OpusParameters {
            bitrate: negotiated.opus.bitrate_max.map_or(0, |max| max.min(OPUS_BITRATE_MAX)),
            complexity: None,
            fec: Some(negotiated.opus.fec),
            dtx: negotiated.opus.dtx,
            max_playback_rate_hz: negotiated.opus.max_playback.map_or(0, SampleRate::hz),
        }),
        inband_dtmf: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(direction: &str, codecs: &str) -> SessionDescription {
        let text = format!(
            "v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n\
             m=audio 40000 RTP/AVP {codecs}\r\na={direction}\r\n"
        );
        SessionDescription::parse(text.as_bytes()).unwrap()
    }

    fn negotiation() -> Negotiation {
        let mut negotiation = Negotiation::default();
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xAB; 32])));
        negotiation
    }

    fn version(text: &str) -> u64 {
        let description = SessionDescription::parse(text.as_bytes()).unwrap();
        description.origin.unwrap().session_version.parse().unwrap()
    }

    #[test]
    fn refresh_repeats_the_description_and_hold_raises_the_version() {
        let mut negotiation = negotiation();
        let first = negotiation.answer(&description("sendrecv", "0")).unwrap();
        let refresh = negotiation.answer(&description("sendrecv", "0")).unwrap();
        assert_eq!(first, refresh);
        let hold = negotiation.answer(&description("sendonly", "0")).unwrap();
        assert!(hold.contains("a=recvonly") && negotiation.is_held());
        assert_eq!(version(&hold), version(&first) + 1);
        let resumed = negotiation.answer(&description("sendrecv", "0")).unwrap();
        assert_eq!(version(&resumed), version(&first) + 2);
        assert!(!negotiation.is_held());
    }

    #[test]
    fn inactive_is_answered_with_inactive_and_the_engine_is_told() {
        let mut negotiation = negotiation();
        negotiation.answer(&description("inactive", "0")).unwrap();
        let rtp = rtp_parameters(negotiation.current().unwrap());
        assert_eq!(rtp.direction(), engine::Direction::Inactive);
    }

    #[test]
    fn abandoned_proposal_changes_nothing() {
        let mut negotiation = negotiation();
        let first = negotiation.answer(&description("sendrecv", "0")).unwrap();
        negotiation.propose(&description("inactive", "0")).unwrap();
        negotiation.abandon();
        assert!(!negotiation.is_held());
        let again = negotiation.answer(&description("sendrecv", "0")).unwrap();
        // The number may skip, but the caller never sees one description under two numbers.
        assert_eq!(again, first);
    }

    #[test]
    fn offer_of_ours_that_was_taken_back_or_overtaken_awaits_no_answer() {
        let mut negotiation = negotiation();
        negotiation.answer(&description("sendrecv", "0")).unwrap();
        negotiation.offer().unwrap();
        negotiation.abandon();
        assert!(!negotiation.awaits_answer());
        negotiation.offer().unwrap();
        negotiation.propose(&description("inactive", "0")).unwrap();
        assert!(!negotiation.awaits_answer());
        negotiation.offer().unwrap();
        assert_eq!(negotiation.commit(), None);
    }

    #[test]
    fn offer_without_a_common_codec_is_refused_before_a_port_is_opened() {
        let negotiation = Negotiation::default();
        assert!(negotiation.check(&description("sendrecv", "0")).is_ok());
        assert!(matches!(
            negotiation.check(&description("sendrecv", "18")),
            Err(NegotiateError::NoCommonCodec { .. })
        ));
    }

    #[test]
    fn a_trunks_own_codecs_are_offered_in_its_order_and_no_others_are_answered() {
        let trunk = Trunk {
            codecs: vec![Codec::G722, Codec::Pcma],
            is_dtmf_inband: true,
            latching: Latching::Strict,
            ..Trunk::default()
        };
        let mut negotiation = Negotiation::new(Some(&trunk));
        assert!(negotiation.check(&description("sendrecv", "0")).is_err());
        assert_eq!(negotiation.check(&description("sendrecv", "0 8 9")).unwrap().codec, Codec::Pcma);
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xAB; 32])));
        let offer = negotiation.offer().unwrap();
        assert!(offer.contains("m=audio 20000 RTP/AVP 9 8 "), "{offer}");
        let negotiated =
            negotiation.accept(Some(description("sendrecv", "9").to_string().as_bytes())).unwrap();
        let rtp = negotiation.rtp_parameters(&negotiated);
        assert_eq!((rtp.codec(), rtp.payload_type, rtp.inband_dtmf), (engine::Codec::G722, 9, true));
        assert_eq!(rtp.latching(), engine::Latching::Strict);
    }

    #[test]
    fn the_engine_is_told_what_a_peer_asks_of_opus() {
        let text = description("sendrecv", "107 13").to_string()
            + "a=rtpmap:107 opus/48000/2\r\na=fmtp:107 useinbandfec=1; maxplaybackrate=16000; maxaveragebitrate=500000\r\n";
        let offer = SessionDescription::parse(text.as_bytes()).unwrap();
        let negotiation = Negotiation::default();
        let rtp = negotiation.rtp_parameters(&negotiation.check(&offer).unwrap());
        let opus = rtp.opus.unwrap();
        assert_eq!((rtp.codec(), rtp.payload_type), (engine::Codec::Opus, 107));
        assert_eq!(
            (opus.fec, opus.dtx, opus.max_playback_rate_hz, opus.bitrate),
            (Some(true), false, 16_000, 128_000)
        );
    }

    #[test]
    fn our_offer_is_answered_in_the_ack() {
        let mut negotiation = negotiation();
        let offer = negotiation.offer().unwrap();
        assert!(offer.contains("m=audio 20000 RTP/AVP 0 8"), "{offer}");
        let answer = description("sendrecv", "8").to_string();
        let negotiated = negotiation.accept(Some(answer.as_bytes())).unwrap();
        assert_eq!(negotiated.codec, Codec::Pcma);
        assert!(!negotiation.awaits_answer());
    }

    fn protected(offer: &str) -> SessionDescription {
        let key = "WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz";
        let offer = offer.replace("RTP/AVP", "RTP/SAVP");
        SessionDescription::parse(
            format!("{offer}a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{key}\r\n").as_bytes(),
        )
        .unwrap()
    }

    #[test]
    fn engine_is_told_the_same_keys_before_and_with_the_answer_and_after_a_refresh() {
        let mut negotiation = Negotiation::default();
        negotiation.protect(LocalSrtp::new(SrtpPolicy::Optional, |octets| octets.fill(5)), None);
        let offer = protected(&description("sendrecv", "0").to_string());
        let before = rtp_parameters(&negotiation.check(&offer).unwrap()).srtp;
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xAB; 32])));
        let first = negotiation.answer(&offer).unwrap();
        assert!(first.contains("RTP/SAVP") && first.contains("a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:"));
        assert!(before.is_some());
        assert_eq!(rtp_parameters(negotiation.current().unwrap()).srtp, before);
        assert_eq!(negotiation.answer(&offer).unwrap(), first);
        assert_eq!(rtp_parameters(negotiation.current().unwrap()).srtp, before);
        let again = negotiation.offer().unwrap();
        assert!(again.contains("RTP/SAVP") && again.matches("a=crypto").count() == 1, "{again}");
    }

    fn of_a_browser(ufrag: &str) -> SessionDescription {
        let hash = "AB:".repeat(31) + "AB";
        let text = description("sendrecv", "0").to_string().replace("RTP/AVP", "UDP/TLS/RTP/SAVPF");
        SessionDescription::parse(
            format!(
                "{text}a=fingerprint:sha-256 {hash}\r\na=setup:actpass\r\na=rtcp-mux\r\n\
                 a=ice-ufrag:{ufrag}\r\na=ice-pwd:r5V3J1LxZz0wWnCk6bRQ2TtU\r\n"
            )
            .as_bytes(),
        )
        .unwrap()
    }

    fn with_browsers() -> Negotiation {
        let mut negotiation = Negotiation::default();
        negotiation.protect(LocalSrtp::default(), Some(Secret([7; 32])));
        negotiation
    }

    #[test]
    fn engine_is_told_of_a_browser_before_its_certificate_is_known_and_the_same_after() {
        let mut negotiation = with_browsers();
        let offer = of_a_browser("them");
        let before = rtp_parameters(&negotiation.check(&offer).unwrap());
        let told = before.dtls.clone().unwrap();
        assert_eq!((told.active, told.remote_ufrag.as_str()), (false, "them"));
        assert_eq!((told.remote_fingerprint, before.rtcp()), (vec![0xAB; 32], engine::Rtcp::Mux));
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xCD; 32])));
        let first = negotiation.answer(&offer).unwrap();
        assert!(
            first.contains("a=fingerprint:sha-256 CD:CD") && first.contains("a=setup:passive"),
            "{first}"
        );
        assert_eq!(rtp_parameters(negotiation.current().unwrap()), before);
        assert_eq!(negotiation.answer(&offer).unwrap(), first, "a refresh repeats it");
        let ours = negotiation.offer().unwrap();
        assert!(ours.contains("UDP/TLS/RTP/SAVPF") && ours.contains(&told.local_ufrag), "{ours}");
    }

    #[test]
    fn numbers_of_the_formats_and_a_browsers_names_stay_in_our_next_offer() {
        let mut negotiation = with_browsers();
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xCD; 32])));
        let text = of_a_browser("them")
            .to_string()
            .replace("t=0 0\r\n", "t=0 0\r\na=group:BUNDLE v a\r\nm=video 40000 UDP/TLS/RTP/SAVPF 96\r\na=mid:v\r\n")
            .replace("SAVPF 0\r\n", "SAVPF 111 126\r\na=mid:a\r\na=rtpmap:111 opus/48000/2\r\na=rtpmap:126 telephone-event/48000\r\n");
        let answer = negotiation.answer(&SessionDescription::parse(text.as_bytes()).unwrap()).unwrap();
        let ours = negotiation.offer().unwrap();
        assert!(ours.contains("UDP/TLS/RTP/SAVPF 111 126\r\n"), "{ours}");
        for line in
            ["a=group:BUNDLE a", "a=mid:a", "m=video 0", "a=rtpmap:126 telephone-event/48000", "a=mid:v"]
        {
            assert!(ours.contains(line) && answer.contains(line), "{line}: {answer}\n{ours}");
        }
        assert!(ours.find("m=video") < ours.find("m=audio"), "{ours}");
    }

    #[test]
    fn restart_of_ice_that_is_taken_back_leaves_the_credentials() {
        let mut negotiation = with_browsers();
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xCD; 32])));
        negotiation.answer(&of_a_browser("them")).unwrap();
        let before = negotiation.current().unwrap().dtls;
        let restarted = negotiation.propose(&of_a_browser("anew")).unwrap().dtls;
        assert_ne!(restarted.unwrap().ice, before.unwrap().ice);
        negotiation.abandon();
        negotiation.answer(&of_a_browser("them")).unwrap();
        assert_eq!(negotiation.current().unwrap().dtls, before);
    }

    #[test]
    fn browsers_call_is_not_talked_into_the_clear() {
        let mut negotiation = with_browsers();
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xCD; 32])));
        negotiation.answer(&of_a_browser("them")).unwrap();
        assert_eq!(
            negotiation.answer(&description("sendrecv", "0")),
            Err(NegotiationError::NoAgreement(NegotiateError::Unprotected))
        );
    }

    #[test]
    fn trunk_that_says_dtls_is_offered_it_and_one_that_says_off_is_refused_it() {
        let srtp = crate::trunk::SrtpRules { offers_dtls: true, ..Default::default() };
        let mut negotiation = Negotiation::new(Some(&Trunk { srtp, ..Trunk::default() }));
        negotiation.protect(LocalSrtp::default(), Some(Secret([7; 32])));
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xCD; 32])));
        let offer = negotiation.offer().unwrap();
        assert!(
            offer.contains("UDP/TLS/RTP/SAVPF") && offer.contains("opus") && offer.contains("actpass"),
            "{offer}"
        );
        let off = crate::trunk::SrtpRules { mode: Some(SrtpPolicy::Off), ..Default::default() };
        assert!(!off.allows_dtls() && crate::trunk::SrtpRules::default().allows_dtls());
        assert!(Negotiation::default().check(&of_a_browser("them")).is_err());
    }

    #[test]
    fn protected_call_is_not_talked_out_of_it() {
        let mut negotiation = Negotiation::default();
        negotiation.protect(LocalSrtp::new(SrtpPolicy::Optional, |octets| octets.fill(5)), None);
        negotiation.open("127.0.0.1".parse().unwrap(), 20_000, 77, Some(Fingerprint::new([0xAB; 32])));
        let clear = description("sendrecv", "0");
        negotiation.answer(&protected(&clear.to_string())).unwrap();
        assert_eq!(
            negotiation.answer(&clear),
            Err(NegotiationError::NoAgreement(NegotiateError::Unprotected))
        );
        assert!(negotiation.current().unwrap().srtp.is_some());
    }

    #[test]
    fn ack_without_an_answer_is_an_error() {
        let mut negotiation = negotiation();
        negotiation.offer().unwrap();
        assert_eq!(negotiation.accept(None), Err(NegotiationError::Missing));
    }

    #[test]
    fn hold_of_ours_is_offered_as_the_trunk_wants_it_and_taken_back() {
        let mut negotiation = negotiation();
        negotiation.answer(&description("sendrecv", "0")).unwrap();
        for (held, direction) in [
            (Some(HoldOffer::default()), "a=sendonly"),
            (None, "a=sendrecv"),
            (Some(HoldOffer::Inactive), "a=inactive"),
        ] {
            negotiation.hold(held);
            let text = negotiation.offer().unwrap();
            assert!(text.contains(direction), "{held:?}: {text}");
            negotiation.abandon();
        }
    }

    #[test]
    fn another_dialog_has_the_same_port_and_none_of_the_state() {
        let mut negotiation = negotiation();
        negotiation.answer(&description("sendrecv", "8")).unwrap();
        negotiation.hold(Some(HoldOffer::Inactive));
        let mut other = Negotiation::default();
        other.take_port_of(&negotiation, true);
        assert!(other.current().is_none() && !other.awaits_answer());
        let offer = other.offer().unwrap();
        assert!(offer.contains("m=audio 20000 RTP/AVP 0 8") && offer.contains("a=sendrecv"), "{offer}");
    }

    #[test]
    fn old_style_hold_keeps_the_address() {
        let mut negotiation = negotiation();
        negotiation.answer(&description("sendrecv", "0")).unwrap();
        let zeros = "v=0\r\no=- 1 2 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n";
        negotiation.answer(&SessionDescription::parse(zeros.as_bytes()).unwrap()).unwrap();
        let current = negotiation.current().unwrap();
        assert!(!current.direction.sends());
        assert_eq!(current.remote.to_string(), "192.0.2.9:40000");
    }
}
