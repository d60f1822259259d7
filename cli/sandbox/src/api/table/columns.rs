//! The columns kubectl's users know, kind by kind.

use super::{
    Column, age, condition, containers, count, fraction, job_duration, job_status, joined, moment, name, narrow,
    node_status, number, or, pairs, plain, pods, selector, service_ports, size, subjects, subsets, text, wide,
};
use serde_json::Value;

/// The columns of a built-in kind; what has none of its own shows name and age.
pub(super) fn of(group: &str, kind: &str) -> Vec<Column> {
    match (group, kind) {
        ("", "Pod") => pods::COLUMNS.to_vec(),
        ("apps", "Deployment") => vec![
            narrow("Name", name),
            narrow("Ready", |o, _| fraction(&o["status"]["readyReplicas"], &o["spec"]["replicas"])),
            narrow("Up-to-date", |o, _| number(&o["status"]["updatedReplicas"])),
            narrow("Available", |o, _| number(&o["status"]["availableReplicas"])),
            narrow("Age", age),
            wide("Containers", |o, _| containers(&o["spec"]["template"]["spec"], "name")),
            wide("Images", |o, _| containers(&o["spec"]["template"]["spec"], "image")),
            wide("Selector", |o, _| selector(&o["spec"]["selector"])),
        ],
        ("apps", "ReplicaSet") => vec![
            narrow("Name", name),
            narrow("Desired", |o, _| number(&o["spec"]["replicas"])),
            narrow("Current", |o, _| number(&o["status"]["replicas"])),
            narrow("Ready", |o, _| number(&o["status"]["readyReplicas"])),
            narrow("Age", age),
            wide("Containers", |o, _| containers(&o["spec"]["template"]["spec"], "name")),
            wide("Images", |o, _| containers(&o["spec"]["template"]["spec"], "image")),
            wide("Selector", |o, _| selector(&o["spec"]["selector"])),
        ],
        ("apps", "StatefulSet") => vec![
            narrow("Name", name),
            narrow("Ready", |o, _| fraction(&o["status"]["readyReplicas"], &o["spec"]["replicas"])),
            narrow("Age", age),
            wide("Containers", |o, _| containers(&o["spec"]["template"]["spec"], "name")),
            wide("Images", |o, _| containers(&o["spec"]["template"]["spec"], "image")),
        ],
        ("apps", "DaemonSet") => vec![
            narrow("Name", name),
            narrow("Desired", |o, _| number(&o["status"]["desiredNumberScheduled"])),
            narrow("Current", |o, _| number(&o["status"]["currentNumberScheduled"])),
            narrow("Ready", |o, _| number(&o["status"]["numberReady"])),
            narrow("Up-to-date", |o, _| number(&o["status"]["updatedNumberScheduled"])),
            narrow("Available", |o, _| number(&o["status"]["numberAvailable"])),
            narrow("Node Selector", |o, _| pairs(&o["spec"]["template"]["spec"]["nodeSelector"])),
            narrow("Age", age),
            wide("Containers", |o, _| containers(&o["spec"]["template"]["spec"], "name")),
            wide("Images", |o, _| containers(&o["spec"]["template"]["spec"], "image")),
            wide("Selector", |o, _| selector(&o["spec"]["selector"])),
        ],
        ("", "Service") => vec![
            narrow("Name", name),
            narrow("Type", |o, _| text(&o["spec"]["type"])),
            narrow("Cluster-IP", |o, _| text(&o["spec"]["clusterIP"])),
            narrow("External-IP", |o, _| {
                if o["spec"]["type"] == "ExternalName" { text(&o["spec"]["externalName"]) } else { "<none>".into() }
            }),
            narrow("Port(s)", |o, _| service_ports(&o["spec"]["ports"])),
            narrow("Age", age),
            wide("Selector", |o, _| pairs(&o["spec"]["selector"])),
        ],
        ("", "Endpoints") => {
            vec![narrow("Name", name), narrow("Endpoints", |o, _| subsets(&o["subsets"])), narrow("Age", age)]
        }
        ("discovery.k8s.io", "EndpointSlice") => vec![
            narrow("Name", name),
            narrow("AddressType", |o, _| text(&o["addressType"])),
            narrow("Ports", |o, _| joined(&o["ports"], |port| port["port"].to_string())),
            narrow("Endpoints", |o, _| joined(&o["endpoints"], |e| plain(&e["addresses"][0]))),
            narrow("Age", age),
        ],
        ("", "Node") => vec![
            narrow("Name", name),
            narrow("Status", |o, _| node_status(o)),
            narrow("Roles", |_, _| "control-plane".into()),
            narrow("Age", age),
            narrow("Version", |o, _| text(&o["status"]["nodeInfo"]["kubeletVersion"])),
            wide("Internal-IP", |o, _| text(&o["status"]["addresses"][0]["address"])),
            wide("External-IP", |_, _| "<none>".into()),
            wide("OS-Image", |o, _| text(&o["status"]["nodeInfo"]["osImage"])),
            wide("Kernel-Version", |o, _| text(&o["status"]["nodeInfo"]["kernelVersion"])),
            wide("Container-Runtime", |o, _| text(&o["status"]["nodeInfo"]["containerRuntimeVersion"])),
        ],
        ("", "Namespace") => {
            vec![narrow("Name", name), narrow("Status", |o, _| text(&o["status"]["phase"])), narrow("Age", age)]
        }
        ("batch", "Job") => vec![
            narrow("Name", name),
            narrow("Status", |o, _| job_status(o)),
            narrow("Completions", |o, _| fraction(&o["status"]["succeeded"], &o["spec"]["completions"])),
            narrow("Duration", job_duration),
            narrow("Age", age),
            wide("Containers", |o, _| containers(&o["spec"]["template"]["spec"], "name")),
            wide("Images", |o, _| containers(&o["spec"]["template"]["spec"], "image")),
        ],
        ("batch", "CronJob") => vec![
            narrow("Name", name),
            narrow("Schedule", |o, _| text(&o["spec"]["schedule"])),
            narrow("Timezone", |o, _| text(&o["spec"]["timeZone"])),
            narrow("Suspend", |o, _| if o["spec"]["suspend"] == true { "True" } else { "False" }.into()),
            narrow("Active", |o, _| count(&o["status"]["active"])),
            narrow("Last Schedule", |o, now| moment(&o["status"]["lastScheduleTime"], now)),
            narrow("Age", age),
        ],
        ("", "ConfigMap") => vec![
            narrow("Name", name),
            narrow("Data", |o, _| (size(&o["data"]) + size(&o["binaryData"])).into()),
            narrow("Age", age),
        ],
        ("", "Secret") => vec![
            narrow("Name", name),
            narrow("Type", |o, _| text(&o["type"])),
            narrow("Data", |o, _| size(&o["data"]).into()),
            narrow("Age", age),
        ],
        ("", "ServiceAccount") => {
            vec![narrow("Name", name), narrow("Secrets", |o, _| count(&o["secrets"])), narrow("Age", age)]
        }
        ("" | "events.k8s.io", "Event") => vec![
            narrow("Last Seen", |o, now| {
                let seen = ["lastTimestamp", "deprecatedLastTimestamp", "eventTime"]
                    .iter()
                    .map(|f| &o[*f])
                    .find(|v| v.is_string());
                moment(seen.unwrap_or(&o["metadata"]["creationTimestamp"]), now)
            }),
            narrow("Type", |o, _| text(&o["type"])),
            narrow("Reason", |o, _| text(&o["reason"])),
            narrow("Object", |o, _| {
                let about = if o["involvedObject"].is_object() { &o["involvedObject"] } else { &o["regarding"] };
                format!("{}/{}", plain(&about["kind"]).to_lowercase(), plain(&about["name"])).into()
            }),
            wide("Source", |o, _| text(&o["source"]["component"])),
            narrow("Message", |o, _| {
                let message = if o["message"].is_string() { &o["message"] } else { &o["note"] };
                plain(message).trim().into()
            }),
            wide("Count", |o, _| number(&o["count"])),
            wide("Name", name),
        ],
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            vec![narrow("Name", name), narrow("Created At", |o, _| text(&o["metadata"]["creationTimestamp"]))]
        }
        ("rbac.authorization.k8s.io", "RoleBinding" | "ClusterRoleBinding") => vec![
            narrow("Name", name),
            narrow("Role", |o, _| format!("{}/{}", plain(&o["roleRef"]["kind"]), plain(&o["roleRef"]["name"])).into()),
            narrow("Age", age),
            wide("Users", |o, _| subjects(o, "User")),
            wide("Groups", |o, _| subjects(o, "Group")),
            wide("ServiceAccounts", |o, _| subjects(o, "ServiceAccount")),
        ],
        ("apiextensions.k8s.io", _) => {
            vec![narrow("Name", name), narrow("Created At", |o, _| text(&o["metadata"]["creationTimestamp"]))]
        }
        ("apiregistration.k8s.io", _) => vec![
            narrow("Name", name),
            narrow("Service", |o, _| match &o["spec"]["service"] {
                Value::Object(service) => {
                    format!("{}/{}", plain(&service["namespace"]), plain(&service["name"])).into()
                }
                _ => "Local".into(),
            }),
            narrow("Available", |o, _| {
                condition(o, "Available").map_or("Unknown".into(), |c| {
                    if c["status"] == "True" {
                        "True".into()
                    } else {
                        format!("{} ({})", plain(&c["status"]), plain(&c["reason"])).into()
                    }
                })
            }),
            narrow("Age", age),
        ],
        ("coordination.k8s.io", "Lease") => {
            vec![narrow("Name", name), narrow("Holder", |o, _| text(&o["spec"]["holderIdentity"])), narrow("Age", age)]
        }
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration") => {
            vec![narrow("Name", name), narrow("Webhooks", |o, _| count(&o["webhooks"])), narrow("Age", age)]
        }
        ("policy", "PodDisruptionBudget") => vec![
            narrow("Name", name),
            narrow("Min Available", |o, _| or(&o["spec"]["minAvailable"], "N/A")),
            narrow("Max Unavailable", |o, _| or(&o["spec"]["maxUnavailable"], "N/A")),
            narrow("Allowed Disruptions", |o, _| number(&o["status"]["disruptionsAllowed"])),
            narrow("Age", age),
        ],
        ("networking.k8s.io", "Ingress") => vec![
            narrow("Name", name),
            narrow("Class", |o, _| text(&o["spec"]["ingressClassName"])),
            narrow("Hosts", |o, _| {
                joined(
                    &o["spec"]["rules"],
                    |rule| if rule["host"].is_string() { plain(&rule["host"]) } else { "*".into() },
                )
            }),
            narrow("Address", |o, _| {
                let given =
                    joined(&o["status"]["loadBalancer"]["ingress"], |a| plain(&a["ip"]) + &plain(&a["hostname"]));
                if given == "<unset>" { "".into() } else { given }
            }),
            narrow("Ports", |o, _| if count(&o["spec"]["tls"]) == 0 { "80".into() } else { "80, 443".into() }),
            narrow("Age", age),
        ],
        ("networking.k8s.io", "IngressClass") => vec![
            narrow("Name", name),
            narrow("Controller", |o, _| text(&o["spec"]["controller"])),
            narrow("Parameters", |o, _| text(&o["spec"]["parameters"]["name"])),
            narrow("Age", age),
        ],
        ("autoscaling", "HorizontalPodAutoscaler") => vec![
            narrow("Name", name),
            narrow("Reference", |o, _| {
                let target = &o["spec"]["scaleTargetRef"];
                format!("{}/{}", plain(&target["kind"]), plain(&target["name"])).into()
            }),
            narrow("MinPods", |o, _| number(&o["spec"]["minReplicas"])),
            narrow("MaxPods", |o, _| number(&o["spec"]["maxReplicas"])),
            narrow("Replicas", |o, _| number(&o["status"]["currentReplicas"])),
            narrow("Age", age),
        ],
        ("networking.k8s.io", "NetworkPolicy") => vec![
            narrow("Name", name),
            narrow("Pod-Selector", |o, _| selector(&o["spec"]["podSelector"])),
            narrow("Age", age),
        ],
        ("scheduling.k8s.io", "PriorityClass") => vec![
            narrow("Name", name),
            narrow("Value", |o, _| number(&o["value"])),
            narrow("Global-Default", |o, _| (o["globalDefault"] == true).to_string().into()),
            narrow("Age", age),
        ],
        _ => vec![narrow("Name", name), narrow("Age", age)],
    }
}
