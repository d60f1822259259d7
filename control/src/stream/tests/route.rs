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
    assert!(subscriptions.rejected(&web_service).unwrap().contains("too much"));

    control.put_slice(json!([{"addresses": ["10.244.0.5"]}]));
    let ControlMessage::Update { destination, backends, version, .. } = proxy.hear().await else { panic!("an update") };
    assert_eq!((destination, backends[0].protocol), (None, None), "only what is new");
    let less = backends[0].endpoints.as_ref().unwrap();
    assert_eq!((less.reset, less.remove.len()), (false, 1));
    changes.mark_unchanged();
    proxy.say(ProxyMessage::Ack { version }).await;
    timeout(Duration::from_secs(10), changes.changed()).await.unwrap().unwrap();
    assert_eq!(subscriptions.rejected(&web_service), None, "it goes on");

    put_route(&control, 81);
    let ControlMessage::Update { destination, backends, .. } = proxy.hear().await else { panic!("an update") };
    assert!(destination.is_some());
    let ports: Vec<_> = backends.iter().map(|change| (change.service.port, change.gone)).collect();
    assert_eq!(ports, [(80, true), (81, false)]);
}
