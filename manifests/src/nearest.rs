//! "Did you mean": the known name that a misspelt one is closest to.

/// The candidate with the fewest single-letter edits to `name`, if these are few enough to be a slip.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let allowed = (name.chars().count() / 3).clamp(1, 4);
    candidates
        .into_iter()
        .map(|candidate| (edits(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Single-letter edits and swaps of neighbours (optimal string alignment) that turn `a` into `b`, without regard to case
/// and taking `-` and `_` for the same.
fn edits(a: &str, b: &str) -> usize {
    let plain =
        |s: &str| -> Vec<char> { s.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect() };
    let (a, b) = (plain(a), plain(b));
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let edit = (rows[i][j] + usize::from(x != y)).min(rows[i][j + 1] + 1).min(row[j] + 1);
            let swapped = i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y;
            row.push(if swapped { edit.min(rows[i - 1][j - 1] + 1) } else { edit });
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_strangers_are_not() {
        let known = ["trust_domain", "replicas", "proxy"];
        for (name, expect) in [
            ("trust-domain", Some("trust_domain")),
            ("trustdomain", Some("trust_domain")),
            ("replica", Some("replicas")),
            ("Proxy", Some("proxy")),
            ("poxy", Some("proxy")),
            ("prxoy", Some("proxy")),
            ("banana", None),
            ("", None),
        ] {
            assert_eq!(nearest(name, known), expect, "{name}");
        }
    }
}
