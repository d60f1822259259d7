//! Cluster DNS: answers on the cluster IP of `kube-system/kube-dns`, over UDP and TCP.
//!
//! What names mean is decided by [`zone`] (pure); this file moves messages. Names outside the cluster go to the host's
//! resolvers. The sandbox's network usually has no way to them, and then the answer is an immediate failure rather than
//! a client's timeout.

mod forward;
mod zone;

use super::services::Catalog;
use anyhow::Context as _;
use forward::Upstreams;
use hickory_proto::op::{Message, MessageType, Metadata, OpCode, ResponseCode};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zone::{Outcome, Zone};

/// Largest answer over UDP to a client that offers more: what fits into one packet on any link.
const MAX_UDP: u16 = 1232;
/// Queries being forwarded and TCP connections, together; further ones are refused.
const MAX_PENDING: usize = 128;
/// A TCP client that says nothing for so long is disconnected.
const IDLE: Duration = Duration::from_secs(10);

/// A bound but not yet serving DNS server.
#[derive(Debug)]
pub struct Server {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    upstreams: Upstreams,
}

impl Server {
    /// Binds UDP and TCP; names outside the cluster will go to the resolvers in the host's `/etc/resolv.conf`.
    pub async fn bind(address: Ipv4Addr, port: u16) -> anyhow::Result<Self> {
        let address = SocketAddr::new(IpAddr::V4(address), port);
        let tcp =
            TcpListener::bind(address).await.with_context(|| format!("cannot listen for DNS on {address} (TCP)"))?;
        let address = tcp.local_addr().context("cannot tell the address of the DNS listener")?;
        let udp =
            UdpSocket::bind(address).await.with_context(|| format!("cannot listen for DNS on {address} (UDP)"))?;
        Ok(Self { udp: Arc::new(udp), tcp, upstreams: Upstreams::of_this_host() })
    }

    /// The address it answers on.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Serves until dropped; `catalog` says which services there are.
    pub async fn run(self, mut catalog: watch::Receiver<Arc<Catalog>>) {
        let Self { udp, tcp, upstreams } = self;
        let upstreams = Arc::new(upstreams);
        let (publish, zone) = watch::channel(Arc::new(Zone::new(&catalog.borrow_and_update())));
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            tokio::select! {
                changed = catalog.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    publish.send_replace(Arc::new(Zone::new(&catalog.borrow_and_update())));
                }
                received = udp.recv_from(&mut buffer) => {
                    // An error here is an earlier answer's ICMP refusal: that client is gone, the others are not.
                    let Ok((length, client)) = received else { continue };
                    let decision = decide(&zone.borrow(), buffer.get(..length).unwrap_or_default());
                    answer_datagram(&udp, client, decision, &upstreams, &mut tasks).await;
                }
                accepted = tcp.accept() => match accepted {
                    Ok((stream, _)) if tasks.len() < MAX_PENDING => {
                        tasks.spawn(serve_stream(stream, zone.clone(), Arc::clone(&upstreams)));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a DNS connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                },
                Some(_) = tasks.join_next() => {}
            }
        }
    }
}

/// What to do about received bytes.
enum Decision {
    /// They are no query.
    Ignore,
    /// Send this. The number is the size the client takes over UDP.
    Reply(Message, u16),
    /// Resolve elsewhere what the outcome asks for, then send.
    Forward(Outcome, u16),
}

/// Reads a query and resolves it as far as the zone goes.
fn decide(zone: &Zone, bytes: &[u8]) -> Decision {
    let Ok(query) = Message::from_vec(bytes) else {
        return malformed(bytes).map_or(Decision::Ignore, |reply| Decision::Reply(reply, 512));
    };
    if query.metadata.message_type != MessageType::Query {
        return Decision::Ignore;
    }
    let limit = query.max_payload().min(MAX_UDP);
    match zone.answer(&query) {
        Outcome { reply, outside: None } => Decision::Reply(reply, limit),
        outcome => Decision::Forward(outcome, limit),
    }
}

/// The answer to bytes that start like a query but aren't one.
fn malformed(bytes: &[u8]) -> Option<Message> {
    let header = bytes.get(..12)?;
    let is_query = header[2] & 0x80 == 0;
    is_query.then(|| {
        let id = u16::from_be_bytes([header[0], header[1]]);
        Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)
    })
}

async fn answer_datagram(
    udp: &Arc<UdpSocket>,
    client: SocketAddr,
    decision: Decision,
    upstreams: &Arc<Upstreams>,
    tasks: &mut JoinSet<()>,
) {
    match decision {
        Decision::Ignore => {}
        Decision::Reply(reply, limit) => send(udp, client, &reply, limit).await,
        Decision::Forward(outcome, limit) if tasks.len() < MAX_PENDING => {
            let (udp, upstreams) = (Arc::clone(udp), Arc::clone(upstreams));
            tasks.spawn(async move { send(&udp, client, &upstreams.complete(outcome).await, limit).await });
        }
        Decision::Forward(Outcome { mut reply, .. }, limit) => {
            reply.metadata.response_code = ResponseCode::ServFail;
            send(udp, client, &reply, limit).await;
        }
    }
}

/// Sends an answer, cut to its question where it is too large: the client comes back over TCP.
async fn send(udp: &UdpSocket, client: SocketAddr, reply: &Message, limit: u16) {
    let fitting = match encode(reply) {
        bytes if bytes.len() > usize::from(limit) => encode(&reply.truncate()),
        bytes => bytes,
    };
    if let Err(error) = udp.send_to(&fitting, client).await {
        tracing::debug!(%error, %client, "cannot send a DNS answer");
    }
}

/// The bytes of a message; of one that cannot be encoded, a failure with its id.
fn encode(reply: &Message) -> Vec<u8> {
    reply.to_vec().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot encode a DNS answer");
        let Metadata { id, op_code, .. } = reply.metadata;
        Message::error_msg(id, op_code, ResponseCode::ServFail).to_vec().unwrap_or_default()
    })
}

/// Answers queries over one TCP connection, in the order they come (RFC 7766 with two bytes of length before each).
async fn serve_stream(mut stream: TcpStream, zone: watch::Receiver<Arc<Zone>>, upstreams: Arc<Upstreams>) {
    let mut query = Vec::new();
    loop {
        let read = async {
            let length = stream.read_u16().await?;
            query.resize(usize::from(length), 0);
            stream.read_exact(&mut query).await
        };
        if !matches!(timeout(IDLE, read).await, Ok(Ok(_))) {
            return;
        }
        let current = Arc::clone(&zone.borrow());
        let reply = match decide(&current, &query) {
            Decision::Ignore => return,
            Decision::Reply(reply, _) => reply,
            Decision::Forward(outcome, _) => upstreams.complete(outcome).await,
        };
        let mut bytes = encode(&reply);
        if bytes.len() > usize::from(u16::MAX) {
            bytes = encode(&reply.truncate());
        }
        let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
        framed.append(&mut bytes);
        if !matches!(timeout(IDLE, stream.write_all(&framed)).await, Ok(Ok(()))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
