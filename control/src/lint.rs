//! Finds what is legal and wrong: routes that nothing reaches, policies that select nothing, retries that have no time.
//!
//! Pure: objects in, findings out. It stands on what control itself compiles, so that both have the same idea of which
//! route comes first and what a policy selects. [`LINTS`] is the one list of what can be found; `control/LINTS.md` is made
//! from it. [`subject`] makes a world out of objects, [`route`], [`redirect`], [`access`], [`egress`], [`traffic`]
//! and [`annotation`] look at it, [`shadow`] knows which condition
//! leaves nothing for another.

mod access;
mod annotation;
mod egress;
mod redirect;
mod route;
mod shadow;
mod subject;
mod traffic;

#[cfg(test)]
mod tests;

pub use subject::Subject;

use crate::world::view::Name;
use serde::Serialize;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It does not do what it says.
    Error,
    /// It does, but hardly what was meant.
    Warning,
}

impl Severity {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something that can be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lint {
    /// Stable name.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong.
    pub what: &'static str,
    /// What to do about it.
    pub fix: &'static str,
}

macro_rules! lints {
    ($($name:ident $id:literal $severity:ident $what:literal $fix:literal;)*) => {
        $(#[doc = $what] pub const $name: &Lint =
            &Lint { id: $id, severity: Severity::$severity, what: $what, fix: $fix };)*

        /// Everything that can be found, in the order of the documentation.
        pub const LINTS: &[&Lint] = &[$($name),*];
    };
}

lints! {
    OBJECT_INVALID "object.invalid" Error
        "An API server refuses the object"
        "Mend the field; manifests/REFERENCE.md has the bounds of the mesh's own kinds";
    OBJECT_UNKNOWN_FIELD "object.unknown-field" Warning
        "A field that the object's kind does not have: an API server drops it without a word"
        "Mend its name, or take it out";
    ANNOTATION_UNKNOWN "annotation.unknown" Warning
        "An annotation with the mesh's prefix that means nothing"
        "Mend its name, or take it out; manifests/REFERENCE.md lists those there are";
    ANNOTATION_INVALID "annotation.invalid" Error
        "An annotation of the mesh holds what it cannot: pods are refused"
        "Mend its value";
    ROUTE_UNREACHABLE "route.unreachable" Warning
        "A rule that no request reaches: other rules take everything it would"
        "Make its conditions narrower than theirs, or take it out; `meshctl explain request` shows the order";
    ROUTE_UNUSABLE "route.unusable" Error
        "A part of a route that cannot be used: its match is left out, or its rule answers 500"
        "Mend the field";
    ROUTE_IGNORED_VALUE "route.ignored-value" Warning
        "A value of a route that is left out, since it cannot be used"
        "Mend the field, or take it out";
    ROUTE_UNKNOWN_FIELD "route.unknown-field" Warning
        "A field of a route that the mesh does not know and leaves out"
        "Mend its name; if it belongs to a newer Gateway API, do without it";
    ROUTE_HOST_NEVER_MATCHES "route.host-never-matches" Warning
        "A hostname under which nobody calls the Service that is the route's parent"
        "Take `hostnames` out: the parent says which requests the route is about";
    PARENT_MISSING "parent.missing" Error
        "A route's parent is a Service that is not there"
        "Mend the name or the namespace, or make the Service";
    PARENT_PORT "parent.port" Error
        "A route's parent is a port that the Service does not have"
        "Mend `port` or `sectionName`";
    PARENT_HEADLESS "parent.headless" Error
        "A route's parent has no cluster IP: its clients connect to pods, which no route changes"
        "Give the Service a cluster IP, or let clients call one that has";
    BACKEND_MISSING "backend.missing" Error
        "A backend or mirror is a Service or port that is not there: its share of requests is answered with 500"
        "Mend name and port, or make the Service";
    BACKEND_KIND "backend.kind" Error
        "A backend or mirror is no Service: its share of requests is answered with 500"
        "Refer to a Service";
    BACKEND_NOT_PERMITTED "backend.not-permitted" Error
        "A backend or mirror in another namespace without a ReferenceGrant there: its share of requests is answered with 500"
        "Make a ReferenceGrant in the Service's namespace";
    BACKEND_NO_ENDPOINTS "backend.no-endpoints" Warning
        "Nobody stands behind a backend: its share of requests is answered with 503"
        "Compare the Service's selector and target port with its pods; look whether they are ready";
    BACKEND_NO_WEIGHT "backend.no-weight" Error
        "All backends of a rule have the weight 0: it answers 500"
        "Give one of them a weight";
    RULE_LEADS_NOWHERE "rule.leads-nowhere" Error
        "A rule has neither backends nor a redirect: it answers 500"
        "Give it `backendRefs`";
    RETRY_UNSAFE_METHODS "retry.unsafe-methods" Warning
        "Requests are to be tried again that are not idempotent"
        "Restrict the rule to methods that are, or drop the retry";
    TIMEOUT_SHORTER_THAN_TRIES "timeout.shorter-than-tries" Warning
        "The whole request has less time than its tries have together: the last ones are cut off, or never made"
        "Give the request more time, or each try less, or make fewer";
    SESSION_NOTHING_TO_KEEP "session.nothing-to-keep" Warning
        "Session persistence where no endpoint is chosen"
        "Take `sessionPersistence` out";
    REDIRECT_LOOP "redirect.loop" Error
        "A redirect leads back to where it came from: clients go in circles until they give up"
        "Change what the redirect changes, or restrict the rule";
    MIRROR_TO_ITSELF "mirror.to-itself" Warning
        "A mirror copies requests to the very Service that gets them: each arrives twice"
        "Mirror to another Service";
    ACCESS_INVALID "access.invalid" Error
        "An AccessPolicy that is not in force"
        "Mend the field";
    ACCESS_TARGET_MISSING "access.target-missing" Error
        "An AccessPolicy for a Service or route that is not there: it is not in force"
        "Mend the name, or make what it names";
    ACCESS_SELECTS_NOTHING "access.selects-nothing" Warning
        "An AccessPolicy that selects no workload"
        "Compare `target` with the names or labels of the workloads in its namespace";
    ACCESS_NOT_MESHED "access.not-meshed" Warning
        "An AccessPolicy whose pods have no proxy: nobody enforces it"
        "Give the workload a proxy: `meshctl explain pod` says why it has none";
    ACCESS_SHADOWED "access.shadowed" Warning
        "A rule that lets in what another one refuses in any case"
        "Make the rule that denies narrower, or take the other one out";
    ACCESS_REDUNDANT "access.redundant" Warning
        "A rule that changes nothing: another one with the same action covers it"
        "Take it out, or make the other one narrower";
    EGRESS_INVALID "egress.invalid" Error
        "An EgressPolicy that is not in force"
        "Mend the field";
    EGRESS_SELECTS_NOTHING "egress.selects-nothing" Warning
        "An EgressPolicy that selects no workload"
        "Compare `target` with the names or labels of the workloads in its namespace";
    TRAFFIC_INVALID "traffic.invalid" Error
        "A TrafficPolicy that cannot be run: it is not in force"
        "Mend the field";
    TRAFFIC_TARGET_MISSING "traffic.target-missing" Error
        "A TrafficPolicy about a Service, a port, a route or a rule that is not there"
        "Mend `targetRefs`, or make what they name";
    TRAFFIC_CONFLICTED "traffic.conflicted" Warning
        "A TrafficPolicy about what an older one has its say of already: that field of it does nothing"
        "Say it in one of the two";
    FAULT_EVERYTHING "fault.everything" Warning
        "A fault that is made for every single request"
        "Give it a `percent` or a condition, or take it out once it has done its work";
}

/// Something found in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub lint: &'static Lint,
    /// Kind of the object.
    pub kind: String,
    /// Its name; the namespace is empty for objects without one.
    pub name: Name,
    /// Path of the field: `spec.rules[0].backendRefs[1].port`.
    pub field: String,
    /// What was seen.
    pub message: String,
}

/// Everything found about a subject, by object and field.
pub fn lint(subject: &Subject) -> Vec<Finding> {
    let mut found = Vec::new();
    annotation::look(subject, &mut found);
    route::look(subject, &mut found);
    redirect::look(subject, &mut found);
    access::look(subject, &mut found);
    egress::look(subject, &mut found);
    traffic::look(subject, &mut found);
    found.sort_by(|a, b| (&a.kind, &a.name, &a.field, a.lint.id).cmp(&(&b.kind, &b.name, &b.field, b.lint.id)));
    found.dedup();
    found
}

/// The page about everything that can be found, in Markdown.
pub fn reference() -> String {
    let mut page = "\
# Findings of `meshctl lint`

What is legal and wrong. The ids are stable. Made from the code: `MESH_UPDATE=1 cargo test -p mesh-control lint` writes this page
anew.

| id | severity | what is wrong | what to do |
|---|---|---|---|
"
    .to_owned();
    for Lint { id, severity, what, fix } in LINTS {
        page.push_str(&format!("| `{id}` | {} | {what} | {fix} |\n", severity.word()));
    }
    page
}
