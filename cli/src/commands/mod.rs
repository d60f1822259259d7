//! What each verb does, a file a verb.

pub mod check;
pub mod completion;
pub mod demo;
pub mod demo_verdict;
pub mod diagnostics;
pub mod edges;
pub mod explain;
mod explain_name;
mod explain_policy;
pub mod explain_request;
mod explain_route;
pub mod identity;
pub mod inject;
pub mod install;
mod install_files;
pub mod lint;
pub mod live;
pub mod man;
pub mod policy;
mod policy_egress;
mod rotation;
mod rotation_wait;
pub mod routes;
pub mod sandbox;
pub mod sandbox_context;
pub mod sources;
pub mod stat;
pub mod tap;
pub mod top;
pub mod uninstall;
pub mod upgrade;
pub mod upgrade_proxies;
pub mod version;

use crate::args::{Cli, Command};
use crate::error::{Outcome, Result};
use crate::output::Printer;

/// Does what the command line asks for.
pub async fn run(cli: Cli, printer: &Printer) -> Result<Outcome> {
    let global = &cli.global;
    match cli.command {
        Command::Demo(args) => demo::run(global, &args, printer).await,
        Command::Sandbox(args) => sandbox::run(args, printer).await,
        Command::Install(args) => install::run(global, &args, printer).await,
        Command::Upgrade(args) => upgrade::run(global, &args, printer).await,
        Command::Uninstall(args) => uninstall::run(global, &args, printer).await,
        Command::Prune(args) => uninstall::prune(global, &args, printer).await,
        Command::Inject(args) => inject::run(global, &args, printer).await,
        Command::Uninject(args) => inject::run_uninject(&args, printer),
        Command::Check(args) => check::run(global, &args, printer).await,
        Command::Lint(args) => lint::run(global, &args, printer).await,
        Command::Stat(args) => stat::run(global, &args, printer).await,
        Command::Routes(args) => routes::run(global, &args, printer).await,
        Command::Edges(args) => edges::run(global, &args, printer).await,
        Command::Top(args) => top::run(global, &args, printer).await,
        Command::Tap(args) => tap::run(global, &args, printer).await,
        Command::Policy(args) => policy::run(global, &args, printer).await,
        Command::Explain(args) => explain::run(global, &args, printer).await,
        Command::Diagnostics(args) => diagnostics::run(global, &args, printer).await,
        Command::Identity(args) => identity::run(global, &args, printer).await,
        Command::Version(args) => version::run(global, &args, printer).await,
        Command::Completion(args) => completion::run(&args, printer),
        Command::Man(args) => man::run(&args, printer),
    }
}
