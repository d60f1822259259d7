//! What names mean in `cluster.local` (pure): the Kubernetes DNS specification, version 1.1.0, over a [`Catalog`].
//!
//! The whole zone is a map from name to records, built anew with each catalog. Names that only lie on the way to
//! others are in it, too, without records: so "exists but has no such record" and "does not exist" come out right, which
//! matters to resolvers with search lists. Pods' names are computed, they contain their address.

use super::super::addresses::is_inside;
use super::super::services::{Catalog, DNS_ADDRESS, cluster_ips};
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::{IpAddr, Ipv6Addr};

/// The zone, as keys of the map end.
const DOMAIN: &str = "cluster.local.";
/// Name server of the zone.
const NAME_SERVER: &str = "ns.dns.cluster.local.";
/// Seconds an answer may be remembered: short, since endpoints come and go.
const TTL: u32 = 5;
/// Records given for one name.
const MAX_RECORDS: usize = 256;
/// Aliases followed for one query.
const MAX_ALIASES: usize = 8;
/// Largest UDP message taken, told to clients that ask.
const MAX_PAYLOAD: u16 = 1232;

/// All names of the cluster.
#[derive(Debug)]
pub(super) struct Zone {
    /// Lower-case, fully qualified names.
    names: HashMap<String, Vec<RData>>,
    soa: Option<SOA>,
}

/// An answer, complete unless it needs a name that is not the zone's.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The reply as far as the zone goes.
    pub(super) reply: Message,
    /// Whose records must be added to it.
    pub(super) outside: Option<Name>,
}

impl Zone {
    /// The zone of a catalog.
    pub(super) fn new(catalog: &Catalog) -> Self {
        let mut zone = Self { names: HashMap::new(), soa: None };
        zone.add(NAME_SERVER, RData::A(A(DNS_ADDRESS)));
        zone.add("dns-version.cluster.local.", RData::TXT(TXT::new(vec!["1.1.0".to_owned()])));
        zone.exists("svc.cluster.local.");
        zone.exists("pod.cluster.local.");
        let slices = catalog.slices_by_service();
        for service in &catalog.services {
            let (Some(namespace), Some(name)) = (&service.metadata.namespace, &service.metadata.name) else { continue };
            let slices = slices.get(&(namespace.as_str(), name.as_str())).map(Vec::as_slice).unwrap_or_default();
            zone.add_service(service, &format!("{name}.{namespace}.svc.{DOMAIN}"), slices);
        }
        zone.add_apex();
        zone
    }

    /// Answers one query.
    pub(super) fn answer(&self, query: &Message) -> Outcome {
        let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&query.metadata);
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.recursion_available = true;
        reply.queries.clone_from(&query.queries);
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_PAYLOAD);
            reply.set_edns(edns);
        }
        let refusal = match query.queries.as_slice() {
            _ if query.metadata.op_code != OpCode::Query => Some(ResponseCode::NotImp),
            _ if query.version() > 0 => Some(ResponseCode::BADVERS),
            [one] if one.query_class() != DNSClass::IN && one.query_class() != DNSClass::ANY => {
                Some(ResponseCode::Refused)
            }
            [one] if matches!(one.query_type(), RecordType::AXFR | RecordType::IXFR) => Some(ResponseCode::Refused),
            [_] => None,
            _ => Some(ResponseCode::FormErr),
        };
        if let Some(code) = refusal {
            reply.metadata.response_code = code;
            if let Some(edns) = &mut reply.edns {
                edns.set_rcode_high(code.high());
            }
            return Outcome { reply, outside: None };
        }
        let outside = match query.queries.first() {
            Some(question) => self.resolve(question.name().clone(), question.query_type(), &mut reply),
            None => None,
        };
        Outcome { reply, outside }
    }

    /// Adds the records of `name`, following aliases; returns the name that others must be asked for.
    fn resolve(&self, mut name: Name, kind: RecordType, reply: &mut Message) -> Option<Name> {
        for _ in 0..MAX_ALIASES {
            if !is_ours(&name) {
                return Some(name);
            }
            reply.metadata.authoritative = true;
            let Some(records) = self.records(&name) else {
                reply.metadata.response_code = ResponseCode::NXDomain;
                break;
            };
            let matching = records.iter().filter(|r| kind == RecordType::ANY || r.record_type() == kind);
            let mut matching: Vec<RData> = matching.take(MAX_RECORDS).cloned().collect();
            if !matching.is_empty() {
                // Clients tend to take the first record: let it be another one for each of them.
                let start = usize::from(reply.metadata.id) % matching.len();
                matching.rotate_left(start);
                self.add_targets(&matching, reply);
                reply.add_answers(matching.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)));
                return None;
            }
            let alias = records.iter().find_map(|record| match record {
                RData::CNAME(CNAME(target)) => Some(target.clone()),
                _ => None,
            });
            let Some(target) = alias else { break };
            reply.add_answer(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
            name = target;
        }
        // The start of authority tells how long the absence may be remembered (RFC 2308).
        if let (Some(soa), Ok(domain)) = (&self.soa, Name::from_ascii(DOMAIN)) {
            reply.add_authority(Record::from_rdata(domain, TTL, RData::SOA(soa.clone())));
        }
        None
    }

    /// Records of a name; `None` if there is no such name.
    fn records(&self, name: &Name) -> Option<std::borrow::Cow<'_, [RData]>> {
        let key = name.to_ascii().to_ascii_lowercase();
        if let Some(records) = self.names.get(&key) {
            return Some(records.as_slice().into());
        }
        let pod = key.strip_suffix(".pod.cluster.local.")?;
        match pod.split_once('.') {
            Some((address, namespace)) if !namespace.contains('.') => {
                let parsed = address.replace('-', ".").parse().or_else(|_| address.replace('-', ":").parse());
                Some(vec![address_record(parsed.ok()?)].into())
            }
            Some(_) => None,
            None => Some(Vec::new().into()),
        }
    }

    /// Addresses of the targets of SRV records, which the client would ask for next.
    fn add_targets(&self, records: &[RData], reply: &mut Message) {
        for record in records {
            let RData::SRV(srv) = record else { continue };
            let addresses = self.records(&srv.target).unwrap_or_default();
            let is_address = |data: &&RData| matches!(data.record_type(), RecordType::A | RecordType::AAAA);
            let addresses = addresses.iter().filter(is_address).cloned();
            reply.add_additionals(addresses.map(|data| Record::from_rdata(srv.target.clone(), TTL, data)));
        }
    }

    fn add_service(&mut self, service: &Service, name: &str, slices: &[&EndpointSlice]) {
        let Some(spec) = &service.spec else { return };
        self.exists(name);
        let ports: Vec<&ServicePort> = spec.ports.iter().flatten().collect();
        if let (Some("ExternalName"), Some(target)) = (spec.type_.as_deref(), &spec.external_name) {
            if let Ok(target) = Name::from_ascii(format!("{}.", target.trim_end_matches('.'))) {
                self.add(name, RData::CNAME(CNAME(target)));
            }
            return;
        }
        let addresses = cluster_ips(service);
        for address in &addresses {
            self.add(name, address_record(*address));
            self.add_pointer(*address, name);
        }
        if !addresses.is_empty() {
            for port in ports {
                self.add_srv(name, port.name.as_deref(), port.protocol.as_deref(), port.port, name);
            }
            return;
        }
        for slice in slices {
            for endpoint in slice.endpoints.iter().filter(|e| is_published(e)) {
                self.add_endpoint(name, slice, endpoint);
            }
        }
    }

    /// An endpoint of a headless service: part of the service's name, and a name of its own.
    fn add_endpoint(&mut self, service: &str, slice: &EndpointSlice, endpoint: &Endpoint) {
        let Some(address) = endpoint.addresses.first().and_then(|a| a.parse::<IpAddr>().ok()) else { return };
        let host = endpoint.hostname.clone().unwrap_or_else(|| address.to_string().replace(['.', ':'], "-"));
        let own = format!("{host}.{service}");
        self.add(service, address_record(address));
        self.add(&own, address_record(address));
        self.add_pointer(address, &own);
        for port in slice.ports.iter().flatten() {
            if let Some(number) = port.port {
                self.add_srv(service, port.name.as_deref(), port.protocol.as_deref(), number, &own);
            }
        }
    }

    /// A port of a service: under the service's name and, if it has a name, under its own.
    fn add_srv(&mut self, service: &str, port: Option<&str>, protocol: Option<&str>, number: i32, target: &str) {
        let (Ok(number), Ok(target)) = (u16::try_from(number), Name::from_ascii(target)) else { return };
        let record = RData::SRV(SRV::new(0, 100, number, target));
        self.add(service, record.clone());
        if let Some(port) = port.filter(|name| !name.is_empty()) {
            let protocol = protocol.unwrap_or("TCP").to_ascii_lowercase();
            self.add(&format!("_{port}._{protocol}.{service}"), record);
        }
    }

    fn add_pointer(&mut self, address: IpAddr, name: &str) {
        if let Ok(name) = Name::from_ascii(name) {
            self.add(&reverse_name(address), RData::PTR(PTR(name)));
        }
    }

    /// Start of authority and name server. The serial number is a digest: it changes when the zone does.
    fn add_apex(&mut self) {
        let mut digest = 0u64;
        for (name, records) in &self.names {
            let mut hasher = DefaultHasher::new();
            (name, format!("{records:?}")).hash(&mut hasher);
            digest = digest.wrapping_add(hasher.finish());
        }
        let names = (Name::from_ascii(NAME_SERVER), Name::from_ascii("hostmaster.cluster.local."));
        if let (Ok(server), Ok(mailbox)) = names {
            let soa = SOA::new(server.clone(), mailbox, digest as u32, 7200, 1800, 86400, TTL);
            self.add(DOMAIN, RData::SOA(soa.clone()));
            self.add(DOMAIN, RData::NS(NS(server)));
            self.soa = Some(soa);
        }
    }

    fn add(&mut self, name: &str, record: RData) {
        self.exists(name);
        let records = self.names.entry(name.to_ascii_lowercase()).or_default();
        if records.len() < MAX_RECORDS && !records.contains(&record) {
            records.push(record);
        }
    }

    /// Makes a name exist, and those above it.
    fn exists(&mut self, name: &str) {
        let mut name = name.to_ascii_lowercase();
        while name.ends_with(DOMAIN) && !self.names.contains_key(&name) {
            let above = name.split_once('.').map(|(_, above)| above.to_owned()).unwrap_or_default();
            self.names.insert(name, Vec::new());
            name = above;
        }
    }
}

fn is_published(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true)
}

/// True for names in the zone, and for the reverse names of cluster IPs and pods.
fn is_ours(name: &Name) -> bool {
    let name = name.to_ascii().to_ascii_lowercase();
    if name == DOMAIN || name.ends_with(".cluster.local.") {
        return true;
    }
    reversed(&name).is_some_and(is_inside)
}

fn address_record(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// The name under which an address' names are found (RFC 1035 §3.5, RFC 3596 §2.5).
fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa.")
        }
        IpAddr::V6(v6) => {
            let digits = format!("{:032x}", u128::from(v6));
            digits.chars().rev().map(|digit| format!("{digit}.")).chain(["ip6.arpa.".to_owned()]).collect()
        }
    }
}

/// The address whose reverse name, in lower case, this is.
fn reversed(name: &str) -> Option<IpAddr> {
    if let Some(octets) = name.strip_suffix(".in-addr.arpa.") {
        return octets.rsplit('.').collect::<Vec<_>>().join(".").parse().ok().map(IpAddr::V4);
    }
    let digits: Vec<&str> = name.strip_suffix(".ip6.arpa.")?.rsplit('.').collect();
    if digits.len() != 32 || digits.iter().any(|digit| digit.len() != 1) {
        return None;
    }
    u128::from_str_radix(&digits.concat(), 16).ok().map(|bits| IpAddr::V6(Ipv6Addr::from(bits)))
}

#[cfg(test)]
mod tests;
