//! `meshctl diagnostics endpoints`: the endpoints that proxies know, held against those that the API has.

use super::{Answer, KnownEndpoint, ProxyConfig, print_rows, told_of_silent};
use crate::args::ProxyRows;
use crate::error::{Outcome, Result};
use crate::output::{Printer, RowFormat, numbers, words};
use crate::proxies::Proxy;
use crate::shown::Shown;
use comfy_table::Cell;
use mesh_api::Endpoint;
use mesh_api::breaker::Standing;
use mesh_control::compile;
use serde::Serialize;
use std::net::SocketAddr;

/// How an endpoint that a proxy knows stands to the API's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    /// Right, but the proxy's last attempt to reach it failed.
    Failing,
    /// Right, but the proxy's circuit breaker has ejected it.
    Open,
    /// Right, and being tried out after it was ejected.
    HalfOpen,
    Stale,
    Missing,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failing => "failing",
            Self::Open => "open",
            Self::HalfOpen => "half open",
            Self::Stale => "stale",
            Self::Missing => "missing",
        }
    }
}

#[derive(Debug, PartialEq, Serialize)]
struct EndpointRow {
    namespace: String,
    pod: String,
    destination: String,
    endpoint: SocketAddr,
    endpoint_pod: String,
    identity: Option<String>,
    in_flight: u32,
    /// What the balancer expects of its next answer.
    latency_ms: Option<f64>,
    idle_connections: usize,
    state: State,
    /// How long it stays ejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    ejected_ms: Option<u64>,
}

impl EndpointRow {
    /// The state, and how long it lasts if that is known.
    fn state(&self) -> String {
        let time = self.ejected_ms.filter(|_| self.state == State::Open);
        time.map_or_else(|| self.state.word().to_owned(), |ms| format!("open for {}s", ms.div_ceil(1000)))
    }
}

/// Prints what proxies know of their endpoints.
pub(super) fn print(
    answers: &[Answer<ProxyConfig>],
    shown: &Shown,
    args: &ProxyRows,
    printer: &Printer,
) -> Result<Outcome> {
    let known = answers.iter().filter_map(|(proxy, answer)| Some((proxy, answer.as_ref().ok()?)));
    let rows: Vec<EndpointRow> = known.flat_map(|(proxy, config)| compare(proxy, config, shown)).collect();
    let mut columns = vec![
        words("POD"),
        words("DESTINATION"),
        words("ENDPOINT"),
        words("ENDPOINT POD"),
        numbers("IN FLIGHT"),
        numbers("LATENCY"),
        numbers("IDLE"),
        words("STATE"),
    ];
    if args.output == RowFormat::Wide {
        columns.push(words("IDENTITY"));
    }
    let cells = |row: &EndpointRow| {
        let mut cells = vec![
            Cell::new(&row.pod),
            Cell::new(&row.destination),
            Cell::new(row.endpoint),
            Cell::new(or_dash(&row.endpoint_pod)),
            Cell::new(row.in_flight),
            Cell::new(row.latency_ms.map_or("-".to_owned(), |ms| format!("{ms:.1}ms"))),
            Cell::new(row.idle_connections),
            Cell::new(row.state()),
        ];
        if args.output == RowFormat::Wide {
            cells.push(Cell::new(row.identity.as_deref().unwrap_or("-")));
        }
        cells
    };
    if rows.is_empty() {
        printer.note("No traffic has left these pods lately: a proxy knows only what its application calls.");
    }
    print_rows(&rows, &columns, cells, args.output, printer)?;
    let outcome = told_of_silent(answers, printer);
    Ok(if rows.iter().any(|row| row.state != State::Ok) { Outcome::Problems } else { outcome })
}

/// Where a proxy knows other endpoints than the API has, a line each.
pub(crate) fn differing(proxy: &Proxy, config: &ProxyConfig, shown: &Shown) -> Vec<String> {
    let line = |row: EndpointRow| {
        let how = match row.state {
            State::Stale => "still has",
            State::Missing => "lacks",
            State::Ok | State::Failing | State::Open | State::HalfOpen => return None,
        };
        Some(format!("{}/{}: {} {how} {}", row.namespace, row.pod, row.destination, row.endpoint))
    };
    compare(proxy, config, shown).into_iter().filter_map(line).collect()
}

fn compare(proxy: &Proxy, config: &ProxyConfig, shown: &Shown) -> Vec<EndpointRow> {
    let mut rows = Vec::new();
    for known in config.destinations.iter().filter(|known| !known.destination.external) {
        let wanted = compile::destination(&shown.world, &shown.config, known.address, Some(&proxy.namespace)).endpoints;
        let name = known.destination.service.as_ref().map_or(known.address.to_string(), ToString::to_string);
        let row = |endpoint: &Endpoint, state: State| EndpointRow {
            namespace: proxy.namespace.clone(),
            pod: proxy.pod.clone(),
            destination: name.clone(),
            endpoint: endpoint.address,
            endpoint_pod: endpoint.pod.clone(),
            identity: endpoint.identity.as_ref().map(ToString::to_string),
            in_flight: 0,
            latency_ms: None,
            idle_connections: 0,
            state,
            ejected_ms: None,
        };
        for has in &known.endpoints {
            let state = match wanted.contains(&has.endpoint) {
                true if has.circuit == Some(Standing::Open) => State::Open,
                true if has.circuit == Some(Standing::HalfOpen) => State::HalfOpen,
                true if has.failing => State::Failing,
                true => State::Ok,
                false => State::Stale,
            };
            let KnownEndpoint { in_flight, latency_ms, idle_connections, ejected_ms, .. } = *has;
            let row = row(&has.endpoint, state);
            rows.push(EndpointRow { in_flight, latency_ms, idle_connections, ejected_ms, ..row });
        }
        let missing =
            wanted.iter().filter(|want| known.endpoints.iter().all(|has| has.endpoint.address != want.address));
        rows.extend(missing.map(|want| row(want, State::Missing)));
    }
    rows
}

fn or_dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

#[cfg(test)]
mod tests {
    use super::super::tests::config;
    use super::*;
    use mesh_manifests::config::MeshConfig;
    use serde_json::json;

    fn shown() -> Shown {
        let service = json!({"metadata": {"name": "catalog", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"name": "http", "port": 80}]}});
        let slice = json!({"metadata": {"name": "catalog-1", "namespace": "shop",
            "labels": {"kubernetes.io/service-name": "catalog"}}, "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080}], "endpoints": [
                {"addresses": ["10.244.0.2"], "conditions": {"ready": true, "serving": true}},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": true, "serving": true}}]});
        let pod = json!({"metadata": {"name": "catalog-a", "namespace": "shop"}, "spec": {"containers": []},
            "status": {"phase": "Running", "podIP": "10.244.0.2", "podIPs": [{"ip": "10.244.0.2"}]}});
        Shown::of(
            MeshConfig::default(),
            &[],
            &[serde_json::from_value(service).unwrap()],
            &[serde_json::from_value(slice).unwrap()],
            &[serde_json::from_value(pod).unwrap()],
        )
    }

    #[test]
    fn what_a_proxy_knows_is_held_against_the_api() {
        let proxy = Proxy { namespace: "shop".into(), pod: "web-1".into() };
        let rows = compare(&proxy, &config(), &shown());
        let seen: Vec<_> = rows.iter().map(|row| (row.endpoint.to_string(), row.state, row.in_flight)).collect();
        assert_eq!(
            seen,
            [
                ("10.244.0.2:8080".to_owned(), State::Ok, 2),
                ("10.244.0.9:8080".to_owned(), State::Stale, 2),
                ("10.244.0.3:8080".to_owned(), State::Missing, 0),
            ]
        );
        assert_eq!(rows[0].destination, "shop/catalog:80");
        assert_eq!((rows[0].latency_ms, rows[2].latency_ms), (Some(7.5), None));
        let mut failing = config();
        failing.destinations[0].endpoints[0].failing = true;
        assert_eq!(compare(&proxy, &failing, &shown())[0].state, State::Failing);
    }
}
