//! Putting the parts together: what is started, what it is given, and how it ends.

use crate::admin::{self, Readiness};
use crate::args::Args;
use crate::certify::Certifier;
use crate::cluster_version::ClusterVersion;
use crate::expiry;
use crate::golden::Golden;
use crate::issuer::IssuerKeeper;
use crate::key_set;
use crate::lease;
use crate::limits;
use crate::listen::{self, Port};
use crate::metrics::Metrics;
use crate::observe::{Observe, Observers};
use crate::peers::{self, Peers};
use crate::serve;
use crate::status;
use crate::stream::Streams;
use crate::subscriptions::Subscriptions;
use crate::tap::Taps;
use crate::validation::VALIDATE_PATH;
use crate::watch::{self as watches, Audience};
use crate::webhook::{INJECT_PATH, Webhook};
use crate::webhook_cert::{Keeper, WebhookTls, server_names};
use anyhow::Context;
use arc_swap::ArcSwapOption;
use http::StatusCode;
use kube::Api;
use mesh_manifests::config::MeshConfig;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Runs until `stop`.
pub async fn run(args: &Args, config: MeshConfig, client: kube::Client, stop: CancellationToken) -> anyhow::Result<()> {
    let proxies = bind(args.proxy_port)?;
    let apis = bind(args.webhook_port)?;
    let admins = bind(args.admin_port)?;

    let config = Arc::new(config);
    let metrics = Arc::new(Metrics::new());
    let subscriptions = Subscriptions::new(config.clone());
    let golden = Golden::new(metrics.clone(), &config.trust_domain);
    let taps = Taps::new(metrics.clone());
    let observers = Arc::new(Observers::default());
    let issuer = Arc::new(IssuerKeeper {
        identity: config.control_identity(),
        authority: Arc::default(),
        tls: Arc::default(),
        client: Arc::default(),
        told: watch::Sender::new(None),
        metrics: metrics.clone(),
    });
    let webhook_tls = Arc::new(WebhookTls::new(observers.clone()));
    let streams = Arc::new(Streams {
        subscriptions: subscriptions.clone(),
        golden: golden.clone(),
        taps: taps.clone(),
        shares: Arc::default(),
        trust: issuer.told.subscribe(),
        metrics: metrics.clone(),
        stop: stop.clone(),
    });
    let certifier = Certifier::new(client.clone(), &config.trust_domain, issuer.authority.clone(), metrics.clone());
    let peers = peers(args, &config, &subscriptions, &issuer);
    let observe = Observe {
        reviews: Api::all(client.clone()),
        observers: observers.clone(),
        golden,
        taps,
        peers: peers.clone(),
        subscriptions: subscriptions.clone(),
        stop: stop.clone(),
    };
    let version = Arc::new(ClusterVersion::default());
    let webhook =
        Webhook::new(client.clone(), config.clone(), issuer.authority.clone(), version.clone(), metrics.clone());
    let keeper = keeper(&client, &config, &webhook_tls);
    let leads = Arc::new(watch::Sender::new(false));
    let leases = Api::namespaced(client.clone(), &config.system_namespace);
    let audience = Audience {
        subscriptions: subscriptions.clone(),
        issuer: issuer.clone(),
        webhook: webhook_tls.clone(),
        observers,
        metrics: metrics.clone(),
    };
    let ready = Arc::new(readiness(&subscriptions, &issuer, &webhook_tls, &version));

    // These go on for ever, until the process ends.
    let background = async {
        tokio::join!(
            watches::follow(client.clone(), &config.system_namespace, audience),
            issuer.keep_renewed(),
            expiry::keep(client.clone(), &config.system_namespace, &issuer.authority, &metrics),
            webhook_tls.follow_observers(),
            keeper.keep(leads.subscribe()),
            key_set::follow(client.clone(), subscriptions.clone()),
            version.keep(client.clone()),
            status::keep(client.clone(), subscriptions.clone(), peers.clone(), leads.subscribe()),
        );
    };
    // These end, in their own time, after `stop`.
    let serving = async {
        tokio::join!(
            serve::serve(proxies, issuer.tls.clone(), Arc::new(certifier), streams),
            serve_apis(apis, webhook_tls.tls.clone(), Arc::new(webhook), Arc::new(observe), stop.clone()),
            admin::serve(admins, ready.clone(), issuer.authority.clone(), metrics.clone(), stop.clone()),
            lease::hold(leases, args.holder(), leads.clone(), metrics.clone(), stop.clone()),
        );
    };
    tokio::select! {
        () = background => {}
        () = serving => {}
        () = say_when_ready(&ready, &stop) => {}
    }
    Ok(())
}

/// The other replicas, as the Service of the control plane names them.
fn peers(
    args: &Args,
    config: &Arc<MeshConfig>,
    subscriptions: &Arc<Subscriptions>,
    issuer: &Arc<IssuerKeeper>,
) -> Arc<Peers> {
    let (config, subscriptions, me) = (config.clone(), subscriptions.clone(), args.holder());
    Peers::new(config.control_identity(), issuer.client.clone(), move || {
        subscriptions.read(|world| peers::replicas(world, &config.system_namespace, &me))
    })
}

fn keeper(client: &kube::Client, config: &MeshConfig, tls: &Arc<WebhookTls>) -> Keeper {
    Keeper {
        secrets: Api::namespaced(client.clone(), &config.system_namespace),
        webhooks: Api::all(client.clone()),
        validators: Api::all(client.clone()),
        services: Api::all(client.clone()),
        names: server_names(&config.system_namespace),
        tls: tls.clone(),
    }
}

fn readiness(
    subscriptions: &Arc<Subscriptions>,
    issuer: &Arc<IssuerKeeper>,
    webhook_tls: &Arc<WebhookTls>,
    version: &Arc<ClusterVersion>,
) -> Readiness {
    let (subscriptions, issuer, webhook_tls) = (subscriptions.clone(), issuer.clone(), webhook_tls.clone());
    let version = version.clone();
    Readiness {
        conditions: vec![
            ("the cluster's objects", Box::new(move || subscriptions.is_synced())),
            ("the issuer", Box::new(move || issuer.tls.load().is_some())),
            ("the webhook's certificate", Box::new(move || webhook_tls.tls.load().is_some())),
            // A pod injected before would have to guess what its node can run.
            ("the cluster's version", Box::new(move || version.was_asked())),
        ],
    }
}

/// One log line when everything is there, or what is missing after a while; then waits for ever.
async fn say_when_ready(readiness: &Readiness, stop: &CancellationToken) {
    let mut waited = 0u32;
    loop {
        let missing = readiness.missing();
        if missing.is_empty() {
            tracing::info!("ready");
            break;
        }
        waited += 1;
        if waited.is_multiple_of(100) {
            tracing::warn!("still waiting for {}", missing.join(", "));
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(std::time::Duration::from_millis(100)) => {}
        }
    }
    std::future::pending::<()>().await;
}

/// The port of the webhook and the observe API.
async fn serve_apis(
    listener: TcpListener,
    tls: Arc<ArcSwapOption<rustls::ServerConfig>>,
    webhook: Arc<Webhook>,
    observe: Arc<Observe>,
    stop: CancellationToken,
) {
    let port = Port { name: "api", connections: limits::API_CONNECTIONS, tls: Some(tls) };
    listen::serve(port, listener, stop, move |peer, request| {
        let (webhook, observe) = (webhook.clone(), observe.clone());
        async move {
            let path = request.uri().path();
            match path {
                INJECT_PATH => webhook.answer(request).await,
                VALIDATE_PATH => webhook.validate(request).await,
                "/healthz" | "/livez" | "/readyz" => listen::text(StatusCode::OK, "ok"),
                _ if path == "/apis" || path.starts_with("/apis/") => {
                    observe.answer(&peer, request.method(), request.uri(), request.headers()).await
                }
                _ => listen::text(StatusCode::NOT_FOUND, "there are /inject, /validate and /apis"),
            }
        }
    })
    .await;
}

/// Listens for IPv4 and IPv6 alike, or for IPv4 where there is no IPv6.
fn bind(port: u16) -> anyhow::Result<TcpListener> {
    let listen = |address: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = std::net::TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket)
    };
    listen((Ipv6Addr::UNSPECIFIED, port).into())
        .or_else(|_| listen(([0, 0, 0, 0], port).into()))
        .with_context(|| format!("cannot listen on port {port}"))
}
