//! Public keys of issuers of tokens, where access policies name them.

use super::view::Name;
use super::{Kept, Touched, World};
use mesh_api::access::jwt::Jwk;
use mesh_manifests::policies::access_policy::{KeyRef, KeySource};
use serde::Deserialize;
use std::collections::{BTreeSet, HashMap};
use std::fmt;

/// Where a set of keys lies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeySet {
    /// True for a Secret, false for a ConfigMap.
    pub secret: bool,
    /// The object.
    pub name: Name,
    /// The key in its data.
    pub key: String,
}

impl KeySet {
    /// What a policy of a namespace names.
    pub fn of(namespace: &str, source: &KeySource) -> Option<Self> {
        let KeySource { config_map, secret } = source;
        let found: &KeyRef = config_map.as_ref().or(secret.as_ref())?;
        let name = Name::new(namespace, &found.name);
        Some(Self { secret: config_map.is_none(), name, key: found.key().to_owned() })
    }
}

impl fmt::Display for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.secret { "Secret" } else { "ConfigMap" };
        write!(f, "{} of {kind} {}", self.key, self.name)
    }
}

/// A set of keys, or why it cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct KeySetView {
    /// The keys.
    pub keys: Result<Vec<Jwk>, String>,
}

/// A JWK set (RFC 7517, section 5).
#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Jwk>,
}

impl KeySetView {
    /// From the text in the object.
    pub fn read(text: &[u8]) -> Self {
        let keys = match serde_json::from_slice::<Jwks>(text) {
            // The parser's own words may quote what stands there.
            Err(error) => Err(format!("it is no JWK set (line {}, column {})", error.line(), error.column())),
            Ok(Jwks { keys }) if keys.is_empty() => Err("the JWK set is empty".to_owned()),
            Ok(Jwks { keys }) => Ok(keys),
        };
        Self { keys }
    }
}

impl World {
    /// A set of keys, once it has been looked at.
    pub fn key_set(&self, set: &KeySet) -> Option<&KeySetView> {
        self.key_sets.get(set)
    }

    /// The sets that are known.
    pub fn key_sets(&self) -> impl Iterator<Item = &KeySet> {
        self.key_sets.keys()
    }

    /// The sets that policies name.
    pub fn key_sets_wanted(&self) -> BTreeSet<KeySet> {
        let named = self
            .access_policies()
            .filter_map(|(name, view)| KeySet::of(&name.namespace, &view.spec.jwt.as_ref()?.keys));
        named.collect()
    }
}

impl Kept for KeySetView {
    type Key = KeySet;

    fn map(world: &mut World) -> &mut HashMap<KeySet, Self> {
        &mut world.key_sets
    }

    fn index(&self, _: &mut World, _: &KeySet, _: bool) {}

    fn touches(&self, world: &World, key: &KeySet) -> Touched {
        let pods = world.pods.keys().filter(|pod| pod.namespace == key.name.namespace).cloned().collect();
        Touched { pods, ..Touched::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_keys_is_read_without_what_is_private() {
        let text =
            br#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AA", "d": "secret", "alg": "EdDSA"}]}"#;
        let keys = KeySetView::read(text).keys.unwrap();
        assert_eq!((keys[0].kid.as_deref(), keys.len()), (Some("a"), 1));
        assert!(!serde_json::to_string(&keys).unwrap().contains("secret"));
        for bad in [&b"{}"[..], br#"{"keys": []}"#, b"secret", br#"{"keys": ["secret"]}"#] {
            assert!(!KeySetView::read(bad).keys.unwrap_err().contains("secret"));
        }
    }
}
