//! HTTP/1.0 and 1.1 (RFC 9112) between meshed pods.

use super::ground::{From, Ground, NEEDS};
use crate::harness::test;
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("data_path::http1::{name}"), NEEDS, run);
    vec![
        test("an_http10_client_is_answered_as_one", an_http10_client_is_answered_as_one),
        test("connections_are_kept_alive", connections_are_kept_alive),
        test("pipelined_requests_are_answered_in_order", pipelined_requests_are_answered_in_order),
        test("chunks_flow_both_ways", chunks_flow_both_ways),
        test("trailers_pass_both_ways", trailers_pass_both_ways),
        test("expect_100_continue_is_answered_by_the_application", expect_100_continue_is_answered_by_the_application),
        test("an_early_response_arrives", an_early_response_arrives),
        test(
            "responses_without_a_body_keep_the_connection_in_step",
            responses_without_a_body_keep_the_connection_in_step,
        ),
        test("fields_of_one_hop_stay_there", fields_of_one_hop_stay_there),
        test("an_upgrade_becomes_a_tunnel", an_upgrade_becomes_a_tunnel),
        test("websockets_converse", websockets_converse),
        test("connect_becomes_a_tunnel", connect_becomes_a_tunnel),
        test("absolute_targets_reach_the_application", absolute_targets_reach_the_application),
        test("large_headers_pass_up_to_the_limit", large_headers_pass_up_to_the_limit),
        test("a_half_closed_client_is_still_answered", a_half_closed_client_is_still_answered),
        test("ambiguous_framing_is_refused", ambiguous_framing_is_refused),
    ]
}

fn an_http10_client_is_answered_as_one() -> Result<()> {
    let g = Ground::get()?;
    // An answer that is sent in chunks to others: HTTP/1.0 has none, so the end of the connection ends it.
    let ran = g.sh(From::Meshed, "curl -sS -i --http1.0 --raw http://origin:8080/chunks")?.ok()?;
    let head = ran.stdout.to_ascii_lowercase();
    ensure!(head.starts_with("http/1.0 200") && !head.contains("transfer-encoding"), "{}", ran.stdout);
    ensure!(ran.stdout.ends_with("\r\n\r\none two three\n"), "{:?}", ran.stdout);
    // And without a Host field, which HTTP/1.0 did not have.
    let said = g.peer(From::Meshed, &["raw", "origin:8080", "GET /headers HTTP/1.0\\r\\n\\r\\n"])?;
    ensure!(said.contains("GET /headers") && said.contains("\nhost: "), "{said}");
    g.encrypted("rps")
}

fn connections_are_kept_alive() -> Result<()> {
    let g = Ground::get()?;
    let url = "http://origin:8080/a";
    let line = format!("curl -sS -w '%{{num_connects}} ' -o /dev/null {url} -o /dev/null {url} -o /dev/null {url}");
    let connects = g.sh(From::Meshed, &line)?.ok()?.stdout;
    ensure!(connects.trim() == "1 0 0", "connections made: {connects}");
    // And closed if the client says so.
    let line = "curl -sS -i -H 'Connection: close' http://origin:8080/a";
    ensure!(g.sh(From::Meshed, line)?.ok()?.stdout.to_ascii_lowercase().contains("connection: close"), "kept open");
    g.encrypted("rps")
}

fn pipelined_requests_are_answered_in_order() -> Result<()> {
    let g = Ground::get()?;
    let head = "Host: origin\\r\\n";
    let requests = format!(
        "GET /chunks HTTP/1.1\\r\\n{head}\\r\\nPOST /echo HTTP/1.1\\r\\n{head}Content-Length: 6\\r\\n\\r\\nsecond\
         GET /third HTTP/1.1\\r\\n{head}Connection: close\\r\\n\\r\\n"
    );
    let said = g.peer(From::Meshed, &["raw", "origin:8080", &requests])?;
    let places: Vec<_> = ["three\n", "second", "this is /third"].iter().map(|text| said.find(text)).collect();
    ensure!(
        places.iter().all(Option::is_some) && places.is_sorted() && said.ends_with("[closed]"),
        "{places:?}: {said}"
    );
    g.encrypted("rps")
}

fn chunks_flow_both_ways() -> Result<()> {
    let g = Ground::get()?;
    // `-T -` sends what comes, as it comes, in chunks.
    let line = "(printf first; sleep 0.1; printf second) | curl -sS -i -T - http://origin:8080/echo";
    let ran = g.sh(From::Meshed, line)?.ok()?;
    ensure!(ran.stdout.ends_with("\r\n\r\nfirstsecond"), "{:?}", ran.stdout);
    ensure!(ran.stdout.to_ascii_lowercase().contains("transfer-encoding: chunked"), "{:?}", ran.stdout);
    let line = "head -c 3000000 /dev/urandom | tee >(sha256sum | cut -c1-64 >&2) | \
                curl -sS -H 'Transfer-Encoding: chunked' -T - http://origin:8080/echo | sha256sum | cut -c1-64";
    let ran = g.sh(From::Meshed, line)?.ok()?;
    ensure!(ran.stdout == ran.stderr && ran.stdout.len() == 65, "{} became {}", ran.stderr, ran.stdout);
    g.encrypted("rps")
}

fn trailers_pass_both_ways() -> Result<()> {
    let g = Ground::get()?;
    let line = "curl -sS --raw -H 'TE: trailers' http://origin:8080/chunks";
    let raw = g.sh(From::Meshed, line)?.ok()?.stdout;
    ensure!(raw.ends_with("\r\n0\r\nx-sum: 14\r\n\r\n"), "{raw:?}");
    let request = "POST /echo HTTP/1.1\\r\\nHost: origin\\r\\nTE: trailers\\r\\nConnection: close, TE\\r\\nTrailer: x-sum\\r\\n\
                   Transfer-Encoding: chunked\\r\\n\\r\\n4\\r\\nbody\\r\\n0\\r\\nx-sum: 4\\r\\n\\r\\n";
    let said = g.peer(From::Meshed, &["raw", "origin:8080", request])?;
    ensure!(said.contains("body\r\n0\r\nx-sum: 4\r\n\r\n"), "{said}");
    g.encrypted("rps")
}

fn expect_100_continue_is_answered_by_the_application() -> Result<()> {
    let g = Ground::get()?;
    let body =
        "head -c 200000 /dev/zero | curl -sS -v --expect100-timeout 8 -H 'Expect: 100-continue' --data-binary @-";
    // The one that reads the body says so first.
    let ran = g.sh(From::Meshed, &format!("{body} http://origin:8080/collect"))?.ok()?;
    ensure!(ran.stderr.contains("HTTP/1.1 100 Continue"), "{}", ran.stderr);
    ensure!(ran.stdout == "200000 bytes", "{}", ran.stdout);
    // One that begins to answer before it reads does not say it, and is sent the body all the same.
    let ran =
        g.sh(From::Meshed, &format!("{body} -o /dev/null -w '%{{size_download}}' http://origin:8080/echo"))?.ok()?;
    ensure!(ran.stdout == "200000" && !ran.stderr.contains("100 Continue"), "{} {}", ran.stdout, ran.stderr);
    // The one that does not want it says that instead, and is not sent it.
    let ran = g.sh(From::Meshed, &format!("{body} -w ' %{{size_upload}}' http://origin:8080/early"))?.ok()?;
    ensure!(ran.stderr.contains("HTTP/1.1 413") && !ran.stderr.contains("100 Continue"), "{}", ran.stderr);
    ensure!(ran.stdout == "too much\n 0", "{}", ran.stdout);
    g.encrypted("rps")
}

fn an_early_response_arrives() -> Result<()> {
    let g = Ground::get()?;
    // The body is still being sent when the answer comes; there is far more of it than buffers on the way.
    let line = "head -c 30000000 /dev/zero | curl -sS -H 'Expect:' -T - -w ' %{http_code}' http://origin:8080/early";
    let ran = g.sh(From::Meshed, line)?;
    ensure!(ran.stdout == "too much\n 413", "{:?} {:?}", ran.stdout, ran.stderr);
    g.encrypted("rps")
}

fn responses_without_a_body_keep_the_connection_in_step() -> Result<()> {
    let g = Ground::get()?;
    let request =
        |method: &str, path: &str, more: &str| format!("{method} {path} HTTP/1.1\\r\\nHost: o\\r\\n{more}\\r\\n");
    let requests = [
        request("HEAD", "/big?5000", ""),
        request("GET", "/no-content", ""),
        request("GET", "/not-modified", "If-None-Match: \"one\"\\r\\n"),
        request("HEAD", "/chunks", ""),
        request("GET", "/last", "Connection: close\\r\\n"),
    ];
    let said = g.peer(From::Meshed, &["raw", "origin:8080", &requests.concat()])?;
    let statuses: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)).collect();
    ensure!(statuses == ["200", "204", "304", "200", "200"], "{statuses:?}: {said}");
    ensure!(said.contains("this is /last") && !said.contains("xxxx"), "{said}");
    // RFC 9112 §6.3: no body, so nothing that announces one.
    let no_content = said.split("HTTP/1.1 ").find(|part| part.starts_with("204")).context("204")?;
    let lower = no_content.to_ascii_lowercase();
    ensure!(!lower.contains("content-length") && !lower.contains("transfer-encoding"), "{no_content}");
    ensure!(said.contains("etag: \"one\""), "{said}");
    g.encrypted("rps")
}

fn fields_of_one_hop_stay_there() -> Result<()> {
    let g = Ground::get()?;
    let line = "curl -sS http://origin:8080/headers -H 'Connection: keep-alive, X-Hop' -H 'X-Hop: 1' -H 'X-End: 2' \
                -H 'Keep-Alive: timeout=5' -H 'Proxy-Connection: keep-alive' -H 'TE: gzip'";
    let seen = g.sh(From::Meshed, line)?.ok()?.stdout;
    ensure!(seen.contains("\nx-end: 2\n"), "{seen}");
    for field in ["x-hop", "keep-alive", "proxy-connection", "te: gzip"] {
        ensure!(!seen.contains(&format!("\n{field}")), "{field} went through: {seen}");
    }
    g.encrypted("rps")
}

fn an_upgrade_becomes_a_tunnel() -> Result<()> {
    let g = Ground::get()?;
    let request =
        "GET /upgrade HTTP/1.1\\r\\nHost: origin\\r\\nConnection: upgrade\\r\\nUpgrade: echo\\r\\n\\r\\nin the tunnel";
    let said = g.peer(From::Meshed, &["raw", "origin:8080", request, "shut"])?;
    let lower = said.to_ascii_lowercase();
    ensure!(said.starts_with("HTTP/1.1 101") && lower.contains("\nupgrade: echo\r\n"), "{said}");
    ensure!(said.ends_with("\r\n\r\nin the tunnel[closed]"), "{said}");
    // The application may decline.
    let request = request.replace("Upgrade: echo", "Upgrade: other").replace("in the tunnel", "");
    let said = g.peer(From::Meshed, &["raw", "origin:8080", &request, "shut"])?;
    ensure!(said.starts_with("HTTP/1.1 426"), "{said}");
    g.encrypted("rps")
}

fn websockets_converse() -> Result<()> {
    let g = Ground::get()?;
    g.peer_says(&["websocket", "origin:8080"], "conversed")?;
    g.encrypted("tcp_read_bytes_rate")
}

fn connect_becomes_a_tunnel() -> Result<()> {
    let g = Ground::get()?;
    let request = "CONNECT elsewhere.example:5432 HTTP/1.1\\r\\nHost: elsewhere.example:5432\\r\\n\\r\\nin the tunnel";
    let said = g.peer(From::Meshed, &["raw", "origin:8080", request, "shut"])?;
    ensure!(said.starts_with("HTTP/1.1 200") && said.ends_with("\r\n\r\nin the tunnel[closed]"), "{said}");
    g.encrypted("rps")
}

fn absolute_targets_reach_the_application() -> Result<()> {
    let g = Ground::get()?;
    // The origin plays a forward proxy.
    let line = "curl -sS -x http://origin:8080 http://somewhere.example/headers";
    let seen = g.sh(From::Meshed, line)?.ok()?.stdout;
    ensure!(seen.starts_with("GET http://somewhere.example/headers "), "{seen}");
    ensure!(seen.contains("\nhost: somewhere.example\n"), "{seen}");
    // A Host field that says otherwise would count for some servers and not for others.
    let ran = g.sh(From::Meshed, &format!("{line} -H 'Host: other.example' -w '%{{http_code}}'"))?.ok()?;
    ensure!(ran.stdout.contains("invalid-request") && ran.stdout.ends_with("400"), "{}", ran.stdout);
    g.encrypted("rps")
}

fn large_headers_pass_up_to_the_limit() -> Result<()> {
    let g = Ground::get()?;
    let line = |bytes: u32| {
        format!(
            "printf 'X-Large: %s' \"$(head -c {bytes} /dev/zero | tr '\\0' y)\" | \
             curl -sS -H @- -o /dev/null -D - -w '%{{http_code}}' http://origin:8080/headers"
        )
    };
    let ran = g.sh(From::Meshed, &line(40_000))?.ok()?;
    ensure!(ran.stdout.ends_with("200"), "{}", ran.stdout);
    let ran = g.sh(From::Meshed, &line(90_000))?;
    ensure!(ran.stdout.ends_with("431"), "{} {}", ran.stdout, ran.stderr);
    g.encrypted("rps")
}

fn a_half_closed_client_is_still_answered() -> Result<()> {
    let g = Ground::get()?;
    let request = "GET /slow HTTP/1.1\\r\\nHost: origin\\r\\n\\r\\n";
    let said = g.peer(From::Meshed, &["raw", "origin:8080", request, "shut"])?;
    ensure!(said.starts_with("HTTP/1.1 200") && said.ends_with("slow[closed]"), "{said}");
    g.encrypted("rps")
}

fn ambiguous_framing_is_refused() -> Result<()> {
    let g = Ground::get()?;
    for fields in [
        "Content-Length: 5\\r\\nTransfer-Encoding: chunked",
        "Content-Length: 5\\r\\nContent-Length: 6",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: +5",
        "Host: another",
    ] {
        let request = format!(
            "POST /echo HTTP/1.1\\r\\nHost: origin\\r\\n{fields}\\r\\n\\r\\n0\\r\\n\\r\\nGET /smuggled HTTP/1.1\\r\\nHost: origin\\r\\n\\r\\n"
        );
        let said = g.peer(From::Meshed, &["raw", "origin:8080", &request])?;
        ensure!(said.starts_with("HTTP/1.1 4") || said.starts_with("HTTP/1.1 501"), "{fields}: {said}");
        ensure!(!said.contains("smuggled") && said.ends_with("[closed]"), "{fields}: {said}");
    }
    Ok(())
}
