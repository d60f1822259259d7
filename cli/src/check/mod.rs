//! Checks: each with a stable id, a severity, a deadline of its own, what was seen, and a fix.
//!
//! [`CHECKS`] is the one list. Checks run in parallel and never leave the cluster; all but the first need the API,
//! and are skipped if it cannot be reached.
//!
//! - [`api`], [`cluster`], [`cni`], [`control`], [`identity`], [`pods`], [`proxy`], [`routes`]: the probes; what they decide
//!   from what they read is pure.
//! - [`subject`]: what several of them read.

mod api;
mod cluster;
mod cni;
mod control;
mod identity;
mod pods;
mod proxy;
mod routes;
mod subject;

pub(crate) use control::{INJECTOR, is_ready, why_not_ready};
pub use subject::Subject;

use crate::args::Global;
use crate::cluster::Cluster;
use crate::error::Error;
use futures::future::{BoxFuture, join_all};
use serde::Serialize;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How bad it is if a check fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The mesh does not work.
    Error,
    /// It works, but not as it should, or not for long.
    Warning,
}

/// When a check is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// Before an install.
    Pre,
    /// The control plane, and the proxies of all namespaces.
    Default,
    /// The proxies only.
    Proxy,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Worth a look.
    Warning,
    /// Wrong.
    Failed,
    /// Could not be checked.
    Skipped,
}

/// What a probe found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How it ended.
    pub status: Status,
    /// What was seen.
    pub seen: String,
    /// What to do, if anything.
    pub fix: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(seen: impl Into<String>) -> Self {
        Self { status: Status::Ok, seen: seen.into(), fix: None }
    }

    /// Something is wrong.
    pub fn failed(seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Failed, seen: seen.into(), fix: Some(fix.into()) }
    }

    /// Something is worth a look.
    pub fn warning(seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Warning, seen: seen.into(), fix: Some(fix.into()) }
    }

    /// It could not be checked.
    pub fn skipped(why: impl Into<String>) -> Self {
        Self { status: Status::Skipped, seen: why.into(), fix: None }
    }

    /// The question itself failed.
    fn of_error(error: &Error) -> Self {
        Self { status: Status::Failed, seen: error.to_string(), fix: error.hint_text().map(str::to_owned) }
    }
}

/// The page about every check, in Markdown.
#[cfg(test)]
fn reference() -> String {
    let mut page = "\
# Checks of `meshctl check`

Each has a stable id, is run in parallel with the others, and is given up after its deadline. One that fails says what was
seen, and what to do about it. Made from the checks themselves: `MESH_UPDATE=1 cargo test -p meshctl check` writes this page
anew. What `-o json` prints holds to [check.schema.json](check.schema.json).

| id | what should hold | if not | deadline | run by |
|---|---|---|---|---|
"
    .to_owned();
    let every = "every run";
    let mut row = |id: &str, what: &str, severity: Severity, deadline: Duration, run: &str| {
        let severity = match severity {
            Severity::Error => "fails",
            Severity::Warning => "warns",
        };
        page.push_str(&format!("| `{id}` | {what} | {severity} | {} s | {run} |\n", deadline.as_secs_f64()));
    };
    row(REACHABLE, REACHABLE_WHAT, Severity::Error, crate::cluster::CONNECT_DEADLINE, every);
    for check in CHECKS {
        let sets: Vec<&str> = check
            .sets
            .iter()
            .map(|set| match set {
                Set::Pre => "`--pre`",
                Set::Default => "`check`",
                Set::Proxy => "`--proxy`",
            })
            .collect();
        row(check.id, check.what, check.severity, check.deadline, &sets.join(", "));
    }
    page
}

type Probe = fn(Arc<Subject>) -> BoxFuture<'static, Result<Finding, Error>>;

/// A check.
pub struct Check {
    /// Stable name.
    pub id: &'static str,
    /// What is checked, as a statement that should be true.
    pub what: &'static str,
    pub(crate) severity: Severity,
    deadline: Duration,
    sets: &'static [Set],
    probe: Probe,
}

const fn check(
    id: &'static str,
    what: &'static str,
    severity: Severity,
    seconds: u64,
    sets: &'static [Set],
    probe: Probe,
) -> Check {
    Check { id, what, severity, deadline: Duration::from_secs(seconds), sets, probe }
}

/// Id of the check that all others stand on.
pub const REACHABLE: &str = "api.reachable";
/// What it checks.
pub(crate) const REACHABLE_WHAT: &str = "the API can be reached";

/// Every check but [`REACHABLE`], in the order of the report.
pub const CHECKS: &[Check] = {
    use Set::{Default, Pre, Proxy};
    use Severity::{Error, Warning};
    &[
        check("api.version", "Kubernetes is recent enough", Error, 5, &[Pre, Default], |s| Box::pin(api::version(s))),
        check("api.extensions", "webhooks and aggregated APIs exist", Error, 5, &[Pre], |s| {
            Box::pin(api::extensions(s))
        }),
        check("permissions.install", "you may create what install creates", Error, 15, &[Pre], |s| {
            Box::pin(api::permissions(s))
        }),
        check("permissions.use", "you may look at golden metrics, and tap", Warning, 10, &[Default], |s| {
            Box::pin(api::use_permissions(s))
        }),
        check("clock.agree", "the clocks agree", Warning, 10, &[Default], |s| Box::pin(cluster::clocks(s))),
        check("install.absent", "no mesh is installed yet", Error, 10, &[Pre], |s| Box::pin(control::absent(s))),
        check("control.installed", "the control plane is installed", Error, 5, &[Default], |s| {
            Box::pin(control::installed(s))
        }),
        check("control.pods-ready", "its pods are ready", Error, 10, &[Default], |s| Box::pin(control::pods_ready(s))),
        check("control.version", "its version fits this meshctl", Warning, 5, &[Default], |s| {
            Box::pin(control::version(s))
        }),
        check("webhook.answers", "a new pod gets its proxy", Error, 12, &[Default], |s| {
            Box::pin(control::webhook_answers(s))
        }),
        check("webhook.scope", "no webhook can lock the cluster", Error, 5, &[Default], |s| {
            Box::pin(cluster::webhooks(s))
        }),
        check("webhook.certificate-expiry", "the webhook's certificate is valid", Error, 5, &[Default], |s| {
            Box::pin(identity::webhook(s))
        }),
        check("definitions.current", "the mesh's kinds are those of this release", Error, 10, &[Default], |s| {
            Box::pin(cluster::definitions(s))
        }),
        check("cni.ready", "every node has its agent, in CNI mode", Error, 10, &[Default], |s| Box::pin(cni::ready(s))),
        check("observe.answers", "the observe API answers", Error, 8, &[Default], |s| Box::pin(control::observe(s))),
        check("identity.issuer-expiry", "the issuer's certificate is valid", Error, 5, &[Default], |s| {
            Box::pin(identity::issuer(s))
        }),
        check("identity.anchors-valid", "the trust anchors are valid and vouch for it", Error, 5, &[Default], |s| {
            Box::pin(identity::anchors(s))
        }),
        check("identity.rotation", "no rotation of the authority was left halfway", Warning, 5, &[Default], |s| {
            Box::pin(identity::rotation(s))
        }),
        check("proxy.ready", "every proxy is ready", Error, 15, &[Default, Proxy], |s| Box::pin(proxy::ready(s))),
        check("proxy.connected", "every proxy talks to the control plane", Warning, 10, &[Default, Proxy], |s| {
            Box::pin(proxy::connected(s))
        }),
        check("proxy.sense", "what every proxy counts makes sense", Warning, 10, &[Default, Proxy], |s| {
            Box::pin(proxy::sense(s))
        }),
        check("proxy.version", "every proxy has the control plane's version", Warning, 15, &[Default, Proxy], |s| {
            Box::pin(proxy::version(s))
        }),
        check(
            "proxy.certificate-expiry",
            "every proxy renews its certificate in time",
            Error,
            15,
            &[Default, Proxy],
            |s| Box::pin(proxy::certificates(s)),
        ),
        check(
            "proxy.endpoints",
            "every proxy knows the endpoints that the API has",
            Warning,
            20,
            &[Default, Proxy],
            |s| Box::pin(proxy::endpoints(s)),
        ),
        check("pods.injected", "every pod has a proxy that should have one", Warning, 15, &[Default, Proxy], |s| {
            Box::pin(pods::injected(s))
        }),
        check("pods.jobs", "no job waits for its proxy", Warning, 15, &[Default, Proxy], |s| Box::pin(pods::jobs(s))),
        check("pods.server-first", "ports are marked whose servers speak first", Warning, 15, &[Default, Proxy], |s| {
            Box::pin(pods::server_first(s))
        }),
        check("routes.kinds", "the Gateway API's routes are installed", Warning, 8, &[Default], |s| {
            Box::pin(routes::installed(s))
        }),
        check("routes.accepted", "every route is accepted and leads somewhere", Warning, 15, &[Default], |s| {
            Box::pin(routes::accepted(s))
        }),
        check("policies.accepted", "every policy of the mesh is in force", Warning, 15, &[Default], |s| {
            Box::pin(routes::policies(s))
        }),
    ]
};

/// How a check ended, as it is reported.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    /// Stable name.
    pub id: &'static str,
    /// What was checked.
    pub what: &'static str,
    /// How bad a failure is.
    pub severity: Severity,
    /// How it ended.
    pub status: Status,
    /// What was seen.
    pub seen: String,
    /// What to do.
    pub fix: Option<String>,
    /// How long it took.
    pub took_ms: u64,
}

/// Which checks of a set are wanted.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    only: Vec<String>,
    skip: Vec<String>,
}

impl Chosen {
    /// Reads ids (`identity.issuer-expiry`) and categories (`identity`).
    pub fn read(only: &[String], skip: &[String]) -> Result<Self, Error> {
        let ids = || CHECKS.iter().map(|check| check.id).chain([REACHABLE]);
        let known: std::collections::BTreeSet<&str> =
            ids().chain(ids().filter_map(|id| id.split('.').next())).collect();
        for word in only.iter().chain(skip) {
            if !known.contains(word.as_str()) {
                let error = Error::new(format!("there is no check `{word}`"));
                return Err(match mesh_manifests::nearest::nearest(word, known.iter().copied()) {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error.hint("`meshctl check -o json` shows every id"),
                });
            }
        }
        Ok(Self { only: only.to_vec(), skip: skip.to_vec() })
    }

    fn takes(&self, id: &str) -> bool {
        let fits =
            |words: &[String]| words.iter().any(|word| word == id || id.split('.').next() == Some(word.as_str()));
        (self.only.is_empty() || fits(&self.only)) && !fits(&self.skip)
    }
}

/// Runs a set of checks once.
pub async fn run(global: &Global, namespace: Option<&str>, set: Set, chosen: &Chosen) -> Vec<Report> {
    let started = Instant::now();
    let connected = Cluster::connect(global).await;
    let finding = match &connected {
        Ok(cluster) => Finding::ok(format!("{} answered", cluster.server)),
        Err(error) => Finding::of_error(error),
    };
    let mut reports = vec![Report {
        id: REACHABLE,
        what: REACHABLE_WHAT,
        severity: Severity::Error,
        status: finding.status,
        seen: finding.seen,
        fix: finding.fix,
        took_ms: millis(started.elapsed()),
    }];
    let checks = CHECKS.iter().filter(|check| check.sets.contains(&set) && chosen.takes(check.id));
    match connected {
        Ok(cluster) => {
            let namespace = namespace.map(str::to_owned);
            let subject = Arc::new(Subject::new(cluster, namespace, again(global)));
            reports.extend(join_all(checks.map(|check| run_one(check, subject.clone()))).await);
        }
        Err(_) => reports
            .extend(checks.map(|check| report(check, Finding::skipped("the API cannot be reached"), Duration::ZERO))),
    }
    reports
}

async fn run_one(check: &Check, subject: Arc<Subject>) -> Report {
    let started = Instant::now();
    let finding = match tokio::time::timeout(check.deadline, (check.probe)(subject)).await {
        Ok(Ok(finding)) => finding,
        Ok(Err(error)) => Finding::of_error(&error),
        Err(_) => Finding::failed(
            format!("no answer within {} s", check.deadline.as_secs()),
            "look whether the API server is overloaded, and at the control plane's log",
        ),
    };
    report(check, finding, started.elapsed())
}

fn report(check: &Check, finding: Finding, took: Duration) -> Report {
    let status = match (finding.status, check.severity) {
        (Status::Failed, Severity::Warning) => Status::Warning,
        (status, _) => status,
    };
    Report {
        id: check.id,
        what: check.what,
        severity: check.severity,
        status,
        seen: finding.seen,
        fix: finding.fix,
        took_ms: millis(took),
    }
}

/// The start of a command line for the same cluster, for fixes that can be pasted.
fn again(global: &Global) -> String {
    let mut line = "meshctl".to_owned();
    if let Some(context) = &global.context {
        line.push_str(&format!(" --context {context}"));
    }
    if global.system_namespace != mesh_api::names::SYSTEM_NAMESPACE {
        line.push_str(&format!(" --system-namespace {}", global.system_namespace));
    }
    line
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCluster;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn the_committed_page_is_that_of_the_checks() {
        let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("CHECKS.md");
        let page = reference();
        if std::env::var_os("MESH_UPDATE").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(committed, page, "run with MESH_UPDATE=1 to write CHECKS.md anew");
    }

    #[test]
    fn ids_are_unique_and_say_what_they_belong_to() {
        let ids: BTreeSet<_> = CHECKS.iter().map(|check| check.id).collect();
        assert_eq!(ids.len(), CHECKS.len());
        assert!(ids.iter().all(|id| id.split('.').count() == 2));
    }

    async fn statuses(cluster: &TestCluster, set: Set) -> BTreeMap<&'static str, (Status, String)> {
        let reports = run(&cluster.global(), None, set, &Chosen::default()).await;
        reports.into_iter().map(|report| (report.id, (report.status, report.seen))).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_empty_cluster_is_fit_for_an_install_and_has_no_mesh() {
        let cluster = TestCluster::start();
        let pre = statuses(&cluster, Set::Pre).await;
        for (id, (status, seen)) in &pre {
            assert_eq!(*status, Status::Ok, "{id}: {seen}");
        }
        assert_eq!(pre.len(), 5);
        let default = statuses(&cluster, Set::Default).await;
        assert_eq!(default["control.installed"].0, Status::Failed);
        assert_eq!(default["identity.issuer-expiry"].0, Status::Skipped);
        assert_eq!(default["webhook.answers"].0, Status::Skipped);
        assert_eq!(default["proxy.ready"].0, Status::Skipped);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn somebody_without_permissions_is_told_which_are_missing() {
        let cluster = TestCluster::start();
        let global = Global { impersonate: Some("somebody".into()), ..cluster.global() };
        let reports = run(&global, None, Set::Pre, &Chosen::default()).await;
        let permissions = reports.iter().find(|report| report.id == "permissions.install").unwrap();
        assert_eq!(permissions.status, Status::Failed);
        assert!(permissions.seen.starts_with("you may not create customresourcedefinitions, "), "{permissions:?}");
        assert!(permissions.seen.contains(", create namespaces, patch namespaces, "), "{permissions:?}");
    }

    #[test]
    fn checks_are_chosen_by_id_and_category() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let check = |only: &str, skip: &str, expect: &[&str]| {
            let chosen = Chosen::read(&words(only), &words(skip)).unwrap();
            let taken: Vec<_> = CHECKS.iter().map(|check| check.id).filter(|id| chosen.takes(id)).collect();
            assert_eq!(taken, expect);
        };
        check("identity", "", &["identity.issuer-expiry", "identity.anchors-valid", "identity.rotation"]);
        check("proxy.ready", "", &["proxy.ready"]);
        check(
            "",
            "api permissions clock install control webhook definitions cni observe identity pods routes policies",
            &[
                "proxy.ready",
                "proxy.connected",
                "proxy.sense",
                "proxy.version",
                "proxy.certificate-expiry",
                "proxy.endpoints",
            ],
        );
        let error = Chosen::read(&words("proxy.redy"), &[]).unwrap_err();
        assert_eq!(error.hint_text(), Some("did you mean proxy.ready?"));
    }

    #[tokio::test]
    async fn without_a_cluster_everything_else_is_skipped() {
        let global = Global { kubeconfig: Some("/nowhere/config".into()), ..Global::default() };
        let reports = run(&global, None, Set::Default, &Chosen::default()).await;
        assert_eq!((reports[0].id, reports[0].status), (REACHABLE, Status::Failed));
        assert!(reports[0].fix.is_some());
        assert!(reports[1..].iter().all(|report| report.status == Status::Skipped));
        assert!(reports.len() > 10);
    }
}
