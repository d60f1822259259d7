//! The main job: `meshctl demo --once` prints golden metrics of a shop whose every request is encrypted and counted.

use crate::harness::{Need, ourselves, run_with_input, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("demo::once_prints_golden_routes", &[Need::Namespaces], once_prints_golden_routes)]
}

fn once_prints_golden_routes() -> Result<()> {
    let name = format!("demo-{}", std::process::id());
    let mut demo = ourselves("meshctl")?;
    demo.args(["demo", "--once", "-o", "json", "--name", &name]);
    let ran = run_with_input(demo, "")?.ok()?;
    let rows: Vec<Value> = serde_json::from_str(&ran.stdout).context("stdout is not a JSON array")?;
    for name in ["web", "catalog", "cart"] {
        ensure!(rows.iter().any(|row| row["name"] == name), "no row for {name}: {}", ran.stdout);
    }
    let keys = [
        "namespace",
        "kind",
        "name",
        "route",
        "method",
        "service",
        "rps",
        "success_rate",
        "latency_p50_ms",
        "latency_p95_ms",
        "latency_p99_ms",
        "mtls_rate",
        "retries_rate",
        "timeouts_rate",
    ];
    for row in &rows {
        for key in keys {
            ensure!(row.get(key).is_some(), "no `{key}` in {row}");
        }
        let number = |key: &str| row[key].as_f64().with_context(|| format!("`{key}` is no number in {row}"));
        ensure!(number("mtls_rate")? == 1.0, "{row}");
        ensure!(number("rps")? > 0.0, "{row}");
        ensure!(number("latency_p50_ms")? <= number("latency_p95_ms")?, "{row}");
        ensure!(number("latency_p95_ms")? <= number("latency_p99_ms")?, "{row}");
    }
    let failing = rows
        .iter()
        .find(|row| {
            row["name"] == "catalog" && row["route"].as_str().is_some_and(|r| r.starts_with("/recommendations"))
        })
        .context("catalog's failing route has no row")?;
    let success = failing["success_rate"].as_f64().context("no success rate")?;
    ensure!((0.9..1.0).contains(&success), "the failing route succeeds {success}");
    let mut status = ourselves("meshctl")?;
    status.args(["sandbox", "status", "-o", "json"]);
    ensure!(!run_with_input(status, "")?.stdout.contains(&name), "the demo's sandbox is still up");
    Ok(())
}
