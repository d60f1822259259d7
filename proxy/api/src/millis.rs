//! Durations as Kubernetes users write them: `10s`, `1h30m`, `500ms` (Gateway API's Duration, GEP-2257).

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration of whole milliseconds, written as up to four of hours, minutes, seconds and milliseconds, the largest
/// first, each a number of at most five digits: `1h10m`, `1500ms`, `0s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// As a [`Duration`].
    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// True for zero, which switches a limit off in most places of the Gateway API.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

/// Units in the order they are written, in milliseconds.
const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut rest = self.0;
        for (unit, size) in UNITS {
            if rest >= size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

impl FromStr for Millis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no duration: write for instance `500ms`, `10s` or `1h30m`");
        let mut rest = text;
        let mut sum = 0_u64;
        let mut units = UNITS.iter();
        if text.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if !(1..=5).contains(&digits) {
                return Err(wrong());
            }
            let (number, after) = rest.split_at(digits);
            let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = after.split_at(letters);
            let (_, size) = units.find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            // Five digits of hours fit easily.
            sum += number.parse::<u64>().map_err(|_| wrong())? * size;
            rest = after;
        }
        Ok(Self(sum))
    }
}

impl Serialize for Millis {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Millis {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Millis {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for (text, ms) in [("0s", 0), ("500ms", 500), ("10s", 10_000), ("1h30m", 5_400_000), ("1h1m1s1ms", 3_661_001)] {
            assert_eq!(text.parse(), Ok(Millis(ms)), "{text}");
            assert_eq!(Millis(ms).to_string(), text);
        }
        assert_eq!("1500ms".parse(), Ok(Millis(1500)));
        assert_eq!(Millis(1500).to_string(), "1s500ms");
    }

    #[test]
    fn anything_else_is_refused_with_an_example() {
        for text in ["", "1", "s", "1.5s", "-1s", "1s1h", "1s1s", "123456s", "1 s", "1d"] {
            let error = text.parse::<Millis>().unwrap_err();
            assert!(error.contains("`10s`"), "{text}: {error}");
        }
    }
}
