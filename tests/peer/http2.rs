//! An HTTP/2 client close to the frames, for what ordinary clients don't do.

use super::{connect, websocket};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::time::{Duration, Instant};

pub(crate) async fn open(address: &str) -> Result<SendRequest<Bytes>> {
    // Room for many streams that nobody reads.
    let mut settings = h2::client::Builder::new();
    settings.initial_connection_window_size(64 << 20).initial_window_size(64 << 10);
    let (client, connection) = settings.handshake(connect(address).await?).await?;
    tokio::spawn(connection);
    Ok(client.ready().await?)
}

pub(crate) fn get(client: &mut SendRequest<Bytes>, address: &str, path: &str) -> Result<ResponseFuture> {
    Ok(send(client, address, Method::GET, path, true)?.0)
}

fn send(
    client: &mut SendRequest<Bytes>,
    address: &str,
    method: Method,
    path: &str,
    end: bool,
) -> Result<(ResponseFuture, SendStream<Bytes>)> {
    let request = Request::builder().method(method).uri(format!("http://{address}{path}")).body(())?;
    Ok(client.send_request(request, end)?)
}

/// Reads a body to its end, giving back the window.
async fn read(mut body: RecvStream) -> Result<Vec<u8>> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok(all)
}

async fn counter(address: &str, name: &str) -> Result<u64> {
    let mut client = open(address).await?;
    let text = read(get(&mut client, address, "/seen")?.await?.into_body()).await?;
    let text = String::from_utf8(text)?;
    let value = text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    Ok(value.with_context(|| text.clone())?.parse()?)
}

pub(crate) async fn client(address: &str, case: &str) -> Result<String> {
    match case {
        "slow-reader" => slow_reader(address).await,
        "cancel" => cancel(address).await,
        "be-reset" => be_reset(address).await,
        "ping" => ping(address).await,
        "early" => early(address).await,
        "rapid-reset" => rapid_reset(address).await,
        "websocket" => extended_connect(address).await,
        "trailers" => trailers(address).await,
        other => bail!("there is no case `{other}`"),
    }
}

/// Does not read some streams, and has everything else on the same connection all the same.
async fn slow_reader(address: &str) -> Result<String> {
    let mut client = open(address).await?;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(get(&mut client, address, "/big?5000000")?.await?.into_body());
    }
    // Until nothing of them moves any more.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let start = Instant::now();
    for _ in 0..20 {
        let response = get(&mut client, address, "/big?60000")?.await?;
        ensure!(read(response.into_body()).await?.len() == 60_000, "a body came short");
    }
    let took = start.elapsed();
    ensure!(took < Duration::from_secs(3), "others took {took:?}");
    drop(stalled);
    Ok("others flow".to_owned())
}

/// Cancels a request; the application notices.
async fn cancel(address: &str) -> Result<String> {
    let before = counter(address, "cancelled").await?;
    let mut client = open(address).await?;
    let (response, mut stream) = send(&mut client, address, Method::POST, "/hang", false)?;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream.send_reset(Reason::CANCEL);
    let error = response.await.err().context("it was answered")?;
    ensure!(error.is_reset(), "{error}");
    while counter(address, "cancelled").await? == before {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok("noticed".to_owned())
}

/// Is reset in the middle of an answer.
async fn be_reset(address: &str) -> Result<String> {
    let mut client = open(address).await?;
    let error = match get(&mut client, address, "/reset")?.await {
        Ok(response) => read(response.into_body()).await.err().context("the answer was complete")?,
        Err(error) => error.into(),
    };
    let reset = error.downcast_ref::<h2::Error>().filter(|error| error.is_reset()).context("no reset")?;
    let reason = reset.reason().context("no reason")?;
    // Only the stream is gone.
    let response = get(&mut client, address, "/alive")?.await?;
    ensure!(response.status() == StatusCode::OK, "{}", response.status());
    Ok(format!("{reason:?}"))
}

async fn ping(address: &str) -> Result<String> {
    let (client, mut connection) = h2::client::handshake(connect(address).await?).await?;
    let mut pings = connection.ping_pong().context("no pings")?;
    tokio::spawn(connection);
    let mut client = client.ready().await?;
    for _ in 0..3 {
        pings.ping(h2::Ping::opaque()).await?;
    }
    let response = get(&mut client, address, "/alive")?.await?;
    ensure!(response.status() == StatusCode::OK, "{}", response.status());
    Ok("pong".to_owned())
}

/// Is answered while it still sends.
async fn early(address: &str) -> Result<String> {
    let mut client = open(address).await?;
    let (response, mut stream) = send(&mut client, address, Method::POST, "/early", false)?;
    stream.send_data(Bytes::from_static(b"a beginning"), false)?;
    let response = response.await?;
    ensure!(response.status() == StatusCode::PAYLOAD_TOO_LARGE, "{}", response.status());
    Ok(String::from_utf8(read(response.into_body()).await?)?.trim_end().to_owned())
}

/// Opens streams and takes them back at once (CVE-2023-44487): the connection ends, or the streams are refused; others
/// are served all the while.
async fn rapid_reset(address: &str) -> Result<String> {
    let mut abuser = open(address).await?;
    let mut ended = None;
    for number in 0..20_000 {
        let opened = match abuser.clone().ready().await {
            Ok(ready) => {
                abuser = ready;
                send(&mut abuser, address, Method::POST, "/hang", false)
            }
            Err(error) => Err(error.into()),
        };
        match opened {
            Ok((_, mut stream)) => stream.send_reset(Reason::CANCEL),
            Err(error) => {
                ended = Some((number, error));
                break;
            }
        }
        if number % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let start = Instant::now();
    let mut other = open(address).await?;
    let response = get(&mut other, address, "/alive")?.await?;
    ensure!(response.status() == StatusCode::OK, "{}", response.status());
    ensure!(start.elapsed() < Duration::from_secs(2), "others waited {:?}", start.elapsed());
    let (number, error) = ended.context("twenty thousand streams were let through")?;
    ensure!(number < 15_000, "only after {number} streams: {error:#}");
    Ok("stopped".to_owned())
}

/// A WebSocket inside a stream (RFC 8441).
async fn extended_connect(address: &str) -> Result<String> {
    let io = TokioIo::new(connect(address).await?);
    let (mut client, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
    tokio::spawn(connection);
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://{address}/websocket"))
        .header("sec-websocket-version", "13")
        .body(Empty::<Bytes>::new())?;
    request.extensions_mut().insert(hyper::ext::Protocol::from_static("websocket"));
    // The other side allows it in its settings, which may be on their way.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let response = client.send_request(request).await?;
    ensure!(response.status() == StatusCode::OK, "{}", response.status());
    websocket::talk_as_client(TokioIo::new(hyper::upgrade::on(response).await?)).await
}

/// Trailers both ways.
async fn trailers(address: &str) -> Result<String> {
    let mut client = open(address).await?;
    let (response, mut stream) = send(&mut client, address, Method::POST, "/echo", false)?;
    stream.send_data(Bytes::from_static(b"body"), false)?;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "4".parse()?);
    stream.send_trailers(trailers)?;
    let mut body = response.await?.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let trailers = body.trailers().await?.context("no trailers")?;
    Ok(format!("{trailers:?}"))
}
