//! What can be typed to install a mesh and to keep an eye on it.

use super::read::duration;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;

/// `meshctl install`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl install | kubectl apply -f -\n  \
    meshctl install --apply\n  \
    meshctl install --apply --ha --set proxy.workers=2 -f values.yaml\n  \
    meshctl install --show-values > values.yaml\n  \
    meshctl install --crds | kubectl apply --server-side -f -\n\n\
Charts and kustomizations:\n  \
    meshctl install --kustomization mesh/ --ha && kubectl apply -k mesh/\n  \
    meshctl install --chart chart/ && meshctl install --new-identity > identity.yaml\n  \
    helm install mesh chart/ -f identity.yaml --set ha=true\n\n\
Both consist of the objects that `install` prints. The kustomization holds the values given here, and a certificate\n\
authority, which it keeps when it is written anew. The chart takes values from Helm, the same as -f and --set here, and\n\
refuses others; it makes no certificate authority, because Helm would make another one whenever it renders. Keep the\n\
release in a namespace that exists already: the chart makes the control plane's own. More: manifests/INSTALL.md")]
pub struct Install {
    /// Apply the manifests and wait until the control plane works
    #[arg(long, conflicts_with = "output")]
    pub apply: bool,
    /// Show what would change on the cluster; exits 1 if anything would
    #[arg(long, conflicts_with_all = ["apply", "output"])]
    pub diff: bool,
    /// Three replicas of the control plane, and no pod without its proxy
    #[arg(long)]
    pub ha: bool,
    /// Set a value, for instance proxy.workers=2; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// YAML file with values; may be given several times, --set wins
    #[arg(short = 'f', long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// Your own trust anchors, PEM; needs the issuer's certificate and key, too
    #[arg(long, value_name = "FILE")]
    pub identity_trust_anchors: Option<PathBuf>,
    /// Certificate of your own issuer, PEM
    #[arg(long, value_name = "FILE")]
    pub identity_issuer_certificate: Option<PathBuf>,
    /// Private key of your own issuer, PEM
    #[arg(long, value_name = "FILE")]
    pub identity_issuer_key: Option<PathBuf>,
    /// Write a Helm chart into a folder; its values are given to Helm
    #[arg(long, value_name = "DIR", conflicts_with_all = ["apply", "diff", "output", "ha", "set", "values", "identity_trust_anchors",
        "identity_issuer_certificate", "identity_issuer_key", "kustomization", "new_identity", "show_values"])]
    pub chart: Option<PathBuf>,
    /// Write a kustomization into a folder: kustomization.yaml and a file for each kind
    #[arg(long, value_name = "DIR", conflicts_with_all = ["apply", "diff", "output", "new_identity", "show_values"])]
    pub kustomization: Option<PathBuf>,
    /// Print a new certificate authority as values, for -f here or with Helm; holds a private key
    #[arg(long, conflicts_with_all = ["apply", "diff", "output", "show_values", "identity_trust_anchors"])]
    pub new_identity: bool,
    /// Print only the definitions of the mesh's kinds, which may need somebody with more rights to apply them
    #[arg(long, conflicts_with_all = ["apply", "diff", "ha", "set", "values", "chart", "kustomization", "new_identity", "show_values",
        "identity_trust_anchors", "identity_issuer_certificate", "identity_issuer_key"])]
    pub crds: bool,
    /// Print without looking whether the cluster has a mesh already
    #[arg(long, conflicts_with = "apply")]
    pub ignore_cluster: bool,
    /// Print every value with its default and what it means; with -o json their JSON schema
    #[arg(long, conflicts_with_all = ["apply", "diff", "ha", "set", "values", "identity_trust_anchors", "ignore_cluster"])]
    pub show_values: bool,
    /// How long --apply may wait
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub timeout: Duration,
    /// How to print the manifests
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    pub output: ManifestFormat,
}

/// `meshctl upgrade`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl upgrade --diff                       # what would change\n  \
    meshctl upgrade --apply --proxies            # control plane, then proxies in waves\n  \
    meshctl upgrade --set proxy.workers=2 | kubectl apply -f -")]
pub struct Upgrade {
    /// Apply the changes and wait until the control plane works
    #[arg(long, conflicts_with_all = ["output", "diff"])]
    pub apply: bool,
    /// Show what would change on the cluster; exits 1 if anything would
    #[arg(long, conflicts_with = "output")]
    pub diff: bool,
    /// Restart workloads whose proxies are old, in waves; alone it restarts only, with --apply after the control plane
    #[arg(long, conflicts_with = "diff")]
    pub proxies: bool,
    /// Workloads in a wave; a quarter of them unless given
    #[arg(long, value_name = "COUNT", requires = "proxies")]
    pub wave: Option<u16>,
    /// Three replicas of the control plane, and no pod without its proxy
    #[arg(long)]
    pub ha: bool,
    /// Set a value over the installed ones; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// YAML file with values over the installed ones; may be given several times, --set wins
    #[arg(short = 'f', long, value_name = "FILE")]
    pub values: Vec<PathBuf>,
    /// Forget the installed values
    #[arg(long)]
    pub reset_values: bool,
    /// Also when the step is unsafe, or the mesh belongs to a Helm release
    #[arg(long)]
    pub force: bool,
    /// How long the control plane, and each wave, may take
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub timeout: Duration,
    /// How to print the manifests
    #[arg(short, long, value_name = "FORMAT", default_value = "yaml")]
    pub output: ManifestFormat,
}

#[cfg(test)]
impl Default for Upgrade {
    fn default() -> Self {
        Self {
            apply: false,
            diff: false,
            proxies: false,
            wave: None,
            ha: false,
            set: Vec::new(),
            values: Vec::new(),
            reset_values: false,
            force: false,
            timeout: Duration::from_secs(60),
            output: ManifestFormat::Yaml,
        }
    }
}

/// `meshctl uninstall`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl uninstall | kubectl delete -f -\n  \
    meshctl uninstall --apply")]
pub struct Uninstall {
    /// Delete instead of printing what would be deleted
    #[arg(long)]
    pub apply: bool,
    /// Also while workloads have proxies, or the mesh belongs to a Helm release
    #[arg(long)]
    pub force: bool,
}

/// `meshctl prune`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl prune            # what is left of other versions\n  \
    meshctl prune --apply    # delete it")]
pub struct Prune {
    /// Delete instead of listing
    #[arg(long)]
    pub apply: bool,
}

/// How manifests are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ManifestFormat {
    /// YAML documents
    #[default]
    Yaml,
    /// One JSON list
    Json,
}

/// `meshctl inject`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl inject shop.yaml | kubectl apply -f -\n  \
    kubectl get deploy -o yaml | meshctl inject - | kubectl apply -f -\n  \
    meshctl inject --manual manifests/ > meshed.yaml")]
pub struct Inject {
    /// Files, folders, or - for standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write the whole sidecar instead of the annotation that asks for it
    #[arg(long)]
    pub manual: bool,
}

/// `meshctl uninject`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    kubectl get deploy -o yaml | meshctl uninject - | kubectl apply -f -")]
pub struct Uninject {
    /// Files, folders, or - for standard input
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// `meshctl check`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl check --pre                 # before an install\n  \
    meshctl check --wait                # until all is well, two minutes at most\n  \
    meshctl check --proxy -n shop\n  \
    meshctl check -o json | jq -r '.checks[] | select(.status == \"failed\") | .id'")]
pub struct Check {
    /// Only what an install needs
    #[arg(long, conflicts_with_all = ["proxy", "namespace"])]
    pub pre: bool,
    /// Only the proxies
    #[arg(long)]
    pub proxy: bool,
    /// Only proxies of this namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Try again until nothing fails, for so long at most (2m unless given)
    #[arg(long, value_name = "DURATION", value_parser = duration, num_args = 0..=1, default_missing_value = "2m")]
    pub wait: Option<Duration>,
    /// Only these checks, by id or its first part (identity); may be given several times
    #[arg(long, value_name = "ID", conflicts_with = "skip")]
    pub only: Vec<String>,
    /// All but these checks
    #[arg(long, value_name = "ID")]
    pub skip: Vec<String>,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: CheckFormat,
}

/// How checks are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CheckFormat {
    /// All, grouped, with fixes
    #[default]
    Table,
    /// Only what is wrong, a line each
    Short,
    /// JSON
    Json,
    /// JUnit XML, for CI
    Junit,
    /// Annotations of GitHub's workflows, for CI
    Github,
}
