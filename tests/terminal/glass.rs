//! What somebody who sits at the terminal sees: as much of a terminal as `top` uses, and which modes were left on.

use std::collections::BTreeMap;

/// A screen.
#[derive(Clone, Debug, Default)]
pub(super) struct Glass {
    rows: BTreeMap<(usize, usize), char>,
    at: (usize, usize),
    /// The mode that was set last of each that was ever set (`?25`, `?1049` and the like): true if on.
    pub(super) modes: BTreeMap<String, bool>,
    /// The bytes of a character or sequence that has not ended.
    rest: Vec<u8>,
    /// All that was written while the alternate screen was off.
    pub(super) outside: String,
}

impl Glass {
    /// Takes in what was written.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let rest = std::mem::take(&mut self.rest);
        // A character may be cut at the end of a piece.
        let valid = match std::str::from_utf8(&rest) {
            Ok(text) => text.len(),
            Err(error) => error.valid_up_to(),
        };
        let text = String::from_utf8_lossy(&rest[..valid]).into_owned();
        let mut left = text.as_str();
        while let Some(letter) = left.chars().next() {
            match self.take(left, letter) {
                Some(length) => left = &left[length..],
                None => break,
            }
        }
        self.rest = [left.as_bytes(), &rest[valid..]].concat();
    }

    /// Takes one character or sequence; none if it has not ended.
    fn take(&mut self, text: &str, letter: char) -> Option<usize> {
        let (row, column) = self.at;
        match letter {
            '\x1b' if text.len() < 2 => return None,
            '\x1b' if text.as_bytes()[1] == b'[' => {
                let end = text[2..].find(|c: char| c.is_ascii_alphabetic() || c == '~')? + 2;
                self.obey(&text[2..end], text.as_bytes()[end]);
                return Some(end + 1);
            }
            '\x1b' => return Some(2),
            '\r' => self.at = (row, 0),
            '\n' => self.at = (row + 1, column),
            letter => {
                self.rows.insert(self.at, letter);
                self.at = (row, column + 1);
            }
        }
        if !self.is_on("1049") {
            self.outside.push(letter);
        }
        Some(letter.len_utf8())
    }

    fn obey(&mut self, words: &str, what: u8) {
        let numbers: Vec<usize> = words.split(';').map(|word| word.parse().unwrap_or(1)).collect();
        match what {
            b'H' => self.at = (numbers[0].max(1) - 1, numbers.get(1).copied().unwrap_or(1).max(1) - 1),
            b'J' => self.rows.clear(),
            b'h' | b'l' => {
                for mode in words.trim_start_matches('?').split(';') {
                    self.modes.insert(mode.to_owned(), what == b'h');
                    if mode == "1049" {
                        self.rows.clear();
                    }
                }
            }
            _ => {}
        }
    }

    /// True if a mode was set and not reset.
    pub(super) fn is_on(&self, mode: &str) -> bool {
        self.modes.get(mode).copied().unwrap_or(false)
    }

    /// The screen as lines of text.
    pub(super) fn text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for (&(row, column), letter) in &self.rows {
            lines.resize(lines.len().max(row + 1), String::new());
            let missing = column.saturating_sub(lines[row].chars().count());
            lines[row].push_str(&" ".repeat(missing));
            lines[row].push(*letter);
        }
        lines.join("\n")
    }
}
