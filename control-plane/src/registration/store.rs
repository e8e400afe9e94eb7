//! Where bindings are kept, behind a trait that a store outside the process will implement too.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::binding::Binding;

/// Users with a binding. Only phones of the configuration can have one, so this guards against a configuration that
/// nobody meant. Full: `update` refuses, and the phone gets 503.
pub const USERS_MAX: usize = 100_000;

/// Why bindings could not be read or kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// The embedded store holds as many users as it may.
    #[error("binding store is full: {0} users")]
    Full(usize),
    /// A store outside the process does not answer.
    #[error("binding store does not answer: {0}")]
    Unreachable(String),
}

/// Bindings by user.
pub trait BindingStore: Send + Sync {
    /// Changes a user's bindings as one step: nobody sees them half changed, and of two changes at once one sees the other.
    /// A store that finds itself overtaken calls `change` again with what is there by then.
    fn update<T: Send>(
        &self,
        user: &str,
        change: impl FnMut(&mut Vec<Binding>) -> T + Send,
    ) -> impl Future<Output = Result<T, BindingError>> + Send;

    /// A user's bindings; expired ones may be among them.
    fn read(&self, user: &str) -> impl Future<Output = Result<Vec<Binding>, BindingError>> + Send;

    /// How many users and bindings there are, expired ones included until they are met.
    fn count(&self) -> impl Future<Output = Result<(usize, usize), BindingError>> + Send;
}

/// Bindings in the process: for one control plane.
#[derive(Debug, Default)]
pub struct EmbeddedBindings {
    users: Mutex<HashMap<Arc<str>, Vec<Binding>>>,
}

impl EmbeddedBindings {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Vec<Binding>>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BindingStore for EmbeddedBindings {
    async fn update<T: Send>(
        &self,
        user: &str,
        mut change: impl FnMut(&mut Vec<Binding>) -> T + Send,
    ) -> Result<T, BindingError> {
        let mut users = self.lock();
        if let Some(bindings) = users.get_mut(user) {
            let done = change(bindings);
            if bindings.is_empty() {
                users.remove(user);
            }
            return Ok(done);
        }
        if users.len() >= USERS_MAX {
            return Err(BindingError::Full(users.len()));
        }
        let mut bindings = Vec::new();
        let done = change(&mut bindings);
        if !bindings.is_empty() {
            users.insert(user.into(), bindings);
        }
        Ok(done)
    }

    async fn read(&self, user: &str) -> Result<Vec<Binding>, BindingError> {
        Ok(self.lock().get(user).cloned().unwrap_or_default())
    }

    async fn count(&self) -> Result<(usize, usize), BindingError> {
        let users = self.lock();
        Ok((users.len(), users.values().map(Vec::len).sum()))
    }
}
