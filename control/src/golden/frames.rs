//! Adding frames up over proxies, for one workload. Pure. (Over time they add up by [`ProxyFrame::sequence`].)

use mesh_api::WorkloadRef;
use mesh_api::breaker::Standing;
use mesh_api::golden::{EndpointView, ProxyFrame, Series, SeriesKey, WorkloadSeries};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// One proxy's part of a merged frame.
#[derive(Debug)]
pub struct Part<'a> {
    /// The workload its pod belongs to.
    pub workload: WorkloadRef,
    /// Name of the pod.
    pub pod: &'a str,
    /// What it counted.
    pub frame: &'a ProxyFrame,
}

/// Adds up the same span of many proxies, a row per workload (and pod) and series.
pub fn merge<'a>(parts: impl Iterator<Item = Part<'a>>, pods: bool) -> Vec<WorkloadSeries> {
    let mut rows: BTreeMap<(WorkloadRef, Option<&str>, &SeriesKey), Series> = BTreeMap::new();
    for Part { workload, pod, frame } in parts {
        for (key, series) in &frame.series {
            rows.entry((workload.clone(), pods.then_some(pod), key)).or_default().merge(series, true);
        }
    }
    rows.into_iter()
        .map(|((workload, pod, key), series)| WorkloadSeries {
            workload,
            pod: pod.map(str::to_owned),
            key: key.clone(),
            series,
        })
        .collect()
}

/// How all callers together see the endpoints of some workloads, in the order of their addresses.
pub fn endpoints<'a>(
    frames: impl Iterator<Item = &'a ProxyFrame>,
    wanted: impl Fn(&WorkloadRef) -> bool,
) -> Vec<EndpointView> {
    let mut views: BTreeMap<SocketAddr, EndpointView> = BTreeMap::new();
    for level in frames.flat_map(|frame| &frame.endpoints).filter(|level| wanted(&level.workload)) {
        let view = views.entry(level.address).or_insert_with(|| EndpointView {
            address: level.address,
            workload: level.workload.clone(),
            pod: level.pod.clone(),
            callers: 0,
            failing: 0,
            in_flight: 0,
            expected_us: 0,
            ejected: 0,
            half_open: 0,
            ejected_ms: 0,
        });
        view.callers += 1;
        view.failing += u32::from(level.failing);
        view.in_flight = view.in_flight.saturating_add(level.in_flight);
        view.expected_us = view.expected_us.max(level.expected_us);
        view.ejected += u32::from(level.circuit == Some(Standing::Open));
        view.half_open += u32::from(level.circuit == Some(Standing::HalfOpen));
        view.ejected_ms = view.ejected_ms.max(level.ejected_ms);
    }
    views.into_values().collect()
}

/// What is still open after a frame, without anything counted.
pub fn levels(frame: &ProxyFrame) -> ProxyFrame {
    let open = frame.series.iter().filter(|(_, series)| series.tcp_open > 0);
    let series = open.map(|(key, s)| (key.clone(), Series { tcp_open: s.tcp_open, ..Series::default() }));
    ProxyFrame { at_ms: frame.at_ms, span_ms: 0, series: series.collect(), endpoints: frame.endpoints.clone() }
}
