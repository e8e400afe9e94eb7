//! Hold and resume: a re-INVITE that changes the direction.

use std::time::Duration;

use tandem_tests::network::Network;
use tandem_tests::world::World;

#[test]
fn caller_who_holds_hears_nothing_until_he_resumes() {
    let mut world = World::new(Network::seeded(11));
    world.dials("tone:demo-key");
    world.until("the call is answered", |world| world.caller.is_connected());
    world.passes(Duration::from_secs(1));
    let before = world.caller.packets();
    assert!(before >= 49, "{before}");

    world.offers_again("inactive");
    world.until("the hold is answered", |world| {
        world.caller.statuses().iter().filter(|status| **status == 200).count() == 2
    });
    world.passes(Duration::from_millis(50));
    let held = world.caller.packets();
    world.passes(Duration::from_secs(2));
    assert_eq!(world.caller.packets(), held, "nothing is sent to a caller on hold");

    world.offers_again("sendrecv");
    world.passes(Duration::from_secs(1));
    let resumed = world.caller.packets() - held;
    assert!((45..=51).contains(&resumed), "{resumed} packets in the second after the resume");
    world.hangs_up();
    world.until("the call is over", |world| world.planes.live_calls() == 0);
}
