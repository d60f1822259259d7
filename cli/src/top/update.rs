//! What happens to the screen's state when something arrives; pure, so that tests can type.

use crate::golden::RowId;
use crate::top::filter::{Filter, MAX_LENGTH};
use crate::top::keys::{self, Command};
use crate::top::layout;
use crate::top::state::{Column, Link, State, Typing};
use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers, MouseButton, MouseEvent, MouseEventKind};
use mesh_api::golden::GoldenFrame;

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
    /// Time has passed; Unix milliseconds.
    Tick(u64),
}

/// What the shell around the state shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leave.
    Quit,
}

/// Rows that one notch of the wheel moves.
const WHEEL_ROWS: isize = 3;

/// Takes a message in.
pub fn update(state: &mut State, msg: Msg) -> Option<Action> {
    let action = match msg {
        Msg::Key(key) if key.kind == KeyEventKind::Release => None,
        Msg::Key(key) if state.typing.is_some() => type_key(state, key),
        Msg::Key(key) => keys::command(key).and_then(|command| obey(state, command)),
        Msg::Mouse(mouse) => {
            on_mouse(state, mouse);
            None
        }
        Msg::Resize(width, height) => {
            state.size = (width, height);
            None
        }
        Msg::Connected => {
            state.account.restart();
            None
        }
        Msg::Frame(frame) => {
            state.link = Link::Live;
            state.account.push(*frame, &state.query);
            if state.paused.is_none() {
                state.refresh();
            }
            None
        }
        Msg::Lost(why) => {
            let since_ms = match &state.link {
                Link::Lost { since_ms, .. } => *since_ms,
                Link::Connecting | Link::Live => state.now_ms,
            };
            state.link = Link::Lost { since_ms, why };
            None
        }
        Msg::Tick(now_ms) => {
            state.now_ms = now_ms;
            None
        }
    };
    keep_cursor_visible(state);
    action
}

fn obey(state: &mut State, command: Command) -> Option<Action> {
    let page = isize::try_from(layout::lines(state.size.1).count.max(1)).unwrap_or(1);
    match command {
        Command::Quit => return Some(Action::Quit),
        Command::Help => state.help = !state.help,
        Command::Back if state.help => state.help = false,
        Command::Back => set_filter(state, Filter::default()),
        Command::Up => step(state, -1),
        Command::Down => step(state, 1),
        Command::PageUp => step(state, -page),
        Command::PageDown => step(state, page),
        Command::First => state.selected = None,
        Command::Last => select(state, state.lines.len().saturating_sub(1)),
        Command::Filter => {
            let text = state.filter.text().to_owned();
            state.help = false;
            state.typing = Some(Typing { before: text.clone(), text, error: None });
        }
        Command::NextColumn => sort_by_neighbour(state, 1),
        Command::PreviousColumn => sort_by_neighbour(state, -1),
        Command::Reverse => {
            state.descending = !state.descending;
            state.refresh();
        }
        Command::Pause => {
            state.paused = match state.paused.take() {
                None => Some((state.account.clone(), state.now_ms)),
                Some(_) => None,
            };
            state.refresh();
        }
    }
    None
}

fn type_key(state: &mut State, key: KeyEvent) -> Option<Action> {
    let mut typing = state.typing.take()?;
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c') if control => return Some(Action::Quit),
        KeyCode::Enter if typing.error.is_none() => return None,
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
        KeyCode::Char(letter) if !control && typing.text.len() < MAX_LENGTH => typing.text.push(letter),
        _ => {}
    }
    match Filter::read(&typing.text) {
        Ok(filter) => {
            typing.error = None;
            set_filter(state, filter);
        }
        // What is half typed may well be wrong; the rows stay as they were.
        Err(error) => typing.error = Some(error),
    }
    state.typing = Some(typing);
    None
}

fn on_mouse(state: &mut State, mouse: MouseEvent) {
    match mouse.kind {
        MouseEventKind::ScrollUp => step(state, -WHEEL_ROWS),
        MouseEventKind::ScrollDown => step(state, WHEEL_ROWS),
        MouseEventKind::Down(MouseButton::Left) if state.help => state.help = false,
        MouseEventKind::Down(MouseButton::Left) => {
            let lines = layout::lines(state.size.1);
            if mouse.row == lines.head {
                let places = layout::columns(state, state.size.0);
                // The gap before a column belongs to it.
                let hit = places.iter().find(|place| mouse.column < place.x + place.width);
                match hit.map(|place| place.column) {
                    Some(column) if column == state.sort => {
                        state.descending = !state.descending;
                        state.refresh();
                    }
                    Some(column) if column.sorts() => sort_by(state, column),
                    _ => {}
                }
            } else if (lines.rows..lines.rows + lines.count).contains(&mouse.row) {
                let at = state.offset + usize::from(mouse.row - lines.rows);
                if at < state.lines.len() {
                    select(state, at);
                }
            }
        }
        _ => {}
    }
}

fn sort_by_neighbour(state: &mut State, by: isize) {
    let places = layout::columns(state, state.size.0);
    let shown: Vec<Column> = places.iter().map(|place| place.column).filter(|column| column.sorts()).collect();
    if shown.is_empty() {
        return;
    }
    let count = isize::try_from(shown.len()).unwrap_or(1);
    let at = shown.iter().position(|column| *column == state.sort).and_then(|at| isize::try_from(at).ok());
    let next = (at.unwrap_or(0) + by).rem_euclid(count);
    sort_by(state, shown[usize::try_from(next).unwrap_or(0)]);
}

fn sort_by(state: &mut State, column: Column) {
    state.sort = column;
    state.descending = column.starts_descending();
    state.refresh();
}

fn set_filter(state: &mut State, filter: Filter) {
    state.filter = filter;
    state.refresh();
}

fn step(state: &mut State, by: isize) {
    let last = state.lines.len().saturating_sub(1);
    select(state, state.cursor().saturating_add_signed(by).min(last));
}

fn select(state: &mut State, at: usize) {
    state.selected = state.lines.get(at).map(|line| line.id.clone()).filter(|_| at > 0);
    if at == 0 {
        // The first place, whoever holds it.
        state.selected = None::<RowId>;
    }
}

fn keep_cursor_visible(state: &mut State) {
    let height = usize::from(layout::lines(state.size.1).count).max(1);
    let cursor = state.cursor();
    let last_offset = state.lines.len().saturating_sub(height);
    state.offset = state.offset.min(last_offset).min(cursor).max((cursor + 1).saturating_sub(height));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Query;
    use crate::golden::tests::{SHOP, frame};
    use crate::top::theme::Theme;
    use std::time::Duration;

    fn state() -> State {
        let theme = Theme { color: true, unicode: true };
        let mut state = State::new("test", Query::default(), Duration::from_secs(10), theme);
        update(&mut state, Msg::Resize(120, 40));
        for second in 1..=3 {
            update(&mut state, Msg::Frame(Box::new(frame(SHOP, second * 1000, 1000))));
        }
        state
    }

    fn press(state: &mut State, keys: &str) -> Option<Action> {
        let key = |c| match c {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            '\x08' => KeyCode::Backspace,
            c => KeyCode::Char(c),
        };
        keys.chars().map(|c| update(state, Msg::Key(KeyEvent::from(key(c))))).last().flatten()
    }

    fn names(state: &State) -> Vec<String> {
        (0..state.lines.len()).map(|at| layout::route_text(state, at)).collect()
    }

    #[test]
    fn rows_come_sorted_by_rate() {
        let expect =
            ["GET /products/{id}", "GET /products/{id}/reviews", "GET /", "/shop.Cart/Add", "POST /orders", "tcp"];
        assert_eq!(names(&state()), expect);
    }

    #[test]
    fn sorting_goes_through_the_columns_and_round() {
        let mut state = state();
        press(&mut state, "s");
        assert_eq!((state.sort, state.descending), (Column::Success, false));
        assert_eq!(names(&state)[0], "GET /products/{id}/reviews");
        press(&mut state, "sss");
        assert_eq!(state.sort, Column::P99);
        press(&mut state, "sss");
        assert_eq!(state.sort, Column::Route);
        press(&mut state, "SSr");
        assert_eq!((state.sort, state.descending), (Column::Mtls, true));
    }

    #[test]
    fn a_filter_works_while_it_is_typed_and_escape_brings_the_old_one_back() {
        let mut state = state();
        press(&mut state, "/web");
        assert_eq!(state.lines.len(), 2);
        press(&mut state, " rps>");
        assert!(state.typing.as_ref().unwrap().error.is_some());
        assert_eq!(state.lines.len(), 0, "a broken filter changes nothing: `rps` was the last that could be read");
        press(&mut state, "10\n");
        assert_eq!((names(&state), state.typing.is_none()), (vec!["GET /".to_owned()], true));
        press(&mut state, "/\x08\x08\x08\x08\x08\x08\x1b");
        assert_eq!(state.filter.text(), "web rps>10");
        press(&mut state, "\x1b");
        assert_eq!(state.lines.len(), 6);
        assert_eq!(press(&mut state, "/q"), None, "letters are text while typing");
    }

    #[test]
    fn a_paused_view_stands_while_counting_goes_on() {
        let mut state = state();
        press(&mut state, " ");
        let before = state.lines.clone();
        update(&mut state, Msg::Frame(Box::new(frame(&SHOP[..1], 4000, 1000))));
        assert_eq!(state.lines, before);
        press(&mut state, "/web\n");
        assert_eq!(state.lines.len(), 2, "a paused view can be searched");
        press(&mut state, "\x1b ");
        assert_ne!(state.lines, before);
        assert_eq!(state.account.window.frames().len(), 4);
    }

    #[test]
    fn the_cursor_stays_on_its_row() {
        let mut state = state();
        press(&mut state, "j");
        assert_eq!(state.cursor(), 1);
        press(&mut state, "r");
        assert_eq!(names(&state)[state.cursor()], "GET /products/{id}/reviews");
        press(&mut state, "G");
        assert_eq!(state.cursor(), 5);
        press(&mut state, "g");
        assert_eq!(state.cursor(), 0);
        update(&mut state, Msg::Resize(80, 7));
        press(&mut state, "G");
        assert_eq!(state.offset, 3, "three rows fit");
        press(&mut state, "k");
        assert_eq!(state.offset, 3);
    }

    #[test]
    fn the_mouse_selects_and_sorts() {
        let mut state = state();
        let mouse = |kind, column, row| Msg::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE });
        let click = MouseEventKind::Down(MouseButton::Left);
        update(&mut state, mouse(click, 5, 6));
        assert_eq!(state.cursor(), 2);
        update(&mut state, mouse(click, 5, 30));
        assert_eq!(state.cursor(), 2);
        update(&mut state, mouse(click, 2, 3));
        assert_eq!((state.sort, state.descending), (Column::Workload, false));
        update(&mut state, mouse(click, 2, 3));
        assert!(state.descending);
        update(&mut state, mouse(MouseEventKind::ScrollDown, 0, 0));
        assert!(state.cursor() > 0);
    }

    #[test]
    fn a_lost_link_keeps_the_time_it_was_lost() {
        let mut state = state();
        update(&mut state, Msg::Tick(5000));
        update(&mut state, Msg::Lost("reset".into()));
        update(&mut state, Msg::Tick(9000));
        update(&mut state, Msg::Lost("refused".into()));
        assert_eq!(state.link, Link::Lost { since_ms: 5000, why: "refused".into() });
        assert_eq!(state.lines.len(), 6, "the last values stay");
        update(&mut state, Msg::Connected);
        update(&mut state, Msg::Frame(Box::new(frame(SHOP, 12_000, 10_000))));
        assert_eq!(state.link, Link::Live);
        assert_eq!(state.account.window.covered_ms(), 10_000);
        assert_eq!(state.lines[0].history.len(), 12);
    }

    #[test]
    fn quitting_works_from_everywhere() {
        for keys in ["q", "?q"] {
            assert_eq!(press(&mut state(), keys), Some(Action::Quit), "{keys}");
        }
        let mut state = state();
        press(&mut state, "/x");
        let ctrl_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(update(&mut state, Msg::Key(ctrl_c)), Some(Action::Quit));
    }
}
