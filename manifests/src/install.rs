//! What an install puts into a cluster, as objects in the order of applying.
//!
//! Deterministic: the same values and the same issuer give the same objects. Only a generated issuer differs from one
//! rendering to the next.

use crate::cni;
use crate::config::{CONFIG_KEY, MeshConfig, VERSION};
use crate::inventory;
use crate::issuer::{Issuer, IssuerError};
use crate::policies;
use crate::rbac;
use crate::terms::{Terms, When};
use crate::values::Values;
use crate::yaml::{self, YamlError};
use mesh_api::names;
use serde_json::{Value, json};
use std::time::SystemTime;

/// ConfigMap with the mesh's configuration and the values it was installed with.
pub const CONFIG_MAP: &str = "mesh-config";
/// Key of [`CONFIG_MAP`] with the values that differed from the defaults.
pub const VALUES_KEY: &str = "values.yaml";
/// ConfigMap with the trust anchors, for whoever wants to verify the mesh's certificates.
pub const ANCHORS_CONFIG_MAP: &str = "mesh-trust-anchors";
/// Key of [`ANCHORS_CONFIG_MAP`] and of [`ISSUER_SECRET`].
pub const ANCHORS_KEY: &str = "ca.crt";
/// Secret with the issuer: `tls.crt`, `tls.key`, `ca.crt`.
pub const ISSUER_SECRET: &str = "mesh-identity-issuer";
/// Secret with the serving certificate of webhook and observe API; control makes and renews it.
pub const WEBHOOK_SECRET: &str = "mesh-webhook-tls";
/// MutatingWebhookConfiguration of the injector.
pub const WEBHOOK_NAME: &str = "mesh-injector";
/// Path at which control answers the webhook.
pub const WEBHOOK_PATH: &str = "/inject";
/// ValidatingWebhookConfiguration of policies and routes.
pub const VALIDATOR_NAME: &str = "mesh-validator";
/// Path at which control says whether a policy or a route can work.
pub const VALIDATE_PATH: &str = "/validate";
/// Annotation on the namespace and on [`CONFIG_MAP`]: the version that was installed.
pub const VERSION_ANNOTATION: &str = "meshctl.dev/version";
/// The first minor release of Kubernetes 1 that is supported: its definitions check their own rules.
pub const LEAST_KUBERNETES_MINOR: u32 = 25;
/// User that the control plane runs as.
pub const CONTROL_UID: u32 = 2103;

/// Name of the APIService through which the cluster serves golden metrics.
pub fn api_service_name() -> String {
    format!("{}.{}", names::OBSERVE_VERSION, names::OBSERVE_GROUP)
}

/// Why nothing could be rendered.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// No usable certificate authority.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// Something could not be written as YAML.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// The configuration could not be written.
    #[error(transparent)]
    Config(#[from] crate::config::InvalidConfig),
    /// A custom resource definition could not be written.
    #[error("cannot write a custom resource definition: {0}")]
    Definition(#[from] serde_json::Error),
}

/// Renders an install, with a new certificate authority unless `values` bring one.
pub fn render(values: &Values) -> Result<Vec<Value>, InstallError> {
    render_with(values, &Issuer::resolve(values, SystemTime::now())?)
}

/// Renders an install around an issuer.
pub fn render_with(values: &Values, issuer: &Issuer) -> Result<Vec<Value>, InstallError> {
    let parts = parts(&Terms::of(values, issuer)?)?;
    let mut objects: Vec<Value> =
        parts.into_iter().filter(|part| part.when != When::Never).map(|part| part.object).collect();
    inventory::record(&mut objects, &[]);
    Ok(objects)
}

/// One object of an install, and whether it belongs to it.
pub(crate) struct Part {
    pub(crate) when: When,
    pub(crate) object: Value,
}

/// Every object that an install may consist of, in the order of applying; the inventory is left out.
pub(crate) fn parts(terms: &Terms) -> Result<Vec<Part>, InstallError> {
    let names = Names { namespace: &terms.namespace, cluster: &terms.cluster_name };
    let always = |object| Part { when: When::Always, object };
    let mut parts = vec![always(namespace(&names))];
    parts.extend(definitions(&names)?.into_iter().map(always));
    parts.push(always(service_account(&names)));
    parts.extend(rbac::objects(&names).into_iter().map(always));
    parts.push(always(config_map(&names, terms)));
    parts.push(always(anchors_config_map(&names, terms)));
    parts.push(Part { when: terms.with_secret.clone(), object: issuer_secret(&names, terms) });
    parts.push(always(service(&names)));
    parts.push(Part { when: terms.network_policies.clone(), object: network_policy(&names) });
    parts
        .extend(cni::objects(&names, terms).into_iter().map(|object| Part { when: terms.cni.enabled.clone(), object }));
    parts.push(always(deployment(&names, terms)));
    parts.push(Part { when: terms.ha.clone(), object: disruption_budget(&names) });
    parts.push(always(api_service(&names)));
    parts.push(always(validator(&names, terms)));
    parts.push(always(webhook(&names, terms)));
    Ok(parts)
}

/// The configuration that the installed control plane reads.
pub fn mesh_config(values: &Values, issuer: &Issuer) -> MeshConfig {
    MeshConfig {
        version: VERSION.to_owned(),
        system_namespace: values.system_namespace.clone(),
        trust_domain: values.trust_domain.clone(),
        cluster_domain: values.cluster_domain.clone(),
        control_log: values.control.log.clone(),
        image_pull_secrets: values.image_pull_secrets.clone(),
        cni_enabled: values.cni.enabled,
        proxy: values.proxy.clone(),
        trust_anchors_pem: issuer.anchors_pem.clone(),
    }
}

/// Objects as a stream of YAML documents.
pub fn to_yaml(objects: &[Value]) -> Result<String, YamlError> {
    yaml::to_yaml(objects)
}

/// Where things go, and what all of them carry.
pub(crate) struct Names<'a> {
    /// Namespace of the control plane.
    pub(crate) namespace: &'a str,
    /// What cluster-wide objects of the control plane are called.
    pub(crate) cluster: &'a str,
}

impl Names<'_> {
    pub(crate) fn cluster_metadata(&self, name: &str) -> Value {
        json!({
            "name": name,
            "labels": { "app.kubernetes.io/managed-by": "meshctl", "app.kubernetes.io/part-of": "meshctl" },
        })
    }

    pub(crate) fn metadata_in(&self, namespace: &str, name: &str) -> Value {
        let labels = self.cluster_metadata(name)["labels"].take();
        json!({ "name": name, "namespace": namespace, "labels": labels })
    }

    pub(crate) fn metadata(&self, name: &str) -> Value {
        self.metadata_in(self.namespace, name)
    }
}

fn namespace(names: &Names<'_>) -> Value {
    let mut metadata = names.cluster_metadata(names.namespace);
    metadata["annotations"] = json!({ VERSION_ANNOTATION: VERSION });
    metadata["labels"][names::INJECT] = "disabled".into();
    for mode in ["enforce", "audit", "warn"] {
        metadata["labels"][format!("pod-security.kubernetes.io/{mode}")] = "restricted".into();
    }
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata })
}

/// The kinds that users write, with the labels of everything that belongs to the install.
fn definitions(names: &Names<'_>) -> Result<Vec<Value>, InstallError> {
    let mut definitions = policies::definitions()?;
    for definition in &mut definitions {
        let name = definition["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        definition["metadata"] = names.cluster_metadata(&name);
    }
    Ok(definitions)
}

fn service_account(names: &Names<'_>) -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": names.metadata(names::CONTROL_NAME) })
}

fn config_map(names: &Names<'_>, terms: &Terms) -> Value {
    let mut metadata = names.metadata(CONFIG_MAP);
    metadata["annotations"] = json!({ VERSION_ANNOTATION: VERSION });
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": { CONFIG_KEY: terms.config, VALUES_KEY: terms.overrides },
    })
}

fn anchors_config_map(names: &Names<'_>, terms: &Terms) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(ANCHORS_CONFIG_MAP),
        "data": { ANCHORS_KEY: terms.anchors },
    })
}

fn issuer_secret(names: &Names<'_>, terms: &Terms) -> Value {
    let [certificate, key, anchors] = &terms.issuer;
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(ISSUER_SECRET),
        "type": "kubernetes.io/tls",
        "data": { "tls.crt": certificate, "tls.key": key, ANCHORS_KEY: anchors },
    })
}

fn selector() -> Value {
    json!({ "app.kubernetes.io/name": names::CONTROL_NAME, "app.kubernetes.io/part-of": "meshctl" })
}

fn service(names: &Names<'_>) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(names::CONTROL_NAME),
        "spec": {
            "selector": selector(),
            "ports": [
                { "name": "proxy-api", "port": names::CONTROL_PROXY_PORT, "targetPort": "proxy-api", "protocol": "TCP" },
                { "name": "https", "port": 443, "targetPort": "https", "protocol": "TCP" },
                { "name": "admin", "port": names::CONTROL_ADMIN_PORT, "targetPort": "admin", "protocol": "TCP" },
            ],
        },
    })
}

/// Lets nobody in but on the ports that the control plane serves.
fn network_policy(names: &Names<'_>) -> Value {
    let on = |ports: &[u16]| -> Value { ports.iter().map(|port| json!({ "port": port, "protocol": "TCP" })).collect() };
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.metadata(names::CONTROL_NAME),
        "spec": {
            "podSelector": { "matchLabels": selector() },
            "policyTypes": ["Ingress"],
            "ingress": [
                // Webhooks and observe API. The API server has no pod or fixed address that could be named. The observe
                // API demands its certificate; the webhooks tell nothing that their caller has not brought along.
                { "ports": on(&[names::CONTROL_WEBHOOK_PORT]) },
                // Proxies, other replicas, and who collects metrics: pods of whatever namespace, but nothing outside.
                {
                    "from": [{ "namespaceSelector": {} }],
                    "ports": on(&[names::CONTROL_PROXY_PORT, names::CONTROL_ADMIN_PORT]),
                },
            ],
        },
    })
}

fn deployment(names: &Names<'_>, terms: &Terms) -> Value {
    let mut labels = names.cluster_metadata("")["labels"].take();
    labels["app.kubernetes.io/name"] = names::CONTROL_NAME.into();
    let mut metadata = names.metadata(names::CONTROL_NAME);
    metadata["labels"] = labels.clone();
    let mut pod = json!({
        "serviceAccountName": names::CONTROL_NAME,
        // Of whatever architecture: images are indexes, and a node takes its own. But there are Windows nodes.
        "nodeSelector": { "kubernetes.io/os": "linux" },
        "securityContext": { "seccompProfile": { "type": "RuntimeDefault" } },
        "containers": [control_container(terms)],
        "volumes": [{ "name": "config", "configMap": { "name": CONFIG_MAP } }],
    });
    let (class_given, class) = &terms.priority_class;
    class_given.put(&mut pod, "priorityClassName", class.clone());
    let (secrets_given, secrets) = &terms.pull_secrets;
    secrets_given.put(&mut pod, "imagePullSecrets", secrets.clone());
    terms.ha.put(&mut pod, "topologySpreadConstraints", across_zones());
    terms.ha.put(&mut pod, "affinity", across_nodes());
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": terms.replicas,
            "selector": { "matchLabels": selector() },
            // A new replica answers before an old one stops.
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1, "maxUnavailable": 0 } },
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": { "meshctl.dev/inject": "disabled", "meshctl.dev/config-digest": terms.digest },
                },
                "spec": pod,
            },
        },
    })
}

fn control_container(terms: &Terms) -> Value {
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": "admin" },
            "periodSeconds": period,
            "timeoutSeconds": 2,
            "failureThreshold": failures,
        })
    };
    let field = |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    json!({
        "name": names::CONTROL_NAME,
        "image": terms.image,
        "imagePullPolicy": terms.pull_policy,
        "env": [
            field("MESH_POD_NAME", "metadata.name"),
            field("MESH_POD_NAMESPACE", "metadata.namespace"),
            { "name": "MESH_LOG", "value": terms.log },
        ],
        "ports": [
            { "name": "proxy-api", "containerPort": names::CONTROL_PROXY_PORT, "protocol": "TCP" },
            { "name": "https", "containerPort": names::CONTROL_WEBHOOK_PORT, "protocol": "TCP" },
            { "name": "admin", "containerPort": names::CONTROL_ADMIN_PORT, "protocol": "TCP" },
        ],
        "startupProbe": probe("/ready", 1, 60),
        "readinessProbe": probe("/ready", 5, 3),
        "livenessProbe": probe("/live", 10, 3),
        "resources": terms.resources,
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "readOnlyRootFilesystem": true,
            "runAsGroup": CONTROL_UID,
            "runAsNonRoot": true,
            "runAsUser": CONTROL_UID,
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [{ "name": "config", "mountPath": "/etc/mesh-control", "readOnly": true }],
    })
}

/// Keeps replicas apart: in different zones where there are several.
fn across_zones() -> Value {
    json!([{
        "maxSkew": 1,
        "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": { "matchLabels": selector() },
    }])
}

/// Keeps replicas apart: on different nodes where there are several.
fn across_nodes() -> Value {
    json!({
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 100,
                "podAffinityTerm": {
                    "topologyKey": "kubernetes.io/hostname",
                    "labelSelector": { "matchLabels": selector() },
                },
            }],
        },
    })
}

fn disruption_budget(names: &Names<'_>) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.metadata(names::CONTROL_NAME),
        "spec": { "maxUnavailable": 1, "selector": { "matchLabels": selector() } },
    })
}

fn api_service(names: &Names<'_>) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": names.cluster_metadata(&api_service_name()),
        // The CA bundle is filled in by control, which makes the certificate.
        "spec": {
            "group": names::OBSERVE_GROUP,
            "version": names::OBSERVE_VERSION,
            "groupPriorityMinimum": 1000,
            "versionPriority": 15,
            "service": { "name": names::CONTROL_NAME, "namespace": names.namespace, "port": 443 },
        },
    })
}

/// All namespaces but those that a webhook must never hold up, and `more`.
fn namespace_selector(terms: &Terms, more: Option<Value>) -> Value {
    let excluded =
        json!({ "key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": terms.excluded_namespaces });
    let expressions: Vec<Value> = [excluded].into_iter().chain(more).collect();
    json!({ "matchExpressions": expressions })
}

/// Where control is asked. The CA bundle is filled in by control, which makes the certificate.
fn client_config(names: &Names<'_>, path: &str) -> Value {
    json!({ "service": { "name": names::CONTROL_NAME, "namespace": names.namespace, "path": path, "port": 443 } })
}

/// Refuses policies and routes that cannot work. While control is down they are let in, held against their definitions
/// alone, and their status tells the rest.
fn validator(names: &Names<'_>, terms: &Terms) -> Value {
    let rule = |group: &str, version: &str, resources: &[&str]| {
        json!({
            "apiGroups": [group],
            "apiVersions": [version],
            "operations": ["CREATE", "UPDATE"],
            "resources": resources,
            "scope": "Namespaced",
        })
    };
    let policies: Vec<&str> = policies::KINDS.iter().map(|kind| kind.plural).collect();
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": names.cluster_metadata(VALIDATOR_NAME),
        "webhooks": [{
            "name": "validator.meshctl.dev",
            "admissionReviewVersions": ["v1"],
            "clientConfig": client_config(names, VALIDATE_PATH),
            "failurePolicy": "Ignore",
            "matchPolicy": "Equivalent",
            "namespaceSelector": namespace_selector(terms, None),
            "rules": [
                rule(policies::GROUP, policies::VERSION, &policies),
                rule("gateway.networking.k8s.io", "*", &["httproutes", "grpcroutes", "tlsroutes", "tcproutes"]),
            ],
            "sideEffects": "None",
            "timeoutSeconds": terms.timeout_seconds,
        }],
    })
}

/// Asks control about every new pod, twice over: about those of namespaces that are labelled as meshed, whose pods may be
/// held up while control is down, and about all others, which never are.
fn webhook(names: &Names<'_>, terms: &Terms) -> Value {
    let hook = |name: &str, operator: &str, failure_policy: Value| {
        let label = json!({ "key": names::INJECT, "operator": operator, "values": ["enabled"] });
        json!({
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": client_config(names, WEBHOOK_PATH),
            "failurePolicy": failure_policy,
            "matchPolicy": "Equivalent",
            "namespaceSelector": namespace_selector(terms, Some(label)),
            // Another webhook may replace the containers; deciding twice does no harm.
            "reinvocationPolicy": "IfNeeded",
            "rules": [{
                "apiGroups": [""],
                "apiVersions": ["v1"],
                "operations": ["CREATE"],
                "resources": ["pods"],
                "scope": "Namespaced",
            }],
            // Events about refused and skipped pods are not written for a dry run.
            "sideEffects": "NoneOnDryRun",
            "timeoutSeconds": terms.timeout_seconds,
        })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": names.cluster_metadata(WEBHOOK_NAME),
        "webhooks": [
            hook("meshed.injector.meshctl.dev", "In", terms.failure_policy.clone()),
            hook("injector.meshctl.dev", "NotIn", json!("Ignore")),
        ],
    })
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
