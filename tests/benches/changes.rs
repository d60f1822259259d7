//! `cargo bench -p mesh-tests --bench changes`: how soon a change reaches proxies, and what routes cost requests, as the
//! table in the README.
//!
//! A control plane tells a hundred proxies, over TLS as it would, of changes that it is told of; the proxies of this
//! bench only read. And a real proxy sends requests to a real server, through one route and through a hundred. Fails if a
//! change takes more than a second at the 99th percentile.

#[path = "changes/routes.rs"]
mod routes;

use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mesh_api::SpiffeId;
use mesh_api::names::PROXY_STREAM_PATH;
use mesh_api::wire::{ControlMessage, ProxyMessage};
use mesh_control::ca::Authority;
use mesh_control::certify::Certifier;
use mesh_control::golden::Golden;
use mesh_control::issuer::IssuerKeeper;
use mesh_control::lines::Lines;
use mesh_control::metrics::Metrics;
use mesh_control::stream::Streams;
use mesh_control::subscriptions::Subscriptions;
use mesh_control::tap::Taps;
use mesh_control::world::view::{Name, PodView, ServiceView, SliceView};
use mesh_control::{serve, tls};
use mesh_manifests::config::MeshConfig;
use mesh_manifests::issuer::{Issuer, IssuerPair};
use serde_json::{Value, json};
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

const PROXIES: usize = 100;
/// Services, each with this many endpoints, and how many of them each proxy talks to.
const SERVICES: usize = 200;
const ENDPOINTS: usize = 5;
const FOLLOWED: usize = 20;
const CHANGES: usize = 100;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(100);

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
    routes::measure()?;
    let proxies = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    // Threads of their own, so that control's time can be told from that of the proxies.
    let control = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("bench-control")
        .enable_all()
        .build()?;
    proxies.block_on(changes(&control))
}

/// Resident memory, MiB.
fn resident() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("no number")?.parse::<f64>()? / 1024.0)
}

/// CPU time of this process's threads of a name.
fn cpu_of(name: &str) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        // A thread may end meanwhile.
        let Ok(comm) = std::fs::read_to_string(task.join("comm")) else { continue };
        if comm.trim() == name {
            let text = std::fs::read_to_string(task.join("schedstat")).unwrap_or_default();
            sum += Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0));
        }
    }
    Ok(sum)
}

/// The control plane: where it listens, who signs, and what it knows.
struct Control {
    address: SocketAddr,
    authority: Arc<Authority>,
    subscriptions: Arc<Subscriptions>,
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

async fn start(runtime: &tokio::runtime::Runtime) -> Result<Control> {
    let metrics = Arc::new(Metrics::new());
    let Issuer { pair, anchors_pem } = Issuer::generate("cluster.local", SystemTime::now())?;
    let IssuerPair { certificate_pem, key_pem } = pair.context("no issuer was made")?;
    let authority = Arc::new(Authority::from_pem(&certificate_pem, &key_pem, &anchors_pem)?);
    let keeper = IssuerKeeper {
        identity: MeshConfig::default().control_identity(),
        authority: Arc::new(ArcSwapOption::from(Some(authority.clone()))),
        tls: Arc::default(),
        client: Arc::default(),
        told: tokio::sync::watch::Sender::new(None),
        metrics: metrics.clone(),
    };
    keeper.renew();
    // Nobody asks for a certificate here.
    let nowhere = kube::Config::new("http://127.0.0.1:9".parse()?);
    let client = kube::Client::try_from(nowhere)?;
    let certifier = Certifier::new(client, "cluster.local", keeper.authority.clone(), metrics.clone());
    let subscriptions = Subscriptions::new(Arc::new(MeshConfig::default()));
    let streams = Arc::new(Streams {
        subscriptions: subscriptions.clone(),
        golden: Golden::new(metrics.clone(), "cluster.local"),
        taps: Taps::new(metrics.clone()),
        shares: Arc::default(),
        trust: keeper.told.subscribe(),
        metrics,
        stop: CancellationToken::new(),
    });
    let _runtime = runtime.enter();
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let listener = TcpListener::from_std(listener)?;
    runtime.spawn(serve::serve(listener, keeper.tls.clone(), Arc::new(certifier), streams));
    Ok(Control { address, authority, subscriptions })
}

fn service_ip(service: usize) -> String {
    format!("10.96.{}.{}", service / 250, service % 250 + 1)
}

/// Fills the cluster.
fn fill(control: &Control) -> Result<()> {
    for n in 0..SERVICES {
        let name = format!("app-{n}");
        let object: Service = typed(json!({"metadata": {"namespace": "shop", "name": name},
            "spec": {"clusterIP": service_ip(n), "clusterIPs": [service_ip(n)],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}}))?;
        control.subscriptions.apply(Name::of(&object.metadata), ServiceView::from(&object));
        put_slice(control, n, ENDPOINTS)?;
    }
    for n in 0..PROXIES {
        let object: Pod = typed(json!({"metadata": {"namespace": "shop", "name": format!("caller-{n}")},
            "spec": {"serviceAccountName": "caller", "containers": [],
                "initContainers": [{"name": "mesh-proxy"}]},
            "status": {"phase": "Running", "podIP": format!("10.3.0.{}", n + 1)}}))?;
        control.subscriptions.apply(Name::of(&object.metadata), PodView::from(&object));
    }
    control.subscriptions.set_synced();
    Ok(())
}

fn put_slice(control: &Control, service: usize, endpoints: usize) -> Result<()> {
    let addresses: Vec<Value> = (0..endpoints)
        .map(|n| json!({"addresses": [format!("10.2.{service}.{}", n + 1)], "conditions": {"ready": true}}))
        .collect();
    let object: EndpointSlice = typed(json!({"metadata": {"namespace": "shop", "name": format!("app-{service}-1"),
            "labels": {"kubernetes.io/service-name": format!("app-{service}")}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": addresses}))?;
    control.subscriptions.apply(Name::of(&object.metadata), SliceView::from(&object));
    Ok(())
}

/// A proxy that follows some services, the first among them, and says when it hears of a change of that one.
async fn follow(control: &Control, n: usize, heard: mpsc::UnboundedSender<Instant>) -> Result<()> {
    let identity = SpiffeId::new("cluster.local", "shop", "caller");
    let (chain, key, _) = control.authority.own(&identity, SystemTime::now())?;
    let config = tls::client(chain, key, &control.authority.anchors_pem)?;
    let tcp = TcpStream::connect(control.address).await?;
    let name = rustls_pki_types::ServerName::try_from("mesh-control")?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await?;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (lines, queue) = mpsc::channel::<Bytes>(64);
    let body = futures::stream::unfold(queue, |mut queue| async move {
        queue.recv().await.map(|line| (Ok::<_, std::io::Error>(Frame::data(line)), queue))
    });
    let hello = ProxyMessage::Hello {
        namespace: "shop".to_owned(),
        pod: format!("caller-{n}"),
        version: "0".to_owned(),
        identity,
    };
    put(&lines, &hello).await?;
    let request = Request::post(format!("https://mesh-control{PROXY_STREAM_PATH}"));
    let response = sender.send_request(request.body(StreamBody::new(Box::pin(body)).boxed_unsync())?).await?;
    ensure!(response.status() == 200, "control answers {}", response.status());
    for service in (0..FOLLOWED).map(|at| if at == 0 { 0 } else { (n + at) % SERVICES }) {
        let address = SocketAddr::new(service_ip(service).parse()?, 80);
        put(&lines, &ProxyMessage::Subscribe { address }).await?;
    }
    let mut read = Lines::new(response.into_body(), 1 << 20);
    let watched = SocketAddr::new(service_ip(0).parse()?, 80);
    tokio::spawn(async move {
        // Kept, or the stream would end.
        let _sender = sender;
        while let Ok(Some(line)) = read.next().await {
            let Ok(message) = serde_json::from_slice(&line) else { break };
            let version = match message {
                ControlMessage::Update { version, address, .. } => {
                    if address == watched {
                        let _ = heard.send(Instant::now());
                    }
                    version
                }
                ControlMessage::Inbound { version, .. } => version,
                ControlMessage::Heartbeat {} => {
                    let _ = put(&lines, &ProxyMessage::Heartbeat {}).await;
                    continue;
                }
                _ => continue,
            };
            let _ = put(&lines, &ProxyMessage::Ack { version }).await;
        }
    });
    Ok(())
}

async fn put(lines: &mpsc::Sender<Bytes>, message: &ProxyMessage) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    lines.send(line.into()).await?;
    Ok(())
}

async fn changes(runtime: &tokio::runtime::Runtime) -> Result<()> {
    let before = resident()?;
    let control = start(runtime).await?;
    fill(&control)?;
    let (heard, mut hears) = mpsc::unbounded_channel();
    for n in 0..PROXIES {
        follow(&control, n, heard.clone()).await.with_context(|| format!("proxy {n}"))?;
    }
    let mut all = async || tokio::time::timeout(Duration::from_secs(60), hears.recv()).await.ok().flatten();
    for n in 0..PROXIES {
        all().await.with_context(|| format!("only {n} of {PROXIES} proxies have heard of the service"))?;
    }
    let memory = resident()? - before;
    let (mut took, begun, cpu) = (Vec::new(), Instant::now(), cpu_of("bench-control")?);
    for change in 0..CHANGES {
        let made = Instant::now();
        put_slice(&control, 0, ENDPOINTS - 1 - change % 2)?;
        for n in 0..PROXIES {
            let at = all().await.with_context(|| format!("only {n} of {PROXIES} proxies have heard of a change"))?;
            took.push(at.saturating_duration_since(made));
        }
        tokio::time::sleep(PAUSE).await;
    }
    let cpu = (cpu_of("bench-control")? - cpu).as_secs_f64();
    let rate = CHANGES as f64 / begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    say(&format!(
        "| a change reaches {PROXIES} proxies, median / p99 / last | {:.1} / {:.1} / {:.1} ms |",
        at(0.5),
        at(0.99),
        at(1.0)
    ));
    say(&format!(
        "| … control's CPU for one change / of one core at {rate:.0} changes a second | {:.2} ms / {:.1} % |",
        cpu * 1000.0 / CHANGES as f64,
        cpu * 100.0 / begun.elapsed().as_secs_f64()
    ));
    say(&format!(
        "| … memory of control and {PROXIES} simulated proxies with {FOLLOWED} of {SERVICES} services each | {memory:.0} MiB |"
    ));
    ensure!(at(0.99) < 1000.0, "a change takes {:.0} ms at the 99th percentile, more than a second", at(0.99));
    Ok(())
}
