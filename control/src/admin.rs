//! The admin port: `/live /ready /metrics /version /identity`.

use crate::ca::Authority;
use crate::limits;
use crate::listen::{self, Body, Port};
use crate::metrics::Metrics;
use arc_swap::ArcSwapOption;
use http::{Method, Response, StatusCode};
use mesh_api::Trust;
use mesh_api::names::IDENTITY_PATH;
use serde_json::json;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Whether something needed is there.
pub type Condition = Box<dyn Fn() -> bool + Send + Sync>;

/// What readiness depends on.
pub struct Readiness {
    /// What is needed, by name.
    pub conditions: Vec<(&'static str, Condition)>,
}

impl Readiness {
    /// What is missing.
    pub fn missing(&self) -> Vec<&'static str> {
        self.conditions.iter().filter(|(_, holds)| !holds()).map(|(name, _)| *name).collect()
    }
}

/// Answers on the admin port until `stop`.
pub async fn serve(
    listener: TcpListener,
    readiness: Arc<Readiness>,
    authority: Arc<ArcSwapOption<Authority>>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let port = Port { name: "admin", connections: limits::ADMIN_CONNECTIONS, tls: None };
    let draining = stop.clone();
    listen::serve(port, listener, stop, move |_, request| {
        let (method, path) = (request.method(), request.uri().path());
        let answer = answer(method, path, &readiness, &authority, &metrics, draining.is_cancelled());
        async move { answer }
    })
    .await;
}

/// Whom we trust and who signs, as [`mesh_api::Trust`].
fn identity(authority: &ArcSwapOption<Authority>) -> Response<Body> {
    let report = authority.load_full().map_or_else(Trust::default, |authority| authority.report());
    listen::json(StatusCode::OK, &report)
}

fn answer(
    method: &Method,
    path: &str,
    readiness: &Readiness,
    authority: &ArcSwapOption<Authority>,
    metrics: &Metrics,
    draining: bool,
) -> Response<Body> {
    if *method != Method::GET && *method != Method::HEAD {
        return listen::text(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    }
    match path {
        "/live" => listen::text(StatusCode::OK, "live"),
        "/ready" if draining => listen::text(StatusCode::SERVICE_UNAVAILABLE, "stopping"),
        "/ready" => match readiness.missing()[..] {
            [] => listen::text(StatusCode::OK, "ready"),
            ref missing => {
                listen::text(StatusCode::SERVICE_UNAVAILABLE, &format!("waiting for {}", missing.join(", ")))
            }
        },
        "/metrics" => match metrics.render() {
            Ok(text) => {
                listen::answer(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
            }
            Err(error) => listen::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        },
        IDENTITY_PATH => identity(authority),
        "/version" => listen::json(StatusCode::OK, &json!({"version": env!("CARGO_PKG_VERSION")})),
        _ => listen::text(StatusCode::NOT_FOUND, "there are /live /ready /metrics /version /identity"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn readiness_says_what_is_missing() {
        let (metrics, nobody) = (Metrics::new(), ArcSwapOption::empty());
        let check = async |path: &str, holds: bool, draining: bool, status: u16, expect: &str| {
            let readiness = Readiness { conditions: vec![("the issuer", Box::new(move || holds))] };
            let response = answer(&Method::GET, path, &readiness, &nobody, &metrics, draining);
            assert_eq!(response.status().as_u16(), status, "{path}");
            let body = response.into_body().collect().await.unwrap().to_bytes();
            assert!(String::from_utf8_lossy(&body).contains(expect), "{path}: {body:?}");
        };
        check("/ready", true, false, 200, "ready").await;
        check("/ready", false, false, 503, "waiting for the issuer").await;
        check("/ready", true, true, 503, "stopping").await;
        check("/live", false, true, 200, "live").await;
        check("/version", false, false, 200, env!("CARGO_PKG_VERSION")).await;
        check("/metrics", true, false, 200, "mesh_control_proxies 0").await;
        check("/identity", true, false, 200, r#""anchors":[]"#).await;
        check("/else", true, false, 404, "/ready").await;
        let readiness = Readiness { conditions: Vec::new() };
        let refused = answer(&Method::POST, "/identity", &readiness, &nobody, &metrics, false);
        assert_eq!(refused.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
