//! Text that YAML authors may write bare, where it looks like a number: ports `22`, CPUs `0.5`.

use serde::{Deserialize, Deserializer, de};
use std::fmt;
use std::str::FromStr;

/// Reads a text or a number with the type's own parser.
pub(crate) fn parsed<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Scalar {
        Text(String),
        Number(serde_json::Number),
    }
    let text = match Scalar::deserialize(deserializer)? {
        Scalar::Text(text) => text,
        Scalar::Number(number) => number.to_string(),
    };
    text.parse().map_err(de::Error::custom)
}
