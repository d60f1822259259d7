//! What is counted, under which limits, and what is forgotten when.

use super::*;

fn subject(route: &str) -> Subject {
    Subject { carried: Carried::Http, tls: TlsStatus::Mutual, route: Arc::from(route), method: "GET" }
}

fn tcp() -> Subject {
    Subject { carried: Carried::Tcp, tls: TlsStatus::Plain, route: Arc::from(""), method: "" }
}

fn finished(status: u16) -> Finished {
    Finished {
        status: Some(status),
        grpc_status: None,
        error: None,
        complete: true,
        attempts: 1,
        last_attempt: Duration::from_millis(5),
        latency: Duration::from_millis(5),
        first_byte: Some(Duration::from_millis(4)),
    }
}

fn scope(golden: &Golden, name: &str) -> Arc<Scope> {
    golden.scope(Direction::Outbound, &WorkloadRef::new("shop", "deployment", name), None, 80)
}

#[test]
fn a_frame_holds_what_changed_and_the_ring_sums_up() {
    let golden = Golden::new(0);
    let web = scope(&golden, "web");
    golden.cell(&web, subject("/a")).finish(&finished(200));
    golden.cell(&web, subject("/a")).finish(&finished(500));
    let frame = golden.tick(1000, true);
    assert_eq!((frame.span_ms, frame.series.len()), (1000, 1));
    let (key, series) = &frame.series[0];
    assert_eq!((key.route.as_str(), series.requests, series.successes), ("/a", 2, 1));
    assert_eq!(series.latency.count(), 2);
    assert!(golden.tick(2000, true).series.is_empty());
    golden.cell(&web, subject("/a")).finish(&finished(200));
    let sum = golden.backfill(10, 0, 0).0;
    assert_eq!(
        (sum.at_ms, sum.span_ms, sum.series[0].1.requests),
        (2000, 2000, 2),
        "the third has no whole second yet"
    );
    golden.tick(3000, false);
    let (last, all) = (golden.backfill(1, 0, 0).0, golden.backfill(3, 0, 0).0);
    assert_eq!((last.span_ms, last.series[0].1.requests), (1000, 1));
    assert_eq!((all.span_ms, all.series[0].1.requests), (3000, 3));
    let (first, later) = golden.backfill(60, 0, 1000);
    assert_eq!((first.at_ms, first.span_ms, first.series[0].1.requests), (1000, 1000, 2));
    let later: Vec<_> = later.iter().map(|frame| (frame.at_ms, frame.series.len())).collect();
    assert_eq!(later, [(2000, 0), (3000, 1)], "what ended later follows second by second");
}

#[test]
fn attempts_count_where_they_went() {
    let golden = Golden::new(0);
    let (a, b) = (scope(&golden, "a"), scope(&golden, "b"));
    golden.cell(&a, subject("/")).attempt_failed(Duration::from_millis(3));
    golden.cell(&b, subject("/")).finish(&Finished { attempts: 2, ..finished(200) });
    golden.cell(&b, subject("/")).finish(&Finished { attempts: 0, ..finished(503) });
    golden.cell(&b, subject("/")).finish(&finished(200));
    let mut series: Vec<_> = golden.tick(1000, true).series;
    series.sort_by(|x, y| x.0.cmp(&y.0));
    let (a, b) = (&series[0].1, &series[1].1);
    assert_eq!((a.requests, a.actual().attempts, a.actual().successes), (0, 1, 0));
    assert_eq!((b.requests, b.successes, b.retries), (3, 2, 1));
    assert_eq!((b.actual().attempts, b.actual().successes), (2, 2));
    assert_eq!(b.actual().latency.count(), 2);
}

#[test]
fn a_series_without_traffic_for_ten_minutes_is_dropped() {
    let golden = Golden::new(0);
    golden.cell(&scope(&golden, "web"), subject("/a")).finish(&finished(200));
    let connection = golden.cell(&scope(&golden, "db"), tcp());
    connection.tcp_opened();
    golden.tick(1000, false);
    golden.tick(1000 + limits::SERIES_IDLE_MS - 1, false);
    assert_eq!(golden.sizes().0, 2);
    golden.tick(1000 + limits::SERIES_IDLE_MS, false);
    assert_eq!(golden.sizes().0, 1, "an open connection keeps its series");
    connection.tcp_closed(Ending::ByServer, None, Duration::from_secs(700));
    let closed = golden.tick(2000 + limits::SERIES_IDLE_MS, true);
    let (_, series) = &closed.series[0];
    assert_eq!((series.tcp_closes[&Ending::ByServer], series.tcp_open), (1, 0));
    assert!(series.tcp_duration.quantile_ms(0.5).is_some_and(|ms| (686_000.0..714_000.0).contains(&ms)));
    golden.tick(2000 + 2 * limits::SERIES_IDLE_MS, false);
    assert_eq!(golden.sizes().0, 0);
}

#[test]
fn open_connections_show_in_every_frame() {
    let golden = Golden::new(0);
    let cell = golden.cell(&scope(&golden, "db"), tcp());
    cell.tcp_opened();
    cell.tcp_bytes(10, 20);
    assert_eq!(golden.tick(1000, true).series[0].1.tcp_open, 1);
    let quiet = golden.tick(2000, true);
    assert_eq!((quiet.series[0].1.tcp_open, quiet.series[0].1.tcp_read_bytes), (1, 0));
    let sum = golden.backfill(60, 0, 0).0;
    assert_eq!((sum.series[0].1.tcp_write_bytes, sum.series[0].1.tcp_open), (20, 1));
    cell.tcp_closed(Ending::Orderly, None, Duration::from_secs(2));
    assert_eq!(golden.tick(3000, true).series[0].1.tcp_open, 0);
    assert!(golden.tick(4000, true).series.is_empty());
}

#[test]
fn probes_are_counted_but_not_shown_as_traffic() {
    let golden = Golden::new(0);
    golden.cell(&scope(&golden, "web"), subject(crate::learned::PROBE)).finish(&finished(200));
    assert!(golden.tick(1000, true).series.is_empty() && golden.backfill(60, 0, 0).0.series.is_empty());
    let mut seen = 0;
    golden.each(|_, totals| seen += totals.latency.count());
    assert_eq!(seen, 1);
}

#[test]
fn past_the_limits_nothing_is_lost() {
    let golden = Golden::new(0);
    let n = limits::MAX_SERIES + 50;
    let web = scope(&golden, "web");
    for i in 0..n {
        golden.cell(&web, subject(&format!("/{i}"))).finish(&finished(200));
    }
    let frame = golden.tick(1000, true);
    assert_eq!(frame.series.iter().map(|(_, s)| s.requests).sum::<u64>(), n as u64);
    let other = frame.series.iter().find(|(k, _)| k.peer.kind == "other").unwrap();
    assert_eq!(other.1.requests, 50);
    let scopes: Vec<_> = (0..limits::MAX_SCOPES + 50).map(|i| scope(&golden, &i.to_string())).collect();
    assert!(Arc::ptr_eq(&scopes[limits::MAX_SCOPES + 1], &scopes[limits::MAX_SCOPES + 2]));
}
