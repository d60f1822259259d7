//! Who talks to whom, from frames: a line for each pair of workloads.
//!
//! Both proxies of a pair count. The caller's own numbers are shown where its proxy is in the frames (they have what
//! the callee never saw: failed connections, timeouts); else those of the callee.

use crate::golden::{Query, Row, RowId, Tally};
use crate::resource::Kind;
use crate::top::account::Key;
use mesh_api::WorkloadRef;
use mesh_api::golden::{Direction, GoldenFrame};
use std::collections::{BTreeMap, VecDeque};

/// What both ends of a pair counted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pair {
    /// By the caller.
    pub(crate) sent: Tally,
    /// By the callee.
    pub(crate) arrived: Tally,
}

impl Tally {
    /// True if nothing was counted and nothing is open.
    pub(crate) fn is_empty(&self) -> bool {
        let sum = &self.sum;
        sum.requests == 0 && sum.tcp_open == 0 && sum.tcp_closed == 0 && sum.tcp_opened == 0
    }
}

/// The pairs in some frames, oldest first, that a query asks for.
pub(crate) fn pairs<'a>(
    frames: impl DoubleEndedIterator<Item = &'a GoldenFrame> + ExactSizeIterator,
    query: &Query,
) -> BTreeMap<Key, Pair> {
    let mut by_ends: BTreeMap<(&WorkloadRef, &WorkloadRef), Pair> = BTreeMap::new();
    let count = frames.len();
    for (index, frame) in frames.enumerate() {
        for entry in &frame.series {
            let (from, to) = match entry.key.direction {
                Direction::Outbound => (&entry.workload, &entry.key.peer),
                Direction::Inbound => (&entry.key.peer, &entry.workload),
            };
            if !(is_meant(query, from) || is_meant(query, to)) {
                continue;
            }
            let pair = by_ends.entry((from, to)).or_default();
            let tally = match entry.key.direction {
                Direction::Outbound => &mut pair.sent,
                Direction::Inbound => &mut pair.arrived,
            };
            tally.add(&entry.key, &entry.series, index + 1 == count);
        }
    }
    let key = |from: &WorkloadRef, to: &WorkloadRef| Key { id: id_of(to), from: Some(from.clone()) };
    by_ends.into_iter().map(|((from, to), pair)| (key(from, to), pair)).collect()
}

/// The pairs that talked, as rows: numbers of the way between them, in order of callee and caller.
pub fn rows(frames: &VecDeque<GoldenFrame>, query: &Query) -> Vec<(Key, Row)> {
    let seconds = frames.iter().map(|frame| frame.span_ms).sum::<u64>() as f64 / 1000.0;
    pairs(frames.iter(), query)
        .into_iter()
        .filter_map(|(key, Pair { sent, arrived })| {
            let tally = if sent.is_empty() { arrived } else { sent };
            let id = &key.id;
            let mut row = Row {
                namespace: id.namespace.clone(),
                kind: id.kind.clone(),
                name: id.name.clone(),
                ..Row::default()
            };
            tally.fill(&mut row, seconds);
            (row.requests > 0 || row.connections > 0).then_some((key, row))
        })
        .collect()
}

/// A workload as the id of a row.
pub fn id_of(workload: &WorkloadRef) -> RowId {
    RowId {
        namespace: workload.namespace.clone(),
        kind: workload.kind.clone(),
        name: workload.name.clone(),
        ..RowId::default()
    }
}

/// A row's id as a workload.
pub fn workload_of(id: &RowId) -> WorkloadRef {
    WorkloadRef::new(&id.namespace, &id.kind, &id.name)
}

/// True if a query is about a workload, as far as the workload itself tells.
fn is_meant(query: &Query, workload: &WorkloadRef) -> bool {
    if query.namespace.as_ref().is_some_and(|namespace| *namespace != workload.namespace) {
        return false;
    }
    // Pods and services are not in the pairs: their workloads are, all of them.
    let indirect = matches!(query.of.kind, Kind::Pod | Kind::Service);
    let is_one = indirect || query.of.is_workload(workload);
    is_one && (indirect || query.only.as_ref().is_none_or(|only| only.contains(workload)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::{SHOP, frame, shop};
    use crate::resource::Resource;

    fn names(rows: &[(Key, Row)]) -> Vec<String> {
        rows.iter()
            .map(|(key, row)| format!("{}>{} {}", key.from.as_ref().unwrap().name, key.id.name, row.rps))
            .collect()
    }

    #[test]
    fn a_pair_is_counted_once_although_both_ends_count() {
        let rows = rows(&shop(), &Query::default());
        assert_eq!(names(&rows), ["web>cart 10", "web>catalog 70", "web>ledger 0", "load>web 25"]);
        assert_eq!(rows[2].1.tcp_open_connections, 3);
    }

    #[test]
    fn one_end_is_enough() {
        let mut one = frame(SHOP, 1000, 1000);
        one.series.retain(|entry| entry.key.direction == Direction::Inbound);
        let rows = rows(&VecDeque::from([one]), &Query::default());
        assert_eq!(names(&rows), ["web>cart 10", "web>catalog 70", "web>ledger 0", "load>web 25"]);
    }

    #[test]
    fn a_query_keeps_the_pairs_it_is_about() {
        let of = Resource::read_one("deploy/cart").unwrap();
        assert_eq!(names(&rows(&shop(), &Query { of, ..Query::default() })), ["web>cart 10"]);
        let elsewhere = Query { namespace: Some("other".into()), ..Query::default() };
        assert_eq!(names(&rows(&shop(), &elsewhere)), Vec::<String>::new());
    }
}
