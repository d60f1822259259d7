//! Screens of the recording in `cli/screens`, made as the README says, and what the README shows of them.
//!
//! `cargo run -- top --replay cli/screens/shop.rec --screenshot 80x24 > cli/screens/routes-80x24.txt` makes the first
//! one anew, with `--screen edges --screenshot 120x40` or `--screen details` the others.

use super::*;
use crate::args::{Cli, Command as Verb};
use std::path::PathBuf;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("screens")
}

/// What a command line prints on stdout.
fn printed(words: &str) -> String {
    let recording = folder().join("shop.rec").display().to_string();
    let args = ["meshctl", "top", "--replay", &recording].into_iter().chain(words.split(' '));
    let Verb::Top(args) = Cli::read(args.map(Into::into).collect()).unwrap().command else { panic!("not top") };
    let (printer, read) = Printer::memory();
    let recording = args.replay.clone().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(replay(&recording, &args, &printer)).unwrap(), Outcome::Well);
    read().0
}

#[test]
fn committed_screens_are_what_the_command_prints() {
    for (words, file) in [
        ("--screenshot 80x24", "routes-80x24.txt"),
        ("--screen edges --screenshot 120x40", "edges-120x40.txt"),
        ("--screen details --screenshot 120x40", "details-120x40.txt"),
    ] {
        let committed = std::fs::read_to_string(folder().join(file)).unwrap();
        assert_eq!(printed(words), committed, "cli/screens/{file} is not what `{words}` prints");
    }
}

#[test]
fn the_readme_shows_the_committed_screens() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    for file in ["routes-80x24.txt", "edges-120x40.txt"] {
        let screen = std::fs::read_to_string(folder().join(file)).unwrap();
        assert!(readme.contains(&screen), "README.md does not show cli/screens/{file} as it is");
    }
}

#[test]
fn rows_of_a_recording_are_those_of_stat() {
    let rows: Vec<serde_json::Value> = serde_json::from_str(&printed("-o json")).unwrap();
    assert!(rows.len() > 8);
    for key in ["rps", "success_rate", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "mtls_rate", "route"] {
        assert!(rows.iter().all(|row| row.get(key).is_some()), "{key}");
    }
}
