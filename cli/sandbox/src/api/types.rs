//! Schemas of the built-in kinds, as `k8s-openapi` describes them, completed by what it leaves out: how lists merge.
//!
//! Built once, when first asked for; everything else reads them through [`super::schema::Shape`].

use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, authentication::v1 as authentication,
    authorization::v1 as authorization, autoscaling::v2 as autoscaling, batch::v1 as batch,
    coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery, events::v1 as events,
    networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1 as apiregistration;
use k8s_openapi::schemars::SchemaGenerator;
use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::sync::LazyLock;

/// Where references to definitions begin.
pub(super) const REFERENCE: &str = "#/components/schemas/";
/// Definition every kind's `metadata` refers to.
pub(super) const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// Defaults, enumerations and examples in the schemas of custom kinds.
const ANY_VALUE: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON";

/// All schemas of built-in kinds.
pub(super) struct Definitions {
    schemas: Map<String, Value>,
    /// Definition of each `group/version/kind`.
    roots: HashMap<String, String>,
}

static DEFINITIONS: LazyLock<Definitions> = LazyLock::new(Definitions::build);

/// The schemas of built-in kinds.
pub(super) fn definitions() -> &'static Definitions {
    &DEFINITIONS
}

impl Definitions {
    /// The schema with this definition name.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.schemas.get(name)
    }

    /// Definition name of a kind.
    pub(super) fn root(&self, group: &str, version: &str, kind: &str) -> Option<&str> {
        self.roots.get(&format!("{group}/{version}/{kind}")).map(String::as_str)
    }

    /// The schema a reference leads to, or the schema itself.
    pub(super) fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
        reference.and_then(|text| self.get(text.strip_prefix(REFERENCE)?)).unwrap_or(schema)
    }

    fn build() -> Self {
        let mut builder = Builder { generator: SchemaSettings::openapi3().into_generator(), roots: HashMap::new() };
        builder.add_workloads();
        builder.add_cluster();
        builder.add_policies();
        let mut schemas = builder.generator.take_definitions(false);
        for (definition, field, merge) in LISTS {
            annotate(&mut schemas, definition, field, merge);
        }
        for definition in ATOMIC_STRUCTS {
            if let Some(schema) = schemas.get_mut(*definition) {
                schema["x-kubernetes-map-type"] = "atomic".into();
            }
        }
        for (definition, field) in ATOMIC_MAPS {
            if let Some(schema) = schemas.get_mut(*definition) {
                schema["properties"][*field]["x-kubernetes-map-type"] = "atomic".into();
            }
        }
        // The library says `object` of what can be any value.
        if let Some(any) = schemas.get_mut(ANY_VALUE).and_then(Value::as_object_mut) {
            any.shift_remove("type");
        }
        for (definition, field, strategy) in RETAINED {
            if let Some(schema) = schemas.get_mut(*definition) {
                schema["properties"][*field]["x-kubernetes-patch-strategy"] = (*strategy).into();
            }
        }
        for definition in ["io.k8s.api.core.v1.ContainerPort", "io.k8s.api.core.v1.ServicePort"] {
            if let Some(schema) = schemas.get_mut(definition) {
                schema["properties"]["protocol"]["default"] = "TCP".into();
            }
        }
        for definition in ANYTHING {
            if let Some(schema) = schemas.get_mut(*definition) {
                *schema = json!({"description": schema["description"], "x-kubernetes-preserve-unknown-fields": true});
            }
        }
        Self { schemas, roots: builder.roots }
    }
}

/// Notes at a list field how it merges: `set`, or the keys of its items.
fn annotate(schemas: &mut Map<String, Value>, definition: &str, field: &str, merge: &str) {
    let Some(schema) = schemas.get_mut(definition) else { return };
    let property = &mut schema["properties"][field];
    if !property.is_object() {
        return;
    }
    if merge == "set" {
        property["x-kubernetes-list-type"] = "set".into();
        property["x-kubernetes-patch-strategy"] = "merge".into();
        return;
    }
    let keys: Vec<&str> = merge.split(' ').collect();
    property["x-kubernetes-list-type"] = "map".into();
    property["x-kubernetes-list-map-keys"] = json!(keys);
    property["x-kubernetes-patch-strategy"] = "merge".into();
    property["x-kubernetes-patch-merge-key"] = keys.first().copied().unwrap_or_default().into();
}

struct Builder {
    generator: SchemaGenerator,
    roots: HashMap<String, String>,
}

impl Builder {
    fn add<T: k8s_openapi::Resource + k8s_openapi::schemars::JsonSchema>(&mut self) {
        self.generator.subschema_for::<T>();
        let key = format!("{}/{}/{}", T::GROUP, T::VERSION, T::KIND);
        self.roots.insert(key, T::schema_name().into_owned());
    }

    fn add_workloads(&mut self) {
        self.add::<core::ConfigMap>();
        self.add::<core::Endpoints>();
        self.add::<core::Event>();
        self.add::<core::PersistentVolumeClaim>();
        self.add::<core::Pod>();
        self.add::<core::Secret>();
        self.add::<core::Service>();
        self.add::<core::ServiceAccount>();
        self.add::<apps::ControllerRevision>();
        self.add::<apps::DaemonSet>();
        self.add::<apps::Deployment>();
        self.add::<apps::ReplicaSet>();
        self.add::<apps::StatefulSet>();
        self.add::<autoscaling::HorizontalPodAutoscaler>();
        self.add::<batch::CronJob>();
        self.add::<batch::Job>();
        self.add::<discovery::EndpointSlice>();
        self.add::<events::Event>();
    }

    fn add_cluster(&mut self) {
        self.add::<core::LimitRange>();
        self.add::<core::Namespace>();
        self.add::<core::Node>();
        self.add::<core::PersistentVolume>();
        self.add::<core::ResourceQuota>();
        self.add::<coordination::Lease>();
        self.add::<node::RuntimeClass>();
        self.add::<scheduling::PriorityClass>();
        self.add::<storage::StorageClass>();
        self.add::<apiextensions::CustomResourceDefinition>();
        self.add::<apiregistration::APIService>();
    }

    fn add_policies(&mut self) {
        self.add::<admission::MutatingWebhookConfiguration>();
        self.add::<admission::ValidatingWebhookConfiguration>();
        self.add::<authentication::SelfSubjectReview>();
        self.add::<authentication::TokenReview>();
        self.add::<authorization::LocalSubjectAccessReview>();
        self.add::<authorization::SelfSubjectAccessReview>();
        self.add::<authorization::SelfSubjectRulesReview>();
        self.add::<authorization::SubjectAccessReview>();
        self.add::<networking::Ingress>();
        self.add::<networking::IngressClass>();
        self.add::<networking::NetworkPolicy>();
        self.add::<policy::PodDisruptionBudget>();
        self.add::<rbac::ClusterRole>();
        self.add::<rbac::ClusterRoleBinding>();
        self.add::<rbac::Role>();
        self.add::<rbac::RoleBinding>();
    }
}

/// Lists that merge: definition, field, and `set` or the keys of items, the one strategic merge goes by first.
#[rustfmt::skip]
const LISTS: &[(&str, &str, &str)] = &[
    ("io.k8s.api.admissionregistration.v1.MutatingWebhook", "matchConditions", "name"),
    ("io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration", "webhooks", "name"),
    ("io.k8s.api.admissionregistration.v1.ValidatingWebhook", "matchConditions", "name"),
    ("io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration", "webhooks", "name"),
    ("io.k8s.api.apps.v1.DaemonSetStatus", "conditions", "type"),
    ("io.k8s.api.apps.v1.DeploymentStatus", "conditions", "type"),
    ("io.k8s.api.apps.v1.ReplicaSetStatus", "conditions", "type"),
    ("io.k8s.api.apps.v1.StatefulSetStatus", "conditions", "type"),
    ("io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerStatus", "conditions", "type"),
    ("io.k8s.api.batch.v1.JobStatus", "conditions", "type"),
    ("io.k8s.api.batch.v1.PodFailurePolicyOnExitCodesRequirement", "values", "set"),
    ("io.k8s.api.batch.v1.UncountedTerminatedPods", "failed", "set"),
    ("io.k8s.api.batch.v1.UncountedTerminatedPods", "succeeded", "set"),
    ("io.k8s.api.core.v1.Container", "env", "name"),
    ("io.k8s.api.core.v1.Container", "ports", "containerPort protocol"),
    ("io.k8s.api.core.v1.Container", "volumeDevices", "devicePath"),
    ("io.k8s.api.core.v1.Container", "volumeMounts", "mountPath"),
    ("io.k8s.api.core.v1.ContainerStatus", "allocatedResourcesStatus", "name"),
    ("io.k8s.api.core.v1.ContainerStatus", "volumeMounts", "mountPath"),
    ("io.k8s.api.core.v1.EphemeralContainer", "env", "name"),
    ("io.k8s.api.core.v1.EphemeralContainer", "ports", "containerPort protocol"),
    ("io.k8s.api.core.v1.EphemeralContainer", "volumeDevices", "devicePath"),
    ("io.k8s.api.core.v1.EphemeralContainer", "volumeMounts", "mountPath"),
    ("io.k8s.api.core.v1.NamespaceStatus", "conditions", "type"),
    ("io.k8s.api.core.v1.NodeSpec", "podCIDRs", "set"),
    ("io.k8s.api.core.v1.NodeStatus", "addresses", "type"),
    ("io.k8s.api.core.v1.NodeStatus", "conditions", "type"),
    ("io.k8s.api.core.v1.PersistentVolumeClaimStatus", "conditions", "type"),
    ("io.k8s.api.core.v1.PodSpec", "containers", "name"),
    ("io.k8s.api.core.v1.PodSpec", "ephemeralContainers", "name"),
    ("io.k8s.api.core.v1.PodSpec", "hostAliases", "ip"),
    ("io.k8s.api.core.v1.PodSpec", "imagePullSecrets", "name"),
    ("io.k8s.api.core.v1.PodSpec", "initContainers", "name"),
    ("io.k8s.api.core.v1.PodSpec", "resourceClaims", "name"),
    ("io.k8s.api.core.v1.PodSpec", "schedulingGates", "name"),
    ("io.k8s.api.core.v1.PodSpec", "topologySpreadConstraints", "topologyKey whenUnsatisfiable"),
    ("io.k8s.api.core.v1.PodSpec", "volumes", "name"),
    ("io.k8s.api.core.v1.PodStatus", "conditions", "type"),
    ("io.k8s.api.core.v1.PodStatus", "podIPs", "ip"),
    ("io.k8s.api.core.v1.PodStatus", "resourceClaimStatuses", "name"),
    ("io.k8s.api.core.v1.ResourceRequirements", "claims", "name"),
    ("io.k8s.api.core.v1.ResourceStatus", "resources", "resourceID"),
    ("io.k8s.api.core.v1.ServiceAccount", "secrets", "name"),
    ("io.k8s.api.core.v1.ServiceSpec", "ports", "port protocol"),
    ("io.k8s.api.core.v1.ServiceStatus", "conditions", "type"),
    ("io.k8s.api.discovery.v1.Endpoint", "addresses", "set"),
    ("io.k8s.api.policy.v1.PodDisruptionBudgetStatus", "conditions", "type"),
    ("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinitionStatus", "conditions", "type"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "finalizers", "set"),
    ("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta", "ownerReferences", "uid"),
    ("io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIServiceStatus", "conditions", "type"),
];

/// Any JSON at all, or schemas in schemas, which stand for themselves.
const ANYTHING: &[&str] = &[
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSON",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrArray",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrBool",
    "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaPropsOrStringArray",
    "io.k8s.apimachinery.pkg.runtime.RawExtension",
];

/// Unions: clients that change one say which of its fields stay.
const RETAINED: &[(&str, &str, &str)] = &[
    ("io.k8s.api.apps.v1.DeploymentSpec", "strategy", "retainKeys"),
    ("io.k8s.api.core.v1.PodSpec", "volumes", "merge,retainKeys"),
];

/// Objects owned as a whole.
const ATOMIC_STRUCTS: &[&str] = &[
    "io.k8s.api.core.v1.ConfigMapKeySelector",
    "io.k8s.api.core.v1.LocalObjectReference",
    "io.k8s.api.core.v1.NodeSelector",
    "io.k8s.api.core.v1.NodeSelectorTerm",
    "io.k8s.api.core.v1.ObjectFieldSelector",
    "io.k8s.api.core.v1.ObjectReference",
    "io.k8s.api.core.v1.ResourceFieldSelector",
    "io.k8s.api.core.v1.ScopeSelector",
    "io.k8s.api.core.v1.SecretKeySelector",
    "io.k8s.api.core.v1.SecretReference",
    "io.k8s.api.core.v1.TopologySelectorTerm",
    "io.k8s.api.core.v1.TypedLocalObjectReference",
    "io.k8s.api.networking.v1.IngressBackend",
    "io.k8s.api.networking.v1.ServiceBackendPort",
    "io.k8s.api.rbac.v1.RoleRef",
    "io.k8s.api.rbac.v1.Subject",
    "io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector",
    "io.k8s.apimachinery.pkg.apis.meta.v1.OwnerReference",
];

/// Maps owned as a whole.
const ATOMIC_MAPS: &[(&str, &str)] = &[
    ("io.k8s.api.core.v1.PodSpec", "nodeSelector"),
    ("io.k8s.api.core.v1.ServiceSpec", "selector"),
    ("io.k8s.api.node.v1.Scheduling", "nodeSelector"),
];

#[cfg(test)]
mod tests {
    use super::super::kinds::Registry;
    use super::*;

    #[test]
    fn every_served_kind_has_a_schema() {
        for resource in Registry::built_in().all() {
            let root = definitions().root(&resource.group, &resource.version, &resource.kind);
            let schema = root.and_then(|name| definitions().get(name));
            assert!(schema.is_some_and(|schema| schema["properties"]["kind"].is_object()), "{}", resource.kind);
        }
    }

    #[test]
    fn tables_name_what_exists() {
        for (definition, field, merge) in LISTS {
            let schema = definitions().get(definition).unwrap_or_else(|| panic!("no {definition}"));
            let list = &schema["properties"][*field];
            assert_eq!(list["type"], "array", "{definition}.{field}");
            for key in merge.split(' ').filter(|merge| *merge != "set") {
                let items = definitions().resolve(&list["items"]);
                assert!(items["properties"][key].is_object(), "{definition}.{field} has no {key}");
            }
        }
        let atomic = ATOMIC_STRUCTS.iter().copied().chain(ATOMIC_MAPS.iter().map(|(definition, _)| *definition));
        atomic.for_each(|name| assert!(definitions().get(name).is_some(), "no {name}"));
    }
}
