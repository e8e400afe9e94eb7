//! Reliable provisional responses (RFC 3262), both roles.

use std::time::Instant;

use super::event::CallHandle;
use super::{CallError, Endpoint};
use crate::message::Body;

impl Endpoint {
    /// UAC: the PRACK with our answer, after [`super::Event::Provisional`] with `wants_prack`.
    pub fn prack(&mut self, call: CallHandle, body: Body, now: Instant) -> Result<(), CallError> {
        let _ = (call, body, now);
        Err(CallError::Method)
    }
}
