//! Requests as data: options, streams, ports, protocols, failures.

use super::*;

fn query(text: &str) -> Query {
    Query::parse(Some(text))
}

#[test]
fn log_options_are_read() {
    let now: jiff::Timestamp = "2026-11-21T06:00:00Z".parse().unwrap();
    let options = log_options(&query("follow=true&timestamps=true&sinceSeconds=60&tailLines=5&limitBytes=100"), now);
    let options = options.unwrap();
    assert!(options.follow && options.timestamps && !options.previous);
    assert_eq!(options.since, Some("2026-11-21T05:59:00Z".parse().unwrap()));
    assert_eq!((options.tail, options.limit_bytes), (Some(5), Some(100)));
    let options = log_options(&query("sinceTime=2026-11-21T05:00:00%2B01:00&previous=true"), now).unwrap();
    assert_eq!(options.since, Some("2026-11-21T04:00:00Z".parse().unwrap()));
    assert!(options.previous && !options.follow);
    let options = log_options(&query("sinceSeconds=99999999999999999"), now).unwrap();
    assert_eq!(options.since, None, "longer than time itself: everything");
    for wrong in [
        "tailLines=-1",
        "tailLines=x",
        "sinceSeconds=0",
        "limitBytes=0",
        "sinceTime=yesterday",
        "sinceSeconds=5&sinceTime=2026-11-21T05:00:00Z",
    ] {
        assert_eq!(log_options(&query(wrong), now).unwrap_err().code, 400, "{wrong}");
    }
}

#[test]
fn streams_are_chosen() {
    let chosen = |text| wanted(&query(text)).map(|w| [w.stdin, w.stdout, w.stderr, w.tty]).ok();
    assert_eq!(chosen("stdout=true&stderr=1"), Some([false, true, true, false]));
    assert_eq!(chosen("stdin=true&stdout=true&stderr=true&tty=true"), Some([true, true, false, true]));
    assert_eq!(chosen("tty=true"), None);
    assert_eq!(chosen("stdout=false"), None);
}

#[test]
fn ports_are_read() {
    assert_eq!(ports(&query("ports=80&ports=443")).unwrap(), [80, 443]);
    assert_eq!(ports(&query("ports=80,443")).unwrap(), [80, 443]);
    for wrong in ["", "ports=", "ports=0", "ports=x", "ports=80,,", &format!("ports={}", ["1"; 101].join(","))] {
        assert!(ports(&query(wrong)).is_err(), "{wrong}");
    }
}

#[test]
fn the_best_common_protocol_is_chosen() {
    let negotiate = |pairs: &[(&'static str, &str)]| {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        Upgrade::negotiate(&headers, COMMAND_WEBSOCKET, COMMAND_SPDY).map_err(|error| error.code)
    };
    // The key and its answer are RFC 6455's own example.
    let websocket = [("upgrade", "websocket"), ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")];
    let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
    let offers = |protocols| [websocket.as_slice(), &[("sec-websocket-protocol", protocols)]].concat();
    let version = |protocol| Ok(Upgrade::WebSocket { accept: accept.clone(), protocol });
    assert_eq!(negotiate(&offers("v4.channel.k8s.io, v5.channel.k8s.io")), version("v5.channel.k8s.io"));
    assert_eq!(negotiate(&offers("v4.channel.k8s.io")), version("v4.channel.k8s.io"));
    assert_eq!(negotiate(&offers("base64.channel.k8s.io")), Err(403));
    assert_eq!(negotiate(&websocket), Err(403));
    assert_eq!(negotiate(&websocket[..1]), Err(400));
    // SPDY clients repeat the header.
    let spdy =
        [("upgrade", "SPDY/3.1"), (STREAM_PROTOCOL, "v5.channel.k8s.io"), (STREAM_PROTOCOL, "v4.channel.k8s.io")];
    assert_eq!(negotiate(&spdy), Ok(Upgrade::Spdy { protocol: "v4.channel.k8s.io" }));
    assert_eq!(negotiate(&[]), Err(400));
}

#[test]
fn failures_of_the_node_have_their_codes() {
    let code = |error: PodError| refusal(&error).code;
    assert_eq!(code(PodError::NoPod("shop".into(), "web".into())), 404);
    assert_eq!(code(PodError::NoContainer { pod: "web".into(), container: "x".into() }), 400);
    assert_eq!(code(PodError::NotNow("not started".into())), 400);
    assert_eq!(code(PodError::Failed("broken".into())), 500);
}
