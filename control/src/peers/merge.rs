//! Adding up merged frames: those of several replicas over the same span, and those of one over time. Pure.

use mesh_api::WorkloadRef;
use mesh_api::golden::{EndpointView, GoldenFrame, Series, SeriesKey, WorkloadSeries};
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Adds what another replica's proxies counted over the same span. What is open there is open, too.
pub(super) fn beside(frame: &mut GoldenFrame, other: GoldenFrame) {
    let GoldenFrame { at_ms: _, span_ms: _, workloads, series, silent_proxies, endpoints, senseless, unreachable } =
        other;
    add_series(&mut frame.series, series, true);
    for status in workloads {
        match frame.workloads.iter_mut().find(|known| known.workload == status.workload) {
            // Both know the same cluster; only whose proxies are connected differs.
            Some(known) => known.connected = (known.connected + status.connected).min(known.meshed_pods),
            None => frame.workloads.push(status),
        }
    }
    let mut views: BTreeMap<SocketAddr, EndpointView> =
        std::mem::take(&mut frame.endpoints).into_iter().map(|view| (view.address, view)).collect();
    for view in endpoints {
        match views.get_mut(&view.address) {
            None => _ = views.insert(view.address, view),
            Some(known) => {
                known.callers += view.callers;
                known.failing += view.failing;
                known.in_flight = known.in_flight.saturating_add(view.in_flight);
                known.expected_us = known.expected_us.max(view.expected_us);
            }
        }
    }
    frame.endpoints = views.into_values().collect();
    frame.silent_proxies = frame.silent_proxies.saturating_add(silent_proxies);
    frame.senseless.extend(senseless);
    frame.unreachable.extend(unreachable);
}

/// Adds what the same replica's proxies counted afterwards. What is open at the end is what is open then.
pub(super) fn then(frame: &mut GoldenFrame, mut next: GoldenFrame) {
    let span_ms = frame.span_ms.saturating_add(next.span_ms);
    let mut series = std::mem::take(&mut frame.series);
    series.iter_mut().for_each(|row| row.series.tcp_open = 0);
    add_series(&mut series, std::mem::take(&mut next.series), false);
    *frame = GoldenFrame { span_ms, series, ..next };
}

/// What is still open after a frame, without anything counted.
pub(super) fn levels(frame: &GoldenFrame) -> GoldenFrame {
    let open = frame.series.iter().filter(|row| row.series.tcp_open > 0);
    let series = open.map(|row| WorkloadSeries {
        series: Series { tcp_open: row.series.tcp_open, ..Series::default() },
        ..row.clone()
    });
    GoldenFrame { series: series.collect(), span_ms: 0, ..frame.clone() }
}

/// A frame of a replica that is gone: whatever was open there is no longer seen.
pub(super) fn closed(mut frame: GoldenFrame) -> GoldenFrame {
    frame.series.iter_mut().for_each(|row| row.series.tcp_open = 0);
    frame.workloads.iter_mut().for_each(|status| status.connected = 0);
    GoldenFrame { endpoints: Vec::new(), silent_proxies: 0, ..frame }
}

fn add_series(all: &mut Vec<WorkloadSeries>, more: Vec<WorkloadSeries>, at_once: bool) {
    let mut rows: BTreeMap<(WorkloadRef, Option<String>, SeriesKey), Series> = BTreeMap::new();
    for WorkloadSeries { workload, pod, key, series } in std::mem::take(all).into_iter().chain(more) {
        match rows.entry((workload, pod, key)) {
            std::collections::btree_map::Entry::Vacant(empty) => _ = empty.insert(series),
            std::collections::btree_map::Entry::Occupied(mut known) => known.get_mut().merge(&series, at_once),
        }
    }
    let row = |((workload, pod, key), series)| WorkloadSeries { workload, pod, key, series };
    *all = rows.into_iter().map(row).collect();
}
