//! Maps keyed by numbers, read from wherever they stand.
//!
//! JSON has only text as keys, and serde turns it back into numbers only where it knows the type while it reads. Inside
//! a tagged enum ([`crate::wire`]) it does not; there the text arrives as text. YAML writes numbers as numbers.
//! Use as `#[serde(deserialize_with = "number_keys::deserialize")]`.

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use std::collections::BTreeMap;
use std::fmt;

/// A number that may be written as text.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Number(u16);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NumberVisitor;
        impl Visitor<'_> for NumberVisitor {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 65535")
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Number, E> {
                u16::try_from(number).map(Number).map_err(|_| E::custom(format_args!("{number} is above 65535")))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Number, E> {
                u16::try_from(number).map(Number).map_err(|_| E::custom(format_args!("{number} is not in 0-65535")))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Number, E> {
                text.parse().map(Number).map_err(|_| E::custom(format_args!("`{text}` is no number from 0 to 65535")))
            }
        }
        deserializer.deserialize_any(NumberVisitor)
    }
}

/// Reads a map whose keys are numbers, or numbers as text.
pub(crate) fn deserialize<'de, D, V>(deserializer: D) -> Result<BTreeMap<u16, V>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    let map = BTreeMap::<Number, V>::deserialize(deserializer)?;
    Ok(map.into_iter().map(|(Number(key), value)| (key, value)).collect())
}
