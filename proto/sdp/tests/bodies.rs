//! Bodies as phones and carriers write them, one file each in `bodies/`, through parser and answer.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tandem_audio::format::{Codec, Ptime};
use tandem_sdp::{
    Direction, DtlsRefusal, LocalMedia, NegotiateError, Negotiated, SessionDescription, answer,
};

fn local() -> LocalMedia {
    LocalMedia::g711(IpAddr::V4(Ipv4Addr::LOCALHOST), 20_000, 7)
}

fn negotiate(body: &str) -> (SessionDescription, Negotiated) {
    let offer = body.parse().expect("the body is a session description");
    answer(&offer, &local()).expect("the offer can be answered")
}

fn agreed(body: &str) -> (Codec, u8, u32, Option<u8>, String) {
    let (_, n) = negotiate(body);
    (n.codec, n.payload_type, n.ptime.as_ms(), n.telephone_event_payload_type, n.remote.to_string())
}

#[test]
fn linphone_gets_pcmu_and_the_telephone_event_that_ticks_as_it_does() {
    let expected = (Codec::Pcmu, 0, 20, Some(100), "192.168.1.20:7078".to_owned());
    assert_eq!(agreed(include_str!("bodies/linphone.sdp")), expected);
}

#[test]
fn baresip_gets_its_preferred_codec_and_its_own_rtcp_port() {
    let (_, negotiated) = negotiate(include_str!("bodies/baresip.sdp"));
    assert_eq!((negotiated.codec, negotiated.telephone_event_payload_type), (Codec::Pcma, Some(101)));
    assert_eq!(negotiated.remote_rtcp, SocketAddr::from(([127, 0, 0, 1], 10_035)));
}

#[test]
fn sipp_gets_no_telephone_event_it_did_not_offer() {
    let expected = (Codec::Pcmu, 0, 20, None, "127.0.0.1:6000".to_owned());
    assert_eq!(agreed(include_str!("bodies/sipp.sdp")), expected);
}

#[test]
fn asterisk_gets_g711_when_g722_is_not_ours() {
    let expected = (Codec::Pcma, 8, 20, Some(101), "203.0.113.5:18234".to_owned());
    assert_eq!(agreed(include_str!("bodies/asterisk.sdp")), expected);
}

#[test]
fn static_payload_types_need_no_rtpmap_and_ptime_is_honoured() {
    let expected = (Codec::Pcma, 8, 30, Some(97), "198.51.100.44:40012".to_owned());
    assert_eq!(agreed(include_str!("bodies/carrier-static-only.sdp")), expected);
}

#[test]
fn missing_time_and_odd_origin_do_not_lose_the_call() {
    let expected = (Codec::Pcmu, 0, 20, None, "10.1.2.3:17000".to_owned());
    assert_eq!(agreed(include_str!("bodies/gateway-no-time-odd-origin.sdp")), expected);
}

#[test]
fn connection_of_the_media_wins_wherever_it_stands() {
    let expected = (Codec::Pcmu, 0, 20, Some(120), "10.9.8.8:2050".to_owned());
    assert_eq!(agreed(include_str!("bodies/avaya-order.sdp")), expected);
}

#[test]
fn ipv6_is_an_address_like_any_other() {
    assert_eq!(agreed(include_str!("bodies/softphone-ipv6.sdp")).4, "[2001:db8::1]:54400");
}

#[test]
fn webrtc_is_refused_where_dtls_is_not_allowed() {
    let offer = include_str!("bodies/webrtc.sdp").parse().unwrap();
    let refusal = answer(&offer, &local()).unwrap_err();
    assert_eq!(refusal, NegotiateError::Dtls(DtlsRefusal::Off));
    assert_eq!(refusal.to_string(), "DTLS-SRTP is not allowed here");
}

#[test]
fn first_usable_audio_is_answered_and_all_others_are_refused_in_order() {
    let (answer, negotiated) = negotiate(include_str!("bodies/fax-and-audio.sdp"));
    assert_eq!(negotiated.remote.port(), 5008);
    let lines: Vec<_> = answer.media.iter().map(|m| (m.kind.as_str(), m.port, m.protocol.as_str())).collect();
    let expected = [
        ("image", 0, "udptl"),
        ("audio", 0, "RTP/SAVP"),
        ("audio", 20_000, "RTP/AVP"),
        ("video", 0, "RTP/AVP"),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn answer_reads_as_the_rfc_writes_it() {
    let (answer, negotiated) = negotiate(include_str!("bodies/baresip.sdp"));
    assert_eq!(
        answer.to_string(),
        "v=0\r\no=- 7 7 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n\
         m=audio 20000 RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\n\
         a=fmtp:101 0-15\r\na=ptime:20\r\na=sendrecv\r\n"
    );
    assert_eq!((negotiated.direction, negotiated.ptime), (Direction::SendRecv, Ptime::MS_20));
}
