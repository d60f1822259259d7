//! The command line and environment of `mesh-control`.

use crate::cni::CniArgs;
use clap::Parser;
use mesh_api::names;
use mesh_manifests::config::CONFIG_PATH;
use std::path::PathBuf;

/// The control plane of the mesh: certificates, injection, configuration of proxies, golden metrics.
#[derive(Debug, Parser)]
#[command(name = "mesh-control", version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// What to do instead of being the control plane.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The mesh's configuration
    #[arg(long, value_name = "FILE", default_value = CONFIG_PATH)]
    pub config: PathBuf,
    /// What to log; else as the configuration says
    #[arg(long, env = "MESH_LOG", value_name = "FILTER")]
    pub log: Option<String>,
    /// Name of the pod: who we are among replicas
    #[arg(long, env = "MESH_POD_NAME", value_name = "NAME")]
    pub pod_name: Option<String>,
    /// Port of the proxy API
    #[arg(long, value_name = "PORT", default_value_t = names::CONTROL_PROXY_PORT)]
    pub proxy_port: u16,
    /// Port of the webhook and the observe API
    #[arg(long, value_name = "PORT", default_value_t = names::CONTROL_WEBHOOK_PORT)]
    pub webhook_port: u16,
    /// Port of /live /ready /metrics /version
    #[arg(long, value_name = "PORT", default_value_t = names::CONTROL_ADMIN_PORT)]
    pub admin_port: u16,
}

/// What to do instead of being the control plane.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Be a node's agent: keep the network plugin mesh-cni in place, and tell it what pods need
    Cni(CniArgs),
}

impl Args {
    /// Who we are among replicas: the pod, else the host.
    pub fn holder(&self) -> String {
        let host = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        let name = self.pod_name.clone().or_else(|| std::env::var("HOSTNAME").ok()).or_else(host);
        let name = name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
        // Without a name two replicas might take each other for themselves; the process id tells at least some apart.
        name.unwrap_or_else(|| format!("{}-{}", names::CONTROL_NAME, std::process::id()))
    }
}
