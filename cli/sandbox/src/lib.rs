//! A local cluster in one process: what Kubernetes is to a mesh, on one machine, with nothing installed.
//!
//! - [`api`]: the Kubernetes REST conventions as a tower service and on a TLS socket.
//! - [`controllers`]: Deployment, ReplicaSet, Job, EndpointSlice and friends, ordinary clients of the API.
//! - [`node`]: runs pods as processes in network namespaces, serves logs, exec and port-forward, cluster IPs and DNS.
//! - [`lifecycle`]: `up`, `down`, `status`: the daemon that holds all of the above.
//! - [`apps`]: the demo shop's programs.
//!
//! Code above the API must not know that it isn't a real cluster.

pub mod api;
pub mod apps;
pub mod controllers;
pub mod lifecycle;
pub mod node;
