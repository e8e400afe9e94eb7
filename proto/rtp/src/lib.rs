//! RTP and RTCP: packets, receivers, senders, telephone-events.
