//! What image names mean here: programs of this machine.

use crate::lifecycle::Image;
use parking_lot::RwLock;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images that are this program under another name.
const BUILT_IN: [(&str, &str); 3] =
    [("meshctl/proxy", "mesh-proxy"), ("meshctl/control", "mesh-control"), ("meshctl/demo", "mesh-demo")];
/// Images besides the built-in ones.
const MAX_ADDED: usize = 1000;

/// What a container of an image runs.
#[derive(Debug, Clone)]
pub(crate) struct Entrypoint {
    /// The program on the host.
    pub(crate) program: PathBuf,
    /// The command line's first word.
    pub(crate) argv0: String,
    /// The program's file, for programs that must run even if their path now leads elsewhere.
    pub(crate) file: Option<Arc<OwnedFd>>,
}

/// The images of this node; clones share them.
#[derive(Clone)]
pub(crate) struct Images {
    added: Arc<RwLock<BTreeMap<String, Image>>>,
    this: PathBuf,
    this_file: Arc<OwnedFd>,
}

impl Images {
    /// The built-in images, run from the program of this process.
    pub(crate) fn new() -> std::io::Result<Self> {
        let this = std::env::current_exe()?;
        // Opened now: a rebuild may put another program at its path.
        let this_file = Arc::new(OwnedFd::from(File::open("/proc/self/exe")?));
        Ok(Self { added: Arc::default(), this, this_file })
    }

    /// Adds or replaces one.
    pub(crate) fn add(&self, image: Image) -> Result<(), String> {
        check(&image.program)?;
        let name = normalize(&image.name).ok_or_else(|| format!("{:?} is not a name for an image", image.name))?;
        let mut added = self.added.write();
        if added.len() >= MAX_ADDED && !added.contains_key(&name) {
            return Err(format!("there are {MAX_ADDED} images already; remove one first"));
        }
        added.insert(name, image);
        Ok(())
    }

    /// Removes one; false if there was none of this name.
    pub(crate) fn remove(&self, name: &str) -> bool {
        normalize(name).is_some_and(|name| self.added.write().remove(&name).is_some())
    }

    /// All of them.
    pub(crate) fn list(&self) -> Vec<Image> {
        let built_in = BUILT_IN.iter().map(|(name, argv0)| Image {
            name: format!("{name}:{}", env!("CARGO_PKG_VERSION")),
            program: self.this.clone(),
            argv0: Some((*argv0).to_owned()),
        });
        built_in.chain(self.added.read().values().cloned()).collect()
    }

    /// What a container of this image runs; `None` if nothing here goes by that name.
    pub(crate) fn find(&self, name: &str) -> Option<Entrypoint> {
        let name = normalize(name)?;
        if let Some(image) = self.added.read().get(&name) {
            let argv0 = image.argv0.clone().unwrap_or_else(|| image.program.display().to_string());
            return Some(Entrypoint { program: image.program.clone(), argv0, file: None });
        }
        let (repository, tag) = name.rsplit_once(':')?;
        let (_, argv0) = BUILT_IN.iter().find(|(name, _)| *name == repository)?;
        (tag == env!("CARGO_PKG_VERSION")).then(|| Entrypoint {
            program: self.this.clone(),
            argv0: (*argv0).to_owned(),
            file: Some(Arc::clone(&self.this_file)),
        })
    }
}

/// One spelling for names that mean the same: without the default registry and with a tag.
fn normalize(name: &str) -> Option<String> {
    let name = name.trim();
    let name = name.strip_prefix("docker.io/").or_else(|| name.strip_prefix("index.docker.io/")).unwrap_or(name);
    let name = name.strip_prefix("library/").unwrap_or(name);
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let valid = |c: char| c.is_ascii_alphanumeric() || "._-/:".contains(c);
    if name.is_empty() || name.len() > 255 || !name.chars().all(valid) {
        return None;
    }
    let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':'));
    Some(if tagged { name.to_owned() } else { format!("{name}:latest") })
}

fn check(program: &Path) -> Result<(), String> {
    use std::os::unix::fs::PermissionsExt as _;
    if !program.is_absolute() {
        return Err(format!("{} is not an absolute path", program.display()));
    }
    let meta = std::fs::metadata(program).map_err(|error| format!("{}: {error}", program.display()))?;
    if !meta.is_file() || meta.permissions().mode() & 0o111 == 0 {
        return Err(format!("{} is not an executable file", program.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_the_same() {
        for (name, expect) in [
            ("nginx", Some("nginx:latest")),
            ("docker.io/library/nginx", Some("nginx:latest")),
            ("nginx:1.27@sha256:abc", Some("nginx:1.27")),
            ("localhost:5000/x", Some("localhost:5000/x:latest")),
            ("docker.io/meshctl/proxy:0.1.0", Some("meshctl/proxy:0.1.0")),
            ("", None),
            ("a b", None),
        ] {
            assert_eq!(normalize(name).as_deref(), expect, "{name}");
        }
    }

    #[test]
    fn added_and_built_in() {
        let images = Images::new().unwrap();
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(images.find(&format!("meshctl/proxy:{version}")).unwrap().argv0, "mesh-proxy");
        assert!(images.find("meshctl/proxy:9.9.9").is_none());
        assert!(images.find("sh").is_none());
        images.add(Image { name: "sh".into(), program: "/bin/sh".into(), argv0: None }).unwrap();
        assert_eq!(images.find("docker.io/sh:latest").unwrap().argv0, "/bin/sh");
        assert!(images.add(Image { name: "x".into(), program: "/etc".into(), argv0: None }).is_err());
        assert!(images.add(Image { name: "x".into(), program: "bin/sh".into(), argv0: None }).is_err());
        assert!(images.remove("sh") && !images.remove("sh"));
    }
}
