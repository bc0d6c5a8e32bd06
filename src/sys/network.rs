//! Network namespaces: loopback, the one listener that leads out of one, and the host's own addresses.

use std::net::{IpAddr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use super::error::{CallError, Named};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;

/// `ioctl(SIOCSIFFLAGS)`: loopback up.
pub fn loopback_up() -> Result<(), CallError> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).named("socket")?;
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an `ifreq`; it lives through the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) } {
        0 => Ok(()),
        _ => Err(CallError::last("ioctl(SIOCSIFFLAGS)")),
    }
}

/// `unshare(CLONE_NEWNET)`: from here on this process has an empty network.
pub fn unshare_network_namespace() -> Result<(), CallError> {
    // SAFETY: integers only; sockets that are open stay what they are.
    match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(CallError::last("unshare(CLONE_NEWNET)")),
    }
}

/// A listener of the caller's network namespace, wherever its descriptor goes; closed by exec.
pub fn listen(address: SocketAddrV4) -> Result<OwnedFd, CallError> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).named("socket")?;
    rustix::net::bind(&socket, &address).named("bind")?;
    rustix::net::listen(&socket, BACKLOG).named("listen")?;
    Ok(socket)
}

/// Takes a descriptor for what [`listen`] makes, if it is that: a TCP listener on this address. It no longer blocks.
pub fn checked_listener(socket: OwnedFd, address: SocketAddrV4) -> Result<TcpListener, CallError> {
    let fd = socket.as_fd();
    let is_listener = sockopt::socket_domain(fd).named("getsockopt(SO_DOMAIN)")? == AddressFamily::INET
        && sockopt::socket_type(fd).named("getsockopt(SO_TYPE)")? == SocketType::STREAM
        && sockopt::socket_protocol(fd).named("getsockopt(SO_PROTOCOL)")? == Some(ipproto::TCP)
        && sockopt::socket_acceptconn(fd).named("getsockopt(SO_ACCEPTCONN)")?;
    if !is_listener {
        return Err(CallError { call: "getsockopt", errno: Errno::PROTOTYPE });
    }
    let listener = TcpListener::from(socket);
    let refused =
        |error: std::io::Error| CallError { call: "getsockname", errno: Errno::from_io_error(&error).unwrap_or(Errno::IO) };
    if listener.local_addr().map_err(refused)? != address.into() {
        return Err(CallError { call: "getsockname", errno: Errno::ADDRNOTAVAIL });
    }
    listener.set_nonblocking(true).map_err(refused)?;
    Ok(listener)
}

/// `getifaddrs(3)`: every address that this host has in its own network namespace.
pub fn own_addresses() -> Result<Vec<IpAddr>, CallError> {
    let interfaces = nix::ifaddrs::getifaddrs()
        .map_err(|errno| CallError { call: "getifaddrs", errno: Errno::from_raw_os_error(errno as i32) })?;
    let addresses = interfaces.filter_map(|interface| interface.address).filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().to_canonical()))
    });
    Ok(addresses.collect())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn anywhere() -> (OwnedFd, SocketAddrV4) {
        let socket = listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).expect("a listener");
        let taken = TcpListener::from(socket);
        let std::net::SocketAddr::V4(address) = taken.local_addr().expect("an address") else { panic!("IPv4 was asked for") };
        (taken.into(), address)
    }

    #[test]
    fn a_listener_is_taken_on_its_own_address_only() {
        let (socket, address) = anywhere();
        checked_listener(socket, address).expect("it is one");
        let (socket, address) = anywhere();
        let other = SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port() ^ 1);
        assert_eq!(checked_listener(socket, other).expect_err("elsewhere").errno, Errno::ADDRNOTAVAIL);
    }

    #[test]
    fn what_is_no_listener_is_refused() {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
        let file = std::fs::File::open("/dev/null").expect("a file");
        assert!(checked_listener(file.into(), address).is_err());
        let (left, _right) = super::super::socket::pair().expect("a pair");
        assert!(checked_listener(left, address).is_err());
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        assert!(checked_listener(datagram.into(), address).is_err());
        let (socket, listening) = anywhere();
        let connected = std::net::TcpStream::connect(listening).expect("it listens");
        assert_eq!(checked_listener(connected.into(), address).expect_err("connected").errno, Errno::PROTOTYPE);
        drop(socket);
    }

    #[test]
    fn loopback_is_among_the_host_s_own_addresses() {
        assert!(own_addresses().expect("addresses").contains(&IpAddr::from(Ipv4Addr::LOCALHOST)));
    }
}
