//! What can be typed to look at golden metrics.

use super::Namespaces;
use super::read::{screen_size, window};
use crate::output::RowFormat;
use clap::{Args, ValueEnum};
use mesh_api::golden::SUCCESS_RULE;
use std::path::PathBuf;
use std::time::Duration;

/// Examples, and below them the one rule by which every command tells success from failure.
fn with_rule(examples: &str) -> String {
    format!("{examples}\n\nSuccess:\n  {SUCCESS_RULE}")
}

/// `meshctl stat`
#[derive(Debug, Args)]
#[command(after_long_help = with_rule("Examples:\n  \
    meshctl stat -n shop                        # every workload of a namespace\n  \
    meshctl stat deploy/web -o json             # one workload, for scripts\n  \
    meshctl stat --routes -A -w 5m              # every route of the cluster, over five minutes\n  \
    meshctl stat deploy/catalog --from deploy/web\n  \
    meshctl stat po -l app=web --watch          # each pod, anew every second\n  \
    meshctl stat ns                             # a row for each namespace"))]
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
    /// How far to look back, from 1s to 10m
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = window)]
    pub window: Duration,
    /// Write the numbers anew every second, until interrupted; with -o json an object a line
    #[arg(long)]
    pub watch: bool,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: RowFormat,
}

/// `meshctl top`
#[derive(Debug, Args)]
#[command(after_long_help = with_rule("Examples:\n  \
    meshctl top -n shop\n  \
    meshctl top deploy/web -w 30s\n  \
    meshctl top -A --screen edges\n  \
    meshctl top -n shop -o json                 # the routes once, for scripts\n  \
    meshctl top -n shop --record incident.rec   # keep what is seen, to replay it later\n  \
    meshctl top --replay incident.rec"))]
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
    /// How far the numbers look back, 10m at most
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = window)]
    pub window: Duration,
    /// The screen to begin with
    #[arg(long, value_name = "SCREEN", default_value = "routes")]
    pub screen: TopScreen,
    /// Write what arrives to a new file, for --replay
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    pub record: Option<PathBuf>,
    /// Show a recording instead of a cluster
    #[arg(long, value_name = "FILE", conflicts_with_all = ["record", "resource", "selector"])]
    pub replay: Option<PathBuf>,
    /// Print the screen as text, as it is at the end of the recording, and exit
    #[arg(long, value_name = "COLUMNSxROWS", requires = "replay", conflicts_with = "output", value_parser = screen_size)]
    pub screenshot: Option<(u16, u16)>,
    /// Print the routes once, and exit; without a terminal this is so anyway
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<RowFormat>,
}

/// A screen that `meshctl top` can begin with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopScreen {
    /// A line for each route
    #[default]
    Routes,
    /// A line for each workload
    Workloads,
    /// Who talks to whom, drawn
    Edges,
    /// Details of the busiest route
    Details,
}

/// `meshctl routes`
#[derive(Debug, Args)]
#[command(after_long_help = with_rule("Examples:\n  \
    meshctl routes svc/catalog -n shop          # each route of a service\n  \
    meshctl routes -A -o wide                   # every service's, with the backends of each route\n  \
    meshctl routes svc/catalog --from deploy/web -w 1m\n  \
    meshctl routes deploy/catalog -o json       # what is called at a workload, through whatever service"))]
pub struct Routes {
    /// Whose routes: svc/catalog, or deploy/catalog for all that lead to a workload; every service's unless given
    #[arg(value_name = "KIND[/NAME]", num_args = 0..=2)]
    pub resource: Vec<String>,
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
    /// Count only what this resource called
    #[arg(long, value_name = "KIND/NAME")]
    pub from: Option<String>,
    /// How far to look back, from 1s to 10m
    #[arg(short, long, value_name = "DURATION", default_value = "10s", value_parser = window)]
    pub window: Duration,
    /// Write the numbers anew every second, until interrupted; with -o json an object a line
    #[arg(long)]
    pub watch: bool,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: RowFormat,
}

/// `meshctl edges`
#[derive(Debug, Args)]
#[command(after_long_help = with_rule("Examples:\n  \
    meshctl edges -n shop                       # who talks to whom\n  \
    meshctl edges deploy/web -o wide            # with the identities that both ends proved\n  \
    meshctl edges -A -o dot | dot -Tsvg > mesh.svg\n  \
    meshctl edges -n shop -o mermaid            # for a Markdown page"))]
pub struct Edges {
    /// Only edges that begin or end here: deploy/web, svc/books, ns/shop; all unless given
    #[arg(value_name = "KIND[/NAME]", num_args = 0..=2)]
    pub resource: Vec<String>,
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
    /// How far to look back, from 1s to 10m
    #[arg(short, long, value_name = "DURATION", default_value = "1m", value_parser = window)]
    pub window: Duration,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: EdgeFormat,
}

/// How edges are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum EdgeFormat {
    /// Aligned columns for people
    #[default]
    Table,
    /// The table with every column
    Wide,
    /// A graph for Graphviz
    Dot,
    /// A graph for Markdown pages
    Mermaid,
    /// A JSON array
    Json,
    /// YAML
    Yaml,
}
