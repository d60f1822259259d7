//! The sandbox's context in the user's own kubeconfig, for those who want it there (`up --set-context`).

use crate::error::{Context, Error, Result};
use kube::config::Kubeconfig;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Adds the context of a sandbox's kubeconfig to the user's and makes it the current one; says where, and its name.
pub fn set(sandbox: &Path) -> Result<(PathBuf, String)> {
    let from = Kubeconfig::read_from(sandbox).during(|| "read the sandbox's kubeconfig")?;
    let context = from.current_context.clone().ok_or_else(|| Error::new("the sandbox's kubeconfig has no context"))?;
    let file = users_file().ok_or_else(|| Error::new("neither $KUBECONFIG nor $HOME is set"))?;
    let user = read(&file)?;
    write(&file, &merged(user, from))?;
    Ok((file, context))
}

/// Takes a sandbox's context out of the user's kubeconfig, if it is there.
pub fn forget(context: &str) -> Result<()> {
    let Some(file) = users_file().filter(|file| file.exists()) else { return Ok(()) };
    let user = read(&file)?;
    match without(user, context) {
        Some(user) => write(&file, &user),
        None => Ok(()),
    }
}

/// The context that a sandbox's kubeconfig names.
pub fn name_in(sandbox: &Path) -> Option<String> {
    Kubeconfig::read_from(sandbox).ok()?.current_context
}

fn users_file() -> Option<PathBuf> {
    let listed =
        std::env::var_os("KUBECONFIG").and_then(|list| std::env::split_paths(&list).find(|p| p != Path::new("")));
    listed.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".kube/config")))
}

fn read(file: &Path) -> Result<Kubeconfig> {
    if !file.exists() {
        return Ok(Kubeconfig::default());
    }
    let text = std::fs::read_to_string(file).during(|| format!("read {}", file.display()))?;
    Kubeconfig::from_yaml(&text).during(|| format!("read {}", file.display()))
}

/// Writes beside and renames, so that nobody ever sees half a file; it holds keys, so it is for its owner only.
fn write(file: &Path, config: &Kubeconfig) -> Result<()> {
    let tried = || format!("write {}", file.display());
    let text = serde_saphyr::to_string(config).during(tried)?;
    let folder = file.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).during(tried)?;
    let mut beside = tempfile::NamedTempFile::new_in(folder).during(tried)?;
    beside.write_all(text.as_bytes()).during(tried)?;
    beside.persist(file).during(tried)?;
    Ok(())
}

fn merged(mut user: Kubeconfig, sandbox: Kubeconfig) -> Kubeconfig {
    let named = |name: &str| sandbox.contexts.iter().any(|context| context.name == name);
    user.contexts.retain(|context| !named(&context.name));
    user.clusters.retain(|known| !sandbox.clusters.iter().any(|new| new.name == known.name));
    user.auth_infos.retain(|known| !sandbox.auth_infos.iter().any(|new| new.name == known.name));
    user.contexts.extend(sandbox.contexts);
    user.clusters.extend(sandbox.clusters);
    user.auth_infos.extend(sandbox.auth_infos);
    user.current_context = sandbox.current_context;
    user.api_version = user.api_version.or(sandbox.api_version);
    user.kind = user.kind.or(sandbox.kind);
    user
}

/// The kubeconfig without a context and what only it used; none if it had no such context.
fn without(mut user: Kubeconfig, context: &str) -> Option<Kubeconfig> {
    let at = user.contexts.iter().position(|known| known.name == context)?;
    let gone = user.contexts.remove(at).context;
    if let Some(gone) = gone {
        let rest: Vec<_> = user.contexts.iter().filter_map(|context| context.context.as_ref()).collect();
        let cluster_used = rest.iter().any(|context| context.cluster == gone.cluster);
        let user_used = rest.iter().any(|context| context.user == gone.user);
        user.clusters.retain(|known| cluster_used || known.name != gone.cluster);
        user.auth_infos.retain(|known| user_used || Some(&known.name) != gone.user.as_ref());
    }
    if user.current_context.as_deref() == Some(context) {
        user.current_context = None;
    }
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(name: &str, server: &str) -> Kubeconfig {
        Kubeconfig::from_yaml(&format!(
            "{{apiVersion: v1, kind: Config, current-context: {name}, \
             contexts: [{{name: {name}, context: {{cluster: {name}, user: {name}}}}}], \
             clusters: [{{name: {name}, cluster: {{server: '{server}'}}}}], users: [{{name: {name}, user: {{}}}}]}}"
        ))
        .unwrap()
    }

    #[test]
    fn a_sandbox_comes_and_goes_without_touching_the_rest() {
        let both = merged(config("work", "https://w"), config("meshctl-default", "https://a"));
        assert_eq!((both.contexts.len(), both.current_context.as_deref()), (2, Some("meshctl-default")));
        let again = merged(both, config("meshctl-default", "https://b"));
        assert_eq!((again.clusters.len(), again.contexts.len(), again.auth_infos.len()), (2, 2, 2));
        let servers: Vec<_> = again.clusters.iter().filter_map(|c| c.cluster.as_ref()?.server.clone()).collect();
        assert_eq!(servers, ["https://w", "https://b"]);
        let left = without(again, "meshctl-default").unwrap();
        assert_eq!((left.clusters.len(), left.contexts.len(), left.auth_infos.len()), (1, 1, 1));
        assert_eq!(left.current_context, None);
        assert!(without(left, "meshctl-default").is_none());
    }

    #[test]
    fn files_are_written_whole_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kube/config");
        write(&file, &config("a", "https://a")).unwrap();
        assert_eq!(read(&file).unwrap().current_context.as_deref(), Some("a"));
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}
