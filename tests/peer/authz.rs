//! A service that is asked whether requests may pass: the path of what is asked about says what it answers.

use super::http::{Body, full};
use super::ports;
use anyhow::Result;
use http::header::{AUTHORIZATION, HeaderName, HeaderValue};
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::time::Duration;
use tokio::net::TcpListener;

pub(super) async fn serve() -> Result<String> {
    tokio::spawn(accept(super::listen(ports::HTTP1).await?));
    super::ended().await
}

async fn accept(listener: TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        let service = service_fn(|request| async move { Ok::<_, Infallible>(answer(&request).await) });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(request: &Request<Incoming>) -> Response<Body> {
    let field = |headers: &HeaderMap, name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let headers = request.headers();
    let asked = field(headers, "x-forwarded-uri");
    let status = match asked.split('?').next().unwrap_or_default() {
        "/no" => 403,
        "/error" => 500,
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(20)).await;
            200
        }
        "/key" if field(headers, AUTHORIZATION.as_str()) != "open" => 401,
        _ => 200,
    };
    let mut response = Response::new(full(String::new()));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    let said = [
        ("x-user", field(headers, "x-mesh-caller")),
        (
            "x-asked",
            format!("{} {} for {} {asked}", request.method(), request.uri(), field(headers, "x-forwarded-method")),
        ),
    ];
    for (name, value) in said {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response
}
