//! A call as it is remembered: the API's message and whose it is.

use std::sync::Arc;

use tandem_api::v1::Call;

/// What the store keeps of a call, and what lists show of a live one.
#[derive(Debug, Clone, PartialEq)]
pub struct CallRecord {
    /// Whose call it is; nobody else ever sees it.
    pub tenant_id: Arc<str>,
    /// What is known of it.
    pub call: Call,
}
