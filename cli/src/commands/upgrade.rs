//! `meshctl upgrade`: the mesh that is there, at this program's version and with other values: printed, previewed or
//! applied; and its proxies, restarted in waves.

use super::upgrade_proxies;
use crate::apply;
use crate::args::{Global, ManifestFormat, Upgrade};
use crate::cluster::Cluster;
use crate::commands::install;
use crate::commands::version::CLIENT;
use crate::error::{Context, Error, Outcome, Result};
use crate::installed::{self, Installed};
use crate::output::Printer;
use crate::plan;
use mesh_manifests::install::{render_with, to_yaml};
use mesh_manifests::inventory::{self, Entry};
use mesh_manifests::values::Values;
use serde_json::Value;
use std::time::Instant;

/// Prints, previews or applies.
pub async fn run(global: &Global, args: &Upgrade, printer: &Printer) -> Result<Outcome> {
    let cluster = Cluster::connect(global).await?;
    let installed = installed::expect(&cluster).await?;
    if args.proxies && !args.apply && !args.diff {
        return upgrade_proxies::run(&cluster, args, &installed.version, printer).await;
    }
    if args.apply && !args.force {
        installed.refuse_beside_helm("upgrade", "helm upgrade NAME CHART")?;
    }
    let (objects, values) = render(&cluster, &installed, args).await?;
    let reasons = unsafe_steps(&installed, &values, &cluster.system_namespace)?;
    if !reasons.is_empty() && !args.force {
        return Err(Error::new(reasons.join("; ")).during("upgrade").hint("--force does it all the same"));
    }
    reasons.iter().for_each(|reason| printer.warn(reason));
    let gone = inventory::gone(&installed.inventory, &inventory::of(&objects));
    if args.diff {
        let planned = plan::plan(&cluster, objects, &gone, &cluster.system_namespace).await?;
        let (text, changes) = plan::text(&planned);
        printer.data(&text)?;
        return Ok(if changes { Outcome::Problems } else { Outcome::Well });
    }
    if !args.apply {
        print(&objects, args.output, printer)?;
        if !gone.is_empty() {
            let gone: Vec<String> = gone.iter().map(Entry::to_string).collect();
            printer.note(&format!("no longer needed, `meshctl prune --apply` deletes it: {}", gone.join(", ")));
        }
        return Ok(Outcome::Well);
    }
    apply_all(&cluster, objects, &gone, args, printer).await?;
    match args.proxies {
        true => upgrade_proxies::run(&cluster, args, CLIENT, printer).await,
        false => {
            upgrade_proxies::note_old(&cluster, printer).await?;
            Ok(Outcome::Well)
        }
    }
}

/// The objects of the mesh that is there with the changes that are wanted, around its own issuer.
async fn render(cluster: &Cluster, installed: &Installed, args: &Upgrade) -> Result<(Vec<Value>, Values)> {
    let mut files = vec![("the installed values".to_owned(), installed.values.clone())];
    if args.reset_values {
        files.clear();
    }
    for path in &args.values {
        files.push((path.display().to_string(), install::read(path)?));
    }
    let mut values = Values::from_sources(&files, &args.set).during(|| "use these values")?;
    values.ha |= args.ha;
    values.system_namespace.clone_from(&cluster.system_namespace);
    let issuer = installed::issuer(cluster, values.identity.existing_secret).await?;
    let objects = render_with(&values, &issuer).during(|| "render the manifests")?;
    Ok((objects, values))
}

/// Why this upgrade could hurt.
fn unsafe_steps(installed: &Installed, values: &Values, namespace: &str) -> Result<Vec<String>> {
    let old = Values::from_sources(&[("the installed values".to_owned(), installed.values.clone())], &[])
        .during(|| "understand the installed values")?;
    let mut reasons = Vec::new();
    if old.trust_domain != values.trust_domain {
        reasons.push(format!(
            "the trust domain would change from {} to {}: proxies of the one do not talk to those of the other",
            old.trust_domain, values.trust_domain
        ));
    }
    if old.cluster_domain != values.cluster_domain {
        reasons.push(format!(
            "the cluster's DNS suffix would change from {} to {}: proxies would no longer find the control plane",
            old.cluster_domain, values.cluster_domain
        ));
    }
    if old.system_namespace != namespace && installed.inventory.iter().all(|entry| entry.name != namespace) {
        reasons.push(format!("it was installed into {}, not into {namespace}", old.system_namespace));
    }
    reasons.extend(version_step(&installed.version, CLIENT));
    Ok(reasons)
}

/// Why the step from one version to another could hurt.
fn version_step(from: &str, to: &str) -> Option<String> {
    let parts = |version: &str| -> Option<(u32, u32, u32)> {
        let plain = version.split(['-', '+']).next()?;
        let mut parts = plain.trim_start_matches('v').split('.').map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
    };
    let (Some(old), Some(new)) = (parts(from), parts(to)) else {
        return Some(format!("the installed version `{from}` cannot be compared with {to}"));
    };
    if new < old {
        return Some(format!("this meshctl is {to}, older than the mesh ({from})"));
    }
    let far = new.0 > old.0 || new.1 > old.1 + 1;
    far.then(|| format!("from {from} to {to} leaves out minor releases: upgrade through each of them"))
}

fn print(objects: &[Value], format: ManifestFormat, printer: &Printer) -> Result<()> {
    printer.data(&match format {
        ManifestFormat::Yaml => to_yaml(objects).during(|| "write YAML")?,
        ManifestFormat::Json => install::list(objects.to_vec())?,
    })
}

async fn apply_all(
    cluster: &Cluster,
    mut objects: Vec<Value>,
    gone: &[Entry],
    args: &Upgrade,
    printer: &Printer,
) -> Result<()> {
    let deadline = Instant::now() + args.timeout;
    let step = printer.step("upgrading the control plane");
    let workloads = apply::workloads(&objects, &cluster.system_namespace);
    // Interrupted, the next upgrade has to know what this one was going to delete.
    let record = inventory::record(&mut objects, gone);
    let count = apply::apply_over(cluster, objects, &cluster.system_namespace, &step).await?;
    step.done(&format!("{count} objects applied"));
    let step = printer.step("waiting for the control plane");
    apply::wait_available(cluster, &workloads, deadline, &step).await?;
    apply::wait_wired(cluster, deadline, &step).await?;
    step.done("the control plane is ready");
    if !gone.is_empty() {
        let step = printer.step("deleting what is no longer needed");
        let objects = gone.iter().map(Entry::object).collect();
        apply::delete(cluster, objects, &cluster.system_namespace, &step).await?;
        apply::apply_over(cluster, record.into_iter().collect(), &cluster.system_namespace, &step).await?;
        step.done(&format!("{} deleted that this version does without", gone.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCluster;
    use mesh_manifests::issuer::Issuer;
    use std::time::{Duration, SystemTime};

    #[test]
    fn steps_that_could_hurt_are_named() {
        let check = |from: &str, to: &str, expect: &str| {
            assert_eq!(version_step(from, to).unwrap_or_default(), expect, "{from} {to}");
        };
        check("0.1.0", "0.1.0", "");
        check("0.1.0", "0.1.3", "");
        check("0.1.9", "0.2.0", "");
        check("0.2.0", "0.1.0", "this meshctl is 0.1.0, older than the mesh (0.2.0)");
        check("0.1.0", "0.3.0", "from 0.1.0 to 0.3.0 leaves out minor releases: upgrade through each of them");
        check("0.9.0", "1.0.0", "from 0.9.0 to 1.0.0 leaves out minor releases: upgrade through each of them");
        check("unknown", "0.1.0", "the installed version `unknown` cannot be compared with 0.1.0");
    }

    #[test]
    fn another_trust_domain_is_unsafe() {
        let installed = Installed { version: CLIENT.into(), values: "{}".into(), inventory: Vec::new(), release: None };
        let values = Values { trust_domain: "example.org".into(), ..Values::default() };
        let reasons = unsafe_steps(&installed, &values, "mesh-system").unwrap();
        assert!(reasons.len() == 1 && reasons[0].starts_with("the trust domain would change"), "{reasons:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upgrade_keeps_values_and_issuer_and_drops_what_is_gone() {
        let server = TestCluster::start();
        let cluster = server.connect().await;
        let (printer, _) = Printer::memory();
        let step = printer.step("installing");
        let values = Values::from_sources(&[], &["ha=true".to_owned(), "proxy.workers=3".to_owned()]).unwrap();
        let objects = mesh_manifests::install::render(&values).unwrap();
        apply::apply(&cluster, objects.clone(), "mesh-system", &step).await.unwrap();

        let installed = installed::expect(&cluster).await.unwrap();
        assert_eq!((installed.version.as_str(), installed.inventory.len()), (CLIENT, objects.len()));
        let mut args = Upgrade { apply: true, ..Upgrade::default() };
        let (again, kept) = render(&cluster, &installed, &args).await.unwrap();
        assert_eq!((kept.proxy.workers, kept.ha), (3, true));
        assert_eq!(again, objects, "nothing changes by itself, the issuer least of all");

        args.set = vec!["ha=false".to_owned()];
        let (fewer, _) = render(&cluster, &installed, &args).await.unwrap();
        let gone = inventory::gone(&installed.inventory, &inventory::of(&fewer));
        assert_eq!(
            gone.iter().map(Entry::to_string).collect::<Vec<_>>(),
            ["poddisruptionbudget mesh-system/mesh-control"]
        );

        args.reset_values = true;
        args.set.clear();
        assert_eq!(render(&cluster, &installed, &args).await.unwrap().1.proxy.workers, 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn interrupted_after_any_object_it_is_continued_by_the_same_command() {
        let read = |sets: &[&str]| {
            let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
            Values::from_sources(&[], &sets).unwrap()
        };
        let (old, new) = (read(&["ha=true"]), read(&["control.log=debug"]));
        let issuer = Issuer::generate(&old.trust_domain, SystemTime::now()).unwrap();
        let (before, after) = (render_with(&old, &issuer).unwrap(), render_with(&new, &issuer).unwrap());
        let budget = Entry::of(before.iter().find(|object| object["kind"] == "PodDisruptionBudget").unwrap());
        // What an upgrade applies before it can delete.
        let mut first = after.clone();
        assert!(inventory::record(&mut first, std::slice::from_ref(&budget)).is_some());
        let first = apply::in_order(first);
        let args = Upgrade {
            apply: true,
            set: vec!["ha=false".to_owned(), "control.log=debug".to_owned()],
            timeout: Duration::from_millis(1),
            ..Upgrade::default()
        };
        for done in 0..=first.len() {
            let server = TestCluster::start();
            let cluster = server.connect().await;
            let (printer, _) = Printer::memory();
            let step = printer.step("upgrading");
            apply::apply(&cluster, before.clone(), "mesh-system", &step).await.unwrap();
            apply::apply_over(&cluster, first[..done].to_vec(), "mesh-system", &step).await.unwrap();
            // There is no node here that would run the control plane.
            let error = run(&server.global(), &args, &printer).await.unwrap_err();
            assert!(error.to_string().contains("wait for deployment mesh-control"), "{done}: {error}");
            let (text, changes) = plan::text(&plan::plan(&cluster, first.clone(), &[], "mesh-system").await.unwrap());
            assert!(!changes, "{done}: {text}");
            let installed = installed::expect(&cluster).await.unwrap();
            let gone = inventory::gone(&installed.inventory, &inventory::of(&after));
            assert_eq!(gone, std::slice::from_ref(&budget), "{done}");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn without_a_mesh_there_is_nothing_to_upgrade() {
        let server = TestCluster::start();
        let (printer, _) = Printer::memory();
        let error = run(&server.global(), &Upgrade::default(), &printer).await.unwrap_err();
        assert_eq!(error.to_string(), "there is no mesh in namespace mesh-system");
        assert!(error.hint_text().unwrap().contains("meshctl install"));
    }
}
