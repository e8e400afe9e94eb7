//! Another dialog takes a call's place: Replaces (RFC 3891) and a REFER that is followed (RFC 3515).

use std::time::Duration;

use control_plane::trunk::ReferIn;
use tandem_tests::network::Network;
use tandem_tests::world::{Manners, World};
use uuid::Uuid;

/// The phone that is called in the place of the caller.
const OTHER: &str = "<sip:201@198.51.100.8>";

/// The caller talks with the tone, over a trunk that lets it refer.
fn talking(network: Network) -> (World, Uuid) {
    let mut world = World::with_trunk(network, |trunk| trunk.transfer.refer_in = ReferIn::SameTrunk);
    world.dials("700");
    world.until("the call is answered", |world| world.caller.is_connected());
    let call = world.planes.only_call();
    world.until("its ACK has come", |world| world.planes.state(call) == "connected");
    world.passes(Duration::from_secs(1));
    (world, call)
}

/// The caller is gone, the other phone hears the agent's stream where the caller's left off, and it is one call.
fn is_the_others(world: &mut World, call: Uuid) {
    world.until("the caller's dialog is over", |world| world.caller.is_over());
    let before = world.other.packets();
    world.passes(Duration::from_secs(1));
    let heard = world.other.heard();
    assert!(heard.len() - before >= 45, "{} of 50 packets", heard.len() - before);
    let last = world.caller.heard().last().expect("the caller has heard something");
    assert_eq!(heard[0].ssrc, last.ssrc, "the session is the same");
    assert_eq!(heard[0].sequence, last.sequence.wrapping_add(1), "nothing is lost in between");
    assert_eq!((world.planes.state(call).as_str(), world.planes.live_calls()), ("connected", 1));
    assert_eq!(world.planes.ports_in_use(), 1);
}

/// The call goes on with the caller as if nothing had been.
fn is_still_the_callers(world: &mut World, call: Uuid) {
    let (before, others) = (world.caller.packets(), world.other.packets());
    world.passes(Duration::from_secs(1));
    assert!(world.caller.is_connected() && world.planes.state(call) == "connected");
    assert!(world.caller.packets() - before >= 45, "{} packets", world.caller.packets() - before);
    assert_eq!(world.other.packets(), others, "nobody else is sent anything");
    assert_eq!((world.planes.live_calls(), world.planes.ports_in_use()), (1, 1));
}

#[test]
fn call_with_replaces_keeps_the_agent_and_the_record() {
    let (mut world, call) = talking(Network::seeded(1));
    // Our Contact names no number: the dialog that it replaces says what it wants.
    world.other_replaces_the_caller("tandem", true);
    world.until("it is answered", |world| world.other.is_connected());
    is_the_others(&mut world, call);
    assert!(world.caller.was_hung_up_on());
    world.other_hangs_up();
    world.until("all is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.state(call).as_str(), world.planes.ending(call).as_str()), ("ended", "hangup"));
    assert_eq!((world.planes.records.len(), world.planes.ports_in_use()), (1, 0));
}

#[test]
fn call_with_replaces_and_without_an_offer_gets_ours_and_takes_over_with_its_ack() {
    let (mut world, call) = talking(Network::seeded(2));
    world.other_replaces_the_caller("tandem", false);
    world.until("it is answered", |world| world.other.is_connected());
    is_the_others(&mut world, call);
}

#[test]
fn call_with_replaces_and_a_key_takes_over_from_a_caller_with_a_key() {
    let mut world = World::new(Network::seeded(3));
    world.dials("tone:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    world.passes(Duration::from_secs(1));
    let call = world.planes.only_call();
    world.other_replaces_the_caller("echo:demo-key", true);
    world.until("it is answered", |world| world.other.is_connected());
    is_the_others(&mut world, call);
    assert!(world.other.heard().iter().all(|packet| packet.is_loud), "it is the tone that goes on");
}

#[test]
fn call_with_replaces_from_a_stranger_changes_nothing() {
    let mut world = World::new(Network::seeded(4));
    world.dials("tone:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    let call = world.planes.only_call();
    for user in ["tone", "tone:wrong-key"] {
        world.other_replaces_the_caller(user, true);
        world.until("it is refused", |world| world.other.got(403));
        is_still_the_callers(&mut world, call);
    }
    assert_eq!(world.planes.records.len(), 1, "who is refused leaves no record");
}

#[test]
fn newcomer_that_gives_up_at_once_leaves_the_call_as_it_was() {
    // So far away that the CANCEL and the 200 may cross.
    for seed in 1..=20 {
        let network = Network::seeded(seed).delay(Duration::from_millis(20), Duration::from_millis(30));
        let (mut world, call) = talking(network);
        world.other_replaces_the_caller("tandem", true);
        world.passes(Duration::from_millis(40));
        world.other_cancels();
        world.until("it is over", |world| world.other.is_over());
        world.passes(Duration::from_secs(40));
        if world.caller.is_connected() {
            is_still_the_callers(&mut world, call);
        } else {
            // The 200 was faster: then nothing may be left.
            assert_eq!((world.planes.live_calls(), world.planes.ports_in_use()), (0, 0), "seed {seed}");
        }
    }
}

#[test]
fn caller_who_refers_us_is_left_when_the_target_has_answered() {
    for seed in 1..=10 {
        let (mut world, call) = talking(Network::seeded(seed).loss_percent(if seed == 1 { 0 } else { 10 }));
        world.refers(OTHER);
        world.until("the target is called", |world| !world.other.incoming().is_empty());
        assert_eq!(world.other.invited_with(), (None, Some("<sip:caller@198.51.100.7>")));
        world.other_rings();
        world.until("the caller hears that it rings", |world| world.caller.progress().contains(&180));
        let before = world.caller.packets();
        world.passes(Duration::from_secs(2));
        assert!(world.caller.packets() - before >= 80, "the agent talks on meanwhile");
        world.other_answers();
        world.until("the caller hears of it", |world| world.caller.progress().contains(&200));
        world.until("the caller's dialog is over", |world| world.caller.is_over());
        let before = world.other.packets();
        world.passes(Duration::from_secs(1));
        assert!(world.other.packets() - before >= 38, "{}", world.other.packets() - before);
        assert_eq!((world.planes.state(call).as_str(), world.planes.live_calls()), ("connected", 1));
        world.other_hangs_up();
        world.until("all is over", |world| world.planes.live_calls() == 0);
        assert_eq!((world.planes.records.len(), world.planes.ports_in_use()), (1, 0));
    }
}

#[test]
fn stream_goes_on_at_the_target_where_the_callers_ends() {
    let (mut world, call) = talking(Network::seeded(2));
    world.refers(OTHER);
    world.until("the target is called", |world| !world.other.incoming().is_empty());
    world.other_answers();
    is_the_others(&mut world, call);
    assert_eq!(world.caller.progress(), [202, 100, 200]);
}

#[test]
fn attended_transfer_hands_its_replaces_on() {
    let (mut world, _) = talking(Network::seeded(3));
    world.refers("<sip:201@198.51.100.8?Replaces=a7%40b%3Bto-tag%3D1%3Bfrom-tag%3D2>");
    // It has no such dialog, and says so: the INVITE had the Replaces.
    world.until("the caller hears of it", |world| world.caller.progress().contains(&481));
    assert_eq!(world.caller.progress(), [202, 100, 481]);
}

#[test]
fn caller_whose_target_refuses_stays_with_the_agent() {
    let (mut world, call) = talking(Network::seeded(4));
    world.phones_always([Manners::Waits, Manners::Busy]);
    world.refers(OTHER);
    world.until("the caller hears of it", |world| world.caller.progress().contains(&486));
    is_still_the_callers(&mut world, call);
    // And may try again.
    world.refers(OTHER);
    world.until("it is tried again", |world| world.other.incoming().len() == 2);
}

#[test]
fn caller_whose_target_never_answers_stays_with_the_agent() {
    let (mut world, call) = talking(Network::seeded(5));
    world.refers(OTHER);
    world.until("the target is called", |world| !world.other.incoming().is_empty());
    world.other_rings();
    world.until("the caller hears of it", |world| world.caller.progress().contains(&408));
    world.until("the target rings no more", |world| world.other.was_cancelled());
    is_still_the_callers(&mut world, call);
}

#[test]
fn caller_who_hangs_up_after_its_202_leaves_the_agent_waiting_for_the_target() {
    let (mut world, call) = talking(Network::seeded(6));
    world.refers(OTHER);
    world.until("the target is called", |world| !world.other.incoming().is_empty());
    world.hangs_up();
    world.until("the agent waits", |world| world.planes.state(call) == "on_hold");
    world.other_answers();
    is_the_others(&mut world, call);
}

#[test]
fn caller_who_hangs_up_and_whose_target_refuses_ends_the_call() {
    let (mut world, call) = talking(Network::seeded(7));
    world.refers(OTHER);
    world.until("the target is called", |world| !world.other.incoming().is_empty());
    world.hangs_up();
    world.until("the agent waits", |world| world.planes.state(call) == "on_hold");
    world.other_refuses(486);
    world.until("all is over", |world| world.planes.live_calls() == 0);
    assert_eq!((world.planes.ending(call).as_str(), world.planes.ports_in_use()), ("hangup", 0));
}

#[test]
fn call_that_ends_while_its_target_rings_cancels_it() {
    let (mut world, call) = talking(Network::seeded(8));
    world.refers(OTHER);
    world.until("the target is called", |world| !world.other.incoming().is_empty());
    world.planes.hangs_up(call, &mut world.network);
    world.until("the target rings no more", |world| world.other.was_cancelled());
    world.until("all is over", |world| world.caller.is_over() && world.planes.live_calls() == 0);
}

#[test]
fn refer_is_declined_where_no_policy_allows_it_and_to_where_none_does() {
    let mut world = World::new(Network::seeded(9));
    world.dials("tone:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    world.refers(OTHER);
    world.until("it is declined", |world| world.caller.progress() == [603]);

    let (mut world, call) = talking(Network::seeded(10));
    world.refers("<sip:201@203.0.113.9>");
    world.until("it is refused", |world| world.caller.progress() == [403]);
    is_still_the_callers(&mut world, call);
    assert!(world.other.incoming().is_empty());
}
