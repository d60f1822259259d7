//! The data plane as a whole: real proxies in this process, real sockets on the loopback device, certificates from a
//! throw-away authority.

#![allow(unreachable_pub)] // nothing outside a test binary could reach it
#![allow(clippy::unwrap_used)] // in a test that is an assertion

mod access;
mod alone;
mod bounds;
mod control;
mod drain;
mod egress;
mod filter;
mod frames;
mod grpc;
mod http;
mod http1;
mod http2_abuse;
mod http2_rules;
mod http2_servers;
mod http2_streams;
mod identity;
mod mirror;
mod retry;
mod route;
mod session;
mod smuggling;
mod tap;
mod tcp;
mod timeout;
mod traffic;
mod world;
