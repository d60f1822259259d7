//! Events have two faces, `v1` and `events.k8s.io/v1`, over one collection; this turns one into the other.

use serde_json::{Value, json};

/// Fields that only changed their names: `(v1, events.k8s.io/v1)`.
const RENAMED: &[(&str, &str)] = &[
    ("message", "note"),
    ("involvedObject", "regarding"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("count", "deprecatedCount"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
];

/// Rewrites an event for `version`.
pub(super) fn convert(event: &mut Value, version: &str) {
    let to_core = version == "v1";
    let Some(fields) = event.as_object_mut() else { return };
    for (core, newer) in RENAMED {
        let (from, to) = if to_core { (newer, core) } else { (core, newer) };
        if let Some(value) = fields.shift_remove(*from) {
            fields.insert((*to).to_owned(), value);
        }
    }
    if to_core {
        // What `kubectl describe` prints comes from fields that writers of the newer form leave out.
        let time = fields.get("eventTime").cloned().unwrap_or(Value::Null);
        if let Some(component) = fields.get("reportingComponent").filter(|c| !c.is_null()).cloned()
            && fields.get("source").is_none_or(|source| source["component"].is_null())
        {
            fields.insert("source".to_owned(), json!({"component": component}));
        }
        let series = fields.get("series").cloned().unwrap_or(Value::Null);
        for (field, value) in [
            ("firstTimestamp", time.clone()),
            (
                "lastTimestamp",
                if series["lastObservedTime"].is_null() { time } else { series["lastObservedTime"].clone() },
            ),
            ("count", if series["count"].is_null() { json!(1) } else { series["count"].clone() }),
        ] {
            if fields.get(field).is_none_or(Value::is_null) && !value.is_null() {
                let value = if field == "count" { value } else { whole_seconds(&value) };
                fields.insert(field.to_owned(), value);
            }
        }
    }
}

/// `Time` fields have whole seconds where `MicroTime` fields have fractions.
fn whole_seconds(time: &Value) -> Value {
    let parsed = time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    parsed.map_or_else(|| time.clone(), |time| Value::String(super::timestamp_of(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_events_show_in_describe() {
        let mut event = json!({
            "note": "hello", "regarding": {"kind": "Pod"}, "reportingController": "x",
            "eventTime": "2026-01-02T03:04:05.600000Z",
        });
        convert(&mut event, "v1");
        assert_eq!(
            event,
            json!({
                "eventTime": "2026-01-02T03:04:05.600000Z", "message": "hello", "involvedObject": {"kind": "Pod"},
                "reportingComponent": "x", "source": {"component": "x"}, "firstTimestamp": "2026-01-02T03:04:05Z",
                "lastTimestamp": "2026-01-02T03:04:05Z", "count": 1,
            })
        );
        convert(&mut event, "events.k8s.io/v1");
        assert_eq!((&event["note"], &event["regarding"]["kind"]), (&json!("hello"), &json!("Pod")));
    }
}
