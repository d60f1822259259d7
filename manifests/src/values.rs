//! What can be chosen at an install: one typed tree, filled from defaults, `-f` files and `--set` in this order.
//!
//! Every key is known. A key that isn't is an error with the nearest name, and a value of the wrong kind is an error
//! that names the key and where it was written.

pub mod document;

use crate::config::{ProxyDefaults, ProxyResources, PullPolicy, VERSION};
use crate::nearest::nearest;
use crate::quantity::Quantity;
use mesh_api::names;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What [`dns_name`] takes, for the schema.
const DNS_NAME: &str = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";

/// What [`absolute_path`] takes, for the schema.
const ABSOLUTE_PATH: &str = r"^(/[A-Za-z0-9._-]+)+$";

/// Everything that can be chosen at an install.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Values {
    /// Namespace of the control plane.
    #[schemars(regex(pattern = DNS_NAME))]
    pub system_namespace: String,
    /// Trust domain of all identities.
    #[schemars(regex(pattern = DNS_NAME))]
    pub trust_domain: String,
    /// DNS suffix of the cluster.
    #[schemars(regex(pattern = DNS_NAME))]
    pub cluster_domain: String,
    /// Three replicas that survive the loss of a node, and pods refused rather than unmeshed while none answers.
    pub ha: bool,
    /// NetworkPolicies that open the control plane's ports to those who need them, and no other port: the webhooks' to the
    /// API server, which is no pod and so cannot be named; the proxies' and the metrics' to pods.
    pub network_policies: bool,
    /// Secrets with which nodes pull the mesh's images from a private registry, by name. The control plane's must exist in
    /// its namespace; injected pods get the names only, so each of their namespaces needs Secrets of its own.
    #[schemars(inner(regex(pattern = DNS_NAME)))]
    pub image_pull_secrets: Vec<String>,
    /// The control plane.
    pub control: ControlValues,
    /// Defaults for every proxy.
    pub proxy: ProxyDefaults,
    /// CNI mode: nodes set the redirect of pods, which then need no capability.
    pub cni: CniValues,
    /// The injector's webhook.
    pub webhook: WebhookValues,
    /// Certificate authority.
    pub identity: IdentityValues,
}

/// How the control plane runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ControlValues {
    /// Image. Where nodes have several architectures, an index of one image for each: a node takes its own, so there is
    /// nothing to select nodes by but Linux.
    #[schemars(length(min = 1))]
    pub image: String,
    /// When a node pulls the image.
    pub image_pull_policy: PullPolicy,
    /// Pods; 1, or 3 with `ha`, unless set.
    #[schemars(range(min = 1))]
    pub replicas: Option<u16>,
    /// PriorityClass of its pods, for instance system-cluster-critical; none unless set. (A proxy has its pod's.)
    #[schemars(regex(pattern = DNS_NAME))]
    pub priority_class: Option<String>,
    /// Log filter.
    pub log: String,
    /// CPU and memory.
    pub resources: ProxyResources,
}

/// CNI mode: a plugin on every node sets the redirect of meshed pods, so that they satisfy Pod Security `restricted`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CniValues {
    /// Whether to install the plugin, with an agent on every node (DaemonSet `mesh-cni` in `kube-system`), and to inject
    /// pods for it. Pods that were injected before go on with a redirect of their own.
    pub enabled: bool,
    /// Directory of the nodes with the programs of network plugins.
    #[schemars(regex(pattern = ABSOLUTE_PATH))]
    pub bin_dir: String,
    /// Directory of the nodes with the configurations of networks.
    #[schemars(regex(pattern = ABSOLUTE_PATH))]
    pub conf_dir: String,
}

/// How the API server asks the injector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebhookValues {
    /// What happens to a new pod of a namespace labelled `meshctl.dev/inject: enabled` while no injector answers;
    /// `Ignore`, or `Fail` with `ha`, unless set. Pods of other namespaces start in any case.
    pub failure_policy: Option<FailurePolicy>,
    /// How long the API server waits for an answer, 1 to 30.
    #[schemars(range(min = 1, max = 30))]
    pub timeout_seconds: u8,
    /// Namespaces whose pods are never looked at, beside the control plane's own and `kube-system`.
    #[schemars(inner(regex(pattern = DNS_NAME)))]
    pub excluded_namespaces: Vec<String>,
}

/// What happens to a new pod while no injector answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailurePolicy {
    /// It starts without a proxy.
    Ignore,
    /// It does not start.
    Fail,
}

/// The certificate authority: generated at install unless brought.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityValues {
    /// Certificates that all proxies trust, PEM.
    #[schemars(regex(pattern = "-----BEGIN CERTIFICATE-----"))]
    pub trust_anchors_pem: Option<String>,
    /// The issuer's certificate, with any intermediates after it, PEM.
    #[schemars(regex(pattern = "-----BEGIN CERTIFICATE-----"))]
    pub issuer_certificate_pem: Option<String>,
    /// The issuer's private key, PEM. Goes into a Secret and nowhere else.
    #[schemars(regex(pattern = "-----BEGIN [A-Z ]*PRIVATE KEY-----"))]
    pub issuer_key_pem: Option<String>,
    /// The Secret `mesh-identity-issuer` comes from elsewhere, for instance from cert-manager; only the trust
    /// anchors are needed here.
    pub existing_secret: bool,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            system_namespace: names::SYSTEM_NAMESPACE.to_owned(),
            trust_domain: names::DEFAULT_TRUST_DOMAIN.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            ha: false,
            network_policies: true,
            image_pull_secrets: Vec::new(),
            control: ControlValues::default(),
            proxy: ProxyDefaults::default(),
            cni: CniValues::default(),
            webhook: WebhookValues::default(),
            identity: IdentityValues::default(),
        }
    }
}

impl Default for ControlValues {
    fn default() -> Self {
        Self {
            image: format!("meshctl/control:{VERSION}"),
            image_pull_policy: PullPolicy::default(),
            replicas: None,
            priority_class: None,
            log: "info".to_owned(),
            resources: ProxyResources {
                cpu_request: Some(Quantity::known("100m")),
                cpu_limit: None,
                memory_request: Some(Quantity::known("64Mi")),
                memory_limit: Some(Quantity::known("512Mi")),
            },
        }
    }
}

impl Default for CniValues {
    fn default() -> Self {
        Self { enabled: false, bin_dir: "/opt/cni/bin".to_owned(), conf_dir: "/etc/cni/net.d".to_owned() }
    }
}

impl Default for WebhookValues {
    fn default() -> Self {
        Self { failure_policy: None, timeout_seconds: 5, excluded_namespaces: Vec::new() }
    }
}

/// Why values could not be used. All are mistakes of whoever wrote them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValuesError {
    /// A file is not YAML.
    #[error("{source_name}: not YAML: {reason}")]
    NotYaml {
        /// The file.
        source_name: String,
        /// What the parser says.
        reason: String,
    },
    /// A file holds something other than keys and values.
    #[error("{source_name}: expected keys and values like `trust_domain: example.org`, found {found}")]
    NotMap {
        /// The file.
        source_name: String,
        /// What it holds.
        found: &'static str,
    },
    /// A key that does not exist.
    #[error("{source_name}: unknown key `{key}`{}", suggestion(.nearest, .known))]
    UnknownKey {
        /// The file or `--set`.
        source_name: String,
        /// The whole dotted key.
        key: String,
        /// The dotted key probably meant.
        nearest: Option<String>,
        /// Keys that exist at that place.
        known: Vec<String>,
    },
    /// A value that its key cannot hold.
    #[error("{source_name}: `{key}` cannot be `{value}`: {reason}")]
    BadValue {
        /// The file or `--set`.
        source_name: String,
        /// The whole dotted key.
        key: String,
        /// What was written.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A `--set` without `=`.
    #[error("--set {0}: expected key=value, for instance --set proxy.workers=2")]
    BadSet(String),
    /// Values that are each right but do not go together.
    #[error("{key}: {reason}")]
    Unfit {
        /// The whole dotted key.
        key: &'static str,
        /// What is wrong.
        reason: String,
    },
}

fn suggestion(nearest: &Option<String>, known: &[String]) -> String {
    match nearest {
        Some(name) => format!("; did you mean `{name}`?"),
        None => format!("; known here: {}", known.join(", ")),
    }
}

/// One leaf that a source sets.
struct Assignment {
    source_name: String,
    path: Vec<String>,
    value: Value,
}

impl Values {
    /// Lays files (name and text) and then `--set` arguments over the defaults; later wins, lists are replaced.
    /// `null` brings a key back to its default.
    pub fn from_sources(files: &[(String, String)], sets: &[String]) -> Result<Self, ValuesError> {
        let mut assignments = Vec::new();
        for (name, text) in files {
            let tree: Value = serde_saphyr::from_str(text)
                .map_err(|e| ValuesError::NotYaml { source_name: name.clone(), reason: e.to_string() })?;
            match tree {
                Value::Null => {}
                Value::Object(map) => flatten(name, &mut Vec::new(), map, &mut assignments),
                other => {
                    return Err(ValuesError::NotMap { source_name: name.clone(), found: kind(&other) });
                }
            }
        }
        let defaults = tree(&Self::default());
        for set in sets {
            assignments.push(parse_set(set, &defaults)?);
        }
        let mut values = Self::default();
        for assignment in assignments {
            values = values.with(assignment, &defaults)?;
        }
        values.fit()?;
        Ok(values)
    }

    fn with(&self, assignment: Assignment, defaults: &Value) -> Result<Self, ValuesError> {
        let Assignment { source_name, path, value } = assignment;
        let key = path.join(".");
        let bad = |reason: String| {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            ValuesError::BadValue { source_name: source_name.clone(), key: key.clone(), value, reason }
        };
        let default = known(&source_name, &path, defaults)?;
        if let (Value::Object(below), false) = (default, value.is_null() || value.is_object()) {
            let first = below.keys().next().map_or("", String::as_str);
            return Err(bad(format!("it holds further keys, like `{key}.{first}`")));
        }
        // Of maps only empty ones are left here; they change nothing.
        if default.is_object() && value.is_object() {
            return Ok(self.clone());
        }
        let mut whole = tree(self);
        let mut at = &mut whole;
        for name in &path {
            at = &mut at[name.as_str()];
        }
        *at = if value.is_null() { default.clone() } else { value.clone() };
        serde_json::from_value(whole).map_err(|e| bad(e.to_string()))
    }

    /// What no single value can get wrong alone.
    fn fit(&self) -> Result<(), ValuesError> {
        let name = |key, text: &str, what: &str| match dns_name(text) {
            true => Ok(()),
            false => Err(ValuesError::Unfit { key, reason: format!("`{text}` is not {what}") }),
        };
        name("system_namespace", &self.system_namespace, "a namespace's name")?;
        name("trust_domain", &self.trust_domain, "a trust domain: lower-case letters, digits, `-` and `.`")?;
        name("cluster_domain", &self.cluster_domain, "a DNS name")?;
        for namespace in &self.webhook.excluded_namespaces {
            name("webhook.excluded_namespaces", namespace, "a namespace's name")?;
        }
        for secret in &self.image_pull_secrets {
            name("image_pull_secrets", secret, "a Secret's name")?;
        }
        if let Some(class) = &self.control.priority_class {
            name("control.priority_class", class, "a PriorityClass's name")?;
        }
        for (key, path) in [("cni.bin_dir", &self.cni.bin_dir), ("cni.conf_dir", &self.cni.conf_dir)] {
            if !absolute_path(path) {
                let reason = format!("`{path}` is not the whole path of a directory, like /opt/cni/bin");
                return Err(ValuesError::Unfit { key, reason });
            }
        }
        if !(1..=30).contains(&self.webhook.timeout_seconds) {
            let reason = format!("{} is not between 1 and 30", self.webhook.timeout_seconds);
            return Err(ValuesError::Unfit { key: "webhook.timeout_seconds", reason });
        }
        match self.control.replicas {
            Some(0) => Err(ValuesError::Unfit {
                key: "control.replicas",
                reason: "without a control plane no new pod gets its certificate; use 1 or more".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// Pods of the control plane.
    pub fn control_replicas(&self) -> u16 {
        self.control.replicas.unwrap_or(if self.ha { 3 } else { 1 })
    }

    /// What happens to a new pod of a namespace labelled as meshed while no injector answers.
    pub fn failure_policy(&self) -> FailurePolicy {
        self.webhook.failure_policy.unwrap_or(if self.ha { FailurePolicy::Fail } else { FailurePolicy::Ignore })
    }

    /// What differs from the defaults, without anything secret: recorded with the install, and the base of the next
    /// upgrade (whose defaults may be others).
    pub fn overrides(&self) -> Value {
        let mut own = self.clone();
        own.identity.issuer_key_pem = None;
        own.identity.issuer_certificate_pem = None;
        own.identity.trust_anchors_pem = None;
        difference(&tree(&own), &tree(&Self::default())).unwrap_or_else(|| Value::Object(Map::new()))
    }
}

fn tree(values: &Values) -> Value {
    // Strings, numbers, lists and maps with string keys only: nothing that JSON cannot hold.
    serde_json::to_value(values).unwrap_or_default()
}

/// The default at `path`, if there is such a key.
fn known<'a>(source_name: &str, path: &[String], defaults: &'a Value) -> Result<&'a Value, ValuesError> {
    let mut at = defaults;
    for (depth, name) in path.iter().enumerate() {
        let Some(next) = at.get(name) else {
            let below: Vec<&str> = at.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).collect();
            let dotted = |last: &str| [&path[..depth], &[last.to_owned()]].concat().join(".");
            return Err(ValuesError::UnknownKey {
                source_name: source_name.to_owned(),
                key: path.join("."),
                nearest: nearest(name, below.iter().copied()).map(dotted),
                known: below.into_iter().map(dotted).collect(),
            });
        };
        at = next;
    }
    Ok(at)
}

fn flatten(source_name: &str, path: &mut Vec<String>, map: Map<String, Value>, into: &mut Vec<Assignment>) {
    for (name, value) in map {
        path.push(name);
        match value {
            Value::Object(below) if !below.is_empty() => flatten(source_name, path, below, into),
            value => into.push(Assignment { source_name: source_name.to_owned(), path: path.clone(), value }),
        }
        path.pop();
    }
}

/// Reads `a.b=c`. The default's kind tells how `c` is meant: text stays text, a list is split at commas.
fn parse_set(set: &str, defaults: &Value) -> Result<Assignment, ValuesError> {
    let (key, text) = set.split_once('=').ok_or_else(|| ValuesError::BadSet(set.to_owned()))?;
    let path: Vec<String> = key.trim().split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        return Err(ValuesError::BadSet(set.to_owned()));
    }
    let source_name = format!("--set {set}");
    let value = match known(&source_name, &path, defaults)? {
        Value::String(_) => Value::String(text.to_owned()),
        Value::Array(_) => {
            text.split(',').filter(|t| !t.is_empty()).map(|t| Value::String(t.trim().to_owned())).collect()
        }
        _ => match serde_saphyr::from_str::<Value>(text) {
            Ok(value @ (Value::Bool(_) | Value::Number(_) | Value::Null)) => value,
            _ => Value::String(text.to_owned()),
        },
    };
    Ok(Assignment { source_name, path, value })
}

fn difference(own: &Value, default: &Value) -> Option<Value> {
    match (own, default) {
        (Value::Object(own), Value::Object(default)) => {
            let changed: Map<String, Value> = own
                .iter()
                .filter_map(|(k, v)| Some((k.clone(), difference(v, default.get(k).unwrap_or(&Value::Null))?)))
                .collect();
            (!changed.is_empty()).then_some(Value::Object(changed))
        }
        _ => (own != default).then(|| own.clone()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "keys and values",
    }
}

fn dns_name(text: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

/// Names of letters, digits, `.`, `_` and `-`, each behind a slash; none leads back.
fn absolute_path(text: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let mut names = text.split('/');
    names.next() == Some("") && names.all(|name| !name.is_empty() && name != ".." && name.bytes().all(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn file(text: &str) -> Vec<(String, String)> {
        vec![("values.yaml".to_owned(), text.to_owned())]
    }

    fn read(text: &str, sets: &[&str]) -> Result<Values, String> {
        let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
        Values::from_sources(&file(text), &sets).map_err(|e| e.to_string())
    }

    #[test]
    fn sets_win_over_files_and_files_over_defaults() {
        let text = "trust_domain: example.org\nproxy:\n  workers: 2\n  resources: {cpu_request: 0.5}\n";
        let values = read(text, &["proxy.workers=4", "ha=true", "proxy.resources.cpu_limit=2"]).unwrap();
        assert_eq!(values.trust_domain, "example.org");
        assert_eq!(values.proxy.workers, 4);
        assert_eq!(values.proxy.resources.cpu_request, Some(Quantity::known("0.5")));
        assert_eq!(values.proxy.resources.cpu_limit, Some(Quantity::known("2")));
        assert_eq!(values.proxy.resources.memory_request, Some(Quantity::known("20Mi")));
        assert_eq!((values.control_replicas(), values.failure_policy()), (3, FailurePolicy::Fail));
        assert_eq!(
            values.overrides(),
            json!({
                "trust_domain": "example.org",
                "ha": true,
                "proxy": { "resources": { "cpu_request": "0.5", "cpu_limit": "2" }, "workers": 4 },
            })
        );
    }

    #[test]
    fn nothing_given_is_the_defaults() {
        for text in ["", "# only a comment\n", "{}", "proxy: {}", "control: null", "trust_domain: null"] {
            assert_eq!(read(text, &[]).unwrap(), Values::default(), "{text}");
        }
        assert_eq!(Values::default().overrides(), json!({}));
    }

    #[test]
    fn a_set_is_read_as_its_key_needs() {
        let values = read(
            "",
            &[
                "proxy.image=registry.example.org/p=1:true",
                "proxy.skip_inbound_ports=22,8000-8010",
                "webhook.excluded_namespaces=a,b",
                "webhook.failure_policy=Fail",
                "control.replicas=2",
                "proxy.drain_timeout=1m",
                "control.log=off",
            ],
        )
        .unwrap();
        assert_eq!(values.proxy.image, "registry.example.org/p=1:true");
        assert_eq!(values.proxy.skip_inbound_ports.to_string(), "22,8000-8010");
        assert_eq!(values.webhook.excluded_namespaces, ["a", "b"]);
        assert_eq!(values.control.log, "off");
        assert_eq!((values.control_replicas(), values.failure_policy()), (2, FailurePolicy::Fail));
    }

    #[test]
    fn mistakes_are_named_with_what_would_do() {
        for (text, set, expect) in [
            ("trustdomain: x", "", "values.yaml: unknown key `trustdomain`; did you mean `trust_domain`?"),
            ("proxy: {wrokers: 2}", "", "values.yaml: unknown key `proxy.wrokers`; did you mean `proxy.workers`?"),
            ("", "poxy.workers=2", "--set poxy.workers=2: unknown key `poxy.workers`; did you mean `proxy`?"),
            ("", "webhook.banana=1", "unknown key `webhook.banana`; known here: webhook.failure_policy, "),
            ("", "proxy.workers.x=1", "unknown key `proxy.workers.x`"),
            ("", "proxy=1", "`proxy` cannot be `1`: it holds further keys, like `proxy.image`"),
            ("", "proxy.workers=two", "`proxy.workers` cannot be `two`: invalid type"),
            ("", "proxy.workers=70000", "`proxy.workers` cannot be `70000`"),
            ("proxy: {drain_timeout: 10}", "", "`proxy.drain_timeout` cannot be `10`: `10` is not a duration"),
            ("", "webhook.failure_policy=Maybe", "unknown variant `Maybe`, expected `Ignore` or `Fail`"),
            ("", "webhook.timeout_seconds=60", "webhook.timeout_seconds: 60 is not between 1 and 30"),
            ("", "control.replicas=0", "control.replicas: without a control plane"),
            ("", "image_pull_secrets=My_Key", "image_pull_secrets: `My_Key` is not a Secret's name"),
            ("", "control.priority_class=A", "control.priority_class: `A` is not a PriorityClass's name"),
            ("", "cni.bin_dir=bin", "cni.bin_dir: `bin` is not the whole path of a directory"),
            ("", "cni.conf_dir=/etc/../x", "cni.conf_dir: `/etc/../x` is not the whole path"),
            ("", "trust_domain=Example_Org", "trust_domain: `Example_Org` is not a trust domain"),
            ("", "ha", "--set ha: expected key=value"),
            ("", "a..b=1", "expected key=value"),
            ("- a", "", "values.yaml: expected keys and values like `trust_domain: example.org`, found a list"),
            ("a: [", "", "values.yaml: not YAML"),
        ] {
            let sets = if set.is_empty() { vec![] } else { vec![set] };
            let error = read(text, &sets).unwrap_err();
            assert!(error.contains(expect), "{text} {set}: {error}");
        }
    }

    #[test]
    fn the_private_key_is_not_recorded() {
        let mut values = Values::default();
        values.identity.issuer_key_pem = Some("secret".to_owned());
        assert_eq!(values.overrides(), json!({}));
    }
}
