//! Whether a tap is interested. Pure, and in three steps, each as soon as its facts are known: what the head says, who
//! serves it, how it ends. A request matches if all three hold.

use crate::learned::PROBE;
use crate::limits;
use http::HeaderMap;
use mesh_api::golden::{Carried, Direction};
use mesh_api::tap::filter::{HeaderMatch, Place, TapFilter};
use mesh_api::{MeshError, SpiffeId};
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

/// A filter with the addresses its places mean.
#[derive(Clone, Debug)]
pub struct Matcher {
    filter: TapFilter,
    from: Option<HashSet<IpAddr>>,
    to: Option<HashSet<IpAddr>>,
}

/// What is known when a request's head has been read, or a connection opens.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Side the proxy stands on.
    pub direction: Direction,
    /// What is carried.
    pub carried: Carried,
    /// The client.
    pub source: IpAddr,
    /// The identity the client proved (inbound).
    pub client: Option<&'a SpiffeId>,
    /// What HTTP says.
    pub http: Option<HttpHead<'a>>,
}

/// What HTTP says.
#[derive(Clone, Copy, Debug)]
pub struct HttpHead<'a> {
    /// Method.
    pub method: &'a str,
    /// Path without query.
    pub path: &'a str,
    /// Route.
    pub route: &'a str,
    /// Fields.
    pub headers: &'a HeaderMap,
}

/// Who serves it.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The server.
    pub destination: IpAddr,
    /// The identity the server proved (outbound).
    pub server: Option<&'a SpiffeId>,
}

/// How it ended.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// HTTP status.
    pub status: Option<u16>,
    /// gRPC status.
    pub grpc_status: Option<u16>,
    /// Error the mesh answered.
    pub error: Option<MeshError>,
    /// From the head to the end.
    pub duration: Duration,
}

impl Matcher {
    /// A filter and, for places that are resources, their addresses; says which are missing.
    pub fn new(filter: TapFilter, from: Option<Vec<IpAddr>>, to: Option<Vec<IpAddr>>) -> Result<Self, String> {
        for (name, place, addresses) in [("from", &filter.from, &from), ("to", &filter.to, &to)] {
            match (place, addresses) {
                (Some(Place::Resource { .. }), None) => return Err(format!("the order has no addresses for `{name}`")),
                (_, Some(addresses)) if addresses.len() > limits::TAP_ADDRESSES => {
                    return Err(format!("`{name}` means more than {} addresses", limits::TAP_ADDRESSES));
                }
                _ => {}
            }
        }
        let set = |addresses: Option<Vec<IpAddr>>| addresses.map(HashSet::from_iter);
        Ok(Self { filter, from: set(from), to: set(to) })
    }

    /// True unless the head alone rules it out.
    pub fn head(&self, head: &Head<'_>) -> bool {
        let filter = &self.filter;
        filter.direction.is_none_or(|direction| direction == head.direction)
            && (filter.protocols.is_empty() || filter.protocols.contains(&head.carried))
            && place(filter.from.as_ref(), self.from.as_ref(), head.source)
            && (head.direction == Direction::Outbound || self.identity(head.client))
            && match &head.http {
                Some(http) => self.http(http),
                None => !is_about_http(filter),
            }
    }

    fn http(&self, head: &HttpHead<'_>) -> bool {
        let filter = &self.filter;
        (filter.methods.is_empty() || filter.methods.iter().any(|method| method == head.method))
            && filter.path.as_ref().is_none_or(|path| path.matches(head.path))
            && match &filter.route {
                Some(route) => route.matches(head.route),
                // Health probes are no traffic: shown to whoever asks for them.
                None => head.route != PROBE,
            }
            && filter.headers.iter().all(|wanted| has(head.headers, wanted))
    }

    /// True unless the server rules it out.
    pub fn way(&self, direction: Direction, way: &Way<'_>) -> bool {
        place(self.filter.to.as_ref(), self.to.as_ref(), way.destination)
            && (direction == Direction::Inbound || self.identity(way.server))
    }

    /// True unless the end rules it out.
    pub fn end(&self, end: &End) -> bool {
        let TapFilter { statuses, grpc_statuses, errors, slower_than, .. } = &self.filter;
        let within = |status: u16| statuses.iter().any(|range| (range.first..=range.last).contains(&status));
        (statuses.is_empty() || end.status.is_some_and(within))
            && (grpc_statuses.is_empty() || end.grpc_status.is_some_and(|status| grpc_statuses.contains(&status)))
            && (errors.is_empty() || end.error.is_some_and(|error| errors.contains(&error)))
            && slower_than.is_none_or(|limit| end.duration > limit)
    }

    /// True if nothing is demanded of the end, so that a beginning can be told.
    pub fn leaves_the_end_open(&self) -> bool {
        let TapFilter { statuses, grpc_statuses, errors, slower_than, .. } = &self.filter;
        statuses.is_empty() && grpc_statuses.is_empty() && errors.is_empty() && slower_than.is_none()
    }

    fn identity(&self, identity: Option<&SpiffeId>) -> bool {
        let wanted = self.filter.identity.as_ref();
        wanted.is_none_or(|wanted| identity.is_some_and(|identity| wanted.matches(&identity.to_string())))
    }
}

/// True for a filter that no opaque connection can satisfy.
fn is_about_http(filter: &TapFilter) -> bool {
    let TapFilter { methods, path, route, headers, statuses, grpc_statuses, .. } = filter;
    !methods.is_empty()
        || path.is_some()
        || route.is_some()
        || !headers.is_empty()
        || !statuses.is_empty()
        || !grpc_statuses.is_empty()
}

fn place(place: Option<&Place>, addresses: Option<&HashSet<IpAddr>>, address: IpAddr) -> bool {
    match place {
        None => true,
        Some(network @ Place::Network { .. }) => network.has(address),
        Some(Place::Resource { .. }) => addresses.is_some_and(|addresses| addresses.contains(&address)),
    }
}

fn has(headers: &HeaderMap, wanted: &HeaderMatch) -> bool {
    headers.get_all(wanted.name.as_str()).iter().any(|value| match &wanted.value {
        None => true,
        Some(pattern) => pattern.matches(&String::from_utf8_lossy(value.as_bytes())),
    })
}

#[cfg(test)]
mod tests;
