//! `meshctl edges`: who talks to whom, as a table, a graph or data.

use crate::args::{EdgeFormat, Edges, Global};
use crate::cluster::Cluster;
use crate::commands::live;
use crate::commands::routes::may_look_everywhere;
use crate::edges::{Edge, Query, edges};
use crate::error::{Outcome, Result};
use crate::known::{find, find_namespace};
use crate::observe::Ask;
use crate::output::{Column, Printer, numbers, words};
use crate::resource::{Kind, Resource, short_kind};
use crate::top::format::{bytes_rate, latency, percent, rate};
use comfy_table::{Cell, Color};
use mesh_api::golden::GoldenFrame;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

/// Asks for one frame and prints the edges in it.
pub async fn run(global: &Global, args: &Edges, printer: &Printer) -> Result<Outcome> {
    let of = Resource::read(&args.resource)?;
    let cluster = Cluster::connect(global).await?;
    let namespace = if of.kind == Kind::Namespace { None } else { cluster.scope(&args.namespaces) };
    let query = Query { of, namespace };
    // Both ends are named best by whoever sees both.
    let scope = match &query.namespace {
        Some(namespace) if !may_look_everywhere(&cluster).await => Some(namespace.clone()),
        _ => None,
    };
    let ask = Ask { namespace: scope, window: args.window, frames: Some(1), pods: false };
    let mut is_empty = false;
    live::look(&cluster, &ask, false, |frames| {
        if let Some(last) = frames.back() {
            find(last, &query.of, query.namespace.as_deref())?;
            is_empty = !last.workloads.iter().any(|s| query.namespace.as_ref() == Some(&s.workload.namespace));
        }
        print(frames, &query, args.output, printer)
    })
    .await?;
    if let (true, Some(namespace)) = (is_empty, &query.namespace) {
        find_namespace(&cluster, namespace).await?;
    }
    Ok(Outcome::Well)
}

fn print(frames: &VecDeque<GoldenFrame>, query: &Query, format: EdgeFormat, printer: &Printer) -> Result<()> {
    let edges = edges(frames, query);
    match format {
        EdgeFormat::Json => printer.json(&edges)?,
        EdgeFormat::Yaml => printer.yaml(&edges)?,
        EdgeFormat::Dot => printer.data(&dot(&edges))?,
        EdgeFormat::Mermaid => printer.data(&mermaid(&edges))?,
        EdgeFormat::Table | EdgeFormat::Wide if edges.is_empty() => {
            let place = query.namespace.as_ref().map_or("any namespace".to_owned(), |name| format!("namespace {name}"));
            printer.note(&format!("No traffic seen in {place}."));
        }
        EdgeFormat::Table | EdgeFormat::Wide => {
            let wide = format == EdgeFormat::Wide;
            printer.table(&columns(wide), edges.iter().map(|edge| cells(edge, wide)).collect())?;
        }
    }
    live::warn_of_silent(frames, printer);
    Ok(())
}

fn columns(wide: bool) -> Vec<Column> {
    let mut columns = vec![words("SRC"), words("DST"), words("SRC_NS"), words("DST_NS")];
    if wide {
        columns.extend([words("SERVICE"), words("CLIENT_ID"), words("SERVER_ID")]);
    }
    columns.extend([words("SECURED"), numbers("RPS"), numbers("SUCCESS"), numbers("P99"), numbers("TCP_CONN")]);
    if wide {
        columns.extend([numbers("TCP_READ"), numbers("TCP_WRITE")]);
    }
    columns
}

fn cells(edge: &Edge, wide: bool) -> Vec<Cell> {
    let or_dash = |text: &str| Cell::new(if text.is_empty() { "-" } else { text });
    let mut cells = vec![
        Cell::new(name(&edge.src_kind, &edge.src_name)),
        Cell::new(name(&edge.dst_kind, &edge.dst_name)),
        or_dash(&edge.src_namespace),
        or_dash(&edge.dst_namespace),
    ];
    if wide {
        cells.push(or_dash(&edge.services.join(",")));
        cells.push(or_dash(edge.client_identity.as_deref().unwrap_or_default()));
        cells.push(or_dash(edge.server_identity.as_deref().unwrap_or_default()));
    }
    cells.push(match (&edge.reason, edge.mtls_rate) {
        (None, _) => Cell::new("√ mutual TLS").fg(Color::Green),
        (Some(reason), Some(share)) if share > 0.0 => {
            Cell::new(format!("{} mutual TLS: {reason}", percent(share))).fg(Color::Yellow)
        }
        (Some(reason), _) => Cell::new(format!("no: {reason}")).fg(Color::Red),
    });
    let some = |has: bool, text: String| Cell::new(if has { text } else { "-".to_owned() });
    let (http, tcp) = (edge.success_rate.is_some(), edge.tcp_open_connections > 0 || is_tcp(edge));
    cells.push(some(http, rate(edge.rps)));
    cells.push(match edge.success_rate {
        None => Cell::new("-"),
        Some(share) => Cell::new(percent(share)).fg(success_color(share)),
    });
    cells.push(some(http, edge.latency_p99_ms.map_or("-".to_owned(), latency)));
    cells.push(some(tcp, edge.tcp_open_connections.to_string()));
    if wide {
        cells.push(some(tcp, bytes_rate(edge.tcp_read_bytes_rate)));
        cells.push(some(tcp, bytes_rate(edge.tcp_write_bytes_rate)));
    }
    cells
}

fn is_tcp(edge: &Edge) -> bool {
    edge.tcp_read_bytes_rate > 0.0 || edge.tcp_write_bytes_rate > 0.0
}

fn success_color(share: f64) -> Color {
    match share {
        v if v >= 0.995 => Color::Green,
        v if v >= 0.95 => Color::Yellow,
        _ => Color::Red,
    }
}

fn name(kind: &str, name: &str) -> String {
    format!("{}/{name}", short_kind(kind))
}

/// What stands on an arrow.
fn label(edge: &Edge) -> String {
    match edge.success_rate {
        Some(share) => format!("{} rps, {}", rate(edge.rps), percent(share)),
        None => format!("{} connections", edge.tcp_open_connections),
    }
}

/// Both ends of every edge, by namespace, each with a number of its own.
fn nodes(edges: &[Edge]) -> BTreeMap<&str, BTreeMap<(&str, &str), usize>> {
    let mut ends = BTreeSet::new();
    for edge in edges {
        ends.insert((&*edge.src_namespace, &*edge.src_kind, &*edge.src_name));
        ends.insert((&*edge.dst_namespace, &*edge.dst_kind, &*edge.dst_name));
    }
    let mut nodes: BTreeMap<&str, BTreeMap<(&str, &str), usize>> = BTreeMap::new();
    for (number, (namespace, kind, name)) in ends.into_iter().enumerate() {
        nodes.entry(namespace).or_default().insert((kind, name), number);
    }
    nodes
}

fn number(nodes: &BTreeMap<&str, BTreeMap<(&str, &str), usize>>, namespace: &str, kind: &str, name: &str) -> usize {
    // Every end of an edge is a node.
    nodes.get(namespace).and_then(|names| names.get(&(kind, name))).copied().unwrap_or_default()
}

/// A graph for Graphviz: a box for each namespace; dashed arrows are not (all) mutual TLS, red ones fail.
fn dot(edges: &[Edge]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let nodes = nodes(edges);
    let mut out = String::from("digraph mesh {\n  rankdir=LR;\n  node [shape=box, style=rounded];\n");
    // Writing to a String cannot fail.
    for (at, (namespace, names)) in nodes.iter().enumerate() {
        let title = if namespace.is_empty() { "outside" } else { namespace };
        let _ = writeln!(out, "  subgraph cluster_{at} {{\n    label={};", quoted(title));
        for ((kind, node), number) in names {
            let _ = writeln!(out, "    n{number} [label={}];", quoted(&name(kind, node)));
        }
        out.push_str("  }\n");
    }
    for edge in edges {
        let from = number(&nodes, &edge.src_namespace, &edge.src_kind, &edge.src_name);
        let to = number(&nodes, &edge.dst_namespace, &edge.dst_kind, &edge.dst_name);
        let style = if edge.secured { "" } else { ", style=dashed" };
        let color = if edge.success_rate.is_some_and(|share| share < 0.95) { ", color=red" } else { "" };
        let tooltip = edge.reason.as_deref().map(|why| format!(", tooltip={}", quoted(why))).unwrap_or_default();
        let _ = writeln!(out, "  n{from} -> n{to} [label={}{style}{color}{tooltip}];", quoted(&label(edge)));
    }
    out.push_str("}\n");
    out
}

/// A graph for Markdown pages; dotted arrows are not (all) mutual TLS.
fn mermaid(edges: &[Edge]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "#quot;"));
    let nodes = nodes(edges);
    let mut out = String::from("graph LR\n");
    for (at, (namespace, names)) in nodes.iter().enumerate() {
        let title = if namespace.is_empty() { "outside" } else { namespace };
        let _ = writeln!(out, "  subgraph s{at}[{}]", quoted(title));
        for ((kind, node), number) in names {
            let _ = writeln!(out, "    n{number}[{}]", quoted(&name(kind, node)));
        }
        out.push_str("  end\n");
    }
    for edge in edges {
        let from = number(&nodes, &edge.src_namespace, &edge.src_kind, &edge.src_name);
        let to = number(&nodes, &edge.dst_namespace, &edge.dst_kind, &edge.dst_name);
        let arrow = if edge.secured { "-->" } else { "-.->" };
        let _ = writeln!(out, "  n{from} {arrow}|{}| n{to}", quoted(&label(edge)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edges::tests::streets;

    fn printed(format: EdgeFormat) -> String {
        let (printer, read) = Printer::memory();
        print(&streets(), &Query { of: Resource::ALL, namespace: None }, format, &printer).unwrap();
        read().0
    }

    #[test]
    fn edges_as_tables() {
        insta::assert_snapshot!(format!("{}\n{}", printed(EdgeFormat::Table), printed(EdgeFormat::Wide)));
    }

    #[test]
    fn edges_as_graphs() {
        insta::assert_snapshot!(format!("{}\n{}", printed(EdgeFormat::Dot), printed(EdgeFormat::Mermaid)));
    }

    #[test]
    fn json_keys_of_edges_are_stable() {
        let query = Query { of: Resource::read_one("deploy/cart").unwrap(), namespace: Some("shop".into()) };
        let (printer, read) = Printer::memory();
        print(&streets(), &query, EdgeFormat::Json, &printer).unwrap();
        insta::assert_snapshot!(read().0);
    }

    #[test]
    fn what_is_quoted_stays_one_text() {
        let edge = Edge { src_name: "a\"b\\".into(), dst_name: "c".into(), ..Edge::default() };
        assert!(
            dot(std::slice::from_ref(&edge)).contains(r#"label="/a\"b\\""#),
            "{}",
            dot(std::slice::from_ref(&edge))
        );
        assert!(mermaid(&[edge]).contains("/a#quot;b"));
    }

    #[test]
    fn no_traffic_is_no_error() {
        let (printer, read) = Printer::memory();
        let query = Query { of: Resource::ALL, namespace: Some("empty".into()) };
        print(&streets(), &query, EdgeFormat::Table, &printer).unwrap();
        assert_eq!(read(), (String::new(), "No traffic seen in namespace empty.\n".to_owned()));
    }
}
