//! Single requests of one subject, newest first.

use super::{Sheet, clock, dull, empty, left, right};
use crate::top::format::latency;
use crate::top::layout::{Rows, cells_of};
use crate::top::state::State;
use crate::top::tap::{Tap, TapLink, Tapped};
use mesh_api::golden::{Carried, Direction, GRPC_FAILURES, TlsStatus};
use mesh_api::tap::TapEvent;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget};
use std::sync::Arc;

/// Widths of time, peer, status and latency.
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

/// Cells for the other end's name.
fn peer_width(width: usize) -> usize {
    (width / 5).clamp(8, 24)
}

fn draw_head(state: &State, sheet: &mut Sheet, y: u16, tap: &Tap) {
    let theme = state.theme;
    let width = usize::from(sheet.area.width);
    let head = format!(
        "{} {} {}{}  {}",
        left(state, "TIME", TIME),
        left(state, "PEER", peer_width(width)),
        right("STATUS", STATUS),
        right("TOOK", TOOK),
        "REQUEST"
    );
    sheet.put(1, y, &Line::styled(head, theme.faint()));
    let mut counts = format!("{} seen", tap.seen);
    if tap.left_out > 0 {
        counts.push_str(&format!("{}{} left out", theme.separator(), tap.left_out));
    }
    let style = if tap.left_out > 0 { theme.fg(Color::Yellow) } else { theme.faint() };
    if tap.subject.is_some() {
        sheet.put_right(60.min(width), y, &Line::styled(counts, style));
    }
}

fn event_line(state: &State, event: &TapEvent, width: usize) -> Line<'static> {
    let theme = state.theme;
    let (status, style) = status_of(state, event);
    let ms = event.duration_us as f64 / 1000.0;
    let what = match event.carried {
        Carried::Tcp => format!("tcp {} in {} out", bytes(event.read_bytes), bytes(event.write_bytes)),
        Carried::Http | Carried::Grpc => format!("{} {}", event.method, event.path),
    };
    let arrow = match (event.direction, theme.unicode) {
        (Direction::Inbound, true) => "← ",
        (Direction::Outbound, true) => "→ ",
        (Direction::Inbound, false) => "< ",
        (Direction::Outbound, false) => "> ",
    };
    let peer = format!("{arrow}{}", event.peer.name);
    let mut line = Line::from(vec![
        Span::styled(left(state, &clock(event.at_ms), TIME), theme.faint()),
        Span::raw(" "),
        Span::raw(left(state, &peer, peer_width(width))),
        Span::raw(" "),
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
    match (event.status, event.grpc_status, event.carried) {
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
        (None, None, Carried::Tcp) => ("closed".to_owned(), Style::new()),
        (None, None, _) => ("reset".to_owned(), theme.fg(Color::Red)),
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
    let mut facts: Vec<(&str, String)> = vec![
        ("request", format!("{} {}", event.method, event.path).trim().to_owned()),
        ("route", event.route.clone()),
        ("ended", clock(event.at_ms)),
        ("took", latency(event.duration_us as f64 / 1000.0)),
        ("status", status_of(state, event).0),
        ("peer", event.peer.to_string()),
        ("identity", event.peer_identity.as_ref().map_or_else(|| "none was proved".to_owned(), ToString::to_string)),
        (
            "mTLS",
            match event.tls {
                TlsStatus::Mutual => "mutual TLS of the mesh",
                TlsStatus::Passthrough => "TLS that is not the mesh's",
                TlsStatus::Plain => "none",
            }
            .to_owned(),
        ),
        ("addresses", format!("{} {} {}", event.source, theme.calls(), event.destination)),
        ("bytes", format!("{} in, {} out", bytes(event.read_bytes), bytes(event.write_bytes))),
    ];
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
