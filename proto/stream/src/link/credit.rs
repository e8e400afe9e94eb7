//! How much audio of one call may be on its way: octets, granted by who receives it.
//!
//! ```text
//!   sender   Spender: starts with the window, spends as it sends, keeps audio back at nought
//!   receiver Granter: counts what came and what of it still waits; gives back the rest, a quarter of a window at a time
//! ```

/// Octets of caller audio that an agent takes without having granted more: one second. An agent that is later than that
/// has lost the conversation anyway, and what waits on the engine's side is dropped oldest first.
pub const CALLER_WINDOW: u32 = 32_000;

/// Octets of agent audio that an engine takes without having granted more: 20 s, half of what its playout queue holds, so
/// that whole answers go at once and nothing is ever dropped for want of room.
pub const AGENT_WINDOW: u32 = 640_000;

/// The sender's side.
#[derive(Debug, Clone, Copy)]
pub struct Spender {
    left: u32,
}

impl Spender {
    /// Credit of a whole window.
    pub const fn new(window: u32) -> Self {
        Self { left: window }
    }

    /// Octets that may still be sent.
    pub const fn left(self) -> u32 {
        self.left
    }

    /// Whether so many octets may be sent; if so, they are spent.
    pub fn spend(&mut self, octets: usize) -> bool {
        match u32::try_from(octets).ok().and_then(|octets| self.left.checked_sub(octets)) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }

    /// The receiver grants more. What would overflow is as good as no limit.
    pub fn grant(&mut self, octets: u32) {
        self.left = self.left.saturating_add(octets);
    }
}

/// The receiver's side.
#[derive(Debug, Clone, Copy)]
pub struct Granter {
    step: u32,
    came: u64,
    granted: u64,
}

impl Granter {
    /// Of a window that the sender has to begin with.
    pub const fn new(window: u32) -> Self {
        Self { step: window / 4, came: 0, granted: 0 }
    }

    /// Octets came.
    pub fn receive(&mut self, octets: usize) {
        self.came += octets as u64;
    }

    /// What is to be granted now that `waiting` octets of what came have not been used; `None` while it is too little to
    /// tell.
    pub fn grant(&mut self, waiting: u64) -> Option<u32> {
        let free = self.came.saturating_sub(waiting).saturating_sub(self.granted);
        if free < u64::from(self.step.max(1)) {
            return None;
        }
        let octets = u32::try_from(free).unwrap_or(u32::MAX);
        self.granted += u64::from(octets);
        Some(octets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_has_spent_the_window_may_send_again_when_more_is_granted() {
        let mut spender = Spender::new(1_000);
        assert!(spender.spend(640));
        assert!(!spender.spend(640));
        assert_eq!(spender.left(), 360);
        spender.grant(280);
        assert!(spender.spend(640));
        assert_eq!(spender.left(), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_a_window_is_under_way_or_waiting(
            steps in proptest::collection::vec((0usize..3_000, 0u64..3_000), 1..200)
        ) {
            const WINDOW: u32 = 4_000;
            let (mut spender, mut granter) = (Spender::new(WINDOW), Granter::new(WINDOW));
            let mut waiting = 0u64;
            for (send, used) in steps {
                if spender.spend(send) {
                    granter.receive(send);
                    waiting += send as u64;
                }
                waiting = waiting.saturating_sub(used);
                if let Some(octets) = granter.grant(waiting) {
                    spender.grant(octets);
                }
                prop_assert!(u64::from(spender.left()) + waiting <= u64::from(WINDOW));
                // Nobody starves: what is not granted yet is less than a step.
                prop_assert!(u64::from(spender.left()) + waiting > u64::from(WINDOW - WINDOW / 4));
            }
        }
    }
}
