//! Network plugins behind the node's own: called for each pod as a container runtime calls them (CNI 1.0), so that a mesh
//! in CNI mode works here as on any node.
//!
//! The node's own directories for this ([`OWN`]) lie in its own file system: this machine may have a network of its own
//! configured in the real ones, and its users may not write there.

use super::addresses::Addresses;
use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncWriteExt as _;

/// Directories that the node has to itself.
const OWN: [&str; 3] = ["/etc/cni", "/opt/cni", "/run/mesh-cni"];
const CONFIGURATIONS: &str = "/etc/cni/net.d";
const PROGRAMS: &str = "/opt/cni/bin";
/// The list of plugins that the node starts with: its own network, which is no program.
const LIST: &str = "10-sandbox.conflist";
/// Type of the node's own network in it.
const SANDBOX: &str = "sandbox";
/// How long a plugin may take.
const DEADLINE: Duration = Duration::from_secs(30);

/// Where a path of the node lies on this machine.
pub(super) fn host(root: &Path, path: &str) -> PathBuf {
    let own = OWN.iter().any(|own| Path::new(path).starts_with(own)) && !path.contains("..");
    if own { root.join("host").join(path.trim_start_matches('/')) } else { PathBuf::from(path) }
}

/// Makes the node's directories, with its network configuration.
pub(super) fn prepare(root: &Path) -> anyhow::Result<()> {
    for folder in [CONFIGURATIONS, PROGRAMS] {
        let folder = host(root, folder);
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let list = json!({ "cniVersion": "1.0.0", "name": SANDBOX, "plugins": [{ "type": SANDBOX }] });
    fs::write(host(root, CONFIGURATIONS).join(LIST), format!("{list:#}\n")).context("writing the network configuration")
}

/// Calls the plugins that stand behind the node's own for a pod that has its interface.
pub(super) async fn add(root: &Path, pod: &Pod, net: &OwnedFd, addresses: Addresses) -> anyhow::Result<()> {
    let path = host(root, CONFIGURATIONS).join(LIST);
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let list: Value = serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))?;
    let plugins = list["plugins"].as_array().into_iter().flatten();
    let others: Vec<&Value> = plugins.filter(|plugin| plugin["type"] != SANDBOX).collect();
    let mut result = first_result(addresses);
    for plugin in others {
        let mut conf = here(root, plugin);
        if !conf.is_object() {
            bail!("{} names a plugin without a configuration", path.display());
        }
        conf["cniVersion"] = list["cniVersion"].clone();
        conf["name"] = list["name"].clone();
        conf["prevResult"] = result;
        result = call(root, pod, net, &conf).await?;
    }
    Ok(())
}

/// What the node's own network tells the plugins behind it.
fn first_result(addresses: Addresses) -> Value {
    let v6 = addresses.v6.map(|v6| json!({ "address": format!("{v6}/128"), "interface": 0 }));
    let v4 = json!({ "address": format!("{}/32", addresses.v4), "interface": 0 });
    let ips: Vec<Value> = std::iter::once(v4).chain(v6).collect();
    json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "eth0" }], "ips": ips })
}

/// A plugin's configuration with the paths that the node's own directories have on this machine.
fn here(root: &Path, value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with('/') => json!(host(root, text)),
        Value::Array(items) => items.iter().map(|item| here(root, item)).collect(),
        Value::Object(map) => Value::Object(map.iter().map(|(key, value)| (key.clone(), here(root, value))).collect()),
        other => other.clone(),
    }
}

async fn call(root: &Path, pod: &Pod, net: &OwnedFd, conf: &Value) -> anyhow::Result<Value> {
    let name = conf["type"].as_str().unwrap_or_default();
    if name.is_empty() || name.contains('/') {
        bail!("{name:?} is not the name of a network plugin");
    }
    let (folder, meta) = (host(root, PROGRAMS), &pod.metadata);
    let uid = meta.uid.as_deref().unwrap_or_default();
    let args = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={uid}",
        meta.namespace.as_deref().unwrap_or("default"),
        meta.name.as_deref().unwrap_or_default()
    );
    let mut command = tokio::process::Command::new(folder.join(name));
    command.env_clear().env("CNI_COMMAND", "ADD").env("CNI_CONTAINERID", uid).env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", format!("/proc/{}/fd/{}", std::process::id(), net.as_raw_fd()));
    command.env("CNI_ARGS", args).env("CNI_PATH", &folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let ran = async {
        let mut child = command.spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // Who does not read its configuration says why by other means.
            let _ = input.write_all(conf.to_string().as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(DEADLINE, ran)
        .await
        .with_context(|| format!("network plugin {name}: no answer within {} s", DEADLINE.as_secs()))?
        .with_context(|| format!("failed to find plugin {name:?} in path [{}]", folder.display()))?;
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if !output.status.success() {
        let text = |key: &str| said[key].as_str().unwrap_or_default();
        bail!("plugin type={name:?} failed (add): {}; {}", text("msg"), text("details"));
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_directories_lie_elsewhere() {
        let root = Path::new("/room");
        for (path, expect) in [
            ("/etc/cni/net.d", "/room/host/etc/cni/net.d"),
            ("/run/mesh-cni/agent.sock", "/room/host/run/mesh-cni/agent.sock"),
            ("/etc/cnidarian", "/etc/cnidarian"),
            ("/etc/cni/../passwd", "/etc/cni/../passwd"),
            ("/srv", "/srv"),
        ] {
            assert_eq!(host(root, path), Path::new(expect));
        }
        let conf = json!({ "type": "x", "a": ["/opt/cni/bin", 1], "b": { "c": "opt/cni" } });
        assert_eq!(
            here(root, &conf),
            json!({ "type": "x", "a": ["/room/host/opt/cni/bin", 1], "b": { "c": "opt/cni" } })
        );
    }
}
