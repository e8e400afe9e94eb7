//! RTP and RTCP (RFC 3550, RFC 3551, RFC 3611), telephone-events (RFC 4733).
//!
//! ```text
//!  datagram ──▶ packet::Packet::parse ──▶ payload type as negotiated? ──▶ latch::SourceLatch ──▶ receiver::Receiver
//!                                                                                                     │
//!    decoder ◀── in order: at once ── jitter::ReorderBuffer ◀─────────────────────────────────────────┘
//!    event::EventDetector ◀── packets of the telephone-event type, in order too: they share the sequence numbers
//!
//!  payload ──▶ sender::Sender::next_header ──▶ packet::Header::write ──▶ datagram
//! ```
//!
//! The order matters: only a packet that parsed and has a negotiated payload type may latch a source, and only a
//! packet from the latched source may reach the receiver's statistics. RTCP on the same port is told apart by
//! [`packet::is_rtcp`] (RFC 5761) before all of this.
//!
//! ```
//! use std::time::Instant;
//! use tandem_audio::format::Codec;
//! use tandem_rtp::jitter::{Placement, Release, ReorderBuffer};
//! use tandem_rtp::latch::{Latching, SourceLatch};
//! use tandem_rtp::packet::Packet;
//! use tandem_rtp::receiver::{Receiver, Verdict};
//!
//! struct Leg { latch: SourceLatch, receiver: Receiver, reorder: ReorderBuffer }
//!
//! impl Leg {
//!     fn handle_datagram(&mut self, source: std::net::SocketAddr, bytes: &[u8], now: Instant) {
//!         let Ok(packet) = Packet::parse(bytes) else { return };
//!         if packet.header.payload_type.get() > 8 || !self.latch.handle_packet(source, packet.header.ssrc, now).is_accepted() {
//!             return;
//!         }
//!         let Verdict::Accepted { sequence, started } = self.receiver.handle_packet(&packet.header, packet.payload.len(), now) else { return };
//!         if started {
//!             self.reorder.reset();
//!         }
//!         let placement = self.reorder.handle_packet(sequence, &packet.header, packet.payload, now);
//!         if placement == Placement::AfterHeld {
//!             self.drain();
//!         }
//!         if matches!(placement, Placement::InOrder | Placement::AfterHeld) {
//!             self.hear(packet.payload);
//!         }
//!         self.drain();
//!     }
//!
//!     fn handle_timeout(&mut self, now: Instant) {
//!         self.reorder.handle_timeout(now);
//!         self.drain();
//!     }
//!
//!     fn drain(&mut self) {
//!         while let Some(release) = self.reorder.poll_release() {
//!             match release {
//!                 Release::Packet(held) => println!("decode {} octets", held.payload.len()),
//!                 Release::Gap { packets, .. } => println!("conceal {packets} packets"),
//!             }
//!         }
//!     }
//!
//!     fn hear(&mut self, payload: &[u8]) {
//!         println!("decode {} octets", payload.len());
//!     }
//! }
//! # let codec = Codec::Pcmu;
//! # let now = Instant::now();
//! # let mut leg = Leg { latch: SourceLatch::new(Latching::Auto, None), receiver: Receiver::new(codec.clock_rate()), reorder: ReorderBuffer::new(480) };
//! # leg.handle_datagram("127.0.0.1:4000".parse().unwrap(), &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0xFF], now);
//! # leg.handle_timeout(now);
//! # assert_eq!(leg.receiver.stats().received, 1);
//! ```
//!
//! Of a browser, [`ice`] finds the source in place of the latch, and [`dtls`] the keys of [`srtp`].
//!
//! Nothing here opens a socket or reads a clock, nothing allocates for a packet, and nothing can panic on what a peer sent.

pub mod dtls;
pub mod event;
pub mod ice;
pub mod jitter;
pub mod latch;
pub mod packet;
pub mod quality;
pub mod receiver;
pub mod report;
pub mod rtcp;
pub mod sender;
pub mod srtp;
pub mod units;
