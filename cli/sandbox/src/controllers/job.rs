//! Jobs: pods that run until enough of them have succeeded.

use super::cache::{Cluster, Key, key_of};
use super::template::{self, PodName};
use super::{Again, event};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::DeleteParams;
use std::time::Duration;

const NAME: &str = "job-controller";
/// Wait before another try after a failure, doubled for each further one.
const BACK_OFF: Duration = Duration::from_secs(10);
/// Longest such wait.
const BACK_OFF_MAX: Duration = Duration::from_secs(360);

/// What is to be done about a job.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing, it is over.
    Nothing,
    /// This many pods more, at the earliest after this wait.
    Start(usize, Duration),
    /// Too many are running: this many fewer.
    Stop(usize),
    /// All done.
    Complete,
    /// Given up: reason and message.
    Fail(&'static str, String),
}

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let Some(job) = cluster.jobs.get(key).cloned() else { return Ok(None) };
    let now = jiff::Timestamp::now();
    if job.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    if let Some(over) = ended_at(&job) {
        let Some(keep) = job.spec.as_ref().and_then(|s| s.ttl_seconds_after_finished) else { return Ok(None) };
        let left = over.as_second() + i64::from(keep) - now.as_second();
        if left > 0 {
            return Ok(Some(Duration::from_secs(left as u64)));
        }
        cluster.delete::<Job>(key, &DeleteParams::background()).await?;
        return Ok(None);
    }
    let mut pods: Vec<Pod> = cluster.pods.controlled(&job.metadata).cloned().collect();
    let plan = plan(&job, &pods, now);
    let mut again = None;
    match &plan {
        Plan::Start(count, wait) if wait.is_zero() => {
            for _ in 0..*count {
                create(cluster, &job).await?;
            }
        }
        Plan::Start(_, wait) => again = Some(*wait),
        Plan::Stop(count) => {
            pods.retain(template::is_active);
            pods.sort_by_key(template::worth);
            stop(cluster, &pods[..(*count).min(pods.len())]).await?;
        }
        Plan::Fail(reason, message) => {
            pods.retain(template::is_active);
            stop(cluster, &pods).await?;
            event::warning(cluster, &job, NAME, reason, message.clone()).await;
        }
        Plan::Complete => event::normal(cluster, &job, NAME, "Completed", "Job completed".to_owned()).await,
        Plan::Nothing => {}
    }
    let pods: Vec<Pod> = cluster.pods.controlled(&job.metadata).cloned().collect();
    let status = status(&job, &pods, &plan, now);
    cluster.set_status::<Job, _>(key, job.status.as_ref(), &status).await?;
    let deadline =
        job.spec.as_ref().and_then(|s| s.active_deadline_seconds).map(|s| Duration::from_secs(s.max(0) as u64));
    Ok(again.into_iter().chain(deadline).min())
}

fn ended_at(job: &Job) -> Option<jiff::Timestamp> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let end = conditions.iter().find(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")?;
    end.last_transition_time.as_ref().map(|time| time.0)
}

fn plan(job: &Job, pods: &[Pod], now: jiff::Timestamp) -> Plan {
    let spec = job.spec.clone().unwrap_or_default();
    let parallelism = spec.parallelism.unwrap_or(1).max(0) as usize;
    let phase = |wanted: &str| pods.iter().filter(|pod| template::phase(pod) == wanted).count();
    let (succeeded, failed) = (phase("Succeeded"), phase("Failed"));
    let active = pods.iter().filter(|pod| template::is_active(pod)).count();
    if spec.suspend == Some(true) {
        return if active > 0 { Plan::Stop(active) } else { Plan::Nothing };
    }
    let done = match spec.completions {
        Some(completions) => succeeded >= completions.max(0) as usize,
        None => succeeded > 0 && active == 0,
    };
    if done {
        return Plan::Complete;
    }
    let limit = spec.backoff_limit.unwrap_or(6).max(0) as usize;
    let restarts: i32 = pods
        .iter()
        .filter(|pod| template::is_active(pod))
        .flat_map(|pod| pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()))
        .map(|container| container.restart_count)
        .sum();
    if failed + restarts.max(0) as usize > limit {
        return Plan::Fail("BackoffLimitExceeded", "Job has reached the specified backoff limit".to_owned());
    }
    let started = job.status.as_ref().and_then(|s| s.start_time.as_ref()).map_or(now, |time| time.0);
    if spec.active_deadline_seconds.is_some_and(|limit| now.as_second() - started.as_second() >= limit) {
        return Plan::Fail("DeadlineExceeded", "Job was active longer than specified deadline".to_owned());
    }
    let open = match spec.completions {
        Some(completions) => (completions.max(0) as usize).saturating_sub(succeeded).min(parallelism),
        // A work queue: once one has succeeded no more are started.
        None if succeeded > 0 => active,
        None => parallelism,
    };
    if active > open {
        return Plan::Stop(active - open);
    }
    if active == open {
        return Plan::Nothing;
    }
    let last_failure = pods.iter().filter(|pod| template::phase(pod) == "Failed").filter_map(finished_at).max();
    let wait = last_failure.map_or(Duration::ZERO, |at| {
        let pause = (BACK_OFF * 2u32.saturating_pow((failed.max(1) - 1).min(10) as u32)).min(BACK_OFF_MAX);
        pause.saturating_sub(Duration::from_secs((now.as_second() - at.as_second()).max(0) as u64))
    });
    Plan::Start(open - active, wait)
}

fn finished_at(pod: &Pod) -> Option<jiff::Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ends = statuses.iter().filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    ends.map(|time| time.0).max()
}

async fn create(cluster: &mut Cluster, job: &Job) -> kube::Result<()> {
    let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
    let (name, uid) = (job.metadata.name.clone().unwrap_or_default(), job.metadata.uid.clone().unwrap_or_default());
    let mut pod = template::pod_of(job, &template, PodName::Prefix(format!("{name}-")));
    let labels = pod.metadata.labels.get_or_insert_default();
    for (label, value) in
        [("job-name", &name), ("batch.kubernetes.io/job-name", &name), ("batch.kubernetes.io/controller-uid", &uid)]
    {
        labels.insert(label.to_owned(), value.clone());
    }
    let created = cluster.create(&pod).await?;
    let message = format!("Created pod: {}", created.metadata.name.unwrap_or_default());
    event::normal(cluster, job, NAME, "SuccessfulCreate", message).await;
    Ok(())
}

async fn stop(cluster: &mut Cluster, pods: &[Pod]) -> kube::Result<()> {
    for pod in pods {
        cluster.delete::<Pod>(&key_of(&pod.metadata), &DeleteParams::default()).await?;
    }
    Ok(())
}

fn status(job: &Job, pods: &[Pod], plan: &Plan, now: jiff::Timestamp) -> JobStatus {
    let before = job.status.clone().unwrap_or_default();
    let phase = |wanted: &str| pods.iter().filter(|pod| template::phase(pod) == wanted).count() as i32;
    let some = |number: i32| (number > 0).then_some(number);
    let active = pods.iter().filter(|pod| template::is_active(pod));
    let ready = active.clone().filter(|pod| template::is_ready(pod)).count() as i32;
    let end = |kind: &str, reason: &str, message: String| JobCondition {
        type_: kind.to_owned(),
        status: "True".to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    };
    let conditions = match plan {
        Plan::Complete => {
            let message = || "Reached expected number of succeeded pods".to_owned();
            Some(vec![
                end("SuccessCriteriaMet", "CompletionsReached", message()),
                end("Complete", "CompletionsReached", message()),
            ])
        }
        Plan::Fail(reason, message) => {
            Some(vec![end("FailureTarget", reason, message.clone()), end("Failed", reason, message.clone())])
        }
        _ => before.conditions.clone(),
    };
    JobStatus {
        active: some(active.count() as i32).filter(|_| !matches!(plan, Plan::Complete | Plan::Fail(..))),
        ready: Some(ready),
        succeeded: some(phase("Succeeded")),
        failed: some(phase("Failed")),
        terminating: Some(0),
        start_time: before.start_time.clone().or(Some(Time(now))),
        completion_time: if *plan == Plan::Complete { Some(Time(now)) } else { before.completion_time.clone() },
        conditions,
        ..before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job(spec: serde_json::Value) -> Job {
        serde_json::from_value(json!({"metadata": {"name": "j"}, "spec": spec})).unwrap()
    }

    fn pods(phases: &[&str]) -> Vec<Pod> {
        phases.iter().map(|phase| serde_json::from_value(json!({"status": {"phase": phase}})).unwrap()).collect()
    }

    #[test]
    fn a_job_starts_what_is_missing_and_ends_when_enough_succeeded() {
        let now = jiff::Timestamp::now();
        let one = job(json!({"template": {}, "completions": 1, "parallelism": 1}));
        assert_eq!(plan(&one, &[], now), Plan::Start(1, Duration::ZERO));
        assert_eq!(plan(&one, &pods(&["Running"]), now), Plan::Nothing);
        assert_eq!(plan(&one, &pods(&["Succeeded"]), now), Plan::Complete);
        let three = job(json!({"template": {}, "completions": 3, "parallelism": 2}));
        assert_eq!(plan(&three, &pods(&["Succeeded"]), now), Plan::Start(2, Duration::ZERO));
        assert_eq!(plan(&three, &pods(&["Succeeded", "Succeeded"]), now), Plan::Start(1, Duration::ZERO));
        let stubborn = job(json!({"template": {}, "completions": 1, "backoffLimit": 1}));
        assert!(matches!(plan(&stubborn, &pods(&["Failed"]), now), Plan::Start(1, _)));
        assert!(matches!(plan(&stubborn, &pods(&["Failed", "Failed"]), now), Plan::Fail("BackoffLimitExceeded", _)));
        let asleep = job(json!({"template": {}, "suspend": true}));
        assert_eq!(plan(&asleep, &pods(&["Running"]), now), Plan::Stop(1));
    }
}
