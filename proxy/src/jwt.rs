//! JSON Web Tokens of callers (RFC 7519): signature, issuer, audience and lifetime, checked against keys that control has
//! handed on. Pure: takes the token and the time. A token is never shown, not even part of one.
//!
//! Only signatures by public keys are taken (RS256, ES256, EdDSA with Ed25519): the kind of a key says by which, so that
//! a token cannot choose.

use crate::limits;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use mesh_api::access::jwt::{Jwk, JwtRule};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Why a token is not taken. Says nothing of what is in it.
pub type Fault = &'static str;

/// What checks tokens: whose they must be, and the keys, ready for use.
#[derive(Debug)]
pub struct Verifier {
    issuer: String,
    audiences: Vec<String>,
    leeway_s: u64,
    keys: Vec<Key>,
}

/// A public key.
struct Key {
    id: Option<String>,
    material: Material,
}

enum Material {
    /// Modulus and exponent, big-endian.
    Rsa(Vec<u8>, Vec<u8>),
    /// An uncompressed point of P-256.
    P256(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// The header of a token, as far as it matters (RFC 7515, section 4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<String>,
    /// Extensions that must be understood. We understand none.
    #[serde(default)]
    crit: Option<Value>,
}

impl Verifier {
    /// What a policy says about tokens. Keys of other kinds are passed over.
    pub fn new(rule: &JwtRule) -> Self {
        let JwtRule { issuer, audiences, leeway_s, keys, .. } = rule;
        Self {
            issuer: issuer.clone(),
            audiences: audiences.clone(),
            leeway_s: *leeway_s,
            keys: keys.iter().take(limits::JWT_KEYS).filter_map(Key::read).collect(),
        }
    }

    /// The claims of a token that is valid at a time, seconds since 1970.
    pub fn verify(&self, token: &[u8], now_s: u64) -> Result<Map<String, Value>, Fault> {
        let token = std::str::from_utf8(token).map_err(|_| "it is no text")?;
        if token.len() > limits::JWT_BYTES {
            return Err("it is too long");
        }
        let (signed, signature) = token.rsplit_once('.').ok_or("it has not three parts")?;
        let (header, claims) =
            signed.split_once('.').filter(|(_, c)| !c.contains('.')).ok_or("it has not three parts")?;
        let header: Header = read(header).ok_or("its header cannot be read")?;
        if header.crit.is_some() {
            return Err("it has critical extensions, of which none is known");
        }
        let signature = BASE64.decode(signature).map_err(|_| "its signature cannot be read")?;
        let fits = |key: &&Key| key.id.is_none() || header.kid.is_none() || key.id == header.kid;
        let mut fitting = self.keys.iter().filter(|key| key.algorithm() == header.alg).filter(fits).peekable();
        fitting.peek().ok_or("no key of the issuer has its id and algorithm")?;
        if !fitting.any(|key| key.verifies(signed.as_bytes(), &signature)) {
            return Err("its signature is not the issuer's");
        }
        let claims: Map<String, Value> = read(claims).ok_or("its claims cannot be read")?;
        self.check(&claims, now_s)?;
        Ok(claims)
    }

    fn check(&self, claims: &Map<String, Value>, now_s: u64) -> Result<(), Fault> {
        if claims.get("iss").and_then(Value::as_str) != Some(&self.issuer) {
            return Err("another issuer");
        }
        let wanted = |audience: &Value| audience.as_str().is_some_and(|text| self.audiences.iter().any(|a| a == text));
        let meant = match claims.get("aud") {
            Some(Value::Array(audiences)) => audiences.iter().any(wanted),
            Some(audience) => wanted(audience),
            None => false,
        };
        if !self.audiences.is_empty() && !meant {
            return Err("another audience");
        }
        let (now, leeway) = (now_s as f64, self.leeway_s as f64);
        // A time may have a fraction (RFC 7519, section 2); what is no number is no time.
        let time =
            |name: &str| claims.get(name).map(|time| time.as_f64().ok_or("a time in it is no number")).transpose();
        match time("exp")? {
            None => Err("it never expires"),
            Some(end) if now >= end + leeway => Err("expired"),
            Some(_) if time("nbf")?.is_some_and(|start| now + leeway < start) => Err("not valid yet"),
            Some(_) => Ok(()),
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(part: &str) -> Option<T> {
    serde_json::from_slice(&BASE64.decode(part).ok()?).ok()
}

impl Key {
    /// A key of a set (RFC 7517, RFC 7518, RFC 8037), if it is one for signatures that we know.
    fn read(key: &Jwk) -> Option<Self> {
        let Jwk { kty, crv, kid, key_use, n, e, x, y } = key;
        if key_use.as_deref().is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| BASE64.decode(text.as_deref()?.trim_end_matches('=')).ok();
        let material = match (kty.as_str(), crv.as_deref()) {
            ("RSA", _) => Material::Rsa(bytes(n)?, bytes(e)?),
            ("EC", Some("P-256")) => {
                let (x, y) = (bytes(x)?, bytes(y)?);
                if (x.len(), y.len()) != (32, 32) {
                    return None;
                }
                Material::P256([&[4][..], &x, &y].concat())
            }
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(x)?),
            _ => return None,
        };
        Some(Self { id: kid.clone(), material })
    }

    fn algorithm(&self) -> &'static str {
        match self.material {
            Material::Rsa(..) => "RS256",
            Material::P256(_) => "ES256",
            Material::Ed25519(_) => "EdDSA",
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        match &self.material {
            Material::Rsa(n, e) => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature).is_ok()
            }
            Material::P256(point) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature).is_ok()
            }
            Material::Ed25519(key) => UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok(),
        }
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.algorithm(), self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
    };
    use proptest::prelude::*;
    use serde_json::json;

    const NOW: u64 = 1_700_000_000;

    type Sign = dyn Fn(&[u8]) -> Vec<u8>;

    struct Signer {
        algorithm: &'static str,
        jwk: Jwk,
        sign: Box<Sign>,
    }

    fn jwk(text: Value) -> Jwk {
        serde_json::from_value(text).unwrap()
    }

    fn ed25519() -> Signer {
        let pair = Ed25519KeyPair::generate().unwrap();
        let x = BASE64.encode(pair.public_key().as_ref());
        let jwk = jwk(json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": x}));
        Signer { algorithm: "EdDSA", jwk, sign: Box::new(move |m| pair.sign(m).as_ref().to_vec()) }
    }

    fn p256() -> Signer {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let point = pair.public_key().as_ref().to_vec();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..]));
        let jwk = jwk(json!({"kty": "EC", "crv": "P-256", "kid": "ec", "use": "sig", "x": x, "y": y}));
        let sign = move |m: &[u8]| pair.sign(&SystemRandom::new(), m).unwrap().as_ref().to_vec();
        Signer { algorithm: "ES256", jwk, sign: Box::new(sign) }
    }

    fn rsa() -> Signer {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        // RSAPublicKey in DER (RFC 8017, appendix A.1.1): a sequence of a modulus of 257 bytes, the first of which is
        // zero, and an exponent of three.
        let der = pair.public_key().as_ref();
        let (n, e) = (BASE64.encode(&der[9..265]), BASE64.encode(&der[der.len() - 3..]));
        let jwk = jwk(json!({"kty": "RSA", "kid": "rsa", "n": n, "e": e}));
        let sign = move |m: &[u8]| {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), m, &mut signature).unwrap();
            signature
        };
        Signer { algorithm: "RS256", jwk, sign: Box::new(sign) }
    }

    impl Signer {
        fn token(&self, header: Value, claims: &Value) -> String {
            let part = |value: &Value| BASE64.encode(value.to_string());
            let signed = format!("{}.{}", part(&header), part(claims));
            format!("{signed}.{}", BASE64.encode((self.sign)(signed.as_bytes())))
        }

        fn plain(&self, claims: &Value) -> String {
            self.token(json!({"alg": self.algorithm, "kid": self.jwk.kid}), claims)
        }
    }

    fn verifier(keys: Vec<Jwk>) -> Verifier {
        let audiences = vec!["shop".to_owned()];
        Verifier::new(&JwtRule { issuer: "https://login".to_owned(), audiences, leeway_s: 60, keys, header: None })
    }

    fn claims() -> Value {
        json!({"iss": "https://login", "aud": ["other", "shop"], "exp": NOW + 300, "sub": "ada"})
    }

    #[test]
    fn each_algorithm_is_taken_and_none_else() {
        let signers = [ed25519(), p256(), rsa()];
        let verifier = verifier(signers.iter().map(|signer| signer.jwk.clone()).collect());
        for signer in &signers {
            let token = signer.plain(&claims());
            assert_eq!(verifier.verify(token.as_bytes(), NOW).unwrap()["sub"], "ada", "{}", signer.algorithm);
            // Signed by somebody else, changed, or without a signature.
            let (head, signature) = token.rsplit_once('.').unwrap();
            let forged =
                format!("{}.{}.{signature}", head.split('.').next().unwrap(), BASE64.encode(r#"{"sub":"eve"}"#));
            assert_eq!(verifier.verify(forged.as_bytes(), NOW), Err("its signature is not the issuer's"));
            assert!(verifier.verify(format!("{head}.").as_bytes(), NOW).is_err());
            for alg in ["none", "HS256", "RS512", "ES384", ""] {
                let token = signer.token(json!({"alg": alg}), &claims());
                assert_eq!(
                    verifier.verify(token.as_bytes(), NOW),
                    Err("no key of the issuer has its id and algorithm")
                );
            }
        }
        let stranger = ed25519();
        assert_eq!(
            verifier.verify(stranger.plain(&claims()).as_bytes(), NOW),
            Err("its signature is not the issuer's")
        );
        let critical = signers[0].token(json!({"alg": "EdDSA", "crit": ["b64"]}), &claims());
        assert!(verifier.verify(critical.as_bytes(), NOW).is_err());
    }

    #[test]
    fn claims_are_checked() {
        let signer = ed25519();
        let verifier = verifier(vec![signer.jwk.clone()]);
        let check = |change: Value, expect: Result<(), Fault>| {
            let mut claims = claims();
            for (name, value) in change.as_object().unwrap() {
                claims[name] = value.clone();
            }
            let got = verifier.verify(signer.plain(&claims).as_bytes(), NOW).map(drop);
            assert_eq!(got, expect, "{change}");
        };
        check(json!({}), Ok(()));
        check(json!({"aud": "shop"}), Ok(()));
        check(json!({"aud": "other"}), Err("another audience"));
        check(json!({"aud": null}), Err("another audience"));
        check(json!({"iss": "https://login/"}), Err("another issuer"));
        check(json!({"iss": null}), Err("another issuer"));
        check(json!({"exp": NOW - 59}), Ok(()));
        check(json!({"exp": NOW - 60}), Err("expired"));
        check(json!({"exp": "soon"}), Err("a time in it is no number"));
        check(json!({"exp": NOW as f64 + 0.5, "nbf": NOW + 60}), Ok(()));
        check(json!({"nbf": NOW + 61}), Err("not valid yet"));
        let mut endless = claims();
        endless.as_object_mut().unwrap().remove("exp");
        assert_eq!(verifier.verify(signer.plain(&endless).as_bytes(), NOW), Err("it never expires"));
    }

    #[test]
    fn the_id_of_a_key_chooses_it() {
        let (signer, other) = (ed25519(), ed25519());
        let named = |kid: &str, jwk: &Jwk| Jwk { kid: Some(kid.to_owned()), ..jwk.clone() };
        let verifier = verifier(vec![named("old", &other.jwk), named("new", &signer.jwk)]);
        let by =
            |kid: Value| verifier.verify(signer.token(json!({"alg": "EdDSA", "kid": kid}), &claims()).as_bytes(), NOW);
        assert!(by(json!("new")).is_ok());
        assert!(by(Value::Null).is_ok());
        assert_eq!(by(json!("old")), Err("its signature is not the issuer's"));
        assert_eq!(by(json!("gone")), Err("no key of the issuer has its id and algorithm"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(token in prop::collection::vec(any::<u8>(), 0..200), text in "[A-Za-z0-9_.=-]{0,200}") {
            let verifier = verifier(vec![jwk(json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}))]);
            prop_assert!(verifier.verify(&token, NOW).is_err());
            prop_assert!(verifier.verify(text.as_bytes(), NOW).is_err());
        }
    }
}
