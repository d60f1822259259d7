//! Waiting, during a rotation, until every proxy and every replica of the control plane has followed: who there is, what
//! each says of itself, and who holds the rotation up.

use super::rotation::present;
use crate::args::IdentityRotate;
use crate::cluster::Cluster;
use crate::error::{Context, Error, Result};
use crate::output::Printer;
use crate::proxies;
use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use mesh_api::Trust;
use mesh_api::names::{ADMIN_PORT, CONTROL_ADMIN_PORT, CONTROL_NAME, IDENTITY_PATH, PROXY_CONTAINER, PROXY_VERSION};
use mesh_manifests::rotation::{Goal, IssuerState, Phase, fingerprints};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Pause between two rounds of questions.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How many are asked at a time.
const AT_A_TIME: usize = 16;
/// How many of those that hold a rotation up are named.
const NAMED: usize = 10;

/// How the waiting ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// All have followed, or may be left behind.
    Done,
    /// Somebody else has begun another phase meanwhile, or has written to the secret.
    Elsewhere,
}

/// A part of the mesh that has certificates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Holder {
    namespace: String,
    pod: String,
    /// Of its proxy; control has the mesh's.
    version: Option<String>,
    port: u16,
}

/// Who has not followed, and why.
type Late = Vec<(Holder, String)>;

/// Waits until the phase's goal is met everywhere.
pub(super) async fn wait(
    cluster: &Cluster,
    state: &IssuerState,
    phase: Phase,
    args: &IdentityRotate,
    printer: &Printer,
) -> Result<Waited> {
    let Some(goal) = state.goal().during(|| "understand the phase")? else { return Ok(Waited::Elsewhere) };
    let (doing, done, failed) = words(phase);
    let step = printer.step(doing);
    let deadline = Instant::now() + args.timeout;
    let mut met = BTreeSet::new();
    loop {
        let holders = holders(cluster).await?;
        let late = late(cluster, &holders, &goal, &mut met).await;
        if present(cluster).await? != *state {
            return Ok(Waited::Elsewhere);
        }
        if late.is_empty() {
            step.done(&format!("{done} ({} proxies and replicas of the control plane)", met.len()));
            return Ok(Waited::Done);
        }
        let count = format!("{} of {}", late.len(), holders.len());
        if Instant::now() >= deadline {
            let names = named(&late);
            if args.force {
                drop(step);
                printer.warn(&format!("going on without {count}, which lose their connections: {names}"));
                return Ok(Waited::Done);
            }
            return Err(Error::new(format!("{count} {failed}: {names}"))
                .during(format!("finish phase {phase} of the rotation"))
                .hint("`meshctl check --proxy -A` says what is wrong with them. Traffic goes on as it is; run the command \
                       again to go on waiting, with --force to go on without them, with --abort to return (as long as the \
                       old issuer signs)"));
        }
        step.now(&format!("{doing}: {count} have not followed yet"));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// What is waited for, what was reached, and what the late ones have not done.
fn words(phase: Phase) -> (&'static str, &'static str, &'static str) {
    match phase {
        Phase::Trust => (
            "phase 1 of 3, trust: waiting until everybody trusts the new anchor",
            "phase 1 of 3, trust: everybody trusts the new anchor beside the old one",
            "do not trust the new anchor",
        ),
        Phase::Issue => (
            "phase 2 of 3, issue: waiting until every certificate is signed by the new issuer",
            "phase 2 of 3, issue: every certificate is signed by the new issuer",
            "have no certificate of the new issuer",
        ),
        Phase::Retire => (
            "phase 3 of 3, retire: waiting until nobody trusts the old anchor",
            "phase 3 of 3, retire: nobody trusts the old anchor any more",
            "go on trusting the old anchor",
        ),
    }
}

/// Who has followed so far, for people.
pub(super) async fn told(cluster: &Cluster, state: &IssuerState) -> Result<String> {
    let Some(goal) = state.goal().during(|| "understand the phase")? else { return Ok(String::new()) };
    let holders = holders(cluster).await?;
    let mut met = BTreeSet::new();
    let late = late(cluster, &holders, &goal, &mut met).await;
    let mut text = format!("followed {} of {} proxies and replicas of the control plane\n", met.len(), holders.len());
    text.extend(late.iter().map(|(holder, why)| format!("  not yet: {}/{}: {why}\n", holder.namespace, holder.pod)));
    Ok(text)
}

/// Names pods whose proxies could not come back if their container were started again: they were made with anchors that
/// are retired, and no earlier authority vouches for the present one.
pub(super) async fn note_stranded(cluster: &Cluster, state: &IssuerState, printer: &Printer) -> Result<()> {
    if state.vouched() {
        return Ok(());
    }
    let anchors = state.anchors().during(|| "understand the trust anchors")?;
    let pods = all_pods(cluster).await?;
    let stranded: Vec<String> = pods.iter().filter(|pod| is_stranded(pod, &anchors)).map(name).collect();
    if !stranded.is_empty() {
        let (count, some) = (stranded.len(), stranded[..stranded.len().min(NAMED)].join(", "));
        printer.warn(&format!(
            "{count} pods were made with the old anchor: were the container of their proxy started again, it would not \
             find the control plane. Restart them (kubectl rollout restart) when it suits you: {some}"
        ));
    }
    Ok(())
}

fn is_stranded(pod: &Pod, anchors: &[String]) -> bool {
    let Some(spec) = pod.spec.as_ref().filter(|_| is_meshed(pod)) else { return false };
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let env = containers.filter(|container| container.name == PROXY_CONTAINER).flat_map(|it| it.env.iter().flatten());
    let own = env.filter(|env| env.name == "MESH_TRUST_ANCHORS").find_map(|env| env.value.as_deref());
    own.is_some_and(|own| !fingerprints(own).unwrap_or_default().iter().any(|print| anchors.contains(print)))
}

async fn all_pods(cluster: &Cluster) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    Ok(pods.list(&ListParams::default()).await.during(|| "list pods")?.items)
}

/// Everybody who has certificates.
async fn holders(cluster: &Cluster) -> Result<Vec<Holder>> {
    Ok(all_pods(cluster).await?.iter().filter_map(|pod| holder(pod, &cluster.system_namespace)).collect())
}

/// `None` for whom nobody waits: what has no certificates, what is ending, and what has not begun: it learns everything at
/// first contact.
fn holder(pod: &Pod, system_namespace: &str) -> Option<Holder> {
    let label = pod.metadata.labels.as_ref().and_then(|all| all.get("app.kubernetes.io/name"));
    let is_control =
        pod.metadata.namespace.as_deref() == Some(system_namespace) && label.is_some_and(|label| label == CONTROL_NAME);
    let (container, port) = match is_control {
        true => (CONTROL_NAME, CONTROL_ADMIN_PORT),
        false => (PROXY_CONTAINER, ADMIN_PORT),
    };
    let status = pod.status.as_ref()?;
    let mut containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let runs = containers.any(|it| it.name == container && it.state.as_ref().is_some_and(|it| it.running.is_some()));
    if !(is_control || is_meshed(pod)) || !runs || pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    Some(Holder {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        pod: pod.metadata.name.clone().unwrap_or_default(),
        version: pod.metadata.annotations.as_ref().and_then(|all| all.get(PROXY_VERSION)).cloned(),
        port,
    })
}

fn is_meshed(pod: &Pod) -> bool {
    pod.metadata.annotations.iter().any(|all| all.contains_key(PROXY_VERSION))
}

fn name(pod: &Pod) -> String {
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}", of(&pod.metadata.namespace), of(&pod.metadata.name))
}

/// Who has not followed. Whoever has, is not asked again.
async fn late(cluster: &Cluster, holders: &[Holder], goal: &Goal, met: &mut BTreeSet<Holder>) -> Late {
    met.retain(|holder| holders.contains(holder));
    let open: Vec<&Holder> = holders.iter().filter(|holder| !met.contains(holder)).collect();
    let answers: Vec<Option<String>> =
        stream::iter(&open).map(|holder| ask(cluster, holder, goal)).buffered(AT_A_TIME).collect().await;
    let mut late = Vec::new();
    for (holder, why) in open.into_iter().zip(answers) {
        match why {
            Some(why) => late.push((holder.clone(), why)),
            None => drop(met.insert(holder.clone())),
        }
    }
    late
}

/// Why one has not followed; `None` if it has.
async fn ask(cluster: &Cluster, holder: &Holder, goal: &Goal) -> Option<String> {
    match proxies::ask_port(cluster, &holder.namespace, &holder.pod, holder.port, IDENTITY_PATH).await {
        Ok(text) => match serde_json::from_str::<Trust>(&text) {
            Ok(report) => goal.unmet(&report),
            Err(error) => Some(format!("what it says of itself cannot be read: {error}")),
        },
        Err(error) if error.to_string().contains("it answered 404") => {
            let version = holder.version.as_deref().unwrap_or("of an earlier version");
            Some(format!("it is {version} and cannot tell whom it trusts; `meshctl upgrade --proxies` renews it"))
        }
        Err(error) => Some(error.cause().to_owned()),
    }
}

fn named(late: &Late) -> String {
    let mut names: Vec<String> =
        late.iter().take(NAMED).map(|(it, why)| format!("{}/{}: {why}", it.namespace, it.pod)).collect();
    if late.len() > NAMED {
        names.push(format!("and {} more", late.len() - NAMED));
    }
    names.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A pod one of whose containers runs.
    fn pod(namespace: &str, metadata: Value, spec: Value, runs: &str) -> Pod {
        let of = |name: &str, state: Value| json!({"name": name, "state": state, "image": "", "imageID": "", "ready": true, "restartCount": 0});
        let statuses = [of(runs, json!({"running": {}})), of("app", json!({"waiting": {}}))];
        let mut object = json!({"metadata": metadata, "spec": spec, "status": {"initContainerStatuses": statuses}});
        object["metadata"]["namespace"] = namespace.into();
        object["metadata"]["name"] = "it".into();
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn proxies_and_control_are_asked_and_nobody_else() {
        let check = |namespace: &str, metadata: Value, runs: &str, expect: Option<u16>| {
            let found = holder(&pod(namespace, metadata, json!({"containers": []}), runs), "mesh-system");
            assert_eq!(found.map(|holder| holder.port), expect);
        };
        let meshed = json!({"annotations": {PROXY_VERSION: "0.1.0"}});
        let control = json!({"labels": {"app.kubernetes.io/name": CONTROL_NAME}});
        check("shop", meshed.clone(), PROXY_CONTAINER, Some(ADMIN_PORT));
        check("shop", meshed.clone(), "app", None);
        check("shop", json!({}), PROXY_CONTAINER, None);
        check("shop", control.clone(), CONTROL_NAME, None);
        check("mesh-system", control, CONTROL_NAME, Some(CONTROL_ADMIN_PORT));
        let ending = json!({"annotations": {PROXY_VERSION: "0.1.0"}, "deletionTimestamp": "2026-01-01T00:00:00Z"});
        check("shop", ending, PROXY_CONTAINER, None);
    }

    #[test]
    fn pods_made_with_retired_anchors_are_found() {
        let anchors = |name: &str| {
            let issuer = mesh_manifests::issuer::Issuer::generate(name, std::time::SystemTime::now());
            issuer.unwrap().anchors_pem
        };
        let (old, new) = (anchors("old"), anchors("new"));
        let present = fingerprints(&new).unwrap();
        let with = |pem: &str| {
            let proxy = json!({"name": PROXY_CONTAINER, "env": [{"name": "MESH_TRUST_ANCHORS", "value": pem}]});
            let metadata = json!({"annotations": {PROXY_VERSION: "0.1.0"}});
            pod("shop", metadata, json!({"containers": [], "initContainers": [proxy]}), "app")
        };
        assert!(is_stranded(&with(&old), &present));
        assert!(!is_stranded(&with(&new), &present));
        assert!(!is_stranded(&with(&format!("{old}{new}")), &present));
    }

    #[test]
    fn not_all_are_named() {
        let holder = holder(
            &pod("shop", json!({"annotations": {PROXY_VERSION: "1"}}), json!({"containers": []}), PROXY_CONTAINER),
            "mesh-system",
        );
        let late = vec![(holder.unwrap(), "why".to_owned()); 12];
        let text = named(&late);
        assert!(text.starts_with("shop/it: why; ") && text.ends_with("; and 2 more"), "{text}");
    }
}
