//! The decider against examples, and against a slow reference that is obviously right.

use super::*;
use crate::SpiffeId;
use proptest::prelude::*;

/// A caller that keeps its identity itself.
struct Who(IpAddr, Option<SpiffeId>);

impl Who {
    fn caller(&self) -> Caller<'_> {
        Caller::new(self.0, self.1.as_ref())
    }
}

fn caller(address: &str, account: Option<&str>) -> Who {
    let id = account.map(|account| {
        let (namespace, name) = account.split_once('/').unwrap();
        SpiffeId::new("cluster.local", namespace, name)
    });
    Who(address.parse().unwrap(), id)
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

fn rule(action: Action, from: Vec<Source>, to: Vec<Operation>) -> AccessRule {
    AccessRule { policy: format!("shop/{}", action.word()), action, from, to, ..AccessRule::default() }
}

fn allow(from: Vec<Source>, to: Vec<Operation>) -> AccessRule {
    rule(Action::Allow, from, to)
}

fn deny(from: Vec<Source>, to: Vec<Operation>) -> AccessRule {
    rule(Action::Deny, from, to)
}

fn access(rules: Vec<AccessRule>) -> Access {
    Access { rules, ..Access::default() }
}

fn accounts(accounts: &[&str]) -> Source {
    Source { service_accounts: texts(accounts), ..Source::default() }
}

fn paths(paths: &[&str]) -> Operation {
    Operation { paths: texts(paths), ..Operation::default() }
}

/// Decides about a request with one header field.
fn request(access: &Access, caller: &Who, port: u16, line: &str, field: (&str, &str)) -> (bool, String) {
    let (method, path) = line.split_once(' ').unwrap();
    let header =
        |name: &str, judge: &dyn Fn(&[u8]) -> bool| field.0.eq_ignore_ascii_case(name) && judge(field.1.as_bytes());
    let grpc = field == ("content-type", "application/grpc");
    let head = Head { method, path, grpc, header: &header, evidence: &NoEvidence };
    let decision = decide(access, &caller.caller(), &Asked { port, what: What::Request(head) });
    (decision.allowed, decision.why.policy().to_owned())
}

fn connection(access: &Access, caller: &Who, port: u16, what: What<'_>) -> (bool, String) {
    let decision = decide(access, &caller.caller(), &Asked { port, what });
    (decision.allowed, decision.why.policy().to_owned())
}

#[test]
fn deny_beats_allow_beats_default() {
    let web = caller("10.1.0.1", Some("shop/web"));
    let load = caller("10.1.0.2", Some("shop/load"));
    let get = |access: &Access, who: &Who| request(access, who, 80, "GET /", ("", ""));
    let said = |allowed: bool, policy: &str| (allowed, policy.to_owned());
    assert_eq!(get(&Access::default(), &web), said(true, "default"));
    let only_web = access(vec![allow(vec![accounts(&["shop/web"])], vec![])]);
    assert_eq!(get(&only_web, &web), said(true, "shop/allow"));
    assert_eq!(get(&only_web, &load), said(false, "shop/allow"));
    let both = access(vec![allow(vec![], vec![]), deny(vec![accounts(&["shop/load"])], vec![])]);
    assert_eq!(get(&both, &web), said(true, "shop/allow"));
    assert_eq!(get(&both, &load), said(false, "shop/deny"));
    let only_deny = access(vec![deny(vec![accounts(&["shop/load"])], vec![])]);
    assert_eq!(get(&only_deny, &web), said(true, "default"));
    let mut of_a_port = only_web.clone();
    of_a_port.rules[0].selects = vec![8080];
    assert_eq!(get(&of_a_port, &load), said(true, "default"));
    let audited = access(vec![rule(Action::Audit, vec![], vec![])]);
    assert_eq!(get(&audited, &load), said(true, "default"));
    let asked = Asked { port: 80, what: What::Opaque };
    assert_eq!(decide(&audited, &load.caller(), &asked).audits.len(), 1);
}

#[test]
fn each_default_decides_about_each_caller() {
    let inside = caller("10.1.0.1", None);
    let outside = caller("203.0.113.1", None);
    let meshed = caller("203.0.113.1", Some("shop/web"));
    let check = |default, expect: [bool; 3]| {
        let access = Access { default, cluster_networks: Network::private(), ..Access::default() };
        let got = [&meshed, &inside, &outside].map(|who| connection(&access, who, 1, What::Opaque).0);
        assert_eq!(got, expect, "{default:?}");
    };
    check(AccessDefault::All, [true, true, true]);
    check(AccessDefault::Authenticated, [true, false, false]);
    check(AccessDefault::Cluster, [true, true, false]);
    check(AccessDefault::Deny, [false, false, false]);
    check(AccessDefault::Audit, [true, true, true]);
}

#[test]
fn sources_match_by_each_of_their_fields() {
    let web = caller("10.1.0.1", Some("shop/web"));
    let plain = caller("10.1.0.2", None);
    let check = |source: Source, expect: [bool; 2]| {
        let access = access(vec![allow(vec![source.clone()], vec![])]);
        let got = [&web, &plain].map(|who| connection(&access, who, 1, What::Opaque).0);
        assert_eq!(got, expect, "{source:?}");
    };
    let identities = |ids: &[&str]| Source { identities: texts(ids), ..Source::default() };
    let namespaces = |ids: &[&str]| Source { namespaces: texts(ids), ..Source::default() };
    let networks =
        |nets: &[&str]| Source { networks: nets.iter().map(|n| n.parse().unwrap()).collect(), ..Source::default() };
    check(identities(&["spiffe://cluster.local/ns/shop/sa/web"]), [true, false]);
    check(identities(&["spiffe://cluster.local/ns/shop/sa/we"]), [false, false]);
    check(identities(&["spiffe://cluster.local/ns/*/sa/web"]), [true, false]);
    check(identities(&["*"]), [true, false]);
    check(accounts(&["shop/web", "shop/other"]), [true, false]);
    check(accounts(&["web"]), [false, false]);
    check(namespaces(&["shop"]), [true, false]);
    check(namespaces(&["sho"]), [false, false]);
    check(networks(&["10.1.0.0/16"]), [true, true]);
    check(networks(&["10.1.0.2"]), [false, true]);
    check(Source { unauthenticated: true, ..Source::default() }, [false, true]);
    check(Source { unauthenticated: true, ..networks(&["10.2.0.0/16"]) }, [false, false]);
    check(Source { networks: networks(&["10.2.0.0/16"]).networks, ..namespaces(&["shop"]) }, [false, false]);
}

#[test]
fn operations_match_by_each_of_their_fields() {
    let web = caller("10.1.0.1", Some("shop/web"));
    let check = |to: Operation, line: &str, field: (&str, &str), expect: bool| {
        let access = access(vec![allow(vec![], vec![to.clone()])]);
        assert_eq!(request(&access, &web, 80, line, field).0, expect, "{to:?} {line} {field:?}");
    };
    let none = ("", "");
    let methods = Operation { methods: texts(&["GET", "HEAD"]), ..Operation::default() };
    check(methods.clone(), "HEAD /", none, true);
    check(methods.clone(), "POST /", none, false);
    check(Operation { ports: vec![80], ..Operation::default() }, "GET /", none, true);
    check(Operation { ports: vec![81], ..methods }, "GET /", none, false);
    check(paths(&["/health"]), "GET /health", none, true);
    check(paths(&["/health"]), "GET /health/", none, false);
    check(paths(&["/api/*"]), "GET /api/x/y", none, true);
    check(paths(&["/api/*"]), "GET /api", none, true);
    check(paths(&["/api/*"]), "GET /apis", none, false);
    check(paths(&["/*"]), "GET /", none, true);
    check(paths(&["*/edit"]), "GET /a/b/edit", none, true);
    check(paths(&["/a/*/c"]), "GET /a/b/c", none, true);
    check(paths(&["/public/*"]), "GET /public/../admin", none, false);
    check(paths(&["/public/*"]), "GET /public/%2e%2e/admin", none, false);
    check(paths(&["/public/*"]), "GET /secret/../public/x", none, false);
    check(paths(&["/public/*"]), "GET /public//x", none, true);
    let field = |values: &[&str]| Operation {
        headers: vec![HeaderMatch { name: "X-Team".to_owned(), values: texts(values) }],
        ..Operation::default()
    };
    check(field(&[]), "GET /", ("x-team", "a"), true);
    check(field(&[]), "GET /", none, false);
    check(field(&["a", "b*"]), "GET /", ("x-team", "bee"), true);
    check(field(&["a"]), "GET /", ("x-team", "b"), false);
    let grpc = |methods: &[&str]| Operation { grpc_methods: texts(methods), ..Operation::default() };
    let call = ("content-type", "application/grpc");
    check(grpc(&["shop.Cart/Get"]), "POST /shop.Cart/Get", call, true);
    check(grpc(&["shop.Cart/Get"]), "POST /shop.Cart/Get", none, false);
    check(grpc(&["shop.Cart/*"]), "POST /shop.Cart/Add", call, true);
    check(grpc(&["shop.Cart"]), "POST /shop.Cart/Add", call, true);
    check(grpc(&["shop.Cart"]), "POST /shop.Carts/Add", call, false);
}

#[test]
fn no_spelling_of_a_path_gets_past_a_refusal() {
    let web = caller("10.1.0.1", Some("shop/web"));
    let access = access(vec![deny(vec![], vec![paths(&["/admin/*", "/metrics"])])]);
    for path in [
        "/admin",
        "/admin/",
        "/admin/x",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/x/%2e%2e/admin/y",
        "/admin;v=1/x",
        "/..;/admin",
        "/x\\..\\admin",
        "/admin%2Fx",
        "/metrics",
        "/metrics/",
        "/metrics;x",
    ] {
        assert!(!request(&access, &web, 80, &format!("GET {path}"), ("", "")).0, "{path}");
    }
    for path in ["/administrator", "/x/admin", "/metric", "/metrics/x"] {
        assert!(request(&access, &web, 80, &format!("GET {path}"), ("", "")).0, "{path}");
    }
}

#[test]
fn what_cannot_be_seen_counts_against_the_caller() {
    let web = caller("10.1.0.1", Some("shop/web"));
    let to = || vec![paths(&["/admin"])];
    for what in [What::Opaque, What::Tls, What::Silence] {
        assert!(!connection(&access(vec![deny(vec![], to())]), &web, 80, what).0);
        assert!(!connection(&access(vec![allow(vec![], to())]), &web, 80, what).0);
        let audit = access(vec![rule(Action::Audit, vec![], to())]);
        assert!(decide(&audit, &web.caller(), &Asked { port: 80, what }).audits.is_empty());
    }
}

#[test]
fn probes_need_no_rule_and_open_nothing_else() {
    let node = caller("10.0.0.1", None);
    let other = caller("10.0.0.2", None);
    let meshed = caller("10.1.0.1", Some("shop/web"));
    let probe = |port, by| Probe { port, by };
    let probes = vec![
        probe(80, ProbeBy::Http("/live".to_owned())),
        probe(81, ProbeBy::Grpc),
        probe(82, ProbeBy::Tcp),
        probe(83, ProbeBy::Https(vec!["10.0.0.1".parse().unwrap()])),
    ];
    let access =
        Access { default: AccessDefault::Deny, probes, rules: vec![deny(vec![], vec![])], ..Access::default() };
    let get = |who: &Who, port, line: &str| request(&access, who, port, line, ("", "")).0;
    assert!(get(&node, 80, "GET /live"));
    assert!(!get(&meshed, 80, "GET /live"));
    assert!(!get(&node, 80, "POST /live"));
    assert!(!get(&node, 80, "GET /live/x"));
    assert!(!get(&node, 81, "GET /live"));
    let grpc = ("content-type", "application/grpc");
    assert!(request(&access, &node, 81, "POST /grpc.health.v1.Health/Check", grpc).0);
    assert!(!request(&access, &node, 81, "POST /grpc.health.v1.Health/Watch", grpc).0);
    assert!(connection(&access, &node, 82, What::Silence).0);
    assert!(!connection(&access, &node, 82, What::Opaque).0);
    assert!(!connection(&access, &node, 80, What::Silence).0);
    assert!(connection(&access, &node, 83, What::Tls).0);
    assert!(!connection(&access, &other, 83, What::Tls).0);
}

/// Some routes and tokens.
struct Found(Vec<usize>, Vec<Result<serde_json::Map<String, serde_json::Value>, Unproven>>);

impl Evidence for Found {
    fn is_of_route(&self, route: usize) -> bool {
        self.0.contains(&route)
    }

    fn token(&self, jwt: usize) -> Token<'_> {
        match &self.1[jwt] {
            Ok(claims) => Token::Valid(claims),
            Err(Unproven::Missing) => Token::Missing,
            Err(Unproven::Invalid(why)) => Token::Invalid(why),
        }
    }
}

fn found<'a>(access: &'a Access, who: &Who, evidence: &Found) -> Decision<'a> {
    let none = |_: &str, _: &dyn Fn(&[u8]) -> bool| false;
    let head = Head { method: "GET", path: "/", grpc: false, header: &none, evidence };
    decide(access, &who.caller(), &Asked { port: 80, what: What::Request(head) })
}

#[test]
fn a_policy_for_a_route_is_about_its_requests_only() {
    let web = caller("10.1.0.1", Some("shop/web"));
    let of_route = |rule: AccessRule| AccessRule { route: Some(1), ..rule };
    let (inside, outside) = (Found(vec![1], vec![]), Found(vec![0], vec![]));
    let only_load = access(vec![of_route(allow(vec![accounts(&["shop/load"])], vec![]))]);
    assert!(!found(&only_load, &web, &inside).allowed);
    assert!(found(&only_load, &web, &outside).allowed);
    let nobody = access(vec![of_route(deny(vec![], vec![]))]);
    assert!(!found(&nobody, &web, &inside).allowed);
    assert!(found(&nobody, &web, &outside).allowed);
    // What nobody sees may be of the route, and lets nobody in by it.
    let all = access(vec![of_route(allow(vec![], vec![]))]);
    assert!(found(&all, &web, &inside).allowed);
    for access in [&all, &nobody] {
        assert!(!connection(access, &web, 80, What::Opaque).0);
    }
}

#[test]
fn tokens_are_asked_for_where_a_rule_wants_one() {
    let web = caller("10.1.0.1", Some("shop/web"));
    let claim = |value: &str| ClaimMatch { name: "role".to_owned(), values: texts(&[value]) };
    let admins = Source { claims: vec![claim("admin")], ..Source::default() };
    let asks = |rule: AccessRule| AccessRule { jwt: Some(0), ..rule };
    let token = |role: &str| {
        let claims = serde_json::json!({ "role": role });
        Found(vec![], vec![Ok(claims.as_object().unwrap().clone())])
    };
    let without = |why| Found(vec![], vec![Err(why)]);
    let check = |access: &Access, evidence: Found, allowed: bool, unproven: Option<Unproven>| {
        let decision = found(access, &web, &evidence);
        assert_eq!((decision.allowed, decision.unproven), (allowed, unproven));
    };
    let any_token = access(vec![asks(allow(vec![], vec![]))]);
    check(&any_token, token("user"), true, None);
    check(&any_token, without(Unproven::Missing), false, Some(Unproven::Missing));
    check(&any_token, without(Unproven::Invalid("expired")), false, Some(Unproven::Invalid("expired")));
    let only_admins = access(vec![asks(allow(vec![admins.clone()], vec![]))]);
    check(&only_admins, token("admin"), true, None);
    check(&only_admins, token("user"), false, None);
    // Another rule may let in without; one about other callers does not ask for a token.
    let or_web = access(vec![asks(allow(vec![], vec![])), allow(vec![accounts(&["shop/web"])], vec![])]);
    check(&or_web, without(Unproven::Missing), true, None);
    let of_load = Source { claims: vec![claim("admin")], ..accounts(&["shop/load"]) };
    check(&access(vec![asks(allow(vec![of_load], vec![]))]), token("admin"), false, None);
    assert!(!connection(&any_token, &web, 80, What::Opaque).0);
}

#[test]
fn a_service_is_asked_where_nothing_else_decides() {
    let web = caller("10.1.0.1", Some("shop/web"));
    let asks = |rule: AccessRule| AccessRule { external: Some(0), policy: "shop/ask".to_owned(), ..rule };
    let any = Found(vec![], vec![]);
    let check = |rules: Vec<AccessRule>, allowed: bool, asked: usize| {
        let access = access(rules);
        let decision = found(&access, &web, &any);
        assert_eq!((decision.allowed, decision.asks.len()), (allowed, asked));
    };
    let ask = || asks(allow(vec![], vec![]));
    check(vec![ask()], false, 1);
    check(vec![ask(), allow(vec![], vec![])], true, 0);
    check(vec![ask(), deny(vec![], vec![])], false, 0);
    check(vec![asks(allow(vec![accounts(&["shop/load"])], vec![]))], false, 0);
    // Nobody is asked about a connection that nobody looks into.
    let asked = Asked { port: 80, what: What::Opaque };
    let access = access(vec![ask()]);
    let decision = decide(&access, &web.caller(), &asked);
    assert!(!decision.allowed && decision.asks.is_empty());
}

#[test]
fn the_written_form_is_stable() {
    let text = r#"{"default":"deny","clusterNetworks":["10.0.0.0/8"],"probes":[{"port":80,"by":{"http":"/live"}}],"rules":[{"policy":"shop/a","action":"Allow","from":[{"serviceAccounts":["shop/web"],"unauthenticated":true}],"to":[{"ports":[80],"grpcMethods":["a.B/*"]}]}]}"#;
    let access: Access = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&access).unwrap(), text);
    assert_eq!(serde_json::from_str::<Access>("{}").unwrap(), Access::default());
}

mod reference {
    //! As slow as it likes: every pattern by trying all splits, every rule by itself.

    use super::*;

    /// Method, path, gRPC or not, header lines.
    type Seen<'a> = (&'a str, &'a str, bool, &'a [(String, String)]);

    pub(super) struct Ask<'a> {
        pub(super) address: IpAddr,
        pub(super) identity: Option<&'a SpiffeId>,
        pub(super) port: u16,
        pub(super) head: Option<Seen<'a>>,
    }

    fn like(pattern: &[u8], text: &[u8]) -> bool {
        match pattern.split_first() {
            None => text.is_empty(),
            Some((b'*', rest)) => (0..=text.len()).any(|at| like(rest, &text[at..])),
            Some((first, rest)) => text.first() == Some(first) && like(rest, &text[1..]),
        }
    }

    fn is_path(pattern: &str, path: &str) -> bool {
        let alone = pattern.matches('*').count() == 1 && pattern.ends_with("/*") && pattern != "/*";
        like(pattern.as_bytes(), path.as_bytes()) || (alone && pattern == format!("{path}/*"))
    }

    fn any<T>(values: &[T], holds: impl Fn(&T) -> bool) -> bool {
        values.is_empty() || values.iter().any(holds)
    }

    fn from(source: &Source, ask: &Ask<'_>) -> bool {
        let uri = ask.identity.map(ToString::to_string);
        let account = ask.identity.map(|id| format!("{}/{}", id.namespace, id.service_account));
        [
            !source.unauthenticated || uri.is_none(),
            any(&source.identities, |one| uri.as_ref().is_some_and(|uri| like(one.as_bytes(), uri.as_bytes()))),
            any(&source.service_accounts, |one| Some(one) == account.as_ref()),
            any(&source.namespaces, |one| ask.identity.is_some_and(|id| id.namespace == *one)),
            any(&source.networks, |one| one.contains(ask.address)),
        ]
        .into_iter()
        .all(|holds| holds)
    }

    fn to(operation: &Operation, ask: &Ask<'_>, action: Action) -> bool {
        let about_requests = Operation { ports: Vec::new(), ..operation.clone() } != Operation::default();
        let ports = any(&operation.ports, |port| *port == ask.port);
        let Some((method, path, grpc, lines)) = ask.head else {
            return ports && (!about_requests || action == Action::Deny);
        };
        let headers = operation.headers.iter().all(|header| {
            lines.iter().any(|(name, line)| {
                name.eq_ignore_ascii_case(&header.name)
                    && any(&header.values, |value| like(value.as_bytes(), line.as_bytes()))
            })
        });
        let call = |one: &String| {
            let service = !one.contains('/') && !one.contains('*');
            let whole = if service { format!("/{one}/*") } else { format!("/{one}") };
            like(whole.as_bytes(), path.as_bytes())
        };
        // A refusal also holds for the path without the slash at its end.
        let bare = path.strip_suffix('/').filter(|bare| action == Action::Deny && !bare.is_empty()).unwrap_or(path);
        let called = operation.grpc_methods.is_empty() || grpc || action == Action::Deny;
        ports
            && any(&operation.methods, |one| one == method)
            && any(&operation.paths, |one| is_path(one, path) || is_path(one, bare))
            && (called && any(&operation.grpc_methods, call))
            && headers
    }

    pub(super) fn allowed(access: &Access, ask: &Ask<'_>) -> bool {
        let about: Vec<&AccessRule> =
            access.rules.iter().filter(|rule| any(&rule.selects, |p| *p == ask.port)).collect();
        let matching = |action: Action| {
            about.iter().any(|rule| {
                rule.action == action
                    && any(&rule.from, |source| from(source, ask))
                    && any(&rule.to, |operation| to(operation, ask, action))
            })
        };
        if matching(Action::Deny) {
            return false;
        }
        if about.iter().any(|rule| rule.action == Action::Allow) {
            return matching(Action::Allow);
        }
        match access.default {
            AccessDefault::All | AccessDefault::Audit => true,
            AccessDefault::Deny => false,
            AccessDefault::Authenticated => ask.identity.is_some(),
            AccessDefault::Cluster => {
                ask.identity.is_some() || access.cluster_networks.iter().any(|network| network.contains(ask.address))
            }
        }
    }
}

fn some<T: Clone + std::fmt::Debug + 'static>(choices: Vec<T>) -> impl Strategy<Value = Vec<T>> {
    prop::collection::vec(prop::sample::select(choices), 0..3)
}

fn source() -> impl Strategy<Value = Source> {
    let identities = texts(&["*", "spiffe://cluster.local/ns/a/sa/x", "spiffe://*/sa/x", "*/ns/b/*", "spiffe:"]);
    let networks = ["10.0.0.0/8", "10.0.0.1", "0.0.0.0/0", "fd00::/8"].map(|n| n.parse().unwrap()).to_vec();
    let accounts = texts(&["a/x", "b/x", "a/y", "x"]);
    (some(identities), some(accounts), some(texts(&["a", "b"])), some(networks), prop::bool::weighted(0.2)).prop_map(
        |(identities, service_accounts, namespaces, networks, unauthenticated)| Source {
            identities,
            service_accounts,
            namespaces,
            networks,
            unauthenticated,
            claims: Vec::new(),
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let paths = texts(&["/a", "/a/*", "/*", "*", "/a/*/c", "*b", "/s.S/M"]);
    let field = |name: &str, values: &[&str]| HeaderMatch { name: name.to_owned(), values: texts(values) };
    let headers = vec![field("X-A", &[]), field("x-a", &["1*"]), field("x-b", &["", "2"])];
    let calls = texts(&["s.S/M", "s.S", "s.S/*", "*/M", "*"]);
    (some(vec![80, 81]), some(texts(&["GET", "POST"])), some(paths), some(headers), some(calls)).prop_map(
        |(ports, methods, paths, headers, grpc_methods)| Operation { ports, methods, paths, headers, grpc_methods },
    )
}

fn any_access() -> impl Strategy<Value = Access> {
    let action = prop::sample::select(vec![Action::Allow, Action::Deny, Action::Audit]);
    let from = prop::collection::vec(source(), 0..3);
    let to = prop::collection::vec(operation(), 0..3);
    let rule = (some(vec![80, 81]), action, from, to).prop_map(|(selects, action, from, to)| AccessRule {
        policy: "n/p".to_owned(),
        selects,
        action,
        from,
        to,
        ..AccessRule::default()
    });
    let default = prop::sample::select(AccessDefault::ALL.to_vec());
    (default, prop::collection::vec(rule, 0..5)).prop_map(|(default, rules)| Access {
        default,
        rules,
        cluster_networks: Network::private(),
        ..Access::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_decider_agrees_with_the_reference(
        access in any_access(),
        account in prop::option::of(prop::sample::select(vec!["a/x", "b/x", "a/y", "c/z"])),
        address in prop::sample::select(vec!["10.0.0.1", "10.9.0.1", "203.0.113.1", "fd00::1"]),
        port in prop::sample::select(vec![80u16, 81, 82]),
        path in prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/s.S/M", "/s.S/N", "/s.Sx/M"]),
        method in prop::sample::select(vec!["GET", "POST", "PUT"]),
        (grpc, seen) in (any::<bool>(), prop::bool::weighted(0.8)),
        lines in prop::collection::vec((prop::sample::select(vec!["x-a", "x-b"]), prop::sample::select(vec!["", "1", "12", "2"])), 0..3),
    ) {
        let who = caller(address, account);
        let id = account.map(|a| { let (ns, name) = a.split_once('/').unwrap(); SpiffeId::new("cluster.local", ns, name) });
        let lines: Vec<(String, String)> = lines.into_iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
        let header = |name: &str, judge: &dyn Fn(&[u8]) -> bool| {
            lines.iter().any(|(n, line)| n.eq_ignore_ascii_case(name) && judge(line.as_bytes()))
        };
        let what = if seen { What::Request(Head { method, path, grpc, header: &header, evidence: &NoEvidence }) } else { What::Opaque };
        let decision = decide(&access, &who.caller(), &Asked { port, what });
        let head = seen.then_some((method, path, grpc, lines.as_slice()));
        let ask = reference::Ask { address: address.parse().unwrap(), identity: id.as_ref(), port, head };
        prop_assert_eq!(decision.allowed, reference::allowed(&access, &ask), "{:?}", decision.why);
    }

    #[test]
    fn any_text_is_decided_about(
        patterns in prop::collection::vec(any::<String>(), 0..4),
        path in any::<String>(),
        method in any::<String>(),
        line in any::<Vec<u8>>(),
        port in any::<u16>(),
    ) {
        let to = Operation {
            paths: patterns.clone(),
            grpc_methods: patterns.clone(),
            headers: patterns.iter().map(|p| HeaderMatch { name: p.clone(), values: patterns.clone() }).collect(),
            ..Operation::default()
        };
        let from = Source { identities: patterns.clone(), service_accounts: patterns, ..Source::default() };
        let header = |_: &str, judge: &dyn Fn(&[u8]) -> bool| judge(&line);
        for action in [Action::Allow, Action::Deny, Action::Audit] {
            let access = access(vec![rule(action, vec![from.clone()], vec![to.clone()])]);
            let head = Head { method: &method, path: &path, grpc: true, header: &header, evidence: &NoEvidence };
            decide(&access, &caller("::1", Some("a/b")).caller(), &Asked { port, what: What::Request(head) });
        }
    }
}
