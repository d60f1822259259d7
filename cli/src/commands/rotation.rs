//! `meshctl identity rotate`: replaces issuer and trust anchor of a mesh that carries traffic.
//!
//! What is to be done follows from what the issuer Secret says ([`mesh_manifests::rotation`]), never from what this
//! process remembers: killed anywhere, it is continued by running it again; two at once join. Every write names the version
//! of the Secret that it was decided on.

use super::install::read as read_file;
use super::rotation_wait::{self, Waited};
use crate::apply::FIELD_MANAGER;
use crate::args::{Global, IdentityRotate};
use crate::cluster::Cluster;
use crate::error::{Context, Error, Hint, Outcome, Result};
use crate::installed;
use crate::output::Printer;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::PostParams;
use mesh_manifests::config::{CONFIG_KEY, MeshConfig};
use mesh_manifests::install::{ANCHORS_CONFIG_MAP, ANCHORS_KEY, CONFIG_MAP, ISSUER_SECRET};
use mesh_manifests::issuer::Issuer;
use mesh_manifests::rotation::{IssuerState, Phase, Progress, ROTATION_ANNOTATION};
use mesh_manifests::values::Values;
use std::time::{Duration, SystemTime};

/// Attempts at a write that somebody else was faster with.
const WRITES: usize = 20;

/// Begins a rotation or goes on with one, returns from one, or says how far it is.
pub(super) async fn run(global: &Global, args: &IdentityRotate, printer: &Printer) -> Result<Outcome> {
    let cluster = Cluster::connect(global).await?;
    let installed = installed::expect(&cluster).await?;
    let values = Values::from_sources(&[("the installed values".to_owned(), installed.values)], &[])
        .during(|| "understand the installed values")?;
    if args.status {
        return status(&cluster, printer).await;
    }
    let secret = issuer_secret(&cluster).await?;
    refuse_foreign(&secret, values.identity.existing_secret).map_err(|error| error.during("rotate the identity"))?;
    if args.abort {
        return abort(&cluster, printer).await;
    }
    let state = begin(&cluster, args, &values, printer).await?;
    go_on(&cluster, args, state, printer).await?;
    Ok(Outcome::Well)
}

/// How far a rotation is, in words.
pub(super) fn under_way(progress: &Progress, now_s: i64) -> String {
    let since = now_s.saturating_sub(progress.since.cast_signed()).max(0);
    let what = match progress.phase {
        Phase::Trust => "proxies learn to trust the new anchor",
        Phase::Issue => "proxies get certificates of the new issuer",
        Phase::Retire => "the old anchor is withdrawn",
    };
    let at = super::identity::written(progress.since.cast_signed());
    format!("a rotation is under way since {at} ({} min), in phase {}: {what}", since / 60, progress.phase)
}

/// Somebody else's Secret is for them to write.
fn refuse_foreign(secret: &Secret, existing: bool) -> Result<()> {
    let manager = secret.metadata.annotations.iter().flatten().find(|(key, _)| key.starts_with("cert-manager.io/"));
    let owner = secret.metadata.owner_references.iter().flatten().next();
    let why = match (existing, manager, owner) {
        (true, ..) => "the values say identity.existing_secret: it is kept by somebody else".to_owned(),
        (_, Some(_), _) => "it is kept by cert-manager".to_owned(),
        (_, _, Some(owner)) => format!("it belongs to {} {}", owner.kind.to_lowercase(), owner.name),
        _ => return Ok(()),
    };
    Err(Error::new(format!("the secret {ISSUER_SECRET} is not meshctl's to write: {why}"))).hint(|| {
        "do there what this command would do: (1) put the new anchor beside the old one into ca.crt (and into \
         identity.trust_anchors_pem of the values), (2) wait until `meshctl identity -A -o wide` shows that every proxy \
         trusts both, (3) put the new tls.crt and tls.key there, (4) wait until every proxy is signed by the new issuer, \
         (5) take the old anchor away. Proxies and control plane follow each change at once"
    })
}

/// The state that there is, with a rotation in it: one that was begun before, or a new one.
async fn begin(cluster: &Cluster, args: &IdentityRotate, values: &Values, printer: &Printer) -> Result<IssuerState> {
    let brought = brought(cluster, args).await?;
    let next = match &brought {
        Some(issuer) => issuer.clone(),
        None => Issuer::generate(&values.trust_domain, SystemTime::now()).during(|| "make a new authority")?,
    };
    let mut joined = None;
    let state = change(cluster, "begin a rotation", |state| {
        joined = state.progress().cloned();
        match joined {
            Some(_) => Ok(None),
            None => Ok(Some(state.begin(&next, SystemTime::now())?)),
        }
    })
    .await?;
    let print = state.next_issuer().during(|| "understand the new issuer")?;
    match joined {
        None => printer.note(&format!("the new issuer is {print}; interrupted, this command goes on where it was")),
        Some(progress) => {
            let wanted = brought.as_ref().and_then(|issuer| issuer.pair.as_ref());
            if wanted.is_some_and(|pair| state.texts().get("next.crt") != Some(&pair.certificate_pem)) {
                return Err(Error::new(format!(
                    "a rotation to another issuer, {print}, is in phase {}",
                    progress.phase
                ))
                .during("rotate the identity")
                .hint("finish that one without files, or return from it with --abort"));
            }
            printer.note(&format!("going on to issuer {print}: {}", under_way(&progress, now_s())));
        }
    }
    Ok(state)
}

/// The authority that the files hold, checked.
async fn brought(cluster: &Cluster, args: &IdentityRotate) -> Result<Option<Issuer>> {
    let (Some(certificate), Some(key)) = (&args.issuer_certificate_file, &args.issuer_key_file) else {
        return Ok(None);
    };
    let anchors = match &args.trust_anchors_file {
        Some(path) => read_file(path)?,
        None => {
            let present = present(cluster).await?;
            present.anchors_pem().during(|| "read the present trust anchors")?.to_owned()
        }
    };
    let issuer = Issuer::brought(&read_file(certificate)?, &read_file(key)?, &anchors, SystemTime::now());
    issuer.map(Some).during(|| "use this authority")
}

/// From phase to phase, whoever else is at work too.
async fn go_on(cluster: &Cluster, args: &IdentityRotate, begun: IssuerState, printer: &Printer) -> Result<()> {
    let wanted = begun.next_issuer().during(|| "understand the new issuer")?;
    loop {
        let state = change(cluster, "put the issuer's secret right", |state| {
            let settled = state.settled()?;
            Ok((settled != *state).then_some(settled))
        })
        .await?;
        publish(cluster, &state).await?;
        let Some(phase) = state.progress().map(|progress| progress.phase) else { break };
        if rotation_wait::wait(cluster, &state, phase, args, printer).await? == Waited::Elsewhere {
            continue;
        }
        change(cluster, "begin the next phase", |state| {
            let same = state.progress().is_some_and(|progress| progress.phase == phase);
            Ok(if same { Some(state.advanced(SystemTime::now())?) } else { None })
        })
        .await?;
    }
    let state = present(cluster).await?;
    let issuer = state.issuer().during(|| "understand the issuer")?;
    if issuer != wanted {
        return Err(Error::new(format!("somebody has chosen another way meanwhile: {issuer} signs, not {wanted}"))
            .during("rotate the identity")
            .hint("meshctl identity rotate --status"));
    }
    printer.note(&format!("the identity is rotated: {issuer} signs, and the old anchor is gone"));
    rotation_wait::note_stranded(cluster, &state, printer).await
}

async fn abort(cluster: &Cluster, printer: &Printer) -> Result<Outcome> {
    let tried = "return to the old authority";
    let state = change(cluster, tried, |state| Ok(Some(state.aborted()?))).await?;
    publish(cluster, &state).await?;
    let issuer = state.issuer().during(|| "understand the issuer")?;
    printer.note(&format!("the rotation is undone: {issuer} signs as before, and proxies forget the new anchor"));
    Ok(Outcome::Well)
}

async fn status(cluster: &Cluster, printer: &Printer) -> Result<Outcome> {
    let state = present(cluster).await?;
    let issuer = state.issuer().during(|| "understand the issuer")?;
    let anchors = state.anchors().during(|| "understand the trust anchors")?.join(", ");
    let Some(progress) = state.progress() else {
        printer.data(&format!("no rotation is under way\nissuer   {issuer}\nanchors  {anchors}\n"))?;
        return Ok(Outcome::Well);
    };
    let next = state.next_issuer().during(|| "understand the new issuer")?;
    let mut text =
        format!("{}\nissuer   {issuer}\nnext     {next}\nanchors  {anchors}\n", under_way(progress, now_s()));
    text.push_str(&rotation_wait::told(cluster, &state).await?);
    printer.data(&text)?;
    Ok(Outcome::Well)
}

fn now_s() -> i64 {
    Timestamp::now().as_second()
}

/// The issuer Secret.
async fn issuer_secret(cluster: &Cluster) -> Result<Secret> {
    let namespace = &cluster.system_namespace;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), namespace);
    secrets.get(ISSUER_SECRET).await.during(|| format!("read secret {ISSUER_SECRET} in {namespace}"))
}

/// The Secret as it is now.
pub(super) async fn present(cluster: &Cluster) -> Result<IssuerState> {
    state_of(&issuer_secret(cluster).await?)
}

fn state_of(secret: &Secret) -> Result<IssuerState> {
    let annotation = secret.metadata.annotations.as_ref().and_then(|all| all.get(ROTATION_ANNOTATION));
    let data = secret.data.iter().flatten().map(|(key, value)| (key, value.0.as_slice()));
    IssuerState::read(annotation.map(String::as_str), data).during(|| "understand how far the rotation is")
}

/// Changes the Secret as decided on what it holds; whoever was faster is looked at again. `None`: nothing to change.
async fn change(
    cluster: &Cluster,
    tried: &str,
    mut decide: impl FnMut(
        &IssuerState,
    ) -> std::result::Result<Option<IssuerState>, mesh_manifests::rotation::RotationError>,
) -> Result<IssuerState> {
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.system_namespace);
    for attempt in 0..WRITES {
        let mut secret = issuer_secret(cluster).await?;
        let state = state_of(&secret)?;
        let Some(new) = decide(&state).during(|| tried)? else { return Ok(state) };
        let texts = new.texts().iter().map(|(key, text)| (key.clone(), ByteString(text.clone().into_bytes())));
        secret.data = Some(texts.collect());
        let annotations = secret.metadata.annotations.get_or_insert_default();
        match new.annotation() {
            Some(text) => drop(annotations.insert(ROTATION_ANNOTATION.to_owned(), text)),
            None => drop(annotations.remove(ROTATION_ANNOTATION)),
        }
        // With the resource version in it, this fails if anybody else was faster.
        match secrets.replace(ISSUER_SECRET, &written_by(), &secret).await {
            Ok(_) => return Ok(new),
            Err(kube::Error::Api(status)) if status.code == 409 => pause(attempt).await,
            Err(cause) => return Err(cause).during(|| tried),
        }
    }
    Err(Error::new(format!("somebody else keeps changing the secret {ISSUER_SECRET}")).during(tried))
}

/// Makes the anchors known to those who do not read the Secret: both config maps.
async fn publish(cluster: &Cluster, state: &IssuerState) -> Result<()> {
    let anchors = state.anchors_pem().during(|| "read the trust anchors")?;
    change_map(cluster, ANCHORS_CONFIG_MAP, ANCHORS_KEY, |_| Ok(anchors.to_owned())).await?;
    change_map(cluster, CONFIG_MAP, CONFIG_KEY, |text| {
        let config = MeshConfig::from_yaml(text)?;
        if config.trust_anchors_pem == anchors {
            return Ok(text.to_owned());
        }
        Ok(MeshConfig { trust_anchors_pem: anchors.to_owned(), ..config }.to_yaml()?)
    })
    .await
}

async fn change_map(
    cluster: &Cluster,
    name: &str,
    key: &str,
    text: impl Fn(&str) -> anyhow::Result<String>,
) -> Result<()> {
    let namespace = &cluster.system_namespace;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), namespace);
    let tried = || format!("write the trust anchors to config map {name} in {namespace}");
    for attempt in 0..WRITES {
        let mut map = maps.get(name).await.during(tried)?;
        let before = map.data.as_ref().and_then(|data| data.get(key)).map_or("", String::as_str);
        let after = text(before).during(tried)?;
        if after == before {
            return Ok(());
        }
        map.data.get_or_insert_default().insert(key.to_owned(), after);
        match maps.replace(name, &written_by(), &map).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => pause(attempt).await,
            Err(cause) => return Err(cause).during(tried),
        }
    }
    Err(Error::new("somebody else keeps changing it").during(tried()))
}

fn written_by() -> PostParams {
    // Another manager than that of install and upgrade: these do not take away what they do not know.
    PostParams { field_manager: Some(format!("{FIELD_MANAGER}-rotation")), ..PostParams::default() }
}

async fn pause(attempt: usize) {
    tokio::time::sleep(Duration::from_millis(20 * (attempt as u64 + 1))).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apply;
    use crate::testing::TestCluster;
    use mesh_manifests::install::render;

    async fn meshed(sets: &[&str]) -> (TestCluster, Cluster) {
        let server = TestCluster::start();
        let cluster = server.connect().await;
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let objects = render(&Values::from_sources(&[], &sets).unwrap()).unwrap();
        let (printer, _) = Printer::memory();
        apply::apply(&cluster, objects, "mesh-system", &printer.step("installing")).await.unwrap();
        (server, cluster)
    }

    fn args() -> IdentityRotate {
        IdentityRotate {
            issuer_certificate_file: None,
            issuer_key_file: None,
            trust_anchors_file: None,
            timeout: Duration::from_millis(1),
            force: false,
            status: false,
            abort: false,
        }
    }

    async fn anchors_in(cluster: &Cluster) -> [String; 2] {
        let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "mesh-system");
        let field = async |name: &str, key: &str| maps.get(name).await.unwrap().data.unwrap()[key].clone();
        let config = MeshConfig::from_yaml(&field(CONFIG_MAP, CONFIG_KEY).await).unwrap();
        [field(ANCHORS_CONFIG_MAP, ANCHORS_KEY).await, config.trust_anchors_pem]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_mesh_without_proxies_is_rotated_from_end_to_end() {
        let (server, cluster) = meshed(&[]).await;
        let before = present(&cluster).await.unwrap();
        let (printer, said) = Printer::memory();
        run(&server.global(), &args(), &printer).await.unwrap();
        let after = present(&cluster).await.unwrap();
        assert!(after.progress().is_none() && after.issuer() != before.issuer(), "{}", said().1);
        let anchors = after.anchors_pem().unwrap();
        assert_eq!(anchors_in(&cluster).await, [anchors, anchors]);
        let (printer, said) = Printer::memory();
        run(&server.global(), &IdentityRotate { status: true, ..args() }, &printer).await.unwrap();
        assert!(said().0.starts_with("no rotation is under way\nissuer   "), "{}", said().0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn one_that_was_interrupted_is_joined_continued_or_undone() {
        let (server, cluster) = meshed(&[]).await;
        let before = present(&cluster).await.unwrap();
        let values = Values::default();
        let (printer, said) = Printer::memory();
        let begun = begin(&cluster, &args(), &values, &printer).await.unwrap();
        assert!(begin(&cluster, &args(), &values, &printer).await.unwrap() == begun, "the second joins the first");
        assert!(said().1.contains("in phase trust"), "{}", said().1);
        run(&server.global(), &IdentityRotate { abort: true, ..args() }, &printer).await.unwrap();
        assert!(present(&cluster).await.unwrap() == before);

        begin(&cluster, &args(), &values, &printer).await.unwrap();
        change(&cluster, "go on", |state| Ok(Some(state.advanced(SystemTime::now())?))).await.unwrap();
        let undo = IdentityRotate { abort: true, ..args() };
        let error = run(&server.global(), &undo, &printer).await.unwrap_err();
        assert!(error.to_string().contains("there is no way back"), "{error}");
        run(&server.global(), &args(), &printer).await.unwrap();
        assert!(present(&cluster).await.unwrap().progress().is_none());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_authority_that_is_brought_is_checked_and_joined_by_itself_only() {
        let (server, cluster) = meshed(&[]).await;
        let folder = tempfile::tempdir().unwrap();
        let written = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        let files = |name: &str| {
            let made = Issuer::generate(name, SystemTime::now()).unwrap();
            let pair = made.pair.unwrap();
            IdentityRotate {
                issuer_certificate_file: written(&format!("{name}.crt"), &pair.certificate_pem),
                issuer_key_file: written(&format!("{name}.key"), &pair.key_pem),
                trust_anchors_file: written(&format!("{name}.ca"), &made.anchors_pem),
                ..args()
            }
        };
        let (one, other) = (files("one"), files("other"));
        let (printer, _) = Printer::memory();
        let mixed = IdentityRotate { issuer_key_file: other.issuer_key_file.clone(), ..files("mixed") };
        let error = run(&server.global(), &mixed, &printer).await.unwrap_err();
        assert!(error.to_string().contains("does not belong to the issuer's certificate"), "{error}");
        // The present anchors do not vouch for it.
        let alone = IdentityRotate { trust_anchors_file: None, ..files("alone") };
        let error = run(&server.global(), &alone, &printer).await.unwrap_err();
        assert!(error.to_string().contains("none of its certificates is the issuer's issuer"), "{error}");

        let begun = begin(&cluster, &one, &Values::default(), &printer).await.unwrap();
        let Err(error) = begin(&cluster, &other, &Values::default(), &printer).await else { panic!("joined") };
        assert!(error.to_string().contains("a rotation to another issuer"), "{error}");
        assert!(begin(&cluster, &one, &Values::default(), &printer).await.unwrap() == begun);
        run(&server.global(), &one, &printer).await.unwrap();
        let issuer = present(&cluster).await.unwrap().issuer().unwrap();
        assert_eq!(Ok(issuer), begun.next_issuer());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_upgrade_keeps_a_rotation() {
        let (_server, cluster) = meshed(&[]).await;
        let (printer, _) = Printer::memory();
        let begun = begin(&cluster, &args(), &Values::default(), &printer).await.unwrap();
        publish(&cluster, &begun).await.unwrap();
        let issuer = installed::issuer(&cluster, false).await.unwrap();
        let objects = mesh_manifests::install::render_with(&Values::default(), &issuer).unwrap();
        apply::apply_over(&cluster, objects, "mesh-system", &printer.step("upgrading")).await.unwrap();
        assert!(present(&cluster).await.unwrap() == begun);
        let anchors = begun.anchors_pem().unwrap();
        assert_eq!(anchors_in(&cluster).await, [anchors, anchors]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_somebody_else_keeps_is_left_to_them() {
        let (_server, cluster) = meshed(&[]).await;
        let mut secret = issuer_secret(&cluster).await.unwrap();
        assert!(refuse_foreign(&secret, false).is_ok());
        assert!(refuse_foreign(&secret, true).unwrap_err().to_string().contains("identity.existing_secret"));
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert("cert-manager.io/certificate-name".to_owned(), "issuer".to_owned());
        let error = refuse_foreign(&secret, false).unwrap_err();
        assert!(error.to_string().ends_with("it is kept by cert-manager"), "{error}");
        assert!(error.hint_text().unwrap().contains("put the new anchor beside the old one"));
    }
}
