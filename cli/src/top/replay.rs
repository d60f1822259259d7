//! Plays a recording: turns the passing of its time into the messages that arrived then. Pure.

use crate::top::recording::{Entries, Entry, Recording};
use crate::top::update::Msg;

/// How far back numbers and sparklines reach: so much is replayed before the place sought, milliseconds.
const LOOK_BACK_MS: u64 = 75_000;

/// A recording and how far it has been played.
pub struct Player {
    recording: Recording,
    entries: Entries,
    /// What comes next.
    next: Option<Entry>,
    /// The time it is in the recording, Unix milliseconds.
    at_ms: u64,
}

impl Player {
    /// At the beginning; nothing is played yet.
    pub fn new(recording: Recording) -> Self {
        let (mut entries, at_ms) = (recording.from(recording.from_ms), recording.from_ms);
        Self { next: entries.next(), entries, recording, at_ms }
    }

    /// The recording.
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// The time it is in the recording, Unix milliseconds.
    pub fn at_ms(&self) -> u64 {
        self.at_ms
    }

    /// Plays on to a time.
    pub fn advance(&mut self, to_ms: u64) -> Vec<Msg> {
        self.at_ms = to_ms.clamp(self.at_ms, self.recording.to_ms);
        let mut messages = Vec::new();
        while let Some(entry) = self.next.take_if(|entry| entry.at_ms <= self.at_ms) {
            self.next = self.entries.next();
            // Its own time first: a connection was lost then, not now.
            messages.push(Msg::Tick(entry.at_ms));
            messages.extend(said(entry));
        }
        messages.push(Msg::Tick(self.at_ms));
        messages
    }

    /// Goes to a time: everything is counted anew from a little before it, unless that is near ahead.
    pub fn seek(&mut self, to_ms: u64) -> Vec<Msg> {
        let to_ms = to_ms.clamp(self.recording.from_ms, self.recording.to_ms);
        if to_ms > self.at_ms && to_ms - self.at_ms <= LOOK_BACK_MS {
            return self.advance(to_ms);
        }
        self.entries = self.recording.from(to_ms.saturating_sub(LOOK_BACK_MS));
        self.next = self.entries.next();
        self.at_ms = self.recording.from_ms;
        let mut messages = vec![Msg::Rewound];
        messages.extend(self.advance(to_ms));
        messages
    }
}

/// What an entry says.
fn said(entry: Entry) -> Vec<Msg> {
    let Entry { at_ms: _, golden, tap, tapped, connected, lost } = entry;
    let mut messages = Vec::new();
    messages.extend(connected.filter(|connected| *connected).map(|_| Msg::Connected));
    messages.extend(golden.map(Msg::Frame));
    messages.extend(lost.map(Msg::Lost));
    messages.extend(tapped.map(Msg::TapOf));
    messages.extend(tap.map(Msg::Tapped));
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Query;
    use crate::golden::tests::{SHOP, frame};
    use crate::top::recording::{Header, Writer};
    use crate::top::state::{Link, Replay, State};
    use crate::top::theme::Theme;
    use crate::top::update::{Action, update};
    use crossterm::event::{KeyCode, KeyEvent};
    use std::time::Duration;

    /// Three minutes of the shop, with a lost connection in the second one.
    fn player() -> Player {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop");
        let mut writer = Writer::create(&path, &Header::of("demo", &Query::default(), 10)).unwrap();
        for second in 1..=180u64 {
            let entry = Entry { at_ms: second * 1000, ..Entry::default() };
            let golden = Some(Box::new(frame(SHOP, second * 1000, 1000)));
            let entry = match second {
                90 => Entry { lost: Some("reset".into()), ..entry },
                91..=99 => continue,
                _ => Entry { golden, connected: (second == 100).then_some(true), ..entry },
            };
            writer.add(entry).unwrap();
        }
        writer.finish().unwrap();
        Player::new(Recording::open(&path).unwrap())
    }

    fn state(player: &Player) -> State {
        let theme = Theme { color: true, unicode: true };
        let mut state = State::new("demo", Query::default(), Duration::from_secs(10), theme);
        let (from_ms, to_ms) = (player.recording().from_ms, player.recording().to_ms);
        state.replay = Some(Replay { name: "shop".into(), from_ms, to_ms, speed: 1.0, playing: true, damage: None });
        state
    }

    fn take(state: &mut State, messages: Vec<Msg>) {
        for message in messages {
            update(state, message);
        }
    }

    #[test]
    fn seeking_shows_what_playing_shows() {
        let mut played = player();
        let mut by_playing = state(&played);
        for at in (1000..=130_000).step_by(700) {
            take(&mut by_playing, played.advance(at));
        }
        take(&mut by_playing, played.advance(130_000));
        let mut sought = player();
        let mut by_seeking = state(&sought);
        take(&mut by_seeking, sought.seek(170_000));
        take(&mut by_seeking, sought.seek(130_000));
        assert_eq!(by_seeking.lines, by_playing.lines);
        assert_eq!((by_seeking.now_ms, &by_seeking.link), (130_000, &Link::Live));
    }

    #[test]
    fn a_lost_connection_is_seen_again() {
        let mut player = player();
        let mut state = state(&player);
        take(&mut state, player.seek(95_000));
        assert_eq!(state.link, Link::Lost { since_ms: 90_000, why: "reset".into() });
        take(&mut state, player.seek(100_000));
        assert_eq!(state.link, Link::Live);
    }

    #[test]
    fn keys_seek_and_change_the_speed_and_the_end_is_the_end() {
        let mut player = player();
        let mut state = state(&player);
        take(&mut state, player.advance(50_000));
        let mut press = |state: &mut State, code| {
            let action = update(state, Msg::Key(KeyEvent::from(code)));
            if let Some(Action::Seek(to)) = action {
                take(state, player.seek(to));
            }
            state.now_ms
        };
        assert_eq!(press(&mut state, KeyCode::Left), 45_000);
        assert_eq!(press(&mut state, KeyCode::Right), 50_000);
        assert_eq!(press(&mut state, KeyCode::Home), 1000);
        assert_eq!(press(&mut state, KeyCode::Left), 1000);
        assert!(state.replay.as_ref().unwrap().playing);
        assert_eq!(press(&mut state, KeyCode::End), 180_000);
        assert!(!state.replay.as_ref().unwrap().playing);
        assert_eq!(press(&mut state, KeyCode::Char(' ')), 1000, "going on from the end begins anew");
        assert!(state.replay.as_ref().unwrap().playing);
        press(&mut state, KeyCode::Char('>'));
        press(&mut state, KeyCode::Char('>'));
        assert_eq!(state.replay.as_ref().unwrap().speed, 4.0);
        for _ in 0..9 {
            press(&mut state, KeyCode::Char('<'));
        }
        assert_eq!(state.replay.as_ref().unwrap().speed, 0.25);
    }
}
