//! Sockets and their options, and addresses as the kernel wants them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

/// DSCP "expedited forwarding" (RFC 3246), as it stands in the TOS octet: what voice is marked with.
const TOS_EXPEDITED: u32 = 0xB8;

/// A peer that acknowledges nothing for so long is gone: sound goes out all the time, so a dead agent shows quickly.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Octets that may wait in a TCP socket before the peer's window takes them: half a second of L16 at 16 kHz. Without a
/// bound the kernel would hoard minutes for a peer that has ceased to read, and our own bound in the leg would never hold.
const UNSENT_OCTETS_MAX: u32 = 16 * 1_024;

/// The same for a link: what 1 000 calls have in 8 ms. More would only be late; it waits with the calls, which drop their
/// oldest.
const LINK_UNSENT_OCTETS_MAX: u32 = 256 * 1_024;

/// The same for a provider's connection: half a second of L16 at 16 kHz in base64 and JSON.
const PROVIDER_UNSENT_OCTETS_MAX: u32 = 24 * 1_024;

/// A peer that is silent for so long is asked whether it lives, also while nothing is sent to it (a call on hold).
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(5));

/// A non-blocking UDP socket bound to `address`, marked as voice. Errors are those of bind(2): `AddrInUse` when
/// somebody else has the port.
pub fn bind_udp(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    // Marking is a courtesy to the network: a kernel that refuses it still carries the call.
    let _ = match address {
        SocketAddr::V4(_) => socket.set_tos_v4(TOS_EXPEDITED),
        SocketAddr::V6(_) => socket.set_tclass_v6(TOS_EXPEDITED),
    };
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// A TCP socket for talking to `to`: without Nagle's delay, without a long queue of its own, and it gives a dead peer up.
/// Not connected yet.
pub fn tcp_socket(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_tcp_notsent_lowat(UNSENT_OCTETS_MAX)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    Ok(socket.into())
}

/// The same for a connection that carries many calls.
pub(super) fn link_socket(to: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::from(tcp_socket(to)?);
    socket.set_tcp_notsent_lowat(LINK_UNSENT_OCTETS_MAX)?;
    Ok(socket.into())
}

/// A provider's connection that came in is held to the same, from the first octet on.
///
/// # Errors
/// Those of setsockopt(2).
pub fn tame_incoming(tcp: &impl AsFd) -> io::Result<()> {
    let socket = socket2::SockRef::from(tcp);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_tcp_notsent_lowat(PROVIDER_UNSENT_OCTETS_MAX)?;
    socket.set_tcp_keepalive(&KEEPALIVE)
}

/// Connects a UDP socket to `peer`; `None` dissolves the connection (connect(2) with AF_UNSPEC).
pub(super) fn connect_udp(fd: &OwnedFd, peer: Option<SocketAddr>) -> io::Result<()> {
    let address = match peer {
        Some(peer) => KernelAddress::from(peer),
        None => {
            KernelAddress { octets: [0; KernelAddress::ROOM], len: KernelAddress::ROOM as libc::socklen_t }
        }
    };
    // SAFETY: `address` lives through the call, which copies it. AF_UNSPEC is zero.
    match unsafe { libc::connect(fd.as_raw_fd(), address.as_ptr(), address.len()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a UDP socket has nothing to read now.
pub(super) fn is_drained(fd: &OwnedFd) -> bool {
    let mut octet = [std::mem::MaybeUninit::uninit()];
    let peeked = socket2::SockRef::from(fd).recv_with_flags(&mut octet, libc::MSG_PEEK | libc::MSG_DONTWAIT);
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Shuts the sending side of a stream.
pub(super) fn shut_write(fd: &OwnedFd) {
    // A peer that has gone already is no news.
    let _ = socket2::SockRef::from(fd).shutdown(std::net::Shutdown::Write);
}

/// A socket address in the kernel's layout: `sockaddr_in` or `sockaddr_in6`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct KernelAddress {
    octets: [u8; KernelAddress::ROOM],
    len: libc::socklen_t,
}

impl Default for KernelAddress {
    fn default() -> Self {
        Self { octets: [0; Self::ROOM], len: 0 }
    }
}

impl KernelAddress {
    /// Room for the larger of the two.
    pub(super) const ROOM: usize = size_of::<libc::sockaddr_in6>();
    const V4: usize = size_of::<libc::sockaddr_in>();

    pub(super) fn as_ptr(&self) -> *const libc::sockaddr {
        self.octets.as_ptr().cast()
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        self.octets.as_mut_ptr().cast()
    }

    pub(super) fn len(&self) -> libc::socklen_t {
        self.len
    }

    /// Writes `address` into `octets` (at least [`KernelAddress::ROOM`]) and says how many it took.
    pub(super) fn write(address: SocketAddr, octets: &mut [u8]) -> libc::socklen_t {
        match address {
            SocketAddr::V4(v4) => {
                octets[..Self::V4].fill(0);
                octets[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                octets[2..4].copy_from_slice(&v4.port().to_be_bytes());
                octets[4..8].copy_from_slice(&v4.ip().octets());
                Self::V4 as libc::socklen_t
            }
            SocketAddr::V6(v6) => {
                octets[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                octets[2..4].copy_from_slice(&v6.port().to_be_bytes());
                octets[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                octets[8..24].copy_from_slice(&v6.ip().octets());
                octets[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                Self::ROOM as libc::socklen_t
            }
        }
    }

    /// Reads an address the kernel wrote. An IPv4 address mapped into IPv6 comes out as IPv4.
    pub(super) fn read(octets: &[u8]) -> Option<SocketAddr> {
        let family = u16::from_ne_bytes(octets.get(..2)?.try_into().ok()?);
        let port = u16::from_be_bytes(octets.get(2..4)?.try_into().ok()?);
        match i32::from(family) {
            libc::AF_INET => {
                let ip: [u8; 4] = octets.get(4..8)?.try_into().ok()?;
                Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
            }
            libc::AF_INET6 => {
                let ip: [u8; 16] = octets.get(8..24)?.try_into().ok()?;
                let ip = Ipv6Addr::from(ip);
                let scope = u32::from_ne_bytes(octets.get(24..28)?.try_into().ok()?);
                Some(match ip.to_ipv4_mapped() {
                    Some(v4) => SocketAddr::new(IpAddr::V4(v4), port),
                    None => SocketAddrV6::new(ip, port, 0, scope).into(),
                })
            }
            _ => None,
        }
    }

    /// The address the kernel wrote here.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        Self::read(&self.octets)
    }
}

impl From<SocketAddr> for KernelAddress {
    fn from(address: SocketAddr) -> Self {
        let mut this = Self::default();
        this.len = Self::write(address, &mut this.octets);
        this
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_to_an_agent_hoards_little_and_gives_the_dead_up() {
        let socket: Socket = tcp_socket("127.0.0.1:1".parse().unwrap()).unwrap().into();
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), UNSENT_OCTETS_MAX);
    }

    #[test]
    fn addresses_survive_the_kernels_layout() {
        for text in ["192.0.2.7:4000", "[2001:db8::1]:65535", "[fe80::1%3]:9"] {
            let address: SocketAddr = text.parse().unwrap();
            let kernel = KernelAddress::from(address);
            assert_eq!(kernel.address(), Some(address));
        }
    }

    #[test]
    fn a_mapped_ipv4_address_is_an_ipv4_address() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:4000".parse().unwrap();
        let plain: SocketAddr = "192.0.2.7:4000".parse().unwrap();
        assert_eq!(KernelAddress::from(mapped).address(), Some(plain));
    }

    #[test]
    fn an_unknown_family_is_no_address() {
        assert_eq!(KernelAddress::read(&[0xFF; 28]), None);
        assert_eq!(KernelAddress::read(&[2]), None);
    }
}
