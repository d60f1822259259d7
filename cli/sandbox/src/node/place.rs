//! What a pod is given before its first container starts, and gives back after its last: namespaces with a network, and
//! a folder.

use super::addresses::Addresses;
use super::network::Attachment;
use super::services::DNS_ADDRESS;
use super::spawner::Namespaces;
use super::{Node, cni, layout, pod_files};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::{Api, Client};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

/// A pod's namespaces and addresses; a pod of the host's network has the node's.
pub(super) struct Place {
    addresses: Addresses,
    attachment: Option<Attachment>,
    pub(super) namespaces: Option<Arc<Namespaces>>,
}

impl Place {
    pub(super) async fn make(node: &Node, pod: &Pod, host_network: bool) -> anyhow::Result<Self> {
        if host_network {
            return Ok(Self { addresses: node.network.addresses(), attachment: None, namespaces: None });
        }
        let namespaces = node.spawner.namespaces(&pod_files::hostname(pod)).await?;
        let attachment = node.network.attach(&namespaces.net).await?;
        if let Err(error) = cni::add(&node.config.root, pod, &namespaces.net, attachment.addresses).await {
            drop(namespaces);
            node.network.detach(attachment).await;
            return Err(error);
        }
        Ok(Self {
            addresses: attachment.addresses,
            attachment: Some(attachment),
            namespaces: Some(Arc::new(namespaces)),
        })
    }

    pub(super) fn addresses(&self) -> Addresses {
        self.addresses
    }

    pub(super) async fn release(self, node: &Node) {
        drop(self.namespaces);
        if let Some(attachment) = self.attachment {
            node.network.detach(attachment).await;
        }
    }
}

/// Whether the pod's containers get a token, as far as its service account decides.
pub(super) async fn account_mounts_token(client: &Client, pod: &Pod) -> anyhow::Result<bool> {
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.automount_service_account_token).is_some() {
        return Ok(true);
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let name = spec.and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let account = accounts.get_opt(name).await.with_context(|| format!("reading the service account {name}"))?;
    let account = account.with_context(|| format!("looking up service account {namespace}/{name}: not found"))?;
    Ok(account.automount_service_account_token.unwrap_or(true))
}

/// Makes the folders all containers of a pod share.
pub(super) fn make_folders(pod: &Path) -> anyhow::Result<()> {
    for folder in [layout::etc(pod), layout::shm(pod), layout::volumes(pod)] {
        fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    }
    Ok(())
}

/// Writes what the pod's containers see as `/etc/hosts` and the like.
pub(super) fn write_files(folder: &Path, pod: &Pod, addresses: Addresses) -> anyhow::Result<()> {
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    for (name, text) in [
        ("hosts", pod_files::hosts(pod, addresses)),
        ("hostname", format!("{}\n", pod_files::hostname(pod))),
        ("resolv.conf", pod_files::resolver(pod, DNS_ADDRESS, &host)),
    ] {
        fs::write(layout::etc(folder).join(name), text).with_context(|| format!("writing the pod's /etc/{name}"))?;
    }
    Ok(())
}

/// Removes a pod's folder, unmounting what is mounted in it.
pub(super) fn remove_folder(pod: &Path) -> std::io::Result<()> {
    if let Ok(volumes) = fs::read_dir(layout::volumes(pod)) {
        for volume in volumes.flatten() {
            let _ = nix::mount::umount2(&volume.path(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
    match fs::remove_dir_all(pod) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
