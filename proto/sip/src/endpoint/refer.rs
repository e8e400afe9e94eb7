//! Transfer (RFC 3515): REFER in a call's dialog, and the NOTIFYs of its implicit subscription.

use std::time::Instant;

use super::event::{CallHandle, RequestHandle};
use super::{CallError, Endpoint};
use crate::header::refer::ReferTo;
use crate::headers::Headers;

impl Endpoint {
    /// Asks the peer to call `target` instead of us; how it fares is [`super::Event::ReferProgress`]. The call stays up:
    /// hang it up when the target has answered, or go on with it when that failed. One transfer of a call at a time.
    pub fn refer(
        &mut self,
        call: CallHandle,
        target: &ReferTo,
        headers: Headers,
        now: Instant,
    ) -> Result<(), CallError> {
        let _ = (call, target, headers, now);
        Err(CallError::Method)
    }

    /// Accepts a REFER that came as [`super::Event::Request`] in a call's dialog: 202, and a NOTIFY that says that we try.
    /// Report the rest with [`Endpoint::notify_refer`].
    pub fn accept_refer(&mut self, request: RequestHandle, now: Instant) -> Result<(), CallError> {
        let _ = (request, now);
        Err(CallError::Method)
    }

    /// Tells who sent the accepted REFER how the call to its target fares: a NOTIFY with this status. A final one (from
    /// 200 on) ends the subscription.
    pub fn notify_refer(
        &mut self,
        call: CallHandle,
        status: u16,
        reason: &str,
        now: Instant,
    ) -> Result<(), CallError> {
        let _ = (call, status, reason, now);
        Err(CallError::Method)
    }
}
