//! Every metric of the proxy: name, kind, labels and meaning. What is not in this table is not on `/metrics`, and
//! `METRICS.md` is made from it.

/// What a metric does over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts by upper bound; its samples end in `_bucket`, `_sum` and `_count`.
    Histogram,
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Name, without the endings of its samples.
    pub name: &'static str,
    /// What it does over time.
    pub kind: Kind,
    /// What it means.
    pub help: &'static str,
    /// Its labels, `le` of histograms aside.
    pub labels: &'static [&'static str],
}

macro_rules! families {
    ($($constant:ident $name:literal $kind:ident [$($label:literal)*] $help:literal;)*) => {
        $(#[doc = $help]
        pub const $constant: Family =
            Family { name: $name, kind: Kind::$kind, help: $help, labels: &[$($label),*] };)*

        /// Every metric, in the order of `/metrics`.
        pub const ALL: &[Family] = &[$($constant),*];
    };
}

families! {
    REQUESTS "mesh_requests" Counter
        ["direction" "tls" "src" "dst" "service" "port" "route" "method" "status" "grpc_status" "error"]
        "Requests finished; outbound, a request counts once with all its retries";
    REQUEST_DURATION "mesh_request_duration_seconds" Histogram
        ["direction" "tls" "src" "dst" "service" "port" "route" "method"]
        "From the request's head to the response's end";
    ATTEMPTS "mesh_attempts" Counter
        ["direction" "tls" "src" "dst" "service" "port" "route" "method" "outcome"]
        "Attempts to have a request answered, counted at the endpoint they went to";
    RETRIES "mesh_retries" Counter
        ["direction" "tls" "src" "dst" "service" "port" "route" "method" "outcome"]
        "Second and further attempts made for requests";
    RETRIES_WITHHELD "mesh_retries_withheld" Counter ["reason"]
        "Attempts that a policy asked for and that were not made: the budget was spent, the answer asked to retry_after too long a time, or too much of the body was gone";
    MIRRORS "mesh_mirrored_requests" Counter ["outcome"]
        "Copies of requests sent to mirrors, or left_out because the body was too long or too many were under way; they are counted nowhere else";
    TCP_OPEN "mesh_tcp_open_connections" Gauge
        ["direction" "tls" "src" "dst" "service" "port" "route" "method"]
        "Opaque connections open now";
    TCP_OPENED "mesh_tcp_opened" Counter
        ["direction" "tls" "src" "dst" "service" "port" "route" "method"]
        "Opaque connections ever opened";
    TCP_CLOSED "mesh_tcp_closed" Counter
        ["direction" "tls" "src" "dst" "service" "port" "route" "method" "reason"]
        "Opaque connections closed: orderly, broken off by_client or by_server, refused by_mesh, or cut by the proxy's end";
    TCP_FAILURES "mesh_tcp_failures" Counter
        ["direction" "tls" "src" "dst" "service" "port" "route" "method" "error"]
        "Opaque connections the mesh could not serve";
    TCP_BYTES "mesh_tcp_bytes" Counter
        ["direction" "tls" "src" "dst" "service" "port" "route" "method" "flow"]
        "Bytes of opaque connections; read: from the client, write: from the server";
    TCP_DURATION "mesh_tcp_connection_duration_seconds" Histogram
        ["direction" "tls" "src" "dst" "service" "port" "route" "method"]
        "How long closed opaque connections had been open";
    ENDPOINT_STATE "mesh_endpoint_state" Gauge ["target" "dst" "endpoint"]
        "1 if the endpoint takes requests, 0 if the last attempt to reach it failed or it is ejected";
    ACCESS_DECISIONS "mesh_access_decisions" Counter ["decision" "tls" "policy"]
        "Arriving connections let in or refused, and, with `policy`, requests and opaque connections allowed, denied or audited by it";
    EGRESS_DECISIONS "mesh_egress_decisions" Counter ["decision" "protocol" "policy"]
        "Requests and opaque connections out of the cluster allowed, denied or audited by egress policies, where there are any";
    GOLDEN_SERIES "mesh_golden_series" Gauge []
        "Series of golden metrics known now";
    GOLDEN_REMEMBERED "mesh_golden_remembered_series" Gauge []
        "Series in all remembered frames together";
    GOLDEN_FRAMES_DELAYED "mesh_golden_frames_delayed" Counter []
        "Golden frames sent with the next one because control was slow";
    CONNECTIONS_SHED "mesh_connections_shed" Counter []
        "Connections turned away at the limit of connections or of handshakes";
    TARGETS_UNTRACKED "mesh_targets_untracked" Counter []
        "Connections past the limit of known destinations";
    ACCESS_LOG_DROPPED "mesh_access_log_dropped" Counter []
        "Access log lines not written because their reader was slow";
    SPANS_SENT "mesh_spans_sent" Counter []
        "Spans that the collector took";
    SPANS_DROPPED "mesh_spans_dropped" Counter []
        "Spans not sent because the collector was slow or refused them";
    IDENTITY_EXPIRY "mesh_identity_expiry_timestamp_seconds" Gauge []
        "End of the certificate's validity, Unix time";
    CONTROL_CONNECTED "mesh_control_connected" Gauge []
        "1 while the stream from control is up";
    PROXY_INFO "mesh_proxy_info" Gauge ["version"]
        "1; the label says which proxy this is";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;

    /// The page that lists them all.
    fn page() -> String {
        let mut page = String::from(
            "# Metrics of the proxy\n\n\
            Every proxy answers `GET :4191/metrics` in Prometheus' text format, or in OpenMetrics with exemplars (`trace_id`)\n\
            for scrapers that ask for it. Everything is counted, nothing sampled. Labels are bounded: past 1,024 series, 4,096\n\
            peers or 100 learned routes of a service, traffic is counted under `other`; a series without traffic for ten\n\
            minutes is dropped. `src` and `dst` are `namespace/kind/name` of the other end; the proxy's own pod is the\n\
            scraper's target. `route` is the name of a configured rule, a gRPC method, or a path with its identifiers\n\
            collapsed. Histograms have the classic buckets 0.5 ms to 60 s.\n\n\
            A request succeeds if its `status` is below 500, its `grpc_status` is none of 2, 4, 7, 13, 14, 15, and it was\n\
            answered to its end; `status=\"\"` is a request without an answer.\n\n\
            | name | kind | labels | meaning |\n|---|---|---|---|\n",
        );
        for Family { name, kind, help, labels } in ALL {
            let (ending, kind) = match kind {
                Kind::Counter => ("_total", "counter"),
                Kind::Gauge => ("", "gauge"),
                Kind::Histogram => ("", "histogram"),
            };
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            writeln!(page, "| `{name}{ending}` | {kind} | {} | {help} |", labels.join(" ")).unwrap();
        }
        page
    }

    #[test]
    fn the_page_lists_every_metric() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/METRICS.md");
        if std::env::var_os("MESH_UPDATE").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), page(), "run with MESH_UPDATE=1 to write the page anew");
    }

    #[test]
    fn names_follow_the_conventions() {
        let mut names: Vec<_> = ALL.iter().map(|family| family.name).collect();
        assert!(names.iter().all(|name| name.starts_with("mesh_") && !name.ends_with("_total")));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
