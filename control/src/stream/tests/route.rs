//! Routes on the wire: a backend in full when a route begins to lead there, then what changes, and what proxies cannot use.

use super::*;
use crate::world::route::{RouteKey, RouteKind, read};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// A route of the service `web` that leads to itself, at this port.
fn put_route(control: &Control, port: u16) {
    let metadata: ObjectMeta = serde_json::from_value(json!({"namespace": "shop", "name": "r"})).unwrap();
    let spec = json!({"parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "rules": [{"backendRefs": [{"name": "web", "port": port}]}]});
    let view = read::route(RouteKind::Http, &metadata, &json!({"spec": spec}));
    control.streams.subscriptions.apply(RouteKey { kind: RouteKind::Http, name: Name::of(&metadata) }, view);
}

#[tokio::test]
async fn backends_are_told_by_difference_and_refusals_are_remembered() {
    let control = Control::start().await;
    control.put_service(json!([{"name": "http", "port": 80}, {"name": "grpc", "port": 81}]));
    put_route(&control, 80);
    control.streams.subscriptions.set_synced();
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    proxy.hear().await;
    proxy.say(ProxyMessage::Subscribe { address: address("10.96.0.7:80") }).await;
    let ControlMessage::Update { destination, backends, version, .. } = proxy.hear().await else { panic!("an update") };
    let routes = destination.unwrap().routes.unwrap();
    assert_eq!(routes.rules[0].backends[0].service.as_ref().unwrap().port, 80);
    assert_eq!((backends.len(), backends[0].protocol), (1, Some(Protocol::Http1)));
    let all = backends[0].endpoints.as_ref().unwrap();
    assert_eq!((all.reset, all.upsert.len()), (true, 2));

    let subscriptions = &control.streams.subscriptions;
    let web_service = Name::new("shop", "web");
    let mut changes = subscriptions.changes();
    proxy.say(ProxyMessage::Reject { version, reason: "too much".to_owned() }).await;
    timeout(Duration::from_secs(10), changes.changed()).await.unwrap().unwrap();
    let rejected = || subscriptions.rejections().of_service(&web_service).map(|rejected| rejected.to_string());
    assert!(rejected().unwrap().contains("too much"));

    control.put_slice(json!([{"addresses": ["10.244.0.5"]}]));
    let ControlMessage::Update { destination, endpoints, backends, version, .. } = proxy.hear().await else {
        panic!("an update")
    };
    assert!(destination.is_some_and(|destination| destination.routes.is_some()), "all of it, as it took nothing");
    assert!(endpoints.unwrap().reset && backends[0].endpoints.as_ref().unwrap().reset);
    changes.mark_unchanged();
    proxy.say(ProxyMessage::Ack { version }).await;
    timeout(Duration::from_secs(10), changes.changed()).await.unwrap().unwrap();
    assert_eq!(rejected(), None, "it goes on");

    control.put_slice(json!([{"addresses": ["10.244.0.5"]}, {"addresses": ["10.244.0.7"]}]));
    let ControlMessage::Update { destination, backends, .. } = proxy.hear().await else { panic!("an update") };
    assert_eq!((destination, backends[0].protocol), (None, None), "only what is new");
    let more = backends[0].endpoints.as_ref().unwrap();
    assert_eq!((more.reset, more.upsert.len(), more.remove.len()), (false, 1, 0));

    put_route(&control, 81);
    let ControlMessage::Update { destination, backends, .. } = proxy.hear().await else { panic!("an update") };
    assert!(destination.is_some());
    let ports: Vec<_> = backends.iter().map(|change| (change.service.port, change.gone)).collect();
    assert_eq!(ports, [(80, true), (81, false)]);
}

#[tokio::test]
async fn what_was_told_on_top_of_a_refused_version_is_told_anew() {
    let control = Control::start().await;
    control.put_service(json!([{"name": "http", "port": 80}, {"name": "grpc", "port": 81}]));
    control.streams.subscriptions.set_synced();
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    proxy.hear().await;
    proxy.say(ProxyMessage::Subscribe { address: address("10.96.0.7:80") }).await;
    let ControlMessage::Update { version, .. } = proxy.hear().await else { panic!("an update") };
    proxy.say(ProxyMessage::Ack { version }).await;
    put_route(&control, 80);
    let ControlMessage::Update { version: refused, .. } = proxy.hear().await else { panic!("an update") };
    put_route(&control, 81);
    let ControlMessage::Update { destination, backends, .. } = proxy.hear().await else { panic!("an update") };
    assert!(destination.is_some() && backends.iter().any(|change| change.gone && change.service.port == 80));

    proxy.say(ProxyMessage::Reject { version: refused, reason: "no".to_owned() }).await;
    let ControlMessage::Update { destination, endpoints, backends, version, .. } = proxy.hear().await else {
        panic!("an update")
    };
    assert!(destination.is_some() && endpoints.unwrap().reset);
    assert!(backends.iter().any(|change| !change.gone && change.service.port == 81));
    proxy.say(ProxyMessage::Reject { version, reason: "no".to_owned() }).await;

    put_route(&control, 80);
    let ControlMessage::Update { backends, .. } = proxy.hear().await else { panic!("an update") };
    let ports: std::collections::BTreeMap<_, _> =
        backends.iter().map(|change| (change.service.port, change.gone)).collect();
    assert_eq!(ports, [(80, false), (81, true)].into(), "and what it may still have goes");
}

#[tokio::test]
async fn a_pods_own_rules_can_be_refused_until_its_proxy_goes() {
    let control = Control::start().await;
    control.streams.subscriptions.set_synced();
    let mut proxy = control.hello(Some(&web()), &web(), "web-1").await.unwrap_or_else(|e| panic!("{e:?}"));
    let ControlMessage::Inbound { version, .. } = proxy.hear().await else { panic!("how to treat arrivals") };
    let rejections = control.streams.subscriptions.rejections();
    let mut changes = control.streams.subscriptions.changes();
    changes.mark_unchanged();
    proxy.say(ProxyMessage::Reject { version, reason: "too many rules".to_owned() }).await;
    timeout(Duration::from_secs(10), changes.changed()).await.unwrap().unwrap();
    let told = rejections.of_pods(&Subject::Inbound, |pod| pod.name == "web-1").unwrap();
    assert_eq!((told.reason.as_str(), told.others), ("too many rules", 0));
    drop(proxy);
    timeout(Duration::from_secs(10), changes.changed()).await.unwrap().unwrap();
    assert_eq!(rejections.of_pods(&Subject::Inbound, |_| true), None);
}
