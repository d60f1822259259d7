//! A page of documentation, read: its fenced blocks, the commands in them, its links, and the code in its prose.
//!
//! A block marked `sh` holds commands, one marked `console` commands after `$ ` and what they print. Any other block
//! shows something else. `<!-- not run: REASON -->` before a block keeps its commands from being run; in the comment
//! behind a command, `exits 1` says which exit code is meant and `Ctrl-C` that it goes on until it is interrupted.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// Languages of blocks without commands. Others, and none, are mistakes: a command may hide there.
const SHOWN: &[&str] = &["text", "yaml", "json", "toml", "rust"];

/// A page.
#[derive(Debug)]
pub(crate) struct Page {
    /// Where it lies, from the root of the tree.
    pub(crate) path: PathBuf,
    /// Its blocks of commands.
    pub(crate) blocks: Vec<Block>,
    /// What stands outside of blocks, with line numbers from 1.
    pub(crate) prose: Vec<(usize, String)>,
}

/// A block of commands.
#[derive(Debug)]
pub(crate) struct Block {
    /// Line of the fence, from 1.
    pub(crate) line: usize,
    /// Why nothing of it is run.
    pub(crate) not_run: Option<String>,
    /// Its commands.
    pub(crate) commands: Vec<Command>,
}

/// A command as it is shown.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Command {
    /// Its first line, from 1.
    pub(crate) line: usize,
    /// All its lines.
    pub(crate) text: String,
    /// The exit code that is meant.
    pub(crate) exits: i32,
    /// Whether it goes on until it is interrupted.
    pub(crate) endless: bool,
}

impl Page {
    /// Reads a page of the tree under `root`.
    pub(crate) fn read(root: &Path, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(root.join(path)).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(path, &text).with_context(|| path.display().to_string())
    }

    /// A page of nothing but commands.
    pub(crate) fn of_commands(path: &Path, commands: &[&str]) -> Result<Self> {
        Self::parse(path, &format!("```sh\n{}\n```\n", commands.join("\n")))
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let mut page = Self { path: path.to_owned(), blocks: Vec::new(), prose: Vec::new() };
        let mut lines = (1..).zip(text.lines());
        // Where the prose after the last block begins.
        let mut since = 0;
        while let Some((line, text)) = lines.next() {
            let Some(language) = text.trim_start().strip_prefix("```") else {
                page.prose.push((line, text.to_owned()));
                continue;
            };
            let mut inside = Vec::new();
            loop {
                let (at, text) = lines.next().with_context(|| format!("line {line}: the block has no end"))?;
                if text.trim() == "```" {
                    break;
                }
                inside.push((at, text));
            }
            let marker = marker(&page.prose[since..])?;
            since = page.prose.len();
            let commands = match language.trim() {
                "sh" => commands(&inside),
                "console" => commands(&prompted(&inside)),
                shown if SHOWN.contains(&shown) => continue,
                other => bail!(
                    "line {line}: a block of `{other}`; commands stand in `sh` or `console`, others are {SHOWN:?}"
                ),
            };
            let commands = commands.with_context(|| format!("the block in line {line}"))?;
            ensure!(!commands.is_empty(), "line {line}: a block of commands without a command");
            page.blocks.push(Block { line, not_run: marker, commands });
        }
        Ok(page)
    }

    /// Its commands that are to be run.
    pub(crate) fn runnable(&self) -> impl Iterator<Item = &Command> {
        self.blocks.iter().filter(|block| block.not_run.is_none()).flat_map(|block| &block.commands)
    }

    /// Targets of links, with their lines.
    pub(crate) fn links(&self) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        for (line, text) in &self.prose {
            // Outside of code, where the like may stand in an expression.
            for part in text.split('`').step_by(2) {
                let after = part.match_indices("](").map(|(at, mark)| &part[at + mark.len()..]);
                found.extend(after.filter_map(|rest| Some((*line, rest.split_once(')')?.0))));
            }
        }
        found
    }

    /// What stands between backticks in the prose, with lines.
    pub(crate) fn code(&self) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        for (line, text) in &self.prose {
            found.extend(text.split('`').skip(1).step_by(2).map(|code| (*line, code)));
        }
        found
    }

    /// Anchors of its headings, as GitHub makes them.
    pub(crate) fn anchors(&self) -> Vec<String> {
        let headings = self.prose.iter().filter_map(|(_, text)| text.strip_prefix('#'));
        headings.map(|text| anchor(text.trim_start_matches('#').trim())).collect()
    }
}

/// Why the block that follows is not run, if the last line before it says so.
fn marker(prose: &[(usize, String)]) -> Result<Option<String>> {
    let Some((line, text)) = prose.iter().rev().find(|(_, text)| !text.trim().is_empty()) else { return Ok(None) };
    let Some(rest) = text.trim().strip_prefix("<!-- not run:") else { return Ok(None) };
    let reason = rest.strip_suffix("-->").map(str::trim).unwrap_or_default();
    ensure!(!reason.is_empty(), "line {line}: the marker gives no reason");
    Ok(Some(reason.to_owned()))
}

/// The anchor of a heading: lower case, without punctuation, spaces as dashes.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}

/// What is typed in a block that shows output, too.
fn prompted<'a>(lines: &[(usize, &'a str)]) -> Vec<(usize, &'a str)> {
    lines.iter().filter_map(|(line, text)| Some((*line, text.strip_prefix("$ ")?))).collect()
}

/// The commands of a block: lines, with those that belong together (`\` at the end, open quotes, here-documents).
fn commands(lines: &[(usize, &str)]) -> Result<Vec<Command>> {
    let mut found = Vec::new();
    let mut lines = lines.iter();
    while let Some((line, first)) = lines.next() {
        if first.trim().is_empty() || first.trim_start().starts_with('#') {
            continue;
        }
        let mut text = (*first).to_owned();
        while let Some(why) = unfinished(&text) {
            let (_, next) = lines.next().with_context(|| format!("line {line}: {why}"))?;
            text.push('\n');
            text.push_str(next);
        }
        let remark = remark(&text);
        let exits = remark.and_then(|remark| remark.split_once("exits ")).map(|(_, rest)| {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().with_context(|| format!("line {line}: `exits` without a code"))
        });
        let endless = remark.is_some_and(|remark| remark.contains("Ctrl-C"));
        found.push(Command { line: *line, exits: exits.transpose()?.unwrap_or(0), endless, text });
    }
    Ok(found)
}

/// What a command still lacks.
fn unfinished(text: &str) -> Option<&'static str> {
    if let Some((_, rest)) = text.split_once("<<'") {
        let (word, body) = rest.split_once('\'').unwrap_or((rest, ""));
        return (!body.lines().skip(1).any(|line| line == word)).then_some("the here-document has no end");
    }
    if text.ends_with('\\') {
        return Some("nothing follows the backslash");
    }
    scan(text).0.then_some("a quote is open")
}

/// The comment behind a command: on its first line, where a here-document follows.
fn remark(text: &str) -> Option<&str> {
    let line = if text.contains("<<'") { text.lines().next()? } else { text };
    scan(line).1.map(|at| &line[at..])
}

/// Whether a quote is open at the end, and where a comment begins.
fn scan(text: &str) -> (bool, Option<usize>) {
    let (mut quote, mut before) = (None, ' ');
    for (at, c) in text.char_indices() {
        match quote {
            Some(open) if open == c && before != '\\' => quote = None,
            Some(_) => {}
            None if c == '#' && before.is_whitespace() => return (false, Some(at)),
            None if matches!(c, '\'' | '"') => quote = Some(c),
            None => {}
        }
        before = c;
    }
    (quote.is_some(), None)
}

/// Reads every kind of command and marker there is, and refuses what could hide one.
pub(crate) fn pages_are_read() -> Result<()> {
    let text = "\
# The first (one)

```sh
# only a comment
a one   # exits 1: as it should
b \\
  two # until Ctrl-C
c <<'EOF' # exits 2
x # exits 9
EOF
d '
# exits 3
'
```

<!-- not run: needs the moon -->
```console
$ e --all
output
```

```sh
f
```
See [there](../b.md#x) and `meshctl top`.
";
    let page = Page::parse(Path::new("a/a.md"), text)?;
    let command = |line, text: &str, exits, endless| Command { line, text: text.to_owned(), exits, endless };
    let expected = vec![
        command(5, "a one   # exits 1: as it should", 1, false),
        command(6, "b \\\n  two # until Ctrl-C", 0, true),
        command(8, "c <<'EOF' # exits 2\nx # exits 9\nEOF", 2, false),
        command(11, "d '\n# exits 3\n'", 0, false),
    ];
    ensure!(page.blocks[0].commands == expected, "{:?}", page.blocks);
    ensure!(page.runnable().count() == 5 && page.blocks[1].not_run.as_deref() == Some("needs the moon"));
    ensure!(page.blocks[1].commands == [command(18, "e --all", 0, false)], "{:?}", page.blocks);
    ensure!(page.links() == [(25, "../b.md#x")] && page.code() == [(25, "meshctl top")]);
    ensure!(page.anchors() == ["the-first-one"], "{:?}", page.anchors());
    for wrong in [
        "```\nmeshctl top\n```\n",
        "```bash\nmeshctl top\n```\n",
        "```sh\n# nothing\n```\n",
        "```sh\nmeshctl top \\\n```\n",
        "```sh\nmeshctl 'top\n```\n",
        "```sh\ncat <<'EOF'\n```\n",
        "```sh\nmeshctl top\n",
        "<!-- not run: -->\n```sh\nmeshctl top\n```\n",
        "```sh\nmeshctl check # exits badly\n```\n",
    ] {
        ensure!(Page::parse(Path::new("a.md"), wrong).is_err(), "taken for good: {wrong}");
    }
    Ok(())
}
