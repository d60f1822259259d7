//! One question to the agent of the node, and its answer, within a fixed time.

use super::CniError;
use crate::limits;
use mesh_api::cni::{ANSWER_BYTES, Answer, Question};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Asks the agent that listens at `socket`.
pub fn ask(socket: &Path, question: &Question) -> Result<Answer, CniError> {
    let line = exchange(socket, question).map_err(|error| {
        CniError::later(format!(
            "the mesh's agent on this node does not answer at {}: {error}\nhint: until it does, pods outside of the excluded \
             namespaces get no network, so that none runs unmeshed. Look at its pod: kubectl -n kube-system get pods -l \
             app.kubernetes.io/name=mesh-cni -o wide. Where the mesh is gone for good, take the entry of type mesh-cni out of \
             the node's network configuration",
            socket.display()
        ))
    })?;
    serde_json::from_str(&line)
        .map_err(|error| CniError::later(format!("the agent's answer cannot be read: {error} ({} bytes)", line.len())))
}

fn exchange(path: &Path, question: &Question) -> io::Result<String> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.connect_timeout(&SockAddr::unix(path)?, limits::CNI_CONNECT)?;
    socket.set_write_timeout(Some(limits::CNI_CONNECT))?;
    socket.set_read_timeout(Some(limits::CNI_ANSWER))?;
    let mut stream = UnixStream::from(std::os::fd::OwnedFd::from(socket));
    let mut text = serde_json::to_string(question).map_err(io::Error::other)?;
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    let mut line = String::new();
    // The agent writes its line at once, so the time to read bounds all of it.
    BufReader::new(stream).take(ANSWER_BYTES as u64).read_line(&mut line)?;
    match line.ends_with('\n') {
        true => Ok(line),
        false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the answer has no end")),
    }
}
