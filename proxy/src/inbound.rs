//! Connections that arrive for the application: who is calling, what it speaks, and on to the application's own port.

use crate::detect::{self, Spoken, settle};
use crate::limits;
use crate::listen::{canonical, original_destination};
use crate::metrics::count;
use crate::proxy::Proxy;
use crate::request::Client;
use crate::serve::{self, Broken, passthrough_route, server_name};
use crate::stream::{Rewound, Stream};
use crate::streams::{self, Form};
use crate::tls::Alpn;
use bytes::Bytes;
use mesh_api::golden::{Direction, TlsStatus};
use mesh_api::{MeshError, SpiffeId, WorkloadRef};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpStream;

/// Serves one accepted connection to its end; with a `refusal`, that is what it is told.
pub async fn serve(
    proxy: Arc<Proxy>,
    mut tcp: TcpStream,
    from: SocketAddr,
    refusal: Option<MeshError>,
) -> io::Result<()> {
    // Where to: the redirect's memory knows; without one, mesh TLS may name a port, and a default may be configured.
    let whereto = WhereTo {
        original: original_destination(&tcp),
        default: proxy.defaults.lock().inbound,
        own: canonical(tcp.local_addr()?),
    };
    let app = whereto.resolve(None);

    // What is spoken.
    let (mut ahead, mut spoken) = detect::detect(&mut tcp).await?;
    if spoken == Spoken::Silent {
        let app = app.ok_or_else(|| unknown_port(from))?;
        let client = Arc::new(refusing(plain_client(&proxy, app, from, TlsStatus::Plain), refusal));
        match Box::pin(serve::silent(&client, &client.target.now(), tcp, || {})).await? {
            Broken::ByServer => {
                count(&proxy.counters.allowed_plain);
                return Ok(());
            }
            Broken::ByClient(back, bytes, what) => (tcp, ahead, spoken) = (back, bytes, what),
        }
    }

    // Mesh TLS: the caller proves who it is.
    if spoken == Spoken::MeshTls && proxy.credentials.current().is_some() && refusal.is_none() {
        return Box::pin(mesh(proxy, tcp, ahead, from, whereto)).await;
    }

    // Anything else: let in unidentified.
    let app = app.ok_or_else(|| unknown_port(from))?;
    if refusal.is_none() {
        count(&proxy.counters.allowed_plain);
    }
    let spoken = settle(proxy.state.port_policy(app.port()).protocol, spoken);
    let tls = if matches!(spoken, Spoken::Tls | Spoken::MeshTls) { TlsStatus::Passthrough } else { TlsStatus::Plain };
    let client = Arc::new(refusing(plain_client(&proxy, app, from, tls), refusal));
    let name = server_name(spoken, &ahead);
    let route = passthrough_route(&client.target, name.as_deref());
    let stream = Stream::Plain(Rewound::new(ahead, tcp));
    match spoken {
        Spoken::Http1 => Box::pin(serve::http1(client, stream)).await,
        Spoken::Http2 => Box::pin(serve::http2(client, stream)).await,
        Spoken::Closed => Box::pin(serve::wordless(&client, &client.target.now(), stream)).await,
        Spoken::Tls | Spoken::MeshTls | Spoken::Opaque | Spoken::Silent => {
            Box::pin(serve::opaque(&client, &client.target.now(), stream, name.as_deref(), route)).await;
        }
    }
    Ok(())
}

/// The client of a connection that is turned away, if it is.
fn refusing(client: Client, refusal: Option<MeshError>) -> Client {
    Client { refusal: refusal.or(client.refusal), ..client }
}

/// Serves a connection of another mesh proxy.
async fn mesh(proxy: Arc<Proxy>, tcp: TcpStream, ahead: Bytes, from: SocketAddr, whereto: WhereTo) -> io::Result<()> {
    let Some(current) = proxy.credentials.current() else {
        return Err(io::Error::other("no certificate"));
    };
    // A handshake costs more than most requests: with too many under way, the newest has to go elsewhere.
    let Ok(handshake) = proxy.handshakes.try_acquire() else {
        count(&proxy.counters.connections_shed);
        Stream::from(tcp).reset();
        return Ok(());
    };
    let accepted = tokio::time::timeout(limits::HANDSHAKE_TIMEOUT, current.accept(Rewound::new(ahead, tcp)))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    drop(handshake);
    let (tls, peer) = accepted.inspect_err(|error| {
        count(&proxy.counters.denied_tls);
        tracing::warn!(client = %from, %error, "refused a client that proved no identity of this mesh");
    })?;
    count(&proxy.counters.allowed_mutual);
    // Of the family the connection came by: the application need not listen for both.
    let own = whereto.own.ip();
    let ip = proxy.pod_ips.iter().copied().find(|ip| ip.is_ipv4() == own.is_ipv4()).unwrap_or(own);
    let named = peer.port.map(|port| SocketAddr::new(ip, port));
    let app = whereto.resolve(named).ok_or_else(|| unknown_port(from))?;
    let client = Arc::new(mesh_client(&proxy, app, from, peer.identity));
    let stream = Stream::Tls(Box::new(tls));
    match peer.alpn {
        Alpn::Http1 => Box::pin(serve::http1(client, stream)).await,
        Alpn::Http1Mux => Box::pin(streams::serve(client, stream, Form::Folded)).await,
        Alpn::Http2Mux => Box::pin(streams::serve(client, stream, Form::Whole)).await,
        Alpn::Http2 => Box::pin(serve::http2(client, stream)).await,
        Alpn::Tcp => Box::pin(serve::opaque(&client, &client.target.now(), stream, None, Arc::default())).await,
    }
    Ok(())
}

/// What is known of the application's address when a connection arrives.
#[derive(Clone, Copy, Debug)]
struct WhereTo {
    original: Option<SocketAddr>,
    default: Option<SocketAddr>,
    own: SocketAddr,
}

impl WhereTo {
    /// A redirected connection goes where it had been going; no name can point it elsewhere.
    fn resolve(self, named: Option<SocketAddr>) -> Option<SocketAddr> {
        self.original.or(named).or(self.default)
    }
}

fn plain_client(proxy: &Arc<Proxy>, app: SocketAddr, from: SocketAddr, tls: TlsStatus) -> Client {
    let peer = WorkloadRef::new("", "external", &from.ip().to_string());
    client(proxy, app, from, &peer, None, tls)
}

fn mesh_client(proxy: &Arc<Proxy>, app: SocketAddr, from: SocketAddr, identity: SpiffeId) -> Client {
    let peer = WorkloadRef::new(&identity.namespace, "serviceaccount", &identity.service_account);
    client(proxy, app, from, &peer, Some(identity), TlsStatus::Mutual)
}

fn client(
    proxy: &Arc<Proxy>,
    app: SocketAddr,
    from: SocketAddr,
    peer: &WorkloadRef,
    identity: Option<SpiffeId>,
    tls: TlsStatus,
) -> Client {
    Client {
        direction: Direction::Inbound,
        from,
        identity,
        target: proxy.state.app(app),
        scope: proxy.golden.scope(Direction::Inbound, peer, None, app.port()),
        tls,
        refusal: proxy.is_own_listener(app).then_some(MeshError::LoopDetected),
        proxy: proxy.clone(),
    }
}

fn unknown_port(from: SocketAddr) -> io::Error {
    io::Error::other(format!("{from} came without a redirect and named no port"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_redirects_a_redirected_connection() {
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let whereto = WhereTo { original: Some(at(80)), default: Some(at(81)), own: at(4143) };
        assert_eq!(whereto.resolve(Some(at(22))), Some(at(80)));
        let direct = WhereTo { original: None, ..whereto };
        assert_eq!(direct.resolve(Some(at(22))), Some(at(22)));
        assert_eq!(direct.resolve(None), Some(at(81)));
        assert_eq!(WhereTo { default: None, ..direct }.resolve(None), None);
    }
}
