//! What the screens know: plain data, without a terminal or a clock.

use crate::golden::{Query, Row, RowId, Window, rows, total};
use crate::top::account::{Account, Key, Lines};
use crate::top::details::{Details, details};
use crate::top::edges;
use crate::top::filter::{Facts, Filter, Wrong};
use crate::top::tap::Tap;
use crate::top::theme::Theme;
use mesh_api::WorkloadRef;
use mesh_api::golden::{GoldenFrame, Unreachable};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::time::Duration;

/// A screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Screen {
    /// A line for each route.
    Routes,
    /// A line for each workload.
    Workloads,
    /// Who talks to whom, drawn.
    Edges,
    /// Single requests of what was selected.
    Tap,
    /// Everything about what was selected.
    Details,
}

impl Screen {
    /// Those that have a number, in its order.
    pub const TABS: [Screen; 4] = [Screen::Routes, Screen::Workloads, Screen::Edges, Screen::Tap];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Screen::Routes => "routes",
            Screen::Workloads => "workloads",
            Screen::Edges => "edges",
            Screen::Tap => "tap",
            Screen::Details => "details",
        }
    }

    /// What its lines stand for, if it has lines of numbers.
    pub fn lines(self) -> Option<Lines> {
        match self {
            Screen::Routes => Some(Lines::Routes),
            Screen::Workloads => Some(Lines::Workloads),
            Screen::Edges => Some(Lines::Edges),
            Screen::Tap | Screen::Details => None,
        }
    }
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Who calls (edges).
    From,
    /// Who answered.
    Workload,
    /// Method and route.
    Route,
    /// Pods with a proxy, and pods.
    Meshed,
    /// Requests a second.
    Rps,
    /// Share that went well.
    Success,
    /// Median latency.
    P50,
    /// 95th percentile.
    P95,
    /// 99th percentile.
    P99,
    /// Share under mutual TLS.
    Mtls,
    /// Volume over the last minute.
    History,
}

impl Column {
    /// Its head.
    pub fn head(self, lines: Lines) -> &'static str {
        match self {
            Column::From => "FROM",
            Column::Workload if lines == Lines::Edges => "TO",
            Column::Workload => "WORKLOAD",
            Column::Route => "ROUTE",
            Column::Meshed => "MESHED",
            Column::Rps => "RPS",
            Column::Success => "SUCCESS",
            Column::P50 => "P50",
            Column::P95 => "P95",
            Column::P99 => "P99",
            Column::Mtls => "MTLS",
            Column::History => "LAST MINUTE",
        }
    }

    /// True if the interesting rows are those with the highest values.
    pub fn starts_descending(self) -> bool {
        matches!(self, Column::Rps | Column::P50 | Column::P95 | Column::P99)
    }

    /// True if rows can be sorted by it.
    pub fn sorts(self) -> bool {
        self != Column::History
    }

    /// True if it holds numbers, which stand at its right side.
    pub fn is_number(self) -> bool {
        !matches!(self, Column::From | Column::Workload | Column::Route | Column::History)
    }
}

/// A row with what only the screen shows of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// What tells it from others.
    pub key: Key,
    /// The numbers.
    pub row: Row,
    /// Requests (TCP: bytes) a second, a value a second, newest last.
    pub history: Vec<f32>,
}

/// How one screen's lines are arranged.
#[derive(Clone, Debug)]
pub struct Table {
    /// Sort column.
    pub sort: Column,
    /// Highest first.
    pub descending: bool,
    /// The line under the cursor; none: the first one.
    pub selected: Option<Key>,
    /// The first line on the screen.
    pub offset: usize,
}

/// What details and taps are about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The line it was.
    pub key: Key,
    /// Of which kind.
    pub lines: Lines,
}

impl Subject {
    /// The workload that answers.
    pub fn workload(&self) -> WorkloadRef {
        edges::workload_of(&self.key.id)
    }

    /// In words.
    pub fn name(&self, arrow: &str) -> String {
        let RowId { name, route, method, .. } = &self.key.id;
        match (self.lines, &self.key.from) {
            (Lines::Edges, Some(from)) => format!("{} {arrow} {name}", from.name),
            (Lines::Routes, _) if route.is_empty() => format!("{name}  tcp"),
            (Lines::Routes, _) => format!("{name}  {}", format!("{method} {route}").trim()),
            _ => name.clone(),
        }
    }
}

/// The link to the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// No frame yet.
    Connecting,
    /// Frames arrive.
    Live,
    /// They don't.
    Lost {
        /// Since when, Unix milliseconds.
        since_ms: u64,
        /// Why.
        why: String,
    },
}

/// A filter being typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Typing {
    /// So far.
    pub text: String,
    /// What is wrong with it.
    pub wrong: Option<Wrong>,
    /// The filter before, for Esc.
    pub before: String,
}

/// What is held still while the stream goes on.
#[derive(Clone, Debug)]
pub struct Paused {
    /// What had been counted.
    pub account: Account,
    /// What had been counted by pod.
    pub pods: Option<Window>,
    /// What had been tapped.
    pub tap: Tap,
    /// When, Unix milliseconds.
    pub since_ms: u64,
}

/// How far a recording has been played.
#[derive(Clone, Debug, PartialEq)]
pub struct Replay {
    /// Its name.
    pub name: String,
    /// Its beginning, Unix milliseconds.
    pub from_ms: u64,
    /// Its end, Unix milliseconds.
    pub to_ms: u64,
    /// Seconds of the recording that pass in a second.
    pub speed: f64,
    /// It goes on.
    pub playing: bool,
    /// What is wrong with the file, told when its end is reached.
    pub damage: Option<String>,
}

impl Replay {
    /// True if its end has been reached.
    pub fn at_end(&self, now_ms: u64) -> bool {
        now_ms >= self.to_ms
    }
}

/// How a recording being made fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// So many bytes are in the file.
    Bytes(u64),
    /// It could not go on.
    Failed(String),
}

/// Everything the screens show.
#[derive(Clone, Debug)]
pub struct State {
    /// What is looked at, in words.
    pub scope: String,
    /// Where.
    pub cluster: String,
    /// Colours and marks.
    pub theme: Theme,
    /// Columns and rows of the terminal.
    pub size: (u16, u16),
    /// What is asked of the frames; rows are routes.
    pub query: Query,
    /// Seconds that numbers look back.
    pub window: Duration,
    /// What has been counted.
    pub account: Account,
    /// The same of the subject's pods, while they are asked for.
    pub pods: Option<Window>,
    /// The view, held still.
    pub paused: Option<Box<Paused>>,
    /// The screen shown.
    pub screen: Screen,
    /// Screens to go back to, the last one first.
    pub trail: Vec<Screen>,
    /// How the lines of routes, workloads and edges are arranged.
    pub tables: [Table; 3],
    /// Edges as a list, although a map would fit.
    pub as_list: bool,
    /// The lines shown: filtered and sorted.
    pub lines: Vec<Line>,
    /// The sum over all rows, shown or not.
    pub total: Row,
    /// Lines come from more than one namespace.
    pub many_namespaces: bool,
    /// How many lines there are without the filter.
    pub unfiltered: usize,
    /// What is let through, of lines.
    pub filter: Filter,
    /// What is let through, of single requests.
    pub tap_filter: Filter,
    /// The filter being typed.
    pub typing: Option<Typing>,
    /// What details are about.
    pub subject: Option<Subject>,
    /// What is known of it.
    pub details: Option<Box<Details>>,
    /// The first line of the details on the screen.
    pub scroll: usize,
    /// Single requests.
    pub tap: Tap,
    /// The help is open, from this line on.
    pub help: Option<usize>,
    /// The link to the control plane.
    pub link: Link,
    /// The recording played.
    pub replay: Option<Replay>,
    /// The recording made.
    pub recorded: Option<Recorded>,
    /// Now, Unix milliseconds; in a recording, its time.
    pub now_ms: u64,
}

impl State {
    /// A screen that has seen nothing yet.
    pub fn new(cluster: &str, query: Query, window: Duration, theme: Theme) -> Self {
        let scope = query.namespace.as_ref().map_or("all namespaces".to_owned(), |name| format!("namespace {name}"));
        let table = Table { sort: Column::Rps, descending: true, selected: None, offset: 0 };
        Self {
            scope,
            cluster: cluster.to_owned(),
            theme,
            size: (80, 24),
            query: Query { routes: true, tcp_routes: true, ..query },
            window,
            account: Account::new(window),
            pods: None,
            paused: None,
            screen: Screen::Routes,
            trail: Vec::new(),
            tables: [table.clone(), table.clone(), table],
            as_list: false,
            lines: Vec::new(),
            total: Row::default(),
            many_namespaces: false,
            unfiltered: 0,
            filter: Filter::default(),
            tap_filter: Filter::default(),
            typing: None,
            subject: None,
            details: None,
            scroll: 0,
            tap: Tap::default(),
            help: None,
            link: Link::Connecting,
            replay: None,
            recorded: None,
            now_ms: 0,
        }
    }

    /// The account that the rows are made from.
    pub fn shown_account(&self) -> &Account {
        self.paused.as_ref().map_or(&self.account, |paused| &paused.account)
    }

    /// The taps shown.
    pub fn shown_tap(&self) -> &Tap {
        self.paused.as_ref().map_or(&self.tap, |paused| &paused.tap)
    }

    /// The filter of the screen shown.
    pub fn shown_filter(&self) -> &Filter {
        if self.screen == Screen::Tap { &self.tap_filter } else { &self.filter }
    }

    /// How the lines of the screen shown are arranged; screens without lines share those of the routes.
    pub fn table(&self) -> &Table {
        &self.tables[self.screen.lines().unwrap_or(Lines::Routes) as usize]
    }

    /// The same, to change it.
    pub fn table_mut(&mut self) -> &mut Table {
        &mut self.tables[self.screen.lines().unwrap_or(Lines::Routes) as usize]
    }

    /// Proxies of the scope that are connected but silent, as of the last frame.
    pub fn silent_proxies(&self) -> u32 {
        self.shown_account().window.frames().back().map_or(0, |frame: &GoldenFrame| frame.silent_proxies)
    }

    /// Replicas of the control plane whose proxies are missing, as of the last frame.
    pub fn unreachable(&self) -> &[Unreachable] {
        self.shown_account().window.frames().back().map_or(&[], |frame: &GoldenFrame| &frame.unreachable)
    }

    /// Makes the lines anew: after a frame, and after whatever changes their choice or order.
    pub fn refresh(&mut self) {
        self.total = total(self.shown_account().window.frames(), &self.query);
        if let Some(kind) = self.screen.lines() {
            self.refresh_lines(kind);
        }
        if self.screen == Screen::Details {
            let pods = match &self.paused {
                Some(paused) => paused.pods.as_ref(),
                None => self.pods.as_ref(),
            };
            self.details = self.subject.as_ref().map(|subject| {
                let account = self.shown_account();
                Box::new(details(account, pods, subject, &self.query))
            });
        }
    }

    fn refresh_lines(&mut self, kind: Lines) {
        let account = self.shown_account();
        let frames = account.window.frames();
        let plain = |row: Row| (Key { id: row.id(), from: None }, row);
        let all: Vec<(Key, Row)> = match kind {
            Lines::Routes => rows(frames, &self.query).into_iter().map(plain).collect(),
            Lines::Workloads => {
                let query = Query { routes: false, ..self.query.clone() };
                rows(frames, &query).into_iter().map(plain).collect()
            }
            Lines::Edges => edges::rows(frames, &self.query),
        };
        let unfiltered = all.len();
        let passes = |(key, row): &(Key, Row)| self.filter.passes(Facts::Row(row, key.from.as_ref()));
        let line = |(key, row): (Key, Row)| Line { history: account.history(kind, &key), key, row };
        let mut lines: Vec<Line> = all.into_iter().filter(passes).map(line).collect();
        let Table { sort, descending, .. } = *self.table();
        lines.sort_by(|a, b| compare(a, b, sort, descending));
        let both = |line: &Line| {
            let from = line.key.from.as_ref().map(|from| from.namespace.clone());
            [Some(line.key.id.namespace.clone()), from].into_iter().flatten()
        };
        let namespaces: BTreeSet<String> = lines.iter().flat_map(both).collect();
        self.many_namespaces = namespaces.len() > 1;
        (self.lines, self.unfiltered) = (lines, unfiltered);
    }

    /// Position of the line under the cursor.
    pub fn cursor(&self) -> usize {
        let selected = self.table().selected.as_ref();
        selected.and_then(|key| self.lines.iter().position(|line| line.key == *key)).unwrap_or(0)
    }

    /// What the line under the cursor is.
    pub fn under_cursor(&self) -> Option<Subject> {
        let lines = self.screen.lines()?;
        self.lines.get(self.cursor()).map(|line| Subject { key: line.key.clone(), lines })
    }
}

/// Order of two lines; those without a value come last, ties are settled by name, so that nothing jumps.
fn compare(a: &Line, b: &Line, column: Column, descending: bool) -> Ordering {
    let turn = |order: Ordering| if descending { order.reverse() } else { order };
    let value = |line: &Line| match column {
        Column::Rps => (line.row.requests > 0).then_some(line.row.rps),
        Column::Success => line.row.success_rate,
        Column::P50 => line.row.latency_p50_ms,
        Column::P95 => line.row.latency_p95_ms,
        Column::P99 => line.row.latency_p99_ms,
        Column::Mtls => line.row.mtls_rate,
        Column::Meshed => (line.row.pods > 0).then(|| f64::from(line.row.meshed_pods) / f64::from(line.row.pods)),
        Column::From | Column::Workload | Column::Route | Column::History => None,
    };
    let (left, right) = (&a.key.id, &b.key.id);
    let order = match column {
        Column::From => turn(a.key.from.cmp(&b.key.from)),
        Column::Workload => turn((&left.namespace, &left.name).cmp(&(&right.namespace, &right.name))),
        Column::Route => turn((&left.route, &left.method).cmp(&(&right.route, &right.method))),
        _ => match (value(a), value(b)) {
            (Some(a), Some(b)) => turn(a.total_cmp(&b)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        },
    };
    order.then_with(|| a.key.cmp(&b.key))
}
