//! What can be typed to look at golden metrics.

use super::Namespaces;
use super::read::window;
use crate::output::RowFormat;
use clap::Args;
use std::time::Duration;

/// `meshctl stat`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl stat -n shop                        # every workload of a namespace\n  \
    meshctl stat deploy/web -o json             # one workload, for scripts\n  \
    meshctl stat --routes -A -w 30s             # every route of the cluster, over half a minute\n  \
    meshctl stat deploy/catalog --from deploy/web\n  \
    meshctl stat ns                             # a row for each namespace")]
pub struct Stat {
    /// What to show: deploy, deploy/web, po, svc/books, ns; everything that runs pods unless given
    #[arg(value_name = "KIND[/NAME]", num_args = 0..=2)]
    pub resource: Vec<String>,
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
    /// Only resources with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// A row for each route instead of each workload
    #[arg(long)]
    pub routes: bool,
    /// Count only what came from this resource, as the sender saw it
    #[arg(long, value_name = "KIND/NAME")]
    pub from: Option<String>,
    /// Count what was sent to this resource, as the sender saw it
    #[arg(long, value_name = "KIND/NAME")]
    pub to: Option<String>,
    /// How far to look back, 60s at most
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = window)]
    pub window: Duration,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: RowFormat,
}

/// `meshctl top`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl top -n shop\n  \
    meshctl top deploy/web -w 30s\n  \
    meshctl top -A")]
pub struct Top {
    /// What to show: deploy, deploy/web, po, svc/books; everything that runs pods unless given
    #[arg(value_name = "KIND[/NAME]", num_args = 0..=2)]
    pub resource: Vec<String>,
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
    /// Only resources with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// How far the numbers look back, 60s at most
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = window)]
    pub window: Duration,
}
