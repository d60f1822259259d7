//! Reads request bodies in Kubernetes' protobuf encoding, which `kubectl create` and typed Go clients send for
//! built-in kinds. Answers are always JSON, which those clients accept.
//!
//! The wire format is protobuf's (tags, varints, lengths) inside an envelope; which field means what is the table
//! `protobuf.txt`. Unknown fields are skipped, as protobuf demands.

use super::timestamp_of;
use base64::Engine;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::OnceLock;

/// First bytes of every such body.
const MAGIC: &[u8] = b"k8s\0";
/// Messages nested deeper are refused.
const DEPTH: usize = 64;
const TABLE: &str = include_str!("protobuf.txt");

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    String,
    Bytes,
    Int,
    Bool,
    Double,
    /// `Time` and `MicroTime`: seconds and nanoseconds since 1970.
    Time,
    MicroTime,
    Duration,
    Quantity,
    IntOrString,
    /// Raw JSON in a message (`FieldsV1`, `RawExtension`).
    Raw,
    /// A named list of strings.
    Items,
    Message(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    One,
    Repeated,
    Mapped,
}

#[derive(Debug)]
struct Field {
    number: u64,
    /// Empty: the message's fields belong to its parent.
    name: &'static str,
    keeps_zero: bool,
    shape: Shape,
    kind: Type,
}

type Messages = HashMap<&'static str, Vec<Field>>;

fn messages() -> &'static Messages {
    static MESSAGES: OnceLock<Messages> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
        lines
            .filter_map(|line| {
                line.split_once(' ').map(|(name, fields)| (name, fields.split(' ').filter_map(read_field).collect()))
            })
            .collect()
    })
}

fn read_field(text: &'static str) -> Option<Field> {
    let mut parts = text.splitn(3, ':');
    let number = parts.next()?.parse().ok()?;
    let name = parts.next()?;
    let written = parts.next()?;
    let keeps_zero = name.ends_with('!');
    let (shape, kind) = if let Some(inner) = written.strip_prefix("[]") {
        (Shape::Repeated, inner)
    } else if let Some(inner) = written.strip_prefix("map<") {
        (Shape::Mapped, inner.trim_end_matches('>'))
    } else {
        (Shape::One, written)
    };
    let kind = match kind {
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "int" => Type::Int,
        "bool" => Type::Bool,
        "double" => Type::Double,
        "Time" => Type::Time,
        "MicroTime" => Type::MicroTime,
        "Duration" => Type::Duration,
        "Quantity" => Type::Quantity,
        "IntOrString" => Type::IntOrString,
        "FieldsV1" | "RawExtension" => Type::Raw,
        "Items" => Type::Items,
        message => Type::Message(message),
    };
    Some(Field { number, name: name.trim_end_matches('!'), keeps_zero, shape, kind })
}

/// Decodes a body into the JSON the same object would have; the error says what is wrong with it.
pub(super) fn decode(body: &[u8]) -> Result<Value, String> {
    let envelope = body.strip_prefix(MAGIC).ok_or("the body does not begin with the bytes \"k8s\\0\"")?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for field in Reader(envelope) {
        match field? {
            (1, Wire::Bytes(types)) => {
                for field in Reader(types) {
                    match field? {
                        (1, Wire::Bytes(bytes)) => version = text(bytes)?,
                        (2, Wire::Bytes(bytes)) => kind = text(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            (3 | 4, Wire::Bytes(bytes)) if !bytes.is_empty() && bytes != b"application/vnd.kubernetes.protobuf" => {
                return Err("the enclosed object is encoded in an unknown way".to_owned());
            }
            _ => {}
        }
    }
    let message = message_of(&version, &kind)
        .ok_or_else(|| format!("no kind \"{kind}\" of \"{version}\" is known in this encoding; send JSON"))?;
    let mut object = Map::new();
    object.insert("kind".to_owned(), kind.into());
    object.insert("apiVersion".to_owned(), version.into());
    read_message(message, raw, &mut object, DEPTH)?;
    Ok(Value::Object(object))
}

/// The table's name of a kind.
fn message_of(version: &str, kind: &str) -> Option<&'static str> {
    let (group, number) = version.split_once('/').unwrap_or(("", version));
    let package = match (kind, group) {
        ("DeleteOptions", _) => "meta".to_owned(),
        ("Scale", _) => "autoscaling1".to_owned(),
        (_, "") => "core".to_owned(),
        (_, "rbac.authorization.k8s.io") => "rbac".to_owned(),
        (_, "autoscaling") => format!("autoscaling{}", number.trim_start_matches('v')),
        _ if number != "v1" => return None,
        (_, group) => group.split('.').next().unwrap_or(group).to_owned(),
    };
    messages().get_key_value(format!("{package}.{kind}").as_str()).map(|(name, _)| *name)
}

fn read_message(name: &str, bytes: &[u8], object: &mut Map<String, Value>, depth: usize) -> Result<(), String> {
    if depth == 0 {
        return Err("messages are nested too deeply".to_owned());
    }
    let Some(fields) = messages().get(name) else { return Ok(()) };
    for entry in Reader(bytes) {
        let (number, wire) = entry?;
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        match field.shape {
            Shape::One if field.name.is_empty() => {
                if let (Type::Message(inner), Wire::Bytes(bytes)) = (field.kind, wire) {
                    read_message(inner, bytes, object, depth - 1)?;
                }
            }
            Shape::One => {
                let value = read_value(field.kind, wire, depth)?;
                let is_zero = value == "" || value == 0 || value == false || value.is_null();
                if field.keeps_zero || !is_zero {
                    object.insert(field.name.to_owned(), value);
                }
            }
            Shape::Repeated => {
                let list = object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(list) = list {
                    read_repeated(field.kind, wire, list, depth)?;
                }
            }
            Shape::Mapped => {
                let Wire::Bytes(bytes) = wire else { return Err(format!("{name}.{}: not a map", field.name)) };
                let (key, value) = read_entry(field.kind, bytes, depth)?;
                let map = object.entry(field.name).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(map) = map {
                    map.insert(key, value);
                }
            }
        }
    }
    Ok(())
}

fn read_repeated(kind: Type, wire: Wire<'_>, list: &mut Vec<Value>, depth: usize) -> Result<(), String> {
    // Numbers may come packed into one length-delimited field.
    if let (Type::Int | Type::Bool, Wire::Bytes(mut bytes)) = (kind, wire) {
        while !bytes.is_empty() {
            let number = varint(&mut bytes)?;
            list.push(read_value(kind, Wire::Varint(number), depth)?);
        }
        return Ok(());
    }
    list.push(read_value(kind, wire, depth)?);
    Ok(())
}

fn read_entry(kind: Type, bytes: &[u8], depth: usize) -> Result<(String, Value), String> {
    let mut key = String::new();
    let mut value = match kind {
        Type::String | Type::Bytes => Value::String(String::new()),
        Type::Int => 0.into(),
        Type::Bool => false.into(),
        _ => Value::Null,
    };
    for field in Reader(bytes) {
        match field? {
            (1, Wire::Bytes(bytes)) => key = text(bytes)?,
            (2, wire) => value = read_value(kind, wire, depth)?,
            _ => {}
        }
    }
    Ok((key, value))
}

fn read_value(kind: Type, wire: Wire<'_>, depth: usize) -> Result<Value, String> {
    Ok(match (kind, wire) {
        // Negative numbers are sent as their 64-bit two's complement.
        (Type::Int, Wire::Varint(number)) => (number as i64).into(),
        (Type::Bool, Wire::Varint(number)) => (number != 0).into(),
        (Type::Double, Wire::Fixed(bits)) => f64::from_bits(bits).into(),
        (Type::String, Wire::Bytes(bytes)) => text(bytes)?.into(),
        (Type::Bytes, Wire::Bytes(bytes)) => base64::engine::general_purpose::STANDARD.encode(bytes).into(),
        (Type::Message(name), Wire::Bytes(bytes)) => {
            let mut object = Map::new();
            read_message(name, bytes, &mut object, depth - 1)?;
            Value::Object(object)
        }
        (Type::Time | Type::MicroTime, Wire::Bytes(bytes)) => time(bytes, kind == Type::MicroTime)?,
        (Type::Quantity, Wire::Bytes(bytes)) => first(bytes)?.map(text).transpose()?.unwrap_or_default().into(),
        (Type::Duration, Wire::Bytes(bytes)) => duration(number(bytes, 1)?),
        (Type::IntOrString, Wire::Bytes(bytes)) => int_or_string(bytes)?,
        (Type::Raw, Wire::Bytes(bytes)) => match first(bytes)? {
            Some(raw) => serde_json::from_slice(raw).map_err(|error| format!("raw JSON inside the object: {error}"))?,
            None => Value::Null,
        },
        (Type::Items, Wire::Bytes(bytes)) => {
            let mut items = Vec::new();
            for field in Reader(bytes) {
                if let (1, Wire::Bytes(item)) = field? {
                    items.push(Value::String(text(item)?));
                }
            }
            Value::Array(items)
        }
        _ => return Err("a field has the wrong wire type".to_owned()),
    })
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a string is not UTF-8".to_owned())
}

/// Field 1 of a message that wraps something.
fn first(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    let mut found = None;
    for field in Reader(bytes) {
        if let (1, Wire::Bytes(bytes)) = field? {
            found = Some(bytes);
        }
    }
    Ok(found)
}

fn number(bytes: &[u8], wanted: u64) -> Result<i64, String> {
    let mut found = 0;
    for field in Reader(bytes) {
        match field? {
            (number, Wire::Varint(value)) if number == wanted => found = value as i64,
            _ => {}
        }
    }
    Ok(found)
}

fn time(bytes: &[u8], micro: bool) -> Result<Value, String> {
    let (seconds, nanos) = (number(bytes, 1)?, number(bytes, 2)?);
    // Go's zero time is year 1; an empty message is the same.
    if bytes.is_empty() || seconds < 0 {
        return Ok(Value::Null);
    }
    let nanos = i32::try_from(nanos).map_err(|_| "a time is out of range".to_owned())?;
    let time = jiff::Timestamp::new(seconds, nanos).map_err(|_| "a time is out of range".to_owned())?;
    Ok(if micro { time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string() } else { timestamp_of(time) }.into())
}

/// Nanoseconds as Go writes durations in JSON; whole seconds are all that is used.
fn duration(nanos: i64) -> Value {
    if nanos % 1_000_000_000 == 0 { format!("{}s", nanos / 1_000_000_000) } else { format!("{nanos}ns") }.into()
}

fn int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut int, mut string) = (false, 0, String::new());
    for field in Reader(bytes) {
        match field? {
            (1, Wire::Varint(kind)) => is_text = kind == 1,
            (2, Wire::Varint(value)) => int = value as i64,
            (3, Wire::Bytes(bytes)) => string = text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { string.into() } else { int.into() })
}

/// A field's content as the wire has it.
#[derive(Debug, Clone, Copy)]
enum Wire<'a> {
    Varint(u64),
    Fixed(u64),
    Bytes(&'a [u8]),
}

/// Reads the fields of one message.
struct Reader<'a>(&'a [u8]);

impl<'a> Iterator for Reader<'a> {
    type Item = Result<(u64, Wire<'a>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Reader<'a> {
    fn field(&mut self) -> Result<(u64, Wire<'a>), String> {
        let tag = varint(&mut self.0)?;
        let wire = match tag & 7 {
            0 => Wire::Varint(varint(&mut self.0)?),
            1 => Wire::Fixed(fixed::<8>(self.take(8)?)),
            2 => {
                let length = varint(&mut self.0)?;
                Wire::Bytes(self.take(usize::try_from(length).unwrap_or(usize::MAX))?)
            }
            5 => Wire::Fixed(fixed::<4>(self.take(4)?)),
            _ => return Err("a field has an unknown wire type".to_owned()),
        };
        Ok((tag >> 3, wire))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("the body ends in the middle of a field")?;
        self.0 = rest;
        Ok(taken)
    }
}

fn fixed<const N: usize>(bytes: &[u8]) -> u64 {
    bytes.iter().take(N).rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or("the body ends in the middle of a number")?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err("a number is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).unwrap()];
        out.extend(content);
        out
    }

    fn enveloped(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let types = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &types), field(2, raw), field(3, b""), field(4, b"")].concat()
    }

    #[test]
    fn reads_objects() {
        let metadata = [field(1, b"a"), field(2, b""), vec![7 << 3, 0], field(8, b"")].concat();
        let entry = [field(1, b"k"), field(2, b"v")].concat();
        let map = [field(1, &metadata), field(2, &entry), vec![4 << 3, 0]].concat();
        assert_eq!(
            decode(&enveloped("v1", "ConfigMap", &map)),
            Ok(
                json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"k": "v"}, "immutable": false})
            )
        );
        let port = [vec![3 << 3, 80], field(4, &[1 << 3, 1, 3 << 3 | 2, 2, b'h', b't'])].concat();
        let service = field(2, &field(1, &port));
        assert_eq!(
            decode(&enveloped("v1", "Service", &service)).unwrap()["spec"],
            json!({"ports": [{"port": 80, "targetPort": "ht"}]})
        );
        let volume = field(1, &[field(1, b"tmp"), field(2, &field(2, b""))].concat());
        let pod = decode(&enveloped("v1", "Pod", &field(2, &volume))).unwrap();
        assert_eq!(pod["spec"]["volumes"], json!([{"name": "tmp", "emptyDir": {}}]), "sources are inlined");
    }

    #[test]
    fn the_table_is_whole() {
        for (name, fields) in messages() {
            for field in fields {
                if let Type::Message(inner) = field.kind {
                    assert!(messages().contains_key(inner), "{name}.{}: {inner}", field.name);
                }
            }
        }
        for kind in [
            ("v1", "Pod"),
            ("apps/v1", "Deployment"),
            ("rbac.authorization.k8s.io/v1", "Role"),
            ("autoscaling/v2", "HorizontalPodAutoscaler"),
            ("authorization.k8s.io/v1", "SelfSubjectAccessReview"),
            ("policy/v1", "Eviction"),
        ] {
            assert!(message_of(kind.0, kind.1).is_some(), "{kind:?}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(raw in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&raw);
            let types = [field(1, b"v1"), field(2, b"Pod")].concat();
            let _ = decode(&[MAGIC.to_vec(), field(1, &types), field(2, &raw)].concat());
        }
    }
}
