//! The version of the cluster, on which the form of an injected pod depends: asked at the start, and again now and then,
//! because clusters are upgraded under a running control plane.

use crate::limits;
use mesh_manifests::config::kubernetes_minor;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// The minor release of Kubernetes 1 that the API server runs, as last told.
#[derive(Debug, Default)]
pub struct ClusterVersion {
    /// 0: not known. No such release was ever supported.
    minor: AtomicU32,
    asked: AtomicBool,
}

impl ClusterVersion {
    /// The minor release; `None` while it is not known.
    pub fn minor(&self) -> Option<u32> {
        Some(self.minor.load(Relaxed)).filter(|minor| *minor > 0)
    }

    /// True once the API server was asked, whatever came of it.
    pub fn was_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Asks again and again, for ever. What was told stays until something else is.
    pub async fn keep(&self, client: kube::Client) {
        loop {
            let told = tokio::time::timeout(limits::API_TIMEOUT, client.apiserver_version()).await;
            let pause = match told {
                Ok(Ok(info)) => {
                    self.told(&info.major, &info.minor, &info.git_version);
                    limits::VERSION_INTERVAL
                }
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot ask the API server for its version; trying again");
                    limits::VERSION_RETRY
                }
                Err(_) => {
                    tracing::warn!("the API server does not tell its version; trying again");
                    limits::VERSION_RETRY
                }
            };
            self.asked.store(true, Relaxed);
            tokio::time::sleep(pause).await;
        }
    }

    fn told(&self, major: &str, minor: &str, whole: &str) {
        match kubernetes_minor(major, minor) {
            Some(minor) => {
                if self.minor.swap(minor, Relaxed) != minor {
                    tracing::info!(version = whole, "the cluster's version");
                }
            }
            None => tracing::warn!(version = whole, "cannot read the cluster's version; taken for a recent one"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_stays_until_another_is_told() {
        let version = ClusterVersion::default();
        assert_eq!((version.minor(), version.was_asked()), (None, false));
        for (major, minor, expect) in
            [("1", "28", Some(28)), ("1", "29+", Some(29)), ("1", "next", Some(29)), ("2", "0", Some(29))]
        {
            version.told(major, minor, "");
            assert_eq!(version.minor(), expect, "{major}.{minor}");
        }
    }
}
