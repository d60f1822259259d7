//! Numbers once, or anew every second: what `stat`, `routes` and `edges` have in common.

use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::golden::Window;
use crate::observe::{self, Ask};
use crate::output::{Printer, RowFormat};
use futures::StreamExt;
use mesh_api::golden::{GoldenFrame, Unreachable};
use serde::Serialize;
use std::collections::VecDeque;
use std::io::IsTerminal;
use std::time::Duration;

/// How long the control plane may take beyond its own second.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// How an update is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// In which format.
    pub format: RowFormat,
    /// True if others follow.
    pub repeats: bool,
}

impl Style {
    /// One look.
    pub fn once(format: RowFormat) -> Self {
        Self { format, repeats: false }
    }
}

/// Has every update shown: one, or one a second until the stream breaks or nobody reads any longer.
pub async fn look(
    cluster: &Cluster,
    ask: &Ask,
    watch: bool,
    mut show: impl FnMut(&VecDeque<GoldenFrame>) -> Result<()>,
) -> Result<()> {
    if !watch {
        let frame = observe::once(cluster, ask, DEADLINE).await?;
        return show(&VecDeque::from([frame]));
    }
    let mut frames = observe::stream(cluster, &Ask { frames: None, ..ask.clone() }).await?;
    let mut window = Window::new(ask.window);
    loop {
        let next = tokio::time::timeout(DEADLINE, frames.next()).await;
        let silent = || Error::new(format!("no numbers for {} s", DEADLINE.as_secs())).during("read golden metrics");
        match next.map_err(|_| silent())? {
            Some(frame) => window.push(frame?),
            None => return Err(Error::new("the control plane ended the stream").during("read golden metrics")),
        }
        show(window.frames())?;
    }
}

/// Rows with the time they stand for: a line of `--watch -o json`.
#[derive(Serialize)]
struct Update<'a, T> {
    at_ms: u64,
    span_ms: u64,
    rows: &'a [T],
}

/// Writes rows as data, if data is wanted; false if a table is.
pub fn write_data<T: Serialize>(
    rows: &[T],
    frames: &VecDeque<GoldenFrame>,
    style: Style,
    printer: &Printer,
) -> Result<bool> {
    let at_ms = frames.back().map_or(0, |frame| frame.at_ms);
    let span_ms = frames.iter().map(|frame| frame.span_ms).sum();
    match (style.format, style.repeats) {
        (RowFormat::Json, false) => printer.json(rows)?,
        (RowFormat::Yaml, false) => printer.yaml(&rows)?,
        (RowFormat::Json, true) => printer.json_line(&Update { at_ms, span_ms, rows })?,
        (RowFormat::Yaml, true) => {
            printer.data("---\n")?;
            printer.yaml(&Update { at_ms, span_ms, rows })?;
        }
        (RowFormat::Table | RowFormat::Wide, repeats) => {
            if repeats && std::io::stdout().is_terminal() {
                // From the top, over what was there.
                printer.data("\x1b[H\x1b[2J")?;
            }
            return Ok(false);
        }
    }
    Ok(true)
}

/// Says whose numbers are missing, once that is certain.
pub fn warn_of_silent(frames: &VecDeque<GoldenFrame>, printer: &Printer) {
    if let Some(silent) = frames.back().map(|frame| frame.silent_proxies).filter(|silent| *silent > 0) {
        printer.warn(&format!("{silent} proxies did not answer in time; their numbers are missing"));
    }
    for Unreachable { replica, why } in frames.back().iter().flat_map(|frame| &frame.unreachable) {
        printer
            .warn(&format!("the control plane's replica {replica} cannot be asked ({why}); its proxies are missing"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::tests::{SHOP, frame};

    fn cluster() -> Cluster {
        let body: Vec<u8> = (1..=3u64)
            .flat_map(|second| {
                let mut line = serde_json::to_vec(&frame(SHOP, second * 1000, 1000)).unwrap();
                line.push(b'\n');
                line
            })
            .collect();
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let body = kube::client::Body::from(body.clone());
            async move { Ok::<_, std::io::Error>(http::Response::new(body)) }
        });
        Cluster::of_client(kube::Client::new(service, "default"))
    }

    #[tokio::test]
    async fn a_watch_shows_every_frame_and_says_when_there_are_no_more() {
        let ask = Ask { namespace: None, window: Duration::from_secs(2), frames: Some(1), pods: false };
        let mut spans = Vec::new();
        let add = |frames: &VecDeque<GoldenFrame>| {
            spans.push(frames.iter().map(|frame| frame.span_ms).sum::<u64>());
            Ok(())
        };
        let error = look(&cluster(), &ask, true, add).await.unwrap_err();
        assert_eq!(spans, [1000, 2000, 2000]);
        assert_eq!(error.to_string(), "cannot read golden metrics: the control plane ended the stream");
    }

    #[test]
    fn updates_are_lines_with_their_time() {
        let (printer, read) = Printer::memory();
        let frames = VecDeque::from([frame(SHOP, 7000, 1000)]);
        let write = |format| write_data(&[1, 2], &frames, Style { format, repeats: true }, &printer).unwrap();
        assert!(write(RowFormat::Json) && write(RowFormat::Yaml) && !write(RowFormat::Table));
        assert_eq!(
            read().0,
            "{\"at_ms\":7000,\"span_ms\":1000,\"rows\":[1,2]}\n---\nat_ms: 7000\nspan_ms: 1000\nrows:\n- 1\n- 2\n"
        );
    }
}
