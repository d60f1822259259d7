//! Everything that frames say about one line: of a route, a workload or an edge.

use crate::golden::{self, Query, RouteColumns, Row, RowId, Tally, Window};
use crate::top::account::{Account, Key, Lines};
use crate::top::state::Subject;
use mesh_api::WorkloadRef;
use mesh_api::golden::{Direction, EndpointView, GoldenFrame, Series, WorkloadSeries, WorkloadStatus};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What is known of a subject.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// The numbers of its line.
    pub row: Row,
    /// What the callee's proxies counted.
    pub arrived: Series,
    /// What the callers' proxies counted: with what never arrived, with retries and time limits.
    pub sent: Series,
    /// Requests a second of the last minute, newest last.
    pub history: Vec<f32>,
    /// How long the numbers look back, seconds.
    pub seconds: f64,
    /// Who called, the busiest first.
    pub callers: Vec<(WorkloadRef, Row)>,
    /// What was called, the busiest first; empty if the subject is a route itself.
    pub routes: Vec<Row>,
    /// Who answered, by pod; empty while that is not known.
    pub pods: Vec<(String, Row)>,
    /// How the callers' balancers see who answers.
    pub endpoints: Vec<EndpointView>,
    /// How the workload fares that answers.
    pub status: Option<WorkloadStatus>,
}

impl Details {
    /// The series that the numbers are made of: the caller's for an edge, the callee's otherwise.
    pub fn main(&self, lines: Lines) -> &Series {
        let (first, second) =
            if lines == Lines::Edges { (&self.sent, &self.arrived) } else { (&self.arrived, &self.sent) };
        let empty = first.requests == 0 && first.tcp_open == 0 && first.tcp_closed == 0;
        if empty { second } else { first }
    }
}

#[derive(Default)]
struct Sums {
    arrived: Tally,
    sent: Tally,
    callers: BTreeMap<WorkloadRef, Tally>,
    routes: BTreeMap<(String, String), Tally>,
    workloads: BTreeSet<WorkloadRef>,
}

/// What an account, and frames that tell pods apart, know of a subject.
pub fn details(account: &Account, pods: Option<&Window>, subject: &Subject, query: &Query) -> Details {
    let frames = account.window.frames();
    let seconds = seconds_of(frames);
    let mut sums = Sums::default();
    for (index, frame) in frames.iter().enumerate() {
        let is_last = index + 1 == frames.len();
        for entry in arrivals(frame, subject, query) {
            sums.arrived.add(&entry.key, &entry.series, is_last);
            sums.workloads.insert(entry.workload.clone());
            sums.callers.entry(entry.key.peer.clone()).or_default().add(&entry.key, &entry.series, is_last);
            let route = (entry.key.route.clone(), entry.key.method.clone());
            sums.routes.entry(route).or_default().add(&entry.key, &entry.series, is_last);
        }
    }
    if sums.workloads.is_empty() {
        sums.workloads.insert(subject.workload());
    }
    for (index, frame) in frames.iter().enumerate() {
        for entry in frame.series.iter().filter(|entry| is_sent(entry, &sums.workloads, subject)) {
            sums.sent.add(&entry.key, &entry.series, index + 1 == frames.len());
        }
    }
    finish(sums, account, pods, subject, query, seconds)
}

fn finish(
    sums: Sums,
    account: &Account,
    pods: Option<&Window>,
    subject: &Subject,
    query: &Query,
    seconds: f64,
) -> Details {
    let RowId { namespace, kind, name, route, method } = &subject.key.id;
    let mut row = Row { namespace: namespace.clone(), kind: kind.clone(), name: name.clone(), ..Row::default() };
    let by_caller = subject.lines == Lines::Edges;
    let (first, second) = if by_caller { (&sums.sent, &sums.arrived) } else { (&sums.arrived, &sums.sent) };
    if subject.lines == Lines::Routes {
        row.route = Some(RouteColumns { route: route.clone(), method: method.clone(), ..RouteColumns::default() });
    }
    (if first.is_empty() { second } else { first }).fill(&mut row, seconds);
    let filled = |tally: &Tally| {
        let mut row = Row::default();
        tally.fill(&mut row, seconds);
        row
    };
    let mut callers: Vec<_> = sums.callers.iter().map(|(caller, tally)| (caller.clone(), filled(tally))).collect();
    callers.sort_by(|a, b| b.1.rps.total_cmp(&a.1.rps));
    let mut routes: Vec<Row> = sums
        .routes
        .iter()
        .filter(|_| subject.lines != Lines::Routes)
        .map(|((route, method), tally)| Row {
            route: Some(RouteColumns { route: route.clone(), method: method.clone(), ..RouteColumns::default() }),
            ..filled(tally)
        })
        .collect();
    routes.sort_by(|a, b| b.rps.total_cmp(&a.rps));
    let last = account.window.frames().back();
    let status = last.and_then(|frame| frame.workloads.iter().find(|status| sums.workloads.contains(&status.workload)));
    Details {
        row,
        history: account.history(subject.lines, &subject.key),
        seconds,
        callers,
        routes,
        pods: by_pod(pods.unwrap_or(&account.window).frames(), subject, query),
        endpoints: last.map(|frame| seen_by_callers(frame, &sums.workloads)).unwrap_or_default(),
        status: status.cloned(),
        arrived: sums.arrived.sum,
        sent: sums.sent.sum,
    }
}

/// The numbers of each pod, in order of their names; nothing if the frames don't tell pods apart.
fn by_pod(frames: &VecDeque<GoldenFrame>, subject: &Subject, query: &Query) -> Vec<(String, Row)> {
    let seconds = seconds_of(frames);
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    for (index, frame) in frames.iter().enumerate() {
        for entry in arrivals(frame, subject, query) {
            if let Some(pod) = &entry.pod {
                tallies.entry(pod).or_default().add(&entry.key, &entry.series, index + 1 == frames.len());
            }
        }
    }
    let row = |tally: Tally| {
        let mut row = Row::default();
        tally.fill(&mut row, seconds);
        row
    };
    tallies.into_iter().map(|(pod, tally)| (pod.to_owned(), row(tally))).collect()
}

fn seen_by_callers(frame: &GoldenFrame, workloads: &BTreeSet<WorkloadRef>) -> Vec<EndpointView> {
    frame.endpoints.iter().filter(|view| workloads.contains(&view.workload)).cloned().collect()
}

fn seconds_of(frames: &VecDeque<GoldenFrame>) -> f64 {
    frames.iter().map(|frame| frame.span_ms).sum::<u64>() as f64 / 1000.0
}

/// What arrived at the subject in a frame.
fn arrivals<'a>(frame: &'a GoldenFrame, subject: &Subject, query: &Query) -> Vec<&'a WorkloadSeries> {
    let Key { id: wanted, from } = &subject.key;
    if let Some(from) = from {
        let to = subject.workload();
        let is_it = |entry: &&WorkloadSeries| {
            entry.key.direction == Direction::Inbound && entry.workload == to && entry.key.peer == *from
        };
        return frame.series.iter().filter(is_it).collect();
    }
    let mut found = Vec::new();
    golden::each(frame, query, |id, entry| {
        let whole = id.namespace == wanted.namespace && id.kind == wanted.kind && id.name == wanted.name;
        let route = subject.lines != Lines::Routes || (id.route == wanted.route && id.method == wanted.method);
        if whole && route {
            found.push(entry);
        }
    });
    found
}

/// True if a series is what somebody sent to the subject.
fn is_sent(entry: &WorkloadSeries, workloads: &BTreeSet<WorkloadRef>, subject: &Subject) -> bool {
    let Key { id, from } = &subject.key;
    entry.key.direction == Direction::Outbound
        && workloads.contains(&entry.key.peer)
        && from.as_ref().is_none_or(|from| *from == entry.workload)
        && (subject.lines != Lines::Routes || (entry.key.route == id.route && entry.key.method == id.method))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::{SHOP, frame};
    use crate::top::edges::id_of;
    use mesh_api::MeshError;
    use std::time::Duration;

    fn workload(name: &str) -> WorkloadRef {
        WorkloadRef::new("shop", "deployment", name)
    }

    fn of(subject: &Subject, change: impl Fn(&mut GoldenFrame)) -> Details {
        let query = Query { routes: true, tcp_routes: true, ..Query::default() };
        let mut account = Account::new(Duration::from_secs(10));
        for second in 1..=10 {
            let mut frame = frame(SHOP, second * 1000, 1000);
            change(&mut frame);
            account.push(frame, &query);
        }
        details(&account, None, subject, &query)
    }

    #[test]
    fn a_workload_has_callers_routes_and_what_its_callers_saw() {
        let subject = Subject { key: Key { id: id_of(&workload("catalog")), from: None }, lines: Lines::Workloads };
        let details = of(&subject, |frame| {
            for entry in frame.series.iter_mut().filter(|e| e.key.direction == Direction::Outbound) {
                entry.series.retries = 2;
                entry.series.errors.insert(MeshError::ConnectFailed, 1);
            }
        });
        assert_eq!((details.row.rps, details.arrived.requests), (70.0, 700));
        assert_eq!(details.endpoints, []);
        let view = |name: &str| EndpointView {
            address: ([10, 244, 0, 2], 8080).into(),
            workload: workload(name),
            pod: format!("{name}-1"),
            callers: 2,
            failing: 1,
            in_flight: 3,
            expected_us: 7800,
            ejected: 0,
            half_open: 0,
            ejected_ms: 0,
        };
        let seen = of(&subject, |frame| frame.endpoints = vec![view("catalog"), view("web")]);
        assert_eq!(seen.endpoints, [view("catalog")]);
        assert_eq!(details.callers.len(), 1);
        assert_eq!(details.callers[0].0, workload("web"));
        let routes: Vec<_> = details.routes.iter().map(|r| r.route.as_ref().unwrap().route.as_str()).collect();
        assert_eq!(routes, ["/products/{id}", "/products/{id}/reviews"]);
        assert_eq!((details.sent.retries, details.sent.errors[&MeshError::ConnectFailed]), (40, 20));
        assert_eq!(details.pods, []);
        assert_eq!(details.status.unwrap().pods, 1);
    }

    #[test]
    fn a_route_has_its_own_numbers_only_and_pods_where_they_are_told_apart() {
        let id = RowId { route: "/products/{id}".into(), method: "GET".into(), ..id_of(&workload("catalog")) };
        let subject = Subject { key: Key { id, from: None }, lines: Lines::Routes };
        let details = of(&subject, |frame| {
            let mut more = Vec::new();
            for entry in &mut frame.series {
                entry.pod = Some("a".into());
                more.push(WorkloadSeries { pod: Some("b".into()), ..entry.clone() });
            }
            frame.series.extend(more);
        });
        assert_eq!(details.row.rps, 80.0);
        let pods: Vec<_> = details.pods.iter().map(|(pod, row)| (pod.as_str(), row.rps)).collect();
        assert_eq!(pods, [("a", 40.0), ("b", 40.0)]);
        assert_eq!(details.routes, []);
    }

    #[test]
    fn an_edge_is_seen_by_its_caller() {
        let subject =
            Subject { key: Key { id: id_of(&workload("web")), from: Some(workload("load")) }, lines: Lines::Edges };
        let details = of(&subject, |frame| {
            for entry in frame.series.iter_mut().filter(|e| e.key.direction == Direction::Outbound) {
                entry.series.requests += 1;
            }
        });
        assert_eq!(details.row.rps, 27.0, "two routes, each with a request more that never arrived");
        assert_eq!(details.arrived.requests, 250);
        assert_eq!(details.history.last(), Some(&27.0));
    }
}
