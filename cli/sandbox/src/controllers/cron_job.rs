//! CronJobs: a Job whenever the clock matches.

use super::cache::{Cluster, Key, key_of, owned_by};
use super::{Again, event};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use k8s_openapi::api::batch::v1::{CronJob, CronJobStatus, Job};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::DeleteParams;
use std::time::Duration;

const NAME: &str = "cronjob-controller";

pub(crate) async fn reconcile(cluster: &mut Cluster, key: &Key) -> kube::Result<Again> {
    let Some(cron) = cluster.cron_jobs.get(key).cloned() else { return Ok(None) };
    let spec = cron.spec.clone().unwrap_or_default();
    if cron.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let now = Timestamp::now();
    let zone = spec.time_zone.as_deref().and_then(|name| TimeZone::get(name).ok()).unwrap_or(TimeZone::UTC);
    let Some(schedule) = Schedule::parse(&spec.schedule) else {
        event::warning(cluster, &cron, NAME, "UnparseableSchedule", format!("unparseable schedule: {}", spec.schedule))
            .await;
        return Ok(None);
    };
    let jobs: Vec<Job> = cluster.jobs.controlled(&cron.metadata).cloned().collect();
    let mut status: CronJobStatus = cron.status.clone().unwrap_or_default();
    let minute = now.as_second().div_euclid(60);
    let last = status.last_schedule_time.as_ref().map(|time| time.0.as_second().div_euclid(60));
    let due = spec.suspend != Some(true) && last != Some(minute) && schedule.matches(&now.to_zoned(zone));
    let running: Vec<&Job> = jobs.iter().filter(|job| !has_ended(job)).collect();
    if due {
        match spec.concurrency_policy.as_deref() {
            Some("Forbid") if !running.is_empty() => {}
            policy => {
                if policy == Some("Replace") {
                    for job in &running {
                        cluster.delete::<Job>(&key_of(&job.metadata), &DeleteParams::background()).await?;
                    }
                }
                let job = job_of(&cron, minute);
                let created = cluster.create(&job).await?;
                let message = format!("Created job {}", created.metadata.name.unwrap_or_default());
                event::normal(cluster, &cron, NAME, "SuccessfulCreate", message).await;
                status.last_schedule_time = Timestamp::from_second(minute * 60).ok().map(Time);
            }
        }
    }
    forget_old(cluster, &cron).await?;
    cluster.set_status::<CronJob, _>(key, cron.status.as_ref(), &status).await?;
    Ok(Some(Duration::from_secs((60 - now.as_second().rem_euclid(60)) as u64)))
}

fn has_ended(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
}

fn job_of(cron: &CronJob, minute: i64) -> Job {
    let template = cron.spec.clone().unwrap_or_default().job_template;
    let meta = template.metadata.unwrap_or_default();
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{minute}", cron.metadata.name.as_deref().unwrap_or_default())),
            namespace: cron.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![owned_by(cron)]),
            ..Default::default()
        },
        spec: template.spec,
        status: None,
    }
}

/// Deletes finished jobs beyond the history limits.
async fn forget_old(cluster: &mut Cluster, cron: &CronJob) -> kube::Result<()> {
    let spec = cron.spec.clone().unwrap_or_default();
    for (kind, keep) in [
        ("Complete", spec.successful_jobs_history_limit.unwrap_or(3)),
        ("Failed", spec.failed_jobs_history_limit.unwrap_or(1)),
    ] {
        let ended = |job: &&Job| {
            job.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(|c| c.type_ == kind && c.status == "True")
        };
        let mut jobs: Vec<Job> = cluster.jobs.controlled(&cron.metadata).filter(ended).cloned().collect();
        jobs.sort_by_key(|job| job.metadata.creation_timestamp.as_ref().map(|time| time.0));
        for job in jobs.iter().take(jobs.len().saturating_sub(keep.max(0) as usize)) {
            cluster.delete::<Job>(&key_of(&job.metadata), &DeleteParams::background()).await?;
        }
    }
    Ok(())
}

/// A parsed schedule: for minute, hour, day, month and weekday the values that match.
struct Schedule {
    fields: [Vec<i8>; 5],
    any_day: bool,
    any_weekday: bool,
}

impl Schedule {
    fn parse(text: &str) -> Option<Self> {
        let text = match text {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            other => other,
        };
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = parts[..] else { return None };
        let fields = [
            field(minute, 0, 59)?,
            field(hour, 0, 23)?,
            field(day, 1, 31)?,
            field(month, 1, 12)?,
            field(weekday, 0, 7)?,
        ];
        Some(Self { fields, any_day: day.starts_with('*'), any_weekday: weekday.starts_with('*') })
    }

    fn matches(&self, time: &jiff::Zoned) -> bool {
        let [minute, hour, day, month, weekday] = &self.fields;
        let today = time.weekday().to_sunday_zero_offset();
        let on_day = day.contains(&time.day());
        let on_weekday = weekday.iter().any(|w| w % 7 == today);
        // Where both are restricted, either will do (crontab(5)).
        let date = if self.any_day || self.any_weekday { on_day && on_weekday } else { on_day || on_weekday };
        minute.contains(&time.minute()) && hour.contains(&time.hour()) && month.contains(&time.month()) && date
    }
}

/// `*`, `*/5`, `1-5`, `1-10/2`, `1,2,3`.
fn field(text: &str, low: i8, high: i8) -> Option<Vec<i8>> {
    let mut values = Vec::new();
    for part in text.split(',') {
        let (range, step) =
            part.split_once('/').map_or((part, Some(1)), |(r, s)| (r, s.parse::<i8>().ok().filter(|&s| s > 0)));
        let (from, to) = match (range, range.split_once('-')) {
            ("*" | "?", _) => (low, high),
            (_, Some((from, to))) => (from.parse().ok()?, to.parse().ok()?),
            (single, None) => {
                let from = single.parse().ok()?;
                (from, if part.contains('/') { high } else { from })
            }
        };
        if from < low || to > high || from > to {
            return None;
        }
        values.extend((from..=to).step_by(step? as usize));
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_match_as_cron_does() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap().to_zoned(TimeZone::UTC);
        let matches = |schedule: &str, time: &str| Schedule::parse(schedule).unwrap().matches(&at(time));
        assert!(matches("* * * * *", "2026-11-21T10:07:00Z"));
        assert!(matches("*/5 * * * *", "2026-11-21T10:05:00Z"));
        assert!(!matches("*/5 * * * *", "2026-11-21T10:07:00Z"));
        assert!(matches("0 9-17 * * 1-5", "2026-11-20T09:00:00Z"));
        assert!(!matches("0 9-17 * * 1-5", "2026-11-21T09:00:00Z"), "a Saturday");
        assert!(matches("0 0 1 * 0", "2026-11-22T00:00:00Z"), "a Sunday, though not the first");
        assert!(matches("@hourly", "2026-11-21T03:00:00Z"));
        for bad in ["", "* * * *", "61 * * * *", "a * * * *", "*/0 * * * *", "5-1 * * * *"] {
            assert!(Schedule::parse(bad).is_none(), "{bad}");
        }
    }
}
