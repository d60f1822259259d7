//! Numbers in few characters, for screens and tables.

/// A rate: `0.4`, `40.0`, `123`, `1.2k`, `3.4M`.
pub fn rate(value: f64) -> String {
    match value {
        v if v >= 9_999_500.0 => format!("{:.0}M", v / 1e6),
        v if v >= 999_950.0 => format!("{:.1}M", v / 1e6),
        v if v >= 99_950.0 => format!("{:.0}k", v / 1e3),
        v if v >= 9_999.5 => format!("{:.1}k", v / 1e3),
        v if v >= 999.95 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

/// A share as a percentage; never rounded up to perfection nor down to nothing.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 100.0 && percent > 99.99 {
        ">99.99%".to_owned()
    } else if (99.95..100.0).contains(&percent) {
        format!("{:.2}%", (percent * 100.0).floor() / 100.0)
    } else if percent > 0.0 && percent < 0.05 {
        "<0.1%".to_owned()
    } else {
        format!("{percent:.1}%")
    }
}

/// A latency: `0.4ms`, `12ms`, `1.23s`, `2m`.
pub fn latency(ms: f64) -> String {
    match ms {
        v if v >= 99_950.0 => format!("{:.0}m", (v / 60_000.0).max(2.0)),
        v if v >= 9_995.0 => format!("{:.1}s", v / 1000.0),
        v if v >= 999.5 => format!("{:.2}s", v / 1000.0),
        v if v >= 9.95 => format!("{v:.0}ms"),
        v => format!("{v:.1}ms"),
    }
}

/// Bytes a second: `340B/s`, `1.2kB/s`, `3.4MB/s`.
pub fn bytes_rate(value: f64) -> String {
    match value {
        v if v >= 999.5e6 => format!("{:.1}GB/s", v / 1e9),
        v if v >= 999.5e3 => format!("{:.1}MB/s", v / 1e6),
        v if v >= 999.5 => format!("{:.1}kB/s", v / 1e3),
        v => format!("{v:.0}B/s"),
    }
}

/// Time that has passed: `4 s`, `2 min`, `3 h`.
pub fn elapsed(ms: u64) -> String {
    match ms / 1000 {
        s if s >= 2 * 3600 => format!("{} h", s / 3600),
        s if s >= 2 * 60 => format!("{} min", s / 60),
        s => format!("{s} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_short_and_true() {
        let check = |got: String, expect: &str| assert_eq!(got, expect);
        check(rate(0.04), "0.0");
        check(rate(40.0), "40.0");
        check(rate(999.96), "1000");
        check(rate(12_345.0), "12.3k");
        check(rate(123_456.0), "123k");
        check(rate(1_234_567.0), "1.2M");
        check(percent(1.0), "100.0%");
        check(percent(0.9997), "99.97%");
        check(percent(0.99996), ">99.99%");
        check(percent(0.97123), "97.1%");
        check(percent(0.0001), "<0.1%");
        check(percent(0.0), "0.0%");
        check(latency(0.44), "0.4ms");
        check(latency(12.4), "12ms");
        check(latency(999.7), "1.00s");
        check(latency(12_340.0), "12.3s");
        check(latency(120_000.0), "2m");
        check(bytes_rate(340.2), "340B/s");
        check(bytes_rate(1234.0), "1.2kB/s");
        check(elapsed(4999), "4 s");
        check(elapsed(130_000), "2 min");
    }
}
