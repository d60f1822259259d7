//! What stands where there is nothing to show: why, and what to do.

use super::Sheet;
use crate::top::layout::cells_of;
use crate::top::state::{Screen, State};
use ratatui::style::Style;
use ratatui::text::Line;

/// Says why there are no lines.
pub(super) fn draw_lines(state: &State, sheet: &mut Sheet, y: u16, count: u16) {
    let namespace = state.query.namespace.as_deref();
    let account = state.shown_account();
    let texts: Vec<String> = if account.window.frames().is_empty() && state.replay.is_some() {
        vec!["No numbers at this place of the recording".to_owned()]
    } else if account.window.frames().is_empty() {
        vec!["Waiting for the first numbers from the control plane".to_owned()]
    } else if !state.filter.is_empty() && state.unfiltered > 0 {
        let what = state.screen.name();
        vec![
            format!("None of {} {what} passes the filter  {}", state.unfiltered, state.filter.text()),
            "Esc takes it away".to_owned(),
        ]
    } else if state.total.meshed_pods == 0 {
        let place = namespace.map_or("in this cluster".to_owned(), |name| format!("in namespace {name}"));
        let flag = namespace.map_or(String::new(), |name| format!("-n {name} "));
        vec![format!("No pod {place} has a proxy yet"), format!("meshctl inject app.yaml | kubectl {flag}apply -f -")]
    } else {
        let what = match state.screen {
            Screen::Edges => "An edge appears with the first request between two workloads",
            _ => "A route appears with its first request",
        };
        vec![format!("No traffic in the last {} s", state.window.as_secs()), what.to_owned()]
    };
    draw(state, sheet, y, count, &texts);
}

/// Draws lines in the middle; the first one stands out.
pub(super) fn draw(state: &State, sheet: &mut Sheet, y: u16, count: u16, texts: &[String]) {
    let top = y + count.saturating_sub(u16::try_from(texts.len()).unwrap_or(1)) / 3;
    let width = usize::from(sheet.area.width);
    for (line_y, (index, text)) in (top..y + count).zip(texts.iter().enumerate()) {
        let text = state.theme.cut(text, width);
        let x = (width - cells_of(&text)) / 2;
        let style = if index == 0 { Style::new() } else { state.theme.faint() };
        sheet.put(u16::try_from(x).unwrap_or(0), line_y, &Line::styled(text, style));
    }
}
