//! The end of a proxy, and the requests that must survive it.

use crate::frames::*;
use crate::world::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[tokio::test]
async fn no_request_is_lost() {
    let (_load, mut web, app) = mesh().await;
    let inbound = web.inbound;
    let forgotten = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let forgotten = forgotten.clone();
        clients.spawn(async move {
            // Keeps a connection until told to close it, then opens another: a client whose list of endpoints lags
            // behind.
            let mut answered = 0;
            while !forgotten.load(Ordering::Relaxed) {
                let mut http = Http::one(inbound).await;
                loop {
                    let got = http.get("/work").await;
                    assert_eq!(got.status, 200);
                    answered += 1;
                    if got.headers.get("connection").is_some_and(|c| c == "close") {
                        break;
                    }
                }
            }
            answered
        });
    }
    let mut slow_one = Http::one(inbound).await;
    let slow_one = tokio::spawn(async move { slow_one.get("/slow").await });
    let mut slow_two = Http::two(inbound).await;
    let slow_two = tokio::spawn(async move { slow_two.get("/slow").await });
    while app.count() < 50 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    web.shut_down();
    tokio::time::sleep(Duration::from_millis(100)).await;
    forgotten.store(true, Ordering::Relaxed);
    assert!(web.admin("/ready").await.starts_with("HTTP/1.1 503"));
    assert!(web.admin("/live").await.starts_with("HTTP/1.1 200"));
    for slow in [slow_one, slow_two] {
        let got = slow.await.unwrap();
        assert_eq!((got.status, &got.body[..]), (200, &b"slow"[..]));
    }
    let start = Instant::now();
    web.ended().await;
    assert!(start.elapsed() < Duration::from_secs(5), "nothing was left to wait for");
    let answered: usize = clients.join_all().await.into_iter().sum();
    assert_eq!(app.count(), answered + 2);
}

/// What a slow reader sends while it reads must not make the kernel throw away what it has not read yet.
#[tokio::test]
async fn a_slow_reader_gets_its_answer_to_the_end() {
    let (_load, mut web, _app) = mesh().await;
    let mut peer = Peer::connect_narrow(web.inbound).await;
    peer.greet(&[(HEADER_TABLE_SIZE, 0), (INITIAL_WINDOW_SIZE, 1 << 20)]).await;
    peer.send(&window_update(0, 1 << 20)).await;
    peer.send(&post(1, "/echo")).await;
    peer.until(|seen| seen.is(HEADERS, 1)).await;
    web.shut_down();
    let ping = peer.until(|seen| seen.is(PING, 0)).await;
    peer.send(&frame(PING, ACK, 0, &ping.payload)).await;
    let leaving = peer.until(|seen| seen.is(GOAWAY, 0)).await;
    assert_eq!(leaving.payload[..4], 1u32.to_be_bytes(), "the stream that is open is the last one");
    let piece = [b'x'; 15_000];
    for n in 1..=16 {
        peer.send(&frame(DATA, if n == 16 { END_STREAM } else { 0 }, 1, &piece)).await;
    }
    // The whole answer is on its way and the proxy has nothing left to do on this connection.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut got = 0;
    let mut ended = false;
    while let Some(seen) = peer.next().await {
        peer.send(&window_update(0, 1)).await;
        if seen.is(DATA, 1) {
            got += seen.payload.len();
            ended = seen.ends();
        }
    }
    assert_eq!((got, ended), (16 * piece.len(), true));
    web.ended().await;
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_the_end() {
    let (mut load, mut web, _app) = mesh().await;
    let mut one = Http::one(load.outbound).await;
    let mut two = Http::two(load.outbound).await;
    assert_eq!((one.get("/").await.status, two.get("/").await.status), (200, 200));
    let start = Instant::now();
    load.shut_down();
    web.shut_down();
    load.ended().await;
    web.ended().await;
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_pod_that_ends_costs_its_callers_nothing() {
    let authority = Authority::new();
    let app = App::start().await;
    let (mut one, two) = (server(&authority, "web", app.address), server(&authority, "web", app.address));
    let endpoints = [&one, &two].map(|proxy| endpoint(proxy.inbound, Some(account("web"))));
    // The list of endpoints never learns that one of them has gone.
    let load = client(&authority, endpoints.to_vec());
    let outbound = load.outbound;
    let done = Arc::new(AtomicBool::new(false));
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..6 {
        let done = done.clone();
        callers.spawn(async move {
            let mut http = if caller % 2 == 0 { Http::one(outbound).await } else { Http::two(outbound).await };
            let mut answered = 0;
            while !done.load(Ordering::Relaxed) {
                let got = if answered % 2 == 0 { http.get("/work").await } else { http.post("/echo", "body").await };
                assert_eq!(
                    (got.status, got.error()),
                    (200, None),
                    "caller {caller}, request {answered}: {:?}",
                    got.body
                );
                answered += 1;
            }
            answered
        });
    }
    while app.count() < 100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    one.shut_down();
    one.ended().await;
    let at_the_end = app.count();
    while app.count() < at_the_end + 100 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    done.store(true, Ordering::Relaxed);
    let answered: usize = callers.join_all().await.into_iter().sum();
    assert_eq!(app.count(), answered);
}
