//! Tokens (JWT) in access policies between pods: each field of `jwt`, claims in rules, keys that come, change and go, and
//! what a caller is told.

use crate::access_policy::{ALICE, BOB, GET, Gate, NS, OUTSIDER, SOON};
use crate::harness::{Need, eventually, test};
use anyhow::{Context, Result, ensure};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl"), Need::Program("curl")];

pub(crate) fn tests() -> Vec<Trial> {
    let test = |name: &str, run: fn() -> Result<()>| test(&format!("jwt::{name}"), NEEDS, run);
    vec![
        test("a_token_is_asked_for", a_token_is_asked_for),
        test("issuer_audience_and_lifetime_count", issuer_audience_and_lifetime_count),
        test("claims_choose", claims_choose),
        test("keys_of_a_secret_need_leave", keys_of_a_secret_need_leave),
        test("mistakes_are_refused", mistakes_are_refused),
    ]
}

/// An issuer of tokens.
struct Issuer {
    pair: Ed25519KeyPair,
}

impl Issuer {
    fn new() -> Result<Self> {
        Ok(Self { pair: Ed25519KeyPair::generate().map_err(|_| anyhow::anyhow!("no key"))? })
    }

    fn jwks(&self) -> String {
        let x = encode(self.pair.public_key().as_ref());
        json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "one", "use": "sig", "x": x}]}).to_string()
    }

    /// `-H 'authorization: …'` with a token of these claims, over those that are always there.
    fn bearer(&self, claims: Value) -> Result<String> {
        Ok(format!("-H 'authorization: Bearer {}'", self.token(claims)?))
    }

    fn token(&self, claims: Value) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let mut all = json!({"iss": "https://login.example", "aud": "gate", "exp": now + 600});
        for (name, value) in claims.as_object().context("claims")? {
            all[name] = value.clone();
        }
        let signed = format!("{}.{}", encode(br#"{"alg":"EdDSA","kid":"one"}"#), encode(all.to_string().as_bytes()));
        Ok(format!("{signed}.{}", encode(self.pair.sign(signed.as_bytes()).as_ref())))
    }
}

/// Base64 for URLs, without padding (RFC 4648, section 5).
fn encode(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..=three.len() {
            text.push(char::from(LETTERS[(bits >> (18 - 6 * at)) as usize & 63]));
        }
    }
    text
}

/// Puts the issuer's keys into a ConfigMap or Secret.
fn keys(g: &Gate, kind: &str, issuer: &Issuer) -> Result<()> {
    let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "issuer", "namespace": NS}});
    object[if kind == "Secret" { "stringData" } else { "data" }] = json!({"jwks.json": issuer.jwks()});
    g.sandbox.kubectl_with_input(["apply", "-f", "-"], &object.to_string())?.ok()?;
    Ok(())
}

fn asking(rules: Value) -> Value {
    json!({"jwt": {"issuer": "https://login.example", "keys": {"configMap": {"name": "issuer"}}}, "rules": rules})
}

fn a_token_is_asked_for() -> Result<()> {
    let g = Gate::open()?;
    let (issuer, stranger) = (Issuer::new()?, Issuer::new()?);
    keys(&g, "ConfigMap", &issuer)?;
    g.policy("test", asking(json!([{}])))?.ok()?;
    let (good, bad) = (issuer.bearer(json!({}))?, stranger.bearer(json!({}))?);
    g.expect(&[
        (ALICE, GET, 401),
        (ALICE, &format!("{good} {GET}"), 200),
        (OUTSIDER, &format!("{good} {GET}"), 200),
        (ALICE, &format!("{bad} {GET}"), 401),
    ])?;
    let text = g.exec(ALICE, &["bash", "-c", &format!("curl -sS -i {GET}")])?.ok()?.stdout;
    for word in ["mesh-error: jwt-missing", "www-authenticate: Bearer"] {
        ensure!(text.contains(word), "no {word}: {text}");
    }
    let text = g.exec(ALICE, &["bash", "-c", &format!("curl -sS -i {bad} {GET}")])?.ok()?.stdout;
    for word in ["mesh-error: jwt-invalid", "invalid_token", "its signature is not the issuer's"] {
        ensure!(text.contains(word), "no {word}: {text}");
    }
    // No part of a token is written down.
    let token = stranger.token(json!({}))?;
    let signature = token.rsplit('.').next().context("a token")?;
    let logs = g.sandbox.kubectl(["-n", NS, "logs", "deploy/origin", "-c", "mesh-proxy"])?.ok()?.stdout;
    ensure!(!logs.contains(signature), "the log has a token");
    // Keys that change count within a while; a connection nobody looks into has no token.
    keys(&g, "ConfigMap", &stranger)?;
    let patient = std::time::Duration::from_secs(60);
    eventually(patient, "the new keys are in use", || {
        ensure!(g.status(ALICE, &format!("{bad} {GET}"))? == 200, "not yet");
        Ok(())
    })?;
    g.expect(&[(ALICE, &format!("{good} {GET}"), 401)])
}

fn issuer_audience_and_lifetime_count() -> Result<()> {
    let g = Gate::open()?;
    let issuer = Issuer::new()?;
    keys(&g, "ConfigMap", &issuer)?;
    let mut policy = asking(json!([{}]));
    policy["jwt"]["audiences"] = json!(["gate", "other"]);
    policy["jwt"]["leewaySeconds"] = json!(0);
    policy["jwt"]["header"] = json!("x-token");
    g.policy("test", policy)?.ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let with = |claims: Value| -> Result<String> { Ok(format!("-H 'x-token: {}' {GET}", issuer.token(claims)?)) };
    eventually(std::time::Duration::from_secs(60), "the keys are in use", || {
        ensure!(g.status(ALICE, &with(json!({}))?)? == 200, "not yet");
        Ok(())
    })?;
    for (claims, expect) in [
        (json!({"aud": ["x", "other"]}), 200),
        (json!({"aud": "x"}), 401),
        (json!({"iss": "https://other.example"}), 401),
        (json!({"exp": now - 5}), 401),
        (json!({"nbf": now + 300}), 401),
    ] {
        let got = g.status(ALICE, &with(claims.clone())?)?;
        ensure!(got == expect, "{claims}: {got}");
    }
    g.expect(&[(ALICE, &format!("{} {GET}", issuer.bearer(json!({}))?), 401)])
}

fn claims_choose() -> Result<()> {
    let g = Gate::open()?;
    let issuer = Issuer::new()?;
    keys(&g, "ConfigMap", &issuer)?;
    let admins = json!({"serviceAccounts": ["alice"], "claims": [{"name": "groups", "values": ["admin*"]}]});
    g.policy("test", asking(json!([{"from": [admins]}])))?.ok()?;
    let with =
        |groups: &[&str]| -> Result<String> { Ok(format!("{} {GET}", issuer.bearer(json!({"groups": groups}))?)) };
    eventually(std::time::Duration::from_secs(60), "the keys are in use", || {
        ensure!(g.status(ALICE, &with(&["admins"])?)? == 200, "not yet");
        Ok(())
    })?;
    g.expect(&[
        (ALICE, &with(&["a", "admins"])?, 200),
        (ALICE, &with(&["users"])?, 403),
        (BOB, &with(&["admins"])?, 403),
    ])?;
    // Another policy lets somebody in without a token.
    g.policy("second", json!({"rules": [{"from": [{"serviceAccounts": ["bob"]}]}]}))?.ok()?;
    g.expect(&[(BOB, GET, 200), (ALICE, GET, 401)])
}

fn keys_of_a_secret_need_leave() -> Result<()> {
    let g = Gate::open()?;
    let issuer = Issuer::new()?;
    keys(&g, "Secret", &issuer)?;
    let mut policy = asking(json!([{}]));
    policy["jwt"]["keys"] = json!({"secret": {"name": "issuer", "key": "jwks.json"}});
    g.policy("test", policy)?.ok()?;
    let said = |word: &'static str| {
        eventually(SOON, "the status tells of the keys", || {
            let path = "jsonpath={.status.conditions[?(@.type=='Accepted')]}";
            g.sandbox.kubectl(["-n", NS, "get", "accesspolicy", "test", "-o", path])?.ok()?.says(word)?;
            Ok(())
        })
    };
    said("may not read it")?;
    let call = format!("{} {GET}", issuer.bearer(json!({}))?);
    g.expect(&[(ALICE, &call, 401)])?;
    let role =
        ["-n", NS, "create", "role", "reads-issuer", "--verb=get", "--resource=secrets", "--resource-name=issuer"];
    g.sandbox.kubectl(role)?.ok()?;
    let binding = ["-n", NS, "create", "rolebinding", "reads-issuer", "--role=reads-issuer"];
    let account = ["--serviceaccount=mesh-system:mesh-control"];
    g.sandbox.kubectl(binding.iter().chain(&account))?.ok()?;
    eventually(std::time::Duration::from_secs(60), "the keys are in use", || {
        ensure!(g.status(ALICE, &call)? == 200, "not yet");
        Ok(())
    })
}

fn mistakes_are_refused() -> Result<()> {
    let g = Gate::open()?;
    let with = |change: Value| {
        let mut jwt = json!({"issuer": "a", "keys": {"configMap": {"name": "a"}}});
        for (name, value) in change.as_object().into_iter().flatten() {
            jwt[name] = value.clone();
        }
        json!({"jwt": jwt, "rules": [{}]})
    };
    let mut deny = with(json!({}));
    deny["action"] = json!("Deny");
    for (spec, complaint) in [
        (deny, "only Allow policies ask for tokens"),
        (json!({"rules": [{"from": [{"claims": [{"name": "a"}]}]}]}), "claims are those of a token"),
        (with(json!({"keys": {}})), "write configMap or secret"),
        (with(json!({"issuer": ""})), "issuer"),
        (with(json!({"leewaySeconds": 5000})), "leewaySeconds"),
        (with(json!({"header": "a b"})), "header"),
    ] {
        g.policy("wrong", spec.clone())?.exits(1)?.complains(complaint).with_context(|| spec.to_string())?;
    }
    Ok(())
}
