//! Snapshots of the screen at several sizes.

use super::*;
use crate::golden::Query;
use crate::golden::tests::{SHOP, frame};
use crate::top::theme::Theme;
use crate::top::update::{Msg, update};
use crossterm::event::{KeyCode, KeyEvent};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use std::time::Duration;

fn state(size: (u16, u16), seconds: u64) -> State {
    let theme = Theme { color: true, unicode: true };
    let query = Query { namespace: Some("shop".into()), ..Query::default() };
    let mut state = State::new("demo", query, Duration::from_secs(10), theme);
    update(&mut state, Msg::Resize(size.0, size.1));
    update(&mut state, Msg::Tick(1_000_000));
    update(&mut state, Msg::Connected);
    for second in 1..=seconds {
        update(&mut state, Msg::Frame(Box::new(frame(SHOP, second * 1000, 1000))));
    }
    state
}

fn type_keys(state: &mut State, keys: &str) {
    for key in keys.chars() {
        update(state, Msg::Key(KeyEvent::from(KeyCode::Char(key))));
    }
}

fn draw(state: &State) -> String {
    let mut terminal = Terminal::new(TestBackend::new(state.size.0, state.size.1)).unwrap();
    terminal.draw(|frame| view(state, frame)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let lines = buffer.content.chunks(usize::from(state.size.0).max(1));
    let lines = lines.map(|cells| cells.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

#[test]
fn at_120_by_40() {
    insta::assert_snapshot!(draw(&state((120, 40), 20)));
}

#[test]
fn at_80_by_24() {
    insta::assert_snapshot!(draw(&state((80, 24), 20)));
}

#[test]
fn at_40_by_10() {
    insta::assert_snapshot!(draw(&state((40, 10), 20)));
}

#[test]
fn with_ascii_only_and_paused_and_filtered() {
    let mut state = state((80, 12), 20);
    state.theme = Theme { color: false, unicode: false };
    type_keys(&mut state, " /catalog");
    update(&mut state, Msg::Tick(1_004_000));
    insta::assert_snapshot!(draw(&state));
}

#[test]
fn a_lost_connection_is_told() {
    let mut state = state((80, 14), 20);
    update(&mut state, Msg::Lost("cannot read golden metrics: connection refused".into()));
    update(&mut state, Msg::Tick(1_012_000));
    insta::assert_snapshot!(draw(&state));
}

#[test]
fn emptiness_is_explained() {
    insta::assert_snapshot!(draw(&state((80, 10), 0)));
    let mut state = state((80, 10), 1);
    type_keys(&mut state, "/nothing");
    update(&mut state, Msg::Key(KeyEvent::from(KeyCode::Enter)));
    insta::assert_snapshot!(draw(&state));
}

#[test]
fn help_shows_every_key() {
    let mut state = state((80, 24), 5);
    type_keys(&mut state, "?");
    insta::assert_snapshot!(draw(&state));
}

#[test]
fn no_size_breaks_it() {
    for width in 0..100 {
        for height in [0, 1, 2, 3, 5, 6, 9, 10, 25] {
            let mut state = state((width, height), 2);
            draw(&state);
            state.help = true;
            type_keys(&mut state, "j/x(");
            update(&mut state, Msg::Lost("x".repeat(200)));
            draw(&state);
        }
    }
}

#[test]
fn without_color_there_is_none() {
    let mut state = state((120, 20), 5);
    state.theme.color = false;
    let mut terminal = Terminal::new(TestBackend::new(120, 20)).unwrap();
    terminal.draw(|frame| view(&state, frame)).unwrap();
    for cell in &terminal.backend().buffer().content {
        assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset));
    }
}
