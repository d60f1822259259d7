//! The mesh gets another authority while it carries traffic: interrupted at every point, undone, finished; nobody notices.

use crate::harness::{Need, Ran, Sandbox, eventually, ourselves, test};
use crate::interception::proxy_of;
use crate::load::{CALLER, Load};
use crate::resilience::shop;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![test("rotation::interrupted_everywhere_it_loses_nothing", NEEDS, interrupted_everywhere_it_loses_nothing)]
}

/// Runs `meshctl identity rotate` and kills it when it has said this.
fn killed_after(s: &Sandbox, said: &str) -> Result<()> {
    let mut command = ourselves("meshctl")?;
    command.env("KUBECONFIG", &s.kubeconfig).args(["identity", "rotate", "--timeout", "90s"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no stderr")?);
    let mut all = String::new();
    loop {
        let mut line = String::new();
        let end = lines.read_line(&mut line)? == 0;
        all.push_str(&line);
        if end || line.contains(said) {
            break;
        }
    }
    child.kill()?;
    child.wait()?;
    let _ = lines.read_to_string(&mut all);
    ensure!(all.contains(said), "it ended without saying `{said}`:\n{all}");
    Ok(())
}

fn status(s: &Sandbox) -> Result<Ran> {
    s.meshctl(["identity", "rotate", "--status"])?.ok()
}

/// Certificates as `meshctl identity` tells them.
fn certificates(s: &Sandbox) -> Result<Vec<Value>> {
    let said = s.meshctl(["identity", "-A", "-o", "json"])?.ok()?.stdout;
    Ok(serde_json::from_str(&said)?)
}

/// The fingerprint of the issuer.
fn issuer(s: &Sandbox) -> Result<String> {
    let rows = certificates(s)?;
    let issuer = rows.iter().find(|row| row["kind"] == "issuer").context("no issuer")?;
    Ok(issuer["fingerprint"].as_str().context("no fingerprint")?.to_owned())
}

/// Fails unless every proxy trusts exactly these, and is signed by this one.
fn proxies_are(s: &Sandbox, trusts: &[&str], signed_by: &str) -> Result<()> {
    let rows = certificates(s)?;
    let proxies: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "proxy").collect();
    ensure!(proxies.len() > 5, "{} proxies", proxies.len());
    let mut wanted = trusts.to_vec();
    wanted.sort_unstable();
    for proxy in proxies {
        ensure!(
            proxy["trusts"] == json!(wanted) && proxy["issuer"] == signed_by,
            "not {wanted:?}, {signed_by}: {proxy}"
        );
    }
    Ok(())
}

fn interrupted_everywhere_it_loses_nothing() -> Result<()> {
    let s = shop("rotation")?;
    let old = issuer(&s)?;
    proxies_are(&s, &[&old], &old)?;
    let load = Load::start(&s)?;

    // Begun, and undone when everybody trusts both.
    killed_after(&s, "the new issuer is")?;
    let said = status(&s)?.says("in phase trust")?.stdout;
    let next = said.lines().find_map(|line| line.strip_prefix("next ")).context("no next issuer")?.trim().to_owned();
    let check = ["check", "--only", "identity.rotation", "-o", "json"];
    s.meshctl(check)?.ok()?.says("one is under way for 0 minutes, in phase trust")?;
    eventually(Duration::from_secs(30), "both are trusted", || proxies_are(&s, &[&old, &next], &old))?;
    s.meshctl(["identity", "rotate", "--abort"])?.ok()?.complains("the rotation is undone")?;
    status(&s)?.says("no rotation is under way")?;
    ensure!(issuer(&s)? == old, "another issuer after returning");
    eventually(Duration::from_secs(30), "everybody is back", || proxies_are(&s, &[&old], &old))?;

    // Whatever is killed goes on where it was, and an upgrade in between takes nothing back.
    for said in ["the new issuer is", "phase 1 of 3", "phase 2 of 3"] {
        killed_after(&s, said)?;
        status(&s)?.says("a rotation is under way")?;
        s.meshctl(["upgrade", "--apply"])?.ok()?;
    }
    s.meshctl(["identity", "rotate", "--abort"])?.exits(2)?.complains("there is no way back")?;
    s.meshctl(["identity", "rotate"])?.ok()?.complains("the identity is rotated")?;
    status(&s)?.says("no rotation is under way")?;

    let new = issuer(&s)?;
    ensure!(new != old, "nothing was rotated");
    proxies_are(&s, &[&new], &new)?;
    load.stop(&s)?;

    let anchors = ["-n", "mesh-system", "get", "cm", "mesh-trust-anchors", "-o", "jsonpath={.data.ca\\.crt}"];
    ensure!(s.kubectl(anchors)?.ok()?.stdout.matches("BEGIN").count() == 1, "the old anchor is still published");
    s.meshctl(["upgrade", "--diff"])?.ok()?;
    s.meshctl(["check", "--only", "identity"])?.ok()?;
    comes_back_with_old_anchors(&s, &new)
}

/// The container of a proxy is started again with the anchors that its pod was made with: control is still believed.
fn comes_back_with_old_anchors(s: &Sandbox, new: &str) -> Result<()> {
    kill(proxy_of(CALLER)?, Signal::SIGKILL)?;
    let restarts =
        ["-n", "shop", "get", "pod", CALLER, "-o", "jsonpath={.status.initContainerStatuses[*].restartCount}"];
    eventually(Duration::from_secs(60), "the proxy is started again and has its certificate", || {
        let count = s.kubectl(restarts)?.ok()?.stdout;
        ensure!(count.split_whitespace().any(|count| count != "0"), "restarts: {count}");
        proxies_are(s, &[new], new)
    })
}
