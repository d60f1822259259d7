//! The control plane: it watches the cluster, tells proxies where traffic can go, gives them certificates, injects
//! them into pods, and collects what they count.
//!
//! Reading order: [`run`] puts the parts together. [`watch`](mod@watch) feeds the [`world`] (plain maps), [`compile`]
//! turns it into answers (pure, with [`protocol`]), [`subscriptions`] knows who has to hear of a change. [`serve`] is
//! the proxy API: certificates ([`certify`] checks, [`ca`] signs, [`issuer`] keeps the keys) and conversations
//! ([`stream`], [`lines`]); [`expiry`] warns before they end. [`webhook`] injects, [`webhook_cert`] keeps its certificate, [`lease`] decides who writes:
//! [`status`] what is said of policies and routes ([`kinds`] finds them in the cluster, [`rejections`] says what proxies
//! could not use). [`cni`] is another program: the agent of a node in CNI mode.
//! [`observe`] is the aggregated API ([`requestheader`] says who asks), [`golden`] merges what proxies count, [`peers`]
//! asks the other replicas for what theirs do. [`listen`] accepts connections ([`tls`]), [`admin`] and [`metrics`] tell
//! how we are; `event` tells the cluster. [`validate`] knows what cannot work, [`validation`] refuses it, and [`lint`] finds what is legal and wrong.
//! Every bound is in [`limits`].
//!
//! # Permissions
//!
//! The service account `mesh-control` needs, in the whole cluster:
//!
//! | group | resources | names | verbs |
//! |---|---|---|---|
//! | | `namespaces` `pods` `services` | | `get list watch` |
//! | `discovery.k8s.io` | `endpointslices` | | `get list watch` |
//! | `gateway.networking.k8s.io` | `httproutes` `grpcroutes` `tlsroutes` `tcproutes` `referencegrants` | | `get list watch` |
//! | `gateway.networking.k8s.io` | `httproutes/status` `grpcroutes/status` `tlsroutes/status` `tcproutes/status` | | `patch` |
//! | `gateway.networking.x-k8s.io` | `xbackendtrafficpolicies` | | `get list watch` |
//! | | `events` | | `create` |
//! | `authentication.k8s.io` | `tokenreviews` | | `create` |
//! | `authorization.k8s.io` | `subjectaccessreviews` | | `create` |
//! | `admissionregistration.k8s.io` | `mutatingwebhookconfigurations` | `mesh-injector` | `get patch` |
//! | `admissionregistration.k8s.io` | `validatingwebhookconfigurations` | `mesh-validator` | `get patch` |
//! | `apiregistration.k8s.io` | `apiservices` | `v1alpha1.observe.meshctl.dev` | `get patch` |
//! | `meshctl.dev` | all kinds | | `get list watch` |
//! | `meshctl.dev` | `/status` of all kinds | | `patch` |
//!
//! in its own namespace:
//!
//! | group | resources | names | verbs |
//! |---|---|---|---|
//! | | `secrets` | `mesh-identity-issuer` `mesh-webhook-tls` | `get list watch` |
//! | | `secrets` | `mesh-webhook-tls` | `update` |
//! | | `secrets` | | `create` |
//! | `coordination.k8s.io` | `leases` | `mesh-control` | `get update` |
//! | `coordination.k8s.io` | `leases` | | `create` |
//!
//! and in `kube-system` the existing Role `extension-apiserver-authentication-reader` (`get list watch` of the
//! ConfigMap `extension-apiserver-authentication`).

pub mod admin;
pub mod args;
pub mod ca;
pub mod certify;
pub mod cluster_version;
pub mod cni;
pub mod compile;
mod event;
pub mod expiry;
pub mod golden;
pub mod issuer;
pub mod key_set;
pub mod kinds;
pub mod lease;
pub mod limits;
pub mod lines;
pub mod lint;
pub mod listen;
pub mod metrics;
pub mod observe;
pub mod peers;
pub mod protocol;
pub mod rate_limit;
pub mod rejections;
pub mod requestheader;
pub mod run;
pub mod serve;
pub mod status;
pub mod stream;
pub mod subscriptions;
pub mod tap;
pub mod tls;
pub mod validate;
pub mod validation;
pub mod watch;
pub mod webhook;
pub mod webhook_cert;
pub mod world;

use crate::args::{Args, Command};
use crate::cni::CniArgs;
use anyhow::Context;
use clap::Parser;
use mesh_manifests::config::MeshConfig;
use std::ffi::OsString;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The program `mesh-control`; `args` include the program's name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Writing help or an error to a closed terminal cannot be helped.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    if let Some(Command::Cni(cni)) = &args.command {
        log_to_stderr(args.log.as_deref());
        return ended(agent(cni));
    }
    let config = read_config(&args);
    log_to_stderr(args.log.as_deref().or(config.as_ref().ok().map(|(config, _)| config.control_log.as_str())));
    if let Ok((config, unknown)) = &config
        && !unknown.is_empty()
    {
        let (of, keys) = (&config.version, unknown.join(", "));
        tracing::warn!(of, keys, "the configuration has keys that this release does not know; they are ignored");
    }
    ended(config.and_then(|(config, _)| control(&args, config)))
}

fn ended(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The configuration, and the keys in it that this release does not know.
fn read_config(args: &Args) -> anyhow::Result<(MeshConfig, Vec<String>)> {
    let path = args.config.display();
    let text = std::fs::read_to_string(&args.config).with_context(|| {
        format!(
            "cannot read the mesh's configuration {path} (hint: it is the ConfigMap mesh-config, or give --config FILE)"
        )
    })?;
    MeshConfig::from_yaml_of_any_release(&text).with_context(|| format!("{path}"))
}

/// Runs the control plane.
fn control(args: &Args, config: MeshConfig) -> anyhow::Result<()> {
    until_told(2, async |client, stop| run::run(args, config, client, stop).await)
}

/// Runs the agent of a node, or asks the one that runs here.
fn agent(args: &CniArgs) -> anyhow::Result<()> {
    if args.ready {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(cni::ready(&args.socket));
    }
    until_told(1, async |client, stop| cni::run(args, client, stop).await)
}

/// Runs until SIGTERM or SIGINT.
fn until_told(
    workers: usize,
    work: impl AsyncFnOnce(kube::Client, CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // Another part of the same process may have chosen the (same) provider already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let client = kube::Client::try_default()
            .await
            .context("cannot reach the API server (hint: run in a pod, or set KUBECONFIG)")?;
        let stop = CancellationToken::new();
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let stopping = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            stopping.cancel();
        });
        work(client, stop).await
    })
}

fn log_to_stderr(filter: Option<&str>) {
    let parsed = filter.map(EnvFilter::try_new);
    let (filter, wrong) = match parsed {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new("info"), Some(error)),
        None => (EnvFilter::new("info"), None),
    };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // In a process with several parts the first one's subscriber stays.
    let _ = subscriber.try_init();
    if let Some(error) = wrong {
        tracing::warn!(%error, "the log filter cannot be read; logging at info");
    }
}
