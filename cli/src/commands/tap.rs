//! `meshctl tap`: requests and connections as they come to their end.

use crate::args::{Global, Tap, TapFormat};
use crate::cluster::Cluster;
use crate::error::{Error, Outcome, Result};
use crate::output::Printer;
use crate::resource::{Kind, Resource};
use crate::selector::select;
use crate::tap::lines::{Style, line, summary};
use crate::tap::{self, TapAsk, TapTarget};
use futures::{Stream, StreamExt};
use jiff::tz::TimeZone;
use mesh_api::tap::filter::{FilterError, TapFilter, Term};
use mesh_api::tap::{TapLeftOut, TapMessage, TapStatus};
use std::pin::pin;
use tokio::signal::unix::{SignalKind, signal};

/// Taps until it is interrupted, nobody reads any longer, or its time is over.
pub async fn run(global: &Global, args: &Tap, printer: &Printer) -> Result<Outcome> {
    let of = Resource::read(&args.resource)?;
    if of.kind == Kind::All && of.name.is_some() {
        return Err(Error::new(format!("`{of}` does not say of which kind")).hint("write for instance deploy/web"));
    }
    let filter = filter(args)?;
    let cluster = Cluster::connect(global).await?;
    let namespace = if of.kind == Kind::Namespace { of.name.clone() } else { cluster.scope(&args.namespaces) };
    let only = match &args.selector {
        Some(labels) => Some(select(&cluster, &of, namespace.as_deref(), labels).await?),
        None => None,
    };
    if only.as_ref().is_some_and(std::collections::BTreeSet::is_empty) {
        let labels = args.selector.as_deref().unwrap_or_default();
        return Err(Error::new(format!("no {of} has the labels {labels}")).during("tap"));
    }
    let ask = TapAsk {
        target: TapTarget { namespace, of, only },
        filter,
        max_rps: args.max_rps,
        sample: args.sample,
        headers: args.output == TapFormat::Json,
        bodies: args.bodies,
        secrets: args.show_secrets,
        duration: args.duration,
    };
    let messages = tap::stream(&cluster, &ask).await?;
    let ended = show(messages, &ask, args.output, printer, interruption()).await;
    match ended {
        Err(error) if error.is_broken_pipe() => Ok(Outcome::Well),
        other => other.map(|()| Outcome::Well),
    }
}

async fn interruption() {
    match signal(SignalKind::terminate()) {
        Ok(mut terminated) => {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
        }
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// Prints what comes until the end, and then what was left out.
async fn show(
    messages: impl Stream<Item = Result<TapMessage>>,
    ask: &TapAsk,
    format: TapFormat,
    printer: &Printer,
    interruption: impl Future<Output = ()>,
) -> Result<()> {
    let mut messages = pin!(messages);
    let mut interruption = pin!(interruption);
    let mut seen = Seen { shown: 0, status: None };
    let result = loop {
        let message = tokio::select! {
            () = &mut interruption => break Ok(()),
            message = messages.next() => message,
        };
        match message {
            None => break Ok(()),
            Some(Err(error)) => break Err(error),
            Some(Ok(message)) => {
                if let Err(error) = seen.take(message, ask, format, printer) {
                    break Err(error);
                }
            }
        }
    };
    let left_out = seen.status.map_or(TapLeftOut::default(), |status| status.left_out);
    printer.note(&summary(seen.shown, &left_out, ask.max_rps));
    result
}

/// What has been shown and said.
struct Seen {
    shown: u64,
    status: Option<TapStatus>,
}

impl Seen {
    fn take(&mut self, message: TapMessage, ask: &TapAsk, format: TapFormat, printer: &Printer) -> Result<()> {
        match message {
            TapMessage::Event(event) => {
                match format {
                    TapFormat::Json => printer.json_line(&event)?,
                    TapFormat::Line | TapFormat::Wide => {
                        let wide = format == TapFormat::Wide;
                        let style = Style { wide, colors: printer.colors(), zone: TimeZone::system() };
                        printer.data(&line(&event, &style))?;
                    }
                }
                self.shown += 1;
            }
            TapMessage::Status(status) => {
                if !status.last {
                    self.comment(&status, ask, printer);
                }
                self.status = Some(status);
            }
            TapMessage::Unknown => {}
        }
        Ok(())
    }

    /// Says who taps, when it is known or has changed.
    fn comment(&self, status: &TapStatus, ask: &TapAsk, printer: &Printer) {
        let before = self.status.as_ref();
        let who = |status: &TapStatus| (status.pods, status.meshed_pods, status.proxies);
        if before.map(who) != Some(who(status)) {
            let TapStatus { pods, meshed_pods, proxies, .. } = *status;
            let of = &ask.target.of;
            match proxies {
                0 if pods == 0 => printer.warn(&format!("no pods of {of} are running; waiting for some")),
                0 if meshed_pods == 0 => printer.warn(&format!(
                    "none of the {pods} pods of {of} has a proxy, so nothing can be seen; `meshctl inject` adds one"
                )),
                0 => printer.warn(&format!("none of the {meshed_pods} proxies of {of} taps yet")),
                _ => printer.note(&format!("Tapping {proxies} of {pods} pods; Ctrl-C ends it.")),
            }
        }
        for refusal in &status.refusals {
            if !before.is_some_and(|before| before.refusals.contains(refusal)) {
                printer.warn(&format!("a proxy does not tap: {refusal}"));
            }
        }
    }
}

/// The filter that the flags mean.
fn filter(args: &Tap) -> Result<TapFilter> {
    let mut filter = TapFilter::default();
    let place = |text: &Option<String>| text.as_deref().map(place);
    let mut given: Vec<(Term, &str, Option<String>)> = vec![
        (Term::Direction, "--direction", args.direction.clone()),
        (Term::Protocol, "--protocol", args.protocol.clone()),
        (Term::Method, "--method", args.method.clone()),
        (Term::Path, "--path", args.path.clone()),
        (Term::Route, "--route", args.route.clone()),
        (Term::Status, "--status", args.status.clone()),
        (Term::GrpcStatus, "--grpc-status", args.grpc_status.clone()),
        (Term::Error, "--error", args.error.clone()),
        (Term::SlowerThan, "--slower-than", args.slower_than.clone()),
        (Term::Identity, "--identity", args.identity.clone()),
        (Term::From, "--from", place(&args.from)),
        (Term::To, "--to", place(&args.to)),
    ];
    given.extend(args.header.iter().map(|header| (Term::Header, "--header", Some(header.clone()))));
    for (term, flag, value) in given {
        let Some(value) = value else { continue };
        term.parse(&value, &mut filter).map_err(|error| wrong(flag, &value, &error))?;
    }
    Ok(filter)
}

fn wrong(flag: &str, value: &str, error: &FilterError) -> Error {
    let FilterError { at, expected, found, example } = error;
    let found = if found.is_empty() { "the end".to_owned() } else { format!("`{found}`") };
    let example = example.split_once('=').map_or(*example, |(_, value)| value);
    Error::new(format!("at character {}: expected {expected}, found {found}", at + 1))
        .during(format!("understand {flag} {value}"))
        .hint(format!("write for instance {flag} {example}"))
}

/// A place with its kind in full: `deploy/web` is `deployment/web`. What cannot be read stays, to be refused as it is.
fn place(text: &str) -> String {
    let full = |kind: &str| Resource::read_one(kind).map_or(kind.to_owned(), |resource| resource.to_string());
    match text.split('/').collect::<Vec<_>>()[..] {
        [kind, name] => format!("{}/{name}", full(kind)),
        [namespace, kind, name] => format!("{namespace}/{}/{name}", full(kind)),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tap::lines::tests::request;

    fn args(line: &str) -> Tap {
        let words = ["meshctl", "tap"].into_iter().chain(line.split_whitespace());
        match crate::args::Cli::read(words.map(std::ffi::OsString::from).collect()).unwrap().command {
            crate::args::Command::Tap(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_become_a_filter() {
        let line = "deploy/web --method get --path /a --status 5xx --header x-user=bob --header accept --slower-than 200ms \
                    --grpc-status 14 --from deploy/load --to shop/svc/cart --direction inbound --route /a --identity */sa/x \
                    --protocol http --error any";
        let filter = filter(&args(line)).unwrap().to_string();
        for term in [
            "direction=inbound protocol=http method=GET path=/a route=/a header=x-user=bob header=accept status=5xx",
            "grpc-status=14 error=no-endpoints,",
            "slower-than=200000us identity=*/sa/x from=deployment/load to=shop/service/cart",
        ] {
            assert!(filter.contains(term), "{filter}");
        }
        assert_eq!(args("").max_rps, 100);
        assert!((args("--sample 10%").sample - 0.1).abs() < 1e-9);
    }

    #[test]
    fn a_flag_that_cannot_be_read_is_told_with_its_place_and_an_example() {
        let check = |line: &str, expect: &str, hint: &str| {
            let error = filter(&args(line)).unwrap_err();
            assert_eq!(error.to_string(), expect);
            assert_eq!(error.hint_text(), Some(hint));
        };
        check(
            "--status 5xx,6yx",
            "cannot understand --status 5xx,6yx: at character 5: expected a status (503), a class of them (5xx) or a range \
             (500-504), found `6yx`",
            "write for instance --status 5xx,404",
        );
        check(
            "--from teapot/x",
            "cannot understand --from teapot/x: at character 1: expected a kind (deployment, statefulset, daemonset, \
             replicaset, job, cronjob, pod, service, namespace), found `teapot`",
            "write for instance --from deployment/web",
        );
    }

    fn event() -> Result<TapMessage> {
        Ok(TapMessage::Event(Box::new(request())))
    }

    fn status(status: TapStatus) -> Result<TapMessage> {
        Ok(TapMessage::Status(status))
    }

    async fn shown(messages: Vec<Result<TapMessage>>, format: TapFormat) -> (String, String, Result<()>) {
        let target = TapTarget { namespace: None, of: Resource::read_one("deploy/web").unwrap(), only: None };
        let ask = TapAsk::new(target, TapFilter::default());
        let (printer, read) = Printer::memory();
        let messages = futures::stream::iter(messages);
        let result = show(messages, &ask, format, &printer, std::future::pending()).await;
        let (out, err) = read();
        (out, err, result)
    }

    #[tokio::test]
    async fn the_end_says_how_many_were_shown_and_left_out() {
        let begun = TapStatus { pods: 3, meshed_pods: 2, proxies: 2, ..TapStatus::default() };
        let left_out = TapLeftOut { rate_limited: 12, ..TapLeftOut::default() };
        let last = TapStatus { shown: 2, left_out, last: true, ..begun.clone() };
        let (out, err, result) = shown(vec![status(begun), event(), event(), status(last)], TapFormat::Json).await;
        assert!(result.is_ok());
        assert_eq!(out.lines().count(), 2);
        let parsed: serde_json::Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
        assert_eq!(parsed["http"]["status"], 200);
        let expect = "Tapping 2 of 3 pods; Ctrl-C ends it.\n2 shown, 12 left out: 12 over --max-rps 100.\n";
        assert_eq!(err, expect);
    }

    #[tokio::test]
    async fn who_cannot_be_seen_is_told_once() {
        let unmeshed = TapStatus { pods: 2, ..TapStatus::default() };
        let refused = TapStatus { pods: 2, meshed_pods: 1, refusals: vec!["too old".into()], ..TapStatus::default() };
        let messages = vec![status(unmeshed.clone()), status(unmeshed), status(refused.clone()), status(refused)];
        let (_, err, _) = shown(messages, TapFormat::Line).await;
        assert_eq!(err.matches("none of the 2 pods of deployment/web has a proxy").count(), 1, "{err}");
        assert_eq!(err.matches("a proxy does not tap: too old").count(), 1, "{err}");
    }

    #[tokio::test]
    async fn a_broken_stream_is_an_error_after_the_count() {
        let (_, err, result) = shown(vec![event(), Err(Error::new("gone"))], TapFormat::Wide).await;
        assert_eq!(result.unwrap_err().to_string(), "gone");
        assert!(err.ends_with("1 shown, none left out.\n"), "{err}");
    }
}
