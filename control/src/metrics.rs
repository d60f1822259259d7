//! What the control plane counts about itself, as `/metrics` shows it.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// A word that tells outcomes apart: always one of a fixed few.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Outcome {
    outcome: &'static str,
}

impl Outcome {
    /// An outcome.
    pub fn of(outcome: &'static str) -> Self {
        Self { outcome }
    }
}

/// A kind of Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    kind: &'static str,
}

/// All counters.
#[derive(Debug, Default)]
pub struct Metrics {
    registry: Registry,
    /// Proxies connected right now.
    pub proxies: Gauge,
    /// Updates sent to proxies.
    pub updates: Counter,
    /// Updates that a proxy could not use.
    pub rejects: Counter,
    /// Subscriptions beyond what one proxy may have.
    pub subscriptions_refused: Counter,
    /// Golden observers right now.
    pub observers: Gauge,
    /// Taps right now.
    pub taps: Gauge,
    /// Events received from proxies.
    pub tap_events: Counter,
    /// Frames received from proxies.
    pub frames: Counter,
    /// End of the issuer's validity.
    pub issuer_expires: Gauge,
    /// End of the validity of the anchor that ends first.
    pub anchors_expire: Gauge,
    /// 1 while this replica holds the lease.
    pub leads: Gauge,
    /// Events that could not be written.
    pub events_dropped: Counter,
    certificates: Family<Outcome, Counter>,
    frames_left_out: Family<Outcome, Counter>,
    admissions: Family<Outcome, Counter>,
    validations: Family<Outcome, Counter>,
    watch_errors: Family<Kind, Counter>,
}

impl Metrics {
    /// Everything at zero.
    pub fn new() -> Self {
        let mut new = Self::default();
        let r = &mut new.registry;
        r.register("mesh_control_proxies", "Proxies connected", new.proxies.clone());
        r.register("mesh_control_updates", "Updates sent to proxies", new.updates.clone());
        r.register("mesh_control_rejects", "Updates that a proxy could not use", new.rejects.clone());
        r.register(
            "mesh_control_subscriptions_refused",
            "Subscriptions beyond what one proxy may have",
            new.subscriptions_refused.clone(),
        );
        r.register("mesh_control_observers", "Observers of golden metrics", new.observers.clone());
        r.register("mesh_control_taps", "Taps on", new.taps.clone());
        r.register("mesh_control_tap_events", "Tap events received from proxies", new.tap_events.clone());
        r.register("mesh_control_golden_frames", "Golden frames received from proxies", new.frames.clone());
        r.register(
            "mesh_control_issuer_expiry_timestamp_seconds",
            "End of the issuer's validity",
            new.issuer_expires.clone(),
        );
        r.register(
            "mesh_control_anchors_expiry_timestamp_seconds",
            "End of the validity of the trust anchor that ends first",
            new.anchors_expire.clone(),
        );
        r.register("mesh_control_leads", "1 while this replica holds the lease", new.leads.clone());
        r.register("mesh_control_events_dropped", "Events that could not be written", new.events_dropped.clone());
        r.register(
            "mesh_control_golden_frames_left_out",
            "Golden frames and messages of proxies that made no sense",
            new.frames_left_out.clone(),
        );
        r.register("mesh_control_certificates", "Certificate requests", new.certificates.clone());
        r.register("mesh_control_admissions", "Pods the webhook was asked about", new.admissions.clone());
        r.register(
            "mesh_control_validations",
            "Policies and routes the webhook was asked about",
            new.validations.clone(),
        );
        r.register("mesh_control_watch_errors", "Failed lists and watches", new.watch_errors.clone());
        new
    }

    /// Counts a certificate request.
    pub fn certificate(&self, outcome: &'static str) {
        self.certificates.get_or_create(&Outcome::of(outcome)).inc();
    }

    /// Counts what a proxy sent and made no sense.
    pub fn frame_left_out(&self, why: &'static str) {
        self.frames_left_out.get_or_create(&Outcome::of(why)).inc();
    }

    /// Counts a pod the webhook was asked about.
    pub fn admission(&self, outcome: &'static str) {
        self.admissions.get_or_create(&Outcome::of(outcome)).inc();
    }

    /// The webhook was asked about a policy or a route.
    pub fn validation(&self, outcome: &'static str) {
        self.validations.get_or_create(&Outcome::of(outcome)).inc();
    }

    /// Counts a failed list or watch.
    pub fn watch_error(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&Kind { kind }).inc();
    }

    /// The text that `/metrics` answers.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}
