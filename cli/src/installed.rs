//! The mesh that a cluster has: version, values, issuer and inventory, as its install recorded them.

use crate::cluster::Cluster;
use crate::error::{Context, Error, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use mesh_manifests::install::{
    ANCHORS_CONFIG_MAP, ANCHORS_KEY, CONFIG_MAP, ISSUER_SECRET, VALUES_KEY, VERSION_ANNOTATION,
};
use mesh_manifests::inventory::{self, Entry, INVENTORY_KEY};
use mesh_manifests::issuer::{Issuer, IssuerPair};

/// What was installed.
pub struct Installed {
    /// Version.
    pub version: String,
    /// Values that differed from the defaults, YAML.
    pub values: String,
    /// Everything it consists of.
    pub inventory: Vec<Entry>,
    /// Namespace and name of the Helm release that it belongs to, if it does.
    pub release: Option<(String, String)>,
}

/// Reads what was installed; `None` if nothing was.
pub async fn read(cluster: &Cluster) -> Result<Option<Installed>> {
    let namespace = &cluster.system_namespace;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let map = maps.get_opt(CONFIG_MAP).await.during(|| format!("read config map {CONFIG_MAP} in {namespace}"))?;
    map.map(Installed::of).transpose()
}

impl Installed {
    /// What the config map of an install records.
    pub fn of(map: ConfigMap) -> Result<Self> {
        let mut annotations = map.metadata.annotations.unwrap_or_default();
        let version = annotations.remove(VERSION_ANNOTATION);
        let release =
            annotations.remove("meta.helm.sh/release-namespace").zip(annotations.remove("meta.helm.sh/release-name"));
        let mut data = map.data.unwrap_or_default();
        let recorded = data.remove(INVENTORY_KEY).unwrap_or_else(|| "[]".to_owned());
        Ok(Self {
            version: version.unwrap_or_else(|| "unknown".to_owned()),
            values: data.remove(VALUES_KEY).unwrap_or_default(),
            inventory: inventory::read(&recorded).during(|| format!("understand {INVENTORY_KEY} of {CONFIG_MAP}"))?,
            release,
        })
    }

    /// Refuses what would leave a Helm release that no longer tells the truth; `instead` is the command of Helm's, about
    /// a release `NAME`.
    pub fn refuse_beside_helm(&self, tried: &str, instead: &str) -> Result<()> {
        let Some((namespace, name)) = &self.release else { return Ok(()) };
        Err(Error::new(format!("it belongs to the Helm release {namespace}/{name}"))
            .during(tried)
            .hint(format!("{} -n {namespace}; --force does it without Helm", instead.replace("NAME", name))))
    }
}

/// As [`read`], for commands that need a mesh.
pub async fn expect(cluster: &Cluster) -> Result<Installed> {
    read(cluster).await?.ok_or_else(|| no_mesh(cluster))
}

/// What commands that need a mesh say without one.
pub fn no_mesh(cluster: &Cluster) -> Error {
    Error::new(format!("there is no mesh in namespace {}", cluster.system_namespace))
        .hint("install one: meshctl install --apply; --system-namespace says where else it is")
}

/// The issuer in use. Its key goes into what an upgrade applies, and nowhere else.
pub async fn issuer(cluster: &Cluster, existing_secret: bool) -> Result<Issuer> {
    let namespace = &cluster.system_namespace;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let tried = || format!("read config map {ANCHORS_CONFIG_MAP} in {namespace}");
    let anchors = maps.get(ANCHORS_CONFIG_MAP).await.during(tried)?;
    let anchors_pem = anchors.data.unwrap_or_default().remove(ANCHORS_KEY).unwrap_or_default();
    if existing_secret {
        return Ok(Issuer { pair: None, anchors_pem });
    }
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    let tried = || format!("read secret {ISSUER_SECRET} in {namespace}");
    let mut data = secrets.get(ISSUER_SECRET).await.during(tried)?.data.unwrap_or_default();
    let mut text = |key: &str| {
        let bytes = data.remove(key).ok_or_else(|| Error::new(format!("it has no {key}")).during(tried()))?;
        String::from_utf8(bytes.0).map_err(|_| Error::new(format!("{key} is not PEM")).during(tried()))
    };
    let pair = IssuerPair { certificate_pem: text("tls.crt")?, key_pem: text("tls.key")? };
    // The secret's own anchors count: that is where others are added.
    let anchors_pem = text(ANCHORS_KEY).unwrap_or(anchors_pem);
    Ok(Issuer { pair: Some(pair), anchors_pem })
}
