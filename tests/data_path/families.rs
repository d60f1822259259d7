//! IPv6, and those without a proxy: who talks to whom over what.

use super::ground::{From, Ground, NEEDS};
use crate::harness::{Need, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    let test6 = |name: &str, run: fn() -> Result<()>| {
        let needs: Vec<Need> = NEEDS.iter().copied().chain([Need::Ipv6]).collect();
        crate::harness::test(&format!("data_path::ipv6::{name}"), &needs, run)
    };
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("data_path::unmeshed::{name}"), NEEDS, run);
    vec![
        test6("pods_services_and_names_have_both_families", pods_services_and_names_have_both_families),
        test6("http_is_encrypted", || {
            over_ipv6("rps", |g, ip| {
                let url = format!("curl -sS -i 'http://[{ip}]:8080/headers'");
                g.sh(From::Meshed, &url)?.ok()?.says(&format!("host: [{ip}]:8080"))?;
                let url = format!("curl -sS -i --http2-prior-knowledge 'http://[{ip}]:8081/some'");
                g.sh(From::Meshed, &url)?.ok()?.says("HTTP/2 200").map(drop)
            })
        }),
        test6("tcp_is_encrypted", || {
            over_ipv6("tcp_read_bytes_rate", |g, ip| {
                g.peer_says(&["tcp", &format!("[{ip}]:9003"), "bulk"], "4000000 bytes came back")?;
                g.peer_says(&["tcp", &format!("[{ip}]:9001"), "half-close"], "got 100000 bytes")
            })
        }),
        test6("names_lead_there", || {
            over_ipv6("rps", |g, _| {
                g.sh(From::Meshed, "curl -6 -sS -w '%{remote_ip}' http://origin:8080/some")?
                    .ok()?
                    .says("fd6d:")
                    .map(drop)
            })
        }),
        test6("a_pod_reaches_itself", a_pod_reaches_itself),
        test6("unmeshed_pods_talk", unmeshed_pods_talk),
        test("http_from_the_mesh_leaves_it", || both_protocols(From::Meshed, "bare")),
        test("http_from_outside_comes_in", || both_protocols(From::Unmeshed, "open")),
        test("tcp_from_the_mesh_leaves_it", || opaque(From::Meshed, "bare")),
        test("tcp_from_outside_comes_in", || opaque(From::Unmeshed, "open")),
        test("port_forwarding_reaches_a_meshed_pod", port_forwarding_reaches_a_meshed_pod),
    ]
}

/// The Service's IPv6 cluster IP.
fn cluster_ip(g: &Ground, service: &str) -> Result<String> {
    let path = "jsonpath={.spec.clusterIPs[1]}";
    let ip = g.kubectl(&["get", "service", service, "-o", path])?.ok()?.stdout;
    ensure!(ip.starts_with("fd6d:6573:6800:96::"), "{service} has `{ip}`");
    Ok(ip)
}

fn over_ipv6(key: &str, call: fn(&Ground, &str) -> Result<()>) -> Result<()> {
    let g = Ground::get()?;
    call(g, &cluster_ip(g, "origin")?)?;
    g.encrypted(key)
}

fn pods_services_and_names_have_both_families() -> Result<()> {
    let g = Ground::get()?;
    let read = |arguments: &[&str]| -> Result<Value> {
        Ok(serde_json::from_str(&g.kubectl(&[arguments, &["-o", "json"]].concat())?.ok()?.stdout)?)
    };
    let pod = read(&["get", "pod", "caller"])?;
    let ips: Vec<&str> =
        pod["status"]["podIPs"].as_array().into_iter().flatten().filter_map(|ip| ip["ip"].as_str()).collect();
    ensure!(
        matches!(ips[..], [v4, v6] if v4.starts_with("10.244.") && v6.starts_with("fd6d:6573:6800:244::")),
        "{ips:?}"
    );
    let service = read(&["get", "service", "origin"])?;
    ensure!(service["spec"]["ipFamilies"] == serde_json::json!(["IPv4", "IPv6"]), "{service}");
    let slices = read(&["get", "endpointslices", "-l", "kubernetes.io/service-name=origin"])?;
    let mut families: Vec<&str> =
        slices["items"].as_array().into_iter().flatten().filter_map(|slice| slice["addressType"].as_str()).collect();
    families.sort_unstable();
    families.dedup();
    ensure!(families == ["IPv4", "IPv6"], "{families:?}");
    let found = g.sh(From::Unmeshed, "getent ahostsv6 origin | head -n1 | cut -d' ' -f1")?.ok()?.stdout;
    ensure!(found.trim() == cluster_ip(g, "origin")?, "origin is {found}");
    let node = read(&["get", "node", "sandbox"])?;
    ensure!(node["spec"]["podCIDRs"].as_array().is_some_and(|ranges| ranges.len() == 2), "{}", node["spec"]);
    Ok(())
}

fn a_pod_reaches_itself() -> Result<()> {
    let g = Ground::get()?;
    let ip = cluster_ip(g, "origin")?;
    for ip in [format!("[{ip}]"), "origin".to_owned()] {
        let url = format!("http://{ip}:8080/myself");
        let command = ["exec", "deploy/origin", "-c", "main", "--", "curl", "-sS", "--max-time", "5", &url];
        g.kubectl(&command)?.ok()?.says("this is /myself")?;
    }
    g.encrypted("rps")
}

fn unmeshed_pods_talk() -> Result<()> {
    let g = Ground::get()?;
    for (from, service) in [(From::Meshed, "bare"), (From::Unmeshed, "open"), (From::Unmeshed, "bare")] {
        let ip = cluster_ip(g, service)?;
        let line = format!("curl -sS 'http://[{ip}]:8080/some'");
        g.sh(from, &line)?.ok()?.says("this is /some").with_context(|| format!("{from:?} to {service}"))?;
        let said = g.peer(from, &["tcp", &format!("[{ip}]:9001"), "half-close"])?;
        ensure!(said == "got 100000 bytes", "{from:?} to {service}: {said}");
    }
    Ok(())
}

fn both_protocols(from: From, service: &str) -> Result<()> {
    let g = Ground::get()?;
    for (options, port, version) in [("", 8080, "HTTP/1.1 200"), ("--http2-prior-knowledge", 8081, "HTTP/2 200")] {
        let line = format!("curl -sS -i {options} --data-binary hello http://{service}:{port}/echo");
        let ran = g.sh(from, &line)?.ok()?;
        ensure!(ran.stdout.starts_with(version) && ran.stdout.ends_with("hello"), "{}", ran.stdout);
    }
    let said = g.peer(from, &["websocket", &format!("{service}:8080")])?;
    ensure!(said == "conversed", "{said}");
    let said = g.peer(from, &["grpc", &format!("{service}:8081"), "both"])?;
    ensure!(said == "[] status=0", "{said}");
    if service == "open" {
        plain(g, "rps")?;
    }
    Ok(())
}

fn opaque(from: From, service: &str) -> Result<()> {
    let g = Ground::get()?;
    for (port, case, expected) in [
        (9003, "bulk", "4000000 bytes came back"),
        (9001, "half-close", "got 100000 bytes"),
        (9002, "be-reset", "reset"),
    ] {
        let said = g.peer(from, &["tcp", &format!("{service}:{port}"), case])?;
        ensure!(said == expected, "{case}: {said}");
    }
    // Silent clients wait for neither side's proxy longer than a tenth of a second.
    let said = g.peer(from, &["tcp", &format!("{service}:9000"), "listen"])?;
    let waited = said.trim_start_matches("waited ").trim_end_matches(" ms").parse::<u64>().context(said)?;
    ensure!(waited < 400, "waited {waited} ms for the server's first word");
    if service == "open" {
        plain(g, "tcp_read_bytes_rate")?;
    }
    Ok(())
}

/// What comes from outside the mesh is counted, and not as encrypted.
fn plain(g: &Ground, key: &str) -> Result<()> {
    eventually(Duration::from_secs(5), "the traffic shows up in stat", || {
        let row = g.row("open")?;
        ensure!(row[key].as_f64().is_some_and(|value| value > 0.0), "no {key}: {row}");
        ensure!(row["mtls_rate"].as_f64().is_some_and(|rate| rate < 1.0), "plain text counted as encrypted: {row}");
        Ok(())
    })
}

fn port_forwarding_reaches_a_meshed_pod() -> Result<()> {
    let g = Ground::get()?;
    let mut forward = g.sandbox.kubectl_command(["-n", "path", "port-forward", "deploy/open", ":8080"])?;
    let mut child = forward.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn()?;
    let outcome = (|| {
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().context("no stdout")?);
        std::io::BufRead::read_line(&mut stdout, &mut line)?;
        let port = line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")).context(line.clone())?;
        let mut curl = std::process::Command::new("curl");
        curl.args(["-sS", "--max-time", "5", &format!("http://127.0.0.1:{port}/forwarded")]);
        crate::harness::run_with_input(curl, "")?.ok()?.says("this is /forwarded").map(drop)
    })();
    let _ = child.kill();
    let _ = child.wait();
    outcome
}
