//! Edges as lines of the screen: a pair of workloads that talk, with the numbers of the way between them. Which of
//! the two proxies is believed is decided where `meshctl edges` decides it, in [`crate::edges`].

use crate::edges::{Statuses, ends};
use crate::golden::{Query, Row, RowId, Tally};
use crate::resource::Kind;
use crate::top::account::Key;
use mesh_api::WorkloadRef;
use mesh_api::golden::GoldenFrame;
use std::collections::{BTreeMap, VecDeque};

impl Tally {
    /// True if nothing was counted and nothing is open.
    pub(crate) fn is_empty(&self) -> bool {
        let sum = &self.sum;
        sum.requests == 0 && sum.tcp_open == 0 && sum.tcp_closed == 0 && sum.tcp_opened == 0
    }
}

/// The pairs in some frames, oldest first, that a query asks for.
pub(crate) fn tallies<'a>(
    frames: impl DoubleEndedIterator<Item = &'a GoldenFrame> + ExactSizeIterator + Clone,
    query: &Query,
) -> BTreeMap<Key, Tally> {
    let mut by_ends: BTreeMap<(&WorkloadRef, &WorkloadRef), Tally> = BTreeMap::new();
    let Some(last) = frames.clone().next_back() else { return BTreeMap::new() };
    let statuses: Statuses<'_> = last.workloads.iter().map(|status| (&status.workload, status)).collect();
    let count = frames.len();
    for (index, frame) in frames.enumerate() {
        for entry in &frame.series {
            let Some((from, to)) = ends(entry, &statuses) else { continue };
            if is_meant(query, from) || is_meant(query, to) {
                by_ends.entry((from, to)).or_default().add(&entry.key, &entry.series, index + 1 == count);
            }
        }
    }
    let key = |from: &WorkloadRef, to: &WorkloadRef| Key { id: id_of(to), from: Some(from.clone()) };
    by_ends.into_iter().map(|((from, to), tally)| (key(from, to), tally)).collect()
}

/// The pairs that talked, as rows, in order of callee and caller.
pub fn rows(frames: &VecDeque<GoldenFrame>, query: &Query) -> Vec<(Key, Row)> {
    let seconds = frames.iter().map(|frame| frame.span_ms).sum::<u64>() as f64 / 1000.0;
    tallies(frames.iter(), query)
        .into_iter()
        .filter_map(|(key, tally)| {
            let id = &key.id;
            let mut row =
                Row { namespace: id.namespace.clone(), kind: id.kind.clone(), name: id.name.clone(), ..Row::default() };
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
    use mesh_api::golden::Direction;

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
    fn what_a_caller_without_a_proxy_sent_is_known_from_what_arrived() {
        let mut one = frame(SHOP, 1000, 1000);
        one.series.retain(|entry| entry.key.direction == Direction::Inbound);
        one.workloads.iter_mut().for_each(|status| status.meshed_pods = 0);
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
