//! What can be typed to ask why: `explain`, `diagnostics`, `identity`.

use super::read::duration;
use super::{Namespaces, TextFormat};
use crate::output::RowFormat;
use clap::{Args, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// `meshctl explain`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl explain request --from deploy/web --to catalog:80 GET /products/7 -n shop\n  \
    meshctl explain request --from deploy/web --to catalog:80 GET '/products?q=7' --header version=v2 -n shop\n  \
    meshctl explain pod web-6f7d -n shop\n  \
    meshctl explain error no-endpoints")]
pub struct Explain {
    /// What to explain.
    #[command(subcommand)]
    pub what: ExplainWhat,
}

/// What can be explained.
#[derive(Debug, Subcommand)]
pub enum ExplainWhat {
    /// What would happen to a request, step by step
    ///
    /// Nothing is sent. The answer comes from the code that the control plane and the proxies decide with, run on what
    /// the cluster's API shows now.
    Request(ExplainRequest),
    /// Why a pod has a proxy or has none
    Pod(ExplainPod),
    /// What a mesh-error code means, and what to do; all codes without one
    Error(ExplainError),
}

/// `meshctl explain request`
#[derive(Debug, Args)]
pub struct ExplainRequest {
    /// Who calls: deploy/web, po/web-6f7d
    #[arg(long, value_name = "KIND/NAME")]
    pub from: String,
    /// Who is called: catalog:80, catalog.shop:80, svc/catalog:80, 10.96.0.7:80
    #[arg(long, value_name = "HOST:PORT")]
    pub to: String,
    /// Method of the request
    #[arg(value_name = "METHOD", default_value = "GET")]
    pub method: String,
    /// Path of the request, with its query if it has one
    #[arg(value_name = "PATH", default_value = "/")]
    pub path: String,
    /// A header field of the request; may be given several times (content-type=application/grpc makes it a gRPC call)
    #[arg(short = 'H', long, value_name = "NAME=VALUE")]
    pub header: Vec<String>,
    /// Host that the request names; that of --to unless given
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Namespace of the caller; the context's own unless given
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: TextFormat,
}

/// `meshctl explain pod`
#[derive(Debug, Args)]
pub struct ExplainPod {
    /// Name of the pod
    #[arg(value_name = "POD")]
    pub pod: String,
    /// Its namespace; the context's own unless given
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: TextFormat,
}

/// `meshctl explain error`
#[derive(Debug, Args)]
pub struct ExplainError {
    /// The code, as in the `mesh-error` header
    #[arg(value_name = "CODE")]
    pub code: Option<String>,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: TextFormat,
}

/// `meshctl diagnostics`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl diagnostics proxy-config deploy/web -n shop\n  \
    meshctl diagnostics endpoints deploy/web -n shop   # what its proxies know, against the API\n  \
    meshctl diagnostics controller-metrics")]
pub struct Diagnostics {
    /// What to look at.
    #[command(subcommand)]
    pub what: DiagnosticsWhat,
}

/// What can be looked at.
#[derive(Debug, Subcommand)]
pub enum DiagnosticsWhat {
    /// What proxies know of where their traffic goes: destinations, rules and backends
    ///
    /// A row for each rule of each destination, in order; with -o json everything, with the proxies' settings.
    ProxyConfig(ProxyRows),
    /// Metrics of proxies, as Prometheus reads them
    ProxyMetrics(Proxies),
    /// Endpoints that proxies know, compared with the API's
    ///
    /// A row for each endpoint of each destination a proxy has seen traffic for. STATE is `ok`, `stale` (the API has
    /// no such endpoint any more) or `missing` (the proxy has not heard of it yet). Exits 1 if one is not ok.
    Endpoints(ProxyRows),
    /// How proxies treat what arrives, port by port
    Policy(ProxyRows),
    /// Metrics of the control plane, as Prometheus reads them
    ControllerMetrics,
    /// Identities of proxies
    Identity(ProxyRows),
}

/// Proxies of a resource.
#[derive(Debug, Args)]
pub struct Proxies {
    /// Whose proxies: deploy/web, po/web-6f7d, svc/web, ns/shop
    #[arg(value_name = "KIND[/NAME]", num_args = 1..=2, required = true)]
    pub resource: Vec<String>,
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
}

/// Proxies of a resource, a table about them.
#[derive(Debug, Args)]
pub struct ProxyRows {
    /// Whose proxies.
    #[command(flatten)]
    pub proxies: Proxies,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: RowFormat,
}

/// `meshctl identity`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl identity                # the issuer, the anchors, and the proxies of this namespace\n  \
    meshctl identity deploy/web -n shop\n  \
    meshctl identity -A -o json\n  \
    meshctl identity rotate         # a new authority, without a failed request")]
#[command(args_conflicts_with_subcommands = true)]
pub struct Identity {
    /// What to do instead of showing.
    #[command(subcommand)]
    pub what: Option<IdentityWhat>,
    /// Whose proxies; all of the namespace unless given
    #[arg(value_name = "KIND[/NAME]", num_args = 0..=2)]
    pub resource: Vec<String>,
    /// Namespaces.
    #[command(flatten)]
    pub namespaces: Namespaces,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: RowFormat,
}

/// What `meshctl identity` can do besides showing.
#[derive(Debug, Subcommand)]
pub enum IdentityWhat {
    /// Replace the mesh's authority: issuer and trust anchor
    ///
    /// In three phases, each waiting until every proxy has followed: all trust the new anchor beside the old one; all have
    /// certificates of the new issuer; the old anchor is withdrawn. No request fails. What is reached is kept in the
    /// issuer's secret: interrupted, at whatever point, it is continued by running the command again. Makes a new
    /// authority unless one is brought.
    Rotate(IdentityRotate),
}

/// `meshctl identity rotate`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl identity rotate              # begin, or go on with what was interrupted\n  \
    meshctl identity rotate --status\n  \
    meshctl identity rotate --abort      # as long as the old issuer signs\n  \
    meshctl identity rotate --issuer-certificate-file ca.crt --issuer-key-file ca.key --trust-anchors-file roots.crt")]
pub struct IdentityRotate {
    /// File with the new issuer's certificate, and any intermediates after it (PEM)
    #[arg(long, value_name = "FILE", requires = "issuer_key_file")]
    pub issuer_certificate_file: Option<PathBuf>,
    /// File with its private key (PEM)
    #[arg(long, value_name = "FILE", requires = "issuer_certificate_file")]
    pub issuer_key_file: Option<PathBuf>,
    /// File with the trust anchors that vouch for it (PEM); the present ones unless given
    #[arg(long, value_name = "FILE", requires = "issuer_certificate_file")]
    pub trust_anchors_file: Option<PathBuf>,
    /// How long each phase may wait for proxies
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub timeout: Duration,
    /// When that time is over, go on without proxies that have not followed; they lose their connections
    #[arg(long)]
    pub force: bool,
    /// Say how far a rotation is, and change nothing
    #[arg(long, conflicts_with_all = ["abort", "force", "issuer_certificate_file"])]
    pub status: bool,
    /// Return to the old anchors; possible until the new issuer signs
    #[arg(long, conflicts_with_all = ["force", "issuer_certificate_file"])]
    pub abort: bool,
}
