//! Checks of a browser's kind, and of others.

use super::*;
use proptest::prelude::*;

/// RFC 5769 §2.1.
const SAMPLE: [u8; 108] = [
    0x00, 0x01, 0x00, 0x58, 0x21, 0x12, 0xa4, 0x42, 0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa,
    0x87, 0xdf, 0xae, 0x80, 0x22, 0x00, 0x10, 0x53, 0x54, 0x55, 0x4e, 0x20, 0x74, 0x65, 0x73, 0x74, 0x20,
    0x63, 0x6c, 0x69, 0x65, 0x6e, 0x74, 0x00, 0x24, 0x00, 0x04, 0x6e, 0x00, 0x01, 0xff, 0x80, 0x29, 0x00,
    0x08, 0x93, 0x2f, 0xf9, 0xb1, 0x51, 0x26, 0x3b, 0x36, 0x00, 0x06, 0x00, 0x09, 0x65, 0x76, 0x74, 0x6a,
    0x3a, 0x68, 0x36, 0x76, 0x59, 0x20, 0x20, 0x20, 0x00, 0x08, 0x00, 0x14, 0x9a, 0xea, 0xa7, 0x0c, 0xbf,
    0xd8, 0xcb, 0x56, 0x78, 0x1e, 0xf2, 0xb5, 0xb2, 0xd3, 0xf2, 0x49, 0xc1, 0xb5, 0x71, 0xa2, 0x80, 0x28,
    0x00, 0x04, 0xe5, 0x7a, 0x3b, 0xcf,
];
const PASSWORD: &str = "VOkJxbRl1RmTxUk/WvJxBt";
const ICE_CONTROLLING: u16 = 0x802a;

fn text(text: &str) -> IceText {
    IceText::parse(text).unwrap()
}

fn credentials(password: &str) -> Credentials {
    Credentials { ufrag: text("evtj"), password: text(password) }
}

fn side() -> IceLite {
    IceLite::new(credentials(PASSWORD), text("h6vY"))
}

fn source() -> SocketAddr {
    "192.0.2.1:32853".parse().unwrap()
}

#[allow(clippy::disallowed_methods)]
fn now() -> Instant {
    Instant::now()
}

/// A check with these attributes before its MAC.
fn check(username: &str, password: &str, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = [0; 256];
    let id = [7; 12];
    let mut writer = Writer::new(&mut out, &id);
    writer.begin(BINDING_REQUEST).unwrap();
    writer.attribute(USERNAME, username.as_bytes()).unwrap();
    for (kind, value) in attributes {
        writer.attribute(*kind, value).unwrap();
    }
    writer.integrity(password.as_bytes()).unwrap();
    let len = writer.fingerprint().unwrap();
    out[..len].to_vec()
}

fn error_of(answer: &[u8]) -> Option<u16> {
    (answer[..2] == BINDING_ERROR.to_be_bytes()).then(|| u16::from(answer[26]) * 100 + u16::from(answer[27]))
}

#[test]
fn sample_of_rfc_5769_is_authentic_and_its_tie_is_refused_as_a_conflict() {
    let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
    let checked = side.handle_datagram(&SAMPLE, source(), now(), &mut out).unwrap();
    assert_eq!(error_of(&out[..checked.answer_len]), Some(487), "it says that it is controlled");
    let mut stranger = IceLite::new(credentials("another.password......"), text("h6vY"));
    let checked = stranger.handle_datagram(&SAMPLE, source(), now(), &mut out).unwrap();
    assert_eq!(error_of(&out[..checked.answer_len]), Some(401));
}

#[test]
fn nomination_makes_the_source_the_pair_and_is_answered_with_our_proof() {
    let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
    let controlling = [(ICE_CONTROLLING, &[1; 8][..]), (PRIORITY, &[0x6e, 0, 1, 0xff])];
    let plain = check("evtj:h6vY", PASSWORD, &controlling);
    let checked = side.handle_datagram(&plain, source(), now(), &mut out).unwrap();
    assert!(checked.is_authentic && !checked.is_nominated && side.pair().is_none());
    let answer = &out[..checked.answer_len];
    assert_eq!(answer[..2], BINDING_SUCCESS.to_be_bytes());
    assert_eq!(answer[20..28], [0, 0x20, 0, 8, 0, 1, 0xa1, 0x47], "RFC 5769 §2.2 has the same address");
    let mac = integrity_of(PASSWORD.as_bytes(), &answer[..32]).unwrap();
    assert!(mac.verify_slice(&answer[36..56]).is_ok());
    let nominating = check("evtj:h6vY", PASSWORD, &[(USE_CANDIDATE, &[])]);
    let checked = side.handle_datagram(&nominating, source(), now(), &mut out).unwrap();
    assert!(checked.is_nominated);
    assert_eq!(side.pair(), Some(source()));
    let again = side.handle_datagram(&nominating, source(), now(), &mut out).unwrap();
    assert!(again.is_authentic && !again.is_nominated);
    let moved = "198.51.100.7:9".parse().unwrap();
    assert!(side.handle_datagram(&nominating, moved, now(), &mut out).unwrap().is_nominated);
    assert_eq!(side.pair(), Some(moved), "the peer decides");
}

#[test]
fn stranger_nominates_nothing_and_is_told_little() {
    let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
    for (username, password, error) in [
        ("evtj:h6vY", "wrong", 401),
        ("evtj:xxxx", PASSWORD, 401),
        ("xxxx:h6vY", PASSWORD, 401),
        ("evtj", PASSWORD, 401),
    ] {
        let forged = check(username, password, &[(USE_CANDIDATE, &[])]);
        let checked = side.handle_datagram(&forged, source(), now(), &mut out).unwrap();
        assert_eq!(error_of(&out[..checked.answer_len]), Some(error), "{username}");
        assert!(checked.answer_len < forged.len());
    }
    assert_eq!((side.pair(), side.last_heard(), side.refused()), (None, None, 4));
}

#[test]
fn attribute_that_must_be_understood_is_refused_and_optional_ones_are_passed_over() {
    let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
    let unknown = check("evtj:h6vY", PASSWORD, &[(0x0777, b"what")]);
    let checked = side.handle_datagram(&unknown, source(), now(), &mut out).unwrap();
    assert_eq!(error_of(&out[..checked.answer_len]), Some(420));
    let optional = check("evtj:h6vY", PASSWORD, &[(0xC057, &[0, 1, 0, 2])]);
    assert!(side.handle_datagram(&optional, source(), now(), &mut out).unwrap().is_authentic);
}

#[test]
fn what_stands_behind_the_mac_nominates_nothing() {
    let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
    let mut forged = check("evtj:h6vY", PASSWORD, &[]);
    forged.truncate(forged.len() - 8);
    forged.extend([0x00, 0x25, 0, 0]);
    let len = (forged.len() - HEADER_LEN + 8) as u16;
    forged[2..4].copy_from_slice(&len.to_be_bytes());
    let crc = crc32(&forged) ^ FINGERPRINT_XOR;
    forged.extend([0x80, 0x28, 0, 4]);
    forged.extend(crc.to_be_bytes());
    let checked = side.handle_datagram(&forged, source(), now(), &mut out).unwrap();
    assert!(checked.is_authentic && !checked.is_nominated);
}

#[test]
fn ipv6_sources_are_told_as_such() {
    let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
    let v6 = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
    let checked = side.handle_datagram(&check("evtj:h6vY", PASSWORD, &[]), v6, now(), &mut out).unwrap();
    assert_eq!(checked.answer_len, ANSWER_LEN_MAX);
    assert_eq!(out[20..28], [0, 0x20, 0, 20, 0, 2, 0xa1, 0x47]);
}

#[test]
fn restart_keeps_the_pair_until_the_new_password_nominates_another() {
    let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
    let nominating = |username, password| check(username, password, &[(USE_CANDIDATE, &[])]);
    side.handle_datagram(&nominating("evtj:h6vY", PASSWORD), source(), now(), &mut out).unwrap();
    let again = Credentials { ufrag: text("ours"), password: text("anew.anew.anew.anew.anew") };
    side.restart(again, text("them"));
    assert_eq!(side.pair(), Some(source()));
    let moved = "198.51.100.7:9".parse().unwrap();
    let old = nominating("evtj:h6vY", PASSWORD);
    assert!(!side.handle_datagram(&old, moved, now(), &mut out).unwrap().is_authentic);
    let new = nominating("ours:them", "anew.anew.anew.anew.anew");
    assert!(side.handle_datagram(&new, moved, now(), &mut out).unwrap().is_nominated);
    assert_eq!(side.pair(), Some(moved));
}

#[test]
fn checks_that_are_written_here_are_answered_here() {
    let (mut side, mut out, mut answer) = (side(), [0; 256], [0; ANSWER_LEN_MAX]);
    for is_nominating in [false, true] {
        let len =
            write_check(&mut out, [9; 12], (&credentials(PASSWORD), text("h6vY")), is_nominating).unwrap();
        let checked = side.handle_datagram(&out[..len], source(), now(), &mut answer).unwrap();
        assert!(checked.is_authentic && checked.is_nominated == is_nominating);
    }
}

#[test]
fn password_shows_in_no_debug() {
    assert!(!format!("{:?}", side()).contains(PASSWORD));
}

proptest! {
    #[test]
    fn one_changed_octet_is_no_check(at in 0_usize..108, change in 1_u8..=255) {
        let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
        let mut damaged = SAMPLE;
        damaged[at] ^= change;
        let outcome = side.handle_datagram(&damaged, source(), now(), &mut out);
        prop_assert!(outcome.is_err(), "{:?}", outcome);
    }

    #[test]
    fn any_octets_are_refused_or_answered_shortly(datagram in proptest::collection::vec(any::<u8>(), 0..200)) {
        let (mut side, mut out) = (side(), [0; ANSWER_LEN_MAX]);
        if let Ok(checked) = side.handle_datagram(&datagram, source(), now(), &mut out) {
            prop_assert!(!checked.is_authentic && checked.answer_len <= ANSWER_LEN_MAX);
        }
    }
}
