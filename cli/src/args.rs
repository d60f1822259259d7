//! What can be typed: every command, flag and example. Reads like the help page, because it is the help page.

use crate::observe::MAX_WINDOW;
use crate::output::{ColorChoice, RowFormat};
use clap::builder::StyledStr;
use clap::builder::styling::{AnsiColor, Effects, Styles};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use mesh_sandbox::lifecycle::DEFAULT_NAME;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

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
    1  the command worked and found problems (check, demo)\n  \
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
    /// Run a local cluster
    Sandbox(Sandbox),
    /// Check that the cluster is fit for the mesh, and the mesh well
    Check(Check),
    /// Golden metrics of workloads or routes, once
    Stat(Stat),
    /// Golden metrics of every route, live
    Top(Top),
    /// Show which versions run
    Version(Version),
    /// Print a completion script for a shell
    Completion(Completion),
}

/// The order and grouping of the help page. A test holds it against [`Command`].
const GROUPS: &[(&str, &[&str])] = &[
    ("Trying it", &["sandbox"]),
    ("Installing", &["check"]),
    ("Looking", &["stat", "top"]),
    ("Other", &["version", "completion"]),
];

/// `meshctl sandbox`
#[derive(Debug, Args)]
#[command(long_about = "Run a local cluster: a Kubernetes-compatible API and a node whose pods are processes on this \
    machine, each in a network namespace of its own.\n\nNothing needs to be installed, and where user namespaces are \
    allowed, no root is needed. Several can run side by side under --name.")]
#[command(after_long_help = "Examples:\n  \
    meshctl sandbox up\n  \
    export KUBECONFIG=\"$(meshctl sandbox kubeconfig)\"\n  \
    meshctl sandbox image add nginx /usr/sbin/nginx\n  \
    meshctl sandbox down")]
pub struct Sandbox {
    /// The verb.
    #[command(subcommand)]
    pub command: SandboxCommand,
}

/// What can be done with a sandbox.
#[derive(Debug, Subcommand)]
pub enum SandboxCommand {
    /// Start it; it goes on in the background
    Up(SandboxUp),
    /// End it and remove everything it made, also after a crash
    Down {
        /// Which sandbox
        #[arg(long, default_value = DEFAULT_NAME, value_parser = sandbox_name)]
        name: String,
    },
    /// Show what runs
    Status {
        /// Which sandbox; all of them unless given
        #[arg(long, value_parser = sandbox_name)]
        name: Option<String>,
        /// How to write it
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: TextFormat,
    },
    /// Print where its kubeconfig is
    Kubeconfig {
        /// Which sandbox
        #[arg(long, default_value = DEFAULT_NAME, value_parser = sandbox_name)]
        name: String,
    },
    /// Give programs of this machine image names that pods can run
    Image(SandboxImage),
}

/// `meshctl sandbox up`
#[derive(Debug, Args)]
pub struct SandboxUp {
    /// Which sandbox
    #[arg(long, default_value = DEFAULT_NAME, value_parser = sandbox_name)]
    pub name: String,
    /// Make it the current context of your own kubeconfig, too
    #[arg(long)]
    pub set_context: bool,
    /// How to write the result
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: TextFormat,
}

/// `meshctl sandbox image`
#[derive(Debug, Args)]
pub struct SandboxImage {
    /// The verb.
    #[command(subcommand)]
    pub command: ImageCommand,
}

/// What can be done with a sandbox's images.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Add or replace an image
    Add {
        /// Which sandbox
        #[arg(long = "name", value_name = "NAME", default_value = DEFAULT_NAME, value_parser = sandbox_name)]
        sandbox: String,
        /// As manifests name it
        image: String,
        /// The program that containers of this image run
        program: PathBuf,
    },
    /// Remove an image
    Remove {
        /// Which sandbox
        #[arg(long = "name", value_name = "NAME", default_value = DEFAULT_NAME, value_parser = sandbox_name)]
        sandbox: String,
        /// As manifests name it
        image: String,
    },
    /// List images
    List {
        /// Which sandbox
        #[arg(long = "name", value_name = "NAME", default_value = DEFAULT_NAME, value_parser = sandbox_name)]
        sandbox: String,
        /// How to write it
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: TextFormat,
    },
}

/// `meshctl check`
#[derive(Debug, Args)]
#[command(
    long_about = "Check that the cluster is fit for the mesh (--pre), that the control plane and all proxies are \
    well (default), or only the proxies (--proxy).\n\nEvery check has a stable id, says what it saw, and, if that was \
    wrong, how to mend it. Nothing is changed. Exits 1 if a check failed."
)]
#[command(after_long_help = "Examples:\n  \
    meshctl check --pre                 # before an install\n  \
    meshctl check --wait 2m             # until all is well, two minutes at most\n  \
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
    /// Try again until nothing fails, for so long at most
    #[arg(long, value_name = "DURATION", value_parser = duration)]
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

/// `meshctl stat`
#[derive(Debug, Args)]
#[command(long_about = "Golden metrics, once: success rate, requests a second, latency, mutual TLS.\n\n\
    Rows count what arrived at a workload, every request, none sampled; percentiles are merged over all its pods.")]
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
    /// Count only what came from this resource
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
#[command(long_about = "Golden metrics of every route, live: a row for each route with its rate, success, latency, \
    mutual TLS and the last minute.\n\nWithout a terminal it prints one table and ends. `?` shows the keys.")]
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

/// `meshctl version`
#[derive(Debug, Args)]
#[command(long_about = "Show which versions run: this program, the control plane, and the proxies by version.\n\n\
    Works without a cluster, and says then why it could not ask one.")]
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

/// Reads a duration as people write it: `500ms`, `10s`, `2m`, `1m30s`; a bare number means seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let say = || format!("`{text}` is not a duration; write for instance 500ms, 10s or 2m");
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| say());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(say)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| say())?;
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ms" => number / 1e3,
            "s" => number,
            "m" => number * 60.0,
            "h" => number * 3600.0,
            _ => return Err(say()),
        };
        total += Duration::try_from_secs_f64(seconds).map_err(|_| say())?;
        rest = tail;
    }
    if text.is_empty() { Err(say()) } else { Ok(total) }
}

/// Reads a sandbox's name: it becomes a part of paths and of a context's name.
fn sandbox_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 40 || !text.chars().all(plain) || text.starts_with('-') {
        return Err("a name has up to 40 lower-case letters, digits and dashes".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a duration that proxies can look back.
fn window(text: &str) -> Result<Duration, String> {
    let window = duration(text)?;
    if window < Duration::from_secs(1) || window > MAX_WINDOW {
        return Err(format!("proxies remember between 1s and {}s", MAX_WINDOW.as_secs()));
    }
    Ok(window)
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

    #[test]
    fn durations_are_read_as_people_write_them() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(duration(text).ok(), expect.map(Duration::from_millis), "{text}");
        };
        check("500ms", Some(500));
        check("10s", Some(10_000));
        check("10", Some(10_000));
        check("1m30s", Some(90_000));
        check("1.5m", Some(90_000));
        check("", None);
        check("s", None);
        check("10x", None);
        check("-1s", None);
        check("1e300s", None);
    }
}
