//! What each kind of name resolves to, as data.

use super::*;
use hickory_proto::op::Query;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

fn catalog(services: Vec<Value>, slices: Vec<Value>) -> Catalog {
    Catalog {
        services: services.into_iter().map(|s| Arc::new(serde_json::from_value(s).unwrap())).collect(),
        slices: slices.into_iter().map(|s| Arc::new(serde_json::from_value(s).unwrap())).collect(),
    }
}

fn cluster() -> Catalog {
    let meta = |name: &str| json!({"name": name, "namespace": "shop"});
    let slice = |service: &str| json!({"name": format!("{service}-x"), "namespace": "shop", "labels": {"kubernetes.io/service-name": service}});
    catalog(
        vec![
            json!({"metadata": meta("web"), "spec": {"clusterIP": "10.96.0.7", "ports": [
                {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
            json!({"metadata": meta("db"), "spec": {"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}}),
            json!({"metadata": meta("dual"), "spec": {"clusterIP": "10.96.0.8",
                "clusterIPs": ["10.96.0.8", "fd6d:6573:6800:96::8"], "ports": [{"name": "http", "port": 80}]}}),
            json!({"metadata": meta("empty"), "spec": {"clusterIP": "None"}}),
            json!({"metadata": meta("alias"), "spec": {"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"}}),
            json!({"metadata": meta("away"), "spec": {"type": "ExternalName", "externalName": "www.example.org."}}),
            json!({"metadata": meta("loop"), "spec": {"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"}}),
        ],
        vec![
            json!({"metadata": slice("web"), "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.0.9"]}],
                "ports": [{"name": "http", "port": 8080}]}),
            json!({"metadata": slice("db"), "addressType": "IPv4", "ports": [{"name": "sql", "port": 5432}], "endpoints": [
                {"addresses": ["10.244.0.5"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.244.0.6"]},
                {"addresses": ["10.244.0.7"], "conditions": {"ready": false}}]}),
            json!({"metadata": slice("db"), "addressType": "IPv6", "ports": [], "endpoints": [{"addresses": ["fd00::1"]}]}),
        ],
    )
}

/// Asks for a name and type: the code, then the records, sorted, and the name others must be asked for.
fn ask(name: &str, kind: RecordType) -> (ResponseCode, Vec<String>, Option<String>) {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    let Outcome { reply, outside } = Zone::new(&cluster()).answer(&query);
    assert_eq!(reply.metadata.id, query.metadata.id);
    assert!(reply.metadata.recursion_desired && reply.metadata.recursion_available);
    assert_eq!(reply.metadata.authoritative, outside.is_none() || !reply.answers.is_empty());
    let negative =
        outside.is_none() && !reply.answers.iter().any(|a| a.record_type() == kind || kind == RecordType::ANY);
    assert_eq!(reply.authorities.len(), usize::from(negative), "a negative answer carries the start of authority");
    let mut records: Vec<String> = reply.answers.iter().map(|a| a.data.to_string()).collect();
    records.sort();
    (reply.metadata.response_code, records, outside.map(|n| n.to_ascii()))
}

#[test]
fn names_resolve() {
    use RecordType::{A, AAAA, ANY, CNAME, NS, PTR, SRV, TXT};
    use ResponseCode::{NXDomain, NoError};
    for (name, kind, code, records) in [
        ("web.shop.svc.cluster.local.", A, NoError, &["10.96.0.7"][..]),
        ("WEB.Shop.svc.CLUSTER.local.", A, NoError, &["10.96.0.7"]),
        ("web.shop.svc.cluster.local.", AAAA, NoError, &[]),
        ("_http._tcp.web.shop.svc.cluster.local.", SRV, NoError, &["0 100 80 web.shop.svc.cluster.local."]),
        ("_dns._udp.web.shop.svc.cluster.local.", SRV, NoError, &["0 100 53 web.shop.svc.cluster.local."]),
        ("_dns._tcp.web.shop.svc.cluster.local.", SRV, NXDomain, &[]),
        ("_tcp.web.shop.svc.cluster.local.", A, NoError, &[]),
        ("7.0.96.10.in-addr.arpa.", PTR, NoError, &["web.shop.svc.cluster.local."]),
        ("dual.shop.svc.cluster.local.", A, NoError, &["10.96.0.8"]),
        ("dual.shop.svc.cluster.local.", AAAA, NoError, &["fd6d:6573:6800:96::8"]),
        (
            "8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.8.6.3.7.5.6.d.6.d.f.ip6.arpa.",
            PTR,
            NoError,
            &["dual.shop.svc.cluster.local."],
        ),
        ("9.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.8.6.3.7.5.6.d.6.d.f.ip6.arpa.", PTR, NXDomain, &[]),
        ("9.0.96.10.in-addr.arpa.", PTR, NXDomain, &[]),
        ("5.0.244.10.in-addr.arpa.", PTR, NoError, &["db-0.db.shop.svc.cluster.local."]),
        ("db.shop.svc.cluster.local.", A, NoError, &["10.244.0.5", "10.244.0.6"]),
        ("db.shop.svc.cluster.local.", AAAA, NoError, &["fd00::1"]),
        ("fd00--1.db.shop.svc.cluster.local.", AAAA, NoError, &["fd00::1"]),
        ("db-0.db.shop.svc.cluster.local.", A, NoError, &["10.244.0.5"]),
        ("10-244-0-6.db.shop.svc.cluster.local.", A, NoError, &["10.244.0.6"]),
        (
            "_sql._tcp.db.shop.svc.cluster.local.",
            SRV,
            NoError,
            &["0 100 5432 10-244-0-6.db.shop.svc.cluster.local.", "0 100 5432 db-0.db.shop.svc.cluster.local."],
        ),
        ("empty.shop.svc.cluster.local.", A, NoError, &[]),
        ("nothing.shop.svc.cluster.local.", A, NXDomain, &[]),
        ("web.nowhere.svc.cluster.local.", A, NXDomain, &[]),
        ("shop.svc.cluster.local.", A, NoError, &[]),
        ("svc.cluster.local.", A, NoError, &[]),
        ("web.shop.svc.cluster.local.shop.svc.cluster.local.", A, NXDomain, &[]),
        ("alias.shop.svc.cluster.local.", A, NoError, &["10.96.0.7", "web.shop.svc.cluster.local."]),
        ("alias.shop.svc.cluster.local.", CNAME, NoError, &["web.shop.svc.cluster.local."]),
        ("10-244-3-4.shop.pod.cluster.local.", A, NoError, &["10.244.3.4"]),
        ("fd6d-6573-6800-244--7.shop.pod.cluster.local.", AAAA, NoError, &["fd6d:6573:6800:244::7"]),
        ("fd6d-6573-6800-244--7.shop.pod.cluster.local.", A, NoError, &[]),
        ("10-244-3.shop.pod.cluster.local.", A, NXDomain, &[]),
        ("shop.pod.cluster.local.", A, NoError, &[]),
        ("cluster.local.", NS, NoError, &["ns.dns.cluster.local."]),
        ("ns.dns.cluster.local.", A, NoError, &["10.96.0.10"]),
        ("dns-version.cluster.local.", TXT, NoError, &["1.1.0"]),
        ("ns.dns.cluster.local.", ANY, NoError, &["10.96.0.10"]),
    ] {
        let expect = records.iter().map(|r| (*r).to_owned()).collect();
        assert_eq!(ask(name, kind), (code, expect, None), "{name} {kind}");
    }
}

#[test]
fn names_elsewhere_are_asked_elsewhere() {
    let outside = |name: &str| Some(name.to_owned());
    let no_error = ResponseCode::NoError;
    assert_eq!(ask("example.org.", RecordType::A), (no_error, vec![], outside("example.org.")));
    assert_eq!(ask("notcluster.local.", RecordType::A), (no_error, vec![], outside("notcluster.local.")));
    for reverse in ["1.0.0.127.in-addr.arpa.", "1.0.ip6.arpa."] {
        assert_eq!(ask(reverse, RecordType::PTR).2, outside(reverse));
    }
    let expect = (no_error, vec!["www.example.org.".to_owned()], outside("www.example.org."));
    assert_eq!(ask("away.shop.svc.cluster.local.", RecordType::A), expect);
}

#[test]
fn an_alias_of_itself_ends() {
    let (code, records, outside) = ask("loop.shop.svc.cluster.local.", RecordType::A);
    assert_eq!((code, records.len(), outside), (ResponseCode::NoError, MAX_ALIASES, None));
}

#[test]
fn srv_answers_bring_addresses_along() {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii("_sql._tcp.db.shop.svc.cluster.local.").unwrap(), RecordType::SRV));
    let reply = Zone::new(&cluster()).answer(&query).reply;
    assert_eq!(reply.additionals.len(), 2);
}

#[test]
fn what_is_not_a_plain_query_is_refused() {
    let zone = Zone::new(&Catalog::default());
    let code = |change: fn(&mut Message)| {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(DOMAIN).unwrap(), RecordType::NS));
        change(&mut query);
        zone.answer(&query).reply.metadata.response_code
    };
    assert_eq!(code(|_| {}), ResponseCode::NoError);
    assert_eq!(code(|q| q.metadata.op_code = OpCode::Update), ResponseCode::NotImp);
    assert_eq!(code(|q| q.queries.clear()), ResponseCode::FormErr);
    assert_eq!(code(|q| q.queries = [q.queries.clone(), q.queries.clone()].concat()), ResponseCode::FormErr);
    assert_eq!(code(|q| q.queries[0].query_class = DNSClass::CH), ResponseCode::Refused);
    assert_eq!(code(|q| q.queries[0].query_type = RecordType::AXFR), ResponseCode::Refused);
    assert_eq!(
        code(|q| {
            let mut edns = Edns::new();
            edns.set_version(1);
            q.set_edns(edns);
        }),
        ResponseCode::BADVERS
    );
}

#[test]
fn the_serial_number_follows_the_content() {
    let serial = |catalog: &Catalog| Zone::new(catalog).soa.unwrap().serial;
    assert_eq!(serial(&cluster()), serial(&cluster()));
    assert_ne!(serial(&cluster()), serial(&Catalog::default()));
}

proptest! {
    #[test]
    fn any_name_gets_an_answer(labels in proptest::collection::vec("[a-z0-9_.-]{1,12}", 0..6), svc in any::<bool>()) {
        let name = format!("{}.{}", labels.join("."), if svc { "svc.cluster.local." } else { "pod.cluster.local." });
        if let Ok(name) = Name::from_ascii(&name) {
            let mut query = Message::query();
            query.add_query(Query::query(name, RecordType::A));
            prop_assert!(Zone::new(&cluster()).answer(&query).outside.is_none());
        }
    }
}
