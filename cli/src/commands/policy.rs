//! `meshctl policy`: policies about who may call whom, and what may leave, held against what was seen before anybody is
//! refused.

use super::policy_egress::{self, Exit};
use super::sources;
use crate::args::{self, Global, Policy, PolicySuggest, PolicyTest, PolicyWhat};
use crate::cluster::Cluster;
use crate::error::{Context, Error, Hint, Outcome, Result};
use crate::observe::{Ask, once};
use crate::output::{Printer, RowFormat, numbers, words};
use crate::shown::Shown;
use crate::top::recording::Recording;
use comfy_table::{Cell, Color};
use http::HeaderMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_api::access::{Asked, Caller, Head, Operation, Source, What, decide};
use mesh_api::golden::{Carried, Direction, GoldenFrame, TlsStatus, WorkloadSeries};
use mesh_api::{Network, SpiffeId, WorkloadRef};
use mesh_control::compile;
use mesh_control::world::World;
use mesh_control::world::access_policy::AccessPolicyView;
use mesh_control::world::egress_policy::EgressPolicyView;
use mesh_control::world::view::{Name, PodView};
use mesh_manifests::config::MeshConfig;
use mesh_manifests::policies::access_policy::{AccessClause, AccessTarget, TargetKind};
use mesh_manifests::policies::{AccessPolicy, AccessPolicySpec, EgressPolicy, EgressPolicySpec};
use mesh_proxy::access::evidence::Checks;
use mesh_proxy::learned::PROBE;
use mesh_proxy::route::matcher;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// How long control may take to ask all proxies.
const DEADLINE: Duration = Duration::from_secs(20);
/// Name of suggested policies, before that of the workload.
const SUGGESTED: &str = "seen-callers-of";

/// Does what is asked for about policies.
pub async fn run(global: &Global, args: &Policy, printer: &Printer) -> Result<Outcome> {
    match &args.what {
        PolicyWhat::Test(args) => test(global, args, printer).await,
        PolicyWhat::Suggest(args) => suggest(global, args, printer).await,
    }
}

/// Calls of one kind, as the callee's proxies counted them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    callee: WorkloadRef,
    port: u16,
    caller: WorkloadRef,
    route: String,
    method: String,
    seen: Sight,
}

/// How much proxies see of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sight {
    Http,
    Grpc,
    Opaque,
    Tls,
}

/// What was seen of a series, and how often.
pub(super) fn sight(entry: &WorkloadSeries) -> (Sight, u64) {
    match entry.key.carried {
        Carried::Http => (Sight::Http, entry.series.requests),
        Carried::Grpc => (Sight::Grpc, entry.series.requests),
        Carried::Tcp if entry.key.tls == TlsStatus::Passthrough => (Sight::Tls, entry.series.tcp_opened),
        Carried::Tcp => (Sight::Opaque, entry.series.tcp_opened),
    }
}

/// Every kind of call with how often it was seen, health probes left out.
fn calls(frames: &[GoldenFrame], namespace: Option<&str>) -> BTreeMap<Call, u64> {
    let mut calls = BTreeMap::new();
    for entry in frames.iter().flat_map(|frame| &frame.series) {
        let key = &entry.key;
        let meant = namespace.is_none_or(|name| name == entry.workload.namespace);
        if key.direction != Direction::Inbound || key.route == PROBE || !meant {
            continue;
        }
        let (seen, count) = sight(entry);
        let call = Call {
            callee: entry.workload.clone(),
            port: key.port,
            caller: key.peer.clone(),
            route: key.route.clone(),
            method: key.method.clone(),
            seen,
        };
        if count > 0 {
            *calls.entry(call).or_insert(0) += count;
        }
    }
    calls
}

/// All that was seen, with how often.
#[derive(Debug, Default)]
struct Seen {
    /// Calls of meshed workloads.
    calls: BTreeMap<Call, u64>,
    /// Calls out of the cluster.
    exits: BTreeMap<Exit, u64>,
}

/// Policies that are to be tried out.
#[derive(Debug, Default)]
struct Tried {
    access: Vec<(Name, AccessPolicySpec)>,
    egress: Vec<(Name, EgressPolicySpec)>,
}

/// What would change for a kind of call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
struct Change {
    src: String,
    dst: String,
    port: u16,
    method: String,
    route: String,
    /// How often it was seen.
    count: u64,
    allowed_now: bool,
    allowed_then: bool,
    /// What would decide.
    why: String,
}

async fn test(global: &Global, args: &PolicyTest, printer: &Printer) -> Result<Outcome> {
    let cluster = Cluster::connect(global).await?;
    let policies = read(&args.files, args.seen.namespaces.namespace.as_deref().unwrap_or(&cluster.namespace))?;
    let Shown { mut world, config, .. } = Shown::read(&cluster).await?;
    let seen = look(&cluster, &args.seen).await?;
    let scope = cluster.scope(&args.seen.namespaces);
    let seen = Seen { calls: calls(&seen, scope.as_deref()), exits: policy_egress::exits(&seen, scope.as_deref()) };
    let changes = judge(&mut world, policies, &config, &seen);
    match args.output {
        RowFormat::Json => printer.json(&changes)?,
        RowFormat::Yaml => printer.yaml(&changes)?,
        _ => print(&changes, seen.calls.len() + seen.exits.len(), printer)?,
    }
    let refuses = changes.iter().any(|change| !change.allowed_then);
    Ok(if refuses { Outcome::Problems } else { Outcome::Well })
}

fn print(changes: &[Change], calls: usize, printer: &Printer) -> Result<()> {
    let columns = [
        words("SRC"),
        words("DST"),
        numbers("PORT"),
        words("METHOD"),
        words("ROUTE"),
        numbers("SEEN"),
        words("WOULD BE"),
    ];
    let cells = |change: &Change| {
        let (word, color) = if change.allowed_then { ("let through", Color::Green) } else { ("refused", Color::Red) };
        vec![
            Cell::new(&change.src),
            Cell::new(&change.dst),
            Cell::new(change.port),
            Cell::new(&change.method),
            Cell::new(&change.route),
            Cell::new(change.count),
            Cell::new(format!("{word}: {}", change.why)).fg(color),
        ]
    };
    if !changes.is_empty() {
        printer.table(&columns, changes.iter().map(cells).collect())?;
    }
    printer.note(&format!("{calls} kinds of calls were seen; for {} of them something would change.", changes.len()));
    Ok(())
}

/// The policies of the files; those without a namespace are of `namespace`.
fn read(files: &[std::path::PathBuf], namespace: &str) -> Result<Tried> {
    let mut tried = Tried::default();
    for source in sources::find(files)? {
        let named = || format!("read {}", source.name());
        let mut text = String::new();
        std::io::Read::read_to_string(&mut source.open()?, &mut text).during(named)?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).during(named)?;
        for object in objects {
            let name = |meta: &ObjectMeta| match Name::of(meta) {
                name if name.namespace.is_empty() => Name { namespace: namespace.to_owned(), ..name },
                name => name,
            };
            match object["kind"].as_str() {
                Some("AccessPolicy") => {
                    let policy: AccessPolicy = serde_json::from_value(object).during(named)?;
                    tried.access.push((name(&policy.metadata), policy.spec));
                }
                Some("EgressPolicy") => {
                    let policy: EgressPolicy = serde_json::from_value(object).during(named)?;
                    tried.egress.push((name(&policy.metadata), policy.spec));
                }
                _ => {}
            }
        }
    }
    if tried.access.is_empty() && tried.egress.is_empty() {
        return Err(Error::new("there is neither an AccessPolicy nor an EgressPolicy in the files"))
            .hint(|| "meshctl policy suggest writes some");
    }
    Ok(tried)
}

/// The frames of the recording, or one of the cluster that covers the window.
async fn look(cluster: &Cluster, seen: &args::Seen) -> Result<Vec<GoldenFrame>> {
    if let Some(path) = &seen.recording {
        let recording = Recording::open(path)?;
        return Ok(recording.from(0).filter_map(|entry| entry.golden).map(|frame| *frame).collect());
    }
    let ask = Ask { namespace: cluster.scope(&seen.namespaces), window: seen.window, frames: Some(1), pods: false };
    Ok(vec![once(cluster, &ask, DEADLINE).await?])
}

/// What changes when these policies are applied to the world.
fn judge(world: &mut World, policies: Tried, config: &MeshConfig, seen: &Seen) -> Vec<Change> {
    let decisions = |world: &World| -> Vec<Option<(bool, String)>> {
        let calls = seen.calls.keys().map(|call| decision(world, config, call));
        calls.chain(seen.exits.keys().map(|exit| policy_egress::decision(world, config, exit))).collect()
    };
    let before = decisions(world);
    for (name, spec) in policies.access {
        world.apply(name, AccessPolicyView { spec, ..AccessPolicyView::default() });
    }
    for (name, spec) in policies.egress {
        world.apply(name, EgressPolicyView { spec, ..EgressPolicyView::default() });
    }
    let after = decisions(world);
    let of_call = |call: &Call, count: u64| Change {
        src: call.caller.to_string(),
        dst: call.callee.to_string(),
        port: call.port,
        method: call.method.clone(),
        route: call.route.clone(),
        count,
        ..Change::default()
    };
    let of_exit = |exit: &Exit, count: u64| Change {
        src: exit.caller.to_string(),
        dst: exit.host.clone(),
        port: exit.port,
        count,
        ..Change::default()
    };
    let calls = seen.calls.iter().map(|(call, count)| of_call(call, *count));
    let all = calls.chain(seen.exits.iter().map(|(exit, count)| of_exit(exit, *count)));
    let changes = all.zip(before.into_iter().zip(after)).filter_map(|(change, decided)| match decided {
        (Some((allowed_now, _)), Some((allowed_then, why))) if allowed_now != allowed_then => {
            Some(Change { allowed_now, allowed_then, why, ..change })
        }
        _ => None,
    });
    changes.collect()
}

/// Whether a call is let in, and why; `None` if the callee is gone.
fn decision(world: &World, config: &MeshConfig, call: &Call) -> Option<(bool, String)> {
    // All pods of a workload are alike, but for rollouts.
    let (name, pod) = world.pods().find(|(_, pod)| pod.workload == call.callee && !pod.deleted)?;
    let access = compile::access::compile(world, config, name, pod);
    let identity = identity(&config.trust_domain, &call.caller);
    let no_fields = |_: &str, _: &dyn Fn(&[u8]) -> bool| false;
    let method = if call.seen == Sight::Grpc { "POST" } else { &call.method };
    let (checks, fields) = (Checks::compile(&access).unwrap_or_default(), HeaderMap::new());
    let grpc = call.seen == Sight::Grpc;
    let evidence = checks.of(matcher::Asked::new(method, "", &call.route, "", &fields), grpc, 0);
    let head = Head { method, path: &call.route, grpc, header: &no_fields, evidence: &evidence };
    let what = match call.seen {
        Sight::Http | Sight::Grpc => What::Request(head),
        Sight::Opaque => What::Opaque,
        Sight::Tls => What::Tls,
    };
    let address = address(world, &call.caller).unwrap_or(IpAddr::from([0, 0, 0, 0]));
    let decision = decide(&access, &Caller::new(address, identity.as_ref()), &Asked { port: call.port, what });
    Some((decision.allowed, decision.why.to_string()))
}

/// The identity a caller proved, if it did.
fn identity(trust_domain: &str, caller: &WorkloadRef) -> Option<SpiffeId> {
    (caller.kind == "serviceaccount").then(|| SpiffeId::new(trust_domain, &caller.namespace, &caller.name))
}

/// Where a caller calls from: its own name, or that of a pod which is one.
fn address(world: &World, caller: &WorkloadRef) -> Option<IpAddr> {
    if caller.kind == "external" {
        return caller.name.parse().ok();
    }
    let of_account = caller.kind == "serviceaccount";
    let is_one = |(name, pod): &(&Name, &PodView)| match of_account {
        true => name.namespace == caller.namespace && pod.service_account == caller.name,
        false => pod.workload == *caller,
    };
    world.pods().filter(is_one).find_map(|(_, pod)| pod.ips.first().copied())
}

async fn suggest(global: &Global, args: &PolicySuggest, printer: &Printer) -> Result<Outcome> {
    let cluster = Cluster::connect(global).await?;
    let Shown { world, .. } = Shown::read(&cluster).await?;
    let scope = cluster.scope(&args.seen.namespaces);
    let calls = calls(&look(&cluster, &args.seen).await?, scope.as_deref());
    let policies = suggested(&world, &calls);
    if policies.is_empty() {
        printer.note("Nobody called a meshed workload meanwhile: there is nothing to allow.");
        return Ok(Outcome::Well);
    }
    let objects: Vec<Value> =
        policies.iter().map(serde_json::to_value).collect::<std::result::Result<_, _>>().during(|| "write policies")?;
    printer.data(&mesh_manifests::yaml::to_yaml(&objects).during(|| "write policies")?)?;
    Ok(Outcome::Well)
}

/// For each workload a policy: callers by the ports they call, those with the same ports in one rule.
fn suggested(world: &World, calls: &BTreeMap<Call, u64>) -> Vec<AccessPolicy> {
    let mut callees: BTreeMap<&WorkloadRef, BTreeMap<&WorkloadRef, BTreeSet<u16>>> = BTreeMap::new();
    for call in calls.keys() {
        callees.entry(&call.callee).or_default().entry(&call.caller).or_default().insert(call.port);
    }
    let mut policies = Vec::new();
    for (callee, callers) in callees {
        let mut by_ports: BTreeMap<BTreeSet<u16>, Vec<&WorkloadRef>> = BTreeMap::new();
        for (caller, ports) in callers {
            by_ports.entry(ports).or_default().push(caller);
        }
        let rules = by_ports.into_iter().filter_map(|(ports, callers)| {
            let from = sources_of(world, &callee.namespace, &callers);
            let to = vec![Operation { ports: ports.into_iter().collect(), ..Operation::default() }];
            (!from.is_empty()).then_some(AccessClause { from, to })
        });
        let rules: Vec<AccessClause> = rules.collect();
        let Some(target) = target(callee).filter(|_| !rules.is_empty()) else { continue };
        let spec = AccessPolicySpec { target: Some(target), rules, ..AccessPolicySpec::default() };
        let mut policy = AccessPolicy::new(&format!("{SUGGESTED}-{}", callee.name), spec);
        policy.metadata.namespace = Some(callee.namespace.clone());
        policies.push(policy);
    }
    policies
}

fn sources_of(world: &World, namespace: &str, callers: &[&WorkloadRef]) -> Vec<Source> {
    let (meshed, plain): (Vec<&WorkloadRef>, Vec<&WorkloadRef>) =
        callers.iter().partition(|caller| caller.kind == "serviceaccount");
    let account = |caller: &&WorkloadRef| match caller.namespace == namespace {
        true => caller.name.clone(),
        false => format!("{}/{}", caller.namespace, caller.name),
    };
    let service_accounts: Vec<String> = meshed.iter().map(account).collect();
    let networks: BTreeSet<Network> =
        plain.iter().filter_map(|caller| address(world, caller)).map(Network::of).collect();
    let mut sources = Vec::new();
    if !service_accounts.is_empty() {
        sources.push(Source { service_accounts, ..Source::default() });
    }
    if !networks.is_empty() {
        let networks = networks.into_iter().collect();
        sources.push(Source { networks, unauthenticated: true, ..Source::default() });
    }
    sources
}

fn target(callee: &WorkloadRef) -> Option<AccessTarget> {
    let kind = TargetKind::ALL.into_iter().find(|kind| kind.word() == callee.kind)?;
    Some(AccessTarget { kind: Some(kind), name: Some(callee.name.clone()), selector: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::golden::{Series, SeriesKey, WorkloadSeries};
    use mesh_control::world::view::PodView;

    fn inbound(
        callee: &str,
        caller: WorkloadRef,
        port: u16,
        method: &str,
        route: &str,
        requests: u64,
    ) -> WorkloadSeries {
        let tls = if caller.kind == "external" { TlsStatus::Plain } else { TlsStatus::Mutual };
        WorkloadSeries {
            workload: WorkloadRef::new("shop", "deployment", callee),
            pod: None,
            key: SeriesKey {
                direction: Direction::Inbound,
                carried: Carried::Http,
                peer: caller,
                service: None,
                port,
                route: route.to_owned(),
                method: method.to_owned(),
                tls,
            },
            series: Series { requests, ..Series::default() },
        }
    }

    fn account(name: &str) -> WorkloadRef {
        WorkloadRef::new("shop", "serviceaccount", name)
    }

    fn seen() -> Vec<GoldenFrame> {
        let stranger = || WorkloadRef::new("", "external", "10.9.0.1");
        let frame = |series| GoldenFrame { series, ..GoldenFrame::default() };
        vec![
            frame(vec![
                inbound("web", account("load"), 8080, "GET", "/", 7),
                inbound("web", account("load"), 8080, "GET", PROBE, 7),
                inbound("web", stranger(), 8080, "GET", "/", 1),
                inbound("web", account("admin"), 8080, "POST", "/admin", 2),
            ]),
            frame(vec![
                inbound("web", account("load"), 8080, "GET", "/", 3),
                inbound("web", account("admin"), 9090, "GET", "/", 2),
                inbound("cart", account("web"), 8080, "GET", "/", 2),
            ]),
        ]
    }

    fn world() -> World {
        let mut world = World::default();
        for name in ["web", "cart"] {
            let pod = PodView {
                workload: WorkloadRef::new("shop", "deployment", name),
                ..PodView::from(&k8s_openapi::api::core::v1::Pod::default())
            };
            world.apply(Name::new("shop", &format!("{name}-1")), pod);
        }
        world
    }

    #[test]
    fn a_suggestion_lets_in_what_was_seen_and_no_more() {
        let calls = calls(&seen(), Some("shop"));
        let policies = suggested(&world(), &calls);
        let written: Vec<Value> = policies.iter().map(|policy| serde_json::to_value(&policy.spec).unwrap()).collect();
        let expect = serde_json::json!([
            {"target": {"kind": "Deployment", "name": "cart"}, "action": "Allow",
             "rules": [{"from": [{"serviceAccounts": ["web"]}], "to": [{"ports": [8080]}]}]},
            {"target": {"kind": "Deployment", "name": "web"}, "action": "Allow", "rules": [
                {"from": [{"serviceAccounts": ["load"]}, {"networks": ["10.9.0.1/32"], "unauthenticated": true}],
                 "to": [{"ports": [8080]}]},
                {"from": [{"serviceAccounts": ["admin"]}], "to": [{"ports": [8080, 9090]}]},
            ]},
        ]);
        assert_eq!(Value::from(written), expect);
        // Held against what it was made from, it changes nothing.
        let named = policies.into_iter().map(|policy| (Name::of(&policy.metadata), policy.spec));
        let tried = Tried { access: named.collect(), ..Tried::default() };
        assert_eq!(judge(&mut world(), tried, &MeshConfig::default(), &Seen { calls, ..Seen::default() }), []);
    }

    #[test]
    fn what_would_change_is_told() {
        let spec = serde_json::json!({"rules": [{"from": [{"serviceAccounts": ["load", "web"]}]}, {"to": [{"paths": ["/admin"]}]}]});
        let access = vec![(Name::new("shop", "new"), serde_json::from_value(spec).unwrap())];
        let calls_seen = Seen { calls: calls(&seen(), Some("shop")), ..Seen::default() };
        let tried = Tried { access, ..Tried::default() };
        let changes = judge(&mut world(), tried, &MeshConfig::default(), &calls_seen);
        let told: Vec<_> = changes.iter().map(|c| (c.src.as_str(), c.port, c.route.as_str(), c.count)).collect();
        assert_eq!(told, [("/external/10.9.0.1", 8080, "/", 1), ("shop/serviceaccount/admin", 9090, "/", 2)]);
        assert!(changes.iter().all(|change| change.allowed_now && !change.allowed_then));
        assert!(changes[0].why.contains("shop/new"), "{}", changes[0].why);
        assert_eq!(calls(&seen(), Some("elsewhere")).len(), 0);
    }

    #[test]
    fn what_could_not_leave_any_more_is_told() {
        let mut frames = seen();
        let mut out = inbound("web", WorkloadRef::new("", "external", "api.example.org"), 443, "", "", 0);
        out.key.direction = Direction::Outbound;
        out.key.carried = Carried::Tcp;
        out.key.tls = TlsStatus::Passthrough;
        out.series.tcp_opened = 4;
        frames[0].series.push(out);
        let exits = || policy_egress::exits(&frames, Some("shop"));
        let check = |host: &str, expect: &[(&str, u16, u64, bool)]| {
            let spec = serde_json::json!({"rules": [{"hosts": [host]}]});
            let egress = vec![(Name::new("shop", "out"), serde_json::from_value(spec).unwrap())];
            let held = Seen { exits: exits(), ..Seen::default() };
            let changes = judge(&mut world(), Tried { egress, ..Tried::default() }, &MeshConfig::default(), &held);
            let told: Vec<_> = changes.iter().map(|c| (c.dst.as_str(), c.port, c.count, c.allowed_then)).collect();
            assert_eq!(told, expect, "{host}");
        };
        check("*.example.com", &[("api.example.org", 443, 4, false)]);
        check("api.example.org", &[]);
    }
}
