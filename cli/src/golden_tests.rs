//! Frames of an imagined shop, for the tests of every screen, and the tests of the model itself.

use super::*;
use mesh_api::golden::PodStatus;
use mesh_api::{Histogram, ServiceRef, SpiffeId};
use proptest::prelude::*;

/// A histogram of `count` latencies that rise evenly from `low` to `high` milliseconds.
pub(crate) fn latencies(count: u64, low: f64, high: f64) -> Histogram {
    let mut histogram = Histogram::default();
    for i in 0..count {
        let share = if count > 1 { i as f64 / (count - 1) as f64 } else { 0.0 };
        histogram.record_us(((low + share * (high - low)) * 1000.0) as u64);
    }
    histogram
}

/// One side's view of a leg of traffic.
pub(crate) struct Leg {
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) carried: Carried,
    pub(crate) method: &'static str,
    pub(crate) route: &'static str,
    pub(crate) rps: u64,
    pub(crate) failing: u64,
    pub(crate) latency_ms: (f64, f64),
    pub(crate) tls: TlsStatus,
}

/// What the shop of the demo does in a second.
pub(crate) const SHOP: &[Leg] = &[
    leg("load", "web", Carried::Http, "GET", "/", 20, 0, (4.0, 12.0)),
    leg("load", "web", Carried::Http, "POST", "/orders", 5, 0, (9.0, 40.0)),
    leg("web", "catalog", Carried::Http, "GET", "/products/{id}", 40, 0, (0.6, 2.4)),
    leg("web", "catalog", Carried::Http, "GET", "/products/{id}/reviews", 30, 1, (90.0, 240.0)),
    leg("web", "cart", Carried::Grpc, "", "/shop.Cart/Add", 10, 0, (0.4, 1.1)),
    leg("web", "ledger", Carried::Tcp, "", "", 0, 0, (0.0, 0.0)),
];

#[allow(clippy::too_many_arguments)]
const fn leg(
    from: &'static str,
    to: &'static str,
    carried: Carried,
    method: &'static str,
    route: &'static str,
    rps: u64,
    failing: u64,
    latency_ms: (f64, f64),
) -> Leg {
    Leg { from, to, carried, method, route, rps, failing, latency_ms, tls: TlsStatus::Mutual }
}

fn deployment(name: &str) -> WorkloadRef {
    WorkloadRef::new("shop", "deployment", name)
}

/// A frame of `span_ms` in which these legs saw their traffic, from both sides.
pub(crate) fn frame(legs: &[Leg], at_ms: u64, span_ms: u64) -> GoldenFrame {
    let names: BTreeSet<_> = legs.iter().flat_map(|leg| [leg.from, leg.to]).collect();
    let workloads = names.iter().map(|name| WorkloadStatus {
        workload: deployment(name),
        pods: 1,
        meshed_pods: 1,
        connected: 1,
        services: if *name == "load" { vec![] } else { vec![(*name).to_owned()] },
        identities: vec![SpiffeId::new("cluster.local", "shop", name)],
        pod_list: vec![PodStatus { name: format!("{name}-1"), meshed: true }],
    });
    let series = legs.iter().flat_map(|leg| {
        let seconds = span_ms / 1000;
        let requests = leg.rps * seconds;
        let tcp = u64::from(leg.carried == Carried::Tcp);
        let series = Series {
            requests,
            successes: requests - leg.failing * seconds,
            latency: latencies(requests, leg.latency_ms.0, leg.latency_ms.1),
            tcp_open: 3 * tcp,
            tcp_read_bytes: 1200 * tcp * seconds,
            tcp_write_bytes: 340 * tcp * seconds,
            ..Series::default()
        };
        let key = |direction, peer, service| SeriesKey {
            direction,
            carried: leg.carried,
            peer: deployment(peer),
            service,
            port: 80,
            route: leg.route.to_owned(),
            method: leg.method.to_owned(),
            tls: leg.tls,
        };
        let service = ServiceRef { namespace: "shop".into(), name: leg.to.into(), port: 80 };
        let seen =
            |workload, key| WorkloadSeries { workload: deployment(workload), pod: None, key, series: series.clone() };
        [
            seen(leg.to, key(Direction::Inbound, leg.from, None)),
            seen(leg.from, key(Direction::Outbound, leg.to, Some(service))),
        ]
    });
    GoldenFrame { at_ms, span_ms, workloads: workloads.collect(), series: series.collect(), ..GoldenFrame::default() }
}

/// Ten seconds of the shop.
pub(crate) fn shop() -> VecDeque<GoldenFrame> {
    (1..=10).map(|second| frame(SHOP, second * 1000, 1000)).collect()
}

fn routes() -> Query {
    Query { routes: true, ..Query::default() }
}

#[test]
fn a_window_keeps_what_covers_its_span() {
    let mut window = Window::new(Duration::from_secs(3));
    window.push(frame(SHOP, 0, 10_000));
    assert_eq!(window.covered_ms(), 10_000);
    for second in 1..=2 {
        window.push(frame(SHOP, second * 1000, 1000));
    }
    assert_eq!(window.covered_ms(), 12_000, "the long first frame is still needed");
    window.push(frame(SHOP, 3000, 1000));
    assert_eq!(window.covered_ms(), 3000);
    window.push(frame(SHOP, 4000, 1000));
    assert_eq!(window.covered_ms(), 3000);
}

#[test]
fn workload_rows_count_what_arrived() {
    let rows = rows(&shop(), &Query::default());
    let names: Vec<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["cart", "catalog", "ledger", "load", "web"]);
    let catalog = &rows[1];
    assert_eq!((catalog.rps, catalog.requests, catalog.mtls_rate), (70.0, 700, Some(1.0)));
    assert_eq!(catalog.success_rate, Some(0.985714));
    assert!(catalog.latency_p50_ms <= catalog.latency_p95_ms && catalog.latency_p95_ms <= catalog.latency_p99_ms);
    let ledger = &rows[2];
    assert_eq!((ledger.rps, ledger.success_rate, ledger.latency_p99_ms), (0.0, None, None));
    assert_eq!((ledger.tcp_open_connections, ledger.tcp_read_bytes_rate, ledger.mtls_rate), (3, 1200.0, Some(1.0)));
    let load = &rows[3];
    assert_eq!((load.requests, load.mtls_rate, load.meshed_pods), (0, None, 1));
}

#[test]
fn a_tcp_level_is_that_of_the_last_frame() {
    let mut frames = shop();
    for entry in frames.back_mut().into_iter().flat_map(|frame| &mut frame.series) {
        entry.series.tcp_open /= 3;
        entry.series.tcp_closed = 2 * entry.series.tcp_open;
    }
    let rows = rows(&frames, &Query::default());
    assert_eq!((rows[2].tcp_open_connections, rows[2].connections), (1, 3));
}

#[test]
fn routes_name_the_service_that_was_called() {
    let rows = rows(&shop(), &routes());
    let list: Vec<_> = rows
        .iter()
        .map(|row| {
            let route = row.route.as_ref().unwrap();
            format!("{} {} {} {:?}", row.name, route.method, route.route, route.service)
        })
        .collect();
    insta::assert_debug_snapshot!(list, @r#"
    [
        "cart  /shop.Cart/Add Some(\"cart\")",
        "catalog GET /products/{id} Some(\"catalog\")",
        "catalog GET /products/{id}/reviews Some(\"catalog\")",
        "web GET / Some(\"web\")",
        "web POST /orders Some(\"web\")",
    ]
    "#);
}

#[test]
fn json_keys_are_stable() {
    let rows = [&rows(&shop(), &Query::default())[2..3], &rows(&shop(), &routes())[2..3]].concat();
    insta::assert_snapshot!(serde_json::to_string_pretty(&rows).unwrap(), @r#"
    [
      {
        "namespace": "shop",
        "kind": "deployment",
        "name": "ledger",
        "meshed_pods": 1,
        "pods": 1,
        "rps": 0.0,
        "success_rate": null,
        "latency_p50_ms": null,
        "latency_p95_ms": null,
        "latency_p99_ms": null,
        "mtls_rate": 1.0,
        "tcp_open_connections": 3,
        "tcp_read_bytes_rate": 1200.0,
        "tcp_write_bytes_rate": 340.0
      },
      {
        "namespace": "shop",
        "kind": "deployment",
        "name": "catalog",
        "route": "/products/{id}/reviews",
        "method": "GET",
        "service": "catalog",
        "retries_rate": 0.0,
        "timeouts_rate": 0.0,
        "meshed_pods": 1,
        "pods": 1,
        "rps": 30.0,
        "success_rate": 0.966667,
        "latency_p50_ms": 159.809,
        "latency_p95_ms": 236.557,
        "latency_p99_ms": 236.557,
        "mtls_rate": 1.0,
        "tcp_open_connections": 0,
        "tcp_read_bytes_rate": 0.0,
        "tcp_write_bytes_rate": 0.0
      }
    ]
    "#);
}

#[test]
fn rows_can_be_grouped_and_narrowed() {
    let names = |of: &str, from: Option<&str>, to: Option<&str>| {
        let read = |word: &str| Resource::read_one(word).unwrap();
        let query = Query { of: read(of), from: from.map(read), to: to.map(read), ..Query::default() };
        let rows = rows(&shop(), &query);
        rows.iter().map(|row| format!("{}/{} {}", row.kind, row.name, row.rps)).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(names("deploy/web", None, None), "deployment/web 25");
    assert_eq!(names("sts", None, None), "");
    assert_eq!(names("svc/catalog", None, None), "service/catalog 70");
    assert_eq!(names("ns", None, None), "namespace/shop 105");
    assert_eq!(names("po/cart-1", None, None), "pod/cart-1 0", "a pod without traffic is a row, too");
    assert_eq!(names("deploy/catalog", Some("deploy/load"), None), "deployment/catalog 0");
    assert_eq!(names("deploy/catalog", Some("deploy/web"), None), "deployment/catalog 70");
    assert_eq!(names("deploy/web", None, Some("svc/cart")), "deployment/web 10");
    assert_eq!(names("deploy/web", None, Some("deploy/catalog")), "deployment/web 70");
    assert!(rows(&shop(), &Query { namespace: Some("other".into()), ..Query::default() }).is_empty());
}

#[test]
fn plain_text_shows() {
    let mut frames = shop();
    let arrived =
        |entry: &&mut WorkloadSeries| entry.workload.name == "web" && entry.key.direction == Direction::Inbound;
    frames.iter_mut().flat_map(|frame| &mut frame.series).filter(arrived).for_each(|entry| {
        if entry.key.method == "POST" {
            entry.key.tls = TlsStatus::Plain;
        }
    });
    assert_eq!(rows(&frames, &Query::default()).last().unwrap().mtls_rate, Some(0.8));
}

fn any_series() -> impl Strategy<Value = WorkloadSeries> {
    let key = (0..3usize, 0..3usize, 0..3u8, any::<bool>(), any::<bool>());
    (key, 0..500u64, 0..500u64, 1.0..100.0f64).prop_map(|((workload, route, carried, mutual, inbound), n, bad, ms)| {
        let names = ["web", "cart", "ledger"];
        let carried = [Carried::Http, Carried::Grpc, Carried::Tcp][usize::from(carried)];
        let tcp = carried == Carried::Tcp;
        let key = SeriesKey {
            direction: if inbound { Direction::Inbound } else { Direction::Outbound },
            carried,
            peer: deployment("load"),
            service: None,
            port: 80,
            route: if tcp { String::new() } else { ["/", "/a", "/b"][route].to_owned() },
            method: if carried == Carried::Http { "GET".to_owned() } else { String::new() },
            tls: if mutual { TlsStatus::Mutual } else { TlsStatus::Plain },
        };
        let series = if tcp {
            Series { tcp_opened: n, tcp_closed: n / 2, tcp_open: n - n / 2, tcp_read_bytes: bad, ..Series::default() }
        } else {
            Series { requests: n, successes: n - bad.min(n), latency: latencies(n, ms, ms * 2.0), ..Series::default() }
        };
        WorkloadSeries { workload: deployment(names[workload]), pod: None, key, series }
    })
}

fn any_frames() -> impl Strategy<Value = VecDeque<GoldenFrame>> {
    let frame = (500..2000u64, proptest::collection::vec(any_series(), 0..12))
        .prop_map(|(span_ms, series)| GoldenFrame { at_ms: 0, span_ms, series, ..GoldenFrame::default() });
    proptest::collection::vec(frame, 1..6).prop_map(VecDeque::from)
}

proptest! {
    #[test]
    fn rows_add_up(frames in any_frames()) {
        let all = total(&frames, &Query::default());
        let workloads = rows(&frames, &Query::default());
        let by_route = rows(&frames, &Query { tcp_routes: true, ..routes() });
        for rows in [&workloads, &by_route] {
            prop_assert_eq!(rows.iter().map(|row| row.requests).sum::<u64>(), all.requests);
            prop_assert_eq!(rows.iter().map(|row| row.connections).sum::<u64>(), all.connections);
            prop_assert_eq!(rows.iter().map(|row| row.tcp_open_connections).sum::<u64>(), all.tcp_open_connections);
            let rps = rows.iter().map(|row| row.rps).sum::<f64>();
            prop_assert!((rps - all.rps).abs() < 0.02, "{} {}", rps, all.rps);
        }
        for row in workloads.iter().chain(&by_route).chain([&all]) {
            prop_assert!(row.latency_p50_ms <= row.latency_p95_ms && row.latency_p95_ms <= row.latency_p99_ms);
            prop_assert_eq!(row.success_rate.is_none(), row.requests == 0);
            prop_assert_eq!(row.mtls_rate.is_none(), row.requests + row.connections == 0);
            for share in [row.success_rate, row.mtls_rate].into_iter().flatten() {
                prop_assert!((0.0..=1.0).contains(&share));
            }
        }
    }
}
