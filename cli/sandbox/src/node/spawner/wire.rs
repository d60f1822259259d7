//! Messages with file descriptors over a sequenced-packet socket. The body of a message may be larger than a packet,
//! so it travels in a memory file whose descriptor is the first one of the packet.

use nix::cmsg_space;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Descriptors one message may carry, the body's among them.
const MAX_FDS: usize = 24;
/// Largest body; the kernel takes 2 MiB of arguments and environment.
const MAX_BODY: u64 = 8 * 1024 * 1024;

/// A connected pair.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends `body` and descriptors; blocks while the other side is slow, unless the socket doesn't.
pub(crate) fn send<T: Serialize>(socket: BorrowedFd<'_>, body: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut file = File::from(memfd_create("message", MFdFlags::MFD_CLOEXEC)?);
    serde_json::to_writer(&mut file, body)?;
    file.flush()?;
    let mut raw: Vec<RawFd> = vec![file.as_raw_fd()];
    raw.extend(fds.iter().map(|fd| fd.as_raw_fd()));
    if raw.len() > MAX_FDS {
        return Err(io::Error::other("too many descriptors in one message"));
    }
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(b"m")], &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message; `None` when the other side is gone.
#[allow(unsafe_code)]
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut byte = [0_u8; 1];
    let mut space = cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = control {
            // SAFETY: the kernel has just made these descriptors for this process and nobody else knows them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.bytes == 0 {
        return Ok(None);
    }
    if fds.is_empty() {
        return Err(io::Error::other("a message without a body"));
    }
    let mut file = File::from(fds.remove(0));
    // The descriptor shares its position with the sender's, which stands at the end.
    file.rewind()?;
    let mut body = Vec::new();
    file.take(MAX_BODY).read_to_end(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

/// A pipe, closed on exec: `(read, write)`.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

/// Makes reads and writes return instead of waiting.
fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(fd.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Hands a descriptor, made non-blocking, to the runtime.
#[allow(unsafe_code)]
pub(crate) fn register(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    set_nonblocking(&fd)?;
    // SAFETY: the descriptor is owned by the value that is registered, so it stays open and the same.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_and_descriptors_arrive() {
        let (a, b) = pair().unwrap();
        let (read, write) = pipe().unwrap();
        let body = "x".repeat(1_000_000);
        send(a.as_fd(), &body, &[write.as_fd()]).unwrap();
        let (got, mut fds): (String, _) = receive(b.as_fd()).unwrap().unwrap();
        assert_eq!(got, body);
        File::from(fds.remove(0)).write_all(b"through").unwrap();
        drop(write);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        drop(a);
        assert!(receive::<String>(b.as_fd()).unwrap().is_none());
    }
}
