//! What can be typed to try the mesh: `meshctl demo` and `meshctl sandbox`.

use super::TextFormat;
use super::read::{duration, sandbox_name};
use crate::output::RowFormat;
use clap::{Args, Subcommand};
use mesh_sandbox::lifecycle::DEFAULT_NAME;
use std::path::PathBuf;
use std::time::Duration;

/// `meshctl demo`
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:\n  \
    meshctl demo\n  \
    meshctl demo --once -o json\n  \
    meshctl demo --keep                 # leave the cluster running afterwards")]
pub struct Demo {
    /// Print golden metrics once instead of opening top
    #[arg(long)]
    pub once: bool,
    /// How to write them; implies --once
    #[arg(short, long, value_name = "FORMAT")]
    pub output: Option<RowFormat>,
    /// How long all of it may take until traffic flows
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = duration)]
    pub timeout: Duration,
    /// Leave everything running
    #[arg(long)]
    pub keep: bool,
    /// Name of the local cluster
    #[arg(long, default_value = "demo", value_parser = sandbox_name)]
    pub name: String,
}

/// `meshctl sandbox`
#[derive(Debug, Args)]
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
