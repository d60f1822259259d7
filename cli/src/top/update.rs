//! What happens to the screens' state when something arrives; pure, so that tests can type.

use crate::golden::Window;
use crate::top::account::{Account, Lines};
use crate::top::filter::{Filter, MAX_LENGTH};
use crate::top::keys::{self, Command};
use crate::top::layout;
use crate::top::mouse;
use crate::top::state::{Column, Link, Paused, Recorded, Screen, State, Subject, Typing};
use crate::top::tap::{Tap, TapLink};
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseEvent};
use mesh_api::golden::GoldenFrame;
use mesh_api::tap::TapMessage;

/// Something that arrived.
#[derive(Clone, Debug)]
pub enum Msg {
    /// A key.
    Key(KeyEvent),
    /// The mouse.
    Mouse(MouseEvent),
    /// The terminal has another size.
    Resize(u16, u16),
    /// The stream of frames is open: what follows starts a new account.
    Connected,
    /// A frame.
    Frame(Box<GoldenFrame>),
    /// Frames no longer arrive.
    Lost(String),
    /// A frame that tells the subject's pods apart; with `true`, the first one.
    Pods(Box<GoldenFrame>, bool),
    /// The stream of taps is open.
    TapConnected,
    /// The taps that follow are about this.
    TapOf(Subject),
    /// A stream of taps brought this.
    Tapped(TapMessage),
    /// The stream of taps broke: why, and what to do.
    TapLost(String, Option<String>),
    /// The recording is played from another place: everything is counted anew.
    Rewound,
    /// How the recording being made fares.
    Recorded(Recorded),
    /// Time has passed; Unix milliseconds, in a recording its own.
    Tick(u64),
}

/// What the shell around the state shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave.
    Quit,
    /// Play the recording from there, Unix milliseconds.
    Seek(u64),
}

/// Slowest and fastest speed of a recording.
const SPEEDS: (f64, f64) = (0.25, 64.0);

/// Takes a message in.
pub fn update(state: &mut State, msg: Msg) -> Option<Action> {
    let mut action = None;
    match msg {
        Msg::Key(key) if key.kind == KeyEventKind::Release => {}
        Msg::Key(key) if state.typing.is_some() => action = type_key(state, key),
        Msg::Key(key) => action = keys::command(state, key).and_then(|command| obey(state, command)),
        Msg::Mouse(event) => mouse::update(state, event),
        Msg::Resize(width, height) => state.size = (width, height),
        Msg::Connected => state.account.restart(),
        Msg::Frame(frame) => {
            state.link = Link::Live;
            state.account.push(*frame, &state.query);
            if state.screen == Screen::Details && state.subject.is_none() {
                // Begun with details of nothing in particular: then those of the busiest route.
                state.screen = Screen::Routes;
                state.refresh();
                open(state);
            }
            if state.paused.is_none() {
                state.refresh();
            }
        }
        Msg::Lost(why) => {
            let since_ms = match &state.link {
                Link::Lost { since_ms, .. } => *since_ms,
                Link::Connecting | Link::Live => state.now_ms,
            };
            state.link = Link::Lost { since_ms, why };
        }
        Msg::Pods(frame, first) => {
            let window = state.pods.get_or_insert_with(|| Window::new(state.window));
            if first {
                window.clear();
            }
            window.push(*frame);
            if state.paused.is_none() && state.screen == Screen::Details {
                state.refresh();
            }
        }
        Msg::TapConnected => state.tap.link = TapLink::Live,
        Msg::TapOf(subject) => {
            state.tap.begin(subject);
            state.tap.link = TapLink::Live;
        }
        Msg::Tapped(message) => state.tap.push(message),
        Msg::TapLost(why, hint) => state.tap.link = TapLink::Failed(why, hint),
        Msg::Rewound => {
            state.account = Account::new(state.window);
            state.link = Link::Connecting;
            state.tap = Tap::default();
            state.refresh();
        }
        Msg::Recorded(recorded) => state.recorded = Some(recorded),
        Msg::Tick(now_ms) => {
            state.now_ms = now_ms;
            if let Some(replay) = &mut state.replay
                && replay.at_end(now_ms)
            {
                replay.playing = false;
            }
        }
    }
    keep_cursor_visible(state);
    action
}

/// Does what a key would ask for.
pub fn command(state: &mut State, command: Command) -> Option<Action> {
    let action = obey(state, command);
    keep_cursor_visible(state);
    action
}

/// Does what a key or a click asks for.
pub(super) fn obey(state: &mut State, command: Command) -> Option<Action> {
    let page = isize::try_from(layout::rows(state).count.max(1)).unwrap_or(1);
    match command {
        Command::Quit => return Some(Action::Quit),
        Command::Help => state.help = if state.help.is_some() { None } else { Some(0) },
        Command::Back => back(state),
        Command::Up => step(state, -1),
        Command::Down => step(state, 1),
        Command::PageUp => step(state, -page),
        Command::PageDown => step(state, page),
        Command::First => step(state, isize::MIN),
        Command::Last => step(state, isize::MAX),
        Command::Open => open(state),
        Command::Show(Screen::Tap) => {
            // What was tapped last, if anything; else the line under the cursor.
            let subject = state.tap.subject.clone();
            show_tap(state, subject);
        }
        Command::Show(screen) => show(state, screen),
        Command::NextScreen => {
            let at = Screen::TABS.iter().position(|screen| *screen == state.screen);
            let next = Screen::TABS[at.map_or(0, |at| (at + 1) % Screen::TABS.len())];
            return obey(state, Command::Show(next));
        }
        Command::Tap => show_tap(state, None),
        Command::Filter => {
            let text = state.shown_filter().text().to_owned();
            state.help = None;
            state.typing = Some(Typing { before: text.clone(), text, wrong: None });
        }
        Command::NextColumn => sort_by_neighbour(state, 1),
        Command::PreviousColumn => sort_by_neighbour(state, -1),
        Command::Reverse => {
            let table = state.table_mut();
            table.descending = !table.descending;
            state.refresh();
        }
        Command::MapOrList => state.as_list = !state.as_list,
        Command::Pause => return pause(state),
        Command::Seek(seconds) => {
            let to = state.now_ms.saturating_add_signed(seconds * 1000);
            return state.replay.as_ref().map(|replay| Action::Seek(to.clamp(replay.from_ms, replay.to_ms)));
        }
        Command::ToStart => return state.replay.as_ref().map(|replay| Action::Seek(replay.from_ms)),
        Command::ToEnd => return state.replay.as_ref().map(|replay| Action::Seek(replay.to_ms)),
        Command::Slower => change_speed(state, 0.5),
        Command::Faster => change_speed(state, 2.0),
    }
    None
}

fn back(state: &mut State) {
    if state.help.take().is_some() {
        return;
    }
    if state.screen == Screen::Tap && std::mem::take(&mut state.tap.open) {
        return;
    }
    match state.trail.pop() {
        Some(screen) => {
            state.screen = screen;
            state.refresh();
        }
        None => set_filter(state, Filter::default()),
    }
}

fn show(state: &mut State, screen: Screen) {
    state.help = None;
    state.trail.clear();
    state.screen = screen;
    state.refresh();
}

/// Opens a screen from which Esc leads back.
fn enter(state: &mut State, screen: Screen) {
    if state.screen != screen {
        state.trail.push(state.screen);
        state.screen = screen;
    }
    state.refresh();
}

fn open(state: &mut State) {
    match state.screen {
        Screen::Tap => state.tap.open = !state.tap.open && !state.tap.events.is_empty(),
        Screen::Details => show_tap(state, None),
        Screen::Routes | Screen::Workloads | Screen::Edges => {
            if let Some(subject) = state.under_cursor() {
                if state.subject.as_ref() != Some(&subject) {
                    state.pods = None;
                }
                state.subject = Some(subject);
                state.scroll = 0;
                enter(state, Screen::Details);
            }
        }
    }
}

/// Shows the taps of a subject: this one, else what is under the cursor.
fn show_tap(state: &mut State, subject: Option<Subject>) {
    let here = match state.screen {
        Screen::Details => state.subject.clone(),
        Screen::Tap => state.tap.subject.clone(),
        _ => state.under_cursor(),
    };
    state.help = None;
    // A recording holds the taps that it holds.
    if let (Some(subject), None) = (subject.or(here), &state.replay) {
        state.tap.begin(subject);
    }
    enter(state, Screen::Tap);
}

fn pause(state: &mut State) -> Option<Action> {
    if let Some(replay) = &mut state.replay {
        let at_end = replay.at_end(state.now_ms);
        replay.playing = at_end || !replay.playing;
        return at_end.then_some(Action::Seek(replay.from_ms));
    }
    state.paused = match state.paused.take() {
        Some(_) => None,
        None => Some(Box::new(Paused {
            account: state.account.clone(),
            pods: state.pods.clone(),
            tap: state.tap.clone(),
            since_ms: state.now_ms,
        })),
    };
    state.refresh();
    None
}

fn change_speed(state: &mut State, by: f64) {
    if let Some(replay) = &mut state.replay {
        replay.speed = (replay.speed * by).clamp(SPEEDS.0, SPEEDS.1);
    }
}

fn type_key(state: &mut State, key: KeyEvent) -> Option<Action> {
    let mut typing = state.typing.take()?;
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => return Some(Action::Quit),
        KeyCode::Enter if typing.wrong.is_none() => return None,
        KeyCode::Esc => {
            set_filter(state, Filter::read(&typing.before).unwrap_or_default());
            return None;
        }
        KeyCode::Backspace if typing.text.is_empty() => return None,
        KeyCode::Backspace => {
            typing.text.pop();
        }
        KeyCode::Char('u') if control => typing.text.clear(),
        KeyCode::Char('w') if control => {
            let kept = typing.text.trim_end().rfind(' ').map_or(0, |at| at + 1);
            typing.text.truncate(kept);
        }
        KeyCode::Char(letter) if !control && typing.text.len() + letter.len_utf8() <= MAX_LENGTH => {
            typing.text.push(letter);
        }
        _ => {}
    }
    match Filter::read(&typing.text) {
        Ok(filter) => {
            typing.wrong = None;
            set_filter(state, filter);
        }
        // What is half typed may well be wrong; the rows stay as they were.
        Err(wrong) => typing.wrong = Some(wrong),
    }
    state.typing = Some(typing);
    None
}

fn sort_by_neighbour(state: &mut State, by: isize) {
    let places = layout::columns(state);
    let shown: Vec<Column> = places.iter().map(|place| place.column).filter(|column| column.sorts()).collect();
    if shown.is_empty() {
        return;
    }
    let count = isize::try_from(shown.len()).unwrap_or(1);
    let sort = state.table().sort;
    let at = shown.iter().position(|column| *column == sort).and_then(|at| isize::try_from(at).ok());
    let next = (at.unwrap_or(0) + by).rem_euclid(count);
    sort_by(state, shown[usize::try_from(next).unwrap_or(0)]);
}

/// Sorts by a column, or turns the order round if that is the one already.
pub(super) fn sort_by(state: &mut State, column: Column) {
    let table = state.table_mut();
    if table.sort == column {
        table.descending = !table.descending;
    } else {
        (table.sort, table.descending) = (column, column.starts_descending());
    }
    state.refresh();
}

fn set_filter(state: &mut State, filter: Filter) {
    if state.screen == Screen::Tap {
        state.tap_filter = filter;
    } else {
        state.filter = filter;
    }
    state.refresh();
}

/// Moves the cursor, or what is scrolled.
pub(super) fn step(state: &mut State, by: isize) {
    if let Some(from) = &mut state.help {
        *from = from.saturating_add_signed(by);
        return;
    }
    match state.screen {
        Screen::Details => state.scroll = state.scroll.saturating_add_signed(by),
        Screen::Tap => {
            let tap = state.shown_tap();
            let lines = tap.lines(&state.tap_filter);
            let last = lines.len().saturating_sub(1);
            let at = tap.cursor(&lines).saturating_add_signed(by).min(last);
            // The first place, whoever holds it.
            let selected = lines.get(at).map(|tapped| tapped.number).filter(|_| at > 0);
            match &mut state.paused {
                Some(paused) => paused.tap.selected = selected,
                None => state.tap.selected = selected,
            }
        }
        Screen::Routes | Screen::Workloads | Screen::Edges => {
            let last = state.lines.len().saturating_sub(1);
            select(state, state.cursor().saturating_add_signed(by).min(last));
        }
    }
}

/// Puts the cursor on a line.
pub(super) fn select(state: &mut State, at: usize) {
    // The first place, whoever holds it.
    state.table_mut().selected = state.lines.get(at).map(|line| line.key.clone()).filter(|_| at > 0);
}

fn keep_cursor_visible(state: &mut State) {
    let height = usize::from(layout::rows(state).count).max(1);
    let keep = |offset: usize, cursor: usize, count: usize| {
        offset.min(count.saturating_sub(height)).min(cursor).max((cursor + 1).saturating_sub(height))
    };
    match state.screen.lines() {
        Some(Lines::Routes | Lines::Workloads | Lines::Edges) => {
            let cursor = state.cursor();
            let count = state.lines.len();
            let table = state.table_mut();
            table.offset = keep(table.offset, cursor, count);
        }
        None if state.screen == Screen::Tap => {
            let tap = state.shown_tap();
            let lines = tap.lines(&state.tap_filter);
            let offset = keep(tap.offset, tap.cursor(&lines), lines.len());
            match &mut state.paused {
                Some(paused) => paused.tap.offset = offset,
                None => state.tap.offset = offset,
            }
        }
        None => {
            let lines = crate::top::view::details_height(state);
            state.scroll = state.scroll.min(lines.saturating_sub(height));
        }
    }
    if let Some(from) = &mut state.help {
        *from = (*from).min(crate::top::view::help_height(state.replay.is_some(), state.size));
    }
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
