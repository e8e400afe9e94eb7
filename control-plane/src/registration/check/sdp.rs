//! The descriptions of a check's call: our offer, and what an answer says.

use std::net::{IpAddr, SocketAddr};

use tandem_sip::Body;

/// What we offer, for people.
pub(super) const OFFERED: &str = "PCMU (0), PCMA (8), telephone-event (101) for DTMF, ptime 20 ms";

/// Our offer. `version` rises with each.
pub(super) fn offer(host: &str, port: u16, direction: &str, version: u32) -> Body {
    let bare = host.trim_matches(['[', ']']);
    let family = if matches!(bare.parse(), Ok(IpAddr::V6(_))) { "IP6" } else { "IP4" };
    Body::sdp(format!(
        "v=0\r\no=- 1 {version} IN {family} {bare}\r\ns=-\r\nc=IN {family} {bare}\r\nt=0 0\r\n\
         m=audio {port} RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n\
         a=rtpmap:101 telephone-event/8000\r\na=fmtp:101 0-16\r\na=ptime:20\r\na={direction}\r\n"
    ))
}

/// What an answer says of the audio.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// Where to send; `None`: nowhere (hold of the old kind, or no audio).
    pub(super) remote: Option<SocketAddr>,
    /// The first payload type, and its name.
    pub(super) codec: Option<(u8, String)>,
    /// Payload type of telephone-event.
    pub(super) dtmf: Option<u8>,
    /// `sendrecv`, `sendonly`, `recvonly` or `inactive`.
    pub(super) direction: &'static str,
}

/// Reads the first audio section. Lines that it does not know are passed over.
pub(super) fn read(text: &[u8]) -> Option<Answer> {
    let text = std::str::from_utf8(text).ok()?;
    let mut answer = Answer { direction: "sendrecv", ..Answer::default() };
    let (mut host, mut port, mut formats): (Option<IpAddr>, u16, Vec<u8>) = (None, 0, Vec::new());
    let (mut in_audio, mut seen_audio) = (false, false);
    for line in text.lines() {
        let Some((kind, value)) = line.trim_end().split_once('=') else { continue };
        if kind == "m" {
            in_audio = !seen_audio && value.starts_with("audio ");
            if in_audio {
                seen_audio = true;
                let mut words = value.split(' ').skip(1);
                port = words.next()?.parse().ok()?;
                formats = words.skip(1).filter_map(|word| word.parse().ok()).collect();
            }
            continue;
        }
        if seen_audio && !in_audio {
            continue;
        }
        match kind {
            "c" => host = value.split(' ').nth(2).and_then(|host| host.split('/').next()?.parse().ok()),
            "a" => {
                for direction in ["sendrecv", "sendonly", "recvonly", "inactive"] {
                    if value == direction {
                        answer.direction = direction;
                    }
                }
                if let Some((number, name)) =
                    value.strip_prefix("rtpmap:").and_then(|map| map.split_once(' '))
                {
                    let number: u8 = number.parse().ok()?;
                    if name.to_ascii_lowercase().starts_with("telephone-event/8000") {
                        answer.dtmf = Some(number);
                    } else if formats.first() == Some(&number) {
                        answer.codec = Some((number, name.to_owned()));
                    }
                }
            }
            _ => {}
        }
    }
    if !seen_audio || port == 0 {
        return None;
    }
    let is_open = |host: &IpAddr| !host.is_unspecified();
    answer.remote = host.filter(is_open).map(|host| SocketAddr::new(host, port));
    if answer.codec.is_none() {
        let name = match formats.first()? {
            0 => "PCMU/8000",
            8 => "PCMA/8000",
            _ => "unknown",
        };
        answer.codec = formats.first().map(|number| (*number, name.to_owned()));
    }
    answer.dtmf = answer.dtmf.filter(|number| formats.contains(number));
    Some(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answer_says_codec_dtmf_place_and_direction() {
        let text = b"v=0\r\no=- 1 1 IN IP4 192.0.2.9\r\ns=-\r\nc=IN IP4 192.0.2.9\r\nt=0 0\r\n\
                     m=audio 4000 RTP/AVP 8 101\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\n\
                     a=recvonly\r\nm=video 4002 RTP/AVP 99\r\na=sendonly\r\nc=IN IP4 192.0.2.10\r\n";
        let answer = read(text).unwrap();
        assert_eq!(answer.remote, "192.0.2.9:4000".parse().ok());
        assert_eq!(answer.codec, Some((8, "PCMA/8000".to_owned())));
        assert_eq!((answer.dtmf, answer.direction), (Some(101), "recvonly"));
    }

    #[test]
    fn what_lacks_something_is_read_for_the_rest() {
        let plain = read(b"v=0\r\nc=IN IP4 0.0.0.0\r\nm=audio 4000 RTP/AVP 0\r\n").unwrap();
        assert_eq!((plain.remote, plain.dtmf, plain.direction), (None, None, "sendrecv"));
        assert_eq!(plain.codec, Some((0, "PCMU/8000".to_owned())));
        assert_eq!(read(b"v=0\r\nm=audio 0 RTP/AVP 0\r\n"), None);
        assert_eq!(read(b"v=0\r\n"), None);
        assert_eq!(read(b"\xff"), None);
    }

    #[test]
    fn our_offer_reads_back() {
        let offer = offer("[2001:db8::1]", 4000, "sendonly", 2);
        let read = read(&offer.bytes).unwrap();
        assert_eq!(read.remote, "[2001:db8::1]:4000".parse().ok());
        assert_eq!((read.dtmf, read.direction), (Some(101), "sendonly"));
    }
}
