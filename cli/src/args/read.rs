//! Values as people write them.

use crate::observe::MAX_WINDOW;
use std::time::Duration;

/// Reads a duration as people write it: `500ms`, `10s`, `2m`, `1m30s`; a bare number means seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let say = || format!("`{text}` is not a duration; write for instance 500ms, 10s or 2m");
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|_| say());
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(say)?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().map_err(|_| say())?;
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let seconds = match unit {
            "ms" => number / 1e3,
            "s" => number,
            "m" => number * 60.0,
            "h" => number * 3600.0,
            _ => return Err(say()),
        };
        total += Duration::try_from_secs_f64(seconds).map_err(|_| say())?;
        rest = tail;
    }
    if text.is_empty() { Err(say()) } else { Ok(total) }
}

/// Reads a share as people write it: `10%`, `0.1`, `1/10`.
pub(super) fn share(text: &str) -> Result<f64, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let share = match (text.strip_suffix('%'), text.split_once('/')) {
        (Some(percent), _) => number(percent).map(|percent| percent / 100.0),
        (None, Some((part, whole))) => number(part).zip(number(whole)).map(|(part, whole)| part / whole),
        (None, None) => number(text),
    };
    share
        .filter(|share| *share > 0.0 && *share <= 1.0)
        .ok_or_else(|| format!("`{text}` is not a share above 0 and at most 1; write for instance 10%, 0.1 or 1/10"))
}

/// Reads a sandbox's name: it becomes a part of paths and of a context's name.
pub(super) fn sandbox_name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 40 || !text.chars().all(plain) || text.starts_with('-') {
        return Err("a name has up to 40 lower-case letters, digits and dashes".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads a duration that proxies can look back.
pub(super) fn window(text: &str) -> Result<Duration, String> {
    let window = duration(text)?;
    if window < Duration::from_secs(1) || window > MAX_WINDOW {
        return Err(format!("proxies remember between 1s and {}m", MAX_WINDOW.as_secs() / 60));
    }
    Ok(window)
}

/// Reads the size of a screen: `120x40`.
pub(super) fn screen_size(text: &str) -> Result<(u16, u16), String> {
    let read = |text: &str| text.parse().ok().filter(|cells| (1..=500).contains(cells));
    let size = text.split_once('x').and_then(|(columns, rows)| Some((read(columns)?, read(rows)?)));
    size.ok_or_else(|| format!("`{text}` is not a size; write columns and rows, at most 500 each, as in 120x40"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_what_proxies_remember() {
        for (text, fits) in [("1s", true), ("10m", true), ("90", true), ("999ms", false), ("601s", false)] {
            assert_eq!(window(text).is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn shares_are_read_as_people_write_them() {
        let check = |text: &str, expect: Option<f64>| assert_eq!(share(text).ok(), expect, "{text}");
        check("10%", Some(0.1));
        check("100%", Some(1.0));
        check("0.25", Some(0.25));
        check("1/4", Some(0.25));
        for wrong in ["0", "-1", "101%", "2", "1/0", "NaN", "%", "", "a/b"] {
            check(wrong, None);
        }
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(duration(text).ok(), expect.map(Duration::from_millis), "{text}");
        };
        check("500ms", Some(500));
        check("10s", Some(10_000));
        check("10", Some(10_000));
        check("1m30s", Some(90_000));
        check("1.5m", Some(90_000));
        check("", None);
        check("s", None);
        check("10x", None);
        check("-1s", None);
        check("1e300s", None);
    }
}
