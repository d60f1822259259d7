//! Events as lines for people. Pure; whatever applications send is shown without control characters.

use crate::resource::short_kind;
use crate::top::format::latency;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use mesh_api::golden::{Direction, TlsStatus, is_success};
use mesh_api::tap::filter::GRPC_STATUSES;
use mesh_api::tap::{TapBody, TapEnd, TapEnding, TapEvent, TapHttp, TapKind, TapLeftOut};

/// How lines look.
#[derive(Clone, Debug)]
pub struct Style {
    /// With addresses, pods, identities and everything else but headers.
    pub wide: bool,
    /// With colours.
    pub colors: bool,
    /// In which time zone.
    pub zone: TimeZone,
}

/// An event in one line, and its bodies, if it has any, below it.
pub fn line(event: &TapEvent, style: &Style) -> String {
    let at = Timestamp::from_millisecond(i64::try_from(event.at_ms).unwrap_or_default()).unwrap_or_default();
    let direction = match event.direction {
        Direction::Inbound => "in ",
        Direction::Outbound => "out",
    };
    let mut words = vec![
        at.to_zoned(style.zone.clone()).strftime("%H:%M:%S%.3f").to_string(),
        direction.to_owned(),
        end(&event.source, style.wide),
        "->".to_owned(),
        end(&event.destination, style.wide),
    ];
    match &event.http {
        Some(http) => request(event, http, style, &mut words),
        None => connection(event, &mut words),
    }
    words.push(tls(event.tls).to_owned());
    if let Some(error) = event.error {
        words.push(paint(&format!("mesh-error={}", error.code()), RED, style.colors));
    }
    if style.wide {
        details(event, &mut words);
    }
    let mut text = words.join(" ");
    for (name, body) in
        event.http.iter().flat_map(|http| [("request", &http.request_body), ("response", &http.response_body)])
    {
        if let Some(body) = body {
            text.push_str(&shown_body(name, body));
        }
    }
    text.push('\n');
    text
}

fn request(event: &TapEvent, http: &TapHttp, style: &Style, words: &mut Vec<String>) {
    let or_dash = |text: &str| if text.is_empty() { "-".to_owned() } else { clean(text) };
    words.push(or_dash(&http.method));
    words.push(or_dash(&http.path));
    let complete = matches!(event.ending, Some(TapEnding::Orderly | TapEnding::ByMesh));
    let color = match http.status {
        _ if !is_success(http.status, http.grpc_status, complete) => RED,
        Some(status) if status >= 400 => YELLOW,
        _ => GREEN,
    };
    let mut status = http.status.map_or("-".to_owned(), |status| status.to_string());
    if let Some(grpc) = http.grpc_status {
        let name = GRPC_STATUSES.get(usize::from(grpc)).copied().map_or(grpc.to_string(), str::to_owned);
        status = format!("{status} grpc={name}");
    }
    words.push(paint(&status, color, style.colors));
    words.push(time(event.duration_us));
    match event.ending {
        None | Some(TapEnding::Orderly | TapEnding::ByMesh) => {}
        Some(ending) => words.push(paint(how(ending), RED, style.colors)),
    }
}

fn connection(event: &TapEvent, words: &mut Vec<String>) {
    words.push("TCP".to_owned());
    match event.event {
        TapKind::Open => words.push("open".to_owned()),
        TapKind::Close | TapKind::Request => {
            words.push("close".to_owned());
            words.push(event.ending.map_or("-", how).to_owned());
            words.push(time(event.duration_us));
            words.push(format!("read={} written={}", bytes(event.read_bytes), bytes(event.write_bytes)));
        }
    }
}

fn details(event: &TapEvent, words: &mut Vec<String>) {
    let identity = |end: &TapEnd| end.identity.as_ref().map_or("-".to_owned(), ToString::to_string);
    words.push(format!("client-id={}", identity(&event.source)));
    words.push(format!("server-id={}", identity(&event.destination)));
    if let Some(service) = &event.service {
        words.push(format!("service={}/{}:{}", service.namespace, service.name, service.port));
    }
    let Some(http) = &event.http else { return };
    words.push(clean(&http.version));
    if !http.authority.is_empty() {
        words.push(format!("authority={}", clean(&http.authority)));
    }
    words.push(format!("route={}", clean(&http.route)));
    words.push(format!("first-byte={}", http.first_byte_us.map_or("-".to_owned(), time)));
    words.push(format!("request={} response={}", bytes(event.read_bytes), bytes(event.write_bytes)));
    if http.retries > 0 {
        words.push(format!("retries={}", http.retries));
    }
}

fn shown_body(name: &str, body: &TapBody) -> String {
    let mut text = String::new();
    match (&body.text, &body.hex) {
        (Some(body), _) => {
            for line in body.lines() {
                text.push_str(&format!("\n    {name}| {}", clean(line)));
            }
        }
        (None, Some(hex)) => text.push_str(&format!("\n    {name}| 0x{hex}")),
        (None, None) => {}
    }
    if body.truncated {
        text.push_str(&format!("\n    {name}| …"));
    }
    text
}

/// What is at one end: its workload if that is known.
fn end(end: &TapEnd, wide: bool) -> String {
    let named = end.workload.as_ref().map(|workload| match (wide, &end.pod) {
        (true, Some(pod)) => format!("{}/po/{pod}", workload.namespace),
        _ => format!("{}/{}", short_kind(&workload.kind), workload.name),
    });
    match named {
        Some(name) if wide => format!("{}({})", clean(&name), end.address),
        Some(name) => clean(&name),
        None => end.address.to_string(),
    }
}

fn tls(tls: TlsStatus) -> &'static str {
    match tls {
        TlsStatus::Mutual => "mtls",
        TlsStatus::Passthrough => "own-tls",
        TlsStatus::Plain => "plain",
    }
}

fn how(ending: TapEnding) -> &'static str {
    match ending {
        TapEnding::Orderly => "orderly",
        TapEnding::ByClient => "ended-by-client",
        TapEnding::ByServer => "ended-by-server",
        TapEnding::ByMesh => "refused",
        TapEnding::Cut => "cut-by-shutdown",
    }
}

fn time(us: u64) -> String {
    if us < 1000 { format!("{us}us") } else { latency(us as f64 / 1000.0) }
}

fn bytes(count: u64) -> String {
    match count as f64 {
        n if n >= 999.5e6 => format!("{:.1}GB", n / 1e9),
        n if n >= 999.5e3 => format!("{:.1}MB", n / 1e6),
        n if n >= 999.5 => format!("{:.1}kB", n / 1e3),
        n => format!("{n}B"),
    }
}

/// Text of applications, without what a terminal would obey.
fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;

fn paint(text: &str, color: u8, colors: bool) -> String {
    if colors { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The last line: how many were shown, how many left out, and why.
pub fn summary(shown: u64, left_out: &TapLeftOut, max_rps: u32) -> String {
    let TapLeftOut { sampled, rate_limited, buffer_full } = *left_out;
    if left_out.total() == 0 {
        return format!("{shown} shown, none left out.");
    }
    let reasons = [
        (rate_limited, format!("{rate_limited} over --max-rps {max_rps}")),
        (sampled, format!("{sampled} not in the sample")),
        (buffer_full, format!("{buffer_full} because they were not read fast enough")),
    ];
    let reasons: Vec<String> = reasons.into_iter().filter(|(count, _)| *count > 0).map(|(_, text)| text).collect();
    format!("{shown} shown, {} left out: {}.", left_out.total(), reasons.join(", "))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use mesh_api::golden::Carried;
    use mesh_api::{MeshError, ServiceRef, SpiffeId, WorkloadRef};

    fn end(name: &str, last: u8, port: u16) -> TapEnd {
        TapEnd {
            address: ([10, 244, 0, last], port).into(),
            workload: Some(WorkloadRef::new("shop", "deployment", name)),
            pod: Some(format!("{name}-1")),
            identity: Some(SpiffeId::new("cluster.local", "shop", name)),
        }
    }

    pub(crate) fn request() -> TapEvent {
        TapEvent {
            at_ms: 1_700_000_000_123,
            event: TapKind::Request,
            direction: Direction::Inbound,
            carried: Carried::Http,
            source: end("web", 5, 40_000),
            destination: end("catalog", 6, 8080),
            service: Some(ServiceRef { namespace: "shop".into(), name: "catalog".into(), port: 80 }),
            tls: TlsStatus::Mutual,
            http: Some(TapHttp {
                method: "GET".into(),
                authority: "catalog\x1b[2J".into(),
                path: "/products/17".into(),
                version: "HTTP/1.1".into(),
                route: "/products/{id}".into(),
                status: Some(200),
                first_byte_us: Some(900),
                ..TapHttp::default()
            }),
            error: None,
            ending: Some(TapEnding::Orderly),
            duration_us: 1234,
            read_bytes: 0,
            write_bytes: 1500,
        }
    }

    #[test]
    fn events_as_lines() {
        let style = |wide| Style { wide, colors: false, zone: TimeZone::UTC };
        let grpc = |event: TapEvent| TapEvent {
            carried: Carried::Grpc,
            http: event.http.map(|http| TapHttp {
                method: "POST".into(),
                path: "/shop.Cart/Add".into(),
                grpc_status: Some(14),
                retries: 1,
                ..http
            }),
            error: Some(MeshError::NoEndpoints),
            ending: Some(TapEnding::ByMesh),
            ..event
        };
        let tcp = |event: TapEvent, kind, ending| TapEvent {
            event: kind,
            carried: Carried::Tcp,
            http: None,
            ending,
            duration_us: 12_345_678,
            direction: Direction::Outbound,
            ..event
        };
        let mut unanswered = request();
        unanswered.ending = Some(TapEnding::ByClient);
        unanswered.source.workload = None;
        if let Some(http) = &mut unanswered.http {
            http.status = None;
            http.request_body = Some(TapBody { text: Some("a\nb\x07".into()), hex: None, truncated: true });
            http.response_body = Some(TapBody { text: None, hex: Some("00ff".into()), truncated: false });
        }
        let events = [
            request(),
            grpc(request()),
            tcp(request(), TapKind::Open, None),
            tcp(request(), TapKind::Close, Some(TapEnding::ByServer)),
            unanswered,
        ];
        let text: String = [false, true]
            .into_iter()
            .flat_map(|wide| events.iter().map(move |event| line(event, &style(wide))))
            .collect();
        insta::assert_snapshot!(text);
        assert!(!text.contains('\x1b') && !text.contains('\x07'));
        let colored = line(&request(), &Style { colors: true, ..style(false) });
        assert!(colored.contains("\x1b[32m200\x1b[0m"), "{colored}");
    }

    #[test]
    fn the_end_says_what_was_left_out_and_why() {
        let check = |sampled, rate_limited, buffer_full, expect: &str| {
            assert_eq!(summary(7, &TapLeftOut { sampled, rate_limited, buffer_full }, 5), expect);
        };
        check(0, 0, 0, "7 shown, none left out.");
        check(0, 3, 0, "7 shown, 3 left out: 3 over --max-rps 5.");
        check(
            1,
            2,
            3,
            "7 shown, 6 left out: 2 over --max-rps 5, 1 not in the sample, 3 because they were not read fast enough.",
        );
    }
}
