//! Scenarios in tests/sipp: sipp's own XML, in which a line may hold one of these elements, each standing for what every
//! SIP message repeats. All else goes to sipp as it is.
//!
//! ```text
//!   <invite …/>    sends an INVITE outside of a dialog             <answered …/>  100, 18x, then the 200
//!   <ack …/>       sends the ACK of the last 2xx                   <refused …/>   100, then this status, and its ACK
//!   <cancel/>      sends the CANCEL of the last INVITE             <expect …/>    receives this status
//!   <request …/>   sends a request, in the dialog if there is one  <asked …/>     receives a request of this method
//!   <bye/>         sends BYE, receives 200                         <reply …/>     answers the last request received
//! ```
//!
//! | attribute | of | what it gives |
//! |---|---|---|
//! | `method`, `status` | | `OPTIONS`; `200`, and with its words in a reply: `180 Ringing` |
//! | `to` | sends | user part of the Request-URI; `[to]` if left out, which the test gives |
//! | `uri` | sends | the whole Request-URI instead |
//! | `cseq` | sends | the number; if left out, one more than the last |
//! | `sdp` | sends | `sendrecv`, `sendonly`, `recvonly`, `inactive`, `0.0.0.0` (hold in the old way), `none` |
//! | `codecs` | sends | payload types of the SDP; `0 101` if left out |
//! | `port` | sends | where the SDP wants RTP; `[rtp_port]` if left out |
//! | `headers` | sends | more header lines, with `\|` between them |
//! | `body` | sends | a body that is no SDP (its type among the headers), with `\|` between lines |
//! | `branch` | sends | what follows the cookie, when it is to be another than the transaction's own |
//! | `early` | sends | `yes`: in the dialog that a provisional response has made |
//! | `aor` | sends | user of From, and of To for a REGISTER: `[user]` |
//! | `peer` | ack | `last`: To as the last response has it, for the ACK of a refusal that is written by hand |
//! | `of` | reply | `invite`: answers the INVITE that came first, and not the last request |
//! | `matches`, `lacks` | receives | regular expressions, with ` AND ` between them, looked for in the whole message |
//! | any other | | goes into sipp's element: `lost`, `timeout`, `optional`, `next`, … |

use std::fmt::Write;

/// Writes sipp's XML for a scenario.
pub fn expand(text: &str) -> Result<String, String> {
    let mut scenario = Scenario::default();
    let mut out = String::new();
    let mut comment = false;
    for (number, line) in text.lines().enumerate() {
        comment |= line.contains("<!--");
        match if comment { None } else { Element::parse(line.trim()) } {
            Some(element) => scenario
                .element(element)
                .map(|xml| out.push_str(&xml))
                .map_err(|error| format!("line {}: {error}", number + 1))?,
            None if line.trim() == "</scenario>" => out.push_str(&scenario.end()),
            None => {
                out.push_str(line);
                out.push('\n');
            }
        }
        comment &= !line.contains("-->");
    }
    Ok(out)
}

struct Element<'a> {
    name: &'a str,
    attributes: Vec<(&'a str, &'a str)>,
}

/// Elements of ours. sipp has others: send, recv, pause, nop, …
const OURS: [&str; 10] =
    ["invite", "ack", "cancel", "request", "bye", "answered", "refused", "expect", "asked", "reply"];

/// Attributes of ours; sipp gets those it knows.
const OWN: &[&str] = &[
    "method", "status", "to", "uri", "cseq", "sdp", "codecs", "port", "headers", "body", "branch", "of",
    "early", "aor", "peer", "matches", "lacks",
];

impl<'a> Element<'a> {
    /// One element that fills its line; none when the line holds something else.
    fn parse(line: &'a str) -> Option<Self> {
        let inside = line.strip_prefix('<')?.strip_suffix("/>")?.trim();
        let (name, mut rest) = inside.split_once(' ').unwrap_or((inside, ""));
        if !OURS.contains(&name) {
            return None;
        }
        let mut attributes = Vec::new();
        while let Some((key, after)) = rest.split_once("=\"") {
            let (value, after) = after.split_once('"')?;
            attributes.push((key.trim(), value));
            rest = after;
        }
        Some(Self { name, attributes })
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    fn need(&self, name: &str) -> Result<&'a str, String> {
        self.get(name).ok_or_else(|| format!("<{}> needs {name}=\"…\"", self.name))
    }

    /// What sipp is to see of it.
    fn others(&self) -> String {
        let others = self.attributes.iter().filter(|(key, _)| !OWN.contains(key));
        others.fold(String::new(), |mut text, (key, value)| {
            let _ = write!(text, " {key}=\"{value}\"");
            text
        })
    }
}

/// Where a scenario is at.
#[derive(Default)]
struct Scenario {
    /// Last CSeq number of ours.
    cseq: u32,
    /// That of the last INVITE of ours.
    invite_cseq: u32,
    /// Request-URI of the last INVITE outside of a dialog.
    invite_uri: String,
    /// sipp was called: its dialog has the other order of From and To.
    called: bool,
    /// A 2xx was sent or received.
    in_dialog: bool,
    /// sipp's variables of checks, which it wants to see used.
    variables: Vec<String>,
    /// The last request that was received is of no dialog yet.
    bare_request: bool,
}

impl Scenario {
    fn element(&mut self, element: Element<'_>) -> Result<String, String> {
        match element.name {
            "invite" => {
                self.next_cseq(&element)?;
                self.invite_cseq = self.cseq;
                let user = element.get("to").unwrap_or("[to]");
                let uri = format!("sip:{user}@[remote_ip]:[remote_port]");
                self.invite_uri = element.get("uri").unwrap_or(&uri).to_owned();
                Ok(self.send(&element, "INVITE", true))
            }
            "request" => {
                let method = element.need("method")?;
                self.next_cseq(&element)?;
                if method == "INVITE" {
                    self.invite_cseq = self.cseq;
                }
                Ok(self.send(&element, method, true))
            }
            "ack" => Ok(self.send(&element, "ACK", false)),
            "cancel" => Ok(self.send(&element, "CANCEL", true)),
            "bye" => {
                self.next_cseq(&element)?;
                Ok(self.send(&element, "BYE", true) + &self.receive("response=\"200\"", &element))
            }
            "answered" => {
                self.in_dialog = true;
                Ok(OPTIONAL_100.to_owned()
                    + OPTIONAL_18X
                    + &self.receive("response=\"200\" rrs=\"true\"", &element))
            }
            "refused" => {
                let status = element.need("status")?;
                let xml = OPTIONAL_100.to_owned()
                    + OPTIONAL_18X
                    + &self.receive(&format!("response=\"{status}\""), &element);
                Ok(xml + &self.acknowledge_refusal())
            }
            "expect" => {
                let status = element.need("status")?;
                Ok(self.receive(&format!("response=\"{status}\" rrs=\"true\""), &element))
            }
            "asked" => {
                let method = element.need("method")?;
                let first = self.cseq == 0 && !self.called && !self.in_dialog;
                self.called |= first;
                self.bare_request = first || (self.called && !self.in_dialog);
                Ok(self.receive(&format!("request=\"{method}\" rrs=\"true\""), &element))
            }
            "reply" => self.reply(&element),
            other => Err(format!("<{other}> is unknown")),
        }
    }

    fn next_cseq(&mut self, element: &Element<'_>) -> Result<(), String> {
        self.cseq = match element.get("cseq") {
            Some(number) => number.parse().map_err(|_| format!("cseq {number} is no number"))?,
            None => self.cseq + 1,
        };
        Ok(())
    }

    fn send(&self, element: &Element<'_>, method: &str, retransmits: bool) -> String {
        let of_invite = matches!(method, "ACK" | "CANCEL");
        let cseq = if of_invite { self.invite_cseq } else { self.cseq };
        let early = element.get("early").is_some();
        let uri = match element.get("uri") {
            Some(uri) => unescaped(uri),
            None if method == "CANCEL" || (method == "INVITE" && !self.in_dialog) => self.invite_uri.clone(),
            None if self.in_dialog || early => "[next_url]".to_owned(),
            None => format!("sip:{}@[remote_ip]:[remote_port]", element.get("to").unwrap_or("[to]")),
        };
        let branch = match element.get("branch") {
            Some(branch) => format!("-{branch}"),
            None => branch(cseq, if method == "ACK" { "-ack" } else { "" }),
        };
        let aor = element.get("aor").unwrap_or("sipp");
        let to = if method == "REGISTER" { aor } else { "someone" };
        let (from, to) = if self.called {
            ("From: [$local];tag=[pid]-[call_number]".to_owned(), "To: [$remote]".to_owned())
        } else if element.get("peer") == Some("last") {
            (FROM.replace("<sip:sipp@", &format!("<sip:{aor}@")), "[last_To:]".to_owned())
        } else {
            let tag = self.to_tag(method, early);
            let from = FROM.replace("<sip:sipp@", &format!("<sip:{aor}@"));
            (from, format!("To: <sip:{to}@[remote_ip]:[remote_port]>{tag}"))
        };
        let mut text = request(method, &uri, &branch, &from, &to, cseq);
        if self.in_dialog || early {
            text.push_str("[routes]\n");
        }
        if method != "ACK" && method != "BYE" && method != "CANCEL" {
            text.push_str(CONTACT);
        }
        let sdp = match method {
            "INVITE" => element.get("sdp").unwrap_or("sendrecv"),
            _ => element.get("sdp").unwrap_or("none"),
        };
        finish(&mut text, element, sdp, cseq);
        let retransmits = if retransmits { " retrans=\"500\"" } else { "" };
        format!("  <send{retransmits}{}><![CDATA[\n{text}]]></send>\n", element.others())
    }

    fn to_tag(&self, method: &str, early: bool) -> &'static str {
        if (self.in_dialog && method != "CANCEL") || early { "[peer_tag_param]" } else { "" }
    }

    /// The ACK of a refusal belongs to the INVITE's transaction (RFC 3261 §17.1.1.3).
    fn acknowledge_refusal(&self) -> String {
        let (uri, cseq) = if self.in_dialog {
            ("[next_url]", self.invite_cseq)
        } else {
            (self.invite_uri.as_str(), self.invite_cseq)
        };
        let to = "[last_To:]";
        let mut text = format!(
            "ACK {uri} SIP/2.0\nVia: SIP/2.0/[transport] [local_ip]:[local_port];branch=z9hG4bK{}\n",
            branch(cseq, "")
        );
        let _ = writeln!(text, "{FROM}\n{to}\nCall-ID: [call_id]\nCSeq: {cseq} ACK\nMax-Forwards: 70");
        text.push_str("Content-Length: 0\n\n");
        format!("  <send><![CDATA[\n{text}]]></send>\n")
    }

    fn reply(&mut self, element: &Element<'_>) -> Result<String, String> {
        let status = element.need("status")?;
        let of_invite = element.get("of") == Some("invite");
        let tag = if self.bare_request || of_invite { ";tag=[pid]-[call_number]" } else { "" };
        let mut text = format!("SIP/2.0 {status}\n");
        if of_invite {
            let _ = writeln!(
                text,
                "Via:[$via]\nFrom:[$remote]\nTo:[$local]{tag}\nCall-ID: [call_id]\nCSeq:[$cseq]"
            );
        } else {
            let _ =
                writeln!(text, "[last_Via:]\n[last_From:]\n[last_To:]{tag}\n[last_Call-ID:]\n[last_CSeq:]");
        }
        text.push_str("[last_Record-Route:]\n");
        // A Contact of 300 and above would say where else to try.
        if matches!(status.as_bytes().first(), Some(b'1' | b'2')) {
            text.push_str(CONTACT);
        }
        finish(&mut text, element, element.get("sdp").unwrap_or("none"), 1);
        if status.starts_with('2') && self.called {
            self.in_dialog = true;
            self.bare_request = false;
        }
        Ok(format!("  <send{}><![CDATA[\n{text}]]></send>\n", element.others()))
    }

    fn receive(&mut self, what: &str, element: &Element<'_>) -> String {
        let mut actions = String::new();
        if self.called && self.variables.is_empty() {
            // Whom to answer later on, as the first request said it.
            for (header, variable) in
                [("From:", "remote"), ("To:", "local"), ("Via:", "via"), ("CSeq:", "cseq")]
            {
                let _ = writeln!(
                    actions,
                    "    <ereg regexp=\".*\" search_in=\"hdr\" header=\"{header}\" check_it=\"true\" assign_to=\"{variable}\"/>"
                );
                self.variables.push(variable.to_owned());
            }
        }
        for (attribute, check) in [("matches", "check_it"), ("lacks", "check_it_inverse")] {
            let wanted = element.get(attribute).into_iter().flat_map(|all| all.split(" AND "));
            for pattern in wanted {
                let variable = format!("check{}", self.variables.len());
                let _ = writeln!(
                    actions,
                    "    <ereg regexp=\"{pattern}\" search_in=\"msg\" {check}=\"true\" assign_to=\"{variable}\"/>"
                );
                self.variables.push(variable);
            }
        }
        if actions.is_empty() {
            return format!("  <recv {what}{}/>\n", element.others());
        }
        format!("  <recv {what}{}><action>\n{actions}  </action></recv>\n", element.others())
    }

    fn end(&self) -> String {
        if self.variables.is_empty() {
            return "</scenario>\n".to_owned();
        }
        format!("  <Reference variables=\"{}\"/>\n</scenario>\n", self.variables.join(","))
    }
}

const OPTIONAL_100: &str = "  <recv response=\"100\" optional=\"true\"/>\n";
const OPTIONAL_18X: &str =
    "  <recv response=\"180\" optional=\"true\"/>\n  <recv response=\"183\" optional=\"true\"/>\n";
const FROM: &str = "From: \"sipp\" <sip:sipp@[local_ip]:[local_port]>;tag=[pid]-[call_number]";
const CONTACT: &str = "Contact: <sip:sipp@[local_ip]:[local_port];transport=[transport]>\n";

fn branch(cseq: u32, suffix: &str) -> String {
    format!("-[pid]-[call_number]-{cseq}{suffix}")
}

fn request(method: &str, uri: &str, branch: &str, from: &str, to: &str, cseq: u32) -> String {
    format!(
        "{method} {uri} SIP/2.0\n\
         Via: SIP/2.0/[transport] [local_ip]:[local_port];branch=z9hG4bK{branch}\n\
         {from}\n\
         {to}\n\
         Call-ID: [call_id]\n\
         CSeq: {cseq} {method}\n\
         Max-Forwards: 70\n"
    )
}

/// More headers and the body.
fn finish(text: &mut String, element: &Element<'_>, sdp: &str, version: u32) {
    for header in element.get("headers").into_iter().flat_map(|all| all.split('|')) {
        if let Some(limit) = header.strip_prefix("Max-Forwards:") {
            *text = text.replace("Max-Forwards: 70", &format!("Max-Forwards:{limit}"));
        } else {
            let _ = writeln!(text, "{}", unescaped(header));
        }
    }
    match (element.get("body"), sdp) {
        (Some(body), _) => {
            let _ = writeln!(text, "Content-Length: [len]\n\n{}", unescaped(body).replace('|', "\n"));
        }
        (None, "none") => text.push_str("Content-Length: 0\n\n"),
        (None, direction) => {
            text.push_str("Content-Type: application/sdp\nContent-Length: [len]\n\n");
            let codecs = element.get("codecs").unwrap_or("0 101");
            let port = element.get("port").unwrap_or("[rtp_port]");
            text.push_str(&description(direction, codecs, port, version));
        }
    }
}

/// An attribute's value without XML's escapes, and with quotation marks where it has apostrophes.
fn unescaped(value: &str) -> String {
    value.replace('\'', "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

fn description(direction: &str, codecs: &str, port: &str, version: u32) -> String {
    // RFC 2543's hold: no address, and no direction either.
    let old_hold = direction == "0.0.0.0";
    let address = if old_hold { "0.0.0.0" } else { "[media_ip]" };
    let mut sdp = format!(
        "v=0\no=sipp 1 {version} IN IP4 [local_ip]\ns=-\nc=IN IP4 {address}\nt=0 0\nm=audio {port} RTP/AVP {codecs}\n"
    );
    for codec in codecs.split(' ') {
        sdp.push_str(match codec {
            "0" => "a=rtpmap:0 PCMU/8000\n",
            "8" => "a=rtpmap:8 PCMA/8000\n",
            "9" => "a=rtpmap:9 G722/8000\n",
            "101" => "a=rtpmap:101 telephone-event/8000\na=fmtp:101 0-16\n",
            _ => "",
        });
    }
    sdp.push_str("a=ptime:20\n");
    if !old_hold {
        let _ = writeln!(sdp, "a={direction}");
    }
    sdp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_sipp_and_comments_stay_as_they_are() {
        let text = "<scenario name=\"x\">\n  <!-- <invite/>\n  <bye/> -->\n  <pause milliseconds=\"5\"/>\n</scenario>\n";
        assert_eq!(expand(text).unwrap(), text);
    }

    #[test]
    fn requests_count_their_cseq_and_an_ack_takes_that_of_its_invite() {
        let text =
            "<invite/>\n<answered/>\n<ack/>\n<request method=\"INFO\"/>\n<expect status=\"200\"/>\n<bye/>\n";
        let xml = expand(text).unwrap();
        for line in ["CSeq: 1 INVITE", "CSeq: 1 ACK", "CSeq: 2 INFO", "CSeq: 3 BYE"] {
            assert!(xml.contains(line), "{line} is not in\n{xml}");
        }
        assert!(xml.contains("ACK [next_url] SIP/2.0"));
    }

    #[test]
    fn refusal_is_acknowledged_on_the_branch_of_its_invite() {
        let xml = expand("<invite/>\n<refused status=\"486\"/>\n").unwrap();
        assert_eq!(xml.matches("branch=z9hG4bK-[pid]-[call_number]-1\n").count(), 2, "{xml}");
    }

    #[test]
    fn callee_swaps_from_and_to_in_its_own_requests() {
        let xml =
            expand("<asked method=\"INVITE\"/>\n<reply status=\"200 OK\" sdp=\"sendrecv\"/>\n<asked method=\"ACK\"/>\n<bye/>\n</scenario>")
                .unwrap();
        assert!(xml.contains("From: [$local];tag=[pid]-[call_number]\nTo: [$remote]"), "{xml}");
        assert!(xml.contains("[last_To:];tag=[pid]-[call_number]"), "{xml}");
        assert!(xml.contains("<Reference variables=\"remote,local,via,cseq\"/>"), "{xml}");
    }

    #[test]
    fn line_with_a_missing_attribute_is_named() {
        assert_eq!(expand("<invite/>\n<refused/>\n").unwrap_err(), "line 2: <refused> needs status=\"…\"");
    }
}
