//! The hosts outside the cluster that golden metrics are kept of: a bounded number, by the names clients give them. What is
//! too much, or no name at all, is counted under `other`.

use crate::golden::{Golden, Scope};
use crate::limits;
use mesh_api::WorkloadRef;
use mesh_api::golden::Direction;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// What hosts without a name of their own are counted under.
pub const OTHER: &str = "other";

/// Hosts outside the cluster.
#[derive(Debug, Default)]
pub struct Hosts {
    known: Mutex<HashMap<Box<str>, Host>>,
}

/// A host.
#[derive(Debug)]
struct Host {
    /// Its names in golden metrics, by port; there are few.
    scopes: Vec<(u16, Arc<Scope>)>,
    used: Instant,
}

impl Hosts {
    /// The name under which traffic to a port of a host is counted.
    pub fn scope(&self, golden: &Golden, host: &str, port: u16, now: Instant) -> Arc<Scope> {
        let other = || golden.scope(Direction::Outbound, &WorkloadRef::new("", "external", OTHER), None, port);
        let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        if !is_name(&name) {
            return other();
        }
        let mut known = self.known.lock();
        if let Some(host) = known.get_mut(name.as_str()) {
            host.used = now;
            if let Some((_, scope)) = host.scopes.iter().find(|(known, _)| *known == port) {
                return scope.clone();
            }
            if host.scopes.len() >= limits::EGRESS_HOST_PORTS {
                return other();
            }
        } else if known.len() >= limits::EGRESS_HOSTS {
            known.retain(|_, host| now.saturating_duration_since(host.used) < limits::TARGET_IDLE);
            if known.len() >= limits::EGRESS_HOSTS {
                return other();
            }
        }
        let scope = golden.scope(Direction::Outbound, &WorkloadRef::new("", "external", &name), None, port);
        let host = known.entry(name.into()).or_insert_with(|| Host { scopes: Vec::new(), used: now });
        host.scopes.push((port, scope.clone()));
        scope
    }
}

/// True for what looks like a host: clients may claim anything.
fn is_name(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    !name.is_empty() && name.len() <= limits::EGRESS_HOST_BYTES && name != OTHER && name.bytes().all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn hosts_have_names_of_their_own_up_to_a_limit() {
        let (hosts, golden, now) = (Hosts::default(), Golden::new(0), Instant::now());
        let name = |host: &str, port: u16, now: Instant| hosts.scope(&golden, host, port, now).peer().name.clone();
        assert_eq!(name("API.example.com.", 443, now), "api.example.com");
        let first = hosts.scope(&golden, "api.example.com", 443, now);
        assert!(Arc::ptr_eq(&first, &hosts.scope(&golden, "api.Example.com", 443, now)));
        assert_eq!(name("<script>", 443, now), OTHER);
        assert_eq!(name("", 443, now), OTHER);
        assert_eq!(name(&"a".repeat(limits::EGRESS_HOST_BYTES + 1), 443, now), OTHER);
        for port in 0..limits::EGRESS_HOST_PORTS as u16 * 2 {
            name("many.example.com", port, now);
        }
        assert_eq!(name("many.example.com", 9999, now), OTHER);
        for n in 0..limits::EGRESS_HOSTS * 2 {
            name(&format!("{n}.example.com"), 443, now);
        }
        assert_eq!(name("one-more.example.com", 443, now), OTHER);
        assert_eq!(name("api.example.com", 443, now), "api.example.com");
        // Those that nobody calls any more make room.
        let later = now + limits::TARGET_IDLE + Duration::from_secs(1);
        assert_eq!(name("one-more.example.com", 443, later), "one-more.example.com");
        assert!(hosts.known.lock().len() <= limits::EGRESS_HOSTS);
    }
}
