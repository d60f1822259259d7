//! The one table of keys: it drives what a key does, the footer and the help.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// One row up.
    Up,
    /// One row down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the first row.
    First,
    /// To the last row.
    Last,
    /// Type a filter.
    Filter,
    /// Sort by the next column.
    NextColumn,
    /// Sort by the column before.
    PreviousColumn,
    /// Turn the order round.
    Reverse,
    /// Hold the view still, or let it go on.
    Pause,
    /// Show or hide the help.
    Help,
    /// Leave the help, or take the filter away.
    Back,
    /// Leave.
    Quit,
}

/// A line of the table.
pub struct Binding {
    /// What it asks for.
    pub command: Command,
    /// The keys; the first ones are shown.
    pub keys: &'static [(KeyCode, KeyModifiers)],
    /// How the keys are written.
    pub shown: &'static str,
    /// How they are written without UTF-8.
    pub ascii: &'static str,
    /// A word for the footer; none: not there.
    pub word: Option<&'static str>,
    /// A line for the help.
    pub help: &'static str,
}

const NONE: KeyModifiers = KeyModifiers::NONE;
const CTRL: KeyModifiers = KeyModifiers::CONTROL;

/// Every key. Shift is part of a letter here (`S` is `S`), whatever the terminal says of modifiers.
pub const KEYS: &[Binding] = &[
    bind(Command::Up, &[(KeyCode::Up, NONE), (KeyCode::Char('k'), NONE)], "↑ k", "Up k", None, "one row up"),
    bind(Command::Down, &[(KeyCode::Down, NONE), (KeyCode::Char('j'), NONE)], "↓ j", "Down j", None, "one row down"),
    bind(
        Command::PageUp,
        &[(KeyCode::PageUp, NONE), (KeyCode::Char('b'), CTRL)],
        "PgUp",
        "PgUp",
        None,
        "a page up; the mouse wheel works, too",
    ),
    bind(
        Command::PageDown,
        &[(KeyCode::PageDown, NONE), (KeyCode::Char('f'), CTRL)],
        "PgDn",
        "PgDn",
        None,
        "a page down",
    ),
    bind(Command::First, &[(KeyCode::Char('g'), NONE), (KeyCode::Home, NONE)], "g Home", "g Home", None, "first row"),
    bind(Command::Last, &[(KeyCode::Char('G'), NONE), (KeyCode::End, NONE)], "G End", "G End", None, "last row"),
    bind(
        Command::Filter,
        &[(KeyCode::Char('/'), NONE)],
        "/",
        "/",
        Some("filter"),
        "filter: a regular expression, or success<99 p99>100ms rps>10",
    ),
    bind(
        Command::NextColumn,
        &[(KeyCode::Char('s'), NONE), (KeyCode::Right, NONE)],
        "s →",
        "s Right",
        Some("sort"),
        "sort by the next column; a click on its head does the same",
    ),
    bind(
        Command::PreviousColumn,
        &[(KeyCode::Char('S'), NONE), (KeyCode::Left, NONE)],
        "S ←",
        "S Left",
        None,
        "sort by the column before",
    ),
    bind(Command::Reverse, &[(KeyCode::Char('r'), NONE)], "r", "r", Some("reverse"), "turn the order round"),
    bind(
        Command::Pause,
        &[(KeyCode::Char(' '), NONE)],
        "Space",
        "Space",
        Some("pause"),
        "hold the view still; counting goes on",
    ),
    bind(Command::Help, &[(KeyCode::Char('?'), NONE), (KeyCode::F(1), NONE)], "?", "?", Some("help"), "this help"),
    bind(Command::Back, &[(KeyCode::Esc, NONE)], "Esc", "Esc", None, "leave the help; take the filter away"),
    bind(
        Command::Quit,
        &[(KeyCode::Char('q'), NONE), (KeyCode::Char('c'), CTRL)],
        "q",
        "q",
        Some("quit"),
        "leave; Ctrl-C does the same",
    ),
];

const fn bind(
    command: Command,
    keys: &'static [(KeyCode, KeyModifiers)],
    shown: &'static str,
    ascii: &'static str,
    word: Option<&'static str>,
    help: &'static str,
) -> Binding {
    Binding { command, keys, shown, ascii, word, help }
}

/// What a key asks for.
pub fn command(key: KeyEvent) -> Option<Command> {
    let modifiers = match key.code {
        KeyCode::Char(_) => key.modifiers - KeyModifiers::SHIFT,
        _ => key.modifiers,
    };
    KEYS.iter().find(|binding| binding.keys.contains(&(key.code, modifiers))).map(|binding| binding.command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_means_two_things() {
        let all: Vec<_> = KEYS.iter().flat_map(|binding| binding.keys).collect();
        for (index, key) in all.iter().enumerate() {
            assert!(!all[..index].contains(key), "{key:?}");
        }
    }

    #[test]
    fn shift_is_part_of_the_letter() {
        let key = |code, modifiers| command(KeyEvent::new(code, modifiers));
        assert_eq!(key(KeyCode::Char('S'), KeyModifiers::SHIFT), Some(Command::PreviousColumn));
        assert_eq!(key(KeyCode::Char('S'), NONE), Some(Command::PreviousColumn));
        assert_eq!(key(KeyCode::Char('c'), CTRL), Some(Command::Quit));
        assert_eq!(key(KeyCode::Char('c'), NONE), None);
    }
}
