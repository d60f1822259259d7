//! HTTP/2 with prior knowledge (RFC 9113) between meshed pods.

use super::ground::{From, Ground, NEEDS};
use crate::harness::test;
use anyhow::{Result, ensure};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("data_path::http2::{name}"), NEEDS, run);
    vec![
        test("curl_speaks_it_with_prior_knowledge", curl_speaks_it_with_prior_knowledge),
        test("h2load_multiplexes", h2load_multiplexes),
        test("nghttp_reaches_nghttpd", nghttp_reaches_nghttpd),
        test("large_headers_come_in_continuations", large_headers_come_in_continuations),
        test("trailers_pass_both_ways", trailers_pass_both_ways),
        test("a_slow_reader_slows_itself_alone", a_slow_reader_slows_itself_alone),
        test("a_cancelled_request_ends_at_the_application", a_cancelled_request_ends_at_the_application),
        test("a_reset_answer_is_reset_with_its_reason", a_reset_answer_is_reset_with_its_reason),
        test("pings_are_answered", pings_are_answered),
        test("an_early_response_arrives", an_early_response_arrives),
        test("a_websocket_runs_in_an_extended_connect", a_websocket_runs_in_an_extended_connect),
        test("a_restart_under_load_fails_no_request", a_restart_under_load_fails_no_request),
        test("rapid_resets_are_stopped", rapid_resets_are_stopped),
    ]
}

fn curl_speaks_it_with_prior_knowledge() -> Result<()> {
    let g = Ground::get()?;
    let line = "curl -sS -i --http2-prior-knowledge --data-binary hello http://origin:8081/echo";
    let ran = g.sh(From::Meshed, line)?.ok()?;
    ensure!(ran.stdout.starts_with("HTTP/2 200") && ran.stdout.ends_with("hello"), "{}", ran.stdout);
    g.encrypted("rps")
}

fn h2load_multiplexes() -> Result<()> {
    let g = Ground::get()?;
    let line = "h2load -n 1000 -c 2 -m 50 http://origin:8081/some";
    g.sh(From::Meshed, line)?.ok()?.says("1000 succeeded, 0 failed, 0 errored, 0 timeout")?;
    g.encrypted("rps")
}

fn nghttp_reaches_nghttpd() -> Result<()> {
    let g = Ground::get()?;
    // With priorities (nghttp builds a tree of them by default), small windows, and a trailer on the way back.
    let line = "nghttp -v -w 10 -W 11 http://origin:8082/services";
    let ran = g.sh(From::Meshed, line)?.ok()?;
    ensure!(ran.stdout.contains(":status: 200") && ran.stdout.contains("x-sum: 7"), "{}", ran.stdout);
    ensure!(ran.stdout.contains("send PRIORITY frame"), "nghttp no longer sends priorities");
    let served = g.sh(From::Meshed, "nghttp -w 10 -W 11 http://origin:8082/services")?.ok()?.stdout;
    ensure!(served == std::fs::read_to_string("/etc/services")?, "another file came: {} bytes", served.len());
    g.encrypted("rps")
}

fn large_headers_come_in_continuations() -> Result<()> {
    let g = Ground::get()?;
    // More than fits into one frame, which has 16 KiB.
    let line = "printf 'X-Large: %s' \"$(head -c 40000 /dev/zero | tr '\\0' y)\" | curl -sS --http2-prior-knowledge \
                -H @- http://origin:8081/headers | grep '^x-large: ' | tr -dc y | wc -c";
    ensure!(g.sh(From::Meshed, line)?.ok()?.stdout.trim() == "40000", "the field came otherwise");
    let ran = g.sh(From::Meshed, "nghttp --continuation -v http://origin:8081/headers")?.ok()?;
    let status = ran.stdout.contains(":status: 200");
    ensure!(status && ran.stdout.contains("\ncontinuation-test-6: ---"), "{}", ran.stdout);
    g.encrypted("rps")
}

fn trailers_pass_both_ways() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["h2", "origin:8081", "trailers"], r#"{"x-sum": "4"}"#)?;
    g.encrypted("rps")
}

fn a_slow_reader_slows_itself_alone() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["h2", "origin:8081", "slow-reader"], "others flow")?;
    g.encrypted("rps")
}

fn a_cancelled_request_ends_at_the_application() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["h2", "origin:8081", "cancel"], "noticed")?;
    g.encrypted("rps")
}

fn a_reset_answer_is_reset_with_its_reason() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["h2", "origin:8081", "be-reset"], "ENHANCE_YOUR_CALM")?;
    g.encrypted("rps")
}

fn pings_are_answered() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["h2", "origin:8081", "ping"], "pong")?;
    g.encrypted("rps")
}

fn an_early_response_arrives() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["h2", "origin:8081", "early"], "too much")?;
    g.encrypted("rps")
}

fn a_websocket_runs_in_an_extended_connect() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["h2", "origin:8081", "websocket"], "conversed")?;
    g.encrypted("tcp_read_bytes_rate")
}

fn a_restart_under_load_fails_no_request() -> Result<()> {
    let g = Ground::get()?;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let line = "h2load -D 6 -c 2 -m 4 --rps 100 http://open:8081/some";
            g.sh(From::Meshed, line)
        });
        std::thread::sleep(std::time::Duration::from_millis(500));
        g.kubectl(&["rollout", "restart", "deploy/open"])?.ok()?;
        g.kubectl(&["rollout", "status", "deploy/open", "--timeout=30s"])?.ok()?;
        let ran = load.join().map_err(|_| anyhow::anyhow!("h2load panicked"))??.ok()?;
        ensure!(ran.stdout.contains(" 0 failed, 0 errored, 0 timeout"), "{}", ran.stdout);
        ensure!(ran.stdout.contains(" 0 4xx, 0 5xx"), "{}", ran.stdout);
        Ok(())
    })
}

fn rapid_resets_are_stopped() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["h2", "origin:8081", "rapid-reset"], "stopped")
}
