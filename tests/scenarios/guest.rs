//! Somebody is brought into a call, with a leg of their own in its session.

use std::time::Duration;

use control_plane::call::machine::Asked;
use tandem_api::engine::v1::LegRole;
use tandem_tests::network::Network;
use tandem_tests::world::World;
use uuid::Uuid;

/// The phone that is brought in, as the trunk names it.
const OTHER: &str = "+4930333";

/// The caller talks with the tone, over a trunk; the other phone is asked in.
fn with_guest(network: Network, role: LegRole) -> (World, Uuid) {
    let mut world = World::with_trunk(network, |_| {});
    world.dials("700");
    world.until("the call is answered", |world| world.caller.is_connected());
    let call = world.planes.only_call();
    world.until("its ACK has come", |world| world.planes.state(call) == "connected");
    let asked = world.planes.brings_in(call, OTHER, role, &mut world.network);
    assert_eq!(asked, Asked::Done);
    world.until("the guest is called", |world| !world.other.incoming().is_empty());
    (world, call)
}

/// Shares of a second's packets that are loud, to the caller and to the guest.
fn loud(world: &mut World) -> (usize, usize) {
    world.passes(Duration::from_millis(500));
    let (caller, other) = (world.caller.packets(), world.other.packets());
    world.passes(Duration::from_secs(1));
    let count = |heard: &[tandem_tests::world::Packet]| heard.iter().filter(|packet| packet.is_loud).count();
    (count(&world.caller.heard()[caller..]), count(&world.other.heard()[other..]))
}

#[test]
fn supervisor_who_listens_hears_the_agent_and_the_caller_hears_nothing_of_it() {
    let (mut world, call) = with_guest(Network::seeded(1), LegRole::Listen);
    let heard = world.other.packets();
    assert_eq!(heard, 0, "nothing before the answer");
    world.other_answers();
    let (caller, other) = loud(&mut world);
    assert!(caller >= 48 && other >= 48, "{caller} and {other} of 50 packets");
    assert_eq!(world.planes.ports_in_use(), 2);
    world.other_hangs_up();
    world.until("the guest's leg is gone", |world| world.planes.ports_in_use() == 1);
    assert!(loud(&mut world).0 >= 48, "the call goes on");
    assert_eq!(world.planes.state(call), "connected");
    world.hangs_up();
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.ending(call).as_str(), world.planes.ports_in_use()), ("hangup", 0));
}

#[test]
fn caller_who_is_put_through_hears_it_ring_and_the_agent_no_more() {
    let (mut world, call) = with_guest(Network::seeded(2), LegRole::Bridge);
    world.other_rings();
    // Two seconds of tone in six; the other way round, the agent's tone never stops.
    world.passes(Duration::from_secs(6));
    let rang = world.caller.heard().iter().rev().take(300).filter(|packet| packet.is_loud).count();
    assert!((80..=220).contains(&rang), "{rang} of 300 packets");
    world.other_answers();
    let (caller, other) = loud(&mut world);
    assert_eq!((caller, other), (0, 0), "both are silent, and the agent is not heard");
    let streams: std::collections::BTreeSet<u32> =
        world.caller.heard().iter().map(|packet| packet.ssrc).collect();
    assert_eq!(streams.len(), 1, "it is one stream to the caller, whoever speaks in it");
    world.hangs_up();
    world.until("the guest is hung up", |world| world.other.was_hung_up_on());
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.ending(call).as_str(), world.planes.ports_in_use()), ("hangup", 0));
}

#[test]
fn guest_who_refuses_leaves_the_caller_with_the_agent() {
    let (mut world, call) = with_guest(Network::seeded(3), LegRole::Bridge);
    world.other_refuses(486);
    world.until("the guest's leg is gone", |world| world.planes.ports_in_use() == 1);
    assert!(loud(&mut world).0 >= 48);
    assert_eq!(world.planes.state(call), "connected");
}

#[test]
fn call_that_ends_while_the_guests_phone_rings_cancels_it() {
    let (mut world, _) = with_guest(Network::seeded(4), LegRole::Conference);
    world.other_rings();
    world.passes(Duration::from_secs(1));
    world.hangs_up();
    world.until("it is cancelled", |world| world.other.was_cancelled());
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!(world.planes.ports_in_use(), 0);
}

#[test]
fn guests_come_and_go_over_a_lossy_network_and_leave_nothing_behind() {
    for seed in 1..=10 {
        let network = Network::seeded(seed).loss_percent(10);
        let (mut world, _) = with_guest(network, LegRole::Whisper);
        world.other_answers();
        world.until("the guest talks", |world| world.other.is_connected() && world.other.packets() > 20);
        world.other_hangs_up();
        world.until("the guest's leg is gone", |world| world.planes.ports_in_use() == 1);
        world.hangs_up();
        world.until("the call is over", |world| world.planes.live_calls() == 0);
        assert_eq!(world.planes.ports_in_use(), 0, "{}", world.story());
    }
}
