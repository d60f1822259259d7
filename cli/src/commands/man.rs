//! `meshctl man`: manual pages of every command, made from what can be typed.

use crate::args::{Man, command};
use crate::error::{Context, Outcome, Result};
use crate::output::Printer;

/// Writes the pages into a folder, which is made if it is not there, or prints the first one.
pub fn run(args: &Man, printer: &Printer) -> Result<Outcome> {
    match &args.folder {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(command()).render(&mut page).during(|| "write the manual page")?;
            printer.data(&String::from_utf8_lossy(&page))?;
        }
        Some(folder) => {
            let tried = || format!("write manual pages to {}", folder.display());
            std::fs::create_dir_all(folder).during(tried)?;
            clap_mangen::generate_to(command(), folder).during(tried)?;
            printer.note(&format!("Manual pages are in {0}; man -l {0}/meshctl.1 shows the first.", folder.display()));
        }
    }
    Ok(Outcome::Well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let pages = folder.path().join("man1");
        let (printer, read) = Printer::memory();
        run(&Man { folder: Some(pages.clone()) }, &printer).unwrap();
        for verb in command().get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let page = std::fs::read_to_string(pages.join(format!("meshctl-{}.1", verb.get_name()))).unwrap();
            assert!(page.contains(".SH SYNOPSIS"), "{}", verb.get_name());
        }
        assert!(pages.join("meshctl-sandbox-up.1").exists());
        run(&Man { folder: None }, &printer).unwrap();
        assert!(read().0.contains(".TH meshctl 1"), "{}", read().0);
    }
}
