//! The Gateway API's kinds that a mesh reads, served from the first moment. Real clusters bring them themselves; this
//! one does, too, so that nobody has to fetch manifests to try a route.

use gateway_api::apis::experimental::{
    grpcroutes::GrpcRoute, httproutes::HttpRoute, referencegrants::ReferenceGrant, tcproutes::TcpRoute,
    tlsroutes::TlsRoute, xbackendtrafficpolicies::XBackendTrafficPolicy,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

/// Release of the Gateway API whose types these are.
const BUNDLE: &str = "v1.5.1";

/// Versions of which the types say nothing, since they differ from the newest by name only: plural, version.
const OLDER: &[(&str, &str)] = &[("httproutes", "v1beta1"), ("referencegrants", "v1beta1"), ("tlsroutes", "v1alpha3")];

/// The definitions, made from the types. Unlike those that the Gateway API publishes they hold neither CEL rules nor
/// default values; whoever reads routes knows the defaults.
pub(super) fn definitions() -> anyhow::Result<Vec<Value>> {
    let all: [CustomResourceDefinition; 6] = [
        HttpRoute::crd(),
        GrpcRoute::crd(),
        TlsRoute::crd(),
        TcpRoute::crd(),
        ReferenceGrant::crd(),
        XBackendTrafficPolicy::crd(),
    ];
    all.iter().map(definition).collect()
}

fn definition(definition: &CustomResourceDefinition) -> anyhow::Result<Value> {
    let mut definition = serde_json::to_value(definition)?;
    definition["metadata"]["annotations"] = json!({
        "gateway.networking.k8s.io/bundle-version": BUNDLE,
        "gateway.networking.k8s.io/channel": "experimental",
    });
    definition["spec"]["names"]["categories"] = json!(["gateway-api"]);
    definition["spec"]["conversion"] = json!({"strategy": "None"});
    let plural = definition["spec"]["names"]["plural"].as_str().unwrap_or_default().to_owned();
    let Some(versions) = definition["spec"]["versions"].as_array_mut() else { return Ok(definition) };
    for (_, older) in OLDER.iter().filter(|(of, _)| *of == plural) {
        let mut version = versions[0].clone();
        version["name"] = (*older).into();
        version["storage"] = false.into();
        versions.push(version);
    }
    Ok(definition)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_one_stored_version_and_a_status_where_there_is_one() {
        for definition in definitions().unwrap() {
            let kind = &definition["spec"]["names"]["kind"];
            let versions = definition["spec"]["versions"].as_array().unwrap();
            assert_eq!(versions.iter().filter(|version| version["storage"] == true).count(), 1, "{kind}");
            let status = versions[0]["subresources"]["status"].is_object();
            assert_eq!(status, kind != "ReferenceGrant", "{kind}");
            super::super::crd::check(&definition).unwrap();
        }
    }
}
