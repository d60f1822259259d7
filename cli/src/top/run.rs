//! The loop of `top`: everything that is learned goes through [`update`], everything that is seen comes from [`view`].

use crate::cluster::Cluster;
use crate::error::{Context, Result};
use crate::observe::Ask;
use crate::top::recording::{Entry, Writer};
use crate::top::replay::Player;
use crate::top::source::{Extras, follow, open, wants};
use crate::top::state::{Recorded, State};
use crate::top::terminal::Guard;
use crate::top::update::{Action, Msg, update};
use crate::top::view::view;
use crossterm::event::{Event, EventStream};
use futures::StreamExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{Instant, MissedTickBehavior};

/// The least time between two drawings: about twelve a second.
const DRAW_EVERY: Duration = Duration::from_millis(80);
/// How often the clock is looked at.
const TICK_EVERY: Duration = Duration::from_secs(1);
/// How often a recording is played on.
const PLAY_EVERY: Duration = Duration::from_millis(100);
/// Messages that may wait for the screen.
const QUEUE: usize = 64;

pub use crate::top::terminal::is_there as has_terminal;

/// Where messages come from.
enum Source {
    Cluster { cluster: Box<Cluster>, extras: Box<Extras>, to_screen: Sender<Msg>, writer: Option<Box<Writer>> },
    Recording(Box<Player>),
}

/// Shows the mesh until somebody leaves. The terminal is as before afterwards, whatever happens. What cannot even
/// begin (no mesh, no permission) is an error and not a screen; what breaks later is a notice.
pub async fn run(cluster: &Cluster, ask: Ask, mut state: State, writer: Option<Writer>) -> Result<()> {
    let first = open(cluster, &ask).await?;
    let (to_screen, mut messages) = mpsc::channel(QUEUE);
    let frames = tokio::spawn(follow(cluster.clone(), ask, first, to_screen.clone()));
    let cluster = Box::new(cluster.clone());
    let mut source = Source::Cluster { cluster, extras: Box::default(), to_screen, writer: writer.map(Box::new) };
    let shown = show(&mut state, &mut messages, &mut source).await;
    frames.abort();
    if let Source::Cluster { writer: Some(writer), .. } = source {
        writer.finish()?;
    }
    shown
}

/// Shows a recording until somebody leaves.
pub async fn replay(player: Player, mut state: State) -> Result<()> {
    // Nothing is sent: a recording is played by the loop itself. The sender is kept so that the channel stays open.
    let (_keep, mut messages) = mpsc::channel(1);
    show(&mut state, &mut messages, &mut Source::Recording(Box::new(player))).await
}

/// Signals that end the screen in good order.
struct Ending([Signal; 3]);

impl Ending {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).during(|| "listen for signals");
        let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()];
        let [one, two, three] = kinds.map(listen);
        Ok(Self([one?, two?, three?]))
    }

    async fn recv(&mut self) {
        let [one, two, three] = &mut self.0;
        tokio::select! {
            _ = one.recv() => {}
            _ = two.recv() => {}
            _ = three.recv() => {}
        }
    }
}

async fn show(state: &mut State, messages: &mut Receiver<Msg>, source: &mut Source) -> Result<()> {
    let mut ending = Ending::listen()?;
    let mut screen = Guard::open()?;
    let mut input = EventStream::new();
    let mut clock = tokio::time::interval(match source {
        Source::Cluster { .. } => TICK_EVERY,
        Source::Recording(_) => PLAY_EVERY,
    });
    clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
    if let Ok((width, height)) = crossterm::terminal::size() {
        update(state, Msg::Resize(width, height));
    }
    let mut last_drawn: Option<Instant> = None;
    let mut stale = true;
    loop {
        let draw_at = last_drawn.map_or_else(Instant::now, |last| last + DRAW_EVERY);
        // Keys before numbers: a flood of frames must not make the screen deaf.
        let message = tokio::select! {
            biased;
            event = input.next() => match event {
                Some(Ok(Event::Key(key))) => Some(Msg::Key(key)),
                Some(Ok(Event::Mouse(mouse))) => Some(Msg::Mouse(mouse)),
                Some(Ok(Event::Resize(width, height))) => Some(Msg::Resize(width, height)),
                Some(Ok(_)) => None,
                // The terminal is gone.
                Some(Err(_)) | None => return Ok(()),
            },
            () = ending.recv() => return Ok(()),
            () = tokio::time::sleep_until(draw_at), if stale => {
                screen.draw(|frame| view(state, frame))?;
                (last_drawn, stale) = (Some(Instant::now()), false);
                continue;
            }
            Some(message) = messages.recv() => Some(message),
            _ = clock.tick() => source.tick(state),
        };
        let Some(message) = message else { continue };
        source.record(state, &message);
        let action = update(state, message);
        stale = true;
        match action {
            Some(Action::Quit) => return Ok(()),
            Some(Action::Seek(to)) => source.seek(state, to),
            None => {}
        }
        source.keep(state);
    }
}

impl Source {
    /// Time has passed.
    fn tick(&mut self, state: &mut State) -> Option<Msg> {
        let Source::Recording(player) = self else { return Some(Msg::Tick(now_ms())) };
        let replay = state.replay.as_ref().filter(|replay| replay.playing)?;
        // Speeds are small and positive: nothing is lost by the conversion.
        let passed = (PLAY_EVERY.as_millis() as f64 * replay.speed) as u64;
        let mut messages = player.advance(player.at_ms() + passed);
        let last = messages.pop();
        for message in messages {
            update(state, message);
        }
        last
    }

    fn seek(&mut self, state: &mut State, to_ms: u64) {
        if let Source::Recording(player) = self {
            for message in player.seek(to_ms) {
                update(state, message);
            }
        }
    }

    /// Opens and ends streams as the screen needs them.
    fn keep(&mut self, state: &State) {
        if let Source::Cluster { cluster, extras, to_screen, .. } = self {
            extras.keep(cluster, state.window, wants(state), to_screen);
        }
    }

    /// Writes down what has arrived. A recording that fails is told and given up; the screen goes on.
    fn record(&mut self, state: &mut State, message: &Msg) {
        let Source::Cluster { writer: place, .. } = self else { return };
        let (Some(writer), Some(entry)) = (place.as_mut(), entry(state, message)) else { return };
        let recorded = writer.add(entry);
        let told = match recorded {
            Ok(bytes) => Recorded::Bytes(bytes),
            Err(error) => {
                *place = None;
                Recorded::Failed(error.to_string())
            }
        };
        update(state, Msg::Recorded(told));
    }
}

/// What a recording says of a message.
fn entry(state: &State, message: &Msg) -> Option<Entry> {
    let now = Entry { at_ms: now_ms(), ..Entry::default() };
    Some(match message {
        Msg::Frame(frame) => Entry { golden: Some(frame.clone()), ..now },
        Msg::Connected => Entry { connected: Some(true), ..now },
        Msg::Lost(why) => Entry { lost: Some(why.clone()), ..now },
        Msg::TapConnected => Entry { tapped: Some(state.tap.subject.clone()?), ..now },
        Msg::Tapped(message) => Entry { tap: Some(message.clone()), ..now },
        _ => return None,
    })
}

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
