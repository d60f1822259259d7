//! `meshctl routes`: a service's routes as callers saw them beside what each attempt came to.

use crate::args::{Global, Routes};
use crate::cluster::Cluster;
use crate::commands::live::{self, Style};
use crate::error::{Outcome, Result};
use crate::known::{find, find_namespace};
use crate::observe::Ask;
use crate::output::{Column, Printer, RowFormat, numbers, words};
use crate::resource::{Kind, Resource, short_kind};
use crate::routes::{BackendRow, Query, RouteRow, rows};
use crate::top::format::{latency, percent, rate};
use comfy_table::{Cell, Color};
use mesh_api::golden::GoldenFrame;
use std::collections::VecDeque;

/// Asks for frames and prints the routes in them.
pub async fn run(global: &Global, args: &Routes, printer: &Printer) -> Result<Outcome> {
    let of = match args.resource.as_slice() {
        [name] if !name.contains('/') && Resource::read_one(name).is_err() => {
            Resource { kind: Kind::Service, name: Some(name.clone()) }
        }
        words => Resource::read(words)?,
    };
    let from = args.from.as_deref().map(Resource::read_one).transpose()?;
    let cluster = Cluster::connect(global).await?;
    let namespace = if of.kind == Kind::Namespace { None } else { cluster.scope(&args.namespaces) };
    let query = Query { of, namespace, from };
    // Callers may live anywhere, but who may see one namespace only gets the callers in it.
    let anywhere = Ask { namespace: None, window: args.window, frames: Some(1), pods: false };
    let pods = query.from.iter().any(|from| from.kind == Kind::Pod);
    let mut ask = Ask { pods, ..anywhere };
    if let Some(namespace) = &query.namespace
        && !may_look_everywhere(&cluster).await
    {
        ask.namespace = Some(namespace.clone());
        printer.note(&format!("You may look at namespace {namespace} only; callers elsewhere are left out."));
    }
    let mut is_first = true;
    let mut is_empty = false;
    live::look(&cluster, &ask, args.watch, |frames| {
        if std::mem::take(&mut is_first)
            && let Some(last) = frames.back()
        {
            find(last, &query.of, query.namespace.as_deref())?;
            query.from.iter().try_for_each(|from| find(last, from, None))?;
            is_empty = !last.workloads.iter().any(|s| query.namespace.as_ref() == Some(&s.workload.namespace));
        }
        print(frames, &query, Style { format: args.output, repeats: args.watch }, printer)
    })
    .await?;
    if let (true, Some(namespace)) = (is_empty, &query.namespace) {
        find_namespace(&cluster, namespace).await?;
    }
    Ok(Outcome::Well)
}

/// True if the user may see golden metrics of every namespace.
pub async fn may_look_everywhere(cluster: &Cluster) -> bool {
    use k8s_openapi::api::authorization::v1::{
        ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
    };
    let attributes = ResourceAttributes {
        group: Some(mesh_api::names::OBSERVE_GROUP.to_owned()),
        resource: Some("workloads".to_owned()),
        subresource: Some("golden".to_owned()),
        verb: Some("get".to_owned()),
        name: Some("all".to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..Default::default() };
    let reviews: kube::Api<SelfSubjectAccessReview> = kube::Api::all(cluster.client.clone());
    // Without an answer the request itself will tell.
    match reviews.create(&kube::api::PostParams::default(), &review).await {
        Ok(answer) => answer.status.is_some_and(|status| status.allowed),
        Err(_) => true,
    }
}

fn print(frames: &VecDeque<GoldenFrame>, query: &Query, style: Style, printer: &Printer) -> Result<()> {
    let rows = rows(frames, query);
    if !live::write_data(&rows, frames, style, printer)? {
        if rows.is_empty() {
            let place = query.namespace.as_ref().map_or("any namespace".to_owned(), |name| format!("namespace {name}"));
            printer.note(&format!("No proxy saw its application call {} in {place}.", query.of));
        } else {
            let wide = style.format == RowFormat::Wide;
            let lines = rows.iter().flat_map(|row| lines(row, query, wide)).collect();
            printer.table(&columns(query, wide), lines)?;
        }
    }
    live::warn_of_silent(frames, printer);
    Ok(())
}

fn columns(query: &Query, wide: bool) -> Vec<Column> {
    let mut columns = Vec::new();
    if query.namespace.is_none() {
        columns.push(words("NAMESPACE"));
    }
    columns.extend([words("SERVICE"), words("METHOD"), words("ROUTE")]);
    columns.extend([
        numbers("EFFECTIVE_SUCCESS"),
        numbers("EFFECTIVE_RPS"),
        numbers("P50"),
        numbers("P95"),
        numbers("P99"),
        numbers("ACTUAL_SUCCESS"),
        numbers("ACTUAL_RPS"),
    ]);
    if wide {
        columns.extend([
            numbers("ACTUAL_P50"),
            numbers("ACTUAL_P95"),
            numbers("ACTUAL_P99"),
            numbers("RETRIES/S"),
            numbers("TIMEOUTS/S"),
            numbers("MTLS"),
        ]);
    }
    columns
}

/// A route, and below it its backends if there are several of them (or all is to be seen).
fn lines(row: &RouteRow, query: &Query, wide: bool) -> Vec<Vec<Cell>> {
    let mut lines = vec![route_line(row, query, wide)];
    if wide || row.backends.len() > 1 {
        let last = row.backends.len().saturating_sub(1);
        let backends = row.backends.iter().enumerate();
        lines.extend(backends.map(|(at, backend)| backend_line(backend, row, query, wide, at == last)));
    }
    lines
}

fn route_line(row: &RouteRow, query: &Query, wide: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    if query.namespace.is_none() {
        cells.push(Cell::new(&row.namespace));
    }
    let method = if row.method.is_empty() { "-" } else { &row.method };
    cells.extend([Cell::new(format!("{}:{}", row.service, row.port)), Cell::new(method), Cell::new(&row.route)]);
    cells.extend([share(row.effective_success_rate), Cell::new(rate(row.effective_rps))]);
    cells.extend([row.effective_latency_p50_ms, row.effective_latency_p95_ms, row.effective_latency_p99_ms].map(time));
    cells.extend([share(row.actual_success_rate), Cell::new(rate(row.actual_rps))]);
    if wide {
        cells.extend([row.actual_latency_p50_ms, row.actual_latency_p95_ms, row.actual_latency_p99_ms].map(time));
        cells.extend([Cell::new(rate(row.retries_rate)), Cell::new(rate(row.timeouts_rate)), share(row.mtls_rate)]);
    }
    cells
}

fn backend_line(backend: &BackendRow, row: &RouteRow, query: &Query, wide: bool, is_last: bool) -> Vec<Cell> {
    let mut cells: Vec<Cell> = (0..2 + usize::from(query.namespace.is_none())).map(|_| Cell::new("")).collect();
    let place = if backend.namespace == row.namespace { String::new() } else { format!("{}/", backend.namespace) };
    let branch = if is_last { "└─" } else { "├─" };
    let name = format!("{branch} {place}{}/{} {:.0}%", short_kind(&backend.kind), backend.name, backend.share * 100.0);
    cells.push(Cell::new(name));
    let times = [backend.latency_p50_ms, backend.latency_p95_ms, backend.latency_p99_ms].map(time);
    cells.extend([Cell::new(""), Cell::new("")]);
    if wide {
        cells.extend((0..3).map(|_| Cell::new("")));
        cells.extend([share(backend.success_rate), Cell::new(rate(backend.rps))]);
        cells.extend(times);
        cells.extend((0..3).map(|_| Cell::new("")));
    } else {
        cells.extend(times);
        cells.extend([share(backend.success_rate), Cell::new(rate(backend.rps))]);
    }
    cells
}

fn share(value: Option<f64>) -> Cell {
    match value {
        None => Cell::new("-"),
        Some(value) => Cell::new(percent(value)).fg(match value {
            v if v >= 0.995 => Color::Green,
            v if v >= 0.95 => Color::Yellow,
            _ => Color::Red,
        }),
    }
}

fn time(value: Option<f64>) -> Cell {
    Cell::new(value.map_or("-".to_owned(), latency))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routes::tests::split;

    fn printed(of: &str, namespace: Option<&str>, format: RowFormat) -> (String, String) {
        let (printer, read) = Printer::memory();
        let query = Query { of: Resource::read_one(of).unwrap(), namespace: namespace.map(str::to_owned), from: None };
        print(&split(), &query, Style::once(format), &printer).unwrap();
        read()
    }

    #[test]
    fn effective_beside_actual_and_backends_below() {
        insta::assert_snapshot!(printed("svc/catalog", Some("shop"), RowFormat::Table).0);
    }

    #[test]
    fn every_column_of_routes() {
        insta::assert_snapshot!(printed("all", None, RowFormat::Wide).0);
    }

    #[test]
    fn json_keys_of_routes_are_stable() {
        let rows = rows(
            &split(),
            &Query { of: Resource::read_one("deploy/catalog-v2").unwrap(), namespace: None, from: None },
        );
        insta::assert_snapshot!(serde_json::to_string_pretty(&rows).unwrap());
    }

    #[test]
    fn no_calls_are_no_error() {
        let (out, err) = printed("svc/ledger", Some("shop"), RowFormat::Table);
        assert_eq!((&*out, &*err), ("", "No proxy saw its application call service/ledger in namespace shop.\n"));
    }
}
