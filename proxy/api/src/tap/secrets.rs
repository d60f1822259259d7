//! Which header fields carry secrets. One table: proxies redact by it, control guards filters by it.

/// What stands in place of a secret.
pub const REDACTED: &str = "[redacted]";

/// Fields whose values are secrets, in lower case.
const FIELDS: &[&str] = &[
    "authentication-info",
    "authorization",
    "cookie",
    "cookie2",
    "dpop",
    "proxy-authentication-info",
    "proxy-authorization",
    "set-cookie",
    "set-cookie2",
    "sec-websocket-key",
    "x-forwarded-authorization",
    "x-goog-iam-authorization-token",
    "x-original-authorization",
];

/// What a field's name contains if its value is a secret, whoever invented it (`x-api-key`, `x-vault-token`).
const MARKS: &[&str] =
    &["api-key", "apikey", "token", "secret", "passw", "credential", "session", "private-key", "signature", "jwt"];

/// True for a header field whose value must not be shown; letter case does not matter.
pub fn is_secret(field: &str) -> bool {
    let field = field.to_ascii_lowercase();
    FIELDS.contains(&field.as_str()) || MARKS.iter().any(|mark| field.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_told_from_the_rest() {
        for field in [
            "Authorization",
            "cookie",
            "set-cookie",
            "X-Api-Key",
            "proxy-authorization",
            "x-vault-token",
            "X-CSRF-Token",
        ] {
            assert!(is_secret(field), "{field}");
        }
        for field in ["host", "accept", "user-agent", "x-request-id", "content-type", "traceparent", "key", "author"] {
            assert!(!is_secret(field), "{field}");
        }
    }

    #[test]
    fn the_table_is_in_order() {
        assert!(FIELDS.iter().all(|field| *field == field.to_ascii_lowercase()));
    }
}
