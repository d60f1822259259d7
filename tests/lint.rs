//! `meshctl lint` on files, on a cluster, and on files as they would be on a cluster; and what is refused on its way in.

use crate::harness::{Need, Ran, SHOP, Sandbox, eventually, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::time::Duration;

const NEEDS: &[Need] = &[Need::Namespaces, Need::Program("kubectl")];
/// Where the findings are.
const NS: &str = "linted";
/// Where nothing gets to that cannot work.
const REFUSES: &str = "refuses";
/// What is shared between all tests is changed by nobody else; the machine may be busy.
const SOON: Duration = Duration::from_secs(15);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("lint::finds_in_files_and_on_the_cluster", NEEDS, finds_in_files_and_on_the_cluster),
        test("lint::what_cannot_work_is_refused", NEEDS, what_cannot_work_is_refused),
    ]
}

fn sandbox(namespace: &str) -> Result<&'static Sandbox> {
    let sandbox = SHOP.get()?;
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    sandbox.kubectl_with_input(["apply", "-f", "-"], &namespace.to_string())?.ok()?;
    Ok(sandbox)
}

fn route(namespace: &str, name: &str, rules: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name, "namespace": namespace},
        "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}], "rules": rules},
    })
}

fn policy(rule: Value) -> Value {
    json!({
        "apiVersion": "meshctl.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "test", "namespace": REFUSES},
        "spec": {"target": {"kind": "Service", "name": "web"}, "rules": [rule]},
    })
}

/// Ids and fields of what was found.
fn findings(ran: Ran) -> Result<Vec<(String, String)>> {
    let rows: Vec<Value> =
        serde_json::from_str(&ran.stdout).with_context(|| format!("{}\n{}", ran.stdout, ran.stderr))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut found: Vec<_> = rows.iter().map(|row| (text(&row["id"]), text(&row["field"]))).collect();
    found.sort_unstable();
    Ok(found)
}

fn finds_in_files_and_on_the_cluster() -> Result<()> {
    let sandbox = sandbox(NS)?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NS},
        "spec": {"selector": {"app": "web"}, "ports": [{"name": "http", "port": 80}]}});
    let to = |name: &str| json!([{"name": name, "port": 80}]);
    let rules = json!([{"backendRefs": to("web")}, {"matches": [{"method": "GET", "path": {"value": "/"}}], "backendRefs": to("nowhere")}, {"backendRefs": to("web")}]);
    let route = route(NS, "web", rules);

    // The route alone: what it refers to may be anywhere.
    let alone = sandbox.meshctl_with_input(["lint", "-", "-o", "json"], &route.to_string())?.ok()?;
    ensure!(findings(alone)?.is_empty(), "files alone");
    let files = format!("{service}\n---\n{route}\n");
    let expect = |found: &[(String, String)], wanted: &[(&str, &str)]| {
        let found: Vec<(&str, &str)> = found.iter().map(|(id, field)| (id.as_str(), field.as_str())).collect();
        ensure!(found == wanted, "{found:?}, not {wanted:?}");
        Ok(())
    };
    let in_files = [("backend.missing", "spec.rules[1].backendRefs[0]"), ("route.unreachable", "spec.rules[2]")];
    expect(&findings(sandbox.meshctl_with_input(["lint", "-", "-o", "json"], &files)?.exits(1)?)?, &in_files)?;
    sandbox
        .meshctl_with_input(["lint", "-", "-o", "github", "--only", "backend"], &files)?
        .exits(1)?
        .says("::error file=standard input,line=3,title=meshctl lint backend.missing::HTTPRoute linted/web")?;

    // On the cluster nobody is behind the Service either.
    let on_cluster = [
        ("backend.missing", "spec.rules[1].backendRefs[0]"),
        ("backend.no-endpoints", "spec.rules[0].backendRefs[0]"),
        ("backend.no-endpoints", "spec.rules[2].backendRefs[0]"),
        ("route.unreachable", "spec.rules[2]"),
    ];
    sandbox.kubectl_with_input(["apply", "-f", "-"], &service.to_string())?.ok()?;
    let with_cluster = ["lint", "-", "--with-cluster", "-o", "json"];
    expect(&findings(sandbox.meshctl_with_input(with_cluster, &route.to_string())?.exits(1)?)?, &on_cluster)?;
    sandbox.kubectl_with_input(["apply", "-f", "-"], &route.to_string())?.ok()?;
    expect(&findings(sandbox.meshctl(["lint", "-n", NS, "-o", "json"])?.exits(1)?)?, &on_cluster)?;

    // The demo shop is as it should be.
    let shop = sandbox.meshctl(["lint", "-n", "shop", "-o", "json", "--skip", "route", "--skip", "access"])?;
    expect(&findings(shop.ok()?)?, &[])?;
    sandbox.kubectl(["-n", NS, "delete", "httproute", "web"])?.ok()?;
    sandbox.meshctl(["lint", "-n", NS])?.ok()?.complains("Nothing found.")?;
    Ok(())
}

fn what_cannot_work_is_refused() -> Result<()> {
    let sandbox = sandbox(REFUSES)?;
    let apply = |object: &Value| sandbox.kubectl_with_input(["apply", "-f", "-"], &object.to_string());
    let refused = |field: &str| format!("admission webhook \"validator.meshctl.dev\" denied the request: {field}");
    let bad = policy(json!({"from": [{"identities": ["spiffe://web"]}]}));
    // Control announces itself soon after it has started.
    eventually(SOON, "the webhook is asked", || {
        apply(&bad)?
            .exits(1)?
            .complains(&refused("spec.rules[0].from[0].identities[0]: `spiffe://web` is not an identity of the form"))
    })?;
    for (object, complaint) in [
        (
            policy(json!({"from": [{"networks": ["10.0.0.0/8", "10.0.0.0/99"]}]})),
            refused("spec.rules[0].from[0].networks[1]: "),
        ),
        (
            policy(json!({"from": [{"serviceAccounts": ["shop/web"], "namespaces": ["other"]}]})),
            refused("spec.rules[0].from[0].namespaces: none of the service accounts"),
        ),
        (
            route(REFUSES, "bad", json!([{"matches": [{"path": {"type": "RegularExpression", "value": "/("}}]}])),
            refused("spec.rules[0].matches[0].path.value: `/(`: "),
        ),
        // The definition alone says no, with or without control.
        (
            policy(json!({"from": [{"unauthenticated": true, "namespaces": ["a"]}]})),
            "a caller without identity has no".to_owned(),
        ),
        (
            policy(json!({"to": [{"grpcMethods": ["a/b"], "methods": ["GET"]}]})),
            "spec.rules[0].to[0]: Invalid value: calls of gRPC are POST".to_owned(),
        ),
        (policy(json!({"to": [{"paths": ["/a?b=c"]}]})), "spec.rules[0].to[0].paths[0]".to_owned()),
    ] {
        apply(&object)?.exits(1)?.complains(&complaint).with_context(|| object.to_string())?;
    }
    // What is not known to this release is let in, and told in the status.
    let newer = route(
        REFUSES,
        "newer",
        json!([{"filters": [{"type": "ExternalAuth"}], "backendRefs": [{"name": "web", "port": 80}]}]),
    );
    apply(&newer)?.ok()?;
    apply(&policy(json!({})))?.ok()?;
    for (kind, name) in [("httproute", "newer"), ("accesspolicy", "test")] {
        sandbox.kubectl(["-n", REFUSES, "delete", kind, name])?.ok()?;
    }
    Ok(())
}
