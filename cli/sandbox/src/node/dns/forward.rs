//! Asks the host's resolvers about names outside the cluster.

use super::zone::Outcome;
use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// How long one resolver may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Resolvers asked, as in the C library.
const MAX_UPSTREAMS: usize = 3;
/// Largest answer taken from a resolver.
const MAX_ANSWER: u16 = 4096;

/// Resolvers outside the cluster.
#[derive(Debug)]
pub(super) struct Upstreams(Vec<SocketAddr>);

impl Upstreams {
    /// Those in `/etc/resolv.conf`, except on loopback addresses, which mean another host inside a network namespace.
    pub(super) fn of_this_host() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    /// No resolvers at all.
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    fn parse(resolv_conf: &str) -> Self {
        let addresses = resolv_conf.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let address: IpAddr = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
            (!address.is_loopback()).then_some(SocketAddr::new(address, 53))
        });
        Self(addresses.take(MAX_UPSTREAMS).collect())
    }

    /// Completes an answer with what resolvers say about the name outside the cluster; if none can be reached, it fails.
    pub(super) async fn complete(&self, Outcome { mut reply, outside }: Outcome) -> Message {
        let (Some(name), Some(kind)) = (outside, reply.queries.first().map(Query::query_type)) else { return reply };
        for upstream in &self.0 {
            match timeout(PATIENCE, ask(*upstream, &name, kind)).await {
                Ok(Ok(answer)) => {
                    reply.metadata.response_code = answer.metadata.response_code;
                    reply.metadata.truncation = answer.metadata.truncation;
                    reply.add_answers(answer.answers);
                    reply.add_authorities(answer.authorities);
                    return reply;
                }
                Ok(Err(error)) => tracing::debug!(%upstream, %name, %error, "resolver not reachable"),
                Err(_) => tracing::debug!(%upstream, %name, "resolver did not answer in time"),
            }
        }
        reply.metadata.response_code = ResponseCode::ServFail;
        reply
    }
}

async fn ask(upstream: SocketAddr, name: &Name, kind: RecordType) -> std::io::Result<Message> {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_ANSWER);
    query.set_edns(edns);
    let any: IpAddr =
        if upstream.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    // A fresh port for each question, connected, so that nobody else's datagrams are taken for the answer.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    socket.send(&query.to_vec().map_err(std::io::Error::other)?).await?;
    let mut buffer = vec![0; usize::from(MAX_ANSWER)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Ok(answer) = Message::from_vec(buffer.get(..length).unwrap_or_default())
            && answer.metadata.id == query.metadata.id
            && answer.queries == query.queries
        {
            return Ok(answer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_as_the_c_library_does() {
        let conf = "# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver 127.0.0.53\n\
                    nameserver  2001:db8::1  \nnameserver nonsense\nnameserver\nnameserver 192.0.2.3\nnameserver 192.0.2.4";
        let expect = ["192.0.2.1:53", "[2001:db8::1]:53", "192.0.2.3:53"];
        assert_eq!(Upstreams::parse(conf).0, expect.map(|a| a.parse().unwrap()));
    }
}
