//! The decider against examples, and against a slow reference that is obviously right.

use super::*;
use proptest::prelude::*;
use std::net::IpAddr;

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn rule(action: Action, to: Outside) -> EgressRule {
    EgressRule { policy: format!("shop/{}", action.word()), action, to }
}

fn hosts(hosts: &[&str]) -> Outside {
    Outside { hosts: texts(hosts), ..Outside::default() }
}

fn denying(rules: Vec<EgressRule>) -> Egress {
    Egress { default: EgressDefault::Deny, rules, ..Egress::default() }
}

fn leaving<'a>(address: &str, port: u16, seen: Seen<'a>) -> Leaving<'a> {
    Leaving { address: Some(address.parse().unwrap()), port, seen }
}

fn out(egress: &Egress, leaving: &Leaving<'_>) -> (bool, String) {
    let decision = decide(egress, leaving);
    (decision.allowed, decision.why.policy().to_owned())
}

#[test]
fn deny_beats_allow_beats_default() {
    let there = leaving("203.0.113.7", 443, Seen::Tls(Some("api.example.com")));
    let said = |allowed: bool, policy: &str| (allowed, policy.to_owned());
    let rule = |action| rule(action, hosts(&["api.example.com"]));
    let (allow, deny) = (rule(Action::Allow), rule(Action::Deny));
    assert_eq!(out(&Egress::default(), &there), said(true, "default"));
    assert_eq!(out(&denying(vec![]), &there), said(false, "default"));
    assert_eq!(out(&denying(vec![allow.clone()]), &there), said(true, "shop/allow"));
    assert_eq!(out(&denying(vec![allow.clone(), deny.clone()]), &there), said(false, "shop/deny"));
    assert_eq!(out(&Egress { default: EgressDefault::Allow, ..denying(vec![deny]) }, &there), said(false, "shop/deny"));
    let by = Egress { default_by: Some("shop/lock".to_owned()), ..denying(vec![allow]) };
    assert_eq!(out(&by, &leaving("203.0.113.7", 443, Seen::Tls(Some("other")))), said(false, "shop/lock"));
    let audited = Egress { rules: vec![rule(Action::Audit)], ..Egress::default() };
    assert_eq!(decide(&audited, &there).audits.len(), 1);
    assert!(decide(&Egress { default: EgressDefault::Audit, ..Egress::default() }, &there).allowed);
}

#[test]
fn destinations_match_by_each_of_their_fields() {
    let check = |to: &Outside, address: &str, port: u16, seen: Seen<'_>, expect: bool| {
        let got = out(&denying(vec![rule(Action::Allow, to.clone())]), &leaving(address, port, seen)).0;
        assert_eq!(got, expect, "{to:?} {address}:{port} {seen:?}");
    };
    let (ip, api) = ("203.0.113.7", Seen::Http(Some("api.example.com")));
    check(&Outside::default(), ip, 80, Seen::Tcp, true);
    check(&hosts(&["api.example.com"]), ip, 80, api, true);
    check(&hosts(&["api.example.com"]), ip, 80, Seen::Tls(Some("API.Example.com.")), true);
    check(&hosts(&["example.com"]), ip, 80, api, false);
    check(&hosts(&["*.example.com"]), ip, 80, api, true);
    check(&hosts(&["*.example.com"]), ip, 80, Seen::Http(Some("a.b.example.com")), true);
    check(&hosts(&["*.example.com"]), ip, 80, Seen::Http(Some("example.com")), false);
    check(&hosts(&["*.example.com"]), ip, 80, Seen::Http(Some(".example.com")), false);
    check(&hosts(&["*.example.com"]), ip, 80, Seen::Http(Some("evilexample.com")), false);
    check(&hosts(&["*"]), ip, 80, api, true);
    check(&hosts(&["*"]), ip, 80, Seen::Tcp, false);
    check(&hosts(&["*"]), ip, 80, Seen::Tls(Some("")), false);
    check(&hosts(&["*"]), ip, 80, Seen::Http(None), false);
    let ports = Outside { ports: vec![80, 443], ..Outside::default() };
    check(&ports, ip, 443, Seen::Tcp, true);
    check(&ports, ip, 8443, Seen::Tcp, false);
    let networks = Outside { networks: vec!["203.0.113.0/24".parse().unwrap()], ..Outside::default() };
    check(&networks, ip, 80, Seen::Tcp, true);
    check(&networks, "::ffff:203.0.113.7", 80, Seen::Tcp, true);
    check(&networks, "198.51.100.1", 80, api, false);
    let pinned = Outside { hosts: texts(&["api.example.com"]), ..networks };
    check(&pinned, ip, 80, api, true);
    check(&pinned, "198.51.100.1", 80, api, false);
    let tls = Outside { protocols: vec![EgressProtocol::Tls], ..Outside::default() };
    check(&tls, ip, 443, Seen::Tls(None), true);
    check(&tls, ip, 443, api, false);
    check(&tls, ip, 443, Seen::Tcp, false);
}

#[test]
fn what_cannot_be_seen_counts_against_the_caller() {
    let nowhere = Leaving { address: None, port: 80, seen: Seen::Tcp };
    for to in [hosts(&["api.example.com"]), Outside { networks: Network::private(), ..Outside::default() }] {
        assert!(!out(&denying(vec![rule(Action::Allow, to.clone())]), &nowhere).0);
        let open = |action| Egress { rules: vec![rule(action, to.clone())], ..Egress::default() };
        assert!(!out(&open(Action::Deny), &nowhere).0);
        assert!(decide(&open(Action::Audit), &nowhere).audits.is_empty());
    }
}

#[test]
fn the_written_form_is_stable() {
    let text = r#"{"default":"deny","defaultBy":"shop/a","clusterNetworks":["10.0.0.0/8"],"rules":[{"policy":"shop/a","action":"Allow","to":{"hosts":["*.example.com"],"networks":["203.0.113.0/24"],"ports":[443],"protocols":["TLS","HTTP","TCP"]}}]}"#;
    let egress: Egress = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&egress).unwrap(), text);
    assert_eq!(serde_json::from_str::<Egress>("{}").unwrap(), Egress::default());
}

mod reference {
    //! As slow as it likes: hosts label by label, every rule by itself.

    use super::*;

    fn labels(name: &str) -> Vec<String> {
        name.trim_end_matches('.').split('.').map(str::to_lowercase).collect()
    }

    fn is_host(pattern: &str, host: &str) -> bool {
        let (pattern, host) = (labels(pattern), labels(host));
        match pattern.split_first() {
            Some((first, rest)) if first == "*" => host.len() > rest.len() && host.ends_with(rest),
            _ => pattern == host,
        }
    }

    fn matches(to: &Outside, action: Action, leaving: &Leaving<'_>) -> bool {
        let host = match leaving.seen {
            Seen::Http(Some(host)) | Seen::Tls(Some(host)) => host,
            _ => "",
        };
        let unseen = action == Action::Deny;
        let by_host = to.hosts.is_empty()
            || (if host.is_empty() { unseen } else { to.hosts.iter().any(|pattern| is_host(pattern, host)) });
        let by_network = to.networks.is_empty()
            || match leaving.address {
                None => unseen,
                Some(address) => to.networks.iter().any(|network| network.contains(address)),
            };
        let protocol = match leaving.seen {
            Seen::Http(_) => EgressProtocol::Http,
            Seen::Tls(_) => EgressProtocol::Tls,
            Seen::Tcp => EgressProtocol::Tcp,
        };
        let by_port = to.ports.is_empty() || to.ports.contains(&leaving.port);
        by_host && by_network && by_port && (to.protocols.is_empty() || to.protocols.contains(&protocol))
    }

    pub(super) fn allowed(egress: &Egress, leaving: &Leaving<'_>) -> bool {
        let any = |action: Action| {
            egress.rules.iter().any(|rule| rule.action == action && matches(&rule.to, action, leaving))
        };
        !any(Action::Deny) && (any(Action::Allow) || egress.default != EgressDefault::Deny)
    }
}

fn some<T: Clone + std::fmt::Debug + 'static>(choices: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(prop::sample::select(choices), 0..3)
}

fn any_egress() -> impl Strategy<Value = Egress> {
    let patterns = texts(&["a.example", "*.a.example", "example", "*.example", "*", "b.a.example"]);
    let networks =
        ["203.0.113.0/24", "198.51.100.1", "0.0.0.0/0", "2001:db8::/32"].map(|n| n.parse().unwrap()).to_vec();
    let to = (some(patterns), some(networks), some(vec![80, 443]), some(EgressProtocol::ALL.to_vec()))
        .prop_map(|(hosts, networks, ports, protocols)| Outside { hosts, networks, ports, protocols });
    let action = prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let rule = (action, to).prop_map(|(action, to)| EgressRule { policy: "n/p".to_owned(), action, to });
    let default = prop::sample::select(EgressDefault::ALL.to_vec());
    (default, prop::collection::vec(rule, 0..5)).prop_map(|(default, rules)| Egress {
        default,
        rules,
        ..Egress::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_decider_agrees_with_the_reference(
        egress in any_egress(),
        address in prop::option::of(prop::sample::select(vec!["203.0.113.7", "198.51.100.1", "192.0.2.1", "2001:db8::7"])),
        port in prop::sample::select(vec![80u16, 443, 5432]),
        host in prop::option::of(prop::sample::select(vec!["a.example", "A.Example.", "b.a.example", "x.b.a.example", "example", "ba.example", ""])),
        protocol in prop::sample::select(EgressProtocol::ALL.to_vec()),
    ) {
        let seen = match protocol {
            EgressProtocol::Http => Seen::Http(host),
            EgressProtocol::Tls => Seen::Tls(host),
            EgressProtocol::Tcp => Seen::Tcp,
        };
        let leaving = Leaving { address: address.map(|a| a.parse::<IpAddr>().unwrap()), port, seen };
        let decision = decide(&egress, &leaving);
        prop_assert_eq!(decision.allowed, reference::allowed(&egress, &leaving), "{:?}", decision.why);
    }

    #[test]
    fn any_text_is_decided_about(patterns in prop::collection::vec(any::<String>(), 0..4), host in any::<String>(), port in any::<u16>()) {
        for action in [Action::Allow, Action::Deny, Action::Audit] {
            let egress = denying(vec![rule(action, Outside { hosts: patterns.clone(), ..Outside::default() })]);
            for seen in [Seen::Http(Some(&host)), Seen::Tls(Some(&host)), Seen::Tcp] {
                let leaving = Leaving { address: None, port, seen };
                decide(&egress, &leaving).why.to_string();
            }
        }
    }
}
