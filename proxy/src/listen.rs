//! Sockets: listening, accepting, finding out where a redirected connection had been going, and dialing so that the
//! redirect leaves us alone.

use crate::limits;
use mesh_api::names::PROXY_MARK;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Listens on a port of all addresses, IPv6 and IPv4 alike where the kernel has both.
pub fn bind_any(port: u16) -> io::Result<std::net::TcpListener> {
    bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))
        .or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
}

/// Listens on one address, ready for tokio.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(limits::LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Accepts the next connection; whatever `accept` complains about concerns one connection or passes.
pub async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, client)) => {
                tune(&stream);
                return (stream, canonical(client));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection; trying again");
                tokio::time::sleep(limits::ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Where a connection had been going before the redirect; `None` if it came to our listener by itself.
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = canonical(stream.local_addr().ok()?);
    let socket = SockRef::from(stream);
    let original = match local.ip() {
        IpAddr::V4(_) => socket.original_dst_v4(),
        IpAddr::V6(_) => socket.original_dst_v6(),
    };
    // Without connection tracking, or with no translation, there is no answer or our own address.
    let original = canonical(original.ok()?.as_socket()?);
    (original != local).then_some(original)
}

/// An IPv4 address as such, also when the socket gave it as IPv6.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Opens connections that the redirect exempts.
#[derive(Clone, Copy, Debug)]
pub struct Dialer {
    mark: Option<u32>,
}

impl Dialer {
    /// Finds out whether this process may mark its sockets; if not, only its user id exempts it.
    pub fn probe() -> Self {
        let allowed = Socket::new(Domain::IPV4, Type::STREAM, None).and_then(|s| s.set_mark(PROXY_MARK)).is_ok();
        Self { mark: allowed.then_some(PROXY_MARK) }
    }

    /// True if connections carry the mark.
    pub fn marks(self) -> bool {
        self.mark.is_some()
    }

    /// Connects within `timeout`.
    pub async fn dial(self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(mark) = self.mark {
            SockRef::from(&socket).set_mark(mark)?;
        }
        let stream = tokio::time::timeout(timeout, socket.connect(address))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}")))??;
        tune(&stream);
        Ok(stream)
    }
}

/// Small writes go out at once and dead peers are noticed. Neither is needed for correctness, so failures are ignored.
fn tune(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(limits::TCP_KEEPALIVE).with_interval(limits::TCP_KEEPALIVE);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_was_not_redirected_has_no_original_destination() {
        let listener = TcpListener::from_std(bind_any(0).unwrap()).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()));
        let dialer = Dialer::probe();
        let (client, (server, from)) = tokio::join!(dialer.dial(address, limits::CONNECT_TIMEOUT), accept(&listener));
        assert_eq!(client.unwrap().local_addr().unwrap(), from);
        assert_eq!(original_destination(&server), None);
    }

    #[tokio::test]
    async fn a_closed_port_refuses() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = Dialer::probe().dial(address, limits::CONNECT_TIMEOUT).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
