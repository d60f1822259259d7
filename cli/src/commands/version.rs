//! `meshctl version`: this program's version, the control plane's and the proxies'; useful without a cluster too.

use crate::args::{Global, TextFormat, Version};
use crate::cluster::Cluster;
use crate::error::{Context, Outcome, Result};
use crate::output::Printer;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use mesh_api::names::{CONTROL_NAME, PROXY_VERSION};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// This program's version, which is also that of the images it installs.
pub const CLIENT: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, Default, PartialEq, Serialize)]
struct Versions {
    client: String,
    control_plane: Option<String>,
    proxies: BTreeMap<String, u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_error: Option<String>,
}

/// Prints the versions.
pub async fn run(global: &Global, args: &Version, printer: &Printer) -> Result<Outcome> {
    let mut versions = Versions { client: CLIENT.to_owned(), ..Default::default() };
    if !args.client {
        match ask(global).await {
            Ok((control_plane, proxies)) => {
                versions.control_plane = control_plane;
                versions.proxies = proxies;
            }
            Err(error) => versions.cluster_error = Some(error.to_string()),
        }
    }
    match args.output {
        TextFormat::Json => printer.json(&versions)?,
        TextFormat::Table => printer.data(&text(&versions, args.client))?,
    }
    if let Some(note) = skew(CLIENT, versions.control_plane.as_deref()) {
        printer.warn(&note);
    }
    Ok(Outcome::Well)
}

async fn ask(global: &Global) -> Result<(Option<String>, BTreeMap<String, u32>)> {
    let cluster = Cluster::connect(global).await?;
    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.system_namespace);
    let control = deployments.get_opt(CONTROL_NAME).await.during(|| format!("read deployment {CONTROL_NAME}"))?;
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let pods = pods.list(&ListParams::default()).await.during(|| "list pods")?;
    Ok((control.as_ref().and_then(control_version), count_proxies(&pods.items)))
}

/// The version in the tag of the control plane's image.
pub fn control_version(deployment: &Deployment) -> Option<String> {
    let containers = &deployment.spec.as_ref()?.template.spec.as_ref()?.containers;
    let image = containers.iter().find(|container| container.name == CONTROL_NAME).or(containers.first())?;
    let (_, tag) = image.image.as_deref()?.rsplit_once(':')?;
    // A colon may also stand before the port of a registry without a tag.
    (!tag.contains('/')).then(|| tag.split('@').next().unwrap_or(tag).to_owned())
}

/// How many pods have a proxy, by its version.
pub fn count_proxies<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> BTreeMap<String, u32> {
    let mut proxies = BTreeMap::new();
    for pod in pods {
        if let Some(version) = pod.metadata.annotations.as_ref().and_then(|all| all.get(PROXY_VERSION)) {
            *proxies.entry(version.clone()).or_default() += 1;
        }
    }
    proxies
}

fn text(versions: &Versions, client_only: bool) -> String {
    let mut text = format!("client         {}\n", versions.client);
    if client_only {
        return text;
    }
    let control = match (&versions.control_plane, &versions.cluster_error) {
        (Some(version), _) => version.clone(),
        (None, Some(error)) => format!("unknown: {error}"),
        (None, None) => "not installed".to_owned(),
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "control plane  {control}");
    for (version, count) in &versions.proxies {
        let _ = writeln!(text, "proxies        {version} ({count} {})", if *count == 1 { "pod" } else { "pods" });
    }
    text
}

/// A warning if the control plane is further away than one minor release.
pub fn skew(client: &str, control: Option<&str>) -> Option<String> {
    let minor = |version: &str| -> Option<(u32, u32)> {
        let mut parts = version.trim_start_matches('v').split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let control = control?;
    let (ours, theirs) = (minor(client)?, minor(control)?);
    let fits = ours.0 == theirs.0 && (ours.1 == theirs.1 || ours.1 == theirs.1 + 1);
    (!fits).then(|| {
        format!(
            "meshctl {client} is made for control planes of its own and the previous minor release, not for {control}"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_control_planes_version_is_its_images_tag() {
        let check = |image: &str, expect: Option<&str>| {
            let deployment: Deployment = serde_json::from_value(json!({"spec": {"selector": {}, "template": {"spec": {
                "containers": [{"name": "mesh-control", "image": image}]}}}}))
            .unwrap();
            assert_eq!(control_version(&deployment).as_deref(), expect, "{image}");
        };
        check("meshctl/control:0.1.0", Some("0.1.0"));
        check("registry:5000/meshctl/control:0.2.0", Some("0.2.0"));
        check("registry:5000/meshctl/control", None);
        check("meshctl/control", None);
    }

    #[test]
    fn neighbouring_releases_fit() {
        let check = |client: &str, control: &str, fits: bool| {
            assert_eq!(skew(client, Some(control)).is_none(), fits, "{client} {control}");
        };
        check("0.2.0", "0.2.7", true);
        check("0.2.0", "0.1.0", true);
        check("0.2.0", "0.3.0", false);
        check("0.3.0", "0.1.0", false);
        check("1.0.0", "0.9.0", false);
    }

    #[test]
    fn without_a_cluster_it_says_why() {
        let versions =
            Versions { client: "0.1.0".into(), cluster_error: Some("cannot reach".into()), ..Default::default() };
        assert_eq!(text(&versions, false), "client         0.1.0\ncontrol plane  unknown: cannot reach\n");
    }
}
