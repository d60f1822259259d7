//! What can be typed to find what is legal and wrong.

use super::Namespaces;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// `meshctl lint`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl lint -A                              # the whole cluster\n  \
    meshctl lint manifests/ -o github            # files, in a workflow\n  \
    kubectl kustomize overlay | meshctl lint - --with-cluster\n\n\
    Every id: control/LINTS.md")]
pub struct Lint {
    /// Files, folders, or - for standard input; the cluster unless given
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Take the files as they would be on the cluster: what they refer to may be there
    #[arg(long, requires = "files")]
    pub with_cluster: bool,
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
    /// Only these findings, by id or its first part (route); may be given several times
    #[arg(long, value_name = "ID", conflicts_with = "skip")]
    pub only: Vec<String>,
    /// All but these findings
    #[arg(long, value_name = "ID")]
    pub skip: Vec<String>,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: LintFormat,
}

/// How findings are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LintFormat {
    /// Where, what, and what to do
    #[default]
    Table,
    /// A JSON array
    Json,
    /// Annotations of GitHub's workflows, for CI
    Github,
}
