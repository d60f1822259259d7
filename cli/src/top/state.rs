//! What the screen knows: plain data, without a terminal or a clock.

use crate::golden::{self, Query, Row, RowId, Window, rows, total};
use crate::top::filter::Filter;
use crate::top::theme::{HISTORY, Theme};
use mesh_api::golden::GoldenFrame;
use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// A column that rows can be sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Who answered.
    Workload,
    /// Method and route.
    Route,
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
    /// Columns in the order of the screen.
    pub const ALL: [Column; 9] = [
        Column::Workload,
        Column::Route,
        Column::Rps,
        Column::Success,
        Column::P50,
        Column::P95,
        Column::P99,
        Column::Mtls,
        Column::History,
    ];

    /// Its head.
    pub fn head(self) -> &'static str {
        match self {
            Column::Workload => "WORKLOAD",
            Column::Route => "ROUTE",
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
}

/// A row with what only the screen shows of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Line {
    /// What tells it from others.
    pub id: RowId,
    /// The numbers.
    pub row: Row,
    /// Requests (TCP: bytes) a second, a value a second, newest last.
    pub history: Vec<f32>,
}

/// What frames added up to: all that the rows are made of.
#[derive(Clone, Debug)]
pub struct Account {
    /// The last seconds, for numbers.
    pub window: Window,
    /// The last minute, for sparklines.
    history: BTreeMap<RowId, VecDeque<f32>>,
    last_at_ms: Option<u64>,
    restart: bool,
}

impl Account {
    fn new(window: Duration) -> Self {
        Self { window: Window::new(window), history: BTreeMap::new(), last_at_ms: None, restart: false }
    }

    /// The next frame begins a new stream and covers a window of its own; until then the old numbers stay.
    pub fn restart(&mut self) {
        self.restart = true;
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: GoldenFrame, query: &Query) {
        let seconds = |ms: u64| (ms as f64 / 1000.0).round().clamp(1.0, HISTORY as f64) as usize;
        let covered = seconds(frame.span_ms);
        // A frame may repeat seconds already known (after a reconnect), or leave some out.
        let passed = self.last_at_ms.map_or(covered, |last| seconds(frame.at_ms.saturating_sub(last)));
        let volumes = golden::volume(&frame, query);
        for id in volumes.keys() {
            self.history.entry(id.clone()).or_default();
        }
        for (id, values) in &mut self.history {
            let rate = volumes.get(id).map_or(0.0, |&count| count as f32 / (frame.span_ms.max(1) as f32 / 1000.0));
            values.extend(std::iter::repeat_n(0.0, passed.saturating_sub(covered)));
            values.extend(std::iter::repeat_n(rate, passed.min(covered)));
            values.drain(..values.len().saturating_sub(HISTORY));
        }
        self.history.retain(|_, values| values.iter().any(|&value| value > 0.0));
        self.last_at_ms = Some(frame.at_ms);
        if std::mem::take(&mut self.restart) {
            self.window.clear();
        }
        self.window.push(frame);
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
    pub error: Option<String>,
    /// The filter before, for Esc.
    pub before: String,
}

/// Everything the screen shows.
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
    /// What is asked of the frames.
    pub query: Query,
    /// Seconds that numbers look back.
    pub window: Duration,
    /// What has been counted.
    pub account: Account,
    /// What had been counted when the view was paused, and when that was (Unix milliseconds).
    pub paused: Option<(Account, u64)>,
    /// The rows shown: filtered and sorted.
    pub lines: Vec<Line>,
    /// The sum over all rows, shown or not.
    pub total: Row,
    /// Rows come from more than one namespace.
    pub many_namespaces: bool,
    /// How many rows there are without the filter.
    pub unfiltered: usize,
    /// Sort column.
    pub sort: Column,
    /// Highest first.
    pub descending: bool,
    /// What is let through.
    pub filter: Filter,
    /// The filter being typed.
    pub typing: Option<Typing>,
    /// The row under the cursor; none: the first one.
    pub selected: Option<RowId>,
    /// The first row on the screen.
    pub offset: usize,
    /// The help is open.
    pub help: bool,
    /// The link to the control plane.
    pub link: Link,
    /// Now, Unix milliseconds.
    pub now_ms: u64,
}

impl State {
    /// A screen that has seen nothing yet.
    pub fn new(cluster: &str, query: Query, window: Duration, theme: Theme) -> Self {
        let scope = query.namespace.as_ref().map_or("all namespaces".to_owned(), |name| format!("namespace {name}"));
        Self {
            scope,
            cluster: cluster.to_owned(),
            theme,
            size: (80, 24),
            query: Query { routes: true, tcp_routes: true, ..query },
            window,
            account: Account::new(window),
            paused: None,
            lines: Vec::new(),
            total: Row::default(),
            many_namespaces: false,
            unfiltered: 0,
            sort: Column::Rps,
            descending: true,
            filter: Filter::default(),
            typing: None,
            selected: None,
            offset: 0,
            help: false,
            link: Link::Connecting,
            now_ms: 0,
        }
    }

    /// The account that the rows are made from.
    pub fn shown_account(&self) -> &Account {
        self.paused.as_ref().map_or(&self.account, |(account, _)| account)
    }

    /// Makes the rows anew: after a frame, and after whatever changes their choice or order.
    pub fn refresh(&mut self) {
        let account = self.shown_account();
        let frames = account.window.frames();
        let rows = rows(frames, &self.query);
        let unfiltered = rows.len();
        let mut lines: Vec<Line> = rows
            .into_iter()
            .filter(|row| self.filter.passes(row))
            .map(|row| {
                let id = row.id();
                let history = account.history.get(&id).map(|values| values.iter().copied().collect());
                Line { id, row, history: history.unwrap_or_default() }
            })
            .collect();
        lines.sort_by(|a, b| compare(a, b, self.sort, self.descending));
        self.total = total(frames, &self.query);
        self.many_namespaces = lines.windows(2).any(|pair| pair[0].id.namespace != pair[1].id.namespace);
        (self.lines, self.unfiltered) = (lines, unfiltered);
    }

    /// Position of the row under the cursor.
    pub fn cursor(&self) -> usize {
        self.selected.as_ref().and_then(|id| self.lines.iter().position(|line| line.id == *id)).unwrap_or(0)
    }
}

/// Order of two rows; rows without a value come last, ties are settled by name, so that nothing jumps.
fn compare(a: &Line, b: &Line, column: Column, descending: bool) -> Ordering {
    let turn = |order: Ordering| if descending { order.reverse() } else { order };
    let value = |line: &Line| match column {
        Column::Rps => (line.row.requests > 0).then_some(line.row.rps),
        Column::Success => line.row.success_rate,
        Column::P50 => line.row.latency_p50_ms,
        Column::P95 => line.row.latency_p95_ms,
        Column::P99 => line.row.latency_p99_ms,
        Column::Mtls => line.row.mtls_rate,
        Column::Workload | Column::Route | Column::History => None,
    };
    let order = match column {
        Column::Workload => turn((&a.id.namespace, &a.id.name).cmp(&(&b.id.namespace, &b.id.name))),
        Column::Route => turn((&a.id.route, &a.id.method).cmp(&(&b.id.route, &b.id.method))),
        _ => match (value(a), value(b)) {
            (Some(a), Some(b)) => turn(a.total_cmp(&b)),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => Ordering::Equal,
        },
    };
    order.then_with(|| a.id.cmp(&b.id))
}
