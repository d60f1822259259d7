//! Typing and clicking through the screens.

use super::*;
use crate::golden::Query;
use crate::golden::tests::{SHOP, frame};
use crate::top::theme::Theme;
use crossterm::event::{MouseButton, MouseEventKind};
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

fn order(state: &State) -> (Column, bool) {
    (state.table().sort, state.table().descending)
}

fn names(state: &State) -> Vec<String> {
    state.lines.iter().map(|line| layout::text(state, line, Column::Route)).collect()
}

#[test]
fn rows_come_sorted_by_rate() {
    let expect = ["GET /products/{id}", "GET /products/{id}/reviews", "GET /", "/shop.Cart/Add", "POST /orders", "tcp"];
    assert_eq!(names(&state()), expect);
}

#[test]
fn sorting_goes_through_the_columns_and_round() {
    let mut state = state();
    press(&mut state, "s");
    assert_eq!(order(&state), (Column::Success, false));
    assert_eq!(names(&state)[0], "GET /products/{id}/reviews");
    press(&mut state, "sss");
    assert_eq!(order(&state).0, Column::P99);
    press(&mut state, "sss");
    assert_eq!(order(&state).0, Column::Route);
    press(&mut state, "SSr");
    assert_eq!(order(&state), (Column::Mtls, true));
}

#[test]
fn a_filter_works_while_it_is_typed_and_escape_brings_the_old_one_back() {
    let mut state = state();
    press(&mut state, "/web");
    assert_eq!(state.lines.len(), 2);
    press(&mut state, " rps>");
    assert!(state.typing.as_ref().unwrap().wrong.is_some());
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
    assert_eq!(state.table().offset, 3, "three rows fit");
    press(&mut state, "k");
    assert_eq!(state.table().offset, 3);
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
    assert_eq!(order(&state), (Column::Workload, false));
    update(&mut state, mouse(click, 2, 3));
    assert!(order(&state).1);
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

fn pressed(state: &mut State, code: KeyCode) -> Option<Action> {
    update(state, Msg::Key(KeyEvent::from(code)))
}

#[test]
fn screens_open_into_each_other_and_escape_leads_back() {
    let mut state = state();
    press(&mut state, "2");
    assert_eq!((state.screen, state.lines.len()), (Screen::Workloads, 5));
    press(&mut state, "3");
    assert_eq!((state.screen, state.lines.len()), (Screen::Edges, 4));
    press(&mut state, "j\n");
    assert_eq!(state.screen, Screen::Details);
    let subject = state.subject.clone().unwrap();
    assert_eq!(subject.name("→"), "load → web");
    assert_eq!(state.details.as_ref().unwrap().row.rps, 25.0);
    press(&mut state, "\n");
    assert_eq!((state.screen, &state.tap.subject), (Screen::Tap, &Some(subject)));
    press(&mut state, "\x1b");
    assert_eq!(state.screen, Screen::Details);
    press(&mut state, "\x1b");
    assert_eq!((state.screen, state.cursor()), (Screen::Edges, 1), "the cursor is where it was");
    press(&mut state, "\x1b");
    assert_eq!(state.screen, Screen::Edges, "there is nothing to go back to");
    pressed(&mut state, KeyCode::Tab);
    assert_eq!(state.screen, Screen::Tap);
    pressed(&mut state, KeyCode::Tab);
    assert_eq!(state.screen, Screen::Routes);
}

#[test]
fn each_screen_keeps_its_order_and_cursor_but_the_filter_is_one() {
    let mut state = state();
    press(&mut state, "/web\n2s");
    assert_eq!(order(&state).0, Column::Success);
    assert_eq!(state.lines.len(), 1);
    press(&mut state, "1");
    assert_eq!((order(&state).0, state.lines.len()), (Column::Rps, 2));
    press(&mut state, "4/status>=500\n1");
    assert_eq!((state.filter.text(), state.tap_filter.text()), ("web", "status>=500"), "taps have their own");
}

#[test]
fn a_tap_is_of_the_line_under_the_cursor() {
    use crate::top::tap::tests::event;
    let mut state = state();
    press(&mut state, "t");
    assert_eq!((state.screen, &state.tap.link), (Screen::Tap, &TapLink::Opening));
    update(&mut state, Msg::TapConnected);
    for number in 0..3 {
        let event = Box::new(event(number * 1000, &format!("/products/{number}"), 200, 900));
        update(&mut state, Msg::Tapped(TapMessage::Event(event)));
    }
    assert_eq!(state.tap.seen, 3);
    press(&mut state, " ");
    update(&mut state, Msg::Tapped(TapMessage::Event(Box::new(event(9000, "/products/9", 200, 900)))));
    assert_eq!((state.shown_tap().events.len(), state.tap.events.len()), (3, 4), "the view stands");
    press(&mut state, " \n");
    assert!(state.tap.open);
    press(&mut state, "\x1b");
    assert!(!state.tap.open && state.screen == Screen::Tap);
    update(&mut state, Msg::TapLost("forbidden".into(), None));
    assert_eq!(state.tap.events.len(), 4);
    press(&mut state, "\x1b4");
    assert_eq!(state.tap.subject.as_ref().unwrap().name(""), "catalog  GET /products/{id}");
}

#[test]
fn pods_are_asked_for_only_where_they_are_shown() {
    use crate::top::source::{Wants, wants};
    let mut state = state();
    assert_eq!(wants(&state), Wants::default());
    press(&mut state, "\n");
    assert_eq!(wants(&state).pods.unwrap().name, "catalog");
    press(&mut state, "t");
    assert_eq!(wants(&state).pods, None);
    assert_eq!(wants(&state).tap, state.tap.subject);
    press(&mut state, "1");
    assert_eq!(wants(&state), Wants::default(), "who does not look does not ask");
}

#[test]
fn clicks_change_screens_and_open_lines() {
    let mut state = state();
    let mouse = |column, row| {
        let kind = MouseEventKind::Down(MouseButton::Left);
        Msg::Mouse(MouseEvent { kind, column, row, modifiers: KeyModifiers::NONE })
    };
    let tab = crate::top::view::tabs(&state)[1].clone();
    update(&mut state, mouse(tab.x + 2, 2));
    assert_eq!(state.screen, Screen::Workloads);
    update(&mut state, mouse(5, 5));
    update(&mut state, mouse(5, 5));
    assert_eq!(state.screen, Screen::Details, "the second click opens");
    press(&mut state, "3");
    let map = layout::edge_map(&state).unwrap();
    let label = map.runs.iter().find(|run| run.part == crate::top::map::Part::Label(2)).unwrap();
    let head = layout::rows(&state).head;
    update(&mut state, mouse(label.x + 3, head + label.y));
    assert_eq!(state.cursor(), 2);
    press(&mut state, "m");
    assert_eq!(layout::edge_map(&state), None);
    update(&mut state, mouse(5, 5));
    assert_eq!(state.cursor(), 1);
}

#[test]
fn the_help_and_details_scroll_no_further_than_they_reach() {
    let mut state = state();
    update(&mut state, Msg::Resize(80, 12));
    press(&mut state, "?");
    for _ in 0..99 {
        press(&mut state, "j");
    }
    let scrolled = state.help.unwrap();
    assert!(scrolled > 10 && scrolled < 60, "{scrolled}");
    press(&mut state, "\x1b\nG");
    let height = usize::from(layout::rows(&state).count);
    assert_eq!(state.scroll + height, crate::top::view::details_height(&state));
    press(&mut state, "g");
    assert_eq!(state.scroll, 0);
}
