//! The plugin's place in the node's network configuration: behind all plugins of the list that the container runtime
//! uses, which is the first by name. Everything else in the file stays; other programs may rewrite it at any time, and
//! then the plugin is put back.

use crate::limits;
use anyhow::{Context, bail};
use mesh_api::cni::Plugin;
use mesh_api::names;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A node's files of networks.
pub struct Node {
    conf: PathBuf,
    program: PathBuf,
    /// The plugin's program as it was put there: what it is brought back from if it goes.
    copy: File,
    plugin: Plugin,
}

impl Node {
    /// Opens the directories of configurations and of programs.
    pub fn open(conf: &Path, bin: &Path, plugin: Plugin) -> anyhow::Result<Self> {
        let program = bin.join(names::CNI_PLUGIN);
        let copy = File::open(&program).with_context(|| {
            format!(
                "the network plugin is not at {}\nhint: the init container `mesh-proxy cni-install` puts it there",
                program.display()
            )
        })?;
        Ok(Self { conf: conf.to_owned(), program, copy, plugin })
    }

    /// Sees that the plugin is in place.
    pub fn keep(&mut self) -> anyhow::Result<()> {
        if !self.program.exists() {
            let what = || format!("cannot bring the network plugin back to {}", self.program.display());
            restore(&self.copy, &self.program).with_context(what)?;
            tracing::warn!(path = %self.program.display(), "the network plugin was gone and is brought back");
        }
        let Some((path, text)) = first(&self.conf)? else {
            bail!(
                "there is no network configuration in {} yet: the cluster's own network plugin writes it (the value \
                 cni.conf_dir says where)",
                self.conf.display()
            );
        };
        if path.extension().is_none_or(|extension| extension != "conflist") {
            bail!(
                "{} configures one plugin alone, behind which none can stand\nhint: let the cluster's network plugin write a \
                 .conflist",
                path.display()
            );
        }
        if let Some(new) = with(&text, &self.plugin).with_context(|| path.display().to_string())? {
            replace(&path, &text, &new)?;
            tracing::info!(path = %path.display(), "the network plugin stands in the node's network configuration");
        }
        Ok(())
    }

    /// Takes the plugin away, from wherever it is.
    pub fn leave(&mut self) -> anyhow::Result<()> {
        for (path, text) in files(&self.conf)? {
            if let Some(new) = without(&text) {
                replace(&path, &text, &new)?;
            }
        }
        match fs::remove_file(&self.program) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.program.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The list with the plugin at its end; `None` if it stands there already, and nowhere else.
pub fn with(text: &str, plugin: &Plugin) -> anyhow::Result<Option<String>> {
    let mut list: Value = serde_json::from_str(text).context("it is not JSON")?;
    let own = serde_json::to_value(plugin).context("the plugin's entry cannot be written")?;
    let Some(plugins) = list.get_mut("plugins").and_then(Value::as_array_mut) else {
        bail!("it has no list of plugins")
    };
    let is_ours = |entry: &Value| entry["type"] == names::CNI_PLUGIN;
    if plugins.last() == Some(&own) && plugins.iter().filter(|entry| is_ours(entry)).count() == 1 {
        return Ok(None);
    }
    plugins.retain(|entry| !is_ours(entry));
    if plugins.is_empty() {
        bail!("no other plugin stands in it that gives pods their network");
    }
    plugins.push(own);
    Ok(Some(format!("{list:#}\n")))
}

/// The list without the plugin; `None` if it does not stand there.
pub fn without(text: &str) -> Option<String> {
    let mut list: Value = serde_json::from_str(text).ok()?;
    let plugins = list.get_mut("plugins")?.as_array_mut()?;
    let before = plugins.len();
    plugins.retain(|entry| entry["type"] != names::CNI_PLUGIN);
    (plugins.len() < before).then(|| format!("{list:#}\n"))
}

/// The configuration that the runtime uses: the first by name of those that can be one.
fn first(folder: &Path) -> anyhow::Result<Option<(PathBuf, String)>> {
    let usable = |text: &str| {
        serde_json::from_str::<Value>(text).is_ok_and(|conf| {
            conf["plugins"].as_array().is_some_and(|plugins| !plugins.is_empty()) || conf["type"].is_string()
        })
    };
    Ok(files(folder)?.into_iter().find(|(_, text)| usable(text)))
}

/// All files that may be configurations, by name, with their text.
fn files(folder: &Path) -> anyhow::Result<Vec<(PathBuf, String)>> {
    let context = || format!("cannot read the node's network configurations in {}", folder.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(context)?.take(limits::CNI_FILES) {
        let path = entry.with_context(context)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("conf" | "conflist" | "json")) {
            paths.push(path);
        }
    }
    paths.sort();
    // What goes meanwhile or is no text is no configuration.
    Ok(paths.into_iter().filter_map(|path| read(&path).ok().map(|text| (path, text))).collect())
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(limits::CNI_CONF_BYTES + 1).read_to_string(&mut text)?;
    match text.len() as u64 > limits::CNI_CONF_BYTES {
        true => Err(io::Error::other("too long")),
        false => Ok(text),
    }
}

/// Writes a file anew in one step, unless somebody else has changed it since it was read.
fn replace(path: &Path, old: &str, new: &str) -> anyhow::Result<()> {
    let context = || format!("cannot rewrite {}", path.display());
    // No name that a runtime reads.
    let beside = path.with_file_name(format!(".{}.new", names::CNI_PLUGIN));
    fs::write(&beside, new).with_context(context)?;
    let mode = fs::metadata(path).with_context(context)?.permissions();
    fs::set_permissions(&beside, mode).with_context(context)?;
    File::open(&beside).and_then(|file| file.sync_all()).with_context(context)?;
    if read(path).with_context(context)? != old {
        let _ = fs::remove_file(&beside);
        bail!("{} is being changed by somebody else; it is looked at again", path.display());
    }
    fs::rename(&beside, path).with_context(context)
}

/// Puts a program back in one step.
fn restore(copy: &File, program: &Path) -> io::Result<()> {
    let beside = program.with_file_name(format!(".{}.new", names::CNI_PLUGIN));
    let (mut from, mut to) = (copy, File::create(&beside)?);
    // It may have been read before.
    from.rewind()?;
    io::copy(&mut from, &mut to)?;
    to.set_permissions(fs::Permissions::from_mode(0o755))?;
    to.sync_all()?;
    // A program that is open for writing cannot be run.
    drop(to);
    fs::rename(&beside, program)
}
