//! Replicas that ask each other, over real sockets, with proxies that count what they are told to.

use super::*;
use crate::golden::Scope;
use crate::stream::tests::{Control, Proxy, web};
use mesh_api::Histogram;
use mesh_api::golden::{ProxyFrame, Series, SeriesKey};
use mesh_api::wire::{ControlMessage, ProxyMessage};

fn counted(at_ms: u64, requests: u64) -> ProxyFrame {
    let key = r#"{"direction":"inbound","carried":"http","peer":{"namespace":"","kind":"pod","name":""},"port":80,"tls":"plain"}"#;
    let key: SeriesKey = serde_json::from_str(key).unwrap();
    let mut latency = Histogram::default();
    (0..requests).for_each(|n| latency.record_us(1000 + n));
    let series = Series { requests, successes: requests, latency, tcp_open: 2, ..Series::default() };
    ProxyFrame { at_ms, span_ms: 1000, series: vec![(key, series)], endpoints: vec![] }
}

fn requests(frame: &GoldenFrame) -> (u64, u64) {
    let rows = || frame.series.iter().filter(|row| row.workload.name == "web");
    (rows().map(|row| row.series.requests).sum(), rows().map(|row| row.series.latency.count()).sum())
}

/// A proxy of a pod of `web` that is connected to a replica.
async fn connected(control: &Control, pod: &str) -> Proxy {
    control.hello(Some(&web()), &web(), pod).await.unwrap_or_else(|error| panic!("{error:?}"))
}

/// Waits until a proxy is asked for its past; returns whether only for what it told nobody.
async fn asked(proxy: &mut Proxy) -> bool {
    loop {
        if let ControlMessage::Observe { untold, .. } = proxy.hear().await {
            return untold;
        }
    }
}

async fn next(together: &mut Together, control: &Control) -> GoldenFrame {
    let subscriptions = control.streams.subscriptions.clone();
    together.next(|look| subscriptions.read(|world| look(world)), observe::unix_ms).await
}

/// Frames until one says what is wanted.
async fn until(together: &mut Together, control: &Control, wanted: impl Fn(&GoldenFrame) -> bool) -> GoldenFrame {
    for _ in 0..20 {
        let frame = next(together, control).await;
        if wanted(&frame) {
            return frame;
        }
    }
    panic!("not in twenty frames");
}

fn ask(control: &Control, others: &[(&str, SocketAddr)]) -> Together {
    let look =
        Look { scope: Scope { namespace: Some("shop".to_owned()), workload: None }, window_s: 10, ..Look::default() };
    let watch = control.streams.golden.look(look, Instant::now(), observe::unix_ms()).unwrap();
    let others: Vec<Replica> =
        others.iter().map(|(name, address)| Replica { name: (*name).to_owned(), address: *address }).collect();
    let identity = control.streams.subscriptions.config().control_identity();
    let peers = Peers::new(identity, control.client.clone(), move || others.clone());
    let path = "/v1/peer/apis/observe.meshctl.dev/v1alpha1/namespaces/shop/workloads/all/golden?window=10&pods=false";
    Together::new(watch, peers, path.to_owned())
}

/// Two replicas of one cluster, `web-1` at the first and `web-2` at the second.
async fn pair() -> (Control, Control) {
    let first = Control::start().await;
    let second = first.beside().await;
    for control in [&first, &second] {
        control.put_pod("web-2", "10.244.0.6");
        control.streams.subscriptions.set_synced();
    }
    (first, second)
}

#[tokio::test]
async fn each_request_is_counted_once_wherever_its_proxy_is_connected() {
    let (first, second) = pair().await;
    let (mut here, mut there) = (connected(&first, "web-1").await, connected(&second, "web-2").await);
    let mut together = ask(&first, &[("mesh-control-b", second.address)]);
    assert!(!asked(&mut here).await && !asked(&mut there).await, "at first all of the window is wanted");
    let at_ms = observe::unix_ms() / 1000 * 1000;
    here.say(ProxyMessage::Golden { frame: counted(at_ms, 3), backfill: true }).await;
    there.say(ProxyMessage::Golden { frame: counted(at_ms, 40), backfill: true }).await;
    let frame = next(&mut together, &first).await;
    assert_eq!((requests(&frame), frame.unreachable.len()), ((43, 43), 0), "{frame:?}");
    let status = frame.workloads.iter().find(|status| status.workload.name == "web").unwrap();
    assert_eq!((status.pods, status.meshed_pods, status.connected), (2, 2, 2));

    // The second replica ends; it is named, and its proxy comes to us with what it told nobody.
    second.streams.stop.cancel();
    let frame = until(&mut together, &first, |frame| !frame.unreachable.is_empty()).await;
    assert_eq!(frame.unreachable[0].replica, "mesh-control-b");
    drop(there);
    let mut there = connected(&first, "web-2").await;
    assert!(asked(&mut there).await, "what was told by way of the other replica is not told again");
    there.say(ProxyMessage::Golden { frame: counted(at_ms + 1000, 5), backfill: true }).await;
    let frame = until(&mut together, &first, |frame| requests(frame).0 > 0).await;
    assert_eq!((requests(&frame), frame.unreachable.len()), ((5, 5), 1));
}

#[tokio::test]
async fn a_replica_that_was_never_there_is_named_and_the_others_are_shown() {
    let (first, _) = pair().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut here = connected(&first, "web-1").await;
    let mut together = ask(&first, &[("mesh-control-c", nobody)]);
    asked(&mut here).await;
    here.say(ProxyMessage::Golden { frame: counted(observe::unix_ms(), 3), backfill: true }).await;
    let frame = next(&mut together, &first).await;
    assert_eq!(requests(&frame).0, 3);
    assert!(frame.unreachable[0].why.contains(&format!("cannot connect to {nobody}")), "{:?}", frame.unreachable);
}

#[tokio::test]
async fn only_replicas_may_ask_and_only_replicas_are_believed() {
    let (first, second) = pair().await;
    // A proxy's certificate is none of control's.
    let path = format!("{PEER_PATH}/apis/observe.meshctl.dev/v1alpha1/workloads/all/golden");
    let refused = second.get(Some(&web()), &path).await;
    assert_eq!(refused, StatusCode::FORBIDDEN);
    assert_eq!(second.get(None, &path).await, StatusCode::FORBIDDEN);
    // Whoever answers has to be control.
    let stranger = Peers::new(web(), first.client.clone(), Vec::new);
    let replica = Replica { name: "b".to_owned(), address: second.address };
    let error = stranger.receive(&replica, &path, &Mail::default()).await.unwrap_err();
    assert!(format!("{error:#}").contains("is not spiffe://cluster.local/ns/shop/sa/web"), "{error:#}");
    // Another mesh's replicas are none of ours.
    let other = Control::start().await;
    let replica = Replica { name: "c".to_owned(), address: other.address };
    let identity = first.streams.subscriptions.config().control_identity();
    let ours = Peers::new(identity, first.client.clone(), Vec::new);
    let error = ours.receive(&replica, &path, &Mail::default()).await.unwrap_err();
    assert!(format!("{error:#}").contains("handshake"), "{error:#}");
}

#[test]
fn the_service_names_the_replicas() {
    use crate::world::view::{PodView, SliceView};
    use serde_json::json;
    let mut world = World::default();
    let slice = json!({"metadata": {"namespace": "mesh-system", "name": "mesh-control-1",
            "labels": {"kubernetes.io/service-name": CONTROL_NAME}}, "addressType": "IPv4",
        "ports": [{"name": "https", "port": 8443}, {"name": "proxy-api", "port": 8086}],
        "endpoints": [{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2"]},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}}]});
    let slice: k8s_openapi::api::discovery::v1::EndpointSlice = serde_json::from_value(slice).unwrap();
    world.apply(Name::of(&slice.metadata), SliceView::from(&slice));
    for (name, ip) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let pod = json!({"metadata": {"namespace": "mesh-system", "name": name}, "spec": {"containers": []},
            "status": {"phase": "Running", "podIP": ip}});
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod).unwrap();
        world.apply(Name::of(&pod.metadata), PodView::from(&pod));
    }
    let named: Vec<_> = replicas(&world, "mesh-system", "a").into_iter().map(|r| (r.name, r.address)).collect();
    assert_eq!(named, [("b".to_owned(), "10.0.0.2:8086".parse().unwrap())]);
    assert_eq!(replicas(&world, "elsewhere", "a"), []);
}

#[test]
fn frames_that_pile_up_are_added_and_a_late_one_shows_what_is_open() {
    let mail = Mail::default();
    let key = counted(1, 1).series.remove(0);
    let frame = |requests: u64, open: u64| {
        let series = Series { requests, tcp_open: open, ..Series::default() };
        let row = mesh_api::golden::WorkloadSeries {
            workload: mesh_api::WorkloadRef::new("shop", "deployment", "web"),
            pod: None,
            key: key.0.clone(),
            series,
        };
        GoldenFrame { span_ms: 1000, series: vec![row], ..GoldenFrame::default() }
    };
    (1..=6).for_each(|n| mail.put(frame(n, n)));
    let (mut sum, mut spans) = (0, 0);
    while let (Some(frame), _) = mail.take() {
        if frame.span_ms == 0 {
            assert_eq!((frame.series[0].series.requests, frame.series[0].series.tcp_open), (0, 6));
            break;
        }
        sum += frame.series[0].series.requests;
        spans += frame.span_ms;
    }
    assert_eq!((sum, spans), (21, 6000));
    mail.fail("gone".to_owned());
    assert_eq!(mail.take(), (None, Some("gone".to_owned())));
}

#[tokio::test]
async fn replicas_tell_each_other_what_proxies_could_not_use_and_what_they_tap() {
    use crate::rejections::Subject;
    use crate::tap::Wish;
    use crate::tap::target::Target;
    use mesh_api::tap::{TapLeftOut, TapMessage};
    let (first, second) = pair().await;
    second.streams.subscriptions.reject(Subject::Inbound, &Name::new("shop", "web-2"), "too many rules".to_owned());
    let replica = Replica { name: "mesh-control-b".to_owned(), address: second.address };
    let identity = first.streams.subscriptions.config().control_identity();
    let peers = Peers::new(identity, first.client.clone(), move || vec![replica.clone()]);
    let sum = first.streams.subscriptions.rejections().with(peers.rejections().await);
    assert_eq!(sum.of_pods(&Subject::Inbound, |_| true).unwrap().reason, "too many rules");

    let mut there = connected(&second, "web-2").await;
    let wish = Wish {
        target: Target { namespace: Some("shop".to_owned()), ..Target::default() },
        filter: Default::default(),
        max_rps: 100,
        sample: 1.0,
        headers: false,
        bodies: false,
        secrets: false,
        duration: Some(std::time::Duration::from_millis(300)),
    };
    let watch = first.streams.taps.watch(wish, Instant::now()).unwrap();
    let path = "/v1/peer/apis/observe.meshctl.dev/v1alpha1/namespaces/shop/workloads/all/tap?for=0.3";
    let mut watch = watch.with(peers, path.to_owned());
    let proxy = tokio::spawn(async move {
        loop {
            match there.hear().await {
                ControlMessage::Tap { order } => {
                    let left_out = TapLeftOut { sampled: 3, ..TapLeftOut::default() };
                    there.say(ProxyMessage::Tap { id: order.id, events: Vec::new(), left_out }).await;
                }
                ControlMessage::StopTap { id } => {
                    return there.say(ProxyMessage::TapEnded { id, refusal: None }).await;
                }
                _ => {}
            }
        }
    });
    let mut last = None;
    while let Some(messages) = watch.next(&first.streams.subscriptions).await {
        for message in messages {
            if let TapMessage::Status(status) = message {
                last = Some(status);
            }
        }
    }
    let last = last.unwrap();
    assert_eq!((last.left_out.sampled, last.refusals, last.last), (3, vec![], true));
    proxy.await.unwrap();
}
