//! Every way a pod can be injected, skipped or refused.

use super::*;
use serde_json::json;

fn config() -> MeshConfig {
    MeshConfig {
        trust_anchors_pem: "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n".to_owned(),
        version: "0.1.0".to_owned(),
        ..MeshConfig::default()
    }
}

fn pod(annotations: Value, spec: Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "web-1", "labels": { "app": "web" }, "annotations": annotations },
        "spec": { "containers": [{ "name": "web", "image": "shop/web:1", "ports": [{ "containerPort": 8080 }] }] },
    });
    if let (Some(to), Value::Object(from)) = (pod["spec"].as_object_mut(), spec) {
        to.extend(from);
    }
    pod
}

fn enabled() -> Value {
    json!({ "meshctl.dev/inject": "enabled" })
}

fn namespace(annotations: Value, labels: Value) -> Value {
    json!({ "metadata": { "name": "shop", "annotations": annotations, "labels": labels } })
}

fn inject(pod: &Value) -> Value {
    match decide(pod, &Value::Null, &config()) {
        Decision::Inject(pod) => pod,
        other => panic!("not injected: {other:?}"),
    }
}

fn with(name: &str, value: &str) -> Value {
    json!({ "meshctl.dev/inject": "enabled", name: value })
}

#[test]
fn an_injected_pod() {
    let spec = json!({
        "initContainers": [{ "name": "migrate", "image": "shop/migrate:1" }],
        "volumes": [{ "name": "data", "emptyDir": {} }],
        "serviceAccountName": "web",
    });
    insta::assert_snapshot!(crate::yaml::to_yaml(&[inject(&pod(enabled(), spec))]).unwrap());
}

#[test]
fn injecting_again_changes_nothing() {
    for annotations in [enabled(), with("meshctl.dev/native-sidecar", "false")] {
        let once = inject(&pod(annotations, json!({})));
        assert_eq!(decide(&once, &Value::Null, &config()), Decision::Skip(Skip::AlreadyInjected));
    }
}

#[test]
fn without_native_sidecars_the_proxy_is_the_first_container() {
    let spec = json!({ "initContainers": [{ "name": "migrate" }], "restartPolicy": "Never" });
    let pod_for = |annotations: Value, minor: Option<u32>| {
        let config = config().settled(minor);
        match decide(&pod(annotations, spec.clone()), &Value::Null, &config) {
            Decision::Inject(pod) => pod,
            other => panic!("not injected: {other:?}"),
        }
    };
    let names = |pod: &Value, list: &str| -> Vec<String> {
        items(&pod["spec"][list]).filter_map(|c| Some(c["name"].as_str()?.to_owned())).collect()
    };
    for (annotations, minor, native) in [
        (enabled(), None, true),
        (enabled(), Some(29), true),
        (enabled(), Some(28), false),
        (with("meshctl.dev/native-sidecar", "true"), Some(28), true),
        (with("meshctl.dev/native-sidecar", "false"), Some(34), false),
    ] {
        let pod = pod_for(annotations, minor);
        let (init, containers) = (names(&pod, "initContainers"), names(&pod, "containers"));
        match native {
            true => assert_eq!(
                (init.join(" "), containers.join(" ")),
                ("mesh-redirect mesh-proxy migrate".into(), "web".into())
            ),
            false => assert_eq!(
                (init.join(" "), containers.join(" ")),
                ("migrate mesh-redirect".into(), "mesh-proxy web".into())
            ),
        }
    }
    let pod = pod_for(enabled(), Some(28));
    let proxy = &pod["spec"]["containers"][0];
    assert_eq!(proxy["restartPolicy"], Value::Null);
    let hook = &proxy["lifecycle"]["postStart"]["exec"]["command"];
    assert_eq!(*hook, json!(["/usr/local/bin/mesh-proxy", "await", "--timeout", "120s"]));
    assert!(items(&proxy["env"]).any(|e| e["name"] == "MESH_OUTLIVE_APPLICATION" && e["value"] == "true"));
    assert!(proxy["startupProbe"].is_object() && proxy["readinessProbe"].is_object());
    assert_eq!(pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"], "web");
    assert!(!pod_for(enabled(), None).to_string().contains("MESH_OUTLIVE_APPLICATION"));
}

#[test]
fn the_pod_outranks_its_namespace_and_annotations_outrank_labels() {
    let on = || json!({ "meshctl.dev/inject": "enabled" });
    let off = || json!({ "meshctl.dev/inject": "disabled" });
    let none = || json!({});
    let wish = |pod_annotations, pod_labels, ns_annotations, ns_labels| {
        let mut pod = pod(pod_annotations, json!({}));
        pod["metadata"]["labels"] = pod_labels;
        match decide(&pod, &namespace(ns_annotations, ns_labels), &config()) {
            Decision::Inject(_) => "inject",
            Decision::Skip(why) => why.code(),
            Decision::Refuse(_) => "refuse",
        }
    };
    assert_eq!(wish(none(), none(), none(), none()), "not-enabled");
    assert_eq!(wish(none(), none(), none(), on()), "inject");
    assert_eq!(wish(none(), none(), on(), off()), "inject");
    assert_eq!(wish(none(), on(), off(), none()), "inject");
    assert_eq!(wish(off(), on(), on(), on()), "disabled");
    assert_eq!(wish(on(), off(), off(), off()), "inject");
    assert_eq!(wish(none(), off(), on(), none()), "disabled");
    // What is outranked is not looked at, even if it means nothing.
    assert_eq!(wish(on(), none(), json!({ "meshctl.dev/inject": "maybe" }), none()), "inject");
}

#[test]
fn what_cannot_have_a_proxy_is_skipped_with_the_reason() {
    for (spec, why) in [
        (json!({ "hostNetwork": true }), Skip::HostNetwork),
        (json!({ "os": { "name": "windows" } }), Skip::NotLinux),
        (json!({ "containers": [{ "name": "mesh-proxy" }] }), Skip::AlreadyInjected),
        (json!({ "initContainers": [{ "name": "mesh-proxy" }] }), Skip::AlreadyInjected),
    ] {
        assert_eq!(decide(&pod(enabled(), spec), &Value::Null, &config()), Decision::Skip(why));
    }
    let off = pod(json!({ "meshctl.dev/inject": "disabled" }), json!({}));
    assert_eq!(decide(&off, &Value::Null, &config()), Decision::Skip(Skip::Disabled(Holder::Pod)));
}

#[test]
fn a_value_that_means_nothing_is_refused_by_name() {
    let long = "meshctl.dev/proxy-memory-request";
    for (name, value, expect) in [
        ("meshctl.dev/inject", "yes", "write `enabled` or `disabled`"),
        ("meshctl.dev/inject", "", "write `enabled` or `disabled`"),
        ("meshctl.dev/skip-inbound-ports", "22,http", "`http` is not a port"),
        ("meshctl.dev/skip-outbound-ports", "70000", "`70000` is not a port"),
        ("meshctl.dev/opaque-ports", "9-1", "`9-1` is not a port"),
        ("meshctl.dev/proxy-log-level", "loud", "write levels like `info`"),
        ("meshctl.dev/proxy-log-level", "mesh proxy=info", "write levels like `info`"),
        ("meshctl.dev/proxy-cpu-request", "many", "`many` is not a quantity"),
        ("meshctl.dev/proxy-cpu-limit", "-1", "`-1` is not a quantity"),
        (long, "64MB", "`64MB` is not a quantity"),
        ("meshctl.dev/proxy-memory-limit", "", "is not a quantity"),
        ("meshctl.dev/proxy-image", "my proxy", "write an image reference"),
        ("meshctl.dev/proxy-drain-timeout", "10", "`10` is not a duration"),
        ("meshctl.dev/native-sidecar", "auto", "write `true` or `false`"),
        ("meshctl.dev/proxy-access-log", "xml", "write `json`, `apache` or `off`"),
        ("meshctl.dev/proxy-otlp-endpoint", "otel:4317", "http://HOST:4318"),
        ("meshctl.dev/proxy-trace-ratio", "2", "a number from 0 to 1"),
    ] {
        let Decision::Refuse(why) = decide(&pod(with(name, value), json!({})), &Value::Null, &config()) else {
            panic!("{name}: {value} was not refused");
        };
        let text = why.to_string();
        assert!(text.starts_with(&format!("{name}: `{value}` on the pod is not allowed: ")), "{text}");
        assert!(text.contains(expect), "{text}");
    }
}

#[test]
fn a_namespace_gives_settings_and_its_slips_are_named() {
    let on_namespace = |name: &str, value: &str| namespace(with(name, value), json!({}));
    let bare = pod(json!({}), json!({}));
    let Decision::Refuse(why) = decide(&bare, &on_namespace("meshctl.dev/opaque-ports", "x"), &config()) else {
        panic!("not refused");
    };
    assert!(why.to_string().contains("on the namespace"), "{why}");
    let Decision::Inject(pod) = decide(&bare, &on_namespace("meshctl.dev/proxy-log-level", "debug"), &config()) else {
        panic!("not injected");
    };
    assert_eq!(environment_of(&pod, "MESH_LOG"), "debug");
}

fn environment_of<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let all = items(&pod["spec"]["initContainers"][1]["env"]);
    all.filter(|e| e["name"] == name).map(|e| &e["value"]).next().unwrap_or(&Value::Null)
}

#[test]
fn annotations_set_the_proxy() {
    let annotations = json!({
        "meshctl.dev/inject": "enabled",
        "meshctl.dev/skip-inbound-ports": "22, 8000-8010",
        "meshctl.dev/skip-outbound-ports": "25",
        "meshctl.dev/proxy-log-level": "warn,mesh_proxy=trace",
        "meshctl.dev/proxy-cpu-request": "1",
        "meshctl.dev/proxy-cpu-limit": "2",
        "meshctl.dev/proxy-memory-request": "1Gi",
        "meshctl.dev/proxy-image": "registry.example.org:5000/proxy@sha256:abc",
        "meshctl.dev/proxy-drain-timeout": "5s",
    });
    let pod = inject(&pod(annotations, json!({})));
    let [redirect, proxy] = pod["spec"]["initContainers"].as_array().unwrap().as_slice() else {
        panic!("two containers expected")
    };
    let args: Vec<_> = items(&redirect["args"]).filter_map(Value::as_str).collect();
    assert_eq!(
        args.join(" "),
        "redirect --proxy-uid 2102 --outbound-port 4140 --inbound-port 4143 \
        --skip-inbound-ports 22,4191,8000-8010 --skip-outbound-ports 25"
    );
    assert_eq!(redirect["image"], "registry.example.org:5000/proxy@sha256:abc");
    assert_eq!(proxy["image"], redirect["image"]);
    // The default limit gives way to a request the user wrote.
    assert_eq!(
        proxy["resources"],
        json!({ "requests": { "cpu": "1", "memory": "1Gi" }, "limits": { "cpu": "2", "memory": "1Gi" } })
    );
    assert_eq!(environment_of(&pod, "MESH_LOG"), "warn,mesh_proxy=trace");
    assert_eq!(environment_of(&pod, "MESH_DRAIN_TIMEOUT"), "5s");
}

#[test]
fn spans_are_asked_for_by_annotation() {
    let pod = inject(&pod(with("meshctl.dev/proxy-otlp-endpoint", "http://otel.obs:4318"), json!({})));
    assert_eq!(environment_of(&pod, "MESH_OTLP_ENDPOINT"), "http://otel.obs:4318");
    assert_eq!(environment_of(&pod, "MESH_TRACE_RATIO"), &Value::Null);
}

#[test]
fn the_access_log_is_asked_for_by_annotation() {
    for (form, expect) in [("json", json!("json")), ("apache", json!("apache")), ("off", Value::Null)] {
        let pod = inject(&pod(with("meshctl.dev/proxy-access-log", form), json!({})));
        assert_eq!(environment_of(&pod, "MESH_ACCESS_LOG"), &expect, "{form}");
    }
}

#[test]
fn in_cni_mode_the_pod_needs_no_privilege() {
    let config = MeshConfig { cni_enabled: true, ..config() };
    let annotated = pod(with("meshctl.dev/skip-outbound-ports", "25"), json!({}));
    let Decision::Inject(injected) = decide(&annotated, &Value::Null, &config) else { panic!("not injected") };
    let check = &injected["spec"]["initContainers"][0];
    let args: Vec<_> = items(&check["args"]).filter_map(Value::as_str).collect();
    assert_eq!(
        args.join(" "),
        "redirect --check --proxy-uid 2102 --outbound-port 4140 --inbound-port 4143 \
        --skip-inbound-ports 4191 --skip-outbound-ports 25"
    );
    for container in items(&injected["spec"]["initContainers"]) {
        // Pod Security `restricted`, v1.35: capabilities, privilege, user, seccomp.
        let context = &container["securityContext"];
        assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }), "{container}");
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["runAsNonRoot"], true);
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
    }
    // Whoever checks must be redirected, and the proxy is not.
    assert_eq!(check["securityContext"]["runAsUser"], names::CHECK_UID);
    assert_ne!(names::CHECK_UID, names::PROXY_UID);
}

#[test]
fn pull_secrets_are_named_beside_the_pods_own() {
    let config = MeshConfig { image_pull_secrets: vec!["own".to_owned(), "registry".to_owned()], ..config() };
    for (own, expect) in
        [(json!([]), json!(["own", "registry"])), (json!([{ "name": "own" }]), json!(["own", "registry"]))]
    {
        let pod = pod(enabled(), json!({ "imagePullSecrets": own }));
        let Decision::Inject(injected) = decide(&pod, &Value::Null, &config) else { panic!("not injected") };
        let names: Vec<&Value> = items(&injected["spec"]["imagePullSecrets"]).map(|secret| &secret["name"]).collect();
        assert_eq!(json!(names), expect);
    }
    assert_eq!(inject(&pod(enabled(), json!({})))["spec"]["imagePullSecrets"], Value::Null);
}

#[test]
fn a_request_above_its_written_limit_is_refused() {
    let annotations = json!({
        "meshctl.dev/inject": "enabled",
        "meshctl.dev/proxy-cpu-request": "2",
        "meshctl.dev/proxy-cpu-limit": "100m",
    });
    let Decision::Refuse(why) = decide(&pod(annotations, json!({})), &Value::Null, &config()) else {
        panic!("not refused");
    };
    assert!(why.to_string().contains("it is above meshctl.dev/proxy-cpu-limit: `100m`"), "{why}");
}

#[test]
fn the_drain_ends_before_the_pod_is_killed() {
    for (grace, annotation, expect) in [
        (json!(60), None, "30s"),
        (Value::Null, None, "29s"),
        (json!(10), None, "9s"),
        (json!(10), Some("1m"), "9s"),
        (json!(90), Some("1m"), "60s"),
        (json!(0), None, "0s"),
    ] {
        let mut annotations = enabled();
        if let Some(text) = annotation {
            annotations["meshctl.dev/proxy-drain-timeout"] = json!(text);
        }
        let pod = inject(&pod(annotations, json!({ "terminationGracePeriodSeconds": grace })));
        assert_eq!(environment_of(&pod, "MESH_DRAIN_TIMEOUT"), expect, "{grace}");
    }
}

#[test]
fn a_pod_that_uses_the_proxys_ports_or_volume_is_refused() {
    let taken = json!({ "containers": [{ "name": "web", "ports": [{ "containerPort": 4191 }] }] });
    let refused = decide(&pod(enabled(), taken), &Value::Null, &config());
    assert_eq!(refused, Decision::Refuse(Refusal::PortTaken { container: "web".to_owned(), port: 4191 }));
    let udp = json!({ "containers": [{ "name": "w", "ports": [{ "containerPort": 4191, "protocol": "UDP" }] }] });
    inject(&pod(enabled(), udp));
    let volume = json!({ "volumes": [{ "name": "mesh-identity-token" }] });
    let refused = decide(&pod(enabled(), volume), &Value::Null, &config());
    assert_eq!(refused, Decision::Refuse(Refusal::VolumeTaken("mesh-identity-token")));
}

#[test]
fn bare_and_odd_pods_do_not_panic() {
    for pod in [
        json!({}),
        json!(null),
        json!([1]),
        json!({ "metadata": null, "spec": null }),
        json!({ "metadata": { "annotations": [], "labels": 3 }, "spec": { "containers": {} } }),
    ] {
        assert_eq!(decide(&pod, &Value::Null, &config()), Decision::Skip(Skip::NotEnabled));
    }
    let bare = json!({ "metadata": {}, "spec": {} });
    let Decision::Inject(pod) = decide(&bare, &namespace(enabled(), json!({})), &config()) else {
        panic!("not injected");
    };
    assert_eq!(pod["metadata"]["annotations"]["meshctl.dev/proxy-version"], "0.1.0");
    assert_eq!(pod["spec"]["volumes"].as_array().map(Vec::len), Some(1));
}

#[test]
fn misspelt_annotations_are_worth_a_warning() {
    let metadata = json!({ "annotations": {
        "meshctl.dev/skip-inbound-port": "22",
        "meshctl.dev/inject": "enabled",
        "meshctl.dev/proxy-version": "0.1.0",
        "example.org/skip": "x",
    } });
    assert_eq!(
        crate::settings::warnings(&metadata),
        ["the annotation meshctl.dev/skip-inbound-port is unknown and ignored; \
          did you mean meshctl.dev/skip-inbound-ports?"]
    );
}
