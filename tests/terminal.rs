//! `meshctl top` on a real (pseudo) terminal: it takes the terminal over, and gives it back however it ends.
//!
//! A test opens a terminal of its own and runs the program in a session of its own on it, as a shell would. What the
//! program wrote tells which modes the screen is left in; the kernel tells the settings of the line.

mod glass;

use crate::harness::{Need, SHOP, eventually, ourselves, test};
use anyhow::{Context, Result, bail, ensure};
use glass::Glass;
use libtest_mimic::Trial;
use mesh_api::WorkloadRef;
use mesh_api::golden::{Carried, Direction, GoldenFrame, Series, SeriesKey, TlsStatus, WorkloadSeries, WorkloadStatus};
use meshctl::golden::Query;
use meshctl::top::recording::{Entry, Header, Writer};
use meshctl::top::terminal::Guard;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::Value;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    const SIZED: &[Need] = &[Need::Program("stty")];
    vec![
        test("terminal::keys_and_clicks_lead_through_the_screens", SIZED, keys_and_clicks_lead_through_the_screens),
        test("terminal::quitting_restores_it", SIZED, quitting_restores_it),
        test("terminal::signals_restore_it", SIZED, signals_restore_it),
        test("terminal::a_panic_restores_it", SIZED, a_panic_restores_it),
        test("terminal::one_that_goes_away_ends_it", SIZED, one_that_goes_away_ends_it),
        test("terminal::its_size_is_followed", SIZED, its_size_is_followed),
        test("terminal::recordings_are_shown_without_one", &[], recordings_are_shown_without_one),
        test(
            "terminal::a_live_shop_is_shown_and_recorded",
            &[Need::Namespaces, Need::Program("kubectl"), Need::Program("stty")],
            a_live_shop_is_shown_and_recorded,
        ),
    ]
}

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program that begins a session on the terminal given as the first argument and becomes the program of the others.
pub(crate) fn session_main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let (Some(terminal), Some(name)) = (args.next(), args.next()) else { return ExitCode::from(2) };
    // A session's first process gets the first terminal that it opens.
    if nix::unistd::setsid().is_err() || File::options().read(true).write(true).open(terminal).is_err() {
        return ExitCode::from(3);
    }
    let Ok(ourselves) = std::env::current_exe() else { return ExitCode::from(4) };
    // Only a failure comes back.
    drop(Command::new(ourselves).arg0(name).args(args).exec());
    ExitCode::from(5)
}

/// The program that takes the terminal over and panics.
pub(crate) fn panics_main() -> ExitCode {
    let Ok(mut guard) = Guard::open() else { return ExitCode::from(2) };
    let drawn = guard.draw(|frame| {
        let area = frame.area();
        frame.buffer_mut().set_string(area.x, area.y, "about to panic", ratatui::style::Style::new());
    });
    assert!(drawn.is_err(), "a panic on purpose");
    ExitCode::SUCCESS
}

/// A terminal with a program on it.
struct Desk {
    child: Child,
    /// The end at which somebody would sit.
    person: Option<File>,
    line: File,
    before: Termios,
    glass: Arc<Mutex<Glass>>,
    listening: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

/// Looks at what is written, until told to stop or nobody can write any more.
fn look(mut reader: File, glass: &Mutex<Glass>, stop: &AtomicBool) {
    let mut piece = [0; 4096];
    while !stop.load(Ordering::Acquire) {
        let mut ready = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        if !poll(&mut ready, PollTimeout::from(50u8)).is_ok_and(|count| count > 0) {
            continue;
        }
        let Ok(length @ 1..) = reader.read(&mut piece) else { return };
        if let Ok(mut glass) = glass.lock() {
            glass.write(&piece[..length]);
        }
    }
}

impl Desk {
    fn new<S: Into<OsString>>(program: &str, args: impl IntoIterator<Item = S>, env: &[(&str, &Path)]) -> Result<Self> {
        // Not inherited by what other tests start: a terminal goes away with its last holder.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).context("opening a terminal")?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let name = ptsname_r(&master)?;
        let line = File::options().read(true).write(true).custom_flags(OFlag::O_NOCTTY.bits()).open(&name)?;
        resize(&line, 80, 24)?;
        let before = tcgetattr(&line)?;
        let mut command = ourselves("mesh-session")?;
        command.arg(name).arg(program).args(args.into_iter().map(Into::into));
        command.env("TERM", "xterm-256color").env("LANG", "C.UTF-8").env_remove("LC_ALL").env_remove("NO_COLOR");
        command.envs(env.iter().copied());
        let end = || line.try_clone().map(Stdio::from);
        let child = command.stdin(end()?).stdout(end()?).stderr(end()?).spawn().context("starting the session")?;
        let person = File::from(OwnedFd::from(master));
        let (reader, stop) = (person.try_clone()?, Arc::new(AtomicBool::new(false)));
        let glass: Arc<Mutex<Glass>> = Arc::default();
        let (seen, stopped) = (Arc::clone(&glass), stop.clone());
        let listening = Some(std::thread::spawn(move || look(reader, &seen, &stopped)));
        Ok(Self { child, person: Some(person), line, before, glass, listening, stop })
    }

    /// What is seen.
    fn glass(&self) -> Glass {
        self.glass.lock().map(|glass| glass.clone()).unwrap_or_default()
    }

    /// Waits until a text is seen.
    fn shows(&self, text: &str) -> Result<()> {
        eventually(PATIENCE, &format!("`{text}` on the screen"), || {
            let seen = self.glass().text();
            ensure!(seen.contains(text), "what is seen:\n{seen}");
            Ok(())
        })
    }

    /// Types, and waits for what that shows.
    fn types(&mut self, keys: &str, then: &str) -> Result<()> {
        self.person.as_mut().context("nobody is there")?.write_all(keys.as_bytes())?;
        self.shows(then).with_context(|| format!("after typing {keys:?}"))
    }

    /// Types what ends the program.
    fn leaves(&mut self, keys: &str) -> Result<()> {
        self.person.as_mut().context("nobody is there")?.write_all(keys.as_bytes())?;
        let status = self.ends()?;
        ensure!(status.success(), "after {keys:?}: {status}");
        self.is_restored().with_context(|| format!("after {keys:?}"))
    }

    /// Waits until the terminal has been taken over.
    fn is_taken(&self) -> Result<()> {
        eventually(PATIENCE, "the terminal taken over", || {
            ensure!(tcgetattr(&self.line)? != self.before, "the line is as before");
            let glass = self.glass();
            ensure!(glass.is_on("1049") && glass.is_on("1006"), "modes are {:?}", glass.modes);
            Ok(())
        })
    }

    fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// Closes the window: nobody sits at the terminal any more.
    fn goes_away(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(listening) = self.listening.take() {
            let _ = listening.join();
        }
        self.person = None;
    }

    /// Waits for the end.
    fn ends(&mut self) -> Result<ExitStatus> {
        eventually(PATIENCE, "the program's end", || self.child.try_wait()?.context("it still runs"))
    }

    /// Everything must be as it was before.
    fn is_restored(&self) -> Result<()> {
        ensure!(tcgetattr(&self.line)? == self.before, "the line's settings are not what they were");
        eventually(PATIENCE, "the screen's old modes", || {
            let modes = self.glass().modes;
            // The alternate screen and the mouse are off, the cursor is on.
            for (mode, wanted) in [("1049", false), ("1000", false), ("1002", false), ("1006", false), ("25", true)] {
                ensure!(modes.get(mode) == Some(&wanted), "mode {mode} was left at {:?}", modes.get(mode));
            }
            Ok(())
        })
    }
}

/// Gives a terminal so many columns and rows.
fn resize(line: &File, columns: u16, rows: u16) -> Result<()> {
    let (columns, rows) = (columns.to_string(), rows.to_string());
    let done = Command::new("stty").args(["cols", &columns, "rows", &rows]).stdin(line.try_clone()?).status()?;
    ensure!(done.success(), "stty: {done}");
    Ok(())
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.goes_away();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A recording of so many seconds: web calls catalog.
fn recording(path: &Path, seconds: u64) -> Result<()> {
    let workload = |name: &str| WorkloadRef::new("shop", "deployment", name);
    let status = |name: &str| WorkloadStatus {
        workload: workload(name),
        pods: 1,
        meshed_pods: 1,
        connected: 1,
        services: vec![name.to_owned()],
        identities: Vec::new(),
        pod_list: Vec::new(),
    };
    let mut series = Series { requests: 10, successes: 9, ..Series::default() };
    (0..10).for_each(|request| series.latency.record_us(1000 + request * 100));
    let key = SeriesKey {
        direction: Direction::Inbound,
        carried: Carried::Http,
        peer: workload("web"),
        service: None,
        port: 80,
        route: "/products/{id}".into(),
        method: "GET".into(),
        tls: TlsStatus::Mutual,
    };
    let mut writer = Writer::create(path, &Header::of("test", &Query::default(), 10))?;
    for second in 1..=seconds {
        let outbound = SeriesKey { direction: Direction::Outbound, peer: workload("catalog"), ..key.clone() };
        let seen =
            |name: &str, key| WorkloadSeries { workload: workload(name), pod: None, key, series: series.clone() };
        let frame = GoldenFrame {
            at_ms: second * 1000,
            span_ms: 1000,
            workloads: vec![status("web"), status("catalog")],
            series: vec![seen("catalog", key.clone()), seen("web", outbound)],
            silent_proxies: 0,
            senseless: Vec::new(),
            endpoints: Vec::new(),
            unreachable: Vec::new(),
        };
        writer.add(Entry { at_ms: second * 1000, golden: Some(Box::new(frame)), ..Entry::default() })?;
    }
    writer.finish()?;
    Ok(())
}

/// `top` on a recording of a minute.
fn top() -> Result<(Desk, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.rec");
    recording(&path, 60)?;
    let desk = Desk::new("meshctl", ["top".into(), "--replay".into(), path.into_os_string()], &[])?;
    desk.is_taken()?;
    desk.shows("/products/{id}")?;
    Ok((desk, folder))
}

fn keys_and_clicks_lead_through_the_screens() -> Result<()> {
    let (mut desk, _folder) = top()?;
    desk.types("2", "[2 workloads]")?;
    desk.types("3", "[3 edges]")?;
    desk.types("m", "FROM")?;
    desk.types("\r", "STATUS")?;
    // To the end of the recording, and back.
    desk.types("\x1b[F", "end 0:59/0:59")?;
    desk.types("\x1b[D", "paused 0:54/0:59")?;
    // A click, as terminals report it: button, column, row.
    desk.types("\x1b[<0;4;3M", "[1 routes]")?;
    desk.types("/rps>fast", "a number belongs here, as in rps>10")?;
    desk.types("\x15nothing", "None of 1 routes")?;
    desk.types("\x1b", "/products/{id}")?;
    desk.types("?", "turn the order round")?;
    desk.leaves("q")
}

fn quitting_restores_it() -> Result<()> {
    for key in ["q", "\x03"] {
        top()?.0.leaves(key)?;
    }
    Ok(())
}

fn signals_restore_it() -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let (mut desk, _folder) = top()?;
        kill(desk.pid()?, signal)?;
        desk.ends()?;
        desk.is_restored().with_context(|| format!("after {signal}"))?;
    }
    Ok(())
}

fn a_panic_restores_it() -> Result<()> {
    let mut desk = Desk::new::<&str>("mesh-panics", [], &[])?;
    let status = desk.ends()?;
    ensure!(!status.success(), "{status}");
    desk.is_restored()?;
    eventually(PATIENCE, "the panic's message outside of the alternate screen", || {
        let outside = desk.glass().outside;
        ensure!(outside.contains("a panic on purpose"), "{outside:?}");
        Ok(())
    })
}

fn one_that_goes_away_ends_it() -> Result<()> {
    let (mut desk, _folder) = top()?;
    desk.goes_away();
    desk.ends()?;
    Ok(())
}

fn its_size_is_followed() -> Result<()> {
    let (mut desk, _folder) = top()?;
    ensure!(!desk.glass().text().contains("pods meshed"), "80 columns have no room for that");
    resize(&desk.line, 120, 40)?;
    desk.shows("pods meshed")?;
    resize(&desk.line, 30, 6)?;
    eventually(PATIENCE, "a small screen", || {
        let text = desk.glass().text();
        ensure!(text.lines().count() <= 6 && text.contains("WORK"), "{text}");
        Ok(())
    })?;
    desk.leaves("q")
}

fn recordings_are_shown_without_one() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.rec");
    recording(&path, 60)?;
    let top = |path: &Path, args: &[&str]| {
        let mut top = ourselves("meshctl")?;
        top.args(["top", "--replay"]).arg(path).args(args);
        crate::harness::run_with_input(top, "")
    };
    let rows: Vec<Value> = serde_json::from_str(&top(&path, &["-o", "json"])?.ok()?.stdout)?;
    ensure!(rows.len() == 1 && rows[0]["rps"] == 10.0 && rows[0]["success_rate"] == 0.9, "{rows:?}");
    top(&path, &[])?.ok()?.says("/products/{id}")?;
    top(&path, &["--screen", "edges", "--screenshot", "100x20"])?.ok()?.says("10.0/s 90.0%")?;
    let whole = std::fs::read(&path)?;
    std::fs::write(&path, &whole[..whole.len() / 2])?;
    let cut = top(&path, &["-o", "json"])?.exits(1)?;
    ensure!(cut.stdout.contains("/products/{id}"), "what can be read is shown: {}", cut.stdout);
    cut.complains("the recording breaks off here")?;
    std::fs::write(&path, "no recording")?;
    top(&path, &[])?.exits(2)?.complains("not a recording of meshctl")?;
    Ok(())
}

fn a_live_shop_is_shown_and_recorded() -> Result<()> {
    let shop = SHOP.get()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("live.rec");
    let args = ["top", "-n", "shop", "--record"].map(OsString::from).into_iter().chain([path.clone().into_os_string()]);
    let mut desk = Desk::new("meshctl", args, &[("KUBECONFIG", shop.kubeconfig.as_path())])?;
    desk.is_taken()?;
    desk.shows("catalog")?;
    desk.shows("live")?;
    // The shop's map: whom the web shop calls, and who calls it.
    desk.types("3", "[3 edges]")?;
    desk.shows("ledger")?;
    desk.types("1", "[1 routes]")?;
    desk.types("\r", "LATENCY")?;
    desk.types("G", "ENDPOINTS")?;
    desk.types("t", "[4 tap]")?;
    desk.shows("seen")?;
    desk.shows("Z ")?;
    desk.leaves("q")?;
    let mut replay = ourselves("meshctl")?;
    replay.args(["top", "--screenshot", "120x40", "--screen", "workloads", "--replay"]).arg(&path);
    let screen = crate::harness::run_with_input(replay, "")?.ok()?.stdout;
    for name in ["web", "catalog", "cart", "ledger", "load"] {
        ensure!(screen.contains(name), "{name} is not recorded:\n{screen}");
    }
    let rows = |command: &[&str]| -> Result<Vec<Value>> {
        let ran = shop.meshctl(command)?.ok()?;
        match serde_json::from_str(&ran.stdout)? {
            Value::Array(rows) => Ok(rows),
            other => bail!("not an array: {other}"),
        }
    };
    let (top, stat) =
        (rows(&["top", "-n", "shop", "-o", "json"])?, rows(&["stat", "--routes", "-n", "shop", "-o", "json"])?);
    let names = |rows: &[Value]| -> Vec<String> {
        rows.iter().map(|row| format!("{} {} {}", row["name"], row["method"], row["route"])).collect()
    };
    ensure!(names(&top) == names(&stat), "{:?} is not {:?}", names(&top), names(&stat));
    Ok(())
}
