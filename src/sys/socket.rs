//! Sequenced-packet sockets that carry bytes and descriptors: one datagram is one message, its end is seen.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::error::{CallError, Named};

/// Descriptors that one message can carry.
pub const DESCRIPTORS_MAX: usize = 128;

/// A pair of connected sockets, closed by exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), CallError> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).named("socketpair")
}

/// A socket that one peer can connect to, as `name` in `directory`, open to every user who reaches it. An address holds 107 bytes
/// and a directory's path may be longer, so it is named by its descriptor.
pub fn listen(directory: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, CallError> {
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())).named("bind")?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).named("socket")?;
    rustix::net::bind(&socket, &address).named("bind")?;
    rustix::fs::chmodat(directory, name, rustix::fs::Mode::from_raw_mode(0o666), rustix::fs::AtFlags::empty())
        .named("fchmodat")?;
    rustix::net::listen(&socket, 1).named("listen")?;
    Ok(socket)
}

/// The peer that has connected, and its process number as seen from here; EAGAIN when none has yet.
pub fn accept(listener: BorrowedFd<'_>) -> Result<(OwnedFd, i32), CallError> {
    let socket = rustix::net::accept_with(listener, SocketFlags::CLOEXEC).named("accept4")?;
    // A peer of a pid namespace that can't be seen from here has the number 0.
    let peer = nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::PeerCredentials)
        .map_err(|errno| CallError { call: "getsockopt(SO_PEERCRED)", errno: Errno::from_raw_os_error(errno as i32) })?;
    Ok((socket, peer.pid()))
}

/// Connects to what [`listen`] made.
pub fn connect(path: &Path) -> Result<OwnedFd, CallError> {
    let address = SocketAddrUnix::new(path).named("connect")?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).named("socket")?;
    rustix::net::connect(&socket, &address).named("connect")?;
    Ok(socket)
}

/// `setsockopt(TCP_USER_TIMEOUT)`: how long bytes that were sent, or wait for room at the peer, may stay without progress. What
/// a listener has, its connections begin with: tcp(7).
pub fn set_stalled_limit(socket: BorrowedFd<'_>, limit: Duration) -> Result<(), CallError> {
    let milliseconds = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
    rustix::net::sockopt::set_tcp_user_timeout(socket, milliseconds).named("setsockopt(TCP_USER_TIMEOUT)")
}

/// One received datagram.
#[derive(Debug, Default)]
pub struct Packet {
    /// How many bytes of the caller's buffer are filled; 0 = the peer is gone.
    pub bytes: usize,
    /// Descriptors that came with it, closed by exec. Fewer than were sent when this process may not open more: the datagram
    /// itself is whole then.
    pub descriptors: Vec<OwnedFd>,
    /// The datagram did not fit; the rest is lost.
    pub truncated: bool,
    /// Descriptors are missing: too many came, or this process has none left (RLIMIT_NOFILE).
    pub descriptors_lost: bool,
}

/// `shutdown(2)` of both directions: the peer reads the end, whoever else still holds this end.
pub fn hang_up(socket: BorrowedFd<'_>) {
    // One that the peer has closed already needs no more.
    rustix::net::shutdown(socket, rustix::net::Shutdown::Both).ok();
}

/// `sendmsg(2)` of one datagram; never raises SIGPIPE. With [`Wait::No`] EAGAIN when there is no room.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>], wait: Wait) -> Result<(), CallError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(CallError { call: "sendmsg", errno: Errno::TOOBIG });
    }
    let flags = match wait {
        Wait::Yes => SendFlags::NOSIGNAL,
        Wait::No => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    };
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, flags) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(CallError { call: "sendmsg", errno }),
        }
    }
}

/// `recvmsg(2)` of one datagram into `buffer`.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8], wait: Wait) -> Result<Packet, CallError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if wait == Wait::No {
        flags |= RecvFlags::DONTWAIT;
    }
    loop {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
            Ok(message) => {
                let mut packet = Packet {
                    bytes: message.bytes,
                    descriptors: Vec::new(),
                    truncated: message.flags.contains(ReturnFlags::TRUNC),
                    descriptors_lost: message.flags.contains(ReturnFlags::CTRUNC),
                };
                for part in ancillary.drain() {
                    if let RecvAncillaryMessage::ScmRights(descriptors) = part {
                        packet.descriptors.extend(descriptors);
                    }
                }
                return Ok(packet);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(CallError { call: "recvmsg", errno }),
        }
    }
}

/// Whether a call may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until something comes, or there is room.
    Yes,
    /// EAGAIN when nothing is there, or no room.
    No,
}
