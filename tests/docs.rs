//! Documentation that is true: every command that a page shows is run, every link leads somewhere, every page is reached
//! from the README, and what the prose calls a command is one.
//!
//! A page that says `meshctl sandbox up` is run as by somebody who has nothing yet, and leaves nothing. Commands of
//! the others are run in a sandbox with the mesh and the demo shop, page after page. What is not run is printed, with the
//! reason that the page gives.

mod page;

use crate::harness::{Need, eventually, find_program, ourselves, run_with_input, test};
use crate::tidy::root;
use anyhow::{Context, Result, bail, ensure};
use clap::error::ErrorKind;
use libtest_mimic::Trial;
use page::Page;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const NEEDS: &[Need] =
    &[Need::Namespaces, Need::Program("kubectl"), Need::Program("openssl"), Need::Program("timeout")];

/// Pages without commands, and why they need none.
const WITHOUT: &[(&str, &str)] = &[
    ("cli/CHECKS.md", "a table made from the code"),
    ("control/LINTS.md", "a table made from the code"),
    ("manifests/REFERENCE.md", "tables made from the code"),
    ("proxy/METRICS.md", "a table made from the code"),
    ("tests/bench/RESULTS.md", "numbers, measured elsewhere"),
];
/// The longest page, which is run by itself, beside the others.
const TASKS: &str = "cli/TASKS.md";
/// What a page says that wants no cluster to be there.
const FROM_NOTHING: &str = "meshctl sandbox up";
/// What all other pages find.
const SHOP: &[&str] = &[
    "meshctl sandbox up --set-context",
    "meshctl install --apply",
    "meshctl check --wait",
    "meshctl inject cli/sandbox/src/apps/shop.yaml | kubectl apply -f -",
    "kubectl -n shop wait --for=condition=Available deploy --all --timeout=60s",
];
/// All commands of a page are done by then.
const PAGE_SECONDS: u32 = 240;
/// What goes on for ever goes on for so long.
const ENDLESS_SECONDS: u32 = 2;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("docs::pages_are_read", &[], page::pages_are_read),
        test("docs::pages_hold_together", &[], pages_hold_together),
        test("docs::commands_in_prose_exist", &[], commands_in_prose_exist),
        test("docs::a_wrong_command_is_found", &[Need::Program("timeout")], a_wrong_command_is_found),
        test("docs::tasks_run_from_nothing", NEEDS, tasks_run_from_nothing),
        test("docs::commands_run_from_nothing", NEEDS, commands_run_from_nothing),
        test("docs::commands_run_in_the_shop", NEEDS, commands_run_in_the_shop),
    ]
}

/// Every page of the tree, by path.
fn pages() -> Result<Vec<Page>> {
    let mut pending = vec![PathBuf::new()];
    let mut found = BTreeSet::new();
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(root().join(&folder))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = folder.join(&name);
            match entry.file_type()?.is_dir() {
                true if name.starts_with('.') || name == "target" => {}
                true => pending.push(path),
                false if name.ends_with(".md") => drop(found.insert(path)),
                false => {}
            }
        }
    }
    found.iter().map(|path| Page::read(root(), path)).collect()
}

/// Why a page needs no commands.
fn without(page: &Page) -> Option<&'static str> {
    WITHOUT.iter().find(|(path, _)| page.path == Path::new(path)).map(|(_, why)| *why)
}

fn pages_hold_together() -> Result<()> {
    let pages = pages()?;
    let mut reached = BTreeSet::from([PathBuf::from("README.md")]);
    let mut pending = vec![PathBuf::from("README.md")];
    while let Some(path) = pending.pop() {
        let page =
            pages.iter().find(|page| page.path == path).with_context(|| format!("{} is gone", path.display()))?;
        for (line, link) in page.links() {
            let target = follow(&pages, page, link).with_context(|| format!("{}:{line}: {link}", path.display()))?;
            pending.extend(target.filter(|target| reached.insert(target.clone())));
        }
    }
    for page in &pages {
        let name = page.path.display();
        ensure!(reached.contains(&page.path), "no way leads from README.md to {name}");
        match without(page) {
            Some(_) => ensure!(page.blocks.is_empty(), "{name} has commands: take it out of the list of those without"),
            None => ensure!(page.runnable().next().is_some(), "{name} shows no command that can be run"),
        }
    }
    Ok(())
}

/// Where a link leads, if to a page of ours.
fn follow(pages: &[Page], from: &Page, link: &str) -> Result<Option<PathBuf>> {
    if link.contains("://") {
        return Ok(None);
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let mut path = from.path.parent().unwrap_or(Path::new("")).to_owned();
    if file.is_empty() {
        path.clone_from(&from.path);
    }
    for part in Path::new(file).components() {
        match part {
            Component::ParentDir => ensure!(path.pop(), "leads out of the tree"),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    ensure!(root().join(&path).exists(), "there is no {}", path.display());
    let page = pages.iter().find(|page| page.path == path);
    if let Some(anchor) = anchor {
        let anchors = page.map(Page::anchors).unwrap_or_default();
        ensure!(anchors.iter().any(|known| known == anchor), "there is no such heading; there are {anchors:?}");
    }
    Ok(page.map(|page| page.path.clone()))
}

fn commands_in_prose_exist() -> Result<()> {
    let mut seen = 0;
    for page in pages()? {
        for (line, code) in page.code() {
            let code = code.split(['|', '…']).next().unwrap_or_default();
            if !code.starts_with("meshctl ") {
                continue;
            }
            seen += 1;
            let words = code.split_whitespace().map(|word| word.trim_matches('\'').into());
            let Err(refusal) = meshctl::args::Cli::read(words.collect()) else { continue };
            // What is only named need not be complete.
            let named = matches!(
                refusal.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::MissingSubcommand
                    | ErrorKind::DisplayHelp
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            ensure!(named, "{}:{line}: `{code}`: {refusal}", page.path.display());
        }
    }
    ensure!(seen > 30, "only {seen} commands found in the prose: is it still read?");
    Ok(())
}

/// A place to run commands in: a home, the tree, and the programs under their names. Sandboxes end with it.
struct Room {
    folder: tempfile::TempDir,
}

impl Room {
    fn new() -> Result<Self> {
        let room = Self { folder: tempfile::tempdir()? };
        for name in ["bin", "home", "tree"] {
            std::fs::create_dir(room.path(name))?;
        }
        for program in ["meshctl", "mesh-proxy"] {
            symlink(std::env::current_exe()?, room.path("bin").join(program))?;
        }
        if let Some(kubectl) = find_program("kubectl") {
            symlink(kubectl, room.path("bin/kubectl"))?;
        }
        // What commands write stays here; what they read is the tree's.
        for entry in std::fs::read_dir(root())? {
            let entry = entry?;
            if entry.file_name() != "target" {
                symlink(entry.path(), room.path("tree").join(entry.file_name()))?;
            }
        }
        Ok(room)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A command that sees this room only.
    fn furnish(&self, command: &mut Command) -> Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(self.path("bin")).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(path)?).env("HOME", self.path("home")).current_dir(self.path("tree"));
        for name in ["XDG_RUNTIME_DIR", "KUBECONFIG", "MESHCTL_NAMESPACE", "MESH_TEST_STRICT"] {
            command.env_remove(name);
        }
        Ok(())
    }

    /// Names of sandboxes that are up.
    fn sandboxes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path("home/.meshctl/sandbox")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Runs the commands of a page to the first that does not end as it says; returns how long each took.
    fn run(&self, page: &Page) -> Result<Vec<Duration>> {
        let name = page.path.display();
        let (script, report, output) = (self.path("script"), self.path("report"), self.path("output"));
        std::fs::write(&script, self.script(page))?;
        std::fs::write(&report, "")?;
        let mut bash = Command::new("timeout");
        bash.args(["-k", "5", &PAGE_SECONDS.to_string(), "bash"]).arg(&script);
        self.furnish(&mut bash)?;
        run_with_input(bash, "")?;
        let report = std::fs::read_to_string(report)?;
        let mut report = report.lines();
        let (mut took, mut before) = (Vec::new(), Duration::ZERO);
        for command in page.runnable() {
            let told = report.next().map(|line| read_report(line).with_context(|| line.to_owned())).transpose()?;
            if let Some((code, at)) = told
                && accepted(command).contains(&code)
            {
                took.push(at.saturating_sub(before));
                before = at;
                continue;
            }
            let code = told.map(|(code, _)| code);
            let output = String::from_utf8_lossy(&std::fs::read(&output)?).into_owned();
            let output: Vec<&str> = output.lines().rev().take(40).collect();
            let output: Vec<&str> = output.into_iter().rev().collect();
            let end = code.map_or("did not end".to_owned(), |code| format!("ended with {code}, not {}", command.exits));
            bail!("{name}:{}: `{}` {end}; the last lines:\n{}", command.line, command.text, output.join("\n"));
        }
        Ok(took)
    }

    /// The commands of a page as a program that notes each exit code and the time, and stops at one that is wrong.
    fn script(&self, page: &Page) -> String {
        let mut script = format!(
            "set -o pipefail\nexec 3>'{}' >'{}' 2>&1\nstart=${{EPOCHREALTIME/[.,]/}}\nran() {{ echo \"$1 $((${{EPOCHREALTIME/[.,]/}} - start))\" >&3; case \" $2 \" in *\" $1 \"*) ;; *) exit 1 ;; esac; }}\n",
            self.path("report").display(),
            self.path("output").display()
        );
        for command in page.runnable() {
            let bound = format!("timeout --preserve-status -k 5 -s INT {ENDLESS_SECONDS} ");
            let bound = if command.endless { bound } else { String::new() };
            let codes: Vec<String> = accepted(command).iter().map(i32::to_string).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(script, "{bound}{}\nran $? '{}'", command.text, codes.join(" "));
        }
        script
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        for name in self.sandboxes() {
            if let Ok(mut down) = ourselves("meshctl") {
                down.args(["sandbox", "down", "--name", &name]);
                let _ = self.furnish(&mut down).and_then(|()| run_with_input(down, ""));
            }
        }
    }
}

/// A line of the report: an exit code, and microseconds since the start.
fn read_report(line: &str) -> Option<(i32, Duration)> {
    let (code, micros) = line.split_once(' ')?;
    Some((code.parse().ok()?, Duration::from_micros(micros.parse().ok()?)))
}

/// Exit codes that are right: 130 is an interrupted program's.
fn accepted(command: &page::Command) -> Vec<i32> {
    if command.endless { vec![0, 130] } else { vec![command.exits] }
}

/// Says what of a page was run, for how long, and what was not.
fn tell(page: &Page, took: &[Duration]) {
    let (path, count) = (page.path.display(), took.len());
    let mut text = format!("{path}: {count} commands run in {:.1?}", took.iter().sum::<Duration>());
    if let Some((took, command)) = took.iter().zip(page.runnable()).max_by_key(|(took, _)| **took) {
        let _ = write!(text, ", the slowest in line {} ({took:.1?})", command.line);
    }
    text.push('\n');
    for block in &page.blocks {
        if let Some(reason) = &block.not_run {
            let (line, count) = (block.line, block.commands.len());
            let _ = writeln!(text, "{path}:{line}: {count} commands not run: {reason}");
        }
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn starts_from_nothing(page: &Page) -> bool {
    page.runnable().any(|command| command.text.starts_with(FROM_NOTHING))
}

fn tasks_run_from_nothing() -> Result<()> {
    run_from_nothing(|page| page.path == Path::new(TASKS))
}

fn commands_run_from_nothing() -> Result<()> {
    run_from_nothing(|page| page.path != Path::new(TASKS))
}

fn run_from_nothing(of: fn(&Page) -> bool) -> Result<()> {
    let pages = pages()?;
    let chosen: Vec<&Page> = pages.iter().filter(|page| starts_from_nothing(page) && of(page)).collect();
    ensure!(!chosen.is_empty(), "no such page says `{FROM_NOTHING}`");
    for page in chosen {
        let room = Room::new()?;
        tell(page, &room.run(page)?);
        let left = room.sandboxes();
        ensure!(left.is_empty(), "{} leaves sandboxes behind: {left:?}", page.path.display());
    }
    Ok(())
}

fn commands_run_in_the_shop() -> Result<()> {
    let room = Room::new()?;
    room.run(&Page::of_commands(Path::new("the shop"), SHOP)?)?;
    let seen = Page::of_commands(Path::new("the shop"), &["meshctl stat deploy -n shop -o json >rows.json"])?;
    eventually(Duration::from_secs(30), "traffic is seen", || {
        room.run(&seen)?;
        let rows: Vec<serde_json::Value> = serde_json::from_slice(&std::fs::read(room.path("tree/rows.json"))?)?;
        let flows = |name: &str| rows.iter().any(|row| row["name"] == name && row["rps"].as_f64() > Some(0.0));
        ensure!(["web", "catalog", "cart"].iter().all(|name| flows(name)), "{rows:?}");
        Ok(())
    })?;
    for page in pages()?.iter().filter(|page| !starts_from_nothing(page) && without(page).is_none()) {
        tell(page, &room.run(page)?);
    }
    Ok(())
}

/// What runs the commands takes note of every wrong end.
fn a_wrong_command_is_found() -> Result<()> {
    let room = Room::new()?;
    let page = |commands: &[&str]| Page::of_commands(Path::new("a.md"), commands);
    let good = page(&[
        "false  # exits 1",
        "a=1",
        "test \"$a\" = 1",
        "sleep 60  # until Ctrl-C",
        "cat <<'END' | grep -q x\nx\nEND",
        "meshctl version --client",
        "meshctl nonsense  # exits 2",
    ])?;
    ensure!(room.run(&good)?.len() == 7);
    for (wrong, says) in [
        ("false", "a.md:3: `false` ended with 1, not 0"),
        ("true  # exits 1", "ended with 0, not 1"),
        ("false | cat", "ended with 1, not 0"),
        ("exit 0", "did not end"),
        ("no-such-program", "no-such-program: command not found"),
    ] {
        let refusal = room.run(&page(&["true", wrong, "true"])?).err().context(wrong)?.to_string();
        ensure!(refusal.contains(says), "{refusal}");
    }
    Ok(())
}
