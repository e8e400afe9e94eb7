//! Each operation as a typed submission, and the way back from a completion to its socket.
//!
//! A completion carries 64 bits of ours: 4 for the kind of operation, 28 for the socket's generation, 32 for its
//! place in the table.

use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};

use super::table::SocketId;

/// Which operation a completion ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Op {
    /// Multishot recvmsg (UDP) or recv (TCP).
    Receive = 1,
    /// A datagram; reported only when it failed.
    Datagram = 2,
    /// A write of the stage.
    Write = 3,
    /// A TCP connect.
    Connect = 4,
    /// A cancel; reported only when there was nothing to cancel.
    Cancel = 5,
    /// The eventfd became readable.
    Wake = 6,
}

/// The 64 bits for an operation on a socket.
pub(super) fn tag(op: Op, socket: SocketId) -> u64 {
    (op as u64) << 60 | u64::from(socket.generation) << 32 | u64::from(socket.index)
}

/// The way back.
pub(super) fn untag(bits: u64) -> Option<(Op, SocketId)> {
    let op = match bits >> 60 {
        1 => Op::Receive,
        2 => Op::Datagram,
        3 => Op::Write,
        4 => Op::Connect,
        5 => Op::Cancel,
        6 => Op::Wake,
        _ => return None,
    };
    let socket = SocketId { index: bits as u32, generation: (bits >> 32) as u32 & 0x0FFF_FFFF };
    Some((op, socket))
}

/// Not a socket: the tag of operations that belong to the ring itself.
pub(super) const NO_SOCKET: SocketId = SocketId { index: u32::MAX, generation: 0 };

/// Receives datagrams with their source until cancelled, each into a buffer of `group`. The kernel copies `header`
/// (it only tells how much room the source address gets) when the operation is prepared.
pub(super) fn receive_datagrams(fd: RawFd, header: *const libc::msghdr, group: u16) -> squeue::Entry {
    opcode::RecvMsgMulti::new(types::Fd(fd), header, group).build()
}

/// The same from a connected socket, whose datagrams have one source: the kernel writes neither header nor address. The
/// result is the length that the datagram had, also when the buffer was too small for it.
pub(super) fn receive_from_peer(fd: RawFd, group: u16) -> squeue::Entry {
    opcode::RecvMulti::new(types::Fd(fd), group).flags(libc::MSG_TRUNC).build()
}

/// Receives a stream until cancelled, each piece into a buffer of `group`.
pub(super) fn receive_stream(fd: RawFd, group: u16) -> squeue::Entry {
    opcode::RecvMulti::new(types::Fd(fd), group).build()
}

/// Sends one datagram at once or not at all. `MSG_DONTWAIT` makes the kernel finish it inside the submit that takes
/// it, whatever happens (it never waits for room in the socket), so that its memory is ours again when
/// the submit returns; and nothing is reported when it succeeded.
pub(super) fn send_datagram(
    fd: RawFd,
    data: *const u8,
    len: u32,
    to: *const libc::sockaddr,
    to_len: libc::socklen_t,
) -> squeue::Entry {
    opcode::Send::new(types::Fd(fd), data, len)
        .dest_addr(to)
        .dest_addr_len(to_len)
        .flags(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS)
}

/// Writes to a stream; waits in the kernel for room if there is none.
pub(super) fn write(fd: RawFd, data: *const u8, len: u32) -> squeue::Entry {
    opcode::Send::new(types::Fd(fd), data, len).flags(libc::MSG_NOSIGNAL).build()
}

/// Connects a TCP socket.
pub(super) fn connect(fd: RawFd, to: *const libc::sockaddr, to_len: libc::socklen_t) -> squeue::Entry {
    opcode::Connect::new(types::Fd(fd), to, to_len).build()
}

/// Cancels everything in flight on a descriptor.
pub(super) fn cancel(fd: RawFd) -> squeue::Entry {
    opcode::AsyncCancel2::new(types::CancelBuilder::fd(types::Fd(fd)).all())
        .build()
        .flags(squeue::Flags::SKIP_SUCCESS)
}

/// Cancels the receive of a socket, and nothing else of it.
pub(super) fn cancel_receive(socket: SocketId) -> squeue::Entry {
    opcode::AsyncCancel::new(tag(Op::Receive, socket)).build().flags(squeue::Flags::SKIP_SUCCESS)
}

/// Reports each time that an eventfd becomes readable.
pub(super) fn watch(fd: RawFd) -> squeue::Entry {
    opcode::PollAdd::new(types::Fd(fd), libc::POLLIN as u32).multi(true).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_tag_leads_back_to_its_operation_and_socket(kind in 1u8..=6, index in any::<u32>(), generation in 0u32..(1 << 28)) {
            let op = [Op::Receive, Op::Datagram, Op::Write, Op::Connect, Op::Cancel, Op::Wake][usize::from(kind - 1)];
            let socket = SocketId { index, generation };
            prop_assert_eq!(untag(tag(op, socket)), Some((op, socket)));
        }
    }

    #[test]
    fn bits_that_are_no_tag_lead_nowhere() {
        assert_eq!(untag(0), None);
        assert_eq!(untag(u64::MAX), None);
    }
}
