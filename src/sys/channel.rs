//! Typed messages over a sequenced-packet socket: the control sockets between server, launcher and init.
//!
//! A small message is one datagram. A large one is a datagram that carries a memory file with the encoding. The receiver
//! trusts neither length nor content: both are bounded, and a message that does not decode is an error, never a panic.

use std::cell::RefCell;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::error::CallError;
use super::memory;
use super::socket::{self, Packet, Wait};

/// Encodings up to this travel inline.
const INLINE_BYTES_MAX: usize = 48 << 10;

/// Most encodings have room in this, a small file's contents included.
const USUAL_BYTES: usize = 2 << 10;

/// No message is larger, whatever its sender says: the response bound of the server with room for the envelope.
pub const MESSAGE_BYTES_MAX: u64 = 80 << 20;

const INLINE: u8 = 0;
const CARRIED: u8 = 1;

/// Why a message could not be sent or taken.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The peer has closed its end.
    #[error("the other end is closed")]
    Closed,
    /// Nothing is there, and the caller did not want to wait.
    #[error("nothing to receive")]
    Empty,
    /// There is no room, and the caller did not want to wait.
    #[error("no room to send")]
    Full,
    /// The kernel refused.
    #[error("a control socket failed")]
    Call(#[from] CallError),
    /// The memory file of a large message could not be written or read.
    #[error("the carrier of a large message failed")]
    Carrier(#[source] io::Error),
    /// Larger than [`MESSAGE_BYTES_MAX`], cut off, or not of the expected shape.
    #[error("a message is malformed: {0}")]
    Malformed(&'static str),
}

/// A message with the descriptors that came along.
#[derive(Debug)]
pub struct Received<T> {
    /// The decoded message.
    pub message: T,
    /// In the order sent; none when one of them was lost because this process may open no more.
    pub descriptors: Vec<OwnedFd>,
}

/// Sends one message; waits while the socket is full unless it was made non-blocking.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
    send_with(socket, message, descriptors, Wait::Yes)
}

/// Sends one message when there is room for it now.
pub fn send_now<T: Serialize>(socket: BorrowedFd<'_>, message: &T) -> Result<(), ChannelError> {
    send_with(socket, message, &[], Wait::No)
}

fn send_with<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    descriptors: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<(), ChannelError> {
    send_encoded(socket, &encode(message)?, descriptors, wait)
}

/// The encoding of a message, for somebody who hands it on without reading it.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, ChannelError> {
    let mut start = Vec::with_capacity(USUAL_BYTES);
    start.push(INLINE);
    postcard::to_extend(message, start).map_err(|_| ChannelError::Malformed("it can't be encoded"))
}

/// Sends what [`encode`] made.
pub fn send_encoded(
    socket: BorrowedFd<'_>,
    encoded: &[u8],
    descriptors: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<(), ChannelError> {
    let sent = if encoded.len() <= INLINE_BYTES_MAX {
        socket::send(socket, encoded, descriptors, wait)
    } else {
        let mut carrier = memory::message_carrier()?;
        carrier.write_all(&encoded[1..]).map_err(ChannelError::Carrier)?;
        let mut all: Vec<BorrowedFd<'_>> = descriptors.to_vec();
        all.push(carrier.as_fd());
        socket::send(socket, &[CARRIED], &all, wait)
    };
    sent.map_err(|error| match error.errno {
        Errno::PIPE | Errno::CONNRESET => ChannelError::Closed,
        Errno::AGAIN => ChannelError::Full,
        _ => ChannelError::Call(error),
    })
}

/// Takes one message.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>, wait: Wait) -> Result<Received<T>, ChannelError> {
    BUFFER.with_borrow_mut(|buffer| {
        let packet = match socket::receive(socket, buffer, wait) {
            Ok(packet) => packet,
            Err(error) if error.errno == Errno::AGAIN => return Err(ChannelError::Empty),
            Err(error) if error.errno == Errno::CONNRESET => return Err(ChannelError::Closed),
            Err(error) => return Err(error.into()),
        };
        let bytes = packet.bytes;
        let decoded = decode(buffer, packet);
        // A clone of the launcher must not find in it what another sandbox's plan said.
        buffer[..bytes].fill(0);
        decoded
    })
}

thread_local! {
    /// Where a thread's messages arrive. Made once: most messages are a hundred bytes, and a new buffer for each would be cleared whole.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; INLINE_BYTES_MAX + 1]);
}

fn decode<T: DeserializeOwned>(buffer: &[u8], packet: Packet) -> Result<Received<T>, ChannelError> {
    let Packet { bytes, mut descriptors, truncated, descriptors_lost } = packet;
    if bytes == 0 {
        return Err(ChannelError::Closed);
    }
    if truncated {
        return Err(ChannelError::Malformed("it is cut off"));
    }
    if descriptors_lost {
        // Those that came may not be the first. A message that can be read is handed on without any, and its receiver sees that
        // they are missing: a process that is short of descriptors must not lose its peer for it.
        descriptors.clear();
    }
    let message = match buffer[0] {
        INLINE => postcard::from_bytes(&buffer[1..bytes]).map_err(|_| ChannelError::Malformed("it does not decode"))?,
        CARRIED => {
            let carrier = descriptors.pop().ok_or(ChannelError::Malformed("its carrier is missing"))?;
            let encoded = memory::read_carrier(carrier, MESSAGE_BYTES_MAX).map_err(|errno| match errno {
                Errno::INVAL | Errno::FBIG => ChannelError::Malformed("its carrier is no memory file, or too large"),
                _ => ChannelError::Carrier(errno.into()),
            })?;
            postcard::from_bytes(&encoded).map_err(|_| ChannelError::Malformed("it does not decode"))?
        }
        _ => return Err(ChannelError::Malformed("its kind is unknown")),
    };
    Ok(Received { message, descriptors })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(content: &Vec<u8>) -> Received<Vec<u8>> {
        let (left, right) = socket::pair().expect("a socket pair");
        send(left.as_fd(), content, &[left.as_fd()]).expect("sent");
        receive(right.as_fd(), Wait::Yes).expect("received")
    }

    #[test]
    fn a_small_message_arrives_with_its_descriptor() {
        let received = round_trip(&b"hello".to_vec());
        assert_eq!((received.message.as_slice(), received.descriptors.len()), (&b"hello"[..], 1));
    }

    #[test]
    fn a_message_larger_than_any_datagram_arrives_whole_and_without_its_carrier() {
        let content = vec![7; 9 << 20];
        let received = round_trip(&content);
        assert_eq!((received.message == content, received.descriptors.len()), (true, 1));
    }

    #[test]
    fn a_message_whose_descriptors_were_lost_is_read_without_any_and_one_that_is_cut_off_is_not() {
        let (left, right) = socket::pair().expect("a socket pair");
        send(left.as_fd(), &7_u32, &[left.as_fd(), left.as_fd()]).expect("sent");
        let mut buffer = [0; 64];
        let packet = socket::receive(right.as_fd(), &mut buffer, Wait::Yes).expect("received");
        let bytes = packet.bytes;
        // What the kernel gives when the second of two no longer fits into the table of descriptors.
        let short = Packet { descriptors: packet.descriptors.into_iter().take(1).collect(), descriptors_lost: true, ..packet };
        let received = decode::<u32>(&buffer, short).expect("the message itself is whole");
        assert_eq!((received.message, received.descriptors.len()), (7, 0));
        let cut = Packet { bytes, truncated: true, ..Packet::default() };
        assert!(matches!(decode::<u32>(&buffer, cut), Err(ChannelError::Malformed(_))));
    }

    #[test]
    fn a_closed_peer_and_garbage_are_told_apart() {
        let (left, right) = socket::pair().expect("a socket pair");
        socket::send(left.as_fd(), &[9, 9], &[], Wait::Yes).expect("sent");
        assert!(matches!(receive::<u32>(right.as_fd(), Wait::Yes), Err(ChannelError::Malformed(_))));
        assert!(matches!(receive::<u32>(right.as_fd(), Wait::No), Err(ChannelError::Empty)));
        drop(left);
        assert!(matches!(receive::<u32>(right.as_fd(), Wait::Yes), Err(ChannelError::Closed)));
    }
}
