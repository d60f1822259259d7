//! Kinds that a cluster has only where somebody installed their definitions, and the versions of them that are
//! understood: what is read of them is the same in all.

use crate::world::route::RouteKind;
use crate::world::route::read::GROUP;
use kube::core::ApiResource;
use mesh_manifests::policies;

/// A kind defined by a CustomResourceDefinition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CustomKind {
    /// API group.
    pub group: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Plural, as in addresses.
    pub plural: &'static str,
    /// Versions, the best first.
    pub versions: &'static [&'static str],
}

/// ReferenceGrant.
pub const REFERENCE_GRANT: CustomKind =
    CustomKind { group: GROUP, kind: "ReferenceGrant", plural: "referencegrants", versions: &["v1", "v1beta1"] };

/// XBackendTrafficPolicy.
pub const BACKEND_TRAFFIC_POLICY: CustomKind = CustomKind {
    group: "gateway.networking.x-k8s.io",
    kind: "XBackendTrafficPolicy",
    plural: "xbackendtrafficpolicies",
    versions: &["v1alpha1"],
};

/// Every kind that control follows where it is there.
pub fn all() -> impl Iterator<Item = CustomKind> {
    RouteKind::ALL.into_iter().map(of_routes).chain([REFERENCE_GRANT, BACKEND_TRAFFIC_POLICY])
}

/// The kind of a route.
pub fn of_routes(kind: RouteKind) -> CustomKind {
    let (plural, versions): (_, &[&str]) = match kind {
        RouteKind::Http => ("httproutes", &["v1", "v1beta1"]),
        RouteKind::Grpc => ("grpcroutes", &["v1", "v1alpha2"]),
        RouteKind::Tls => ("tlsroutes", &["v1", "v1alpha3", "v1alpha2"]),
        RouteKind::Tcp => ("tcproutes", &["v1", "v1alpha2"]),
    };
    CustomKind { group: GROUP, kind: kind.kind(), plural, versions }
}

/// A kind of policy of ours.
pub fn of_policies(kind: &str) -> Option<CustomKind> {
    let policies::PolicyKind { kind, plural, .. } = policies::KINDS.iter().find(|known| known.kind == kind)?;
    Some(CustomKind { group: policies::GROUP, kind, plural, versions: &[policies::VERSION] })
}

impl CustomKind {
    /// How the cluster serves the kind: in the best version both know. `None`: not at all.
    pub async fn find(&self, client: &kube::Client) -> kube::Result<Option<ApiResource>> {
        for version in self.versions {
            let api_version = format!("{}/{version}", self.group);
            let served = match client.list_api_group_resources(&api_version).await {
                Ok(list) => list.resources.iter().any(|resource| resource.name == self.plural),
                Err(kube::Error::Api(status)) if status.code == 404 => false,
                Err(error) => return Err(error),
            };
            if served {
                return Ok(Some(ApiResource {
                    group: self.group.to_owned(),
                    version: (*version).to_owned(),
                    api_version,
                    kind: self.kind.to_owned(),
                    plural: self.plural.to_owned(),
                }));
            }
        }
        Ok(None)
    }
}
