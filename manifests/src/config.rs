//! The configuration of a whole mesh: what `mesh-control` reads from `/etc/mesh-control/config.yaml` (ConfigMap
//! `mesh-config`), and what the injector takes its defaults from.

use crate::ports::PortSet;
use crate::quantity::{Duration, Quantity};
use mesh_api::{AccessDefault, EgressDefault, Network, SpiffeId, names};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Key of [`MeshConfig`] in the ConfigMap `mesh-config`, and so the file's name where it is mounted.
pub const CONFIG_KEY: &str = "config.yaml";
/// Where `mesh-control` finds its configuration.
pub const CONFIG_PATH: &str = "/etc/mesh-control/config.yaml";
/// Version of this crate, which is the version of every part of a release.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

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

    /// The file's text, with every key present.
    pub fn to_yaml(&self) -> Result<String, InvalidConfig> {
        serde_saphyr::to_string(self).map_err(|e| InvalidConfig(e.to_string()))
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
    fn an_unknown_key_is_named() {
        let error = MeshConfig::from_yaml("proxy:\n  wrokers: 2\n").unwrap_err().to_string();
        assert!(error.contains("wrokers"), "{error}");
    }
}
