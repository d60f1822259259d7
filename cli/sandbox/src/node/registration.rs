//! The Node object and its heartbeat.

use super::addresses::{Addresses, POD_RANGE, POD_RANGE6};
use anyhow::Context as _;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::time::Duration;

/// The one node's name.
pub const NODE: &str = "sandbox";
/// How often the node says that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// How long it is believed after that.
const LEASE_SECONDS: i32 = 40;
/// How often its conditions are written though nothing changes.
const CONDITIONS: Duration = Duration::from_secs(300);
/// Pods a node is for.
const MAX_PODS: usize = 500;

/// Processors of this machine.
pub(super) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Memory of this machine.
pub(super) fn memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn read_line(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn os_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |name| name.trim_matches('"').to_owned())
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn conditions(now: Timestamp, since: Timestamp) -> Value {
    let (now, since) = (format!("{now:.0}"), format!("{since:.0}"));
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": now, "lastTransitionTime": since,
        })
    };
    json!([
        condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ])
}

fn status(addresses: Addresses, now: Timestamp, since: Timestamp) -> Value {
    let internal = addresses.all().map(|address| json!({"type": "InternalIP", "address": address.to_string()}));
    let hostname = json!({"type": "Hostname", "address": NODE});
    let resources = json!({
        "cpu": cpus().to_string(), "memory": format!("{}Ki", memory_bytes() / 1024), "pods": MAX_PODS.to_string(),
    });
    let version = format!("v{}.0+mesh", "1.34");
    json!({
        "addresses": internal.chain([hostname]).collect::<Vec<_>>(),
        "capacity": resources, "allocatable": resources,
        "conditions": conditions(now, since),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "architecture": architecture(), "operatingSystem": "linux", "osImage": os_name(),
            "kernelVersion": read_line("/proc/sys/kernel/osrelease"),
            "containerRuntimeVersion": format!("mesh://{}", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": version, "kubeProxyVersion": version,
            "bootID": read_line("/proc/sys/kernel/random/boot_id"),
            "machineID": read_line("/etc/machine-id"), "systemUUID": read_line("/etc/machine-id"),
        },
    })
}

/// Makes the node known.
pub(super) async fn register(client: &Client, addresses: Addresses) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let mut ranges = vec![POD_RANGE.to_string()];
    ranges.extend(addresses.v6.map(|_| POD_RANGE6.to_string()));
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {
            "kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture(),
            "node-role.kubernetes.io/control-plane": "",
        }},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges, "providerID": format!("mesh://{NODE}")},
    });
    let node: Node = serde_json::from_value(node).context("describing the node")?;
    match nodes.create(&PostParams::default(), &node).await {
        Err(kube::Error::Api(error)) if error.code == 409 => {}
        other => drop(other.context("registering the node")?),
    }
    let now = Timestamp::now();
    write_status(&nodes, addresses, now, now).await
}

async fn write_status(nodes: &Api<Node>, addresses: Addresses, now: Timestamp, since: Timestamp) -> anyhow::Result<()> {
    let patch = json!({"status": status(addresses, now, since)});
    let written = nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(patch)).await;
    written.map(drop).context("writing the node's status")
}

/// Says again and again that the node lives, until dropped.
pub(super) async fn heartbeat(client: Client, addresses: Addresses) {
    let since = Timestamp::now();
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let nodes: Api<Node> = Api::all(client);
    let mut ticks = tokio::time::interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut written = tokio::time::Instant::now();
    loop {
        ticks.tick().await;
        let now = Timestamp::now();
        if let Err(error) = renew(&leases, now).await {
            tracing::debug!(%error, "renewing the node's lease");
        }
        if written.elapsed() >= CONDITIONS {
            written = tokio::time::Instant::now();
            if let Err(error) = write_status(&nodes, addresses, now, since).await {
                tracing::debug!(%error, "renewing the node's conditions");
            }
        }
    }
}

async fn renew(leases: &Api<Lease>, now: Timestamp) -> kube::Result<()> {
    let time = format!("{now:.6}");
    let spec = json!({"holderIdentity": NODE, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": time});
    let patch = Patch::Merge(json!({"spec": spec}));
    match leases.patch(NODE, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(error)) if error.code == 404 => {}
        other => return other.map(drop),
    }
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": NODE, "namespace": "kube-node-lease"}, "spec": spec,
    });
    let lease: Lease = serde_json::from_value(lease).map_err(kube::Error::SerdeError)?;
    leases.create(&PostParams::default(), &lease).await.map(drop)
}
