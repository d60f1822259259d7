//! What every cluster holds from its first moment.

use super::{Api, admission, defaults};
use anyhow::Context;
use serde_json::{Value, json};

/// Namespaces every cluster has.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Fills an empty store.
pub(super) fn populate(api: &Api) -> anyhow::Result<()> {
    for name in NAMESPACES {
        seed(api, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
    }
    for object in own_service(api) {
        seed(api, object)?;
    }
    for (name, value) in [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)] {
        seed(
            api,
            json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
                "description": "Used for system critical pods.", "preemptionPolicy": "PreemptLowerPriority",
            }),
        )?;
    }
    Ok(())
}

/// The API's own Service, which has no selector: its endpoints are written here.
fn own_service(api: &Api) -> [Value; 3] {
    let endpoint = api.config().endpoint;
    let (address, port) = (endpoint.ip().to_string(), endpoint.port());
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    [
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "kubernetes", "namespace": "default", "labels": labels},
            "spec": {
                "type": "ClusterIP", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}],
            },
            "status": {"loadBalancer": {}},
        }),
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": [{
                "addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            }],
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }),
    ]
}

/// Stores an object without asking anybody.
pub(super) fn seed(api: &Api, mut object: Value) -> anyhow::Result<()> {
    let version = object["apiVersion"].as_str().unwrap_or_default().to_owned();
    let kind = object["kind"].as_str().unwrap_or_default().to_owned();
    let registry = api.registry();
    let resource = registry
        .all()
        .iter()
        .find(|resource| resource.kind == kind && resource.api_version() == version)
        .with_context(|| format!("seeding the cluster: nothing serves {version} {kind}"))?;
    admission::initial_state(resource, &mut object);
    admission::seed_metadata(&mut object);
    if resource.counts_generations() {
        object["metadata"]["generation"] = 1.into();
    }
    defaults::apply_defaults(resource, &mut object);
    let part = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    let key = super::store::Key::new(part("namespace"), part("name"));
    api.store().transact(&resource.collection(), |tx| tx.put(key, object));
    Ok(())
}
