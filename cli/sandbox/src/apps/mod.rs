//! The demo shop: five small programs that know nothing of a mesh.
//!
//! `web` (HTTP/1.1) answers the customers and calls `catalog` (HTTP/1.1), `cart` (gRPC) and `ledger` (lines over
//! TCP); `load` plays the customers. They find each other by cluster DNS, over plain sockets. Latencies and failures
//! follow from request counts, not from chance, so that what a mesh measures here is known beforehand: reviews take
//! 80 to 150 ms, one recommendation in 33 fails.

mod cart;
mod catalog;
mod client;
mod grpc;
mod ledger;
mod load;
mod serve;
mod steady;
mod web;

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The shop as ordinary Kubernetes objects.
pub const SHOP_YAML: &str = include_str!("shop.yaml");

/// One of the demo shop's programs
#[derive(Debug, Parser)]
#[command(name = "mesh-demo", version, disable_help_subcommand = true)]
struct Args {
    #[command(subcommand)]
    app: App,
}

#[derive(Debug, Subcommand)]
enum App {
    /// The shop's front: HTTP/1.1, calls all others
    Web(web::Args),
    /// Products, reviews and recommendations: HTTP/1.1
    Catalog(Listen),
    /// Shopping carts: gRPC
    Cart(Listen),
    /// Payments: lines over TCP
    Ledger(Listen),
    /// Customers: sends requests to web at a steady rate
    Load(load::Args),
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Listen {
    /// Address to listen on
    #[arg(long, env = "SHOP_LISTEN", default_value = "0.0.0.0:8080")]
    pub(crate) listen: SocketAddr,
}

/// `mesh-demo web|catalog|cart|ledger|load`; returns when the program was told to stop.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            // Nothing can be done about a closed stderr.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHOP_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // A subscriber that is there already, as in tests, is as good.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .try_init();
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run(args.app)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!("{e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(app: App) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    match app {
        App::Web(args) => web::run(bind(&args.listen).await?, &args, stop).await,
        App::Catalog(listen) => catalog::run(bind(&listen).await?, stop).await,
        App::Cart(listen) => cart::run(bind(&listen).await?, stop).await,
        App::Ledger(listen) => ledger::run(bind(&listen).await?, stop).await,
        App::Load(args) => load::run(&args, stop).await,
    }
    Ok(())
}

async fn bind(listen: &Listen) -> anyhow::Result<TcpListener> {
    let Listen { listen } = listen;
    let listener = TcpListener::bind(listen).await.map_err(|e| anyhow::anyhow!("could not listen on {listen}: {e}"))?;
    tracing::info!(address = %listen, "listening");
    Ok(listener)
}

/// A token that is cancelled by SIGTERM or SIGINT.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        token.cancel();
    });
    Ok(stop)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
