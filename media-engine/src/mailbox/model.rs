//! The mailbox under a checker of schedules: whatever the order in which the two threads come to the bell, nothing that
//! was put in stays in, and nobody sleeps beside a full queue.
//!
//! The real [`Commands`], [`Outbox`] and [`Inbox`] run here on a bell of the checker's own, which counts as an eventfd does.
//! A push to the queue (rtrb) is one step; the loops are those of `worker.rs` and `control/events.rs`, without their work.

use shuttle::sync::{Condvar, Mutex};
use shuttle::thread;

use super::*;

/// Schedules that are tried.
const SCHEDULES: usize = 20_000;

/// Commands that the worker's loop takes at a time: fewer than come, so that its bound is met.
const A_TURN: usize = 2;

const COMMANDS: usize = 5;
const EVENTS: usize = 4;

/// An eventfd.
#[derive(Clone, Default)]
struct Bell(Arc<(Mutex<u64>, Condvar)>);

impl Wake for Bell {
    fn wake(&self) {
        // What is pushed before is not yet told: here others may run.
        thread::yield_now();
        *self.0.0.lock().unwrap() += 1;
        self.0.1.notify_one();
    }
}

impl Bell {
    /// As epoll and a multishot poll do: returns while the counter is up.
    fn wait(&self) {
        let mut count = self.0.0.lock().unwrap();
        while *count == 0 {
            count = self.0.1.wait(count).unwrap();
        }
    }

    fn drain(&self) {
        *self.0.0.lock().unwrap() = 0;
        thread::yield_now();
    }
}

/// Takes the wake down before it looks into the queue, or after.
#[derive(Clone, Copy, PartialEq)]
enum Drains {
    Before,
    After,
}

/// A worker's loop until it has stopped. Gives the commands that it took.
fn work(waker: &Bell, commands: &mut Consumer<Command>, outbox: &mut Outbox<Bell>, drains: Drains) -> usize {
    let id: Arc<str> = "a".into();
    let (mut taken, mut is_behind) = (0, false);
    loop {
        if !is_behind {
            waker.wait();
        }
        if drains == Drains::Before {
            waker.drain();
        }
        let mut stopping = false;
        for _ in 0..A_TURN {
            let Ok(command) = commands.pop() else { break };
            taken += 1;
            stopping |= matches!(command, Command::Stop);
            if taken <= EVENTS {
                outbox.push(&id, Event::AgentHangup { after_drain: false });
            }
            thread::yield_now();
        }
        is_behind = !commands.is_empty();
        if drains == Drains::After {
            waker.drain();
        }
        outbox.ring();
        if stopping {
            return taken;
        }
    }
}

fn both_ways(drains: Drains) {
    let (waker, bell) = (Bell::default(), Bell::default());
    let ((mut commands, mut inbox), (mut queue, mut outbox)) = pair(waker.clone(), bell.clone());
    let worker = thread::spawn(move || work(&waker, &mut queue, &mut outbox, drains));
    let pump = thread::spawn(move || {
        let mut told = 0;
        while told < EVENTS {
            bell.wait();
            bell.drain();
            while inbox.pop().is_some() {
                told += 1;
                thread::yield_now();
            }
            assert!(!inbox.was_lossy());
        }
        told
    });
    for _ in 1..COMMANDS {
        assert!(commands.send(Command::EndAll { reason: EndReason::EngineFault }));
    }
    assert!(commands.send(Command::Stop));
    assert_eq!(worker.join().unwrap(), COMMANDS);
    assert_eq!(pump.join().unwrap(), EVENTS);
}

#[test]
fn no_schedule_leaves_a_command_or_an_event_behind() {
    shuttle::check_random(|| both_ways(Drains::Before), SCHEDULES);
}

/// That the checker would see it.
#[test]
#[should_panic(expected = "deadlock")]
fn a_wake_taken_down_after_the_look_sleeps_beside_a_command() {
    shuttle::check_random(|| both_ways(Drains::After), SCHEDULES);
}
