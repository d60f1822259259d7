//! Draws the state: `view(&State)`, pure. Two lines say how the whole mesh is, a third which screens there are; then
//! comes the screen's own body, and at the bottom what has to be told and which keys help.

mod details;
mod empty;
mod help;
mod map;
mod table;
mod tap;

pub use help::height as help_height;

use crate::top::format::{elapsed, latency, percent, rate};
use crate::top::keys::{Command, KEYS};
use crate::top::layout::{self, cells_of};
use crate::top::state::{Link, Recorded, Replay, Screen, State, Typing};
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

/// Draws everything.
pub fn view(state: &State, frame: &mut Frame) {
    let area = frame.area();
    draw(state, frame.buffer_mut(), area);
}

/// Draws everything into a buffer.
pub fn draw(state: &State, buffer: &mut Buffer, area: Rect) {
    if area.width == 0 || area.height == 0 {
        return;
    }
    let mut sheet = Sheet { buffer, area };
    let rows = layout::rows(state);
    draw_title(state, &mut sheet, rows.title);
    if let Some(y) = rows.total {
        draw_total(state, &mut sheet, y);
    }
    if let Some(y) = rows.tabs {
        draw_tabs(state, &mut sheet, y);
    }
    match state.screen {
        Screen::Details => details::draw(state, &mut sheet, &rows),
        Screen::Tap => tap::draw(state, &mut sheet, &rows),
        Screen::Edges if map::draw(state, &mut sheet, &rows) => {}
        Screen::Routes | Screen::Workloads | Screen::Edges => table::draw(state, &mut sheet, &rows),
    }
    if let Some(y) = rows.notice {
        draw_notice(state, &mut sheet, y);
    }
    match rows.footer {
        Some(y) => draw_footer(state, &mut sheet, y, usize::from(rows.count)),
        // On the tiniest screens what is typed takes the title's place.
        None => draw_typing(state, &mut sheet, rows.title),
    }
    if let Some(from) = state.help {
        help::draw(state, &mut sheet, from);
    }
}

/// The whole screen as lines of text, without blanks at their ends.
pub fn text(state: &State) -> String {
    let area = Rect::new(0, 0, state.size.0, state.size.1);
    let mut buffer = Buffer::empty(area);
    draw(state, &mut buffer, area);
    let mut text = String::new();
    for cells in buffer.content.chunks(usize::from(area.width).max(1)) {
        let line: String = cells.iter().map(|cell| cell.symbol()).collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How many lines the details have.
pub fn details_height(state: &State) -> usize {
    details::lines(state).len()
}

/// The part of the terminal that is drawn on.
struct Sheet<'a> {
    buffer: &'a mut Buffer,
    area: Rect,
}

impl Sheet<'_> {
    /// Puts a line; what does not fit is cut.
    fn put(&mut self, x: u16, y: u16, line: &Line) {
        if x < self.area.width && y < self.area.height {
            self.buffer.set_line(self.area.x + x, self.area.y + y, line, self.area.width - x);
        }
    }

    /// Puts a line so that it ends at the screen's right margin, if `left` cells remain free.
    fn put_right(&mut self, left: usize, y: u16, line: &Line) {
        let width = line.width();
        let room = usize::from(self.area.width).saturating_sub(1);
        if width > 0 && left + width < room {
            self.put(u16::try_from(room - width).unwrap_or(0), y, line);
        }
    }

    /// Marks a whole row as the one under the cursor.
    fn select(&mut self, y: u16) {
        if y < self.area.height {
            let row = Rect::new(self.area.x, self.area.y + y, self.area.width, 1);
            self.buffer.set_style(row, Style::new().fg(Color::Reset).add_modifier(Modifier::REVERSED));
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

/// A text at the right side of so many cells.
fn right(text: &str, width: usize) -> String {
    let padding = width.saturating_sub(cells_of(text));
    format!("{}{text}", " ".repeat(padding))
}

/// A text at the left side of so many cells, cut if it is longer.
fn left(state: &State, text: &str, width: usize) -> String {
    let text = state.theme.cut(text, width);
    let padding = width.saturating_sub(cells_of(&text));
    format!("{text}{}", " ".repeat(padding))
}

fn draw_title(state: &State, sheet: &mut Sheet, y: u16) {
    let theme = state.theme;
    let spans = vec![
        Span::raw(" "),
        Span::styled("meshctl top", theme.strong().patch(theme.fg(Color::Cyan))),
        Span::raw("  "),
        Span::raw(state.scope.clone()),
    ];
    let mut left = Line::from(spans);
    let (words, style) = match (&state.replay, &state.paused, &state.link) {
        (Some(replay), ..) => replay_words(state, replay),
        (None, Some(paused), _) => {
            let since = elapsed(state.now_ms.saturating_sub(paused.since_ms));
            (format!("paused {since}"), theme.fg(Color::Yellow).add_modifier(Modifier::BOLD))
        }
        (None, None, Link::Live) => (format!("{} live", theme.dot()), theme.fg(Color::Green)),
        (None, None, Link::Connecting) => (format!("{} connecting", theme.dot()), theme.fg(Color::Yellow)),
        (None, None, Link::Lost { .. }) => (format!("{} lost", theme.dot()), theme.fg(Color::Red)),
    };
    let mut spans = vec![Span::styled(format!("last {} s", state.window.as_secs()), theme.faint())];
    match &state.recorded {
        Some(Recorded::Bytes(bytes)) => {
            spans.push(Span::styled(theme.separator(), theme.faint()));
            spans.push(Span::styled(format!("recording {} kB", bytes.div_ceil(1000)), theme.fg(Color::Magenta)));
        }
        Some(Recorded::Failed(_)) => {
            spans.push(Span::styled(theme.separator(), theme.faint()));
            spans.push(Span::styled("recording failed", theme.fg(Color::Red)));
        }
        None => {}
    }
    spans.push(Span::styled(theme.separator(), theme.faint()));
    spans.push(Span::styled(words, style));
    let right = Line::from(spans);
    // How it is going matters more than where.
    let room = usize::from(sheet.area.width).saturating_sub(left.width() + right.width() + 3);
    if !state.cluster.is_empty() && room > 8 {
        let cluster = format!("{}{}", theme.separator(), state.cluster);
        left.push_span(Span::styled(theme.cut(&cluster, room), theme.faint()));
    }
    sheet.put(0, y, &left);
    sheet.put_right(left.width(), y, &right);
}

/// How far a recording is, and how fast it goes.
fn replay_words(state: &State, replay: &Replay) -> (String, Style) {
    let theme = state.theme;
    let seconds = |ms: u64| format!("{}:{:02}", ms / 60_000, ms / 1000 % 60);
    let at = seconds(state.now_ms.saturating_sub(replay.from_ms));
    let all = seconds(replay.to_ms.saturating_sub(replay.from_ms));
    let (word, color) = match (replay.at_end(state.now_ms), replay.playing) {
        (true, _) => ("end", Color::Magenta),
        (false, true) => ("replay", Color::Magenta),
        (false, false) => ("paused", Color::Yellow),
    };
    let speed = if replay.speed == 1.0 { String::new() } else { format!(" {}x", replay.speed) };
    let clock = clock(state.now_ms);
    (format!("{word} {at}/{all}{speed}{}{clock}", theme.separator()), theme.fg(color).add_modifier(Modifier::BOLD))
}

/// The time of day, UTC.
fn clock(at_ms: u64) -> String {
    let seconds = at_ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn draw_total(state: &State, sheet: &mut Sheet, y: u16) {
    let theme = state.theme;
    let total = &state.total;
    if state.shown_account().window.frames().is_empty() {
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
        if line.width() + width > usize::from(sheet.area.width) {
            break;
        }
        line.push_span(Span::styled(separator, theme.faint()));
        line.spans.extend(fact);
    }
    sheet.put(0, y, &line);
}

/// A screen's name on the screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tab {
    /// Which.
    pub screen: Screen,
    /// First cell.
    pub x: u16,
    /// Cells.
    pub width: u16,
    text: String,
}

/// Where the screens' names stand.
pub fn tabs(state: &State) -> Vec<Tab> {
    let mut x = 1;
    let tab = |(index, screen): (usize, &Screen)| {
        // The one that is open is marked by brackets, too.
        let name = format!("{} {}", index + 1, screen.name());
        let text = if *screen == state.screen { format!("[{name}]") } else { format!(" {name} ") };
        let width = u16::try_from(text.len()).unwrap_or(0);
        x += width + 1;
        Tab { screen: *screen, x: x - width - 1, width, text }
    };
    Screen::TABS.iter().enumerate().map(tab).collect()
}

fn draw_tabs(state: &State, sheet: &mut Sheet, y: u16) {
    let theme = state.theme;
    let tabs = tabs(state);
    for tab in &tabs {
        let style = if tab.screen == state.screen { theme.strong() } else { theme.faint() };
        sheet.put(tab.x, y, &Line::styled(tab.text.clone(), style));
    }
    let end = tabs.last().map_or(0, |tab| tab.x + tab.width);
    let arrow = theme.calls();
    let of = match state.screen {
        Screen::Details => state.subject.as_ref().map(|subject| format!("[details of {}]", subject.name(arrow))),
        Screen::Tap => state.shown_tap().subject.as_ref().map(|subject| format!("of {}", subject.name(arrow))),
        _ => None,
    };
    if let Some(of) = of {
        let room = usize::from(sheet.area.width.saturating_sub(end + 2));
        sheet.put(end + 1, y, &Line::styled(theme.cut(&of, room), theme.strong()));
    }
}

/// What has to be told, the most pressing first: what is wrong with the filter, a lost connection, what ails a
/// recording, silent proxies.
fn draw_notice(state: &State, sheet: &mut Sheet, y: u16) {
    let theme = state.theme;
    let cross = theme.cross();
    let (text, color) = match (&state.typing, &state.link, &state.replay) {
        (Some(Typing { wrong: Some(_), .. }), ..) if sheet.area.height >= 10 => return draw_wrong(state, sheet, y),
        (Some(Typing { wrong: Some(wrong), .. }), ..) => {
            (format!("{cross} {}: {}", wrong.message, wrong.example), Color::Red)
        }
        (_, Link::Lost { since_ms, why }, replay) => {
            let since = elapsed(state.now_ms.saturating_sub(*since_ms));
            let then = if replay.is_some() { "" } else { "; reconnecting" };
            (format!("{cross} connection lost {since} ago: {why}{then}"), Color::Red)
        }
        (.., Some(Replay { damage: Some(damage), .. })) => (format!("{cross} {damage}"), Color::Red),
        _ if !state.unreachable().is_empty() => {
            let names: Vec<&str> = state.unreachable().iter().map(|one| one.replica.as_str()).collect();
            let text = format!("{cross} {} cannot be asked: its proxies' numbers are missing", names.join(", "));
            (text, Color::Yellow)
        }
        _ => match state.silent_proxies() {
            0 => return,
            1 => (format!("{cross} a proxy does not answer: its numbers are missing"), Color::Yellow),
            n => (format!("{cross} {n} proxies do not answer: their numbers are missing"), Color::Yellow),
        },
    };
    let text = left(state, &format!(" {text} "), usize::from(sheet.area.width));
    sheet.put(0, y, &Line::styled(text, theme.fg(color).add_modifier(Modifier::REVERSED)));
}

/// Points at what is wrong with the filter in the line below.
fn draw_wrong(state: &State, sheet: &mut Sheet, y: u16) {
    let theme = state.theme;
    let Some(Typing { text, wrong: Some(wrong), .. }) = &state.typing else { return };
    let skipped = typing_skip(text, sheet.area.width);
    let start = wrong.at.start.saturating_sub(skipped) + 2;
    let marks = if theme.unicode { "▾" } else { "v" }.repeat(wrong.at.len().max(1));
    let words = format!("{}, as in {}", wrong.message, wrong.example);
    let width = usize::from(sheet.area.width);
    let red = theme.fg(Color::Red);
    let before = cells_of(&words) + 1 < start;
    let room = width.saturating_sub(start + marks.chars().count() + 1);
    if !before || cells_of(&words) <= room {
        let words = theme.cut(&words, room);
        sheet.put(u16::try_from(start).unwrap_or(0), y, &Line::styled(format!("{marks} {words}"), red));
    } else {
        let at = u16::try_from(start - cells_of(&words) - 1).unwrap_or(0);
        sheet.put(at, y, &Line::styled(format!("{words} {marks}"), red));
    }
}

/// How many characters at the beginning of a typed filter are not shown, so that its end is.
fn typing_skip(text: &str, width: u16) -> usize {
    text.chars().count().saturating_sub(usize::from(width.saturating_sub(4)))
}

fn draw_typing(state: &State, sheet: &mut Sheet, y: u16) {
    let theme = state.theme;
    let Some(typing) = &state.typing else { return };
    let skipped = typing_skip(&typing.text, sheet.area.width);
    let mut line = Line::from(vec![Span::raw(" "), Span::styled("/", theme.fg(Color::Cyan))]);
    for (at, letter) in typing.text.chars().enumerate().skip(skipped) {
        let wrong = typing.wrong.as_ref().is_some_and(|wrong| wrong.at.contains(&at));
        let style = if wrong { theme.fg(Color::Red).add_modifier(Modifier::UNDERLINED) } else { Style::new() };
        line.push_span(Span::styled(letter.to_string(), style));
    }
    line.push_span(Span::styled(" ", Style::new().add_modifier(Modifier::REVERSED)));
    if typing.text.is_empty() {
        let hint = match state.screen {
            Screen::Tap => "  a path, or status>=500 latency>100ms method:POST",
            _ => "  a name, or success<99 p99>100ms rps>10 ns:shop",
        };
        line.push_span(Span::styled(hint, theme.faint()));
    }
    let blank = " ".repeat(usize::from(sheet.area.width));
    sheet.put(0, y, &Line::raw(blank));
    sheet.put(0, y, &line);
}

fn draw_footer(state: &State, sheet: &mut Sheet, y: u16, height: usize) {
    let theme = state.theme;
    if state.typing.is_some() {
        return draw_typing(state, sheet, y);
    }
    let mut line = Line::raw(" ");
    let filter = state.shown_filter();
    if !filter.is_empty() && state.screen != Screen::Details {
        let room = usize::from(sheet.area.width / 3);
        line.push_span(Span::styled(theme.cut(&format!("/{}", filter.text()), room), theme.fg(Color::Cyan)));
        line.push_span(Span::raw("  "));
    }
    let count = count(state, height);
    let mut room = usize::from(sheet.area.width).saturating_sub(count.len() + 3 + line.width());
    let held = state.paused.is_some() || state.replay.as_ref().is_some_and(|replay| !replay.playing);
    let shown = KEYS.iter().filter(|binding| binding.when.holds(state));
    let mut words: Vec<(usize, Command, &str, &str)> = shown
        .enumerate()
        .filter_map(|(at, binding)| {
            let word = if binding.command == Command::Pause && held { "go on" } else { binding.word? };
            let key = if theme.unicode { binding.shown } else { binding.ascii };
            Some((at, binding.command, key.split(' ').next().unwrap_or(key), word))
        })
        .collect();
    // How to get help and out is shown before all else; what is shown stands in the table's order.
    let first = [Command::Help, Command::Quit];
    words.sort_by_key(|(at, command, ..)| (!first.contains(command), *at));
    words.retain(|(.., key, word)| {
        let cells = cells_of(key) + word.len() + 3;
        let fits = cells <= room;
        // After the first word that does not fit nothing else is squeezed in.
        room = if fits { room - cells } else { 0 };
        fits
    });
    words.sort_by_key(|(at, ..)| *at);
    for (.., key, word) in words {
        line.push_span(Span::styled(key, theme.fg(Color::Cyan).add_modifier(Modifier::BOLD)));
        line.push_span(Span::styled(format!(" {word}  "), theme.faint()));
    }
    sheet.put(0, y, &line);
    sheet.put_right(line.width().saturating_sub(2), y, &Line::styled(count, theme.faint()));
}

/// True if a tap's counts have no place beside the heads of its columns.
fn sheet_is_narrow(state: &State) -> bool {
    state.size.0 < 70
}

/// How much there is, and which part of it is seen.
fn count(state: &State, height: usize) -> String {
    let (all, offset, one, many) = match state.screen {
        Screen::Routes => (state.lines.len(), state.table().offset, "route", "routes"),
        Screen::Workloads => (state.lines.len(), state.table().offset, "workload", "workloads"),
        Screen::Edges => (state.lines.len(), state.table().offset, "edge", "edges"),
        Screen::Tap => {
            let tap = state.shown_tap();
            let all = tap.lines(&state.tap_filter).len();
            let left_out = tap.status.left_out.total();
            // Where the head has no room for it, it is told here.
            if left_out > 0 && sheet_is_narrow(state) {
                return format!("{all} and {left_out} left out");
            }
            (all, tap.offset, "request", "requests")
        }
        Screen::Details => (details_height(state), state.scroll, "line", "lines"),
    };
    if all <= height || layout::edge_map(state).is_some() {
        return match all {
            _ if state.screen == Screen::Details => String::new(),
            0 => String::new(),
            1 => format!("1 {one}"),
            _ => format!("{all} {many}"),
        };
    }
    format!("{}-{} of {all}", offset + 1, (offset + height).min(all))
}

#[cfg(test)]
mod tests;
