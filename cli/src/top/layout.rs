//! Where things stand on a screen of a given size: shared by the view that draws and the mouse that clicks.

use crate::top::state::{Column, State};
use ratatui::text::Span;

/// A column's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub column: Column,
    /// First cell.
    pub x: u16,
    /// Cells.
    pub width: u16,
}

/// Lines of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lines {
    /// Title.
    pub title: u16,
    /// Totals, where there is room.
    pub total: Option<u16>,
    /// Banner; an empty line while all is well.
    pub banner: Option<u16>,
    /// Heads of the columns.
    pub head: u16,
    /// First row.
    pub rows: u16,
    /// Number of rows.
    pub count: u16,
    /// Footer.
    pub footer: Option<u16>,
}

/// Which line is what.
pub fn lines(height: u16) -> Lines {
    match height {
        0..=5 => Lines {
            title: 0,
            total: None,
            banner: None,
            head: 1.min(height.saturating_sub(1)),
            rows: 2,
            count: height.saturating_sub(2),
            footer: None,
        },
        6..=9 => Lines {
            title: 0,
            total: Some(1),
            banner: None,
            head: 2,
            rows: 3,
            count: height - 4,
            footer: Some(height - 1),
        },
        _ => Lines {
            title: 0,
            total: Some(1),
            banner: Some(2),
            head: 3,
            rows: 4,
            count: height - 5,
            footer: Some(height - 1),
        },
    }
}

/// Columns of numbers: the least width of the screen at which they are shown, and their own width.
const NUMBERS: [(Column, u16, u16); 6] = [
    (Column::Rps, 0, 6),
    (Column::Success, 34, 9),
    (Column::P50, 56, 6),
    (Column::P95, 64, 6),
    (Column::P99, 40, 6),
    (Column::Mtls, 50, 6),
];
/// The least width of the screen with sparklines.
const SPARKLINES_FROM: u16 = 78;
const SPARKLINE_LEAST: u16 = 8;
/// Widths into which a minute divides evenly.
const SPARKLINES: [u16; 6] = [60, 30, 20, 15, 12, 10];
const GAP: u16 = 2;

/// Where the columns stand.
pub fn columns(state: &State, width: u16) -> Vec<Place> {
    // A blank column at either side.
    let inner = width.saturating_sub(2);
    let numbers = NUMBERS.iter().filter(|(_, from, _)| width >= *from);
    let number_cells: u16 = numbers.clone().map(|(_, _, cells)| cells).sum();
    let sparkline = if width >= SPARKLINES_FROM { SPARKLINE_LEAST + GAP } else { 0 };
    let names = inner.saturating_sub(number_cells + sparkline);
    let longest = |text: fn(&State, usize) -> usize, head: usize| {
        (0..state.lines.len()).map(|at| text(state, at)).max().unwrap_or(0).max(head + 1)
    };
    let cells = |count: usize| u16::try_from(count).unwrap_or(u16::MAX);
    let workload_wish = cells(longest(|state, at| cells_of(&workload_text(state, at)), "WORKLOAD".len()));
    let route_wish = cells(longest(|state, at| cells_of(&route_text(state, at)), "ROUTE".len()));
    // Both get what they wish if there is room; else the workload gives way down to a third.
    let workload =
        workload_wish.min((names.saturating_sub(route_wish + 1)).max(names / 3)).min(names.saturating_sub(2));
    let room = names.saturating_sub(workload + 1);
    let spare = room.saturating_sub(route_wish);
    let fits = |cells: &&u16| **cells <= SPARKLINE_LEAST + spare;
    let sparkline_extra = match SPARKLINES.iter().find(fits) {
        Some(cells) if sparkline > 0 => cells - SPARKLINE_LEAST,
        _ => 0,
    };
    let route = room - sparkline_extra;
    let mut places = vec![
        Place { column: Column::Workload, x: 1, width: workload },
        Place { column: Column::Route, x: 2 + workload, width: route },
    ];
    let mut x = 2 + workload + route;
    for &(column, _, cells) in numbers {
        places.push(Place { column, x, width: cells });
        x += cells;
    }
    if sparkline > 0 {
        places.push(Place { column: Column::History, x: x + GAP, width: SPARKLINE_LEAST + sparkline_extra });
    }
    places
}

/// How a row's workload is written.
pub fn workload_text(state: &State, at: usize) -> String {
    let Some(line) = state.lines.get(at) else { return String::new() };
    if state.many_namespaces { format!("{}/{}", line.id.namespace, line.id.name) } else { line.id.name.clone() }
}

/// How a row's route is written.
pub fn route_text(state: &State, at: usize) -> String {
    let Some(line) = state.lines.get(at) else { return String::new() };
    match (line.id.method.as_str(), line.id.route.as_str()) {
        (_, "") if line.row.is_tcp() => "tcp".to_owned(),
        ("", route) => route.to_owned(),
        (method, route) => format!("{method} {route}"),
    }
}

/// How many cells a text takes.
pub fn cells_of(text: &str) -> usize {
    Span::raw(text).width()
}
