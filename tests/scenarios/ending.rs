//! How calls end, and that each end leaves nothing behind.

use std::time::Duration;

use control_plane::call::machine::Asked;
use control_plane::config::Limits;
use tandem_api::engine::v1::LegRole;
use tandem_tests::network::Network;
use tandem_tests::planes::MUTE_IDLE;
use tandem_tests::world::World;

fn ending(world: &World) -> (String, String) {
    let record = world.planes.records.values().next().expect("one call was recorded");
    let ending = record.ending.clone().unwrap_or_default();
    (ending.party, ending.reason)
}

#[test]
fn call_that_lasts_too_long_is_ended_with_bye() {
    let limits = Limits { call_duration_max: Duration::from_secs(60), ..Limits::default() };
    let mut world = World::with_limits(Network::seeded(21), limits);
    world.dials("echo:demo-key");
    world.until("the caller is hung up on", |world| world.caller.was_hung_up_on());
    let lasted = world.caller.lasted().expect("it was answered and has ended");
    assert!((Duration::from_secs(60)..Duration::from_secs(61)).contains(&lasted), "{lasted:?}");
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!(world.planes.ports_in_use(), 0);
    assert_eq!(ending(&world), ("us".to_owned(), "max_duration".to_owned()));
}

#[test]
fn caller_of_a_lost_engine_is_hung_up_on_within_ten_seconds() {
    let mut world = World::new(Network::seeded(22));
    world.dials("tone:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    world.passes(Duration::from_secs(3));
    let killed = world.network.elapsed();
    let World { planes, network, .. } = &mut world;
    planes.kill_engine(network);
    world.until("the caller is hung up on", |world| world.caller.was_hung_up_on());
    let took = world.network.elapsed() - killed;
    assert!(took < Duration::from_secs(10), "{took:?}");
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!(ending(&world), ("us".to_owned(), "engine_lost".to_owned()));
}

#[test]
fn engine_that_comes_back_as_another_means_bye_at_once() {
    let mut world = World::new(Network::seeded(23));
    world.dials("tone:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    let killed = world.network.elapsed();
    let World { planes, network, .. } = &mut world;
    planes.kill_engine(network);
    planes.restart_engine(network);
    world.until("the caller is hung up on", |world| world.caller.was_hung_up_on());
    let took = world.network.elapsed() - killed;
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn shutdown_hangs_up_even_when_every_third_datagram_is_lost() {
    let mut world = World::new(Network::seeded(24).loss_percent(33));
    world.dials("echo:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    world.passes(Duration::from_secs(1));
    let World { planes, network, .. } = &mut world;
    planes.end_all(network);
    world.until("the caller is hung up on", |world| world.caller.was_hung_up_on());
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!(ending(&world), ("us".to_owned(), "shutdown".to_owned()));
}

#[test]
fn call_in_which_nobody_speaks_is_ended_by_us() {
    let mut world = World::new(Network::seeded(25));
    world.dials("mute:demo-key");
    world.until("the caller is hung up on", |world| world.caller.was_hung_up_on());
    let lasted = world.caller.lasted().expect("it was answered and has ended");
    assert!((MUTE_IDLE..MUTE_IDLE + Duration::from_secs(1)).contains(&lasted), "{lasted:?}");
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!(ending(&world), ("us".to_owned(), "idle".to_owned()));
    assert_eq!(world.planes.ports_in_use(), 0);
}

#[test]
fn caller_who_holds_may_be_silent_as_long_as_he_likes() {
    let mut world = World::new(Network::seeded(26));
    world.dials("mute:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    world.passes(MUTE_IDLE / 2);
    world.offers_again("sendonly");
    world.passes(MUTE_IDLE * 4);
    assert_eq!(world.planes.state(world.planes.only_call()), "on_hold");
    world.offers_again("sendrecv");
    let resumed = world.network.elapsed();
    world.until("the caller is hung up on", |world| world.caller.was_hung_up_on());
    let silent = world.network.elapsed() - resumed;
    assert!((MUTE_IDLE..MUTE_IDLE + Duration::from_secs(1)).contains(&silent), "{silent:?}: counted anew");
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!(ending(&world), ("us".to_owned(), "idle".to_owned()));
}

#[test]
fn silence_does_not_count_while_somebody_is_there_or_is_called() {
    for role in [LegRole::Consult, LegRole::Bridge] {
        let mut world = World::with_trunk(Network::seeded(27), |trunk| {
            trunk.inbound.routes[0].assistant_id = "mute".into();
            trunk.outbound.ring_timeout = MUTE_IDLE * 2;
        });
        world.dials("700");
        world.until("the call is answered", |world| world.caller.is_connected());
        let call = world.planes.only_call();
        world.until("its ACK has come", |world| world.planes.state(call) == "connected");
        world.passes(Duration::from_secs(1));
        assert_eq!(
            world.planes.brings_in(call, "+4930333", role, &mut world.network),
            Asked::Done,
            "{role:?}"
        );
        world.until("the guest is called", |world| !world.other.incoming().is_empty());
        world.other_rings();
        world.passes(MUTE_IDLE + Duration::from_secs(5));
        assert_eq!(world.planes.state(call), "connected", "{role:?}: it rings");
        world.other_answers();
        world.passes(MUTE_IDLE * 4);
        assert_eq!(world.planes.state(call), "connected", "{role:?}: they may be silent");
        world.other_hangs_up();
        let left = world.network.elapsed();
        world.until("the caller is hung up on", |world| world.caller.was_hung_up_on());
        let silent = world.network.elapsed() - left;
        assert!((MUTE_IDLE..MUTE_IDLE + Duration::from_secs(1)).contains(&silent), "{role:?}: {silent:?}");
        world.until("the call is over", |world| world.planes.live_calls() == 0);
        assert_eq!(world.planes.ending(call), "idle");
    }
}
