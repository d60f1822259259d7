//! What can be typed to install a mesh and to keep an eye on it.

use super::read::duration;
use clap::{Args, ValueEnum};
use std::time::Duration;

/// `meshctl check`
#[derive(Debug, Args)]
#[command(
    long_about = "Check that the cluster is fit for the mesh (--pre), that the control plane and all proxies are \
    well (default), or only the proxies (--proxy).\n\nEvery check has a stable id, says what it saw, and, if that was \
    wrong, how to mend it. Nothing is changed. Exits 1 if a check failed."
)]
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
}
