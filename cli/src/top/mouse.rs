//! What the mouse does: the wheel moves, a click selects, sorts or shows, a click on what is selected opens it.

use crate::top::keys::Command;
use crate::top::layout;
use crate::top::state::{Screen, State};
use crate::top::update::{obey, select, sort_by, step};
use crate::top::view::tabs;
use crossterm::event::{MouseButton, MouseEvent, MouseEventKind};

/// Lines that one notch of the wheel moves.
const WHEEL_ROWS: isize = 3;

/// Takes in what the mouse did.
pub fn update(state: &mut State, mouse: MouseEvent) {
    match mouse.kind {
        MouseEventKind::ScrollUp => step(state, -WHEEL_ROWS),
        MouseEventKind::ScrollDown => step(state, WHEEL_ROWS),
        MouseEventKind::Down(MouseButton::Left) if state.help.is_some() => state.help = None,
        MouseEventKind::Down(MouseButton::Left) => click(state, mouse.column, mouse.row),
        _ => {}
    }
}

fn click(state: &mut State, x: u16, y: u16) {
    let rows = layout::rows(state);
    if rows.tabs == Some(y) {
        if let Some(tab) = tabs(state).into_iter().find(|tab| (tab.x..tab.x + tab.width).contains(&x)) {
            obey(state, Command::Show(tab.screen));
        }
        return;
    }
    if let Some(map) = layout::edge_map(state) {
        // The map begins where heads of columns would be, behind the margin.
        if let Some(at) = y.checked_sub(rows.head).and_then(|y| map.at(x.saturating_sub(1), y)) {
            select_or_open(state, at);
        }
        return;
    }
    let in_body = (rows.body..rows.body + rows.count).contains(&y);
    let at = usize::from(y.saturating_sub(rows.body));
    match state.screen {
        Screen::Routes | Screen::Workloads | Screen::Edges if y == rows.head => {
            let places = layout::columns(state);
            // The gap before a column belongs to it.
            let hit = places.iter().find(|place| x < place.x + place.width).map(|place| place.column);
            if let Some(column) = hit.filter(|column| column.sorts()) {
                sort_by(state, column);
            }
        }
        Screen::Routes | Screen::Workloads | Screen::Edges if in_body => {
            let at = state.table().offset + at;
            if at < state.lines.len() {
                select_or_open(state, at);
            }
        }
        Screen::Tap if in_body => {
            let tap = state.shown_tap();
            let lines = tap.lines(&state.tap_filter);
            let (cursor, at) = (tap.cursor(&lines), tap.offset + at);
            if at < lines.len() {
                let by = isize::try_from(at).unwrap_or(0) - isize::try_from(cursor).unwrap_or(0);
                step(state, by);
            }
        }
        _ => {}
    }
}

fn select_or_open(state: &mut State, at: usize) {
    if state.cursor() == at && state.table().selected.is_some() {
        obey(state, Command::Open);
    } else {
        select(state, at);
    }
}
