//! Names that every part of the mesh agrees on: ports, identities, labels, protocol names.
//!
//! They are contracts with users and manifests; changing one is a breaking change.

/// Namespace of the control plane.
pub const SYSTEM_NAMESPACE: &str = "mesh-system";
/// Prefix of every label and annotation of the mesh.
pub const LABEL_PREFIX: &str = "meshctl.dev/";
/// Annotation or label that turns injection on or off: `enabled` or `disabled`.
pub const INJECT: &str = "meshctl.dev/inject";
/// Annotation that the injector leaves on a pod it has injected: the proxy's version.
pub const PROXY_VERSION: &str = "meshctl.dev/proxy-version";
/// Annotation: inbound ports that bypass the proxy (`22,8000-8010`).
pub const SKIP_INBOUND_PORTS: &str = "meshctl.dev/skip-inbound-ports";
/// Annotation: outbound ports that bypass the proxy.
pub const SKIP_OUTBOUND_PORTS: &str = "meshctl.dev/skip-outbound-ports";
/// Annotation on pods, services and namespaces: ports carried as opaque TCP, without protocol detection.
pub const OPAQUE_PORTS: &str = "meshctl.dev/opaque-ports";
/// Annotation on pods and namespaces: who may call where no AccessPolicy says anything.
pub const DEFAULT_ACCESS: &str = "meshctl.dev/default-access";
/// Annotation on pods and namespaces: what may leave the cluster where no EgressPolicy says anything.
pub const DEFAULT_EGRESS: &str = "meshctl.dev/default-egress";
/// Trust domain unless the install sets another.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Audience of the projected token a proxy shows to get its certificate.
pub const IDENTITY_AUDIENCE: &str = "mesh-identity";

/// Where the redirect sends what the application connects to.
pub const OUTBOUND_PORT: u16 = 4140;
/// Where the redirect sends what arrives for the application.
pub const INBOUND_PORT: u16 = 4143;
/// `/metrics /live /ready /config /identity` of a proxy.
pub const ADMIN_PORT: u16 = 4191;
/// The proxy's user; its traffic is not redirected.
pub const PROXY_UID: u32 = 2102;
/// Socket mark that exempts the proxy's traffic where only one user id is mapped.
pub const PROXY_MARK: u32 = 0x2102;

/// Webhook and observe API of the control plane.
pub const CONTROL_WEBHOOK_PORT: u16 = 8443;
/// Proxy API of the control plane (mutual TLS).
pub const CONTROL_PROXY_PORT: u16 = 8086;
/// Admin port of the control plane.
pub const CONTROL_ADMIN_PORT: u16 = 9990;
/// Service and service account of the control plane.
pub const CONTROL_NAME: &str = "mesh-control";
/// Name of the proxy's container in a pod, and of its redirect step.
pub const PROXY_CONTAINER: &str = "mesh-proxy";
/// Init container that sets the redirect or, in CNI mode, proves that the node has set it.
pub const REDIRECT_CONTAINER: &str = "mesh-redirect";
/// User of the step that proves the redirect in CNI mode: anyone but the proxy.
pub const CHECK_UID: u32 = 2104;
/// Exit code of that step where the redirect is missing (EX_UNAVAILABLE of sysexits.h): the pod must be made anew.
pub const REDIRECT_MISSING: u8 = 69;
/// The CNI plugin: the name under which `mesh-proxy` is one, and its `type` in a network configuration.
pub const CNI_PLUGIN: &str = "mesh-cni";
/// Directory of a node where plugin and agent meet.
pub const CNI_RUN_DIR: &str = "/run/mesh-cni";
/// Socket in it, at which the agent tells the plugin what a pod needs ([`crate::cni`]).
pub const CNI_SOCKET: &str = "/run/mesh-cni/agent.sock";

/// ALPN between proxies: HTTP/1.1.
pub const ALPN_H1: &[u8] = b"mesh-h1";
/// ALPN between proxies: many HTTP/1.1 exchanges at once, as streams of HTTP/2.
pub const ALPN_H1_MUX: &[u8] = b"mesh-h1-mux";
/// ALPN between proxies: HTTP/2 with tunnels, as any server would speak it.
pub const ALPN_H2: &[u8] = b"mesh-h2";
/// ALPN between proxies: HTTP/2 without tunnels, whose streams need no HTTP server or client on top.
pub const ALPN_H2_MUX: &[u8] = b"mesh-h2-mux";
/// ALPN between proxies: opaque TCP.
pub const ALPN_TCP: &[u8] = b"mesh-tcp";

/// Group of the aggregated API that serves golden metrics and taps.
pub const OBSERVE_GROUP: &str = "observe.meshctl.dev";
/// Version of the observe API.
pub const OBSERVE_VERSION: &str = "v1alpha1";

/// Response header that carries a [`crate::MeshError`] code.
pub const ERROR_HEADER: &str = "mesh-error";

/// Path on the proxy API: CSR and token in, certificate chain out ([`crate::CertifyRequest`]).
pub const CERTIFY_PATH: &str = "/v1/certify";
/// Path on the proxy API: the long-lived stream of [`crate::wire`] messages, one JSON value a line, both ways.
pub const PROXY_STREAM_PATH: &str = "/v1/proxy";
/// Path on the admin ports of proxies and control: whom they trust and who vouches for them ([`crate::Trust`], JSON).
pub const IDENTITY_PATH: &str = "/identity";
