//! The nftables rules for cluster IPs (pure).
//!
//! One map for each number of endpoints that occurs: its key is a service's address, protocol and port together with
//! a random number below that number, its value an endpoint. So the rules are few however many services there are, and
//! a service costs one map element for each endpoint.

use super::super::addresses::{SERVICE_RANGE, SERVICE_RANGE6};
use super::{Catalog, DNS_ADDRESS, cluster_ips};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use mesh_proxy::nft::{
    Chain, ChainType, Compare, Element, Expr, Family, HookPoint, Meta, PRIORITY_DNAT, PRIORITY_SNAT, Reg, Reject, Rule,
    Set, SetKind, TCP, Table, Type, UDP, concat, destination_port, ipv4_destination, ipv4_source, ipv6_destination,
    ipv6_source,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Name of the tables.
pub(super) const TABLE: &str = "mesh-services";
/// Endpoints of one service port that take part; the rest wait for their turn.
const MAX_ENDPOINTS: usize = 1000;
/// Just before destinations are rewritten, so that cluster IPs are still to be seen.
const PRIORITY_REFUSE: i32 = PRIORITY_DNAT - 10;
/// Where what maps give starts, and what is hashed: after the longest key.
const VALUE: u8 = 8;

/// Address, protocol and port that clients connect to.
type Frontend = (IpAddr, u8, u16);
/// Address and port of an endpoint.
type Backend = (IpAddr, u16);
/// Every service port with a cluster IP, whether its service keeps clients at one endpoint, and the endpoints.
type Frontends = BTreeMap<Frontend, (bool, Vec<Backend>)>;

/// What differs between IPv4 and IPv6.
///
/// Registers hold, from 0: the address, the protocol, the port and a number, which is the key of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stack {
    V4,
    V6,
}

impl Stack {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn family(self) -> Family {
        if self == Self::V4 { Family::Ipv4 } else { Family::Ipv6 }
    }

    fn address(self) -> Type {
        if self == Self::V4 { Type::Ipv4Address } else { Type::Ipv6Address }
    }

    /// Registers of an address.
    fn registers(self) -> u8 {
        if self == Self::V4 { 1 } else { 4 }
    }

    /// Register at some distance from the end of the address in front.
    fn after_address(self, distance: u8) -> Reg {
        Reg(self.registers() + distance)
    }

    fn source(self, to: Reg) -> Expr {
        if self == Self::V4 { ipv4_source(to) } else { ipv6_source(to) }
    }

    fn destination(self, to: Reg) -> Expr {
        if self == Self::V4 { ipv4_destination(to) } else { ipv6_destination(to) }
    }

    /// Endpoints of all service ports together: what fits into one netlink transaction without special privilege.
    fn max_total(self) -> usize {
        if self == Self::V4 { 6000 } else { 3000 }
    }

    /// First cluster IP, and the bits that all have in common with it.
    fn service_range(self) -> (Vec<u8>, Vec<u8>) {
        match self {
            Self::V4 => (SERVICE_RANGE.first.octets().into(), SERVICE_RANGE.mask()),
            Self::V6 => (SERVICE_RANGE6.first.octets().into(), SERVICE_RANGE6.mask()),
        }
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}

/// The rules that make the catalog's cluster IPs work, a table for each family.
pub(super) fn tables(catalog: &Catalog, ipv6: bool) -> Vec<Table> {
    let stacks: &[Stack] = if ipv6 { &[Stack::V4, Stack::V6] } else { &[Stack::V4] };
    stacks.iter().map(|stack| table(*stack, &frontends(catalog, *stack))).collect()
}

fn table(stack: Stack, frontends: &Frontends) -> Table {
    let mut maps: BTreeMap<(bool, usize), Vec<Element>> = BTreeMap::new();
    let mut open = Vec::new();
    let mut pods = BTreeSet::new();
    for ((address, protocol, port), (sticky, backends)) in frontends {
        if backends.is_empty() {
            continue;
        }
        let address = octets(*address);
        open.push(Element::key(concat(&[&address, &[*protocol], &port.to_be_bytes()])));
        let map = maps.entry((*sticky, backends.len())).or_default();
        for (index, (pod, pod_port)) in (0u32..).zip(backends) {
            let key = concat(&[&address, &[*protocol], &port.to_be_bytes(), &index.to_ne_bytes()]);
            map.push(Element::value(key, concat(&[&octets(*pod), &pod_port.to_be_bytes()])));
            pods.insert(*pod);
        }
    }
    let rewrite: Vec<Rule> = maps.keys().map(|(sticky, count)| pick_endpoint(stack, *sticky, *count)).collect();
    let hairpin = pods.iter().map(|pod| Element::key(concat(&[&octets(*pod), &octets(*pod)]))).collect();
    let key = [stack.address(), Type::Protocol, Type::Port, Type::Number];
    let mut sets = vec![
        set("open", &key[..3], SetKind::Keys, open),
        set("hairpin", &[stack.address(), stack.address()], SetKind::Keys, hairpin),
    ];
    sets.extend(maps.into_iter().map(|((sticky, count), elements)| {
        let kind = SetKind::Values(vec![stack.address(), Type::Port]);
        set(&map_name(sticky, count), &key, kind, elements)
    }));
    let hooked = |name: &str, chain_type, point, priority, rules: &[Rule]| {
        rules.iter().cloned().fold(Chain::hooked(name, chain_type, point, priority), Chain::rule)
    };
    let refuse = refuse(stack);
    let masquerade = [Rule::new("a pod that reached itself")
        .destination_rewritten()
        .with(stack.source(Reg(0)))
        .with(stack.destination(stack.after_address(0)))
        .with(lookup("hairpin", None))
        .with(Expr::Masquerade)];
    Table {
        family: stack.family(),
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
fn pick_endpoint(stack: Stack, sticky: bool, count: usize) -> Rule {
    let modulus = count as u32;
    let number = stack.after_address(2);
    let rule = Rule::new(format!("services with {count} endpoints{}", if sticky { ", by client" } else { "" }))
        .with(stack.destination(Reg(0)))
        .with(Expr::Meta { key: Meta::Protocol, to: stack.after_address(0) })
        .with(destination_port(stack.after_address(1)));
    let rule = if sticky {
        let len = u32::from(stack.registers()) * 4;
        rule.with(stack.source(Reg(VALUE))).with(Expr::Hash { from: Reg(VALUE), len, to: number, modulus })
    } else {
        rule.with(Expr::Random { to: number, modulus })
    };
    rule.with(lookup(&map_name(sticky, count), Some(Reg(VALUE))))
        .with(Expr::DestinationNat { address: Reg(VALUE), port: Reg(VALUE + stack.registers()) })
}

/// Refuses connections to cluster IPs at which nothing would answer, so that clients fail at once.
fn refuse(stack: Stack) -> Vec<Rule> {
    let (first, mask) = stack.service_range();
    let xor = vec![0; mask.len()];
    let mut rules = vec![
        Rule::new("not a cluster IP")
            .with(stack.destination(Reg(0)))
            .with(Expr::Bitwise { reg: Reg(0), mask, xor })
            .with(Expr::Compare { reg: Reg(0), how: Compare::NotEqual, value: first })
            .accept(),
    ];
    if stack == Stack::V4 {
        let dns = Rule::new("cluster DNS, answered here").with(stack.destination(Reg(0))).with(Expr::Compare {
            reg: Reg(0),
            how: Compare::Equal,
            value: DNS_ADDRESS.octets().into(),
        });
        rules.push(dns.accept());
    }
    rules.extend([
        Rule::new("services with endpoints")
            .with(stack.destination(Reg(0)))
            .with(Expr::Meta { key: Meta::Protocol, to: stack.after_address(0) })
            .with(destination_port(stack.after_address(1)))
            .with(lookup("open", None))
            .accept(),
        Rule::new("no endpoints").new_connection().protocol_is(TCP).with(Expr::Reject(Reject::TcpReset)),
        Rule::new("no endpoints").new_connection().with(Expr::Reject(Reject::PortUnreachable)),
    ]);
    rules
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

fn frontends(catalog: &Catalog, stack: Stack) -> Frontends {
    let slices = catalog.slices_by_service();
    let mut frontends = BTreeMap::new();
    let mut services: Vec<&Service> = catalog.services.iter().map(AsRef::as_ref).collect();
    services.sort_by_key(|service| (&service.metadata.namespace, &service.metadata.name));
    let mut total = 0;
    for service in services {
        let address = cluster_ips(service).into_iter().find(|address| Stack::of(*address) == stack);
        let (Some(address), Some(spec)) = (address, &service.spec) else { continue };
        let key = (service.metadata.namespace.as_deref(), service.metadata.name.as_deref());
        let (Some(namespace), Some(name)) = key else { continue };
        let slices = slices.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        let sticky = spec.session_affinity.as_deref() == Some("ClientIP");
        for port in spec.ports.iter().flatten() {
            let (Some(protocol), Ok(number)) = (protocol(port.protocol.as_deref()), u16::try_from(port.port)) else {
                continue;
            };
            let mut backends = backends(port, slices, stack);
            backends.truncate(MAX_ENDPOINTS.min(stack.max_total() - total));
            total += backends.len();
            frontends.insert((address, protocol, number), (sticky, backends));
        }
    }
    if total == stack.max_total() {
        tracing::warn!(limit = total, "more service endpoints than this node handles: the rest is left out");
    }
    frontends
}

/// Endpoints of a service port: those that are ready or, if none is, those that still serve while they terminate.
fn backends(port: &ServicePort, slices: &[&EndpointSlice], stack: Stack) -> Vec<Backend> {
    let chosen = |usable: fn(&Endpoint) -> bool| -> Vec<Backend> {
        let mut backends = BTreeSet::new();
        for slice in slices {
            let numbers = slice.ports.iter().flatten().filter(|p| {
                p.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
                    && protocol(p.protocol.as_deref()) == protocol(port.protocol.as_deref())
            });
            for number in numbers.filter_map(|p| u16::try_from(p.port?).ok()) {
                let addresses = slice.endpoints.iter().filter(|e| usable(e)).filter_map(|e| e.addresses.first());
                let addresses = addresses.filter_map(|a| a.parse().ok()).filter(|a| Stack::of(*a) == stack);
                backends.extend(addresses.map(|a| (a, number)));
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
