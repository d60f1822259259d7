//! The two text formats of `/metrics`: Prometheus' own (0.0.4), and OpenMetrics 1.0 for those who ask for it, which also
//! carries exemplars.

use super::families::{Family, Kind};
use std::fmt::{Display, Write as _};

/// Labels of a sample.
pub type Labels = Vec<(&'static str, String)>;

/// In which format metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text, version 0.0.4.
    Prometheus,
    /// OpenMetrics text, version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the scraper prefers, by its Accept header.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Format::OpenMetrics,
            _ => Format::Prometheus,
        }
    }

    /// What the answer calls itself.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A request that stands for others in its bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// W3C trace id.
    pub trace_id: u128,
    /// How long it took, seconds.
    pub seconds: f64,
    /// When it ended, Unix milliseconds.
    pub at_ms: u64,
}

/// Metrics being written.
#[derive(Debug)]
pub struct Text {
    out: String,
    format: Format,
}

impl Text {
    /// Nothing yet.
    pub fn new(format: Format) -> Self {
        Self { out: String::new(), format }
    }

    /// Begins a family; its samples follow.
    pub fn family(&mut self, family: &Family) {
        let name = match (self.format, family.kind) {
            (Format::Prometheus, Kind::Counter) => format!("{}_total", family.name),
            _ => family.name.to_owned(),
        };
        let kind = match family.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(self.out, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
    }

    /// A counter's or gauge's value.
    pub fn sample(&mut self, family: &Family, labels: &Labels, value: impl Display) {
        let suffix = if family.kind == Kind::Counter { "_total" } else { "" };
        self.line(family, suffix, labels, None, value, None);
    }

    /// A histogram's value: counts by upper bound (not cumulative, the last bound is infinity), and the sum in seconds.
    pub fn histogram(
        &mut self,
        family: &Family,
        labels: &Labels,
        buckets: &[(f64, u64)],
        sum: f64,
        exemplars: &[Exemplar],
    ) {
        let (mut seen, mut below) = (0, f64::NEG_INFINITY);
        for &(bound, count) in buckets {
            seen += count;
            let text = if bound.is_infinite() { "+Inf".to_owned() } else { format!("{bound:?}") };
            let exemplar = exemplars.iter().find(|exemplar| exemplar.seconds > below && exemplar.seconds <= bound);
            self.line(family, "_bucket", labels, Some(&text), seen, exemplar);
            below = bound;
        }
        self.line(family, "_sum", labels, None, sum, None);
        self.line(family, "_count", labels, None, seen, None);
    }

    fn line(
        &mut self,
        family: &Family,
        suffix: &str,
        labels: &Labels,
        le: Option<&str>,
        value: impl Display,
        exemplar: Option<&Exemplar>,
    ) {
        debug_assert!(labels.iter().all(|(name, _)| family.labels.contains(name)), "{} {labels:?}", family.name);
        let out = &mut self.out;
        out.push_str(family.name);
        out.push_str(suffix);
        let mut separator = '{';
        for (name, value) in labels.iter().map(|(name, value)| (*name, value.as_str())).chain(le.map(|le| ("le", le))) {
            out.push(separator);
            separator = ',';
            let _ = write!(out, "{name}=\"");
            escape(value, out);
            out.push('"');
        }
        if separator == ',' {
            out.push('}');
        }
        let _ = write!(out, " {value}");
        if let (Format::OpenMetrics, Some(Exemplar { trace_id, seconds, at_ms })) = (self.format, exemplar) {
            let _ = write!(out, " # {{trace_id=\"{trace_id:032x}\"}} {seconds} {:.3}", *at_ms as f64 / 1000.0);
        }
        out.push('\n');
    }

    /// All that was written.
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: Family = Family { name: "a", kind: Kind::Counter, help: "Things", labels: &["x"] };
    const TIME: Family = Family { name: "b_seconds", kind: Kind::Histogram, help: "Times", labels: &["x"] };

    fn written(format: Format) -> String {
        let mut text = Text::new(format);
        let labels = vec![("x", "a\"b\\c\nd".to_owned())];
        text.family(&COUNT);
        text.sample(&COUNT, &labels, 7);
        text.family(&TIME);
        let exemplar = Exemplar { trace_id: 0xabc, seconds: 0.3, at_ms: 1500 };
        text.histogram(&TIME, &Vec::new(), &[(0.1, 2), (0.5, 1), (f64::INFINITY, 0)], 0.7, &[exemplar]);
        text.finish()
    }

    #[test]
    fn prometheus_gets_its_own_format() {
        insta::assert_snapshot!(written(Format::Prometheus), @r#"
        # HELP a_total Things
        # TYPE a_total counter
        a_total{x="a\"b\\c\nd"} 7
        # HELP b_seconds Times
        # TYPE b_seconds histogram
        b_seconds_bucket{le="0.1"} 2
        b_seconds_bucket{le="0.5"} 3
        b_seconds_bucket{le="+Inf"} 3
        b_seconds_sum 0.7
        b_seconds_count 3
        "#);
    }

    #[test]
    fn exemplars_come_with_openmetrics() {
        insta::assert_snapshot!(written(Format::OpenMetrics), @r#"
        # HELP a Things
        # TYPE a counter
        a_total{x="a\"b\\c\nd"} 7
        # HELP b_seconds Times
        # TYPE b_seconds histogram
        b_seconds_bucket{le="0.1"} 2
        b_seconds_bucket{le="0.5"} 3 # {trace_id="00000000000000000000000000000abc"} 0.3 1.500
        b_seconds_bucket{le="+Inf"} 3
        b_seconds_sum 0.7
        b_seconds_count 3
        # EOF
        "#);
    }

    #[test]
    fn the_scraper_says_what_it_reads() {
        let check = |accept, expect| assert_eq!(Format::accepted(accept), expect);
        check(None, Format::Prometheus);
        check(Some("text/plain;version=0.0.4"), Format::Prometheus);
        check(Some("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), Format::OpenMetrics);
    }
}
