//! What can be typed about policies.

use super::Namespaces;
use super::read::window;
use crate::output::RowFormat;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// `meshctl policy`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl policy test -f new.yaml -n shop            # what would change for the calls of the last 5 minutes\n  \
    meshctl policy test -f new.yaml --recording incident.rec\n  \
    meshctl policy suggest -n shop | kubectl apply -f -")]
pub struct Policy {
    /// What to do.
    #[command(subcommand)]
    pub what: PolicyWhat,
}

/// What can be done about policies.
#[derive(Debug, Subcommand)]
pub enum PolicyWhat {
    /// What access and egress policies that are not applied would change for the calls that were seen
    ///
    /// The proxies' own decider is asked about every caller, port, method and route that proxies have counted, with the
    /// cluster's policies as they are and with those of the files. Exits 1 if something would be refused that is let in
    /// now. Of paths only the routes are known (`/products/{id}`), of header fields nothing, and of hosts outside the
    /// cluster that were called by name no address.
    Test(PolicyTest),
    /// The smallest access policies that let in what was seen
    ///
    /// One policy for each workload that was called, as YAML on standard output. Look long enough: what did not call
    /// meanwhile is refused once the policies are applied.
    Suggest(PolicySuggest),
}

/// Which calls count.
#[derive(Debug, Args)]
pub struct Seen {
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
    /// How far to look back, from 1s to 10m
    #[arg(short, long, value_name = "DURATION", default_value = "5m", value_parser = window)]
    pub window: Duration,
    /// Take the calls from a recording of `meshctl top --record` instead
    #[arg(long, value_name = "FILE", conflicts_with = "window")]
    pub recording: Option<PathBuf>,
}

/// `meshctl policy test`
#[derive(Debug, Args)]
pub struct PolicyTest {
    /// File or folder with AccessPolicy and EgressPolicy objects; - is standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Which calls count.
    #[command(flatten)]
    pub seen: Seen,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: RowFormat,
}

/// `meshctl policy suggest`
#[derive(Debug, Args)]
pub struct PolicySuggest {
    /// Which calls count.
    #[command(flatten)]
    pub seen: Seen,
}
