//! When the demo counts as a success: every workload meshed, all its traffic under mutual TLS, every one seen busy.

use crate::golden::{Query, rows};
use mesh_api::golden::{Direction, GoldenFrame, TlsStatus};
use std::collections::VecDeque;

/// What is missing, in words; nothing: all is well.
pub fn missing(frames: &VecDeque<GoldenFrame>, namespace: &str, expected: &[String]) -> Vec<String> {
    let query = Query { namespace: Some(namespace.to_owned()), ..Query::default() };
    let rows = rows(frames, &query);
    let mut missing = Vec::new();
    for name in expected {
        let Some(row) = rows.iter().find(|row| row.name == *name) else {
            missing.push(format!("{name} has no running pods"));
            continue;
        };
        if row.pods == 0 || row.meshed_pods < row.pods {
            missing.push(format!("{name} has {} of {} pods meshed", row.meshed_pods, row.pods));
        } else if row.requests + row.connections == 0 && !has_sent(frames, namespace, name) {
            missing.push(format!("{name} saw no requests"));
        }
    }
    for row in rows.iter().filter(|row| row.mtls_rate.is_some_and(|share| share < 1.0)) {
        let from = plain_callers(frames, namespace, &row.name);
        missing.push(format!("{} got traffic without mutual TLS{from}", row.name));
    }
    missing
}

/// Who only calls others is busy if it sent something.
fn has_sent(frames: &VecDeque<GoldenFrame>, namespace: &str, name: &str) -> bool {
    frames.iter().flat_map(|frame| &frame.series).any(|entry| {
        entry.key.direction == Direction::Outbound
            && (entry.workload.namespace.as_str(), entry.workload.name.as_str()) == (namespace, name)
            && entry.series.requests + entry.series.tcp_opened + entry.series.tcp_open > 0
    })
}

fn plain_callers(frames: &VecDeque<GoldenFrame>, namespace: &str, name: &str) -> String {
    let plain = frames.iter().flat_map(|frame| &frame.series).find(|entry| {
        entry.key.direction == Direction::Inbound
            && entry.key.tls != TlsStatus::Mutual
            && (entry.workload.namespace.as_str(), entry.workload.name.as_str()) == (namespace, name)
    });
    plain.map(|entry| format!(" (from {}, port {})", entry.key.peer, entry.key.port)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::{SHOP, frame, shop};

    fn expected() -> Vec<String> {
        ["web", "catalog", "cart", "ledger", "load"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_healthy_shop_misses_nothing() {
        assert_eq!(missing(&shop(), "shop", &expected()), Vec::<String>::new());
    }

    #[test]
    fn everything_missing_is_named() {
        let quiet = VecDeque::from([frame(&SHOP[..1], 1000, 1000)]);
        assert_eq!(
            missing(&quiet, "shop", &expected()),
            ["catalog has no running pods", "cart has no running pods", "ledger has no running pods"]
        );
        let mut frames = shop();
        for frame in &mut frames {
            frame.workloads[0].meshed_pods = 0;
            frame.series.retain(|entry| entry.workload.name != "catalog" && entry.key.peer.name != "catalog");
            for entry in &mut frame.series {
                if entry.key.method == "POST" {
                    entry.key.tls = TlsStatus::Plain;
                }
            }
        }
        assert_eq!(
            missing(&frames, "shop", &expected()),
            [
                "catalog saw no requests",
                "cart has 0 of 1 pods meshed",
                "web got traffic without mutual TLS (from shop/deployment/load, port 80)"
            ]
        );
    }
}
