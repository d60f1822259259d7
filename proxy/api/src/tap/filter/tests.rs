//! How filters are written, what is wrong with them, and that what is written reads back.

use super::*;
use proptest::prelude::*;

#[test]
fn every_term_is_read() {
    let text = "direction=inbound protocol=http,grpc method=get,POST path=/products/* route=\"/a {id}\" \
                header=x-user=bob header=Accept status=5xx,404,200-299 grpc-status=unavailable,13 error=no-endpoints \
                slower-than=1.5s identity=*/sa/web from=deployment/web to=other/service/cart";
    let filter: TapFilter = text.parse().unwrap();
    let expect = TapFilter {
        direction: Some(Direction::Inbound),
        protocols: vec![Carried::Http, Carried::Grpc],
        methods: vec!["GET".into(), "POST".into()],
        path: Some(PathPattern::new("/products/*")),
        route: Some(Glob::new("/a {id}")),
        headers: vec![
            HeaderMatch { name: "x-user".into(), value: Some(Glob::new("bob")) },
            HeaderMatch { name: "accept".into(), value: None },
        ],
        statuses: vec![
            Statuses { first: 500, last: 599 },
            Statuses { first: 404, last: 404 },
            Statuses { first: 200, last: 299 },
        ],
        grpc_statuses: vec![14, 13],
        errors: vec![MeshError::NoEndpoints],
        slower_than: Some(Duration::from_millis(1500)),
        identity: Some(Glob::new("*/sa/web")),
        from: Some(Place::Resource { namespace: None, kind: "deployment".into(), name: "web".into() }),
        to: Some(Place::Resource { namespace: Some("other".into()), kind: "service".into(), name: "cart".into() }),
    };
    assert_eq!(filter, expect);
    assert_eq!("  ".parse::<TapFilter>().unwrap(), TapFilter::default());
}

#[test]
fn an_error_points_at_the_place() {
    let check = |text: &str, at: usize, expect: &str| {
        let error = text.parse::<TapFilter>().unwrap_err();
        assert_eq!(error.at, at, "{text}: {error}");
        assert!(error.to_string().contains(expect), "{text}: {error}");
        assert!(error.to_string().contains("e.g. "), "{error}");
    };
    check("status", 6, "= and a value");
    check("stauts=5xx", 0, "direction protocol method");
    check("status=5xx,6yx", 11, "found `6yx`, e.g. status=5xx,404");
    check("status=99", 7, "a status");
    check("status=500-400", 7, "a range");
    check("status=", 7, "a value, found the end");
    check("method=GET path=api", 16, "begins with /");
    check("path=/a?b", 7, "queries");
    check("path=/a path=/b", 13, "only once");
    check("header=x y", 10, "= and a value");
    check("header=\"x y=1\"", 8, "name of a header");
    check("grpc-status=17", 12, "0 to 16");
    check("error=none", 6, "no-endpoints no-route no-backend connect-failed");
    check("slower-than=200", 12, "a duration");
    check("slower-than=1y", 12, "a duration");
    check("from=web", 5, "KIND/NAME");
    check("from=shop/teapot/web", 10, "a kind (deployment");
    check("to=pod/a_b", 7, "a name");
    check("to=10.0.0.0/40", 3, "a kind");
    check("direction=up", 10, "inbound or outbound");
    check("protocol=http,udp", 14, "http, grpc or tcp");
    check("route=\"a b", 6, "a closing quote");
    check("status=404 \"path\"=\"a\\\"b\"", 19, "begins with /");
    check("\"status\"=\"5xx,6\\yx\"", 14, "a status");
    check(&format!("path=/{}", "x".repeat(MAX_BYTES)), MAX_BYTES, "at most");
}

#[test]
fn networks_are_places() {
    let check = |network: &str, address: &str, expect: bool| {
        let filter: TapFilter = format!("from={network}").parse().unwrap();
        assert_eq!(filter.from.unwrap().has(address.parse().unwrap()), expect, "{network} {address}");
    };
    check("10.244.0.0/16", "10.244.7.1", true);
    check("10.244.0.0/16", "10.245.0.1", false);
    check("10.0.0.1", "10.0.0.1", true);
    check("10.0.0.1", "10.0.0.2", false);
    check("0.0.0.0/0", "1.2.3.4", true);
    check("0.0.0.0/0", "::1", false);
    check("fd00::/8", "fd12::1", true);
}

#[test]
fn secrets_are_neither_compared_unnoticed_nor_logged() {
    let filter: TapFilter = "header=authorization=Bearer* header=x-user=bob header=cookie".parse().unwrap();
    assert!(filter.compares_secrets());
    assert_eq!(filter.without_secrets(), "header=authorization=[redacted] header=x-user=bob header=cookie");
    assert!(!"header=cookie header=x-user=a".parse::<TapFilter>().unwrap().compares_secrets());
}

fn place() -> impl Strategy<Value = Place> {
    prop_oneof![
        (any::<u32>(), 0u8..=32).prop_map(|(ip, bits)| Place::Network { address: IpAddr::V4(ip.into()), bits }),
        (proptest::option::of("[a-z][a-z0-9-]{0,5}"), 0..KINDS.len(), "[a-z][a-z0-9.-]{0,8}")
            .prop_map(|(namespace, kind, name)| Place::Resource { namespace, kind: KINDS[kind].to_owned(), name }),
    ]
}

prop_compose! {
    fn filter()(
        direction in proptest::option::of(prop_oneof![Just(Direction::Inbound), Just(Direction::Outbound)]),
        methods in proptest::collection::vec("[A-Z]{1,7}", 0..3),
        path in proptest::option::of("/[a-z*/ \"\\\\]{0,9}"),
        route in proptest::option::of("\\PC{1,9}"),
        headers in proptest::collection::vec(("[a-z-]{1,9}", proptest::option::of("\\PC{0,9}")), 0..3),
        statuses in proptest::collection::vec((100u16..500, 0u16..400), 0..3),
        grpc_statuses in proptest::collection::vec(0u16..17, 0..3),
        errors in proptest::collection::vec(0..MeshError::ALL.len(), 0..3),
        slower_than in proptest::option::of(0u64..10_000_000),
        identity in proptest::option::of("[a-z:/*]{1,20}"),
        from in proptest::option::of(place()),
        to in proptest::option::of(place()),
    ) -> TapFilter {
        TapFilter {
            direction,
            protocols: Vec::new(),
            methods,
            path: path.map(PathPattern::new),
            route: route.map(Glob::new),
            headers: headers.into_iter().map(|(name, value)| HeaderMatch { name, value: value.map(Glob::new) }).collect(),
            statuses: statuses.into_iter().map(|(first, more)| Statuses { first, last: first + more }).collect(),
            grpc_statuses,
            errors: errors.into_iter().map(|at| MeshError::ALL[at]).collect(),
            slower_than: slower_than.map(Duration::from_micros),
            identity: identity.map(Glob::new),
            from,
            to,
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back(filter in filter()) {
        prop_assert_eq!(filter.to_string().parse::<TapFilter>(), Ok(filter));
    }

    #[test]
    fn nonsense_never_panics_and_errors_point_into_the_text(text in "(direction|path|status|header|from| |=|\"|,|/|\\\\|x|5|\\PC){0,12}") {
        if let Err(error) = text.parse::<TapFilter>() {
            prop_assert!(error.at <= text.chars().count(), "{}", error);
        }
    }
}
