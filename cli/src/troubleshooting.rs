//! `TROUBLESHOOTING.md`: what to do, by the code in the `mesh-error` header and by the id of a check.
//!
//! Codes, causes and cures are those of `meshctl explain error`, ids those of `meshctl check`; only where to look is
//! written here. A code or an id without such a note has its section all the same.

use crate::check::{CHECKS, REACHABLE, REACHABLE_WHAT, Severity};
use mesh_api::MeshError;
use std::fmt::Write as _;

const HEAD: &str = "\
# Troubleshooting

Something is wrong, and it may be the mesh. Made from the tables that `meshctl explain error` and `meshctl check` print:
`MESH_UPDATE=1 cargo test -p meshctl check` writes this page anew. The commands stand for namespace `shop`, caller `web`
and service `catalog`: put in yours.

## First

```sh
meshctl check                                  # is the mesh well? what is not comes with what to do
meshctl stat deploy -n shop                    # who fails, how much, how slowly
meshctl tap -n shop --error any --for 3s       # what the mesh itself refuses, request by request
meshctl diagnostics endpoints deploy/web -n shop   # does a caller's proxy know what the API knows?
meshctl explain request --from deploy/web --to catalog:80 GET /products/7 -n shop   # what should happen, step by step
```

A failing answer without a `mesh-error` header comes from the application. With one, go to [its code](#errors).

| what is seen | where to look |
|---|---|
| a pod has no proxy | `meshctl explain pod POD -n shop` says why |
| a pod hangs in `Init` | `kubectl -n shop logs POD -c mesh-proxy`: without a certificate from the control plane a proxy is not ready, and its application waits; then `meshctl check` |
| a pod ends with `Init:Error` in `mesh-redirect` | `kubectl -n shop logs POD -c mesh-redirect`: the redirect needs the capability NET_ADMIN, which an admission policy may take away ([CNI mode](../manifests/INSTALL.md#cni-mode) does without). Code 69, in CNI mode: the pod was started before its node's plugin was there; see [cni.ready](#cniready) |
| a pod hangs in `ContainerCreating`, with an event `FailedCreatePodSandBox` that names mesh-cni | its node's agent does not answer: see [cni.ready](#cniready) |
| new pods are refused | the webhook cannot be reached, and `webhook.failure_policy` is `Fail`: see [webhook.answers](#webhookanswers). To let pods start at once, without proxies: `kubectl delete mutatingwebhookconfiguration mesh-injector`; `meshctl upgrade --apply` brings it back |
| requests are answered by somebody unexpected | `meshctl explain request` shows the rule that takes them, and why each other one does not |
| traffic is not encrypted | `meshctl edges -n shop` says for each pair why not |
| a database or mail server is slow at first, or hangs | its server speaks first: name its port in `meshctl.dev/opaque-ports` |
| a change of a route or policy has no effect | its status (`kubectl describe`), then `meshctl lint -n shop`, then `meshctl diagnostics proxy-config deploy/web -n shop` |
| numbers are missing in `meshctl top` | `meshctl check --proxy -n shop`: which proxies do not answer |
| the control plane is down | traffic goes on; what does not is told in [CONCEPTS.md](../control/CONCEPTS.md#when-the-control-plane-is-down) |

## Errors

Every answer that the mesh makes in place of an application has a header `mesh-error: CODE`; the code stands in the metric's
label `error`, in the access log and in taps, too. gRPC callers get the gRPC status, with the sentence in `grpc-message`.
";

/// Where to look when the mesh answers with this code.
fn error_note(error: MeshError) -> &'static str {
    use MeshError as E;
    match error {
        E::NoEndpoints => {
            "`kubectl -n shop get endpointslices -l kubernetes.io/service-name=catalog` shows what is ready. Nothing: \
             compare the Service's selector and target port with its pods. Something, and the error goes on: `meshctl \
             diagnostics endpoints deploy/web -n shop` shows whether the caller's proxy knows it (`missing`, `stale`)."
        }
        E::NoRoute => {
            "`meshctl explain request` with the request's method, path and fields says why each rule does not take it."
        }
        E::NoBackend => "`meshctl lint -n shop --only backend` names the rule and what is wrong with its backends.",
        E::ConnectFailed | E::ConnectTimeout => {
            "`meshctl tap deploy/web -n shop --error connect-failed,connect-timeout --for 10s -o wide` shows which pod does \
             not answer. All of one node: the network between nodes. One of many: its application, or its node. A port \
             that is right in the Service but refused in the pod: the application listens on 127.0.0.1 of another family, \
             or on another port."
        }
        E::TlsFailed => {
            "`meshctl identity -n shop` shows certificates and their ends; clocks that differ by more than five minutes make \
             good ones look bad. After a change of trust anchors: proxies that still trust only the old ones."
        }
        E::ResetBeforeResponse => {
            "`meshctl tap deploy/catalog -n shop --direction inbound --error reset-before-response --for 10s` shows which \
             requests. Several pods at once: look whether they were restarted (`kubectl -n shop get pods`, OOMKilled)."
        }
        E::DeadlineExceeded | E::Timeout => {
            "`meshctl routes svc/catalog -n shop` has the latency of each route beside its number of attempts; `meshctl \
             explain request` names the limit that holds and who set it."
        }
        E::NotExtended | E::InvalidResponse => "",
        E::InvalidRequest => {
            "`meshctl tap deploy/catalog -n shop --error invalid-request --for 10s -o json` shows who sends it. What is \
             refused is said in the answer's text."
        }
        E::AccessDenied => {
            "`meshctl explain request` names the policy; `kubectl -n shop get accesspolicies` shows whether it is in force. \
             The caller has no identity where it has no proxy, or calls past it (`meshctl edges -n shop`)."
        }
        E::JwtMissing | E::JwtInvalid => "The answer's text says what is wrong with the token, never what it holds.",
        E::ExternalAuthFailed => {
            "`meshctl edges -n shop` shows the calls to the service that is asked; 500 and above count as no answer."
        }
        E::EgressDenied => {
            "`meshctl explain request --from deploy/web --to api.example.org:443 -n shop` names the policy, or the default \
             where there is none."
        }
        E::Overload => {
            "`meshctl diagnostics proxy-metrics deploy/catalog -n shop` has `mesh_connections_shed_total`; \
             [the proxy's page](../proxy/README.md#what-happens-at-a-limit) lists the limits. `limits` of a TrafficPolicy \
             answer so, too."
        }
        E::CircuitOpen => {
            "`meshctl diagnostics endpoints deploy/web -n shop` shows since when each endpoint is ejected, `meshctl top -n \
             shop` what it fails with."
        }
        E::RateLimited => {
            "`meshctl tap deploy/catalog -n shop --error rate-limited --for 10s` shows who is refused; `kubectl -n shop get \
             trafficpolicies` whose limit it may be."
        }
        E::FaultInjected => "`kubectl get trafficpolicies -A -o yaml` shows where `faults` stand.",
        E::Draining => {
            "Often: callers keep addresses of pods that have gone. `meshctl diagnostics endpoints deploy/web -n shop` shows \
             `stale` ones."
        }
        E::LoopDetected => "`kubectl -n shop get endpointslices -o yaml` shows the ports: none may be 4140 or 4143.",
    }
}

/// Where to look when a check fails.
fn check_note(id: &str) -> &'static str {
    match id {
        "api.reachable" => {
            "All other checks stand on this one. `kubectl get --raw /readyz` asks the same question with kubectl's eyes; \
             `kubectl config view --minify` shows where it asks."
        }
        "api.extensions" => "A cluster whose aggregation layer is off cannot serve `stat`, `top` and `tap`.",
        "permissions.install" => {
            "`meshctl install` prints what would be created, for somebody who may apply it; `--as` checks for another user."
        }
        "install.absent" => {
            "Change the mesh that is there with `meshctl upgrade`. Leftovers of another: `meshctl prune` lists them."
        }
        "control.installed" => "In another namespace: give `--system-namespace`, or set MESHCTL_NAMESPACE.",
        "control.pods-ready" => {
            "`kubectl -n mesh-system describe pods` (image, scheduling), `kubectl -n mesh-system logs deploy/mesh-control` \
             (issuer, permissions). Proxies go on meanwhile."
        }
        "cni.ready" => {
            "`kubectl -n kube-system get pods -l app.kubernetes.io/name=mesh-cni -o wide` shows the nodes, `kubectl -n \
             kube-system logs ds/mesh-cni` why the plugin is not in place. Pods of `kube-system`, of the control plane and of \
             `webhook.excluded_namespaces` start meanwhile. [INSTALL.md](../manifests/INSTALL.md#cni-mode) has the way out for a \
             node whose agent is gone for good."
        }
        "control.version" | "proxy.version" => {
            "`meshctl version` shows all three; one minor release between them is fine."
        }
        "webhook.answers" => {
            "The API server must reach port 8443 of the control plane's pods: on private clusters the nodes' firewall has to \
             let it. `kubectl get mutatingwebhookconfiguration mesh-injector -o yaml` shows what is called."
        }
        "webhook.certificate-expiry" => {
            "The control plane makes and renews this certificate itself, well before its end; it needs the right to write its \
             webhook configurations."
        }
        "observe.answers" => {
            "`kubectl get apiservice v1alpha1.observe.meshctl.dev` says why the API server does not get through; traffic is not \
             touched."
        }
        "identity.issuer-expiry" | "identity.anchors-valid" => {
            "`meshctl identity` shows the ends. Without a valid issuer no proxy gets or renews a certificate; those there are \
             last up to a day. [CERTIFICATES.md](../control/CERTIFICATES.md) has the way out."
        }
        "identity.rotation" => {
            "A rotation that was interrupted harms nobody: two anchors are trusted meanwhile. `meshctl identity rotate` goes on \
             with it. [CERTIFICATES.md](../control/CERTIFICATES.md#replace-the-trust-anchor) says what its phases are."
        }
        "permissions.use" => {
            "A refused `stat` or `tap` prints the `kubectl create rolebinding` that grants what is missing."
        }
        "clock.agree" => {
            "Certificates are valid from five minutes before they are made: clocks further apart make good ones look bad."
        }
        "definitions.current" => {
            "`meshctl upgrade --diff` shows how they differ, `meshctl upgrade --apply` brings this release's."
        }
        "proxy.certificate-expiry" => {
            "Its log says what the control plane answered. At its certificate's end a proxy loses its connections to others."
        }
        "proxy.endpoints" => {
            "`meshctl diagnostics endpoints deploy/web -n shop` shows them: `stale` ones cost a try, `missing` ones get no requests."
        }
        "pods.injected" => "`meshctl explain pod POD -n shop` says of each why it has none.",
        "proxy.ready" => "A proxy without a certificate is not ready: its log says what the control plane answered.",
        "proxy.connected" => {
            "Such a proxy goes on with what it knows, and hears of no change. NetworkPolicies must let pods reach port 8086 of \
             the control plane."
        }
        "proxy.sense" => "The figures are left out of every view until they make sense again.",
        "routes.kinds" => "Nothing else needs them: the mesh works without routes.",
        "routes.accepted" | "policies.accepted" => {
            "`meshctl lint -A` finds more of the kind, also in files before they are applied."
        }
        _ => "",
    }
}

/// The page, in Markdown.
fn page() -> String {
    let mut page = HEAD.to_owned();
    for error in MeshError::ALL {
        let (code, http, grpc) = (error.code(), error.http_status(), error.grpc_status());
        let (cause, cure) = (error.cause(), error.cure());
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "\n### {code}\n\nHTTP {http}, gRPC {grpc}. {cause}.\n\n{cure}.{}\n",
            after(error_note(*error))
        );
    }
    page.push_str(
        "\n## Checks\n\nWhat `meshctl check` looks at, by id; [CHECKS.md](CHECKS.md) has the table. What it prints names the object \
         and a command\nthat mends it; `meshctl check --only ID` asks one again.\n",
    );
    let first = (REACHABLE, REACHABLE_WHAT, Severity::Error);
    let all = CHECKS.iter().map(|check| (check.id, check.what, check.severity));
    for (id, what, severity) in std::iter::once(first).chain(all) {
        let kind = match severity {
            Severity::Error => "Error",
            Severity::Warning => "Warning",
        };
        let _ = write!(page, "\n### {id}\n\n{kind} unless {what}.{}\n", after(check_note(id)));
    }
    page
}

/// A note as it follows a sentence.
fn after(note: &str) -> String {
    if note.is_empty() { String::new() } else { format!(" {note}") }
}

#[test]
fn the_committed_page_is_that_of_errors_and_checks() {
    let path = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("TROUBLESHOOTING.md");
    let page = page();
    if std::env::var_os("MESH_UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(committed, page, "run with MESH_UPDATE=1 to write TROUBLESHOOTING.md anew");
}

#[test]
fn notes_are_about_checks_that_there_are() {
    // The notes' ids stand in this file and nowhere else.
    let source = include_str!("troubleshooting.rs");
    let (_, notes) = source.split_once("fn check_note").unwrap();
    let (notes, _) = notes.split_once("_ => \"\"").unwrap();
    let arms =
        notes.lines().filter_map(|line| line.trim_start().starts_with('"').then(|| line.split_once(" => ")).flatten());
    let ids: Vec<&str> = arms.flat_map(|(ids, _)| ids.trim().split(" | ")).map(|id| id.trim_matches('"')).collect();
    assert!(ids.len() > 10, "{ids:?}");
    for id in ids {
        assert!(id == REACHABLE || CHECKS.iter().any(|check| check.id == id), "no check `{id}`");
    }
}
