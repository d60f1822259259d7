//! What the objects of an install say where something can be chosen: the chosen values themselves, or, for a chart, the
//! expressions that Helm puts the values in for.
//!
//! The objects are built once, by [`crate::install`], around one [`Terms`]. An expression travels through them as a
//! [`mark`]: text between two characters that nothing else contains, which [`crate::chart`] writes as `{{ … }}`.

use crate::config::{MeshConfig, VERSION};
use crate::install::{InstallError, mesh_config};
use crate::issuer::Issuer;
use crate::sidecar::resource_object;
use crate::values::{FailurePolicy, Values};
use crate::yaml;
use base64::Engine as _;
use mesh_api::names;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// Begins an expression whose outcome is a value. Like the other two, it is a character of Unicode's private use.
pub(crate) const VALUE: char = '\u{e000}';
/// Begins an expression whose outcome is text of whole lines.
pub(crate) const TEXT: char = '\u{e001}';
/// Begins the condition of a key.
pub(crate) const CONDITION: char = '\u{e002}';
/// Ends all of them.
pub(crate) const END: char = '\u{e003}';

/// An expression whose outcome is a value.
pub(crate) fn mark(expression: &str) -> String {
    format!("{VALUE}{expression}{END}")
}

/// Whether something belongs to an install.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// It does.
    Always,
    /// It does not.
    Never,
    /// It does if this expression of a chart holds.
    If(&'static str),
}

impl When {
    fn is(holds: bool) -> Self {
        if holds { Self::Always } else { Self::Never }
    }

    /// Adds a key to a map, if it belongs there.
    pub(crate) fn put(&self, map: &mut Value, key: &str, value: Value) {
        match self {
            Self::Always => map[key] = value,
            Self::Never => {}
            Self::If(condition) => map[format!("{CONDITION}{condition}{END}{key}")] = value,
        }
    }
}

/// What can be chosen, as the objects say it.
pub(crate) struct Terms {
    /// Namespace of the control plane.
    pub(crate) namespace: String,
    /// What cluster-wide objects of the control plane are called.
    pub(crate) cluster_name: String,
    /// The mesh's configuration, YAML.
    pub(crate) config: String,
    /// Beginning of the configuration's digest, which makes a change of it restart control. Control follows the anchors in
    /// the issuer's Secret: they alone are no reason to start it anew.
    pub(crate) digest: String,
    /// Values that differ from the defaults, YAML.
    pub(crate) overrides: String,
    /// Trust anchors, PEM.
    pub(crate) anchors: String,
    /// The issuer's certificate, its key and the anchors, each in base64; empty where they come from elsewhere.
    pub(crate) issuer: [String; 3],
    /// Whether they do not.
    pub(crate) with_secret: When,
    pub(crate) ha: When,
    pub(crate) network_policies: When,
    pub(crate) image: Value,
    pub(crate) pull_policy: Value,
    pub(crate) pull_secrets: (When, Value),
    pub(crate) priority_class: (When, Value),
    pub(crate) log: Value,
    pub(crate) resources: Value,
    pub(crate) replicas: Value,
    pub(crate) failure_policy: Value,
    pub(crate) timeout_seconds: Value,
    /// Namespaces that the webhooks leave alone.
    pub(crate) excluded_namespaces: Value,
    pub(crate) cni: CniTerms,
}

/// What can be chosen about CNI mode.
pub(crate) struct CniTerms {
    pub(crate) enabled: When,
    pub(crate) bin_dir: Value,
    pub(crate) conf_dir: Value,
    /// Of the proxy, whose program is the plugin.
    pub(crate) proxy_image: Value,
    pub(crate) proxy_pull_policy: Value,
    /// Namespaces whose pods get their network without a question; separated by commas.
    pub(crate) excluded_namespaces: Value,
}

/// A configuration's text without the trust anchors.
fn without_anchors(config: &str) -> String {
    let mut inside = false;
    let kept = config.lines().filter(|line| {
        inside = line.starts_with("trust_anchors_pem:") || inside && (line.is_empty() || line.starts_with(' '));
        !inside
    });
    kept.map(|line| format!("{line}\n")).collect()
}

impl Terms {
    /// The values themselves.
    pub(crate) fn of(values: &Values, issuer: &Issuer) -> Result<Self, InstallError> {
        let namespace = &values.system_namespace;
        let config = mesh_config(values, issuer).to_yaml()?;
        let digest = Sha256::digest(without_anchors(&config).as_bytes());
        let digest: String = digest.iter().take(8).map(|b| format!("{b:02x}")).collect();
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let pair = issuer.pair.as_ref();
        let own = pair.map(|pair| [&pair.certificate_pem, &pair.key_pem, &issuer.anchors_pem].map(|pem| base64(pem)));
        let mut excluded = vec![namespace.as_str(), "kube-system"];
        excluded.extend(values.webhook.excluded_namespaces.iter().map(String::as_str).filter(|n| *n != "kube-system"));
        let secrets = &values.image_pull_secrets;
        let class = &values.control.priority_class;
        Ok(Self {
            namespace: namespace.clone(),
            // Two meshes in one cluster must not overwrite each other's rights.
            cluster_name: match namespace.as_str() {
                names::SYSTEM_NAMESPACE => names::CONTROL_NAME.to_owned(),
                other => format!("{}-{other}", names::CONTROL_NAME),
            },
            config,
            digest,
            overrides: yaml::one(&values.overrides())?,
            anchors: issuer.anchors_pem.clone(),
            issuer: own.unwrap_or_default(),
            with_secret: When::is(pair.is_some()),
            ha: When::is(values.ha),
            network_policies: When::is(values.network_policies),
            image: json!(values.control.image),
            pull_policy: json!(values.control.image_pull_policy.as_str()),
            pull_secrets: (When::is(!secrets.is_empty()), secrets.iter().map(|name| json!({ "name": name })).collect()),
            priority_class: (When::is(class.is_some()), json!(class)),
            log: json!(values.control.log),
            resources: resource_object(&values.control.resources),
            replicas: json!(values.control_replicas()),
            failure_policy: json!(match values.failure_policy() {
                FailurePolicy::Ignore => "Ignore",
                FailurePolicy::Fail => "Fail",
            }),
            timeout_seconds: json!(values.webhook.timeout_seconds),
            cni: CniTerms {
                enabled: When::is(values.cni.enabled),
                bin_dir: json!(values.cni.bin_dir),
                conf_dir: json!(values.cni.conf_dir),
                proxy_image: json!(values.proxy.image),
                proxy_pull_policy: json!(values.proxy.image_pull_policy.as_str()),
                excluded_namespaces: json!(excluded.join(",")),
            },
            excluded_namespaces: json!(excluded),
        })
    }

    /// Expressions over `$v`, the values that a chart is installed with, every key of them present; and over named
    /// templates of `chart/helpers.tpl`.
    pub(crate) fn chart() -> Self {
        let value = |expression: &str| Value::from(mark(expression));
        let text = |expression: &str| format!("{TEXT}{expression}{END}");
        let base64 = |expression: &str| mark(&format!("{expression} | b64enc"));
        let excluded =
            r#"concat (list $v.system_namespace "kube-system") (without $v.webhook.excluded_namespaces "kube-system")"#;
        Self {
            namespace: mark("$v.system_namespace"),
            cluster_name: mark(r#"include "mesh.clusterName" $v"#),
            config: text(r#"include "mesh.config" $v"#),
            digest: mark(
                r#"regexReplaceAll `(?m)^trust_anchors_pem:.*\n(?:(?: .*)?\n)*` (include "mesh.config" $v) "" | sha256sum | trunc 16"#,
            ),
            overrides: text(r#"include "mesh.overrides" $v"#),
            anchors: text(r#"include "mesh.anchors" $v"#),
            issuer: [
                base64(r#"include "mesh.issuerCertificate" $v"#),
                base64(r#"include "mesh.issuerKey" $v"#),
                base64(r#"include "mesh.anchors" $v"#),
            ],
            with_secret: When::If("not $v.identity.existing_secret"),
            ha: When::If("$v.ha"),
            network_policies: When::If("$v.network_policies"),
            image: value("$v.control.image"),
            pull_policy: value("$v.control.image_pull_policy"),
            pull_secrets: (
                When::If("$v.image_pull_secrets"),
                value(r#"include "mesh.pullSecrets" $v | fromJsonArray"#),
            ),
            priority_class: (When::If("$v.control.priority_class"), value("$v.control.priority_class")),
            log: value("$v.control.log"),
            resources: value(r#"include "mesh.resources" $v.control.resources | fromJson"#),
            replicas: value("$v.control.replicas | default (ternary 3 1 $v.ha)"),
            failure_policy: value(r#"$v.webhook.failure_policy | default (ternary "Fail" "Ignore" $v.ha)"#),
            timeout_seconds: value("$v.webhook.timeout_seconds"),
            cni: CniTerms {
                enabled: When::If("$v.cni.enabled"),
                bin_dir: value("$v.cni.bin_dir"),
                conf_dir: value("$v.cni.conf_dir"),
                proxy_image: value("$v.proxy.image"),
                proxy_pull_policy: value("$v.proxy.image_pull_policy"),
                excluded_namespaces: value(&format!("{excluded} | join \",\"")),
            },
            excluded_namespaces: value(excluded),
        }
    }
}

/// The mesh's configuration with expressions for all that is chosen: what [`mesh_config`] is for a chart.
pub(crate) fn chart_config() -> Value {
    let MeshConfig { proxy, .. } = MeshConfig::default();
    json!({
        "version": VERSION,
        "system_namespace": mark("$v.system_namespace"),
        "trust_domain": mark("$v.trust_domain"),
        "cluster_domain": mark("$v.cluster_domain"),
        "control_log": mark("$v.control.log"),
        "image_pull_secrets": mark("$v.image_pull_secrets"),
        "cni_enabled": mark("$v.cni.enabled"),
        // The same struct stands in the values.
        "proxy": leaves(&serde_json::to_value(proxy).unwrap_or_default(), "$v.proxy"),
        "trust_anchors_pem": format!("{TEXT}include \"mesh.anchors\" $v{END}"),
    })
}

/// An expression for each value of a tree that is no map.
fn leaves(tree: &Value, path: &str) -> Value {
    match tree {
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(key, below)| (key.clone(), leaves(below, &format!("{path}.{key}"))))
                .collect::<Map<_, _>>(),
        ),
        _ => mark(path).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PullPolicy;

    #[test]
    fn a_charts_configuration_has_every_key() {
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        let (own, chart) = (serde_json::to_value(MeshConfig::default()).unwrap(), chart_config());
        assert_eq!(keys(&own), keys(&chart));
        assert_eq!(chart["proxy"]["resources"]["cpu_limit"], mark("$v.proxy.resources.cpu_limit"));
    }

    #[test]
    fn a_policy_to_pull_images_is_written_as_kubernetes_does() {
        // A chart writes the value itself.
        for policy in [PullPolicy::Always, PullPolicy::IfNotPresent, PullPolicy::Never] {
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.as_str());
        }
    }
}
