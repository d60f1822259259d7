//! Where the node keeps what belongs to a pod.

use std::path::{Path, PathBuf};

/// A pod's folder.
pub(super) fn pod(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

/// `/etc` files its containers share.
pub(super) fn etc(pod: &Path) -> PathBuf {
    pod.join("etc")
}

/// `/dev/shm` its containers share.
pub(super) fn shm(pod: &Path) -> PathBuf {
    pod.join("shm")
}

/// Its volumes.
pub(super) fn volumes(pod: &Path) -> PathBuf {
    pod.join("volumes")
}

/// One container's own.
pub(super) fn container(pod: &Path, name: &str) -> PathBuf {
    pod.join("containers").join(name)
}

/// The file a container may leave a message in.
pub(super) fn termination_log(container: &Path) -> PathBuf {
    container.join("termination-log")
}
