//! What each verb does, a file a verb.

pub mod completion;
pub mod version;

use crate::args::{Cli, Command};
use crate::error::{Outcome, Result};
use crate::output::Printer;

/// Does what the command line asks for.
pub async fn run(cli: Cli, printer: &Printer) -> Result<Outcome> {
    let global = &cli.global;
    match cli.command {
        Command::Version(args) => version::run(global, &args, printer).await,
        Command::Completion(args) => completion::run(&args, printer),
    }
}
