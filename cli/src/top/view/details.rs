//! Everything about one line: numbers, latency histogram, statuses, errors, endpoints, callers, routes.

use super::{Sheet, dull, empty, left, right};
use crate::golden::Row;
use crate::top::account::Lines;
use crate::top::details::Details;
use crate::top::format::{bytes_rate, latency, percent, rate};
use crate::top::layout::{Rows, cells_of};
use crate::top::state::State;
use mesh_api::golden::{EndpointView, GRPC_FAILURES, Series};
use mesh_api::histogram::bucket_value_us;
use mesh_api::{Histogram, MeshError};
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use std::collections::BTreeMap;

/// The least width of the screen at which histogram and statuses stand side by side.
const SIDE_BY_SIDE: usize = 100;
/// Bars of the histogram.
const BAR: usize = 24;

/// Draws what fits, from where it is scrolled to.
pub(super) fn draw(state: &State, sheet: &mut Sheet, rows: &Rows) {
    let lines = lines(state);
    if lines.is_empty() {
        let text = ["Nothing is selected: choose a line and press Enter".to_owned()];
        return empty::draw(state, sheet, rows.body, rows.count, &text);
    }
    for (y, line) in (rows.body..rows.body + rows.count).zip(lines.iter().skip(state.scroll)) {
        sheet.put(1, y, line);
    }
}

/// All lines.
pub(super) fn lines(state: &State) -> Vec<Line<'static>> {
    let (Some(details), Some(subject)) = (&state.details, &state.subject) else { return Vec::new() };
    let width = usize::from(state.size.0.saturating_sub(2));
    let series = details.main(subject.lines);
    let mut lines = head(state, details, width);
    lines.push(Line::default());
    let histogram = histogram(state, &series.latency, &series.first_byte);
    let facts = facts(state, details, series);
    if usize::from(state.size.0) >= SIDE_BY_SIDE {
        let half = width / 2;
        lines.extend(beside(histogram, facts, half));
    } else {
        lines.extend(histogram);
        lines.push(Line::default());
        lines.extend(facts);
    }
    lines.extend(endpoints(state, details, width));
    lines.extend(balancers(state, details, width));
    let callers = details.callers.iter().map(|(caller, row)| (format!("{}/{}", caller.namespace, caller.name), row));
    if subject.lines != Lines::Edges {
        lines.extend(rows_of(state, "CALLERS", callers.collect(), width));
    }
    let routes = details.routes.iter().map(|row| {
        let name = row.route.as_ref().map(|route| format!("{} {}", route.method, route.route)).unwrap_or_default();
        let name = name.trim();
        (if name.is_empty() { "tcp".to_owned() } else { name.to_owned() }, row)
    });
    lines.extend(rows_of(state, "ROUTES", routes.collect(), width));
    let old = dull(state);
    lines.into_iter().map(|line| line.patch_style(old)).collect()
}

/// The subject's own numbers.
fn head(state: &State, details: &Details, width: usize) -> Vec<Line<'static>> {
    let theme = state.theme;
    let row = &details.row;
    let mut who = vec![Span::styled(format!("{}/{} {}", row.namespace, row.kind, row.name), theme.strong())];
    if let Some(status) = &details.status {
        let meshed = format!("{}{}/{} pods meshed", theme.separator(), status.meshed_pods, status.pods);
        who.push(Span::styled(meshed, theme.faint()));
        if status.connected < status.meshed_pods {
            let lost = status.meshed_pods - status.connected;
            let text = format!("{}{lost} of their proxies not connected", theme.separator());
            who.push(Span::styled(text, theme.fg(Color::Yellow)));
        }
        if !status.services.is_empty() {
            let text = format!("{}service {}", theme.separator(), status.services.join(", "));
            who.push(Span::styled(text, theme.faint()));
        }
    }
    let mut numbers = Line::default();
    let mut fact = |label: &'static str, value: String, style: Style| {
        let gap = if numbers.spans.is_empty() { "" } else { "  " };
        numbers.push_span(Span::raw(gap));
        numbers.push_span(Span::styled(format!("{label} "), theme.faint()));
        numbers.push_span(Span::styled(value, theme.strong().patch(style)));
    };
    if row.requests > 0 {
        fact("rps", rate(row.rps), Style::new());
        let success = row.success_rate.unwrap_or(1.0);
        fact("success", percent(success), theme.success(success));
        for (name, ms) in [("p50", row.latency_p50_ms), ("p95", row.latency_p95_ms), ("p99", row.latency_p99_ms)] {
            fact(name, ms.map_or_else(|| theme.nothing().to_owned(), latency), theme.latency(ms.unwrap_or(0.0)));
        }
    }
    if row.connections > 0 {
        fact("open", row.tcp_open_connections.to_string(), Style::new());
        fact("in", bytes_rate(row.tcp_read_bytes_rate), Style::new());
        fact("out", bytes_rate(row.tcp_write_bytes_rate), Style::new());
    }
    if row.requests == 0 && row.connections == 0 {
        fact("nothing in the last", format!("{} s", details.seconds), Style::new());
    }
    let (mark, style) = theme.mtls(row.mtls_rate);
    fact("mTLS", mark, style);
    let spark = theme.sparkline(&details.history, 30.min(width.saturating_sub(12)));
    let minute =
        Line::from(vec![Span::styled("last minute ", theme.faint()), Span::styled(spark, theme.fg(Color::Cyan))]);
    vec![Line::from(who), numbers, minute]
}

/// Bounds of the histogram's bars in 1-2-5 steps, microseconds.
fn bounds() -> impl Iterator<Item = f64> {
    (1..=9).flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)))
}

fn histogram(state: &State, latencies: &Histogram, first_byte: &Histogram) -> Vec<Line<'static>> {
    let theme = state.theme;
    let total = latencies.count();
    if total == 0 {
        return vec![Line::styled("LATENCY", theme.faint()), Line::raw("no requests")];
    }
    let mut bars: BTreeMap<usize, u64> = BTreeMap::new();
    let bar_of = |us: f64| bounds().position(|bound| us <= bound).unwrap_or(usize::MAX);
    for (bucket, count) in latencies.buckets() {
        *bars.entry(bar_of(bucket_value_us(*bucket))).or_default() += count;
    }
    let quantiles = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];
    let marks: Vec<(usize, &str)> = quantiles
        .iter()
        .filter_map(|(name, q)| latencies.quantile_ms(*q).map(|ms| (bar_of(ms * 1000.0), *name)))
        .collect();
    let (first, last) = (bars.keys().next().copied().unwrap_or(0), bars.keys().next_back().copied().unwrap_or(0));
    let most = bars.values().copied().max().unwrap_or(1);
    let bounds: Vec<f64> = bounds().collect();
    let mut lines = vec![Line::styled("LATENCY", theme.faint())];
    for bar in first..=last.min(bounds.len()) {
        let count = bars.get(&bar).copied().unwrap_or(0);
        let bound = match bounds.get(bar) {
            Some(us) => format!("<={}", bound_text(*us)),
            None => "more".to_owned(),
        };
        let bound = if theme.unicode { bound.replace("<=", "≤") } else { bound };
        let filled = theme.bar(count as f64 / most as f64, BAR);
        let names: Vec<&str> = marks.iter().filter(|(at, _)| *at == bar).map(|(_, name)| *name).collect();
        lines.push(Line::from(vec![
            Span::raw(right(&bound, 8)),
            Span::raw(" "),
            Span::styled(left(state, &filled, BAR), theme.fg(Color::Cyan)),
            Span::raw(right(&percent(count as f64 / total as f64), 8)),
            Span::styled(format!("  {}", names.join(" ")), theme.strong()),
        ]));
    }
    if let (Some(half), Some(most)) = (first_byte.quantile_ms(0.5), first_byte.quantile_ms(0.99)) {
        let text = format!("first byte p50 {} p99 {}", latency(half), latency(most));
        lines.push(Line::styled(text, theme.faint()));
    }
    lines
}

fn bound_text(us: f64) -> String {
    match us {
        us if us < 1000.0 => format!("{us}us"),
        us if us < 1e6 => format!("{}ms", us / 1000.0),
        us => format!("{}s", us / 1e6),
    }
}

/// Statuses, retries, errors.
fn facts(state: &State, details: &Details, series: &Series) -> Vec<Line<'static>> {
    let theme = state.theme;
    if series.requests == 0 && (series.tcp_opened > 0 || series.tcp_closed > 0 || series.tcp_open > 0) {
        let mut lines = connections(state, series);
        lines.extend(errors(state, details));
        return lines;
    }
    let mut lines = vec![Line::styled("STATUS", theme.faint())];
    let all = series.requests.max(1) as f64;
    let mut line = |name: String, count: u64, bad: bool| {
        let style = if bad { theme.fg(Color::Red) } else { Style::new() };
        let share = percent(count as f64 / all);
        lines.push(Line::styled(
            format!("{}{}{}", left(state, &name, 22), right(&count.to_string(), 9), right(&share, 9)),
            style,
        ));
    };
    for (status, count) in &series.statuses {
        line(status.to_string(), *count, *status >= 500);
    }
    for (status, count) in &series.grpc_statuses {
        line(format!("grpc {status} {}", grpc_name(*status)), *count, GRPC_FAILURES.contains(status));
    }
    let answered: u64 = series.statuses.values().sum();
    if series.requests > answered && !series.statuses.is_empty() {
        line("no answer".to_owned(), series.requests - answered, true);
    }
    if series.statuses.is_empty() && series.grpc_statuses.is_empty() {
        line("succeeded".to_owned(), series.successes, false);
        if series.requests > series.successes {
            line("failed".to_owned(), series.requests - series.successes, true);
        }
    }
    let per_second = |count: u64| if details.seconds > 0.0 { rate(count as f64 / details.seconds) } else { rate(0.0) };
    // Retries and time limits are the callers' business: their proxies count them.
    let (retries, timeouts) = (details.sent.retries.max(series.retries), details.sent.timeouts.max(series.timeouts));
    lines.push(Line::default());
    let style = if timeouts > 0 { theme.fg(Color::Yellow) } else { Style::new() };
    lines.push(Line::from(vec![
        Span::styled("RETRIES ", theme.faint()),
        Span::raw(format!("{}/s   ", per_second(retries))),
        Span::styled("TIMEOUTS ", theme.faint()),
        Span::styled(format!("{}/s", per_second(timeouts)), style),
    ]));
    lines.extend(errors(state, details));
    lines
}

/// What became of opaque connections.
fn connections(state: &State, series: &Series) -> Vec<Line<'static>> {
    let theme = state.theme;
    let count =
        |name: &str, count: u64| Line::raw(format!("{}{}", left(state, name, 22), right(&count.to_string(), 9)));
    let mut lines = vec![Line::styled("CONNECTIONS", theme.faint())];
    lines.push(count("opened", series.tcp_opened));
    lines.push(count("open now", series.tcp_open));
    lines.push(count("closed", series.tcp_closed));
    for (how, closed) in &series.tcp_closes {
        lines.push(count(&format!("  {}", how.word().replace('_', " ")), *closed));
    }
    if let (Some(half), Some(most)) = (series.tcp_duration.quantile_ms(0.5), series.tcp_duration.quantile_ms(0.99)) {
        let text = format!("were open p50 {} p99 {}", latency(half), latency(most));
        lines.push(Line::styled(text, theme.faint()));
    }
    lines
}

/// Answers that the mesh itself gave, at either side.
fn errors(state: &State, details: &Details) -> Vec<Line<'static>> {
    let theme = state.theme;
    let mut all: BTreeMap<MeshError, (u64, u64)> = BTreeMap::new();
    details.arrived.errors.iter().for_each(|(error, count)| all.entry(*error).or_default().0 += count);
    details.sent.errors.iter().for_each(|(error, count)| all.entry(*error).or_default().1 += count);
    let mut lines = vec![Line::styled("ERRORS OF THE MESH", theme.faint())];
    if all.is_empty() {
        lines.push(Line::raw("none"));
    }
    for (error, (here, there)) in all {
        let mut whose = Vec::new();
        if here > 0 {
            whose.push(format!("{here} here"));
        }
        if there > 0 {
            whose.push(format!("{there} at callers"));
        }
        let text = format!("{} {}", left(state, error.code(), 22), whose.join(", "));
        lines.push(Line::styled(text, theme.fg(Color::Red)));
        lines.push(Line::raw(format!("  {}", error.cause())));
        lines.push(Line::styled(format!("  {}", error.cure()), theme.faint()));
    }
    lines
}

/// Who answers, by pod, as far as the frames say.
fn endpoints(state: &State, details: &Details, width: usize) -> Vec<Line<'static>> {
    let rows: Vec<(String, &Row)> = details.pods.iter().map(|(pod, row)| (pod.clone(), row)).collect();
    if rows.is_empty() {
        return Vec::new();
    }
    rows_of(state, "ENDPOINTS", rows, width)
}

/// How the callers' balancers see each endpoint.
fn balancers(state: &State, details: &Details, width: usize) -> Vec<Line<'static>> {
    if details.endpoints.is_empty() {
        return Vec::new();
    }
    let theme = state.theme;
    // What circuit breakers do has a column only where one does something.
    let breaks = details.endpoints.iter().any(|endpoint| endpoint.ejected + endpoint.half_open > 0);
    let columns = [("IN FLIGHT", 11), ("EXPECTED", 11), ("FAILING AT", 11), ("CIRCUIT", if breaks { 26 } else { 0 })];
    let columns = &columns[..if breaks { 4 } else { 3 }];
    let taken: usize = columns.iter().map(|(_, width)| width).sum();
    let name_width = width.saturating_sub(taken).clamp(8, 40);
    let heads: String = columns.iter().map(|(column, width)| right(column, *width)).collect();
    let mut lines = vec![
        Line::default(),
        Line::styled(format!("{}{heads}", left(state, "BALANCING OF CALLERS", name_width)), theme.faint()),
    ];
    for endpoint in &details.endpoints {
        let EndpointView { address, pod, callers, failing, in_flight, expected_us, .. } = endpoint;
        let name = if pod.is_empty() { address.to_string() } else { pod.clone() };
        let expected = latency(*expected_us as f64 / 1000.0);
        let numbers = format!("{}{}", right(&in_flight.to_string(), 11), right(&expected, 11));
        let state_of = right(&format!("{failing} of {callers}"), 11);
        let style = if *failing > 0 { theme.fg(Color::Red) } else { Style::new() };
        lines.push(Line::from(vec![
            Span::styled(left(state, &name, name_width), theme.strong()),
            Span::raw(numbers),
            Span::styled(state_of, style),
        ]));
        if let Some(line) = lines.last_mut().filter(|_| breaks) {
            line.push_span(Span::styled(right(&circuit(endpoint), 26), theme.fg(Color::Yellow)));
        }
    }
    lines
}

/// What the callers' circuit breakers let through to an endpoint.
fn circuit(endpoint: &EndpointView) -> String {
    let EndpointView { callers, ejected, half_open, ejected_ms, .. } = endpoint;
    match (ejected, half_open) {
        (0, 0) => "closed".to_owned(),
        (0, trying) => format!("half open at {trying} of {callers}"),
        (ejected, _) => format!("open at {ejected} of {callers}, {}s", ejected_ms.div_ceil(1000)),
    }
}

/// A small table: a name and its numbers.
fn rows_of(state: &State, head: &str, rows: Vec<(String, &Row)>, width: usize) -> Vec<Line<'static>> {
    let theme = state.theme;
    if rows.is_empty() {
        return Vec::new();
    }
    // Number columns, as many as fit beside a name of readable length.
    let columns: &[&str] = &["RPS", "SUCCESS", "P50", "P95", "P99", "MTLS"];
    let shown = ((width.saturating_sub(16)) / 9).min(columns.len());
    let longest = rows.iter().map(|(name, _)| cells_of(name)).max().unwrap_or(0).max(head.len());
    let name_width = longest.min(width.saturating_sub(shown * 9)).max(8);
    let heads: String = columns.iter().take(shown).map(|column| right(column, 9)).collect();
    let mut lines =
        vec![Line::default(), Line::styled(format!("{}{heads}", left(state, head, name_width)), theme.faint())];
    for (name, row) in rows {
        let mut line = Line::from(vec![Span::styled(left(state, &name, name_width), theme.strong())]);
        if row.is_tcp() {
            let bytes = bytes_rate(row.tcp_read_bytes_rate + row.tcp_write_bytes_rate);
            line.push_span(Span::raw(format!("  {} open  {bytes}", row.tcp_open_connections)));
            lines.push(line);
            continue;
        }
        let nothing = || (theme.nothing().to_owned(), theme.faint());
        let time = |ms: Option<f64>| ms.map_or_else(nothing, |ms| (latency(ms), theme.latency(ms)));
        let cells = [
            if row.requests > 0 { (rate(row.rps), Style::new()) } else { nothing() },
            row.success_rate.map_or_else(nothing, |rate| (percent(rate), theme.success(rate))),
            time(row.latency_p50_ms),
            time(row.latency_p95_ms),
            time(row.latency_p99_ms),
            theme.mtls(row.mtls_rate),
        ];
        for (text, style) in cells.into_iter().take(shown) {
            line.push_span(Span::styled(right(&text, 9), style));
        }
        lines.push(line);
    }
    lines
}

/// Two columns of lines, the first one so many cells wide.
fn beside(one: Vec<Line<'static>>, other: Vec<Line<'static>>, width: usize) -> Vec<Line<'static>> {
    let count = one.len().max(other.len());
    let mut one = one.into_iter();
    let mut other = other.into_iter();
    let join = |_| {
        let mut line = one.next().unwrap_or_default();
        // A line's own style is for its words, not for what is put beside them.
        let style = std::mem::take(&mut line.style);
        line.spans.iter_mut().for_each(|span| span.style = style.patch(span.style));
        let padding = width.saturating_sub(line.width());
        line.push_span(Span::raw(" ".repeat(padding)));
        let second = other.next().unwrap_or_default();
        let style = second.style;
        line.spans.extend(second.spans.into_iter().map(|span| {
            let own = style.patch(span.style);
            span.style(own)
        }));
        line
    };
    (0..count).map(join).collect()
}

/// The name of a gRPC status.
fn grpc_name(status: u16) -> &'static str {
    const NAMES: [&str; 17] = [
        "ok",
        "cancelled",
        "unknown",
        "invalid argument",
        "deadline exceeded",
        "not found",
        "already exists",
        "permission denied",
        "resource exhausted",
        "failed precondition",
        "aborted",
        "out of range",
        "unimplemented",
        "internal",
        "unavailable",
        "data loss",
        "unauthenticated",
    ];
    NAMES.get(usize::from(status)).copied().unwrap_or_default()
}
