//! That nothing is lost or counted twice, whoever looks, whenever.

use super::frames::*;
use super::*;
use mesh_api::golden::{Carried, Direction, Series, SeriesKey, TlsStatus};
use proptest::prelude::*;

/// When watchers begin to look.
const UNIX_MS: u64 = 100_321;

fn key(route: &str) -> SeriesKey {
    SeriesKey {
        direction: Direction::Inbound,
        carried: Carried::Http,
        peer: WorkloadRef::new("shop", "deployment", "load"),
        service: None,
        port: 80,
        route: route.to_owned(),
        method: "GET".to_owned(),
        tls: TlsStatus::Mutual,
    }
}

pub(crate) fn frame(at_ms: u64, span_ms: u64, requests: u64) -> ProxyFrame {
    let mut series = Series { requests, ..Series::default() };
    series.latency.record_us(100 * requests);
    ProxyFrame { at_ms, span_ms, series: vec![(key("/"), series)], ..ProxyFrame::default() }
}

fn open(at_ms: u64, tcp_open: u64) -> ProxyFrame {
    let series = vec![(key(""), Series { tcp_open, ..Series::default() })];
    ProxyFrame { at_ms, span_ms: 1000, series, ..ProxyFrame::default() }
}

fn requests(frame: &ProxyFrame) -> u64 {
    frame.series.iter().map(|(_, series)| series.requests).sum()
}

#[test]
fn levels_of_one_proxy_follow_the_latest_and_add_up_over_proxies() {
    let empty = ProxyFrame { at_ms: 3000, span_ms: 1000, ..ProxyFrame::default() };
    assert_eq!(ProxyFrame::sequence([&open(1000, 3), &open(2000, 5)]).series[0].1.tcp_open, 5);
    assert_eq!(ProxyFrame::sequence([&open(1000, 3), &open(2000, 5), &empty]).series[0].1.tcp_open, 0);
    assert_eq!(levels(&open(1000, 3)).series.len(), 1);
    assert!(levels(&frame(1000, 1000, 7)).series.is_empty());
    let (a, b) = (open(1000, 3), open(1000, 4));
    let workload = WorkloadRef::new("shop", "deployment", "web");
    let parts = || [("a", &a), ("b", &b)].map(|(pod, frame)| Part { workload: workload.clone(), pod, frame });
    let rows = merge(parts().into_iter(), false);
    assert_eq!((rows.len(), rows[0].series.tcp_open, rows[0].pod.clone()), (1, 7, None));
    assert_eq!(merge(parts().into_iter(), true).len(), 2);
}

proptest! {
    #[test]
    fn merging_keeps_every_count(parts in proptest::collection::vec((0u8..3, 0u8..3, 0u64..1000), 0..30), pods: bool) {
        let frames: Vec<_> = parts.iter().map(|(workload, route, n)| {
            let mut frame = frame(1000, 1000, *n);
            frame.series[0].0.route = route.to_string();
            (*workload, frame)
        }).collect();
        let part = |(at, (workload, frame)): (usize, &(u8, ProxyFrame))| {
            (WorkloadRef::new("shop", "deployment", &workload.to_string()), at.to_string(), frame.clone())
        };
        let named: Vec<_> = frames.iter().enumerate().map(part).collect();
        let rows = |order: &mut dyn Iterator<Item = &(WorkloadRef, String, ProxyFrame)>| {
            merge(order.map(|(workload, pod, frame)| Part { workload: workload.clone(), pod, frame }), pods)
        };
        let merged = rows(&mut named.iter());
        prop_assert_eq!(&merged, &rows(&mut named.iter().rev()), "order does not matter");
        let total: u64 = merged.iter().map(|row| row.series.requests).sum();
        prop_assert_eq!(total, parts.iter().map(|(_, _, n)| n).sum::<u64>());
        let counted: u64 = merged.iter().map(|row| row.series.latency.count()).sum();
        prop_assert_eq!(counted, parts.len() as u64);
    }

    #[test]
    fn whatever_the_pace_every_frame_is_shown_once(pace in proptest::collection::vec(0usize..4, 1..40)) {
        let now = Instant::now();
        let mut feed = Feed::waiting(now);
        feed.push(Arc::new(frame(0, 10_000, 100)), now);
        let (mut sent, mut shown, mut at_ms) = (100, feed.take(true, true).map_or(0, |frame| requests(&frame)), 0);
        for arriving in pace {
            for _ in 0..arriving {
                at_ms += 1000;
                sent += at_ms;
                feed.push(Arc::new(frame(at_ms, 1000, at_ms)), now);
            }
            shown += feed.take(false, true).map_or(0, |frame| requests(&frame));
            prop_assert!(feed.queue.len() <= limits::WAITING_FRAMES);
        }
        shown += feed.take(true, false).map_or(0, |frame| requests(&frame));
        prop_assert_eq!(shown, sent);
    }
}

/// A connected proxy, as the hub sees it.
struct Proxy {
    link: Link,
    todo: Arc<Todo>,
    at_ms: u64,
}

impl Proxy {
    fn new(golden: &Arc<Golden>, pod: &str) -> Self {
        let todo = Arc::new(Todo::default());
        let link = golden.link(&Name::new("shop", pod), todo.clone(), Instant::now());
        Self { link, todo, at_ms: 100_000 }
    }

    fn orders(&self) -> Vec<ControlMessage> {
        self.todo.take().orders
    }

    /// Answers what it was asked for.
    fn answer(&self, requests_a_second: u64) {
        for order in self.orders() {
            if let ControlMessage::Observe { backfill_s, since_ms, .. } = order {
                let told = if since_ms == 0 { u64::MAX } else { (self.at_ms - since_ms) / 1000 };
                let backfill_s = u64::from(backfill_s).min(told);
                let seconds = backfill_s;
                let sum = frame(self.at_ms, seconds * 1000, seconds * requests_a_second);
                self.link.receive(sum, true, Instant::now(), UNIX_MS);
            }
        }
    }

    fn second(&mut self, requests: u64) {
        self.at_ms += 1000;
        self.link.receive(frame(self.at_ms, 1000, requests), false, Instant::now(), UNIX_MS);
    }
}

async fn next(watch: &mut Watch) -> GoldenFrame {
    let world = World::default();
    watch.next(|look| look(&world), || 7).await
}

fn counted(frame: &GoldenFrame) -> u64 {
    frame.series.iter().map(|row| row.series.requests).sum()
}

fn all() -> Scope {
    Scope { namespace: Some("shop".to_owned()), workload: None }
}

#[tokio::test]
async fn proxies_are_asked_only_while_somebody_looks() {
    let golden = Golden::new(Arc::new(Metrics::new()), "cluster.local");
    let mut web = Proxy::new(&golden, "web");
    assert_eq!(web.orders(), []);
    web.second(5);
    let watch = golden.watch(all(), 10, false, Instant::now(), UNIX_MS);
    let observe = |backfill_s| ControlMessage::Observe { backfill_s, since_ms: 0, until_ms: 100_000, untold: false };
    assert_eq!(web.orders(), [observe(10)]);
    let second = golden.watch(Scope::default(), 30, false, Instant::now(), UNIX_MS);
    assert_eq!(web.orders(), [observe(30)], "each asks for its own past");
    drop(watch);
    assert_eq!(web.orders(), []);
    drop(second);
    assert_eq!(web.orders(), [ControlMessage::StopObserve {}]);
    let elsewhere = Scope { namespace: Some("other".to_owned()), workload: None };
    let _watch = golden.watch(elsewhere, 10, false, Instant::now(), UNIX_MS);
    assert_eq!(web.orders(), []);
}

#[tokio::test]
async fn several_watchers_see_each_request_once() {
    let golden = Golden::new(Arc::new(Metrics::new()), "cluster.local");
    let (mut web, mut cart) = (Proxy::new(&golden, "web"), Proxy::new(&golden, "cart"));
    let mut early = golden.watch(all(), 10, false, Instant::now(), UNIX_MS).unwrap();
    web.answer(1);
    cart.answer(2);
    let first = next(&mut early).await;
    assert_eq!((counted(&first), first.span_ms, first.silent_proxies), (30, 10_000, 0));
    let mut late = golden.watch(all(), 60, true, Instant::now(), UNIX_MS).unwrap();
    // A second that ends before the past is told belongs to that past for the late one only.
    web.second(100);
    cart.second(200);
    web.answer(3);
    cart.answer(4);
    web.link.receive(frame(web.at_ms, 1000, 100), false, Instant::now(), UNIX_MS);
    let first = next(&mut late).await;
    assert_eq!((counted(&first), first.span_ms, first.series.len()), (180 + 240, 60_000, 2));
    assert_eq!(first.series[0].workload, WorkloadRef::new("shop", "pod", "cart"), "a pod the world does not know yet");
    web.second(1000);
    let (early_next, late_next) = tokio::join!(next(&mut early), next(&mut late));
    assert_eq!(counted(&late_next), 1000);
    assert_eq!(counted(&early_next) + counted(&next(&mut early).await), 300 + 1000);
}

#[tokio::test]
async fn one_that_was_away_tells_what_it_counted_meanwhile() {
    let golden = Golden::new(Arc::new(Metrics::new()), "cluster.local");
    let web = Proxy::new(&golden, "web");
    let mut watch = golden.watch(all(), 10, false, Instant::now(), UNIX_MS).unwrap();
    web.answer(1);
    assert_eq!(counted(&next(&mut watch).await), 10);
    let at_ms = web.at_ms;
    drop(web);
    let mut back = Proxy::new(&golden, "web");
    back.at_ms = at_ms + 7000;
    back.answer(1);
    back.second(5);
    assert_eq!(counted(&next(&mut watch).await) + counted(&next(&mut watch).await), 7 + 5);
}

#[tokio::test]
async fn one_that_ended_is_part_of_later_windows_and_counted_once_in_earlier_ones() {
    let golden = Golden::new(Arc::new(Metrics::new()), "cluster.local");
    let mut web = Proxy::new(&golden, "web");
    let mut early = golden.watch(all(), 10, false, Instant::now(), UNIX_MS).unwrap();
    web.answer(1);
    assert_eq!(counted(&next(&mut early).await), 10);
    web.second(3);
    let workload = WorkloadRef::new("shop", "deployment", "web");
    let past = (90..=101).map(|s| frame(s * 1000, 1000, 1)).collect();
    web.link.farewell(workload.clone(), past, Instant::now(), UNIX_MS + 1200);
    drop(web);
    let mut late = golden.watch(all(), 10, false, Instant::now(), UNIX_MS).unwrap();
    let first = next(&mut late).await;
    assert_eq!((counted(&first), first.span_ms, first.silent_proxies), (10, 10_000, 0));
    assert_eq!((first.series.len(), &first.series[0].workload), (1, &workload));
    assert_eq!(counted(&next(&mut late).await), 0);
    assert_eq!(counted(&next(&mut early).await), 3);
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_is_called_silent() {
    let golden = Golden::new(Arc::new(Metrics::new()), "cluster.local");
    let (web, _cart) = (Proxy::new(&golden, "web"), Proxy::new(&golden, "cart"));
    let mut watch = golden.watch(all(), 10, false, Instant::now(), UNIX_MS).unwrap();
    web.answer(1);
    let first = next(&mut watch).await;
    assert_eq!((counted(&first), first.silent_proxies), (10, 1));
    // One that comes later is asked for what it counted before it reached us, and not for all its past.
    let mut late = Proxy::new(&golden, "late");
    late.answer(1);
    late.second(50);
    assert_eq!(counted(&next(&mut watch).await) + counted(&next(&mut watch).await), 5 + 50);
}

#[tokio::test]
async fn nonsense_is_left_out_counted_and_named() {
    let metrics = Arc::new(Metrics::new());
    let golden = Golden::new(metrics.clone(), "cluster.local");
    let (mut web, mut liar) = (Proxy::new(&golden, "web"), Proxy::new(&golden, "liar"));
    let mut watch = golden.watch(all(), 10, false, Instant::now(), UNIX_MS).unwrap();
    let mut elsewhere =
        golden.watch(Scope { namespace: Some("other".to_owned()), workload: None }, 10, false, Instant::now(), UNIX_MS);
    web.answer(1);
    // The sum it was asked for is nonsense: nobody waits for another one.
    liar.link.receive(frame(u64::MAX, 1000, 9), true, Instant::now(), UNIX_MS);
    let first = next(&mut watch).await;
    assert_eq!((counted(&first), first.silent_proxies), (10, 0));
    web.second(5);
    liar.at_ms = u64::MAX - 5000;
    liar.second(7);
    liar.at_ms = 0;
    liar.second(1_000); // runs backwards
    liar.at_ms = 110_000;
    liar.second(u64::MAX / 1000);
    liar.link.babbles(Instant::now());
    let second = next(&mut watch).await;
    assert_eq!(counted(&second), 5);
    let [named] = &second.senseless[..] else { panic!("{:?}", second.senseless) };
    assert_eq!((named.namespace.as_str(), named.pod.as_str(), named.frames), ("shop", "liar", 5));
    assert_eq!(next(elsewhere.as_mut().unwrap()).await.senseless, [], "another namespace is nobody's business");
    let text = metrics.render().unwrap();
    for (why, count) in [("future", 2), ("order", 1), ("counts", 1), ("message", 1)] {
        let line = format!("mesh_control_golden_frames_left_out_total{{outcome=\"{why}\"}} {count}");
        assert!(text.contains(&line), "no {line}:\n{text}");
    }
    // What it sends after that and makes sense is taken again.
    liar.at_ms = 110_000;
    liar.second(3);
    assert_eq!(counted(&next(&mut watch).await), 3);
}
