//! Who asks, when the API server forwards a request to us: it proves itself by a client certificate of the
//! requestheader authority and names its user in headers. What may be believed stands in the ConfigMap
//! `kube-system/extension-apiserver-authentication`.

use crate::listen::Peer;
use crate::tls;
use http::HeaderMap;
use std::collections::BTreeMap;

/// Whom to believe, and which headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHeader {
    /// Authority of the forwarding server's certificate, PEM.
    pub authority_pem: String,
    /// Common names allowed; empty: any.
    allowed_names: Vec<String>,
    user_headers: Vec<String>,
    group_headers: Vec<String>,
    extra_prefixes: Vec<String>,
}

/// A user as the API server knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// Name.
    pub name: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Whatever else the authenticator said.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Why nobody is believed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// Not forwarded by the API server.
    #[error("only the API server may ask: the request came without its client certificate")]
    NoCertificate,
    /// Somebody else of the same authority.
    #[error("the client certificate of `{0}` is not one the API server forwards requests with")]
    OtherName(String),
    /// No user named.
    #[error("the request names no user")]
    NoUser,
}

impl RequestHeader {
    /// Reads the ConfigMap's data; `None` without an authority.
    pub fn from_data(data: &BTreeMap<String, String>) -> Option<Self> {
        let list = |key: &str, usual: &[&str]| {
            let listed = data.get(key).and_then(|text| serde_json::from_str::<Vec<String>>(text).ok());
            listed.unwrap_or_else(|| usual.iter().map(|&name| name.to_owned()).collect())
        };
        Some(Self {
            authority_pem: data.get("requestheader-client-ca-file").filter(|pem| !pem.trim().is_empty())?.clone(),
            allowed_names: list("requestheader-allowed-names", &[]),
            user_headers: list("requestheader-username-headers", &["X-Remote-User"]),
            group_headers: list("requestheader-group-headers", &["X-Remote-Group"]),
            extra_prefixes: list("requestheader-extra-headers-prefix", &["X-Remote-Extra-"]),
        })
    }

    /// The user for whom a request was forwarded. The certificate's chain was verified in the TLS handshake.
    pub fn user(&self, peer: &Peer, headers: &HeaderMap) -> Result<User, Unauthenticated> {
        let certificate = peer.certificate.as_ref().ok_or(Unauthenticated::NoCertificate)?;
        let name = tls::common_name(certificate).unwrap_or_default();
        if !self.allowed_names.is_empty() && !self.allowed_names.contains(&name) {
            return Err(Unauthenticated::OtherName(name));
        }
        self.named_user(headers).ok_or(Unauthenticated::NoUser)
    }

    fn named_user(&self, headers: &HeaderMap) -> Option<User> {
        let values = |names: &[String]| -> Vec<String> {
            let named = names.iter().flat_map(|name| headers.get_all(name.as_str()));
            named.filter_map(|value| value.to_str().ok()).filter(|value| !value.is_empty()).map(str::to_owned).collect()
        };
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in headers {
            let suffix = self.extra_prefixes.iter().find_map(|p| name.as_str().strip_prefix(&p.to_ascii_lowercase()));
            if let (Some(key), Ok(value)) = (suffix, value.to_str()) {
                extra.entry(percent_decoded(key)).or_default().push(value.to_owned());
            }
        }
        Some(User { name: values(&self.user_headers).into_iter().next()?, groups: values(&self.group_headers), extra })
    }
}

/// Keys of extra fields are percent-encoded, because header names cannot hold every character.
fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                at += 3;
            }
            (byte, _) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn data(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn header() -> RequestHeader {
        RequestHeader::from_data(&data(&[
            ("requestheader-client-ca-file", "PEM"),
            ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ]))
        .unwrap()
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_forwarded_user_is_read() {
        assert_eq!(RequestHeader::from_data(&data(&[])), None);
        let user = header().named_user(&headers(&[
            ("x-remote-user", "alice"),
            ("x-remote-group", "dev"),
            ("x-remote-group", "system:authenticated"),
            ("x-remote-extra-example.org%2fscope", "a"),
        ]));
        let user = user.unwrap();
        assert_eq!(
            (user.name.as_str(), &user.groups[..]),
            ("alice", &["dev".into(), "system:authenticated".into()][..])
        );
        assert_eq!(user.extra["example.org/scope"], ["a"]);
        assert_eq!(header().named_user(&headers(&[("x-remote-group", "dev")])), None);
    }

    #[test]
    fn without_the_servers_certificate_nobody_is_believed() {
        let peer = Peer { address: ([127, 0, 0, 1], 1).into(), certificate: None };
        let outcome = header().user(&peer, &headers(&[("x-remote-user", "admin")]));
        assert_eq!(outcome, Err(Unauthenticated::NoCertificate));
        let (pem, _) = crate::ca::tests::root("somebody");
        let certificate = tls::certificates(&pem, "test").unwrap().pop();
        let outcome = header().user(&Peer { certificate, ..peer }, &headers(&[("x-remote-user", "admin")]));
        assert_eq!(outcome, Err(Unauthenticated::OtherName("somebody".into())));
    }

    proptest! {
        #[test]
        fn decoding_never_panics(text in "\\PC{0,40}") {
            percent_decoded(&text);
        }
    }
}
