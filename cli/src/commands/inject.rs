//! `meshctl inject` and `uninject`: manifests in, the same manifests out, with or without the mesh.
//!
//! Nothing is printed before all of the input has been found good; until then the outcome waits in a spool, in memory
//! while it is small and in a file beyond that. What became of each workload goes to stderr.

use crate::args::{Global, Inject, Uninject};
use crate::cluster::Cluster;
use crate::commands::sources::{self, Source};
use crate::error::{Context, Hint, Outcome, Result};
use crate::installed::no_mesh;
use crate::output::Printer;
use crate::shown::mesh_config;
use mesh_manifests::config::kubernetes_minor;
use mesh_manifests::inject_text::{self, Mode, Outcome as Became, Report};
use serde_json::Value;
use std::io::{Read, Seek, Write};
use tempfile::SpooledTempFile;

/// So much of the outcome is kept in memory.
const SPOOL_BYTES: usize = 8 << 20;

/// Adds the mesh to manifests.
pub async fn run(global: &Global, args: &Inject, printer: &Printer) -> Result<Outcome> {
    if args.manual {
        let cluster = Cluster::connect(global).await?;
        let minor = kubernetes_minor(&cluster.version.major, &cluster.version.minor);
        // A sidecar written by hand must agree with the mesh.
        let config = mesh_config(&cluster).await?.ok_or_else(|| no_mesh(&cluster))?.settled(minor);
        rewrite(&sources::find(&args.files)?, Mode::Manual(&config), printer)
    } else {
        rewrite(&sources::find(&args.files)?, Mode::Annotate, printer)
    }
}

/// Takes the mesh out of manifests.
pub fn run_uninject(args: &Uninject, printer: &Printer) -> Result<Outcome> {
    rewrite(&sources::find(&args.files)?, Mode::Uninject, printer)
}

fn rewrite(sources: &[Source], mode: Mode<'_>, printer: &Printer) -> Result<Outcome> {
    let verb = if matches!(mode, Mode::Uninject) { "uninject" } else { "inject" };
    let mut all = SpooledTempFile::new(SPOOL_BYTES);
    let mut reports = Vec::new();
    for (index, source) in sources.iter().enumerate() {
        let mut one = SpooledTempFile::new(SPOOL_BYTES);
        let input = source.open()?;
        inject_text::transform(&source.name(), input, &mut one, mode, &mut |report| reports.push(report))
            .during(|| verb)
            .hint(|| "nothing was written")?;
        append(&mut one, &mut all, index > 0).during(|| "keep the outcome")?;
    }
    all.rewind().during(|| "keep the outcome")?;
    printer.data_from(&mut all)?;
    tell(&reports, printer);
    Ok(Outcome::Well)
}

/// Appends a source's documents to those before them.
fn append(one: &mut SpooledTempFile, all: &mut SpooledTempFile, separate: bool) -> std::io::Result<()> {
    one.rewind()?;
    let mut start = [0; 4];
    let length = one.read(&mut start)?;
    if separate && length > 0 && !start[..length].starts_with(b"---") {
        all.write_all(b"---\n")?;
    }
    one.rewind()?;
    std::io::copy(one, all)?;
    if one.stream_position()? > 0 {
        one.seek(std::io::SeekFrom::End(-1))?;
        let mut last = [0];
        one.read_exact(&mut last)?;
        // Only where something may follow does a missing line break matter, and there it is an error.
        if last != *b"\n" && separate {
            all.write_all(b"\n")?;
        }
    }
    Ok(())
}

/// Says what became of each workload, and of how many.
fn tell(reports: &[Report], printer: &Printer) {
    let (mut changed, mut skipped) = (0, 0);
    let mut verb = "injected";
    for report in reports {
        let namespace = report.namespace.as_ref().map(|name| format!("{name}/")).unwrap_or_default();
        let label = format!("{} {namespace}{}", report.kind.to_lowercase(), report.name);
        match &report.outcome {
            Became::Injected => {
                changed += 1;
                printer.note(&format!("{label}: injected"));
            }
            Became::Uninjected => {
                (changed, verb) = (changed + 1, "uninjected");
                printer.note(&format!("{label}: uninjected"));
            }
            Became::Skipped(why) => {
                skipped += 1;
                printer.note(&format!("{label}: skipped, {why}"));
            }
            Became::NoPods if printer.verbose() => printer.note(&format!("{label}: has no pods")),
            Became::NoPods => {}
        }
    }
    let others = reports.len() - changed - skipped;
    printer.note(&format!("{changed} {verb}, {skipped} skipped, {others} without pods"));
}

/// The objects of a text of ours, asking for a proxy.
pub fn annotated(text: &str, name: &str) -> Result<Vec<Value>> {
    let mut injected = Vec::new();
    inject_text::transform(name, text.as_bytes(), &mut injected, Mode::Annotate, &mut |_| {}).during(|| "inject")?;
    let text = String::from_utf8(injected).during(|| format!("inject {name}"))?;
    let objects: Vec<Value> = serde_saphyr::from_multiple(&text).during(|| format!("read {name}"))?;
    Ok(objects.into_iter().filter(|object| !object.is_null()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::names::INJECT;

    const WEB: &str = "# the shop\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\nspec:\n  template:\n    \
                       metadata:\n      labels: {app: web}\n    spec:\n      containers:\n      - name: web\n        image: web:1\n";
    const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: map\n";

    fn files(texts: &[&str]) -> (tempfile::TempDir, Vec<Source>) {
        let folder = tempfile::tempdir().unwrap();
        let sources = texts.iter().enumerate().map(|(index, text)| {
            let path = folder.path().join(format!("{index}.yaml"));
            std::fs::write(&path, text).unwrap();
            Source::File(path)
        });
        let sources = sources.collect();
        (folder, sources)
    }

    #[test]
    fn manifests_go_through_and_back_unharmed() {
        let (_folder, sources) = files(&[WEB]);
        let (printer, read) = Printer::memory();
        rewrite(&sources, Mode::Annotate, &printer).unwrap();
        let (out, err) = read();
        assert!(out.contains("meshctl.dev/inject: enabled") && out.starts_with("# the shop\n"), "{out}");
        assert_eq!(err, "deployment web: injected\n1 injected, 0 skipped, 0 without pods\n");
        let (_folder, sources) = files(&[&out]);
        let (printer, read) = Printer::memory();
        rewrite(&sources, Mode::Uninject, &printer).unwrap();
        assert_eq!(read().0, WEB);
    }

    #[test]
    fn several_files_become_one_stream() {
        let (_folder, sources) = files(&[WEB, "---\napiVersion: v1\nkind: Service\nmetadata: {name: a}", MAP]);
        let (printer, read) = Printer::memory();
        rewrite(&sources, Mode::Annotate, &printer).unwrap();
        let objects: Vec<Value> = serde_saphyr::from_multiple(&read().0).unwrap();
        let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["Deployment", "Service", "ConfigMap"]);
    }

    #[test]
    fn nothing_of_a_bad_stream_is_written() {
        for (bad, expected) in [("just text\n", "object"), ("a: [1, 2\n", "line"), ("- a\n- list\n", "object")] {
            let (_folder, sources) = files(&[MAP, &format!("{MAP}---\n{bad}")]);
            let (printer, read) = Printer::memory();
            let error = rewrite(&sources, Mode::Annotate, &printer).unwrap_err();
            assert_eq!(read().0, "");
            let text = error.to_string();
            assert!(text.contains("1.yaml: document 2, line ") && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn the_shop_asks_for_proxies() {
        let objects = annotated(mesh_sandbox::apps::SHOP_YAML, "shop.yaml").unwrap();
        let deployments: Vec<_> = objects.iter().filter(|object| object["kind"] == "Deployment").collect();
        assert!(deployments.len() >= 5);
        for deployment in deployments {
            assert_eq!(deployment["spec"]["template"]["metadata"]["annotations"][INJECT], "enabled");
        }
    }
}
