//! Single requests and connections of a shop that runs: what filters show, what is left out and counted, what stays
//! secret, and who may look.

use crate::harness::{Need, SHOP, Sandbox, eventually, ourselves, test};
use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub(crate) fn tests() -> Vec<Trial> {
    let needs = [Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];
    vec![
        test("tap::each_filter_shows_what_matches", &needs, each_filter_shows_what_matches),
        test("tap::what_is_left_out_is_counted", &needs, what_is_left_out_is_counted),
        test("tap::secrets_are_redacted", &needs, secrets_are_redacted),
        test("tap::connections_open_and_close", &needs, connections_open_and_close),
        test("tap::rights_are_asked_for_and_granted", &needs, rights_are_asked_for_and_granted),
        test("tap::who_sees_one_namespace_sees_no_other", &needs, who_sees_one_namespace_sees_no_other),
        test("tap::what_cannot_be_tapped_says_why", &needs, what_cannot_be_tapped_says_why),
    ]
}

/// A `meshctl tap` under way.
struct Tapping {
    child: Child,
    errors: Receiver<String>,
    output: std::thread::JoinHandle<String>,
}

/// What it left behind.
struct Tapped {
    events: Vec<Value>,
    text: String,
    summary: String,
}

impl Tapping {
    /// Begins to tap, and waits until every proxy that is meant does.
    fn start(s: &Sandbox, line: &str) -> Result<Self> {
        let mut command = ourselves("meshctl")?;
        command.env("KUBECONFIG", &s.kubeconfig).arg("tap").args(line.split_whitespace());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().context("no stdout")?;
        let stderr = child.stderr.take().context("no stderr")?;
        let output = std::thread::spawn(move || {
            let mut text = String::new();
            let _ = stdout.read_to_string(&mut text);
            text
        });
        let (send, errors) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let _ = send.send(line);
            }
        });
        let mut tapping = Self { child, errors, output };
        match tapping.error_line(is_complete) {
            Ok(_) => Ok(tapping),
            Err(error) => {
                let _ = tapping.child.kill();
                Err(error.context(format!("meshctl tap {line}")))
            }
        }
    }

    /// The next line on stderr that is wanted.
    fn error_line(&mut self, wanted: fn(&str) -> bool) -> Result<String> {
        let mut all = Vec::new();
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            match self.errors.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if wanted(&line) => return Ok(line),
                Ok(line) => all.push(line),
                Err(_) => bail!("it only says: {}", all.join("\n")),
            }
        }
    }

    /// Interrupts it as Ctrl-C does, once its counts have arrived.
    fn stop(mut self) -> Result<Tapped> {
        std::thread::sleep(Duration::from_millis(1500));
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        let summary = self.error_line(|line| line.contains(" shown, "))?;
        let status = self.child.wait()?;
        ensure!(status.code() == Some(0), "it ended with {status}");
        let text = self.output.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?;
        let events = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        Ok(Tapped { events, text, summary })
    }
}

/// `Tapping 2 of 2 pods; …`
fn is_complete(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    matches!(words[..], ["Tapping", proxies, "of", pods, ..] if proxies == pods)
}

impl Tapped {
    fn paths(&self) -> Vec<&str> {
        let mut paths: Vec<&str> = self.events.iter().filter_map(|event| event["http"]["path"].as_str()).collect();
        paths.sort_unstable();
        paths
    }
}

/// Made once: a meshed pod to call the shop from, in the namespace `tap`. Whoever holds it calls alone.
static CALLER: Mutex<bool> = Mutex::new(false);

fn shop() -> Result<(&'static Sandbox, MutexGuard<'static, bool>)> {
    let s = SHOP.get()?;
    let mut made = CALLER.lock().map_err(|e| anyhow::anyhow!("an earlier test panicked: {e}"))?;
    if !*made {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "caller", "annotations": {"meshctl.dev/inject": "enabled"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "sh",
                "args": ["-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"]}]}});
        s.kubectl(["create", "ns", "tap"])?.ok()?;
        s.kubectl_with_input(["-n", "tap", "apply", "-f", "-"], &pod.to_string())?.ok()?;
        s.kubectl(["-n", "tap", "wait", "--for=condition=Ready", "pod/caller", "--timeout=60s"])?.ok()?;
        *made = true;
    }
    Ok((s, made))
}

fn call(s: &Sandbox, command: &str) -> Result<()> {
    s.kubectl(["-n", "tap", "exec", "caller", "-c", "main", "--", "sh", "-c", command])?.ok()?;
    Ok(())
}

const FROM: &str = "deploy/catalog -n shop --from tap/pod/caller -o json";

fn each_filter_shows_what_matches() -> Result<()> {
    let (s, _alone) = shop()?;
    let filters: [(&str, &[&str]); 9] = [
        ("", &["/nowhere", "/nowhere/at/all", "/products/1", "/products/2"]),
        ("--status 4xx", &["/nowhere", "/nowhere/at/all"]),
        ("--path /nowhere --method GET", &["/nowhere", "/nowhere/at/all"]),
        ("--path /*/2 --status 200", &["/products/2"]),
        ("--route /products/{id} --protocol http", &["/products/1", "/products/2"]),
        ("--header x-mark=y*", &["/products/1"]),
        ("--identity */ns/tap/sa/default --direction inbound --path /products/1", &["/products/1"]),
        ("--slower-than 30s", &[]),
        ("--direction outbound", &[]),
    ];
    let started: Result<Vec<_>> = filters.iter().map(|(f, _)| Tapping::start(s, &format!("{FROM} {f}"))).collect();
    call(
        s,
        "curl -s -H 'x-mark: yes' http://catalog.shop/products/1 && curl -s http://catalog.shop/products/2 && \
         curl -s http://catalog.shop/nowhere http://catalog.shop/nowhere/at/all",
    )?;
    for ((filter, expect), tapping) in filters.iter().zip(started?) {
        let tapped = tapping.stop()?;
        ensure!(tapped.paths() == *expect, "{filter}: {:?} instead of {expect:?}\n{}", tapped.paths(), tapped.text);
        let summary = format!("{} shown, none left out.", expect.len());
        ensure!(tapped.summary == summary, "{filter}: {}", tapped.summary);
        for event in &tapped.events {
            ensure!(event["source"]["pod"] == "caller" && event["tls"] == "mutual", "{event}");
            ensure!(event["destination"]["workload"]["name"] == "catalog", "{event}");
            ensure!(event["source"]["identity"] == "spiffe://cluster.local/ns/tap/sa/default", "{event}");
        }
    }
    // gRPC, and the way to a service: the shop's own traffic, as its caller sees it.
    let tapping = Tapping::start(s, "deploy/web -n shop --protocol grpc --grpc-status OK --to svc/cart -o json")?;
    std::thread::sleep(Duration::from_secs(2));
    let tapped = tapping.stop()?;
    ensure!(!tapped.events.is_empty(), "the shop calls its cart, but nothing was seen");
    for event in &tapped.events {
        ensure!(event["direction"] == "outbound" && event["http"]["grpc_status"] == 0, "{event}");
        ensure!(event["service"]["name"] == "cart" && event["destination"]["workload"]["name"] == "cart", "{event}");
    }
    Ok(())
}

fn what_is_left_out_is_counted() -> Result<()> {
    let (s, _alone) = shop()?;
    let limited = Tapping::start(s, &format!("{FROM} --max-rps 5 --path /products"))?;
    let sampled = Tapping::start(s, &format!("{FROM} --sample 25% --path /products"))?;
    call(s, "curl -s -o /dev/null 'http://catalog.shop/products/[1-40]'")?;
    for (tapping, reason) in [(limited, "over --max-rps 5"), (sampled, "not in the sample")] {
        let tapped = tapping.stop()?;
        let numbers: Vec<usize> = tapped.summary.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [shown, left_out, because, ..] = numbers[..] else { bail!("{}", tapped.summary) };
        ensure!(shown == tapped.events.len(), "{} but {} lines", tapped.summary, tapped.events.len());
        ensure!(shown + left_out == 40 && left_out == because, "{}", tapped.summary);
        ensure!((1..40).contains(&shown) && tapped.summary.contains(reason), "{}", tapped.summary);
    }
    Ok(())
}

fn secrets_are_redacted() -> Result<()> {
    let (s, _alone) = shop()?;
    let usual = Tapping::start(s, &format!("{FROM} --path /products/7"))?;
    let open = Tapping::start(s, &format!("{FROM} --path /products/7 --show-secrets --bodies"))?;
    call(s, "curl -s -o /dev/null -H 'authorization: Bearer hush' -H 'x-plain: seen' http://catalog.shop/products/7")?;
    let usual = usual.stop()?;
    ensure!(!usual.text.contains("hush") && usual.text.contains("[redacted]"), "{}", usual.text);
    ensure!(usual.text.contains("seen") && !usual.text.contains("response_body"), "{}", usual.text);
    let open = open.stop()?;
    ensure!(open.text.contains("Bearer hush"), "{}", open.text);
    let body = &open.events.first().context("no event")?["http"]["response_body"]["text"];
    ensure!(body.as_str().is_some_and(|body| body.starts_with('{')), "{body}");
    Ok(())
}

fn connections_open_and_close() -> Result<()> {
    let (s, _alone) = shop()?;
    let data = Tapping::start(s, "deploy/ledger -n shop --protocol tcp --from tap/pod/caller -o json")?;
    let lines = Tapping::start(s, "po/caller -n tap --direction outbound --to shop/svc/ledger -o wide")?;
    call(s, "echo nonsense | curl -s -m 2 telnet://ledger.shop:7000 || true")?;
    let data = data.stop()?;
    // A client that is slow to speak may first be given a connection that is only tried out.
    let kinds: Vec<&str> = data.events.iter().filter_map(|event| event["event"].as_str()).collect();
    ensure!(!kinds.is_empty() && kinds.chunks(2).all(|pair| pair == ["open", "close"]), "{}", data.text);
    let closed = data.events.last().context("no event")?;
    ensure!(closed["read_bytes"].as_u64().is_some_and(|bytes| bytes >= 9) && !closed["ending"].is_null(), "{closed}");
    ensure!(closed["source"]["identity"] == "spiffe://cluster.local/ns/tap/sa/default", "{closed}");
    let lines = lines.stop()?;
    ensure!(lines.text.contains(" TCP open ") && lines.text.contains(" TCP close "), "{}", lines.text);
    ensure!(lines.text.contains("tap/po/caller(") && lines.text.contains("service=shop/ledger:7000"), "{}", lines.text);
    Ok(())
}

/// The command that a refusal's hint gives.
fn granting(s: &Sandbox, line: &str, right: &str) -> Result<Vec<String>> {
    let refused = s.meshctl(line.split_whitespace())?.exits(2)?.complains(&format!("workloads/{right} "))?;
    let hint = refused.stderr.split_once("to grant it: kubectl ").context("no way to grant it")?.1;
    Ok(hint.lines().next().unwrap_or_default().split_whitespace().map(str::to_owned).collect())
}

fn rights_are_asked_for_and_granted() -> Result<()> {
    let (s, _alone) = shop()?;
    let tap = "tap deploy/catalog -n shop --as bob --for 1s";
    // Looking at golden metrics is no right to tap.
    s.kubectl(["create", "rolebinding", "bob-views", "-n", "shop", "--clusterrole=view", "--user=bob"])?.ok()?;
    s.meshctl(["stat", "deploy/catalog", "-n", "shop", "--as", "bob"])?.ok()?;
    s.kubectl(granting(s, tap, "tap")?)?.ok()?;
    let may = || s.meshctl(tap.split_whitespace())?.ok()?.complains(" shown, ").map(|_| ());
    eventually(Duration::from_secs(10), "bob may tap", may)?;
    s.meshctl(["tap", "deploy/ledger", "-n", "tap", "--as", "bob"])?
        .exits(2)?
        .complains("in namespace tap is missing")?;
    granting(s, "tap -A --as bob", "tap")?;
    // More needs more.
    for (flag, right) in [("--bodies", "tapbodies"), ("--show-secrets", "tapsecrets")] {
        let line = format!("{tap} {flag}");
        s.kubectl(granting(s, &line, right)?)?.ok()?;
        eventually(Duration::from_secs(10), flag, || s.meshctl(line.split_whitespace())?.ok().map(|_| ()))?;
    }

    // Who tapped whom is known, what was looked for too, secrets are not.
    s.meshctl(["tap", "deploy/catalog", "-n", "shop", "--as", "bob", "--for", "1s", "--header", "cookie=hush"])?
        .ok()?;
    let log = s.kubectl(["-n", "mesh-system", "logs", "deploy/mesh-control"])?.ok()?.says("a tap begins")?.stdout;
    let begun: Vec<&str> = log.lines().filter(|line| line.contains("a tap begins") && line.contains("bob")).collect();
    ensure!(begun.iter().any(|line| line.contains("deployment.catalog") && line.contains("[redacted]")), "{log}");
    ensure!(!log.contains("hush"), "{log}");
    Ok(())
}

/// Golden metrics are as fine-grained as the cluster's own rights, and a refusal says what to do.
fn who_sees_one_namespace_sees_no_other() -> Result<()> {
    let (s, _alone) = shop()?;
    // No more than the acceptance asks for: `get` on one subresource, in one namespace.
    let role = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "golden"}, "rules": [
            {"apiGroups": ["observe.meshctl.dev"], "resources": ["workloads/golden"], "verbs": ["get"]},
            {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "golden"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "golden"},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "carol"}]},
    ]});
    s.kubectl_with_input(["-n", "shop", "apply", "-f", "-"], &role.to_string())?.ok()?;
    call(s, "curl -s http://catalog.shop/products/1")?;
    let seen = eventually(Duration::from_secs(20), "carol sees the shop", || {
        let ran = s.meshctl("stat deploy -n shop -w 60s -o json --as carol".split_whitespace())?.ok()?;
        let rows: Vec<Value> = serde_json::from_str(&ran.stdout)?;
        let busy = rows.iter().any(|row| row["name"] == "catalog" && row["rps"].as_f64().is_some_and(|rps| rps > 0.0));
        ensure!(busy, "{}", ran.stdout);
        Ok(rows)
    })?;
    ensure!(seen.iter().all(|row| row["namespace"] == "shop"), "{seen:?}");
    for line in ["stat deploy -n tap --as carol", "edges deploy -n tap --as carol", "stat deploy -A --as carol"] {
        let refused = s.meshctl(line.split_whitespace())?.exits(2)?;
        let refused = refused.complains("user carol may not: the right to get workloads/golden of API group")?;
        ensure!(refused.stdout.is_empty() && !refused.stderr.contains("caller"), "{line}: {}", refused.stdout);
    }
    // What the hint says helps.
    let grant = granting(s, "stat deploy -n tap --as carol", "golden")?;
    s.kubectl(grant)?.ok()?;
    eventually(Duration::from_secs(10), "carol may look there too", || {
        s.meshctl("stat po -n tap --as carol".split_whitespace())?.ok().map(|_| ())
    })
}

fn what_cannot_be_tapped_says_why() -> Result<()> {
    let (s, _alone) = shop()?;
    let check = |line: &str, expect: &str| s.meshctl(line.split_whitespace())?.exits(2)?.complains(expect).map(|_| ());
    check("tap deploy/catalogue -n shop", "did you mean catalog?")?;
    check("tap deploy/web -n shop --status 6yx", "at character 1: expected a status")?;
    check("tap deploy/web -n shop --sample 2", "is not a share")?;
    check("tap deploy/web -n shop --from web", "KIND/NAME")?;
    // No proxy, nothing to see; and that is said.
    let control = s.meshctl(["tap", "deploy/mesh-control", "-n", "mesh-system", "--for", "1s"])?.ok()?;
    control.complains("has a proxy, so nothing can be seen")?.complains("0 shown, none left out.")?;
    Ok(())
}
