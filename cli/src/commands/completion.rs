//! `meshctl completion`: scripts that teach a shell our flags.

use crate::args::{self, Completion};
use crate::error::{Outcome, Result};
use crate::output::Printer;

/// Prints the script.
pub fn run(args: &Completion, printer: &Printer) -> Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut args::command(), "meshctl", &mut script);
    printer.data(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Well)
}
