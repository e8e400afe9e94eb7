//! DTLS-SRTP and ICE in offer and answer: what browsers say, what we say to it, and who is refused.
#![allow(clippy::unwrap_used)]

use tandem_audio::format::Codec;
use tandem_rtp::dtls::{Fingerprint, Setup};
use tandem_sdp::dtls::Secret;
use tandem_sdp::{
    Direction, DtlsRefusal, LocalDtls, LocalMedia, LocalSrtp, NegotiateError, NegotiatedDtls,
    SessionDescription, SrtpPolicy, accept_answer, answer, offer,
};

const HASH: &str =
    "sha-256 4A:AD:B9:B1:3F:82:18:3B:54:02:12:DF:3E:5D:49:6B:19:E5:7C:AB:4A:AD:B9:B1:3F:82:18:3B:54:02:12:DF";

/// As Chromium has it, shortened: no candidate yet, audio and video in one bundle.
const BROWSER: &str = "v=0\r\no=- 7602563789789945080 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n\
    a=group:BUNDLE 0 1\r\na=extmap-allow-mixed\r\na=msid-semantic: WMS\r\n\
    m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 126\r\nc=IN IP4 0.0.0.0\r\na=rtcp:9 IN IP4 0.0.0.0\r\n\
    a=candidate:1 1 udp 2113937151 f00-ba4.local 40000 typ host generation 0 network-cost 999\r\n\
    a=ice-ufrag:dEh7\r\na=ice-pwd:r5V3J1LxZz0wWnCk6bRQ2TtU\r\na=ice-options:trickle\r\na=fingerprint:HASH\r\n\
    a=setup:actpass\r\na=mid:0\r\na=sendrecv\r\na=rtcp-mux\r\na=rtcp-rsize\r\n\
    a=rtpmap:111 opus/48000/2\r\na=rtcp-fb:111 transport-cc\r\na=fmtp:111 minptime=10;useinbandfec=1\r\n\
    a=rtpmap:63 red/48000/2\r\na=rtpmap:9 G722/8000\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n\
    a=rtpmap:126 telephone-event/8000\r\n\
    m=video 9 UDP/TLS/RTP/SAVPF 96\r\nc=IN IP4 0.0.0.0\r\na=mid:1\r\na=rtpmap:96 VP8/90000\r\n";

fn browser() -> String {
    BROWSER.replace("HASH", HASH)
}

fn changed(from: &str, to: &str) -> SessionDescription {
    let text = browser();
    assert!(text.contains(from), "{from}");
    text.replace(from, to).parse().expect("it stays a session description")
}

fn local() -> LocalMedia {
    LocalMedia {
        codecs: Codec::ALL.to_vec(),
        dtls: Some(LocalDtls {
            fingerprint: Fingerprint::new([0xCD; 32]),
            secret: Secret([1; 32]),
            is_offered: false,
            current: None,
        }),
        ..LocalMedia::g711([192, 0, 2, 7].into(), 20_000, 1)
    }
}

fn holding(current: NegotiatedDtls) -> LocalMedia {
    let mut local = local();
    if let Some(dtls) = &mut local.dtls {
        dtls.current = Some(current);
    }
    local
}

fn refusal(offer: &SessionDescription) -> DtlsRefusal {
    match answer(offer, &local()).unwrap_err() {
        NegotiateError::Dtls(refusal) => refusal,
        other => panic!("{other}"),
    }
}

#[test]
fn offer_of_a_browser_is_answered_with_one_candidate_and_the_passive_part() {
    let (answer, negotiated) = answer(&changed("", ""), &local()).unwrap();
    let audio = &answer.media[0];
    let dtls = negotiated.dtls.unwrap();
    assert_eq!((negotiated.codec, negotiated.srtp, negotiated.rtcp_mux), (Codec::Opus, None, true));
    assert_eq!(negotiated.direction, Direction::SendRecv, "an address of zeros is no hold here");
    assert_eq!((dtls.setup, Some(dtls.fingerprint)), (Setup::Passive, Fingerprint::parse(HASH)));
    assert_eq!(dtls.remote_ice.ufrag.as_str(), "dEh7");
    assert_eq!(audio.protocol, "UDP/TLS/RTP/SAVPF");
    assert_eq!(audio.attribute("setup"), Some("passive"));
    assert_eq!(audio.attribute("candidate"), Some("1 1 UDP 2130706431 192.0.2.7 20000 typ host"));
    assert_eq!(audio.attribute("ice-ufrag"), Some(dtls.ice.ufrag.as_str()));
    assert_eq!(audio.attribute("ice-pwd"), Some(dtls.ice.password.as_str()));
    assert_eq!(audio.attribute("mid"), Some("0"));
    assert!(audio.attribute("fingerprint").unwrap().starts_with("sha-256 CD:CD:"));
    assert!(audio.has_flag("rtcp-mux") && audio.has_flag("end-of-candidates"));
    let session = answer.to_string();
    assert!(session.contains("a=group:BUNDLE 0\r\na=ice-lite\r\n"), "{session}");
    assert_eq!((answer.media[1].port, answer.media[1].attribute("mid")), (0, Some("1")));
}

#[test]
fn what_the_session_says_holds_for_its_media() {
    let text = browser();
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| {
            ["a=ice-ufrag", "a=ice-pwd", "a=fingerprint", "a=setup"].iter().any(|a| line.starts_with(a))
        })
        .collect();
    let mut moved = text.lines().filter(|line| !lines.contains(line)).collect::<Vec<_>>();
    let session_ends = moved.iter().position(|line| line.starts_with("m=")).unwrap();
    moved.splice(session_ends..session_ends, lines);
    let (_, negotiated) = answer(&moved.join("\r\n").parse().unwrap(), &local()).unwrap();
    assert_eq!(negotiated.dtls.unwrap().remote_ice.ufrag.as_str(), "dEh7");
}

#[test]
fn part_in_the_handshake_is_the_one_that_is_left() {
    for (said, ours) in [("actpass", Setup::Passive), ("active", Setup::Passive), ("PASSIVE", Setup::Active)]
    {
        let offer = changed("a=setup:actpass", &format!("a=setup:{said}"));
        let (answer, negotiated) = answer(&offer, &local()).unwrap();
        assert_eq!(negotiated.dtls.unwrap().setup, ours);
        assert_eq!(answer.media[0].attribute("setup"), Some(ours.as_str()));
    }
    assert_eq!(refusal(&changed("a=setup:actpass", "a=setup:holdconn")), DtlsRefusal::Setup);
}

#[test]
fn offer_that_cannot_be_met_is_refused_with_the_reason() {
    for (from, to, reason) in [
        ("a=fingerprint:sha-256", "a=fingerprint:md5", DtlsRefusal::Fingerprint),
        ("a=ice-ufrag:dEh7\r\n", "", DtlsRefusal::Ice),
        ("a=ice-pwd:r5V3J1LxZz0wWnCk6bRQ2TtU", &format!("a=ice-pwd:{}", "x".repeat(33)), DtlsRefusal::Ice),
        ("a=extmap-allow-mixed", "a=ice-lite", DtlsRefusal::Lite),
        ("a=rtcp-mux\r\n", "", DtlsRefusal::RtcpMux),
    ] {
        assert_eq!(refusal(&changed(from, to)), reason);
    }
    let off = LocalMedia { dtls: None, ..local() };
    assert_eq!(answer(&changed("", ""), &off).unwrap_err(), NegotiateError::Dtls(DtlsRefusal::Off));
}

#[test]
fn who_must_be_protected_is_so_by_dtls() {
    let srtp = LocalSrtp::new(SrtpPolicy::Required, |octets| octets.fill(1));
    let (answer, negotiated) = answer(&changed("", ""), &LocalMedia { srtp, ..local() }).unwrap();
    assert!(negotiated.is_protected() && negotiated.srtp.is_none());
    assert_eq!(answer.media[0].cryptos().count(), 0);
}

#[test]
fn repeated_offer_keeps_credentials_and_a_restart_changes_them() {
    let first = answer(&changed("", ""), &local()).unwrap().1.dtls.unwrap();
    let again = answer(&changed("", ""), &holding(first)).unwrap().1.dtls.unwrap();
    assert_eq!(again, first);
    let restarted = changed("a=ice-ufrag:dEh7", "a=ice-ufrag:other");
    let restarted = answer(&restarted, &holding(first)).unwrap().1.dtls.unwrap();
    assert!(restarted.ice.ufrag != first.ice.ufrag && restarted.ice.password != first.ice.password);
    assert_eq!((restarted.setup, restarted.fingerprint), (first.setup, first.fingerprint));
}

#[test]
fn parts_stay_while_the_certificate_does() {
    let mut first = answer(&changed("", ""), &local()).unwrap().1.dtls.unwrap();
    first.setup = Setup::Active;
    let again = answer(&changed("", ""), &holding(first)).unwrap().1.dtls.unwrap();
    assert_eq!(again.setup, Setup::Active);
}

#[test]
fn two_of_us_would_both_wait_for_checks() {
    let mut caller = local();
    if let Some(dtls) = &mut caller.dtls {
        dtls.is_offered = true;
    }
    assert_eq!(refusal(&offer(&caller)), DtlsRefusal::Lite);
}

#[test]
fn offer_of_ours_leaves_the_parts_to_the_browser_and_knows_its_answer() {
    let mut caller = local();
    if let Some(dtls) = &mut caller.dtls {
        dtls.is_offered = true;
    }
    let ours = offer(&caller);
    assert_eq!(ours.media[0].attribute("setup"), Some("actpass"));
    assert_eq!(ours.media[0].protocol, "UDP/TLS/RTP/SAVPF");
    let audio_only = browser().split("m=video").next().unwrap().replace("111 63 9 0 8 126", "0");
    for (said, part) in [("active", Setup::Passive), ("passive", Setup::Active)] {
        let theirs = audio_only.replace("a=setup:actpass", &format!("a=setup:{said}")).parse().unwrap();
        let dtls = accept_answer(&ours, &theirs).unwrap().dtls.unwrap();
        assert_eq!(dtls.setup, part);
        assert_eq!(ours.media[0].attribute("ice-ufrag"), Some(dtls.ice.ufrag.as_str()));
    }
    let clear = audio_only.replace("UDP/TLS/RTP/SAVPF", "RTP/AVP").parse().unwrap();
    assert_eq!(accept_answer(&ours, &clear).unwrap_err(), NegotiateError::Transport("RTP/AVP".to_owned()));
}

#[test]
fn secrets_show_in_no_debug() {
    let dtls = answer(&changed("", ""), &local()).unwrap().1.dtls.unwrap();
    let shown = format!("{dtls:?} {:?}", local());
    assert!(!shown.contains(dtls.ice.password.as_str()) && !shown.contains("r5V3J1"), "{shown}");
}
