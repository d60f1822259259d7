//! Releases beside each other. What a release writes is kept, in `fixtures/`, and today's types have to read it; and what a
//! later release may add to it, a field or a word, must not end a conversation.
//!
//! `MESH_UPDATE=1` writes the fixtures of this release where there are none. What is there is never written anew: it is
//! what parts of that release send, whatever later ones do.

mod samples;

use crate::harness::test;
use crate::tidy::root;
use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use k8s_openapi::api::core::v1::ConfigMap;
use libtest_mimic::Trial;
use mesh_api::golden::GoldenFrame;
use mesh_api::tap::TapMessage;
use mesh_api::wire::{ControlMessage, ProxyMessage};
use mesh_api::{
    CertifyRequest, CertifyResponse, Destination, Egress, EgressDefault, Endpoint, InboundPolicy, Protocol, Trust,
};
use mesh_manifests::config::{CONFIG_KEY, MeshConfig, VERSION};
use mesh_manifests::inject::{Decision, Skip, decide};
use mesh_manifests::install::{self, CONFIG_MAP};
use mesh_manifests::issuer::{Issuer, IssuerPair};
use mesh_manifests::values::Values;
use mesh_proxy::args::Args;
use mesh_proxy::run::Listeners;
use meshctl::installed::Installed;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        test("skew::this_release_is_kept", &[], this_release_is_kept),
        test("skew::every_message_has_a_sample", &[], every_message_has_a_sample),
        test("skew::messages_of_every_release_are_read", &[], messages_of_every_release_are_read),
        test("skew::installs_of_every_release_are_read", &[], installs_of_every_release_are_read),
        test("skew::fields_of_a_later_release_are_ignored", &[], fields_of_a_later_release_are_ignored),
        test("skew::words_of_a_later_release_end_no_stream", &[], words_of_a_later_release_end_no_stream),
        test("skew::words_that_only_tell_are_done_without", &[], words_that_only_tell_are_done_without),
    ]
}

/// Whether today's types read the one as the other.
type Same = fn(&Value, &Value) -> Result<bool>;

/// A message: its place among the fixtures, what it holds, and whether today's types read it as they read something else.
struct Message {
    path: String,
    sample: Value,
    same: Same,
}

fn same<T: DeserializeOwned + Serialize>(one: &Value, other: &Value) -> Result<bool> {
    let written =
        |value: &Value| -> Result<Value> { Ok(serde_json::to_value(serde_json::from_value::<T>(value.clone())?)?) };
    Ok(written(one)? == written(other)?)
}

fn messages() -> Vec<Message> {
    let kinds: [(samples::Kind, Same); 3] = [
        (samples::of_control(), same::<ControlMessage>),
        (samples::of_proxy(), same::<ProxyMessage>),
        (samples::tap_messages(), same::<TapMessage>),
    ];
    let mut all: Vec<Message> = kinds
        .into_iter()
        .flat_map(|((folder, messages), same)| {
            messages.into_iter().map(move |(name, sample)| Message {
                path: format!("{folder}/{name}.json"),
                sample,
                same,
            })
        })
        .collect();
    let single: [(&str, Value, Same); 4] = [
        ("certify-request.json", samples::certify_request(), same::<CertifyRequest>),
        ("certify-response.json", samples::certify_response(), same::<CertifyResponse>),
        ("identity.json", samples::trust(), same::<Trust>),
        ("golden-frame.json", samples::golden_frame(), same::<GoldenFrame>),
    ];
    all.extend(single.map(|(path, sample, same)| Message { path: path.to_owned(), sample, same }));
    all
}

/// Folders of the releases.
fn releases() -> Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> =
        fs::read_dir(root().join("tests/fixtures"))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    all.sort();
    ensure!(!all.is_empty(), "no release is kept");
    Ok(all)
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn json_at(path: &PathBuf) -> Result<Value> {
    serde_json::from_str(&read(path)?).with_context(|| format!("reading {}", path.display()))
}

fn values() -> Result<Values> {
    let sets =
        ["proxy.workers=2", "proxy.native_sidecar=true", "webhook.excluded_namespaces=kube-public"].map(str::to_owned);
    Ok(Values::from_sources(&[], &sets)?)
}

/// An install with nothing secret and nothing by chance in it.
fn rendered() -> Result<Vec<Value>> {
    let pem = |what: &str| format!("-----BEGIN {what}-----\nTUlJ\n-----END {what}-----\n");
    let pair = IssuerPair { certificate_pem: pem("CERTIFICATE"), key_pem: pem("PRIVATE KEY") };
    Ok(install::render_with(&values()?, &Issuer { anchors_pem: pem("CERTIFICATE"), pair: Some(pair) })?)
}

fn injected() -> Result<Value> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "annotations": {"meshctl.dev/inject": "enabled"}},
        "spec": {"containers": [{"name": "web", "image": "shop/web:1", "ports": [{"containerPort": 8080}]}]}});
    match decide(&pod, &Value::Null, &MeshConfig::default()) {
        Decision::Inject(pod) => Ok(pod),
        other => bail!("not injected: {other:?}"),
    }
}

/// What the admin port of a proxy shows at `/config`.
fn proxy_config() -> Result<String> {
    let file = json!({
        "inbound": {"ports": {"8080": {"protocol": "http1"}}},
        "egress": {"default": "audit"},
        "destinations": [{"address": "10.96.0.9:80", "destination": {"protocol": "http1"},
            "endpoints": [{"address": "10.1.0.7:8080", "pod": "cart-1",
                "workload": {"namespace": "shop", "kind": "deployment", "name": "cart"}}]}],
    });
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("proxy.json");
    fs::write(&path, file.to_string())?;
    let bind = || mesh_proxy::listen::bind(([127, 0, 0, 1], 0).into());
    let listeners = Listeners { inbound: bind()?, outbound: bind()?, admin: bind()? };
    let settings = Args::try_parse_from(["mesh-proxy", "--config", path.to_str().context("path")?])?.run.settings()?;
    let proxy = mesh_proxy::run::prepare(settings, &listeners)?;
    // The file lies somewhere else each time.
    Ok(mesh_proxy::admin::shown(&proxy)?.replace(path.to_str().context("path")?, "/etc/proxy.json"))
}

fn this_release_is_kept() -> Result<()> {
    let folder = root().join("tests/fixtures").join(VERSION);
    let mut wanted: Vec<(String, String)> = messages()
        .into_iter()
        .map(|message| Ok((message.path, format!("{:#}\n", message.sample))))
        .collect::<Result<_>>()?;
    wanted.push(("install.yaml".to_owned(), mesh_manifests::yaml::to_yaml(&rendered()?)?));
    wanted.push(("proxy-config.json".to_owned(), proxy_config()? + "\n"));
    wanted.push(("injected-pod.json".to_owned(), format!("{:#}\n", injected()?)));
    for (path, text) in wanted {
        let path = folder.join(path);
        if path.exists() {
            continue;
        }
        ensure!(std::env::var_os("MESH_UPDATE").is_some(), "{} is missing: MESH_UPDATE=1 writes it", path.display());
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, text)?;
    }
    Ok(())
}

/// A new kind of message needs a sample, and a line here.
fn every_message_has_a_sample() -> Result<()> {
    fn of_control(message: &ControlMessage) -> &'static str {
        match message {
            ControlMessage::Update { .. } => "update",
            ControlMessage::Inbound { .. } => "inbound",
            ControlMessage::Egress { .. } => "egress",
            ControlMessage::Trust { .. } => "trust",
            ControlMessage::RateShares { .. } => "rate_shares",
            ControlMessage::Observe { .. } => "observe",
            ControlMessage::StopObserve {} => "stop_observe",
            ControlMessage::Tap { .. } => "tap",
            ControlMessage::StopTap { .. } => "stop_tap",
            ControlMessage::Finish {} => "finish",
            ControlMessage::Heartbeat {} => "heartbeat",
            ControlMessage::Unknown => "",
        }
    }
    fn of_proxy(message: &ProxyMessage) -> &'static str {
        match message {
            ProxyMessage::Hello { .. } => "hello",
            ProxyMessage::Subscribe { .. } => "subscribe",
            ProxyMessage::Unsubscribe { .. } => "unsubscribe",
            ProxyMessage::Ack { .. } => "ack",
            ProxyMessage::Reject { .. } => "reject",
            ProxyMessage::Golden { .. } => "golden",
            ProxyMessage::Tap { .. } => "tap",
            ProxyMessage::TapEnded { .. } => "tap_ended",
            ProxyMessage::RateUse { .. } => "rate_use",
            ProxyMessage::Farewell { .. } => "farewell",
            ProxyMessage::Heartbeat {} => "heartbeat",
            ProxyMessage::Unknown => "",
        }
    }
    let (_, control) = samples::of_control();
    let kinds: BTreeSet<&str> = control
        .iter()
        .map(|(_, sample)| Ok(of_control(&serde_json::from_value(sample.clone())?)))
        .collect::<Result<_>>()?;
    ensure!(kinds.len() == 11 && !kinds.contains(""), "{kinds:?}");
    let (_, proxy) = samples::of_proxy();
    let kinds: BTreeSet<&str> = proxy
        .iter()
        .map(|(_, sample)| Ok(of_proxy(&serde_json::from_value(sample.clone())?)))
        .collect::<Result<_>>()?;
    ensure!(kinds.len() == 11 && !kinds.contains(""), "{kinds:?}");
    Ok(())
}

fn messages_of_every_release_are_read() -> Result<()> {
    for release in releases()? {
        for Message { path, sample, same } in messages() {
            let path = release.join(path);
            // What an older release did not know it did not write.
            if !path.exists() {
                ensure!(!release.ends_with(VERSION), "{} is missing", path.display());
                continue;
            }
            let kept = json_at(&path)?;
            let alike = same(&kept, &sample).with_context(|| format!("reading {}", path.display()))?;
            ensure!(alike, "{} is read as something else", path.display());
        }
    }
    Ok(())
}

fn installs_of_every_release_are_read() -> Result<()> {
    for release in releases()? {
        let objects: Vec<Value> = serde_saphyr::from_multiple(&read(&release.join("install.yaml"))?)?;
        let map =
            objects.iter().find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == CONFIG_MAP);
        let map: ConfigMap = serde_json::from_value(map.context("no config map")?.clone())?;
        let text = map.data.as_ref().and_then(|data| data.get(CONFIG_KEY)).context("no configuration")?;
        let (config, unknown) = MeshConfig::from_yaml_of_any_release(text)?;
        ensure!(config.proxy.workers == 2 && unknown.is_empty(), "{config:?} {unknown:?}");
        let installed = Installed::of(map)?;
        ensure!(
            Some(installed.version.as_str()) == release.file_name().and_then(|name| name.to_str()),
            "{}",
            installed.version
        );
        ensure!(installed.inventory.len() == objects.len(), "{} of {}", installed.inventory.len(), objects.len());
        let values = Values::from_sources(&[("recorded".to_owned(), installed.values)], &[])?;
        ensure!(values == self::values()?, "{values:?}");
        let config = json_at(&release.join("proxy-config.json"))?;
        let read: Destination = serde_json::from_value(config["destinations"][0]["destination"].clone())?;
        ensure!(read.protocol == Protocol::Http1, "{read:?}");
        let read: Endpoint = serde_json::from_value(config["destinations"][0]["endpoints"][0].clone())?;
        ensure!(read.pod == "cart-1", "{read:?}");
        let read: InboundPolicy = serde_json::from_value(config["inbound"].clone())?;
        ensure!(read.ports.contains_key(&8080), "{read:?}");
        let read: Egress = serde_json::from_value(config["egress"].clone())?;
        ensure!(read.default == EgressDefault::Audit, "{read:?}");
        let _: Trust = serde_json::from_value(config["trust"].clone())?;
        // Its pods have a proxy, and are not given another.
        let pod = json_at(&release.join("injected-pod.json"))?;
        let decision = decide(&pod, &Value::Null, &MeshConfig::default());
        ensure!(decision == Decision::Skip(Skip::AlreadyInjected), "{decision:?}");
    }
    Ok(())
}

/// JSON pointers to all objects of a value.
fn objects(value: &Value, at: &str, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            into.push(at.to_owned());
            map.iter().for_each(|(key, below)| objects(below, &format!("{at}/{}", key.replace('/', "~1")), into));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, below)| objects(below, &format!("{at}/{index}"), into));
        }
        _ => {}
    }
}

/// Maps whose keys are data.
const MAPS: [&str; 7] = ["ports", "shares", "asked", "statuses", "grpc_statuses", "errors", "tcp_closes"];

fn fields_of_a_later_release_are_ignored() -> Result<()> {
    for Message { path, sample, same } in messages() {
        let mut places = Vec::new();
        objects(&sample, "", &mut places);
        for place in places {
            if place.rsplit('/').next().is_some_and(|last| MAPS.contains(&last)) {
                continue;
            }
            let mut later = sample.clone();
            later.pointer_mut(&place).context("a place")?["tomorrow"] = json!({"x": [1]});
            match same(&later, &sample) {
                Ok(alike) => ensure!(alike, "{path}: a field at `{place}` changes what is read"),
                // What decides about traffic is not run in part.
                Err(error) => {
                    refused(&path, &later).with_context(|| format!("{path}: a field at `{place}`: {error}"))?
                }
            }
        }
    }
    Ok(())
}

fn words_of_a_later_release_end_no_stream() -> Result<()> {
    let unknown = json!({"type": "tomorrow", "x": 1}).to_string();
    ensure!(serde_json::from_str::<ControlMessage>(&unknown)? == ControlMessage::Unknown);
    ensure!(serde_json::from_str::<ProxyMessage>(&unknown)? == ProxyMessage::Unknown);
    ensure!(serde_json::from_str::<TapMessage>(&unknown)? == TapMessage::Unknown);
    for (kind, name, place) in [
        ("control", "update", "/destination/protocol"),
        ("control", "update", "/destination/routes/rules/0/filters/0"),
        ("control", "update", "/destination/routes/http/0/path"),
        ("control", "update", "/backends/0/protocol"),
        ("control", "inbound", "/policy/ports/8080/protocol"),
        ("control", "inbound", "/policy/access/default"),
        ("control", "egress", "/policy/default"),
        ("control", "egress", "/policy/rules/0/action"),
        ("control", "tap", "/order/sample"),
        ("control", "trust", "/issuer"),
        ("control", "rate_shares", "/shares"),
        ("proxy", "golden", "/frame/series/0/0/tls"),
        ("proxy", "golden", "/frame/series/0/0/carried"),
        ("proxy", "golden", "/frame/endpoints/0/circuit"),
        ("proxy", "tap", "/events/0/event"),
        ("proxy", "farewell", "/frames/0/series/0/0/direction"),
    ] {
        let path = format!("{kind}/{name}.json");
        let message = messages().into_iter().find(|message| message.path == path).context("no such sample")?;
        let mut later = message.sample;
        *later.pointer_mut(place).with_context(|| format!("{path} has no {place}"))? = json!({"tomorrow": true});
        refused(&path, &later).with_context(|| format!("{path}: a word at `{place}`"))?;
    }
    Ok(())
}

/// A later release may know errors and endings that this one does not: of those alone it learns nothing.
fn words_that_only_tell_are_done_without() -> Result<()> {
    let sample = |path: &str| messages().into_iter().find(|message| message.path == path).context("no such sample");
    for (path, map) in [
        ("proxy/golden.json", "/frame/series/0/1/errors"),
        ("proxy/farewell.json", "/frames/0/series/0/1/errors"),
        ("golden-frame.json", "/series/0/series/errors"),
        ("golden-frame.json", "/series/0/series/tcp_closes"),
    ] {
        let Message { sample, same, .. } = sample(path)?;
        let mut later = sample.clone();
        later.pointer_mut(map).with_context(|| format!("{path} has no {map}"))?["tomorrow"] = json!(3);
        ensure!(same(&later, &sample)?, "{path}: a word in `{map}` changes what else is read");
    }
    for (path, word) in [
        ("proxy/tap.json", "/events/0/error"),
        ("proxy/tap.json", "/events/0/ending"),
        ("observe-tap/event.json", "/error"),
        ("observe-tap/event.json", "/ending"),
    ] {
        let Message { sample, same, .. } = sample(path)?;
        let (mut later, mut without) = (sample.clone(), sample);
        for (message, to) in [(&mut later, json!("tomorrow")), (&mut without, Value::Null)] {
            *message.pointer_mut(word).with_context(|| format!("{path} has no {word}"))? = to;
        }
        ensure!(same(&later, &without)?, "{path}: the word at `{word}` changes what else is read");
    }
    Ok(())
}

/// Fails unless the reader answers to what it cannot read as it should, and goes on.
fn refused(path: &str, message: &Value) -> Result<()> {
    let line = message.to_string();
    let (kind, name) = path.split_once('/').context("no reader refuses a message of this kind")?;
    match kind {
        "control" => {
            let error = serde_json::from_str::<ControlMessage>(&line).err().context("it is read")?;
            let answer = mesh_proxy::client::unreadable(line.as_bytes(), &error)?;
            match (name.trim_end_matches(".json"), answer) {
                ("update" | "inbound" | "egress", Some(ProxyMessage::Reject { version, .. })) => {
                    ensure!(message["version"] == version, "another version is refused");
                }
                ("tap", Some(ProxyMessage::TapEnded { id, refusal: Some(_) })) => ensure!(message["order"]["id"] == id),
                ("trust" | "rate_shares", None) => {}
                (_, answer) => bail!("the proxy answers {answer:?}"),
            }
        }
        "proxy" => {
            ensure!(serde_json::from_str::<ProxyMessage>(&line).is_err(), "it is read");
            ensure!(mesh_control::stream::is_message(line.as_bytes()), "control ends the stream");
        }
        _ => bail!("a reader of this kind has no way to go on"),
    }
    Ok(())
}
