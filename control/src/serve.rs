//! The proxy API: certificates and conversations, on one port with TLS that takes a client's certificate if it has one.

use crate::certify::Certifier;
use crate::limits;
use crate::listen::{self, Port};
use crate::peers::{self, PEER_PATH};
use crate::stream::Streams;
use arc_swap::ArcSwapOption;
use http::StatusCode;
use mesh_api::names::{CERTIFY_PATH, PROXY_STREAM_PATH};
use rustls::ServerConfig;
use std::sync::Arc;
use tokio::net::TcpListener;

/// Serves proxies until the streams are stopped.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwapOption<ServerConfig>>,
    certifier: Arc<Certifier>,
    streams: Arc<Streams>,
) {
    let port = Port { name: "proxy", connections: limits::PROXY_CONNECTIONS, tls: Some(tls) };
    let stop = streams.stop.clone();
    listen::serve(port, listener, stop, move |peer, request| {
        let (certifier, streams) = (certifier.clone(), streams.clone());
        async move {
            match request.uri().path() {
                CERTIFY_PATH => certifier.answer(&peer, request).await,
                PROXY_STREAM_PATH => streams.answer(peer, request).await,
                path if path.starts_with(PEER_PATH) => {
                    peers::answer(&streams, &peer, (request.method(), request.uri()))
                }
                _ => listen::text(StatusCode::NOT_FOUND, &format!("there are {CERTIFY_PATH} and {PROXY_STREAM_PATH}")),
            }
        }
    })
    .await;
}
