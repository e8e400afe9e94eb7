//! Users who do anything at any time, over a bad link or over connections that break: every call ends once, and nothing
//! is left.

mod net;

use std::collections::BTreeMap;
use std::time::Duration;

use net::{Link, Network, addr};
use tandem_sip::header::refer::{ReferTo, Replaces};
use tandem_sip::header::session::Refresher;
use tandem_sip::*;

/// What the users know.
#[derive(Default)]
struct World {
    /// Live calls and requests to answer, by agent.
    calls: Vec<Vec<CallHandle>>,
    requests: Vec<Vec<RequestHandle>>,
    began: BTreeMap<(usize, CallHandle), usize>,
    ended: BTreeMap<(usize, CallHandle), usize>,
    /// How often each thing has happened, so that the test sees that it does.
    seen: BTreeMap<&'static str, usize>,
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.roll(from.len())])
    }
}

impl World {
    fn hear(&mut self, net: &mut Network) {
        net.drain();
        for index in 0..net.agents.len() {
            for event in std::mem::take(&mut net.agents[index].events) {
                let name = match &event {
                    Event::IncomingInvite { call, .. } => {
                        self.calls[index].push(*call);
                        *self.began.entry((index, *call)).or_default() += 1;
                        "incoming"
                    }
                    Event::Ended { call, why } => {
                        self.calls[index].retain(|live| live != call);
                        *self.ended.entry((index, *call)).or_default() += 1;
                        match why {
                            EndReason::Replaced { .. } => "replaced",
                            EndReason::SessionExpired => "expired",
                            EndReason::NoPrack => "no prack",
                            _ => "ended",
                        }
                    }
                    Event::Request { handle, .. } => {
                        self.requests[index].push(*handle);
                        "request"
                    }
                    Event::Pracked { .. } => "pracked",
                    Event::ReferProgress { is_final: true, .. } => "transferred",
                    Event::ReinviteCancelled { .. } => "change cancelled",
                    Event::ReinviteAnswered { .. } => "changed",
                    Event::ReinviteRefused { status: 491, .. } => "glare",
                    Event::Provisional { wants_prack: true, .. } => "offer in 18x",
                    _ => "other",
                };
                *self.seen.entry(name).or_default() += 1;
            }
        }
    }

    fn act(&mut self, net: &mut Network, dice: &mut Dice) {
        let who = dice.roll(3);
        let now = net.now;
        let Some(call) = dice.pick(&self.calls[who]) else { return self.begin(net, dice, who) };
        let sdp = Body::sdp(["one", "two", "three"][dice.roll(3)]);
        let is_stream = net.transport.is_stream();
        let end = net.endpoint(who);
        // Whatever is out of turn is refused with an error, and that is all.
        let _ = match dice.roll(19) {
            0 => end.ring(call, now),
            1 => end.respond(call, Reply::new(183).body(sdp), now),
            2..=4 => end.answer(call, sdp, now),
            5 => end.reinvite(call, Some(sdp), now),
            6 => end.reinvite(call, None, now),
            7 => end.ack(call, sdp, now),
            8 => end.prack(call, sdp, now),
            9 => end.request_in_call(call, Method::Update, Headers::new(), Some(sdp), now).map(drop),
            10 => end.request_in_call(call, Method::Info, Headers::new(), None, now).map(drop),
            11 => {
                end.refer(call, &ReferTo::blind(Uri::sip(Some("c"), addr(dice.roll(3)))), Headers::new(), now)
            }
            12 => end.notify_refer(call, [100, 180, 200, 486][dice.roll(4)], "", now),
            13 if dice.roll(3) == 0 => end.hang_up(call, Headers::new(), now),
            14 if dice.roll(3) == 0 => end.cancel(call, now),
            16 => end.forget_refer(call),
            17 if is_stream => {
                end.handle_closed(ConnectionId(1), now);
                *self.seen.entry("closed").or_default() += 1;
                Ok(())
            }
            15 if dice.roll(3) == 0 => end.reject(call, Reply::new([486, 488, 491][dice.roll(3)]), now),
            _ => {
                self.begin(net, dice, who);
                Ok(())
            }
        };
        self.reply(net, dice, who);
    }

    fn reply(&mut self, net: &mut Network, dice: &mut Dice, who: usize) {
        let now = net.now;
        let Some(request) = self.requests[who].pop() else { return };
        let end = net.endpoint(who);
        let _ = match dice.roll(4) {
            0 => end.accept_refer(request, now),
            1 => end.reply(request, Reply::new(488), now),
            2 => end.reply(request, Reply::new(200).body(Body::sdp("two")), now),
            _ => end.reply(request, Reply::new(200), now),
        };
    }

    fn begin(&mut self, net: &mut Network, dice: &mut Dice, who: usize) {
        let to = (who + 1 + dice.roll(2)) % 3;
        let mut invite = net.invite(who, to);
        if dice.roll(3) == 0 {
            invite.body = None;
        }
        invite.ring_timeout = Some(Duration::from_secs(10 + dice.roll(100) as u64));
        if dice.roll(4) == 0
            && let Some(old) = dice.pick(&self.calls[to])
            && let Some(dialog) = net.agents[to].endpoint.dialog(old)
        {
            // As the peer of that call knows it.
            let seen = dialog.replaces();
            invite.replaces =
                Some(Replaces { to_tag: seen.from_tag.clone(), from_tag: seen.to_tag.clone(), ..seen });
        }
        let now = net.now;
        if let Ok(call) = net.endpoint(who).invite(invite, now) {
            self.calls[who].push(call);
            *self.began.entry((who, call)).or_default() += 1;
        }
    }
}

#[test]
fn every_call_ends_once_whatever_its_users_do() {
    let mut seen = BTreeMap::new();
    for seed in 1..=120 {
        let mut net = Network::with_config(seed, 3, |config| {
            let refresher = if seed % 2 == 0 { Refresher::Uac } else { Refresher::Uas };
            config.session_timer =
                Some(SessionTimer { expires_s: 90, min_se_s: 90, refresher: Some(refresher) });
            config.reliable = [Reliability::IfRequired, Reliability::Prefer][seed as usize % 2];
            config.in_dialog_methods = match seed % 3 {
                0 => vec![Method::Info, Method::Refer],
                _ => vec![Method::Info, Method::Update, Method::Refer],
            };
        });
        net.link = Link { loss_percent: 10, duplicate_percent: 5, delay_ms: 20, jitter_ms: 100 };
        net.cancelled_percent = 10;
        if seed % 4 == 0 {
            // Connections that break at any time; what is sent over them arrives.
            net.transport = Transport::Tcp;
            net.link = Link { delay_ms: 20, ..Link::default() };
        }
        let mut world =
            World { calls: vec![Vec::new(); 3], requests: vec![Vec::new(); 3], ..World::default() };
        let mut dice = Dice(seed * 0x9e37_79b9 + 1);
        for _ in 0..300 {
            world.act(&mut net, &mut dice);
            let pause = [1, 30, 200, 2_000, 20_000][dice.roll(5)];
            net.run(Duration::from_millis(pause));
            world.hear(&mut net);
        }
        for who in 0..3 {
            for call in world.calls[who].clone() {
                let now = net.now;
                let _ = net.endpoint(who).hang_up(call, Headers::new(), now);
            }
        }
        // The slowest thing that can still be waited for is a transfer's subscription.
        for _ in 0..40 {
            net.run(Duration::from_secs(10));
            world.hear(&mut net);
            for who in 0..3 {
                for call in world.calls[who].clone() {
                    let now = net.now;
                    let _ = net.endpoint(who).hang_up(call, Headers::new(), now);
                }
            }
        }
        for agent in &mut net.agents {
            agent.endpoint.handle_closed(ConnectionId(1), net.now);
        }
        for (index, agent) in net.agents.iter().enumerate() {
            assert_eq!(agent.endpoint.sizes(), endpoint::Sizes::default(), "seed {seed}, agent {index}");
        }
        assert_eq!(
            world.began.keys().collect::<Vec<_>>(),
            world.ended.keys().collect::<Vec<_>>(),
            "seed {seed}"
        );
        assert!(world.ended.values().all(|&times| times == 1), "seed {seed}: {:?}", world.ended);
        for (name, count) in world.seen {
            *seen.entry(name).or_insert(0) += count;
        }
    }
    println!("{seen:?}");
    for name in [
        "change cancelled",
        "changed",
        "closed",
        "ended",
        "glare",
        "offer in 18x",
        "pracked",
        "replaced",
        "request",
        "transferred",
    ] {
        assert!(seen.get(name).is_some_and(|&count| count > 10), "too little of {name}: {seen:?}");
    }
}
