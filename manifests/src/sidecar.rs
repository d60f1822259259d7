//! The parts that the injector adds to a pod: the redirect step, the proxy, its token.
//!
//! Where nodes run native sidecars (init containers that keep running), both containers stand first among the init
//! containers. The redirect is set before anything else runs; the proxy is ready before the application's own init
//! containers and outlives the application when the pod stops.
//!
//! Elsewhere the proxy is the first of the containers, and the others are started when it is ready, because a node waits
//! for a container's `postStart` hook before it starts the next. The redirect is the last init container: those of the
//! application run before it, without the mesh, as there is no proxy yet that their traffic could be brought to.

use crate::config::MeshConfig;
use crate::config::ProxyResources;
use crate::settings::ProxySettings;
use mesh_api::names;
use serde_json::{Map, Value, json};

/// Volume that holds the proxy's service account token.
pub const TOKEN_VOLUME: &str = "mesh-identity-token";
/// Directory of the token in the proxy's container.
const TOKEN_DIRECTORY: &str = "/var/run/secrets/meshctl.dev";
/// Where the image has the proxy's program.
const PROGRAM: &str = "/usr/local/bin/mesh-proxy";
/// How long the application waits for a proxy that is no native sidecar: as long as the startup probe.
const AWAIT: &str = "120s";
/// Lifetime of the token; the node renews it well before.
const TOKEN_SECONDS: u32 = 3600;

/// The init container that makes the pod's traffic pass through the proxy; or that, where the node has seen to it, proves
/// by a connection that it does. The node's agent reads there what the pod needs.
pub fn redirect_container(settings: &ProxySettings, config: &MeshConfig) -> Value {
    let mut args = vec!["redirect".to_owned()];
    args.extend(config.cni_enabled.then(|| "--check".to_owned()));
    args.extend([
        "--proxy-uid".to_owned(),
        names::PROXY_UID.to_string(),
        "--outbound-port".to_owned(),
        names::OUTBOUND_PORT.to_string(),
        "--inbound-port".to_owned(),
        names::INBOUND_PORT.to_string(),
        "--skip-inbound-ports".to_owned(),
        settings.skip_inbound_ports.union(&crate::ports::PortSet::of(&[names::ADMIN_PORT])).to_string(),
    ]);
    if !settings.skip_outbound_ports.is_empty() {
        args.extend(["--skip-outbound-ports".to_owned(), settings.skip_outbound_ports.to_string()]);
    }
    json!({
        "name": names::REDIRECT_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": config.proxy.image_pull_policy.as_str(),
        "args": args,
        "resources": resource_object(&settings.resources),
        "securityContext": if config.cni_enabled { unprivileged(names::CHECK_UID) } else { over_the_network() },
        "terminationMessagePolicy": "FallbackToLogsOnError",
    })
}

/// Root, with what it takes to set rules in the pod's network.
fn over_the_network() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] },
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "runAsGroup": 0,
        "runAsNonRoot": false,
        "runAsUser": 0,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// What Pod Security `restricted` demands, and no files to write.
fn unprivileged(user: u32) -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": { "drop": ["ALL"] },
        "readOnlyRootFilesystem": true,
        "runAsGroup": user,
        "runAsNonRoot": true,
        "runAsUser": user,
        "seccompProfile": { "type": "RuntimeDefault" },
    })
}

/// The proxy itself.
pub fn proxy_container(settings: &ProxySettings, config: &MeshConfig) -> Value {
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": names::ADMIN_PORT },
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let mut container = json!({
        "name": names::PROXY_CONTAINER,
        "image": settings.image,
        "imagePullPolicy": config.proxy.image_pull_policy.as_str(),
        "restartPolicy": "Always",
        "env": environment(settings, config),
        "ports": [
            { "name": "mesh-inbound", "containerPort": names::INBOUND_PORT, "protocol": "TCP" },
            { "name": "mesh-admin", "containerPort": names::ADMIN_PORT, "protocol": "TCP" },
        ],
        // The application waits for this one: two minutes for control to answer, looked at every second.
        "startupProbe": probe("/ready", 1, 120),
        "readinessProbe": probe("/ready", 5, 3),
        "livenessProbe": probe("/live", 10, 3),
        "resources": resource_object(&settings.resources),
        "securityContext": unprivileged(names::PROXY_UID),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{ "name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": true }],
    });
    if let (false, Some(fields)) = (settings.native_sidecar, container.as_object_mut()) {
        fields.shift_remove("restartPolicy");
        let wait = json!({ "exec": { "command": [PROGRAM, "await", "--timeout", AWAIT] } });
        fields.insert("lifecycle".to_owned(), json!({ "postStart": wait }));
    }
    container
}

/// A list of a pod's spec, what is added to it, and at which end.
pub struct Addition {
    /// Key in the spec.
    pub list: &'static str,
    /// What is added.
    pub containers: Vec<Value>,
    /// Behind what is there, rather than before it.
    pub last: bool,
}

/// The containers that a pod gets, and where.
pub fn containers(settings: &ProxySettings, config: &MeshConfig) -> Vec<Addition> {
    let (redirect, proxy) = (redirect_container(settings, config), proxy_container(settings, config));
    match settings.native_sidecar {
        true => vec![Addition { list: "initContainers", containers: vec![redirect, proxy], last: false }],
        false => vec![
            Addition { list: "initContainers", containers: vec![redirect], last: true },
            Addition { list: "containers", containers: vec![proxy], last: false },
        ],
    }
}

/// The volume with the token that proves to control which service account the pod runs as.
pub fn token_volume() -> Value {
    json!({
        "name": TOKEN_VOLUME,
        "projected": {
            "sources": [{
                "serviceAccountToken": {
                    "audience": names::IDENTITY_AUDIENCE,
                    "expirationSeconds": TOKEN_SECONDS,
                    "path": "token",
                },
            }],
        },
    })
}

/// References to the Secrets that the proxy's image is pulled with, without those that the pod names itself.
///
/// A service account's own ones reach a pod only if it names none. They are there before the injector sees the pod;
/// whoever injects by hand and relies on them names them in the pod, or in the mesh's `image_pull_secrets`.
pub fn pull_secrets(spec: &Value, config: &MeshConfig) -> Vec<Value> {
    let named = |name: &String| spec["imagePullSecrets"].as_array().into_iter().flatten().any(|s| s["name"] == **name);
    config.image_pull_secrets.iter().filter(|name| !named(name)).map(|name| json!({ "name": name })).collect()
}

fn environment(settings: &ProxySettings, config: &MeshConfig) -> Vec<Value> {
    let plain = |name: &str, value: String| json!({ "name": name, "value": value });
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let mut environment = vec![
        field("MESH_POD_NAME", "metadata.name"),
        field("MESH_POD_NAMESPACE", "metadata.namespace"),
        field("MESH_POD_IPS", "status.podIPs"),
        field("MESH_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        plain("MESH_TRUST_DOMAIN", config.trust_domain.clone()),
        plain("MESH_CONTROL_ADDRESS", config.control_address()),
        plain("MESH_CONTROL_IDENTITY", config.control_identity().to_string()),
        plain("MESH_TOKEN_FILE", format!("{TOKEN_DIRECTORY}/token")),
        plain("MESH_LOG", settings.log.clone()),
        plain("MESH_DRAIN_TIMEOUT", settings.drain_timeout.to_string()),
        plain("MESH_WORKERS", config.proxy.workers.to_string()),
        plain("MESH_TRUST_ANCHORS", config.trust_anchors_pem.clone()),
    ];
    if !settings.native_sidecar {
        environment.push(plain("MESH_OUTLIVE_APPLICATION", "true".to_owned()));
    }
    environment.extend(settings.access_log.iter().map(|form| plain("MESH_ACCESS_LOG", form.clone())));
    environment.extend(settings.otlp_endpoint.iter().map(|url| plain("MESH_OTLP_ENDPOINT", url.clone())));
    environment.extend(settings.trace_ratio.iter().map(|ratio| plain("MESH_TRACE_RATIO", ratio.clone())));
    environment
}

/// `resources` of a container, without what is not set.
pub(crate) fn resource_object(resources: &ProxyResources) -> Value {
    let ProxyResources { cpu_request, cpu_limit, memory_request, memory_limit } = resources;
    let mut object = Map::new();
    for (group, cpu, memory) in [("requests", cpu_request, memory_request), ("limits", cpu_limit, memory_limit)] {
        let amounts: Map<String, Value> = [("cpu", cpu), ("memory", memory)]
            .into_iter()
            .filter_map(|(name, amount)| Some((name.to_owned(), Value::from(amount.as_ref()?.as_str()))))
            .collect();
        if !amounts.is_empty() {
            object.insert(group.to_owned(), Value::Object(amounts));
        }
    }
    Value::Object(object)
}
