//! What can be typed: every command, flag and example. Reads like the help page, because it is the help page.

pub mod explain;
pub mod install;
pub mod lint;
pub mod look;
pub mod policy;
pub mod read;
pub mod sandbox;
pub mod tap;

pub use explain::{
    Diagnostics, DiagnosticsWhat, Explain, ExplainError, ExplainPod, ExplainRequest, ExplainWhat, Identity,
    IdentityRotate, IdentityWhat, Proxies, ProxyRows,
};
pub use install::{Check, CheckFormat, Inject, Install, ManifestFormat, Prune, Uninject, Uninstall, Upgrade};
pub use lint::{Lint, LintFormat};
pub use look::{EdgeFormat, Edges, Routes, Stat, Top, TopScreen};
pub use policy::{Policy, PolicySuggest, PolicyTest, PolicyWhat, Seen};
pub use sandbox::{Demo, ImageCommand, Sandbox, SandboxCommand, SandboxUp};
pub use tap::{Tap, TapFormat};

use crate::output::ColorChoice;
use clap::builder::StyledStr;
use clap::builder::styling::{AnsiColor, Effects, Styles};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;

/// A service mesh you can hold in your head
///
/// Mutual TLS, golden metrics and load balancing for every service, with one small proxy beside each pod.
/// `meshctl demo` shows all of it on this machine, without a cluster.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, styles = STYLES, max_term_width = 110, disable_help_subcommand = true)]
#[command(subcommand_required = true, arg_required_else_help = true)]
#[command(help_template = "{about-with-newline}\n{usage-heading} {usage}\n\n{before-help}{options}{after-help}")]
#[command(after_long_help = EXIT_CODES)]
pub struct Cli {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes:\n  \
    0  done and well\n  \
    1  the command worked and found problems (check, lint, demo, --diff, prune, diagnostics)\n  \
    2  it could not do its work, or was called wrongly\n\n\
    Data goes to stdout; progress, notes and errors go to stderr.";

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .usage(AnsiColor::Green.on_default().effects(Effects::BOLD))
    .literal(AnsiColor::Cyan.on_default().effects(Effects::BOLD))
    .placeholder(AnsiColor::Cyan.on_default());

/// Flags of every command.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Context of the kubeconfig to use
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Kubeconfig to use instead of $KUBECONFIG and ~/.kube/config
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// User to act as
    #[arg(long = "as", global = true, value_name = "USER")]
    pub impersonate: Option<String>,
    /// Group to act as; may be given several times
    #[arg(long = "as-group", global = true, value_name = "GROUP", requires = "impersonate")]
    pub impersonate_group: Vec<String>,
    /// Namespace of the control plane
    #[arg(long, global = true, value_name = "NAMESPACE", env = "MESHCTL_NAMESPACE", hide_env_values = true)]
    #[arg(default_value = mesh_api::names::SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Say more, on stderr
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Say only what is wrong
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// When to colour
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    #[arg(help = "When to colour: auto, always or never")]
    pub color: ColorChoice,
}

/// Every verb.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole mesh on this machine, with a shop in it
    ///
    /// Starts a local cluster, installs the mesh, deploys a small shop with the proxies injected, waits until
    /// traffic flows, and opens `top`. Whatever it started is gone when it ends.
    ///
    /// Without a terminal, or with --once or -o, it prints golden metrics of every route instead. It exits 0 if
    /// every workload is meshed, all its traffic is mutual TLS and it saw requests, otherwise 1 with the reason.
    ///
    /// With --context it uses that cluster instead of a local one.
    Demo(Demo),
    /// Run a local cluster
    ///
    /// It has a Kubernetes-compatible API, and a node whose pods are processes on this machine, each in a network
    /// namespace of its own. Nothing needs to be installed, and where user namespaces are allowed, no root is needed. Several can run
    /// side by side under --name.
    Sandbox(Sandbox),
    /// Print the mesh's manifests, or apply them
    ///
    /// Prints what `kubectl apply -f -` needs, and changes nothing. With --apply it applies the same itself,
    /// server-side, in the right order, and waits until the control plane works. A cluster that has a mesh already
    /// is refused.
    Install(Install),
    /// Bring a mesh to this version, or change its values
    ///
    /// Keeps the values and the identity it was installed with. Prints what `kubectl apply -f -` needs; --diff shows
    /// what would change, --apply does it and waits, --proxies restarts workloads whose proxies are old, in waves, and
    /// stops when a wave does not become ready or success rates fall. A step that is unsafe is refused, with the reason.
    Upgrade(Upgrade),
    /// Take the mesh out of the cluster
    ///
    /// Prints what `kubectl delete -f -` needs, exactly what install recorded; --apply deletes it and waits until it is
    /// gone. Refuses while workloads still have proxies, and names them.
    Uninstall(Uninstall),
    /// List or delete what other versions of the mesh left behind
    ///
    /// Exits 1 if something is listed.
    Prune(Prune),
    /// Add the mesh to manifests
    ///
    /// Reads files, folders or standard input and prints the same YAML or JSON with the annotation that asks for a
    /// proxy, or, with --manual, with the whole sidecar. Comments, order and everything else stay as they are. What
    /// became of each workload is told on stderr. If anything cannot be read, nothing is printed.
    Inject(Inject),
    /// Take the mesh out of manifests
    ///
    /// The exact inverse of inject.
    Uninject(Uninject),
    /// Check that the cluster is fit for the mesh, and the mesh well
    ///
    /// With --pre: is the cluster fit for an install? Without: are the control plane and all proxies well? With
    /// --proxy: only the proxies.
    ///
    /// Every check has a stable id, says what it saw, and, if that was wrong, how to mend it. Nothing is changed.
    /// Exits 1 if a check failed.
    Check(Check),
    /// Find what is legal and wrong, in files or on the cluster
    ///
    /// Rules that no request reaches, backends with nobody behind them, policies that select nothing, retries without time:
    /// each with a stable id, where it is, what was seen, and what to do.
    ///
    /// Files are looked at by themselves: what they refer to is missed only where they hold other Services (or workloads) of
    /// the same namespace. With --with-cluster it may be on the cluster. Exits 1 if something is found.
    Lint(Lint),
    /// Golden metrics of workloads or routes, once
    ///
    /// Success rate, requests a second, latency and the share of mutual TLS. Rows count what arrived at a workload, every request, none sampled; percentiles are merged over all its
    /// pods.
    Stat(Stat),
    /// Golden metrics of a service's routes, as callers saw them and as each attempt went
    ///
    /// Effective numbers count every request once, with all its retries, as its caller saw it. Actual numbers count every attempt where it went.
    /// They differ where requests were retried, or answered by the mesh because nobody could be asked. The backends of a route stand below it.
    Routes(Routes),
    /// Who talks to whom
    ///
    /// A row for each pair of workloads between which requests or connections were seen: the identities of both ends, whether all of it was mutual TLS or why not,
    /// the rate and the success.
    Edges(Edges),
    /// Golden metrics of every route, live
    ///
    /// A row for each route: rate, success, latency, mutual TLS, and the last minute as bars. Without a terminal it prints one table and ends. `?` shows the keys.
    Top(Top),
    /// Requests and connections as they come to their end
    ///
    /// The proxies beside the resource evaluate the filters, all of which must hold, and tell what matches: one line for a request when it has ended,
    /// two for a TCP connection. Secret header fields are redacted. What is left out, because there is too much or only a sample is wanted, is counted
    /// and told at the end. Who taps whom is in the control plane's log.
    Tap(Box<Tap>),
    /// Why a request, a pod or an error is as it is, step by step
    Explain(Explain),
    /// Access policies held against what was seen, before anybody is refused
    Policy(Policy),
    /// What proxies and control plane know and count
    Diagnostics(Diagnostics),
    /// Certificates of proxies, issuer and trust anchors, with expiry; and their rotation
    ///
    /// Exits 1 if one has expired. `rotate` replaces issuer and anchor while the mesh runs.
    Identity(Identity),
    /// Show which versions run
    ///
    /// This program's, the control plane's, and the proxies' by version. Works without a cluster, and says then why it could not ask one.
    Version(Version),
    /// Print a completion script for a shell
    Completion(Completion),
    /// Print the manual page, or write those of all commands
    Man(Man),
}

/// The order and grouping of the help page. A test holds it against [`Command`].
const GROUPS: &[(&str, &[&str])] = &[
    ("Trying it", &["demo", "sandbox"]),
    ("Installing", &["install", "upgrade", "uninstall", "prune", "inject", "uninject", "check", "lint"]),
    ("Looking", &["stat", "routes", "edges", "top", "tap", "explain", "policy", "diagnostics", "identity"]),
    ("Other", &["version", "completion", "man"]),
];

/// `meshctl version`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl version\n  \
    meshctl version -o json")]
pub struct Version {
    /// Do not ask the cluster
    #[arg(long)]
    pub client: bool,
    /// How to write it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: TextFormat,
}

/// `meshctl completion`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    source <(meshctl completion bash)\n  \
    meshctl completion zsh > \"${fpath[1]}/_meshctl\"\n  \
    meshctl completion fish > ~/.config/fish/completions/meshctl.fish")]
pub struct Completion {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `meshctl man`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl man | man -l -\n  \
    meshctl man ~/.local/share/man/man1")]
pub struct Man {
    /// Folder for the pages of all commands; only the first page, on standard output, unless given
    #[arg(value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

/// Text for people, or JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TextFormat {
    /// Text for people
    #[default]
    Table,
    /// JSON
    Json,
}

/// Which namespace.
#[derive(Clone, Debug, Default, Args)]
pub struct Namespaces {
    /// Namespace to look at; the context's own unless given
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Look at all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub all_namespaces: bool,
}

impl Cli {
    /// Reads the command line; the error prints itself and knows its exit code.
    pub fn read(args: Vec<OsString>) -> Result<Self, clap::Error> {
        Self::from_arg_matches(&command().try_get_matches_from(args)?)
    }
}

/// The command line as clap knows it, with the grouped list of commands on its help page.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let (heading, literal) = (STYLES.get_header(), STYLES.get_literal());
    let mut text = String::new();
    for (group, verbs) in GROUPS {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{heading}{group}:{heading:#}");
        for verb in *verbs {
            let about = command.find_subcommand(verb).and_then(|verb| verb.get_about()).map(StyledStr::to_string);
            let _ = writeln!(text, "  {literal}{verb:<12}{literal:#} {}", about.unwrap_or_default());
        }
        text.push('\n');
    }
    command.before_help(StyledStr::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, clap::Error> {
        Cli::read(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }

    #[test]
    fn every_command_stands_in_the_help_page_once() {
        let mut listed: Vec<_> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        let mut known: Vec<_> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
        listed.sort_unstable();
        known.sort_unstable();
        assert_eq!(listed, known);
    }

    #[test]
    fn global_flags_work_on_either_side_of_the_verb() {
        let cli = read("meshctl --context a version --as bob --as-group dev -q").unwrap();
        assert_eq!(cli.global.context.as_deref(), Some("a"));
        assert_eq!(cli.global.impersonate.as_deref(), Some("bob"));
        assert_eq!(cli.global.impersonate_group, ["dev"]);
        assert!(cli.global.quiet);
    }

    #[test]
    fn a_wrong_call_exits_with_two() {
        for line in ["meshctl nonsense", "meshctl version -o xml", "meshctl version -q -v"] {
            assert_eq!(read(line).unwrap_err().exit_code(), 2, "{line}");
        }
        assert_eq!(read("meshctl --help").unwrap_err().exit_code(), 0);
    }
}
