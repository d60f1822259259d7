//! Amounts as Kubernetes and the mesh write them: `20m`, `250Mi`, `30s`. Checked when read, so that a slip shows at
//! the annotation that holds it and not in a pod that never starts.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// A Kubernetes resource quantity, kept as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(into = "String")]
pub struct Quantity(#[schemars(regex(pattern = r"^[0-9]+(\.[0-9]+)?(n|u|m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"))] String);

/// Why a text is not an amount.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAmount {
    /// Not a resource quantity.
    #[error("`{0}` is not a quantity like 100m, 0.5, 64Mi or 1Gi")]
    Quantity(String),
    /// Not a span of time.
    #[error("`{0}` is not a duration like 500ms, 30s, 5m or 1h")]
    Duration(String),
}

const SUFFIXES: [&str; 14] = ["", "n", "u", "m", "k", "M", "G", "T", "P", "Ki", "Mi", "Gi", "Ti", "Pi"];

impl Quantity {
    /// A quantity this crate wrote itself and tests.
    pub(crate) fn known(text: &'static str) -> Self {
        debug_assert!(text.parse::<Self>().is_ok());
        Self(text.to_owned())
    }

    /// As written.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// In thousandths of the base unit, for comparisons.
    pub fn milli(&self) -> f64 {
        parse_quantity(&self.0).unwrap_or(0.0)
    }
}

fn parse_quantity(text: &str) -> Option<f64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let exponent = match SUFFIXES.iter().position(|s| *s == suffix)? {
        0 => 1e3,
        1 => 1e-6,
        2 => 1e-3,
        3 => 1.0,
        decimal @ 4..=8 => 1e3 * 1e3_f64.powi(i32::try_from(decimal).ok()? - 3),
        binary => 1e3 * 1024_f64.powi(i32::try_from(binary).ok()? - 8),
    };
    let starts_and_ends_in_digit = number.starts_with(|c: char| c.is_ascii_digit()) && !number.ends_with('.');
    starts_and_ends_in_digit.then(|| number.parse::<f64>().ok()).flatten().map(|n| n * exponent)
}

impl FromStr for Quantity {
    type Err = InvalidAmount;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match parse_quantity(text) {
            Some(_) => Ok(Self(text.to_owned())),
            None => Err(InvalidAmount::Quantity(text.to_owned())),
        }
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::scalar::parsed(deserializer)
    }
}

impl From<Quantity> for String {
    fn from(quantity: Quantity) -> Self {
        quantity.0
    }
}

/// A span of time written with one unit: `500ms`, `30s`, `5m`, `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(into = "String")]
pub struct Duration(#[schemars(with = "String", regex(pattern = r"^[0-9]+(ms|s|m|h)$"))] std::time::Duration);

impl Duration {
    /// A whole number of seconds.
    pub const fn from_seconds(seconds: u64) -> Self {
        Self(std::time::Duration::from_secs(seconds))
    }

    /// For use with timers.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = InvalidAmount;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAmount::Duration(text.to_owned());
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(invalid)?;
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| invalid())?;
        let unit_ms = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(invalid()),
        };
        number.checked_mul(unit_ms).map(|ms| Self(std::time::Duration::from_millis(ms))).ok_or_else(invalid)
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms if ms % 1000 == 0 => write!(f, "{}s", ms / 1000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::scalar::parsed(deserializer)
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        duration.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_compared_in_one_unit() {
        for (text, milli) in [
            ("20m", 20.0),
            ("1", 1000.0),
            ("0.5", 500.0),
            ("1k", 1e6),
            ("2M", 2e9),
            ("1Ki", 1024e3),
            ("64Mi", 64.0 * 1024.0 * 1024.0 * 1000.0),
            ("1500u", 1.5),
        ] {
            assert!((text.parse::<Quantity>().unwrap().milli() - milli).abs() < 1e-6, "{text}");
        }
        for text in ["", "m", "20 m", "20mi", "-1", "1.", ".5", "1e400x", "64MB"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_read_back() {
        for (text, shown) in [("30s", "30s"), ("2m", "120s"), ("500ms", "500ms"), ("1h", "3600s")] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), shown);
        }
        for text in ["", "30", "s", "30 s", "-1s", "1d", "99999999999999999h"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}
