//! What a port speaks, as its declaration says: `appProtocol`, else the beginning of the port's name.

use mesh_api::Protocol;

/// What `appProtocol` and the name of a port declare; `None`: nothing that has a meaning here.
/// `Detect` is a declaration too: TLS of the application's own is recognised by looking at it.
pub fn declared(app_protocol: Option<&str>, port_name: &str) -> Option<Protocol> {
    let by_app = app_protocol.and_then(|text| {
        let text = text.to_ascii_lowercase();
        word(text.strip_prefix("kubernetes.io/").unwrap_or(&text))
    });
    by_app.or_else(|| by_name(port_name))
}

/// `http`, `http-web`, `grpc-api`; also `web-http`, because both orders are in use.
fn by_name(name: &str) -> Option<Protocol> {
    let name = name.to_ascii_lowercase();
    let whole = word(&name);
    let first = || name.split('-').next().and_then(word);
    let last = || name.rsplit('-').next().and_then(word);
    whole.or_else(first).or_else(last)
}

fn word(word: &str) -> Option<Protocol> {
    Some(match word {
        "http" | "http1" | "ws" => Protocol::Http1,
        "http2" | "h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "https" | "tls" | "wss" | "grpcs" => Protocol::Detect,
        "tcp" | "amqp" | "kafka" | "ldap" | "memcached" | "mongo" | "mongodb" | "mysql" | "nats" | "postgres"
        | "postgresql" | "redis" | "smtp" | "ssh" => Protocol::Opaque,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_understood() {
        let check = |app: Option<&str>, name: &str, expect: Option<Protocol>| {
            assert_eq!(declared(app, name), expect, "{app:?} {name}");
        };
        check(None, "", None);
        check(None, "web", None);
        check(None, "http", Some(Protocol::Http1));
        check(None, "http-web", Some(Protocol::Http1));
        check(None, "web-http", Some(Protocol::Http1));
        check(None, "HTTP", Some(Protocol::Http1));
        check(None, "httpx", None);
        check(None, "http2-api", Some(Protocol::Http2));
        check(None, "h2c", Some(Protocol::Http2));
        check(None, "grpc", Some(Protocol::Grpc));
        check(None, "tcp-ledger", Some(Protocol::Opaque));
        check(None, "redis", Some(Protocol::Opaque));
        check(None, "https", Some(Protocol::Detect));
        check(Some("kubernetes.io/h2c"), "http", Some(Protocol::Http2));
        check(Some("kubernetes.io/ws"), "", Some(Protocol::Http1));
        check(Some("grpc"), "tcp", Some(Protocol::Grpc));
        check(Some("example.org/own"), "grpc", Some(Protocol::Grpc));
        check(Some("example.org/own"), "", None);
    }
}
