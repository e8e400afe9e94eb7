//! The control plane: SIP, admission, the life of a call, the API.
