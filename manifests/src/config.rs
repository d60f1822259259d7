//! The configuration of a whole mesh: what `mesh-control` reads from `/etc/mesh-control/config.yaml` (ConfigMap
//! `mesh-config`), and what the injector takes its defaults from.

use crate::ports::PortSet;
use crate::quantity::{Duration, Quantity};
use mesh_api::{AccessDefault, EgressDefault, Network, SpiffeId, names};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Key of [`MeshConfig`] in the ConfigMap `mesh-config`, and so the file's name where it is mounted.
pub const CONFIG_KEY: &str = "config.yaml";
/// Where `mesh-control` finds its configuration.
pub const CONFIG_PATH: &str = "/etc/mesh-control/config.yaml";
/// The first minor release of Kubernetes 1 whose nodes run native sidecars (init containers that keep running) without
/// being asked to.
pub const NATIVE_SIDECAR_MINOR: u32 = 29;
/// Version of this crate, which is the version of every part of a release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The minor release of Kubernetes 1, from the version that an API server tells of itself. Some providers write `29+`.
pub fn kubernetes_minor(major: &str, minor: &str) -> Option<u32> {
    let digits = minor.trim_end_matches(|c: char| !c.is_ascii_digit());
    (major == "1").then(|| digits.parse().ok()).flatten()
}

/// Configuration of a mesh, read once by every part that needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Version of the mesh that was installed.
    pub version: String,
    /// Namespace of the control plane.
    pub system_namespace: String,
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// DNS suffix of the cluster.
    pub cluster_domain: String,
    /// Log filter of the control plane.
    pub control_log: String,
    /// Secrets with which nodes pull the proxy's image, named in every injected pod.
    pub image_pull_secrets: Vec<String>,
    /// The node sets the redirect of pods, and they only prove that it is there.
    pub cni_enabled: bool,
    /// Defaults for every proxy.
    pub proxy: ProxyDefaults,
    /// Certificates that proxies trust, PEM. Written at install; empty only before.
    pub trust_anchors_pem: String,
}

/// How proxies run unless a pod's annotations say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyDefaults {
    /// Image of the proxy and of its redirect step.
    pub image: String,
    /// When the node pulls the image.
    pub image_pull_policy: PullPolicy,
    /// Log filter, as `MESH_LOG` takes it.
    pub log: String,
    /// CPU and memory of the proxy's container.
    pub resources: ProxyResources,
    /// How long a stopping proxy goes on with the requests it has.
    pub drain_timeout: Duration,
    /// Whether the proxy is a native sidecar (an init container that keeps running, Kubernetes 1.29) or, if not, the first
    /// of the pod's containers; auto goes by the version of the API server.
    pub native_sidecar: NativeSidecar,
    /// Worker threads.
    pub workers: u16,
    /// Inbound ports that never pass the proxy.
    pub skip_inbound_ports: PortSet,
    /// Outbound ports that never pass the proxy.
    pub skip_outbound_ports: PortSet,
    /// Ports carried as opaque TCP where neither pod, service nor namespace says otherwise: protocols whose server
    /// speaks first, which no detection can see.
    pub opaque_ports: PortSet,
    /// Who may call where no AccessPolicy says anything, and neither pod nor namespace does.
    pub default_access: AccessDefault,
    /// What may leave the cluster where no EgressPolicy says anything, and neither pod nor namespace does.
    pub default_egress: EgressDefault,
    /// Where the cluster's addresses lie: callers for the default `cluster`, destinations that control has not told of yet.
    #[schemars(inner(regex(pattern = r"^[0-9A-Fa-f.:]+(/[0-9]{1,3})?$")))]
    pub cluster_networks: Vec<Network>,
}

/// CPU and memory of the proxy's container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyResources {
    /// Requested CPU.
    pub cpu_request: Option<Quantity>,
    /// CPU limit; none unless set, because a throttled proxy slows its application.
    pub cpu_limit: Option<Quantity>,
    /// Requested memory.
    pub memory_request: Option<Quantity>,
    /// Memory limit.
    pub memory_limit: Option<Quantity>,
}

/// When a node pulls an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Only if the node has no copy.
    #[default]
    IfNotPresent,
    /// Before every start.
    Always,
    /// Never.
    Never,
}

/// Whether proxies are native sidecars: written as the word `auto`, or as true or false.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NativeSidecar {
    /// Where the cluster runs them: from Kubernetes 1.29, and where its version is not known.
    #[default]
    Auto,
    /// Always.
    True,
    /// Never.
    False,
}

impl NativeSidecar {
    const WORDS: [(&'static str, Self); 3] = [("auto", Self::Auto), ("true", Self::True), ("false", Self::False)];

    /// What it comes to in a cluster of this minor release of Kubernetes 1; `None`: not known.
    pub fn resolved(self, minor: Option<u32>) -> bool {
        match self {
            Self::Auto => minor.is_none_or(|minor| minor >= NATIVE_SIDECAR_MINOR),
            Self::True => true,
            Self::False => false,
        }
    }
}

impl std::str::FromStr for NativeSidecar {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        found.map(|(_, meant)| *meant).ok_or("write `auto`, `true` or `false`")
    }
}

impl Serialize for NativeSidecar {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::True => serializer.serialize_bool(true),
            Self::False => serializer.serialize_bool(false),
        }
    }
}

impl<'de> Deserialize<'de> for NativeSidecar {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        match Value::deserialize(deserializer)? {
            Value::Bool(native) => Ok(if native { Self::True } else { Self::False }),
            Value::String(word) => word.parse().map_err(D::Error::custom),
            _ => Err(D::Error::custom("write `auto`, `true` or `false`")),
        }
    }
}

impl JsonSchema for NativeSidecar {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NativeSidecar".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        // Quoted or not: `--set` and Helm write either.
        schemars::json_schema!({ "enum": ["auto", "true", "false", true, false] })
    }
}

impl PullPolicy {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IfNotPresent => "IfNotPresent",
            Self::Always => "Always",
            Self::Never => "Never",
        }
    }
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            version: VERSION.to_owned(),
            system_namespace: names::SYSTEM_NAMESPACE.to_owned(),
            trust_domain: names::DEFAULT_TRUST_DOMAIN.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            control_log: "info".to_owned(),
            image_pull_secrets: Vec::new(),
            cni_enabled: false,
            proxy: ProxyDefaults::default(),
            trust_anchors_pem: String::new(),
        }
    }
}

impl Default for ProxyDefaults {
    fn default() -> Self {
        Self {
            image: format!("meshctl/proxy:{VERSION}"),
            image_pull_policy: PullPolicy::default(),
            log: "warn,mesh_proxy=info".to_owned(),
            resources: ProxyResources::default(),
            drain_timeout: Duration::from_seconds(30),
            native_sidecar: NativeSidecar::default(),
            workers: 1,
            skip_inbound_ports: PortSet::default(),
            skip_outbound_ports: PortSet::default(),
            opaque_ports: PortSet::of(&[25, 587, 3306, 4444, 5432, 6379, 9300, 11211]),
            default_access: AccessDefault::All,
            default_egress: EgressDefault::Allow,
            cluster_networks: Network::private(),
        }
    }
}

impl Default for ProxyResources {
    fn default() -> Self {
        Self {
            cpu_request: Some(Quantity::known("20m")),
            cpu_limit: None,
            memory_request: Some(Quantity::known("20Mi")),
            memory_limit: Some(Quantity::known("250Mi")),
        }
    }
}

impl MeshConfig {
    /// Reads the file's text. Unknown and ill-typed keys are errors that name line and column.
    pub fn from_yaml(text: &str) -> Result<Self, InvalidConfig> {
        serde_saphyr::from_str(text).map_err(|e| InvalidConfig(e.to_string()))
    }

    /// Reads the file's text as it may have been written by a neighbouring release: keys that this one does not know are
    /// left out and named, ill-typed ones are errors.
    pub fn from_yaml_of_any_release(text: &str) -> Result<(Self, Vec<String>), InvalidConfig> {
        let mut tree: Value = serde_saphyr::from_str(text).map_err(|e| InvalidConfig(e.to_string()))?;
        // Every field has a default that is written, so the default's tree holds every key there is.
        let known = serde_json::to_value(Self::default()).map_err(|e| InvalidConfig(e.to_string()))?;
        let mut unknown = Vec::new();
        leave_out_unknown(&mut tree, &known, "", &mut unknown);
        let config = if tree.is_null() { Ok(Self::default()) } else { serde_json::from_value(tree) };
        config.map(|config| (config, unknown)).map_err(|e| InvalidConfig(e.to_string()))
    }

    /// The file's text, with every key present.
    pub fn to_yaml(&self) -> Result<String, InvalidConfig> {
        serde_saphyr::to_string(self).map_err(|e| InvalidConfig(e.to_string()))
    }

    /// The same configuration with what depends on the cluster decided for one of this minor release of Kubernetes 1;
    /// `None`: not known.
    pub fn settled(mut self, minor: Option<u32>) -> Self {
        let native = self.proxy.native_sidecar.resolved(minor);
        self.proxy.native_sidecar = if native { NativeSidecar::True } else { NativeSidecar::False };
        self
    }

    /// The identity of the control plane, which proxies demand of whoever answers at [`Self::control_address`].
    pub fn control_identity(&self) -> SpiffeId {
        SpiffeId::new(&self.trust_domain, &self.system_namespace, names::CONTROL_NAME)
    }

    /// Host and port of the proxy API.
    pub fn control_address(&self) -> String {
        let Self { system_namespace, cluster_domain, .. } = self;
        format!("{}.{system_namespace}.svc.{cluster_domain}:{}", names::CONTROL_NAME, names::CONTROL_PROXY_PORT)
    }
}

/// Takes out of a tree what `known` has not, and says which keys that were.
fn leave_out_unknown(tree: &mut Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    let (Value::Object(map), Value::Object(known)) = (tree, known) else { return };
    map.retain(|key, below| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match known.get(key) {
            Some(known) => leave_out_unknown(below, known, &path, unknown),
            None => unknown.push(path),
        }
        known.contains_key(key)
    });
}

/// Why a configuration could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the mesh's configuration is not usable: {0}")]
pub struct InvalidConfig(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_fill_what_is_left_out() {
        let config = MeshConfig::from_yaml("trust_domain: example.org\nproxy:\n  workers: 2\n").unwrap();
        assert_eq!(config.trust_domain, "example.org");
        assert_eq!(config.proxy.workers, 2);
        assert_eq!(config.proxy.image, format!("meshctl/proxy:{VERSION}"));
        assert_eq!(config.control_address(), "mesh-control.mesh-system.svc.cluster.local:8086");
        assert_eq!(config.control_identity().to_string(), "spiffe://example.org/ns/mesh-system/sa/mesh-control");
    }

    #[test]
    fn what_is_written_reads_back() {
        let trust_anchors_pem = "-----BEGIN CERTIFICATE-----\nMII=\n-----END CERTIFICATE-----\n".to_owned();
        let mut config = MeshConfig { trust_anchors_pem, ..MeshConfig::default() };
        config.proxy.skip_inbound_ports = "22,8000-8010".parse().unwrap();
        config.proxy.resources.cpu_request = None;
        let text = config.to_yaml().unwrap();
        assert_eq!(MeshConfig::from_yaml(&text).unwrap(), config, "{text}");
    }

    #[test]
    fn native_sidecars_are_chosen_by_word_or_by_version() {
        let read = |text: &str| MeshConfig::from_yaml(&format!("proxy: {{native_sidecar: {text}}}"));
        for (text, minor, expect) in [
            ("auto", None, true),
            ("auto", Some(28), false),
            ("auto", Some(29), true),
            ("true", Some(28), true),
            ("false", Some(34), false),
            ("\"false\"", Some(34), false),
        ] {
            let config = read(text).unwrap();
            assert_eq!(config.proxy.native_sidecar.resolved(minor), expect, "{text} {minor:?}");
            assert_eq!(MeshConfig::from_yaml(&config.to_yaml().unwrap()).unwrap(), config);
        }
        for text in ["1", "never", "[]"] {
            assert!(read(text).unwrap_err().to_string().contains("write `auto`, `true` or `false`"), "{text}");
        }
    }

    #[test]
    fn keys_of_a_later_release_are_left_out_and_named() {
        let text =
            "trust_domain: example.org\nmoon: {phase: full}\nproxy:\n  workers: 2\n  warp: 9\n  resources: {gpu: 1}\n";
        let (config, unknown) = MeshConfig::from_yaml_of_any_release(text).unwrap();
        assert_eq!((config.trust_domain.as_str(), config.proxy.workers), ("example.org", 2));
        assert_eq!(unknown, ["moon", "proxy.warp", "proxy.resources.gpu"]);
        assert_eq!(MeshConfig::from_yaml_of_any_release("").unwrap(), (MeshConfig::default(), vec![]));
        assert!(MeshConfig::from_yaml_of_any_release("proxy: {workers: many}").is_err());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = MeshConfig::from_yaml("proxy:\n  wrokers: 2\n").unwrap_err().to_string();
        assert!(error.contains("wrokers"), "{error}");
    }
}
