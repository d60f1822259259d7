//! The CNI plugin `mesh-cni`: sets the redirect of a pod from its node, before anything of the pod runs, so that the pod
//! needs no privilege for it.
//!
//! It is this program under another name, called by the container runtime behind the cluster's own network plugin (CNI
//! 1.1: a chained plugin). Which pods need a redirect knows the agent of the node (`mesh-control cni`), which it asks
//! over a socket. Without an answer the pod gets no network, and the kubelet tries again: a meshed pod must not run
//! unmeshed. What a node lives by (the namespaces that its configuration excludes) is let through without a question.
//!
//! [`conf`] reads what the runtime hands over, [`ask`] asks the agent. What is undone with a pod's network needs no step of
//! its own: the rules go with the network namespace.

pub mod ask;
pub mod conf;

use crate::limits;
use crate::nft::netlink::Netlink;
use crate::redirect::{self, RedirectArgs};
use anyhow::Context;
use clap::Parser;
use conf::{Command, Conf, Pod};
use mesh_api::cni::{Answer, Question};
use mesh_api::names;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Versions of the specification that can be spoken; all of them know plugins that stand behind others.
pub const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A failure, as the specification has it told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{msg}: {details}")]
pub struct CniError {
    /// Below 100 as the specification numbers them.
    pub code: u32,
    /// What failed.
    pub msg: &'static str,
    /// Why, and what to do.
    pub details: String,
}

impl CniError {
    fn new(code: u32, msg: &'static str, details: impl Into<String>) -> Self {
        Self { code, msg, details: details.into() }
    }

    /// Environment variables that do not do.
    pub(crate) fn environment(details: impl Into<String>) -> Self {
        Self::new(4, "invalid environment", details)
    }

    /// Input that cannot be read.
    pub(crate) fn input(details: impl Into<String>) -> Self {
        Self::new(6, "cannot decode the input", details)
    }

    /// A configuration that does not do.
    pub(crate) fn configuration(details: impl Into<String>) -> Self {
        Self::new(7, "invalid network configuration", details)
    }

    /// What may work later.
    pub(crate) fn later(details: impl Into<String>) -> Self {
        Self::new(11, "try again later", details)
    }

    /// The redirect could not be set, or is not what it should be.
    fn redirect(details: impl Into<String>) -> Self {
        Self::new(100, "the pod's traffic is not redirected to its proxy", details)
    }

    /// The error as the runtime reads it.
    pub fn to_json(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.msg, "details": self.details })
    }
}

/// The program `mesh-cni`: everything it is told stands in its environment and its input.
pub fn main() -> ExitCode {
    let mut input = Vec::new();
    let read = io::stdin().take(limits::CNI_INPUT_BYTES + 1).read_to_end(&mut input);
    let version = conf::version(&input);
    let done = match read {
        Err(error) => Err(CniError::input(format!("cannot read the standard input: {error}"))),
        Ok(_) if input.len() as u64 > limits::CNI_INPUT_BYTES => {
            Err(CniError::input(format!("it is longer than {} bytes", limits::CNI_INPUT_BYTES)))
        }
        Ok(_) => run(|name| std::env::var(name).ok(), &input),
    };
    let (said, code) = match done {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result, ExitCode::SUCCESS),
        Err(error) => (error.to_json(&version), ExitCode::FAILURE),
    };
    match writeln!(io::stdout(), "{said}") {
        Ok(()) => code,
        // The runtime does not listen: it cannot take this for a success.
        Err(_) => ExitCode::FAILURE,
    }
}

/// Does what the environment and the input say; what comes back is for the standard output.
pub fn run(environment: impl Fn(&str) -> Option<String>, input: &[u8]) -> Result<Option<Value>, CniError> {
    let command = Command::read(environment("CNI_COMMAND"))?;
    match command {
        Command::Version => {
            Ok(Some(json!({ "cniVersion": conf::version(input), "supportedVersions": VERSIONS.as_slice() })))
        }
        // The rules went with the network namespace.
        Command::Del | Command::Gc => Ok(None),
        // An agent that is away holds up new pods only. A node that says it is not ready would lose those it has.
        Command::Status => Conf::read(input).map(|_| None),
        Command::Add | Command::Check => {
            let conf = Conf::read(input)?;
            let previous = conf.previous()?;
            let wanted = wanted(&conf, Pod::read(environment("CNI_ARGS"))?)?;
            if let Some(wanted) = wanted {
                let path = environment("CNI_NETNS").filter(|path| !path.is_empty());
                let path = path.ok_or_else(|| CniError::environment("CNI_NETNS is not set"))?;
                inside(Path::new(&path), move || if command == Command::Add { set(&wanted) } else { verify(&wanted) })?;
            }
            Ok((command == Command::Add).then_some(previous))
        }
    }
}

/// The redirect that a pod needs.
fn wanted(conf: &Conf, pod: Option<Pod>) -> Result<Option<RedirectArgs>, CniError> {
    // What no kubelet started is no pod.
    let Some(Pod { namespace, name, uid }) = pod else { return Ok(None) };
    if conf.plugin.excluded_namespaces.contains(&namespace) {
        return Ok(None);
    }
    let subject = format!("{namespace}/{name}");
    match ask::ask(Path::new(&conf.plugin.socket), &Question::Pod { namespace, name, uid })? {
        Answer::None => Ok(None),
        Answer::Redirect(args) => read_args(args).map(Some),
        Answer::Unknown(why) => {
            Err(CniError::later(format!("the agent mesh-cni cannot say what {subject} needs: {why}")))
        }
        Answer::Ready => Err(CniError::later(format!("the agent mesh-cni answered something else about {subject}"))),
    }
}

/// Reads the arguments of `mesh-proxy redirect`.
pub fn read_args(args: Vec<String>) -> Result<RedirectArgs, CniError> {
    #[derive(clap::Parser)]
    #[command(no_binary_name = true)]
    struct Line {
        #[command(flatten)]
        args: RedirectArgs,
    }
    let line = Line::try_parse_from(args).map_err(|error| {
        CniError::redirect(format!(
            "the pod asks for what this plugin (version {}) does not know: {}\nhint: upgrade DaemonSet mesh-cni in \
             kube-system to the version of the control plane",
            env!("CARGO_PKG_VERSION"),
            error.to_string().lines().next().unwrap_or_default()
        ))
    })?;
    Ok(line.args)
}

fn set(args: &RedirectArgs) -> Result<(), CniError> {
    let set = Netlink::open().and_then(|netlink| netlink.replace(&redirect::rules(args)));
    set.map_err(|error| {
        CniError::redirect(format!(
            "{error}\nhint: the node's kernel needs nf_tables with NAT: try `modprobe -a nf_tables nft_chain_nat nft_redir` \
             on the node"
        ))
    })
}

fn verify(args: &RedirectArgs) -> Result<(), CniError> {
    let held = Netlink::open().and_then(|netlink| netlink.verify(&redirect::rules(args)));
    held.map_err(|error| CniError::redirect(format!("{error}\nhint: delete the pod, for it to be made anew")))
}

/// Does something in a network namespace. Only a thread of its own can enter one and be forgotten afterwards.
fn inside(path: &Path, work: impl FnOnce() -> Result<(), CniError> + Send + 'static) -> Result<(), CniError> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        CniError::redirect(format!("cannot {what} the pod's network namespace {}: {error}", path.display()))
    };
    let namespace = File::open(path).map_err(|error| failed("open", &error))?;
    let entered = std::thread::spawn(move || match setns(namespace, CloneFlags::CLONE_NEWNET) {
        Ok(()) => work().map_err(Ok),
        Err(errno) => Err(Err(errno)),
    });
    match entered.join() {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Ok(error))) => Err(error),
        Ok(Err(Err(errno))) => Err(failed("enter", &errno)),
        Err(_) => Err(failed("work in", &"the thread ended by itself")),
    }
}

/// Options of `mesh-proxy cni-install`.
#[derive(Debug, Clone, clap::Args)]
pub struct InstallArgs {
    /// Directory of CNI plugins
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
}

/// Puts this program into a directory of plugins, in one step: the runtime finds the old one or the new one, whole.
pub fn install(args: &InstallArgs) -> anyhow::Result<()> {
    let target = args.to.join(names::CNI_PLUGIN);
    let beside = args.to.join(format!(".{}.new", names::CNI_PLUGIN));
    let put = || -> io::Result<()> {
        let mut program = File::open("/proc/self/exe")?;
        let mut copy = File::create(&beside)?;
        io::copy(&mut program, &mut copy)?;
        copy.set_permissions(fs::Permissions::from_mode(0o755))?;
        copy.sync_all()?;
        // A program that is open for writing cannot be run.
        drop(copy);
        fs::rename(&beside, &target)
    };
    put().with_context(|| {
        format!(
            "cannot put the network plugin at {}\nhint: is it the nodes' directory of network plugins, and writable? The value \
             cni.bin_dir says which it is",
            target.display()
        )
    })?;
    tracing::info!(path = %target.display(), "the network plugin is in place");
    Ok(())
}

#[cfg(test)]
mod tests;
