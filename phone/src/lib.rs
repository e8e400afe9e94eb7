//! A softphone without a handset: one SIP call with RTP, for the demo call, tests and tools.
