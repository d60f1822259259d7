//! `meshctl top`: the live screens; without a terminal, one table. Also of a recording instead of a cluster.

use crate::args::{Global, Top, TopScreen};
use crate::cluster::Cluster;
use crate::commands::stat;
use crate::error::{Outcome, Result};
use crate::golden::Query;
use crate::observe::{self, Ask};
use crate::output::{Printer, RowFormat};
use crate::resource::Resource;
use crate::selector::select;
use crate::top::keys::Command;
use crate::top::recording::{Header, Recording, Writer};
use crate::top::replay::Player;
use crate::top::run::{self, has_terminal};
use crate::top::state::{Replay, Screen, State};
use crate::top::theme::Theme;
use crate::top::update::{Msg, command, update};
use crate::top::view;
use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

/// How long the control plane may take to answer once.
const DEADLINE: Duration = Duration::from_secs(10);

/// Opens the screens, or prints one table.
pub async fn run(global: &Global, args: &Top, printer: &Printer) -> Result<Outcome> {
    match &args.replay {
        Some(file) => replay(file, args, printer).await,
        None => watch(global, args, printer).await,
    }
}

async fn watch(global: &Global, args: &Top, printer: &Printer) -> Result<Outcome> {
    let of = Resource::read(&args.resource)?;
    let cluster = Cluster::connect(global).await?;
    let namespace = cluster.scope(&args.namespaces);
    let only = match &args.selector {
        Some(labels) => Some(select(&cluster, &of, namespace.as_deref(), labels).await?),
        None => None,
    };
    let query = Query { of, namespace, only, routes: true, ..Query::default() };
    if args.output.is_some() || (!has_terminal() && args.record.is_none()) {
        let frame = observe::once(&cluster, &stat::ask(&query, args.window), DEADLINE).await?;
        let format = args.output.unwrap_or(RowFormat::Table);
        stat::print(&VecDeque::from([frame]), &query, format, printer)?;
        return Ok(Outcome::Well);
    }
    let name = cluster.server.trim_start_matches("https://").to_owned();
    let theme = theme(printer);
    let mut state = State::new(&name, query.clone(), args.window, theme);
    begin_with(&mut state, args.screen);
    let ask = Ask { frames: None, ..stat::ask(&query, args.window) };
    let Some(file) = &args.record else {
        run::run(&cluster, ask, state, None).await?;
        return Ok(Outcome::Well);
    };
    let writer = Writer::create(file, &Header::of(&name, &query, args.window.as_secs()))?;
    // Who reads a recording cannot ask for more: it tells pods apart from the beginning.
    run::run(&cluster, Ask { pods: true, ..ask }, state, Some(writer)).await?;
    let size = std::fs::metadata(file).map(|file| file.len()).unwrap_or_default();
    printer.note(&format!("Recorded {} kB:  meshctl top --replay {}", size.div_ceil(1000), file.display()));
    Ok(Outcome::Well)
}

/// Opens the screens on a cluster.
pub async fn open(cluster: &Cluster, name: &str, query: Query, window: Duration, printer: &Printer) -> Result<()> {
    let ask = Ask { frames: None, ..stat::ask(&query, window) };
    run::run(cluster, ask, State::new(name, query, window, theme(printer)), None).await
}

async fn replay(file: &Path, args: &Top, printer: &Printer) -> Result<Outcome> {
    let recording = Recording::open(file)?;
    let damage = recording.damage.clone();
    let (mut state, mut player) = at_beginning(recording, file, args, theme(printer));
    if let Some((width, height)) = args.screenshot {
        // The same everywhere, whatever terminal there is or isn't.
        state.theme = Theme { color: false, unicode: true };
        play_to_end(&mut state, &mut player);
        printer.data(&screenshot(&mut state, args.screen, (width, height)))?;
    } else if args.output.is_some() || !has_terminal() {
        play_to_end(&mut state, &mut player);
        let query = Query { tcp_routes: false, ..state.query.clone() };
        let format = args.output.unwrap_or(RowFormat::Table);
        stat::print(state.account.window.frames(), &query, format, printer)?;
    } else {
        begin_with(&mut state, args.screen);
        run::replay(player, state).await?;
        return Ok(Outcome::Well);
    }
    if let Some(damage) = damage {
        printer.warn(&format!("{}: {damage}", file.display()));
        return Ok(Outcome::Problems);
    }
    Ok(Outcome::Well)
}

/// A recording, before it is played.
fn at_beginning(recording: Recording, file: &Path, args: &Top, theme: Theme) -> (State, Player) {
    let header = &recording.header;
    let of = Resource::read_one(&header.resource).unwrap_or(Resource::ALL);
    let namespace = args.namespaces.namespace.clone().or_else(|| header.namespace.clone());
    let query = Query { of, namespace, routes: true, ..Query::default() };
    let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let window = Duration::from_secs(header.window_s.clamp(1, observe::MAX_WINDOW.as_secs()));
    let mut state = State::new(&header.cluster, query, window, theme);
    state.replay = Some(Replay {
        name,
        from_ms: recording.from_ms,
        to_ms: recording.to_ms,
        speed: 1.0,
        playing: true,
        damage: recording.damage.clone(),
    });
    (state, Player::new(recording))
}

fn play_to_end(state: &mut State, player: &mut Player) {
    let to_ms = player.recording().to_ms;
    for message in player.seek(to_ms) {
        update(state, message);
    }
}

/// The screen of a recording that has been played, as text.
fn screenshot(state: &mut State, screen: TopScreen, (width, height): (u16, u16)) -> String {
    update(state, Msg::Resize(width, height));
    begin_with(state, screen);
    view::text(state)
}

/// Shows a screen; details are of the busiest route, as soon as it is known.
fn begin_with(state: &mut State, screen: TopScreen) {
    match screen {
        TopScreen::Routes => command(state, Command::Show(Screen::Routes)),
        TopScreen::Workloads => command(state, Command::Show(Screen::Workloads)),
        TopScreen::Edges => command(state, Command::Show(Screen::Edges)),
        TopScreen::Details if state.lines.is_empty() => command(state, Command::Show(Screen::Details)),
        TopScreen::Details => command(state, Command::Open),
    };
}

fn theme(printer: &Printer) -> Theme {
    Theme::of_environment(printer.colors(), |variable| std::env::var(variable).ok())
}

#[cfg(test)]
#[path = "top_tests.rs"]
mod tests;
