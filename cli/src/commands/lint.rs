//! `meshctl lint`: what is legal and wrong, in files or on the cluster. What is found is decided by
//! [`mesh_control::lint`], and, for what an API server would refuse, by the sandbox's.

use super::sources;
use crate::args::{Global, Lint, LintFormat};
use crate::cluster::Cluster;
use crate::error::{Context, Error, Outcome, Result};
use crate::output::Printer;
use crate::shown::mesh_config;
use kube::Api;
use kube::api::{DynamicObject, ListParams};
use kube::core::ApiResource;
use mesh_control::kinds;
use mesh_control::lint::{Finding, LINTS, OBJECT_INVALID, OBJECT_UNKNOWN_FIELD, Severity, Subject, lint};
use mesh_control::world::view::Name;
use mesh_manifests::config::MeshConfig;
use mesh_manifests::inject_text::{Located, read_objects};
use mesh_manifests::nearest::nearest;
use mesh_manifests::policies;
use mesh_sandbox::api::judge::Judge;
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Finds what is wrong and tells it.
pub async fn run(global: &Global, args: &Lint, printer: &Printer) -> Result<Outcome> {
    let chosen = Chosen::read(&args.only, &args.skip)?;
    let rows = match args.files.as_slice() {
        [] => of_cluster(global, args, printer).await?,
        _ => of_files(global, args, printer).await?,
    };
    let rows: Vec<Row> = rows.into_iter().filter(|row| chosen.takes(row.id)).collect();
    match args.output {
        LintFormat::Json => printer.json(&rows)?,
        LintFormat::Github => printer.data(&github(&rows))?,
        LintFormat::Table => {
            printer.data(&table(&rows))?;
            if rows.is_empty() {
                printer.note("Nothing found.");
            }
        }
    }
    Ok(if rows.is_empty() { Outcome::Well } else { Outcome::Problems })
}

/// A finding, as it is written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Row {
    /// File, where it is from one.
    file: Option<String>,
    /// Line in it.
    line: Option<usize>,
    id: &'static str,
    severity: Severity,
    kind: String,
    namespace: String,
    name: String,
    field: String,
    message: String,
    fix: &'static str,
}

impl Row {
    fn of(finding: Finding, place: Option<(&str, usize)>) -> Self {
        let Finding { lint, kind, name, field, message } = finding;
        Self {
            file: place.map(|(file, _)| file.to_owned()),
            line: place.map(|(_, line)| line),
            id: lint.id,
            severity: lint.severity,
            kind,
            namespace: name.namespace,
            name: name.name,
            field,
            message,
            fix: lint.fix,
        }
    }

    /// `HTTPRoute shop/web`.
    fn object(&self) -> String {
        let namespace = if self.namespace.is_empty() { String::new() } else { format!("{}/", self.namespace) };
        format!("{} {namespace}{}", self.kind, self.name)
    }
}

/// Which findings are wanted.
struct Chosen<'a> {
    only: &'a [String],
    skip: &'a [String],
}

impl<'a> Chosen<'a> {
    fn read(only: &'a [String], skip: &'a [String]) -> Result<Self> {
        let ids = || LINTS.iter().map(|lint| lint.id);
        let known: BTreeSet<&str> = ids().chain(ids().filter_map(|id| id.split('.').next())).collect();
        if let Some(word) = only.iter().chain(skip).find(|word| !known.contains(word.as_str())) {
            let error = Error::new(format!("there is no finding `{word}`"));
            return Err(match nearest(word, known.iter().copied()) {
                Some(near) => error.hint(format!("did you mean {near}?")),
                None => error.hint("control/LINTS.md lists every id"),
            });
        }
        Ok(Self { only, skip })
    }

    fn takes(&self, id: &str) -> bool {
        let fits =
            |words: &[String]| words.iter().any(|word| word == id || id.split('.').next() == Some(word.as_str()));
        (self.only.is_empty() || fits(self.only)) && !fits(self.skip)
    }
}

async fn of_cluster(global: &Global, args: &Lint, printer: &Printer) -> Result<Vec<Row>> {
    let cluster = Cluster::connect(global).await?;
    let step = printer.step("looking at the cluster");
    let config = mesh_config(&cluster).await?.unwrap_or_default();
    let subject = Subject::of_cluster(objects(&cluster).await?, config);
    drop(step);
    let scope = cluster.scope(&args.namespaces);
    let is_meant = |finding: &Finding| match scope.as_deref() {
        None => true,
        Some(scope) if finding.kind == "Namespace" => finding.name.name == scope,
        Some(scope) => finding.name.namespace == scope,
    };
    Ok(lint(&subject).into_iter().filter(is_meant).map(|finding| Row::of(finding, None)).collect())
}

async fn of_files(global: &Global, args: &Lint, printer: &Printer) -> Result<Vec<Row>> {
    let cluster = if args.with_cluster { Some(Cluster::connect(global).await?) } else { None };
    let usual = cluster.as_ref().map_or("default", |cluster| &cluster.namespace);
    let namespace = args.namespaces.namespace.as_deref().unwrap_or(usual);
    let judge = Judge::new().during(|| "read the kinds' definitions")?;
    let mut written = Vec::new();
    for source in sources::find(&args.files)? {
        written.extend(read_objects(&source.name(), source.open()?).during(|| "lint")?);
    }
    let mut found = Vec::new();
    for located in &mut written {
        found.extend(judged(&judge, located, namespace));
    }
    let files = written.iter().map(|located| located.object.clone());
    let subject = match &cluster {
        None => Subject::of_files(files, MeshConfig::default()),
        Some(cluster) => {
            let _step = printer.step("looking at the cluster");
            let config = mesh_config(cluster).await?.unwrap_or_default();
            Subject::of_files_on(objects(cluster).await?, files, config)
        }
    };
    let places: BTreeMap<(String, Name), &Located> =
        written.iter().map(|located| (key(&located.object), located)).collect();
    found.extend(lint(&subject));
    let rows = found.into_iter().filter_map(|finding| {
        // What is on the cluster already is not what was asked about.
        let located = places.get(&(finding.kind.clone(), finding.name.clone()))?;
        let line = located.line(&finding.field);
        Some(Row::of(finding, Some((located.source_name.as_str(), line))))
    });
    let mut rows: Vec<Row> = rows.collect();
    rows.sort_unstable();
    tell_once(&mut rows);
    Ok(rows)
}

/// What an API server says already need not be told again, in other words, as what the mesh cannot read.
fn tell_once(rows: &mut Vec<Row>) {
    let object = |row: &Row| (row.kind.clone(), row.namespace.clone(), row.name.clone());
    let by_server = |row: &&Row| [OBJECT_INVALID.id, OBJECT_UNKNOWN_FIELD.id].contains(&row.id);
    let told = rows
        .iter()
        .filter(by_server)
        .flat_map(|row| [(object(row), row.field.clone()), (object(row), "spec".to_owned())]);
    let told: BTreeSet<_> = told.collect();
    rows.retain(|row| {
        by_server(&row) || !row.id.ends_with(".invalid") || !told.contains(&(object(row), row.field.clone()))
    });
}

/// What an API server would say of an object, which gets the namespace it would be made in.
fn judged(judge: &Judge, located: &mut Located, namespace: &str) -> Vec<Finding> {
    let Some(judgement) = judge.judge(&located.object) else {
        put_namespace(&mut located.object, namespace);
        return Vec::new();
    };
    if judgement.namespaced {
        put_namespace(&mut located.object, namespace);
    }
    let (kind, name) = key(&located.object);
    let finding = |lint, field, message| Finding { lint, kind: kind.clone(), name: name.clone(), field, message };
    let refused = judgement.refused.into_iter().map(|(field, why)| finding(OBJECT_INVALID, field, why));
    // What the mesh reads of routes it tells itself, with what becomes of it.
    let is_route =
        located.object["apiVersion"].as_str().is_some_and(|version| version.starts_with(kinds::REFERENCE_GRANT.group));
    let unknown = judgement.unknown.into_iter().filter(|_| !is_route).map(|(field, near)| {
        let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        finding(OBJECT_UNKNOWN_FIELD, field, format!("{kind} has no such field{near}"))
    });
    refused.chain(unknown).collect()
}

fn put_namespace(object: &mut Value, namespace: &str) {
    if object["metadata"]["namespace"].as_str().is_none_or(str::is_empty) && object["metadata"].is_object() {
        object["metadata"]["namespace"] = namespace.into();
    }
}

fn key(object: &Value) -> (String, Name) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    (text(&object["kind"]), Name { namespace: text(&metadata["namespace"]), name: text(&metadata["name"]) })
}

/// Everything on the cluster that a finding can be about, or that one rests on.
async fn objects(cluster: &Cluster) -> Result<Vec<Value>> {
    let built_in = |group: &str, kind: &str, plural: &str| ApiResource {
        group: group.to_owned(),
        version: "v1".to_owned(),
        api_version: if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") },
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    let mut resources = vec![
        built_in("", "Namespace", "namespaces"),
        built_in("", "Service", "services"),
        built_in("", "Pod", "pods"),
        built_in("discovery.k8s.io", "EndpointSlice", "endpointslices"),
        built_in("apps", "Deployment", "deployments"),
        built_in("apps", "StatefulSet", "statefulsets"),
        built_in("apps", "DaemonSet", "daemonsets"),
        built_in("batch", "CronJob", "cronjobs"),
    ];
    resources.extend(policies::KINDS.iter().map(|policy| ApiResource {
        version: policies::VERSION.to_owned(),
        api_version: format!("{}/{}", policies::GROUP, policies::VERSION),
        ..built_in(policies::GROUP, policy.kind, policy.plural)
    }));
    for kind in kinds::all() {
        let tried = || format!("look for the kind {}", kind.kind);
        resources.extend(kind.find(&cluster.client).await.during(tried)?);
    }
    let lists = resources.iter().map(|resource| list(cluster, resource));
    Ok(futures::future::try_join_all(lists).await?.into_iter().flatten().collect())
}

/// All objects of a kind; none where the cluster does not have it.
async fn list(cluster: &Cluster, resource: &ApiResource) -> Result<Vec<Value>> {
    let tried = || format!("list {}", resource.plural);
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), resource);
    let listed = match api.list(&ListParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Vec::new()),
        listed => listed.during(tried)?,
    };
    let whole = |object: &DynamicObject| {
        let mut object = serde_json::to_value(object)?;
        object["apiVersion"] = resource.api_version.as_str().into();
        object["kind"] = resource.kind.as_str().into();
        Ok::<_, serde_json::Error>(object)
    };
    listed.items.iter().map(whole).collect::<std::result::Result<_, _>>().during(tried)
}

fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for row in rows {
        let place = match (&row.file, row.line) {
            (Some(file), Some(line)) => format!("{file}:{line}: "),
            _ => String::new(),
        };
        let _ = writeln!(text, "{place}{} {}: {}", row.severity.word(), row.id, row.object());
        let field = if row.field.is_empty() { String::new() } else { format!("{}: ", row.field) };
        let _ = writeln!(text, "    {field}{}\n    fix: {}", row.message, row.fix);
    }
    let count = |severity| rows.iter().filter(|row| row.severity == severity).count();
    if !rows.is_empty() {
        let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
        let many = |count: usize, word: &str| if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") };
        let _ = writeln!(text, "\n{}, {}", many(errors, "error"), many(warnings, "warning"));
    }
    text
}

/// Workflow commands that GitHub shows beside the lines of a change.
fn github(rows: &[Row]) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let mut text = String::new();
    for row in rows {
        let place = match (&row.file, row.line) {
            (Some(file), Some(line)) => format!("file={},line={line},", property(file)),
            _ => String::new(),
        };
        let what = format!("{}: {}: {}\nfix: {}", row.object(), row.field, row.message, row.fix);
        let _ = writeln!(text, "::{} {place}title=meshctl lint {}::{}", row.severity.word(), row.id, data(&what));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const SHOP: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: web
spec:
  parentRefs:
    - {group: '', kind: Service, name: web}
  rules:
    - timeout: {request: 1s}
      backendRefs:
        - {name: cart, port: 80}
---
apiVersion: meshctl.dev/v1alpha1
kind: AccessPolicy
metadata: {name: cart}
spec:
  action: Alow
  rule: []
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
      annotations:
        meshctl.dev/injct: enabled
    spec:
      containers: [{name: web, image: web}]
";

    async fn lint_file(text: &str, arguments: &str) -> (Outcome, String) {
        let mut file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = file.path().display().to_string();
        let line = format!("meshctl lint {path} {arguments}");
        let cli = crate::args::Cli::read(line.split_whitespace().map(Into::into).collect()).unwrap();
        let crate::args::Command::Lint(args) = &cli.command else { panic!("{line}") };
        let (printer, read) = Printer::memory();
        let outcome = run(&cli.global, args, &printer).await.unwrap();
        (outcome, read().0.replace(&path, "shop.yaml"))
    }

    #[tokio::test]
    async fn findings_in_files_come_with_their_lines() {
        let (outcome, text) = lint_file(SHOP, "-n shop").await;
        assert_eq!(outcome, Outcome::Problems);
        insta::assert_snapshot!(text);
    }

    #[tokio::test]
    async fn github_and_json_say_the_same() {
        let (_, text) = lint_file(SHOP, "-n shop --only route -o github").await;
        insta::assert_snapshot!(text);
        let (_, text) = lint_file(SHOP, "-n shop --only route -o json").await;
        insta::assert_snapshot!(text);
    }

    #[tokio::test]
    async fn nothing_wrong_is_well() {
        let (outcome, text) = lint_file("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}", "").await;
        assert_eq!((outcome, text.as_str()), (Outcome::Well, ""));
        assert_eq!(lint_file(SHOP, "--skip route --skip object --skip annotation").await.0, Outcome::Well);
    }

    #[test]
    fn ids_are_chosen_and_slips_are_told() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let error = Chosen::read(&words("route.unreachble"), &[]).err().unwrap();
        assert_eq!(error.hint_text(), Some("did you mean route.unreachable?"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cluster_is_looked_at_by_namespace() {
        let cluster = crate::testing::TestCluster::start();
        let client = cluster.connect().await.client;
        for namespace in ["shop", "other"] {
            let object = serde_json::json!({"metadata": {"name": namespace}});
            let object = serde_json::from_value(object).unwrap();
            Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone())
                .create(&kube::api::PostParams::default(), &object)
                .await
                .unwrap();
        }
        let route = serde_json::json!({
            "metadata": {"name": "web"}, "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}]}
        });
        let resource = kinds::of_routes(mesh_control::world::route::RouteKind::Http);
        let resource = resource.find(&client).await.unwrap().unwrap();
        let api: Api<DynamicObject> = Api::namespaced_with(client, "shop", &resource);
        let mut route: DynamicObject = serde_json::from_value(route).unwrap();
        route.types =
            Some(kube::core::TypeMeta { api_version: resource.api_version.clone(), kind: resource.kind.clone() });
        api.create(&kube::api::PostParams::default(), &route).await.unwrap();
        for (scope, expect) in [
            ("-n shop", &["parent.missing", "rule.leads-nowhere"][..]),
            ("-n other", &[]),
            ("-A", &["parent.missing", "rule.leads-nowhere"]),
        ] {
            let line = format!("meshctl lint {scope} -o json");
            let cli = crate::args::Cli::read(line.split_whitespace().map(Into::into).collect()).unwrap();
            let crate::args::Command::Lint(args) = &cli.command else { panic!("{line}") };
            let (printer, read) = Printer::memory();
            let outcome = run(&cluster.global(), args, &printer).await.unwrap();
            let rows: Vec<Value> = serde_json::from_str(&read().0).unwrap();
            let mut ids: Vec<&str> = rows.iter().map(|row| row["id"].as_str().unwrap()).collect();
            ids.sort_unstable();
            assert_eq!(ids, expect, "{scope}");
            assert_eq!(outcome == Outcome::Well, expect.is_empty());
        }
    }
}
