//! `meshctl check`: is the cluster fit for the mesh, and the mesh well?

use crate::args::{Check, CheckFormat, Global};
use crate::check::{self, Report, Set, Status};
use crate::error::{Outcome, Result};
use crate::output::Printer;
use serde::Serialize;
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
    let chosen = check::Chosen::read(&args.only, &args.skip)?;
    let step = printer.step("checking");
    let deadline = Instant::now() + args.wait.unwrap_or_default();
    let reports = loop {
        let reports = check::run(global, args.namespace.as_deref(), set, &chosen).await;
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
        CheckFormat::Json => printer.json(&Checked { healthy, checks: reports })?,
        CheckFormat::Table => printer.data(&table(&reports, printer.colors()))?,
        CheckFormat::Short => printer.data(&short(&reports))?,
        CheckFormat::Junit => printer.data(&junit(&reports))?,
        CheckFormat::Github => printer.data(&github(&reports))?,
    }
    Ok(if healthy { Outcome::Well } else { Outcome::Problems })
}

/// What `-o json` prints; `cli/check.schema.json` is its schema.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Checked {
    /// True if nothing failed.
    healthy: bool,
    /// Every check that was run.
    checks: Vec<Report>,
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

/// JUnit's XML, as CI systems read it: a suite a category, a case a check.
fn junit(reports: &[Report]) -> String {
    let count = |status| reports.iter().filter(|report| report.status == status).count();
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites>\n  <testsuite name=\"meshctl check\" tests=\"{}\" failures=\"{}\" skipped=\"{}\">\n",
        reports.len(),
        count(Status::Failed),
        count(Status::Skipped)
    );
    // Writing to a String cannot fail.
    for report in reports {
        let (category, _) = report.id.split_once('.').unwrap_or((report.id, ""));
        let took = f64::from(u32::try_from(report.took_ms).unwrap_or(u32::MAX)) / 1000.0;
        let _ = write!(
            text,
            "    <testcase classname=\"{}\" name=\"{}\" time=\"{took:.3}\"",
            xml(category),
            xml(report.id)
        );
        let fix = report.fix.as_deref().map(|fix| format!("\nfix: {fix}")).unwrap_or_default();
        let _ = match report.status {
            Status::Ok => writeln!(text, "/>"),
            Status::Skipped => writeln!(text, "><skipped message=\"{}\"/></testcase>", xml(&report.seen)),
            Status::Warning => {
                writeln!(text, "><system-out>{}</system-out></testcase>", xml(&format!("{}{fix}", report.seen)))
            }
            Status::Failed => writeln!(
                text,
                "><failure message=\"{}\">{}</failure></testcase>",
                xml(&report.seen),
                xml(&format!("{}{fix}", report.what))
            ),
        };
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

/// Text as XML holds it. Control characters that XML has no place for are left out.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            c if c.is_control() => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// Workflow commands that GitHub shows as annotations.
fn github(reports: &[Report]) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let mut text = String::new();
    for report in reports {
        let level = match report.status {
            Status::Ok | Status::Skipped => continue,
            Status::Warning => "warning",
            Status::Failed => "error",
        };
        let fix = report.fix.as_deref().map(|fix| format!("\nfix: {fix}")).unwrap_or_default();
        let _ =
            writeln!(text, "::{level} title=meshctl check {}::{}", report.id, data(&format!("{}{fix}", report.seen)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Severity;
    use serde_json::json;

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

    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("check.schema.json");
        let schema = schemars::schema_for!(Checked).to_value();
        if std::env::var_os("MESH_UPDATE").is_some() {
            std::fs::write(&file, serde_json::to_string_pretty(&schema).unwrap() + "\n").unwrap();
        }
        let committed = std::fs::read_to_string(&file).unwrap_or_default();
        let committed: serde_json::Value = serde_json::from_str(&committed).unwrap_or_default();
        assert_eq!(committed, schema, "run with MESH_UPDATE=1 to write check.schema.json anew");
    }

    #[test]
    fn junit_is_what_ci_systems_read() {
        let mut reports = reports();
        reports[2].seen = "0 of <1> & \"more\"\u{7}".into();
        insta::assert_snapshot!(junit(&reports), @r#"
        <?xml version="1.0" encoding="UTF-8"?>
        <testsuites>
          <testsuite name="meshctl check" tests="4" failures="1" skipped="1">
            <testcase classname="api" name="api.reachable" time="0.003"/>
            <testcase classname="api" name="api.version" time="0.003"/>
            <testcase classname="control" name="control.pods-ready" time="0.003"><failure message="0 of &lt;1&gt; &amp; &quot;more&quot;">its pods are ready&#10;fix: kubectl logs x</failure></testcase>
            <testcase classname="proxy" name="proxy.ready" time="0.003"><skipped message="no pod has a proxy yet"/></testcase>
          </testsuite>
        </testsuites>
        "#);
    }

    #[test]
    fn github_gets_annotations() {
        assert_eq!(
            github(&reports()),
            "::error title=meshctl check control.pods-ready::0 of 1 ready%0Afix: kubectl logs x\n"
        );
    }
}
