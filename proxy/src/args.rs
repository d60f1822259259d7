//! The command line and environment of `mesh-proxy`, read once into one struct.

use crate::access_log::Form;
use crate::client::Control;
use crate::cni::InstallArgs;
use crate::limits;
use crate::otlp::Tracing;
use crate::proxy::{Settings, Source};
use crate::readiness::AwaitArgs;
use crate::redirect::RedirectCommand;
use anyhow::{Context, bail};
use clap::Parser;
use mesh_api::{SpiffeId, names};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The data plane of the mesh: carries the traffic of one application instance.
#[derive(Debug, Parser)]
#[command(name = "mesh-proxy", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do instead of carrying traffic.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to carry traffic.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do instead of carrying traffic.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Set the redirect that brings a pod's connections to its proxy
    Redirect(RedirectCommand),
    /// Put this program into a directory of CNI plugins, as mesh-cni
    CniInstall(InstallArgs),
    /// Wait until the proxy of this pod is ready
    Await(AwaitArgs),
}

/// How to carry traffic.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Run from this file (YAML or JSON) instead of following a control plane
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only say whether the file of --config can be used
    #[arg(long, requires = "config")]
    check: bool,
    /// Host and port of the control plane
    #[arg(
        long,
        env = "MESH_CONTROL_ADDRESS",
        value_name = "HOST:PORT",
        default_value = "mesh-control.mesh-system.svc.cluster.local:8086"
    )]
    control_address: String,
    /// SPIFFE identity the control plane has to prove
    #[arg(long, env = "MESH_CONTROL_IDENTITY", value_name = "SPIFFE-ID")]
    control_identity: Option<SpiffeId>,
    /// Trust domain of the mesh
    #[arg(long, env = "MESH_TRUST_DOMAIN", value_name = "DOMAIN", default_value = names::DEFAULT_TRUST_DOMAIN)]
    trust_domain: String,
    /// Trust anchors of the mesh, PEM text
    #[arg(long, env = "MESH_TRUST_ANCHORS", value_name = "PEM", hide_env_values = true)]
    trust_anchors: Option<String>,
    /// Service account token with which to ask for a certificate
    #[arg(long, env = "MESH_TOKEN_FILE", value_name = "FILE", default_value = "/var/run/secrets/meshctl.dev/token")]
    token_file: PathBuf,
    /// Name of the pod
    #[arg(long, env = "MESH_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// Namespace of the pod
    #[arg(long, env = "MESH_POD_NAMESPACE", value_name = "NAMESPACE")]
    pod_namespace: Option<String>,
    /// Addresses of the pod, of both families
    #[arg(long, env = "MESH_POD_IPS", value_name = "ADDRESSES", value_delimiter = ',')]
    pod_ips: Vec<IpAddr>,
    /// Service account of the pod
    #[arg(long, env = "MESH_SERVICE_ACCOUNT", value_name = "NAME")]
    service_account: Option<String>,
    /// What to log
    #[arg(long, env = "MESH_LOG", value_name = "FILTER", default_value = "warn,mesh_proxy=info")]
    pub log: String,
    /// How long the end may take after SIGTERM
    #[arg(long, env = "MESH_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    drain_timeout: Duration,
    /// How long to go on listening after SIGTERM, while endpoint lists forget this pod; part of --drain-timeout
    #[arg(long, env = "MESH_DRAIN_LINGER", value_name = "DURATION", default_value = "2s", value_parser = duration)]
    drain_linger: Duration,
    /// After SIGTERM, go on listening until the application has ended: it was told to end at the same moment
    #[arg(long, env = "MESH_OUTLIVE_APPLICATION", value_name = "true|false", default_value = "false", action = clap::ArgAction::Set)]
    outlive_application: bool,
    /// Connections open at once; newer ones are turned away. Half the limit of open files, if that is less
    #[arg(long, env = "MESH_MAX_CONNECTIONS", value_name = "N", default_value_t = limits::MAX_CONNECTIONS)]
    max_connections: usize,
    /// TLS handshakes of arriving connections under way at once; newer ones are reset
    #[arg(long, env = "MESH_MAX_HANDSHAKES", value_name = "N", default_value_t = limits::MAX_HANDSHAKES)]
    max_handshakes: usize,
    /// Threads that carry traffic
    #[arg(long, env = "MESH_WORKERS", value_name = "N", default_value_t = 1)]
    workers: usize,
    /// How to log requests on standard output: json, apache or off
    #[arg(long, env = "MESH_ACCESS_LOG", value_name = "FORM", default_value = "off")]
    access_log: Form,
    /// Collector that gets a span for each traced request, over HTTP with JSON: http://HOST:4318
    #[arg(long, env = "MESH_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Share of requests without a trace that begin one, 0 to 1
    #[arg(long, env = "MESH_TRACE_RATIO", value_name = "SHARE", default_value_t = 0.0)]
    trace_ratio: f64,
    /// Port for what arrives for the application
    #[arg(long, value_name = "PORT", default_value_t = names::INBOUND_PORT)]
    pub inbound_port: u16,
    /// Port for what the application sends
    #[arg(long, value_name = "PORT", default_value_t = names::OUTBOUND_PORT)]
    pub outbound_port: u16,
    /// Port of /live /ready /metrics /config
    #[arg(long, value_name = "PORT", default_value_t = names::ADMIN_PORT)]
    pub admin_port: u16,
}

impl RunArgs {
    /// The file that is only to be checked.
    pub fn to_check(&self) -> Option<&Path> {
        self.config.as_deref().filter(|_| self.check)
    }

    /// The settings of a proxy; every argument is used or named here.
    pub fn settings(self) -> anyhow::Result<Settings> {
        let Self {
            config,
            check: _,
            control_address,
            control_identity,
            trust_domain,
            trust_anchors,
            token_file,
            pod_name,
            pod_namespace,
            pod_ips,
            service_account,
            log: _,
            drain_timeout,
            drain_linger,
            outlive_application,
            max_connections,
            max_handshakes,
            workers,
            access_log,
            otlp_endpoint,
            trace_ratio,
            inbound_port: _,
            outbound_port: _,
            admin_port: _,
        } = self;
        let source = match config {
            Some(path) => Source::File(path),
            None => {
                let namespace = required(pod_namespace, "MESH_POD_NAMESPACE")?;
                let service_account = required(service_account, "MESH_SERVICE_ACCOUNT")?;
                let own = SpiffeId::new(&trust_domain, &namespace, &service_account);
                Source::Control(Box::new(Control {
                    address: control_address,
                    identity: control_identity
                        .unwrap_or_else(|| SpiffeId::new(&trust_domain, names::SYSTEM_NAMESPACE, names::CONTROL_NAME)),
                    anchors: required(trust_anchors, "MESH_TRUST_ANCHORS")?,
                    token_file,
                    own,
                    pod: required(pod_name, "MESH_POD_NAME")?,
                }))
            }
        };
        let tracing = Tracing::new(otlp_endpoint, trace_ratio)?;
        // Permits past this bound are a programming error to the semaphores that count them.
        let bounded = |n: usize| n.clamp(1, u32::MAX as usize);
        Ok(Settings {
            source,
            pod_ips,
            drain_linger,
            drain_timeout,
            outlive_application,
            workers,
            max_connections: bounded(max_connections),
            max_handshakes: bounded(max_handshakes),
            access_log,
            tracing,
        })
    }
}

fn required(value: Option<String>, name: &str) -> anyhow::Result<String> {
    value.filter(|value| !value.is_empty()).with_context(|| {
        format!("{name} is not set\nhint: the injector sets it in a pod; elsewhere give --config FILE instead")
    })
}

/// `500ms`, `30s`, `2m`, or plain seconds.
pub(crate) fn duration(text: &str) -> anyhow::Result<Duration> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().with_context(|| format!("`{text}` does not begin with a number"))?;
    Ok(match unit {
        "ms" => Duration::from_millis(number),
        "s" | "" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.saturating_mul(60)),
        _ => bail!("`{unit}` is no unit of time; use ms, s or m"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn durations() {
        for (text, expect) in [("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("7", 7_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(expect));
        }
        assert!(duration("soon").is_err() && duration("3h").is_err() && duration("").is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let args = Args::parse_from(["mesh-proxy", "--pod-namespace", "a", "--service-account", "b"]);
        let error = args.run.settings().unwrap_err().to_string();
        assert!(error.contains("MESH_TRUST_ANCHORS") && error.contains("hint:"), "{error}");
    }
}
