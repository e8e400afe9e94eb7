//! Two callers who each talk with an agent are put through to each other.

use std::time::Duration;

use control_plane::call::machine::Asked;
use tandem_tests::network::Network;
use tandem_tests::world::{Packet, World};
use uuid::Uuid;

/// Both phones have dialled the tone; the calls of the caller, and of the other.
fn two_calls(network: Network) -> (World, Uuid, Uuid) {
    let mut world = World::with_trunk(network, |_| {});
    world.dials("700");
    world.until("the call is answered", |world| world.caller.is_connected());
    let call = world.planes.newest_call();
    world.other_dials("700");
    world.until("the other one, too", |world| world.other.is_connected());
    let other = world.planes.newest_call();
    assert_ne!(call, other);
    for each in [call, other] {
        world.until("its ACK has come", |world| world.planes.state(each) == "connected");
    }
    world.passes(Duration::from_millis(500));
    (world, call, other)
}

fn joined(network: Network) -> (World, Uuid, Uuid) {
    let (mut world, call, other) = two_calls(network);
    let asked = world.planes.joins(call, other, &mut world.network);
    assert_eq!(asked, Asked::Done);
    (world, call, other)
}

/// Loud packets of a second, to the caller and to the other.
fn loud(world: &mut World) -> (usize, usize) {
    world.passes(Duration::from_millis(500));
    let (caller, other) = (world.caller.packets(), world.other.packets());
    world.passes(Duration::from_secs(1));
    let count = |heard: &[Packet]| heard.iter().filter(|packet| packet.is_loud).count();
    (count(&world.caller.heard()[caller..]), count(&world.other.heard()[other..]))
}

/// One stream, of which nothing is missing, and a packet each 20 ms.
fn check_stream(heard: &[Packet]) {
    assert!(heard.len() > 50, "{}", heard.len());
    for pair in heard.windows(2) {
        assert_eq!(pair[1].ssrc, pair[0].ssrc);
        assert_eq!(pair[1].sequence, pair[0].sequence.wrapping_add(1));
        assert!(pair[1].at - pair[0].at <= Duration::from_millis(21), "{:?}", pair[1].at - pair[0].at);
    }
}

#[test]
fn callers_who_are_joined_hear_each_other_and_no_agent() {
    let (mut world, call, other) = joined(Network::seeded(1));
    assert_eq!(world.planes.state(other), "ended");
    assert_eq!(world.planes.ending(other), "joined");
    assert_eq!(world.planes.state(call), "connected");
    assert_eq!(loud(&mut world), (0, 0), "both are silent, and no tone is heard");
    world.caller.speaks(true);
    let (at_caller, at_other) = loud(&mut world);
    assert!(at_caller == 0 && at_other >= 48, "{at_caller} {at_other}");
    world.caller.speaks(false);
    world.other.speaks(true);
    let (at_caller, at_other) = loud(&mut world);
    assert!(at_caller >= 48 && at_other == 0, "{at_caller} {at_other}");
    check_stream(world.caller.heard());
    check_stream(world.other.heard());
    assert_eq!((world.planes.live_calls(), world.planes.ports_in_use()), (1, 2));
    assert!(!world.other.was_hung_up_on());

    world.other_hangs_up();
    world.until("its leg is gone", |world| world.planes.ports_in_use() == 1);
    assert!(loud(&mut world).0 >= 48, "the caller is with its agent again");
    world.hangs_up();
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.ending(call).as_str(), world.planes.ports_in_use()), ("hangup", 0));
}

#[test]
fn other_one_is_hung_up_with_the_caller() {
    let (mut world, call, _) = joined(Network::seeded(2));
    world.passes(Duration::from_secs(5));
    world.hangs_up();
    world.until("the other one is hung up", |world| world.other.was_hung_up_on());
    world.until("the call is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.ending(call).as_str(), world.planes.ports_in_use()), ("hangup", 0));
}

#[test]
fn phone_of_a_joined_call_holds_and_comes_back_as_a_guest_does() {
    let (mut world, call, _) = joined(Network::seeded(3));
    world.caller.speaks(true);
    assert!(loud(&mut world).1 >= 48);
    world.other_offers_again("sendonly");
    world.passes(Duration::from_secs(1));
    let heard = world.other.packets();
    world.passes(Duration::from_secs(1));
    assert_eq!(world.other.packets(), heard, "who holds hears nothing");
    world.other_offers_again("sendrecv");
    assert!(loud(&mut world).1 >= 48);
    let streams: std::collections::BTreeSet<u32> =
        world.other.heard().iter().map(|packet| packet.ssrc).collect();
    assert_eq!(streams.len(), 1);
    assert_eq!(world.planes.state(call), "connected");
}

#[test]
fn call_that_is_joined_already_takes_no_other_and_is_not_joined_again() {
    let (mut world, call, other) = two_calls(Network::seeded(4));
    let asked = world.planes.joins(call, call, &mut world.network);
    assert!(matches!(asked, Asked::Policy(_)), "{asked:?}");
    assert_eq!(world.planes.joins(call, other, &mut world.network), Asked::Done);
    assert_eq!(world.planes.live_calls(), 1);
}

#[test]
fn joined_calls_leave_nothing_behind_on_a_lossy_network() {
    for seed in 1..=10 {
        let (mut world, ..) = joined(Network::seeded(seed).loss_percent(10));
        world.passes(Duration::from_secs(3));
        match seed % 2 {
            0 => world.other_hangs_up(),
            _ => world.hangs_up(),
        }
        world.passes(Duration::from_secs(40));
        if seed % 2 == 0 {
            world.hangs_up();
        }
        world.until("all is over", |world| world.planes.live_calls() == 0);
        assert_eq!(world.planes.ports_in_use(), 0, "{}", world.story());
    }
}
