//! What the plugin is told: the socket of the node, and what a pod needs.

use super::State;
use crate::limits;
use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use mesh_api::cni::{ANSWER_BYTES, Answer, QUESTION_BYTES, Question};
use mesh_api::names;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Where a pod of a file of the node has the uid that its kubelet knows it by.
const STATIC_UID: &str = "kubernetes.io/config.hash";

/// Listens at `path`, in place of an agent before us; for root alone.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let context = || format!("cannot listen at {}", path.display());
    let beside = path.with_extension("new");
    let _ = std::fs::remove_file(&beside);
    let listener = UnixListener::bind(&beside).with_context(context)?;
    std::fs::set_permissions(&beside, std::fs::Permissions::from_mode(0o600)).with_context(context)?;
    std::fs::rename(&beside, path).with_context(context)?;
    Ok(listener)
}

/// Answers, for ever.
pub async fn serve(listener: UnixListener, client: Client, state: State) {
    let slots = Arc::new(Semaphore::new(limits::CNI_QUESTIONS));
    loop {
        // Further ones wait in the kernel's queue, and at its end the plugin fails.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let (client, state) = (client.clone(), state.clone());
                tokio::spawn(async move {
                    let told = tokio::time::timeout(limits::CNI_QUESTION, converse(stream, &client, &state)).await;
                    if !matches!(told, Ok(Ok(()))) {
                        tracing::warn!(?told, "a question of the network plugin was not answered");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a question of the network plugin; trying again");
                tokio::time::sleep(limits::WATCH_BACKOFF).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, client: &Client, state: &State) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut line = String::new();
    BufReader::new(reader).take(QUESTION_BYTES as u64).read_line(&mut line).await?;
    let answer = match serde_json::from_str(&line).context("the question cannot be read")? {
        Question::Ready => state.get().map_or_else(Answer::Unknown, |()| Answer::Ready),
        Question::Pod { namespace, name, uid } => {
            let answer = about(client, &namespace, &name, uid.as_deref()).await;
            match &answer {
                Answer::Unknown(why) => tracing::warn!(pod = %format!("{namespace}/{name}"), "no answer: {why}"),
                answer => tracing::debug!(pod = %format!("{namespace}/{name}"), ?answer, "answered"),
            }
            answer
        }
    };
    let mut text = serde_json::to_string(&answer)?;
    if text.len() >= ANSWER_BYTES {
        text = serde_json::to_string(&Answer::Unknown("what the pod needs is too long to say".to_owned()))?;
    }
    text.push('\n');
    writer.write_all(text.as_bytes()).await?;
    Ok(())
}

/// What a pod needs. It may be newer than what the API server tells.
async fn about(client: &Client, namespace: &str, name: &str, uid: Option<&str>) -> Answer {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut why = String::new();
    for attempt in 0..limits::CNI_LOOKUPS {
        if attempt > 0 {
            tokio::time::sleep(limits::CNI_LOOKUP_PAUSE).await;
        }
        match tokio::time::timeout(limits::API_TIMEOUT, api.get_opt(name)).await {
            Ok(Ok(Some(pod))) if is_same(&pod, uid) => {
                return wanted(&pod).map_or(Answer::None, Answer::Redirect);
            }
            Ok(Ok(Some(_))) => why = "the API server knows another pod of this name".to_owned(),
            Ok(Ok(None)) => why = "the API server knows no such pod".to_owned(),
            Ok(Err(error)) => why = format!("the API server does not tell: {error}"),
            Err(_) => why = "the API server does not answer".to_owned(),
        }
    }
    Answer::Unknown(why)
}

fn is_same(pod: &Pod, uid: Option<&str>) -> bool {
    let Some(uid) = uid else { return true };
    let from_file = pod.metadata.annotations.as_ref().and_then(|all| all.get(STATIC_UID));
    pod.metadata.uid.as_deref() == Some(uid) || from_file.is_some_and(|known| known == uid)
}

/// The redirect that the pod's own step would prove: what it was injected with says what it needs. A pod without such a
/// step, or with one that sets the redirect itself, needs nothing.
pub fn wanted(pod: &Pod) -> Option<Vec<String>> {
    let containers = pod.spec.as_ref()?.init_containers.as_ref()?;
    let step = containers.iter().find(|container| container.name == names::REDIRECT_CONTAINER)?;
    let args = step.args.as_ref()?;
    (args.first()? == "redirect" && args.get(1)? == "--check").then(|| args[2..].to_vec())
}
