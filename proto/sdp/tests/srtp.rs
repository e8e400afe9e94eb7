//! Keys in offer and answer, and who is refused without them.

use tandem_audio::format::Codec;
use tandem_rtp::srtp::Suite;
use tandem_sdp::{
    LocalMedia, LocalSrtp, NegotiateError, SessionDescription, SrtpPolicy, accept_answer, answer, offer,
};

const KEY: &str = "WVNfX19zZW1jdGwgKCkgewkyMjA7fQp9CnVubGVz";

fn local(policy: SrtpPolicy, fill: u8) -> LocalMedia {
    let srtp = LocalSrtp::new(policy, |octets| octets.fill(fill));
    LocalMedia { srtp, ..LocalMedia::g711([127, 0, 0, 1].into(), 20_000, 1) }
}

fn offered(profile: &str, lines: &str) -> SessionDescription {
    format!(
        "v=0\no=- 1 1 IN IP4 192.0.2.1\ns=-\nc=IN IP4 192.0.2.1\nt=0 0\nm=audio 4000 {profile} 0\n{lines}"
    )
    .parse()
    .expect("the lines are a session description")
}

fn keyed(profile: &str) -> SessionDescription {
    offered(profile, &format!("a=crypto:7 AES_CM_128_HMAC_SHA1_80 inline:{KEY}|2^31\n"))
}

#[test]
fn two_of_us_agree_on_the_best_suite_and_each_has_the_others_key() {
    for policy in [SrtpPolicy::Optional, SrtpPolicy::Required] {
        let (caller, callee) = (local(policy, 1), local(policy, 2));
        let offer = offer(&caller);
        let (answer, called) = answer(&offer, &callee).unwrap();
        let calling = accept_answer(&offer, &answer).unwrap();
        let (ours, theirs) = (calling.srtp.unwrap(), called.srtp.unwrap());
        assert_eq!((ours.local, ours.remote), (theirs.remote, theirs.local));
        assert_eq!(ours.local.suite(), Suite::AeadAes256Gcm);
        assert_ne!(ours.local, ours.remote);
        let profile = if policy == SrtpPolicy::Required { "RTP/SAVP" } else { "RTP/AVP" };
        assert_eq!((&*offer.media[0].protocol, &*answer.media[0].protocol), (profile, profile));
        assert_eq!(answer.media[0].cryptos().count(), 1);
    }
}

#[test]
fn answer_repeats_number_and_profile_of_the_line_it_takes() {
    for profile in ["RTP/SAVP", "RTP/AVP"] {
        let (answer, negotiated) = answer(&keyed(profile), &local(SrtpPolicy::Optional, 2)).unwrap();
        assert_eq!(answer.media[0].protocol, profile);
        let line = answer.media[0].attribute("crypto").unwrap();
        assert!(line.starts_with("7 AES_CM_128_HMAC_SHA1_80 inline:"), "{line}");
        assert_eq!(negotiated.srtp.unwrap().remote.expose()[..4], *b"YS__");
    }
}

#[test]
fn offerers_first_line_that_we_speak_is_taken() {
    let lines = format!(
        "a=crypto:1 F8_128_HMAC_SHA1_80 inline:{KEY}\na=crypto:2 AES_CM_128_HMAC_SHA1_32 inline:{KEY}\n\
         a=crypto:3 AES_CM_128_HMAC_SHA1_80 inline:{KEY}\n"
    );
    let (_, negotiated) = answer(&offered("RTP/SAVP", &lines), &local(SrtpPolicy::Optional, 2)).unwrap();
    assert_eq!(negotiated.srtp.unwrap().local.suite(), Suite::AesCm128HmacSha1_32);
}

#[test]
fn who_must_be_protected_refuses_the_clear_and_who_may_not_be_refuses_keys() {
    let clear = offered("RTP/AVP", "");
    assert_eq!(answer(&clear, &local(SrtpPolicy::Required, 2)).unwrap_err(), NegotiateError::Unprotected);
    assert!(answer(&clear, &local(SrtpPolicy::Optional, 2)).unwrap().1.srtp.is_none());
    let off = local(SrtpPolicy::Off, 2);
    assert_eq!(
        answer(&keyed("RTP/SAVP"), &off).unwrap_err(),
        NegotiateError::Transport("RTP/SAVP".to_owned())
    );
    let (opportunistic, negotiated) = answer(&keyed("RTP/AVP"), &off).unwrap();
    assert!(negotiated.srtp.is_none() && opportunistic.media[0].attribute("crypto").is_none());
    let keyless = offered("RTP/SAVP", "");
    assert_eq!(answer(&keyless, &local(SrtpPolicy::Optional, 2)).unwrap_err(), NegotiateError::NoCommonSuite);
}

#[test]
fn offer_of_both_kinds_is_taken_by_what_is_allowed() {
    let both = format!(
        "v=0\no=- 1 1 IN IP4 192.0.2.1\ns=-\nc=IN IP4 192.0.2.1\nt=0 0\nm=audio 4000 RTP/SAVP 0\n\
         a=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:{KEY}\nm=audio 4002 RTP/AVP 0\n"
    );
    let both: SessionDescription = both.parse().unwrap();
    let ports = |policy| {
        let (answer, negotiated) = answer(&both, &local(policy, 2)).unwrap();
        (answer.media[0].port, answer.media[1].port, negotiated.srtp.is_some())
    };
    assert_eq!(ports(SrtpPolicy::Required), (20_000, 0, true));
    assert_eq!(ports(SrtpPolicy::Off), (0, 20_000, false));
}

#[test]
fn opportunistic_offer_that_is_answered_without_a_key_goes_on_in_the_clear() {
    let caller = offer(&local(SrtpPolicy::Optional, 1));
    let negotiated = accept_answer(&caller, &offered("RTP/AVP", "")).unwrap();
    assert_eq!((negotiated.codec, negotiated.srtp), (Codec::Pcmu, None));
    let required = offer(&local(SrtpPolicy::Required, 1));
    assert_eq!(accept_answer(&required, &offered("RTP/AVP", "")), Err(NegotiateError::Unprotected));
    assert_eq!(accept_answer(&required, &offered("RTP/SAVP", "")), Err(NegotiateError::NoCommonSuite));
}

#[test]
fn answer_with_another_number_or_suite_than_was_offered_is_no_agreement() {
    let required = offer(&local(SrtpPolicy::Required, 1));
    let answered = |line: &str| accept_answer(&required, &offered("RTP/SAVP", line));
    assert!(answered(&format!("a=crypto:3 AES_CM_128_HMAC_SHA1_80 inline:{KEY}\n")).is_ok());
    assert!(answered(&format!("a=crypto:9 AES_CM_128_HMAC_SHA1_80 inline:{KEY}\n")).is_err());
    assert!(answered(&format!("a=crypto:3 AES_CM_128_HMAC_SHA1_32 inline:{KEY}\n")).is_err());
}

#[test]
fn rtcp_shares_the_port_only_if_both_want_it() {
    let local = local(SrtpPolicy::Off, 0);
    let (shared, negotiated) = answer(&offered("RTP/AVP", "a=rtcp-mux\n"), &local).unwrap();
    assert!(negotiated.rtcp_mux && shared.media[0].has_flag("rtcp-mux"));
    let (apart, negotiated) = answer(&offered("RTP/AVP", "a=rtcp:4009\n"), &local).unwrap();
    assert!(!negotiated.rtcp_mux && !apart.media[0].has_flag("rtcp-mux"));
    assert_eq!(negotiated.remote_rtcp.port(), 4_009);
    let ours = offer(&local);
    assert!(ours.media[0].has_flag("rtcp-mux"));
    assert!(accept_answer(&ours, &offered("RTP/AVP", "a=rtcp-mux\n")).unwrap().rtcp_mux);
    assert!(!accept_answer(&ours, &offered("RTP/AVP", "")).unwrap().rtcp_mux);
}
