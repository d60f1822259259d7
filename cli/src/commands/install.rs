//! `meshctl install`: prints the mesh's manifests, or applies them and waits until they work.

use super::install_files;
use crate::apply;
use crate::args::{Global, Install, ManifestFormat};
use crate::cluster::Cluster;
use crate::commands::version::{CLIENT, control_version};
use crate::error::{Context, Error, Hint, Outcome, Result};
use crate::installed;
use crate::output::Printer;
use crate::plan;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use mesh_api::names::CONTROL_NAME;
use mesh_manifests::install::{render, render_with, to_yaml};
use mesh_manifests::issuer::Issuer;
use mesh_manifests::policies;
use mesh_manifests::values::{Values, document};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Prints or applies.
pub async fn run(global: &Global, args: &Install, printer: &Printer) -> Result<Outcome> {
    if args.show_values {
        match args.output {
            ManifestFormat::Yaml => printer.data(&document::annotated().during(|| "write the values")?)?,
            ManifestFormat::Json => printer.json(&document::schema())?,
        }
        return Ok(Outcome::Well);
    }
    if args.crds {
        return print(policies::definitions().during(|| "write the definitions")?, args.output, printer);
    }
    if let Some(folder) = &args.chart {
        return install_files::chart(global, folder, printer);
    }
    let values = values(global, args)?;
    if args.new_identity {
        return install_files::new_identity(&values, printer);
    }
    if let Some(folder) = &args.kustomization {
        refuse_second_if_known(global, args, &values, printer).await?;
        return install_files::kustomization(&values, folder, printer);
    }
    let objects = objects(&values)?;
    if args.diff {
        let mut cluster = Cluster::connect(global).await?;
        cluster.system_namespace.clone_from(&values.system_namespace);
        refuse_second(&cluster).await?;
        let planned = plan::plan(&cluster, objects, &[], &cluster.system_namespace).await?;
        let (text, changes) = plan::text(&planned);
        printer.data(&text)?;
        return Ok(if changes { Outcome::Problems } else { Outcome::Well });
    }
    if args.apply {
        let mut cluster = Cluster::connect(global).await?;
        cluster.system_namespace.clone_from(&values.system_namespace);
        let objects = match the_same(&cluster, &values).await? {
            None => {
                refuse_second(&cluster).await?;
                objects
            }
            Some(issuer) => {
                printer.note("this mesh is installed already, or was begun to be: going on with the identity it has");
                render_with(&values, &issuer).during(|| "render the manifests")?
            }
        };
        apply_and_wait(&cluster, objects, Instant::now() + args.timeout, printer).await?;
        return Ok(Outcome::Well);
    }
    refuse_second_if_known(global, args, &values, printer).await?;
    print(objects, args.output, printer)
}

fn print(objects: Vec<Value>, output: ManifestFormat, printer: &Printer) -> Result<Outcome> {
    printer.data(&match output {
        ManifestFormat::Yaml => to_yaml(&objects).during(|| "write YAML")?,
        ManifestFormat::Json => list(objects)?,
    })?;
    Ok(Outcome::Well)
}

/// One JSON object that `kubectl apply` takes.
pub(super) fn list(objects: Vec<Value>) -> Result<String> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    serde_json::to_string_pretty(&list).map(|text| text + "\n").during(|| "write JSON")
}

fn values(global: &Global, args: &Install) -> Result<Values> {
    let mut files = Vec::new();
    for path in &args.values {
        files.push((path.display().to_string(), read(path)?));
    }
    let mut values = Values::from_sources(&files, &args.set).during(|| "use these values")?;
    let default = mesh_api::names::SYSTEM_NAMESPACE;
    if global.system_namespace != default {
        values.system_namespace.clone_from(&global.system_namespace);
    }
    values.ha |= args.ha;
    for (path, slot) in [
        (&args.identity_trust_anchors, &mut values.identity.trust_anchors_pem),
        (&args.identity_issuer_certificate, &mut values.identity.issuer_certificate_pem),
        (&args.identity_issuer_key, &mut values.identity.issuer_key_pem),
    ] {
        if let Some(path) = path {
            *slot = Some(read(path)?);
        }
    }
    Ok(values)
}

/// Reads a file the user named.
pub(super) fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).during(|| format!("read {}", path.display()))
}

fn objects(values: &Values) -> Result<Vec<Value>> {
    render(values).during(|| "render the manifests")
}

/// What an install without any choices applies.
pub fn defaults(system_namespace: &str) -> Result<Vec<Value>> {
    objects(&Values { system_namespace: system_namespace.to_owned(), ..Values::default() })
}

/// The version of the mesh that is installed already.
pub async fn installed(cluster: &Cluster) -> Result<Option<String>> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), &cluster.system_namespace);
    let deployment = api.get_opt(CONTROL_NAME).await.during(|| "look for an installed mesh")?;
    Ok(deployment.map(|deployment| control_version(&deployment).unwrap_or_else(|| "of unknown version".to_owned())))
}

/// The issuer of the mesh that is installed, if that is this one, whole or interrupted: of this version, with these
/// values. An install that was interrupted before its control plane has no issuer that anybody has met.
async fn the_same(cluster: &Cluster, values: &Values) -> Result<Option<Issuer>> {
    if installed(cluster).await?.is_none() {
        return Ok(None);
    }
    let Some(there) = installed::read(cluster).await? else { return Ok(None) };
    let sources = [("the installed values".to_owned(), there.values)];
    let its = Values::from_sources(&sources, &[]).during(|| "understand the installed values")?;
    if there.version != CLIENT || there.release.is_some() || its.overrides() != values.overrides() {
        return Ok(None);
    }
    let issuer = installed::issuer(cluster, values.identity.existing_secret).await?;
    let brought = values.identity.issuer_certificate_pem.as_deref().map(str::trim);
    let signs = issuer.pair.as_ref().map(|pair| pair.certificate_pem.trim());
    Ok((brought.is_none() || brought == signs).then_some(issuer))
}

async fn refuse_second(cluster: &Cluster) -> Result<()> {
    match installed(cluster).await? {
        None => Ok(()),
        Some(version) => Err(Error::new(format!("the cluster has a mesh already: {version}")).during("install"))
            .hint(|| "`meshctl upgrade` is for a mesh that is there (`--diff` shows what it would change); a second install would replace its identity"),
    }
}

/// Printing needs no cluster; but what is printed would break a mesh that runs there already.
async fn refuse_second_if_known(global: &Global, args: &Install, values: &Values, printer: &Printer) -> Result<()> {
    if args.ignore_cluster {
        return Ok(());
    }
    match Cluster::connect(global).await {
        Ok(mut cluster) => {
            cluster.system_namespace.clone_from(&values.system_namespace);
            refuse_second(&cluster).await?;
        }
        Err(error) if printer.verbose() => printer.note(&format!("not looked for a mesh: {error}")),
        Err(_) => {}
    }
    Ok(())
}

/// Applies the mesh's objects and waits until the control plane works.
pub async fn apply_and_wait(
    cluster: &Cluster,
    objects: Vec<Value>,
    deadline: Instant,
    printer: &Printer,
) -> Result<()> {
    wait_until_gone(cluster, deadline, printer).await?;
    let step = printer.step("installing the mesh");
    let workloads = apply::workloads(&objects, &cluster.system_namespace);
    let count = apply::apply_over(cluster, objects, &cluster.system_namespace, &step).await?;
    step.done(&format!("{count} objects applied"));
    let step = printer.step("waiting for the control plane");
    apply::wait_available(cluster, &workloads, deadline, &step).await?;
    apply::wait_wired(cluster, deadline, &step).await?;
    step.done("the control plane is ready");
    Ok(())
}

/// Nothing can be made in a namespace that is being deleted.
async fn wait_until_gone(cluster: &Cluster, deadline: Instant, printer: &Printer) -> Result<()> {
    let api: Api<Namespace> = Api::all(cluster.client.clone());
    let name = &cluster.system_namespace;
    let step = printer.step(&format!("waiting until the old namespace {name} is gone"));
    loop {
        let namespace = api.get_opt(name).await.during(|| format!("read namespace {name}"))?;
        if namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_none()) {
            drop(step);
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::new("it is still being deleted").during(format!("install into namespace {name}")));
        }
        tokio::time::sleep(apply::LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command};
    use crate::testing::TestCluster;
    use mesh_manifests::install::ANCHORS_KEY;

    fn args(line: &str) -> Install {
        let words = ["meshctl", "install"].into_iter().chain(line.split_whitespace()).map(Into::into);
        match Cli::read(words.collect()).unwrap().command {
            Command::Install(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn kinds(text: &str) -> Vec<String> {
        let objects: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
        objects.iter().map(|object| object["kind"].as_str().unwrap_or_default().to_owned()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn printing_changes_nothing_and_needs_no_cluster() {
        let (printer, read) = Printer::memory();
        let nowhere = Global { kubeconfig: Some("/nowhere".into()), ..TestCluster::start().global() };
        run(&nowhere, &args(""), &printer).await.unwrap();
        let (yaml, _) = read();
        let kinds = kinds(&yaml);
        assert_eq!(kinds.first().map(String::as_str), Some("Namespace"));
        assert!(kinds.contains(&"Deployment".to_owned()), "{kinds:?}");
        let (printer, read) = Printer::memory();
        run(&nowhere, &args("-o json --ha"), &printer).await.unwrap();
        let list: Value = serde_json::from_str(&read().0).unwrap();
        assert_eq!(list["kind"], "List");
        assert!(list["items"].as_array().unwrap().len() > kinds.len());
    }

    #[tokio::test]
    async fn a_mistyped_value_names_the_nearest() {
        let (printer, read) = Printer::memory();
        let error = run(&Global::default(), &args("--set proxy.wrokers=2"), &printer).await.unwrap_err();
        assert!(error.to_string().contains("did you mean `proxy.workers`?"), "{error}");
        assert_eq!(read().0, "");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn mesh_and_shop_can_be_applied_and_deleted() {
        let server = TestCluster::start();
        let cluster = server.connect().await;
        let (printer, _) = Printer::memory();
        let step = printer.step("applying");
        let shop = crate::commands::inject::annotated(mesh_sandbox::apps::SHOP_YAML, "shop.yaml").unwrap();
        let all = [defaults("mesh-system").unwrap(), shop].concat();
        for _ in 0..2 {
            assert_eq!(apply::apply(&cluster, all.clone(), "default", &step).await.unwrap(), all.len());
        }
        assert_eq!(installed(&cluster).await.unwrap().as_deref(), Some("0.1.0"));
        apply::delete(&cluster, all, "default", &step).await.unwrap();
        assert_eq!(installed(&cluster).await.unwrap(), None);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_second_mesh_is_refused() {
        let cluster = TestCluster::start();
        let client = cluster.connect().await.client;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = serde_json::from_value(json!({"metadata": {"name": "mesh-system"}})).unwrap();
        namespaces.create(&Default::default(), &namespace).await.unwrap();
        let control = objects(&Values::default()).unwrap().into_iter().find(|object| object["kind"] == "Deployment");
        let control: Deployment = serde_json::from_value(control.unwrap()).unwrap();
        let deployments: Api<Deployment> = Api::namespaced(client, "mesh-system");
        deployments.create(&Default::default(), &control).await.unwrap();
        for line in ["", "--apply", "--diff"] {
            let (printer, read) = Printer::memory();
            let error = run(&cluster.global(), &args(line), &printer).await.unwrap_err();
            assert_eq!(error.to_string(), "cannot install: the cluster has a mesh already: 0.1.0");
            assert!(error.hint_text().unwrap().contains("upgrade"));
            assert_eq!(read().0, "");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn interrupted_after_any_object_it_is_continued_by_the_same_command() {
        let args = args("--apply --set control.log=debug --timeout 1ms");
        let global = Global { system_namespace: "mesh-system".to_owned(), ..Global::default() };
        let values = values(&global, &args).unwrap();
        let first = apply::in_order(objects(&values).unwrap());
        let control = first.iter().position(|object| object["kind"] == "Deployment").unwrap();
        for done in 0..=first.len() {
            let server = TestCluster::start();
            let cluster = server.connect().await;
            let (printer, read) = Printer::memory();
            let part = first[..done].to_vec();
            apply::apply_over(&cluster, part, "mesh-system", &printer.step("installing")).await.unwrap();
            // There is no node here that would run the control plane.
            let error = run(&server.global(), &args, &printer).await.unwrap_err();
            assert!(error.to_string().contains("wait for deployment mesh-control"), "{done}: {error}");
            let issuer = installed::issuer(&cluster, false).await.unwrap();
            let whole = render_with(&values, &issuer).unwrap();
            let (text, changes) = plan::text(&plan::plan(&cluster, whole, &[], "mesh-system").await.unwrap());
            assert!(!changes, "{done}: {text}");
            // Whom a control plane may have signed for already goes on being trusted.
            let kept = first.iter().any(|object| object["data"][ANCHORS_KEY] == *issuer.anchors_pem);
            assert_eq!(
                (kept, read().1.contains("going on with the identity")),
                (done > control, done > control),
                "{done}"
            );
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_mesh_with_other_values_is_not_installed_over() {
        let server = TestCluster::start();
        let cluster = server.connect().await;
        let (printer, _) = Printer::memory();
        let step = printer.step("installing");
        apply::apply(&cluster, defaults("mesh-system").unwrap(), "mesh-system", &step).await.unwrap();
        for line in ["--apply --ha", "--apply --set trust_domain=example.org"] {
            let error = run(&server.global(), &args(line), &printer).await.unwrap_err();
            assert_eq!(error.to_string(), "cannot install: the cluster has a mesh already: 0.1.0", "{line}");
        }
        let mut other = values(&server.global(), &args("")).unwrap();
        assert!(the_same(&cluster, &other).await.unwrap().is_some());
        other.identity.issuer_certificate_pem = Some("another".to_owned());
        assert!(the_same(&cluster, &other).await.unwrap().is_none());
    }
}
