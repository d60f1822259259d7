//! What can be typed to see single requests.

use super::Namespaces;
use super::read::{duration, share};
use clap::{Args, ValueEnum};
use std::time::Duration;

/// `meshctl tap`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl tap deploy/web -n shop                      # everything web receives and sends\n  \
    meshctl tap deploy/web --status 5xx,404 --path /api # what goes wrong below /api\n  \
    meshctl tap svc/catalog --from deploy/web --slower-than 200ms\n  \
    meshctl tap -A --grpc-status Unavailable --for 1m -o json\n  \
    meshctl tap po/ledger-0 --protocol tcp              # connections, with bytes and how they ended\n  \
    meshctl tap deploy/web --header x-user=bob --bodies # bodies, if you may see them\n\n\
    Rights, each `watch` on a subresource of workloads.observe.meshctl.dev:\n  \
    workloads/tap         to tap (ClusterRole mesh-tapper)\n  \
    workloads/tapbodies   for --bodies (mesh-tapper-bodies)\n  \
    workloads/tapsecrets  for --show-secrets, and to compare secret fields (mesh-tapper-secrets)")]
pub struct Tap {
    /// Whose requests: deploy/web, po/x, svc/books, ns/shop; everything that runs pods unless given
    #[arg(value_name = "KIND[/NAME]", num_args = 0..=2)]
    pub resource: Vec<String>,
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
    /// Only resources with these labels
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub selector: Option<String>,
    /// Only these methods: GET,POST
    #[arg(long, value_name = "METHODS", help_heading = "Filters")]
    pub method: Option<String>,
    /// Only this path and what is below it; with *, paths that look like this
    #[arg(long, value_name = "PATTERN", help_heading = "Filters")]
    pub path: Option<String>,
    /// Only this route; * stands for anything
    #[arg(long, value_name = "PATTERN", help_heading = "Filters")]
    pub route: Option<String>,
    /// Only requests with this header field, of any value or of this one; may be given several times
    #[arg(long, value_name = "NAME[=PATTERN]", help_heading = "Filters")]
    pub header: Vec<String>,
    /// Only these statuses: 503, 5xx, 500-504 or several with commas
    #[arg(long, value_name = "STATUSES", help_heading = "Filters")]
    pub status: Option<String>,
    /// Only these gRPC statuses: Unavailable,13
    #[arg(long, value_name = "STATUSES", help_heading = "Filters")]
    pub grpc_status: Option<String>,
    /// Only what the mesh itself answered with one of these errors, or with any
    #[arg(long, value_name = "CODES", help_heading = "Filters")]
    pub error: Option<String>,
    /// Only what took longer than this
    #[arg(long, value_name = "DURATION", help_heading = "Filters")]
    pub slower_than: Option<String>,
    /// Only with this identity at the other end; * stands for anything
    #[arg(long, value_name = "PATTERN", help_heading = "Filters")]
    pub identity: Option<String>,
    /// Only what comes from this resource, address or network
    #[arg(long, value_name = "[NAMESPACE/]KIND/NAME", help_heading = "Filters")]
    pub from: Option<String>,
    /// Only what goes to this resource, address or network
    #[arg(long, value_name = "[NAMESPACE/]KIND/NAME", help_heading = "Filters")]
    pub to: Option<String>,
    /// Only what arrives (inbound) or what is sent (outbound)
    #[arg(long, value_name = "DIRECTION", help_heading = "Filters")]
    pub direction: Option<String>,
    /// Only http, grpc or tcp, or several with commas
    #[arg(long, value_name = "PROTOCOLS", help_heading = "Filters")]
    pub protocol: Option<String>,
    /// Show no more than this many a second; the rest is counted
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub max_rps: u32,
    /// Show only this share of what matches: 10%, 0.1 or 1/10; the rest is counted
    #[arg(long, value_name = "SHARE", default_value = "100%", value_parser = share)]
    pub sample: f64,
    /// End after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Show secret header fields as they are
    #[arg(long)]
    pub show_secrets: bool,
    /// Show the first 4 KiB of every body
    #[arg(long)]
    pub bodies: bool,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "line")]
    pub output: TapFormat,
}

/// How events are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TapFormat {
    /// A line for each
    #[default]
    Line,
    /// A line with everything but headers
    Wide,
    /// An object a line, with headers
    Json,
}
