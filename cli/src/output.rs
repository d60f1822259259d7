//! The one door to stdout and stderr.
//!
//! stdout is data and nothing else; notes, warnings, progress and errors go to stderr. A reader that goes away is a
//! normal end, reported as [`Error::is_broken_pipe`]. Nothing else in this crate prints.

use crate::error::{Context, Error, Result};
use clap::ValueEnum;
use comfy_table::{Attribute, Cell, CellAlignment, Table};
use serde::Serialize;
use std::io::{IsTerminal, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When to colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

/// How rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum RowFormat {
    /// Aligned columns for people
    #[default]
    Table,
    /// The table with every column
    Wide,
    /// A JSON array
    Json,
    /// YAML
    Yaml,
}

/// A column of a table: its head and whether it holds numbers (which align to the right).
pub struct Column {
    /// Head, as it is printed.
    pub head: &'static str,
    /// True for numbers.
    pub number: bool,
}

/// A column of words.
pub const fn words(head: &'static str) -> Column {
    Column { head, number: false }
}

/// A column of numbers.
pub const fn numbers(head: &'static str) -> Column {
    Column { head, number: true }
}

#[derive(Clone)]
enum Sink {
    Real,
    #[cfg(test)]
    Memory(Arc<Mutex<(Vec<u8>, Vec<u8>)>>),
}

/// Writes data to stdout and everything else to stderr.
#[derive(Clone)]
pub struct Printer {
    sink: Sink,
    verbose: bool,
    quiet: bool,
    color_stdout: bool,
    color_stderr: bool,
    progress_line: bool,
    /// The spinner's line, taken away while something else is written.
    live: Arc<Mutex<Option<String>>>,
}

impl Printer {
    /// A printer for the real terminal.
    pub fn new(color: ColorChoice, verbose: bool, quiet: bool) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let colored = |terminal: bool| match color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => terminal && !no_color,
        };
        let stderr_terminal = std::io::stderr().is_terminal();
        Self {
            sink: Sink::Real,
            verbose,
            quiet,
            color_stdout: colored(std::io::stdout().is_terminal()),
            color_stderr: colored(stderr_terminal),
            progress_line: stderr_terminal && !quiet && std::env::var_os("TERM").is_none_or(|term| term != "dumb"),
            live: Arc::default(),
        }
    }

    /// A printer that keeps what it is given; the second half reads stdout and stderr back.
    #[cfg(test)]
    pub(crate) fn memory() -> (Self, impl Fn() -> (String, String)) {
        let kept: Arc<Mutex<(Vec<u8>, Vec<u8>)>> = Arc::default();
        let printer = Self {
            sink: Sink::Memory(kept.clone()),
            verbose: false,
            quiet: false,
            color_stdout: false,
            color_stderr: false,
            progress_line: false,
            live: Arc::default(),
        };
        let read = move || {
            let kept = kept.lock().unwrap();
            (String::from_utf8_lossy(&kept.0).into_owned(), String::from_utf8_lossy(&kept.1).into_owned())
        };
        (printer, read)
    }

    /// True if data may be coloured.
    pub fn colors(&self) -> bool {
        self.color_stdout
    }

    /// True if details are wanted.
    pub fn verbose(&self) -> bool {
        self.verbose
    }

    /// Writes data.
    pub fn data(&self, text: &str) -> Result<()> {
        self.bytes(text.as_bytes())
    }

    fn bytes(&self, bytes: &[u8]) -> Result<()> {
        self.hide_live();
        match &self.sink {
            Sink::Real => {
                let mut out = std::io::stdout().lock();
                out.write_all(bytes).and_then(|()| out.flush()).map_err(|cause| Error::from_stdout(&cause))
            }
            #[cfg(test)]
            Sink::Memory(kept) => {
                kept.lock().unwrap().0.extend_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Writes data from a reader, piece by piece.
    pub fn data_from(&self, from: &mut impl Read) -> Result<()> {
        let mut piece = vec![0; 64 << 10];
        loop {
            let length = from.read(&mut piece).during(|| "read what is to be written")?;
            if length == 0 {
                return Ok(());
            }
            self.bytes(&piece[..length])?;
        }
    }

    /// Writes a value as JSON, indented.
    pub fn json<T: Serialize + ?Sized>(&self, value: &T) -> Result<()> {
        let mut text = serde_json::to_string_pretty(value).map_err(|cause| Error::new(cause.to_string()))?;
        text.push('\n');
        self.data(&text)
    }

    /// Writes a value as one line of JSON, for streams.
    pub fn json_line<T: Serialize + ?Sized>(&self, value: &T) -> Result<()> {
        let mut text = serde_json::to_string(value).map_err(|cause| Error::new(cause.to_string()))?;
        text.push('\n');
        self.data(&text)
    }

    /// Writes a value as YAML.
    pub fn yaml<T: Serialize>(&self, value: &T) -> Result<()> {
        let mut text = serde_saphyr::to_string(value).map_err(|cause| Error::new(cause.to_string()))?;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.data(&text)
    }

    /// Writes a table, without borders, as kubectl does.
    pub fn table(&self, columns: &[Column], rows: Vec<Vec<Cell>>) -> Result<()> {
        self.data(&self.table_text(columns, rows))
    }

    fn table_text(&self, columns: &[Column], rows: Vec<Vec<Cell>>) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        if self.color_stdout {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        table.set_header(columns.iter().map(|column| Cell::new(column.head).add_attribute(Attribute::Bold)));
        table.add_rows(rows);
        for (index, column) in columns.iter().enumerate() {
            if let Some(at) = table.column_mut(index) {
                at.set_padding((0, 3));
                if column.number {
                    at.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    /// A note for people.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.to_stderr(text);
        }
    }

    /// Something to worry about.
    pub fn warn(&self, text: &str) {
        self.to_stderr(&format!("{} {text}", self.paint("33;1", "warning:")));
    }

    /// A failure and its way out.
    pub fn error(&self, error: &Error) {
        self.to_stderr(&format!("{} {error}", self.paint("31;1", "error:")));
        if let Some(hint) = error.hint_text() {
            self.hint(hint);
        }
    }

    /// What to do next.
    pub fn hint(&self, text: &str) {
        self.to_stderr(&format!("{} {text}", self.paint("36;1", "hint:")));
    }

    /// Begins a step that may take a while: a spinner on a terminal, a line when it is done elsewhere.
    pub fn step(&self, doing: &str) -> Step {
        let text = Arc::new(Mutex::new(doing.to_owned()));
        let ended = Arc::new(AtomicBool::new(false));
        let spinner = (self.progress_line && !self.quiet).then(|| {
            let (printer, text, ended) = (self.clone(), text.clone(), ended.clone());
            std::thread::spawn(move || printer.spin(&text, &ended))
        });
        Step { printer: self.clone(), text, ended, spinner, started: Instant::now() }
    }

    fn spin(&self, text: &Mutex<String>, ended: &AtomicBool) {
        let started = Instant::now();
        for frame in ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"].iter().cycle() {
            if ended.load(Ordering::Acquire) {
                return;
            }
            // Quick steps need no spinner.
            if started.elapsed() > Duration::from_millis(200) {
                let doing = text.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let line =
                    format!("{} {doing} {}", self.paint("36", frame), self.paint("2", &seconds(started.elapsed())));
                let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
                let mut err = std::io::stderr().lock();
                let _ = write!(err, "\r\x1b[2K{line}").and_then(|()| err.flush());
                *live = Some(line);
            }
            std::thread::park_timeout(Duration::from_millis(80));
        }
    }

    fn hide_live(&self) {
        if self.live.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            let mut err = std::io::stderr().lock();
            let _ = write!(err, "\r\x1b[2K").and_then(|()| err.flush());
        }
    }

    /// Colours text for stderr.
    fn paint(&self, code: &str, text: &str) -> String {
        if self.color_stderr { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn to_stderr(&self, text: &str) {
        self.hide_live();
        match &self.sink {
            // Nobody is left to tell if stderr is gone.
            Sink::Real => drop(writeln!(std::io::stderr().lock(), "{text}")),
            #[cfg(test)]
            Sink::Memory(kept) => {
                let mut kept = kept.lock().unwrap();
                kept.1.extend_from_slice(text.as_bytes());
                kept.1.push(b'\n');
            }
        }
    }
}

/// A step under way; dropping it unfinished takes the spinner away without a word.
pub struct Step {
    printer: Printer,
    text: Arc<Mutex<String>>,
    ended: Arc<AtomicBool>,
    spinner: Option<std::thread::JoinHandle<()>>,
    started: Instant,
}

impl Step {
    /// Says what is being waited for now.
    pub fn now(&self, doing: &str) {
        doing.clone_into(&mut self.text.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends the step with what has been achieved.
    pub fn done(mut self, achieved: &str) {
        self.stop();
        let took = self.printer.paint("2", &seconds(self.started.elapsed()));
        self.printer.note(&format!("{} {achieved} {took}", self.printer.paint("32", "✓")));
    }

    fn stop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(spinner) = self.spinner.take() {
            spinner.thread().unpark();
            let _ = spinner.join();
        }
        self.printer.hide_live();
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.stop();
    }
}

fn seconds(elapsed: Duration) -> String {
    format!("({:.1} s)", elapsed.as_secs_f64())
}

/// Sends the log of libraries and of this program to stderr (`--verbose`; `MESHCTL_LOG` chooses what).
pub fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MESHCTL_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,meshctl=debug"));
    // A second call (in tests) changes nothing.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_and_end_without_blanks() {
        let (printer, read) = Printer::memory();
        let rows = vec![vec![Cell::new("web"), Cell::new("9.5")], vec![Cell::new("catalog"), Cell::new("120.0")]];
        printer.table(&[words("NAME"), numbers("RPS")], rows).unwrap();
        insta::assert_snapshot!(read().0, @r"
        NAME        RPS
        web         9.5
        catalog   120.0
        ");
    }

    #[test]
    fn data_and_notes_do_not_mix() {
        let (printer, read) = Printer::memory();
        printer.step("waiting").done("ready");
        printer.json(&[1]).unwrap();
        printer.error(&Error::new("no").hint("yes"));
        let (out, err) = read();
        assert_eq!(out, "[\n  1\n]\n");
        assert!(err.starts_with("✓ ready (0."), "{err}");
        assert!(err.ends_with("error: no\nhint: yes\n"), "{err}");
    }
}
