//! Who may do what: roles and bindings, evaluated as they are in the store at the moment of asking.

use super::Api;
use super::authn::User;
use super::path::RequestInfo;
use super::selector::LabelSelector;
use super::service::Call;
use super::status::ApiError;
use super::store::{Key, Object};
use serde_json::{Value, json};

const GROUP: &str = "rbac.authorization.k8s.io";
const CLUSTER_ROLES: &str = "clusterroles.rbac.authorization.k8s.io";
const CLUSTER_ROLE_BINDINGS: &str = "clusterrolebindings.rbac.authorization.k8s.io";
const ROLES: &str = "roles.rbac.authorization.k8s.io";
const ROLE_BINDINGS: &str = "rolebindings.rbac.authorization.k8s.io";

/// Refuses what the user may not do, in the words people search for.
pub(super) fn authorize(api: &Api, user: &User, info: &RequestInfo) -> Result<(), ApiError> {
    if decide(api, user, info).is_some() { Ok(()) } else { Err(forbidden(user, info)) }
}

/// Refuses unless the user may also do `verb` on what the call is about.
pub(super) fn require(call: &Call, verb: &str) -> Result<(), ApiError> {
    let info = RequestInfo { verb: verb.to_owned(), ..call.info.clone() };
    authorize(&call.api, &call.user, &info)
}

/// Why a request is allowed (empty if it needs no reason); `None` if it isn't.
pub(super) fn decide(api: &Api, user: &User, info: &RequestInfo) -> Option<String> {
    if user.is_master() {
        return Some(String::new());
    }
    let namespace = info.namespace.as_deref().filter(|_| info.is_resource);
    let mut reason = None;
    visit(api, user, namespace, |binding, role, rule| {
        if !permits(rule, info) {
            return true;
        }
        let text = |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
        let name = |object: &Value| text(&object["metadata"], "name");
        let space = text(&binding["metadata"], "namespace");
        let place = if space.is_empty() { name(binding) } else { format!("{}/{space}", name(binding)) };
        reason = Some(format!(
            "RBAC: allowed by {} \"{place}\" of {} \"{}\" to {}",
            text(binding, "kind"),
            text(role, "kind"),
            name(role),
            subject_of(binding, user)
        ));
        false
    });
    reason
}

/// Every rule that applies to a user in a namespace (or to the cluster as a whole).
pub(super) fn rules_of(api: &Api, user: &User, namespace: Option<&str>) -> Vec<Value> {
    let mut rules = Vec::new();
    if user.is_master() {
        rules.push(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
        rules.push(json!({"verbs": ["*"], "nonResourceURLs": ["*"]}));
    }
    visit(api, user, namespace, |_, _, rule| {
        rules.push(rule.clone());
        true
    });
    rules
}

/// Shows each applicable rule with its binding and role until `see` returns false.
fn visit(api: &Api, user: &User, namespace: Option<&str>, mut see: impl FnMut(&Value, &Value, &Value) -> bool) {
    let store = api.store();
    let mut bindings: Vec<Object> = store.list(CLUSTER_ROLE_BINDINGS, None).1;
    if let Some(namespace) = namespace {
        bindings.extend(store.list(ROLE_BINDINGS, Some(namespace)).1);
    }
    for binding in bindings {
        if !subjects(&binding).any(|subject| is_subject(subject, &binding, user)) {
            continue;
        }
        let Some(role) = role_of(api, &binding) else { continue };
        for rule in role["rules"].as_array().into_iter().flatten() {
            if !see(&binding, &role, rule) {
                return;
            }
        }
    }
}

fn role_of(api: &Api, binding: &Value) -> Option<Object> {
    let name = binding["roleRef"]["name"].as_str()?;
    match binding["roleRef"]["kind"].as_str()? {
        "ClusterRole" => api.store().get(CLUSTER_ROLES, "", name),
        "Role" => api.store().get(ROLES, binding["metadata"]["namespace"].as_str()?, name),
        _ => None,
    }
}

fn subjects(binding: &Value) -> impl Iterator<Item = &Value> {
    binding["subjects"].as_array().into_iter().flatten()
}

fn is_subject(subject: &Value, binding: &Value, user: &User) -> bool {
    let name = subject["name"].as_str().unwrap_or_default();
    match subject["kind"].as_str() {
        Some("User") => user.name == name,
        Some("Group") => user.groups.iter().any(|group| group == name),
        Some("ServiceAccount") => {
            let own = binding["metadata"]["namespace"].as_str();
            let namespace = subject["namespace"].as_str().or(own).unwrap_or_default();
            user.name == format!("system:serviceaccount:{namespace}:{name}")
        }
        _ => false,
    }
}

fn subject_of(binding: &Value, user: &User) -> String {
    let subject = subjects(binding).find(|subject| is_subject(subject, binding, user)).unwrap_or(&Value::Null);
    let text = |field: &str| subject[field].as_str().unwrap_or_default();
    match text("namespace") {
        "" => format!("{} \"{}\"", text("kind"), text("name")),
        namespace => format!("{} \"{}/{namespace}\"", text("kind"), text("name")),
    }
}

/// True if one rule allows a request.
fn permits(rule: &Value, info: &RequestInfo) -> bool {
    let list = |field: &str| rule[field].as_array().into_iter().flatten().filter_map(Value::as_str);
    let has = |field: &str, wanted: &str| list(field).any(|entry| entry == "*" || entry == wanted);
    if !has("verbs", &info.verb) {
        return false;
    }
    if !info.is_resource {
        return list("nonResourceURLs").any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => info.path.starts_with(prefix),
            None => info.path == pattern,
        });
    }
    let path = info.resource_path();
    let any_of_kind = format!("*/{}", info.subresource);
    let resource = list("resources")
        .any(|entry| entry == "*" || entry == path || !info.subresource.is_empty() && entry == any_of_kind);
    let mut names = list("resourceNames").peekable();
    let named = names.peek().is_none() || names.any(|name| info.name.as_deref() == Some(name));
    resource && named && has("apiGroups", &info.group)
}

fn forbidden(user: &User, info: &RequestInfo) -> ApiError {
    if !info.is_resource {
        let message = format!("forbidden: User \"{}\" cannot {} path \"{}\"", user.name, info.verb, info.path);
        return ApiError::forbidden(message);
    }
    let resource =
        if info.group.is_empty() { info.resource.clone() } else { format!("{}.{}", info.resource, info.group) };
    let place = match &info.namespace {
        Some(namespace) => format!("in the namespace \"{namespace}\""),
        None => "at the cluster scope".to_owned(),
    };
    let what = match &info.name {
        Some(name) => format!("{resource} \"{name}\""),
        None => resource,
    };
    let mut error = ApiError::forbidden(format!(
        "{what} is forbidden: User \"{}\" cannot {} resource \"{}\" in API group \"{}\" {place}",
        user.name,
        info.verb,
        info.resource_path(),
        info.group
    ));
    error.details = Some(Box::new((info.group.clone(), info.resource.clone(), info.name.clone().unwrap_or_default())));
    error
}

/// Refuses roles that grant, and bindings that hand out, more than their author has.
pub(super) fn check_escalation(call: &Call, object: &Value) -> Result<(), ApiError> {
    if call.resource.group != GROUP || call.user.is_master() {
        return Ok(());
    }
    let granted = match call.resource.plural.as_str() {
        "roles" | "clusterroles" => {
            if require(call, "escalate").is_ok() {
                return Ok(());
            }
            object["rules"].clone()
        }
        _ => {
            let reference = &object["roleRef"];
            let kind = if reference["kind"] == "Role" { "roles" } else { "clusterroles" };
            let info = RequestInfo {
                verb: "bind".to_owned(),
                resource: kind.to_owned(),
                subresource: String::new(),
                name: reference["name"].as_str().map(str::to_owned),
                ..call.info.clone()
            };
            if decide(&call.api, &call.user, &info).is_some() {
                return Ok(());
            }
            match role_of(&call.api, object) {
                Some(role) => role["rules"].clone(),
                None => {
                    let qualified = format!("{kind}.{GROUP}");
                    return Err(ApiError::not_found(&qualified, reference["name"].as_str().unwrap_or_default()));
                }
            }
        }
    };
    let own = rules_of(&call.api, &call.user, call.info.namespace.as_deref());
    let missing: Vec<String> =
        granted.as_array().into_iter().flatten().filter(|rule| !covered(rule, &own)).map(ToString::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ApiError::forbidden(format!(
        "{} \"{}\" is forbidden: user \"{}\" (groups={:?}) is attempting to grant RBAC permissions not currently held:\n{}",
        call.resource.qualified(),
        object["metadata"]["name"].as_str().unwrap_or_default(),
        call.user.name,
        call.user.groups,
        missing.join("\n")
    )))
}

/// True if everything a rule grants is granted by `own` already.
fn covered(rule: &Value, own: &[Value]) -> bool {
    let list = |field: &str| -> Vec<String> {
        rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut single = Vec::new();
    for verb in list("verbs") {
        for path in list("nonResourceURLs") {
            single.push(RequestInfo { verb: verb.clone(), path, ..RequestInfo::default() });
        }
        for group in list("apiGroups") {
            for entry in list("resources") {
                let (resource, subresource) = entry.split_once('/').unwrap_or((&entry, ""));
                let mut info = RequestInfo {
                    verb: verb.clone(),
                    is_resource: true,
                    group: group.clone(),
                    resource: resource.to_owned(),
                    subresource: subresource.to_owned(),
                    ..RequestInfo::default()
                };
                let names = list("resourceNames");
                if names.is_empty() {
                    single.push(info.clone());
                }
                for name in names {
                    info.name = Some(name);
                    single.push(info.clone());
                }
            }
        }
    }
    single.iter().all(|info| own.iter().any(|rule| permits(rule, info)))
}

/// Brings the rules of aggregated cluster roles up to date with the roles they select.
pub(super) fn aggregate(api: &Api) {
    // Aggregated roles may select each other; a few rounds settle that, and a cycle ends here.
    for _ in 0..4 {
        let changed = api.store().transact(CLUSTER_ROLES, |tx| {
            let roles: Vec<Object> = tx.objects().cloned().collect();
            let mut changed = false;
            for role in roles.iter().filter(|role| role["aggregationRule"].is_object()) {
                let rules = aggregated_rules(role, &roles);
                if role["rules"] != rules {
                    let mut next = Value::clone(role);
                    next["rules"] = rules;
                    tx.put(Key::new("", role["metadata"]["name"].as_str().unwrap_or_default()), next);
                    changed = true;
                }
            }
            changed
        });
        if !changed {
            return;
        }
    }
}

fn aggregated_rules(role: &Value, roles: &[Object]) -> Value {
    let selectors: Vec<LabelSelector> = role["aggregationRule"]["clusterRoleSelectors"]
        .as_array()
        .into_iter()
        .flatten()
        .map(LabelSelector::from_object)
        .collect();
    let mut rules: Vec<Value> = Vec::new();
    for other in roles.iter().filter(|other| other["metadata"]["name"] != role["metadata"]["name"]) {
        if selectors.iter().any(|selector| selector.matches(other)) {
            for rule in other["rules"].as_array().into_iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Value::Array(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Method;

    fn info(method: Method, uri: &str) -> RequestInfo {
        RequestInfo::new(&method, uri, &Default::default())
    }

    #[test]
    fn rules_permit_what_they_name() {
        let pods = "/api/v1/namespaces/a/pods";
        let cases = [
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}), "/x", true),
            (json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}), "/x/log", true),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}), "/x/log", false),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["*/log"]}), "/x/log", true),
            (json!({"verbs": ["get"], "apiGroups": ["apps"], "resources": ["pods"]}), "/x", false),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["y"]}), "/x", false),
            (json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "resourceNames": ["x"]}), "/x", true),
        ];
        for (rule, path, expect) in cases {
            assert_eq!(permits(&rule, &info(Method::GET, &format!("{pods}{path}"))), expect, "{rule} {path}");
        }
        let rule = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/api/*"]});
        for (path, expect) in [("/healthz", true), ("/api/v1", true), ("/metrics", false)] {
            assert_eq!(permits(&rule, &info(Method::GET, path)), expect, "{path}");
        }
    }

    #[test]
    fn refusals_read_as_kubernetes_words_them() {
        let user = User::service_account("default", "web");
        let message = |method, uri| forbidden(&user, &info(method, uri)).message;
        assert_eq!(
            message(Method::GET, "/apis/apps/v1/namespaces/shop/deployments"),
            "deployments.apps is forbidden: User \"system:serviceaccount:default:web\" cannot list resource \"deployments\" in API group \"apps\" in the namespace \"shop\""
        );
        assert_eq!(
            message(Method::POST, "/api/v1/namespaces/shop/pods/a/exec"),
            "pods \"a\" is forbidden: User \"system:serviceaccount:default:web\" cannot create resource \"pods/exec\" in API group \"\" in the namespace \"shop\""
        );
        assert_eq!(
            message(Method::GET, "/api/v1/nodes"),
            "nodes is forbidden: User \"system:serviceaccount:default:web\" cannot list resource \"nodes\" in API group \"\" at the cluster scope"
        );
        assert_eq!(
            message(Method::GET, "/metrics"),
            "forbidden: User \"system:serviceaccount:default:web\" cannot get path \"/metrics\""
        );
    }

    #[test]
    fn nobody_grants_more_than_they_have() {
        let own = [json!({"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]})];
        let grant = |verbs: Value| covered(&json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"]}), &own);
        assert!(grant(json!(["get"])));
        assert!(!grant(json!(["get", "delete"])));
        assert!(!grant(json!(["*"])));
    }
}
