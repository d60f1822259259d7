//! As whom a container runs: its security context over its pod's, and what of it can be had without root.

use super::spawner::{ALL_CAPABILITIES, Credentials, capabilities, capability};
use k8s_openapi::api::core::v1::{Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext};

/// What a user's entry in the host's `/etc/passwd` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Account {
    gid: u32,
    home: String,
}

/// Finds a user in the text of `/etc/passwd`.
pub(super) fn account(passwd: &str, uid: u32) -> Option<Account> {
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, id, gid, _, home, ..] = fields.as_slice() else { return None };
        (id.parse() == Ok(uid)).then(|| gid.parse().ok())?.map(|gid| Account { gid, home: (*home).to_owned() })
    })
}

/// What a container may do and where its home is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) credentials: Credentials,
    pub(super) home: String,
    pub(super) privileged: bool,
    pub(super) read_only: bool,
}

/// The identity of a container; an error is the pod's fault and says so.
///
/// Without root there is one user. A container of another user gets a user namespace of its own in which that one user
/// goes by the wanted number; only the mesh's proxy stays in the node's, because it marks its sockets and needs
/// privileges over the pod's network for that.
pub(super) fn identity(pod: &Pod, container: &Container, passwd: &str, rootless: bool) -> Result<Identity, String> {
    let (no_pod, no_own) = (PodSecurityContext::default(), SecurityContext::default());
    let shared = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()).unwrap_or(&no_pod);
    let own = container.security_context.as_ref().unwrap_or(&no_own);
    let privileged = own.privileged == Some(true);
    let number = |value: Option<i64>, what: &str| {
        value
            .map(|v| u32::try_from(v).map_err(|_| format!("{what} {v} is not a number for a user or group")))
            .transpose()
    };
    let uid = number(own.run_as_user.or(shared.run_as_user), "runAsUser")?.unwrap_or(0);
    let account = account(passwd, uid);
    let gid = number(own.run_as_group.or(shared.run_as_group), "runAsGroup")?
        .unwrap_or_else(|| account.as_ref().map_or(0, |account| account.gid));
    if uid == 0 && own.run_as_non_root.or(shared.run_as_non_root) == Some(true) {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        return Err(format!(
            "container has runAsNonRoot and image will run as root (pod: \"{name}\", container: {})",
            container.name
        ));
    }
    let none = Vec::new();
    let caps = own.capabilities.as_ref();
    let list = |list: Option<&Option<Vec<String>>>| list.and_then(Option::as_ref).unwrap_or(&none).clone();
    let mut allowed = capabilities(&list(caps.map(|c| &c.drop)), &list(caps.map(|c| &c.add)))
        .map_err(|name| format!("unknown capability {name:?}"))?;
    if privileged {
        allowed = ALL_CAPABILITIES;
    }
    let mut groups: Vec<u32> = Vec::new();
    for group in shared.supplemental_groups.iter().flatten().chain(&shared.fs_group) {
        groups.push(u32::try_from(*group).map_err(|_| format!("{group} is not a number for a group"))?);
    }
    let runtime_default = |profile: &SeccompProfile| profile.type_ == "RuntimeDefault";
    let seccomp = own.seccomp_profile.as_ref().or(shared.seccomp_profile.as_ref()).is_some_and(runtime_default);
    let mut credentials = Credentials {
        uid,
        gid,
        groups: Some(groups),
        capabilities: allowed,
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        seccomp: seccomp && !privileged,
        own_user_namespace: false,
    };
    if rootless {
        credentials.groups = None;
        if uid == mesh_api::names::PROXY_UID {
            let network =
                ["NET_ADMIN", "NET_RAW"].iter().filter_map(|name| capability(name)).fold(0, |all, bit| all | bit);
            (credentials.uid, credentials.gid) = (0, 0);
            credentials.capabilities |= network;
        } else if (uid, gid) != (0, 0) {
            credentials.own_user_namespace = true;
        }
    }
    let home = account.map_or_else(|| "/".to_owned(), |account| account.home);
    Ok(Identity { credentials, home, privileged, read_only: own.read_only_root_filesystem == Some(true) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/sh\n";

    fn identity_of(pod: Value, own: Value, rootless: bool) -> Result<Identity, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"securityContext": pod, "containers": [{"name": "c", "securityContext": own}]},
        }))
        .unwrap();
        identity(&pod, &pod.spec.as_ref().unwrap().containers[0], PASSWD, rootless)
    }

    #[test]
    fn contexts_combine() {
        let plain = identity_of(json!({}), json!({}), false).unwrap();
        assert_eq!((plain.credentials.uid, plain.credentials.gid, plain.home.as_str()), (0, 0, "/root"));
        let user = identity_of(
            json!({"runAsUser": 5, "fsGroup": 9, "supplementalGroups": [7]}),
            json!({"runAsUser": 101, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true}),
            false,
        )
        .unwrap();
        assert_eq!((user.credentials.uid, user.credentials.gid, user.home.as_str()), (101, 104, "/var/lib/postgresql"));
        assert_eq!(user.credentials.groups, Some(vec![7, 9]));
        assert!(user.credentials.no_new_privileges && user.read_only && !user.credentials.own_user_namespace);
        let privileged = identity_of(json!({}), json!({"privileged": true}), false).unwrap();
        assert_eq!(privileged.credentials.capabilities, ALL_CAPABILITIES);
        assert!(identity_of(json!({"runAsNonRoot": true}), json!({}), false).unwrap_err().contains("runAsNonRoot"));
        assert!(identity_of(json!({}), json!({"capabilities": {"add": ["FLY"]}}), false).unwrap_err().contains("FLY"));
        assert!(identity_of(json!({"runAsUser": -1}), json!({}), false).is_err());
    }

    #[test]
    fn without_root_users_are_named_not_had() {
        let user = identity_of(json!({"runAsUser": 101}), json!({}), true).unwrap().credentials;
        assert!(user.own_user_namespace && user.groups.is_none());
        assert_eq!((user.uid, user.gid), (101, 104));
        let drop_all = json!({"runAsUser": 2102, "capabilities": {"drop": ["ALL"]}});
        let proxy = identity_of(json!({}), drop_all, true).unwrap().credentials;
        assert!(!proxy.own_user_namespace);
        assert_eq!((proxy.uid, proxy.capabilities), (0, 1 << 12 | 1 << 13));
    }
}
