//! What the mesh counts is what was sent: exactly, over every window, over replicas that come and go.

use crate::golden_load::{SECOND, unix};
use crate::harness::{Need, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl")];
/// Length of the load: more than the longest window, and time to kill a pod before it.
const SECONDS: u64 = 84;

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("golden::what_is_counted_is_what_was_sent", NEEDS, what_is_counted_is_what_was_sent)]
}

/// A request as the client saw it.
struct Sent {
    second: u64,
    path: String,
    status: u16,
    took_us: u64,
    /// How long it took the application, by its own clock.
    served_us: u64,
}

fn what_is_counted_is_what_was_sent() -> Result<()> {
    let s = Sandbox::meshed("golden")?;
    deploy(&s)?;
    let begin: u64 = eventually(Duration::from_secs(30), "the load begins", || {
        let line = log(&s)?.lines().find_map(|line| line.strip_prefix("begins ").map(str::to_owned));
        Ok(line.context("not yet")?.parse()?)
    })?;
    sleep_until(begin + 12);
    let pods = s.kubectl(["-n", "golden", "get", "pods", "-l", "app=golden", "-o", "name"])?.ok()?.stdout;
    let victim = pods.lines().next().context("no pod")?;
    s.kubectl(["-n", "golden", "delete", victim, "--wait=false"])?.ok()?;

    // With a minute behind it, while the load goes on.
    let mut looks = Vec::new();
    sleep_until(begin + 70);
    for window in [1, 10, 60] {
        let mut look = Look::of_a_second_just_ended(&s, window)?;
        for _ in 0..3 {
            // A machine that is busy elsewhere may have been told two seconds in one.
            if [&look.stat, &look.routes].iter().all(|update| update.span_ms == window * 1000) {
                break;
            }
            look = Look::of_a_second_just_ended(&s, window)?;
        }
        looks.push((window, look));
    }
    let top = top(&s)?;
    let sent = eventually(Duration::from_secs(60), "the load ends", || {
        let log = log(&s)?;
        ensure!(log.lines().any(|line| line == "end"), "not yet:\n{log}");
        log.lines().filter_map(|line| line.strip_prefix("request ")).map(read).collect::<Result<Vec<Sent>>>()
    })?;
    ensure!(sent.len() as u64 == SECONDS * SECOND.len() as u64, "{} requests", sent.len());
    for (window, look) in &looks {
        look.check(&sent, *window).with_context(|| format!("over {window} s"))?;
    }

    check_top(&top, &sent, begin)?;

    // All of it, long after: the killed pod's part is still there.
    std::thread::sleep(Duration::from_millis(1500));
    let all = Look::at(&s, 300)?;
    let expect = count(sent.iter());
    ensure!(all.counts(&all.stat, "rps") == expect, "stat: {:?}, sent {expect:?}", all.counts(&all.stat, "rps"));
    let effective = all.counts(&all.routes, "effective_rps");
    ensure!(effective == expect, "routes: {effective:?}, sent {expect:?}");
    prometheus(&s, &sent, &all, victim.strip_prefix("pod/").unwrap_or(victim))
}

/// The server in three replicas behind a Service, and the client.
fn deploy(s: &Sandbox) -> Result<()> {
    let ourselves = std::env::current_exe()?;
    let link = ourselves.with_file_name("mesh-golden");
    let _ = std::fs::remove_file(&link);
    std::fs::hard_link(&ourselves, &link)?;
    let path = link.to_str().context("path")?;
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, "mesh-golden", path])?.ok()?;
    s.kubectl(["create", "ns", "golden"])?.ok()?;
    let inject = json!({"meshctl.dev/inject": "enabled"});
    let server = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "golden"},
         "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "golden"}}, "template": {
            "metadata": {"labels": {"app": "golden"}, "annotations": inject},
            "spec": {"containers": [{"name": "main", "image": "mesh-golden", "args": ["serve"],
                "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}}]}}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "golden"},
         "spec": {"selector": {"app": "golden"}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]}},
    ]});
    let client = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "client", "annotations": inject},
        "spec": {"terminationGracePeriodSeconds": 1, "restartPolicy": "Never", "containers": [{"name": "main",
            "image": "mesh-golden", "args": ["load", "golden:80", SECONDS.to_string()]}]}});
    s.kubectl_with_input(["-n", "golden", "apply", "-f", "-"], &server.to_string())?.ok()?;
    let replicas = "--for=jsonpath={.status.availableReplicas}=3";
    s.kubectl(["-n", "golden", "wait", replicas, "deploy/golden", "--timeout=60s"])?.ok()?;
    s.kubectl_with_input(["-n", "golden", "apply", "-f", "-"], &client.to_string())?.ok()?;
    Ok(())
}

fn log(s: &Sandbox) -> Result<String> {
    Ok(s.kubectl(["-n", "golden", "logs", "client", "-c", "main"])?.ok()?.stdout)
}

fn read(line: &str) -> Result<Sent> {
    let mut words = line.split(' ');
    let mut next = || words.next().context("a word is missing");
    let (second, path, status) = (next()?.parse()?, next()?.to_owned(), next()?.parse()?);
    Ok(Sent { second, path, status, took_us: next()?.parse()?, served_us: next()?.parse()? })
}

fn sleep_until(second: u64) {
    std::thread::sleep(Duration::from_secs(second).saturating_sub(unix()));
}

fn count<'a>(sent: impl Iterator<Item = &'a Sent>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for sent in sent {
        *counts.entry(sent.path.clone()).or_default() += 1;
    }
    counts
}

/// What the commands say of a window.
struct Look {
    stat: Update,
    routes: Update,
}

/// The first line of `--watch -o json`.
struct Update {
    at_ms: u64,
    span_ms: u64,
    rows: Vec<Value>,
}

impl Look {
    fn of_a_second_just_ended(s: &Sandbox, window: u64) -> Result<Self> {
        sleep_until(unix().as_secs() + 1);
        std::thread::sleep(Duration::from_millis(250));
        Self::at(s, window)
    }

    fn at(s: &Sandbox, window: u64) -> Result<Self> {
        let window = format!("{window}s");
        let stat = ["stat", "deploy/golden", "-n", "golden", "--routes", "--watch", "-o", "json", "-w", &window];
        let routes = ["routes", "svc/golden", "-n", "golden", "--watch", "-o", "json", "-w", &window];
        // At once, so that both look at the same seconds.
        let (stat, routes) = (Update::begin(s, &stat)?, Update::begin(s, &routes)?);
        Ok(Self { stat: stat.first()?, routes: routes.first()? })
    }

    /// Requests by route; a rate is a count again once it is multiplied by its span.
    fn counts(&self, update: &Update, rate: &str) -> BTreeMap<String, u64> {
        let seconds = update.span_ms as f64 / 1000.0;
        let rows = update.rows.iter().filter(|row| row["route"] != "/warm");
        rows.map(|row| {
            let count = row[rate].as_f64().unwrap_or(f64::NAN) * seconds;
            (row["route"].as_str().unwrap_or_default().to_owned(), count.round() as u64)
        })
        .collect()
    }

    fn check(&self, sent: &[Sent], window: u64) -> Result<()> {
        let per_second = count(
            SECOND
                .iter()
                .map(|kind| Sent {
                    second: 0,
                    path: kind.path.to_owned(),
                    status: kind.status,
                    took_us: 0,
                    served_us: 0,
                })
                .collect::<Vec<_>>()
                .iter(),
        );
        for (update, names) in [
            (&self.stat, ["rps", "success_rate", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms"]),
            (
                &self.routes,
                [
                    "effective_rps",
                    "effective_success_rate",
                    "effective_latency_p50_ms",
                    "effective_latency_p95_ms",
                    "effective_latency_p99_ms",
                ],
            ),
        ] {
            ensure!(update.span_ms == window * 1000, "the window is {} ms long", update.span_ms);
            let end = update.at_ms / 1000;
            ensure!(update.rows.len() == per_second.len(), "{:?}", update.rows);
            for row in &update.rows {
                let route = row["route"].as_str().context("no route")?;
                let number = |key: &str| row[key].as_f64().with_context(|| format!("no {key} in {row}"));
                let expect = per_second.get(route).with_context(|| format!("a route nobody called: {row}"))?;
                ensure!(number(names[0])? == *expect as f64, "{expect} a second were sent, but {row}");
                let there = |sent: &&Sent| sent.path == route && (end - window..end).contains(&sent.second);
                let mut took: Vec<u64> = sent.iter().filter(there).map(|sent| sent.took_us).collect();
                ensure!(took.len() as u64 == expect * window, "{} of {route} until {end}", took.len());
                let well = sent.iter().filter(there).filter(|sent| sent.status < 500).count();
                let share = well as f64 / took.len() as f64;
                ensure!((number(names[1])? - share).abs() < 1e-6, "{share} went well, but {row}");
                took.sort_unstable();
                // What proxies saw lies between what the application measured and what the client did, which are the
                // same but for the way, and for the moments that a busy machine lets the client wait for its turn.
                let mut served: Vec<u64> = sent.iter().filter(there).map(|sent| sent.served_us).collect();
                served.sort_unstable();
                for (name, q) in names[2..].iter().zip([0.5, 0.95, 0.99]) {
                    let at_rank =
                        |all: &[u64]| all[((q * all.len() as f64).ceil() as usize).max(1) - 1] as f64 / 1000.0;
                    let (own_ms, mesh_ms) = (at_rank(&took), number(name)?);
                    let least_ms = at_rank(&served);
                    let near = least_ms * 0.98..=own_ms * 1.02;
                    ensure!(near.contains(&mesh_ms), "{name}: {least_ms} ms served, {own_ms} ms seen: {row}");
                }
            }
        }
        Ok(())
    }
}

/// A command that has been started, and its output.
struct Begun {
    child: std::process::Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Update {
    fn begin(s: &Sandbox, arguments: &[&str]) -> Result<Begun> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg0("meshctl").args(arguments).env("KUBECONFIG", &s.kubeconfig);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Begun { child, lines })
    }
}

impl Begun {
    fn first(mut self) -> Result<Update> {
        let mut line = String::new();
        let read = self.lines.read_line(&mut line);
        self.child.kill()?;
        self.child.wait()?;
        read?;
        let update: Value = serde_json::from_str(&line).with_context(|| format!("no update: {line}"))?;
        let number = |key: &str| update[key].as_u64().with_context(|| format!("no {key}: {line}"));
        let rows = update["rows"].as_array().context("no rows")?.clone();
        Ok(Update { at_ms: number("at_ms")?, span_ms: number("span_ms")?, rows })
    }
}

/// What `top` prints once, over ten seconds.
fn top(s: &Sandbox) -> Result<Vec<Value>> {
    let ran = s.meshctl(["top", "deploy/golden", "-n", "golden", "-o", "json", "-w", "10s"])?.ok()?;
    serde_json::from_str(&ran.stdout).with_context(|| format!("no array: {}", ran.stdout))
}

/// `top` counts the same. Every second has the same requests, so that the rates of any ten are known.
fn check_top(rows: &[Value], sent: &[Sent], begin: u64) -> Result<()> {
    let kinds: BTreeSet<&str> = SECOND.iter().map(|kind| kind.path).collect();
    ensure!(rows.len() == kinds.len(), "{rows:?}");
    for row in rows {
        let number = |key: &str| row[key].as_f64().with_context(|| format!("no {key} in {row}"));
        let route = row["route"].as_str().context("no route")?;
        let of_route = || SECOND.iter().filter(|kind| kind.path == route);
        let (all, well) = (of_route().count() as f64, of_route().filter(|kind| kind.status < 500).count() as f64);
        ensure!((number("rps")? - all).abs() < 1e-6, "{all} a second were sent, but {row}");
        ensure!((number("success_rate")? - well / all).abs() < 1e-6, "{well} of {all} went well, but {row}");
        // The seconds are not known, but the median of any is that of all but for 2 %.
        let since = |sent: &&Sent| sent.path == route && sent.second >= begin + 50;
        let median = |pick: fn(&Sent) -> u64| {
            let mut all: Vec<u64> = sent.iter().filter(since).map(pick).collect();
            all.sort_unstable();
            all[(all.len().div_ceil(2)).max(1) - 1] as f64 / 1000.0
        };
        let near = median(|sent| sent.served_us) * 0.98..=median(|sent| sent.took_us) * 1.02;
        ensure!(near.contains(&number("latency_p50_ms")?), "{near:?}: {row}");
    }
    Ok(())
}

/// What proxies tell Prometheus is the same again: the caller's all of it, and the servers' what is left of them.
fn prometheus(s: &Sandbox, sent: &[Sent], all: &Look, victim: &str) -> Result<()> {
    let client = s.meshctl(["diagnostics", "proxy-metrics", "po/client", "-n", "golden"])?.ok()?.stdout;
    let sums = |text: &str, family: &str, wanted: &[(&str, &str)]| -> u64 {
        let samples = text.lines().filter(|line| line.starts_with(&format!("{family}{{")));
        let samples =
            samples.filter(|line| wanted.iter().all(|(name, value)| line.contains(&format!("{name}=\"{value}\""))));
        samples.filter_map(|line| line.rsplit_once("} ")?.1.split(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    };
    for kind in SECOND {
        let outbound = [("direction", "outbound"), ("route", kind.path)];
        let of_kind = || sent.iter().filter(|sent| sent.path == kind.path);
        let expect = of_kind().count() as u64;
        let got = sums(&client, "mesh_requests_total", &outbound);
        ensure!(got == expect, "{}: {got} in mesh_requests_total, {expect} sent", kind.path);
        let status = kind.status.to_string();
        let expect = of_kind().filter(|sent| sent.status == kind.status).count() as u64;
        let got = sums(&client, "mesh_requests_total", &[outbound[0], outbound[1], ("status", &status)]);
        ensure!(got == expect, "{} {status}: {got} in mesh_requests_total, {expect} sent", kind.path);
        // A classic bucket holds what was faster than its bound; no delay is near one.
        let expect = of_kind().filter(|sent| sent.took_us < 500_000).count() as u64;
        let near = of_kind().filter(|sent| (480_000..520_000).contains(&sent.took_us)).count() as u64;
        let got = sums(&client, "mesh_request_duration_seconds_bucket", &[outbound[0], outbound[1], ("le", "0.5")]);
        ensure!(got.abs_diff(expect) <= near, "{}: {got} within half a second, {expect} sent", kind.path);
    }
    // Pod by pod: those that live say what `stat` says of them; the killed one's part is what they lack.
    let by_pod = ["stat", "po", "-n", "golden", "--routes", "--watch", "-o", "json", "-w", "300s"];
    let mut by_pod = Update::begin(s, &by_pod)?.first()?;
    by_pod.rows.retain(|row| row["name"] == victim);
    let killed = all.counts(&by_pod, "rps");
    let alive = s.kubectl(["-n", "golden", "get", "pods", "-l", "app=golden", "-o", "name"])?.ok()?.stdout;
    let alive: Vec<&str> = alive.lines().filter_map(|line| line.strip_prefix("pod/")).collect();
    ensure!(alive.len() == 3, "{alive:?}");
    let counted = all.counts(&all.stat, "rps");
    for (route, arrived) in &counted {
        let mut living = 0;
        for pod in &alive {
            let of_pod = format!("po/{pod}");
            let text = s.meshctl(["diagnostics", "proxy-metrics", &of_pod, "-n", "golden"])?.ok()?.stdout;
            living += sums(&text, "mesh_requests_total", &[("direction", "inbound"), ("route", route)]);
        }
        let killed = killed.get(route).copied().unwrap_or_default();
        ensure!(living + killed == *arrived, "{route}: {living} at living pods, {killed} at the killed one, {arrived}");
    }
    ensure!(killed.values().sum::<u64>() > 0, "the killed pod had served nothing");
    Ok(())
}
