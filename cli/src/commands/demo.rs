//! `meshctl demo`: the whole mesh on one machine, from nothing to live metrics, and back to nothing.
//!
//! It does what a person would do, with the same code: `sandbox up`, `install --apply`, `inject shop.yaml` and apply
//! it, `top`. Whatever it started is gone when it ends, in whatever way it ends ([`Ground`]).

use crate::apply;
use crate::args::{Demo, Global};
use crate::cluster::Cluster;
use crate::commands::demo_verdict::missing;
use crate::commands::{inject, install, sandbox, stat, top};
use crate::error::{Context, Error, Hint, Outcome, Result};
use crate::golden::{Query, Window};
use crate::observe::{self, Ask};
use crate::output::{Printer, RowFormat, Step};
use crate::top::run::has_terminal;
use futures::StreamExt;
use mesh_sandbox::lifecycle::{self, Up, UpOptions};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Namespace of the shop.
const NAMESPACE: &str = "shop";
/// What the printed rows look back on, and `top` at first.
const WINDOW: Duration = Duration::from_secs(10);
/// Pause before asking again for frames.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// Runs the demo, and clears it away.
pub async fn run(global: &Global, args: &Demo, printer: &Printer) -> Result<Outcome> {
    let mut ground = Ground::new(args.keep, printer.clone());
    let outcome = tokio::select! {
        outcome = show(global, args, &mut ground, printer) => outcome,
        name = interrupted() => Err(Error::new(format!("interrupted ({name})"))),
    };
    // What the hint would have one look at will be gone.
    let outcome = match outcome {
        Err(error) if ground.will_go() => Err(error.hint_instead("`meshctl demo --keep` leaves everything for a look")),
        outcome => outcome,
    };
    ground.clear().await;
    outcome
}

async fn show(global: &Global, args: &Demo, ground: &mut Ground, printer: &Printer) -> Result<Outcome> {
    let deadline = Instant::now() + args.timeout;
    let cluster = if global.context.is_some() {
        Cluster::connect(global).await?
    } else {
        let kubeconfig = ground.raise(&args.name).await?;
        Cluster::connect_file(&kubeconfig, &global.system_namespace).await?
    };
    if install::installed(&cluster).await?.is_none() {
        let objects = install::defaults(&cluster.system_namespace)?;
        ground.remember(&cluster, &objects);
        install::apply_and_wait(&cluster, objects, deadline, printer).await?;
    }
    let shop = inject::annotated(mesh_sandbox::apps::SHOP_YAML, "shop.yaml")?;
    ground.remember(&cluster, &shop);
    let workloads = apply::workloads(&shop, NAMESPACE);
    let step = printer.step("deploying the shop");
    apply::apply(&cluster, shop, NAMESPACE, &step).await?;
    apply::wait_available(&cluster, &workloads, deadline, &step).await?;
    step.done(&format!("the shop's {} workloads run", workloads.len()));

    let expected: Vec<String> = workloads.into_iter().map(|workload| workload.name).collect();
    let interactive = has_terminal() && !args.once && args.output.is_none();
    let step = printer.step("waiting for traffic");
    let enough = if interactive { Duration::ZERO } else { WINDOW };
    let (window, lacking) = watch(&cluster, &expected, enough, deadline, &step).await?;
    let query = Query { namespace: Some(NAMESPACE.to_owned()), routes: true, ..Query::default() };
    if lacking.is_empty() {
        step.done("every workload is meshed and busy, all traffic is mutual TLS");
    } else {
        drop(step);
        lacking.iter().for_each(|reason| printer.warn(reason));
    }
    if interactive && lacking.is_empty() {
        top::open(&cluster, &args.name, query, WINDOW, printer).await?;
        return Ok(Outcome::Well);
    }
    let format = args.output.unwrap_or(RowFormat::Table);
    stat::print(window.frames(), &query, format, printer)?;
    Ok(if lacking.is_empty() { Outcome::Well } else { Outcome::Problems })
}

/// Watches until nothing is missing over at least `enough` time; else says, at the deadline, what still is.
async fn watch(
    cluster: &Cluster,
    expected: &[String],
    enough: Duration,
    deadline: Instant,
    step: &Step,
) -> Result<(Window, Vec<String>)> {
    let ask = Ask { namespace: Some(NAMESPACE.to_owned()), window: Duration::from_secs(1), frames: None, pods: false };
    let mut window = Window::new(enough.max(Duration::from_secs(1)));
    let mut lacking = vec!["no numbers came from the control plane".to_owned()];
    let until = tokio::time::Instant::from_std(deadline);
    loop {
        let error = match tokio::time::timeout_at(until, observe::stream(cluster, &ask)).await {
            Err(_) => return Ok((window, lacking)),
            Ok(Err(error)) => error,
            Ok(Ok(mut frames)) => loop {
                match tokio::time::timeout_at(until, frames.next()).await {
                    Err(_) => return Ok((window, lacking)),
                    Ok(None) => break Error::new("the stream ended").during("read golden metrics"),
                    Ok(Some(Err(error))) => break error,
                    Ok(Some(Ok(frame))) => window.push(frame),
                }
                lacking = missing(window.frames(), NAMESPACE, expected);
                let covered = Duration::from_millis(window.covered_ms());
                match lacking.first() {
                    None if covered >= enough => return Ok((window, lacking)),
                    None => step.now(&format!("measuring, {} of {} s", covered.as_secs(), enough.as_secs())),
                    Some(reason) => step.now(&format!("waiting for traffic: {reason}")),
                }
            },
        };
        if Instant::now() >= deadline {
            return Err(error);
        }
        step.now(&format!("waiting for golden metrics: {error}"));
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

/// Waits for a signal that asks us to end.
async fn interrupted() -> &'static str {
    let streams = [
        ("interrupt", signal(SignalKind::interrupt())),
        ("terminate", signal(SignalKind::terminate())),
        ("hangup", signal(SignalKind::hangup())),
        ("quit", signal(SignalKind::quit())),
    ];
    let waits = streams.into_iter().filter_map(|(name, stream)| {
        let mut stream = stream.ok()?;
        Some(Box::pin(async move {
            stream.recv().await;
            name
        }))
    });
    futures::future::select_all(waits).await.0
}

/// What the demo stands on, and what it must leave behind: nothing.
struct Ground {
    keep: bool,
    printer: Printer,
    sandbox: Option<String>,
    up: Option<Up>,
    /// Applied to a cluster that isn't ours.
    applied: Option<(Cluster, Vec<Value>)>,
}

impl Ground {
    fn new(keep: bool, printer: Printer) -> Self {
        Self { keep, printer, sandbox: None, up: None, applied: None }
    }

    /// Starts a sandbox of our own.
    async fn raise(&mut self, name: &str) -> Result<std::path::PathBuf> {
        let of = name.to_owned();
        let before = sandbox::blocking(move || lifecycle::status(&of)).await.during(|| "look for the sandbox")?;
        if before.running {
            return Err(Error::new("it runs already").during(format!("start sandbox {name}")))
                .hint(|| format!("`meshctl sandbox down --name {name}` ends it; --name chooses another"));
        }
        lifecycle::preflight().during(|| "run a sandbox here")?;
        // From here on it is ours to end, also if starting it fails half way.
        self.sandbox = Some(name.to_owned());
        let options = UpOptions { name: name.to_owned(), die_with_parent: !self.keep, images: Vec::new() };
        let up = sandbox::start(options, &self.printer).await?;
        let kubeconfig = up.kubeconfig.clone();
        self.up = Some(up);
        Ok(kubeconfig)
    }

    /// True if there is something that will be cleared away.
    fn will_go(&self) -> bool {
        !self.keep && (self.up.is_some() || self.applied.is_some())
    }

    /// Notes what will be applied; a sandbox takes everything with it.
    fn remember(&mut self, cluster: &Cluster, objects: &[Value]) {
        if self.sandbox.is_none() {
            let (_, all) = self.applied.get_or_insert_with(|| (cluster.clone(), Vec::new()));
            all.extend_from_slice(objects);
        }
    }

    async fn clear(mut self) {
        if self.keep {
            self.say_how_to_go_on();
            return;
        }
        if self.sandbox.is_none() && self.applied.is_none() {
            return;
        }
        let step = self.printer.step("clearing away");
        let mut gone = true;
        if let Some(name) = self.sandbox.take() {
            drop(self.up.take());
            let of = name.clone();
            if let Err(error) = sandbox::blocking(move || lifecycle::down(&of)).await {
                gone = false;
                self.printer.warn(&format!("sandbox {name} is not quite gone: {error}"));
                self.printer.hint(&format!("meshctl sandbox down --name {name}"));
            }
        }
        if let Some((cluster, objects)) = self.applied.take()
            && let Err(error) = apply::delete(&cluster, objects, NAMESPACE, &step).await
        {
            gone = false;
            self.printer.warn(&error.to_string());
        }
        if gone {
            step.done("everything is gone again");
        }
    }

    fn say_how_to_go_on(&mut self) {
        if let (Some(name), Some(up)) = (self.sandbox.take(), self.up.take()) {
            self.printer.note(&format!("Sandbox {name} goes on:  export KUBECONFIG={}", up.kubeconfig.display()));
            self.printer.note(&format!("To end it:  meshctl sandbox down --name {name}"));
        }
        self.applied = None;
    }
}

impl Drop for Ground {
    /// After a panic: the sandbox goes when its lifeline breaks, but let it be gone before we are.
    fn drop(&mut self) {
        if let Some(name) = self.sandbox.take().filter(|_| !self.keep) {
            drop(self.up.take());
            // Nobody is left to be told.
            let _ = lifecycle::down(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::{SHOP, frame};
    use mesh_api::golden::TlsStatus;

    /// A control plane that streams ten frames to everyone who asks; the first `plain` of them without encryption.
    fn cluster(plain: u64) -> Cluster {
        let service = tower::service_fn(move |_request: http::Request<kube::client::Body>| async move {
            let mut body = Vec::new();
            for second in 1..=10 {
                let mut frame = frame(SHOP, second * 1000, 1000);
                if second <= plain {
                    frame.series.iter_mut().for_each(|entry| entry.key.tls = TlsStatus::Plain);
                }
                serde_json::to_writer(&mut body, &frame)?;
                body.push(b'\n');
            }
            Ok::<_, serde_json::Error>(http::Response::new(kube::client::Body::from(body)))
        });
        Cluster::of_client(kube::Client::new(service, "default"))
    }

    fn expected() -> Vec<String> {
        ["web", "catalog", "cart", "ledger", "load"].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn plain_beginnings_are_waited_out() {
        let (printer, _) = Printer::memory();
        let deadline = Instant::now() + Duration::from_secs(10);
        let enough = Duration::from_secs(5);
        let (window, lacking) =
            watch(&cluster(3), &expected(), enough, deadline, &printer.step("waiting")).await.unwrap();
        assert_eq!(lacking, Vec::<String>::new());
        assert_eq!(window.frames().front().map(|frame| frame.at_ms), Some(4000));
        assert_eq!(window.covered_ms(), 5000);
    }

    #[tokio::test]
    async fn at_the_deadline_the_reasons_are_told() {
        let (printer, _) = Printer::memory();
        let deadline = Instant::now() + Duration::from_millis(100);
        let (_, lacking) =
            watch(&cluster(10), &expected(), Duration::ZERO, deadline, &printer.step("waiting")).await.unwrap();
        assert!(
            lacking.contains(&"web got traffic without mutual TLS (from shop/deployment/load, port 80)".to_owned())
        );
    }
}
