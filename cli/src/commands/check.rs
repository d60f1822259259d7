//! `meshctl check`: is the cluster fit for the mesh, and the mesh well?

use crate::args::{Check, CheckFormat, Global};
use crate::check::{self, Report, Set, Status};
use crate::error::{Outcome, Result};
use crate::output::Printer;
use serde_json::json;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// Pause between two rounds of `--wait`.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Runs the checks and prints how they ended.
pub async fn run(global: &Global, args: &Check, printer: &Printer) -> Result<Outcome> {
    let set = match (args.pre, args.proxy) {
        (true, _) => Set::Pre,
        (false, true) => Set::Proxy,
        (false, false) => Set::Default,
    };
    let step = printer.step("checking");
    let deadline = Instant::now() + args.wait.unwrap_or_default();
    let reports = loop {
        let reports = check::run(global, args.namespace.as_deref(), set).await;
        let waiting: Vec<_> = reports.iter().filter(|r| r.status == Status::Failed).map(|r| r.id).collect();
        if waiting.is_empty() || Instant::now() >= deadline {
            break reports;
        }
        step.now(&format!("waiting for {}", waiting.join(", ")));
        tokio::time::sleep(AGAIN_AFTER).await;
    };
    drop(step);
    let healthy = reports.iter().all(|report| report.status != Status::Failed);
    match args.output {
        CheckFormat::Json => printer.json(&json!({"healthy": healthy, "checks": reports}))?,
        CheckFormat::Table => printer.data(&table(&reports, printer.colors()))?,
        CheckFormat::Short => printer.data(&short(&reports))?,
    }
    Ok(if healthy { Outcome::Well } else { Outcome::Problems })
}

fn table(reports: &[Report], colors: bool) -> String {
    let mut text = String::new();
    let width = reports.iter().map(|report| report.what.len()).max().unwrap_or(0);
    let mut category = "";
    // Writing to a String cannot fail.
    for report in reports {
        let of = report.id.split('.').next().unwrap_or_default();
        if of != category {
            let _ = writeln!(text, "{}{of}", if category.is_empty() { "" } else { "\n" });
            category = of;
        }
        let (mark, color) = match report.status {
            Status::Ok => ("✓", "32"),
            Status::Warning => ("!", "33"),
            Status::Failed => ("✗", "31"),
            Status::Skipped => ("-", "2"),
        };
        let mark = if colors { format!("\x1b[{color}m{mark}\x1b[0m") } else { mark.to_owned() };
        let _ = writeln!(text, "  {mark} {:width$}  {}", report.what, report.seen);
        if let Some(fix) = report.fix.as_ref().filter(|_| report.status != Status::Ok) {
            let _ = writeln!(text, "      {}  fix: {fix}", report.id);
        }
    }
    let count = |status| reports.iter().filter(|report| report.status == status).count();
    let others = [(Status::Warning, "to look at"), (Status::Failed, "failed"), (Status::Skipped, "skipped")];
    let _ = write!(text, "\n{} checks: {} ok", reports.len(), count(Status::Ok));
    for (status, word) in others.iter().filter(|(status, _)| count(*status) > 0) {
        let _ = write!(text, ", {} {word}", count(*status));
    }
    text.push('\n');
    text
}

fn short(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        let word = match report.status {
            Status::Ok | Status::Skipped => continue,
            Status::Warning => "warning",
            Status::Failed => "failed",
        };
        let _ = writeln!(text, "{word} {}: {}", report.id, report.seen);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;

    fn report(id: &'static str, what: &'static str, status: Status, seen: &str, fix: Option<&str>) -> Report {
        let fix = fix.map(str::to_owned);
        Report { id, what, severity: Severity::Error, status, seen: seen.into(), fix, took_ms: 3 }
    }

    fn reports() -> Vec<Report> {
        vec![
            report("api.reachable", "the API can be reached", Status::Ok, "https://127.0.0.1:6443 answered", None),
            report("api.version", "Kubernetes is recent enough", Status::Ok, "v1.34.0", None),
            report("control.pods-ready", "its pods are ready", Status::Failed, "0 of 1 ready", Some("kubectl logs x")),
            report("proxy.ready", "every proxy is ready", Status::Skipped, "no pod has a proxy yet", None),
        ]
    }

    #[test]
    fn the_table_groups_and_counts() {
        insta::assert_snapshot!(table(&reports(), false), @r"
        api
          ✓ the API can be reached       https://127.0.0.1:6443 answered
          ✓ Kubernetes is recent enough  v1.34.0

        control
          ✗ its pods are ready           0 of 1 ready
              control.pods-ready  fix: kubectl logs x

        proxy
          - every proxy is ready         no pod has a proxy yet

        4 checks: 2 ok, 1 failed, 1 skipped
        ");
    }

    #[test]
    fn short_tells_only_what_is_wrong() {
        assert_eq!(short(&reports()), "failed control.pods-ready: 0 of 1 ready\n");
    }

    #[test]
    fn json_keys_are_stable() {
        let value = serde_json::to_value(&reports()[2]).unwrap();
        assert_eq!(
            value,
            json!({"id": "control.pods-ready", "what": "its pods are ready", "severity": "error", "status": "failed",
                "seen": "0 of 1 ready", "fix": "kubectl logs x", "took_ms": 3})
        );
    }
}
