//! What an API server would say of an object, asked without one: the same definitions, schemas and rules that this API
//! holds objects against on their way in.

use super::kinds::{Registry, Resource};
use super::schema::Shape;
use super::validate::{check_types, unknown_fields, validate};
use super::{crd, gateway};
use mesh_manifests::nearest::nearest;
use serde_json::Value;
use std::sync::Arc;

/// Knows the kinds of Kubernetes, of the Gateway API, and of the mesh.
pub struct Judge {
    registry: Registry,
}

/// What would be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// True if objects of the kind live in namespaces.
    pub namespaced: bool,
    /// Why the object would be refused: field and message.
    pub refused: Vec<(String, String)>,
    /// Fields that would be dropped, each with a known one that is near.
    pub unknown: Vec<(String, Option<String>)>,
}

impl Judge {
    /// A judge of today's definitions.
    pub fn new() -> anyhow::Result<Self> {
        let mut definitions = gateway::definitions()?;
        definitions.extend(mesh_manifests::policies::definitions()?);
        let resources = definitions.iter().flat_map(crd::resources);
        Ok(Self { registry: Registry::with_custom(resources) })
    }

    /// Judges an object; `None` if its kind is not known.
    pub fn judge(&self, object: &Value) -> Option<Judgement> {
        let resource = self.resource(object)?;
        let mut judgement = Judgement { namespaced: resource.namespaced, ..Judgement::default() };
        if let Err(error) = check_types(resource, object).and_then(|()| validate(resource, object, None)) {
            let causes = error.causes.into_iter().map(|(_, field, message)| (field, message));
            judgement.refused.extend(causes);
            if judgement.refused.is_empty() {
                judgement.refused.push((String::new(), error.message));
            }
        }
        let unknown = unknown_fields(resource, object).into_iter();
        judgement.unknown = unknown.map(|path| (path.clone(), near(resource, &path))).collect();
        Some(judgement)
    }

    fn resource(&self, object: &Value) -> Option<&Arc<Resource>> {
        let (kind, version) = (object["kind"].as_str()?, object["apiVersion"].as_str()?);
        self.registry.all().iter().find(|resource| resource.kind == kind && resource.api_version() == version)
    }
}

/// The field of the schema that is nearest to the last one of a path.
fn near(resource: &Resource, path: &str) -> Option<String> {
    let mut shape = Shape::of(resource);
    let (above, name) = path.rsplit_once('.').unwrap_or(("", path));
    for part in above.split('.').filter(|part| !part.is_empty()) {
        let (field, items) = part.split_once('[').unwrap_or((part, ""));
        shape = shape.field(field);
        for _ in items.matches(']') {
            shape = shape.items();
        }
    }
    let known = shape.schema()["properties"].as_object()?;
    nearest(name, known.keys().map(String::as_str)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn objects_are_judged_as_on_their_way_in() {
        let judge = Judge::new().unwrap();
        let say = |object: Value| judge.judge(&object).unwrap();
        let policy = |spec: Value| {
            say(
                json!({"apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "a"}, "spec": spec}),
            )
        };
        assert_eq!(policy(json!({"rules": [{}]})), Judgement { namespaced: true, ..Judgement::default() });
        let refused = policy(json!({"action": "Alow", "rules": [{"to": [{"ports": [0]}]}]})).refused;
        let fields: Vec<&str> = refused.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["spec.action", "spec.rules[0].to[0].ports[0]"]);
        let rule = policy(json!({"target": {"kind": "Pod"}, "rules": [{}]})).refused;
        assert!(rule.iter().any(|(field, why)| field == "spec.target" && why.contains("go together")), "{rule:?}");
        let unknown = policy(json!({"rules": [{"form": [], "zzz": 1}]})).unknown;
        assert_eq!(
            unknown,
            [("spec.rules[0].form".to_owned(), Some("from".to_owned())), ("spec.rules[0].zzz".to_owned(), None)]
        );
        let deployment = say(json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
            "spec": {"replica": 1, "selector": {"matchLabels": {"a": "b"}},
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "d"}]}}}}));
        assert_eq!(deployment.unknown, [("spec.replica".to_owned(), Some("replicas".to_owned()))]);
        assert_eq!(deployment.refused, []);
        let route =
            say(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "a"},
            "spec": {"rules": [{"backendRef": []}]}}));
        assert_eq!(route.unknown, [("spec.rules[0].backendRef".to_owned(), Some("backendRefs".to_owned()))]);
        assert_eq!(judge.judge(&json!({"apiVersion": "example.com/v1", "kind": "Unheard"})), None);
        assert!(!say(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})).namespaced);
    }
}
