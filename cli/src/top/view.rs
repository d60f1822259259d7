//! Draws the state: `view(&State)`, pure. Two lines say how the whole mesh is, then comes a row for each route.

use crate::golden::Row;
use crate::top::format::{bytes_rate, elapsed, latency, percent, rate};
use crate::top::keys::{Command, KEYS};
use crate::top::layout::{self, Place, cells_of};
use crate::top::state::{Column, Line as RouteLine, Link, State};
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Widget};

/// Draws everything.
pub fn view(state: &State, frame: &mut Frame) {
    let area = frame.area();
    let lines = layout::lines(area.height);
    let buffer = frame.buffer_mut();
    if area.width == 0 || area.height == 0 {
        return;
    }
    draw_title(state, buffer, area, lines.title);
    if let Some(y) = lines.total {
        draw_total(state, buffer, area, y);
    }
    // Where there is no line for a banner, the title gives way.
    draw_banner(state, buffer, area, lines.banner.unwrap_or(lines.title));
    if lines.head < area.height {
        draw_head(state, buffer, area, lines.head);
    }
    draw_rows(state, buffer, area, lines.rows, lines.count);
    if let Some(y) = lines.footer {
        draw_footer(state, buffer, area, y, usize::from(lines.count));
    }
    if state.help {
        draw_help(state, buffer, area);
    }
}

fn put(buffer: &mut Buffer, area: Rect, x: u16, y: u16, line: &Line) {
    if x < area.width && y < area.height {
        buffer.set_line(area.x + x, area.y + y, line, area.width - x);
    }
}

/// Puts a line so that it ends at the screen's right margin, if `left` cells remain free.
fn put_right(buffer: &mut Buffer, area: Rect, left: usize, y: u16, line: &Line) {
    let width = line.width();
    let room = usize::from(area.width).saturating_sub(1);
    if width > 0 && left + width < room {
        put(buffer, area, u16::try_from(room - width).unwrap_or(0), y, line);
    }
}

fn draw_title(state: &State, buffer: &mut Buffer, area: Rect, y: u16) {
    let theme = state.theme;
    let mut spans = vec![
        Span::raw(" "),
        Span::styled("meshctl top", theme.strong().patch(theme.fg(Color::Cyan))),
        Span::raw("  "),
        Span::raw(state.scope.clone()),
    ];
    if !state.cluster.is_empty() {
        spans.push(Span::styled(format!("{}{}", theme.separator(), state.cluster), theme.faint()));
    }
    let left = Line::from(spans);
    put(buffer, area, 0, y, &left);
    let (mark, words, style) = match (&state.link, &state.paused) {
        (_, Some((_, since))) => {
            let since = elapsed(state.now_ms.saturating_sub(*since));
            ("", format!("paused {since}"), theme.fg(Color::Yellow).add_modifier(Modifier::BOLD))
        }
        (Link::Live, None) => (theme.dot(), "live".to_owned(), theme.fg(Color::Green)),
        (Link::Connecting, None) => (theme.dot(), "connecting".to_owned(), theme.fg(Color::Yellow)),
        (Link::Lost { .. }, None) => (theme.dot(), "lost".to_owned(), theme.fg(Color::Red)),
    };
    let right = Line::from(vec![
        Span::styled(format!("last {} s{}", state.window.as_secs(), theme.separator()), theme.faint()),
        Span::styled(mark, style),
        Span::styled(format!("{}{words}", if mark.is_empty() { "" } else { " " }), style),
    ]);
    put_right(buffer, area, left.width(), y, &right);
}

fn draw_total(state: &State, buffer: &mut Buffer, area: Rect, y: u16) {
    let theme = state.theme;
    let total = &state.total;
    if state.account.window.frames().is_empty() {
        return;
    }
    let dull = dull(state);
    let value = |text: String, style: Style| Span::styled(text, theme.strong().patch(style).patch(dull));
    let label = |text: &'static str| Span::styled(text, theme.faint());
    let mut facts: Vec<Vec<Span>> = vec![vec![value(rate(total.rps), Style::new()), label(" rps")]];
    if let Some(success) = total.success_rate {
        facts.push(vec![value(percent(success), theme.success(success)), label(" success")]);
    }
    let quantiles = [("p50 ", total.latency_p50_ms), ("p95 ", total.latency_p95_ms), ("p99 ", total.latency_p99_ms)];
    let mut latencies = Vec::new();
    for (name, ms) in quantiles.iter().filter_map(|(name, ms)| ms.map(|ms| (*name, ms))) {
        latencies.extend([label(name), value(latency(ms), theme.latency(ms)), Span::raw(" ")]);
    }
    if latencies.pop().is_some() {
        facts.push(latencies);
    }
    if let Some(mtls) = total.mtls_rate {
        let style = if mtls >= 1.0 { theme.fg(Color::Green) } else { theme.fg(Color::Yellow) };
        facts.push(vec![value(percent(mtls).replace(".0%", "%"), style), label(" mTLS")]);
    }
    let meshed = if total.meshed_pods == total.pods { theme.fg(Color::Green) } else { theme.fg(Color::Yellow) };
    facts.push(vec![value(format!("{}/{}", total.meshed_pods, total.pods), meshed), label(" pods meshed")]);
    let mut line = Line::raw(" ");
    for (index, fact) in facts.into_iter().enumerate() {
        let separator = if index > 0 { theme.separator() } else { "" };
        let width = cells_of(separator) + fact.iter().map(Span::width).sum::<usize>();
        // What does not fit whole is left out.
        if line.width() + width > usize::from(area.width) {
            break;
        }
        line.push_span(Span::styled(separator, theme.faint()));
        line.spans.extend(fact);
    }
    put(buffer, area, 0, y, &line);
}

fn draw_banner(state: &State, buffer: &mut Buffer, area: Rect, y: u16) {
    let theme = state.theme;
    let (text, style) = match (&state.typing, &state.link) {
        (Some(typing), _) if area.height < 6 => (format!(" /{}", typing.text), Style::new()),
        (_, Link::Lost { since_ms, why }) => {
            let since = elapsed(state.now_ms.saturating_sub(*since_ms));
            let mark = if theme.unicode { "✗" } else { "!" };
            (format!(" {mark} connection lost {since} ago: {why}; reconnecting "), theme.fg(Color::Red))
        }
        _ => return,
    };
    let text = cut(&text, usize::from(area.width), theme.ellipsis());
    let padding = " ".repeat(usize::from(area.width).saturating_sub(cells_of(&text)));
    let style = style.add_modifier(Modifier::REVERSED);
    put(buffer, area, 0, y, &Line::from(vec![Span::styled(text, style), Span::styled(padding, style)]));
}

fn draw_head(state: &State, buffer: &mut Buffer, area: Rect, y: u16) {
    let theme = state.theme;
    for place in layout::columns(state, area.width) {
        let sorted = place.column == state.sort;
        let arrow = if sorted { theme.arrow(state.descending) } else { "" };
        let head = if place.column == Column::History && place.width < 11 { "LAST MIN" } else { place.column.head() };
        let text = cut(&format!("{head}{arrow}"), usize::from(place.width), theme.ellipsis());
        let style = if sorted { theme.strong() } else { theme.faint() };
        let text = if place.column.is_number() { right(&text, place.width) } else { text };
        put(buffer, area, place.x, y, &Line::styled(text, style));
    }
}

impl Column {
    fn is_number(self) -> bool {
        matches!(self, Column::Rps | Column::Success | Column::P50 | Column::P95 | Column::P99 | Column::Mtls)
    }
}

fn draw_rows(state: &State, buffer: &mut Buffer, area: Rect, y: u16, count: u16) {
    if state.lines.is_empty() {
        return draw_emptiness(state, buffer, area, y, count);
    }
    let places = layout::columns(state, area.width);
    let cursor = state.cursor();
    for (index, line) in state.lines.iter().enumerate().skip(state.offset).take(usize::from(count)) {
        let row_y = y + u16::try_from(index - state.offset).unwrap_or(count);
        for place in &places {
            let drawn = draw_cell(state, index, line, *place);
            put(buffer, area, place.x, row_y, &drawn);
        }
        if line.row.is_tcp() {
            draw_tcp(state, buffer, area, &places, &line.row, row_y);
        }
        if index == cursor && row_y < area.height {
            buffer.set_style(
                Rect::new(area.x, area.y + row_y, area.width, 1),
                Style::new().fg(Color::Reset).add_modifier(Modifier::REVERSED),
            );
        }
    }
}

/// What values look like while they are old.
fn dull(state: &State) -> Style {
    match state.link {
        Link::Lost { .. } => state.theme.faint(),
        Link::Live | Link::Connecting => Style::new(),
    }
}

fn draw_cell(state: &State, at: usize, line: &RouteLine, place: Place) -> Line<'static> {
    let theme = state.theme;
    let row = &line.row;
    let nothing = || (theme.nothing().to_owned(), theme.faint());
    let number = |value: Option<f64>, text: fn(f64) -> String, style: &dyn Fn(f64) -> Style| {
        value.map_or_else(nothing, |value| (text(value), style(value)))
    };
    let (text, style) = match place.column {
        Column::Workload => (layout::workload_text(state, at), theme.strong()),
        Column::Route => (layout::route_text(state, at), Style::new()),
        Column::Rps | Column::Success | Column::P50 | Column::P95 | Column::P99 if row.is_tcp() => {
            return Line::default();
        }
        Column::Rps => (rate(row.rps), Style::new()),
        Column::Success => number(row.success_rate, percent, &|value| theme.success(value)),
        Column::P50 => number(row.latency_p50_ms, latency, &|ms| theme.latency(ms)),
        Column::P95 => number(row.latency_p95_ms, latency, &|ms| theme.latency(ms)),
        Column::P99 => number(row.latency_p99_ms, latency, &|ms| theme.latency(ms)),
        Column::Mtls => theme.mtls(row.mtls_rate),
        Column::History => (theme.sparkline(&line.history, usize::from(place.width)), theme.fg(Color::Cyan)),
    };
    let text = cut(&text, usize::from(place.width), theme.ellipsis());
    let text = if place.column.is_number() { right(&text, place.width) } else { text };
    Line::styled(text, style.patch(dull(state)))
}

/// TCP has no requests: its connections and bytes stand across the columns of numbers.
fn draw_tcp(state: &State, buffer: &mut Buffer, area: Rect, places: &[Place], row: &Row, y: u16) {
    let numbers = places.iter().filter(|p| p.column.is_number() && p.column != Column::Mtls);
    let (Some(first), Some(last)) = (numbers.clone().next(), numbers.clone().next_back()) else { return };
    let width = last.x + last.width - first.x;
    let (up, down) = (bytes_rate(row.tcp_read_bytes_rate), bytes_rate(row.tcp_write_bytes_rate));
    let texts = [
        format!("{} open  {up} in  {down} out", row.tcp_open_connections),
        format!(
            "{} open  {}",
            row.tcp_open_connections,
            bytes_rate(row.tcp_read_bytes_rate + row.tcp_write_bytes_rate)
        ),
        format!("{} open", row.tcp_open_connections),
    ];
    if let Some(text) = texts.iter().find(|text| cells_of(text) < usize::from(width)) {
        put(buffer, area, first.x, y, &Line::styled(right(text, width), dull(state)));
    }
}

fn draw_emptiness(state: &State, buffer: &mut Buffer, area: Rect, y: u16, count: u16) {
    let namespace = state.query.namespace.as_deref();
    let account = state.shown_account();
    let texts: Vec<String> = if account.window.frames().is_empty() {
        vec!["Waiting for the first numbers from the control plane".to_owned()]
    } else if !state.filter.is_empty() && state.unfiltered > 0 {
        vec![
            format!("None of {} routes passes the filter  {}", state.unfiltered, state.filter.text()),
            "Esc takes it away".to_owned(),
        ]
    } else if state.total.meshed_pods == 0 {
        let place = namespace.map_or("in this cluster".to_owned(), |name| format!("in namespace {name}"));
        let flag = namespace.map_or(String::new(), |name| format!("-n {name} "));
        vec![format!("No pod {place} has a proxy yet"), format!("meshctl inject app.yaml | kubectl {flag}apply -f -")]
    } else {
        vec![
            format!("No traffic in the last {} s", state.window.as_secs()),
            "A route appears with its first request".to_owned(),
        ]
    };
    let top = y + count.saturating_sub(u16::try_from(texts.len()).unwrap_or(1)) / 3;
    for (index, text) in texts.iter().enumerate() {
        let text = cut(text, usize::from(area.width), state.theme.ellipsis());
        let x = usize::from(area.width).saturating_sub(cells_of(&text)) / 2;
        let style = if index == 0 { Style::new() } else { state.theme.faint() };
        let line_y = top + u16::try_from(index).unwrap_or(0);
        put(buffer, area, u16::try_from(x).unwrap_or(0), line_y, &Line::styled(text, style));
    }
}

fn draw_footer(state: &State, buffer: &mut Buffer, area: Rect, y: u16, height: usize) {
    let theme = state.theme;
    let mut line = Line::raw(" ");
    if let Some(typing) = &state.typing {
        line.push_span(Span::styled("/", theme.fg(Color::Cyan)));
        line.push_span(Span::raw(typing.text.clone()));
        line.push_span(Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)));
        match &typing.error {
            Some(error) => line.push_span(Span::styled(format!("  {error}"), theme.fg(Color::Red))),
            None if typing.text.is_empty() => {
                line.push_span(Span::styled("  a name, or success<99 p99>100ms rps>10", theme.faint()));
            }
            None => {}
        }
        return put(buffer, area, 0, y, &line);
    }
    if !state.filter.is_empty() {
        line.push_span(Span::styled(format!("/{}", state.filter.text()), theme.fg(Color::Cyan)));
        line.push_span(Span::raw("  "));
    }
    let count = match (state.lines.len(), state.offset + 1, (state.offset + height).min(state.lines.len())) {
        (0, ..) => String::new(),
        (all, _, _) if all <= height => format!("{all} {}", if all == 1 { "route" } else { "routes" }),
        (all, first, last) => format!("{first}-{last} of {all}"),
    };
    let room = usize::from(area.width).saturating_sub(count.len() + 3);
    for (binding, word) in KEYS.iter().filter_map(|binding| binding.word.map(|word| (binding, word))) {
        let word = if binding.command == Command::Pause && state.paused.is_some() { "go on" } else { word };
        let key = if theme.unicode { binding.shown } else { binding.ascii };
        let key = key.split(' ').next().unwrap_or(key);
        if line.width() + key.len() + word.len() + 3 > room {
            break;
        }
        line.push_span(Span::styled(key, theme.fg(Color::Cyan).add_modifier(Modifier::BOLD)));
        line.push_span(Span::styled(format!(" {word}  "), theme.faint()));
    }
    put(buffer, area, 0, y, &line);
    put_right(buffer, area, line.width().saturating_sub(2), y, &Line::styled(count, theme.faint()));
}

fn draw_help(state: &State, buffer: &mut Buffer, area: Rect) {
    let theme = state.theme;
    let mut lines: Vec<Line> = KEYS
        .iter()
        .map(|binding| {
            let keys = if theme.unicode { binding.shown } else { binding.ascii };
            let padding = " ".repeat(9usize.saturating_sub(cells_of(keys)));
            Line::from(vec![
                Span::styled(format!(" {keys}{padding}"), theme.fg(Color::Cyan).add_modifier(Modifier::BOLD)),
                Span::raw(binding.help),
            ])
        })
        .collect();
    lines.push(Line::default());
    for text in [
        " Rows count what arrived at a workload: every request, none sampled.",
        " Success: status below 500, no reset, no timeout; gRPC by its status.",
        " MTLS: share of requests that came under the mesh's mutual TLS.",
    ] {
        lines.push(Line::styled(text, theme.faint()));
    }
    let width = area.width.min(76);
    let height = area.height.min(u16::try_from(lines.len() + 2).unwrap_or(u16::MAX));
    let place = Rect::new(area.x + (area.width - width) / 2, area.y + (area.height - height) / 2, width, height);
    Clear.render(place, buffer);
    let border = if theme.unicode { BorderType::Rounded } else { BorderType::Plain };
    let mut block = Block::bordered().border_type(border).border_style(theme.faint()).title(" Keys ");
    if !theme.unicode {
        block = block.border_set(ASCII_BORDER);
    }
    let inner = block.inner(place);
    block.render(place, buffer);
    for (y, line) in (inner.y..inner.y + inner.height).zip(&lines) {
        buffer.set_line(inner.x, y, line, inner.width);
    }
}

const ASCII_BORDER: ratatui::symbols::border::Set<'static> = ratatui::symbols::border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

/// Cuts a text to so many cells, with a mark where something is missing.
fn cut(text: &str, width: usize, ellipsis: char) -> String {
    if cells_of(text) <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    for letter in text.chars() {
        let mut longer = kept.clone();
        longer.push(letter);
        if cells_of(&longer) + 1 > width {
            break;
        }
        kept = longer;
    }
    if width > 0 {
        kept.push(ellipsis);
    }
    kept
}

fn right(text: &str, width: u16) -> String {
    let padding = usize::from(width).saturating_sub(cells_of(text));
    format!("{}{text}", " ".repeat(padding))
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
