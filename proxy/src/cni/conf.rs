//! What a container runtime hands to a plugin: the command, the pod, the network's configuration.

use super::{CniError, VERSIONS};
use mesh_api::cni::Plugin;
use serde_json::Value;

/// What the runtime wants (`CNI_COMMAND`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// A pod gets its network.
    Add,
    /// A pod's network goes.
    Del,
    /// Is a pod's network as it should be?
    Check,
    /// Everything of pods that are gone may go.
    Gc,
    /// Can pods get their network?
    Status,
    /// Which versions of the specification are spoken?
    Version,
}

impl Command {
    /// Reads the variable.
    pub fn read(text: Option<String>) -> Result<Self, CniError> {
        match text.as_deref() {
            Some("ADD") => Ok(Self::Add),
            Some("DEL") => Ok(Self::Del),
            Some("CHECK") => Ok(Self::Check),
            Some("GC") => Ok(Self::Gc),
            Some("STATUS") => Ok(Self::Status),
            Some("VERSION") => Ok(Self::Version),
            Some(other) => Err(CniError::environment(format!("CNI_COMMAND={other} is unknown"))),
            None => Err(CniError::environment("CNI_COMMAND is not set: this program is called by a container runtime")),
        }
    }
}

/// Which pod it is about (`CNI_ARGS`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid, where the runtime tells it.
    pub uid: Option<String>,
}

impl Pod {
    /// Reads `A=b;C=d`. What no kubelet started has no pod's name, and is none.
    pub fn read(text: Option<String>) -> Result<Option<Self>, CniError> {
        let text = text.unwrap_or_default();
        let find = |key: &str| {
            let mut pairs = text.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).filter(|value| !value.is_empty())
        };
        match (find("K8S_POD_NAMESPACE"), find("K8S_POD_NAME")) {
            (Some(namespace), Some(name)) => Ok(Some(Self { namespace, name, uid: find("K8S_POD_UID") })),
            (None, None) => Ok(None),
            // Half a name might be a pod's after all.
            _ => Err(CniError::environment("CNI_ARGS names a pod without its namespace, or the other way round")),
        }
    }
}

/// The plugin's configuration, and what the plugins before it did.
#[derive(Clone, Debug)]
pub struct Conf {
    /// Ours.
    pub plugin: Plugin,
    version: String,
    previous: Option<Value>,
}

impl Conf {
    /// Reads the standard input.
    pub fn read(input: &[u8]) -> Result<Self, CniError> {
        let mut conf: Value = serde_json::from_slice(input).map_err(|error| CniError::input(error.to_string()))?;
        let version = conf["cniVersion"].as_str().unwrap_or("0.1.0").to_owned();
        if !VERSIONS.contains(&version.as_str()) {
            let details = format!("cniVersion {version} is none of {}", VERSIONS.join(" "));
            return Err(CniError { code: 1, msg: "incompatible CNI version", details });
        }
        let previous = conf.get_mut("prevResult").map(Value::take).filter(|previous| !previous.is_null());
        let plugin = serde_json::from_value(conf).map_err(|error| CniError::configuration(error.to_string()))?;
        Ok(Self { plugin, version, previous })
    }

    /// What the plugins before this one did, which is also what the runtime gets to know.
    pub fn previous(&self) -> Result<Value, CniError> {
        let Some(Value::Object(mut previous)) = self.previous.clone() else {
            return Err(CniError::configuration(
                "there is no prevResult: mesh-cni gives pods no network of its own and must stand behind a plugin that does",
            ));
        };
        previous.entry("cniVersion").or_insert_with(|| self.version.as_str().into());
        Ok(Value::Object(previous))
    }
}

/// The version in which the runtime speaks, or the newest where it does not say.
pub fn version(input: &[u8]) -> String {
    let conf: Value = serde_json::from_slice(input).unwrap_or_default();
    let newest = VERSIONS[VERSIONS.len() - 1];
    conf["cniVersion"].as_str().filter(|version| VERSIONS.contains(version)).unwrap_or(newest).to_owned()
}
