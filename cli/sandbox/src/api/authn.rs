//! Who is asking: client certificates, bearer tokens, impersonation.

use super::path::RequestInfo;
use super::status::ApiError;
use super::{Api, rbac, tokens};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls_pki_types::CertificateDer;
use std::collections::BTreeMap;

/// An authenticated user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    /// `system:serviceaccount:default:web`, `kubernetes-admin`, ….
    pub name: String,
    /// Unique id, or empty.
    pub uid: String,
    /// Groups, `system:authenticated` among them.
    pub groups: Vec<String>,
    /// More about the user, such as the pod a token is bound to.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// An authenticated user of these groups.
    pub fn new(name: impl Into<String>, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        groups.push("system:authenticated".to_owned());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// The administrator.
    pub fn admin() -> Self {
        Self::new("kubernetes-admin", &["system:masters"])
    }

    /// A part of the cluster itself, with all permissions; `name` becomes its field manager and shows in messages.
    pub fn system(name: &str) -> Self {
        Self::new(format!("system:{name}"), &["system:masters"])
    }

    /// A service account.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let namespaced = format!("system:serviceaccounts:{namespace}");
        Self::new(format!("system:serviceaccount:{namespace}:{name}"), &["system:serviceaccounts", &namespaced])
    }

    /// Nobody in particular.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..Self::default()
        }
    }

    /// True for members of `system:masters`, who may do everything.
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
    }
}

/// Whom a verified client certificate stands for: the common name, members of its organisations.
pub(super) fn certificate_user(certificate: &CertificateDer<'_>) -> Result<User, ApiError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|_| ApiError::unauthorized())?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().find_map(|name| name.as_str().ok()).ok_or_else(ApiError::unauthorized)?;
    let groups: Vec<&str> = subject.iter_organization().filter_map(|name| name.as_str().ok()).collect();
    Ok(User::new(name, &groups))
}

/// Who sent a request that came over the network: certificate first, then bearer token, else nobody.
pub(super) fn authenticate(
    api: &Api,
    certificate: Option<Result<User, ApiError>>,
    headers: &HeaderMap,
) -> Result<User, ApiError> {
    if let Some(user) = certificate {
        return user;
    }
    let Some(header) = headers.get(AUTHORIZATION) else { return Ok(User::anonymous()) };
    let text = header.to_str().map_err(|_| ApiError::unauthorized())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(ApiError::unauthorized)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(ApiError::unauthorized());
    }
    tokens::verify(api, token.trim(), &[tokens::ISSUER.to_owned()]).map(|verified| verified.user).map_err(|why| {
        tracing::debug!(why, "refused a bearer token");
        ApiError::unauthorized()
    })
}

/// The user a request is to be treated as, if it asks to be treated as another and its sender may ask.
pub(super) fn impersonate(api: &Api, user: User, headers: &HeaderMap) -> Result<User, ApiError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .map(str::to_owned)
        .collect();
    let uid = text("impersonate-uid");
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let Some(key) = name.as_str().strip_prefix("impersonate-extra-")
            && let Ok(value) = value.to_str()
        {
            extra.entry(key.replace("%2f", "/").replace("%2F", "/")).or_default().push(value.to_owned());
        }
    }
    let Some(name) = text("impersonate-user") else {
        if groups.is_empty() && extra.is_empty() && uid.is_none() {
            return Ok(user);
        }
        return Err(ApiError::bad_request(
            "requested impersonation of groups, uid or extra without impersonating a user",
        ));
    };
    check_impersonation(api, &user, &name, &groups, uid.as_deref(), &extra)?;
    let mut as_user = match service_account_name(&name) {
        Some((namespace, account)) if groups.is_empty() => User::service_account(namespace, account),
        _ => User { name, groups, ..User::default() },
    };
    let class = if as_user.name == "system:anonymous" { "system:unauthenticated" } else { "system:authenticated" };
    if !as_user.groups.iter().any(|group| group == class) {
        as_user.groups.push(class.to_owned());
    }
    as_user.uid = uid.unwrap_or_default();
    as_user.extra = extra;
    Ok(as_user)
}

fn check_impersonation(
    api: &Api,
    user: &User,
    name: &str,
    groups: &[String],
    uid: Option<&str>,
    extra: &BTreeMap<String, Vec<String>>,
) -> Result<(), ApiError> {
    let check = |group: &str, resource: &str, subresource: &str, namespace: Option<&str>, name: &str| {
        let info = RequestInfo {
            verb: "impersonate".to_owned(),
            is_resource: true,
            group: group.to_owned(),
            version: "v1".to_owned(),
            namespace: namespace.map(str::to_owned),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            name: Some(name.to_owned()),
            ..RequestInfo::default()
        };
        rbac::authorize(api, user, &info)
    };
    match service_account_name(name) {
        Some((namespace, account)) => check("", "serviceaccounts", "", Some(namespace), account)?,
        None => check("", "users", "", None, name)?,
    }
    for group in groups {
        check("", "groups", "", None, group)?;
    }
    if let Some(uid) = uid {
        check("authentication.k8s.io", "uids", "", None, uid)?;
    }
    for (key, values) in extra {
        for value in values {
            check("authentication.k8s.io", "userextras", key, None, value)?;
        }
    }
    Ok(())
}

/// Namespace and name of the service account a user name stands for.
fn service_account_name(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix("system:serviceaccount:")?.split_once(':')
}
