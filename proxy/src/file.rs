//! `--config FILE`: a proxy without a control plane.
//!
//! The file is YAML (hence also JSON) in the form of [`FileConfig`]; paths in it are relative to its folder. It and the
//! certificates it names are looked at every second: which file each is and when it last changed in any way, as the kernel
//! tells, so that one written in place, renamed over or reached through links that move (as a mounted ConfigMap does it) is
//! noticed, whatever its modification time says. A change that cannot be used is reported with its place, and the last
//! good state stays in use.

use crate::group;
use crate::limits;
use crate::proxy::{Defaults, Proxy};
use crate::state;
use crate::tls::Current;
use crate::told;
use anyhow::{Context, anyhow, bail, ensure};
use mesh_api::FileConfig;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_saphyr::Spanned;
use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a file says, ready for use.
#[derive(Debug)]
pub struct Loaded {
    config: FileConfig,
    credentials: Option<Current>,
}

impl Loaded {
    /// What it is about, in one line.
    pub fn summary(&self) -> String {
        let endpoints: usize = self.config.destinations.iter().map(|entry| entry.endpoints.len()).sum();
        let identity = self.credentials.as_ref().map_or("no identity".to_owned(), |c| c.identity.to_string());
        format!(
            "{identity}, {} destinations with {endpoints} endpoints, {} inbound ports",
            self.config.destinations.len(),
            self.config.inbound.ports.len()
        )
    }
}

/// Reads and checks the file and everything it names.
pub fn load(path: &Path) -> anyhow::Result<Loaded> {
    let text = read(path)?;
    let config = parse(&text).with_context(|| format!("{} cannot be used", path.display()))?;
    let credentials = match &config.identity {
        None => None,
        Some(identity) => {
            let [chain, key, anchors] =
                [&identity.certificate, &identity.key, &identity.anchors].map(|named| read(&beside(path, named)));
            let current = Current::from_pem(&chain?, &key?, &anchors?)
                .with_context(|| format!("the identity in {} cannot be used", identity.certificate.display()))?;
            Some(current)
        }
    };
    Ok(Loaded { config, credentials })
}

/// Reads and checks the text of a file. Errors name the line and what was expected there.
pub fn parse(text: &str) -> anyhow::Result<FileConfig> {
    let config: FileConfig = serde_saphyr::from_str(text)?;
    check(&config, &serde_saphyr::from_str(text).unwrap_or_default())?;
    Ok(config)
}

fn read(path: &Path) -> anyhow::Result<String> {
    let size = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
    ensure!(size <= limits::FILE_BYTES, "{} has {size} bytes, more than {}", path.display(), limits::FILE_BYTES);
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A path named in the file at `path`.
fn beside(path: &Path, named: &Path) -> PathBuf {
    path.parent().map_or_else(|| named.to_owned(), |folder| folder.join(named))
}

/// Puts what a file says into use.
pub fn apply(proxy: &Proxy, loaded: Loaded) {
    let FileConfig { identity: _, inbound, egress, destinations, inbound_default, outbound_default } = loaded.config;
    proxy.credentials.set(loaded.credentials);
    if let Err(reason) = proxy.state.set_inbound(inbound) {
        tracing::warn!(%reason, "cannot use what is said of arriving traffic; it is treated as before");
    }
    if let Err(reason) = proxy.state.set_egress(egress) {
        tracing::warn!(%reason, "cannot use what is said of leaving traffic; it is treated as before");
    }
    proxy.state.replace(destinations);
    *proxy.defaults.lock() = Defaults { inbound: inbound_default, outbound: outbound_default };
}

/// Follows changes of the file, for ever.
pub async fn follow(proxy: Arc<Proxy>, path: PathBuf) {
    let mut files = Seen::new(path.clone());
    let mut seen = files.look();
    loop {
        tokio::time::sleep(limits::FILE_POLL).await;
        let now = files.look();
        if now == seen {
            continue;
        }
        // Whoever writes several files may be in the middle of it; what is half done is told from what is wrong by
        // looking again.
        tokio::time::sleep(limits::FILE_SETTLE).await;
        if files.look() != now {
            continue;
        }
        seen = now;
        match load(&path) {
            Ok(loaded) => {
                tracing::info!(path = %path.display(), now = %loaded.summary(), "configuration reloaded");
                apply(&proxy, loaded);
            }
            Err(error) => tracing::warn!("{error:#}; the configuration stays as it was"),
        }
    }
}

/// Where in the text things stand that can be wrong although they are well-formed.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Places {
    destinations: Vec<Place>,
    outbound_default: Option<Spanned<IgnoredAny>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Place {
    address: Option<Spanned<IgnoredAny>>,
    endpoints: Option<Spanned<IgnoredAny>>,
}

fn check(config: &FileConfig, places: &Places) -> anyhow::Result<()> {
    let line = |place: Option<&Spanned<IgnoredAny>>| match place.map(|place| place.referenced.line()) {
        Some(line) if line > 0 => format!("line {line}: "),
        _ => String::new(),
    };
    let count = config.destinations.len();
    ensure!(count <= limits::MAX_TARGETS, "destinations: {count} of them, more than {}", limits::MAX_TARGETS);
    state::validate_inbound(&config.inbound).map_err(|reason| anyhow!("inbound.{reason}"))?;
    let mut addresses = HashMap::new();
    for (at, entry) in config.destinations.iter().enumerate() {
        let place = places.destinations.get(at);
        if let Some(first) = addresses.insert(entry.address, at) {
            let line = line(place.and_then(|place| place.address.as_ref()));
            bail!(
                "{line}destinations[{at}].address: {} is also the address of destinations[{first}]; expected every \
                 address once",
                entry.address
            );
        }
        group::validate(&entry.endpoints).map_err(|reason| {
            let line = line(place.and_then(|place| place.endpoints.as_ref()));
            anyhow!("{line}destinations[{at}].endpoints: {reason}; expected IP:PORT of something that listens")
        })?;
        told::validate(entry).map_err(|reason| {
            let line = line(place.and_then(|place| place.address.as_ref()));
            anyhow!("{line}destinations[{at}]: {reason}")
        })?;
    }
    if let Some(default) = config.outbound_default.filter(|default| !addresses.contains_key(default)) {
        let line = line(places.outbound_default.as_ref());
        bail!("{line}outbound_default: {default} is none of the destinations; expected the address of one of them");
    }
    Ok(())
}

/// A state of a file that differs from every other: which file it is, its size, and when it changed, seconds and
/// nanoseconds. Whoever sees it change reads the file a while later ([`limits::FILE_SETTLE`]), so that two writes within a
/// tick of the clock are one.
type Stamp = Option<(u64, u64, u64, (i64, i64))>;

fn stamp(path: &Path) -> Stamp {
    let file = std::fs::metadata(path).ok()?;
    Some((file.dev(), file.ino(), file.len(), (file.ctime(), file.ctime_nsec())))
}

/// What a file and the files it names were like when they were last looked at.
struct Seen {
    path: PathBuf,
    stamp: Stamp,
    /// The files that it names; read out of it only when it has changed.
    named: Vec<PathBuf>,
}

impl Seen {
    fn new(path: PathBuf) -> Self {
        Self { path, stamp: None, named: Vec::new() }
    }

    /// The state of them all.
    fn look(&mut self) -> Vec<Stamp> {
        let now = stamp(&self.path);
        if now != self.stamp {
            self.stamp = now;
            let text = read(&self.path).ok();
            let config: Option<FileConfig> = text.and_then(|text| serde_saphyr::from_str(&text).ok());
            let identity = config.and_then(|config| config.identity);
            let named = identity.map(|identity| [identity.certificate, identity.key, identity.anchors]);
            self.named = named.into_iter().flatten().map(|named| beside(&self.path, &named)).collect();
        }
        [now].into_iter().chain(self.named.iter().map(|path| stamp(path))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn error_of(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, text).unwrap();
        format!("{:#}", load(&path).unwrap_err())
    }

    #[test]
    fn a_change_of_any_file_is_seen_once() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            // Past the kernel's tick: what is written within one has one time.
            std::thread::sleep(Duration::from_millis(20));
            std::fs::write(folder.path().join(name), text).unwrap();
        };
        let identity = |certificate: &str| format!("identity: {{certificate: {certificate}, key: k, anchors: a}}\n");
        ["one", "two", "k", "a"].iter().for_each(|name| write(name, "1"));
        write("proxy.yaml", &identity("one"));
        let mut files = Seen::new(folder.path().join("proxy.yaml"));
        let mut seen = files.look();
        let mut changes = |change: &dyn Fn(), expect: bool| {
            change();
            let now = files.look();
            assert_eq!((now != seen, files.look()), (expect, now.clone()));
            seen = now;
        };
        changes(&|| (), false);
        changes(&|| write("one", "2"), true);
        changes(&|| write("two", "2"), false);
        changes(&|| write("proxy.yaml", &identity("two")), true);
        changes(&|| write("one", "3"), false);
        changes(&|| write("two", "3"), true);
        changes(&|| std::fs::remove_file(folder.path().join("k")).unwrap(), true);
        changes(&|| write("proxy.yaml", "nonsense: ["), true);
    }

    #[test]
    fn a_bad_file_is_refused_with_its_place() {
        let unknown = error_of("inbound:\n  ports:\n    80: {protocol: smoke}\n");
        assert!(unknown.contains("line 3") && unknown.contains("smoke") && unknown.contains("http1"), "{unknown}");
        assert!(unknown.contains("proxy.yaml"), "{unknown}");
        let twice = "- {address: '10.0.0.1:80', destination: {}, endpoints: []}";
        let error = error_of(&format!("destinations:\n{twice}\n{twice}\n"));
        assert!(error.contains("line 3: destinations[1].address"), "{error}");
        let error = error_of("# first\n\noutbound_default: 10.0.0.1:80");
        assert!(error.contains("line 3: outbound_default") && error.contains("none of the destinations"), "{error}");
        let workload = "{namespace: a, kind: deployment, name: b}";
        let error = error_of(&format!(
            "destinations:\n- address: 10.0.0.1:80\n  destination: {{}}\n  endpoints:\n  - {{address: '10.0.0.2:0', workload: {workload}, pod: p}}\n"
        ));
        assert!(error.contains("line 5: destinations[0].endpoints: 10.0.0.2:0"), "{error}");
        let error = error_of("outbund_default: 10.0.0.1:80");
        assert!(error.contains("line 1") && error.contains("outbound_default"), "{error}");
        let error = error_of("identity: {certificate: /nowhere/a, key: /nowhere/b, anchors: /nowhere/c}");
        assert!(error.contains("/nowhere/a"), "{error}");
    }

    #[test]
    fn json_is_read_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.json");
        std::fs::write(
            &path,
            r#"{"inbound_default": "127.0.0.1:8080", "inbound": {"ports": {"8080": {"protocol": "http1"}}}}"#,
        )
        .unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.config.inbound.ports[&8080].protocol, mesh_api::Protocol::Http1);
    }
}
