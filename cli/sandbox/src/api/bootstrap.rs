//! What every cluster holds from its first moment.

use super::{Api, admission, aggregation, crd, defaults, gateway, rbac};
use anyhow::Context;
use serde_json::{Value, json};

/// Namespaces every cluster has.
const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Roles and bindings, a list of objects.
const ROLES: &str = include_str!("bootstrap.yaml");

/// Fills an empty store.
pub(super) fn populate(api: &Api) -> anyhow::Result<()> {
    for name in NAMESPACES {
        seed(api, json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
    }
    for object in own_service(api) {
        seed(api, object)?;
    }
    seed(api, dns_service())?;
    for (name, value) in [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)] {
        seed(
            api,
            json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}, "value": value,
                "description": "Used for system critical pods.", "preemptionPolicy": "PreemptLowerPriority",
            }),
        )?;
    }
    for object in roles()? {
        seed(api, object)?;
    }
    rbac::aggregate(api);
    for object in aggregation::own_objects(api) {
        seed(api, object)?;
    }
    for mut definition in gateway::definitions()? {
        crd::complete(api, &mut definition);
        crd::check(&definition).map_err(|error| anyhow::anyhow!("{error}"))?;
        seed(api, definition)?;
    }
    // Also tells of everything else that is served.
    crd::serve_definitions(api);
    Ok(())
}

fn roles() -> anyhow::Result<Vec<Value>> {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let mut roles: Vec<Value> = serde_saphyr::from_str(ROLES).context("reading the roles every cluster has")?;
    for role in &mut roles {
        role["apiVersion"] = format!("{GROUP}/v1").into();
        role["metadata"]["labels"]["kubernetes.io/bootstrapping"] = "rbac-defaults".into();
        role["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] = "true".into();
        if role["roleRef"].is_object() {
            role["roleRef"]["apiGroup"] = GROUP.into();
        }
        for subject in role["subjects"].as_array_mut().into_iter().flatten() {
            subject["apiGroup"] = GROUP.into();
        }
    }
    Ok(roles)
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
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
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

/// The Service of cluster DNS. It has no endpoints: the node itself answers at its address.
fn dns_service() -> Value {
    let address = crate::node::services::DNS_ADDRESS.to_string();
    let labels = json!({"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": labels},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [
                {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53},
            ],
        },
        "status": {"loadBalancer": {}},
    })
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
