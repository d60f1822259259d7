//! Resources as kubectl writes them: `deploy`, `deploy/web`, `deployment web`, `po/x`, `svc/books`, `ns/shop`.

use crate::error::{Error, Result};
use mesh_api::WorkloadRef;
use std::fmt;

/// What a row can stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Workloads of every kind.
    All,
    /// A kind of workload, by its lower-case singular name, except bare pods.
    Workload(&'static str),
    /// Single pods.
    Pod,
    /// Services: the workloads behind them.
    Service,
    /// Namespaces: all workloads in them.
    Namespace,
}

/// Singular name, and the other ways to write it.
const KINDS: &[(Kind, &[&str])] = &[
    (Kind::All, &["all"]),
    (Kind::Workload("deployment"), &["deployment", "deployments", "deploy"]),
    (Kind::Workload("statefulset"), &["statefulset", "statefulsets", "sts"]),
    (Kind::Workload("daemonset"), &["daemonset", "daemonsets", "ds"]),
    (Kind::Workload("replicaset"), &["replicaset", "replicasets", "rs"]),
    (Kind::Workload("job"), &["job", "jobs"]),
    (Kind::Workload("cronjob"), &["cronjob", "cronjobs", "cj"]),
    (Kind::Pod, &["pod", "pods", "po"]),
    (Kind::Service, &["service", "services", "svc"]),
    (Kind::Namespace, &["namespace", "namespaces", "ns"]),
];

/// A kind, and perhaps a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// What is meant.
    pub kind: Kind,
    /// Which one; all of them if not given.
    pub name: Option<String>,
}

impl Resource {
    /// Everything.
    pub const ALL: Self = Self { kind: Kind::All, name: None };

    /// Reads the words of a command line: none (everything), `deploy`, `deploy/web` or `deploy web`.
    pub fn read(words: &[String]) -> Result<Self> {
        match words {
            [] => Ok(Self::ALL),
            [one] => Self::read_one(one),
            [kind, name] if !kind.contains('/') && !name.contains('/') => {
                Ok(Self { kind: Kind::read(kind)?, name: Some(name.clone()) })
            }
            more => Err(Error::new(format!("`{}` is not one resource", more.join(" ")))
                .hint("write for instance deploy, deploy/web or deployment web")),
        }
    }

    /// Reads `deploy` or `deploy/web`.
    pub fn read_one(word: &str) -> Result<Self> {
        match word.split_once('/') {
            None => Ok(Self { kind: Kind::read(word)?, name: None }),
            Some((kind, name)) if !name.is_empty() && !name.contains('/') => {
                Ok(Self { kind: Kind::read(kind)?, name: Some(name.to_owned()) })
            }
            Some(_) => Err(Error::new(format!("`{word}` is not a resource")).hint("write for instance deploy/web")),
        }
    }

    /// True if this means the workload itself (pods and services need to look further).
    pub fn is_workload(&self, workload: &WorkloadRef) -> bool {
        let name_fits = |name: &str| self.name.as_deref().is_none_or(|wanted| wanted == name);
        match self.kind {
            Kind::All => name_fits(&workload.name),
            Kind::Workload(kind) => workload.kind == kind && name_fits(&workload.name),
            Kind::Pod => workload.kind == "pod" && name_fits(&workload.name),
            Kind::Namespace => name_fits(&workload.namespace),
            Kind::Service => false,
        }
    }
}

impl Kind {
    fn read(word: &str) -> Result<Self> {
        let lower = word.to_lowercase();
        // `deployments.apps` is also kubectl's writing.
        let bare = lower.split('.').next().unwrap_or(&lower);
        KINDS.iter().find(|(_, names)| names.contains(&bare)).map(|(kind, _)| *kind).ok_or_else(|| {
            let known: Vec<_> = KINDS.iter().filter_map(|(_, names)| names.first().copied()).collect();
            Error::new(format!("`{word}` is no kind of resource known here"))
                .hint(format!("known: {}", known.join(", ")))
        })
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = KINDS.iter().find(|(kind, _)| *kind == self.kind).and_then(|(_, names)| names.first());
        f.write_str(kind.copied().unwrap_or_default())?;
        match &self.name {
            Some(name) => write!(f, "/{name}"),
            None => Ok(()),
        }
    }
}

/// The short form people type for a workload's kind.
pub fn short_kind(kind: &str) -> &str {
    match kind {
        "deployment" => "deploy",
        "statefulset" => "sts",
        "daemonset" => "ds",
        "replicaset" => "rs",
        "cronjob" => "cj",
        "namespace" => "ns",
        "service" => "svc",
        "pod" => "po",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_as_kubectl_reads_them() {
        let check = |words: &str, expect: Option<&str>| {
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            assert_eq!(Resource::read(&words).ok().map(|r| r.to_string()).as_deref(), expect, "{words:?}");
        };
        check("", Some("all"));
        check("deploy", Some("deployment"));
        check("deploy/web", Some("deployment/web"));
        check("deployments.apps web", Some("deployment/web"));
        check("po/x", Some("pod/x"));
        check("svc/books", Some("service/books"));
        check("ns/shop", Some("namespace/shop"));
        check("STS", Some("statefulset"));
        check("deploy/", None);
        check("deploy/a/b", None);
        check("deploy/a b", None);
        check("teapot", None);
        check("a b c", None);
    }

    #[test]
    fn an_unknown_kind_names_the_known_ones() {
        let error = Resource::read_one("teapot").unwrap_err();
        assert!(error.hint_text().unwrap().contains("deployment"));
    }
}
