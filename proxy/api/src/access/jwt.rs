//! Tokens that callers carry (RFC 7519): whose count, and what their claims must say.

use super::like;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Whose tokens count, and the keys they are signed with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct JwtRule {
    /// The claim `iss`.
    pub issuer: String,
    /// One of these must be in the claim `aud`; none: any audience.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// By how many seconds clocks may differ.
    #[serde(default)]
    pub leeway_s: u64,
    /// The field that holds nothing but the token; without it, `authorization` with the scheme `Bearer` (RFC 6750).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Public keys of the issuer; none: no token is valid.
    #[serde(default)]
    pub keys: Vec<Jwk>,
}

/// A public key (RFC 7517). Private parts are not read, and so never told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// Kind of key: `RSA`, `EC`, `OKP`.
    pub kty: String,
    /// Curve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crv: Option<String>,
    /// Its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kid: Option<String>,
    /// What it is for: `sig`.
    #[serde(default, rename = "use", skip_serializing_if = "Option::is_none")]
    pub key_use: Option<String>,
    /// Modulus (RSA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<String>,
    /// Exponent (RSA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e: Option<String>,
    /// Coordinate (EC), or the key (OKP).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<String>,
    /// Coordinate (EC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub y: Option<String>,
}

/// A claim of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClaimMatch {
    /// Its name; dots lead into objects (`realm_access.roles`), unless a claim has that very name.
    #[cfg_attr(feature = "schema", schemars(extend("minLength" = 1, "maxLength" = 256)))]
    pub name: String,
    /// Values, exact or with `*` for any run of characters: one of them must be the claim's value, an element of it if it
    /// is a list, or a word of it in the claim `scope` (RFC 8693). None: the claim is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "schema", schemars(extend("maxItems" = 32, "items" = {"type": "string", "maxLength": 1024})))]
    pub values: Vec<String>,
}

impl ClaimMatch {
    /// True if claims say so.
    pub fn holds(&self, claims: &Map<String, Value>) -> bool {
        let Some(claim) = find(claims, &self.name) else { return false };
        let wanted = |text: &str| self.values.iter().any(|value| like(value, text.as_bytes()));
        let is = |value: &Value| match value {
            Value::String(text) => wanted(text),
            Value::Number(number) => wanted(&number.to_string()),
            Value::Bool(truth) => wanted(if *truth { "true" } else { "false" }),
            _ => false,
        };
        match claim {
            Value::Null => false,
            _ if self.values.is_empty() => true,
            Value::Array(values) => values.iter().any(is),
            Value::String(words) if self.name == "scope" => wanted(words) || words.split(' ').any(wanted),
            value => is(value),
        }
    }
}

fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(claim) = claims.get(name) {
        return Some(claim);
    }
    let (outer, rest) = name.split_once('.')?;
    find(claims.get(outer)?.as_object()?, rest)
}

/// What came of looking for a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Token<'a> {
    /// There is none.
    Missing,
    /// It does not count, for this reason, which says nothing of what is in it.
    Invalid(&'static str),
    /// It counts, and says this.
    Valid(&'a Map<String, Value>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_are_compared_with_whatever_they_are() {
        let claims = json!({"role": "admin", "groups": ["a", "team-b"], "level": 3, "ok": true, "none": null,
            "scope": "read write", "realm": {"roles": ["x"]}, "https://a.b/c": "d"});
        let check = |name: &str, values: &[&str], expect: bool| {
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            let claim = ClaimMatch { name: name.to_owned(), values };
            assert_eq!(claim.holds(claims.as_object().unwrap()), expect, "{claim:?}");
        };
        check("role", &["user", "admin"], true);
        check("role", &["adm"], false);
        check("role", &["ad*"], true);
        check("role", &[], true);
        check("groups", &["team-*"], true);
        check("groups", &["c"], false);
        check("level", &["3"], true);
        check("ok", &["true"], true);
        check("none", &[], false);
        check("missing", &[], false);
        check("scope", &["write"], true);
        check("scope", &["wri"], false);
        check("realm.roles", &["x"], true);
        check("realm", &["x"], false);
        check("https://a.b/c", &["d"], true);
    }
}
