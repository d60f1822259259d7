//! From a container's specification to its process.

use super::addresses::Addresses;
use super::environment::{self, Subject};
use super::images::Entrypoint;
use super::registration::NODE;
use super::run::{Run, StdinMode};
use super::security::{self, Identity};
use super::spawner::{Bind, Launch, LaunchError, Namespaces, Place, View};
use super::volumes::{self, Volumes};
use super::{Node, layout, pod_files};
use k8s_openapi::api::core::v1::{Container, Pod, Service};
use kube::Api;
use kube::api::ListParams;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a container may leave a message for its status, unless it says otherwise.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// How much of it is read.
const MAX_MESSAGE: usize = 4096;
/// Where images have their programs.
const PROGRAMS: &str = "/usr/local/bin";

/// Why a container was not started: the reason shown in its status, and a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) reason: &'static str,
    pub(super) message: String,
    /// The container was made but its program did not run; counts as a run that failed.
    pub(super) ran: bool,
}

impl Refusal {
    fn config(message: impl Into<String>) -> Self {
        Self { reason: "CreateContainerConfigError", message: message.into(), ran: false }
    }
}

/// What a container is started in.
pub(super) struct Site<'a> {
    pub(super) node: &'a Arc<Node>,
    /// The pod, with what the node adds to it.
    pub(super) pod: &'a Pod,
    pub(super) folder: &'a Path,
    pub(super) volumes: &'a Volumes,
    pub(super) namespaces: Option<&'a Namespaces>,
    pub(super) addresses: Addresses,
}

impl Site<'_> {
    pub(super) fn subject(&self) -> Subject<'_> {
        subject(self.pod, self.addresses)
    }

    /// The entrypoint of a container's image.
    pub(super) fn pull(&self, container: &Container) -> Result<Entrypoint, Refusal> {
        let image = container.image.as_deref().unwrap_or_default();
        self.node.images.find(image).ok_or_else(|| Refusal {
            reason: "ErrImagePull",
            message: format!(
                "nothing on this machine goes by the name \"{image}\"; name a program: meshctl sandbox image add {image} /path/to/program"
            ),
            ran: false,
        })
    }

    /// Starts a container; `attempt` numbers its runs.
    pub(super) async fn start(
        &self,
        container: &Container,
        entrypoint: Entrypoint,
        id: String,
        attempt: i32,
    ) -> Result<Run, Refusal> {
        let rootless = self.node.config.rootless;
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        let identity = security::identity(self.pod, container, &passwd, rootless).map_err(Refusal::config)?;
        let env = self.environment(container, &identity).await?;
        let look = |name: &str| env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        let expand = |text: &str| environment::expand(text, look);
        let mut binds =
            self.volumes.binds(self.pod, container, expand).map_err(|error| Refusal::config(format!("{error:#}")))?;
        let folder = layout::container(self.folder, &container.name);
        let wrong = |error: std::io::Error| Refusal::config(format!("preparing the container's files: {error}"));
        prepare_folder(&folder, attempt).map_err(wrong)?;
        binds.extend(self.own_files(container, &folder, &entrypoint));
        let (argv, program) = command(container, &entrypoint, expand).map_err(wrong)?;
        let launch = Launch {
            place: Place::New(Box::new(View {
                scratch: folder.join(attempt.to_string()),
                read_only: identity.read_only,
                mounts: binds,
                hidden: self.node.config.hidden.clone(),
                shm: layout::shm(self.folder),
                privileged: identity.privileged,
                rootless,
            })),
            argv,
            cwd: container.working_dir.clone().unwrap_or_else(|| "/".to_owned()),
            env,
            credentials: identity.credentials,
            tty: container.tty == Some(true),
        };
        let stdin = match (container.stdin, container.stdin_once) {
            (Some(true), Some(true)) => StdinMode::Once,
            (Some(true), _) => StdinMode::Open,
            _ => StdinMode::None,
        };
        let program = program.as_deref();
        Run::start(&self.node.spawner, id, launch, self.namespaces, program, stdin).await.map_err(|error| match error {
            LaunchError::Refused(failure) => Refusal {
                reason: "RunContainerError",
                message: format!("failed to start container \"{}\": {}", container.name, failure.message),
                ran: true,
            },
            LaunchError::Broken(message) => Refusal { reason: "CreateContainerError", message, ran: false },
        })
    }

    async fn environment(&self, container: &Container, identity: &Identity) -> Result<Vec<(String, String)>, Refusal> {
        let client = &self.node.client;
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or("default");
        let config = |error: String| Refusal::config(error);
        let links = self.pod.spec.as_ref().and_then(|spec| spec.enable_service_links) != Some(false);
        let services = services(client, namespace, links).await.map_err(config)?;
        let references = environment::references(container);
        let contents = volumes::fetch(client, namespace, &references, &self.node.config.ca)
            .await
            .map_err(|error| Refusal::config(format!("{error:#}")))?;
        let services = environment::service_variables(&services);
        let mut env = environment::variables(&self.subject(), container, &services, &contents).map_err(config)?;
        let hostname = pod_files::hostname(self.pod);
        environment::complete(&mut env, &hostname, &identity.home, container.tty == Some(true));
        Ok(env)
    }

    /// Files and programs every container gets.
    fn own_files(&self, container: &Container, folder: &Path, entrypoint: &Entrypoint) -> Vec<Bind> {
        let bind = |source: PathBuf, target: &str, read_only| Bind { source, target: target.to_owned(), read_only };
        let mounted = |target: &str| {
            container.volume_mounts.iter().flatten().any(|mount| mount.mount_path.trim_end_matches('/') == target)
        };
        let etc = layout::etc(self.folder);
        let message = container.termination_message_path.as_deref().unwrap_or(TERMINATION_LOG);
        let mut binds = vec![bind(layout::termination_log(folder), message, false)];
        for name in ["hosts", "hostname", "resolv.conf"] {
            let target = format!("/etc/{name}");
            if !mounted(&target) {
                binds.push(bind(etc.join(name), &target, false));
            }
        }
        let program = &entrypoint.program;
        if entrypoint.file.is_some() && program.exists() {
            binds.push(bind(program.clone(), &format!("{PROGRAMS}/{}", entrypoint.argv0), true));
        } else if ["/tmp", "/run", "/var/tmp", "/var/log"].iter().any(|fresh| program.starts_with(fresh)) {
            binds.push(bind(program.clone(), &program.to_string_lossy(), true));
        }
        binds
    }
}

/// What the pod's changing fields are read from.
pub(super) fn subject(pod: &Pod, addresses: Addresses) -> Subject<'_> {
    Subject { pod, addresses, node: NODE }
}

/// The services a container is told of.
async fn services(client: &kube::Client, namespace: &str, links: bool) -> Result<Vec<Service>, String> {
    let of = |namespace: &str| Api::<Service>::namespaced(client.clone(), namespace);
    let failed = |error: kube::Error| format!("listing services: {error}");
    let mut all = Vec::new();
    if namespace != "default" || !links {
        all.extend(of("default").get_opt("kubernetes").await.map_err(failed)?);
    }
    if links {
        all.extend(of(namespace).list(&ListParams::default()).await.map_err(failed)?.items);
    }
    Ok(all)
}

/// An empty place for this run, without those of runs before.
fn prepare_folder(folder: &Path, attempt: i32) -> std::io::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder.join(attempt.to_string()))?;
    let log = layout::termination_log(folder);
    fs::OpenOptions::new().create(true).append(true).mode(0o666).open(&log)?;
    fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666))
}

/// The command line, and the program's file where it isn't found by its first word.
fn command(
    container: &Container,
    entrypoint: &Entrypoint,
    expand: impl Fn(&str) -> String,
) -> std::io::Result<(Vec<String>, Option<Arc<OwnedFd>>)> {
    let words = |list: &Option<Vec<String>>| list.iter().flatten().map(|word| expand(word)).collect::<Vec<_>>();
    let (command, args) = (words(&container.command), words(&container.args));
    if !command.is_empty() {
        return Ok((command.into_iter().chain(args).collect(), None));
    }
    let file = match &entrypoint.file {
        Some(file) => Some(Arc::clone(file)),
        None if entrypoint.program != Path::new(&entrypoint.argv0) => {
            Some(Arc::new(OwnedFd::from(fs::File::open(&entrypoint.program)?)))
        }
        None => None,
    };
    Ok((std::iter::once(entrypoint.argv0.clone()).chain(args).collect(), file))
}

/// What a container left as its last words, for its status.
pub(super) fn last_words(folder: &Path, container: &Container, run: Option<&Run>, failed: bool) -> Option<String> {
    let text = fs::read(layout::termination_log(&layout::container(folder, &container.name))).unwrap_or_default();
    let mut message = String::from_utf8_lossy(&text[..text.len().min(MAX_MESSAGE)]).into_owned();
    let fallback = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if message.is_empty() && failed && fallback {
        message = run.map(|run| run.log.last_text(80, 2048)).unwrap_or_default();
    }
    (!message.is_empty()).then_some(message)
}
