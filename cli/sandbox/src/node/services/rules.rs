//! The nftables rules for cluster IPs (pure).
//!
//! One map for each number of endpoints that occurs: its key is a service's address, protocol and port together with
//! a random number below that number, its value an endpoint. So the rules are few however many services there are, and
//! a service costs one map element for each endpoint.

use super::{Catalog, DNS_ADDRESS, SERVICE_RANGE, cluster_ip};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use mesh_proxy::nft::{
    Chain, ChainType, Compare, Element, Expr, Family, HookPoint, Meta, PRIORITY_DNAT, PRIORITY_SNAT, Reg, Reject, Rule,
    Set, SetKind, TCP, Table, Type, UDP, concat, destination_port, ipv4_destination, ipv4_source,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Name of the table.
pub(super) const TABLE: &str = "mesh-services";
/// Endpoints of one service port that take part; the rest wait for their turn.
const MAX_ENDPOINTS: usize = 1000;
/// Endpoints of all service ports together: what fits into one netlink transaction without special privilege.
const MAX_TOTAL: usize = 6000;
/// Just before destinations are rewritten, so that cluster IPs are still to be seen.
const PRIORITY_REFUSE: i32 = PRIORITY_DNAT - 10;
/// Key of the maps: address, protocol, port and number occupy registers 0 to 3, values start at register 8.
const KEY: [Type; 4] = [Type::Ipv4Address, Type::Protocol, Type::Port, Type::Number];

/// Address, protocol and port that clients connect to.
type Frontend = (Ipv4Addr, u8, u16);
/// Address and port of an endpoint.
type Backend = (Ipv4Addr, u16);

/// The rules that make the catalog's cluster IPs work.
pub(super) fn table(catalog: &Catalog) -> Table {
    let frontends = frontends(catalog);
    let mut maps: BTreeMap<(bool, usize), Vec<Element>> = BTreeMap::new();
    let mut open = Vec::new();
    let mut pods = BTreeSet::new();
    for ((address, protocol, port), (sticky, backends)) in &frontends {
        if backends.is_empty() {
            continue;
        }
        open.push(Element::key(concat(&[&address.octets(), &[*protocol], &port.to_be_bytes()])));
        let map = maps.entry((*sticky, backends.len())).or_default();
        for (index, (pod, pod_port)) in (0u32..).zip(backends) {
            let key = concat(&[&address.octets(), &[*protocol], &port.to_be_bytes(), &index.to_ne_bytes()]);
            map.push(Element::value(key, concat(&[&pod.octets(), &pod_port.to_be_bytes()])));
            pods.insert(*pod);
        }
    }
    let rewrite: Vec<Rule> = maps.keys().map(|(sticky, count)| pick_endpoint(*sticky, *count)).collect();
    let hairpin = pods.iter().map(|pod| Element::key(concat(&[&pod.octets(), &pod.octets()]))).collect();
    let mut sets = vec![
        set("open", &KEY[..3], SetKind::Keys, open),
        set("hairpin", &[Type::Ipv4Address, Type::Ipv4Address], SetKind::Keys, hairpin),
    ];
    sets.extend(maps.into_iter().map(|((sticky, count), elements)| {
        let kind = SetKind::Values(vec![Type::Ipv4Address, Type::Port]);
        set(&map_name(sticky, count), &KEY, kind, elements)
    }));
    let hooked = |name: &str, chain_type, point, priority, rules: &[Rule]| {
        rules.iter().cloned().fold(Chain::hooked(name, chain_type, point, priority), Chain::rule)
    };
    let refuse = refuse();
    let masquerade = [Rule::new("a pod that reached itself")
        .destination_rewritten()
        .with(ipv4_source(Reg(0)))
        .with(ipv4_destination(Reg(1)))
        .with(lookup("hairpin", None))
        .with(Expr::Masquerade)];
    Table {
        family: Family::Ipv4,
        name: TABLE.to_owned(),
        sets,
        chains: vec![
            hooked("refuse-forwarded", ChainType::Filter, HookPoint::Prerouting, PRIORITY_REFUSE, &refuse),
            hooked("refuse-local", ChainType::Filter, HookPoint::Output, PRIORITY_REFUSE, &refuse),
            hooked("services-forwarded", ChainType::Nat, HookPoint::Prerouting, PRIORITY_DNAT, &rewrite),
            hooked("services-local", ChainType::Nat, HookPoint::Output, PRIORITY_DNAT, &rewrite),
            hooked("sources", ChainType::Nat, HookPoint::Postrouting, PRIORITY_SNAT, &masquerade),
        ],
    }
}

/// Chooses one of `count` endpoints: at random or, for sticky services, by the client's address.
fn pick_endpoint(sticky: bool, count: usize) -> Rule {
    let modulus = count as u32;
    let rule = Rule::new(format!("services with {count} endpoints{}", if sticky { ", by client" } else { "" }))
        .with(ipv4_destination(Reg(0)))
        .with(Expr::Meta { key: Meta::Protocol, to: Reg(1) })
        .with(destination_port(Reg(2)));
    let rule = if sticky {
        rule.with(ipv4_source(Reg(4))).with(Expr::Hash { from: Reg(4), len: 4, to: Reg(3), modulus })
    } else {
        rule.with(Expr::Random { to: Reg(3), modulus })
    };
    rule.with(lookup(&map_name(sticky, count), Some(Reg(8))))
        .with(Expr::DestinationNat { address: Reg(8), port: Reg(9) })
}

/// Refuses connections to cluster IPs at which nothing would answer, so that clients fail at once.
fn refuse() -> Vec<Rule> {
    let (first, prefix) = SERVICE_RANGE;
    let mask = (u32::MAX << (32 - u32::from(prefix))).to_be_bytes();
    vec![
        Rule::new("not a cluster IP")
            .with(ipv4_destination(Reg(0)))
            .with(Expr::Bitwise { reg: Reg(0), mask: mask.into(), xor: vec![0; 4] })
            .with(Expr::Compare { reg: Reg(0), how: Compare::NotEqual, value: first.octets().into() })
            .accept(),
        Rule::new("cluster DNS, answered here")
            .with(ipv4_destination(Reg(0)))
            .with(Expr::Compare { reg: Reg(0), how: Compare::Equal, value: DNS_ADDRESS.octets().into() })
            .accept(),
        Rule::new("services with endpoints")
            .with(ipv4_destination(Reg(0)))
            .with(Expr::Meta { key: Meta::Protocol, to: Reg(1) })
            .with(destination_port(Reg(2)))
            .with(lookup("open", None))
            .accept(),
        Rule::new("no endpoints").new_connection().protocol_is(TCP).with(Expr::Reject(Reject::TcpReset)),
        Rule::new("no endpoints").new_connection().with(Expr::Reject(Reject::PortUnreachable)),
    ]
}

fn lookup(set: &str, value: Option<Reg>) -> Expr {
    Expr::Lookup { set: set.to_owned(), key: Reg(0), invert: false, value }
}

fn set(name: &str, key: &[Type], kind: SetKind, elements: Vec<Element>) -> Set {
    Set { name: name.to_owned(), key: key.to_vec(), kind, elements }
}

fn map_name(sticky: bool, count: usize) -> String {
    format!("{}-{count}", if sticky { "by-client" } else { "random" })
}

/// Every service port with a cluster IP, whether its service keeps clients at one endpoint, and the endpoints.
fn frontends(catalog: &Catalog) -> BTreeMap<Frontend, (bool, Vec<Backend>)> {
    let slices = catalog.slices_by_service();
    let mut frontends = BTreeMap::new();
    let mut services: Vec<&Service> = catalog.services.iter().map(AsRef::as_ref).collect();
    services.sort_by_key(|service| (&service.metadata.namespace, &service.metadata.name));
    let mut total = 0;
    for service in services {
        let (Some(address), Some(spec)) = (cluster_ip(service), &service.spec) else { continue };
        let key = (service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
        let (Some(namespace), Some(name)) = key else { continue };
        let slices = slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        for port in spec.ports.iter().flatten() {
            let (Some(protocol), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port)) else {
                continue;
            };
            let mut backends = backends(port, slices);
            backends.truncate(MAX_ENDPOINTS.min(MAX_TOTAL - total));
            total += backends.len();
            frontends.insert((address, protocol, number), (sticky, backends));
        }
    }
    if total == MAX_TOTAL {
        tracing::warn!(limit = MAX_TOTAL, "more service endpoints than this node handles: the rest is left out");
    }
    frontends
}

/// Endpoints of a service port: those that are ready or, if none is, those that still serve while they terminate.
fn backends(port: &ServicePort, slices: &[&EndpointSlice]) -> Vec<Backend> {
    let chosen = |usable: fn(&Endpoint) -> bool| -> Vec<Backend> {
        let mut backends = BTreeSet::new();
        for slice in slices {
            let numbers = slice.ports.iter().flatten().filter(|p| {
                p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                    && protocol(p.protocol.as_deref()) == protocol(port.protocol.as_deref())
            });
            for number in numbers.filter_map(|p| u16::try_from(p.port?).ok()) {
                let addresses = slice.endpoints.iter().filter(|e| usable(e)).filter_map(|e| e.addresses.first());
                backends.extend(addresses.filter_map(|a| a.parse().ok()).map(|a: Ipv4Addr| (a, number)));
            }
        }
        backends.into_iter().collect()
    };
    let ready = chosen(is_ready);
    if ready.is_empty() { chosen(serves_while_terminating) } else { ready }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

fn serves_while_terminating(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().is_some_and(|c| c.serving == Some(true) && c.terminating == Some(true))
}

fn protocol(name: Option<&str>) -> Option<u8> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
