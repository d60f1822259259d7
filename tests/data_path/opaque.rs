//! What is not HTTP, or cannot be looked into, between meshed pods.

use super::ground::{DECLARED_HTTP1, DECLARED_TCP, From, Ground, NEEDS};
use crate::harness::{eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("data_path::opaque::{name}"), NEEDS, run);
    vec![
        test("a_server_that_speaks_first_is_heard_at_once", a_server_that_speaks_first_is_heard_at_once),
        test("a_declared_port_needs_no_guessing", a_declared_port_needs_no_guessing),
        test("bash_hears_a_server_that_speaks_first", bash_hears_a_server_that_speaks_first),
        test("bytes_arrive_unchanged_both_ways", bytes_arrive_unchanged_both_ways),
        test("a_half_closed_connection_goes_on_the_other_way", a_half_closed_connection_goes_on_the_other_way),
        test("resets_pass_both_ways", resets_pass_both_ways),
        test("an_idle_connection_stays", an_idle_connection_stays),
        test("a_reader_that_stalls_stops_the_sender", a_reader_that_stalls_stops_the_sender),
        test("tls_of_the_application_passes_untouched", tls_of_the_application_passes_untouched),
    ]
}

fn milliseconds(said: &str) -> Result<u64> {
    let number = said.strip_prefix("waited ").and_then(|rest| rest.strip_suffix(" ms"));
    number.with_context(|| said.to_owned())?.parse().context("a number")
}

fn a_server_that_speaks_first_is_heard_at_once() -> Result<()> {
    let g = Ground::get()?;
    // The client says nothing: a tenth of a second is waited for it to, and then never again for this port.
    let first = milliseconds(&g.peer(From::Meshed, &["tcp", "origin:9000", "listen"])?)?;
    ensure!((50..400).contains(&first), "the first connection waited {first} ms");
    let later: Vec<u64> = (0..5)
        .map(|_| milliseconds(&g.peer(From::Meshed, &["tcp", "origin:9000", "listen"])?))
        .collect::<Result<_>>()?;
    ensure!(later.iter().min() < Some(&80), "remembered, yet they waited {later:?} ms");
    g.encrypted("tcp_read_bytes_rate")
}

fn a_declared_port_needs_no_guessing() -> Result<()> {
    let g = Ground::get()?;
    let waited: Vec<u64> = (0..5)
        .map(|_| milliseconds(&g.peer(From::Meshed, &["tcp", &format!("origin:{DECLARED_TCP}"), "listen"])?))
        .collect::<Result<_>>()?;
    ensure!(waited.iter().min() < Some(&80), "declared, yet they waited {waited:?} ms");
    let line = format!("curl -sS http://origin:{DECLARED_HTTP1}/some");
    g.sh(From::Meshed, &line)?.ok()?.says("this is /some")?;
    // HTTP it is, whatever comes: a client that speaks something else is told.
    let said = g.peer(From::Meshed, &["raw", &format!("origin:{DECLARED_HTTP1}"), "hello there\\r\\n\\r\\n"])?;
    ensure!(said.starts_with("HTTP/1.1 400") || said == "[closed]", "{said}");
    g.encrypted("tcp_read_bytes_rate")
}

fn bash_hears_a_server_that_speaks_first() -> Result<()> {
    let g = Ground::get()?;
    let line = "exec 3<>/dev/tcp/origin/9000; head -n1 <&3; printf 'and back\\n' >&3; head -n1 <&3";
    g.sh(From::Meshed, line)?.ok()?.says("220 ready\r\nand back\n")?;
    g.encrypted("tcp_read_bytes_rate")
}

fn bytes_arrive_unchanged_both_ways() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["tcp", "origin:9003", "bulk"], "4000000 bytes came back")?;
    g.encrypted("tcp_read_bytes_rate")
}

fn a_half_closed_connection_goes_on_the_other_way() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["tcp", "origin:9001", "half-close"], "got 100000 bytes")?;
    g.encrypted("tcp_read_bytes_rate")
}

fn seen(g: &Ground, name: &str) -> Result<u64> {
    let text = g.sh(From::Meshed, "curl -sS http://origin:8080/seen")?.ok()?.stdout;
    let value = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.with_context(|| text.clone())?.parse().context("a number")
}

fn resets_pass_both_ways() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["tcp", "origin:9002", "be-reset"], "reset")?;
    let before = seen(g, "resets")?;
    g.peer_says(&["tcp", "origin:9005", "reset"], "reset")?;
    eventually(Duration::from_secs(5), "the origin is reset", || {
        ensure!(seen(g, "resets")? > before, "not yet");
        Ok(())
    })?;
    // An end in order is one.
    let (resets, closes) = (seen(g, "resets")?, seen(g, "closes")?);
    g.peer_says(&["tcp", "origin:9005", "close"], "closed")?;
    ensure!(seen(g, "closes")? > closes && seen(g, "resets")? == resets, "an end in order became a reset");
    g.encrypted("rps")
}

fn an_idle_connection_stays() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["tcp", "origin:9003", "idle"], "still there")?;
    g.encrypted("tcp_read_bytes_rate")
}

fn a_reader_that_stalls_stops_the_sender() -> Result<()> {
    let g = Ground::get()?;
    let before = seen(g, "flooded")?;
    g.peer_says(&["tcp", "origin:9004", "stall"], "stalled")?;
    // What fits into the buffers of six sockets on the way, far from two seconds' worth of sending.
    let sent = seen(g, "flooded")? - before;
    ensure!(sent < 100_000_000, "{sent} bytes were sent to a client that took a thousand");
    g.encrypted("rps")
}

fn tls_of_the_application_passes_untouched() -> Result<()> {
    let g = Ground::get()?;
    let line = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | openssl s_client -connect origin:8443 -servername theirs.example \
                -ign_eof 2>&1";
    let ran = g.sh(From::Meshed, line)?;
    // The certificate is the application's own, and so is the session.
    ensure!(ran.stdout.contains("subject=CN = theirs.example"), "{}", ran.stdout);
    ensure!(ran.stdout.contains("HTTP/1.0 200 ok"), "{}", ran.stdout);
    g.sh(
        From::Meshed,
        "curl -sSk --resolve theirs.example:8443:$(getent hosts origin | cut -d' ' -f1) https://theirs.example:8443/",
    )?
    .ok()?
    .says("s_server")?;
    g.encrypted("tcp_read_bytes_rate")
}
