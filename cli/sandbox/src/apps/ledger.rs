//! Payments as lines over TCP, a protocol of the shop's own.
//!
//! `RECORD <order> <cents>` is answered with `OK <number> <sum of all cents>`, `SUM` with `OK <payments> <sum>`;
//! anything else with `ERROR <why>`. A client keeps its connection for many payments.

use super::serve;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Longest line.
const LINE_BYTES: u64 = 256;
/// A silent client is dropped after this long.
const IDLE: Duration = Duration::from_secs(300);

/// Answers until `stop`.
pub(crate) async fn run(listener: TcpListener, stop: CancellationToken) {
    let book = Arc::new(Mutex::new(Book::default()));
    serve::connections(listener, stop, |stream, drain| {
        let book = book.clone();
        async move {
            if let Err(e) = converse(stream, &book, &drain).await {
                tracing::debug!("a connection ended badly: {e}");
            }
        }
    })
    .await;
}

async fn converse(stream: TcpStream, book: &Mutex<Book>, drain: &CancellationToken) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        let mut limited = (&mut stream).take(LINE_BYTES);
        let read = tokio::select! {
            read = limited.read_line(&mut line) => read?,
            () = drain.cancelled() => return stream.shutdown().await,
            () = tokio::time::sleep(IDLE) => return stream.shutdown().await,
        };
        if read == 0 {
            return stream.shutdown().await;
        }
        if !line.ends_with('\n') {
            stream.write_all(b"ERROR the line is too long or broken off\n").await?;
            return stream.shutdown().await;
        }
        let answer = book.lock().answer(line.trim_end());
        stream.write_all(answer.as_bytes()).await?;
    }
}

#[derive(Default)]
struct Book {
    payments: u64,
    sum_cents: u64,
}

impl Book {
    fn answer(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["RECORD", _, cents] => match cents.parse::<u64>() {
                Ok(cents) => {
                    self.payments += 1;
                    self.sum_cents = self.sum_cents.saturating_add(cents);
                    format!("OK {} {}\n", self.payments, self.sum_cents)
                }
                Err(_) => "ERROR the amount is not a number of cents\n".to_owned(),
            },
            ["SUM"] => format!("OK {} {}\n", self.payments, self.sum_cents),
            _ => "ERROR expected RECORD <order> <cents> or SUM\n".to_owned(),
        }
    }
}

/// Why a payment was not recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LedgerError {
    #[error("the ledger at {0} could not be reached: {1}")]
    Io(String, std::io::Error),
    #[error("the ledger at {0} did not answer in time")]
    Timeout(String),
    #[error("the ledger answered `{0}`")]
    Refused(String),
}

/// A client of the ledger: one connection, made anew when it is old or broken.
pub(crate) struct LedgerClient {
    address: String,
    connection: tokio::sync::Mutex<Option<(BufReader<TcpStream>, Instant)>>,
}

impl LedgerClient {
    /// A connection is used for this long.
    const AGE: Duration = Duration::from_secs(20);
    /// One payment may take this long.
    const TIMEOUT: Duration = Duration::from_secs(5);

    pub(crate) fn new(address: &str) -> Self {
        Self { address: address.to_owned(), connection: tokio::sync::Mutex::new(None) }
    }

    /// Records a payment; the answer's number.
    pub(crate) async fn record(&self, order: &str, cents: u64) -> Result<u64, LedgerError> {
        let mut slot = self.connection.lock().await;
        // Out of its place while in use: a broken or abandoned one must not be used again.
        let kept = slot.take().filter(|(_, since)| since.elapsed() < Self::AGE);
        let exchange = async {
            let (mut stream, since) = match kept {
                Some(kept) => kept,
                None => (BufReader::new(TcpStream::connect(&self.address).await?), Instant::now()),
            };
            stream.write_all(format!("RECORD {order} {cents}\n").as_bytes()).await?;
            let mut line = String::new();
            if (&mut stream).take(LINE_BYTES).read_line(&mut line).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            Ok::<_, std::io::Error>((line, (stream, since)))
        };
        let (line, connection) = tokio::time::timeout(Self::TIMEOUT, exchange)
            .await
            .map_err(|_| LedgerError::Timeout(self.address.clone()))?
            .map_err(|e| LedgerError::Io(self.address.clone(), e))?;
        *slot = Some(connection);
        let number = line.strip_prefix("OK ").and_then(|rest| rest.split(' ').next()?.parse().ok());
        number.ok_or_else(|| LedgerError::Refused(line.trim_end().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payments_add_up_and_nonsense_is_told() {
        let mut book = Book::default();
        for (line, expect) in [
            ("SUM", "OK 0 0\n"),
            ("RECORD a 250", "OK 1 250\n"),
            ("RECORD b 50", "OK 2 300\n"),
            ("RECORD b", "ERROR expected RECORD <order> <cents> or SUM\n"),
            ("RECORD b -1", "ERROR the amount is not a number of cents\n"),
            ("", "ERROR expected RECORD <order> <cents> or SUM\n"),
            ("SUM", "OK 2 300\n"),
        ] {
            assert_eq!(book.answer(line), expect);
        }
    }
}
