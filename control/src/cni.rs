//! `mesh-control cni`: the agent of CNI mode, one on every node.
//!
//! It puts the plugin into the node's network configuration and keeps it there ([`conflist`]), tells the plugin what each
//! new pod needs ([`answer`]), and has pods made anew that started without their redirect ([`repair`]). The program of the
//! plugin is `mesh-proxy`, put in place by an init container.
//!
//! While an agent is replaced, the plugin stays and lets no pod start (but those of excluded namespaces): no pod of the
//! mesh may run unmeshed. An agent that stops because CNI mode was uninstalled takes the plugin away first, so that it
//! leaves a node that works. Which of the two it is tells the DaemonSet: still there, or not.

pub mod answer;
pub mod conflist;
pub mod repair;

use crate::limits;
use anyhow::{Context, bail};
use conflist::Node;
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use mesh_api::cni::{ANSWER_BYTES, Answer, Plugin, Question};
use mesh_api::names;
use mesh_manifests::cni::{NAME, NAMESPACE};
use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// Options of `mesh-control cni`.
#[derive(Clone, Debug, clap::Args)]
pub struct CniArgs {
    /// Only ask the agent that runs here whether the plugin is in place
    #[arg(long)]
    pub ready: bool,
    /// The node's directory of network plugins, as it is mounted here
    #[arg(long, env = "MESH_CNI_BIN_DIR", value_name = "DIR", default_value = "/opt/cni/bin")]
    pub bin_dir: PathBuf,
    /// The node's directory of network configurations, as it is mounted here
    #[arg(long, env = "MESH_CNI_CONF_DIR", value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub conf_dir: PathBuf,
    /// Socket at which the plugin asks
    #[arg(long, value_name = "FILE", default_value = names::CNI_SOCKET)]
    pub socket: PathBuf,
    /// Name of the node
    #[arg(long, env = "MESH_NODE_NAME", value_name = "NAME")]
    pub node: Option<String>,
    /// Namespaces whose pods get their network without a question
    #[arg(long, env = "MESH_CNI_EXCLUDED_NAMESPACES", value_name = "NAMESPACES", value_delimiter = ',',
        default_values = [names::SYSTEM_NAMESPACE, NAMESPACE])]
    pub excluded_namespaces: Vec<String>,
    /// Delete pods that started without their redirect, for whoever owns them to make them anew
    #[arg(long, env = "MESH_CNI_REPAIR", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub repair: bool,
}

/// Whether the plugin is in place, or why it is not.
#[derive(Clone)]
pub struct State(Arc<Mutex<Result<(), String>>>);

impl State {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Err("the node's network configuration has not been looked at yet".to_owned()))))
    }

    /// Whether it is, or why not.
    pub fn get(&self) -> Result<(), String> {
        self.0.lock().clone()
    }

    /// Tells what was seen; a change is worth a line in the log.
    pub fn set(&self, seen: Result<(), String>) {
        let mut known = self.0.lock();
        if *known != seen {
            match &seen {
                Ok(()) => tracing::info!("the network plugin is in place"),
                Err(why) => tracing::warn!("the network plugin is not in place: {why}"),
            }
            *known = seen;
        }
    }
}

impl Default for State {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs the agent until it is told to stop.
pub async fn run(args: &CniArgs, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    let Some(node) = args.node.as_deref().filter(|node| !node.is_empty()) else {
        bail!("MESH_NODE_NAME is not set\nhint: the DaemonSet mesh-cni sets it; elsewhere give --node NAME");
    };
    let plugin = Plugin { socket: args.socket.display().to_string(), ..Plugin::new(args.excluded_namespaces.clone()) };
    let mut files = Node::open(&args.conf_dir, &args.bin_dir, plugin)?;
    let state = State::new();
    // Questions are answered before the first one can be asked.
    let listener = answer::listen(&args.socket)?;
    let serving = answer::serve(listener, client.clone(), state.clone());
    let repairing = async {
        match args.repair {
            true => repair::run(client.clone(), node, state.clone()).await,
            false => std::future::pending().await,
        }
    };
    let keeping = async {
        let mut every = tokio::time::interval(limits::CNI_LOOK);
        loop {
            every.tick().await;
            state.set(files.keep().map_err(|error| format!("{error:#}")));
        }
    };
    tokio::select! {
        () = serving => {}
        () = repairing => {}
        () = keeping => {}
        () = stop.cancelled() => {}
    }
    if stays(&client).await {
        tracing::info!("stopping; the network plugin stays, and no meshed pod starts until the next agent is there");
        return Ok(());
    }
    files.leave().context(
        "cannot leave the node's network as it was\nhint: take the entry of type mesh-cni out of the node's network \
         configuration, or no pod starts there any more",
    )?;
    // Who asks now gets the same as without us: nothing refers to it any more.
    let _ = std::fs::remove_file(&args.socket);
    tracing::info!("CNI mode is uninstalled: the node's network is as it was");
    Ok(())
}

/// True unless CNI mode is being uninstalled. What cannot be found out counts as a replacement: the plugin stays.
async fn stays(client: &Client) -> bool {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), NAMESPACE);
    match tokio::time::timeout(limits::API_TIMEOUT, api.get_opt(NAME)).await {
        Ok(Ok(found)) => found.is_some_and(|set| set.metadata.deletion_timestamp.is_none()),
        // Our rights and our account go with CNI mode, perhaps before us.
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 401 | 403) => false,
        Ok(Err(error)) => {
            tracing::warn!(%error, "cannot see whether CNI mode is being uninstalled");
            true
        }
        Err(_) => true,
    }
}

/// Asks the agent that runs here whether the plugin is in place.
pub async fn ready(socket: &Path) -> anyhow::Result<()> {
    let asking = async {
        let mut stream = UnixStream::connect(socket).await?;
        let mut line = serde_json::to_string(&Question::Ready)?;
        line.push('\n');
        stream.write_all(line.as_bytes()).await?;
        let mut said = String::new();
        BufReader::new(stream).take(ANSWER_BYTES as u64).read_line(&mut said).await?;
        Ok::<Answer, anyhow::Error>(serde_json::from_str(&said)?)
    };
    let answer = tokio::time::timeout(limits::API_TIMEOUT, asking).await.context("the agent does not answer")?;
    match answer.with_context(|| format!("cannot ask the agent at {}", socket.display()))? {
        Answer::Ready => Ok(()),
        Answer::Unknown(why) => bail!("{why}"),
        other => bail!("the agent answered something else: {other:?}"),
    }
}

#[cfg(test)]
mod tests;
