//! Snapshots of every screen and state at three sizes: 80×24, 120×40, and one that is tiny.

use super::*;
use crate::golden::Query;
use crate::golden::tests::{Leg, SHOP, frame};
use crate::top::tap::tests::event;
use crate::top::theme::Theme;
use crate::top::update::{Msg, update};
use crossterm::event::{KeyCode, KeyEvent};
use mesh_api::golden::{Direction, EndpointView, GoldenFrame, Unreachable};
use mesh_api::tap::{TapLeftOut, TapMessage, TapStatus};
use mesh_api::{MeshError, WorkloadRef};
use std::time::{Duration, Instant};

const SIZES: [(u16, u16); 3] = [(80, 24), (120, 40), (40, 9)];

/// A screen of the shop's namespace that has seen so many seconds of it.
fn state(size: (u16, u16), seconds: u64) -> State {
    let theme = Theme { color: true, unicode: true };
    let query = Query { namespace: Some("shop".into()), ..Query::default() };
    let mut state = State::new("demo", query, Duration::from_secs(10), theme);
    update(&mut state, Msg::Resize(size.0, size.1));
    update(&mut state, Msg::Tick(1_000_000));
    update(&mut state, Msg::Connected);
    for second in 1..=seconds {
        update(&mut state, Msg::Frame(Box::new(shop(second))));
    }
    state
}

/// A second of the shop, with what proxies count beyond numbers of requests.
fn shop(second: u64) -> GoldenFrame {
    let mut frame = frame(SHOP, second * 1000, 1000);
    for entry in &mut frame.series {
        let series = &mut entry.series;
        if series.requests > 0 {
            series.statuses.insert(200, series.successes);
            series.first_byte = series.latency.clone();
        }
        if series.requests > series.successes {
            series.statuses.insert(503, series.requests - series.successes);
            if entry.key.direction == Direction::Outbound {
                series.retries = 2;
                series.timeouts = 1;
                series.errors.insert(MeshError::ConnectFailed, series.requests - series.successes);
            }
        }
        if entry.key.direction == Direction::Inbound {
            entry.pod = Some(format!("{}-5d4f7c-x2x", entry.workload.name));
        }
    }
    frame
}

fn type_keys(state: &mut State, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            key => KeyCode::Char(key),
        };
        update(state, Msg::Key(KeyEvent::from(code)));
    }
}

/// The screens of a state at every size, as one text.
fn screens(change: impl Fn(&mut State)) -> String {
    let screen = |size: (u16, u16)| {
        let mut state = state(size, 20);
        change(&mut state);
        let text = text(&state);
        format!("--- {}x{}\n{}", size.0, size.1, text.trim_end_matches('\n'))
    };
    SIZES.map(screen).join("\n")
}

#[test]
fn routes() {
    insta::assert_snapshot!(screens(|_| {}));
}

#[test]
fn workloads() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "2")));
}

#[test]
fn edges() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "3")));
}

#[test]
fn edges_as_a_list() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "3m")));
}

#[test]
fn edges_on_a_wide_screen() {
    let mut state = state((200, 60), 20);
    type_keys(&mut state, "3");
    insta::assert_snapshot!(text(&state).trim_end());
}

#[test]
fn details_of_a_route() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "j\n")));
}

#[test]
fn details_of_a_workload() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "2\n")));
}

#[test]
fn details_tell_how_callers_balance() {
    let mut state = state((120, 60), 20);
    let view = |name: &str, failing| EndpointView {
        address: ([10, 244, 0, 2], 8080).into(),
        workload: WorkloadRef::new("shop", "deployment", "catalog"),
        pod: name.to_owned(),
        callers: 2,
        failing,
        in_flight: 3,
        expected_us: 7800,
        ejected: 0,
        half_open: 0,
        ejected_ms: 0,
    };
    let endpoints = vec![view("catalog-a", 0), view("catalog-b", 1)];
    update(&mut state, Msg::Frame(Box::new(GoldenFrame { endpoints, ..shop(21) })));
    type_keys(&mut state, "2\n");
    let text = text(&state);
    let line = |beginning: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(beginning));
        line.unwrap_or_else(|| panic!("no {beginning}:\n{text}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("BALANCING OF CALLERS"), "BALANCING OF CALLERS IN FLIGHT EXPECTED FAILING AT");
    assert_eq!(line("catalog-a  "), "catalog-a 3 7.8ms 0 of 2");
    assert_eq!(line("catalog-b  "), "catalog-b 3 7.8ms 1 of 2");
    let endpoints = vec![
        EndpointView { ejected: 1, ejected_ms: 7_100, ..view("catalog-a", 0) },
        EndpointView { half_open: 2, ..view("catalog-b", 1) },
        view("catalog-c", 0),
    ];
    update(&mut state, Msg::Frame(Box::new(GoldenFrame { endpoints, ..shop(22) })));
    let text = self::text(&state);
    for expect in ["open at 1 of 2, 8s", "half open at 2 of 2", "closed"] {
        assert!(text.contains(expect), "no {expect}:\n{text}");
    }
}

#[test]
fn details_of_an_edge_over_tcp() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "3G\n")));
}

/// Taps the busiest route.
fn tapped(state: &mut State) {
    type_keys(state, "t");
    update(state, Msg::TapConnected);
    for number in 0..30 {
        let status = if number % 7 == 3 { 503 } else { 200 };
        let mut event = event(36_000_000 + number * 450, &format!("/products/{number}"), status, 900 + number * 7900);
        event.error = (status == 503).then_some(MeshError::ConnectFailed);
        update(state, Msg::Tapped(TapMessage::Event(Box::new(event))));
    }
    let left_out = TapLeftOut { rate_limited: 112, ..TapLeftOut::default() };
    let status = TapStatus { pods: 2, meshed_pods: 2, proxies: 1, left_out, ..TapStatus::default() };
    update(state, Msg::Tapped(TapMessage::Status(status)));
}

#[test]
fn tap() {
    insta::assert_snapshot!(screens(tapped));
}

#[test]
fn tap_with_one_request_open() {
    insta::assert_snapshot!(screens(|state| {
        tapped(state);
        type_keys(state, "/status>=500\n\n");
    }));
}

#[test]
fn tap_that_is_refused() {
    insta::assert_snapshot!(screens(|state| {
        type_keys(state, "t");
        let hint = "ask for this permission, or act as somebody who has it with --as".to_owned();
        update(state, Msg::TapLost("you may not get workloads/tap in namespace shop (403)".into(), Some(hint)));
    }));
}

#[test]
fn filtered() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "/catalog\n")));
}

#[test]
fn filter_that_cannot_be_read() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "/catalog p99>fast")));
}

#[test]
fn filter_that_nothing_passes() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "/nothing\n")));
}

#[test]
fn paused() {
    insta::assert_snapshot!(screens(|state| {
        type_keys(state, " ");
        update(state, Msg::Tick(1_004_000));
        update(state, Msg::Frame(Box::new(frame(&SHOP[..1], 30_000, 10_000))));
    }));
}

#[test]
fn lost() {
    insta::assert_snapshot!(screens(|state| {
        update(state, Msg::Lost("connection refused".into()));
        update(state, Msg::Tick(1_012_000));
    }));
}

#[test]
fn silent_proxies() {
    insta::assert_snapshot!(screens(|state| {
        let silent = GoldenFrame { silent_proxies: 2, ..shop(21) };
        update(state, Msg::Frame(Box::new(silent)));
    }));
}

#[test]
fn replicas_that_cannot_be_asked() {
    insta::assert_snapshot!(screens(|state| {
        let unreachable =
            vec![Unreachable { replica: "mesh-control-7d9f".into(), why: "cannot connect to 10.0.0.9:8086".into() }];
        update(state, Msg::Frame(Box::new(GoldenFrame { unreachable, ..shop(21) })));
    }));
}

#[test]
fn replayed_to_the_end_of_a_broken_file() {
    insta::assert_snapshot!(screens(|state| {
        state.replay = Some(Replay {
            name: "incident.rec".into(),
            from_ms: 980_000,
            to_ms: 1_100_000,
            speed: 4.0,
            playing: true,
            damage: Some("the recording breaks off here: its last line is incomplete".into()),
        });
        update(state, Msg::Tick(1_100_000));
    }));
}

#[test]
fn replaying() {
    insta::assert_snapshot!(screens(|state| {
        let (from_ms, to_ms) = (980_000, 1_100_000);
        let replay = Replay { name: "x".into(), from_ms, to_ms, speed: 1.0, playing: true, damage: None };
        state.replay = Some(replay);
        update(state, Msg::Tick(1_042_000));
    }));
}

#[test]
fn nothing_yet_no_traffic_no_proxy() {
    let screen = |frames: &[GoldenFrame]| {
        let mut state = state((80, 12), 0);
        for frame in frames {
            update(&mut state, Msg::Frame(Box::new(frame.clone())));
        }
        text(&state)
    };
    let mut quiet = frame(SHOP, 1000, 1000);
    quiet.series.clear();
    let mut bare = quiet.clone();
    bare.workloads.iter_mut().for_each(|workload| workload.meshed_pods = 0);
    insta::assert_snapshot!([screen(&[]), screen(&[quiet]), screen(&[bare])].join("---\n"));
}

#[test]
fn help() {
    insta::assert_snapshot!(screens(|state| type_keys(state, "?")));
}

#[test]
fn help_on_a_tall_screen_is_whole() {
    let mut state = state((80, 60), 1);
    type_keys(&mut state, "?");
    insta::assert_snapshot!(text(&state).trim_end());
}

#[test]
fn with_ascii_only() {
    insta::assert_snapshot!(
        ["1", "3", "\n", "t", "?"]
            .map(|keys| {
                let mut state = state((80, 16), 20);
                state.theme = Theme { color: false, unicode: false };
                type_keys(&mut state, keys);
                let text = text(&state);
                assert!(text.is_ascii(), "{text}");
                text
            })
            .join("---\n")
    );
}

/// A thousand routes of fifty workloads.
fn thousand(second: u64) -> GoldenFrame {
    let mut many = frame(&[], second * 1000, 1000);
    for number in 0..1000u64 {
        // Leaked on purpose: the legs of tests are static.
        let name: &'static str = Box::leak(format!("svc-{:02}", number % 50).into_boxed_str());
        let route: &'static str = Box::leak(format!("/things/{{id}}/part-{number:03}").into_boxed_str());
        let leg = Leg { from: "web", to: name, route, rps: 1 + number % 17, failing: 0, ..SHOP[2] };
        let one = frame(&[leg], second * 1000, 1000);
        many.series.extend(one.series);
        if number < 50 {
            many.workloads.extend(one.workloads.into_iter().filter(|status| status.workload.name == name));
        }
    }
    many
}

#[test]
fn a_thousand_routes() {
    let thousand = thousand(1);
    insta::assert_snapshot!(
        SIZES
            .map(|size| {
                let mut state = state(size, 0);
                update(&mut state, Msg::Frame(Box::new(thousand.clone())));
                let page = KeyEvent::from(KeyCode::PageDown);
                for _ in 0..12 {
                    update(&mut state, Msg::Key(page));
                }
                text(&state)
            })
            .join("---\n")
    );
}

/// Not a benchmark, but what one screen costs with a thousand routes must stay far below the second that it lasts.
#[test]
fn a_thousand_routes_are_drawn_in_time() {
    let mut state = state((200, 60), 0);
    let frames: Vec<GoldenFrame> = (1..=10).map(thousand).collect();
    for frame in frames {
        update(&mut state, Msg::Frame(Box::new(frame)));
    }
    let next = Box::new(thousand(11));
    let mut times = [Duration::MAX; 3];
    for round in 0..3 {
        let frame = Box::new(GoldenFrame { at_ms: next.at_ms + round * 1000, ..(*next).clone() });
        let begun = Instant::now();
        update(&mut state, Msg::Frame(frame));
        times[0] = times[0].min(begun.elapsed());
        let begun = Instant::now();
        update(&mut state, Msg::Key(KeyEvent::from(KeyCode::Down)));
        times[1] = times[1].min(begun.elapsed());
        let begun = Instant::now();
        text(&state);
        times[2] = times[2].min(begun.elapsed());
    }
    let [taken_in, moved, drawn] = times.map(|time| time.as_secs_f64() * 1000.0);
    assert!(taken_in < 900.0 && moved < 50.0 && drawn < 80.0, "{times:?}");
}

#[test]
fn no_size_breaks_any_screen() {
    for width in (0..30).chain([39, 40, 55, 77, 78, 79, 99, 100, 101]) {
        for height in [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 25] {
            for keys in ["1", "2", "3", "3m", "\n", "t", "?", "/x(", "/"] {
                let mut state = state((width, height), 2);
                type_keys(&mut state, keys);
                text(&state);
                update(&mut state, Msg::Lost("x".repeat(200)));
                type_keys(&mut state, "jG");
                text(&state);
            }
        }
    }
}

#[test]
fn without_color_there_is_none() {
    for keys in ["1", "2", "3", "\n", "t", "?"] {
        let mut state = state((120, 20), 5);
        state.theme.color = false;
        type_keys(&mut state, keys);
        let area = Rect::new(0, 0, 120, 20);
        let mut buffer = Buffer::empty(area);
        draw(&state, &mut buffer, area);
        for cell in &buffer.content {
            assert_eq!((cell.fg, cell.bg), (Color::Reset, Color::Reset), "screen {keys}");
        }
    }
}

#[test]
fn what_is_lost_is_greyed() {
    let mut state = state((120, 20), 5);
    update(&mut state, Msg::Lost("reset".into()));
    let area = Rect::new(0, 0, 120, 20);
    let mut buffer = Buffer::empty(area);
    draw(&state, &mut buffer, area);
    let rows = layout::rows(&state);
    let number = buffer.content.iter().skip(usize::from(rows.body + 1) * 120).take(120).find(|c| c.symbol() == "3");
    assert!(number.is_some_and(|cell| cell.modifier.contains(Modifier::DIM)));
}
