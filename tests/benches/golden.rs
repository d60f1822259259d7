//! `cargo bench -p mesh-tests --bench golden`: what counting every request costs, as the table in the README.
//!
//! What tapping costs a proxy; memory of its series; CPU and memory of a control plane whose thousand proxies are watched by three people
//! (frames come as the JSON they travel in, and leave as such; only the sockets are left out); and a thousand routes on
//! the way to a screen. Nothing here passes or fails.

#[path = "golden/taps.rs"]
mod taps;

use anyhow::{Context, Result};
use mesh_api::golden::{
    Carried, Direction, GoldenFrame, ProxyFrame, Series, SeriesKey, TlsStatus, WorkloadSeries, WorkloadStatus,
};
use mesh_api::wire::{ControlMessage, ProxyMessage};
use mesh_api::{Histogram, WorkloadRef};
use mesh_control::golden::{Golden, Link, Scope};
use mesh_control::subscriptions::{Subscriptions, Todo};
use mesh_control::world::view::{Name, PodView};
use mesh_proxy::golden::{Finished, Golden as ProxyGolden, Subject};
use serde_json::json;
use std::collections::VecDeque;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const PROXIES: usize = 1000;
const WATCHERS: usize = 3;
/// Series that change in every second of every proxy, and requests in each.
const SERIES: u16 = 10;
const REQUESTS: u64 = 20;
const SECONDS: u64 = 15;

fn main() -> ExitCode {
    // `cargo test --benches` and the like only want to know that it builds.
    if std::env::args().any(|argument| argument == "--test") {
        return ExitCode::SUCCESS;
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:?}");
            ExitCode::from(2)
        }
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

fn measure() -> Result<()> {
    say("| what | |\n|---|---|");
    proxy_memory()?;
    taps::measure()?;
    thousand_routes()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(control())
}

/// Resident memory, MiB.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<f64>()? / 1024.0)
}

/// CPU time this process has used.
fn cpu() -> Result<Duration> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let time = |value: nix::sys::time::TimeVal| {
        Duration::new(u64::try_from(value.tv_sec()).unwrap_or(0), u32::try_from(value.tv_usec()).unwrap_or(0) * 1000)
    };
    Ok(time(usage.user_time()) + time(usage.system_time()))
}

/// Latencies of a service that mostly takes a few milliseconds, the same in every run.
fn latency(n: u64) -> Duration {
    let spread = n.wrapping_mul(2_654_435_761) % 1000;
    Duration::from_micros(2000 + spread * spread / 50)
}

fn proxy_memory() -> Result<()> {
    let before = resident()?;
    let golden = ProxyGolden::new(0);
    let peer = WorkloadRef::new("shop", "deployment", "catalog");
    let scope = golden.scope(Direction::Outbound, &peer, None, 80);
    let mut cells = Vec::new();
    for n in 0..1000 {
        let route = Arc::from(format!("/route/number/{n}"));
        let subject = Subject { carried: Carried::Http, tls: TlsStatus::Mutual, route, method: "GET" };
        cells.push(golden.cell(&scope, subject));
    }
    let second = |at_s: u64| {
        for (n, cell) in (0u64..).zip(&cells) {
            for request in 0..10 {
                let latency = latency(n * 7919 + at_s * 31 + request);
                cell.finish(&Finished {
                    status: Some(200),
                    grpc_status: None,
                    error: None,
                    complete: true,
                    attempts: 1,
                    last_attempt: latency,
                    latency,
                    first_byte: Some(latency),
                });
            }
        }
        golden.tick(at_s * 1000, false)
    };
    second(1);
    let once = resident()? - before;
    (2..=700).for_each(|at_s| drop(second(at_s)));
    let (series, remembered) = golden.sizes();
    let full = resident()? - before;
    say(&format!("| memory of 1,000 series, called in one second | {once:.1} MiB |"));
    say(&format!(
        "| memory of {series} series, 10 requests a second each for ten minutes ({remembered} remembered) | {full:.1} MiB |"
    ));
    Ok(())
}

fn key(route: u16) -> SeriesKey {
    SeriesKey {
        direction: Direction::Inbound,
        carried: Carried::Http,
        peer: WorkloadRef::new("shop", "serviceaccount", "web"),
        service: None,
        port: 8080,
        route: format!("/products/{{id}}/part-{route}"),
        method: "GET".to_owned(),
        tls: TlsStatus::Mutual,
    }
}

fn series(seed: u64) -> Series {
    let mut histogram = Histogram::default();
    (0..REQUESTS).for_each(|n| histogram.record_us(latency(seed * 31 + n).as_micros() as u64));
    Series {
        requests: REQUESTS,
        successes: REQUESTS,
        statuses: [(200, REQUESTS)].into(),
        latency: histogram.clone(),
        first_byte: histogram,
        ..Series::default()
    }
}

fn proxy_frame(proxy: usize, at_ms: u64) -> ProxyFrame {
    let series = (0..SERIES).map(|route| (key(route), series(proxy as u64 * 17 + u64::from(route)))).collect();
    ProxyFrame { at_ms, span_ms: 1000, series, ..ProxyFrame::default() }
}

fn thousand_routes() -> Result<()> {
    let workload = |n: u16| WorkloadRef::new("shop", "deployment", &format!("app-{n}"));
    let frame = |at_ms: u64| GoldenFrame {
        at_ms,
        span_ms: 1000,
        workloads: (0..50)
            .map(|n| WorkloadStatus {
                workload: workload(n),
                pods: 2,
                meshed_pods: 2,
                connected: 2,
                services: vec![format!("app-{n}")],
                identities: vec![],
                pod_list: vec![],
            })
            .collect(),
        series: (0..1000)
            .map(|n| WorkloadSeries {
                workload: workload(n % 50),
                pod: None,
                key: key(n),
                series: series(u64::from(n) + at_ms),
            })
            .collect(),
        ..GoldenFrame::default()
    };
    let line = serde_json::to_vec(&frame(1000))?;
    let frames: VecDeque<GoldenFrame> = (1..=10).map(|second| frame(second * 1000)).collect();
    let query = meshctl::golden::Query { routes: true, ..Default::default() };
    let begun = Instant::now();
    let rounds = 20u32;
    for _ in 0..rounds {
        let read: GoldenFrame = serde_json::from_slice(&line)?;
        anyhow::ensure!(read.series.len() == 1000);
    }
    let decode = begun.elapsed() / rounds;
    let begun = Instant::now();
    for _ in 0..rounds {
        anyhow::ensure!(meshctl::golden::rows(&frames, &query).len() == 1000);
    }
    let rows = begun.elapsed() / rounds;
    say(&format!(
        "| a frame of 1,000 routes: on the wire / to read / to make rows of ten of them | {:.0} kB / {:.1} ms / {:.1} ms |",
        line.len() as f64 / 1000.0,
        decode.as_secs_f64() * 1000.0,
        rows.as_secs_f64() * 1000.0
    ));
    Ok(())
}

/// A simulated proxy: its place in the hub, what it is told, and the lines it sends.
struct Proxy {
    link: Link,
    todo: Arc<Todo>,
    line: Vec<u8>,
}

async fn control() -> Result<()> {
    let subscriptions = Subscriptions::new(Arc::default());
    let golden = Golden::new(Arc::new(mesh_control::metrics::Metrics::new()), "cluster.local");
    let mut proxies = Vec::new();
    for n in 0..PROXIES {
        let name = Name::new("shop", &format!("app-{}-{n}", n % 50));
        let pod = json!({"metadata": {"name": name.name, "namespace": "shop",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": format!("app-{}", n % 50),
                    "uid": "u", "controller": true}]},
            "spec": {"serviceAccountName": "app", "containers": []},
            "status": {"phase": "Running", "podIP": format!("10.1.{}.{}", n / 250, n % 250)}});
        let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(pod)?;
        subscriptions.apply(name.clone(), PodView::from(&pod));
        let todo = Arc::new(Todo::default());
        let link = golden.link(&name, todo.clone(), tokio::time::Instant::now());
        let frame = proxy_frame(n, 0);
        let line = serde_json::to_vec(&ProxyMessage::Golden { frame, backfill: false })?;
        proxies.push(Proxy { link, todo, line });
    }
    let idle = resident()?;
    let begun = cpu()?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let unwatched = (cpu()? - begun).as_secs_f64() / 5.0;

    let (begun, mut bytes) = (cpu()?, 0);
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..WATCHERS {
        let scope = Scope { namespace: None, workload: None };
        let watch = golden.watch(scope, 10, false, tokio::time::Instant::now(), 10_000).context("too many watchers")?;
        let subscriptions = subscriptions.clone();
        watchers.spawn(async move {
            let mut watch = watch;
            let mut bytes = 0;
            for second in 0..SECONDS {
                let frame = watch.next(|look| subscriptions.read(|world| look(world)), || second * 1000).await;
                bytes += serde_json::to_vec(&frame).map_or(0, |line| line.len());
            }
            bytes
        });
    }
    for second in 0..SECONDS {
        let at_ms = 10_000 + second * 1000;
        for (n, proxy) in proxies.iter().enumerate() {
            for order in proxy.todo.take().orders {
                if matches!(order, ControlMessage::Observe { .. }) {
                    let past = ProxyFrame { span_ms: 10_000, ..proxy_frame(n, 10_000) };
                    proxy.link.receive(past, true, tokio::time::Instant::now(), at_ms);
                }
            }
            let ProxyMessage::Golden { mut frame, .. } = serde_json::from_slice(&proxy.line)? else { continue };
            frame.at_ms = at_ms + 1;
            proxy.link.receive(frame, false, tokio::time::Instant::now(), at_ms);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let peak = resident()?;
    while let Some(watcher) = watchers.join_next().await {
        bytes += watcher?;
    }
    let watched = (cpu()? - begun).as_secs_f64() / SECONDS as f64;
    let lines = proxies.iter().map(|proxy| proxy.line.len()).sum::<usize>();
    say(&format!(
        "| control with {PROXIES} proxies, nobody watching / {WATCHERS} watchers: CPU of one core | {:.1} / {:.0} % |",
        unwatched * 100.0,
        watched * 100.0
    ));
    say(&format!("| … memory beyond idle while watched | {:.0} MiB |", peak - idle));
    say(&format!(
        "| … bytes a second from all proxies / to each watcher | {:.1} MB / {:.0} kB |",
        lines as f64 / 1e6,
        bytes as f64 / 1000.0 / WATCHERS as f64 / SECONDS as f64
    ));
    Ok(())
}
