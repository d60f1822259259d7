//! The help, made of the tables of keys and of filters.

use super::Sheet;
use crate::top::filter::FIELDS;
use crate::top::keys::{Binding, KEYS, When};
use crate::top::layout::cells_of;
use crate::top::state::State;
use mesh_api::golden::GRPC_FAILURES;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Widget};

/// How wide it is at most.
const WIDTH: u16 = 78;

/// What else has to be known.
fn notes() -> Vec<String> {
    let grpc: Vec<String> = GRPC_FAILURES.iter().map(u16::to_string).collect();
    vec![
        "Rows count what arrived at a workload: every request, none sampled.".to_owned(),
        format!("Success: answered whole, status below 500; gRPC: none of {}.", grpc.join(", ")),
        "MTLS: share of requests that came under the mesh's mutual TLS.".to_owned(),
    ]
}

fn bindings(replay: bool) -> impl Iterator<Item = &'static Binding> {
    KEYS.iter().filter(move |binding| {
        let other = if replay { [When::Live, When::LiveSortable] } else { [When::Replay; 2] };
        !binding.help.is_empty() && !other.contains(&binding.when)
    })
}

/// The most lines that can be scrolled away.
pub fn height(replay: bool, size: (u16, u16)) -> usize {
    let lines = bindings(replay).count() + 3 + FIELDS.len().div_ceil(3) + notes().len();
    lines.saturating_sub(usize::from(size.1.saturating_sub(2)))
}

/// Draws the help from a line on.
pub(super) fn draw(state: &State, sheet: &mut Sheet, from: usize) {
    let theme = state.theme;
    let key = theme.fg(Color::Cyan).add_modifier(ratatui::style::Modifier::BOLD);
    let mut lines: Vec<Line> = bindings(state.replay.is_some())
        .map(|binding| {
            let keys = if theme.unicode { binding.shown } else { binding.ascii };
            let padding = " ".repeat(9usize.saturating_sub(cells_of(keys)));
            Line::from(vec![Span::styled(format!(" {keys}{padding}"), key), Span::raw(binding.help)])
        })
        .collect();
    lines.push(Line::default());
    lines.push(Line::raw(" Filters: words that all hold. A regular expression; ! turns a word round;"));
    lines.push(Line::raw(" or a field compared or matched, for instance"));
    for fields in FIELDS.chunks(3) {
        let examples: Vec<String> = fields.iter().map(|field| format!("{:24}", field.example)).collect();
        lines.push(Line::styled(format!("   {}", examples.concat().trim_end()), theme.fg(Color::Cyan)));
    }
    lines.extend(notes().into_iter().map(|text| Line::styled(format!(" {text}"), theme.faint())));
    let area = sheet.area;
    let width = area.width.min(WIDTH);
    let height = area.height.min(u16::try_from(lines.len() + 2).unwrap_or(u16::MAX));
    if width < 4 || height < 3 {
        return;
    }
    let (x, y) = ((area.width - width) / 2, (area.height - height) / 2);
    Clear.render(Rect::new(area.x + x, area.y + y, width, height), sheet.buffer);
    let [corners, sides] = theme.frame();
    let border = |ends: [char; 2], title: &str| {
        let room = usize::from(width - 2).saturating_sub(cells_of(title));
        format!("{}{title}{}{}", ends[0], sides[0].to_string().repeat(room), ends[1])
    };
    let inner = usize::from(height - 2);
    let rest = lines.len().saturating_sub(from + inner);
    let title = theme.cut(" Keys ", usize::from(width - 2));
    let more =
        if rest > 0 { theme.cut(&format!(" {rest} more lines: Down "), usize::from(width - 2)) } else { String::new() };
    sheet.put(x, y, &Line::styled(border([corners[0], corners[1]], &title), theme.faint()));
    sheet.put(x, y + height - 1, &Line::styled(border([corners[2], corners[3]], &more), theme.faint()));
    for (line_y, line) in
        (y + 1..y + height - 1).zip(lines.into_iter().skip(from).chain(std::iter::repeat_n(Line::default(), inner)))
    {
        sheet.put(x, line_y, &Line::styled(sides[1].to_string(), theme.faint()));
        sheet.put(x + width - 1, line_y, &Line::styled(sides[1].to_string(), theme.faint()));
        sheet.buffer.set_line(area.x + x + 1, area.y + line_y, &line, width - 2);
    }
}
