//! `cargo bench -p mesh-tests`: what the mesh costs on this machine, as the table in the README.
//!
//! Start of the sandbox, time from a pod's creation to its first proxied request, idle memory of each part, and the
//! latency two proxies add at a fixed rate, beside the same run without them. Latency counts from the instant a request
//! was due, so a stall is not forgiven. Figures are medians of several runs; nothing here passes or fails.

#[path = "../harness.rs"]
#[allow(dead_code)]
mod harness;

use anyhow::{Context, Result};
use bytes::Bytes;
use harness::{Sandbox, called_as, eventually};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::TokioIo;
use mesh_api::Histogram;
use serde_json::json;
use std::io::Write;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Requests a second of the latency runs.
const RATE: u64 = 1000;
/// Keep-alive connections the load is spread over.
const CONNECTIONS: u64 = 16;
/// Length of one latency run, seconds.
const SECONDS: u64 = 10;

fn main() -> ExitCode {
    let outcome = match called_as().as_str() {
        "meshctl" | "mesh-proxy" | "mesh-control" | "mesh-demo" | "mesh-sandbox" => return meshctl::main(),
        "mesh-keeper" => return harness::keeper_main(),
        "bench-serve" => serve(),
        "bench-load" => load(),
        // `cargo test --benches` and the like only want to know that it builds.
        _ if std::env::args().any(|argument| argument == "--test") => Ok(()),
        _ => measure(),
    };
    harness::tear_down();
    match outcome {
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

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn measure() -> Result<()> {
    say("| what | median |\n|---|---|");
    inject()?;
    let mut starts = Vec::new();
    for round in 0..5 {
        let begun = Instant::now();
        let sandbox = Sandbox::up(&format!("bench-start-{round}"))?;
        starts.push(begun.elapsed().as_secs_f64() * 1000.0);
        drop(sandbox);
    }
    say(&format!("| sandbox start | {:.0} ms |", median(starts)));

    let s = Sandbox::meshed("bench")?;
    for name in ["bench-serve", "bench-load"] {
        let ourselves = std::env::current_exe()?;
        let path = ourselves.with_file_name(name);
        let _ = std::fs::remove_file(&path);
        std::fs::hard_link(&ourselves, &path)?;
        s.meshctl(["sandbox", "image", "add", "--name", &s.name, name, path.to_str().context("path")?])?.ok()?;
    }
    for (ns, inject) in [("plain", "disabled"), ("meshed", "enabled")] {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": ns, "annotations": {"meshctl.dev/inject": inject}}});
        s.kubectl_with_input(["apply", "-f", "-"], &namespace.to_string())?.ok()?;
        s.kubectl_with_input(["-n", ns, "apply", "-f", "-"], &server().to_string())?.ok()?;
        s.kubectl(["-n", ns, "wait", "--for=condition=Available", "deploy/serve", "--timeout=60s"])?.ok()?;
    }

    let mut firsts = Vec::new();
    for round in 0..5 {
        firsts.push(first_request_ms(&s, round)?);
    }
    say(&format!("| pod created → first proxied request answered | {:.0} ms |", median(firsts)));

    std::thread::sleep(Duration::from_secs(3));
    memory(&s)?;

    let (mut plain, mut meshed) = (Vec::new(), Vec::new());
    for round in 0..3 {
        plain.push(latency(&s, "plain", round)?);
        meshed.push(latency(&s, "meshed", round)?);
    }
    let column = |runs: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| median(runs.iter().map(pick).collect());
    for (name, pick) in [("median", (|r| r.0) as fn(&(f64, f64)) -> f64), ("p99", |r| r.1)] {
        let (direct, through) = (column(&plain, pick), column(&meshed, pick));
        say(&format!(
            "| latency at {RATE} requests/s, {name}: direct / through two proxies / added | {direct:.2} / {through:.2} / {:.2} ms |",
            through - direct
        ));
    }
    Ok(())
}

/// How long `meshctl inject` takes for 1,000 and for 100,000 lines, and how much memory it needs for either.
fn inject() -> Result<()> {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/corpus");
    let mut block = String::new();
    for entry in std::fs::read_dir(corpus)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            block.push_str(std::fs::read_to_string(path)?.trim_end());
            block.push_str("\n---\n");
        }
    }
    let mut row = Vec::new();
    for lines in [1_000, 100_000] {
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), block.repeat(1 + lines / block.lines().count()))?;
        let mut times = Vec::new();
        let mut peak = 0;
        for _ in 0..5 {
            let mut inject = harness::ourselves("meshctl")?;
            inject.arg("inject").arg(file.path()).stdout(Stdio::null()).stderr(Stdio::null());
            let begun = Instant::now();
            let mut child = inject.spawn()?;
            let status = format!("/proc/{}/status", child.id());
            // The kernel keeps the peak; the last look before the end sees it.
            while child.try_wait()?.is_none() {
                let text = std::fs::read_to_string(&status).unwrap_or_default();
                let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
                let kib = line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0);
                peak = peak.max(kib);
                std::thread::sleep(Duration::from_millis(1));
            }
            times.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        row.push((median(times), peak as f64 / 1024.0));
    }
    say(&format!(
        "| `meshctl inject` of 1,000 / 100,000 lines | {:.0} / {:.0} ms, {:.1} / {:.1} MiB |",
        row[0].0, row[1].0, row[0].1, row[1].1
    ));
    Ok(())
}

/// A Deployment of one answering pod and its Service.
fn server() -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "serve"},
         "spec": {"selector": {"matchLabels": {"app": "serve"}}, "template": {
            "metadata": {"labels": {"app": "serve"}},
            "spec": {"containers": [{"name": "main", "image": "bench-serve", "ports": [{"containerPort": 8080}],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]}}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "serve"},
         "spec": {"selector": {"app": "serve"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}},
    ]})
}

/// Runs a pod of load to its end and returns its last line.
fn load_pod(s: &Sandbox, ns: &str, name: &str, arguments: &[String]) -> Result<String> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "bench-load", "args": arguments}]}});
    s.kubectl_with_input(["-n", ns, "apply", "-f", "-"], &pod.to_string())?.ok()?;
    let line = eventually(Duration::from_secs(60), "the load ends", || {
        let log = s.kubectl(["-n", ns, "logs", name, "-c", "main"])?.ok()?.stdout;
        log.lines().rfind(|line| line.starts_with("result ")).map(str::to_owned).context(log)
    })?;
    s.kubectl(["-n", ns, "delete", "pod", name, "--now", "--wait=false"])?.ok()?;
    Ok(line)
}

/// From the creation of a meshed pod to the answer of the first request its application sends, milliseconds.
fn first_request_ms(s: &Sandbox, round: u32) -> Result<f64> {
    let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let line = load_pod(s, "meshed", &format!("first-{round}"), &["first".to_owned()])?;
    let answered: f64 = line.split(' ').nth(1).context("no time")?.parse()?;
    Ok(answered - created.as_secs_f64() * 1000.0)
}

/// Median and p99 of one run, milliseconds.
fn latency(s: &Sandbox, ns: &str, round: u32) -> Result<(f64, f64)> {
    let line = load_pod(s, ns, &format!("load-{round}"), &["rate".to_owned()])?;
    let mut numbers = line.split(' ').skip(1).map(str::parse::<f64>);
    let mut next = || anyhow::Ok(numbers.next().context("too few numbers")??);
    Ok((next()?, next()?))
}

/// Resident memory of every process of the sandbox by program; the proportional share counts pages that several
/// processes map only once.
fn memory(s: &Sandbox) -> Result<()> {
    for program in ["mesh-proxy", "mesh-control", "mesh-sandbox"] {
        let (mut resident, mut proportional) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let first = String::from_utf8_lossy(line.split(|&b| b == 0).next().unwrap_or_default()).into_owned();
            if !first.ends_with(program) {
                continue;
            }
            let Ok(rollup) = std::fs::read_to_string(entry.path().join("smaps_rollup")) else { continue };
            let field = |name: &str| -> Option<f64> {
                let line = rollup.lines().find(|line| line.starts_with(name))?;
                Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
            };
            resident.extend(field("Rss:"));
            proportional.extend(field("Pss:"));
        }
        let (count, resident, proportional) = (resident.len(), median(resident), median(proportional));
        say(&format!(
            "| idle memory of {program}, resident / proportional share ({count} running) | {resident:.1} / {proportional:.1} MiB |"
        ));
    }
    let _ = s;
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// The application: a kilobyte for every request.
fn serve() -> Result<()> {
    runtime()?.block_on(async {
        let listener = tokio::net::TcpListener::bind(("0.0.0.0", 8080)).await?;
        let body = Bytes::from(vec![b'x'; 1024]);
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let body = body.clone();
            let service = hyper::service::service_fn(move |_| {
                let body = body.clone();
                async move { Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(body))) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    })
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn connect() -> Result<Sender> {
    let stream = tokio::net::TcpStream::connect("serve:80").await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn ask(sender: &mut Sender) -> Result<()> {
    sender.ready().await?;
    let request = http::Request::builder().uri("/").header("host", "serve").body(Empty::new())?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status() == 200, "{}", response.status());
    response.into_body().collect().await?;
    Ok(())
}

/// The client: `first` reports when the first answer came, `rate` the latencies of an open loop at [`RATE`].
fn load() -> Result<()> {
    let mode = std::env::args().nth(1).unwrap_or_default();
    runtime()?.block_on(async {
        if mode == "first" {
            loop {
                if let Ok(mut sender) = connect().await
                    && ask(&mut sender).await.is_ok()
                {
                    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
                    say(&format!("result {}", now.as_secs_f64() * 1000.0));
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        let begin = tokio::time::Instant::now() + Duration::from_millis(200);
        let mut lanes = Vec::new();
        for lane in 0..CONNECTIONS {
            lanes.push(tokio::spawn(async move {
                let mut sender = connect().await?;
                let mut seen = Histogram::default();
                for number in (lane..RATE * SECONDS).step_by(CONNECTIONS as usize) {
                    let due = begin + Duration::from_micros(number * 1_000_000 / RATE);
                    tokio::time::sleep_until(due).await;
                    ask(&mut sender).await?;
                    // The first second warms caches and connections up.
                    if number >= RATE {
                        seen.record_us(due.elapsed().as_micros() as u64);
                    }
                }
                anyhow::Ok(seen)
            }));
        }
        let mut all = Histogram::default();
        for lane in lanes {
            all.merge(&lane.await??);
        }
        let quantile = |q| all.quantile_ms(q).unwrap_or(f64::NAN);
        say(&format!("result {} {} {}", quantile(0.5), quantile(0.99), all.count()));
        Ok(())
    })
}
