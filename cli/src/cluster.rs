//! Which cluster is meant, and a client for it.
//!
//! The rules are kubectl's: `--kubeconfig`, else `$KUBECONFIG`, else `~/.kube/config`, else, inside a pod, its service
//! account. Connecting asks the API for its version under a deadline, so that a kubeconfig that points nowhere fails
//! at once and in one place.

use crate::args::{Global, Namespaces};
use crate::error::{Context, Error, Hint, Result};
use k8s_openapi::apimachinery::pkg::version::Info;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::Path;
use std::time::Duration;

/// How long the cluster may take to answer the first question.
pub const CONNECT_DEADLINE: Duration = Duration::from_millis(4500);

/// A cluster that answered.
#[derive(Clone)]
pub struct Cluster {
    /// The client.
    pub client: Client,
    /// The context's own namespace.
    pub namespace: String,
    /// Where the API is.
    pub server: String,
    /// Where the control plane lives.
    pub system_namespace: String,
    /// What the API said of itself.
    pub version: Info,
}

impl Cluster {
    /// Connects to the cluster that the flags mean.
    pub async fn connect(global: &Global) -> Result<Self> {
        let config = config(global).await?;
        Self::reach(config, &global.system_namespace).await
    }

    /// Connects to the cluster of a kubeconfig file.
    pub async fn connect_file(kubeconfig: &Path, system_namespace: &str) -> Result<Self> {
        let global = Global { kubeconfig: Some(kubeconfig.to_owned()), ..Default::default() };
        Self::reach(config(&global).await?, system_namespace).await
    }

    async fn reach(config: Config, system_namespace: &str) -> Result<Self> {
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).during(|| format!("make a client for {server}"))?;
        let version = match tokio::time::timeout(CONNECT_DEADLINE, client.apiserver_version()).await {
            Ok(answer) => answer.during(|| format!("reach the cluster at {server}")),
            Err(_) => Err(Error::new(format!("no answer within {:.1} s", CONNECT_DEADLINE.as_secs_f64()))
                .during(format!("reach the cluster at {server}"))),
        };
        let version = version.hint(|| {
            "check --context and $KUBECONFIG; `meshctl sandbox up` starts a local cluster, `meshctl demo` a whole mesh"
        })?;
        Ok(Self { client, namespace, server, system_namespace: system_namespace.to_owned(), version })
    }

    /// A cluster behind a service of a test.
    #[cfg(test)]
    pub(crate) fn of_client(client: Client) -> Self {
        Self {
            client,
            namespace: "default".to_owned(),
            server: "https://test".to_owned(),
            system_namespace: mesh_api::names::SYSTEM_NAMESPACE.to_owned(),
            version: Info::default(),
        }
    }

    /// The one namespace that is meant, or all of them.
    pub fn scope(&self, namespaces: &Namespaces) -> Option<String> {
        match (&namespaces.namespace, namespaces.all_namespaces) {
            (_, true) => None,
            (Some(namespace), _) => Some(namespace.clone()),
            (None, _) => Some(self.namespace.clone()),
        }
    }
}

async fn config(global: &Global) -> Result<Config> {
    let file = match &global.kubeconfig {
        Some(path) => Kubeconfig::read_from(path).during(|| "read the kubeconfig"),
        None => Kubeconfig::read().during(|| "read the kubeconfig"),
    };
    let file = file.hint(
        || "set --kubeconfig or $KUBECONFIG; `meshctl sandbox up` starts a local cluster, `meshctl demo` a whole mesh",
    );
    let mut config = match file {
        Ok(file) => from_file(file, global).await?,
        Err(error) => match Config::incluster() {
            Ok(config) if global.kubeconfig.is_none() && global.context.is_none() => config,
            _ => return Err(error),
        },
    };
    config.connect_timeout = Some(CONNECT_DEADLINE);
    if global.impersonate.is_some() {
        config.auth_info.impersonate = global.impersonate.clone();
        config.auth_info.impersonate_groups =
            (!global.impersonate_group.is_empty()).then(|| global.impersonate_group.clone());
    }
    Ok(config)
}

async fn from_file(file: Kubeconfig, global: &Global) -> Result<Config> {
    let contexts: Vec<String> = file.contexts.iter().map(|context| context.name.clone()).collect();
    let options = KubeConfigOptions { context: global.context.clone(), ..Default::default() };
    let chosen = match (&global.context, &file.current_context) {
        (Some(name), _) | (None, Some(name)) => format!("use context {name}"),
        (None, None) => "use the kubeconfig".to_owned(),
    };
    Config::from_custom_kubeconfig(file, &options).await.during(|| chosen).hint(|| match contexts.as_slice() {
        [] => "the kubeconfig has no contexts; `meshctl sandbox up` starts a local cluster".to_owned(),
        names => format!("contexts there are: {}", names.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    fn kubeconfig(server: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: here, \
             contexts: [{{name: here, context: {{cluster: c, user: u}}}}], \
             clusters: [{{name: c, cluster: {{server: '{server}'}}}}], users: [{{name: u, user: {{}}}}]}}"
        );
        std::fs::write(file.path(), text).unwrap();
        file
    }

    async fn refusal(global: Global) -> Error {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        match Cluster::connect(&global).await {
            Ok(_) => panic!("connected to nothing"),
            Err(error) => error,
        }
    }

    #[tokio::test]
    async fn a_kubeconfig_that_points_nowhere_fails_in_one_line_with_a_hint() {
        // A port nobody listens on: bound once, and let go.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = kubeconfig(&format!("https://{free}"));
        let global = Global { kubeconfig: Some(file.path().to_owned()), ..Default::default() };
        let error = refusal(global).await;
        let text = error.to_string();
        assert!(text.starts_with(&format!("cannot reach the cluster at https://{free}: ")), "{text}");
        assert!(text.to_lowercase().contains("refused"), "{text}");
        assert!(!text.contains('\n'));
        assert!(error.hint_text().is_some());
    }

    #[tokio::test]
    async fn a_cluster_that_never_answers_is_given_up_within_five_seconds() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let file = kubeconfig(&format!("http://{}", silent.local_addr().unwrap()));
        let started = Instant::now();
        let error = refusal(Global { kubeconfig: Some(file.path().to_owned()), ..Default::default() }).await;
        assert!(error.to_string().contains("no answer within"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_missing_file_and_an_unknown_context_say_so() {
        let error = refusal(Global { kubeconfig: Some("/nowhere/config".into()), ..Default::default() }).await;
        assert!(error.to_string().starts_with("cannot read the kubeconfig: /nowhere/config: "), "{error}");
        let file = kubeconfig("https://127.0.0.1:1");
        let global =
            Global { kubeconfig: Some(file.path().to_owned()), context: Some("there".into()), ..Default::default() };
        let error = refusal(global).await;
        assert!(error.to_string().starts_with("cannot use context there: "), "{error}");
        assert_eq!(error.hint_text(), Some("contexts there are: here"));
    }
}
