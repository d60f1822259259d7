//! What can be typed after `meshctl sandbox`.

use super::TextFormat;
use super::read::sandbox_name;
use clap::{Args, Subcommand};
use mesh_sandbox::lifecycle::DEFAULT_NAME;
use std::path::PathBuf;

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
