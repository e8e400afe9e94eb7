//! What a call costs in memory, and that it gives all of it back.

#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::time::{Duration, Instant};

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tandem_sip::*;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Octets in use.
fn in_use() -> usize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated - stats.bytes_deallocated
}

const SDP: &str = "v=0\r\no=- 3910 3910 IN IP4 192.0.2.10\r\ns=-\r\nc=IN IP4 192.0.2.10\r\nt=0 0\r\n\
    m=audio 20000 RTP/AVP 0 8 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\na=rtpmap:101 telephone-event/8000\r\n\
    a=fmtp:101 0-16\r\na=ptime:20\r\na=sendrecv\r\n";

/// Two endpoints, joined without loss or delay.
struct Pair {
    ends: [Endpoint; 2],
    flows: [Flow; 2],
    now: Instant,
}

impl Pair {
    #[allow(clippy::disallowed_methods)]
    fn new() -> Pair {
        let addrs = [([192, 0, 2, 10], 5060).into(), ([192, 0, 2, 20], 5060).into()];
        Pair {
            ends: [1, 2].map(|seed| Endpoint::new(EndpointConfig { seed, ..EndpointConfig::default() })),
            flows: [Flow::udp(addrs[0], addrs[1]), Flow::udp(addrs[1], addrs[0])],
            now: Instant::now(),
        }
    }

    /// Carries everything over; calls are answered, and hung up by who is told to.
    fn drive(&mut self, hang_up: bool) {
        loop {
            let mut quiet = true;
            for index in [0, 1] {
                while let Some(transmit) = self.ends[index].poll_transmit() {
                    quiet = false;
                    self.ends[1 - index].handle_input(&transmit.bytes, self.flows[1 - index], self.now);
                }
                while let Some(event) = self.ends[index].poll_event() {
                    quiet = false;
                    match event {
                        Event::IncomingInvite { call, .. } => {
                            self.ends[index].ring(call, self.now).unwrap();
                            self.ends[index].answer(call, Body::sdp(SDP), self.now).unwrap();
                        }
                        Event::Acknowledged { call, .. } if hang_up => {
                            self.ends[index].bye(call, Headers::new(), self.now).unwrap();
                        }
                        _ => {}
                    }
                }
            }
            if quiet {
                break;
            }
        }
    }

    fn call(&mut self, hang_up: bool) {
        let target = Uri::parse("sip:echo:demo-key@192.0.2.20").unwrap();
        let from = NameAddr::new(Uri::sip(Some("+15551234567"), self.flows[0].local));
        let mut invite = InviteRequest::new(target, from, self.flows[0]);
        invite.body = Some(Body::sdp(SDP));
        self.ends[0].invite(invite, self.now).unwrap();
        self.drive(hang_up);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        for end in &mut self.ends {
            end.handle_timeout(self.now);
        }
        self.drive(false);
    }
}

// One test, for the allocator counts for the whole process.
#[test]
fn idle_dialog_is_small_and_ended_calls_leave_nothing() {
    const DIALOGS: usize = 2_000;
    let mut pair = Pair::new();
    let before = in_use();
    for _ in 0..DIALOGS {
        pair.call(false);
        pair.pass(Duration::from_millis(5));
    }
    // Until every transaction is forgotten.
    for _ in 0..80 {
        pair.pass(Duration::from_millis(500));
    }
    assert_eq!(pair.ends.each_ref().map(|end| end.sizes().transactions), [0, 0]);
    assert_eq!(pair.ends.each_ref().map(Endpoint::call_count), [DIALOGS; 2]);
    let each = (in_use() - before) / (2 * DIALOGS);
    println!("{each} octets for an idle dialog, mean of caller and callee, tables included");
    assert!(each < 4_096, "{each} octets for an idle dialog");
    drop(pair);

    let mut pair = Pair::new();
    let mut after_warm_up = 0;
    for count in 1..=50_000 {
        pair.call(true);
        // 100 calls a second.
        pair.pass(Duration::from_millis(10));
        if count == 10_000 {
            after_warm_up = in_use();
        }
    }
    let growth = in_use().saturating_sub(after_warm_up);
    println!("{growth} octets more after 50 000 calls than after 10 000; {after_warm_up} in use");
    // Queues may still double; a call that left its smallest table entry behind would cost megabytes.
    assert!(growth < 512 * 1024, "{growth} octets more after 50 000 calls than after 10 000");
    for end in &pair.ends {
        assert!(end.sizes().transactions < 20_000, "{:?}", end.sizes());
        assert!(end.sizes().wakes < 40_000, "{:?}", end.sizes());
    }
    while let Some(at) = pair.ends.iter().filter_map(Endpoint::poll_timeout).min() {
        pair.pass(at.saturating_duration_since(pair.now));
    }
    assert_eq!(pair.ends.each_ref().map(Endpoint::sizes), [endpoint::Sizes::default(); 2]);
}
