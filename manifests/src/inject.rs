//! Whether and how a pod gets a proxy: the one decision that the webhook and `meshctl inject` share.
//!
//! A pod is injected if `meshctl.dev/inject: enabled` stands on it or on its namespace, as annotation or label; the
//! pod outranks the namespace and an annotation outranks a label (see [`crate::settings::wish`]). A value that means
//! nothing refuses the pod, with a message that names it and what would be allowed.

use crate::config::MeshConfig;
use crate::settings::{Holder, ProxySettings, Refusal, Sources, Wish, wish};
use crate::sidecar;
use mesh_api::names;
use serde_json::{Map, Value};

/// Annotation of Kubernetes: the container that `kubectl logs` and `kubectl exec` mean unless told otherwise.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// What shall happen to a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// It becomes this pod.
    Inject(Value),
    /// It stays as it is.
    Skip(Skip),
    /// It must not be created as it is written.
    Refuse(Refusal),
}

/// Why a pod stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// Nobody asked for a proxy.
    #[error("injection is not enabled: neither the pod nor its namespace says meshctl.dev/inject: enabled")]
    NotEnabled,
    /// Injection is turned off.
    #[error("{0} says meshctl.dev/inject: disabled")]
    Disabled(Holder),
    /// It shares its node's network, where a redirect would catch the node's own traffic.
    #[error("it uses the host's network, which cannot be redirected for one pod")]
    HostNetwork,
    /// It has a proxy already.
    #[error("it has a proxy already")]
    AlreadyInjected,
    /// It runs on Windows.
    #[error("it is a Windows pod, and the proxy runs on Linux only")]
    NotLinux,
}

impl Skip {
    /// A stable word for logs, events and metrics.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotEnabled => "not-enabled",
            Self::Disabled(_) => "disabled",
            Self::HostNetwork => "host-network",
            Self::AlreadyInjected => "already-injected",
            Self::NotLinux => "not-linux",
        }
    }
}

/// Decides about a pod about to be created. `namespace` is its Namespace object, or `Null` where it is not known.
/// Deciding again about the outcome skips it.
pub fn decide(pod: &Value, namespace: &Value, config: &MeshConfig) -> Decision {
    if !pod.is_object() {
        return Decision::Skip(Skip::NotEnabled);
    }
    let sources = Sources { pod: &pod["metadata"], namespace: &namespace["metadata"] };
    match plan(sources, &pod["spec"], config) {
        Ok(Plan::Inject(settings)) => Decision::Inject(injected(pod, &settings, config)),
        Ok(Plan::Skip(why)) => Decision::Skip(why),
        Err(why) => Decision::Refuse(why),
    }
}

/// A decision before anything is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Inject a proxy that runs like this.
    Inject(Box<ProxySettings>),
    /// Leave the pod alone.
    Skip(Skip),
}

/// Decides from metadata and spec of a pod or a pod template.
pub fn plan(sources: Sources<'_>, spec: &Value, config: &MeshConfig) -> Result<Plan, Refusal> {
    match wish(sources)? {
        Wish::Unsaid => return Ok(Plan::Skip(Skip::NotEnabled)),
        Wish::Disabled(holder) => return Ok(Plan::Skip(Skip::Disabled(holder))),
        Wish::Enabled(_) => {}
    }
    plan_enabled(sources, spec, config)
}

/// As [`plan`], for a pod that shall be injected whether it asks for it or not.
pub fn plan_enabled(sources: Sources<'_>, spec: &Value, config: &MeshConfig) -> Result<Plan, Refusal> {
    if let Some(why) = unfit(spec) {
        return Ok(Plan::Skip(why));
    }
    let settings = ProxySettings::read(sources, spec, config)?;
    free_of_conflicts(spec)?;
    Ok(Plan::Inject(Box::new(settings)))
}

/// Why a pod of this spec can have no (further) proxy.
pub fn unfit(spec: &Value) -> Option<Skip> {
    let named = |list: &Value, name: &str| items(list).any(|c| c["name"] == name);
    let (containers, init) = (&spec["containers"], &spec["initContainers"]);
    if named(containers, names::PROXY_CONTAINER) || named(init, names::PROXY_CONTAINER) {
        Some(Skip::AlreadyInjected)
    } else if spec["hostNetwork"] == true {
        Some(Skip::HostNetwork)
    } else if spec["os"]["name"] == "windows" {
        Some(Skip::NotLinux)
    } else {
        None
    }
}

fn free_of_conflicts(spec: &Value) -> Result<(), Refusal> {
    let own = [names::OUTBOUND_PORT, names::INBOUND_PORT, names::ADMIN_PORT];
    for container in items(&spec["containers"]).chain(items(&spec["initContainers"])) {
        let declared = items(&container["ports"]).filter(|p| p["protocol"].as_str().unwrap_or("TCP") == "TCP");
        for port in declared.filter_map(|p| u16::try_from(p["containerPort"].as_u64()?).ok()) {
            if own.contains(&port) {
                let container = container["name"].as_str().unwrap_or_default().to_owned();
                return Err(Refusal::PortTaken { container, port });
            }
        }
    }
    match items(&spec["volumes"]).any(|v| v["name"] == sidecar::TOKEN_VOLUME) {
        true => Err(Refusal::VolumeTaken(sidecar::TOKEN_VOLUME)),
        false => Ok(()),
    }
}

fn injected(pod: &Value, settings: &ProxySettings, config: &MeshConfig) -> Value {
    let mut pod = pod.clone();
    let version = Value::from(config.version.as_str());
    let main = pod["spec"]["containers"][0]["name"].as_str().map(Value::from);
    object(object(&mut pod, "metadata"), "annotations");
    pod["metadata"]["annotations"][names::PROXY_VERSION] = version;
    // The proxy is the first container then, and `kubectl logs` would take it for the one that is meant.
    let annotations = &mut pod["metadata"]["annotations"];
    if let (false, Some(main), true) = (settings.native_sidecar, main, annotations[DEFAULT_CONTAINER].is_null()) {
        annotations[DEFAULT_CONTAINER] = main;
    }
    let spec = object(&mut pod, "spec");
    for sidecar::Addition { list, containers, last } in sidecar::containers(settings, config) {
        let there: Vec<Value> = items(&spec[list]).cloned().collect();
        let all = if last { [there, containers] } else { [containers, there] };
        spec[list] = Value::Array(all.concat());
    }
    let volumes = items(&spec["volumes"]).cloned().chain([sidecar::token_volume()]).collect();
    spec["volumes"] = Value::Array(volumes);
    let secrets = sidecar::pull_secrets(spec, config);
    if !secrets.is_empty() {
        spec["imagePullSecrets"] = items(&spec["imagePullSecrets"]).cloned().chain(secrets).collect();
    }
    pod
}

/// The member `key`, made an empty object if it is none.
fn object<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    if !parent[key].is_object() {
        parent[key] = Value::Object(Map::new());
    }
    &mut parent[key]
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

#[cfg(test)]
#[path = "inject_tests.rs"]
mod tests;
