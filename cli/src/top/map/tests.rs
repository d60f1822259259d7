//! Maps of small graphs, drawn.

use super::*;
use crate::golden::{Row, RowId};
use crate::top::account::Key;

/// Lines of edges written as `a>b`, at 10 requests a second.
fn lines(edges: &[&str]) -> Vec<Line> {
    edges
        .iter()
        .map(|edge| {
            let (from, to) = edge.split_once('>').unwrap();
            let id = RowId { namespace: "shop".into(), kind: "deployment".into(), name: to.into(), ..RowId::default() };
            let row = Row {
                name: to.into(),
                rps: 10.0,
                requests: 100,
                success_rate: Some(1.0),
                mtls_rate: Some(1.0),
                latency_p99_ms: Some(4.0),
                ..Row::default()
            };
            Line { key: Key { id, from: Some(WorkloadRef::new("shop", "deployment", from)) }, row, history: Vec::new() }
        })
        .collect()
}

fn text(map: &Map, width: u16, height: u16) -> String {
    let mut rows = vec![vec![' '; usize::from(width)]; usize::from(height)];
    for run in &map.runs {
        for (at, letter) in run.text.chars().enumerate() {
            rows[usize::from(run.y)][usize::from(run.x) + at] = letter;
        }
    }
    let rows: Vec<String> = rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect();
    rows.join("\n").trim_end().to_owned()
}

fn draw(edges: &[&str], width: u16, height: u16) -> Option<String> {
    let theme = Theme { color: true, unicode: true };
    place(&lines(edges), width, height, theme, false).map(|map| text(&map, width, height))
}

#[test]
fn a_tree_fans_out() {
    insta::assert_snapshot!(draw(&["load>web", "web>cart", "web>catalog", "web>ledger"], 78, 20).unwrap());
}

#[test]
fn arrows_back_are_drawn_back() {
    insta::assert_snapshot!(draw(&["a>b", "b>c", "c>a", "c>c"], 78, 20).unwrap());
}

#[test]
fn long_arrows_pass_the_layers_between() {
    insta::assert_snapshot!(draw(&["a>b", "b>c", "c>d", "a>d", "b>d", "e>d"], 100, 30).unwrap());
}

#[test]
fn many_to_many_stays_readable() {
    let edges = ["a>x", "a>y", "a>z", "b>x", "b>y", "b>z", "c>z"];
    insta::assert_snapshot!(draw(&edges, 90, 24).unwrap());
}

#[test]
fn where_it_does_not_fit_there_is_none() {
    let shop = ["load>web", "web>cart", "web>catalog", "web>ledger"];
    insta::assert_snapshot!(draw(&shop, 46, 6).unwrap());
    assert_eq!(draw(&shop, 30, 20), None);
    assert_eq!(draw(&shop, 80, 2), None);
    let many: Vec<String> = (0..100).map(|at| format!("a{at}>b{at}")).collect();
    assert_eq!(draw(&many.iter().map(String::as_str).collect::<Vec<_>>(), 400, 400), None);
}

#[test]
fn a_click_finds_the_edge() {
    let theme = Theme { color: true, unicode: true };
    let lines = lines(&["load>web", "web>cart"]);
    let map = place(&lines, 78, 20, theme, false).unwrap();
    let label = map.runs.iter().find(|run| run.part == Part::Label(1)).unwrap();
    assert_eq!(map.at(label.x + 1, label.y), Some(1));
    assert_eq!(map.at(0, 19), None);
}

#[test]
fn no_size_breaks_it() {
    let edges = ["a>b", "b>c", "c>a", "a>d", "d>b", "e>d", "e>a"];
    for width in 0..100 {
        for height in 0..30 {
            for unicode in [true, false] {
                let theme = Theme { color: false, unicode };
                if let Some(map) = place(&lines(&edges), width, height, theme, true) {
                    for run in &map.runs {
                        let end = usize::from(run.x) + cells_of(&run.text);
                        assert!(end <= usize::from(width) && run.y < height, "{run:?} at {width}x{height}");
                    }
                }
            }
        }
    }
}
