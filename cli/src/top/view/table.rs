//! Lines of numbers: routes, workloads, and edges as a list.

use super::{Sheet, dull, empty, right};
use crate::golden::Row;
use crate::top::account::Lines;
use crate::top::format::{bytes_rate, latency, percent, rate};
use crate::top::layout::{self, Place, Rows, cells_of};
use crate::top::state::{Column, Line as TableLine, State};
use ratatui::style::{Color, Style};
use ratatui::text::Line;

/// Draws heads and lines.
pub(super) fn draw(state: &State, sheet: &mut Sheet, rows: &Rows) {
    let places = layout::columns(state);
    if rows.head < sheet.area.height {
        draw_head(state, sheet, rows.head, &places);
    }
    if state.lines.is_empty() {
        return empty::draw_lines(state, sheet, rows.body, rows.count);
    }
    let cursor = state.cursor();
    let offset = state.table().offset;
    for (index, line) in state.lines.iter().enumerate().skip(offset).take(usize::from(rows.count)) {
        let y = rows.body + u16::try_from(index - offset).unwrap_or(rows.count);
        for place in &places {
            let drawn = cell(state, line, *place);
            sheet.put(place.x, y, &drawn);
        }
        if line.row.is_tcp() {
            draw_tcp(state, sheet, &places, &line.row, y);
        }
        if index == cursor {
            sheet.select(y);
        }
    }
}

fn draw_head(state: &State, sheet: &mut Sheet, y: u16, places: &[Place]) {
    let theme = state.theme;
    let (table, lines) = (state.table(), state.screen.lines().unwrap_or(Lines::Routes));
    for place in places {
        let sorted = place.column == table.sort;
        let arrow = if sorted { theme.arrow(table.descending) } else { "" };
        let short = place.column == Column::History && place.width < 11;
        let head = if short { "LAST MIN" } else { place.column.head(lines) };
        let text = theme.cut(&format!("{head}{arrow}"), usize::from(place.width));
        let style = if sorted { theme.strong() } else { theme.faint() };
        let text = if place.column.is_number() { right(&text, usize::from(place.width)) } else { text };
        sheet.put(place.x, y, &Line::styled(text, style));
    }
}

fn cell(state: &State, line: &TableLine, place: Place) -> Line<'static> {
    let theme = state.theme;
    let row = &line.row;
    let nothing = || (theme.nothing().to_owned(), theme.faint());
    let number = |value: Option<f64>, text: fn(f64) -> String, style: &dyn Fn(f64) -> Style| {
        value.map_or_else(nothing, |value| (text(value), style(value)))
    };
    let (text, style) = match place.column {
        Column::From => (layout::text(state, line, Column::From), Style::new()),
        Column::Workload => (layout::text(state, line, Column::Workload), theme.strong()),
        Column::Route => (layout::text(state, line, Column::Route), Style::new()),
        Column::Rps | Column::Success | Column::P50 | Column::P95 | Column::P99 if row.is_tcp() => {
            return Line::default();
        }
        Column::Meshed if row.pods == 0 => nothing(),
        Column::Meshed => {
            let style = if row.meshed_pods < row.pods { theme.fg(Color::Yellow) } else { Style::new() };
            (format!("{}/{}", row.meshed_pods, row.pods), style)
        }
        Column::Rps if row.requests == 0 => nothing(),
        Column::Rps => (rate(row.rps), Style::new()),
        Column::Success => number(row.success_rate, percent, &|value| theme.success(value)),
        Column::P50 => number(row.latency_p50_ms, latency, &|ms| theme.latency(ms)),
        Column::P95 => number(row.latency_p95_ms, latency, &|ms| theme.latency(ms)),
        Column::P99 => number(row.latency_p99_ms, latency, &|ms| theme.latency(ms)),
        Column::Mtls => theme.mtls(row.mtls_rate),
        Column::History => (theme.sparkline(&line.history, usize::from(place.width)), theme.fg(Color::Cyan)),
    };
    let width = usize::from(place.width);
    let text = match place.column {
        Column::Route => theme.cut_middle(&text, width),
        column if column.is_number() => right(&theme.cut(&text, width), width),
        _ => theme.cut(&text, width),
    };
    Line::styled(text, style.patch(dull(state)))
}

/// TCP has no requests: its connections and bytes stand across the columns of numbers.
fn draw_tcp(state: &State, sheet: &mut Sheet, places: &[Place], row: &Row, y: u16) {
    let is_free = |column| !matches!(column, Column::Mtls | Column::Meshed);
    let numbers = places.iter().filter(|p| p.column.is_number() && is_free(p.column));
    let (Some(first), Some(last)) = (numbers.clone().next(), numbers.clone().next_back()) else { return };
    let width = usize::from(last.x + last.width - first.x);
    let (up, down) = (bytes_rate(row.tcp_read_bytes_rate), bytes_rate(row.tcp_write_bytes_rate));
    let both = bytes_rate(row.tcp_read_bytes_rate + row.tcp_write_bytes_rate);
    let open = row.tcp_open_connections;
    let texts = [format!("{open} open  {up} in  {down} out"), format!("{open} open  {both}"), format!("{open} open")];
    if let Some(text) = texts.iter().find(|text| cells_of(text) < width) {
        sheet.put(first.x, y, &Line::styled(right(text, width), dull(state)));
    }
}
