//! `mesh-liar`: a proxy that carries traffic as it should and tells control things that cannot be true. What it says
//! spoils nobody's figures, is counted, and `meshctl check` names it.

use crate::harness::{Need, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use clap::Parser;
use libtest_mimic::Trial;
use mesh_api::WorkloadRef;
use mesh_api::golden::{Carried, Direction, ProxyFrame, Series, SeriesKey, TlsStatus};
use mesh_proxy::args::Args;
use mesh_proxy::listen;
use mesh_proxy::proxy::{Proxy, unix_ms};
use mesh_proxy::run::{self, Listeners};
use serde_json::{Value, json};
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    let needs = [Need::Namespaces, Need::Program("kubectl")];
    vec![test("liar::a_proxy_that_sends_nonsense_is_left_out_and_named", &needs, nonsense_is_left_out)]
}

/// Requests that a lie claims: more than anybody would miss.
const CLAIMED: u64 = 123_456_789;

fn nonsense_is_left_out() -> Result<()> {
    let s = Sandbox::meshed("liar")?;
    let ourselves = std::env::current_exe()?;
    let link = ourselves.with_file_name("mesh-liar");
    let _ = std::fs::remove_file(&link);
    std::fs::hard_link(&ourselves, &link)?;
    let path = link.to_str().context("path")?;
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, "mesh-liar", path])?.ok()?;
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, "sh", "/bin/sh"])?.ok()?;
    s.kubectl(["create", "ns", "liars"])?.ok()?;
    for name in ["honest", "liar"] {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "liars"},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "sh",
                "args": ["-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"]}]}});
        let injected = s.meshctl_with_input(["inject", "--manual", "-"], &pod.to_string())?.ok()?.stdout;
        let mut injected: Value = serde_saphyr::from_str(&injected)?;
        if name == "liar" {
            let containers = injected["spec"]["initContainers"].as_array_mut().context("no sidecar")?;
            let proxy = containers.iter_mut().find(|container| container["name"] == "mesh-proxy");
            proxy.context("no proxy")?["image"] = json!("mesh-liar");
        }
        s.kubectl_with_input(["apply", "-f", "-"], &injected.to_string())?.ok()?;
    }
    s.kubectl(["-n", "liars", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"])?.ok()?;

    // It lies while somebody looks; the check itself does.
    let named = |set: &[&str]| -> Result<Value> {
        let ran = s.meshctl([&["check", "-o", "json", "--only", "proxy.sense"], set].concat())?;
        let reports: Value = serde_json::from_str(&ran.stdout)?;
        let reports = reports.as_array().or(reports["checks"].as_array()).cloned().unwrap_or_default();
        reports.into_iter().find(|report| report["id"] == "proxy.sense").context(ran.stdout)
    };
    let report = eventually(Duration::from_secs(60), "the check names the liar", || {
        let report = named(&[])?;
        ensure!(report["status"] == "warning", "{report}");
        Ok(report)
    })?;
    let seen = report["seen"].as_str().unwrap_or_default();
    ensure!(seen.starts_with("the figures of liars/liar are left out"), "{report}");
    ensure!(!seen.contains("honest"), "{report}");
    ensure!(report["fix"].as_str().is_some_and(|fix| fix.contains("kubectl -n liars delete pod liar")), "{report}");
    s.meshctl(["diagnostics", "controller-metrics"])?
        .ok()?
        .says("mesh_control_golden_frames_left_out_total{outcome=\"counts\"}")?
        .says("mesh_control_golden_frames_left_out_total{outcome=\"future\"}")?;
    let stat = s.meshctl(["stat", "po", "-n", "liars", "-w", "60s", "-o", "json"])?.ok()?.stdout;
    ensure!(!stat.contains("1234567"), "a lie was believed: {stat}");
    Ok(())
}

/// A proxy that follows control and carries traffic like any other.
pub(crate) fn main() -> ExitCode {
    match lie() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "mesh-liar: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn lie() -> Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let args = Args::try_parse_from(std::env::args_os())?.run;
    let listeners = Listeners {
        inbound: listen::bind_any(args.inbound_port)?,
        outbound: listen::bind_any(args.outbound_port)?,
        admin: listen::bind_any(args.admin_port)?,
    };
    let proxy = run::prepare(args.settings()?, &listeners)?;
    let liar = proxy.clone();
    std::thread::spawn(move || tell_lies(&liar));
    run::run_prepared(&proxy, listeners, async {
        if let Ok(mut term) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            term.recv().await;
        }
    })
}

fn tell_lies(proxy: &Arc<Proxy>) {
    loop {
        let observer = proxy.observer.lock().clone();
        if let Some(observer) = observer {
            // Too many successes, and requests of a far future.
            for (at_ms, successes) in [(unix_ms(), 2 * CLAIMED), (u64::MAX, CLAIMED)] {
                let _ = observer.try_send(frame(at_ms, successes));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn frame(at_ms: u64, successes: u64) -> ProxyFrame {
    let key = SeriesKey {
        direction: Direction::Inbound,
        carried: Carried::Http,
        peer: WorkloadRef::new("liars", "pod", "nobody"),
        service: None,
        port: 80,
        route: "/lies".to_owned(),
        method: "GET".to_owned(),
        tls: TlsStatus::Mutual,
    };
    let series = Series { requests: CLAIMED, successes, ..Series::default() };
    ProxyFrame { at_ms, span_ms: 1000, series: vec![(key, series)], ..ProxyFrame::default() }
}
