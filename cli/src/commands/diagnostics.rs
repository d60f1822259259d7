//! `meshctl diagnostics`: what proxies and control plane know and count, asked of them directly.

pub(crate) mod endpoints;

use super::explain_route;
use crate::args::{Diagnostics, DiagnosticsWhat, Global, Proxies, ProxyRows};
use crate::cluster::Cluster;
use crate::error::{Context, Error, Outcome, Result};
use crate::output::{Column, Printer, RowFormat, numbers, words};
use crate::proxies::{self, Proxy};
use crate::resource::Resource;
use crate::shown::Shown;
use comfy_table::Cell;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use mesh_api::breaker::Standing;
use mesh_api::names::{CONTROL_ADMIN_PORT, CONTROL_NAME};
use mesh_api::route::{RouteBackend, Routes};
use mesh_api::{Access, Destination, Egress, Endpoint, InboundPolicy, Protocol, ServiceRef, Trust};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::SocketAddr;

/// The parts of a proxy's `/config` that are shown in tables.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ProxyConfig {
    /// What it proves to be.
    #[serde(default)]
    pub identity: Option<String>,
    /// When its certificate ends, seconds since 1970.
    #[serde(default)]
    pub identity_expires_at: Option<u64>,
    /// Whom it trusts, and who signed its certificate.
    #[serde(default)]
    pub trust: Trust,
    /// Its version.
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    control_connected: bool,
    #[serde(default)]
    inbound: InboundPolicy,
    #[serde(default)]
    egress: Egress,
    #[serde(default)]
    destinations: Vec<KnownDestination>,
}

#[derive(Debug, Deserialize)]
struct KnownDestination {
    address: SocketAddr,
    destination: Destination,
    endpoints: Vec<KnownEndpoint>,
    /// Services that its routes lead to.
    #[serde(default)]
    backends: Vec<KnownBackend>,
}

#[derive(Debug, Deserialize)]
struct KnownBackend {
    service: Option<ServiceRef>,
    endpoints: Vec<KnownEndpoint>,
}

#[derive(Debug, Deserialize)]
struct KnownEndpoint {
    #[serde(flatten)]
    endpoint: Endpoint,
    #[serde(default)]
    in_flight: u32,
    /// None from a proxy of an older release.
    latency_ms: Option<f64>,
    #[serde(default)]
    failing: bool,
    #[serde(default)]
    idle_connections: usize,
    circuit: Option<Standing>,
    ejected_ms: Option<u64>,
}

/// Asks and prints.
pub async fn run(global: &Global, args: &Diagnostics, printer: &Printer) -> Result<Outcome> {
    let cluster = Cluster::connect(global).await?;
    match &args.what {
        DiagnosticsWhat::ProxyConfig(args) => proxy_config(&cluster, args, printer).await,
        DiagnosticsWhat::ProxyMetrics(args) => proxy_metrics(&cluster, args, printer).await,
        DiagnosticsWhat::Endpoints(args) => {
            let answers = configs(&cluster, &args.proxies).await?;
            let shown = Shown::read(&cluster).await?;
            endpoints::print(&answers, &shown, args, printer)
        }
        DiagnosticsWhat::Policy(args) => policy(&configs(&cluster, &args.proxies).await?, args, printer),
        DiagnosticsWhat::ControllerMetrics => controller_metrics(&cluster, printer).await,
        DiagnosticsWhat::Identity(args) => identity(&configs(&cluster, &args.proxies).await?, args, printer),
    }
}

type Answer<T> = (Proxy, Result<T>);

async fn ask(cluster: &Cluster, args: &Proxies, path: &str) -> Result<Vec<Answer<String>>> {
    let scope = cluster.scope(&args.namespaces);
    let proxies = proxies::of(cluster, scope.as_deref(), &Resource::read(&args.resource)?).await?;
    let answers = proxies::ask_all(cluster, &proxies, path).await;
    Ok(proxies.into_iter().zip(answers).collect())
}

async fn configs(cluster: &Cluster, args: &Proxies) -> Result<Vec<Answer<ProxyConfig>>> {
    let answers = ask(cluster, args, "/config").await?;
    Ok(answers.into_iter().map(|(proxy, answer)| (proxy, answer.and_then(|text| read(&text)))).collect())
}

/// Reads what a proxy says of itself.
pub(crate) fn read(text: &str) -> Result<ProxyConfig> {
    serde_json::from_str(text).during(|| "understand the proxy's answer")
}

/// Tells of proxies that gave no answer; the outcome of a command that looked at them.
fn told_of_silent<'a, T: 'a>(answers: impl IntoIterator<Item = &'a Answer<T>>, printer: &Printer) -> Outcome {
    let mut outcome = Outcome::Well;
    for (_, answer) in answers {
        if let Err(error) = answer {
            printer.warn(&error.to_string());
            outcome = Outcome::Problems;
        }
    }
    outcome
}

async fn proxy_config(cluster: &Cluster, args: &ProxyRows, printer: &Printer) -> Result<Outcome> {
    let answers = ask(cluster, &args.proxies, "/config").await?;
    let known = answers.iter().filter_map(|(proxy, answer)| Some((proxy, answer.as_ref().ok()?)));
    if matches!(args.output, RowFormat::Json | RowFormat::Yaml) {
        let config = |(proxy, text): (&Proxy, &String)| {
            let config: Value = serde_json::from_str(text).during(|| "understand the proxy's answer")?;
            Ok(serde_json::json!({"namespace": proxy.namespace, "pod": proxy.pod, "config": config}))
        };
        let all: Vec<Value> = known.map(config).collect::<Result<_>>()?;
        if args.output == RowFormat::Json { printer.json(&all)? } else { printer.yaml(&all)? }
    } else {
        let mut rows = Vec::new();
        for (proxy, text) in known {
            rows.extend(read(text)?.destinations.iter().flat_map(|known| config_rows(proxy, known)));
        }
        let columns = ["POD", "DESTINATION", "PROTOCOL", "RULE", "ASKS", "BACKENDS"].map(words);
        printer.table(&columns, rows.into_iter().map(|row| row.map(Cell::new).to_vec()).collect())?;
    }
    Ok(told_of_silent(&answers, printer))
}

/// A row for each rule of a destination, or one if it has none: pod, destination, protocol, rule, what it asks for, and
/// where it leads.
fn config_rows(proxy: &Proxy, known: &KnownDestination) -> Vec<[String; 6]> {
    let KnownDestination { address, destination, endpoints, backends } = known;
    let name = destination.service.as_ref().map_or(address.to_string(), ToString::to_string);
    // Plain data, which can always be written.
    let protocol = serde_json::to_value(destination.protocol).unwrap_or_default();
    let protocol = protocol.as_str().unwrap_or_default();
    let row = |rule: &str, asks: String, to: String| {
        [proxy.pod.clone(), name.clone(), protocol.to_owned(), rule.to_owned(), asks, to]
    };
    let Some(routes) = destination.routes.as_deref().filter(|routes| !routes.rules.is_empty()) else {
        let what = if destination.external { "outside".to_owned() } else { format!("{} endpoints", endpoints.len()) };
        return vec![row("-", String::new(), what)];
    };
    let ready = |service: &ServiceRef| {
        let own = destination.service.as_ref() == Some(service);
        let found = backends.iter().find(|backend| backend.service.as_ref() == Some(service));
        found.map_or(if own { endpoints.len() } else { 0 }, |backend| backend.endpoints.len())
    };
    let backend = |RouteBackend { service, weight, .. }: &RouteBackend| match service {
        Some(service) => format!("{service} weight {weight} ({} endpoints)", ready(service)),
        None => format!("nothing that is there, weight {weight}"),
    };
    let rows = routes.rules.iter().enumerate().map(|(at, rule)| {
        let to: Vec<String> = rule.backends.iter().map(backend).collect();
        row(&rule.name.to_string(), asked_by(routes, at), if to.is_empty() { "none".to_owned() } else { to.join(", ") })
    });
    rows.collect()
}

/// What leads to a rule, in order of precedence.
fn asked_by(routes: &Routes, rule: usize) -> String {
    let requests = routes.http.iter().chain(&routes.grpc).filter(|of| of.rule == rule).map(explain_route::asks);
    let names = routes.tls.iter().filter(|of| of.rule == rule).map(|of| format!("TLS {}", of.hosts.join(" or ")));
    let connections = (routes.tcp == Some(rule)).then(|| "connections".to_owned());
    requests.chain(names).chain(connections).collect::<Vec<_>>().join("; ")
}

async fn proxy_metrics(cluster: &Cluster, args: &Proxies, printer: &Printer) -> Result<Outcome> {
    let answers = ask(cluster, args, "/metrics").await?;
    for (proxy, answer) in &answers {
        if let Ok(text) = answer {
            printer.data(&format!("# pod {}/{}\n{text}", proxy.namespace, proxy.pod))?;
        }
    }
    Ok(told_of_silent(&answers, printer))
}

async fn controller_metrics(cluster: &Cluster, printer: &Printer) -> Result<Outcome> {
    let namespace = &cluster.system_namespace;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let query = ListParams::default().labels(&format!("app.kubernetes.io/name={CONTROL_NAME}"));
    let pods = pods.list(&query).await.during(|| format!("list the control plane's pods in {namespace}"))?.items;
    let names: Vec<String> = pods.into_iter().filter_map(|pod| pod.metadata.name).collect();
    if names.is_empty() {
        return Err(Error::new(format!("no pod of {CONTROL_NAME} runs in {namespace}")).hint("run meshctl check"));
    }
    let mut outcome = Outcome::Well;
    for name in &names {
        match proxies::ask_port(cluster, namespace, name, CONTROL_ADMIN_PORT, "/metrics").await {
            Ok(text) => printer.data(&format!("# pod {namespace}/{name}\n{text}"))?,
            Err(error) => {
                printer.warn(&error.to_string());
                outcome = Outcome::Problems;
            }
        }
    }
    Ok(outcome)
}

#[derive(Debug, Serialize)]
struct PolicyRow {
    namespace: String,
    pod: String,
    /// None: what holds for all ports.
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    /// Who may call.
    #[serde(skip_serializing_if = "Option::is_none")]
    access: Option<Access>,
    /// What may leave the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    egress: Option<Egress>,
}

/// Who may call, in a few words.
fn access_summary(access: &Access) -> String {
    let rules = access.rules.iter().map(|rule| format!("{} {}", rule.action.word(), rule.policy));
    summary(rules.collect(), access.default.word())
}

/// What may leave, in a few words.
fn egress_summary(egress: &Egress) -> String {
    let rules = egress.rules.iter().map(|rule| format!("{} {}", rule.action.word(), rule.policy));
    summary(rules.collect(), egress.default.word())
}

fn summary(mut policies: Vec<String>, default: &str) -> String {
    policies.dedup();
    let default = format!("default {default}");
    if policies.is_empty() { default } else { format!("{}, {default}", policies.join(", ")) }
}

fn policy(answers: &[Answer<ProxyConfig>], args: &ProxyRows, printer: &Printer) -> Result<Outcome> {
    let known = answers.iter().filter_map(|(proxy, answer)| Some((proxy, answer.as_ref().ok()?)));
    let rows: Vec<PolicyRow> = known
        .flat_map(|(proxy, config)| {
            let row = |port, protocol| PolicyRow {
                namespace: proxy.namespace.clone(),
                pod: proxy.pod.clone(),
                port,
                protocol,
                access: None,
                egress: None,
            };
            let (access, egress) = (&config.inbound.access, &config.egress);
            let whole = (!access.is_default() || !egress.is_default()).then(|| PolicyRow {
                access: (!access.is_default()).then(|| access.clone()),
                egress: (!egress.is_default()).then(|| egress.clone()),
                ..row(None, None)
            });
            let ports = config.inbound.ports.iter().map(|(port, policy)| row(Some(*port), Some(policy.protocol)));
            whole.into_iter().chain(ports).collect::<Vec<_>>()
        })
        .collect();
    let columns =
        [words("NAMESPACE"), words("POD"), numbers("PORT"), words("PROTOCOL"), words("ACCESS"), words("EGRESS")];
    let cells = |row: &PolicyRow| {
        let protocol = serde_json::to_value(row.protocol).unwrap_or_default();
        vec![
            Cell::new(&row.namespace),
            Cell::new(&row.pod),
            Cell::new(row.port.map_or_else(|| "all".to_owned(), |port| port.to_string())),
            Cell::new(protocol.as_str().unwrap_or_default()),
            Cell::new(row.access.as_ref().map(access_summary).unwrap_or_default()),
            Cell::new(row.egress.as_ref().map(egress_summary).unwrap_or_default()),
        ]
    };
    printer.note("Ports that are not listed are detected: their protocol is found out from the first bytes.");
    print_rows(&rows, &columns, cells, args.output, printer)?;
    Ok(told_of_silent(answers, printer))
}

#[derive(Debug, Serialize)]
struct IdentityRow {
    namespace: String,
    pod: String,
    version: String,
    identity: Option<String>,
    expires_at: Option<String>,
    control_connected: bool,
    trust: Trust,
}

fn identity(answers: &[Answer<ProxyConfig>], args: &ProxyRows, printer: &Printer) -> Result<Outcome> {
    let known = answers.iter().filter_map(|(proxy, answer)| Some((proxy, answer.as_ref().ok()?)));
    let rows: Vec<IdentityRow> = known
        .map(|(proxy, config)| IdentityRow {
            namespace: proxy.namespace.clone(),
            pod: proxy.pod.clone(),
            version: config.version.clone(),
            identity: config.identity.clone(),
            expires_at: config.identity_expires_at.map(|at| super::identity::written(at.cast_signed())),
            control_connected: config.control_connected,
            trust: config.trust.clone(),
        })
        .collect();
    let columns = [words("POD"), words("VERSION"), words("IDENTITY"), words("EXPIRES"), words("CONTROL")];
    let cells = |row: &IdentityRow| {
        vec![
            Cell::new(&row.pod),
            Cell::new(&row.version),
            Cell::new(row.identity.as_deref().unwrap_or("-")),
            Cell::new(row.expires_at.as_deref().unwrap_or("-")),
            Cell::new(if row.control_connected { "connected" } else { "away" }),
        ]
    };
    print_rows(&rows, &columns, cells, args.output, printer)?;
    Ok(told_of_silent(answers, printer))
}

/// Prints rows in the form that is wanted.
pub(super) fn print_rows<T: Serialize>(
    rows: &[T],
    columns: &[Column],
    cells: impl Fn(&T) -> Vec<Cell>,
    output: RowFormat,
    printer: &Printer,
) -> Result<()> {
    match output {
        RowFormat::Json => printer.json(rows),
        RowFormat::Yaml => printer.yaml(&rows),
        RowFormat::Table | RowFormat::Wide if rows.is_empty() => Ok(()),
        RowFormat::Table | RowFormat::Wide => printer.table(columns, rows.iter().map(cells).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(super) fn config() -> ProxyConfig {
        let endpoint = |ip: &str| {
            json!({"address": format!("{ip}:8080"), "pod": "catalog-a",
                "workload": {"namespace": "shop", "kind": "pod", "name": "catalog-a"}, "in_flight": 2, "idle_connections": 3,
                "latency_ms": 7.5, "failing": false})
        };
        let text = json!({"version": "0.1.0", "control_connected": true, "later": 1,
        "inbound": {"ports": {"8080": {"protocol": "http1"}}},
        "destinations": [
            {"address": "10.96.0.7:80", "destination": {"service": {"namespace": "shop", "name": "catalog", "port": 80}},
                "endpoints": [endpoint("10.244.0.2"), endpoint("10.244.0.9")]},
            {"address": "192.0.2.1:80", "destination": {"external": true}, "endpoints": []},
        ]});
        read(&text.to_string()).unwrap()
    }

    #[test]
    fn rules_and_backends_have_a_row_each() {
        let mut destination = config().destinations.remove(0);
        let proxy = Proxy { namespace: "shop".into(), pod: "web-1".into() };
        let row = config_rows(&proxy, &destination).remove(0);
        assert_eq!(row, ["web-1", "shop/catalog:80", "detect", "-", "", "2 endpoints"].map(str::to_owned));
        let to = |name: &str| json!({"namespace": "shop", "name": name, "port": 80});
        let rule = |part: &str, backends: Value| json!({"name": {"kind": "httproute", "namespace": "shop", "name": "r", "rule": part}, "backends": backends});
        let routes = json!({
            "rules": [
                rule("split", json!([{"service": to("catalog"), "weight": 9}, {"service": to("new"), "weight": 1}])),
                rule("none", json!([])),
            ],
            "http": [{"rule": 0, "path": {"prefix": "/a"}, "method": "GET"}, {"rule": 1}],
        });
        destination.destination.routes = Some(serde_json::from_value(routes).unwrap());
        destination.backends = vec![serde_json::from_value(json!({"service": to("new"), "endpoints": []})).unwrap()];
        let rows = config_rows(&proxy, &destination);
        assert_eq!(
            rows[0][3..].join(" | "),
            "httproute/shop/r/split | GET, path /a and below | \
             shop/catalog:80 weight 9 (2 endpoints), shop/new:80 weight 1 (0 endpoints)"
        );
        assert_eq!(rows[1][3..].join(" | "), "httproute/shop/r/none | everything | none");
    }

    #[test]
    fn a_proxy_that_is_silent_is_named_and_the_others_shown() {
        let (printer, told) = Printer::memory();
        let proxy = |pod: &str| Proxy { namespace: "shop".into(), pod: pod.into() };
        let answers = [
            (proxy("web-1"), Ok(config())),
            (proxy("web-2"), Err(Error::new("no answer within 10 s").during("read /config of shop/web-2"))),
        ];
        let args = ProxyRows {
            proxies: Proxies { resource: vec!["deploy/web".into()], namespaces: Default::default() },
            output: RowFormat::Table,
        };
        assert_eq!(policy(&answers, &args, &printer).unwrap(), Outcome::Problems);
        let (out, err) = told();
        assert_eq!(out, "NAMESPACE   POD     PORT   PROTOCOL   ACCESS   EGRESS\nshop        web-1   8080   http1\n");
        assert!(err.ends_with("warning: cannot read /config of shop/web-2: no answer within 10 s\n"), "{err}");
    }
}
