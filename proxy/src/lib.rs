//! The data plane: one proxy beside every application instance.
//!
//! Reading order: [`run`] starts threads and listeners; [`inbound`] and [`outbound`] find out where a connection goes
//! and what it speaks ([`detect`]); [`guard`] refuses what two parsers could read differently ([`framing`], [`head`]);
//! [`request`] is the straight line of every HTTP request and [`tcp`] of everything else; [`upstream`], [`pool`],
//! [`streams`], [`mux`], [`balance`], [`breaker`], [`traffic`] and [`tls`] (with [`credentials`]) are the way to an endpoint, [`upload`] and [`body`] what passes there
//! and back; [`state`] is what the proxy knows, told by [`client`] (control) or [`file`](mod@file);
//! [`record`] and [`golden`] account for everything, once; [`drain`] ends it without losing a request; [`redirect`]
//! brings connections here in the first place, with rules written by [`nft`], in CNI mode for the node by [`cni`]. Every bound is in [`limits`].

pub mod access;
pub mod access_log;
pub mod admin;
pub mod application;
pub mod args;
pub mod away;
pub mod balance;
pub mod body;
pub mod breaker;
pub mod carriage;
pub mod client;
pub mod cni;
pub mod condition;
pub mod course;
pub mod credentials;
pub mod detect;
pub mod drain;
pub mod egress;
pub mod error;
pub mod fault;
pub mod file;
pub mod filter;
pub mod framing;
pub mod golden;
pub mod group;
pub mod grpc;
pub mod guard;
pub mod head;
pub mod headers;
pub mod identity;
pub mod inbound;
pub mod jwt;
pub mod learned;
pub mod ledger;
pub mod limits;
pub mod linger;
pub mod listen;
pub mod memory;
pub mod metrics;
pub mod mirror;
pub mod mux;
pub mod nft;
pub mod otlp;
pub mod outbound;
pub mod patience;
pub mod pool;
pub mod proxy;
pub mod rate_limit;
pub mod readiness;
pub mod record;
pub mod redirect;
pub mod request;
pub mod retry;
pub mod route;
pub mod run;
pub mod serve;
pub mod session;
pub mod state;
pub mod story;
pub mod stream;
pub mod streams;
pub mod tap;
pub mod target;
pub mod tcp;
pub mod timeout;
pub mod tls;
pub mod told;
pub mod trace;
pub mod traffic;
pub mod upload;
pub mod upstream;
pub mod weight;

use crate::args::{Args, Command, RunArgs};
use anyhow::Context;
use clap::Parser;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The program `mesh-proxy`; `args` include the program's name.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args = args.peekable();
    if args.peek().is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new(mesh_api::names::CNI_PLUGIN))) {
        return cni::main();
    }
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Writing help or an error to a closed terminal cannot be helped.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let Args { command, run } = args;
    log_to_stderr(&run.log);
    let done = match command {
        Some(Command::Redirect(command)) if command.check => {
            return match redirect::check::run(&command.redirect) {
                Ok(()) => ExitCode::SUCCESS,
                Err(unproved) => {
                    tracing::error!("{unproved}");
                    ExitCode::from(unproved.exit_code())
                }
            };
        }
        Some(Command::Redirect(command)) => redirect::run(&command.redirect),
        Some(Command::CniInstall(install)) => cni::install(&install),
        Some(Command::Await(wait)) => readiness::run(&wait),
        None => carry(run),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Carries traffic until SIGTERM or SIGINT, or only checks the configuration file.
fn carry(args: RunArgs) -> anyhow::Result<()> {
    // Another part of the same process may have chosen the (same) provider already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if let Some(path) = args.to_check() {
        let loaded = file::load(path)?;
        return writeln!(std::io::stdout(), "{} is valid: {}", path.display(), loaded.summary())
            .context("cannot write to the standard output");
    }
    let files = raise_file_limit();
    let bind = |port: u16| listen::bind_any(port).with_context(|| format!("cannot listen on port {port}"));
    let listeners = run::Listeners {
        inbound: bind(args.inbound_port)?,
        outbound: bind(args.outbound_port)?,
        admin: bind(args.admin_port)?,
    };
    let mut settings = args.settings()?;
    // Every connection has another side.
    settings.max_connections = settings.max_connections.min((files.saturating_sub(limits::OTHER_FILES) / 2).max(1));
    run::run(settings, listeners, async {
        if let Err(error) = told_to_end().await {
            tracing::error!(%error, "cannot wait for signals; running until killed");
            std::future::pending::<()>().await;
        }
    })
}

async fn told_to_end() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn log_to_stderr(filter: &str) {
    let parsed = filter.parse::<Targets>();
    let targets = parsed.as_ref().map_or_else(|_| Targets::new().with_default(tracing::Level::INFO), Clone::clone);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    // In a process with several parts the first one's subscriber stays.
    let _ = tracing_subscriber::registry().with(targets).with(layer).try_init();
    if let Err(error) = parsed {
        tracing::warn!(%error, filter, "MESH_LOG cannot be read; logging at info");
    }
}

/// As many open files as we may have; returns how many.
fn raise_file_limit() -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return usize::MAX };
    let mut got = soft;
    if soft < hard {
        match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
            Ok(()) => got = hard,
            Err(error) => tracing::debug!(%error, "the limit of open files stays at {soft}"),
        }
    }
    usize::try_from(got).unwrap_or(usize::MAX)
}
