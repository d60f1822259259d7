//! Deployments: a ReplicaSet for every version of the template, and a careful way from one to the next.

use super::cache::{Cluster, Key, key_of, owned_by};
use super::template::hash_of;
use super::{Again, adoption, event};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::DeleteParams;
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;

const NAME: &str = "deployment-controller";
/// Label that ties pods to the ReplicaSet of their template.
const HASH: &str = "pod-template-hash";
/// Annotation that numbers a Deployment's versions.
const REVISION: &str = "deployment.kubernetes.io/revision";

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let Some(deployment) = cluster.deployments.get(key).cloned() else { return Ok(None) };
    if deployment.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let selector = deployment.spec.as_ref().map(|spec| &spec.selector);
    adoption::claim::<_, ReplicaSet>(cluster, &deployment, selector, |_| true).await?;
    let sets: Vec<ReplicaSet> = cluster.replica_sets.controlled(&deployment.metadata).cloned().collect();
    let paused = deployment.spec.as_ref().and_then(|s| s.paused).unwrap_or(false);
    let hash = hash_of(&template_of(&deployment), 0);
    let mut current = sets.iter().find(|set| label(set) == Some(&hash)).cloned();
    if current.is_none() && !paused {
        current = Some(create_set(cluster, &deployment, &hash, next_revision(&sets)).await?);
    }
    if let Some(set) = &current {
        number(cluster, &deployment, set, &sets).await?;
    }
    let sets: Vec<ReplicaSet> = cluster.replica_sets.controlled(&deployment.metadata).cloned().collect();
    for (set, replicas) in scales(&deployment, current.as_ref().map(|set| key_of(&set.metadata)), &sets, paused) {
        scale(cluster, &deployment, &set, replicas).await?;
    }
    clean_up(cluster, &deployment, current.as_ref()).await?;
    let sets: Vec<ReplicaSet> = cluster.replica_sets.controlled(&deployment.metadata).cloned().collect();
    let status = status(&deployment, current.as_ref().map(|set| key_of(&set.metadata)), &sets, jiff::Timestamp::now());
    let done = status.replicas == status.available_replicas && status.replicas == status.updated_replicas;
    cluster.set_status::<Deployment, _>(key, deployment.status.as_ref(), &status).await?;
    Ok((!done).then_some(Duration::from_secs(2)))
}

fn template_of(deployment: &Deployment) -> k8s_openapi::api::core::v1::PodTemplateSpec {
    deployment.spec.as_ref().map(|spec| spec.template.clone()).unwrap_or_default()
}

fn label(set: &ReplicaSet) -> Option<&String> {
    set.metadata.labels.as_ref()?.get(HASH)
}

fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1).max(0)
}

fn replicas_of(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1)
}

fn available_of(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0)
}

fn revision_of(meta: &ObjectMeta) -> u64 {
    meta.annotations.as_ref().and_then(|a| a.get(REVISION)).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn next_revision(sets: &[ReplicaSet]) -> u64 {
    sets.iter().map(|set| revision_of(&set.metadata)).max().unwrap_or(0) + 1
}

async fn create_set(
    cluster: &mut Cluster,
    deployment: &Deployment,
    hash: &str,
    revision: u64,
) -> kube::Result<ReplicaSet> {
    let spec = deployment.spec.clone().unwrap_or_default();
    let mut template = spec.template;
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(HASH.to_owned(), hash.to_owned());
    let labels = meta.labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(HASH.to_owned(), hash.to_owned());
    let mut annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    annotations.insert(REVISION.to_owned(), revision.to_string());
    let set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels,
            annotations: Some(annotations),
            owner_references: Some(vec![owned_by(deployment)]),
            ..Default::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    };
    cluster.create(&set).await
}

/// Keeps the revision on the ReplicaSet in use (it is the newest, also after going back to an old one) and on the
/// Deployment, where `kubectl rollout history` and `describe` look.
async fn number(
    cluster: &mut Cluster,
    deployment: &Deployment,
    current: &ReplicaSet,
    sets: &[ReplicaSet],
) -> kube::Result<()> {
    let others = sets.iter().filter(|set| set.metadata.uid != current.metadata.uid);
    let newest = others.map(|set| revision_of(&set.metadata)).max().unwrap_or(0);
    let revision = if revision_of(&current.metadata) > newest { revision_of(&current.metadata) } else { newest + 1 };
    let annotation = json!({"metadata": {"annotations": {REVISION: revision.to_string()}}});
    if revision_of(&current.metadata) != revision {
        cluster.patch::<ReplicaSet>(&key_of(&current.metadata), &annotation).await?;
    }
    if revision_of(&deployment.metadata) != revision {
        cluster.patch::<Deployment>(&key_of(&deployment.metadata), &annotation).await?;
    }
    Ok(())
}

/// How many more pods than wanted a rollout may run, and how many fewer may be available.
fn slack(deployment: &Deployment) -> (i32, i32) {
    let wanted = wanted(deployment);
    let rolling = deployment.spec.as_ref().and_then(|s| s.strategy.clone()).and_then(|s| s.rolling_update);
    let resolve = |value: Option<IntOrString>, round_up: bool| match value {
        Some(IntOrString::Int(number)) => number.max(0),
        Some(IntOrString::String(percent)) => {
            let share = percent.trim_end_matches('%').parse::<f64>().unwrap_or(25.0) * f64::from(wanted) / 100.0;
            (if round_up { share.ceil() } else { share.floor() }) as i32
        }
        None => {
            let share = f64::from(wanted) / 4.0;
            (if round_up { share.ceil() } else { share.floor() }) as i32
        }
    };
    let surge = resolve(rolling.as_ref().and_then(|r| r.max_surge.clone()), true);
    let unavailable = resolve(rolling.and_then(|r| r.max_unavailable), false);
    // Both zero would never get anywhere.
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

fn recreates(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|s| s.strategy.as_ref());
    strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
}

/// The next step of the rollout: ReplicaSets that need another number of replicas.
fn scales(deployment: &Deployment, current: Option<Key>, sets: &[ReplicaSet], paused: bool) -> Vec<(ReplicaSet, i32)> {
    let wanted = wanted(deployment);
    let is_current = |set: &&ReplicaSet| Some(key_of(&set.metadata)) == current;
    let new = sets.iter().find(is_current);
    let old: Vec<&ReplicaSet> = sets.iter().filter(|set| !is_current(set)).collect();
    let old_total: i32 = old.iter().map(|set| replicas_of(set)).sum();
    let mut steps = Vec::new();
    let Some(new) = new.filter(|_| !paused || old_total == 0) else { return steps };
    let new_now = replicas_of(new);
    if recreates(deployment) {
        for set in old.iter().filter(|set| replicas_of(set) > 0) {
            steps.push(((*set).clone(), 0));
        }
        let left: i32 = old.iter().map(|set| set.status.as_ref().map_or(0, |s| s.replicas)).sum();
        if left == 0 && old_total == 0 && new_now != wanted {
            steps.push((new.clone(), wanted));
        }
        return steps;
    }
    let (surge, unavailable) = slack(deployment);
    let target =
        if new_now > wanted { wanted } else { wanted.min(new_now + (wanted + surge - old_total - new_now).max(0)) };
    if target != new_now {
        steps.push((new.clone(), target));
    }
    let available: i32 = sets.iter().map(available_of).sum();
    let mut spare = (available - (wanted - unavailable)).max(0);
    // Old pods that do not work are in nobody's way to go first.
    for set in old.iter().filter(|set| replicas_of(set) > 0) {
        let broken = replicas_of(set) - available_of(set);
        let working = available_of(set).min(spare);
        spare -= working;
        let keep = replicas_of(set) - broken - working;
        if keep != replicas_of(set) {
            steps.push(((*set).clone(), keep));
        }
    }
    steps
}

async fn scale(cluster: &mut Cluster, deployment: &Deployment, set: &ReplicaSet, replicas: i32) -> kube::Result<()> {
    let (key, before) = (key_of(&set.metadata), replicas_of(set));
    cluster.patch::<ReplicaSet>(&key, &json!({"spec": {"replicas": replicas}})).await?;
    let direction = if replicas > before { "up" } else { "down" };
    let message = format!("Scaled {direction} replica set {} from {before} to {replicas}", key.1);
    event::normal(cluster, deployment, NAME, "ScalingReplicaSet", message).await;
    Ok(())
}

/// Removes old, empty ReplicaSets beyond the history limit.
async fn clean_up(cluster: &mut Cluster, deployment: &Deployment, current: Option<&ReplicaSet>) -> kube::Result<()> {
    let limit = deployment.spec.as_ref().and_then(|s| s.revision_history_limit).unwrap_or(10).max(0) as usize;
    let current = current.and_then(|set| set.metadata.uid.clone());
    let mut old: Vec<ReplicaSet> = cluster
        .replica_sets
        .controlled(&deployment.metadata)
        .filter(|set| {
            set.metadata.uid != current && replicas_of(set) == 0 && set.status.as_ref().is_none_or(|s| s.replicas == 0)
        })
        .filter(|set| set.metadata.deletion_timestamp.is_none())
        .cloned()
        .collect();
    old.sort_by_key(|set| revision_of(&set.metadata));
    for set in old.iter().take(old.len().saturating_sub(limit)) {
        cluster.delete::<ReplicaSet>(&key_of(&set.metadata), &DeleteParams::background()).await?;
    }
    Ok(())
}

fn status(
    deployment: &Deployment,
    current: Option<Key>,
    sets: &[ReplicaSet],
    now: jiff::Timestamp,
) -> DeploymentStatus {
    let sum = |pick: &dyn Fn(&ReplicaSet) -> i32| sets.iter().map(pick).sum::<i32>();
    let some = |number: i32| (number > 0).then_some(number);
    let observed = |set: &ReplicaSet| set.status.as_ref().map_or(0, |s| s.replicas);
    let replicas = sum(&observed);
    let available = sum(&available_of);
    let new = sets.iter().find(|set| Some(key_of(&set.metadata)) == current);
    let updated = new.map_or(0, observed);
    let wanted = wanted(deployment);
    let (_, slack) = slack(deployment);
    let name = new.and_then(|set| set.metadata.name.clone()).unwrap_or_default();
    let enough = available >= wanted - slack;
    let availability = if enough {
        ("MinimumReplicasAvailable", "Deployment has minimum availability.".to_owned())
    } else {
        ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.".to_owned())
    };
    let old: BTreeMap<String, DeploymentCondition> = deployment
        .status
        .iter()
        .flat_map(|s| s.conditions.iter().flatten())
        .map(|c| (c.type_.clone(), c.clone()))
        .collect();
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(replicas),
        updated_replicas: some(updated),
        ready_replicas: some(sum(&|set| set.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some((wanted.max(replicas) - available).max(0)),
        ..Default::default()
    };
    let progressing = progress(deployment, &status, &name, old.get("Progressing"), now);
    let truth = if enough { "True" } else { "False" };
    status.conditions = Some(vec![condition("Available", truth, availability, old.get("Available"), now), progressing]);
    status
}

/// A condition that keeps the times of the one before as far as nothing changed.
fn condition(
    kind: &str,
    status: &str,
    (reason, message): (&str, String),
    before: Option<&DeploymentCondition>,
    now: jiff::Timestamp,
) -> DeploymentCondition {
    let time = |keep: bool, earlier: Option<&Time>| earlier.filter(|_| keep).cloned().unwrap_or(Time(now));
    let same_status = before.is_some_and(|c| c.status == status);
    let same = same_status && before.is_some_and(|c| c.reason.as_deref() == Some(reason));
    DeploymentCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: Some(time(same_status, before.and_then(|c| c.last_transition_time.as_ref()))),
        last_update_time: Some(time(same, before.and_then(|c| c.last_update_time.as_ref()))),
    }
}

/// How the rollout goes: complete, moving, or without a sign of life for longer than it may. `status` has the counts of
/// now, the deployment those of before.
fn progress(
    deployment: &Deployment,
    status: &DeploymentStatus,
    set: &str,
    before: Option<&DeploymentCondition>,
    now: jiff::Timestamp,
) -> DeploymentCondition {
    const KIND: &str = "Progressing";
    let complete = |c: &DeploymentCondition| c.reason.as_deref() == Some("NewReplicaSetAvailable");
    let message = format!("ReplicaSet \"{set}\" has successfully progressed.");
    let wanted = Some(wanted(deployment)).filter(|count| *count > 0);
    if status.updated_replicas == wanted && status.replicas == wanted && status.available_replicas == wanted {
        return condition(KIND, "True", ("NewReplicaSetAvailable", message), before, now);
    }
    // A rollout that was complete stays so when pods fail or their number changes.
    if let Some(before) = before.filter(|before| complete(before) && before.message.as_deref() == Some(&*message))
        && status.replicas == status.updated_replicas
    {
        return before.clone();
    }
    let old = deployment.status.clone().unwrap_or_default();
    let outdated = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    let moved = status.updated_replicas > old.updated_replicas
        || outdated(status) < outdated(&old)
        || status.ready_replicas > old.ready_replicas
        || status.available_replicas > old.available_replicas;
    let Some(before) = before.filter(|before| !complete(before)) else {
        let created = ("NewReplicaSetCreated", format!("Created new replica set \"{set}\""));
        return condition(KIND, "True", created, None, now);
    };
    if moved {
        let updated = ("ReplicaSetUpdated", format!("ReplicaSet \"{set}\" is progressing."));
        let mut condition = condition(KIND, "True", updated, Some(before), now);
        condition.last_update_time = Some(Time(now));
        return condition;
    }
    let spec = deployment.spec.clone().unwrap_or_default();
    let deadline = i64::from(spec.progress_deadline_seconds.unwrap_or(600));
    let since = before.last_update_time.as_ref().map_or(now, |time| time.0);
    if now.as_second() - since.as_second() > deadline && spec.paused != Some(true) {
        let late = ("ProgressDeadlineExceeded", format!("ReplicaSet \"{set}\" has timed out progressing."));
        return condition(KIND, "False", late, Some(before), now);
    }
    before.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment(replicas: i32, strategy: serde_json::Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "d"},
            "spec": {"replicas": replicas, "selector": {}, "template": {}, "strategy": strategy},
        }))
        .unwrap()
    }

    fn set(name: &str, replicas: i32, available: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "d"},
            "spec": {"replicas": replicas, "selector": {}},
            "status": {"replicas": replicas, "availableReplicas": available},
        }))
        .unwrap()
    }

    fn step(d: &Deployment, sets: &[ReplicaSet]) -> Vec<(String, i32)> {
        let current = Some(("d".to_owned(), "new".to_owned()));
        scales(d, current, sets, false).into_iter().map(|(s, n)| (s.metadata.name.unwrap(), n)).collect()
    }

    #[test]
    fn a_rolling_update_keeps_within_its_slack() {
        let d = deployment(4, json!({"type": "RollingUpdate"}));
        assert_eq!(step(&d, &[set("new", 0, 0)]), [("new".into(), 4)]);
        // One more than wanted (25 %), none fewer than three available.
        assert_eq!(step(&d, &[set("new", 0, 0), set("old", 4, 4)]), [("new".into(), 1), ("old".into(), 3)]);
        assert_eq!(step(&d, &[set("new", 1, 0), set("old", 3, 3)]), [("new".into(), 2)]);
        assert_eq!(step(&d, &[set("new", 2, 2), set("old", 3, 3)]), [("old".into(), 1)]);
        assert_eq!(step(&d, &[set("new", 4, 4), set("old", 1, 1)]), [("old".into(), 0)]);
        assert!(step(&d, &[set("new", 4, 4), set("old", 0, 0)]).is_empty());
        let broken = step(&d, &[set("new", 1, 0), set("old", 4, 0)]);
        assert_eq!(broken, [("old".into(), 0)], "old pods that do not work go first");
    }

    #[test]
    fn recreate_waits_for_the_old_to_be_gone() {
        let d = deployment(2, json!({"type": "Recreate"}));
        assert_eq!(step(&d, &[set("new", 0, 0), set("old", 2, 2)]), [("old".into(), 0)]);
        assert_eq!(step(&d, &[set("new", 0, 0), set("old", 0, 0)]), [("new".into(), 2)]);
    }

    #[test]
    fn a_rollout_is_complete_when_all_pods_are_new_and_available() {
        let d = deployment(2, json!({}));
        let current = Some(("d".to_owned(), "new".to_owned()));
        let now = jiff::Timestamp::UNIX_EPOCH;
        let s = status(&d, current.clone(), &[set("new", 2, 2), set("old", 0, 0)], now);
        assert_eq!(s.updated_replicas, Some(2));
        assert!(s.conditions.unwrap().iter().any(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable")));
        let s = status(&d, current, &[set("new", 1, 0), set("old", 2, 2)], now);
        assert_eq!((s.replicas, s.updated_replicas, s.unavailable_replicas), (Some(3), Some(1), Some(1)));
    }

    #[test]
    fn a_rollout_without_progress_times_out() {
        let mut d = deployment(2, json!({}));
        let current = Some(("d".to_owned(), "new".to_owned()));
        let at = |seconds| jiff::Timestamp::from_second(seconds).unwrap();
        let mut reasons = Vec::new();
        let steps = [(0, 0), (5, 1), (300, 1), (606, 1), (700, 2)];
        for (time, available) in steps {
            let s = status(&d, current.clone(), &[set("new", 2, available)], at(time));
            let progressing = s.conditions.iter().flatten().find(|c| c.type_ == "Progressing").unwrap().clone();
            reasons.push((progressing.reason.unwrap(), progressing.status));
            d.status = Some(s);
        }
        let expect = [
            ("NewReplicaSetCreated", "True"),
            ("ReplicaSetUpdated", "True"),
            ("ReplicaSetUpdated", "True"),
            ("ProgressDeadlineExceeded", "False"),
            ("NewReplicaSetAvailable", "True"),
        ];
        assert_eq!(reasons, expect.map(|(reason, status)| (reason.to_owned(), status.to_owned())));
    }

    #[test]
    fn the_same_template_has_the_same_hash() {
        let one = deployment(1, json!({}));
        let two = deployment(5, json!({"type": "Recreate"}));
        assert_eq!(hash_of(&template_of(&one), 0), hash_of(&template_of(&two), 0));
        assert_ne!(hash_of(&template_of(&one), 0), hash_of(&template_of(&one), 1));
    }
}
