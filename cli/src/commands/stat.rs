//! `meshctl stat`: golden metrics once, or anew every second.

use crate::args::{Global, Stat};
use crate::cluster::Cluster;
use crate::commands::live::{self, Style};
use crate::error::{Outcome, Result};
use crate::golden::{Query, Row, rows};
use crate::known::{find, find_namespace};
use crate::observe::Ask;
use crate::output::{Column, Printer, RowFormat, numbers, words};
use crate::resource::{Kind, Resource, short_kind};
use crate::selector::select;
use crate::top::format::{bytes_rate, latency, percent, rate};
use comfy_table::{Cell, Color};
use mesh_api::golden::GoldenFrame;
use std::collections::VecDeque;
use std::time::Duration;

/// Asks for frames and prints their rows.
pub async fn run(global: &Global, args: &Stat, printer: &Printer) -> Result<Outcome> {
    let of = Resource::read(&args.resource)?;
    let read = |word: &Option<String>| word.as_deref().map(Resource::read_one).transpose();
    let (from, to) = (read(&args.from)?, read(&args.to)?);
    let cluster = Cluster::connect(global).await?;
    let namespace = match of.kind {
        // Namespaces themselves are in no namespace.
        Kind::Namespace => None,
        _ => cluster.scope(&args.namespaces),
    };
    let only = match &args.selector {
        Some(labels) => Some(select(&cluster, &of, namespace.as_deref(), labels).await?),
        None => None,
    };
    let query = Query { of, namespace, only, from, to, routes: args.routes, tcp_routes: false };
    let mut is_first = true;
    let mut is_empty = false;
    live::look(&cluster, &ask(&query, args.window), args.watch, |frames| {
        if std::mem::take(&mut is_first) {
            find_all(frames, &query)?;
            is_empty = frames.back().is_none_or(|frame| frame.workloads.is_empty());
        }
        print_styled(frames, &query, Style { format: args.output, repeats: args.watch }, printer)
    })
    .await?;
    if let (true, Some(namespace)) = (is_empty, &query.namespace) {
        find_namespace(&cluster, namespace).await?;
    }
    Ok(Outcome::Well)
}

/// The question that brings what a query needs.
pub fn ask(query: &Query, window: Duration) -> Ask {
    // Who sends may live anywhere; for what arrives the scope's own proxies are enough.
    let namespace = if query.from.is_some() || query.to.is_some() { None } else { query.namespace.clone() };
    let of_pods = |resource: &Resource| resource.kind == Kind::Pod;
    let pods = of_pods(&query.of) || query.from.iter().chain(&query.to).any(of_pods);
    Ask { namespace, window, frames: Some(1), pods }
}

/// An error if something the query names is not there.
fn find_all(frames: &VecDeque<GoldenFrame>, query: &Query) -> Result<()> {
    let Some(last) = frames.back() else { return Ok(()) };
    find(last, &query.of, query.namespace.as_deref())?;
    query.from.iter().chain(&query.to).try_for_each(|end| find(last, end, None))
}

/// Prints the rows of some frames.
pub fn print(frames: &VecDeque<GoldenFrame>, query: &Query, format: RowFormat, printer: &Printer) -> Result<()> {
    find_all(frames, query)?;
    print_styled(frames, query, Style::once(format), printer)
}

fn print_styled(frames: &VecDeque<GoldenFrame>, query: &Query, style: Style, printer: &Printer) -> Result<()> {
    let rows = rows(frames, query);
    if !live::write_data(&rows, frames, style, printer)? {
        if rows.is_empty() {
            let place = query.namespace.as_ref().map_or("any namespace".to_owned(), |name| format!("namespace {name}"));
            let what =
                if query.routes || query.from.is_some() || query.to.is_some() { "requests" } else { "workloads" };
            printer.note(&format!("No {what} seen in {place}."));
        } else {
            let wide = style.format == RowFormat::Wide;
            let cells = rows.iter().map(|row| cells(row, query, wide)).collect();
            printer.table(&columns(query, wide), cells)?;
        }
    }
    live::warn_of_silent(frames, printer);
    Ok(())
}

fn columns(query: &Query, wide: bool) -> Vec<Column> {
    let mut columns = Vec::new();
    if query.namespace.is_none() && query.of.kind != Kind::Namespace {
        columns.push(words("NAMESPACE"));
    }
    columns.push(words("NAME"));
    if query.routes {
        columns.extend([words("METHOD"), words("ROUTE"), words("SERVICE")]);
    } else {
        columns.push(numbers("MESHED"));
    }
    columns.extend([
        numbers("SUCCESS"),
        numbers("RPS"),
        numbers("P50"),
        numbers("P95"),
        numbers("P99"),
        numbers("MTLS"),
    ]);
    if query.routes {
        if wide {
            columns.extend([numbers("RETRIES/S"), numbers("TIMEOUTS/S")]);
        }
    } else {
        columns.push(numbers("TCP_CONN"));
        if wide {
            columns.extend([numbers("TCP_READ"), numbers("TCP_WRITE")]);
        }
    }
    columns
}

fn cells(row: &Row, query: &Query, wide: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    if query.namespace.is_none() && query.of.kind != Kind::Namespace {
        cells.push(Cell::new(&row.namespace));
    }
    let one_kind = matches!(query.of.kind, Kind::Workload(_) | Kind::Pod | Kind::Service | Kind::Namespace);
    cells.push(Cell::new(if one_kind { row.name.clone() } else { format!("{}/{}", short_kind(&row.kind), row.name) }));
    match &row.route {
        Some(route) => {
            let or_dash = |text: &str| Cell::new(if text.is_empty() { "-" } else { text });
            cells.extend([
                or_dash(&route.method),
                or_dash(&route.route),
                or_dash(route.service.as_deref().unwrap_or_default()),
            ]);
        }
        None => {
            let cell = Cell::new(format!("{}/{}", row.meshed_pods, row.pods));
            cells.push(if row.meshed_pods < row.pods { cell.fg(Color::Yellow) } else { cell });
        }
    }
    let share = |value: Option<f64>, good: f64, fair: f64| match value {
        None => Cell::new("-"),
        Some(value) => Cell::new(percent(value)).fg(match value {
            v if v >= good => Color::Green,
            v if v >= fair => Color::Yellow,
            _ => Color::Red,
        }),
    };
    let time = |value: Option<f64>| Cell::new(value.map_or("-".to_owned(), latency));
    cells.extend([
        share(row.success_rate, 0.995, 0.95),
        Cell::new(if row.requests == 0 { "-".to_owned() } else { rate(row.rps) }),
        time(row.latency_p50_ms),
        time(row.latency_p95_ms),
        time(row.latency_p99_ms),
        share(row.mtls_rate, 1.0, 0.5),
    ]);
    match &row.route {
        Some(route) if wide => {
            cells.extend([Cell::new(rate(route.retries_rate)), Cell::new(rate(route.timeouts_rate))]);
        }
        Some(_) => {}
        None => {
            let tcp = row.connections > 0;
            let or_dash = |text: String| Cell::new(if tcp { text } else { "-".to_owned() });
            cells.push(or_dash(row.tcp_open_connections.to_string()));
            if wide {
                cells.push(or_dash(bytes_rate(row.tcp_read_bytes_rate)));
                cells.push(or_dash(bytes_rate(row.tcp_write_bytes_rate)));
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::{SHOP, frame};

    fn printed(query: &Query, format: RowFormat) -> (String, String) {
        let (printer, read) = Printer::memory();
        print(&VecDeque::from([frame(SHOP, 10_000, 10_000)]), query, format, &printer).unwrap();
        read()
    }

    fn shop(of: &str) -> Query {
        Query { of: Resource::read_one(of).unwrap(), namespace: Some("shop".into()), ..Query::default() }
    }

    #[test]
    fn workloads_as_a_table() {
        insta::assert_snapshot!(printed(&shop("deploy"), RowFormat::Table).0);
    }

    #[test]
    fn routes_as_a_wide_table() {
        let query = Query { routes: true, namespace: None, ..shop("all") };
        insta::assert_snapshot!(printed(&query, RowFormat::Wide).0);
    }

    #[test]
    fn yaml_has_the_keys_of_json() {
        let (out, _) = printed(&shop("deploy/cart"), RowFormat::Yaml);
        assert!(out.starts_with("- namespace: shop\n  kind: deployment\n  name: cart\n"), "{out}");
    }

    #[test]
    fn nothing_to_show_is_said_on_stderr() {
        let (out, err) = printed(&Query { routes: true, ..shop("deploy/load") }, RowFormat::Table);
        assert_eq!((out.as_str(), err.as_str()), ("", "No requests seen in namespace shop.\n"));
        assert_eq!(printed(&shop("sts"), RowFormat::Json).0, "[]\n");
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error() {
        let (printer, _) = Printer::memory();
        let error = print(&crate::golden::tests::shop(), &shop("deploy/wob"), RowFormat::Table, &printer).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot find wob: there is no deployment/wob with running pods in namespace shop"
        );
        assert_eq!(error.hint_text(), Some("did you mean deployment/web?"));
        let (printer, _) = Printer::memory();
        let from = Query { from: Some(Resource::read_one("deploy/laod").unwrap()), ..shop("deploy") };
        let error = print(&crate::golden::tests::shop(), &from, RowFormat::Table, &printer).unwrap_err();
        assert_eq!(error.hint_text(), Some("did you mean deployment/load?"));
    }

    #[test]
    fn every_column_of_workloads() {
        insta::assert_snapshot!(printed(&Query { namespace: None, ..shop("all") }, RowFormat::Wide).0);
    }

    #[test]
    fn pods_services_and_namespaces_as_tables() {
        let tables: Vec<_> = ["po", "svc", "ns"].iter().map(|of| printed(&shop(of), RowFormat::Table).0).collect();
        insta::assert_snapshot!(tables.join("\n"));
    }

    #[test]
    fn a_sender_narrows_the_rows() {
        let from = Some(Resource::read_one("deploy/load").unwrap());
        insta::assert_snapshot!(printed(&Query { from, ..shop("deploy") }, RowFormat::Table).0, @r"
        NAME   MESHED   SUCCESS    RPS     P50    P95    P99     MTLS   TCP_CONN
        web       1/1    100.0%   25.0   9.1ms   32ms   39ms   100.0%          -
        ");
    }
}
