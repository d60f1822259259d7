//! Connections that the application opens: where they are going, what they speak, and on to one of the endpoints.

use crate::detect::{self, Spoken};
use crate::egress;
use crate::limits;
use crate::listen::original_destination;
use crate::proxy::Proxy;
use crate::request::Client;
use crate::serve::{self, Broken, passthrough_route, server_name};
use crate::state::{Known, Target};
use crate::stream::{Rewound, Stream};
use bytes::Bytes;
use mesh_api::golden::{Direction, TlsStatus};
use mesh_api::{MeshError, Protocol};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpStream;

/// Serves one accepted connection to its end; with a `refusal`, that is what it is told.
pub async fn serve(
    proxy: Arc<Proxy>,
    mut tcp: TcpStream,
    from: SocketAddr,
    refusal: Option<MeshError>,
) -> io::Result<()> {
    // Where to: a connection that nobody redirected leads to ourselves, unless a default is configured.
    let own = crate::listen::canonical(tcp.local_addr()?);
    let address = original_destination(&tcp).or(proxy.defaults.lock().outbound).unwrap_or(own);
    let loops = address == own || proxy.is_own_listener(address);
    let target = if loops { proxy.state.app(address) } else { proxy.state.target(address) };
    let refusal = if loops { Some(MeshError::LoopDetected) } else { refusal };
    let known = target.resolve(limits::RESOLVE_WAIT).await;
    let client = |tls| Client {
        direction: Direction::Outbound,
        from,
        identity: None,
        scope: known.scope.clone(),
        target: target.clone(),
        tls,
        refusal,
        proxy: proxy.clone(),
    };

    // What is spoken: declared, remembered, or seen.
    let (mut ahead, mut spoken) = match known.destination.protocol {
        Protocol::Opaque => (Bytes::new(), Spoken::Opaque),
        Protocol::Detect if target.is_server_first(Instant::now()) => (Bytes::new(), Spoken::Opaque),
        Protocol::Http1 => (Bytes::new(), Spoken::Http1),
        Protocol::Http2 | Protocol::Grpc => (Bytes::new(), Spoken::Http2),
        Protocol::Detect => detect::detect(&mut tcp).await?,
    };
    if spoken == Spoken::Silent {
        let remember = || target.set_server_first(Instant::now());
        match Box::pin(serve::silent(&Arc::new(client(TlsStatus::Plain)), &known, tcp, remember)).await? {
            Broken::ByServer => return Ok(()),
            Broken::ByClient(back, bytes, what) => (tcp, ahead, spoken) = (back, bytes, what),
        }
    }

    let name = server_name(spoken, &ahead);
    let stream = Stream::Plain(Rewound::new(ahead, tcp));
    carry(&known, &target, spoken, stream, name.as_deref(), client).await;
    Ok(())
}

async fn carry(
    known: &Arc<Known>,
    target: &Target,
    spoken: Spoken,
    stream: Stream,
    name: Option<&str>,
    client: impl Fn(TlsStatus) -> Client,
) {
    let route = || passthrough_route(target, name);
    match spoken {
        Spoken::Http1 => Box::pin(serve::http1(Arc::new(client(TlsStatus::Plain)), stream)).await,
        Spoken::Http2 => Box::pin(serve::http2(Arc::new(client(TlsStatus::Plain)), stream)).await,
        Spoken::Tls | Spoken::MeshTls => {
            let mut client = client(TlsStatus::Passthrough);
            if let Some(outside) = egress::scope_of_connection(&client, known, name) {
                client.scope = outside;
            }
            Box::pin(serve::opaque(&Arc::new(client), known, stream, name, route())).await
        }
        Spoken::Opaque | Spoken::Silent | Spoken::Closed => {
            Box::pin(serve::opaque(&Arc::new(client(TlsStatus::Plain)), known, stream, name, route())).await
        }
    }
}
