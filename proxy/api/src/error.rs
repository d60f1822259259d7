//! The one table of errors the mesh itself makes: code, HTTP and gRPC status, cause, cure.
//!
//! The code goes into the `mesh-error` header, the metrics, the access log and the tap event alike.

use serde::{Deserialize, Serialize};

macro_rules! mesh_errors {
    ($($variant:ident $code:literal $http:literal $grpc:literal $cause:literal $cure:literal;)*) => {
        /// An error that the mesh answers in place of an application.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum MeshError {
            $(#[doc = $cause] #[serde(rename = $code)] $variant,)*
        }

        impl MeshError {
            /// Every error, in the order of the documentation.
            pub const ALL: &'static [MeshError] = &[$(MeshError::$variant),*];

            /// Stable code, as in the `mesh-error` header.
            pub fn code(self) -> &'static str {
                match self { $(MeshError::$variant => $code,)* }
            }

            /// HTTP status of the answer.
            pub fn http_status(self) -> u16 {
                match self { $(MeshError::$variant => $http,)* }
            }

            /// gRPC status of the answer to a gRPC request.
            pub fn grpc_status(self) -> u16 {
                match self { $(MeshError::$variant => $grpc,)* }
            }

            /// What went wrong, with a detail if there is one, and what to do about it.
            pub fn sentence(self, detail: &str) -> String {
                let detail = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
                format!("{}{detail}. {}.", self.cause(), self.cure())
            }

            /// What went wrong, for a person.
            pub fn cause(self) -> &'static str {
                match self { $(MeshError::$variant => $cause,)* }
            }

            /// What to do about it.
            pub fn cure(self) -> &'static str {
                match self { $(MeshError::$variant => $cure,)* }
            }
        }
    };
}

mesh_errors! {
    NoEndpoints "no-endpoints" 503 14
        "The service has no ready endpoint"
        "Look at `kubectl get endpointslices` and the readiness of the service's pods";
    NoRoute "no-route" 404 12
        "The service has routes, and none of them takes the request"
        "Look at the routes' matches with `meshctl routes`; a last rule without matches takes what is left";
    NoBackend "no-backend" 500 13
        "The route that takes the request leads nowhere: no backend with weight, or one that is not there or may not be referred to"
        "Look at the route's status, condition ResolvedRefs, with `kubectl describe`";
    ConnectFailed "connect-failed" 503 14
        "No endpoint accepted a connection"
        "Check that the application listens on the service's target port, and network policies between the pods";
    ConnectTimeout "connect-timeout" 504 14
        "An endpoint did not answer a connection attempt in time"
        "Check network policies and whether the pod is overloaded";
    TlsFailed "tls-failed" 503 14
        "The other proxy did not prove the expected identity"
        "Run `meshctl check --proxy`; an expired certificate or another trust domain is the usual reason";
    ResetBeforeResponse "reset-before-response" 502 14
        "The application closed the connection before it answered"
        "Look at the application's log; a keep-alive timeout shorter than its clients' is a common reason";
    DeadlineExceeded "deadline-exceeded" 504 4
        "The call's deadline (grpc-timeout) ran out before the application had answered in full"
        "Give the call more time, or look for what is slow with `meshctl stat` and `meshctl top`";
    Timeout "timeout" 504 4
        "The request took longer than the route or its caller allows"
        "Look for what is slow with `meshctl stat` and `meshctl top`, or allow more time in the route's timeouts";
    NotExtended "not-extended" 501 12
        "The application does not take extended CONNECT, for instance WebSockets over HTTP/2 (RFC 8441)"
        "Have the client use WebSockets over HTTP/1.1, or switch extended CONNECT on in the application";
    InvalidRequest "invalid-request" 400 13
        "The request's framing is ambiguous or malformed and was not forwarded"
        "Fix the client; the mesh refuses what two parsers could read differently";
    InvalidResponse "invalid-response" 502 13
        "The application's answer was malformed"
        "Look at what the application sends, for instance with `curl -v` to the pod";
    AccessDenied "access-denied" 403 7
        "The access policies of the workload do not let this caller in"
        "Ask `meshctl explain request` which policy decides, and allow the caller there if it should be let in";
    JwtMissing "jwt-missing" 401 16
        "The access policies of the workload ask for a token (JWT), and the request carries none"
        "Have the caller send one, as `authorization: Bearer TOKEN` unless the policy names another field";
    JwtInvalid "jwt-invalid" 401 16
        "The request's token (JWT) does not count"
        "Have the caller get a new one; the answer says what is wrong with it, and `kubectl get accesspolicies` whether the issuer's keys are there";
    ExternalAuthFailed "external-auth-failed" 503 14
        "The service that an access policy has asked about requests gives no answer that counts"
        "Look at the service's pods, and at the calls to it with `meshctl stat`; `failOpen` in the policy lets requests pass meanwhile";
    EgressDenied "egress-denied" 403 7
        "The egress policies of the workload do not let it call this destination outside the cluster"
        "Ask `meshctl explain request` which policy decides, and allow the destination there if it should be called";
    Overload "overload" 503 14
        "The proxy reached one of its limits and shed the newest work"
        "Scale the workload, or raise the limit if memory allows";
    CircuitOpen "circuit-open" 503 14
        "Every endpoint of the service has been ejected by the circuit breaker"
        "Look at the endpoints with `meshctl diagnostics endpoints`; a `floorPercent` above 0 keeps some of them in use";
    RateLimited "rate-limited" 429 8
        "The service is called more often than its rate limit allows"
        "Call less often, wait as `retry-after` says, or raise the limit in the TrafficPolicy";
    FaultInjected "fault-injected" 500 14
        "A TrafficPolicy makes this fault on purpose"
        "Nothing, if it is meant; else look for `faults` in the TrafficPolicies of the service and its routes";
    Draining "draining" 503 14
        "The pod is shutting down"
        "Nothing, if it is rare; else check the pod's termination grace period";
    LoopDetected "loop-detected" 508 13
        "The request came back to the proxy that had sent it"
        "A service's endpoint leads to the proxy itself; check the service's target port";
}

impl MeshError {
    /// True if a time limit ran out: what timeouts are counted by.
    pub fn is_timeout(self) -> bool {
        self.http_status() == 504
    }
}

impl std::fmt::Display for MeshError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_serialized_as_such() {
        let mut codes: Vec<_> = MeshError::ALL.iter().map(|e| e.code()).collect();
        for error in MeshError::ALL {
            assert_eq!(serde_json::to_value(error).unwrap(), error.code());
        }
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), MeshError::ALL.len());
    }
}
