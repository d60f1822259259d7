//! From frames to edges: who talks to whom, under which identities, how well protected and how well served. Pure.
//!
//! An edge is known to the sender's proxy, so its outbound series count. Callers without a proxy, and callers in
//! namespaces out of sight, are known from what arrived.

use crate::resource::{Kind, Resource};
use mesh_api::WorkloadRef;
use mesh_api::golden::{Carried, Direction, GoldenFrame, Series, TlsStatus, WorkloadSeries, WorkloadStatus};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Which edges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Begins or ends here.
    pub of: Resource,
    /// Begins or ends in this namespace.
    pub namespace: Option<String>,
}

/// Traffic from one workload to another. The names are those of the JSON output.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Edge {
    /// Namespace of the caller; empty outside the cluster.
    pub src_namespace: String,
    /// Kind of the caller; `serviceaccount` if only its identity is known, `external` if only its address is.
    pub src_kind: String,
    /// Name of the caller.
    pub src_name: String,
    /// Namespace of the called.
    pub dst_namespace: String,
    /// Kind of the called.
    pub dst_kind: String,
    /// Name of the called.
    pub dst_name: String,
    /// Services through which it was called.
    pub services: Vec<String>,
    /// Identity the caller proves; null if none of it was mutual TLS.
    pub client_identity: Option<String>,
    /// Identity the called proves; null if none of it was mutual TLS.
    pub server_identity: Option<String>,
    /// True if all of it was mutual TLS.
    pub secured: bool,
    /// Why not, if not.
    pub reason: Option<String>,
    /// Share of requests and connections under mutual TLS.
    pub mtls_rate: Option<f64>,
    /// Requests a second.
    pub rps: f64,
    /// Share of them that went well; null without.
    pub success_rate: Option<f64>,
    /// 99th percentile of their latencies; null without.
    pub latency_p99_ms: Option<f64>,
    /// TCP connections open at the end of the span.
    pub tcp_open_connections: u64,
    /// TCP bytes a second from the caller.
    pub tcp_read_bytes_rate: f64,
    /// TCP bytes a second to the caller.
    pub tcp_write_bytes_rate: f64,
}

#[derive(Default)]
struct Tally<'a> {
    sum: Series,
    services: BTreeSet<&'a str>,
    all: u64,
    mutual: u64,
    passthrough: u64,
}

/// What is known of workloads.
pub(crate) type Statuses<'a> = BTreeMap<&'a WorkloadRef, &'a WorkloadStatus>;

/// The edges that answer a query, by caller and called.
pub fn edges(frames: &VecDeque<GoldenFrame>, query: &Query) -> Vec<Edge> {
    let Some(last) = frames.back() else { return Vec::new() };
    let seconds = frames.iter().map(|frame| frame.span_ms).sum::<u64>() as f64 / 1000.0;
    let statuses: Statuses<'_> = last.workloads.iter().map(|s| (&s.workload, s)).collect();
    let mut tallies: BTreeMap<(&WorkloadRef, &WorkloadRef), Tally<'_>> = BTreeMap::new();
    for (index, frame) in frames.iter().enumerate() {
        for entry in &frame.series {
            let Some((src, dst)) = ends(entry, &statuses) else { continue };
            if is_asked_for(query, src, dst, &statuses) {
                tallies.entry((src, dst)).or_default().add(entry, index + 1 == frames.len());
            }
        }
    }
    let seen = tallies.into_iter().filter(|(_, tally)| tally.all > 0);
    seen.map(|((src, dst), tally)| tally.edge(src, dst, &statuses, seconds)).collect()
}

/// Caller and called of a series, unless another series tells the same better.
pub(crate) fn ends<'a>(
    entry: &'a WorkloadSeries,
    statuses: &Statuses<'_>,
) -> Option<(&'a WorkloadRef, &'a WorkloadRef)> {
    let peer = &entry.key.peer;
    match entry.key.direction {
        Direction::Outbound => Some((&entry.workload, peer)),
        // Its sender, if in sight, has counted it.
        Direction::Inbound if peer.kind == "serviceaccount" => {
            let in_sight = statuses.values().any(|status| {
                status.identities.iter().any(|id| id.namespace == peer.namespace && id.service_account == peer.name)
            });
            (!in_sight).then_some((peer, &entry.workload))
        }
        Direction::Inbound => {
            let counts_itself = statuses.get(peer).is_some_and(|status| status.meshed_pods > 0);
            (!counts_itself).then_some((peer, &entry.workload))
        }
    }
}

fn is_asked_for(query: &Query, src: &WorkloadRef, dst: &WorkloadRef, statuses: &Statuses<'_>) -> bool {
    let is = |end: &WorkloadRef| {
        query.namespace.as_ref().is_none_or(|namespace| *namespace == end.namespace)
            && match query.of.kind {
                Kind::Service => {
                    let name = query.of.name.as_ref();
                    let own = end.kind == "service" && name.is_none_or(|name| *name == end.name);
                    own || statuses.get(end).is_some_and(|status| {
                        status.services.iter().any(|service| name.is_none_or(|name| name == service))
                    })
                }
                _ => query.of.is_workload(end),
            }
    };
    is(src) || is(dst)
}

impl<'a> Tally<'a> {
    fn add(&mut self, entry: &'a WorkloadSeries, is_last_frame: bool) {
        let open = if is_last_frame { entry.series.tcp_open } else { 0 };
        self.sum.merge(&Series { tcp_open: open, ..entry.series.clone() }, true);
        self.services.extend(entry.key.service.as_ref().map(|service| service.name.as_str()));
        let count = match entry.key.carried {
            Carried::Tcp => entry.series.tcp_closed + open,
            Carried::Http | Carried::Grpc => entry.series.requests,
        };
        self.all += count;
        match entry.key.tls {
            TlsStatus::Mutual => self.mutual += count,
            TlsStatus::Passthrough => self.passthrough += count,
            TlsStatus::Plain => {}
        }
    }

    fn edge(self, src: &WorkloadRef, dst: &WorkloadRef, statuses: &Statuses<'_>, seconds: f64) -> Edge {
        let per_second = |count: u64| if seconds > 0.0 { round(count as f64 / seconds, 3) } else { 0.0 };
        let secured = self.mutual == self.all;
        let any_mutual = self.mutual > 0;
        let identity = |end| any_mutual.then(|| identities(end, statuses)).filter(|text| !text.is_empty());
        let sum = &self.sum;
        Edge {
            src_namespace: src.namespace.clone(),
            src_kind: src.kind.clone(),
            src_name: src.name.clone(),
            dst_namespace: dst.namespace.clone(),
            dst_kind: dst.kind.clone(),
            dst_name: dst.name.clone(),
            services: self.services.iter().map(|&name| name.to_owned()).collect(),
            client_identity: identity(src),
            server_identity: identity(dst),
            secured,
            reason: (!secured).then(|| self.why_not(src, dst, statuses)),
            mtls_rate: (self.all > 0).then(|| round(self.mutual as f64 / self.all as f64, 6)),
            rps: per_second(sum.requests),
            success_rate: (sum.requests > 0).then(|| round(sum.successes as f64 / sum.requests as f64, 6)),
            latency_p99_ms: sum.latency.quantile_ms(0.99).map(|ms| round(ms, 3)),
            tcp_open_connections: sum.tcp_open,
            tcp_read_bytes_rate: per_second(sum.tcp_read_bytes),
            tcp_write_bytes_rate: per_second(sum.tcp_write_bytes),
        }
    }

    /// Why not all of it was mutual TLS, as far as both ends tell.
    fn why_not(&self, src: &WorkloadRef, dst: &WorkloadRef, statuses: &Statuses<'_>) -> String {
        let meshed = |end: &WorkloadRef| statuses.get(end).map(|status| (status.meshed_pods, status.pods));
        let of_pods = |end: &str, (meshed, pods): (u32, u32)| match meshed {
            0 => Some(format!("{end} has no proxy")),
            _ if meshed < pods => Some(format!("{} of {pods} pods of the {end} have no proxy", pods - meshed)),
            _ => None,
        };
        let why = if dst.kind == "external" {
            Some("the destination is outside the mesh".to_owned())
        } else if dst.kind == "service" {
            Some("no endpoint was there to be reached".to_owned())
        } else if src.kind == "external" {
            Some("the caller has no proxy".to_owned())
        } else {
            meshed(dst).and_then(|pods| of_pods("destination", pods)).or(meshed(src).and_then(|p| of_pods("caller", p)))
        };
        match why {
            Some(why) => why,
            None if self.passthrough > 0 => "the application's own TLS is passed through".to_owned(),
            None => "sent in plain text while the other end was not known to be meshed".to_owned(),
        }
    }
}

/// The identities of a workload; several are possible while its service account changes.
fn identities(end: &WorkloadRef, statuses: &Statuses<'_>) -> String {
    let trust_domain = || statuses.values().flat_map(|status| &status.identities).next();
    if end.kind == "serviceaccount" {
        let domain = trust_domain().map(|identity| identity.trust_domain.as_str());
        let domain = domain.unwrap_or(mesh_api::names::DEFAULT_TRUST_DOMAIN);
        return mesh_api::SpiffeId::new(domain, &end.namespace, &end.name).to_string();
    }
    let known = statuses.get(end).map(|status| status.identities.iter().map(ToString::to_string).collect::<Vec<_>>());
    known.unwrap_or_default().join(",")
}

fn round(value: f64, digits: i32) -> f64 {
    let scale = 10f64.powi(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::golden::tests::shop;

    /// The shop with a caller without a proxy, one in a namespace out of sight, and a call that leaves the mesh.
    pub(crate) fn streets() -> VecDeque<GoldenFrame> {
        let mut frames = shop();
        for frame in &mut frames {
            let Some(arrived) = frame.series.iter().find(|e| e.key.direction == Direction::Inbound).cloned() else {
                continue;
            };
            let mut stranger = arrived.clone();
            stranger.key.peer = WorkloadRef::new("", "external", "10.1.2.3");
            stranger.key.tls = TlsStatus::Plain;
            let mut neighbour = arrived.clone();
            neighbour.key.peer = WorkloadRef::new("billing", "serviceaccount", "batch");
            let mut leaving = arrived;
            leaving.key.direction = Direction::Outbound;
            leaving.key.peer = WorkloadRef::new("", "external", "93.184.216.34");
            leaving.key.tls = TlsStatus::Passthrough;
            frame.series.extend([stranger, neighbour, leaving]);
            let mut unmeshed = frame
                .series
                .iter()
                .find(|e| e.key.peer.name == "cart" && e.key.direction == Direction::Outbound)
                .cloned();
            if let Some(entry) = &mut unmeshed {
                entry.key.tls = TlsStatus::Plain;
            }
            frame.series.extend(unmeshed);
            for status in frame.workloads.iter_mut().filter(|status| status.workload.name == "cart") {
                status.pods = 2;
            }
        }
        frames
    }

    fn query(of: &str, namespace: Option<&str>) -> Query {
        Query { of: Resource::read_one(of).unwrap(), namespace: namespace.map(str::to_owned) }
    }

    fn told(of: &str, namespace: Option<&str>) -> Vec<String> {
        let told = |edge: &Edge| {
            let why = edge.reason.as_deref().unwrap_or("mutual TLS");
            format!("{} -> {}: {why}, {}", edge.src_name, edge.dst_name, edge.rps)
        };
        edges(&streets(), &query(of, namespace)).iter().map(told).collect()
    }

    #[test]
    fn every_leg_is_one_edge_with_its_protection() {
        insta::assert_debug_snapshot!(told("all", None), @r#"
        [
            "10.1.2.3 -> web: the caller has no proxy, 20",
            "batch -> web: mutual TLS, 20",
            "load -> web: mutual TLS, 25",
            "web -> 93.184.216.34: the destination is outside the mesh, 20",
            "web -> cart: 1 of 2 pods of the destination have no proxy, 20",
            "web -> catalog: mutual TLS, 70",
            "web -> ledger: mutual TLS, 0",
        ]
        "#);
    }

    #[test]
    fn edges_are_found_by_either_end() {
        assert_eq!(told("deploy/ledger", None), ["web -> ledger: mutual TLS, 0"]);
        assert_eq!(told("svc/cart", None).len(), 1);
        assert_eq!(told("all", Some("billing")), ["batch -> web: mutual TLS, 20"]);
        assert!(told("deploy/nobody", None).is_empty());
    }

    #[test]
    fn identities_are_those_that_were_proven() {
        let all = edges(&streets(), &query("all", None));
        let of = |src: &str, dst: &str| {
            let edge = all.iter().find(|edge| edge.src_name == src && edge.dst_name == dst).unwrap();
            (edge.client_identity.as_deref(), edge.server_identity.as_deref())
        };
        let (web, cart) = ("spiffe://cluster.local/ns/shop/sa/web", "spiffe://cluster.local/ns/shop/sa/cart");
        assert_eq!(of("web", "cart"), (Some(web), Some(cart)));
        assert_eq!(of("10.1.2.3", "web"), (None, None));
        assert_eq!(of("batch", "web").0, Some("spiffe://cluster.local/ns/billing/sa/batch"));
    }
}
