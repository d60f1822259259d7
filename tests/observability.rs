//! The dashboard and the rules ask only for metrics that exist, by labels that these have.

use crate::harness::test;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use mesh_proxy::metrics::families::{ALL, Kind};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

const DASHBOARD: &str = include_str!("../manifests/observability/dashboard.json");
const RULES: &str = include_str!("../manifests/observability/rules.yaml");
const SCRAPE: &str = include_str!("../manifests/observability/scrape.yaml");
/// Labels that Prometheus adds to every sample of a target.
const OF_TARGETS: [&str; 4] = ["namespace", "pod", "job", "instance"];

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("observability::expressions_match_the_metrics", &[], expressions_match_the_metrics)]
}

/// Every sample there is, with its labels.
fn samples() -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut samples: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut add = |name: String, labels: &[&str]| {
        samples.entry(name).or_default().extend(labels.iter().chain(&OF_TARGETS).map(|label| (*label).to_owned()));
    };
    for family in ALL {
        match family.kind {
            Kind::Counter => add(format!("{}_total", family.name), family.labels),
            Kind::Gauge => add(family.name.to_owned(), family.labels),
            Kind::Histogram => {
                add(format!("{}_bucket", family.name), &[family.labels, &["le"]].concat());
                add(format!("{}_sum", family.name), family.labels);
                add(format!("{}_count", family.name), family.labels);
            }
        }
    }
    let control = mesh_control::metrics::Metrics::new().render()?;
    for line in control.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').context("a TYPE without a kind")?;
        let ending = if kind == "counter" { "_total" } else { "" };
        add(format!("{name}{ending}"), &["outcome", "kind"]);
    }
    Ok(samples)
}

/// Fails unless the expression names only samples that exist, and labels that one of these has.
fn check(expression: &str, samples: &BTreeMap<String, BTreeSet<String>>) -> Result<()> {
    let word = regex::Regex::new(r"[a-zA-Z_:][a-zA-Z0-9_:]*")?;
    let text = regex::Regex::new(r#""[^"]*""#)?.replace_all(expression, "\"\"");
    let names: Vec<&str> = word.find_iter(&text).map(|m| m.as_str()).filter(|w| w.starts_with("mesh")).collect();
    ensure!(!names.is_empty(), "no metric in {expression}");
    let mut labels = BTreeSet::new();
    for name in names {
        labels.extend(samples.get(name).with_context(|| format!("there is no {name}: {expression}"))?.iter().cloned());
    }
    let matchers = regex::Regex::new(r"([a-zA-Z_]+)\s*(?:=~|!~|!=|=)\s*\x22")?;
    let grouped = regex::Regex::new(r"(?:by|without)\s*\(([^)]*)\)")?;
    let matched = matchers.captures_iter(&text).map(|found| found[1].to_owned());
    let by: Vec<String> = grouped.captures_iter(&text).map(|found| found[1].to_owned()).collect();
    let by = by.iter().flat_map(|list| list.split(',')).map(|label| label.trim().to_owned());
    for label in matched.chain(by) {
        ensure!(labels.contains(&label), "no metric has a label {label}: {expression}");
    }
    Ok(())
}

fn expressions_match_the_metrics() -> Result<()> {
    let mut samples = samples()?;
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut expressions: Vec<String> =
        targets.filter_map(|target| target["expr"].as_str()).map(str::to_owned).collect();
    ensure!(expressions.len() > 15, "{} expressions", expressions.len());
    let rules: Value = serde_saphyr::from_str(RULES)?;
    let groups = rules["groups"].as_array().context("no groups")?;
    let by = regex::Regex::new(r"by\s*\(([^)]*)\)")?;
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()) {
        let expression = rule["expr"].as_str().with_context(|| format!("no expression: {rule}"))?;
        expressions.push(expression.to_owned());
        if let Some(name) = rule["record"].as_str() {
            let labels = by.captures(expression).context("a recorded rule keeps labels")?;
            let labels = labels[1].split(',').map(|label| label.trim().to_owned()).filter(|label| label != "le");
            samples.insert(name.to_owned(), labels.collect());
        } else {
            ensure!(rule["annotations"]["summary"].is_string(), "an alert says what is wrong: {rule}");
        }
    }
    expressions.iter().try_for_each(|expression| check(expression, &samples))?;
    // The test can fail.
    for wrong in ["mesh_request_total", "sum by (dts) (mesh_requests_total)", "mesh_requests_total{code=\"1\"}"] {
        ensure!(check(wrong, &samples).is_err(), "{wrong} passed");
    }
    let scrape: Value = serde_saphyr::from_str(SCRAPE)?;
    let ports = scrape.to_string();
    ensure!(ports.contains("mesh-admin") && ports.contains("9990"), "{ports}");
    Ok(())
}
