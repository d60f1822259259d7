//! The mesh's command line.
//!
//! One binary wears several hats: under the name `mesh-proxy`, `mesh-control`, `mesh-demo` or `mesh-sandbox` it is
//! that program, so that a sandbox needs no other file than this one; under any other name it is `meshctl`.
//!
//! - [`args`]: what can be typed; [`commands`]: what each verb does.
//! - [`output`]: the one door to stdout and stderr; [`error`]: what a failure says.
//! - [`cluster`]: which cluster is meant and how it is reached; [`observe`]: golden frames from it.
//! - [`apply`]: objects to a cluster, and the wait until they work; [`plan`]: what that would change;
//!   [`installed`]: the mesh that is there.
//! - [`check`]: what is checked of cluster and mesh.
//! - [`golden`], [`routes`], [`edges`]: from frames to rows, pure; [`top`]: the live screen.
//! - [`tap`]: single requests and connections from the cluster.
//! - [`proxies`]: what the proxies' admin ports say; [`shown`]: the world as the control plane sees it.
//! - [`resource`], [`selector`], [`known`]: resources as kubectl writes and selects them, and what there is instead of those
//!   that are not there.

pub mod apply;
pub mod args;
pub mod check;
pub mod cluster;
pub mod commands;
pub mod edges;
pub mod error;
pub mod golden;
pub mod installed;
pub mod known;
pub mod observe;
pub mod output;
pub mod plan;
pub mod proxies;
pub mod resource;
pub mod routes;
pub mod selector;
pub mod shown;
pub mod tap;
#[cfg(test)]
mod testing;
pub mod top;
#[cfg(test)]
mod troubleshooting;

use args::Cli;
use error::{Error, Outcome};
use output::Printer;
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// Exit code for "it worked, and it found problems".
pub const EXIT_PROBLEMS: u8 = 1;
/// Exit code for "it could not do its work, or was called wrongly".
pub const EXIT_FAILURE: u8 = 2;

/// Runs the program that the name this binary was called by stands for.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let name = args.first().and_then(|arg| Path::new(arg).file_name()).and_then(|name| name.to_str());
    match name {
        Some("mesh-proxy" | mesh_api::names::CNI_PLUGIN) => mesh_proxy::main(args.into_iter()),
        Some("mesh-control") => mesh_control::main(args.into_iter()),
        Some("mesh-demo") => mesh_sandbox::apps::main(args.into_iter()),
        Some("mesh-sandbox") => mesh_sandbox::lifecycle::daemon_main(args.into_iter()),
        _ => run(args),
    }
}

/// Runs `meshctl` itself.
fn run(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::read(args) {
        Ok(cli) => cli,
        Err(refusal) => {
            // A reader that has gone away is a normal end for `--help | head`.
            let _ = refusal.print();
            return ExitCode::from(u8::try_from(refusal.exit_code()).unwrap_or(EXIT_FAILURE));
        }
    };
    let printer = Printer::new(cli.global.color, cli.global.verbose, cli.global.quiet);
    // Only one provider is linked, but two crates must not race to choose it; losing that race is fine.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if cli.global.verbose {
        output::log_to_stderr();
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return fail(&printer, &Error::new(format!("cannot start the runtime: {cause}"))),
    };
    let outcome = runtime.block_on(commands::run(cli, &printer));
    // A blocking task (a spinner, a resolver that hangs) must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(Outcome::Well) => ExitCode::SUCCESS,
        Ok(Outcome::Problems) => ExitCode::from(EXIT_PROBLEMS),
        Err(error) => fail(&printer, &error),
    }
}

fn fail(printer: &Printer, error: &Error) -> ExitCode {
    if error.is_broken_pipe() {
        return ExitCode::SUCCESS;
    }
    printer.error(error);
    ExitCode::from(EXIT_FAILURE)
}
