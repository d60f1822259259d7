//! External authorisation: asks a service over HTTP whether an arriving request may pass, where an access policy says so.
//!
//! The service is called as any other is, through this proxy's own way out: endpoints, mutual TLS and balancing are the
//! mesh's, and golden metrics show what it costs. How many are asked at once and how long they take is bounded; what comes
//! of a failure, the policy says.

use crate::body::Received;
use crate::golden::Subject;
use crate::limits;
use crate::record::{Record, method_label};
use crate::request::{Client, choose};
use crate::timeout;
use crate::upload::Upload;
use crate::upstream::{self, Flight};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri, Version};
use http_body_util::BodyExt;
use mesh_api::Protocol;
use mesh_api::access::external::ExternalRule;
use mesh_api::golden::{Carried, TlsStatus};
use std::time::Duration;

/// What became of a question.
#[derive(Debug)]
pub enum Answer {
    /// It may pass, with these fields of the answer.
    Yes(HeaderMap),
    /// It may not: the status of the answer.
    No(StatusCode),
    /// Nobody said anything that counts, for this reason.
    Nothing(&'static str),
}

/// Where a question goes and how it is put, ready for use.
#[derive(Debug)]
pub struct Question {
    rule: ExternalRule,
    method: Method,
    uri: Uri,
    authority: HeaderValue,
    sends: Vec<HeaderName>,
    takes: Vec<HeaderName>,
}

impl Question {
    /// What a policy says of a service that is asked; an error names what cannot be used.
    pub fn compile(rule: &ExternalRule) -> Result<Self, String> {
        let names = |what: &str, names: &[String]| {
            let name = |name: &String| {
                name.parse::<HeaderName>().map_err(|_| format!("{what}: `{name}` is no name of a field"))
            };
            names.iter().map(name).collect::<Result<Vec<HeaderName>, String>>()
        };
        let uri = Uri::builder().scheme("http").authority(rule.authority.as_str()).path_and_query(rule.path.as_str());
        Ok(Self {
            method: rule.method.parse().map_err(|_| format!("method: `{}` is no method", rule.method))?,
            uri: uri.build().map_err(|_| format!("path: `{}` is no path", rule.path))?,
            authority: HeaderValue::from_str(&rule.authority).map_err(|_| "authority: not a host".to_owned())?,
            sends: names("headers", &rule.headers)?,
            takes: names("responseHeaders", &rule.response_headers)?,
            rule: rule.clone(),
        })
    }

    /// True if a request passes when nobody says anything that counts.
    pub fn fails_open(&self) -> bool {
        self.rule.fail_open
    }

    /// Asks about a request.
    pub async fn ask(&self, client: &Client, head: &Request<()>) -> Answer {
        let Ok(_slot) = client.proxy.questions.try_acquire() else {
            return Answer::Nothing("too many are being asked");
        };
        let limit = self.rule.timeout.duration().min(limits::EXTERNAL_TIME);
        let answer = tokio::time::timeout(limit, Box::pin(self.put(client, head, limit))).await;
        answer.unwrap_or(Answer::Nothing("no answer in time"))
    }

    /// The fields of an answer that a request carries on.
    pub fn takes(&self) -> &[HeaderName] {
        &self.takes
    }

    /// Puts what a service has said into a request.
    pub fn add(&self, said: &HeaderMap, headers: &mut HeaderMap) {
        for name in &self.takes {
            for value in said.get_all(name) {
                headers.append(name.clone(), value.clone());
            }
        }
    }

    async fn put(&self, client: &Client, head: &Request<()>, limit: Duration) -> Answer {
        let proxy = &client.proxy;
        let target = proxy.state.target(self.rule.address);
        let known = target.resolve(limit).await;
        let http2 = matches!(known.destination.protocol, Protocol::Http2 | Protocol::Grpc);
        let subject = Subject {
            carried: Carried::Http,
            tls: TlsStatus::Plain,
            route: target.learned.name(self.uri.path(), false),
            method: method_label(&self.method),
        };
        let mut record = Record::open(&proxy.golden, &known.scope, subject);
        let backend = match choose(proxy, &known.group, None, &[]) {
            Ok(backend) => backend,
            Err(error) => {
                record.failed(error);
                return Answer::Nothing("the service has no endpoint");
            }
        };
        let meshed = backend.endpoint.identity.is_some() && proxy.offers_identity();
        record.attempt(backend.scope.as_ref(), if meshed { TlsStatus::Mutual } else { TlsStatus::Plain });
        let flight = Flight::start(&backend, &known.group);
        let request = Box::new(self.request(client, head, http2).map(|()| Upload::from(Received::Nothing)));
        match upstream::send(proxy, &backend, request, timeout::of_connect(&Default::default())).await {
            Ok((response, lease)) => {
                flight.answered(&response, false);
                record.answered(response.status().as_u16());
                let (parts, mut body) = response.into_parts();
                let mut read = 0;
                while let Some(Ok(frame)) = body.frame().await {
                    read += frame.data_ref().map_or(0, bytes::Bytes::len);
                    if read > limits::EXTERNAL_ANSWER {
                        return judged(parts.status, parts.headers); // without its lease the connection is closed
                    }
                }
                record.completed();
                if let Some(lease) = lease {
                    lease.give_back();
                }
                judged(parts.status, parts.headers)
            }
            Err(unanswered) => {
                flight.failed(&unanswered.failure);
                record.failed(unanswered.failure.code);
                Answer::Nothing("the service cannot be reached")
            }
        }
    }

    /// The question: who calls what, as others that forward requests put it, and the fields that the policy names.
    fn request(&self, client: &Client, head: &Request<()>, http2: bool) -> Request<()> {
        let mut request = Request::new(());
        *request.method_mut() = self.method.clone();
        let headers = request.headers_mut();
        for name in &self.sends {
            for value in head.headers().get_all(name) {
                headers.append(name.clone(), value.clone());
            }
        }
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        };
        let uri = head.uri();
        let host = head.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        set("x-forwarded-method", head.method().as_str());
        set("x-forwarded-uri", uri.path_and_query().map_or("/", |path| path.as_str()));
        set("x-forwarded-host", uri.authority().map(|authority| authority.as_str()).or(host).unwrap_or_default());
        set("x-forwarded-for", &client.from.ip().to_string());
        set("x-mesh-caller", &client.identity.as_ref().map(ToString::to_string).unwrap_or_default());
        if http2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.uri.clone();
        } else {
            headers.insert(header::HOST, self.authority.clone());
            // It was part of a URI that could be built.
            *request.uri_mut() = self.uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
        }
        request
    }
}

fn judged(status: StatusCode, said: HeaderMap) -> Answer {
    match status.as_u16() {
        200..300 => Answer::Yes(said),
        500.. => Answer::Nothing("the service answers with an error of its own"),
        _ => Answer::No(status),
    }
}

/// The head of a request, to be asked about while its body waits.
pub fn head_of(request: &Request<Received>) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = request.uri().clone();
    *head.headers_mut() = request.headers().clone();
    head
}
