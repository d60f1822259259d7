//! `meshctl top`: live routes; without a terminal, one table.

use crate::args::{Global, Top};
use crate::cluster::Cluster;
use crate::commands::stat;
use crate::error::{Outcome, Result};
use crate::golden::Query;
use crate::observe::{self, Ask};
use crate::output::{Printer, RowFormat};
use crate::resource::Resource;
use crate::selector::select;
use crate::top::run::{has_terminal, run as show};
use crate::top::state::State;
use crate::top::theme::Theme;
use std::collections::VecDeque;
use std::time::Duration;

/// How long the control plane may take to answer once.
const DEADLINE: Duration = Duration::from_secs(10);

/// Opens the screen, or prints one table.
pub async fn run(global: &Global, args: &Top, printer: &Printer) -> Result<Outcome> {
    let of = Resource::read(&args.resource)?;
    let cluster = Cluster::connect(global).await?;
    let namespace = cluster.scope(&args.namespaces);
    let only = match &args.selector {
        Some(labels) => Some(select(&cluster, &of, namespace.as_deref(), labels).await?),
        None => None,
    };
    let query = Query { of, namespace, only, routes: true, ..Query::default() };
    if !has_terminal() {
        let frame = observe::once(&cluster, &stat::ask(&query, args.window), DEADLINE).await?;
        stat::print(&VecDeque::from([frame]), &query, RowFormat::Table, printer)?;
        return Ok(Outcome::Well);
    }
    let name = cluster.server.trim_start_matches("https://").to_owned();
    open(&cluster, &name, query, args.window, printer).await?;
    Ok(Outcome::Well)
}

/// Opens the screen on a cluster.
pub async fn open(cluster: &Cluster, name: &str, query: Query, window: Duration, printer: &Printer) -> Result<()> {
    let theme = Theme::of_environment(printer.colors(), |variable| std::env::var(variable).ok());
    let ask = Ask { frames: None, ..stat::ask(&query, window) };
    show(cluster, ask, State::new(name, query, window, theme)).await
}
