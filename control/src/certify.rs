//! First contact of a proxy: a signing request and a service account token in, a certificate out.
//!
//! The token is shown to the API server (TokenReview, for our audience only); its answer, and nothing that the proxy
//! says, decides the identity. Neither token nor key is ever logged.

use crate::ca::{self, Authority, Refusal};
use crate::limits;
use crate::listen::{self, Body, Peer};
use crate::metrics::Metrics;
use arc_swap::ArcSwapOption;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Api;
use kube::api::PostParams;
use mesh_api::names::IDENTITY_AUDIENCE;
use mesh_api::{CertifyRequest, CertifyResponse, SpiffeId};
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::Semaphore;

/// Gives out certificates.
pub struct Certifier {
    reviews: Api<TokenReview>,
    trust_domain: String,
    authority: Arc<ArcSwapOption<Authority>>,
    metrics: Arc<Metrics>,
    slots: Semaphore,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// The token proves nothing.
    #[error("the token is not valid for {IDENTITY_AUDIENCE}: {0}")]
    Token(String),
    /// The token belongs to something that is no service account.
    #[error("the token belongs to `{0}`, which is no service account")]
    NoServiceAccount(String),
    /// The request does not fit the token.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Nobody could say whether the token is valid.
    #[error("the API server could not review the token: {0}")]
    Review(String),
    /// There is no issuer, or it cannot sign.
    #[error("the control plane cannot sign certificates now: {0}")]
    Authority(String),
}

impl CertifyError {
    fn status(&self) -> StatusCode {
        match self {
            Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::NoServiceAccount(_) | Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::Review(_) | Self::Authority(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn outcome(&self) -> &'static str {
        match self {
            Self::Token(_) => "bad_token",
            Self::NoServiceAccount(_) | Self::Refused(_) => "refused",
            Self::Review(_) | Self::Authority(_) => "unavailable",
        }
    }
}

impl Certifier {
    /// Reviews tokens with `client` and signs with whatever authority there is at the moment.
    pub fn new(
        client: kube::Client,
        trust_domain: &str,
        authority: Arc<ArcSwapOption<Authority>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            reviews: Api::all(client),
            trust_domain: trust_domain.to_owned(),
            authority,
            metrics,
            slots: Semaphore::new(limits::CERTIFY_AT_ONCE),
        }
    }

    /// Answers a request to [`mesh_api::names::CERTIFY_PATH`].
    pub async fn answer(&self, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
        if request.method() != Method::POST {
            return listen::text(StatusCode::METHOD_NOT_ALLOWED, "certificates are asked for by POST");
        }
        let body = listen::read(request.into_body(), limits::CERTIFY_BYTES, limits::CERTIFY_TIMEOUT).await;
        let request = match body {
            Err((status, why)) => return listen::text(status, &why),
            Ok(body) => serde_json::from_slice::<CertifyRequest>(&body),
        };
        // The error of the JSON reader may quote the token: it is not passed on.
        let Ok(request) = request else {
            return listen::text(
                StatusCode::BAD_REQUEST,
                "the body is no certificate request as this release knows it",
            );
        };
        let outcome = tokio::time::timeout(limits::CERTIFY_TIMEOUT, self.certify(&request, SystemTime::now())).await;
        let outcome = outcome
            .unwrap_or_else(|_| Err(CertifyError::Review(format!("no answer within {:?}", limits::CERTIFY_TIMEOUT))));
        match outcome {
            Ok((identity, response)) => {
                self.metrics.certificate("issued");
                tracing::info!(%identity, from = %peer.address, expires_at = response.expires_at, "certificate issued");
                listen::json(StatusCode::OK, &response)
            }
            Err(error) => {
                self.metrics.certificate(error.outcome());
                tracing::warn!(from = %peer.address, %error, "certificate refused");
                listen::text(error.status(), &error.to_string())
            }
        }
    }

    /// The certificate that the token gives a right to.
    pub async fn certify(
        &self,
        request: &CertifyRequest,
        now: SystemTime,
    ) -> Result<(SpiffeId, CertifyResponse), CertifyError> {
        // The semaphore is never closed; were it, the review would merely not be limited.
        let _slot = self.slots.acquire().await;
        let status = self.review(&request.token).await?;
        let identity = proven_identity(&status, &self.trust_domain)?;
        let key = ca::check_request(&request.csr_pem, &identity)?;
        let authority = self.authority.load_full();
        let authority = authority.ok_or_else(|| CertifyError::Authority("there is no issuer yet".to_owned()))?;
        let signed =
            authority.sign(&identity, &key, now).map_err(|error| CertifyError::Authority(error.to_string()))?;
        let response = CertifyResponse {
            chain_pem: signed.chain_pem,
            anchors_pem: authority.anchors_pem.clone(),
            expires_at: signed.expires_at,
            issuer: Some(authority.fingerprint.clone()),
        };
        Ok((identity, response))
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, CertifyError> {
        let spec =
            TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![IDENTITY_AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..Default::default() };
        let reviewed = self.reviews.create(&PostParams::default(), &review).await;
        let reviewed = reviewed.map_err(|error| CertifyError::Review(error.to_string()))?;
        reviewed.status.ok_or_else(|| CertifyError::Review("the review came back without a status".to_owned()))
    }
}

/// The identity a reviewed token proves.
fn proven_identity(status: &TokenReviewStatus, trust_domain: &str) -> Result<SpiffeId, CertifyError> {
    if status.authenticated != Some(true) {
        return Err(CertifyError::Token(status.error.clone().unwrap_or_else(|| "not authenticated".to_owned())));
    }
    // An API server that knows no audiences answers without them: such a token might be anybody's.
    if !status.audiences.iter().flatten().any(|audience| audience == IDENTITY_AUDIENCE) {
        return Err(CertifyError::Token("it was made for another audience".to_owned()));
    }
    let user = status.user.as_ref().and_then(|user| user.username.as_deref()).unwrap_or_default();
    let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
    let (namespace, name) = account.ok_or_else(|| CertifyError::NoServiceAccount(user.to_owned()))?;
    let identity = SpiffeId::new(trust_domain, namespace, name);
    // What does not read back could be mistaken for somebody else.
    match identity.to_string().parse::<SpiffeId>() {
        Ok(read) if read == identity => Ok(identity),
        _ => Err(CertifyError::NoServiceAccount(user.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::tests::{authority, request, web};
    use crate::tls;
    use rcgen::SanType;
    use serde_json::{Value, json};

    /// A control plane whose API server answers every review with `status`.
    fn certifier(status: Value) -> Certifier {
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let status = status.clone();
            async move {
                assert_eq!(request.uri().path(), "/apis/authentication.k8s.io/v1/tokenreviews");
                let asked = request.into_body().collect_bytes().await.unwrap();
                let asked: Value = serde_json::from_slice(&asked).unwrap();
                assert_eq!(asked["spec"], json!({"audiences": ["mesh-identity"], "token": "t0ken"}));
                let answer = json!({"kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1",
                    "metadata": {}, "spec": {}, "status": status});
                let body = kube::client::Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, std::convert::Infallible>(Response::new(body))
            }
        });
        let authority = Arc::new(ArcSwapOption::from_pointee(authority()));
        Certifier::new(kube::Client::new(service, "default"), "cluster.local", authority, Arc::new(Metrics::new()))
    }

    fn of_web() -> Value {
        json!({"authenticated": true, "audiences": ["mesh-identity"],
            "user": {"username": "system:serviceaccount:shop:web"}})
    }

    async fn ask(status: Value, name: &str) -> Result<(SpiffeId, CertifyResponse), CertifyError> {
        let (csr_pem, _) = request(vec![SanType::URI(name.try_into().unwrap())]);
        let request = CertifyRequest { csr_pem, token: "t0ken".to_owned() };
        certifier(status).certify(&request, SystemTime::now()).await
    }

    #[tokio::test]
    async fn a_service_account_gets_its_certificate() {
        let (identity, response) = ask(of_web(), "spiffe://cluster.local/ns/shop/sa/web").await.unwrap();
        assert_eq!(identity, web());
        let chain = tls::certificates(&response.chain_pem, "chain").unwrap();
        assert_eq!(tls::identity(&chain[0]), Some(web()));
        assert!(response.anchors_pem.contains("BEGIN CERTIFICATE"));
        assert_eq!(response.issuer.unwrap().len(), 16);
    }

    #[tokio::test]
    async fn everybody_else_is_refused() {
        let own = "spiffe://cluster.local/ns/shop/sa/web";
        let with = |key: &str, value: Value| {
            let mut status = of_web();
            status[key] = value;
            status
        };
        let checks = [
            (of_web(), "spiffe://cluster.local/ns/shop/sa/cart", StatusCode::FORBIDDEN),
            (of_web(), "spiffe://elsewhere/ns/shop/sa/web", StatusCode::FORBIDDEN),
            (with("authenticated", json!(false)), own, StatusCode::UNAUTHORIZED),
            (with("audiences", json!(["https://kubernetes.default.svc"])), own, StatusCode::UNAUTHORIZED),
            (with("audiences", Value::Null), own, StatusCode::UNAUTHORIZED),
            (with("user", json!({"username": "alice"})), own, StatusCode::FORBIDDEN),
            (with("user", json!({"username": "system:serviceaccount:shop:web/x"})), own, StatusCode::FORBIDDEN),
            (with("user", json!({"username": "system:serviceaccount:shop"})), own, StatusCode::FORBIDDEN),
        ];
        for (status, name, expect) in checks {
            let error = ask(status.clone(), name).await.unwrap_err();
            assert_eq!(error.status(), expect, "{status} {name}: {error}");
            assert!(!error.to_string().contains("t0ken"));
        }
    }
}
