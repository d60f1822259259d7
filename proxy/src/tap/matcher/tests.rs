//! What matches, term by term, and that the three steps agree with one look at everything.

use super::*;
use http::HeaderName;
use proptest::prelude::*;

/// A request or connection, whole.
#[derive(Clone, Debug)]
struct Seen {
    direction: Direction,
    carried: Carried,
    source: IpAddr,
    destination: IpAddr,
    peer: Option<SpiffeId>,
    method: String,
    path: String,
    route: String,
    header: (String, String),
    status: Option<u16>,
    grpc_status: Option<u16>,
    error: Option<MeshError>,
    ms: u64,
}

fn seen() -> Seen {
    Seen {
        direction: Direction::Inbound,
        carried: Carried::Http,
        source: "10.244.0.5".parse().unwrap(),
        destination: "10.244.0.9".parse().unwrap(),
        peer: Some(SpiffeId::new("cluster.local", "shop", "web")),
        method: "GET".into(),
        path: "/products/17".into(),
        route: "/products/{id}".into(),
        header: ("x-user".into(), "bob".into()),
        status: Some(200),
        grpc_status: None,
        error: None,
        ms: 20,
    }
}

fn matches(matcher: &Matcher, seen: &Seen) -> bool {
    let name: HeaderName = seen.header.0.parse().unwrap();
    let headers = HeaderMap::from_iter([(name, seen.header.1.parse().unwrap())]);
    let http = HttpHead { method: &seen.method, path: &seen.path, route: &seen.route, headers: &headers };
    let peer = seen.peer.as_ref();
    let head = Head {
        direction: seen.direction,
        carried: seen.carried,
        source: seen.source,
        client: peer.filter(|_| seen.direction == Direction::Inbound),
        http: (seen.carried != Carried::Tcp).then_some(http),
    };
    let server = peer.filter(|_| seen.direction == Direction::Outbound);
    let end = End {
        status: seen.status,
        grpc_status: seen.grpc_status,
        error: seen.error,
        duration: Duration::from_millis(seen.ms),
    };
    matcher.head(&head)
        && matcher.way(seen.direction, &Way { destination: seen.destination, server })
        && matcher.end(&end)
}

fn matcher(filter: &str) -> Matcher {
    let addresses = Some(vec!["10.244.0.5".parse().unwrap()]);
    Matcher::new(filter.parse().unwrap(), addresses.clone(), addresses).unwrap()
}

#[test]
fn each_term_decides() {
    let check = |filter: &str, expect: bool| assert_eq!(matches(&matcher(filter), &seen()), expect, "{filter}");
    check("", true);
    check("direction=inbound", true);
    check("direction=outbound", false);
    check("protocol=http", true);
    check("protocol=grpc,tcp", false);
    check("method=POST,get", true);
    check("method=POST", false);
    check("path=/products", true);
    check("path=/cart", false);
    check("route=/products/{id}", true);
    check("route=/products", false);
    check("header=x-user=b*b", true);
    check("header=x-user", true);
    check("header=x-user=eve", false);
    check("header=x-user header=x-other", false);
    check("status=2xx", true);
    check("status=5xx,404", false);
    check("grpc-status=0", false);
    check("error=any", false);
    check("slower-than=19ms", true);
    check("slower-than=20ms", false);
    check("identity=*/ns/shop/sa/web", true);
    check("identity=*/sa/other", false);
    check("from=deployment/web", true);
    check("to=deployment/web", false);
    check("from=10.244.0.0/16 to=10.244.0.9", true);
}

#[test]
fn the_other_end_proves_the_identity() {
    let outbound = Seen { direction: Direction::Outbound, ..seen() };
    assert!(matches(&matcher("identity=*/sa/web"), &outbound));
    assert!(!matches(&matcher("identity=*"), &Seen { peer: None, ..outbound }));
}

#[test]
fn a_connection_has_no_path() {
    let tcp = Seen { carried: Carried::Tcp, status: None, ..seen() };
    for filter in ["method=GET", "path=/", "route=*", "header=x-user", "status=2xx", "grpc-status=0"] {
        assert!(!matches(&matcher(filter), &tcp), "{filter}");
    }
    assert!(matches(&matcher("protocol=tcp slower-than=1ms from=deployment/web"), &tcp));
    assert!(!matcher("slower-than=1ms").leaves_the_end_open() && matcher("direction=inbound").leaves_the_end_open());
}

#[test]
fn probes_are_shown_to_whoever_asks() {
    let probe = Seen { route: PROBE.into(), ..seen() };
    assert!(!matches(&matcher(""), &probe));
    assert!(matches(&matcher("route=probe"), &probe));
}

fn any_seen() -> impl Strategy<Value = Seen> {
    let direction = prop_oneof![Just(Direction::Inbound), Just(Direction::Outbound)];
    let carried = prop_oneof![Just(Carried::Http), Just(Carried::Grpc), Just(Carried::Tcp)];
    let status = proptest::option::of(prop_oneof![Just(200u16), Just(404), Just(503)]);
    let last = (1u8..9).prop_map(|last| IpAddr::from([10, 244, 0, last]));
    let text = ("(GET|POST)", "/(products|cart)(/[0-9])?", "(bob|eve)");
    (direction, carried, last.clone(), last, text, status, 0u64..40).prop_map(
        |(direction, carried, source, destination, (method, path, user), status, ms)| Seen {
            direction,
            carried,
            source,
            destination,
            method,
            path,
            header: ("x-user".into(), user),
            status: status.filter(|_| carried != Carried::Tcp),
            ms,
            ..seen()
        },
    )
}

const TERMS: [&str; 10] = [
    "direction=inbound",
    "protocol=http,grpc",
    "method=GET",
    "path=/products",
    "header=x-user=bob",
    "status=2xx,5xx",
    "slower-than=10ms",
    "from=deployment/web",
    "to=10.244.0.4/30",
    "identity=*/sa/web",
];

proptest! {
    /// All terms together hold exactly if each holds alone.
    #[test]
    fn terms_are_conjoined(seen in any_seen(), chosen in proptest::collection::vec(any::<bool>(), TERMS.len())) {
        let chosen: Vec<&str> = TERMS.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(term, _)| *term).collect();
        let each = chosen.iter().all(|term| matches(&matcher(term), &seen));
        prop_assert_eq!(matches(&matcher(&chosen.join(" ")), &seen), each);
    }
}
