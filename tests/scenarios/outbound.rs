//! Calls that we place over a trunk.

use std::time::Duration;

use control_plane::call::machine::TransferTo;
use tandem_tests::network::Network;
use tandem_tests::world::{Manners, World};

#[test]
fn callee_who_answers_hears_the_agent_and_hangs_up() {
    let mut world = World::new(Network::seeded(1));
    let call = world.places("tone", &World::trunk(|_| {}));
    world.until("the phone is called", |world| !world.caller.incoming().is_empty());
    world.rings();
    world.until("we hear it ring", |world| world.planes.state(call) == "ringing");
    world.answers();
    world.until("we talk", |world| world.planes.state(call) == "connected");
    world.passes(Duration::from_secs(2));
    let heard = world.caller.heard();
    assert!((98..=101).contains(&heard.len()), "{} of 100 packets", heard.len());
    assert!(heard[5..].iter().all(|packet| packet.is_loud));
    world.hangs_up();
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.ending(call).as_str(), world.planes.ports_in_use()), ("callee_hangup", 0));
}

#[test]
fn callee_hears_silence_before_the_answer_and_the_agent_from_then_on() {
    let mut world = World::new(Network::seeded(2));
    let call = world.places("tone", &World::trunk(|_| {}));
    world.until("the phone is called", |world| !world.caller.incoming().is_empty());
    world.plays_early();
    world.passes(Duration::from_secs(1));
    assert_eq!(world.planes.state(call), "ringing");
    let early = world.caller.packets();
    assert!(early >= 45 && world.caller.heard().iter().all(|packet| !packet.is_loud), "{early}");
    world.answers();
    world.passes(Duration::from_secs(1));
    let talk = &world.caller.heard()[early + 2..];
    assert!(talk.len() >= 45 && talk.iter().all(|packet| packet.is_loud), "{}", talk.len());
}

#[test]
fn trunk_without_early_media_sends_nothing_before_the_answer() {
    let mut world = World::new(Network::seeded(3));
    world.places("tone", &World::trunk(|trunk| trunk.outbound.early_media = false));
    world.until("the phone is called", |world| !world.caller.incoming().is_empty());
    world.plays_early();
    world.passes(Duration::from_secs(1));
    assert_eq!(world.caller.packets(), 0);
}

#[test]
fn busy_callee_gives_the_port_back_and_says_busy() {
    let mut world = World::new(Network::seeded(4).loss_percent(10));
    world.phone_always(Manners::Busy);
    let call = world.places("tone", &World::trunk(|_| {}));
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.state(call).as_str(), world.planes.ending(call).as_str()), ("failed", "busy"));
    assert_eq!(world.planes.ports_in_use(), 0);
}

#[test]
fn phone_that_nobody_picks_up_stops_ringing() {
    let mut world = World::new(Network::seeded(5));
    let trunk = World::trunk(|trunk| trunk.outbound.ring_timeout = Duration::from_secs(25));
    let call = world.places("tone", &trunk);
    world.until("the phone is called", |world| !world.caller.incoming().is_empty());
    world.rings();
    world.until("it is cancelled", |world| world.caller.was_cancelled());
    let rang = world.network.elapsed();
    assert!((Duration::from_secs(25)..Duration::from_secs(26)).contains(&rang), "{rang:?}");
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!(world.planes.ending(call), "no_answer");
}

#[test]
fn calls_over_a_lossy_network_are_answered_and_carry_audio() {
    for seed in 1..=10 {
        let network = Network::seeded(seed)
            .loss_percent(15)
            .delay(Duration::from_millis(40), Duration::from_millis(30));
        let mut world = World::new(network);
        world.phone_always(Manners::Answers);
        let call = world.places("tone", &World::trunk(|_| {}));
        world.until("we talk", |world| world.planes.state(call) == "connected");
        let before = world.caller.packets();
        world.passes(Duration::from_secs(5));
        let packets = world.caller.packets() - before;
        assert!((180..=252).contains(&packets), "seed {seed}: {packets} of 250 packets");
        world.planes.hangs_up(call, &mut world.network);
        world.until("the call is over", |world| world.caller.is_over() && world.planes.live_calls() == 0);
    }
}

#[test]
fn callee_on_hold_hears_nothing_and_the_stream_goes_on_where_it_was() {
    let mut world = World::new(Network::seeded(6));
    world.phone_always(Manners::Answers);
    let call = world.places("tone", &World::trunk(|_| {}));
    world.until("we talk", |world| world.planes.state(call) == "connected");
    world.passes(Duration::from_secs(1));
    world.planes.holds(call, true, &mut world.network);
    world.until("it is held", |world| world.planes.state(call) == "on_hold");
    world.passes(Duration::from_millis(100));
    let held = world.caller.packets();
    world.passes(Duration::from_secs(3));
    assert_eq!(world.caller.packets(), held, "nothing is sent to a callee on hold");
    world.planes.holds(call, false, &mut world.network);
    world.passes(Duration::from_secs(1));
    let heard = world.caller.heard();
    assert!((45..=51).contains(&(heard.len() - held)), "{}", heard.len() - held);
    assert_eq!(heard[held].ssrc, heard[0].ssrc, "it is the same stream");
}

#[test]
fn another_codec_in_mid_call_leaves_no_gap() {
    let mut world = World::new(Network::seeded(7));
    world.dials("tone:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    world.passes(Duration::from_secs(1));
    world.offers_formats("8");
    world.passes(Duration::from_secs(1));
    let heard = world.caller.heard();
    let first = heard.iter().position(|packet| packet.payload_type == 8).expect("PCMA is sent");
    assert_eq!(heard[first].sequence, heard[first - 1].sequence.wrapping_add(1));
    assert_eq!(heard[first].ssrc, heard[first - 1].ssrc);
    assert!(heard[first].at - heard[first - 1].at <= Duration::from_millis(25));
}

#[test]
fn bulk_leaves_at_the_pace_of_its_trunk() {
    let mut world = World::new(Network::seeded(8));
    world.phone_always(Manners::Busy);
    let trunk = World::trunk(|trunk| trunk.outbound.calls_per_second = 10.0);
    let bulk = world.planes.places_bulk(50, &trunk, &mut world.network);
    world.until("all are over", |world| world.planes.live_calls() == 0);
    let told = world.planes.bulk(bulk);
    assert_eq!((told.total, told.queued, told.ended["busy"]), (50, 0, 50));
    let times: Vec<_> = world.caller.incoming().iter().map(|(at, _)| *at).collect();
    let took = times[49] - times[0];
    assert!((Duration::from_millis(4_800)..Duration::from_millis(5_100)).contains(&took), "{took:?}");
}

#[test]
fn info_with_a_key_is_taken_and_one_with_something_else_is_not() {
    let mut world = World::new(Network::seeded(9));
    world.dials("echo:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    for (content_type, text, status) in [
        ("application/dtmf-relay", "Signal=5\r\nDuration=160\r\n", 200),
        ("application/dtmf", "#", 200),
        ("application/dtmf-relay", "Signal=?", 400),
        ("application/json", "{}", 415),
    ] {
        let before = world.caller.statuses().len();
        world.sends_info(content_type, text);
        world.until("it is answered", |world| world.caller.statuses().len() > before);
        assert_eq!(world.caller.statuses().last(), Some(&status), "{content_type} {text}");
    }
}

#[test]
fn callee_who_is_handed_on_gets_a_refer_and_a_bye_when_the_target_has_answered() {
    let mut world = World::new(Network::seeded(10).loss_percent(10));
    world.phone_always(Manners::Answers);
    let call = world.places("tone", &World::trunk(|_| {}));
    world.until("we talk", |world| world.planes.state(call) == "connected");
    world.planes.transfers(call, TransferTo::Blind("+4930333".into()), &mut world.network);
    world.until("the phone is asked to call", |world| world.caller.referred().is_some());
    assert_eq!(world.caller.referred(), Some("<sip:+4930333@198.51.100.7>"));
    world.passes(Duration::from_secs(3));
    assert_eq!(world.planes.state(call), "connected", "nobody has answered yet");
    world.says_of_the_transfer(200, "OK");
    world.until("the call is over", |world| world.caller.is_over() && world.planes.live_calls() == 0);
    assert!(world.caller.was_hung_up_on());
    assert_eq!(world.planes.ending(call), "transferred");
}

#[test]
fn callee_whose_target_is_busy_stays_with_the_agent() {
    let mut world = World::new(Network::seeded(11));
    world.phone_always(Manners::Answers);
    let call = world.places("tone", &World::trunk(|_| {}));
    world.until("we talk", |world| world.planes.state(call) == "connected");
    world.planes.transfers(call, TransferTo::Blind("+4930333".into()), &mut world.network);
    world.until("the phone is asked to call", |world| world.caller.referred().is_some());
    world.says_of_the_transfer(486, "Busy Here");
    let before = world.caller.packets();
    world.passes(Duration::from_secs(2));
    assert_eq!(world.planes.state(call), "connected");
    assert!(world.caller.packets() - before >= 95, "the agent is still heard");
}

#[test]
fn phone_with_two_contacts_rings_at_both_and_the_first_to_answer_has_the_call() {
    let mut world = World::new(Network::seeded(12));
    let call = world.places_to_both("tone");
    world.until("both ring", |world| {
        !world.caller.incoming().is_empty() && !world.other.incoming().is_empty()
    });
    world.rings();
    world.other_rings();
    world.until("we hear it", |world| world.planes.state(call) == "ringing");
    world.other_answers();
    world.until("the first rings no more", |world| world.caller.was_cancelled());
    world.passes(Duration::from_secs(1));
    assert!(world.other.packets() >= 45 && world.caller.packets() == 0, "{}", world.other.packets());
    assert_eq!(world.planes.state(call), "connected");
    world.other_hangs_up();
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.ending(call).as_str(), world.planes.ports_in_use()), ("callee_hangup", 0));
}

/// Whatever the network loses and delays: one has the call, and the other was hung up on or cancelled.
#[test]
fn two_contacts_that_answer_at_once_get_one_call_and_one_bye() {
    for seed in 1..=20 {
        let network = Network::seeded(seed)
            .loss_percent(10)
            .delay(Duration::from_millis(20), Duration::from_millis(30));
        let mut world = World::new(network);
        world.phones_always([Manners::Answers, Manners::Answers]);
        let call = world.places_to_both("tone");
        world.until("we talk", |world| world.planes.state(call) == "connected");
        world.until("one of them is left", |world| {
            world.caller.is_connected() != world.other.is_connected()
                && world.caller.incoming().len() == 1
                && world.other.incoming().len() == 1
        });
        world.passes(Duration::from_secs(40));
        assert!(world.caller.is_connected() != world.other.is_connected(), "seed {seed}");
        assert_eq!((world.planes.state(call).as_str(), world.planes.live_calls()), ("connected", 1));
        world.planes.hangs_up(call, &mut world.network);
        world.until("all is over", |world| {
            world.caller.is_over() && world.other.is_over() && world.planes.live_calls() == 0
        });
    }
}

#[test]
fn contact_that_is_busy_does_not_end_the_call_while_another_rings() {
    let mut world = World::new(Network::seeded(13));
    world.phones_always([Manners::Busy, Manners::Waits]);
    let call = world.places_to_both("tone");
    world.until("both are called", |world| {
        !world.caller.incoming().is_empty() && !world.other.incoming().is_empty()
    });
    world.passes(Duration::from_secs(2));
    world.other_answers();
    world.until("we talk", |world| world.planes.state(call) == "connected");

    let mut world = World::new(Network::seeded(14));
    world.phones_always([Manners::Busy, Manners::Busy]);
    let call = world.places_to_both("tone");
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.state(call).as_str(), world.planes.ending(call).as_str()), ("failed", "busy"));
    assert_eq!(world.planes.ports_in_use(), 0);
}

#[test]
fn call_that_is_given_up_rings_nowhere_any_more() {
    let mut world = World::new(Network::seeded(15));
    let call = world.places_to_both("tone");
    world.until("both ring", |world| {
        !world.caller.incoming().is_empty() && !world.other.incoming().is_empty()
    });
    world.planes.hangs_up(call, &mut world.network);
    world.until("neither rings", |world| world.caller.was_cancelled() && world.other.was_cancelled());
    world.until("the call is over", |world| world.planes.live_calls() == 0);
}
