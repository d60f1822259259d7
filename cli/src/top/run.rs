//! The part of `top` that waits: terminal, signals, frames, clock. Everything it learns goes through [`update`].

use crate::cluster::Cluster;
use crate::error::{Context, Error, Hint, Result};
use crate::observe::{self, Ask};
use crate::top::state::State;
use crate::top::update::{Action, Msg, update};
use crate::top::view::view;
use crossterm::cursor::Show;
use crossterm::event::{DisableMouseCapture, EnableMouseCapture, Event, EventStream};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use futures::StreamExt;
use futures::stream::BoxStream;
use mesh_api::golden::GoldenFrame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use std::io::{IsTerminal, Stdout, stdout};
use std::sync::Once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

/// The least time between two drawings: about twelve a second.
const DRAW_EVERY: Duration = Duration::from_millis(80);
/// A control plane that is silent for so long is taken for lost.
const SILENCE: Duration = Duration::from_secs(5);
/// How long opening a stream may take.
const OPENING: Duration = Duration::from_secs(10);
/// Waits between attempts to get the stream back: doubling from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// Messages that may wait for the screen.
const QUEUE: usize = 16;

/// True if there is somebody to look and to type.
pub fn has_terminal() -> bool {
    stdout().is_terminal() && std::io::stdin().is_terminal()
}

type Frames = BoxStream<'static, Result<GoldenFrame>>;

/// Shows live routes until somebody leaves. The terminal is as before afterwards, whatever happens. What cannot even
/// begin (no mesh, no permission) is an error and not a screen; what breaks later is a banner.
pub async fn run(cluster: &Cluster, ask: Ask, mut state: State) -> Result<()> {
    let first = open(cluster, &ask).await?;
    let (to_screen, mut messages) = mpsc::channel(QUEUE);
    let source = tokio::spawn(follow(cluster.clone(), ask, first, to_screen));
    let shown = show(&mut state, &mut messages).await;
    source.abort();
    shown
}

async fn show(state: &mut State, messages: &mut mpsc::Receiver<Msg>) -> Result<()> {
    let mut on_term = signal(SignalKind::terminate()).during(|| "listen for signals")?;
    let mut on_hangup = signal(SignalKind::hangup()).during(|| "listen for signals")?;
    let mut on_interrupt = signal(SignalKind::interrupt()).during(|| "listen for signals")?;
    let mut screen = Screen::open()?;
    let mut input = EventStream::new();
    let mut clock = tokio::time::interval(Duration::from_secs(1));
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
                Some(Ok(Event::Key(key))) => Msg::Key(key),
                Some(Ok(Event::Mouse(mouse))) => Msg::Mouse(mouse),
                Some(Ok(Event::Resize(width, height))) => Msg::Resize(width, height),
                Some(Ok(_)) => continue,
                // The terminal is gone.
                Some(Err(_)) | None => return Ok(()),
            },
            _ = on_term.recv() => return Ok(()),
            _ = on_hangup.recv() => return Ok(()),
            _ = on_interrupt.recv() => return Ok(()),
            () = tokio::time::sleep_until(draw_at), if stale => {
                screen.draw(state)?;
                (last_drawn, stale) = (Some(Instant::now()), false);
                continue;
            }
            Some(message) = messages.recv() => message,
            _ = clock.tick() => Msg::Tick(now_ms()),
        };
        if update(state, message) == Some(Action::Quit) {
            return Ok(());
        }
        stale = true;
    }
}

/// Opens a stream of frames, under a deadline.
async fn open(cluster: &Cluster, ask: &Ask) -> Result<Frames> {
    tokio::time::timeout(OPENING, observe::stream(cluster, ask)).await.unwrap_or_else(|_| {
        Err(Error::new(format!("no answer within {} s", OPENING.as_secs())).during("read golden metrics"))
            .hint(|| "run `meshctl check`")
    })
}

/// Frames, for as long as somebody looks: when the stream breaks, opens another.
async fn follow(cluster: Cluster, ask: Ask, first: Frames, to_screen: mpsc::Sender<Msg>) {
    let mut pause = RETRY.0;
    let mut opened = Ok(first);
    loop {
        let why = match opened {
            Err(error) => error,
            Ok(mut frames) => {
                if to_screen.send(Msg::Connected).await.is_err() {
                    return;
                }
                loop {
                    match tokio::time::timeout(SILENCE, frames.next()).await {
                        Ok(Some(Ok(frame))) => {
                            pause = RETRY.0;
                            if to_screen.send(Msg::Frame(Box::new(frame))).await.is_err() {
                                return;
                            }
                        }
                        Ok(Some(Err(error))) => break error,
                        Ok(None) => break Error::new("the control plane ended the stream"),
                        Err(_) => break Error::new(format!("no numbers for {} s", SILENCE.as_secs())),
                    }
                }
            }
        };
        if to_screen.send(Msg::Lost(why.cause().to_owned())).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
        opened = open(&cluster, &ask).await;
    }
}

/// Unix milliseconds.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The terminal in its other mode; dropping it gives the old one back.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    fn open() -> Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                before(panic);
            }));
        });
        enable_raw_mode().during(|| "take over the terminal")?;
        // From here on the guard restores, also if what follows fails.
        let terminal = Terminal::new(CrosstermBackend::new(stdout()));
        let entered = execute!(stdout(), EnterAlternateScreen, EnableMouseCapture);
        match (terminal, entered) {
            (Ok(terminal), Ok(())) => Ok(Self { terminal }),
            (Err(cause), _) | (_, Err(cause)) => {
                restore();
                Err(cause).during(|| "take over the terminal")
            }
        }
    }

    fn draw(&mut self, state: &State) -> Result<()> {
        self.terminal.draw(|frame| view(state, frame)).map(drop).during(|| "draw on the terminal")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back; harmless if it was never taken. Nothing can be done if the terminal refuses.
fn restore() {
    let _ = execute!(stdout(), DisableMouseCapture, LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
