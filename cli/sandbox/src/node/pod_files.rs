//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of pods: pure text.

use super::addresses::Addresses;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use std::net::Ipv4Addr;

/// The cluster's domain.
pub(super) const DOMAIN: &str = "cluster.local";
/// A host name may not be longer.
const MAX_HOSTNAME: usize = 63;

/// The name the pod's containers see as their host's.
pub(super) fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let name = spec.and_then(|spec| spec.hostname.clone()).or_else(|| pod.metadata.name.clone()).unwrap_or_default();
    let cut: String = name.chars().take(MAX_HOSTNAME).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The text of `/etc/hosts`.
pub(super) fn hosts(pod: &Pod, addresses: Addresses) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
    );
    let name = hostname(pod);
    let spec = pod.spec.as_ref();
    let subdomain = spec.and_then(|spec| spec.subdomain.as_deref()).filter(|subdomain| !subdomain.is_empty());
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let full = subdomain.map(|subdomain| format!("{name}.{subdomain}.{namespace}.svc.{DOMAIN}\t"));
    for address in addresses.all() {
        text.push_str(&format!("{address}\t{}{name}\n", full.as_deref().unwrap_or_default()));
    }
    let aliases: Vec<_> = spec.and_then(|spec| spec.host_aliases.as_ref()).into_iter().flatten().collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

/// A resolver's configuration.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Resolver {
    servers: Vec<String>,
    searches: Vec<String>,
    options: Vec<String>,
}

impl Resolver {
    fn read(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => resolver.searches = words.map(str::to_owned).collect(),
                Some("options") => resolver.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        resolver
    }

    fn write(&self) -> String {
        let mut text = String::new();
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// The text of `/etc/resolv.conf`; `host` is the host's.
pub(super) fn resolver(pod: &Pod, dns: Ipv4Addr, host: &str) -> String {
    let none = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&none);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let host = Resolver::read(host);
    let mut resolver = match (spec.dns_policy.as_deref().unwrap_or("ClusterFirst"), spec.host_network) {
        ("None", _) => Resolver::default(),
        ("Default", _) | ("ClusterFirst", Some(true)) => host,
        _ => {
            let own = [format!("{namespace}.svc.{DOMAIN}"), format!("svc.{DOMAIN}"), DOMAIN.to_owned()];
            Resolver {
                servers: vec![dns.to_string()],
                searches: own.into_iter().chain(host.searches).collect(),
                // The server is one hop away: waiting the usual five seconds for a datagram that was lost helps nobody.
                options: vec!["ndots:5".to_owned(), "timeout:1".to_owned(), "attempts:5".to_owned()],
            }
        }
    };
    if let Some(config) = &spec.dns_config {
        resolver.servers.extend(config.nameservers.iter().flatten().cloned());
        resolver.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            resolver.options.retain(|old| old.split(':').next() != Some(name));
            resolver
                .options
                .push(option.value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let mut known = Vec::new();
    resolver.searches.retain(|search| {
        let new = !known.contains(search);
        known.push(search.clone());
        new
    });
    resolver.write()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn addresses() -> Addresses {
        Addresses::of_pod(9, true)
    }

    #[test]
    fn hosts_name_the_pod() {
        let plain = hosts(&pod(json!({"containers": []})), addresses());
        assert!(plain.ends_with("10.244.0.9\tweb-0\nfd6d:6573:6800:244::9\tweb-0\n"), "{plain}");
        let rich = json!({"containers": [], "hostname": "w", "subdomain": "web",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]});
        let text = hosts(&pod(rich), addresses());
        assert!(text.contains("10.244.0.9\tw.web.shop.svc.cluster.local\tw\n"), "{text}");
        assert!(text.ends_with("1.2.3.4\ta\tb\n"), "{text}");
        let long = json!({"containers": [], "hostname": format!("{}-x", "a".repeat(62))});
        assert_eq!(hostname(&pod(long)), "a".repeat(62));
    }

    #[test]
    fn resolvers_follow_the_policy() {
        let host = "# comment\nnameserver 192.168.1.1\nsearch home.lan\noptions edns0\n";
        let dns = Ipv4Addr::new(10, 96, 0, 10);
        let check = |spec: Value, expect: &str| assert_eq!(resolver(&pod(spec), dns, host), expect);
        let cluster = "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local home.lan\noptions ndots:5 timeout:1 attempts:5\n";
        check(json!({"containers": []}), cluster);
        check(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}), cluster);
        let plain = "nameserver 192.168.1.1\nsearch home.lan\noptions edns0\n";
        check(json!({"containers": [], "dnsPolicy": "Default"}), plain);
        check(json!({"containers": [], "hostNetwork": true}), plain);
        let config =
            json!({"nameservers": ["9.9.9.9"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]});
        check(
            json!({"containers": [], "dnsPolicy": "None", "dnsConfig": config}),
            "nameserver 9.9.9.9\nsearch x\noptions ndots:2\n",
        );
        check(
            json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}),
            &cluster.replace("ndots:5 timeout:1 attempts:5", "timeout:1 attempts:5 ndots:1"),
        );
    }
}
