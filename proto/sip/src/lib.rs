//! SIP user agent core: messages, transactions, dialogs, sans-IO.
