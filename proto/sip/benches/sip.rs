//! What one message and one call cost: no sockets, no sleeping.

#![allow(missing_docs)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tandem_sip::parse::parse;
use tandem_sip::{Body, Endpoint, EndpointConfig, Event, Flow, Headers, InviteRequest, NameAddr, Uri};

const INVITE: &[u8] = b"INVITE sip:echo:demo-key@127.0.0.1:4573 SIP/2.0\r\n\
    Via: SIP/2.0/UDP 127.0.0.1:5061;branch=z9hG4bK-524287-1---6a1b;rport\r\nMax-Forwards: 70\r\n\
    Contact: <sip:sipp@127.0.0.1:5061>\r\nTo: <sip:echo@127.0.0.1:4573>\r\n\
    From: \"Sip Caller\" <sip:sipp@127.0.0.1:5061>;tag=8d1b2a35\r\nCall-ID: ODk4OTQ3YzMxNGE1\r\nCSeq: 1 INVITE\r\n\
    Allow: INVITE, ACK, CANCEL, BYE, NOTIFY, REFER, MESSAGE, OPTIONS, INFO, SUBSCRIBE\r\n\
    Content-Type: application/sdp\r\nUser-Agent: bench\r\nContent-Length: 129\r\n\r\n\
    v=0\r\no=user1 53655765 2353687637 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n";

/// Two endpoints joined by nothing but calls.
struct Pair {
    ends: [Endpoint; 2],
    flows: [Flow; 2],
    now: Instant,
}

impl Pair {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Pair {
        let addrs = [([127, 0, 0, 1], 5060).into(), ([127, 0, 0, 1], 4573).into()];
        Pair {
            ends: [1, 2].map(|seed| Endpoint::new(EndpointConfig { seed, ..EndpointConfig::default() })),
            flows: [Flow::udp(addrs[0], addrs[1]), Flow::udp(addrs[1], addrs[0])],
            now: Instant::now(),
        }
    }

    /// Carries messages over and answers events until both are quiet.
    fn drive(&mut self, on_event: &mut impl FnMut(&mut Endpoint, Event, Instant)) {
        loop {
            let mut quiet = true;
            for index in [0, 1] {
                while let Some(transmit) = self.ends[index].poll_transmit() {
                    quiet = false;
                    self.ends[1 - index].handle_input(&transmit.bytes, self.flows[1 - index], self.now);
                }
                while let Some(event) = self.ends[index].poll_event() {
                    quiet = false;
                    on_event(&mut self.ends[index], event, self.now);
                }
            }
            if quiet {
                break;
            }
        }
    }

    /// INVITE, 100, 180, 200, ACK, BYE, 200; the clock moves on by as much as 100 calls a second would have it.
    fn call(&mut self) {
        let target = Uri::parse("sip:echo:demo-key@127.0.0.1:4573").expect("a URI");
        let mut invite = InviteRequest::new(
            target,
            NameAddr::new(Uri::sip(Some("bench"), self.flows[0].local)),
            self.flows[0],
        );
        invite.body = Some(Body::sdp(
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\n",
        ));
        self.ends[0].invite(invite, self.now).expect("room");
        let mut ended = 0;
        self.drive(&mut |end, event, now| match event {
            Event::IncomingInvite { call, .. } => {
                end.ring(call, now).expect("rings");
                end.answer(call, Body::sdp("v=0\r\n"), now).expect("answers");
            }
            Event::Acknowledged { call, .. } => end.bye(call, Headers::new(), now).expect("hangs up"),
            Event::Ended { .. } => ended += 1,
            _ => {}
        });
        assert_eq!(ended, 2);
        self.now += Duration::from_millis(10);
        for end in &mut self.ends {
            end.handle_timeout(self.now);
        }
    }
}

/// What a peer sends in a call, with places for what differs from call to call.
const MESSAGES: [&str; 3] = [
    "INVITE sip:echo:demo-key@127.0.0.1:4573 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5061;branch=z9hG4bK-{n}-1\r\n\
     From: sipp <sip:sipp@127.0.0.1:5061>;tag={n}SIPpTag00\r\nTo: echo <sip:echo@127.0.0.1:4573>\r\nCall-ID: {n}-26@127.0.0.1\r\n\
     CSeq: 1 INVITE\r\nContact: sip:sipp@127.0.0.1:5061\r\nMax-Forwards: 70\r\nSubject: Performance Test\r\n\
     Content-Type: application/sdp\r\nContent-Length: 129\r\n\r\n\
     v=0\r\no=user1 53655765 2353687637 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 6000 RTP/AVP 0\r\na=rtpmap:0 PCMU/8000\r\n",
    "ACK sip:tandem@127.0.0.1:4573 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5061;branch=z9hG4bK-{n}-5\r\n\
     From: sipp <sip:sipp@127.0.0.1:5061>;tag={n}SIPpTag00\r\nTo: echo <sip:echo@127.0.0.1:4573>;tag={t}\r\n\
     Call-ID: {n}-26@127.0.0.1\r\nCSeq: 1 ACK\r\nContact: sip:sipp@127.0.0.1:5061\r\nMax-Forwards: 70\r\n\
     Content-Length: 0\r\n\r\n",
    "BYE sip:tandem@127.0.0.1:4573 SIP/2.0\r\nVia: SIP/2.0/UDP 127.0.0.1:5061;branch=z9hG4bK-{n}-7\r\n\
     From: sipp <sip:sipp@127.0.0.1:5061>;tag={n}SIPpTag00\r\nTo: echo <sip:echo@127.0.0.1:4573>;tag={t}\r\n\
     Call-ID: {n}-26@127.0.0.1\r\nCSeq: 2 BYE\r\nContact: sip:sipp@127.0.0.1:5061\r\nMax-Forwards: 70\r\n\
     Content-Length: 0\r\n\r\n",
];

/// A callee alone, against messages made beforehand as far as possible.
struct Callee {
    endpoint: Endpoint,
    flow: Flow,
    now: Instant,
    calls: u64,
    text: String,
}

impl Callee {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Callee {
        Callee {
            endpoint: Endpoint::new(EndpointConfig { seed: 3, ..EndpointConfig::default() }),
            flow: Flow::udp(([127, 0, 0, 1], 4573).into(), ([127, 0, 0, 1], 5061).into()),
            now: Instant::now(),
            calls: 0,
            text: String::with_capacity(1024),
        }
    }

    fn hear(&mut self, message: usize, tag: &str) {
        self.text.clear();
        let number = self.calls.to_string();
        let mut rest = MESSAGES[message];
        while let Some(at) = rest.find('{') {
            self.text.push_str(&rest[..at]);
            self.text.push_str(if rest.as_bytes()[at + 1] == b'n' { &number } else { tag });
            rest = &rest[at + 3..];
        }
        self.text.push_str(rest);
        self.endpoint.handle_input(self.text.as_bytes(), self.flow, self.now);
    }

    fn drain(&mut self) -> Option<Event> {
        while let Some(transmit) = self.endpoint.poll_transmit() {
            black_box(transmit);
        }
        self.endpoint.poll_event()
    }

    /// INVITE, 100, 180, 200, ACK, BYE, 200.
    fn call(&mut self) {
        self.calls += 1;
        self.hear(0, "");
        let Some(Event::IncomingInvite { call, .. }) = self.drain() else { panic!("no call") };
        self.endpoint.ring(call, self.now).expect("rings");
        self.endpoint.answer(call, Body::sdp("v=0\r\n"), self.now).expect("answers");
        let tag = self.endpoint.dialog(call).expect("a dialog").local_tag().to_owned();
        self.drain();
        self.hear(1, &tag);
        assert!(matches!(self.drain(), Some(Event::Acknowledged { .. })));
        self.hear(2, &tag);
        assert!(matches!(self.drain(), Some(Event::Ended { .. })));
        self.now += Duration::from_millis(10);
        self.endpoint.handle_timeout(self.now);
    }
}

fn sip(c: &mut Criterion) {
    let mut group = c.benchmark_group("sip");
    group.measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1)).sample_size(30);
    group.bench_function("parse a plain INVITE", |b| b.iter(|| parse(black_box(INVITE)).expect("an INVITE")));
    let mut pair = Pair::new();
    // 40 s of calls: the tables are as full as they get.
    for _ in 0..4_000 {
        pair.call();
    }
    group.bench_function("a whole call, both ends", |b| b.iter(|| pair.call()));
    let mut callee = Callee::new();
    for _ in 0..4_000 {
        callee.call();
    }
    group.bench_function("a whole call, the callee alone", |b| b.iter(|| callee.call()));
    group.finish();
}

criterion_group!(benches, sip);
criterion_main!(benches);
