//! One of every message that parts of the mesh write to each other, with something in every place that matters.

use serde_json::{Value, json};

/// Messages of a kind: its folder, and each by its name.
pub(super) type Kind = (&'static str, Vec<(&'static str, Value)>);

/// What control says to a proxy.
pub(super) fn of_control() -> Kind {
    let service = json!({"namespace": "shop", "name": "cart", "port": 80});
    let endpoint = json!({"address": "10.1.0.7:8080", "identity": "spiffe://cluster.local/ns/shop/sa/cart",
        "workload": {"namespace": "shop", "kind": "deployment", "name": "cart"}, "pod": "cart-1", "zone": "a"});
    let rule = json!({"name": {"kind": "httproute", "namespace": "shop", "name": "cart", "rule": "canary"},
        "filters": [{"request_headers": {"set": [["x-canary", "yes"]]}}],
        "backends": [{"service": service, "weight": 9}], "timeouts": {"request": "2s"}});
    let routes = json!({"rules": [rule], "http": [{"rule": 0, "path": {"prefix": "/cart"}, "method": "GET",
        "headers": [{"name": "x-user", "value": {"exact": "bob"}}]}]});
    let policy = json!({"retry": {"attempts": 2, "codes": [503]}, "timeouts": {"request": "5s"}});
    let limit = json!({"limit": {"requests": 10, "interval": "1s", "shared": true}, "shared_as": "shop/cart/0"});
    let messages = vec![
        (
            "update",
            json!({"type": "update", "address": "10.96.0.9:80", "version": 4,
            "destination": {"service": service, "protocol": "http1", "external": false, "routes": routes, "policy": policy},
            "endpoints": {"reset": true, "upsert": [endpoint], "remove": []},
            "backends": [{"service": service, "gone": false, "protocol": "grpc", "endpoints": {"reset": false, "upsert": [], "remove": ["10.1.0.8:8080"]}}]}),
        ),
        (
            "inbound",
            json!({"type": "inbound", "version": 5, "policy": {
            "workload": {"namespace": "shop", "kind": "deployment", "name": "web"}, "zone": "a",
            "ports": {"8080": {"protocol": "http1", "rate_limits": [limit]}},
            "access": {"default": "cluster", "clusterNetworks": ["10.0.0.0/8"]}}}),
        ),
        (
            "egress",
            json!({"type": "egress", "version": 6, "policy": {"default": "audit",
            "rules": [{"policy": "shop/out", "action": "Allow", "to": {"hosts": ["api.bank.example"]}}]}}),
        ),
        (
            "trust",
            json!({"type": "trust", "anchors_pem": "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n",
            "issuer": "00112233aabbccdd", "renew_within_ms": 60000}),
        ),
        ("rate_shares", json!({"type": "rate_shares", "shares": {"shop/cart/0": 250000}})),
        (
            "observe",
            json!({"type": "observe", "backfill_s": 60, "since_ms": 1700000000000u64, "until_ms": 1700000060000u64, "untold": true}),
        ),
        ("stop_observe", json!({"type": "stop_observe"})),
        (
            "tap",
            json!({"type": "tap", "order": {"id": 3, "filter": "status=5xx", "from": ["10.1.0.3"], "max_rps": 100, "sample": 0.5,
            "headers": true, "bodies": false, "secrets": false}}),
        ),
        ("stop_tap", json!({"type": "stop_tap", "id": 3})),
        ("finish", json!({"type": "finish"})),
        ("heartbeat", json!({"type": "heartbeat"})),
    ];
    ("control", messages)
}

/// What a proxy says to control.
pub(super) fn of_proxy() -> Kind {
    let frame = json!({"at_ms": 1700000001000u64, "span_ms": 1000, "series": [[key(), series()]], "endpoints": [
        {"address": "10.1.0.7:8080", "workload": {"namespace": "shop", "kind": "deployment", "name": "cart"}, "pod": "cart-1",
            "in_flight": 2, "expected_us": 900, "failing": true, "circuit": "half_open", "ejected_ms": 1500}]});
    let messages = vec![
        (
            "hello",
            json!({"type": "hello", "namespace": "shop", "pod": "web-1", "version": "0.1.0",
            "identity": "spiffe://cluster.local/ns/shop/sa/web"}),
        ),
        ("subscribe", json!({"type": "subscribe", "address": "10.96.0.9:80"})),
        ("unsubscribe", json!({"type": "unsubscribe", "address": "[fd00::9]:80"})),
        ("ack", json!({"type": "ack", "version": 4})),
        ("reject", json!({"type": "reject", "version": 5, "reason": "it has too many ports"})),
        ("golden", json!({"type": "golden", "frame": frame, "backfill": true})),
        (
            "tap",
            json!({"type": "tap", "id": 3, "events": [event()], "left_out": {"sampled": 1, "rate_limited": 2, "buffer_full": 3}}),
        ),
        ("tap_ended", json!({"type": "tap_ended", "id": 3, "refusal": "`moon` is no term"})),
        ("rate_use", json!({"type": "rate_use", "span_ms": 1000, "asked": {"shop/cart/0": 17}})),
        ("farewell", json!({"type": "farewell", "frames": [frame]})),
        ("heartbeat", json!({"type": "heartbeat"})),
    ];
    ("proxy", messages)
}

/// What passes outside of that stream.
pub(super) fn certify_request() -> Value {
    json!({"csr_pem": "-----BEGIN CERTIFICATE REQUEST-----\nTUlJ\n-----END CERTIFICATE REQUEST-----\n", "token": "header.claims.signature"})
}

pub(super) fn certify_response() -> Value {
    let pem = "-----BEGIN CERTIFICATE-----\nTUlJ\n-----END CERTIFICATE-----\n";
    json!({"chain_pem": pem, "anchors_pem": pem, "expires_at": 1700086400, "issuer": "00112233aabbccdd"})
}

pub(super) fn trust() -> Value {
    json!({"anchors": ["00112233aabbccdd"], "issuer": "00112233aabbccdd", "expires_at": 1700086400, "connected": true})
}

pub(super) fn golden_frame() -> Value {
    let workload = json!({"namespace": "shop", "kind": "deployment", "name": "web"});
    json!({"at_ms": 1700000001000u64, "span_ms": 1000,
        "workloads": [{"workload": workload, "pods": 2, "meshed_pods": 2, "connected": 1, "services": ["web"],
            "identities": ["spiffe://cluster.local/ns/shop/sa/web"], "pod_list": [{"name": "web-1", "meshed": true}]}],
        "series": [{"workload": workload, "pod": "web-1", "key": key(), "series": series()}],
        "silent_proxies": 1,
        "endpoints": [{"address": "10.1.0.7:8080", "workload": workload, "pod": "cart-1", "callers": 2, "failing": 1,
            "in_flight": 3, "expected_us": 900, "ejected": 1, "half_open": 1, "ejected_ms": 1500}],
        "unreachable": [{"replica": "mesh-control-1", "why": "no answer within 2s"}]})
}

pub(super) fn tap_messages() -> Kind {
    let mut told = event();
    told["type"] = json!("event");
    let status = json!({"type": "status", "pods": 2, "meshed_pods": 2, "proxies": 1, "refusals": ["`moon` is no term"], "shown": 5,
        "left_out": {"sampled": 1, "rate_limited": 2, "buffer_full": 3}, "last": true});
    ("observe-tap", vec![("event", told), ("status", status)])
}

fn key() -> Value {
    json!({"direction": "outbound", "carried": "http", "peer": {"namespace": "shop", "kind": "deployment", "name": "cart"},
        "service": {"namespace": "shop", "name": "cart", "port": 80}, "port": 80, "route": "/cart/{id}", "method": "GET", "tls": "mutual"})
}

fn series() -> Value {
    json!({"requests": 9, "successes": 7, "retries": 2, "timeouts": 1, "statuses": {"200": 7, "503": 2}, "grpc_statuses": {"14": 1},
        "errors": {"overload": 1}, "latency": {"buckets": [[120, 9]], "sum_us": 9900}, "tcp_opened": 1, "tcp_closed": 1,
        "tcp_open": 3, "tcp_read_bytes": 10, "tcp_write_bytes": 20, "tcp_closes": {"by_client": 1}})
}

fn event() -> Value {
    json!({"at_ms": 1700000001000u64, "event": "request", "direction": "inbound", "carried": "http",
        "source": {"address": "10.1.0.3:40000", "identity": "spiffe://cluster.local/ns/shop/sa/load"},
        "destination": {"address": "10.1.0.7:8080", "pod": "cart-1"}, "tls": "mutual",
        "http": {"method": "GET", "authority": "cart", "path": "/cart/7", "version": "HTTP/1.1", "status": 503, "retries": 1},
        "error": "overload", "ending": "by_mesh", "duration_us": 900, "read_bytes": 1, "write_bytes": 2})
}
