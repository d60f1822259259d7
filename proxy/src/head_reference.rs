//! The rules for a head once more, slowly and in the words of the grammar, for the tests to compare with.

use super::{Content, Head};

/// What [`super::inspect`] should say of a head, `None` if it must refuse it.
pub(super) fn judge(bytes: &[u8]) -> Option<Head> {
    // Latin-1: every byte is a character, so that no byte is lost.
    let text: String = bytes.iter().map(|&b| char::from(b)).collect();
    let lines: Vec<&str> = text.strip_suffix("\r\n\r\n")?.split("\r\n").collect();
    // Within a line there is no control character but a tab; CR and LF in it would be bare ones.
    if lines.iter().any(|line| line.is_empty() || line.chars().any(|c| c.is_ascii_control() && c != '\t')) {
        return None;
    }
    let (method, target, minor) = request_line(lines[0])?;
    let fields: Vec<(String, &str)> = lines[1..].iter().map(|line| field(line)).collect::<Option<_>>()?;
    let all = |name: &str| -> Vec<&str> { fields.iter().filter(|(n, _)| n == name).map(|(_, v)| *v).collect() };
    if fields.len() > 100 || !all("content_length").is_empty() {
        return None;
    }
    if ["transfer_encoding", "transfer-encoding"].iter().any(|n| !all(n).is_empty() && (minor == 0 || n.contains('_')))
    {
        return None;
    }
    let host = match all("host")[..] {
        [] if minor == 0 => None,
        [host] if host.is_empty() || is_host(host) => Some(host),
        _ => return None,
    };
    check_target(method, target, host)?;
    let content = match (&all("content-length")[..], &all("transfer-encoding")[..]) {
        ([], []) => Content::Length(0),
        ([length], []) => {
            let digits = length.len() <= 19 && !length.is_empty() && length.chars().all(|c| c.is_ascii_digit());
            Content::Length(length.parse::<i64>().ok().filter(|_| digits)?.try_into().ok()?)
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Content::Chunked,
        _ => return None,
    };
    if method == "CONNECT" && content != Content::Length(0) {
        return None;
    }
    let connection = all("connection");
    let close =
        connection.iter().flat_map(|v| v.split(',')).any(|o| o.trim_matches([' ', '\t']).eq_ignore_ascii_case("close"));
    Some(Head {
        content,
        leaves_http: method == "CONNECT" || (minor == 1 && !all("upgrade").is_empty()),
        last: close || (minor == 0 && connection.is_empty()),
    })
}

fn is_token(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
}

fn request_line(line: &str) -> Option<(&str, &str, u8)> {
    let words: Vec<&str> = line.split(' ').collect();
    let [method, target, version] = words[..] else { return None };
    let minor = match version {
        "HTTP/1.1" => 1,
        "HTTP/1.0" => 0,
        _ => return None,
    };
    (is_token(method) && !target.is_empty()).then_some((method, target, minor))
}

fn field(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.split_once(':')?;
    is_token(name).then(|| (name.to_ascii_lowercase(), value.trim_matches([' ', '\t'])))
}

fn is_host(value: &str) -> bool {
    let (host, port) = match value.rfind(']') {
        Some(at) if value.starts_with('[') => value.split_at(at + 1),
        _ => value.split_at(value.find(':').unwrap_or(value.len())),
    };
    let port_fits = match port.strip_prefix(':') {
        Some(digits) => digits.len() <= 5 && digits.chars().all(|c| c.is_ascii_digit()),
        None => port.is_empty(),
    };
    let host_fits = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)),
    };
    host_fits && port_fits
}

fn check_target(method: &str, target: &str, host: Option<&str>) -> Option<()> {
    let bytes: Vec<u8> = target.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    let uri = http::Uri::try_from(&bytes[..]).ok().filter(|_| !target.contains('#') && target.len() <= 32 * 1024)?;
    if method == "CONNECT" {
        let (name, _) = target.rsplit_once(':')?;
        let plain = is_host(target) && uri.port_u16().is_some() && target != "*" && !target.starts_with('/');
        let same = host.is_none_or(|h| h.is_empty() || h.eq_ignore_ascii_case(target) || h.eq_ignore_ascii_case(name));
        return (plain && same).then_some(());
    }
    if target == "*" {
        return (method == "OPTIONS").then_some(());
    }
    if target.starts_with('/') {
        return Some(());
    }
    let (scheme, rest) = target.split_once("://")?;
    let mut letters = scheme.chars();
    let scheme_fits = letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let authority = rest.split(['/', '?']).next()?;
    let port = match scheme.to_ascii_lowercase().as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let bare = |host: &str| host.strip_suffix(port).unwrap_or(host).to_ascii_lowercase();
    let same = host.is_none_or(|host| bare(host) == bare(authority));
    (scheme_fits && is_host(authority) && same).then_some(())
}
