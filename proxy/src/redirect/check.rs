//! `mesh-proxy redirect --check`: proves by a connection of its own that this pod's traffic is redirected, without any
//! privilege. In CNI mode it runs where else the redirect would be set: a pod that was started without its redirect must
//! not get to its application.
//!
//! What is proved is the way out. The way in cannot be tried from inside; the kernel took both in one transaction.

use super::{PortRanges, RedirectArgs};
use crate::{limits, listen};
use anyhow::Context;
use mesh_api::names;
use socket2::{Domain, SockRef, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// Addresses of documentation (RFC 5737, RFC 3849): nobody has them, so whoever answers is the redirect.
const NOBODY: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];
/// Bytes that tell our connection from others.
const NONCE: usize = 16;

/// Why a redirect is not proved.
#[derive(Debug, thiserror::Error)]
pub enum Unproved {
    /// It is not there: the pod has to be made anew.
    #[error(
        "this pod's traffic does not pass through its proxy: {0}\nhint: the node's network plugin mesh-cni was not in \
         place when the pod started; look whether the pods of DaemonSet mesh-cni in kube-system are ready. A pod that has \
         an owner is replaced by itself then, any other has to be deleted and made anew"
    )]
    Missing(String),
    /// It could not be tried.
    #[error(
        "cannot find out whether this pod's traffic passes through its proxy: {0:#}\nhint: see whether the pod has an \
         address and a route (`ip route` in a debug container)"
    )]
    Untried(anyhow::Error),
}

impl Unproved {
    /// What the step ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Missing(_) => names::REDIRECT_MISSING,
            Self::Untried(_) => 1,
        }
    }
}

/// Proves the redirect that `args` describe, before the proxy listens.
pub fn run(args: &RedirectArgs) -> Result<(), Unproved> {
    let service = std::env::var("KUBERNETES_SERVICE_HOST").ok().and_then(|host| host.parse().ok());
    // The API server's address is one to which every pod has a route.
    prove(args, NOBODY.into_iter().chain(service))
}

/// Proves it by a connection to the first of these addresses that there is a route to.
pub fn prove(args: &RedirectArgs, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Unproved> {
    let Some(port) = (1..=u16::MAX).find(|port| !holds(&args.skip_outbound_ports, *port)) else {
        tracing::warn!("no outbound port of this pod is redirected: there is nothing to prove");
        return Ok(());
    };
    let listener = listen::bind_any(args.outbound_port)
        .with_context(|| format!("cannot listen on port {}", args.outbound_port))
        .map_err(Unproved::Untried)?;
    let mut unroutable = Vec::new();
    for address in addresses {
        let to = SocketAddr::new(address, port);
        match arrives(&listener, to) {
            Ok(()) => {
                tracing::info!(%to, "a connection arrived at port {}: the redirect is there", args.outbound_port);
                return Ok(());
            }
            Err(error) if no_route(&error) => unroutable.push(format!("{address}: {error}")),
            Err(error) => {
                let arrived = format!("a connection to {to} did not arrive at port {}", args.outbound_port);
                return Err(Unproved::Missing(format!("{arrived} ({error})")));
            }
        }
    }
    Err(Unproved::Untried(anyhow::anyhow!("there is no route to any address ({})", unroutable.join("; "))))
}

fn holds(ports: &PortRanges, port: u16) -> bool {
    ports.0.iter().any(|range| (range.low..=range.high).contains(&port))
}

/// The kernel sends nothing there, so that no redirect could have caught it either.
fn no_route(error: &io::Error) -> bool {
    use ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), NetworkUnreachable | HostUnreachable | AddrNotAvailable)
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

/// Connects to `to` and sees whether what it says there comes in at `listener`.
fn arrives(listener: &TcpListener, to: SocketAddr) -> io::Result<()> {
    let mut nonce = [0; NONCE];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| io::Error::other("no random numbers"))?;
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    socket.connect_timeout(&to.into(), limits::CHECK_WAIT)?;
    socket.set_write_timeout(Some(limits::CHECK_WAIT))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(&nonce)?;
    let deadline = Instant::now() + limits::CHECK_WAIT;
    while Instant::now() < deadline {
        match listener.accept() {
            // Whoever else connects here meanwhile says something else.
            Ok((taken, _)) => match said(taken, deadline) {
                Ok(said) if said == nonce => return Ok(()),
                _ => {}
            },
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(ErrorKind::TimedOut, "somebody else answered there"))
}

fn said(mut taken: TcpStream, deadline: Instant) -> io::Result<[u8; NONCE]> {
    let mut said = [0; NONCE];
    SockRef::from(&taken).set_nonblocking(false)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    taken.set_read_timeout(Some(left))?;
    taken.read_exact(&mut said)?;
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(skip_outbound: &str, outbound_port: u16) -> RedirectArgs {
        RedirectArgs {
            proxy_uid: names::PROXY_UID,
            outbound_port,
            inbound_port: names::INBOUND_PORT,
            skip_inbound_ports: PortRanges::default(),
            skip_outbound_ports: skip_outbound.parse().unwrap(),
        }
    }

    fn free_port() -> u16 {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
    }

    #[test]
    fn nothing_to_prove_where_all_ports_are_left_alone() {
        assert!(prove(&args("1-65535", free_port()), std::iter::empty()).is_ok());
    }

    #[test]
    fn without_a_redirect_the_code_says_so() {
        // Loopback is never redirected, and nobody listens at port 1 there.
        let unproved = prove(&args("", free_port()), [IpAddr::V4(Ipv4Addr::LOCALHOST)].into_iter()).unwrap_err();
        assert_eq!(unproved.exit_code(), names::REDIRECT_MISSING);
        assert!(unproved.to_string().contains("hint: the node's network plugin mesh-cni"), "{unproved}");
    }

    #[test]
    fn somebody_else_who_answers_is_not_the_redirect() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = other.local_addr().unwrap().port();
        let skip = format!("1-{},{}-65535", port - 1, port + 1);
        let unproved = prove(&args(&skip, free_port()), [IpAddr::V4(Ipv4Addr::LOCALHOST)].into_iter()).unwrap_err();
        assert!(unproved.to_string().contains("somebody else answered"), "{unproved}");
    }

    #[test]
    fn without_a_route_nothing_is_said_about_the_redirect() {
        let unproved = prove(&args("", free_port()), std::iter::empty()).unwrap_err();
        assert_eq!(unproved.exit_code(), 1);
    }
}
