//! Where things stand on a screen of a given size: shared by the view that draws and the mouse that clicks.

use crate::top::account::Lines;
use crate::top::map::{self, Map};
use crate::top::state::{Column, Line, Link, Screen, State};
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

/// Rows of the screen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Title.
    pub title: u16,
    /// Totals, where there is room.
    pub total: Option<u16>,
    /// Names of the screens, where there is room.
    pub tabs: Option<u16>,
    /// Heads of the columns.
    pub head: u16,
    /// First line of the body.
    pub body: u16,
    /// Number of lines of the body.
    pub count: u16,
    /// What has to be told; above the footer, or instead of the title.
    pub notice: Option<u16>,
    /// Footer.
    pub footer: Option<u16>,
}

/// Which row is what.
pub fn rows(state: &State) -> Rows {
    let height = state.size.1;
    let notice = has_notice(state);
    let row = Rows { title: 0, total: None, tabs: None, head: 1, body: 2, count: 0, notice: None, footer: None };
    let mut rows = match height {
        0..=5 => Rows { head: 1.min(height.saturating_sub(1)), count: height.saturating_sub(2), ..row },
        6..=9 => Rows { total: Some(1), head: 2, body: 3, count: height - 4, footer: Some(height - 1), ..row },
        _ => {
            Rows { total: Some(1), tabs: Some(2), head: 3, body: 4, count: height - 5, footer: Some(height - 1), ..row }
        }
    };
    if notice {
        // Where there is no room for it, the title gives way.
        rows.notice = Some(if height >= 10 { height - 2 } else { rows.title });
        rows.count -= u16::from(height >= 10);
    }
    // A drawing, details and a narrow list have no heads of columns.
    if state.screen == Screen::Details {
        rows.body = rows.head;
        rows.count += u16::from(height > 1);
    }
    rows
}

/// True if something has to be told beyond the usual.
fn has_notice(state: &State) -> bool {
    let wrong = state.typing.as_ref().is_some_and(|typing| typing.wrong.is_some());
    let lost = matches!(state.link, Link::Lost { .. });
    let ended = state.replay.as_ref().is_some_and(|replay| replay.damage.is_some() && replay.at_end(state.now_ms));
    wrong || lost || ended || state.silent_proxies() > 0 || !state.unreachable().is_empty()
}

/// Columns of numbers: the least width of the screen at which they are shown, and their own width.
const NUMBERS: [(Column, u16, u16); 7] = [
    (Column::Meshed, 44, 8),
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

/// The columns of words, first and second; workloads have only one.
fn words(lines: Lines) -> (Column, Option<Column>) {
    match lines {
        Lines::Routes => (Column::Workload, Some(Column::Route)),
        Lines::Workloads => (Column::Workload, None),
        Lines::Edges => (Column::From, Some(Column::Workload)),
    }
}

/// Where the columns stand.
pub fn columns(state: &State) -> Vec<Place> {
    let Some(lines) = state.screen.lines() else { return Vec::new() };
    let width = state.size.0;
    let (first, second) = words(lines);
    // A blank column at either side.
    let inner = width.saturating_sub(2);
    let is_shown = |column: Column, from: u16| width >= from && (column != Column::Meshed || lines == Lines::Workloads);
    let numbers = NUMBERS.iter().filter(|(column, from, _)| is_shown(*column, *from));
    let number_cells: u16 = numbers.clone().map(|(_, _, cells)| cells).sum();
    let sparkline = if width >= SPARKLINES_FROM { SPARKLINE_LEAST + GAP } else { 0 };
    let names = inner.saturating_sub(number_cells + sparkline);
    let wish = |column: Column| {
        let longest = state.lines.iter().map(|line| cells_of(&text(state, line, column))).max();
        u16::try_from(longest.unwrap_or(0).max(column.head(lines).len() + 1)).unwrap_or(u16::MAX)
    };
    let first_wish = wish(first);
    let second_wish = second.map_or(0, wish);
    // Both get what they wish if there is room; else the first gives way down to a third.
    let first_width = match second {
        Some(_) => first_wish.min(names.saturating_sub(second_wish + 1).max(names / 3)).min(names.saturating_sub(2)),
        None => names,
    };
    let room = names.saturating_sub(first_width + u16::from(second.is_some()));
    let spare = if second.is_some() { room.saturating_sub(second_wish) } else { names.saturating_sub(first_wish) };
    let fits = |cells: &&u16| **cells <= SPARKLINE_LEAST + spare;
    let extra = match SPARKLINES.iter().find(fits) {
        Some(cells) if sparkline > 0 => cells - SPARKLINE_LEAST,
        _ => 0,
    };
    let mut places = Vec::new();
    let mut x = 1;
    match second {
        Some(second) => {
            places.push(Place { column: first, x, width: first_width });
            places.push(Place { column: second, x: x + first_width + 1, width: room - extra });
            x += first_width + 1 + room - extra;
        }
        None => {
            places.push(Place { column: first, x, width: first_width - extra });
            x += first_width - extra;
        }
    }
    for &(column, _, cells) in numbers {
        places.push(Place { column, x, width: cells });
        x += cells;
    }
    if sparkline > 0 {
        places.push(Place { column: Column::History, x: x + GAP, width: SPARKLINE_LEAST + extra });
    }
    places
}

/// The map of edges, if that is what is shown and it fits.
pub fn edge_map(state: &State) -> Option<Map> {
    if state.screen != Screen::Edges || state.as_list || state.lines.is_empty() {
        return None;
    }
    let rows = rows(state);
    // No heads of columns: the map has their row, too.
    map::place(&state.lines, state.size.0.saturating_sub(2), rows.count + 1, state.theme, state.many_namespaces)
}

/// How a line's words are written.
pub fn text(state: &State, line: &Line, column: Column) -> String {
    let id = &line.key.id;
    let name = |namespace: &str, name: &str| {
        if state.many_namespaces && !namespace.is_empty() { format!("{namespace}/{name}") } else { name.to_owned() }
    };
    match column {
        Column::From => line.key.from.as_ref().map_or_else(String::new, |from| name(&from.namespace, &from.name)),
        Column::Workload => name(&id.namespace, &id.name),
        Column::Route => match (id.method.as_str(), id.route.as_str()) {
            (_, "") if line.row.is_tcp() => "tcp".to_owned(),
            ("", route) => route.to_owned(),
            (method, route) => format!("{method} {route}"),
        },
        _ => String::new(),
    }
}

/// How many cells a text takes.
pub fn cells_of(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { Span::raw(text).width() }
}
