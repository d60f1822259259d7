//! Words that only a later release knows.
//!
//! Where a word tells of something that happened, and nothing is decided by it, a release that does not know the word
//! does without it; the rest of the message counts. Use as `#[serde(deserialize_with = "later::keys")]` for maps and
//! `"later::optional"` for options of enums without content.

use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, IntoDeserializer};
use std::collections::BTreeMap;

/// Reads a map whose keys are words; keys that are not known are left out.
pub(crate) fn keys<'de, D, K, V>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: DeserializeOwned + Ord,
    V: Deserialize<'de>,
{
    let map = BTreeMap::<String, V>::deserialize(deserializer)?;
    Ok(map.into_iter().filter_map(|(word, value)| Some((known::<K, D::Error>(&word)?, value))).collect())
}

/// Reads a word; nothing if it is not known.
pub(crate) fn optional<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    Ok(Option::<String>::deserialize(deserializer)?.and_then(|word| known::<T, D::Error>(&word)))
}

fn known<T: DeserializeOwned, E: Error>(word: &str) -> Option<T> {
    let word: StrDeserializer<'_, E> = word.into_deserializer();
    T::deserialize(word).ok()
}
