//! The one place where the crate's own tests ask a clock: their first instant.

/// An instant to start from.
#[allow(clippy::disallowed_methods)]
pub(crate) fn start() -> std::time::Instant {
    std::time::Instant::now()
}
