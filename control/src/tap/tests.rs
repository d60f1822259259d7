//! That a tap reaches whom it means, as they come and go, and that nothing that matched vanishes uncounted.

use super::*;
use crate::world::tests::{pod, service, slice};
use crate::world::view::{PodView, ServiceView, SliceView};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mesh_api::WorkloadRef;
use mesh_api::golden::{Carried, TlsStatus};
use mesh_api::tap::TapKind;
use mesh_manifests::config::MeshConfig;
use serde_json::json;

/// A world, its taps, and proxies of which only the orders are seen.
struct Setup {
    subscriptions: Arc<Subscriptions>,
    taps: Arc<Taps>,
}

struct Proxy {
    link: Link,
    todo: Arc<Todo>,
}

impl Setup {
    fn new() -> Self {
        let taps = Taps::new(Arc::new(Metrics::new()));
        let setup = Self { subscriptions: Subscriptions::new(Arc::new(MeshConfig::default())), taps };
        setup.pod("web-1", "web", "10.244.0.5");
        setup.pod("web-2", "web", "10.244.0.6");
        setup.pod("cart-1", "cart", "10.244.0.7");
        let object: Service = serde_json::from_value(service("cart", "10.96.0.7", json!([{"port": 80}]))).unwrap();
        setup.subscriptions.apply(Name::of(&object.metadata), ServiceView::from(&object));
        let endpoints = json!([{"addresses": ["10.244.0.7"]}]);
        let object: EndpointSlice = serde_json::from_value(slice("cart", json!([{"port": 80}]), endpoints)).unwrap();
        setup.subscriptions.apply(Name::of(&object.metadata), SliceView::from(&object));
        setup
    }

    fn pod(&self, name: &str, app: &str, ip: &str) {
        let object: Pod = serde_json::from_value(pod(name, app, ip, true)).unwrap();
        self.subscriptions.apply(Name::of(&object.metadata), PodView::from(&object));
    }

    fn proxy(&self, name: &str) -> Proxy {
        let todo = Arc::new(Todo::default());
        Proxy { link: self.taps.link(&Name::new("shop", name), todo.clone()), todo }
    }

    fn watch(&self, wish: Wish) -> Watch {
        self.taps.watch(wish, Instant::now()).unwrap()
    }

    async fn next(&self, watch: &mut Watch) -> Vec<TapMessage> {
        watch.next(&self.subscriptions).await.expect("the tap goes on")
    }

    /// The next line about how the tap is doing that satisfies `is`, and the number of events until then.
    async fn until(&self, watch: &mut Watch, is: impl Fn(&TapStatus) -> bool) -> (usize, TapStatus) {
        let mut events = 0;
        for _ in 0..100 {
            for message in self.next(watch).await {
                match message {
                    TapMessage::Status(status) if is(&status) => return (events, status),
                    TapMessage::Event(_) => events += 1,
                    _ => {}
                }
            }
        }
        panic!("it never comes");
    }
}

impl Proxy {
    fn orders(&self) -> Vec<(u64, Option<TapOrder>)> {
        self.todo.take().taps.into_iter().collect()
    }

    fn order(&self) -> (u64, TapOrder) {
        match &self.orders()[..] {
            [(id, Some(order))] => (*id, order.clone()),
            other => panic!("expected one order: {other:?}"),
        }
    }

    fn tell(&self, tap: u64, count: usize, left_out: TapLeftOut) {
        self.link.receive(tap, vec![event(); count], &left_out, Instant::now());
    }
}

fn event() -> TapEvent {
    let end = |last: u8| TapEnd { address: ([10, 244, 0, last], 80).into(), workload: None, pod: None, identity: None };
    TapEvent {
        at_ms: 0,
        event: TapKind::Open,
        direction: Direction::Inbound,
        carried: Carried::Tcp,
        source: end(7),
        destination: end(5),
        service: None,
        tls: TlsStatus::Plain,
        http: None,
        error: None,
        ending: None,
        duration_us: 0,
        read_bytes: 0,
        write_bytes: 0,
    }
}

fn of(kind: &str, name: &str) -> Target {
    let namespace = Some("shop".to_owned());
    Target { namespace, kind: Some(kind.to_owned()), name: Some(name.to_owned()), only: None }
}

fn wish(target: Target, filter: &str) -> Wish {
    Wish {
        target,
        filter: filter.parse().unwrap(),
        max_rps: 10,
        sample: 1.0,
        headers: false,
        bodies: false,
        secrets: false,
        duration: None,
    }
}

#[tokio::test]
async fn only_the_proxies_that_are_meant_are_asked() {
    let setup = Setup::new();
    let (web, other, cart) = (setup.proxy("web-1"), setup.proxy("web-2"), setup.proxy("cart-1"));
    let mut watch = setup.watch(wish(of("deployment", "web"), "status=5xx to=service/cart"));
    let (first, ()) = tokio::join!(setup.next(&mut watch), async {
        tokio::task::yield_now().await;
        let (id, order) = web.order();
        assert_eq!((order.filter.as_str(), order.max_rps, order.from), ("status=5xx to=service/cart", 10, None));
        assert_eq!(order.to.unwrap(), ["10.96.0.7", "10.244.0.7"].map(|ip| ip.parse::<IpAddr>().unwrap()).to_vec());
        web.tell(id, 0, TapLeftOut::default());
        other.link.ended(other.order().0, Some("too old".into()));
    });
    assert!(cart.orders().is_empty());
    let refusals = vec!["too old".to_owned()];
    let expect = TapStatus { pods: 2, meshed_pods: 2, proxies: 1, refusals, ..TapStatus::default() };
    assert_eq!(first, [TapMessage::Status(expect)]);
    drop(watch);
    assert!(matches!(web.orders()[..], [(_, None)]));
    assert!(setup.taps.inner.lock().watches.is_empty());
}

#[tokio::test]
async fn it_follows_pods_addresses_and_connections() {
    let setup = Setup::new();
    let web = setup.proxy("web-1");
    let mut watch = setup.watch(wish(of("deployment", "web"), "from=deployment/cart"));
    setup.next(&mut watch).await; // nobody answered, so it went on without
    let (id, order) = web.order();
    assert_eq!(order.from.unwrap().len(), 1);
    // A new pod of the caller: the running tap learns its address.
    setup.pod("cart-2", "cart", "10.244.0.8");
    setup.until(&mut watch, |_| true).await;
    assert_eq!(web.order().1.from.unwrap().len(), 2);
    // A new pod of the target, and a proxy that comes again.
    setup.pod("web-3", "web", "10.244.0.9");
    let (new, again) = (setup.proxy("web-3"), setup.proxy("web-1"));
    drop(web); // its place was taken: this ends nothing
    let (_, status) = setup.until(&mut watch, |status| status.pods == 3).await;
    assert_eq!(status.proxies, 0);
    for proxy in [&new, &again] {
        assert_eq!(proxy.order().0, id);
        proxy.tell(id, 1, TapLeftOut::default());
    }
    let (events, status) = setup.until(&mut watch, |status| status.shown == 2).await;
    assert_eq!((events, status.proxies), (2, 2));
    // A pod that goes is told to stop, and what it still tells counts.
    setup.subscriptions.delete::<PodView>(&Name::new("shop", "web-3"));
    setup.until(&mut watch, |status| status.pods == 2).await;
    assert!(matches!(new.orders()[..], [(_, None)]));
    new.tell(id, 1, TapLeftOut::default());
    new.link.ended(id, None);
    setup.until(&mut watch, |status| status.shown == 3).await;
}

#[tokio::test]
async fn nothing_vanishes_uncounted() {
    let setup = Setup::new();
    let (a, b) = (setup.proxy("web-1"), setup.proxy("web-2"));
    let mut watch = setup.watch(Wish { duration: Some(Duration::from_secs(3)), ..wish(of("deployment", "web"), "") });
    setup.next(&mut watch).await;
    let id = a.order().0;
    a.tell(id, 10, TapLeftOut { sampled: 1, rate_limited: 2, buffer_full: 3 });
    b.tell(id, 7, TapLeftOut { sampled: 4, ..TapLeftOut::default() });
    a.tell(id + 1, 50, TapLeftOut { sampled: 99, ..TapLeftOut::default() }); // nobody's tap
    let (events, status) = setup.until(&mut watch, |status| status.shown > 0).await;
    assert_eq!((events, status.shown), (10, 10));
    assert_eq!(status.left_out, TapLeftOut { sampled: 5, rate_limited: 9, buffer_full: 3 });
    // At its end it waits for the proxies' last words.
    let (_, (events, last)) = tokio::join!(
        async {
            for proxy in [&a, &b] {
                while !proxy.orders().contains(&(id, None)) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                proxy.tell(id, 2, TapLeftOut::default());
                proxy.link.ended(id, None);
            }
        },
        setup.until(&mut watch, |status| status.last)
    );
    assert_eq!((events, last.shown, last.left_out.total()), (4, 14, 17));
    assert_eq!(watch.next(&setup.subscriptions).await, None);
}

#[test]
fn ends_are_named_by_whom_the_cluster_knows_there() {
    let setup = Setup::new();
    let mut events = [event(), TapEvent { direction: Direction::Outbound, ..event() }];
    events[0].destination.pod = Some("an-invention".into());
    let by = Name::new("shop", "web-1");
    setup.subscriptions.read(|world| name_ends(world, &by, &mut events));
    let workload = |name: &str| Some(WorkloadRef::new("shop", "deployment", name));
    let ends = |event: &TapEvent| [event.source.clone(), event.destination.clone()].map(|end| (end.pod, end.workload));
    assert_eq!(ends(&events[0]), [(Some("cart-1".into()), workload("cart")), (Some("web-1".into()), workload("web"))]);
    assert_eq!(ends(&events[1])[0], (Some("web-1".into()), workload("web")));
}

#[test]
fn targets_are_what_pods_belong_to() {
    let setup = Setup::new();
    let check = |target: Target, expect: &[&str]| {
        let pods = setup.subscriptions.read(|world| target.pods(world));
        let names: Vec<&str> = pods.iter().map(|pod| pod.name.as_str()).collect();
        assert_eq!(names, expect, "{target:?}");
    };
    check(Target::default(), &["cart-1", "web-1", "web-2"]);
    check(Target { namespace: Some("other".into()), ..Target::default() }, &[]);
    check(of("deployment", "web"), &["web-1", "web-2"]);
    check(of("pod", "web-2"), &["web-2"]);
    check(of("service", "cart"), &["cart-1"]);
    check(of("namespace", "shop"), &["cart-1", "web-1", "web-2"]);
    check(Target { name: None, ..of("statefulset", "") }, &[]);
    check(Target { name: None, ..of("service", "") }, &["cart-1"]);
    let only = Some([WorkloadRef::new("shop", "deployment", "cart"), WorkloadRef::new("shop", "pod", "web-1")].into());
    check(Target { only, ..Target::default() }, &["cart-1", "web-1"]);
}

#[test]
fn what_is_missing_is_told_with_what_is_there() {
    let setup = Setup::new();
    let check = |target: Target, expect: Option<&str>| {
        assert_eq!(setup.subscriptions.read(|world| target.missing(world)).as_deref(), expect);
    };
    check(of("deployment", "web"), None);
    check(
        of("deployment", "frontend"),
        Some("there is no deployment/frontend with running pods in namespace shop; there are cart, web"),
    );
    check(
        of("deployment", "carts"),
        Some("there is no deployment/carts with running pods in namespace shop; did you mean cart?"),
    );
    check(of("job", "x"), Some("there is no job/x with running pods in namespace shop"));
    check(Target::default(), None);
}
