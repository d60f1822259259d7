//! Single requests of one subject, newest first.

use super::{Sheet, clock, dull, empty, left, right};
use crate::top::format::latency;
use crate::top::layout::{Rows, cells_of};
use crate::top::state::State;
use crate::top::tap::{Tap, TapLink, Tapped, name_of, peer};
use mesh_api::golden::{Direction, GRPC_FAILURES, TlsStatus};
use mesh_api::tap::{TapEnd, TapEnding, TapEvent, TapKind};
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget};
use std::sync::Arc;

/// Widths of time, status and latency.
const TIME: usize = 9;
const STATUS: usize = 8;
const TOOK: usize = 8;

/// Draws the requests, and the one that is open on top.
pub(super) fn draw(state: &State, sheet: &mut Sheet, rows: &Rows) {
    let tap = state.shown_tap();
    let lines = tap.lines(&state.tap_filter);
    draw_head(state, sheet, rows.head, tap);
    if lines.is_empty() {
        return empty::draw(state, sheet, rows.body, rows.count, &why_empty(state, tap));
    }
    let cursor = tap.cursor(&lines);
    let visible = lines.iter().enumerate().skip(tap.offset).take(usize::from(rows.count));
    for (y, (index, tapped)) in (rows.body..).zip(visible) {
        let line = event_line(state, &tapped.event, usize::from(sheet.area.width));
        sheet.put(1, y, &line.patch_style(dull(state)));
        if index == cursor {
            sheet.select(y);
        }
    }
    if let (true, Some(tapped)) = (state.tap.open, lines.get(cursor)) {
        draw_open(state, sheet, tapped, rows);
    }
}

/// Cells of the columns whose width depends on the screen's.
struct Columns {
    /// The time; none on a narrow screen.
    time: usize,
    /// The other end's name.
    peer: usize,
}

impl Columns {
    fn of(width: usize) -> Self {
        Self { time: if width < 60 { 0 } else { TIME + 1 }, peer: (width / 5).clamp(8, 24) }
    }
}

fn draw_head(state: &State, sheet: &mut Sheet, y: u16, tap: &Tap) {
    let theme = state.theme;
    let width = usize::from(sheet.area.width);
    let columns = Columns::of(width);
    let mut head = String::new();
    if columns.time > 0 {
        head.push_str(&left(state, "TIME", columns.time));
    }
    head.push_str(&left(state, "PEER", columns.peer));
    head.push_str(&right("STATUS", STATUS));
    head.push_str(&right("TOOK", TOOK));
    head.push_str("  REQUEST");
    sheet.put(1, y, &Line::styled(head.clone(), theme.faint()));
    let left_out = tap.status.left_out.total();
    let missing = tap.status.meshed_pods.saturating_sub(tap.status.proxies);
    let mut counts = vec![format!("{} seen", tap.seen)];
    if left_out > 0 {
        counts.insert(0, format!("{left_out} left out"));
    }
    if missing > 0 {
        counts.push(format!("{missing} {} missing", if missing == 1 { "proxy" } else { "proxies" }));
    }
    let style = if left_out > 0 || missing > 0 { theme.fg(Color::Yellow) } else { theme.faint() };
    // What fits, the most important first.
    let room = width.saturating_sub(head.len() + 4);
    while !counts.is_empty() && cells_of(&counts.join(theme.separator())) > room {
        counts.pop();
    }
    if tap.subject.is_some() {
        sheet.put_right(head.len() + 1, y, &Line::styled(counts.join(theme.separator()), style));
    }
}

fn event_line(state: &State, event: &TapEvent, width: usize) -> Line<'static> {
    let theme = state.theme;
    let (status, style) = status_of(state, event);
    let ms = event.duration_us as f64 / 1000.0;
    let what = match (&event.http, event.event) {
        (Some(http), _) => format!("{} {}", http.method, http.path),
        (None, TapKind::Open) => "tcp opened".to_owned(),
        (None, _) => format!("tcp {} in {} out", bytes(event.read_bytes), bytes(event.write_bytes)),
    };
    let arrow = match (event.direction, theme.unicode) {
        (Direction::Inbound, true) => "← ",
        (Direction::Outbound, true) => "→ ",
        (Direction::Inbound, false) => "< ",
        (Direction::Outbound, false) => "> ",
    };
    let peer = format!("{arrow}{}", name_of(peer(event)));
    let columns = Columns::of(width);
    let time = if columns.time > 0 { left(state, &clock(event.at_ms), columns.time) } else { String::new() };
    let mut line = Line::from(vec![
        Span::styled(time, theme.faint()),
        Span::raw(left(state, &peer, columns.peer)),
        Span::styled(right(&status, STATUS), style),
        Span::styled(right(&latency(ms), TOOK), theme.latency(ms)),
        Span::raw("  "),
        Span::raw(what),
    ]);
    if let Some(error) = event.error {
        line.push_span(Span::styled(format!("  {} {}", theme.cross(), error.code()), theme.fg(Color::Red)));
    }
    if event.tls != TlsStatus::Mutual {
        line.push_span(Span::styled("  no mTLS", theme.fg(Color::Yellow)));
    }
    let cut = theme.cut(&line.to_string(), width.saturating_sub(2));
    if cells_of(&cut) < line.width() {
        // The request is what can be cut: its end is the last to be missed.
        let keep = width.saturating_sub(2);
        let mut kept = Line::default();
        for span in line.spans {
            let room = keep.saturating_sub(kept.width());
            if room == 0 {
                break;
            }
            let text = theme.cut(&span.content, room);
            kept.push_span(Span::styled(text, span.style));
        }
        return kept;
    }
    line
}

fn status_of(state: &State, event: &TapEvent) -> (String, Style) {
    let theme = state.theme;
    let http = event.http.as_ref();
    match (http.and_then(|http| http.status), http.and_then(|http| http.grpc_status), event.event) {
        (_, Some(grpc), _) => {
            let bad = GRPC_FAILURES.contains(&grpc);
            (format!("grpc {grpc}"), theme.fg(if bad { Color::Red } else { Color::Green }))
        }
        (Some(status), None, _) => {
            let color = match status {
                500.. => Color::Red,
                400.. => Color::Yellow,
                _ => Color::Green,
            };
            (status.to_string(), theme.fg(color))
        }
        (None, None, TapKind::Open) => ("open".to_owned(), Style::new()),
        (None, None, TapKind::Close) => ("closed".to_owned(), Style::new()),
        (None, None, TapKind::Request) => ("reset".to_owned(), theme.fg(Color::Red)),
    }
}

fn bytes(count: u64) -> String {
    match count {
        n if n >= 10_000_000 => format!("{} MB", n / 1_000_000),
        n if n >= 10_000 => format!("{} kB", n / 1000),
        n => format!("{n} B"),
    }
}

fn why_empty(state: &State, tap: &Tap) -> Vec<String> {
    let texts: &[&str] = match (&tap.link, &tap.subject) {
        (TapLink::Failed(why, hint), _) => {
            let mut texts = vec![format!("Cannot tap: {why}")];
            texts.extend(hint.clone());
            return texts;
        }
        (_, None) => &["Nothing is tapped", "Choose a line on another screen and press t"],
        _ if !tap.events.is_empty() => &["No request passes the filter", "Esc takes it away"],
        _ if state.replay.is_some() => {
            &["No requests at this place of the recording", "They are recorded while the tap screen is open"]
        }
        (TapLink::Off | TapLink::Opening, _) => &["Opening the tap"],
        (TapLink::Live, _) => &["No request has ended yet"],
    };
    texts.iter().map(|text| (*text).to_owned()).collect()
}

/// One request whole.
fn draw_open(state: &State, sheet: &mut Sheet, tapped: &Arc<Tapped>, rows: &Rows) {
    let theme = state.theme;
    let event = &tapped.event;
    let mut facts = facts_of(state, event);
    if let Some(error) = event.error {
        facts.push(("mesh-error", error.code().to_owned()));
        facts.push(("cause", error.cause().to_owned()));
        facts.push(("cure", error.cure().to_owned()));
    }
    facts.retain(|(_, text)| !text.is_empty());
    let width = sheet.area.width;
    let height = u16::try_from(facts.len() + 2).unwrap_or(u16::MAX).min(rows.count + 1);
    let top = (rows.body + rows.count).saturating_sub(height);
    if height < 3 || width < 20 {
        return;
    }
    let place = Rect::new(sheet.area.x, sheet.area.y + top, width, height);
    Clear.render(place, sheet.buffer);
    let [_, sides] = theme.frame();
    sheet.put(0, top, &Line::styled(sides[0].to_string().repeat(usize::from(width)), theme.faint()));
    for (y, (name, text)) in (top + 1..top + height).zip(facts) {
        let text = theme.cut(&text, usize::from(width).saturating_sub(14));
        let spans = vec![Span::styled(left(state, name, 12), theme.faint()), Span::raw(text)];
        sheet.put(1, y, &Line::from(spans));
    }
}

/// How an end is written whole.
fn end(end: &TapEnd) -> String {
    let mut words = vec![end.address.to_string()];
    words.extend(end.pod.clone().or_else(|| end.workload.as_ref().map(ToString::to_string)));
    words.extend(end.identity.as_ref().map(ToString::to_string));
    words.join("  ")
}

/// What an event says, by name; empty texts are left out.
fn facts_of(state: &State, event: &TapEvent) -> Vec<(&'static str, String)> {
    let http = event.http.clone().unwrap_or_default();
    let of_http = |text: String| if event.http.is_some() { text } else { String::new() };
    let tls = match event.tls {
        TlsStatus::Mutual => "mutual TLS of the mesh",
        TlsStatus::Passthrough => "TLS that is not the mesh's",
        TlsStatus::Plain => "none",
    };
    let ending = match event.ending {
        None | Some(TapEnding::Orderly) => "",
        Some(TapEnding::ByClient) => ", broken off by the client",
        Some(TapEnding::ByServer) => ", broken off by the server",
        Some(TapEnding::ByMesh) => ", answered by the mesh",
        Some(TapEnding::Cut) => ", given up by a proxy that shut down",
    };
    let first = http.first_byte_us.map(|us| format!(", first byte {}", latency(us as f64 / 1000.0)));
    let retries = if http.retries > 0 { format!(", {} retries", http.retries) } else { String::new() };
    let took = format!("{}{}{retries}", latency(event.duration_us as f64 / 1000.0), first.unwrap_or_default());
    let request = format!("{} {} {}", http.method, http.path, http.version);
    vec![
        ("request", of_http(request)),
        ("host", http.authority.clone()),
        ("route", http.route.clone()),
        ("ended", format!("{}{ending}", clock(event.at_ms))),
        ("took", took),
        ("status", status_of(state, event).0),
        ("from", end(&event.source)),
        ("to", end(&event.destination)),
        ("encryption", tls.to_owned()),
        ("bytes", format!("{} in, {} out", bytes(event.read_bytes), bytes(event.write_bytes))),
    ]
}
