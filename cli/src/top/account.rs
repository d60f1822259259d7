//! What frames add up to: the last seconds for numbers, the last minute for sparklines.

use crate::golden::{self, Query, RowId, Tally, Window};
use crate::top::edges;
use crate::top::theme::HISTORY;
use mesh_api::WorkloadRef;
use mesh_api::golden::{Carried, GoldenFrame, WorkloadSeries};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// What tells a line of a screen from the others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Key {
    /// Who answers, and for routes which one.
    pub id: RowId,
    /// For edges: who calls.
    pub from: Option<WorkloadRef>,
}

/// What lines stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lines {
    /// Routes.
    Routes,
    /// Workloads (or whatever the command line asked for).
    Workloads,
    /// Pairs of workloads that talk.
    Edges,
}

/// Volume a second: requests, and bytes for opaque TCP.
type Volumes = VecDeque<(f32, f32)>;

/// All that the rows are made of.
#[derive(Clone, Debug)]
pub struct Account {
    /// The last seconds, for numbers.
    pub window: Window,
    /// The last minute, for sparklines: routes, workloads, edges.
    history: [BTreeMap<Key, Volumes>; 3],
    last_at_ms: Option<u64>,
    restart: bool,
}

impl Account {
    /// An account of nothing, whose numbers will look back so far.
    pub fn new(window: Duration) -> Self {
        Self { window: Window::new(window), history: Default::default(), last_at_ms: None, restart: false }
    }

    /// The next frame begins a new stream and covers a window of its own; until then the old numbers stay.
    pub fn restart(&mut self) {
        self.restart = true;
    }

    /// When the last frame ended, Unix milliseconds.
    pub fn last_at_ms(&self) -> Option<u64> {
        self.last_at_ms
    }

    /// Adds a frame.
    pub fn push(&mut self, frame: GoldenFrame, query: &Query) {
        let seconds = |ms: u64| (ms as f64 / 1000.0).round().clamp(1.0, HISTORY as f64) as usize;
        let covered = seconds(frame.span_ms);
        // A frame may repeat seconds already known (after a reconnect), or leave some out.
        let passed = self.last_at_ms.map_or(covered, |last| seconds(frame.at_ms.saturating_sub(last)));
        let span_s = frame.span_ms.max(1) as f32 / 1000.0;
        for (history, volumes) in self.history.iter_mut().zip(volumes(&frame, query)) {
            for (key, volume) in &volumes {
                if *volume != (0, 0) && !history.contains_key(key) {
                    history.insert(key.clone(), Volumes::new());
                }
            }
            for (key, values) in history.iter_mut() {
                let (requests, bytes) = volumes.get(key).copied().unwrap_or_default();
                let rate = (requests as f32 / span_s, bytes as f32 / span_s);
                values.extend(std::iter::repeat_n((0.0, 0.0), passed.saturating_sub(covered)));
                values.extend(std::iter::repeat_n(rate, passed.min(covered)));
                values.drain(..values.len().saturating_sub(HISTORY));
            }
            history.retain(|_, values| values.iter().any(|value| *value != (0.0, 0.0)));
        }
        self.last_at_ms = Some(frame.at_ms);
        if std::mem::take(&mut self.restart) {
            self.window.clear();
        }
        self.window.push(frame);
    }

    /// Requests a second (bytes, where there are no requests) of the last minute, newest last.
    pub fn history(&self, lines: Lines, key: &Key) -> Vec<f32> {
        let Some(values) = self.history[lines as usize].get(key) else { return Vec::new() };
        let requests = values.iter().any(|(requests, _)| *requests > 0.0);
        values.iter().map(|(count, bytes)| if requests { *count } else { *bytes }).collect()
    }
}

/// Requests and bytes of a frame by line: of routes, workloads and edges.
fn volumes(frame: &GoldenFrame, query: &Query) -> [BTreeMap<Key, (u64, u64)>; 3] {
    let mut routes: BTreeMap<Key, (u64, u64)> = BTreeMap::new();
    let mut workloads: BTreeMap<Key, (u64, u64)> = BTreeMap::new();
    golden::each(frame, query, |id, entry| {
        let whole = RowId { route: String::new(), method: String::new(), ..id.clone() };
        count(&mut routes, Key { id, from: None }, entry);
        count(&mut workloads, Key { id: whole, from: None }, entry);
    });
    let pairs = edges::tallies(std::iter::once(frame), query)
        .into_iter()
        .map(|(key, Tally { sum, .. })| (key, (sum.requests, sum.tcp_read_bytes + sum.tcp_write_bytes)))
        .collect();
    [routes, workloads, pairs]
}

fn count(volumes: &mut BTreeMap<Key, (u64, u64)>, key: Key, entry: &WorkloadSeries) {
    let volume = volumes.entry(key).or_default();
    match entry.key.carried {
        Carried::Tcp => volume.1 += entry.series.tcp_read_bytes + entry.series.tcp_write_bytes,
        Carried::Http | Carried::Grpc => volume.0 += entry.series.requests,
    }
}
