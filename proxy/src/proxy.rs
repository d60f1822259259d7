//! Everything the parts of one proxy share.

use crate::access;
use crate::access_log::{AccessLog, Form};
use crate::balance::Random;
use crate::client::Control;
use crate::credentials::Credentials;
use crate::drain::Drain;
use crate::egress::{self, hosts::Hosts};
use crate::golden::Golden;
use crate::ledger::Ledger;
use crate::limits;
use crate::listen::Dialer;
use crate::metrics::Counters;
use crate::otlp::{Span, Tracer, Tracing};
use crate::state::State;
use crate::tap::Taps;
use mesh_api::golden::ProxyFrame;
use parking_lot::Mutex;
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;
use tokio::sync::{Notify, mpsc};

/// Everything a proxy is told at its start. `/config` shows it; it holds no secrets.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Where configuration and identity come from.
    pub source: Source,
    /// Addresses of the pod, as far as they are known.
    pub pod_ips: Vec<IpAddr>,
    /// How long the proxy stays open after it was told to end.
    pub drain_linger: Duration,
    /// How long it may take to end, the linger included.
    pub drain_timeout: Duration,
    /// True: after SIGTERM it stays open until the application has ended.
    pub outlive_application: bool,
    /// Threads that carry traffic.
    pub workers: usize,
    /// Accepted connections open at once.
    pub max_connections: usize,
    /// TLS handshakes of arriving connections under way at once.
    pub max_handshakes: usize,
    /// How requests are logged.
    pub access_log: Form,
    /// Where spans go.
    pub tracing: Tracing,
}

/// Where configuration and identity come from.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// The control plane.
    Control(Box<Control>),
    /// A file in the form of [`mesh_api::FileConfig`].
    File(PathBuf),
}

/// Where connections go that were not redirected; only a file can say so.
#[derive(Clone, Copy, Debug, Default)]
pub struct Defaults {
    /// The application.
    pub inbound: Option<SocketAddr>,
    /// One of the destinations.
    pub outbound: Option<SocketAddr>,
}

/// Told to say farewell to control, and done with it.
#[derive(Debug, Default)]
pub struct Parting {
    /// The proxy ends.
    pub asked: Notify,
    /// Control has heard.
    pub done: Notify,
}

/// One proxy.
#[derive(Debug)]
pub struct Proxy {
    /// What it was told at its start.
    pub settings: Settings,
    /// What it knows of the world.
    pub state: State,
    /// Its certificate.
    pub credentials: Credentials,
    /// Golden metrics.
    pub golden: Arc<Golden>,
    /// Who gets a golden frame a second at present.
    pub observer: Mutex<Option<mpsc::Sender<ProxyFrame>>>,
    /// Who wants to see single requests.
    pub taps: Taps,
    /// What came of access policies.
    pub access: Ledger,
    /// What came of egress policies.
    pub egress: Ledger,
    /// The hosts outside the cluster that traffic is counted under.
    pub hosts: Hosts,
    /// The last words to control.
    pub parting: Parting,
    /// The access log.
    pub access_log: AccessLog,
    /// The way to the collector of spans.
    pub tracer: Tracer,
    /// Spans on that way.
    pub spans: Mutex<Option<mpsc::Receiver<Span>>>,
    /// Counters beside them.
    pub counters: Arc<Counters>,
    /// Its end.
    pub drain: Drain,
    /// The right to a TLS handshake with an arriving connection.
    pub handshakes: Semaphore,
    /// The right to send a copy of a request to a mirror.
    pub mirrors: Arc<Semaphore>,
    /// The right to ask a service about a request.
    pub questions: Semaphore,
    /// Opens connections the redirect exempts.
    pub dialer: Dialer,
    /// Addresses of the pod, as far as they are known.
    pub pod_ips: Vec<IpAddr>,
    /// Port of the inbound listener.
    pub inbound_port: u16,
    /// Port of the outbound listener.
    pub outbound_port: u16,
    /// Where connections go that were not redirected.
    pub defaults: Mutex<Defaults>,
    /// Chance, for balancing.
    pub random: Mutex<Random>,
}

impl Proxy {
    /// A proxy that knows nothing yet.
    pub fn new(settings: Settings, inbound_port: u16, outbound_port: u16) -> Self {
        let golden = Arc::new(Golden::new(unix_ms()));
        let counters = Arc::new(Counters::default());
        let (tracer, spans) = Tracer::new(&settings.tracing);
        let asks = matches!(settings.source, Source::Control(_));
        Self {
            state: State::new(asks, golden.clone(), counters.clone()),
            credentials: Credentials::default(),
            golden,
            tracer,
            spans: Mutex::new(spans),
            access_log: AccessLog::start(settings.access_log, counters.clone()),
            counters,
            drain: Drain::default(),
            handshakes: Semaphore::new(settings.max_handshakes),
            questions: Semaphore::new(limits::EXTERNAL_QUESTIONS),
            mirrors: Arc::new(Semaphore::new(limits::MIRRORS)),
            observer: Mutex::default(),
            taps: Taps::default(),
            access: access::ledger(),
            egress: egress::ledger(),
            hosts: Hosts::default(),
            parting: Parting::default(),
            dialer: Dialer::probe(),
            pod_ips: settings.pod_ips.clone(),
            inbound_port,
            outbound_port,
            defaults: Mutex::default(),
            random: Mutex::new(Random::from_os()),
            settings,
        }
    }

    /// True if this proxy has an identity, or will have one: then it never falls back to plain text where TLS is due.
    pub fn offers_identity(&self) -> bool {
        matches!(self.settings.source, Source::Control(_)) || self.credentials.current().is_some()
    }

    /// True if it can do its work: identity had (where one is due) and not on its way out.
    pub fn is_ready(&self) -> bool {
        let identity = match self.settings.source {
            Source::Control(_) => self.credentials.current().is_some(),
            Source::File(_) => true,
        };
        identity && self.drain.phase() == crate::drain::Phase::Serving
    }

    /// True if the address is one of our own listeners, so that sending there would come back to us.
    pub fn is_own_listener(&self, address: SocketAddr) -> bool {
        let own_port = [self.inbound_port, self.outbound_port].contains(&address.port());
        own_port && (address.ip().is_loopback() || self.pod_ips.contains(&address.ip()))
    }
}

/// Unix time, seconds.
pub fn unix_s() -> u64 {
    unix_ms() / 1000
}

/// Unix time, milliseconds.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
