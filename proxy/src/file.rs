//! `--config FILE`: a proxy without a control plane.
//!
//! The file is YAML (hence also JSON) in the form of [`FileConfig`]. It and the certificates it names are looked at
//! every second; a change that cannot be used is reported with its place and the last good state stays in use.

use crate::limits;
use crate::proxy::{Defaults, Proxy};
use crate::state;
use crate::tls::Current;
use anyhow::{Context, bail, ensure};
use mesh_api::FileConfig;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// What a file says, ready for use.
#[derive(Debug)]
pub struct Loaded {
    config: FileConfig,
    credentials: Option<Current>,
}

/// Reads and checks the file and everything it names.
pub fn load(path: &Path) -> anyhow::Result<Loaded> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: FileConfig =
        serde_saphyr::from_str(&text).with_context(|| format!("{} is not valid", path.display()))?;
    check(&config).with_context(|| format!("{} is not valid", path.display()))?;
    let credentials = match &config.identity {
        None => None,
        Some(identity) => {
            let read = |p: &PathBuf| std::fs::read_to_string(p).with_context(|| format!("cannot read {}", p.display()));
            let (chain, key, anchors) = (read(&identity.certificate)?, read(&identity.key)?, read(&identity.anchors)?);
            let current = Current::from_pem(&chain, &key, &anchors)
                .with_context(|| format!("the identity in {} cannot be used", identity.certificate.display()))?;
            Some(current)
        }
    };
    Ok(Loaded { config, credentials })
}

/// Puts what a file says into use.
pub fn apply(proxy: &Proxy, loaded: Loaded) {
    let FileConfig { identity: _, inbound, destinations, inbound_default, outbound_default } = loaded.config;
    proxy.credentials.set(loaded.credentials);
    proxy.state.set_inbound(inbound);
    proxy.state.replace(destinations);
    *proxy.defaults.lock() = Defaults { inbound: inbound_default, outbound: outbound_default };
}

/// Follows changes of the file, for ever.
pub async fn follow(proxy: Arc<Proxy>, path: PathBuf) {
    let mut seen = stamps(&path);
    loop {
        tokio::time::sleep(limits::FILE_POLL).await;
        let now = stamps(&path);
        if now == seen {
            continue;
        }
        seen = now;
        match load(&path) {
            Ok(loaded) => {
                apply(&proxy, loaded);
                tracing::info!(path = %path.display(), "configuration reloaded");
            }
            Err(error) => tracing::warn!("{error:#}; the configuration stays as it was"),
        }
    }
}

fn check(config: &FileConfig) -> anyhow::Result<()> {
    let mut addresses = HashSet::new();
    for (at, entry) in config.destinations.iter().enumerate() {
        ensure!(addresses.insert(entry.address), "destinations[{at}]: {} is listed twice", entry.address);
        if let Err(reason) = state::validate(&entry.endpoints) {
            bail!("destinations[{at}].endpoints: {reason}");
        }
    }
    ensure!(config.destinations.len() <= limits::MAX_TARGETS, "destinations: more than {}", limits::MAX_TARGETS);
    if let Some(default) = config.outbound_default {
        ensure!(addresses.contains(&default), "outbound_default: {default} is none of the destinations");
    }
    Ok(())
}

/// Times and sizes of the file and of the files it names, as far as they can be had.
fn stamps(path: &Path) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |path: &Path| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    };
    let mut all = vec![stamp(path)];
    let config: Option<FileConfig> = std::fs::read_to_string(path).ok().and_then(|t| serde_saphyr::from_str(&t).ok());
    if let Some(identity) = config.and_then(|c| c.identity) {
        all.extend([&identity.certificate, &identity.key, &identity.anchors].map(|p| stamp(p)));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.yaml");
        std::fs::write(&path, text).unwrap();
        format!("{:#}", load(&path).unwrap_err())
    }

    #[test]
    fn a_bad_file_is_refused_with_its_place() {
        let unknown = error_of("inbound:\n  ports:\n    80: {protocol: smoke}\n");
        assert!(unknown.contains("line 3") && unknown.contains("smoke"), "{unknown}");
        let twice = "{address: '10.0.0.1:80', destination: {}, endpoints: []}";
        let error = error_of(&format!("destinations: [{twice}, {twice}]"));
        assert!(error.contains("destinations[1]"), "{error}");
        let error = error_of("outbound_default: 10.0.0.1:80");
        assert!(error.contains("none of the destinations"), "{error}");
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
