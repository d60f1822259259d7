//! Lists of ports and port ranges as annotations write them: `22,8000-8010`.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;
use std::str::FromStr;

/// A set of TCP ports: ascending ranges that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(into = "String")]
pub struct PortSet(#[schemars(with = "String", regex(pattern = PORTS))] Vec<(u16, u16)>);

/// Ports and ranges of them, for the schema, which cannot tell a range that runs backwards.
const PORTS: &str = r"^$|^ *[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?( *, *[1-9][0-9]{0,4}(-[1-9][0-9]{0,4})?)* *$";

/// Why a text is not a list of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{item}` is not a port (1-65535) or a range of ports like 8000-8010")]
pub struct InvalidPorts {
    /// The first part of the list that is wrong.
    pub item: String,
}

impl PortSet {
    /// A set of single ports.
    pub fn of(ports: &[u16]) -> Self {
        Self::from_ranges(ports.iter().map(|p| (*p, *p)).collect())
    }

    /// True if there is no port.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True if the port belongs to the set.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    /// The ranges, ascending, both ends included.
    pub fn ranges(&self) -> impl Iterator<Item = (u16, u16)> + '_ {
        self.0.iter().copied()
    }

    /// All ports of both sets.
    pub fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.0.iter().chain(&other.0).copied().collect())
    }

    fn from_ranges(mut ranges: Vec<(u16, u16)>) -> Self {
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for (first, last) in ranges {
            match merged.last_mut() {
                Some(before) if u32::from(first) <= u32::from(before.1) + 1 => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }
}

impl FromStr for PortSet {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let port = |s: &str| s.trim().parse::<u16>().ok().filter(|p| *p > 0);
        let mut ranges = Vec::new();
        for item in text.split(',') {
            let (first, last) = item.split_once('-').unwrap_or((item, item));
            match (port(first), port(last)) {
                (Some(first), Some(last)) if first <= last => ranges.push((first, last)),
                _ => return Err(InvalidPorts { item: item.trim().to_owned() }),
            }
        }
        Ok(Self::from_ranges(ranges))
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (first, last)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for PortSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        crate::scalar::parsed(deserializer)
    }
}

impl From<PortSet> for String {
    fn from(ports: PortSet) -> Self {
        ports.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_are_sorted_and_merged() {
        for (text, expect) in [
            ("", ""),
            ("  ", ""),
            ("22", "22"),
            ("8000-8010, 22", "22,8000-8010"),
            ("80,81,82", "80-82"),
            ("80-90,85-100,7", "7,80-100"),
            ("65535,1", "1,65535"),
            ("65534-65535,65535", "65534-65535"),
        ] {
            assert_eq!(text.parse::<PortSet>().unwrap().to_string(), expect, "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_named() {
        for (text, item) in
            [("http", "http"), ("80,", ""), ("0", "0"), ("80,65536", "65536"), ("90-80", "90-80"), ("1-2-3", "1-2-3")]
        {
            assert_eq!(text.parse::<PortSet>().unwrap_err().item, item, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_answered_and_any_set_reads_back(text in "[0-9,\\- a]{0,40}") {
            if let Ok(set) = text.parse::<PortSet>() {
                prop_assert_eq!(&set.to_string().parse::<PortSet>().unwrap(), &set);
            }
        }
    }
}
