//! What the tree itself must look like: which crate may depend on which, and that every file says why it exists.

use crate::harness::test;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("tidy::crates_depend_one_way", &[], crates_depend_one_way),
        test("tidy::the_proxy_links_no_kubernetes", &[], the_proxy_links_no_kubernetes),
        test("tidy::files_say_why_they_exist", &[], files_say_why_they_exist),
        test("tidy::the_top_level_is_the_agreed_one", &[], the_top_level_is_the_agreed_one),
        test("tidy::a_policy_field_touches_what_the_readme_says", &[], a_policy_field_touches_what_the_readme_says),
    ]
}

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Crate → the workspace crates it may depend on. Nothing else may point at anything.
const ALLOWED: &[(&str, &[&str])] = &[
    ("mesh-api", &[]),
    ("mesh-manifests", &["mesh-api"]),
    ("mesh-control", &["mesh-api", "mesh-manifests"]),
    ("mesh-proxy", &["mesh-api"]),
    ("mesh-sandbox", &["mesh-api", "mesh-proxy", "mesh-manifests", "mesh-control"]),
    ("meshctl", &["mesh-api", "mesh-proxy", "mesh-manifests", "mesh-control", "mesh-sandbox"]),
    ("mesh-tests", &["mesh-api", "mesh-proxy", "mesh-manifests", "mesh-control", "mesh-sandbox", "meshctl"]),
];

/// Name → dependencies of every kind, read from the manifests themselves.
fn dependencies() -> Result<BTreeMap<String, Vec<String>>> {
    let mut found = BTreeMap::new();
    for folder in ["cli", "cli/sandbox", "proxy", "proxy/api", "control", "manifests", "tests"] {
        let path = root().join(folder).join("Cargo.toml");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("name = \""))
            .and_then(|rest| rest.strip_suffix('"'))
            .with_context(|| format!("{} has no name", path.display()))?;
        let mut inside = false;
        let mut list = Vec::new();
        for line in text.lines() {
            if line.starts_with('[') {
                inside = line.contains("dependencies");
            } else if inside && let Some(dependency) = line.split(['.', ' ', '=']).next().filter(|d| !d.is_empty()) {
                list.push(dependency.to_owned());
            }
        }
        found.insert(name.to_owned(), list);
    }
    Ok(found)
}

fn crates_depend_one_way() -> Result<()> {
    let found = dependencies()?;
    ensure!(found.len() == ALLOWED.len(), "the workspace has other crates than this test knows: {:?}", found.keys());
    for (name, allowed) in ALLOWED {
        let list = found.get(*name).with_context(|| format!("crate {name} is gone"))?;
        for dependency in list.iter().filter(|d| found.contains_key(*d)) {
            ensure!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
    Ok(())
}

fn the_proxy_links_no_kubernetes() -> Result<()> {
    let found = dependencies()?;
    for name in ["mesh-api", "mesh-proxy"] {
        for dependency in &found[name] {
            ensure!(!dependency.starts_with("kube") && dependency != "k8s-openapi", "{name} links {dependency}");
        }
    }
    Ok(())
}

/// Every file of Rust in the tree, with its text.
fn sources() -> Result<BTreeMap<PathBuf, String>> {
    let mut pending: Vec<PathBuf> =
        ["cli", "proxy", "control", "manifests", "tests"].iter().map(|d| root().join(d)).collect();
    let mut found = BTreeMap::new();
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                // Crates outside of the workspace (fuzzing) are built in their own folders.
                if path.file_name().is_none_or(|name| name != "target") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path)?;
                found.insert(path, text);
            }
        }
    }
    ensure!(found.len() > 20, "only {} files found: is this still the right tree?", found.len());
    Ok(found)
}

fn files_say_why_they_exist() -> Result<()> {
    for (path, text) in sources()? {
        ensure!(text.starts_with("//!"), "{} does not open with `//!`", path.display());
    }
    Ok(())
}

/// The README's section for contributors shows by an example which files a new field touches.
fn a_policy_field_touches_what_the_readme_says() -> Result<()> {
    // In two parts, so that this file does not count.
    const FIELD: &str = concat!("grpc", "_methods");
    let is_word = |text: &str| {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        text.match_indices(FIELD)
            .any(|(at, _)| !text[..at].ends_with(part) && !text[at + FIELD.len()..].starts_with(part))
    };
    let relative = |path: PathBuf| path.strip_prefix(root()).map(|path| path.display().to_string());
    let mut touched = Vec::new();
    for (path, text) in sources()? {
        if is_word(&text) {
            touched.push(relative(path)?);
        }
    }
    touched.sort_unstable();
    let readme = std::fs::read_to_string(root().join("README.md"))?;
    let (_, section) = readme.split_once("\n## Contributing\n").context("the README has no section Contributing")?;
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let mut told: Vec<&str> = rows.map(|(path, _)| path).collect();
    told.sort_unstable();
    ensure!(touched == told, "{FIELD} stands in {touched:?}, the README says {told:?}");
    Ok(())
}

fn the_top_level_is_the_agreed_one() -> Result<()> {
    let agreed = [
        "Cargo.toml",
        "Cargo.lock",
        "README.md",
        "LICENSE",
        "rust-toolchain.toml",
        "cli",
        "control",
        "manifests",
        "proxy",
        "tests",
        "target",
    ];
    for entry in std::fs::read_dir(root())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        ensure!(name.starts_with('.') || agreed.contains(&name.as_str()), "`{name}` does not belong at the top level");
    }
    Ok(())
}
