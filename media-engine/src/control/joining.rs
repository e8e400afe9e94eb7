//! Two sessions become one. On one core its worker does it; between two cores the leg goes in steps, and each that fails
//! is taken back. See [`crate::worker`] for what happens there.

use std::sync::Arc;

use tonic::Status;

use super::{Control, Entry, lock};
use crate::leg::event::Stats;
use crate::mailbox::{Command, Moving, SessionKey};
use crate::session::joining::JoinError;
use crate::session::second::Role;

/// One of the two, as the registry has it.
#[derive(Debug)]
pub(super) struct Half {
    pub(super) id: String,
    pub(super) entry: Arc<Entry>,
    pub(super) key: SessionKey,
}

impl Half {
    /// A refusal by its session, in which it is the one that stays or (`is_other`) the one that ends.
    fn refused(&self, error: JoinError, is_other: bool) -> Status {
        let text = format!("session {}: {error}", self.id);
        match error {
            JoinError::NoSession => Status::not_found(text),
            JoinError::Taken if !is_other => Status::already_exists(text),
            JoinError::Taken | JoinError::NotStarted | JoinError::Busy => Status::failed_precondition(text),
            JoinError::Full => Status::resource_exhausted(text),
            JoinError::Lost => Status::internal(text),
        }
    }
}

/// Joins them. The counters of the one that has ended; `None`: it had ended by itself meanwhile, and only its leg lives on.
pub(super) async fn join(
    control: &Control,
    stays: &Half,
    ends: &Half,
    role: Role,
) -> Result<Option<Stats>, Status> {
    let stats = match stays.entry.core == ends.entry.core {
        true => Some(join_on_core(control, stays, ends, role).await?),
        false => join_across(control, stays, ends, role).await?,
    };
    *lock(&stays.entry.joined) = Some(ends.id.clone());
    control.forget(&ends.id);
    tracing::info!(session_id = stays.id, other = ends.id, ?role, "sessions joined");
    Ok(stats)
}

async fn join_on_core(control: &Control, stays: &Half, ends: &Half, role: Role) -> Result<Stats, Status> {
    let (key, other) = (stays.key, ends.key);
    let core = &control.cores[stays.entry.core];
    core.ask(|reply| Command::Join { key, other, role, reply }).await?.map_err(|(which, error)| {
        match which == other {
            true => ends.refused(error, true),
            false => stays.refused(error, false),
        }
    })
}

async fn join_across(
    control: &Control,
    stays: &Half,
    ends: &Half,
    role: Role,
) -> Result<Option<Stats>, Status> {
    let (to, from) = (&control.cores[stays.entry.core], &control.cores[ends.entry.core]);
    let (key, other) = (stays.key, ends.key);
    to.ask(|reply| Command::Expect { key, reply }).await?.map_err(|error| stays.refused(error, false))?;
    let lifted = from.ask(|reply| Command::Lift { key: other, reply }).await;
    let moving = match lifted.and_then(|lifted| lifted.map_err(|error| ends.refused(error, true))) {
        Ok(moving) => moving,
        Err(status) => {
            // If this is lost, the place is free again after a while.
            to.send(Command::Unexpect { key });
            return Err(status);
        }
    };
    if let Err((status, moving)) = land(control, stays, moving, role).await {
        if !from.insist(Command::Restore { key: other, moving }).await {
            tracing::error!(session_id = ends.id, "its leg could not be given back");
        }
        return Err(status);
    }
    let into: Arc<str> = stays.id.as_str().into();
    let (reply, answer) = tokio::sync::oneshot::channel();
    if !from.insist(Command::Leave { key: other, into, reply }).await {
        return Ok(None);
    }
    // What matters is done.
    Ok(from.answer(answer).await.unwrap_or_default())
}

/// Lets the leg land; if it cannot, it is given back, unless it is lost.
async fn land(
    control: &Control,
    stays: &Half,
    moving: Box<Moving>,
    role: Role,
) -> Result<(), (Status, Option<Box<Moving>>)> {
    let (to, key) = (&control.cores[stays.entry.core], stays.key);
    let (reply, answer) = tokio::sync::oneshot::channel();
    if !to.insist(Command::Land { key, moving, role, reply }).await {
        return Err((Status::unavailable(format!("core {} takes no commands", to.number)), None));
    }
    match to.answer(answer).await {
        Ok(landed) => landed.map_err(|(error, moving)| (stays.refused(error, false), moving)),
        // A worker that is so late has died, and the leg with it.
        Err(status) => Err((status, None)),
    }
}
