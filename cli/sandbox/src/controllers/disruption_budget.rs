//! PodDisruptionBudgets: how many pods may be taken away just now.

use super::Again;
use super::cache::{Cluster, Key};
use super::template;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let Some(budget) = cluster.budgets.get(key).cloned() else { return Ok(None) };
    let spec = budget.spec.clone().unwrap_or_default();
    let selector = spec.selector.unwrap_or_default();
    let pods: Vec<&Pod> = cluster
        .pods
        .inside(&key.0)
        .filter(|pod| template::is_active(pod) && template::matches(&selector, pod.metadata.labels.as_ref()))
        .collect();
    let expected = pods.len() as i32;
    let healthy = pods.iter().filter(|pod| template::is_ready(pod)).count() as i32;
    let desired = desired(spec.min_available.as_ref(), spec.max_unavailable.as_ref(), expected);
    let status = PodDisruptionBudgetStatus {
        current_healthy: healthy,
        desired_healthy: desired,
        disruptions_allowed: (healthy - desired).max(0),
        expected_pods: expected,
        observed_generation: budget.metadata.generation,
        ..budget.status.clone().unwrap_or_default()
    };
    cluster.set_status::<PodDisruptionBudget, _>(key, budget.status.as_ref(), &status).await?;
    Ok(None)
}

/// How many pods have to stay healthy.
fn desired(min_available: Option<&IntOrString>, max_unavailable: Option<&IntOrString>, expected: i32) -> i32 {
    let resolve = |value: &IntOrString| match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(percent) => {
            (percent.trim_end_matches('%').parse::<f64>().unwrap_or(0.0) * f64::from(expected) / 100.0).ceil() as i32
        }
    };
    match (min_available, max_unavailable) {
        (Some(min), _) => resolve(min),
        (None, Some(max)) => (expected - resolve(max)).max(0),
        (None, None) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_to_say_it_mean_the_same() {
        let int = IntOrString::Int;
        let percent = |text: &str| IntOrString::String(text.to_owned());
        assert_eq!(desired(Some(&int(2)), None, 3), 2);
        assert_eq!(desired(Some(&percent("50%")), None, 3), 2);
        assert_eq!(desired(None, Some(&int(1)), 3), 2);
        assert_eq!(desired(None, Some(&percent("100%")), 3), 0);
    }
}
