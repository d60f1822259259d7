//! Environment variables and command lines of containers; pure once everything referred to has been fetched.

use super::addresses::Addresses;
use super::plan;
use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements, Service};
use std::collections::BTreeMap;

/// `PATH` of containers that set none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Something outside the pod that its configuration refers to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reference {
    ConfigMap(String),
    Secret(String),
}

/// Content of what was referred to; `None` if it doesn't exist.
pub(super) type Contents = BTreeMap<Reference, Option<BTreeMap<String, Vec<u8>>>>;

/// What a container's variables refer to.
pub(super) fn references(container: &Container) -> Vec<Reference> {
    let mut references = Vec::new();
    for from in container.env_from.iter().flatten() {
        references.extend(from.config_map_ref.as_ref().map(|r| Reference::ConfigMap(r.name.clone())));
        references.extend(from.secret_ref.as_ref().map(|r| Reference::Secret(r.name.clone())));
    }
    for from in container.env.iter().flatten().filter_map(|env| env.value_from.as_ref()) {
        references.extend(from.config_map_key_ref.as_ref().map(|r| Reference::ConfigMap(r.name.clone())));
        references.extend(from.secret_key_ref.as_ref().map(|r| Reference::Secret(r.name.clone())));
    }
    references.sort();
    references.dedup();
    references
}

/// What a pod's fields that change at run time are read from.
pub(super) struct Subject<'a> {
    pub(super) pod: &'a Pod,
    pub(super) addresses: Addresses,
    pub(super) node: &'a str,
}

/// All variables of a container in order, or what is wrong with them.
pub(super) fn variables(
    subject: &Subject<'_>,
    container: &Container,
    services: &[(String, String)],
    contents: &Contents,
) -> Result<Vec<(String, String)>, String> {
    let mut all = Variables::default();
    for (name, value) in services {
        all.set(name, value.clone());
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let (reference, optional) = match (&from.config_map_ref, &from.secret_ref) {
            (Some(r), _) => (Reference::ConfigMap(r.name.clone()), r.optional),
            (None, Some(r)) => (Reference::Secret(r.name.clone()), r.optional),
            (None, None) => continue,
        };
        for (key, value) in fetch(contents, &reference, optional)?.into_iter().flatten() {
            if is_name(&format!("{prefix}{key}")) {
                all.set(&format!("{prefix}{key}"), String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    for env in container.env.iter().flatten() {
        let value = match (&env.value, &env.value_from) {
            (Some(value), _) => Some(expand(value, |name| all.get(name))),
            (None, None) => Some(String::new()),
            (None, Some(from)) => {
                if let Some(field) = &from.field_ref {
                    Some(field_value(subject, &field.field_path)?)
                } else if let Some(resource) = &from.resource_field_ref {
                    let name = resource.container_name.as_deref().unwrap_or(&container.name);
                    let divisor = resource.divisor.as_ref().map(|q| q.0.as_str());
                    Some(resource_value(subject.pod, name, &resource.resource, divisor)?)
                } else if let Some(r) = &from.config_map_key_ref {
                    key(contents, &Reference::ConfigMap(r.name.clone()), &r.key, r.optional)?
                } else if let Some(r) = &from.secret_key_ref {
                    key(contents, &Reference::Secret(r.name.clone()), &r.key, r.optional)?
                } else {
                    return Err(format!("variable {}: its source is not supported", env.name));
                }
            }
        };
        if let Some(value) = value {
            all.set(&env.name, value);
        }
    }
    Ok(all.0)
}

/// Adds what container runtimes set where nobody else has.
pub(super) fn complete(env: &mut Vec<(String, String)>, hostname: &str, home: &str, tty: bool) {
    let terminal = if tty { "xterm" } else { "" };
    for (name, value) in [("PATH", PATH), ("HOSTNAME", hostname), ("HOME", home), ("TERM", terminal)] {
        if !value.is_empty() && !env.iter().any(|(n, _)| n == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
}

/// Variables in order of first mention, the last value winning.
#[derive(Default)]
struct Variables(Vec<(String, String)>);

impl Variables {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains('=') && name.bytes().all(|b| b.is_ascii_graphic())
}

fn fetch<'a>(
    contents: &'a Contents,
    reference: &Reference,
    optional: Option<bool>,
) -> Result<Option<&'a BTreeMap<String, Vec<u8>>>, String> {
    match contents.get(reference).and_then(Option::as_ref) {
        Some(content) => Ok(Some(content)),
        None if optional == Some(true) => Ok(None),
        None => Err(match reference {
            Reference::ConfigMap(name) => format!("configmap \"{name}\" not found"),
            Reference::Secret(name) => format!("secret \"{name}\" not found"),
        }),
    }
}

fn key(
    contents: &Contents,
    reference: &Reference,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    let Some(content) = fetch(contents, reference, optional)? else { return Ok(None) };
    match content.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(match reference {
            Reference::ConfigMap(name) => format!("couldn't find key {key} in ConfigMap {name}"),
            Reference::Secret(name) => format!("couldn't find key {key} in Secret {name}"),
        }),
    }
}

/// Replaces `$(NAME)` by what `look` knows of it, else leaves it; `$$` stands for `$`.
pub(super) fn expand<'a>(text: &str, look: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match look(name) {
                Some(value) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// A field of the pod, as the downward API names it.
pub(super) fn field_value(subject: &Subject<'_>, path: &str) -> Result<String, String> {
    let meta = &subject.pod.metadata;
    let spec = subject.pod.spec.as_ref();
    let lines = |map: &Option<BTreeMap<String, String>>| {
        let line = |(key, value): (&String, &String)| format!("{key}={value:?}");
        map.iter().flatten().map(line).collect::<Vec<_>>().join("\n")
    };
    if let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("unsupported fieldPath: {path}")),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" => subject.node.to_owned(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or("default".into()),
        "status.hostIP" => subject.addresses.host().v4.to_string(),
        "status.hostIPs" => subject.addresses.host().list(),
        "status.podIP" => subject.addresses.v4.to_string(),
        "status.podIPs" => subject.addresses.list(),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

/// A resource of a container, divided and rounded up; what it doesn't limit is limited by the node.
pub(super) fn resource_value(
    pod: &Pod,
    container: &str,
    resource: &str,
    divisor: Option<&str>,
) -> Result<String, String> {
    let found = pod.spec.as_ref().and_then(|spec| plan::containers(spec).find(|(_, c)| c.name == container));
    let Some((_, container)) = found else { return Err(format!("container {container} not found")) };
    let none = ResourceRequirements::default();
    let resources = container.resources.as_ref().unwrap_or(&none);
    let Some((kind, name)) = resource.split_once('.') else {
        return Err(format!("unsupported container resource: {resource}"));
    };
    let quantity = match kind {
        "limits" => resources.limits.as_ref().and_then(|limits| limits.get(name)),
        "requests" => resources.requests.as_ref().and_then(|requests| requests.get(name)),
        _ => return Err(format!("unsupported container resource: {resource}")),
    };
    let value = match quantity {
        Some(quantity) => parse_quantity(&quantity.0)?,
        None if kind == "requests" => 0.0,
        None => match name {
            "cpu" => super::registration::cpus() as f64,
            "memory" => super::registration::memory_bytes() as f64,
            _ => 0.0,
        },
    };
    let divisor = match divisor.map(parse_quantity).transpose()? {
        Some(divisor) if divisor > 0.0 => divisor,
        _ => 1.0,
    };
    Ok(format!("{}", (value / divisor).ceil() as u64))
}

/// A quantity as Kubernetes writes them (`500m`, `1.5Gi`, `1e3`).
fn parse_quantity(text: &str) -> Result<f64, String> {
    const SUFFIXES: [(&str, f64); 14] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("", 1.0),
    ];
    let parsed = SUFFIXES.iter().find_map(|(suffix, factor)| {
        text.strip_suffix(suffix).and_then(|number| number.parse::<f64>().ok()).map(|number| number * factor)
    });
    parsed.filter(|value| value.is_finite()).ok_or_else(|| format!("{text:?} is not a quantity"))
}

/// A quantity of bytes.
pub(super) fn bytes(quantity: &str) -> Option<u64> {
    parse_quantity(quantity).ok().filter(|bytes| *bytes >= 0.0).map(|bytes| bytes as u64)
}

/// Variables that tell a container of the services it may use, of its namespace and the API's own.
pub(super) fn service_variables<'a>(services: impl IntoIterator<Item = &'a Service>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for service in services {
        let Some(spec) = &service.spec else { continue };
        let address = spec.cluster_ip.as_deref().unwrap_or_default();
        let (Some(name), Some(ports)) = (&service.metadata.name, &spec.ports) else { continue };
        if address.is_empty() || address == "None" || spec.type_.as_deref() == Some("ExternalName") {
            continue;
        }
        let name = name.to_ascii_uppercase().replace('-', "_");
        let Some(first) = ports.first() else { continue };
        let mut set = |suffix: String, value: String| all.push((format!("{name}_{suffix}"), value));
        set("SERVICE_HOST".into(), address.to_owned());
        set("SERVICE_PORT".into(), first.port.to_string());
        for port in ports {
            if let Some(port_name) = &port.name {
                let suffix = port_name.to_ascii_uppercase().replace('-', "_");
                set(format!("SERVICE_PORT_{suffix}"), port.port.to_string());
            }
        }
        let url = |protocol: &str, port: i32| format!("{}://{address}:{port}", protocol.to_ascii_lowercase());
        set("PORT".into(), url(first.protocol.as_deref().unwrap_or("TCP"), first.port));
        for port in ports {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let prefix = format!("PORT_{}_{protocol}", port.port);
            set(prefix.clone(), url(protocol, port.port));
            set(format!("{prefix}_PROTO"), protocol.to_ascii_lowercase());
            set(format!("{prefix}_PORT"), port.port.to_string());
            set(format!("{prefix}_ADDR"), address.to_owned());
        }
    }
    all
}

#[cfg(test)]
#[path = "environment_tests.rs"]
mod tests;
