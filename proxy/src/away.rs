//! The answers that the mesh makes itself, in place of an endpoint: what is wrong and what to do about it, or where to
//! ask instead.

use crate::body::Download;
use crate::carriage::Stop;
use crate::fault::Reset;
use crate::grpc;
use crate::record::Record;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use mesh_api::MeshError;
use std::borrow::Cow;

/// Names the error of an answer that the mesh made.
pub const ERROR_HEADER: HeaderName = HeaderName::from_static(mesh_api::names::ERROR_HEADER);

/// Why a request goes no further, and what its client is told instead.
pub enum Away {
    /// An error, with details.
    Refused(MeshError, Cow<'static, str>),
    /// An error in the way that a policy asks for.
    Stopped(MeshError, Stop),
    /// To ask elsewhere.
    Redirected(StatusCode, HeaderValue),
}

impl Away {
    /// The client's answer; the account is settled.
    pub fn answer(self, record: Record) -> Response<Download> {
        match self {
            Away::Refused(error, detail) => refuse(record, error, &detail),
            Away::Stopped(error, stop) => refuse_as(record, error, stop),
            Away::Redirected(status, location) => send_elsewhere(record, (status, location)),
        }
    }
}

impl From<MeshError> for Away {
    fn from(error: MeshError) -> Self {
        Away::Refused(error, Cow::Borrowed(""))
    }
}

impl From<(MeshError, Stop)> for Away {
    fn from((error, stop): (MeshError, Stop)) -> Self {
        Away::Stopped(error, stop)
    }
}

/// Answers with a redirect.
fn send_elsewhere(mut record: Record, (status, location): (StatusCode, HeaderValue)) -> Response<Download> {
    record.answered(status.as_u16());
    record.completed();
    let mut response = Response::new(Download::Text(Bytes::new()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// Answers in place of an endpoint; says what is wrong and what to do about it.
fn refuse(mut record: Record, error: MeshError, detail: &str) -> Response<Download> {
    record.failed(error);
    if record.is_grpc() {
        let mut response = Response::new(Download::Text(Bytes::new()));
        *response.headers_mut() = grpc::trailers_only(error, detail);
        return response;
    }
    let text = format!("{}: {}\n", error.code(), error.sentence(detail));
    let mut response = Response::new(Download::Text(Bytes::from(text)));
    *response.status_mut() = StatusCode::from_u16(error.http_status()).unwrap_or(StatusCode::BAD_GATEWAY);
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response.headers_mut().insert(ERROR_HEADER, HeaderValue::from_static(error.code()));
    // What 401 must have (RFC 9110, section 11.6.1), in the words of RFC 6750, section 3.
    let challenge = match error {
        MeshError::JwtMissing => "Bearer",
        MeshError::JwtInvalid => r#"Bearer error="invalid_token""#,
        _ => return response,
    };
    response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// [`refuse`], in the way that a policy asks for.
fn refuse_as(mut record: Record, error: MeshError, stop: Stop) -> Response<Download> {
    let grpc = record.is_grpc();
    record.refused_with(stop.status);
    let mut response = refuse(record, error, "");
    if let Some((http, in_grpc)) = stop.status {
        if grpc {
            grpc::set_status(response.headers_mut(), in_grpc);
        } else if let Ok(status) = StatusCode::from_u16(http) {
            *response.status_mut() = status;
        }
    }
    if let Some(wait) = stop.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs()));
    }
    if stop.reset {
        response.extensions_mut().insert(Reset);
    }
    response
}
