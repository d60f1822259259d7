//! Colours and marks: the 16 ANSI colours, none of them with NO_COLOR, and ASCII where there is no UTF-8.
//!
//! Colour never alone carries meaning: every coloured cell says the same in characters.

use crate::top::layout::cells_of;
use ratatui::style::{Color, Modifier, Style};

/// How things look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    /// Use colours.
    pub color: bool,
    /// Use characters beyond ASCII.
    pub unicode: bool,
}

impl Theme {
    /// What the terminal's environment allows: `NO_COLOR`, `TERM`, and the locale.
    pub fn of_environment(color: bool, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| lookup(name).filter(|v| !v.is_empty()));
        // Without any locale almost every terminal of today still speaks UTF-8; only a named other one does not.
        let utf8 = locale.is_none_or(|locale| {
            let locale = locale.to_lowercase();
            locale.contains("utf-8") || locale.contains("utf8") || locale == "c" || locale == "posix"
        });
        let plain = lookup("TERM").is_some_and(|term| term == "linux" || term == "dumb" || term.starts_with("vt"));
        Self { color, unicode: utf8 && !plain }
    }

    /// A foreground colour.
    pub fn fg(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    /// What matters less.
    pub fn faint(self) -> Style {
        // Not a grey of the palette: more than one colour scheme gives that to the background.
        Style::new().add_modifier(Modifier::DIM)
    }

    /// What stands out.
    pub fn strong(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    /// A share of requests that went well.
    pub fn success(self, rate: f64) -> Style {
        self.fg(match rate {
            r if r >= 0.995 => Color::Green,
            r if r >= 0.95 => Color::Yellow,
            _ => Color::Red,
        })
    }

    /// A latency.
    pub fn latency(self, ms: f64) -> Style {
        match ms {
            ms if ms >= 1000.0 => self.fg(Color::Red),
            ms if ms >= 200.0 => self.fg(Color::Yellow),
            _ => Style::new(),
        }
    }

    /// The mark for a share of mutual TLS, and its style.
    pub fn mtls(self, rate: Option<f64>) -> (String, Style) {
        match rate {
            None => (self.nothing().to_owned(), self.faint()),
            Some(rate) if rate >= 1.0 => ((if self.unicode { "✓" } else { "yes" }).to_owned(), self.fg(Color::Green)),
            Some(rate) if rate <= 0.0 => ((if self.unicode { "✗" } else { "no" }).to_owned(), self.fg(Color::Red)),
            Some(rate) => (format!("{:.0}%", (rate * 100.0).clamp(1.0, 99.0)), self.fg(Color::Yellow)),
        }
    }

    /// Stands for "no value".
    pub fn nothing(self) -> &'static str {
        if self.unicode { "—" } else { "-" }
    }

    /// Marks the column rows are sorted by.
    pub fn arrow(self, descending: bool) -> &'static str {
        match (self.unicode, descending) {
            (true, true) => "▼",
            (true, false) => "▲",
            (false, true) => "v",
            (false, false) => "^",
        }
    }

    /// Stands before what is alive or not.
    pub fn dot(self) -> &'static str {
        if self.unicode { "●" } else { "*" }
    }

    /// Separates facts on one line.
    pub fn separator(self) -> &'static str {
        if self.unicode { " · " } else { " | " }
    }

    /// Ends what had to be cut.
    pub fn ellipsis(self) -> char {
        if self.unicode { '…' } else { '~' }
    }

    /// Cuts a text to so many cells, with a mark where something is missing.
    pub fn cut(self, text: &str, width: usize) -> String {
        if cells_of(text) <= width {
            return text.to_owned();
        }
        let mut kept = String::new();
        let mut cells = 0;
        for letter in text.chars() {
            cells += cells_of(letter.encode_utf8(&mut [0; 4]));
            if cells + 1 > width {
                break;
            }
            kept.push(letter);
        }
        if width > 0 {
            kept.push(self.ellipsis());
        }
        kept
    }

    /// Cuts a text to so many cells in its middle: what begins alike often differs at its end.
    pub fn cut_middle(self, text: &str, width: usize) -> String {
        if cells_of(text) <= width || width < 8 {
            return self.cut(text, width);
        }
        let head = self.cut(text, width * 2 / 5);
        let mut tail = String::new();
        let mut room = width - cells_of(&head);
        for letter in text.chars().rev() {
            let cells = cells_of(letter.encode_utf8(&mut [0; 4]));
            if cells > room {
                break;
            }
            room -= cells;
            tail.insert(0, letter);
        }
        head + &tail
    }

    /// Corners (top left, top right, bottom left, bottom right) and sides (horizontal, vertical, twice) of a box.
    pub fn frame(self) -> [[char; 4]; 2] {
        if self.unicode {
            [['╭', '╮', '╰', '╯'], ['─', '│', '─', '│']]
        } else {
            [['+', '+', '+', '+'], ['-', '|', '-', '|']]
        }
    }

    /// Ends an arrow to the right.
    pub fn arrow_right(self) -> &'static str {
        if self.unicode { "▶" } else { ">" }
    }

    /// Ends an arrow to the left.
    pub fn arrow_left(self) -> &'static str {
        if self.unicode { "◀" } else { "<" }
    }

    /// Stands between caller and callee.
    pub fn calls(self) -> &'static str {
        if self.unicode { "→" } else { "->" }
    }

    /// Stands before what a workload sends to itself.
    pub fn loop_mark(self) -> &'static str {
        if self.unicode { "↻" } else { "@" }
    }

    /// Stands before what is wrong.
    pub fn cross(self) -> &'static str {
        if self.unicode { "✗" } else { "!" }
    }

    /// A part (0 to 1) of so many cells as a bar.
    pub fn bar(self, part: f64, width: usize) -> String {
        let eighths = (part.clamp(0.0, 1.0) * width as f64 * 8.0).round() as usize;
        // What is there at all is seen.
        let eighths = if part > 0.0 { eighths.max(1) } else { eighths };
        if !self.unicode {
            return "#".repeat(eighths.div_ceil(8));
        }
        let mut bar = "█".repeat(eighths / 8);
        if let Some(rest) = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'].get((eighths % 8).wrapping_sub(1)) {
            bar.push(*rest);
        }
        bar
    }

    /// Values as a row of bars, the highest of them at full height; the newest stands at the right.
    pub fn sparkline(self, values: &[f32], width: usize) -> String {
        const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
        const ASCII: [char; 8] = ['.', ':', '-', '=', '+', '*', '%', '#'];
        let bars = if self.unicode { BARS } else { ASCII };
        let columns = squeeze(values, width);
        let top = columns.iter().copied().fold(0.0f32, f32::max);
        let mut text = " ".repeat(width - columns.len());
        text.extend(columns.iter().map(|&value| {
            if value <= 0.0 || top <= 0.0 {
                ' '
            } else {
                // Truncation is meant: the top value gives index 7, and `min` guards rounding.
                bars[((value / top * 7.0).round() as usize).min(7)]
            }
        }));
        text
    }
}

/// Averages values into at most `width` columns of equal length, aligned to the newest value.
fn squeeze(values: &[f32], width: usize) -> Vec<f32> {
    if width == 0 || values.is_empty() {
        return Vec::new();
    }
    let each = HISTORY.div_ceil(width).max(1);
    let mut columns: Vec<f32> =
        values.rchunks(each).take(width).map(|c| c.iter().sum::<f32>() / c.len() as f32).collect();
    columns.reverse();
    columns
}

/// Seconds a sparkline looks back.
pub const HISTORY: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_decides() {
        let theme = |vars: &[(&str, &str)]| {
            Theme::of_environment(true, |name| {
                vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            })
        };
        assert!(theme(&[("LANG", "de_DE.UTF-8"), ("TERM", "xterm-256color")]).unicode);
        assert!(theme(&[]).unicode);
        assert!(!theme(&[("LANG", "de_DE.ISO-8859-1")]).unicode);
        assert!(!theme(&[("LC_ALL", "C.UTF-8"), ("TERM", "linux")]).unicode);
    }

    #[test]
    fn texts_are_cut_and_bars_are_filled() {
        let (rich, plain) = (Theme { color: true, unicode: true }, Theme { color: false, unicode: false });
        assert_eq!([rich.cut("catalog", 7), rich.cut("catalog", 4), plain.cut("catalog", 1)], ["catalog", "cat…", "~"]);
        assert_eq!(rich.cut("日本語", 5), "日本…");
        assert_eq!(rich.cut_middle("/shop.v1.Cart/GetCart", 15), "/shop…t/GetCart");
        assert_eq!(rich.cut_middle("/shop.v1.Cart", 7), "/shop.…");
        assert_eq!([rich.bar(0.5, 4), rich.bar(0.001, 4), rich.bar(0.3, 4)], ["██", "▏", "█▎"]);
        assert_eq!([plain.bar(0.5, 4), plain.bar(0.0, 4)], ["##", ""]);
    }

    #[test]
    fn sparklines_fill_from_the_right() {
        let theme = Theme { color: true, unicode: true };
        let check = |values: &[f32], width, expect: &str| assert_eq!(theme.sparkline(values, width), expect);
        check(&[], 4, "    ");
        check(&[0.0, 0.0], 60, &" ".repeat(60));
        check(&[1.0, 2.0, 8.0, 4.0], 60, &format!("{}▂▃█▅", " ".repeat(56)));
        let minute: Vec<f32> = (0..60).map(|i| i as f32).collect();
        check(&minute, 4, "▂▄▆█");
        assert_eq!(theme.sparkline(&minute, 30).chars().count(), 30);
    }
}
