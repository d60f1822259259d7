//! A proxy without a control plane: what its file says holds as soon as it is written, a file that cannot be used changes
//! nothing, and certificates are exchanged under connections that live.

use crate::world::*;
use mesh_api::{FileConfig, Protocol};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Waits until `/config` of a proxy has `text`.
async fn shows(proxy: &Proxy, text: &str) {
    let shown = async {
        while !proxy.admin("/config").await.contains(text) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(SOON, shown).await.is_err() {
        panic!("there is no {text} in {}", proxy.admin("/config").await);
    }
}

#[tokio::test]
async fn a_changed_file_holds_and_a_bad_one_changes_nothing() {
    let (one, two) = (App::start().await, App::start().await);
    let load = Proxy::start(towards(Protocol::Detect, vec![endpoint(one.address, None)]), None);
    let mut http = Http::one(load.outbound).await;
    assert_eq!(http.get("/").await.status, 200);
    assert_eq!((one.count(), two.count()), (1, 0));

    load.rewrite(towards(Protocol::Detect, vec![endpoint(two.address, None)]));
    shows(&load, &two.address.to_string()).await;
    // The client's connection has not noticed.
    assert_eq!(http.get("/").await.status, 200);
    assert_eq!((one.count(), two.count()), (1, 1));

    for bad in ["destinations: [", "outbound_default: 10.1.1.1:1", "unheard_of: true", ""] {
        // Renamed over, as careful writers do it.
        let beside = load.config.with_extension("new");
        std::fs::write(&beside, bad).unwrap();
        std::fs::rename(&beside, &load.config).unwrap();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        if bad.is_empty() {
            break; // an empty file is a configuration with nothing in it
        }
        assert_eq!(http.get("/").await.status, 200, "{bad}");
    }
    load.rewrite(towards(Protocol::Detect, vec![endpoint(one.address, None)]));
    shows(&load, &one.address.to_string()).await;
    assert_eq!(Http::one(load.outbound).await.get("/").await.status, 200);
    assert_eq!((one.count(), two.count()), (2, 4));
}

/// Sends a text to a server that echoes.
async fn echoes(stream: &mut TcpStream, text: &[u8]) {
    stream.write_all(text).await.unwrap();
    let mut got = vec![0; text.len()];
    tokio::time::timeout(SOON, stream.read_exact(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, text);
}

/// The line of `/config` that says when a proxy's certificate ends.
async fn expiry(proxy: &Proxy) -> String {
    let shown = proxy.admin("/config").await;
    shown.lines().find(|line| line.contains("identity_expires_at")).unwrap().to_owned()
}

#[tokio::test]
async fn certificates_are_exchanged_under_living_connections() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    let db = server(&authority, "db", app);
    let load = client(&authority, vec![endpoint(db.inbound, Some(account("db")))]);
    let mut old = TcpStream::connect(load.outbound).await.unwrap();
    echoes(&mut old, b"\0before").await;

    // Both sides change at once, to certificates of another length of life, so that `/config` tells them apart.
    let before = [expiry(&db).await, expiry(&load).await];
    for (proxy, name) in [(&db, "db"), (&load, "load")] {
        proxy.replace_identity(&authority.issue_for_hours(&account(name), 48));
    }
    let exchanged = async {
        while before[0] == expiry(&db).await || before[1] == expiry(&load).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, exchanged).await.unwrap();
    echoes(&mut old, b"\0after").await;
    let mut new = TcpStream::connect(load.outbound).await.unwrap();
    echoes(&mut new, b"\0new").await;
    load.expect_metric("mesh_tcp_opened_total", &["tls=\"mutual\""], 2.0).await;
    load.expect_metric("mesh_tcp_open_connections", &["tls=\"mutual\""], 2.0).await;
}

#[tokio::test]
async fn a_certificate_without_its_key_is_not_used() {
    let authority = Authority::new();
    let app = App::start().await;
    let web = server(&authority, "web", app.address);
    let load = client(&authority, vec![endpoint(web.inbound, Some(account("web")))]);
    assert_eq!(Http::one(load.outbound).await.get("/").await.status, 200);
    // Half of a renewal: the key is still the old one.
    let half = Pems { key: web.key(), ..authority.issue_for_hours(&account("web"), 48) };
    web.replace_identity(&half);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(Http::one(load.outbound).await.get("/").await.status, 200);
}

/// The example in the proxy's README works as it stands.
#[test]
fn the_example_of_the_readme_is_valid() {
    let readme = include_str!("../../README.md");
    let example = readme.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let config: FileConfig = mesh_proxy::file::parse(example).unwrap();
    assert_eq!(config.destinations.len(), 2);
    // It shows everything there is.
    let written = serde_json::to_value(&config).unwrap();
    for (name, value) in written.as_object().unwrap() {
        assert!(!value.is_null() && value != &serde_json::json!({}), "{name} is not in the example");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("proxy.yaml"), example).unwrap();
    let pems = Authority::new().issue(&account("web"));
    for (name, text) in [("tls.crt", &pems.chain), ("tls.key", &pems.key), ("ca.crt", &pems.anchors)] {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let summary = mesh_proxy::file::load(&dir.path().join("proxy.yaml")).unwrap().summary();
    assert!(summary.contains("spiffe://cluster.local/ns/shop/sa/web"), "{summary}");
}
