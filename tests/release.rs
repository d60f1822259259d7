//! What a release is made of, as far as it can be tried without a container runtime and without a forge: what the
//! Containerfiles and workflows name is there, images agree with the manifests, and programs are packed as told.

use crate::harness::{Need, run_with_input, test};
use crate::tidy::root;
use anyhow::{Context, Result, ensure};
use clap::Parser;
use libtest_mimic::Trial;
use mesh_api::names;
use mesh_manifests::config::VERSION;
use mesh_manifests::install::{CONTROL_UID, mesh_config, render_with};
use mesh_manifests::issuer::Issuer;
use mesh_manifests::values::Values;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("release::images_name_what_there_is", &[], images_name_what_there_is),
        test("release::images_run_as_the_manifests_say", &[], images_run_as_the_manifests_say),
        test("release::images_hold_the_libraries_there_are", &[], images_hold_the_libraries_there_are),
        test("release::workflows_name_what_there_is", &[], workflows_name_what_there_is),
        test("release::the_proxy_is_trained", &[], the_proxy_is_trained),
        test("release::programs_are_packed", &[Need::Program("tar"), Need::Program("sha256sum")], programs_are_packed),
    ]
}

/// An image: the folder of its Containerfile, its program, and as whom and where it listens.
struct Image {
    folder: &'static str,
    program: &'static str,
    uid: u32,
    ports: &'static [u16],
}

const IMAGES: &[Image] = &[
    Image {
        folder: "proxy",
        program: "mesh-proxy",
        uid: names::PROXY_UID,
        ports: &[names::OUTBOUND_PORT, names::INBOUND_PORT, names::ADMIN_PORT],
    },
    Image {
        folder: "control",
        program: "mesh-control",
        uid: CONTROL_UID,
        ports: &[names::CONTROL_PROXY_PORT, names::CONTROL_WEBHOOK_PORT, names::CONTROL_ADMIN_PORT],
    },
];

fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = root().join(path);
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

impl Image {
    /// The instructions of its Containerfile, comments left out, continued lines joined.
    fn instructions(&self) -> Result<Vec<String>> {
        let text = read(Path::new(self.folder).join("Containerfile"))?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
        let text = lines.join("\n").replace("\\\n", " ");
        let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        Ok(lines.filter(|line| !line.is_empty()).collect())
    }

    /// The arguments of the one instruction of a name in the last stage.
    fn last(&self, name: &str) -> Result<String> {
        let all = self.instructions()?;
        let from = all.iter().rposition(|line| line.starts_with("FROM ")).context("no FROM")?;
        let found: Vec<_> = all[from..].iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).collect();
        ensure!(found.len() == 1, "{}/Containerfile: {} times {name} in the last stage", self.folder, found.len());
        Ok(found[0].to_owned())
    }
}

fn images_name_what_there_is() -> Result<()> {
    let workspace = read("Cargo.toml")?;
    for image in IMAGES {
        let Image { folder, program, .. } = image;
        let all = image.instructions()?;
        let build = all.iter().find(|line| line.starts_with("RUN ")).context("nothing is built")?;
        let manifest = read(Path::new(folder).join("Cargo.toml"))?;
        for line in [format!("name = \"{program}\""), "[[bin]]".to_owned(), "path = \"src/main.rs\"".to_owned()] {
            ensure!(manifest.lines().any(|known| known == line), "{folder}/Cargo.toml has no line {line}");
        }
        ensure!(build.contains(&format!("cargo build --locked --{}", profile(build)?)), "{build}");
        ensure!(build.contains(&format!("--package {program} --bin {program} ")), "{build}");
        let profile = profile(build)?.replace("profile ", "");
        ensure!(workspace.contains(&format!("[profile.{profile}]")), "Cargo.toml has no profile {profile}");
        ensure!(build.contains(&format!("target/$target/{profile}/{program} ").replace(' ', "\"")), "{build}");
        // The base is pinned by a digest that has to be given, the compiler by its version, and times by the commit.
        ensure!(all.iter().any(|line| line == "FROM ${RUST_IMAGE}@${RUST_DIGEST} AS build"), "{all:?}");
        ensure!(all.iter().any(|line| line == "ARG RUST_DIGEST"), "the digest must not have a default: {all:?}");
        ensure!(all.iter().any(|line| line.starts_with("ENV RUSTUP_TOOLCHAIN=${RUST_VERSION}")), "{all:?}");
        ensure!(build.contains("touch -h -d \"@$SOURCE_DATE_EPOCH\""), "{build}");
        ensure!(all.iter().any(|line| line == "FROM scratch"), "{all:?}");
        ensure!(image.last("ENTRYPOINT")? == format!("[\"/usr/local/bin/{program}\"]"));
        ensure!(
            build.contains(&format!("/image/usr/local/bin/{program}"))
                && image.last("COPY")? == "--from=build /image/ /"
        );
    }
    Ok(())
}

/// The profile that a command builds with, as cargo's option says it.
fn profile(build: &str) -> Result<&str> {
    let (_, rest) = build.split_once("cargo build --locked --").context("nothing is built with --locked")?;
    Ok(if rest.starts_with("release ") { "release" } else { &rest[..rest.find(" --").context("no option follows")?] })
}

/// A pod of the proxy's and one of the control plane's: their containers as they are rendered.
fn containers() -> Result<Vec<(&'static str, Value)>> {
    let values = Values::default();
    let issuer = Issuer::resolve(&values, SystemTime::now())?;
    let config = mesh_config(&values, &issuer);
    let objects = render_with(&values, &issuer)?;
    let control = objects.iter().find(|object| object["kind"] == "Deployment").context("no deployment is rendered")?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "annotations": {"meshctl.dev/inject": "enabled", "meshctl.dev/skip-outbound-ports": "25"}},
        "spec": {"containers": [{"name": "main", "image": "a"}]}});
    let mut injected = Vec::new();
    let mode = mesh_manifests::inject_text::Mode::Manual(&config);
    mesh_manifests::inject_text::transform("pod", pod.to_string().as_bytes(), &mut injected, mode, &mut |_| {})?;
    let injected: Value = serde_json::from_slice(&injected)?;
    let mut found = vec![("control", control["spec"]["template"]["spec"]["containers"][0].clone())];
    for container in injected["spec"]["initContainers"].as_array().context("nothing was injected")? {
        found.push(("proxy", container.clone()));
    }
    ensure!(found.len() == 3, "{found:?}");
    Ok(found)
}

fn images_run_as_the_manifests_say() -> Result<()> {
    for (folder, container) in containers()? {
        let image = IMAGES.iter().find(|image| image.folder == folder).context(folder)?;
        let name = container["name"].as_str().unwrap_or_default();
        ensure!(container["image"] == format!("meshctl/{folder}:{VERSION}"), "{name}: {}", container["image"]);
        ensure!(container["command"].is_null(), "{name}: the image's entry point is to be run");
        let user = image.last("USER")?;
        ensure!(user == format!("{0}:{0}", image.uid), "{folder}/Containerfile: {user}");
        let context = &container["securityContext"];
        // Only the redirect is set as root, and only it gets capabilities.
        let redirect = name == names::REDIRECT_CONTAINER;
        let expected = if redirect { 0 } else { image.uid };
        ensure!(context["runAsUser"] == expected && context["runAsGroup"] == expected, "{name}: {context}");
        ensure!(context["capabilities"]["add"].is_null() != redirect, "{name}: {context}");
        let arguments = container["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let arguments = std::iter::once(image.program).chain(arguments);
        match folder {
            "proxy" => drop(mesh_proxy::args::Args::try_parse_from(arguments).context(name.to_owned())?),
            _ => drop(mesh_control::args::Args::try_parse_from(arguments).context(name.to_owned())?),
        }
        let exposed = image.last("EXPOSE")?;
        let mut exposed: Vec<&str> = exposed.split(' ').collect();
        let ports: Vec<String> = image.ports.iter().map(u16::to_string).collect();
        for port in container["ports"].as_array().into_iter().flatten() {
            let number = port["containerPort"].to_string();
            ensure!(exposed.contains(&number.as_str()), "{name}: {port}");
        }
        exposed.sort_unstable();
        let mut ports: Vec<&str> = ports.iter().map(String::as_str).collect();
        ports.sort_unstable();
        ensure!(exposed == ports, "{folder}/Containerfile exposes {exposed:?}, the program listens on {ports:?}");
    }
    Ok(())
}

/// This process is made of the same crates as the programs, so what it has loaded is what they need.
fn images_hold_the_libraries_there_are() -> Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    let loaded = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).filter(|path| path.contains(".so"));
    let loaded: std::collections::BTreeSet<&str> = loaded.filter_map(|path| path.rsplit('/').next()).collect();
    ensure!(loaded.len() >= 3, "only {loaded:?} are loaded: is this linked otherwise now?");
    for image in IMAGES {
        let all = image.instructions()?;
        let build = all.iter().find(|line| line.starts_with("RUN ")).context("nothing is built")?;
        let (_, taken) = build.split_once("case \"${file##*/}\" in ").context("no list of libraries")?;
        let (taken, _) = taken.split_once(')').context("no list of libraries")?;
        for name in &loaded {
            let is_taken = taken.split('|').any(|known| match known.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => *name == known,
            });
            ensure!(is_taken, "{}/Containerfile takes {taken}, but {name} is loaded", image.folder);
        }
    }
    Ok(())
}

fn workflows_name_what_there_is() -> Result<()> {
    for name in ["ci", "release"] {
        let text = read(format!(".github/workflows/{name}.yml"))?;
        let workflow: Value = serde_saphyr::from_str(&text).with_context(|| name.to_owned())?;
        let jobs = workflow["jobs"].as_object().context("no jobs")?;
        for (job, told) in jobs {
            let needs = &told["needs"];
            let needs =
                needs.as_array().cloned().unwrap_or_else(|| needs.as_str().map(Value::from).into_iter().collect());
            for need in needs.iter().filter_map(Value::as_str) {
                ensure!(jobs.contains_key(need), "{name}: {job} needs {need}");
            }
            for step in told["steps"].as_array().context("no steps")? {
                let Some(uses) = step["uses"].as_str() else { continue };
                let pinned = uses.split_once('@').is_some_and(|(_, at)| at.len() == 40);
                ensure!(pinned, "{name}: {uses} is not pinned to a commit");
            }
        }
        // What it calls and copies.
        for word in text.split(|c: char| c.is_whitespace() || c == '"') {
            if word.starts_with(".ci/") || word == "proxy/train" {
                let script = root().join(word.trim_end_matches('.'));
                let mode = std::fs::metadata(&script).with_context(|| format!("{name}: {}", script.display()))?;
                ensure!(mode.permissions().mode() & 0o111 != 0, "{} cannot be run", script.display());
            }
        }
    }
    let release = read(".github/workflows/release.yml")?;
    for image in IMAGES {
        let version =
            image.instructions()?.into_iter().find_map(|line| Some(line.strip_prefix("ARG RUST_VERSION=")?.to_owned()));
        let version = version.context("no version of Rust")?;
        ensure!(
            release.contains(&format!("RUST_VERSION: {version}\n")),
            "release.yml builds with another Rust than {version}"
        );
        ensure!(release.contains(&format!("{}.cdx.json", image.program)), "no SBOM of {}", image.program);
    }
    let prefix = Values::default().proxy.image;
    let prefix = prefix.split('/').next().unwrap_or_default();
    ensure!(
        release.contains(&format!("|| 'docker.io/{prefix}' }}}}")),
        "images are not pushed as the manifests name them"
    );
    Ok(())
}

/// The image and the archives are built by the same counts, by a script whose parts are there.
fn the_proxy_is_trained() -> Result<()> {
    const COUNTS: &str = "proxy/mesh-proxy.profdata";
    let image = IMAGES.iter().find(|image| image.folder == "proxy").context("no image of the proxy")?;
    let all = image.instructions()?;
    let build = all.iter().find(|line| line.starts_with("RUN ")).context("nothing is built")?;
    ensure!(build.contains(COUNTS) && build.contains("-Cprofile-use=$profile"), "{build}");
    let release = read(".github/workflows/release.yml")?;
    ensure!(release.contains(&format!("-Cprofile-use=$PWD/{COUNTS}")), "the archives are built without counts");
    let script = read("proxy/train")?;
    let bench = script.split("--bench ").nth(1).and_then(|rest| rest.split(' ').next()).context("it runs no bench")?;
    ensure!(read("tests/Cargo.toml")?.contains(&format!("name = \"{bench}\"")), "there is no bench {bench}");
    let options = read(format!("tests/benches/{bench}.rs"))?;
    let (_, given) = script.split_once(" -- \\\n").context("no options")?;
    for option in given.lines().next().unwrap_or_default().split(' ').filter(|word| word.starts_with("--")) {
        ensure!(options.contains(&format!("\"{option}\" =>")), "the bench {bench} has no option {option}");
    }
    let without = std::process::Command::new(root().join("proxy/train")).output()?;
    ensure!(without.status.code() == Some(2) && without.stderr.starts_with(b"usage: "), "{without:?}");
    Ok(())
}

fn programs_are_packed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let programs = folder.path().join("programs");
    std::fs::create_dir(&programs)?;
    for program in ["meshctl", "mesh-proxy", "mesh-control"] {
        let path = programs.join(program);
        let ourselves = std::env::current_exe()?;
        std::fs::write(&path, format!("#!/bin/bash\nexec -a {program} '{}' \"$@\"\n", ourselves.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    }
    let pack = |out: &str| -> Result<String> {
        let mut pack = Command::new(root().join(".ci/package"));
        pack.args([programs.as_os_str(), "x86_64-test".as_ref(), folder.path().join(out).as_os_str()]);
        pack.env("SOURCE_DATE_EPOCH", "1700000000");
        run_with_input(pack, "")?.ok()?;
        Ok(std::fs::read_to_string(folder.path().join(out).join("SHA256SUMS-x86_64-test"))?)
    };
    let sums = pack("once")?;
    ensure!(sums.lines().count() == 3, "{sums}");
    ensure!(pack("again")? == sums, "packed twice, it is not the same");
    let mut verify = Command::new("sha256sum");
    verify.args(["--check", "SHA256SUMS-x86_64-test"]).current_dir(folder.path().join("again"));
    run_with_input(verify, "")?.ok()?;
    let name = format!("meshctl-{VERSION}-x86_64-test");
    let mut list = Command::new("tar");
    list.arg("-tvf").arg(folder.path().join("once").join(format!("{name}.tar.gz")));
    let listed = run_with_input(list, "")?.ok()?.stdout;
    for (mode, file) in [
        ("-rwxr-xr-x 0/0", "bin/meshctl"),
        ("-rw-r--r-- 0/0", "LICENSE"),
        ("-rw-r--r-- 0/0", "share/man/man1/meshctl.1"),
        ("-rw-r--r-- 0/0", "share/man/man1/meshctl-sandbox-up.1"),
        ("-rw-r--r-- 0/0", "share/bash-completion/completions/meshctl"),
        ("-rw-r--r-- 0/0", "share/zsh/site-functions/_meshctl"),
        ("-rw-r--r-- 0/0", "share/fish/vendor_completions.d/meshctl.fish"),
    ] {
        let end = format!(" {name}/{file}");
        ensure!(
            listed.lines().any(|line| line.starts_with(mode) && line.ends_with(&end)),
            "no {file}, {mode}:\n{listed}"
        );
    }
    Ok(())
}
