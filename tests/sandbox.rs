//! The life of a sandbox: up in time, several side by side, and nothing left behind, even after a crash.

use crate::harness::{BARE, Need, Sandbox, eventually, ourselves, run_with_input, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::collections::BTreeSet;
use std::io::BufRead;
use std::process::Stdio;
use std::time::{Duration, Instant};

const NEEDS: &[Need] = &[Need::Namespaces];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("sandbox::up_and_down_leave_nothing", NEEDS, up_and_down_leave_nothing),
        test("sandbox::a_crash_is_cleaned_up", NEEDS, a_crash_is_cleaned_up),
        test("sandbox::a_killed_test_run_leaves_nothing", NEEDS, a_killed_test_run_leaves_nothing),
        test("sandbox::two_run_side_by_side", NEEDS, two_run_side_by_side),
        test("sandbox::bad_names_and_images_are_refused", NEEDS, bad_names_and_images_are_refused),
        test("sandbox::a_kubeconfig_to_nowhere_fails_fast", &[], a_kubeconfig_to_nowhere_fails_fast),
    ]
}

/// Not about `meshctl` but about these tests: a run that somebody kills is not to leave sandboxes behind.
fn a_killed_test_run_leaves_nothing() -> Result<()> {
    let mut run = ourselves("mesh-holder")?.stdout(Stdio::piped()).spawn()?;
    let mut name = String::new();
    std::io::BufReader::new(run.stdout.take().context("no stdout")?).read_line(&mut name)?;
    let name = name.trim();
    let up = processes_of(name)?;
    run.kill()?;
    run.wait()?;
    ensure!(name.starts_with("held-") && !up.is_empty(), "no sandbox was up: {name}");
    eventually(Duration::from_secs(20), "everything of the sandbox ends", || {
        let left = processes_of(name)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}

/// Interfaces and mounts of the machine, which no sandbox may change.
fn machine() -> Result<(BTreeSet<String>, usize)> {
    let interfaces = std::fs::read_dir("/sys/class/net")?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    Ok((interfaces, std::fs::read_to_string("/proc/self/mounts")?.lines().count()))
}

/// Processes whose command line mentions a sandbox's name (this test's own `meshctl` calls have ended by then).
fn processes_of(name: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(name) {
            found.push(format!("{} {line}", entry.file_name().to_string_lossy()));
        }
    }
    Ok(found)
}

fn gone(sandbox_name: &str, folder: &std::path::Path) -> Result<()> {
    eventually(Duration::from_secs(5), "every process ends", || {
        let left = processes_of(sandbox_name)?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })?;
    ensure!(!folder.exists(), "{} is still there", folder.display());
    Ok(())
}

fn up_and_down_leave_nothing() -> Result<()> {
    let before = machine()?;
    let started = Instant::now();
    let sandbox = Sandbox::up("clean")?;
    let took = started.elapsed();
    ensure!(took < Duration::from_secs(20), "`up` took {took:?}");
    let (name, folder) = (sandbox.name.clone(), sandbox.kubeconfig.parent().context("no folder")?.to_owned());
    ensure!(!processes_of(&name)?.is_empty(), "nothing runs under the name");
    let status = sandbox.meshctl(["sandbox", "status", "--name", &name])?.ok()?;
    status.says(&name)?;
    let again = sandbox.meshctl(["sandbox", "up", "--name", &name])?.ok()?;
    ensure!(sandbox.kubeconfig.exists(), "a second `up` broke the first: {}", again.stderr);
    ensure!(machine()?.0 == before.0, "the machine's interfaces changed");
    sandbox.meshctl(["sandbox", "down", "--name", &name])?.ok()?;
    gone(&name, &folder)?;
    ensure!(machine()?.0 == before.0, "the machine's interfaces changed");
    sandbox.meshctl(["sandbox", "down", "--name", &name])?.ok()?;
    Ok(())
}

fn a_crash_is_cleaned_up() -> Result<()> {
    let sandbox = Sandbox::up("crash")?;
    let folder = sandbox.kubeconfig.parent().context("no folder")?.to_owned();
    for line in processes_of(&sandbox.name)? {
        let pid: i32 = line.split(' ').next().unwrap_or_default().parse()?;
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    eventually(Duration::from_secs(5), "the kernel ends what the sandbox ran", || {
        ensure!(processes_of(&sandbox.name)?.is_empty());
        Ok(())
    })?;
    sandbox.meshctl(["sandbox", "up", "--name", &sandbox.name])?.ok()?;
    sandbox.meshctl(["version"])?.ok()?;
    sandbox.meshctl(["sandbox", "down", "--name", &sandbox.name])?.ok()?;
    gone(&sandbox.name, &folder)
}

fn two_run_side_by_side() -> Result<()> {
    let (one, two) = (Sandbox::up("one")?, Sandbox::up("two")?);
    ensure!(one.kubeconfig != two.kubeconfig);
    let status = one.meshctl(["sandbox", "status", "-o", "json"])?.ok()?;
    status.says(&one.name)?.says(&two.name)?;
    drop(one);
    two.meshctl(["sandbox", "status", "--name", &two.name])?.ok()?.says(&two.name)?;
    Ok(())
}

fn bad_names_and_images_are_refused() -> Result<()> {
    for name in ["../up", "", "UPPER case", "a/b"] {
        let mut up = ourselves("meshctl")?;
        up.args(["sandbox", "up", "--name", name]);
        run_with_input(up, "")?.exits(2)?.complains("name")?;
    }
    let sandbox = BARE.get()?;
    let add = ["sandbox", "image", "add", "--name", &sandbox.name, "ghost", "/no/such/program"];
    sandbox.meshctl(add)?.exits(2)?.complains("/no/such/program")?;
    Ok(())
}

fn a_kubeconfig_to_nowhere_fails_fast() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("config");
    std::fs::write(
        &path,
        "apiVersion: v1\nkind: Config\ncurrent-context: x\ncontexts: [{name: x, context: {cluster: x, user: x}}]\n\
         clusters: [{name: x, cluster: {server: 'https://127.0.0.1:1'}}]\nusers: [{name: x, user: {}}]\n",
    )?;
    let started = Instant::now();
    let mut stat = ourselves("meshctl")?;
    stat.env("KUBECONFIG", &path).args(["stat", "deploy", "-A"]);
    let ran = run_with_input(stat, "")?.exits(2)?.complains("hint:")?;
    ensure!(started.elapsed() < Duration::from_secs(5), "took {:?}", started.elapsed());
    ensure!(ran.stderr.lines().count() <= 3, "{}", ran.stderr);
    Ok(())
}
