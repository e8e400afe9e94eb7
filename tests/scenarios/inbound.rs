//! Calls that come in over SIP.

use std::time::Duration;

use tandem_tests::network::Network;
use tandem_tests::world::World;

#[test]
fn caller_who_hangs_up_before_answer_gets_487_and_the_port_back() {
    let mut world = World::new(Network::seeded(7).loss_percent(5));
    world.dials("pcm:demo-key");
    world.until("it rings", |world| world.caller.got(180));
    assert_eq!(world.planes.ports_in_use(), 1);
    world.cancels();
    world.until("the caller gets 487", |world| world.caller.got(487));
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!(world.planes.ports_in_use(), 0);
}

#[test]
fn call_over_a_lossy_network_is_established_and_carries_audio() {
    for seed in 1..=20 {
        let network = Network::seeded(seed)
            .loss_percent(15)
            .delay(Duration::from_millis(40), Duration::from_millis(30));
        let mut world = World::new(network);
        world.dials("tone:demo-key");
        world.until("the call is answered", |world| world.caller.is_connected());
        // When the 200 was lost, audio came before the answer.
        let before = world.caller.packets();
        world.passes(Duration::from_secs(10));
        let packets = world.caller.packets() - before;
        assert!((380..=500).contains(&packets), "seed {seed}: {packets} of 500 packets");
        world.hangs_up();
        world.until("the call is over", |world| world.caller.is_over() && world.planes.live_calls() == 0);
        assert_eq!(world.planes.ports_in_use(), 0, "seed {seed}");
    }
}

#[test]
fn perfect_call_has_a_packet_each_20_ms_from_the_answer_on() {
    let mut world = World::new(Network::seeded(1));
    world.dials("echo:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    world.passes(Duration::from_secs(2));
    let packets = world.caller.packets();
    assert!((99..=101).contains(&packets), "{packets} of 100 packets");
}

#[test]
fn caller_with_a_wrong_key_gets_403_and_no_port_is_opened() {
    let mut world = World::new(Network::seeded(3));
    world.dials("echo:wrong-key");
    world.until("the call is over", |world| world.caller.is_over());
    assert_eq!(world.caller.statuses().last(), Some(&403));
    assert_eq!(world.planes.ports_in_use(), 0);
    let rules: Vec<_> = world.planes.refusals.iter().map(|refusal| refusal.step.rule.as_str()).collect();
    assert_eq!(rules, ["api_key"]);
}

#[test]
fn caller_whose_agent_is_never_ready_rings_and_then_gets_480() {
    let mut world = World::new(Network::seeded(4));
    world.dials("pcm:demo-key");
    world.until("the call is over", |world| world.caller.is_over());
    assert!(world.caller.got(180), "{}", world.story());
    assert_eq!(world.caller.statuses().last(), Some(&480));
    // Ten seconds is the default of TANDEM_RING_SECONDS_MAX.
    let rang = world.network.elapsed();
    assert!((Duration::from_secs(9)..Duration::from_secs(12)).contains(&rang), "{rang:?}");
    world.until("the call is forgotten", |world| world.planes.live_calls() == 0);
    assert_eq!(world.planes.ports_in_use(), 0);
}

#[test]
fn after_a_delayed_offer_nothing_is_sent_before_the_answer_is_known() {
    let mut world = World::new(Network::seeded(31));
    world.dials_without_an_offer("tone:demo-key");
    world.until("our offer comes", |world| world.caller.is_connected());
    world.passes(Duration::from_secs(1));
    assert_eq!(world.planes.rtp_sent(), 0, "its address is not known");
    world.acknowledges();
    world.passes(Duration::from_secs(1));
    assert!(world.caller.packets() >= 45, "{} packets", world.caller.packets());
    assert!(world.caller.heard().iter().all(|packet| packet.is_loud), "the agent's first word is not lost");
}
