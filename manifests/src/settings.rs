//! What a pod's annotations ask of its proxy, read once and checked whole.
//!
//! A setting stands on the pod or, for all pods of a namespace, on the namespace; the pod's own wins. A value that
//! cannot be used is a [`Refusal`]: a pod that silently ran with other settings than written would be worse.

use crate::config::{MeshConfig, ProxyResources};
use crate::ports::PortSet;
use crate::quantity::{Duration, Quantity};
use mesh_api::names;
use mesh_api::{AccessDefault, EgressDefault};
use serde_json::Value;
use std::str::FromStr;

/// Annotation: log filter of the proxy.
pub const PROXY_LOG_LEVEL: &str = "meshctl.dev/proxy-log-level";
/// Annotation: CPU requested for the proxy.
pub const PROXY_CPU_REQUEST: &str = "meshctl.dev/proxy-cpu-request";
/// Annotation: CPU limit of the proxy.
pub const PROXY_CPU_LIMIT: &str = "meshctl.dev/proxy-cpu-limit";
/// Annotation: memory requested for the proxy.
pub const PROXY_MEMORY_REQUEST: &str = "meshctl.dev/proxy-memory-request";
/// Annotation: memory limit of the proxy.
pub const PROXY_MEMORY_LIMIT: &str = "meshctl.dev/proxy-memory-limit";
/// Annotation: image of the proxy.
pub const PROXY_IMAGE: &str = "meshctl.dev/proxy-image";
/// Annotation: how long the proxy drains when the pod stops.
pub const PROXY_DRAIN_TIMEOUT: &str = "meshctl.dev/proxy-drain-timeout";
/// Annotation: whether the proxy is a native sidecar.
pub const NATIVE_SIDECAR: &str = "meshctl.dev/native-sidecar";

/// Annotation: how the proxy logs requests on its standard output.
pub const PROXY_ACCESS_LOG: &str = "meshctl.dev/proxy-access-log";
/// Annotation: where the proxy sends spans, by OTLP over HTTP with JSON.
pub const PROXY_OTLP_ENDPOINT: &str = "meshctl.dev/proxy-otlp-endpoint";
/// Annotation: the share of requests without a trace that begin one.
pub const PROXY_TRACE_RATIO: &str = "meshctl.dev/proxy-trace-ratio";

/// An annotation that users set: a row of the reference.
#[derive(Clone, Copy, Debug)]
pub struct Annotation {
    /// Full name.
    pub name: &'static str,
    /// On which objects it counts.
    pub on: &'static str,
    /// What it may hold.
    pub value: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

const fn annotation(name: &'static str, on: &'static str, value: &'static str, meaning: &'static str) -> Annotation {
    Annotation { name, on, value, meaning }
}

const PODS: &str = "pods, namespaces";
const PORTS: &str = "ports and ranges: `22,8000-8080`";

/// Every annotation that a user may set, for the reference, for messages and for finding misspelt ones.
pub const ANNOTATIONS: &[Annotation] = &[
    annotation(names::INJECT, PODS, "`enabled` or `disabled`", "Whether pods get a proxy. May be a label too"),
    annotation(names::SKIP_INBOUND_PORTS, PODS, PORTS, "Ports of the application that its proxy leaves alone"),
    annotation(names::SKIP_OUTBOUND_PORTS, PODS, PORTS, "Ports elsewhere that are called past the proxy"),
    annotation(
        names::OPAQUE_PORTS,
        "pods, services, namespaces",
        PORTS,
        "Ports whose protocol is not looked into: the server speaks first, or it is none the mesh knows",
    ),
    annotation(
        names::DEFAULT_ACCESS,
        PODS,
        "`all`, `authenticated`, `cluster`, `deny` or `audit`",
        "Who may call where no AccessPolicy says anything",
    ),
    annotation(
        names::DEFAULT_EGRESS,
        PODS,
        "`allow`, `audit` or `deny`",
        "What may leave the cluster where no EgressPolicy says anything",
    ),
    annotation(PROXY_LOG_LEVEL, PODS, "levels: `info`, `warn,mesh_proxy=debug`", "What the proxy logs of itself"),
    annotation(PROXY_CPU_REQUEST, PODS, "a quantity: `100m`", "CPU requested for the proxy"),
    annotation(PROXY_CPU_LIMIT, PODS, "a quantity: `1`", "Most CPU the proxy gets"),
    annotation(PROXY_MEMORY_REQUEST, PODS, "a quantity: `20Mi`", "Memory requested for the proxy"),
    annotation(PROXY_MEMORY_LIMIT, PODS, "a quantity: `250Mi`", "Most memory the proxy gets"),
    annotation(PROXY_IMAGE, PODS, "an image: `registry.example.org/meshctl/proxy:0.1.0`", "Image of the proxy"),
    annotation(
        PROXY_DRAIN_TIMEOUT,
        PODS,
        "a duration: `30s`",
        "How long a stopping proxy finishes what it has; ends a second before the pod's grace period",
    ),
    annotation(
        NATIVE_SIDECAR,
        PODS,
        "`true` or `false`",
        "Whether the proxy is a native sidecar or, if not, the first of the containers; unset, the mesh decides",
    ),
    annotation(
        PROXY_ACCESS_LOG,
        PODS,
        "`json`, `apache` or `off`",
        "How the proxy logs requests on its standard output",
    ),
    annotation(
        PROXY_OTLP_ENDPOINT,
        PODS,
        "`http://HOST:4318`",
        "Where the proxy sends spans, by OTLP over HTTP with JSON",
    ),
    annotation(PROXY_TRACE_RATIO, PODS, "a number from 0 to 1", "Share of requests without a trace that begin one"),
];

/// Annotations with the mesh's prefix that others than the user write, or that other parts read.
const FOREIGN: [&str; 2] = [names::PROXY_VERSION, PULL_SECRETS];

/// Annotation that `meshctl inject --manual` leaves: the pull secrets it added, separated by blanks (a comma
/// would end the value in `{…}`), so that `uninject` leaves the pod's own alone.
pub const PULL_SECRETS: &str = "meshctl.dev/added-pull-secrets";

/// On which object a setting was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The pod, or the pod template.
    Pod,
    /// The pod's namespace.
    Namespace,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pod => "the pod",
            Self::Namespace => "the namespace",
        })
    }
}

/// Why a pod cannot be admitted to the mesh as it is written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An annotation or label holds something that means nothing.
    #[error("{annotation}: `{value}` on {holder} is not allowed: {expected}")]
    Annotation {
        /// Full name of the annotation.
        annotation: &'static str,
        /// What it holds.
        value: String,
        /// Where it stands.
        holder: Holder,
        /// What would be allowed.
        expected: String,
    },
    /// A port the proxy needs is declared by one of the pod's containers.
    #[error(
        "container `{container}` declares port {port}, which the proxy needs (4140, 4143 and 4191 are its own): \
         let the application listen elsewhere, or exclude the pod with `meshctl.dev/inject: disabled`"
    )]
    PortTaken {
        /// The container.
        container: String,
        /// The port.
        port: u16,
    },
    /// The pod has a volume of the name that the injector uses.
    #[error("the pod has a volume `{0}` already, a name the injector needs: rename it")]
    VolumeTaken(&'static str),
}

/// Annotations and labels that can hold settings: those of a pod and of its namespace.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// `metadata` of the pod or the pod template.
    pub pod: &'a Value,
    /// `metadata` of the namespace, where it is known.
    pub namespace: &'a Value,
}

impl<'a> Sources<'a> {
    fn annotation(&self, name: &str) -> Option<(Holder, &'a str)> {
        let on = |metadata: &'a Value| metadata["annotations"].get(name).and_then(Value::as_str);
        on(self.pod).map(|v| (Holder::Pod, v)).or_else(|| on(self.namespace).map(|v| (Holder::Namespace, v)))
    }

    fn parsed<T>(&self, annotation: &'static str) -> Result<Option<T>, Refusal>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let Some((holder, value)) = self.annotation(annotation) else { return Ok(None) };
        match value.trim().parse() {
            Ok(parsed) => Ok(Some(parsed)),
            Err(e) => {
                let expected = e.to_string();
                Err(Refusal::Annotation { annotation, value: value.to_owned(), holder, expected })
            }
        }
    }
}

/// Whether a pod wants a proxy, and who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// `meshctl.dev/inject: enabled`.
    Enabled(Holder),
    /// `meshctl.dev/inject: disabled`.
    Disabled(Holder),
    /// Nobody says anything.
    Unsaid,
}

/// Reads `meshctl.dev/inject`. In this order the first that is set decides: the pod's annotation, the pod's label,
/// the namespace's annotation, the namespace's label.
pub fn wish(sources: Sources<'_>) -> Result<Wish, Refusal> {
    for (holder, metadata) in [(Holder::Pod, sources.pod), (Holder::Namespace, sources.namespace)] {
        for place in ["annotations", "labels"] {
            match metadata[place].get(names::INJECT) {
                None => {}
                Some(Value::String(text)) if text == "enabled" => return Ok(Wish::Enabled(holder)),
                Some(Value::String(text)) if text == "disabled" => return Ok(Wish::Disabled(holder)),
                Some(other) => {
                    let value = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
                    let expected = "write `enabled` or `disabled`".to_owned();
                    return Err(Refusal::Annotation { annotation: names::INJECT, value, holder, expected });
                }
            }
        }
    }
    Ok(Wish::Unsaid)
}

/// How one pod's proxy runs: the mesh's defaults with the annotations laid over them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// Image of the proxy and of its redirect step.
    pub image: String,
    /// Log filter.
    pub log: String,
    /// CPU and memory.
    pub resources: ProxyResources,
    /// How long a stopping proxy finishes what it has.
    pub drain_timeout: Duration,
    /// True: a native sidecar; false: the first of the pod's containers.
    pub native_sidecar: bool,
    /// Inbound ports that never pass the proxy.
    pub skip_inbound_ports: PortSet,
    /// Outbound ports that never pass the proxy.
    pub skip_outbound_ports: PortSet,
    /// How the proxy logs requests: `json` or `apache`; not at all unless set.
    pub access_log: Option<String>,
    /// Where the proxy sends spans, if anywhere.
    pub otlp_endpoint: Option<String>,
    /// Share of requests without a trace that begin one; none unless set.
    pub trace_ratio: Option<String>,
}

/// Grace that Kubernetes gives a pod unless its spec says otherwise.
const DEFAULT_GRACE_SECONDS: u64 = 30;

impl ProxySettings {
    /// Reads all settings of a pod. Ports named in annotations replace the mesh's defaults.
    /// The drain ends a second before the pod's grace period does, so that it is never cut off half-way.
    pub fn read(sources: Sources<'_>, spec: &Value, config: &MeshConfig) -> Result<Self, Refusal> {
        let defaults = &config.proxy;
        // Control reads these, but a slip in them must show here too, where the user still looks.
        sources.parsed::<PortSet>(names::OPAQUE_PORTS)?;
        sources.parsed::<AccessDefault>(names::DEFAULT_ACCESS)?;
        sources.parsed::<EgressDefault>(names::DEFAULT_EGRESS)?;
        let grace = spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(DEFAULT_GRACE_SECONDS);
        let drain = sources.parsed(PROXY_DRAIN_TIMEOUT)?.unwrap_or(defaults.drain_timeout);
        Ok(Self {
            image: sources.parsed::<Image>(PROXY_IMAGE)?.map_or_else(|| defaults.image.clone(), |i| i.0),
            log: sources.parsed::<LogFilter>(PROXY_LOG_LEVEL)?.map_or_else(|| defaults.log.clone(), |l| l.0),
            resources: resources(sources, &defaults.resources)?,
            drain_timeout: drain.min(Duration::from_seconds(grace.saturating_sub(1))),
            native_sidecar: sources
                .parsed::<TrueOrFalse>(NATIVE_SIDECAR)?
                .map_or_else(|| defaults.native_sidecar.resolved(None), |native| native.0),
            skip_inbound_ports: sources
                .parsed(names::SKIP_INBOUND_PORTS)?
                .unwrap_or_else(|| defaults.skip_inbound_ports.clone()),
            skip_outbound_ports: sources
                .parsed(names::SKIP_OUTBOUND_PORTS)?
                .unwrap_or_else(|| defaults.skip_outbound_ports.clone()),
            access_log: sources.parsed::<AccessLog>(PROXY_ACCESS_LOG)?.and_then(|log| log.0),
            otlp_endpoint: sources.parsed::<Collector>(PROXY_OTLP_ENDPOINT)?.map(|collector| collector.0),
            trace_ratio: sources.parsed::<Ratio>(PROXY_TRACE_RATIO)?.map(|ratio| ratio.0),
        })
    }
}

fn resources(sources: Sources<'_>, defaults: &ProxyResources) -> Result<ProxyResources, Refusal> {
    let read = |annotation, default: &Option<Quantity>| -> Result<Option<Quantity>, Refusal> {
        Ok(sources.parsed(annotation)?.or_else(|| default.clone()))
    };
    let mut resources = ProxyResources {
        cpu_request: read(PROXY_CPU_REQUEST, &defaults.cpu_request)?,
        cpu_limit: read(PROXY_CPU_LIMIT, &defaults.cpu_limit)?,
        memory_request: read(PROXY_MEMORY_REQUEST, &defaults.memory_request)?,
        memory_limit: read(PROXY_MEMORY_LIMIT, &defaults.memory_limit)?,
    };
    let ProxyResources { cpu_request, cpu_limit, memory_request, memory_limit } = &mut resources;
    fit(sources, (PROXY_CPU_REQUEST, cpu_request), (PROXY_CPU_LIMIT, cpu_limit))?;
    fit(sources, (PROXY_MEMORY_REQUEST, memory_request), (PROXY_MEMORY_LIMIT, memory_limit))?;
    Ok(resources)
}

/// A request above its limit would be refused by the API. If the user wrote both, that is an error; if one of the
/// two is only a default, it gives way.
fn fit(
    sources: Sources<'_>,
    (request_name, request): (&'static str, &mut Option<Quantity>),
    (limit_name, limit): (&'static str, &mut Option<Quantity>),
) -> Result<(), Refusal> {
    let (Some(wanted), Some(allowed)) = (&request, &limit) else { return Ok(()) };
    if wanted.milli() <= allowed.milli() {
        return Ok(());
    }
    match (sources.annotation(request_name), sources.annotation(limit_name)) {
        (Some((holder, value)), Some((_, limit))) => Err(Refusal::Annotation {
            annotation: request_name,
            value: value.to_owned(),
            holder,
            expected: format!("it is above {limit_name}: `{limit}`"),
        }),
        (Some(_), None) => {
            limit.clone_from(request);
            Ok(())
        }
        (None, _) => {
            request.clone_from(limit);
            Ok(())
        }
    }
}

struct Image(String);

impl FromStr for Image {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@".contains(c);
        match !text.is_empty() && text.chars().all(plain) && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            true => Ok(Self(text.to_owned())),
            false => Err("write an image reference like registry.example.org/meshctl/proxy:0.1.0"),
        }
    }
}

struct Collector(String);

impl FromStr for Collector {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let host = text.strip_prefix("http://").filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphanumeric()));
        match host.is_some_and(|host| host.chars().all(|c| c.is_ascii_graphic())) {
            true => Ok(Self(text.to_owned())),
            false => Err("write the collector as http://HOST:4318"),
        }
    }
}

struct Ratio(String);

impl FromStr for Ratio {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<f64>() {
            Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(Self(text.to_owned())),
            _ => Err("write a number from 0 to 1"),
        }
    }
}

struct TrueOrFalse(bool);

impl FromStr for TrueOrFalse {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "write `true` or `false`")
    }
}

/// A form of access log; `off` is none.
struct AccessLog(Option<String>);

impl FromStr for AccessLog {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self(None)),
            "json" | "apache" => Ok(Self(Some(text.to_owned()))),
            _ => Err("write `json`, `apache` or `off`"),
        }
    }
}

struct LogFilter(String);

impl FromStr for LogFilter {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let level =
            |l: &str| ["off", "error", "warn", "info", "debug", "trace"].contains(&l.to_ascii_lowercase().as_str());
        let target = |t: &str| !t.is_empty() && t.chars().all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c));
        let directive = |d: &str| match d.split_once('=') {
            Some((t, l)) => target(t) && level(l),
            None => level(d),
        };
        match text.split(',').all(|d| directive(d.trim())) {
            true => Ok(Self(text.to_owned())),
            false => Err("write levels like `info` or `warn,mesh_proxy=debug` \
                          (off, error, warn, info, debug and trace are known)"),
        }
    }
}

/// What a user should hear about a pod's annotations although nothing is refused: names with the mesh's prefix that
/// mean nothing. (Not an error, because a later release may know them.)
pub fn warnings(pod_metadata: &Value) -> Vec<String> {
    let annotations = pod_metadata["annotations"].as_object().into_iter().flatten();
    let names = || ANNOTATIONS.iter().map(|annotation| annotation.name);
    let known = |name: &str| names().any(|known| known == name);
    annotations
        .map(|(name, _)| name.as_str())
        .filter(|n| n.starts_with(names::LABEL_PREFIX) && !known(n) && !FOREIGN.contains(n))
        .map(|name| match crate::nearest::nearest(name, names()) {
            Some(known) => format!("the annotation {name} is unknown and ignored; did you mean {known}?"),
            None => format!("the annotation {name} is unknown and ignored"),
        })
        .collect()
}
