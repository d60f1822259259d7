//! The drawn map of edges, painted.

use super::{Sheet, dull};
use crate::top::layout::{self, Rows};
use crate::top::map::Part;
use crate::top::state::State;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;

/// Draws the map; false if a list has to stand in for it.
pub(super) fn draw(state: &State, sheet: &mut Sheet, rows: &Rows) -> bool {
    let Some(map) = layout::edge_map(state) else { return false };
    let theme = state.theme;
    let cursor = state.cursor();
    for run in &map.runs {
        let style = match run.part {
            Part::Frame => theme.faint(),
            Part::Name(_) => theme.strong(),
            Part::Way(at) if at == cursor => theme.fg(Color::Cyan).add_modifier(Modifier::BOLD),
            Part::Way(_) => theme.faint(),
            Part::Label(at) => {
                let success = state.lines.get(at).and_then(|line| line.row.success_rate);
                let style = success.map_or(Style::new(), |rate| theme.success(rate));
                if at == cursor { Style::new().add_modifier(Modifier::REVERSED) } else { style }
            }
        };
        let old = if matches!(run.part, Part::Label(_)) { dull(state) } else { Style::new() };
        sheet.put(run.x + 1, rows.head + run.y, &Line::styled(run.text.clone(), style.patch(old)));
    }
    true
}
