//! What every namespace gets: the service account `default` and the ConfigMap that holds the API's authority.

use super::Again;
use super::cache::{Cluster, is_conflict};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

/// Name of the ConfigMap.
pub(crate) const ROOT_CERTIFICATE: &str = "kube-root-ca.crt";

pub(crate) async fn reconcile(cluster: &mut Cluster, namespace: &str) -> kube::Result<Again> {
    let known = cluster.namespaces.get(&(String::new(), namespace.to_owned()));
    if known.is_none_or(|ns| ns.metadata.deletion_timestamp.is_some()) {
        return Ok(None);
    }
    let meta = |name: &str| ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..Default::default()
    };
    let key = |name: &str| (namespace.to_owned(), name.to_owned());
    if cluster.service_accounts.get(&key("default")).is_none() {
        let account = ServiceAccount { metadata: meta("default"), ..Default::default() };
        there_now(cluster.create(&account).await)?;
    }
    let data = [("ca.crt".to_owned(), cluster.ca_pem.clone())].into();
    match cluster.root_certificates.get(&key(ROOT_CERTIFICATE)) {
        None => {
            let map = ConfigMap { metadata: meta(ROOT_CERTIFICATE), data: Some(data), ..Default::default() };
            there_now(cluster.create(&map).await)?;
        }
        Some(map) if map.data.as_ref() != Some(&data) => {
            let patch = json!({"data": {"ca.crt": cluster.ca_pem}});
            cluster.patch::<ConfigMap>(&key(ROOT_CERTIFICATE), &patch).await?;
        }
        Some(_) => {}
    }
    Ok(None)
}

/// Somebody else having created the object is as good.
fn there_now<K>(outcome: kube::Result<K>) -> kube::Result<()> {
    match outcome {
        Err(error) if !is_conflict(&error) => Err(error),
        _ => Ok(()),
    }
}
