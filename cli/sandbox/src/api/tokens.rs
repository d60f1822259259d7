//! Service account tokens: JSON Web Tokens (RFC 7519) signed with ES256 by the cluster, and their verification.
//!
//! A token is good only while the service account, and the pod it is bound to, still exist.

use super::authn::User;
use super::service::Call;
use super::status::ApiError;
use super::{Api, timestamp, timestamp_of};
use anyhow::anyhow;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::time::Duration;

/// Who issues the tokens, and the audience of the API itself.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Life of a token nobody gave a life.
const DEFAULT_SECONDS: i64 = 3600;
/// Shortest life.
const SHORTEST_SECONDS: i64 = 600;
/// Longest life.
const LONGEST_SECONDS: i64 = 1 << 32;
/// How far clocks may differ.
const LEEWAY_SECONDS: i64 = 10;

/// Signs tokens; made anew with every cluster.
pub struct Signer {
    key: EcdsaKeyPair,
    id: String,
}

impl Signer {
    /// A new key.
    pub fn generate() -> anyhow::Result<Self> {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING)
            .map_err(|_| anyhow!("generating the key that signs service account tokens"))?;
        let id = BASE64.encode(Sha256::digest(key.public_key().as_ref()));
        Ok(Self { key, id })
    }

    fn sign(&self, claims: &Value) -> Result<String, ApiError> {
        let header = json!({"alg": "ES256", "kid": self.id, "typ": "JWT"});
        let content = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(claims.to_string()));
        let signature = self
            .key
            .sign(&SystemRandom::new(), content.as_bytes())
            .map_err(|_| ApiError::internal("Internal error occurred: signing a token failed"))?;
        Ok(format!("{content}.{}", BASE64.encode(signature.as_ref())))
    }

    fn claims(&self, token: &str) -> Result<Value, &'static str> {
        let (content, signature) = token.rsplit_once('.').ok_or("not a token")?;
        let (header, claims) = content.split_once('.').ok_or("not a token")?;
        let read = |part: &str| {
            let bytes = BASE64.decode(part).map_err(|_| "not a token")?;
            serde_json::from_slice::<Value>(&bytes).map_err(|_| "not a token")
        };
        let header = read(header)?;
        if header["alg"] != "ES256" || header["kid"] != self.id.as_str() {
            return Err("signed by another key");
        }
        let signature = BASE64.decode(signature).map_err(|_| "not a token")?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(content.as_bytes(), &signature)
            .map_err(|_| "the signature is wrong")?;
        read(claims)
    }

    /// The public key as a JSON Web Key Set (RFC 7517).
    pub fn key_set(&self) -> Value {
        // Uncompressed point: 0x04, then x and y of 32 bytes each.
        let point = self.key.public_key().as_ref();
        let part = |range: std::ops::Range<usize>| BASE64.encode(point.get(range).unwrap_or_default());
        json!({"keys": [{
            "use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256",
            "x": part(1..33), "y": part(33..65),
        }]})
    }
}

/// What `/.well-known/openid-configuration` says.
pub fn discovery() -> Value {
    json!({
        "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"), "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// A token that holds.
#[derive(Debug)]
pub struct Verified {
    /// Whom it stands for.
    pub user: User,
    /// Those of the wanted audiences it is for.
    pub audiences: Vec<String>,
}

/// Checks a token for any of `audiences`; the error says why it is refused.
pub fn verify(api: &Api, token: &str, audiences: &[String]) -> Result<Verified, &'static str> {
    let claims = api.signer().claims(token)?;
    let now = jiff::Timestamp::now().as_second();
    if claims["iss"] != ISSUER {
        return Err("issued by somebody else");
    }
    if claims["exp"].as_i64().is_none_or(|expiry| expiry + LEEWAY_SECONDS < now) {
        return Err("the token has expired");
    }
    if claims["nbf"].as_i64().is_some_and(|start| start - LEEWAY_SECONDS > now) {
        return Err("the token is not valid yet");
    }
    let given: Vec<&str> = claims["aud"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let matching: Vec<String> = audiences.iter().filter(|wanted| given.contains(&wanted.as_str())).cloned().collect();
    if matching.is_empty() {
        return Err("the token is for another audience");
    }
    let about = &claims["kubernetes.io"];
    let namespace = about["namespace"].as_str().ok_or("the token names no namespace")?;
    let exists = |collection: &str, reference: &Value| {
        let name = reference["name"].as_str().unwrap_or_default();
        let object = api.store().get(collection, namespace, name);
        object.is_some_and(|object| object["metadata"]["uid"] == reference["uid"])
    };
    let account = &about["serviceaccount"];
    if !exists("serviceaccounts", account) {
        return Err("its service account is gone");
    }
    let mut user = User::service_account(namespace, account["name"].as_str().unwrap_or_default());
    user.uid = account["uid"].as_str().unwrap_or_default().to_owned();
    let mut extra = |key: &str, value: &Value| {
        let value = value.as_str().unwrap_or_default().to_owned();
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value]);
    };
    extra("credential-id", &json!(format!("JTI={}", claims["jti"].as_str().unwrap_or_default())));
    for (field, collection) in [("pod", "pods"), ("secret", "secrets")] {
        let bound = &about[field];
        if bound.is_null() {
            continue;
        }
        if !exists(collection, bound) {
            return Err("what it is bound to is gone");
        }
        extra(&format!("{field}-name"), &bound["name"]);
        extra(&format!("{field}-uid"), &bound["uid"]);
    }
    if !about["node"].is_null() {
        extra("node-name", &about["node"]["name"]);
    }
    Ok(Verified { user, audiences: matching })
}

/// Answers a `TokenRequest` for the service account the call names.
pub(super) fn request(call: &Call, request: &Value) -> Result<Value, ApiError> {
    let account = super::verbs::find(call)?;
    let spec = &request["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(DEFAULT_SECONDS);
    check_life(seconds)?;
    let mut audiences: Vec<String> =
        spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let now = jiff::Timestamp::now();
    let expiry = now.checked_add(Duration::from_secs(seconds.unsigned_abs())).unwrap_or(now);
    let identity = |object: &Value| json!({"name": object["metadata"]["name"], "uid": object["metadata"]["uid"]});
    let mut about = json!({"namespace": call.namespace(), "serviceaccount": identity(&account)});
    let bound = &spec["boundObjectRef"];
    if bound.is_object() {
        bind(call, bound, &mut about)?;
    }
    let subject = format!("system:serviceaccount:{}:{}", call.namespace(), call.name());
    let token = call.api.signer().sign(&json!({
        "aud": audiences, "exp": expiry.as_second(), "iat": now.as_second(), "iss": ISSUER, "jti": super::uid(),
        "kubernetes.io": about, "nbf": now.as_second(), "sub": subject,
    }))?;
    let mut answered = json!({"audiences": audiences, "expirationSeconds": seconds});
    answered["boundObjectRef"] = bound.clone();
    Ok(json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": call.name(), "namespace": call.namespace(), "creationTimestamp": timestamp()},
        "spec": answered,
        "status": {"token": token, "expirationTimestamp": timestamp_of(expiry)},
    }))
}

fn check_life(seconds: i64) -> Result<(), ApiError> {
    let why = if seconds < SHORTEST_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > LONGEST_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let cause = (
        "FieldValueInvalid".to_owned(),
        "spec.expirationSeconds".to_owned(),
        format!("Invalid value: {seconds}: {why}"),
    );
    Err(ApiError::invalid("TokenRequest.authentication.k8s.io", "", vec![cause]))
}

/// Ties a token to a pod or secret.
fn bind(call: &Call, reference: &Value, about: &mut Value) -> Result<(), ApiError> {
    let name = reference["name"].as_str().unwrap_or_default();
    let (field, collection) = match reference["kind"].as_str() {
        Some("Pod") => ("pod", "pods"),
        Some("Secret") => ("secret", "secrets"),
        other => {
            let kind = other.unwrap_or_default();
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount to object of type {kind}"
            )));
        }
    };
    let store = call.api.store();
    let object = store.get(collection, call.namespace(), name).ok_or_else(|| ApiError::not_found(collection, name))?;
    if let Some(uid) = reference["uid"].as_str().filter(|uid| !uid.is_empty())
        && object["metadata"]["uid"] != uid
    {
        let why = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(ApiError::conflict(collection, name, why));
    }
    let account = object["spec"]["serviceAccountName"].as_str().unwrap_or_default();
    if field == "pod" && account != call.name() {
        return Err(ApiError::bad_request(format!(
            "cannot bind token for serviceaccount \"{}\" to pod running with different serviceaccount name \"{account}\"",
            call.name()
        )));
    }
    about[field] = json!({"name": name, "uid": object["metadata"]["uid"]});
    if let Some(node) = object["spec"]["nodeName"].as_str().filter(|node| field == "pod" && !node.is_empty()) {
        about["node"] = json!({"name": node});
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn signatures_hold_only_for_what_was_signed() {
        let (signer, other) = (Signer::generate().unwrap(), Signer::generate().unwrap());
        let token = signer.sign(&json!({"sub": "a"})).unwrap();
        assert_eq!(signer.claims(&token).unwrap()["sub"], "a");
        assert_eq!(other.claims(&token), Err("signed by another key"));
        let parts: Vec<&str> = token.split('.').collect();
        let forged = format!("{}.{}.{}", parts[0], BASE64.encode(r#"{"sub":"b"}"#), parts[2]);
        assert_eq!(signer.claims(&forged), Err("the signature is wrong"));
        let unsigned = format!("{}.{}.", BASE64.encode(r#"{"alg":"none"}"#), parts[1]);
        assert_eq!(signer.claims(&unsigned), Err("signed by another key"));
    }

    proptest! {
        #[test]
        fn never_panics(token in "[A-Za-z0-9_.-]{0,80}") {
            let _ = Signer::generate().unwrap().claims(&token);
        }
    }
}
