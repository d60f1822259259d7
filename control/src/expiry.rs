//! Says in time that issuer or trust anchors end: an Event a day on the issuer Secret, from 60 days before.
//!
//! The Event's name holds the day, so that replicas and restarts do not repeat it, and nothing but the right to create
//! Events is needed.

use crate::ca::Authority;
use crate::event;
use crate::issuer::ISSUER_SECRET;
use crate::limits;
use crate::metrics::Metrics;
use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference};
use mesh_api::names::CONTROL_NAME;

/// What ends soon.
#[derive(Debug, PartialEq, Eq)]
struct Warning {
    /// Name of the Event.
    name: String,
    message: String,
}

/// Looks at the authority every hour, for ever.
pub async fn keep(client: kube::Client, namespace: &str, authority: &ArcSwapOption<Authority>, metrics: &Metrics) {
    loop {
        let Some(current) = authority.load_full() else {
            tokio::time::sleep(limits::API_TIMEOUT).await;
            continue;
        };
        for warning in due(current.expires_at, &current.anchors, Timestamp::now()) {
            tracing::warn!(message = warning.message, "the mesh's identity ends");
            if !event::write(client.clone(), &event(namespace, warning)).await {
                metrics.events_dropped.inc();
            }
        }
        tokio::time::sleep(limits::EXPIRY_CHECK).await;
    }
}

/// What to warn of: the issuer, and each anchor; times in Unix seconds.
fn due(issuer: u64, anchors: &[(String, u64)], now: Timestamp) -> Vec<Warning> {
    let now_s = u64::try_from(now.as_second()).unwrap_or(0);
    let day = now.strftime("%Y%m%d").to_string();
    let all = std::iter::once(("issuer".to_owned(), "the issuer's certificate".to_owned(), issuer));
    let anchors = anchors.iter().map(|(print, at)| (format!("anchor-{print}"), format!("trust anchor {print}"), *at));
    all.chain(anchors)
        .filter(|(_, _, at)| at.saturating_sub(now_s) < limits::EXPIRY_WARNING.as_secs())
        .map(|(what, whose, at)| {
            let end = i64::try_from(at).ok().and_then(|at| Timestamp::from_second(at).ok());
            let end = end.map_or_else(|| at.to_string(), |end| end.to_string());
            let left = at.saturating_sub(now_s) / (24 * 3600);
            let when = if at <= now_s { format!("ended at {end}") } else { format!("ends in {left} days, at {end}") };
            Warning {
                name: format!("mesh-identity-{what}-{day}"),
                message: format!("{whose} {when}; `meshctl identity rotate` replaces it"),
            }
        })
        .collect()
}

/// Named, so that it is written once.
fn event(namespace: &str, warning: Warning) -> Event {
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        name: Some(ISSUER_SECRET.to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ObjectReference::default()
    };
    let mut event = event::warning(about, CONTROL_NAME, "MeshIdentityExpires", warning.message);
    event.metadata.generate_name = None;
    event.metadata.name = Some(warning.name);
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_within_sixty_days_is_told_once_a_day() {
        let now: Timestamp = "2026-05-01T12:00:00Z".parse().unwrap();
        let in_days = |days: i64| u64::try_from(now.as_second() + days * 24 * 3600).unwrap();
        assert_eq!(due(in_days(61), &[("aa".to_owned(), in_days(3650))], now), []);
        let told = due(in_days(59), &[("aa".to_owned(), in_days(-1)), ("bb".to_owned(), in_days(900))], now);
        let names: Vec<_> = told.iter().map(|warning| warning.name.as_str()).collect();
        assert_eq!(names, ["mesh-identity-issuer-20260501", "mesh-identity-anchor-aa-20260501"]);
        assert!(told[0].message.starts_with("the issuer's certificate ends in 59 days, at 2026-06-29T12:00:00Z"));
        assert!(told[1].message.starts_with("trust anchor aa ended at 2026-04-30T12:00:00Z"), "{told:?}");
        let event = event("mesh-system", due(in_days(1), &[], now).remove(0));
        assert_eq!(event.involved_object.name.as_deref(), Some(ISSUER_SECRET));
        assert_eq!(event.metadata.name.as_deref(), Some("mesh-identity-issuer-20260501"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("mesh-system"));
    }
}
