//! Typing and clicking through the screens.

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
