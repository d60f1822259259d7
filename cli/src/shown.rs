//! What the API shows of the cluster, kept as the control plane keeps it, so that its deciders can be asked.

use crate::cluster::Cluster;
use crate::error::{Context, Result};
use crate::installed::no_mesh;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use mesh_api::names::SKIP_OUTBOUND_PORTS;
use mesh_control::kinds::{self, CustomKind};
use mesh_control::world::World;
use mesh_control::world::access_policy::AccessPolicyView;
use mesh_control::world::egress_policy::EgressPolicyView;
use mesh_control::world::route::{RouteKey, RouteKind, read};
use mesh_control::world::traffic_policy::TrafficPolicyView;
use mesh_control::world::view::{Name, NamespaceView, PodView, ServiceView, SliceView};
use mesh_manifests::config::{CONFIG_KEY, MeshConfig};
use mesh_manifests::install::CONFIG_MAP;
use mesh_manifests::policies::{AccessPolicy, EgressPolicy, TrafficPolicy};
use mesh_manifests::ports::PortSet;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

/// What the API shows: as control keeps it, and what control has no use for.
pub struct Shown {
    /// The world.
    pub world: World,
    /// The mesh's configuration.
    pub config: MeshConfig,
    /// Ports that pods let past their proxies.
    pub skip_outbound: Vec<(Name, PortSet)>,
    /// Services that are only other names.
    pub external_names: Vec<(Name, String)>,
}

impl Shown {
    /// Reads everything.
    pub async fn read(cluster: &Cluster) -> Result<Self> {
        let config = mesh_config(cluster).await?.ok_or_else(|| no_mesh(cluster))?;
        let all = ListParams::default();
        let client = || cluster.client.clone();
        let (namespaces, services, slices, pods) = (
            Api::<Namespace>::all(client()),
            Api::<Service>::all(client()),
            Api::<EndpointSlice>::all(client()),
            Api::<Pod>::all(client()),
        );
        let (namespaces, services, slices, pods) =
            tokio::try_join!(namespaces.list(&all), services.list(&all), slices.list(&all), pods.list(&all))
                .during(|| "list namespaces, services, endpoint slices and pods")?;
        let mut shown = Self::of(config, &namespaces.items, &services.items, &slices.items, &pods.items);
        for policy in &policies::<AccessPolicy>(cluster, "list access policies").await? {
            shown.world.apply(Name::of(&policy.metadata), AccessPolicyView::from(policy));
        }
        for policy in &policies::<TrafficPolicy>(cluster, "list traffic policies").await? {
            shown.world.apply(Name::of(&policy.metadata), TrafficPolicyView::from(policy));
        }
        for policy in &policies::<EgressPolicy>(cluster, "list egress policies").await? {
            shown.world.apply(Name::of(&policy.metadata), EgressPolicyView::from(policy));
        }
        shown.read_routes(cluster).await?;
        Ok(shown)
    }

    /// Reads routes and what bears on them, of the kinds that the cluster has.
    async fn read_routes(&mut self, cluster: &Cluster) -> Result<()> {
        for kind in RouteKind::ALL {
            for object in list(cluster, kinds::of_routes(kind)).await? {
                let key = RouteKey { kind, name: Name::of(&object.metadata) };
                self.world.apply(key, read::route(kind, &object.metadata, &object.data));
            }
        }
        for object in list(cluster, kinds::REFERENCE_GRANT).await? {
            self.world.apply(Name::of(&object.metadata), read::grant(&object.metadata, &object.data));
        }
        for object in list(cluster, kinds::BACKEND_TRAFFIC_POLICY).await? {
            self.world.apply(Name::of(&object.metadata), read::backend_policy(&object.metadata, &object.data));
        }
        Ok(())
    }

    /// From what was read.
    pub(crate) fn of(
        config: MeshConfig,
        ns: &[Namespace],
        services: &[Service],
        slices: &[EndpointSlice],
        pods: &[Pod],
    ) -> Self {
        let mut world = World::default();
        for namespace in ns {
            world.apply(namespace.metadata.name.clone().unwrap_or_default(), NamespaceView::from(namespace));
        }
        for service in services {
            world.apply(Name::of(&service.metadata), ServiceView::from(service));
        }
        for slice in slices {
            world.apply(Name::of(&slice.metadata), SliceView::from(slice));
        }
        let mut skip_outbound = Vec::new();
        for pod in pods {
            world.apply(Name::of(&pod.metadata), PodView::from(pod));
            let said = pod.metadata.annotations.as_ref().and_then(|all| all.get(SKIP_OUTBOUND_PORTS));
            let ports =
                said.and_then(|text| text.parse().ok()).unwrap_or_else(|| config.proxy.skip_outbound_ports.clone());
            skip_outbound.push((Name::of(&pod.metadata), ports));
        }
        let external =
            |service: &Service| Some((Name::of(&service.metadata), service.spec.as_ref()?.external_name.clone()?));
        let external_names = services.iter().filter_map(external).collect();
        Self { world, config, skip_outbound, external_names }
    }
}

/// All policies of a kind; a cluster without the kind has none.
async fn policies<K>(cluster: &Cluster, doing: &'static str) -> Result<Vec<K>>
where
    K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    match Api::<K>::all(cluster.client.clone()).list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        listed => Ok(listed.during(|| doing)?.items),
    }
}

/// All objects of a kind; none where the cluster does not have it.
async fn list(cluster: &Cluster, kind: CustomKind) -> Result<Vec<DynamicObject>> {
    let tried = || format!("list objects of the kind {}", kind.kind);
    let Some(resource) = kind.find(&cluster.client).await.during(tried)? else { return Ok(Vec::new()) };
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    Ok(api.list(&ListParams::default()).await.during(tried)?.items)
}

/// The mesh's configuration on this cluster; `None` where it is not installed.
pub async fn mesh_config(cluster: &Cluster) -> Result<Option<MeshConfig>> {
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.system_namespace);
    let tried = || format!("read the mesh's configuration, config map {CONFIG_MAP} in {}", cluster.system_namespace);
    let Some(map) = maps.get_opt(CONFIG_MAP).await.during(tried)? else { return Ok(None) };
    let text = map.data.unwrap_or_default().remove(CONFIG_KEY).unwrap_or_default();
    // A newer control plane may have written it: what this release does not know makes no difference to it.
    MeshConfig::from_yaml_of_any_release(&text).map(|(config, _)| Some(config)).during(tried)
}
