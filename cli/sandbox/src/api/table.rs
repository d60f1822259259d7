//! `meta.k8s.io/v1 Table` as `kubectl get` asks for it: the columns people know, and the ones a CRD declares.

use super::kinds::Resource;
use serde_json::{Value, json};

mod columns;
mod pods;

/// A column: name, whether only `-o wide` shows it, and what stands in it.
#[derive(Clone, Copy)]
struct Column {
    name: &'static str,
    wide: bool,
    cell: fn(&Value, i64) -> Value,
}

const fn narrow(name: &'static str, cell: fn(&Value, i64) -> Value) -> Column {
    Column { name, wide: false, cell }
}

const fn wide(name: &'static str, cell: fn(&Value, i64) -> Value) -> Column {
    Column { name, wide: true, cell }
}

/// Columns and rows for objects of one resource; `include_object` is `None`, `Metadata` or `Object`;
/// `now_ms` (Unix milliseconds) dates the age column.
pub fn table(resource: &Resource, objects: &[Value], include_object: &str, now_ms: u64) -> Value {
    let now = (now_ms / 1000) as i64;
    let (definitions, rows) = match &resource.custom {
        Some(version) => custom(version, objects, now),
        None => built_in(resource, objects, now),
    };
    let rows: Vec<Value> = rows
        .into_iter()
        .zip(objects)
        .map(|(cells, object)| {
            let mut row = json!({"cells": cells});
            match include_object {
                "None" => {}
                "Object" => row["object"] = object.clone(),
                _ => {
                    row["object"] = json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]});
                }
            }
            row
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": definitions, "rows": rows})
}

fn definition(name: &str, kind: &str, format: &str, description: &str, priority: u8) -> Value {
    json!({"name": name, "type": kind, "format": format, "description": description, "priority": priority})
}

fn built_in(resource: &Resource, objects: &[Value], now: i64) -> (Vec<Value>, Vec<Vec<Value>>) {
    let columns = columns::of(&resource.group, &resource.kind);
    let definitions = columns
        .iter()
        .map(|column| {
            let format = if column.name == "Name" { "name" } else { "" };
            definition(column.name, "string", format, "", u8::from(column.wide))
        })
        .collect();
    let rows = objects.iter().map(|object| columns.iter().map(|column| (column.cell)(object, now)).collect()).collect();
    (definitions, rows)
}

fn custom(version: &Value, objects: &[Value], now: i64) -> (Vec<Value>, Vec<Vec<Value>>) {
    let declared = version["additionalPrinterColumns"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut definitions = vec![definition("Name", "string", "name", "", 0)];
    definitions.extend(declared.iter().map(|c| {
        let priority = c["priority"].as_u64().unwrap_or(0) as u8;
        definition(&text(&c["name"]), &text(&c["type"]), &text(&c["format"]), &text(&c["description"]), priority)
    }));
    if declared.is_empty() {
        definitions.push(definition("Age", "date", "", "", 0));
    }
    let row = |object: &Value| {
        let mut cells = vec![name(object, now)];
        for column in &declared {
            let found = json_path(object, column["jsonPath"].as_str().unwrap_or_default());
            cells.push(match (column["type"].as_str(), found) {
                (Some("date"), Some(Value::String(at))) => since(&at, now).into(),
                (_, Some(value)) if value.is_object() || value.is_array() => value.to_string().into(),
                (_, Some(value)) => value,
                (_, None) => Value::Null,
            });
        }
        if declared.is_empty() {
            cells.push(age(object, now));
        }
        cells
    };
    (definitions, objects.iter().map(row).collect())
}

fn name(object: &Value, _: i64) -> Value {
    object["metadata"]["name"].clone()
}

fn age(object: &Value, now: i64) -> Value {
    moment(&object["metadata"]["creationTimestamp"], now)
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn text(value: &Value) -> Value {
    or(value, "<none>")
}

fn or(value: &Value, nothing: &str) -> Value {
    match value {
        Value::Null => nothing.into(),
        Value::String(text) if text.is_empty() => nothing.into(),
        other => plain(other).into(),
    }
}

fn number(value: &Value) -> Value {
    value.as_i64().unwrap_or(0).into()
}

fn fraction(have: &Value, want: &Value) -> Value {
    format!("{}/{}", have.as_i64().unwrap_or(0), want.as_i64().unwrap_or(1)).into()
}

fn size(value: &Value) -> usize {
    value.as_object().map_or(0, serde_json::Map::len)
}

fn count(value: &Value) -> Value {
    value.as_array().map_or(0, Vec::len).into()
}

/// Items of a list in words, at most three of them.
fn joined(list: &Value, word: impl Fn(&Value) -> String) -> Value {
    let items = list.as_array().map(Vec::as_slice).unwrap_or_default();
    if items.is_empty() {
        return "<unset>".into();
    }
    let shown = items.iter().take(3).map(word).collect::<Vec<_>>().join(",");
    if items.len() > 3 { format!("{shown} + {} more...", items.len() - 3).into() } else { shown.into() }
}

fn pairs(map: &Value) -> Value {
    let pairs: Vec<String> = map.as_object().into_iter().flatten().map(|(k, v)| format!("{k}={}", plain(v))).collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",").into() }
}

fn selector(selector: &Value) -> Value {
    let mut parts: Vec<String> = Vec::new();
    if let Value::String(text) = pairs(&selector["matchLabels"])
        && text != "<none>"
    {
        parts.push(text);
    }
    for rule in selector["matchExpressions"].as_array().into_iter().flatten() {
        let values = rule["values"].as_array().into_iter().flatten().map(plain).collect::<Vec<_>>().join(",");
        parts.push(match rule["operator"].as_str() {
            Some("In") => format!("{} in ({values})", plain(&rule["key"])),
            Some("NotIn") => format!("{} notin ({values})", plain(&rule["key"])),
            Some("DoesNotExist") => format!("!{}", plain(&rule["key"])),
            _ => plain(&rule["key"]),
        });
    }
    if parts.is_empty() { "<none>".into() } else { parts.join(",").into() }
}

fn containers(spec: &Value, field: &str) -> Value {
    spec["containers"].as_array().into_iter().flatten().map(|c| plain(&c[field])).collect::<Vec<_>>().join(",").into()
}

fn service_ports(ports: &Value) -> Value {
    let words: Vec<String> = ports
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| match p["nodePort"].as_u64() {
            Some(node) if node > 0 => format!("{}:{node}/{}", p["port"], plain(&p["protocol"])),
            _ => format!("{}/{}", p["port"], plain(&p["protocol"])),
        })
        .collect();
    if words.is_empty() { "<none>".into() } else { words.join(",").into() }
}

fn subsets(subsets: &Value) -> Value {
    let mut all = Vec::new();
    for subset in subsets.as_array().into_iter().flatten() {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            for port in subset["ports"].as_array().into_iter().flatten() {
                all.push(json!(format!("{}:{}", plain(&address["ip"]), port["port"])));
            }
        }
    }
    if all.is_empty() { "<none>".into() } else { joined(&Value::Array(all), plain) }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|c| c["type"] == kind)
}

fn node_status(node: &Value) -> Value {
    let ready = condition(node, "Ready").is_some_and(|c| c["status"] == "True");
    let state = if ready { "Ready" } else { "NotReady" };
    if node["spec"]["unschedulable"] == true { format!("{state},SchedulingDisabled").into() } else { state.into() }
}

fn job_status(job: &Value) -> Value {
    for (kind, word) in [("Complete", "Complete"), ("Failed", "Failed"), ("Suspended", "Suspended")] {
        if condition(job, kind).is_some_and(|c| c["status"] == "True") {
            return word.into();
        }
    }
    if job["metadata"]["deletionTimestamp"].is_string() { "Terminating".into() } else { "Running".into() }
}

fn job_duration(job: &Value, now: i64) -> Value {
    let time = |value: &Value| value.as_str().and_then(seconds);
    match (time(&job["status"]["startTime"]), time(&job["status"]["completionTime"])) {
        (None, _) => Value::Null,
        (Some(start), end) => words(end.unwrap_or(now) - start).into(),
    }
}

fn subjects(binding: &Value, kind: &str) -> Value {
    let mine = binding["subjects"].as_array().into_iter().flatten().filter(|s| s["kind"] == kind);
    let name = |s: &Value| {
        if kind == "ServiceAccount" {
            format!("{}/{}", plain(&s["namespace"]), plain(&s["name"]))
        } else {
            plain(&s["name"])
        }
    };
    mine.map(name).collect::<Vec<_>>().join(", ").into()
}

fn seconds(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

fn moment(value: &Value, now: i64) -> Value {
    value.as_str().map_or("<none>".into(), |text| since(text, now).into())
}

fn since(text: &str, now: i64) -> String {
    seconds(text).map_or_else(|| "<unknown>".to_owned(), |then| words(now - then))
}

/// A duration as kubectl writes it: two units at most, fewer the longer it is.
fn words(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |big: i64, unit: &str, small: i64, other: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{other}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () => two(days / 365, "y", days % 365, "d"),
    }
}

/// What a printer column's path leads to: `.a.b`, `.a[0]`, `.a['b.c']`, `.a[?(@.type=="Ready")].status`.
fn json_path(object: &Value, path: &str) -> Option<Value> {
    let mut here = object.clone();
    let mut rest = path.trim().trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inside) = rest.strip_prefix("[?(") {
            let (filter, after) = inside.split_once(")]")?;
            let (field, wanted) = filter.split_once("==")?;
            let field = field.trim().trim_start_matches("@.");
            let wanted = wanted.trim().trim_matches(['"', '\'']);
            here = here.as_array()?.iter().find(|item| plain(&item[field]) == wanted)?.clone();
            rest = after;
        } else if let Some(inside) = rest.strip_prefix('[') {
            let (index, after) = inside.split_once(']')?;
            here = match index.trim_matches(['"', '\'']).parse::<usize>() {
                Ok(number) if here.is_array() => here.get(number)?.clone(),
                _ if index == "*" => here.get(0)?.clone(),
                _ => here.get(index.trim_matches(['"', '\'']))?.clone(),
            };
            rest = after;
        } else {
            let plain = rest.trim_start_matches('.');
            // A dot in a field's name is written `\.`.
            let mut end = plain.len();
            let bytes = plain.as_bytes();
            for (at, byte) in bytes.iter().enumerate() {
                if (*byte == b'.' && (at == 0 || bytes[at - 1] != b'\\')) || *byte == b'[' {
                    end = at;
                    break;
                }
            }
            here = here.get(plain[..end].replace("\\.", "."))?.clone();
            rest = &plain[end..];
        }
    }
    Some(here).filter(|value| !value.is_null())
}

#[cfg(test)]
mod tests;
