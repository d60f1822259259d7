//! The one table of keys: it drives what a key does, the footer and the help.

use crate::top::state::{Screen, State};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// One line up.
    Up,
    /// One line down.
    Down,
    /// A page up.
    PageUp,
    /// A page down.
    PageDown,
    /// To the first line.
    First,
    /// To the last line.
    Last,
    /// Open what is under the cursor.
    Open,
    /// Leave what is open, or take the filter away.
    Back,
    /// Show another screen.
    Show(Screen),
    /// Show the screen after this one.
    NextScreen,
    /// Tap what is under the cursor.
    Tap,
    /// Type a filter.
    Filter,
    /// Sort by the next column.
    NextColumn,
    /// Sort by the column before.
    PreviousColumn,
    /// Turn the order round.
    Reverse,
    /// Edges as a map or as a list.
    MapOrList,
    /// Hold the view still, or let it go on.
    Pause,
    /// Go so many seconds through a recording.
    Seek(i64),
    /// To the beginning of a recording.
    ToStart,
    /// To the end of a recording.
    ToEnd,
    /// Play a recording slower.
    Slower,
    /// Play a recording faster.
    Faster,
    /// Show or hide the help.
    Help,
    /// Leave.
    Quit,
}

/// When a key means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Always.
    Always,
    /// Not while a recording is played: there the key means something else.
    Live,
    /// While a recording is played.
    Replay,
    /// Where there is something to open or to tap.
    Openable,
    /// Where there is something to filter.
    Filterable,
    /// Where columns can be sorted.
    Sortable,
    /// Where columns can be sorted, and no recording is played.
    LiveSortable,
    /// Among the edges.
    Edges,
}

impl When {
    /// True if it is so.
    pub fn holds(self, state: &State) -> bool {
        let replay = state.replay.is_some();
        let screen = state.screen;
        match self {
            When::Always => true,
            When::Live => !replay,
            When::Replay => replay,
            When::Openable => screen.lines().is_some() || screen == Screen::Tap || screen == Screen::Details,
            When::Filterable => screen != Screen::Details,
            When::Sortable => screen.lines().is_some(),
            When::LiveSortable => !replay && screen.lines().is_some(),
            When::Edges => screen == Screen::Edges,
        }
    }
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
    /// A line for the help; empty: the line before speaks for it.
    pub help: &'static str,
    /// When it means something.
    pub when: When,
}

const NONE: KeyModifiers = KeyModifiers::NONE;
const CTRL: KeyModifiers = KeyModifiers::CONTROL;

/// Seconds of a recording that one key skips.
const SKIP_S: i64 = 5;

/// Every key. Shift is part of a letter here (`S` is `S`), whatever the terminal says of modifiers.
pub const KEYS: &[Binding] = &[
    Binding {
        word: Some("open"),
        when: When::Openable,
        ..bind(Command::Open, &[(KeyCode::Enter, NONE)], "Enter", "open: details of a line; of details, their tap")
    },
    bind(Command::Back, &[(KeyCode::Esc, NONE)], "Esc", "back; then: take the filter away"),
    Binding {
        word: Some("filter"),
        when: When::Filterable,
        ..bind(Command::Filter, &[(KeyCode::Char('/'), NONE)], "/", "filter; the words are explained below")
    },
    Binding {
        word: Some("sort"),
        when: When::Sortable,
        ..bind(Command::NextColumn, &[(KeyCode::Char('s'), NONE)], "s", "sort by the next column; or click on its head")
    },
    Binding {
        when: When::Sortable,
        ..bind(Command::PreviousColumn, &[(KeyCode::Char('S'), NONE)], "S", "sort by the column before")
    },
    Binding { when: When::LiveSortable, ..arrow(Command::NextColumn, &[(KeyCode::Right, NONE)], "→", "Right", "") },
    Binding { when: When::LiveSortable, ..arrow(Command::PreviousColumn, &[(KeyCode::Left, NONE)], "←", "Left", "") },
    Binding {
        word: Some("reverse"),
        when: When::Sortable,
        ..bind(Command::Reverse, &[(KeyCode::Char('r'), NONE)], "r", "turn the order round")
    },
    Binding {
        word: Some("tap"),
        when: When::Openable,
        ..bind(Command::Tap, &[(KeyCode::Char('t'), NONE)], "t", "tap: single requests of the line, as they end")
    },
    Binding {
        word: Some("pause"),
        ..bind(Command::Pause, &[(KeyCode::Char(' '), NONE)], "Space", "hold the view still; counting goes on")
    },
    Binding {
        word: Some("map or list"),
        when: When::Edges,
        ..bind(Command::MapOrList, &[(KeyCode::Char('m'), NONE)], "m", "edges as a map or as a list")
    },
    Binding {
        word: Some("seek"),
        when: When::Replay,
        ..arrow(Command::Seek(-SKIP_S), &[(KeyCode::Left, NONE)], "←→", "Left", "five seconds back; → forth")
    },
    Binding { when: When::Replay, ..arrow(Command::Seek(SKIP_S), &[(KeyCode::Right, NONE)], "→", "Right", "") },
    Binding {
        when: When::Replay,
        ..bind(Command::ToStart, &[(KeyCode::Home, NONE)], "Home", "to the beginning of the recording")
    },
    Binding { when: When::Replay, ..bind(Command::ToEnd, &[(KeyCode::End, NONE)], "End", "to its end") },
    Binding {
        word: Some("speed"),
        when: When::Replay,
        ..bind(Command::Slower, &[(KeyCode::Char('<'), NONE)], "<>", "play slower; > faster")
    },
    Binding { when: When::Replay, ..bind(Command::Faster, &[(KeyCode::Char('>'), NONE)], ">", "") },
    Binding {
        word: Some("help"),
        ..bind(Command::Help, &[(KeyCode::Char('?'), NONE), (KeyCode::F(1), NONE)], "?", "this help")
    },
    Binding {
        word: Some("quit"),
        ..bind(Command::Quit, &[(KeyCode::Char('q'), NONE), (KeyCode::Char('c'), CTRL)], "q", "leave; so does Ctrl-C")
    },
    bind(Command::Show(Screen::Routes), &[(KeyCode::Char('1'), NONE)], "1", "routes: a line for each"),
    bind(Command::Show(Screen::Workloads), &[(KeyCode::Char('2'), NONE)], "2", "workloads: a line for each"),
    bind(Command::Show(Screen::Edges), &[(KeyCode::Char('3'), NONE)], "3", "edges: who talks to whom, drawn"),
    bind(Command::Show(Screen::Tap), &[(KeyCode::Char('4'), NONE)], "4", "tap: what was tapped last, or the line"),
    bind(Command::NextScreen, &[(KeyCode::Tab, NONE)], "Tab", "the next of these screens"),
    arrow(
        Command::Up,
        &[(KeyCode::Up, NONE), (KeyCode::Char('k'), NONE)],
        "↑ k",
        "Up k",
        "up; the mouse wheel works, too",
    ),
    arrow(Command::Down, &[(KeyCode::Down, NONE), (KeyCode::Char('j'), NONE)], "↓ j", "Down j", "down"),
    bind(Command::PageUp, &[(KeyCode::PageUp, NONE), (KeyCode::Char('b'), CTRL)], "PgUp", "a page up"),
    bind(Command::PageDown, &[(KeyCode::PageDown, NONE), (KeyCode::Char('f'), CTRL)], "PgDn", "a page down"),
    bind(Command::First, &[(KeyCode::Char('g'), NONE)], "g", "first line"),
    Binding { when: When::Live, ..bind(Command::First, &[(KeyCode::Home, NONE)], "Home", "") },
    bind(Command::Last, &[(KeyCode::Char('G'), NONE)], "G", "last line"),
    Binding { when: When::Live, ..bind(Command::Last, &[(KeyCode::End, NONE)], "End", "") },
];

const fn bind(
    command: Command,
    keys: &'static [(KeyCode, KeyModifiers)],
    shown: &'static str,
    help: &'static str,
) -> Binding {
    arrow(command, keys, shown, shown, help)
}

const fn arrow(
    command: Command,
    keys: &'static [(KeyCode, KeyModifiers)],
    shown: &'static str,
    ascii: &'static str,
    help: &'static str,
) -> Binding {
    Binding { command, keys, shown, ascii, word: None, help, when: When::Always }
}

/// What a key asks for.
pub fn command(state: &State, key: KeyEvent) -> Option<Command> {
    let modifiers = match key.code {
        KeyCode::Char(_) => key.modifiers - KeyModifiers::SHIFT,
        _ => key.modifiers,
    };
    let means = |binding: &&Binding| binding.keys.contains(&(key.code, modifiers)) && binding.when.holds(state);
    KEYS.iter().find(means).map(|binding| binding.command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Query;
    use crate::top::state::Replay;
    use crate::top::theme::Theme;
    use std::time::Duration;

    fn states() -> Vec<State> {
        let theme = Theme { color: true, unicode: true };
        let state = State::new("test", Query::default(), Duration::from_secs(10), theme);
        let replay = Replay { name: "x".into(), from_ms: 0, to_ms: 1, speed: 1.0, playing: true, damage: None };
        let screens = [Screen::Routes, Screen::Workloads, Screen::Edges, Screen::Tap, Screen::Details];
        let of = |screen, replay: Option<Replay>| State { screen, replay, ..state.clone() };
        screens.into_iter().flat_map(|screen| [of(screen, None), of(screen, Some(replay.clone()))]).collect()
    }

    #[test]
    fn no_key_means_two_things_at_once() {
        for state in states() {
            let all: Vec<_> = KEYS.iter().filter(|b| b.when.holds(&state)).flat_map(|binding| binding.keys).collect();
            for (index, key) in all.iter().enumerate() {
                assert!(!all[..index].contains(key), "{key:?} on {:?}", state.screen);
            }
        }
    }

    #[test]
    fn shift_is_part_of_the_letter() {
        let state = &states()[0];
        let key = |code, modifiers| command(state, KeyEvent::new(code, modifiers));
        assert_eq!(key(KeyCode::Char('S'), KeyModifiers::SHIFT), Some(Command::PreviousColumn));
        assert_eq!(key(KeyCode::Char('S'), NONE), Some(Command::PreviousColumn));
        assert_eq!(key(KeyCode::Char('c'), CTRL), Some(Command::Quit));
        assert_eq!(key(KeyCode::Char('c'), NONE), None);
    }

    #[test]
    fn a_recording_gives_arrows_another_meaning() {
        let meaning = |replay: bool, code| {
            let state = states().into_iter().find(|state| state.replay.is_some() == replay).unwrap();
            command(&state, KeyEvent::from(code))
        };
        assert_eq!(meaning(false, KeyCode::Right), Some(Command::NextColumn));
        assert_eq!(meaning(true, KeyCode::Right), Some(Command::Seek(5)));
        assert_eq!(meaning(false, KeyCode::Home), Some(Command::First));
        assert_eq!(meaning(true, KeyCode::Home), Some(Command::ToStart));
        assert_eq!(meaning(false, KeyCode::Char('<')), None);
    }
}
