//! Files of config map, secret, projected and downward API volumes: what they contain (pure), and how they get into a
//! directory so that readers see either the old or the new set.

use super::environment::{self, Contents, Reference, Subject};
use anyhow::Context as _;
use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, DownwardAPIVolumeFile, KeyToPath, SecretVolumeSource, Volume, VolumeProjection,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path};

/// Mode of files for which none is given.
const DEFAULT_MODE: i32 = 0o644;
/// The link that is switched from one set of files to the next.
const DATA: &str = "..data";

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// Files by path.
pub(super) type Payload = BTreeMap<String, Entry>;

/// A token a volume asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TokenWish {
    pub(super) audience: Option<String>,
    pub(super) seconds: i64,
}

/// A service account token is never valid for less.
const LEAST_TOKEN_SECONDS: i64 = 600;
/// How long a token is valid if nothing else is asked for.
const TOKEN_SECONDS: i64 = 3600;

/// Whether this kind of volume holds files made from the API's objects.
pub(super) fn is_made_of_objects(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

fn projections(volume: &Volume) -> impl Iterator<Item = &VolumeProjection> {
    volume.projected.iter().filter_map(|projected| projected.sources.as_ref()).flatten()
}

/// The objects a volume's files come from.
pub(super) fn references(volume: &Volume) -> Vec<Reference> {
    let mut references = Vec::new();
    references.extend(volume.config_map.as_ref().map(|s| Reference::ConfigMap(s.name.clone())));
    references.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()).map(Reference::Secret));
    for source in projections(volume) {
        references.extend(source.config_map.as_ref().map(|s| Reference::ConfigMap(s.name.clone())));
        references.extend(source.secret.as_ref().map(|s| Reference::Secret(s.name.clone())));
    }
    references
}

/// The tokens it asks for.
pub(super) fn token_wishes(volume: &Volume) -> Vec<TokenWish> {
    let sources = projections(volume).filter_map(|source| source.service_account_token.as_ref());
    sources
        .map(|token| TokenWish {
            audience: token.audience.clone().filter(|audience| !audience.is_empty()),
            seconds: token.expiration_seconds.unwrap_or(TOKEN_SECONDS).max(LEAST_TOKEN_SECONDS),
        })
        .collect()
}

/// The files of a volume, or what is missing.
pub(super) fn payload(
    subject: &Subject<'_>,
    volume: &Volume,
    contents: &Contents,
    tokens: &BTreeMap<TokenWish, String>,
) -> Result<Payload, String> {
    let mut files = Payload::new();
    if let Some(ConfigMapVolumeSource { name, items, optional, default_mode }) = &volume.config_map {
        let reference = Reference::ConfigMap(name.clone());
        select(&mut files, contents, &reference, items.as_deref(), *optional, *default_mode)?;
    }
    if let Some(SecretVolumeSource { secret_name, items, optional, default_mode }) = &volume.secret {
        let reference = Reference::Secret(secret_name.clone().unwrap_or_default());
        select(&mut files, contents, &reference, items.as_deref(), *optional, *default_mode)?;
    }
    if let Some(source) = &volume.downward_api {
        downward(&mut files, subject, source.items.as_deref().unwrap_or_default(), source.default_mode)?;
    }
    let mode = volume.projected.as_ref().and_then(|projected| projected.default_mode);
    let mut wishes = token_wishes(volume).into_iter();
    for source in projections(volume) {
        if let Some(source) = &source.config_map {
            let reference = Reference::ConfigMap(source.name.clone());
            select(&mut files, contents, &reference, source.items.as_deref(), source.optional, mode)?;
        }
        if let Some(source) = &source.secret {
            let reference = Reference::Secret(source.name.clone());
            select(&mut files, contents, &reference, source.items.as_deref(), source.optional, mode)?;
        }
        if let Some(source) = &source.downward_api {
            downward(&mut files, subject, source.items.as_deref().unwrap_or_default(), mode)?;
        }
        if let Some(source) = &source.service_account_token {
            let token = wishes.next().and_then(|wish| tokens.get(&wish)).ok_or("a token is missing")?;
            insert(&mut files, &source.path, token.clone().into_bytes(), None, mode)?;
        }
    }
    Ok(files)
}

fn select(
    files: &mut Payload,
    contents: &Contents,
    reference: &Reference,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    default_mode: Option<i32>,
) -> Result<(), String> {
    let (kind, name) = match reference {
        Reference::ConfigMap(name) => ("configmap", name),
        Reference::Secret(name) => ("secret", name),
    };
    let Some(content) = contents.get(reference).and_then(Option::as_ref) else {
        return if optional == Some(true) { Ok(()) } else { Err(format!("{kind} \"{name}\" not found")) };
    };
    let Some(items) = items else {
        return content.iter().try_for_each(|(key, value)| insert(files, key, value.clone(), None, default_mode));
    };
    for item in items {
        match content.get(&item.key) {
            Some(value) => insert(files, &item.path, value.clone(), item.mode, default_mode)?,
            None if optional == Some(true) => {}
            None => return Err(format!("{kind} \"{name}\" has no key \"{}\"", item.key)),
        }
    }
    Ok(())
}

fn downward(
    files: &mut Payload,
    subject: &Subject<'_>,
    items: &[DownwardAPIVolumeFile],
    default_mode: Option<i32>,
) -> Result<(), String> {
    for item in items {
        let value = if let Some(field) = &item.field_ref {
            environment::field_value(subject, &field.field_path)?
        } else if let Some(resource) = &item.resource_field_ref {
            let container = resource.container_name.as_deref().unwrap_or_default();
            let divisor = resource.divisor.as_ref().map(|q| q.0.as_str());
            environment::resource_value(subject.pod, container, &resource.resource, divisor)?
        } else {
            continue;
        };
        insert(files, &item.path, value.into_bytes(), item.mode, default_mode)?;
    }
    Ok(())
}

fn insert(
    files: &mut Payload,
    path: &str,
    content: Vec<u8>,
    mode: Option<i32>,
    default_mode: Option<i32>,
) -> Result<(), String> {
    let plain = !path.is_empty() && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || path.starts_with("..") {
        return Err(format!("{path:?} is not a path inside a volume"));
    }
    let mode = mode.or(default_mode).unwrap_or(DEFAULT_MODE) as u32 & 0o777;
    files.insert(path.to_owned(), Entry { content, mode });
    Ok(())
}

/// Puts a set of files in place of the one before, if there was one, at once.
pub(super) fn publish(folder: &Path, files: &Payload, group: Option<u32>) -> anyhow::Result<()> {
    let data = folder.join(DATA);
    let old = fs::read_link(&data).ok();
    let number = old
        .as_ref()
        .and_then(|old| old.to_str()?.strip_prefix("..set-")?.parse::<u64>().ok())
        .map_or(0, |number| number.wrapping_add(1));
    let set = format!("..set-{number}");
    let target = folder.join(&set);
    // Left over from an attempt that failed half way.
    let _ = fs::remove_dir_all(&target);
    fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
    open_to_group(&target, group, 0o755);
    for (path, entry) in files {
        let file = target.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            open_to_group(parent, group, 0o755);
        }
        fs::write(&file, &entry.content).with_context(|| format!("writing {}", file.display()))?;
        let mode = if group.is_some() { entry.mode | (entry.mode & 0o600) >> 3 } else { entry.mode };
        open_to_group(&file, group, mode);
    }
    let fresh = folder.join("..data_new");
    let _ = fs::remove_file(&fresh);
    symlink(&set, &fresh).context("linking a volume's new files")?;
    fs::rename(&fresh, &data).context("switching to a volume's new files")?;
    let names: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &names {
        let link = folder.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link).with_context(|| format!("linking {}", link.display()))?;
        }
    }
    for entry in fs::read_dir(folder).context("listing a volume")?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !names.contains(name.as_ref()) {
            let _ = fs::remove_file(entry.path());
        }
    }
    if let Some(old) = old {
        let _ = fs::remove_dir_all(folder.join(old));
    }
    Ok(())
}

/// Sets mode and, where there is one, group of a file; a group that this user can't give it stays away.
pub(super) fn open_to_group(path: &Path, group: Option<u32>, mode: u32) {
    if let Some(group) = group {
        let _ = std::os::unix::fs::chown(path, None, Some(group));
    }
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn read(volume: serde_json::Value, contents: &Contents) -> Result<Vec<String>, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}})).unwrap();
        let subject =
            Subject { pod: &pod, addresses: super::super::addresses::Addresses::of_pod(7, true), node: "sandbox" };
        let volume: Volume = serde_json::from_value(volume).unwrap();
        let tokens = token_wishes(&volume).into_iter().map(|w| (w.clone(), format!("for {:?}", w.audience))).collect();
        let files = payload(&subject, &volume, contents, &tokens)?;
        let line =
            |(path, e): (&String, &Entry)| format!("{path} {:o} {}", e.mode, String::from_utf8_lossy(&e.content));
        Ok(files.iter().map(line).collect())
    }

    #[test]
    fn volumes_of_all_kinds() {
        let map = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let contents =
            Contents::from([(Reference::ConfigMap("m".into()), Some(map)), (Reference::Secret("gone".into()), None)]);
        let check = |volume, expect: &[&str]| assert_eq!(read(volume, &contents).unwrap(), expect);
        check(json!({"name": "v", "configMap": {"name": "m"}}), &["a 644 1", "b 644 2"]);
        check(
            json!({"name": "v", "configMap": {"name": "m", "defaultMode": 256,
                "items": [{"key": "a", "path": "x/y"}, {"key": "b", "path": "z", "mode": 511}]}}),
            &["x/y 400 1", "z 777 2"],
        );
        check(json!({"name": "v", "secret": {"secretName": "gone", "optional": true}}), &[]);
        check(
            json!({"name": "v", "projected": {"sources": [
                {"configMap": {"name": "m", "items": [{"key": "a", "path": "a"}]}},
                {"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
                {"serviceAccountToken": {"path": "token", "audience": "mesh-identity"}},
            ]}}),
            &["a 644 1", "ns 644 n", "token 644 for Some(\"mesh-identity\")"],
        );
        for (volume, expect) in [
            (json!({"name": "v", "secret": {"secretName": "gone"}}), "secret \"gone\" not found"),
            (
                json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "q", "path": "q"}]}}),
                "configmap \"m\" has no key \"q\"",
            ),
            (
                json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "a", "path": "../q"}]}}),
                "\"../q\" is not a path inside a volume",
            ),
        ] {
            assert_eq!(read(volume, &contents).unwrap_err(), expect);
        }
    }

    #[test]
    fn files_change_together() {
        let folder = tempfile::tempdir().unwrap();
        let files = |list: &[(&str, &str)]| -> Payload {
            list.iter()
                .map(|(path, text)| ((*path).to_owned(), Entry { content: text.as_bytes().to_vec(), mode: 0o640 }))
                .collect()
        };
        let visible = || -> Vec<String> {
            let mut names: Vec<_> =
                fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        publish(folder.path(), &files(&[("a", "1"), ("d/e", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("d/e")).unwrap(), "2");
        assert_eq!(visible(), ["..data", "..set-0", "a", "d"]);
        publish(folder.path(), &files(&[("a", "3"), ("b", "4")]), None).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "3");
        assert_eq!(fs::metadata(folder.path().join("b")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(visible(), ["..data", "..set-1", "a", "b"]);
    }
}
