//! A pod's volumes on the node: directories on the sandbox's own tmpfs, filled from the API and kept current.

use super::cni;
use super::environment::{Contents, Reference, Subject};
use super::payload::{self, Payload, TokenWish};
use super::spawner::Bind;
use anyhow::Context as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret, ServiceAccount, Volume};
use kube::api::PostParams;
use kube::{Api, Client};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// Where containers find the credentials for the API.
const API_ACCESS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The config map every namespace has with the cluster's authority.
const ROOT_CA: &str = "kube-root-ca.crt";
/// Tokens are replaced when less than this part of their life is left, in percent.
const TOKEN_LEFT_PERCENT: i32 = 20;
/// And at the latest after this time.
const TOKEN_MAX_AGE: SignedDuration = SignedDuration::from_hours(24);

/// A pod's volumes.
pub(super) struct Volumes {
    client: Client,
    /// The cluster's authority, for namespaces whose config map isn't there yet.
    ca: String,
    /// Of the node's own file system.
    root: PathBuf,
    folder: PathBuf,
    tokens: BTreeMap<TokenWish, Token>,
    published: HashMap<String, Payload>,
}

struct Token {
    text: String,
    replace_at: Timestamp,
}

impl Volumes {
    pub(super) fn new(client: Client, ca: String, root: PathBuf, folder: PathBuf) -> Self {
        Self { client, ca, root, folder, tokens: BTreeMap::new(), published: HashMap::new() }
    }

    /// Makes what isn't there and renews what has changed.
    pub(super) async fn refresh(&mut self, subject: &Subject<'_>, now: Timestamp) -> anyhow::Result<()> {
        let Some(spec) = &subject.pod.spec else { return Ok(()) };
        let group = spec.security_context.as_ref().and_then(|context| context.fs_group).map(|group| group as u32);
        for volume in spec.volumes.iter().flatten() {
            let filled = self.fill(subject, volume, group, now).await;
            filled.with_context(|| format!("MountVolume.SetUp failed for volume \"{}\"", volume.name))?;
        }
        Ok(())
    }

    /// When the next token must be replaced.
    pub(super) fn refresh_at(&self) -> Option<Timestamp> {
        self.tokens.values().map(|token| token.replace_at).min()
    }

    async fn fill(
        &mut self,
        subject: &Subject<'_>,
        volume: &Volume,
        group: Option<u32>,
        now: Timestamp,
    ) -> anyhow::Result<()> {
        let folder = self.folder.join(&volume.name);
        if let Some(empty) = &volume.empty_dir {
            if !folder.exists() {
                let limit = empty
                    .size_limit
                    .as_ref()
                    .map(|q| q.0.as_str())
                    .filter(|_| empty.medium.as_deref() == Some("Memory"));
                make_empty(&folder, limit, group)?;
            }
            return Ok(());
        }
        if let Some(host) = &volume.host_path {
            let path = cni::host(&self.root, &host.path);
            return host_path(&path, host.type_.as_deref().unwrap_or_default());
        }
        if !payload::is_made_of_objects(volume) {
            anyhow::bail!(
                "this kind of volume is not supported here; use configMap, secret, projected, downwardAPI, emptyDir or hostPath"
            );
        }
        let namespace = subject.pod.metadata.namespace.as_deref().unwrap_or("default");
        let contents = fetch(&self.client, namespace, &payload::references(volume), &self.ca).await?;
        self.renew_tokens(subject.pod, namespace, &payload::token_wishes(volume), now).await?;
        let tokens = self.tokens.iter().map(|(wish, token)| (wish.clone(), token.text.clone())).collect();
        let files = payload::payload(subject, volume, &contents, &tokens).map_err(anyhow::Error::msg)?;
        if self.published.get(&volume.name) != Some(&files) {
            fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
            payload::publish(&folder, &files, group)?;
            self.published.insert(volume.name.clone(), files);
        }
        Ok(())
    }

    async fn renew_tokens(
        &mut self,
        pod: &Pod,
        namespace: &str,
        wishes: &[TokenWish],
        now: Timestamp,
    ) -> anyhow::Result<()> {
        for wish in wishes {
            if self.tokens.get(wish).is_some_and(|token| token.replace_at > now) {
                continue;
            }
            let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref()).unwrap_or("default");
            let request = TokenRequest {
                spec: TokenRequestSpec {
                    audiences: wish.audience.iter().cloned().collect(),
                    expiration_seconds: Some(wish.seconds),
                    bound_object_ref: Some(BoundObjectReference {
                        api_version: Some("v1".into()),
                        kind: Some("Pod".into()),
                        name: pod.metadata.name.clone(),
                        uid: pod.metadata.uid.clone(),
                    }),
                },
                ..TokenRequest::default()
            };
            let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
            let answer = accounts
                .create_token_request(account, &PostParams::default(), &request)
                .await
                .with_context(|| format!("asking for a token of the service account {namespace}/{account}"))?;
            let status = answer.status.context("the API answered a token request without a token")?;
            let replace_at = replace_at(now, status.expiration_timestamp.0);
            self.tokens.insert(wish.clone(), Token { text: status.token, replace_at });
        }
        Ok(())
    }

    /// What a container mounts, parents before what lies in them.
    pub(super) fn binds(
        &self,
        pod: &Pod,
        container: &Container,
        expand: impl Fn(&str) -> String,
    ) -> anyhow::Result<Vec<Bind>> {
        let mut binds = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
            let volume = volumes.clone().find(|volume| volume.name == mount.name);
            let volume = volume.with_context(|| format!("there is no volume \"{}\"", mount.name))?;
            let mut source = match &volume.host_path {
                Some(host) => cni::host(&self.root, &host.path),
                None => self.folder.join(&volume.name),
            };
            let sub = mount.sub_path_expr.as_deref().map(&expand).or_else(|| mount.sub_path.clone());
            if let Some(sub) = sub.filter(|sub| !sub.is_empty()) {
                source = inside(&source, &sub, volume)?;
            }
            let read_only = mount.read_only == Some(true) || payload::is_made_of_objects(volume);
            binds.push(Bind { source, target: mount.mount_path.clone(), read_only });
        }
        binds.sort_by_key(|bind| Path::new(&bind.target).components().count());
        Ok(binds)
    }
}

/// The place of a `subPath` in a volume, made if it isn't there.
fn inside(root: &Path, sub: &str, volume: &Volume) -> anyhow::Result<PathBuf> {
    let plain = Path::new(sub).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    anyhow::ensure!(plain, "subPath \"{sub}\" leads out of the volume");
    let path = root.join(sub);
    if !path.exists() {
        anyhow::ensure!(!payload::is_made_of_objects(volume), "volume \"{}\" has no \"{sub}\"", volume.name);
        fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    }
    let real = path.canonicalize().with_context(|| format!("following {}", path.display()))?;
    let root = root.canonicalize().with_context(|| format!("following {}", root.display()))?;
    anyhow::ensure!(real.starts_with(&root), "subPath \"{sub}\" leads out of the volume");
    Ok(real)
}

fn make_empty(folder: &Path, memory_limit: Option<&str>, group: Option<u32>) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    if let Some(bytes) = memory_limit.and_then(super::environment::bytes) {
        let options = format!("mode=777,size={bytes}");
        nix::mount::mount(Some("tmpfs"), folder, Some("tmpfs"), nix::mount::MsFlags::empty(), Some(options.as_str()))
            .context("mounting a limited emptyDir")?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    payload::open_to_group(folder, group, mode);
    Ok(())
}

fn host_path(path: &Path, kind: &str) -> anyhow::Result<()> {
    let meta = fs::metadata(path);
    let shown = path.display();
    match (kind, &meta) {
        ("DirectoryOrCreate", Err(_)) => fs::create_dir_all(path).with_context(|| format!("making {shown}")),
        ("FileOrCreate", Err(_)) => fs::write(path, "").with_context(|| format!("making {shown}")),
        (_, Err(error)) => anyhow::bail!("hostPath {shown}: {error}"),
        ("Directory" | "DirectoryOrCreate", Ok(meta)) if !meta.is_dir() => {
            anyhow::bail!("hostPath type check failed: {shown} is not a directory")
        }
        ("File" | "FileOrCreate", Ok(meta)) if !meta.is_file() => {
            anyhow::bail!("hostPath type check failed: {shown} is not a file")
        }
        _ => Ok(()),
    }
}

/// When to replace a token got now.
fn replace_at(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now);
    let wait = (life - life * TOKEN_LEFT_PERCENT / 100).min(TOKEN_MAX_AGE);
    now.checked_add(wait).unwrap_or(expires)
}

/// Reads config maps and secrets.
pub(super) async fn fetch(
    client: &Client,
    namespace: &str,
    references: &[Reference],
    ca: &str,
) -> anyhow::Result<Contents> {
    let mut contents = Contents::new();
    for reference in references {
        let content = match reference {
            Reference::ConfigMap(name) => {
                let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
                let map = maps.get_opt(name).await.with_context(|| format!("reading the config map {name}"))?;
                let content = map.map(|map| {
                    let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
                    let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
                    text.chain(binary).collect::<BTreeMap<_, _>>()
                });
                let own = || (name == ROOT_CA).then(|| BTreeMap::from([("ca.crt".to_owned(), ca.as_bytes().to_vec())]));
                content.or_else(own)
            }
            Reference::Secret(name) => {
                let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
                let secret = secrets.get_opt(name).await.with_context(|| format!("reading the secret {name}"))?;
                secret.map(|secret| secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect())
            }
        };
        contents.insert(reference.clone(), content);
    }
    Ok(contents)
}

/// The pod with the volume through which containers reach the API, where it is wanted and missing.
pub(super) fn with_api_access(pod: &Pod, account_wants: Option<bool>) -> Pod {
    let mut pod = pod.clone();
    let Some(spec) = &mut pod.spec else { return pod };
    if !spec.automount_service_account_token.or(account_wants).unwrap_or(true) {
        return pod;
    }
    let name = "kube-api-access";
    let all = spec.init_containers.iter_mut().flatten().chain(spec.containers.iter_mut());
    let mut added = false;
    for container in all {
        let mounts = container.volume_mounts.get_or_insert_default();
        if mounts.iter().any(|mount| mount.mount_path.trim_end_matches('/') == API_ACCESS) {
            continue;
        }
        added = true;
        mounts.push(k8s_openapi::api::core::v1::VolumeMount {
            name: name.to_owned(),
            mount_path: API_ACCESS.to_owned(),
            read_only: Some(true),
            ..Default::default()
        });
    }
    let volume = serde_json::from_value(serde_json::json!({
        "name": name,
        "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
            {"configMap": {"name": ROOT_CA, "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
        ]},
    }));
    if let (true, Ok(volume)) = (added, volume) {
        spec.volumes.get_or_insert_default().push(volume);
    }
    pod
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mounts(spec: serde_json::Value, account: Option<bool>) -> usize {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let pod = with_api_access(&pod, account);
        let spec = pod.spec.unwrap();
        let mounts = spec.containers.iter().flat_map(|c| c.volume_mounts.iter().flatten()).count();
        assert_eq!(spec.volumes.map_or(0, |v| v.len()) > 0, mounts > 0);
        mounts
    }

    #[test]
    fn access_to_the_api_is_given_where_wanted() {
        let plain = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        assert_eq!(mounts(plain.clone(), None), 2);
        assert_eq!(mounts(plain.clone(), Some(false)), 0);
        let mut refuses = plain.clone();
        refuses["automountServiceAccountToken"] = json!(false);
        assert_eq!(mounts(refuses, None), 0);
        let mut has = plain;
        has["volumes"] = json!([{"name": "x", "emptyDir": {}}]);
        has["containers"][0]["volumeMounts"] = json!([{"name": "x", "mountPath": API_ACCESS}]);
        assert_eq!(mounts(has, None), 2, "one of them the pod's own");
    }

    #[test]
    fn tokens_are_replaced_in_time() {
        let now = Timestamp::constant(0, 0);
        let after = |seconds| replace_at(now, Timestamp::constant(seconds, 0)).as_second();
        assert_eq!((after(600), after(3600), after(7 * 86400)), (480, 2880, 86400));
    }
}
