//! What is wrong with the mesh's annotations on workloads, pods and namespaces.

use super::subject::{Subject, template};
use super::{ANNOTATION_INVALID, ANNOTATION_UNKNOWN, Finding};
use mesh_manifests::settings::{ProxySettings, Refusal, Sources, warnings, wish};
use serde_json::Value;

/// Looks at everything that has pods, and at namespaces.
pub(super) fn look(subject: &Subject, found: &mut Vec<Finding>) {
    for ((kind, name), object) in &subject.objects {
        let (prefix, metadata, spec) = match (kind.as_str(), template(kind, object)) {
            ("Namespace", _) => ("metadata", &object["metadata"], &Value::Null),
            ("Pod", _) => ("metadata", &object["metadata"], &object["spec"]),
            ("CronJob", Some((metadata, spec))) => ("spec.jobTemplate.spec.template.metadata", metadata, spec),
            (_, Some((metadata, spec))) => ("spec.template.metadata", metadata, spec),
            (_, None) => continue,
        };
        let mut say = |lint, annotation: &str, message: String| {
            let field = format!("{prefix}.annotations[{annotation}]");
            found.push(Finding { lint, kind: kind.clone(), name: name.clone(), field, message });
        };
        for warning in warnings(metadata) {
            // The name stands in the sentence; every name of ours has this prefix.
            let annotation = warning.split_whitespace().find(|word| word.starts_with(mesh_api::names::LABEL_PREFIX));
            say(ANNOTATION_UNKNOWN, annotation.unwrap_or_default(), warning.clone());
        }
        let sources = Sources { pod: metadata, namespace: &Value::Null };
        let read = wish(sources).map(drop).and_then(|()| ProxySettings::read(sources, spec, &subject.config).map(drop));
        if let Err(refusal @ Refusal::Annotation { annotation, .. }) = &read {
            say(ANNOTATION_INVALID, annotation, refusal.to_string());
        }
    }
}
